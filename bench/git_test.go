package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cofferdam/cofferdam/internal/testenv"
)

// tip returns the commit that main is at.
func tip(t *testing.T, dir string) string {
	t.Helper()
	out, err := exec.Command("git", "-C", dir, "-c", "safe.directory=*", "rev-parse", "main").Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

// TestHistory makes the same repository twice: what is measured today is measured tomorrow.
func TestHistory(t *testing.T) {
	testenv.Need(t, "tool:git")
	h := history{commits: 20, files: 30, assets: 3, assetBytes: 64 << 10}
	var tips []string
	for range 2 {
		dir := filepath.Join(t.TempDir(), "r.git")
		if err := h.make(t.Context(), dir); err != nil {
			t.Fatal(err)
		}
		if err := forgeGit(t.Context(), dir, "fsck", "--strict"); err != nil {
			t.Error(err)
		}
		tips = append(tips, tip(t, dir))
		if size, err := sizeOfPacks(dir); err != nil || size < int64(h.assets*h.assetBytes) || size > int64(2*h.assets*h.assetBytes) {
			t.Errorf("packs of %d bytes, %v", size, err)
		}
		out, err := exec.Command("sh", "-c", "git verify-pack -v "+dir+"/objects/pack/*.idx").Output()
		if err != nil || !strings.Contains(string(out), "chain length = 2") || strings.Count(string(out), " blob ") < 100 { // a file may be changed twice in one commit
			t.Errorf("%d blobs, %v: %.1000s", strings.Count(string(out), " blob "), err, out)
		}
	}
	if tips[0] != tips[1] {
		t.Errorf("made twice, it is two: %v", tips)
	}
}

// TestForge has every task of git carried out at the forge: with the token it yields values, without it an error.
func TestForge(t *testing.T) {
	testenv.Need(t, "tool:git")
	root, home := t.TempDir(), t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("GIT_CONFIG_NOSYSTEM", "1")
	source := filepath.Join(root, "source", "r0.git")
	h := history{commits: 5, files: 10, assets: 4, assetBytes: 1 << 20} // more than git sends with a length
	if err := h.make(t.Context(), source); err != nil {
		t.Fatal(err)
	}
	certificate, err := selfSigned()
	if err != nil {
		t.Fatal(err)
	}
	trust := filepath.Join(home, "trust.pem")
	if err := os.WriteFile(trust, []byte(certificatePEM(certificate)), 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go serveForge(l, certificate, root)
	for n, c := range []struct {
		do     string
		count  int
		values int
		pushes bool
	}{{"clone", 1, 1, false}, {"fetch", 3, 3, false}, {"push", 1, 1, true}, {"commits", 2, 2, true}} {
		repository := fmt.Sprintf("made/r%d.git", n)
		switch c.do {
		case "push":
			err = bare(t.Context(), filepath.Join(root, repository))
		case "commits":
			err = historySmall.make(t.Context(), filepath.Join(root, repository))
		default:
			repository = "source/r0.git"
		}
		if err != nil {
			t.Fatal(err)
		}
		url := func(token string) string {
			return fmt.Sprintf("https://%s:%s@%s/%s", gitUser, token, l.Addr(), repository)
		}
		work := task{Git: &gitTask{Do: c.do, Count: c.count, URL: url("of-no-worth"), Repository: source, Trust: trust, Dir: home}}
		if _, err := work.carryOut(); err == nil || !strings.Contains(err.Error(), "Authentication failed") {
			t.Errorf("%s without the token: %v", c.do, err)
		}
		work.Git.URL = url(realToken)
		values, err := work.carryOut()
		if err != nil || len(values) != c.values || values[0] <= 0 {
			t.Errorf("%s: %v, %v", c.do, values, err)
		}
		if c.do == "push" && tip(t, filepath.Join(root, repository)) != tip(t, source) {
			t.Error("what arrived is not what was pushed")
		}
	}
	if left, _ := filepath.Glob(filepath.Join(home, "bench-git-*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

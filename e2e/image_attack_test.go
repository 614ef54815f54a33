package e2e

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cofferdam/cofferdam/internal/testenv"
)

// imageTree is a tree for --rootfs, which is what an image is to a sandbox.
func imageTree(t *testing.T, h *house) string {
	t.Helper()
	layer, err := smallLayer()
	if err != nil {
		t.Fatal(err)
	}
	tree := filepath.Join(h.home, "tree")
	if err := os.Mkdir(tree, 0o755); err != nil {
		t.Fatal(err)
	}
	unpack := exec.Command("tar", "-C", tree, "-x")
	unpack.Stdin = bytes.NewReader(layer)
	if out, err := unpack.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	h.own(tree)
	return tree
}

// asLink makes a path of a tree a link, and returns what puts back what was there.
func asLink(t *testing.T, h *house, tree, path, target string) (back func()) {
	t.Helper()
	at, away := filepath.Join(tree, path), filepath.Join(h.home, "away")
	err := os.Rename(at, away)
	had := err == nil
	if err := errors.Join(os.MkdirAll(filepath.Dir(at), 0o755), os.Symlink(target, at)); err != nil {
		t.Fatal(err)
	}
	h.own(filepath.Dir(at))
	return func() {
		err := os.Remove(at)
		if had {
			err = errors.Join(err, os.Rename(away, at))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// imageLinks are the paths where a sandbox's view has something of its own, or where something is mounted in these tests.
func imageLinks() []string {
	return strings.Fields("etc etc/hostname etc/hosts etc/resolv.conf etc/machine-id etc/passwd etc/ssl etc/ssl/certs etc/ssl/certs/ca-certificates.crt run run/cofferdam run/cofferdam/runner " +
		"proc dev dev/null sys tmp root mnt usr/local usr/local/shown")
}

// TestImageLinks starts sandboxes from a tree in which a directory or file of the system's is a link to what is outside, to each by its path there and by one that leads up. Either nothing
// starts, or what is outside is neither read nor written. TLS is inspected, so that lists of authorities are made anew.
func TestImageLinks(t *testing.T) {
	t.Run("container", func(t *testing.T) {
		forEachUser(t, func(t *testing.T, h *house) { h.as.level = "container"; tryLinks(t, h, imageLinks()) })
	})
	t.Run("gvisor", func(t *testing.T) { // what its view has otherwise
		testenv.Need(t, "gvisor")
		forEachUser(t, func(t *testing.T, h *house) {
			h.as.level = "gvisor"
			tryLinks(t, h, strings.Fields("etc/hosts proc dev sys tmp"))
		})
	})
}

func tryLinks(t *testing.T, h *house, paths []string) {
	const precious = "precious-4711"
	outside := filepath.Join(h.home, "outside")
	h.write("../outside/file", precious)
	h.as.root = imageTree(t, h)
	h.write("shown/x", "x")
	h.write("policy.yaml", "version: 1\negress: {rules: [{name: files, hosts: [files.example.org], tls: inspect}]}\n")
	try := func(path string) result {
		return h.do("run", "--policy", "policy.yaml", "--mount", h.project+"/shown:/mnt/shown", "--mount", h.project+"/shown:/usr/local/shown", "--",
			"sh", "-c", "cat /"+path+"; cat /"+path+"/file; ls /"+path+"; grep name /etc/resolv.conf; echo started")
	}
	if r := try("mnt/shown/x"); r.code != 0 || !strings.Contains(r.stdout, "nameserver") || !strings.HasPrefix(r.stdout, "x") || !strings.HasSuffix(r.stdout, "started\n") {
		t.Fatalf("control: exit %d: %s%s", r.code, r.stdout, r.stderr)
	}
	for i, path := range paths {
		target := []string{outside, outside + "/file"}[i%2]
		if i%3 == 0 {
			target = strings.Repeat("../", 20) + target[1:]
		}
		back := asLink(t, h, h.as.root, path, target)
		r := try(path)
		back()
		if strings.Contains(r.stdout+r.stderr, precious) {
			t.Errorf("%s: what is outside was read: %s", path, r.stdout)
		}
		if r.code == 125 == strings.Contains(r.stdout, "started") {
			t.Errorf("%s: exit %d: %s%s", path, r.code, r.stdout, r.stderr)
		}
		names, err := os.ReadDir(outside)
		data, readErr := os.ReadFile(outside + "/file")
		if err != nil || readErr != nil || len(names) != 1 || string(data) != precious {
			t.Errorf("%s: what is outside was changed: %v, %q, %v, %v", path, names, data, err, readErr)
		}
	}
}

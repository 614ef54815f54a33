package rootfs

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/testenv"
)

func TestHideTable(t *testing.T) {
	seen := map[string]bool{}
	for _, h := range Hide() {
		if !filepath.IsAbs(h.Path) || filepath.Clean(h.Path) != h.Path || h.Reason == "" || seen[h.Path] {
			t.Errorf("%+v: want a clean absolute path, once, with a reason", h)
		}
		if _, err := filepath.Match(h.Path, ""); err != nil {
			t.Errorf("%s: %v", h.Path, err)
		}
		seen[h.Path] = true
	}
	for _, path := range []string{"/root", "/home", "/run", "/tmp", "/etc/shadow*", "/etc/ssh/ssh_host_*", "/var/lib/cofferdam"} {
		if !seen[path] {
			t.Errorf("%s is not hidden", path)
		}
	}
}

// TestHideInUpper lays out a small host and looks at the upper layer that hides its secrets.
func TestHideInUpper(t *testing.T) {
	testenv.Need(t, "root") // whiteouts and owners
	lower, upper := t.TempDir(), t.TempDir()
	for name, content := range map[string]string{
		"etc/shadow": "hash", "etc/shadow-": "old hash", "etc/passwd": "users", "root/.ssh/id": "key", "var/log/apt/history": "x", "data/private": "x", "image.raw": "x",
		"usr/bin/true": "x",
	} {
		path := filepath.Join(lower, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o751), os.WriteFile(path, []byte(content), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("usr/bin", filepath.Join(lower, "bin")); err != nil {
		t.Fatal(err)
	}
	if err := hideInUpper(lower, upper, "/", Hide()); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		path string
		want string // whiteout, opaque, merged or absent
	}{
		{"etc/shadow", "whiteout"}, {"etc/shadow-", "whiteout"}, {"etc/passwd", "absent"}, {"root", "opaque"}, {"var/log", "opaque"}, {"var/log/apt", "merged"},
		{"var/log/apt/history", "absent"}, {"data", "whiteout"}, {"image.raw", "whiteout"}, {"usr", "absent"}, {"bin", "absent"}, {"etc", "merged"},
	} {
		if got := kindOf(t, filepath.Join(upper, c.path)); got != c.want {
			t.Errorf("%s: %s, want %s", c.path, got, c.want)
		}
	}
	info, err := os.Stat(filepath.Join(upper, "etc"))
	if err != nil || info.Mode().Perm() != 0o751 {
		t.Errorf("a merged directory shows the upper one's mode: %v, %v, want 0751 as below", info.Mode(), err)
	}
}

func kindOf(t *testing.T, path string) string {
	t.Helper()
	var s unix.Stat_t
	err := unix.Lstat(path, &s)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "absent"
	case err != nil:
		t.Fatal(err)
	case s.Mode&unix.S_IFMT == unix.S_IFCHR && s.Rdev == 0:
		return "whiteout"
	}
	mark := make([]byte, 8)
	if n, err := unix.Lgetxattr(path, "user.overlay.opaque", mark); err == nil && string(mark[:n]) == "y" {
		return "opaque"
	}
	return "merged"
}

func TestMountPoint(t *testing.T) {
	b := &builder{view: &View{root: t.TempDir()}}
	if err := os.Symlink("/etc", filepath.Join(b.view.root, "link")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(b.view.root, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, ok := range map[string]bool{
		"/a/b/c": true, "/a": true, "/link/x": false, "/link": false, "/file/x": false, "relative": false, "/a/../b": false, "/": false, "//a": false,
	} {
		at, err := b.mountPoint(path)
		if (err == nil) != ok {
			t.Errorf("%s: %v", path, err)
		}
		if err == nil && !strings.HasPrefix(at, b.view.root) {
			t.Errorf("%s: mounts at %s, outside the view", path, at)
		}
	}
}

// TestReplaceFile tries to write through a link that leads out of the view, as a hostile --rootfs would have it.
func TestReplaceFile(t *testing.T) {
	outside := t.TempDir()
	dir := t.TempDir()
	if err := os.Symlink(outside, filepath.Join(dir, "etc")); err != nil {
		t.Fatal(err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if err := replaceFile(root, "etc/hosts", "x"); err == nil {
		t.Error("wrote through a link that leaves the view")
	}
	if entries, _ := os.ReadDir(outside); len(entries) != 0 {
		t.Errorf("outside the view: %v", entries)
	}
	if err := replaceFile(root, "new/hosts", "x"); err != nil {
		t.Errorf("control: %v", err)
	}
}

func TestHomes(t *testing.T) {
	passwd := `root:x:0:0:root:/root:/bin/bash
daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin
alice:x:1000:1000::/var/home/alice:/bin/bash
bob:x:1001:1001::/data/bob/:/bin/bash
odd:x:1002:1002::/usr:/bin/sh
service:x:998:998::/var/lib/service:/bin/false
nobody:x:65534:65534::/nonexistent:/usr/sbin/nologin
pattern:x:1003:1003::/home/*:/bin/sh
broken line
`
	got := homes(passwd)
	want := []string{"/root", "/var/home/alice", "/data/bob", "/nonexistent"}
	if !slices.Equal(got, want) {
		t.Errorf("homes: %q, want %q", got, want)
	}
	hidden := map[string]bool{}
	for _, h := range HideOn(passwd) {
		if hidden[h.Path] {
			t.Errorf("%s is listed twice", h.Path)
		}
		hidden[h.Path] = true
	}
	for _, path := range []string{"/var/home/alice", "/data/bob", "/root", "/etc/shadow*"} {
		if !hidden[path] {
			t.Errorf("%s is not hidden", path)
		}
	}
	if hidden["/usr"] {
		t.Error("a user whose home is /usr hides the system")
	}
}

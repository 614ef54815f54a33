package rootfs

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestListing reads lists that are links, as several distributions have them, and whatever else a hostile tree has in their place.
func TestListing(t *testing.T) {
	tree := filepath.Join(t.TempDir(), "tree")
	outside := filepath.Join(filepath.Dir(tree), "outside")
	err := errors.Join(os.MkdirAll(tree+"/etc/real", 0o755), os.WriteFile(tree+"/etc/real/list", []byte("inside"), 0o644), os.WriteFile(outside, []byte("outside"), 0o644),
		os.Symlink("/etc/real/list", tree+"/etc/absolute"), os.Symlink("real/list", tree+"/etc/relative"), os.Symlink(outside, tree+"/etc/out"), os.Symlink("../../outside", tree+"/etc/up"),
		os.Symlink("loop", tree+"/etc/loop"), os.Symlink("/etc/real", tree+"/etc/dir"), unix.Mkfifo(tree+"/etc/pipe", 0o644))
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{"/etc/real/list": "inside", "/etc/absolute": "inside", "/etc/relative": "inside", "/etc/dir/list": "inside", "/etc/out": "", "/etc/up": "", "/etc/none": "", "/etc/pipe": ""} {
		began := time.Now()
		data, err := listing{root: tree}.read(path)
		if err != nil || string(data) != want || time.Since(began) > 10*time.Second {
			t.Errorf("%s: %q, %v, want %q", path, data, err, want)
		}
	}
	for _, path := range []string{"/etc/loop", "/etc/real"} {
		if data, err := (listing{root: tree}).read(path); err == nil {
			t.Errorf("%s: %q", path, data)
		}
	}
}

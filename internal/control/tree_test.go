package control

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/api"
)

// deepTree makes folders in each other below dir, as a program inside can: step by step, where no path reaches.
func deepTree(t *testing.T, dir string, depth int) {
	t.Helper()
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	for range depth {
		if err == nil {
			err = unix.Mkdirat(fd, "d", 0o700)
		}
		if err != nil {
			t.Fatal(err)
		}
		next, openErr := unix.Openat(fd, "d", unix.O_PATH|unix.O_DIRECTORY, 0)
		unix.Close(fd)
		fd, err = next, openErr
	}
	unix.Close(fd)
}

func TestRemoveDeepTree(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "tree")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	deepTree(t, dir, 5000)
	for i := range 100 { // and some that are wide
		inner := filepath.Join(dir, "d", "d", fmt.Sprint(i), "x")
		if err := errors.Join(os.MkdirAll(inner, 0o700), os.WriteFile(filepath.Join(inner, "file"), nil, 0), os.Chmod(inner, 0)); err != nil {
			t.Fatal(err)
		}
	}
	var usual unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &usual); err != nil {
		t.Fatal(err)
	}
	few := usual
	few.Cur = 2*maxDepth + 100 // fewer than there are levels
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &few); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Setrlimit(unix.RLIMIT_NOFILE, &usual) }() // it was so
	began := time.Now()
	size := newHouse("").size(t.Context(), dir, time.Minute)
	if took := time.Since(began); size.excess == "" || took > 5*time.Second {
		t.Errorf("%+v after %v", size, took)
	}
	began = time.Now()
	err := removeTree(dir)
	t.Logf("removed in %v", time.Since(began))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
	entries, err := os.ReadDir(filepath.Dir(dir))
	if err != nil || len(entries) != 0 {
		t.Errorf("left: %v %v", entries, err)
	}
}

func TestTreeSize(t *testing.T) {
	const block = 1 << 20
	write := func(path string) {
		t.Helper()
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, make([]byte, block), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	outside := filepath.Join(t.TempDir(), "outside")
	write(outside)
	for _, c := range []struct {
		name   string
		make   func(dir string) error
		least  int64
		excess string
	}{
		{"nothing", func(string) error { return nil }, 0, ""},
		{"a file", func(dir string) error { write(dir + "/a"); return nil }, block, ""},
		{"files in folders", func(dir string) error { write(dir + "/a/b"); write(dir + "/c/d/e"); return nil }, 2 * block, ""},
		{"one file with many names counts once", func(dir string) error {
			write(dir + "/a")
			return errors.Join(os.Link(dir+"/a", dir+"/b"), os.Link(dir+"/a", dir+"/c"))
		}, block, ""},
		{"links outside", func(dir string) error {
			return errors.Join(os.Symlink(outside, dir+"/a"), os.Symlink(filepath.Dir(outside), dir+"/b"))
		}, 0, ""},
		{"what may not be read", func(dir string) error { write(dir + "/a/b/c"); return os.Chmod(dir+"/a", 0) }, block, ""},
		{"what may not be entered", func(dir string) error { write(dir + "/a/b/c"); return os.Chmod(dir+"/a", 0o600) }, block, ""},
		{"nothing may be read", func(dir string) error { write(dir + "/a"); return os.Chmod(dir, 0) }, block, ""},
		{"deep", func(dir string) error { deepTree(t, dir, maxDepth-1); return nil }, 0, ""},
		{"too deep", func(dir string) error { deepTree(t, dir, maxDepth+1); return nil }, 0, "deep"},
	} {
		dir := filepath.Join(t.TempDir(), "tree")
		if err := errors.Join(os.Mkdir(dir, 0o700), c.make(dir)); err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		got := newHouse("").size(t.Context(), dir, time.Minute)
		if got.bytes < c.least || c.excess == "" && got.bytes > c.least+block*3/4+int64(got.entries)*4096 || got.partial || (got.excess != "") != (c.excess != "") || !strings.Contains(got.excess, c.excess) {
			t.Errorf("%s: %+v", c.name, got)
		}
		if err := removeTree(dir); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if got := newHouse("").size(gone, filepath.Dir(outside), time.Minute); !got.partial {
		t.Errorf("without time: %+v", got)
	}
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o300); err != nil {
		t.Fatal(err)
	}
	newHouse("").size(t.Context(), dir, time.Minute)
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o300 {
		t.Errorf("the mode is not as it was: %v %v", info.Mode(), err)
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
}

// TestManyNames: a million names of one file take little room, and are too many all the same.
func TestManyNames(t *testing.T) {
	w := sizing{counted: map[[2]uint64]struct{}{}}
	w.entries = maxEntries - 2
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "0"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		if err := os.Link(filepath.Join(dir, "0"), filepath.Join(dir, fmt.Sprint(i+1))); err != nil {
			t.Fatal(err)
		}
	}
	w.enter(t.Context(), unix.AT_FDCWD, dir, 0)
	if !strings.Contains(w.excess, "more than 1000000 files") {
		t.Errorf("%+v", w.treeSize)
	}
}

// TestSandboxWorkspaceTooDeep: a sandbox that hides in the depth is ended, and nothing of its tree is left.
func TestSandboxWorkspaceTooDeep(t *testing.T) {
	h := newRealHouse(t)
	h.run(t)
	h.agent(t, h.a, "one", emptyPolicy)
	deep := "i=0; while [ $i -lt 600 ]; do mkdir d && cd d || exit 1; i=$((i+1)); done; sleep 1000"
	o := h.create(t, h.a, api.NewSandbox{Agent: "one", Command: []string{"/bin/sh", "-c", deep}})
	if over := h.ended(t, h.a, o.ID); !strings.Contains(over.How, "folders more than 512 deep") || !slices.Contains(over.Erased, "workspace") {
		t.Errorf("%+v", over)
	}
	h.nothing(t, o.ID)
}

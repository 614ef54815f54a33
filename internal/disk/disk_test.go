package disk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/testenv"
)

// create opens a new file for an image.
func create(t testing.TB) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "image"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// write makes an image that must succeed.
func write(t testing.TB, dir string, o Options) (*os.File, Summary) {
	t.Helper()
	out := create(t)
	sum, err := Write(t.Context(), dir, out, o)
	if err != nil {
		t.Fatal(err)
	}
	return out, sum
}

// mount mounts an image as the kernel sees it, read-only, for the length of the test.
func mount(t testing.TB, image *os.File) string {
	t.Helper()
	testenv.Need(t, "root", "tool:mount")
	if data, err := os.ReadFile("/proc/filesystems"); err != nil || !bytes.Contains(data, []byte("\terofs\n")) {
		t.Skip("this kernel has no EROFS")
	}
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-t", "erofs", "-o", "loop,ro", image.Name(), dir).CombinedOutput(); err != nil {
		t.Fatalf("mount: %v: %s", err, out)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// listing describes every file of a tree in one line.
func listing(t testing.TB, dir string) map[string]string {
	t.Helper()
	lines, seen := map[string]string{}, map[uint64]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		name, _ := filepath.Rel(dir, path)
		line := fmt.Sprintf("%v %d:%d %s nlink %d", info.Mode(), st.Uid, st.Gid, info.ModTime().UTC().Format(time.RFC3339Nano), st.Nlink)
		switch {
		case info.Mode().IsRegular():
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" %d bytes %x", len(data), fnv(data))
			if first, ok := seen[st.Ino]; ok {
				line += " is " + first
			}
			seen[st.Ino] = name
			value := make([]byte, 4096)
			if n, err := unix.Getxattr(path, "user.colour", value); err == nil {
				line += fmt.Sprintf(" colour %q", value[:n])
			}
		case info.Mode()&fs.ModeSymlink != 0:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			line += " -> " + target
		}
		lines[name] = line
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return lines
}

func fnv(data []byte) uint64 {
	h := uint64(14695981039346656037)
	for _, b := range data {
		h = (h ^ uint64(b)) * 1099511628211
	}
	return h
}

func compare(t testing.TB, got, want map[string]string) {
	t.Helper()
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if got[name] != want[name] {
			t.Errorf("%s:\n  is     %s\n  wanted %s", name, got[name], want[name])
		}
	}
	for _, name := range slices.Sorted(maps.Keys(got)) {
		if want[name] == "" {
			t.Errorf("%s is not in the tree: %s", name, got[name])
		}
	}
}

// plant fills a directory with one of everything that is kept.
func plant(t testing.TB, dir string) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, size := range []int{0, 1, 31, 32, 33, 2000, 3967, 4031, 4032, 4033, 4095, 4096, 4097, 8192, 100_000, pieceSize - 1, pieceSize, pieceSize + 1, 3*pieceSize + 77} {
		must(os.WriteFile(filepath.Join(dir, fmt.Sprintf("size-%d", size)), pattern(size), 0o644))
	}
	must(os.MkdirAll(filepath.Join(dir, "a/b/c"), 0o755))
	must(os.Mkdir(filepath.Join(dir, "empty"), 0o700))
	must(os.Chmod(filepath.Join(dir, "empty"), 0o1777))
	must(os.WriteFile(filepath.Join(dir, "a/b/c/tool"), []byte("#!/bin/sh\n"), 0o755))
	must(os.WriteFile(filepath.Join(dir, "a/odd \n\xff\\name"), []byte("x"), 0o600))
	must(os.Link(filepath.Join(dir, "size-100000"), filepath.Join(dir, "a/again")))
	must(os.Symlink("../../etc/passwd", filepath.Join(dir, "a/link")))
	must(os.Symlink(strings.Repeat("x/", 2047), filepath.Join(dir, "a/long")))
	must(unix.Setxattr(filepath.Join(dir, "size-33"), "user.colour", []byte("blue"), 0))
	must(unix.Setxattr(filepath.Join(dir, "size-4032"), "user.colour", bytes.Repeat([]byte("b"), 1900), 0))
	must(os.Truncate(filepath.Join(dir, "size-0"), 0))
	hole, err := os.Create(filepath.Join(dir, "hole"))
	must(err)
	_, err = hole.WriteAt([]byte("end"), 5<<20)
	must(errors.Join(err, hole.Close()))
	must(os.Mkdir(filepath.Join(dir, "many"), 0o755))
	for i := range 700 { // several blocks of names, and of directories
		must(os.Mkdir(filepath.Join(dir, "many", fmt.Sprintf("%03d-%s", i, strings.Repeat("n", i%200))), 0o755))
	}
	must(os.WriteFile(filepath.Join(dir, "many", strings.Repeat("z", 255)), []byte("z"), 0o644))
	old := time.Unix(-86400, 5)
	must(os.Chtimes(filepath.Join(dir, "size-31"), old, old))
}

func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + i>>8)
	}
	return b
}

func TestKernelReadsTheTree(t *testing.T) {
	testenv.Need(t, "root")
	dir := t.TempDir()
	plant(t, dir)
	for name, id := range map[string]int{"size-1": 1000, "a": 65534, "a/b": 70000, "a/link": 12} {
		if err := os.Lchown(filepath.Join(dir, name), id, id+1); err != nil {
			t.Fatal(err)
		}
	}
	want := listing(t, dir)
	want["a"] = strings.Replace(want["a"], "65534:65535", "65534:65534", 1)
	want["a/b"] = strings.Replace(want["a/b"], "70000:70001", "65534:65534", 1)
	out, sum := write(t, dir, Options{})
	compare(t, listing(t, mount(t, out)), want)
	if sum.Files != 23 || sum.Symlinks != 2 || sum.Dirs != 706 || sum.Special+sum.Mounts+sum.Unreadable+sum.Changed+sum.Attributes != 0 {
		t.Errorf("%+v", sum)
	}
}

func TestRoots(t *testing.T) {
	for _, names := range []int{0, 1, 50, 300, 1200} {
		dir := t.TempDir()
		for i := range names {
			if err := os.Mkdir(filepath.Join(dir, fmt.Sprintf("%05d", i)), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		out, _ := write(t, dir, Options{})
		compare(t, listing(t, mount(t, out)), listing(t, dir))
	}
}

func TestParents(t *testing.T) {
	dir := t.TempDir()
	plant(t, dir)
	out, _ := write(t, dir, Options{})
	root := mount(t, out)
	numbers := func(path string) map[string]uint64 { // as a directory lists them, not as the kernel remembers them
		data, err := exec.Command("ls", "-iaf", path).Output()
		if err != nil {
			t.Fatal(err)
		}
		all := map[string]uint64{}
		for line := range strings.Lines(string(data)) {
			var n uint64
			var name string
			if _, err := fmt.Sscan(line, &n, &name); err == nil {
				all[name] = n
			}
		}
		return all
	}
	for child, parent := range map[string]string{"a": ".", "a/b": "a", "a/b/c": "a/b", "many/000-": "many", "many/699-" + strings.Repeat("n", 99): "many"} {
		up, own := numbers(filepath.Join(root, child))[".."], numbers(filepath.Join(root, parent))["."]
		if up != own || up == 0 {
			t.Errorf("the parent of %s is %d, wanted %d", child, up, own)
		}
	}
}

func TestEqualTreesGiveEqualBytes(t *testing.T) {
	dir := t.TempDir()
	plant(t, dir)
	one, _ := write(t, dir, Options{})
	two, _ := write(t, dir, Options{})
	a, err1 := os.ReadFile(one.Name())
	b, err2 := os.ReadFile(two.Name())
	if err1 != nil || err2 != nil || !bytes.Equal(a, b) {
		t.Error("two images of one tree differ", err1, err2)
	}
}

func TestOwners(t *testing.T) {
	for _, c := range []struct {
		owner    func(uint32, uint32) (uint32, uint32)
		uid, gid uint32
		wantUID  uint32
		wantGID  uint32
	}{
		{SameOwners, 0, 0, 0, 0},
		{SameOwners, 1000, 100, 1000, 100},
		{SameOwners, 65534, 65535, 65534, 65534},
		{SameOwners, 1 << 31, 7, 65534, 7},
		{RootFor(1000, 100), 1000, 100, 0, 0},
		{RootFor(1000, 100), 0, 0, 65534, 65534},
		{RootFor(1000, 100), 1000, 0, 0, 65534},
		{RootFor(-1, -1), 1<<32 - 1, 1<<32 - 1, 65534, 65534},
	} {
		if uid, gid := c.owner(c.uid, c.gid); uid != c.wantUID || gid != c.wantGID {
			t.Errorf("%d:%d is %d:%d inside, wanted %d:%d", c.uid, c.gid, uid, gid, c.wantUID, c.wantGID)
		}
	}
}

func TestWriteFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "settings")
	if err := os.WriteFile(path, pattern(5000), 0o640); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(path, path+"2"); err != nil {
		t.Fatal(err)
	}
	out := create(t)
	sum, err := WriteFile(t.Context(), path, "inside", out, Options{PadTo: 1 << 20})
	if err != nil || sum.Files != 1 || sum.Dirs != 1 {
		t.Fatal(sum, err)
	}
	got := listing(t, mount(t, out))
	if len(got) != 2 || !strings.HasSuffix(got["inside"], fmt.Sprintf("nlink 1 5000 bytes %x", fnv(pattern(5000)))) {
		t.Error(got)
	}
}

func TestWriteFileRefuses(t *testing.T) {
	dir := t.TempDir()
	good, link, pipe := filepath.Join(dir, "good"), filepath.Join(dir, "link"), filepath.Join(dir, "pipe")
	if err := errors.Join(os.WriteFile(good, nil, 0o644), os.Symlink(good, link), unix.Mkfifo(pipe, 0o644)); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		path, name string
		ok         bool
	}{
		{good, "name", true},
		{link, "name", false},
		{pipe, "name", false},
		{dir, "name", false},
		{dir + "/absent", "name", false},
		{good, "", false}, {good, ".", false}, {good, "..", false}, {good, "a/b", false}, {good, "a\x00b", false}, {good, strings.Repeat("n", 256), false},
	} {
		_, err := WriteFile(t.Context(), c.path, c.name, create(t), Options{})
		if (err == nil) != c.ok || (err != nil && fault.KindOf(err) != fault.Invalid && fault.KindOf(errors.Unwrap(err)) != fault.Invalid) {
			t.Errorf("%s as %q: %v", c.path, c.name, err)
		}
	}
}

func TestBounds(t *testing.T) {
	dir := t.TempDir()
	plant(t, dir)
	_, whole := write(t, dir, Options{})
	for _, c := range []struct {
		name string
		o    Options
		kind fault.Kind
		ok   bool
	}{
		{"exactly as large", Options{MaxBytes: whole.Size}, 0, true},
		{"one block too small", Options{MaxBytes: whole.Size - blockSize}, fault.TooMany, false},
		{"padded", Options{PadTo: whole.Size + 64<<20}, 0, true},
		{"padded to what it has", Options{PadTo: whole.Size}, 0, true},
		{"padding too small", Options{PadTo: whole.Size - blockSize}, fault.TooMany, false},
		{"padding within a block", Options{PadTo: whole.Size + 512}, fault.Invalid, false},
		{"negative", Options{MaxBytes: -1}, fault.Invalid, false},
		{"as many names", Options{MaxFiles: whole.Files + whole.Dirs + whole.Symlinks}, 0, true}, // one file has two names, and the root none
		{"one name too many", Options{MaxFiles: whole.Files + whole.Dirs + whole.Symlinks - 1}, fault.TooMany, false},
	} {
		out := create(t)
		sum, err := Write(t.Context(), dir, out, c.o)
		if (err == nil) != c.ok || (err != nil && fault.KindOf(err) != c.kind) {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		info, _ := out.Stat()
		if want := max(whole.Size, c.o.PadTo); err == nil && (info.Size() != want || sum.Size != whole.Size) {
			t.Errorf("%s: the file has %d bytes, the image %d, wanted %d and %d", c.name, info.Size(), sum.Size, want, whole.Size)
		}
		if c.name == "padded" && info.Sys().(*syscall.Stat_t).Blocks*512 > whole.Size {
			t.Error("the padding takes room")
		}
	}
}

func TestCancelled(t *testing.T) {
	dir := t.TempDir()
	plant(t, dir)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Write(ctx, dir, create(t), Options{}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestHolesTakeNoRoom(t *testing.T) {
	dir := t.TempDir()
	f, err := os.Create(filepath.Join(dir, "hole"))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Truncate(256<<20), f.Close()); err != nil {
		t.Fatal(err)
	}
	out, sum := write(t, dir, Options{})
	info, err := out.Stat()
	if err != nil || sum.Size < 256<<20 || info.Sys().(*syscall.Stat_t).Blocks*512 > 1<<20 {
		t.Error(sum, info.Sys().(*syscall.Stat_t).Blocks, err)
	}
}

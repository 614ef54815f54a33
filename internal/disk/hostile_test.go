package disk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/testenv"
)

const secret = "the host's own words: 7f1c9e0d"

func TestSpecialFilesAreLeftOut(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(outside, "secret"), []byte(secret), 0o600); err != nil {
		t.Fatal(err)
	}
	socket, err := net.Listen("unix", filepath.Join(dir, "socket"))
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	if err := errors.Join(
		unix.Mkfifo(filepath.Join(dir, "pipe"), 0o666),
		os.Symlink(filepath.Join(outside, "secret"), filepath.Join(dir, "link")),
		os.Symlink(outside, filepath.Join(dir, "folder")),
		os.WriteFile(filepath.Join(dir, "kept"), []byte("kept contents"), 0o644),
	); err != nil {
		t.Fatal(err)
	}
	special := 2
	if os.Geteuid() == 0 {
		if err := unix.Mknod(filepath.Join(dir, "device"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 5))); err != nil { // /dev/zero never ends
			t.Fatal(err)
		}
		special++
	}
	out, sum := write(t, dir, Options{})
	if sum.Special != special || sum.Files != 1 || sum.Symlinks != 2 || sum.Dirs != 1 {
		t.Errorf("%+v", sum)
	}
	holds(t, out, "kept contents", secret)
}

// holds looks for words in an image: one that must be there, as a control, and one that must not.
func holds(t testing.TB, image *os.File, wanted, refused string) {
	t.Helper()
	data, err := os.ReadFile(image.Name())
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(data, []byte(wanted)) {
		t.Errorf("the image lacks %q", wanted)
	}
	if bytes.Contains(data, []byte(refused)) {
		t.Errorf("the image holds what lies outside the tree")
	}
}

func TestMountsAreLeftOut(t *testing.T) {
	testenv.Need(t, "root")
	dir, outside := t.TempDir(), t.TempDir()
	if err := errors.Join(
		os.WriteFile(filepath.Join(outside, "secret"), []byte(secret), 0o600),
		os.Mkdir(filepath.Join(dir, "mounted"), 0o755),
		os.WriteFile(filepath.Join(dir, "file"), nil, 0o644),
		os.WriteFile(filepath.Join(dir, "kept"), []byte("kept contents"), 0o644),
	); err != nil {
		t.Fatal(err)
	}
	for from, to := range map[string]string{outside: "mounted", outside + "/secret": "file"} {
		if err := unix.Mount(from, filepath.Join(dir, to), "", unix.MS_BIND, ""); err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := unix.Unmount(filepath.Join(dir, to), unix.MNT_DETACH); err != nil {
				t.Error(err)
			}
		}()
	}
	out, sum := write(t, dir, Options{})
	if sum.Mounts != 2 || sum.Files != 1 {
		t.Errorf("%+v", sum)
	}
	holds(t, out, "kept contents", secret)
}

// TestTreeThatChanges swaps names for links, pipes and folders as fast as it can while images are made.
func TestTreeThatChanges(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.WriteFile(filepath.Join(outside, "secret"), []byte(secret), 0o600))
	must(os.WriteFile(in("kept"), []byte("kept contents"), 0o644))
	swaps := []struct{ make, other func(path string) error }{
		{func(p string) error { return os.WriteFile(p, []byte("file"), 0o644) }, func(p string) error { return os.Symlink(filepath.Join(outside, "secret"), p) }},
		{func(p string) error { return os.WriteFile(p, []byte("file"), 0o644) }, func(p string) error { return unix.Mkfifo(p, 0o644) }},
		{func(p string) error { return os.Mkdir(p, 0o755) }, func(p string) error { return os.Symlink(outside, p) }},
	}
	stop := make(chan struct{})
	var running sync.WaitGroup
	for i, s := range swaps {
		a, b := in(fmt.Sprintf("swap%d", i)), filepath.Join(outside, fmt.Sprintf("other%d", i))
		must(errors.Join(s.make(a), s.other(b)))
		running.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					_ = unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE) // both keep their place
				}
			}
		})
	}
	var seen Summary
	until := time.Now().Add(3 * time.Second)
	for n := 0; n < 300 || (seen.Changed == 0 && time.Now().Before(until)); n++ {
		out := create(t)
		sum, err := Write(t.Context(), dir, out, Options{})
		if err != nil {
			t.Fatal(err)
		}
		holds(t, out, "kept contents", secret)
		seen.Changed += sum.Changed
		seen.Symlinks += sum.Symlinks
		seen.Special += sum.Special
		seen.Files += sum.Files - 1
	}
	close(stop)
	running.Wait()
	if seen.Changed == 0 || seen.Symlinks == 0 || seen.Special == 0 || seen.Files == 0 {
		t.Errorf("the test did not meet what it looks for: %+v", seen)
	}
}

// TestFileThatChanges makes one file longer and shorter while it is read: it is as long as it was when it was opened, or shorter.
func TestFileThatChanges(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	const long = 8 << 20
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	stop, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
				_ = f.Truncate(int64(long + (i%3-1)*(long/2))) // half as long, as long, longer by half
			}
		}
	}()
	changed := 0
	for n := 0; n < 400 && (changed == 0 || n < 20); n++ {
		_, sum := write(t, dir, Options{MaxBytes: 2 * long})
		if sum.Files != 1 || sum.Size > 2*long {
			t.Fatalf("%+v", sum)
		}
		changed += sum.Changed
	}
	close(stop)
	<-ended
	if changed == 0 {
		t.Error("no image met a file that became shorter")
	}
}

// TestEndlessFile has a file grow for as long as it is read.
func TestEndlessFile(t *testing.T) {
	dir := t.TempDir()
	f, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for ctx.Err() == nil {
			if info, err := f.Stat(); err == nil && info.Size() < 64<<20 {
				_, _ = f.Write(pattern(64 << 10))
			}
		}
	}()
	time.Sleep(10 * time.Millisecond)
	before, _ := f.Stat()
	_, sum := write(t, dir, Options{})
	cancel()
	<-ended
	if sum.Size < before.Size() || sum.Size > 80<<20 || sum.Files != 1 {
		t.Errorf("%+v, the file had %d bytes", sum, before.Size())
	}
}

// TestUnreadable runs as an ordinary user: root reads everything.
func TestUnreadable(t *testing.T) {
	if os.Geteuid() == 0 {
		cmd := exec.Command("/proc/self/exe", "-test.run=^TestUnreadable$")
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
		cmd.Dir, cmd.Env = "/", []string{"TMPDIR=/tmp"}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return
	}
	dir := t.TempDir()
	if err := errors.Join(
		os.WriteFile(filepath.Join(dir, "closed"), []byte(secret), 0), os.Mkdir(filepath.Join(dir, "folder"), 0), os.WriteFile(filepath.Join(dir, "kept"), []byte("kept contents"), 0o400),
	); err != nil {
		t.Fatal(err)
	}
	out, sum := write(t, dir, Options{Owner: RootFor(os.Getuid(), os.Getgid())})
	if sum.Unreadable != 2 || sum.Files != 1 {
		t.Errorf("%+v", sum)
	}
	holds(t, out, "kept contents", secret)
}

func TestDepth(t *testing.T) {
	dir := t.TempDir()
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	for range maxDepth + 1 { // longer than a path can be
		name := strings.Repeat("d", 100)
		if err := unix.Mkdirat(fd, name, 0o755); err != nil {
			t.Fatal(err)
		}
		next, err := unix.Openat(fd, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if err := errors.Join(err, unix.Close(fd)); err != nil {
			t.Fatal(err)
		}
		fd = next
	}
	defer unix.Close(fd)
	if _, err := Write(t.Context(), dir, create(t), Options{}); fault.KindOf(err) != fault.TooMany {
		t.Error(err)
	}
}

func TestAttributes(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	set := func(path, name string, value []byte) {
		t.Helper()
		if err := unix.Setxattr(path, name, value, 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.WriteFile(path, nil, 0o644), os.WriteFile(path+"2", nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	set(path, "user.colour", []byte("blue"))
	set(path, "user.overlay.redirect", []byte("/elsewhere"))
	set(path+"2", "user.large", bytes.Repeat([]byte("x"), 3000))
	if os.Geteuid() == 0 {
		set(path, "trusted.overlay.opaque", []byte("y"))
		set(path, "security.capability", []byte("\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"))
	}
	out, sum := write(t, dir, Options{})
	if sum.Attributes != 1 || sum.Files != 2 {
		t.Errorf("%+v", sum)
	}
	root := mount(t, out)
	list := make([]byte, 4096)
	n, err := unix.Listxattr(filepath.Join(root, "file"), list)
	if err != nil || string(list[:n]) != "user.colour\x00" {
		t.Errorf("%q, %v", list[:n], err)
	}
	if n, err := unix.Listxattr(filepath.Join(root, "file2"), list); err != nil || n != 0 {
		t.Errorf("%q, %v", list[:n], err)
	}
}

func BenchmarkWrite(b *testing.B) {
	dir := os.Getenv("DISK_TREE")
	if dir == "" {
		b.Skip("DISK_TREE names no tree")
	}
	for b.Loop() {
		out := create(b)
		sum, err := Write(b.Context(), dir, out, Options{})
		if err != nil {
			b.Fatal(err)
		}
		b.SetBytes(sum.Size)
		b.ReportMetric(float64(sum.Files), "files")
	}
}

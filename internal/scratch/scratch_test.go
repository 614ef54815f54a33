package scratch

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/receipt"
	"github.com/cofferdam/cofferdam/internal/testenv"
)

// The marks that are written: as contents, a name, the place that a link points to, an extended attribute.
func marks() []string {
	return []string{"contents-mark-8d1f", "name-mark-77ab", "link-mark-90ee", "attribute-mark-41c2"}
}

// at returns a path below an open directory.
func at(dir *os.File, name string) string {
	return "/proc/self/fd/" + strconv.Itoa(int(dir.Fd())) + "/" + name
}

func writeMarks(t *testing.T, tree *os.File) {
	t.Helper()
	m := marks()
	file := at(tree, m[1])
	err := errors.Join(os.WriteFile(file, bytes.Repeat([]byte(m[0]+"\n"), 10000), 0o600), os.Symlink("/"+strings.Repeat(m[2]+"/", 20), at(tree, "link")), unix.Setxattr(file, "user.mark", []byte(m[3]), 0))
	if err != nil {
		t.Fatal(err)
	}
}

// count looks for each mark in all bytes of a file or device.
func count(t *testing.T, f *os.File) map[string]int {
	t.Helper()
	found := map[string]int{}
	const piece, overlap = 8 << 20, 64
	buf := make([]byte, piece+overlap)
	for offset := int64(0); ; offset += piece {
		n, err := f.ReadAt(buf, offset)
		for _, m := range marks() {
			found[m] += bytes.Count(buf[:n], []byte(m))
		}
		if errors.Is(err, io.EOF) {
			return found
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func made(t *testing.T) (*Scratch, *os.File) {
	t.Helper()
	testenv.Need(t, "root", "tool:mke2fs")
	s, err := OnDisk(t.TempDir(), 64<<20, 2000)
	if err != nil {
		t.Fatal(err, errors.Unwrap(err))
	}
	tree, err := s.Mount(-1)
	if err != nil {
		t.Fatal(err)
	}
	dir, err := openAt(tree, ".", unix.O_RDONLY|unix.O_DIRECTORY)
	if err := errors.Join(err, tree.Close()); err != nil {
		t.Fatal(err)
	}
	return s, dir
}

// TestNothingToRead writes marks and looks for them below the encryption while they are there and after the end; and above it, so that not finding them means something.
func TestNothingToRead(t *testing.T) {
	s, dir := made(t)
	writeMarks(t, dir)
	if err := errors.Join(unix.Syncfs(int(dir.Fd())), unix.Syncfs(int(s.disk.vault.Fd()))); err != nil {
		t.Fatal(err)
	}
	outside := filepath.Join(t.TempDir(), "copy")
	copied, err := os.Create(outside)
	if err != nil {
		t.Fatal(err)
	}
	defer copied.Close()
	if _, err := io.Copy(copied, io.NewSectionReader(s.disk.backing, 0, 64<<20)); err != nil {
		t.Fatal(err)
	}
	for name, f := range map[string]*os.File{"the file": s.disk.backing, "the outer device": s.disk.outer.device, "a copy": copied} {
		for mark, n := range count(t, f) {
			if n > 0 {
				t.Errorf("%s has %q %d times", name, mark, n)
			}
		}
	}
	for mark, n := range count(t, s.disk.inner.device) {
		if n == 0 {
			t.Errorf("control: %q is not found where nothing is encrypted", mark)
		}
	}
	_ = dir.Close()
	items, err := s.Erase(5 * time.Second)
	if got := strings.Join(receipt.Names(items), ", "); err != nil || got != "scratch file system, scratch key, scratch disk" {
		t.Errorf("gone: %s; %v", got, err)
	}
	checkRaw(t, copied.Name())
	checkUnreadable(t, copied)
}

// checkRaw reads the image's blocks without the kernel: they are no file system.
func checkRaw(t *testing.T, path string) {
	const image = "<12>" // the first file after those of the formatter and the directory
	out, err := exec.Command("debugfs", "-R", "cat "+image, path).Output()
	if errors.Is(err, exec.ErrNotFound) {
		return
	}
	if err != nil || len(out) < 32<<20 {
		t.Fatalf("the image has %d bytes: %v", len(out), err)
	}
	if out[1080] == 0x53 && out[1081] == 0xef { // s_magic of ext4, at 1024+56
		t.Error("the image can be read")
	}
}

// checkUnreadable mounts a copy of an encrypted disk that is gone: the kernel has no key to it any more.
func checkUnreadable(t *testing.T, copied *os.File) {
	l, tree, err := attach(copied)
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	defer tree.Close()
	vault, err := openAt(tree, "v", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		t.Fatal(err)
	}
	defer vault.Close()
	if f, err := openAt(vault, "new", unix.O_RDWR|unix.O_CREAT); !errors.Is(err, unix.ENOKEY) {
		t.Errorf("a file was made below the key: %v, %v", f, err)
	}
}

// TestStillInUse ends scratch that somebody holds: nothing is claimed, and the last hold takes all of it away.
func TestStillInUse(t *testing.T) {
	s, dir := made(t)
	hold, err := os.Create(at(dir, "held"))
	if err != nil {
		t.Fatal(err)
	}
	_ = dir.Close()
	items, err := s.Erase(20 * time.Millisecond)
	if names := receipt.Names(items); err == nil || len(names) > 0 || len(receipt.Problems(items)) != 3 {
		t.Errorf("held: gone %q, %q, %v", names, receipt.Problems(items), err)
	}
	_ = hold.Close()
	for _, l := range []*loop{s.disk.inner, s.disk.outer} {
		if err := awaitGone(l, time.Now().Add(5*time.Second)); err != nil {
			t.Error(err)
		}
	}
}

// TestBounds fills both kinds.
func TestBounds(t *testing.T) {
	testenv.Need(t, "root", "tool:mke2fs")
	for kind, scratch := range map[string]func() (*Scratch, error){
		Memory:    func() (*Scratch, error) { return InMemory(16<<20, 1024) },
		Encrypted: func() (*Scratch, error) { return OnDisk(t.TempDir(), 16<<20, 1024) },
	} {
		s, err := scratch()
		if err != nil {
			t.Fatal(kind, err)
		}
		tree, err := s.Mount(-1)
		if err != nil {
			t.Fatal(kind, err)
		}
		if _, err := s.Mount(-1); err == nil {
			t.Errorf("%s: it was handed out twice", kind)
		}
		written, err := fill(at(tree, "big"))
		if !errors.Is(err, unix.ENOSPC) || written > 16<<20 || written < 12<<20 {
			t.Errorf("%s: %d bytes fitted in, then %v", kind, written, err)
		}
		files := 0
		for err = error(nil); err == nil && files < 2000; files++ {
			err = unix.Mknod(at(tree, strconv.Itoa(files)), unix.S_IFREG|0o600, 0)
		}
		if !errors.Is(err, unix.ENOSPC) || files > 1024 || files < 900 {
			t.Errorf("%s: %d files fitted in, then %v", kind, files, err)
		}
		_ = tree.Close()
		if items, err := s.Erase(5 * time.Second); err != nil || len(items) == 0 {
			t.Errorf("%s: %v, %v", kind, items, err)
		}
	}
}

func fill(path string) (int, error) {
	f, err := os.Create(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	defer os.Remove(path)
	total := 0
	for buf := make([]byte, 1<<20); total < 64<<20; {
		n, err := f.Write(buf)
		total += n
		if err == nil {
			err = f.Sync()
		}
		if err != nil {
			return total, err
		}
	}
	return total, nil
}

// TestMemoryIsNotSwapped attaches scratch memory, and looks at how it is mounted.
func TestMemoryIsNotSwapped(t *testing.T) {
	testenv.Need(t, "root")
	s, err := InMemory(1<<20, 1024)
	if err != nil {
		t.Fatal(err)
	}
	tree, err := s.Mount(-1)
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Close()
	place := t.TempDir()
	if err := unix.MoveMount(int(tree.Fd()), "", unix.AT_FDCWD, place, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Unmount(place, unix.MNT_DETACH) }()
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(table)) {
		if strings.Contains(line, " "+place+" ") {
			for _, option := range []string{"noswap", "nosuid", "nodev", "size=1024k", "nr_inodes=1024"} {
				if !strings.Contains(line, option) {
					t.Errorf("no %s in %s", option, line)
				}
			}
			return
		}
	}
	t.Error("the mount is not found")
}

// TestRefusals asks for what cannot be made, and looks for what was left of the attempt.
func TestRefusals(t *testing.T) {
	testenv.Need(t, "root", "tool:mke2fs")
	for name, c := range map[string]struct {
		dir         string
		size, files int64
		kind        fault.Kind
	}{
		"too small":      {t.TempDir(), 1 << 20, 1024, fault.Invalid},
		"too many files": {t.TempDir(), 64 << 20, 1 << 20, fault.Invalid},
		"no directory":   {"/nonexistent-4711", 64 << 20, 1024, fault.Unsupported},
		"full disk":      {t.TempDir(), 1 << 50, 1024, fault.Unavailable},
		"no such files":  {"/proc", 64 << 20, 1024, fault.Unsupported},
	} {
		_, err := OnDisk(c.dir, c.size, c.files)
		if err == nil || fault.KindOf(err) != c.kind || fault.HintOf(err) == "" {
			t.Errorf("%s: %v, hint %q", name, err, fault.HintOf(err))
		}
		if entries, err := os.ReadDir(c.dir); err == nil && c.dir != "/proc" && len(entries) > 0 {
			t.Errorf("%s: left behind: %v", name, entries)
		}
	}
}

// TestHalfMade breaks off where the formatter fails, first at once and then for the inner file system: the devices and the key go.
func TestHalfMade(t *testing.T) {
	testenv.Need(t, "root", "tool:mke2fs")
	real, err := findFormatter()
	if err != nil {
		t.Fatal(err)
	}
	once := filepath.Join(t.TempDir(), "once") // formats what is to be encrypted, and nothing else
	script := "#!/bin/sh\ncase \"$*\" in *encrypt*) exec " + real + " \"$@\";; esac\necho no >&2; exit 1\n"
	if err := os.WriteFile(once, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	for program, items := range map[string]int{"/bin/false": 0, once: 2} {
		d := &disk{}
		tree, err := d.build(t.TempDir(), program, 64<<20, 2000)
		if tree != nil || fault.KindOf(explain(err)) != fault.Unsupported {
			t.Errorf("%s: %v", program, err)
		}
		got, err := d.erase(time.Now().Add(5 * time.Second))
		if err != nil || len(receipt.Names(got)) != items {
			t.Errorf("%s: gone %q, %v", program, receipt.Names(got), err)
		}
	}
}

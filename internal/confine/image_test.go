package confine

import (
	"encoding/json"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/fault"
)

// imageTask is what TestImage asks of its child, which is this test again.
const imageTask = "COFFERDAM_CONFINE_IMAGE"

// imageAnswer is what the child found.
type imageAnswer struct {
	Err           string
	Kind          fault.Kind
	Before, After map[string]string // attempt -> error, "" for success
}

// TestImageChild is no test by itself.
func TestImageChild(t *testing.T) {
	dir := os.Getenv(imageTask)
	if dir == "" {
		t.Skip("for TestImage")
	}
	if os.Getenv(imageTask+"_OLD") != "" {
		hideLandlock()
	}
	open, err := os.OpenFile(filepath.Join(dir, "staging", "open"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	attempts := imageAttempts(dir, open)
	a := imageAnswer{Before: results(attempts)}
	holdThreads(8)
	err = Image(ImageConfig{WritePaths: []string{filepath.Join(dir, "staging"), filepath.Join(dir, "records")}, PlacePath: filepath.Join(dir, "content")})
	if err != nil {
		a.Err, a.Kind = err.Error(), fault.KindOf(err)
	} else {
		a.After = results(attempts)
	}
	if err := json.NewEncoder(os.Stdout).Encode(a); err != nil {
		t.Fatal(err)
	}
	os.Exit(0)
}

// imageAttempts are made before and after. Those that change a file by its name would work for root outside of the store, where Landlock says nothing about them.
func imageAttempts(dir string, open *os.File) []attempt {
	staging, victim := filepath.Join(dir, "staging"), filepath.Join(dir, "victim")
	read := func(path string) func() error {
		return func() error { f, err := os.Open(path); return closing(f, err) }
	}
	fd, placed := int(open.Fd()), "new"
	return []attempt{
		{"make a link", func() error { return errors.Join(os.Symlink("/etc", staging+"/l"), os.Remove(staging+"/l")) }},
		{"make a directory", func() error { return errors.Join(os.Mkdir(staging+"/d", 0o700), os.Remove(staging+"/d")) }},
		{"make a hard link", func() error { return errors.Join(os.Link(open.Name(), staging+"/h"), os.Remove(staging+"/h")) }},
		{"write a record", func() error {
			return errors.Join(os.WriteFile(dir+"/records/r", nil, 0o600), os.Remove(dir+"/records/r"))
		}},
		{"move into place", func() error {
			placed += "x"
			return errors.Join(os.Mkdir(staging+"/new", 0o700), os.Rename(staging+"/new", dir+"/content/"+placed))
		}},
		{"give an open file away", func() error { return open.Chown(os.Getuid(), os.Getgid()) }},
		{"give an open file another owner", func() error { return errors.Join(open.Chown(1234, 1234), open.Chown(0, 0)) }},
		{"set the mode of an open file", func() error { return open.Chmod(0o640) }},
		{"set the time of an open file", func() error { return futimens(fd, 0) }},
		{"write to the disk", func() error { return unix.Syncfs(fd) }},
		{"resolve", read("/etc/hosts")},
		{"dial", func() error {
			c, err := net.Dial("udp", "127.0.0.1:9")
			return closing(c, err)
		}},
		{"set the time by name", func() error {
			name, err := unix.BytePtrFromString(victim)
			if err != nil {
				return err
			}
			return futimens(unix.AT_FDCWD, uintptr(unsafe.Pointer(name)))
		}},
		{"give away by name", func() error { return os.Chown(victim, os.Getuid(), os.Getgid()) }},
		{"set the mode by name", func() error { return os.Chmod(victim, 0o600) }},
		{"set an attribute by name", func() error { return unix.Setxattr(victim, "user.x", []byte("x"), 0) }},
		{"give away by a path descriptor", func() error {
			path, err := unix.Open(victim, unix.O_PATH, 0)
			if err != nil {
				return err
			}
			defer unix.Close(path)
			return unix.Fchownat(path, "", os.Getuid(), os.Getgid(), unix.AT_EMPTY_PATH)
		}},
		{"read shadow", read("/etc/shadow")},
		{"read a service", read("/etc/services")},
		{"read an image", read(filepath.Join(dir, "content", "file"))},
		{"change an image", func() error {
			f, err := os.OpenFile(filepath.Join(dir, "content", "file"), os.O_WRONLY, 0)
			return closing(f, err)
		}},
		{"put a file into place", func() error { return os.WriteFile(dir+"/content/other", nil, 0o600) }},
		{"write elsewhere", func() error { return os.WriteFile(dir+"/elsewhere", nil, 0o600) }},
		{"start a program", func() error {
			_, err := syscall.ForkExec("/bin/true", []string{"true"}, nil)
			return err
		}},
		{"listen", func() error { l, err := net.Listen("tcp", "127.0.0.1:0"); return closing(l, err) }},
		{"make a device", func() error {
			_ = os.Remove(staging + "/dev")
			return unix.Mknod(staging+"/dev", unix.S_IFIFO|0o600, 0)
		}},
		{"mount", func() error { return unix.Unshare(0) }},
		{"signal the parent", func() error { return unix.Kill(os.Getppid(), 0) }},
	}
}

func futimens(fd int, name uintptr) error {
	if _, _, errno := unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(fd), name, 0, 0, 0, 0); errno != 0 {
		return errno
	}
	return nil
}

// confineImage runs the child as a user, 0 for ourselves.
func confineImage(t *testing.T, uid int, old bool) imageAnswer {
	t.Helper()
	dir, err := os.MkdirTemp("", "confine-image-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) }) // only the test's own
	for _, name := range []string{"staging", "records", "content"} {
		err = errors.Join(err, os.Mkdir(filepath.Join(dir, name), 0o700))
	}
	err = errors.Join(err, os.WriteFile(filepath.Join(dir, "victim"), nil, 0o600), os.WriteFile(filepath.Join(dir, "content", "file"), nil, 0o600))
	program := copySelf(t, dir)
	cmd := exec.CommandContext(t.Context(), program, "-test.run=^TestImageChild$")
	cmd.Env = append(os.Environ(), imageTask+"="+dir)
	if old {
		cmd.Env = append(cmd.Env, imageTask+"_OLD=1")
	}
	if uid != 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid), Groups: []uint32{}}}
		for _, name := range []string{"", "staging", "records", "content", "victim", "content/file"} {
			err = errors.Join(err, os.Chown(filepath.Join(dir, name), uid, uid))
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.CombinedOutput()
	var a imageAnswer
	line, _, _ := strings.Cut(string(out), "\n")
	if err != nil || json.Unmarshal([]byte(line), &a) != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return a
}

// TestImage leaves what unpacking takes, and nothing by which root could reach beyond the store.
func TestImage(t *testing.T) {
	for name, uid := range map[string]int{"as root": 0, "as a user": 65534} {
		t.Run(name, func(t *testing.T) {
			needRoot(t)
			a := confineImage(t, uid, false)
			if a.Err != "" {
				t.Fatal(a.Err)
			}
			for attempt, want := range map[string]string{
				"make a link": "", "make a directory": "", "make a hard link": "", "write a record": "", "move into place": "", "give an open file away": "", "set the mode of an open file": "",
				"give an open file another owner": "", "set the time of an open file": "", "write to the disk": "", "resolve": "", "dial": "",
				"set the time by name": "ENOSYS", "give away by name": "EPERM", "set the mode by name": "EPERM", "set an attribute by name": "EPERM", "give away by a path descriptor": "EPERM",
				"read shadow": "EACCES", "read a service": "EACCES", "read an image": "EACCES", "change an image": "EACCES", "put a file into place": "EACCES", "write elsewhere": "EACCES",
				"start a program": "EPERM", "listen": "EPERM", "make a device": "EPERM", "mount": "EPERM", "signal the parent": "EPERM",
			} {
				if uid != 0 && attempt == "give an open file another owner" {
					want = "EPERM"
				}
				if got, made := a.After[attempt]; got != want || !made {
					t.Errorf("%s: %q, want %q (before: %q)", attempt, got, want, a.Before[attempt])
				}
				if uid == 0 && a.Before[attempt] != "" {
					t.Errorf("%s did not work before: %q", attempt, a.Before[attempt])
				}
			}
		})
	}
}

// TestImageWithoutLandlock refuses a kernel that cannot limit files.
func TestImageWithoutLandlock(t *testing.T) {
	if a := confineImage(t, 0, true); a.Kind != fault.Unsupported || !strings.Contains(a.Err, "Landlock") {
		t.Errorf("%v: %q", a.Kind, a.Err)
	}
}

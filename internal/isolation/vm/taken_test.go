package vm

import (
	"archive/tar"
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/guest/boot"
	"github.com/cofferdam/cofferdam/internal/isolation/container"
	"github.com/cofferdam/cofferdam/internal/scratch"
	"github.com/cofferdam/cofferdam/internal/supervisor/call"
	"github.com/cofferdam/cofferdam/internal/testenv"
)

// takenName is argv[0] of QEMU. In its place is this binary: what it does is what a machine's program could do that was taken over from inside. Which scene it plays is
// what it sees as its kernel.
const takenName = "qemu"

// taken plays the machine's program and its guest.
func taken() {
	scene, err := os.ReadFile(placeKernel)
	if err == nil {
		err = play(string(scene))
	}
	fmt.Println("scene:", err)
}

// handed is a descriptor that the program's command line names.
func handed(pattern string) int {
	m := regexp.MustCompile(pattern).FindStringSubmatch(strings.Join(os.Args, " "))
	if m == nil {
		return -1
	}
	n, _ := strconv.Atoi(m[1]) // the patterns have digits only
	return n
}

func play(scene string) error {
	control := os.NewFile(uintptr(handed(`id=control,fd=(\d+)`)), "control")
	go agree(control, scene)
	g := boot.NewGuest(os.NewFile(uintptr(handed(`id=port,fd=(\d+)`)), "port"))
	if err := g.Ready("taken"); err != nil {
		return err
	}
	if _, err := g.Receive(); err != nil {
		return err
	}
	if err := g.Started(); err != nil {
		return err
	}
	if strings.HasPrefix(scene, "rest") {
		if err := restScenes()[scene](g); err != nil {
			return err
		}
	}
	if err := g.Ended(boot.Ended{}); err != nil {
		return err
	}
	out := g.Changes()
	changes := tar.NewWriter(out)
	if play := scenes()[scene]; play != nil {
		if err := play(changes, out); err != nil {
			return err
		}
	}
	if err := errors.Join(changes.Close(), out.Close()); err != nil {
		return err
	}
	time.Sleep(time.Minute) // the supervisor ends what has said all
	return nil
}

// agree says yes to whatever QEMU is asked, and in one scene much more.
func agree(control *os.File, scene string) {
	fmt.Fprintln(control, `{"QMP": {}}`)
	for lines := bufio.NewScanner(control); lines.Scan(); {
		if scene == "chatter" {
			fmt.Fprint(control, strings.Repeat(`{"event": "`+strings.Repeat("x", 1000)+"\"}\n", 50))
		}
		fmt.Fprintln(control, `{"return": {"status": "completed"}}`)
	}
}

// scenes are what the guest sends as changes, by name.
func scenes() map[string]func(*tar.Writer, io.Writer) error {
	send := func(w *tar.Writer, h tar.Header, content string) error {
		h.Format, h.Size = tar.FormatPAX, int64(len(content))
		err := w.WriteHeader(&h)
		if err == nil {
			_, err = io.WriteString(w, content)
		}
		return err
	}
	return map[string]func(*tar.Writer, io.Writer) error{
		"jail": func(w *tar.Writer, _ io.Writer) error {
			return send(w, tar.Header{Name: "report", Typeflag: tar.TypeReg, Mode: 0o644}, strings.Join(tryOut(), "\n"))
		},
		"scratch": func(w *tar.Writer, _ io.Writer) error {
			return send(w, tar.Header{Name: "report", Typeflag: tar.TypeReg, Mode: 0o644}, strings.Join(tryScratch(), "\n"))
		},
		"large": func(w *tar.Writer, _ io.Writer) error {
			return send(w, tar.Header{Name: "large", Typeflag: tar.TypeReg, Mode: 0o644}, strings.Repeat("x", int(takenLimits().Memory)))
		},
		"chatter": func(w *tar.Writer, _ io.Writer) error {
			return send(w, tar.Header{Name: "f", Typeflag: tar.TypeReg, Mode: 0o644}, "content")
		},
		"pipe": func(w *tar.Writer, _ io.Writer) error { // what waits for a reader of the first waits for ever
			return errors.Join(send(w, tar.Header{Name: "p", Typeflag: tar.TypeFifo}, ""), send(w, tar.Header{Name: "p/x", Typeflag: tar.TypeFifo}, ""))
		},
		"flood": func(*tar.Writer, io.Writer) error { // what its words and its console take of the host is not the sandbox's own time
			control := os.NewFile(uintptr(handed(`id=control,fd=(\d+)`)), "control")
			go func() {
				for {
					if _, err := fmt.Fprint(control, strings.Repeat("{\"event\": \"x\"}\n", 1000)); err != nil {
						return
					}
				}
			}()
			for {
				if _, err := fmt.Print(strings.Repeat("x\n", 2000)); err != nil {
					return err
				}
			}
		},
		"drip": func(_ *tar.Writer, out io.Writer) error {
			for {
				if _, err := out.Write([]byte("x")); err != nil {
					return err
				}
				time.Sleep(10 * time.Millisecond)
			}
		},
	}
}

// takenMachine starts a sandbox whose machine plays a scene. With kept its root is a disk that other sandboxes of the image have too.
func takenMachine(t *testing.T, scene string) (s *Sandbox, kept string) {
	t.Helper()
	return takenWith(t, scene, nil)
}

// takenLimits are those of a machine with encrypted scratch, which is larger than its memory.
func takenLimits() call.Limits { return call.Limits{Disk: 192 << 20, Memory: 128 << 20} }

// takenWith is takenMachine with encrypted scratch, if there is some.
func takenWith(t *testing.T, scene string, disk *scratch.Scratch) (s *Sandbox, kept string) {
	t.Helper()
	testenv.Need(t, "userns")
	folder := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	about := fmt.Sprintf(`{"kernel": "taken", "machine": "q35", "qemu": %q, "firmware": [], "sha256": {%q: "-", %q: "-"}}`, self, boot.KernelName, boot.InitramName)
	for name, content := range map[string]string{boot.AboutName: about, boot.KernelName: scene, boot.InitramName: ""} {
		if err := os.WriteFile(filepath.Join(folder, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	spec, _ := specification(t)
	spec.RootDisk = filepath.Join(folder, "disk")
	spec.Workspace = &call.Workspace{Source: t.TempDir(), Target: "/work", Mode: string(boot.Overlay)}
	if strings.HasPrefix(scene, "rest") {
		spec.Snapshot = snapshotPlace(t)
	}
	o := optionsFor(spec)
	if os.Geteuid() != 0 {
		o = container.Options{IDs: container.SingleNobody()}
	}
	if disk != nil {
		spec.Scratch, spec.Limits, o.Scratch = scratch.Encrypted, takenLimits(), disk
	}
	if s, err = Start(t.Context(), folder, spec, o); err != nil {
		t.Fatal(err)
	}
	s.Listeners.Close()
	t.Cleanup(func() {
		s.Hurry()
		<-s.Done()
		if _, err := s.Remains(); err != nil {
			t.Error(err)
		}
		_ = s.Upper.Close() // looked at
	})
	return s, spec.RootDisk
}

// over waits for the end of a sandbox.
func over(t *testing.T, s *Sandbox) {
	t.Helper()
	select {
	case <-s.Done():
	case <-time.After(20 * time.Second):
		t.Fatal("the sandbox does not end")
	}
}

// TestTakenPort has a guest that is the attacker's whole: what it sends at its end neither holds up the host nor arrives as what it is not.
func TestTakenPort(t *testing.T) {
	testenv.Need(t, "root")
	t.Run("chatter", func(t *testing.T) {
		s, _ := takenMachine(t, "chatter")
		over(t, s)
		if data, err := os.ReadFile(fmt.Sprintf("/proc/self/fd/%d/f", s.Upper.Fd())); err != nil || string(data) != "content" || s.Lost() != nil {
			t.Errorf("control: %q, %v, %v", data, err, s.Lost())
		}
	})
	t.Run("pipe", func(t *testing.T) {
		s, _ := takenMachine(t, "pipe")
		over(t, s)
		if err := s.Lost(); err == nil || !strings.Contains(err.Error(), "p/x") {
			t.Errorf("a file below a pipe: %v", err)
		}
	})
	t.Run("drip", func(t *testing.T) {
		s, _ := takenMachine(t, "drip")
		s.Kill()
		select {
		case <-s.Done():
			t.Error("control: changes that are on their way are not waited for")
		case <-time.After(300 * time.Millisecond):
		}
		s.Hurry()
		over(t, s)
		if s.Lost() == nil {
			t.Error("changes that did not come to an end are taken for complete")
		}
	})
}

// TestTakenFlood has the program talk without end, which costs it more than the host.
func TestTakenFlood(t *testing.T) {
	testenv.Need(t, "root")
	s, _ := takenMachine(t, "flood")
	var before, after unix.Rusage
	began := time.Now()
	err := unix.Getrusage(unix.RUSAGE_SELF, &before)
	time.Sleep(2 * time.Second)
	if err := errors.Join(err, unix.Getrusage(unix.RUSAGE_SELF, &after)); err != nil {
		t.Fatal(err)
	}
	used := time.Duration(after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano())
	if share := used.Seconds() / time.Since(began).Seconds(); share > 0.25 {
		t.Errorf("the host worked %v in %v", used, time.Since(began))
	}
	s.Hurry()
	over(t, s)
}

// TestTakenJail has the program do in its jail what it should not be able to: as a sandbox of root, and of an ordinary user, whose files on the host are that user's.
func TestTakenJail(t *testing.T) {
	if info, err := os.Stat("/dev/net/tun"); os.Geteuid() == 0 && err == nil && info.Mode()&0o006 == 0o006 {
		t.Run("user", func(t *testing.T) { asUser(t, "^TestTakenJail$") })
	}
	s, kept := takenMachine(t, "jail")
	before, err := os.Stat(kept)
	if err != nil {
		t.Fatal(err)
	}
	over(t, s)
	text, err := os.ReadFile(fmt.Sprintf("/proc/self/fd/%d/report", s.Upper.Fd()))
	if err != nil {
		t.Fatal(err, s.Lost())
	}
	got := judge(t, string(text))
	if len(got) < 60 || got["may read the disk"] == "" {
		t.Errorf("too few attempts were made: %s", text)
	}
	if after, err := os.Stat(kept); err != nil || after.Mode() != before.Mode() || !after.ModTime().Equal(before.ModTime()) || after.Size() != before.Size() {
		t.Errorf("the kept disk: %+v, it was %+v; %v", after, before, err)
	}
	if f, err := os.Open(kept); err != nil {
		t.Error(err)
	} else {
		defer f.Close()
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			t.Errorf("the kept disk is locked: %v", err)
		}
	}
}

// judge holds what a program says that it tried against what it may.
func judge(t *testing.T, text string) map[string]string {
	t.Helper()
	got := map[string]string{}
	for line := range strings.Lines(text) {
		what, came, _ := strings.Cut(strings.TrimSpace(line), ": ")
		got[what] = came
		if came == "done" && !strings.HasPrefix(what, "may ") {
			t.Errorf("from the machine's program: %s", what)
		}
	}
	for what, came := range got {
		if strings.HasPrefix(what, "may ") && came != "done" {
			t.Errorf("control: %s: %s", what, came)
		}
	}
	return got
}

// TestTakenScratch has the program do with the one file that it may write to what it should not be able to: it cannot make it larger, keep it, or write to another.
func TestTakenScratch(t *testing.T) {
	if info, err := os.Stat("/dev/net/tun"); os.Geteuid() == 0 && err == nil && info.Mode()&0o006 == 0o006 {
		t.Run("user", func(t *testing.T) { asUser(t, "^TestTakenScratch$") })
	}
	size := boot.SwapSize(takenLimits().Disk)
	dir := t.TempDir()
	disk, err := scratch.ForMachine(dir, size)
	if err != nil {
		t.Fatal(err)
	}
	s, _ := takenWith(t, "scratch", disk)
	over(t, s)
	text, err := os.ReadFile(fmt.Sprintf("/proc/self/fd/%d/report", s.Upper.Fd()))
	if err != nil {
		t.Fatal(err, s.Lost())
	}
	if got := judge(t, string(text)); len(got) < 12 {
		t.Errorf("too few attempts were made: %s", text)
	}
	f, err := disk.Disk()
	if err != nil {
		t.Fatal(err)
	}
	info, err := f.Stat()
	mark := make([]byte, len(takenMark))
	_, read := f.ReadAt(mark, size-int64(len(takenMark)))
	if err := errors.Join(err, read, f.Close()); err != nil || info.Size() != size || info.Mode().Perm() != 0o600 || string(mark) != takenMark {
		t.Errorf("size %d, mode %o, at its end %q; %v", info.Size(), info.Mode(), mark, err)
	}
	if items, err := disk.Erase(5 * time.Second); err != nil || len(items) == 0 {
		t.Errorf("%+v, %v", items, err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// TestTakenLarge sends more changes than this machine gives memory for, though scratch could hold them: they are lost, which is said.
func TestTakenLarge(t *testing.T) {
	testenv.Need(t, "root")
	disk, err := scratch.ForMachine(t.TempDir(), boot.SwapSize(takenLimits().Disk))
	if err != nil {
		t.Fatal(err)
	}
	s, _ := takenWith(t, "large", disk)
	over(t, s)
	if err := s.Lost(); err == nil || !strings.Contains(err.Error(), "112 MiB in all") {
		t.Errorf("changes larger than memory: %v", err)
	}
	var held unix.Statfs_t
	if err := unix.Fstatfs(int(s.Upper.Fd()), &held); err != nil || int64(held.Blocks)*held.Bsize != 112<<20 {
		t.Errorf("what holds them has %d bytes, %v", int64(held.Blocks)*held.Bsize, err)
	}
	if _, err := disk.Erase(5 * time.Second); err != nil {
		t.Error(err)
	}
}

// asUser runs tests of this package again, as an ordinary user.
func asUser(t *testing.T, tests string) {
	t.Helper()
	const user = 65533
	dir, err := os.MkdirTemp("", "vm-user-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) }) // only the test's own
	self, err := os.ReadFile("/proc/self/exe")
	program := filepath.Join(dir, "self.test")
	if err := errors.Join(err, os.WriteFile(program, self, 0o755), os.Chown(dir, user, user), os.Chmod(program, 0o755)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), program, "-test.run="+tests, "-test.v")
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "TMPDIR="+dir, "HOME="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: user, Gid: user}}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS") {
		t.Errorf("%v\n%s", err, out)
	}
}

package confine

import (
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/cofferdam/cofferdam/internal/fault"
)

// serve starts the parent's servers: TCP that echoes, and DNS that knows one address.
func serve(t *testing.T) (tcp, dns string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	packets, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var group sync.WaitGroup
	t.Cleanup(func() { _, _ = listener.Close(), packets.Close(); group.Wait() })
	group.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			group.Go(func() { _, _ = io.Copy(conn, conn); _ = conn.Close() })
		}
	})
	group.Go(func() { answerNames(packets) })
	return listener.Addr().String(), packets.LocalAddr().String()
}

func answerNames(packets net.PacketConn) {
	buffer := make([]byte, 1500)
	for {
		n, from, err := packets.ReadFrom(buffer)
		if err != nil {
			return
		}
		var message dnsmessage.Message
		if message.Unpack(buffer[:n]) != nil || len(message.Questions) != 1 {
			continue
		}
		question := message.Questions[0]
		message.Response, message.Additionals = true, nil
		if question.Type == dnsmessage.TypeA {
			message.Answers = []dnsmessage.Resource{{
				Header: dnsmessage.ResourceHeader{Name: question.Name, Class: question.Class, TTL: 60},
				Body:   &dnsmessage.AResource{A: [4]byte{192, 0, 2, 7}},
			}}
		}
		if packed, err := message.Pack(); err == nil {
			_, _ = packets.WriteTo(packed, from) // a lost answer shows as a failed lookup
		}
	}
}

// perform runs a task in a child, with that user or, for 0, with ours.
func perform(t *testing.T, uid uint32, order func(dir string) task) answer {
	t.Helper()
	dir := t.TempDir()
	for p := dir; p != "/" && p != os.TempDir(); p = filepath.Dir(p) {
		if err := os.Chmod(p, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"readable", "writable"} {
		if err := errors.Join(os.Mkdir(filepath.Join(dir, name), 0o777), os.Chmod(filepath.Join(dir, name), 0o777)); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(dir, "readable", "file")
	if err := errors.Join(os.WriteFile(file, []byte("x"), 0o666), os.Chmod(file, 0o666)); err != nil {
		t.Fatal(err)
	}
	work := order(dir)
	work.Dir = dir
	work.TCP, work.DNS = serve(t)
	encoded, err := json.Marshal(work)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), copySelf(t, dir))
	cmd.Env = append(os.Environ(), taskEnv+"="+string(encoded), "GORACE=atexit_sleep_ms=0") // it would wait a second at each end
	cmd.WaitDelay = time.Second
	var stderr strings.Builder
	cmd.Stderr = &stderr
	if uid != 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid, Groups: []uint32{uid}}}
	}
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s%s", err, out, stderr.String())
	}
	var a answer
	if err := json.Unmarshal(out, &a); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return a
}

// copySelf puts the test binary where another user can run it.
func copySelf(t *testing.T, dir string) string {
	t.Helper()
	binary, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "self.test")
	if err := errors.Join(os.WriteFile(path, binary, 0o755), os.Chmod(path, 0o755)); err != nil {
		t.Fatal(err)
	}
	return path
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

// expected says what each attempt answers after confinement; before, all work unless the user is an ordinary one.
func expected() map[string]string {
	return map[string]string{
		"start a program": "EACCES", "start a process": "EPERM", "execute in place": "EPERM", "read shadow": "EACCES", "read a program": "EACCES", "read own memory": "EACCES", "read a service": "",
		"read allowed": "", "write readable": "EACCES", "write allowed": "", "write elsewhere": "EACCES", "link out": "EACCES", "truncate elsewhere": "EPERM",
		"use an open file": "", "dial TCP": "", "resolve a name": "", "accept on an open listener": "", "open a listener": "EPERM",
		"open a local socket": "EAFNOSUPPORT", "open a raw socket": "EPROTONOSUPPORT", "list addresses": "", "signal the parent": "EPERM", "signal its group": "EPERM",
		"signal itself": "", "become root": "EPERM", "change its limits": "", "unshare": "EPERM", "run on": "", "wait for a child": "",
	}
}

func paths(dir string) Config {
	return Config{ReadPaths: []string{filepath.Join(dir, "readable")}, WritePaths: []string{filepath.Join(dir, "writable")}}
}

func verifyAnswer(t *testing.T, a answer) {
	t.Helper()
	if a.Err != "" {
		t.Fatal(a.Err)
	}
	want := expected()
	if a.Report.Landlock == 0 {
		t.Skip("no Landlock here: files are not limited")
	}
	for name, got := range a.After {
		if got != want[name] {
			t.Errorf("%s: %q after confinement, want %q (before: %q)", name, got, want[name], a.Before[name])
		}
	}
	if len(a.After) != len(want) {
		t.Errorf("%d attempts, %d expectations", len(a.After), len(want))
	}
	if a.Report.Threads < 13 {
		t.Errorf("%d threads verified, want those held as well", a.Report.Threads)
	}
	t.Logf("took %v for %d threads: %+v; %s", a.Took, a.Report.Threads, a.Report, strings.Join(a.Report.Enforced(), "; "))
}

func TestSelfAsRoot(t *testing.T) {
	needRoot(t)
	a := perform(t, 0, func(dir string) task {
		work := task{Config: paths(dir), Threads: 12}
		work.Config.UID, work.Config.GID = 65534, 65534
		return work
	})
	verifyAnswer(t, a)
	if r := a.Report; r.UID != 65534 || r.GID != 65534 || len(r.Groups) != 0 {
		t.Errorf("report %+v", r)
	}
	for name, got := range a.Before { // root may do all of it, so each refusal is ours
		if got != "" {
			t.Errorf("%s: %q before confinement", name, got)
		}
	}
}

func TestSelfAsUser(t *testing.T) {
	uid := uint32(65534)
	if os.Geteuid() != 0 {
		uid = 0 // as who we are
	}
	a := perform(t, uid, func(dir string) task { return task{Config: paths(dir), Threads: 12} })
	verifyAnswer(t, a)
	for _, name := range []string{"start a program", "read a program", "write readable", "write elsewhere", "open a listener", "open a local socket", "signal its group"} {
		if got := a.Before[name]; got != "" {
			t.Errorf("%s: %q before confinement", name, got)
		}
	}
}

func TestSelfRefuses(t *testing.T) {
	for _, c := range []struct {
		name   string
		config Config
		root   bool
		want   fault.Kind
		text   string
	}{
		{"root without a user to become", Config{}, true, fault.Invalid, "ordinary user"},
		{"root to become root", Config{UID: 0, GID: 65534}, true, fault.Invalid, "ordinary user"},
		{"root to keep group root", Config{UID: 65534, GID: 0}, true, fault.Invalid, "ordinary user"},
		{"relative path", Config{UID: 65534, GID: 65534, ReadPaths: []string{"etc"}}, false, fault.Invalid, "absolute"},
		{"path with detour", Config{UID: 65534, GID: 65534, WritePaths: []string{"/tmp/../etc"}}, false, fault.Invalid, "detours"},
		{"path that is not there", Config{UID: 65534, GID: 65534, WritePaths: []string{"/does/not/exist"}}, false, fault.Invalid, "path to write"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.root {
				needRoot(t)
			}
			a := perform(t, 0, func(string) task { return task{Config: c.config} })
			if a.Kind != c.want || !strings.Contains(a.Err, c.text) {
				t.Errorf("%s: %q, want %s: %q", a.Kind, a.Err, c.want, c.text)
			}
		})
	}
}

// TestSelfWithoutLandlock is a kernel that cannot limit files: it is refused, unless accepted by name and then reported.
func TestSelfWithoutLandlock(t *testing.T) {
	a := perform(t, 0, func(string) task { return task{Config: Config{UID: 65534, GID: 65534}, Old: true} })
	if a.Kind != fault.Unsupported || !strings.Contains(a.Err, "Landlock") {
		t.Errorf("%s: %q, want %s", a.Kind, a.Err, fault.Unsupported)
	}
	a = perform(t, 0, func(string) task { return task{Config: Config{UID: 65534, GID: 65534, BestEffort: true}, Old: true} })
	if a.Err != "" || a.Report.Landlock != 0 || len(a.Report.Missing) != 1 || !strings.Contains(a.Report.Missing[0], "Landlock") {
		t.Errorf("%q, report %+v", a.Err, a.Report)
	}
	for name, want := range map[string]string{"read a program": "", "start a program": "EPERM", "become root": "EPERM", "signal the parent": "EPERM", "dial TCP": "", "run on": ""} {
		if got := a.After[name]; got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}

// TestSelfCost measures Self where a program should call it: soon after its start, with the few threads of a Go program. Every start
// pays it, so it fails if it grows out of all proportion; the limit leaves room for a loaded machine.
func TestSelfCost(t *testing.T) {
	cost := func(uid uint32, c Config) time.Duration {
		best := time.Hour
		for range 5 {
			a := perform(t, uid, func(string) task { return task{Config: c, Measure: true} })
			if a.Err != "" {
				t.Fatal(a.Err)
			}
			best = min(best, a.Took)
		}
		return best
	}
	took := map[string]time.Duration{}
	if os.Geteuid() == 0 {
		took["root"] = cost(0, Config{UID: 65534, GID: 65534, BestEffort: true})
		took["user"] = cost(65534, Config{BestEffort: true})
	} else {
		took["user"] = cost(0, Config{BestEffort: true})
	}
	t.Logf("Self takes %v", took)
	for who, d := range took {
		if d > 50*time.Millisecond {
			t.Errorf("as %s: %v", who, d)
		}
	}
}

package runner_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/internal/frame"
	"golang.org/x/sys/unix"
)

const token = "0123456789abcdef"

// binary is the real program, static as it is shipped.
var binary = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "runner")
	if err != nil {
		return "", err
	}
	name := filepath.Join(dir, "cofferdam-runner")
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", name, "../../cmd/cofferdam-runner")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return name, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if name, err := binary(); err == nil {
		_ = os.RemoveAll(filepath.Dir(name))
	}
	os.Exit(code)
}

// sandbox is a runner as process 1 of new process, mount and user namespaces, and the owner's side of its link.
type sandbox struct {
	t       *testing.T
	link    *frame.Link
	cmd     *exec.Cmd
	log     bytes.Buffer // the runner's own stderr
	facts   chan frame.Hello
	started chan int
	exits   chan frame.Exit
	owners  chan frame.Owner
	errs    chan string
	over    chan error
	wait    func() error

	listener *net.TCPListener
	mu       sync.Mutex
	expected map[string]chan *sandbox // further connections, by token
}

// unshare returns a command that runs the program as process 1 of its own namespaces, with the host's network, and like in a sandbox without
// the capability to look into processes that forbid it.
func unshare(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	if out, err := exec.Command("unshare", "--user", "--map-root-user", "--pid", "--mount-proc", "--fork", "true").CombinedOutput(); err != nil {
		t.Skipf("no user namespaces here: %v: %s", err, out)
	}
	return exec.Command("unshare", append([]string{"--user", "--map-root-user", "--pid", "--mount-proc", "--fork", "--kill-child",
		"setpriv", "--bounding-set=-sys_ptrace", "--inh-caps=-all"}, args...)...)
}

// boot starts a runner and waits for its connection.
func boot(t *testing.T, s frame.Start) *sandbox {
	t.Helper()
	name, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	return bootBy(t, unshare(t, name), s)
}

// bootBy is boot by a command of unshare's.
func bootBy(t *testing.T, cmd *exec.Cmd, s frame.Start) *sandbox {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	b := newSandbox(t)
	b.cmd, b.listener = cmd, l.(*net.TCPListener)
	line, _ := json.Marshal(frame.Boot{Control: l.Addr().String(), Token: token})
	b.cmd.Stdin = bytes.NewReader(append(line, "\nthe next line is not the runner's\n"...))
	b.cmd.Stderr = &b.log
	b.cmd.Env = []string{"PATH=/usr/bin:/bin", "RUNNER_ONLY=1"}
	if err := b.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	b.wait = sync.OnceValue(b.cmd.Wait)
	if err := b.listener.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	conn, err := l.Accept()
	if err != nil {
		t.Fatalf("%v; runner says: %s", err, &b.log)
	}
	b.attach(conn, s)
	return b
}

func newSandbox(t *testing.T) *sandbox {
	return &sandbox{
		t: t, facts: make(chan frame.Hello, 1), started: make(chan int, 1), exits: make(chan frame.Exit, 1),
		owners: make(chan frame.Owner, 200), errs: make(chan string, 1), over: make(chan error, 1),
	}
}

// connect makes the owner's side of a link.
func (b *sandbox) connect(conn net.Conn) {
	b.link = frame.NewOwner(conn, frame.Handlers{
		Hello:   func(h frame.Hello) error { b.facts <- h; return nil },
		Started: func(pid int) error { b.started <- pid; return nil },
		Exit:    func(e frame.Exit) error { b.exits <- e; return nil },
		Owner:   func(o frame.Owner) error { b.owners <- o; return nil },
		Error:   func(text string) error { b.errs <- text; return nil },
	})
	go func() { b.over <- b.link.Run(context.Background()) }()
}

func (b *sandbox) attach(conn net.Conn, s frame.Start) {
	b.connect(conn)
	b.t.Cleanup(func() {
		b.link.End()
		_ = b.cmd.Process.Kill()
		_ = b.wait()
	})
	if h := <-b.facts; string(h.Token) != token || h.Facts.PID != 1 || h.Facts.Kernel == "" {
		b.t.Errorf("the runner introduced itself as %+v", h)
	}
	if err := b.link.SendStart(s); err != nil {
		b.t.Fatal(err)
	}
}

func start(args ...string) frame.Start {
	return frame.Start{Args: args, Dir: "/", Env: []string{"PATH=" + os.Getenv("PATH"), "TERM=xterm"}}
}

func sh(script string) frame.Start { return start("/bin/sh", "-c", script) }

// collect reads one output to its end.
func (b *sandbox) collect(id frame.Stream) <-chan string {
	c := make(chan string, 1)
	go func() {
		all, _ := io.ReadAll(b.link.Receiver(id)) // an early end shows in what was read
		c <- string(all)
	}()
	return c
}

// within returns what comes on c, soon.
func within[T any](t *testing.T, what string, c <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(10 * time.Second):
		t.Fatalf("%s did not come", what)
	}
	return v
}

// await reads until the text appears in an output.
func (b *sandbox) await(id frame.Stream, text string) string {
	b.t.Helper()
	got := make(chan string, 1)
	go func() {
		var all []byte
		buf := make([]byte, 4096)
		for !bytes.Contains(all, []byte(text)) {
			n, err := b.link.Receiver(id).Read(buf)
			if all = append(all, buf[:n]...); err != nil {
				break
			}
		}
		got <- string(all)
	}()
	all := within(b.t, "output "+text, got)
	if !strings.Contains(all, text) {
		b.t.Fatalf("output ended without %q: %q", text, all)
	}
	return all
}

// gone checks that the runner ends by itself, with the status.
func (b *sandbox) gone(ok bool) {
	b.t.Helper()
	ended := make(chan error, 1)
	go func() { ended <- b.wait() }()
	err := within(b.t, "the runner's end", ended)
	if ee := (*exec.ExitError)(nil); errors.As(err, &ee) && ok || err == nil && !ok {
		b.t.Errorf("the runner ended with %v, log %q", err, &b.log)
	}
}

func TestCommandEnds(t *testing.T) {
	notExec := filepath.Join(t.TempDir(), "data")
	if err := os.WriteFile(notExec, []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	script := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(script, []byte("echo plain $1"), 0o755); err != nil {
		t.Fatal(err)
	}
	lost := filepath.Join(t.TempDir(), "lost")
	if err := os.WriteFile(lost, []byte("#!/no/such/interpreter\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	elsewhere := start("true")
	elsewhere.Dir = "/no/such/dir"
	named := start("script", "x")
	named.Env = []string{"PATH=/nowhere:" + filepath.Dir(notExec) + ":" + filepath.Dir(script)}
	relative := start("./script", "y")
	relative.Dir = filepath.Dir(script)
	blank := start("true")
	blank.Env = nil
	tests := []struct {
		name  string
		start frame.Start
		want  frame.Exit
		out   string
		says  string
	}{
		{"zero", start("true"), frame.Exit{}, "", ""},
		{"default path", blank, frame.Exit{}, "", ""},
		{"status", sh("exit 42"), frame.Exit{Code: 42}, "", ""},
		{"output", sh("printf out; printf err >&2"), frame.Exit{}, "out", ""},
		{"killed", sh("kill -9 $$"), frame.Exit{Signal: 9}, "", ""},
		{"in PATH, without #!", named, frame.Exit{}, "plain x\n", ""},
		{"relative to the directory", relative, frame.Exit{}, "plain y\n", ""},
		{"no such program", start("no-such-program"), frame.Exit{NotFound: true}, "", "no such program in the sandbox's PATH"},
		{"no such file", start("/no/such/file"), frame.Exit{NotFound: true}, "", "no such program"},
		{"no such interpreter", start(lost), frame.Exit{NotFound: true}, "", "no such file"},
		{"not executable", start(notExec), frame.Exit{}, "", "not executable"},
		{"a directory", start("/tmp"), frame.Exit{}, "", "not a file"},
		{"no such directory", elsewhere, frame.Exit{}, "", "directory"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			b := boot(t, test.start)
			out := b.collect(frame.Stdout)
			b.collect(frame.Stderr)
			e := within(t, "exit", b.exits)
			if !strings.Contains(e.Error, test.says) || test.says == "" && e.Error != "" {
				t.Errorf("error %q, want %q", e.Error, test.says)
			}
			e.Error = ""
			if got := within(t, "output", out); e != test.want || got != test.out {
				t.Errorf("got %+v and %q, want %+v and %q", e, got, test.want, test.out)
			}
			b.link.End()
			b.gone(true)
		})
	}
}

// The command starts from a clean slate: nothing of the runner's environment, files, token, ignored signals.
func TestCommandInheritsNothing(t *testing.T) {
	b := boot(t, sh(`env; ls -l /proc/self/fd | sed 1d | wc -l; grep -E 'Sig(Ign|Blk)' /proc/self/status; cat /proc/1/environ /proc/1/mem /proc/1/maps 2>&1
		readlink /proc/1/fd/0; ps -o sid= -p $$; echo $$; ulimit -n`))
	out := within(t, "output", b.collect(frame.Stdout))
	for _, bad := range []string{"RUNNER_ONLY", token, "next line"} {
		if strings.Contains(out, bad) {
			t.Errorf("the command can see %q:\n%s", bad, out)
		}
	}
	for _, good := range []string{"TERM=xterm", "\n4\n", "environ: Permission denied", "mem: Permission denied", "maps: Permission denied", "SigBlk:\t0000000000000000", "SigIgn:\t0000000000000000"} {
		if !strings.Contains(out, good) {
			t.Errorf("want %q in:\n%s", good, out)
		}
	}
}

// The runner keeps the capability that its launcher left it alone, and nothing that it starts has it or gets it.
func TestCapabilityIsTheRunnersAlone(t *testing.T) {
	name, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	cmd := unshare(t, name)
	i := slices.Index(cmd.Args, "setpriv") // which applies the bounding set first
	cmd.Args = append(cmd.Args[:i:i], "setpriv", "--inh-caps=-all,+sys_ptrace", "setpriv", "--bounding-set=-sys_ptrace", name)
	b := bootBy(t, cmd, sh(`grep ^Cap /proc/self/status; for t in /proc/1/task/*; do echo runner $(grep -h ^Cap $t/status); done
		setpriv --inh-caps=+sys_ptrace true && echo regained; setpriv --inh-caps=+sys_ptrace --ambient-caps=+sys_ptrace true && echo regained
		setpriv --inh-caps=-all sh -c 'grep ^CapPrm /proc/self/status'`))
	out := within(t, "output", b.collect(frame.Stdout))
	inside, threads := 0, 0
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		has := func(i int) bool {
			set, err := strconv.ParseUint(f[i], 16, 64)
			if err != nil {
				t.Fatalf("%q: %v", line, err)
			}
			return set>>unix.CAP_SYS_PTRACE&1 != 0
		}
		switch {
		case len(f) == 2:
			if inside++; has(1) {
				t.Errorf("the command has it: %s", line)
			}
		case len(f) == 11 && f[0] == "runner": // inheritable, permitted, effective, bounding, ambient
			if threads++; has(2) || !has(4) || !has(6) || has(8) || has(10) {
				t.Errorf("a thread of the runner: %s", line)
			}
		default:
			t.Errorf("line %q", line)
		}
	}
	if inside != 6 || threads < 2 {
		t.Errorf("%d sets of the command, %d threads of the runner in\n%s", inside, threads, out)
	}
}

func TestOpenFilesLimit(t *testing.T) {
	s := sh("ulimit -Sn")
	s.OpenFile = 100
	if out := within(t, "output", boot(t, s).collect(frame.Stdout)); out != "100\n" {
		t.Errorf("limit %q", out)
	}
}

func TestStdinReachesTheCommand(t *testing.T) {
	b := boot(t, sh("cat; echo end"))
	out := b.collect(frame.Stdout)
	in := b.link.Sender(frame.Stdin)
	data := strings.Repeat("0123456789\x00\xff\n", 100000)
	if _, err := io.WriteString(in, data); err != nil {
		t.Fatal(err)
	}
	in.Close()
	if got := within(t, "output", out); got != data+"end\n" {
		t.Errorf("%d bytes came back of %d", len(got), len(data))
	}
	none := sh("cat; echo end")
	none.NoStdin = true
	if got := within(t, "output", boot(t, none).collect(frame.Stdout)); got != "end\n" {
		t.Errorf("without input: %q", got)
	}
}

// A command that does not read its input, and whose output nobody reads, still gets signals and answers.
func TestSignalsOvertakeStreams(t *testing.T) {
	b := boot(t, sh("trap 'exit 7' TERM; head -c 10000000 /dev/zero & while :; do sleep 0.05; done"))
	go func() { _, _ = b.link.Sender(frame.Stdin).Write(make([]byte, 4<<20)) }()
	within(t, "start", b.started)
	time.Sleep(100 * time.Millisecond)
	if err := b.link.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := b.link.SendSignal(int(syscall.SIGTERM)); err != nil {
		t.Fatal(err)
	}
	if e := within(t, "exit", b.exits); e.Code != 7 {
		t.Errorf("exit %+v", e)
	}
}

// A signal that arrives before the command runs is not lost.
func TestEarlySignal(t *testing.T) {
	b := boot(t, start("sleep", "30"))
	if err := b.link.SendSignal(int(syscall.SIGTERM)); err != nil {
		t.Fatal(err)
	}
	if e := within(t, "exit", b.exits); e.Signal != int(syscall.SIGTERM) {
		t.Errorf("exit %+v", e)
	}
}

// Signals from inside do not end process 1, and with it the sandbox, however often they come: the kernel's own protection has a gap while Go starts a thread.
func TestSignalsToProcessOne(t *testing.T) {
	for range 20 {
		b := boot(t, sh(`for s in $(seq 1 64); do kill -$s 1; done; i=0; while [ $i -lt 200 ]; do kill -32 1; kill -34 1; i=$((i+1)); done; echo alive`))
		if got := within(t, "output", b.collect(frame.Stdout)); got != "alive\n" {
			t.Fatalf("got %q, log %q, ended with %v", got, &b.log, b.wait())
		}
	}
}

// Orphans are reaped, whatever they end with, and none is taken for the command.
func TestOrphansAreReaped(t *testing.T) {
	b := boot(t, sh(`i=0; while [ $i -lt 50 ]; do sh -c 'sh -c "exit 3" & sh -c "kill -9 \$\$" & exit 0'; i=$((i+1)); done
		sleep 0.3; ps -A -o stat=,pid= | grep -c '^Z'; exit 5`))
	out := within(t, "output", b.collect(frame.Stdout))
	if e := within(t, "exit", b.exits); e.Code != 5 || out != "0\n" {
		t.Errorf("exit %+v, zombies %q", e, out)
	}
}

// A background process that holds the output open delays the end by moments, and everything written before it arrives.
func TestBackgroundProcessDoesNotHoldTheEnd(t *testing.T) {
	b := boot(t, sh("sleep 60 & head -c 60000 /dev/zero; exit 3"))
	began := time.Now()
	out := within(t, "output", b.collect(frame.Stdout))
	within(t, "stderr", b.collect(frame.Stderr))
	if took := time.Since(began); len(out) != 60000 || took > 5*time.Second {
		t.Errorf("%d bytes after %v", len(out), took)
	}
	if e := within(t, "exit", b.exits); e.Code != 3 {
		t.Errorf("exit %+v", e)
	}
	b.link.End()
	b.gone(true)
}

// However late the owner reads, what the command wrote before its end is not lost.
func TestLateReaderGetsEverything(t *testing.T) {
	b := boot(t, sh("sleep 60 & head -c 330000 /dev/zero; printf last"))
	if e := within(t, "exit", b.exits); e.Code != 0 {
		t.Fatalf("exit %+v", e)
	}
	time.Sleep(500 * time.Millisecond)
	if out := within(t, "output", b.collect(frame.Stdout)); len(out) != 330004 || !strings.HasSuffix(out, "last") {
		t.Errorf("%d bytes", len(out))
	}
}

func TestStoppedOutputGivesSIGPIPE(t *testing.T) {
	b := boot(t, start("yes"))
	b.await(frame.Stdout, "y\n")
	b.link.Receiver(frame.Stdout).Stop()
	if e := within(t, "exit", b.exits); e.Signal != int(syscall.SIGPIPE) {
		t.Errorf("exit %+v", e)
	}
}

// When the owner is lost, everything ends at once.
func TestLostOwnerEndsEverything(t *testing.T) {
	b := boot(t, sh("trap '' TERM HUP INT; setsid sleep 60 & sleep 60"))
	within(t, "start", b.started)
	b.link.End()
	b.gone(false)
	if !strings.Contains(b.log.String(), "lost the owner") {
		t.Errorf("the runner said %q", &b.log)
	}
}

func TestBadBoot(t *testing.T) {
	name, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string]string{
		"":                             "read boot line",
		"\n":                           "boot line is not",
		"{}\n":                         "lacks",
		`{"control":"x","token":1}`:    "boot line is not",
		strings.Repeat("x", 5000):      "longer than",
		`{"control":"x","token":"ab"}`: "reach the owner",
	}
	for in, want := range tests {
		t.Run(want, func(t *testing.T) {
			t.Parallel()
			cmd := unshare(t, name)
			cmd.Stdin = strings.NewReader(in)
			out, err := cmd.CombinedOutput()
			if err == nil || !strings.Contains(string(out), want) {
				t.Errorf("got %v, %q", err, out)
			}
		})
	}
	cmd := exec.Command(name) // by hand
	cmd.Stdin = strings.NewReader(`{"control":"127.0.0.1:1","token":"ab"}`)
	if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "not by hand") {
		t.Errorf("got %v, %q", err, out)
	}
}

// An owner that breaks the protocol is told, and the sandbox ends.
func TestBrokenOwner(t *testing.T) {
	name, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	cmd := unshare(t, name)
	cmd.Stdin = strings.NewReader(fmt.Sprintf("{\"control\":%q,\"token\":\"ab\"}\n", l.Addr()))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write(frame.Append(nil, frame.Frame{Type: frame.TypeStart, Payload: []byte(`{"args":["true"],"dir":"/","sudo":true}`)})); err != nil {
		t.Fatal(err)
	}
	r := frame.NewReader(conn)
	var last frame.Frame
	for f, err := r.Next(); err == nil; f, err = r.Next() {
		last = frame.Frame{Type: f.Type, Payload: bytes.Clone(f.Payload)}
	}
	if last.Type != frame.TypeError || !strings.Contains(string(last.Payload), "unknown field") {
		t.Errorf("last word %s %q", last.Type, last.Payload)
	}
	if err := cmd.Wait(); err == nil {
		t.Error("the runner ended well")
	}
}

// The shipped program stays small: what it links, an attacker inside has.
func TestBinaryIsSmall(t *testing.T) {
	name, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	fi, err := os.Stat(name)
	if err != nil {
		t.Fatal(err)
	}
	if fi.Size() > 3<<20 {
		t.Errorf("the runner has %d bytes, more than 3 MiB", fi.Size())
	}
	out, err := exec.Command("go", "list", "-deps", "../../cmd/cofferdam-runner").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"net", "net/http", "crypto/tls", "crypto/rand", "database/sql"} {
		if strings.Contains(string(out), "\n"+bad+"\n") {
			t.Errorf("the runner links %s", bad)
		}
	}
}

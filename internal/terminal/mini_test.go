package terminal

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
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/frame"
)

// The tests of signals and terminals need a process of their own: this test binary again, as a small `cofferdam run` around the real runner.

func TestMain(m *testing.M) {
	if text := os.Getenv("MINI"); text != "" {
		os.Exit(mini(text))
	}
	code := m.Run()
	if runnerDir != "" {
		_ = os.RemoveAll(runnerDir)
	}
	os.Exit(code)
}

var runnerDir string // removed at the end

var runnerBinary = sync.OnceValues(func() (string, error) {
	var err error
	if runnerDir, err = os.MkdirTemp("", "terminal"); err != nil {
		return "", err
	}
	name := filepath.Join(runnerDir, "cofferdam-runner")
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", name, "../../cmd/cofferdam-runner")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return name, nil
})

// plan is what a mini is to do.
type plan struct {
	Runner string
	Args   []string
	TTY    bool
	Notify []string         // shown after 150 ms
	Ask    string           // asked after 150 ms, choices y and n
	NoTTY  bool             // without TTYFile
	Panic  bool             // a panic while output is written
	Own    bool             // signals come through Options.Signals
	Early  []syscall.Signal // with Own: sent to itself before Attach
	Late   syscall.Signal   // with Own: sent to itself after Run
	Limit  time.Duration
	Report string // file for what it has to say
}

// mini is the whole program.
func mini(text string) int {
	var p plan
	if err := json.Unmarshal([]byte(text), &p); err != nil {
		panic(err)
	}
	var said bytes.Buffer
	defer func() { _ = os.WriteFile(p.Report, said.Bytes(), 0o600) }()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	token, text := NewToken()
	line, _ := json.Marshal(frame.Boot{Control: l.Addr().String(), Token: text})
	runner := exec.Command("unshare", "--user", "--map-root-user", "--pid", "--mount-proc", "--fork", "--kill-child", p.Runner)
	runner.Stdin = bytes.NewReader(append(line, '\n'))
	runner.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL} // out of reach of the keyboard, as the supervisor must be
	if err := runner.Start(); err != nil {
		panic(err)
	}
	defer func() {
		_ = runner.Process.Kill()
		_ = runner.Wait()
	}()
	conn, err := l.Accept()
	if err != nil {
		panic(err)
	}
	o := Options{
		Token: token, Start: frame.Start{Args: p.Args, Dir: "/", Env: []string{"PATH=" + os.Getenv("PATH"), "TERM=xterm"}, TTY: p.TTY},
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Kill: func() { _ = runner.Process.Kill() },
	}
	if !p.NoTTY {
		if tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0); err == nil {
			o.TTYFile = tty
		}
	}
	if p.Panic {
		o.Stdout = writerFunc(func([]byte) (int, error) { panic("as planned") })
	}
	if p.Own {
		return p.runOwn(conn, o, &said)
	}
	return p.run(conn, o, &said)
}

// runOwn is run by a program that catches signals itself, all its life.
func (p plan) runOwn(conn net.Conn, o Options, said io.Writer) int {
	c := make(chan os.Signal, 16)
	signal.Notify(c, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2)
	o.Signals = c
	for i, sig := range p.Early {
		_ = syscall.Kill(os.Getpid(), sig)
		for len(c) <= i { // os/signal hands them over in its own time
			time.Sleep(time.Millisecond)
		}
	}
	code := p.run(conn, o, said)
	if p.Late != 0 {
		_ = syscall.Kill(os.Getpid(), p.Late)
		fmt.Fprintln(said, "late:", <-c)
	}
	return code
}

func (p plan) run(conn net.Conn, o Options, said io.Writer) int {
	ctx := context.Background()
	if p.Limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, p.Limit, errors.New("time is up"))
		defer cancel()
	}
	s, err := Attach(ctx, conn, o)
	if err != nil {
		fmt.Fprintln(said, "attach:", err)
		return 125
	}
	var extra sync.WaitGroup
	extra.Go(func() {
		time.Sleep(150 * time.Millisecond)
		for _, n := range p.Notify {
			s.Notify(n)
		}
		if p.Ask != "" {
			key, err := s.Ask(ctx, p.Ask, []Choice{{'y', "yes"}, {'n', "no"}})
			fmt.Fprintf(said, "answer %q %v\n", key, err)
		}
	})
	e, err := s.Run(ctx)
	extra.Wait()
	if err != nil {
		fmt.Fprintf(said, "error: %v (%v)\n", err, fault.KindOf(err))
		return 125
	}
	fmt.Fprintf(said, "exit %+v\n", e)
	if e.Signal != 0 {
		return 128 + e.Signal
	}
	return e.Code
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// command returns a mini that is not yet started.
func (p plan) command(t *testing.T) *exec.Cmd {
	t.Helper()
	if out, err := exec.Command("unshare", "--user", "--map-root-user", "--pid", "--mount-proc", "--fork", "true").CombinedOutput(); err != nil {
		t.Skipf("no user namespaces here: %v: %s", err, out)
	}
	var err error
	if p.Runner, err = runnerBinary(); err != nil {
		t.Fatal(err)
	}
	if p.Report == "" {
		p.Report = filepath.Join(t.TempDir(), "report")
	}
	text, _ := json.Marshal(p)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "MINI="+string(text))
	return cmd
}

func shell(script string) []string { return []string{"/bin/sh", "-c", script} }

// report reads what a mini said.
func report(t *testing.T, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

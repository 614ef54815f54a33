package keeper

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/frame"
	"github.com/cofferdam/cofferdam/internal/ident"
)

// fakeKept is a sandbox of which only the socket's side is real: its runner is the runner's side of package frame, which echoes.
type fakeKept struct {
	mu   sync.Mutex
	said []string
}

func (f *fakeKept) note(s string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.said = append(f.said, s)
	return nil
}

func (f *fakeKept) Status() Status { return Status{Policy: "hash", Asks: []Ask{}} }
func (f *fakeKept) SetPolicy(_ context.Context, p NewPolicy) error {
	if p.Policy == "clash" {
		return fault.New(fault.Conflict, "it clashes").WithHint("start anew")
	}
	return f.note("policy " + p.Policy)
}
func (f *fakeKept) SetDeadline(_ context.Context, d time.Time) error {
	return f.note("deadline " + d.UTC().Format(time.RFC3339))
}
func (f *fakeKept) Pause(_ context.Context, paused bool) error {
	if !paused {
		return fault.New(fault.Conflict, "not paused")
	}
	return f.note("pause")
}
func (f *fakeKept) Stop(_ context.Context, reason string) error { return f.note("stop " + reason) }

func (f *fakeKept) Start(_ context.Context, e Exec) (io.ReadWriteCloser, Prepared, error) {
	if e.Command[0] == "busy" {
		return nil, Prepared{}, fault.New(fault.TooMany, "too many")
	}
	ours, theirs := net.Pipe()
	go runner(theirs)
	return ours, Prepared{Env: append([]string{"A=1"}, e.Env...), Dir: "/work"}, nil
}

// runner echoes its input and its environment, and ends with code 5.
func runner(conn net.Conn) {
	starts := make(chan frame.Start, 1)
	if frame.WriteHello(conn, frame.Hello{}) != nil {
		return
	}
	l := frame.NewRunner(conn, frame.Handlers{
		Start:  func(s frame.Start) error { starts <- s; return nil },
		Resize: func(uint16, uint16) error { return nil },
		Signal: func(int) error { return nil },
	})
	go func() {
		s := <-starts
		_ = l.SendStarted(42)
		_, _ = io.WriteString(l.Sender(frame.Stdout), strings.Join(s.Env, " ")+" "+s.Dir+"\n")
		_, _ = io.Copy(l.Sender(frame.Stdout), l.Receiver(frame.Stdin))
		l.Sender(frame.Stdout).Close()
		l.Sender(frame.Stderr).Close()
		_ = l.SendExit(frame.Exit{Code: 5})
	}()
	_ = l.Run(context.Background())
}

// start serves a fake sandbox in a state directory with a long name.
func start(t *testing.T) (*fakeKept, *Board, *Client) {
	t.Helper()
	state := filepath.Join(t.TempDir(), strings.Repeat("long", 30))
	run := ident.NewRun()
	l, err := Listen(state, run)
	if err != nil {
		t.Fatal(err)
	}
	k, b := &fakeKept{}, &Board{}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- NewServer(k, b).Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
		if _, err := Dial(context.Background(), state, run); fault.KindOf(err) != fault.NotFound {
			t.Errorf("after the end: %v", err)
		}
		if _, err := os.Lstat(SocketPath(state, run)); err == nil {
			t.Error("the socket is left")
		}
	})
	c, err := Dial(t.Context(), state, run)
	if err != nil {
		t.Fatal(err)
	}
	return k, b, c
}

func TestCalls(t *testing.T) {
	k, _, c := start(t)
	ctx := t.Context()
	if s, err := c.Status(ctx); err != nil || s.Policy != "hash" {
		t.Errorf("%+v, %v", s, err)
	}
	at := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	if err := errors.Join(c.SetPolicy(ctx, NewPolicy{Policy: "p"}), c.SetDeadline(ctx, NewDeadline{at}), c.Pause(ctx, true), c.Stop(ctx, "why")); err != nil {
		t.Error(err)
	}
	if got := strings.Join(k.said, ", "); got != "policy p, deadline 2030-01-02T03:04:05Z, pause, stop why" {
		t.Error(got)
	}
	err := c.SetPolicy(ctx, NewPolicy{Policy: "clash"})
	if fault.KindOf(err) != fault.Conflict || fault.Public(err) != "it clashes" || fault.HintOf(err) != "start anew" {
		t.Errorf("%v", err)
	}
	if err := c.SetPolicy(ctx, NewPolicy{Policy: strings.Repeat("x", maxBody)}); fault.KindOf(err) != fault.Invalid {
		t.Errorf("too long: %v", err)
	}
	if err := c.do(ctx, "PUT", "/policy", map[string]int{"other": 1}, nil); fault.KindOf(err) != fault.Invalid {
		t.Errorf("an unknown member: %v", err)
	}
	if err := c.Answer(ctx, "../status", Answer{}); fault.KindOf(err) != fault.NotFound {
		t.Errorf("an answer to nothing: %v", err)
	}
}

func TestExecOverSocket(t *testing.T) {
	_, _, c := start(t)
	p, err := c.Exec(t.Context(), Exec{Command: []string{"x"}, Env: []string{"B=2"}})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	big := strings.Repeat("0123456789abcdef", 1<<16)
	go func() {
		_, _ = io.WriteString(p.Stdin(), big)
		_ = p.Stdin().Close()
	}()
	_ = p.Stderr().Close()
	out, err := io.ReadAll(p.Stdout())
	if err != nil || string(out) != "A=1 B=2 /work\n"+big {
		t.Errorf("%d bytes, %.40q, %v", len(out), out, err)
	}
	if exit, err := p.Wait(); err != nil || exit.Code != 5 {
		t.Errorf("%+v, %v", exit, err)
	}
	if _, err := c.Exec(t.Context(), Exec{Command: []string{"busy"}}); fault.KindOf(err) != fault.TooMany {
		t.Errorf("%v", err)
	}
	// Closed in the middle: Wait does not hang.
	q, err := c.Exec(t.Context(), Exec{Command: []string{"x"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := q.Close(); err != nil {
		t.Error(err)
	}
	if _, err := q.Wait(); err == nil {
		t.Error("a command that was let go has an exit")
	}
}

func TestEvents(t *testing.T) {
	_, b, c := start(t)
	answers := make(chan Answer, 2)
	ask := func(ctx context.Context, host string) {
		a, _ := b.Ask(ctx, Ask{Host: host, Created: time.Now().UTC()})
		answers <- a
	}
	waiting := func(n int) []Ask {
		t.Helper()
		for range 500 {
			if asks := b.Waiting(); len(asks) == n {
				return asks
			}
			time.Sleep(5 * time.Millisecond)
		}
		t.Fatalf("%d wait, want %d", len(b.Waiting()), n)
		return nil
	}
	b.Tell(Event{Type: "used", ID: "r1"}) // before anybody listens
	go ask(t.Context(), "one")
	first := waiting(1)[0]
	events := make(chan Event, 10)
	over := make(chan error, 1)
	go func() { over <- c.Events(t.Context(), func(e Event) { events <- e }) }()
	if e := <-events; e.Type != "used" || e.ID != "r1" {
		t.Errorf("%+v", e)
	}
	if e := <-events; e.Type != "ask" || e.Ask.ID != first.ID || e.Ask.Host != "one" {
		t.Errorf("%+v", e)
	}
	if err := c.Answer(t.Context(), first.ID, Answer{Allow: true, Rule: "approved:x"}); err != nil {
		t.Error(err)
	}
	if a := <-answers; !a.Allow || a.Rule != "approved:x" {
		t.Errorf("%+v", a)
	}
	if e := <-events; e.Type != "withdrawn" || e.ID != first.ID {
		t.Errorf("%+v", e)
	}
	ctx, cancel := context.WithCancel(t.Context())
	go ask(ctx, "two")
	second := (<-events).Ask
	cancel()
	if a := <-answers; a.Allow {
		t.Errorf("nobody answered: %+v", a)
	}
	if e := <-events; e.Type != "withdrawn" || e.ID != second.ID {
		t.Errorf("%+v", e)
	}
	b.Close()
	if e := <-events; e.Type != "ended" {
		t.Errorf("%+v", e)
	}
	if err := <-over; err != nil {
		t.Errorf("%v", err)
	}
	if err := c.Events(t.Context(), func(Event) {}); fault.KindOf(err) != fault.Unavailable {
		t.Errorf("after the end: %v", err)
	}
}

func TestListenRefusesOpenDirectory(t *testing.T) {
	state := t.TempDir()
	if err := errors.Join(os.Mkdir(socketDir(state), 0o755), os.Chmod(socketDir(state), 0o755)); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(state, ident.NewRun()); fault.KindOf(err) != fault.Denied {
		t.Error(err)
	}
}

func TestKindNamed(t *testing.T) {
	for k := fault.Internal; k <= fault.Unsupported; k++ {
		if got := kindNamed(k.String()); got != k {
			t.Errorf("%s is read as %s", k, got)
		}
		if s := statusOf(k); s < 400 || s > 599 {
			t.Errorf("%s has the status %d", k, s)
		}
	}
	if kindNamed("other") != fault.Internal {
		t.Error("an unknown kind says something")
	}
}

// TestManyCallers: whoever asks and goes leaves no connection behind, of which a keeper takes so many.
func TestManyCallers(t *testing.T) {
	_, _, c := start(t)
	for i := range maxConns + 10 {
		other, err := Dial(t.Context(), c.state, c.run)
		if err == nil {
			_, err = other.Status(t.Context())
		}
		if err != nil {
			t.Fatalf("call %d: %v", i, err)
		}
	}
}

// TestHangsUp has a keeper hang up instead of answering: whether its sandbox has ended is told by whether it still listens.
func TestHangsUp(t *testing.T) {
	for ended, want := range map[bool]fault.Kind{true: fault.NotFound, false: fault.Unavailable} {
		state, run := t.TempDir(), ident.NewRun()
		l, err := Listen(state, run)
		if err != nil {
			t.Fatal(err)
		}
		go func() { // ends with the listener
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				if n, _ := conn.Read(make([]byte, 1)); n > 0 && ended {
					_ = l.Close()
				}
				_ = conn.Close()
			}
		}()
		c, err := Dial(t.Context(), state, run)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.SetPolicy(t.Context(), NewPolicy{Policy: "p"}); fault.KindOf(err) != want {
			t.Errorf("ended %v: %v, want %v", ended, err, want)
		}
		_ = l.Close() // it may be closed already
	}
}

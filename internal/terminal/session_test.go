package terminal

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/frame"
)

// peer plays the runner of an in-process session.
type peer struct {
	conn    net.Conn
	link    *frame.Link
	starts  chan frame.Start
	over    chan error
	signals chan int
}

// introduce connects a peer that shows the token, and attaches.
func introduce(t *testing.T, token *Token, text string, o Options) (*Session, *peer, error) {
	t.Helper()
	a, b := net.Pipe()
	p := &peer{conn: b, starts: make(chan frame.Start, 1), over: make(chan error, 1), signals: make(chan int, 100)}
	p.link = frame.NewRunner(b, frame.Handlers{
		Start:  func(s frame.Start) error { p.starts <- s; return nil },
		Signal: func(n int) error { p.signals <- n; return nil },
		Query: func(q frame.Query) error {
			if q.Network == "silent" {
				return nil
			}
			return p.link.SendOwner(frame.Owner{ID: q.ID, PID: 7, Name: "npm install"})
		},
	})
	go func() {
		if err := frame.WriteHello(b, frame.Hello{Token: []byte(text), Facts: frame.Facts{Kernel: "6.18", PID: 1}}); err != nil {
			p.over <- err
			return
		}
		p.over <- p.link.Run(context.Background())
	}()
	o.Token = token
	if o.Start.Args == nil {
		o.Start = frame.Start{Args: []string{"x"}, Dir: "/"}
	}
	s, err := Attach(t.Context(), a, o)
	if err != nil {
		<-p.over
	}
	return s, p, err
}

func (p *peer) exit(t *testing.T, e frame.Exit) {
	t.Helper()
	if err := errors.Join(p.link.SendStarted(2), p.link.SendExit(e)); err != nil {
		t.Fatal(err)
	}
	p.link.Sender(frame.Stdout).Close()
	p.link.Sender(frame.Stderr).Close()
}

func TestTokenWorksOnce(t *testing.T) {
	token, text := NewToken()
	other, _ := NewToken()
	for _, test := range []struct {
		name  string
		token *Token
		text  string
		ok    bool
	}{
		{"wrong", token, strings.Repeat("0", len(text)), false},
		{"shorter", token, text[1:], false},
		{"none", token, "", false},
		{"of another sandbox", other, text, false},
		{"zero", new(Token), "", false},
		{"nil", nil, "", false},
		{"right", token, text, true},
		{"again", token, text, false},
	} {
		s, p, err := introduce(t, test.token, test.text, Options{})
		if test.ok {
			if err != nil {
				t.Fatalf("%s: %v", test.name, err)
			}
			if f := s.Facts(); f.Kernel != "6.18" || f.PID != 1 {
				t.Errorf("facts %+v", f)
			}
			if start := <-p.starts; !start.NoStdin || start.Args[0] != "x" {
				t.Errorf("start %+v", start)
			}
			s.Close()
			s.Close()
			<-p.over
			if _, err := s.Run(t.Context()); err == nil {
				t.Error("a closed session was run")
			}
		} else if fault.KindOf(err) != fault.Unauthenticated {
			t.Errorf("%s: %v", test.name, err)
		}
	}
}

func TestAttachRefuses(t *testing.T) {
	token, text := NewToken()
	for name, start := range map[string]frame.Start{
		"no command":     {Args: []string{""}, Dir: "/"},
		"NUL":            {Args: []string{"a\x00"}, Dir: "/"},
		"relative":       {Args: []string{"a"}, Dir: "x"},
		"no environment": {Args: []string{"a"}, Dir: "/", Env: []string{"A"}},
		"no terminal":    {Args: []string{"a"}, Dir: "/", TTY: true},
	} {
		a, b := net.Pipe()
		if _, err := Attach(t.Context(), a, Options{Token: token, Start: start}); fault.KindOf(err) != fault.Invalid {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := b.Write([]byte("x")); err == nil {
			t.Errorf("%s: the connection is open", name)
		}
	}
	pipe, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer pipe.Close()
	defer w.Close()
	for _, stdin := range []*os.File{nil, pipe} {
		a, _ := net.Pipe()
		_, err := Attach(t.Context(), a, Options{Token: token, Stdin: stdin, Start: frame.Start{Args: []string{"a"}, Dir: "/", TTY: true}})
		if fault.KindOf(err) != fault.Invalid || err.Error() != "standard input is not a terminal" || fault.HintOf(err) != "leave out --tty" {
			t.Errorf("no terminal: %v, hint %q", err, fault.HintOf(err))
		}
	}
	long := frame.Start{Args: []string{"a", strings.Repeat("x", 9<<20)}, Dir: "/"}
	if _, _, err := introduce(t, token, text, Options{Start: long}); fault.KindOf(err) != fault.Invalid {
		t.Errorf("too long: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	a, _ := net.Pipe()
	if _, err := Attach(ctx, a, Options{Token: token, Start: frame.Start{Args: []string{"a"}, Dir: "/"}}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("silent peer: %v", err)
	}
	a, b := net.Pipe()
	_ = b.Close()
	if _, err := Attach(t.Context(), a, Options{Token: token, Start: frame.Start{Args: []string{"a"}, Dir: "/"}}); fault.KindOf(err) != fault.Unavailable {
		t.Errorf("peer that leaves: %v", err)
	}
}

func TestHowSessionsEnd(t *testing.T) {
	raw := func(typ frame.Type, s frame.Stream, p string) func(*testing.T, *peer) {
		return func(t *testing.T, p2 *peer) {
			if _, err := p2.conn.Write(frame.Append(nil, frame.Frame{Type: typ, Stream: s, Payload: []byte(p)})); err != nil {
				t.Fatal(err)
			}
		}
	}
	tests := []struct {
		name string
		do   func(*testing.T, *peer)
		exit frame.Exit
		says string // "": no error
	}{
		{"well", func(t *testing.T, p *peer) { p.exit(t, frame.Exit{Code: 3}) }, frame.Exit{Code: 3}, ""},
		{"not started", func(t *testing.T, p *peer) {
			_ = p.link.SendExit(frame.Exit{Error: "no such\x1b program", NotFound: true})
			p.link.Sender(frame.Stdout).Close()
			p.link.Sender(frame.Stderr).Close()
		}, frame.Exit{Error: "no such? program", NotFound: true}, ""},
		{"runner gone", func(_ *testing.T, p *peer) { p.link.End() }, frame.Exit{}, "the sandbox ended before the command did"},
		{"runner gone with output", func(t *testing.T, p *peer) {
			_ = p.link.SendStarted(2)
			_ = p.link.SendExit(frame.Exit{Code: 4})
			_ = p.link.Ping(t.Context())
			p.link.End()
		}, frame.Exit{Code: 4}, "before all output of the command arrived"},
		{"protocol broken", raw(frame.TypeData, frame.Stdout, "early"), frame.Exit{}, "broke its protocol"},
		{"last words", raw(frame.TypeError, 0, "out of \x1bmemory"), frame.Exit{}, "gave up: out of ?memory"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			token, text := NewToken()
			s, p, err := introduce(t, token, text, Options{})
			if err != nil {
				t.Fatal(err)
			}
			<-p.starts
			go func() {
				test.do(t, p)
				if test.name == "last words" {
					time.Sleep(50 * time.Millisecond)
					p.link.End()
				}
			}()
			exit, err := s.Run(t.Context())
			if exit != test.exit || (err == nil) != (test.says == "") || err != nil && !strings.Contains(err.Error(), test.says) {
				t.Errorf("got %+v, %v, want %+v, %q", exit, err, test.exit, test.says)
			}
			p.link.End()
			<-p.over
		})
	}
}

func TestOwnerQueries(t *testing.T) {
	token, text := NewToken()
	var stderr bytes.Buffer
	s, p, err := introduce(t, token, text, Options{Stderr: &stderr})
	if err != nil {
		t.Fatal(err)
	}
	<-p.starts
	s.Notify("before")
	var wg sync.WaitGroup
	for range 40 {
		wg.Go(func() {
			if o := s.Owner(t.Context(), frame.Query{ID: 5, Network: "tcp"}); o != (frame.Owner{ID: 5, PID: 7, Name: "npm install"}) {
				t.Errorf("got %+v", o)
			}
		})
	}
	wg.Wait()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if o := s.Owner(ctx, frame.Query{Network: "silent"}); o != (frame.Owner{}) || len(s.owners.queries) != 0 {
		t.Errorf("got %+v, %d still wait", o, len(s.owners.queries))
	}
	if err := errors.Join(s.Ping(t.Context()), p.link.SendOwner(frame.Owner{ID: 999, PID: 1}), p.link.Ping(t.Context())); err != nil {
		t.Errorf("an answer that nobody waits for: %v", err)
	}
	s.Close()
	if o := s.Owner(t.Context(), frame.Query{Network: "tcp"}); o != (frame.Owner{}) {
		t.Errorf("after the end: %+v", o)
	}
	if _, err := s.Ask(t.Context(), "?", []Choice{{'y', "yes"}}); err == nil {
		t.Error("asked after the end")
	}
	s.Notify("after\x1b")
	if stderr.String() != "before\nafter?\n" {
		t.Errorf("notices %q", stderr.String())
	}
	s.Restore()
	<-p.over
}

// With a channel of the caller's the session listens to that alone, and takes from it only what concerns a command.
func TestOnlySignalsOfTheCaller(t *testing.T) {
	mine := make(chan os.Signal, 1)
	signal.Notify(mine, syscall.SIGUSR1)
	defer signal.Stop(mine)
	given := make(chan os.Signal, 10)
	for _, sig := range []syscall.Signal{syscall.SIGURG, syscall.SIGCHLD, syscall.SIGTERM, syscall.SIGWINCH} {
		given <- sig
	}
	token, text := NewToken()
	s, p, err := introduce(t, token, text, Options{Signals: given})
	if err != nil {
		t.Fatal(err)
	}
	over := make(chan error, 1)
	go func() { _, err := s.Run(t.Context()); over <- err }()
	if got := syscall.Signal(<-p.signals); got != syscall.SIGTERM {
		t.Errorf("the command got %v", got)
	}
	if err := syscall.Kill(os.Getpid(), syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	<-mine
	given <- syscall.SIGQUIT
	if got := syscall.Signal(<-p.signals); got != syscall.SIGQUIT {
		t.Errorf("the command got %v", got)
	}
	close(given)
	p.exit(t, frame.Exit{})
	if err := <-over; err != nil {
		t.Error(err)
	}
	if len(p.signals) > 0 {
		t.Errorf("the command also got %v", syscall.Signal(<-p.signals))
	}
	<-p.over
}

// Interrupts from before the session count for the second that kills.
func TestEarlyInterruptsKill(t *testing.T) {
	for n, says := range []string{"", "", "the sandbox ended before the command did"} {
		given := make(chan os.Signal, 4)
		for range n {
			given <- syscall.SIGINT
		}
		given <- syscall.SIGUSR2
		kill := make(chan bool, 1)
		token, text := NewToken()
		s, p, err := introduce(t, token, text, Options{Signals: given, Kill: func() { kill <- true }})
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			for syscall.Signal(<-p.signals) != syscall.SIGUSR2 {
			}
			if len(kill) > 0 {
				p.link.End()
				return
			}
			p.exit(t, frame.Exit{})
		}()
		if _, err := s.Run(t.Context()); (err == nil) != (says == "") || err != nil && !strings.Contains(err.Error(), says) {
			t.Errorf("%d interrupts: %v, want %q", n, err, says)
		}
		<-p.over
	}
}

// What arrives after the session stays in the channel.
func TestSignalsAfterTheSession(t *testing.T) {
	given := make(chan os.Signal, 1)
	token, text := NewToken()
	s, p, err := introduce(t, token, text, Options{Signals: given})
	if err != nil {
		t.Fatal(err)
	}
	p.exit(t, frame.Exit{})
	if _, err := s.Run(t.Context()); err != nil {
		t.Error(err)
	}
	given <- syscall.SIGINT
	time.Sleep(20 * time.Millisecond)
	if len(given) != 1 {
		t.Error("a signal after the session was taken")
	}
	<-p.over
}

// Many sessions, however they end, leave no goroutine and no descriptor.
func TestNothingIsLeft(t *testing.T) {
	count := func() (goroutines, files int) {
		list, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return runtime.NumGoroutine(), len(list)
	}
	in, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	defer w.Close()
	out, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	run := func(i int) {
		token, text := NewToken()
		s, p, err := introduce(t, token, text, Options{Stdin: in, Stdout: out, Stderr: out, TTYFile: out})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		switch s.Notify("x"); i % 3 {
		case 0:
			p.exit(t, frame.Exit{})
		case 1:
			time.AfterFunc(time.Millisecond, cancel)
		case 2:
			p.link.End()
		}
		_, _ = s.Run(ctx)
		cancel()
		<-p.over
	}
	run(0) // starts what stays for the life of a process, such as os/signal's own goroutine
	g, f := count()
	for i := range 60 {
		run(i)
	}
	time.Sleep(50 * time.Millisecond)
	if g2, f2 := count(); g2 > g || f2 > f {
		t.Errorf("%d goroutines and %d files before, %d and %d after", g, f, g2, f2)
	}
}

func TestNoticesAreBounded(t *testing.T) {
	token, text := NewToken()
	var stderr bytes.Buffer
	s, p, err := introduce(t, token, text, Options{Stderr: &stderr})
	if err != nil {
		t.Fatal(err)
	}
	for range maxNotices + 10 {
		s.Notify(strings.Repeat("x", 2*maxNotice))
	}
	p.exit(t, frame.Exit{})
	if _, err := s.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	<-p.over
	if got := stderr.String(); !strings.HasSuffix(got, "and 10 more notices\n") || len(got) > maxNotices*(maxNotice+1)+100 {
		t.Errorf("%d bytes, ending in %q", len(got), got[max(0, len(got)-50):])
	}
}

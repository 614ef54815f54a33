package frame

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"testing/synctest"
)

// pair is both sides of a link in one process, introduced and started.
type pair struct {
	owner, runner *Link
	starts        chan Start
	exits         chan Exit
	owners        chan Owner
	signals       chan int
	sizes         chan [2]uint16
	errs          chan string
	spawns        chan string
	ends          chan error
}

// connect joins two links. The test ends them.
func connect(t *testing.T) *pair {
	t.Helper()
	a, b := net.Pipe()
	p := &pair{
		starts: make(chan Start, 1), exits: make(chan Exit, 1), owners: make(chan Owner, 100), signals: make(chan int, 100),
		sizes: make(chan [2]uint16, 100), errs: make(chan string, 1), spawns: make(chan string, 100), ends: make(chan error, 2),
	}
	p.owner = NewOwner(a, Handlers{
		Hello: func(Hello) error { return nil }, Started: func(int) error { return nil },
		Owner: func(o Owner) error { p.owners <- o; return nil },
		Exit:  func(e Exit) error { p.exits <- e; return nil },
		Error: func(text string) error { p.errs <- text; return nil },
	})
	p.runner = NewRunner(b, Handlers{
		Start:  func(s Start) error { p.starts <- s; return nil },
		Signal: func(n int) error { p.signals <- n; return nil },
		Resize: func(r, c uint16) error { p.sizes <- [2]uint16{r, c}; return nil },
		Query:  func(q Query) error { return p.runner.SendOwner(Owner{ID: q.ID, PID: 5, Name: "x"}) },
		Spawn:  func(token []byte) error { p.spawns <- string(token); return nil },
	})
	go func() { p.ends <- p.owner.Run(context.Background()) }()
	if err := WriteHello(b, Hello{Token: []byte("t")}); err != nil {
		t.Fatal(err)
	}
	go func() { p.ends <- p.runner.Run(context.Background()) }()
	if err := p.owner.SendStart(Start{Args: []string{"a"}, Dir: "/"}); err != nil {
		t.Fatal(err)
	}
	<-p.starts
	if err := p.runner.SendStarted(2); err != nil {
		t.Fatal(err)
	}
	return p
}

func (p *pair) close() {
	p.owner.End()
	<-p.ends
	<-p.ends
}

func TestLinkCarriesStreamsBothWays(t *testing.T) {
	p := connect(t)
	defer p.close()
	data := make([]byte, 3<<20+17)
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range data {
		data[i] = byte(rng.Uint32())
	}
	want := sha256.Sum256(data)
	var wg sync.WaitGroup
	for _, way := range []struct {
		from *Sender
		to   *Receiver
	}{
		{p.owner.Sender(Stdin), p.runner.Receiver(Stdin)},
		{p.runner.Sender(Stdout), p.owner.Receiver(Stdout)},
		{p.runner.Sender(Stderr), p.owner.Receiver(Stderr)},
	} {
		wg.Go(func() {
			for rest := data; len(rest) > 0; {
				n := min(len(rest), 1+int(uint(len(rest))*7919%50000))
				if _, err := way.from.Write(rest[:n]); err != nil {
					t.Errorf("write: %v", err)
					break
				}
				rest = rest[n:]
			}
			way.from.Close()
			way.from.Close()
		})
		wg.Go(func() {
			h := sha256.New()
			if n, err := io.Copy(h, way.to); err != nil || n != int64(len(data)) || [32]byte(h.Sum(nil)) != want {
				t.Errorf("%s: got %d bytes, %v", way.to.id, n, err)
			}
		})
	}
	wg.Wait()
	<-p.runner.Drained()
}

// Nobody reads any stream. Everything else still arrives, and no more is held than the window and one frame.
func TestStreamsDoNotHoldUpMessages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := connect(t)
		senders := []*Sender{p.owner.Sender(Stdin), p.runner.Sender(Stdout), p.runner.Sender(Stderr)}
		accepted := make([]int, len(senders))
		for i, s := range senders {
			go func() { accepted[i], _ = s.Write(make([]byte, 4<<20)) }()
		}
		synctest.Wait()
		for range 10 {
			if err := p.owner.SendSignal(15); err != nil {
				t.Fatal(err)
			}
			if got := <-p.signals; got != 15 {
				t.Fatalf("signal %d", got)
			}
			if err := p.owner.SendQuery(Query{ID: 9}); err != nil {
				t.Fatal(err)
			}
			if o := <-p.owners; o.ID != 9 || o.PID != 5 {
				t.Fatalf("owner %+v", o)
			}
			if err := errors.Join(p.owner.Ping(t.Context()), p.runner.Ping(t.Context())); err != nil {
				t.Fatal(err)
			}
		}
		if err := p.owner.SendResize(30, 90); err != nil {
			t.Fatal(err)
		}
		if got := <-p.sizes; got != [2]uint16{30, 90} {
			t.Errorf("size %v", got)
		}
		if err := p.runner.SendExit(Exit{Signal: 9}); err != nil {
			t.Fatal(err)
		}
		if e := <-p.exits; e.Signal != 9 {
			t.Errorf("exit %+v", e)
		}
		p.close()
		synctest.Wait()
		for i, n := range accepted {
			if n != Window+MaxPayload {
				t.Errorf("%s accepted %d bytes that nobody reads, want %d", senders[i].id, n, Window+MaxPayload)
			}
		}
		for _, r := range []*Receiver{p.runner.in[Stdin], p.owner.in[Stdout], p.owner.in[Stderr]} {
			if len(r.buf) != Window || cap(r.buf) > 2*Window {
				t.Errorf("%s holds %d bytes in %d", r.id, len(r.buf), cap(r.buf))
			}
		}
	})
}

// The peer reads nothing at all: what the owner says merges or is refused, and never waits.
func TestPeerThatReadsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		l := NewOwner(a, Handlers{Hello: func(Hello) error { return nil }})
		end := make(chan error)
		go func() { end <- l.Run(context.Background()) }()
		if err := WriteHello(b, Hello{}); err != nil {
			t.Fatal(err)
		}
		busy := false
		for i := range 10000 {
			if err := errors.Join(l.SendSignal(1+i%64), l.SendResize(uint16(i), 1)); err != nil {
				t.Fatal(err)
			}
			busy = errors.Is(l.SendQuery(Query{ID: uint32(i)}), ErrBusy) || busy
			if i < 100 {
				if _, err := b.Write(Append(nil, Frame{TypePing, 0, make([]byte, 8)})); err != nil {
					t.Fatal(err)
				}
			}
		}
		l.mu.Lock()
		if !busy || len(l.queue) > maxQueue {
			t.Errorf("refused a query: %v; %d bytes queued", busy, len(l.queue))
		}
		l.mu.Unlock()
		l.End()
		if err := <-end; !errors.Is(err, ErrEnded) {
			t.Errorf("ended with %v", err)
		}
	})
}

func TestReaderThatStops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := connect(t)
		out, in := p.runner.Sender(Stdout), p.owner.Receiver(Stdout)
		in.Stop()
		in.Stop()
		synctest.Wait()
		if _, err := out.Write([]byte("x")); !errors.Is(err, ErrStopped) {
			t.Errorf("writing to a reader who left: %v", err)
		}
		if out.Room() != 0 || out.TryWrite([]byte("x")) != 0 {
			t.Error("there is room for a reader who left")
		}
		out.Close()
		p.runner.Sender(Stderr).Close()
		<-p.runner.Drained()
		synctest.Wait()
		if err := p.owner.Err(); err != nil {
			t.Errorf("the link ended: %v", err)
		}
		p.close()
	})
}

func TestRoomFollowsCredit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := connect(t)
		in := p.owner.Sender(Stdin)
		total := 0
		for in.Room() > 0 {
			total += in.TryWrite(make([]byte, in.Room()))
			synctest.Wait()
		}
		if total != Window {
			t.Errorf("%d bytes had room, want %d", total, Window)
		}
		if _, err := io.ReadFull(p.runner.Receiver(Stdin), make([]byte, Window)); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if in.Room() == 0 {
			t.Error("no room after all was read")
		}
		p.close()
	})
}

// A hostile or broken peer is cut off at the first frame that is not allowed here and now.
func TestViolationsEndTheLink(t *testing.T) {
	fr := func(typ Type, s Stream, p string) []byte { return Append(nil, Frame{typ, s, []byte(p)}) }
	hello := append([]byte{0, Version, 0}, "{}"...)
	opening := append(Append(nil, Frame{TypeHello, 0, hello}), fr(TypeStarted, 0, "\x00\x00\x00\x02")...)
	start := fr(TypeStart, 0, `{"args":["a"],"dir":"/"}`)
	var flood []byte
	for range Window/MaxPayload + 1 {
		flood = append(flood, fr(TypeData, Stdout, string(make([]byte, MaxPayload)))...)
	}
	join := func(parts ...[]byte) (all []byte) {
		for _, p := range parts {
			all = append(all, p...)
		}
		return all
	}
	tests := []struct {
		name  string
		owner bool // the side under test
		wire  []byte
		bad   bool
	}{
		{"in order", true, join(opening, fr(TypeData, Stdout, "x"), fr(TypeExit, 0, `{"code":1}`), fr(TypeData, Stderr, "x"), fr(TypeClose, Stdout, "")), false},
		{"data first", true, fr(TypeData, Stdout, "x"), true},
		{"exit before hello", true, fr(TypeExit, 0, `{"code":1}`), true},
		{"second hello", true, join(opening, Append(nil, Frame{TypeHello, 0, hello})), true},
		{"data before started", true, join(Append(nil, Frame{TypeHello, 0, hello}), fr(TypeData, Stdout, "x")), true},
		{"started twice", true, join(opening, fr(TypeStarted, 0, "\x00\x00\x00\x02")), true},
		{"exit twice", true, join(opening, fr(TypeExit, 0, `{"code":1}`), fr(TypeExit, 0, `{"code":1}`)), true},
		{"a runner's stdin", true, join(opening, fr(TypeData, Stdin, "x")), true},
		{"beyond the credit", true, join(opening, flood), true},
		{"within the credit", true, join(opening, flood[:len(flood)-headerLen-MaxPayload]), false},
		{"credit for nothing", true, join(opening, fr(TypeCredit, Stdin, "\x00\x00\x00\x01")), true},
		{"credit overflow", true, join(opening, fr(TypeCredit, Stdin, "\xff\xff\xff\xff")), true},
		{"credit for an output", true, join(opening, fr(TypeCredit, Stdout, "\x00\x00\x00\x01")), true},
		{"data after the end", true, join(opening, fr(TypeClose, Stdout, ""), fr(TypeData, Stdout, "x")), true},
		{"end twice", true, join(opening, fr(TypeClose, Stdout, ""), fr(TypeClose, Stdout, "")), true},
		{"stop twice", true, join(opening, fr(TypeClose, Stdin, ""), fr(TypeClose, Stdin, "")), true},
		{"signal to an owner", true, join(opening, fr(TypeSignal, 0, "\x09")), true},
		{"query to an owner", true, join(opening, fr(TypeQuery, 0, "{}")), true},
		{"pong without a ping", true, join(opening, fr(TypePong, 0, "12345678")), true},
		{"broken message", true, join(opening, fr(TypeOwner, 0, `{"id":1,"x":2}`)), true},
		{"unknown type", true, join(opening, fr(99, 0, "")), true},
		{"start in order", false, join(start, fr(TypeSignal, 0, "\x0f"), fr(TypeData, Stdin, "x"), fr(TypeClose, Stdin, "")), false},
		{"signal before start", false, fr(TypeSignal, 0, "\x0f"), true},
		{"start twice", false, join(start, start), true},
		{"start in pieces", false, join(fr(TypeStart, 1, `{"args":["a"],`), fr(TypeStart, 0, `"dir":"/"}`)), false},
		{"signal zero", false, join(start, fr(TypeSignal, 0, "\x00")), true},
		{"signal 65", false, join(start, fr(TypeSignal, 0, "\x41")), true},
		{"hello to a runner", false, join(start, Append(nil, Frame{TypeHello, 0, hello})), true},
		{"exit to a runner", false, join(start, fr(TypeExit, 0, "{}")), true},
		{"spawn to an owner", true, join(opening, fr(TypeSpawn, 0, "t")), true},
		{"spawn where nobody spawns", false, join(start, fr(TypeSpawn, 0, "t")), true},
		{"spawn before start", false, fr(TypeSpawn, 0, "t"), true},
		{"hold", false, fr(TypeStart, 0, `{"args":[],"env":[],"dir":"","tty":false,"hold":true}`), false},
		{"stdout from an owner", false, join(start, fr(TypeData, Stdout, "x")), true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { testViolation(t, test.owner, test.wire, test.bad) })
		})
	}
}

func testViolation(t *testing.T, owner bool, wire []byte, bad bool) {
	ok := func(int) error { return nil }
	a, b := net.Pipe()
	l := NewRunner(a, Handlers{Start: func(Start) error { return nil }, Signal: ok})
	if owner {
		l = NewOwner(a, Handlers{
			Hello: func(Hello) error { return nil }, Started: ok,
			Exit: func(Exit) error { return nil }, Owner: func(Owner) error { return nil },
		})
	}
	end := make(chan error, 1)
	go func() { end <- l.Run(context.Background()) }()
	said := make(chan []byte)
	go func() { all, _ := io.ReadAll(b); said <- all }()
	_, _ = b.Write(wire) // cut off in the middle, where it is bad
	synctest.Wait()
	if !bad {
		if err := l.Err(); err != nil {
			t.Errorf("ended with %v", err)
		}
		_ = b.Close()
		<-end
		<-said
		return
	}
	if err := <-end; !errors.Is(err, ErrProtocol) {
		t.Errorf("ended with %v, want a protocol error", err)
	}
	f, _ := NewReader(readerOf(<-said)).Next()
	if told := f.Type == TypeError; told == owner {
		t.Errorf("told the peer why: %v", told)
	}
}

func readerOf(p []byte) io.Reader {
	r, w := io.Pipe()
	go func() { _, _ = w.Write(p); _ = w.Close() }()
	return r
}

func TestSpawnCarriesItsToken(t *testing.T) {
	p := connect(t)
	defer p.close()
	longest := make([]byte, maxToken)
	for i := range longest {
		longest[i] = byte(i)
	}
	for _, token := range [][]byte{[]byte("a"), longest, []byte("a")} {
		sent := string(token)
		if err := p.owner.SendSpawn(token); err != nil {
			t.Fatal(err)
		}
		clear(token) // as a caller does
		if got := <-p.spawns; got != sent {
			t.Errorf("token %q arrived as %q", sent, got)
		}
	}
	for _, token := range [][]byte{nil, make([]byte, maxToken+1)} {
		if err := p.owner.SendSpawn(token); err == nil {
			t.Errorf("a token of %d bytes was sent", len(token))
		}
	}
}

func TestLongStartAndContext(t *testing.T) {
	p := connect(t)
	p.close()
	if err := p.owner.SendStart(Start{Args: []string{"a"}, Dir: "/"}); !errors.Is(err, ErrEnded) {
		t.Errorf("sending after the end: %v", err)
	}
	a, b := net.Pipe()
	got := make(chan Start, 1)
	runner := NewRunner(b, Handlers{Start: func(s Start) error { got <- s; return nil }})
	owner := NewOwner(a, Handlers{Hello: func(Hello) error { return nil }})
	ctx, cancel := context.WithCancelCause(t.Context())
	var wg sync.WaitGroup
	var err error
	wg.Go(func() { err = owner.Run(ctx) })
	if err := WriteHello(b, Hello{}); err != nil {
		t.Fatal(err)
	}
	wg.Go(func() { _ = runner.Run(t.Context()) })
	long := make([]byte, 1<<20)
	for i := range long {
		long[i] = 'y'
	}
	if err := owner.SendStart(Start{Args: []string{"a", string(long)}, Dir: "/"}); err != nil {
		t.Fatal(err)
	}
	if s := <-got; s.Args[1] != string(long) {
		t.Error("a long argument was changed")
	}
	if err := owner.SendStart(Start{Args: []string{"a", string(make([]byte, maxStart))}, Dir: "/"}); err == nil {
		t.Error("a start beyond the bound was sent")
	}
	why := errors.New("enough")
	cancel(why)
	wg.Wait()
	if !errors.Is(err, why) {
		t.Errorf("ended with %v", err)
	}
}

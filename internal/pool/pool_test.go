package pool

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/ident"
)

// boxes starts sandboxes that are a pair of sockets each: the end of one is read at the other, as a supervisor would.
type boxes struct {
	mu      sync.Mutex
	started []*box
	reaped  []ident.Run
	broken  error // what starting comes to
}

type box struct {
	name          ident.Run
	ours, theirs  *os.File
	process, hold *os.File
	done          chan struct{}
	kill          func()
}

func (b *boxes) start(_ context.Context, name ident.Run, mark *os.File) (Warm, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.broken != nil {
		return nil, b.broken
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	hold, err := unix.FcntlInt(mark.Fd(), unix.F_DUPFD_CLOEXEC, 3) // the supervisor's
	if err != nil {
		return nil, err
	}
	null, err := os.Open("/dev/null") // stands for a process
	if err != nil {
		return nil, err
	}
	w := &box{name: name, ours: os.NewFile(uintptr(fds[0]), "ours"), theirs: os.NewFile(uintptr(fds[1]), "theirs"), process: null, hold: os.NewFile(uintptr(hold), "mark"), done: make(chan struct{})}
	w.kill = sync.OnceFunc(func() { _ = unix.Shutdown(fds[1], unix.SHUT_RDWR) })
	go func() {
		_, _ = w.theirs.Read(make([]byte, 1)) // the end
		_ = w.theirs.Close()
		_ = w.hold.Close()
		close(w.done)
	}()
	b.started = append(b.started, w)
	return w, nil
}

func (b *boxes) reap(name ident.Run) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.reaped = append(b.reaped, name)
	return nil
}

func (b *boxes) set(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.broken = err
}

func (b *boxes) all() []*box {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.started)
}

func (w *box) Parts() (connection, process *os.File) { return w.ours, w.process }
func (w *box) UIDBase() uint32                       { return 0x70000000 }
func (w *box) Done() <-chan struct{}                 { return w.done }
func (w *box) Release()                              { _ = errors.Join(w.ours.Close(), w.process.Close()) }

func (w *box) End(ctx context.Context) error {
	w.Release()
	select {
	case <-w.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (w *box) lives() bool {
	select {
	case <-w.done:
		return false
	default:
		return true
	}
}

var key = Key{Level: "container"}

// open starts a pool and returns its state directory and how to end it.
func open(t *testing.T, b *boxes, size int, ttl time.Duration) (state string, end func() error) {
	t.Helper()
	state, err := os.MkdirTemp("", "pool")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(state) })
	return state, openAt(t, state, b, size, ttl)
}

func openAt(t *testing.T, state string, b *boxes, size int, ttl time.Duration) (end func() error) {
	t.Helper()
	s, err := New(Config{State: state, Key: key, Size: size, TTL: ttl, Start: b.start, Reap: b.reap, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	begun, over := make(chan error, 1), make(chan error, 1)
	go func() { over <- s.Run(ctx, func(err error) { begun <- err }) }()
	if err := <-begun; err != nil {
		t.Fatal(err)
	}
	end = sync.OnceValue(func() error {
		cancel()
		return <-over
	})
	t.Cleanup(func() { _ = end() })
	return end
}

// until waits for something.
func until(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not so after 10 s: %s", what)
		}
	}
}

func ready(t *testing.T, state string, n int) {
	t.Helper()
	until(t, "sandboxes are ready", func() bool {
		s, err := Ask(t.Context(), state, key)
		return err == nil && s.Ready == n
	})
}

// TestClaims takes more sandboxes at once than there are: each is given once, lives on when the pool has ended, and ends with its claimer's connection.
func TestClaims(t *testing.T) {
	var b boxes
	state, end := open(t, &b, 4, time.Hour)
	ready(t, state, 4)
	if all := b.all(); len(all) != 4 {
		t.Fatalf("%d were started, want 4", len(all))
	}
	var mu sync.Mutex
	var got []*Claimed
	var all sync.WaitGroup
	for range 12 {
		all.Go(func() {
			c, err := Take(context.Background(), state, key)
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				got = append(got, c)
			}
		})
	}
	all.Wait()
	if len(got) < 4 {
		t.Fatalf("%d were given", len(got))
	}
	names := map[ident.Run]bool{}
	for _, c := range got {
		if names[c.Name] || c.UIDBase != 0x70000000 {
			t.Errorf("given twice, or not as it was started: %+v", c)
		}
		names[c.Name] = true
	}
	if err := end(); err != nil {
		t.Fatal(err)
	}
	for _, w := range b.all() {
		if w.lives() != names[w.name] {
			t.Errorf("%s: lives %v, was given away %v", w.name, w.lives(), names[w.name])
		}
	}
	for _, c := range got {
		if _, err := os.Stat(Mark(state, c.Name)); err != nil {
			t.Errorf("the mark of what was given away is its claimer's: %v", err)
		}
		_ = c.Connection.Close() // the end
		_ = c.Process.Close()
	}
	for _, w := range b.all() {
		<-w.done
	}
	if err := Sweep(state, b.reap); err != nil || len(b.reaped) != len(got) {
		t.Errorf("%d of %d were cleaned up after: %v", len(b.reaped), len(got), err)
	}
	left, err := filepath.Glob(dir(state) + "/*")
	marks, err2 := filepath.Glob(markDir(state) + "/*")
	if err != nil || err2 != nil || len(left) != 1 || len(marks) != 0 {
		t.Errorf("left are %q and %q", left, marks)
	}
}

// TestReplaced kills one that waits and lets one grow old: another takes its place, and none is ever too many.
func TestReplaced(t *testing.T) {
	var b boxes
	state, _ := open(t, &b, 1, time.Second)
	ready(t, state, 1)
	first := b.all()[0]
	first.kill()
	until(t, "the dead one was cleaned up after", func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return slices.Contains(b.reaped, first.name)
	})
	until(t, "another was started", func() bool { return len(b.all()) == 2 })
	ready(t, state, 1)
	second := b.all()[1]
	until(t, "the old one ended", func() bool { return !second.lives() })
	until(t, "a third was started", func() bool { return len(b.all()) >= 3 })
	alive := 0
	for _, w := range b.all() {
		if w.lives() {
			alive++
		}
	}
	if alive > 1 {
		t.Errorf("%d live, the pool's size is 1", alive)
	}
	if s, err := Ask(t.Context(), state, key); err != nil || s.Failed != 1 {
		t.Errorf("%+v, %v: one has died", s, err)
	}
}

// TestTrouble cannot start any: it tries again with pauses, says why, and answers claims with none.
func TestTrouble(t *testing.T) {
	var b boxes
	b.set(fault.New(fault.Unsupported, "no such level here"))
	state, _ := open(t, &b, 2, time.Hour)
	until(t, "it says what is wrong", func() bool {
		s, err := Ask(t.Context(), state, key)
		return err == nil && s.Failed > 0 && s.Trouble == "no such level here"
	})
	if c, err := Take(t.Context(), state, key); err == nil {
		t.Fatalf("given: %+v", c)
	}
	time.Sleep(300 * time.Millisecond)
	if s, _ := Ask(t.Context(), state, key); s.Failed > 2 || s.Missed != 1 {
		t.Errorf("after 300 ms: %+v; want a pause of a second and more between attempts", s)
	}
	b.set(nil)
	ready(t, state, 2)
}

// TestStrangers claims from other surroundings, for another key, in words that are none, and as another user.
func TestStrangers(t *testing.T) {
	var b boxes
	state, _ := open(t, &b, 1, time.Hour)
	ready(t, state, 1)
	answer, got, err := ask(t.Context(), state, key, request{Claim: &claim{Surroundings: "elsewhere"}})
	if err != nil || answer.Claimed != nil || len(got) != 0 || answer.None == "" {
		t.Errorf("from elsewhere: %+v, %d files, %v", answer, len(got), err)
	}
	for _, other := range []Key{{Level: "gvisor"}, {Level: "container", RootFS: "/srv/root"}} {
		if c, err := Take(t.Context(), state, other); err == nil {
			t.Errorf("%+v: given %+v", other, c)
		}
	}
	for _, text := range []string{"", "x", `{"claim":{"surroundings":"x","more":1}}`, string(make([]byte, maxMessage+10))} {
		if n := raw(t, state, text); n != 0 {
			t.Errorf("%.40q was answered with %d bytes", text, n)
		}
	}
	if n := raw(t, state, `{}`); n == 0 {
		t.Error("an empty request was not answered")
	}
	if s, err := Ask(t.Context(), state, key); err != nil || s.Ready != 1 || s.Claimed != 0 {
		t.Errorf("%+v, %v", s, err)
	}
}

// raw sends a text and returns the length of the answer.
func raw(t *testing.T, state, text string) int {
	t.Helper()
	var conn net.Conn
	err := at(state, key, func(name string) (err error) {
		conn, err = net.Dial("unixpacket", name)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, _ = conn.Write([]byte(text)) // whether it is taken is what is tried
	_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
	n, _ := conn.Read(make([]byte, maxMessage))
	return n
}

// TestOnePool starts a second pool beside the first, and one in the place of one that was killed.
func TestOnePool(t *testing.T) {
	var b boxes
	state, end := open(t, &b, 1, time.Hour)
	ready(t, state, 1)
	s, err := New(Config{State: state, Key: key, Size: 1, TTL: time.Hour, Start: b.start, Reap: b.reap, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Run(t.Context(), func(error) {}); fault.KindOf(err) != fault.Conflict {
		t.Errorf("a second pool: %v", err)
	}
	if keys, err := Keys(state); err != nil || len(keys) != 1 || keys[0] != key {
		t.Errorf("keys: %v, %v", keys, err)
	}
	if err := Stop(t.Context(), state, key); err != nil {
		t.Fatal(err)
	}
	if err := end(); err != nil {
		t.Error(err)
	}
	if w := b.all()[0]; w.lives() {
		t.Error("what nobody claimed outlives the pool")
	}
	if _, err := Ask(t.Context(), state, key); fault.KindOf(err) != fault.NotFound {
		t.Errorf("after the end: %v", err)
	}
	for _, name := range []string{socketPath(state, key), lockPath(state, key)} { // as one that was killed leaves them
		if err := os.WriteFile(name, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	openAt(t, state, &b, 1, time.Hour)
	ready(t, state, 1)
}

// TestRemoved takes the pool's files away under it: with the next sandbox that it would start it ends.
func TestRemoved(t *testing.T) {
	var b boxes
	state, end := open(t, &b, 1, time.Hour)
	ready(t, state, 1)
	if err := os.RemoveAll(dir(state)); err != nil {
		t.Fatal(err)
	}
	b.all()[0].kill()
	time.Sleep(2 * time.Second) // its pause after one has died
	_ = end()                   // it has ended, or does now: what is left of it is looked at
	if n := len(b.all()); n != 1 {
		t.Errorf("%d were started", n)
	}
}

func TestNew(t *testing.T) {
	for _, c := range []struct {
		size int
		ttl  time.Duration
		ok   bool
	}{{1, time.Second, true}, {MaxSize, time.Hour, true}, {0, time.Hour, false}, {-1, time.Hour, false}, {MaxSize + 1, time.Hour, false}, {1, time.Millisecond, false}} {
		_, err := New(Config{Size: c.size, TTL: c.ttl})
		if (err == nil) != c.ok || err != nil && fault.HintOf(err) == "" {
			t.Errorf("size %d, ttl %v: %v", c.size, c.ttl, err)
		}
	}
}

// TestClosedDirectory refuses a directory that others can enter.
func TestClosedDirectory(t *testing.T) {
	state := t.TempDir()
	if err := os.Mkdir(dir(state), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := makeDir(state); fault.KindOf(err) != fault.Denied {
		t.Errorf("%v", err)
	}
}

// TestSurroundings changes something that a sandbox would inherit.
func TestSurroundings(t *testing.T) {
	before, err := Surroundings()
	if err != nil {
		t.Fatal(err)
	}
	if again, _ := Surroundings(); again != before {
		t.Error("two looks at the same differ")
	}
	program := filepath.Join(t.TempDir(), "program")
	for i, content := range []string{"", "old", "newer"} { // missing, installed, replaced
		with, err := Surroundings(program)
		if err != nil || with == before {
			t.Errorf("%d: with a program more: %v", i, err)
		}
		if err := os.WriteFile(program, []byte(content+"."), 0o700); err != nil {
			t.Fatal(err)
		}
		if after, _ := Surroundings(program); after == with {
			t.Errorf("%d: another program was not noticed", i)
		}
	}
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &was); err != nil {
		t.Fatal(err)
	}
	changed := unix.Rlimit{Cur: 4711, Max: was.Max}
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &changed); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Setrlimit(unix.RLIMIT_CORE, &was) }() // what it was is always allowed
	if after, _ := Surroundings(); after == before {
		t.Error("another limit was not noticed")
	}
}

package pool

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/ident"
)

// Warm is a sandbox that waits. Its methods are called by one goroutine at a time.
type Warm interface {
	// Parts are the connection and the process that a claimer gets. They stay the sandbox's own, to be let go of by Release or End.
	Parts() (connection, process *os.File)
	UIDBase() uint32
	// Done is closed when its supervisor has left.
	Done() <-chan struct{}
	// End ends it and waits until nothing of it is left.
	End(ctx context.Context) error
	// Release lets go of it: it is somebody else's now.
	Release()
}

// Config is one pool.
type Config struct {
	State string
	Key   Key
	Size  int
	TTL   time.Duration
	// Programs are those by which sandboxes are made, besides this one.
	Programs []string
	// Start starts a sandbox. The mark, a locked file, is to be held open by its supervisor.
	Start func(ctx context.Context, name ident.Run, mark *os.File) (Warm, error)
	// Reap removes what a sandbox left whose supervisor died.
	Reap func(name ident.Run) error
	Log  *slog.Logger
}

// Server is a pool while it runs. Its methods are safe for concurrent use.
type Server struct {
	cfg          Config
	surroundings string
	stop         context.CancelFunc
	wake         chan struct{} // something about the number of ready sandboxes has changed

	mu     sync.Mutex
	ready  []*waiting // oldest first
	status Status
	row    int       // failures in a row
	last   time.Time // of the last claim
}

// waiting is a sandbox in the pool.
type waiting struct {
	Warm
	name  ident.Run
	mark  *os.File
	since time.Time
	gone  chan struct{} // closed when it is the pool's no more
}

// quiet is how long after a claim nothing is started, so that the claimer has the machine to itself while it starts its command.
const quiet = 150 * time.Millisecond

// New checks a configuration.
func New(cfg Config) (*Server, error) {
	if cfg.Size < 1 || cfg.Size > MaxSize {
		return nil, fault.New(fault.Invalid, "a pool of %d sandboxes", cfg.Size).WithHint("write --size with a number from 1 to %d", MaxSize)
	}
	if cfg.TTL < time.Second {
		return nil, fault.New(fault.Invalid, "sandboxes that wait for %v", cfg.TTL).WithHint("write --ttl with at least 1s, such as 10m")
	}
	surroundings, err := Surroundings(cfg.Programs...)
	if err != nil {
		return nil, err
	}
	return &Server{
		cfg: cfg, surroundings: surroundings, wake: make(chan struct{}, 1),
		status: Status{Key: cfg.Key, PID: os.Getpid(), Size: cfg.Size, TTL: cfg.TTL, Since: time.Now(), Surroundings: surroundings},
	}, nil
}

// Run keeps the pool until ctx ends or somebody tells it to. begun is called once, when it listens or cannot. When it returns, no sandbox is left that nobody claimed.
func (s *Server) Run(ctx context.Context, begun func(error)) error {
	if err := makeDir(s.cfg.State); err != nil {
		begun(err)
		return err
	}
	lock, err := hold(lockPath(s.cfg.State, s.cfg.Key))
	if err == nil && lock == nil {
		err = fault.New(fault.Conflict, "there is a pool of level %s already", s.cfg.Key.Level).WithHint("see it with: cofferdam pool status; end it with: cofferdam pool stop")
	}
	if err != nil {
		begun(err)
		return err
	}
	defer func() {
		_ = os.Remove(lockPath(s.cfg.State, s.cfg.Key)) // Stop removes it else
		_ = lock.Close()
	}()
	listener, err := s.listen()
	if err == nil {
		err = s.sign(lock)
	}
	begun(err)
	if err != nil {
		return err
	}
	ctx, s.stop = context.WithCancel(ctx)
	defer s.stop()
	var parts sync.WaitGroup
	parts.Go(func() { s.serve(ctx, listener) })
	s.fill(ctx, lock)
	s.stop()
	_ = os.Remove(socketPath(s.cfg.State, s.cfg.Key)) // before it is closed, so that nobody finds it deaf
	_ = listener.Close()                              // it may be closed already
	parts.Wait()
	return errors.Join(s.empty(), s.sweep())
}

func (s *Server) listen() (*net.UnixListener, error) {
	_ = os.Remove(socketPath(s.cfg.State, s.cfg.Key)) // of one that was killed: we have its lock
	var l *net.UnixListener
	err := at(s.cfg.State, s.cfg.Key, func(name string) (err error) {
		l, err = net.ListenUnix("unixpacket", &net.UnixAddr{Name: name, Net: "unixpacket"})
		return err
	})
	if err != nil {
		return nil, fault.New(fault.Unavailable, "cannot listen at %s", socketPath(s.cfg.State, s.cfg.Key)).Because(err)
	}
	l.SetUnlinkOnClose(false) // its name here is one by a descriptor
	return l, nil
}

// sign writes into the lock's file whose it is, for Keys.
func (s *Server) sign(lock *os.File) error {
	data, err := json.Marshal(s.cfg.Key)
	if err == nil {
		_, err = lock.WriteAt(data, 0)
	}
	return err
}

func (s *Server) sweep() error { return Sweep(s.cfg.State, s.cfg.Reap) }

// fill keeps the pool full until ctx ends, or the pool's lock is not in its place any more. One sandbox is started at a time.
func (s *Server) fill(ctx context.Context, lock *os.File) {
	var watched sync.WaitGroup
	defer watched.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // before the wait: those who watch end with it
	for ctx.Err() == nil {
		if wait := s.pause(); wait > 0 {
			select {
			case <-ctx.Done():
			case <-s.wake:
			case <-time.After(wait):
			}
			continue
		}
		if !stands(lock, lockPath(s.cfg.State, s.cfg.Key)) {
			s.cfg.Log.Error("the pool's files were removed, so that nobody can reach it")
			return
		}
		w, err := s.start(ctx)
		if ctx.Err() != nil && err != nil {
			return
		}
		if err != nil {
			s.failed(err)
			continue
		}
		s.mu.Lock()
		s.ready = append(s.ready, w)
		s.mu.Unlock()
		watched.Go(func() { s.watch(ctx, w) })
	}
}

// forever is a wait that something else ends.
const forever = time.Hour

// pause says how long nothing is to be started from now; 0 means: now.
func (s *Server) pause() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.ready) >= s.cfg.Size {
		return forever
	}
	wait := time.Until(s.last.Add(quiet))
	if s.row > 0 { // a second, two, four, up to a minute
		wait = max(wait, time.Until(s.last.Add(min(time.Second<<min(s.row-1, 6), time.Minute))))
	}
	return wait
}

func (s *Server) start(ctx context.Context) (*waiting, error) {
	if err := s.sweep(); err != nil {
		s.cfg.Log.Warn("cannot clean up", "error", err)
	}
	name := ident.NewRun()
	mark, err := hold(Mark(s.cfg.State, name))
	if err != nil || mark == nil {
		return nil, errors.Join(errors.New("cannot mark a sandbox"), err)
	}
	warm, err := s.cfg.Start(ctx, name, mark)
	if err != nil {
		_ = mark.Close() // the next look finds it, with what there is left
		return nil, err
	}
	return &waiting{Warm: warm, name: name, mark: mark, since: time.Now(), gone: make(chan struct{})}, nil
}

// failed notes a sandbox that did not start, or died.
func (s *Server) failed(err error) {
	s.mu.Lock()
	s.status.Failed++
	s.status.Trouble = fault.Public(err)
	s.row++
	s.last = time.Now()
	s.mu.Unlock()
	s.cfg.Log.Warn("a sandbox is lost", "error", err)
}

// watch stays with a waiting sandbox until it is not the pool's any more, and takes it out when it is dead or too old.
func (s *Server) watch(ctx context.Context, w *waiting) {
	old := time.NewTimer(s.cfg.TTL)
	defer old.Stop()
	select {
	case <-ctx.Done(): // empty ends it
	case <-w.gone:
	case <-w.Done():
		if s.remove(w) {
			w.Release()
			_ = w.mark.Close() // the next look cleans up after it
			s.failed(errors.New("a waiting sandbox died"))
		}
	case <-old.C:
		if s.remove(w) {
			if err := s.end(w); err != nil {
				s.cfg.Log.Warn("cannot end an old sandbox", "error", err)
			}
		}
	}
	s.nudge()
}

// remove takes a sandbox out of the pool, and says whether it was there.
func (s *Server) remove(w *waiting) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, one := range s.ready {
		if one == w {
			s.ready = append(s.ready[:i:i], s.ready[i+1:]...)
			close(w.gone)
			return true
		}
	}
	return false
}

// nudge lets fill look again.
func (s *Server) nudge() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// endPatience bounds the end of one sandbox that nobody claimed.
const endPatience = 15 * time.Second

func (s *Server) end(w *waiting) error {
	ctx, cancel := context.WithTimeout(context.Background(), endPatience)
	defer cancel()
	err := w.End(ctx)
	if err == nil {
		err = os.Remove(Mark(s.cfg.State, w.name))
	}
	return errors.Join(err, w.mark.Close())
}

// empty ends all that nobody claimed, side by side.
func (s *Server) empty() error {
	s.mu.Lock()
	left := s.ready
	s.ready = nil
	s.mu.Unlock()
	problems := make([]error, len(left))
	var ends sync.WaitGroup
	for i, w := range left {
		ends.Go(func() { problems[i] = s.end(w) })
	}
	ends.Wait()
	return errors.Join(problems...)
}

// mostTalks bounds how many exchanges there are at a time; others wait in the socket's queue.
const mostTalks = 16

// serve answers until ctx ends.
func (s *Server) serve(ctx context.Context, l *net.UnixListener) {
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	var talks sync.WaitGroup
	defer talks.Wait()
	slots := make(chan struct{}, mostTalks)
	for {
		conn, err := l.AcceptUnix()
		if err != nil {
			if ctx.Err() == nil {
				s.cfg.Log.Error("the socket is lost", "error", err)
				s.stop() // a pool that nobody can reach is none
			}
			return
		}
		slots <- struct{}{}
		talks.Go(func() {
			defer func() { <-slots }()
			defer conn.Close()
			if err := s.answer(conn); err != nil {
				s.cfg.Log.Warn("an exchange went wrong", "error", err)
			}
		})
	}
}

// answer is one exchange.
func (s *Server) answer(conn *net.UnixConn) error {
	if err := conn.SetDeadline(time.Now().Add(talkPatience)); err != nil {
		return err
	}
	if err := sameUser(conn); err != nil {
		return err
	}
	var r request
	got, err := receive(conn, &r)
	closeAll(got) // none is expected
	switch {
	case err != nil:
		return err
	case r.Claim != nil:
		return s.give(conn, *r.Claim)
	case r.Stop:
		defer s.stop()
		return send(conn, reply{}, nil)
	case r.Status:
		s.mu.Lock()
		status := s.status
		status.Ready = len(s.ready)
		s.mu.Unlock()
		return send(conn, reply{Status: &status}, nil)
	}
	return send(conn, reply{None: "nothing was asked"}, nil)
}

// sameUser refuses everybody else, whatever rights he has: what waits was started with this user's.
func sameUser(conn *net.UnixConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var peer *unix.Ucred
	var inner error
	if err := raw.Control(func(fd uintptr) { peer, inner = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return err
	}
	if inner != nil {
		return fmt.Errorf("ask who calls: %w", inner)
	}
	if int(peer.Uid) != os.Geteuid() {
		return fault.New(fault.Denied, "user %d asked, this is the pool of user %d", peer.Uid, os.Geteuid())
	}
	return nil
}

// give hands the oldest sandbox to a claimer, or says why not.
func (s *Server) give(conn *net.UnixConn, c claim) error {
	if c.Surroundings != s.surroundings {
		s.missed()
		return send(conn, reply{None: "this process's limits, control groups, rights, namespaces or programs are not those of the pool"}, nil)
	}
	w := s.take()
	if w == nil {
		s.missed()
		return send(conn, reply{None: "it is empty"}, nil)
	}
	defer s.nudge()
	defer w.mark.Close()
	defer w.Release()
	connection, process := w.Parts()
	fds := make([]int, 0, files)
	for _, f := range []*os.File{connection, process} { // File.Fd would take the connection out of non-blocking mode, for the claimer too
		raw, err := f.SyscallConn()
		if err == nil {
			err = raw.Control(func(fd uintptr) { fds = append(fds, int(fd)) })
		}
		if err != nil {
			return err
		}
	}
	// If the claimer is gone, or dies before it has read this, the kernel closes the last hold of the connection, which ends the sandbox.
	return send(conn, reply{Claimed: &claimed{Name: w.name, UIDBase: w.UIDBase()}}, unix.UnixRights(fds...))
}

func (s *Server) missed() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.status.Missed++
}

// take takes the oldest sandbox that lives out of the pool; nil if there is none.
func (s *Server) take() *waiting {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, w := range s.ready {
		select {
		case <-w.Done():
			continue // watch is about to find it
		default:
		}
		s.ready = append(s.ready[:i:i], s.ready[i+1:]...)
		close(w.gone)
		s.status.Claimed++
		s.row, s.last = 0, time.Now()
		return w
	}
	return nil
}

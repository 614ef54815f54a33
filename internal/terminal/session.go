// Package terminal (CONTROL) joins the command in a sandbox to its user: bytes both ways, keyboard, window size, signals, notices and questions.
//
// It opens no file: the process that uses it is confined before the command starts. The runner at the other end counts as hostile;
// package frame bounds what it can make this side hold.
package terminal

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/frame"
)

const helloWithin = 10 * time.Second

// Options say what to run and for whom.
type Options struct {
	// Token is what the runner must prove; Attach uses it up.
	Token *Token
	// Start is what to run. With Start.TTY, Stdin must be a terminal; its size is used where Start names none.
	Start frame.Start
	// Stdin is the command's input; nil gives it none. It is read only while the command takes input.
	Stdin *os.File
	// Stdout and Stderr take the command's output; nil discards it. With Start.TTY all output goes to Stdout, and Stderr takes only notices.
	// A writer that is not an *os.File must not block for long: nothing can interrupt it.
	Stdout, Stderr io.Writer
	// TTYFile is the user's terminal for questions, opened for reading and writing; nil if there is none. Needed where Stdin is no terminal.
	TTYFile *os.File
	// Signals, if not nil, brings the signals of a caller who catches them itself, before and after the session as well: the command gets its INT, TERM,
	// HUP, QUIT, USR1 and USR2, also those that waited in it before Attach; others are dropped. Run takes from it until it has ended the command's output,
	// Attach takes nothing, and neither changes how those signals are caught. Whoever was started to ignore a signal should not put it in.
	// With nil, Run catches these itself and puts back what was before. WINCH, TSTP and CONT it always catches itself.
	Signals <-chan os.Signal
	// Kill is called for the second interrupt within two seconds; it should end the sandbox. It must not wait for Run. May be nil.
	Kill func()
	// Take, if not nil, is told how many bytes of output have come and says how many of them are passed on; with fewer, the output ends there. It is called from several
	// goroutines at once.
	Take func(n int) int
}

// Session is one attached command. Run must be called once, or Close. The other methods are safe for concurrent use, from Attach on and after the end.
type Session struct {
	opts  Options
	link  *frame.Link
	facts frame.Facts
	over  chan struct{} // the link has ended

	ran   atomic.Bool
	abort *waker // kicked, never drained: stop waiting for the user's files
	last  *waker // likewise, for the little that is written after that
	input *input
	user  *userTTY // the terminal that is put into raw mode; nil without Start.TTY
	out   *outlet
	err   *outlet
	// shared says that notices come on the screen of a command that has a terminal, and out's gate is err's.
	shared bool
	notes  notices
	ask    asker
	owners owners

	mu       sync.Mutex
	exit     *frame.Exit
	report   string // the runner's last words
	open     int    // output streams that have not ended
	complete chan struct{}
	lost     error // output that could not be written
}

// Attach takes conn for the connection of a runner: it waits for its Hello, at most ten seconds, checks the token, and sends Start.
// It owns conn from then on and closes it on error. A wrong token is fault.Unauthenticated and leaves the token usable.
func Attach(ctx context.Context, conn io.ReadWriteCloser, opts Options) (*Session, error) {
	s, err := prepare(&opts)
	if err != nil {
		_ = conn.Close() // nothing was said on it
		return nil, err
	}
	greeted := make(chan error, 1)
	s.link = frame.NewOwner(conn, s.handlers(greeted))
	go func() { // waited for by Run and Close, through over
		_ = s.link.Run(context.WithoutCancel(ctx)) // asked for with Err
		close(s.over)
		s.ask.wake.kick()
	}()
	timer := time.NewTimer(helloWithin)
	defer timer.Stop()
	select {
	case err = <-greeted:
	case <-s.over:
		err = fault.New(fault.Unavailable, "the sandbox's runner did not introduce itself").Because(s.link.Err())
		select {
		case err = <-greeted:
		default:
		}
	case <-timer.C:
		err = fault.New(fault.Unavailable, "the sandbox's runner did not introduce itself within %v", helloWithin)
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	if err == nil {
		if err = s.link.SendStart(opts.Start); err != nil && s.link.Err() == nil {
			err = fault.New(fault.Invalid, "cannot run this: %v", err)
		}
	}
	if err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// prepare checks the options and makes everything that needs a file descriptor.
func prepare(opts *Options) (*Session, error) {
	if opts.Stdin == nil {
		opts.Start.NoStdin = true
	}
	if err := opts.Start.Check(); err != nil {
		return nil, fault.New(fault.Invalid, "cannot run this: %v", err)
	}
	s := &Session{over: make(chan struct{}), complete: make(chan struct{}), open: 2}
	var err error
	if err = s.files(opts); err != nil {
		s.release()
		return nil, err
	}
	if opts.Start.TTY && opts.Start.Rows == 0 {
		opts.Start.Rows, opts.Start.Cols = s.user.size()
	}
	s.opts = *opts
	return s, nil
}

// files duplicates the user's files, so that their lifetime and mode are the session's own affair.
func (s *Session) files(opts *Options) (err error) {
	if s.abort, err = newWaker(); err != nil {
		return err
	}
	if s.last, err = newWaker(); err != nil {
		return err
	}
	if s.input, err = newInput(opts.Stdin); err != nil {
		return err
	}
	if s.out, err = newOutlet(opts.Stdout); err != nil {
		return err
	}
	if s.err, err = newOutlet(opts.Stderr); err != nil {
		return err
	}
	if opts.Start.TTY {
		if s.user, err = newUserTTY(s.input.fd); err != nil {
			return fault.New(fault.Invalid, "standard input is not a terminal").WithHint("leave out --tty")
		}
		if s.err.terminal {
			s.err.gate, s.shared = s.out.gate, true
		}
	}
	s.notes.poke = make(chan struct{}, 1)
	return s.ask.open(s, opts)
}

// handlers are what the session does with the runner's messages.
func (s *Session) handlers(greeted chan<- error) frame.Handlers {
	return frame.Handlers{
		Hello: func(h frame.Hello) error {
			var err error
			if s.facts = h.Facts; !s.opts.Token.take(h.Token) {
				err = fault.New(fault.Unauthenticated, "a process that is not the sandbox's runner connected to its control address")
			}
			clear(h.Token)
			greeted <- err
			return err
		},
		Started: func(int) error { return nil },
		Owner:   s.owners.answered,
		Exit: func(e frame.Exit) error {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.exit = &e
			s.completeLocked()
			return nil
		},
		Error: func(text string) error {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.report = text
			return nil
		},
		Ended: func(frame.Stream) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.open--
			s.completeLocked()
		},
		Room: func(frame.Stream) { s.input.wake.kick() },
	}
}

// completeLocked notes that the runner has nothing more to say.
func (s *Session) completeLocked() {
	if s.exit == nil || s.open > 0 {
		return
	}
	select {
	case <-s.complete:
	default:
		close(s.complete)
	}
}

// Facts are what the runner said about itself.
func (s *Session) Facts() frame.Facts { return s.facts }

// Run joins the command to the user until it has ended and its output is written. Without an error Exit is the command's whole story.
// With one, Exit is what is known: zero if the sandbox was lost before the command ended. When ctx ends, Run returns at once with its cause;
// ending the sandbox is the caller's part. However it returns, also by panic, the user's terminal is as it was.
func (s *Session) Run(ctx context.Context) (frame.Exit, error) {
	if !s.ran.CompareAndSwap(false, true) {
		return frame.Exit{}, errors.New("session was run or closed before")
	}
	defer s.finish()
	if s.user != nil {
		if err := s.user.raw(); err != nil {
			return frame.Exit{}, fmt.Errorf("prepare the terminal: %w", err)
		}
		defer s.user.restore()
	}
	signals := s.watchSignals()
	defer signals.stop()
	stop := context.AfterFunc(ctx, s.abort.kick)
	defer stop()

	var pumps, helpers sync.WaitGroup
	s.guard(&pumps, func() { s.pump(frame.Stdout, s.out) })
	s.guard(&pumps, func() { s.pump(frame.Stderr, s.err) })
	s.guard(&helpers, func() { s.input.run(s.link.Sender(frame.Stdin)) })
	s.guard(&helpers, func() { signals.run(s) })
	s.guard(&helpers, s.notifier)
	select {
	case <-s.complete:
	case <-s.over:
	case <-ctx.Done():
	}
	s.link.End() // all that matters has arrived and waits in the receivers
	pumps.Wait()
	s.input.end()
	signals.stop()
	s.notes.end()
	helpers.Wait()
	s.settleScreen()
	return s.result(ctx)
}

// result says how it ended.
func (s *Session) result(ctx context.Context) (frame.Exit, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var exit frame.Exit
	if s.exit != nil {
		exit = *s.exit
	}
	why := s.link.Err()
	select {
	case <-s.complete:
		if ctx.Err() != nil && s.lost != nil {
			return exit, context.Cause(ctx)
		}
		return exit, s.lost
	default:
	}
	switch {
	case ctx.Err() != nil:
		return exit, context.Cause(ctx)
	case s.report != "":
		return exit, fault.New(fault.Unavailable, "the sandbox's runner gave up: %s", s.report)
	case errors.Is(why, frame.ErrProtocol):
		return exit, fault.New(fault.Unavailable, "the sandbox's runner broke its protocol and was cut off").Because(why)
	case s.exit != nil:
		return exit, fault.New(fault.Unavailable, "the sandbox ended before all output of the command arrived").Because(why)
	}
	return exit, fault.New(fault.Unavailable, "the sandbox ended before the command did").
		WithHint("a memory or process limit may have been reached; see cofferdam audit").Because(why)
}

// Close ends a session that is not to be run. After or during Run it does nothing.
func (s *Session) Close() {
	if s.ran.CompareAndSwap(false, true) {
		s.finish()
	}
}

// Restore puts the user's terminal back as it was. It is for a caller that is about to end the process without waiting for Run, such as on a panic
// elsewhere. It may be called at any time, any number of times.
func (s *Session) Restore() {
	if s.user != nil {
		s.user.restore()
	}
}

func (s *Session) finish() {
	s.link.End()
	<-s.over
	s.ask.turn <- struct{}{} // a question on display ends now, and none comes after it
	s.Restore()
	s.tell(s.notes.close())
	s.release()
}

// release closes the session's own descriptors, their users first.
func (s *Session) release() {
	for _, c := range []interface{ close() }{s.user, &s.ask, s.input, s.out, s.err, s.abort, s.last} {
		c.close()
	}
}

// guard runs f with the promise that a panic in it leaves a usable terminal behind.
func (s *Session) guard(wg *sync.WaitGroup, f func()) {
	wg.Go(func() {
		defer func() {
			if r := recover(); r != nil {
				s.Restore()
				panic(r)
			}
		}()
		f()
	})
}

// Owner asks the runner which process inside owns a socket. It returns the zero Owner when ctx ends first, the session is over, or too many
// questions wait. The answer comes from inside the sandbox: a help for people, no evidence. Its Name is inert.
func (s *Session) Owner(ctx context.Context, q frame.Query) frame.Owner {
	return s.owners.ask(ctx, s.link, s.over, q)
}

// Ping waits until the runner answers.
func (s *Session) Ping(ctx context.Context) error { return s.link.Ping(ctx) }

package keeper

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/frame"
)

// startWithin is how long a command may take to start: milliseconds, on a machine under heavy load seconds.
const startWithin = 30 * time.Second

// Process is a command that was started besides others. Its methods are safe for concurrent use.
type Process struct {
	link           *frame.Link
	stdin          *input
	stdout, stderr *output
	over           chan struct{} // the link has ended
	begun          chan struct{} // it runs, or cannot be started

	mu       sync.Mutex
	exit     *frame.Exit
	open     int // output streams that have not ended
	report   string
	complete chan struct{}
}

// StartProcess has the runner at the other end of a connection start a command, and returns when it runs, or cannot be started: then Wait says why.
// It owns the connection. The runner counts as hostile; package frame bounds what it can make this side hold.
func StartProcess(ctx context.Context, conn io.ReadWriteCloser, s frame.Start) (*Process, error) {
	if err := s.Check(); err != nil {
		_ = conn.Close() // nothing was said on it
		return nil, fault.New(fault.Invalid, "cannot run this: %v", err)
	}
	p := &Process{over: make(chan struct{}), begun: make(chan struct{}), complete: make(chan struct{}), open: 2}
	var begin sync.Once
	begun := func() { begin.Do(func() { close(p.begun) }) }
	greeted := make(chan struct{})
	p.link = frame.NewOwner(conn, frame.Handlers{
		Hello:   func(frame.Hello) error { close(greeted); return nil }, // the link takes one
		Started: func(int) error { begun(); return nil },
		Exit: func(e frame.Exit) error {
			p.note(func() { p.exit = &e })
			begun()
			return nil
		},
		Error: func(text string) error { p.note(func() { p.report = text }); return nil },
		Ended: func(frame.Stream) { p.note(func() { p.open-- }) },
	})
	p.stdin = &input{to: p.link.Sender(frame.Stdin)}
	p.stdout, p.stderr = newOutput(p.link.Receiver(frame.Stdout)), newOutput(p.link.Receiver(frame.Stderr))
	go func() { // ends with the link, which Close and Wait end
		_ = p.link.Run(context.WithoutCancel(ctx)) // asked for with Err
		close(p.over)
	}()
	if err := p.await(ctx, greeted, s); err != nil {
		return nil, err
	}
	return p, nil
}

// await sends what to run once the runner has introduced itself, and waits until it runs.
func (p *Process) await(ctx context.Context, greeted <-chan struct{}, s frame.Start) error {
	timer := time.NewTimer(startWithin)
	defer timer.Stop()
	var err error
	for _, step := range []<-chan struct{}{greeted, p.begun} {
		select {
		case <-step:
		case <-p.over:
			select {
			case <-step:
			default:
				err = p.lost()
			}
		case <-ctx.Done():
			err = context.Cause(ctx)
		case <-timer.C:
			err = fault.New(fault.Unavailable, "the sandbox's runner did not start the command within %v", startWithin)
		}
		if step == greeted && err == nil && p.link.Err() == nil {
			err = p.link.SendStart(s)
		}
		if err != nil {
			return errors.Join(err, p.Close())
		}
	}
	return nil
}

// note changes what is known, and finds out whether that is all.
func (p *Process) note(change func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change()
	if p.exit == nil || p.open > 0 {
		return
	}
	select {
	case <-p.complete:
	default:
		close(p.complete)
	}
}

// lost says why the link has ended before the command did.
func (p *Process) lost() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch why := p.link.Err(); {
	case p.report != "":
		return fault.New(fault.Unavailable, "the sandbox's runner gave up: %s", p.report)
	case errors.Is(why, frame.ErrProtocol):
		return fault.New(fault.Unavailable, "the sandbox's runner broke its protocol and was cut off").Because(why)
	default:
		return fault.New(fault.Unavailable, "the sandbox ended before the command did").Because(why)
	}
}

// Stdin writes to the command; Close ends its input.
func (p *Process) Stdin() io.WriteCloser { return p.stdin }

// Stdout and Stderr read what it says, until its end. Both must be read or closed.
func (p *Process) Stdout() io.ReadCloser { return p.stdout }

// Stderr is like Stdout. With a terminal it ends at once.
func (p *Process) Stderr() io.ReadCloser { return p.stderr }

// Signal sends a signal.
func (p *Process) Signal(n int) error {
	err := p.link.SendSignal(n)
	if err != nil && p.link.Err() == nil {
		return fault.New(fault.Invalid, "%v", err)
	}
	return err
}

// Resize sets the terminal's size.
func (p *Process) Resize(rows, cols uint16) error { return p.link.SendResize(rows, cols) }

// Wait returns how it ended, once all output was read. An error means that the sandbox is gone, or that Close came first.
func (p *Process) Wait() (frame.Exit, error) {
	select {
	case <-p.complete:
	case <-p.over:
		select {
		case <-p.complete:
		default:
			return frame.Exit{}, p.lost()
		}
	}
	p.link.End() // all that matters has arrived and waits to be read
	<-p.stdout.done
	<-p.stderr.done
	<-p.over
	p.mu.Lock()
	defer p.mu.Unlock()
	return *p.exit, nil
}

// Close ends the command if it still runs, and lets go.
func (p *Process) Close() error {
	p.link.End()
	<-p.over
	p.stdout.finish()
	p.stderr.finish()
	return nil
}

// input is the command's standard input.
type input struct{ to *frame.Sender }

func (i *input) Write(b []byte) (int, error) { return i.to.Write(b) }

// Close ends the input after what was written.
func (i *input) Close() error {
	i.to.Close()
	return nil
}

// output is one of the command's outputs.
type output struct {
	from   *frame.Receiver
	done   chan struct{} // read to its end, or closed
	finish func()
}

func newOutput(from *frame.Receiver) *output {
	o := &output{from: from, done: make(chan struct{})}
	o.finish = sync.OnceFunc(func() { close(o.done) })
	return o
}

func (o *output) Read(b []byte) (int, error) {
	n, err := o.from.Read(b)
	if err != nil {
		o.finish()
	}
	return n, err
}

// Close tells the command that nobody reads this any more.
func (o *output) Close() error {
	o.from.Stop()
	o.finish()
	return nil
}

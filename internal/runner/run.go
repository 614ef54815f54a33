// Package runner (SANDBOX) is process 1 of a sandbox: it runs the one command, reaps every orphan, and speaks package frame to its owner outside.
//
// What it links an attacker inside has, so it links little: the standard library without package net, x/sys, and the wire. It holds nothing
// worth stealing: its token has been used before the command starts, and it is confined like the command.
package runner

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/cofferdam/cofferdam/internal/frame"
	"golang.org/x/sys/unix"
)

// farewell is how long the owner may take to close the connection after it was sent everything.
const farewell = time.Second

// Dial connects to the owner. The connection need not know half-close.
type Dial func(address string) (io.ReadWriteCloser, error)

// Run reads one boot line, connects to the owner, proves itself with the token, runs the command that the owner names, and returns when all
// is told: nil after a command that ended and output that was sent. It must run in process 1 of its own process namespace, once: it reaps
// every child, and whatever it leaves running ends with the process. It closes bootLine if that can be closed.
func Run(ctx context.Context, bootLine io.Reader, dial Dial) error {
	if os.Getpid() != 1 {
		return errors.New("the runner must be process 1 of a sandbox: it is started by cofferdam, not by hand")
	}
	b, err := readBoot(bootLine)
	if c, ok := bootLine.(io.Closer); ok {
		_ = c.Close() // read, or useless
	}
	if err != nil {
		return err
	}
	defer clear(b.Token)
	conn, err := dialUntil(ctx, b.Control, dial)
	if err != nil {
		return fmt.Errorf("reach the owner: %w", err)
	}
	err = frame.WriteHello(conn, frame.Hello{Token: b.Token, Facts: facts()})
	clear(b.Token)
	if err != nil {
		_ = conn.Close() // the first error counts
		return fmt.Errorf("introduce myself to the owner: %w", err)
	}
	return serve(ctx, conn)
}

func facts() frame.Facts {
	f := frame.Facts{PID: os.Getpid()}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		f.Kernel, f.Machine = unix.ByteSliceToString(u.Release[:]), unix.ByteSliceToString(u.Machine[:])
	}
	return f
}

// host is the runner while connected.
type host struct {
	link    *frame.Link
	starts  chan frame.Start
	queries chan frame.Query
	command command

	mu      sync.Mutex
	pipes   *pipes                // nil until the command starts
	size    *[2]uint16            // a size that came before the terminal
	refused map[frame.Stream]bool // outputs that the owner stopped before they existed
}

func serve(ctx context.Context, conn io.ReadWriteCloser) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	h := &host{starts: make(chan frame.Start, 1), queries: make(chan frame.Query, 64), refused: make(map[frame.Stream]bool)}
	h.link = frame.NewRunner(conn, frame.Handlers{
		Start:   func(s frame.Start) error { h.starts <- s; return nil }, // once, as the link guarantees
		Signal:  func(n int) error { h.command.signal(syscall.Signal(n)); return nil },
		Resize:  h.resize,
		Query:   h.query,
		Stopped: h.stop,
	})
	var wg sync.WaitGroup
	linked := make(chan error, 1)
	wg.Go(func() { linked <- h.link.Run(ctx) })
	wg.Go(func() { h.answer(ctx) })
	err := h.live(linked)
	cancel()
	wg.Wait()
	return err
}

// live is the life of the sandbox: a command, its end, the rest of its output. Whatever else happens, the loss of the owner ends it.
func (h *host) live(linked <-chan error) error {
	defer killAll()
	var s frame.Start
	select {
	case s = <-h.starts:
	case err := <-linked:
		return fmt.Errorf("lost the owner before the command came: %w", err)
	}
	exits := make(chan frame.Exit, 1)
	exit, err := h.start(s, exits)
	if err != nil {
		_ = h.link.SendExit(exit) // if the link is gone the next step says so
		h.link.Sender(frame.Stdout).Close()
		h.link.Sender(frame.Stderr).Close()
	} else {
		select {
		case exit = <-exits:
		case err := <-linked:
			return fmt.Errorf("lost the owner: %w", err)
		}
		_ = h.link.SendExit(exit) // likewise
		h.pipes.settle()
	}
	select {
	case <-h.link.Drained():
	case err := <-linked:
		return fmt.Errorf("lost the owner before all output was sent: %w", err)
	}
	select {
	case <-linked:
	case <-time.After(farewell):
	}
	return nil
}

// start starts the command and what moves its bytes. Those goroutines end with their streams, and at the latest with the process.
func (h *host) start(s frame.Start, exits chan<- frame.Exit) (frame.Exit, error) {
	p, err := h.prepare(s)
	if err == nil {
		var pid int
		if pid, err = h.command.start(s, p.files()); err == nil {
			p.release()
			_ = h.link.SendStarted(pid) // if the link is gone, live sees it
			go h.command.wait(pid, func(e frame.Exit) { exits <- e })
			h.pump(p)
			return frame.Exit{}, nil
		}
		p.close()
	}
	if e, ok := errors.AsType[*exitError](err); ok {
		return e.exit, err
	}
	return frame.Exit{Error: err.Error()}, err
}

// prepare opens the command's files and makes them known to the handlers.
func (h *host) prepare(s frame.Start) (*pipes, error) {
	p, err := open(s)
	if err != nil {
		return nil, err
	}
	h.command.tty = p.tty
	h.mu.Lock()
	defer h.mu.Unlock()
	h.pipes = p
	if h.size != nil && p.tty != nil {
		p.tty.resize(h.size[0], h.size[1])
	}
	for id := range h.refused {
		p.stop(id)
	}
	return p, nil
}

func (h *host) pump(p *pipes) {
	go p.feed(h.link.Receiver(frame.Stdin))
	for i, f := range p.out {
		to := h.link.Sender(frame.Stdout + frame.Stream(i))
		if f == nil {
			to.Close()
			continue
		}
		go drain(f, to)
	}
}

func (h *host) resize(rows, cols uint16) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.pipes == nil {
		h.size = &[2]uint16{rows, cols}
	} else if h.pipes.tty != nil {
		h.pipes.tty.resize(rows, cols)
	}
	return nil
}

func (h *host) stop(id frame.Stream) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.pipes == nil {
		h.refused[id] = true
		return
	}
	h.pipes.stop(id)
}

// query passes a question on without waiting. A question too many is answered with "unknown".
func (h *host) query(q frame.Query) error {
	select {
	case h.queries <- q:
	default:
		_ = h.link.SendOwner(frame.Owner{ID: q.ID}) // an owner that does not read gets no answer
	}
	return nil
}

// answer works on the questions, one after the other, off the path of everything else.
func (h *host) answer(ctx context.Context) {
	var t processTable
	for {
		select {
		case q := <-h.queries:
			_ = h.link.SendOwner(t.owner(q, time.Now().Add(answerIn))) // likewise
		case <-ctx.Done():
			return
		}
	}
}

// killAll ends every other process of the sandbox. Run made sure that this is process 1, so it reaches nothing else.
func killAll() {
	_ = unix.Kill(-1, unix.SIGKILL) // nobody left: as wanted
}

// Package runner (SANDBOX) is process 1 of a sandbox: it runs the command, and further ones when asked, reaps every orphan, and speaks package frame to its owner outside.
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
	"time"

	"github.com/cofferdam/cofferdam/internal/frame"
	"golang.org/x/sys/unix"
)

// farewell is how long the owner may take to close the connection after it was sent everything.
const farewell = time.Second

// Dial connects to the owner. The connection need not know half-close.
type Dial func(address string) (io.ReadWriteCloser, error)

// Run reads one boot line, connects to the owner, proves itself with the token, runs the command that the owner names, or holds the sandbox for the commands
// of further connections, and returns when all is told: nil after a command that ended and output that was sent, or a hold that ended. It must run in
// process 1 of its own process namespace, once: it reaps every child, and whatever it leaves running ends with the process. It closes bootLine if that can be closed.
func Run(ctx context.Context, bootLine io.Reader, dial Dial) error {
	if os.Getpid() != 1 {
		return errors.New("the runner must be process 1 of a sandbox: it is started by cofferdam, not by hand")
	}
	if f, ok := bootLine.(*os.File); ok && !waits(f) {
		_ = rehearse() // only an exercise
	}
	b, err := readBoot(bootLine)
	if c, ok := bootLine.(io.Closer); ok {
		_ = c.Close() // read, or useless
	}
	if err != nil {
		return err
	}
	h := newHost(b.Control, dial)
	conn, err := h.call(ctx, b.Token)
	if err != nil {
		return err
	}
	return h.serve(ctx, conn)
}

func facts() frame.Facts {
	f := frame.Facts{PID: os.Getpid()}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		f.Kernel, f.Machine = unix.ByteSliceToString(u.Release[:]), unix.ByteSliceToString(u.Machine[:])
	}
	return f
}

// host is the runner while connected: what belongs to the sandbox, and not to one command.
type host struct {
	control string
	dial    Dial
	dials   chan struct{} // holds one for each attempt to connect
	family  *family
	queries chan frame.Query
	asked   chan struct{} // holds one for each Spawn that is not done with
	slots   chan struct{} // holds one for each further session
}

func newHost(control string, dial Dial) *host {
	return &host{
		control: control, dial: dial, dials: make(chan struct{}, maxDials), family: newFamily(), queries: make(chan frame.Query, 64),
		asked: make(chan struct{}, maxAsked), slots: make(chan struct{}, maxSessions),
	}
}

// call connects to the owner and proves itself with the token, which it overwrites.
func (h *host) call(ctx context.Context, token []byte) (io.ReadWriteCloser, error) {
	defer clear(token)
	conn, err := h.reach(ctx)
	if err != nil {
		return nil, fmt.Errorf("reach the owner: %w", err)
	}
	if err := frame.WriteHello(conn, frame.Hello{Token: token, Facts: facts()}); err != nil {
		_ = conn.Close() // the first error counts
		return nil, fmt.Errorf("introduce myself to the owner: %w", err)
	}
	return conn, nil
}

// serve is the life of the sandbox. Whatever happens, the loss of the owner ends it.
func (h *host) serve(ctx context.Context, conn io.ReadWriteCloser) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go h.family.wait() // ends with the process
	s := newSession(h.family)
	on := s.handlers()
	on.Query = func(q frame.Query) error { return h.query(s.link, q) }
	on.Spawn = func(token []byte) error { h.spawn(ctx, token); return nil }
	s.link = frame.NewRunner(conn, on)
	var wg sync.WaitGroup
	linked := make(chan error, 1)
	wg.Go(func() { linked <- s.link.Run(ctx) })
	wg.Go(func() { h.answer(ctx, s.link) })
	err := h.live(s, linked)
	cancel()
	wg.Wait()
	return err
}

// live is one command, its end, and the rest of its output; or nothing at all until the owner leaves.
func (h *host) live(s *session, linked <-chan error) error {
	defer killAll()
	var st frame.Start
	select {
	case st = <-s.starts:
	case err := <-linked:
		return fmt.Errorf("lost the owner before the command came: %w", err)
	}
	if !st.Hold {
		return s.run(st, linked)
	}
	_ = s.link.SendStarted(os.Getpid()) // if the link is gone, the next step sees it
	if err := <-linked; !errors.Is(err, io.EOF) {
		return fmt.Errorf("lost the owner: %w", err)
	}
	return nil
}

// query passes a question on without waiting. A question too many is answered with "unknown".
func (h *host) query(l *frame.Link, q frame.Query) error {
	select {
	case h.queries <- q:
	default:
		_ = l.SendOwner(frame.Owner{ID: q.ID}) // an owner that does not read gets no answer
	}
	return nil
}

// answer works on the questions, one after the other, off the path of everything else.
func (h *host) answer(ctx context.Context, l *frame.Link) {
	var t processTable
	for {
		select {
		case q := <-h.queries:
			_ = l.SendOwner(t.owner(q, time.Now().Add(answerIn))) // likewise
		case <-ctx.Done():
			return
		}
	}
}

// killAll ends every other process of the sandbox. Run made sure that this is process 1, so it reaches nothing else.
func killAll() {
	_ = unix.Kill(-1, unix.SIGKILL) // nobody left: as wanted
}

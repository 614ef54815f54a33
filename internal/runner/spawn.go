package runner

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/cofferdam/cofferdam/internal/frame"
)

const (
	// maxSessions bounds the further commands that run at once.
	maxSessions = 64
	// maxAsked bounds what is asked for and not done with, refusals included. It is also a bound of descriptors.
	maxAsked = 4 * maxSessions
	// maxDials bounds the attempts to connect at once, each of which takes a thread, of which frame.ReservedProcesses are set aside.
	maxDials = 4
	// slotPatience is how long a place is waited for: the owner has closed one session and asks for the next, and this side may learn it in the other order.
	slotPatience = 200 * time.Millisecond
	// startPatience is how long the owner may take to say what a connection is for.
	startPatience = 30 * time.Second
)

// spawn connects once more, for a further command, without waiting. A failure is the owner's to notice, since nobody comes with its token; it never ends the sandbox.
func (h *host) spawn(ctx context.Context, token []byte) {
	select {
	case h.asked <- struct{}{}:
	default:
		clear(token) // an owner that goes so far beyond the bound gets no answer
		return
	}
	go func() {
		defer func() { <-h.asked }()
		if h.place(ctx) {
			defer func() { <-h.slots }()
			h.further(ctx, token, (*host).accompany)
			return
		}
		h.further(ctx, token, (*host).turnAway)
	}()
}

// place takes a slot, and says whether there was one.
func (h *host) place(ctx context.Context) bool {
	select {
	case h.slots <- struct{}{}:
		return true
	case <-time.After(slotPatience):
	case <-ctx.Done():
	}
	return false
}

// further is the life of one more connection.
func (h *host) further(ctx context.Context, token []byte, live func(*host, context.Context, *session, <-chan error)) {
	conn, err := h.call(ctx, token)
	if err != nil {
		return
	}
	s := newSession(h.family)
	on := s.handlers()
	take := on.Start
	on.Start = func(st frame.Start) error {
		if st.Hold {
			return fmt.Errorf("%w: a hold on a further connection", frame.ErrProtocol)
		}
		return take(st)
	}
	s.link = frame.NewRunner(conn, on)
	linked := make(chan error, 1)
	go func() { linked <- s.link.Run(ctx) }()
	defer s.link.End()
	live(h, ctx, s, linked)
}

// accompany runs the command of a further session. When the session ends without it, the command ends too, and nothing else does.
func (h *host) accompany(ctx context.Context, s *session, linked <-chan error) {
	var st frame.Start
	select {
	case st = <-s.starts:
	case <-linked:
		return
	case <-time.After(startPatience):
		return
	}
	_ = s.run(st, linked) // the owner has been told, or is gone
	s.command.hangUp(ctx)
	if s.pipes != nil {
		s.pipes.close()
	}
}

// turnAway answers a session for which there is no place.
func (h *host) turnAway(_ context.Context, s *session, linked <-chan error) {
	text := fmt.Sprintf("%d commands run already beside the first in this sandbox, which is the most", maxSessions)
	_ = s.refuse(frame.Exit{Error: text}, linked) // likewise
}

// reach connects to the control address, a few at a time.
func (h *host) reach(ctx context.Context) (io.ReadWriteCloser, error) {
	select {
	case h.dials <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	defer func() { <-h.dials }()
	return dialUntil(ctx, h.control, h.dial)
}

package terminal

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/frame"
)

// Held is a sandbox that is kept for commands which come one by one: its runner lives as long as this. Its methods are safe for concurrent use.
type Held struct {
	link   *frame.Link
	over   chan struct{}
	owners owners

	mu     sync.Mutex
	report string // the runner's last words
}

// Hold takes conn for the connection of a runner whose proof was checked already, and has it hold the sandbox. It owns conn from then on.
func Hold(ctx context.Context, conn io.ReadWriteCloser) (*Held, error) {
	h := &Held{over: make(chan struct{})}
	held := make(chan struct{})
	say := func(text string) {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.report = text
	}
	h.link = frame.NewOwner(conn, frame.Handlers{
		Hello:   func(frame.Hello) error { return nil },
		Started: func(int) error { close(held); return nil }, // the link takes one
		Owner:   h.owners.answered,
		Error:   func(text string) error { say(text); return nil },
		Exit: func(e frame.Exit) error {
			say(e.Error)
			return errors.New("the runner does not hold the sandbox")
		},
	})
	err := h.link.SendStart(frame.Start{Hold: true})
	go func() { // waited for by Close
		_ = h.link.Run(context.WithoutCancel(ctx)) // asked for with Err
		close(h.over)
	}()
	timer := time.NewTimer(helloWithin)
	defer timer.Stop()
	if err == nil {
		select {
		case <-held:
			return h, nil
		case <-h.over:
			err = h.Err()
		case <-timer.C:
			err = fault.New(fault.Unavailable, "the sandbox's runner did not answer within %v", helloWithin)
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
	}
	h.Close()
	return nil, err
}

// Spawn has the runner connect once more and prove itself with a token, for a further command. The caller overwrites the token.
func (h *Held) Spawn(token []byte) error { return h.link.SendSpawn(token) }

// Owner asks the runner which process inside owns a socket, like Session.Owner.
func (h *Held) Owner(ctx context.Context, q frame.Query) frame.Owner {
	return h.owners.ask(ctx, h.link, h.over, q)
}

// Ping waits until the runner answers.
func (h *Held) Ping(ctx context.Context) error { return h.link.Ping(ctx) }

// Over is closed when the sandbox is not held any more; Err says why.
func (h *Held) Over() <-chan struct{} { return h.over }

// Err says why the sandbox is not held any more.
func (h *Held) Err() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch why := h.link.Err(); {
	case why == nil:
		return nil
	case h.report != "":
		return fault.New(fault.Unavailable, "the sandbox's runner gave up: %s", h.report)
	case errors.Is(why, frame.ErrProtocol):
		return fault.New(fault.Unavailable, "the sandbox's runner broke its protocol and was cut off").Because(why)
	default:
		return fault.New(fault.Unavailable, "the sandbox's runner is gone").
			WithHint("a memory or process limit may have been reached; see cofferdam audit").Because(why)
	}
}

// Close lets go of the sandbox, which ends it with everything that runs inside.
func (h *Held) Close() {
	h.link.End()
	<-h.over
}

package main

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/supervisor/call"
)

// freezes is how the supervisor of a sandbox is asked to pause it, or whether it is paused: one question at a time. Its zero value is ready. It is safe for
// concurrent use.
type freezes struct {
	asking sync.Mutex // held by who waits for an answer

	mu     sync.Mutex
	last   uint64
	answer chan call.Frozen // of the question under way; nil if there is none
	over   bool             // no answer will come any more
	paused bool             // as the last answer had it
}

// askPatience is how long the supervisor may take to answer: as long as processes may take to stop, and then some on a busy machine.
const askPatience = call.FreezePatience + 5*time.Second

// errOver says that the sandbox has ended, or its supervisor has.
func errOver() error { return fault.New(fault.Conflict, "the sandbox has ended") }

// ask puts a question and waits for its answer.
func (f *freezes) ask(ctx context.Context, to *call.Client, want call.Want) (call.Frozen, error) {
	f.asking.Lock()
	defer f.asking.Unlock()
	answer := make(chan call.Frozen, 1)
	f.mu.Lock()
	f.last++
	question := call.Freeze{Want: want, Ask: f.last}
	f.answer = answer
	over := f.over
	f.mu.Unlock()
	if over {
		return call.Frozen{}, errOver()
	}
	if err := to.Tell(call.Request{Freeze: &question}); err != nil {
		return call.Frozen{}, errOver()
	}
	timer := time.NewTimer(askPatience)
	defer timer.Stop()
	select {
	case got, ok := <-answer:
		switch {
		case !ok:
			return got, errOver()
		case got.Refused != nil:
			return got, got.Refused.Err()
		}
		return got, nil
	case <-timer.C:
		return call.Frozen{}, fault.New(fault.Unavailable, "the supervisor does not answer")
	case <-ctx.Done():
		return call.Frozen{}, context.Cause(ctx)
	}
}

// hear passes answers on until the supervisor says something else, which it returns, or is gone.
func (f *freezes) hear(from *call.Client) (call.Reply, error) {
	defer f.end()
	for {
		reply, _, err := from.Next()
		if err != nil || reply.Frozen == nil {
			return reply, err
		}
		f.mu.Lock()
		f.paused = reply.Frozen.Paused
		if f.answer != nil && reply.Frozen.Ask == f.last { // else nobody waits for it any more
			f.answer <- *reply.Frozen
			f.answer = nil
		}
		f.mu.Unlock()
	}
}

// end has everybody know who waits, or will ask, that there are no answers any more.
func (f *freezes) end() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.over = true
	if f.answer != nil {
		close(f.answer)
		f.answer = nil
	}
}

// isPaused says whether the sandbox is paused now, as the kernel has it, or as it had it last where the supervisor does not answer in time.
func (e *execution) isPaused(ctx context.Context) bool {
	_, _ = e.freezes.ask(ctx, e.client, call.WantNothing) // a sandbox that cannot be paused refuses, and is not paused
	e.freezes.mu.Lock()
	defer e.freezes.mu.Unlock()
	return e.freezes.paused
}

// pauseOutlast is how long a connection of a sandbox with a network stack of its own stays without a sign of the other end. The kernel takes at most 2^31 ms.
const pauseOutlast = 14 * 24 * time.Hour

// outlastPause has the connections that a listener accepts outlast a pause. Where the sandbox's network stack is frozen with it, nothing answers probes and
// nothing acknowledges data; the kernel gives such a connection up after minutes (tcp(7), TCP_USER_TIMEOUT, which accepted sockets inherit). That the sandbox
// has ended is known otherwise.
func outlastPause(l *net.TCPListener) error {
	raw, err := l.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	err = raw.Control(func(fd uintptr) {
		inner = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(pauseOutlast/time.Millisecond))
	})
	return errors.Join(err, inner)
}

package keeper

import (
	"cmp"
	"context"
	"slices"
	"strconv"
	"sync"

	"github.com/cofferdam/cofferdam/internal/fault"
)

const (
	// maxListeners bounds who listens to events at once; the service does once.
	maxListeners = 16
	// maxBehind is how many events may wait for a listener; one that is further behind is cut off, and begins anew with what waits then.
	maxBehind = 1024
	// keptEvents is how many events of type "used" are kept for a listener that comes later: a service that restarts must not miss them. There are as many as
	// once-rules that persons approved; the newest are kept.
	keptEvents = 256
)

// Board is where a keeper's questions hang until somebody answers, and from where its events are told. Its zero value is ready. It is safe for concurrent use.
type Board struct {
	mu        sync.Mutex
	last      uint64
	waiting   map[string]*waiting
	listeners map[chan Event]struct{}
	used      []Event
	closed    bool
}

type waiting struct {
	ask    Ask
	answer chan Answer
}

// Ask hangs a question up, tells it, and waits for the answer until ctx ends; ok is false if there was none. The board chooses a.ID.
func (b *Board) Ask(ctx context.Context, a Ask) (answer Answer, ok bool) {
	w := &waiting{answer: make(chan Answer, 1)}
	b.mu.Lock()
	b.last++
	a.ID = strconv.FormatUint(b.last, 10)
	w.ask = a
	if b.waiting == nil {
		b.waiting = map[string]*waiting{}
	}
	b.waiting[a.ID] = w
	b.tell(Event{Type: "ask", Ask: &a})
	b.mu.Unlock()
	select {
	case answer = <-w.answer:
		return answer, true
	case <-ctx.Done():
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.waiting[a.ID] == nil { // answered in this very moment
		return <-w.answer, true
	}
	b.take(a.ID)
	return Answer{}, false
}

// Answer answers a question. Everybody who listens is told that it is gone.
func (b *Board) Answer(id string, a Answer) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	w := b.waiting[id]
	if w == nil {
		return fault.New(fault.NotFound, "this question does not wait for an answer any more")
	}
	b.take(id)
	w.answer <- a
	return nil
}

// take takes a question down; b.mu is held.
func (b *Board) take(id string) {
	delete(b.waiting, id)
	b.tell(Event{Type: "withdrawn", ID: id})
}

// Waiting lists the questions that wait, oldest first.
func (b *Board) Waiting() []Ask {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.asks()
}

func (b *Board) asks() []Ask {
	all := make([]Ask, 0, len(b.waiting))
	for _, w := range b.waiting {
		all = append(all, w.ask)
	}
	slices.SortFunc(all, func(x, y Ask) int {
		return cmp.Or(x.Created.Compare(y.Created), cmp.Compare(len(x.ID), len(y.ID)), cmp.Compare(x.ID, y.ID))
	})
	return all
}

// Tell tells an event to everybody who listens.
func (b *Board) Tell(e Event) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if e.Type == "used" {
		b.used = append(b.used[max(0, len(b.used)+1-keptEvents):], e)
	}
	b.tell(e)
}

func (b *Board) tell(e Event) {
	for l := range b.listeners {
		select {
		case l <- e:
		default:
			delete(b.listeners, l)
			close(l)
		}
	}
}

// Close tells that the sandbox has ended and lets all listeners go.
func (b *Board) Close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return
	}
	b.closed = true
	b.tell(Event{Type: "ended"})
	for l := range b.listeners {
		close(l)
	}
	b.listeners = nil
}

// listen returns the events from now on, first what waits already. The channel is closed at the end, and when its reader is too slow.
func (b *Board) listen() (events <-chan Event, stop func(), err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil, nil, fault.New(fault.Unavailable, "the sandbox has ended")
	}
	if len(b.listeners) >= maxListeners {
		return nil, nil, fault.New(fault.TooMany, "%d listen already", maxListeners)
	}
	first := slices.Clone(b.used)
	for _, a := range b.asks() {
		first = append(first, Event{Type: "ask", Ask: &a})
	}
	l := make(chan Event, len(first)+maxBehind)
	for _, e := range first {
		l <- e
	}
	if b.listeners == nil {
		b.listeners = map[chan Event]struct{}{}
	}
	b.listeners[l] = struct{}{}
	return l, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.listeners, l)
	}, nil
}

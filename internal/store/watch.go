package store

import (
	"context"
	"sync"
	"time"
)

// hub tells who watches in this process.
type hub struct {
	mu       sync.Mutex
	closed   bool
	next     int
	watching map[int]chan struct{}
}

// polling is how often events of other processes are looked for, where nothing tells of them.
const polling = 2 * time.Second

// Watch returns a channel that gets a value when events may have been added by any process; it closes with ctx or with the store. It may get one too
// many, but none is missed: look for events once after Watch, then after each value.
func (db *DB) Watch(ctx context.Context) <-chan struct{} {
	h := &db.hub
	ch := make(chan struct{}, 1)
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed || ctx.Err() != nil {
		close(ch)
		return ch
	}
	if h.watching == nil {
		h.watching = map[int]chan struct{}{}
	}
	id := h.next
	h.next++
	h.watching[id] = ch
	context.AfterFunc(ctx, func() { h.leave(id) })
	return ch
}

func (h *hub) leave(id int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if ch, ok := h.watching[id]; ok {
		delete(h.watching, id)
		close(ch)
	}
}

// tell gives everybody a value who has none waiting.
func (h *hub) tell() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, ch := range h.watching {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
}

func (h *hub) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	for id, ch := range h.watching {
		delete(h.watching, id)
		close(ch)
	}
}

func (h *hub) watched() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.watching) > 0
}

// poll looks for events of other processes. An error means that the database does not answer: the next round asks again.
func (db *DB) poll(ctx context.Context) {
	ticker := time.NewTicker(polling)
	defer ticker.Stop()
	var seen int64
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		if !db.hub.watched() {
			continue
		}
		last, err := db.LastEvent(ctx)
		if err == nil && last != seen {
			seen = last
			db.hub.tell()
		}
	}
}

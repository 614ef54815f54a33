// Package limit (CONTROL) bounds how often something may be done in a sliding window of time, in this process or, for several, in Redis.
//
// The window is exact: of any span as long as the window, no more than limit attempts were allowed in it. An attempt that is refused does not count,
// so who keeps trying is let in again once the oldest attempt has left the window.
package limit

import (
	"container/list"
	"context"
	"crypto/sha256"
	"sync"
	"time"

	"github.com/cofferdam/cofferdam/internal/fault"
)

// MaxLimit bounds how many attempts a window can allow, and thereby what one key costs.
const MaxLimit = 1000

// DefaultKeys is how many keys a Memory keeps. To make it forget one, an attacker must touch all others: at the few dozen password hashes a second
// that a machine computes this takes longer than the windows that guard them.
const DefaultKeys = 200_000

// check refuses what no caller of ours means.
func check(limit int, per time.Duration) error {
	if limit < 1 || limit > MaxLimit || per < time.Millisecond {
		return fault.New(fault.Internal, "a rate limit of %d in %v", limit, per)
	}
	return nil
}

// Memory counts in this process. It is safe for concurrent use.
type Memory struct {
	now  func() time.Time
	most int

	mu   sync.Mutex
	keys map[[32]byte]*list.Element
	used *list.List // of *window; the least recently used last
}

// window is the allowed attempts of one key, oldest first.
type window struct {
	key  [32]byte
	hits []time.Time
}

// NewMemory returns a limiter for one process, which keeps at most so many keys (DefaultKeys if 0).
func NewMemory(now func() time.Time, keys int) *Memory {
	if keys <= 0 {
		keys = DefaultKeys
	}
	return &Memory{now: now, most: keys, keys: map[[32]byte]*list.Element{}, used: list.New()}
}

// Allow reports whether one more attempt under key fits into the limit, and counts it if so; else it says when one will.
func (m *Memory) Allow(_ context.Context, key string, limit int, per time.Duration) (ok bool, retry time.Duration, err error) {
	if err := check(limit, per); err != nil {
		return false, 0, err
	}
	now, name := m.now(), sha256.Sum256([]byte(key)) // a key of any length takes the same room
	m.mu.Lock()
	defer m.mu.Unlock()
	w := m.window(name)
	for len(w.hits) > 0 && !w.hits[0].After(now.Add(-per)) {
		w.hits = w.hits[1:]
	}
	if len(w.hits) >= limit {
		return false, w.hits[len(w.hits)-limit].Add(per).Sub(now), nil
	}
	w.hits = append(w.hits, now)
	return true, 0, nil
}

// window finds or makes a key's window, and forgets the one that was used longest ago if there are too many.
func (m *Memory) window(name [32]byte) *window {
	if e := m.keys[name]; e != nil {
		m.used.MoveToFront(e)
		return e.Value.(*window)
	}
	w := &window{key: name}
	m.keys[name] = m.used.PushFront(w)
	if m.used.Len() > m.most {
		last := m.used.Back()
		m.used.Remove(last)
		delete(m.keys, last.Value.(*window).key)
	}
	return w
}

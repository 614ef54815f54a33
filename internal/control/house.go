package control

import (
	"context"
	"sync"

	"github.com/cofferdam/cofferdam/internal/audit"
)

// house is what Run and the operations on sandboxes share. It is safe for concurrent use.
type house struct {
	lines *audit.Lines
	// news wakes Run, which starts to watch the sandboxes in fresh.
	news chan struct{}
	// burying is held by who cleans up after the dead.
	burying sync.Mutex
	// sizers has a place for each workspace that is measured at the same time.
	sizers chan struct{}
	disk   *disk

	mu    sync.Mutex
	fresh []room
	// making holds what gives up each sandbox that this process is making.
	making map[string]context.CancelCauseFunc
	// turns lets one at a time change what is in force in a sandbox, so that the last word is the newest.
	turns map[string]*turn
	// runs are the commands that this process has started and not seen the end of.
	runs map[string]struct{}
}

// turn is a lock with the number of those who have it or wait for it.
type turn struct {
	sync.Mutex
	users int
}

func newHouse(auditDir string) *house {
	return &house{
		lines: &audit.Lines{Dir: auditDir}, news: make(chan struct{}, 1), sizers: make(chan struct{}, sizersMost), disk: newDisk(),
		making: map[string]context.CancelCauseFunc{}, turns: map[string]*turn{}, runs: map[string]struct{}{},
	}
}

// watch has Run look after a sandbox; before Run begins or after it has ended, the next one finds it in the store.
func (h *house) watch(in room) {
	h.mu.Lock()
	h.fresh = append(h.fresh, in)
	h.mu.Unlock()
	select {
	case h.news <- struct{}{}:
	default: // it has not looked yet
	}
}

// arrivals takes the sandboxes that nobody watches yet.
func (h *house) arrivals() []room {
	h.mu.Lock()
	defer h.mu.Unlock()
	fresh := h.fresh
	h.fresh = nil
	return fresh
}

// make notes how the making of a sandbox is given up, until done is called.
func (h *house) make(sandbox string, giveUp context.CancelCauseFunc) (done func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.making[sandbox] = giveUp
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.making, sandbox)
	}
}

// giveUp ends the making of a sandbox, if this process is about it.
func (h *house) giveUp(sandbox string, cause error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if f := h.making[sandbox]; f != nil {
		f(cause)
	}
}

// turn waits for the caller's turn to change what is in force in a sandbox, and returns what ends it.
func (h *house) turn(sandbox string) (done func()) {
	h.mu.Lock()
	t := h.turns[sandbox]
	if t == nil {
		t = &turn{}
		h.turns[sandbox] = t
	}
	t.users++
	h.mu.Unlock()
	t.Lock()
	return func() {
		t.Unlock()
		h.mu.Lock()
		defer h.mu.Unlock()
		if t.users--; t.users == 0 {
			delete(h.turns, sandbox)
		}
	}
}

// begun notes a command of this process.
func (h *house) begun(run string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.runs[run] = struct{}{}
}

// over forgets a command, and says whether it was known.
func (h *house) over(run string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	_, known := h.runs[run]
	delete(h.runs, run)
	return known
}

func (h *house) knows(run string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	_, known := h.runs[run]
	return known
}

// makes says whether this process is about to make a sandbox.
func (h *house) makes(sandbox string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.making[sandbox] != nil
}

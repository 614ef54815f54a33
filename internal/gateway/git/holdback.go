package git

import (
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/cofferdam/cofferdam/internal/gateway/git/pack"
)

// holdback reads a pack, and gives out its last bytes, without which it is none, only once it is judged. One goroutine reads while another may settle.
type holdback struct {
	from    io.Reader
	size    int          // of what is held back
	look    *pack.Reader // nil: nothing is looked at
	verdict func() error

	mu         sync.Mutex
	buf        []byte
	start, end int // of what was read and not given out
	sent       int64
	done       bool  // the source has ended, and the verdict is good
	veto       error // why the end is not given out
}

// errHeld breaks the request to the upstream off.
var errHeld = errors.New("the push was not let through")

// pieces is how much of a push is in memory.
const pieces = 256 << 10

// Read gives out what may go.
func (h *holdback) Read(b []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for h.veto == nil && !h.done && h.end-h.start <= h.size {
		if err := h.more(); err != nil {
			h.veto = err
		}
	}
	most := h.end - h.start
	if !h.done {
		most -= h.size
	}
	switch {
	case h.veto != nil:
		return 0, errHeld
	case most <= 0:
		return 0, io.EOF
	}
	n := copy(b, h.buf[h.start:h.start+most])
	h.start += n
	h.sent += int64(n)
	return n, nil
}

// more reads a piece. At the end comes the verdict.
func (h *holdback) more() (err error) {
	defer func() { // it runs in a goroutine of net/http's, where nothing would catch it
		if r := recover(); r != nil {
			err = fmt.Errorf("internal error: %v", r)
		}
	}()
	if h.buf == nil {
		h.buf = make([]byte, pieces)
	}
	h.end = copy(h.buf, h.buf[h.start:h.end])
	h.start = 0
	n, err := h.from.Read(h.buf[h.end:])
	if h.look != nil {
		if _, err := h.look.Write(h.buf[h.end : h.end+n]); err != nil {
			return err
		}
	}
	h.end += n
	if err != io.EOF {
		return err
	}
	if h.verdict != nil {
		if err := h.verdict(); err != nil {
			return err
		}
	}
	h.done = true
	return nil
}

// settle ends the reading for good, and returns how much was given out, whether that was everything, and why the end was not, if it was not. The upstream
// may have answered before it was sent everything; nothing more is given out then.
func (h *holdback) settle() (sent int64, whole bool, veto error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	whole, veto = h.done && h.start == h.end, h.veto
	if h.veto == nil {
		h.veto = errHeld
	}
	return h.sent, whole, veto
}

// begun reports whether any of the last bytes were given out: from there on the upstream may set the refs, whatever becomes of the client.
func (h *holdback) begun() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.done && h.veto == nil
}

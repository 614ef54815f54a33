package frame

import (
	"errors"
	"io"
	"sync"
)

// ErrStopped says that the peer reads this stream no longer.
var ErrStopped = errors.New("the reader of the stream is gone")

// Sender is the writing end of one stream of a Link. It is safe for concurrent use.
type Sender struct {
	l      *Link
	id     Stream
	room   sync.Cond // on l.mu
	buf    []byte    // accepted, not yet written; at most MaxPayload
	credit int       // what the peer still takes; buf may wait for it

	closed  bool // Close was called
	sent    bool // the Close frame has been given to the connection
	stopped bool // the peer does not want more
}

// Write waits until all of p is accepted, which means that the peer's credit and one frame's worth of buffer took it.
// It returns ErrStopped when the peer no longer reads, or why the link ended.
func (s *Sender) Write(p []byte) (int, error) {
	s.l.mu.Lock()
	defer s.l.mu.Unlock()
	done := 0
	for done < len(p) {
		n := s.accept(p[done:])
		done += n
		if err := s.broken(); err != nil {
			return done, err
		}
		if n == 0 {
			s.room.Wait()
		}
	}
	return done, s.broken()
}

// TryWrite accepts what has room now, at most Room bytes, and never waits.
func (s *Sender) TryWrite(p []byte) int {
	s.l.mu.Lock()
	defer s.l.mu.Unlock()
	return s.accept(p[:min(len(p), s.roomLocked())])
}

// Room says how many bytes could be sent now: none while the peer gives no credit, so that a caller can leave them unread at their source.
func (s *Sender) Room() int {
	s.l.mu.Lock()
	defer s.l.mu.Unlock()
	return s.roomLocked()
}

func (s *Sender) roomLocked() int {
	if s.broken() != nil {
		return 0
	}
	return max(0, min(MaxPayload, s.credit)-len(s.buf))
}

// Close ends the stream after what was accepted. Closing twice is harmless.
func (s *Sender) Close() {
	s.l.mu.Lock()
	defer s.l.mu.Unlock()
	s.closed = true
	s.l.wake.Signal()
}

// accept takes what fits into the buffer; l.mu is held.
func (s *Sender) accept(p []byte) int {
	if s.broken() != nil {
		return 0
	}
	n := min(len(p), MaxPayload-len(s.buf))
	if n > 0 {
		s.buf = append(s.buf, p[:n]...)
		s.l.wake.Signal()
	}
	return n
}

func (s *Sender) broken() error {
	switch {
	case s.l.err != nil:
		return s.l.err
	case s.stopped:
		return ErrStopped
	case s.closed:
		return io.ErrClosedPipe
	}
	return nil
}

// next appends the next frame of this stream to dst; l.mu is held. It reports whether room appeared.
func (s *Sender) next(dst []byte) ([]byte, bool) {
	if n := min(len(s.buf), s.credit); n > 0 {
		dst = Append(dst, Frame{Type: TypeData, Stream: s.id, Payload: s.buf[:n]})
		s.buf = s.buf[:copy(s.buf, s.buf[n:])]
		s.credit -= n
		s.room.Broadcast()
		return dst, true
	}
	if s.closed && !s.sent && len(s.buf) == 0 {
		s.sent = true
		return Append(dst, Frame{Type: TypeClose, Stream: s.id}), false
	}
	return dst, false
}

// grant adds what the peer consumed. More than was sent is a violation: it would overrun the peer's own buffer.
func (s *Sender) grant(n uint32) error {
	if n == 0 || int64(n) > int64(Window-s.credit) {
		return violation("credit of %d for %s, which has %d of %d", n, s.id, s.credit, Window)
	}
	s.credit += int(n)
	return nil
}

// Receiver is the reading end of one stream of a Link. It buffers at most Window bytes.
type Receiver struct {
	l        *Link
	id       Stream
	ready    sync.Cond // on l.mu
	buf      []byte    // arrived; buf[off:] is not yet read
	off      int
	granted  int // what the peer may still send
	consumed int // read, and not yet given back as credit

	closed  bool // the peer ended the stream
	stopped bool // we told the peer to stop
}

// Read waits for bytes. It returns io.EOF after the peer ended the stream, or, once everything that arrived has been read, why the link ended.
func (r *Receiver) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	r.l.mu.Lock()
	defer r.l.mu.Unlock()
	for r.off == len(r.buf) {
		switch {
		case r.closed:
			return 0, io.EOF
		case r.stopped:
			return 0, io.ErrClosedPipe
		case r.l.err != nil:
			return 0, r.l.err
		}
		r.ready.Wait()
	}
	n := copy(p, r.buf[r.off:])
	r.off += n
	if r.off == len(r.buf) {
		r.buf, r.off = r.buf[:0], 0
	}
	r.give(n)
	return n, nil
}

// Stop tells the peer that nobody reads this stream any longer, and drops what arrives.
func (r *Receiver) Stop() {
	r.l.mu.Lock()
	defer r.l.mu.Unlock()
	if r.stopped {
		return
	}
	r.stopped = true
	r.buf, r.off = nil, 0
	if !r.closed {
		r.l.queue = Append(r.l.queue, Frame{Type: TypeClose, Stream: r.id})
		r.l.wake.Signal()
	}
	r.ready.Broadcast()
}

// give returns credit in halves of the window: rarely enough to cost nothing, early enough that a sender need not wait.
func (r *Receiver) give(n int) {
	r.consumed += n
	if r.consumed < Window/2 || r.closed {
		return
	}
	r.l.credits[r.id] += uint32(r.consumed)
	r.granted += r.consumed
	r.consumed = 0
	r.l.wake.Signal()
}

// push stores what arrived; it never waits, since the peer may not send beyond its credit.
func (r *Receiver) push(p []byte) error {
	if r.closed {
		return violation("data on %s after its end", r.id)
	}
	if len(p) > r.granted {
		return violation("%d bytes on %s with credit for %d", len(p), r.id, r.granted)
	}
	r.granted -= len(p)
	if r.stopped {
		return nil
	}
	if len(r.buf)+len(p) > cap(r.buf) && r.off > 0 {
		r.buf, r.off = r.buf[:copy(r.buf, r.buf[r.off:])], 0
	}
	r.buf = append(r.buf, p...)
	r.ready.Broadcast()
	return nil
}

func (r *Receiver) end() error {
	if r.closed {
		return violation("%s ended twice", r.id)
	}
	r.closed = true
	r.ready.Broadcast()
	return nil
}

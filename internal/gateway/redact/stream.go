package redact

import (
	"bytes"
	"io"
)

// boundary says what follows the bytes given to a Stream.
type boundary uint8

const (
	inside  boundary = iota // more of the same: what may be the beginning of a find waits for it
	atFrame                 // a frame ends, so nothing can wait, but a find may go on in the next
	atEnd                   // nothing
)

// heldFrom is the length from which a possible beginning waits for what follows. A shorter one, which ordinary text often has, goes on at
// once, so that what is said word by word arrives word by word: at most three bytes of a find are seen, where it is split there.
const heldFrom = 4

// Stream replaces finds in a stream, however it is split. It is not safe for concurrent use. Its zero value passes everything.
type Stream struct {
	set *Set
	// Count is how many finds there were.
	Count int

	tail  []byte // the last bytes, which may be the beginning of a find
	sent  int    // of which so many are out already
	work  []byte
	found int // the first entry found whole
	whole bool
}

// Stream returns a new stream.
func (s *Set) Stream() *Stream { return &Stream{set: s} }

// Next takes bytes and returns those that can go on. They are valid until the next call.
func (w *Stream) Next(p []byte) []byte { return w.next(p, inside) }

// Frame is Next at the end of a frame: as many bytes go on as were given since the last.
func (w *Stream) Frame(p []byte) []byte { return w.next(p, atFrame) }

// End returns what waits.
func (w *Stream) End() []byte { return w.next(nil, atEnd) }

// Found returns the first entry that was found whole.
func (w *Stream) Found() (entry int, ok bool) { return w.found, w.whole }

func (w *Stream) next(p []byte, then boundary) []byte {
	if w.set == nil {
		return p
	}
	w.work = append(append(w.work[:0], w.tail...), p...)
	from, held := 0, len(w.work)
	for from < len(w.work) {
		h := w.set.next(w.work, from)
		if h.pattern == nil && then == atEnd && h.at < len(w.work) {
			h = w.complete(h.at)
		}
		if h.pattern == nil {
			held = h.at
			break
		}
		w.replace(h)
		from = h.at + len(h.pattern.text)
	}
	return w.cut(held, then)
}

// complete finds a whole pattern at or after a place from which a longer one might have begun, if no more bytes come.
func (w *Stream) complete(at int) hit {
	for ; at+MinLength <= len(w.work); at++ {
		for i := range w.set.patterns {
			if p := &w.set.patterns[i]; bytes.HasPrefix(w.work[at:], p.text) {
				return hit{at, p}
			}
		}
		if w.set.begins(w.work[at:]) {
			break
		}
	}
	return hit{at: at}
}

func (w *Stream) replace(h hit) {
	copy(w.work[h.at:], h.pattern.instead)
	w.Count++
	if !w.whole {
		w.found, w.whole = h.pattern.entry, true
	}
}

// cut keeps the bytes from held on for the next call and returns those that go out now.
func (w *Stream) cut(held int, then boundary) []byte {
	w.tail = append(w.tail[:0], w.work[held:]...)
	sent, upTo := w.sent, len(w.work)
	switch {
	case then == atEnd && len(w.tail) >= MinLength, then == atFrame && len(w.tail) >= heldFrom:
		if upTo > max(held, sent) {
			copy(w.work[max(held, sent):], bytes.Repeat([]byte{'*'}, upTo-max(held, sent)))
		}
		if then == atEnd {
			w.Count++
		}
	case then == inside && len(w.tail) >= heldFrom:
		upTo = max(held, sent)
	}
	if then == atEnd {
		w.tail = w.tail[:0]
	}
	w.sent = max(0, min(upTo-held, len(w.tail)))
	return w.work[min(sent, upTo):upTo]
}

// reader reads through a stream.
type reader struct {
	from  io.Reader
	w     *Stream
	ready []byte
	err   error
	done  func(int)
}

// Reader returns a reader of the same length with all finds replaced. done is told the number of finds, as they are found.
func (s *Set) Reader(r io.Reader, done func(int)) io.Reader {
	if s == nil {
		return r
	}
	return &reader{from: r, w: s.Stream(), done: done}
}

// Read reads into p itself, of which nothing is left that was not looked through: at most len(p) bytes of it are returned, all copied from the stream.
func (r *reader) Read(p []byte) (int, error) {
	for len(r.ready) == 0 && len(p) > 0 {
		if r.err != nil {
			return 0, r.err
		}
		before := r.w.Count
		var n int
		n, r.err = r.from.Read(p)
		r.ready = r.w.Next(p[:n])
		if r.err == io.EOF {
			r.ready = append(bytes.Clone(r.ready), r.w.End()...)
		}
		clear(p[:n])
		if found := r.w.Count - before; found > 0 {
			r.done(found)
		}
	}
	n := copy(p, r.ready)
	r.ready = r.ready[n:]
	return n, nil
}

package plainhttp

import (
	"bytes"
	"io"
	"net"
	"os"
	"time"

	"errors"
)

// firstBuffer is a reader's first size; it grows only for a head that needs it, up to the limit of heads.
const firstBuffer = 8 << 10

// recordSize is what one TLS record carries at most (RFC 8446 §5.1). What reads and writes a large body by less makes more records of it.
const recordSize = 16 << 10

// deadlineStep is how often a moving connection's deadline is pushed on: setting it for each call would cost more than the call.
const deadlineStep = time.Second

var (
	errBareLF   = errors.New("a line ends in a bare line feed")
	errBareCR   = errors.New("a carriage return stands alone")
	errTooLarge = errors.New("the head is larger than the limit")
)

// reader reads one connection through a buffer which is its own and is never handed to anybody else.
type reader struct {
	conn  Conn
	buf   []byte
	r, w  int
	idle  time.Duration
	armed time.Time
	fixed bool // the deadline was set by hold and must not be pushed on
}

// hold sets one deadline for everything until release: a head must be whole by then, however slowly its bytes come.
func (b *reader) hold(d time.Duration) error {
	b.fixed = true
	return b.conn.SetReadDeadline(time.Now().Add(d))
}

// release goes back to the idle deadline.
func (b *reader) release() {
	b.fixed = false
	b.armed = time.Time{}
}

func (b *reader) buffered() []byte { return b.buf[b.r:b.w] }

// fill reads more bytes. It returns io.EOF at the end of the stream, after all that was buffered.
func (b *reader) fill() error {
	if b.r == b.w {
		b.r, b.w = 0, 0
	}
	if b.w == len(b.buf) {
		b.makeRoom()
	}
	if now := time.Now(); !b.fixed && now.Sub(b.armed) > deadlineStep {
		if err := b.conn.SetReadDeadline(now.Add(b.idle)); err != nil {
			return err
		}
		b.armed = now
	}
	n, err := b.conn.Read(b.buf[b.w:])
	b.w += n
	if n > 0 {
		return nil
	}
	if err == nil {
		return io.ErrNoProgress
	}
	return err
}

// widen makes room for whole records, where much is to come.
func (b *reader) widen() {
	if len(b.buf) >= recordSize {
		return
	}
	bigger := make([]byte, recordSize)
	b.r, b.w = 0, copy(bigger, b.buffered())
	b.buf = bigger
}

func (b *reader) makeRoom() {
	if b.r > 0 {
		b.w = copy(b.buf, b.buf[b.r:b.w])
		b.r = 0
		return
	}
	bigger := make([]byte, max(firstBuffer, 2*len(b.buf)))
	copy(bigger, b.buf[:b.w])
	b.buf = bigger
}

// block returns everything up to and including the first empty line: a head, or a trailer section. Lines must end in CRLF.
// The bytes stay valid until the next fill. empty says that a block may be just the empty line, as trailers mostly are.
func (b *reader) block(limit int, empty bool) ([]byte, error) {
	line := 0 // start of the current line, relative to r
	scan := 0
	for {
		data := b.buffered()
		for {
			i := bytes.IndexByte(data[scan:], '\n')
			if i < 0 {
				break
			}
			end := scan + i
			if end == 0 || data[end-1] != '\r' {
				return nil, errBareLF
			}
			if end-1 == line && (line > 0 || empty) {
				if end >= limit {
					return nil, errTooLarge
				}
				b.r += end + 1
				return data[:end+1], nil
			}
			line, scan = end+1, end+1
		}
		if scan = len(data); scan > limit {
			return nil, errTooLarge
		}
		if err := b.fill(); err != nil {
			if err == io.EOF && len(data) > 0 {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
	}
}

// line returns one CRLF-ended line without its end, at most limit bytes.
func (b *reader) line(limit int) ([]byte, error) {
	for {
		data := b.buffered()
		i := bytes.IndexByte(data, '\n')
		if i > limit || i < 0 && len(data) > limit {
			return nil, errTooLarge
		}
		if i >= 0 {
			if i == 0 || data[i-1] != '\r' {
				return nil, errBareLF
			}
			b.r += i + 1
			return data[:i-1], nil
		}
		if err := b.fill(); err != nil {
			return nil, unexpected(err)
		}
	}
}

// unexpected turns an end in the middle of something into what it is.
func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// writer collects what goes out and counts it.
type writer struct {
	conn  Conn
	buf   []byte
	idle  time.Duration
	armed time.Time
	n     int64
}

func (w *writer) arm() error {
	now := time.Now()
	if now.Sub(w.armed) <= deadlineStep {
		return nil
	}
	w.armed = now
	return w.conn.SetWriteDeadline(now.Add(w.idle))
}

// write collects p, and sends when enough is collected.
func (w *writer) write(p []byte) error {
	if len(w.buf)+len(p) > firstBuffer && len(w.buf) > 0 {
		if err := w.flush(); err != nil {
			return err
		}
	}
	if len(p) >= firstBuffer {
		return w.send(p)
	}
	w.buf = append(w.buf, p...)
	return nil
}

func (w *writer) flush() error {
	if len(w.buf) == 0 {
		return nil
	}
	err := w.send(w.buf)
	w.buf = w.buf[:0]
	return err
}

func (w *writer) send(p []byte) error {
	if err := w.arm(); err != nil {
		return err
	}
	n, err := w.conn.Write(p)
	w.n += int64(n)
	return err
}

// splices says whether bytes can go from src to the connection inside the kernel.
func (w *writer) splices(src *reader) bool {
	_, to := w.conn.(*net.TCPConn)
	_, from := src.conn.(*net.TCPConn)
	return to && from
}

// splice moves n bytes from src to the connection inside the kernel, pushing the deadlines on while bytes move.
func (w *writer) splice(src *reader, n int64) error {
	to := w.conn.(*net.TCPConn)
	limited := &io.LimitedReader{R: src.conn, N: n}
	for limited.N > 0 {
		now := time.Now()
		w.armed, src.armed = now, now
		// Twice for writing: see tunnel.Splicer, which does the same for the same reason.
		if err := errors.Join(src.conn.SetReadDeadline(now.Add(src.idle)), w.conn.SetWriteDeadline(now.Add(2*w.idle))); err != nil {
			return err
		}
		moved, err := to.ReadFrom(limited)
		w.n += moved
		switch {
		case err == nil && limited.N > 0:
			return io.ErrUnexpectedEOF
		case err != nil && (moved == 0 || !errors.Is(err, os.ErrDeadlineExceeded)):
			return err
		}
	}
	w.armed = time.Time{}
	return nil
}

package plainhttp

import (
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/gateway/tunnel"
)

const (
	chunkFront = 18 // 16 hex digits and a line end
	chunkBack  = 2
	// filterBuffer is read and written at once where a body passes through a filter: one TLS record's worth, and the frame of a chunk.
	filterBuffer = recordSize + chunkFront + chunkBack
)

// inspect shows the answer's head to the inspector and takes over what it made of it.
func (c *exchange) inspect() error {
	if c.inspector == nil {
		return nil
	}
	p := &c.response
	c.seen = Answer{Status: p.status, Header: p.fields.header()}
	if err := c.inspector.Answer(&c.seen); err != nil {
		return malformed{err}
	}
	p.fields.setHeader(c.seen.Header)
	p.reason = []byte(http.StatusText(p.status)) // what the upstream wrote there is text like any other
	return nil
}

// bodyReader reads one body without its framing. After io.EOF the trailer fields are there.
type bodyReader struct {
	src     *reader
	as      framing
	left    int64 // of the body, or of the chunk
	begun   bool  // a chunk was read
	ended   bool
	limit   int
	trailer fields
}

func (b *bodyReader) Read(p []byte) (int, error) {
	if b.ended || len(p) == 0 {
		return 0, io.EOF
	}
	if b.as == chunked && b.left == 0 {
		if err := b.nextChunk(); err != nil {
			return 0, err
		}
	}
	if b.as == counted && b.left == 0 || b.ended {
		b.ended = true
		return 0, io.EOF
	}
	if len(b.src.buffered()) == 0 {
		if err := b.src.fill(); err == io.EOF && b.as == untilClose {
			b.ended = true
			return 0, io.EOF
		} else if err != nil {
			return 0, unexpected(err)
		}
	}
	have := b.src.buffered()
	if b.as != untilClose {
		have = have[:min(int64(len(have)), b.left)]
		b.left -= int64(min(len(have), len(p)))
	}
	n := copy(p, have)
	b.src.r += n
	return n, nil
}

// nextChunk reads up to the next chunk's data, or through the trailers.
func (b *bodyReader) nextChunk() error {
	if b.begun {
		if end, err := b.src.line(2); err != nil {
			return err
		} else if len(end) != 0 {
			return errChunk
		}
	}
	b.begun = true
	line, err := b.src.line(maxChunkLine)
	if err != nil {
		return err
	}
	if b.left, err = parseChunk(line); err != nil || b.left > 0 {
		return err
	}
	lines, err := b.src.block(b.limit, true)
	if err != nil {
		return unexpected(err)
	}
	b.ended = true
	return b.trailer.parseTrailers(lines)
}

// filtered relays the body through the inspector's filter. Each piece goes on as soon as it is there.
func (c *exchange) filtered(as, to framing, length int64) error {
	if err := c.to.flush(); err != nil {
		return err
	}
	from := &bodyReader{src: &c.upFrom, as: as, left: max(length, 0), limit: c.server.limits.Head}
	if as == chunked {
		from.left = 0
	} else if length < 0 || length >= spliceFrom {
		c.upFrom.widen()
	}
	var r io.Reader = from
	if c.seen.Filter != nil {
		r = c.seen.Filter(from)
	}
	buf := c.server.filters.get()
	defer c.server.filters.pool.Put(buf)
	left := length
	for {
		n, err := r.Read((*buf)[chunkFront : len(*buf)-chunkBack])
		if n > 0 {
			if left -= int64(n); to == counted && left < 0 {
				return errors.New("the body grew")
			}
			if err := c.to.send(frame(*buf, n, to)); err != nil {
				return err
			}
		}
		if err == io.EOF {
			break
		} else if err != nil {
			return err
		}
	}
	if to == counted && left != 0 {
		return io.ErrUnexpectedEOF
	}
	if _, err := io.Copy(io.Discard, from); err != nil { // what a decoder left unread, up to the end of the framing
		return err
	}
	return c.endFiltered(from, to)
}

// endFiltered writes the end of a chunked body with its trailer fields.
func (c *exchange) endFiltered(from *bodyReader, to framing) error {
	if to != chunked {
		return nil
	}
	h := from.trailer.header()
	if c.seen.Trailer != nil {
		c.seen.Trailer(h)
	}
	from.trailer.setHeader(h)
	out := from.trailer.append([]byte("0\r\n"))
	return c.to.send(append(out, "\r\n"...))
}

// frame returns the n bytes that lie behind chunkFront, as a chunk if that is the framing.
func frame(buf []byte, n int, to framing) []byte {
	data := buf[chunkFront : chunkFront+n]
	if to != chunked {
		return data
	}
	var size [20]byte
	head := append(strconv.AppendInt(size[:0], int64(n), 16), "\r\n"...)
	start := chunkFront - copy(buf[chunkFront-len(head):], head)
	copy(buf[chunkFront+n:], "\r\n")
	return buf[start : chunkFront+n+chunkBack]
}

// buffers are those of filtered bodies.
type buffers struct{ pool sync.Pool }

func (b *buffers) get() *[]byte {
	if p, ok := b.pool.Get().(*[]byte); ok {
		return p
	}
	p := make([]byte, filterBuffer)
	return &p
}

// converse moves bytes both ways after an upgrade, where they cannot be spliced: what the upstream sends passes the inspector's filter.
func (c *exchange) converse() {
	var last atomic.Int64 // when anything moved
	last.Store(time.Now().UnixNano())
	idle := c.server.limits.Tunnel
	move := func(to *writer, r io.Reader, peer Conn) error {
		buf := c.server.filters.get()
		defer c.server.filters.pool.Put(buf)
		for {
			n, err := r.Read(*buf)
			if n > 0 {
				last.Store(time.Now().UnixNano())
				if err := to.send((*buf)[:n]); err != nil {
					return err
				}
			}
			quiet := time.Since(time.Unix(0, last.Load()))
			switch {
			case err == io.EOF:
				return peer.CloseWrite()
			case errors.Is(err, os.ErrDeadlineExceeded) && quiet < idle:
			case err != nil:
				return err
			}
		}
	}
	c.from.idle, c.upFrom.idle, c.to.idle, c.upTo.idle = idle, idle, idle, idle
	var down io.Reader = &bodyReader{src: &c.upFrom, as: untilClose}
	if c.seen.Filter != nil {
		down = c.seen.Filter(down)
	}
	sent := c.upTo.n
	var first error
	var once sync.Once
	end := func(err error) {
		if err != nil {
			once.Do(func() { first = err })
			tunnel.Break(below(c.client))
			tunnel.Break(below(c.up))
		}
	}
	var wg sync.WaitGroup
	wg.Go(func() { end(move(&c.to, down, c.client)) })
	end(move(&c.upTo, &bodyReader{src: &c.from, as: untilClose}, c.up))
	wg.Wait()
	c.result.Out += c.upTo.n - sent
	if !tunnel.Orderly(first) {
		c.result.Err = first
	}
}

// below returns the TCP connection under a connection, nil if there is none.
func below(c net.Conn) *net.TCPConn {
	for {
		if tcp, ok := c.(*net.TCPConn); ok {
			return tcp
		}
		over, ok := c.(interface{ NetConn() net.Conn })
		if !ok {
			return nil
		}
		c = over.NetConn()
	}
}

// quietTLS reads what lies in the socket or was read ahead: session tickets are taken in, anything else is an answer that nobody asked for.
func quietTLS(c Conn, raw syscall.RawConn) bool {
	var b [1]byte
	waiting := false
	if raw.Control(func(fd uintptr) {
		_, _, e := unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		waiting = e != unix.EAGAIN
	}) != nil {
		return false
	}
	deadline := time.Unix(1, 0) // only what was read ahead
	if waiting {
		deadline = time.Now().Add(time.Millisecond)
	}
	if c.SetReadDeadline(deadline) != nil {
		return false
	}
	_, err := c.Read(b[:])
	return errors.Is(err, os.ErrDeadlineExceeded) && c.SetReadDeadline(time.Time{}) == nil
}

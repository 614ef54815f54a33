package plainhttp

import (
	"errors"
	"io"
	"strconv"
)

const (
	// maxChunkLine bounds the line of a chunk's size: 16 hex digits and an extension that nobody needs.
	maxChunkLine = 256
	// spliceFrom is the length from which the rest of a counted body is moved in the kernel, or where that cannot be in large pieces.
	spliceFrom = 64 << 10
)

var errChunk = errors.New("a chunk's size is not a plain hexadecimal number")

// body relays one body from src to dst in its framing. Chunks are written anew: sizes in one spelling, extensions left out.
type body struct {
	dst   *writer
	src   *reader
	limit int  // of the trailer section
	plain bool // a chunked body is written without chunks, for an HTTP/1.0 client
	// look sees every piece of the payload before it is written, and may refuse it.
	look func([]byte) *Refusal
}

// refusedBody is a body that was refused while it was sent.
type refusedBody struct{ refusal *Refusal }

func (r refusedBody) Error() string { return r.refusal.Reason }

// write passes a piece of the payload on.
func (b *body) write(p []byte) error {
	if b.look != nil && len(p) > 0 {
		if r := b.look(p); r != nil {
			return refusedBody{r}
		}
	}
	return b.dst.write(p)
}

func (b *body) relay(as framing, length int64) error {
	var err error
	switch as {
	case counted:
		err = b.counted(length)
	case chunked:
		err = b.chunked()
	case untilClose:
		err = b.untilClose()
	}
	if err != nil {
		return err
	}
	return b.dst.flush()
}

func (b *body) counted(n int64) error {
	for n > 0 {
		have := b.src.buffered()
		if len(have) == 0 {
			if err := b.dst.flush(); err != nil {
				return err
			}
			if n >= spliceFrom && b.look == nil && b.dst.splices(b.src) {
				return b.dst.splice(b.src, n)
			}
			if n >= spliceFrom {
				b.src.widen()
			}
			if err := b.src.fill(); err != nil {
				return unexpected(err)
			}
			continue
		}
		have = have[:min(int64(len(have)), n)]
		if err := b.write(have); err != nil {
			return err
		}
		b.src.r += len(have)
		n -= int64(len(have))
	}
	return nil
}

func (b *body) untilClose() error {
	for {
		if err := b.write(b.src.buffered()); err != nil {
			return err
		}
		b.src.r = b.src.w
		if err := b.dst.flush(); err != nil {
			return err
		}
		if err := b.src.fill(); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
	}
}

func (b *body) chunked() error {
	for {
		if len(b.src.buffered()) == 0 {
			if err := b.dst.flush(); err != nil {
				return err
			}
		}
		line, err := b.src.line(maxChunkLine)
		if err != nil {
			return err
		}
		n, err := parseChunk(line)
		if err != nil {
			return err
		}
		if n == 0 {
			return b.trailers()
		}
		if !b.plain {
			var size [20]byte
			if err := b.dst.write(append(strconv.AppendInt(size[:0], n, 16), "\r\n"...)); err != nil {
				return err
			}
		}
		if err := b.counted(n); err != nil {
			return err
		}
		end, err := b.src.line(2)
		if err != nil {
			return err
		}
		if len(end) != 0 {
			return errChunk
		}
		if !b.plain {
			if err := b.dst.write([]byte("\r\n")); err != nil {
				return err
			}
		}
	}
}

// parseChunk reads a chunk's size. Servers have read " 5", "+5" and "0x5" in different ways, so only digits pass.
func parseChunk(line []byte) (int64, error) {
	var n int64
	for i, c := range line {
		switch {
		case '0' <= c && c <= '9':
			c -= '0'
		case 'a' <= c && c <= 'f':
			c -= 'a' - 10
		case 'A' <= c && c <= 'F':
			c -= 'A' - 10
		case c == ';' && i > 0 && cleanExtension(line[i:]):
			return n, nil
		default:
			return 0, errChunk
		}
		if i == 15 {
			return 0, errChunk
		}
		n = n<<4 | int64(c)
	}
	if len(line) == 0 {
		return 0, errChunk
	}
	return n, nil
}

func cleanExtension(ext []byte) bool {
	for _, c := range ext {
		if c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}

// trailers ends a chunked body. Fields that would have had a meaning in the head are left out, as RFC 9110 §6.5.1 demands.
func (b *body) trailers() error {
	lines, err := b.src.block(b.limit, true)
	if err != nil {
		return unexpected(err)
	}
	var f fields
	if err := f.parse(lines[:len(lines)-2]); err != nil {
		return err
	}
	if b.look != nil {
		for _, x := range f.list { // those too that are left out: they tell what the program tries
			for _, part := range [...][]byte{x.name, x.value} {
				if r := b.look(part); r != nil {
					return refusedBody{r}
				}
			}
		}
	}
	if err := f.trailing(); err != nil {
		return err
	}
	if b.plain {
		return nil
	}
	if err := b.dst.write([]byte("0\r\n")); err != nil {
		return err
	}
	return b.dst.write(append(f.append(nil), "\r\n"...))
}

// parseTrailers reads a trailer section as block returned it, as far as it is passed on.
func (f *fields) parseTrailers(lines []byte) error {
	if err := f.parse(lines[:len(lines)-2]); err != nil {
		return err
	}
	return f.trailing()
}

// trailing leaves out of a trailer section what would have had a meaning in the head.
func (f *fields) trailing() error {
	if f.hosts > 0 || f.length >= 0 || f.chunked {
		return errors.New("a trailer names Host or a framing field")
	}
	for _, name := range [...]string{"authorization", "cookie", "set-cookie", "content-type", "content-encoding", "content-range", "cache-control", "location"} {
		f.list = drop(f.list, []byte(name))
	}
	return nil
}

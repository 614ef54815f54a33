package wire

import (
	"errors"
	"io"
)

// Filter changes bytes on their way, and may hold some back until it knows more.
type Filter interface {
	// Next takes bytes and returns those that can go on, valid until the next call.
	Next(p []byte) []byte
	// End returns what was held back.
	End() []byte
}

// CopyFetch copies an answer to a fetch, of any version. What comes in bands goes through a filter for each band, since a client joins what is split over
// lines: progress for the person, the pack, an error. The rest, and a pack that comes without bands, passes as it is. An end of the source inside
// a line is an error; flush is called where the source pauses.
func CopyFetch(to io.Writer, from io.Reader, filter func() Filter, flush func() error) error {
	c := &bandCopy{to: to, lines: NewReader(from, 1<<62), filter: filter}
	for {
		kind, payload, err := c.lines.Next()
		switch {
		case err == io.EOF:
			return errors.Join(c.end(), flush())
		case err == ErrSyntax && c.lines.digits == [4]byte{'P', 'A', 'C', 'K'}:
			if _, err := to.Write(c.lines.digits[:]); err != nil {
				return err
			}
			_, err := io.Copy(to, from)
			return err
		case err != nil:
			return early(err)
		}
		if err := c.line(kind, payload); err != nil {
			return err
		}
		if kind != Data || len(payload) < maxPayload/2 {
			if err := flush(); err != nil {
				return err
			}
		}
	}
}

type bandCopy struct {
	to     io.Writer
	lines  *Reader
	filter func() Filter
	bands  [bandFatal + 1]Filter
	out    []byte
}

// line copies one line.
func (c *bandCopy) line(kind Kind, payload []byte) error {
	if kind != Data {
		if err := c.end(); err != nil {
			return err
		}
		_, err := c.to.Write([]byte([...]string{Flush: "0000", Delimiter: "0001", ResponseEnd: "0002"}[kind]))
		return err
	}
	if len(payload) < 2 || payload[0] < bandData || payload[0] > bandFatal { // also the empty line by which servers say that they are alive
		c.out = AppendLine(c.out[:0], string(payload))
		_, err := c.to.Write(c.out)
		return err
	}
	band := payload[0]
	if c.bands[band] == nil {
		c.bands[band] = c.filter()
	}
	return c.write(band, c.bands[band].Next(payload[1:]))
}

// end writes what the filters held back.
func (c *bandCopy) end() error {
	for band, f := range c.bands {
		if f == nil {
			continue
		}
		c.bands[band] = nil
		if err := c.write(byte(band), f.End()); err != nil {
			return err
		}
	}
	return nil
}

func (c *bandCopy) write(band byte, data []byte) error {
	for len(data) > 0 {
		n := min(len(data), maxBand)
		c.out = append(appendLength(c.out[:0], n+5), band)
		c.out = append(c.out, data[:n]...)
		if _, err := c.to.Write(c.out); err != nil {
			return err
		}
		data = data[n:]
	}
	return nil
}

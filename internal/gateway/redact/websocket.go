package redact

import (
	"encoding/binary"
	"errors"
	"io"
)

// errFrame is what a WebSocket server may not send: it would hide bytes.
var errFrame = errors.New("a WebSocket frame is malformed, masked or extended")

const (
	maxControl = 125 // payload of a control frame (RFC 6455 §5.5)
	wsBuffer   = 16 << 10
)

// websocket reads what a WebSocket server sends. Payloads of data frames are one stream, since a find may go on in the next fragment;
// control frames may stand between fragments and are looked at by themselves.
type websocket struct {
	from  io.Reader
	set   *Set
	data  *Stream
	done  func(int)
	buf   []byte
	in    []byte // read and not yet taken
	out   []byte // ready to be read
	head  []byte // of a frame, as far as it is there
	ctl   []byte // payload of a control frame, as far as it is there
	left  uint64 // of the payload
	isCtl bool
	err   error
}

// WebSocket returns a reader of the same bytes, as a server sends them after the handshake, with all finds in payloads replaced.
func (s *Set) WebSocket(r io.Reader, done func(int)) io.Reader {
	if s == nil {
		return r
	}
	return &websocket{from: r, set: s, data: s.Stream(), done: done}
}

func (w *websocket) Read(p []byte) (int, error) {
	for len(w.out) == 0 {
		if w.err != nil {
			return 0, w.err
		}
		if w.buf == nil {
			w.buf = make([]byte, wsBuffer)
		}
		var n int
		n, w.err = w.from.Read(w.buf)
		w.in, w.out = w.buf[:n], w.out[:0]
		if err := w.take(); err != nil {
			w.out, w.err = nil, err
		}
	}
	n := copy(p, w.out)
	w.out = w.out[n:]
	return n, nil
}

// take works off what was read.
func (w *websocket) take() error {
	for len(w.in) > 0 {
		if w.left > 0 {
			w.payload()
			continue
		}
		w.head = append(w.head, w.in[0])
		w.in = w.in[1:]
		whole, err := w.header()
		if err != nil {
			return err
		}
		if whole {
			w.out = append(w.out, w.head...)
			w.head = w.head[:0]
		}
	}
	return nil
}

// header says whether the frame's header is whole, and takes it in.
func (w *websocket) header() (bool, error) {
	h := w.head
	if len(h) < 2 {
		return false, nil
	}
	opcode, length := h[0]&15, h[1]&127
	w.isCtl = opcode >= 8
	known := opcode <= 2 || opcode >= 8 && opcode <= 10
	if h[0]&0x70 != 0 || h[1]&128 != 0 || !known || w.isCtl && (length > maxControl || h[0]&128 == 0) {
		return false, errFrame
	}
	switch {
	case length < 126:
		w.left = uint64(length)
	case length == 126 && len(h) == 4:
		w.left = uint64(binary.BigEndian.Uint16(h[2:]))
	case length == 127 && len(h) == 10:
		if w.left = binary.BigEndian.Uint64(h[2:]); w.left>>63 != 0 {
			return false, errFrame
		}
	default:
		return false, nil
	}
	return true, nil
}

// payload passes on as much of the payload as there is.
func (w *websocket) payload() {
	n := uint64(len(w.in))
	n = min(n, w.left)
	piece := w.in[:n]
	w.in, w.left = w.in[n:], w.left-n
	if w.isCtl {
		w.ctl = append(w.ctl, piece...)
		if w.left == 0 {
			w.tell(w.set.Replace(w.ctl))
			w.out = append(w.out, w.ctl...)
			w.ctl = w.ctl[:0]
		}
		return
	}
	before := w.data.Count
	if w.left == 0 {
		w.out = append(w.out, w.data.Frame(piece)...)
	} else {
		w.out = append(w.out, w.data.Next(piece)...)
	}
	w.tell(w.data.Count - before)
}

func (w *websocket) tell(n int) {
	if n > 0 {
		w.done(n)
	}
}

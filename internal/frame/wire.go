package frame

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Version is the protocol's version. Both sides must have the same: they are shipped together.
const Version = 2

// The bounds of the wire. They are part of the protocol: a peer that goes beyond is disconnected.
const (
	// MaxPayload is the most that one frame carries.
	MaxPayload = 64 << 10
	// Window is how many bytes of one stream may be under way without having been consumed.
	Window = 256 << 10

	headerLen  = 6
	maxHello   = 4 << 10
	maxMessage = 4 << 10 // Exit, Query and Owner
	maxText    = 1 << 10 // free text inside messages
	maxToken   = 255     // its length is one byte in Hello
)

// Type says what a frame is. The zero value is invalid.
type Type uint8

// The types of frames. R is the runner, O its owner.
const (
	TypeHello   Type = iota + 1 // R to O, first and once: version, token, facts
	TypeStart                   // O to R, once, in pieces: the Stream byte is 1 while more pieces follow
	TypeStarted                 // R to O: the command runs; its process id inside
	TypeData                    // bytes of a stream
	TypeClose                   // from the side that writes a stream: it has ended; from the side that reads it: stop
	TypeCredit                  // from the side that reads a stream: so many bytes were consumed
	TypeSignal                  // O to R: deliver a signal to the command
	TypeResize                  // O to R: the terminal's new size
	TypeQuery                   // O to R: who owns this socket?
	TypeOwner                   // R to O: answer to a query
	TypeExit                    // R to O, once: how the command ended; output may still follow
	TypeError                   // R to O: the runner cannot go on; the connection ends
	TypePing                    // either way
	TypePong                    // the ping's payload, back
	TypeSpawn                   // O to R: connect once more for a further command; the one-time token of that connection inside
	typeEnd
)

var typeNames = [typeEnd]string{"", "hello", "start", "started", "data", "close", "credit", "signal", "resize", "query", "owner", "exit", "error", "ping", "pong", "spawn"}

// String names the type.
func (t Type) String() string {
	if t > 0 && t < typeEnd {
		return typeNames[t]
	}
	return fmt.Sprintf("type(%d)", uint8(t))
}

// Stream numbers a byte stream of the command as the command numbers its file descriptors.
type Stream uint8

// The streams. With a terminal, Stdin and Stdout are its two directions and Stderr ends at once.
const (
	Stdin Stream = iota
	Stdout
	Stderr
	streams = 3
)

// String names the stream.
func (s Stream) String() string {
	if s < streams {
		return [...]string{"stdin", "stdout", "stderr"}[s]
	}
	return fmt.Sprintf("stream(%d)", uint8(s))
}

// shape is what a header may say for one type: the highest Stream byte and the payload's size.
type shape struct {
	stream   Stream
	min, max uint32
}

var shapes = [typeEnd]shape{
	TypeHello:   {0, 3, maxHello},
	TypeStart:   {1, 1, MaxPayload},
	TypeStarted: {0, 4, 4},
	TypeData:    {streams - 1, 1, MaxPayload},
	TypeClose:   {streams - 1, 0, 0},
	TypeCredit:  {streams - 1, 4, 4},
	TypeSignal:  {0, 1, 1},
	TypeResize:  {0, 4, 4},
	TypeQuery:   {0, 2, maxMessage},
	TypeOwner:   {0, 2, maxMessage},
	TypeExit:    {0, 2, maxMessage},
	TypeError:   {0, 0, maxText},
	TypePing:    {0, 8, 8},
	TypePong:    {0, 8, 8},
	TypeSpawn:   {0, 1, maxToken},
}

// ErrProtocol is wrapped by every error that says the peer broke the protocol.
var ErrProtocol = errors.New("protocol violation")

func violation(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrProtocol, fmt.Sprintf(format, args...))
}

// Frame is one unit of the wire.
type Frame struct {
	Type    Type
	Stream  Stream
	Payload []byte
}

// check says whether a header is one that the protocol knows.
func check(t Type, s Stream, n uint32) error {
	if t == 0 || t >= typeEnd {
		return violation("unknown frame type %d", uint8(t))
	}
	sh := shapes[t]
	if s > sh.stream {
		return violation("%s frame for stream %d", t, uint8(s))
	}
	if n < sh.min || n > sh.max {
		return violation("%s frame of %d bytes, want %d to %d", t, n, sh.min, sh.max)
	}
	return nil
}

// Append adds the frame's wire form to dst. The caller has kept the bounds of the type; Reader on the other side enforces them.
func Append(dst []byte, f Frame) []byte {
	dst = append(dst, byte(f.Type), byte(f.Stream))
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(f.Payload)))
	return append(dst, f.Payload...)
}

// Reader parses frames strictly: an unknown type, a wrong stream or a wrong size is an error before any of the payload is read.
// It holds at most one frame. It is not safe for concurrent use.
type Reader struct {
	r   *bufio.Reader
	buf []byte
}

// NewReader returns a Reader of r.
func NewReader(r io.Reader) *Reader { return &Reader{r: bufio.NewReaderSize(r, 16<<10)} }

// Next returns the next frame; its Payload is valid until the following call. A stream that ends between two frames gives io.EOF,
// one that ends inside a frame io.ErrUnexpectedEOF.
func (r *Reader) Next() (Frame, error) {
	var h [headerLen]byte
	if _, err := io.ReadFull(r.r, h[:]); err != nil {
		return Frame{}, err
	}
	f := Frame{Type: Type(h[0]), Stream: Stream(h[1])}
	n := binary.BigEndian.Uint32(h[2:])
	if err := check(f.Type, f.Stream, n); err != nil {
		return Frame{}, err
	}
	if int(n) > cap(r.buf) {
		r.buf = make([]byte, max(int(n), 512))
	}
	f.Payload = r.buf[:n]
	if _, err := io.ReadFull(r.r, f.Payload); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return Frame{}, err
	}
	return f, nil
}

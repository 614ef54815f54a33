package wire

import (
	"errors"
	"io"
)

// Kind is what a pkt-line is (gitprotocol-common, gitprotocol-v2). The zero value is none.
type Kind uint8

// The kinds.
const (
	Data        Kind = iota + 1
	Flush            // 0000: the end of a message
	Delimiter        // 0001: between sections, version 2
	ResponseEnd      // 0002: the end of a response of a stateless connection, version 2
)

// MaxLine is the most that one pkt-line has, its four digits included (LARGE_PACKET_MAX in git's pkt-line.h).
const MaxLine = 65520

// maxPayload is what is left without the digits.
const maxPayload = MaxLine - 4

// ErrSyntax is of what is not Git's protocol. Its text quotes nothing of the input.
var ErrSyntax = errors.New("this is not Git's protocol")

// Reader reads pkt-lines. It takes nothing from its source beyond the line that it returns, so what follows the last line can be read there.
type Reader struct {
	from   io.Reader
	buf    []byte
	left   int64
	digits [4]byte // of the last line
}

// NewReader returns a reader that refuses more than most bytes in all.
func NewReader(r io.Reader, most int64) *Reader { return &Reader{from: r, left: most} }

// ErrTooLong is of a message with more bytes than its reader accepts.
var ErrTooLong = errors.New("the message is too long")

// Next returns the next line. The payload is valid until the next call. io.EOF means an end before a line; an end inside one is
// io.ErrUnexpectedEOF.
func (r *Reader) Next() (Kind, []byte, error) {
	if _, err := io.ReadFull(r.from, r.digits[:]); err != nil {
		return 0, nil, err
	}
	length, ok := length(r.digits)
	if r.left -= int64(max(length, 4)); r.left < 0 {
		return 0, nil, ErrTooLong
	}
	switch {
	case !ok || length == 3 || length > MaxLine:
		return 0, nil, ErrSyntax
	case length < 4:
		return [...]Kind{Flush, Delimiter, ResponseEnd}[length], nil, nil
	}
	if cap(r.buf) < length-4 {
		r.buf = make([]byte, max(length-4, 1024))
	}
	payload := r.buf[:length-4]
	if _, err := io.ReadFull(r.from, payload); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return 0, nil, err
	}
	return Data, payload, nil
}

// length reads four hexadecimal digits.
func length(digits [4]byte) (int, bool) {
	n := 0
	for _, c := range digits {
		n <<= 4
		switch {
		case '0' <= c && c <= '9':
			n |= int(c - '0')
		case 'a' <= c && c <= 'f':
			n |= int(c-'a') + 10
		case 'A' <= c && c <= 'F':
			n |= int(c-'A') + 10
		default:
			return 0, false
		}
	}
	return n, true
}

// AppendLine appends one line. A payload that does not fit is a mistake of the caller.
func AppendLine(b []byte, payload string) []byte {
	if len(payload) > maxPayload {
		panic("wire: payload of a pkt-line is too long")
	}
	return append(appendLength(b, len(payload)+4), payload...)
}

func appendLength(b []byte, n int) []byte {
	const digits = "0123456789abcdef"
	return append(b, digits[n>>12&15], digits[n>>8&15], digits[n>>4&15], digits[n&15])
}

// AppendFlush appends a flush.
func AppendFlush(b []byte) []byte { return append(b, "0000"...) }

// AppendDelimiter appends a delimiter.
func AppendDelimiter(b []byte) []byte { return append(b, "0001"...) }

// chomp takes one line break off the end, as git does.
func chomp(payload []byte) []byte {
	if n := len(payload); n > 0 && payload[n-1] == '\n' {
		return payload[:n-1]
	}
	return payload
}

// Package wire (GATEWAY) reads and writes what Git says over smart HTTP: pkt-lines, the list of refs, the commands of a push, and its
// report. It is as strict as git itself, or stricter; what it does not know it refuses.
package wire

import (
	"bytes"
	"encoding/hex"
	"errors"
)

// Format is a repository's hash function. The zero value is none.
type Format uint8

// The formats of gitformat-hash-function-transition.
const (
	SHA1   Format = iota + 1 // 20 bytes
	SHA256                   // 32 bytes
)

// Size is the length of an id in bytes.
func (f Format) Size() int {
	switch f {
	case SHA1:
		return 20
	case SHA256:
		return 32
	}
	return 0
}

// String returns the name that object-format= has on the wire.
func (f Format) String() string {
	switch f {
	case SHA1:
		return "sha1"
	case SHA256:
		return "sha256"
	}
	return "unknown"
}

// ParseFormat reads the value of object-format=.
func ParseFormat(s string) (Format, error) {
	switch s {
	case "sha1":
		return SHA1, nil
	case "sha256":
		return SHA256, nil
	}
	return 0, errors.New("unknown object format")
}

// ID names an object. Ids can be compared with ==. The zero value is no id; the id of all zeros, which stands for "no object" in a push, is one.
type ID struct {
	sum  [32]byte
	size uint8
}

// NewID returns the id with these bytes, 20 or 32 of them.
func NewID(sum []byte) (ID, bool) {
	if len(sum) != 20 && len(sum) != 32 {
		return ID{}, false
	}
	id := ID{size: uint8(len(sum))}
	copy(id.sum[:], sum)
	return id, true
}

// ParseID reads an id of a format in lower-case hexadecimal.
func ParseID(f Format, text []byte) (ID, bool) {
	if f.Size() == 0 || len(text) != 2*f.Size() || bytes.ContainsFunc(text, func(r rune) bool { return !('0' <= r && r <= '9' || 'a' <= r && r <= 'f') }) {
		return ID{}, false
	}
	id := ID{size: uint8(f.Size())}
	if _, err := hex.Decode(id.sum[:], text); err != nil {
		return ID{}, false
	}
	return id, true
}

// Zero returns the id that stands for "no object".
func (f Format) Zero() ID { return ID{size: uint8(f.Size())} }

// IsZero reports whether the id stands for "no object".
func (id ID) IsZero() bool { return id.sum == [32]byte{} }

// Bytes returns the id's own bytes, a copy.
func (id ID) Bytes() []byte { return append([]byte(nil), id.sum[:id.size]...) }

// String returns the id in hexadecimal.
func (id ID) String() string { return hex.EncodeToString(id.sum[:id.size]) }

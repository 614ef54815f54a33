// Package secret (WORDS) holds bytes that must not be seen: they cannot be printed, logged or encoded, only asked for by name.
package secret

import (
	"bytes"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"log/slog"
)

// hidden stands wherever a secret would have stood.
const hidden = "••••"

// showFrom is the length from which Mask shows the last four bytes: of a shorter secret they would be too large a part.
const showFrom = 12

// Bytes is a secret. No verb of fmt, no log handler and no encoder writes it, not even where it sits in an unexported field of something printed:
// there fmt and the log handlers do not call methods but follow structs, slices and pointers, and a function is where they stop. So the bytes lie behind one.
// Holding a function also makes the type incomparable: == with its telling time does not compile.
//
// The zero value is the empty secret. Copies share the bytes. It is safe for concurrent use, except Wipe.
type Bytes struct {
	get func() []byte
}

// New returns a secret that holds a copy of b.
func New(b []byte) Bytes { return hold(bytes.Clone(b)) }

// Take returns a secret that holds a copy of b, and clears b.
func Take(b []byte) Bytes {
	s := New(b)
	clear(b)
	return s
}

func hold(own []byte) Bytes { return Bytes{get: func() []byte { return own }} }

// Reveal returns the bytes themselves, for whoever injects or seals them. The caller neither changes nor keeps them.
func (s Bytes) Reveal() []byte {
	if s.get == nil {
		return nil
	}
	return s.get()
}

// Len returns the number of bytes.
func (s Bytes) Len() int { return len(s.Reveal()) }

// Empty reports whether there is no secret.
func (s Bytes) Empty() bool { return s.Len() == 0 }

// Equal compares in a time that depends on the lengths only. Two empty secrets are not equal: nothing proves nothing.
func (s Bytes) Equal(other Bytes) bool {
	return !s.Empty() && subtle.ConstantTimeCompare(s.Reveal(), other.Reveal()) == 1
}

// Wipe overwrites the bytes, for all copies. It is best effort: the runtime may have moved or copied them before.
func (s Bytes) Wipe() { clear(s.Reveal()) }

// Mask returns what a person may see: four dots, and the last four bytes if the secret has twelve or more and is one line of visible ASCII.
func (s Bytes) Mask() string {
	b := s.Reveal()
	if len(b) < showFrom {
		return hidden
	}
	for _, c := range b {
		if c <= ' ' || c > '~' {
			return hidden
		}
	}
	return hidden + string(b[len(b)-4:])
}

// errEncode is what encoders get that could bring the secret back elsewhere.
var errEncode = errors.New("a secret is not encoded")

// Format writes four dots, whatever the verb.
func (s Bytes) Format(f fmt.State, _ rune) {
	_, _ = io.WriteString(f, hidden) // fmt has no way to pass on an error
}

// String returns four dots.
func (s Bytes) String() string { return hidden }

// GoString returns four dots.
func (s Bytes) GoString() string { return hidden }

// MarshalText writes four dots, for JSON, XML and YAML.
func (s Bytes) MarshalText() ([]byte, error) { return []byte(hidden), nil }

// UnmarshalText refuses: what was encoded are dots.
func (s *Bytes) UnmarshalText([]byte) error { return errEncode }

// MarshalBinary refuses, for gob.
func (s Bytes) MarshalBinary() ([]byte, error) { return nil, errEncode }

// UnmarshalBinary refuses.
func (s *Bytes) UnmarshalBinary([]byte) error { return errEncode }

// LogValue returns four dots.
func (s Bytes) LogValue() slog.Value { return slog.StringValue(hidden) }

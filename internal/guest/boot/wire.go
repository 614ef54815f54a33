// Package boot (SANDBOX) is the wire between the init of a virtual machine and the supervisor outside it: one byte stream over one virtio-serial port.
//
// The supervisor takes everything that comes from the guest for hostile: each frame has a type that may come at that moment, a bounded length, and nothing that is
// followed. What it guarantees to the guest is that no byte is read beyond the frame that was asked for, so that the stream can be handed on to another program.
package boot

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Version is the protocol's version. Both sides are shipped together, and a machine with another one is refused.
const Version = 3

// PortName is the name of the virtio-serial port.
const PortName = "cofferdam.0"

// The bounds of the wire.
const (
	// SeedSize is the length of a seed in bytes: as much as the kernel's own generator hashes its input to, twice.
	SeedSize = 64
	// MaxChunk is the most that one frame of the changes carries.
	MaxChunk = 256 << 10

	headerLen = 5         // uint32 length of the payload, big endian, and the type
	maxBoot   = 120 << 10 // most of it certificate authorities; a little less than what the supervisor itself is told in one message
	maxWords  = 4 << 10   // Ready, Prepare and Ended
	maxText   = 1 << 10   // free text, in bytes
	maxRunner = 4 << 10   // the runner's boot line: what it takes itself, and less than a pipe holds
)

// kind says what a frame is. The zero value is invalid.
type kind uint8

const (
	kindReady    kind = iota + 1 // guest, first and once: up and idle
	kindPrepared                 // guest, after kindPrepare, once: all is there that does not depend on whose the sandbox will be
	kindStarted                  // guest, once: the runner was started
	kindFailed                   // guest, instead of anything else: why it cannot go on; the machine ends
	kindRested                   // guest, where Boot.Rest asks for it, once: no process of the sandbox is left, and it waits to be told to go on, or to boot anew
	kindEnded                    // guest, once: the runner is gone, and every process of the sandbox
	kindChunk                    // guest, after that: bytes of the changes
	kindDone                     // guest, last: the changes are complete; the machine ends
	kindPrepare                  // host, before kindBoot and at most once: what to build before it is known whose it will be
	kindBoot                     // host, once: a seed, then what to build
	kindClock                    // host: what time it is, in nanoseconds since 1970
	kindReseed                   // host: a seed, after the machine was stopped or copied
	kindKill                     // host: end at once
	kindStop                     // host: end every process of the sandbox, then go on as when the runner ends
	kindGoOn                     // host, after kindRested: end as ever
	kindEnd
)

var kindNames = [kindEnd]string{"", "ready", "prepared", "started", "failed", "rested", "ended", "chunk", "done", "prepare", "boot", "clock", "reseed", "kill", "stop", "go on"}

// String names the kind.
func (k kind) String() string {
	if k > 0 && k < kindEnd {
		return kindNames[k]
	}
	return fmt.Sprintf("kind(%d)", uint8(k))
}

// sizes says how long the payload of a frame is, from least to most.
func sizes(k kind) (least, most int) {
	switch k {
	case kindReady, kindEnded, kindPrepare:
		return 2, maxWords
	case kindFailed:
		return 0, maxText
	case kindChunk:
		return 1, MaxChunk
	case kindBoot:
		return SeedSize + 2, SeedSize + maxBoot
	case kindClock:
		return 8, 8
	case kindReseed:
		return SeedSize, SeedSize
	}
	return 0, 0
}

// write sends one frame in one piece.
func write(w io.Writer, k kind, payload []byte) error {
	if least, most := sizes(k); len(payload) < least || len(payload) > most {
		return fmt.Errorf("a frame %s of %d bytes is not between %d and %d", k, len(payload), least, most)
	}
	frame := binary.BigEndian.AppendUint32(make([]byte, 0, headerLen+len(payload)), uint32(len(payload)))
	frame = append(append(frame, byte(k)), payload...)
	_, err := w.Write(frame)
	clear(frame) // it may hold a seed or a token
	return err
}

// read takes one frame of one of the kinds, and no byte more. io.EOF means that the stream ended between frames.
func read(r io.Reader, wanted ...kind) (kind, []byte, error) {
	var header [headerLen]byte
	if _, err := io.ReadFull(r, header[:]); err != nil {
		return 0, nil, err
	}
	n, k := binary.BigEndian.Uint32(header[:]), kind(header[4])
	for _, want := range wanted {
		if k != want {
			continue
		}
		if least, most := sizes(k); uint64(n) < uint64(least) || uint64(n) > uint64(most) {
			return 0, nil, fmt.Errorf("a frame %s of %d bytes is not between %d and %d", k, n, least, most)
		}
		payload := make([]byte, n)
		if _, err := io.ReadFull(r, payload); err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return 0, nil, err
		}
		return k, payload, nil
	}
	return 0, nil, fmt.Errorf("a frame %s was not expected here", k)
}

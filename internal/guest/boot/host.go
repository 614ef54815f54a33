package boot

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/cofferdam/cofferdam/internal/frame"
)

// Host is the supervisor's end. The methods that wait are called in the order Ready, Prepared (after Prepare), Started, Rested (if Boot asks for that), Ended, Changes, by one goroutine; those that send may be called from any.
// None has a deadline of its own: whoever owns the stream closes it, or sets one there.
type Host struct {
	stream io.ReadWriter
	send   sync.Mutex
}

// NewHost takes the stream of a machine that was just started or copied.
func NewHost(stream io.ReadWriter) *Host { return &Host{stream: stream} }

// Failure is what a guest said when it could not go on.
type Failure struct{ Text string }

// Error returns the guest's words, which are bounded and hold nothing that a terminal obeys.
func (f *Failure) Error() string { return "the machine's init: " + f.Text }

// receive waits for one kind of frame, or a failure, which becomes an error.
func (h *Host) receive(wanted ...kind) (kind, []byte, error) {
	k, payload, err := read(h.stream, append(wanted, kindFailed)...)
	if err != nil {
		return 0, nil, fmt.Errorf("hear from the machine's init: %w", err)
	}
	if k == kindFailed {
		return 0, nil, &Failure{frame.Inert(string(payload), maxText)}
	}
	return k, payload, nil
}

// Ready waits until the machine is up and idle.
func (h *Host) Ready() (Ready, error) {
	var r Ready
	k, payload, err := h.receive(kindReady)
	if err != nil {
		return r, err
	}
	if err := decode(k, payload, &r); err != nil {
		return Ready{}, err
	}
	r.Kernel = frame.Inert(r.Kernel, maxText)
	if r.Version != Version {
		return Ready{}, fmt.Errorf("the machine's init speaks version %d and this program version %d: their releases differ", r.Version, Version)
	}
	return r, nil
}

// Prepare sends what the machine is to build before it is known whose it will be. What it then becomes, Boot says.
func (h *Host) Prepare(p Prepare) error {
	if err := p.validate(); err != nil {
		return fmt.Errorf("prepare the machine: %w", err)
	}
	payload, err := json.Marshal(p)
	if err != nil {
		return fmt.Errorf("prepare the machine: %w", err)
	}
	return h.order(kindPrepare, payload)
}

// Prepared waits until that was built.
func (h *Host) Prepared() error {
	_, _, err := h.receive(kindPrepared)
	return err
}

// Boot sends what the machine is to become.
func (h *Host) Boot(b Boot) error {
	payload, err := b.encode()
	if err != nil {
		return fmt.Errorf("boot the machine: %w", err)
	}
	defer clear(payload)
	return h.order(kindBoot, payload)
}

// Started waits until the runner was started, after Boot.
func (h *Host) Started() error {
	_, _, err := h.receive(kindStarted)
	return err
}

// Clock says what time it is, after the machine was stopped for a while.
func (h *Host) Clock(now time.Time) error {
	return h.order(kindClock, binary.BigEndian.AppendUint64(nil, uint64(now.UnixNano())))
}

// Reseed gives the machine's kernel fresh randomness.
func (h *Host) Reseed(seed [SeedSize]byte) error { return h.order(kindReseed, seed[:]) }

// Kill ends the machine at once, without its changes. A supervisor that can kill the machine's process need not ask.
func (h *Host) Kill() error { return h.order(kindKill, nil) }

// Stop ends every process of the sandbox; the machine then says what it says at the runner's own end, and sends the changes.
func (h *Host) Stop() error { return h.order(kindStop, nil) }

func (h *Host) order(k kind, payload []byte) error {
	h.send.Lock()
	defer h.send.Unlock()
	if err := write(h.stream, k, payload); err != nil {
		return fmt.Errorf("tell the machine's init: %w", err)
	}
	return nil
}

// Rested waits until the runner has ended and the machine is at rest, where Boot asked for that.
func (h *Host) Rested() error {
	_, _, err := h.receive(kindRested)
	return err
}

// GoOn has a machine that is at rest end as ever.
func (h *Host) GoOn() error { return h.order(kindGoOn, nil) }

// Ended waits for the end of the runner.
func (h *Host) Ended() (Ended, error) {
	var e Ended
	k, payload, err := h.receive(kindEnded)
	if err != nil {
		return e, err
	}
	if err := decode(k, payload, &e); err != nil {
		return Ended{}, err
	}
	e.Runner, e.OutOfMemory = frame.Inert(e.Runner, maxText), max(e.OutOfMemory, 0)
	return e, nil
}

// Changes returns, after Ended, what the run changed in an overlay workspace, in the form that changes.go describes. It ends with io.EOF when the guest said that it is
// complete; how much may come is for the caller to bound. There are none where there is no overlay workspace.
func (h *Host) Changes() io.Reader { return &changes{host: h} }

type changes struct {
	host *Host
	rest []byte
	done bool
}

// Read implements io.Reader.
func (c *changes) Read(p []byte) (int, error) {
	for len(c.rest) == 0 {
		if c.done {
			return 0, io.EOF
		}
		k, payload, err := c.host.receive(kindChunk, kindDone)
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF // the end is told, never guessed
		}
		if err != nil {
			return 0, err
		}
		c.rest, c.done = payload, k == kindDone
	}
	n := copy(p, c.rest)
	c.rest = c.rest[n:]
	return n, nil
}

package boot

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"sync"
	"time"
)

// Guest is the init's end. One goroutine receives; any may send.
type Guest struct {
	stream io.ReadWriter
	send   sync.Mutex
}

// NewGuest takes the open port.
func NewGuest(stream io.ReadWriter) *Guest { return &Guest{stream: stream} }

// Receive waits for the host's next message. io.EOF means that the host is gone.
func (g *Guest) Receive() (Order, error) {
	k, payload, err := read(g.stream, kindPrepare, kindBoot, kindClock, kindReseed, kindKill, kindStop, kindGoOn)
	if err != nil {
		return Order{}, err
	}
	switch k {
	case kindPrepare:
		p, err := decodePrepare(payload)
		return Order{Prepare: p}, err
	case kindBoot:
		b, err := decodeBoot(payload)
		clear(payload)
		return Order{Boot: b}, err
	case kindClock:
		return Order{Clock: time.Unix(0, int64(binary.BigEndian.Uint64(payload)))}, nil
	case kindStop:
		return Order{Stop: true}, nil
	case kindGoOn:
		return Order{GoOn: true}, nil
	case kindReseed:
		o := Order{Reseed: new([SeedSize]byte)}
		copy(o.Reseed[:], payload)
		clear(payload)
		return o, nil
	}
	return Order{Kill: true}, nil
}

// Ready says that the machine is up and idle.
func (g *Guest) Ready(kernel string) error {
	return g.tell(kindReady, Ready{Version: Version, Kernel: kernel})
}

// Prepared says that all is there that does not depend on whose the sandbox will be.
func (g *Guest) Prepared() error { return g.report(kindPrepared, nil) }

// Started says that the runner was started.
func (g *Guest) Started() error { return g.report(kindStarted, nil) }

// Rested says that no process of the sandbox is left and nothing happens until the host says so.
func (g *Guest) Rested() error { return g.report(kindRested, nil) }

// Failed says why the machine cannot go on.
func (g *Guest) Failed(why error) error {
	text := why.Error()
	return g.report(kindFailed, []byte(text[:min(len(text), maxText)]))
}

// Ended says that no process of the sandbox is left.
func (g *Guest) Ended(e Ended) error { return g.tell(kindEnded, e) }

// Changes returns, after Ended, a writer of the changes. Closing it says that they are complete.
func (g *Guest) Changes() io.WriteCloser { return chunks{g} }

func (g *Guest) tell(k kind, words any) error {
	payload, err := json.Marshal(words)
	if err != nil {
		return err
	}
	return g.report(k, payload)
}

func (g *Guest) report(k kind, payload []byte) error {
	g.send.Lock()
	defer g.send.Unlock()
	if err := write(g.stream, k, payload); err != nil {
		return fmt.Errorf("tell the host: %w", err)
	}
	return nil
}

type chunks struct{ guest *Guest }

// Write implements io.Writer.
func (c chunks) Write(p []byte) (int, error) {
	written := 0
	for len(p) > 0 {
		n := min(len(p), MaxChunk)
		if err := c.guest.report(kindChunk, p[:n]); err != nil {
			return written, err
		}
		p, written = p[n:], written+n
	}
	return written, nil
}

// Close implements io.Closer.
func (c chunks) Close() error { return c.guest.report(kindDone, nil) }

package gateway

import (
	"context"
	"net"
	"sync"
	"time"

	"github.com/cofferdam/cofferdam/internal/gateway/plainhttp"
)

const (
	// meterBurst is how much a pause earns: what passes at once after it.
	meterBurst = 250 * time.Millisecond
	// meterPiece is how many bytes of a connection pass before it waits, so that others have their turn.
	meterPiece = 32 << 10
)

// meter holds all that a sandbox sends and gets through the gateway to a number of bytes a second. Bytes pass first and are waited for afterwards, so that small
// messages are not delayed and nothing has to be given back. It is safe for concurrent use; nil holds nothing.
type meter struct {
	rate float64 // bytes a second

	mu    sync.Mutex
	ready time.Time // when everything that has passed has had its time
	held  time.Duration
}

func newMeter(rate int64) *meter {
	if rate <= 0 {
		return nil
	}
	return &meter{rate: float64(rate)}
}

// pass waits until n more bytes have had their time, or until ctx ends.
func (m *meter) pass(ctx context.Context, n int64) error {
	if m == nil || n <= 0 {
		return nil
	}
	wait := m.charge(time.Now(), n)
	if wait <= 0 {
		return nil
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// charge counts n bytes and returns how long they are to be waited for.
func (m *meter) charge(now time.Time, n int64) time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	before := m.ready
	if least := now.Add(-meterBurst); before.Before(least) {
		before = least
	}
	m.ready = before.Add(time.Duration(float64(n) / m.rate * float64(time.Second)))
	if before.Before(now) {
		before = now
	}
	if more := m.ready.Sub(before); more > 0 { // waits of several connections at once count once
		m.held += more
	}
	return m.ready.Sub(now)
}

// total is for how long traffic was held back.
func (m *meter) total() time.Duration {
	if m == nil {
		return 0
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.held
}

// paced returns the client's connection as what speaks HTTP on it is to have it: held to the sandbox's bandwidth if it has one.
func (p *passage) paced(ctx context.Context) plainhttp.Conn {
	if p.g.meter == nil {
		return p.client
	}
	return &pacedConn{Conn: p.client, ctx: ctx, meter: p.g.meter}
}

// pace returns what holds a tunnel's bytes to the sandbox's bandwidth; nil if it has none.
func (p *passage) pace(ctx context.Context) func(int64) error {
	if p.g.meter == nil {
		return nil
	}
	return func(n int64) error { return p.g.meter.pass(ctx, n) }
}

// pacedConn is a connection whose bytes are metered. It offers nothing by which bytes could pass it by.
type pacedConn struct {
	net.Conn
	ctx   context.Context // of the connection: whoever reads and writes has none
	meter *meter
}

// Read reads a piece, and lets no more come before that has had its time.
func (c *pacedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p[:min(len(p), meterPiece)])
	if waited := c.meter.pass(c.ctx, int64(n)); waited != nil && err == nil {
		err = waited
	}
	return n, err
}

// Write writes piece by piece.
func (c *pacedConn) Write(p []byte) (done int, err error) {
	for done < len(p) || len(p) == 0 {
		n, err := c.Conn.Write(p[done:min(len(p), done+meterPiece)])
		done += n
		if err == nil {
			err = c.meter.pass(c.ctx, int64(n))
		}
		if err != nil || len(p) == 0 {
			return done, err
		}
	}
	return done, nil
}

// CloseWrite ends what is sent.
func (c *pacedConn) CloseWrite() error { return c.Conn.(*net.TCPConn).CloseWrite() }

// NetConn returns the connection itself, for its options.
func (c *pacedConn) NetConn() net.Conn { return c.Conn }

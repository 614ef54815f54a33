package upstream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"
)

// stagger is how long one address may hesitate before the next is tried beside it (RFC 8305 §5 recommends 250 ms).
const stagger = 250 * time.Millisecond

// errNoAddress means that the caller checked the list down to nothing.
var errNoAddress = errors.New("no address to dial")

// Dial connects to the first of the given addresses that answers, trying IPv6 and IPv4 in turn. Only these very addresses are
// dialled: the socket's destination is compared again by the last hook before connect(2).
func (d *Dialer) Dial(ctx context.Context, addrs []netip.Addr, port uint16) (*net.TCPConn, error) {
	if len(addrs) == 0 {
		return nil, errNoAddress
	}
	ctx, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	if len(addrs) == 1 {
		return dialOne(ctx, addrs[0], port)
	}
	return race(ctx, interleave(addrs), port)
}

// dialed is the outcome of one attempt.
type dialed struct {
	conn *net.TCPConn
	err  error
}

// race starts one attempt after another, staggered, and keeps the first that succeeds. It returns when every attempt has ended.
func race(ctx context.Context, addrs []netip.Addr, port uint16) (*net.TCPConn, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	results := make(chan dialed)
	timer := time.NewTimer(0)
	defer timer.Stop()
	var won *net.TCPConn
	var first error
	next, running := 0, 0
	for next < len(addrs) || running > 0 {
		start := timer.C
		if next == len(addrs) || won != nil {
			start = nil
			next = len(addrs)
			if running == 0 {
				break
			}
		}
		select {
		case <-start:
			addr := addrs[next]
			next, running = next+1, running+1
			go func() {
				c, err := dialOne(ctx, addr, port)
				results <- dialed{c, err}
			}()
			timer.Reset(stagger)
		case r := <-results:
			running--
			switch {
			case r.err == nil && won == nil:
				won = r.conn
				cancel()
			case r.err == nil:
				_ = r.conn.Close() // the slower of two; it carried nothing
			default:
				if first == nil {
					first = r.err
				}
				timer.Reset(0) // do not wait for the stagger after a plain refusal
			}
		}
	}
	if won != nil {
		return won, nil
	}
	return nil, first
}

// dialOne connects to one address and nothing else.
func dialOne(ctx context.Context, addr netip.Addr, port uint16) (*net.TCPConn, error) {
	want := netip.AddrPortFrom(addr, port)
	dialer := net.Dialer{
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: time.Minute, Interval: 15 * time.Second, Count: 4},
		ControlContext: func(_ context.Context, _, address string, _ syscall.RawConn) error {
			// The last look before connect(2): what is dialled is what was checked.
			got, err := netip.ParseAddrPort(address)
			if err != nil || got.Addr().Unmap() != want.Addr() || got.Port() != port {
				return fmt.Errorf("address %q is not the one that was checked, %s", address, want)
			}
			return nil
		},
	}
	c, err := dialer.DialContext(ctx, "tcp", want.String())
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

// interleave orders the addresses by turns of family, beginning with the resolver's first choice.
func interleave(addrs []netip.Addr) []netip.Addr {
	var a, b []netip.Addr
	for _, x := range addrs {
		if x.Is4() == addrs[0].Is4() {
			a = append(a, x)
		} else {
			b = append(b, x)
		}
	}
	out := make([]netip.Addr, 0, len(addrs))
	for i := range max(len(a), len(b)) {
		if i < len(a) {
			out = append(out, a[i])
		}
		if i < len(b) {
			out = append(out, b[i])
		}
	}
	return out
}

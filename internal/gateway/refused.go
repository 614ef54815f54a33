package gateway

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/frame"
	"github.com/cofferdam/cofferdam/internal/policy"
)

// maxLog is the most that the kernel puts into one datagram of the log (NFULNL_NLBUFSIZ is smaller).
const maxLog = 128 << 10

// serveRefused records the packets that the kernel lets nowhere, and refuses those that it dropped without a word, so that who sent them still waits
// while the runner is asked who it was. Nothing that a sandbox sends makes it wait longer than one such question, or keeps anything: what is not read in
// time is lost and counted, and a client whose packet was lost sends it again.
func (g *Gateway) serveRefused(ctx context.Context, l Listeners) error {
	defer l.closeAnswers()
	f, err := pollable(l.Refused)
	if err != nil {
		return fmt.Errorf("prepare log of refused packets: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = f.Close() })
	defer stop()
	defer f.Close()
	buf := make([]byte, maxLog)
	var count sequence
	for {
		n, err := f.Read(buf)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENOBUFS):
			g.lostHeads(ctx, 1)
			continue
		case err != nil:
			return fmt.Errorf("read log of refused packets: %w", err)
		}
		err = parseLog(buf[:n], func(f flow) {
			if lost := count.lost(f); lost > 0 {
				g.lostHeads(ctx, lost)
			}
			g.refusedPacket(ctx, f)
			if f.held {
				l.answer(f)
			}
		})
		if err != nil {
			g.log.WarnContext(ctx, "log of refused packets is malformed", "error", err)
		}
	}
}

// pollable returns f if its reads can be interrupted by closing it, else a non-blocking copy of it, and closes f.
func pollable(f *os.File) (*os.File, error) {
	if f.SetReadDeadline(time.Time{}) == nil {
		return f, nil
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	fd, opt := -1, error(nil)
	err = raw.Control(func(old uintptr) { fd, opt = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 3) })
	if err = errors.Join(err, opt); err != nil {
		return nil, err
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	name := f.Name()
	_ = f.Close() // the copy keeps the socket
	return os.NewFile(uintptr(fd), name), nil
}

// sequence follows the kernel's numbering of logged packets, where it numbers them.
type sequence struct {
	next  uint32
	begun bool
}

// lost returns how many packets were logged between the last one seen and this one.
func (s *sequence) lost(f flow) uint64 {
	if !f.hasSeq {
		return 0
	}
	var lost uint32
	if s.begun {
		lost = f.seq - s.next
	}
	if lost > 1<<31 { // not forward: another group, or a restart
		lost = 0
	}
	s.next, s.begun = f.seq+1, true
	return uint64(lost)
}

// lostHeads records that packets were refused of which nothing else is known. The kernel's own counter has them.
func (g *Gateway) lostHeads(ctx context.Context, n uint64) {
	c := policy.Crossing{Protocol: policy.Other}
	d := policy.Decision{Rule: policy.RuleProtocolClosed, Reason: "packets were refused whose heads are lost, because they came faster than they could be read"}
	g.denials.add(c, d, n)
	g.log.WarnContext(ctx, "heads of refused packets were lost")
	g.ledger.sumN(c, d, "heads of refused packets were lost: the count is a lower bound, the kernel's counter is exact", n)
}

// refusedPacket records one refused packet under the rule by which policy would have refused it.
func (g *Gateway) refusedPacket(ctx context.Context, f flow) {
	a := arrival{peer: f.src, dest: f.dst}
	if host, ok := g.names.host(f.dst.Addr()); ok {
		a.host = host
	}
	protocol := f.protocol
	if protocol == policy.TCP {
		protocol = guess(f.dst.Port())
	}
	c := a.crossing(protocol)
	d := g.policy.Load().Decide(c)
	detail := ""
	if d.Verdict != policy.Deny {
		// Policy was opened since the kernel's filter was loaded, or the packet was odd in another way. It was refused all the same.
		d = policy.Decision{Rule: policy.RuleProtocolClosed, Reason: "the kernel's filter refused the packet"}
	}
	if f.protocol == policy.Other {
		detail = fmt.Sprintf("IP protocol %d", f.number)
	}
	g.deny(ctx, c, d, f.query(), detail)
}

// query asks whose packet it was.
func (f flow) query() frame.Query {
	q := frame.Query{Source: f.src.String(), Dest: f.dst.String()}
	switch f.protocol {
	case policy.TCP:
		q.Network = "tcp"
	case policy.UDP:
		q.Network = "udp"
	case policy.ICMP:
		q.Network, q.Source = "icmp", netip.AddrPortFrom(f.src.Addr(), f.echo()).String()
	default:
		q.Network, q.Source = "raw", netip.AddrPortFrom(f.src.Addr(), uint16(f.number)).String()
	}
	return q
}

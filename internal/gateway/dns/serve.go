package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// packetWorkers read the same socket, so that one question which waits (for the owner of a denial) does not hold up the rest.
	packetWorkers = 4
	// streamIdle closes a TCP client that asks nothing (RFC 7766 §6.2.3 suggests a few seconds).
	streamIdle = 10 * time.Second
	// maxStreams bounds DNS-over-TCP connections at once.
	maxStreams = 64
)

// ServePacket answers datagrams until ctx ends, then closes the socket. It returns when all its goroutines have.
func (s *Server) ServePacket(ctx context.Context, conn *net.UDPConn) error {
	if err := wantDestination(conn); err != nil {
		return fmt.Errorf("prepare dns socket: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	errs := make([]error, packetWorkers)
	var wg sync.WaitGroup
	for i := range packetWorkers {
		wg.Go(func() { errs[i] = s.packets(ctx, conn) })
	}
	wg.Wait()
	if ctx.Err() != nil {
		return nil
	}
	return errors.Join(errs...)
}

func (s *Server) packets(ctx context.Context, conn *net.UDPConn) error {
	in, out := make([]byte, maxQuery+1), make([]byte, 0, maxUDP)
	oob := make([]byte, 128)
	for {
		n, m, _, from, err := conn.ReadMsgUDPAddrPort(in, oob)
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return nil
			}
			if isTransient(err) {
				continue
			}
			return fmt.Errorf("read dns query: %w", err)
		}
		from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
		if reply := s.Answer(ctx, in[:n], from, maxUDP, out[:0]); reply != nil {
			// A reply that cannot be sent is a lost datagram; the client asks again.
			_, _, _ = conn.WriteMsgUDPAddrPort(reply, source(oob[:m]), mapped(conn, from))
		}
	}
}

// isTransient tells ICMP errors of earlier replies, which Linux reports on the next read.
func isTransient(err error) bool {
	return errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.EHOSTUNREACH) || errors.Is(err, unix.ENETUNREACH) ||
		errors.Is(err, unix.EPERM) || errors.Is(err, unix.EINTR)
}

// mapped gives the address the form that the socket's family needs.
func mapped(conn *net.UDPConn, to netip.AddrPort) netip.AddrPort {
	local := conn.LocalAddr().(*net.UDPAddr).AddrPort().Addr()
	if local.Is4() || to.Addr().Is6() {
		return to
	}
	return netip.AddrPortFrom(netip.AddrFrom16(to.Addr().As16()), to.Port())
}

// wantDestination makes the kernel tell the local address of each datagram. The reply must leave from that very address: after
// nftables' redirect it is the only one under which connection tracking recognises it.
func wantDestination(conn *net.UDPConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var opt error
	err = raw.Control(func(fd uintptr) {
		domain, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_DOMAIN)
		switch {
		case err != nil:
			opt = err
		case domain == unix.AF_INET6:
			opt = unix.SetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_RECVPKTINFO, 1)
		default:
			opt = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_PKTINFO, 1)
		}
	})
	return errors.Join(err, opt)
}

// source turns the control message of a received datagram into that of its reply.
func source(oob []byte) []byte {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	for _, m := range messages {
		switch {
		case m.Header.Level == unix.SOL_IP && m.Header.Type == unix.IP_PKTINFO && len(m.Data) >= unix.SizeofInet4Pktinfo:
			return unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: [4]byte(m.Data[4:8])}) // in_pktinfo: ifindex, spec_dst, addr
		case m.Header.Level == unix.SOL_IPV6 && m.Header.Type == unix.IPV6_PKTINFO && len(m.Data) >= unix.SizeofInet6Pktinfo:
			return unix.PktInfo6(&unix.Inet6Pktinfo{Addr: [16]byte(m.Data[:16])})
		}
	}
	return nil
}

// ServeStream answers DNS over TCP until ctx ends, then closes the listener and every connection. It returns when all its goroutines have.
func (s *Server) ServeStream(ctx context.Context, l net.Listener) error {
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	slots := make(chan struct{}, maxStreams)
	for {
		c, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return nil
			}
			if isScarce(err) {
				time.Sleep(5 * time.Millisecond)
				continue
			}
			return fmt.Errorf("accept dns connection: %w", err)
		}
		select {
		case slots <- struct{}{}:
			wg.Go(func() {
				defer func() { <-slots }()
				s.stream(ctx, c)
			})
		default:
			_ = c.Close() // over the bound: the client falls back to UDP or asks again
		}
	}
}

// isScarce tells accept errors that pass: no descriptors, no memory, or a client that was gone before it was accepted.
func isScarce(err error) bool {
	return errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) || errors.Is(err, unix.ENOBUFS) ||
		errors.Is(err, unix.ENOMEM) || errors.Is(err, unix.ECONNABORTED)
}

// stream serves one TCP client, one question after the other.
func (s *Server) stream(ctx context.Context, c net.Conn) {
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	defer c.Close()
	var from netip.AddrPort
	if a, ok := c.RemoteAddr().(*net.TCPAddr); ok {
		ap := a.AddrPort()
		from = netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	}
	in, out := make([]byte, 2+maxQuery), make([]byte, 0, 2*maxUDP)
	for {
		if c.SetDeadline(time.Now().Add(streamIdle)) != nil {
			return
		}
		if _, err := io.ReadFull(c, in[:2]); err != nil {
			return
		}
		n := int(binary.BigEndian.Uint16(in))
		if n > maxQuery {
			return // an honest question is far smaller; what follows cannot be trusted to be framed either
		}
		if _, err := io.ReadFull(c, in[:n]); err != nil {
			return
		}
		reply := s.Answer(ctx, in[:n], from, 0, append(out[:0], 0, 0))
		if reply == nil {
			return
		}
		binary.BigEndian.PutUint16(reply, uint16(len(reply)-2))
		if _, err := c.Write(reply); err != nil {
			return
		}
	}
}

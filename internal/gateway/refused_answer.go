package gateway

import (
	"encoding/binary"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// Headers' lengths, and the types of messages that matter here (RFC 791, 792, 8200, 4443, 9293).
const (
	ipv4Header, ipv6Header, tcpHeader, icmpHeader = 20, 40, 20, 8

	tcpFIN, tcpSYN, tcpRST, tcpACK = 1 << 0, 1 << 1, 1 << 2, 1 << 4

	icmpUnreachable, icmpPortUnreachable     = 3, 3
	icmp6Unreachable, icmp6PortUnreachable   = 1, 4
	icmpQuench, icmpRedirect, icmpEcho       = 4, 5, 8
	icmpTimeExceeded, icmpParameter          = 11, 12
	icmp6Informational, icmp6Echo, icmp6Move = 128, 128, 137
)

// maxQuoted bounds what an ICMP message quotes of the packet that it is about: what the kernel logs of one.
const maxQuoted = 128

// answer refuses one packet. It never waits; a client that gets no answer asks again.
func (l Listeners) answer(f flow) {
	b := f.refusal()
	if b == nil {
		return
	}
	socket := l.Answer6
	var to unix.Sockaddr = &unix.SockaddrInet6{Addr: f.src.Addr().As16(), ZoneId: scope(f.src.Addr())}
	if f.src.Addr().Is4() {
		socket, to = l.Answer4, &unix.SockaddrInet4{Addr: f.src.Addr().As4()}
	}
	if socket == nil {
		return
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return // closed
	}
	_ = raw.Control(func(fd uintptr) {
		_ = unix.Sendto(int(fd), b, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, to) // a packet may be lost
	})
}

// scope is the interface that a link-local address needs: the room's only one.
func scope(a netip.Addr) uint32 {
	if a.IsLinkLocalUnicast() {
		return 1
	}
	return 0
}

func (l Listeners) closeAnswers() {
	for _, f := range []*os.File{l.Answer4, l.Answer6} {
		if f != nil {
			_ = f.Close() // nothing is written late
		}
	}
}

// echo is the number by which a ping socket knows its answers, 0 for other messages.
func (f flow) echo() uint16 {
	if len(f.segment) < icmpHeader || f.number == unix.IPPROTO_ICMP && f.segment[0] != icmpEcho || f.number == unix.IPPROTO_ICMPV6 && f.segment[0] != icmp6Echo {
		return 0
	}
	return binary.BigEndian.Uint16(f.segment[4:])
}

// refusal is the packet that refuses this one, as the kernel's own reject makes it, or nil where there must be none: to a reset, to an ICMP error, to later
// fragments, from or to addresses that stand for many (RFC 1122 3.2.2, RFC 4443 2.4e). So no refusal causes another.
func (f flow) refusal() []byte {
	src, dst := f.src.Addr(), f.dst.Addr()
	if f.segment == nil || !single(src) || !single(dst) || src.Is4() != dst.Is4() || src.Is4() != (f.packet[0]>>4 == 4) {
		return nil
	}
	switch f.number {
	case unix.IPPROTO_TCP:
		return f.reset()
	case unix.IPPROTO_ICMP:
		if len(f.segment) == 0 {
			return nil
		}
		switch f.segment[0] {
		case icmpUnreachable, icmpQuench, icmpRedirect, icmpTimeExceeded, icmpParameter:
			return nil
		}
	case unix.IPPROTO_ICMPV6:
		if len(f.segment) == 0 || f.segment[0] < icmp6Informational || f.segment[0] == icmp6Move {
			return nil
		}
	}
	return f.unreachable()
}

// single says whether an address stands for one place.
func single(a netip.Addr) bool {
	return a.IsValid() && !a.IsUnspecified() && !a.IsMulticast() && a != netip.AddrFrom4([4]byte{255, 255, 255, 255})
}

// reset is the answer to a segment for which there is no connection (RFC 9293 3.10.7.1).
func (f flow) reset() []byte {
	if len(f.segment) < tcpHeader {
		return nil
	}
	flags, head := f.segment[13], int(f.segment[12]>>4)*4
	if flags&tcpRST != 0 || head < tcpHeader || f.length < head {
		return nil
	}
	b, t := f.reply(unix.IPPROTO_TCP, tcpHeader)
	copy(t, f.segment[2:4]) // the ports change places
	copy(t[2:], f.segment[:2])
	t[12] = tcpHeader / 4 << 4
	if flags&tcpACK != 0 {
		copy(t[4:], f.segment[8:12])
		t[13] = tcpRST
	} else {
		length := uint32(f.length - head)
		if flags&tcpSYN != 0 {
			length++
		}
		if flags&tcpFIN != 0 {
			length++
		}
		binary.BigEndian.PutUint32(t[8:], binary.BigEndian.Uint32(f.segment[4:])+length)
		t[13] = tcpRST | tcpACK
	}
	binary.BigEndian.PutUint16(t[16:], checksum(f.pseudo(unix.IPPROTO_TCP, len(t)), t))
	return b
}

// unreachable says that nobody takes the packet (RFC 792, RFC 4443 3.1), and quotes its head.
func (f flow) unreachable() []byte {
	quoted := f.packet[:min(len(f.packet), maxQuoted)]
	if f.src.Addr().Is4() {
		b, m := f.reply(unix.IPPROTO_ICMP, icmpHeader+len(quoted))
		m[0], m[1] = icmpUnreachable, icmpPortUnreachable
		copy(m[icmpHeader:], quoted)
		binary.BigEndian.PutUint16(m[2:], checksum(0, m))
		return b
	}
	b, m := f.reply(unix.IPPROTO_ICMPV6, icmpHeader+len(quoted))
	m[0], m[1] = icmp6Unreachable, icmp6PortUnreachable
	copy(m[icmpHeader:], quoted)
	binary.BigEndian.PutUint16(m[2:], checksum(f.pseudo(unix.IPPROTO_ICMPV6, len(m)), m))
	return b
}

// reply begins a packet back to the sender. payload is the part of it behind the IP header.
func (f flow) reply(protocol byte, size int) (packet, payload []byte) {
	const hops = 64
	from, to := f.dst.Addr().AsSlice(), f.src.Addr().AsSlice()
	if len(to) == 4 {
		b := make([]byte, ipv4Header+size)
		b[0], b[6], b[8], b[9] = 0x45, 0x40, hops, protocol // not to be fragmented
		binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
		copy(b[12:], from)
		copy(b[16:], to)
		binary.BigEndian.PutUint16(b[10:], checksum(0, b[:ipv4Header]))
		return b, b[ipv4Header:]
	}
	b := make([]byte, ipv6Header+size)
	b[0], b[6], b[7] = 0x60, protocol, hops
	binary.BigEndian.PutUint16(b[4:], uint16(size))
	copy(b[8:], from)
	copy(b[24:], to)
	return b, b[ipv6Header:]
}

// pseudo sums up the header that TCP and ICMPv6 checksums include (RFC 9293 3.1, RFC 8200 8.1).
func (f flow) pseudo(protocol byte, size int) uint32 {
	return add(add(uint32(protocol)+uint32(size), f.src.Addr().AsSlice()), f.dst.Addr().AsSlice())
}

// checksum is the Internet's (RFC 1071).
func checksum(sum uint32, b []byte) uint16 {
	sum = add(sum, b)
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

func add(sum uint32, b []byte) uint32 {
	for ; len(b) >= 2; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	return sum
}

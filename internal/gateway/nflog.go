package gateway

import (
	"encoding/binary"
	"errors"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/policy"
)

// Constants of linux/netfilter/nfnetlink_log.h that x/sys does not have.
const (
	nflogPacket = unix.NFNL_SUBSYS_ULOG << 8 // message type NFULNL_MSG_PACKET
	nfulaBody   = 9                          // NFULA_PAYLOAD
	nfulaPrefix = 10                         // NFULA_PREFIX
	nfulaSeq    = 12                         // NFULA_SEQ
	nlaTypeMask = 0x3fff                     // NLA_TYPE_MASK of linux/netlink.h
)

// maxExtensions bounds the walk over IPv6 extension headers.
const maxExtensions = 8

// heldPrefix marks packets that the kernel dropped without an answer; netns.Held is the same.
const heldPrefix = "held"

var errShort = errors.New("message ends too early")

// flow is what the head of a refused packet says.
type flow struct {
	protocol policy.Protocol
	number   uint8 // IP protocol
	src, dst netip.AddrPort
	seq      uint32 // of the log group; hasSeq says whether the kernel counts
	hasSeq   bool
	held     bool // dropped without an answer, else refused by the kernel already
	// packet is what is known of the packet, and segment its part from the transport's header on, nil if that is not there; both only while it is being read.
	packet, segment []byte
	length          int // of the whole segment, as the IP header says
}

// parseLog calls each for every refused packet in one datagram from the NFLOG socket. What is not understood is skipped if its length is
// sound, else it is an error: the kernel wrote the outer layers, but the sandbox wrote the packet.
func parseLog(b []byte, each func(flow)) error {
	for len(b) > 0 {
		if len(b) < unix.SizeofNlMsghdr {
			return errShort
		}
		length := int(binary.NativeEndian.Uint32(b))
		if length < unix.SizeofNlMsghdr || length > len(b) {
			return errShort
		}
		if binary.NativeEndian.Uint16(b[4:]) == nflogPacket {
			if f, ok := parseMessage(b[unix.SizeofNlMsghdr:length]); ok {
				each(f)
			}
		}
		b = b[min(align4(length), len(b)):]
	}
	return nil
}

// parseMessage reads nfgenmsg and the attributes.
func parseMessage(b []byte) (f flow, ok bool) {
	const genmsg = 4
	if len(b) < genmsg {
		return f, false
	}
	b = b[genmsg:]
	var seq uint32
	var hasSeq, held bool
	for len(b) >= unix.SizeofNlAttr {
		length := int(binary.NativeEndian.Uint16(b))
		if length < unix.SizeofNlAttr || length > len(b) {
			break
		}
		body := b[unix.SizeofNlAttr:length]
		switch binary.NativeEndian.Uint16(b[2:]) & nlaTypeMask {
		case nfulaBody:
			f, ok = parsePacket(body)
		case nfulaSeq:
			if len(body) == 4 {
				seq, hasSeq = binary.BigEndian.Uint32(body), true
			}
		case nfulaPrefix:
			held = string(body) == heldPrefix+"\x00"
		}
		b = b[min(align4(length), len(b)):]
	}
	f.seq, f.hasSeq, f.held = seq, hasSeq, held
	return f, ok
}

func align4(n int) int { return (n + 3) &^ 3 }

// parsePacket reads the head of an IP packet, which the sandbox wrote.
func parsePacket(b []byte) (flow, bool) {
	if len(b) == 0 {
		return flow{}, false
	}
	var f flow
	var ok bool
	switch b[0] >> 4 {
	case 4:
		f, ok = parseIPv4(b)
	case 6:
		f, ok = parseIPv6(b)
	}
	f.packet = b
	return f, ok
}

func parseIPv4(b []byte) (flow, bool) {
	const least = 20
	head := int(b[0]&0xf) * 4
	if len(b) < least || head < least {
		return flow{}, false
	}
	src, dst := netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
	var rest []byte
	if fragment := binary.BigEndian.Uint16(b[6:]) & 0x1fff; fragment == 0 && head <= len(b) {
		rest = b[head:]
	}
	f := transport(b[9], src, dst, rest)
	f.length = int(binary.BigEndian.Uint16(b[2:])) - head
	return f, true
}

func parseIPv6(b []byte) (flow, bool) {
	const head = 40
	if len(b) < head {
		return flow{}, false
	}
	src, dst := netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
	next, rest := b[6], b[head:]
	whole := func(next uint8, rest []byte) (flow, bool) {
		f := transport(next, src, dst, rest)
		f.length = int(binary.BigEndian.Uint16(b[4:])) - (len(b) - head - len(rest))
		return f, true
	}
	for range maxExtensions {
		var length int
		switch next {
		case unix.IPPROTO_HOPOPTS, unix.IPPROTO_ROUTING, unix.IPPROTO_DSTOPTS:
			if len(rest) < 2 {
				return transport(next, src, dst, nil), true
			}
			length = (int(rest[1]) + 1) * 8
		case unix.IPPROTO_FRAGMENT:
			if len(rest) < 8 || binary.BigEndian.Uint16(rest[2:])&^7 != 0 {
				return transport(unix.IPPROTO_FRAGMENT, src, dst, nil), true
			}
			length = 8
		default:
			return whole(next, rest)
		}
		if length > len(rest) {
			return transport(next, src, dst, nil), true
		}
		next, rest = rest[0], rest[length:]
	}
	return transport(next, src, dst, nil), true
}

// transport adds the segment and its ports, if they are there.
func transport(number uint8, src, dst netip.Addr, rest []byte) flow {
	f := flow{number: number, protocol: policy.Other, segment: rest}
	var from, to uint16
	switch number {
	case unix.IPPROTO_TCP:
		f.protocol = policy.TCP
	case unix.IPPROTO_UDP:
		f.protocol = policy.UDP
	case unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6:
		f.protocol = policy.ICMP
	}
	ported := number == unix.IPPROTO_TCP || number == unix.IPPROTO_UDP || number == unix.IPPROTO_UDPLITE || number == unix.IPPROTO_SCTP || number == unix.IPPROTO_DCCP
	if ported && len(rest) >= 4 {
		from, to = binary.BigEndian.Uint16(rest), binary.BigEndian.Uint16(rest[2:])
	}
	f.src, f.dst = netip.AddrPortFrom(src.Unmap(), from), netip.AddrPortFrom(dst.Unmap(), to)
	return f
}

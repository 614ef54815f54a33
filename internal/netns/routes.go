package netns

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// routes brings loopback up, gives it the sandbox's own addresses, and makes every destination local to it, for IPv4 and IPv6.
func routes() error {
	return converse([]step{
		{"bring lo up", linkUp(loopback)},
		{"add own IPv4 address", addAddress(Own4, loopback)},
		{"add own IPv6 address", addAddress(Own6, loopback)},
		{"make all of IPv4 local", addLocalDefault(Own4)},
		{"make all of IPv6 local", addLocalDefault(Own6)},
	})
}

// step is one message to the kernel, and what it is for.
type step struct {
	what string
	msg  []byte
}

// converse sends the messages one after the other, each when the one before is done.
func converse(steps []step) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for _, s := range steps {
		if err := exchange(fd, s.msg); err != nil {
			return fmt.Errorf("%s: %w", s.what, err)
		}
	}
	return nil
}

// loopback is lo's index: the first interface of every namespace.
const loopback = 1

func linkUp(index uint32) []byte {
	body := make([]byte, unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(body[4:], index)
	binary.NativeEndian.PutUint32(body[8:], unix.IFF_UP)
	binary.NativeEndian.PutUint32(body[12:], unix.IFF_UP)
	return message(unix.RTM_NEWLINK, 0, body)
}

func addAddress(a netip.Addr, index uint32) []byte {
	body := []byte{family(a), byte(a.BitLen()), unix.IFA_F_NODAD, unix.RT_SCOPE_UNIVERSE, 0, 0, 0, 0}
	binary.NativeEndian.PutUint32(body[4:], index)
	body = attribute(body, unix.IFA_LOCAL, a.AsSlice())
	body = attribute(body, unix.IFA_ADDRESS, a.AsSlice())
	return message(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_EXCL, body)
}

// addLocalDefault is "ip route add local default dev lo src A": the kernel then delivers every destination to this namespace itself.
func addLocalDefault(source netip.Addr) []byte {
	body := make([]byte, unix.SizeofRtMsg)
	body[0] = family(source)
	body[4] = unix.RT_TABLE_LOCAL
	body[5] = unix.RTPROT_BOOT
	body[6] = unix.RT_SCOPE_HOST
	body[7] = unix.RTN_LOCAL
	body = attribute(body, unix.RTA_OIF, binary.NativeEndian.AppendUint32(nil, loopback))
	body = attribute(body, unix.RTA_PREFSRC, source.AsSlice())
	return message(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_EXCL, body)
}

func family(a netip.Addr) byte {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// attribute appends one route attribute, padded to four bytes.
func attribute(b []byte, kind uint16, value []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(unix.SizeofRtAttr+len(value)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = append(b, value...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

// message puts a netlink header that asks for an acknowledgement before body.
func message(kind, flags uint16, body []byte) []byte {
	b := binary.NativeEndian.AppendUint32(nil, uint32(unix.SizeofNlMsghdr+len(body)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = binary.NativeEndian.AppendUint16(b, flags|unix.NLM_F_REQUEST|unix.NLM_F_ACK)
	b = append(b, make([]byte, 8)...) // sequence and port: one question at a time needs neither
	return append(b, body...)
}

// exchange sends one message and reads its acknowledgement.
func exchange(fd int, msg []byte) error {
	if err := unix.Sendto(fd, msg, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	reply := make([]byte, 4096)
	n, _, err := unix.Recvfrom(fd, reply, 0)
	if err != nil {
		return err
	}
	if n < unix.SizeofNlMsghdr+4 || binary.NativeEndian.Uint16(reply[4:]) != unix.NLMSG_ERROR {
		return fmt.Errorf("kernel answered with %d bytes that are no acknowledgement", n)
	}
	if code := int32(binary.NativeEndian.Uint32(reply[unix.SizeofNlMsghdr:])); code != 0 {
		return unix.Errno(-code)
	}
	return nil
}

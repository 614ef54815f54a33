package netns

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// A sandbox with a network stack of its own has its end of a cable in a namespace of its own, and the room has the other. Both ends know each other's
// addresses from the start, so that neither asks the other anything: what arrives in the room is what a program sent, or is not believed.
//
// DoorName is the room's end of the cable.
const (
	DoorName   = "door"
	insideName = "eth0" // the sandbox's
	// deviceIndex is the number of either end in its namespace, above those that a kernel gives to fallback devices of its own.
	deviceIndex = 1000
	// deviceMTU is the most that IPv4 can say: both ends are in this machine's memory, and fewer packets cost less.
	deviceMTU = 65535
)

// Addresses of the cable's ends. The second bit says that they are nobody's (IEEE 802, locally administered).
var (
	doorMAC   = []byte{0x02, 0xcf, 0x0d, 0, 0, 1}
	insideMAC = []byte{0x02, 0xcf, 0x0d, 0, 0, 2}
)

// Numbers of linux/if_link.h, linux/neighbour.h and linux/veth.h that x/sys does not have under these names.
const (
	vethInfoPeer       = 1
	inet6AddrGenMode   = 8
	addrGenModeNone    = 1
	neighbourDst       = 1
	neighbourLLAddr    = 2
	neighbourPermanent = 0x80
	sizeofNdMsg        = 12
)

// SetupDevice builds the room for a sandbox that has a network stack of its own, in the calling thread's network namespace, which must be new.
// The returned file is another new namespace, in which only loopback and the sandbox's end of the cable are.
func SetupDevice(cfg Config) (l Listeners, inside *os.File, err error) {
	runtime.LockOSThread() // namespaces belong to threads
	defer runtime.UnlockOSThread()
	room, err := ownNamespace()
	if err != nil {
		return l, nil, err
	}
	defer room.Close()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return l, nil, fmt.Errorf("make a network namespace: %w", err)
	}
	inside, err = ownNamespace()
	if err == nil {
		err = layCable(int(room.Fd()))
	}
	if returnErr := unix.Setns(int(room.Fd()), unix.CLONE_NEWNET); err == nil && returnErr != nil {
		err = fmt.Errorf("return to the room: %w", returnErr)
	}
	if err == nil {
		cfg.device = true
		l, err = Setup(cfg)
	}
	if err != nil && inside != nil {
		_ = inside.Close() // goes with it
		inside = nil
	}
	return l, inside, err
}

func ownNamespace() (*os.File, error) { return os.Open("/proc/thread-self/ns/net") }

// layCable makes the two ends, this one here and the other one in the room, and sets this one up.
func layCable(room int) error {
	return converse(append([]step{{"make a pair of devices", cable(room)}}, insideEnd(deviceIndex)...))
}

// door sets the room's end up: the gateway's addresses are on it, and nothing is reached through it but the sandbox.
func door() error {
	return converse([]step{
		{"bring lo up", linkUp(loopback)},
		{"keep the door from taking addresses", noOwnAddresses(deviceIndex)},
		{"add the gateway's IPv4 address", addAddress(Gateway4, deviceIndex)},
		{"add the gateway's IPv6 address", addAddress(Gateway6, deviceIndex)},
		{"bring the door up", linkUp(deviceIndex)},
		{"know the sandbox", neighbour(deviceIndex, Own4, insideMAC)},
		{"know the sandbox over IPv6", neighbour(deviceIndex, Own6, insideMAC)},
		{"reach the sandbox", route(deviceIndex, Own4, netip.Addr{})},
		{"reach the sandbox over IPv6", route(deviceIndex, Own6, netip.Addr{})},
	})
}

// cable is "ip link add eth0 … type veth peer door … netns room".
func cable(room int) []byte {
	end := func(name string, mac []byte) []byte {
		body := make([]byte, unix.SizeofIfInfomsg)
		binary.NativeEndian.PutUint32(body[4:], deviceIndex)
		body = attribute(body, unix.IFLA_IFNAME, append([]byte(name), 0))
		body = attribute(body, unix.IFLA_MTU, binary.NativeEndian.AppendUint32(nil, deviceMTU))
		return attribute(body, unix.IFLA_ADDRESS, mac)
	}
	peer := attribute(end(DoorName, doorMAC), unix.IFLA_NET_NS_FD, binary.NativeEndian.AppendUint32(nil, uint32(room)))
	info := attribute(nil, unix.IFLA_INFO_KIND, []byte("veth"))
	info = attribute(info, unix.IFLA_INFO_DATA|unix.NLA_F_NESTED, attribute(nil, vethInfoPeer|unix.NLA_F_NESTED, peer))
	body := attribute(end(insideName, insideMAC), unix.IFLA_LINKINFO|unix.NLA_F_NESTED, info)
	return message(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, body)
}

// noOwnAddresses keeps a device from making itself a link-local address, from which the kernel would talk to the other end.
func noOwnAddresses(index uint32) []byte {
	body := make([]byte, unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(body[4:], index)
	inet6 := attribute(nil, unix.AF_INET6|unix.NLA_F_NESTED, attribute(nil, inet6AddrGenMode, []byte{addrGenModeNone}))
	return message(unix.RTM_NEWLINK, 0, attribute(body, unix.IFLA_AF_SPEC|unix.NLA_F_NESTED, inet6))
}

// neighbour says for good which device has an address, so that nobody is asked.
func neighbour(index uint32, a netip.Addr, mac []byte) []byte {
	body := make([]byte, sizeofNdMsg)
	body[0] = family(a)
	binary.NativeEndian.PutUint32(body[4:], index)
	binary.NativeEndian.PutUint16(body[8:], neighbourPermanent)
	body = attribute(body, neighbourDst, a.AsSlice())
	return message(unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, attribute(body, neighbourLLAddr, mac))
}

// route is "ip route add TO dev …", or without TO "ip route add default via VIA dev …".
func route(index uint32, to, via netip.Addr) []byte {
	body := make([]byte, unix.SizeofRtMsg)
	body[4] = unix.RT_TABLE_MAIN
	body[5] = unix.RTPROT_BOOT
	body[7] = unix.RTN_UNICAST
	if to.IsValid() {
		body[0], body[1], body[6] = family(to), byte(to.BitLen()), unix.RT_SCOPE_LINK
		body = attribute(body, unix.RTA_DST, to.AsSlice())
	} else {
		body[0], body[6] = family(via), unix.RT_SCOPE_UNIVERSE
		body = attribute(body, unix.RTA_GATEWAY, via.AsSlice())
	}
	body = attribute(body, unix.RTA_OIF, binary.NativeEndian.AppendUint32(nil, index))
	return message(unix.RTM_NEWROUTE, unix.NLM_F_CREATE, body)
}

// ProbeDevice says whether this kernel can make the pair of devices that SetupDevice needs. The caller is in a new network namespace.
func ProbeDevice() error {
	l, inside, err := SetupDevice(Config{})
	if err != nil {
		return err
	}
	l.Close()
	return inside.Close()
}

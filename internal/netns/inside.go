package netns

import (
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// ConfigureInside sets the sandbox's end up in the calling process's network namespace, as a device that is there already and is of the given name: addresses, the
// gateway as a neighbour for good, and routes, all through the gateway. A virtual machine's init calls it before any untrusted program.
func ConfigureInside(name string) error {
	index, err := indexOf(name)
	if err != nil {
		return fmt.Errorf("find network device %s: %w", name, err)
	}
	return converse(insideEnd(index))
}

func indexOf(name string) (uint32, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	request, err := unix.NewIfreq(name)
	if err != nil {
		return 0, err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, request); err != nil {
		return 0, err
	}
	return request.Uint32(), nil
}

// insideEnd sets up the sandbox's end and loopback.
func insideEnd(index uint32) []step {
	return []step{
		{"bring lo up", linkUp(loopback)},
		{"keep eth0 from taking addresses", noOwnAddresses(index)},
		{"add own IPv4 address", addAddress(Own4, index)},
		{"add own IPv6 address", addAddress(Own6, index)},
		{"bring eth0 up", linkUp(index)},
		{"know the gateway", neighbour(index, Gateway4, doorMAC)},
		{"know the gateway over IPv6", neighbour(index, Gateway6, doorMAC)},
		{"reach the gateway", route(index, Gateway4, netip.Addr{})},
		{"reach the gateway over IPv6", route(index, Gateway6, netip.Addr{})},
		{"send everything to the gateway", route(index, netip.Addr{}, Gateway4)},
		{"send everything to the gateway over IPv6", route(index, netip.Addr{}, Gateway6)},
	}
}

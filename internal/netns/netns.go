// Package netns (SANDBOX) builds a sandbox's network: a namespace with no interface to anywhere, in which every address is local and every crossing lands in a planted listener.
//
// It runs inside the new namespace, before any untrusted program. What it guarantees to the gateway:
//   - TCP to a synthetic address, or to a network that policy names, is accepted by [Listeners].TCP with its original destination known to the kernel (SO_ORIGINAL_DST).
//   - DNS over IPv4 to any server address is read by [Listeners].DNSPacket and [Listeners].DNSStream.
//   - Everything else except loopback is dropped or refused by the kernel at once, counted, and its head is sent to [Listeners].Refused. What is dropped is
//     for the gateway to refuse, once it knows which process it was: its head has the prefix [Held], and [Listeners].Answer4 and Answer6 send the refusal.
//     That is so up to a rate; the kernel refuses what comes faster by itself, so that a flood neither waits nor grows anything.
//
// An attacker who could alter the rules would gain nothing but his own loopback: there is no other interface.
package netns

import (
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// The addresses of the room. 198.18.0.0/15 is reserved for benchmarking (RFC 2544) and fdcf:d0::/32 is a unique local range (RFC 4193): neither is a destination on the Internet.
var (
	// Synthetic4 and Synthetic6 hold the addresses that stand for names.
	Synthetic4 = netip.MustParsePrefix("198.18.0.0/15")
	Synthetic6 = netip.MustParsePrefix("fdcf:d0::/96")
	// Gateway4 and Gateway6 are the gateway itself: port 53 DNS, port ControlPort the runner's control stream.
	Gateway4 = netip.MustParseAddr("198.18.0.1")
	Gateway6 = netip.MustParseAddr("fdcf:d0::1")
	// Own4 and Own6 are the sandbox's own addresses. Without one that is not loopback, getaddrinfo with AI_ADDRCONFIG finds nothing.
	Own4 = netip.MustParseAddr("198.18.0.2")
	Own6 = netip.MustParseAddr("fdcf:d0::2")
)

// ControlPort is the gateway's port for the runner.
const ControlPort = 1

// RefusedGroup is the NFLOG group on which refused packets' heads are sent.
const RefusedGroup = 1

// Config says which destinations reach the gateway besides the synthetic ones.
type Config struct {
	// Networks are raw destinations that policy names.
	Networks []netip.Prefix
	// Everything sends every TCP destination to the gateway, so that a person can be asked about it.
	Everything bool
	// Closed lets nothing through at all, for a sandbox that is nobody's yet. Door.Open puts other rules in their place.
	Closed bool
	// device says that packets arrive by a device, from a network stack of the sandbox's own.
	device bool
}

// Listeners are open sockets inside the namespace, ready to be handed to the gateway.
type Listeners struct {
	TCP       *os.File // listening, IPv4 and IPv6
	DNSPacket *os.File // UDP, IPv4
	DNSStream *os.File // listening, IPv4
	Refused   *os.File // netlink, heads of refused packets
	Answer4   *os.File // raw, sends whole IPv4 packets past the rules; it receives nothing
	Answer6   *os.File // likewise for IPv6
	Replaced  *os.File // what Door.Open returned, which is not handed to the gateway; nil for a room that was never closed
}

// Count is how many sockets there are.
const Count = 6

// Files returns the sockets in the fixed order in which they are passed.
func (l Listeners) Files() []*os.File {
	return []*os.File{l.TCP, l.DNSPacket, l.DNSStream, l.Refused, l.Answer4, l.Answer6}
}

// FromFiles puts sockets that were passed in the order of Files back into their places.
func FromFiles(files []*os.File) (Listeners, error) {
	if len(files) != Count {
		return Listeners{}, fmt.Errorf("got %d planted sockets, want %d", len(files), Count)
	}
	return Listeners{TCP: files[0], DNSPacket: files[1], DNSStream: files[2], Refused: files[3], Answer4: files[4], Answer6: files[5]}, nil
}

// Close closes all sockets. With Replaced it takes its time.
func (l Listeners) Close() {
	for _, f := range append(l.Files(), l.Replaced) {
		if f != nil {
			_ = f.Close() // listening sockets have nothing to flush
		}
	}
}

// Setup builds the room in the calling process's network namespace, which must be new. On error nothing listens and the namespace must be thrown away.
func Setup(cfg Config) (l Listeners, err error) {
	defer func() {
		if err != nil {
			l.Close()
			l = Listeners{}
		}
	}()
	paths, address := routes, netip.AddrFrom4([4]byte{127, 0, 0, 1})
	if cfg.device {
		paths, address = door, Gateway4
	}
	if err := paths(); err != nil {
		return l, fmt.Errorf("set up addresses and routes: %w", err)
	}
	var tcp, packet, stream uint16
	if l.TCP, tcp, err = listen(netip.IPv6Unspecified(), unix.SOCK_STREAM); err != nil {
		return l, fmt.Errorf("plant the TCP listener: %w", err)
	}
	if l.DNSPacket, packet, err = listen(address, unix.SOCK_DGRAM); err != nil {
		return l, fmt.Errorf("plant the DNS socket: %w", err)
	}
	if l.DNSStream, stream, err = listen(address, unix.SOCK_STREAM); err != nil {
		return l, fmt.Errorf("plant the DNS listener: %w", err)
	}
	if l.Refused, err = refusals(RefusedGroup); err != nil {
		return l, fmt.Errorf("subscribe to refused packets: %w", err)
	}
	if l.Answer4, err = answers(unix.AF_INET); err != nil {
		return l, fmt.Errorf("open the socket for refusals: %w", err)
	}
	if l.Answer6, err = answers(unix.AF_INET6); err != nil {
		return l, fmt.Errorf("open the socket for refusals over IPv6: %w", err)
	}
	if _, err := install(cfg, ports{tcp: tcp, packet: packet, stream: stream}, false); err != nil {
		return l, fmt.Errorf("install packet rules: %w", err)
	}
	return l, nil
}

// backlog is the accept queue of a planted listener: connections wait there while the gateway is busy. The kernel caps it at net.core.somaxconn.
const backlog = 1024

// listen opens a socket on a port that the kernel picks. The IPv4 sockets bind to the address to which the redirection sends, so that answers leave from
// the very one; the TCP listener takes both families.
func listen(at netip.Addr, kind int) (*os.File, uint16, error) {
	fd, err := unix.Socket(int(family(at)), kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, 0, err
	}
	file := os.NewFile(uintptr(fd), "listener")
	var address unix.Sockaddr
	if at.Is4() {
		address = &unix.SockaddrInet4{Addr: at.As4()}
	} else {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 0); err != nil {
			return nil, 0, closing(file, err)
		}
		address = &unix.SockaddrInet6{Addr: at.As16()}
	}
	if err := unix.Bind(fd, address); err != nil {
		return nil, 0, closing(file, err)
	}
	if kind == unix.SOCK_STREAM {
		if err := unix.Listen(fd, backlog); err != nil {
			return nil, 0, closing(file, err)
		}
	}
	bound, err := unix.Getsockname(fd)
	if err != nil {
		return nil, 0, closing(file, err)
	}
	switch a := bound.(type) {
	case *unix.SockaddrInet4:
		return file, uint16(a.Port), nil
	case *unix.SockaddrInet6:
		return file, uint16(a.Port), nil
	}
	return nil, 0, closing(file, fmt.Errorf("socket bound to %T", bound))
}

func closing(f *os.File, err error) error {
	_ = f.Close() // nothing was written; the first error is the one to tell
	return err
}

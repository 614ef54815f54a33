package gateway

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/netname"
	"github.com/cofferdam/cofferdam/internal/policy"
)

// Rules by which the gateway itself refuses, whatever policy says.
const (
	RuleDirectListener   = "direct-listener"   // a connection that was made to the gateway's socket itself
	RuleUnknownName      = "unknown-name"      // a synthetic address that stands for no name
	RuleGatewayClosed    = "gateway-closed"    // a port of the gateway's own address at which nothing listens
	RuleNameMismatch     = "name-mismatch"     // the server name or Host is not the dialled name
	RuleNoServerName     = "no-server-name"    // TLS without a server name
	RuleEncryptedHello   = "encrypted-hello"   // the server name may be hidden
	RuleOpaqueProtocol   = "opaque-protocol"   // neither TLS nor HTTP, and no rule of protocol tcp
	RuleConnectionLimit  = "connection-limit"  // too many connections at once
	RuleNameLimit        = "name-limit"        // the name table is full
	RuleWildcardLimit    = "wildcard-limit"    // too many, or too long, names below a wildcard
	RuleAuditUnavailable = "audit-unavailable" // it could not be recorded
	RuleNobodyToAsk      = "nobody-to-ask"     // policy asks, and nobody can be asked or answered in time

	RuleAmbiguousPath         = "ambiguous-path"         // servers could read the path in different ways, and policy judges it
	RuleMethodOverride        = "method-override"        // a header would give the request another method or path than the one judged
	RuleForeignCredential     = "foreign-credential"     // a credential of the program's own for a host to which policy lends one
	RulePlaceholderMisused    = "placeholder-misused"    // a placeholder where its credential is not lent
	RuleCredentialUnavailable = "credential-unavailable" // a credential that policy lends cannot be had
	RuleInspectionRefused     = "inspection-refused"     // the program does not accept the sandbox's certificate authority
)

// arrival is who came through the door and where they wanted to go.
type arrival struct {
	peer netip.AddrPort // the client's socket inside
	dest netip.AddrPort // as the program dialled it
	host netname.Host   // the name that dest stands for; empty for a raw address
	// control says that dest is the control address, proxy that it is the one at which the protocol proxies answer.
	control, proxy bool
}

// identify finds out where a connection was going. A Decision with a rule refuses it.
func (g *Gateway) identify(c *net.TCPConn) (arrival, policy.Decision) {
	a := arrival{peer: unmapPort(c.RemoteAddr().(*net.TCPAddr).AddrPort())}
	local := unmapPort(c.LocalAddr().(*net.TCPAddr).AddrPort())
	dest, err := g.originalDestination(c)
	a.dest = unmapPort(dest)
	switch {
	case err != nil || !dest.IsValid() || a.dest == local || a.dest.Addr().IsLoopback():
		// Without a redirect there is no original destination, or it is the listener. Nothing honest connects here.
		if !a.dest.IsValid() {
			a.dest = local
		}
		return a, policy.Decision{Rule: RuleDirectListener, Reason: "the connection was made to the gateway itself instead of a destination"}
	case isControl(a.dest):
		a.control = true
		return a, policy.Decision{}
	case (a.dest.Addr() == gatewayV4() || a.dest.Addr() == gatewayV6()) && a.dest.Port() == proxyPort && g.policy.Load().ServesGit():
		a.proxy = true
		return a, policy.Decision{}
	case a.dest.Addr() == gatewayV4() || a.dest.Addr() == gatewayV6():
		return a, policy.Decision{Rule: RuleGatewayClosed, Reason: fmt.Sprintf("nothing listens at the gateway's port %d", a.dest.Port())}
	case !synthetic(a.dest.Addr()):
		return a, policy.Decision{}
	}
	host, ok := g.names.host(a.dest.Addr())
	if !ok {
		return a, policy.Decision{Rule: RuleUnknownName, Reason: fmt.Sprintf("the address %s stands for no name in this sandbox", a.dest.Addr())}
	}
	a.host = host
	return a, policy.Decision{}
}

func isControl(dest netip.AddrPort) bool {
	return dest.Port() == controlPort && (dest.Addr() == gatewayV4() || dest.Addr() == gatewayV6())
}

// calls says whether a connection is to the control address.
func (g *Gateway) calls(c *net.TCPConn) bool {
	dest, err := g.originalDestination(c)
	return err == nil && isControl(unmapPort(dest))
}

// crossing returns the arrival as policy wants it.
func (a arrival) crossing(p policy.Protocol) policy.Crossing {
	c := policy.Crossing{Protocol: p, Host: a.host, Port: a.dest.Port()}
	if a.host == "" {
		c.Addr = a.dest.Addr()
	}
	return c
}

func unmapPort(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

// originalDestination asks the kernel where a redirected connection was going. It comes from connection tracking, which
// nothing inside the sandbox can write.
func originalDestination(c *net.TCPConn) (netip.AddrPort, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return netip.AddrPort{}, err
	}
	v4 := c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap().Is4()
	var dest netip.AddrPort
	var opt error
	err = raw.Control(func(fd uintptr) {
		if v4 {
			dest, opt = originalV4(int(fd))
		} else {
			dest, opt = originalV6(int(fd))
		}
	})
	if err != nil {
		return netip.AddrPort{}, err
	}
	return dest, opt
}

// originalV4 reads a sockaddr_in through the one getsockopt of x/sys whose result has its size, 16 bytes and more.
func originalV4(fd int) (netip.AddrPort, error) {
	v, err := unix.GetsockoptIPv6Mreq(fd, unix.SOL_IP, unix.SO_ORIGINAL_DST)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("original destination: %w", err)
	}
	b := v.Multiaddr // family (2), port (2, network order), address (4), padding
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[4:8])), uint16(b[2])<<8|uint16(b[3])), nil
}

// originalV6 reads a sockaddr_in6; IP6T_SO_ORIGINAL_DST has the number of SO_ORIGINAL_DST.
func originalV6(fd int) (netip.AddrPort, error) {
	v, err := unix.GetsockoptIPv6MTUInfo(fd, unix.SOL_IPV6, unix.SO_ORIGINAL_DST)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("original destination: %w", err)
	}
	port := v.Addr.Port // network order in a host-order field
	return netip.AddrPortFrom(netip.AddrFrom16(v.Addr.Addr), ntohs(port)), nil
}

// ntohs turns a number in network order, read as if it were in host order, into what it means.
func ntohs(v uint16) uint16 {
	var b [2]byte
	binary.NativeEndian.PutUint16(b[:], v)
	return binary.BigEndian.Uint16(b[:])
}

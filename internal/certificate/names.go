package certificate

import (
	"crypto/x509"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/netname"
)

// names are what a certificate must be good for, in the order in which they were configured.
type names struct {
	dns []string
	ips []netip.Addr
}

// parseNames reads hosts, with or without a port.
func parseNames(hosts []string) (names, error) {
	var n names
	for _, text := range hosts {
		host := text
		if h, _, err := net.SplitHostPort(text); err == nil {
			host = h
		}
		host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
		if a, err := netip.ParseAddr(host); err == nil && a.Zone() == "" {
			n.addIP(a.Unmap())
			continue
		}
		h, err := netname.NormaliseHost(host)
		if err != nil {
			return names{}, fault.New(fault.Invalid, "no certificate can be had for %.200q", text).
				WithHint("write url and hosts with names such as cofferdam.example.com").Because(err)
		}
		n.addDNS(h.String())
	}
	return n, nil
}

func (n *names) addDNS(name string) {
	if !slices.Contains(n.dns, name) {
		n.dns = append(n.dns, name)
	}
}

func (n *names) addIP(a netip.Addr) {
	if !slices.Contains(n.ips, a) {
		n.ips = append(n.ips, a)
	}
}

// withLoopback adds the names of this machine to itself.
func (n names) withLoopback() names {
	all := names{dns: slices.Clone(n.dns), ips: slices.Clone(n.ips)}
	all.addDNS("localhost")
	all.addIP(netip.AddrFrom4([4]byte{127, 0, 0, 1}))
	all.addIP(netip.IPv6Loopback())
	return all
}

// public leaves out what no authority but our own can vouch for.
func (n names) public() []string {
	var list []string
	for _, name := range n.dns {
		if name != "localhost" && !strings.HasSuffix(name, ".localhost") {
			list = append(list, name)
		}
	}
	for _, a := range n.ips {
		if !a.IsLoopback() {
			list = append(list, a.String())
		}
	}
	return list
}

// all returns every name as text.
func (n names) all() []string {
	list := slices.Clone(n.dns)
	for _, a := range n.ips {
		list = append(list, a.String())
	}
	return list
}

func (n names) netIPs() []net.IP {
	var list []net.IP
	for _, a := range n.ips {
		list = append(list, a.AsSlice())
	}
	return list
}

// first is the name that titles carry, short enough for a common name (RFC 5280, appendix A.1: 64 bytes).
func (n names) first() string {
	if all := n.all(); len(all) > 0 && len(all[0]) <= 40 {
		return all[0]
	}
	return "this server"
}

// missing returns the names that a certificate is not good for.
func (n names) missing(leaf *x509.Certificate) []string {
	return slices.DeleteFunc(n.all(), func(name string) bool { return leaf.VerifyHostname(name) == nil })
}

// exactly says whether a certificate has these names and no others.
func (n names) exactly(leaf *x509.Certificate) bool {
	return len(leaf.DNSNames) == len(n.dns) && len(leaf.IPAddresses) == len(n.ips) && len(n.missing(leaf)) == 0
}

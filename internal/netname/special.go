package netname

import (
	"net/netip"
	"slices"
)

// Block is a range of addresses that is not the ordinary internet.
type Block struct {
	Prefix netip.Prefix
	// Name says for people what lives there.
	Name string
	// Source is the document that reserves it.
	Source string
	// Metadata marks a cloud's own service for its machines: credentials are handed out there.
	Metadata bool
}

// Special reports whether an address is outside the ordinary internet, and the innermost block that makes it so. It looks through every standard
// form in which an IPv6 address carries an IPv4 one: mapped, NAT64, ISATAP; compatible, 6to4 and Teredo addresses are special as such. An address
// with a zone, and the zero address value, are special: the first names an interface of this host, the second nothing.
//
// NAT64 prefixes that a network operator chose (RFC 6052, section 2.2) cannot be known here.
func Special(a netip.Addr) (Block, bool) {
	switch {
	case !a.IsValid():
		return Block{Name: "no address", Source: "this program"}, true
	case a.Zone() != "":
		return Block{Name: "address with a zone", Source: "RFC 4007"}, true
	}
	a = a.Unmap()
	if b, ok := innermost(netip.PrefixFrom(a, a.BitLen())); ok {
		return b, true
	}
	inner, how := embedded(a)
	if how == "" {
		return Block{}, false
	}
	b, ok := Special(inner)
	if ok {
		b.Name += ", inside " + how
	}
	return b, ok
}

// BlockOf returns the innermost block that holds the whole prefix, if there is one. To name a special network is to name a prefix inside such a
// block.
func BlockOf(p netip.Prefix) (Block, bool) {
	if !p.IsValid() || p.Addr().Zone() != "" || p.Addr().Is4In6() {
		return Block{}, false
	}
	return innermost(p.Masked())
}

// Named reports whether a network is what a person must write to mean the special address a: it holds a, and lies inside the innermost block of a.
// So 10.1.0.0/16 names 10.1.2.3, while neither 0.0.0.0/0 nor a block around a metadata service names an address by accident.
// What hides inside a translated address cannot be named at all.
func Named(network netip.Prefix, a netip.Addr) bool {
	a = a.Unmap()
	if a.Zone() != "" || !network.IsValid() || !network.Contains(a) {
		return false
	}
	b, ok := innermost(netip.PrefixFrom(a, a.BitLen()))
	return ok && b.Prefix.Bits() <= network.Bits()
}

// innermost finds the narrowest row that holds p. The NAT64 prefix is in none: what counts there is the address inside.
func innermost(p netip.Prefix) (Block, bool) {
	best, found := Block{}, false
	if nat64.Overlaps(p) && p.Bits() >= nat64.Bits() {
		return best, false
	}
	for _, r := range specialRows {
		if r.Prefix.Bits() <= p.Bits() && r.Prefix.Contains(p.Addr()) && (!found || r.Prefix.Bits() > best.Prefix.Bits()) {
			best, found = r, true
		}
	}
	return best, found
}

// Inner returns the IPv4 address that an otherwise ordinary IPv6 address carries to a translator (NAT64, ISATAP).
func Inner(a netip.Addr) (netip.Addr, bool) {
	inner, how := embedded(a)
	return inner, how != ""
}

// embedded returns the IPv4 address that an otherwise ordinary IPv6 address carries to a translator.
func embedded(a netip.Addr) (inner netip.Addr, how string) {
	if !a.Is6() {
		return netip.Addr{}, ""
	}
	b := a.As16()
	last := netip.AddrFrom4([4]byte(b[12:]))
	switch {
	case nat64.Contains(a):
		return last, "a NAT64 address"
	case b[8]&^0x02 == 0 && b[9] == 0 && b[10] == 0x5e && b[11] == 0xfe: // RFC 5214, section 6.1
		return last, "an ISATAP address"
	}
	return netip.Addr{}, ""
}

// Blocks returns the whole table, a copy.
func Blocks() []Block { return slices.Clone(specialRows) }

// nat64 is the one special-purpose block that is looked through, not refused: behind a DNS64 resolver every IPv4-only host has such an address.
var nat64 = netip.MustParsePrefix("64:ff9b::/96") // RFC 6052, section 2.1

func row(prefix, name, source string) Block {
	return Block{Prefix: netip.MustParsePrefix(prefix), Name: name, Source: source}
}

func metadata(addr, name, source string) Block {
	a := netip.MustParseAddr(addr)
	return Block{Prefix: netip.PrefixFrom(a, a.BitLen()), Name: name, Source: source, Metadata: true}
}

// specialRows is never changed. The RFC rows are the IANA IPv4 and IPv6 Special-Purpose Address Registries, whole: the few blocks that are
// globally reachable (anycast services, AS112 sinks) are refused with the rest, for no ordinary server lives there. Then multicast, and all of
// IPv6 that is not global unicast.
var specialRows = []Block{
	row("0.0.0.0/8", "this network", "RFC 791, section 3.2"),
	row("0.0.0.0/32", "this host", "RFC 1122, section 3.2.1.3"),
	row("10.0.0.0/8", "private network", "RFC 1918"),
	row("100.64.0.0/10", "carrier-grade NAT", "RFC 6598"),
	row("127.0.0.0/8", "loopback", "RFC 1122, section 3.2.1.3"),
	row("169.254.0.0/16", "link-local", "RFC 3927"),
	row("172.16.0.0/12", "private network", "RFC 1918"),
	row("192.0.0.0/24", "IETF protocol assignments", "RFC 6890, section 2.1"),
	row("192.0.0.0/29", "IPv4 service continuity", "RFC 7335"),
	row("192.0.0.8/32", "IPv4 dummy address", "RFC 7600"),
	row("192.0.0.9/32", "port control anycast", "RFC 7723"),
	row("192.0.0.10/32", "TURN anycast", "RFC 8155"),
	row("192.0.0.170/32", "NAT64 discovery", "RFC 8880"),
	row("192.0.0.171/32", "NAT64 discovery", "RFC 8880"),
	row("192.0.2.0/24", "documentation", "RFC 5737"),
	row("192.31.196.0/24", "AS112 sink", "RFC 7535"),
	row("192.52.193.0/24", "multicast tunnelling (AMT)", "RFC 7450"),
	row("192.88.99.0/24", "6to4 relay, deprecated", "RFC 7526"),
	row("192.168.0.0/16", "private network", "RFC 1918"),
	row("192.175.48.0/24", "AS112 sink", "RFC 7534"),
	row("198.18.0.0/15", "benchmarking", "RFC 2544"),
	row("198.51.100.0/24", "documentation", "RFC 5737"),
	row("203.0.113.0/24", "documentation", "RFC 5737"),
	row("224.0.0.0/4", "multicast", "RFC 5771"),
	row("240.0.0.0/4", "reserved", "RFC 1112, section 4"),
	row("255.255.255.255/32", "broadcast", "RFC 919, section 7"),

	row("::/128", "unspecified address", "RFC 4291, section 2.5.2"),
	row("::1/128", "loopback", "RFC 4291, section 2.5.3"),
	row("::/96", "IPv4-compatible, deprecated", "RFC 4291, section 2.5.5.1"),
	row("::ffff:0:0/96", "IPv4-mapped", "RFC 4291, section 2.5.5.2"),
	row("::ffff:0:0:0/96", "IPv4-translated", "RFC 2765, section 2.1"),
	row("64:ff9b:1::/48", "local NAT64", "RFC 8215"),
	row("100::/64", "discard", "RFC 6666"),
	row("100:0:0:1::/64", "dummy prefix", "RFC 9780"),
	row("2001::/23", "IETF protocol assignments", "RFC 2928"),
	row("2001::/32", "Teredo", "RFC 4380"),
	row("2001:1::1/128", "port control anycast", "RFC 7723"),
	row("2001:1::2/128", "TURN anycast", "RFC 8155"),
	row("2001:1::3/128", "service registration anycast", "RFC 9665"),
	row("2001:2::/48", "benchmarking", "RFC 5180"),
	row("2001:3::/32", "multicast tunnelling (AMT)", "RFC 7450"),
	row("2001:4:112::/48", "AS112 sink", "RFC 7535"),
	row("2001:10::/28", "ORCHID, deprecated", "RFC 4843"),
	row("2001:20::/28", "ORCHIDv2", "RFC 7343"),
	row("2001:30::/28", "drone identifiers", "RFC 9374"),
	row("2001:db8::/32", "documentation", "RFC 3849"),
	row("2002::/16", "6to4", "RFC 3056"),
	row("2620:4f:8000::/48", "AS112 sink", "RFC 7534"),
	row("3fff::/20", "documentation", "RFC 9637"),
	row("5f00::/16", "segment routing", "RFC 9602"),
	row("fc00::/7", "private network", "RFC 4193"),
	row("fe80::/10", "link-local", "RFC 4291, section 2.5.6"),
	row("fec0::/10", "site-local, deprecated", "RFC 3879"),
	row("ff00::/8", "multicast", "RFC 4291, section 2.7"),

	row("::/3", "not global unicast", "RFC 4291, section 2.4"),
	row("4000::/2", "not global unicast", "RFC 4291, section 2.4"),
	row("8000::/1", "not global unicast", "RFC 4291, section 2.4"),

	metadata("169.254.169.254", "cloud metadata service", "AWS, Google Cloud, Azure, Oracle, DigitalOcean, OpenStack"),
	metadata("169.254.169.253", "cloud DNS resolver", "AWS"),
	metadata("169.254.169.123", "cloud time service", "AWS"),
	metadata("169.254.170.2", "container credentials", "AWS ECS"),
	metadata("169.254.170.23", "container credentials", "AWS EKS"),
	metadata("169.254.42.42", "cloud metadata service", "Scaleway"),
	metadata("169.254.0.23", "cloud metadata service", "Tencent Cloud"),
	metadata("fd00:ec2::254", "cloud metadata service", "AWS"),
	metadata("fd00:ec2::253", "cloud DNS resolver", "AWS"),
	metadata("fd00:ec2::23", "container credentials", "AWS EKS"),
	metadata("fd20:ce::254", "cloud metadata service", "Google Cloud"),
	metadata("fd00:c1::a9fe:a9fe", "cloud metadata service", "Oracle Cloud"),
	metadata("fd00:42::42", "cloud metadata service", "Scaleway"),
	metadata("fe80::a9fe:a9fe", "cloud metadata service", "OpenStack"),
	metadata("100.100.100.200", "cloud metadata service", "Alibaba Cloud"),
	metadata("168.63.129.16", "cloud platform service", "Azure"),
	metadata("192.0.0.192", "cloud metadata service", "Oracle Cloud"),
}

package policy

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/netname"
)

// DecideName judges a question for a name: Allow if some port and protocol of it could be allowed, Ask if some would be asked about, else Deny. So
// a name is answered exactly if a connection to it could come to something.
func (p *Policy) DecideName(h netname.Host) Decision {
	if h == "" {
		return Decision{Rule: RuleDefault, Reason: "there is no name in the question"}
	}
	if d, past := p.pastGit(&Crossing{Protocol: DNS, Host: h}); past {
		return d
	}
	best := Decision{}
	for _, c := range p.candidates(h) {
		if d := p.Decide(c); d.Verdict > best.Verdict {
			best = d
		}
		if best.Verdict == Allow {
			return best
		}
	}
	if best.Verdict == Ask {
		return best
	}
	return p.refuseName(h)
}

// candidates lists every crossing by which a name could be reached: all that rules are about, and, where the default asks, the usual ones
// and one that no rule mentions.
func (p *Policy) candidates(h netname.Host) []Crossing {
	if p == nil {
		return nil
	}
	var all []Crossing
	for i := range p.layers {
		for j := range p.layers[i].rules {
			r := &p.layers[i].rules[j]
			if r.Verdict == Deny || !r.namesHost(h) {
				continue
			}
			for _, port := range r.Ports {
				for _, protocol := range r.protocols() {
					all = append(all, Crossing{Protocol: protocol, Host: h, Port: port})
				}
			}
		}
	}
	if p.Default() == Ask {
		all = append(all, Crossing{Protocol: TLS, Host: h, Port: 443}, Crossing{Protocol: HTTP, Host: h, Port: 80},
			Crossing{Protocol: TCP, Host: h, Port: p.unmentioned()})
	}
	return all
}

// unmentioned returns a port that no rule lists.
func (p *Policy) unmentioned() uint16 {
	port := uint16(1024)
	for p.mentions(port) && port != 0 {
		port++
	}
	return port
}

func (p *Policy) mentions(port uint16) bool {
	for _, l := range p.layers {
		for _, r := range l.rules {
			if slices.Contains(r.Ports, port) {
				return true
			}
		}
	}
	return false
}

// refuseName says why no connection to a name can come to anything.
func (p *Policy) refuseName(h netname.Host) Decision {
	c := Crossing{Protocol: DNS, Host: h}
	if p != nil {
		for i := range p.layers {
			for j := range p.layers[i].rules {
				if r := &p.layers[i].rules[j]; r.total() && r.namesHost(h) {
					return r.decision(&c)
				}
			}
		}
	}
	if encryptedDNS(h) {
		return Decision{Rule: RuleEncryptedDNS, Reason: fmt.Sprintf("%s offers encrypted DNS, and no rule names it: names are resolved by the gateway", h)}
	}
	if p.ServesGit() {
		for _, u := range p.git.at(h) {
			return Decision{Rule: RuleDefault, Reason: fmt.Sprintf("no rule is about the name %s; Git goes through %s", h, u.instead())}
		}
	}
	return Decision{Rule: RuleDefault, Reason: fmt.Sprintf("no rule is about the name %s", h)}
}

// DecideAddress judges the address to which an allowed name has resolved, right before it is dialled. Ordinary addresses are allowed;
// special-purpose ones only if egress.networks names that very network; networks that a rule denies are denied.
func (p *Policy) DecideAddress(h netname.Host, a netip.Addr) Decision {
	a = a.Unmap()
	return p.weakest(func(l *layer) Decision { return l.address(h, a) })
}

func (l *layer) address(h netname.Host, a netip.Addr) Decision {
	for i := range l.rules {
		if r := &l.rules[i]; r.Verdict == Deny && r.namesAddress(a) {
			return Decision{Rule: r.Name, Reason: fmt.Sprintf("%s resolves to %s, which is denied by rule %q", h, a, r.Name)}
		}
	}
	b, special := netname.Special(a)
	if !special {
		return Decision{Verdict: Allow, Rule: RulePublicAddress, Reason: fmt.Sprintf("%s resolves to %s, an ordinary address", h, a)}
	}
	for _, n := range l.networks {
		if netname.Named(n, a) {
			return Decision{Verdict: Allow, Rule: RuleNetworks, Reason: fmt.Sprintf("%s resolves to %s, and egress.networks names %s", h, a, n)}
		}
	}
	return Decision{Rule: RuleSpecialAddress, Reason: fmt.Sprintf("%s resolves to %s, a special-purpose address (%s) that egress.networks does not name", h, a, b.Name)}
}

// Opaque reports whether a connection is to be passed through without reading what the program says first: a rule of protocol tcp allows it, or
// asks, whatever its bytes are. Protocols in which the server speaks first need to know this before a byte has come.
func (p *Policy) Opaque(c Crossing) bool {
	if p.Inspects(c.Host, c.Port) {
		return false
	}
	c.Protocol = TCP
	d := p.Decide(c)
	return d.Verdict == Allow || d.Verdict == Ask && d.Rule != RuleDefault
}

// checkSpecialNetwork refuses what egress.networks cannot name.
func checkSpecialNetwork(n netip.Prefix) error {
	if !n.IsValid() || n != n.Masked() || n.Addr().Is4In6() || n.Addr().Zone() != "" {
		return fmt.Errorf("network %s is not in canonical form", n)
	}
	if _, ok := netname.BlockOf(n); ok {
		return nil
	}
	if whole, special := netname.Special(n.Addr()); special && n.IsSingleIP() {
		return fault.New(fault.Invalid, "%s carries a special-purpose address (%s) in another form, which cannot be opened", n, whole.Name).
			WithHint("name the address in its own form")
	}
	for _, b := range netname.Blocks() {
		if b.Prefix.Bits() > n.Bits() && n.Contains(b.Prefix.Addr()) {
			return fault.New(fault.Invalid, "%s holds more than one special-purpose network, such as %s (%s)", n, b.Prefix, b.Name).
				WithHint("name the very networks that are meant")
		}
	}
	return fault.New(fault.Invalid, "%s is no special-purpose network", n).WithHint("leave it out: allowed names may resolve into it anyway")
}

// ParseNetwork reads a network in canonical form: an address with its prefix length and no host bits. A lone address is the network of one.
// The error says what to write instead.
func ParseNetwork(s string) (netip.Prefix, error) {
	n, err := netip.ParsePrefix(s)
	if a, addrErr := netip.ParseAddr(s); addrErr == nil {
		n, err = netip.PrefixFrom(a, a.BitLen()), nil
		if a.Zone() != "" {
			return netip.Prefix{}, fault.New(fault.Invalid, "network %.60q: a zone names an interface of this host", s).WithHint("leave it out")
		}
	}
	switch {
	case err != nil:
		return netip.Prefix{}, fault.New(fault.Invalid, "%.60q is no network", s).WithHint("write an address and a prefix length, as in 10.1.2.0/24")
	case n.Addr().Is4In6() && n.Bits() >= 96:
		return netip.Prefix{}, fault.New(fault.Invalid, "network %.60q is IPv4 in another form", s).
			WithHint("write %s", netip.PrefixFrom(n.Addr().Unmap(), n.Bits()-96).Masked())
	case n.Addr().Is4In6():
		return netip.Prefix{}, fault.New(fault.Invalid, "network %.60q is IPv4 in another form", s).WithHint("write it as IPv4")
	case n != n.Masked():
		return netip.Prefix{}, fault.New(fault.Invalid, "network %.60q has bits beyond its length", s).WithHint("write %s", n.Masked())
	}
	if canonical := n.String(); s != canonical && s != n.Addr().String() {
		return netip.Prefix{}, fault.New(fault.Invalid, "network %.60q is not in canonical form", s).WithHint("write %s", canonical)
	}
	return n, nil
}

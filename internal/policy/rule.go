package policy

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/netname"
)

// Rule says what happens to crossings to some hosts, or to some raw addresses. The zero value matches nothing, and its verdict is Deny.
type Rule struct {
	// Name is what decisions and the audit log call the rule.
	Name string
	// Hosts and Networks say which crossings by name, and which by raw address, the rule is about. A rule has the one or the other.
	Hosts    []netname.Pattern
	Networks []netip.Prefix
	// Ports lists the ports. A rule that denies and lists none is about all ports; any other is then about none.
	Ports []uint16
	// Methods and Paths narrow the rule to some requests. Empty is all.
	Methods []string
	Paths   []netname.PathPattern
	Wire    Wire
	TLS     Depth
	Verdict Verdict
	// Line is where the rule stands in its file, 0 for a flag or an answer.
	Line int
}

// mismatch says what keeps a rule from being about a crossing.
type mismatch uint8

const (
	matches mismatch = iota
	otherHost
	otherAddress
	otherPort
	otherWire
	otherMethod
	otherPath
)

// match compares everything, host first.
func (r *Rule) match(c *Crossing) mismatch {
	if c.Host != "" {
		if !r.namesHost(c.Host) {
			return otherHost
		}
	} else if !r.namesAddress(c.Addr) {
		return otherAddress
	}
	if !r.namesPort(c.Port) {
		return otherPort
	}
	if !r.namesProtocol(c.Protocol) {
		return otherWire
	}
	return r.matchRequest(c)
}

// conditional reports whether the rule is about some requests only.
func (r *Rule) conditional() bool { return len(r.Methods)+len(r.Paths) > 0 }

// matchRequest compares method and path. A connection that requests would come over matches if one of them could be allowed or asked about.
func (r *Rule) matchRequest(c *Crossing) mismatch {
	switch {
	case !r.conditional():
		return matches
	case c.Method == "" && r.Verdict == Deny:
		return otherMethod
	case c.Method == "":
		return matches
	case len(r.Methods) > 0 && !slices.Contains(r.Methods, c.Method):
		return otherMethod
	case len(r.Paths) > 0 && !namesPath(r.Paths, c.Path, r.Verdict == Deny):
		return otherPath
	}
	return matches
}

// namesPath compares a path in every reading that servers may have of it. To be opened all of them must be named, to be denied one is enough.
func namesPath(patterns []netname.PathPattern, path string, anyReading bool) bool {
	for _, reading := range netname.Path(path).Readings() {
		named := slices.ContainsFunc(patterns, func(p netname.PathPattern) bool { return p.Match(reading) })
		if named == anyReading {
			return anyReading
		}
	}
	return !anyReading
}

func (r *Rule) namesHost(h netname.Host) bool {
	for i := range r.Hosts {
		if r.Hosts[i].Match(h) {
			return true
		}
	}
	return false
}

// namesExactly reports whether the rule lists this very host, without a wildcard.
func (r *Rule) namesExactly(h netname.Host) bool {
	return slices.Contains(r.Hosts, netname.Exact(h))
}

// namesAddress reports whether a raw address lies in the rule's networks. To be opened, a special address must be meant (netname.Named): 0.0.0.0/0
// opens no metadata service. To be denied, it need only be held, also where a translated form carries it.
func (r *Rule) namesAddress(a netip.Addr) bool {
	_, special := netname.Special(a)
	inner, carried := netname.Inner(a)
	for _, n := range r.Networks {
		switch {
		case r.Verdict == Deny && (n.Contains(a) || carried && n.Contains(inner)):
			return true
		case r.Verdict != Deny && n.Contains(a) && (!special || netname.Named(n, a)):
			return true
		}
	}
	return false
}

func (r *Rule) namesPort(port uint16) bool {
	if len(r.Ports) == 0 {
		return r.Verdict == Deny
	}
	return slices.Contains(r.Ports, port)
}

// namesProtocol reports whether the rule is about such bytes. A rule that denies without saying more denies all: otherwise an opaque rule would
// open what it closes.
func (r *Rule) namesProtocol(p Protocol) bool {
	switch r.Wire {
	case WireAuto:
		return p == TLS || p == HTTPS || p == HTTP || r.Verdict == Deny
	case WireTLS:
		return p == TLS || p == HTTPS
	case WireHTTP:
		return p == HTTP
	case WireTCP:
		return p == TLS || p == HTTPS || p == HTTP || p == TCP || p == Unknown
	}
	return false
}

// total reports whether the rule denies a host, or a network, on every port and for all bytes.
func (r *Rule) total() bool {
	return r.Verdict == Deny && len(r.Ports) == 0 && !r.conditional() && (r.Wire == WireAuto || r.Wire == WireTCP)
}

// protocols lists what a rule that allows or asks can be about.
func (r *Rule) protocols() []Protocol {
	switch r.Wire {
	case WireAuto:
		return []Protocol{TLS, HTTP}
	case WireTLS:
		return []Protocol{TLS}
	case WireHTTP:
		return []Protocol{HTTP}
	case WireTCP:
		return []Protocol{TCP}
	}
	return nil
}

// check says what makes a rule that was not read from text unfit.
func (r *Rule) check() error {
	switch {
	case r.Name == "":
		return errors.New("a rule needs a name")
	case slices.Contains(builtinRules(), r.Name):
		return fmt.Errorf("rule %q: the name is built in", r.Name)
	case len(r.Hosts)+len(r.Networks) == 0:
		return fmt.Errorf("rule %q: neither hosts nor networks", r.Name)
	case len(r.Hosts) > 0 && len(r.Networks) > 0:
		return fmt.Errorf("rule %q: both hosts and networks", r.Name)
	case len(r.Ports) == 0 && r.Verdict != Deny:
		return fmt.Errorf("rule %q: no ports", r.Name)
	case r.Verdict > Allow || r.Wire > WireTCP:
		return fmt.Errorf("rule %q: no such verdict or protocol", r.Name)
	case len(r.Networks) > 0 && r.Verdict == Deny && !r.total():
		return fmt.Errorf("rule %q: a denied network is denied on every port", r.Name)
	}
	if err := r.checkRequests(); err != nil {
		return fmt.Errorf("rule %q: %w", r.Name, err)
	}
	for _, n := range r.Networks {
		if err := checkRawNetwork(n, r.Verdict); err != nil {
			return fmt.Errorf("rule %q: %w", r.Name, err)
		}
	}
	return nil
}

// checkRawNetwork refuses networks that a rule of raw addresses cannot be about.
func checkRawNetwork(n netip.Prefix, v Verdict) error {
	if !n.IsValid() || n != n.Masked() || n.Addr().Is4In6() || n.Addr().Zone() != "" {
		return fmt.Errorf("network %s is not in canonical form", n)
	}
	if v == Deny {
		return nil
	}
	if b, ok := netname.BlockOf(n); ok && b.Name == "loopback" {
		return fault.New(fault.Invalid, "%s is the sandbox's own loopback, which needs no rule", n).
			WithHint("to reach a service of the host, name it under hosts and list %s under egress.networks", n)
	}
	for _, s := range syntheticNetworks() {
		if s.Contains(n.Addr()) && n.Bits() >= s.Bits() {
			return fault.New(fault.Invalid, "%s stands for names inside the sandbox", n).WithHint("name the host under hosts")
		}
	}
	return nil
}

// clone copies what r points to, so that a Policy shares nothing with its makers.
func (r Rule) clone() Rule {
	r.Hosts, r.Networks, r.Ports = slices.Clone(r.Hosts), slices.Clone(r.Networks), slices.Clone(r.Ports)
	r.Methods, r.Paths = slices.Clone(r.Methods), slices.Clone(r.Paths)
	return r
}

// Flag writes the rule as --allow flags, "" if flags cannot say it.
func (r Rule) Flag() string {
	if r.Verdict != Allow || r.conditional() || r.TLS != DepthAuto {
		return ""
	}
	ports := r.Ports
	if samePorts(ports, defaultPorts()) && len(r.Networks) == 0 {
		ports = []uint16{0}
	}
	prefix := ""
	if r.Wire != WireAuto {
		prefix = r.Wire.String() + ":"
		ports = r.Ports // a prefix asks for the port
	}
	var flags []string
	for _, port := range ports {
		for _, h := range r.Hosts {
			flags = append(flags, "--allow "+shellWord(prefix+withPort(h.String(), port)))
		}
		for _, n := range r.Networks {
			flags = append(flags, "--allow "+shellWord(prefix+withPort(networkText(n), port)))
		}
	}
	return strings.Join(flags, " ")
}

func samePorts(a, b []uint16) bool {
	return len(a) == len(b) && !slices.ContainsFunc(a, func(p uint16) bool { return !slices.Contains(b, p) })
}

func withPort(host string, port uint16) string {
	if port == 0 {
		return host
	}
	return fmt.Sprintf("%s:%d", host, port)
}

// networkText writes a network as a flag reads it: a single address without its length, IPv6 in brackets.
func networkText(n netip.Prefix) string {
	text := n.String()
	if n.IsSingleIP() {
		text = n.Addr().String()
	}
	if n.Addr().Is6() {
		return "[" + text + "]"
	}
	return text
}

// shellWord quotes what a shell would expand: the star of a wildcard, the brackets of an IPv6 address.
func shellWord(s string) string {
	if strings.ContainsAny(s, "*[]") {
		return "'" + s + "'"
	}
	return s
}

package policy

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/netname"
)

// ParseAllow reads what follows --allow on the command line as a rule that allows:
//
//	HOST, *.HOST            ports 443 and 80, TLS or plain HTTP
//	HOST:PORT               that port, TLS or plain HTTP
//	tcp:HOST:PORT           that port, any bytes; likewise tls: and http:
//	1.2.3.4:PORT, [V6]:PORT a raw address; 10.1.2.0/24:PORT a raw network
func ParseAllow(flag string) (Rule, error) { return parseFlag(flag, "--allow", Allow) }

// ParseDeny reads what follows --deny, written like --allow, as a rule that denies. Without a port, and for addresses, it denies every port and
// all bytes.
func ParseDeny(flag string) (Rule, error) { return parseFlag(flag, "--deny", Deny) }

func parseFlag(flag, option string, verdict Verdict) (Rule, error) {
	if strings.Contains(flag, "://") {
		return Rule{}, fault.New(fault.Invalid, "%s %.200q is a URL", option, flag).
			WithHint("write the host and the port only, as in %s registry.example.com:443", option)
	}
	r := Rule{Name: option + " " + flag, Verdict: verdict}
	rest := flag
	for _, w := range []Wire{WireTLS, WireHTTP, WireTCP} {
		if after, ok := strings.CutPrefix(flag, w.String()+":"); ok {
			r.Wire, rest = w, after
		}
	}
	host, port, err := splitPort(rest)
	if err != nil {
		return Rule{}, err
	}
	if port != 0 {
		r.Ports = []uint16{port}
	}
	if network, ok, err := rawNetwork(host); err != nil {
		return Rule{}, err
	} else if ok {
		r.Networks = []netip.Prefix{network}
	} else {
		pattern, err := netname.ParsePattern(host)
		if err != nil {
			return Rule{}, err
		}
		r.Hosts = []netname.Pattern{pattern}
	}
	if len(r.Ports) == 0 && verdict != Deny {
		if r.Wire != WireAuto || len(r.Networks) > 0 {
			return Rule{}, fault.New(fault.Invalid, "%s %.200q names no port", option, flag).
				WithHint("write %s %s:PORT", option, strings.TrimSuffix(flag, ":"))
		}
		r.Ports = defaultPorts()
	}
	if len(r.Networks) > 0 && verdict == Deny && !r.total() {
		return Rule{}, fault.New(fault.Invalid, "%s %.200q: a denied network is denied on every port", option, flag).WithHint("write %s %s", option, host)
	}
	if err := r.check(); err != nil {
		return Rule{}, invalid(err)
	}
	return r, nil
}

// splitPort takes a port off the end: of a name, an IPv4 address, or what stands in brackets. The port is 0 if there is none.
func splitPort(s string) (host string, port uint16, err error) {
	if inside, ok := strings.CutPrefix(s, "["); ok {
		inside, after, closed := strings.Cut(inside, "]")
		if !closed || after != "" && after[0] != ':' || !strings.Contains(inside, ":") {
			return "", 0, fault.New(fault.Invalid, "%.200q is no IPv6 address in brackets", s).WithHint("write it as in [2001:db8::1]:443")
		}
		if after == "" {
			return inside, 0, nil
		}
		port, err = netname.ParsePort(after[1:])
		return inside, port, err
	}
	if strings.Count(s, ":") > 1 {
		return "", 0, fault.New(fault.Invalid, "%.200q is neither a host nor an IPv6 address in brackets", s).
			WithHint("write an IPv6 address as in [2001:db8::1]:443")
	}
	host, text, found := strings.Cut(s, ":")
	if !found {
		return host, 0, nil
	}
	port, err = netname.ParsePort(text)
	return host, port, err
}

// rawNetwork reads an address or a network; ok is false for what is neither.
func rawNetwork(s string) (n netip.Prefix, ok bool, err error) {
	_, addrErr := netip.ParseAddr(s)
	if addrErr != nil && !strings.ContainsAny(s, "/:") {
		return netip.Prefix{}, false, nil
	}
	n, err = ParseNetwork(s)
	return n, err == nil, err
}

// RuleFor returns the narrowest rule that would allow a crossing; false if none can. The special-purpose check of resolved names stays: see
// SuggestNetwork.
func RuleFor(c Crossing) (Rule, bool) {
	c.Addr = c.Addr.Unmap()
	if _, final := closed(&c); final || c.Protocol != DNS && c.Port == 0 {
		return Rule{}, false
	}
	r := Rule{Verdict: Allow, Ports: []uint16{c.Port}}
	switch {
	case c.Host != "":
		r.Hosts = []netname.Pattern{netname.Exact(c.Host)}
	case c.Protocol == DNS:
		return Rule{}, false
	default:
		r.Networks = []netip.Prefix{netip.PrefixFrom(c.Addr, c.Addr.BitLen())}
	}
	if c.Protocol == DNS {
		r.Ports = defaultPorts()
	}
	web := c.Port == 443 || c.Port == 80
	if c.Protocol == Unknown || c.Protocol == TCP && (c.Host != "" || !web) {
		r.Wire = WireTCP
	}
	r.Name = r.Flag()
	if r.check() != nil {
		return Rule{}, false
	}
	if p := (Policy{layers: []layer{{rules: []Rule{r}}}}); c.Protocol != DNS && c.Protocol != TCP && p.Decide(c).Verdict != Allow {
		return Rule{}, false // a translated special address, say: naming it is not enough
	}
	return r, true
}

// AllowFlag returns the flag that would allow a crossing, for messages; "" if none can. Policy.AllowFlag also knows what a policy denies by rule.
func AllowFlag(c Crossing) string {
	r, ok := RuleFor(c)
	if !ok {
		return ""
	}
	return r.Flag()
}

// AllowFlag returns the flag that would allow a crossing under this policy; "" if none can, as where a rule denies it.
func (p *Policy) AllowFlag(c Crossing) string {
	r, ok := RuleFor(c)
	if !ok || c.Method != "" && p.aboutOtherRequests(&c) || p != nil && p.git.blinds(&r) != "" {
		return ""
	}
	if p.With(r).Decide(c).Verdict != Allow && (c.Protocol != TCP || p.With(r).Decide(withProtocol(c, TLS)).Verdict != Allow) {
		return ""
	}
	return r.Flag()
}

// aboutOtherRequests reports whether rules allow other requests to the same place: a flag would open all of them.
func (p *Policy) aboutOtherRequests(c *Crossing) bool {
	return p != nil && slices.ContainsFunc(p.layers, func(l layer) bool { n := l.near(c); return n == otherMethod || n == otherPath })
}

func withProtocol(c Crossing, p Protocol) Crossing {
	c.Protocol = p
	return c
}

// SuggestNetwork returns the network to name in egress.networks so that a name may resolve to the special-purpose address a; false if a is
// ordinary or cannot be named. Private networks are suggested with their neighbours (a /24, a /64), because the addresses of a mirror change;
// metadata, loopback and link-local addresses alone.
func SuggestNetwork(a netip.Addr) (netip.Prefix, bool) {
	a = a.Unmap()
	b, special := netname.Special(a)
	if !special || !b.Prefix.IsValid() {
		return netip.Prefix{}, false
	}
	bits := 24
	if a.Is6() {
		bits = 64
	}
	if b.Metadata || b.Name == "loopback" || b.Name == "link-local" {
		bits = a.BitLen()
	}
	n, err := a.Prefix(max(bits, b.Prefix.Bits()))
	if err != nil || !netname.Named(n, a) {
		return netip.Prefix{}, false
	}
	return n, true
}

// NetworkFlag returns the flag that would let a name resolve to the special-purpose address a; "" if none can.
func NetworkFlag(a netip.Addr) string {
	n, ok := SuggestNetwork(a)
	if !ok {
		return ""
	}
	return "--allow-network " + n.String()
}

package gateway

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/cofferdam/cofferdam/internal/audit"
	"github.com/cofferdam/cofferdam/internal/frame"
	"github.com/cofferdam/cofferdam/internal/gateway/dns"
	"github.com/cofferdam/cofferdam/internal/netname"
	"github.com/cofferdam/cofferdam/internal/policy"
)

// Lookup decides about a name that the sandbox asks for. Nothing is asked outside, not even for an allowed name: that is resolved when it is
// dialled. An allowed name is recorded when it first gets its address; a denied one each time.
func (g *Gateway) Lookup(ctx context.Context, host netname.Host, from netip.AddrPort) dns.Reply {
	if ownName(host) {
		return dns.Reply{Outcome: dns.Found, V4: gatewayV4(), V6: gatewayV6()}
	}
	law := g.policy.Load()
	d := law.DecideName(host)
	c := policy.Crossing{Protocol: policy.DNS, Host: host}
	if d.Verdict == policy.Deny || d.Verdict == policy.Ask && g.config.Ask == nil {
		return g.denyName(ctx, c, d, from)
	}
	if i, ok := g.names.find(host); ok {
		return found(i)
	}
	base, refused := g.roomFor(law, host, d)
	if refused.Rule != "" {
		return g.denyName(ctx, c, refused, from)
	}
	e := event(audit.CrossingDecided, c, d)
	e.Crossing = g.crossing.Add(1)
	if err := g.ledger.decided(ctx, e); err != nil {
		g.log.ErrorContext(ctx, "name refused because it cannot be recorded", "error", err)
		return dns.Reply{Outcome: dns.Failed, Text: "it cannot be recorded, and what cannot be recorded does not happen"}
	}
	i, ok := g.names.assign(host, base)
	if !ok {
		return dns.Reply{Outcome: dns.Failed, Text: "the table of names is full"}
	}
	return found(i)
}

func found(i uint32) dns.Reply {
	return dns.Reply{Outcome: dns.Found, V4: addressV4(i), V6: addressV6(i)}
}

// roomFor applies the bounds on names. A Decision with a rule refuses.
func (g *Gateway) roomFor(law *policy.Policy, host netname.Host, d policy.Decision) (base string, refused policy.Decision) {
	var free string
	if d.Verdict == policy.Allow {
		base, free = wildcardBase(law, host, d.Rule)
	}
	total, wildcard := g.names.room(base, g.limits.WildcardNames)
	switch {
	case !total:
		return "", policy.Decision{Rule: RuleNameLimit, Reason: fmt.Sprintf("the sandbox has asked for %d names already", g.limits.Names)}
	case len(free) > g.limits.WildcardBytes:
		return "", policy.Decision{Rule: RuleWildcardLimit, Reason: fmt.Sprintf("the part of the name below %s is longer than %d bytes, which could carry a secret", base, g.limits.WildcardBytes)}
	case !wildcard:
		return "", policy.Decision{Rule: RuleWildcardLimit, Reason: fmt.Sprintf("%d names below %s are in use already, and more could carry a secret", g.limits.WildcardNames, base)}
	}
	return base, policy.Decision{}
}

func (g *Gateway) denyName(ctx context.Context, c policy.Crossing, d policy.Decision, from netip.AddrPort) dns.Reply {
	q := frame.Query{Network: "udp", Source: from.String()}
	d = g.deny(ctx, c, d, q, "")
	text := d.Rule + ": " + d.Reason
	if flag := g.remedy(c, d); flag != "" {
		text += "; to allow it: " + flag
	}
	code := uint16(dns.EDEBlocked)
	if d.Rule != policy.RuleDefault {
		code = dns.EDEProhibited
	}
	return dns.Reply{Outcome: dns.Refused, Code: code, Text: text}
}

// Reverse returns the name that a synthetic address stands for.
func (g *Gateway) Reverse(a netip.Addr) (netname.Host, bool) {
	if a == gatewayV4() || a == gatewayV6() {
		return "gateway." + ownDomain, true
	}
	return g.names.host(a)
}

// remedy is the flag that would allow a crossing, where a flag can.
func (g *Gateway) remedy(c policy.Crossing, d policy.Decision) string {
	flag := g.flagFor(c, d)
	if flag != "" && g.config.Remedy != "" {
		return g.config.Remedy
	}
	return flag
}

// flagFor is the flag of the command line that would allow a crossing.
func (g *Gateway) flagFor(c policy.Crossing, d policy.Decision) string {
	switch d.Rule {
	case policy.RuleSpecialAddress:
		if c.Host != "" && c.Addr.IsValid() {
			return policy.NetworkFlag(c.Addr)
		}
	case policy.RuleDefault, policy.RuleRawAddress, policy.RuleEncryptedDNS, RuleNobodyToAsk, RuleOpaqueProtocol:
	default:
		return ""
	}
	return g.policy.Load().AllowFlag(c)
}

// quoted bounds and quotes what a program sent, for the record.
func quoted(s string) string { return fmt.Sprintf("%.100q", s) }

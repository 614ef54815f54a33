package policy

import (
	"fmt"

	"github.com/cofferdam/cofferdam/internal/netname"
)

// Decide judges one crossing. Rules that deny come first, then those that allow, then those that ask, then the default; within one verdict the
// first in the file gives its name. A crossing by name is decided before the name is resolved: DecideAddress judges what it resolves to. Decide
// never allows without a rule that matches.
func (p *Policy) Decide(c Crossing) Decision {
	c.Addr = c.Addr.Unmap()
	if c.Protocol == Git {
		return p.decideGit(&c)
	}
	if d, final := closed(&c); final {
		return d
	}
	if d, past := p.pastGit(&c); past {
		return d
	}
	if c.Protocol == DNS {
		return p.DecideName(c.Host)
	}
	return p.weakest(func(l *layer) Decision { return l.decide(&c) })
}

// weakest asks every layer and returns the most closed answer, the first of equals. Without a layer nothing is allowed.
func (p *Policy) weakest(judge func(*layer) Decision) Decision {
	if p == nil || len(p.layers) == 0 {
		return Decision{Rule: RuleDefault, Reason: "there is no policy"}
	}
	least := judge(&p.layers[0])
	for i := range p.layers[1:] {
		if d := judge(&p.layers[i+1]); d.Verdict < least.Verdict {
			least = d
		}
	}
	return least
}

// closed answers for what no rule can open.
func closed(c *Crossing) (Decision, bool) {
	switch c.Protocol {
	case UDP:
		return Decision{Rule: RuleUDPClosed, Reason: "UDP cannot leave the sandbox: use TCP, and names through the system's resolver"}, true
	case ICMP:
		return Decision{Rule: RuleICMPClosed, Reason: "ICMP cannot leave the sandbox"}, true
	case DNS, TLS, HTTP, HTTPS, TCP, Unknown:
	default:
		return Decision{Rule: RuleProtocolClosed, Reason: "only TCP can leave the sandbox"}, true
	}
	if c.Host != "" || c.Protocol == DNS {
		return Decision{}, false
	}
	if !c.Addr.IsValid() || c.Addr.Zone() != "" {
		return Decision{Rule: RuleRawAddress, Reason: "the destination is no address that can be judged"}, true
	}
	return Decision{}, false
}

// decide is one layer's judgement of a crossing that is not closed.
func (l *layer) decide(c *Crossing) Decision {
	var best *Rule
	for i := range l.rules {
		r := &l.rules[i]
		if r.match(c) != matches {
			continue
		}
		if r.Verdict == Deny {
			return r.decision(c)
		}
		if !r.opensEncryptedDNS(c) {
			continue
		}
		if best == nil || r.Verdict > best.Verdict {
			best = r
		}
	}
	if best != nil {
		return best.decision(c)
	}
	return l.unmatched(c)
}

// encrypted reports whether a crossing looks like name resolution past the gateway.
func (c *Crossing) encrypted() bool {
	return c.Port == portDoT || c.Host != "" && encryptedDNS(c.Host)
}

// opensEncryptedDNS reports whether the rule names a crossing plainly enough where that is name resolution past the gateway: the very host, or for a
// raw address a network.
func (r *Rule) opensEncryptedDNS(c *Crossing) bool {
	return !c.encrypted() || c.Host == "" || r.namesExactly(c.Host)
}

func (r *Rule) decision(c *Crossing) Decision {
	return Decision{Verdict: r.Verdict, Rule: r.Name, Reason: c.destination() + r.Verdict.byRule() + fmt.Sprintf("%q", r.Name), PerRequest: r.conditional()}
}

func (v Verdict) byRule() string {
	switch v {
	case Allow:
		return " is allowed by rule "
	case Ask:
		return " is to be asked about by rule "
	}
	return " is denied by rule "
}

// destination prints where a crossing goes. Hosts are canonical, so nothing here can break a line.
func (c *Crossing) destination() string {
	switch {
	case c.Protocol == DNS:
		return fmt.Sprintf("the name %s", c.Host)
	case c.Host != "":
		return fmt.Sprintf("%s port %d", c.Host, c.Port)
	}
	return fmt.Sprintf("%s port %d", c.Addr, c.Port)
}

// unmatched is the answer where no rule is about a crossing.
func (l *layer) unmatched(c *Crossing) Decision {
	deny := func(rule, format string, args ...any) Decision {
		return Decision{Rule: rule, Reason: fmt.Sprintf(format, args...)}
	}
	if c.Host == "" {
		if b, special := netname.Special(c.Addr); special {
			return deny(RuleSpecialAddress, "%s is a special-purpose address (%s), which no rule names", c.Addr, b.Name)
		}
	}
	near := l.near(c)
	switch {
	case c.encrypted():
		return deny(RuleEncryptedDNS, "%s is encrypted DNS, which no rule names: names are resolved by the gateway", c.destination())
	case l.fallback == Ask && c.Port == portMail:
		return deny(RuleDefault, "%s is mail delivery, which only a rule that lists the port can open", c.destination())
	case l.fallback == Ask && c.Port != 0:
		return Decision{
			Verdict: Ask, Rule: RuleDefault, Reason: fmt.Sprintf("no rule is about %s, and the default is to ask", c.destination()),
			PerRequest: near == otherMethod || near == otherPath,
		}
	case c.Host == "":
		return deny(RuleRawAddress, "no rule names the address %s port %d", c.Addr, c.Port)
	case near == otherWire:
		return deny(RuleDefault, "rules are about %s, but not for %s", c.destination(), c.Protocol.bytes())
	case near == otherMethod:
		return deny(RuleDefault, "rules are about %s, but not for method %.40q", c.destination(), c.Method)
	case near == otherPath:
		return deny(RuleDefault, "rules are about %s, but not for this path", c.destination())
	case near == otherPort:
		return deny(RuleDefault, "rules are about %s, but not about port %d", c.Host, c.Port)
	}
	return deny(RuleDefault, "no rule is about %s", c.destination())
}

func (p Protocol) bytes() string {
	switch p {
	case TLS, HTTPS:
		return "TLS"
	case HTTP:
		return "plain HTTP"
	}
	return "bytes that are neither TLS nor plain HTTP"
}

// near returns how far the best rule came to matching, for the reason given.
func (l *layer) near(c *Crossing) mismatch {
	best := otherHost
	for i := range l.rules {
		if r := &l.rules[i]; r.Verdict != Deny {
			best = max(best, r.match(c))
		}
	}
	return best
}

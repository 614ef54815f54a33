// Package review (CONTROL) says what a denial means to the person who reviews it: what belongs together, which is the narrowest rule that would allow it,
// and in which ways a rule would widen what an agent can reach. It is pure.
package review

import (
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/audit"
	"github.com/cofferdam/cofferdam/internal/netname"
	"github.com/cofferdam/cofferdam/internal/policy"
)

// PlaceOf returns where an event's crossing went and what it wanted there.
func PlaceOf(e *audit.Event) api.Place {
	p := api.Place{
		Protocol: e.Protocol, Host: e.Host, Port: e.Port, Method: e.Method, Path: e.Path, Repository: e.Repository, Refs: e.Refs,
	}
	if e.Host == "" {
		p.Address = e.Address
	}
	return p
}

// Key is the same for denials that are the same to a reviewer: of one agent, to one place, for one operation. Which rule denied is no part of it:
// once a person has refused a place for good, another rule refuses it.
func Key(agent string, e *audit.Event) string {
	p := PlaceOf(e)
	return key(agent, p.Protocol, p.Host, p.Address, strconv.Itoa(int(p.Port)), p.Method, p.Path, p.Repository, strings.Join(p.Refs, "\n"))
}

// OverflowKey is the key of the group that takes an agent's further denials in a protocol once it has too many groups: a program may try as many places as it likes,
// a person will not look at more.
func OverflowKey(agent string, e *audit.Event) string { return key(agent, e.Protocol) }

func key(parts ...string) string {
	h := sha256.New()
	for _, part := range parts {
		fmt.Fprintf(h, "%d:%s", len(part), part) // lengths keep parts apart whatever they hold
	}
	return strings.ToLower(base32.StdEncoding.EncodeToString(h.Sum(nil)[:20]))
}

// Destination writes a place for people. It may hold what a sandbox wrote.
func Destination(p api.Place) string {
	switch {
	case p.Repository != "":
		return p.Repository
	case p.Host == "" && p.Address == "":
		return "many destinations"
	}
	name := p.Host
	if name == "" {
		name = p.Address
	}
	if p.Port == 0 {
		return name
	}
	if a, err := netip.ParseAddr(name); err == nil && a.Is6() {
		name = "[" + name + "]"
	}
	return fmt.Sprintf("%s:%d", name, p.Port)
}

// Operation writes what was wanted of a place for people. It may hold what a sandbox wrote.
func Operation(p api.Place) string {
	switch {
	case p.Repository != "" && len(p.Refs) > 0:
		return "push " + strings.Join(p.Refs, ", ")
	case p.Repository != "":
		return "git"
	case p.Method != "":
		return strings.TrimSpace(p.Method + " " + p.Path)
	case p.Protocol == policy.DNS.String():
		return "look up the name"
	case p.Protocol == "":
		return "connect"
	}
	return "connect (" + p.Protocol + ")"
}

// Suggest returns the narrowest snippet that would allow what was denied under a policy; false if no rule can.
func Suggest(p *policy.Policy, e *audit.Event) (policy.Snippet, bool) {
	c, ok := policy.CrossingOf(e)
	if !ok {
		return policy.Snippet{}, false
	}
	var resolved netip.Addr
	if e.Rule == policy.RuleSpecialAddress && e.Host != "" {
		resolved, _ = netip.ParseAddr(e.Address) // what is no address suggests no network
	}
	return p.NarrowestFor(c, resolved)
}

// Covers says whether a policy allows what an event says was denied, or asked about.
func Covers(p *policy.Policy, e *audit.Event) bool {
	c, ok := policy.CrossingOf(e)
	if !ok || p.Decide(c).Verdict != policy.Allow {
		return false
	}
	resolved, err := netip.ParseAddr(e.Address)
	if e.Rule != policy.RuleSpecialAddress || c.Host == "" || err != nil {
		return true
	}
	return p.DecideAddress(c.Host, resolved).Verdict == policy.Allow
}

// Warnings says in which ways a snippet widens what a policy allows. A rule that denies widens nothing.
func Warnings(p *policy.Policy, s policy.Snippet) []api.Warning {
	w := warnings{seen: map[api.Warning]bool{}}
	for _, n := range s.Networks {
		w.add("private-network", "names that are allowed could resolve into %s, which is not the public internet", n)
	}
	for i := range s.Rules {
		if r := &s.Rules[i]; r.Verdict != policy.Deny {
			w.rule(p, r)
		}
	}
	return w.list
}

type warnings struct {
	list []api.Warning
	seen map[api.Warning]bool
}

func (w *warnings) add(kind, format string, args ...any) {
	one := api.Warning{Kind: kind, Text: fmt.Sprintf(format, args...)}
	if !w.seen[one] {
		w.seen[one] = true
		w.list = append(w.list, one)
	}
}

func (w *warnings) rule(p *policy.Policy, r *policy.Rule) {
	for _, c := range p.Credentials() {
		if lent(&c, r) {
			w.add("credential", "requests there carry the credential %s", c.Use)
		}
	}
	for _, h := range r.Hosts {
		if !known(p, func(other *policy.Rule) bool {
			return slices.ContainsFunc(other.Hosts, func(o netname.Pattern) bool { return o.Covers(h) })
		}) {
			w.destination(h)
		}
		if h.Wildcard() {
			w.add("wildcard", "%s is every name below it, and the labels that the program chooses are read by the domain's name server", h)
		}
	}
	for _, n := range r.Networks {
		if !known(p, func(other *policy.Rule) bool {
			return slices.ContainsFunc(other.Networks, func(o netip.Prefix) bool { return o.Bits() <= n.Bits() && o.Contains(n.Addr()) })
		}) {
			w.destination(n)
		}
		if _, special := netname.BlockOf(n); special {
			w.add("private-network", "%s is not the public internet", n)
		} else if !n.IsSingleIP() {
			w.add("wildcard", "%s is %s addresses", n, size(n))
		}
	}
	switch {
	case r.Wire == policy.WireTCP:
		w.add("opaque", "any bytes pass unread, in both directions")
	case len(r.Methods) == 0:
		w.add("write", "requests of every method are allowed there, such that send data and change things too")
	default:
		if writes := slices.DeleteFunc(slices.Clone(r.Methods), reads); len(writes) > 0 {
			w.add("write", "%s can send data and change things there", strings.Join(writes, ", "))
		}
	}
}

// destination warns of a place that gets what it is asked for, by whatever method: a path holds as much as a body.
func (w *warnings) destination(place fmt.Stringer) {
	w.add("destination", "%s is a new destination: what a program knows can be written into the addresses that it asks for", place)
}

// known reports whether a rule that allows is about a place.
func known(p *policy.Policy, about func(*policy.Rule) bool) bool {
	return slices.ContainsFunc(p.Rules(), func(r policy.Rule) bool { return r.Verdict == policy.Allow && about(&r) })
}

func reads(method string) bool { return method == "GET" || method == "HEAD" || method == "OPTIONS" }

// lent reports whether some request that the rule is about could carry a credential.
func lent(c *policy.Credential, r *policy.Rule) bool {
	ports := slices.ContainsFunc(r.Ports, func(port uint16) bool { return slices.Contains(c.Ports, port) })
	methods := len(r.Methods) == 0 || len(c.Methods) == 0 || slices.ContainsFunc(r.Methods, func(m string) bool { return slices.Contains(c.Methods, m) })
	return ports && methods && slices.ContainsFunc(r.Hosts, func(a netname.Pattern) bool {
		return slices.ContainsFunc(c.Hosts, func(b netname.Pattern) bool { return a.Covers(b) || b.Covers(a) })
	})
}

func size(n netip.Prefix) string {
	bits := n.Addr().BitLen() - n.Bits()
	if bits > 30 {
		return "2^" + strconv.Itoa(bits)
	}
	return strconv.Itoa(1 << bits)
}

// Refusal returns the rule that denies for good what was denied once, whatever else allows it: requests of that method for that path, and all below it if
// it ends in a slash; a host on the port that was tried; or an address. It closes no more, so that what the policy allows of a host goes on.
func Refusal(e *audit.Event) (policy.Rule, bool) {
	c, ok := policy.CrossingOf(e)
	if !ok {
		return policy.Rule{}, false
	}
	r := policy.Rule{Name: "refused", Verdict: policy.Deny}
	switch {
	case c.Host != "":
		r.Hosts = []netname.Pattern{netname.Exact(c.Host)}
		if c.Port != 0 {
			r.Ports = []uint16{c.Port}
		}
		if c.Method != "" && (c.Protocol == policy.HTTP || c.Protocol == policy.HTTPS) {
			r.Methods = []string{c.Method}
			if pattern, err := netname.ParsePathPattern(c.Path); err == nil {
				r.Paths = []netname.PathPattern{pattern}
			}
		}
	case c.Addr.IsValid():
		r.Networks = []netip.Prefix{netip.PrefixFrom(c.Addr, c.Addr.BitLen())} // a denied network is denied on every port
	default:
		return policy.Rule{}, false
	}
	return r, true
}

package policy

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/cofferdam/cofferdam/internal/audit"
	"github.com/cofferdam/cofferdam/internal/netname"
)

// maxSuggestions bounds the denials that Least lists: a hostile program can cause as many as it likes.
const maxSuggestions = 50

// Least writes the least policy that a run needed, as its audit events tell: what was allowed becomes rules, special networks that names resolved
// into are named, and what was denied stands below as comments, for a person to judge. Everything a sandbox could influence is parsed before it is
// written, so no event can write a line of its own. What Least returns is a policy that Parse accepts.
func Least(events []audit.Event) []byte {
	u := usage{allowed: map[destination]*use{}, denied: map[destination]*use{}, resolved: lying{}, refused: lying{}}
	for i := range events {
		u.note(&events[i])
	}
	var b strings.Builder
	b.WriteString("version: 1\n")
	fmt.Fprintf(&b, "# The least policy that %s needed, from its audit log. Read it before you use it: it allows what was used, not what was meant.\n", u.subject())
	b.WriteString("egress:\n  default: deny\n")
	u.writeNetworks(&b)
	u.writeRules(&b)
	u.writeDenied(&b)
	if u.git > 0 {
		fmt.Fprintf(&b, "# %s of Git went through its proxy: take the section git over from the policy of that run.\n", crossings(u.git))
	}
	return []byte(b.String())
}

// destination is what a rule would be about: a host, or an address without a name.
type destination struct {
	host netname.Host
	addr netip.Addr
}

// String prints the name or the address.
func (d destination) String() string {
	if d.host != "" {
		return d.host.String()
	}
	return d.addr.String()
}

func compareDestinations(a, b destination) int {
	return cmp.Or(cmp.Compare(a.host, b.host), a.addr.Compare(b.addr))
}

// use counts what was tried at one destination.
type use struct {
	ports     map[uint16]bool
	protocols map[Protocol]bool
	rules     map[string]bool // built-in rules that denied it
	count     uint64
}

func (u *use) note(port uint16, protocol Protocol, count uint64) {
	if port != 0 {
		u.ports[port] = true
	}
	if protocol == HTTPS {
		protocol = TLS // what a rule calls it
	}
	u.protocols[protocol] = true
	u.count += max(count, 1)
}

type usage struct {
	run             string
	allowed, denied map[destination]*use
	resolved        lying  // special networks that names resolved into
	refused         lying  // the same, where that was why a crossing was refused
	git             uint64 // operations at the Git proxy, which rules of egress are not about
	unnamed         uint64 // denials that no rule could be about
}

// lying holds which names lie in a network.
type lying map[netip.Prefix]map[netname.Host]bool

func (u *usage) subject() string {
	if u.run == "" {
		return "a run"
	}
	return "run " + u.run
}

// note takes in one event. The run's name is generated, never chosen by a sandbox.
func (u *usage) note(e *audit.Event) {
	if e.Run != "" && u.run == "" {
		u.run = e.Run.String()
	}
	if e.Kind == audit.CrossingFinished || e.Kind == audit.CrossingDecided {
		u.noteResolved(e)
	}
	if e.Kind != audit.CrossingDecided {
		return
	}
	protocol, err := ParseProtocol(e.Protocol)
	if err != nil {
		protocol = Unknown
	}
	if protocol == Git {
		u.git += max(e.Count, 1)
		return
	}
	d, ok := destinationOf(e)
	verdict, _ := ParseVerdict(e.Verdict) // what is no verdict denies
	_, nameable := RuleFor(Crossing{Protocol: protocol, Host: d.host, Addr: d.addr, Port: e.Port})
	switch {
	case verdict == Ask: // what the human answered is an event of its own
	case verdict == Allow && (!ok || !nameable || protocol == DNS): // a question for a name needs no rule; its connections do
	case !ok || !nameable || e.Rule == RuleGitThroughProxy:
		u.unnamed += max(e.Count, 1)
	case verdict == Allow:
		entry(u.allowed, d).note(e.Port, protocol, e.Count)
	default:
		entry(u.denied, d).note(e.Port, protocol, e.Count)
		if slices.Contains(builtinRules(), e.Rule) {
			entry(u.denied, d).rules[e.Rule] = true
		}
	}
}

func entry(m map[destination]*use, d destination) *use {
	if m[d] == nil {
		m[d] = &use{ports: map[uint16]bool{}, protocols: map[Protocol]bool{}, rules: map[string]bool{}}
	}
	return m[d]
}

func destinationOf(e *audit.Event) (destination, bool) {
	if e.Host != "" {
		h, err := netname.ParseHost(e.Host)
		return destination{host: h}, err == nil
	}
	a, ok := addressOf(e)
	return destination{addr: a}, ok
}

// addressOf reads the event's address, which may come with a port.
func addressOf(e *audit.Event) (netip.Addr, bool) {
	a, err := netip.ParseAddr(e.Address)
	if err != nil {
		ap, portErr := netip.ParseAddrPort(e.Address)
		a, err = ap.Addr(), portErr
	}
	return a.Unmap(), err == nil && a.Zone() == ""
}

// noteResolved remembers the special network in which a name's upstream lay.
func (u *usage) noteResolved(e *audit.Event) {
	h, err := netname.ParseHost(e.Host)
	a, ok := addressOf(e)
	if err != nil || !ok || synthetic(a) {
		return
	}
	in := u.resolved
	if e.Kind == audit.CrossingDecided && e.Verdict != Allow.String() {
		if e.Rule != RuleSpecialAddress {
			return
		}
		in = u.refused
	}
	if n, ok := SuggestNetwork(a); ok {
		if in[n] == nil {
			in[n] = map[netname.Host]bool{}
		}
		in[n][h] = true
	}
}

func synthetic(a netip.Addr) bool {
	return slices.ContainsFunc(syntheticNetworks(), func(n netip.Prefix) bool { return n.Contains(a.Unmap()) })
}

func (u *usage) writeNetworks(b *strings.Builder) {
	for n := range u.resolved {
		delete(u.refused, n)
	}
	if len(u.resolved)+len(u.refused) == 0 {
		return
	}
	b.WriteString("  # Names resolved to addresses outside the ordinary internet. Narrow these networks if the addresses do not change.\n  networks:\n")
	u.resolved.write(b, "    ")
	if len(u.refused) > 0 {
		b.WriteString("    # Refused in that run, for the address only:\n")
		u.refused.write(b, "    #")
	}
}

// write lists the networks, each with some of the names, behind a margin.
func (l lying) write(b *strings.Builder, margin string) {
	all := slices.SortedFunc(maps.Keys(l), netip.Prefix.Compare)
	for _, n := range all[:min(len(all), maxNetworks)] {
		block, _ := netname.BlockOf(n)
		hosts := slices.Sorted(maps.Keys(l[n]))
		more := ""
		if len(hosts) > 3 {
			more, hosts = fmt.Sprintf(" and %d more", len(hosts)-3), hosts[:3]
		}
		var names []string
		for _, h := range hosts {
			names = append(names, h.String())
		}
		fmt.Fprintf(b, "%s- %q # %s: %s%s\n", margin, n, block.Name, strings.Join(names, ", "), more)
	}
}

func (u *usage) writeRules(b *strings.Builder) {
	if len(u.allowed) == 0 {
		b.WriteString("  rules: # nothing was allowed\n")
		return
	}
	b.WriteString("  rules:\n")
	rules, counts := u.rules()
	for i, r := range rules[:min(len(rules), maxRules)] {
		fmt.Fprintf(b, "    # %s\n%s", crossings(counts[i]), ruleText(&r, 4))
	}
	if rest := len(rules) - maxRules; rest > 0 {
		fmt.Fprintf(b, "    # %d more rules do not fit into one policy: use wildcards\n", rest)
	}
}

// rules returns a named rule, or for very many ports several, for each allowed destination, and how many crossings each stands for.
func (u *usage) rules() (rules []Rule, counts []uint64) {
	names := &Policy{layers: []layer{{}}}
	for _, d := range slices.SortedFunc(maps.Keys(u.allowed), compareDestinations) {
		whole := u.allowed[d].rule(d)
		for ports := range slices.Chunk(whole.Ports, maxPorts) {
			r := whole
			r.Ports = ports
			r.Name = names.freeRuleName(&r)
			names.layers[0].rules = append(names.layers[0].rules, r) // names is ours alone
			rules, counts = append(rules, r), append(counts, u.allowed[d].count)
		}
	}
	return rules, counts
}

// rule is the narrowest rule that holds all that was used.
func (u *use) rule(d destination) Rule {
	r := Rule{Verdict: Allow, Ports: slices.Sorted(maps.Keys(u.ports))}
	if d.host != "" {
		r.Hosts = []netname.Pattern{netname.Exact(d.host)}
	} else {
		r.Networks = []netip.Prefix{netip.PrefixFrom(d.addr, d.addr.BitLen())}
	}
	switch {
	case u.protocols[TCP] || u.protocols[Unknown]:
		r.Wire = WireTCP
	case u.protocols[TLS] && !u.protocols[HTTP]:
		r.Wire = WireTLS
	case u.protocols[HTTP] && !u.protocols[TLS]:
		r.Wire = WireHTTP
	}
	return r
}

func (u *usage) writeDenied(b *strings.Builder) {
	if len(u.denied) == 0 && u.unnamed == 0 {
		return
	}
	b.WriteString("    # Refused in that run. To allow one, take the comment sign off its lines.\n")
	all := slices.SortedFunc(maps.Keys(u.denied), func(a, b destination) int {
		return cmp.Or(cmp.Compare(u.denied[b].count, u.denied[a].count), compareDestinations(a, b))
	})
	rules, _ := u.rules() // suggestions get names of their own
	taken := &Policy{layers: []layer{{rules: rules}}}
	for _, d := range all[:min(len(all), maxSuggestions)] {
		use := u.denied[d]
		why := strings.Join(slices.Sorted(maps.Keys(use.rules)), ", ")
		if why == "" {
			why = "denied by a rule"
		}
		r := use.suggestion(d)
		r.Name = taken.freeRuleName(&r)
		taken = taken.With(r)
		fmt.Fprintf(b, "    # %s, %s:\n", crossings(use.count), why)
		for line := range strings.Lines(ruleText(&r, 0)) {
			b.WriteString("    #" + line)
		}
	}
	if rest := len(all) - maxSuggestions; rest > 0 {
		fmt.Fprintf(b, "    # %d more destinations: see cofferdam audit\n", rest)
	}
	if u.unnamed > 0 {
		fmt.Fprintf(b, "    # %s that no rule can allow: see cofferdam audit\n", crossings(u.unnamed))
	}
}

// suggestion is a rule for what was refused. A name that was asked for and never connected to gets the usual ports.
func (u *use) suggestion(d destination) Rule {
	r := u.rule(d)
	r.Ports = r.Ports[:min(len(r.Ports), maxPorts)]
	if len(r.Ports) == 0 {
		r.Ports = defaultPorts()
		r.Wire = WireAuto
	}
	return r
}

func crossings(n uint64) string {
	if n == 1 {
		return "1 crossing"
	}
	return fmt.Sprintf("%d crossings", n)
}

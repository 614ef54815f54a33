package policy

import (
	"net/netip"
	"slices"
	"strings"
	"unicode"

	"go.yaml.in/yaml/v4"

	"github.com/cofferdam/cofferdam/internal/netname"
)

const maxName = 63

// rule reads one entry of egress.rules.
func (r *reader) rule(n *yaml.Node, path string) {
	rules := &r.policy.layers[0].rules
	rule := Rule{Verdict: Allow, Line: n.Line}
	before := len(r.problems)
	stated := map[string]*yaml.Node{}
	note := func(key string, read func(*yaml.Node, string)) field {
		return field{key, func(n *yaml.Node, path string) { stated[key] = n; read(n, path) }}
	}
	if null(n) {
		r.add(n, path, "write hosts: [...], or remove the entry", "the rule is empty")
		return
	}
	r.mapping(n, path, []field{
		note("name", func(n *yaml.Node, path string) { rule.Name = r.ruleName(n, path, *rules) }),
		note("hosts", func(n *yaml.Node, path string) {
			r.full(n, path, maxHosts, func(n *yaml.Node, path string) { r.host(n, path, &rule) })
		}),
		note("networks", func(n *yaml.Node, path string) {
			r.full(n, path, maxNetworks, func(n *yaml.Node, path string) {
				if network, ok := choice(r, n, path, ParseNetwork); ok {
					rule.Networks = append(rule.Networks, network)
				}
			})
		}),
		note("ports", func(n *yaml.Node, path string) {
			r.full(n, path, maxPorts, func(n *yaml.Node, path string) { r.port(n, path, &rule) })
		}),
		note("protocol", func(n *yaml.Node, path string) { rule.Wire, _ = choice(r, n, path, ParseWire) }),
		note("methods", func(n *yaml.Node, path string) { r.methods(n, path, &rule.Methods) }),
		note("paths", func(n *yaml.Node, path string) { r.paths(n, path, &rule.Paths) }),
		note("tls", func(n *yaml.Node, path string) { rule.TLS, _ = choice(r, n, path, ParseDepth) }),
		note("verdict", func(n *yaml.Node, path string) {
			if v, ok := choice(r, n, path, ParseVerdict); ok {
				rule.Verdict = v
			}
		}),
	})
	if len(r.problems) == before {
		r.complete(n, path, &rule, stated)
	}
	r.policy.marks[path] = mark{n.Line, n.Column}
	if r.onlyWarnings(before) {
		*rules = append(*rules, rule)
	}
}

func (r *reader) onlyWarnings(from int) bool {
	return !slices.ContainsFunc(r.problems[from:], func(p Problem) bool { return !p.Warning })
}

// complete judges the keys of a rule together, and fills in what was left to default.
func (r *reader) complete(n *yaml.Node, path string, rule *Rule, stated map[string]*yaml.Node) {
	if rule.Name == "" {
		rule.Name = r.freeName()
	}
	switch {
	case n.Kind != yaml.MappingNode:
		return
	case stated["hosts"] == nil && stated["networks"] == nil:
		r.add(n, path, "add hosts: [...], or networks: [...] for raw addresses", "the rule names neither hosts nor networks")
		return
	case stated["hosts"] != nil && stated["networks"] != nil:
		r.add(stated["networks"], path+".networks", "make two rules of it; where allowed names may resolve into a special network, list that under egress.networks",
			"the rule names both hosts and networks")
		return
	}
	if rule.Verdict != Deny && stated["ports"] == nil {
		if rule.Wire == WireTCP || stated["networks"] != nil {
			r.add(n, path, "add ports: [...]", "raw addresses and protocol tcp need explicit ports")
			return
		}
		rule.Ports = defaultPorts()
	}
	for _, key := range []string{"methods", "paths", "tls"} {
		if err := rule.checkRequests(); err != nil && stated[key] != nil {
			r.addError(stated[key], path+"."+key, err)
			return
		}
	}
	if stated["networks"] != nil {
		r.rawNetworks(stated, path, rule)
	}
}

// rawNetworks judges the networks of a rule about raw addresses.
func (r *reader) rawNetworks(stated map[string]*yaml.Node, path string, rule *Rule) {
	if rule.Verdict == Deny {
		for _, key := range []string{"ports", "protocol"} {
			if stated[key] != nil {
				r.add(stated[key], path+"."+key, "leave "+key+" out", "a denied network is denied on every port, also where a name resolves into it")
			}
		}
		return
	}
	for i, network := range rule.Networks {
		n := stated["networks"].Content[i]
		at := path + ".networks"
		if err := checkRawNetwork(network, rule.Verdict); err != nil {
			r.addError(n, at, err)
			continue
		}
		if why := openedHost(network); why != "" {
			r.warn(n, at, "leave it out if it can be done without", "%s: %s", network, why)
		} else if err := checkSpecialNetwork(network); err != nil && holdsSpecial(network) {
			r.warn(n, at, "name the special-purpose networks themselves if they are meant", "special-purpose addresses inside %s stay closed", network)
		}
	}
}

// holdsSpecial reports whether a network holds special-purpose addresses among others.
func holdsSpecial(n netip.Prefix) bool {
	return slices.ContainsFunc(netname.Blocks(), func(b netname.Block) bool { return n.Contains(b.Prefix.Addr()) && n.Bits() < b.Prefix.Bits() })
}

// openedHost says what naming a special network means beyond the network, or "".
func openedHost(n netip.Prefix) string {
	b, ok := netname.BlockOf(n)
	switch {
	case !ok:
		return ""
	case b.Metadata:
		return b.Name + ": it hands out the credentials of this machine"
	case b.Name == "loopback":
		return "services of this host that listen on loopback often trust whoever reaches them"
	case b.Name == "link-local":
		return "services of this machine's cloud often lie there"
	}
	return ""
}

func (r *reader) ruleName(n *yaml.Node, path string, rules []Rule) string {
	s, ok := r.text(n, path)
	if !ok {
		return ""
	}
	fit := s != "" && len(s) <= maxName && !strings.ContainsFunc(s, func(c rune) bool {
		return !(c < unicode.MaxASCII && (unicode.IsLetter(c) || unicode.IsDigit(c)) || strings.ContainsRune("._- ", c))
	}) && s[0] != '-' && strings.TrimSpace(s) == s
	switch {
	case !fit:
		r.add(n, path, "write 1 to 63 letters, digits, dots, hyphens, underscores and spaces, beginning with none of the last four", "%.80q cannot be a rule's name", s)
	case slices.Contains(builtinRules(), s):
		r.add(n, path, "choose another name", "%q is the name of a built-in rule", s)
	case slices.ContainsFunc(rules, func(other Rule) bool { return other.Name == s }):
		r.add(n, path, "give each rule its own name", "another rule is called %q", s)
	default:
		return s
	}
	return ""
}

// freeName names a rule after its place, past names that the file has used.
func (r *reader) freeName() string {
	rules := r.policy.layers[0].rules
	for i := len(rules); ; i++ {
		if name := ruleName(i); !slices.ContainsFunc(rules, func(other Rule) bool { return other.Name == name }) {
			return name
		}
	}
}

func (r *reader) host(n *yaml.Node, path string, rule *Rule) {
	s, ok := r.text(n, path)
	if !ok {
		return
	}
	if _, err := netip.ParseAddr(strings.Trim(s, "[]")); err == nil || strings.Contains(s, "/") && isPrefix(s) {
		r.add(n, path, "name it under networks in a rule of its own", "%.80q is an address, not a host", s)
		return
	}
	p, err := netname.ParsePattern(s)
	if err != nil {
		r.addError(n, path, err)
		return
	}
	rule.Hosts = append(rule.Hosts, p)
}

func isPrefix(s string) bool {
	_, err := netip.ParsePrefix(s)
	return err == nil
}

func (r *reader) port(n *yaml.Node, path string, rule *Rule) {
	s, ok := r.number(n, path)
	if !ok {
		return
	}
	port, err := netname.ParsePort(s)
	if err != nil {
		r.addError(n, path, err)
		return
	}
	if slices.Contains(rule.Ports, port) {
		r.add(n, path, "remove one of the two", "port %d is listed twice", port)
		return
	}
	rule.Ports = append(rule.Ports, port)
}

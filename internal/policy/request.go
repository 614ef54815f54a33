package policy

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/netname"
)

const (
	maxMethods = 32
	maxPaths   = 256
)

// checkMethod accepts methods as they stand in requests. CONNECT and TRACE never pass, so to name them would promise something.
func checkMethod(s string) (string, error) {
	fit := s != "" && len(s) <= 32 && s[0] != '-' && !strings.ContainsFunc(s, func(c rune) bool { return !('A' <= c && c <= 'Z' || c == '-') })
	switch {
	case !fit && checkUpper(s):
		return "", fault.New(fault.Invalid, "method %.40q is not in upper case", s).WithHint("write %s", strings.ToUpper(s))
	case !fit:
		return "", fault.New(fault.Invalid, "%.40q is no method", s).WithHint("write one such as GET or POST")
	case s == "CONNECT" || s == "TRACE":
		return "", fault.New(fault.Invalid, "%s never passes the gateway", s).WithHint("remove it")
	}
	return s, nil
}

func checkUpper(s string) bool {
	return s != "" && len(s) <= 32 && !strings.ContainsFunc(s, func(c rune) bool { return !('A' <= c && c <= 'Z' || 'a' <= c && c <= 'z') })
}

// checkRequests says what keeps methods, paths and depth of a rule from having a meaning.
func (r *Rule) checkRequests() error {
	looks := r.conditional() || r.TLS != DepthAuto
	switch {
	case r.TLS > DepthInspect:
		return errors.New("no such tls")
	case looks && len(r.Networks) > 0:
		return fault.New(fault.Invalid, "methods, paths and tls need a name, and the rule is about raw addresses").WithHint("name the host under hosts")
	case looks && r.Wire == WireTCP:
		return fault.New(fault.Invalid, "protocol tcp passes bytes unread, which leaves no methods, paths or tls to judge").WithHint("leave protocol out")
	case r.conditional() && r.TLS == DepthTunnel:
		return fault.New(fault.Invalid, "with tls: tunnel nobody reads methods and paths").WithHint("leave tls out, or methods and paths")
	case r.TLS != DepthAuto && r.Wire == WireHTTP:
		return fault.New(fault.Invalid, "tls says nothing about protocol http").WithHint("leave one of the two out")
	case r.TLS == DepthTunnel && r.Verdict == Deny:
		return fault.New(fault.Invalid, "what is denied is not passed through").WithHint("leave tls out")
	}
	for _, m := range r.Methods {
		if _, err := checkMethod(m); err != nil {
			return err
		}
	}
	return nil
}

// inspects reports whether the rule means anything only if TLS to its hosts is ended at the gateway.
func (r *Rule) inspects() bool {
	return r.TLS == DepthInspect || r.conditional() && (r.Wire == WireAuto || r.Wire == WireTLS)
}

// unread reports whether the rule passes bytes to its hosts through unread.
func (r *Rule) unread() bool {
	return r.Verdict != Deny && (r.TLS == DepthTunnel || r.Wire == WireTCP && len(r.Hosts) > 0)
}

// Inspects reports whether TLS to a host and port is to be ended at the gateway, because a credential, a method or a path, or a rule with
// tls: inspect is about it, or because Git belongs through its proxy there. It wins over rules that pass bytes through unread.
func (p *Policy) Inspects(h netname.Host, port uint16) bool {
	if p == nil || h == "" {
		return false
	}
	if len(p.Bound(h, port)) > 0 || p.reachesGit(h) {
		return true
	}
	return p.anyRule(func(r *Rule) bool { return r.inspects() && r.namesHost(h) && r.namesPort(port) })
}

// InspectsAny reports whether TLS to any host is to be ended at the gateway, so that a sandbox has to trust the gateway's certificates.
func (p *Policy) InspectsAny() bool {
	return p != nil && (len(p.Credentials()) > 0 || p.anyRule(func(r *Rule) bool { return r.inspects() }) ||
		slices.ContainsFunc(p.GitUpstreams(), func(u GitUpstream) bool { return p.reachesGit(u.Host) }))
}

// JudgesPaths reports whether some decision about requests to a host and port depends on their paths, which then must be canonical.
func (p *Policy) JudgesPaths(h netname.Host, port uint16) bool {
	if p == nil || h == "" {
		return false
	}
	if len(p.git.at(h)) > 0 || slices.ContainsFunc(p.Bound(h, port), func(c Credential) bool { return len(c.Paths) > 0 }) {
		return true
	}
	return p.anyRule(func(r *Rule) bool { return len(r.Paths) > 0 && r.namesHost(h) && r.namesPort(port) })
}

// JudgesMethods is JudgesPaths for methods.
func (p *Policy) JudgesMethods(h netname.Host, port uint16) bool {
	if p == nil || h == "" {
		return false
	}
	if slices.ContainsFunc(p.Bound(h, port), func(c Credential) bool { return len(c.Methods) > 0 }) {
		return true
	}
	return p.anyRule(func(r *Rule) bool { return len(r.Methods) > 0 && r.namesHost(h) && r.namesPort(port) })
}

func (p *Policy) anyRule(holds func(*Rule) bool) bool {
	for i := range p.layers {
		for j := range p.layers[i].rules {
			if holds(&p.layers[i].rules[j]) {
				return true
			}
		}
	}
	return false
}

// methods reads a list of methods.
func (r *reader) methods(n *yaml.Node, path string, into *[]string) {
	r.full(n, path, maxMethods, func(n *yaml.Node, path string) {
		m, ok := choice(r, n, path, checkMethod)
		switch {
		case !ok:
		case slices.Contains(*into, m):
			r.add(n, path, "remove one of the two", "method %s is listed twice", m)
		default:
			*into = append(*into, m)
		}
	})
}

// paths reads a list of paths.
func (r *reader) paths(n *yaml.Node, path string, into *[]netname.PathPattern) {
	r.full(n, path, maxPaths, func(n *yaml.Node, path string) {
		p, ok := choice(r, n, path, netname.ParsePathPattern)
		switch {
		case !ok:
		case slices.Contains(*into, p):
			r.add(n, path, "remove one of the two", "path %s is listed twice", p)
		default:
			*into = append(*into, p)
		}
	})
}

// contradictions reports rules that pass bytes to a host through unread where something else of the file needs them read.
func (r *reader) contradictions() {
	l := &r.policy.layers[0]
	readers := l.readers()
	for i := range l.rules {
		if r.enough() {
			return
		}
		why, remedy := readers.contradict(&l.rules[i]), "give the two different hosts or ports, or leave one out"
		if why == "" {
			why, remedy = r.policy.git.blinds(&l.rules[i]), "leave the host out: Git goes through the section git"
		}
		if why != "" {
			path := fmt.Sprintf("egress.rules[%d]", i)
			at, key := r.policy.marks[path], "tls"
			for _, k := range []string{"tls", "protocol"} {
				if m, ok := r.policy.marks[path+"."+k]; ok {
					at, key = m, k
					break
				}
			}
			r.add(&yaml.Node{Line: at.line, Column: at.column}, path+"."+key, remedy,
				"rule %q passes bytes through unread, but %s", l.rules[i].Name, why)
		}
	}
}

// contradict says what in the layer needs bytes read that a rule passes through unread, or "".
func (n *readers) contradict(r *Rule) string {
	if !r.unread() {
		return ""
	}
	credentials, rules := n.of.credentials, n.of.rules
	for _, i := range n.hosts.overlapping(r.Hosts, len(credentials)+len(rules)) {
		if i < len(credentials) {
			if c := &credentials[i]; slices.ContainsFunc(c.Ports, r.namesPort) {
				return fmt.Sprintf("credential %q is lent to the same host and port, which needs TLS inspected", c.Use)
			}
		} else if o := &rules[i-len(credentials)]; slices.ContainsFunc(r.Ports, o.namesPort) {
			return fmt.Sprintf("rule %q judges requests to the same host and port", o.Name)
		}
	}
	return ""
}

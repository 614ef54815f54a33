package policy

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"

	"github.com/cofferdam/cofferdam/internal/audit"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/netname"
)

// Snippet is what a reviewer adds to a policy: rules, and special-purpose networks into which allowed names may resolve.
type Snippet struct {
	Rules    []Rule
	Networks []netip.Prefix
}

// maxSnippet bounds the text of a snippet.
const maxSnippet = 16 << 10

// ParseSnippet reads a snippet as String writes it: a list as under egress.rules, or a mapping with rules and networks as under egress. It is as strict
// as Parse, and places are told as lines of the text.
func ParseSnippet(text string) (Snippet, error) {
	if len(text) > maxSnippet {
		return Snippet{}, fault.New(fault.Invalid, "the rule has %d bytes, more than %d", len(text), maxSnippet)
	}
	if strings.ContainsAny(text, "\r\u0085\u2028\u2029") { // line breaks to YAML, which would begin lines that are not indented
		return Snippet{}, fault.New(fault.Invalid, "the rule has line breaks of another kind than \\n").WithHint("write it with plain line breaks")
	}
	var node yaml.Node
	if err := yaml.Load([]byte(text), &node); err != nil || len(node.Content) != 1 {
		return Snippet{}, fault.New(fault.Invalid, "this is no rule: it cannot be read as YAML").WithHint("write it as under egress.rules: - hosts: [HOST]").Because(err)
	}
	head := "version: 1\negress:\n"
	if node.Content[0].Kind == yaml.SequenceNode {
		head += "  rules:\n"
	}
	indented := "    " + strings.ReplaceAll(strings.TrimRight(text, "\n"), "\n", "\n    ") + "\n"
	p, err := Parse("", []byte(head+indented))
	if problems, ok := errors.AsType[*Problems](err); ok {
		return Snippet{}, moved(problems, strings.Count(head, "\n"))
	}
	if err != nil {
		return Snippet{}, err
	}
	s := Snippet{Rules: p.Rules(), Networks: slices.Clone(p.layers[0].networks)}
	if len(p.layers[0].credentials)+len(p.mounts)+len(p.environment) > 0 || p.git != nil {
		return Snippet{}, fault.New(fault.Invalid, "a rule cannot change other sections").WithHint("change the policy itself")
	}
	if p.Default() != Deny {
		return Snippet{}, fault.New(fault.Invalid, "a rule cannot change egress.default").WithHint("change the policy itself")
	}
	if len(s.Rules)+len(s.Networks) == 0 {
		return Snippet{}, fault.New(fault.Invalid, "there is no rule in it").WithHint("write it as under egress.rules: - hosts: [HOST]")
	}
	return s, nil
}

// moved tells places in a text that was put behind some lines, and indented.
func moved(problems *Problems, lines int) *Problems {
	out := &Problems{File: problems.File}
	for _, p := range problems.List {
		p.Line, p.Column = max(p.Line-lines, 1), max(p.Column-4, 1)
		out.List = append(out.List, p)
	}
	return out
}

// String writes the snippet in YAML.
func (s Snippet) String() string {
	var b strings.Builder
	indent := 0
	if len(s.Networks) > 0 {
		fmt.Fprintf(&b, "networks: [%s]\n", networkList(s.Networks))
		if len(s.Rules) == 0 {
			return b.String()
		}
		b.WriteString("rules:\n")
		indent = 2
	}
	for i := range s.Rules {
		b.WriteString(ruleText(&s.Rules[i], indent))
	}
	return b.String()
}

// AppendSnippet returns a policy file with a snippet more, all its comments kept. Rules keep their names where those are free. What it returns was read back.
func AppendSnippet(file []byte, s Snippet) ([]byte, error) {
	file, err := appendRules(file, s.Rules, (*Policy).ownRuleName)
	if err != nil {
		return nil, err
	}
	for _, n := range s.Networks {
		if file, err = appendNetwork(file, n); err != nil {
			return nil, err
		}
	}
	return file, nil
}

// appendNetwork adds a network to egress.networks, unless it stands there.
func appendNetwork(file []byte, n netip.Prefix) ([]byte, error) {
	if len(bytes.TrimSpace(file)) == 0 {
		file = []byte("version: 1\n")
	}
	before, err := Parse("", file)
	if err != nil {
		return nil, fmt.Errorf("add a network: %w", err)
	}
	if slices.Contains(before.layers[0].networks, n) {
		return file, nil
	}
	var document yaml.Node
	if err := yaml.Load(file, &document); err != nil {
		return nil, fmt.Errorf("add a network: %w", err)
	}
	root := document.Content[0]
	networks := section(section(root, "egress", yaml.MappingNode), "networks", yaml.SequenceNode)
	root.Style &^= yaml.FlowStyle
	networks.Content = append(networks.Content, &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Style: yaml.DoubleQuotedStyle, Value: n.String()})
	out, err := yaml.Dump(&document, yaml.WithIndent(2), yaml.WithLineWidth(-1))
	if err != nil {
		return nil, fmt.Errorf("add a network: %w", err)
	}
	after, err := Parse("", out)
	if err != nil {
		return nil, fmt.Errorf("add a network: %w", err)
	}
	same := slices.Equal(append(slices.Clone(before.layers[0].networks), n), after.layers[0].networks)
	if !same || !slices.EqualFunc(before.Rules(), after.Rules(), func(a, b Rule) bool { return sameRule(&a, &b) }) {
		return nil, fault.New(fault.Unsupported, "the network cannot be added to this file without changing what it says").WithHint("add %q by hand under egress.networks", n)
	}
	return out, nil
}

// CrossingOf reads the crossing that an audit event is about; false if it is about none that policy could judge again. What a sandbox could influence
// is parsed before it is used.
func CrossingOf(e *audit.Event) (Crossing, bool) {
	if e.Kind != audit.CrossingDecided {
		return Crossing{}, false
	}
	protocol, err := ParseProtocol(e.Protocol)
	if err != nil || protocol == Git {
		return Crossing{}, false // operations of Git are judged by profiles, with facts that the log does not hold
	}
	d, ok := destinationOf(e)
	if !ok {
		return Crossing{}, false
	}
	c := Crossing{Protocol: protocol, Host: d.host, Addr: d.addr, Port: e.Port, Method: e.Method}
	if e.Path != "" {
		path, err := netname.NormalisePath(e.Path)
		if err != nil {
			return Crossing{}, false // it was cut, or is ambiguous
		}
		c.Path = string(path)
	}
	return c, true
}

// NarrowestFor returns the narrowest snippet that would allow the crossing of a denial under p; false if none can. A request gets a rule for its method
// and path if it was to a host, since a rule for an address has neither; a name that was refused after resolution gets the network of the address that it had.
func (p *Policy) NarrowestFor(c Crossing, resolved netip.Addr) (Snippet, bool) {
	var s Snippet
	if c.Host != "" && resolved.IsValid() {
		if n, ok := SuggestNetwork(resolved); ok {
			s.Networks = []netip.Prefix{n}
		}
	}
	if p.Decide(c).Verdict == Allow {
		return s, len(s.Networks) > 0
	}
	r, ok := RuleFor(c)
	if !ok {
		return Snippet{}, false
	}
	if c.Host != "" && c.Method != "" && (c.Protocol == HTTP || c.Protocol == HTTPS) {
		r.Methods = []string{c.Method}
		if pattern, err := netname.ParsePathPattern(c.Path); err == nil {
			r.Paths = []netname.PathPattern{pattern}
		}
	}
	if p != nil {
		r.Name = p.freeNameOf(&r)
		if p.With(r).Decide(c).Verdict != Allow {
			return Snippet{}, false // a rule denies it: the policy itself has to change
		}
	}
	s.Rules = []Rule{r}
	return s, true
}

func (p *Policy) freeNameOf(r *Rule) string {
	if len(p.layers) == 0 {
		return (&Policy{layers: []layer{{}}}).freeRuleName(r)
	}
	return p.freeRuleName(r)
}

package policy

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/netname"
)

// AppendRule returns a policy file with one more rule, all its comments and formatting kept. An empty file becomes a policy. What it returns is
// read back before it is returned: it says what the file said, and the rule, and nothing else.
func AppendRule(file []byte, r Rule) ([]byte, error) { return AppendRules(file, r) }

// AppendRules is AppendRule for several rules, in their order: all of them or none. The file is read as often as for one.
func AppendRules(file []byte, rules ...Rule) ([]byte, error) {
	return appendRules(file, rules, (*Policy).freeRuleName)
}

// appendRules is AppendRules with names of the caller's.
func appendRules(file []byte, rules []Rule, name func(*Policy, *Rule) string) ([]byte, error) {
	if len(bytes.TrimSpace(file)) == 0 {
		file = []byte("version: 1\n")
	}
	before, err := Parse("", file)
	if err != nil {
		return nil, fmt.Errorf("add a rule: %w", err)
	}
	rules, err = before.named(rules, name)
	if err != nil || len(rules) == 0 {
		return file, err
	}
	for _, edit := range []func([]byte, []Rule) ([]byte, error){appendText, appendNode} {
		out, err := edit(file, rules)
		if err != nil {
			continue
		}
		if after, err := Parse("", out); err == nil && addsOnly(before, after, rules) {
			return out, nil
		}
	}
	what := "the rule"
	if len(rules) > 1 {
		what = "the rules"
	}
	return nil, fault.New(fault.Unsupported, "%s cannot be added to this file without changing what it says", what).
		WithHint("add by hand under egress.rules:\n%s", rulesText(rules, 4))
}

// named checks rules that are to be added to a policy of one layer, and returns them with names that are free there.
func (p *Policy) named(rules []Rule, name func(*Policy, *Rule) string) ([]Rule, error) {
	with := &Policy{layers: []layer{{rules: slices.Clone(p.layers[0].rules)}}}
	var out []Rule
	for _, r := range rules {
		if err := r.check(); err != nil {
			return nil, invalid(err)
		}
		if why := p.git.blinds(&r); why != "" {
			return nil, fault.New(fault.Invalid, "the rule passes bytes through unread, but %s", why).WithHint("leave it out: Git goes through %s", GitProxy)
		}
		r.Name = name(with, &r)
		with.layers[0].rules = append(with.layers[0].rules, r)
		out = append(out, r)
	}
	return out, nil
}

// freeRuleName derives a name that a file can hold, and that no rule of the one layer has, from what the rule is about.
func (p *Policy) freeRuleName(r *Rule) string {
	about := r.Name
	if len(r.Hosts) > 0 {
		about = r.Hosts[0].Base().String()
	} else if len(r.Networks) > 0 {
		about = strings.NewReplacer(":", "-", "/", "-").Replace(r.Networks[0].String())
	}
	about = strings.Trim(about, "-_. ")
	if len(about) > maxName-8 {
		about = strings.Trim(about[:maxName-8], "-_. ")
	}
	name := about
	for i := 2; name == "" || p.taken(name); i++ {
		name = fmt.Sprintf("%s-%d", about, i)
	}
	return name
}

// ownRuleName is the name that a rule has, where no other has it.
func (p *Policy) ownRuleName(r *Rule) string {
	if r.Name == "" || p.taken(r.Name) {
		return p.freeRuleName(r)
	}
	return r.Name
}

func (p *Policy) taken(name string) bool {
	return slices.Contains(builtinRules(), name) || slices.ContainsFunc(p.layers[0].rules, func(other Rule) bool { return other.Name == name })
}

// addsOnly reports whether after is before with exactly some rules more.
func addsOnly(before, after *Policy, more []Rule) bool {
	old, grown := before.layers[0], after.layers[0]
	if len(grown.rules) != len(old.rules)+len(more) || old.fallback != grown.fallback || !slices.Equal(old.networks, grown.networks) {
		return false
	}
	for i := range old.rules {
		if !sameRule(&old.rules[i], &grown.rules[i]) {
			return false
		}
	}
	for i := range more {
		if !sameRule(&grown.rules[len(old.rules)+i], &more[i]) {
			return false
		}
	}
	return before.isolation == after.isolation && before.resources == after.resources && before.workspace.Mode == after.workspace.Mode &&
		slices.Equal(before.workspace.Unprotected, after.workspace.Unprotected) && slices.Equal(before.mounts, after.mounts) && sameEnvironment(before, after) &&
		before.git.text() == after.git.text() &&
		slices.EqualFunc(old.credentials, grown.credentials, func(a, b Credential) bool { return a.same(&b) })
}

func sameEnvironment(a, b *Policy) bool {
	for name, value := range a.environment {
		if other, ok := b.environment[name]; !ok || other != value {
			return false
		}
	}
	return len(a.environment) == len(b.environment)
}

func sameRule(a, b *Rule) bool {
	return a.Name == b.Name && a.Wire == b.Wire && a.Verdict == b.Verdict && slices.Equal(a.Hosts, b.Hosts) &&
		slices.Equal(a.Networks, b.Networks) && slices.Equal(a.Ports, b.Ports) && slices.Equal(a.Methods, b.Methods) && slices.Equal(a.Paths, b.Paths) && a.TLS == b.TLS
}

func (c *Credential) same(o *Credential) bool {
	return c.Use == o.Use && slices.Equal(c.Hosts, o.Hosts) && slices.Equal(c.Ports, o.Ports) && slices.Equal(c.Methods, o.Methods) &&
		slices.Equal(c.Paths, o.Paths) && c.Header == o.Header && c.Env == o.Env
}

// ruleText writes a rule as an entry of egress.rules, its dash at the given column (from 0).
func ruleText(r *Rule, indent int) string {
	pad := strings.Repeat(" ", indent)
	var b strings.Builder
	fmt.Fprintf(&b, "%s- name: %s\n", pad, quoteName(r.Name))
	if len(r.Hosts) > 0 {
		fmt.Fprintf(&b, "%s  hosts: [%s]\n", pad, hostList(r))
	}
	if len(r.Networks) > 0 {
		fmt.Fprintf(&b, "%s  networks: [%s]\n", pad, networkList(r.Networks))
	}
	if len(r.Ports) > 0 {
		fmt.Fprintf(&b, "%s  ports: [%s]\n", pad, joinPorts(r.Ports))
	}
	if len(r.Methods) > 0 {
		fmt.Fprintf(&b, "%s  methods: [%s]\n", pad, strings.Join(r.Methods, ", "))
	}
	if len(r.Paths) > 0 {
		fmt.Fprintf(&b, "%s  paths: [%s]\n", pad, pathList(r.Paths))
	}
	if r.Wire != WireAuto {
		fmt.Fprintf(&b, "%s  protocol: %s\n", pad, r.Wire)
	}
	if r.TLS != DepthAuto {
		fmt.Fprintf(&b, "%s  tls: %s\n", pad, r.TLS)
	}
	if r.Verdict != Allow {
		fmt.Fprintf(&b, "%s  verdict: %s\n", pad, r.Verdict)
	}
	return b.String()
}

// rulesText is ruleText for several rules.
func rulesText(rules []Rule, indent int) string {
	var b strings.Builder
	for i := range rules {
		b.WriteString(ruleText(&rules[i], indent))
	}
	return b.String()
}

// quoteName quotes a name that YAML would read as something else than text, such as 10 or 1.5 or null.
func quoteName(name string) string {
	var n yaml.Node
	if err := yaml.Load([]byte("- "+name+"\n"), &n); err == nil && len(n.Content) == 1 && len(n.Content[0].Content) == 1 {
		if v := n.Content[0].Content[0]; v.Tag == "!!str" && v.Value == name {
			return name
		}
	}
	return fmt.Sprintf("%q", name)
}

func hostList(r *Rule) string {
	var words []string
	for _, h := range r.Hosts {
		words = append(words, hostWord(h.String()))
	}
	return strings.Join(words, ", ")
}

// hostWord quotes what YAML would not read as text: a leading star is an alias, and a name such as null or true is a value of its own.
func hostWord(h string) string {
	if strings.HasPrefix(h, "*") {
		return `"` + h + `"`
	}
	return quoteName(h)
}

func networkList(networks []netip.Prefix) string {
	var words []string
	for _, n := range networks {
		words = append(words, fmt.Sprintf("%q", n))
	}
	return strings.Join(words, ", ")
}

func pathList(paths []netname.PathPattern) string {
	var words []string
	for _, p := range paths {
		words = append(words, fmt.Sprintf("%q", p))
	}
	return strings.Join(words, ", ")
}

// appendText inserts lines into a file whose egress section is written in block style.
func appendText(file []byte, more []Rule) ([]byte, error) {
	root, err := rootNode(file)
	if err != nil {
		return nil, err
	}
	lines := strings.SplitAfter(string(file), "\n")
	if last := lines[len(lines)-1]; last == "" {
		lines = lines[:len(lines)-1]
	} else {
		lines[len(lines)-1] = last + "\n"
	}
	ending := ""
	if strings.HasSuffix(lines[0], "\r\n") {
		ending = "\r"
	}
	at, text := len(lines), "\negress:\n  rules:\n"+rulesText(more, 4)
	if key, egress := lookup(root, "egress"); egress != nil {
		ruleKey, rules := lookup(egress, "rules")
		switch {
		case null(egress):
			at, text = key.Line, "  rules:\n"+rulesText(more, 4)
		case egress.Style&yaml.FlowStyle != 0:
			return nil, errFlow
		case rules == nil:
			indent := egress.Content[0].Column - 1
			at, text = blockEnd(lines, egress.Line, indent-1), strings.Repeat(" ", indent)+"rules:\n"+rulesText(more, indent+2)
		case null(rules):
			at, text = ruleKey.Line, rulesText(more, ruleKey.Column+1)
		case rules.Style&yaml.FlowStyle != 0:
			return nil, errFlow
		default:
			dash := rules.Column - 1
			at, text = blockEnd(lines, rules.Content[len(rules.Content)-1].Line, dash), rulesText(more, dash)
		}
	}
	text = strings.ReplaceAll(text, "\n", ending+"\n")
	return []byte(strings.Join(lines[:at], "") + text + strings.Join(lines[at:], "")), nil
}

var errFlow = fault.New(fault.Unsupported, "a section in flow style")

// blockEnd returns how many lines there are up to the end of a block that has a line (from 1) and whose lines are indented by more than indent.
func blockEnd(lines []string, line, indent int) int {
	end := line
	for i := line; i < len(lines); i++ {
		trimmed := strings.TrimLeft(lines[i], " ")
		if strings.TrimSpace(trimmed) == "" {
			continue
		}
		if len(lines[i])-len(trimmed) <= indent {
			break
		}
		end = i + 1
	}
	return end
}

// appendNode rewrites the file from its nodes: comments stay, formatting may change. It serves files in flow style.
func appendNode(file []byte, more []Rule) ([]byte, error) {
	var document, entry yaml.Node
	if err := yaml.Load(file, &document); err != nil {
		return nil, err
	}
	if err := yaml.Load([]byte(rulesText(more, 0)), &entry); err != nil {
		return nil, err
	}
	root := document.Content[0]
	egress := section(root, "egress", yaml.MappingNode)
	rules := section(egress, "rules", yaml.SequenceNode)
	root.Style &^= yaml.FlowStyle
	rules.Content = append(rules.Content, entry.Content[0].Content...)
	return yaml.Dump(&document, yaml.WithIndent(2), yaml.WithLineWidth(-1))
}

// section returns the value of a key in block style, made if it is absent or empty. A comment behind a value that was in flow style goes above its
// key: in block style there is no line left for it.
func section(n *yaml.Node, key string, kind yaml.Kind) *yaml.Node {
	if k, value := lookup(n, key); value != nil {
		if value.LineComment != "" {
			k.HeadComment = strings.TrimPrefix(k.HeadComment+"\n"+value.LineComment, "\n")
			value.LineComment = ""
		}
		if null(value) {
			*value = yaml.Node{Kind: kind}
		}
		value.Style &^= yaml.FlowStyle
		return value
	}
	value := &yaml.Node{Kind: kind}
	n.Content = append(n.Content, &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: key}, value)
	return value
}

func rootNode(file []byte) (*yaml.Node, error) {
	var document yaml.Node
	if err := yaml.Load(file, &document); err != nil {
		return nil, err
	}
	root := document.Content[0]
	if root.Style&yaml.FlowStyle != 0 {
		return nil, errFlow
	}
	return root, nil
}

// lookup returns a key of a mapping and its value, nil if there is none.
func lookup(n *yaml.Node, key string) (k, v *yaml.Node) {
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return n.Content[i], n.Content[i+1]
		}
	}
	return nil, nil
}

package control

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/keeper"
	"github.com/cofferdam/cofferdam/internal/policy"
	"github.com/cofferdam/cofferdam/internal/store"
)

// document is what is in force for an agent, given by its identifier, without what holds for one sandbox alone.
func (s *Service) document(ctx context.Context, tenant, agentID string) (string, error) {
	o, err := agents().Get(ctx, s.DB, tenant, agentID)
	if fault.KindOf(err) == fault.NotFound {
		return "", absent("agent")
	}
	if err != nil {
		return "", err
	}
	doc, _, err := s.effective(ctx, tenant, o, "")
	return doc, err
}

// orders are what a keeper is to hold a sandbox to.
type orders struct {
	doc  string
	then []keeper.Later // what takes its place as rules end, whether or not this process is there to see to it
	once []keeper.OnceRule
}

// next is when the keeper changes the document by itself; zero: never.
func (l orders) next() time.Time {
	if len(l.then) == 0 {
		return time.Time{}
	}
	return l.then[0].At
}

// effective composes the document that is in force in a sandbox of an agent: the policy's newest text, what the agent's access profiles open at the Git
// proxy, the agent's own isolation level, and reviewers' rules. once are the rules that allow one crossing. Without a sandbox, rules that hold in one
// alone are left out. Nothing in it is a secret: credentials are names.
func (s *Service) effective(ctx context.Context, tenant string, agent store.Object[AgentData], sandbox string) (doc string, once []keeper.OnceRule, err error) {
	return s.effectiveWith(ctx, tenant, agent, sandbox, "")
}

// effectiveWith is effective with another text in the place of the policy's, if there is one.
func (s *Service) effectiveWith(ctx context.Context, tenant string, agent store.Object[AgentData], sandbox, text string) (doc string, once []keeper.OnceRule, err error) {
	l, err := s.orders(ctx, tenant, agent, sandbox, text)
	return l.doc, l.once, err
}

// orders is effectiveWith, with what comes after it.
func (s *Service) orders(ctx context.Context, tenant string, agent store.Object[AgentData], sandbox, text string) (orders, error) {
	if text == "" {
		o, err := policies().Get(ctx, s.DB, tenant, agent.Parent)
		if err != nil {
			return orders{}, fmt.Errorf("the policy of agent %s: %w", agent.ID, err)
		}
		if text, err = s.policyText(ctx, s.DB, o); err != nil {
			return orders{}, err
		}
	}
	doc, err := s.compose(ctx, s.DB, tenant, text, agent.Data)
	if err != nil {
		return orders{}, err
	}
	list, err := s.rulesInForce(ctx, tenant, agent.ID, sandbox, s.now())
	if err != nil {
		return orders{}, err
	}
	return s.withRules(doc, list)
}

// rulesInForce lists the active rules of an agent, the oldest first. One that has ended does not count, even where nobody has noted its end yet.
func (s *Service) rulesInForce(ctx context.Context, tenant, agentID, sandbox string, now time.Time) ([]store.Object[RuleData], error) {
	var list []store.Object[RuleData]
	err := every(ctx, s.DB, rules(), tenant, store.Filter{Parent: agentID, States: []string{ruleActive}}, func(o store.Object[RuleData]) error {
		ended := !o.Data.Until.IsZero() && !o.Data.Until.After(now)
		here := o.Data.Scope == api.ForAgent || sandbox != "" && o.Data.Sandbox == sandbox
		if !ended && here {
			list = append(list, o)
		}
		return nil
	})
	slices.Reverse(list)
	return list, err
}

// withRules puts reviewers' rules to a document. What denies must come in, or there is no document; what allows and does not go together with a text
// that was changed since is left out, which only closes.
func (s *Service) withRules(doc string, list []store.Object[RuleData]) (l orders, err error) {
	var parts []rulePart
	for _, o := range list {
		snippet, err := policy.ParseSnippet(o.Data.Rule)
		if err == nil {
			snippet, err = namedAfter(snippet, o.ID), fits(snippet, o.Data.Verdict)
		}
		switch {
		case err == nil && o.Data.Scope == api.Once && o.Data.Verdict == policy.Allow.String():
			l.once = append(l.once, onceRule(o))
		case err == nil:
			parts = append(parts, rulePart{o, snippet})
		default:
			if err := s.leaveOut(o, err); err != nil {
				return orders{}, err
			}
		}
	}
	if l.doc, parts, err = s.withParts(doc, parts); err != nil {
		return orders{}, err
	}
	if l.then, err = s.afterEnds(doc, parts); err != nil {
		return orders{}, err
	}
	return l, nil
}

// withParts returns a document with rules, and those that are in it.
func (s *Service) withParts(doc string, parts []rulePart) (string, []rulePart, error) {
	var whole policy.Snippet
	for _, part := range parts {
		whole.Rules, whole.Networks = append(whole.Rules, part.snippet.Rules...), append(whole.Networks, part.snippet.Networks...)
	}
	out, err := policy.AppendSnippet([]byte(doc), whole)
	if err != nil { // one of them does not fit: find out which
		if out, parts, err = s.oneByOne([]byte(doc), parts); err != nil {
			return "", nil, err
		}
	}
	if _, err := policy.Parse("", out); err != nil { // AppendSnippet has read it back; this holds whatever it does
		return "", nil, fmt.Errorf("the composed policy: %w", err)
	}
	return string(out), parts, nil
}

// maxThen bounds what documents for later take together, but for the last two: a keeper takes messages of a certain length.
const maxThen = 1 << 20

// afterEnds lists the documents that take the place of one another as rules end. When they are too many, the last of them lacks all that is allowed until
// some time, which only closes, and not for long: the service tells the keeper anew whenever a rule has ended.
func (s *Service) afterEnds(doc string, parts []rulePart) ([]keeper.Later, error) {
	ends := []time.Time{}
	for _, part := range parts {
		if end := part.object.Data.Until; !end.IsZero() {
			ends = append(ends, end)
		}
	}
	slices.SortFunc(ends, time.Time.Compare)
	ends = slices.CompactFunc(ends, time.Time.Equal)
	var then []keeper.Later
	size := 0
	for _, end := range ends {
		last := len(then) == keeper.MaxLater-1 || size > maxThen
		over := func(part rulePart) bool {
			d := part.object.Data
			return !d.Until.IsZero() && (!d.Until.After(end) || last && d.Verdict == policy.Allow.String())
		}
		next, _, err := s.withParts(doc, slices.DeleteFunc(slices.Clone(parts), over))
		if err != nil {
			return nil, err
		}
		then, size = append(then, keeper.Later{At: end, Policy: next}), size+len(next)
		if last {
			break
		}
	}
	return then, nil
}

// rulePart is a stored rule as read.
type rulePart struct {
	object  store.Object[RuleData]
	snippet policy.Snippet
}

func (s *Service) oneByOne(doc []byte, parts []rulePart) (out []byte, in []rulePart, err error) {
	for _, part := range parts {
		grown, err := policy.AppendSnippet(doc, part.snippet)
		if err == nil {
			doc, in = grown, append(in, part)
		} else if err := s.leaveOut(part.object, err); err != nil {
			return nil, nil, err
		}
	}
	return doc, in, nil
}

// leaveOut goes on without an allowance, and never without a refusal.
func (s *Service) leaveOut(o store.Object[RuleData], cause error) error {
	if o.Data.Verdict != policy.Allow.String() {
		return fault.New(fault.Conflict, "a reviewer's refusal does not go together with the policy").Because(cause).
			WithHint("write it into the policy, and revoke the rule %s", o.ID)
	}
	s.warn("a reviewer's rule does not go together with the agent's policy, and is left out", "rule", o.ID, "agent", o.Parent, "error", cause)
	return nil
}

// fits holds the text of a rule to the verdict that was recorded for it.
func fits(s policy.Snippet, verdict string) error {
	for _, r := range s.Rules {
		if r.Verdict.String() != verdict {
			return fmt.Errorf("its text says %s, and its record %s", r.Verdict, verdict)
		}
	}
	if verdict != policy.Allow.String() && len(s.Networks) > 0 {
		return errors.New("it opens a network, and its record does not say allow")
	}
	return nil
}

func (s *Service) warn(message string, attributes ...any) {
	if s.Log != nil {
		s.Log.Warn(message, attributes...)
	}
}

// compose puts what an agent has besides its policy to the policy's text, and reads the whole back. An error of kind Conflict says what does not go together.
func (s *Service) compose(ctx context.Context, db *store.DB, tenant, text string, agent AgentData) (string, error) {
	doc := text
	if len(agent.Profiles) > 0 {
		if hasSection(text, "git") {
			return "", fault.New(fault.Conflict, "the policy has a section git of its own, and the agent has access profiles besides").
				WithHint("take the section out of the policy, or the profiles from the agent")
		}
		section, err := s.gitSection(ctx, db, tenant, agent.Profiles)
		if err != nil {
			return "", err
		}
		if doc, err = addSection(doc, "git", section); err != nil {
			return "", err
		}
	}
	p, err := policy.Parse("", []byte(doc))
	if err != nil {
		return "", togetherError(err)
	}
	if agent.Isolation == "" {
		return doc, nil
	}
	level, err := policy.ParseLevel(agent.Isolation)
	if err != nil || level <= p.Isolation() {
		return doc, err
	}
	return withIsolation(doc, level)
}

// togetherError says what does not go together. Lines mean nothing: nobody wrote this document.
func togetherError(err error) error {
	problems, ok := errors.AsType[*policy.Problems](err)
	if !ok {
		return err
	}
	for _, p := range problems.List {
		if p.Warning {
			continue
		}
		hint := p.Remedy
		p.Line, p.Remedy = 0, ""
		return fault.New(fault.Conflict, "the policy and the access profiles do not go together: %s", p).WithHint("%s", hint)
	}
	return err
}

// rootOf reads a document whose root is a mapping.
func rootOf(doc string) (document, root *yaml.Node, err error) {
	document = new(yaml.Node)
	if err := yaml.Load([]byte(doc), document); err != nil {
		return nil, nil, fmt.Errorf("read a policy: %w", err)
	}
	if len(document.Content) != 1 || document.Content[0].Kind != yaml.MappingNode {
		return nil, nil, fault.New(fault.Invalid, "the policy is no mapping").WithHint("begin it with: version: 1")
	}
	return document, document.Content[0], nil
}

// hasSection reports whether a document has a section, be it empty.
func hasSection(doc, key string) bool { return lineOf(doc, key) > 0 }

// lineOf returns the line of a section's key, 0 if there is none.
func lineOf(doc, key string) int {
	_, root, err := rootOf(doc)
	if err != nil {
		return 0
	}
	for i := 0; i+1 < len(root.Content); i += 2 {
		if root.Content[i].Value == key {
			return root.Content[i].Line
		}
	}
	return 0
}

// addSection returns a document with one more section. The document's own text stays as it is where it can, so that lines that the audit log names are
// those that a person wrote.
func addSection(doc, key string, value *yaml.Node) (string, error) {
	section, err := yaml.Dump(&yaml.Node{Kind: yaml.MappingNode, Content: []*yaml.Node{word(key), value}}, yaml.WithIndent(2), yaml.WithLineWidth(-1))
	if err != nil {
		return "", fmt.Errorf("write the section %s: %w", key, err)
	}
	appended := strings.TrimRight(doc, "\n") + "\n" + string(section)
	if _, err := policy.Parse("", []byte(appended)); err == nil && hasSection(appended, key) {
		return appended, nil
	}
	document, root, err := rootOf(doc) // in flow style, or with a mark of its end: written anew, comments kept
	if err != nil {
		return "", err
	}
	root.Style &^= yaml.FlowStyle
	root.Content = append(root.Content, word(key), value)
	out, err := yaml.Dump(document, yaml.WithIndent(2), yaml.WithLineWidth(-1))
	if err != nil {
		return "", fmt.Errorf("write the section %s: %w", key, err)
	}
	return string(out), nil
}

// withIsolation returns a document with a stronger isolation level.
func withIsolation(doc string, level policy.Level) (string, error) {
	const key = "isolation"
	var out string
	if !hasSection(doc, key) {
		var err error
		if out, err = addSection(doc, key, mapping("level", word(level.String()))); err != nil {
			return "", err
		}
	} else {
		document, root, err := rootOf(doc)
		if err != nil {
			return "", err
		}
		for i := 0; i+1 < len(root.Content); i += 2 {
			if root.Content[i].Value == key {
				strengthen(root.Content[i+1], level)
			}
		}
		data, err := yaml.Dump(document, yaml.WithIndent(2), yaml.WithLineWidth(-1))
		if err != nil {
			return "", fmt.Errorf("write the section isolation: %w", err)
		}
		out = string(data)
	}
	p, err := policy.Parse("", []byte(out))
	if err != nil {
		return "", togetherError(err)
	}
	if p.Isolation() != level {
		return "", fmt.Errorf("the isolation level of a composed policy is %s, not %s", p.Isolation(), level)
	}
	return out, nil
}

// strengthen sets the level in a section isolation, which may be empty. What else the section says stays, but for a platform of the level before.
func strengthen(n *yaml.Node, level policy.Level) {
	if n.Kind != yaml.MappingNode {
		*n = *mapping("level", word(level.String()))
		return
	}
	set := false
	for i := 0; i+1 < len(n.Content); i += 2 {
		switch n.Content[i].Value {
		case "level":
			n.Content[i+1].Value, set = level.String(), true
		case "platform":
			n.Content = slices.Delete(n.Content, i, i+2)
			i -= 2
		}
	}
	if !set {
		n.Content = append(n.Content, word("level"), word(level.String()))
	}
}

// word is text that YAML reads as text, whatever it says.
func word(s string) *yaml.Node {
	n := &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: s}
	if strings.Trim(s, "abcdefghijklmnopqrstuvwxyz") != "" || slices.Contains([]string{"null", "true", "false", "yes", "no", "on", "off", "y", "n"}, s) {
		n.Style = yaml.DoubleQuotedStyle
	}
	return n
}

func mapping(pairs ...any) *yaml.Node {
	n := &yaml.Node{Kind: yaml.MappingNode}
	for i := 0; i+1 < len(pairs); i += 2 {
		n.Content = append(n.Content, word(pairs[i].(string)), pairs[i+1].(*yaml.Node))
	}
	return n
}

func sequence(entries ...*yaml.Node) *yaml.Node {
	return &yaml.Node{Kind: yaml.SequenceNode, Content: entries}
}

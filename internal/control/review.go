package control

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/audit"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/keeper"
	"github.com/cofferdam/cofferdam/internal/policy"
	"github.com/cofferdam/cofferdam/internal/review"
	"github.com/cofferdam/cofferdam/internal/store"
)

// Denials lists groups of denials, the newest group first, each with its suggestion.
func (s *Service) Denials(ctx context.Context, a Actor, agent string, states []api.DenialState, p Page) (api.Page[api.Denial], error) {
	var out api.Page[api.Denial]
	if err := may(a, ReadReview); err != nil {
		return out, err
	}
	f, err := s.ofAgent(ctx, a.Tenant, agent, p)
	if err != nil {
		return out, err
	}
	for _, state := range states {
		f.States = append(f.States, string(state))
	}
	laws := s.laws(a.Tenant)
	return pageOf(ctx, s.DB, denials(), a.Tenant, f, func(o store.Object[DenialData]) api.Denial {
		d := laws.denial(ctx, o)
		d.Suggestion = laws.suggest(ctx, o.Parent, o.Data.event())
		return d
	})
}

// Denial returns one group with its suggestion and what that would have allowed.
func (s *Service) Denial(ctx context.Context, a Actor, id string) (api.Denial, error) {
	if err := may(a, ReadReview); err != nil {
		return api.Denial{}, err
	}
	o, err := s.denial(ctx, a.Tenant, id)
	if err != nil {
		return api.Denial{}, err
	}
	laws := s.laws(a.Tenant)
	d := laws.denial(ctx, o)
	if d.Suggestion = laws.suggest(ctx, o.Parent, o.Data.event()); d.Suggestion != nil {
		d.Suggestion.Reach, err = s.reach(ctx, a.Tenant, o.Parent, d.Suggestion.Rule)
	}
	return d, err
}

func (s *Service) denial(ctx context.Context, tenant, id string) (store.Object[DenialData], error) {
	o, err := denials().Get(ctx, s.DB, tenant, id)
	if fault.KindOf(err) == fault.NotFound {
		return o, absent("denial")
	}
	return o, err
}

// DecideDenial answers a denial. What it opens or closes is in force when DecideDenial returns, in the sandboxes that it names.
func (s *Service) DecideDenial(ctx context.Context, a Actor, id string, in api.Decide) (api.Decision, error) {
	if err := may(a, DecideReview); err != nil {
		return api.Decision{}, err
	}
	o, err := s.denial(ctx, a.Tenant, id)
	if err != nil {
		return api.Decision{}, err
	}
	if o.State == string(api.Allowed) || o.State == string(api.Refused) {
		return api.Decision{}, fault.New(fault.Conflict, "this was decided already").WithHint("revoke the rule that was made, and decide again when it happens again")
	}
	switch in.Verdict {
	case "dismiss":
		return s.settleDenial(ctx, a, o, api.Dismissed, nil)
	case "deny", "allow":
		if in.Verdict == "deny" {
			in.Scope = api.ForAgent // for good
		}
		made, err := s.ruleFrom(ctx, a, o.Parent, o.Data.Sandbox, o.Data.event(), in)
		if err != nil && !(errors.Is(err, errNoRule) && in.Verdict == "deny") {
			return api.Decision{}, err
		}
		if in.Verdict == "deny" {
			if made != nil {
				made.Data.Denial = o.ID
			}
			return s.settleDenial(ctx, a, o, api.Refused, made)
		}
		made.Data.Denial = o.ID
		state := api.Allowed
		if made.State == ruleProposed {
			state = api.Open // until the second person has agreed
		}
		return s.settleDenial(ctx, a, o, state, made)
	}
	return api.Decision{}, invalidVerdict("allow, deny or dismiss")
}

func invalidVerdict(words string) error {
	return fault.New(fault.Invalid, "verdict: there is no such answer").WithHint("write verdict: %s", words)
}

// settleDenial stores an answer and its rule, if there is one, and puts it in force.
func (s *Service) settleDenial(ctx context.Context, a Actor, o store.Object[DenialData], state api.DenialState, made *store.Object[RuleData]) (api.Decision, error) {
	detail := "denial " + o.ID + " is " + string(state)
	if made != nil {
		detail += "; rule " + made.Data.oneLine()
	}
	event := audit.Event{Kind: audit.ReviewDecided, Agent: o.Parent, Host: o.Data.Place.Host, Port: o.Data.Place.Port, Detail: detail}
	var settled store.Object[DenialData] // a transaction may be tried again: what it is given stays as it is
	var stored store.Object[RuleData]
	err := s.change(ctx, a, event, func(tx *store.DB) ([]store.Event, error) {
		now, err := denials().Get(ctx, tx, a.Tenant, o.ID) // it may have been counted up meanwhile
		if err != nil {
			return nil, err
		}
		if now.State != o.State {
			return nil, fault.New(fault.Conflict, "somebody else has decided this meanwhile").WithHint("look at it again")
		}
		now.State, now.Data.DecidedBy = string(state), a.byline()
		if settled, err = denials().Update(ctx, tx, now); err != nil {
			return nil, err
		}
		events := []store.Event{{Type: "denial", Subject: o.ID, Agent: o.Parent, State: settled.State}}
		if made == nil {
			return events, nil
		}
		stored, err = rules().Insert(ctx, tx, *made)
		return append(events, store.Event{Type: "rule", Subject: stored.ID, Agent: stored.Parent, State: stored.State}), err
	})
	if err != nil {
		return api.Decision{}, err
	}
	laws := s.laws(a.Tenant)
	d := laws.denial(ctx, settled)
	out := api.Decision{Denial: &d, InForce: []string{}}
	if made == nil {
		return out, nil
	}
	r := laws.rule(ctx, stored)
	out.Rule = &r
	if stored.State == ruleActive {
		out.InForce, err = s.enforce(ctx, a.Tenant, o.Parent)
	}
	return out, err
}

// errNoRule says that no rule can be about what was denied.
var errNoRule = fault.New(fault.Unsupported, "no rule can allow this").WithHint("change the agent's policy, or its access profiles for Git")

// ruleFrom makes the rule of an answer: checked, with its warnings read, and where the tenant wants four eyes only proposed.
func (s *Service) ruleFrom(ctx context.Context, a Actor, agent, sandbox string, e *audit.Event, in api.Decide) (*store.Object[RuleData], error) {
	law, err := s.law(ctx, a.Tenant, agent)
	if err != nil {
		return nil, err
	}
	snippet, err := snippetOf(law, e, in)
	if err != nil {
		return nil, err
	}
	grown, err := s.lawWith(ctx, a.Tenant, agent, snippet)
	if err != nil {
		return nil, err
	}
	id := store.NewID()
	snippet = namedAfter(snippet, id)
	data := RuleData{
		Agent: agent, Verdict: in.Verdict, Scope: in.Scope, Rule: snippet.String(), Until: in.Until.UTC(), Comment: in.Comment, ProposedBy: a.byline(), ProposedID: a.User,
		Warnings: review.Warnings(law, snippet),
	}
	if in.Verdict == "allow" && !review.Covers(grown, e) {
		data.Warnings = append(data.Warnings, api.Warning{Kind: "other", Text: "the rule does not allow what was denied, but something else"})
	}
	if err := checkText("comment", in.Comment, 1000, true); err != nil {
		return nil, err
	}
	if err := data.limit(sandbox, snippet, s.now()); err != nil {
		return nil, err
	}
	if len(data.Warnings) > 0 && !in.Widens {
		return nil, fault.New(fault.Invalid, "widens: the rule widens what the agent can reach: %s", data.Warnings[0].Text).WithHint("read its warnings, and say that you have: widens: true")
	}
	state := ruleActive
	if len(data.Warnings) > 0 {
		settings, err := s.settings(ctx, a.Tenant)
		if err != nil {
			return nil, err
		}
		if settings.FourEyes {
			state = ruleProposed
		}
	}
	return &store.Object[RuleData]{ID: id, Tenant: a.Tenant, Parent: agent, State: state, Data: data}, nil
}

// snippetOf is the rule that a person wrote, or else the suggestion, or for a refusal the rule that denies the same place.
func snippetOf(law *policy.Policy, e *audit.Event, in api.Decide) (policy.Snippet, error) {
	var s policy.Snippet
	switch {
	case in.Rule != "":
		var err error
		if s, err = policy.ParseSnippet(in.Rule); err != nil {
			return s, err
		}
	case in.Verdict == "deny":
		r, ok := review.Refusal(e)
		if !ok {
			return s, errNoRule
		}
		s.Rules = []policy.Rule{r}
	default:
		var ok bool
		if s, ok = review.Suggest(law, e); !ok {
			return s, errNoRule
		}
	}
	want := policy.Allow
	if in.Verdict == "deny" {
		want = policy.Deny
	}
	if slices.ContainsFunc(s.Rules, func(r policy.Rule) bool { return r.Verdict != want }) || want == policy.Deny && len(s.Networks) > 0 {
		return s, fault.New(fault.Invalid, "rule: it does not say %s, as your answer does", want).WithHint("write rules of one verdict")
	}
	return s, nil
}

// limit checks how far a rule reaches.
func (d *RuleData) limit(sandbox string, s policy.Snippet, now time.Time) error {
	switch d.Scope {
	case api.Once:
		if len(s.Rules) != 1 || len(s.Networks) > 0 {
			return fault.New(fault.Invalid, "scope: a network cannot be opened for one crossing").WithHint("choose scope run or agent")
		}
		d.Sandbox = sandbox
	case api.ForRun:
		d.Sandbox = sandbox
	case api.ForAgent:
		if !d.Until.IsZero() && !d.Until.After(now) {
			return fault.New(fault.Invalid, "until: this time is past").WithHint("choose a later one")
		}
		return nil
	default:
		return fault.New(fault.Invalid, "scope: there is no such scope").WithHint("write scope: once, run or agent")
	}
	if !d.Until.IsZero() {
		return fault.New(fault.Invalid, "until: only a rule for the agent has an end").WithHint("leave it out, or choose scope agent")
	}
	return nil
}

// namedAfter names a rule's parts after the object that holds it, so that the record of a crossing leads to who allowed it.
func namedAfter(s policy.Snippet, id string) policy.Snippet {
	s.Rules = slices.Clone(s.Rules)
	for i := range s.Rules {
		s.Rules[i].Name = "review-" + id
		if i > 0 {
			s.Rules[i].Name += fmt.Sprintf("-%d", i+1)
		}
	}
	return s
}

// oneLine is the rule for the record.
func (d *RuleData) oneLine() string {
	words := strings.Fields(strings.ReplaceAll(d.Rule, "\n", " "))
	text := d.Verdict + " (" + string(d.Scope) + "): " + strings.Join(words, " ")
	if !d.Until.IsZero() {
		text += ", until " + d.Until.Format(time.RFC3339)
	}
	return text
}

// laws answers for the agents of one tenant while one call is worked on. It reads each agent's policy and name once.
type laws struct {
	s      *Service
	tenant string
	known  map[string]*policy.Policy
	names  map[string]string
}

func (s *Service) laws(tenant string) *laws {
	return &laws{s: s, tenant: tenant, known: map[string]*policy.Policy{}, names: map[string]string{}}
}

// of returns an agent's policy in force, nil where it has none any more.
func (l *laws) of(ctx context.Context, agent string) *policy.Policy {
	if p, ok := l.known[agent]; ok {
		return p
	}
	p, err := l.s.law(ctx, l.tenant, agent)
	if err != nil {
		p = nil // the agent is gone: nothing can be suggested
	}
	l.known[agent] = p
	return p
}

func (l *laws) name(ctx context.Context, agent string) string {
	name, ok := l.names[agent]
	if !ok {
		name = l.s.agentName(ctx, l.tenant, agent)
		l.names[agent] = name
	}
	return name
}

func (l *laws) suggest(ctx context.Context, agent string, e *audit.Event) *api.Suggestion {
	p := l.of(ctx, agent)
	if p == nil {
		return nil
	}
	snippet, ok := review.Suggest(p, e)
	if !ok {
		return nil
	}
	return &api.Suggestion{Rule: snippet.String(), Warnings: orEmpty(review.Warnings(p, snippet))}
}

func (l *laws) denial(ctx context.Context, o store.Object[DenialData]) api.Denial {
	d := o.Data
	return api.Denial{
		ID: o.ID, Agent: o.Parent, AgentName: l.name(ctx, o.Parent), Place: d.Place, Destination: review.Destination(d.Place), Operation: review.Operation(d.Place),
		Rule: d.Rule, Reason: d.Reason, Credential: d.Credential, Process: d.Process, Count: d.Count, First: d.First, Last: d.Last, Sandbox: d.Sandbox,
		Sequence: d.Sequence, State: api.DenialState(o.State), DecidedBy: d.DecidedBy, Version: o.Version,
	}
}

func (l *laws) approval(ctx context.Context, o store.Object[ApprovalData]) api.Approval {
	d := o.Data
	return api.Approval{
		ID: o.ID, Agent: o.Parent, AgentName: l.name(ctx, o.Parent), Sandbox: d.Sandbox, Place: d.Place, Destination: review.Destination(d.Place),
		Operation: review.Operation(d.Place), Rule: d.Rule, Process: d.Process, Created: o.Created, Deadline: d.Deadline, State: o.State, DecidedBy: d.DecidedBy, Version: o.Version,
	}
}

func (l *laws) rule(ctx context.Context, o store.Object[RuleData]) api.Rule {
	d := o.Data
	return api.Rule{
		ID: o.ID, Agent: o.Parent, AgentName: l.name(ctx, o.Parent), Sandbox: d.Sandbox, Verdict: d.Verdict, Scope: d.Scope, Rule: d.Rule, Warnings: d.Warnings,
		State: o.State, Until: d.Until, Comment: d.Comment, ProposedBy: d.ProposedBy, ApprovedBy: d.ApprovedBy, Denial: d.Denial, Created: o.Created, Version: o.Version,
	}
}

func orEmpty[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}

// law is the policy that is in force for an agent, without what holds for one sandbox alone.
func (s *Service) law(ctx context.Context, tenant, agent string) (*policy.Policy, error) {
	text, err := s.document(ctx, tenant, agent)
	if err != nil {
		return nil, err
	}
	p, err := policy.Parse("", []byte(text))
	if err != nil {
		return nil, fmt.Errorf("the policy in force for agent %s: %w", agent, err)
	}
	return p, nil
}

// lawWith is the policy in force with a snippet more; an error if the two do not go together.
func (s *Service) lawWith(ctx context.Context, tenant, agent string, snippet policy.Snippet) (*policy.Policy, error) {
	text, err := s.document(ctx, tenant, agent)
	if err != nil {
		return nil, err
	}
	grown, err := policy.AppendSnippet([]byte(text), snippet)
	if err != nil {
		return nil, err
	}
	return policy.Parse("", grown)
}

// reachSince is how far back a suggestion looks.
const reachSince = 7 * 24 * time.Hour

// reach is what a rule would have allowed among an agent's recorded crossings.
func (s *Service) reach(ctx context.Context, tenant, agent, rule string) (*api.Replay, error) {
	leave, err := s.replaying.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	snippet, err := policy.ParseSnippet(rule)
	if err != nil {
		return nil, err
	}
	after, err := s.lawWith(ctx, tenant, agent, snippet)
	if err != nil {
		return nil, err
	}
	r, err := s.replay(ctx, tenant, []string{agent}, after, s.now().Add(-reachSince))
	return &r, err
}

// CheckRule says what a rule would widen, and what it would have allowed.
func (s *Service) CheckRule(ctx context.Context, a Actor, agent, rule string) (api.Suggestion, error) {
	var out api.Suggestion
	if err := may(a, ReadReview); err != nil {
		return out, err
	}
	id, err := s.agentID(ctx, a.Tenant, agent)
	if err != nil {
		return out, err
	}
	snippet, err := policy.ParseSnippet(rule)
	if err != nil {
		return out, err
	}
	law, err := s.law(ctx, a.Tenant, id)
	if err != nil {
		return out, err
	}
	out = api.Suggestion{Rule: snippet.String(), Warnings: orEmpty(review.Warnings(law, snippet))}
	out.Reach, err = s.reach(ctx, a.Tenant, id, rule)
	return out, err
}

// onceRule is how a keeper knows a rule for one crossing.
func onceRule(o store.Object[RuleData]) keeper.OnceRule {
	return keeper.OnceRule{ID: o.ID, Rule: o.Data.Rule}
}

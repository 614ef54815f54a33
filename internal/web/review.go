package web

import (
	"context"
	"strings"
	"time"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/control"
	"github.com/cofferdam/cofferdam/internal/fault"
)

type reviewOperations interface {
	Denials(ctx context.Context, a control.Actor, agent string, states []api.DenialState, p control.Page) (api.Page[api.Denial], error)
	Denial(ctx context.Context, a control.Actor, id string) (api.Denial, error)
	DecideDenial(ctx context.Context, a control.Actor, id string, in api.Decide) (api.Decision, error)
	Approvals(ctx context.Context, a control.Actor, waiting bool, p control.Page) (api.Page[api.Approval], error)
	Approval(ctx context.Context, a control.Actor, id string) (api.Approval, error)
	DecideApproval(ctx context.Context, a control.Actor, id string, in api.Decide) (api.Decision, error)
	Rules(ctx context.Context, a control.Actor, agent string, states []string, p control.Page) (api.Page[api.Rule], error)
	ApproveRule(ctx context.Context, a control.Actor, id string) (api.Rule, error)
	RevokeRule(ctx context.Context, a control.Actor, id string) (api.Rule, error)
	CheckRule(ctx context.Context, a control.Actor, agent, rule string) (api.Suggestion, error)
}

// inboxData is what waits for a reviewer.
type inboxData struct {
	Show      string
	Agent     string
	Approvals []*groupData
	Denials   []*groupData
	Next      string
}

// groupData is one entry of the inbox: a group of denials, or a crossing that waits. One of the two is nil.
type groupData struct {
	Denial   *api.Denial
	Approval *api.Approval
	// Panel says that the entry is open, with its suggestion and the form to decide.
	Panel    bool
	Form     *form
	Decision *api.Decision // what came of it
	Checked  *checkData
	CanDo    bool
}

// Kind is denials or approvals, as in the address.
func (g *groupData) Kind() string {
	if g.Approval != nil {
		return "approvals"
	}
	return "denials"
}

// ID is the entry's.
func (g *groupData) ID() string {
	if g.Approval != nil {
		return g.Approval.ID
	}
	return g.Denial.ID
}

// Agent is whose it is.
func (g *groupData) Agent() string {
	if g.Approval != nil {
		return g.Approval.Agent
	}
	return g.Denial.Agent
}

// Version is what a decision is about.
func (g *groupData) Version() int64 {
	if g.Approval != nil {
		return g.Approval.Version
	}
	return g.Denial.Version
}

// Open says whether it can still be decided.
func (g *groupData) Open() bool {
	if g.Approval != nil {
		return g.Approval.State == "waiting"
	}
	return g.Denial.State == api.Open
}

// Suggestion is the narrowest rule; nil where no rule can.
func (g *groupData) Suggestion() *api.Suggestion {
	if g.Approval != nil {
		return g.Approval.Suggestion
	}
	return g.Denial.Suggestion
}

// shows are the states that a tab of the inbox lists.
func shows(tab string) []api.DenialState {
	switch tab {
	case "allowed":
		return []api.DenialState{api.Allowed}
	case "refused":
		return []api.DenialState{api.Refused}
	case "dismissed":
		return []api.DenialState{api.Dismissed}
	}
	return []api.DenialState{api.Open}
}

func (p *Pages) review(v *visit) error {
	ctx, q := v.r.Context(), v.r.URL.Query()
	d := inboxData{Show: q.Get("show"), Agent: q.Get("agent")}
	if d.Show == "" {
		d.Show = "open"
	}
	denials, err := v.ops.Denials(ctx, v.actor, d.Agent, shows(d.Show), v.pageOf(50))
	if err != nil {
		return err
	}
	d.Next = denials.Next
	for i := range denials.Items {
		d.Denials = append(d.Denials, &groupData{Denial: &denials.Items[i]})
	}
	if d.Show == "open" && q.Get("after") == "" {
		approvals, err := v.ops.Approvals(ctx, v.actor, true, control.Page{Limit: 100})
		if err != nil {
			return err
		}
		for i := range approvals.Items {
			if d.Agent == "" || approvals.Items[i].Agent == d.Agent {
				d.Approvals = append(d.Approvals, &groupData{Approval: &approvals.Items[i]})
			}
		}
	}
	if v.htmx() {
		return v.fragment("review", "list", d)
	}
	return v.show("review", "Review", "review", d)
}

// group reads one entry with its suggestion.
func (v *visit) group(kind, id string) (*groupData, error) {
	g := &groupData{Panel: true, CanDo: v.can[control.DecideReview]}
	if kind == "approvals" {
		a, err := v.ops.Approval(v.r.Context(), v.actor, id)
		g.Approval = &a
		return g, err
	}
	d, err := v.ops.Denial(v.r.Context(), v.actor, id)
	g.Denial = &d
	return g, err
}

func (p *Pages) denial(v *visit) error   { return p.showGroup(v, "denials") }
func (p *Pages) approval(v *visit) error { return p.showGroup(v, "approvals") }

func (p *Pages) showGroup(v *visit, kind string) error {
	g, err := v.group(kind, v.r.PathValue("id"))
	if err != nil {
		return err
	}
	g.fill(p.clock())
	if v.htmx() {
		return v.fragment("review-entry", "panel", g)
	}
	return v.show("review-entry", "Review", "review", g)
}

// fill puts the suggestion into the form.
func (g *groupData) fill(now time.Time) {
	g.Form = prefilled("until", now.UTC().AddDate(0, 0, 30).Format("2006-01-02"))
	if s := g.Suggestion(); s != nil {
		g.Form.values.Set("rule", s.Rule)
		g.Checked = &checkData{Suggestion: *s}
	}
}

func (p *Pages) decideDenial(v *visit) error   { return p.decide(v, "denials") }
func (p *Pages) decideApproval(v *visit) error { return p.decide(v, "approvals") }

func (p *Pages) decide(v *visit, kind string) error {
	ctx, id := v.r.Context(), v.r.PathValue("id")
	f := newForm(v.r.PostForm)
	in := readDecision(f)
	if !f.Bad() {
		operation := v.ops.DecideDenial
		if kind == "approvals" {
			operation = v.ops.DecideApproval
			if in.Scope == api.Once {
				in.Rule = "" // the form has the suggestion in it; to let one crossing pass needs none
			}
		}
		decision, err := operation(ctx, v.actor, id, in)
		if err == nil {
			return p.decided(v, kind, id, decision)
		}
		if err := f.take(err); err != nil {
			return err
		}
		if f.Errors["widens"] != "" { // in the words of this page, where it is a tick
			f.Errors["widens"] = "This rule widens what the agent can reach. Read the warnings, and tick that you have."
		}
	}
	g, err := v.group(kind, id)
	if err != nil {
		return err
	}
	g.Form = f
	if s, err := v.ops.CheckRule(ctx, v.actor, g.Agent(), f.block("rule")); err == nil {
		g.Checked = &checkData{Suggestion: s}
	} else if s := g.Suggestion(); s != nil {
		g.Checked = &checkData{Suggestion: *s}
	}
	if v.htmx() {
		return v.fragment("review-entry", "entry", g)
	}
	return v.showForm("review-entry", "Review", "review", f, g)
}

// decided shows what came of it, in the place of the entry.
func (p *Pages) decided(v *visit, kind, id string, decision api.Decision) error {
	if !v.htmx() {
		return v.to("/review", "decided")
	}
	g, err := v.group(kind, id)
	if err != nil {
		return err
	}
	g.Panel, g.Decision = false, &decision
	return v.fragment("review-entry", "entry", g)
}

// readDecision reads which button was pressed and what stands in the form.
func readDecision(f *form) api.Decide {
	f.knows("widens", "until", "scope", "rule", "comment", "verdict")
	in := api.Decide{Comment: f.text("comment"), Widens: f.Has("widens", "yes")}
	switch f.Value("action") {
	case "once":
		in.Verdict, in.Scope = "allow", api.Once
	case "run":
		in.Verdict, in.Scope = "allow", api.ForRun
	case "agent":
		in.Verdict, in.Scope = "allow", api.ForAgent
	case "deny":
		in.Verdict, in.Scope = "deny", api.ForAgent
	case "deny-once":
		in.Verdict, in.Scope = "deny", api.Once
	case "dismiss":
		in.Verdict = "dismiss"
	default:
		f.Problem = "Choose one of the buttons."
	}
	if in.Verdict == "allow" {
		in.Rule = strings.TrimRight(f.block("rule"), "\n")
	}
	if f.Value("action") == "agent" && f.text("until") != "" {
		until, err := time.Parse("2006-01-02", f.text("until"))
		if err != nil {
			f.wrong("until", "Write a date such as 2026-12-31.")
		}
		in.Until = until.Add(24*time.Hour - time.Second) // to the end of that day
	}
	return in
}

// checkData is what a rule would widen and reach, for the part beside it.
type checkData struct {
	api.Suggestion
	Problem string
	Hint    string
}

// checkRule judges a rule while it is written.
func (p *Pages) checkRule(v *visit) error {
	f := newForm(v.r.PostForm)
	var d checkData // the tick is taken back: it was about the rule as it was
	s, err := v.ops.CheckRule(v.r.Context(), v.actor, f.text("agent"), f.block("rule"))
	if err != nil {
		switch fault.KindOf(err) {
		case fault.Invalid, fault.Unsupported, fault.Conflict:
			d.Problem, d.Hint = sentence(fault.Public(err)), sentence(fault.HintOf(err))
			if all := mistakes(err); all != "" {
				d.Hint = all
			}
		default:
			return err
		}
	}
	d.Suggestion = s
	return v.fragment("review-entry", "rule-check-of", d)
}

type rulesData struct {
	api.Page[api.Rule]
	Show  string
	Agent string
}

func (p *Pages) rules(v *visit) error {
	q := v.r.URL.Query()
	d := rulesData{Show: q.Get("show"), Agent: q.Get("agent")}
	states := []string{"active"}
	switch d.Show {
	case "proposed":
		states = []string{"proposed"}
	case "ended":
		states = []string{"used", "expired", "revoked", "rejected"}
	default:
		d.Show = "active"
	}
	page, err := v.ops.Rules(v.r.Context(), v.actor, d.Agent, states, v.pageOf(50))
	if err != nil {
		return err
	}
	d.Page = page
	if v.htmx() {
		return v.fragment("rules", "live", d)
	}
	return v.show("rules", "Rules", "rules", d)
}

func (p *Pages) approveRule(v *visit) error {
	if _, err := v.ops.ApproveRule(v.r.Context(), v.actor, v.r.PathValue("id")); err != nil {
		return err
	}
	return v.to("/rules", "rule-approved")
}

func (p *Pages) revokeRule(v *visit) error {
	if _, err := v.ops.RevokeRule(v.r.Context(), v.actor, v.r.PathValue("id")); err != nil {
		return err
	}
	return v.to("/rules", "rule-revoked")
}

package web

import (
	"context"
	"strconv"
	"strings"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/control"
	"github.com/cofferdam/cofferdam/internal/fault"
)

type policyOperations interface {
	Policies(ctx context.Context, a control.Actor, p control.Page) (api.Page[api.Policy], error)
	Policy(ctx context.Context, a control.Actor, id string) (api.Policy, error)
	CreatePolicy(ctx context.Context, a control.Actor, in api.NewPolicy) (api.Policy, error)
	ChangePolicy(ctx context.Context, a control.Actor, id string, version int64, in api.PolicyChange) (api.Policy, error)
	DeletePolicy(ctx context.Context, a control.Actor, id string) error
	PolicyVersions(ctx context.Context, a control.Actor, id string, p control.Page) (api.Page[api.PolicyVersion], error)
	PolicyVersion(ctx context.Context, a control.Actor, id string, number int) (api.PolicyVersion, error)
	DiffPolicy(ctx context.Context, a control.Actor, id string, from, to int) (string, error)
	CheckPolicy(ctx context.Context, a control.Actor, in api.PolicyText) (api.PolicyCheck, error)
	Explain(ctx context.Context, a control.Actor, in api.ExplainRequest) ([]api.Explanation, error)
	Replay(ctx context.Context, a control.Actor, policy string, in api.ReplayRequest) (api.Replay, error)
}

func (p *Pages) policies(v *visit) error {
	page, err := v.ops.Policies(v.r.Context(), v.actor, v.pageOf(50))
	if err != nil {
		return err
	}
	return v.show("policies", "Policies", "policies", page)
}

// policyData is the editor.
type policyData struct {
	Form   *form
	Policy *api.Policy // nil: a new one
	Check  *api.PolicyCheck
}

func (p *Pages) newPolicyPage(v *visit) error {
	f := prefilled("text", starterPolicy)
	return v.showForm("policy", "New policy", "policies", f, policyData{Form: f})
}

func (p *Pages) newPolicy(v *visit) error {
	f := newForm(v.r.PostForm)
	if f.need("name", "text") {
		policy, err := v.ops.CreatePolicy(v.r.Context(), v.actor, api.NewPolicy{Name: f.text("name"), Text: f.block("text"), Comment: f.text("comment")})
		if err == nil {
			return v.to(localURL("policies", policy.ID), "policy-made")
		}
		if err := f.take(err); err != nil {
			return err
		}
	}
	check, err := v.checkText(f.block("text"))
	if err != nil {
		return err
	}
	return v.showForm("policy", "New policy", "policies", f, policyData{Form: f, Check: check})
}

func (v *visit) checkText(text string) (*api.PolicyCheck, error) {
	c, err := v.ops.CheckPolicy(v.r.Context(), v.actor, api.PolicyText{Text: text})
	if err != nil {
		return nil, err
	}
	return &c, nil
}

func (p *Pages) policy(v *visit) error {
	policy, err := v.ops.Policy(v.r.Context(), v.actor, v.r.PathValue("id"))
	if err != nil {
		return err
	}
	f := prefilled("name", policy.Name, "text", policy.Text, "version", strconv.FormatInt(policy.Version, 10))
	check, err := v.checkText(policy.Text)
	if err != nil {
		return err
	}
	return v.showForm("policy", policy.Name, "policies", f, policyData{Form: f, Policy: &policy, Check: check})
}

func (p *Pages) changePolicy(v *visit) error {
	ctx, id := v.r.Context(), v.r.PathValue("id")
	f := newForm(v.r.PostForm)
	policy, err := v.ops.Policy(ctx, v.actor, id)
	if err != nil {
		return err
	}
	if f.need("name", "text") {
		in := api.PolicyChange{Comment: f.text("comment")}
		if text := f.block("text"); text != policy.Text {
			in.Text = &text
		}
		if name := f.text("name"); name != policy.Name {
			in.Name = &name
		}
		if in.Text == nil && in.Name == nil {
			return v.to(localURL("policies", id), "")
		}
		if _, err = v.ops.ChangePolicy(ctx, v.actor, id, f.version(), in); err == nil {
			return v.to(localURL("policies", id), "policy-changed")
		}
		if err := f.take(err); err != nil {
			return err
		}
	}
	check, err := v.checkText(f.block("text"))
	if err != nil {
		return err
	}
	return v.showForm("policy", policy.Name, "policies", f, policyData{Form: f, Policy: &policy, Check: check})
}

func (p *Pages) deletePolicy(v *visit) error {
	if err := v.ops.DeletePolicy(v.r.Context(), v.actor, v.r.PathValue("id")); err != nil {
		return err
	}
	return v.to("/policies", "policy-deleted")
}

// checkPolicy judges a document while it is written.
func (p *Pages) checkPolicy(v *visit) error {
	check, err := v.checkText(newForm(v.r.PostForm).block("text"))
	if err != nil {
		return err
	}
	return v.fragment("policy", "check", check)
}

type explainData struct {
	List    []api.Explanation
	Problem string
	Hint    string
}

func (p *Pages) explainPolicy(v *visit) error {
	f := newForm(v.r.PostForm)
	var d explainData
	list, err := v.ops.Explain(v.r.Context(), v.actor, api.ExplainRequest{Target: f.text("target"), Method: strings.ToUpper(f.text("method")), Ref: f.text("ref"), Text: f.block("text"), Agent: f.text("agent")})
	if err != nil {
		if err := d.take(err); err != nil {
			return err
		}
	}
	d.List = list
	return v.fragment("policy", "explained", d)
}

func (d *explainData) take(err error) error {
	if kind := fault.KindOf(err); kind == fault.Internal || kind == fault.Unauthenticated {
		return err
	}
	d.Problem, d.Hint = sentence(fault.Public(err)), sentence(fault.HintOf(err))
	return nil
}

type replayData struct {
	explainData
	Replay api.Replay
}

func (p *Pages) replayPolicy(v *visit) error {
	f := newForm(v.r.PostForm)
	var d replayData
	in := api.ReplayRequest{Text: f.block("text")}
	if days, err := strconv.Atoi(f.text("days")); err == nil && days > 0 && days <= 3650 {
		in.Since = p.clock().AddDate(0, 0, -days)
	}
	replay, err := v.ops.Replay(v.r.Context(), v.actor, v.r.PathValue("id"), in)
	if err != nil {
		if err := d.take(err); err != nil {
			return err
		}
	}
	d.Replay = replay
	return v.fragment("policy", "replayed", d)
}

type versionsData struct {
	Policy   api.Policy
	Versions api.Page[api.PolicyVersion]
	One      *api.PolicyVersion
	From, To int
	Diff     []diffLine
}

// diffLine is a line of a unified diff with its colour.
type diffLine struct{ Tone, Text string }

func (p *Pages) policyVersions(v *visit) error {
	d, err := v.versions()
	if err != nil {
		return err
	}
	q := v.r.URL.Query()
	from, err1 := strconv.Atoi(q.Get("from"))
	to, err2 := strconv.Atoi(q.Get("to"))
	if err1 != nil || err2 != nil {
		from, to = d.Policy.Number-1, d.Policy.Number
	}
	d.From, d.To = from, to
	if from > 0 && from != to {
		diff, err := v.ops.DiffPolicy(v.r.Context(), v.actor, d.Policy.ID, from, to)
		if err != nil {
			return err
		}
		d.Diff = diffLines(diff)
	}
	return v.show("policy-versions", "Versions of "+d.Policy.Name, "policies", d)
}

func (v *visit) versions() (*versionsData, error) {
	policy, err := v.ops.Policy(v.r.Context(), v.actor, v.r.PathValue("id"))
	if err != nil {
		return nil, err
	}
	versions, err := v.ops.PolicyVersions(v.r.Context(), v.actor, policy.ID, v.pageOf(50))
	return &versionsData{Policy: policy, Versions: versions}, err
}

func (p *Pages) policyVersion(v *visit) error {
	d, err := v.versions()
	if err != nil {
		return err
	}
	number, err := strconv.Atoi(v.r.PathValue("number"))
	if err != nil {
		return fault.New(fault.NotFound, "there is no such version")
	}
	one, err := v.ops.PolicyVersion(v.r.Context(), v.actor, d.Policy.ID, number)
	if err != nil {
		return err
	}
	d.One = &one
	return v.show("policy-versions", "Version "+strconv.Itoa(number)+" of "+d.Policy.Name, "policies", d)
}

func diffLines(diff string) []diffLine {
	var out []diffLine
	for line := range strings.Lines(diff) {
		line = strings.TrimRight(line, "\n")
		tone := "ctx"
		switch {
		case strings.HasPrefix(line, "@@"), strings.HasPrefix(line, "---"), strings.HasPrefix(line, "+++"):
			tone = "at"
		case strings.HasPrefix(line, "+"):
			tone = "add"
		case strings.HasPrefix(line, "-"):
			tone = "del"
		}
		out = append(out, diffLine{tone, line})
	}
	return out
}

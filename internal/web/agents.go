package web

import (
	"context"
	"sort"
	"strconv"
	"strings"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/control"
)

type agentOperations interface {
	Agents(ctx context.Context, a control.Actor, p control.Page) (api.Page[api.Agent], error)
	Agent(ctx context.Context, a control.Actor, id string) (api.Agent, error)
	CreateAgent(ctx context.Context, a control.Actor, in api.NewAgent) (api.Agent, error)
	ChangeAgent(ctx context.Context, a control.Actor, id string, version int64, in api.AgentChange) (api.Agent, error)
	DeleteAgent(ctx context.Context, a control.Actor, id string) error
	EffectivePolicy(ctx context.Context, a control.Actor, agent string) (string, error)
}

// pageOf is the part of a list that a page's address asks for.
func (v *visit) pageOf(limit int) control.Page {
	q := v.r.URL.Query()
	return control.Page{Limit: limit, After: q.Get("after"), Search: strings.TrimSpace(q.Get("q"))}
}

type agentsData struct {
	api.Page[api.Agent]
	Searched bool
}

func (p *Pages) agents(v *visit) error {
	page, err := v.ops.Agents(v.r.Context(), v.actor, v.pageOf(50))
	if err != nil {
		return err
	}
	return v.show("agents", "Agents", "agents", agentsData{page, v.r.URL.Query().Get("q") != ""})
}

// agentForm is the form that provisions an agent, or changes it.
type agentForm struct {
	Form     *form
	Agent    *api.Agent // nil: a new one
	Policies []api.Policy
	Profiles []api.Profile
}

func (p *Pages) showAgentForm(v *visit, f *form, a *api.Agent) error {
	d := agentForm{Form: f, Agent: a}
	policies, err := v.ops.Policies(v.r.Context(), v.actor, control.Page{Limit: 500})
	if err != nil {
		return err
	}
	d.Policies = policies.Items
	if d.Profiles, err = v.ops.Profiles(v.r.Context(), v.actor); err != nil {
		return err
	}
	title := "New agent"
	if a != nil {
		title = "Change " + a.Name
	}
	return v.showForm("agent-form", title, "agents", f, d)
}

func (p *Pages) newAgentPage(v *visit) error {
	return p.showAgentForm(v, prefilled("policy", "nothing", "text", starterPolicy), nil)
}

// starterPolicy is where the policy editor begins: valid, and nothing is allowed.
const starterPolicy = `version: 1

egress:
  default: deny
  rules:
    # - name: registry
    #   hosts: [registry.example.com]
    #   methods: [GET]
`

func (p *Pages) newAgent(v *visit) error {
	f := newForm(v.r.PostForm)
	in := api.NewAgent{Name: f.text("name"), Description: f.text("description"), Profiles: f.values["profile"], Isolation: f.text("isolation")}
	f.need("name")
	switch f.Value("policy") {
	case "stored":
		in.Policy = f.text("stored")
		f.need("stored")
	case "text":
		in.PolicyText = f.block("text")
		f.need("text")
	}
	var err error
	if in.Command, err = splitCommand(f.Value("command")); err != nil {
		f.wrong("command", sentence(err.Error()))
	}
	if in.Environment, err = readVariables(f.block("environment")); err != nil {
		f.wrong("environment", sentence(err.Error()))
	}
	if f.Bad() {
		return p.showAgentForm(v, f, nil)
	}
	agent, err := v.ops.CreateAgent(v.r.Context(), v.actor, in)
	if err != nil {
		if err := f.take(err); err != nil {
			return err
		}
		return p.showAgentForm(v, f, nil)
	}
	return v.to(localURL("agents", agent.ID), "agent-made")
}

func (p *Pages) editAgentPage(v *visit) error {
	a, err := v.ops.Agent(v.r.Context(), v.actor, v.r.PathValue("id"))
	if err != nil {
		return err
	}
	f := prefilled("name", a.Name, "description", a.Description, "stored", a.Policy, "isolation", a.Isolation, "command", joinCommand(a.Command),
		"environment", variableLines(a.Environment), "version", strconv.FormatInt(a.Version, 10))
	f.values["profile"] = a.Profiles
	return p.showAgentForm(v, f, &a)
}

func (p *Pages) editAgent(v *visit) error {
	ctx, id := v.r.Context(), v.r.PathValue("id")
	f := newForm(v.r.PostForm)
	name, description, policy, isolation := f.text("name"), f.text("description"), f.text("stored"), f.text("isolation")
	profiles := f.values["profile"]
	if profiles == nil {
		profiles = []string{}
	}
	f.need("name", "stored")
	command, err := splitCommand(f.Value("command"))
	if err != nil {
		f.wrong("command", sentence(err.Error()))
	}
	environment, err := readVariables(f.block("environment"))
	if err != nil {
		f.wrong("environment", sentence(err.Error()))
	}
	if !f.Bad() {
		_, err = v.ops.ChangeAgent(ctx, v.actor, id, f.version(), api.AgentChange{Name: &name, Description: &description, Policy: &policy, Profiles: &profiles,
			Isolation: &isolation, Command: &command, Environment: &environment})
		if err == nil {
			return v.to(localURL("agents", id), "agent-changed")
		}
		if err := f.take(err); err != nil {
			return err
		}
	}
	a, err := v.ops.Agent(ctx, v.actor, id)
	if err != nil {
		return err
	}
	return p.showAgentForm(v, f, &a)
}

// version is the version that a form was made from.
func (f *form) version() int64 {
	n, err := strconv.ParseInt(f.Value("version"), 10, 64)
	if err != nil { // no object has it: the operation answers that there is a conflict
		return -1
	}
	return n
}

// variableLines writes variables as readVariables reads them.
func variableLines(variables map[string]string) string {
	names := make([]string, 0, len(variables))
	for name := range variables {
		names = append(names, name)
	}
	sort.Strings(names)
	var b strings.Builder
	for _, name := range names {
		b.WriteString(name + "=" + variables[name] + "\n")
	}
	return b.String()
}

type agentData struct {
	Agent     api.Agent
	Policy    string // in force
	Unusable  string // why there is none
	Sandboxes []api.Sandbox
	Denials   []api.Denial
	Rules     []api.Rule
	Start     *form
}

func (p *Pages) agent(v *visit) error {
	ctx := v.r.Context()
	agent, err := v.ops.Agent(ctx, v.actor, v.r.PathValue("id"))
	if err != nil {
		return err
	}
	d := agentData{Agent: agent, Start: prefilled("command", joinCommand(agent.Command))}
	if len(agent.Command) == 0 {
		d.Start.values.Set("hold", "yes")
	}
	if d.Policy, err = v.ops.EffectivePolicy(ctx, v.actor, agent.ID); err != nil {
		f := newForm(nil)
		if err := f.take(err); err != nil {
			return err
		}
		d.Unusable = strings.TrimSpace(f.Problem + " " + f.Hint)
	}
	sandboxes, err := v.ops.Sandboxes(ctx, v.actor, agent.ID, false, control.Page{Limit: 10})
	if err != nil {
		return err
	}
	d.Sandboxes = sandboxes.Items
	if v.can[control.ReadReview] {
		denials, err := v.ops.Denials(ctx, v.actor, agent.ID, []api.DenialState{api.Open}, control.Page{Limit: 10})
		if err != nil {
			return err
		}
		rules, err := v.ops.Rules(ctx, v.actor, agent.ID, []string{"active", "proposed"}, control.Page{Limit: 50})
		if err != nil {
			return err
		}
		d.Denials, d.Rules = denials.Items, rules.Items
	}
	if v.htmx() {
		return v.fragment("agent", "live", d)
	}
	return v.show("agent", agent.Name, "agents", d)
}

func (p *Pages) suspendAgent(v *visit) error {
	f := newForm(v.r.PostForm)
	suspended := f.Value("suspended") == "yes"
	if _, err := v.ops.ChangeAgent(v.r.Context(), v.actor, v.r.PathValue("id"), f.version(), api.AgentChange{Suspended: &suspended}); err != nil {
		return err
	}
	done := "agent-resumed"
	if suspended {
		done = "agent-suspended"
	}
	return v.to(localURL("agents", v.r.PathValue("id")), done)
}

func (p *Pages) deleteAgent(v *visit) error {
	if err := v.ops.DeleteAgent(v.r.Context(), v.actor, v.r.PathValue("id")); err != nil {
		return err
	}
	return v.to("/agents", "agent-deleted")
}

package control

import (
	"context"
	"encoding/json"
	"slices"
	"strings"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/audit"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/store"
)

// AgentData is an agent as stored. The object's parent is its policy, its state active or suspended.
type AgentData struct {
	Description string            `json:"description,omitempty"`
	Profiles    []string          `json:"profiles,omitempty"` // identifiers
	Isolation   string            `json:"isolation,omitempty"`
	Command     []string          `json:"command,omitempty"`
	Environment map[string]string `json:"environment,omitempty"`
}

// The states of an agent.
const (
	agentActive    = "active"
	agentSuspended = "suspended"
)

func agents() store.Collection[AgentData] { return store.Of[AgentData]("agent") }

// GrantData says that an agent has an access profile. The object's parent is the profile, its name AGENT/PROFILE.
type GrantData struct {
	Agent string `json:"agent"`
}

func grants() store.Collection[GrantData] { return store.Of[GrantData]("agent-profile") }

// sandboxesOf counts sandboxes, whatever is known of them.
func sandboxesOf() store.Collection[json.RawMessage] { return store.Of[json.RawMessage]("sandbox") }

// liveStates are the states in which something of a sandbox may exist.
func liveStates() []string {
	return []string{string(api.Starting), string(api.Running), string(api.Stopping)}
}

func (s *Service) agent(ctx context.Context, db *store.DB, tenant, id string) (store.Object[AgentData], error) {
	return find(ctx, db, agents(), tenant, "agent", id)
}

// agentID returns the identifier of an agent that is given by identifier or name.
func (s *Service) agentID(ctx context.Context, tenant, idOrName string) (string, error) {
	o, err := s.agent(ctx, s.DB, tenant, idOrName)
	return o.ID, err
}

// agentName returns an agent's name for people, "" if there is no such agent any more.
func (s *Service) agentName(ctx context.Context, tenant, id string) string {
	o, err := agents().Get(ctx, s.DB, tenant, id)
	if err != nil {
		return ""
	}
	return o.Name
}

// Agents lists agents by name.
func (s *Service) Agents(ctx context.Context, a Actor, p Page) (api.Page[api.Agent], error) {
	var out api.Page[api.Agent]
	if err := may(a, ReadAgents); err != nil {
		return out, err
	}
	f, err := p.filter()
	if err != nil {
		return out, err
	}
	f.ByName = true
	list, next, err := agents().List(ctx, s.DB, a.Tenant, f)
	if err != nil {
		return out, err
	}
	out.Next = next
	out.Items, err = s.showAgents(ctx, a.Tenant, list...)
	return out, err
}

// Agent returns one agent, by identifier or name.
func (s *Service) Agent(ctx context.Context, a Actor, id string) (api.Agent, error) {
	if err := may(a, ReadAgents); err != nil {
		return api.Agent{}, err
	}
	o, err := s.agent(ctx, s.DB, a.Tenant, id)
	if err != nil {
		return api.Agent{}, err
	}
	return s.showAgent(ctx, o)
}

func (s *Service) showAgent(ctx context.Context, o store.Object[AgentData]) (api.Agent, error) {
	list, err := s.showAgents(ctx, o.Tenant, o)
	if err != nil {
		return api.Agent{}, err
	}
	return list[0], nil
}

// showAgents adds what others know of agents: the policy's name, how many sandboxes run, how many denials wait.
func (s *Service) showAgents(ctx context.Context, tenant string, list ...store.Object[AgentData]) ([]api.Agent, error) {
	out, ids, names := make([]api.Agent, 0, len(list)), []string{}, map[string]string{}
	for _, o := range list {
		ids = append(ids, o.ID)
		if _, known := names[o.Parent]; !known {
			p, err := policies().Get(ctx, s.DB, tenant, o.Parent)
			if err != nil && fault.KindOf(err) != fault.NotFound {
				return nil, err
			}
			names[o.Parent] = p.Name
		}
	}
	running, err := sandboxesOf().CountBy(ctx, s.DB, tenant, ids, liveStates()...)
	if err != nil {
		return nil, err
	}
	open, err := denials().CountBy(ctx, s.DB, tenant, ids, string(api.Open))
	if err != nil {
		return nil, err
	}
	for _, o := range list {
		out = append(out, api.Agent{
			ID: o.ID, Name: o.Name, Description: o.Data.Description, Policy: o.Parent, PolicyName: names[o.Parent], Profiles: orEmpty(o.Data.Profiles),
			Isolation: o.Data.Isolation, Command: o.Data.Command, Environment: o.Data.Environment, Suspended: o.State == agentSuspended,
			Running: running[o.ID], Denials: open[o.ID], Created: o.Created, Updated: o.Updated, Version: o.Version,
		})
	}
	return out, nil
}

// CreateAgent provisions an agent. A policy that is given as text is made with it, and without any it gets the tenant's default, or one of its own that
// allows nothing.
func (s *Service) CreateAgent(ctx context.Context, a Actor, in api.NewAgent) (api.Agent, error) {
	if err := may(a, WriteAgents); err != nil {
		return api.Agent{}, err
	}
	if in.PolicyText != "" {
		if err := may(a, WritePolicies); err != nil {
			return api.Agent{}, err
		}
	}
	o := store.Object[AgentData]{ID: store.NewID(), Tenant: a.Tenant, Name: in.Name, State: agentActive}
	o.Data = AgentData{Description: in.Description, Profiles: in.Profiles, Isolation: in.Isolation, Command: in.Command, Environment: in.Environment}
	law, err := s.policyFor(ctx, a, o, in)
	if err != nil {
		return api.Agent{}, err
	}
	o.Parent = law.object.ID
	if err := s.checkAgent(ctx, &o, law.text); err != nil {
		return api.Agent{}, err
	}
	event := audit.Event{Kind: audit.AgentChanged, Agent: o.ID, Detail: "make the agent " + o.Name + " under the policy " + law.object.Name + agentFacts(&o)}
	var stored store.Object[AgentData]
	err = s.change(ctx, a, event, func(tx *store.DB) ([]store.Event, error) {
		events := []store.Event{{Type: "agent", Subject: o.ID, Agent: o.ID, State: o.State}}
		if law.made {
			if _, err := insertPolicy(ctx, tx, law.object, law.text); err != nil {
				return nil, err
			}
			events = append(events, store.Event{Type: "policy", Subject: law.object.ID, State: "created"})
		} else if _, err := policies().Get(ctx, tx, a.Tenant, o.Parent); err != nil {
			return nil, err
		}
		var err error
		if stored, err = agents().Insert(ctx, tx, o); err != nil {
			return nil, err
		}
		return events, setGrants(ctx, tx, &o, nil)
	})
	if err != nil {
		return api.Agent{}, err
	}
	return s.showAgent(ctx, stored)
}

// agentFacts says for the record what an agent has besides its name and its policy. Values of variables are no part of it.
func agentFacts(o *store.Object[AgentData]) string {
	var b strings.Builder
	if len(o.Data.Profiles) > 0 {
		b.WriteString(", with the access profiles " + strings.Join(o.Data.Profiles, " "))
	}
	if o.Data.Isolation != "" {
		b.WriteString(", at isolation level " + o.Data.Isolation)
	}
	if o.State == agentSuspended {
		b.WriteString(", suspended")
	}
	return b.String()
}

// setGrants makes the links of an agent to its profiles what its data says.
func setGrants(ctx context.Context, tx *store.DB, o *store.Object[AgentData], before []string) error {
	for _, profile := range before {
		if slices.Contains(o.Data.Profiles, profile) {
			continue
		}
		link, err := grants().ByName(ctx, tx, o.Tenant, o.ID+"/"+profile)
		if err != nil {
			return err
		}
		if err := grants().Delete(ctx, tx, o.Tenant, link.ID, 0); err != nil {
			return err
		}
	}
	for _, profile := range o.Data.Profiles {
		if slices.Contains(before, profile) {
			continue
		}
		if _, err := profiles().Get(ctx, tx, o.Tenant, profile); err != nil {
			return err
		}
		link := store.Object[GrantData]{Tenant: o.Tenant, Name: o.ID + "/" + profile, Parent: profile, Data: GrantData{Agent: o.ID}}
		if _, err := grants().Insert(ctx, tx, link); err != nil {
			return err
		}
	}
	return nil
}

// ChangeAgent changes an agent; another policy is in force when it returns. Version 0 changes whatever version there is.
func (s *Service) ChangeAgent(ctx context.Context, a Actor, id string, version int64, in api.AgentChange) (api.Agent, error) {
	if err := may(a, WriteAgents); err != nil {
		return api.Agent{}, err
	}
	before, err := s.agent(ctx, s.DB, a.Tenant, id)
	if err != nil {
		return api.Agent{}, err
	}
	if err := current(before, version); err != nil {
		return api.Agent{}, err
	}
	o := changedAgent(before, in)
	law, err := s.policy(ctx, s.DB, a.Tenant, o.Parent)
	if err != nil {
		return api.Agent{}, err
	}
	o.Parent = law.ID
	text, err := s.policyText(ctx, s.DB, law)
	if err != nil {
		return api.Agent{}, err
	}
	if err := s.checkAgent(ctx, &o, text); err != nil {
		return api.Agent{}, err
	}
	event := audit.Event{Kind: audit.AgentChanged, Agent: o.ID, Detail: "change the agent " + before.Name + ": now " + o.Name + " under the policy " + law.Name + agentFacts(&o)}
	var stored store.Object[AgentData]
	err = s.change(ctx, a, event, func(tx *store.DB) ([]store.Event, error) {
		if _, err := policies().Get(ctx, tx, a.Tenant, o.Parent); err != nil {
			return nil, err
		}
		var err error
		if stored, err = agents().Update(ctx, tx, o); err != nil {
			return nil, err
		}
		return []store.Event{{Type: "agent", Subject: o.ID, Agent: o.ID, State: o.State}}, setGrants(ctx, tx, &o, before.Data.Profiles)
	})
	if err != nil {
		return api.Agent{}, err
	}
	if err := s.applyAgent(ctx, before, stored); err != nil {
		return api.Agent{}, err
	}
	return s.showAgent(ctx, stored)
}

func changedAgent(o store.Object[AgentData], in api.AgentChange) store.Object[AgentData] {
	set(&o.Name, in.Name)
	set(&o.Parent, in.Policy)
	set(&o.Data.Description, in.Description)
	set(&o.Data.Profiles, in.Profiles)
	set(&o.Data.Isolation, in.Isolation)
	set(&o.Data.Command, in.Command)
	set(&o.Data.Environment, in.Environment)
	if in.Suspended != nil {
		o.State = agentActive
		if *in.Suspended {
			o.State = agentSuspended
		}
	}
	return o
}

func set[T any](into, value *T) {
	if value != nil {
		*into = *value
	}
}

// applyAgent brings what was changed to the sandboxes that run. It goes on when whoever asked has gone.
func (s *Service) applyAgent(ctx context.Context, before, after store.Object[AgentData]) error {
	ctx, stop := context.WithTimeout(context.WithoutCancel(ctx), afterwards)
	defer stop()
	if after.State == agentSuspended {
		return s.stopAgent(ctx, after.Tenant, after.ID, "the agent was suspended")
	}
	same := before.Parent == after.Parent && before.Data.Isolation == after.Data.Isolation && slices.Equal(before.Data.Profiles, after.Data.Profiles)
	if same {
		return nil
	}
	_, err := s.enforce(ctx, after.Tenant, after.ID)
	return err
}

// DeleteAgent removes an agent that has no sandbox, with what belongs to it alone: a policy that was made with it, reviewers' rules, denials.
func (s *Service) DeleteAgent(ctx context.Context, a Actor, id string) error {
	if err := may(a, WriteAgents); err != nil {
		return err
	}
	o, err := s.agent(ctx, s.DB, a.Tenant, id)
	if err != nil {
		return err
	}
	if err := s.noSandbox(ctx, s.DB, o); err != nil {
		return err
	}
	event := audit.Event{Kind: audit.AgentChanged, Agent: o.ID, Detail: "remove the agent " + o.Name}
	return s.change(ctx, a, event, func(tx *store.DB) ([]store.Event, error) {
		if err := s.noSandbox(ctx, tx, o); err != nil {
			return nil, err
		}
		if err := agents().Delete(ctx, tx, a.Tenant, o.ID, 0); err != nil {
			return nil, err
		}
		bare := o
		bare.Data.Profiles = nil
		if err := setGrants(ctx, tx, &bare, o.Data.Profiles); err != nil {
			return nil, err
		}
		if err := s.dropBelongings(ctx, tx, o); err != nil {
			return nil, err
		}
		return []store.Event{{Type: "agent", Subject: o.ID, Agent: o.ID, State: "deleted"}}, nil
	})
}

func (s *Service) noSandbox(ctx context.Context, db *store.DB, o store.Object[AgentData]) error {
	n, err := sandboxesOf().Count(ctx, db, o.Tenant, store.Filter{Parent: o.ID, States: liveStates()})
	if err == nil && n > 0 {
		err = fault.New(fault.Conflict, "the agent has %d sandboxes", n).WithHint("stop them first, or suspend the agent")
	}
	return err
}

// dropBelongings removes what belongs to an agent that is gone.
func (s *Service) dropBelongings(ctx context.Context, tx *store.DB, o store.Object[AgentData]) error {
	own, err := policies().Get(ctx, tx, o.Tenant, o.Parent)
	if err != nil && fault.KindOf(err) != fault.NotFound {
		return err
	}
	if err == nil && own.Data.Own == o.ID {
		others, err := agents().Count(ctx, tx, o.Tenant, store.Filter{Parent: own.ID})
		if err != nil {
			return err
		}
		if others == 0 {
			if err := deletePolicy(ctx, tx, own); err != nil {
				return err
			}
		}
	}
	for _, kind := range []string{"rule", "denial", "approval"} {
		if err := deleteAll(ctx, tx, store.Of[json.RawMessage](kind), o.Tenant, o.ID); err != nil {
			return err
		}
	}
	return nil
}

// deleteAll removes all objects of a kind that belong to a parent.
func deleteAll[T any](ctx context.Context, tx *store.DB, c store.Collection[T], tenant, parent string) error {
	var ids []string
	err := every(ctx, tx, c, tenant, store.Filter{Parent: parent}, func(o store.Object[T]) error {
		ids = append(ids, o.ID)
		return nil
	})
	for _, id := range ids {
		if err == nil {
			err = c.Delete(ctx, tx, tenant, id, 0)
		}
	}
	return err
}

// EffectivePolicy returns the document that is in force for an agent: its policy, its Git profiles, its reviewers' rules.
func (s *Service) EffectivePolicy(ctx context.Context, a Actor, agent string) (string, error) {
	if err := may(a, ReadPolicies); err != nil {
		return "", err
	}
	o, err := s.agent(ctx, s.DB, a.Tenant, agent)
	if err != nil {
		return "", err
	}
	doc, _, err := s.effective(ctx, a.Tenant, o, "")
	return doc, err
}

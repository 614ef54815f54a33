package server

import (
	"context"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/control"
)

func (s *Server) agentOperations() []operation {
	return []operation{
		op("GET", "/agents", "list-agents", "Agents by name", control.ReadAgents, func(ctx context.Context, c *call, in *Pages) (api.Page[api.Agent], error) {
			return listed(s.control.Agents(ctx, c.actor, in.page()))
		}),
		op("POST", "/agents", "create-agent", "Provision an agent; without a policy it may reach nothing", control.WriteAgents,
			func(ctx context.Context, c *call, in *body[api.NewAgent]) (api.Agent, error) {
				return s.control.CreateAgent(ctx, c.actor, in.Body)
			}).making(),
		op("GET", "/agents/{id}", "get-agent", "One agent, by identifier or name", control.ReadAgents, func(ctx context.Context, c *call, in *ByID) (api.Agent, error) {
			return s.control.Agent(ctx, c.actor, in.ID)
		}),
		op("PATCH", "/agents/{id}", "change-agent", "Change an agent; another policy is in force at once, suspending ends its sandboxes", control.WriteAgents,
			func(ctx context.Context, c *call, in *change[api.AgentChange]) (api.Agent, error) {
				return s.control.ChangeAgent(ctx, c.actor, in.ID, c.version, in.Body)
			}).versioned(versionOptional),
		act("DELETE", "/agents/{id}", "delete-agent", "Remove an agent that has no sandbox", control.WriteAgents, func(ctx context.Context, c *call, in *ByID) error {
			return s.control.DeleteAgent(ctx, c.actor, in.ID)
		}),
		op("GET", "/agents/{id}/policy", "get-effective-policy", "The document in force for an agent: its policy, its Git profiles, its reviewers' rules", control.ReadPolicies,
			func(ctx context.Context, c *call, in *ByID) (api.EffectivePolicy, error) {
				text, err := s.control.EffectivePolicy(ctx, c.actor, in.ID)
				return api.EffectivePolicy{Text: text}, err
			}),
	}
}

type (
	oneVersion struct {
		ByID
		Number int `path:"number" minimum:"1"`
	}
	versionPages struct {
		ByID
		Pages
	}
	twoVersions struct {
		ByID
		From int `query:"from" required:"true" minimum:"1"`
		To   int `query:"to" required:"true" minimum:"1"`
	}
)

func (s *Server) policyOperations() []operation {
	return []operation{
		op("GET", "/policies", "list-policies", "Policies by name, without their text", control.ReadPolicies, func(ctx context.Context, c *call, in *Pages) (api.Page[api.Policy], error) {
			return listed(s.control.Policies(ctx, c.actor, in.page()))
		}),
		op("POST", "/policies", "create-policy", "Store a policy", control.WritePolicies, func(ctx context.Context, c *call, in *body[api.NewPolicy]) (api.Policy, error) {
			return s.control.CreatePolicy(ctx, c.actor, in.Body)
		}).making(),
		op("POST", "/policies/check", "check-policy", "What is wrong with a document", control.ReadPolicies, func(ctx context.Context, c *call, in *body[api.PolicyText]) (api.PolicyCheck, error) {
			return s.control.CheckPolicy(ctx, c.actor, in.Body)
		}).without(),
		op("POST", "/policies/explain", "explain-policy", "What is decided about a destination, and why", control.ReadPolicies,
			func(ctx context.Context, c *call, in *body[api.ExplainRequest]) (api.Page[api.Explanation], error) {
				return whole(s.control.Explain(ctx, c.actor, in.Body))
			}).without(),
		op("GET", "/policies/{id}", "get-policy", "One policy, by identifier or name", control.ReadPolicies, func(ctx context.Context, c *call, in *ByID) (api.Policy, error) {
			return s.control.Policy(ctx, c.actor, in.ID)
		}),
		op("PATCH", "/policies/{id}", "change-policy", "Make a new version, in force at once in all sandboxes under it; or rename the policy", control.WritePolicies,
			func(ctx context.Context, c *call, in *change[api.PolicyChange]) (api.Policy, error) {
				return s.control.ChangePolicy(ctx, c.actor, in.ID, c.version, in.Body)
			}).versioned(versionNeeded),
		act("DELETE", "/policies/{id}", "delete-policy", "Remove a policy that no agent has", control.WritePolicies, func(ctx context.Context, c *call, in *ByID) error {
			return s.control.DeletePolicy(ctx, c.actor, in.ID)
		}),
		op("GET", "/policies/{id}/versions", "list-policy-versions", "Versions, newest first", control.ReadPolicies,
			func(ctx context.Context, c *call, in *versionPages) (api.Page[api.PolicyVersion], error) {
				return listed(s.control.PolicyVersions(ctx, c.actor, in.ID, in.page()))
			}),
		op("GET", "/policies/{id}/versions/{number}", "get-policy-version", "One version", control.ReadPolicies, func(ctx context.Context, c *call, in *oneVersion) (api.PolicyVersion, error) {
			return s.control.PolicyVersion(ctx, c.actor, in.ID, in.Number)
		}),
		op("GET", "/policies/{id}/diff", "diff-policy", "A unified diff of two versions", control.ReadPolicies, func(ctx context.Context, c *call, in *twoVersions) (api.PolicyDiff, error) {
			text, err := s.control.DiffPolicy(ctx, c.actor, in.ID, in.From, in.To)
			return api.PolicyDiff{Diff: text}, err
		}),
		op("POST", "/policies/{id}/replay", "replay-policy", "What another text would have decided about recorded crossings", control.ReadPolicies,
			func(ctx context.Context, c *call, in *change[api.ReplayRequest]) (api.Replay, error) {
				return s.control.Replay(ctx, c.actor, in.ID, in.Body)
			}).without().and(control.ReadAudit),
	}
}

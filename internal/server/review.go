package server

import (
	"context"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/control"
)

type (
	denialList struct {
		Pages
		Agent string   `query:"agent" maxLength:"100"`
		State []string `query:"state,explode" maxItems:"10" doc:"open, allowed, refused, dismissed"`
	}
	approvalList struct {
		Pages
		Waiting bool `query:"waiting" doc:"only those that wait"`
	}
	ruleList struct {
		Pages
		Agent string   `query:"agent" maxLength:"100"`
		State []string `query:"state,explode" maxItems:"10" doc:"proposed, active, used, expired, revoked, rejected"`
	}
)

func (l denialList) states() []api.DenialState {
	var states []api.DenialState
	for _, s := range l.State {
		states = append(states, api.DenialState(s))
	}
	return states
}

func (s *Server) reviewOperations() []operation {
	return []operation{
		op("GET", "/denials", "list-denials", "Groups of denials, the latest first", control.ReadReview, func(ctx context.Context, c *call, in *denialList) (api.Page[api.Denial], error) {
			return listed(s.control.Denials(ctx, c.actor, in.Agent, in.states(), in.page()))
		}),
		op("GET", "/denials/{id}", "get-denial", "One group, with the narrowest rule and what it would have allowed", control.ReadReview, func(ctx context.Context, c *call, in *ByID) (api.Denial, error) {
			return s.control.Denial(ctx, c.actor, in.ID)
		}),
		op("POST", "/denials/{id}/decide", "decide-denial", "Answer a denial; in force within a second", control.DecideReview, func(ctx context.Context, c *call, in *change[api.Decide]) (api.Decision, error) {
			return s.control.DecideDenial(ctx, c.actor, in.ID, in.Body)
		}),
		op("GET", "/approvals", "list-approvals", "Crossings that wait for a person, or waited", control.ReadReview, func(ctx context.Context, c *call, in *approvalList) (api.Page[api.Approval], error) {
			return listed(s.control.Approvals(ctx, c.actor, in.Waiting, in.page()))
		}),
		op("GET", "/approvals/{id}", "get-approval", "One crossing that waits", control.ReadReview, func(ctx context.Context, c *call, in *ByID) (api.Approval, error) {
			return s.control.Approval(ctx, c.actor, in.ID)
		}),
		op("POST", "/approvals/{id}/decide", "decide-approval", "Answer a crossing that waits", control.DecideReview, func(ctx context.Context, c *call, in *change[api.Decide]) (api.Decision, error) {
			return s.control.DecideApproval(ctx, c.actor, in.ID, in.Body)
		}),
		op("GET", "/rules", "list-rules", "Reviewers' rules", control.ReadReview, func(ctx context.Context, c *call, in *ruleList) (api.Page[api.Rule], error) {
			return listed(s.control.Rules(ctx, c.actor, in.Agent, in.State, in.page()))
		}),
		op("POST", "/rules/check", "check-rule", "What a rule would widen, and what it would have allowed", control.ReadReview, func(ctx context.Context, c *call, in *body[api.RuleText]) (api.Suggestion, error) {
			return s.control.CheckRule(ctx, c.actor, in.Body.Agent, in.Body.Rule)
		}).without(),
		op("POST", "/rules/{id}/approve", "approve-rule", "The second person's yes", control.DecideReview, func(ctx context.Context, c *call, in *ByID) (api.Rule, error) {
			return s.control.ApproveRule(ctx, c.actor, in.ID)
		}),
		op("POST", "/rules/{id}/revoke", "revoke-rule", "End a rule, or reject a proposed one; what it allowed is cut", control.DecideReview, func(ctx context.Context, c *call, in *ByID) (api.Rule, error) {
			return s.control.RevokeRule(ctx, c.actor, in.ID)
		}),
	}
}

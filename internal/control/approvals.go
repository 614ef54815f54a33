package control

import (
	"context"
	"errors"
	"fmt"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/audit"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/ident"
	"github.com/cofferdam/cofferdam/internal/keeper"
	"github.com/cofferdam/cofferdam/internal/policy"
	"github.com/cofferdam/cofferdam/internal/review"
	"github.com/cofferdam/cofferdam/internal/store"
)

// Approvals lists crossings that wait, or waited, the newest first.
func (s *Service) Approvals(ctx context.Context, a Actor, waiting bool, p Page) (api.Page[api.Approval], error) {
	var out api.Page[api.Approval]
	if err := may(a, ReadReview); err != nil {
		return out, err
	}
	f, err := p.filter()
	if err != nil {
		return out, err
	}
	if waiting {
		f.States = []string{approvalWaiting}
	}
	laws := s.laws(a.Tenant)
	return pageOf(ctx, s.DB, approvals(), a.Tenant, f, func(o store.Object[ApprovalData]) api.Approval {
		item := laws.approval(ctx, o)
		if o.State == approvalWaiting {
			item.Suggestion = laws.suggest(ctx, o.Parent, placeEvent(o.Data.Place, o.Data.Rule))
		}
		return item
	})
}

// Approval returns one with its suggestion.
func (s *Service) Approval(ctx context.Context, a Actor, id string) (api.Approval, error) {
	if err := may(a, ReadReview); err != nil {
		return api.Approval{}, err
	}
	o, err := s.approval(ctx, a.Tenant, id)
	if err != nil {
		return api.Approval{}, err
	}
	laws := s.laws(a.Tenant)
	item := laws.approval(ctx, o)
	item.Suggestion = laws.suggest(ctx, o.Parent, placeEvent(o.Data.Place, o.Data.Rule))
	return item, nil
}

func (s *Service) approval(ctx context.Context, tenant, id string) (store.Object[ApprovalData], error) {
	o, err := approvals().Get(ctx, s.DB, tenant, id)
	if fault.KindOf(err) == fault.NotFound {
		return o, absent("approval")
	}
	return o, err
}

// DecideApproval answers a crossing that waits. Of two answers the first counts.
func (s *Service) DecideApproval(ctx context.Context, a Actor, id string, in api.Decide) (api.Decision, error) {
	if err := may(a, DecideReview); err != nil {
		return api.Decision{}, err
	}
	o, err := s.approval(ctx, a.Tenant, id)
	if err != nil {
		return api.Decision{}, err
	}
	if o.State != approvalWaiting {
		return api.Decision{}, fault.New(fault.Conflict, "this does not wait any more: it is %s", o.State).WithHint("decide again when it happens again")
	}
	state, ok := map[string]string{"allow": approvalAllowed, "deny": approvalDenied}[in.Verdict]
	if !ok {
		return api.Decision{}, invalidVerdict("allow or deny")
	}
	if in.Verdict == "deny" && in.Scope == "" {
		in.Scope = api.Once
	}
	var made *store.Object[RuleData]
	switch in.Scope {
	case api.Once: // the keeper lets it pass, no rule is needed
		if in.Rule != "" {
			return api.Decision{}, fault.New(fault.Invalid, "rule: for this crossing alone there is none to write").WithHint("leave it out, or choose scope run or agent")
		}
	case api.ForRun, api.ForAgent:
		if made, err = s.ruleFrom(ctx, a, o.Parent, o.Data.Sandbox, placeEvent(o.Data.Place, o.Data.Rule), in); err != nil {
			return api.Decision{}, err
		}
		if made.State == ruleProposed {
			state = approvalWaiting // until the second person has agreed, or its time is over
		}
	default:
		return api.Decision{}, fault.New(fault.Invalid, "scope: there is no such scope").WithHint("write scope: once, run or agent")
	}
	return s.settleApproval(ctx, a, o, state, made, in)
}

// settleApproval stores an answer, puts its rule in force, and lets the crossing go on.
func (s *Service) settleApproval(ctx context.Context, a Actor, o store.Object[ApprovalData], state string, made *store.Object[RuleData], in api.Decide) (api.Decision, error) {
	detail := fmt.Sprintf("approval %s in sandbox %s: %s (%s)", o.ID, o.Data.Sandbox, in.Verdict, in.Scope)
	if made != nil {
		detail += "; rule " + made.Data.oneLine()
	}
	event := audit.Event{Kind: audit.ReviewDecided, Agent: o.Parent, Host: o.Data.Place.Host, Port: o.Data.Place.Port, Detail: detail}
	var settled store.Object[ApprovalData] // a transaction may be tried again: what it is given stays as it is
	var stored store.Object[RuleData]
	err := s.change(ctx, a, event, func(tx *store.DB) ([]store.Event, error) {
		now, err := approvals().Get(ctx, tx, a.Tenant, o.ID)
		if err != nil {
			return nil, err
		}
		if now.State != approvalWaiting {
			return nil, fault.New(fault.Conflict, "somebody else has decided this meanwhile, or it waits no more")
		}
		events := []store.Event{}
		if state != approvalWaiting {
			now.State, now.Data.DecidedBy = state, a.byline()
			if now, err = approvals().Update(ctx, tx, now); err != nil {
				return nil, err
			}
			events = append(events, store.Event{Type: "approval", Subject: o.ID, Agent: o.Parent, State: state})
		}
		settled = now
		if made != nil {
			if stored, err = rules().Insert(ctx, tx, *made); err != nil {
				return nil, err
			}
			events = append(events, store.Event{Type: "rule", Subject: stored.ID, Agent: stored.Parent, State: stored.State})
		}
		return events, nil
	})
	if err != nil {
		return api.Decision{}, err
	}
	out := api.Decision{InForce: []string{}}
	laws := s.laws(a.Tenant)
	if made != nil {
		r := laws.rule(ctx, stored)
		out.Rule = &r
	}
	item := laws.approval(ctx, settled)
	out.Approval = &item
	if state == approvalWaiting {
		return out, nil
	}
	out.InForce, err = s.carryOut(ctx, a, o, made != nil, in)
	return out, err
}

// carryOut lets a crossing that waits go on or not, and puts the rule that was made for it in force.
func (s *Service) carryOut(ctx context.Context, a Actor, o store.Object[ApprovalData], ruled bool, in api.Decide) ([]string, error) {
	inForce := []string{}
	// The crossing that waits is answered first: once the rule is in force, its keeper takes the question back.
	late := s.answer(ctx, o, keeper.Answer{
		Allow: in.Verdict == "allow", Rule: "approved:" + o.ID, Reason: a.byline() + " said " + in.Verdict + " (" + string(in.Scope) + ")",
	})
	if ruled {
		var err error
		if inForce, err = s.enforce(ctx, a.Tenant, o.Parent); err != nil {
			return inForce, errors.Join(err, late)
		}
	}
	if fault.KindOf(late) != fault.NotFound {
		return inForce, late
	}
	if ruled {
		settles, err := s.settles(ctx, o, in)
		if err != nil || settles {
			return inForce, err
		}
	}
	return inForce, fault.New(fault.Conflict, "the crossing does not wait any more").WithHint("decide again when it happens again")
}

// settles says whether what is in force now answers a crossing as a person did, so that nothing is lost where it does not wait any more.
func (s *Service) settles(ctx context.Context, o store.Object[ApprovalData], in api.Decide) (bool, error) {
	doc, _, err := s.effectiveFor(ctx, room{tenant: o.Tenant, agent: o.Parent, sandbox: o.Data.Sandbox})
	if err != nil {
		return false, err
	}
	law, err := policy.Parse("", []byte(doc))
	if err != nil {
		return false, err
	}
	e := placeEvent(o.Data.Place, o.Data.Rule)
	c, ok := policy.CrossingOf(e)
	if in.Verdict == "allow" {
		return review.Covers(law, e), nil
	}
	return ok && law.Decide(c).Verdict == policy.Deny, nil
}

// answer tells the keeper of a sandbox what was said.
func (s *Service) answer(ctx context.Context, o store.Object[ApprovalData], with keeper.Answer) error {
	run, err := ident.ParseRun(o.Data.Sandbox)
	if err != nil {
		return err
	}
	client, err := keeper.Dial(ctx, s.State, run)
	if err != nil {
		return err
	}
	return client.Answer(ctx, o.Data.Ask, with)
}

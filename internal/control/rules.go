package control

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/audit"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/store"
)

// Rules lists reviewers' rules, the newest first.
func (s *Service) Rules(ctx context.Context, a Actor, agent string, states []string, p Page) (api.Page[api.Rule], error) {
	var out api.Page[api.Rule]
	if err := may(a, ReadReview); err != nil {
		return out, err
	}
	f, err := s.ofAgent(ctx, a.Tenant, agent, p)
	if err != nil {
		return out, err
	}
	f.States = states
	laws := s.laws(a.Tenant)
	return pageOf(ctx, s.DB, rules(), a.Tenant, f, func(o store.Object[RuleData]) api.Rule { return laws.rule(ctx, o) })
}

// ApproveRule is the second person's yes to a rule that was proposed.
func (s *Service) ApproveRule(ctx context.Context, a Actor, id string) (api.Rule, error) {
	o, err := s.ruleToChange(ctx, a, id)
	switch {
	case err != nil:
		return api.Rule{}, err
	case o.State != ruleProposed:
		return api.Rule{}, fault.New(fault.Conflict, "the rule waits for nobody: it is %s", o.State)
	case o.Data.ProposedID == a.User:
		return api.Rule{}, fault.New(fault.Denied, "four eyes are wanted, and this rule is your own").WithHint("ask another reviewer")
	}
	o.Data.ApprovedBy = a.byline()
	return s.turnRule(ctx, a, o, ruleActive)
}

// RevokeRule ends a rule, or rejects one that was proposed. What it allowed is cut before RevokeRule returns.
func (s *Service) RevokeRule(ctx context.Context, a Actor, id string) (api.Rule, error) {
	o, err := s.ruleToChange(ctx, a, id)
	switch {
	case err != nil:
		return api.Rule{}, err
	case o.State == ruleProposed:
		return s.turnRule(ctx, a, o, ruleRejected)
	case o.State != ruleActive:
		return api.Rule{}, fault.New(fault.Conflict, "the rule is not in force: it is %s", o.State)
	}
	return s.turnRule(ctx, a, o, ruleRevoked)
}

func (s *Service) ruleToChange(ctx context.Context, a Actor, id string) (store.Object[RuleData], error) {
	if err := may(a, DecideReview); err != nil {
		return store.Object[RuleData]{}, err
	}
	o, err := rules().Get(ctx, s.DB, a.Tenant, id)
	if fault.KindOf(err) == fault.NotFound {
		return o, absent("rule")
	}
	return o, err
}

// turnRule brings a rule into another state, and that in force.
func (s *Service) turnRule(ctx context.Context, a Actor, o store.Object[RuleData], state string) (api.Rule, error) {
	o.State = state
	event := audit.Event{Kind: audit.ReviewDecided, Agent: o.Parent, Detail: fmt.Sprintf("rule %s is %s; %s", o.ID, state, o.Data.oneLine())}
	var turned store.Object[RuleData] // a transaction may be tried again: what it is given stays as it is
	err := s.change(ctx, a, event, func(tx *store.DB) ([]store.Event, error) {
		var err error
		if turned, err = rules().Update(ctx, tx, o); err != nil {
			return nil, err
		}
		events := []store.Event{{Type: "rule", Subject: o.ID, Agent: o.Parent, State: o.State}}
		denial, err := s.turnDenial(ctx, tx, o)
		return append(events, denial...), err
	})
	if err != nil {
		return api.Rule{}, err
	}
	if state != ruleRejected {
		if _, err := s.enforce(ctx, a.Tenant, o.Parent); err != nil {
			return api.Rule{}, err
		}
	}
	return s.laws(a.Tenant).rule(ctx, turned), nil
}

// turnDenial keeps the denial from which a rule came in step: it is decided once the rule is in force, and open again once a refusal was taken back.
func (s *Service) turnDenial(ctx context.Context, tx *store.DB, o store.Object[RuleData]) ([]store.Event, error) {
	if o.Data.Denial == "" {
		return nil, nil
	}
	d, err := denials().Get(ctx, tx, o.Tenant, o.Data.Denial)
	if fault.KindOf(err) == fault.NotFound {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	switch {
	case o.State == ruleActive && o.Data.Verdict == "allow":
		d.State, d.Data.DecidedBy = string(api.Allowed), o.Data.ProposedBy+", "+o.Data.ApprovedBy
	case o.State == ruleRevoked && d.State == string(api.Refused):
		d.State = string(api.Dismissed) // it opens again when it happens again
	default:
		return nil, nil
	}
	if _, err := denials().Update(ctx, tx, d); err != nil {
		return nil, err
	}
	return []store.Event{{Type: "denial", Subject: d.ID, Agent: d.Parent, State: d.State}}, nil
}

// endRule brings a rule to its end without anybody's doing.
func (s *Service) endRule(ctx context.Context, tx *store.DB, tenant, id, state string) error {
	o, err := rules().Get(ctx, tx, tenant, id)
	if fault.KindOf(err) == fault.NotFound || err == nil && o.State != ruleActive && o.State != ruleProposed {
		return nil
	}
	if err != nil {
		return err
	}
	o.State = state
	if _, err := rules().Update(ctx, tx, o); err != nil {
		return err
	}
	_, err = tx.Emit(ctx, store.Event{Tenant: tenant, Type: "rule", Subject: id, Agent: o.Parent, State: state, Time: s.now()})
	return err
}

// expireRules ends rules whose time is over, and cuts what only they allowed. A rule does not hold beyond its time even where this comes late, since
// whoever composes a policy looks at the clock too.
func (s *Service) expireRules(ctx context.Context, now time.Time) error {
	over := map[string][]string{} // agents by tenant
	err := every(ctx, s.DB, rules(), store.AnyTenant, store.Filter{States: []string{ruleActive}}, func(o store.Object[RuleData]) error {
		if o.Data.Until.IsZero() || now.Before(o.Data.Until) {
			return nil
		}
		end := func(tx *store.DB) error { return s.endRule(ctx, tx, o.Tenant, o.ID, ruleExpired) }
		if err := s.DB.Within(ctx, end); err != nil {
			return err
		}
		if !slices.Contains(over[o.Tenant], o.Parent) {
			over[o.Tenant] = append(over[o.Tenant], o.Parent)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("look for rules whose time is over: %w", err)
	}
	for tenant, agents := range over {
		if _, err := s.enforce(ctx, tenant, agents...); err != nil {
			return err
		}
	}
	return nil
}

package control

import (
	"context"
	"time"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/keeper"
	"github.com/cofferdam/cofferdam/internal/store"
)

// room is a live sandbox as what watches it knows it.
type room struct{ tenant, agent, sandbox string }

// onAsk notes a crossing that waits for a person. It may be told of one more than once: a service that comes back asks for all that wait.
func (s *Service) onAsk(ctx context.Context, in room, ask keeper.Ask) error {
	data := ApprovalData{
		Sandbox: in.sandbox, Ask: ask.ID, Rule: ask.Rule, Process: ask.Process, Deadline: ask.Deadline,
		Place: api.Place{Protocol: ask.Protocol, Host: ask.Host, Address: ask.Address, Port: ask.Port, Method: ask.Method, Path: ask.Path},
	}
	err := s.DB.Within(ctx, func(tx *store.DB) error {
		o, err := approvals().Insert(ctx, tx, store.Object[ApprovalData]{
			Tenant: in.tenant, Name: askName(in.sandbox, ask.ID), Parent: in.agent, State: approvalWaiting, Data: data,
		})
		if err != nil {
			return err
		}
		_, err = tx.Emit(ctx, store.Event{Tenant: in.tenant, Type: "approval", Subject: o.ID, Agent: in.agent, State: o.State, Time: s.now()})
		return err
	})
	if fault.KindOf(err) == fault.Conflict {
		return nil // known
	}
	return err
}

func askName(sandbox, ask string) string { return sandbox + "/" + ask }

// onWithdrawn notes that a crossing waits no more, where nobody has answered it here.
func (s *Service) onWithdrawn(ctx context.Context, in room, ask string) error {
	return s.DB.Within(ctx, func(tx *store.DB) error {
		o, err := approvals().ByName(ctx, tx, in.tenant, askName(in.sandbox, ask))
		if fault.KindOf(err) == fault.NotFound {
			return nil
		}
		if err != nil {
			return err
		}
		return s.withdraw(ctx, tx, o)
	})
}

// onUsed notes that a rule for one crossing was used up. It may be told so more than once.
func (s *Service) onUsed(ctx context.Context, in room, rule string) error {
	return s.DB.Within(ctx, func(tx *store.DB) error { return s.endRule(ctx, tx, in.tenant, rule, ruleUsed) })
}

// onGone ends what held for a sandbox alone, in the transaction in which that ends: nothing of it waits any more, and no rule is left that names it.
func (s *Service) onGone(ctx context.Context, tx *store.DB, in room) error {
	waiting := store.Filter{Parent: in.agent, States: []string{approvalWaiting}}
	err := every(ctx, tx, approvals(), in.tenant, waiting, func(o store.Object[ApprovalData]) error {
		if o.Data.Sandbox != in.sandbox {
			return nil
		}
		return s.withdraw(ctx, tx, o)
	})
	if err != nil {
		return err
	}
	open := store.Filter{Parent: in.agent, States: []string{ruleActive, ruleProposed}}
	return every(ctx, tx, rules(), in.tenant, open, func(o store.Object[RuleData]) error {
		if o.Data.Sandbox != in.sandbox {
			return nil
		}
		return s.endRule(ctx, tx, in.tenant, o.ID, ruleExpired)
	})
}

// withdraw ends a wait. The keeper withdraws at the deadline by its own clock, so a second is not counted.
func (s *Service) withdraw(ctx context.Context, tx *store.DB, o store.Object[ApprovalData]) error {
	if o.State != approvalWaiting {
		return nil
	}
	o.State = approvalWithdrawn
	if !s.now().Before(o.Data.Deadline.Add(-time.Second)) {
		o.State = approvalExpired
	}
	if _, err := approvals().Update(ctx, tx, o); err != nil {
		return err
	}
	_, err := tx.Emit(ctx, store.Event{Tenant: o.Tenant, Type: "approval", Subject: o.ID, Agent: o.Parent, State: o.State, Time: s.now()})
	return err
}

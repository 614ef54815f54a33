package main

import (
	"context"
	"time"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/gateway"
	"github.com/cofferdam/cofferdam/internal/keeper"
	"github.com/cofferdam/cofferdam/internal/policy"
)

// law is a policy, without rules for one crossing.
type law struct {
	policy *policy.Policy
	own    []string // the environment of commands that are started under it
	hash   string
}

// plan is what is in force, and what takes its place by itself: what holds until a time ends then, also while no service is there to say so.
type plan struct {
	law
	later []laterLaw // the earliest first
	once  []gateway.Once
}

type laterLaw struct {
	at time.Time
	law
}

// next is when the law changes by itself; zero: never.
func (p plan) next() time.Time {
	if len(p.later) == 0 {
		return time.Time{}
	}
	return p.later[0].at
}

// at is the plan as it is at a time.
func (p plan) at(now time.Time) plan {
	for len(p.later) > 0 && !now.Before(p.later[0].at) {
		p.law, p.later = p.later[0].law, p.later[1:]
	}
	return p
}

// parsePlan reads a document and those that come after it.
func parsePlan(spec keeper.Spec, document string, then []keeper.Later, mode policy.WorkspaceMode) (plan, error) {
	var p plan
	var err error
	if p.law, err = parseLaw(spec, document, mode); err != nil {
		return p, err
	}
	if len(then) > keeper.MaxLater {
		return p, fault.New(fault.Invalid, "%d policies are to come into force later, and %d can", len(then), keeper.MaxLater)
	}
	for _, l := range then {
		if l.At.IsZero() || len(p.later) > 0 && !l.At.After(p.later[len(p.later)-1].at) {
			return p, fault.New(fault.Invalid, "the times at which policies come into force do not go up")
		}
		next, err := parseLaw(spec, l.Policy, mode)
		if err != nil {
			return p, err
		}
		p.later = append(p.later, laterLaw{l.At, next})
	}
	return p, nil
}

func parseLaw(spec keeper.Spec, document string, mode policy.WorkspaceMode) (law, error) {
	p, err := keptPolicy(spec, document, mode)
	if err != nil {
		return law{}, err
	}
	own, err := keptEnvironment(spec, p)
	return law{policy: p, own: own, hash: hashOf(document)}, err
}

// fit says what of a plan the running sandbox cannot have.
func (k *keeping) fit(p plan) error {
	err := k.fits(p.policy)
	for _, l := range p.later {
		if err == nil {
			err = k.fits(l.policy)
		}
	}
	return err
}

// enforce puts in force what a plan says for this moment; k.mu is held.
func (k *keeping) enforce(p plan) error {
	p = p.at(time.Now())
	if err := k.gateway.SetPolicyOnce(p.policy, p.once...); err != nil {
		return err
	}
	k.plan = p
	for a := range k.asking { // what is not to be asked about any more need not wait
		if p.policy.Decide(a.crossing).Verdict != policy.Ask {
			a.decided()
		}
	}
	k.setTurn()
	return nil
}

// maxTurn is how long the clock of a plan is left alone at most: the machine's clock can be set, and the machine sleep.
const maxTurn = 10 * time.Second

// startTurns has the plan followed from now on. The returned function stops that.
func (k *keeping) startTurns() (stop func(), err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.fit(k.plan); err != nil {
		return nil, err
	}
	k.turns = time.AfterFunc(time.Hour, k.turn)
	stop = func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		k.turns.Stop()
		k.turns = nil
	}
	if err := k.enforce(k.plan); err != nil { // some time has passed since it was made
		k.turns.Stop()
		return nil, err
	}
	return stop, nil
}

// setTurn sets the timer to the next change; k.mu is held.
func (k *keeping) setTurn() {
	if k.turns == nil {
		return
	}
	k.turns.Stop()
	if next := k.plan.next(); !next.IsZero() {
		k.turns.Reset(min(time.Until(next), maxTurn))
	}
}

// turn puts in force what comes next, if its time has come.
func (k *keeping) turn() {
	k.mu.Lock()
	defer k.mu.Unlock()
	next := k.plan.next()
	if k.turns == nil || next.IsZero() || time.Now().Before(next) {
		k.setTurn()
		return
	}
	if err := k.enforce(k.plan); err != nil { // a rule for one crossing does not go together with it: closed without them all
		k.say.trouble(err, "")
		p := k.plan
		p.once = nil
		err = k.enforce(p)
		if err != nil { // without them nothing can be wrong; if it is, nothing may go on
			k.kill("killed: its policy cannot be changed")
		}
	}
}

// SetPolicy puts another policy in force, unless it needs what only a sandbox made anew can have: this process opened what it lends and gave up its rights.
func (k *keeping) SetPolicy(_ context.Context, n keeper.NewPolicy) error {
	once, err := onceRules(n.Once)
	if err != nil {
		return err
	}
	var p plan
	if !n.Keep {
		if p, err = parsePlan(k.spec, n.Policy, n.Then, k.settled.mode); err != nil {
			return err
		}
		if err := k.fit(p); err != nil {
			return err
		}
	} else if n.Policy != "" || len(n.Then) > 0 {
		return fault.New(fault.Invalid, "the policy in force is to stay, and there is another")
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if n.Keep {
		p = k.plan
	}
	p.once = once
	return k.enforce(p)
}

package gateway

import (
	"slices"
	"sync"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/policy"
)

// maxSpent bounds the names that are remembered of once-rules that were used. There is one for each that a person approved for this sandbox; where they are
// so many, no more are taken.
const maxSpent = 1 << 16

// Once allows one crossing. While it waits for that it is part of the policy in force, by which names are answered and TLS is inspected; what a rule of the
// policy denies stays denied.
type Once struct {
	// Name is what the crossing's record calls the rule; it must differ from the names of all others. One that was used is not used again under this name,
	// whoever sets it: that it was used may not have come to be known.
	Name    string
	Snippet policy.Snippet

	set uint64 // the call that brought it
}

// over returns a policy with the rule on top.
func (o *Once) over(p *policy.Policy) (*policy.Policy, error) {
	options := policy.Options{Networks: o.Snippet.Networks}
	for _, r := range o.Snippet.Rules {
		r.Name = o.Name
		options.Rules = append(options.Rules, r)
	}
	return p.Extend(options)
}

// check refuses what could not be used once.
func (o *Once) check(p *policy.Policy, others []Once) error {
	taken := slices.ContainsFunc(others, func(other Once) bool { return other.Name == o.Name }) ||
		slices.ContainsFunc(p.Rules(), func(r policy.Rule) bool { return r.Name == o.Name })
	switch {
	case o.Name == "" || taken:
		return fault.New(fault.Invalid, "the name %.80q of a rule for one crossing is missing or taken", o.Name)
	case len(o.Snippet.Rules) == 0:
		return fault.New(fault.Invalid, "the rule %.80q for one crossing names no crossing", o.Name).WithHint("networks alone open for good: put them into the policy")
	case slices.ContainsFunc(o.Snippet.Rules, func(r policy.Rule) bool { return r.Verdict != policy.Allow }):
		return fault.New(fault.Invalid, "the rule %.80q for one crossing does not allow it", o.Name)
	}
	return nil
}

// together returns a policy with rules on top.
func together(base *policy.Policy, once []Once) (law *policy.Policy, err error) {
	law = base
	for i := range once {
		if law, err = once[i].over(law); err != nil {
			return nil, err
		}
	}
	return law, nil
}

// onceRules are the rules that wait to be used.
type onceRules struct {
	mu      sync.Mutex
	base    *policy.Policy // without them
	sets    uint64         // how often they were replaced
	waiting []Once
	spent   map[string]struct{} // the names of those that were used, for the gateway's life
}

// set puts a policy and its once-rules in force, but for those that were used.
func (r *onceRules) set(g *Gateway, base *policy.Policy, once []Once) error {
	for i := range once {
		if err := once[i].check(base, once[:i]); err != nil {
			return err
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(once) > 0 && len(r.spent)+len(once) > maxSpent {
		return fault.New(fault.TooMany, "%d rules for one crossing were used already", len(r.spent)).WithHint("end the sandbox and start another")
	}
	// Under the lock: one that is used in this moment is among the spent or among those that wait, never back again.
	waiting := slices.DeleteFunc(slices.Clone(once), func(o Once) bool { _, spent := r.spent[o.Name]; return spent })
	for i := range waiting {
		waiting[i].set = r.sets + 1
	}
	if err := r.put(g, base, waiting); err != nil {
		return err
	}
	r.sets++
	return nil
}

// put changes what is in force; r.mu is held.
func (r *onceRules) put(g *Gateway, base *policy.Policy, waiting []Once) error {
	law, err := together(base, waiting)
	if err != nil {
		return err
	}
	r.base, r.waiting = base, waiting
	g.policy.Store(law)
	return nil
}

// decide judges a crossing by the policy in force, which it returns, and uses the once-rule up that allows it.
func (r *onceRules) decide(g *Gateway, c policy.Crossing) (d policy.Decision, law *policy.Policy, used *Once) {
	law = g.policy.Load()
	if d = law.Decide(c); d.Verdict != policy.Allow {
		return d, law, nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if now := g.policy.Load(); now != law { // the rule may have been used meanwhile
		law = now
		if d = law.Decide(c); d.Verdict != policy.Allow {
			return d, law, nil
		}
	}
	i := slices.IndexFunc(r.waiting, func(o Once) bool { return o.Name == d.Rule })
	if i < 0 {
		return d, law, nil
	}
	one := r.waiting[i]
	if err := r.put(g, r.base, slices.Delete(slices.Clone(r.waiting), i, i+1)); err != nil {
		return policy.Decision{Rule: policy.RuleDefault, Reason: "the rule for one crossing cannot be used up"}, law, nil
	}
	if r.spent == nil {
		r.spent = map[string]struct{}{}
	}
	r.spent[one.Name] = struct{}{}
	return d, g.policy.Load(), &one
}

// giveBack has a rule wait again whose crossing did not happen, unless other rules took the place of all: then it can be set again.
func (r *onceRules) giveBack(g *Gateway, used *Once) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.spent, used.Name)
	if used.set == r.sets {
		_ = r.put(g, r.base, append(slices.Clone(r.waiting), *used)) // what cannot be put back is gone: that is the closed side
	}
}

package control

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/keeper"
	"github.com/cofferdam/cofferdam/internal/policy"
	"github.com/cofferdam/cofferdam/internal/store"
)

// atOnceMost is how many keepers are spoken with at the same time.
const atOnceMost = 16

// atOnce does something for many sandboxes, several at a time, and returns when all are done.
func atOnce(list []room, do func(in room) error) error {
	var wg sync.WaitGroup
	errs := make([]error, len(list))
	places := make(chan struct{}, atOnceMost)
	for i, in := range list {
		places <- struct{}{}
		wg.Go(func() {
			defer func() { <-places }()
			errs[i] = do(in)
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// enforce puts what is in force for agents now into force in every live sandbox of theirs, and returns those in which it is when enforce returns. A sandbox
// that cannot have it goes on as it is only if that is no less strict, and is stopped otherwise.
func (s *Service) enforce(ctx context.Context, tenant string, agentIDs ...string) ([]string, error) {
	ctx = context.WithoutCancel(ctx) // what was decided is enforced, whoever still waits for it
	list, err := s.liveOf(ctx, tenant, agentIDs...)
	if err != nil {
		return nil, err
	}
	var mu sync.Mutex
	done := []string{}
	err = atOnce(list, func(in room) error {
		err := s.enforceOne(ctx, in)
		switch {
		case err == nil:
			mu.Lock()
			defer mu.Unlock()
			done = append(done, in.sandbox)
			return nil
		case errors.Is(err, errNotInForce):
			return nil // the sandbox says so itself, and what else went wrong is in the log
		}
		return err
	})
	slices.Sort(done)
	return done, err
}

// errNotInForce says that a sandbox goes on under an older, no less lenient policy, or ends.
var errNotInForce = errors.New("the policy is not in force in this sandbox")

// enforceOne puts into force in one sandbox what is in force for its agent now.
func (s *Service) enforceOne(ctx context.Context, in room) error {
	done := s.house.turn(in.sandbox)
	defer done()
	o, err := sandboxes().Get(ctx, s.DB, in.tenant, in.sandbox)
	if err != nil {
		return fmt.Errorf("sandbox %s: %w", in.sandbox, err)
	}
	if o.State != string(api.Running) {
		return errNotInForce // who is starting it does this once it runs
	}
	l, err := s.ordersFor(ctx, in)
	if err != nil {
		return s.stopUnruly(ctx, in, fmt.Errorf("what is in force for it cannot be told: %w", err))
	}
	doc := l.doc
	if err := folderFits(o.Data, doc); err != nil {
		return s.stopUnruly(ctx, in, err)
	}
	err = s.setPolicy(ctx, in, keeper.NewPolicy{Policy: doc, Then: l.then, Once: l.once})
	switch {
	case err == nil:
		return s.noteInForce(ctx, in, o, doc)
	case fault.KindOf(err) == fault.NotFound:
		return errNotInForce // it has ended
	case fault.KindOf(err) == fault.Conflict && onlyWidens(o.Data.Policy, doc):
		// The rules for one crossing are set anew all the same: one may have been revoked.
		if again := s.setPolicy(ctx, in, keeper.NewPolicy{Keep: true, Once: l.once}); again != nil {
			return s.stopUnruly(ctx, in, again)
		}
		return errors.Join(errNotInForce, s.noteStale(ctx, in, "it goes on under an older policy: "+inert(fault.Public(err))))
	}
	return s.stopUnruly(ctx, in, err)
}

func (s *Service) noteStale(ctx context.Context, in room, why string) error {
	_, err := s.changeSandbox(ctx, in, func(o *store.Object[SandboxData]) bool {
		changed := o.Data.Stale != why
		o.Data.Stale = why
		return changed
	})
	return err
}

// effectiveFor is effective for a sandbox.
func (s *Service) effectiveFor(ctx context.Context, in room) (string, []keeper.OnceRule, error) {
	l, err := s.ordersFor(ctx, in)
	return l.doc, l.once, err
}

func (s *Service) ordersFor(ctx context.Context, in room) (orders, error) {
	agent, err := agents().Get(ctx, s.DB, in.tenant, in.agent)
	if err != nil {
		return orders{}, err
	}
	return s.orders(ctx, in.tenant, agent, in.sandbox, "")
}

func (s *Service) setPolicy(ctx context.Context, in room, p keeper.NewPolicy) error {
	ctx, stop := context.WithTimeout(ctx, stopTime)
	defer stop()
	client, err := keeper.Dial(ctx, s.State, in.run())
	if err != nil {
		return err
	}
	return client.SetPolicy(ctx, p)
}

// noteInForce takes note of the document that is in force now, and has the sandbox end no later than that lets it.
func (s *Service) noteInForce(ctx context.Context, in room, o store.Object[SandboxData], doc string) error {
	o.Data.Policy = doc
	last, err := lastMoment(o.Data)
	if err != nil {
		return err
	}
	shorten := !last.IsZero() && o.Data.Deadline.After(last)
	if shorten {
		if err := s.setDeadline(ctx, in, last); err != nil {
			return s.stopUnruly(ctx, in, err)
		}
	}
	_, err = s.changeSandbox(ctx, in, func(o *store.Object[SandboxData]) bool {
		changed := o.Data.Policy != doc || o.Data.Stale != "" || shorten
		o.Data.Policy, o.Data.Stale = doc, ""
		if shorten {
			o.Data.Deadline = last
		}
		return changed
	})
	return err
}

func (s *Service) setDeadline(ctx context.Context, in room, deadline time.Time) error {
	ctx, stop := context.WithTimeout(ctx, stopTime)
	defer stop()
	client, err := keeper.Dial(ctx, s.State, in.run())
	if err == nil {
		err = client.SetDeadline(ctx, keeper.NewDeadline{Deadline: deadline})
	}
	if fault.KindOf(err) == fault.NotFound {
		return nil // it has ended
	}
	return err
}

// stopUnruly ends a sandbox in which what was decided cannot be put in force: it might be stricter than what is.
func (s *Service) stopUnruly(ctx context.Context, in room, cause error) error {
	s.Log.Error("a policy cannot be put in force: the sandbox is stopped", "sandbox", in.sandbox, "error", cause)
	reason := "its policy changed, and cannot be changed while it runs: " + inert(fault.Public(cause))
	if fault.KindOf(cause) != fault.Unavailable && !errors.Is(cause, context.DeadlineExceeded) {
		return errors.Join(s.stop(ctx, in, reason), errNotInForce)
	}
	// Its keeper had its time to answer.
	return errors.Join(s.markStopping(ctx, in, reason), s.kill(ctx, in), errNotInForce)
}

// onlyWidens says whether a policy allows at least what the one before does, as far as it can be told by comparing their entries: no rule that denies is new, none
// that allows or asks is gone, nor a network or a grant, the default is no more closed, and no limit is smaller. In doubt it is false.
func onlyWidens(before, after string) bool {
	old, err1 := policy.Parse("", []byte(before))
	grown, err2 := policy.Parse("", []byte(after))
	if err1 != nil || err2 != nil || old.ServesGit() || grown.ServesGit() || old.Default() > grown.Default() || grown.Resources().Smaller(old.Resources()) {
		return false
	}
	if !among(old.Networks(), grown.Networks()) || !among(placeless(old.Credentials()), placeless(grown.Credentials())) {
		return false
	}
	denials := func(r policy.Rule) bool { return r.Verdict == policy.Deny }
	others := func(r policy.Rule) bool { return r.Verdict != policy.Deny }
	earlier, later := nameless(old.Rules()), nameless(grown.Rules())
	return among(slices.DeleteFunc(slices.Clone(later), others), earlier) && among(slices.DeleteFunc(slices.Clone(earlier), denials), later)
}

// nameless is a list of rules without what does not matter to what they allow.
func nameless(rules []policy.Rule) []policy.Rule {
	out := slices.Clone(rules)
	for i := range out {
		out[i].Name, out[i].Line = "", 0
	}
	return out
}

// placeless is likewise for grants.
func placeless(credentials []policy.Credential) []policy.Credential {
	out := slices.Clone(credentials)
	for i := range out {
		out[i].Line = 0
	}
	return out
}

// among says whether every entry of a list is in another.
func among[T any](list, in []T) bool {
	for _, x := range list {
		if !slices.ContainsFunc(in, func(y T) bool { return reflect.DeepEqual(x, y) }) {
			return false
		}
	}
	return true
}

package control

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/keeper"
	"github.com/cofferdam/cofferdam/internal/policy"
	"github.com/cofferdam/cofferdam/internal/store"
)

const (
	// returnPause is how long after the end of a keeper's events it is looked for again.
	returnPause = 100 * time.Millisecond
	// usagePause is how often it is noted how much a sandbox has used, so that it is known at its end.
	usagePause = 5 * time.Second
)

// tend looks after one sandbox until it has ended and that is noted, or ctx ends.
func (s *Service) tend(ctx context.Context, in room) {
	for ctx.Err() == nil {
		done, err := s.attend(ctx, in)
		if done {
			return
		}
		wait := returnPause
		if err != nil && ctx.Err() == nil {
			s.Log.Error("look after a sandbox", "sandbox", in.sandbox, "error", err)
			wait = time.Second
		}
		pause(ctx, wait)
	}
}

// attend listens to a sandbox's keeper until that is gone. done says that nobody needs to look after the sandbox any more.
func (s *Service) attend(ctx context.Context, in room) (done bool, err error) {
	client, err := keeper.Dial(ctx, s.State, in.run())
	if fault.KindOf(err) == fault.NotFound {
		return s.bury(ctx, in)
	}
	if err != nil {
		return false, err
	}
	if done, err := s.adopt(ctx, in, client); done || err != nil {
		return done, err
	}
	listening, stop := context.WithCancel(ctx)
	defer stop()
	var wg sync.WaitGroup
	wg.Go(func() { s.measure(listening, in) })
	err = client.Events(listening, func(e keeper.Event) { s.hear(listening, in, e) })
	stop()
	wg.Wait()
	switch {
	case ctx.Err() != nil, fault.KindOf(err) == fault.Unavailable, fault.KindOf(err) == fault.NotFound:
		return false, nil // it has ended, or is looked for again
	}
	return false, err
}

// adopt makes sure that a sandbox whose keeper lives is as the store has it: running under what is in force now, or told to stop.
func (s *Service) adopt(ctx context.Context, in room, client *keeper.Client) (done bool, err error) {
	asking, cancel := context.WithTimeout(ctx, stopTime)
	defer cancel()
	status, err := client.Status(asking)
	if fault.KindOf(err) == fault.Unavailable {
		return false, nil // about to end; looked for again
	}
	if err != nil {
		return false, err
	}
	o, err := s.changeSandbox(ctx, in, func(o *store.Object[SandboxData]) bool {
		paused := o.Data.notePaused(status.Paused, s.now())
		if o.State != string(api.Starting) {
			return paused
		}
		o.State, o.Data.Started = string(api.Running), status.Started.UTC()
		return true
	})
	switch {
	case fault.KindOf(err) == fault.NotFound || err == nil && !alive(o):
		// A sandbox that the store does not have, or has ended: nobody can reach it, and nothing that runs is nobody's.
		return false, errors.Join(err, s.tellStop(ctx, in, "the service does not know this sandbox as alive"))
	case err != nil:
		return false, err
	case o.State == string(api.Stopping):
		return false, s.tellStop(ctx, in, o.Data.Reason)
	}
	if err := s.withdrawOthers(ctx, in, status.Asks); err != nil {
		return false, err
	}
	return false, s.confirm(ctx, in, o, status)
}

// withdrawOthers notes that questions of a sandbox do not wait any more that nobody heard the end of. Its keeper tells those that do.
func (s *Service) withdrawOthers(ctx context.Context, in room, waiting []keeper.Ask) error {
	var gone []string
	err := every(ctx, s.DB, approvals(), in.tenant, store.Filter{Parent: in.agent, States: []string{approvalWaiting}}, func(o store.Object[ApprovalData]) error {
		same := func(a keeper.Ask) bool { return a.ID == o.Data.Ask }
		if o.Data.Sandbox == in.sandbox && !slices.ContainsFunc(waiting, same) {
			gone = append(gone, o.Data.Ask)
		}
		return nil
	})
	for _, ask := range gone {
		err = errors.Join(err, s.onWithdrawn(ctx, in, ask))
	}
	return err
}

// confirm puts into force what is in force now, unless the keeper has it already.
func (s *Service) confirm(ctx context.Context, in room, o store.Object[SandboxData], status keeper.Status) error {
	l, err := s.ordersFor(ctx, in)
	if err != nil {
		return err // the store, or a policy that cannot be composed: tried again, and no less strict meanwhile than it was
	}
	if status.Policy == hashOf(l.doc) && status.Next.Equal(l.next()) && len(l.once) == 0 && o.Data.Policy == l.doc {
		return nil
	}
	if err := s.enforceOne(ctx, in); !errors.Is(err, errNotInForce) {
		return err
	}
	return nil
}

// hashOf is a document's hash as keepers tell it.
func hashOf(doc string) string {
	sum := sha256.Sum256([]byte(doc))
	return hex.EncodeToString(sum[:])
}

// hear takes note of what a keeper tells.
func (s *Service) hear(ctx context.Context, in room, e keeper.Event) {
	var err error
	switch {
	case e.Type == "ask" && e.Ask != nil:
		err = s.onAsk(ctx, in, *e.Ask)
	case e.Type == "withdrawn":
		err = s.onWithdrawn(ctx, in, e.ID)
	case e.Type == "used":
		err = s.onUsed(ctx, in, e.ID)
	}
	if err != nil && ctx.Err() == nil {
		s.Log.Error("take note of what a keeper tells", "sandbox", in.sandbox, "event", e.Type, "error", err)
	}
}

// measure notes now and then how much a sandbox has used, and ends it if its workspace outgrows the policy's bound for data on the disk: it lies on a disk
// of the service's, where the kernel bounds nothing. That is a soft bound; keepFloor is the hard one.
func (s *Service) measure(ctx context.Context, in room) {
	defer s.house.disk.forget(in.sandbox)
	next := usagePause
	for pause(ctx, next) {
		s.noteUsage(ctx, in)
		began := time.Now()
		if err := s.boundWorkspace(ctx, in); err != nil && ctx.Err() == nil {
			s.Log.Error("measure a workspace", "sandbox", in.sandbox, "error", err)
		}
		next = max(usagePause, 20*time.Since(began)) // a large tree is not all that this process looks at
	}
}

func (s *Service) boundWorkspace(ctx context.Context, in room) error {
	o, err := sandboxes().Get(ctx, s.DB, in.tenant, in.sandbox)
	if err != nil || o.State != string(api.Running) {
		return err
	}
	p, err := policy.Parse("", []byte(o.Data.Policy))
	if err != nil {
		return fmt.Errorf("the policy in force: %w", err)
	}
	bound := p.Resources().OrDefaults().Disk
	size := s.house.size(ctx, s.workDir(o), sizingTime)
	s.house.disk.note(in.sandbox, size.bytes)
	switch {
	case size.bytes > bound:
		return s.stop(ctx, in, "its workspace has more than "+policy.FormatSize(bound)+", the policy's bound")
	case size.excess != "":
		return s.stop(ctx, in, "its workspace has "+size.excess)
	case size.partial && ctx.Err() == nil:
		return errors.New("not all of it could be measured")
	}
	return nil
}

// noteUsage stores how much a sandbox has used, and whether it is paused, which an operator can do by hand. It is of no consequence: what cannot be had or
// stored now is later.
func (s *Service) noteUsage(ctx context.Context, in room) {
	status, ok := s.status(ctx, in.sandbox)
	if !ok {
		return
	}
	usage := usageOf(status)
	err := s.DB.Within(ctx, func(tx *store.DB) error {
		o, err := sandboxes().Get(ctx, tx, in.tenant, in.sandbox)
		if err != nil || !alive(o) {
			return err
		}
		turned := o.Data.notePaused(status.Paused, s.now())
		if !turned && o.Data.Usage == usage {
			return nil
		}
		o.Data.Usage = usage
		if _, err = sandboxes().Update(ctx, tx, o); err != nil || !turned {
			return err
		}
		_, err = tx.Emit(ctx, in.event(shownState(o), s.now()))
		return err
	})
	if err != nil && ctx.Err() == nil {
		s.Log.Warn("note what a sandbox has used", "sandbox", in.sandbox, "error", err)
	}
}

// bury brings a sandbox to its end that has no keeper. One whose keeper has begun and does not listen yet is looked for again.
func (s *Service) bury(ctx context.Context, in room) (done bool, err error) {
	o, err := sandboxes().Get(ctx, s.DB, in.tenant, in.sandbox)
	switch {
	case fault.KindOf(err) == fault.NotFound:
		return true, nil
	case err != nil:
		return false, err
	case !alive(o):
		return true, nil
	}
	if o.State == string(api.Starting) && s.comes(in) {
		return false, nil
	}
	e, err := s.remains(ctx, in)
	if err != nil {
		return false, err
	}
	if err := s.conclude(ctx, in, e); err != nil {
		return false, err // it counts as alive until this is done: it is tried again
	}
	return true, nil
}

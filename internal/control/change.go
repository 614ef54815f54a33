package control

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cofferdam/cofferdam/internal/audit"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/store"
)

// afterwards bounds what must be brought to an end even though whoever asked for it has gone.
const afterwards = 30 * time.Second

// note writes what an actor is about to do into the audit log, and returns when it is on the disk: the store keeps changes through a loss of power, and
// so must their record. An error means that it must not be done.
func (s *Service) note(ctx context.Context, a Actor, e audit.Event) error {
	e.Principal, e.Tenant = a.Principal(), a.Tenant
	if err := s.Options.Audit.Append(ctx, e); err != nil {
		return fmt.Errorf("record a change: %w", err)
	}
	if err := s.Options.Audit.Sync(); err != nil {
		return fmt.Errorf("record a change: %w", err)
	}
	return nil
}

// change records what an actor is about to do, does it in one transaction, and tells whoever watches. Everything that can be refused was checked
// before; where the transaction fails all the same, since somebody was quicker, a second record says that it did not happen.
//
// do may be run again, as store.DB.Within says: what it captured it only reads, and its results go into variables of their own.
func (s *Service) change(ctx context.Context, a Actor, e audit.Event, do func(tx *store.DB) ([]store.Event, error)) error {
	if err := s.note(ctx, a, e); err != nil {
		return err
	}
	err := s.DB.Within(ctx, func(tx *store.DB) error {
		events, err := do(tx) // perhaps more than once
		if err != nil {
			return err
		}
		for i := range events {
			events[i].Tenant, events[i].Time = a.Tenant, s.now()
		}
		if len(events) == 0 {
			return nil
		}
		_, err = tx.Emit(ctx, events...)
		return err
	})
	if err != nil {
		return s.undone(ctx, a, e, err)
	}
	return nil
}

// undone records that what was recorded did not happen.
func (s *Service) undone(ctx context.Context, a Actor, e audit.Event, cause error) error {
	ctx, stop := context.WithTimeout(context.WithoutCancel(ctx), afterwards)
	defer stop()
	e.Error = "it did not happen: " + fault.Public(cause)
	if err := s.note(ctx, a, e); err != nil {
		return errors.Join(cause, err)
	}
	return cause
}

func (s *Service) now() time.Time {
	if s.Clock != nil {
		return s.Clock().UTC()
	}
	return time.Now().UTC()
}

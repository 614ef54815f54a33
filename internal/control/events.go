package control

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/store"
)

const (
	eventBatch = 500
	// eventPoll is how often events are looked for when nobody says that there are some.
	eventPoll = 2 * time.Second
)

// Events calls on for each event of the tenant after an identifier, also as they happen, until ctx ends; after < 0 begins now. Ending is no error.
func (s *Service) Events(ctx context.Context, a Actor, after int64, on func(api.Event) error) error {
	if err := may(a, ReadSandboxes); err != nil {
		return err
	}
	watching, stop := context.WithCancel(ctx)
	defer stop()
	news := s.DB.Watch(watching) // before the first look, so that nothing falls between
	if after < 0 {
		var err error
		if after, err = s.DB.LastEvent(ctx); err != nil {
			return err
		}
	}
	poll := time.NewTicker(eventPoll)
	defer poll.Stop()
	for {
		list, err := s.DB.Events(ctx, a.Tenant, after, eventBatch)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read events: %w", err)
		}
		for _, e := range list {
			after = e.ID
			if err := on(api.Event{ID: e.ID, Type: e.Type, Subject: e.Subject, Agent: e.Agent, State: e.State, Time: e.Time}); err != nil {
				return err
			}
		}
		if len(list) == eventBatch {
			continue
		}
		select {
		case <-ctx.Done():
			return nil
		case <-news:
		case <-poll.C:
		}
	}
}

// rawData is an object's data where nobody looks at it.
type rawData = json.RawMessage

// anything is a collection of which only identifiers or numbers are asked for.
func anything(kind string) store.Collection[rawData] { return store.Of[rawData](kind) }

// Counts counts what the overview and the navigation show.
func (s *Service) Counts(ctx context.Context, a Actor) (Counts, error) {
	var c Counts
	if err := may(a, ReadSandboxes); err != nil {
		return c, err
	}
	for _, what := range []struct {
		into   *int
		kind   string
		states []string
	}{
		{&c.Agents, "agent", nil},
		{&c.Running, "sandbox", liveStates()},
		{&c.Denials, "denial", []string{string(api.Open)}},
		{&c.Approvals, "approval", []string{approvalWaiting}},
		{&c.Proposed, "rule", []string{ruleProposed}},
	} {
		n, err := anything(what.kind).Count(ctx, s.DB, a.Tenant, store.Filter{States: what.states})
		if err != nil {
			return Counts{}, err
		}
		*what.into = n
	}
	return c, nil
}

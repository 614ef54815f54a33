package control

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/ident"
	"github.com/cofferdam/cofferdam/internal/keeper"
	"github.com/cofferdam/cofferdam/internal/store"
)

const (
	// rulePause is how often rules are looked for that have expired.
	rulePause = 250 * time.Millisecond
	// hurryPause is how often sandboxes are looked for that were told to end and do not.
	hurryPause = 5 * time.Second
	// sweepPause is how often the store is swept and the index cut to what tenants keep.
	sweepPause = time.Hour
)

// Run adopts the sandboxes that live, reaps what died, follows the audit log into the index, watches keepers, expires rules, prunes what is past its
// retention, and returns when ctx ends and all of that has stopped. Sandboxes go on.
func (s *Service) Run(ctx context.Context) error {
	ctx, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	found, err := s.takeStock(ctx)
	if err != nil {
		return err
	}
	wg.Go(func() { s.followLog(ctx) })
	s.regularly(ctx, &wg, rulePause, "expire rules", func(ctx context.Context) error { return s.expireRules(ctx, s.now()) })
	s.regularly(ctx, &wg, hurryPause, "end what was told to end", s.hurry)
	s.regularly(ctx, &wg, floorPause, "keep room on the disk", s.keepFloor)
	s.regularly(ctx, &wg, sweepPause, "sweep", s.sweep)
	defer s.house.lines.Close()
	s.watchAll(ctx, &wg, found)
	return nil
}

// takeStock lists what is to be watched, after what the last process left undone is noted.
func (s *Service) takeStock(ctx context.Context) ([]room, error) {
	if err := keeper.Sweep(s.State); err != nil {
		return nil, err
	}
	if err := s.loseAllRuns(ctx); err != nil {
		return nil, err
	}
	var found []room
	err := every(ctx, s.DB, sandboxes(), store.AnyTenant, store.Filter{States: liveStates()}, func(o store.Object[SandboxData]) error {
		found = append(found, roomOf(o))
		return nil
	})
	if err != nil {
		return nil, err
	}
	return found, s.stopStrays(ctx)
}

// stopStrays ends sandboxes that have a keeper and are not in the store, or ended there, as after the store was restored from a backup: nobody could reach them.
func (s *Service) stopStrays(ctx context.Context) error {
	entries, err := os.ReadDir(filepath.Join(s.State, "keepers"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list keepers: %w", err)
	}
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), ".sock")
		if run, err := ident.ParseRun(name); !ok || err != nil || s.house.makes(run.String()) {
			continue
		}
		o, err := sandboxes().Get(ctx, s.DB, store.AnyTenant, name)
		if err == nil && alive(o) {
			continue
		}
		if err != nil && fault.KindOf(err) != fault.NotFound {
			return err
		}
		s.Log.Warn("a sandbox that the store does not know as alive is stopped", "sandbox", name)
		if err := s.tellStop(ctx, room{sandbox: name}, "the service does not know this sandbox as alive"); err != nil {
			return err
		}
	}
	return nil
}

// watchAll has each sandbox watched, those found and those that come, each once, until ctx ends.
func (s *Service) watchAll(ctx context.Context, wg *sync.WaitGroup, found []room) {
	var mu sync.Mutex
	watched := map[room]bool{}
	begin := func(in room) {
		mu.Lock()
		defer mu.Unlock()
		if watched[in] {
			return
		}
		watched[in] = true
		wg.Go(func() {
			s.tend(ctx, in)
			mu.Lock()
			defer mu.Unlock()
			delete(watched, in)
		})
	}
	for _, in := range found {
		if !s.house.makes(in.sandbox) { // who makes it hands it over
			begin(in)
		}
	}
	for {
		for _, in := range s.house.arrivals() {
			begin(in)
		}
		select {
		case <-ctx.Done():
			return
		case <-s.house.news:
		}
	}
}

// regularly does something now and then again and again until ctx ends. What goes wrong is logged, and tried again at the next time.
func (s *Service) regularly(ctx context.Context, wg *sync.WaitGroup, every time.Duration, what string, do func(context.Context) error) {
	wg.Go(func() {
		for {
			if err := do(ctx); err != nil && ctx.Err() == nil {
				s.Log.Error(what, "error", err)
			}
			if !pause(ctx, every) {
				return
			}
		}
	})
}

// sweep removes what nobody needs any more.
func (s *Service) sweep(ctx context.Context) error {
	if err := s.DB.Sweep(ctx, s.now()); err != nil {
		return err
	}
	if err := keeper.Sweep(s.State); err != nil {
		return err
	}
	if err := s.sweepMarks(ctx); err != nil {
		return err
	}
	if err := s.sweepTombstones(); err != nil {
		return err
	}
	if err := s.sweepWorkspaces(ctx); err != nil {
		return err
	}
	return s.retain(ctx)
}

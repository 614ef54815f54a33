package control

import (
	"context"
	"time"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/audit"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/keeper"
	"github.com/cofferdam/cofferdam/internal/store"
)

// shownState is the state that people see. A paused sandbox is stored as running: what holds in one that runs, policy first, holds in it.
func shownState(o store.Object[SandboxData]) api.SandboxState {
	if o.State == string(api.Running) && !o.Data.Paused.IsZero() {
		return api.Paused
	}
	return api.SandboxState(o.State)
}

// notePaused takes note of what a keeper says, and reports whether that is news.
func (d *SandboxData) notePaused(paused bool, now time.Time) bool {
	if paused == !d.Paused.IsZero() {
		return false
	}
	d.Paused = time.Time{}
	if paused {
		d.Paused = now
	}
	return true
}

// awake is running for what needs the programs inside.
func (s *Service) awake(ctx context.Context, tenant, id string) (store.Object[SandboxData], *keeper.Client, error) {
	o, client, err := s.running(ctx, tenant, id)
	if err == nil && !o.Data.Paused.IsZero() {
		err = fault.New(fault.Conflict, "the sandbox is paused").WithHint("resume it first")
	}
	return o, client, err
}

// PauseSandbox stops every process of a sandbox and returns when none runs any more. Its deadline stays.
func (s *Service) PauseSandbox(ctx context.Context, a Actor, id string) (api.Sandbox, error) {
	return s.halt(ctx, a, id, audit.RunPaused)
}

// ResumeSandbox lets the processes of a paused sandbox go on, under what is in force now.
func (s *Service) ResumeSandbox(ctx context.Context, a Actor, id string) (api.Sandbox, error) {
	return s.halt(ctx, a, id, audit.RunResumed)
}

func (s *Service) halt(ctx context.Context, a Actor, id string, kind audit.Kind) (api.Sandbox, error) {
	if err := may(a, WriteSandboxes); err != nil {
		return api.Sandbox{}, err
	}
	o, client, err := s.running(ctx, a.Tenant, id)
	if err != nil {
		return api.Sandbox{}, err
	}
	// One after the other, so that what is stored is what was done last; and to the end, whoever still waits for it.
	done := s.house.turn(o.ID)
	defer done()
	ctx = context.WithoutCancel(ctx)
	in, paused := roomOf(o), kind == audit.RunPaused
	status, err := client.Status(ctx)
	if err != nil {
		return api.Sandbox{}, err
	}
	if status.Paused == paused {
		return api.Sandbox{}, idle(paused)
	}
	e := audit.Event{Kind: kind, Run: in.run(), Agent: o.Parent, Isolation: o.Data.Isolation}
	if err := s.note(ctx, a, e); err != nil {
		return api.Sandbox{}, err
	}
	if err := client.Pause(ctx, paused); err != nil {
		return api.Sandbox{}, s.undone(ctx, a, e, err)
	}
	o, err = s.changeSandbox(ctx, in, func(o *store.Object[SandboxData]) bool { return o.Data.notePaused(paused, s.now()) })
	if err != nil {
		return api.Sandbox{}, err
	}
	return showSandbox(o, s.agentName(ctx, a.Tenant, o.Parent)), nil
}

// idle says that there is nothing to do.
func idle(paused bool) error {
	if paused {
		return fault.New(fault.Conflict, "the sandbox is paused already").WithHint("resume it to let it go on")
	}
	return fault.New(fault.Conflict, "the sandbox is not paused").WithHint("it runs: there is nothing to resume")
}

package control

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/audit"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/ident"
	"github.com/cofferdam/cofferdam/internal/store"
	"github.com/cofferdam/cofferdam/internal/testenv"
)

// TestPause pauses a sandbox and resumes it: nothing in it runs meanwhile, its policy can be changed, it can be stopped, and all of that is told and on record.
func TestPause(t *testing.T) {
	testenv.Need(t, "root")
	h := newRealHouse(t)
	h.run(t)
	ctx := t.Context()
	h.agent(t, h.a, "one", emptyPolicy)
	o := h.create(t, h.a, api.NewSandbox{Agent: "one", Command: []string{"/bin/sh", "-c", "while :; do echo x >> /work/count; sleep 0.01; done"}})
	count := func() int64 {
		info, err := os.Stat(filepath.Join(h.State, "workspaces", o.ID, "count"))
		if err != nil {
			return 0
		}
		return info.Size()
	}
	eventually(t, "the command runs", 10*time.Second, func() bool { return count() > 0 })
	says(t, second(h.ResumeSandbox(ctx, h.a, o.ID)), fault.Conflict, "not paused")
	says(t, second(h.PauseSandbox(ctx, h.b, o.ID)), fault.NotFound, "no such sandbox")
	paused, err := h.PauseSandbox(ctx, h.a, o.ID)
	if err != nil || paused.State != api.Paused || !paused.State.Live() {
		t.Fatalf("%+v, %v", paused, err)
	}
	at := count()
	says(t, second(h.PauseSandbox(ctx, h.a, o.ID)), fault.Conflict, "paused already")
	says(t, second(h.ExecWait(ctx, h.a, o.ID, api.Exec{Command: []string{"true"}})), fault.Conflict, "paused")
	_, _, err = h.Files(ctx, h.a, o.ID, "/work")
	says(t, err, fault.Conflict, "paused")
	if _, err := h.ExtendSandbox(ctx, h.a, o.ID, api.Extend{Seconds: 600}); err != nil {
		t.Errorf("its deadline: %v", err)
	}
	in := room{tenant: h.a.Tenant, agent: o.Agent, sandbox: o.ID}
	if err := h.enforceOne(context.WithoutCancel(ctx), in); err != nil {
		t.Errorf("its policy: %v", err)
	}
	list, err := h.Sandboxes(ctx, h.a, "", true, Page{})
	if err != nil || len(list.Items) != 1 || list.Items[0].State != api.Paused {
		t.Errorf("listed: %+v, %v", list.Items, err)
	}
	if got, err := h.Sandbox(ctx, h.a, o.ID); err != nil || got.State != api.Paused {
		t.Errorf("shown: %+v, %v", got, err)
	}
	if now := count(); now != at {
		t.Errorf("it went on from %d to %d", at, now)
	}
	if got, err := h.ResumeSandbox(ctx, h.a, o.ID); err != nil || got.State != api.Running {
		t.Errorf("resumed: %+v, %v", got, err)
	}
	eventually(t, "it goes on", 10*time.Second, func() bool { return count() > at })
	if _, err := h.PauseSandbox(ctx, h.a, o.ID); err != nil {
		t.Fatal(err)
	}
	if got, err := h.StopSandbox(ctx, h.a, o.ID, "enough"); err != nil || got.State != api.Stopping {
		t.Errorf("stopped while paused: %+v, %v", got, err)
	}
	done := h.ended(t, h.a, o.ID)
	if done.State != api.Ended || !strings.Contains(done.How, "enough") || len(done.Problems) > 0 {
		t.Errorf("%+v", done)
	}
	says(t, second(h.PauseSandbox(ctx, h.a, o.ID)), fault.Conflict, "not running")
	h.nothing(t, o.ID)
	var kinds []audit.Kind
	for e, err := range audit.Read(filepath.Join(h.State, "audit"), audit.Filter{Run: ident.Run(o.ID), Kinds: []audit.Kind{audit.RunPaused, audit.RunResumed}}) {
		if err != nil {
			t.Fatal(err)
		}
		if kinds = append(kinds, e.Kind); e.Principal != h.a.Principal() || e.Tenant != h.a.Tenant || e.Error != "" {
			t.Errorf("%+v", e)
		}
	}
	if !slices.Equal(kinds, []audit.Kind{audit.RunPaused, audit.RunResumed, audit.RunPaused}) {
		t.Errorf("on record: %v", kinds)
	}
	events, err := h.DB.Events(ctx, h.a.Tenant, 0, 500)
	if err != nil || !slices.ContainsFunc(events, func(e store.Event) bool { return e.Subject == o.ID && e.State == string(api.Paused) }) {
		t.Errorf("told: %+v, %v", events, err)
	}
}

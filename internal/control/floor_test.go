package control

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/policy"
	"github.com/cofferdam/cofferdam/internal/store"
)

func TestScarce(t *testing.T) {
	const gib = uint64(policy.GiB)
	for _, c := range []struct {
		free, total uint64
		want        bool
	}{
		{0, 0, true}, {0, gib, true}, {gib / 8, gib, false}, {gib/8 - 1, gib, true}, {gib / 2, 10 * gib, false}, {gib/2 - 1, 10 * gib, true},
		{2 * gib, 1000 * gib, false}, {2*gib - 1, 1000 * gib, true}, {100 * gib, 100 * gib, false},
	} {
		if got := scarce(c.free, c.total); got != c.want {
			t.Errorf("%d of %d: %v", c.free, c.total, got)
		}
	}
	if free, total, err := spaceOf(t.TempDir()); err != nil || free == 0 || free > total {
		t.Errorf("here: %d of %d, %v", free, total, err)
	}
}

// TestFloor: while the disk is nearly full no sandbox is made, and those that run are ended, the largest first, until there is room.
func TestFloor(t *testing.T) {
	h := newTestHouse(t, "/no/such/cofferdam")
	agent := h.agent(t, h.a, "one", emptyPolicy)
	small, large := h.room(t, h.a, agent.ID, api.Running), h.room(t, h.b, agent.ID, api.Running)
	h.house.disk.note(small.sandbox, 1)
	h.house.disk.note(large.sandbox, 2)
	free := uint64(policy.GiB)
	h.house.disk.space = func(string) (uint64, uint64, error) { return free, 2 * uint64(policy.GiB), nil }
	states := func() string {
		var out []string
		for _, in := range []room{small, large} {
			o, err := sandboxes().Get(t.Context(), h.DB, store.AnyTenant, in.sandbox)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, o.State)
			if o.State == string(api.Stopping) && !strings.Contains(o.Data.Reason, "nearly full") {
				t.Errorf("it ends because %q", o.Data.Reason)
			}
		}
		return strings.Join(out, " ")
	}
	for _, c := range []struct {
		free uint64
		want string
	}{
		{uint64(policy.GiB), "running running"}, {1000, "running stopping"}, {uint64(policy.GiB), "running stopping"}, {1000, "stopping stopping"}, {1000, "stopping stopping"},
	} {
		free = c.free
		if err := h.keepFloor(t.Context()); err != nil {
			t.Error(err)
		}
		if got := states(); got != c.want {
			t.Errorf("%d free: %s", c.free, got)
		}
	}
	_, err := h.CreateSandbox(t.Context(), h.a, api.NewSandbox{Agent: "one"})
	says(t, err, fault.Unavailable, "disk is nearly full")
	free = uint64(policy.GiB)
	_, err = h.CreateSandbox(t.Context(), h.a, api.NewSandbox{Agent: "one"})
	wants(t, err, fault.Unsupported) // as there is no program
}

// TestBuryAgain: an end that could not be noted is noted later.
func TestBuryAgain(t *testing.T) {
	h := newTestHouse(t, "")
	agent := h.agent(t, h.a, "one", emptyPolicy)
	w, err := anything("workspace").Insert(t.Context(), h.DB, store.Object[rawData]{Tenant: h.a.Tenant, Name: "data", Data: rawData(`{"nonsense":1}`)})
	if err != nil {
		t.Fatal(err)
	}
	in := h.room(t, h.a, agent.ID, api.Running)
	_, err = h.changeSandbox(t.Context(), in, func(o *store.Object[SandboxData]) bool { o.Data.Workspace = w.ID; return true })
	if err != nil {
		t.Fatal(err)
	}
	if over, err := h.bury(t.Context(), in); over || err == nil {
		t.Fatalf("%v %v", over, err)
	}
	ctx, stop := context.WithTimeout(t.Context(), 10*time.Second)
	defer stop()
	time.AfterFunc(200*time.Millisecond, func() {
		w.Data = rawData(`{"size":0}`)
		if _, err := anything("workspace").Update(ctx, h.DB, w); err != nil {
			t.Error(err)
		}
	})
	h.tend(ctx, in)
	if o, err := h.sandbox(t.Context(), h.a.Tenant, in.sandbox); err != nil || alive(o) {
		t.Errorf("%+v %v", o, err)
	}
}

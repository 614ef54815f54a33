package control

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/audit"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/ident"
	"github.com/cofferdam/cofferdam/internal/store"
)

// TestClaims: of many who want one workspace at once one gets it, and no more sandboxes begin than a tenant may have.
func TestClaims(t *testing.T) {
	h := newTestHouse(t, "")
	agent := h.agent(t, h.a, "one", emptyPolicy)
	w, err := h.CreateWorkspace(t.Context(), h.a, api.NewWorkspace{Name: "data"})
	if err != nil {
		t.Fatal(err)
	}
	settings, err := h.Settings(t.Context(), h.a)
	if err != nil {
		t.Fatal(err)
	}
	settings.MaxSandboxes = 5
	if _, err := h.ChangeSettings(t.Context(), h.a, settings.Version, settings); err != nil {
		t.Fatal(err)
	}
	claim := func(workspace string) map[fault.Kind]int {
		var wg sync.WaitGroup
		var mu sync.Mutex
		kinds := map[fault.Kind]int{}
		for range 12 {
			wg.Go(func() {
				run := ident.NewRun().String()
				o := store.Object[SandboxData]{ID: run, Tenant: h.a.Tenant, Name: run, Parent: agent.ID, State: string(api.Starting), Data: SandboxData{Workspace: workspace}}
				_, err := h.claim(t.Context(), o)
				kind := fault.KindOf(err)
				if err == nil {
					kind = 255
				}
				mu.Lock()
				defer mu.Unlock()
				kinds[kind]++
			})
		}
		wg.Wait()
		return kinds
	}
	if got := claim(w.ID); got[255] != 1 || got[fault.Conflict] != 11 {
		t.Errorf("the workspace: %v", got)
	}
	if got := claim(""); got[255] != 4 || got[fault.TooMany] != 8 {
		t.Errorf("places: %v", got)
	}
	if err := h.DeleteWorkspace(t.Context(), h.a, "data"); fault.KindOf(err) != fault.Conflict {
		t.Errorf("a workspace that is in use: %v", err)
	}
}

func TestRetention(t *testing.T) {
	h := newTestHouse(t, "")
	agent := h.agent(t, h.a, "one", emptyPolicy)
	if _, err := anything("tenant").Insert(t.Context(), h.DB, store.Object[rawData]{ID: h.a.Tenant, Data: rawData("{}")}); err != nil {
		t.Fatal(err)
	}
	in := h.room(t, h.a, agent.ID, api.Ended)
	old, fresh := crossing(in, 1, "old.example.com", "allow"), crossing(in, 2, "new.example.com", "allow")
	old.Time = time.Now().AddDate(0, 0, -40)
	h.append(t, old, fresh)
	settings, err := h.Settings(t.Context(), h.a)
	if err != nil {
		t.Fatal(err)
	}
	settings.RetentionDays = 30
	if _, err := h.ChangeSettings(t.Context(), h.a, settings.Version, settings); err != nil {
		t.Fatal(err)
	}
	h.run(t)
	hosts := func() (n int) {
		page, err := h.Audit(t.Context(), h.a, api.AuditQuery{Sandbox: in.sandbox})
		if err != nil {
			t.Fatal(err)
		}
		return len(page.Items)
	}
	eventually(t, "indexed", 5*time.Second, func() bool { return hosts() > 0 })
	if err := h.retain(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := hosts(); n != 1 {
		t.Errorf("%d records are left", n)
	}
	found := 0
	for e, err := range audit.Read(filepath.Join(h.State, "audit"), audit.Filter{Host: "old.example.com"}) {
		if err != nil || e.Host == "" {
			t.Error(e, err)
		}
		found++
	}
	if found != 1 {
		t.Error("the log itself was cut")
	}
}

// TestSweepWorkspaces: folders of ended sandboxes are removed, those that belong to nothing put aside with all that is in them, others stay.
func TestSweepWorkspaces(t *testing.T) {
	h := newTestHouse(t, "")
	agent := h.agent(t, h.a, "one", emptyPolicy)
	w, err := h.CreateWorkspace(t.Context(), h.a, api.NewWorkspace{Name: "data"})
	if err != nil {
		t.Fatal(err)
	}
	live, ended := h.room(t, h.a, agent.ID, api.Running), h.room(t, h.a, agent.ID, api.Ended)
	dir := filepath.Join(h.State, "workspaces")
	old := time.Now().Add(-time.Hour)
	make := func(path string, age time.Time) string {
		t.Helper()
		path = filepath.Join(dir, path)
		if err := errors.Join(os.MkdirAll(path, 0o700), os.WriteFile(filepath.Join(path, "file"), nil, 0o600), os.Chtimes(path, age, age)); err != nil {
			t.Fatal(err)
		}
		return path
	}
	stays := []string{make(live.sandbox, old), make(filepath.Join(h.a.Tenant, w.ID), old), make(ident.NewRun().String(), time.Now()), make("Something else", old)}
	stray := ident.NewRun().String()
	goes := []string{make(ended.sandbox, old), make(stray, old), make(filepath.Join(h.a.Tenant, "gone2345gone2345"), old), make(filepath.Join(h.b.Tenant, w.ID), old)}
	if err := h.sweepWorkspaces(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, path := range stays {
		if _, err := os.Stat(path); err != nil {
			t.Error(err)
		}
	}
	for _, path := range goes {
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is still there", path)
		}
	}
	kept := func(names ...string) {
		t.Helper()
		entries, err := os.ReadDir(filepath.Join(dir, lostName))
		if err != nil || len(entries) != len(names) {
			t.Errorf("put aside: %v %v", entries, err)
		}
		for _, name := range names {
			if _, err := os.Stat(filepath.Join(dir, lostName, name, "file")); err != nil {
				t.Error(err)
			}
		}
	}
	names := []string{stray, h.a.Tenant + "-gone2345gone2345", h.b.Tenant + "-" + w.ID}
	kept(names...)

	// A store that knows nothing erases nothing.
	if err := workspaces().Delete(t.Context(), h.DB, h.a.Tenant, w.ID, 0); err != nil {
		t.Fatal(err)
	}
	if err := h.sweepWorkspaces(t.Context()); err != nil {
		t.Fatal(err)
	}
	kept(append(names, h.a.Tenant+"-"+w.ID)...)
}

func TestRemoveTree(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "tree")
	outside := filepath.Join(t.TempDir(), "outside")
	if err := errors.Join(os.MkdirAll(filepath.Join(dir, "a", "b", "c"), 0o700), os.WriteFile(outside, nil, 0o600), os.Symlink(filepath.Dir(outside), filepath.Join(dir, "link")),
		os.WriteFile(filepath.Join(dir, "a", "b", "c", "file"), nil, 0), os.Chmod(filepath.Join(dir, "a", "b", "c"), 0), os.Chmod(filepath.Join(dir, "a"), 0o500)); err != nil {
		t.Fatal(err)
	}
	if err := removeTree(dir); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(outside); err != nil {
		t.Errorf("what a link led to is gone: %v", err)
	}
	if err := removeTree(dir); err != nil {
		t.Errorf("what is not there: %v", err)
	}
}

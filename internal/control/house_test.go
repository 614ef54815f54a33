package control

import (
	"context"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/audit"
	"github.com/cofferdam/cofferdam/internal/ident"
	"github.com/cofferdam/cofferdam/internal/keeper"
	"github.com/cofferdam/cofferdam/internal/store"
)

// testHouse is a service with a real store and a real log, and administrators of two tenants.
type testHouse struct {
	*Service
	log  *audit.Log
	a, b Actor
}

func newTestHouse(t *testing.T, program string) *testHouse {
	t.Helper()
	state := t.TempDir()
	return openTestHouse(t, state, program)
}

func openTestHouse(t *testing.T, state, program string) *testHouse {
	t.Helper()
	db, err := store.Open(t.Context(), "sqlite:"+filepath.Join(state, "store.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	log, err := audit.Open(filepath.Join(state, "audit"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = log.Close() })
	s, err := New(Options{
		DB: db, Audit: log, State: state, Log: slog.New(slog.NewTextHandler(testWriter{t}, nil)), Launcher: &keeper.Launcher{Program: program, State: state},
	})
	if err != nil {
		t.Fatal(err)
	}
	h := &testHouse{Service: s, log: log}
	h.a = Actor{Tenant: "tenantaaaaaaaaaa", User: "usera", Name: "a@example.com", Role: api.Administrator, Via: "session", ID: "sa"}
	h.b = Actor{Tenant: "tenantbbbbbbbbbb", User: "userb", Name: "b@example.com", Role: api.Administrator, Via: "session", ID: "sb"}
	return h
}

// testWriter is a test's log, as long as the test runs.
type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Helper()
	w.t.Logf("service: %s", p)
	return len(p), nil
}

// run starts the service's background work and returns what ends it.
func (h *testHouse) run(t *testing.T) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- h.Run(ctx) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(10 * time.Second):
			t.Error("Run does not end")
		}
	}
	t.Cleanup(stop)
	return stop
}

// agent makes an agent under a policy.
func (h *testHouse) agent(t *testing.T, a Actor, name, policy string) api.Agent {
	t.Helper()
	agent, err := h.CreateAgent(t.Context(), a, api.NewAgent{Name: name, PolicyText: policy})
	if err != nil {
		t.Fatal(err)
	}
	return agent
}

// room puts a sandbox into the store, as if it ran.
func (h *testHouse) room(t *testing.T, a Actor, agent string, state api.SandboxState) room {
	t.Helper()
	run := ident.NewRun().String()
	o, err := sandboxes().Insert(t.Context(), h.DB, store.Object[SandboxData]{ID: run, Tenant: a.Tenant, Name: run + " ", Parent: agent, State: string(state)})
	if err != nil {
		t.Fatal(err)
	}
	return roomOf(o)
}

func (h *testHouse) append(t *testing.T, events ...audit.Event) {
	t.Helper()
	if err := h.log.Append(t.Context(), events...); err != nil {
		t.Fatal(err)
	}
}

// eventually waits until a condition holds.
func eventually(t *testing.T, what string, most time.Duration, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(most); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v", what, most)
		}
	}
}

package control

import (
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/audit"
	"github.com/cofferdam/cofferdam/internal/auth"
	"github.com/cofferdam/cofferdam/internal/auth/limit"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/store"
)

// stage is a service over a real store and a real audit log, with two tenants that have a person of each role.
type stage struct {
	*Service
	t     *testing.T
	dir   string
	a, b  map[api.Role]Actor
	clock *clock
}

type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) forward(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

func newStage(t *testing.T) *stage {
	t.Helper()
	ctx := t.Context()
	dir := t.TempDir()
	db, err := store.Open(ctx, "sqlite:"+filepath.Join(dir, "store.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	log, err := audit.Open(filepath.Join(dir, "audit"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = log.Close() })
	c := &clock{now: time.Now().UTC()}
	people, err := auth.New(auth.Options{DB: db, BaseURL: "http://localhost:8080", Limiter: limit.NewMemory(c.Now, 0), Clock: c.Now, Scopes: Scopes()})
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(Options{DB: db, Auth: people, Audit: log, State: dir, Log: slog.New(slog.DiscardHandler), Clock: c.Now, BaseURL: "http://localhost:8080", Version: "test"})
	if err != nil {
		t.Fatal(err)
	}
	st := &stage{Service: s, t: t, dir: dir, clock: c}
	st.a, st.b = st.people("acme"), st.people("globex")
	return st
}

// people makes a tenant with one person of each role.
func (s *stage) people(tenant string) map[api.Role]Actor {
	s.t.Helper()
	ctx := s.t.Context()
	o, err := auth.Tenants().Insert(ctx, s.DB, store.Object[auth.Tenant]{Name: tenant})
	if err != nil {
		s.t.Fatal(err)
	}
	out := map[api.Role]Actor{}
	for _, role := range api.Roles() {
		email := fmt.Sprintf("%s@%s.example", role, tenant)
		i, err := s.Auth.AddUser(ctx, o.ID, api.NewUser{Email: email, Role: role})
		if err != nil {
			s.t.Fatal(err)
		}
		out[role] = Actor{Tenant: o.ID, User: i.User.ID, Name: email, Role: role, Via: "session", ID: "s-" + i.User.ID}
	}
	return out
}

func (s *stage) admin() Actor { return s.a[api.Administrator] }
func (s *stage) other() Actor { return s.b[api.Administrator] }

// records returns the audit events of a kind, oldest first.
func (s *stage) records(kinds ...audit.Kind) []audit.Event {
	s.t.Helper()
	var out []audit.Event
	for e, err := range audit.Read(filepath.Join(s.dir, "audit"), audit.Filter{Kinds: kinds}) {
		if err != nil {
			s.t.Fatal(err)
		}
		out = append(out, e)
	}
	return out
}

// told returns the events of a tenant as TYPE STATE.
func (s *stage) told(tenant string) []string {
	s.t.Helper()
	list, err := s.DB.Events(s.t.Context(), tenant, 0, 1000)
	if err != nil {
		s.t.Fatal(err)
	}
	var out []string
	for _, e := range list {
		out = append(out, e.Type+" "+e.State)
	}
	return out
}

// wants fails unless an error is of a kind.
func wants(t *testing.T, err error, k fault.Kind) {
	t.Helper()
	if err == nil || fault.KindOf(err) != k {
		t.Fatalf("got error %v (%s), want kind %s", err, fault.KindOf(err), k)
	}
}

// says fails unless an error is of a kind and its public sentence or hint contains a text.
func says(t *testing.T, err error, k fault.Kind, text string) {
	t.Helper()
	wants(t, err, k)
	if words := fault.Public(err) + " / " + fault.HintOf(err); !strings.Contains(words, text) {
		t.Fatalf("the error says %q, want it to contain %q", words, text)
	}
}

func must[T any](t *testing.T) func(v T, err error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatalf("%v (hint: %s)", err, fault.HintOf(err))
		}
		return v
	}
}

func done(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%v (hint: %s)", err, fault.HintOf(err))
	}
}

package server

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/auth"
	"github.com/cofferdam/cofferdam/internal/auth/limit"
	"github.com/cofferdam/cofferdam/internal/control"
	"github.com/cofferdam/cofferdam/internal/control/controltest"
	"github.com/cofferdam/cofferdam/internal/store"
)

// stage is a server over the real service, store and audit log, on loopback, with two tenants.
type stage struct {
	*Server
	t    *testing.T
	http *httptest.Server
	auth *auth.Service
	db   *store.DB
	logs *logs
	dir  string
	a, b *tenant
}

// tenant has a user of each role.
type tenant struct {
	id    string
	users map[api.Role]string
	mail  map[api.Role]string
}

// logs collects what was logged.
type logs struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logs) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

const secretWord = "correct horse battery staple 77"

func newStage(t *testing.T, change ...func(*Options)) *stage {
	t.Helper()
	st := &stage{t: t, logs: &logs{}}
	service := controltest.New(t, "http://127.0.0.1:1", slog.New(slog.NewTextHandler(st.logs, &slog.HandlerOptions{Level: slog.LevelInfo})))
	st.auth, st.db, st.dir = service.Auth, service.DB, service.State
	o := Options{Control: service, Auth: st.auth, DB: st.db, Limiter: limit.NewMemory(time.Now, 0), BaseURL: service.BaseURL, Log: service.Log, Version: service.Version}
	for _, f := range change {
		f(&o)
	}
	var err error
	if st.Server, err = New(o); err != nil {
		t.Fatal(err)
	}
	st.http = httptest.NewUnstartedServer(nil)
	st.http.Config = st.HTTP()
	st.http.Start()
	t.Cleanup(st.http.Close)
	st.a, st.b = st.people("acme"), st.people("globex")
	return st
}

func (s *stage) people(name string) *tenant {
	s.t.Helper()
	o, err := auth.Tenants().Insert(s.t.Context(), s.db, store.Object[auth.Tenant]{Name: name})
	if err != nil {
		s.t.Fatal(err)
	}
	out := &tenant{id: o.ID, users: map[api.Role]string{}, mail: map[api.Role]string{}}
	for _, role := range api.Roles() {
		out.mail[role] = string(role) + "@" + name + ".example"
		i, err := s.auth.AddUser(s.t.Context(), o.ID, api.NewUser{Email: out.mail[role], Role: role})
		if err != nil {
			s.t.Fatal(err)
		}
		out.users[role] = i.User.ID
	}
	return out
}

// token makes an API token of a user; all scopes if none are named.
func (s *stage) token(of *tenant, role api.Role, scopes ...control.Permission) string {
	s.t.Helper()
	if len(scopes) == 0 {
		scopes = control.Permissions()
	}
	n := api.NewToken{Name: "test"}
	for _, p := range scopes {
		n.Scopes = append(n.Scopes, string(p))
	}
	t, err := s.auth.NewToken(s.t.Context(), auth.Principal{User: of.users[role], Tenant: of.id, Role: role, Via: auth.ViaSession}, n)
	if err != nil {
		s.t.Fatal(err)
	}
	return t.Secret
}

// session signs a user in by password and returns the cookie.
func (s *stage) session(of *tenant, role api.Role) *http.Cookie {
	s.t.Helper()
	i, err := s.auth.InviteAgain(s.t.Context(), of.id, of.users[role])
	if err != nil {
		s.t.Fatal(err)
	}
	_, token, _ := strings.Cut(i.Link, "token=")
	s.ask("POST", "/auth/invitation", "", api.NewPassword{Token: token, Password: secretWord}).want(204)
	got := s.ask("POST", "/auth/sign-in", "", api.SignIn{Email: of.mail[role], Password: secretWord}).want(200)
	for _, c := range got.Cookies() {
		if c.Name == s.auth.CookieName(auth.SessionCookie) {
			return c
		}
	}
	s.t.Fatal("no session's cookie")
	return nil
}

// answer is a response that was read.
type answer struct {
	*http.Response
	t    *testing.T
	text []byte
}

// ask sends a request with a token, if there is one, and a body: JSON of a value, or a string as it is.
func (s *stage) ask(method, path, token string, body any, edit ...func(*http.Request)) *answer {
	s.t.Helper()
	return s.askContext(s.t.Context(), method, path, token, body, edit...)
}

func (s *stage) askContext(ctx context.Context, method, path, token string, body any, edit ...func(*http.Request)) *answer {
	s.t.Helper()
	var content io.Reader
	switch b := body.(type) {
	case nil:
	case string:
		content = strings.NewReader(b)
	default:
		text, err := json.Marshal(b)
		if err != nil {
			s.t.Fatal(err)
		}
		content = bytes.NewReader(text)
	}
	if !strings.HasPrefix(path, "!") {
		path = prefix + path
	}
	r, err := http.NewRequestWithContext(ctx, method, s.http.URL+strings.TrimPrefix(path, "!"), content)
	if err != nil {
		s.t.Fatal(err)
	}
	if content != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	for _, f := range edit {
		f(r)
	}
	plain := *s.http.Client()
	plain.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	got, err := plain.Do(r)
	if err != nil {
		s.t.Fatal(err)
	}
	defer got.Body.Close()
	text, err := io.ReadAll(got.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return &answer{got, s.t, text}
}

func (a *answer) want(status int) *answer {
	a.t.Helper()
	if a.StatusCode != status {
		a.t.Fatalf("%s %s: %d %s, want %d", a.Request.Method, a.Request.URL.Path, a.StatusCode, a.text, status)
	}
	return a
}

func (a *answer) into(v any) *answer {
	a.t.Helper()
	if err := json.Unmarshal(a.text, v); err != nil {
		a.t.Fatalf("%s %s: %s: %v", a.Request.Method, a.Request.URL.Path, a.text, err)
	}
	return a
}

// problem reads an error and checks its form.
func (a *answer) problem(status int, code string) api.Problem {
	a.t.Helper()
	var p api.Problem
	a.want(status).into(&p)
	if p.Code != code || p.Status != status || p.ID == "" || p.Type != "about:blank" || a.Header.Get("Content-Type") != "application/problem+json" {
		a.t.Fatalf("%s %s: %s %s, want code %s", a.Request.Method, a.Request.URL.Path, a.Header.Get("Content-Type"), a.text, code)
	}
	return p
}

func with(name, value string) func(*http.Request) {
	return func(r *http.Request) { r.Header.Set(name, value) }
}

func cookie(c *http.Cookie) func(*http.Request) { return func(r *http.Request) { r.AddCookie(c) } }

// log1 returns the audit log's lines with a kind.
func (s *stage) log1(t *testing.T, kind string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(s.dir, "audit", "log.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for line := range strings.Lines(string(text)) {
		if strings.Contains(line, `"`+kind+`"`) {
			found = append(found, line)
		}
	}
	return strings.Join(found, "")
}

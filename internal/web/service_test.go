package web

import (
	"encoding/base32"
	"io"
	"log/slog"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/internal/auth"
	"github.com/cofferdam/cofferdam/internal/auth/totp"
	"github.com/cofferdam/cofferdam/internal/control/controltest"
	"github.com/cofferdam/cofferdam/internal/policy"
	"github.com/cofferdam/cofferdam/internal/secret"
)

// person is a browser without scripts, before pages with the real operations behind them.
type person struct {
	*http.Client
	t    *testing.T
	url  string
	auth *auth.Service
}

func newPerson(t *testing.T) *person {
	t.Helper()
	service := controltest.New(t, "http://localhost:8080", slog.New(slog.NewTextHandler(t.Output(), nil)))
	pages, err := New(Options{Control: service, Auth: service.Auth, BaseURL: service.BaseURL, Log: service.Log})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(pages)
	t.Cleanup(server.Close)
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	return &person{Client: &http.Client{Jar: jar}, t: t, url: server.URL, auth: service.Auth}
}

// read returns a page's text and where it is, after redirects.
func (p *person) read(r *http.Response, err error) (text, where string) {
	p.t.Helper()
	if err != nil {
		p.t.Fatal(err)
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		p.t.Fatal(err)
	}
	if r.StatusCode >= 500 {
		p.t.Fatalf("%s: status %d: %s", r.Request.URL, r.StatusCode, b)
	}
	text = string(b)
	if i := strings.Index(text, "<main"); i >= 0 {
		text = text[i:]
	}
	return text, r.Request.URL.RequestURI()
}

func (p *person) open(path string) (text, where string) {
	p.t.Helper()
	return p.read(p.Get(p.url + path))
}

func (p *person) send(path string, pairs ...string) (text, where string) {
	p.t.Helper()
	form := url.Values{}
	for i := 0; i+1 < len(pairs); i += 2 {
		form.Add(pairs[i], pairs[i+1])
	}
	return p.read(p.PostForm(p.url+path, form))
}

func (p *person) setUp() {
	p.t.Helper()
	ticket, _, err := p.auth.SetupToken(p.t.Context())
	if err != nil {
		p.t.Fatal(err)
	}
	const pass = "correct horse battery staple"
	if text, where := p.send("/setup", "token", ticket.Text(), "email", "ada@example.com", "name", "Ada", "tenant", "acme", "password", pass, "again", pass); where != "/" {
		p.t.Fatalf("set up leads to %s: %s", where, text)
	}
}

func found(t *testing.T, text, pattern string) string {
	t.Helper()
	m := regexp.MustCompile(pattern).FindStringSubmatch(text)
	if m == nil {
		t.Fatalf("no %s in %s", pattern, text)
	}
	return m[1]
}

// TestWithTheService goes from an empty server to an agent, as a new person does, and through the account.
func TestWithTheService(t *testing.T) {
	p := newPerson(t)
	if text, where := p.open("/"); where != "/sign-in" || !strings.Contains(text, "Nobody has an account yet") {
		t.Fatalf("an empty server shows %s", where)
	}
	p.setUp()
	text, _ := p.open("/")
	if !strings.Contains(text, `data-test="first-steps"`) {
		t.Fatalf("no first steps: %s", text)
	}
	text, where := p.send("/agents", "name", "first", "policy", "nothing")
	if !strings.HasPrefix(where, "/agents/") || !strings.Contains(text, `data-test="start"`) {
		t.Fatalf("making an agent leads to %s: %s", where, text)
	}
	if text, _ := p.send("/agents", "name", "first", "policy", "nothing"); !strings.Contains(text, `id="f-name-error"`) {
		t.Errorf("a name that is taken: %s", text)
	}
	if text, where := p.send("/policies", "name", "base", "text", starterPolicy); !strings.Contains(where, "policy-made") {
		t.Errorf("a policy leads to %s: %s", where, text)
	}
	if text, where := p.send("/credentials", "kind", "static", "name", "github", "hosts", "api.github.com", "secret.value", "ghp_0123456789abcdefghij"); !strings.Contains(where, "credential-made") || strings.Contains(text, "ghp_") {
		t.Errorf("a credential leads to %s: %s", where, text)
	}
	if text, where := p.send("/git/upstreams/new", "name", "forge", "type", "gitea", "url", "https://git.example.com", "credential", "github"); !strings.Contains(where, "upstream-saved") {
		t.Errorf("a Git server leads to %s: %s", where, text)
	}
	if text, where := p.send("/git/profiles/new", "name", "reader", "text", starterProfile, "path_upstream", "forge", "path_kind", "exact", "path", "acme/site"); !strings.Contains(where, "profile-saved") {
		t.Errorf("an access profile leads to %s: %s", where, text)
	}
	text, _ = p.send("/users", "email", "grace@example.com", "role", "reviewer")
	found(t, text, `value="http://localhost:8080(/invitation\?token=[^"]+)"`)
	text, _ = p.send("/account/tokens", "name", "ci", "days", "7", "scope", "agents:read")
	found(t, text, `value="(cfd_pat_[^"]+)"`)
	if text, where := p.send("/settings", "max_sandboxes", "5", "retention_days", "30", "four_eyes", "yes", "version", found(t, p.body("/settings"), `name="version" value="(\d+)"`)); !strings.Contains(where, "settings-changed") {
		t.Errorf("settings lead to %s: %s", where, text)
	}
	for _, address := range []string{"/agents", "/sandboxes?show=all", "/sandboxes/new", "/review", "/rules", "/policies", "/credentials", "/credentials/github", "/git", "/audit", "/audit?verdict=deny", "/users", "/workspaces", "/settings", "/account", "/server"} {
		text, where := p.open(address)
		if where != address || !strings.Contains(text, `class="main`) || strings.Contains(text, "Something went wrong") {
			t.Errorf("%s leads to %s: %s", address, where, text)
		}
		checkTree(t, parse(t, text))
	}
}

func (p *person) body(path string) string {
	p.t.Helper()
	text, _ := p.open(path)
	return text
}

// TestSecondFactor sets up an authenticator app and signs in with it.
func TestSecondFactor(t *testing.T) {
	p := newPerson(t)
	p.setUp()
	const pass = "correct horse battery staple"
	text, _ := p.send("/account/totp", "current", pass)
	shown := found(t, text, `<p class="mono small wrap">([A-Z2-7 ]+)</p>`)
	if !strings.Contains(text, "<svg") {
		t.Error("no QR code")
	}
	code := codeOf(t, shown)
	text, _ = p.send("/account/totp/confirm", "one_time", code)
	recovery := found(t, text, `<ul class="codes"><li>([^<]+)</li>`)
	if _, where := p.send("/sign-out"); where != "/sign-in?done=signed-out" {
		t.Fatalf("signing out leads to %s", where)
	}
	if _, where := p.send("/sign-in", "email", "ada@example.com", "password", pass, "next", "/agents"); !strings.HasPrefix(where, "/sign-in/code?") || !strings.Contains(where, "code=yes") {
		t.Fatalf("the password alone leads to %s", where)
	}
	if text, _ := p.send("/sign-in/code", "one_time", "000000", "next", "/agents", "code_too", "yes"); !strings.Contains(text, `role="alert"`) {
		t.Errorf("a wrong code: %s", text)
	}
	if text, where := p.send("/sign-in/code", "one_time", recovery, "next", "/agents"); where != "/agents" {
		t.Fatalf("a recovery code leads to %s: %s", where, text)
	}
}

// codeOf is what an authenticator app would show.
func codeOf(t *testing.T, text string) string {
	t.Helper()
	key, err := base32.StdEncoding.WithPadding(base32.NoPadding).DecodeString(strings.ReplaceAll(text, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return totp.Code(secret.New(key), totp.Step(time.Now()))
}

func TestStartersAreValid(t *testing.T) {
	if _, err := policy.Parse("", []byte(starterPolicy)); err != nil {
		t.Error(err)
	}
	if got, _ := splitCommand("sh -c 'id; uname -a; curl -sS https://example.com'"); len(got) != 3 {
		t.Errorf("the example is %q", got)
	}
}

package auth

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/auth/limit"
	"github.com/cofferdam/cofferdam/internal/auth/mail"
	"github.com/cofferdam/cofferdam/internal/auth/password"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/seal"
	"github.com/cofferdam/cofferdam/internal/store"
)

const (
	adminEmail = "ada@example.com"
	goodPass   = "correct horse battery"
	otherPass  = "wrong horse battery"
)

// fixture is a service on a real store with a real vault, whose clock the test moves.
type fixture struct {
	*Service
	t      *testing.T
	hasher *password.Hasher
	vault  *seal.Vault
	mails  *mailbox
	admin  Outcome // of the set-up

	mu  sync.Mutex
	now time.Time
}

func (f *fixture) clock() time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.now
}

func (f *fixture) advance(d time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.now = f.now.Add(d)
}

// mailbox is a mailer that keeps.
type mailbox struct{ messages chan mail.Message }

func (m *mailbox) Send(_ context.Context, one mail.Message) error {
	m.messages <- one
	return nil
}

// empty is a service that nobody has set up.
func empty(t *testing.T, options ...func(*Options)) *fixture {
	t.Helper()
	f := &fixture{t: t, now: time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC), mails: &mailbox{messages: make(chan mail.Message, 200)}}
	f.hasher = password.NewHasher(password.Parameters{Memory: 64, Time: 1, Threads: 1}, 0, time.Minute)
	f.vault = seal.OpenVault(filepath.Join(t.TempDir(), "seal"), func(string) string { return "" })
	if _, err := f.vault.Init(t.Context(), seal.Source{}); err != nil {
		t.Fatal(err)
	}
	o := Options{BaseURL: "https://cofferdam.example.com", Limiter: limit.NewMemory(f.clock, 0), Sealer: f.vault, Mailer: f.mails,
		Hasher: f.hasher, Clock: f.clock, Scopes: []string{"agents:read", "sandboxes:write"}, Log: slog.New(slog.NewTextHandler(t.Output(), nil))}
	for _, change := range options {
		change(&o)
	}
	if o.DB == nil {
		o.DB = openStore(t, "sqlite:"+filepath.Join(t.TempDir(), "store.db"))
	}
	var err error
	if f.Service, err = New(o); err != nil {
		t.Fatal(err)
	}
	return f
}

func openStore(t *testing.T, dsn string) *store.DB {
	t.Helper()
	db, err := store.Open(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return db
}

// start is a service with an administrator.
func start(t *testing.T, options ...func(*Options)) *fixture {
	t.Helper()
	f := empty(t, options...)
	token, _, err := f.SetupToken(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if f.admin, err = f.CompleteSetup(t.Context(), token.Text(), adminEmail, "Ada", goodPass, "Analytical"); err != nil {
		t.Fatal(err)
	}
	return f
}

// home is where the administrator sits, afar somebody else, one address for each number.
func home() Visitor { return Visitor{Address: netip.MustParseAddr("192.0.2.1"), Agent: "Browser/1"} }
func afar(n int) Visitor {
	return Visitor{Address: netip.AddrFrom4([4]byte{198, 51, byte(n / 256), byte(n % 256)}), Agent: "Browser/2"}
}

// signIn expects a session.
func (f *fixture) signIn(email, pass string) Outcome {
	f.t.Helper()
	out, err := f.SignIn(f.t.Context(), email, pass, home())
	if err != nil || out.Session == nil {
		f.t.Fatalf("sign in: %+v, %v", out, err)
	}
	return out
}

// join makes a user with the good password.
func (f *fixture) join(email string, role api.Role) api.User {
	f.t.Helper()
	i, err := f.AddUser(f.t.Context(), f.admin.Tenant, api.NewUser{Email: email, Role: role})
	if err != nil {
		f.t.Fatal(err)
	}
	if _, err := f.AcceptInvitation(f.t.Context(), tokenIn(f.t, i.Link), goodPass); err != nil {
		f.t.Fatal(err)
	}
	u, err := f.GetUser(f.t.Context(), f.admin.Tenant, i.User.ID)
	if err != nil {
		f.t.Fatal(err)
	}
	return u
}

// tokenIn finds the secret of a link in a text.
func tokenIn(t *testing.T, text string) string {
	t.Helper()
	found := regexp.MustCompile(`https?://\S+\?token=\S+`).FindString(text)
	u, err := url.Parse(found)
	if err != nil || u.Query().Get("token") == "" {
		t.Fatalf("no link in %q", text)
	}
	return u.Query().Get("token")
}

// wants is what an error must be.
func wants(t *testing.T, what string, err error, kind fault.Kind) {
	t.Helper()
	if err == nil || fault.KindOf(err) != kind {
		t.Errorf("%s: %v, want %v", what, err, kind)
	}
}

// race runs f n times at once and counts how often it succeeded.
func race(t *testing.T, n int, f func() error, kinds ...fault.Kind) int {
	t.Helper()
	var mu sync.Mutex
	var wg sync.WaitGroup
	won := 0
	for range n {
		wg.Go(func() {
			err := f()
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				won++
				return
			}
			for _, kind := range kinds {
				if fault.KindOf(err) == kind {
					return
				}
			}
			t.Errorf("a loser: %v", err)
		})
	}
	wg.Wait()
	return won
}

func TestNew(t *testing.T) {
	db := openStore(t, "sqlite:"+filepath.Join(t.TempDir(), "store.db"))
	for _, c := range []struct {
		base string
		ok   bool
	}{
		{"https://cofferdam.example.com", true},
		{"https://cofferdam.example.com/", true},
		{"https://192.0.2.1:8443", true},
		{"http://localhost:8080", true},
		{"http://127.0.0.1:8080", true},
		{"http://[::1]:8080", true},
		{"http://cofferdam.example.com", false},
		{"http://192.0.2.1", false},
		{"http://localhost.example.com", false},
		{"http://127.0.0.1.example.com", false},
		{"https://cofferdam.example.com/path", false},
		{"https://user@cofferdam.example.com", false},
		{"https://cofferdam.example.com?x", false},
		{"ftp://localhost", false},
		{"cofferdam.example.com", false},
		{"", false},
	} {
		if _, err := New(Options{DB: db, Limiter: limit.NewMemory(time.Now, 0), BaseURL: c.base}); (err == nil) != c.ok {
			t.Errorf("%q: %v", c.base, err)
		}
	}
	if _, err := New(Options{BaseURL: "https://cofferdam.example.com"}); err == nil {
		t.Error("a service without store and limiter")
	}
}

func TestEnums(t *testing.T) {
	seen := map[string]bool{}
	for v := ViaNothing; v <= ViaToken; v++ {
		if seen[v.String()] || strings.HasPrefix(v.String(), "via(") {
			t.Errorf("%d is called %q", v, v)
		}
		seen[v.String()] = true
	}
	if (ViaToken + 1).String() != "via(3)" {
		t.Error("a way beyond the last has a name")
	}
	for c := SessionCookie; c <= OIDCCookie; c++ {
		if seen[c.String()] || strings.HasPrefix(c.String(), "cookie(") {
			t.Errorf("%d is called %q", c, c)
		}
		seen[c.String()] = true
	}
	if NoCookie.String() != "cookie(0)" || (OIDCCookie+1).String() != "cookie(6)" {
		t.Error("what is no cookie has a name")
	}
}

func TestNetwork(t *testing.T) {
	for address, want := range map[string]string{
		"192.0.2.1":             "192.0.2.1",
		"::ffff:192.0.2.1":      "192.0.2.1",
		"2001:db8:1:2:3:4:5:6":  "2001:db8:1:2::/64",
		"2001:db8:1:2::1":       "2001:db8:1:2::/64",
		"fe80::1%eth0":          "fe80::/64",
		"2001:db8:1:3:3:4:5:6a": "2001:db8:1:3::/64",
	} {
		if got := (Visitor{Address: netip.MustParseAddr(address)}).network(); got != want {
			t.Errorf("%s: %s, want %s", address, got, want)
		}
	}
	if got := (Visitor{}).network(); got != "invalid IP" {
		t.Error(got)
	}
}

func TestParseEmail(t *testing.T) {
	for text, want := range map[string]string{
		"Ada@Example.COM":   "ada@example.com",
		" ada@example.com ": "ada@example.com",
		"a.b+c@x.example":   "a.b+c@x.example",
		"ada@localhost":     "ada@localhost",
		"ada":               "", "ada@": "", "@example.com": "", "a@b@c": "", "a..b@example.com": "", ".a@example.com": "",
		"ada@exa mple.com": "", "ada@example.com\r\nBcc: x@y": "", "ada@-x.com": "", "ada@x-.com": "", "ada@example..com": "",
		`"ada"@example.com`: "", "ada@[192.0.2.1]": "", "аda@example.com": "", "ada<x>@example.com": "", "ada@" + strings.Repeat("a", 64) + ".com": "",
		strings.Repeat("a", 65) + "@example.com": "", "a@" + strings.Repeat("a.", 130) + "com": "", "": "",
	} {
		if got, err := ParseEmail(text); got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v", text, got, err)
		}
	}
}

func FuzzParseEmail(f *testing.F) {
	f.Add("ada@example.com")
	f.Add("A.b+c@x-y.example")
	f.Fuzz(func(t *testing.T, text string) {
		email, err := ParseEmail(text)
		if err != nil {
			return
		}
		if again, err := ParseEmail(email); err != nil || again != email {
			t.Errorf("%q is %q, then %q, %v", text, email, again, err)
		}
		if strings.ContainsAny(email, "\r\n <>\",;") || strings.Count(email, "@") != 1 {
			t.Errorf("%q passed", email)
		}
		if err := mail.NewPrint(t.Output()).Send(t.Context(), mail.Message{To: email}); err != nil {
			t.Errorf("%q cannot be written to: %v", email, err)
		}
	})
}

func TestCookies(t *testing.T) {
	for base, want := range map[string]string{
		"https://cofferdam.example.com": "__Host-cofferdam=TEXT; Path=/; Max-Age=604800; HttpOnly; Secure; SameSite=Lax",
		"http://localhost:8080":         "cofferdam=TEXT; Path=/; Max-Age=604800; HttpOnly; SameSite=Lax",
	} {
		f := empty(t, func(o *Options) { o.BaseURL = base })
		ticket, err := f.issue(t.Context(), kindSession, "t", "u", SessionIdle, sessionData{})
		if err != nil {
			t.Fatal(err)
		}
		w := httptest.NewRecorder()
		f.SetCookie(w, SessionCookie, ticket)
		if got := w.Header().Get("Set-Cookie"); got != strings.Replace(want, "TEXT", ticket.Text(), 1) {
			t.Errorf("%s", got)
		}
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		if got := f.ReadCookie(r, SessionCookie); got != "" {
			t.Errorf("no cookie is %q", got)
		}
		r.AddCookie(&http.Cookie{Name: f.CookieName(SessionCookie), Value: ticket.Text()})
		if got := f.ReadCookie(r, SessionCookie); got != ticket.Text() {
			t.Errorf("read %q", got)
		}
		if got := f.ReadCookie(r, DeviceCookie); got != "" {
			t.Errorf("another cookie is %q", got)
		}
		r.AddCookie(&http.Cookie{Name: f.CookieName(SessionCookie), Value: "planted"})
		if got := f.ReadCookie(r, SessionCookie); got != "" {
			t.Errorf("of two %q is taken", got)
		}
		w = httptest.NewRecorder()
		f.ClearCookie(w, DeviceCookie)
		if got := w.Header().Get("Set-Cookie"); !strings.HasPrefix(got, f.CookieName(DeviceCookie)+"=; Path=/; Max-Age=0; HttpOnly") {
			t.Errorf("%s", got)
		}
	}
}

// TestTicketsStaySecret prints what holds secrets.
func TestTicketsStaySecret(t *testing.T) {
	f := start(t)
	out := f.signIn(adminEmail, goodPass)
	var b strings.Builder
	slog.New(slog.NewTextHandler(&b, nil)).Info("x", "outcome", out, "ticket", *out.Session)
	if strings.Contains(b.String(), out.Session.Text()) {
		t.Errorf("%s", b.String())
	}
}

func TestInWords(t *testing.T) {
	for d, want := range map[time.Duration]string{0: "1 second", time.Millisecond: "1 second", 90 * time.Second: "90 seconds", 14*time.Minute + time.Second: "15 minutes", 5*time.Hour - time.Second: "5 hours"} {
		if got := inWords(d); got != want {
			t.Errorf("%v: %s", d, got)
		}
	}
}

func TestLocalPath(t *testing.T) {
	for text, want := range map[string]string{"/x?y=z#a": "/x?y=z#a", "": "/", "x": "/", "//evil.example": "/", "/\\evil.example": "/", "https://evil.example": "/", "/\tx": "/", "javascript:alert(1)": "/", "/a//b": "/a//b"} {
		if got := LocalPath(text); got != want {
			t.Errorf("%q: %q", text, got)
		}
	}
}

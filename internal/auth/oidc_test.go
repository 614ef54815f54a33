package auth

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/auth/totp"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/secret"
	"github.com/cofferdam/cofferdam/internal/store"
)

// issuer is a sign-in service over TLS on loopback.
type issuer struct {
	*httptest.Server
	t      *testing.T
	f      *fixture
	key    *ecdsa.PrivateKey
	client string
	secret string
	down   atomic.Bool
	// What the person at the service is, and how the service errs.
	claims map[string]any
	err    func(claims map[string]any)
	sign   func(claims []byte) string
	codes  map[string]url.Values // code: the request for it
}

func newIssuer(t *testing.T) *issuer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	i := &issuer{t: t, key: key, client: "cofferdam", secret: "hush", codes: map[string]url.Values{}}
	mux := http.NewServeMux()
	mux.HandleFunc("/.well-known/openid-configuration", i.discovery)
	mux.HandleFunc("/keys", i.keys)
	mux.HandleFunc("/token", i.token)
	i.Server = httptest.NewTLSServer(mux)
	t.Cleanup(i.Close)
	i.sign = i.es256
	i.claims = map[string]any{"sub": "s-1", "email": "Bob@Example.com", "email_verified": true, "name": "Bob"}
	return i
}

func (i *issuer) answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(v); err != nil {
		i.t.Error(err)
	}
}

func (i *issuer) discovery(w http.ResponseWriter, _ *http.Request) {
	if i.down.Load() {
		http.Error(w, "down", http.StatusServiceUnavailable)
		return
	}
	i.answer(w, map[string]any{"issuer": i.URL, "authorization_endpoint": i.URL + "/authorize", "token_endpoint": i.URL + "/token", "jwks_uri": i.URL + "/keys",
		"id_token_signing_alg_values_supported": []string{"ES256", "HS256", "none"}})
}

func (i *issuer) keys(w http.ResponseWriter, _ *http.Request) {
	i.answer(w, jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: i.key.Public(), KeyID: "1", Algorithm: "ES256", Use: "sig"}}})
}

// token checks what an honest service checks: the client's secret, the redirect, the code and the PKCE verifier.
func (i *issuer) token(w http.ResponseWriter, r *http.Request) {
	user, pass, _ := r.BasicAuth()
	asked, ok := i.codes[r.PostFormValue("code")]
	delete(i.codes, r.PostFormValue("code"))
	sum := sha256.Sum256([]byte(r.PostFormValue("code_verifier")))
	if !ok || user != i.client || pass != i.secret || r.PostFormValue("redirect_uri") != asked.Get("redirect_uri") || base64.RawURLEncoding.EncodeToString(sum[:]) != asked.Get("code_challenge") {
		http.Error(w, `{"error":"invalid_grant"}`, http.StatusBadRequest)
		return
	}
	claims := maps.Clone(i.claims)
	now := i.f.clock()
	maps.Copy(claims, map[string]any{"iss": i.URL, "aud": i.client, "nonce": asked.Get("nonce"), "iat": now.Unix(), "exp": now.Add(time.Hour).Unix()})
	if i.err != nil {
		i.err(claims)
	}
	payload, err := json.Marshal(claims)
	if err != nil {
		i.t.Error(err)
	}
	i.answer(w, map[string]any{"access_token": "x", "token_type": "Bearer", "id_token": i.sign(payload)})
}

func (i *issuer) es256(payload []byte) string {
	return i.signed(jose.SigningKey{Algorithm: jose.ES256, Key: i.key}, payload)
}

func (i *issuer) signed(key jose.SigningKey, payload []byte) string {
	signer, err := jose.NewSigner(key, (&jose.SignerOptions{}).WithHeader("kid", "1"))
	if err != nil {
		i.t.Error(err)
		return ""
	}
	object, err := signer.Sign(payload)
	if err != nil {
		i.t.Error(err)
		return ""
	}
	text, err := object.CompactSerialize()
	if err != nil {
		i.t.Error(err)
	}
	return text
}

// authorize is the person saying yes at the service: it returns the query of the callback.
func (i *issuer) authorize(address string) url.Values {
	i.t.Helper()
	u, err := url.Parse(address)
	if err != nil || !strings.HasPrefix(address, i.URL+"/authorize?") {
		i.t.Fatalf("%s, %v", address, err)
	}
	q := u.Query()
	if q.Get("client_id") != i.client || q.Get("response_type") != "code" || q.Get("code_challenge_method") != "S256" || q.Get("scope") != "openid email profile" ||
		q.Get("redirect_uri") != "https://cofferdam.example.com/signin/oidc/corp/callback" || q.Get("nonce") == "" || q.Get("state") == "" || q.Get("nonce") == q.Get("state") {
		i.t.Errorf("%v", q)
	}
	code := randomText(16)
	i.codes[code] = q
	return url.Values{"code": {code}, "state": {q.Get("state")}, "iss": {i.URL}}
}

// withIssuer is a service with a sign-in service that makes accounts for corp.example.
func withIssuer(t *testing.T) (*fixture, *issuer) {
	t.Helper()
	i := newIssuer(t)
	f := start(t)
	i.f = f
	if err := f.addProvider(Provider{ID: "corp", Name: "Corp", Issuer: i.URL, ClientID: i.client, Secret: secret.New([]byte(i.secret)), Domains: []string{"Corp.example"}, Tenant: f.admin.Tenant, Transport: i.Client().Transport}); err != nil {
		t.Fatal(err)
	}
	return f, i
}

// visit goes to the service and comes back.
func (f *fixture) visit(i *issuer) (Outcome, error) {
	f.t.Helper()
	address, browser, err := f.BeginOIDC(f.t.Context(), "corp", "/inbox", home())
	if err != nil {
		f.t.Fatal(err)
	}
	out, to, err := f.FinishOIDC(f.t.Context(), "corp", browser.Text(), i.authorize(address), home())
	if err == nil && to != "/inbox" {
		f.t.Errorf("back to %q", to)
	}
	return out, err
}

func TestOIDC(t *testing.T) {
	f, i := withIssuer(t)
	if list := f.Providers(); len(list) != 1 || list[0] != (ProviderInfo{"corp", "Corp"}) {
		t.Errorf("%+v", list)
	}
	_, err := f.visit(i)
	wants(t, "nobody invited bob", err, fault.Denied)
	bob := f.join("bob@example.com", api.Developer)
	out, err := f.visit(i)
	if err != nil || out.Session == nil || out.User != bob.ID || out.Method != "oidc:corp" {
		t.Fatalf("%+v, %v", out, err)
	}
	if _, err := f.Session(t.Context(), out.Session.Text()); err != nil {
		t.Error(err)
	}
	// From now on it is the subject that counts.
	i.claims["email"], i.claims["email_verified"] = "somebody@else.example", false
	if out, err := f.visit(i); err != nil || out.User != bob.ID {
		t.Errorf("%+v, %v", out, err)
	}
	// Another person with bob's address at the service does not become bob.
	i.claims = map[string]any{"sub": "s-2", "email": "bob@example.com", "email_verified": true}
	_, err = f.visit(i)
	wants(t, "another subject", err, fault.Denied)

	i.claims = map[string]any{"sub": "s-1"}
	disabled := true
	if _, err := f.ChangeUser(t.Context(), f.admin.Tenant, bob.ID, 0, api.UserChange{Disabled: &disabled}); err != nil {
		t.Fatal(err)
	}
	_, err = f.visit(i)
	wants(t, "disabled", err, fault.Denied)
	if err := f.RemoveUser(t.Context(), f.admin.Tenant, bob.ID, 0); err != nil {
		t.Fatal(err)
	}
	_, err = f.visit(i)
	wants(t, "removed", err, fault.Denied)
	if n, err := identities().Count(t.Context(), f.db, "", store.Filter{}); n != 0 || err != nil {
		t.Errorf("%d identities of nobody, %v", n, err)
	}
}

func TestOIDCNewAccount(t *testing.T) {
	f, i := withIssuer(t)
	for _, c := range []struct {
		name   string
		claims map[string]any
		ok     bool
	}{
		{"not verified", map[string]any{"sub": "n-1", "email": "carol@corp.example", "email_verified": false}, false},
		{"not said to be", map[string]any{"sub": "n-1", "email": "carol@corp.example"}, false},
		{"verified by a number", map[string]any{"sub": "n-1", "email": "carol@corp.example", "email_verified": 1}, false},
		{"another domain", map[string]any{"sub": "n-1", "email": "carol@example.net", "email_verified": true}, false},
		{"below the domain", map[string]any{"sub": "n-1", "email": "carol@evil.corp.example", "email_verified": true}, false},
		{"ending like it", map[string]any{"sub": "n-1", "email": "carol@evilcorp.example", "email_verified": true}, false},
		{"two addresses", map[string]any{"sub": "n-1", "email": "x@evil.example@corp.example", "email_verified": true}, false},
		{"good", map[string]any{"sub": "n-1", "email": "carol@corp.example", "email_verified": "true", "name": "Carol\u202e\n"}, true},
	} {
		i.claims = c.claims
		out, err := f.visit(i)
		if !c.ok {
			wants(t, c.name, err, fault.Denied)
			continue
		}
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		if u, err := f.GetUser(t.Context(), f.admin.Tenant, out.User); err != nil || u.Role != api.Viewer || u.Operator || u.Password || u.Email != "carol@corp.example" || u.Name != "Carol" {
			t.Errorf("%s: %+v, %v", c.name, u, err)
		}
		if again, err := f.visit(i); err != nil || again.User != out.User {
			t.Errorf("%s: again: %+v, %v", c.name, again, err)
		}
		wants(t, "disconnected without a password", f.Disconnect(t.Context(), out.Principal, ""), fault.Conflict)
	}
}

// TestOIDCTokens are identity tokens that must not be believed.
func TestOIDCTokens(t *testing.T) {
	f, i := withIssuer(t)
	f.join("bob@example.com", api.Viewer)
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	public, err := i.key.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	claim := func(name string, value any) func(map[string]any) {
		return func(c map[string]any) { c[name] = value }
	}
	for _, c := range []struct {
		name string
		err  func(map[string]any)
		sign func([]byte) string
	}{
		{"another issuer", claim("iss", "https://evil.example"), nil},
		{"another audience", claim("aud", "another"), nil},
		{"ours among several, for another", func(c map[string]any) { c["aud"], c["azp"] = []string{i.client, "another"}, "another" }, nil},
		{"ours among several", claim("aud", []string{i.client, "another"}), nil},
		{"made for another", claim("azp", "another"), nil},
		{"another nonce", claim("nonce", "x"), nil},
		{"no nonce", func(c map[string]any) { delete(c, "nonce") }, nil},
		{"expired", claim("exp", f.clock().Add(-time.Minute).Unix()), nil},
		{"no subject", claim("sub", ""), nil},
		{"a long subject", claim("sub", strings.Repeat("x", 256)), nil},
		{"another key", nil, func(p []byte) string { return i.signed(jose.SigningKey{Algorithm: jose.ES256, Key: other}, p) }},
		{"HMAC under the public key", nil, func(p []byte) string { return i.signed(jose.SigningKey{Algorithm: jose.HS256, Key: public}, p) }},
		{"HMAC under the client's secret", nil, func(p []byte) string {
			return i.signed(jose.SigningKey{Algorithm: jose.HS256, Key: []byte(strings.Repeat(i.secret, 10))}, p)
		}},
		{"no signature", nil, func(p []byte) string {
			return base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none"}`)) + "." + base64.RawURLEncoding.EncodeToString(p) + "."
		}},
		{"changed after signing", nil, func(p []byte) string {
			parts := strings.Split(i.es256(p), ".")
			return parts[0] + "." + base64.RawURLEncoding.EncodeToString([]byte(strings.Replace(string(p), "Bob", "Eve", 1))) + "." + parts[2]
		}},
	} {
		i.err, i.sign = c.err, i.es256
		if c.sign != nil {
			i.sign = c.sign
		}
		out, err := f.visit(i)
		if err == nil || fault.KindOf(err) != fault.Unauthenticated {
			t.Errorf("%s: %+v, %v", c.name, out, err)
		}
	}
	i.err, i.sign = func(c map[string]any) { c["aud"], c["azp"] = []string{i.client, "another"}, i.client }, i.es256
	if _, err := f.visit(i); err != nil {
		t.Errorf("ours among several, and made for us: %v", err)
	}
}

// TestOIDCBrowser brings back answers that this browser did not ask for.
func TestOIDCBrowser(t *testing.T) {
	f, i := withIssuer(t)
	f.join("bob@example.com", api.Viewer)
	begin := func() (url.Values, string) {
		address, browser, err := f.BeginOIDC(t.Context(), "corp", "//evil.example", home())
		if err != nil {
			t.Fatal(err)
		}
		return i.authorize(address), browser.Text()
	}
	finish := func(browser string, q url.Values) error {
		_, to, err := f.FinishOIDC(t.Context(), "corp", browser, q, home())
		if to != "/" {
			t.Errorf("to %q", to)
		}
		return err
	}
	mine, browser := begin()
	theirs, _ := begin()
	wants(t, "another's answer", finish(browser, theirs), fault.Unauthenticated)
	wants(t, "after a wrong answer", finish(browser, mine), fault.Unauthenticated)
	mine, browser = begin()
	mixed := url.Values{"code": theirs["code"], "state": mine["state"]}
	wants(t, "another's code", finish(browser, mixed), fault.Unavailable) // the service refuses the verifier
	mine, browser = begin()
	if err := finish(browser, mine); err != nil {
		t.Fatal(err)
	}
	wants(t, "again", finish(browser, mine), fault.Unauthenticated)
	mine, _ = begin()
	wants(t, "no cookie", finish("", mine), fault.Unauthenticated)
	mine, browser = begin()
	mine.Set("iss", "https://evil.example")
	wants(t, "another service's answer", finish(browser, mine), fault.Unauthenticated)
	mine, browser = begin()
	wants(t, "refused by the person", finish(browser, url.Values{"state": mine["state"], "error": {"access_denied"}}), fault.Denied)
	mine, browser = begin()
	wants(t, "no code", finish(browser, url.Values{"state": mine["state"]}), fault.Denied)
	mine, browser = begin()
	f.advance(oidcLife)
	wants(t, "ten minutes later", finish(browser, mine), fault.Unauthenticated)
	if err := f.addProvider(Provider{ID: "second", Issuer: "https://second.example", ClientID: "x"}); err != nil {
		t.Fatal(err)
	}
	mine, browser = begin()
	_, _, err := f.FinishOIDC(t.Context(), "second", browser, mine, home())
	wants(t, "at another service's callback", err, fault.Unauthenticated)
	_, _, err = f.FinishOIDC(t.Context(), "third", browser, mine, home())
	wants(t, "at no service's callback", err, fault.NotFound)
}

// TestOIDCSecondFactor keeps the service from taking over an account that has a second factor here.
func TestOIDCSecondFactor(t *testing.T) {
	f, i := withIssuer(t)
	bob := f.join("bob@example.com", api.Viewer)
	key, _ := f.enrol("bob@example.com")
	out, err := f.visit(i)
	if err != nil || out.Challenge == nil || out.Session != nil {
		t.Fatalf("%+v, %v", out, err)
	}
	if user, _, err := f.byEmail(t.Context(), "bob@example.com"); err != nil || user.Data.Issuer != "" {
		t.Errorf("connected already: %v", err)
	}
	code := totp.Code(key, totp.Step(f.clock()))
	if out, err = f.CompleteTOTP(t.Context(), out.Challenge.Text(), code, home()); err != nil || out.Method != "oidc:corp and code" {
		t.Fatalf("%+v, %v", out, err)
	}
	if user, _, err := f.byEmail(t.Context(), "bob@example.com"); err != nil || user.Data.Issuer != i.URL || user.ID != bob.ID {
		t.Errorf("not connected: %v", err)
	}
	wants(t, "disconnected with a wrong password", f.Disconnect(t.Context(), out.Principal, otherPass), fault.Denied)
	if err := f.Disconnect(t.Context(), out.Principal, goodPass); err != nil {
		t.Fatal(err)
	}
	wants(t, "disconnected twice", f.Disconnect(t.Context(), out.Principal, goodPass), fault.NotFound)
}

func TestOIDCDown(t *testing.T) {
	f, i := withIssuer(t)
	f.join("bob@example.com", api.Viewer)
	i.down.Store(true)
	_, _, err := f.BeginOIDC(t.Context(), "corp", "/", home())
	wants(t, "down", err, fault.Unavailable)
	i.down.Store(false)
	if _, err := f.visit(i); err != nil {
		t.Error(err)
	}
	i.down.Store(true)
	f.advance(2 * rediscover)
	if _, err := f.visit(i); err != nil {
		t.Errorf("what was found before: %v", err)
	}
	_, _, err = f.BeginOIDC(t.Context(), "none", "/", home())
	wants(t, "no such service", err, fault.NotFound)
	for range perNetwork {
		if _, _, err := f.BeginOIDC(t.Context(), "corp", "/", afar(7)); err != nil {
			t.Fatal(err)
		}
	}
	_, _, err = f.BeginOIDC(t.Context(), "corp", "/", afar(7))
	wants(t, "too often", err, fault.TooMany)
}

func TestProviderSettings(t *testing.T) {
	for name, bad := range map[string]Provider{
		"no id":           {Issuer: "https://x.example", ClientID: "x"},
		"an id with path": {ID: "a/b", Issuer: "https://x.example", ClientID: "x"},
		"http":            {ID: "a", Issuer: "http://x.example", ClientID: "x"},
		"no issuer":       {ID: "a", ClientID: "x"},
		"no client":       {ID: "a", Issuer: "https://x.example"},
		"no tenant":       {ID: "a", Issuer: "https://x.example", ClientID: "x", Domains: []string{"x.example"}},
		"no domain":       {ID: "a", Issuer: "https://x.example", ClientID: "x", Domains: []string{"*"}, Tenant: "t"},
		"twice":           {ID: "there", Issuer: "https://x.example", ClientID: "x"},
		"issuer twice":    {ID: "a", Issuer: "https://there.example", ClientID: "x"},
	} {
		p := &parts{}
		if err := p.addProvider(Provider{ID: "there", Issuer: "https://there.example", ClientID: "x"}); err != nil {
			t.Fatal(err)
		}
		if err := p.addProvider(bad); fault.KindOf(err) != fault.Invalid || err == nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestBounded reads from a service that never stops.
func TestBounded(t *testing.T) {
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		for range 3 {
			fmt.Fprint(w, strings.Repeat(" ", maxOIDCAnswer))
		}
	}))
	t.Cleanup(server.Close)
	f := start(t)
	if err := f.addProvider(Provider{ID: "corp", Issuer: server.URL, ClientID: "x", Transport: server.Client().Transport}); err != nil {
		t.Fatal(err)
	}
	_, _, err := f.BeginOIDC(t.Context(), "corp", "/", home())
	wants(t, "a long answer", err, fault.Unavailable)
	if !strings.Contains(err.Error(), "too large") {
		t.Error(err)
	}
}

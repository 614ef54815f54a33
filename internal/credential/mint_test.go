package credential

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/secret"
)

func oauthMeta(name Name, k Kind) Meta {
	m := staticMeta(name)
	m.Kind, m.OAuth = k, &OAuthSettings{TokenURL: "https://example.com/token", ClientID: "cl:ient", Scopes: []string{"read", "write"}}
	return m
}

// TestGrants holds each kind's request to its specification, and its header to what the endpoint handed over.
func TestGrants(t *testing.T) {
	for name, test := range map[string]struct {
		kind     Kind
		change   func(*OAuthSettings)
		material Material
		form     string // as sent, sorted
		user     string // of the Authorization header, "user:password"
	}{
		"client, header": {OAuth2Client, nil, Material{ClientSecret: text("s/cret")}, "grant_type=client_credentials&scope=read+write", "cl%3Aient:s%2Fcret"},
		"client, body": {OAuth2Client, func(o *OAuthSettings) { o.ClientAuth, o.Audience = ClientAuthBody, "https://api" }, Material{ClientSecret: text("s/cret")},
			"audience=https%3A%2F%2Fapi&client_id=cl%3Aient&client_secret=s%2Fcret&grant_type=client_credentials&scope=read+write", ""},
		"refresh, public": {OAuth2Refresh, nil, Material{RefreshToken: text("ref")}, "client_id=cl%3Aient&grant_type=refresh_token&refresh_token=ref&scope=read+write", ""},
		"refresh, confidential": {OAuth2Refresh, nil, Material{RefreshToken: text("ref"), ClientSecret: text("x")},
			"grant_type=refresh_token&refresh_token=ref&scope=read+write", "cl%3Aient:x"},
		"exchange": {TokenExchange, func(o *OAuthSettings) {
			o.ClientID, o.Scopes, o.Resource, o.RequestedType = "", nil, "https://r", tokenTypeAccess
		}, Material{SubjectToken: text("ey.x.y")},
			"grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Atoken-exchange&requested_token_type=urn%3Aietf%3Aparams%3Aoauth%3Atoken-type%3Aaccess_token&resource=https%3A%2F%2Fr" +
				"&subject_token=ey.x.y&subject_token_type=urn%3Aietf%3Aparams%3Aoauth%3Atoken-type%3Ajwt", ""},
	} {
		t.Run(name, func(t *testing.T) {
			client := endpoint(t, func(w http.ResponseWriter, r *http.Request) {
				must(t, r.ParseForm())
				user, password, _ := r.BasicAuth()
				got := ""
				if user != "" {
					got = user + ":" + password
				}
				if r.PostForm.Encode() != test.form || got != test.user || r.URL.RawQuery != "" || r.Method != "POST" || r.URL.Path != "/token" || r.Host != "example.com" {
					t.Errorf("%s %s %s, %q", r.Method, r.URL, r.PostForm.Encode(), got)
				}
				fmt.Fprint(w, `{"access_token":"minted-token","token_type":"bearer","expires_in":"3600"}`)
			})
			s, ring := testStore(t)
			m := oauthMeta("one", test.kind)
			if test.change != nil {
				test.change(m.OAuth)
			}
			must(t, s.Add(ring, m, test.material))
			if got := lent(t, open(t, s, ring, Options{Client: client}, "one"), "one"); got != "Bearer minted-token" {
				t.Error(got)
			}
		})
	}
}

// TestTokenLife: one request for many who want a token, none while it is good, a new one five minutes before its end, and the old one for as long as it must do.
func TestTokenLife(t *testing.T) {
	var asked atomic.Int32
	var broken atomic.Bool
	client := endpoint(t, func(w http.ResponseWriter, _ *http.Request) {
		n := asked.Add(1)
		time.Sleep(20 * time.Millisecond)
		if broken.Load() {
			http.Error(w, "no", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintf(w, `{"access_token":"token-%d","expires_in":3600}`, n)
	})
	s, ring := testStore(t)
	must(t, s.Add(ring, oauthMeta("one", OAuth2Client), Material{ClientSecret: text("s")}))
	c := &clock{time.Now()}
	l := open(t, s, ring, Options{Client: client, Now: c.now}, "one")
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if got := lent(t, l, "one"); got != "Bearer token-1" {
				t.Error(got)
			}
		})
	}
	wg.Wait()
	step := func(after time.Duration, want string, requests int32) {
		t.Helper()
		c.at = c.at.Add(after)
		if got := lent(t, l, "one"); got != want || asked.Load() != requests {
			t.Errorf("%s after %d requests, want %s after %d", got, asked.Load(), want, requests)
		}
	}
	step(0, "Bearer token-1", 1)
	step(54*time.Minute, "Bearer token-1", 1)
	step(time.Minute, "Bearer token-2", 2)
	broken.Store(true)
	step(55*time.Minute, "Bearer token-2", 3) // no new one: the old one is good for five minutes yet
	step(time.Second, "Bearer token-2", 3)    // and the endpoint is left alone for a while
	step(mintPause+time.Second, "Bearer token-2", 4)
	c.at = c.at.Add(5 * time.Minute)
	if _, err := l.Lend(t.Context(), "one", request()); fault.KindOf(err) != fault.Unavailable || asked.Load() != 5 {
		t.Errorf("an expired token: %v", err)
	}
	if _, err := l.Lend(t.Context(), "one", request()); err == nil || asked.Load() != 5 {
		t.Errorf("asked at once again: %v", err)
	}
	broken.Store(false)
	step(mintPause+time.Second, "Bearer token-6", 6)
	// A server that refuses a fresh token does not make us mint; one that refuses an older one does.
	g, err := l.Lend(t.Context(), "one", request())
	must(t, err)
	g.Rejected()
	step(time.Second, "Bearer token-6", 6)
	step(minAge, "Bearer token-6", 6)
	g.Rejected()
	step(0, "Bearer token-7", 7)
	// A new secret: what was minted with the old one is not used any more.
	must(t, s.Rotate(t.Context(), ring, "one", Material{ClientSecret: text("s2")}))
	step(0, "Bearer token-8", 8)
}

// TestRefreshRotation: a server that honours each refresh token once, two sandboxes, many requests. Nobody presents a used one, and the newest is kept sealed.
func TestRefreshRotation(t *testing.T) {
	var mu sync.Mutex
	valid, n := "refresh-0", 0
	client := endpoint(t, func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if got := r.FormValue("refresh_token"); got != valid {
			t.Errorf("presented %s, valid is %s", got, valid)
			w.WriteHeader(http.StatusBadRequest)
			fmt.Fprint(w, `{"error":"invalid_grant"}`)
			return
		}
		n++
		valid = fmt.Sprintf("refresh-%d", n)
		fmt.Fprintf(w, `{"access_token":"access-%d","expires_in":60,"refresh_token":%q}`, n, valid)
	})
	s, ring := testStore(t)
	must(t, s.Add(ring, oauthMeta("one", OAuth2Refresh), Material{RefreshToken: text("refresh-0")}))
	c := &clock{time.Now()}
	o := Options{Client: client, Now: c.now}
	first, second := open(t, s, ring, o, "one"), open(t, s, ring, o, "one")
	for range 5 {
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() { lent(t, first, "one") })
			wg.Go(func() { lent(t, second, "one") })
		}
		wg.Wait()
		c.at = c.at.Add(time.Hour)
	}
	r, _, err := s.load(t.Context(), "one")
	must(t, err)
	key, err := ring.Unwrap(r.owner(), r.DataKey)
	must(t, err)
	secrets, err := r.open(key)
	if err != nil || string(secrets[RefreshToken].Reveal()) != valid || n < 5 {
		t.Errorf("kept %s, valid is %s, after %d, %v", secrets[RefreshToken].Reveal(), valid, n, err)
	}
}

// TestEndpointsThatLie: whatever an endpoint answers, the request fails with a sentence that holds nothing of what was sent or received.
func TestEndpointsThatLie(t *testing.T) {
	const canary = "cAnArY-s3cret-value"
	elsewhere := atomic.Int32{}
	for name, test := range map[string]struct {
		answer func(http.ResponseWriter, *http.Request)
		say    string // empty: works
	}{
		"good": {func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"access_token":"t"}`) }, ""},
		"refused": {func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(400)
			fmt.Fprint(w, `{"error":"invalid_client"}`)
		}, "status 400: invalid_client"},
		"error in 200": {func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"error":"invalid_scope"}`) }, "invalid_scope"},
		"echo": {func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(401)
			fmt.Fprintf(w, `{"error":%q,"error_description":%q}`, r.FormValue("client_secret"), r.FormValue("client_secret"))
		}, "status 401"},
		"echo as token": {func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, `{"access_token":%q}`, r.FormValue("client_secret")+"\n")
		}, "fits into no header"},
		"redirect": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "/elsewhere?"+canary, http.StatusTemporaryRedirect)
		}, "redirect"},
		"page":         {func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html>"+canary) }, "no JSON"},
		"nothing":      {func(http.ResponseWriter, *http.Request) {}, "no JSON"},
		"empty token":  {func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"access_token":""}`) }, "fits into no header"},
		"header in it": {func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"access_token":"a\r\nX-Evil: b"}`) }, "fits into no header"},
		"another type": {func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprint(w, `{"access_token":"a","token_type":"DPoP"}`)
		}, "another type"},
		"endless":        {func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, strings.Repeat(canary, maxAnswer/10)) }, "longer than"},
		"hangs up":       {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, "example.com"},
		"lasts for ever": {func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"access_token":"t","expires_in":1e300}`) }, ""},
		"lasts not":      {func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"access_token":"t","expires_in":-1}`) }, ""},
		"bad number": {func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprint(w, `{"access_token":"t","expires_in":"soon"}`)
		}, "no JSON"},
	} {
		t.Run(name, func(t *testing.T) {
			client := endpoint(t, func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/elsewhere" {
					elsewhere.Add(1)
				}
				test.answer(w, r)
			})
			s, ring := testStore(t)
			m := oauthMeta("one", OAuth2Client)
			m.OAuth.ClientAuth = ClientAuthBody
			must(t, s.Add(ring, m, Material{ClientSecret: text(canary)}))
			_, err := open(t, s, ring, Options{Client: client}, "one").Lend(t.Context(), "one", request())
			if test.say == "" {
				must(t, err)
				return
			}
			if fault.KindOf(err) != fault.Unavailable || !strings.Contains(err.Error(), test.say) {
				t.Errorf("%v", err)
			}
			for _, shown := range []string{fmt.Sprintf("%v %+v %#v %q", err, err, err, err), fault.HintOf(err)} {
				if strings.Contains(shown, canary) || strings.Contains(shown, url.QueryEscape(canary)) || strings.Contains(shown, base64.StdEncoding.EncodeToString([]byte(canary))) {
					t.Errorf("the error holds the secret: %s", shown)
				}
			}
		})
	}
	if elsewhere.Load() > 0 {
		t.Error("a redirect was followed")
	}
	t.Run("unverified", func(t *testing.T) {
		client := endpoint(t, func(http.ResponseWriter, *http.Request) { t.Error("the request arrived") })
		client.Transport.(*http.Transport).TLSClientConfig.RootCAs = x509.NewCertPool()
		s, ring := testStore(t)
		must(t, s.Add(ring, oauthMeta("one", OAuth2Client), Material{ClientSecret: text(canary)}))
		if _, err := open(t, s, ring, Options{Client: client}, "one").Lend(t.Context(), "one", request()); fault.KindOf(err) != fault.Unavailable {
			t.Error(err)
		}
	})
	t.Run("no client", func(t *testing.T) {
		s, ring := testStore(t)
		must(t, s.Add(ring, oauthMeta("one", OAuth2Client), Material{ClientSecret: text(canary)}))
		if _, err := open(t, s, ring, Options{}, "one").Lend(t.Context(), "one", request()); err == nil {
			t.Error("lent")
		}
	})
}

func rsaPEM(t testing.TB, bits int, pkcs8 bool) (*rsa.PrivateKey, secret.Bytes) {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, bits)
	must(t, err)
	block := &pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)}
	if pkcs8 {
		data, err := x509.MarshalPKCS8PrivateKey(key)
		must(t, err)
		block = &pem.Block{Type: "PRIVATE KEY", Bytes: data}
	}
	return key, secret.New(pem.EncodeToMemory(block))
}

func TestGitHubApp(t *testing.T) {
	key, material := rsaPEM(t, 2048, false)
	c := &clock{time.Now().Add(-3 * time.Hour)} // a machine whose clock is wrong
	serverNow := time.Now()
	client := endpoint(t, func(w http.ResponseWriter, r *http.Request) {
		parts := strings.Split(strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer "), ".")
		if len(parts) != 3 {
			t.Fatalf("%q", r.Header)
		}
		sum := sha256.Sum256([]byte(parts[0] + "." + parts[1]))
		signature, err := base64.RawURLEncoding.DecodeString(parts[2])
		must(t, err)
		must(t, rsa.VerifyPKCS1v15(&key.PublicKey, crypto.SHA256, sum[:], signature))
		var claims struct {
			Iat, Exp int64
			Iss      string
		}
		data, err := base64.RawURLEncoding.DecodeString(parts[1])
		must(t, err)
		must(t, json.Unmarshal(data, &claims))
		if claims.Iss != "1234" || claims.Exp-claims.Iat > 600 || claims.Iat >= c.at.Unix() || claims.Exp <= c.at.Unix() {
			t.Errorf("%+v", claims)
		}
		var limits struct {
			Repositories []string
			Permissions  map[string]string
		}
		must(t, json.NewDecoder(r.Body).Decode(&limits))
		if r.Method != "POST" || r.URL.Path != "/api/v3/app/installations/5678/access_tokens" || r.Header.Get("X-GitHub-Api-Version") != "2022-11-28" ||
			len(limits.Repositories) != 1 || limits.Permissions["contents"] != "read" {
			t.Errorf("%s %s %v %+v", r.Method, r.URL, r.Header, limits)
		}
		w.Header().Set("Date", serverNow.UTC().Format(http.TimeFormat))
		w.WriteHeader(http.StatusCreated)
		fmt.Fprintf(w, `{"token":"ghs_minted","expires_at":%q,"permissions":{"contents":"read"}}`, serverNow.Add(time.Hour).UTC().Format(time.RFC3339))
	})
	s, ring := testStore(t)
	m := staticMeta("bot")
	m.Kind, m.User = GitHubApp, "x-access-token"
	m.GitHub = &GitHubSettings{API: "https://example.com/api/v3/", AppID: "1234", InstallationID: "5678", Repositories: []string{"site"}, Permissions: map[string]string{"contents": "read"}}
	must(t, s.Add(ring, m, Material{PrivateKey: material}))
	l := open(t, s, ring, Options{Client: client, Now: c.now}, "bot")
	if got := lent(t, l, "bot"); got != "Basic "+base64.StdEncoding.EncodeToString([]byte("x-access-token:ghs_minted")) {
		t.Error(got)
	}
	g, err := l.Lend(t.Context(), "bot", request())
	must(t, err)
	var forms []string
	for _, v := range g.Secrets() {
		forms = append(forms, string(v.Reveal()))
	}
	if strings.Join(forms, " ") != base64.StdEncoding.EncodeToString([]byte("x-access-token:ghs_minted"))+" ghs_minted" {
		t.Error(forms)
	}
	if m, err := l.Meta(t.Context(), "bot"); err != nil || m.Shape != GitHubToken {
		t.Errorf("%+v, %v", m, err)
	}
	if life := l.loans["bot"].minted.expires.Sub(c.at); life < 59*time.Minute || life > 61*time.Minute {
		t.Errorf("its life is %v", life)
	}
}

func TestGitHubRefuses(t *testing.T) {
	for status, say := range map[int]string{401: "clock", 404: "installation", 422: "permissions", 500: "status 500", 200: "status 200"} {
		if _, err := readGitHub("h", reply{status: status, body: []byte(`{"message":"x"}`)}, time.Now()); err == nil || !strings.Contains(err.Error(), say) {
			t.Errorf("%d: %v", status, err)
		}
	}
	if _, err := readGitHub("h", reply{status: 201, body: []byte(`{}`)}, time.Now()); err == nil {
		t.Error("no token")
	}
	_, small := rsaPEM(t, 1024, false)
	_, good := rsaPEM(t, 2048, true)
	for name, test := range map[string]struct {
		v  secret.Bytes
		ok bool
	}{
		"PKCS #8": {good, true}, "1024 bits": {small, false}, "no PEM": {text("hello"), false},
		"a certificate": {text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"), false},
		"broken":        {text("-----BEGIN RSA PRIVATE KEY-----\nAAAA\n-----END RSA PRIVATE KEY-----\n"), false},
	} {
		if _, err := parseRSA(test.v); (err == nil) != test.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestHeaders(t *testing.T) {
	s, ring := testStore(t)
	for i, test := range []struct {
		change  func(*Meta)
		secrets Material
		header  string
		value   string
	}{
		{func(*Meta) {}, Material{Value: text("tok")}, "Authorization", "Bearer tok"},
		{func(m *Meta) { m.Header = "private-token" }, Material{Value: text("tok")}, "Private-Token", "tok"},
		{func(m *Meta) { m.Header = "Authorization" }, Material{Value: text("tok")}, "Authorization", "tok"},
		{func(m *Meta) { m.Prefix = "token " }, Material{Value: text("tok")}, "Authorization", "token tok"},
		{func(m *Meta) { m.User = "oauth2" }, Material{Value: text("tok")}, "Authorization", "Basic " + base64.StdEncoding.EncodeToString([]byte("oauth2:tok"))},
		{func(m *Meta) { m.Kind, m.User = Basic, "ci" }, Material{Password: text("pä ss")}, "Authorization", "Basic " + base64.StdEncoding.EncodeToString([]byte("ci:pä ss"))},
	} {
		name := Name(fmt.Sprintf("c%d", i))
		m := staticMeta(name)
		test.change(&m)
		must(t, s.Add(ring, m, test.secrets))
		g, err := open(t, s, ring, Options{}, name).Lend(t.Context(), name, request())
		must(t, err)
		h := http.Header{test.header: {"placeholder", "another"}, "Accept": {"x"}}
		must(t, g.Inject(h))
		if len(h) != 2 || len(h[test.header]) != 1 || h[test.header][0] != test.value {
			t.Errorf("%d: %v", i, h)
		}
		if key, v := g.Header(); key != test.header || string(v.Reveal()) != test.value {
			t.Errorf("%d: %s", i, key)
		}
		if len(g.Secrets()) == 0 || g.Signs() || g.Credential() != name {
			t.Errorf("%d: %v", i, g.Secrets())
		}
		if err := g.SignRequest(nil, ""); err == nil {
			t.Errorf("%d: signed", i)
		}
		if shown := fmt.Sprintf("%v %+v %#v", g, g, *g); strings.Contains(shown, "tok ") || strings.Contains(shown, test.value) {
			t.Errorf("%d: printed: %s", i, shown)
		}
	}
}

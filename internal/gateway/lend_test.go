package gateway

import (
	"context"

	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"

	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/internal/audit"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/policy"
	"github.com/cofferdam/cofferdam/internal/secret"
)

const (
	canary      = "ghp_CANARY0123456789abcdefghijklmnopq/+Z"
	placeholder = "ghp_PLACEHOLDER9876543210zyxwvutsrqponml"
)

// loan is a grant of a fixed header.
type loan struct {
	header, value string
	secrets       []string
	gone          *atomic.Bool
	rejected      *atomic.Int32
}

func (l loan) Inject(h http.Header) error {
	h.Set(l.header, l.value)
	h.Set("X-Sneaked", "in")
	return nil
}
func (l loan) Signs() bool { return l.header == "sign" }
func (l loan) SignRequest(r *http.Request, hash string) error {
	r.Header.Set("Authorization", "AWS4 "+r.Method+" "+r.URL.String()+" "+hash)
	r.Header.Set("X-Amz-Date", "today")
	return nil
}
func (l loan) Secrets() (all []secret.Bytes) {
	for _, s := range l.secrets {
		all = append(all, secret.New([]byte(s)))
	}
	return all
}
func (l loan) Revoked() error {
	if l.gone.Load() {
		return fault.New(fault.NotFound, "the credential was removed")
	}
	return nil
}
func (l loan) Rejected() { l.rejected.Add(1) }

// lending is a gateway in front of a real TLS server, with credentials.
type lending struct {
	*bench
	port     uint16
	gone     atomic.Bool
	rejected atomic.Int32
	lends    atomic.Int32
	fails    atomic.Bool
}

// lend starts one. credentials is the body of each entry's mapping besides use, hosts and ports; the names are main, key, open, short and sign.
func lend(tb testing.TB, handler http.HandlerFunc, rules string, credentials ...string) *lending {
	tb.Helper()
	server := httptest.NewUnstartedServer(handler)
	server.EnableHTTP2 = true
	server.TLS = &tls.Config{Certificates: []tls.Certificate{certificate(tb)}}
	server.Config.ErrorLog = quietLog()
	server.StartTLS()
	tb.Cleanup(server.Close)
	l := &lending{port: portOf(server.Listener)}
	yaml := allow(l.port, rules) + "credentials:\n"
	for _, c := range credentials {
		yaml += fmt.Sprintf("  - {hosts: [good.example.com], ports: [%d], %s}\n", l.port, c)
	}
	roots := x509.NewCertPool()
	roots.AddCert(must(x509.ParseCertificate(server.TLS.Certificates[0].Certificate[0])))
	l.bench = start(tb, yaml, func(c *Config) {
		c.Roots = roots
		c.Placeholders = []Placeholder{{"main", placeholder}, {"key", "key-PLACEHOLDER-000000"}, {"sign", "AKIAPLACEHOLDER00000"}}
		c.Lend = l.open
	})
	l.zone.set("good.example.com", "127.0.0.1")
	l.zone.set("other.example.com", "127.0.0.1")
	return l
}

func (l *lending) open(_ context.Context, name string, c policy.Crossing) (Grant, error) {
	l.lends.Add(1)
	if l.fails.Load() || l.gone.Load() || c.Protocol != policy.HTTPS {
		return nil, errors.New("the store is closed: " + canary)
	}
	one := loan{gone: &l.gone, rejected: &l.rejected}
	switch name {
	case "main", "open":
		one.header, one.value, one.secrets = "Authorization", "Bearer "+canary, []string{canary}
	case "key":
		one.header, one.value, one.secrets = "X-Api-Key", "key-"+canary, []string{"key-" + canary}
	case "short":
		one.header, one.value, one.secrets = "Authorization", "hunter2", []string{"hunter2"}
	case "sign":
		one.header, one.secrets = "sign", []string{canary}
	}
	return one, nil
}

// client is an ordinary client inside: it trusts the sandbox's authority and dials what DNS says.
func (l *lending) client(protocols ...string) *http.Client {
	l.tb.Helper()
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(must(l.g.CACertificate()))
	transport := &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: pool, NextProtos: protocols}, DisableCompression: true,
		DialContext: func(_ context.Context, _, address string) (net.Conn, error) {
			host, _, _ := net.SplitHostPort(address)
			return l.to(host, l.port), nil
		},
	}
	if len(protocols) == 0 {
		transport.ForceAttemptHTTP2 = true
	}
	l.tb.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: time.Minute, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

func (l *lending) url(path string) string {
	return fmt.Sprintf("https://good.example.com:%d%s", l.port, path)
}

// versions runs a test over both versions of HTTP.
func (l *lending) versions(t *testing.T, f func(t *testing.T, c *http.Client)) {
	t.Run("http1", func(t *testing.T) { f(t, l.client("http/1.1")) })
	t.Run("http2", func(t *testing.T) { f(t, l.client()) })
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func get(t testing.TB, c *http.Client, method, url, body string, header ...string) (*http.Response, string) {
	t.Helper()
	r := must(http.NewRequest(method, url, strings.NewReader(body)))
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Add(header[i], header[i+1])
	}
	answer, err := c.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Errorf("body: %v", err)
	}
	return answer, string(text)
}

const mainCredential = "use: main, env: TOKEN, paths: [/repos/acme/, /echo/, /ws], methods: [GET, POST]"

func TestLend(t *testing.T) {
	type arrived struct{ version, auth, uri, sneaked, host string }
	seen := make(chan arrived, 1)
	l := lend(t, func(w http.ResponseWriter, r *http.Request) {
		seen <- arrived{r.Proto, strings.Join(r.Header["Authorization"], "|"), r.RequestURI, r.Header.Get("X-Sneaked"), r.Host}
		fmt.Fprint(w, "fine")
	}, "", mainCredential)
	l.versions(t, func(t *testing.T, c *http.Client) {
		basic := "Basic " + base64.StdEncoding.EncodeToString([]byte("user:"+placeholder))
		for _, test := range []struct{ name, path, auth, want, uri string }{
			{"bearer", "/repos/acme/site?x=%2f&y", "Bearer " + placeholder, "Bearer " + canary, ""},
			{"token", "/repos/acme/site", "token " + placeholder, "Bearer " + canary, ""},
			{"basic", "/repos/acme/site", basic, "Bearer " + canary, ""},
			{"anonymous", "/repos/acme/site", "", "", ""},
			{"out of scope, anonymous", "/other", "", "", ""},
			{"canonical", "/%72epos/acme/a%2fb", "Bearer " + placeholder, "Bearer " + canary, "/repos/acme/a%2Fb"},
		} {
			header := []string{"Authorization", test.auth}
			if test.auth == "" {
				header = nil
			}
			answer, body := get(t, c, "GET", l.url(test.path), "", header...)
			if answer.StatusCode != 200 || body != "fine" {
				t.Fatalf("%s: %d %s", test.name, answer.StatusCode, body)
			}
			got := <-seen
			if test.uri == "" {
				test.uri = test.path
			}
			if got.auth != test.want || got.uri != test.uri || got.sneaked != "" || got.host != fmt.Sprintf("good.example.com:%d", l.port) {
				t.Errorf("%s: %+v", test.name, got)
			}
			if got.version != answer.Proto {
				t.Errorf("%s: the client speaks %s, the server %s", test.name, answer.Proto, got.version)
			}
		}
	})
	e := l.find("lent", func(e audit.Event) bool { return e.Kind == audit.CrossingFinished && e.Credential == "main" })
	if e.Protocol != "https" || e.Status != 200 || e.Path == "" || e.Method != "GET" {
		t.Errorf("%+v", e)
	}
}

// TestLendRefused sends what must not pass, with what may beside it.
func TestLendRefused(t *testing.T) {
	var arrived sync.Map // by case: the beginning of a request that is cut off may arrive late
	l := lend(t, func(w http.ResponseWriter, r *http.Request) {
		arrived.Store(r.Proto+r.Header.Get("X-Case"), true)
		_, _ = io.Copy(io.Discard, r.Body)
	}, "",
		mainCredential, "use: key, header: X-Api-Key, env: KEY, paths: [/repos/acme/]")
	encoded := base64.StdEncoding.EncodeToString([]byte("u:" + placeholder))
	l.versions(t, func(t *testing.T, c *http.Client) {
		for _, test := range []struct {
			name, method, path, body, header, value, rule string
		}{
			{"fine", "POST", "/repos/acme/x", "body", "Authorization", "Bearer " + placeholder, ""},
			{"other header is fine", "GET", "/repos/acme/x", "", "X-Other", "value", ""},
			{"other path", "GET", "/repos/evil/x", "", "Authorization", "Bearer " + placeholder, RulePlaceholderMisused},
			{"other method", "DELETE", "/repos/acme/x", "", "Authorization", "Bearer " + placeholder, RulePlaceholderMisused},
			{"other header", "GET", "/repos/acme/x", "", "X-Other", placeholder, RulePlaceholderMisused},
			{"another's header", "GET", "/repos/acme/x", "", "X-Api-Key", placeholder, RulePlaceholderMisused},
			{"cookie", "GET", "/repos/acme/x", "", "Cookie", "a=" + placeholder, RulePlaceholderMisused},
			{"user agent", "GET", "/repos/acme/x", "", "User-Agent", placeholder, RulePlaceholderMisused},
			{"query", "GET", "/repos/acme/x?a=" + placeholder, "", "X-Other", "v", RulePlaceholderMisused},
			{"path", "GET", "/repos/acme/" + placeholder, "", "X-Other", "v", RulePlaceholderMisused},
			{"query half encoded", "GET", "/repos/acme/x?a=%67hp%5F" + placeholder[4:], "", "X-Other", "v", RulePlaceholderMisused},
			{"query base64", "GET", "/repos/acme/x?a=" + encoded, "", "X-Other", "v", RulePlaceholderMisused},
			{"header hex", "GET", "/repos/acme/x", "", "X-Other", hex.EncodeToString([]byte(placeholder)), RulePlaceholderMisused},
			{"body", "POST", "/repos/acme/x", "a=" + placeholder, "X-Other", "v", RulePlaceholderMisused},
			{"large body", "POST", "/repos/acme/x", strings.Repeat("a", 300<<10) + placeholder + strings.Repeat("b", 300<<10), "X-Other", "v", RulePlaceholderMisused},
			{"foreign bearer", "GET", "/repos/acme/x", "", "Authorization", "Bearer attackers-own-token", RuleForeignCredential},
			{"foreign outside of scope", "GET", "/elsewhere", "", "Authorization", "Bearer attackers-own-token", RuleForeignCredential},
			{"foreign beside", "GET", "/repos/acme/x", "", "Private-Token", "attackers-own-token", RuleForeignCredential},
			{"foreign cookie", "GET", "/repos/acme/x", "", "Cookie", "session=1", RuleForeignCredential},
			{"foreign key", "GET", "/repos/acme/x", "", "X-Api-Key", "mine", RuleForeignCredential},
			{"foreign key as CGI spells it", "GET", "/repos/acme/x", "", "X_Api_Key", "mine", RuleForeignCredential},
			{"name of a header", "GET", "/repos/acme/x", "", placeholder, "v", RulePlaceholderMisused},
			{"foreign query", "GET", "/repos/acme/x?private%5Ftoken=1", "", "X-Other", "v", RuleForeignCredential},
			{"way up", "GET", "/repos/acme/../evil/x", "", "X-Other", "v", RuleAmbiguousPath},
			{"encoded way up", "GET", "/repos/acme/%2e%2e/evil/x", "", "X-Other", "v", RuleAmbiguousPath},
			{"way up behind a slash", "GET", "/repos/acme/..%2fevil", "", "X-Other", "v", RuleAmbiguousPath},
			{"parameter", "GET", "/repos/acme/..;/evil", "", "X-Other", "v", RuleAmbiguousPath},
			{"two slashes", "GET", "/repos//acme/x", "", "X-Other", "v", RuleAmbiguousPath},
			{"nul", "GET", "/repos/acme/%00", "", "X-Other", "v", RuleAmbiguousPath},
			{"backslash", "GET", "/repos/acme/..%5Cevil", "", "X-Other", "v", RuleAmbiguousPath},
			{"method override", "GET", "/repos/acme/x", "", "X-HTTP-Method-Override", "DELETE", RuleMethodOverride},
			{"path override", "GET", "/repos/acme/x", "", "X-Original-URL", "/admin", RuleMethodOverride},
			{"trace", "TRACE", "/repos/acme/x", "", "Authorization", "Bearer " + placeholder, "method-closed"},
		} {
			r := must(http.NewRequest(test.method, l.url("/"), strings.NewReader(test.body)))
			path, query, _ := strings.Cut(test.path, "?")
			r.URL.Path, r.URL.RawPath, r.URL.RawQuery = must(url.PathUnescape(path)), path, query
			r.Header.Set("X-Case", test.name)
			r.Header[http.CanonicalHeaderKey(test.header)] = []string{test.value}
			answer, err := c.Do(r)
			if err != nil {
				t.Errorf("%s: %v", test.name, err)
				continue
			}
			body := string(must(io.ReadAll(answer.Body)))
			_ = answer.Body.Close()
			if got := answer.Header.Get("Cofferdam-Denied"); got != test.rule || (answer.StatusCode == 200) != (test.rule == "") {
				t.Errorf("%s: %d by %q: %s", test.name, answer.StatusCode, got, body)
			}
			if test.rule != "" {
				l.deniedBy(test.rule)
			}
			if _, reached := arrived.Load(answer.Proto + test.name); reached != (test.rule == "") && !strings.Contains(test.name, "body") {
				t.Errorf("%s: reached the upstream: %v", test.name, reached)
			}
		}
	})
	e := l.deniedBy(RulePlaceholderMisused)
	if e.Credential != "main" || e.Detail == "" || e.Protocol != "https" {
		t.Errorf("%+v", e)
	}
}

// TestHeaderNames: a secret of letters and digits can come back as the name of a header, whose case is lost on the way.
func TestHeaderNames(t *testing.T) {
	g := start(t, allow(1, ""), nil).g
	g.vault.add([]secret.Bytes{secret.New([]byte("AbCdEfGhIjKlMnOp"))}, nil)
	d := &httpDoor{p: &passage{g: g}, redactions: new(atomic.Int64)}
	h := http.Header{"X-Abcdefghijklmnop": {"v"}, "X-Other": {"AbCdEfGhIjKlMnOp"}}
	d.clean(g.vault.set.Load(), h)
	if len(h) != 1 || h.Get("X-Other") != strings.Repeat("*", 16) || d.redactions.Load() != 2 {
		t.Errorf("%v", h)
	}
}

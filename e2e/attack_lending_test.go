package e2e

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// Each attack dials a name of its own below one of these domains, so that its denial is found on record by name. There are two, since a policy's wildcard gives out 256 names.
const (
	lentDomain = ".lent.example.com"
	heldDomain = ".held.example.com"
)

const keyCanary = "key-CANARY-8d3f27b1e65a4c90"

// lender is a server to which credentials are lent: over HTTP/2 and HTTP/1 at one port, over HTTP/1 alone at another, and in clear at a third.
type lender struct {
	authority []byte
	both, old string // ports
	clear     string

	mu   sync.Mutex
	seen []lentRequest
	raw  bytes.Buffer // all that arrived at the old port, as it came
	sent atomicString // the credential that it expects
}

// atomicString is a string that tests change while a server runs.
type atomicString struct {
	mu sync.Mutex
	s  string
}

func (a *atomicString) set(s string) { a.mu.Lock(); a.s = s; a.mu.Unlock() }
func (a *atomicString) get() string  { a.mu.Lock(); defer a.mu.Unlock(); return a.s }

// lentRequest is what arrived.
type lentRequest struct {
	host, server, method, uri string
	lent, clear               bool
	text                      string // all of it
}

// tapped records what is read from a connection.
type tapped struct {
	net.Conn
	l *lender
}

func (c tapped) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.l.mu.Lock()
	c.l.raw.Write(p[:n])
	c.l.mu.Unlock()
	return n, err
}

type tap struct {
	net.Listener
	l *lender
}

func (t tap) Accept() (net.Conn, error) {
	c, err := t.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return tapped{c, t.l}, nil
}

func newLender(t *testing.T) *lender {
	t.Helper()
	l := &lender{}
	l.sent.set(canary)
	ca := newCertifier(t)
	l.authority = ca.pem
	certificate := ca.issue(-time.Hour, time.Hour, "*"+lentDomain, "*"+heldDomain, "elsewhere.example.com")
	l.both = ca.serve(certificate, l.serve)
	for _, port := range []*string{&l.old, &l.clear} {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		_, *port, _ = net.SplitHostPort(listener.Addr().String())
		server := httptest.NewUnstartedServer(http.HandlerFunc(l.serve))
		_ = server.Listener.Close() // replaced
		server.Config.ErrorLog = log.New(io.Discard, "", 0)
		if port == &l.old {
			listener = tls.NewListener(listener, &tls.Config{Certificates: []tls.Certificate{certificate}, NextProtos: []string{"http/1.1"}})
		}
		server.Listener = tap{listener, l}
		server.Start()
		t.Cleanup(server.Close)
	}
	return l
}

func (l *lender) serve(w http.ResponseWriter, r *http.Request) {
	body, broken := io.ReadAll(io.LimitReader(r.Body, 8<<20))
	seen := lentRequest{host: r.Host, method: r.Method, uri: r.RequestURI, text: fmt.Sprintf("%s %s %v %.5000s %v", r.Method, r.RequestURI, r.Header, body, r.Trailer)}
	if here, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr); ok {
		seen.clear = strings.HasSuffix(here.String(), ":"+l.clear)
	}
	if r.TLS != nil {
		seen.server = r.TLS.ServerName
	}
	seen.lent = strings.Contains(seen.text, l.sent.get()) || strings.Contains(seen.text, keyCanary)
	good := r.Header.Get("Authorization") == "Bearer "+l.sent.get() || r.Header.Get("X-Api-Key") == keyCanary
	l.mu.Lock()
	l.seen = append(l.seen, seen)
	l.mu.Unlock()
	sum := sha256.Sum256(body)
	if broken != nil {
		http.Error(w, "the body breaks off", http.StatusBadRequest)
		return
	}
	h := w.Header()
	h.Set("X-Server", "yes")
	h.Set("X-Lent", map[bool]string{true: "yes", false: "no"}[good])
	h.Set("X-Conn", r.RemoteAddr)
	h.Set("X-Body", hex.EncodeToString(sum[:]))
	echo := fmt.Sprintf("you sent %s and %s, which is %s\n", r.Header.Get("Authorization"), r.Header.Get("X-Api-Key"), base64.StdEncoding.EncodeToString([]byte(l.sent.get())))
	switch strings.TrimPrefix(r.URL.Path, "/v1/") {
	case "gzip":
		h.Set("Content-Encoding", "gzip")
		z := gzip.NewWriter(w)
		fmt.Fprint(z, strings.Repeat("padding ", 300_000), echo)
		_ = z.Close() // the client tells
	case "zstd", "br", "deflate":
		h.Set("Content-Encoding", strings.TrimPrefix(r.URL.Path, "/v1/"))
		fmt.Fprint(w, "not readable here, perhaps: ", hex.EncodeToString(sum[:]))
	case "long":
		fmt.Fprint(w, strings.Repeat("padding ", 1<<20), echo)
	default:
		fmt.Fprint(w, echo)
	}
}

// house lays the credentials into a house's store and returns the flags of a run that is lent them.
func (l *lender) house(h *house, names []string) []string {
	h.t.Helper()
	h.trust = filepath.Join(h.home, "authority.pem")
	if err := os.WriteFile(h.trust, l.authority, 0o644); err != nil {
		h.t.Fatal(err)
	}
	h.own(h.home)
	ports := []string{"--port", l.both, "--port", l.old}
	for _, c := range []struct{ value, name, host string }{{canary, "api", "*" + lentDomain}, {keyCanary, "key", "key" + lentDomain}, {"client-secret-of-nothing", "down", "down" + lentDomain}} {
		args := append([]string{"credential", "add", c.name, "--host", c.host, "--path", "/v1/"}, ports...)
		switch c.name {
		case "api":
			args = append(args, "--host", "*"+heldDomain)
		case "key":
			args = append(args, "--header", "X-Api-Key")
		case "down":
			args = append(args, "--kind", "oauth2-client", "--client-id", "x", "--token-url", "https://tokens.example.invalid/token", "--header", "X-Down", "--prefix", "Bearer ")
		}
		if r := h.doWith(time.Minute, c.value+"\n", args...); r.code != 0 {
			h.t.Fatalf("credential add %s: %s%s", c.name, r.stdout, r.stderr)
		}
	}
	h.write("../agent.yaml", fmt.Sprintf(`version: 1
egress:
  networks: [127.0.0.0/8]
  rules:
    - hosts: ["*%[1]s", "*%[5]s", elsewhere.example.com]
      ports: [%[2]s, %[3]s, %[4]s]
credentials:
  - {use: api, hosts: ["*%[1]s", "*%[5]s"], ports: [%[2]s, %[3]s], paths: [/v1/], methods: [GET, POST], header: Authorization, env: API_TOKEN}
  - {use: key, hosts: [key%[1]s], ports: [%[2]s, %[3]s], paths: [/v1/], header: X-Api-Key, env: API_KEY}
  - {use: down, hosts: [down%[1]s], ports: [%[2]s, %[3]s], paths: [/v1/], header: X-Down}
`, lentDomain, l.both, l.old, l.clear, heldDomain))
	h.own(h.home)
	flags := []string{"-q", "--policy", "../agent.yaml", "--resolve", "elsewhere.example.com=127.0.0.1"}
	for _, name := range names {
		flags = append(flags, "--resolve", name+"=127.0.0.1")
	}
	return flags
}

// since returns what arrived after n requests.
func (l *lender) since(n int) []lentRequest {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.seen[n:])
}

// lending runs all attacks on lent credentials in one sandbox, and looks at what arrived at the server.
func (s *suite) lending(t *testing.T, u as) {
	l := newLender(t)
	h := newHouse(t, u.equipped(t))
	probes := u.meets(applicable(l.probes(), h.as))
	names := []string{"ok" + lentDomain, "key" + lentDomain, "down" + lentDomain}
	for _, p := range probes {
		names = append(names, lentName(p.id))
	}
	flags := l.house(h, names)
	lay(t, h, append(probes, probe{id: "held", run: `printf '%s\n' "$API_TOKEN" "$API_KEY"`}))
	h.own(h.home)
	r := h.doWith(u.patience(5*time.Minute), "", append(append([]string{"run"}, flags...), "--", "sh", "cases/run")...)
	ran := parseCases(r.stdout)
	events := h.events()
	for _, p := range probes {
		o := p.judge(ran[p.id], ran[p.id+".control"], events)
		if o.finding == unknown && len(ran) == 0 {
			o.evidence = "the sandbox did not run: " + lastLine(r.stderr)
		}
		if o.finding == blocked && p.record == nil {
			o = attributed(o, events, lentName(p.id), "key"+lentDomain)
		}
		s.judge(t, u, p.id, p.what, o)
	}
	s.judge(t, u, "M-lending", "all of the above together: what arrived at the server, and what was seen inside", l.sums(ran["held"], r.stdout+r.stderr))
	searchCanary(t, h)
}

// answeredRule finds the rule in what the attacking program says of a refusal.
var answeredRule = regexp.MustCompile(`40[0-9] ([a-z]+-[a-z]+)|421 ([a-z]+-[a-z]+)|431 ([a-z]+-[a-z]+)`)

// attributed demands that a refusal which a program was answered is on record, under the rule that it was told.
func attributed(o outcome, events []event, hosts ...string) outcome {
	match := answeredRule.FindStringSubmatch(o.evidence)
	if match == nil {
		return o
	}
	rule := match[1] + match[2] + match[3]
	for _, host := range hosts {
		if e, ok := denied(events, event{Host: host, Rule: rule}); ok {
			return outcome{blocked, o.evidence + "; on record: " + e.brief()}
		}
	}
	return outcome{unknown, "not on record: " + o.evidence}
}

// lentName is the name that an attack dials.
func lentName(id string) string {
	if strings.HasPrefix(id, "D") {
		return strings.ToLower(id) + heldDomain
	}
	return strings.ToLower(id) + lentDomain
}

// sums looks at everything that arrived, whatever the programs inside printed: no credential but where it is lent, under the name that was dialled, no placeholder, nothing smuggled.
func (l *lender) sums(held *ran, inside string) outcome {
	if held == nil || len(strings.Fields(held.output)) != 2 {
		return outcome{unknown, "no placeholders inside"}
	}
	for _, secret := range []string{canary, keyCanary} {
		for form, text := range written(secret) {
			if strings.Contains(inside, text) {
				return outcome{open, "the credential, " + form + ", was seen inside"}
			}
		}
	}
	l.mu.Lock()
	raw := l.raw.String()
	l.mu.Unlock()
	lent, all := 0, l.since(0)
	for _, x := range all {
		host, _, _ := net.SplitHostPort(x.host)
		switch {
		case x.server != "" && x.server != host:
			return outcome{open, fmt.Sprintf("server name %s, Host %s", x.server, x.host)}
		case strings.Contains(x.text, "smuggled"):
			return outcome{open, "smuggled: " + lastLine(x.text)}
		case x.lent && (x.clear || !strings.HasPrefix(x.uri, "/v1/") || x.method != "GET" && x.method != "POST"):
			return outcome{open, fmt.Sprintf("the credential arrived with %s %s%s", x.method, x.host, x.uri)}
		case x.lent:
			lent++
		}
		raw += x.text
	}
	for _, p := range strings.Fields(held.output) {
		if strings.Contains(raw, p) {
			i := strings.Index(raw, p)
			return outcome{open, "a placeholder arrived: " + lastLine(raw[max(0, i-60):i])}
		}
	}
	if lent < 10 {
		return outcome{unknown, fmt.Sprintf("the credential arrived only %d times: the controls have not worked", lent)}
	}
	return outcome{blocked, fmt.Sprintf("%d requests arrived, %d with the credential, all of them as lent", len(all), lent)}
}

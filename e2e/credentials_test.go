package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/internal/testenv"
)

// The real credential. It is searched for in every place and form in which it could have leaked.
const canary = "tok-CANARY-5f1c9e77a2b44d0e8c61"

const apiName = "api.example.com"

// api is a server that knows the real credential, echoes what it was sent, and remembers it.
type api struct {
	*httptest.Server
	port string
	mu   sync.Mutex
	seen []string
}

// newAPI starts an API over TLS under a certificate authority of the test, whose certificate is returned in PEM.
func newAPI(t *testing.T) (*api, []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature, DNSNames: []string{apiName, "other.example.com"},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	a := &api{}
	a.Server = httptest.NewUnstartedServer(http.HandlerFunc(a.serve))
	a.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
	a.EnableHTTP2 = true
	a.StartTLS()
	t.Cleanup(a.Close)
	_, a.port, _ = net.SplitHostPort(a.Listener.Addr().String())
	return a, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func (a *api) serve(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(io.LimitReader(r.Body, 1<<20)) // what a broken request carries does not matter here
	a.mu.Lock()
	a.seen = append(a.seen, fmt.Sprintf("%s %s %v %s", r.Method, r.URL, r.Header, body))
	a.mu.Unlock()
	w.Header().Set("X-Echo", r.Header.Get("Authorization"))
	if r.Header.Get("Authorization") != "Bearer "+canary {
		w.WriteHeader(http.StatusUnauthorized)
	}
	for until := time.Now().Add(20 * time.Second); strings.HasSuffix(r.URL.Path, "/stream") && r.Context().Err() == nil && time.Now().Before(until); time.Sleep(50 * time.Millisecond) {
		fmt.Fprintf(w, "still here, %s\n", r.Header.Get("Authorization"))
		_ = http.NewResponseController(w).Flush() // a client that is gone ends the loop
	}
	fmt.Fprintf(w, "hello; you sent %s, in base64 %s, in hex %s\n", r.Header.Get("Authorization"),
		base64.StdEncoding.EncodeToString([]byte(r.Header.Get("Authorization"))), hex.EncodeToString([]byte(canary)))
}

// got says whether a request whose line contains text has reached the server.
func (a *api) got(text string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, line := range a.seen {
		if strings.Contains(line, text) {
			return true
		}
	}
	return false
}

// lendingHouse is a house with the credential in its store and a policy that lends it.
func lendingHouse(t *testing.T, h *house, a *api, authority []byte) func(line string, flags ...string) result {
	t.Helper()
	h.trust = filepath.Join(h.home, "authority.pem")
	if err := os.WriteFile(h.trust, authority, 0o644); err != nil {
		t.Fatal(err)
	}
	if r := h.doWith(time.Minute, canary+"\n", "credential", "add", "api", "--host", apiName, "--port", a.port, "--path", "/v1/"); r.code != 0 {
		t.Fatalf("credential add: %s%s", r.stdout, r.stderr)
	}
	h.write("../agent.yaml", fmt.Sprintf(`version: 1
egress:
  networks: [127.0.0.0/8]
  rules:
    - hosts: [%s, other.example.com]
      ports: [%s]
credentials:
  - use: api
    hosts: [%s]
    ports: [%s]
    paths: [/v1/]
    header: Authorization
    env: API_TOKEN
`, apiName, a.port, apiName, a.port))
	h.own(h.home)
	return func(line string, flags ...string) result {
		t.Helper()
		args := append([]string{"run", "--policy", "../agent.yaml", "--resolve", apiName + "=127.0.0.1", "--resolve", "other.example.com=127.0.0.1"}, flags...)
		return h.do(append(args, "--", "sh", "-c", "URL=https://"+apiName+":"+a.port+"; OTHER=https://other.example.com:"+a.port+"; "+line)...)
	}
}

// TestLending uses a credential from inside with unmodified clients: the server gets the real one, nothing inside does.
func TestLending(t *testing.T) {
	testenv.Need(t, "tool:curl")
	forEachUser(t, func(t *testing.T, h *house) {
		a, authority := newAPI(t)
		run := lendingHouse(t, h, a, authority)
		for _, client := range []string{
			`curl -sS -i -H "Authorization: Bearer $API_TOKEN" $URL/v1/x`,
			`curl -sS -i --http1.1 -H "Authorization: Bearer $API_TOKEN" $URL/v1/x`,
			`python3 -c 'import os, urllib.request as u; print(u.urlopen(u.Request("'$URL'/v1/x", headers={"Authorization": "Bearer " + os.environ["API_TOKEN"]})).read().decode())'`,
			`node -e 'fetch("'$URL'/v1/x", {headers: {Authorization: "Bearer " + process.env.API_TOKEN}}).then(r => r.text()).then(console.log)'`,
		} {
			r := run(client)
			if r.code != 0 || !strings.Contains(r.stdout, "hello") {
				t.Errorf("%.30s: exit %d: %s%s", client, r.code, r.stdout, r.stderr)
			}
			noCanary(t, client, r.stdout+r.stderr)
		}
		if !a.got("Bearer " + canary) {
			t.Error("control: the server never got the real credential")
		}
		r := run(`env; cat /proc/*/environ /proc/*/cmdline; grep -rl CANARY /etc /root /tmp /run 2>/dev/null; true`)
		noCanary(t, "inside", r.stdout+r.stderr)
		if !strings.Contains(r.stdout, "API_TOKEN=") {
			t.Errorf("control: no placeholder inside: %s", r.stdout)
		}
		for _, refused := range []struct{ what, line, rule string }{
			{"another path", `curl -sS -o /dev/null -w '%{http_code}' -H "Authorization: Bearer $API_TOKEN" $URL/v2/x`, "placeholder-misused"},
			{"another host", `curl -sS -o /dev/null -w '%{http_code}' -H "Authorization: Bearer $API_TOKEN" $OTHER/v1/x`, ""},
			{"another header", `curl -sS -o /dev/null -w '%{http_code}' -H "X-Token: $API_TOKEN" $URL/v1/x`, "placeholder-misused"},
			{"the query", `curl -sS -o /dev/null -w '%{http_code}' "$URL/v1/x?t=$API_TOKEN"`, "placeholder-misused"},
			{"a foreign credential", `curl -sS -o /dev/null -w '%{http_code}' -H "Authorization: Bearer of-my-own" $URL/v1/x`, "foreign-credential"},
		} {
			r := run(refused.line)
			if r.stdout == "200" {
				t.Errorf("%s: got through", refused.what)
			}
			if _, found := denied(h.events(), event{Rule: refused.rule}); refused.rule != "" && !found {
				t.Errorf("%s: no record under rule %s: %s%s", refused.what, refused.rule, r.stdout, r.stderr)
			}
		}
		searchCanary(t, h)
	})
}

// TestLendingEnds takes the credential away: by removing it, and by using the placeholder of a run in another.
func TestLendingEnds(t *testing.T) {
	testenv.Need(t, "tool:curl")
	forEachUser(t, func(t *testing.T, h *house) {
		a, authority := newAPI(t)
		run := lendingHouse(t, h, a, authority)
		stolen := strings.TrimSpace(run(`printf %s "$API_TOKEN"`, "-q").stdout)
		if len(stolen) < 20 {
			t.Fatalf("placeholder %q", stolen)
		}
		if r := run(`curl -sS -o /dev/null -w '%{http_code}' -H "Authorization: Bearer `+stolen+`" $URL/v1/x`, "-q"); r.stdout == "200" {
			t.Error("the placeholder of an ended run works in another")
		}
		if _, found := denied(h.events(), event{Rule: "foreign-credential"}); !found {
			t.Error("the placeholder of an ended run is not on record as foreign")
		}
		if r := h.do("credential", "remove", "api"); r.code != 0 {
			t.Fatalf("remove: %s", r.stderr)
		}
		if r := h.do("audit", "--kind", "credential.changed", "--json"); strings.Count(r.stdout, "\n") != 2 || !strings.Contains(r.stdout, `"remove"`) {
			t.Errorf("adding and removing are not on record: %s%s", r.stdout, r.stderr)
		}
		if r := run("true"); r.code != 125 || !strings.Contains(r.stderr, "not in the store") {
			t.Errorf("after the removal: exit %d: %s", r.code, r.stderr)
		}
	})
}

// noCanary fails if text has the credential in a form that a look would find.
func noCanary(t *testing.T, where, text string) {
	t.Helper()
	for form, value := range map[string]string{
		"plain": canary, "hexadecimal": hex.EncodeToString([]byte(canary)), "base64": base64.StdEncoding.EncodeToString([]byte(canary))[4:36],
		"base64 of the header": base64.StdEncoding.EncodeToString([]byte("Bearer " + canary))[12:48],
	} {
		if strings.Contains(text, value) {
			t.Errorf("%.60s: the credential, %s:\n%.600s", where, form, text)
		}
	}
}

// searchCanary looks through everything that was written on the host.
func searchCanary(t *testing.T, h *house) {
	t.Helper()
	files := 0
	err := filepath.WalkDir(h.state, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		files++
		noCanary(t, path, string(data))
		return err
	})
	if err != nil || files < 3 {
		t.Errorf("searched %d files: %v", files, err)
	}
	for _, args := range [][]string{{"credential", "list"}, {"credential", "show", "api"}, {"credential", "show", "api", "--json"}, {"audit", "--json"}, {"ps", "-a", "--json"}} {
		r := h.do(args...)
		noCanary(t, strings.Join(args, " "), r.stdout+r.stderr)
	}
}

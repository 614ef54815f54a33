package server

import (
	"bytes"
	"flag"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write golden files anew")

// golden compares with a file, or writes it.
func golden(t *testing.T, path string, got []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s is no longer what the code says; look at the difference, and write it anew with: go test ./internal/server -update", path)
	}
}

// The document is in the tree, so that a change of the API is seen by whoever reviews the change of the code.
func TestDocument(t *testing.T) {
	s := newStage(t)
	got := s.ask("GET", "/openapi.json", "", nil).want(200)
	golden(t, filepath.Join("..", "..", "api", "openapi.json"), got.text)
	if ct := got.Header.Get("Content-Type"); ct != "application/openapi+json" {
		t.Error(ct)
	}
	if y := s.ask("GET", "/openapi.yaml", "", nil).want(200); !bytes.Contains(y.text, []byte("openapi: 3.1.0")) {
		t.Error("no YAML")
	}
	s.ask("POST", "/openapi.json", "", nil).problem(405, codeMethod)
	s.described()
	ids := map[string]bool{}
	for _, o := range s.operations {
		if ids[o.id] || o.summary == "" {
			t.Errorf("%s: twice, or without summary", o.id)
		}
		ids[o.id] = true
	}
}

// headers prints an answer's headers without what is new each time.
func headers(a *answer, c string) string {
	var lines []string
	for name, values := range a.Header {
		if slices.Contains([]string{"Date", "Content-Length"}, name) {
			continue
		}
		text := strings.Join(values, " | ")
		if name == "X-Request-Id" {
			text = "ID"
		}
		lines = append(lines, name+": "+text)
	}
	slices.Sort(lines)
	return fmt.Sprintf("== %s: %d\n%s\n", c, a.StatusCode, strings.Join(lines, "\n"))
}

func TestHeaders(t *testing.T) {
	nonce := ""
	s := newStage(t, func(o *Options) {
		o.Contact = "mailto:security@cofferdam.example"
		o.Pages = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			nonce = Nonce(r.Context())
			w.Header().Set("Content-Type", "text/html; charset=utf-8")
			_, _ = w.Write([]byte("<!doctype html>"))
		})
	})
	var all strings.Builder
	for _, c := range []struct{ name, path string }{{"API, refused", "/me"}, {"API, unknown", "/nowhere"}, {"description", "/openapi.json"}, {"page", "!/"}, {"security.txt", "!/.well-known/security.txt"},
		{"alive", "!/healthz"}, {"ready", "!/readyz"}} {
		text := headers(s.ask("GET", c.path, "", nil), c.name)
		if nonce != "" {
			text = strings.ReplaceAll(text, nonce, "NONCE")
		}
		all.WriteString(strings.ReplaceAll(text, nonceOf(text), "NONCE"))
	}
	all.WriteString(headers(s.ask("GET", "/me", "", nil, func(r *http.Request) { r.Host = "attacker.example" }), "another host"))
	golden(t, filepath.Join("testdata", "headers.txt"), []byte(all.String()))
	first := nonce
	if s.ask("GET", "!/", "", nil).want(200); first == nonce || len(first) < 22 {
		t.Errorf("nonces %q and %q", first, nonce)
	}
}

func nonceOf(text string) string {
	_, rest, ok := strings.Cut(text, "'nonce-")
	if !ok {
		return "\x00"
	}
	nonce, _, _ := strings.Cut(rest, "'")
	return nonce
}

// HSTS is only for those who came encrypted; a proxy is believed only where it is trusted.
func TestEncryptedOnTheWay(t *testing.T) {
	s := newStage(t, func(o *Options) { o.TrustedProxies = prefixes("10.0.0.0/8") })
	for _, c := range []struct {
		remote, forwardedFor, proto string
		from                        string
		hsts                        bool
	}{
		{"192.0.2.1:5", "", "", "192.0.2.1", false},
		{"192.0.2.1:5", "203.0.113.9", "https", "192.0.2.1", false},
		{"10.0.0.1:5", "203.0.113.9", "https", "203.0.113.9", true},
		{"10.0.0.1:5", "198.51.100.7, 203.0.113.9", "https", "203.0.113.9", true},
		{"10.0.0.1:5", "203.0.113.9, 10.0.0.2", "http", "203.0.113.9", false},
		{"10.0.0.1:5", "nonsense", "https", "10.0.0.1", true},
		{"[2001:db8::1]:5", "", "", "2001:db8::1", false},
	} {
		r := httptest.NewRequest("GET", "http://127.0.0.1/api/v1/me", nil)
		r.RemoteAddr = c.remote
		if c.forwardedFor != "" {
			r.Header.Set("X-Forwarded-For", c.forwardedFor)
		}
		if c.proto != "" {
			r.Header.Set("X-Forwarded-Proto", c.proto)
		}
		from, encrypted := s.client(r)
		if from.String() != c.from || encrypted != c.hsts {
			t.Errorf("%+v: %v %v", c, from, encrypted)
		}
		w := httptest.NewRecorder()
		s.Handler().ServeHTTP(w, r)
		if has := w.Header().Get("Strict-Transport-Security") != ""; has != c.hsts {
			t.Errorf("%+v: HSTS %v", c, has)
		}
	}
}

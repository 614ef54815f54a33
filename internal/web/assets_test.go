package web

import (
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"regexp"
	"strings"
	"testing"
)

// TestVendored compares the vendored scripts with the hashes that their list names.
func TestVendored(t *testing.T) {
	readme, err := files.ReadFile("static/vendor/README.md")
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^\| (\S+) \|.*\| ([0-9a-f]{64}) \|$`).FindAllStringSubmatch(string(readme), -1) {
		content, err := files.ReadFile("static/vendor/" + m[1])
		if err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256(content)
		if hex.EncodeToString(sum[:]) != m[2] {
			t.Errorf("%s is not what the list says", m[1])
		}
		seen[m[1]] = true
	}
	entries, err := files.ReadDir("static/vendor")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if name := e.Name(); (strings.HasSuffix(name, ".js") || strings.HasSuffix(name, ".css")) && !seen[name] {
			t.Errorf("%s is not in the list", name)
		}
	}
}

func TestAssets(t *testing.T) {
	p := newPages(t, &sample{anyone: true})
	address := p.assetPath("app.css")
	w := get(t, p, address)
	if w.Code != http.StatusOK || !strings.Contains(w.Header().Get("Cache-Control"), "immutable") || w.Header().Get("Content-Type") != "text/css; charset=utf-8" {
		t.Errorf("status %d, %v", w.Code, w.Header())
	}
	if w := get(t, p, address, "If-None-Match", w.Header().Get("ETag")); w.Code != http.StatusNotModified {
		t.Errorf("status %d for what the browser has", w.Code)
	}
	if w := get(t, p, "/static/old/app.css"); w.Code != http.StatusOK || strings.Contains(w.Header().Get("Cache-Control"), "immutable") {
		t.Errorf("status %d, %v", w.Code, w.Header())
	}
	for _, address := range []string{"/static/x/../web.go", "/static/x/vendor/README.md", "/static/x/templates/agents.html", "/static/x/nothing.js"} {
		if w := get(t, p, address); w.Code == http.StatusOK {
			t.Errorf("%s is served", address)
		}
	}
}

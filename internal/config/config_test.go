package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cofferdam/cofferdam/internal/fault"
)

func write(t *testing.T, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestDefaults(t *testing.T) {
	for _, c := range []struct {
		name, file string
		over       Overrides
		mode, url  string
	}{
		{"nothing said", "", Overrides{}, TLSOff, "http://localhost:7878"},
		{"every address", "", Overrides{Listen: "[::]:443", URL: "https://c.example.com"}, TLSLocal, "https://c.example.com"},
		{"files", "version: 1\nlisten: ':8443'\nurl: https://c.example.com:8443/\ntls: {cert: /a, key: /b}\n", Overrides{}, TLSFiles, "https://c.example.com:8443"},
		{"acme", "version: 1\nlisten: ':443'\nurl: https://c.example.com\ntls: {acme: {email: a@example.com}}\n", Overrides{}, TLSACME, "https://c.example.com"},
		{"behind a proxy", "version: 1\nlisten: ':8080'\nurl: https://c.example.com\ntls: {mode: off}\n", Overrides{}, TLSOff, "https://c.example.com"},
	} {
		file := ""
		if c.file != "" {
			file = write(t, c.file)
		}
		got, err := Load(file, "/state", c.over)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if got.TLS.Mode != c.mode || got.URL != c.url || got.Store != "sqlite:/state/server/cofferdam.db" {
			t.Errorf("%s: %+v", c.name, got)
		}
		again, err := Load(write(t, got.String()), "/state", Overrides{})
		if err != nil || again.String() != got.String() {
			t.Errorf("%s: read back: %v\n%s\n%s", c.name, err, again, got)
		}
	}
}

// TestRefuse holds the reader to strictness: what it does not know or would weaken the service stops it.
func TestRefuse(t *testing.T) {
	for name, text := range map[string]string{
		"unknown member":             "version: 1\nlissten: ':1'\n",
		"unknown member below":       "version: 1\ntls: {modes: off}\n",
		"no version":                 "listen: '127.0.0.1:1'\n",
		"another version":            "version: 2\n",
		"a member twice":             "version: 1\nversion: 1\n",
		"not YAML":                   "{",
		"no TLS, open address":       "version: 1\nlisten: '0.0.0.0:80'\ntls: {mode: off}\nurl: http://c.example.com\n",
		"http with TLS":              "version: 1\ntls: {mode: local}\nurl: http://c.example.com\n",
		"half a pair":                "version: 1\ntls: {mode: files, cert: /a}\nurl: https://c.example.com\n",
		"files without mode files":   "version: 1\ntls: {mode: local, cert: /a, key: /b}\nurl: https://c.example.com\n",
		"mode":                       "version: 1\ntls: {mode: none}\n",
		"a path in the address":      "version: 1\nurl: http://127.0.0.1:7878/below\n",
		"a name to listen on":        "version: 1\nlisten: example.com:80\nurl: https://c.example.com\n",
		"store":                      "version: 1\nstore: mysql://x\n",
		"relative store":             "version: 1\nstore: sqlite:x.db\n",
		"proxies":                    "version: 1\ntrusted_proxies: [10.0.0.1/8]\n",
		"mail":                       "version: 1\nmail: {server: smtp.example.com, from: a@example.com}\n",
		"mail password without user": "version: 1\nmail: {server: 'smtp.example.com:587', from: a@example.com, password_file: /x}\n",
		"issuer":                     "version: 1\noidc: {issuer: 'http://id.example.com', client_id: x}\n",
		"domains without tenant":     "version: 1\noidc: {issuer: 'https://id.example.com', client_id: x, domains: [example.com]}\n",
		"a port in a host":           "version: 1\nhosts: ['c.example.com:8443']\n",
		"contact":                    "version: 1\nsecurity_contact: me\n",
	} {
		if c, err := Load(write(t, text), "/state", Overrides{}); fault.KindOf(err) != fault.Invalid {
			t.Errorf("%s: %v, %+v", name, err, c)
		}
	}
	if _, err := Load(filepath.Join(t.TempDir(), "absent"), "/state", Overrides{}); fault.KindOf(err) != fault.Invalid {
		t.Error(err)
	}
}

func TestMasked(t *testing.T) {
	const secret = "hunter2"
	c, err := Load(write(t, "version: 1\nstore: postgres://u:hunter2@db/x\nredis: 'redis://:hunter2@r:6379/0'\n"), "/state", Overrides{})
	if err != nil {
		t.Fatal(err)
	}
	if text := c.String(); strings.Contains(text, secret) || !strings.Contains(text, "••••") {
		t.Error(text)
	}
	for _, text := range []string{"postgres://db/x?user=u&password=hunter2", "postgres://u:hunter2@db/x", "postgres://u:hunter2@d b\x7f"} {
		if got := Masked(text); strings.Contains(got, secret) {
			t.Errorf("%q", got)
		}
	}
	if got := Masked("sqlite:/a/b"); got != "sqlite:/a/b" {
		t.Error(got)
	}
}

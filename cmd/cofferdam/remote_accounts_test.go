package main

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/secret"
)

const tokenCanary = "cfd_pat_cAnArYcAnArYcAnArY"

func TestAccounts(t *testing.T) {
	a := &app{settings: t.TempDir() + "/cofferdam"}
	all, err := a.loadAccounts()
	if err != nil || len(all.Servers) != 0 {
		t.Fatalf("none yet: %v %v", all, err)
	}
	all.put(account{URL: "https://a.example", Usual: "builder", token: secret.New([]byte(tokenCanary))})
	all.put(account{URL: "https://b.example", token: secret.New([]byte("other"))})
	all.Current = "https://a.example"
	if err := a.saveAccounts(all); err != nil {
		t.Fatal(err)
	}
	dir, err1 := os.Stat(a.settings)
	file, err2 := os.Stat(a.accountsFile())
	if err1 != nil || err2 != nil || dir.Mode().Perm() != 0o700 || file.Mode().Perm() != 0o600 {
		t.Errorf("modes: %v %v %v %v", dir, file, err1, err2)
	}
	all, err = a.loadAccounts()
	one, ok := all.find("https://a.example")
	if err != nil || !ok || one.Usual != "builder" || string(one.token.Reveal()) != tokenCanary || all.Current != "https://a.example" {
		t.Errorf("read back: %+v %v", all, err)
	}
	all.forget("https://a.example")
	if _, ok := all.find("https://a.example"); ok || all.Current != "" || len(all.Servers) != 1 {
		t.Errorf("forgotten: %+v", all)
	}
	if err := os.Chmod(a.accountsFile(), 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := a.loadAccounts(); fault.KindOf(err) != fault.Denied {
		t.Errorf("others can read it: %v", err)
	}
	for _, text := range []string{"{", `{"servers":[],"more":1}`} {
		if err := os.WriteFile(a.accountsFile(), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_ = os.Chmod(a.accountsFile(), 0o600) // it is ours
		if _, err := a.loadAccounts(); fault.KindOf(err) != fault.Invalid {
			t.Errorf("%s: %v", text, err)
		}
	}
}

// Where a command works is never a guess.
func TestWhichServer(t *testing.T) {
	file := t.TempDir() + "/token"
	if err := os.WriteFile(file, []byte("from-a-file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name                string
		current             string
		server, token, file string
		local               bool
		want, shows         string // "" means this machine
		kind                fault.Kind
	}{
		{name: "nowhere"},
		{name: "logged in", current: "https://a.example", want: "https://a.example", shows: "stored"},
		{name: "local flag", current: "https://a.example", local: true},
		{name: "local by environment", current: "https://a.example", server: "local"},
		{name: "local flag over environment", server: "https://a.example", token: "t", local: true},
		{name: "another one", current: "https://a.example", server: "https://b.example", token: "t", want: "https://b.example", shows: "t"},
		{name: "without scheme", server: "b.example:8443", file: file, want: "https://b.example:8443", shows: "from-a-file"},
		{name: "stored one by environment", current: "https://a.example", server: "https://A.example/", want: "https://a.example", shows: "stored"},
		{name: "other token", current: "https://a.example", token: "t", want: "https://a.example", shows: "t"},
		{name: "unknown without token", server: "https://b.example", kind: fault.Unauthenticated},
		{name: "token without server", token: "t", kind: fault.Invalid},
		{name: "no file", server: "https://b.example", file: file + "x", kind: fault.Invalid},
		{name: "plain http", server: "http://b.example", token: "t", kind: fault.Invalid},
		{name: "plain http here", server: "http://127.0.0.1:7878", token: "t", want: "http://127.0.0.1:7878", shows: "t"},
		{name: "with a path", server: "https://b.example/x", token: "t", kind: fault.Invalid},
		{name: "with a password", server: "https://u:p@b.example", token: "t", kind: fault.Invalid},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Setenv("COFFERDAM_SERVER", test.server)
			t.Setenv("COFFERDAM_TOKEN", test.token)
			t.Setenv("COFFERDAM_TOKEN_FILE", test.file)
			a := &app{settings: t.TempDir(), stderr: &bytes.Buffer{}}
			if test.current != "" {
				if err := a.saveAccounts(accounts{Current: test.current, Servers: []account{{URL: test.current, token: secret.New([]byte("stored"))}}}); err != nil {
					t.Fatal(err)
				}
			}
			r, err := a.server(test.local)
			if test.kind != 0 {
				if fault.KindOf(err) != test.kind || fault.HintOf(err) == "" && !strings.Contains(test.name, "file") {
					t.Errorf("%v (%v), want %v with a hint", err, fault.KindOf(err), test.kind)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if r == nil {
				if test.want != "" {
					t.Errorf("here, want %s", test.want)
				}
				return
			}
			if r.URL != test.want || string(r.account.token.Reveal()) != test.shows {
				t.Errorf("%s with %q, want %s with %q", r.URL, r.account.token.Reveal(), test.want, test.shows)
			}
		})
	}
}

func TestServiceArguments(t *testing.T) {
	cmd := (&app{}).newServeCommand()
	if err := cmd.ParseFlags([]string{"--listen", ":443", "--url=https://c.example", "--tls", "acme"}); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(serviceArguments(cmd, "serve"), " "); got != "cofferdamd serve --listen=:443 --tls=acme --url=https://c.example" {
		t.Errorf("%s", got)
	}
}

func TestInertOutput(t *testing.T) {
	tests := []struct{ name, in, want string }{
		{"plain", "a\tb\r\nc\n", "a\tb\nc\n"},
		{"escape", "\x1b]0;title\a\x1b[2Jred\n", "?]0;title??[2Jred\n"},
		{"umlauts", "grüße ∞ 𝛼\n", "grüße ∞ 𝛼\n"},
		{"c1 and direction", "a\u009bb\u202ec\n", "a?b?c\n"},
		{"bad bytes", "a\xff\xfeb", "a??b"},
	}
	for _, test := range tests {
		for piece := 1; piece < 5; piece++ { // however it comes in pieces
			var b bytes.Buffer
			w := &inertWriter{to: &b}
			for rest := test.in; rest != ""; {
				n := min(piece, len(rest))
				if _, err := w.Write([]byte(rest[:n])); err != nil {
					t.Fatal(err)
				}
				rest = rest[n:]
			}
			if got := b.String(); got != test.want {
				t.Errorf("%s in pieces of %d: %q, want %q", test.name, piece, got, test.want)
			}
		}
	}
}

package main

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/creack/pty"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/auth/limit"
	"github.com/cofferdam/cofferdam/internal/control/controltest"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/secret"
	"github.com/cofferdam/cofferdam/internal/server"
)

const (
	wordOfAda = "correct horse battery staple 77"
	mailOfAda = "ada@example.com"
)

// realServer is the service with its store and audit log, on loopback, with one administrator. It makes no sandboxes: that needs the programs.
func realServer(t *testing.T) string {
	t.Helper()
	front := httptest.NewUnstartedServer(nil)
	base := "http://" + front.Listener.Addr().String()
	service := controltest.New(t, base, slog.New(slog.DiscardHandler))
	s, err := server.New(server.Options{Control: service, Auth: service.Auth, DB: service.DB, Limiter: limit.NewMemory(time.Now, 0), BaseURL: base, Log: service.Log, Version: service.Version})
	if err != nil {
		t.Fatal(err)
	}
	front.Config = s.HTTP()
	front.Start()
	t.Cleanup(front.Close)
	ctx := t.Context()
	ticket, _, err := service.Auth.SetupToken(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := service.Auth.CompleteSetup(ctx, ticket.Text(), mailOfAda, "Ada", wordOfAda, "acme"); err != nil {
		t.Fatal(err)
	}
	return base
}

// loggedIn is a person who has logged in with a token made for this machine.
func loggedIn(t *testing.T) (*cli, string) {
	t.Helper()
	base := realServer(t)
	v, err := newVisit(account{URL: base})
	if err != nil {
		t.Fatal(err)
	}
	noCode := func() (string, error) { t.Error("a code is asked for"); return "", nil }
	if err := v.enter(t.Context(), mailOfAda, "wrong", noCode); fault.KindOf(err) != fault.Denied {
		t.Errorf("a wrong password: %v", err)
	}
	if err := v.enter(t.Context(), mailOfAda, wordOfAda, noCode); err != nil {
		t.Fatal(err)
	}
	made, err := v.machineToken(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(strings.Join(made.Scopes, " "), operate) || !strings.HasPrefix(made.Name, "cli on ") {
		t.Errorf("the token: %+v", made)
	}
	v.leave(t.Context())
	if _, err := v.Me(t.Context()); err == nil {
		t.Error("the session did not end")
	}
	c := at(t, base, made.Secret)
	all, err := c.app.loadAccounts()
	if err != nil {
		t.Fatal(err)
	}
	all.Servers[0].TokenID = made.ID
	if err := c.app.saveAccounts(all); err != nil {
		t.Fatal(err)
	}
	return c, base
}

func TestLogin(t *testing.T) {
	c, base := loggedIn(t)
	all, err := c.app.loadAccounts()
	if err != nil {
		t.Fatal(err)
	}
	token := string(all.Servers[0].token.Reveal())
	c.says(t, c.run(t, "", "whoami"), 0, base, mailOfAda, "acme", "administrator")
	c.says(t, c.run(t, "", "agent", "create", "builder"), 0, "made the agent builder")
	c.says(t, c.run(t, "", "login", "--agent", "nobody"), exitProblem, "no agent")
	c.says(t, c.run(t, token+"\n", "login", base, "--token-file", "-", "--agent", "builder"), 0, "logged in to "+base+" as "+mailOfAda)
	c.says(t, c.run(t, "two words\n", "login", base, "--token-file", "-"), exitUsage, "no token")
	c.says(t, c.run(t, "cfd_pat_nobody\n", "login", base, "--token-file", "-"), exitProblem, "does not take the token")
	c.says(t, c.run(t, token, "login", "http://example.com", "--token-file", "-"), exitUsage, "https")
	c.says(t, c.run(t, "", "login", base), exitUsage, "no terminal", "--token-file")
	c.says(t, c.run(t, "", "whoami", "--json"), 0, `"agent": "builder"`)
	c.says(t, c.run(t, "", "token", "list"), exitUsage, "no terminal")

	if all, err = c.app.loadAccounts(); err != nil || all.Servers[0].TokenID == "" { // the same token: it can still be revoked
		t.Fatalf("%+v %v", all, err)
	}
	all.Servers[0].TokenID = "" // as if it had been pasted in
	if err := c.app.saveAccounts(all); err != nil {
		t.Fatal(err)
	}
	c.says(t, c.run(t, "", "logout"), 0, "not made by this program")
	c.says(t, c.run(t, "", "whoami"), exitProblem, "logged in to none")
	c.says(t, c.run(t, "", "logout"), exitProblem, "not logged in")
}

func TestLogoutRevokes(t *testing.T) {
	c, base := loggedIn(t)
	all, err := c.app.loadAccounts()
	if err != nil {
		t.Fatal(err)
	}
	c.says(t, c.run(t, "", "logout"), 0, "revoked and forgotten")
	r, err := connect(all.Servers[0])
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Me(context.Background()); fault.KindOf(err) != fault.Unauthenticated {
		t.Errorf("the token still works at %s: %v", base, err)
	}
	data, err := os.ReadFile(c.app.accountsFile())
	if err != nil || strings.Contains(string(data), "cfd_pat_") {
		t.Errorf("the token is kept: %s %v", data, err)
	}
}

func TestAgentsAndPolicies(t *testing.T) {
	c, base := loggedIn(t)
	where := "on " + base + " (--local for this machine)"
	c.says(t, c.run(t, "", "agent", "list"), 0, "there are no agents")
	c.says(t, c.run(t, "", "agent", "create", "builder", "--description", "builds", "--env", "A=b", "--", "make", "all"), 0, "made the agent builder")
	c.says(t, c.run(t, "", "agent", "show", "builder"), 0, "builds", "make all", "A=b")
	c.says(t, c.run(t, "", "agent", "set", "builder"), exitUsage, "nothing is to be changed")
	c.says(t, c.run(t, "", "agent", "set", "builder", "--description", "", "--env", "", "--", "true"), 0, "command")
	if strings.Contains(c.out.String(), "A=b") || strings.Contains(c.out.String(), "builds") {
		t.Errorf("what was taken away is there: %s", c.out.String())
	}
	c.says(t, c.run(t, "", "agent", "suspend", "builder"), 0, "is suspended")
	c.says(t, c.run(t, "", "run", "--agent", "builder", "--workspace", "none", "--", "true"), exitOurs, "suspended")
	c.says(t, c.run(t, "", "agent", "resume", "builder"), 0, "again")
	c.says(t, c.run(t, "", "agent", "list", "--json"), 0, `"name": "builder"`)

	text := "version: 1\negress:\n  rules:\n    - name: one\n      hosts: [example.com]\n"
	c.says(t, c.run(t, text, "policy", "set", "builder", "-", "--comment", "opens"), 0, "version 2")
	c.says(t, c.run(t, "version: 1\nnonsense: 1\n", "policy", "set", "builder", "-"), exitUsage, "nonsense", "nothing was changed")
	c.says(t, c.run(t, "", "policy", "show", "builder"), 0, "example.com")
	c.says(t, c.run(t, "", "policy", "list"), 0, "opens")
	c.says(t, c.run(t, "", "policy", "check", "builder"), 0, where, "in order")
	c.says(t, c.run(t, "", "policy", "explain", "agent:builder", "example.com:443"), 0, "allow", "one")
	c.says(t, c.run(t, "", "policy", "explain", "builder", "other.example:443"), 0, "deny")
	file := t.TempDir() + "/p.yaml"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c.says(t, c.run(t, "", "policy", "check", file), 0, "in order")
	if strings.Contains(c.errors.String(), where) {
		t.Error("a file of this machine was checked at the server")
	}
	t.Setenv("EDITOR", "sed -i s/example.com/example.org/")
	c.says(t, c.run(t, "", "policy", "edit", "builder"), 0, "version 3")
	c.says(t, c.run(t, "", "policy", "replay", "builder", file), 0, "nothing would change")
	c.says(t, c.run(t, "", "agent", "delete", "builder"), 0, "removed")
	c.says(t, c.run(t, "", "agent", "show", "builder"), exitProblem)
}

// What works here and there says where, and --local is this machine.
func TestEitherWay(t *testing.T) {
	c, base := loggedIn(t)
	where := "on " + base + " (--local for this machine)"
	c.says(t, c.run(t, credentialCanary, "credential", "add", "github", "--host", "api.github.com"), 0, where, "added github")
	c.says(t, c.run(t, credentialCanary+"x", "credential", "rotate", "github"), 0, where)
	c.says(t, c.run(t, "", "credential", "list"), 0, where, "github", "api.github.com")
	c.says(t, c.run(t, "", "credential", "show", "github", "--json"), 0, `"kind": "static"`)
	c.says(t, c.run(t, "", "credential", "list", "--local"), 0, "there are no credentials")
	c.says(t, c.run(t, "", "credential", "edit", "github", "--host", "x.example"), exitProblem, "--local")
	c.says(t, c.run(t, "", "credential", "remove", "github"), 0, "removed github")
	for _, args := range [][]string{{"ps"}, {"credential", "list"}, {"audit", "--follow=false"}} {
		if code := c.run(t, "", append(args, "--local")...); code != 0 && args[0] != "audit" { // there is no log yet, which is said
			t.Errorf("%q --local: %d: %s", args, code, c.errors.String())
		}
		if strings.Contains(c.errors.String(), base) {
			t.Errorf("%q --local: %s", args, c.errors.String())
		}
	}
	c.says(t, c.run(t, "", "ps"), 0, where, "nothing runs")
	c.says(t, c.run(t, "", "ps", "--json", "--all"), 0, "[]")
	c.says(t, c.run(t, "", "ps", "--agent", "x", "--local"), exitUsage, "--agent")
	c.says(t, c.run(t, "", "audit", "last"), exitProblem, "no sandbox")
	c.says(t, c.run(t, "", "audit", "--rule", "x", "--local"), exitUsage, "--rule")
	c.says(t, c.run(t, "", "review"), 0, "nothing waits")
	c.says(t, c.run(t, "", "review", "show", "none"), exitProblem, "nothing to review")
	c.says(t, c.run(t, "", "review", "allow", "none", "--until", "7d"), exitUsage, "--agent")
	c.says(t, c.run(t, "", "review", "rules"), 0, "no rule")
	c.says(t, c.run(t, "", "user", "invite", "bob@example.com", "--role", "emperor"), exitUsage, "developer")
	c.says(t, c.run(t, "", "user", "invite", "bob@example.com", "--role", "viewer"), exitUsage, "no terminal")
	c.says(t, c.run(t, "", "user", "list"), 0, mailOfAda, "administrator")
	c.says(t, c.run(t, "", "stop", "none"), exitProblem, "no such sandbox")
	c.says(t, c.run(t, "", "logs", "none"), exitProblem, "no such sandbox")
	c.says(t, c.run(t, "", "__complete", "agent", "show", ""), 0)
}

func TestEvents(t *testing.T) {
	c, base := loggedIn(t)
	c.says(t, c.run(t, "", "agent", "create", "builder"), 0)
	reading, writing, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer reading.Close()
	c.app.stdout = writing
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan int, 1)
	go func() { ended <- c.app.main(ctx, []string{"events", "--after", "0", "--json"}) }()
	var e api.Event
	if err := json.NewDecoder(reading).Decode(&e); err != nil || e.Type == "" {
		t.Errorf("%s: %+v %v", base, e, err)
	}
	cancel()
	if code := <-ended; code != 0 {
		t.Errorf("interrupted: %d", code)
	}
}

// prompted is what a program says to a person, who waits for it.
type prompted struct {
	mu   sync.Mutex
	text strings.Builder
}

func (p *prompted) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.text.Write(b)
}

func (p *prompted) String() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.text.String()
}

// A person without a token signs in with a password, which is not shown, and the machine gets a token of its own in the place of its earlier one.
func TestLoginByPassword(t *testing.T) {
	c, base := loggedIn(t)
	before, err := c.app.loadAccounts()
	if err != nil {
		t.Fatal(err)
	}
	terminal, tty, err := pty.Open()
	if err != nil {
		t.Skip(err)
	}
	defer terminal.Close()
	defer tty.Close()
	said := &prompted{}
	c.app.stdin, c.app.stderr = tty, said
	typed := make(chan struct{})
	go func() {
		defer close(typed)
		for _, step := range []struct{ prompt, answer string }{{"Token (not shown): ", ""}, {"E-mail address: ", mailOfAda}, {"Password (not shown): ", wordOfAda}} {
			for wait := 0; !strings.HasSuffix(said.String(), step.prompt) && wait < 500; wait++ {
				time.Sleep(10 * time.Millisecond)
			}
			time.Sleep(200 * time.Millisecond) // until echo is off
			_, _ = terminal.WriteString(step.answer + "\r")
		}
	}()
	if code := c.app.main(t.Context(), []string{"login", base}); code != 0 || !strings.Contains(said.String(), "logged in to "+base) {
		t.Fatalf("%d: %s", code, said.String())
	}
	<-typed
	after, err := c.app.loadAccounts()
	if err != nil || after.Servers[0].token.Equal(before.Servers[0].token) || after.Servers[0].TokenID == "" {
		t.Errorf("%+v %v", after, err)
	}
	if strings.Contains(said.String(), wordOfAda) || strings.Contains(said.String(), string(after.Servers[0].token.Reveal())) {
		t.Errorf("a secret is shown: %s", said.String())
	}
	old, err := connect(before.Servers[0])
	if err != nil {
		t.Fatal(err)
	}
	if _, err := old.Me(t.Context()); fault.KindOf(err) != fault.Unauthenticated {
		t.Errorf("the earlier token still works: %v", err)
	}
}

// A server of which this machine does not trust the certificate gets no token.
func TestUnknownAuthority(t *testing.T) {
	asked := false
	s := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked = true }))
	s.Config.ErrorLog = slog.NewLogLogger(slog.NewTextHandler(io.Discard, nil), slog.LevelError)
	defer s.Close()
	c := at(t, s.URL, tokenCanary)
	c.says(t, c.run(t, "", "whoami"), exitProblem, "not by an authority", "--ca FILE")
	if asked {
		t.Error("it was asked")
	}
	if _, err := readAuthority(os.Args[0]); err == nil {
		t.Error("a program was taken for an authority")
	}
	if _, err := connect(account{URL: s.URL, CA: "no PEM", token: secret.New([]byte("x"))}); fault.KindOf(err) != fault.Invalid {
		t.Errorf("no certificate: %v", err)
	}
}

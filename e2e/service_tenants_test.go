package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	wire "github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/client"
	"github.com/cofferdam/cofferdam/internal/testenv"
)

// someone is the least of users: what a service does is the same for all, where no sandbox's making is looked at.
func someone(t *testing.T) *house {
	t.Helper()
	testenv.Need(t, "userns")
	all := users()
	return newHouse(t, all[len(all)-1])
}

// listener keeps what a stream of events told.
type listener struct {
	mu     sync.Mutex
	events []wire.Event
}

func (l *listener) on(e wire.Event) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.events = append(l.events, e)
	return nil
}

func (l *listener) text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	text, _ := json.Marshal(l.events) // it has no value that cannot be
	return string(text)
}

// TestServiceTwoTenants: nothing of one tenant's reaches another's people, who get the same answer for it as for what is not there.
func TestServiceTwoTenants(t *testing.T) {
	s := newService(someone(t))
	s.start("127.0.0.1:0")
	ada := s.setUp()
	a := ada.client()
	made, err := a.CreateTenant(t.Context(), wire.NewTenant{Name: "borealis", Email: "bea@example.com"})
	if err != nil {
		t.Fatal(err)
	}
	bea := s.join(made.Invitation)
	b := bea.client()

	ctx, cancel := context.WithCancel(t.Context())
	var heardByA, heardByB listener
	var listening sync.WaitGroup
	listening.Go(func() { _ = a.Events(ctx, 0, heardByA.on) }) // it ends with ctx
	listening.Go(func() { _ = b.Events(ctx, 0, heardByB.on) }) // likewise
	defer listening.Wait()
	defer cancel()

	ids, box := s.fill(a, ada)
	s.agent(b, "worker", "") // the same name in both
	inB := s.box(b, wire.NewSandbox{Agent: "worker"})
	defer inB.stop()
	inB.sh("getent hosts denied.borealis.example.com")
	var denial wire.Denial
	s.await("the denial is in the inbox", 5*time.Second, func() bool {
		page, err := a.Denials(t.Context(), "", nil, client.Page{})
		if err != nil || len(page.Items) == 0 {
			return false
		}
		denial = page.Items[0]
		return denial.Sandbox == box.ID
	})
	ids["denial"] = denial.ID
	t.Run("lists", func(t *testing.T) { apart(t, ada, bea, ids) })
	t.Run("by identifier", func(t *testing.T) { ofAnother(t, ada, bea, ids) })

	s.await("each heard of their own", 5*time.Second, func() bool {
		return strings.Contains(heardByA.text(), denial.ID) && strings.Contains(heardByB.text(), inB.ID)
	})
	for what, id := range ids {
		if strings.Contains(heardByB.text(), id) {
			t.Errorf("events of B tell of the %s of A", what)
		}
	}
	if strings.Contains(heardByA.text(), inB.ID) {
		t.Error("events of A tell of the sandbox of B")
	}
	exports(t, a, b, box.ID, inB.ID, ids)
	if r := box.sh("echo still here"); r.Stdout != "still here\n" {
		t.Errorf("the sandbox of A after what B tried: %+v", r)
	}
	box.stop()
	if err := a.DeleteWorkspace(t.Context(), "shelf"); err != nil {
		t.Error(err)
	}
}

// fill makes one of everything in the first tenant.
func (s *service) fill(a *client.Client, ada *browser) (map[string]string, *box) {
	s.t.Helper()
	ctx := s.t.Context()
	ids := map[string]string{}
	fail := func(err error) {
		if err != nil {
			s.t.Helper()
			s.t.Fatal(err)
		}
	}
	agent := s.agent(a, "worker", "version: 1\negress: {rules: [{hosts: [only.acme.example.com]}]}\n")
	ids["agent"], ids["policy"] = agent.ID, agent.Policy
	w, err := a.CreateWorkspace(ctx, wire.NewWorkspace{Name: "shelf"})
	fail(err)
	ids["workspace"] = w.ID
	var u wire.Invitation
	ada.api("POST", "/users", wire.NewUser{Email: "carl@example.com", Role: wire.Viewer}, &u)
	ids["user"] = u.User.ID
	_, err = a.CreateCredential(ctx, wire.NewCredential{Name: "acme-key", Hosts: []string{"only.acme.example.com"}, Values: map[string]string{"value": canary}})
	fail(err)
	ids["credential"] = "acme-key"
	up, err := a.CreateUpstream(ctx, wire.Upstream{Name: "acme-forge", URL: "https://forge.acme.example.com"})
	fail(err)
	ids["upstream"] = up.ID
	q, err := a.SaveQuery(ctx, wire.SavedQuery{Name: "acme-query", Query: wire.AuditQuery{Host: "only.acme.example.com"}})
	fail(err)
	ids["query"] = q.ID
	b := s.box(a, wire.NewSandbox{Agent: "worker", Workspace: "shelf", Name: "acme-box"})
	ids["sandbox"] = b.ID
	ids["run"] = b.sh("echo acme-secret > /work/note; getent hosts denied.acme.example.com").Run
	var tokens wire.Page[wire.Token]
	ada.api("GET", "/tokens", nil, &tokens)
	ids["token"] = tokens.Items[0].ID
	return ids, b
}

// apart reads every list as both, over the API and on the pages.
func apart(t *testing.T, ada, bea *browser, ids map[string]string) {
	seen := map[string]bool{}
	for _, path := range []string{"/agents", "/policies", "/sandboxes", "/runs", "/workspaces", "/users", "/tokens", "/credentials", "/git/upstreams", "/queries", "/denials", "/audit?limit=500"} {
		theirs, own := bea.ask("GET", "/api/v1"+path, nil), ada.ask("GET", "/api/v1"+path, nil)
		if theirs.status != 200 || own.status != 200 {
			t.Errorf("%s: %d and %d", path, theirs.status, own.status)
		}
		for what, id := range ids {
			if strings.Contains(theirs.body, id) {
				t.Errorf("%s tells B of the %s of A", path, what)
			}
			seen[what] = seen[what] || strings.Contains(own.body, id)
		}
		if strings.Contains(theirs.body, "acme") {
			t.Errorf("%s tells B: %.300s", path, theirs.body)
		}
	}
	for what := range ids {
		if !seen[what] {
			t.Errorf("control: no list tells A of the %s", what)
		}
	}
	told := 0
	for _, path := range []string{"/", "/agents", "/sandboxes", "/workspaces", "/review", "/rules", "/policies", "/credentials", "/git", "/audit", "/users", "/settings", "/account"} {
		theirs, own := bea.ask("GET", path, nil), ada.ask("GET", path, nil)
		if theirs.status != 200 || own.status != 200 {
			t.Errorf("page %s: %d and %d", path, theirs.status, own.status)
		}
		if strings.Contains(theirs.body, "acme") {
			t.Errorf("page %s tells B of A", path)
		}
		if strings.Contains(own.body, "acme") {
			told++
		}
	}
	if told < 8 {
		t.Errorf("control: only %d pages tell A of A", told)
	}
}

// ofAnother asks for what is A's by its identifier, to read and to change, as B.
func ofAnother(t *testing.T, ada, bea *browser, ids map[string]string) {
	for _, c := range []struct {
		method, path string
		body         any
	}{
		{"GET", "/agents/{agent}", nil}, {"GET", "/agents/{agent}/policy", nil}, {"GET", "/policies/{policy}", nil}, {"GET", "/policies/{policy}/versions", nil},
		{"GET", "/sandboxes/{sandbox}", nil}, {"GET", "/sandboxes/{sandbox}/trace", nil}, {"GET", "/sandboxes/{sandbox}/output", nil}, {"GET", "/sandboxes/{sandbox}/files?path=/work", nil},
		{"GET", "/sandboxes/{sandbox}/files/content?path=/work/note", nil}, {"GET", "/workspaces/{workspace}", nil}, {"GET", "/users/{user}", nil}, {"GET", "/credentials/{credential}", nil},
		{"GET", "/denials/{denial}", nil},
		{"POST", "/sandboxes/{sandbox}/exec", wire.Exec{Command: []string{"rm", "/work/note"}}}, {"POST", "/sandboxes/{sandbox}/stop", wire.Stop{}}, {"POST", "/sandboxes/{sandbox}/extend", wire.Extend{Seconds: 1}},
		{"POST", "/sandboxes", wire.NewSandbox{Agent: ids["agent"], Hold: true}}, {"POST", "/sandboxes", wire.NewSandbox{Agent: "worker", Hold: true, Workspace: ids["workspace"]}},
		{"POST", "/denials/{denial}/decide", wire.Decide{Verdict: "allow", Scope: wire.ForAgent, Widens: true}}, {"POST", "/users/{user}/reset", nil},
		{"POST", "/rules/check", wire.RuleText{Agent: ids["agent"], Rule: "- {hosts: [a.example.com]}"}}, {"POST", "/policies/{policy}/replay", wire.ReplayRequest{Text: "version: 1\n"}},
		{"POST", "/credentials/{credential}/rotate", wire.RotateCredential{Values: map[string]string{"value": "x"}}},
		{"DELETE", "/agents/{agent}", nil}, {"DELETE", "/policies/{policy}", nil}, {"DELETE", "/workspaces/{workspace}", nil}, {"DELETE", "/users/{user}", nil}, {"DELETE", "/tokens/{token}", nil},
		{"DELETE", "/credentials/{credential}", nil}, {"DELETE", "/git/upstreams/{upstream}", nil}, {"DELETE", "/queries/{query}", nil},
	} {
		path := "/api/v1" + c.path
		for what, id := range ids {
			path = strings.ReplaceAll(path, "{"+what+"}", id)
		}
		got := bea.ask(c.method, path, c.body)
		if got.status != http.StatusNotFound || strings.Contains(got.body, "acme") {
			t.Errorf("%s %s as B: %d %s", c.method, c.path, got.status, got.body)
		}
		if c.method != "GET" {
			continue
		}
		if own := ada.ask(c.method, path, c.body); own.status != http.StatusOK {
			t.Errorf("control: %s %s as A: %d %s", c.method, c.path, own.status, own.body)
		}
	}
	for _, page := range []string{"/agents/{agent}", "/sandboxes/{sandbox}", "/sandboxes/{sandbox}/files", "/sandboxes/{sandbox}/trace", "/policies/{policy}", "/users/{user}", "/review/denials/{denial}", "/credentials/{credential}"} {
		path := page
		for what, id := range ids {
			path = strings.ReplaceAll(path, "{"+what+"}", id)
		}
		theirs, own := bea.ask("GET", path, nil), ada.ask("GET", path, nil)
		if theirs.status != http.StatusNotFound || own.status != http.StatusOK || strings.Contains(theirs.body, "acme") {
			t.Errorf("page %s: %d to B, %d to A", page, theirs.status, own.status)
		}
	}
}

// exports compares what both get of the audit log.
func exports(t *testing.T, a, b *client.Client, boxA, boxB string, ids map[string]string) {
	t.Helper()
	var own, theirs bytes.Buffer
	if err := a.ExportAudit(t.Context(), wire.AuditQuery{}, &own); err != nil {
		t.Fatal(err)
	}
	if err := b.ExportAudit(t.Context(), wire.AuditQuery{}, &theirs); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(own.String(), boxA) || !strings.Contains(own.String(), "denied.acme.example.com") || !strings.Contains(theirs.String(), boxB) || !strings.Contains(theirs.String(), "denied.borealis.example.com") {
		t.Error("control: an export lacks its tenant's own")
	}
	if strings.Contains(own.String(), boxB) || strings.Contains(own.String(), "borealis.example.com") {
		t.Error("the export of A has records of B")
	}
	for what, id := range ids {
		if strings.Contains(theirs.String(), id) {
			t.Errorf("the export of B tells of the %s of A", what)
		}
	}
	var nothing bytes.Buffer
	if err := b.ExportAudit(t.Context(), wire.AuditQuery{Sandbox: boxA}, &nothing); err == nil && nothing.Len() > 0 {
		t.Errorf("B gets the records of a sandbox of A: %.300s", nothing.String())
	}
	for i, q := range []wire.AuditQuery{{Sandbox: boxA}, {Agent: ids["agent"]}, {Host: "*.acme.example.com"}} {
		if page, err := b.Audit(t.Context(), q); err == nil && len(page.Items) > 0 {
			t.Errorf("question %d of B has %d answers of A", i, len(page.Items))
		}
		if page, err := a.Audit(t.Context(), q); err != nil || len(page.Items) == 0 {
			t.Errorf("control: question %d of A has %d answers, %v", i, len(page.Items), err)
		}
	}
}

package server

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/client"
	"github.com/cofferdam/cofferdam/internal/fault"
)

// The client and the server understand each other: what one writes the other reads, strictly.
func TestClient(t *testing.T) {
	s := newStage(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c, err := client.New(s.http.URL, s.token(s.a, api.Administrator))
	if err != nil {
		t.Fatal(err)
	}
	fine := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	me, err := c.Me(ctx)
	fine("me", err)
	if me.Via != "token" || me.User.ID != s.a.users[api.Administrator] {
		t.Errorf("%+v", me)
	}
	_, err = c.Counts(ctx)
	fine("counts", err)
	settings, err := c.Settings(ctx)
	fine("settings", err)
	settings.FourEyes, settings.MaxSandboxes = true, 7
	changed, err := c.ChangeSettings(ctx, settings)
	fine("change settings", err)
	if changed.Version == settings.Version || !changed.FourEyes {
		t.Errorf("%+v", changed)
	}
	policy, err := c.CreatePolicy(ctx, api.NewPolicy{Name: "p", Text: "version: 1\n"})
	fine("create policy", err)
	text := "version: 1\n# second\n"
	policy, err = c.ChangePolicy(ctx, policy.ID, policy.Version, api.PolicyChange{Text: &text})
	fine("change policy", err)
	versions, err := c.PolicyVersions(ctx, policy.ID, client.Page{Limit: 10})
	fine("versions", err)
	if len(versions.Items) != 2 {
		t.Errorf("%+v", versions)
	}
	diff, err := c.DiffPolicy(ctx, policy.ID, 1, 2)
	fine("diff", err)
	if !bytes.Contains([]byte(diff), []byte("+# second")) {
		t.Errorf("%q", diff)
	}
	check, err := c.CheckPolicy(ctx, "version: 2\n")
	fine("check", err)
	if check.OK {
		t.Errorf("%+v", check)
	}
	why, err := c.Explain(ctx, api.ExplainRequest{Target: "example.com:443", Text: "version: 1\n"})
	fine("explain", err)
	if len(why) == 0 {
		t.Error("no explanation")
	}
	_, err = c.Replay(ctx, policy.ID, api.ReplayRequest{Text: "version: 1\n"})
	fine("replay", err)
	agent, err := c.CreateAgent(ctx, api.NewAgent{Name: "builder", Policy: policy.ID})
	fine("create agent", err)
	for _, name := range []string{"a1", "a2", "a3"} {
		_, err = c.CreateAgent(ctx, api.NewAgent{Name: name})
		fine(name, err)
	}
	seen := 0
	for _, err := range client.All(ctx, func(ctx context.Context, p client.Page) (api.Page[api.Agent], error) {
		p.Limit = 2
		return c.Agents(ctx, p)
	}) {
		fine("all", err)
		seen++
	}
	if seen != 4 {
		t.Errorf("%d agents", seen)
	}
	in, err := c.EffectivePolicy(ctx, agent.ID)
	fine("effective", err)
	if in == "" {
		t.Error("no effective policy")
	}
	_, err = c.CheckRule(ctx, agent.ID, "host: example.com\nports: [443]\n")
	if k := fault.KindOf(err); err != nil && k != fault.Invalid {
		t.Errorf("check rule: %v", err)
	}
	_, err = c.CreateCredential(ctx, api.NewCredential{Name: "x", Hosts: []string{"api.example.com"}, Values: map[string]string{"value": "s3cr3t-value-for-tests"}})
	fine("create credential", err)
	fine("delete credential", c.DeleteCredential(ctx, "x"))
	up, err := c.CreateUpstream(ctx, api.Upstream{Name: "forge", Type: "gitea", URL: "https://git.example.com"})
	fine("create upstream", err)
	_, err = c.ChangeUpstream(ctx, up.ID, up)
	fine("change upstream", err)
	q, err := c.SaveQuery(ctx, api.SavedQuery{Name: "q", Query: api.AuditQuery{Verdict: "deny", Since: time.Now().Add(-time.Hour)}})
	fine("save query", err)
	fine("delete query", c.DeleteQuery(ctx, q.ID))
	_, err = c.Audit(ctx, api.AuditQuery{Kinds: []string{"agent.changed", "policy.changed"}, Since: time.Now().Add(-time.Hour), Limit: 5})
	fine("audit", err)
	var out bytes.Buffer
	fine("export", c.ExportAudit(ctx, api.AuditQuery{Kinds: []string{"agent.changed"}}, &out))
	_, err = c.Denials(ctx, agent.ID, []api.DenialState{api.Open, api.Refused}, client.Page{})
	fine("denials", err)
	_, err = c.Approvals(ctx, true, client.Page{})
	fine("approvals", err)
	_, err = c.Rules(ctx, "", []string{"active"}, client.Page{})
	fine("rules", err)
	_, err = c.Sandboxes(ctx, agent.ID, true, client.Page{Search: "x"})
	fine("sandboxes", err)

	_, err = c.Sandbox(ctx, "zzzzzzzz")
	var e *client.Error
	if !errors.As(err, &e) || e.Code != client.NotFound || fault.KindOf(err) != fault.NotFound || e.ID == "" {
		t.Errorf("%v", err)
	}
	_, err = c.Exec(ctx, "zzzzzzzz", api.Exec{Command: []string{"true"}}, client.Streams{})
	if fault.KindOf(err) != fault.NotFound {
		t.Errorf("%v", err)
	}
	got := 0
	enough := errors.New("enough")
	err = c.Events(ctx, 0, func(api.Event) error {
		if got++; got == 4 {
			return enough
		}
		return nil
	})
	if !errors.Is(err, enough) {
		t.Errorf("events: %v", err)
	}
}

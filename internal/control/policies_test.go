package control

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/audit"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/store"
)

func TestPolicyVersions(t *testing.T) {
	s, ctx := newStage(t), t.Context()
	p := must[api.Policy](t)(s.CreatePolicy(ctx, s.admin(), api.NewPolicy{Name: "ci", Text: openPolicy, Comment: "first"}))
	for i := 2; i <= 3; i++ {
		text := openPolicy + strings.Repeat("# changed\n", i)
		p = must[api.Policy](t)(s.ChangePolicy(ctx, s.admin(), "ci", p.Version, api.PolicyChange{Text: &text, Comment: fmt.Sprint("number ", i)}))
	}
	if p.Number != 3 || p.Comment != "number 3" || p.Author != s.admin().Name || !strings.HasSuffix(p.Text, "# changed\n") {
		t.Errorf("%+v", p)
	}
	same := p.Text
	if again := must[api.Policy](t)(s.ChangePolicy(ctx, s.admin(), p.ID, p.Version, api.PolicyChange{Text: &same})); again.Number != 3 || again.Version != p.Version {
		t.Errorf("the same text made a version: %+v", again)
	}
	list := must[api.Page[api.PolicyVersion]](t)(s.PolicyVersions(ctx, s.a[api.Viewer], p.ID, Page{Limit: 2}))
	rest := must[api.Page[api.PolicyVersion]](t)(s.PolicyVersions(ctx, s.a[api.Viewer], p.ID, Page{Limit: 2, After: list.Next}))
	var numbers []int
	for _, v := range append(list.Items, rest.Items...) {
		numbers = append(numbers, v.Number)
		if v.Text != "" {
			t.Error("a list has texts")
		}
	}
	if !slices.Equal(numbers, []int{3, 2, 1}) || rest.Next != "" {
		t.Errorf("versions %v", numbers)
	}
	if v := must[api.PolicyVersion](t)(s.PolicyVersion(ctx, s.admin(), p.ID, 1)); v.Text != openPolicy || v.Comment != "first" {
		t.Errorf("%+v", v)
	}
	for _, n := range []int{-1, 0, 4, 1 << 40} {
		_, err := s.PolicyVersion(ctx, s.admin(), p.ID, n)
		says(t, err, fault.NotFound, "no such version")
	}
	diff := must[string](t)(s.DiffPolicy(ctx, s.admin(), p.ID, 1, 2))
	if !strings.HasPrefix(diff, "--- ci@1\n+++ ci@2\n@@") || strings.Count(diff, "\n+# changed") != 2 {
		t.Errorf("diff:\n%s", diff)
	}
	if none := must[string](t)(s.DiffPolicy(ctx, s.admin(), p.ID, 2, 2)); none != "" {
		t.Errorf("diff of the same: %q", none)
	}
	done(t, s.DeletePolicy(ctx, s.admin(), p.ID))
	if n := must[int](t)(versions().Count(ctx, s.DB, s.admin().Tenant, store.Filter{})); n != 0 {
		t.Errorf("%d versions are left", n)
	}
}

func TestCheckPolicy(t *testing.T) {
	s, ctx := newStage(t), t.Context()
	must[api.Credential](t)(s.CreateCredential(ctx, s.admin(), api.NewCredential{Name: "here", Hosts: []string{"api.example.com"}, Values: map[string]string{"value": "s3cret-value"}}))
	lends := "version: 1\negress:\n  rules:\n    - {name: api, hosts: [api.example.com], ports: [443]}\ncredentials:\n  - {use: %s, hosts: [api.example.com], env: TOKEN}\n"
	for _, c := range []struct {
		text     string
		problems []string // line:column
		warnings int
	}{
		{openPolicy, nil, 0},
		{"", []string{"1:1"}, 0},
		{"version: 2\negress:\n  rule: []\n", []string{"1:10", "3:3"}, 0},
		{"version: 1\nmounts:\n  - {source: /etc, target: /mnt}\n", []string{"2:1"}, 0},
		{fmt.Sprintf(lends, "here"), nil, 0},
		{fmt.Sprintf(lends, "elsewhere"), nil, 1},
	} {
		got := must[api.PolicyCheck](t)(s.CheckPolicy(ctx, s.a[api.Viewer], api.PolicyText{Text: c.text}))
		var at []string
		for _, p := range got.Problems {
			at = append(at, fmt.Sprintf("%d:%d", p.Line, p.Column))
			if p.Text == "" || p.Hint == "" {
				t.Errorf("%q: %+v", c.text, p)
			}
		}
		if !slices.Equal(at, c.problems) || len(got.Warnings) != c.warnings || got.OK != (len(c.problems) == 0) {
			t.Errorf("%q: %+v", c.text, got)
		}
		_, err := s.CreatePolicy(ctx, s.admin(), api.NewPolicy{Name: "p" + store.NewID(), Text: c.text})
		if (err == nil) != got.OK {
			t.Errorf("%q is stored: %v, and checks: %t", c.text, err, got.OK)
		}
	}
	stored := must[api.Policy](t)(s.CreatePolicy(ctx, s.admin(), api.NewPolicy{Name: "lends", Text: fmt.Sprintf(lends, "elsewhere")}))
	if len(stored.Warnings) != 1 || !strings.Contains(stored.Warnings[0], "no credential elsewhere") {
		t.Errorf("warnings %q", stored.Warnings)
	}
}

func TestExplain(t *testing.T) {
	s, ctx := newStage(t), t.Context()
	agent := must[api.Agent](t)(s.CreateAgent(ctx, s.admin(), api.NewAgent{Name: "build", PolicyText: openPolicy}))
	docs := "allow review-" + s.rule(agent.ID, "allow", api.ForAgent, "", "- hosts: [docs.example.com]\n  ports: [443]\n").ID
	for _, c := range []struct {
		in   api.ExplainRequest
		want string // verdict rule, or a kind
	}{
		{api.ExplainRequest{Target: "registry.example.com:443", Agent: "build"}, "allow registry"},
		{api.ExplainRequest{Target: "registry.example.com:443", Policy: agent.Policy}, "allow registry"},
		{api.ExplainRequest{Target: "docs.example.com:443", Agent: agent.ID}, docs},
		{api.ExplainRequest{Target: "docs.example.com:443", Policy: agent.Policy}, "deny default"},
		{api.ExplainRequest{Target: "docs.example.com:443", Agent: agent.ID, Text: "version: 1\n"}, docs},
		{api.ExplainRequest{Target: "registry.example.com:443", Agent: agent.ID, Text: "version: 1\n"}, "deny default"},
		{api.ExplainRequest{Target: "https://registry.example.com/x", Method: "POST", Text: openPolicy}, "allow registry"},
		{api.ExplainRequest{Target: "registry.example.com:443", Method: "POST", Text: openPolicy}, "invalid"},
		{api.ExplainRequest{Target: "https://registry.example.com/", Method: "po st", Text: openPolicy}, "invalid"},
		{api.ExplainRequest{Target: "registry.example.com:443", Ref: "main", Text: openPolicy}, "invalid"},
		{api.ExplainRequest{Target: "", Text: openPolicy}, "invalid"},
		{api.ExplainRequest{Target: "git:github/acme/site", Text: openPolicy}, "invalid"},
		{api.ExplainRequest{Target: "a.example:443"}, "invalid"},
		{api.ExplainRequest{Target: "a.example:443", Text: "version: 7\n"}, "invalid"},
		{api.ExplainRequest{Target: "a.example:443", Agent: "build", Text: "version: 7\n"}, "invalid"},
		{api.ExplainRequest{Target: "a.example:443", Agent: "build", Policy: agent.Policy}, "invalid"},
	} {
		got, err := s.Explain(ctx, s.a[api.Viewer], c.in)
		said := fault.KindOf(err).String()
		if err == nil {
			said = got[0].Verdict + " " + got[0].Rule
		}
		if said != c.want {
			t.Errorf("%+v: %s (%v), want %s", c.in, said, err, c.want)
		}
	}
}

// rule stores an active rule of a reviewer.
func (s *stage) rule(agent, verdict string, scope api.Scope, sandbox, text string) store.Object[RuleData] {
	s.t.Helper()
	return must[store.Object[RuleData]](s.t)(rules().Insert(s.t.Context(), s.DB, store.Object[RuleData]{
		Tenant: s.admin().Tenant, Parent: agent, State: ruleActive, Data: RuleData{Agent: agent, Verdict: verdict, Scope: scope, Sandbox: sandbox, Rule: text, ProposedBy: "test"},
	}))
}

// TestReplay judges what is on record by another text.
func TestReplay(t *testing.T) {
	s, ctx := newStage(t), t.Context()
	agent := must[api.Agent](t)(s.CreateAgent(ctx, s.admin(), api.NewAgent{Name: "build", PolicyText: openPolicy}))
	twin := must[api.Agent](t)(s.CreateAgent(ctx, s.admin(), api.NewAgent{Name: "twin", Policy: agent.Policy}))
	events := []audit.Event{
		{Protocol: "tls", Host: "registry.example.com", Port: 443, Verdict: "allow", Rule: "registry"},
		{Protocol: "tls", Host: "other.example.com", Port: 443, Verdict: "deny", Rule: "default", Count: 7},
		{Protocol: "tls", Host: "other.example.com", Port: 443, Verdict: "deny", Rule: "default"},
		{Protocol: "https", Host: "api.example.com", Port: 443, Method: "GET", Path: "/v1/x", Verdict: "deny", Rule: "default"},
		{Protocol: "tls", Host: "inside.example.com", Port: 443, Address: "10.1.2.3", Verdict: "deny", Rule: "special-address"},
		{Protocol: "tls", Host: "no host at all", Port: 443, Verdict: "deny", Rule: "default"},
		{Protocol: "git", Host: "github.com", Port: 443, Repository: "github/acme/site", Verdict: "deny", Rule: "default"},
	}
	text := `version: 1
egress:
  rules:
    - {name: wide, hosts: [other.example.com, inside.example.com], ports: [443]}
    - {name: reads, hosts: [api.example.com], ports: [443], methods: [GET]}
`
	for i := range events {
		events[i].Kind, events[i].Run, events[i].Time = audit.CrossingDecided, "aaaabbbb", s.now().Add(-time.Hour)
	}
	rows := s.indexed(agent.ID, events...)
	s.indexed(twin.ID, events[1])
	if len(rows) != len(events) {
		t.Fatal(len(rows))
	}
	got := must[api.Replay](t)(s.Replay(ctx, s.a[api.Viewer], agent.Policy, api.ReplayRequest{Text: text, Agent: "build"}))
	var changes []string
	for _, c := range got.Changed {
		changes = append(changes, fmt.Sprintf("%d %s %s %s>%s %s", c.Count, c.Destination, c.Operation, c.Before, c.After, c.Rule))
	}
	slices.Sort(changes)
	want := []string{
		"1 api.example.com:443 GET /v1/x deny>allow reads",
		"1 registry.example.com:443 connect (tls) allow>deny default",
		"8 other.example.com:443 connect (tls) deny>allow wide",
	}
	if !slices.Equal(changes, want) || got.Crossings != 5 || got.Truncated || got.Changed[0].Count != 8 {
		t.Errorf("%+v\n%q", got, changes)
	}
	both := must[api.Replay](t)(s.Replay(ctx, s.admin(), agent.Policy, api.ReplayRequest{Text: text}))
	if both.Crossings != 6 || both.Changed[0].Count != 15 {
		t.Errorf("all of the policy's agents: %+v", both)
	}
	late := must[api.Replay](t)(s.Replay(ctx, s.admin(), agent.Policy, api.ReplayRequest{Text: text, Since: s.now().Add(-time.Minute)}))
	if late.Crossings != 0 {
		t.Errorf("since a minute ago: %+v", late)
	}
	_, err := s.Replay(ctx, s.admin(), agent.Policy, api.ReplayRequest{Text: "version: 9\n"})
	wants(t, err, fault.Invalid)
}

// indexed appends events to the audit log and to the index, as belonging to an agent.
func (s *stage) indexed(agent string, events ...audit.Event) []store.AuditRow {
	s.t.Helper()
	path := filepath.Join(s.dir, "audit", "log.jsonl")
	var rows []store.AuditRow
	for _, e := range events {
		before := must[[]byte](s.t)(os.ReadFile(path))
		done(s.t, s.Options.Audit.Append(s.t.Context(), e))
		after := must[[]byte](s.t)(os.ReadFile(path))
		done(s.t, json.Unmarshal(after[len(before):], &e))
		rows = append(rows, store.AuditRow{
			Seq: int64(e.Seq), Time: e.Time, Tenant: s.admin().Tenant, Agent: agent, Run: e.Run.String(), Kind: string(e.Kind), Verdict: e.Verdict, Host: e.Host,
			Offset: int64(len(before)), Length: int32(len(after) - len(before)),
		})
	}
	last := rows[len(rows)-1]
	done(s.t, s.DB.AddAudit(s.t.Context(), rows, last.Offset+int64(last.Length)))
	return rows
}

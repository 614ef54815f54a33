package web

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/auth"
	"github.com/cofferdam/cofferdam/internal/control"
	"github.com/cofferdam/cofferdam/internal/fault"
)

var sampleNow = time.Date(2026, 12, 1, 9, 30, 0, 0, time.UTC)

// sample is operations with made-up answers. Text is what a sandbox is said to have written, put wherever it could stand; empty means ordinary words.
type sample struct {
	operations
	door
	text   string
	empty  bool
	many   int
	scopes []string
	signIn []control.SignIn
	got    any // what the last operation that changes something was asked
	fail   error
	anyone bool // nobody is signed in
}

func (s *sample) say(ordinary string) string {
	if s.text != "" {
		return s.text
	}
	return ordinary
}

func list[T any](s *sample, make func(i int) T) []T {
	if s.empty {
		return nil
	}
	n := s.many
	if n == 0 {
		n = 3
	}
	out := []T{}
	for i := range n {
		out = append(out, make(i))
	}
	return out
}

func page[T any](s *sample, make func(i int) T) (api.Page[T], error) {
	p := api.Page[T]{Items: list(s, make)}
	if s.many > 0 {
		p.Next = "eyJhIjoxfQ"
	}
	return p, nil
}

func (s *sample) Me(context.Context, control.Actor) (api.Me, error) {
	scopes := s.scopes
	if scopes == nil {
		scopes = control.Scopes()
	}
	return api.Me{User: s.user(0), Tenant: api.Tenant{ID: "t1", Name: s.say("Acme")}, Scopes: scopes, Via: "session"}, nil
}

func (s *sample) Counts(context.Context, control.Actor) (control.Counts, error) {
	if s.empty {
		return control.Counts{}, nil
	}
	return control.Counts{Agents: 12, Running: 3, Denials: 7, Approvals: 2, Proposed: 1}, nil
}

func (s *sample) user(i int) api.User {
	return api.User{ID: fmt.Sprint("u", i), Email: []string{"ada@example.com", "grace@example.com", "linus@example.com"}[i%3], Name: s.say("Ada Lovelace"), Role: api.Administrator,
		Operator: i == 0, TOTP: i == 0, Passkeys: i, Password: true, Created: sampleNow.AddDate(0, -2, 0), LastSeen: sampleNow.Add(-time.Hour), Version: 3}
}

func (s *sample) agent(i int) api.Agent {
	names := []string{"site-builder", "dependency-updates", "support-triage", "docs"}
	return api.Agent{ID: fmt.Sprint("a", i), Name: names[i%4], Description: s.say("Builds the web site from issues and opens pull requests"), Policy: "p1", PolicyName: names[i%4], Profiles: []string{"g1"},
		Command: []string{"sh", "-c", s.say("npm ci && npm test")}, Environment: map[string]string{"CI": s.say("true")}, Suspended: i == 2, Running: i, Denials: i * 4, Created: sampleNow.AddDate(0, 0, -12), Updated: sampleNow.Add(-5 * time.Hour), Version: 7}
}

func (s *sample) Agents(context.Context, control.Actor, control.Page) (api.Page[api.Agent], error) {
	return page(s, s.agent)
}

func (s *sample) Agent(context.Context, control.Actor, string) (api.Agent, error) {
	return s.agent(0), s.fail
}

func (s *sample) EffectivePolicy(context.Context, control.Actor, string) (string, error) {
	return samplePolicy, nil
}

const samplePolicy = `version: 1
description: What the build of this project needs

egress:
  default: deny
  rules:
    - name: registry
      hosts: [registry.example.org]
      methods: [GET]
    - name: api
      hosts: [api.github.com]
      paths: [/repos/acme/]
credentials:
  - {use: github-main, hosts: [api.github.com], env: GITHUB_TOKEN}
`

func (s *sample) sandbox(i int) api.Sandbox {
	states := []api.SandboxState{api.Running, api.Running, api.Ended, api.Failed, api.Starting}
	b := api.Sandbox{ID: fmt.Sprintf("r7k2m9q4x%d", i), Agent: "a0", AgentName: "site-builder", Name: s.say([]string{"issue 214", "nightly build", "", "try gvisor", ""}[i%5]), State: states[i%5], Command: []string{"sh", "-c", s.say("npm ci && npm test")},
		Isolation: []string{"container", "gvisor"}[i%2], CreatedBy: "ada@example.com", Created: sampleNow.Add(-time.Duration(i*13+3) * time.Minute), Started: sampleNow.Add(-3 * time.Minute), Deadline: sampleNow.Add(23 * time.Hour),
		Usage: api.Usage{Connections: 4182, Allowed: 4120, Denied: uint64(i * 31), BytesIn: 48 << 20, BytesOut: 612 << 10}, Version: 2}
	if i%5 == 1 || s.text != "" {
		b.Weaker = []string{s.say("no Landlock: this kernel has none")}
	}
	if !b.State.Live() {
		b.Ended, b.How = sampleNow.Add(-time.Minute), s.say("main command ended")
		code := 1
		b.ExitCode = &code
		b.Erased = []string{"processes", "namespaces", "scratch files"}
	}
	if i%5 == 3 || s.text != "" {
		b.Problems = []string{s.say("the audit log says that 2 denials were not counted")}
	}
	return b
}

func (s *sample) Sandboxes(context.Context, control.Actor, string, bool, control.Page) (api.Page[api.Sandbox], error) {
	return page(s, s.sandbox)
}

func (s *sample) Sandbox(context.Context, control.Actor, string) (api.Sandbox, error) {
	return s.sandbox(0), s.fail
}

func (s *sample) Output(_ context.Context, _ control.Actor, _ string, offset int64, _ int) ([]byte, int64, int64, bool, error) {
	if s.empty || offset > 0 {
		return nil, offset, 0, true, nil
	}
	text := s.say("\x1b[32m> site@1.4.0 test\x1b[0m\nadded 412 packages in 6s\n\x1b]0;owned\x07Running 138 tests\r\nall passed\nfetch https://telemetry.example.net: refused by policy\n")
	return []byte(text), int64(len(text)), 0, true, nil
}

func (s *sample) Runs(context.Context, control.Actor, string, control.Page) (api.Page[api.Run], error) {
	return page(s, func(i int) api.Run {
		return api.Run{ID: fmt.Sprint("x", i), Command: []string{"ls", "-la", s.say("/work")}, By: "ada@example.com", State: "running", Started: sampleNow, TTY: true}
	})
}

func (s *sample) Trace(context.Context, control.Actor, string) (api.Trace, error) {
	start := sampleNow.Add(-3 * time.Minute)
	return api.Trace{Sandbox: "r7k2m9q4x0", Start: start, End: sampleNow, Spans: list(s, func(i int) api.TraceSpan {
		span := api.TraceSpan{Crossing: uint64(i), Sequence: uint64(100 + i), Start: start.Add(time.Duration(i) * 17 * time.Second), Millis: int64(i%4)*2300 + 80, Open: i%5 == 4, Place: s.place(i), Verdict: []string{"allow", "allow", "deny"}[i%3],
			Rule: s.say("registry"), Status: 200, BytesIn: 40960, BytesOut: 812, Credential: "github-main"}
		if span.Verdict == "deny" {
			span.Reason, span.Status, span.Credential = s.say("no rule allows it"), 0, ""
		}
		return span
	})}, nil
}

func (s *sample) place(i int) api.Place {
	if s.text != "" {
		return api.Place{Protocol: "https", Host: s.text, Port: 443, Method: s.text, Path: s.text, Repository: strings.Repeat(s.text, i%2), Refs: []string{s.text}}
	}
	return []api.Place{
		{Protocol: "https", Host: "registry.example.org", Port: 443, Method: "GET", Path: "/left-pad/-/left-pad-1.3.0.tgz"},
		{Protocol: "https", Host: "api.github.com", Port: 443, Method: "GET", Path: "/repos/acme/site/issues/214"},
		{Protocol: "https", Host: "telemetry.example.net", Port: 443, Method: "POST", Path: "/v1/events"},
		{Protocol: "git", Repository: "github/acme/site", Refs: []string{"refs/heads/main"}},
	}[i%4]
}

func (s *sample) Files(context.Context, control.Actor, string, string) ([]api.File, bool, error) {
	return list(s, func(i int) api.File {
		return api.File{Name: s.say([]string{"node_modules", "package.json", "README.md"}[i%3]), Type: []string{"dir", "file", "link"}[i%3], Size: 4711, Mode: "-rw-r--r--", Modified: sampleNow, Target: s.say("")}
	}), false, nil
}

func (s *sample) ReadFile(context.Context, control.Actor, string, string, bool) (io.ReadCloser, error) {
	return io.NopCloser(strings.NewReader("<script>alert(1)</script>")), s.fail
}

func (s *sample) Workspaces(context.Context, control.Actor, control.Page) (api.Page[api.Workspace], error) {
	return page(s, func(i int) api.Workspace {
		return api.Workspace{ID: fmt.Sprint("w", i), Name: fmt.Sprint("site-", i), Used: []string{"r7k2m9q4x0", ""}[i%2], Agent: []string{"", "a0"}[i%2], Size: 84 << 20, Created: sampleNow, LastUsed: sampleNow, Version: 1}
	})
}

func (s *sample) suggestion() *api.Suggestion {
	return &api.Suggestion{Rule: s.say("- name: telemetry\n  hosts: [telemetry.example.net]\n  ports: [443]\n  methods: [POST]\n  paths: [/v1/events]\n"),
		Warnings: []api.Warning{{Kind: "write", Text: s.say("POST can send what the agent knows to telemetry.example.net")}}, Reach: s.replay()}
}

func (s *sample) replay() *api.Replay {
	return &api.Replay{Crossings: 18214, Changed: list(s, func(i int) api.ReplayChange {
		return api.ReplayChange{Destination: s.say("telemetry.example.net:443"), Operation: s.say("POST /v1/events"), Before: "deny", After: "allow", Rule: "new", Count: 37, Last: sampleNow}
	})}
}

func (s *sample) denial(i int) api.Denial {
	places := []string{"telemetry.example.net:443", "api.github.com:443", "github/acme/site", "10.0.0.7:5432"}
	operations := []string{"POST /v1/events", "DELETE /repos/acme/site/branches/main", "push refs/heads/main", "connect"}
	return api.Denial{ID: fmt.Sprint("d", i), Agent: "a0", AgentName: "site-builder", Place: s.place(i), Destination: s.say(places[i%4]), Operation: s.say(operations[i%4]), Rule: "default", Reason: s.say("no rule allows it"), Process: s.say("node /work/node_modules/.bin/report"),
		Count: uint64(37 - i), First: sampleNow.Add(-26 * time.Hour), Last: sampleNow.Add(-time.Duration(i) * time.Minute), Sandbox: "r7k2m9q4x0", Sequence: 9, State: api.Open, Suggestion: s.suggestion(), Version: int64(i + 1)}
}

func (s *sample) Denials(context.Context, control.Actor, string, []api.DenialState, control.Page) (api.Page[api.Denial], error) {
	return page(s, s.denial)
}

func (s *sample) Denial(_ context.Context, _ control.Actor, id string) (api.Denial, error) {
	d := s.denial(0)
	if id == "none" {
		d.Suggestion = nil
	}
	return d, s.fail
}

func (s *sample) approval(i int) api.Approval {
	return api.Approval{ID: fmt.Sprint("q", i), Agent: "a0", AgentName: "site-builder", Sandbox: "r7k2m9q4x0", Place: s.place(i), Destination: s.say("pypi.example.org:443"), Operation: s.say("GET /simple/requests/"), Rule: "ask", Process: s.say("pip"), Created: sampleNow.Add(-20 * time.Second),
		Deadline: sampleNow.Add(280 * time.Second), State: "waiting", Suggestion: s.suggestion(), Version: 1}
}

func (s *sample) Approvals(context.Context, control.Actor, bool, control.Page) (api.Page[api.Approval], error) {
	return page(s, s.approval)
}

func (s *sample) Approval(context.Context, control.Actor, string) (api.Approval, error) {
	return s.approval(0), s.fail
}

func (s *sample) CheckRule(context.Context, control.Actor, string, string) (api.Suggestion, error) {
	return *s.suggestion(), s.fail
}

func (s *sample) DecideDenial(_ context.Context, _ control.Actor, _ string, in api.Decide) (api.Decision, error) {
	s.got = in
	if in.Verdict == "allow" && !in.Widens {
		return api.Decision{}, fault.New(fault.Invalid, "widens: the rule widens what the agent can reach").WithHint("read its warnings, and say that you have")
	}
	r := s.rule(0)
	return api.Decision{Rule: &r, InForce: []string{"r7k2m9q4x0"}}, nil
}

func (s *sample) rule(i int) api.Rule {
	return api.Rule{ID: fmt.Sprint("l", i), Agent: "a0", AgentName: "site-builder", Sandbox: "r7k2m9q4x0", Verdict: []string{"allow", "deny"}[i%2], Scope: []api.Scope{api.ForAgent, api.ForRun, api.Once}[i%3], Rule: s.suggestion().Rule, Warnings: s.suggestion().Warnings,
		State: []string{"active", "proposed", "expired"}[i%3], Until: sampleNow.AddDate(0, 0, 20), Comment: s.say("needed for the release"), ProposedBy: "grace@example.com", Created: sampleNow, Version: 1}
}

func (s *sample) Rules(context.Context, control.Actor, string, []string, control.Page) (api.Page[api.Rule], error) {
	return page(s, s.rule)
}

func (s *sample) policy(i int) api.Policy {
	return api.Policy{ID: fmt.Sprint("p", i), Name: []string{"site-builder", "base", "locked"}[i%3], Number: 4, Text: samplePolicy, Comment: s.say("allow the registry"), Author: "ada@example.com", Warnings: []string{s.say("wildcard host")}, Agents: 2, Created: sampleNow, Updated: sampleNow, Version: 4}
}

func (s *sample) Policies(context.Context, control.Actor, control.Page) (api.Page[api.Policy], error) {
	return page(s, s.policy)
}

func (s *sample) Policy(context.Context, control.Actor, string) (api.Policy, error) {
	return s.policy(0), s.fail
}

func (s *sample) PolicyVersions(context.Context, control.Actor, string, control.Page) (api.Page[api.PolicyVersion], error) {
	return page(s, func(i int) api.PolicyVersion {
		return api.PolicyVersion{Number: 4 - i%4, Comment: s.say("allow the registry"), Author: "ada@example.com", Created: sampleNow}
	})
}

func (s *sample) PolicyVersion(context.Context, control.Actor, string, int) (api.PolicyVersion, error) {
	return api.PolicyVersion{Number: 3, Text: s.say(samplePolicy), Author: "ada@example.com", Created: sampleNow}, nil
}

func (s *sample) DiffPolicy(context.Context, control.Actor, string, int, int) (string, error) {
	return "--- 3\n+++ 4\n@@ -5,2 +5,3 @@\n egress:\n-  default: deny\n+  default: " + s.say("ask") + "\n", nil
}

func (s *sample) CheckPolicy(context.Context, control.Actor, api.PolicyText) (api.PolicyCheck, error) {
	if s.empty {
		return api.PolicyCheck{OK: true}, nil
	}
	return api.PolicyCheck{Problems: []api.PolicyProblem{{Line: 6, Column: 3, Text: s.say("unknown key defualt"), Hint: s.say("write default")}}, Warnings: []string{s.say("*.example.com lets the program choose labels")}}, nil
}

func (s *sample) Explain(context.Context, control.Actor, api.ExplainRequest) ([]api.Explanation, error) {
	return []api.Explanation{{Crossing: s.say("https registry.example.org:443"), Verdict: "allow", Rule: "registry", Line: 7, Reason: s.say("rule registry allows it"), Steps: []api.ExplainStep{{Rule: s.say("registry"), Line: 7, Verdict: "allow", Matched: true, Why: s.say("the host is listed")}}}}, s.fail
}

func (s *sample) Replay(context.Context, control.Actor, string, api.ReplayRequest) (api.Replay, error) {
	return *s.replay(), s.fail
}

func (s *sample) credential(i int) api.Credential {
	return api.Credential{Name: []string{"github-main", "npm", "aws-ci"}[i%3], Kind: []string{"static", "basic", "aws"}[i%3], Hosts: []string{s.say("api.github.com")}, Paths: []string{s.say("/repos/acme/")}, Masked: "••••", Created: sampleNow.AddDate(0, -1, 0), UsedBy: []string{"site-builder"}}
}

func (s *sample) Credentials(context.Context, control.Actor) ([]api.Credential, error) {
	return list(s, s.credential), nil
}

func (s *sample) Credential(context.Context, control.Actor, string) (api.Credential, error) {
	return s.credential(0), s.fail
}

func (s *sample) Upstreams(context.Context, control.Actor) ([]api.Upstream, error) {
	return list(s, func(i int) api.Upstream {
		return api.Upstream{ID: fmt.Sprint("up", i), Name: fmt.Sprint("forge", i), Type: "gitea", URL: s.say("https://git.example.com"), Credential: "github-main", LFSHosts: []string{"lfs.example.com"}, Version: 1}
	}), nil
}

func (s *sample) Profiles(context.Context, control.Actor) ([]api.Profile, error) {
	return list(s, func(i int) api.Profile {
		return api.Profile{ID: fmt.Sprint("g", i), Name: fmt.Sprint("contributor", i), Text: "access: write\n", Paths: []api.GitPath{{Upstream: "forge0", Repository: s.say("acme/site")}, {Upstream: "forge0", Expression: s.say("acme/.*")}}, Agents: 2, Version: 1}
	}), nil
}

func (s *sample) Audit(context.Context, control.Actor, api.AuditQuery) (api.Page[api.AuditEvent], error) {
	return page(s, func(i int) api.AuditEvent {
		record, _ := json.Marshal(map[string]any{"seq": i, "kind": "crossing.decided", "host": s.say("registry.example.org")})
		return api.AuditEvent{Sequence: int64(i), Time: sampleNow, Kind: "crossing.decided", Agent: "a0", AgentName: "site-builder", Sandbox: "r7k2m9q4x0", Summary: s.say("GET registry.example.org/left-pad"), Verdict: []string{"allow", "deny"}[i%2], Record: record}
	})
}

func (s *sample) ExportAudit(_ context.Context, _ control.Actor, _ api.AuditQuery, w io.Writer) error {
	_, err := io.WriteString(w, "{}\n")
	return err
}

func (s *sample) Queries(context.Context, control.Actor) ([]api.SavedQuery, error) {
	return []api.SavedQuery{{ID: "b1", Name: "Denied in the last day", BuiltIn: true, Query: api.AuditQuery{Verdict: "deny", Since: sampleNow}}, {ID: "q1", Name: s.say("Writes by docs"), Query: api.AuditQuery{Access: "write", Agent: s.say("docs"), Kinds: []string{"crossing.decided"}}}}, nil
}

func (s *sample) Users(context.Context, control.Actor, control.Page) (api.Page[api.User], error) {
	return page(s, s.user)
}

func (s *sample) User(context.Context, control.Actor, string) (api.User, error) {
	return s.user(1), s.fail
}

func (s *sample) CreateUser(context.Context, control.Actor, api.NewUser) (api.Invitation, error) {
	return api.Invitation{User: s.user(1), Link: "https://cofferdam.example.com/invitation?token=abc", Expires: sampleNow.AddDate(0, 0, 7)}, s.fail
}

func (s *sample) Sessions(context.Context, control.Actor) ([]api.Session, error) {
	return list(s, func(i int) api.Session {
		return api.Session{ID: fmt.Sprint("s", i), Current: i == 0, Seen: sampleNow, Created: sampleNow, Expires: sampleNow, Address: "192.0.2.7", Agent: s.say("Mozilla/5.0 (X11; Linux x86_64) Firefox/146"), Method: "password"}
	}), nil
}

func (s *sample) Tokens(context.Context, control.Actor) ([]api.Token, error) {
	return list(s, func(i int) api.Token {
		return api.Token{ID: fmt.Sprint("k", i), Name: s.say("ci"), Scopes: []string{"sandboxes:read", "sandboxes:write"}, Created: sampleNow, Expires: sampleNow.AddDate(0, 1, 0), Used: sampleNow}
	}), nil
}

func (s *sample) CreateToken(context.Context, control.Actor, api.NewToken) (api.Token, error) {
	return api.Token{ID: "k9", Name: s.say("ci"), Secret: "cfd_pat_xxx"}, s.fail
}

func (s *sample) Settings(context.Context, control.Actor) (api.Settings, error) {
	return api.Settings{FourEyes: true, RetentionDays: 90, MaxSandboxes: 40, Version: 2}, nil
}

func (s *sample) Health(context.Context, control.Actor) (api.Health, error) {
	return api.Health{Version: "0.4.0", Started: sampleNow.Add(-50 * time.Hour), Store: "sqlite", Sandboxes: 3, Audit: api.AuditHealth{Indexed: 1284772, Behind: 0}, Checks: []api.HealthCheck{{Name: "Audit log can be written", OK: true}, {Name: "gVisor", Detail: s.say("runsc was not found"), Remedy: s.say("install it beside cofferdam")}}}, nil
}

func (s *sample) Tenants(context.Context, control.Actor, control.Page) (api.Page[api.Tenant], error) {
	return page(s, func(i int) api.Tenant {
		return api.Tenant{ID: fmt.Sprint("t", i), Name: s.say("Acme"), Created: sampleNow}
	})
}

func (s *sample) CreateAgent(_ context.Context, _ control.Actor, in api.NewAgent) (api.Agent, error) {
	s.got = in
	return s.agent(0), s.fail
}

func (s *sample) CreateSandbox(_ context.Context, _ control.Actor, in api.NewSandbox) (api.Sandbox, error) {
	s.got = in
	return s.sandbox(0), s.fail
}

func (s *sample) CreateCredential(_ context.Context, _ control.Actor, in api.NewCredential) (api.Credential, error) {
	s.got = in
	return s.credential(0), s.fail
}

func (s *sample) RecordSignIn(_ context.Context, in control.SignIn) error {
	s.signIn = append(s.signIn, in)
	return nil
}

func (s *sample) ReadCookie(_ *http.Request, c auth.Cookie) string {
	if s.anyone && c == auth.SessionCookie {
		return ""
	}
	return "x"
}
func (s *sample) SetCookie(http.ResponseWriter, auth.Cookie, auth.Ticket) {}
func (s *sample) ClearCookie(http.ResponseWriter, auth.Cookie)            {}

func (s *sample) Session(context.Context, string) (auth.Principal, error) {
	return auth.Principal{User: "u0", Tenant: "t1", Email: "ada@example.com", Role: api.Administrator, Via: auth.ViaSession, SessionID: "s0"}, nil
}
func (s *sample) NeedsSetup(context.Context) (bool, error) { return s.empty, nil }
func (s *sample) Providers() []auth.ProviderInfo {
	return []auth.ProviderInfo{{ID: "corp", Name: s.say("Acme SSO")}}
}

func (s *sample) SignIn(context.Context, string, string, auth.Visitor) (auth.Outcome, error) {
	return auth.Outcome{Tenant: "t1", User: "u0", Method: "password", Session: &auth.Ticket{}}, s.fail
}
func (s *sample) SignOut(context.Context, string) error    { return nil }
func (s *sample) CheckSetup(context.Context, string) error { return s.fail }
func (s *sample) ResetOwner(context.Context, string) (string, error) {
	return "ada@example.com", s.fail
}
func (s *sample) InvitationOwner(context.Context, string) (string, error) {
	return "ada@example.com", s.fail
}
func (s *sample) RequestReset(context.Context, string, auth.Visitor) error { return s.fail }
func (s *sample) Passkeys(context.Context, auth.Principal) ([]auth.PasskeyInfo, error) {
	return list(s, func(i int) auth.PasskeyInfo {
		return auth.PasskeyInfo{ID: fmt.Sprint("pk", i), Label: s.say("Work laptop"), Created: sampleNow, Used: sampleNow}
	}), nil
}

// addresses are the pages, each of which must render in every state.
func addresses() []string {
	return []string{
		"/", "/agents", "/agents?q=x", "/agents/new", "/agents/a0", "/agents/a0/edit", "/sandboxes", "/sandboxes?show=all", "/sandboxes/new", "/sandboxes/r1", "/sandboxes/r1/terminal", "/sandboxes/r1/trace",
		"/sandboxes/r1/files?path=/work/src", "/sandboxes/r1/runs", "/workspaces", "/review", "/review?show=dismissed", "/review/denials/d0", "/review/denials/none", "/review/approvals/q0", "/rules", "/rules?show=ended", "/policies", "/policies/new", "/policies/p0",
		"/policies/p0/versions", "/policies/p0/versions/3", "/credentials", "/credentials/new", "/credentials/new?kind=github-app", "/credentials/new?kind=aws", "/credentials/new?kind=oauth2-refresh", "/credentials/new?kind=token-exchange", "/credentials/new?kind=basic", "/credentials/c0",
		"/git", "/git/upstreams/new", "/git/upstreams/up0", "/git/profiles/new", "/git/profiles/g0", "/audit", "/audit?host=%3Cscript%3E&kind=a&since=2026-12-01", "/users", "/users/new", "/users/u1", "/account", "/settings", "/server", "/nowhere",
	}
}

func doorAddresses() []string {
	return []string{"/sign-in", "/sign-in?next=/agents", "/sign-in/code?code=yes&passkey=yes", "/setup", "/setup?token=abc", "/reset", "/reset?token=abc", "/invitation?token=abc"}
}

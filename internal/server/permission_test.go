package server

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/control"
	"github.com/cofferdam/cofferdam/internal/ident"
	"github.com/cofferdam/cofferdam/internal/store"
)

// fill puts identifiers into a path.
func fill(path, id string) string {
	path = strings.ReplaceAll(path, "{id}", id)
	path = strings.ReplaceAll(path, "{name}", id)
	return strings.ReplaceAll(path, "{number}", "1")
}

// sample is a valid body, and query, for each operation that has one.
func sample(o *operation) (body any, query string) {
	switch o.id {
	case "create-tenant":
		return api.NewTenant{Name: "new", Email: "new@new.example"}, ""
	case "create-user":
		return api.NewUser{Email: "new@acme.example", Role: api.Viewer}, ""
	case "create-token":
		return api.NewToken{Name: "t", Scopes: []string{"agents:read"}}, ""
	case "change-settings":
		return api.Settings{RetentionDays: 30, MaxSandboxes: 5}, ""
	case "create-agent":
		return api.NewAgent{Name: "fresh"}, ""
	case "create-policy":
		return api.NewPolicy{Name: "fresh", Text: "version: 1\n"}, ""
	case "check-policy":
		return api.PolicyText{Text: "version: 1\n"}, ""
	case "explain-policy":
		return api.ExplainRequest{Target: "example.com:443", Text: "version: 1\n"}, ""
	case "replay-policy":
		return api.ReplayRequest{Text: "version: 1\n"}, ""
	case "create-sandbox":
		return api.NewSandbox{Agent: "nobody"}, ""
	case "exec-once":
		return api.Exec{Command: []string{"true"}}, ""
	case "extend-sandbox":
		return api.Extend{Seconds: 60}, ""
	case "create-workspace":
		return api.NewWorkspace{Name: "fresh"}, ""
	case "list-files", "read-file":
		return nil, "?path=/tmp/x"
	case "write-file":
		return "content", "?path=/tmp/x"
	case "create-credential":
		return api.NewCredential{Name: "fresh", Hosts: []string{"api.example.com"}, Values: map[string]string{"value": "s3cr3t-value-for-tests"}}, ""
	case "rotate-credential":
		return api.RotateCredential{Values: map[string]string{"value": "s3cr3t-value-for-tests"}}, ""
	case "create-upstream", "change-upstream":
		return api.Upstream{Name: "fresh", Type: "gitea", URL: "https://git.example.com"}, ""
	case "create-profile", "change-profile":
		return api.Profile{Name: "fresh", Text: "access: read\n", Paths: []api.GitPath{}}, ""
	case "decide-denial", "decide-approval":
		return api.Decide{Verdict: "deny"}, ""
	case "check-rule":
		return api.RuleText{Agent: "nobody", Rule: "host: example.com\nports: [443]\n"}, ""
	case "save-query":
		return api.SavedQuery{Name: "fresh"}, ""
	case "diff-policy":
		return nil, "?from=1&to=2"
	}
	if o.method == http.MethodPost || o.method == http.MethodPatch || o.method == http.MethodPut {
		return struct{}{}, ""
	}
	return nil, ""
}

// call carries an operation out with an identifier in the place of every parameter.
func (s *stage) call(o *operation, token, id string) *answer {
	s.t.Helper()
	body, query := sample(o)
	return s.ask(o.method, fill(o.path, id)+query, token, body, func(r *http.Request) {
		if o.version >= versionNeeded {
			r.Header.Set("If-Match", `"1"`)
		}
		if o.id == "exec-stream" {
			r.Header.Set("Connection", "Upgrade")
			r.Header.Set("Upgrade", "websocket")
			r.Header.Set("Sec-WebSocket-Version", "13")
			r.Header.Set("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")
		}
	})
}

func TestStrangersGetNowhere(t *testing.T) {
	s := newStage(t)
	for i := range s.operations {
		o := &s.operations[i]
		if o.access == anyone {
			continue
		}
		for _, token := range []string{"", "cfd_pat_x", "cfd_pat_" + strings.Repeat("A", 43) + "000000"} {
			got := s.call(o, token, "x")
			got.problem(http.StatusUnauthorized, codeUnauthenticated)
			if got.Header.Get("WWW-Authenticate") == "" {
				t.Errorf("%s: no WWW-Authenticate", o.id)
			}
		}
	}
}

// byRole is the table of roles, as it is promised. It is written out once more here, so that a slip in control's is seen.
func byRole(role api.Role, p control.Permission) bool {
	switch {
	case p == "":
		return true
	case p == control.Operate:
		return false
	case role == api.Administrator, strings.HasSuffix(string(p), ":read"):
		return true
	case role == api.Developer:
		return p == control.WriteSandboxes
	case role == api.Reviewer:
		return p == control.DecideReview
	}
	return false
}

// personal are operations that no token may do.
func personal(o *operation) bool {
	return o.id == "create-user" || strings.HasPrefix(o.path, "/account") || strings.HasPrefix(o.path, "/sessions") || strings.HasPrefix(o.path, "/tokens")
}

// endless do not end by themselves.
func endless(o *operation) bool { return o.id == "watch-events" }

func TestRoles(t *testing.T) {
	for _, role := range api.Roles() {
		t.Run(string(role), func(t *testing.T) {
			s := newStage(t)
			token := s.token(s.a, role)
			for i := range s.operations {
				o := &s.operations[i]
				may := byRole(role, o.needs) && byRole(role, o.too)
				if o.access == anyone || personal(o) || may && endless(o) {
					continue
				}
				got := s.call(o, token, "nothere22")
				if denied := got.StatusCode == http.StatusForbidden; denied == may {
					t.Errorf("%s: %d %s, may %v", o.id, got.StatusCode, got.text, may)
				} else if denied {
					got.problem(http.StatusForbidden, codeDenied)
				}
			}
		})
	}
}

func TestOperatorsOnlyOperate(t *testing.T) {
	s := newStage(t)
	if err := s.auth.SetOperator(t.Context(), s.a.id, s.a.users[api.Viewer], true); err != nil {
		t.Fatal(err)
	}
	token := s.token(s.a, api.Viewer)
	s.ask("GET", "/health", token, nil).want(200)
	s.ask("GET", "/tenants", token, nil).want(200)
	s.ask("POST", "/agents", token, api.NewAgent{Name: "x"}).problem(403, codeDenied)
}

// A token does what its scopes say and no more: each operation is refused with every scope but its own, and not for its own.
func TestScopes(t *testing.T) {
	s := newStage(t)
	if err := s.auth.SetOperator(t.Context(), s.a.id, s.a.users[api.Administrator], true); err != nil {
		t.Fatal(err)
	}
	only, but := map[control.Permission]string{}, map[control.Permission]string{}
	for _, p := range control.Permissions() {
		only[p] = s.token(s.a, api.Administrator, p)
		but[p] = s.token(s.a, api.Administrator, slices.DeleteFunc(control.Permissions(), func(q control.Permission) bool { return p == q })...)
	}
	for i := range s.operations {
		o := &s.operations[i]
		if o.needs == "" || o.access == anyone {
			continue
		}
		s.call(o, but[o.needs], "nothere22").problem(http.StatusForbidden, codeDenied)
		if o.too != "" {
			s.call(o, but[o.too], "nothere22").problem(http.StatusForbidden, codeDenied)
			continue
		}
		if endless(o) || personal(o) {
			continue
		}
		if got := s.call(o, only[o.needs], "nothere22"); got.StatusCode == http.StatusForbidden || got.StatusCode >= 500 {
			t.Errorf("%s with %s: %d %s", o.id, o.needs, got.StatusCode, got.text)
		}
	}
}

// things makes one of everything in a tenant, and returns identifiers by the first part of the path.
func (s *stage) things(of *tenant) map[string][]string {
	s.t.Helper()
	token := s.token(of, api.Administrator)
	var agent api.Agent
	var policy api.Policy
	var workspace api.Workspace
	var upstream api.Upstream
	var query api.SavedQuery
	s.ask("POST", "/agents", token, api.NewAgent{Name: "builder"}).want(201).into(&agent)
	s.ask("POST", "/policies", token, api.NewPolicy{Name: "strict", Text: "version: 1\n"}).want(201).into(&policy)
	s.ask("POST", "/workspaces", token, api.NewWorkspace{Name: "shared"}).want(201).into(&workspace)
	s.ask("POST", "/credentials", token, api.NewCredential{Name: "forge", Hosts: []string{"git.example.com"}, Values: map[string]string{"value": "s3cr3t-value-for-tests"}}).want(201)
	s.ask("POST", "/git/upstreams", token, api.Upstream{Name: "forge", Type: "gitea", URL: "https://git.example.com"}).want(201).into(&upstream)
	s.ask("POST", "/queries", token, api.SavedQuery{Name: "mine"}).want(201).into(&query)
	// What only a running sandbox makes is put into the store as it is.
	box := put(s, of, "sandbox", agent.ID, "ended", control.SandboxData{})
	denial := put(s, of, "denial", agent.ID, "open", control.DenialData{})
	approval := put(s, of, "approval", agent.ID, "waiting", control.ApprovalData{})
	rule := put(s, of, "rule", agent.ID, "active", control.RuleData{Agent: agent.ID})
	return map[string][]string{
		"sandboxes": {box}, "denials": {denial}, "approvals": {approval}, "rules": {rule},
		"agents": {agent.ID, agent.Name}, "policies": {policy.ID, policy.Name}, "workspaces": {workspace.ID, workspace.Name}, "credentials": {"forge"},
		"git": {upstream.ID, upstream.Name}, "queries": {query.ID}, "users": {of.users[api.Viewer]},
	}
}

// put stores an object under an identifier that a sandbox could have too.
func put[T any](s *stage, of *tenant, kind, parent, state string, data T) string {
	s.t.Helper()
	o, err := store.Of[T](kind).Insert(s.t.Context(), s.db, store.Object[T]{ID: ident.NewRun().String(), Tenant: of.id, Parent: parent, State: state, Data: data})
	if err != nil {
		s.t.Fatal(err)
	}
	return o.ID
}

// described checks that every part of a path that varies is a parameter: huma leaves out, without a word, what it does not find.
func (s *stage) described() {
	s.t.Helper()
	var d struct {
		Paths map[string]map[string]struct {
			Parameters []struct{ Name, In string } `json:"parameters"`
		} `json:"paths"`
	}
	s.ask("GET", "/openapi.json", "", nil).want(200).into(&d)
	for path, methods := range d.Paths {
		for method, o := range methods {
			has := ""
			for _, p := range o.Parameters {
				has += "," + p.In + ":" + p.Name
			}
			for _, part := range strings.Split(path, "/") {
				if name, ok := strings.CutPrefix(part, "{"); ok && !strings.Contains(has, ",path:"+strings.TrimSuffix(name, "}")) {
					s.t.Errorf("%s %s has no parameter %s", method, path, part)
				}
			}
		}
	}
}

// walk goes through the document, as a client would, and finds the table's line for each operation in it.
func (s *stage) walk(f func(o *operation)) {
	s.t.Helper()
	var d struct {
		Paths map[string]map[string]struct {
			OperationID string `json:"operationId"`
		} `json:"paths"`
	}
	s.ask("GET", "/openapi.json", "", nil).want(200).into(&d)
	seen := 0
	for path, methods := range d.Paths {
		for method, described := range methods {
			for i := range s.operations {
				if o := &s.operations[i]; o.id == described.OperationID {
					if o.path != path || !strings.EqualFold(o.method, method) {
						s.t.Fatalf("%s is %s %s in the document", o.id, method, path)
					}
					seen++
					f(o)
				}
			}
		}
	}
	if seen != len(s.operations) {
		s.t.Fatalf("the document has %d of %d operations", seen, len(s.operations))
	}
}

// less is a problem without its identifier, which is new each time.
func less(a *answer) string {
	var p api.Problem
	if json.Unmarshal(a.text, &p) != nil {
		return string(a.text)
	}
	p.ID = ""
	return fmt.Sprintf("%d %+v", a.StatusCode, p)
}

// Whoever asks for what is another tenant's gets the same answer as for what is not there; lists do not have it.
func TestTenantsSeeNothingOfEachOther(t *testing.T) {
	s := newStage(t, func(o *Options) { o.Limiter = &few{left: 1e6} })
	theirs := s.things(s.a)
	token := s.token(s.b, api.Administrator)
	all := func() (ids []string) {
		for _, list := range theirs {
			ids = append(ids, list...)
		}
		return ids
	}()
	s.walk(func(o *operation) {
		if o.access == anyone || personal(o) || endless(o) {
			return
		}
		if !strings.Contains(o.path, "{") {
			if o.method != http.MethodGet || o.needs == control.Operate {
				return
			}
			got := s.call(o, token, "")
			for _, id := range all {
				if len(id) >= 8 && strings.Contains(string(got.text), id) {
					t.Errorf("%s shows %s", o.id, id)
				}
			}
			return
		}
		absent := s.call(o, token, "zzzzzzzz")
		if absent.StatusCode != http.StatusNotFound {
			t.Errorf("%s for what is not there: %s", o.id, less(absent))
		}
		for _, id := range all {
			if got := s.call(o, token, id); less(got) != less(absent) {
				t.Errorf("%s %s: %s\nnot there: %s", o.id, id, less(got), less(absent))
			}
		}
	})
	// And what was theirs is as it was.
	mine := s.token(s.a, api.Administrator)
	for kind, ids := range theirs {
		if kind == "git" || kind == "queries" || kind == "rules" { // have no page of their own
			continue
		}
		s.ask("GET", "/"+kind+"/"+ids[0], mine, nil).want(200)
	}
}

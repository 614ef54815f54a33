package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/audit"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/policy"
	"github.com/cofferdam/cofferdam/internal/store"
)

const openPolicy = "version: 1\negress:\n  rules:\n    - name: registry\n      hosts: [registry.example.com]\n      ports: [443]\n"

func TestAgentLife(t *testing.T) {
	s, ctx := newStage(t), t.Context()
	made := must[api.Agent](t)(s.CreateAgent(ctx, s.admin(), api.NewAgent{Name: "build", Description: "builds\nthings"}))
	if made.Policy == "" || made.PolicyName != "build" || made.Version != 1 || made.Suspended || made.Running != 0 {
		t.Fatalf("%+v", made)
	}
	p := must[api.Policy](t)(s.Policy(ctx, s.a[api.Viewer], made.Policy))
	law := must[*policy.Policy](t)(policy.Parse("", []byte(p.Text)))
	if d := law.Decide(policy.Crossing{Protocol: policy.TLS, Host: "example.com", Port: 443}); d.Verdict != policy.Deny || len(law.Rules()) > 0 || p.Agents != 1 {
		t.Errorf("the policy of an agent that has none: %+v", p)
	}
	if by := must[api.Agent](t)(s.Agent(ctx, s.admin(), "build")); by.ID != made.ID {
		t.Errorf("by name: %+v", by)
	}
	name := "deploy"
	changed := must[api.Agent](t)(s.ChangeAgent(ctx, s.admin(), made.ID, made.Version, api.AgentChange{Name: &name, Command: &[]string{"make"}}))
	if changed.Name != name || changed.Version != 2 || changed.Description != made.Description {
		t.Errorf("%+v", changed)
	}
	_, err := s.ChangeAgent(ctx, s.admin(), made.ID, made.Version, api.AgentChange{Name: &name})
	says(t, err, fault.Conflict, "read it again")
	done(t, s.DeleteAgent(ctx, s.admin(), "deploy"))
	_, err = s.Agent(ctx, s.admin(), made.ID)
	says(t, err, fault.NotFound, "there is no such agent")
	_, err = s.Policy(ctx, s.admin(), made.Policy)
	wants(t, err, fault.NotFound)

	var details []string
	for _, e := range s.records(audit.AgentChanged) {
		if e.Agent != made.ID || e.Tenant != s.admin().Tenant || e.Principal != s.admin().Principal() || e.Error != "" {
			t.Errorf("%+v", e)
		}
		details = append(details, strings.Fields(e.Detail)[0])
	}
	if !slices.Equal(details, []string{"make", "change", "remove"}) {
		t.Errorf("on record: %q", details)
	}
	if told := s.told(s.admin().Tenant); !slices.Contains(told, "agent deleted") || !slices.Contains(told, "policy created") {
		t.Errorf("told: %q", told)
	}
	if told := s.told(s.other().Tenant); len(told) > 0 {
		t.Errorf("another tenant was told: %q", told)
	}
}

func TestAgentInput(t *testing.T) {
	s, ctx := newStage(t), t.Context()
	p := must[api.Policy](t)(s.CreatePolicy(ctx, s.admin(), api.NewPolicy{Name: "strict", Text: "version: 1\nisolation: {level: gvisor}\n"}))
	foreign := must[api.Policy](t)(s.CreatePolicy(ctx, s.other(), api.NewPolicy{Name: "theirs", Text: openPolicy}))
	must[api.Agent](t)(s.CreateAgent(ctx, s.admin(), api.NewAgent{Name: "taken"}))
	for _, c := range []struct {
		name string
		in   api.NewAgent
		kind fault.Kind // 0: it is made
		says string
	}{
		{"plain", api.NewAgent{Name: "ok"}, 0, ""},
		{"its own text", api.NewAgent{Name: "ok2", PolicyText: openPolicy}, 0, ""},
		{"variables", api.NewAgent{Name: "ok3", Environment: map[string]string{"LANG": "C"}}, 0, ""},
		{"as strong", api.NewAgent{Name: "ok4", Policy: "strict", Isolation: "gvisor"}, 0, ""},
		{"stronger", api.NewAgent{Name: "ok5", Isolation: "gvisor"}, 0, ""},
		{"no name", api.NewAgent{}, fault.Invalid, "cannot be a name"},
		{"a bad name", api.NewAgent{Name: "Build"}, fault.Invalid, "cannot be a name"},
		{"a path", api.NewAgent{Name: "../x"}, fault.Invalid, "cannot be a name"},
		{"a taken name", api.NewAgent{Name: "taken"}, fault.Conflict, "of that name"},
		{"weaker", api.NewAgent{Name: "x", Policy: p.ID, Isolation: "container"}, fault.Invalid, "weaker"},
		{"no level", api.NewAgent{Name: "x", Isolation: "strong"}, fault.Invalid, "isolation level"},
		{"a token in a variable", api.NewAgent{Name: "x", Environment: map[string]string{"GITHUB_TOKEN": "ghp_0123456789abcdef"}}, fault.Invalid, "credentials:"},
		{"a variable of ours", api.NewAgent{Name: "x", Environment: map[string]string{"COFFERDAM_X": "1"}}, fault.Invalid, "COFFERDAM_"},
		{"an equals sign", api.NewAgent{Name: "x", Environment: map[string]string{"A=B": "1"}}, fault.Invalid, "variable"},
		{"a NUL", api.NewAgent{Name: "x", Command: []string{"a\x00"}}, fault.Invalid, "NUL"},
		{"an empty program", api.NewAgent{Name: "x", Command: []string{""}}, fault.Invalid, "first word"},
		{"two policies", api.NewAgent{Name: "x", Policy: p.ID, PolicyText: openPolicy}, fault.Invalid, "both"},
		{"a wrong text", api.NewAgent{Name: "x", PolicyText: "version: 1\negres: {}\n"}, fault.Invalid, "egres"},
		{"mounts", api.NewAgent{Name: "x", PolicyText: "version: 1\nmounts: [{source: /etc, target: /mnt}]\n"}, fault.Invalid, "folders of the server"},
		{"another tenant's policy", api.NewAgent{Name: "x", Policy: foreign.ID}, fault.NotFound, "no such policy"},
		{"another tenant's policy by name", api.NewAgent{Name: "x", Policy: "theirs"}, fault.NotFound, "no such policy"},
		{"no such profile", api.NewAgent{Name: "x", Profiles: []string{"none"}}, fault.NotFound, "no such access profile"},
		{"control characters", api.NewAgent{Name: "x", Description: "\x1b[31m"}, fault.Invalid, "cannot be shown"},
	} {
		_, err := s.CreateAgent(ctx, s.admin(), c.in)
		if c.kind == 0 {
			if err != nil {
				t.Errorf("%s: %v", c.name, err)
			}
			continue
		}
		if err == nil || fault.KindOf(err) != c.kind || !strings.Contains(fault.Public(err)+fault.HintOf(err), c.says) {
			t.Errorf("%s: %v (%s; hint: %s)", c.name, err, fault.KindOf(err), fault.HintOf(err))
		}
		if err != nil && strings.Contains(fmt.Sprint(err, fault.HintOf(err)), "ghp_0123") {
			t.Errorf("%s: the value is printed", c.name)
		}
	}
	for _, e := range s.records(audit.AgentChanged) {
		if strings.HasPrefix(e.Detail, "make the agent x") {
			t.Errorf("what was refused is on record: %q", e.Detail)
		}
	}
}

// TestTenantsApart: what is another tenant's is as absent as what never was.
func TestTenantsApart(t *testing.T) {
	s, ctx := newStage(t), t.Context()
	agent := must[api.Agent](t)(s.CreateAgent(ctx, s.admin(), api.NewAgent{Name: "build", PolicyText: openPolicy}))
	upstream := must[api.Upstream](t)(s.CreateUpstream(ctx, s.admin(), api.Upstream{Name: "github", Type: "github", URL: "https://github.com"}))
	profile := must[api.Profile](t)(s.CreateProfile(ctx, s.admin(), api.Profile{Name: "site", Text: "access: read\n", Paths: []api.GitPath{{Upstream: "github", Repository: "acme/site"}}}))
	must[api.Credential](t)(s.CreateCredential(ctx, s.admin(), api.NewCredential{Name: "gh", Hosts: []string{"api.example.com"}, Values: map[string]string{"value": "s3cret-value"}}))
	text, name, zero := "version: 1\n", "x", int64(0)
	calls := map[string]func(a Actor, id string) error{
		"Agent": func(a Actor, id string) error { _, err := s.Agent(ctx, a, id); return err },
		"ChangeAgent": func(a Actor, id string) error {
			_, err := s.ChangeAgent(ctx, a, id, zero, api.AgentChange{Name: &name})
			return err
		},
		"DeleteAgent":     func(a Actor, id string) error { return s.DeleteAgent(ctx, a, id) },
		"EffectivePolicy": func(a Actor, id string) error { _, err := s.EffectivePolicy(ctx, a, id); return err },
		"Explain": func(a Actor, id string) error {
			_, err := s.Explain(ctx, a, api.ExplainRequest{Target: "a.example:443", Agent: id})
			return err
		},
		"ExplainPolicy": func(a Actor, id string) error {
			_, err := s.Explain(ctx, a, api.ExplainRequest{Target: "a.example:443", Policy: id})
			return err
		},
		"Policy": func(a Actor, id string) error { _, err := s.Policy(ctx, a, id); return err },
		"ChangePolicy": func(a Actor, id string) error {
			_, err := s.ChangePolicy(ctx, a, id, zero, api.PolicyChange{Text: &text})
			return err
		},
		"DeletePolicy":   func(a Actor, id string) error { return s.DeletePolicy(ctx, a, id) },
		"PolicyVersions": func(a Actor, id string) error { _, err := s.PolicyVersions(ctx, a, id, Page{}); return err },
		"PolicyVersion":  func(a Actor, id string) error { _, err := s.PolicyVersion(ctx, a, id, 1); return err },
		"DiffPolicy":     func(a Actor, id string) error { _, err := s.DiffPolicy(ctx, a, id, 1, 1); return err },
		"Replay": func(a Actor, id string) error {
			_, err := s.Replay(ctx, a, id, api.ReplayRequest{Text: text})
			return err
		},
		"ChangeUpstream": func(a Actor, id string) error { _, err := s.ChangeUpstream(ctx, a, id, zero, upstream); return err },
		"DeleteUpstream": func(a Actor, id string) error { return s.DeleteUpstream(ctx, a, id) },
		"ChangeProfile":  func(a Actor, id string) error { _, err := s.ChangeProfile(ctx, a, id, zero, profile); return err },
		"DeleteProfile":  func(a Actor, id string) error { return s.DeleteProfile(ctx, a, id) },
		"Credential":     func(a Actor, id string) error { _, err := s.Credential(ctx, a, id); return err },
		"RotateCredential": func(a Actor, id string) error {
			_, err := s.RotateCredential(ctx, a, id, api.RotateCredential{Values: map[string]string{"value": "x"}})
			return err
		},
		"DeleteCredential": func(a Actor, id string) error { return s.DeleteCredential(ctx, a, id) },
		"User":             func(a Actor, id string) error { _, err := s.User(ctx, a, id); return err },
		"ChangeUser": func(a Actor, id string) error {
			_, err := s.ChangeUser(ctx, a, id, zero, api.UserChange{Name: &name})
			return err
		},
		"ResetUser":  func(a Actor, id string) error { _, err := s.ResetUser(ctx, a, id); return err },
		"DeleteUser": func(a Actor, id string) error { return s.DeleteUser(ctx, a, id) },
	}
	before := len(s.records(audit.Kinds()...))
	for what, call := range calls {
		nowhere := call(s.other(), store.NewID())
		wants(t, nowhere, fault.NotFound)
		for _, id := range []string{agent.ID, agent.Policy, upstream.ID, profile.ID, "gh", "build", "github", "site", s.admin().User, strings.Repeat("a", 1000), "../../etc"} {
			err := call(s.other(), id)
			if fault.KindOf(err) != fault.NotFound || fault.Public(err) != fault.Public(nowhere) || fault.HintOf(err) != fault.HintOf(nowhere) {
				t.Errorf("%s of another tenant's %.20s: %v; of nothing: %v", what, id, err, nowhere)
			}
		}
	}
	if n := len(s.records(audit.Kinds()...)); n != before {
		t.Errorf("%d records of what did not happen", n-before)
	}
	for what, list := range map[string]func() (int, error){
		"agents":      func() (int, error) { p, err := s.Agents(ctx, s.other(), Page{}); return len(p.Items), err },
		"policies":    func() (int, error) { p, err := s.Policies(ctx, s.other(), Page{}); return len(p.Items), err },
		"upstreams":   func() (int, error) { p, err := s.Upstreams(ctx, s.other()); return len(p), err },
		"profiles":    func() (int, error) { p, err := s.Profiles(ctx, s.other()); return len(p), err },
		"credentials": func() (int, error) { p, err := s.Credentials(ctx, s.other()); return len(p), err },
	} {
		if n, err := list(); n > 0 || err != nil {
			t.Errorf("another tenant sees %d %s (%v)", n, what, err)
		}
	}
	// The same names are free there.
	must[api.Agent](t)(s.CreateAgent(ctx, s.other(), api.NewAgent{Name: "build"}))
}

// TestNameIsNoIdentifier: an agent that is called like another's identifier does not take over references to that one.
func TestNameIsNoIdentifier(t *testing.T) {
	s, ctx := newStage(t), t.Context()
	first := must[api.Agent](t)(s.CreateAgent(ctx, s.admin(), api.NewAgent{Name: "first"}))
	must[api.Agent](t)(s.CreateAgent(ctx, s.admin(), api.NewAgent{Name: first.ID}))
	if got := must[api.Agent](t)(s.Agent(ctx, s.admin(), first.ID)); got.ID != first.ID {
		t.Errorf("%s is %s", first.ID, got.Name)
	}
}

// TestNotRecorded: what cannot be recorded does not happen.
func TestNotRecorded(t *testing.T) {
	s, ctx := newStage(t), t.Context()
	p := must[api.Policy](t)(s.CreatePolicy(ctx, s.admin(), api.NewPolicy{Name: "one", Text: openPolicy}))
	must[api.Credential](t)(s.CreateCredential(ctx, s.admin(), api.NewCredential{Name: "gh", Hosts: []string{"api.example.com"}, Values: map[string]string{"value": "s3cret-value"}}))
	done(t, s.Options.Audit.Close())
	text := "version: 1\n"
	for what, err := range map[string]error{
		"agent": func() error { _, err := s.CreateAgent(ctx, s.admin(), api.NewAgent{Name: "a"}); return err }(),
		"policy": func() error {
			_, err := s.ChangePolicy(ctx, s.admin(), p.ID, 0, api.PolicyChange{Text: &text})
			return err
		}(),
		"credential": s.DeleteCredential(ctx, s.admin(), "gh"),
		"settings":   func() error { _, err := s.ChangeSettings(ctx, s.admin(), 0, api.Settings{MaxSandboxes: 1}); return err }(),
		"user": func() error {
			_, err := s.CreateUser(ctx, s.admin(), api.NewUser{Email: "a@b.example", Role: api.Viewer})
			return err
		}(),
		"sign-in": s.RecordSignIn(ctx, SignIn{OK: true, Tenant: s.admin().Tenant, User: s.admin().User, Method: "password"}),
	} {
		if fault.KindOf(err) != fault.Unavailable {
			t.Errorf("%s: %v", what, err)
		}
	}
	if list := must[api.Page[api.Agent]](t)(s.Agents(ctx, s.admin(), Page{})); len(list.Items) > 0 {
		t.Error("an agent was made")
	}
	if now := must[api.Policy](t)(s.Policy(ctx, s.admin(), p.ID)); now.Text != openPolicy {
		t.Error("the policy was changed")
	}
	if list := must[[]api.Credential](t)(s.Credentials(ctx, s.admin())); len(list) != 1 {
		t.Error("the credential was removed")
	}
}

// TestOneWins: of two who change the same version one succeeds, and the other's record says that it did not happen.
func TestOneWins(t *testing.T) {
	s, ctx := newStage(t), t.Context()
	p := must[api.Policy](t)(s.CreatePolicy(ctx, s.admin(), api.NewPolicy{Name: "one", Text: openPolicy}))
	var wg sync.WaitGroup
	errs := make([]error, 8)
	for i := range errs {
		wg.Go(func() {
			text := fmt.Sprintf("version: 1\ndescription: number %d\n", i)
			_, errs[i] = s.ChangePolicy(ctx, s.admin(), p.ID, p.Version, api.PolicyChange{Text: &text})
		})
	}
	wg.Wait()
	won := 0
	for _, err := range errs {
		if err == nil {
			won++
		} else if fault.KindOf(err) != fault.Conflict {
			t.Error(err)
		}
	}
	now := must[api.Policy](t)(s.Policy(ctx, s.admin(), p.ID))
	versions := must[api.Page[api.PolicyVersion]](t)(s.PolicyVersions(ctx, s.admin(), p.ID, Page{}))
	if won != 1 || now.Number != 2 || len(versions.Items) != 2 {
		t.Errorf("%d won, the policy has version %d and %d versions", won, now.Number, len(versions.Items))
	}
	lost, kept := 0, 0
	for _, e := range s.records(audit.PolicyChanged) {
		if strings.HasPrefix(e.Error, "it did not happen") {
			lost++
		} else {
			kept++
		}
	}
	if kept-lost != 2 {
		t.Errorf("on record: %d changes, %d of which did not happen", kept, lost)
	}
}

func TestManyAgents(t *testing.T) {
	s, ctx := newStage(t), t.Context()
	p := must[api.Policy](t)(s.CreatePolicy(ctx, s.admin(), api.NewPolicy{Name: "shared", Text: openPolicy}))
	const many = 120
	for i := range many {
		must[api.Agent](t)(s.CreateAgent(ctx, s.admin(), api.NewAgent{Name: fmt.Sprintf("agent-%03d", i), Policy: "shared"}))
	}
	var names []string
	page := Page{Limit: 50}
	for {
		list := must[api.Page[api.Agent]](t)(s.Agents(ctx, s.admin(), page))
		for _, a := range list.Items {
			names = append(names, a.Name)
		}
		if page.After = list.Next; page.After == "" {
			break
		}
	}
	if len(names) != many || !slices.IsSorted(names) {
		t.Errorf("%d agents, sorted: %t", len(names), slices.IsSorted(names))
	}
	if list := must[api.Page[api.Agent]](t)(s.Agents(ctx, s.admin(), Page{Search: "T-01"})); len(list.Items) != 10 {
		t.Errorf("found %d", len(list.Items))
	}
	if got := must[api.Policy](t)(s.Policy(ctx, s.admin(), p.ID)); got.Agents != many {
		t.Errorf("%d agents have the policy", got.Agents)
	}
	says(t, s.DeletePolicy(ctx, s.admin(), p.ID), fault.Conflict, "120 agents")
}

func TestSuspendedHasNoSandbox(t *testing.T) {
	s, ctx := newStage(t), t.Context()
	a := must[api.Agent](t)(s.CreateAgent(ctx, s.admin(), api.NewAgent{Name: "build"}))
	yes := true
	a = must[api.Agent](t)(s.ChangeAgent(ctx, s.admin(), a.ID, 0, api.AgentChange{Suspended: &yes}))
	if !a.Suspended {
		t.Fatal("it is not suspended")
	}
	_, err := s.CreateSandbox(ctx, s.a[api.Developer], api.NewSandbox{Agent: a.ID})
	says(t, err, fault.Conflict, "suspended")
	if e := s.records(audit.AgentChanged); !strings.Contains(e[len(e)-1].Detail, "suspended") {
		t.Errorf("on record: %q", e[len(e)-1].Detail)
	}
}

func TestAgentWithSandboxStays(t *testing.T) {
	s, ctx := newStage(t), t.Context()
	a := must[api.Agent](t)(s.CreateAgent(ctx, s.admin(), api.NewAgent{Name: "build"}))
	live := must[store.Object[json.RawMessage]](t)(sandboxesOf().Insert(ctx, s.DB, store.Object[json.RawMessage]{Tenant: s.admin().Tenant, Parent: a.ID, State: string(api.Stopping), Data: json.RawMessage("{}")}))
	says(t, s.DeleteAgent(ctx, s.admin(), a.ID), fault.Conflict, "1 sandboxes")
	if got := must[api.Agent](t)(s.Agent(ctx, s.admin(), a.ID)); got.Running != 1 {
		t.Errorf("running: %d", got.Running)
	}
	live.State = string(api.Ended)
	must[store.Object[json.RawMessage]](t)(sandboxesOf().Update(ctx, s.DB, live))
	done(t, s.DeleteAgent(ctx, s.admin(), a.ID))
}

func TestCallerGone(t *testing.T) {
	s := newStage(t)
	ctx, stop := context.WithCancel(t.Context())
	stop()
	_, err := s.CreateAgent(ctx, s.admin(), api.NewAgent{Name: "a"})
	if err == nil {
		t.Error("it was made")
	}
	if errors.Is(err, context.Canceled) && len(s.records(audit.AgentChanged)) > 0 {
		t.Error("it is on record")
	}
}

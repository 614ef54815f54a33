package control

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/ident"
	"github.com/cofferdam/cofferdam/internal/keeper"
	"github.com/cofferdam/cofferdam/internal/store"
)

func TestOnlyWidens(t *testing.T) {
	rules := func(lines ...string) string {
		return "version: 1\negress:\n  rules:\n    " + strings.Join(lines, "\n    ") + "\n"
	}
	limit := func(lines ...string) string { return "version: 1\nresources:\n  " + strings.Join(lines, "\n  ") + "\n" }
	a, b, deny := "- hosts: [a.example.com]", "- hosts: [b.example.com]", "- {hosts: [a.example.com], verdict: deny}"
	named := "- {name: other, hosts: [a.example.com]}"
	lends := func(hosts string) string {
		return rules(a, b) + "credentials:\n  - {use: token, hosts: [" + hosts + "], env: TOKEN}\n"
	}
	for _, c := range []struct {
		name, before, after string
		want                bool
	}{
		{"the same", rules(a), rules(a), true},
		{"one rule more", rules(a), rules(b, a), true},
		{"one rule less", rules(a, b), rules(a), false},
		{"all gone", rules(a), emptyPolicy, false},
		{"another name", rules(a), rules(named), true},
		{"a denial more", rules(a), rules(a, deny), false},
		{"a denial less", rules(a, deny), rules(a), true},
		{"asks instead", rules(a), rules("- {hosts: [a.example.com], verdict: ask}"), false},
		{"fewer ports", rules(a), rules("- {hosts: [a.example.com], ports: [443]}"), false},
		{"asks by default", emptyPolicy, "version: 1\negress:\n  default: ask\n", true},
		{"asks by default no more", "version: 1\negress:\n  default: ask\n", emptyPolicy, false},
		{"a credential more", rules(a, b), lends("a.example.com"), true},
		{"a credential less", lends("a.example.com"), rules(a, b), false},
		{"a credential elsewhere", lends("a.example.com"), lends("b.example.com"), false},
		{"more memory", emptyPolicy, limit("memory: 5GiB"), true},
		{"less memory", emptyPolicy, limit("memory: 64MiB"), false},
		{"less memory than stated", limit("memory: 64MiB"), limit("memory: 63MiB"), false},
		{"the usual memory, stated", emptyPolicy, limit("memory: 4GiB"), true},
		{"processors bounded", emptyPolicy, limit("cpus: 2"), false},
		{"fewer processors", limit("cpus: 2"), limit("cpus: 1"), false},
		{"processors bounded no more", limit("cpus: 2"), emptyPolicy, true},
		{"fewer processes", emptyPolicy, limit("pids: 10"), false},
		{"less disk", emptyPolicy, limit("disk: 1GiB"), false},
		{"more disk", limit("disk: 1GiB"), emptyPolicy, true},
		{"fewer connections", emptyPolicy, limit("connections: 10"), false},
		{"a timeout", emptyPolicy, limit("timeout: 1h"), false},
		{"a longer timeout", limit("timeout: 1h"), limit("timeout: 2h"), true},
		{"a shorter timeout and more memory", limit("timeout: 1h"), limit("timeout: 59m", "memory: 5GiB"), false},
		{"nonsense", "x", "x", false},
		{"nothing known", "", emptyPolicy, false},
	} {
		if got := onlyWidens(c.before, c.after); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}

func TestEnforce(t *testing.T) {
	h := newRealHouse(t)
	h.run(t)
	agent := h.agent(t, h.a, "one", emptyPolicy)
	other := h.agent(t, h.a, "two", emptyPolicy)
	first, second := h.create(t, h.a, api.NewSandbox{Agent: "one"}), h.create(t, h.a, api.NewSandbox{Agent: "one"})
	apart := h.create(t, h.a, api.NewSandbox{Agent: "two"})
	version := int64(1)
	change := func(text string) {
		t.Helper()
		p, err := h.ChangePolicy(t.Context(), h.a, agent.Policy, version, api.PolicyChange{Text: &text})
		if err != nil {
			t.Fatal(err)
		}
		version = p.Version
	}
	inForce := func(id string) string {
		t.Helper()
		client, err := keeper.Dial(t.Context(), h.State, ident.Run(id))
		if err != nil {
			t.Fatal(err)
		}
		status, err := client.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return status.Policy
	}
	before := inForce(first.ID)
	began := time.Now()
	change("version: 1\negress:\n  rules:\n    - hosts: [a.example.com]\n")
	took := time.Since(began)
	if now := inForce(first.ID); now == before || now != inForce(second.ID) || inForce(apart.ID) != before {
		t.Error("the policy is not in force where it should be, or where it should not")
	}
	if took > time.Second {
		t.Errorf("it took %v", took)
	}
	t.Logf("in force in two sandboxes after %v", took)
	if list, err := h.enforce(t.Context(), h.a.Tenant, agent.ID, other.ID); err != nil || len(list) != 3 || !slices.IsSorted(list) {
		t.Errorf("%v %v", list, err)
	}
	if list, err := h.enforce(t.Context(), h.b.Tenant, agent.ID); err != nil || len(list) != 0 {
		t.Errorf("for another tenant: %v %v", list, err)
	}

	// A running sandbox cannot have other limits. What else there is only widens: it goes on, and says so.
	now := inForce(first.ID)
	change("version: 1\nresources:\n  memory: 5GiB\negress:\n  rules:\n    - hosts: [a.example.com]\n    - hosts: [b.example.com]\n")
	o, err := h.Sandbox(t.Context(), h.a, first.ID)
	if err != nil || o.State != api.Running || len(o.Problems) != 1 || !strings.Contains(o.Problems[0], "older policy") || inForce(first.ID) != now {
		t.Errorf("%+v %v", o, err)
	}
	// With a rule less, it must not go on.
	change("version: 1\nresources:\n  memory: 5GiB\n")
	for _, id := range []string{first.ID, second.ID} {
		if done := h.ended(t, h.a, id); !strings.Contains(done.How, "its policy changed") || done.State != api.Ended {
			t.Errorf("%+v", done)
		}
	}
	if o, err := h.Sandbox(t.Context(), h.a, apart.ID); err != nil || o.State != api.Running {
		t.Errorf("the other agent's: %+v %v", o, err)
	}

	// Of a limit that is smaller nothing is left as it was.
	third := h.create(t, h.a, api.NewSandbox{Agent: "one", Hold: true})
	change("version: 1\nresources:\n  memory: 700MiB\n")
	if done := h.ended(t, h.a, third.ID); !strings.Contains(done.How, "other limits") {
		t.Errorf("%+v", done)
	}

	// A shorter timeout holds at once.
	short := "version: 1\nresources:\n  timeout: 1h\n"
	if _, err := h.ChangePolicy(t.Context(), h.a, other.Policy, 1, api.PolicyChange{Text: &short}); err != nil {
		t.Fatal(err)
	}
	if o, err := h.Sandbox(t.Context(), h.a, apart.ID); err != nil || time.Until(o.Deadline) > time.Hour {
		t.Errorf("%+v %v", o, err)
	}
}

// TestUntilWithoutService: a rule ends in a running sandbox though nobody is there to end it, since nothing runs here that expires rules.
func TestUntilWithoutService(t *testing.T) {
	h := newRealHouse(t)
	agent := h.agent(t, h.a, "one", emptyPolicy)
	rule := func(until time.Duration) {
		t.Helper()
		_, err := rules().Insert(t.Context(), h.DB, store.Object[RuleData]{ID: store.NewID(), Tenant: h.a.Tenant, Parent: agent.ID, State: ruleActive, Data: RuleData{
			Agent: "one", Verdict: "allow", Scope: api.ForAgent, Rule: "- hosts: [" + store.NewID() + ".example.com]\n", Until: time.Now().Add(until),
		}})
		if err != nil {
			t.Fatal(err)
		}
	}
	endsAs := func(id, want string) {
		t.Helper()
		client, err := keeper.Dial(t.Context(), h.State, ident.Run(id))
		if err != nil {
			t.Fatal(err)
		}
		was, now := "", ""
		for range 100 {
			status, err := client.Status(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if now = status.Policy; was == "" {
				was = now
			}
			if now == hashOf(want) {
				break
			}
			time.Sleep(100 * time.Millisecond)
		}
		if was == now || now != hashOf(want) {
			t.Errorf("the policy in force was %s and is %s, want %s", was, now, hashOf(want))
		}
	}
	rule(6 * time.Second) // that comes with the sandbox
	o := h.create(t, h.a, api.NewSandbox{Agent: "one"})
	endsAs(o.ID, emptyPolicy)
	rule(3 * time.Second) // and with a policy that is put in force later
	if list, err := h.enforce(t.Context(), h.a.Tenant, agent.ID); err != nil || len(list) != 1 {
		t.Fatal(list, err)
	}
	endsAs(o.ID, emptyPolicy)
}

// TestEnforceMany: concurrent changes leave the newest policy in force.
func TestEnforceMany(t *testing.T) {
	h := newRealHouse(t)
	h.run(t)
	agent := h.agent(t, h.a, "one", emptyPolicy)
	o := h.create(t, h.a, api.NewSandbox{Agent: "one"})
	done := make(chan error)
	for range 8 {
		go func() {
			_, err := h.enforce(t.Context(), h.a.Tenant, agent.ID)
			done <- err
		}()
	}
	text := "version: 1\negress:\n  rules:\n    - hosts: [last.example.com]\n"
	if _, err := h.ChangePolicy(t.Context(), h.a, agent.Policy, 1, api.PolicyChange{Text: &text}); err != nil {
		t.Fatal(err)
	}
	for range 8 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	stored, err := h.sandbox(t.Context(), h.a.Tenant, o.ID)
	if err != nil || !strings.Contains(stored.Data.Policy, "last.example.com") {
		t.Errorf("%q %v", stored.Data.Policy, err)
	}
	client, err := keeper.Dial(t.Context(), h.State, ident.Run(o.ID))
	if err != nil {
		t.Fatal(err)
	}
	status, err := client.Status(t.Context())
	if err != nil || status.Policy != hashOf(stored.Data.Policy) {
		t.Errorf("%v %v", status, err)
	}
}

// TestFolderMode: a policy may let a sandbox only read its folder, and a sandbox that can write does not go on under it.
func TestFolderMode(t *testing.T) {
	h := newRealHouse(t)
	h.run(t)
	mode := func(m string) string { return "version: 1\nworkspace:\n  mode: " + m + "\n" }
	agent := h.agent(t, h.a, "one", mode("ro"))
	writes := func(o api.Sandbox) bool {
		t.Helper()
		got, err := h.ExecWait(t.Context(), h.a, o.ID, api.Exec{Command: []string{"/bin/touch", "/work/file"}})
		if err != nil {
			t.Fatal(err)
		}
		return got.ExitCode == 0
	}
	version := int64(1)
	change := func(text string) error {
		t.Helper()
		p, err := h.ChangePolicy(t.Context(), h.a, agent.Policy, version, api.PolicyChange{Text: &text})
		if err == nil {
			version = p.Version
		}
		return err
	}
	reader := h.create(t, h.a, api.NewSandbox{Agent: "one", Hold: true})
	if writes(reader) {
		t.Error("a sandbox writes that may only read")
	}
	done(t, change(mode("rw")))
	writer := h.create(t, h.a, api.NewSandbox{Agent: "one", Hold: true})
	if !writes(writer) || writes(reader) {
		t.Error("what may be written is not as the sandboxes were made")
	}
	done(t, change(emptyPolicy))
	if usual := h.create(t, h.a, api.NewSandbox{Agent: "one", Hold: true}); !writes(usual) {
		t.Error("a policy that says nothing does not let it write")
	}
	says(t, change(mode("overlay")), fault.Invalid, "mode overlay")
	says(t, change("version: 1\nworkspace: {unprotected: [a], mode: \"overlay\"}\n"), fault.Invalid, "mode: rw")
	done(t, change(mode("ro")))
	if over := h.ended(t, h.a, writer.ID); !strings.Contains(over.How, "only read its folder") {
		t.Errorf("%+v", over)
	}
	if o, err := h.Sandbox(t.Context(), h.a, reader.ID); err != nil || o.State != api.Running {
		t.Errorf("%+v %v", o, err)
	}
}

package control

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/audit"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/ident"
	"github.com/cofferdam/cofferdam/internal/keeper"
	"github.com/cofferdam/cofferdam/internal/policy"
	"github.com/cofferdam/cofferdam/internal/store"
)

// inbox is a stage with an agent that was refused things.
type inbox struct {
	*stage
	agent api.Agent
	run   ident.Run
	seq   uint64
}

func newInbox(t *testing.T) *inbox {
	t.Helper()
	s := newStage(t)
	agent, err := s.CreateAgent(t.Context(), s.admin(), api.NewAgent{Name: "builder"})
	if err != nil {
		t.Fatal(err)
	}
	return &inbox{stage: s, agent: agent, run: ident.NewRun()}
}

// refuse notes denials as the index does, and returns the group of the last.
func (in *inbox) refuse(hosts ...string) api.Denial {
	in.t.Helper()
	var found []refused
	for _, host := range hosts {
		in.seq++
		e := audit.Event{
			Seq: in.seq, Time: in.clock.Now(), Kind: audit.CrossingDecided, Run: in.run, Protocol: "tls", Host: host, Port: 443, Verdict: "deny",
			Rule: "default", Reason: "no rule is about it", Process: "curl", PID: 7,
		}
		found = append(found, refused{tenant: in.admin().Tenant, agent: in.agent.ID, event: e})
	}
	done(in.t, in.DB.Within(in.t.Context(), func(tx *store.DB) error { return in.noteDenials(in.t.Context(), tx, found) }))
	page := must[api.Page[api.Denial]](in.t)(in.Denials(in.t.Context(), in.admin(), "builder", nil, Page{Limit: 500}))
	for _, d := range page.Items {
		if d.Place.Host == hosts[len(hosts)-1] {
			return d
		}
	}
	return api.Denial{}
}

// decides asks what is in force for a connection of a sandbox.
func (in *inbox) decides(host string, sandbox string) policy.Verdict {
	in.t.Helper()
	doc, _, err := in.effective(in.t.Context(), in.admin().Tenant, in.agentObject(), sandbox)
	if err != nil {
		in.t.Fatal(err)
	}
	p, err := policy.Parse("", []byte(doc))
	if err != nil {
		in.t.Fatal(err)
	}
	c, err := policy.ParseTarget(host + ":443")
	if err != nil {
		in.t.Fatal(err)
	}
	return p.Decide(c).Verdict
}

// decidedBy is the rule that decides in every sandbox of the agent.
func (in *inbox) decidedBy(host string) string {
	in.t.Helper()
	p, err := in.law(in.t.Context(), in.admin().Tenant, in.agent.ID)
	if err != nil {
		in.t.Fatal(err)
	}
	c, err := policy.ParseTarget(host + ":443")
	if err != nil {
		in.t.Fatal(err)
	}
	return p.Decide(c).Rule
}

func (in *inbox) agentObject() store.Object[AgentData] {
	in.t.Helper()
	o, err := agents().Get(in.t.Context(), in.DB, in.admin().Tenant, in.agent.ID)
	if err != nil {
		in.t.Fatal(err)
	}
	return o
}

func (in *inbox) decide(a Actor, d api.Denial, with api.Decide) (api.Decision, error) {
	return in.DecideDenial(in.t.Context(), a, d.ID, with)
}

func TestDenialGroups(t *testing.T) {
	in := newInbox(t)
	first := in.refuse("a.example.com", "b.example.com", "a.example.com")
	if first.Count != 2 || first.State != api.Open || first.Process != "curl (7)" || first.Sandbox != in.run.String() || first.Destination != "a.example.com:443" {
		t.Errorf("%+v", first)
	}
	if first.Suggestion == nil || !strings.Contains(first.Suggestion.Rule, "hosts: [a.example.com]") || len(first.Suggestion.Warnings) != 2 {
		t.Errorf("suggestion: %+v", first.Suggestion)
	}
	// The same records once more, as after a crash between index and answer.
	in.seq -= 3
	if again := in.refuse("a.example.com", "b.example.com", "a.example.com"); again.Count != 2 {
		t.Errorf("counted twice: %d", again.Count)
	}
	if page, err := in.Denials(t.Context(), in.other(), "", nil, Page{}); err != nil || len(page.Items) != 0 {
		t.Errorf("another tenant sees %v, %v", page.Items, err)
	}
	if _, err := in.Denial(t.Context(), in.other(), first.ID); err == nil || fault.Public(err) != "there is no such denial" {
		t.Errorf("another tenant: %v", err)
	}
	if told := in.told(in.admin().Tenant); !slices.Contains(told, "denial open") {
		t.Errorf("nobody was told: %v", told)
	}

	// What was dismissed comes back when it happens again.
	must[api.Decision](t)(in.decide(in.a[api.Reviewer], first, api.Decide{Verdict: "dismiss"}))
	if d := must[api.Denial](t)(in.Denial(t.Context(), in.admin(), first.ID)); d.State != api.Dismissed || d.DecidedBy == "" {
		t.Errorf("%+v", d)
	}
	if d := in.refuse("a.example.com"); d.State != api.Open || d.Count != 3 || d.DecidedBy != "" {
		t.Errorf("%+v", d)
	}
}

// TestDenialFlood holds the inbox to a bound: a program that tries a thousand names fills neither the store nor a person's day.
func TestDenialFlood(t *testing.T) {
	in := newInbox(t)
	var hosts []string
	for i := range maxGroups + 300 {
		hosts = append(hosts, fmt.Sprintf("n%d.example.com", i))
	}
	in.refuse(hosts...)
	n, err := denials().Count(t.Context(), in.DB, in.admin().Tenant, store.Filter{})
	if err != nil || n != maxGroups+1 {
		t.Fatalf("%d groups, %v", n, err)
	}
	page := must[api.Page[api.Denial]](t)(in.Denials(t.Context(), in.admin(), "", nil, Page{Limit: 1}))
	if d := page.Items[0]; d.Destination != "many destinations" || d.Count != 300 || d.Suggestion != nil {
		t.Errorf("%+v", d)
	}
}

func TestAllowDenial(t *testing.T) {
	in := newInbox(t)
	d := in.refuse("a.example.com", "b.example.com", "c.example.com")
	reviewer := in.a[api.Reviewer]
	allow := api.Decide{Verdict: "allow", Scope: api.ForAgent, Until: in.clock.Now().Add(time.Hour), Widens: true, Comment: "needed"}
	for _, c := range []struct {
		name string
		a    Actor
		with api.Decide
		kind fault.Kind
	}{
		{"warnings unread", reviewer, api.Decide{Verdict: "allow", Scope: api.ForAgent}, fault.Invalid},
		{"no scope", reviewer, api.Decide{Verdict: "allow", Widens: true}, fault.Invalid},
		{"no such verdict", reviewer, api.Decide{Verdict: "yes"}, fault.Invalid},
		{"past", reviewer, api.Decide{Verdict: "allow", Scope: api.ForAgent, Widens: true, Until: in.clock.Now()}, fault.Invalid},
		{"a run with an end", reviewer, api.Decide{Verdict: "allow", Scope: api.ForRun, Widens: true, Until: in.clock.Now().Add(time.Hour)}, fault.Invalid},
		{"a rule that denies", reviewer, api.Decide{Verdict: "allow", Scope: api.ForRun, Widens: true, Rule: "- {hosts: [a.com], verdict: deny}"}, fault.Invalid},
		{"a rule that asks", reviewer, api.Decide{Verdict: "allow", Scope: api.ForRun, Widens: true, Rule: "- {hosts: [a.com], verdict: ask}"}, fault.Invalid},
		{"no rule", reviewer, api.Decide{Verdict: "allow", Scope: api.ForRun, Widens: true, Rule: "nonsense"}, fault.Invalid},
		{"once for a network", reviewer, api.Decide{Verdict: "allow", Scope: api.Once, Widens: true, Rule: "networks: [10.0.0.0/8]"}, fault.Invalid},
		{"a developer", in.a[api.Developer], allow, fault.Denied},
		{"another tenant", in.b[api.Reviewer], allow, fault.NotFound},
	} {
		if _, err := in.decide(c.a, d, c.with); fault.KindOf(err) != c.kind {
			t.Errorf("%s: %v, want %v", c.name, err, c.kind)
		}
	}
	if v := in.decides("c.example.com", ""); v != policy.Deny {
		t.Fatalf("before anybody allowed it: %v", v)
	}
	made := must[api.Decision](t)(in.decide(reviewer, d, allow))
	if made.Denial.State != api.Allowed || made.Rule == nil || made.Rule.State != ruleActive || made.Rule.ProposedBy != reviewer.Name {
		t.Errorf("%+v", made)
	}
	if name := in.decidedBy("c.example.com"); name != "review-"+made.Rule.ID || !strings.Contains(made.Rule.Rule, "name: "+name+"\n") {
		t.Errorf("decided by %q, the rule is\n%s", name, made.Rule.Rule)
	}
	if in.decides("c.example.com", "") != policy.Allow || in.decides("b.example.com", "") != policy.Deny {
		t.Error("the rule is not in force, or opens more than it says")
	}
	if _, err := in.decide(reviewer, d, allow); fault.KindOf(err) != fault.Conflict {
		t.Errorf("decided twice: %v", err)
	}
	if r := in.records(audit.ReviewDecided); len(r) != 1 || !strings.Contains(r[0].Detail, "allow (agent)") || r[0].Principal != reviewer.Principal() || r[0].Host != "c.example.com" {
		t.Errorf("on record: %+v", r)
	}

	// Its time is over: nothing is allowed any more, and a new denial is open again.
	in.clock.forward(time.Hour)
	if v := in.decides("c.example.com", ""); v != policy.Deny {
		t.Errorf("a rule holds beyond its time: %v", v)
	}
	done(t, in.expireRules(t.Context(), in.clock.Now()))
	if r := must[api.Page[api.Rule]](t)(in.Rules(t.Context(), in.admin(), "", []string{ruleExpired}, Page{})); len(r.Items) != 1 {
		t.Errorf("expired: %+v", r.Items)
	}
	if d := in.refuse("c.example.com"); d.State != api.Open {
		t.Errorf("%+v", d)
	}
}

func TestAllowForRunAndOnce(t *testing.T) {
	in := newInbox(t)
	d := in.refuse("a.example.com", "b.example.com")
	here, elsewhere := in.run.String(), ident.NewRun().String()
	must[api.Decision](t)(in.decide(in.admin(), d, api.Decide{Verdict: "allow", Scope: api.ForRun, Widens: true}))
	if in.decides("b.example.com", here) != policy.Allow || in.decides("b.example.com", elsewhere) != policy.Deny || in.decides("b.example.com", "") != policy.Deny {
		t.Error("a rule for one run holds elsewhere, or not at all")
	}
	must[api.Decision](t)(in.decide(in.admin(), in.refuse("c.example.com"), api.Decide{Verdict: "allow", Scope: api.Once, Widens: true}))
	_, once, err := in.effective(t.Context(), in.admin().Tenant, in.agentObject(), here)
	if err != nil || len(once) != 1 || !strings.Contains(once[0].Rule, "c.example.com") || in.decides("c.example.com", here) != policy.Deny {
		t.Errorf("%+v, %v", once, err)
	}
	spot := room{tenant: in.admin().Tenant, agent: in.agent.ID, sandbox: here}
	for range 2 {
		done(t, in.onUsed(t.Context(), spot, once[0].ID))
	}
	if _, once, err := in.effective(t.Context(), in.admin().Tenant, in.agentObject(), here); err != nil || len(once) != 0 {
		t.Errorf("a rule that was used up is there: %+v, %v", once, err)
	}
	// With the sandbox end the rules that name it.
	done(t, in.DB.Within(t.Context(), func(tx *store.DB) error { return in.onGone(t.Context(), tx, spot) }))
	if v := in.decides("b.example.com", here); v != policy.Deny {
		t.Errorf("after the end: %v", v)
	}
}

func TestDenyForGood(t *testing.T) {
	in := newInbox(t)
	d := in.refuse("a.example.com")
	made := must[api.Decision](t)(in.decide(in.a[api.Reviewer], d, api.Decide{Verdict: "deny"}))
	if made.Denial.State != api.Refused || made.Rule == nil || made.Rule.Verdict != "deny" {
		t.Fatalf("%+v", made)
	}
	text := "version: 1\negress:\n  rules:\n    - hosts: [\"*.example.com\"]\n"
	p := must[api.Policy](t)(in.Policy(t.Context(), in.admin(), in.agent.Policy))
	must[api.Policy](t)(in.ChangePolicy(t.Context(), in.admin(), p.ID, p.Version, api.PolicyChange{Text: &text}))
	if in.decides("a.example.com", "") != policy.Deny || in.decides("b.example.com", "") != policy.Allow {
		t.Error("a wider policy opens what a person refused for good, or nothing at all")
	}
	if d := in.refuse("a.example.com"); d.State != api.Refused || d.Count != 2 {
		t.Errorf("it bothers people again: %+v", d)
	}
	must[api.Rule](t)(in.RevokeRule(t.Context(), in.a[api.Reviewer], made.Rule.ID))
	if v := in.decides("a.example.com", ""); v != policy.Allow {
		t.Errorf("after it was taken back: %v", v)
	}
	if _, err := in.RevokeRule(t.Context(), in.a[api.Reviewer], made.Rule.ID); fault.KindOf(err) != fault.Conflict {
		t.Errorf("revoked twice: %v", err)
	}
}

func TestFourEyes(t *testing.T) {
	in := newInbox(t)
	settings := must[api.Settings](t)(in.Settings(t.Context(), in.admin()))
	settings.FourEyes = true
	must[api.Settings](t)(in.ChangeSettings(t.Context(), in.admin(), settings.Version, settings))
	d := in.refuse("a.example.com")
	first, second := in.a[api.Reviewer], in.admin()
	made := must[api.Decision](t)(in.decide(first, d, api.Decide{Verdict: "allow", Scope: api.ForAgent, Widens: true}))
	if made.Rule.State != ruleProposed || made.Denial.State != api.Open || len(made.InForce) != 0 || in.decides("a.example.com", "") != policy.Deny {
		t.Fatalf("one pair of eyes was enough: %+v", made)
	}
	if _, err := in.ApproveRule(t.Context(), first, made.Rule.ID); fault.KindOf(err) != fault.Denied {
		t.Errorf("one's own rule: %v", err)
	}
	same := first
	same.Via, same.ID = "token", "t"
	if _, err := in.ApproveRule(t.Context(), same, made.Rule.ID); fault.KindOf(err) != fault.Denied {
		t.Errorf("one's own rule, by a token: %v", err)
	}
	if _, err := in.ApproveRule(t.Context(), in.b[api.Reviewer], made.Rule.ID); fault.KindOf(err) != fault.NotFound {
		t.Errorf("another tenant: %v", err)
	}
	r := must[api.Rule](t)(in.ApproveRule(t.Context(), second, made.Rule.ID))
	if r.State != ruleActive || r.ApprovedBy != second.Name || in.decides("a.example.com", "") != policy.Allow {
		t.Errorf("%+v", r)
	}
	if d := must[api.Denial](t)(in.Denial(t.Context(), in.admin(), d.ID)); d.State != api.Allowed {
		t.Errorf("%+v", d)
	}
	// So does a host that is new, though it is only read from: what is asked for can say anything. One that is allowed already needs one pair.
	only := "- {hosts: [b.example.com], methods: [GET]}"
	fresh := must[api.Decision](t)(in.decide(first, in.refuse("b.example.com"), api.Decide{Verdict: "allow", Scope: api.ForAgent, Widens: true, Rule: only}))
	if fresh.Rule.State != ruleProposed || len(fresh.Rule.Warnings) != 1 || fresh.Rule.Warnings[0].Kind != "destination" {
		t.Errorf("%+v", fresh.Rule)
	}
	must[api.Rule](t)(in.ApproveRule(t.Context(), second, fresh.Rule.ID))
	narrow := must[api.Decision](t)(in.decide(first, in.refuse("b.example.com"), api.Decide{Verdict: "allow", Scope: api.ForAgent, Rule: only}))
	if narrow.Rule.State != ruleActive {
		t.Errorf("%+v", narrow.Rule)
	}
	// A rule about something else than what was denied is no answer to it that one person gives.
	d = in.refuse("d.example.com")
	if _, err := in.decide(first, d, api.Decide{Verdict: "allow", Scope: api.ForAgent, Rule: only}); fault.KindOf(err) != fault.Invalid {
		t.Errorf("%v", err)
	}
	beside := must[api.Decision](t)(in.decide(first, d, api.Decide{Verdict: "allow", Scope: api.ForAgent, Rule: only, Widens: true}))
	if beside.Rule.State != ruleProposed || len(beside.Rule.Warnings) != 1 || beside.Rule.Warnings[0].Kind != "other" {
		t.Errorf("%+v", beside.Rule)
	}
	// Rejected ones never hold.
	other := must[api.Decision](t)(in.decide(first, in.refuse("c.example.com"), api.Decide{Verdict: "allow", Scope: api.ForAgent, Widens: true}))
	if r := must[api.Rule](t)(in.RevokeRule(t.Context(), second, other.Rule.ID)); r.State != ruleRejected || in.decides("c.example.com", "") != policy.Deny {
		t.Errorf("%+v", r)
	}
}

func TestApprovals(t *testing.T) {
	in := newInbox(t)
	spot := room{tenant: in.admin().Tenant, agent: in.agent.ID, sandbox: in.run.String()}
	ask := keeper.Ask{ID: "ask1", Protocol: "tls", Host: "a.example.com", Port: 443, Rule: "uploads", Created: in.clock.Now(), Deadline: in.clock.Now().Add(5 * time.Minute)}
	for range 2 { // a service that comes back hears of it again
		done(t, in.onAsk(t.Context(), spot, ask))
	}
	page := must[api.Page[api.Approval]](t)(in.Approvals(t.Context(), in.a[api.Viewer], true, Page{}))
	if len(page.Items) != 1 || page.Items[0].State != approvalWaiting || page.Items[0].Suggestion == nil {
		t.Fatalf("%+v", page.Items)
	}
	id := page.Items[0].ID
	for _, c := range []struct {
		name string
		a    Actor
		with api.Decide
		kind fault.Kind
	}{
		{"dismissed", in.admin(), api.Decide{Verdict: "dismiss"}, fault.Invalid},
		{"no scope", in.admin(), api.Decide{Verdict: "allow"}, fault.Invalid},
		{"a rule for once", in.admin(), api.Decide{Verdict: "allow", Scope: api.Once, Rule: "- {hosts: [a.com]}"}, fault.Invalid},
		{"a developer", in.a[api.Developer], api.Decide{Verdict: "allow", Scope: api.Once}, fault.Denied},
		{"another tenant", in.other(), api.Decide{Verdict: "allow", Scope: api.Once}, fault.NotFound},
	} {
		if _, err := in.DecideApproval(t.Context(), c.a, id, c.with); fault.KindOf(err) != c.kind {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	// Its sandbox has gone: the answer reaches nobody, and says so.
	if _, err := in.DecideApproval(t.Context(), in.admin(), id, api.Decide{Verdict: "allow", Scope: api.Once}); fault.KindOf(err) != fault.Conflict {
		t.Errorf("%v", err)
	}
	second := ask
	second.ID = "ask2"
	done(t, in.onAsk(t.Context(), spot, second))
	in.clock.forward(5 * time.Minute)
	done(t, in.onWithdrawn(t.Context(), spot, "ask2"))
	done(t, in.onWithdrawn(t.Context(), spot, "never there"))
	page = must[api.Page[api.Approval]](t)(in.Approvals(t.Context(), in.admin(), false, Page{}))
	if len(page.Items) != 2 || page.Items[0].State != approvalExpired {
		t.Errorf("%+v", page.Items)
	}
}

func TestCheckRule(t *testing.T) {
	in := newInbox(t)
	s := must[api.Suggestion](t)(in.CheckRule(t.Context(), in.a[api.Viewer], "builder", "- {hosts: [\"*.example.com\"]}"))
	if len(s.Warnings) != 3 || s.Reach == nil {
		t.Errorf("%+v", s)
	}
	if _, err := in.CheckRule(t.Context(), in.other(), in.agent.ID, "- {hosts: [a.com]}"); fault.KindOf(err) != fault.NotFound {
		t.Errorf("%v", err)
	}
	if _, err := in.CheckRule(t.Context(), in.admin(), "builder", "- {hosts: [a.com], unknown: 1}"); fault.KindOf(err) != fault.Invalid {
		t.Errorf("%v", err)
	}
}

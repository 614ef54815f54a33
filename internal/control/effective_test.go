package control

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/keeper"
	"github.com/cofferdam/cofferdam/internal/policy"
	"github.com/cofferdam/cofferdam/internal/store"
)

// decides asks the policy in force in a sandbox of an agent about destinations.
func (s *stage) decides(agent, sandbox, target string) string {
	s.t.Helper()
	o := must[store.Object[AgentData]](s.t)(s.agent(s.t.Context(), s.DB, s.admin().Tenant, agent))
	doc, _, err := s.effective(s.t.Context(), s.admin().Tenant, o, sandbox)
	done(s.t, err)
	law := must[*policy.Policy](s.t)(policy.Parse("", []byte(doc)))
	return law.Decide(must[policy.Crossing](s.t)(policy.ParseTarget(target))).Verdict.String()
}

func TestEffectiveRules(t *testing.T) {
	s, ctx := newStage(t), t.Context()
	agent := must[api.Agent](t)(s.CreateAgent(ctx, s.admin(), api.NewAgent{Name: "build", PolicyText: openPolicy}))
	s.rule(agent.ID, "allow", api.ForAgent, "", "- hosts: [all.example.com]\n  ports: [443]\n")
	s.rule(agent.ID, "allow", api.ForRun, "run1", "- hosts: [run.example.com]\n  ports: [443]\n")
	s.rule(agent.ID, "deny", api.ForAgent, "", "- hosts: [registry.example.com]\n  verdict: deny\n")
	once := s.rule(agent.ID, "allow", api.Once, "run1", "- hosts: [once.example.com]\n  ports: [443]\n")
	ends := s.rule(agent.ID, "allow", api.ForAgent, "", "- hosts: [ends.example.com]\n  ports: [443]\n")
	ends.Data.Until = s.now().Add(time.Hour)
	must[store.Object[RuleData]](t)(rules().Update(ctx, s.DB, ends))
	for state, host := range map[string]string{ruleProposed: "proposed", ruleUsed: "used", ruleExpired: "expired", ruleRevoked: "revoked", ruleRejected: "rejected"} {
		o := s.rule(agent.ID, "allow", api.ForAgent, "", "- hosts: ["+host+".example.com]\n  ports: [443]\n")
		o.State = state
		must[store.Object[RuleData]](t)(rules().Update(ctx, s.DB, o))
	}
	for _, c := range []struct{ sandbox, host, want string }{
		{"", "all", "allow"}, {"run1", "all", "allow"}, {"run2", "all", "allow"},
		{"", "run", "deny"}, {"run1", "run", "allow"}, {"run2", "run", "deny"},
		{"", "registry", "deny"}, {"run1", "registry", "deny"},
		{"", "once", "deny"}, {"run1", "once", "deny"},
		{"", "ends", "allow"},
		{"", "proposed", "deny"}, {"", "used", "deny"}, {"", "expired", "deny"}, {"", "revoked", "deny"}, {"", "rejected", "deny"}, {"", "other", "deny"},
	} {
		if got := s.decides(agent.ID, c.sandbox, c.host+".example.com:443"); got != c.want {
			t.Errorf("%s in sandbox %q: %s, want %s", c.host, c.sandbox, got, c.want)
		}
	}
	o := must[store.Object[AgentData]](t)(s.agent(ctx, s.DB, s.admin().Tenant, agent.ID))
	for sandbox, want := range map[string]int{"": 0, "run1": 1, "run2": 0} {
		_, list, err := s.effective(ctx, s.admin().Tenant, o, sandbox)
		if err != nil || len(list) != want || want == 1 && (list[0].ID != once.ID || list[0].Rule != once.Data.Rule) {
			t.Errorf("in sandbox %q the rules for one crossing are %v (%v)", sandbox, list, err)
		}
	}
	s.clock.forward(time.Hour)
	if got := s.decides(agent.ID, "", "ends.example.com:443"); got != "deny" {
		t.Errorf("a rule that has ended: %s", got)
	}
}

// TestEffectiveEnds: with a document come those that take its place as rules end, each as it will be composed then.
func TestEffectiveEnds(t *testing.T) {
	s, ctx := newStage(t), t.Context()
	agent := must[api.Agent](t)(s.CreateAgent(ctx, s.admin(), api.NewAgent{Name: "build", PolicyText: openPolicy}))
	until := func(host, verdict string, in time.Duration) {
		t.Helper()
		o := s.rule(agent.ID, verdict, api.ForAgent, "", "- hosts: ["+host+".example.com]\n  ports: [443]\n  verdict: "+verdict+"\n")
		if in > 0 {
			o.Data.Until = s.now().Add(in)
		}
		must[store.Object[RuleData]](t)(rules().Update(ctx, s.DB, o))
	}
	orders := func() orders {
		t.Helper()
		o := must[store.Object[AgentData]](t)(s.agent(ctx, s.DB, s.admin().Tenant, agent.ID))
		l, err := s.orders(ctx, s.admin().Tenant, o, "run1", "")
		done(t, err)
		return l
	}
	until("good", "allow", 0)
	if l := orders(); len(l.then) != 0 || !l.next().IsZero() {
		t.Errorf("without an end: %+v", l)
	}
	until("third", "allow", 3*time.Hour)
	until("first", "allow", time.Hour)
	until("second", "deny", 2*time.Hour)
	until("too", "allow", time.Hour)
	began, l := s.now(), orders()
	if len(l.then) != 3 || !l.next().Equal(began.Add(time.Hour)) {
		t.Fatalf("%+v", l)
	}
	for i, then := range l.then {
		s.clock.forward(time.Hour)
		now := orders()
		if !then.At.Equal(began.Add(time.Duration(i+1)*time.Hour)) || now.doc != then.Policy || len(now.then) != 2-i {
			t.Errorf("after end %d, at %v:\n%s\nwant\n%s", i+1, then.At, then.Policy, now.doc)
		}
	}
	// Too many ends: in the last document that a keeper has, nothing of what ends is allowed, and all of it refused.
	for i := range 2 * keeper.MaxLater {
		until(fmt.Sprintf("h%d", i), "allow", time.Duration(i+1)*time.Hour)
	}
	until("last", "deny", 100*time.Hour)
	l = orders()
	if len(l.then) != keeper.MaxLater {
		t.Fatalf("%d documents", len(l.then))
	}
	for i, then := range l.then {
		law := must[*policy.Policy](t)(policy.Parse("", []byte(then.Policy)))
		for host, want := range map[string]bool{"h15": i < keeper.MaxLater-1, "good": true, "last": false, fmt.Sprintf("h%d", i): false} {
			c := must[policy.Crossing](t)(policy.ParseTarget(host + ".example.com:443"))
			if got := law.Decide(c); (got.Verdict == policy.Allow) != want || host == "last" && got.Rule == policy.RuleDefault {
				t.Errorf("document %d, %s: %+v", i, host, got)
			}
		}
	}
}

// TestEffectiveFailsClosed: an allowance that does not go together with a later text is left out, a refusal is never.
func TestEffectiveFailsClosed(t *testing.T) {
	s, ctx := newStage(t), t.Context()
	agent := must[api.Agent](t)(s.CreateAgent(ctx, s.admin(), api.NewAgent{Name: "build", PolicyText: openPolicy}))
	s.rule(agent.ID, "allow", api.ForAgent, "", "- hosts: [good.example.com]\n  ports: [443]\n")
	s.rule(agent.ID, "allow", api.ForAgent, "", "- hosts: [\"*\"]\n")
	s.rule(agent.ID, "allow", api.ForAgent, "", "- hosts: [liar.example.com]\n  verdict: deny\n")
	if got := s.decides(agent.ID, "", "good.example.com:443"); got != "allow" {
		t.Errorf("a good rule beside bad ones: %s", got)
	}
	s.rule(agent.ID, "deny", api.ForAgent, "", "- hosts: [\"*\"]\n  verdict: deny\n")
	_, err := s.EffectivePolicy(ctx, s.admin(), agent.ID)
	says(t, err, fault.Conflict, "refusal")
}

// TestEffectiveText: a person's own text stays as it stands, and what an agent has besides comes below.
func TestEffectiveText(t *testing.T) {
	s, ctx := newStage(t), t.Context()
	must[api.Upstream](t)(s.CreateUpstream(ctx, s.admin(), api.Upstream{Name: "github", Type: "github", URL: "https://github.com"}))
	must[api.Profile](t)(s.CreateProfile(ctx, s.admin(), api.Profile{Name: "site", Text: "access: read # only\n", Paths: []api.GitPath{{Upstream: "github", Repository: "acme/site"}}}))
	for name, text := range map[string]string{
		"block":   openPolicy + "# the end\n",
		"comment": "# first\nversion: 1 # one\n",
		"no end":  "version: 1",
		"crlf":    strings.ReplaceAll(openPolicy, "\n", "\r\n"),
		"scalar":  "version: 1\ndescription: |+\n  some text\n\n",
		"flow":    "{version: 1, egress: {rules: [{name: registry, hosts: [registry.example.com], ports: [443]}]}}",
		"ended":   "version: 1\n...\n",
		"level":   "version: 1\nisolation:\n  level: container # weak\n",
		"empty":   "version: 1\nisolation:\n",
	} {
		agent, err := s.CreateAgent(ctx, s.admin(), api.NewAgent{Name: "a" + store.NewID(), PolicyText: text, Profiles: []string{"site"}, Isolation: "gvisor"})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		s.rule(agent.ID, "allow", api.ForAgent, "", "- hosts: [more.example.com]\n  ports: [443]\n")
		doc := must[string](t)(s.EffectivePolicy(ctx, s.admin(), agent.ID))
		law, err := policy.Parse("", []byte(doc))
		if err != nil {
			t.Errorf("%s: %v\n%s", name, err, doc)
			continue
		}
		own := must[*policy.Policy](t)(policy.Parse("", []byte(text)))
		if law.Isolation() != policy.GVisor || !law.ServesGit() || len(law.Rules()) != len(own.Rules())+1 {
			t.Errorf("%s: level %s, %d rules, git %t\n%s", name, law.Isolation(), len(law.Rules()), law.ServesGit(), doc)
		}
		if comment := strings.Contains(text, "#"); comment && !strings.Contains(doc, text[strings.Index(text, "#"):strings.Index(text, "#")+5]) {
			t.Errorf("%s: a comment is gone:\n%s", name, doc)
		}
		// Everything comes from the text: an agent with nothing besides has it as it is.
		plain := must[api.Agent](t)(s.CreateAgent(ctx, s.admin(), api.NewAgent{Name: "a" + store.NewID(), Policy: agent.Policy}))
		if got := must[string](t)(s.EffectivePolicy(ctx, s.admin(), plain.ID)); got != text {
			t.Errorf("%s: an agent without more has\n%s", name, got)
		}
	}
}

// TestStrongerWins: the stronger of the policy's level and the agent's own is in force, whichever changes.
func TestStrongerWins(t *testing.T) {
	s, ctx := newStage(t), t.Context()
	agent := must[api.Agent](t)(s.CreateAgent(ctx, s.admin(), api.NewAgent{Name: "build", PolicyText: "version: 1\n", Isolation: "container"}))
	text := "version: 1\nisolation: {level: gvisor}\n"
	must[api.Policy](t)(s.ChangePolicy(ctx, s.admin(), agent.Policy, 0, api.PolicyChange{Text: &text}))
	law := must[*policy.Policy](t)(policy.Parse("", []byte(must[string](t)(s.EffectivePolicy(ctx, s.admin(), agent.ID)))))
	if law.Isolation() != policy.GVisor {
		t.Errorf("in force: %s", law.Isolation())
	}
	for text, want := range map[string]string{ // what else the section says stays, but for a platform of the weaker level
		"isolation: {minimum: container, image: \"registry.example.org/tools:1\"}\n": "registry.example.org/tools:1",
		"isolation: {level: gvisor, platform: kvm}\n":                                "",
	} {
		agent := must[api.Agent](t)(s.CreateAgent(ctx, s.admin(), api.NewAgent{Name: "a" + store.NewID(), PolicyText: "version: 1\n" + text, Isolation: "vm"}))
		law := must[*policy.Policy](t)(policy.Parse("", []byte(must[string](t)(s.EffectivePolicy(ctx, s.admin(), agent.ID)))))
		if law.Isolation() != policy.VM || law.Image() != want || law.Platform() != 0 {
			t.Errorf("%s: level %s, platform %s, image %q", text, law.Isolation(), law.Platform(), law.Image())
		}
	}
	weak := "container"
	_, err := s.ChangeAgent(ctx, s.admin(), agent.ID, 0, api.AgentChange{Isolation: &weak})
	says(t, err, fault.Invalid, "weaker")
}

func TestManyRules(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a while")
	}
	s, ctx := newStage(t), t.Context()
	agent := must[api.Agent](t)(s.CreateAgent(ctx, s.admin(), api.NewAgent{Name: "build", PolicyText: openPolicy}))
	const many = 200
	for i := range many {
		s.rule(agent.ID, "allow", api.ForAgent, "", fmt.Sprintf("- hosts: [h%d.example.com]\n  ports: [443]\n", i))
	}
	start := time.Now()
	doc := must[string](t)(s.EffectivePolicy(ctx, s.admin(), agent.ID))
	took := time.Since(start)
	t.Logf("%d rules: %s", many, took)
	law := must[*policy.Policy](t)(policy.Parse("", []byte(doc)))
	names := map[string]bool{}
	for _, r := range law.Rules() {
		names[r.Name] = true
	}
	if len(names) != many+1 {
		t.Errorf("%d rules", len(names))
	}
}

func TestGit(t *testing.T) {
	s, ctx := newStage(t), t.Context()
	_, err := s.CreateUpstream(ctx, s.admin(), api.Upstream{Name: "github", Type: "github", URL: "https://github.com", Credential: "gh"})
	says(t, err, fault.Invalid, "no credential gh")
	must[api.Credential](t)(s.CreateCredential(ctx, s.admin(), api.NewCredential{Name: "gh", Hosts: []string{"github.com"}, User: "x-access-token", Values: map[string]string{"value": "s3cret-value"}}))
	up := must[api.Upstream](t)(s.CreateUpstream(ctx, s.admin(), api.Upstream{Name: "github", Type: "github", URL: "https://github.com", Credential: "gh"}))
	for _, bad := range []api.Upstream{
		{Name: "a.b", URL: "https://a.example"}, {Name: "x", URL: "http://a.example"}, {Name: "x", URL: "https://u:p@a.example"}, {Name: "x", Type: "svn", URL: "https://a.example"},
		{Name: "x", URL: "https://a.example", Credential: "../x"}, {Name: "x", URL: "https://a.example\nprofiles: []"}, {Name: "github", URL: "https://a.example"}, {},
	} {
		if _, err := s.CreateUpstream(ctx, s.admin(), bad); fault.KindOf(err) != fault.Invalid && fault.KindOf(err) != fault.Conflict || fault.HintOf(err) == "" {
			t.Errorf("%+v: %v", bad, err)
		}
	}
	write := "access: write\nrules:\n  - {branches: [main], allow: []}\n  - {branches: [\"agent/**\"], allow: [create, update]}\n"
	profile := must[api.Profile](t)(s.CreateProfile(ctx, s.admin(), api.Profile{Name: "agents", Text: write, Paths: []api.GitPath{{Upstream: up.ID, Repository: "acme/site"}, {Upstream: "github", Expression: "acme/lib-[a-z]+"}}}))
	if profile.Paths[0].Upstream != "github" || profile.Agents != 0 {
		t.Errorf("%+v", profile)
	}
	path := []api.GitPath{{Upstream: "github", Repository: "acme/site"}}
	for _, bad := range []api.Profile{
		{Name: "read", Text: "access: read\n"}, {Name: "x", Text: "access: all\n", Paths: path}, {Name: "x", Text: "name: y\naccess: read\n"}, {Name: "x", Text: "- a\n"}, {Name: "x", Text: ""},
		{Name: "x", Text: "access: read\n", Paths: []api.GitPath{{Upstream: "github"}}}, {Name: "x", Text: "access: read\n", Paths: []api.GitPath{{Upstream: "github", Expression: "("}}},
		{Name: "x", Text: "access: read\n", Paths: []api.GitPath{{Upstream: "github", Repository: "a/b", Expression: "c"}}}, {Name: "x", Text: "access: read\n---\naccess: write\n"},
		{Name: "x", Text: "access: read\rmounts: []\n"}, {Name: "x", Text: "&a access: read\n"}, {Name: "x", Text: "access: read\nrules: []\n"}, {Name: "agents", Text: "access: read\n"},
	} {
		if _, err := s.CreateProfile(ctx, s.admin(), bad); fault.KindOf(err) != fault.Invalid && fault.KindOf(err) != fault.Conflict {
			t.Errorf("%+v: %v", bad, err)
		}
	}
	_, err = s.CreateProfile(ctx, s.admin(), api.Profile{Name: "x", Text: "access: read\n", Paths: []api.GitPath{{Upstream: "gitlab", Repository: "a/b"}}})
	says(t, err, fault.NotFound, "no such Git server")

	agent := must[api.Agent](t)(s.CreateAgent(ctx, s.admin(), api.NewAgent{Name: "build", PolicyText: openPolicy, Profiles: []string{"agents", profile.ID}}))
	if !slices.Equal(agent.Profiles, []string{profile.ID}) {
		t.Errorf("profiles %v", agent.Profiles)
	}
	explain := func(repository, ref string) string {
		t.Helper()
		all := must[[]api.Explanation](t)(s.Explain(ctx, s.admin(), api.ExplainRequest{Target: "git:github/" + repository, Ref: ref, Agent: "build"}))
		var verdicts []string
		for _, e := range all {
			verdicts = append(verdicts, e.Verdict)
		}
		return strings.Join(verdicts, " ")
	}
	for _, c := range []struct{ repository, ref, want string }{
		{"acme/site", "", "allow allow"}, {"acme/lib-x", "", "allow allow"}, {"acme/other", "", "deny deny"}, {"acme/site", "refs/heads/main", "deny deny deny deny deny"},
		{"acme/site", "refs/heads/agent/x", "allow allow deny deny deny"},
	} {
		if got := explain(c.repository, c.ref); got != c.want {
			t.Errorf("%s %s: %s, want %s", c.repository, c.ref, got, c.want)
		}
	}
	says(t, s.DeleteProfile(ctx, s.admin(), "agents"), fault.Conflict, "1 agents")
	says(t, s.DeleteUpstream(ctx, s.admin(), "github"), fault.Conflict, "agents")
	if c := must[api.Credential](t)(s.Credential(ctx, s.admin(), "gh")); !slices.Equal(c.UsedBy, []string{"git:github"}) {
		t.Errorf("used by %q", c.UsedBy)
	}

	renamed := up
	renamed.Name = "hub"
	must[api.Upstream](t)(s.ChangeUpstream(ctx, s.admin(), up.ID, up.Version, renamed))
	if list := must[[]api.Profile](t)(s.Profiles(ctx, s.admin())); list[0].Paths[0].Upstream != "hub" || list[0].Agents != 1 {
		t.Errorf("%+v", list)
	}
	profile.Text, profile.Paths = "access: read\n", []api.GitPath{{Upstream: "hub", Repository: "acme/site"}}
	must[api.Profile](t)(s.ChangeProfile(ctx, s.admin(), profile.ID, profile.Version, profile))
	got := must[[]api.Explanation](t)(s.Explain(ctx, s.admin(), api.ExplainRequest{Target: "git:hub/acme/site", Agent: "build"}))
	if got[0].Verdict != "allow" || got[1].Verdict != "deny" {
		t.Errorf("after the change: %+v", got)
	}
}

// TestGitTogether: what does not go together is refused when it is put together, whichever side changes.
func TestGitTogether(t *testing.T) {
	s, ctx := newStage(t), t.Context()
	own := "version: 1\ngit:\n  upstreams:\n    - {name: hub, type: github, url: https://github.com}\n"
	up := must[api.Upstream](t)(s.CreateUpstream(ctx, s.admin(), api.Upstream{Name: "github", Type: "github", URL: "https://github.com"}))
	must[api.Upstream](t)(s.CreateUpstream(ctx, s.admin(), api.Upstream{Name: "again", Type: "github", URL: "https://github.com"}))
	path := func(up, repository string) []api.GitPath {
		return []api.GitPath{{Upstream: up, Repository: repository}}
	}
	one := must[api.Profile](t)(s.CreateProfile(ctx, s.admin(), api.Profile{Name: "one", Text: "access: read\n", Paths: path("github", "acme/site")}))
	two := must[api.Profile](t)(s.CreateProfile(ctx, s.admin(), api.Profile{Name: "two", Text: "access: read\n", Paths: path("github", "acme/site")}))
	three := must[api.Profile](t)(s.CreateProfile(ctx, s.admin(), api.Profile{Name: "three", Text: "access: read\n", Paths: path("again", "acme/other")}))

	_, err := s.CreateAgent(ctx, s.admin(), api.NewAgent{Name: "x", PolicyText: own, Profiles: []string{"one"}})
	says(t, err, fault.Conflict, "section git of its own")
	_, err = s.CreateAgent(ctx, s.admin(), api.NewAgent{Name: "x", PolicyText: openPolicy, Profiles: []string{"one", "two"}})
	says(t, err, fault.Conflict, "about the same")
	_, err = s.CreateAgent(ctx, s.admin(), api.NewAgent{Name: "x", PolicyText: openPolicy, Profiles: []string{"one", "three"}})
	says(t, err, fault.Conflict, "same repositories")

	agent := must[api.Agent](t)(s.CreateAgent(ctx, s.admin(), api.NewAgent{Name: "build", PolicyText: openPolicy, Profiles: []string{"one"}}))
	_, err = s.ChangeAgent(ctx, s.admin(), agent.ID, 0, api.AgentChange{Profiles: &[]string{"one", "two"}})
	says(t, err, fault.Conflict, "about the same")
	_, err = s.ChangePolicy(ctx, s.admin(), agent.Policy, 0, api.PolicyChange{Text: &own})
	says(t, err, fault.Conflict, "agent build: the policy has a section git of its own")
	elsewhere := one
	elsewhere.Paths = append(path("github", "acme/site"), path("again", "acme/x")...)
	_, err = s.ChangeProfile(ctx, s.admin(), one.ID, 0, elsewhere)
	wants(t, err, fault.Invalid) // the two servers do not go together whoever has the profile
	two.Paths = path("github", "acme/other")
	must[api.Profile](t)(s.ChangeProfile(ctx, s.admin(), two.ID, 0, two))
	must[api.Agent](t)(s.ChangeAgent(ctx, s.admin(), agent.ID, 0, api.AgentChange{Profiles: &[]string{"one", "two"}}))
	two.Paths = path("github", "acme/site")
	_, err = s.ChangeProfile(ctx, s.admin(), two.ID, 0, two)
	says(t, err, fault.Conflict, "agent build")
	moved := up
	moved.URL, moved.Type = "https://git.example.com", "plain"
	must[api.Upstream](t)(s.ChangeUpstream(ctx, s.admin(), up.ID, 0, moved))
	must[api.Agent](t)(s.ChangeAgent(ctx, s.admin(), agent.ID, 0, api.AgentChange{Profiles: &[]string{"one", "three"}}))
	moved.URL, moved.Type = "https://github.com", "github"
	_, err = s.ChangeUpstream(ctx, s.admin(), up.ID, 0, moved)
	says(t, err, fault.Conflict, "agent build")
	done(t, s.DeleteAgent(ctx, s.admin(), agent.ID))
	for _, p := range []api.Profile{one, two, three} {
		done(t, s.DeleteProfile(ctx, s.admin(), p.ID))
	}
	done(t, s.DeleteUpstream(ctx, s.admin(), "github"))
}

package review

import (
	"slices"
	"strings"
	"testing"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/audit"
	"github.com/cofferdam/cofferdam/internal/policy"
)

func parse(t *testing.T, text string) *policy.Policy {
	t.Helper()
	p, err := policy.Parse("test", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func denial(change func(*audit.Event)) *audit.Event {
	e := &audit.Event{Kind: audit.CrossingDecided, Verdict: "deny", Rule: "default", Protocol: "tls", Host: "api.example.com", Port: 443}
	change(e)
	return e
}

// TestSuggest holds suggestions to what they promise: the narrowest rule, which allows the crossing that was denied and, beside it, not its neighbour.
func TestSuggest(t *testing.T) {
	for _, c := range []struct {
		name, base string
		event      *audit.Event
		want       string // "" if none
		neighbour  *audit.Event
	}{
		{"connection", "version: 1\n", denial(func(*audit.Event) {}), "- name: api.example.com\n  hosts: [api.example.com]\n  ports: [443]\n",
			denial(func(e *audit.Event) { e.Port = 8443 })},
		{"name", "version: 1\n", denial(func(e *audit.Event) { e.Protocol, e.Port = "dns", 0 }), "- name: api.example.com\n  hosts: [api.example.com]\n  ports: [443, 80]\n",
			denial(func(e *audit.Event) { e.Host = "other.example.com" })},
		{"request", "version: 1\negress:\n  rules:\n    - {hosts: [api.example.com], methods: [GET], paths: [/public/]}\n",
			denial(func(e *audit.Event) { e.Protocol, e.Method, e.Path = "https", "POST", "/private" }),
			"- name: api.example.com\n  hosts: [api.example.com]\n  ports: [443]\n  methods: [POST]\n  paths: [\"/private\"]\n",
			denial(func(e *audit.Event) { e.Protocol, e.Method, e.Path = "https", "DELETE", "/private" })},
		{"public address", "version: 1\n", denial(func(e *audit.Event) { e.Host, e.Address, e.Protocol, e.Port = "", "9.9.9.9", "tcp", 5432 }),
			"- name: 9.9.9.9-32\n  networks: [\"9.9.9.9/32\"]\n  ports: [5432]\n  protocol: tcp\n", denial(func(e *audit.Event) { e.Host, e.Address, e.Protocol, e.Port = "", "9.9.9.10", "tcp", 5432 })},
		{"request to an address", "version: 1\negress: {default: ask}\n", denial(func(e *audit.Event) {
			e.Host, e.Address, e.Protocol, e.Port, e.Method, e.Path = "", "9.9.9.9", "http", 80, "GET", "/x"
		}),
			"- name: 9.9.9.9-32\n  networks: [\"9.9.9.9/32\"]\n  ports: [80]\n", nil},
		{"private mirror", "version: 1\negress:\n  rules:\n    - {hosts: [api.example.com]}\n",
			denial(func(e *audit.Event) { e.Rule, e.Address = policy.RuleSpecialAddress, "10.2.3.4" }), "networks: [\"10.2.3.0/24\"]\n", nil},
		{"denied by a rule", "version: 1\negress:\n  rules:\n    - {hosts: [api.example.com], verdict: deny}\n", denial(func(*audit.Event) {}), "", nil},
		{"udp", "version: 1\n", denial(func(e *audit.Event) { e.Protocol, e.Rule = "udp", policy.RuleUDPClosed }), "", nil},
		{"hostile name", "version: 1\n", denial(func(e *audit.Event) { e.Host = "a.com]\n  verdict: allow" }), "", nil},
		{"cut path", "version: 1\n", denial(func(e *audit.Event) { e.Protocol, e.Method, e.Path = "https", "GET", "/a/../b" }), "", nil},
	} {
		p := parse(t, c.base)
		s, ok := Suggest(p, c.event)
		if !ok {
			if c.want != "" {
				t.Errorf("%s: no suggestion, want %q", c.name, c.want)
			}
			continue
		}
		if s.String() != c.want {
			t.Errorf("%s: %q, want %q", c.name, s.String(), c.want)
		}
		again, err := policy.ParseSnippet(s.String())
		if err != nil || again.String() != s.String() {
			t.Errorf("%s: read back as %q, %v", c.name, again.String(), err)
			continue
		}
		doc, err := policy.AppendSnippet([]byte(c.base), again)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		after := parse(t, string(doc))
		if crossing, ok := policy.CrossingOf(c.event); ok && c.event.Protocol != "dns" && after.Decide(crossing).Verdict != policy.Allow {
			t.Errorf("%s: the suggestion does not allow it", c.name)
		}
		if c.neighbour != nil {
			if crossing, ok := policy.CrossingOf(c.neighbour); !ok || after.Decide(crossing).Verdict == policy.Allow {
				t.Errorf("%s: the suggestion allows its neighbour too, or that is no crossing (%v)", c.name, ok)
			}
		}
	}
}

func TestWarnings(t *testing.T) {
	p := parse(t, `version: 1
egress:
  rules:
    - {hosts: [old.example.org, "*.wide.example.org"], methods: [GET]}
    - {networks: [9.8.7.0/24], ports: [80], protocol: tcp}
    - {hosts: [asked.example.org], verdict: ask}
    - {hosts: [docs.example.org], verdict: deny}
credentials:
  - {use: forge, hosts: ["*.example.com"], paths: [/repos/], header: Authorization}
`)
	for _, c := range []struct {
		rule string
		want []string
	}{
		{"- {hosts: [docs.example.org], methods: [GET]}", []string{"destination"}},
		{"- {hosts: [old.example.org, x.wide.example.org], methods: [GET]}", nil},
		{"- {hosts: [asked.example.org], methods: [GET]}", []string{"destination"}},
		{"- {hosts: [\"*.old.example.org\"], methods: [GET]}", []string{"destination", "wildcard"}},
		{"- {networks: [9.8.7.0/25], ports: [80], protocol: tcp}", []string{"opaque", "wildcard"}},
		{"- {networks: [9.8.0.0/16], ports: [80], protocol: tcp}", []string{"destination", "opaque", "wildcard"}},
		{"- {hosts: [docs.example.org], methods: [GET, POST]}", []string{"destination", "write"}},
		{"- {hosts: [docs.example.org]}", []string{"destination", "write"}},
		{"- {hosts: [docs.example.org], verdict: deny}", nil},
		{"- {hosts: [api.example.com], methods: [GET]}", []string{"credential", "destination"}},
		{"- {hosts: [\"*.api.example.com\"], methods: [GET]}", []string{"credential", "destination", "wildcard"}},
		{"- {hosts: [db.example.org], ports: [5432], protocol: tcp}", []string{"destination", "opaque"}},
		{"- {networks: [9.9.0.0/16], ports: [853], protocol: tcp}", []string{"destination", "opaque", "wildcard"}},
		{"- {networks: [10.0.0.0/8], ports: [80]}", []string{"destination", "private-network", "write"}},
		{"networks: [10.2.3.0/24]", []string{"private-network"}},
	} {
		s, err := policy.ParseSnippet(c.rule)
		if err != nil {
			t.Errorf("%s: %v", c.rule, err)
			continue
		}
		var kinds []string
		for _, w := range Warnings(p, s) {
			kinds = append(kinds, w.Kind)
		}
		slices.Sort(kinds)
		if !slices.Equal(kinds, c.want) {
			t.Errorf("%s: %v, want %v", c.rule, kinds, c.want)
		}
	}
}

func TestKey(t *testing.T) {
	same := func(*audit.Event) {}
	for _, c := range []struct {
		name   string
		a, b   func(*audit.Event)
		agents [2]string
		equal  bool
	}{
		{"the same", same, func(e *audit.Event) { e.Seq, e.Process = 7, "curl" }, [2]string{"x", "x"}, true},
		{"another agent", same, same, [2]string{"x", "y"}, false},
		{"another port", same, func(e *audit.Event) { e.Port = 80 }, [2]string{"x", "x"}, false},
		{"another rule", same, func(e *audit.Event) { e.Rule = "never" }, [2]string{"x", "x"}, true},
		{"parts run together", func(e *audit.Event) { e.Method, e.Path = "GET", "/a" }, func(e *audit.Event) { e.Method, e.Path = "GET/", "a" }, [2]string{"x", "x"}, false},
	} {
		a, b := Key(c.agents[0], denial(c.a)), Key(c.agents[1], denial(c.b))
		if (a == b) != c.equal {
			t.Errorf("%s: %s and %s", c.name, a, b)
		}
	}
}

func TestWords(t *testing.T) {
	for _, c := range []struct {
		place      api.Place
		where, how string
	}{
		{api.Place{Protocol: "tls", Host: "a.example.com", Port: 443}, "a.example.com:443", "connect (tls)"},
		{api.Place{Protocol: "tcp", Address: "2001:db8::1", Port: 22}, "[2001:db8::1]:22", "connect (tcp)"},
		{api.Place{Protocol: "dns", Host: "a.example.com"}, "a.example.com", "look up the name"},
		{api.Place{Protocol: "https", Host: "a.example.com", Port: 443, Method: "GET", Path: "/x"}, "a.example.com:443", "GET /x"},
		{api.Place{Protocol: "git", Host: "f", Repository: "forge/acme/site", Refs: []string{"update refs/heads/main"}}, "forge/acme/site", "push update refs/heads/main"},
		{api.Place{Protocol: "tcp"}, "many destinations", "connect (tcp)"},
	} {
		if got := Destination(c.place); got != c.where {
			t.Errorf("%+v: %q, want %q", c.place, got, c.where)
		}
		if got := Operation(c.place); got != c.how {
			t.Errorf("%+v: %q, want %q", c.place, got, c.how)
		}
	}
}

// TestSnippetIsStrict refuses what would change more than a reviewer sees.
func TestSnippetIsStrict(t *testing.T) {
	for _, text := range []string{
		"", "null", "- ", "[]", "{}", "rules: []", "default: ask\nrules: [{hosts: [a.com]}]", "- {hosts: [a.com], unknown: 1}", "- {hosts: ['*']}",
		"- {hosts: [a.com]}\ncredentials: []", "- {hosts: [a.com]}\n--- \n- {hosts: [b.com]}", "- hosts: [a.com]\nrules: x", "&a [{hosts: [a.com]}]",
		"- {hosts: [a.com]}\nversion: 1", "- {hosts: [a.com]}\rcredentials:\r  - {use: x, hosts: [a.com]}", "- {hosts: [a.com]}\u0085environment: {A: b}", strings.Repeat("- {hosts: [a.com]}\n", 2000),
	} {
		if s, err := policy.ParseSnippet(text); err == nil {
			t.Errorf("%.60q was read as %q", text, s.String())
		}
	}
}

// TestRefusal: what is denied for good closes what was denied, and nothing of the host that policy allows besides.
func TestRefusal(t *testing.T) {
	p := parse(t, "version: 1\negress:\n  rules:\n    - {hosts: [api.example.com], methods: [GET, POST], paths: [/open, /closed]}\n")
	for _, c := range []struct {
		name string
		e    *audit.Event
		want string
		open bool // may GET /open still pass
	}{
		{"a request", denial(func(e *audit.Event) { e.Protocol, e.Method, e.Path = "https", "POST", "/closed" }), "methods: [POST]", true},
		{"a connection", denial(func(*audit.Event) {}), "ports: [443]", false},
		{"a name", denial(func(e *audit.Event) { e.Protocol, e.Port = "dns", 0 }), "hosts: [api.example.com]", false},
	} {
		r, ok := Refusal(c.e)
		snippet := policy.Snippet{Rules: []policy.Rule{r}}
		if again, err := policy.ParseSnippet(snippet.String()); !ok || err != nil || again.String() != snippet.String() || !strings.Contains(snippet.String(), c.want) {
			t.Errorf("%s: %t, %v\n%s", c.name, ok, err, snippet.String())
		}
		crossing, _ := policy.CrossingOf(c.e)
		if d := p.With(r).Decide(crossing); d.Verdict != policy.Deny || d.Rule != r.Name {
			t.Errorf("%s: it is not denied: %+v", c.name, d)
		}
		get, _ := policy.CrossingOf(denial(func(e *audit.Event) { e.Protocol, e.Method, e.Path = "https", "GET", "/open" }))
		if d := p.With(r).Decide(get); (d.Verdict == policy.Allow) != c.open {
			t.Errorf("%s: what else was allowed: %+v", c.name, d)
		}
	}
}

// TestCovers: a rule that a person wrote is held against what it was written for.
func TestCovers(t *testing.T) {
	mirror := denial(func(e *audit.Event) { e.Rule, e.Address = policy.RuleSpecialAddress, "10.2.3.4" })
	request := denial(func(e *audit.Event) { e.Protocol, e.Method, e.Path = "https", "POST", "/x" })
	for _, c := range []struct {
		name, rule string
		e          *audit.Event
		want       bool
	}{
		{"the host", "- {hosts: [api.example.com]}", request, true},
		{"another host", "- {hosts: [evil.example.com]}", request, false},
		{"another method", "- {hosts: [api.example.com], methods: [GET]}", request, false},
		{"a connection, requests judged later", "- {hosts: [api.example.com], methods: [GET]}", denial(func(*audit.Event) {}), true},
		{"a name", "- {hosts: [api.example.com]}", denial(func(e *audit.Event) { e.Protocol, e.Port = "dns", 0 }), true},
		{"no network", "- {hosts: [api.example.com]}", mirror, false},
		{"with its network", "{networks: [10.2.3.0/24], rules: [{hosts: [api.example.com]}]}", mirror, true},
	} {
		s, err := policy.ParseSnippet(c.rule)
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		doc, err := policy.AppendSnippet([]byte("version: 1\n"), s)
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		if got := Covers(parse(t, string(doc)), c.e); got != c.want {
			t.Errorf("%s: %t", c.name, got)
		}
	}
}

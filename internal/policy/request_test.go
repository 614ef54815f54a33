package policy

import (
	"fmt"
	"strings"
	"testing"

	"github.com/cofferdam/cofferdam/internal/netname"
)

const requests = `version: 1
egress:
  rules:
    - {name: read, hosts: [api.example.com], ports: [443], methods: [GET, HEAD]}
    - {name: own, hosts: [api.example.com], ports: [443, 80], methods: [POST], paths: [/repos/acme/, /graphql]}
    - {name: keys, hosts: [api.example.com], ports: [443], paths: [/user/keys/], verdict: deny}
    - {name: npm, hosts: [npm.example.com], paths: [/@acme/, "/@acme%2F"]}
    - {name: pinned, hosts: [pinned.example.com], tls: tunnel}
    - {name: looked, hosts: [looked.example.com], tls: inspect}
    - {name: plain, hosts: [plain.example.com]}
    - {name: some, hosts: [some.example.com], methods: [PUT], verdict: ask}
credentials:
  - {use: github, hosts: [api.example.com], paths: [/repos/acme/], methods: [GET, POST], env: GITHUB_TOKEN}
  - {use: key, hosts: [api.example.com], header: x-api-key}
  - {use: alone, hosts: [alone.example.com], ports: [8443]}
`

// request is a crossing "METHOD HOST:PORT/PATH" inside TLS, or with http: in front in the clear.
func request(t testing.TB, text string) Crossing {
	t.Helper()
	method, rest, _ := strings.Cut(text, " ")
	place, path, _ := strings.Cut(rest, "/")
	protocol := "https "
	if after, ok := strings.CutPrefix(method, "http:"); ok {
		protocol, method = "http ", after
	}
	c := crossing(t, protocol+place)
	p, err := netname.NormalisePath("/" + path)
	if err != nil {
		t.Fatal(err)
	}
	c.Method, c.Path = method, p.String()
	return c
}

func TestDecideRequests(t *testing.T) {
	p := mustParse(t, requests)
	for _, test := range []struct{ request, want string }{
		{"GET api.example.com:443/anything", "allow read"},
		{"POST api.example.com:443/anything", "deny default"},
		{"POST api.example.com:443/repos/acme/site", "allow own"},
		{"POST api.example.com:443/repos/acme", "deny default"},
		{"POST api.example.com:443/repos/acmevil/x", "deny default"},
		{"POST api.example.com:443/repos%2Facme/x", "deny default"},
		{"POST api.example.com:443/repos/acme%2Fx", "deny default"},
		{"POST api.example.com:443/repos/acme/a%2Fb", "allow own"},
		{"POST api.example.com:443/%72epos/acme/site", "allow own"},
		{"POST api.example.com:443/graphql", "allow own"},
		{"POST api.example.com:443/graphql/x", "deny default"},
		{"http:POST api.example.com:80/graphql", "allow own"},
		{"http:GET api.example.com:80/graphql", "deny default"},
		{"GET api.example.com:443/user/keys/1", "deny keys"},
		{"GET api.example.com:443/user/%6beys/1", "deny keys"},
		{"GET api.example.com:443/user%2Fkeys/1", "deny keys"},
		{"GET api.example.com:443/user/keys%2F1", "deny keys"},
		{"GET npm.example.com:443/@acme%2fcore", "allow npm"},
		{"GET npm.example.com:443/@acme/core", "allow npm"},
		{"GET npm.example.com:443/@evil%2fcore", "deny default"},
		{"PUT some.example.com:443/x", "ask some"},
		{"GET some.example.com:443/x", "deny default"},
		{"DELETE plain.example.com:443/x", "allow plain"},
	} {
		d := p.Decide(request(t, test.request))
		if got := d.Verdict.String() + " " + d.Rule; got != test.want {
			t.Errorf("%s: %s (%s), want %s", test.request, got, d.Reason, test.want)
		}
	}
	for text, want := range map[string]string{ // connections, which requests would come over
		"tls api.example.com:443": "allow read", "http api.example.com:80": "allow own", "tls some.example.com:443": "ask some", "dns npm.example.com:0": "allow npm",
		"tls alone.example.com:8443": "deny default", "tls plain.example.com:443": "allow plain",
	} {
		if d := p.Decide(crossing(t, text)); d.Verdict.String()+" "+d.Rule != want {
			t.Errorf("%s: %+v, want %s", text, d, want)
		}
	}
	if flag := p.AllowFlag(request(t, "DELETE api.example.com:443/x")); flag != "" {
		t.Errorf("a flag that would open every request is offered: %s", flag)
	}
}

func TestInspects(t *testing.T) {
	p := mustParse(t, requests)
	for text, want := range map[string]string{
		"api.example.com:443": "true true true", "api.example.com:80": "true true true", "api.example.com:8443": "false false false", "npm.example.com:443": "true true false",
		"pinned.example.com:443": "false false false", "looked.example.com:443": "true false false", "plain.example.com:443": "false false false",
		"some.example.com:443": "true false true", "alone.example.com:8443": "true false false", "alone.example.com:443": "false false false",
	} {
		c := crossing(t, "tls "+text)
		if got := fmt.Sprint(p.Inspects(c.Host, c.Port), p.JudgesPaths(c.Host, c.Port), p.JudgesMethods(c.Host, c.Port)); got != want {
			t.Errorf("%s: %s, want %s", text, got, want)
		}
	}
	opened := p.With(Rule{Name: "--allow tcp:api.example.com:443", Verdict: Allow, Wire: WireTCP, Hosts: p.Rules()[0].Hosts, Ports: []uint16{443}})
	if opened.Opaque(crossing(t, "tcp api.example.com:443")) {
		t.Error("a flag turns inspection off")
	}
}

func TestLends(t *testing.T) {
	p := mustParse(t, requests)
	for text, want := range map[string]string{
		"GET api.example.com:443/repos/acme/x": "github key", "DELETE api.example.com:443/repos/acme/x": "key", "GET api.example.com:443/repos/acme%2Fx": "key",
		"GET api.example.com:443/other": "key", "GET api.example.com:8443/repos/acme/x": "", "http:GET api.example.com:80/repos/acme/x": "",
		"GET evil.api.example.com:443/repos/acme/x": "", "GET alone.example.com:8443/": "alone",
	} {
		var names []string
		for _, c := range p.Lends(request(t, text)) {
			names = append(names, c.Use)
		}
		if got := strings.Join(names, " "); got != want {
			t.Errorf("%s: %q, want %q", text, got, want)
		}
	}
	connection := crossing(t, "https api.example.com:443")
	if all := p.Lends(connection); len(all) > 0 {
		t.Errorf("a connection without a request is lent %v", all)
	}
	if all := (*Policy)(nil).Credentials(); len(all) > 0 || len((&Policy{}).Bound("api.example.com", 443)) > 0 {
		t.Error("no policy lends")
	}
	if c := p.Credentials(); len(c) != 3 || c[0].Header != "Authorization" || c[1].Header != "X-Api-Key" || c[0].Line != 13 || c[0].Env != "GITHUB_TOKEN" {
		t.Errorf("credentials %+v", c)
	}
}

func TestExtendLends(t *testing.T) {
	p := mustParse(t, requests)
	hosts := []netname.Pattern{netname.Exact("pinned.example.com")}
	fine := Credential{Use: "x", Hosts: []netname.Pattern{netname.Exact("new.example.com")}, Ports: []uint16{443}, Header: "Authorization"}
	if q, err := p.Extend(Options{Credentials: []Credential{fine}}); err != nil || len(q.Credentials()) != 4 || len(p.Credentials()) != 3 {
		t.Errorf("%v", err)
	}
	for name, c := range map[string]Credential{
		"zero": {}, "tunnel": {Use: "x", Hosts: hosts, Ports: []uint16{443}, Header: "Authorization"}, "case": {Use: "x", Hosts: fine.Hosts, Ports: fine.Ports, Header: "x-key"},
		"method": {Use: "x", Hosts: fine.Hosts, Ports: fine.Ports, Header: "X-Key", Methods: []string{"get"}},
	} {
		if _, err := p.Extend(Options{Credentials: []Credential{c}}); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := p.Extend(Options{Rules: []Rule{{Name: "t", Verdict: Allow, Wire: WireTCP, Hosts: fine.Hosts, Ports: []uint16{443}}}, Credentials: []Credential{fine}}); err == nil {
		t.Error("bytes pass unread where a credential is lent")
	}
}

func TestNarrowRequests(t *testing.T) {
	ceiling := mustParse(t, requests)
	for repository, want := range map[string]string{
		"egress: {rules: [{hosts: [api.example.com], ports: [443], methods: [GET], paths: [/a/]}]}":            "",
		"egress: {rules: [{hosts: [plain.example.com], methods: [GET]}]}":                                      "",
		"egress: {rules: [{hosts: [api.example.com], ports: [443]}]}":                                          "does not allow api.example.com",
		"egress: {rules: [{hosts: [api.example.com], ports: [443], methods: [POST]}]}":                         "does not allow api.example.com",
		"egress: {rules: [{hosts: [api.example.com], ports: [443], methods: [POST], paths: [/repos/acme/x]}]}": "",
		"egress: {rules: [{hosts: [looked.example.com], tls: tunnel}]}":                                        "passes bytes through unread",
		"egress: {rules: [{hosts: [api.example.com], ports: [443], methods: [GET], tls: tunnel}]}":             "nobody reads",
		"credentials: [{use: github, hosts: [evil.example.com]}]":                                              "cannot lend itself",
	} {
		p, err := Parse("r.yaml", []byte("version: 1\n"+repository+"\n"))
		if err == nil {
			_, err = Narrow(ceiling, p)
		}
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", repository, err, want)
		}
	}
}

func TestAppendKeepsRequests(t *testing.T) {
	p := mustParse(t, requests)
	for _, r := range p.Rules() {
		out, err := AppendRule([]byte(requests), r)
		if err != nil {
			t.Fatalf("%s: %v", r.Name, err)
		}
		grown := mustParse(t, string(out)).Rules()
		last := grown[len(grown)-1]
		last.Name = r.Name
		if !sameRule(&last, &r) {
			t.Errorf("%+v came back as %+v", r, last)
		}
	}
}

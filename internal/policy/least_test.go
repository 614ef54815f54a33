package policy

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cofferdam/cofferdam/internal/audit"
	"github.com/cofferdam/cofferdam/internal/ident"
)

func TestLeast(t *testing.T) {
	const run = ident.Run("abcdefgh")
	decided := func(protocol, host, address string, port uint16, verdict, rule string) audit.Event {
		return audit.Event{Kind: audit.CrossingDecided, Run: run, Protocol: protocol, Host: host, Address: address, Port: port, Verdict: verdict, Rule: rule}
	}
	got := string(Least([]audit.Event{
		{Kind: audit.RunStarted, Run: run},
		decided("dns", "registry.example.com", "", 0, "allow", "all"),
		decided("tls", "registry.example.com", "198.18.0.2", 443, "allow", "all"),
		{Kind: audit.CrossingFinished, Run: run, Host: "registry.example.com", Address: "203.0.113.7", Port: 443},
		decided("tls", "registry.example.com", "", 443, "allow", "all"),
		{Kind: audit.CrossingFinished, Run: run, Host: "registry.example.com", Address: "203.0.113.8:443", Port: 443},
		decided("http", "deb.example.com", "", 80, "allow", "all"),
		{Kind: audit.CrossingFinished, Run: run, Host: "deb.example.com", Address: "93.184.215.14", Port: 80},
		decided("http", "both.example.com", "", 80, "allow", "all"),
		decided("tls", "both.example.com", "", 443, "allow", "all"),
		decided("unknown", "git.example.com", "", 22, "allow", "all"),
		decided("tcp", "", "10.1.2.3", 5432, "allow", "all"),
		decided("dns", "only-asked.example.com", "", 0, "allow", "all"),
		decided("dns", "telemetry.example.net", "", 0, "deny", "default"),
		{Kind: audit.CrossingDecided, Run: run, Protocol: "dns", Host: "telemetry.example.net", Verdict: "deny", Rule: "default", Count: 9},
		decided("tcp", "", "169.254.169.254", 80, "deny", "special-address"),
		decided("tls", "inside.example.com", "10.9.8.7", 443, "deny", "special-address"),
		decided("udp", "", "8.8.8.8", 443, "deny", "udp-closed"),
		decided("tls", "evil.example\n  rules: [{hosts: [x]}]", "", 443, "allow", "x"),
		decided("tls", "evil.example\n    - hosts: [x]", "", 443, "deny", "x\ny"),
		decided("tls", "listed.example.net", "", 443, "deny", "my rule\nwith a line"),
		decided("tls", "unclear.example.net", "", 443, "perhaps", ""),
		decided("git", "github.com", "", 443, "allow", "git:read"),
		decided("git", "github.com", "", 443, "deny", "default"),
		{Kind: audit.CrossingFinished, Run: run, Protocol: "git", Host: "github.com", Address: "140.82.112.3", Port: 443},
		decided("https", "github.com", "", 443, "deny", RuleGitThroughProxy),
	}))
	want := `version: 1
# The least policy that run abcdefgh needed, from its audit log. Read it before you use it: it allows what was used, not what was meant.
egress:
  default: deny
  # Names resolved to addresses outside the ordinary internet. Narrow these networks if the addresses do not change.
  networks:
    - "203.0.113.0/24" # documentation: registry.example.com
    # Refused in that run, for the address only:
    #- "10.9.8.0/24" # private network: inside.example.com
  rules:
    # 1 crossing
    - name: 10.1.2.3-32
      networks: ["10.1.2.3/32"]
      ports: [5432]
      protocol: tcp
    # 2 crossings
    - name: both.example.com
      hosts: [both.example.com]
      ports: [80, 443]
    # 1 crossing
    - name: deb.example.com
      hosts: [deb.example.com]
      ports: [80]
      protocol: http
    # 1 crossing
    - name: git.example.com
      hosts: [git.example.com]
      ports: [22]
      protocol: tcp
    # 2 crossings
    - name: registry.example.com
      hosts: [registry.example.com]
      ports: [443]
      protocol: tls
    # Refused in that run. To allow one, take the comment sign off its lines.
    # 10 crossings, default:
    #- name: telemetry.example.net
    #  hosts: [telemetry.example.net]
    #  ports: [443, 80]
    # 1 crossing, special-address:
    #- name: 169.254.169.254-32
    #  networks: ["169.254.169.254/32"]
    #  ports: [80]
    #  protocol: tcp
    # 1 crossing, special-address:
    #- name: inside.example.com
    #  hosts: [inside.example.com]
    #  ports: [443]
    #  protocol: tls
    # 1 crossing, denied by a rule:
    #- name: listed.example.net
    #  hosts: [listed.example.net]
    #  ports: [443]
    #  protocol: tls
    # 1 crossing, denied by a rule:
    #- name: unclear.example.net
    #  hosts: [unclear.example.net]
    #  ports: [443]
    #  protocol: tls
    # 3 crossings that no rule can allow: see cofferdam audit
# 2 crossings of Git went through its proxy: take the section git over from the policy of that run.
`
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	p := mustParse(t, got)
	for text, want := range map[string]Verdict{"tls registry.example.com:443": Allow, "http registry.example.com:80": Deny, "tcp 10.1.2.3:5432": Allow, "tls telemetry.example.net:443": Deny} {
		if d := p.Decide(crossing(t, text)); d.Verdict != want {
			t.Errorf("%s: %+v, want %v", text, d, want)
		}
	}
	uncommented := strings.ReplaceAll(got, "    #- ", "    - ")
	uncommented = strings.ReplaceAll(uncommented, "    #  ", "      ")
	if d := mustParse(t, uncommented).Decide(crossing(t, "tls telemetry.example.net:443")); d.Verdict != Allow {
		t.Errorf("the suggestion, uncommented: %+v", d)
	}
}

func TestLeastOfNothing(t *testing.T) {
	for _, events := range [][]audit.Event{nil, {{Kind: audit.CrossingDecided, Protocol: "dns", Host: "a.example", Verdict: "deny", Rule: "default"}}} {
		got := Least(events)
		p := mustParse(t, string(got))
		if len(p.Rules()) != 0 {
			t.Errorf("rules out of nothing:\n%s", got)
		}
		if _, err := Parse("", []byte(strings.ReplaceAll(strings.ReplaceAll(string(got), "    #- ", "    - "), "    #  ", "      "))); err != nil {
			t.Errorf("uncommented it does not parse: %v\n%s", err, got)
		}
	}
}

func TestLeastIsBounded(t *testing.T) {
	var events []audit.Event
	for i := range 1200 {
		events = append(events, audit.Event{Kind: audit.CrossingDecided, Protocol: "tls", Host: fmt.Sprintf("h%d.example", i), Port: 443, Verdict: "allow"},
			audit.Event{Kind: audit.CrossingDecided, Protocol: "tls", Host: "ports.example", Port: uint16(i + 1), Verdict: "allow"},
			audit.Event{Kind: audit.CrossingDecided, Protocol: "dns", Host: fmt.Sprintf("d%d.example", i), Verdict: "deny"})
	}
	got := string(Least(events))
	if p := mustParse(t, got); len(p.Rules()) != maxRules {
		t.Errorf("%d rules", len(p.Rules()))
	}
	if n := strings.Count(got, "#- name"); n != maxSuggestions {
		t.Errorf("%d suggestions", n)
	}
}

// FuzzLeast holds that whatever an event holds, what is written is a policy that allows nothing but what the event says was allowed.
func FuzzLeast(f *testing.F) {
	f.Add("tls", "a.example", "10.0.0.1", uint16(443), "allow", "rule")
	f.Add("dns", "x\n- hosts: [evil.example]", "", uint16(0), "deny", "x\n")
	f.Fuzz(func(t *testing.T, protocol, host, address string, port uint16, verdict, rule string) {
		got := Least([]audit.Event{{Kind: audit.CrossingDecided, Protocol: protocol, Host: host, Address: address, Port: port, Verdict: verdict, Rule: rule}, {Kind: audit.CrossingFinished, Host: host, Address: address}})
		p, err := Parse("", got)
		if err != nil {
			t.Fatalf("%v\n%s", err, got)
		}
		if len(p.Rules()) > 1 || len(p.Rules()) == 1 && verdict != "allow" || p.Default() != Deny {
			t.Fatalf("one event made\n%s", got)
		}
	})
}

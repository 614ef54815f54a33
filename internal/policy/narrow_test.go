package policy

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const ceiling = `version: 1
resources: {memory: 2GiB, timeout: 1h}
workspace: {mode: overlay, unprotected: [.envrc, .ci/a.yaml]}
mounts:
  - {source: /srv/ro, target: /ro}
  - {source: /srv/rw, target: /rw, mode: rw}
environment: {LANG: C}
egress:
  networks: [10.0.0.0/8]
  rules:
    - name: all
      hosts: ["*.example.com"]
    - name: not
      hosts: [bad.example.com]
      verdict: deny
    - name: ask
      hosts: ["*.example.org"]
      verdict: ask
    - name: ssh
      hosts: [git.example.com]
      ports: [22]
      protocol: tcp
    - name: tls-only
      hosts: [tls.example.net]
      protocol: tls
    - name: raw
      networks: [10.1.0.0/16]
      ports: [5432, 443]
      protocol: tcp
`

func TestNarrow(t *testing.T) {
	repository := `version: 1
resources: {memory: 1GiB, pids: 100}
workspace: {mode: ro, unprotected: [.envrc]}
mounts: [{source: /srv/rw, target: /rw}]
environment: {LANG: C}
egress:
  networks: [10.1.0.0/16]
  rules:
    - hosts: [a.example.com, "*.b.example.com"]
      ports: [443]
    - hosts: [x.example.org]
    - hosts: [git.example.com]
      ports: [22]
      protocol: tcp
    - hosts: [c.b.example.com]
      verdict: deny
    - networks: [10.1.2.0/24]
      ports: [5432]
      protocol: tcp
`
	p, err := Narrow(mustParse(t, ceiling), mustParse(t, repository))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Resources{Memory: GiB, PIDs: 100, Timeout: time.Hour}, p.Resources()); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(Workspace{Mode: WorkspaceReadOnly, Unprotected: []string{".envrc"}}, p.Workspace()); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]Mount{{Source: "/srv/rw", Target: "/rw"}}, p.Mounts()); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(map[string]string{"LANG": "C"}, p.Environment()); diff != "" {
		t.Error(diff)
	}
	for text, want := range map[string]Verdict{
		"tls a.example.com:443": Allow, "http a.example.com:80": Deny, "tls z.example.com:443": Deny, "tls q.b.example.com:443": Allow, "tls c.b.example.com:443": Deny, "tls bad.example.com:443": Deny,
		"tls x.example.org:443": Ask, "tls y.example.org:443": Deny, "tcp git.example.com:22": Allow, "tls tls.example.net:443": Deny,
		"tcp 10.1.2.3:5432": Allow, "tcp 10.1.3.3:5432": Deny, "tcp 10.1.2.3:443": Deny,
		"dns a.example.com:0": Allow, "dns z.example.com:0": Deny, "dns c.b.example.com:0": Deny, "dns x.example.org:0": Ask,
	} {
		if d := p.Decide(crossing(t, text)); d.Verdict != want || d.Rule == "" {
			t.Errorf("%s: %+v, want %v", text, d, want)
		}
	}
	if got := fmt.Sprint(p.Networks()); got != "[10.1.2.0/24]" {
		t.Errorf("networks %s", got)
	}
	h := host(t, "a.example.com")
	for addr, want := range map[string]Verdict{"10.1.9.9": Allow, "10.2.0.1": Deny, "127.0.0.1": Deny, "8.8.8.8": Allow} {
		if d := p.DecideAddress(h, netip.MustParseAddr(addr)); d.Verdict != want {
			t.Errorf("%s: %+v, want %v", addr, d, want)
		}
	}
	answer, _ := ParseAllow("y.example.org:443")
	if d := p.With(answer).Decide(crossing(t, "tls y.example.org:443")); d.Verdict != Allow {
		t.Errorf("a human's answer does not hold: %+v", d)
	}
	denied, _ := ParseAllow("c.b.example.com:443")
	if d := p.With(denied).Decide(crossing(t, "tls c.b.example.com:443")); d.Verdict != Deny {
		t.Errorf("an answer overrides a denial: %+v", d)
	}
}

func TestNarrowSilentRepository(t *testing.T) {
	p, err := Narrow(mustParse(t, ceiling), mustParse(t, "version: 1\n"))
	if err != nil {
		t.Fatal(err)
	}
	c := mustParse(t, ceiling)
	if p.Resources() != c.Resources() || len(p.Mounts()) != 2 || p.Workspace().Mode != Overlay || len(p.Workspace().Unprotected) != 2 {
		t.Errorf("what the repository leaves out narrows: %+v", p)
	}
	if d := p.Decide(crossing(t, "tls a.example.com:443")); d.Verdict != Deny {
		t.Errorf("a repository that allows nothing allows: %+v", d)
	}
}

func TestNarrowRefusesWider(t *testing.T) {
	for repository, want := range map[string]string{
		"resources: {memory: 3GiB}":                                                 "2:13 resources.memory: 3GiB is more than the ceiling of 2GiB; write 2GiB or less",
		"resources: {timeout: 2h}":                                                  "2:13 resources.timeout: 2h is more than the ceiling of 1h; write 1h or less",
		"resources: {scratch: encrypted}":                                           "2:13 resources.scratch: scratch lies where the ceiling has it, in kind memory; write scratch: memory",
		"resources: {files: 2097153}":                                               "2:13 resources.files: 2097153 is more than the ceiling of 2097152; write 2097152 or less",
		"resources: {pids: 100000}":                                                 "2:13 resources.pids: 100000 is more than the ceiling of 1024; write 1024 or less",
		"workspace: {mode: rw}":                                                     "2:13 workspace.mode: rw is more than the ceiling's overlay; write mode: overlay",
		"workspace: {unprotected: [.envrc, .git/hooks]}":                            `2:13 workspace.unprotected: entry 2, ".git/hooks": the ceiling keeps it protected; remove it`,
		"mounts: [{source: /etc, target: /x}]":                                      `2:10 mounts[0]: the ceiling has no mount of "/etc" on "/x"; remove it`,
		"mounts: [{source: /srv/ro, target: /ro, mode: rw}]":                        `2:10 mounts[0]: the ceiling mounts "/srv/ro" read-only; write mode: ro`,
		"environment: {LANG: de}":                                                   "2:15 environment.LANG: a repository's policy sets no variables that you do not set alike; remove it, or set it yourself with --env",
		"environment: {LD_PRELOAD: /x.so}":                                          "2:15 environment.LD_PRELOAD: a repository's policy sets no variables that you do not set alike; remove it, or set it yourself with --env",
		"egress: {default: ask}":                                                    "2:10 egress.default: to ask is more",
		"egress: {networks: [10.0.0.0/8, 192.168.0.0/16]}":                          "2:33 egress.networks[1]: the ceiling lets no name resolve into 192.168.0.0/16",
		"egress: {rules: [{hosts: [evil.example]}]}":                                `2:18 egress.rules[0]: rule "rule 1": the ceiling does not allow evil.example on port 443, 80`,
		"egress: {rules: [{hosts: [example.com]}]}":                                 "allow example.com on port",
		"egress: {rules: [{hosts: [\"*.example.net\"]}]}":                           "allow *.example.net on port",
		"egress: {rules: [{hosts: [a.example.com], ports: [443, 22]}]}":             "allow a.example.com on port 22",
		"egress: {rules: [{hosts: [bad.example.com]}]}":                             "allow bad.example.com on port",
		"egress: {rules: [{hosts: [a.example.com], ports: [443], protocol: tcp}]}":  "allow a.example.com on port 443",
		"egress: {rules: [{hosts: [tls.example.net]}]}":                             "allow tls.example.net on port",
		"egress: {rules: [{hosts: [evil.example], verdict: ask}]}":                  "allow evil.example on port",
		"egress: {rules: [{networks: [10.0.0.0/8], ports: [5432], protocol: tcp}]}": "allow 10.0.0.0/8 on port 5432",
		"egress: {rules: [{networks: [10.1.2.0/24], ports: [22], protocol: tcp}]}":  "allow 10.1.2.0/24 on port 22",
	} {
		p, err := Narrow(mustParse(t, ceiling), mustParse(t, "version: 1\n"+repository+"\n"))
		problems, ok := errors.AsType[*Problems](err)
		if p != nil || !ok || len(problems.List) != 1 {
			t.Errorf("%s: %v, %v; want one problem", repository, p, err)
			continue
		}
		got := problems.List[0]
		line := fmt.Sprintf("%d:%d %s: %s; %s", got.Line, got.Column, got.Path, got.Message, got.Remedy)
		if !strings.Contains(line, want) || got.Remedy == "" || got.Line != 2 {
			t.Errorf("%s: %s, want %s", repository, line, want)
		}
	}
	_, err := Narrow(mustParse(t, ceiling), mustParse(t, "version: 1\nresources: {memory: 3GiB, timeout: 2h}\negress: {default: ask, rules: [{hosts: [a.example, b.example]}]}\n"))
	if problems, ok := errors.AsType[*Problems](err); !ok || len(problems.List) != 5 {
		t.Errorf("not all of five problems are told: %v", err)
	}
}

// Asking at the ceiling covers everything: a human answers.
func TestNarrowBelowAnAskingCeiling(t *testing.T) {
	p, err := Narrow(mustParse(t, "version: 1\negress: {default: ask}\n"), mustParse(t, "version: 1\negress: {rules: [{hosts: [a.example]}]}\n"))
	if err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]Verdict{"tls a.example:443": Ask, "tls b.example:443": Deny, "dns a.example:0": Ask, "dns b.example:0": Deny} {
		if d := p.Decide(crossing(t, text)); d.Verdict != want {
			t.Errorf("%s: %+v, want %v", text, d, want)
		}
	}
	if p.AsksRaw() || len(p.Networks()) > 0 {
		t.Error("raw addresses pass")
	}
}

// FuzzNarrow holds that the narrowed policy never says more than either of the two.
func FuzzNarrow(f *testing.F) {
	f.Add([]byte(ceiling), []byte(sample))
	f.Add([]byte(ceiling), []byte("version: 1\negress: {rules: [{hosts: [a.example.com]}]}\n"))
	f.Add([]byte("version: 1\negress: {default: ask}\n"), []byte(sample))
	f.Fuzz(func(t *testing.T, a, b []byte) {
		p, err := Parse("a", a)
		if err != nil {
			return
		}
		q, err := Parse("b", b)
		if err != nil {
			return
		}
		both, err := Narrow(p, q)
		if err != nil {
			return
		}
		for _, text := range []string{"tls a.example.com:443", "http a.example.com:80", "tcp git.example.com:22", "dns a.example.com:0", "tls registry.example.com:443", "tcp 10.1.2.3:5432", "tcp 8.8.8.8:9000", "unknown 8.8.8.8:1"} {
			c := crossing(t, text)
			if got := both.Decide(c).Verdict; got > p.Decide(c).Verdict || got > q.Decide(c).Verdict {
				t.Fatalf("%s: %v, where the two say %v and %v", text, got, p.Decide(c).Verdict, q.Decide(c).Verdict)
			}
		}
		limit, result := p.Resources().OrDefaults(), both.Resources().OrDefaults()
		if result.Memory > limit.Memory || result.PIDs > limit.PIDs || result.Disk > limit.Disk || result.Connections > limit.Connections {
			t.Fatalf("limits %+v are more than %+v", result, limit)
		}
	})
}

// TestPlatform: a platform is one of level gvisor's, goes with that level, and is not a repository's to choose.
func TestPlatform(t *testing.T) {
	for text, want := range map[string]struct {
		platform Platform // 0 where there is an error or another level
		problem  string
	}{
		"level: gvisor":                             {Systrap, ""},
		"level: gvisor, platform: systrap":          {Systrap, ""},
		"level: gvisor, platform: kvm":              {KVM, ""},
		"platform: kvm, minimum: gvisor":            {KVM, ""},
		"level: vm":                                 {0, ""},
		"level: container":                          {0, ""},
		"platform: kvm":                             {0, "2:23: isolation.platform"},
		"level: container, platform: kvm":           {0, "2:41: isolation.platform"},
		"level: vm, platform: kvm":                  {0, "2:34: isolation.platform"},
		"level: vm-emulated, platform: systrap":     {0, "2:43: isolation.platform"},
		"level: gvisor, minimum: vm, platform: kvm": {0, "isolation.platform"},
		"level: gvisor, platform: ptrace":           {0, "2:38: isolation.platform"},
		"level: gvisor, platform: none":             {0, "2:38: isolation.platform"},
		"level: gvisor, platform: KVM":              {0, "2:38: isolation.platform"},
	} {
		p, err := Parse("", []byte("version: 1\nisolation: {"+text+"}\n"))
		switch {
		case want.problem == "" && (err != nil || p.Platform() != want.platform):
			t.Errorf("%s: %v, want %s", text, err, want.platform)
		case want.problem != "" && (err == nil || !strings.Contains(err.Error(), want.problem)):
			t.Errorf("%s: %v, want a problem at %s", text, err, want.problem)
		}
	}
	if _, err := Parse("", []byte("version: 1\nisolation: {level: kata, platform: kvm}\n")); err == nil || strings.Contains(err.Error(), "isolation.platform") {
		t.Errorf("beside a level that is none: %v", err)
	}
	for _, c := range []struct {
		held, asked Isolation
		level       Level // 0: refused
		want        Platform
	}{
		{Isolation{Level: GVisor}, Isolation{Platform: KVM}, GVisor, KVM},
		{Isolation{Level: GVisor, Platform: KVM}, Isolation{}, GVisor, KVM},
		{Isolation{Level: GVisor, Platform: KVM}, Isolation{Level: GVisor}, GVisor, KVM},
		{Isolation{Level: GVisor, Platform: KVM}, Isolation{Platform: Systrap}, GVisor, Systrap},
		{Isolation{Level: GVisor, Platform: KVM}, Isolation{Level: VM}, VM, 0},
		{Isolation{Level: GVisor, Platform: KVM}, Isolation{Level: VM, Platform: KVM}, 0, 0},
		{Isolation{}, Isolation{Platform: KVM}, 0, 0},
		{Isolation{Level: VM}, Isolation{Platform: KVM}, 0, 0},
		{Isolation{Minimum: GVisor}, Isolation{Platform: KVM}, GVisor, KVM},
	} {
		p, err := New(Options{Isolation: c.held})
		if err == nil {
			p, err = p.Extend(Options{Isolation: c.asked})
		}
		if (err == nil) != (c.level != 0) || err == nil && (p.Isolation() != c.level || p.Platform() != c.want) {
			t.Errorf("%+v under %+v: %v", c.asked, c.held, err)
		}
	}
}

// TestNarrowPlatform lets a repository choose no platform, since one of them opens a device of the host's.
func TestNarrowPlatform(t *testing.T) {
	for _, c := range []struct {
		ceiling, repository string
		level               Level // 0: refused
		want                Platform
	}{
		{"", "level: gvisor, platform: kvm", 0, 0},
		{"level: gvisor", "level: gvisor, platform: kvm", 0, 0},
		{"level: gvisor, platform: kvm", "level: gvisor, platform: systrap", 0, 0},
		{"", "level: gvisor, platform: systrap", GVisor, Systrap},
		{"level: gvisor, platform: kvm", "level: gvisor, platform: kvm", GVisor, KVM},
		{"level: gvisor, platform: kvm", "level: gvisor", GVisor, KVM},
		{"level: gvisor, platform: kvm", "", GVisor, KVM},
		{"level: gvisor, platform: kvm", "level: vm", VM, 0},
	} {
		narrowed, err := Narrow(mustParse(t, "version: 1\nisolation: {"+c.ceiling+"}\n"), mustParse(t, "version: 1\nisolation: {"+c.repository+"}\n"))
		if (err == nil) != (c.level != 0) || err == nil && (narrowed.Isolation() != c.level || narrowed.Platform() != c.want) {
			t.Errorf("%+v: %v", c, err)
		}
		if err != nil && !strings.Contains(err.Error(), "isolation.platform") {
			t.Errorf("%+v: no place in %v", c, err)
		}
	}
}

// TestNarrowLevel lets a repository ask for a stronger wall only.
func TestNarrowLevel(t *testing.T) {
	for _, c := range []struct {
		ceiling, repository string
		want                Level // 0: refused
	}{
		{"", "", Container}, {"container", "", Container}, {"gvisor", "", GVisor}, {"", "gvisor", GVisor}, {"container", "gvisor", GVisor}, {"gvisor", "gvisor", GVisor},
		{"", "container", Container}, {"gvisor", "container", 0}, {"gvisor", "vm-emulated", 0}, {"vm-emulated", "gvisor", GVisor}, {"vm", "gvisor", 0},
	} {
		var policies []*Policy
		for _, level := range []string{c.ceiling, c.repository} {
			text := "version: 1\n"
			if level != "" {
				text += "isolation: {level: " + level + "}\n"
			}
			p, err := Parse("", []byte(text))
			if err != nil {
				t.Fatal(err)
			}
			policies = append(policies, p)
		}
		narrowed, err := Narrow(policies[0], policies[1])
		switch {
		case c.want == 0 && err == nil:
			t.Errorf("%+v: the wall was weakened to %s", c, narrowed.Isolation())
		case c.want != 0 && (err != nil || narrowed.Isolation() != c.want):
			t.Errorf("%+v: %v", c, err)
		}
	}
	strong, err := New(Options{Isolation: Isolation{Level: GVisor}})
	if err != nil || strong.Isolation() != GVisor {
		t.Errorf("by a flag: %v", err)
	}
	if again, err := strong.Extend(Options{}); err != nil || again.Isolation() != GVisor {
		t.Errorf("flags that say nothing about it: %v", err)
	}
	for _, c := range []struct {
		held, asked Isolation
		want        Level // 0: refused
	}{
		{Isolation{Minimum: GVisor}, Isolation{}, GVisor}, {Isolation{Minimum: GVisor}, Isolation{Level: VM}, VM}, {Isolation{Level: VM, Minimum: GVisor}, Isolation{Level: GVisor}, GVisor},
		{Isolation{Minimum: GVisor}, Isolation{Level: Container}, 0}, {Isolation{Minimum: GVisor}, Isolation{Level: VMEmulated}, 0}, {Isolation{Level: GVisor}, Isolation{Level: Container}, Container},
	} {
		p, err := New(Options{Isolation: c.held})
		if err != nil {
			t.Fatal(err)
		}
		p, err = p.Extend(Options{Isolation: c.asked})
		if c.want == 0 && err == nil || c.want != 0 && (err != nil || p.Isolation() != c.want) {
			t.Errorf("%+v under %+v: %v, %v", c.asked, c.held, p.Isolation(), err)
		}
	}
	image := func(name string) *Policy {
		p, err := Parse("", []byte("version: 1\nisolation: {image: \""+name+"\"}\n"))
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	if _, err := Narrow(image("a.example/x:1"), image("a.example/x:2")); err == nil {
		t.Error("a repository chose its image")
	}
	if p, err := Narrow(image("a.example/x:1"), image("a.example/x:1")); err != nil || p.Image() != "a.example/x:1" {
		t.Errorf("the ceiling's own image: %v", err)
	}
	if (&Policy{}).Isolation() != Container {
		t.Error("the zero policy has no level")
	}
}

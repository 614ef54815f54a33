package policy

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/cofferdam/cofferdam/internal/fault"
)

func TestParseAllow(t *testing.T) {
	for flag, want := range map[string]string{ // what the rule says, as one line of YAML
		"registry.example.com":      "hosts: [registry.example.com] ports: [443, 80]",
		"registry.example.com:8443": "hosts: [registry.example.com] ports: [8443]",
		"*.example.com":             `hosts: ["*.example.com"] ports: [443, 80]`,
		"*.example.com:25":          `hosts: ["*.example.com"] ports: [25]`,
		"mirror:8080":               "hosts: [mirror] ports: [8080]",
		"tcp:git.example.com:22":    "hosts: [git.example.com] ports: [22] protocol: tcp",
		"tls:api.example.com:443":   "hosts: [api.example.com] ports: [443] protocol: tls",
		"http:deb.example.com:80":   "hosts: [deb.example.com] ports: [80] protocol: http",
		"10.1.2.3:443":              `networks: ["10.1.2.3/32"] ports: [443]`,
		"tcp:10.1.2.0/24:5432":      `networks: ["10.1.2.0/24"] ports: [5432] protocol: tcp`,
		"[2001:db8::1]:443":         `networks: ["2001:db8::1/128"] ports: [443]`,
		"tcp:[fd12::/64]:22":        `networks: ["fd12::/64"] ports: [22] protocol: tcp`,
	} {
		r, err := ParseAllow(flag)
		if err != nil {
			t.Errorf("%s: %v", flag, err)
			continue
		}
		_, got, _ := strings.Cut(strings.Join(strings.Fields(ruleText(&r, 0)), " "), flag+"\" ")
		if got == "" {
			_, got, _ = strings.Cut(strings.Join(strings.Fields(ruleText(&r, 0)), " "), flag+" ")
		}
		if got != want {
			t.Errorf("%s: rule %q, want %q", flag, got, want)
		}
		if again, err := ParseAllow(strings.Trim(strings.TrimPrefix(r.Flag(), "--allow "), "'")); err != nil || !sameBut(&again, &r) {
			t.Errorf("%s: its flag is %s, which reads as %+v, %v", flag, r.Flag(), again, err)
		}
		if p, err := New(Options{Rules: []Rule{r}}); err != nil || len(p.Rules()) != 1 {
			t.Errorf("%s: no policy of it: %v", flag, err)
		}
	}
	for flag, want := range map[string]string{
		"": "", "*": "name the hosts", "*.com": "name a domain", "https://example.com": "host and the port only", "Example.com": "write example.com",
		"example.com:": "1 to 65535", "example.com:0": "1 to 65535", "example.com:65537": "1 to 65535", "example.com:http": "1 to 65535",
		"10.1.2.3": "10.1.2.3:PORT", "[::1]": "PORT", "2001:db8::1": "[2001:db8::1]:443", "[2001:db8::1:443": "[2001:db8::1]:443", "[example.com]:443": "[2001:db8::1]:443",
		"tcp:git.example.com": "PORT", "tcp:22": "", "127.0.0.1:80": "egress.networks", "[::1]:80": "egress.networks", "198.18.0.5:443": "name the host", "10.1.2.3/24:80": "10.1.2.0/24",
		"@npm": "registry.example.com", "udp:example.com:53": "IPv6", "a b:1": "", "a\x00:1": "", "[fe80::1%eth0]:80": "leave it out", "[::ffff:10.0.0.1]:80": "write 10.0.0.1/32",
	} {
		r, err := ParseAllow(flag)
		if err == nil || fault.KindOf(err) != fault.Invalid || !strings.Contains(fault.HintOf(err), want) {
			t.Errorf("%q: %+v, %v (hint %q); want a refusal with hint %q", flag, r, err, fault.HintOf(err), want)
		}
	}
}

// sameBut compares rules but for their names.
func sameBut(a, b *Rule) bool {
	c := *a
	c.Name = b.Name
	return sameRule(&c, b)
}

func TestAllowFlagAllows(t *testing.T) {
	empty, err := New(Options{})
	if err != nil {
		t.Fatal(err)
	}
	denying := mustParse(t, "version: 1\negress: {rules: [{hosts: [example.com, \"*.example.com\"], verdict: deny}, {networks: [10.0.0.0/8, 8.8.8.0/24], verdict: deny}]}\n")
	for text, want := range map[string]string{
		"tls example.com:443": "--allow example.com:443", "http example.com:80": "--allow example.com:80", "unknown example.com:22": "--allow tcp:example.com:22",
		"tls a.example.com:8443": "--allow a.example.com:8443", "dns example.com:0": "--allow example.com", "tls example.com:853": "--allow example.com:853",
		"tls dns.google:443": "--allow dns.google:443",
		"tcp 10.1.2.3:5432":  "--allow tcp:10.1.2.3:5432", "tcp 8.8.8.8:443": "--allow 8.8.8.8:443", "tcp [2606:4700::1]:22": "--allow 'tcp:[2606:4700::1]:22'",
		"tls 10.1.2.3:443": "--allow 10.1.2.3:443", "tcp 169.254.169.254:80": "--allow 169.254.169.254:80",
		"udp example.com:53": "", "icmp 8.8.8.8:0": "", "other 8.8.8.8:1": "", "tcp 127.0.0.1:80": "", "tls example.com:0": "", "unknown [64:ff9b::10.0.0.1]:22": "",
	} {
		c := crossing(t, text)
		if got := AllowFlag(c); got != want {
			t.Errorf("%s: flag %q, want %q", text, got, want)
		}
		if got := empty.AllowFlag(c); got != want && c.Protocol != TCP {
			t.Errorf("%s: the policy's flag is %q, want %q", text, got, want)
		}
		if strings.Contains(text, "example.com") || strings.Contains(text, "10.") {
			if got := denying.AllowFlag(c); got != "" {
				t.Errorf("%s: flag %q although a rule denies it", text, got)
			}
		}
		if want == "" {
			continue
		}
		r, err := ParseAllow(strings.Trim(strings.TrimPrefix(want, "--allow "), "'"))
		if err != nil {
			t.Fatal(err)
		}
		if c.Protocol == TCP && r.Wire == WireAuto {
			c.Protocol = TLS // before a byte is read it was not known
		}
		if d := empty.With(r).Decide(c); d.Verdict != Allow {
			t.Errorf("%s: with %s it is %+v", text, want, d)
		}
	}
}

func TestNetworkFlag(t *testing.T) {
	h := host(t, "mirror.example.com")
	for addr, want := range map[string]string{
		"203.0.113.9": "203.0.113.0/24", "10.1.2.3": "10.1.2.0/24", "::ffff:10.1.2.3": "10.1.2.0/24", "fd12::9": "fd12::/64", "127.0.0.1": "127.0.0.1/32", "::1": "::1/128",
		"169.254.169.254": "169.254.169.254/32", "169.254.7.7": "169.254.7.7/32", "192.0.0.1": "192.0.0.0/29",
		"8.8.8.8": "", "64:ff9b::10.0.0.1": "", "fe80::1%eth0": "",
	} {
		a := netip.MustParseAddr(addr)
		got := NetworkFlag(a)
		if want == "" {
			if got != "" {
				t.Errorf("%s: flag %q, want none", addr, got)
			}
			continue
		}
		if got != "--allow-network "+want {
			t.Errorf("%s: flag %q, want %s", addr, got, want)
		}
		p, err := New(Options{Networks: []netip.Prefix{netip.MustParsePrefix(want)}})
		if err != nil {
			t.Errorf("%s: %v", want, err)
			continue
		}
		if d := p.DecideAddress(h, a); d.Verdict != Allow {
			t.Errorf("%s: with %s it is %+v", addr, got, d)
		}
	}
}

func TestExtend(t *testing.T) {
	base := mustParse(t, complete)
	rule, _ := ParseAllow("more.example.com")
	p, err := base.Extend(Options{Rules: []Rule{rule}, Resources: Resources{PIDs: 99}, Workspace: &Workspace{Mode: WorkspaceReadOnly},
		Mounts: []Mount{{Source: "/x", Target: "/out"}}, Environment: map[string]string{"LANG": "C"}, Networks: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}})
	if err != nil {
		t.Fatal(err)
	}
	got := fmt.Sprint(p.Resources().PIDs, p.Resources().Memory, p.Workspace(), p.Mounts(), p.Environment()["LANG"], p.Default(), p.Decide(crossing(t, "tls more.example.com:443")).Verdict)
	want := fmt.Sprint(int64(99), 4*GiB, Workspace{Mode: WorkspaceReadOnly, Unprotected: []string{".github/workflows/ci.yaml"}}, []Mount{{Source: "/srv/data", Target: "/data"}, {Source: "/x", Target: "/out"}}, "C", Ask, Allow)
	if got != want {
		t.Errorf("extended policy:\n%s\nwant\n%s", got, want)
	}
	for _, o := range []Options{
		{Default: Allow}, {Rules: []Rule{{}}}, {Rules: []Rule{{Name: "x", Verdict: Allow, Hosts: rule.Hosts}}}, {Rules: []Rule{{Name: "default", Verdict: Deny, Hosts: rule.Hosts}}},
		{Networks: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}}, {Networks: []netip.Prefix{{}}}, {Resources: Resources{Memory: 1}}, {Resources: Resources{PIDs: -1}},
		{Mounts: []Mount{{}}}, {Mounts: []Mount{{Source: "/a", Target: "/b"}, {Source: "/c", Target: "/b"}}}, {Environment: map[string]string{"": ""}},
		{Workspace: &Workspace{Unprotected: []string{"../x"}}},
	} {
		if p, err := New(o); err == nil || fault.KindOf(err) != fault.Invalid {
			t.Errorf("%+v: %v, %v; want a refusal", o, p, err)
		}
	}
}

func TestParseDeny(t *testing.T) {
	allow, _ := ParseAllow("tcp:*.example.com:22")
	raw, _ := ParseAllow("8.8.0.0/16:443")
	web, _ := ParseAllow("*.example.com")
	base, err := New(Options{Rules: []Rule{allow, raw, web}})
	if err != nil {
		t.Fatal(err)
	}
	for flag, want := range map[string]string{ // the crossings that stay allowed, of three
		"a.example.com": "raw", "*.example.com": "raw", "a.example.com:443": "ssh raw", "tcp:a.example.com:22": "web raw", "8.8.8.8": "ssh web", "8.8.8.0/24": "ssh web", "b.example.com": "ssh web raw",
	} {
		r, err := ParseDeny(flag)
		if err != nil {
			t.Errorf("%s: %v", flag, err)
			continue
		}
		var open []string
		for _, try := range []string{"ssh tcp a.example.com:22", "web tls a.example.com:443", "raw tls 8.8.8.8:443"} {
			name, c, _ := strings.Cut(try, " ")
			if base.With(r).Decide(crossing(t, c)).Verdict == Allow {
				open = append(open, name)
			}
		}
		if got := strings.Join(open, " "); got != want {
			t.Errorf("--deny %s leaves open %q, want %q", flag, got, want)
		}
	}
	for flag, hint := range map[string]string{"*": "name the hosts", "8.8.8.8:53": "write --deny 8.8.8.8", "https://a.example": "host and the port", "A.example": "write a.example"} {
		if r, err := ParseDeny(flag); err == nil || !strings.Contains(fault.HintOf(err), hint) {
			t.Errorf("--deny %s: %+v, %v (hint %q)", flag, r, err, fault.HintOf(err))
		}
	}
}

func TestParseTarget(t *testing.T) {
	for text, want := range map[string]string{
		"registry.example.com:443": "tls registry.example.com:443", "registry.example.com:80": "http registry.example.com:80", "registry.example.com": "dns registry.example.com:0",
		"https://registry.example.com/x": "https registry.example.com:443", "http://deb.example.com:8080/a?b": "http deb.example.com:8080", "ssh://git@git.example.com/x": "unknown git.example.com:22",
		"wss://a.example:1": "https a.example:1", "postgres://db.example.com:5432/x": "unknown db.example.com:5432",
		"10.1.2.3:443": "tls 10.1.2.3:443", "[2606:4700::1]:22": "tls [2606:4700::1]:22", "https://[::1]/": "tls [::1]:443", "[::ffff:10.1.2.3]:1": "tls 10.1.2.3:1",
	} {
		got, err := ParseTarget(text)
		got.Method, got.Path = "", ""
		if err != nil || got != crossing(t, want) {
			t.Errorf("%s: %+v, %v; want %s", text, got, err, want)
		}
	}
	for _, text := range []string{"", "10.1.2.3", "Example.com:443", "a.example:0", "a.example:65536", "https://", "https://a.example:x/", "foo://a.example/", "https://exam ple.com", "2606:4700::1", "[fe80::1%eth0]:1", "a/b:1", "http://a\x00b/"} {
		if c, err := ParseTarget(text); err == nil {
			t.Errorf("%q: %+v, want a refusal", text, c)
		}
	}
}

func TestStarterAllowsNothing(t *testing.T) {
	text := string(Starter())
	if p := mustParse(t, text); len(p.Rules()) > 0 || p.Default() != Deny || len(p.Warnings()) > 0 {
		t.Errorf("the starter allows something: %+v", p)
	}
	uncommented := strings.NewReplacer("    # ", "    ", "\n# resources", "\nresources", "\n# mounts", "\nmounts", "\n# environment", "\nenvironment", "  # networks", "  networks",
		"\n# git:", "\ngit:", "\n#   ", "\n  ").Replace(text)
	if p := mustParse(t, uncommented); len(p.Rules()) != 3 || len(p.Mounts()) != 1 || p.Resources().PIDs != 1024 ||
		mustOpen(t, p, "forge", "acme/site").DecideRef(GitRef{Name: "refs/heads/agent/x", Change: GitCreate}).Verdict != Allow || mustOpen(t, p, "forge", "acme/x").Access() != ReadAccess {
		t.Errorf("what the starter shows does not do what it says:\n%s", uncommented)
	}
}

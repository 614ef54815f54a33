package policy

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/cofferdam/cofferdam/internal/netname"
)

const sample = `version: 1
egress:
  networks: [10.7.0.0/16, 203.0.113.0/24]
  rules:
    - name: registry
      hosts: [registry.example.com, "*.cdn.example.org"]
    - name: secure
      hosts: [api.example.com]
      ports: [8443]
      protocol: tls
    - name: plain
      hosts: [deb.example.com]
      ports: [80]
      protocol: http
    - name: ssh
      hosts: [git.example.com]
      ports: [22]
      protocol: tcp
    - name: careful
      hosts: [upload.example.com, both.example.com]
      verdict: ask
    - name: both
      hosts: [both.example.com]
    - name: never
      hosts: [evil.cdn.example.org, "*.evil.cdn.example.org", closed.example.com]
      verdict: deny
    - name: closed
      hosts: [closed.example.com]
      ports: [443, 22]
      protocol: tcp
    - name: half
      hosts: [half.example.com]
      ports: [443, 80]
    - name: half-denied
      hosts: [half.example.com]
      ports: [80]
      verdict: deny
    - name: resolver
      hosts: [dns.google, "*.nextdns.io"]
      ports: [443, 853]
    - name: mail
      hosts: [mail.example.com]
      ports: [25]
      protocol: tcp
    - name: database
      networks: [10.1.2.0/24, "fd12::/64"]
      ports: [5432]
      protocol: tcp
    - name: wide
      networks: [0.0.0.0/0]
      ports: [9000]
      protocol: tcp
    - name: bad-network
      networks: [8.8.4.0/24]
      verdict: deny
`

func mustParse(t testing.TB, text string) *Policy {
	t.Helper()
	p, err := Parse("test.yaml", []byte(text))
	if err != nil {
		t.Fatalf("policy does not parse:\n%v", err)
	}
	return p
}

func host(t testing.TB, s string) netname.Host {
	t.Helper()
	h, err := netname.ParseHost(s)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// crossing reads "tls HOST:PORT", an address in place of the host included.
func crossing(t testing.TB, s string) Crossing {
	t.Helper()
	words := strings.Fields(s)
	protocol, err := ParseProtocol(words[0])
	if err != nil {
		t.Fatal(err)
	}
	if ap, err := netip.ParseAddrPort(words[1]); err == nil {
		return Crossing{Protocol: protocol, Addr: ap.Addr(), Port: ap.Port()}
	}
	if name, ok := strings.CutSuffix(words[1], ":0"); ok {
		return Crossing{Protocol: protocol, Host: host(t, name)}
	}
	name, port, err := splitPort(words[1])
	if err != nil {
		t.Fatal(err)
	}
	return Crossing{Protocol: protocol, Host: host(t, name), Port: port}
}

func TestDecide(t *testing.T) {
	p := mustParse(t, sample)
	asking := p.withDefault(Ask)
	tests := []struct{ crossing, want, asked string }{ // asked: under default ask, where that differs
		{"tls registry.example.com:443", "allow registry", ""},
		{"http registry.example.com:80", "allow registry", ""},
		{"http registry.example.com:443", "allow registry", ""},
		{"unknown registry.example.com:443", "deny default", "ask default"},
		{"tcp registry.example.com:443", "deny default", "ask default"},
		{"tls registry.example.com:8443", "deny default", "ask default"},
		{"tls a.registry.example.com:443", "deny default", "ask default"},
		{"tls a.cdn.example.org:443", "allow registry", ""},
		{"tls b.a.cdn.example.org:443", "allow registry", ""},
		{"tls cdn.example.org:443", "deny default", "ask default"},
		{"tls notcdn.example.org:443", "deny default", "ask default"},
		{"tls a.cdn.example.org.evil.example:443", "deny default", "ask default"},
		{"tls evil.cdn.example.org:443", "deny never", ""},
		{"tls x.evil.cdn.example.org:443", "deny never", ""},
		{"tls api.example.com:8443", "allow secure", ""},
		{"http api.example.com:8443", "deny default", "ask default"},
		{"tls api.example.com:443", "deny default", "ask default"},
		{"http deb.example.com:80", "allow plain", ""},
		{"tls deb.example.com:80", "deny default", "ask default"},
		{"tcp git.example.com:22", "allow ssh", ""},
		{"unknown git.example.com:22", "allow ssh", ""},
		{"tls git.example.com:22", "allow ssh", ""},
		{"tcp git.example.com:23", "deny default", "ask default"},
		{"tls upload.example.com:443", "ask careful", ""},
		{"tls both.example.com:443", "allow both", ""},
		{"tls closed.example.com:443", "deny never", ""},
		{"tcp closed.example.com:22", "deny never", ""},
		{"unknown closed.example.com:22", "deny never", ""},
		{"tls half.example.com:443", "allow half", ""},
		{"http half.example.com:80", "deny half-denied", ""},
		{"tls dns.google:443", "allow resolver", ""},
		{"tls dns.google:853", "allow resolver", ""},
		{"tls dns.nextdns.io:443", "deny encrypted-dns", ""},
		{"tls abc.dns.nextdns.io:443", "deny encrypted-dns", ""},
		{"tls my.nextdns.io:443", "allow resolver", ""},
		{"tls my.nextdns.io:853", "deny encrypted-dns", ""},
		{"tls cloudflare-dns.com:443", "deny encrypted-dns", ""},
		{"tls registry.example.com:853", "deny encrypted-dns", ""},
		{"tcp mail.example.com:25", "allow mail", ""},
		{"tcp other.example.com:25", "deny default", ""},
		{"tls other.example.com:443", "deny default", "ask default"},
		{"tls other.example.com:0", "deny default", ""},

		{"tcp 10.1.2.3:5432", "allow database", ""},
		{"tcp [::ffff:10.1.2.3]:5432", "allow database", ""},
		{"tcp [fd12::1]:5432", "allow database", ""},
		{"tcp 10.1.3.3:5432", "deny special-address", ""},
		{"tcp 10.1.2.3:5433", "deny special-address", ""},
		{"tls 10.7.0.1:443", "deny special-address", ""}, // egress.networks is about names
		{"tcp 1.1.1.1:443", "deny raw-address", "ask default"},
		{"tcp 1.1.1.1:853", "deny encrypted-dns", ""},
		{"tcp 1.1.1.1:25", "deny raw-address", "deny default"},
		{"tcp 1.1.1.1:9000", "allow wide", ""},
		{"tcp 8.8.4.4:9000", "deny bad-network", ""},
		{"tcp 8.8.4.4:443", "deny bad-network", ""},
		{"tcp [64:ff9b::8.8.4.4]:443", "deny bad-network", ""},
		{"tcp 169.254.169.254:9000", "deny special-address", ""},
		{"tcp 10.0.0.1:9000", "deny special-address", ""},
		{"tcp [::ffff:169.254.169.254]:9000", "deny special-address", ""},
		{"tcp [64:ff9b::10.1.2.3]:5432", "deny special-address", ""},
		{"tcp [fe80::1]:5432", "deny special-address", ""},

		{"udp registry.example.com:443", "deny udp-closed", ""},
		{"udp 10.1.2.3:5432", "deny udp-closed", ""},
		{"icmp 10.1.2.3:0", "deny icmp-closed", ""},
		{"other 10.1.2.3:5432", "deny protocol-closed", ""},
	}
	for _, tt := range tests {
		c := crossing(t, tt.crossing)
		check := func(p *Policy, want string) {
			d := p.Decide(c)
			if got := d.Verdict.String() + " " + d.Rule; got != want {
				t.Errorf("%s: %s, want %s (%s)", tt.crossing, got, want, d.Reason)
			}
			if d.Reason == "" || strings.HasSuffix(d.Reason, ".") || strings.ContainsAny(d.Reason, "\n\r") {
				t.Errorf("%s: the reason %q is not one plain sentence", tt.crossing, d.Reason)
			}
			if e := p.Explain(c); e.Verdict != d.Verdict.String() || e.Rule != d.Rule {
				t.Errorf("%s: explained as %s by %s, decided as %s by %s", tt.crossing, e.Verdict, e.Rule, d.Verdict, d.Rule)
			}
		}
		check(p, tt.want)
		if tt.asked != "" {
			check(asking, tt.asked)
		} else {
			check(asking, tt.want)
		}
	}
}

// withDefault returns p with another default, which only tests want without saying so by Extend.
func (p *Policy) withDefault(v Verdict) *Policy {
	q := p.clone()
	for i := range q.layers {
		q.layers[i].fallback = v
	}
	return q
}

func TestNothingIsAllowedWithoutAPolicy(t *testing.T) {
	empty, err := New(Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []*Policy{nil, {}, empty, mustParse(t, "version: 1\n"), mustParse(t, "version: 1\negress:\n"), mustParse(t, "version: 1\negress: {default: deny, rules: []}\n")} {
		for _, text := range []string{"tls example.com:443", "tcp 1.1.1.1:443", "unknown 1.1.1.1:1", "udp 1.1.1.1:53", "tcp 127.0.0.1:80"} {
			if d := p.Decide(crossing(t, text)); d.Verdict != Deny || d.Rule == "" {
				t.Errorf("%s: %+v without a policy", text, d)
			}
		}
		if d := p.DecideName("example.com"); d.Verdict != Deny {
			t.Errorf("the name is answered without a policy: %+v", d)
		}
		if p.AsksRaw() || len(p.Networks()) > 0 {
			t.Error("raw addresses pass without a policy")
		}
	}
	for _, c := range []Crossing{{}, {Protocol: TLS}, {Protocol: DNS}, {Protocol: 200, Host: "example.com", Port: 443}, {Protocol: TLS, Addr: netip.MustParseAddr("fe80::1%eth0"), Port: 443}} {
		p := mustParse(t, "version: 1\negress: {default: ask, rules: [{hosts: [example.com]}]}\n")
		if d := p.Decide(c); d.Verdict != Deny || d.Rule == "" {
			t.Errorf("%+v: %+v", c, d)
		}
	}
}

func TestDecideName(t *testing.T) {
	p := mustParse(t, sample)
	for name, want := range map[string]string{
		"registry.example.com": "allow registry", "a.cdn.example.org": "allow registry", "git.example.com": "allow ssh", "api.example.com": "allow secure",
		"upload.example.com": "ask careful", "both.example.com": "allow both", "half.example.com": "allow half",
		"evil.cdn.example.org": "deny never", "closed.example.com": "deny never", "cdn.example.org": "deny default", "other.example": "deny default",
		"secret-in-labels.attacker.example": "deny default", "dns.google": "allow resolver", "cloudflare-dns.com": "deny encrypted-dns", "a.dns.nextdns.io": "deny encrypted-dns",
		"mail.example.com": "allow mail", "localhost": "deny default",
	} {
		d := p.DecideName(host(t, name))
		if got := d.Verdict.String() + " " + d.Rule; got != want {
			t.Errorf("%s: %s, want %s (%s)", name, got, want, d.Reason)
		}
		if asDNS := p.Decide(Crossing{Protocol: DNS, Host: host(t, name)}); asDNS != d {
			t.Errorf("%s: Decide says %+v, DecideName %+v", name, asDNS, d)
		}
	}
	asking := p.withDefault(Ask)
	for name, want := range map[string]Verdict{"other.example": Ask, "closed.example.com": Deny, "registry.example.com": Allow, "half.example.com": Allow, "cloudflare-dns.com": Deny} {
		if d := asking.DecideName(host(t, name)); d.Verdict != want {
			t.Errorf("%s, asking: %+v, want %v", name, d, want)
		}
	}
}

func TestDecideAddress(t *testing.T) {
	p := mustParse(t, sample)
	h := host(t, "registry.example.com")
	for addr, want := range map[string]string{
		"93.184.215.14": "allow public-address", "2606:4700::1": "allow public-address", "64:ff9b::93.184.215.14": "allow public-address", "::ffff:93.184.215.14": "allow public-address",
		"10.7.1.1": "allow networks", "::ffff:10.7.1.1": "allow networks", "203.0.113.9": "allow networks",
		"10.8.1.1": "deny special-address", "10.1.2.3": "deny special-address", "127.0.0.1": "deny special-address", "::1": "deny special-address",
		"169.254.169.254": "deny special-address", "64:ff9b::10.7.1.1": "deny special-address", "::ffff:127.0.0.1": "deny special-address", "fd00:ec2::254": "deny special-address",
		"0.0.0.0": "deny special-address", "fe80::1%eth0": "deny special-address", "198.18.0.1": "deny special-address",
		"8.8.4.4": "deny bad-network", "64:ff9b::8.8.4.4": "deny bad-network",
	} {
		d := p.DecideAddress(h, netip.MustParseAddr(addr))
		if got := d.Verdict.String() + " " + d.Rule; got != want {
			t.Errorf("%s: %s, want %s (%s)", addr, got, want, d.Reason)
		}
	}
	if d := p.DecideAddress(h, netip.Addr{}); d.Verdict != Deny {
		t.Errorf("no address: %+v", d)
	}
	named := mustParse(t, "version: 1\negress: {networks: [169.254.169.254/32, 100.64.0.0/10, 127.0.0.0/8]}\n")
	for addr, want := range map[string]Verdict{"169.254.169.254": Allow, "169.254.169.253": Deny, "100.64.0.1": Allow, "100.100.100.200": Deny, "127.0.0.1": Allow} {
		if d := named.DecideAddress(h, netip.MustParseAddr(addr)); d.Verdict != want {
			t.Errorf("%s: %+v, want %v", addr, d, want)
		}
	}
}

func TestOpaque(t *testing.T) {
	p := mustParse(t, sample)
	for text, want := range map[string]bool{
		"unknown git.example.com:22": true, "unknown git.example.com:23": false, "unknown registry.example.com:443": false, "unknown 10.1.2.3:5432": true, "unknown closed.example.com:22": false,
	} {
		if got := p.Opaque(crossing(t, text)); got != want {
			t.Errorf("%s: opaque is %v, want %v", text, got, want)
		}
		if got := p.withDefault(Ask).Opaque(crossing(t, text)); got != want {
			t.Errorf("%s: opaque is %v under default ask, want %v", text, got, want)
		}
	}
}

func TestEnumerations(t *testing.T) {
	for v, want := range []string{"deny", "ask", "allow", "invalid(3)"} {
		if got := Verdict(v).String(); got != want {
			t.Errorf("verdict %d is %q, want %q", v, got, want)
		}
	}
	for v, want := range []string{"unknown", "dns", "tls", "http", "tcp", "udp", "icmp", "other", "https", "git", "invalid(10)"} {
		if got := Protocol(v).String(); got != want {
			t.Errorf("protocol %d is %q, want %q", v, got, want)
		}
	}
	for v, want := range []string{"auto", "tls", "http", "tcp", "invalid(4)"} {
		if got := Wire(v).String(); got != want {
			t.Errorf("wire %d is %q, want %q", v, got, want)
		}
	}
	for v, want := range []string{"auto", "tunnel", "inspect", "invalid(3)"} {
		if got := Depth(v).String(); got != want {
			t.Errorf("depth %d is %q, want %q", v, got, want)
		}
	}
	for v, want := range []string{"none", "container", "vm-emulated", "gvisor", "vm", "invalid(5)"} {
		if got := Level(v).String(); got != want {
			t.Errorf("level %d is %q, want %q", v, got, want)
		}
	}
	for v, want := range []string{"none", "systrap", "kvm", "invalid(3)"} {
		if got := Platform(v).String(); got != want {
			t.Errorf("platform %d is %q, want %q", v, got, want)
		}
	}
	for v, want := range []string{"overlay", "ro", "rw", "invalid(3)"} {
		if got := WorkspaceMode(v).String(); got != want {
			t.Errorf("workspace mode %d is %q, want %q", v, got, want)
		}
	}
	for v, want := range []string{"ro", "rw", "invalid(2)"} {
		if got := MountMode(v).String(); got != want {
			t.Errorf("mount mode %d is %q, want %q", v, got, want)
		}
	}
	for v, want := range []string{"none", "read", "write", "invalid(3)"} {
		if got := Access(v).String(); got != want {
			t.Errorf("access %d is %q, want %q", v, got, want)
		}
	}
	for v, want := range []string{"invalid", "create", "update", "force", "delete", "propose", "invalid(6)"} {
		if got := GitChange(v).String(); got != want {
			t.Errorf("change %d is %q, want %q", v, got, want)
		}
	}
	for v, want := range []string{"plain", "github", "gitea", "gitlab", "azure", "invalid(5)"} {
		if got := ForgeType(v).String(); got != want {
			t.Errorf("forge type %d is %q, want %q", v, got, want)
		}
	}
	for _, text := range []string{"none", "invalid", "propose", ""} {
		if a, err := ParseAccess(text); err == nil {
			t.Errorf("access %q parses as %s", text, a)
		}
		if c, err := ParseGitChange(text); err == nil {
			t.Errorf("change %q parses as %s", text, c)
		}
	}
	if _, err := ParseVerdict("invalid(3)"); err == nil {
		t.Error("an invalid verdict has a name that parses")
	}
}

func TestResolversAreSorted(t *testing.T) {
	for i, name := range resolvers {
		if i > 0 && resolvers[i-1] >= name {
			t.Errorf("%s stands after %s", name, resolvers[i-1])
		}
		if _, err := netname.ParseHost(name); err != nil {
			t.Error(err)
		}
	}
}

package gateway

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/cofferdam/cofferdam/internal/gateway/dns"
	"github.com/cofferdam/cofferdam/internal/netname"
)

func TestNameTable(t *testing.T) {
	table := newNameTable(3)
	seen := map[uint32]bool{}
	for i := range 3 {
		n, ok := table.assign(netname.Host(fmt.Sprintf("n%d.example.com", i)), "")
		if !ok || seen[n] || n < firstIndex {
			t.Fatal(n, ok)
		}
		seen[n] = true
		for _, a := range []netip.Addr{addressV4(n), addressV6(n)} {
			if h, ok := table.host(a); !ok || h != netname.Host(fmt.Sprintf("n%d.example.com", i)) || !synthetic(a) {
				t.Error(a, h, ok)
			}
		}
	}
	if n, ok := table.assign("n1.example.com", ""); !ok || n != firstIndex+1 {
		t.Error("another index for the same name", n, ok)
	}
	if _, ok := table.assign("n4.example.com", ""); ok {
		t.Error("over the limit")
	}
	for _, a := range []string{"198.18.0.1", "198.18.0.0", "198.18.1.3", "198.19.255.255", "198.17.255.255", "198.20.0.0", "fdcf:d0::1", "fdcf:d0::1:0:100", "8.8.8.8", "::"} {
		if h, ok := table.host(netip.MustParseAddr(a)); ok {
			t.Error(a, "is", h)
		}
	}
	if last := addressV4(firstIndex + maxNames); !SyntheticV4().Contains(last) {
		t.Error("range too small", last)
	}
}

// TestExfiltrationByName asks for what must never leave: the resolver is not asked once, for allowed names neither.
func TestExfiltrationByName(t *testing.T) {
	b := start(t, `egress:
  rules:
    - name: cdn
      hosts: ["*.cdn.example.com", registry.example.org]
`, func(c *Config) { c.Limits.WildcardNames = 3 })
	long := strings.Repeat("ab", 25)
	for _, test := range []struct {
		name, rule string
	}{
		{"registry.example.org", ""},
		{"a.cdn.example.com", ""},
		{"b.c.cdn.example.com", ""},
		{"cdn.example.com", "default"},
		{"secret.evil.example", "default"},
		{"x.registry.example.org", "default"},
		{"registry.example.org.evil.example", "default"},
		{"notcdn.example.com", "default"},
		{"wpad", "default"},
		{"registry", "default"},
		{"registry.example.org.corp.example", "default"}, // what a search domain makes of it
		{long + "." + long + ".cdn.example.com", RuleWildcardLimit},
		{"d.cdn.example.com", ""},
		{"e.cdn.example.com", RuleWildcardLimit}, // the fourth
		{"a.cdn.example.com", ""},                // known already
		{"gateway.cofferdam.internal", ""},
	} {
		r := b.g.Lookup(t.Context(), netname.Host(test.name), netip.AddrPort{})
		if (r.Outcome == dns.Found) != (test.rule == "") || !strings.HasPrefix(r.Text, test.rule) {
			t.Errorf("%s: %+v, want rule %q", test.name, r, test.rule)
		}
	}
	if q := b.zone.questions(); len(q) > 0 {
		t.Errorf("asked %v", q)
	}
	b.log.full.Store(true)
	if r := b.g.Lookup(t.Context(), "new.cdn.example.com", netip.AddrPort{}); r.Outcome == dns.Found {
		t.Error("a name without a record")
	}
	b.log.full.Store(false)
}

func TestReverse(t *testing.T) {
	b := start(t, allow(443, ""), nil)
	r := b.g.Lookup(t.Context(), "good.example.com", netip.AddrPort{})
	for _, a := range []netip.Addr{r.V4, r.V6} {
		if h, ok := b.g.Reverse(a); !ok || h != "good.example.com" {
			t.Error(a, h, ok)
		}
	}
	if _, ok := b.g.Reverse(netip.MustParseAddr("8.8.8.8")); ok {
		t.Error("a name for a foreign address")
	}
	if !strings.Contains(b.g.Lookup(t.Context(), "x.example.net", netip.AddrPort{}).Text, "--allow x.example.net") {
		t.Error("no remedy")
	}
}

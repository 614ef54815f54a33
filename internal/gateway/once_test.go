package gateway

import (
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/policy"
)

func onceFor(t *testing.T, name, text string) Once {
	t.Helper()
	s, err := policy.ParseSnippet(text)
	if err != nil {
		t.Fatal(err)
	}
	return Once{Name: name, Snippet: s}
}

func TestOnce(t *testing.T) {
	port := serve(t, echo)
	var used atomic.Int64
	b := start(t, "egress: {networks: [127.0.0.0/8]}\n", func(c *Config) { c.Used = func(string) { used.Add(1) } })
	b.zone.set("good.example.com", "127.0.0.1")
	base := parse(t, "egress: {networks: [127.0.0.0/8]}\n")
	rule := onceFor(t, "approved:1", fmt.Sprintf("- {hosts: [good.example.com], ports: [%d], protocol: tcp}", port))
	if err := b.g.SetPolicyOnce(base, rule); err != nil {
		t.Fatal(err)
	}
	// What cannot be recorded does not happen, and uses nothing up.
	b.log.full.Store(true)
	b.g.names.assign("good.example.com", "")
	if c := b.to("good.example.com", port); !isReset(c) {
		t.Error("crossing without a record")
	}
	b.log.full.Store(false)
	c := b.to("good.example.com", port)
	defer c.Close()
	roundTrip(t, c, 10)
	if used.Load() != 1 {
		t.Errorf("used %d times", used.Load())
	}
	again := b.connect(netip.AddrPortFrom(addressV4(firstIndex), port)) // the address that the name had
	defer again.Close()
	if !isReset(again) {
		t.Error("a rule for one crossing let another through")
	}
	// The crossing that it let through goes on under a policy that says nothing about it, and ends under one that denies it.
	b.g.SetPolicy(parse(t, "egress: {networks: [127.0.0.0/8], rules: [{hosts: [other.example.com]}]}\n"))
	roundTrip(t, c, 10)
	b.g.SetPolicy(parse(t, "egress: {rules: [{hosts: [good.example.com], verdict: deny}]}\n"))
	if !isReset(c) {
		t.Error("what is denied goes on")
	}
	_ = b.stop()
	for _, e := range b.log.all() {
		if e.Verdict == "allow" && e.Protocol == "tcp" && e.Rule != "approved:1" {
			t.Errorf("on record by %q", e.Rule)
		}
	}
}

// A rule is used once however often it is set: whoever sets it may not have heard that it was used.
func TestOnceSetAgain(t *testing.T) {
	b := start(t, "egress: {networks: [127.0.0.0/8]}\n", nil)
	base := parse(t, "egress: {networks: [127.0.0.0/8]}\n")
	rule := onceFor(t, "approved:1", "- {hosts: [good.example.com], ports: [443], protocol: tcp}")
	c := policy.Crossing{Protocol: policy.TCP, Host: "good.example.com", Port: 443}
	set := func() {
		t.Helper()
		if err := b.g.SetPolicyOnce(base, rule); err != nil {
			t.Fatal(err)
		}
	}
	set()
	var through atomic.Int64
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 500 {
				if d, _, _ := b.g.once.decide(b.g, c); d.Verdict == policy.Allow {
					through.Add(1)
				}
			}
		})
		wg.Go(func() {
			for range 50 {
				if err := b.g.SetPolicyOnce(base, rule); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if n := through.Load(); n != 1 {
		t.Errorf("a rule for one crossing that was set again and again let %d through", n)
	}
	// One whose crossing did not happen after all was not used.
	other := onceFor(t, "approved:2", "- {hosts: [good.example.com], ports: [443], protocol: tcp}")
	if err := b.g.SetPolicyOnce(base, other); err != nil {
		t.Fatal(err)
	}
	_, _, used := b.g.once.decide(b.g, c)
	if used == nil {
		t.Fatal("a fresh rule lets nothing through")
	}
	set()
	b.g.once.giveBack(b.g, used)
	if d, _, _ := b.g.once.decide(b.g, c); d.Verdict != policy.Deny {
		t.Error("a rule that was taken back is in force")
	}
	if err := b.g.SetPolicyOnce(base, other, rule); err != nil {
		t.Fatal(err)
	}
	for i, want := range []policy.Verdict{policy.Allow, policy.Deny} {
		if d, _, _ := b.g.once.decide(b.g, c); d.Verdict != want {
			t.Errorf("crossing %d after a rule was given back: %v", i+1, d)
		}
	}
}

func TestOnceRefused(t *testing.T) {
	b := start(t, "", nil)
	base := parse(t, "egress: {rules: [{name: ours, hosts: [a.example.com]}]}\n")
	good := onceFor(t, "approved:1", "- {hosts: [good.example.com]}")
	for name, once := range map[string][]Once{
		"no name":          {onceFor(t, "", "- {hosts: [b.example.com]}")},
		"a rule's name":    {onceFor(t, "ours", "- {hosts: [b.example.com]}")},
		"the same twice":   {good, good},
		"a denial":         {onceFor(t, "x", "- {hosts: [b.example.com], verdict: deny}")},
		"networks alone":   {onceFor(t, "x", "networks: [10.0.0.0/8]")},
		"a built-in name":  {onceFor(t, policy.RuleDefault, "- {hosts: [b.example.com]}")},
		"two, one is good": {good, onceFor(t, "x", "- {hosts: [b.example.com], verdict: ask}")},
	} {
		if err := b.g.SetPolicyOnce(base, once...); fault.KindOf(err) != fault.Invalid {
			t.Errorf("%s: %v", name, err)
		}
		if d := b.g.policy.Load().DecideName("good.example.com"); d.Verdict != policy.Deny || strings.HasPrefix(d.Rule, "approved") {
			t.Errorf("%s: in force all the same", name)
		}
	}
}

package main

import (
	"slices"
	"strings"
	"testing"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/policy"
)

func policyOf(t *testing.T, isolation policy.Isolation) *policy.Policy {
	t.Helper()
	p, err := policy.New(policy.Options{Isolation: isolation})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestPlatformFlag holds the flag to the policy's words: it says the platform of level gvisor, and no other level is chosen by it.
func TestPlatformFlag(t *testing.T) {
	for _, c := range []struct {
		isolation, platform string
		want                policy.Platform // 0: refused
		says                string
	}{
		{"gvisor", "", policy.Systrap, ""}, {"gvisor", "systrap", policy.Systrap, ""}, {"gvisor", "kvm", policy.KVM, ""},
		{"gvisor", "ptrace", 0, "--gvisor-platform: unknown platform"}, {"", "kvm", 0, "the isolation level is container"}, {"vm", "kvm", 0, "the isolation level is vm"},
		{"kata", "", 0, "--isolation: there is no isolation level kata"},
	} {
		f := runFlags{isolation: c.isolation, platform: c.platform}
		o, err := f.options(workspaceChoice{})
		var p *policy.Policy
		if err == nil {
			p, err = policy.New(o)
		}
		switch {
		case c.want == 0 && (err == nil || !strings.Contains(err.Error(), c.says) || fault.HintOf(err) == ""):
			t.Errorf("%+v: %v, hint %q", c, err, fault.HintOf(err))
		case c.want != 0 && (err != nil || p.Platform() != c.want):
			t.Errorf("%+v: %v", c, err)
		}
	}
}

// TestPlatformInSpec: the supervisor and the record are told of kvm where it was asked for, and only there.
func TestPlatformInSpec(t *testing.T) {
	for _, c := range []struct {
		isolation policy.Isolation
		want      string
		ordinary  bool // a sandbox that waits could become it
	}{
		{policy.Isolation{}, "", true}, {policy.Isolation{Level: policy.GVisor}, "", true}, {policy.Isolation{Level: policy.GVisor, Platform: policy.Systrap}, "", true},
		{policy.Isolation{Level: policy.GVisor, Platform: policy.KVM}, "kvm", false},
	} {
		e := &execution{settled: settled{policy: policyOf(t, c.isolation)}}
		if got := e.platform(); got != c.want {
			t.Errorf("%+v: the supervisor is told %q", c.isolation, got)
		}
		if got := e.record().Platform; got != c.want {
			t.Errorf("%+v: the record has %q", c.isolation, got)
		}
		if got := e.ordinary(); got != c.ordinary {
			t.Errorf("%+v: a sandbox of the pool could become it: %v", c.isolation, got)
		}
		if used := e.platformUsed(); used != "" {
			t.Errorf("%+v: a sandbox that was not made ran on %q", c.isolation, used)
		}
		e.created.PID = 1
		if used := e.platformUsed(); (used != "") != (c.want != "") || !strings.Contains(used, c.want) {
			t.Errorf("%+v: the record says %q", c.isolation, used)
		}
	}
}

// TestPlatformStays: a sandbox that runs keeps its platform, whatever the policy says anew.
func TestPlatformStays(t *testing.T) {
	kvm, usual := policy.Isolation{Level: policy.GVisor, Platform: policy.KVM}, policy.Isolation{Level: policy.GVisor}
	for _, c := range []struct {
		was, next policy.Isolation
		fits      bool
	}{{usual, usual, true}, {kvm, kvm, true}, {usual, kvm, false}, {kvm, usual, false}} {
		k := &keeping{execution: &execution{settled: settled{policy: policyOf(t, c.was)}}}
		if err := k.fits(policyOf(t, c.next)); (err == nil) != c.fits || err != nil && !strings.Contains(err.Error(), "platform") {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

// TestIsolationCompletion offers what there is.
func TestIsolationCompletion(t *testing.T) {
	if got, _ := completeLevels(nil, nil, ""); slices.Contains(got, "kata") || !slices.Contains(got, "vm") {
		t.Errorf("levels: %q", got)
	}
	if got, _ := completePlatforms(nil, nil, ""); !slices.Equal(got, []string{"systrap", "kvm"}) {
		t.Errorf("platforms: %q", got)
	}
}

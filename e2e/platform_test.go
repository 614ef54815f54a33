package e2e

import (
	"encoding/json"
	"sort"
	"strings"
	"testing"

	"github.com/cofferdam/cofferdam/internal/testenv"
)

// TestGVisorPlatform asks for gVisor's platform KVM. Where doctor says that it is not to be had nothing starts, for the reason that doctor names, and nothing on the
// other platform in its place; where doctor says that it is, it runs. The other platform, asked for by name, is the control.
func TestGVisorPlatform(t *testing.T) {
	testenv.Need(t, "gvisor")
	forEachUser(t, func(t *testing.T, h *house) {
		h.as.level = "gvisor"
		c := newCrypt(h) // without machines, whose self-test would take doctor a minute
		h.as.level = ""
		able, reason := h.platformKVM()
		r := h.do("run", "--isolation", "gvisor", "--gvisor-platform", "kvm", "--", "echo", "started")
		started := strings.Contains(r.stdout, "started")
		t.Logf("able %v: exit %d: %s", able, r.code, r.stderr)
		switch {
		case able && (r.code != 0 || !started):
			t.Errorf("doctor says that it can be had: exit %d: %s", r.code, r.stderr)
		case !able && (r.code != 125 || started || !strings.Contains(r.stderr, reason) || !strings.Contains(r.stderr, "hint: ")):
			t.Errorf("doctor says %q: exit %d: %s%s", reason, r.code, r.stdout, r.stderr)
		}
		h.write("agent.yaml", "version: 1\nisolation: {level: gvisor, platform: kvm}\n")
		if r := h.do("run", "--policy", "agent.yaml", "--", "echo", "started"); able != strings.Contains(r.stdout, "started") {
			t.Errorf("by a policy: exit %d: %s%s", r.code, r.stdout, r.stderr)
		}
		if r := h.do("run", "--policy", "agent.yaml", "--gvisor-platform", "systrap", "--", "uname", "-r"); r.code != 0 || !strings.Contains(r.stdout, "gvisor") {
			t.Errorf("control: exit %d: %s%s", r.code, r.stdout, r.stderr)
		}
		c.platformsOnRecord([]string{"kvm", "kvm", ""})
	})
}

// platformKVM returns what doctor says of the platform: whether it can be had, or the reason, without what was measured.
func (h *house) platformKVM() (able bool, reason string) {
	h.t.Helper()
	var d struct {
		Features []struct {
			Name, Detail, Remedy string
			OK                   bool
		}
	}
	if err := json.Unmarshal([]byte(h.do("doctor", "--json").stdout), &d); err != nil {
		h.t.Fatal(err)
	}
	for _, f := range d.Features {
		if f.Name != "gvisor platform kvm" {
			continue
		}
		if !strings.Contains(f.Detail, "not run on hardware yet") || !f.OK && f.Remedy == "" {
			h.t.Errorf("doctor: %+v", f)
		}
		reason, _, _ = strings.Cut(strings.TrimSuffix(f.Detail, "; not run on hardware yet"), "(")
		return f.OK, reason
	}
	h.t.Fatal("doctor says nothing of the platform")
	return false, ""
}

// platformsOnRecord holds records and audit log of the last runs to the platforms that were asked for, in order.
func (c *crypt) platformsOnRecord(want []string) {
	c.t.Helper()
	runs := c.runs()
	sort.Slice(runs, func(i, j int) bool { return runs[i].Started.Before(runs[j].Started) })
	if len(runs) < len(want) {
		c.t.Fatalf("ps: %+v", runs)
	}
	for i, r := range runs[len(runs)-len(want):] { // doctor's own come before
		if r.Isolation != "gvisor" || r.Platform != want[i] {
			c.t.Errorf("run %d: %+v, want %q", i, r, want[i])
		}
		for _, e := range c.eventsOf(r.Run) {
			if e.Kind == "run.started" && strings.Contains(e.Detail, "platform=kvm") != (want[i] == "kvm") {
				c.t.Errorf("run %d: ps says %q, the audit log %q", i, r.Platform, e.Detail)
			}
		}
	}
	if shown := c.do("ps", "--all").stdout; !strings.Contains(shown, "gvisor/kvm ") {
		c.t.Errorf("ps: %s", shown)
	}
}

// TestPlatformPool: what waits in a pool has the usual platform. A run that asks for the other one takes none of it, and an ordinary one does.
func TestPlatformPool(t *testing.T) {
	forEachPool(t, func(t *testing.T, w *warmHouse) {
		if w.level != "gvisor" {
			return
		}
		before := w.full()
		w.do("run", "--isolation", "gvisor", "--gvisor-platform", "kvm", "--", "true")
		if after := w.status(); after.Claimed != before.Claimed {
			t.Errorf("a sandbox that waited was taken: %+v, before %+v", after, before)
		}
		w.do("run", "--isolation", "gvisor", "--", "true")
		if after := w.status(); after.Claimed != before.Claimed+1 {
			t.Errorf("control: %+v, before %+v", after, before)
		}
	})
}

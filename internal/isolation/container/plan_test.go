package container

import (
	"slices"
	"testing"

	"github.com/cofferdam/cofferdam/internal/supervisor/call"
)

// TestDirect says for each kind of layer whether somebody may listen in it, and that asking for sockets is told only where they lead out.
func TestDirect(t *testing.T) {
	for _, c := range []struct {
		layer layer
		want  bool
	}{
		{layer{Source: "/w", Mode: "overlay"}, false},
		{layer{Source: "/w", Mode: "ro"}, false}, // an overlay that nobody may write
		{layer{Source: "/w", Mode: "rw"}, true},
		{layer{Source: "/w", Mode: "bound"}, true},
		{layer{Source: "/w/file", Mode: "rw", File: true}, false},
		{layer{Source: "/w/file", Mode: "bound", File: true}, false},
		{layer{Source: "/var", Mode: "ro", Host: true}, false},
		{layer{Source: "/var", Mode: "bound", Host: true}, true},
		{layer{Source: "/opt", Mode: "bound", Host: true}, true},
		{layer{Source: "/nix", Mode: "bound", Host: true}, true},
		{layer{Source: "/etc", Mode: "bound", Host: true}, false},
		{layer{Source: "/usr", Mode: "bound", Host: true}, false},
		{layer{Source: "/usr", Mode: "bound"}, true}, // the person's choice, not the system's view
	} {
		p := plan{Layers: []layer{{Source: "/etc", Mode: "ro", Host: true}, c.layer}}
		if got := p.direct(); got != c.want {
			t.Errorf("%+v: direct %v", c.layer, got)
		}
		if w := p.weaker(); w != nil {
			t.Errorf("%+v: weaker without being asked for: %q", c.layer, w)
		}
		p.Spec = call.Create{BestEffort: []string{"memory", UnixSockets}}
		if w := p.weaker(); (len(w) == 1) != c.want {
			t.Errorf("%+v: weaker %q", c.layer, w)
		}
	}
}

// TestSeenDirectly holds that nothing static is listed.
func TestSeenDirectly(t *testing.T) {
	paths, err := SeenDirectly()
	if err != nil || slices.ContainsFunc(paths, static) {
		t.Errorf("%q, %v", paths, err)
	}
}

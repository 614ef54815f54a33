package pack

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/cofferdam/cofferdam/internal/gateway/git/wire"
)

// TestTreesBelowTrees gets trees of which some are below others, in any order: git leaves those out that it meets on its way to another.
func TestTreesBelowTrees(t *testing.T) {
	for _, filter := range []bool{true, false} {
		s := newScene(t, wire.SHA1, filter)
		s.commit("deep", "main", "M 100644 inline a/b/c/d/e\ndata 1\n1\n")
		s.publish("deep:refs/heads/deep")
		ids := []wire.ID{s.resolve("deep:a"), s.resolve("deep:a/b"), s.resolve("deep:a/b/c"), s.resolve("deep:a/b/c/d")}
		for order, list := range map[string][]wire.ID{"from above": ids, "from below": {ids[3], ids[2], ids[1], ids[0]}, "mixed": {ids[1], ids[3], ids[0], ids[2]}} {
			for _, levels := range []int{0, 5} {
				u := NewUpstream(wire.SHA1, s.upstream)
				u.levels = levels
				if err := u.trees(context.Background(), list); err != nil {
					t.Errorf("filter %v, %s, after %d levels: %v", filter, order, levels, err)
				}
			}
		}
		u := NewUpstream(wire.SHA1, s.upstream)
		if err := u.trees(context.Background(), []wire.ID{ids[0], s.resolve("deep:a/b/c/d/e")}); !errors.Is(err, ErrMissing) {
			t.Errorf("filter %v: a file is taken for a tree: %v", filter, err)
		}
	}
}

// TestUpstreamsThatCanLess has verdicts that do not depend on what the upstream can leave out.
func TestUpstreamsThatCanLess(t *testing.T) {
	s := newScene(t, wire.SHA1, true)
	s.commit("deep", "main", "M 100644 inline a/b/c/d/.ci\ndata 1\n1\nM 100644 inline a/b/x\ndata 1\n1\n")
	s.publish("deep:refs/heads/main")
	s.commit("good", "deep", "M 100644 inline a/b/c/d/e\ndata 1\n1\n")
	s.commit("evil", "deep", "M 100644 inline a/b/c/d/.ci\ndata 1\n2\n")
	for name, config := range map[string][]string{
		"all filters":         {"uploadpackfilter.allow", "true"},
		"tree:0 only":         {"uploadpackfilter.tree.maxDepth", "0"},
		"no filter":           {"uploadpack.allowFilter", "false"},
		"all filters, again ": {"uploadpack.allowFilter", "true"},
	} {
		s.upstream.git("", append([]string{"config"}, config...)...)
		for tip, want := range map[string][]string{"good": nil, "evil": {"a/b/c/d/.ci"}} {
			p := mustRead(t, wire.SHA1, s.pack([]string{"refs/heads/" + tip, "^deep"}, "--delta-base-offset"))
			s.upstream.asked = 0
			got, err := p.Changed(context.Background(), NewUpstream(wire.SHA1, s.upstream), nil, named(".ci"))
			if err != nil || !slices.Equal(got, want) {
				t.Errorf("%s, %s: %q (%v), want %q", name, tip, got, err, want)
			}
			t.Logf("%s, %s: %d questions", name, tip, s.upstream.asked)
		}
		s.upstream.git("", "config", "--unset-all", config[0])
		s.upstream.git("", "config", "uploadpack.allowFilter", "true")
	}
}

// TestManyTreesBelow goes back to one level at a time where there is much below.
func TestManyTreesBelow(t *testing.T) {
	s := newScene(t, wire.SHA1, true)
	var many strings.Builder
	for i := range 200_000 {
		fmt.Fprintf(&many, "M 100644 inline a/b/d%d/f%d\ndata 1\n1\n", i%300, i)
	}
	s.commit("many", "main", many.String())
	s.publish("many:refs/heads/main")
	s.commit("good", "many", "M 100644 inline a/b/d7/e\ndata 1\n1\n")
	s.commit("evil", "many", "M 100644 inline a/b/d7/.ci\ndata 1\n2\n")
	for tip, want := range map[string][]string{"good": nil, "evil": {"a/b/d7/.ci"}} {
		p := mustRead(t, wire.SHA1, s.pack([]string{"refs/heads/" + tip, "^many"}, "--delta-base-offset"))
		u := NewUpstream(wire.SHA1, s.upstream)
		got, err := p.Changed(context.Background(), u, nil, named(".ci"))
		if err != nil || !slices.Equal(got, want) || !u.alone || u.memory > 1<<20 {
			t.Errorf("%s: %q (%v), want %q; one level at a time: %v, %d bytes", tip, got, err, want, u.alone, u.memory)
		}
	}
}

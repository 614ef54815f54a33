package pack

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/cofferdam/cofferdam/internal/gateway/git/wire"
)

// overwritten judges an update of a branch by exactly the objects that it brings.
func (s *scene) overwritten(old, to string) ([]string, error) {
	s.t.Helper()
	known := strings.Fields(s.upstream.git("", "for-each-ref", "--format=^%(objectname)"))
	list := s.git("", append([]string{"rev-list", "--objects", "--no-object-names", "refs/heads/" + to}, known...)...)
	p := mustRead(s.t, s.format, []byte(s.git(list, "pack-objects", "-q", "--stdout", "--delta-base-offset")))
	return p.Overwritten(context.Background(), NewUpstream(s.format, s.upstream), s.resolve("refs/heads/"+old), s.resolve("refs/heads/"+to), prefixes{".ci"})
}

func TestOverwritten(t *testing.T) {
	run := func(v string) string { return "M 100644 inline .ci/run\ndata 1\n" + v + "\n" }
	for _, f := range []wire.Format{wire.SHA1, wire.SHA256} {
		for _, filter := range []bool{true, false} {
			s := newScene(t, f, filter) // base has 1, main has 2
			s.commit("side", "base", "M 100644 inline src/s\ndata 1\ns\n")
			s.commit("agent", "base", "M 100644 inline src/a\ndata 1\nb\n")
			s.commit("fresh", "main", "M 100644 inline src/a\ndata 1\nf\n")
			s.commit("root", "", "M 100644 inline src/r\ndata 1\nr\n")
			s.commit("main3", "main", run("3"))
			s.commit("without", "main", "D .ci/run\n")
			s.commit("agent2", "agent main", run("2"))
			s.publish("side:refs/heads/side", "agent:refs/heads/agent", "fresh:refs/heads/fresh", "main3:refs/heads/main3", "without:refs/heads/without", "agent2:refs/heads/agent2")
			s.commit("with-ancestor", "main base", run("1"))
			s.commit("with-side", "main side", run("2"))
			s.commit("with-side-old", "main side", run("1"))
			s.commit("with-root", "main root", "D .ci/run\n")
			s.commit("with-root-kept", "main root", run("2"))
			s.commit("takes-main", "agent main", run("2"))
			s.commit("keeps-own", "agent main", run("1"))
			s.commit("takes-main3", "agent2 main3", run("3"))
			s.commit("takes-deletion", "fresh without", "D .ci/run\n")
			s.commit("deletes", "main3 without", "D .ci/run\n")
			ci := []string{".ci/run"}
			for _, c := range []struct {
				name, old, to string
				want          []string
			}{
				{"a merge of an ancestor brings the old file back", "main", "with-ancestor", ci},
				{"a merge of a branch", "main", "with-side", nil},
				{"a merge of a branch brings its old file", "main", "with-side-old", ci},
				{"a merge of a root of its own deletes it", "main", "with-root", ci},
				{"a merge of a root of its own leaves it", "main", "with-root-kept", nil},
				{"a branch takes main's file", "agent", "takes-main", nil},
				{"a branch keeps its own", "agent", "keeps-own", nil},
				{"a branch takes main's file again", "agent2", "takes-main3", nil},
				{"a branch takes a deletion", "fresh", "takes-deletion", nil},
				{"a deletion where the branch has changed it", "main3", "deletes", ci},
				{"to what another branch has", "agent", "agent2", nil},
			} {
				got, err := s.overwritten(c.old, c.to)
				if err != nil || !slices.Equal(got, c.want) {
					t.Errorf("%v, filter %v, %s: %q, not %q: %v", f, filter, c.name, got, c.want, err)
				}
			}
		}
	}
}

// TestBases compares with git on random histories.
func TestBases(t *testing.T) {
	for seed := range uint64(3) {
		r := newRepository(t, wire.SHA1)
		ids := r.history(seed, 40)
		for i, id := range ids {
			r.git("", "update-ref", fmt.Sprintf("refs/heads/h%d", i), id.String())
		}
		u := &asker{repository: r}
		r.git("", "config", "uploadpack.allowFilter", "true")
		for i := range 60 {
			a, b := ids[(i*7)%len(ids)], ids[(i*13+5)%len(ids)]
			out, _ := r.try("", "merge-base", "--all", a.String(), b.String()) // without one it fails
			want := strings.Fields(string(out))
			got, err := NewUpstream(wire.SHA1, u).bases(context.Background(), a, b)
			var names []string
			for _, id := range got {
				names = append(names, id.String())
			}
			slices.Sort(names)
			slices.Sort(want)
			if err != nil || !slices.Equal(names, want) {
				t.Errorf("%v and %v: %v, not %v: %v", a, b, names, want, err)
			}
		}
	}
}

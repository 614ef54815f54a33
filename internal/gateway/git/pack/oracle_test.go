package pack

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/cofferdam/cofferdam/internal/gateway/git/wire"
)

// TestEveryObject holds what is kept of git's own packs to what git lists.
func TestEveryObject(t *testing.T) {
	for _, f := range formats() {
		r := newRepository(t, f)
		r.history(uint64(f), 60)
		r.git("", "tag", "-a", "-m", "x", "one", "c3")
		r.git("", "tag", "-a", "-m", "x", "two", "one")
		for _, options := range [][]string{{}, {"--delta-base-offset"}, {"--delta-base-offset", "--window=50", "--depth=4000"}, {"--window=50", "--depth=200"}, {"--window=0"}} {
			data := r.pack(nil, append(options, "--all")...)
			p := mustRead(t, f, data)
			want := map[wire.ID]kind{}
			listed := strings.Fields(r.git(r.git("", "rev-list", "--objects", "--all", "--no-object-names"), "cat-file", "--batch-check=%(objecttype)_%(objectname)"))
			for _, line := range listed {
				name, id, _ := strings.Cut(line, "_")
				if name != "blob" {
					want[r.id(id)] = map[string]kind{"commit": commitKind, "tree": treeKind, "tag": tagKind}[name]
				}
			}
			if p.Objects() != len(listed) {
				t.Errorf("%v %v: %d objects, want %d", f, options, p.Objects(), len(listed))
			}
			got := map[wire.ID]kind{}
			for slot := range uint32(p.kept.records.len) {
				if k := p.kept.kind(slot); k != blobKind {
					got[p.kept.id(slot)] = k
				}
			}
			if len(got) != len(want) {
				t.Errorf("%v %v: %d commits, trees and tags, want %d", f, options, len(got), len(want))
			}
			for id, k := range want {
				if got[id] != k {
					t.Errorf("%v %v: %v is of kind %d, want %d", f, options, id, got[id], k)
				}
			}
			if id, err := p.peel(r.resolve("two")); err != nil || id != r.resolve("c3") {
				t.Errorf("%v: the tag of a tag leads to %v (%v)", f, id, err)
			}
			if text, ok := p.Message(r.resolve("c3")); !ok || text != "n003\n" {
				t.Errorf("message %q %v", text, ok)
			}
		}
	}
}

// TestSplit has a pack read the same however it is cut.
func TestSplit(t *testing.T) {
	r := newRepository(t, wire.SHA1)
	r.history(5, 20)
	data := r.pack(nil, "--all", "--delta-base-offset")
	for _, piece := range []int{1, 2, 3, 20, 21, 4096, len(data)} {
		p, err := read(wire.SHA1, scratch(t), Limits{}, data, piece)
		if err != nil {
			t.Fatalf("in pieces of %d: %v", piece, err)
		}
		if _, ok, err := p.Commit(r.resolve("c7")); !ok || err != nil {
			t.Errorf("in pieces of %d: a commit is lost: %v", piece, err)
		}
	}
}

// setting is a history of which the upstream has a part.
type setting struct {
	*repository
	upstream *asker
	commits  []wire.ID
	has      []int // commits that branches of the upstream point to
}

// newSetting makes a history, and an upstream that has what some of its commits lead to.
func newSetting(t testing.TB, f wire.Format, seed uint64, commits int, filter bool) *setting {
	t.Helper()
	s := &setting{repository: newRepository(t, f), upstream: &asker{repository: newRepository(t, f)}}
	s.commits = s.history(seed, commits)
	s.upstream.git("", "config", "uploadpack.allowFilter", fmt.Sprint(filter))
	rnd := rand.New(rand.NewPCG(seed, 3))
	for range 3 {
		n := rnd.IntN(commits)
		s.has = append(s.has, n)
		s.git("", "push", "-q", s.upstream.dir, fmt.Sprintf("%v:refs/heads/b%d", s.commits[n], n))
	}
	return s
}

// push is the pack of what a commit has and the upstream lacks.
func (s *setting) push(t testing.TB, n int) *Pack {
	t.Helper()
	revs := []string{s.commits[n].String()}
	for _, n := range s.has {
		revs = append(revs, "^"+s.commits[n].String())
	}
	return mustRead(t, s.format, s.pack(revs, "--delta-base-offset"))
}

// TestFastForward holds FastForward to git merge-base --is-ancestor.
func TestFastForward(t *testing.T) {
	yes, no, asked := 0, 0, 0
	for seed := range uint64(4) {
		s := newSetting(t, formats()[seed%2], seed, 30, seed%3 > 0)
		for n := range s.commits {
			p := s.push(t, n)
			for _, has := range s.has {
				for _, old := range []wire.ID{s.commits[has], s.resolve(fmt.Sprintf("%v~%d", s.commits[has], min(1, strings.Count(s.git("", "rev-list", "--first-parent", s.commits[has].String()), "\n")-1)))} {
					_, err := s.try("", "merge-base", "--is-ancestor", old.String(), s.commits[n].String())
					before := s.upstream.asked
					got, gotErr := p.FastForward(context.Background(), NewUpstream(s.format, s.upstream), old, s.commits[n])
					if gotErr != nil || got != (err == nil) {
						t.Errorf("seed %d: %v to %v: %v (%v), git says %v", seed, old, s.commits[n], got, gotErr, err)
					}
					if got {
						yes++
					} else {
						no++
					}
					asked += s.upstream.asked - before
				}
			}
		}
	}
	if yes < 80 || no < 80 || asked < 80 {
		t.Errorf("%d go forward, %d do not, %d questions: the histories test too little", yes, no, asked)
	}
	t.Logf("%d forward, %d not, %d questions", yes, no, asked)
}

// TestFastForwardOfOthers has only commits go forward.
func TestFastForwardOfOthers(t *testing.T) {
	for _, filter := range []bool{true, false} {
		s := newSetting(t, wire.SHA1, 1, 10, filter)
		s.git("", "tag", "-a", "-m", "x", "on", "c9")
		s.git("", "push", "-q", s.upstream.dir, "c9:refs/heads/main", "on", "c9^{tree}:refs/tags/tree", "c9~1:refs/heads/back")
		empty := mustRead(t, wire.SHA1, newBuilder(wire.SHA1).pack())
		withTag := mustRead(t, wire.SHA1, s.pack([]string{"on", "^c9"}))
		main, back, tag, tree := s.resolve("c9"), s.resolve("c9~1"), s.resolve("on"), s.resolve("c9^{tree}")
		unknown := s.id(strings.Repeat("ab", 20))
		for name, c := range map[string]struct {
			pack    *Pack
			old, to wire.ID
			want    bool
			fails   bool
		}{
			"commit to its child":                  {empty, back, main, true, false},
			"commit to its parent":                 {empty, main, back, false, false},
			"the same":                             {empty, main, main, true, false},
			"commit to a tag of its child":         {empty, back, tag, false, false},
			"commit to a tag in the pack":          {withTag, back, tag, false, false},
			"tag to its commit":                    {empty, tag, main, false, false},
			"tree to its commit":                   {empty, tree, main, false, false},
			"commit to its tree":                   {empty, main, tree, false, false},
			"what is not there to a commit":        {empty, unknown, main, false, true},
			"commit to what is not there, or here": {empty, main, unknown, false, false},
		} {
			got, err := c.pack.FastForward(context.Background(), NewUpstream(wire.SHA1, s.upstream), c.old, c.to)
			if got != c.want || (err != nil) != c.fails {
				t.Errorf("filter %v: %s: %v (%v), want %v", filter, name, got, err, c.want)
			}
		}
	}
}

// prefixes protects what is at or below its paths.
type prefixes []string

func (p prefixes) Protected(path string) bool {
	return slices.ContainsFunc(p, func(one string) bool { return one == "" || path == one || strings.HasPrefix(path, one+"/") })
}

func (p prefixes) ProtectedBelow(dir string) bool {
	return slices.ContainsFunc(p, func(one string) bool { return dir == "" || strings.HasPrefix(one+"/", dir+"/") }) || p.Protected(dir)
}

// leaves are the files, links and submodules of a commit.
func (s *setting) leaves(commit string) map[string]string {
	all := map[string]string{}
	for line := range strings.SplitSeq(strings.TrimSuffix(s.git("", "ls-tree", "-r", "-z", "--full-tree", commit), "\x00"), "\x00") {
		if what, path, ok := strings.Cut(line, "\t"); ok {
			all[path] = what
		}
	}
	return all
}

// expected is what Changed should say, by comparing whole lists of files.
func (s *setting) expected(n int, paths Paths) []string {
	revs := []string{s.commits[n].String()}
	for _, n := range s.has {
		revs = append(revs, "^"+s.commits[n].String())
	}
	found := map[string]bool{}
	for line := range strings.SplitSeq(strings.TrimSpace(s.git("", append([]string{"rev-list", "--parents"}, revs...)...)), "\n") {
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		own, parents := s.leaves(words[0]), []map[string]string{}
		for _, parent := range words[1:] {
			parents = append(parents, s.leaves(parent))
		}
		if len(parents) == 0 {
			parents = append(parents, nil)
		}
		all := map[string]bool{}
		for _, t := range append(parents, own) {
			for path := range t {
				all[path] = true
			}
		}
		for path := range all {
			if !slices.ContainsFunc(parents, func(t map[string]string) bool { return t[path] == own[path] }) && paths.Protected(path) {
				found[path] = true
			}
		}
	}
	list := []string{}
	for path := range found {
		list = append(list, path)
	}
	slices.Sort(list)
	return list
}

// TestChanged holds Changed to git's lists of files, of every commit and its parents.
func TestChanged(t *testing.T) {
	some, none, asked := 0, 0, 0
	for seed := range uint64(4) {
		s := newSetting(t, formats()[seed%2], 100+seed, 24, seed%3 > 0)
		for n := range s.commits {
			p := s.push(t, n)
			for _, paths := range []prefixes{{""}, {"a"}, {"dir/a", ".ci"}, {"a/b/dir", "b/Dir"}} {
				want := s.expected(n, paths)
				before := s.upstream.asked
				got, err := p.Changed(context.Background(), NewUpstream(s.format, s.upstream), []wire.ID{s.commits[n]}, paths)
				if err != nil || !slices.Equal(got, want) {
					t.Fatalf("seed %d, commit %d, %q: %q (%v), want %q", seed, n, []string(paths), got, err, want)
				}
				if asked += s.upstream.asked - before; len(want) > 0 {
					some++
				} else {
					none++
				}
			}
		}
	}
	if some < 50 || none < 50 {
		t.Errorf("%d with changes, %d without: the histories test too little", some, none)
	}
	t.Logf("%d with changes, %d without, %d questions", some, none, asked)
}

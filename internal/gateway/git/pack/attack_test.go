package pack

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/cofferdam/cofferdam/internal/gateway/git/wire"
)

// scene is an upstream with a protected folder .ci, and somebody who wants to change it.
type scene struct {
	*repository
	upstream *asker
}

// newScene has main: base, then one that a human made, which changes .ci; old: base. Both sides have it.
func newScene(t *testing.T, f wire.Format, filter bool) *scene {
	t.Helper()
	s := &scene{newRepository(t, f), &asker{repository: newRepository(t, f)}}
	s.upstream.git("", "config", "uploadpack.allowFilter", fmt.Sprint(filter))
	s.commit("base", "", "M 100644 inline .ci/run\ndata 1\n1\nM 100644 inline src/a\ndata 1\na\n")
	s.commit("main", "base", "M 100644 inline .ci/run\ndata 1\n2\n")
	s.publish("base:refs/heads/old", "main:refs/heads/main")
	return s
}

// commit makes a commit on a branch of its name, with parents (of which the first gives the files) and changes in the words of git fast-import.
func (s *scene) commit(name, parents, changes string) {
	s.t.Helper()
	var from strings.Builder
	for i, parent := range strings.Fields(parents) {
		from.WriteString([2]string{"from", "merge"}[min(i, 1)] + " " + s.resolve("refs/heads/"+parent).String() + "\n")
	}
	s.git(fmt.Sprintf("commit refs/heads/%s\ncommitter a <a@b> 1700000000 +0000\ndata %d\n%s\n%s%s\n", name, len(name), name, from.String(), changes), "fast-import", "--quiet", "--force")
}

// publish sets refs of the upstream, which is what others do.
func (s *scene) publish(refs ...string) {
	s.t.Helper()
	s.git("", append([]string{"push", "-q", s.upstream.dir}, refs...)...)
}

// changed judges a push of exactly these objects.
func (s *scene) changed(tips []wire.ID, objects ...string) ([]string, error) {
	s.t.Helper()
	var list strings.Builder
	for _, rev := range objects {
		list.WriteString(s.resolve(rev).String() + "\n")
	}
	p := mustRead(s.t, s.format, []byte(s.git(list.String(), "pack-objects", "-q", "--stdout", "--delta-base-offset")))
	return p.Changed(context.Background(), NewUpstream(s.format, s.upstream), tips, prefixes{".ci"})
}

// all is a commit's objects that others do not have.
func (s *scene) all(revs ...string) []string {
	s.t.Helper()
	return strings.Fields(s.git("", append([]string{"rev-list", "--objects", "--no-object-names"}, revs...)...))
}

func TestChangedAttacks(t *testing.T) {
	for _, f := range formats() {
		for _, filter := range []bool{true, false} {
			s := newScene(t, f, filter)
			s.commit("good", "main", "M 100644 inline src/a\ndata 1\nb\n")
			s.commit("evil", "main", "M 100644 inline .ci/run\ndata 1\n6\n")
			s.commit("after", "evil", "M 100644 inline src/a\ndata 1\nc\n")
			s.commit("undone", "evil", "M 100644 inline .ci/run\ndata 1\n2\n")
			s.commit("merge", "main good", "M 100644 inline src/a\ndata 1\nb\n")
			s.commit("merge-old", "good base", "M 100644 inline .ci/run\ndata 1\n1\n")
			s.commit("evil-merge", "main good", "M 100644 inline .ci/run\ndata 1\n7\n")
			s.commit("back", "main", "M 100644 inline .ci/run\ndata 1\n1\n")
			s.commit("gone", "main", "D .ci/run\n")
			s.commit("link", "main", "D .ci\nM 120000 inline .ci\ndata 3\nsrc\n")
			s.commit("mode", "main", "M 100755 inline .ci/run\ndata 1\n2\n")
			s.commit("new-root", "", "M 100644 inline .ci/run\ndata 1\n2\n")
			s.commit("new-clean", "", "M 100644 inline src/x\ndata 1\n2\n")
			s.commit("strange", "main", "M 100644 inline .ci/run\ndata 1\n9\n")
			s.commit("takes", "main strange", "M 100644 inline .ci/run\ndata 1\n9\n")
			s.commit("onto", "strange", "M 100644 inline src/a\ndata 1\nd\n")
			s.commit("asked", "main", "M 100644 inline .ci/run\ndata 1\n8\n")
			s.commit("onto-asked", "asked", "M 100644 inline src/a\ndata 1\nd\n")
			s.git("", "tag", "-a", "-m", "x", "tag-evil", "refs/heads/evil")
			s.git("", "tag", "-a", "-m", "x", "tag-main", "refs/heads/main")
			s.git("", "tag", "-a", "-m", "x", "tag-tag-main", "refs/tags/tag-main")
			s.publish("strange:refs/pull/1/head", "asked:refs/heads/release")
			ci, none := []string{".ci/run"}, []string(nil)
			for name, c := range map[string]struct {
				tips    string
				objects []string
				want    []string
				err     error
			}{
				"another file":                          {"good", s.all("good", "^main"), none, nil},
				"the file":                              {"evil", s.all("evil", "^main"), ci, nil},
				"by a commit before the tip":            {"after", s.all("after", "^main"), ci, nil},
				"and taken back":                        {"undone", s.all("undone", "^main"), ci, nil},
				"by a tag":                              {"tag-evil", s.all("tag-evil", "^main"), ci, nil},
				"by a commit that no tip leads to":      {"good", s.all("good", "evil", "^main"), ci, nil},
				"by a pack of another ref's objects":    {"main", s.all("evil", "^main"), ci, nil},
				"a merge of what was there":             {"merge", s.all("merge", "^main"), none, nil},
				"a merge takes what an old branch has":  {"merge-old", s.all("merge-old", "^main", "^base"), none, nil},
				"a merge that is more than its parents": {"evil-merge", s.all("evil-merge", "^main"), ci, nil},
				"back to what it was, all trees known":  {"back", []string{"back"}, ci, nil},
				"back to what it was, root in the pack": {"back", []string{"back", "back^{tree}"}, ci, nil},
				"deleted":                               {"gone", s.all("gone", "^main"), ci, nil},
				"a link in the place of its folder":     {"link", s.all("link", "^main"), []string{".ci", ".ci/run"}, nil},
				"its mode":                              {"mode", s.all("mode", "^main"), ci, nil},
				"a new root with it":                    {"new-root", s.all("new-root", "^main"), ci, nil},
				"a new root without":                    {"new-clean", s.all("new-clean"), none, nil},
				"the whole history again":               {"good", s.all("good"), none, nil},
				"the whole history again, and the file": {"evil", s.all("evil"), ci, nil},
				"what a pull request has, again":        {"strange", s.all("strange", "^main"), ci, nil},
				"what a branch has, again":              {"asked", s.all("asked", "^main"), none, nil},
				"a merge of a pull request, not sent":   {"takes", []string{"takes"}, none, ErrForeign},
				"on a pull request, not sent":           {"onto", s.all("onto", "^strange"), none, ErrForeign},
				"a pull request, not sent":              {"strange", nil, none, ErrForeign},
				"on another branch, not sent":           {"onto-asked", s.all("onto-asked", "^asked"), none, nil},
				"a branch, not sent":                    {"asked", nil, none, nil},
				"a commit of a branch, not sent":        {"base", nil, none, nil},
				"a tag of a branch, not sent":           {"tag-main", []string{"tag-main"}, none, nil},
				"a tag of a tag of a branch":            {"tag-tag-main", []string{"tag-tag-main", "tag-main"}, none, nil},
				"a tag that was not sent":               {"tag-main", nil, none, ErrMissing},
				"a tree of a branch":                    {"main^{tree}", nil, none, ErrForeign}, // said of too much rather than of too little
				"a file of the push":                    {"good:src/a", s.all("good", "^main"), none, nil},
				"a commit that was not sent":            {"evil", nil, none, ErrMissing},
				"a parent that was not sent":            {"after", s.all("after", "^evil"), none, ErrMissing},
				"a root tree that was not sent":         {"evil", []string{"evil"}, none, ErrMissing},
				"a folder that was not sent":            {"evil", []string{"evil", "evil^{tree}"}, none, ErrMissing},
			} {
				got, err := s.changed([]wire.ID{s.resolve(c.tips)}, c.objects...)
				if !slices.Equal(got, c.want) || !errors.Is(err, c.err) || c.err == nil && err != nil {
					t.Errorf("%v, filter %v: %s: %q (%v), want %q (%v)", f, filter, name, got, err, c.want, c.err)
				}
			}
		}
	}
}

// TestChangedBounds has too large a comparison refused, and not be taken for one without changes.
func TestChangedBounds(t *testing.T) {
	s := newScene(t, wire.SHA1, true)
	s.commit("good", "main", "M 100644 inline .ci/x/y/z\ndata 1\nb\nM 100644 inline src/a\ndata 1\nb\n")
	data := s.pack([]string{"good", "^main"})
	for name, limits := range map[string]Limits{"compared": {Compared: 1}, "asked": {Asked: 1}} {
		p, err := read(wire.SHA1, scratch(t), limits, data, 0)
		if err != nil {
			t.Fatal(err)
		}
		if name == "asked" {
			p.limits.Asked = 0
		}
		if got, err := p.Changed(context.Background(), NewUpstream(wire.SHA1, s.upstream), nil, prefixes{".ci"}); !errors.Is(err, ErrTooLarge) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	b := newBuilder(wire.SHA1) // a folder in a folder in a folder…, each of which has the one below twice: 2^200 paths
	id := b.name(treeKind, nil)
	b.object(treeKind, nil)
	for range 200 {
		tree := []byte(line("40000", "a", id) + line("40000", "b", id))
		id = b.name(treeKind, tree)
		b.object(treeKind, tree)
	}
	b.object(commitKind, []byte("tree "+id.String()+"\n"+author))
	p := mustRead(t, wire.SHA1, b.pack())
	p.limits.Compared = 1 << 30 // the bound itself takes seconds
	if got, err := p.Changed(context.Background(), NewUpstream(wire.SHA1, s.upstream), nil, prefixes{""}); !errors.Is(err, ErrTooLarge) {
		t.Errorf("trees without number: %q, %v", got, err)
	}
	b = newBuilder(wire.SHA1)
	id = b.name(treeKind, nil)
	b.object(treeKind, nil)
	for range 9000 {
		tree := []byte(line("40000", "a", id))
		id = b.name(treeKind, tree)
		b.object(treeKind, tree)
	}
	b.object(commitKind, []byte("tree "+id.String()+"\n"+author))
	p = mustRead(t, wire.SHA1, b.pack())
	if got, err := p.Changed(context.Background(), NewUpstream(wire.SHA1, s.upstream), nil, prefixes{""}); !errors.Is(err, ErrTooLarge) {
		t.Errorf("a very long path: %q, %v", got, err)
	}
	b = newBuilder(wire.SHA1)
	var tree []byte
	for i := range 500 {
		tree = append(tree, line("100644", fmt.Sprintf("n%03d", i), id)...)
	}
	b.object(treeKind, tree).object(commitKind, []byte("tree "+b.name(treeKind, tree).String()+"\n"+author))
	p = mustRead(t, wire.SHA1, b.pack())
	if got, err := p.Changed(context.Background(), NewUpstream(wire.SHA1, s.upstream), nil, prefixes{""}); err != nil || len(got) != maxChanged {
		t.Errorf("%d paths are named, %v", len(got), err)
	}
}

// liar answers the nth question with something of its own.
type liar struct {
	*asker
	at     int
	answer func(honest []byte) ([]byte, error)
}

func (l *liar) Ask(ctx context.Context, body []byte) (io.ReadCloser, error) {
	honest, err := l.asker.Ask(ctx, body)
	if err != nil || l.asked != l.at {
		return honest, err
	}
	data, err := io.ReadAll(honest)
	if err != nil {
		return nil, err
	}
	if data, err = l.answer(data); err != nil {
		return nil, err
	}
	return io.NopCloser(bytes.NewReader(data)), nil
}

// TestUpstreamLies has no answer that is broken taken for a verdict: each is an error, or the same verdict as an honest one.
func TestUpstreamLies(t *testing.T) {
	s := newScene(t, wire.SHA1, true)
	s.commit("back", "main", "M 100644 inline .ci/run\ndata 1\n1\n")
	s.commit("more", "main", "M 100644 inline src/b\ndata 1\n1\n")
	s.publish("more:refs/heads/main")
	tip, old := s.resolve("back"), s.resolve("more")
	p := mustRead(t, wire.SHA1, []byte(s.git(tip.String()+"\n", "pack-objects", "-q", "--stdout")))
	broken := 0
	for question := 1; question <= 5; question++ {
		for name, answer := range map[string]func([]byte) ([]byte, error){
			"fails":         func([]byte) ([]byte, error) { return nil, errors.New("unreachable") },
			"says nothing":  func([]byte) ([]byte, error) { return nil, nil },
			"flush":         func([]byte) ([]byte, error) { return []byte("0000"), nil },
			"error":         func([]byte) ([]byte, error) { return wire.AppendLine(nil, "ERR secret"), nil },
			"a page":        func([]byte) ([]byte, error) { return []byte("<html>secret"), nil },
			"half":          func(b []byte) ([]byte, error) { return b[:len(b)/2], nil },
			"all but a bit": func(b []byte) ([]byte, error) { return b[:len(b)-5], nil },
			"band 3": func([]byte) ([]byte, error) {
				return wire.AppendLine(wire.AppendLine(nil, "packfile\n"), "\x03secret"), nil
			},
			"another pack": func([]byte) ([]byte, error) {
				b := wire.AppendLine(wire.AppendLine(nil, "packfile\n"), "\x01"+string(newBuilder(wire.SHA1).object(blobKind, nil).pack()))
				return wire.AppendFlush(b), nil
			},
		} {
			up := &liar{asker: &asker{repository: s.upstream.repository}, at: question, answer: answer}
			got, err := p.Changed(context.Background(), NewUpstream(wire.SHA1, up), []wire.ID{tip}, prefixes{".ci"})
			switch {
			case err != nil && strings.Contains(err.Error(), "secret"):
				t.Errorf("question %d, %s: the upstream's words are passed on: %v", question, name, err)
			case err != nil:
				broken++
			case !slices.Equal(got, []string{".ci/run"}):
				t.Errorf("question %d, %s: %q", question, name, got)
			}
			up = &liar{asker: &asker{repository: s.upstream.repository}, at: question, answer: answer}
			if forward, _ := p.FastForward(context.Background(), NewUpstream(wire.SHA1, up), old, tip); forward {
				t.Errorf("question %d, %s: it goes forward", question, name)
			}
		}
	}
	if broken < 20 {
		t.Errorf("only %d lies were met", broken)
	}
}

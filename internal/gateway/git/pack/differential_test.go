package pack

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/cofferdam/cofferdam/internal/gateway/git/wire"
)

// mutate changes some bytes, in ways that are near to what parsers get wrong.
func mutate(rnd *rand.Rand, b []byte) []byte {
	b = bytes.Clone(b)
	words := []string{"parent ", "tree ", "author ", "\n", "\n\n", "\x00", " ", "/", "0", "40000 ", "100644 ", "A", "\r\n", "../", "gpgsig a\n "}
	for range 1 + rnd.IntN(3) {
		at := rnd.IntN(len(b) + 1)
		switch rnd.IntN(6) {
		case 0:
			if at < len(b) {
				b[at] ^= 1 << rnd.IntN(8)
			}
		case 1:
			b = slices.Insert(b, at, []byte(words[rnd.IntN(len(words))])...)
		case 2:
			b = slices.Delete(b, at, min(len(b), at+1+rnd.IntN(50)))
		case 3: // a line or an entry twice
			end := min(len(b), at+rnd.IntN(60))
			b = slices.Insert(b, at, bytes.Clone(b[at:end])...)
		case 4:
			b = b[:at]
		case 5:
			other := rnd.IntN(len(b) + 1)
			from, to := min(at, other), max(at, other)
			b = append(bytes.Clone(b[to:]), b[from:to]...)
		}
	}
	return b
}

// storeRaw writes an object, however malformed it is.
func (r *repository) storeRaw(k kind, content []byte) (string, error) {
	out, err := r.try(string(content), "hash-object", "--literally", "-w", "--stdin", "-t", k.name())
	return strings.TrimSpace(string(out)), err
}

// TestCommitsAsGit holds the commits that are taken to git: it sees the same tree and the same parents.
func TestCommitsAsGit(t *testing.T) {
	taken := 0
	for _, f := range formats() {
		r := newRepository(t, f)
		r.history(3, 4)
		tree, one, two := r.resolve("c0^{tree}"), r.resolve("c0"), r.resolve("c1")
		rnd := rand.New(rand.NewPCG(uint64(f), 1))
		whole := fmt.Appendf(nil, "tree %v\nparent %v\nparent %v\n%smessage\n", tree, one, two, author)
		fixed := [][]byte{
			fmt.Appendf(nil, "tree %v\nparent %v\n%s", tree, strings.ToUpper(one.String()), author),
			fmt.Appendf(nil, "tree %v\nparent %v", tree, one),
			fmt.Appendf(nil, "tree %v\nparent  %v\n%s", tree, one, author),
			fmt.Appendf(nil, "tree %v\n\nparent %v\n%s", tree, one, author),
			fmt.Appendf(nil, "tree %v\r\nparent %v\r\n%s", tree, one, author),
			fmt.Appendf(nil, "tree %v\ntree %v\n%s", tree, tree, author),
			fmt.Appendf(nil, "tree %v\nparent %v\nencoding x\nparent %v\n%s", tree, one, two, author),
			fmt.Appendf(nil, "tree %v\nparent %v\n%s", tree, one, strings.Replace(author, "\n\n", "\nparent "+two.String()+"\n\n", 1)),
			fmt.Appendf(nil, "tree %v\nparent %v\n%s", tree, one, strings.Replace(author, "\n\n", "\ntree "+two.String()+"\n\n", 1)),
			fmt.Appendf(nil, "tree %v\nparent %v\n%sparent %v\n", tree, one, author, two),
			fmt.Appendf(nil, "tree %v\nparent %v\n%s", tree, one, strings.Replace(author, "\n\n", "\ngpgsig x\n parent "+two.String()+"\n\n", 1)),
		}
		for i := range 150 {
			content := whole
			if i < len(fixed) {
				content = fixed[i]
			} else if i > len(fixed) {
				content = mutate(rnd, whole)
			}
			c, err := parseCommit(f, content)
			if err != nil {
				continue
			}
			taken++
			id, err := r.storeRaw(commitKind, content)
			if err != nil {
				t.Fatal(err)
			}
			words := []string{c.Tree.String()}
			for _, p := range c.Parents {
				words = append(words, p.String())
			}
			want := strings.Join(words, " ")
			out, err := r.try("", "log", "-1", "--no-walk", "--format=%T %P", id)
			if err != nil && strings.Contains(err.Error(), "bad object") { // git does not take it
				continue
			}
			if got := strings.TrimSpace(string(out)); err != nil || got != want {
				t.Errorf("%v: %q has %q, to git %q (%v)", f, content, want, got, err)
			}
		}
	}
	if taken < 30 {
		t.Errorf("only %d were taken", taken)
	}
}

// TestTreesAsGit holds the trees that are taken to git: it sees the same entries.
func TestTreesAsGit(t *testing.T) {
	taken := 0
	for _, f := range formats() {
		r := newRepository(t, f)
		rnd := rand.New(rand.NewPCG(uint64(f), 2))
		id := newBuilder(f).name(blobKind, nil)
		whole := []byte(line("100644", "a", id) + line("40000", "a.b", id) + line("120000", "a0", id) + line("40000", "dir", id) + line("160000", "dir0", id) + line("100755", "z", id))
		fixed := [][]byte{
			whole, []byte(line("40755", "x", id)), []byte(line("1040000", "x", id)), []byte(line("040000", "x", id)), []byte(line("0", "x", id)), []byte(line("100600", "x", id)),
			[]byte(line("60000", "x", id)), []byte(line("140000", "x", id)), []byte(line("100644", "x", id) + line("40000", "x", id)),
			[]byte(line("100644", "x", id) + line("100644", "x-", id) + line("40000", "x", id)), []byte(line("40000", "x", id) + line("100644", "x", id)),
			[]byte(line("100644", "x", id) + line("100644", "x.y", id) + line("40000", "x.y", id)), []byte(line("100664", "x", id)),
			[]byte(line("+40000", "x", id)), []byte(line("4000 0", "x", id)), []byte(line("40000", "x/y", id)), []byte(line("40000", "", id)), []byte(line("40000", ".GIT", id)),
		}
		for i := range 200 {
			content := mutate(rnd, whole)
			if i < len(fixed) {
				content = fixed[i]
			}
			err := checkTree(f, content, true)
			if twice := sameNameTwice(f, content); twice && err == nil {
				t.Errorf("%v: a name is there twice: %q", f, content)
			}
			if err != nil {
				continue
			}
			taken++
			id, err := r.storeRaw(treeKind, content)
			if err != nil {
				t.Fatal(err)
			}
			var want strings.Builder
			for c := (cursor{rest: content}); ; {
				if err := c.next(f); err != nil {
					t.Fatal(err)
				}
				if c.mode == 0 {
					break
				}
				mode := c.mode
				if mode == 0100664 { // git knows two modes of files
					mode = 0100644
				}
				id, _ := wire.NewID(c.sum)
				fmt.Fprintf(&want, "%06o %s %v\t%s\x00", mode, map[uint32]string{modeTree: "tree", 0160000: "commit"}[mode]+map[bool]string{true: "blob"}[mode&0100000 > 0 && mode != 0160000], id, c.name)
			}
			out, err := r.try("", "ls-tree", "-z", "--full-tree", id)
			if err != nil || string(out) != want.String() {
				t.Errorf("%v: %q is %q, to git %q (%v)", f, content, want.String(), out, err)
			}
		}
	}
	if taken < 20 {
		t.Errorf("only %d were taken", taken)
	}
}

// sameNameTwice looks for a name that is in a tree twice, slowly and plainly.
func sameNameTwice(f wire.Format, content []byte) bool {
	seen := map[string]bool{}
	for len(content) > 0 {
		_, rest, ok := bytes.Cut(content, []byte(" "))
		name, rest, ok2 := bytes.Cut(rest, []byte{0})
		if !ok || !ok2 || len(rest) < f.Size() {
			return false
		}
		if seen[string(name)] {
			return true
		}
		seen[string(name)], content = true, rest[f.Size():]
	}
	return false
}

// FuzzTree goes through any bytes as a tree: what is taken is sorted, has each name once, and is seen whole.
func FuzzTree(f *testing.F) {
	id := newBuilder(wire.SHA1).name(blobKind, nil)
	f.Add([]byte(line("100644", "a", id)+line("100644", "a-", id)+line("40000", "a", id)), true)
	f.Add([]byte(line("40000", "dir", id)+line("160000", "dir0", id)), true)
	f.Fuzz(func(t *testing.T, content []byte, sha1 bool) {
		format := wire.SHA256
		if sha1 {
			format = wire.SHA1
		}
		if checkTree(format, content, true) != nil {
			return
		}
		if sameNameTwice(format, content) {
			t.Error("a name is there twice")
		}
		left, before := len(content), ""
		for c := (cursor{rest: content}); ; {
			if err := c.next(format); err != nil {
				t.Fatal(err)
			}
			if c.mode == 0 {
				break
			}
			name := string(c.name)
			if c.mode == modeTree {
				name += "/"
			}
			if before >= name {
				t.Errorf("%q comes after %q", name, before)
			}
			before, left = name, left-(len(c.name)+2+format.Size())
		}
		if left < 5*bytes.Count(content, []byte{0})/(format.Size()+6) {
			t.Errorf("%d bytes are modes", left)
		}
	})
}

// TestPacksAsGit mutates real packs, with the checksum made right: what is taken git takes too, with the same objects.
func TestPacksAsGit(t *testing.T) {
	taken, refused := 0, 0
	for _, f := range formats() {
		r := newRepository(t, f)
		r.history(uint64(20+f), 5)
		rnd := rand.New(rand.NewPCG(uint64(f), 4))
		for _, options := range [][]string{{"--all"}, {"--all", "--delta-base-offset"}, {"--all", "--window=0"}} {
			data := r.pack(nil, options...)
			for range 60 {
				body := bytes.Clone(data[:len(data)-f.Size()])
				for range rnd.IntN(3) {
					body[8+rnd.IntN(len(body)-8)] ^= 1 << rnd.IntN(8)
				}
				h := newHash(f)
				h.Write(body)
				whole := h.Sum(body)
				p, err := read(f, scratch(t), small(), whole, 0)
				if err != nil {
					refused++
					continue
				}
				taken++
				sameAsGit(t, f, whole, p)
			}
		}
	}
	if taken < 20 || refused < 100 {
		t.Errorf("%d taken, %d refused", taken, refused)
	}
}

// TestThin has packs refused that lean on objects of the upstream, as git itself makes them when it is not told otherwise.
func TestThin(t *testing.T) {
	for _, f := range formats() {
		for _, option := range []string{"--delta-base-offset", "--no-reuse-delta"} {
			s := newScene(t, f, true)
			s.commit("long", "main", "M 100644 inline src/long\ndata 4000\n"+strings.Repeat("a line of text that is long\n", 150)[:4000]+"\n")
			s.commit("longer", "long", "M 100644 inline src/long\ndata 4001\n"+strings.Repeat("a line of text that is long\n", 150)[:4000]+"!\n")
			thin, whole := s.pack([]string{"longer", "^long"}, "--thin", option), s.pack([]string{"longer", "^long"}, option)
			if _, err := gitIndexes(t, f, thin); err == nil {
				t.Fatal("the pack is not thin")
			}
			if _, err := read(f, scratch(t), Limits{}, thin, 0); !errors.Is(err, ErrThin) {
				t.Errorf("%v, %s: %v", f, option, err)
			}
			mustRead(t, f, whole)
		}
	}
}

// TestOldClient pushes what the upstream has already, in part or all, as clients do that have not fetched: the verdict is about what is new.
func TestOldClient(t *testing.T) {
	some, none := 0, 0
	for seed := range uint64(4) {
		s := newSetting(t, formats()[seed%2], 200+seed, 20, seed%2 == 0)
		for n := range s.commits {
			for _, known := range [][]int{nil, s.has[:1], s.has[1:]} {
				revs := []string{s.commits[n].String()}
				for _, n := range known {
					revs = append(revs, "^"+s.commits[n].String())
				}
				p := mustRead(t, s.format, s.pack(revs, "--delta-base-offset"))
				paths := prefixes{"a", "dir/b"}
				want := s.expected(n, paths)
				got, err := p.Changed(context.Background(), NewUpstream(s.format, s.upstream), []wire.ID{s.commits[n]}, paths)
				if err != nil || !slices.Equal(got, want) {
					t.Fatalf("seed %d, commit %d, client knows %v: %q (%v), want %q", seed, n, known, got, err, want)
				}
				if len(want) > 0 {
					some++
				} else {
					none++
				}
			}
		}
	}
	if some < 20 || none < 20 {
		t.Errorf("%d with changes, %d without: the histories test too little", some, none)
	}
}

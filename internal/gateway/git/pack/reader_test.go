package pack

import (
	"bytes"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"github.com/cofferdam/cofferdam/internal/gateway/git/wire"
)

const author = "author a <a@b> 1 +0000\ncommitter a <a@b> 1 +0000\n\n"

// line is an entry of a tree.
func line(mode, name string, id wire.ID) string {
	return mode + " " + name + "\x00" + string(id.Bytes())
}

// accepted is what git makes of a pack.
func accepted(t testing.TB, f wire.Format, data []byte) error {
	t.Helper()
	r := newRepository(t, f)
	_, err := r.try(string(data), "index-pack", "--stdin")
	return err
}

// TestTaken has packs taken that git does not write, but others do; git takes them too.
func TestTaken(t *testing.T) {
	for _, f := range formats() {
		build := func() *builder { return newBuilder(f) }
		b := build()
		blob := []byte("hello\n")
		blobID := b.name(blobKind, blob)
		tree := []byte(line("100644", "a", blobID))
		treeID := b.name(treeKind, tree)
		larger := append(bytes.Clone(tree), line("100644", "b", blobID)...)
		largerID := b.name(treeKind, larger)
		commit := []byte("tree " + largerID.String() + "\n" + author)
		largest := append(bytes.Clone(larger), line("100644", "c", blobID)...)
		chain := build().object(treeKind, tree)
		deep := bytes.Clone(tree)
		for i := range 10_000 {
			next := []byte(line("100644", fmt.Sprintf("a%05d", i), blobID))
			chain.on(i, change(deep, next))
			deep = next
		}
		last := b.name(treeKind, deep)
		other := []byte("hello, other\n")
		otherID := b.name(blobKind, other)
		for name, c := range map[string]struct {
			data []byte
			has  []wire.ID
		}{
			"nothing":                             {build().pack(), nil},
			"one of each":                         {build().object(blobKind, blob).object(treeKind, tree).object(tagKind, []byte("object "+treeID.String()+"\ntype tree\ntag x\n")).pack(), []wire.ID{treeID}},
			"an empty blob and an empty tree":     {build().object(blobKind, nil).object(treeKind, nil).pack(), []wire.ID{b.name(treeKind, nil)}},
			"a delta by distance":                 {build().object(treeKind, tree).on(0, change(tree, larger)).object(commitKind, commit).pack(), []wire.ID{treeID, largerID}},
			"a delta by name":                     {build().object(treeKind, tree).named(treeID, change(tree, larger)).pack(), []wire.ID{largerID}},
			"a delta before its base":             {build().named(treeID, change(tree, larger)).object(treeKind, tree).pack(), []wire.ID{treeID, largerID}},
			"a chain in the wrong order":          {build().named(largerID, change(larger, largest)).named(treeID, change(tree, larger)).object(treeKind, tree).pack(), []wire.ID{b.name(treeKind, largest)}},
			"by distance on one that waits":       {build().named(treeID, change(tree, larger)).on(0, change(larger, largest)).object(treeKind, tree).pack(), []wire.ID{largerID, b.name(treeKind, largest)}},
			"ten thousand deltas deep":            {chain.pack(), []wire.ID{last}},
			"blobs by name":                       {build().object(blobKind, blob).named(blobID, change(blob, other)).named(otherID, change(other, []byte("hello, third"))).pack(), []wire.ID{otherID}},
			"blobs by name, in the wrong order":   {build().named(otherID, change(other, []byte("hello, third"))).named(blobID, change(blob, other)).object(blobKind, blob).pack(), []wire.ID{otherID}},
			"blobs by distance and trees by name": {build().object(treeKind, tree).object(blobKind, blob).on(1, change(blob, other)).on(2, change(other, []byte("third"))).named(treeID, change(tree, larger)).pack(), []wire.ID{largerID}},
			"one copy of 64 KiB":                  {build().object(blobKind, bytes.Repeat([]byte("x"), 0x10000)).named(b.name(blobKind, bytes.Repeat([]byte("x"), 0x10000)), append(append(number(0x10000), number(0x10001)...), 0x80, 1, 'y')).pack(), nil},
		} {
			p, err := read(f, scratch(t), Limits{}, c.data, 0)
			if err != nil {
				t.Errorf("%v: %s: %v", f, name, err)
				continue
			}
			for _, id := range c.has {
				if _, ok := p.kept.find(id); !ok {
					t.Errorf("%v: %s: %v is lost", f, name, id)
				}
			}
			if name == "nothing" { // index-pack makes no index of nothing in old versions; unpack-objects is what a server runs
				continue
			}
			if err := accepted(t, f, c.data); err != nil {
				t.Errorf("%v: %s: git says %v", f, name, err)
			}
		}
	}
}

// TestRefused has no pack taken that is wrong in one place.
func TestRefused(t *testing.T) {
	f := wire.SHA1
	build := func() *builder { return newBuilder(f) }
	blob := []byte("hello\n")
	blobID := build().name(blobKind, blob)
	tree := []byte(line("100644", "a", blobID))
	treeID := build().name(treeKind, tree)
	larger := append(bytes.Clone(tree), line("100644", "b", blobID)...)
	commit := []byte("tree " + treeID.String() + "\n" + author)
	good := build().object(blobKind, blob).object(treeKind, tree).object(commitKind, commit).pack()
	if _, err := read(f, scratch(t), Limits{}, good, 0); err != nil {
		t.Fatal(err)
	}
	flip := func(data []byte, at int) []byte {
		data = bytes.Clone(data)
		data[at] ^= 1
		return data
	}
	fewer := build().object(blobKind, blob).object(treeKind, tree)
	fewer.count = 1
	more := build().object(blobKind, blob)
	more.count = 2
	sized := func(k kind, size int, content []byte) []byte {
		b := build()
		b.head(k, size)
		b.buf.Write(deflated(content))
		return b.pack()
	}
	damaged := deflated(blob)
	damaged[len(damaged)-1] ^= 1
	with := func(delta ...byte) []byte { return build().object(treeKind, tree).on(0, delta).pack() }
	n := byte(len(tree))
	bomb := bytes.Repeat([]byte{0}, 2<<20)
	aTree := build().name(treeKind, []byte("a"))
	for name, c := range map[string]struct {
		data   []byte
		limits Limits
		want   error
	}{
		"empty":                           {nil, Limits{}, ErrShort},
		"no pack":                         {[]byte("0000PACK and so on"), Limits{}, ErrMalformed},
		"version 4":                       {flip(flip(good, 7), 6), Limits{}, ErrMalformed},
		"wrong checksum":                  {flip(good, len(good)-1), Limits{}, ErrMalformed},
		"a byte follows":                  {append(bytes.Clone(good), 0), Limits{}, ErrMalformed},
		"two packs":                       {append(bytes.Clone(good), good...), Limits{}, ErrMalformed},
		"more objects than it says":       {fewer.pack(), Limits{}, ErrMalformed},
		"fewer objects than it says":      {more.pack(), Limits{}, nil},
		"type 0":                          {build().raw(append([]byte{0x06}, deflated(blob)...)...).pack(), Limits{}, ErrMalformed},
		"type 5":                          {build().raw(append([]byte{0x56}, deflated(blob)...)...).pack(), Limits{}, ErrMalformed},
		"a size of 2^70":                  {build().raw(append([]byte{0xb6, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x01}, deflated(blob)...)...).pack(), Limits{}, ErrMalformed},
		"a blob that is larger":           {sized(blobKind, 5, blob), Limits{}, ErrMalformed},
		"a blob that is smaller":          {sized(blobKind, 7, blob), Limits{}, ErrMalformed},
		"a tree that is larger":           {sized(treeKind, len(tree)-1, tree), Limits{}, ErrMalformed},
		"a tree that is smaller":          {sized(treeKind, len(tree)+1, tree), Limits{}, ErrMalformed},
		"damaged bytes":                   {build().raw(append([]byte{0x36}, damaged...)...).pack(), Limits{}, ErrMalformed},
		"no compressed bytes":             {build().raw(0x36, 'h', 'e', 'l', 'l', 'o').pack(), Limits{}, ErrMalformed},
		"the same twice":                  {build().object(treeKind, tree).object(treeKind, tree).pack(), Limits{}, ErrMalformed},
		"the same twice, once as a delta": {build().object(treeKind, tree).object(treeKind, larger).on(0, change(tree, larger)).pack(), Limits{}, ErrMalformed},
		"a base at its own place":         {build().offset(0, change(tree, larger)).pack(), Limits{}, ErrMalformed},
		"a base before the pack":          {build().object(treeKind, tree).offset(5000, change(tree, larger)).pack(), Limits{}, ErrMalformed},
		"a base at the header":            {build().object(treeKind, tree).offset(build().object(treeKind, tree).buf.Len(), change(tree, larger)).pack(), Limits{}, ErrMalformed},
		"a base in the middle of another": {build().object(treeKind, tree).offset(3, change(tree, larger)).pack(), Limits{}, ErrMalformed},
		"a base farther than 2^60":        {build().object(treeKind, tree).raw(append([]byte{0x66, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f}, deflated(blob)...)...).pack(), Limits{}, ErrMalformed},
		"thin":                            {build().named(treeID, change(tree, larger)).pack(), Limits{}, ErrThin},
		"thin, on what waits":             {build().named(treeID, change(tree, larger)).on(0, change(larger, tree)).pack(), Limits{}, ErrThin},
		"a circle":                        {build().named(blobID, change(tree, larger)).named(aTree, change(larger, tree)).pack(), Limits{}, ErrThin},
		"thin, after deltas by distance":  {build().object(blobKind, blob).on(0, change(blob, tree)).named(treeID, change(tree, larger)).pack(), Limits{}, ErrThin},
		"a delta on a base of other size": {with(n+1, 1, 1, 'x'), Limits{}, ErrMalformed},
		"a delta with no instruction":     {with(n, 1), Limits{}, ErrMalformed},
		"a delta of nothing":              {with(), Limits{}, ErrMalformed},
		"a delta of two bytes":            {build().object(treeKind, nil).on(0, []byte{0, 0}).pack(), Limits{}, ErrMalformed},
		"a blob's delta of nothing":       {build().object(blobKind, blob).on(0, change(blob, tree)).on(1, nil).pack(), Limits{}, ErrMalformed},
		"instruction 0":                   {with(n, 1, 0, 1, 'x'), Limits{}, ErrMalformed},
		"a copy beyond the base":          {with(n, 2, 0x91, n-1, 2), Limits{}, ErrMalformed},
		"a copy beyond the result":        {with(n, 1, 0x90, 2), Limits{}, ErrMalformed},
		"an insert beyond the result":     {with(n, 1, 2, 'x', 'x'), Limits{}, ErrMalformed},
		"an insert beyond the delta":      {with(n, 9, 9, 'x'), Limits{}, ErrMalformed},
		"a copy cut short":                {with(n, 2, 0x91, 1), Limits{}, ErrMalformed},
		"a result that is smaller":        {with(n, 9, 1, 'x'), Limits{}, ErrMalformed},
		"a delta makes a bad tree":        {with(append([]byte{n, 1}, 1, 'x')...), Limits{}, ErrMalformed},
		"a delta that is larger": {func() []byte {
			b := build().object(treeKind, tree)
			d := change(tree, larger)
			b.head(offsetBase, len(d)-1)
			b.buf.Write(distance(b.starts[1] - b.starts[0]))
			b.buf.Write(deflated(d))
			return b.pack()
		}(), Limits{}, ErrMalformed},
		"a delta that is smaller": {func() []byte {
			b := build().object(treeKind, tree)
			d := change(tree, larger)
			b.head(offsetBase, len(d)+1)
			b.buf.Write(distance(b.starts[1] - b.starts[0]))
			b.buf.Write(deflated(d))
			return b.pack()
		}(), Limits{}, ErrMalformed},
		"a blob's delta that is smaller": {func() []byte {
			b := build().object(blobKind, blob).on(0, change(blob, tree))
			b.head(offsetBase, 100)
			b.buf.Write(distance(b.starts[2] - b.starts[1]))
			b.buf.Write(deflated([]byte("x")))
			return b.pack()
		}(), Limits{}, ErrMalformed},
		"a blob's delta that is larger": {func() []byte {
			b := build().object(blobKind, blob).on(0, change(blob, tree))
			b.head(offsetBase, 1)
			b.buf.Write(distance(b.starts[2] - b.starts[1]))
			b.buf.Write(deflated([]byte("xx")))
			return b.pack()
		}(), Limits{}, ErrMalformed},
		"too many objects":              {good, Limits{Objects: 2}, ErrTooLarge},
		"more objects than anybody has": {append([]byte("PACK\x00\x00\x00\x02\xff\xff\xff\xff"), good[12:]...), Limits{}, ErrTooLarge},
		"a large commit":                {good, Limits{Message: 10}, ErrTooLarge},
		"a large tree":                  {good, Limits{Tree: 10}, ErrTooLarge},
		"a large tree made by a delta":  {build().object(treeKind, tree).on(0, change(tree, larger)).pack(), Limits{Tree: len(tree)}, ErrTooLarge},
		"much to keep":                  {good, Limits{Kept: 40}, ErrTooLarge},
		"a bomb":                        {build().object(blobKind, bomb).pack(), Limits{Inflated: 1 << 20}, ErrTooLarge},
		"a bomb that says it is small":  {sized(blobKind, 10, bomb), Limits{}, ErrMalformed},
		"a tree that is a bomb":         {sized(treeKind, 10, bomb), Limits{}, ErrMalformed},
		"a tree that says it is 2^40":   {sized(treeKind, 1<<40, bomb), Limits{}, ErrTooLarge},
		"a bomb of copies":              {with(append(append([]byte{n}, number(1<<30)...), 0x90, 1)...), Limits{}, ErrTooLarge},
		"a bomb of bases": {func() []byte {
			b := build().object(treeKind, tree).object(treeKind, larger)
			for i := range 50 {
				b.on(i%2, change([][]byte{tree, larger}[i%2], []byte(line("100644", fmt.Sprint("n", i), blobID))))
			}
			return b.pack()
		}(), Limits{Inflated: 1000}, ErrTooLarge},
		"a commit without a tree":         {build().object(commitKind, []byte(author)).pack(), Limits{}, ErrMalformed},
		"a commit with a parent too late": {build().object(commitKind, []byte("tree "+treeID.String()+"\nencoding x\nparent "+treeID.String()+"\n"+author)).pack(), Limits{}, ErrMalformed},
		"a commit of an id of 256 bits":   {build().object(commitKind, []byte("tree "+strings.Repeat("a", 64)+"\n"+author)).pack(), Limits{}, ErrMalformed},
		"a commit that ends in its tree":  {build().object(commitKind, []byte("tree "+treeID.String())).pack(), Limits{}, ErrMalformed},
		"a tag without an object":         {build().object(tagKind, []byte("type commit\n")).pack(), Limits{}, ErrMalformed},
	} {
		_, err := read(f, scratch(t), c.limits, c.data, 0)
		if err == nil || c.want != nil && !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
		_, whole := read(f, scratch(t), c.limits, c.data, max(len(c.data), 1))
		if whole == nil || err != nil && whole.Error() != err.Error() {
			t.Errorf("%s: %v at once, %v in pieces", name, whole, err)
		}
	}
	tiny := append(append(number(0x10000), number(1<<30)...), bytes.Repeat([]byte{0x80}, 1<<14)...)
	huge := build().object(blobKind, bytes.Repeat([]byte("x"), 0x10000)).on(0, tiny).pack()
	if _, err := read(f, scratch(t), Limits{Inflated: 1 << 18}, huge, 0); err != nil { // right, and a gibibyte that nobody needs
		t.Errorf("a blob of a gibibyte in 50 bytes: %v", err)
	}
	for n := range good {
		if _, err := read(f, scratch(t), Limits{}, good[:n], 0); !errors.Is(err, ErrShort) {
			t.Errorf("the first %d bytes: %v", n, err)
		}
	}
}

// TestTrees has trees refused that git's fsck calls an error.
func TestTrees(t *testing.T) {
	f := wire.SHA1
	id := newBuilder(f).name(blobKind, nil)
	r := newRepository(t, f)
	r.git("", "hash-object", "-w", "-t", "blob", "/dev/null")
	r.git("", "hash-object", "-w", "-t", "tree", "/dev/null")
	empty := newBuilder(f).name(treeKind, nil)
	file, folder := func(name string) string { return line("100644", name, id) }, func(name string) string { return line("40000", name, empty) }
	for _, c := range []struct {
		tree string
		good bool
	}{
		{"", true},
		{file("a") + file("b"), true},
		{file("a.b") + folder("a"), true},
		{file("a-b") + folder("a") + file("a0"), true},
		{line("100755", "a", id) + line("120000", "b", id) + line("160000", "c", id), true},
		{folder("git") + file("gitx") + file("xgit"), true},
		{file("\xff\xfe"), true},
		{file(".github") + file(".gitignore"), true},
		{file("a") + file("a"), false},
		{file("a") + folder("a"), false},
		{folder("a") + file("a"), false},
		{file("a") + file("a-b") + folder("a"), false},
		{file("a") + file("a-") + file("a-b") + folder("a-") + folder("a"), false},
		{file("b") + file("a"), false},
		{folder("a") + file("a.b"), false},
		{file(""), false}, {file("a/b"), false}, {file("."), false}, {file(".."), false},
		{folder(".git"), false}, {file(".GIT"), false}, {file(".git "), false}, {file("git~1"), false}, {file(".g\u200cit"), false}, {file("\u200d.Git"), false}, {file(".git::$INDEX_ALLOCATION"), false},
	} {
		_, err := read(f, scratch(t), Limits{}, newBuilder(f).object(treeKind, []byte(c.tree)).pack(), 0)
		if (err == nil) != c.good {
			t.Errorf("%q: %v", c.tree, err)
		}
		cmd := exec.Command("git", "-C", r.dir, "hash-object", "-w", "--literally", "-t", "tree", "--stdin")
		cmd.Stdin, cmd.Env = strings.NewReader(c.tree), gitEnv()
		name, err := cmd.Output()
		if err != nil {
			t.Fatalf("%q: %v", c.tree, err)
		}
		_, err = r.try("", "-c", "fsck.hasDotgit=error", "-c", "fsck.hasDot=error", "-c", "fsck.hasDotdot=error", "-c", "fsck.fullPathname=error", "-c", "fsck.emptyName=error", "fsck", "--strict", "--no-dangling", "--no-progress", strings.TrimSpace(string(name)))
		if (err == nil) != c.good {
			t.Errorf("%q: git's fsck says %v", c.tree, err)
		}
	}
	for _, tree := range []string{"100644", "100644 a", "100644 a\x00", file("a")[:25], " a\x00" + file("a"), "1 a\x00" + file("a")[9:], "100648 a" + file("a")[8:], line("100000", "a", id), line("0", "a", id), file(strings.Repeat("n", maxName+1))} {
		if _, err := read(f, scratch(t), Limits{}, newBuilder(f).object(treeKind, []byte(tree)).pack(), 0); !errors.Is(err, ErrMalformed) {
			t.Errorf("%.40q: %v", tree, err)
		}
	}
	if _, err := read(f, scratch(t), Limits{}, newBuilder(f).object(treeKind, []byte(line("040000", "a", empty)+line("0100644", "b", id))).pack(), 0); err != nil {
		t.Errorf("modes with a zero before them, as old repositories have: %v", err)
	}
}

// TestStop has a reader stopped at any time.
func TestStop(t *testing.T) {
	data := newBuilder(wire.SHA1).object(blobKind, []byte("x")).pack()
	for n := range len(data) + 1 {
		r := NewReader(wire.SHA1, scratch(t), Limits{})
		if _, err := r.Write(data[:n]); err != nil {
			t.Fatal(err)
		}
		r.Stop()
		r.Stop()
		if _, err := r.Write(data[n:]); err == nil {
			t.Error("it goes on after it was stopped")
		}
		if _, err := r.Close(); err == nil {
			t.Errorf("a pack of which %d bytes were read", n)
		}
	}
	r := NewReader(wire.SHA1, scratch(t), Limits{})
	_, _ = r.Write(data) // its error would be Close's
	for range 2 {
		if _, err := r.Close(); err != nil {
			t.Error(err)
		}
	}
	r.Stop()
	if _, err := r.Close(); err != nil {
		t.Error(err)
	}
}

package pack

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cofferdam/cofferdam/internal/gateway/git/wire"
	"github.com/cofferdam/cofferdam/internal/testenv"
)

// small are limits under which a fuzzer cannot ask for much.
func small() Limits {
	return Limits{Objects: 1000, Message: 1 << 16, Tree: 1 << 16, Kept: 1 << 20, Inflated: 1 << 22}
}

// gitIndexes has git make an index of a pack, and returns the ids in it.
func gitIndexes(t *testing.T, f wire.Format, data []byte) (map[string]bool, error) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "p.pack")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	index := exec.Command("git", "index-pack", "--object-format="+f.String(), "-o", file+".idx", file)
	index.Env, index.Dir = gitEnv(), filepath.Dir(file)
	if out, err := index.CombinedOutput(); err != nil {
		return nil, errors.New(string(out))
	}
	in, err := os.Open(file + ".idx")
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	show := exec.Command("git", "show-index", "--object-format="+f.String())
	show.Env, show.Stdin, show.Dir = gitEnv(), in, filepath.Dir(file)
	out, err := show.Output()
	if err != nil {
		t.Fatal(err)
	}
	ids := map[string]bool{}
	for line := range strings.Lines(string(out)) {
		if words := strings.Fields(line); len(words) > 1 {
			ids[words[1]] = true
		}
	}
	return ids, nil
}

// sameAsGit holds what was taken to git: it takes it too, with the same objects; and neither takes it without its checksum.
func sameAsGit(t *testing.T, f wire.Format, data []byte, p *Pack) {
	t.Helper()
	cut := data[:len(data)-f.Size()]
	if _, err := read(f, &memory{most: 1 << 20}, small(), cut, 0); !errors.Is(err, ErrShort) {
		t.Fatalf("without its checksum: %v", err)
	}
	if fuzzing := flag.Lookup("test.fuzz"); fuzzing.Value.String() != "" && os.Getenv("FUZZ_GIT") == "" {
		return // git takes milliseconds: run what was found as seeds
	}
	ids, err := gitIndexes(t, f, data)
	if err != nil && p.kept.records.len < p.Objects() && strings.Contains(err.Error(), "failed to apply delta") {
		return // of a blob that nobody needs
	}
	if err != nil {
		t.Fatalf("taken, but not by git: %v", err)
	}
	if len(ids) != p.Objects() {
		t.Fatalf("%d objects, git has %d", p.Objects(), len(ids))
	}
	for slot := range uint32(p.kept.records.len) {
		if id := p.kept.id(slot).String(); !ids[id] {
			t.Fatalf("an object %s that git does not have", id)
		}
	}
	if _, err := gitIndexes(t, f, cut); err == nil {
		t.Fatal("git takes it without its checksum")
	}
}

// FuzzReader reads any bytes as a pack whose checksum is right.
func FuzzReader(f *testing.F) {
	testenv.Need(f, "tool:git")
	r := newRepository(f, wire.SHA1)
	r.history(9, 6)
	for _, options := range [][]string{{"--all"}, {"--all", "--delta-base-offset"}} {
		data := r.pack(nil, options...)
		f.Add(data[12:len(data)-20], data[11], true)
	}
	f.Add([]byte{}, byte(0), false)
	f.Fuzz(func(t *testing.T, body []byte, count byte, sha1 bool) {
		format := wire.SHA256
		if sha1 {
			format = wire.SHA1
		}
		b := newBuilder(format)
		b.buf.Write(body)
		b.count = uint32(count)
		data := b.pack()
		p, err := read(format, &memory{most: 1 << 20}, small(), data, 0)
		_, whole := read(format, &memory{most: 1 << 20}, small(), data, len(data))
		if (err == nil) != (whole == nil) || err != nil && err.Error() != whole.Error() {
			t.Fatalf("%v in pieces, %v at once", err, whole)
		}
		if err == nil && count > 0 {
			sameAsGit(t, format, data, p)
		}
	})
}

// FuzzDeltas reads packs that are made of the fuzzer's contents and deltas, of any kinds and on any bases.
func FuzzDeltas(f *testing.F) {
	testenv.Need(f, "tool:git")
	content := func(s string) []byte { return append([]byte{0x03, byte(len(s))}, s...) }
	delta := func(how, base byte, d []byte) []byte { return append([]byte{how, byte(len(d)), base}, d...) }
	hello, there := []byte("hello, you"), []byte("hello, there")
	f.Add(append(content(string(hello)), delta(0x86, 0, change(hello, there))...), true)
	f.Add(append(content(string(hello)), delta(0x87, 0, change(hello, there))...), false)
	f.Add(append(delta(0x87, 1, change(hello, there)), content(string(hello))...), true)
	f.Add(append(append(content(string(hello)), delta(0x87, 0, change(hello, there))...), delta(0x86, 1, change(there, hello[:4]))...), true)
	f.Add([]byte("0\v00000000000&00"), true)
	f.Add(append(content("tree 0000"), 0x01, 3, 'x', 'y', 'z', 0x02, 0, 0x04, 2, 'a', 'b'), true)
	f.Fuzz(func(t *testing.T, program []byte, sha1 bool) {
		format := wire.SHA256
		if sha1 {
			format = wire.SHA1
		}
		data, all := assemble(format, program)
		p, err := read(format, &memory{most: 1 << 20}, small(), data, 0)
		if err != nil || len(all) == 0 {
			return
		}
		sameAsGit(t, format, data, p)
	})
}

// assemble makes a pack of a program: each instruction is a kind, a length, for deltas the number of a base, and bytes. What a delta makes is computed by a
// second implementation, so that later deltas can name it.
func assemble(format wire.Format, program []byte) (data []byte, all [][]byte) {
	type object struct {
		kind    kind
		content []byte
		ok      bool
		delta   []byte
		base    int
	}
	var objects []object
	for len(program) >= 3 && len(objects) < 50 {
		op, n := program[0], int(program[1])
		program = program[2:]
		o := object{kind: kind(op & 7), base: -1}
		if o.kind >= offsetBase {
			o.base, program = int(program[0]), program[1:]
		}
		n = min(n, len(program))
		if o.content, o.ok = program[:n], true; o.base >= 0 {
			o.delta, o.ok = program[:n], false
		} else if o.kind == noKind || o.kind == unknown {
			o.kind = blobKind
		}
		program = program[n:]
		objects = append(objects, o)
	}
	kinds := make([]kind, len(objects))
	for i, o := range objects {
		if kinds[i] = o.kind; o.base >= 0 {
			kinds[i] = noKind
		}
	}
	for range objects { // as often as chains can be long
		for i, o := range objects {
			if o.base < 0 || o.ok || len(objects) == 0 {
				continue
			}
			base := objects[o.base%len(objects)]
			if made, ok := patch(base.content, o.delta); base.ok && ok {
				objects[i].content, objects[i].ok, kinds[i] = made, true, kinds[o.base%len(objects)]
			}
		}
	}
	b := newBuilder(format)
	for i, o := range objects {
		switch base := 0; {
		case o.base < 0:
			b.object(o.kind, o.content)
			continue
		default:
			if base = o.base % len(objects); o.kind == offsetBase && base < i {
				b.on(base, o.delta)
				continue
			}
			b.named(b.name(kinds[base], objects[base].content), o.delta)
		}
	}
	for _, o := range objects {
		all = append(all, o.content)
	}
	return b.pack(), all
}

// patch applies a delta, slowly and plainly.
func patch(base, delta []byte) ([]byte, bool) {
	in := bytes.NewReader(delta)
	size := func() int {
		n := 0
		for shift := 0; shift < 28; shift += 7 {
			c, err := in.ReadByte()
			if err != nil {
				return -1
			}
			if n |= int(c&0x7f) << shift; c < 0x80 {
				return n
			}
		}
		return -1
	}
	if from, to := size(), size(); from != len(base) || to < 0 || to > 1<<16 {
		return nil, false
	}
	var out []byte
	for in.Len() > 0 && len(out) < 1<<17 {
		op, _ := in.ReadByte() // there is one
		if op < 0x80 {
			p := make([]byte, op)
			if n, _ := in.Read(p); n < int(op) || op == 0 {
				return nil, false
			}
			out = append(out, p...)
			continue
		}
		var args [7]int
		for i := range args {
			if op>>i&1 == 1 {
				c, err := in.ReadByte()
				if err != nil {
					return nil, false
				}
				args[i] = int(c)
			}
		}
		at, n := args[0]|args[1]<<8|args[2]<<16|args[3]<<24, args[4]|args[5]<<8|args[6]<<16
		if n == 0 {
			n = 1 << 16
		}
		if at+n > len(base) {
			return nil, false
		}
		out = append(out, base[at:at+n]...)
	}
	return out, true
}

package pack

import (
	"bytes"
	"compress/zlib"
	"context"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/cofferdam/cofferdam/internal/gateway/git/wire"
	"github.com/cofferdam/cofferdam/internal/testenv"
)

// repository is one that real git made.
type repository struct {
	t      testing.TB
	dir    string
	format wire.Format
}

func newRepository(t testing.TB, f wire.Format) *repository {
	t.Helper()
	testenv.Need(t, "tool:git")
	r := &repository{t, filepath.Join(t.TempDir(), "repo.git"), f}
	cmd := exec.Command("git", "init", "-q", "--bare", "-b", "main", "--object-format="+f.String(), r.dir)
	cmd.Env = gitEnv()
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("git init: %v: %s", err, out)
	}
	return r
}

func gitEnv() []string {
	return append(os.Environ(), "GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=/dev/null", "GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@b", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@b",
		"GIT_AUTHOR_DATE=1700000000 +0000", "GIT_COMMITTER_DATE=1700000000 +0000")
}

// try runs git.
func (r *repository) try(stdin string, args ...string) ([]byte, error) {
	cmd := exec.Command("git", append([]string{"-C", r.dir}, args...)...)
	cmd.Env, cmd.Stdin = gitEnv(), strings.NewReader(stdin)
	var errors bytes.Buffer
	cmd.Stderr = &errors
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("git %s: %w: %.300s", strings.Join(args, " "), err, errors.String())
	}
	return out, err
}

func (r *repository) git(stdin string, args ...string) string {
	r.t.Helper()
	out, err := r.try(stdin, args...)
	if err != nil {
		r.t.Fatal(err)
	}
	return string(out)
}

func (r *repository) id(text string) wire.ID {
	r.t.Helper()
	id, ok := wire.ParseID(r.format, []byte(strings.TrimSpace(text)))
	if !ok {
		r.t.Fatalf("no id: %.100q", text)
	}
	return id
}

func (r *repository) resolve(rev string) wire.ID { return r.id(r.git("", "rev-parse", rev)) }

// pack returns the pack that git would push, with options of pack-objects.
func (r *repository) pack(revs []string, options ...string) []byte {
	r.t.Helper()
	return []byte(r.git(strings.Join(revs, "\n")+"\n", append([]string{"pack-objects", "-q", "--stdout", "--revs"}, options...)...))
}

// Server asks git what it advertises in version 2.
func (r *repository) Server(context.Context) (wire.Server, error) {
	cmd := exec.Command("git", "upload-pack", "--stateless-rpc", "--advertise-refs", r.dir)
	cmd.Env = append(gitEnv(), "GIT_PROTOCOL=version=2")
	out, err := cmd.Output()
	if err != nil {
		return wire.Server{}, err
	}
	return wire.ReadServer(bytes.NewReader(out))
}

// asker is a repository as an upstream that counts its questions.
type asker struct {
	*repository
	asked int
}

// Ask has git upload-pack answer.
func (a *asker) Ask(_ context.Context, body []byte) (io.ReadCloser, error) {
	a.asked++
	cmd := exec.Command("git", "upload-pack", "--stateless-rpc", a.dir)
	cmd.Env, cmd.Stdin = append(gitEnv(), "GIT_PROTOCOL=version=2"), bytes.NewReader(body)
	out, err := cmd.Output() // its status is not seen over HTTP either
	if len(out) == 0 && err != nil {
		return io.NopCloser(strings.NewReader("")), nil
	}
	return io.NopCloser(bytes.NewReader(out)), nil
}

func scratch(t testing.TB) Scratch {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "scratch")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// read gives a pack to a Reader in pieces of a size, or of any sizes if that is 0.
func read(f wire.Format, s Scratch, l Limits, data []byte, piece int) (*Pack, error) {
	r := NewReader(f, s, l)
	defer r.Stop()
	sizes := rand.New(rand.NewPCG(1, uint64(len(data))))
	for len(data) > 0 {
		n := piece
		if n == 0 {
			n = 1 + sizes.IntN(5000)
		}
		n = min(n, len(data))
		if _, err := r.Write(data[:n]); err != nil {
			return nil, err
		}
		data = data[n:]
	}
	return r.Close()
}

func mustRead(t testing.TB, f wire.Format, data []byte) *Pack {
	t.Helper()
	p, err := read(f, scratch(t), Limits{}, data, 0)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// builder makes packs that git does not make.
type builder struct {
	format wire.Format
	buf    bytes.Buffer
	count  uint32
	starts []int
}

func newBuilder(f wire.Format) *builder {
	b := &builder{format: f}
	b.buf.WriteString("PACK\x00\x00\x00\x02\x00\x00\x00\x00")
	return b
}

// writers are used again: each has much memory of its own.
var writers = sync.Pool{New: func() any { return zlib.NewWriter(nil) }}

func deflated(content []byte) []byte {
	var z bytes.Buffer
	w := writers.Get().(*zlib.Writer)
	defer writers.Put(w)
	w.Reset(&z)
	_, _ = w.Write(content) // to memory
	_ = w.Close()           // as above
	return z.Bytes()
}

func (b *builder) head(k kind, size int) {
	b.starts = append(b.starts, b.buf.Len())
	b.count++
	c := byte(k)<<4 | byte(size&15)
	for size >>= 4; size > 0; size >>= 7 {
		b.buf.WriteByte(c | 0x80)
		c = byte(size & 0x7f)
	}
	b.buf.WriteByte(c)
}

func (b *builder) object(k kind, content []byte) *builder {
	b.head(k, len(content))
	b.buf.Write(deflated(content))
	return b
}

// offset adds a delta on what begins back bytes before it.
func (b *builder) offset(back int, delta []byte) *builder {
	b.head(offsetBase, len(delta))
	b.buf.Write(distance(back))
	b.buf.Write(deflated(delta))
	return b
}

func distance(back int) []byte {
	out := []byte{byte(back & 0x7f)}
	for back >>= 7; back > 0; back >>= 7 {
		back--
		out = append([]byte{0x80 | byte(back&0x7f)}, out...)
	}
	return out
}

// on adds a delta on the object that was added as number n.
func (b *builder) on(n int, delta []byte) *builder { return b.offset(b.buf.Len()-b.starts[n], delta) }

func (b *builder) named(base wire.ID, delta []byte) *builder {
	b.head(namedBase, len(delta))
	b.buf.Write(base.Bytes())
	b.buf.Write(deflated(delta))
	return b
}

func (b *builder) raw(data ...byte) *builder {
	b.starts = append(b.starts, b.buf.Len())
	b.count++
	b.buf.Write(data)
	return b
}

func (b *builder) hash() hash.Hash {
	if b.format == wire.SHA256 {
		return sha256.New()
	}
	return sha1.New()
}

func (b *builder) pack() []byte {
	data := bytes.Clone(b.buf.Bytes())
	binary.BigEndian.PutUint32(data[8:], b.count)
	h := b.hash()
	h.Write(data)
	return h.Sum(data)
}

// name is the id of an object.
func (b *builder) name(k kind, content []byte) wire.ID {
	h := b.hash()
	fmt.Fprintf(h, "%s %d\x00%s", k.name(), len(content), content)
	id, _ := wire.NewID(h.Sum(nil))
	return id
}

func number(n int) []byte {
	var out []byte
	for ; n >= 0x80; n >>= 7 {
		out = append(out, byte(n)|0x80)
	}
	return append(out, byte(n))
}

// change is a delta from one content to another: what both begin with is copied.
func change(from, to []byte) []byte {
	out := append(number(len(from)), number(len(to))...)
	same := 0
	for same < len(from) && same < len(to) && from[same] == to[same] && same < 0xffff {
		same++
	}
	if same > 0 {
		out = append(out, 0xb0, byte(same), byte(same>>8))
	}
	for to = to[same:]; len(to) > 0; {
		n := min(len(to), 127)
		out = append(append(out, byte(n)), to[:n]...)
		to = to[n:]
	}
	return out
}

// history makes a random history by git fast-import, and returns its commits in order. Paths are few, so that they change kind and come back.
func (r *repository) history(seed uint64, commits int) []wire.ID {
	r.t.Helper()
	rnd := rand.New(rand.NewPCG(seed, 7))
	var in strings.Builder
	zero := strings.Repeat("1", 2*r.format.Size())
	names := []string{"a", "b", "a-b", "a.b", "dir", "Dir", ".ci"}
	path := func() string {
		parts := make([]string, 1+rnd.IntN(3))
		for i := range parts {
			parts[i] = names[rnd.IntN(len(names))]
		}
		return strings.Join(parts, "/")
	}
	for i := range commits {
		fmt.Fprintf(&in, "commit refs/heads/c%d\nmark :%d\ncommitter a <a@b> %d +0000\ndata 5\nn%03d\n\n", i, i+1, 1700000000+i, i)
		if i > 0 && rnd.IntN(12) > 0 {
			fmt.Fprintf(&in, "from :%d\n", 1+max(0, i-1-rnd.IntN(4)))
			for range [...]int{0, 0, 0, 1, 2}[rnd.IntN(5)] {
				fmt.Fprintf(&in, "merge :%d\n", 1+rnd.IntN(i))
			}
		}
		for range 1 + rnd.IntN(4) {
			switch text := strings.Repeat(fmt.Sprintf("line %d\n", rnd.IntN(6)), 1+rnd.IntN(40)); rnd.IntN(8) {
			case 0, 1:
				fmt.Fprintf(&in, "D %s\n", path())
			case 2:
				fmt.Fprintf(&in, "M 160000 %s %s\n", zero, path())
			case 3:
				fmt.Fprintf(&in, "M 120000 inline %s\ndata 1\nx\n", path())
			case 4:
				fmt.Fprintf(&in, "M 100755 inline %s\ndata %d\n%s\n", path(), len(text), text)
			default:
				fmt.Fprintf(&in, "M 100644 inline %s\ndata %d\n%s\n", path(), len(text), text)
			}
		}
		in.WriteByte('\n')
	}
	r.git(in.String(), "fast-import", "--quiet", "--force")
	var all []wire.ID
	for i := range commits {
		all = append(all, r.resolve(fmt.Sprintf("refs/heads/c%d", i)))
	}
	return all
}

func formats() []wire.Format { return []wire.Format{wire.SHA1, wire.SHA256} }

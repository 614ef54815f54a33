package pack

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/cofferdam/cofferdam/internal/gateway/git/wire"
)

// import feeds git fast-import with what write writes.
func (r *repository) fastImport(write func(w *bytes.Buffer)) {
	r.t.Helper()
	var in bytes.Buffer
	write(&in)
	cmd := exec.Command("git", "-C", r.dir, "fast-import", "--quiet", "--force")
	cmd.Env, cmd.Stdin = gitEnv(), &in
	if out, err := cmd.CombinedOutput(); err != nil {
		r.t.Fatalf("git fast-import: %v: %.300s", err, out)
	}
}

// large makes a repository whose pack has about 120 MiB: files of text that does not compress well, of which commits change some lines.
func large(t testing.TB) (pack string) {
	t.Helper()
	r := newRepository(t, wire.SHA1)
	rnd := rand.NewChaCha8([32]byte{1})
	files := make([][]byte, 3000)
	r.fastImport(func(w *bytes.Buffer) {
		for c := range 60 {
			fmt.Fprintf(w, "commit refs/heads/main\ncommitter a <a@b> %d +0000\ndata 1\nx\n", 1700000000+c)
			for i := range files {
				switch {
				case c == 0:
					raw := make([]byte, 30_000)
					_, _ = rnd.Read(raw) // never fails
					files[i] = []byte(base64.StdEncoding.EncodeToString(raw))
				case rnd.Uint64()%30 == 0:
					at := int(rnd.Uint64() % uint64(len(files[i])-100))
					copy(files[i][at:], fmt.Sprintf("changed in %d, at %d", c, at))
				default:
					continue
				}
				fmt.Fprintf(w, "M 100644 inline d%d/e%d/f%d\ndata %d\n", i%10, i/10%20, i, len(files[i]))
				w.Write(files[i])
				w.WriteByte('\n')
			}
		}
	})
	r.git("", "repack", "-q", "-a", "-d", "-f", "--window=4", "--depth=50")
	packs, err := filepath.Glob(r.dir + "/objects/pack/*.pack")
	if err != nil || len(packs) != 1 {
		t.Fatalf("%q %v", packs, err)
	}
	return packs[0]
}

// BenchmarkReader reads a large pack with real deltas, beside git index-pack, which also names the blobs.
func BenchmarkReader(b *testing.B) {
	data, err := os.ReadFile(large(b))
	if err != nil {
		b.Fatal(err)
	}
	b.Run("reader", func(b *testing.B) {
		b.SetBytes(int64(len(data)))
		b.ReportAllocs()
		for b.Loop() {
			if _, err := read(wire.SHA1, scratch(b), Limits{}, data, 256<<10); err != nil {
				b.Fatal(err)
			}
		}
	})
	for _, threads := range []string{"1", "2"} {
		b.Run("git-index-pack-threads-"+threads, func(b *testing.B) {
			b.SetBytes(int64(len(data)))
			for b.Loop() {
				r := newRepository(b, wire.SHA1)
				cmd := exec.Command("git", "-C", r.dir, "-c", "pack.threads="+threads, "index-pack", "--stdin")
				cmd.Env, cmd.Stdin = gitEnv(), bytes.NewReader(data)
				if out, err := cmd.CombinedOutput(); err != nil {
					b.Fatalf("%v: %s", err, out)
				}
			}
		})
	}
}

// BenchmarkChanged judges a push of one commit to a repository of fifty thousand files, with an upstream that is git on this machine: most of it is git.
func BenchmarkChanged(b *testing.B) {
	s := &scene{newRepository(b, wire.SHA1), &asker{repository: newRepository(b, wire.SHA1)}}
	s.upstream.git("", "config", "uploadpack.allowFilter", "true")
	s.fastImport(func(w *bytes.Buffer) {
		w.WriteString("commit refs/heads/main\ncommitter a <a@b> 1700000000 +0000\ndata 1\nx\nM 100644 inline .github/workflows/ci.yml\ndata 1\n1\n")
		for i := range 50_000 {
			fmt.Fprintf(w, "M 100644 inline src/d%d/e%d/f%d/g%d.go\ndata 6\n%06d\n", i%20, i/20%25, i/500%5, i, i)
		}
	})
	s.git("", "gc", "-q")
	s.publish("main:refs/heads/main")
	s.upstream.git("", "gc", "-q")
	s.commit("one", "main", "M 100644 inline src/d3/e7/f2/g1.go\ndata 1\nx\n")
	s.commit("evil", "main", "M 100644 inline .github/workflows/ci.yml\ndata 1\nx\n")
	for _, c := range []struct {
		name, tip string
		paths     Paths
		want      int
	}{{"named", "one", prefixes{".github/workflows", "AGENTS.md"}, 0}, {"anywhere", "one", named("CLAUDE.md"), 0}, {"changed", "evil", prefixes{".github/workflows", "AGENTS.md"}, 1}} {
		b.Run(c.name, func(b *testing.B) {
			data := s.pack([]string{"refs/heads/" + c.tip, "^main"}, "--delta-base-offset")
			s.upstream.asked = 0
			for b.Loop() {
				p := mustRead(b, wire.SHA1, data)
				got, err := p.Changed(context.Background(), NewUpstream(wire.SHA1, s.upstream), []wire.ID{s.resolve("refs/heads/" + c.tip)}, c.paths)
				if err != nil || len(got) != c.want {
					b.Fatal(got, err)
				}
			}
			b.ReportMetric(float64(s.upstream.asked)/float64(b.N), "questions/op")
		})
	}
}

// named protects files of a name wherever they are.
type named string

func (n named) Protected(path string) bool { return filepath.Base(path) == string(n) }

func (n named) ProtectedBelow(string) bool { return true }

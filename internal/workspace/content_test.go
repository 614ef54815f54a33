package workspace

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
)

// TestDigest: it depends on what a file holds and not on where it has holes, no two contents share one, and a copy is the same.
func TestDigest(t *testing.T) {
	const k = 1 << 10
	random := func(n int) []byte {
		data := make([]byte, n)
		for i := range data {
			data[i] = byte(rand.IntN(256))
		}
		return data
	}
	dense := random(300 * k)
	contents := map[string][]byte{
		"empty": {}, "one": {1}, "zero": {0}, "dense": dense, "short of a block of zeros": make([]byte, 64*k-1), "a block of zeros": make([]byte, 64*k),
		"more zeros": make([]byte, 64*k+1), "two blocks": make([]byte, 128*k), "600k of zeros": make([]byte, 600*k), "hole and end": append(make([]byte, 512*k), 1),
		"beginning and hole": append([]byte{1}, make([]byte, 512*k)...), "hole in data": bytes.Join([][]byte{dense, make([]byte, 300*k), dense}, nil),
		"hole earlier": bytes.Join([][]byte{dense[:100*k], make([]byte, 300*k), dense[100*k:], dense}, nil), "dense twice": append(bytes.Clone(dense), dense...),
		"small holes": bytes.Join([][]byte{dense[:5000], make([]byte, 20*k), dense[:70*k], make([]byte, 20*k)}, nil),
	}
	c, dir := newCopier(), t.TempDir()
	seen := map[string]string{}
	for name, data := range contents {
		full, holed, out := filepath.Join(dir, name+" full"), filepath.Join(dir, name+" holed"), filepath.Join(dir, name+" out")
		must(t, os.WriteFile(full, data, 0o600))
		h, err := os.Create(holed)
		must(t, err)
		for at := 0; at < len(data); at += 4 * k {
			if piece := data[at:min(at+4*k, len(data))]; len(bytes.Trim(piece, "\x00")) > 0 {
				_, err := h.WriteAt(piece, int64(at))
				must(t, err)
			}
		}
		must(t, h.Truncate(int64(len(data))))
		var digests []string
		for _, path := range []string{full, holed} {
			src, err := os.Open(path)
			must(t, err)
			dst, err := os.Create(out)
			must(t, err)
			sum, err := c.copy(t.Context(), dst, src, int64(len(data)))
			must(t, err)
			if copied, err := os.ReadFile(out); err != nil || !bytes.Equal(copied, data) {
				t.Errorf("%s: the copy differs: %v", path, err)
			}
			if _, err := c.copy(t.Context(), nil, src, int64(len(data))+1); err == nil {
				t.Errorf("%s: a file that is shorter than it was is taken", path)
			}
			src.Close()
			dst.Close()
			digests = append(digests, sum)
		}
		h.Close()
		if digests[0] != digests[1] || !isDigest(digests[0]) {
			t.Errorf("%s: digest %s, with holes %s", name, digests[0], digests[1])
		}
		if other, known := seen[digests[0]]; known {
			t.Errorf("%s and %s have one digest", name, other)
		}
		seen[digests[0]] = name
	}
	sum := sha256.Sum256(dense)
	if name := seen[hex.EncodeToString(sum[:])]; name != "dense" {
		t.Errorf("the digest of a file without holes is not its SHA-256 (%q)", name)
	}
}

package pack

import (
	"encoding/binary"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"testing"

	"github.com/cofferdam/cofferdam/internal/gateway/git/wire"
)

// flow writes a pack of any length without having it in memory.
type flow struct {
	to    *Reader
	t     testing.TB
	buf   []byte
	start uint64 // of HeapInuse
	peak  uint64
	since int
	moved int64
}

func newFlow(t testing.TB, f wire.Format, objects int) *flow {
	s, err := os.CreateTemp(t.TempDir(), "scratch")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	runtime.GC()
	x := &flow{t: t, buf: make([]byte, 0, 64<<10)}
	x.start = inUse()
	x.to = NewReader(f, s, Limits{})
	x.buf = binary.BigEndian.AppendUint32([]byte("PACK\x00\x00\x00\x02"), uint32(objects))
	return x
}

func inUse() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapInuse + m.StackInuse
}

// put writes an object.
func (x *flow) put(k kind, size int, rest ...[]byte) {
	c := byte(k)<<4 | byte(size&15)
	for size >>= 4; size > 0; size >>= 7 {
		x.buf = append(x.buf, c|0x80)
		c = byte(size & 0x7f)
	}
	x.buf = append(x.buf, c)
	for _, b := range rest {
		x.buf = append(x.buf, b...)
	}
	if len(x.buf) >= 32<<10 {
		x.flush()
	}
}

func (x *flow) flush() {
	if _, err := x.to.Write(x.buf); err != nil {
		x.t.Fatal(err)
	}
	x.moved += int64(len(x.buf))
	x.buf = x.buf[:0]
	if x.since++; x.since%16 == 0 {
		x.look()
	}
}

func (x *flow) look() { x.peak = max(x.peak, inUse()) }

// grown is how much memory was taken at most, garbage included.
func (x *flow) grown() float64 {
	x.flush()
	x.look()
	x.to.Stop()
	return float64(x.peak-min(x.peak, x.start)) / (1 << 20)
}

// stored compresses without compression, which is fast to make.
func stored(to, b []byte) []byte {
	out := append(append(to, 0x78, 0x01, 0x01, byte(len(b)), byte(len(b)>>8), ^byte(len(b)), ^byte(len(b)>>8)), b...)
	s1, s2 := uint32(1), uint32(0)
	for _, c := range b {
		s1 = (s1 + uint32(c)) % 65521
		s2 = (s2 + s1) % 65521
	}
	return binary.BigEndian.AppendUint32(out, s2<<16|s1)
}

// TestMemory has large pushes read in little memory: a gateway has many at once.
func TestMemory(t *testing.T) {
	if testing.Short() {
		t.Skip("takes half a minute")
	}
	const most = 64 // MiB
	f := wire.SHA1
	var text, delta, z []byte // made anew each time in the same memory, so that what is measured is the Reader's
	blob := func(i int) []byte {
		text = append(strconv.AppendInt(append(text[:0], "package p\n\nconst X = "...), int64(i), 10), " // a small file\n"...)
		return text
	}
	change := func(i int) []byte {
		base, b := len(blob(i-1)), blob(i)
		delta = binary.AppendUvarint(binary.AppendUvarint(delta[:0], uint64(base)), uint64(len(b)))
		delta = append(append(delta, byte(len(b))), b...)
		return delta
	}
	stored := func(b []byte) []byte {
		z = stored(z[:0], b)
		return z
	}
	for name, write := range map[string]func(t *testing.T) *flow{
		"a million small files": func(t *testing.T) *flow {
			x := newFlow(t, f, 1_000_000)
			for i := range 1_000_000 {
				x.put(blobKind, len(blob(i)), stored(blob(i)))
			}
			return x
		},
		"a million small files, every second a delta by distance": func(t *testing.T) *flow {
			x := newFlow(t, f, 1_000_000)
			for i := range 500_000 {
				base := stored(blob(2 * i))
				x.put(blobKind, len(text), base)
				back := [1]byte{byte(2 + len(base))}
				d := change(2*i + 1)
				x.put(offsetBase, len(d), back[:], stored(d))
			}
			return x
		},
		"a million small files, every second a delta by name": func(t *testing.T) *flow {
			x := newFlow(t, f, 1_000_000)
			h, sum := newHash(f), make([]byte, 0, 20)
			for i := range 500_000 {
				b := blob(2 * i)
				x.put(blobKind, len(b), stored(b))
				h.Reset()
				h.Write(append(strconv.AppendInt(append(z[:0], "blob "...), int64(len(b)), 10), 0))
				h.Write(b)
				sum = h.Sum(sum[:0])
				d := change(2*i + 1)
				x.put(namedBase, len(d), sum, stored(d))
			}
			return x
		},
		"three hundred thousand commits and trees": func(t *testing.T) *flow {
			x := newFlow(t, f, 300_000)
			b := newBuilder(f)
			parent := f.Zero()
			for i := range 150_000 {
				tree := []byte(line("100644", fmt.Sprintf("file%06d", i), b.name(blobKind, blob(i))) + line("40000", "src", b.name(treeKind, nil)))
				commit := fmt.Appendf(nil, "tree %v\nparent %v\n%s%d\n", b.name(treeKind, tree), parent, author, i)
				parent = b.name(commitKind, commit)
				x.put(commitKind, len(commit), stored(commit))
				x.put(treeKind, len(tree), stored(tree))
			}
			return x
		},
	} {
		t.Run(name, func(t *testing.T) {
			x := write(t)
			if got := x.grown(); got > most {
				t.Errorf("%.0f MiB more in use, for a pack of %.0f MiB", got, float64(x.moved)/(1<<20))
			} else {
				t.Logf("%.0f MiB more in use, for a pack of %.0f MiB", got, float64(x.moved)/(1<<20))
			}
		})
	}
}

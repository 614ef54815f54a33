package pack

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"testing"
	"time"

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
	err   error
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
	if _, x.err = x.to.Write(x.buf); x.err != nil {
		return
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
	if x.err == nil {
		x.flush()
	}
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
	if raceEnabled {
		t.Skip("the race detector takes memory of its own")
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
			if got := x.grown(); got > most || x.err != nil {
				t.Error(x.err)
				t.Errorf("%.0f MiB more in use, for a pack of %.0f MiB", got, float64(x.moved)/(1<<20))
			} else {
				t.Logf("%.0f MiB more in use, for a pack of %.0f MiB", got, float64(x.moved)/(1<<20))
			}
		})
	}
}

// TestMemoryRunsOut has packs refused whose index would take too much, whatever is in them.
func TestMemoryRunsOut(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector takes memory of its own")
	}
	const most = 64 // MiB
	var text, z []byte
	for name, one := range map[string]func(x *flow, i int, tree []byte){
		"of files without content": func(x *flow, _ int, _ []byte) { x.put(offsetBase, 4, []byte{17}, z) },
		"of small commits": func(x *flow, i int, tree []byte) {
			text = append(append(append(text[:0], "tree "...), tree...), "\nauthor "...)
			text = strconv.AppendInt(text, int64(i), 10)
			z = stored(z[:0], text)
			x.put(commitKind, len(text), z)
		},
		"of deltas that wait": func(x *flow, i int, _ []byte) {
			text = binary.BigEndian.AppendUint64(append(text[:0], "0123456789ab"...), uint64(i))
			x.put(namedBase, 4, text, z)
		},
	} {
		t.Run(name, func(t *testing.T) {
			x := newFlow(t, wire.SHA1, 20_000_000)
			tree := []byte(newBuilder(wire.SHA1).name(treeKind, nil).String())
			z = stored(z[:0], nil)
			x.put(blobKind, 0, z)
			x.put(offsetBase, 4, []byte{byte(1 + len(z))}, stored(nil, []byte{0, 1, 1, 'x'}))
			z = stored(z[:0], []byte{0, 1, 1, 'y'})
			for i := 0; x.err == nil; i++ {
				one(x, i, tree)
			}
			got := x.grown()
			if !errors.Is(x.err, ErrTooLarge) || got > most {
				t.Errorf("%.0f MiB more in use, after %.0f MiB: %v", got, float64(x.moved)/(1<<20), x.err)
			}
			t.Logf("%.0f MiB more in use, after %.0f MiB: %v", got, float64(x.moved)/(1<<20), x.err)
		})
	}
}

// TestMemoryOfLargeTrees reads and compares trees of the largest size, each of which a delta makes of another.
func TestMemoryOfLargeTrees(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector takes memory of its own")
	}
	const most = 96 // MiB, of which a third and more is what the collector has not come to yet
	f := wire.SHA1
	b := newBuilder(f)
	blob := b.name(blobKind, nil)
	var tree []byte
	for i := 0; len(tree) < 8<<20-100; i++ {
		tree = append(strconv.AppendInt(append(tree, "100644 f"...), int64(10_000_000+i), 10), 0)
		tree = append(tree, blob.Bytes()...)
	}
	b.object(treeKind, tree)
	other := b.name(blobKind, []byte("x")).Bytes()
	id := b.name(treeKind, tree)
	parent := "tree " + id.String() + "\n" + author
	b.object(commitKind, []byte(parent))
	head := appendCopy(binary.AppendUvarint(binary.AppendUvarint(nil, uint64(len(tree))), uint64(len(tree))), 0, len(tree)-20)
	h := newHash(f)
	for i := range 12 {
		other[0] = byte(i)
		copy(tree[len(tree)-20:], other)
		b.on(2*i, append(append(head, 20), other...))
		h.Reset()
		fmt.Fprintf(h, "tree %d\x00", len(tree))
		h.Write(tree)
		id, _ = wire.NewID(h.Sum(nil))
		child := fmt.Sprintf("tree %v\nparent %v\n%s", id, b.name(commitKind, []byte(parent)), author)
		b.object(commitKind, []byte(child))
		parent = child
	}
	data := b.pack()
	tree, head, b = nil, nil, nil
	s := scratch(t)
	runtime.GC()
	start, peak := inUse(), uint64(0)
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond):
				peak = max(peak, inUse())
			}
		}
	}()
	p, err := read(f, s, Limits{}, data, 64<<10)
	var got []string
	if err == nil {
		got, err = p.Changed(t.Context(), NewUpstream(f, nil), nil, named("no such name"))
	}
	close(stop)
	<-done
	if err != nil || len(got) != 0 {
		t.Fatal(got, err)
	}
	grown := float64(peak-min(start, peak)) / (1 << 20)
	if grown > most {
		t.Errorf("%.0f MiB more in use", grown)
	}
	t.Logf("%.0f MiB more in use", grown)
	runtime.KeepAlive(data)
}

// TestWorkRunsOut has a comparison end that would take hours: many small commits, each of which changes every name in a large tree.
func TestWorkRunsOut(t *testing.T) {
	f := wire.SHA1
	b := newBuilder(f)
	var ids [2]wire.ID
	for which := range ids {
		var tree []byte
		for i := range 200_000 {
			tree = append(strconv.AppendInt(append(tree, "100644 f"...), int64(10_000_000+i), 10), 0)
			tree = append(tree, bytes.Repeat([]byte{byte(which)}, 20)...)
		}
		b.object(treeKind, tree)
		ids[which] = b.name(treeKind, tree)
	}
	parent := fmt.Sprintf("tree %v\n%s", ids[0], author)
	b.object(commitKind, []byte(parent))
	for i := range 5000 {
		child := fmt.Sprintf("tree %v\nparent %v\n%s", ids[1-i%2], b.name(commitKind, []byte(parent)), author)
		b.object(commitKind, []byte(child))
		parent = child
	}
	p := mustRead(t, f, b.pack())
	start := time.Now()
	if got, err := p.Changed(t.Context(), NewUpstream(f, nil), nil, named("no such name")); !errors.Is(err, ErrTooLarge) {
		t.Errorf("%q, %v", got, err)
	}
	t.Logf("after %v", time.Since(start).Round(time.Millisecond))
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if got, err := p.Changed(ctx, NewUpstream(f, nil), nil, named("no such name")); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("not ended by its context: %q, %v", got, err)
	}
}

// appendCopy appends instructions of a delta that copy from its base.
func appendCopy(out []byte, offset, n int) []byte {
	for n > 0 {
		m := min(n, 0xffffff)
		op, args := byte(0x80), []byte{}
		for i := range 4 {
			if c := byte(offset >> (8 * i)); c != 0 {
				op, args = op|1<<i, append(args, c)
			}
		}
		for i := range 3 {
			if c := byte(m >> (8 * i)); c != 0 {
				op, args = op|0x10<<i, append(args, c)
			}
		}
		out = append(append(out, op), args...)
		offset, n = offset+m, n-m
	}
	return out
}

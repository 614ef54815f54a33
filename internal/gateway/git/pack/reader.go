// Package pack (GATEWAY) reads a pack as it passes, and answers what a push would do: whether it only goes forward, and which protected files it changes. Objects are known by
// the hash of their content and nothing else: what is not in the pack is asked of the upstream, and what neither has cannot be judged.
package pack

import (
	"bufio"
	"bytes"
	"crypto/sha1" // Git's own hash, which names objects; what it names is compared, not trusted
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/klauspost/compress/zlib"

	"github.com/cofferdam/cofferdam/internal/gateway/git/wire"
)

// Scratch is where commits, trees and tags of a pack are kept: an empty file, or memory.
type Scratch interface {
	io.ReaderAt
	io.WriterAt
}

// Limits bound what is kept of one pack. Zero fields are replaced by the defaults named.
type Limits struct {
	Objects int   // in the pack: 3,000,000, of which nothing is kept but eight bytes
	Kept    int   // commits, trees, tags, and differences whose base comes later: 300,000
	Bytes   int64 // of those, without compression: 1 GiB
	Object  int64 // of one of those: 32 MiB
}

func (l Limits) orDefaults() Limits {
	if l.Objects <= 0 {
		l.Objects = 3_000_000
	}
	if l.Kept <= 0 {
		l.Kept = 300_000
	}
	if l.Bytes <= 0 {
		l.Bytes = 1 << 30
	}
	if l.Object <= 0 {
		l.Object = 32 << 20
	}
	return l
}

// Faults of a pack.
var (
	ErrNotPack  = errors.New("this is not a pack")
	ErrDamaged  = errors.New("the pack is damaged")
	ErrTooLarge = errors.New("too much is in the pack to be judged: push in parts")
)

// Reader takes a pack as it passes. Its methods are called by one goroutine.
type Reader struct {
	in   *io.PipeWriter
	pack *Pack
	err  error
	done chan struct{}
}

// NewReader returns a reader of one pack. Close or Stop must be called.
func NewReader(f wire.Format, scratch Scratch, l Limits) *Reader {
	out, in := io.Pipe()
	r := &Reader{in: in, done: make(chan struct{})}
	d := &decoder{format: f, limits: l.orDefaults(), pack: newPack(f, scratch)}
	go func() {
		defer close(r.done)
		r.err = d.read(out)
		_ = out.CloseWithError(errOr(r.err, ErrNotPack)) // whoever writes more gets it: after a pack nothing comes
		r.pack = d.pack
	}()
	return r
}

func errOr(err, other error) error {
	if err == nil {
		return other
	}
	return err
}

// Write takes the next bytes. An error says that they are no pack, or that it is too large.
func (r *Reader) Write(p []byte) (int, error) { return r.in.Write(p) }

// Close ends the pack, and returns what is in it. An error says that it was not whole.
func (r *Reader) Close() (*Pack, error) {
	_ = r.in.Close() // of a pipe it is nil
	<-r.done
	if r.err != nil {
		return nil, r.err
	}
	return r.pack, nil
}

// Stop gives up a pack that does not come to its end. It may be called after Close, and more than once.
func (r *Reader) Stop() {
	_ = r.in.CloseWithError(io.ErrUnexpectedEOF) // of a pipe it is nil
	<-r.done
}

// The kinds of objects, by their numbers in a pack (gitformat-pack).
type kind uint8

const (
	commit   kind = 1
	tree     kind = 2
	blob     kind = 3
	tag      kind = 4
	ofsDelta kind = 6
	refDelta kind = 7
)

func (k kind) String() string {
	switch k {
	case commit:
		return "commit"
	case tree:
		return "tree"
	case blob:
		return "blob"
	case tag:
		return "tag"
	}
	return fmt.Sprintf("kind(%d)", uint8(k))
}

// newHash returns the hash function of a format.
func newHash(f wire.Format) hash.Hash {
	if f == wire.SHA256 {
		return sha256.New()
	}
	return sha1.New()
}

// source gives out bytes, and hashes all but the last few: those are the pack's checksum.
type source struct {
	from io.Reader
	sum  hash.Hash
	tail []byte
	read int64
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.from.Read(p)
	s.read += int64(n)
	s.tail = append(s.tail, p[:n]...)
	if over := len(s.tail) - s.sum.Size(); over > 0 {
		s.sum.Write(s.tail[:over])
		s.tail = append(s.tail[:0], s.tail[over:]...)
	}
	return n, err
}

// decoder reads one pack.
type decoder struct {
	format  wire.Format
	limits  Limits
	pack    *Pack
	source  *source
	in      *bufio.Reader
	inflate io.ReadCloser
	buf     bytes.Buffer
	offsets []int64 // of every object, ascending
	waiting []difference
}

// difference is an object that is stored as its difference to another which was not known when it came.
type difference struct {
	at     int64 // its own offset
	base   int64 // offset, or 0
	baseID wire.ID
	place  place // of the difference itself
}

func (d *decoder) read(from io.Reader) error {
	d.source = &source{from: from, sum: newHash(d.format)}
	d.in = bufio.NewReaderSize(d.source, 64<<10)
	var head [12]byte
	if _, err := io.ReadFull(d.in, head[:]); err != nil {
		return early(err)
	}
	if version := binary.BigEndian.Uint32(head[4:]); string(head[:4]) != "PACK" || version != 2 && version != 3 {
		return ErrNotPack
	}
	count := binary.BigEndian.Uint32(head[8:])
	if int64(count) > int64(d.limits.Objects) {
		return ErrTooLarge
	}
	d.pack.objects = int(count)
	for range count {
		if err := d.object(); err != nil {
			return err
		}
	}
	if err := d.end(); err != nil {
		return err
	}
	if err := d.settle(); err != nil {
		return err
	}
	d.pack.byOffset = nil
	return nil
}

// early makes an end inside a pack no ordinary one.
func early(err error) error {
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return fmt.Errorf("%w: it ends too early", ErrDamaged)
	}
	return err
}

// end compares the checksum, after which nothing may come.
func (d *decoder) end() error {
	stated := make([]byte, d.format.Size())
	if _, err := io.ReadFull(d.in, stated); err != nil {
		return early(err)
	}
	if _, err := d.in.ReadByte(); err != io.EOF {
		return errors.Join(ErrDamaged, errOr(err, errors.New("bytes follow it")))
	}
	if !bytes.Equal(stated, d.source.tail) || !bytes.Equal(stated, d.source.sum.Sum(nil)) {
		return fmt.Errorf("%w: its checksum is another", ErrDamaged)
	}
	return nil
}

// at is the offset of the next byte.
func (d *decoder) at() int64 { return d.source.read - int64(d.in.Buffered()) }

// object reads one object.
func (d *decoder) object() error {
	at := d.at()
	k, size, err := d.header()
	if err != nil {
		return err
	}
	d.offsets = append(d.offsets, at)
	switch k {
	case commit, tree, tag:
		content, err := d.content(size)
		if err != nil {
			return err
		}
		_, err = d.keep(k, at, content)
		return err
	case blob:
		return d.skip(size)
	case ofsDelta:
		base, err := d.baseOffset(at)
		if err != nil {
			return err
		}
		return d.difference(difference{at: at, base: base}, size)
	case refDelta:
		raw := make([]byte, d.format.Size())
		if _, err := io.ReadFull(d.in, raw); err != nil {
			return early(err)
		}
		id, _ := wire.NewID(raw)
		return d.difference(difference{at: at, baseID: id}, size)
	}
	return ErrDamaged
}

// header reads kind and size: three bits of kind and four of size, then seven bits of size as long as the highest bit is set.
func (d *decoder) header() (kind, int64, error) {
	b, err := d.in.ReadByte()
	if err != nil {
		return 0, 0, early(err)
	}
	k, size := kind(b>>4&7), int64(b&15)
	for shift := 4; b&0x80 != 0; shift += 7 {
		if b, err = d.in.ReadByte(); err != nil {
			return 0, 0, early(err)
		}
		if shift > 53 {
			return 0, 0, ErrDamaged
		}
		size |= int64(b&0x7f) << shift
	}
	return k, size, nil
}

// baseOffset reads how far before it an object's base begins.
func (d *decoder) baseOffset(at int64) (int64, error) {
	var back int64
	for i := 0; ; i++ {
		b, err := d.in.ReadByte()
		if err != nil {
			return 0, early(err)
		}
		if i > 0 {
			back++
		}
		if back > 1<<50 {
			return 0, ErrDamaged
		}
		back = back<<7 | int64(b&0x7f)
		if b&0x80 == 0 {
			break
		}
	}
	if back <= 0 || back >= at || !contains(d.offsets, at-back) {
		return 0, fmt.Errorf("%w: a base is none", ErrDamaged)
	}
	return at - back, nil
}

// zlib returns the next compressed bytes, uncompressed.
func (d *decoder) zlib() (io.Reader, error) {
	if d.inflate == nil {
		z, err := zlib.NewReader(d.in)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
		}
		d.inflate = z
		return z, nil
	}
	if err := d.inflate.(zlib.Resetter).Reset(d.in, nil); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return d.inflate, nil
}

// skip reads an object that is not kept, and checks its size.
func (d *decoder) skip(size int64) error {
	z, err := d.zlib()
	if err != nil {
		return err
	}
	n, err := io.Copy(io.Discard, io.LimitReader(z, size+1))
	if err != nil {
		return fmt.Errorf("%w: %w", ErrDamaged, early(err))
	}
	if n != size {
		return fmt.Errorf("%w: an object has another size", ErrDamaged)
	}
	return nil
}

// content reads an object whole. It is valid until the next.
func (d *decoder) content(size int64) ([]byte, error) {
	if size > d.limits.Object {
		return nil, ErrTooLarge
	}
	z, err := d.zlib()
	if err != nil {
		return nil, err
	}
	d.buf.Reset()
	n, err := d.buf.ReadFrom(io.LimitReader(z, size+1))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, early(err))
	}
	if n != size {
		return nil, fmt.Errorf("%w: an object has another size", ErrDamaged)
	}
	return d.buf.Bytes(), nil
}

// keep stores an object under its name.
func (d *decoder) keep(k kind, at int64, content []byte) (wire.ID, error) {
	p, err := d.store(k, content)
	if err != nil {
		return wire.ID{}, err
	}
	h := newHash(d.format)
	fmt.Fprintf(h, "%s %d\x00", k, len(content))
	h.Write(content)
	id, _ := wire.NewID(h.Sum(nil))
	d.pack.kept[id] = p
	d.pack.byOffset[at] = p
	return id, nil
}

// store appends bytes to what is kept.
func (d *decoder) store(k kind, content []byte) (place, error) {
	if d.pack.stored++; d.pack.stored > d.limits.Kept || d.pack.size+int64(len(content)) > d.limits.Bytes {
		return place{}, ErrTooLarge
	}
	p := place{at: d.pack.size, length: uint32(len(content)), kind: k}
	if _, err := d.pack.scratch.WriteAt(content, p.at); err != nil {
		return place{}, fmt.Errorf("keep what is pushed while it is judged: %w", err)
	}
	d.pack.size += int64(len(content))
	return p, nil
}

// difference takes an object that is stored as one. What it is a difference to may come later, be at the upstream only, or be a blob: then it is not needed, or nothing
// is known of it and what refers to it cannot be judged.
func (d *decoder) difference(x difference, size int64) error {
	base, known := d.base(x)
	if !known && x.base != 0 && !d.isWaiting(x.base) {
		return d.skip(size) // the base is a blob, so this is one
	}
	change, err := d.content(size)
	if err != nil {
		return err
	}
	if known {
		_, err := d.resolve(base, x.at, change)
		return err
	}
	if x.place, err = d.store(0, change); err != nil {
		return err
	}
	d.waiting = append(d.waiting, x)
	return nil
}

func (d *decoder) base(x difference) (place, bool) {
	if x.base != 0 {
		p, ok := d.pack.byOffset[x.base]
		return p, ok
	}
	p, ok := d.pack.kept[x.baseID]
	return p, ok
}

// isWaiting reports whether the object at an offset is a difference that waits. They are in the order of their offsets.
func (d *decoder) isWaiting(at int64) bool {
	i := search(len(d.waiting), func(i int) bool { return d.waiting[i].at >= at })
	return i < len(d.waiting) && d.waiting[i].at == at
}

// resolve keeps the object that a difference makes of its base.
func (d *decoder) resolve(base place, at int64, change []byte) (wire.ID, error) {
	from, err := d.pack.content(base)
	if err != nil {
		return wire.ID{}, err
	}
	content, err := apply(from, change, d.limits.Object)
	if err != nil {
		return wire.ID{}, err
	}
	return d.keep(base.kind, at, content)
}

// settle resolves what waited for a base that came later, until nothing changes.
func (d *decoder) settle() error {
	byBase, byID := map[int64][]difference{}, map[wire.ID][]difference{}
	for _, x := range d.waiting {
		if x.base != 0 {
			byBase[x.base] = append(byBase[x.base], x)
		} else {
			byID[x.baseID] = append(byID[x.baseID], x)
		}
	}
	var ready []difference
	for id, waiting := range byID {
		if _, ok := d.pack.kept[id]; ok {
			ready = append(ready, waiting...)
			delete(byID, id)
		}
	}
	for len(ready) > 0 {
		x := ready[len(ready)-1]
		ready = ready[:len(ready)-1]
		base, _ := d.base(x)
		change, err := d.pack.content(x.place)
		if err != nil {
			return err
		}
		id, err := d.resolve(base, x.at, change)
		if err != nil {
			return err
		}
		ready = append(append(ready, byBase[x.at]...), byID[id]...)
		delete(byBase, x.at)
		delete(byID, id)
	}
	return nil
}

// search is sort.Search.
func search(n int, f func(int) bool) int {
	low := 0
	for low < n {
		if mid := int(uint(low+n) >> 1); f(mid) {
			n = mid
		} else {
			low = mid + 1
		}
	}
	return low
}

// contains looks in a sorted list.
func contains(sorted []int64, v int64) bool {
	i := search(len(sorted), func(i int) bool { return sorted[i] >= v })
	return i < len(sorted) && sorted[i] == v
}

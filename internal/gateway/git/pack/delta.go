package pack

import (
	"bufio"
	"bytes"
	"errors"
	"io"

	"github.com/cofferdam/cofferdam/internal/gateway/git/wire"
)

// waiting is a delta whose base was not met yet: its name is known, or (without one) the entry that it is.
type waiting struct {
	name   wire.ID
	entry  int // of the base, where it has no name
	own    int // entry of the delta itself
	stored record
}

// maxWaiting bounds the deltas that wait: writers put bases first, but for a few.
const maxWaiting = 100_000

// minDelta is the shortest delta that git applies (DELTA_SIZE_MIN in its delta.h).
const minDelta = 4

// delta reads a delta. If its base is known it is applied at once, so that a chain of them costs the same at any depth; if not, it waits.
func (r *Reader) delta(offset, size int64, base place, w waiting) error {
	k := base.kind()
	if size < minDelta {
		return malformed("a delta that is shorter than any")
	}
	if k == blobKind && !r.reaches(base) {
		if err := r.skip(size); err != nil {
			return err
		}
		r.entries.push(offset, placeOf(blobKind, nameless))
		return nil
	}
	if size > int64(r.most(k)) && (k != blobKind && k != unknown) {
		return tooLarge("a delta of %d bytes on a %s", size, k.name())
	}
	if k == unknown {
		return r.wait(offset, size, w)
	}
	if err := r.inflate(); err != nil {
		return err
	}
	if err := r.seek(base.slot()); err != nil {
		return err
	}
	r.stream.Reset(r.z)
	at, err := r.apply(k, r.stream, size)
	if err != nil {
		return err
	}
	switch _, err := r.stream.ReadByte(); err {
	case io.EOF:
	case nil:
		return malformed("a delta that is larger than it says")
	default:
		return r.deflated(err)
	}
	r.entries.push(offset, at)
	return nil
}

// reaches reports whether a blob's content is at hand, and what is made of it is kept.
func (r *Reader) reaches(base place) bool {
	return !r.blobs.off && base.slot() != nameless && r.kept.records.at(int(base.slot())).at != nowhere
}

// skip passes over a delta.
func (r *Reader) skip(size int64) error {
	if err := r.inflate(); err != nil {
		return err
	}
	for left := size; ; {
		n, err := r.z.Read(r.chunk)
		if left -= int64(n); left < 0 {
			return malformed("a delta that is larger than it says")
		}
		if err := r.worked(n); err != nil {
			return err
		}
		switch {
		case err == io.EOF && left > 0:
			return malformed("a delta that is smaller than it says")
		case err == io.EOF:
			return nil
		case err != nil:
			return r.deflated(err)
		}
	}
}

// wait stores a delta until all objects are there.
func (r *Reader) wait(offset, size int64, w waiting) error {
	if size > int64(r.limits.Tree) || len(r.waiting) == maxWaiting {
		return tooLarge("deltas that come before their bases: one of %d bytes, or more than %d", size, maxWaiting)
	}
	if err := r.inflate(); err != nil {
		return err
	}
	var err error
	if r.result, err = r.collect(r.result[:0], int(size)); err != nil {
		return err
	}
	at, err := r.store(r.result)
	if err != nil {
		return err
	}
	w.own, w.stored = r.entries.len(), record{at: at, packed: uint32(size)}
	r.waiting = append(r.waiting, w)
	r.entries.push(offset, placeOf(unknown, nameless))
	return nil
}

// seek has the content of a slot at hand as the base.
func (r *Reader) seek(slot uint32) error {
	if r.baseSlot == slot {
		return nil
	}
	r.baseSlot = nameless
	record := r.kept.records.at(int(slot))
	if err := r.worked(record.size()); err != nil {
		return err
	}
	var err error
	if r.base, err = load(r.scratch, r.base, record); err != nil {
		return err
	}
	r.baseSlot = slot
	return nil
}

// apply makes an object of the base at hand and a delta, and keeps it.
func (r *Reader) apply(k kind, delta *bufio.Reader, size int64) (place, error) {
	in := &counted{from: delta, left: size}
	from, err := in.number()
	if err != nil {
		return 0, r.deltaError(err)
	}
	to, err := in.number()
	if err != nil {
		return 0, r.deltaError(err)
	}
	if from != int64(len(r.base)) {
		return 0, malformed("a delta on a base of another size")
	}
	if to > int64(r.most(k)) && k != blobKind {
		return 0, tooLarge("a %s of %d bytes", k.name(), to)
	}
	if k == blobKind && !r.keepsBlob(to) { // it is counted, not made
		err = in.discard()
		if err == nil {
			err = r.worked(int(size))
		}
		return placeOf(k, nameless), r.deltaError(err)
	}
	r.result = r.result[:0]
	for in.left > 0 {
		if err := r.instruction(in, int(to)); err != nil {
			return 0, r.deltaError(err)
		}
	}
	if len(r.result) != int(to) {
		return 0, malformed("a delta whose result is smaller than it says")
	}
	if err := r.worked(int(size) + int(to)); err != nil {
		return 0, err
	}
	slot, err := r.keep(k, r.result)
	if err != nil {
		return 0, err
	}
	if cap(r.base) < 1<<20 && cap(r.result) < 1<<20 { // what was made is likely the next base
		r.base, r.result, r.baseSlot = r.result, r.base, slot
	}
	return placeOf(k, slot), nil
}

func (r *Reader) deltaError(err error) error {
	if err == nil || errors.Is(err, ErrMalformed) || errors.Is(err, ErrTooLarge) {
		return err
	}
	return r.deflated(err)
}

// instruction carries out one instruction of a delta (gitformat-pack, "Deltified representation").
func (r *Reader) instruction(in *counted, to int) error {
	op, err := in.ReadByte()
	if err != nil {
		return err
	}
	if op&0x80 == 0 {
		n := int(op)
		if n == 0 || len(r.result)+n > to {
			return malformed("a delta with an instruction that cannot be carried out")
		}
		from := len(r.result)
		r.result = append(r.result, make([]byte, n)...)
		return in.full(r.result[from:])
	}
	var offset, n int
	for i := range 7 {
		if op>>i&1 == 0 {
			continue
		}
		c, err := in.ReadByte()
		if err != nil {
			return err
		}
		if i < 4 {
			offset |= int(c) << (8 * i)
		} else {
			n |= int(c) << (8 * (i - 4))
		}
	}
	if n == 0 {
		n = 0x10000
	}
	if offset+n > len(r.base) || len(r.result)+n > to {
		return malformed("a delta with an instruction that cannot be carried out")
	}
	r.result = append(r.result, r.base[offset:offset+n]...)
	return nil
}

// counted reads a delta of a known size.
type counted struct {
	from *bufio.Reader
	left int64
}

var errSmaller = malformed("a delta that is smaller than it says")

// ReadByte implements io.ByteReader.
func (c *counted) ReadByte() (byte, error) {
	if c.left == 0 {
		return 0, malformed("a delta that ends within an instruction")
	}
	c.left--
	b, err := c.from.ReadByte()
	if err == io.EOF {
		err = errSmaller
	}
	return b, err
}

func (c *counted) full(p []byte) error {
	if int64(len(p)) > c.left {
		return malformed("a delta that ends within an instruction")
	}
	c.left -= int64(len(p))
	_, err := io.ReadFull(c.from, p)
	if err == io.EOF {
		err = errSmaller
	}
	return err
}

func (c *counted) discard() error {
	n, err := io.CopyN(io.Discard, c.from, c.left)
	c.left -= n
	if err == io.EOF {
		err = errSmaller
	}
	return err
}

// number reads a size.
func (c *counted) number() (int64, error) {
	var n int64
	for shift := 0; ; shift += 7 {
		b, err := c.ReadByte()
		if err != nil {
			return 0, err
		}
		if shift > 53 {
			return 0, malformed("an object of more than 2^60 bytes")
		}
		n |= int64(b&0x7f) << shift
		if b&0x80 == 0 {
			return n, nil
		}
	}
}

// settle applies the deltas that waited. Each is taken up once, when its base is known; what is left over has no base here, or is part of a circle.
func (r *Reader) settle() error {
	if len(r.waiting) == 0 {
		return nil
	}
	byName, byEntry := map[wire.ID][]int{}, map[int][]int{}
	var ready []int
	for i, w := range r.waiting {
		if w.name == (wire.ID{}) {
			byEntry[w.entry] = append(byEntry[w.entry], i)
		} else if _, ok := r.kept.find(w.name); ok {
			ready = append(ready, i)
		} else {
			byName[w.name] = append(byName[w.name], i)
		}
	}
	done := 0
	for ; len(ready) > 0; done++ {
		i := ready[len(ready)-1]
		ready = ready[:len(ready)-1]
		at, err := r.late(&r.waiting[i])
		if err != nil {
			return err
		}
		own := r.waiting[i].own
		*r.entries.places.at(own) = at
		ready = append(ready, byEntry[own]...)
		if at.slot() != nameless {
			ready = append(ready, byName[r.kept.id(at.slot())]...)
		}
	}
	switch {
	case done == len(r.waiting):
		return nil
	case r.blobs.lost:
		return tooLarge("a delta names a base that was not kept, or that is not in the pack")
	}
	return ErrThin
}

// late applies one delta that waited.
func (r *Reader) late(w *waiting) (place, error) {
	base := *r.entries.places.at(w.entry)
	if w.name != (wire.ID{}) {
		slot, _ := r.kept.find(w.name)
		base = placeOf(r.kept.kind(slot), slot)
	}
	if base.kind() == blobKind && !r.reaches(base) {
		return placeOf(blobKind, nameless), nil
	}
	if err := r.seek(base.slot()); err != nil {
		return 0, err
	}
	delta, err := load(r.scratch, nil, &w.stored)
	if err != nil {
		return 0, err
	}
	return r.apply(base.kind(), bufio.NewReader(bytes.NewReader(delta)), int64(w.stored.size()))
}

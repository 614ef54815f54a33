package pack

import (
	"bytes"
	"hash/maphash"
	"sort"

	"github.com/cofferdam/cofferdam/internal/gateway/git/wire"
)

// kind is what an object is, with the numbers of gitformat-pack. The zero value is none.
type kind uint8

const (
	noKind     kind = 0
	commitKind kind = 1
	treeKind   kind = 2
	blobKind   kind = 3
	tagKind    kind = 4
	unknown    kind = 5 // reserved in packs; here: a delta whose base was not met yet
	offsetBase kind = 6
	namedBase  kind = 7
)

// name is what is hashed before an object's content.
func (k kind) name() string { return [8]string{1: "commit", 2: "tree", 3: "blob", 4: "tag"}[k] }

// column is a growing list. It grows by pages, so that growing copies nothing and leaves no garbage: packs have millions of objects.
type column[T any] struct {
	pages [][]T
	len   int
}

const pageLen = 1 << 12

func (c *column[T]) at(i int) *T { return &c.pages[i/pageLen][i%pageLen] }

func (c *column[T]) push(v T) {
	page := c.len / pageLen
	switch {
	case page == len(c.pages) && page == 0:
		c.pages = append(c.pages, make([]T, 0, 64)) // most pushes are small
	case page == len(c.pages):
		c.pages = append(c.pages, make([]T, 0, pageLen))
	}
	c.pages[page] = append(c.pages[page], v)
	c.len++
}

// entries are all objects of a pack in their order, found by where they begin: nine bytes each.
type entries struct {
	low    column[uint32] // of the offset, which has 40 bits
	high   column[uint8]
	places column[place]
}

// maxOffset is where objects can begin at most.
const maxOffset = 1<<40 - 1

func (e *entries) len() int { return e.places.len }

// bytes is the memory that they take.
func (e *entries) bytes() int64 { return int64(e.len()) * 9 }

func (e *entries) offset(i int) int64 { return int64(*e.high.at(i))<<32 | int64(*e.low.at(i)) }

// place says of what kind an entry is, in its upper three bits, and where it is in the index; nameless is a blob that is not there.
type place uint32

const (
	nameless   = 1<<29 - 1
	maxObjects = nameless - 1
)

func placeOf(k kind, slot uint32) place { return place(uint32(k)<<29 | slot) }
func (p place) kind() kind              { return kind(p >> 29) }
func (p place) slot() uint32            { return uint32(p) & nameless }

func (e *entries) push(offset int64, p place) {
	e.low.push(uint32(offset))
	e.high.push(uint8(offset >> 32))
	e.places.push(p)
}

// find returns the entry that begins at an offset.
func (e *entries) find(offset int64) (int, bool) {
	i := sort.Search(e.len(), func(i int) bool { return e.offset(i) >= offset })
	return i, i < e.len() && e.offset(i) == offset
}

// record says where an object's content is in scratch, and in the upper three bits of its size what kind it is.
type record struct {
	at     uint32 // nowhere: only its name is known
	packed uint32
}

const (
	nowhere = 1<<32 - 1
	maxSize = 1<<29 - 1
)

func (r *record) kind() kind { return kind(r.packed >> 29) }
func (r *record) size() int  { return int(r.packed & maxSize) }

// index finds objects by their ids. It is a hash table over columns; the hash is seeded, so that nobody can choose ids that collide in it.
type index struct {
	size    int      // of an id
	pages   [][]byte // of ids
	records column[record]
	table   []uint32 // a slot + 1; 0 is free
	seed    maphash.Seed
}

func newIndex(f wire.Format) *index {
	return &index{size: f.Size(), table: make([]uint32, 64), seed: maphash.MakeSeed()}
}

// bytes is the memory that it takes.
func (x *index) bytes() int64 { return int64(x.records.len)*int64(x.size+8) + int64(len(x.table))*4 }

// id returns the id of a slot.
func (x *index) id(slot uint32) wire.ID {
	id, _ := wire.NewID(x.raw(slot))
	return id
}

func (x *index) raw(slot uint32) []byte {
	page := x.pages[slot/pageLen]
	from := int(slot%pageLen) * x.size
	return page[from : from+x.size]
}

func (x *index) kind(slot uint32) kind { return x.records.at(int(slot)).kind() }

func (x *index) find(id wire.ID) (uint32, bool) { return x.search(id.Bytes()) }

// search returns the slot of an id.
func (x *index) search(sum []byte) (uint32, bool) {
	i, ok := x.probe(sum)
	if !ok {
		return 0, false
	}
	return x.table[i] - 1, true
}

// probe returns where in the table an id is, or where it would go.
func (x *index) probe(sum []byte) (uint64, bool) {
	mask := uint64(len(x.table) - 1)
	for i := maphash.Bytes(x.seed, sum) & mask; ; i = (i + 1) & mask {
		switch slot := x.table[i]; {
		case slot == 0:
			return i, false
		case bytes.Equal(x.raw(slot-1), sum):
			return i, true
		}
	}
}

// add adds an object that is not there.
func (x *index) add(sum []byte, k kind, at uint32, size int) uint32 {
	slot := uint32(x.records.len)
	page := int(slot / pageLen)
	if page == len(x.pages) {
		first := pageLen
		if page == 0 {
			first = 64
		}
		x.pages = append(x.pages, make([]byte, 0, first*x.size))
	}
	x.pages[page] = append(x.pages[page], sum...)
	x.records.push(record{at: at, packed: uint32(k)<<29 | uint32(size)})
	if x.records.len*4 > len(x.table)*3 {
		x.grow()
	} else {
		i, _ := x.probe(sum)
		x.table[i] = slot + 1
	}
	return slot
}

func (x *index) grow() {
	x.table = make([]uint32, 2*len(x.table))
	for slot := range uint32(x.records.len) {
		i, _ := x.probe(x.raw(slot))
		x.table[i] = slot + 1
	}
}

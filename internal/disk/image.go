package disk

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"os"

	"github.com/cofferdam/cofferdam/internal/fault"
)

// The format is that of Linux, fs/erofs/erofs_fs.h. Integers are little-endian.
const (
	blockBits   = 12
	blockSize   = 1 << blockBits
	magic       = 0xE0F5E1E2
	superOffset = 1024
	superSize   = 128
	inodeSize   = 64 // the extended form, which has room for every time and owner
	slotSize    = 32 // an inode's number is its offset in the image in slots
	direntSize  = 12

	layoutPlain  = 0 // contents in blocks of their own
	layoutInline = 2 // contents behind the inode, in the same block

	// rootOffset is where the root directory's inode stands: its number has only 16 bits in the superblock, so its place is fixed.
	rootOffset = superOffset + superSize

	// Where fields stand in an inode.
	inodeNlink = 44
)

// The types of directory entries.
const (
	typeFile    = 1
	typeDir     = 2
	typeSymlink = 7
)

// inode is what is written of one file besides its contents.
type inode struct {
	mode     uint16 // with the type bits of stat(2)
	uid, gid uint32
	seconds  int64 // time of modification
	nanos    uint32
	nlink    uint32
	xattrs   []byte // encoded, see encodeXattrs
}

// image writes blocks in one pass: contents as they come, inodes into the blocks between them. Memory does not grow with the image.
type image struct {
	out    *os.File
	limit  int64  // in bytes
	next   int64  // the first block that nothing has taken
	inodes uint64 // written so far
	first  [blockSize]byte
	meta   metaBlock // the block into which inodes go
}

// metaBlock is a block of inodes that is not written yet.
type metaBlock struct {
	number int64 // of the block; 0 is none, since block 0 is the superblock's
	used   int
	data   []byte
}

func newImage(out *os.File, limit int64) *image { return &image{out: out, limit: limit, next: 1} }

// take reserves blocks for n bytes and returns the number of the first one.
func (m *image) take(n int64) (int64, error) {
	blocks := (n + blockSize - 1) / blockSize
	if end := m.next + blocks; end*blockSize > m.limit || end > math.MaxUint32 {
		return 0, fault.New(fault.TooMany, "the contents need a disk of more than %d MiB", m.limit>>20).
			WithHint("mount less, or leave large folders out of the workspace")
	}
	at := m.next
	m.next += blocks
	return at, nil
}

// writeAt writes bytes, unless all are zero: then the file keeps a hole there, which reads the same.
func (m *image) writeAt(p []byte, offset int64) error {
	if bytes.Equal(p, zeros[:len(p)]) {
		return nil
	}
	if _, err := m.out.WriteAt(p, offset); err != nil {
		if isNoSpace(err) {
			return fault.New(fault.Unavailable, "there is no room left for a disk in %s", m.out.Name()).WithHint("free some space there").Because(err)
		}
		return err
	}
	return nil
}

// zeros is compared with, never written to. It is as long as the longest piece that is written at once.
var zeros [pieceSize]byte

// pieceSize is how much of a file is read and written at once, in bytes.
const pieceSize = 256 << 10

// place reserves room for an inode with its attributes, and for a tail of contents behind it in the same block. It returns the offset in the image, and
// the bytes to be filled in before anything else is placed. The sum is at most a block.
func (m *image) place(size int) (offset int64, room []byte, err error) {
	if m.meta.number == 0 || m.meta.used+size > blockSize {
		if err := m.begin(); err != nil {
			return 0, nil, err
		}
	}
	b := &m.meta
	offset = b.number*blockSize + int64(b.used)
	room = b.data[b.used : b.used+size : b.used+size]
	b.used = min((b.used+size+slotSize-1)/slotSize*slotSize, blockSize)
	return offset, room, nil
}

// begin writes the block of inodes and takes another.
func (m *image) begin() error {
	if err := m.flush(); err != nil {
		return err
	}
	number, err := m.take(blockSize)
	if err != nil {
		return err
	}
	m.meta = metaBlock{number: number, data: make([]byte, blockSize)}
	return nil
}

func (m *image) flush() error {
	if m.meta.number == 0 {
		return nil
	}
	return m.writeAt(m.meta.data, m.meta.number*blockSize)
}

// patch changes bytes that were placed before.
func (m *image) patch(offset int64, p []byte) error {
	switch number, at := offset/blockSize, offset%blockSize; number {
	case 0:
		copy(m.first[at:], p)
		return nil
	case m.meta.number:
		copy(m.meta.data[at:], p)
		return nil
	default:
		_, err := m.out.WriteAt(p, offset) // zeros too: something else may stand there
		return err
	}
}

// add writes an inode whose contents are behind it (inline) or in blocks from number block, and returns its offset.
func (m *image) add(n inode, inline []byte, block, size int64) (int64, error) {
	head := inodeSize + len(n.xattrs)
	offset, room, err := m.place(head + len(inline))
	if err != nil {
		return 0, err
	}
	layout := uint16(layoutPlain)
	if len(inline) > 0 {
		layout, size = layoutInline, int64(len(inline))
	}
	m.encode(room, n, layout, block, size)
	copy(room[inodeSize:], n.xattrs)
	copy(room[head:], inline)
	return offset, nil
}

// encode writes an inode's own 64 bytes. Every call is another inode.
func (m *image) encode(b []byte, n inode, layout uint16, block, size int64) {
	m.inodes++
	le := binary.LittleEndian
	le.PutUint16(b[0:], layout<<1|1) // 1: the extended form
	if len(n.xattrs) > 0 {
		le.PutUint16(b[2:], uint16((len(n.xattrs)-xattrHeader)/4+1))
	}
	le.PutUint16(b[4:], n.mode)
	le.PutUint64(b[8:], uint64(size))
	le.PutUint32(b[16:], uint32(block))
	le.PutUint32(b[20:], uint32(m.inodes))
	le.PutUint32(b[24:], n.uid)
	le.PutUint32(b[28:], n.gid)
	le.PutUint64(b[32:], uint64(n.seconds))
	le.PutUint32(b[40:], n.nanos)
	le.PutUint32(b[inodeNlink:], n.nlink)
}

// close writes the last inodes and the superblock, and returns the image's size in bytes.
func (m *image) close() (int64, error) {
	if err := m.flush(); err != nil {
		return 0, err
	}
	b, le := m.first[superOffset:], binary.LittleEndian
	le.PutUint32(b[0:], magic)
	b[12] = blockBits
	le.PutUint16(b[14:], rootOffset/slotSize)
	le.PutUint64(b[16:], m.inodes)
	le.PutUint32(b[36:], uint32(m.next)) // blocks; inodes are counted from block 0, all features are off
	if _, err := m.out.WriteAt(m.first[:], 0); err != nil {
		return 0, fmt.Errorf("write the superblock: %w", err)
	}
	return m.next * blockSize, nil
}

// number is the number that directory entries have for the inode at an offset.
func number(offset int64) uint64 { return uint64(offset / slotSize) }

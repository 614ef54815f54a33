package disk

import (
	"cmp"
	"encoding/binary"
	"slices"
)

// maxName is the longest name of a file in bytes, as Linux has it.
const maxName = 255

// entry is one name in a directory.
type entry struct {
	name   string
	kind   byte
	offset int64 // of the inode; 0 is not known yet
	parent int64 // where a directory's entry for "..", not known when it was written, has its number
}

// addDir writes a directory. Its own entry for ".." is filled in by whoever writes its parent, at the offset that is returned last.
func (m *image) addDir(n inode, entries []entry, root bool) (offset, parent int64, err error) {
	entries = append(entries, entry{name: ".", kind: typeDir}, entry{name: "..", kind: typeDir})
	slices.SortFunc(entries, func(a, b entry) int { return cmp.Compare(a.name, b.name) }) // the kernel searches by halves
	size, head := direntsSize(entries), inodeSize+len(n.xattrs)
	var room []byte // for the inode
	available := blockSize
	if root {
		available -= rootOffset
	}
	inline := head+size <= available
	taken := head
	if inline {
		taken += size
	}
	if root {
		offset, room = rootOffset, m.first[rootOffset:rootOffset+taken]
	} else if offset, room, err = m.place(taken); err != nil {
		return 0, 0, err
	}
	var block int64
	contents, layout := room[head:], uint16(layoutInline)
	at := offset + int64(head)
	if !inline {
		layout = layoutPlain
		if block, err = m.take(int64(size)); err != nil {
			return 0, 0, err
		}
		contents, at = make([]byte, size), block*blockSize
	}
	m.encode(room, n, layout, block, int64(size))
	copy(room[inodeSize:], n.xattrs)
	parent = at + encodeDirents(contents, entries, offset)
	if inline {
		return offset, parent, m.adopt(entries, offset)
	}
	for done := 0; done < size; done += pieceSize {
		if err := m.writeAt(contents[done:min(done+pieceSize, size)], at+int64(done)); err != nil {
			return 0, 0, err
		}
	}
	return offset, parent, m.adopt(entries, offset)
}

// adopt tells the directories among entries where their parent is.
func (m *image) adopt(entries []entry, parent int64) error {
	for _, e := range entries {
		if e.parent == 0 {
			continue
		}
		if err := m.patch(e.parent, binary.LittleEndian.AppendUint64(nil, number(parent))); err != nil {
			return err
		}
	}
	return nil
}

// fill returns how many of the entries go into one block, and how many bytes of it they take.
func fill(entries []entry) (n, size int) {
	for _, e := range entries {
		if size+direntSize+len(e.name) > blockSize {
			break
		}
		size += direntSize + len(e.name)
		n++
	}
	return n, size
}

// direntsSize is the size of a directory's contents in bytes: whole blocks but the last.
func direntsSize(entries []entry) int {
	total := 0
	for {
		n, size := fill(entries)
		if entries = entries[n:]; len(entries) == 0 {
			return total + size
		}
		total += blockSize
	}
}

// encodeDirents writes the contents of the directory whose inode is at self, and returns where in them the number of ".." stands, which is left zero.
func encodeDirents(b []byte, entries []entry, self int64) (parent int64) {
	le := binary.LittleEndian
	for base := 0; len(entries) > 0; base += blockSize {
		n, _ := fill(entries)
		name := n * direntSize
		for i, e := range entries[:n] {
			at := base + i*direntSize
			switch e.name {
			case ".":
				le.PutUint64(b[at:], number(self))
			case "..":
				parent = int64(at)
			default:
				le.PutUint64(b[at:], number(e.offset))
			}
			le.PutUint16(b[at+8:], uint16(name))
			b[at+10] = e.kind
			copy(b[base+name:], e.name)
			name += len(e.name)
		}
		entries = entries[n:]
	}
	return parent
}

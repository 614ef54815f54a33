package disk

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// file writes a regular file that is open, or counts one more name of one that is written already. It returns the inode's offset.
func (w *walker) file(ctx context.Context, f *os.File, st *unix.Stat_t) (int64, error) {
	id := fileID{dev: st.Dev, ino: st.Ino, size: st.Size, changed: st.Ctim}
	if l, ok := w.linked[id]; ok && st.Nlink > 1 {
		l.count++
		w.linked[id] = l
		return l.offset, w.image.patch(l.offset+inodeNlink, binary.LittleEndian.AppendUint32(nil, l.count))
	}
	n := w.describe(st, f)
	w.sum.Files++
	offset, err := w.contents(ctx, f, st.Size, n)
	if err == nil && st.Nlink > 1 {
		w.linked[id] = link{offset: offset, count: 1}
	}
	return offset, err
}

// contents writes at most size bytes of a file, and its inode.
func (w *walker) contents(ctx context.Context, f *os.File, size int64, n inode) (int64, error) {
	if size <= int64(blockSize-inodeSize-len(n.xattrs)) {
		p := w.piece[:size]
		got, err := w.read(f, p)
		if err != nil {
			return 0, err
		}
		if int64(got) < size {
			w.sum.Changed++
		}
		return w.image.addContents(n, p[:got])
	}
	first, done := w.image.next, int64(0)
	for done < size {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		got, err := w.read(f, w.piece[:min(size-done, pieceSize)])
		if err != nil {
			return 0, err
		}
		if got == 0 {
			w.sum.Changed++
			break
		}
		at, err := w.image.take(int64(got))
		if err != nil {
			return 0, err
		}
		if err := w.image.writeAt(w.piece[:got], at*blockSize); err != nil {
			return 0, err
		}
		if done += int64(got); got%blockSize != 0 && done < size {
			w.sum.Changed++
			break // the next piece would not begin where this one ends
		}
	}
	return w.image.add(n, nil, first, done)
}

// read fills p as far as the file goes.
func (w *walker) read(f *os.File, p []byte) (int, error) {
	n, err := io.ReadFull(f, p)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = nil
	}
	return n, err
}

// addContents writes an inode with contents that are in memory: behind it if both fit into one block.
func (m *image) addContents(n inode, p []byte) (int64, error) {
	if inodeSize+len(n.xattrs)+len(p) <= blockSize {
		return m.add(n, p, 0, 0)
	}
	block, err := m.take(int64(len(p)))
	if err != nil {
		return 0, err
	}
	if err := m.writeAt(p, block*blockSize); err != nil {
		return 0, err
	}
	return m.add(n, nil, block, int64(len(p)))
}

package workspace

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"hash"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

const (
	// digestBlock is the piece of a file that a digest leaves out if it is all zeros.
	digestBlock = 64 << 10
	// holeBlock is the smallest hole worth making: a page, and a block of most file systems.
	holeBlock = 4 << 10
)

// copier streams files with one buffer, so that memory stays flat whatever their size.
type copier struct{ buf, zero []byte }

func newCopier() *copier {
	return &copier{buf: make([]byte, 4*digestBlock), zero: make([]byte, digestBlock)}
}

// digest identifies contents by what they are, however they are stored, and in time that grows only with what is not zero: a sandbox makes a file
// of 16 GiB of zeros for nothing. It is SHA-256 as long as no aligned block of digestBlock bytes is all zeros. Else it is SHA-512/256 over the
// SHA-256 of the other blocks, where the runs of such blocks are, and the size. Two functions, so that no file is the description of another.
type digest struct {
	data, runs     hash.Hash
	from, to, size int64 // the last run of zero blocks, and the bytes taken so far
	sparse         bool
}

func newDigest() *digest { return &digest{data: sha256.New(), runs: sha512.New512_256()} }

// zeros takes whole blocks of zeros.
func (d *digest) zeros(n int64) {
	if n == 0 {
		return
	}
	if !d.sparse || d.to != d.size {
		d.endRun()
		d.from, d.sparse = d.size, true
	}
	d.size += n
	d.to = d.size
}

func (d *digest) endRun() {
	if d.sparse {
		var run [16]byte
		binary.BigEndian.PutUint64(run[:8], uint64(d.from))
		binary.BigEndian.PutUint64(run[8:], uint64(d.to))
		d.runs.Write(run[:])
	}
}

// write takes bytes that follow; all but the last of a file are whole blocks.
func (d *digest) write(p, zero []byte) {
	for len(p) > 0 {
		block := p[:min(len(p), digestBlock)]
		p = p[len(block):]
		if bytes.Equal(block, zero[:digestBlock]) {
			d.zeros(digestBlock)
			continue
		}
		d.data.Write(block)
		d.size += int64(len(block))
	}
}

func (d *digest) String() string {
	sum := d.data.Sum(nil)
	if d.sparse {
		d.endRun()
		d.runs.Write(binary.BigEndian.AppendUint64(sum, uint64(d.size)))
		sum = d.runs.Sum(nil)
	}
	return hex.EncodeToString(sum)
}

// copy computes the digest of the first size bytes of src and, if dst is not nil, writes them to that empty file, with holes for src's holes and for
// zeros. It fails if src is shorter.
func (c *copier) copy(ctx context.Context, dst, src *os.File, size int64) (string, error) {
	sum := newDigest()
	for off := int64(0); off < size; {
		if err := ctx.Err(); err != nil {
			return "", err
		}
		start, end, err := extent(src, off, size)
		if err != nil {
			return "", err
		}
		start -= start % digestBlock
		if end%digestBlock != 0 {
			end = min(end-end%digestBlock+digestBlock, size)
		}
		sum.zeros(start - off)
		if err := c.copyData(ctx, dst, src, sum, start, end); err != nil {
			return "", err
		}
		off = end
	}
	if dst != nil {
		if err := dst.Truncate(size); err != nil {
			return "", err
		}
	}
	return sum.String(), nil
}

// extent returns the next run of data at or after off. Where a file system cannot tell, everything is data.
func extent(f *os.File, off, size int64) (start, end int64, err error) {
	start, err = unix.Seek(int(f.Fd()), off, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO): // only a hole follows, or the file has shrunk
		st, err := fstat(f)
		if err == nil && st.Size < size {
			err = errors.New("file became shorter while it was read")
		}
		return size, size, err
	case errors.Is(err, unix.EINVAL):
		return off, size, nil
	case err != nil:
		return 0, 0, err
	}
	if start >= size {
		return size, size, nil
	}
	end, err = unix.Seek(int(f.Fd()), start, unix.SEEK_HOLE)
	if err != nil {
		return 0, 0, err
	}
	return start, min(end, size), nil
}

// copyData copies from a multiple of digestBlock up to one, or to the end of what is wanted.
func (c *copier) copyData(ctx context.Context, dst, src *os.File, sum *digest, start, end int64) error {
	for start < end {
		if err := ctx.Err(); err != nil {
			return err
		}
		buf := c.buf[:min(end-start, int64(len(c.buf)))]
		if n, err := src.ReadAt(buf, start); n < len(buf) {
			if err == nil || errors.Is(err, io.EOF) {
				err = errors.New("file became shorter while it was read")
			}
			return err
		}
		sum.write(buf, c.zero)
		if dst != nil {
			if err := c.writeData(dst, buf, start); err != nil {
				return err
			}
		}
		start += int64(len(buf))
	}
	return nil
}

// writeData writes what is not zero, in as few pieces as there are holes.
func (c *copier) writeData(dst *os.File, buf []byte, at int64) error {
	isHole := func(i int) bool {
		piece := buf[i:min(i+holeBlock, len(buf))]
		return bytes.Equal(piece, c.zero[:len(piece)])
	}
	for i := 0; i < len(buf); {
		if isHole(i) {
			i += holeBlock
			continue
		}
		from := i
		for i < len(buf) && !isHole(i) {
			i += holeBlock
		}
		i = min(i, len(buf))
		if _, err := dst.WriteAt(buf[from:i], at+int64(from)); err != nil {
			return err
		}
	}
	return nil
}

const contentDir = "content"

// store is the directory in which a collection's new file contents lie, each under its digest: names from the sandbox never become names there.
type store struct {
	dir  *os.Root
	copy *copier
}

// add copies a file in and returns its digest. Equal contents are kept once.
func (s *store) add(ctx context.Context, src *os.File, size int64) (string, error) {
	const temp = contentDir + "/new"
	f, err := s.create(temp)
	if err != nil {
		return "", err
	}
	defer f.Close()
	sum, err := s.copy.copy(ctx, f, src, size)
	if err != nil {
		return "", err
	}
	if err := s.dir.Rename(temp, contentDir+"/"+sum); err != nil {
		return "", err
	}
	return sum, nil
}

// create makes an empty file in place of what an interrupted copy left.
func (s *store) create(name string) (*os.File, error) {
	if err := s.dir.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	return s.dir.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
}

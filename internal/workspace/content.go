package workspace

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// copier streams files with one buffer, so that memory stays flat whatever their size.
type copier struct{ buf, zero []byte }

func newCopier() *copier {
	return &copier{buf: make([]byte, 256<<10), zero: make([]byte, 64<<10)}
}

// copy hashes the first size bytes of src and, if dst is not nil, writes them there with src's holes kept. It fails if src is shorter.
func (c *copier) copy(ctx context.Context, dst, src *os.File, size int64) (string, error) {
	sum := sha256.New()
	for off := int64(0); off < size; {
		start, end, err := extent(src, off, size)
		if err != nil {
			return "", err
		}
		if err := c.hashZeros(ctx, sum, start-off); err != nil {
			return "", err
		}
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
	return hex.EncodeToString(sum.Sum(nil)), nil
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

func (c *copier) hashZeros(ctx context.Context, sum hash.Hash, n int64) error {
	for n > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		step := min(n, int64(len(c.zero)))
		sum.Write(c.zero[:step])
		n -= step
	}
	return nil
}

func (c *copier) copyData(ctx context.Context, dst, src *os.File, sum hash.Hash, start, end int64) error {
	for start < end {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := src.ReadAt(c.buf[:min(end-start, int64(len(c.buf)))], start)
		if n == 0 {
			if err == nil || errors.Is(err, io.EOF) {
				err = errors.New("file became shorter while it was read")
			}
			return err
		}
		sum.Write(c.buf[:n])
		if dst != nil {
			if _, err := dst.WriteAt(c.buf[:n], start); err != nil {
				return err
			}
		}
		start += int64(n)
	}
	return nil
}

const contentDir = "content"

// store is the directory in which a collection's new file contents lie, each under its digest: names from the sandbox never become names there.
type store struct {
	dir  *os.Root
	uid  int
	gid  int
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

// create makes an empty file that belongs to whom the run belongs to, in place of what an interrupted copy left.
func (s *store) create(name string) (*os.File, error) {
	if err := s.dir.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	f, err := s.dir.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	if s.uid != 0 && os.Geteuid() == 0 {
		if err := f.Chown(s.uid, s.gid); err != nil {
			f.Close()
			return nil, fmt.Errorf("give a collected file to its owner: %w", err)
		}
	}
	return f, nil
}

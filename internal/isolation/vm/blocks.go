package vm

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// block is how much of a file is looked at in one step. A block of zeros is a hole, whether the file has it as one or not.
const block = 64 << 10

// copyBlocks copies the first size bytes of a file, without its holes, and returns a digest of what they are, which is the same for every file that reads the same. Without a
// destination it only looks. How many bytes were no hole is returned too.
func copyBlocks(ctx context.Context, to, from *os.File, size int64) (sum string, data int64, err error) {
	c := copier{to: to, from: from, size: size, sum: sha256.New(), buffer: make([]byte, block)}
	for at := int64(0); at < size; {
		start, err := unix.Seek(int(from.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break // the rest is a hole, or beyond the file's end
		}
		if err != nil {
			return "", 0, fmt.Errorf("look for data: %w", err)
		}
		end, err := unix.Seek(int(from.Fd()), start, unix.SEEK_HOLE)
		if err != nil {
			return "", 0, fmt.Errorf("look for holes: %w", err)
		}
		for at = max(at, start/block*block); at < min(end, size); at += block {
			if err := c.block(ctx, at); err != nil {
				return "", 0, err
			}
		}
	}
	return hex.EncodeToString(c.sum.Sum(nil)), c.data, nil
}

type copier struct {
	to, from   *os.File
	size, data int64
	sum        hash.Hash
	buffer     []byte
}

// block copies the block at an offset.
func (c *copier) block(ctx context.Context, at int64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	b := c.buffer[:min(block, c.size-at)]
	n, err := c.from.ReadAt(b, at)
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("read: %w", err)
	}
	clear(b[n:]) // beyond the file's end
	if isZero(b) {
		return nil
	}
	c.data += int64(len(b))
	c.sum.Write(binary.BigEndian.AppendUint64(nil, uint64(at))) // a hash never fails to write
	c.sum.Write(b)
	if c.to == nil {
		return nil
	}
	if _, err := c.to.WriteAt(b, at); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	return nil
}

func isZero(b []byte) bool {
	for len(b) >= 8 {
		if binary.NativeEndian.Uint64(b) != 0 {
			return false
		}
		b = b[8:]
	}
	for _, x := range b {
		if x != 0 {
			return false
		}
	}
	return true
}

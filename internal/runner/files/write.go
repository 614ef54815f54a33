package files

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
)

const (
	dirMode  = 0o755
	fileMode = 0o644 // of a file that was not there before
)

// write replaces a file as a whole, or with tar fills a directory.
func write(ctx context.Context, in io.Reader, r request) error {
	if r.tar {
		if r.parents {
			if err := os.MkdirAll(r.path, dirMode); err != nil {
				return err
			}
		}
		return unpack(in, r.path)
	}
	mode := fs.FileMode(0)
	if len(r.numbers) > 0 {
		n, err := strconv.ParseUint(r.numbers[0], 8, 32)
		if err != nil || n > 0o777 {
			return fmt.Errorf("%q is not a mode such as 644", r.numbers[0])
		}
		mode = fs.FileMode(n)
	}
	if r.parents {
		if err := os.MkdirAll(filepath.Dir(r.path), dirMode); err != nil {
			return err
		}
	}
	before, err := os.Lstat(r.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		before = nil
	case err != nil:
		return err
	case before.IsDir():
		return named(r.path, errors.New("is a directory"))
	case !before.Mode().IsRegular(): // a link is replaced, not followed
		before = nil
	}
	if len(r.numbers) == 0 {
		mode = fileMode
		if before != nil {
			mode = before.Mode().Perm()
		}
	}
	return replace(ctx, in, r.path, mode, before)
}

// replace writes beside the file and renames, so that nobody sees half of it and nothing is lost when the bytes stop coming.
func replace(ctx context.Context, in io.Reader, path string, mode fs.FileMode, before fs.FileInfo) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".cofferdam-*")
	if err != nil {
		return err
	}
	filled := make(chan error, 1)
	go func() { filled <- fill(f, in, mode, before) }() // a read from a pipe cannot be interrupted, only be left
	select {
	case err = <-filled:
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name()) // the first error counts
	}
	return err
}

func fill(f *os.File, in io.Reader, mode fs.FileMode, before fs.FileInfo) error {
	_, err := io.Copy(f, in)
	if err == nil && before != nil {
		if uid, gid, ok := owner(before); ok {
			_ = f.Chown(uid, gid) // who may not give it away keeps it, as with any editor
		}
	}
	if err == nil {
		err = f.Chmod(mode)
	}
	return errors.Join(err, f.Close())
}

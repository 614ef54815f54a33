package control

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// removeTree removes a directory that a sandbox wrote into, once no process can any more. Directories there may have been made unreadable, which stops an
// ordinary user: then their modes are mended first. Links are removed, never followed.
func removeTree(dir string) error {
	err := os.RemoveAll(dir)
	if err == nil || !errors.Is(err, fs.ErrPermission) {
		return err
	}
	walkErr := filepath.WalkDir(dir, func(path string, d fs.DirEntry, _ error) error {
		if d != nil && d.IsDir() {
			_ = os.Chmod(path, 0o700) // before it is read; what cannot be mended is told by RemoveAll
		}
		return nil
	})
	return errors.Join(os.RemoveAll(dir), walkErr)
}

// maxSizing bounds how many entries are looked at to measure a tree.
const maxSizing = 1_000_000

// treeSize is how much the files below a directory take on the disk, where a sandbox may still be writing: whatever it puts in the place of what, nothing
// outside is looked at. Of a tree that is too large, or cannot be read, it is what was found.
func treeSize(ctx context.Context, dir string) int64 {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return 0
	}
	defer root.Close()
	var size int64
	n := 0
	_ = fs.WalkDir(root.FS(), ".", func(_ string, d fs.DirEntry, err error) error {
		if n++; n > maxSizing || ctx.Err() != nil {
			return fs.SkipAll
		}
		if err != nil {
			return nil
		}
		if info, err := d.Info(); err == nil && (info.Mode().IsRegular() || info.IsDir()) {
			if st, ok := info.Sys().(*syscall.Stat_t); ok {
				size += st.Blocks * 512 // stat(2): in units of 512 bytes whatever the file system
			}
		}
		return nil
	})
	return size
}

package rootfs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Tree opens a detached copy of the mount at path, without what is mounted below it unless recursive, with extra mount attributes (unix.MOUNT_ATTR_...).
// With userns >= 0 its ids are mapped through that user namespace, which needs privilege over the file system.
func Tree(path string, recursive bool, attributes uint64, userns int) (*os.File, error) {
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC | unix.AT_SYMLINK_NOFOLLOW)
	set := uint(unix.AT_EMPTY_PATH)
	if recursive {
		flags |= unix.AT_RECURSIVE
		set |= unix.AT_RECURSIVE
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, path, flags)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	tree := os.NewFile(uintptr(fd), path)
	attr := unix.MountAttr{Attr_set: attributes}
	if userns >= 0 {
		attr.Attr_set |= unix.MOUNT_ATTR_IDMAP
		attr.Userns_fd = uint64(userns)
	}
	if attr.Attr_set != 0 {
		if err := unix.MountSetattr(fd, "", set, &attr); err != nil {
			_ = tree.Close() // nothing was written
			return nil, fmt.Errorf("prepare %s: %w", path, err)
		}
	}
	return tree, nil
}

// attach mounts a detached tree at target.
func attach(tree *os.File, target string) error {
	if err := unix.MoveMount(int(tree.Fd()), "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("attach %s: %w", tree.Name(), err)
	}
	return tree.Close()
}

// hideByMount covers what Hide names below prefix by mounts, where there is no overlay to leave it out of.
func (b *builder) hideByMount(prefix string) error {
	b.uppers++ // a number of its own for the covers of this layer
	empty := fmt.Sprintf("%s/absent%d", stage, b.uppers)
	if err := os.WriteFile(empty, nil, 0o000); err != nil {
		return err
	}
	for i, h := range b.cfg.Hidden {
		if !strings.HasPrefix(h.Path, prefix+"/") {
			continue
		}
		matches, err := filepath.Glob(b.in(h.Path))
		if err != nil {
			return err
		}
		for j, path := range matches {
			if err := b.cover(path, h, empty, fmt.Sprintf("%s/cover%d.%d.%d", stage, b.uppers, i, j)); err != nil {
				return fmt.Errorf("%s: %w", h.Path, err)
			}
		}
	}
	return nil
}

// cover mounts an empty file or directory over one path of the view.
func (b *builder) cover(path string, h Hidden, empty, dir string) error {
	info, err := os.Lstat(path)
	if err != nil || info.Mode()&fs.ModeSymlink != 0 {
		return err // a link shows nothing by itself; its target is judged where it lies
	}
	if !info.IsDir() {
		return unix.Mount(empty, path, "", unix.MS_BIND, "")
	}
	if err := mkdirMode(dir, h.mode()); err != nil {
		return err
	}
	if h.Keep {
		if err := keepDirectories(path, dir); err != nil {
			return err
		}
	}
	return unix.Mount(dir, path, "", unix.MS_BIND, "")
}

// bindFile binds a file with the given content over path; a link is followed inside the view by making its target.
func (b *builder) bindFile(path, source, content string) error {
	if err := os.WriteFile(source, []byte(content), 0o644); err != nil {
		return err
	}
	target := b.in(path)
	if link, err := os.Readlink(target); err == nil {
		if !filepath.IsAbs(link) {
			link = filepath.Join(filepath.Dir(path), link)
		}
		root, err := os.OpenRoot(b.view.root)
		if err != nil {
			return err
		}
		defer root.Close()
		if err := replaceFile(root, filepath.Clean(link)[1:], content); err != nil {
			return fmt.Errorf("%s points to %s: %w", path, link, err)
		}
		return nil
	}
	if _, err := os.Lstat(target); errors.Is(err, fs.ErrNotExist) {
		return nil // the host has none and the directory is read-only
	}
	return unix.Mount(source, target, "", unix.MS_BIND, "")
}

func (h Hidden) mode() uint32 {
	if h.Mode == 0 {
		return 0o755
	}
	return h.Mode
}

// mkdirMode makes a directory with exactly this mode, whatever the umask.
func mkdirMode(path string, mode uint32) error {
	if err := unix.Mkdir(path, mode); err != nil {
		return &fs.PathError{Op: "mkdir", Path: path, Err: err}
	}
	return unix.Chmod(path, mode)
}

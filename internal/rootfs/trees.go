package rootfs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
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

// systemDir is an entry of the host's root directory, for a view without an overlay.
type systemDir struct {
	name string
	link string   // target, if it is a symbolic link
	tree *os.File // nil for a link or a directory that is replaced by an empty one
}

// openSystem opens the host's system directories, read-only.
func openSystem() ([]systemDir, error) {
	entries, err := os.ReadDir("/")
	if err != nil {
		return nil, err
	}
	var dirs []systemDir
	for _, e := range entries {
		d := systemDir{name: e.Name()}
		switch {
		case e.Type()&fs.ModeSymlink != 0:
			if d.link, err = os.Readlink("/" + e.Name()); err != nil {
				return nil, err
			}
		case !e.IsDir() || !slices.Contains(System(), e.Name()):
			continue
		default:
			// Recursive: a user namespace may not look behind what is mounted below (mount_namespaces(7), locked mounts).
			if d.tree, err = Tree("/"+e.Name(), true, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV, -1); err != nil {
				return nil, err
			}
		}
		dirs = append(dirs, d)
	}
	return dirs, nil
}

// bindSystem composes a root of read-only system directories and fresh, writable ones.
func (b *builder) bindSystem(system []systemDir) error {
	for _, d := range system {
		path := b.in("/" + d.name)
		if d.link != "" {
			if err := os.Symlink(d.link, path); err != nil {
				return err
			}
			continue
		}
		if err := os.Mkdir(path, 0o755); err != nil {
			return err
		}
		if err := attach(d.tree, path); err != nil {
			return err
		}
	}
	for _, dir := range []string{"/proc", "/sys", "/dev"} {
		if err := os.MkdirAll(b.in(dir), 0o755); err != nil {
			return err
		}
	}
	return b.hideByMount()
}

// hideByMount covers what Hide names by mounts, where there is no overlay to leave it out of.
func (b *builder) hideByMount() error {
	empty := stage + "/absent"
	if err := os.WriteFile(empty, nil, 0o000); err != nil {
		return err
	}
	for i, h := range Hide() {
		if strings.Count(h.Path, "/") == 1 {
			if err := mkdirMode(b.in(h.Path), h.mode()); err != nil && !errors.Is(err, fs.ErrExist) {
				return err
			}
			continue
		}
		matches, err := filepath.Glob(b.in(h.Path))
		if err != nil {
			return err
		}
		for j, path := range matches {
			if err := b.cover(path, h, empty, fmt.Sprintf("%s/cover%d.%d", stage, i, j)); err != nil {
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

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

// hideInUpper leaves paths out of an overlay by what its upper directory says before it is mounted: an opaque directory or a whiteout.
// Nothing inside can undo that: the lower tree is not reachable except through the overlay.
//
// prefix is the path inside at which the overlay will be mounted; hidden paths elsewhere are passed over.
func hideInUpper(lower, upper, prefix string, hidden []Hidden) error {
	if prefix == "/" {
		strangers, err := strangers(lower, hidden)
		if err != nil {
			return err
		}
		hidden = append(strangers, hidden...)
	}
	return hidePaths(lower, upper, prefix, hidden)
}

// strangers lists the entries of a root directory that are neither part of the system nor in hidden already.
func strangers(root string, hidden []Hidden) ([]Hidden, error) {
	known := map[string]bool{}
	for _, name := range append(System(), "proc", "sys", "dev") {
		known["/"+name] = true
	}
	for _, h := range hidden {
		known[h.Path] = true
	}
	entries, err := os.ReadDir(root)
	if err != nil {
		return nil, err
	}
	var found []Hidden
	for _, e := range entries {
		path := "/" + e.Name()
		switch {
		case known[path] || e.Type()&fs.ModeSymlink != 0:
		default:
			found = append(found, Hidden{Path: path, Kind: Absent, Reason: "not part of the system"})
		}
	}
	return found, nil
}

func hidePaths(lower, upper, prefix string, hidden []Hidden) error {
	for _, h := range hidden {
		path, ok := strings.CutPrefix(h.Path, strings.TrimSuffix(prefix, "/")+"/")
		if !ok {
			continue
		}
		matches, err := filepath.Glob(filepath.Join(lower, path))
		if err != nil {
			return err
		}
		for _, path := range matches {
			if err := hideOne(lower, upper, strings.TrimPrefix(path, lower), h); err != nil {
				return fmt.Errorf("%s: %w", h.Path, err)
			}
		}
	}
	return nil
}

func hideOne(lower, upper, path string, h Hidden) error {
	info, err := os.Lstat(filepath.Join(lower, path))
	if err != nil {
		return err
	}
	if info.Mode()&fs.ModeSymlink != 0 && h.Kind == EmptyDir {
		return nil // such as /var/run -> /run: the target is judged where it lies
	}
	if err := copyParents(lower, upper, path); err != nil {
		return err
	}
	target := filepath.Join(upper, path)
	if !info.IsDir() || h.Kind == Absent {
		return whiteout(target)
	}
	if err := mkdirMode(target, h.mode()); err != nil {
		return err
	}
	if h.Keep {
		if err := keepDirectories(filepath.Join(lower, path), target); err != nil {
			return err
		}
	}
	return opaque(target)
}

// whiteout marks a name as deleted (overlayfs.rst, "whiteouts and opaque directories"): a character device with number 0/0, which needs no privilege.
func whiteout(path string) error {
	if err := unix.Mknod(path, unix.S_IFCHR, 0); err != nil {
		return &fs.PathError{Op: "whiteout", Path: path, Err: err}
	}
	return nil
}

// opaque marks a directory so that nothing of the lower one shows through.
func opaque(path string) error {
	if err := unix.Setxattr(path, "user.overlay.opaque", []byte("y"), 0); err != nil {
		return fmt.Errorf("mark %s opaque (needs Linux 6.6 or later for marks on scratch memory): %w", path, err)
	}
	return nil
}

// copyParents makes the parents of path in upper with the attributes that they have in lower, since a merged directory shows the upper one's.
func copyParents(lower, upper, path string) error {
	at := ""
	for element := range strings.SplitSeq(strings.TrimPrefix(filepath.Dir(path), "/"), "/") {
		if element == "" {
			continue
		}
		at += "/" + element
		err := os.Mkdir(upper+at, 0o755)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err != nil {
			return err
		}
		if err := copyAttributes(lower+at, upper+at); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// keepDirectories makes the immediate subdirectories of from again in to, empty, with their attributes.
func keepDirectories(from, to string) error {
	entries, err := os.ReadDir(from)
	if errors.Is(err, fs.ErrPermission) {
		return nil // what cannot be listed has nothing that a program inside could expect
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		path := filepath.Join(to, e.Name())
		if err := os.Mkdir(path, 0o755); err != nil {
			return err
		}
		if err := copyAttributes(filepath.Join(from, e.Name()), path); err != nil {
			return err
		}
	}
	return nil
}

// copyAttributes gives to the owner and mode of from. An owner that the user namespace does not know stays as it is.
func copyAttributes(from, to string) error {
	var s unix.Stat_t
	if err := unix.Lstat(from, &s); err != nil {
		return err
	}
	if err := unix.Lchown(to, int(s.Uid), int(s.Gid)); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EPERM) {
		return err
	}
	return unix.Chmod(to, s.Mode&0o7777)
}

package rootfs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// place makes an absolute path of the view ready to be mounted on, as mountPoint does, and returns it opened as a path. Each name is looked up once, in the directory that was
// opened before it: a folder that the host shares may be changed by another sandbox meanwhile, and a link put there would lead out of the view, which is not the root yet
// (CVE-2021-30465).
func (b *builder) place(path string, file bool) (*os.File, error) {
	if !filepath.IsAbs(path) || filepath.Clean(path) != path || path == "/" {
		return nil, fmt.Errorf("mount point %q is not a clean absolute path", path)
	}
	at, err := unix.Open(b.view.root, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	names := strings.Split(path[1:], "/")
	for i, name := range names {
		next, err := step(at, name, file && i == len(names)-1)
		_ = unix.Close(at) // only a path
		if err != nil {
			return nil, fmt.Errorf("/%s: %w", strings.Join(names[:i+1], "/"), err)
		}
		at = next
	}
	return os.NewFile(uintptr(at), path), nil
}

// step opens a name in a directory, made if it is not there. It follows nothing.
func step(dir int, name string, file bool) (fd int, err error) {
	const flags = unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC
	fd, err = unix.Openat(dir, name, flags, 0)
	if errors.Is(err, unix.ENOENT) {
		if file {
			err = unix.Mknodat(dir, name, unix.S_IFREG|0o644, 0)
		} else {
			err = unix.Mkdirat(dir, name, 0o755)
		}
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return -1, err
		}
		fd, err = unix.Openat(dir, name, flags, 0)
	}
	if err != nil {
		return -1, err
	}
	var s unix.Stat_t
	err = unix.Fstat(fd, &s)
	switch kind := s.Mode & unix.S_IFMT; {
	case err != nil:
	case kind == unix.S_IFLNK:
		err = errors.New("is a symbolic link inside; name the place it points to")
	case kind != unix.S_IFDIR && !file:
		err = errors.New("is not a directory inside")
	}
	if err != nil {
		_ = unix.Close(fd) // only a path
		return -1, err
	}
	return fd, nil
}

// attachAt mounts a detached tree on an opened place.
func attachAt(tree, place *os.File) error {
	if err := unix.MoveMount(int(tree.Fd()), "", int(place.Fd()), "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH); err != nil {
		return fmt.Errorf("attach %s: %w", tree.Name(), err)
	}
	return nil
}

// name is a path for calls that take no descriptor. It leads to the very place that was opened.
func name(f *os.File) string { return "/proc/self/fd/" + strconv.Itoa(int(f.Fd())) }

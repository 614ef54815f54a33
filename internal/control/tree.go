package control

import (
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/store"
)

// removeTree removes a directory that a sandbox wrote into, once no process can any more. However deep and wide the tree is, it takes a handful of descriptors and
// one or two steps for each entry: a directory that is not empty is moved up to the top first, so that every name is removed from the top or one level below it.
// Directories there may have been made unreadable, which stops an ordinary user: their modes are mended. Links are removed, never followed.
func removeTree(dir string) error {
	parent, err := unix.Open(filepath.Dir(dir), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return unlessGone("open the folder above "+dir, err)
	}
	defer unix.Close(parent)
	name := filepath.Base(dir)
	if err := removeName(parent, name); !errors.Is(err, unix.ENOTEMPTY) {
		return unlessGone("remove "+dir, err)
	}
	top, err := openMended(parent, name)
	if err != nil {
		return unlessGone("open "+dir, err)
	}
	defer top.Close()
	r := remover{top: top, prefix: ".removed-" + store.NewID() + "-"} // nobody who wrote there could know it
	if err := r.empty(top, func(name string) error { return errors.Join(r.removeAt(name), r.removeMoved()) }); err != nil {
		return fmt.Errorf("remove what is in %s: %w", dir, err)
	}
	return unlessGone("remove "+dir, removeName(parent, name))
}

func unlessGone(what string, err error) error {
	if err = ignoreGone(err); err != nil {
		err = fmt.Errorf("%s: %w", what, err)
	}
	return err
}

// remover is the removal of what is in one directory.
type remover struct {
	top    *os.File
	prefix string
	// moved counts the directories that were moved to the top, and done those of them that were removed there: their names are numbered, so that nobody needs
	// to look for them.
	moved, done int
}

// empty removes each name in a directory until there is none. It goes on after an error while anything can be removed.
func (r *remover) empty(dir *os.File, remove func(name string) error) error {
	for {
		progress, seen, err := false, 0, error(nil)
		for name, readErr := range names(dir) {
			seen++
			if readErr == nil {
				readErr = remove(name)
			}
			if readErr == nil {
				progress = true
			} else {
				err = readErr
			}
		}
		switch {
		case seen == 0:
			return nil
		case !progress:
			return err
		}
	}
}

// names reads the names in a directory from its beginning.
func names(dir *os.File) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		fd := int(dir.Fd())
		_, err := unix.Seek(fd, 0, unix.SEEK_SET)
		buf := make([]byte, 64<<10)
		for err == nil {
			var n int
			if n, err = unix.ReadDirent(fd, buf); err != nil || n <= 0 {
				break
			}
			_, _, some := unix.ParseDirent(buf[:n], -1, nil)
			for _, name := range some {
				if !yield(name, nil) {
					return
				}
			}
		}
		if err != nil {
			yield("", err)
		}
	}
}

// removeAt removes a name at the top. Of a directory, what is in it is removed, or moved to the top if it is a directory that is not empty.
func (r *remover) removeAt(name string) error {
	top := int(r.top.Fd())
	err := removeName(top, name)
	if !errors.Is(err, unix.ENOTEMPTY) {
		return ignoreGone(err)
	}
	dir, err := openMended(top, name)
	if err != nil {
		return ignoreGone(err)
	}
	defer dir.Close()
	if err := r.empty(dir, func(inner string) error { return r.removeOrMove(dir, inner) }); err != nil {
		return err
	}
	return ignoreGone(removeName(top, name))
}

func (r *remover) removeOrMove(dir *os.File, name string) error {
	err := removeName(int(dir.Fd()), name)
	if !errors.Is(err, unix.ENOTEMPTY) {
		return ignoreGone(err)
	}
	sub, err := openMended(int(dir.Fd()), name) // who moves a directory must be able to write in it
	if err != nil {
		return ignoreGone(err)
	}
	defer sub.Close()
	if err := unix.Renameat(int(dir.Fd()), name, int(r.top.Fd()), r.prefix+strconv.Itoa(r.moved+1)); err != nil {
		return err
	}
	r.moved++
	return nil
}

// removeMoved removes what was moved to the top.
func (r *remover) removeMoved() (err error) {
	for r.done < r.moved {
		r.done++
		if oneErr := r.removeAt(r.prefix + strconv.Itoa(r.done)); oneErr != nil {
			err = oneErr
		}
	}
	return err
}

func ignoreGone(err error) error {
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

// removeName removes a file, a link or an empty directory. ENOTEMPTY says that it is a directory with something in it.
func removeName(dir int, name string) error {
	err := unix.Unlinkat(dir, name, 0)
	if !errors.Is(err, unix.EISDIR) && !errors.Is(err, unix.EPERM) {
		return err
	}
	switch dirErr := unix.Unlinkat(dir, name, unix.AT_REMOVEDIR); {
	case errors.Is(dirErr, unix.EEXIST): // as some file systems call it
		return unix.ENOTEMPTY
	case !errors.Is(dirErr, unix.ENOTDIR):
		return dirErr
	}
	return err
}

// openMended opens a directory to be read, once its owner may do everything in it. Whatever is put in its place meanwhile, no link is followed.
func openMended(dir int, name string) (*os.File, error) {
	fd, err := unix.Openat(dir, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	if err := unix.Chmod("/proc/self/fd/"+strconv.Itoa(fd), 0o700); err != nil {
		return nil, err
	}
	fd, err = unix.Openat(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

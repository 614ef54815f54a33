// Package disk (SANDBOX) writes a directory tree, or one file, as a read-only EROFS image that a virtual machine mounts as a disk.
//
// The tree may be hostile and may change while it is read. Nothing outside it is read: every name is opened below a directory that is held open, symbolic
// links are stored and never followed, and what is mounted somewhere below is left out. Sockets, pipes and devices are left out and counted; none of them
// is opened, none is waited for. The tree is read in one pass, so that the image holds what was read and nothing that was only announced: a file that
// grows is cut where it ended when it was opened, one that shrinks is as long as what was there, one that vanishes is absent.
//
// Names, contents, symbolic and hard links, permission bits, owners, times of modification and user.* attributes are kept. Equal trees give equal bytes.
// The image is written here and not by a library, because the libraries look at the whole tree first and read contents afterwards.
package disk

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/fault"
)

// The bounds where Options has none: as those of an unpacked image.
const (
	DefaultBytes = 16 << 30
	DefaultFiles = 2_000_000
)

// Options bound and shape an image.
type Options struct {
	// MaxBytes is the largest size of the image in bytes; 0 is DefaultBytes.
	MaxBytes int64
	// MaxFiles is the largest number of names in the tree; 0 is DefaultFiles.
	MaxFiles int
	// PadTo is the size that the file has in the end, in bytes, as a hole behind the image; 0 is the image's own size. An image that is larger is refused.
	PadTo int64
	// Owner says whom a file belongs to inside; nil is SameOwners.
	Owner func(uid, gid uint32) (insideUID, insideGID uint32)
}

// Summary says what an image holds and what was left out of the tree.
type Summary struct {
	Size     int64 // of the image in bytes, without what PadTo adds
	Files    int   // regular files, each counted once however many names it has
	Dirs     int   // directories, the root included
	Symlinks int
	// Special counts sockets, pipes and devices, Mounts what is mounted below the tree, Unreadable what this process may not read: all left out.
	Special, Mounts, Unreadable int
	// Changed counts files that were cut short or vanished while the tree was read.
	Changed int
	// Attributes counts files whose extended attributes did not fit and were left out.
	Attributes int
}

// nobody is the user and group that stands for ids that are not known inside (the kernel's default overflow id, user_namespaces(7)).
const nobody = 65534

// SameOwners keeps ids 0 to 65534, and gives the rest to nobody: what level container shows to a sandbox that root started.
func SameOwners(uid, gid uint32) (insideUID, insideGID uint32) {
	return min(uid, nobody), min(gid, nobody)
}

// RootFor returns a mapping in which one user and one group are root inside and all others nobody: what level container shows to an ordinary user's sandbox.
func RootFor(uid, gid int) func(uid, gid uint32) (insideUID, insideGID uint32) {
	return func(u, g uint32) (insideUID, insideGID uint32) {
		insideUID, insideGID = nobody, nobody
		if int64(u) == int64(uid) {
			insideUID = 0
		}
		if int64(g) == int64(gid) {
			insideGID = 0
		}
		return insideUID, insideGID
	}
}

// Write makes an image of the directory at a path that the caller trusts, in an open file, from its start; what was in the file is lost. It reads with the
// rights of this process. After an error, or once ctx is done, the file holds nothing of use; the caller removes it.
func Write(ctx context.Context, dir string, out *os.File, o Options) (Summary, error) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return Summary{}, fault.New(fault.Invalid, "the folder %s cannot be opened", dir).Because(err)
	}
	root := os.NewFile(uintptr(fd), dir)
	defer root.Close()
	w, err := newWalker(out, o)
	if err != nil {
		return Summary{}, err
	}
	if err := w.tree(ctx, root); err != nil {
		return Summary{}, fmt.Errorf("make a disk of %s: %w", dir, err)
	}
	return w.finish(o)
}

// WriteFile makes an image whose root directory holds one file under a name, for a file that is mounted by itself. The path is the caller's; it may not be
// a symbolic link. Everything else is as with Write.
func WriteFile(ctx context.Context, path, name string, out *os.File, o Options) (Summary, error) {
	if name == "" || name == "." || name == ".." || len(name) > maxName || strings.ContainsAny(name, "/\x00") {
		return Summary{}, fault.New(fault.Invalid, "%q is no name of a file", name)
	}
	w, err := newWalker(out, o)
	if err != nil {
		return Summary{}, err
	}
	// O_NONBLOCK: a pipe that is there instead is not waited for.
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return Summary{}, fault.New(fault.Invalid, "the file %s cannot be opened", path).Because(err)
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	if err := w.single(ctx, f, name); err != nil {
		return Summary{}, fmt.Errorf("make a disk of %s: %w", path, err)
	}
	return w.finish(o)
}

func newWalker(out *os.File, o Options) (*walker, error) {
	if o.MaxBytes < 0 || o.MaxFiles < 0 || o.PadTo < 0 || o.PadTo%blockSize != 0 {
		return nil, fault.New(fault.Invalid, "the bounds of a disk are sizes, in whole blocks of %d bytes", blockSize)
	}
	w := &walker{owner: o.Owner, names: o.MaxFiles, linked: map[fileID]link{}}
	if w.owner == nil {
		w.owner = SameOwners
	}
	if w.names == 0 {
		w.names = DefaultFiles
	}
	limit := o.MaxBytes
	if limit == 0 {
		limit = DefaultBytes
	}
	if o.PadTo > 0 {
		limit = min(limit, o.PadTo)
	}
	if err := out.Truncate(0); err != nil {
		return nil, fmt.Errorf("empty the disk's file: %w", err)
	}
	w.image = newImage(out, limit)
	return w, nil
}

// finish writes what can be written only at the end, and gives the file its size.
func (w *walker) finish(o Options) (Summary, error) {
	size, err := w.image.close()
	if err == nil {
		err = w.image.out.Truncate(max(size, o.PadTo))
	}
	if err != nil {
		return Summary{}, fmt.Errorf("write disk: %w", err)
	}
	w.sum.Size = size
	return w.sum, nil
}

// isNoSpace says that the file system that the image is written to is full, or the user's share of it.
func isNoSpace(err error) bool { return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) }

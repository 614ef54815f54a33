package disk

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/fault"
)

const (
	// maxDepth is how many directories may lie in each other. Each one is held open while it is read.
	maxDepth = 512
	// maxTarget is the longest target of a symbolic link in bytes: PATH_MAX less its end.
	maxTarget = 4095
)

// walker reads a tree and writes the image.
type walker struct {
	image  *image
	owner  func(uid, gid uint32) (uint32, uint32)
	names  int // how many more may come
	linked map[fileID]link
	piece  [pieceSize]byte
	sum    Summary
}

// fileID is what two names of one file share. The time of the last change is part of it, so that a number which the file system gave to another file in
// the meantime is not taken for the first one.
type fileID struct {
	dev, ino uint64
	size     int64
	changed  unix.Timespec
}

// link is a file with several names that is in the image.
type link struct {
	offset int64
	count  uint32
}

// tree writes the root directory and all below.
func (w *walker) tree(ctx context.Context, root *os.File) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(root.Fd()), &st); err != nil {
		return err
	}
	offset, parent, err := w.dir(ctx, root, &st, 0)
	if err != nil {
		return err
	}
	return w.image.patch(parent, binary.LittleEndian.AppendUint64(nil, number(offset)))
}

// single writes a root directory with one file.
func (w *walker) single(ctx context.Context, f *os.File, name string) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return fault.New(fault.Invalid, "%s is no regular file", f.Name())
	}
	st.Nlink = 1 // inside it has one name
	e := entry{name: name, kind: typeFile}
	var err error
	if e.offset, err = w.file(ctx, f, &st); err != nil {
		return err
	}
	w.sum.Dirs++
	root := inode{mode: unix.S_IFDIR | 0o755, seconds: st.Mtim.Sec, nanos: uint32(st.Mtim.Nsec), nlink: 2}
	offset, parent, err := w.image.addDir(root, []entry{e}, true)
	if err != nil {
		return err
	}
	return w.image.patch(parent, binary.LittleEndian.AppendUint64(nil, number(offset)))
}

// dir writes all that is in an open directory, then the directory.
func (w *walker) dir(ctx context.Context, d *os.File, st *unix.Stat_t, depth int) (offset, parent int64, err error) {
	if depth > maxDepth {
		return 0, 0, fault.New(fault.TooMany, "there are more than %d folders in each other", maxDepth)
	}
	names, err := w.list(d)
	if err != nil {
		return 0, 0, err
	}
	w.sum.Dirs++
	n := w.describe(st, d)
	n.nlink = 2
	entries := make([]entry, 0, len(names)+2)
	for _, name := range names {
		if err := ctx.Err(); err != nil {
			return 0, 0, err
		}
		e, err := w.entry(ctx, d, name, depth)
		if err != nil {
			if fault.KindOf(err) != fault.Internal {
				return 0, 0, err
			}
			return 0, 0, fmt.Errorf("%q: %w", name, err)
		}
		if e.kind == 0 {
			continue // left out, and counted
		}
		if e.kind == typeDir {
			n.nlink++
		}
		entries = append(entries, e)
	}
	return w.image.addDir(n, entries, depth == 0)
}

// list reads the names of a directory, in order.
func (w *walker) list(d *os.File) ([]string, error) {
	var names []string
	for {
		some, err := d.Readdirnames(1024)
		if w.names -= len(some); w.names < 0 {
			return nil, fault.New(fault.TooMany, "there are more files than a disk may have").WithHint("mount less, or leave large folders out of the workspace")
		}
		names = append(names, some...)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
	}
	slices.Sort(names)
	return names, nil
}

// entry writes what has a name in a directory. What is left out has no kind.
func (w *walker) entry(ctx context.Context, d *os.File, name string, depth int) (entry, error) {
	e := entry{name: name}
	var st unix.Stat_t
	if err := unix.Fstatat(int(d.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return w.leave(err)
	}
	var err error
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		var sub *os.File
		if sub, err = open(d, name, &st, unix.O_DIRECTORY); err != nil {
			return w.leave(err)
		}
		defer sub.Close()
		e.kind = typeDir
		e.offset, e.parent, err = w.dir(ctx, sub, &st, depth+1)
	case unix.S_IFREG:
		var f *os.File
		if f, err = open(d, name, &st, 0); err != nil {
			return w.leave(err)
		}
		defer f.Close()
		e.kind = typeFile
		e.offset, err = w.file(ctx, f, &st)
	case unix.S_IFLNK:
		return w.symlink(d, name, &st)
	default:
		w.sum.Special++
	}
	return e, err
}

// errOther says that a name stands for something else than it did a moment ago.
var errOther = errors.New("is something else now")

// open opens an entry of a directory, which must be of the kind that st says, and describes in st what was opened. Neither a link nor a mount is entered,
// and a pipe that was put there in the meantime is not waited for.
func open(d *os.File, name string, st *unix.Stat_t, flags uint64) (*os.File, error) {
	how := unix.OpenHow{
		Flags:   flags | unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_NOCTTY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
	}
	fd, err := unix.Openat2(int(d.Fd()), name, &how)
	for errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN) {
		fd, err = unix.Openat2(int(d.Fd()), name, &how)
	}
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), name)
	kind := st.Mode & unix.S_IFMT
	if err := unix.Fstat(fd, st); err != nil {
		f.Close()
		return nil, err
	}
	if st.Mode&unix.S_IFMT != kind {
		f.Close()
		return nil, errOther
	}
	return f, nil
}

// leave counts an entry that could not be opened, if the reason is one that leaves it out, and returns the error if not.
func (w *walker) leave(err error) (entry, error) {
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ENXIO), errors.Is(err, errOther):
		w.sum.Changed++
	case errors.Is(err, unix.EXDEV):
		w.sum.Mounts++
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		w.sum.Unreadable++
	default:
		return entry{}, err
	}
	return entry{}, nil
}

func (w *walker) symlink(d *os.File, name string, st *unix.Stat_t) (entry, error) {
	target := w.piece[:maxTarget+1]
	n, err := unix.Readlinkat(int(d.Fd()), name, target)
	if errors.Is(err, unix.EINVAL) {
		err = errOther
	}
	if err != nil || n < 1 || n > maxTarget {
		return w.leave(errors.Join(err, errOther))
	}
	node := w.describe(st, nil)
	node.nlink = 1
	w.sum.Symlinks++
	offset, err := w.image.addContents(node, target[:n])
	return entry{name: name, kind: typeSymlink, offset: offset}, err
}

// describe makes an inode of what stat says. Attributes are those of f, if there is one.
func (w *walker) describe(st *unix.Stat_t, f *os.File) inode {
	n := inode{mode: uint16(st.Mode), seconds: st.Mtim.Sec, nanos: uint32(st.Mtim.Nsec), nlink: 1}
	n.uid, n.gid = w.owner(st.Uid, st.Gid)
	if f == nil {
		return n
	}
	var whole bool
	if n.xattrs, whole = readXattrs(f); !whole {
		w.sum.Attributes++
	}
	return n
}

package build

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/fault"
)

// tree reads a directory on this machine.
type tree struct {
	layer  *layer
	root   *os.Root
	device uint64
	keep   bool // owners
	linked map[[2]uint64]*data
}

// addDir adds all that lies in a directory.
func (l *layer) addDir(ctx context.Context, from string) error {
	root, err := os.OpenRoot(from)
	if err != nil {
		return fault.New(fault.Invalid, "the directory %s cannot be opened", from).Because(err)
	}
	defer root.Close()
	info, err := root.Stat(".")
	if err != nil {
		return err
	}
	t := &tree{layer: l, root: root, device: info.Sys().(*syscall.Stat_t).Dev, keep: os.Geteuid() == 0, linked: map[[2]uint64]*data{}}
	n := t.describe(info)
	n.kind = dir // a directory that was opened is one
	if err := l.put("", n); err != nil {
		return err
	}
	return t.walk(ctx, ".")
}

func (t *tree) walk(ctx context.Context, at string) error {
	d, err := t.root.Open(at)
	if err != nil {
		return unreadable(at, err)
	}
	names, err := d.Readdirnames(t.layer.maxFiles + 1)
	if err := errors.Join(ignoreEOF(err), d.Close()); err != nil {
		return unreadable(at, err)
	}
	slices.Sort(names)
	for _, name := range names {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := t.entry(ctx, path.Join(at, name)); err != nil {
			return err
		}
	}
	return nil
}

func ignoreEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// unreadable says which path could not be read, and what to do.
func unreadable(name string, err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return fault.New(fault.Denied, "%q cannot be read", name).WithHint("build as a user who may read it, or from an archive made by one").Because(err)
	}
	return err
}

// entry adds one name. What vanished since it was listed is not there.
func (t *tree) entry(ctx context.Context, name string) error {
	info, err := t.root.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return unreadable(name, err)
	}
	n := t.describe(info)
	switch {
	case info.IsDir():
		if info.Sys().(*syscall.Stat_t).Dev != t.device {
			t.layer.counts.Other++ // what lies below is another file system's
			n.kind = dir
			return t.layer.put(name, n)
		}
		n.kind = dir
		if err := t.layer.put(name, n); err != nil {
			return err
		}
		return t.walk(ctx, name)
	case info.Mode()&fs.ModeSymlink != 0:
		n.kind = symlink
		if n.target, err = t.root.Readlink(name); err != nil {
			return ignoreGone(err)
		}
		return t.layer.put(name, n)
	case info.Mode().IsRegular():
		return t.file(ctx, name)
	}
	t.layer.counts.Special++
	return nil
}

func ignoreGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.EINVAL) {
		return nil // it vanished, or is something else now
	}
	return err
}

// file adds a regular file. O_NONBLOCK: a pipe that is there instead is not waited for.
func (t *tree) file(ctx context.Context, name string) error {
	f, err := t.root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return unreadable(name, err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		t.layer.counts.Special++
		return nil
	}
	st := info.Sys().(*syscall.Stat_t)
	n := t.describe(info)
	n.kind = file
	id := [2]uint64{st.Dev, st.Ino}
	if st.Nlink > 1 {
		n.data = t.linked[id]
	}
	if n.data == nil {
		if n.data, err = t.layer.store(&boundedReader{ctx: ctx, r: f, left: info.Size() + 1}, info.Size()); err != nil {
			return err
		}
		t.linked[id] = n.data
	}
	n.xattrs = readUserAttributes(f)
	return t.layer.put(name, n)
}

// describe makes a node of what stat says, without a kind. Ids that no sandbox has become nobody's.
func (t *tree) describe(info fs.FileInfo) node {
	st := info.Sys().(*syscall.Stat_t)
	n := node{mode: int64(st.Mode & 0o7777), time: info.ModTime()}
	if t.keep {
		n.uid, n.gid = int(min(st.Uid, maxID)), int(min(st.Gid, maxID))
	}
	return n
}

// readUserAttributes reads the user.* attributes of a file as far as they fit into a page; others mean something to a kernel.
func readUserAttributes(f *os.File) map[string]string {
	list, value := make([]byte, 4096), make([]byte, 4096)
	n, err := unix.Flistxattr(int(f.Fd()), list)
	if err != nil || n == 0 {
		return nil
	}
	records := map[string]string{}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(list[:n]), "\x00"), "\x00") {
		if n, err := unix.Fgetxattr(int(f.Fd()), name, value); err == nil {
			records["SCHILY.xattr."+name] = string(value[:n])
		}
	}
	return userAttributes(records)
}

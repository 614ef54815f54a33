package image

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/fault"
)

// Marks of the overlay in a layer (OCI image specification 1.1, "Layer filesystem changeset").
const (
	whiteout = ".wh."
	opaque   = ".wh..wh..opq"
	aufsOwn  = ".wh..wh." // what AUFS kept for itself, in old layers; it means nothing
)

// maxID is the highest user and group id that a sandbox has.
const maxID = 65534

// maxNameBytes bounds a name or a link's target (PATH_MAX).
const maxNameBytes = 4095

// applier applies the layers of one image to a tree. Each entry is bounded and placed, or the image is refused.
type applier struct {
	*tree
	bounds Bounds
	buffer []byte

	files, bytes int64   // applied: entries, and bytes of regular files
	here         *placed // by the layer that is being applied
	stale        bool    // names may mean something else than before
	left         leftOut
}

// newApplier makes an empty directory the root of a tree.
func newApplier(dir string, b Bounds) (*applier, error) {
	t, err := newTree(dir)
	if err != nil {
		return nil, fmt.Errorf("open the tree to unpack to: %w", err)
	}
	return &applier{tree: t, bounds: b.withDefaults(), buffer: make([]byte, 256<<10)}, nil
}

// leftOut counts what was not taken from the layers.
type leftOut struct {
	devices, pipes, setID, xattrs, foreign int
}

// notes says what was left out, a sentence each.
func (l leftOut) notes() (list []string) {
	for _, n := range []struct {
		count int
		what  string
	}{
		{l.devices, "device nodes were left out: a sandbox has its own /dev"},
		{l.pipes, "named pipes were left out: nobody would be at the other end"},
		{l.setID, "set-id bits were taken off: a sandbox honours none"},
		{l.xattrs, "extended attributes were left out: only those of users are kept, and file capabilities have no effect in a sandbox"},
		{l.foreign, "entries of users or groups above 65534 belong to 65534: a sandbox has no others"},
	} {
		if n.count > 0 {
			list = append(list, fmt.Sprintf("%d %s", n.count, n.what))
		}
	}
	return list
}

// layer applies one layer: a tar. It reads r up to the end of the archive, not further.
func (a *applier) layer(ctx context.Context, r io.Reader) error {
	a.here = newPlaced()
	archive := tar.NewReader(r)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return damaged(err)
		}
		if a.files++; a.files > a.bounds.Files {
			return fault.New(fault.TooMany, "the image has more than %d files", a.bounds.Files).WithHint("if that is meant: --max-files N")
		}
		if err := a.entry(h, archive); err != nil {
			return entryError(h.Name, err)
		}
	}
}

// damaged is an archive that cannot be read, unless what gave it up was ours.
func damaged(err error) error {
	if _, ours := errors.AsType[*fault.Error](err); ours || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return fault.New(fault.Invalid, "a layer is damaged").Because(err)
}

// entryError names the entry in what is not ours to phrase.
func entryError(name string, err error) error {
	if _, ours := errors.AsType[*fault.Error](err); ours || errors.Is(err, context.Canceled) {
		return err
	}
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fault.New(fault.Unavailable, "there is no space left to unpack %q", shown(name)).WithHint("make room: cofferdam image rm REF, cofferdam image prune").Because(err)
	}
	return fault.New(fault.Invalid, "cannot unpack %q", shown(name)).Because(err)
}

// shown is a name from a layer as messages show it: its end, which tells more.
func shown(name string) string {
	const most = 120
	if len(name) > most {
		return "…" + name[len(name)-most:]
	}
	return name
}

// cleanName makes an entry's name relative to the root, without detours. It refuses names that lead upwards: no tool that writes layers makes them.
func cleanName(name string) (string, error) {
	if len(name) > maxNameBytes || strings.IndexByte(name, 0) >= 0 {
		return "", fault.New(fault.Invalid, "a layer holds a name that no file can have: %q", shown(name))
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == ".." {
			return "", fault.New(fault.Invalid, "a layer holds a name that leads upwards: %q", shown(name))
		}
	}
	clean := strings.TrimPrefix(path.Clean("/"+name), "/")
	if strings.Contains("/"+upper(clean)+"/", "/"+whiteout) {
		return "", fault.New(fault.Invalid, "a layer holds a name below a removed one: %q", shown(name))
	}
	return clean, nil
}

// entry applies one entry.
func (a *applier) entry(h *tar.Header, content io.Reader) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	name, err := cleanName(h.Name)
	if err != nil {
		return err
	}
	if name == "" {
		return a.rootEntry(h)
	}
	in, err := a.parent(upper(name))
	if err != nil {
		return err
	}
	defer a.refresh()
	base := path.Base(name)
	if strings.HasPrefix(base, whiteout) {
		return a.whiteout(in, base)
	}
	if h.Typeflag == tar.TypeLink {
		err = a.link(h, name, in, base)
	} else {
		err = a.put(h, content, in, base)
	}
	if err == nil {
		a.here.add(in, base)
	}
	return err
}

// rootEntry takes the attributes of the root directory.
func (a *applier) rootEntry(h *tar.Header) error {
	if h.Typeflag != tar.TypeDir {
		return fault.New(fault.Invalid, "a layer has something else for its root directory")
	}
	ino, err := inode(a.root)
	if err != nil {
		return err
	}
	attributes := a.attributes(h)
	a.dirs[ino] = &attributes
	return nil
}

// whiteout removes what layers below have put there. What this layer has put there stays, wherever in the layer the mark stands.
func (a *applier) whiteout(in parent, base string) error {
	switch name := strings.TrimPrefix(base, whiteout); {
	case base == opaque:
		a.stale = true
		return a.empty(in.dir, in.ino, a.here)
	case strings.HasPrefix(base, aufsOwn):
		return nil
	case name == "" || name == "." || name == "..":
		return fault.New(fault.Invalid, "a layer removes %q, which is no file", base)
	default:
		a.stale = true
		return a.remove(in.dir, in.ino, name, a.here)
	}
}

// put makes everything but hard links.
func (a *applier) put(h *tar.Header, content io.Reader, in parent, base string) error {
	stays, err := a.makeRoom(h, in, base)
	if err != nil {
		return err
	}
	switch h.Typeflag {
	case tar.TypeDir:
		attributes := a.attributes(h)
		if stays != 0 {
			attributes.depth = a.dirs[stays].depth
			a.dirs[stays] = &attributes
			return nil
		}
		return a.mkdir(in, base, attributes)
	case tar.TypeReg, '\x00', tar.TypeCont, tar.TypeGNUSparse: // NUL is a regular file of archives from before POSIX
		return a.file(h, content, in, base)
	case tar.TypeSymlink:
		if h.Linkname == "" || len(h.Linkname) > maxNameBytes || strings.IndexByte(h.Linkname, 0) >= 0 {
			return fault.New(fault.Invalid, "the link %q leads nowhere that a link can", shown(h.Name))
		}
		return unix.Symlinkat(h.Linkname, int(in.dir.Fd()), base) // kept as it is; it counts for programs inside
	case tar.TypeChar, tar.TypeBlock:
		a.left.devices++
	case tar.TypeFifo:
		a.left.pipes++
	default:
		return fault.New(fault.Unsupported, "%q is of the kind %q, which layers do not have", shown(h.Name), h.Typeflag)
	}
	return nil
}

// makeRoom removes what stands in the place of an entry. A directory stays for another entry that is a directory: its inode is returned.
func (a *applier) makeRoom(h *tar.Header, in parent, base string) (stays uint64, err error) {
	s, err := lstat(in.dir, base)
	switch {
	case errors.Is(err, unix.ENOENT):
		return 0, nil
	case err != nil:
		return 0, err
	case isDir(s) && h.Typeflag == tar.TypeDir:
		return s.Ino, nil
	}
	a.stale = a.stale || s.Mode&unix.S_IFMT != unix.S_IFREG
	return 0, a.remove(in.dir, in.ino, base, nil)
}

// refresh drops the directory that is kept open if its name may mean another by now: a link or a directory was removed.
func (a *applier) refresh() {
	if a.stale {
		a.stale = false
		a.forget()
	}
}

// file makes a regular file.
func (a *applier) file(h *tar.Header, content io.Reader, in parent, base string) error {
	if h.Size > a.bounds.Unpacked-a.bytes { // holes count: they are written out
		return a.bounds.tooLarge()
	}
	fd, err := unix.Openat(int(in.dir.Fd()), base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), h.Name)
	n, err := io.CopyBuffer(onlyWriter{f}, content, a.buffer)
	a.bytes += n
	if _, disk := errors.AsType[*os.PathError](err); err != nil && !disk {
		err = damaged(err)
	}
	if err == nil {
		err = a.give(f, a.attributes(h))
	}
	return errors.Join(err, f.Close())
}

// onlyWriter keeps io.Copy from asking the file to read by itself: the archive is no file.
type onlyWriter struct{ io.Writer }

// link makes a hard link to a file or link that is in the tree already. The last part of the target is not followed.
func (a *applier) link(h *tar.Header, name string, in parent, base string) error {
	target, err := cleanName(h.Linkname)
	if err != nil {
		return err
	}
	if target == "" || target == name {
		return fault.New(fault.Invalid, "%q is a hard link to itself or to the root", shown(h.Name))
	}
	from, err := a.open(upper(target))
	if err != nil {
		return fault.New(fault.Invalid, "%q is a hard link to %q, which is not in the image", shown(h.Name), shown(h.Linkname)).Because(err)
	}
	defer from.Close()
	s, err := lstat(from, path.Base(target))
	if err != nil || s.Mode&unix.S_IFMT != unix.S_IFREG && s.Mode&unix.S_IFMT != unix.S_IFLNK {
		return fault.New(fault.Invalid, "%q is a hard link to %q, which is no file of the image", shown(h.Name), shown(h.Linkname)).Because(err)
	}
	if there, err := lstat(in.dir, base); err == nil && there.Ino == s.Ino {
		return nil // the same by another way
	}
	if _, err := a.makeRoom(h, in, base); err != nil {
		return err
	}
	return unix.Linkat(int(from.Fd()), path.Base(target), int(in.dir.Fd()), base, 0)
}

package main

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/workspace"
)

// received counts what came out of a sandbox.
type received struct{ entries int }

// receive unpacks a folder that comes out of a sandbox into an empty directory. With sent it unpacks only what differs from that, and marks what is missing as
// an overlay's upper directory does, so that the changes can be collected as those of a run on this machine.
//
// The stream is hostile. Nothing is written outside the directory: every path is made through os.Root, and no part of one may be anything but a directory
// that came earlier in the same stream. A stream with links of files, devices, pipes, paths that are not canonical, or two entries of one name, which no
// packer of ours writes, is refused whole, and so is one that is too large or was cut off.
func receive(ctx context.Context, stream io.Reader, to string, sent map[string]entry) (received, error) {
	root, err := os.OpenRoot(to)
	if err != nil {
		return received{}, fmt.Errorf("open %s: %w", to, err)
	}
	defer root.Close() // everything was closed before
	u := &unpacker{root: root, sent: sent, seen: map[string]workspace.Kind{}, made: map[string]bool{}, buf: make([]byte, 128<<10)}
	defer func() {
		if u.spare != nil {
			_ = u.spare.Close() // what was in it is not needed
		}
	}()
	from := &whole{from: stream}
	if err := u.all(ctx, from); err != nil {
		return received{}, err
	}
	if err := from.end(); err != nil {
		return received{}, err
	}
	if err := u.missing(); err != nil {
		return received{}, fmt.Errorf("mark what was deleted: %w", err)
	}
	return received{entries: len(u.seen)}, u.settle()
}

// refusedStream is the error for what no packer of ours writes.
func refusedStream(format string, args ...any) error {
	return fault.New(fault.Invalid, "the sandbox sent what is no folder: %s", fmt.Sprintf(format, args...))
}

// whole reads a stream and knows whether it was all there: a reader of tar takes a stream for ended that was cut off between two entries, and what is missing
// then would count as deleted.
type whole struct {
	from io.Reader
	cut  bool
}

// Read reads on.
func (w *whole) Read(p []byte) (int, error) {
	n, err := w.from.Read(p)
	if n == 0 && errors.Is(err, io.EOF) {
		w.cut = true // the mark of the end has not come: its reader asks for nothing after it
	}
	return n, err
}

// end reads what follows the mark of the end, for an error that comes last.
func (w *whole) end() error {
	if w.cut {
		return refusedStream("it was cut off")
	}
	n, err := io.Copy(io.Discard, io.LimitReader(w.from, 1<<20))
	if err == nil && n == 1<<20 {
		return refusedStream("something follows its end")
	}
	return err
}

type unpacker struct {
	root  *os.Root
	sent  map[string]entry
	seen  map[string]workspace.Kind // every path of the stream
	made  map[string]bool           // directories that exist in root
	dirs  []dirMode
	names int64
	bytes int64
	buf   []byte
	spare *os.File
}

// dirMode is a directory whose mode is set last, when nothing is put into it any more.
type dirMode struct {
	name string
	mode fs.FileMode
}

// maxNames bounds the bytes of all names and targets.
const maxNames = 64 << 20

func (u *unpacker) all(ctx context.Context, from io.Reader) error {
	r := tar.NewReader(from)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read what the sandbox sent: %w", err)
		}
		name, err := u.admit(h)
		if err != nil {
			return err
		}
		if err := u.entry(name, h, r); err != nil {
			return fmt.Errorf("unpack %s: %w", inert(name, 200), err)
		}
	}
}

// admit checks an entry before anything is made of it.
func (u *unpacker) admit(h *tar.Header) (string, error) {
	kind := map[byte]workspace.Kind{tar.TypeReg: workspace.File, tar.TypeDir: workspace.Dir, tar.TypeSymlink: workspace.Symlink}[h.Typeflag]
	if kind == workspace.Absent {
		return "", refusedStream("an entry is neither file, folder nor link")
	}
	name := h.Name
	if kind == workspace.Dir {
		name = strings.TrimSuffix(name, "/")
	}
	parent := path.Dir(name)
	switch u.names += int64(len(name) + len(h.Linkname)); {
	case name == "." || path.Clean(name) != name || !filepath.IsLocal(name) || strings.ContainsRune(name, 0) || slices.ContainsFunc(strings.Split(name, "/"), func(part string) bool { return len(part) > 255 }):
		return "", refusedStream("the path %.80q", name)
	case len(name) > maxPath || strings.Count(name, "/") >= maxDepth:
		return "", refusedStream("a path of %d bytes", len(name))
	case u.seen[name] != workspace.Absent:
		return "", refusedStream("two entries %.80q", name)
	case parent != "." && u.seen[parent] != workspace.Dir:
		return "", refusedStream("%.80q does not lie in a folder", name)
	case kind == workspace.Symlink && (h.Linkname == "" || len(h.Linkname) > maxPath || strings.ContainsRune(h.Linkname, 0)):
		return "", refusedStream("a link's target")
	case kind != workspace.File && h.Size != 0 || h.Size < 0:
		return "", refusedStream("an entry's size")
	case len(u.seen) >= 2*maxEntries || u.names > maxNames:
		return "", fault.New(fault.TooMany, "the sandbox's folder holds more than %d entries, or their names more than %d bytes", 2*maxEntries, maxNames)
	}
	if u.bytes += h.Size; u.bytes > maxReturned {
		return "", fault.New(fault.TooMany, "the sandbox's folder holds more than 4 GiB")
	}
	u.seen[name] = kind
	return name, nil
}

// entry unpacks one path, unless it is as it was sent.
func (u *unpacker) entry(name string, h *tar.Header, content io.Reader) error {
	mode := fs.FileMode(h.Mode).Perm() // set-id and sticky bits stay behind
	was, known := u.sent[name]
	switch h.Typeflag {
	case tar.TypeDir:
		if known && was.kind == workspace.Dir && was.mode == uint32(mode) {
			return nil // it is made if something in it differs
		}
		return u.folder(name, mode)
	case tar.TypeSymlink:
		if known && was.kind == workspace.Symlink && was.target == h.Linkname {
			return nil
		}
		if err := u.parents(name); err != nil {
			return err
		}
		return u.root.Symlink(h.Linkname, name)
	}
	return u.file(name, mode, h.Size, content, was)
}

// folder makes a directory; its mode is set last.
func (u *unpacker) folder(name string, mode fs.FileMode) error {
	if err := u.parents(name); err != nil {
		return err
	}
	if err := u.root.Mkdir(name, 0o700); err != nil {
		return err
	}
	u.made[name] = true
	u.dirs = append(u.dirs, dirMode{name, mode})
	return nil
}

// parents makes the directories on the way to a path, which came earlier in the stream, but were as they were sent.
func (u *unpacker) parents(name string) error {
	parent := path.Dir(name)
	if parent == "." || u.made[parent] {
		return nil
	}
	return u.folder(parent, fs.FileMode(u.sent[parent].mode))
}

// file writes a file, unless it is as it was sent. Where only the bytes can tell they go to a scratch file first, so that nothing is made beside them that
// would look like a change.
func (u *unpacker) file(name string, mode fs.FileMode, size int64, content io.Reader, was entry) error {
	if was.kind == workspace.File && was.size == size && was.mode == uint32(mode) {
		if err := u.scratch(); err != nil {
			return err
		}
		digest := sha256.New()
		if err := u.copy(io.MultiWriter(u.spare, digest), content, size); err != nil {
			return err
		}
		if was.sha256 == digestText(digest) {
			return nil
		}
		content = io.NewSectionReader(u.spare, 0, size)
	}
	if err := u.parents(name); err != nil {
		return err
	}
	f, err := u.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	err = u.copy(f, content, size)
	if err == nil {
		err = f.Chmod(mode)
	}
	return errors.Join(err, f.Close())
}

// copy copies all of a file. That a reader of tar can write holes by itself is hidden: they count as bytes here.
func (u *unpacker) copy(to io.Writer, from io.Reader, size int64) error {
	n, err := io.CopyBuffer(struct{ io.Writer }{to}, struct{ io.Reader }{from}, u.buf)
	if err == nil && n != size {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// scratch empties the scratch file. It has no name, and lies beside the directory that is unpacked into.
func (u *unpacker) scratch() error {
	if u.spare == nil {
		f, err := os.CreateTemp(filepath.Dir(u.root.Name()), ".cofferdam-*")
		if err != nil {
			return err
		}
		u.spare = f
		return os.Remove(f.Name())
	}
	_, err := u.spare.Seek(0, io.SeekStart)
	return errors.Join(err, u.spare.Truncate(0))
}

// missing marks what was sent and did not come back, as an overlay marks what was deleted in it: the topmost path of each.
func (u *unpacker) missing() error {
	for _, name := range slices.Sorted(maps.Keys(u.sent)) {
		parent := path.Dir(name)
		if u.seen[name] != workspace.Absent || parent != "." && u.seen[parent] != workspace.Dir {
			continue
		}
		if err := u.parents(name); err != nil {
			return err
		}
		if err := u.whiteout(parent, path.Base(name)); err != nil {
			return err
		}
	}
	return nil
}

// whiteout makes the mark of overlayfs: a device 0:0, which needs no privilege, or an empty file with an attribute where a file system refuses that, as
// overlayfs does itself.
func (u *unpacker) whiteout(parent, base string) error {
	dir, err := u.root.Open(parent)
	if err != nil {
		return err
	}
	defer dir.Close() // opened for reading
	if err := unix.Mknodat(int(dir.Fd()), base, unix.S_IFCHR, 0); err == nil {
		return nil
	}
	fd, err := unix.Openat(int(dir.Fd()), base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(unix.Fsetxattr(fd, "user.overlay.whiteout", []byte("y"), 0), unix.Close(fd))
}

// settle sets the modes of directories, the innermost first.
func (u *unpacker) settle() error {
	for _, d := range slices.Backward(u.dirs) {
		if err := u.root.Chmod(d.name, d.mode); err != nil {
			return fmt.Errorf("set the mode of %s: %w", inert(d.name, 200), err)
		}
	}
	return nil
}

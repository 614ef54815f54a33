package image

import (
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"os"
	"path"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/fault"
)

// maxDepth is how many directories deep a tree may be. Walks hold a descriptor for each level.
const maxDepth = 256

// tree is a directory that layers are applied to. Nobody else writes there meanwhile.
//
// Every look-up below it is one openat2 with RESOLVE_IN_ROOT: the kernel takes a link's "/" and ".." for the tree's own root, as it will when programs run in it, so
// nothing outside can be named. What is made, changed or removed is always the last part of a name, relative to its directory's descriptor, and never followed.
// Modes, owners and times are set through descriptors, never by name: a filter on system calls can hold a process to that.
type tree struct {
	root *os.File
	dirs map[uint64]*attributes // by inode: what directories get in the end; until then the caller can write in all of them
	last parent                 // where the entry before was
	// owners says that files are given to whom their entries name. Else all belong to the caller.
	owners bool
	// plain counts extended attributes that this file system does not have.
	plain int
}

// attributes is what an entry says of a file besides its content.
type attributes struct {
	mode     uint32 // permissions, with the sticky bit, without the set-id bits
	uid, gid int
	mtime    time.Time
	xattrs   map[string]string
	depth    int // of directories, the root's being 0
}

// parent is a directory in which entries are made.
type parent struct {
	name string // as entries spell it; valid if dir is not nil
	dir  *os.File
	ino  uint64
}

// newTree makes a directory ready for layers. It must be empty.
func newTree(dir string) (*tree, error) {
	root, err := os.OpenFile(dir, unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	t := &tree{root: root, dirs: map[uint64]*attributes{}, owners: os.Geteuid() == 0}
	ino, err := inode(root)
	if err != nil {
		return nil, errors.Join(err, root.Close())
	}
	t.dirs[ino] = &attributes{mode: 0o755}
	return t, nil
}

// close lets go of the tree.
func (t *tree) close() error {
	t.forget()
	return t.root.Close()
}

// forget drops the directory that was kept open, after a change by which its name could mean another.
func (t *tree) forget() {
	if t.last.dir != nil {
		_ = t.last.dir.Close() // nothing is written through it
	}
	t.last = parent{}
}

func inode(f *os.File) (uint64, error) {
	var s unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &s); err != nil {
		return 0, fmt.Errorf("look at a directory: %w", err)
	}
	return s.Ino, nil
}

// open opens a directory of the tree by a name, following links inside the tree.
func (t *tree) open(name string) (*os.File, error) {
	if name == "" {
		name = "."
	}
	how := unix.OpenHow{Flags: unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	for {
		fd, err := unix.Openat2(int(t.root.Fd()), name, &how)
		if err == nil {
			return os.NewFile(uintptr(fd), name), nil
		}
		if !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EAGAIN) { // a rename elsewhere on the machine
			return nil, err
		}
	}
}

// parent returns the directory of a cleaned name. Directories that no layer has named are made, as other tools do.
func (t *tree) parent(name string) (parent, error) {
	if t.last.dir != nil && t.last.name == name {
		return t.last, nil
	}
	dir, err := t.open(name)
	if errors.Is(err, unix.ENOENT) && name != "" {
		dir, err = t.makeMissing(name)
	}
	if err != nil {
		if _, ours := errors.AsType[*fault.Error](err); ours {
			return parent{}, err
		}
		return parent{}, fault.New(fault.Invalid, "%q is no directory to put something in", shown(name)).Because(err)
	}
	ino, err := inode(dir)
	if err != nil {
		return parent{}, errors.Join(err, dir.Close())
	}
	t.forget()
	t.last = parent{name, dir, ino}
	return t.last, nil
}

func (t *tree) makeMissing(name string) (*os.File, error) {
	above, err := t.parent(upper(name))
	if err != nil {
		return nil, err
	}
	if err := t.mkdir(above, path.Base(name), attributes{mode: 0o755}); err != nil { // EEXIST: a link to nothing
		return nil, err
	}
	return t.open(name)
}

// upper is the directory part of a cleaned name; "" is the root.
func upper(name string) string {
	if dir := path.Dir(name); dir != "." {
		return dir
	}
	return ""
}

// mkdir makes a directory whose attributes are given to it in the end.
func (t *tree) mkdir(in parent, name string, a attributes) error {
	a.depth = t.dirs[in.ino].depth + 1
	if a.depth > maxDepth {
		return fault.New(fault.TooMany, "%q lies more than %d directories deep", shown(name), maxDepth)
	}
	if err := unix.Mkdirat(int(in.dir.Fd()), name, 0o700); err != nil {
		return err
	}
	s, err := lstat(in.dir, name)
	if err != nil {
		return err
	}
	t.dirs[s.Ino] = &a
	return nil
}

func lstat(dir *os.File, name string) (unix.Stat_t, error) {
	var s unix.Stat_t
	return s, unix.Fstatat(int(dir.Fd()), name, &s, unix.AT_SYMLINK_NOFOLLOW)
}

func isDir(s unix.Stat_t) bool { return s.Mode&unix.S_IFMT == unix.S_IFDIR }

// place is where a layer has put something: the name, in the directory of that inode.
type place struct {
	ino  uint64
	name string
}

// placed remembers places by their hash, which a layer cannot aim at: its seed is random.
type placed struct {
	seed maphash.Seed
	set  map[uint64]struct{}
}

func newPlaced() *placed { return &placed{seed: maphash.MakeSeed(), set: map[uint64]struct{}{}} }

func (p *placed) add(in parent, name string) {
	p.set[maphash.Comparable(p.seed, place{in.ino, name})] = struct{}{}
}

func (p *placed) has(ino uint64, name string) bool {
	_, ok := p.set[maphash.Comparable(p.seed, place{ino, name})]
	return ok
}

// remove removes what a name in a directory is, and all below it, except what keep has placed there. keep may be nil.
func (t *tree) remove(dir *os.File, ino uint64, name string, keep *placed) error {
	s, err := lstat(dir, name)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look at %q: %w", shown(name), err)
	}
	kept := keep != nil && keep.has(ino, name)
	if !isDir(s) {
		if kept {
			return nil
		}
		return unix.Unlinkat(int(dir.Fd()), name, 0)
	}
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %q: %w", shown(name), err)
	}
	below := os.NewFile(uintptr(fd), name)
	err = t.empty(below, s.Ino, keep)
	if err = errors.Join(err, below.Close()); err != nil || kept {
		return err
	}
	err = unix.Unlinkat(int(dir.Fd()), name, unix.AT_REMOVEDIR)
	if errors.Is(err, unix.ENOTEMPTY) && keep != nil {
		return nil // this layer has put something below it
	}
	if err == nil {
		delete(t.dirs, s.Ino)
	}
	return err
}

// empty removes what is in a directory, except what keep has placed there.
func (t *tree) empty(dir *os.File, ino uint64, keep *placed) error {
	names, err := entries(dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := t.remove(dir, ino, name, keep); err != nil {
			return err
		}
	}
	return nil
}

// entries lists a directory from its beginning, whatever was read through the descriptor before.
func entries(dir *os.File) ([]string, error) {
	if _, err := dir.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	return dir.Readdirnames(-1)
}

// finish gives every directory its attributes, those below before those above, since afterwards the caller may not be able to enter.
func (t *tree) finish() error {
	t.forget()
	ino, err := inode(t.root)
	if err != nil {
		return err
	}
	return t.finishDir(t.root, ino)
}

func (t *tree) finishDir(dir *os.File, ino uint64) error {
	if _, err := dir.Seek(0, io.SeekStart); err != nil {
		return err
	}
	for {
		names, err := dir.Readdirnames(1024)
		for _, name := range names {
			s, err := lstat(dir, name)
			if err == nil && isDir(s) {
				err = t.finishBelow(dir, name)
			}
			if err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
	}
	a := t.dirs[ino]
	if a == nil {
		return fmt.Errorf("the directory %q was not made here", shown(dir.Name()))
	}
	return t.give(dir, *a)
}

func (t *tree) finishBelow(dir *os.File, name string) error {
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %q: %w", shown(name), err)
	}
	below := os.NewFile(uintptr(fd), name)
	ino, err := inode(below)
	if err == nil {
		err = t.finishDir(below, ino)
	}
	return errors.Join(err, below.Close())
}

// give sets an open file's attributes; its owner last, since what belongs to another can be changed no more.
func (t *tree) give(f *os.File, a attributes) error {
	fd := int(f.Fd())
	for name, value := range a.xattrs {
		err := unix.Fsetxattr(fd, name, []byte(value), 0)
		if errors.Is(err, unix.ENOTSUP) {
			t.plain++
			continue
		}
		if err != nil {
			return fmt.Errorf("set attribute %.80q of %q: %w", name, shown(f.Name()), err)
		}
	}
	if err := unix.Fchmod(fd, a.mode); err != nil {
		return fmt.Errorf("set the mode of %q: %w", shown(f.Name()), err)
	}
	if !a.mtime.IsZero() {
		if err := setTime(fd, a.mtime); err != nil {
			return fmt.Errorf("set the time of %q: %w", shown(f.Name()), err)
		}
	}
	if t.owners && (a.uid != 0 || a.gid != 0) {
		if err := unix.Fchown(fd, a.uid, a.gid); err != nil {
			return fmt.Errorf("give %q to user %d: %w", shown(f.Name()), a.uid, err)
		}
	}
	return nil
}

package workspace

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/fault"
)

// Apply brings the changes into the workspace. It first looks at every path; if a person has changed one since the run ended, it reports the
// conflicts and changes nothing, unless told to overwrite. Each file is written beside its place and renamed over it, so a reader sees the old one
// or the new one, and a hard link elsewhere keeps the old. Every path is reached through directories held open, never through a symlink or a mount.
// After an error part of the changes may be applied; applying again does the rest.
func (c *Changes) Apply(ctx context.Context, o ApplyOptions) (Report, error) {
	var r Report
	t, err := openTree(c.workspace)
	if err != nil {
		return r, fault.New(fault.NotFound, "the workspace cannot be opened").Because(err)
	}
	defer t.root.Close()
	st, err := fstat(t.root)
	if err != nil {
		return r, fmt.Errorf("look at workspace: %w", err)
	}
	a := &applier{c: c, tree: t, uid: st.Uid, gid: st.Gid, copy: newCopier(), loose: map[Name]uint32{}}
	steps, err := c.plan(o, &r)
	if err != nil {
		return r, err
	}
	todo, err := a.check(ctx, steps, &r)
	if err != nil {
		return r, err
	}
	if len(r.Conflicts) > 0 && o.Overwrite != OverwriteConflicts {
		return r, fault.New(fault.Conflict, "the workspace has changed since the run ended, in %d places; nothing was applied", len(r.Conflicts)).
			WithHint("look with cofferdam diff; to overwrite what is there now, apply with --force; to apply the rest, name its paths")
	}
	for _, s := range todo {
		r.Applied = append(r.Applied, s.Change)
	}
	if o.DryRun {
		return r, nil
	}
	if o.Record != nil {
		if err := o.Record(r); err != nil {
			return r, err
		}
	}
	r.Applied = nil
	err = a.execute(ctx, todo, &r)
	return r, errors.Join(err, a.tighten(), syncTree(t))
}

// syncTree asks the file system to keep what was written across a power loss.
func syncTree(t tree) error {
	if err := unix.Syncfs(int(t.root.Fd())); err != nil {
		return fmt.Errorf("write workspace to disk: %w", err)
	}
	return nil
}

// applier is one run of Apply.
type applier struct {
	c        *Changes
	tree     tree
	uid, gid uint32 // owner of the workspace: what root inside stands for
	copy     *copier
	loose    map[Name]uint32 // modes of directories that had to be made writable for their owner
}

// phase is one pass over the steps.
type phase struct {
	backward bool // what is in a directory comes before it
	first    bool // makes room only, unless the step is a deletion
	wants    func(*step) bool
	do       func(context.Context, *os.File, string, *step) error
}

// execute works in an order in which each step finds what it needs: removals, directories, files, symlinks, then modes of directories.
func (a *applier) execute(ctx context.Context, steps []*step, r *Report) error {
	phases := []phase{
		{backward: true, first: true, wants: (*step).removes, do: a.remove},
		{wants: func(s *step) bool { return s.Now.Kind == Dir && s.present.Kind != Dir }, do: a.mkdir},
		{wants: func(s *step) bool { return s.Now.Kind == File }, do: a.file},
		{wants: func(s *step) bool { return s.Now.Kind == Symlink }, do: a.symlink},
		{backward: true, wants: func(s *step) bool { return s.Now.Kind == Dir }, do: a.dirMeta},
	}
	for _, ph := range phases {
		if err := a.pass(ctx, steps, ph, r); err != nil {
			return err
		}
	}
	return nil
}

func (a *applier) pass(ctx context.Context, steps []*step, ph phase, r *Report) error {
	order := slices.Clone(steps)
	if ph.backward {
		slices.Reverse(order)
	}
	var held *os.File
	var heldPath Name
	defer func() {
		if held != nil {
			held.Close()
		}
	}()
	for _, s := range order {
		if !ph.wants(s) {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		parent, name := s.Path.split()
		if held == nil || parent != heldPath {
			dir, err := a.holdWritable(parent)
			if err != nil {
				return fmt.Errorf("apply %s: %w", s.Path, err)
			}
			if held != nil {
				held.Close()
			}
			held, heldPath = dir, parent
		}
		if err := ph.do(ctx, held, name, s); err != nil {
			return fmt.Errorf("apply %s: %w", s.Path, err)
		}
		if s.last(ph) {
			r.Applied = append(r.Applied, s.Change)
		}
	}
	return nil
}

// removes says whether what lies there now has to go first: for good, or because a directory and something else take each other's place.
func (s *step) removes() bool {
	return s.present.Kind != Absent && (s.Now.Kind == Absent || (s.present.Kind == Dir) != (s.Now.Kind == Dir))
}

// last says whether a phase completes the step.
func (s *step) last(ph phase) bool {
	if ph.first {
		return s.Now.Kind == Absent
	}
	return ph.backward || s.Now.Kind != Dir
}

// holdWritable holds a directory, and lends its owner the permission to change it until tighten.
func (a *applier) holdWritable(p Name) (*os.File, error) {
	dir, err := a.tree.hold(p)
	if err != nil || os.Geteuid() == 0 {
		return dir, err
	}
	st, err := fstat(dir)
	if err != nil {
		dir.Close()
		return nil, err
	}
	const need = 0o300
	if st.Mode&need == need || int(st.Uid) != os.Geteuid() {
		return dir, nil
	}
	if _, known := a.loose[p]; !known {
		a.loose[p] = st.Mode & modeBits
	}
	if err := chmodHeld(int(dir.Fd()), st.Mode&modeBits|need); err != nil {
		dir.Close()
		return nil, err
	}
	return dir, nil
}

// tighten gives directories back the modes that holdWritable took. A directory whose mode was applied meanwhile keeps that.
func (a *applier) tighten() error {
	var errs []error
	for p, mode := range a.loose {
		dir, err := a.tree.hold(p)
		if isGone(err) {
			continue
		}
		if err == nil {
			err = chmodHeld(int(dir.Fd()), mode)
			dir.Close()
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("restore mode of %s: %w", p, err))
		}
	}
	return errors.Join(errs...)
}

func (a *applier) remove(_ context.Context, dir *os.File, name string, s *step) error {
	flags := 0
	if s.present.Kind == Dir {
		flags = unix.AT_REMOVEDIR
	}
	err := unix.Unlinkat(int(dir.Fd()), name, flags)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

func (a *applier) mkdir(_ context.Context, dir *os.File, name string, _ *step) error {
	return unix.Mkdirat(int(dir.Fd()), name, 0o700)
}

// file brings content and mode, or only the mode.
func (a *applier) file(ctx context.Context, dir *os.File, name string, s *step) error {
	if s.hasContent() {
		src, err := a.c.content(s.Now)
		if err != nil {
			return err
		}
		defer src.Close()
		return a.replace(ctx, dir, name, s, src, s.Now)
	}
	if s.present.Kind != File {
		return errors.New("the run changed only its mode or owner, and it is no file any more")
	}
	return a.fileMeta(ctx, dir, name, s)
}

// fileMeta changes mode and owner of a file that stays. One with several hard links is replaced by a copy: another of its names may lie outside
// the workspace.
func (a *applier) fileMeta(ctx context.Context, dir *os.File, name string, s *step) error {
	fd, err := tree{dir}.resolve(Name(name), unix.O_PATH)
	if err != nil {
		return err
	}
	defer fd.Close()
	st, err := fstat(fd)
	if err != nil {
		return err
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return errors.New("is no file any more")
	case st.Nlink == 1:
		return a.setMeta(fd, s, s.mode)
	}
	src, st, err := openFile(dir, name)
	if err != nil {
		return err
	}
	defer src.Close()
	copyOf := s.present
	copyOf.Size, copyOf.MTime, copyOf.Nsec = st.Size, st.Mtim.Sec, st.Mtim.Nsec
	return a.replace(ctx, dir, name, s, src, copyOf)
}

// replace writes a file beside its place, checks that the bytes are those of the digest, and renames it over.
func (a *applier) replace(ctx context.Context, dir *os.File, name string, s *step, src *os.File, want Node) error {
	temp := tempName()
	fd, err := unix.Openat(int(dir.Fd()), temp, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	dst := os.NewFile(uintptr(fd), temp)
	defer dst.Close()
	err = a.fill(ctx, dst, src, s, want)
	if err == nil {
		err = unix.Renameat(int(dir.Fd()), temp, int(dir.Fd()), name)
	}
	if err != nil {
		_ = unix.Unlinkat(int(dir.Fd()), temp, 0) // the first error counts
	}
	return err
}

func (a *applier) fill(ctx context.Context, dst, src *os.File, s *step, want Node) error {
	sum, err := a.copy.copy(ctx, dst, src, want.Size)
	if err != nil {
		return err
	}
	if want.SHA256 != "" && sum != want.SHA256 {
		return errors.New("the bytes are not those that were collected")
	}
	if err := a.setMeta(dst, s, s.mode); err != nil {
		return err
	}
	return setTime(int(dst.Fd()), want)
}

// setMeta sets owner, then mode: changing the owner clears bits of the mode. The descriptor may be one that only holds the node.
func (a *applier) setMeta(f *os.File, s *step, mode uint32) error {
	if os.Geteuid() == 0 {
		uid, gid := a.owner(s)
		if err := unix.Fchownat(int(f.Fd()), "", int(uid), int(gid), unix.AT_EMPTY_PATH); err != nil {
			return fmt.Errorf("set owner: %w", err)
		}
	}
	if err := chmodHeld(int(f.Fd()), mode); err != nil {
		return fmt.Errorf("set mode: %w", err)
	}
	return nil
}

// owner says whom a path shall belong to: what was there keeps its owner, new things belong to the owner of the workspace, and an id that the run
// chose itself, other than root, is taken as it is.
func (a *applier) owner(s *step) (uid, gid uint32) {
	uid, gid = a.uid, a.gid
	same := s.present.Kind == s.Now.Kind
	if same {
		uid, gid = s.present.UID, s.present.GID
	}
	if s.Now.UID != 0 && (!same || s.Now.UID != s.Was.UID) {
		uid = s.Now.UID
	}
	if s.Now.GID != 0 && (!same || s.Now.GID != s.Was.GID) {
		gid = s.Now.GID
	}
	return uid, gid
}

func setTime(fd int, n Node) error {
	times := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Sec: n.MTime, Nsec: n.Nsec}}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, "/proc/self/fd/"+strconv.Itoa(fd), times, 0); err != nil {
		return fmt.Errorf("set time: %w", err)
	}
	return nil
}

func (a *applier) symlink(_ context.Context, dir *os.File, name string, s *step) error {
	temp := tempName()
	if err := unix.Symlinkat(string(s.Now.Target), int(dir.Fd()), temp); err != nil {
		return err
	}
	err := a.symlinkMeta(dir, temp, s)
	if err == nil {
		err = unix.Renameat(int(dir.Fd()), temp, int(dir.Fd()), name)
	}
	if err != nil {
		_ = unix.Unlinkat(int(dir.Fd()), temp, 0) // the first error counts
	}
	return err
}

func (a *applier) symlinkMeta(dir *os.File, temp string, s *step) error {
	if os.Geteuid() == 0 {
		uid, gid := a.owner(s)
		if err := unix.Fchownat(int(dir.Fd()), temp, int(uid), int(gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return fmt.Errorf("set owner: %w", err)
		}
	}
	times := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Sec: s.Now.MTime, Nsec: s.Now.Nsec}}
	return unix.UtimesNanoAt(int(dir.Fd()), temp, times, unix.AT_SYMLINK_NOFOLLOW)
}

// dirMeta sets mode, owner and, for a new directory, time, after everything in it is done.
func (a *applier) dirMeta(_ context.Context, dir *os.File, name string, s *step) error {
	f, err := tree{dir}.resolve(Name(name), unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := fstat(f)
	if err != nil {
		return err
	}
	const setgid = 0o2000 // taken from the parent by mkdir, or the workspace's own
	if err := a.setMeta(f, s, s.mode|st.Mode&setgid); err != nil {
		return err
	}
	delete(a.loose, s.Path)
	if s.present.Kind == Dir {
		return nil
	}
	return setTime(int(f.Fd()), s.Now)
}

// tempName is a name that nothing in a workspace has; what a power loss leaves is recognisable by it.
func tempName() string { return ".cofferdam-" + rand.Text() }

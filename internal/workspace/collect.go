package workspace

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// CollectOptions says what to collect and where to put it.
type CollectOptions struct {
	// Upper is the open upper directory of the overlay. Everything that could write there must be dead. Collect may add permissions to what lies
	// in it (to read it), and does not close it.
	Upper *os.File
	// Lower is the workspace on the host. It is only read.
	Lower string
	// Dest is the directory to make, in an existing one. It appears only when everything is in it.
	Dest string
	// IDShift is what the id mapping of the sandbox adds to the ids inside: 100000 under root, 0 where ids are seen unmapped.
	IDShift uint32
	// Started is when the run began. A host file that changed after that is marked as raced. Zero: nothing is marked.
	Started time.Time
	// Unprotected lists paths below the workspace that policy does not want set apart, with everything in them. It is stored with the changes.
	Unprotected []string
	Limits      Limits
}

// baseHashLimit is the size up to which a host file is hashed only to detect later conflicts; above it, size and time must do.
const baseHashLimit = 64 << 20

// Collect compares the upper directory with the workspace and stores what really differs: bytes, mode, owner or target. It returns after Dest is
// complete, or with an error and without Dest; soon after ctx ends it gives up. Memory grows with the number of changes and the length of their
// names, which Limits bounds, not with the size of files; time does not grow with holes in files.
func Collect(ctx context.Context, o CollectOptions) (Summary, error) {
	lower, err := openTree(o.Lower)
	if err != nil {
		return Summary{}, fmt.Errorf("open workspace: %w", err)
	}
	defer lower.root.Close()

	part := o.Dest + ".new"
	if err := os.RemoveAll(part); err != nil {
		return Summary{}, fmt.Errorf("remove an unfinished collection: %w", err)
	}
	if err := makeDest(part); err != nil {
		return Summary{}, err
	}
	done := false
	defer func() {
		if !done {
			_ = os.RemoveAll(part) // the error that brought us here counts; the next Collect tries again
		}
	}()
	dest, err := os.OpenRoot(part)
	if err != nil {
		return Summary{}, fmt.Errorf("open collection: %w", err)
	}
	defer dest.Close()

	mount, err := mountOf(lower.root, "")
	if err != nil {
		return Summary{}, fmt.Errorf("look at workspace: %w", err)
	}
	c := &collector{
		o: o, upper: tree{o.Upper}, lower: lower, mount: mount, limits: o.Limits.orDefault(),
		store: &store{dir: dest, copy: newCopier()}, inodes: map[inode]string{},
	}
	if err := c.run(ctx); err != nil {
		return Summary{}, fmt.Errorf("collect workspace changes: %w", err)
	}
	if err := os.Rename(part, o.Dest); err != nil {
		return Summary{}, fmt.Errorf("publish collection: %w", err)
	}
	done = true
	return c.sum, nil
}

// makeDest makes the directories of a collection.
func makeDest(part string) error {
	for _, dir := range []string{part, part + "/" + contentDir} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			return fmt.Errorf("create collection: %w", err)
		}
	}
	return nil
}

type inode struct{ dev, ino uint64 }

// collector is one run of Collect.
type collector struct {
	o            CollectOptions
	upper, lower tree
	mount        uint64 // the one that lower lies in; what is mounted below it was not seen by the run
	limits       Limits
	store        *store
	inodes       map[inode]string // digest of hard-linked files that are stored already
	entries      int
	nameBytes    int64 // of what is kept and of the directories to look at; limits.NameBytes bounds it
	sum          Summary
	changes      []Change
	skipped      []Skip
}

// frame is a directory of the upper tree still to be looked at.
type frame struct {
	path   Name
	opaque bool // the workspace's entries do not show through
}

func (c *collector) run(ctx context.Context) error {
	for todo := []frame{{}}; len(todo) > 0; {
		f := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		c.nameBytes -= int64(len(f.path))
		below, err := c.directory(ctx, f)
		if err != nil {
			return err
		}
		todo = append(todo, below...)
	}
	slices.SortFunc(c.changes, func(a, b Change) int { return compareNames(a.Path, b.Path) })
	slices.SortFunc(c.skipped, compareSkips)
	if err := c.leave(); err != nil {
		return err
	}
	for _, change := range c.changes {
		c.sum.count(change)
	}
	c.sum.Skipped = len(c.skipped)
	return c.store.writeManifest(manifest{
		Version: manifestVersion, Unprotected: c.o.Unprotected, Changes: c.changes, Skipped: c.skipped,
	})
}

// directory compares one directory of the upper tree with its counterpart and returns the directories in it.
func (c *collector) directory(ctx context.Context, f frame) ([]frame, error) {
	up, err := c.upper.list(f.path)
	if err != nil {
		return nil, err
	}
	defer up.Close()
	low, err := c.lower.list(f.path)
	switch {
	case err == nil:
		defer low.Close()
	case isGone(err):
		low = nil
	case f.path != "":
		return nil, c.skip(f.path, hostReason(err))
	default:
		return nil, err
	}
	f.opaque = f.opaque || hasMark(up, "opaque", 'y')
	names, err := c.names(ctx, up)
	if err != nil {
		return nil, err
	}
	var below []frame
	for _, name := range names {
		isDir, err := c.entry(ctx, up, low, f.path.join(name), name)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f.path.join(name), err)
		}
		if isDir {
			next := frame{f.path.join(name), f.opaque}
			if err := c.charge(len(next.path)); err != nil {
				return nil, err
			}
			below = append(below, next)
		}
	}
	if f.opaque && low != nil {
		return below, c.hidden(ctx, low, f.path, names)
	}
	return below, nil
}

// hidden records the deletion of what an opaque directory hides and does not have itself.
func (c *collector) hidden(ctx context.Context, low *os.File, path Name, shown []string) error {
	names, err := c.names(ctx, low)
	if err != nil {
		return err
	}
	for _, name := range names {
		if _, found := slices.BinarySearch(shown, name); found {
			continue
		}
		if err := c.remove(ctx, low, path.join(name), name); err != nil {
			return err
		}
	}
	return nil
}

// names reads a directory, sorted, and counts its entries and their names against the limits.
func (c *collector) names(ctx context.Context, dir *os.File) ([]string, error) {
	var all []string
	size := c.nameBytes
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		some, err := dir.Readdirnames(1024)
		if len(some) == 0 {
			if err != nil && !errors.Is(err, io.EOF) {
				return nil, err
			}
			break
		}
		all = append(all, some...)
		if c.entries += len(some); c.entries > c.limits.Entries {
			return nil, c.limits.entriesError()
		}
		for _, name := range some {
			size += int64(len(name))
		}
		if size > c.limits.NameBytes {
			return nil, c.limits.namesError()
		}
	}
	slices.Sort(all)
	return all, nil
}

// entry compares one entry of the upper tree with the workspace, and says whether it is a directory to descend into.
func (c *collector) entry(ctx context.Context, up, low *os.File, path Name, name string) (isDir bool, err error) {
	if err := ctx.Err(); err != nil {
		return false, err
	}
	if path.tooLong() {
		return false, c.skip(path[:min(len(path), 64)]+"...", fmt.Sprintf("the path is longer than %d bytes or deeper than %d directories", maxPath, maxDepth))
	}
	st, err := stat(up, name)
	if err != nil {
		return false, err
	}
	if err := c.permit(up, name, st); err != nil {
		return false, fmt.Errorf("make readable: %w", err)
	}
	if isWhiteout(up, name, st) {
		return false, c.remove(ctx, low, path, name)
	}
	was, raced, ok, err := c.base(low, path, name)
	if err != nil || !ok {
		return false, err
	}
	now, reason := nodeOf(st)
	if reason != "" {
		return false, c.skip(path, reason)
	}
	now.UID, now.GID = c.inside(now.UID), c.inside(now.GID)
	change := Change{Path: path, Was: was, Now: now, Raced: raced}
	if was.Kind == Dir && now.Kind != Dir {
		if err := c.removeBelow(ctx, path); err != nil {
			return false, err
		}
	}
	switch now.Kind {
	case Dir:
		return true, c.keep(change)
	case Symlink:
		if change.Now.Target, err = readLink(up, name); err != nil {
			return false, err
		}
		return false, c.keep(change)
	}
	return false, c.file(ctx, up, low, change, name)
}

// file completes a change whose new state is a regular file.
func (c *collector) file(ctx context.Context, up, low *os.File, change Change, name string) error {
	f, st, err := openFile(up, name)
	if err != nil {
		return err
	}
	defer f.Close()
	was, now := &change.Was, &change.Now
	if now.Size = st.Size; now.Size > c.limits.FileBytes {
		return c.skip(change.Path, fmt.Sprintf("the file says it holds %d bytes; the limit is %d", now.Size, c.limits.FileBytes))
	}
	if was.Kind == File && (was.Size == now.Size || was.Size <= baseHashLimit) {
		if was.SHA256, err = c.hashHost(ctx, low, name); err != nil {
			return err
		}
	}
	if was.Size == now.Size && was.SHA256 != "" {
		if now.SHA256, err = c.store.copy.copy(ctx, nil, f, now.Size); err != nil {
			return err
		}
		if now.SHA256 == was.SHA256 {
			return c.keep(change)
		}
	}
	if c.sum.Bytes += now.Size; c.sum.Bytes > c.limits.Bytes {
		return c.limits.bytesError()
	}
	id := inode{uint64(st.Dev), st.Ino}
	if now.SHA256 = c.inodes[id]; now.SHA256 == "" {
		if now.SHA256, err = c.store.add(ctx, f, now.Size); err != nil {
			return err
		}
		if st.Nlink > 1 {
			c.inodes[id] = now.SHA256
		}
	}
	return c.keep(change)
}

// hashHost hashes a file of the workspace; one that may not be read has no digest.
func (c *collector) hashHost(ctx context.Context, low *os.File, name string) (string, error) {
	f, st, err := openFile(low, name)
	if err != nil {
		return "", nil // documented at Node.SHA256: size and time stand in
	}
	defer f.Close()
	return c.store.copy.copy(ctx, nil, f, st.Size)
}

// base describes what the workspace has at a path, without a file's digest. Not ok means that it cannot be a base, and the path is skipped.
func (c *collector) base(low *os.File, path Name, name string) (was Node, raced, ok bool, err error) {
	if low == nil {
		return Node{}, false, true, nil
	}
	st, err := stat(low, name)
	if isGone(err) {
		return Node{}, false, true, nil
	}
	mount := c.mount
	if err == nil {
		mount, err = mountOf(low, name)
	}
	if err == nil && mount != c.mount {
		err = unix.EXDEV
	}
	if err != nil {
		return Node{}, false, false, c.skip(path, hostReason(err))
	}
	was, reason := nodeOf(st)
	if reason == "" && was.Kind == Symlink {
		if was.Target, err = readLink(low, name); err != nil {
			reason = hostReason(err)
		}
	}
	if reason != "" {
		return Node{}, false, false, c.skip(path, "in the workspace: "+reason)
	}
	raced = was.Kind != Dir && !c.o.Started.IsZero() && time.Unix(st.Ctim.Unix()).After(c.o.Started)
	return was, raced, true, nil
}

// keep records a change, unless nothing differs: the kernel copies a file up when it is only opened for writing.
func (c *collector) keep(change Change) error {
	was, now := change.Was, change.Now
	same := was.Kind == now.Kind && was.Mode == now.Mode && was.SHA256 == now.SHA256 && was.Size == now.Size && was.Target == now.Target
	if same && (now.Kind == Symlink || !ownerChanged(was.UID, now.UID) && !ownerChanged(was.GID, now.GID)) {
		return nil
	}
	if err := c.chargeListed(len(change.Path) + len(was.Target) + len(now.Target)); err != nil {
		return err
	}
	c.changes = append(c.changes, change)
	return nil
}

func (c *collector) skip(path Name, reason string) error {
	if err := c.chargeListed(len(path) + len(reason)); err != nil {
		return err
	}
	c.skipped = append(c.skipped, Skip{path, reason})
	return nil
}

// chargeListed counts one more line of the lists, and its names.
func (c *collector) chargeListed(size int) error {
	if len(c.changes)+len(c.skipped) >= c.limits.Changes {
		return c.limits.changesError()
	}
	return c.charge(size)
}

// charge counts bytes of names that are about to be kept. The sandbox chose how many there are; the memory is the host's.
func (c *collector) charge(size int) error {
	if c.nameBytes += int64(size); c.nameBytes > c.limits.NameBytes {
		return c.limits.namesError()
	}
	return nil
}

func compareSkips(a, b Skip) int { return compareNames(a.Path, b.Path) }

// hostReason says why a path of the workspace could not be looked at.
func hostReason(err error) string {
	switch {
	case errors.Is(err, unix.EXDEV):
		return "something is mounted here on the host; the run did not see it"
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return "cannot be read on the host"
	}
	return "cannot be read on the host: " + err.Error()
}

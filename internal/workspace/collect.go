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
	// UID and GID get the collected files if the caller is root and they are not zero.
	UID, GID int
	// Unprotected lists paths below the workspace that policy does not want set apart, with everything in them. It is stored with the changes.
	Unprotected []string
	Limits      Limits
}

const (
	// idRange is how many ids a sandbox has. An owner outside of it was not chosen inside: the kernel kept the host's when it copied a file up.
	idRange = 65536
	// baseHashLimit is the size up to which a host file is hashed only to detect later conflicts; above it, size and time must do.
	baseHashLimit = 64 << 20
	// xattrPrefix is what overlayfs uses when mounted with userxattr.
	xattrPrefix = "user.overlay."
)

// Collect compares the upper directory with the workspace and stores what really differs: bytes, mode, owner or target. It returns after Dest is
// complete, or with an error and without Dest. Memory grows with the number of changes, not with their size.
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
	if err := makeDest(part, o); err != nil {
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

	c := &collector{
		o: o, upper: tree{o.Upper}, lower: lower, limits: o.Limits.orDefault(),
		store: &store{dir: dest, uid: o.UID, gid: o.GID, copy: newCopier()}, inodes: map[inode]string{},
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

// makeDest makes the directories of a collection for the owner of the run.
func makeDest(part string, o CollectOptions) error {
	for _, dir := range []string{part, part + "/" + contentDir} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			return fmt.Errorf("create collection: %w", err)
		}
		if o.UID == 0 || os.Geteuid() != 0 {
			continue
		}
		if err := os.Lchown(dir, o.UID, o.GID); err != nil {
			return fmt.Errorf("give collection to its owner: %w", err)
		}
	}
	return nil
}

type inode struct{ dev, ino uint64 }

// collector is one run of Collect.
type collector struct {
	o            CollectOptions
	upper, lower tree
	limits       Limits
	store        *store
	inodes       map[inode]string // digest of hard-linked files that are stored already
	entries      int
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
		below, err := c.directory(ctx, f)
		if err != nil {
			return err
		}
		todo = append(todo, below...)
	}
	slices.SortFunc(c.changes, func(a, b Change) int { return compareNames(a.Path, b.Path) })
	slices.SortFunc(c.skipped, func(a, b Skip) int { return compareNames(a.Path, b.Path) })
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
		c.skip(f.path, hostReason(err))
		return nil, nil
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
			below = append(below, frame{f.path.join(name), f.opaque})
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

// names reads a directory, sorted, and counts its entries against the limit.
func (c *collector) names(ctx context.Context, dir *os.File) ([]string, error) {
	var all []string
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
	}
	slices.Sort(all)
	return all, nil
}

// entry compares one entry of the upper tree with the workspace, and says whether it is a directory to descend into.
func (c *collector) entry(ctx context.Context, up, low *os.File, path Name, name string) (isDir bool, err error) {
	if path.tooLong() {
		c.skip(path[:min(len(path), 64)]+"...", fmt.Sprintf("the path is longer than %d bytes or deeper than %d directories", maxPath, maxDepth))
		return false, nil
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
	was, raced, ok := c.base(low, path, name)
	if !ok {
		return false, nil
	}
	now, reason := nodeOf(st)
	if reason != "" {
		c.skip(path, reason)
		return false, nil
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
		c.keep(change)
		return true, nil
	case Symlink:
		if change.Now.Target, err = readLink(up, name); err != nil {
			return false, err
		}
		c.keep(change)
		return false, nil
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
		c.skip(change.Path, fmt.Sprintf("the file says it holds %d bytes; the limit is %d", now.Size, c.limits.FileBytes))
		return nil
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
			c.keep(change)
			return nil
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
	c.keep(change)
	return nil
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
func (c *collector) base(low *os.File, path Name, name string) (was Node, raced, ok bool) {
	if low == nil {
		return Node{}, false, true
	}
	st, err := stat(low, name)
	if isGone(err) {
		return Node{}, false, true
	}
	if err != nil {
		c.skip(path, hostReason(err))
		return Node{}, false, false
	}
	was, reason := nodeOf(st)
	if reason == "" && was.Kind == Symlink {
		if was.Target, err = readLink(low, name); err != nil {
			reason = hostReason(err)
		}
	}
	if reason != "" {
		c.skip(path, "in the workspace: "+reason)
		return Node{}, false, false
	}
	raced = was.Kind != Dir && !c.o.Started.IsZero() && time.Unix(st.Ctim.Unix()).After(c.o.Started)
	return was, raced, true
}

// remove records the deletion of a path of the workspace and of everything in it.
func (c *collector) remove(ctx context.Context, low *os.File, path Name, name string) error {
	isDir, err := c.removeOne(ctx, low, path, name)
	if err != nil || !isDir {
		return err
	}
	return c.removeBelow(ctx, path)
}

// removeOne records the deletion of one path, and says whether it is a directory.
func (c *collector) removeOne(ctx context.Context, low *os.File, path Name, name string) (isDir bool, err error) {
	was, raced, ok := c.base(low, path, name)
	if !ok || was.Kind == Absent {
		return false, nil
	}
	if was.Kind == File && was.Size <= baseHashLimit {
		if was.SHA256, err = c.hashHost(ctx, low, name); err != nil {
			return false, err
		}
	}
	c.keep(Change{Path: path, Was: was, Raced: raced})
	return was.Kind == Dir, nil
}

// removeBelow records the deletion of everything in a directory of the workspace, holding one descriptor at a time however deep it is.
func (c *collector) removeBelow(ctx context.Context, top Name) error {
	for todo := []Name{top}; len(todo) > 0; {
		path := todo[len(todo)-1]
		below, err := c.removeEntries(ctx, path)
		if err != nil {
			return err
		}
		todo = append(todo[:len(todo)-1], below...)
	}
	return nil
}

func (c *collector) removeEntries(ctx context.Context, path Name) (below []Name, err error) {
	low, err := c.lower.list(path)
	if err != nil {
		c.skip(path, hostReason(err))
		return nil, nil
	}
	defer low.Close()
	names, err := c.names(ctx, low)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		if path.join(name).tooLong() {
			continue // the directory will be found not empty, and stays
		}
		isDir, err := c.removeOne(ctx, low, path.join(name), name)
		if err != nil {
			return nil, err
		}
		if isDir {
			below = append(below, path.join(name))
		}
	}
	return below, nil
}

// keep records a change, unless nothing differs: the kernel copies a file up when it is only opened for writing.
func (c *collector) keep(change Change) {
	was, now := change.Was, change.Now
	same := was.Kind == now.Kind && was.Mode == now.Mode && was.SHA256 == now.SHA256 && was.Size == now.Size && was.Target == now.Target
	if same && (now.Kind == Symlink || !ownerChanged(was.UID, now.UID) && !ownerChanged(was.GID, now.GID)) {
		return
	}
	c.changes = append(c.changes, change)
	c.sum.count(change)
}

func (c *collector) skip(path Name, reason string) {
	c.skipped = append(c.skipped, Skip{path, reason})
	c.sum.Skipped++
}

// inside maps an owner in the upper tree to the id inside. 0 also stands for an owner that the run did not choose.
func (c *collector) inside(id uint32) uint32 {
	if id < c.o.IDShift || id-c.o.IDShift >= idRange {
		return 0
	}
	return id - c.o.IDShift
}

// ownerChanged says whether an id inside is a wish for another owner. 0 never is: root inside stands for the owner of the workspace.
func ownerChanged(was, now uint32) bool { return now != 0 && now != was }

// permit makes an entry readable to its owner where that is not root. The upper tree is thrown away, so nothing is lost.
func (c *collector) permit(up *os.File, name string, st unix.Stat_t) error {
	format, want := st.Mode&unix.S_IFMT, uint32(0)
	switch format {
	case unix.S_IFREG:
		want = 0o400
	case unix.S_IFDIR:
		want = 0o700
	}
	if os.Geteuid() == 0 || st.Mode&want == want {
		return nil
	}
	return chmodAt(up, name, format, st.Mode&modeBits|want)
}

// isWhiteout says whether an entry of the upper tree marks a deletion: a 0:0 character device, or an empty file with an attribute.
func isWhiteout(up *os.File, name string, st unix.Stat_t) bool {
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFCHR:
		return st.Rdev == 0
	case unix.S_IFREG:
		if st.Size != 0 {
			return false
		}
		f, _, err := openFile(up, name)
		if err != nil {
			return false
		}
		defer f.Close()
		return hasMark(f, "whiteout", 0)
	}
	return false
}

// hasMark reads one attribute of overlayfs, and compares its first byte if want is not 0. For "opaque" only y hides the workspace; x merely says
// that whiteouts with attributes may be inside.
func hasMark(f *os.File, mark string, want byte) bool {
	buf := make([]byte, 8)
	n, err := unix.Fgetxattr(int(f.Fd()), xattrPrefix+mark, buf)
	return err == nil && (want == 0 || n == 1 && buf[0] == want)
}

// hostReason says why a path of the workspace could not be looked at.
func hostReason(err error) string {
	switch {
	case errors.Is(err, unix.EXDEV):
		return "another file system is mounted here on the host; the run did not see it"
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return "cannot be read on the host"
	}
	return "cannot be read on the host: " + err.Error()
}

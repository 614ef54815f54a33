package control

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxEntries bounds the files, folders and links of a workspace: each takes room of the file system that its size does not tell.
	maxEntries = 1_000_000
	// maxDepth bounds how deep its folders lie in each other. What goes by paths reaches none that is deeper than about 2,000, and mostly far fewer.
	maxDepth = 512
	// sizingTime bounds one look at a workspace.
	sizingTime = time.Minute
	// lastSizingTime bounds the last one, after the end.
	lastSizingTime = 5 * time.Second
	// sizersMost is how many are measured at the same time, each with two descriptors for each level.
	sizersMost = 2
)

// treeSize is how much is below a directory. Of a tree in which a bound is reached it is what was found before.
type treeSize struct {
	bytes   int64
	entries int
	// excess says which bound the tree is beyond, "" if none.
	excess string
	// partial says that not all was looked at: time was over, or something could not be read.
	partial bool
}

// size measures what the files below a directory take on the disk, where a sandbox may still be writing: whatever it puts in the place of what, nothing outside
// is looked at. A file counts once however many names it has; every name counts as an entry.
func (h *house) size(ctx context.Context, dir string, most time.Duration) treeSize {
	ctx, stop := context.WithTimeout(ctx, most)
	defer stop()
	select {
	case h.sizers <- struct{}{}:
		defer func() { <-h.sizers }()
	case <-ctx.Done():
		return treeSize{partial: true}
	}
	w := sizing{counted: map[[2]uint64]struct{}{}}
	w.enter(ctx, unix.AT_FDCWD, dir, 0)
	return w.treeSize
}

type sizing struct {
	treeSize
	counted map[[2]uint64]struct{}
}

// enter measures what is in a directory. One that its owner may not read is made readable meanwhile: nothing is hidden by its mode.
func (w *sizing) enter(ctx context.Context, parent int, name string, depth int) {
	handle, err := unix.Openat(parent, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		w.cannot(err)
		return
	}
	defer unix.Close(handle)
	fd, err := unix.Openat(handle, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.EACCES) {
		defer mend(handle)()
		fd, err = unix.Openat(handle, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		w.cannot(err)
		return
	}
	defer unix.Close(fd)
	w.walk(ctx, fd, depth+1)
}

// mend lets the owner of a directory read it, until undo is called. If the sandbox has set another mode meanwhile, that stays.
func mend(handle int) (undo func()) {
	const reading = 0o500
	var before unix.Stat_t
	path := "/proc/self/fd/" + strconv.Itoa(handle)
	if unix.Fstat(handle, &before) != nil || unix.Chmod(path, before.Mode&0o7777|reading) != nil {
		return func() {} // whoever opens it is told
	}
	return func() {
		var now unix.Stat_t
		if unix.Fstat(handle, &now) == nil && now.Mode == before.Mode|reading {
			_ = unix.Chmod(path, before.Mode&0o7777) // it was so when it could be read
		}
	}
}

func (w *sizing) cannot(err error) {
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP): // another thing, or none, by now
	default:
		w.partial = true
	}
}

func (w *sizing) walk(ctx context.Context, dir, depth int) {
	buf := make([]byte, 8<<10)
	for {
		if ctx.Err() != nil {
			w.partial = true
			return
		}
		n, err := unix.ReadDirent(dir, buf)
		if err != nil {
			w.cannot(err)
		}
		if err != nil || n <= 0 {
			return
		}
		_, _, some := unix.ParseDirent(buf[:n], -1, nil)
		for _, name := range some {
			if w.entries++; w.entries > maxEntries {
				w.excess = fmt.Sprintf("more than %d files and folders", maxEntries)
				return
			}
			if w.entry(ctx, dir, name, depth); w.excess != "" {
				return
			}
		}
	}
}

func (w *sizing) entry(ctx context.Context, dir int, name string, depth int) {
	var st unix.Stat_t
	if err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		w.cannot(err)
		return
	}
	isDir := st.Mode&unix.S_IFMT == unix.S_IFDIR
	if !isDir && st.Nlink > 1 {
		key := [2]uint64{st.Dev, st.Ino}
		if _, again := w.counted[key]; again {
			return
		}
		w.counted[key] = struct{}{}
	}
	w.bytes += st.Blocks * 512 // stat(2): in units of 512 bytes whatever the file system
	switch {
	case !isDir:
	case depth >= maxDepth:
		w.excess = fmt.Sprintf("folders more than %d deep", maxDepth)
	default:
		w.enter(ctx, dir, name, depth)
	}
}

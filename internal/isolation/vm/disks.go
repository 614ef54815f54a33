package vm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/disk"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/guest/boot"
	"github.com/cofferdam/cofferdam/internal/scratch"
	"github.com/cofferdam/cofferdam/internal/supervisor/call"
)

// diskCapacity is the size that every disk seems to have, in bytes. It is one for all, so that a machine that was prepared with other disks fits; what an image does
// not need is a hole in its file.
const diskCapacity = 64 << 30

// disks are a sandbox's files as the machine gets them: open, read-only, and without a name, but for the root's where that is kept for the next sandbox.
type disks struct {
	files     []*os.File // the root is the first
	sources   []source   // of the others
	workspace *boot.Workspace
	mounts    []boot.Mount
}

func (d *disks) close() {
	for _, f := range d.files {
		_ = f.Close() // only read
	}
}

// scratch is what the machine is told of scratch. Its disk, if it has one, is behind the others.
func (d *disks) scratch(spec call.Create) boot.Scratch {
	s := boot.Scratch{Bytes: spec.Limits.Disk, Files: scratchFiles(spec.Limits)}
	if spec.Scratch == scratch.Encrypted {
		s.Disk = new(len(d.files))
	}
	return s
}

// mostMounts is how many mounts a sandbox can have: root, folder and scratch may take a disk each.
const mostMounts = boot.MaxDisks - 3

// checkSpec refuses what a machine cannot have, with what to do instead.
func checkSpec(spec call.Create) error {
	switch {
	case spec.RootFS == "" && spec.From == "":
		return fault.New(fault.Invalid, "at level %s a sandbox has a root file system of its own, not this machine's", spec.Level).
			WithHint("make or get an image: cofferdam image build --help, cofferdam image pull REF; then give --image NAME")
	case spec.Workspace != nil && spec.Workspace.Mode == "rw":
		return fault.New(fault.Unsupported, "at level %s no folder is shared with a running sandbox", spec.Level).
			WithHint("leave the workspace an overlay and take the changes with cofferdam apply, or choose --isolation gvisor")
	case slices.ContainsFunc(spec.Mounts, func(m call.Mount) bool { return m.Write }):
		return fault.New(fault.Unsupported, "at level %s nothing of this machine can be written from inside", spec.Level).
			WithHint("mount it read-only, or choose --isolation gvisor")
	case len(spec.Mounts) > mostMounts:
		return fault.New(fault.Unsupported, "at level %s a sandbox can have %d mounts at most", spec.Level, mostMounts).WithHint("mount a folder that holds several")
	}
	return nil
}

// source is what a disk is made of: a folder, or one file.
type source struct {
	path string
	file bool
}

// planDisks says which disks a sandbox has besides its root, and where what is on them is seen.
func planDisks(spec call.Create) (*disks, error) {
	d := &disks{}
	add := func(s source) int {
		d.sources = append(d.sources, s)
		return len(d.sources) // the root is 0
	}
	if w := spec.Workspace; w != nil {
		mode := boot.Overlay
		if w.Mode != string(boot.Overlay) {
			mode = boot.ReadOnly
		}
		d.workspace = &boot.Workspace{Disk: add(source{path: w.Source}), Target: w.Target, Mode: mode}
	}
	// What lies deeper is mounted later, or it would be covered.
	sorted := slices.SortedStableFunc(slices.Values(spec.Mounts), func(a, b call.Mount) int {
		return strings.Count(a.Target, "/") - strings.Count(b.Target, "/")
	})
	for _, m := range sorted {
		info, err := os.Stat(m.Source)
		if err != nil {
			return nil, fault.New(fault.Invalid, "cannot mount %s", m.Source).WithHint("name an existing file or folder").Because(err)
		}
		d.mounts = append(d.mounts, boot.Mount{Disk: add(source{m.Source, !info.IsDir()}), Target: m.Target, File: !info.IsDir()})
	}
	return d, nil
}

// makeDisks makes and opens the disks of a sandbox.
func makeDisks(ctx context.Context, spec call.Create) (*disks, error) {
	d, err := planDisks(spec)
	if err != nil {
		return nil, err
	}
	if err := d.root(ctx, spec); err != nil {
		d.close()
		return nil, err
	}
	for _, s := range d.sources {
		if err := d.add(ctx, spec, s); err != nil {
			d.close()
			return nil, err
		}
	}
	return d, nil
}

// root opens the disk that is kept for an image, and makes it first if nobody has.
func (d *disks) root(ctx context.Context, spec call.Create) error {
	if spec.RootDisk == "" {
		return d.add(ctx, spec, source{path: spec.RootFS})
	}
	kept, err := os.Open(spec.RootDisk)
	if errors.Is(err, fs.ErrNotExist) {
		kept, err = keep(ctx, spec.RootFS, spec.RootDisk)
	}
	if err != nil {
		return fmt.Errorf("open the image's disk: %w", err)
	}
	d.files = append(d.files, kept)
	if info, err := kept.Stat(); err != nil || !info.Mode().IsRegular() || info.Size() != diskCapacity {
		return fault.New(fault.Unavailable, "%s is not a disk of this version", spec.RootDisk).WithHint("remove it: it is made again").Because(err)
	}
	return nil
}

// keep makes an image's disk under a name that appears when it is complete; killed before that, it leaves nothing. Two that do so at once make the same.
func keep(ctx context.Context, tree, path string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Dir(path), unix.O_TMPFILE|os.O_RDWR, 0o444)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if _, err := disk.Write(ctx, tree, f, options()); err != nil {
		return nil, err
	}
	// The way of open(2) to give a file without a name one.
	if err := unix.Linkat(unix.AT_FDCWD, itself(f), unix.AT_FDCWD, path, unix.AT_SYMLINK_FOLLOW); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	return os.Open(path)
}

// itself is a path that leads to an open file.
func itself(f *os.File) string { return "/proc/self/fd/" + strconv.Itoa(int(f.Fd())) }

// write makes the disk in a file.
func (s source) write(ctx context.Context, f *os.File) error {
	path, err := filepath.EvalSymlinks(s.path)
	if err != nil {
		return fault.New(fault.Invalid, "cannot show %s", s.path).Because(err)
	}
	if s.file {
		_, err = disk.WriteFile(ctx, path, boot.FileName, f, options())
	} else {
		_, err = disk.Write(ctx, path, f, options())
	}
	return err
}

// add makes a disk that no name leads to.
func (d *disks) add(ctx context.Context, spec call.Create, s source) error {
	f, err := nameless(spec)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := s.write(ctx, f); err != nil {
		return err
	}
	readable, err := os.Open(itself(f)) // once more, without the right to write
	if err != nil {
		return fmt.Errorf("open the disk again: %w", err)
	}
	d.files = append(d.files, readable)
	return nil
}

// nameless makes a file without a name, beside the sandbox's other files if it has some, or else beside its image's disk: where those lie, the person has chosen.
func nameless(spec call.Create) (*os.File, error) {
	var all []error
	dirs := []string{"/var/tmp", os.TempDir()}
	if spec.RootDisk != "" {
		dirs = append([]string{filepath.Dir(spec.RootDisk)}, dirs...)
	}
	if spec.Snapshot != nil {
		dirs = append([]string{spec.Snapshot.Making}, dirs...)
	}
	if spec.Changes != "" {
		dirs = append([]string{filepath.Dir(spec.Changes)}, dirs...)
	}
	for _, dir := range dirs {
		f, err := os.OpenFile(dir, unix.O_TMPFILE|os.O_RDWR, 0o444)
		if err == nil {
			return f, nil
		}
		all = append(all, err)
	}
	return nil, fault.New(fault.Unavailable, "no place for the sandbox's disks").WithHint("make room in /var/tmp, on a file system that knows O_TMPFILE (ext4, xfs, btrfs, tmpfs)").Because(errors.Join(all...))
}

// options are those of every disk. Owners are what level container shows: the same ids for root, and for an ordinary user himself as root.
func options() disk.Options {
	o := disk.Options{PadTo: diskCapacity}
	if os.Geteuid() != 0 {
		o.Owner = disk.RootFor(os.Getuid(), os.Getgid())
	}
	return o
}

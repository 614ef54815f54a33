package rootfs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// A view can be composed before it is known what is to be worked on. What was composed is kept as a detached copy of the stage; another process of the
// sandbox's user namespace, in a mount namespace of its own with the host's files, extends it later, and puts what came to it into the namespace in which the view is used.

// Unfinished is a view that can be extended: its stage as a detached tree, and the first number of an overlay that is not taken.
type Unfinished struct {
	Stage *os.File
	Taken int
	// Settled are directories, by their paths inside, whose number of subdirectories must stay.
	Settled []string
}

// Keep returns what it takes to extend the view once it has been entered. The caller closes the stage.
func (v *View) Keep() (Unfinished, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, stage, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return Unfinished{}, fmt.Errorf("keep the stage: %w", err)
	}
	return Unfinished{Stage: os.NewFile(uintptr(fd), "stage"), Taken: v.lower}, nil
}

// Added is a tree that came to a view.
type Added struct {
	Target string // absolute path inside
	Tree   *os.File
}

// Extension is what came to a view.
type Extension struct {
	Added []Added
	// Upper is the open directory in which the workspace's changes gather; nil if there are none.
	Upper *os.File
}

// resizeStage bounds scratch anew.
func resizeStage(size, files int64) error {
	hold, err := os.OpenFile(stage, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer hold.Close()
	return Resize(hold, size, files)
}

// Resize bounds scratch in memory anew, by a hold on its root directory. The caller has the right over it that who made it had.
func Resize(hold *os.File, size, files int64) error {
	fs, err := unix.Fspick(int(hold.Fd()), "", unix.FSPICK_CLOEXEC|unix.FSPICK_EMPTY_PATH)
	if err != nil {
		return fmt.Errorf("open scratch memory: %w", err)
	}
	defer unix.Close(fs)
	for key, value := range map[string]int64{"size": size, "nr_inodes": files} {
		if err := unix.FsconfigSetString(fs, key, strconv.FormatInt(value, 10)); err != nil {
			return fmt.Errorf("bound scratch memory: %s=%d: %w", key, value, err)
		}
	}
	if err := unix.FsconfigReconfigure(fs); err != nil {
		return fmt.Errorf("bound scratch memory: %w", err)
	}
	return nil
}

// Extend bounds scratch anew, if cfg.ScratchSize is not 0, and lays cfg.Layers, whose trees are open, over an unfinished view, and cfg.Trust into it. All else in cfg was settled when the view
// was composed. The caller is root of the view's user namespace, in a mount namespace of its own, which is used up; nothing is seen by others yet.
func Extend(cfg Config, from Unfinished) (*Extension, error) {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return nil, fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.MoveMount(int(from.Stage.Fd()), "", unix.AT_FDCWD, stage, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return nil, fmt.Errorf("put the stage back: %w", err)
	}
	if cfg.ScratchSize > 0 {
		if err := resizeStage(cfg.ScratchSize, cfg.ScratchFiles); err != nil {
			return nil, err
		}
	}
	b := builder{cfg: cfg, view: &View{root: stage + viewBelow}, uppers: from.Taken}
	if err := b.unsettled(from.Settled); err != nil {
		return nil, err
	}
	mounted, err := b.trustInView()
	if err != nil {
		return nil, fmt.Errorf("add the sandbox's own authorities: %w", err)
	}
	if err := b.layers(); err != nil {
		return nil, fmt.Errorf("compose layers: %w", err)
	}
	for i, l := range cfg.Layers {
		if !slices.ContainsFunc(cfg.Layers[:i], func(above Layer) bool { return strings.HasPrefix(l.Target, above.Target+"/") }) { // else it comes along with that one
			mounted = append(mounted, l.Target)
		}
	}
	x := &Extension{Upper: b.view.Upper}
	for _, target := range mounted {
		tree, err := b.takeAlong(target)
		if err != nil {
			return nil, fmt.Errorf("take %s along: %w", target, err)
		}
		x.Added = append(x.Added, Added{Target: target, Tree: tree})
	}
	return x, nil
}

// takeAlong opens a detached copy of what is mounted at a path of the view.
func (b *builder) takeAlong(target string) (*os.File, error) {
	at, err := straight(b.view.root + target)
	if err != nil {
		return nil, err
	}
	defer at.Close()
	fd, err := unix.OpenTree(int(at.Fd()), "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE|unix.AT_EMPTY_PATH)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), target), nil
}

// straight opens a path on the way to which nothing is a link.
func straight(path string) (*os.File, error) {
	fd, err := unix.Openat2(unix.AT_FDCWD, path, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS})
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), path), nil
}

// unsettled refuses layers for which a place would have to be made in a settled directory that counts its subdirectories. One that several trees make up does not.
func (b *builder) unsettled(settled []string) error {
	for _, l := range b.cfg.Layers {
		at := l.Target
		for at != "/" {
			if _, err := os.Lstat(b.in(at)); err == nil {
				break
			}
			at = filepath.Dir(at)
		}
		var s unix.Stat_t
		if err := unix.Lstat(b.in(at), &s); err != nil {
			return err
		}
		if at != l.Target && s.Nlink != 1 && slices.Contains(settled, at) {
			return fmt.Errorf("%s: nothing can be made in %s any more", l.Target, at)
		}
	}
	return nil
}

// trustInView adds authorities to the lists of a composed view, in the place of whatever file or link is there. Where the view is read-only the new list is mounted over
// the old one. It returns at which paths it did.
func (b *builder) trustInView() (mounted []string, err error) {
	if len(b.cfg.Trust) == 0 {
		return nil, nil
	}
	root, err := os.OpenRoot(b.view.root)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	err = b.trusting(listing{b.view.root, ""}, func(path string, data []byte) error {
		err := replaceFile(root, strings.TrimPrefix(path, "/"), string(data))
		if errors.Is(err, unix.EROFS) {
			mounted = append(mounted, path)
			err = b.mountFile(path, stage+"/trust"+strings.ReplaceAll(path, "/", "-"), data)
		}
		return err
	})
	return mounted, err
}

// mountFile mounts a new file over one of the view that is no link.
func (b *builder) mountFile(path, source string, data []byte) error {
	if err := os.WriteFile(source, data, 0o644); err != nil {
		return err
	}
	tree, err := Tree(source, false, 0, -1)
	if err != nil {
		return err
	}
	defer tree.Close()
	at, err := straight(b.view.root + path)
	if err != nil {
		return err
	}
	defer at.Close()
	return attachAt(tree, at)
}

// Attach enters the mount namespace in which a view is used and puts there what came to it. at is where the view lies in it, empty for its root.
// The calling goroutine's thread stays there, locked, and is good for nothing else.
func (x *Extension) Attach(namespace *os.File, at string) error {
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_FS); err != nil { // threads that share their root directory cannot change namespaces (setns(2))
		return fmt.Errorf("stand alone: %w", err)
	}
	if err := unix.Setns(int(namespace.Fd()), unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("enter the view's namespace: %w", err)
	}
	for _, a := range x.Added {
		place, err := straight(at + a.Target) // made or looked at when it was composed; no program of the sandbox's runs yet
		if err != nil {
			return fmt.Errorf("find %s: %w", a.Target, err)
		}
		err = attachAt(a.Tree, place)
		_ = place.Close() // only looked at
		if err != nil {
			return err
		}
	}
	return nil
}

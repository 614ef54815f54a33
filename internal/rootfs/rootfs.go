// Package rootfs (SANDBOX) composes what a sandbox sees as its file system, inside the sandbox's own mount namespace and before any untrusted program.
//
// All sources are detached mount trees, opened before anything is mounted, so that no path is looked up twice.
// Everything the sandbox writes lands on one size-limited scratch file system in memory that dies with the namespace.
package rootfs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Layer is a detached tree that becomes part of the view.
type Layer struct {
	Target string   // absolute path inside
	Tree   *os.File // from open_tree(2), ids already mapped where that is wanted
	Mode   Mode
	// Pins lists directories below Target that cannot be moved or removed in mode ReadWrite, and ReadOnly paths that cannot be written.
	Pins, ReadOnly [][]byte
	File           bool // the tree is a single file
	Host           bool // the tree shows a part of the host's system, so that Hidden applies below Target
}

// Mode says what writing to a layer does. The zero value refuses writing.
type Mode uint8

// The modes of a layer.
const (
	ReadOnly  Mode = iota // writing is refused; seen through an overlay, so that the host's sockets and FIFOs are others inside
	Bound                 // writing is refused; the host's very tree with what is mounted below it, where no overlay is possible
	ReadWrite             // writing reaches the host
	Overlay               // writing lands on scratch
)

// Config is one view.
type Config struct {
	// Root is the lower tree of the root overlay. Nil means: an empty root, in which Links and Layers are put.
	Root *os.File
	// Links are symbolic links at the root of an empty root, by name.
	Links map[string]string
	// HostRoot says that Root shows the host, so that Hidden applies.
	HostRoot bool
	// Hidden lists what is left out of what shows the host; see HideOn.
	Hidden []Hidden
	// Layers are put in place in order, after the root.
	Layers []Layer
	// Workspace is the index in Layers whose writes are collected at the end, -1 for none.
	Workspace int
	// Scratch is the detached mount of what everything written lands on. Nil means: one in memory is made here, of at most ScratchSize bytes and ScratchFiles files.
	Scratch                   *os.File
	ScratchSize, ScratchFiles int64
	Hostname                  string
	// MachineID is the sandbox's own /etc/machine-id.
	MachineID string
	// Nameserver goes into /etc/resolv.conf.
	Nameserver string
	// Trust is added to the lists of certificate authorities that the view has, in PEM.
	Trust []byte
	// Sockets are paths inside at which Unix sockets of the host would be reachable; they are covered.
	Sockets []string
	// Runner is the executable of process 1, bound read-only at RunnerPath.
	Runner *os.File
	// OwnKernel says that the sandbox has a kernel of its own, which brings /proc and /dev: the view has only places for them.
	OwnKernel bool
	// Devices are device files of the host, by their names in /dev, that such a kernel opens. The sandbox does not see them.
	Devices []string
	// OwnMachine says that the caller is root of a whole machine, the sandbox's own, and not only of a user namespace. Overlay's marks are then those of root, which also
	// kernels before 6.6 keep on scratch memory.
	OwnMachine bool
}

// RunnerPath is where the runner's executable lies inside.
const RunnerPath = "/run/cofferdam/runner"

// stage is where the view is composed. It exists on every host; what it holds was opened before.
const stage = "/tmp"

// View is a composed root, not yet entered.
type View struct {
	root string
	// Upper is the open directory in which the workspace's changes gather; nil if there are none.
	Upper *os.File
	// Scratch is open as a path. The caller closes it.
	Scratch *os.File
	around  map[string]*os.File // device files of the host by their names in /dev, for Surround
	lower   int                 // how many lower trees lie on the stage
}

// Compose builds the view. The caller is root of the mount namespace's user namespace.
func Compose(cfg Config) (*View, error) {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return nil, fmt.Errorf("make mounts private: %w", err)
	}
	devices, err := openDevices(deviceNames)
	if err != nil {
		return nil, err
	}
	around, err := openDevices(cfg.Devices)
	if err != nil {
		return nil, err
	}
	around["null"] = devices["null"]
	scratch, err := mountScratch(cfg)
	if err != nil {
		return nil, fmt.Errorf("mount scratch: %w", err)
	}
	b := builder{cfg: cfg, view: &View{root: stage + viewBelow, around: around, Scratch: scratch}}
	steps := []struct {
		what string
		do   func() error
	}{
		{"root", b.root},
		{"kernel's files", func() error { return b.kernel(devices) }},
		{"layers", b.layers},
		{"socket covers", b.coverSockets},
		{"runner", b.runner},
	}
	for _, s := range steps {
		if err := s.do(); err != nil {
			return nil, fmt.Errorf("compose %s: %w", s.what, err)
		}
	}
	b.view.lower = b.uppers
	return b.view, nil
}

// Enter makes the view the root of the calling process and drops the old one.
func (v *View) Enter() error {
	if err := unix.Chdir(v.root); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil { // pivot_root(2): the old root is stacked on the new one
		return fmt.Errorf("pivot_root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("leave the old root: %w", err)
	}
	return unix.Chdir("/")
}

// viewBelow is where on the stage the view lies.
const viewBelow = "/root"

// Surroundings are what a program sees that runs between the host and a sandbox: the view, itself, and what it needs of the host's kernel.
type Surroundings struct {
	View    string // the root of the sandbox
	Program string // the program's executable, read-only
	Work    string // an empty directory on scratch, for the program
}

// Surround makes the stage the root of the calling process and drops the old one. Nothing of the host is left there but what the view is made of.
func (v *View) Surround(program *os.File) (Surroundings, error) {
	s := Surroundings{View: viewBelow, Program: "/program", Work: "/work"}
	for _, dir := range []string{"/proc", "/dev", "/tmp", "/etc", s.Work} {
		if err := os.Mkdir(stage+dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return s, err
		}
	}
	trees := map[string]*os.File{s.Program: program}
	for name, tree := range v.around {
		trees["/dev/"+name] = tree
	}
	for path, tree := range trees {
		if err := errors.Join(os.WriteFile(stage+path, nil, 0o600), attach(tree, stage+path)); err != nil {
			return s, err
		}
	}
	if err := unix.Mount("proc", stage+"/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return s, fmt.Errorf("mount /proc: %w", err)
	}
	for n := range v.lower { // not every number was used; the overlays hold them; by their paths they would be one more way to the host's files
		if err := unix.Unmount(stage+"/lower"+strconv.Itoa(n), unix.MNT_DETACH); err != nil && !errors.Is(err, unix.ENOENT) {
			return s, fmt.Errorf("let go of a lower tree: %w", err)
		}
	}
	return s, (&View{root: stage}).Enter()
}

type builder struct {
	cfg  Config
	view *View
	// uppers counts the overlays made.
	uppers int
}

// in returns the staged path of a path inside the view, without following anything that lies there: callers make sure that parents are directories of the view.
func (b *builder) in(path string) string { return filepath.Join(b.view.root, path) }

// root puts the root in place: an overlay over one lower tree, or an empty directory on scratch with links and the directories that every sandbox has of its own.
func (b *builder) root() error {
	if err := os.Mkdir(b.view.root, 0o755); err != nil {
		return err
	}
	if b.cfg.Root != nil {
		if _, err := b.mountOverlay(Layer{Target: "/", Tree: b.cfg.Root, Mode: Overlay, Host: b.cfg.HostRoot}, b.view.root); err != nil {
			return err
		}
		_, err := b.mountPoint("/root") // home of the command; a foreign tree may have none
		return err
	}
	if err := unix.Mount(b.view.root, b.view.root, "", unix.MS_BIND, ""); err != nil { // pivot_root wants a mount
		return err
	}
	for name, target := range b.cfg.Links {
		if err := os.Symlink(target, b.in("/"+name)); err != nil {
			return err
		}
	}
	for _, h := range Hide() { // at the root, what stands in for a hidden directory is the sandbox's own
		if strings.Count(h.Path, "/") == 1 {
			if err := mkdirMode(b.in(h.Path), h.mode()); err != nil {
				return err
			}
		}
	}
	return os.Mkdir(b.in("/sys"), 0o755)
}

// attachLower mounts a detached tree as an overlay's lower directory and makes the upper one beside it.
func (b *builder) attachLower(tree *os.File) (lower, upper string, err error) {
	n := strconv.Itoa(b.uppers)
	b.uppers++
	lower, upper = stage+"/lower"+n, stage+"/upper"+n
	for _, dir := range []string{lower, upper, upper + ".work"} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return "", "", err
		}
	}
	if err := attach(tree, lower); err != nil {
		return "", "", err
	}
	return lower, upper, copyAttributes(lower, upper)
}

// mountOverlay shows a layer through an overlay whose upper directory is on scratch, and returns that directory.
// What the view leaves out or has of its own is laid into the upper directory first.
//
// userxattr: overlay's own marks are in the user namespace's reach (overlayfs.rst, "User xattr"). It also turns off what is turned off by name otherwise: marks by which one
// file stands for another.
func (b *builder) mountOverlay(l Layer, target string) (upper string, err error) {
	lower, upper, err := b.attachLower(l.Tree)
	if err != nil {
		return "", err
	}
	if l.Host {
		if err := hideInUpper(lower, upper, l.Target, b.cfg.Hidden); err != nil {
			return "", fmt.Errorf("hide the host's secrets: %w", err)
		}
	}
	if l.Host || l.Target == "/" {
		if err := errors.Join(b.seedIdentity(lower, upper, l.Target), b.seedTrust(lower, upper, l.Target)); err != nil {
			return "", err
		}
	}
	flags := uintptr(unix.MS_NODEV | unix.MS_NOSUID)
	if l.Mode == ReadOnly {
		flags |= unix.MS_RDONLY
	}
	options := "lowerdir=" + lower + ",upperdir=" + upper + ",workdir=" + upper + ".work"
	if b.cfg.OwnMachine {
		options += ",redirect_dir=off,metacopy=off,index=off"
	} else {
		options += ",userxattr"
	}
	if err := unix.Mount("overlay", target, "overlay", flags, options); err != nil {
		return "", fmt.Errorf("mount overlay (needs Linux 6.6 or later for overlays on scratch memory): %w", err)
	}
	return upper, nil
}

// layers attaches workspace and mounts.
func (b *builder) layers() error {
	for i, l := range b.cfg.Layers {
		if err := b.layer(l, i == b.cfg.Workspace); err != nil {
			return fmt.Errorf("%s: %w", l.Target, err)
		}
	}
	return nil
}

func (b *builder) layer(l Layer, collected bool) error {
	place, err := b.place(l.Target, l.File)
	if err != nil {
		return err
	}
	defer place.Close()
	switch l.Mode {
	case Overlay, ReadOnly:
		upper, err := b.mountOverlay(l, name(place))
		if err == nil && collected && l.Mode == Overlay {
			b.view.Upper, err = os.Open(upper)
		}
		return err
	}
	defer l.Tree.Close()
	if err := attachAt(l.Tree, place); err != nil {
		return err
	}
	if l.Mode == ReadWrite {
		if l.File {
			return nil
		}
		if err := freeze(name(l.Tree), l.Pins, 0); err != nil {
			return err
		}
		return freeze(name(l.Tree), l.ReadOnly, unix.MOUNT_ATTR_RDONLY)
	}
	if !l.Host {
		return nil
	}
	if err := b.hideByMount(l.Target); err != nil {
		return err
	}
	return errors.Join(b.bindIdentity(l.Target), b.bindTrust(l.Target))
}

// freeze binds paths below target onto themselves with extra mount attributes: what is mounted on cannot be renamed or removed.
// A path that does not exist is passed over: the caller knows that it cannot be kept from being made.
func freeze(target string, paths [][]byte, attributes uint64) error {
	root, err := os.OpenRoot(target)
	if err != nil {
		return err
	}
	defer root.Close()
	for _, p := range paths {
		err := freezeOne(root, string(p), attributes)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("guard %q: %w", p, err)
		}
	}
	return nil
}

func freezeOne(root *os.Root, path string, attributes uint64) error {
	f, err := openBeneath(root, path)
	if err != nil {
		return err
	}
	defer f.Close()
	tree, err := unix.OpenTree(int(f.Fd()), "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH|unix.AT_RECURSIVE)
	if err != nil {
		return err
	}
	defer unix.Close(tree)
	if attributes != 0 {
		if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &unix.MountAttr{Attr_set: attributes}); err != nil {
			return err
		}
	}
	return unix.MoveMount(tree, "", int(f.Fd()), "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
}

// openBeneath opens a path below root without following links out of it.
func openBeneath(root *os.Root, path string) (*os.File, error) {
	dir, err := root.Open(".")
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC | unix.O_NOFOLLOW, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS}
	fd, err := unix.Openat2(int(dir.Fd()), path, &how)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), path), nil
}

// mountPoint makes an absolute path of the view ready to be mounted on: a directory, with parents as needed. Nobody else can change the path: see place.
func (b *builder) mountPoint(path string) (string, error) {
	f, err := b.place(path, false)
	if err != nil {
		return "", err
	}
	return b.in(path), f.Close()
}

// coverSockets puts an empty file over each Unix socket of the host that a bound tree would show.
func (b *builder) coverSockets() error {
	if len(b.cfg.Sockets) == 0 {
		return nil
	}
	empty := stage + "/socket"
	if err := os.WriteFile(empty, nil, 0o000); err != nil {
		return err
	}
	for _, path := range b.cfg.Sockets {
		var s unix.Stat_t
		target := b.in(path)
		if unix.Lstat(target, &s) != nil || s.Mode&unix.S_IFMT != unix.S_IFSOCK {
			continue // hidden already, or removed meanwhile
		}
		if err := unix.Mount(empty, target, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	return nil
}

// runner binds the runner's executable read-only: neither the file on the host nor a copy in memory can be changed through /proc/1/exe (CVE-2019-5736).
func (b *builder) runner() error {
	place, err := b.place(RunnerPath, true)
	if err != nil {
		return err
	}
	defer place.Close()
	defer b.cfg.Runner.Close()
	return attachAt(b.cfg.Runner, place)
}

// identityFile is one of the files by which programs know where they are.
type identityFile struct{ path, content string }

func (b *builder) identity() []identityFile {
	return []identityFile{
		{"/etc/hostname", b.cfg.Hostname + "\n"},
		{"/etc/hosts", "127.0.0.1 localhost " + b.cfg.Hostname + "\n::1 localhost ip6-localhost ip6-loopback\n"},
		{"/etc/resolv.conf", "# every name is answered by the gateway, under policy\nnameserver " + b.cfg.Nameserver + "\noptions timeout:5 attempts:2\n"},
		{"/etc/machine-id", b.cfg.MachineID + "\n"},
	}
}

// seedIdentity lays the identity files that lie below prefix into an overlay's upper directory, in the place of whatever the lower one has there.
func (b *builder) seedIdentity(lower, upper, prefix string) error {
	for _, f := range b.identity() {
		path, ok := strings.CutPrefix(f.path, strings.TrimSuffix(prefix, "/"))
		if !ok || path == "" || path[0] != '/' {
			continue
		}
		if err := copyParents(lower, upper, path); err != nil {
			return err
		}
		if err := os.Remove(upper + path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := os.WriteFile(upper+path, []byte(f.content), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// bindIdentity binds the identity files that lie below prefix over the host's, where that directory is bound itself.
func (b *builder) bindIdentity(prefix string) error {
	for i, f := range b.identity() {
		if !strings.HasPrefix(f.path, prefix+"/") {
			continue
		}
		if err := b.bindFile(f.path, stage+"/identity"+strconv.Itoa(i), f.content); err != nil {
			return err
		}
	}
	return nil
}

// replaceFile puts a plain file where a file, a link or nothing is.
func replaceFile(root *os.Root, path, content string) error {
	if err := root.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := root.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return root.WriteFile(path, []byte(content), 0o644)
}

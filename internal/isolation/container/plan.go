package container

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/rootfs"
	"github.com/cofferdam/cofferdam/internal/supervisor/call"
)

// newPlan turns a specification into trees and modes.
func newPlan(spec call.Create, o Options) (plan, error) {
	p := plan{
		Spec: spec, Runner: o.Runner, Kernel: o.Kernel, Self: o.IDs.first(), Workspace: -1, Setgroups: o.IDs.Setgroups(), PIDs: spec.Limits.PIDs, Disk: spec.Limits.Disk, Files: spec.Limits.Files, Scratch: o.Scratch != nil,
		OwnTrees: !o.IDs.Trees, Root: o.IDs.Trees || spec.RootFS != "", MachineID: NewMachineID(), Waits: o.waits != nil || o.Closed,
	}
	p.Spec.Boot = "" // process 1 gets it on its standard input, set-up does not need it
	if m := o.Kernel.machine(); m != nil {
		return p, nil // what the sandbox sees is in files, and those are open
	}
	around := o.around
	if around == nil {
		seen, err := lookAround(spec.RootFS)
		if err != nil {
			return p, err
		}
		around = &seen
	}
	mounts := around.mounts
	p.Hidden = around.hidden
	switch {
	case spec.RootFS != "":
		if err := p.checkRootFS(); err != nil {
			return p, err
		}
	case p.Root:
		p.Layers = mounts.system()
	default:
		if err := p.systemLayers(mounts); err != nil {
			return p, err
		}
	}
	if w := spec.Workspace; w != nil {
		p.Workspace = len(p.Layers)
		l := layer{Source: w.Source, Target: w.Target, Mode: w.Mode, Pins: w.Pins, ReadOnly: w.ReadOnly, Alone: w.Alone}
		if err := p.add(l, mounts); err != nil {
			return p, err
		}
	}
	// What lies deeper is mounted later, or it would be covered.
	sorted := slices.SortedStableFunc(slices.Values(spec.Mounts), func(a, b call.Mount) int {
		return strings.Count(a.Target, "/") - strings.Count(b.Target, "/")
	})
	for _, m := range sorted {
		l := layer{Source: m.Source, Target: m.Target, Mode: "ro"}
		if m.Write {
			l.Mode = "rw"
		}
		if err := p.add(l, mounts); err != nil {
			return p, err
		}
	}
	p.Sockets = p.sockets()
	return p, nil
}

// planning begins a plan and returns what waits for it.
func planning(spec call.Create, o Options) func() (plan, error) {
	type result struct {
		plan plan
		err  error
	}
	done := make(chan result, 1)
	go func() {
		p, err := newPlan(spec, o)
		done <- result{p, err}
	}()
	return func() (plan, error) {
		r := <-done
		return r.plan, r.err
	}
}

// around is what a plan depends on of the machine.
type around struct {
	mounts mountTable
	hidden []rootfs.Hidden // nothing where the root is not this machine's
}

func lookAround(rootFS string) (a around, err error) {
	if a.mounts, err = readMounts(); err != nil || rootFS != "" {
		return a, err
	}
	passwd, err := os.ReadFile("/etc/passwd")
	if err != nil {
		return a, fmt.Errorf("find people's homes: %w", err)
	}
	a.hidden = rootfs.HideOn(string(passwd))
	return a, nil
}

// checkRootFS refuses a tree that an unprivileged user could not work in: what belongs to an id that the sandbox does not have cannot be changed there, not even by its root.
func (p plan) checkRootFS() error {
	var s unix.Stat_t
	if err := unix.Stat(p.Spec.RootFS, &s); err != nil {
		return fault.New(fault.Invalid, "cannot use the root file system %s", p.Spec.RootFS).Because(err)
	}
	if p.OwnTrees && int(s.Uid) != os.Getuid() {
		return fault.New(fault.Unsupported, "the root file system %s belongs to user %d", p.Spec.RootFS, s.Uid).WithHint("unpack it as yourself, or run as root")
	}
	return nil
}

// add appends a layer of the person's, whose source it looks at.
func (p *plan) add(l layer, mounts mountTable) error {
	info, err := os.Stat(l.Source)
	if err != nil {
		return fault.New(fault.Invalid, "cannot mount %s", l.Source).WithHint("name an existing file or folder").Because(err)
	}
	l.File = !info.IsDir()
	if l.File && !info.Mode().IsRegular() {
		return fault.New(fault.Invalid, "%s is neither a file nor a folder", l.Source).WithHint("sockets, pipes and devices of this machine cannot be shown inside")
	}
	overlay := p.overlays(l.Source, mounts)
	switch {
	case l.Mode == "overlay" && !overlay:
		return fault.New(fault.Unsupported, "other file systems are mounted below %s, over which an ordinary user can lay no overlay", l.Source).
			WithHint("use --workspace %s:rw or :ro, or a folder below it", l.Source)
	case l.Mode == "ro" && (l.File || !overlay):
		l.Mode = "bound"
	case l.Mode == "rw":
		p.Shared = true
	}
	p.Layers = append(p.Layers, l)
	return nil
}

// overlays says whether a directory can be the lower layer of an overlay: for an unprivileged user, if nothing is mounted below it (mount_namespaces(7), locked mounts).
func (p plan) overlays(dir string, mounts mountTable) bool { return !p.OwnTrees || !mounts.below(dir) }

// systemLayers composes the root of the host's system directories, read-only: an unprivileged user can lay no overlay over a root with mounts below it.
func (p *plan) systemLayers(mounts mountTable) error {
	p.Links = map[string]string{}
	for _, name := range rootfs.System() {
		path := "/" + name
		info, err := os.Lstat(path)
		if err != nil {
			continue // not every system has every directory
		}
		if info.Mode()&os.ModeSymlink != 0 {
			if p.Links[name], err = os.Readlink(path); err != nil {
				return err
			}
			continue
		}
		l := layer{Source: path, Target: path, Mode: "ro", Host: true}
		if !p.overlays(path, mounts) {
			l.Mode = "bound"
		}
		p.Layers = append(p.Layers, l)
	}
	return nil
}

// sockets lists, by their paths inside, the Unix sockets of this machine that lie in trees which the sandbox shares with it. Through an overlay a socket
// cannot be reached, since its inode is another; through a bound tree it can, read-only or not. They are covered before the sandbox starts.
func (p plan) sockets() []string {
	if !slices.ContainsFunc(p.Layers, layer.bound) {
		return nil
	}
	data, err := os.ReadFile("/proc/net/unix")
	if err != nil {
		return nil // a kernel without Unix sockets
	}
	var found []string
	for line := range strings.Lines(string(data)) {
		i := strings.Index(line, " /")
		if i < 0 {
			continue // without a name or with an abstract one, which the network namespace bounds
		}
		path := strings.TrimSuffix(line[i+1:], "\n")
		if inside, ok := p.inside(path); ok && !slices.Contains(found, inside) {
			found = append(found, inside)
		}
	}
	return found
}

// inside says where a path of the host is seen inside through a bound tree.
func (p plan) inside(path string) (string, bool) {
	for _, l := range p.Layers {
		if rest, ok := strings.CutPrefix(path, l.Source); ok && l.bound() && (rest == "" || rest[0] == '/') {
			return l.Target + rest, true
		}
	}
	return "", false
}

// bound says whether a layer is the host's very tree, not an overlay over it.
func (l layer) bound() bool { return l.Mode == "rw" || l.Mode == "bound" }

// direct says whether a directory of the host's itself is seen inside, in which somebody may listen on a Unix socket. He could be reached, whenever he began: a
// socket that is in the kernel's list when the sandbox starts is covered, but not one that is bound later, by a relative name, or in another network namespace.
// That the mount is read-only does not help, because connecting writes to nothing but the socket (path_permission in unix_find_bsd, sb_permission).
func (p plan) direct() bool { return slices.ContainsFunc(p.Layers, layer.direct) }

func (l layer) direct() bool {
	return l.bound() && !l.File && !l.Alone && !(l.Host && static(l.Source))
}

// static says whether a system directory holds only what does not change while the system runs, so that nobody listens there: sockets lie in /var and /run
// (Filesystem Hierarchy Standard 3.0, sections 3.7, 4.1 and 5). /opt is not among them, since packages there keep all they have in one place.
func static(dir string) bool {
	return slices.Contains([]string{"/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/usr", "/etc"}, dir)
}

// UnixSockets is the name under which a specification's BestEffort keeps named Unix sockets although they lead out.
const UnixSockets = "unix-sockets"

func (p plan) keepsSockets() bool { return slices.Contains(p.Spec.BestEffort, UnixSockets) }

// weaker tells what the specification gives away.
func (p plan) weaker() (weaker []string) {
	if !p.Scratch && p.Kernel.machine() == nil && swaps(swapList) {
		weaker = append(weaker, "scratch: may reach this machine's swap, which only root can forbid")
	}
	if p.direct() && p.keepsSockets() && p.Kernel == nil {
		weaker = append(weaker, UnixSockets+": programs that listen in a folder shared with the host can be reached")
	}
	return weaker
}

// SeenDirectly lists the system directories that this process can show in a sandbox only as they are, not through an overlay, and in which somebody may listen.
func SeenDirectly() (paths []string, err error) {
	p := plan{OwnTrees: os.Geteuid() != 0}
	if !p.OwnTrees {
		return nil, nil
	}
	mounts, err := readMounts()
	if err == nil {
		err = p.systemLayers(mounts)
	}
	for _, l := range p.Layers {
		if l.direct() {
			paths = append(paths, l.Source)
		}
	}
	return paths, err
}

// NewMachineID makes an id of machine-id(5)'s form, so that the host's stays unknown and two sandboxes differ.
func NewMachineID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // crypto/rand.Read never fails since Go 1.24
	return hex.EncodeToString(b[:])
}

// rootSource is the lower tree of the root.
func (p plan) rootSource() string {
	if p.Spec.RootFS != "" {
		return p.Spec.RootFS
	}
	return "/"
}

// open opens the trees that need the parent's privilege: all of them, with ids mapped through the child's user namespace. Without privilege it opens none.
func (p plan) open(pid int, ids IDs) ([]*os.File, error) {
	if !ids.Trees || p.Kernel.machine() != nil {
		return nil, nil
	}
	userns, err := os.Open(procPath(pid, "ns/user"))
	if err != nil {
		return nil, err
	}
	defer userns.Close()
	return p.trees(int(userns.Fd()))
}

// trees opens root, layers, runner and the program that is its kernel in order, as one list.
func (p plan) trees(userns int) (trees []*os.File, err error) {
	defer func() {
		if err != nil {
			for _, t := range trees {
				_ = t.Close() // unused
			}
			trees = nil
		}
	}()
	if p.Root {
		// The lower layer of an overlay is never written; read-only says so to the kernel too.
		t, err := rootfs.Tree(p.rootSource(), false, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV, userns)
		if err != nil {
			return trees, err
		}
		trees = append(trees, t)
	}
	layers, err := p.layerTrees(userns)
	trees = append(trees, layers...)
	if err != nil {
		return trees, err
	}
	for _, program := range p.programs() {
		t, err := rootfs.Tree(program, false, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV, -1)
		if err != nil {
			return trees, err
		}
		trees = append(trees, t)
	}
	return trees, nil
}

// layerTrees opens the layers in order. With an error come those that were opened before it, for the caller to close.
func (p plan) layerTrees(userns int) (trees []*os.File, err error) {
	for _, l := range p.Layers {
		t, err := rootfs.Tree(l.Source, p.OwnTrees && l.bound(), l.attributes(), userns)
		if err != nil && userns >= 0 && !l.Host {
			return trees, fault.New(fault.Unsupported, "the file system of %s cannot map ids", l.Source).
				WithHint("move it to ext4, xfs or btrfs, or run as an ordinary user").Because(err)
		}
		if err != nil {
			return trees, err
		}
		trees = append(trees, t)
	}
	return trees, nil
}

// programs are our own that go along.
func (p plan) programs() []string {
	if p.Kernel != nil {
		return []string{p.Runner, p.Kernel.Program}
	}
	return []string{p.Runner}
}

func (l layer) attributes() uint64 {
	a := uint64(unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV)
	if l.Mode != "rw" {
		a |= unix.MOUNT_ATTR_RDONLY
	}
	return a
}

// view turns a layer into the root file system's terms.
func (l layer) view(tree *os.File) rootfs.Layer {
	v := rootfs.Layer{Target: l.Target, Tree: tree, Pins: l.Pins, ReadOnly: l.ReadOnly, File: l.File, Host: l.Host}
	switch l.Mode {
	case "rw":
		v.Mode = rootfs.ReadWrite
	case "overlay":
		v.Mode = rootfs.Overlay
	case "bound":
		v.Mode = rootfs.Bound
	}
	return v
}

// checkTarget refuses places inside that would shadow what the sandbox itself needs.
func checkTarget(target string) error {
	if !filepath.IsAbs(target) || filepath.Clean(target) != target {
		return fault.New(fault.Invalid, "mount target %q is not a clean absolute path", target)
	}
	for _, own := range []string{"/proc", "/sys", "/dev", "/run/cofferdam"} {
		if target == own || strings.HasPrefix(target, own+"/") {
			return fault.New(fault.Invalid, "mount target %s lies in %s, which the sandbox has of its own", target, own)
		}
	}
	if slices.Contains([]string{"/etc", "/run", "/usr", "/bin", "/sbin", "/lib", "/lib64", "/usr/bin", "/usr/lib"}, target) {
		return fault.New(fault.Invalid, "a mount at %s would hide what the sandbox runs on", target).WithHint("choose a place below it, or another")
	}
	if target == "/" {
		return fault.New(fault.Invalid, "nothing can be mounted over the root").WithHint("use --rootfs DIR for another root")
	}
	return nil
}

// Check refuses a specification that cannot be carried out, before anything is made.
func Check(spec call.Create) error {
	targets := map[string]bool{}
	check := func(target string) error {
		if targets[target] {
			return fault.New(fault.Invalid, "two things are mounted at %s", target)
		}
		targets[target] = true
		return checkTarget(target)
	}
	if spec.Workspace != nil {
		if err := check(spec.Workspace.Target); err != nil {
			return err
		}
	}
	for _, m := range spec.Mounts {
		if err := check(m.Target); err != nil {
			return err
		}
	}
	if spec.Limits.Disk <= 0 {
		return fmt.Errorf("no bound for scratch")
	}
	return nil
}

package container

import (
	"errors"
	"fmt"
	"math"
	"os"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/frame"
	"github.com/cofferdam/cofferdam/internal/netns"
	"github.com/cofferdam/cofferdam/internal/rights"
	"github.com/cofferdam/cofferdam/internal/rootfs"
	"github.com/cofferdam/cofferdam/internal/seccomp"
	"github.com/cofferdam/cofferdam/internal/supervisor/call"
)

// fdParent is the child's socket to its parent; descriptor 0 is the boot file.
const fdParent = 3

// Ground is what a kernel of the sandbox's own is started on: everything around the calling process is built already. Descriptor 0 is the boot file.
type Ground struct {
	rootfs.Surroundings
	Network  *os.File // the namespace in which the sandbox's end of the cable is
	Hostname string
	PIDs     int64 // bound of processes inside, the runner's reserve included; 0 for none
	Disk     int64 // bound of what of scratch is in memory of its own, in bytes
	// OpenFiles bounds the descriptors of one process inside; 0 for none.
	OpenFiles int64
	// Capabilities are those of root inside, Tracing what the runner has besides.
	Capabilities []uintptr
	Tracing      bool
	Platform     string // as the specification has it
	Shared       bool   // something is writable for both the sandbox and the host
	Log          string // where to write about troubles
	Waits        bool   // the boot line comes later, through descriptor 0
}

// Become makes the calling process the kernel of a sandbox, with the runner in it. It returns only on failure.
type Become func(Ground) error

// Setup is the life of the child: it builds the sandbox around itself and becomes the runner, or where a plan says so a kernel with the runner in it.
// It returns only on failure.
//
// Everything here runs on one thread, because capabilities, no_new_privs, Landlock and seccomp belong to threads until the final exec.
func Setup(become Become) {
	runtime.LockOSThread()
	// Whatever the caller's shell had open must not come along (CVE-2024-21626): from descriptor 3 on, everything closes on exec.
	if err := unix.CloseRange(fdParent, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		os.Exit(1) // before the socket is known to be safe, there is nobody to tell
	}
	unix.Umask(0o022) // files that the view is made of have the modes that programs expect, whatever the caller's habit
	conn := call.NewConn(os.NewFile(fdParent, "parent"))
	err := setup(conn, become)
	_ = conn.Send(report{Error: refusal(err)}) // if the parent is gone there is nobody to tell
	os.Exit(1)
}

func setup(conn *call.Conn, become Become) error {
	var p plan
	if _, err := conn.Receive(&p); err != nil {
		return err
	}
	if p.Kernel.machine() != nil {
		return becomeMachine(conn, p)
	}
	inside, err := network(conn, p)
	if err != nil {
		return err
	}
	var go_ proceed
	trees, err := conn.Receive(&go_)
	if err != nil {
		return err
	}
	if p.scratch, trees, err = p.takeScratch(trees); err != nil {
		return err
	}
	if err := becomeSelf(p); err != nil {
		return err
	}
	if p.Waits {
		if err := engageSteward(conn); err != nil {
			return err
		}
	}
	view, err := compose(conn, p, &trees)
	if err != nil {
		return err
	}
	if p.Waits {
		if err := leaveStage(conn, view); err != nil {
			return err
		}
	}
	if p.Kernel != nil {
		return becomeKernel(conn, p, view, trees[len(trees)-1], inside, become)
	}
	if err := view.Enter(); err != nil {
		return err
	}
	if err := bound(p); err != nil {
		return err
	}
	return becomeRunner()
}

// becomeKernel leaves the host's files and turns into a kernel of the sandbox's own. What bounds the sandbox there is that kernel; what bounds that kernel, should
// it be taken over, are these namespaces, in which it has nobody's ids and a cable to the gateway, and the filters that it loads itself. Landlock is not
// for it: it must mount.
func becomeKernel(conn *call.Conn, p plan, view *rootfs.View, program, inside *os.File, become Become) error {
	around, err := view.Surround(program)
	if err != nil {
		return err
	}
	g := Ground{Surroundings: around, Network: inside, Hostname: p.Spec.Hostname, Disk: p.memoryScratch(), OpenFiles: p.Spec.Limits.OpenFiles, Tracing: p.Setgroups, Platform: p.Spec.Platform, Shared: p.Shared, Log: around.Work + "/log", Waits: p.Waits}
	if p.PIDs > 0 {
		g.PIDs = p.PIDs + frame.ReservedProcesses
	}
	for c := range rights.Kept(p.Shared) {
		g.Capabilities = append(g.Capabilities, c)
	}
	log, err := os.OpenFile(g.Log, os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	if err := conn.Send(report{Log: true}, log); err != nil {
		return err
	}
	_ = log.Close() // the parent has its own
	rights.Spare()
	if err := errors.Join(rights.ForbidCores(), unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)); err != nil {
		return err
	}
	if err := restrictKernel(p.Shared); err != nil {
		return err
	}
	return become(g)
}

// restrictKernel keeps a kernel of the sandbox's own, taken over or not, from making what would harm whoever meets it on the host's file systems: device nodes and
// whiteouts, and where the host shares a folder, set-id bits and file capabilities. All else is up to the filters that it loads itself.
func restrictKernel(shared bool) error {
	profile := seccomp.Profile{Default: seccomp.Allow}
	for _, kind := range []uint32{unix.S_IFCHR, unix.S_IFBLK} {
		const why = "device nodes and whiteouts"
		profile.Rules = append(profile.Rules,
			seccomp.Rule{Calls: []string{"mknod"}, When: []seccomp.Condition{seccomp.IntMasked(1, unix.S_IFMT, kind)}, Action: seccomp.Errno(unix.EPERM), Reason: why},
			seccomp.Rule{Calls: []string{"mknodat"}, When: []seccomp.Condition{seccomp.IntMasked(2, unix.S_IFMT, kind)}, Action: seccomp.Errno(unix.EPERM), Reason: why})
	}
	if shared {
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, unix.CAP_SETFCAP, 0, 0, 0); err != nil {
			return fmt.Errorf("drop the capability for file capabilities: %w", err)
		}
		profile = seccomp.WithoutSetID(profile)
		profile.Rules = slices.DeleteFunc(profile.Rules, func(r seccomp.Rule) bool { return slices.Contains(r.Calls, "openat2") }) // gVisor opens directories by it and makes no files
	}
	filter, err := seccomp.Compile(profile, seccomp.Native())
	if err != nil {
		return fmt.Errorf("compile the system call filter: %w", err)
	}
	if err := seccomp.Install(filter, 0); err != nil {
		return fmt.Errorf("install the system call filter: %w", err)
	}
	return nil
}

// network builds the room with one door and hands its sockets out. For a kernel with a network stack of its own it returns the namespace of the other end of the
// cable, for a machine the other end itself.
func network(conn *call.Conn, p plan) (inside *os.File, err error) {
	cfg := netns.Config{Networks: p.Spec.Networks, Everything: p.Spec.Everything, Closed: p.Waits}
	var l netns.Listeners
	switch {
	case p.Kernel.machine() != nil:
		l, inside, err = netns.SetupTap(cfg)
	case p.Kernel != nil:
		l, inside, err = netns.SetupDevice(cfg)
	default:
		l, err = netns.Setup(cfg)
	}
	if err != nil {
		return nil, fault.New(fault.Unsupported, "cannot build the sandbox's network").WithHint("cofferdam doctor says what this host lacks").Because(err)
	}
	if err := conn.Send(report{Listeners: true}, l.Files()...); err != nil {
		return nil, err
	}
	l.Close()
	return inside, nil
}

// becomeSelf takes on the first user and group of the user namespace, which is 0 but around a machine of an ordinary user, with no supplementary groups but those of
// devices that its kernel opens, and dies with its parent from here on: the kernel forgets that wish when ids change.
func becomeSelf(p plan) error {
	if p.Setgroups && len(p.Kernel.devices()) == 0 {
		if err := unix.Setgroups(nil); err != nil {
			return fmt.Errorf("drop groups: %w", err)
		}
	}
	if err := errors.Join(unix.Setresgid(p.Self, p.Self, p.Self), unix.Setresuid(p.Self, p.Self, p.Self)); err != nil {
		return fmt.Errorf("become user %d of the user namespace: %w", p.Self, err)
	}
	return dieWithParent()
}

func dieWithParent() error {
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return fmt.Errorf("ask to die with the supervisor: %w", err)
	}
	return nil
}

// compose makes the sandbox's names and file system, from trees that it opens itself where it has to.
func compose(conn *call.Conn, p plan, trees *[]*os.File) (*rootfs.View, error) {
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return nil, fmt.Errorf("make a cgroup namespace: %w", err)
	}
	if err := unix.Sethostname([]byte(p.Spec.Hostname)); err != nil {
		return nil, fmt.Errorf("set the host name: %w", err)
	}
	if p.OwnTrees {
		var err error
		if *trees, err = p.trees(-1); err != nil {
			return nil, err
		}
	}
	cfg, err := p.view(*trees)
	if err != nil {
		return nil, err
	}
	view, err := rootfs.Compose(cfg)
	if err != nil {
		return nil, fault.New(fault.Unsupported, "cannot compose the sandbox's file system").WithHint("cofferdam doctor says what this host lacks").Because(err)
	}
	if err := tellScratch(conn, view); err != nil {
		return nil, err
	}
	if view.Upper != nil {
		if err := conn.Send(report{Upper: true}, view.Upper); err != nil {
			return nil, err
		}
		_ = view.Upper.Close() // the parent has its own
	}
	return view, nil
}

// scratchFileSize is the average size of a scratch file assumed when the number of files is bounded: one file for each 4 KiB of scratch.
const scratchFileSize = 4 << 10

func (p plan) scratchFiles() int64 {
	if p.Files > 0 {
		return p.Files
	}
	return max(p.Disk/scratchFileSize, 1024)
}

// view puts the trees into their places.
func (p plan) view(trees []*os.File) (rootfs.Config, error) {
	want := len(p.Layers) + len(p.programs())
	if p.Root {
		want++
	}
	if len(trees) != want {
		return rootfs.Config{}, fmt.Errorf("got %d trees, want %d", len(trees), want)
	}
	cfg := rootfs.Config{
		Workspace: p.Workspace, Scratch: p.scratch, ScratchSize: p.Disk, ScratchFiles: p.scratchFiles(), HostRoot: p.Spec.RootFS == "",
		Hostname: p.Spec.Hostname, MachineID: p.MachineID, Nameserver: netns.Gateway4.String(), Runner: trees[want-len(p.programs())], OwnKernel: p.Kernel != nil, Sockets: p.Sockets, Links: p.Links, Hidden: p.Hidden, Trust: p.Spec.Trust,
	}
	for _, path := range p.Kernel.devices() {
		cfg.Devices = append(cfg.Devices, strings.TrimPrefix(path, "/dev/"))
	}
	if p.Root {
		cfg.Root, trees = trees[0], trees[1:]
	}
	for i, l := range p.Layers {
		cfg.Layers = append(cfg.Layers, l.view(trees[i]))
	}
	return cfg, nil
}

// bound gives up what the sandbox must not have.
func bound(p plan) error {
	profile := seccomp.Sandbox()
	if p.Shared {
		profile = seccomp.WithoutSetID(profile)
	}
	if p.direct() && !p.keepsSockets() {
		profile = seccomp.WithoutNamedSockets(profile)
	}
	var most uint64
	if p.PIDs > 0 {
		most = uint64(p.PIDs) + frame.ReservedProcesses // for process 1 with its reserve; what it starts gets less
	}
	return rights.GiveUp(rights.Bounds{Processes: most, OpenFiles: uint64(p.Spec.Limits.OpenFiles), Shared: p.Shared, Users: p.Setgroups, Profile: profile})
}

// becomeRunner executes the runner. All descriptors but the boot file close on exec.
func becomeRunner() error {
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	for fd := 1; fd <= 2; fd++ {
		if err := unix.Dup3(int(null.Fd()), fd, 0); err != nil {
			return fmt.Errorf("silence the runner: %w", err)
		}
	}
	err = syscall.Exec(rootfs.RunnerPath, []string{"cofferdam-runner"}, []string{"GOMAXPROCS=1"})
	return fmt.Errorf("start the runner: %w", err)
}

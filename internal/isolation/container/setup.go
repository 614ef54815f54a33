package container

import (
	"errors"
	"fmt"
	"math"
	"os"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/frame"
	"github.com/cofferdam/cofferdam/internal/netns"
	"github.com/cofferdam/cofferdam/internal/rootfs"
	"github.com/cofferdam/cofferdam/internal/seccomp"
	"github.com/cofferdam/cofferdam/internal/supervisor/call"
)

// fdParent is the child's socket to its parent; descriptor 0 is the boot file.
const fdParent = 3

// Setup is the life of the child: it builds the sandbox around itself and becomes the runner. It returns only on failure.
//
// Everything here runs on one thread, because capabilities, no_new_privs, Landlock and seccomp belong to threads until the final exec.
func Setup() {
	runtime.LockOSThread()
	// Whatever the caller's shell had open must not come along (CVE-2024-21626): from descriptor 3 on, everything closes on exec.
	if err := unix.CloseRange(fdParent, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		os.Exit(1) // before the socket is known to be safe, there is nobody to tell
	}
	unix.Umask(0o022) // files that the view is made of have the modes that programs expect, whatever the caller's habit
	conn := call.NewConn(os.NewFile(fdParent, "parent"))
	err := setup(conn)
	_ = conn.Send(report{Error: refusal(err)}) // if the parent is gone there is nobody to tell
	os.Exit(1)
}

func setup(conn *call.Conn) error {
	var p plan
	if _, err := conn.Receive(&p); err != nil {
		return err
	}
	if err := network(conn, p); err != nil {
		return err
	}
	var go_ proceed
	trees, err := conn.Receive(&go_)
	if err != nil {
		return err
	}
	if err := becomeRoot(p.Setgroups); err != nil {
		return err
	}
	if err := compose(conn, p, trees); err != nil {
		return err
	}
	if err := bound(p); err != nil {
		return err
	}
	return becomeRunner()
}

// network builds the room with one door and hands its sockets out.
func network(conn *call.Conn, p plan) error {
	l, err := netns.Setup(netns.Config{Networks: p.Spec.Networks, Everything: p.Spec.Everything})
	if err != nil {
		return fault.New(fault.Unsupported, "cannot build the sandbox's network").WithHint("cofferdam doctor says what this host lacks").Because(err)
	}
	if err := conn.Send(report{Listeners: true}, l.Files()...); err != nil {
		return err
	}
	l.Close()
	return nil
}

// becomeRoot takes on user and group 0 of the user namespace, with no supplementary groups, and dies with its parent from here on:
// the kernel forgets that wish when ids change.
func becomeRoot(setgroups bool) error {
	if setgroups {
		if err := unix.Setgroups(nil); err != nil {
			return fmt.Errorf("drop groups: %w", err)
		}
	}
	if err := errors.Join(unix.Setresgid(0, 0, 0), unix.Setresuid(0, 0, 0)); err != nil {
		return fmt.Errorf("become root of the user namespace: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return fmt.Errorf("ask to die with the supervisor: %w", err)
	}
	return nil
}

// compose makes the sandbox's names and file system and enters them.
func compose(conn *call.Conn, p plan, trees []*os.File) error {
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return fmt.Errorf("make a cgroup namespace: %w", err)
	}
	if err := unix.Sethostname([]byte(p.Spec.Hostname)); err != nil {
		return fmt.Errorf("set the host name: %w", err)
	}
	if p.OwnTrees {
		var err error
		if trees, err = p.trees(-1); err != nil {
			return err
		}
	}
	cfg, err := p.view(trees)
	if err != nil {
		return err
	}
	view, err := rootfs.Compose(cfg)
	if err != nil {
		return fault.New(fault.Unsupported, "cannot compose the sandbox's file system").WithHint("cofferdam doctor says what this host lacks").Because(err)
	}
	if view.Upper != nil {
		if err := conn.Send(report{Upper: true}, view.Upper); err != nil {
			return err
		}
		_ = view.Upper.Close() // the parent has its own
	}
	return view.Enter()
}

// scratchFileSize is the average size of a scratch file assumed when the number of files is bounded: one file for each 4 KiB of scratch.
const scratchFileSize = 4 << 10

// view puts the trees into their places.
func (p plan) view(trees []*os.File) (rootfs.Config, error) {
	want := len(p.Layers) + 1 // the runner
	if p.Root {
		want++
	}
	if len(trees) != want {
		return rootfs.Config{}, fmt.Errorf("got %d trees, want %d", len(trees), want)
	}
	cfg := rootfs.Config{
		Workspace: p.Workspace, ScratchSize: p.Disk, ScratchFiles: max(p.Disk/scratchFileSize, 1024), HostRoot: p.Spec.RootFS == "",
		Hostname: p.Spec.Hostname, MachineID: p.MachineID, Nameserver: netns.Gateway4.String(), Runner: trees[len(trees)-1], Sockets: p.Sockets, Links: p.Links, Hidden: p.Hidden, Trust: p.Spec.Trust,
	}
	if p.Root {
		cfg.Root, trees = trees[0], trees[1:]
	}
	for i, l := range p.Layers {
		cfg.Layers = append(cfg.Layers, l.view(trees[i]))
	}
	return cfg, nil
}

// bound gives up what the sandbox must not have: the order matters, since each step needs rights that a later one takes.
func bound(p plan) error {
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("500"), 0) // a wish: under memory pressure the sandbox goes before the user's programs
	if p.PIDs > 0 {
		// For process 1 with its reserve; what it starts gets less. The host's user 0 is exempt, but no sandbox has it.
		most := uint64(p.PIDs) + frame.ReservedProcesses
		limit := unix.Rlimit{Cur: most, Max: most}
		if err := unix.Setrlimit(unix.RLIMIT_NPROC, &limit); err != nil {
			return fmt.Errorf("limit processes: %w", err)
		}
	}
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("forbid core dumps: %w", err)
	}
	if err := restrictCapabilities(p.Shared, p.Setgroups); err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("set no_new_privs: %w", err)
	}
	if err := restrictLandlock(); err != nil {
		return err
	}
	profile := seccomp.Sandbox()
	if p.Shared {
		profile = seccomp.WithoutSetID(profile)
	}
	if p.direct() && !p.keepsSockets() {
		profile = seccomp.WithoutNamedSockets(profile)
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

package container

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/netns"
	"github.com/cofferdam/cofferdam/internal/rights"
	"github.com/cofferdam/cofferdam/internal/rootfs"
	"github.com/cofferdam/cofferdam/internal/seccomp"
	"github.com/cofferdam/cofferdam/internal/supervisor/call"
)

// nobody is the user and group that imitates a machine: never root of the user namespace (the last id that every sandbox has, see IDCount).
const nobody = 65534

// becomeMachine turns the child into a program that imitates a machine. What holds a sandbox there is the machine; what holds the program, should it be taken over from
// inside, is what is done here: namespaces in which it is alone, an empty network, files that are only its own program's and read-only, nobody's ids, no
// capability, no new program, no socket.
func becomeMachine(conn *call.Conn, p plan) error {
	m := p.Kernel.Machine
	wire, err := network(conn, p)
	if err != nil {
		return err
	}
	// Before the ids change, for the caller's own files may be closed to others.
	shown, err := openShown(*m)
	if err != nil {
		return err
	}
	var go_ proceed
	if _, err := conn.Receive(&go_); err != nil {
		return err
	}
	if err := becomeSelf(p); err != nil {
		return err
	}
	if p.Waits {
		signal.Ignore(unix.SIGCHLD) // the machine's program will not take note of the steward's end
		if err := engageSteward(conn); err != nil {
			return err
		}
	}
	if m.Room {
		if err := netns.LeaveTap(wire, nobody); err != nil {
			return err
		}
	}
	if err := leaveHost(p); err != nil {
		return err
	}
	if m.Changes > 0 {
		if err := gather(conn, m.Changes, m.ChangedFiles); err != nil {
			return err
		}
	}
	if err := rootfs.EnterBare(shown, m.Proc, m.Sockets, nobody); err != nil {
		return fault.New(fault.Unsupported, "cannot build the place for the virtual machine").WithHint("cofferdam doctor says what this host lacks").Because(err)
	}
	if m.Port != "" {
		if err := plant(conn, m.Port); err != nil {
			return err
		}
	}
	if err := handOn(*m, wire); err != nil {
		return err
	}
	if err := jail(*m); err != nil {
		return err
	}
	err = syscall.Exec(m.Path, m.Args, m.Env)
	return fmt.Errorf("start %s: %w", m.Args[0], err)
}

// openShown opens what the program sees, as detached trees.
func openShown(m Machine) ([]rootfs.Shown, error) {
	var all []rootfs.Shown
	for _, s := range m.Show {
		tree, err := rootfs.Tree(s.Source, false, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV, -1)
		if err != nil {
			return nil, err
		}
		all = append(all, rootfs.Shown{Target: s.Target, Tree: tree})
	}
	for _, path := range append([]string{"/dev/null", "/dev/urandom"}, m.Devices...) {
		tree, err := rootfs.Tree(path, false, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC, -1)
		if err != nil {
			return nil, err
		}
		all = append(all, rootfs.Shown{Target: path, Tree: tree})
	}
	return all, nil
}

// withGroups calls start with the groups of a kernel's devices as the calling thread's supplementary groups, which a child that is started inherits: they mean something
// on the host only, so that nobody inside could take them on. An ordinary user has those that he has. The calling goroutine is locked to its thread.
func (k *Kernel) withGroups(start func() error) (err error) {
	devices := k.devices()
	if len(devices) == 0 || os.Geteuid() != 0 {
		return start()
	}
	had, err := unix.Getgroups()
	if err != nil {
		return err
	}
	var groups []uint32
	for _, path := range devices {
		var s unix.Stat_t
		if err := unix.Stat(path, &s); err != nil {
			return fmt.Errorf("look at %s: %w", path, err)
		}
		if s.Gid != 0 {
			groups = append(groups, s.Gid)
		}
	}
	if err := threadGroups(groups); err != nil {
		return err
	}
	defer func() {
		var back []uint32
		for _, g := range had {
			back = append(back, uint32(g))
		}
		err = errors.Join(err, threadGroups(back))
	}()
	return start()
}

// threadGroups sets the supplementary groups of the calling thread only, where the standard library sets those of all threads.
func threadGroups(groups []uint32) error {
	list := append(groups, 0) // so that there is an address
	if _, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(unsafe.Pointer(&list[0])), 0); errno != 0 {
		return fmt.Errorf("set the groups of a kernel's devices: %w", errno)
	}
	return nil
}

// leaveHost gives the program a host name and namespaces that say nothing about the host. The room is left for an empty network: the wire, an open file, leads there.
func leaveHost(p plan) error {
	alone := unix.CLONE_NEWCGROUP | unix.CLONE_NEWNET
	if p.Kernel.Machine.Room {
		alone = unix.CLONE_NEWCGROUP
	}
	if err := unix.Unshare(alone); err != nil {
		return fmt.Errorf("leave the host's control groups and the room: %w", err)
	}
	if err := unix.Sethostname([]byte(p.Spec.Hostname)); err != nil {
		return fmt.Errorf("set the host name: %w", err)
	}
	rights.Spare()
	return nil
}

// gather makes scratch memory with no place in any tree, and hands it to the parent: it goes with the parent's last hold.
func gather(conn *call.Conn, size, files int64) error {
	upper, err := rootfs.Scratch(size, files)
	if err != nil {
		return err
	}
	defer upper.Close()
	return conn.Send(report{Upper: true}, upper)
}

// plant makes the Unix socket that the program finds listening, and hands it to the parent.
func plant(conn *call.Conn, path string) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("make the machine's port: %w", err)
	}
	port := os.NewFile(uintptr(fd), "port")
	defer port.Close()
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrUnix{Name: path}), os.Chown(path, nobody, nobody), unix.Listen(fd, 1)); err != nil {
		return fmt.Errorf("make the machine's port: %w", err)
	}
	return conn.Send(report{Port: true}, port)
}

// handOn lets go through exec what the program works with, and puts its output where it writes.
func handOn(m Machine, wire *os.File) error {
	last := FirstFile + m.Count
	if m.Room {
		last--
	} else if err := unix.Dup3(int(wire.Fd()), last, unix.O_CLOEXEC); err != nil {
		return fmt.Errorf("hand on the wire: %w", err)
	}
	for fd := FirstFile; fd <= last; fd++ {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, 0); err != nil {
			return fmt.Errorf("hand on descriptor %d: %w", fd, err)
		}
	}
	for fd := 1; fd <= 2; fd++ {
		if err := unix.Dup3(fdOutput, fd, 0); err != nil {
			return fmt.Errorf("hand on the output: %w", err)
		}
	}
	return nil
}

// MostState bounds what a machine can write to an open file, in bytes: the state of its devices, of which the largest that was seen has 0.7 MB.
const MostState = 16 << 20

// jail gives up every right that is not needed to imitate a machine. The order matters, since each step needs rights that a later one takes.
func jail(m Machine) error {
	tasks, writes := uint64(m.Tasks), uint64(max(m.Writes, MostState))
	if err := errors.Join(rights.ForbidCores(), unix.Setrlimit(unix.RLIMIT_NPROC, &unix.Rlimit{Cur: tasks, Max: tasks}), unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: writes, Max: writes})); err != nil {
		return fmt.Errorf("limit the machine's resources: %w", err)
	}
	for c := uintptr(0); c <= unix.CAP_LAST_CAP; c++ {
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil && err != unix.EINVAL { // EINVAL: the kernel has no such capability
			return fmt.Errorf("drop capability %d: %w", c, err)
		}
	}
	if err := errors.Join(unix.Setresgid(nobody, nobody, nobody), unix.Setresuid(nobody, nobody, nobody), dieWithParent()); err != nil {
		return fmt.Errorf("become nobody: %w", err)
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("clear ambient capabilities: %w", err)
	}
	header, none := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, [2]unix.CapUserData{}
	if err := unix.Capset(&header, &none[0]); err != nil {
		return fmt.Errorf("drop all capabilities: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("set no_new_privs: %w", err)
	}
	if err := rights.ForbidWriting(m.Sockets); err != nil {
		return err
	}
	filter, err := seccomp.Compile(machineProfile(m.Sockets != ""), seccomp.Native())
	if err != nil {
		return fmt.Errorf("compile the system call filter: %w", err)
	}
	if err := seccomp.Install(filter, 0); err != nil {
		return fmt.Errorf("install the system call filter: %w", err)
	}
	return nil
}

// machineProfile is what a sandbox's own programs may ask of the kernel at level container, without new sockets, or with Unix sockets only: all others that the machine
// needs are open. That it starts no program after itself is for its own filter, since this one must let it start.
func machineProfile(sockets bool) seccomp.Profile {
	const reason = "all that the machine speaks through is open already"
	deny := seccomp.Rule{Calls: []string{"socket", "socketpair", "bind", "listen", "connect"}, Action: seccomp.Errno(unix.EPERM), Reason: reason}
	if !sockets {
		return withoutTraces(seccomp.Deciding(deny, seccomp.Sandbox()))
	}
	deny.Calls = []string{"socketpair"}
	p := seccomp.Deciding(deny, seccomp.Sandbox())
	p.Rules = append([]seccomp.Rule{{
		Calls: []string{"socket"}, When: []seccomp.Condition{{Arg: 0, Op: seccomp.NotEqual, Value: unix.AF_UNIX}}, Action: deny.Action, Reason: reason,
	}}, p.Rules...)
	return withoutTraces(p)
}

// withoutTraces takes from a machine's program what it could do to its open files that outlives it. An image's disk is the next sandbox's too, and for an ordinary user it is
// the program's own file: without a mode nobody could open it any more.
func withoutTraces(p seccomp.Profile) seccomp.Profile {
	const reason = "an image's disk is the next sandbox's too"
	refused := seccomp.Errno(unix.EPERM)
	p = seccomp.Deciding(seccomp.Rule{Action: refused, Reason: reason, Calls: []string{
		"chmod", "chown", "fchmod", "fchmodat", "fchmodat2", "fchown", "fchownat", "file_setattr", "flock", "fremovexattr", "fsetxattr", "futimesat", "lchown", "lremovexattr", "lsetxattr",
		"removexattr", "removexattrat", "setxattr", "setxattrat", "utime", "utimensat", "utimes",
	}}, p)
	p.Rules = append([]seccomp.Rule{
		{Calls: []string{"fcntl"}, When: []seccomp.Condition{seccomp.Int(1, unix.F_SETLEASE)}, Action: refused, Reason: reason},
		{Calls: []string{"ioctl"}, When: []seccomp.Condition{seccomp.Int(1, unix.FS_IOC_SETFLAGS)}, Action: refused, Reason: reason},
		{Calls: []string{"ioctl"}, When: []seccomp.Condition{seccomp.Int(1, unix.TUNSETPERSIST)}, Action: refused, Reason: "the network's device goes with the program, by which its end is seen"},
	}, p.Rules...)
	return p
}

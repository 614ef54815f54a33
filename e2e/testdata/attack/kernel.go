package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// call makes a system call that would change or reveal something if it went through.
func call(number uintptr, args ...uintptr) (string, error) {
	var a [6]uintptr
	copy(a[:], args)
	got, _, errno := unix.RawSyscall6(number, a[0], a[1], a[2], a[3], a[4], a[5])
	if errno != 0 {
		return "", errno
	}
	return fmt.Sprintf("result %d", int(got)), nil
}

func text(s string) uintptr {
	b, err := unix.BytePtrFromString(s)
	if err != nil {
		panic(err)
	}
	return uintptr(unsafe.Pointer(b))
}

// words is memory for structures that a call reads or fills.
func words(values ...uint64) uintptr {
	b := make([]uint64, 64)
	copy(b, values)
	return uintptr(unsafe.Pointer(&b[0]))
}

const here = ^uintptr(99) // AT_FDCWD

func pid(n uintptr) uintptr { return n }

// system makes one named attempt. The arguments are such that the kernel would do it for whoever has the right, and where that is
// anybody, for anybody.
func system(args []string) (string, error) {
	runtime.LockOSThread()
	for _, table := range []map[string]func() (string, error){mountCalls(), namespaceCalls(), processCalls(), kernelCalls(), machineCalls(), ownCalls()} {
		if attempt := table[arg(args, 0, "")]; attempt != nil {
			return attempt()
		}
	}
	return "", broken("no system call %q", args)
}

func mountCalls() map[string]func() (string, error) {
	const dir = "/tmp" // a directory that is there in every world
	return map[string]func() (string, error){
		"mount-tmpfs": func() (string, error) { return call(unix.SYS_MOUNT, text("x"), text(dir), text("tmpfs"), 0, 0) },
		"mount-proc":  func() (string, error) { return call(unix.SYS_MOUNT, text("x"), text(dir), text("proc"), 0, 0) },
		"mount-bind": func() (string, error) {
			return call(unix.SYS_MOUNT, text("/"), text(dir), 0, unix.MS_BIND|unix.MS_REC, 0)
		},
		"mount-over": func() (string, error) { return call(unix.SYS_MOUNT, text(dir), text("/etc"), 0, unix.MS_BIND, 0) },
		"remount-proc-sys": func() (string, error) {
			return call(unix.SYS_MOUNT, 0, text("/proc/sys"), 0, unix.MS_REMOUNT|unix.MS_BIND, 0)
		},
		"remount-runner": func() (string, error) {
			return call(unix.SYS_MOUNT, 0, text("/run/cofferdam/runner"), 0, unix.MS_REMOUNT|unix.MS_BIND, 0)
		},
		"remount-root": func() (string, error) { return call(unix.SYS_MOUNT, 0, text("/"), 0, unix.MS_REMOUNT|unix.MS_BIND, 0) },
		"mount-setattr": func() (string, error) {
			return call(unix.SYS_MOUNT_SETATTR, here, text("/proc/sys"), 0, words(0, unix.MOUNT_ATTR_RDONLY, 0, 0), 32)
		},
		"umount-kcore": func() (string, error) { return call(unix.SYS_UMOUNT2, text("/proc/kcore"), unix.MNT_DETACH) },
		"umount-sys":   func() (string, error) { return call(unix.SYS_UMOUNT2, text("/proc/sys"), unix.MNT_DETACH) },
		"umount-root":  func() (string, error) { return call(unix.SYS_UMOUNT2, text("/"), unix.MNT_DETACH) },
		"pivot-root":   func() (string, error) { return call(unix.SYS_PIVOT_ROOT, text("/tmp"), text("/tmp")) },
		"open-tree": func() (string, error) {
			return call(unix.SYS_OPEN_TREE, here, text("/proc/sys"), unix.OPEN_TREE_CLONE)
		},
		"fsopen":     func() (string, error) { return call(unix.SYS_FSOPEN, text("tmpfs"), 0) },
		"fspick":     func() (string, error) { return call(unix.SYS_FSPICK, here, text("/"), 0) },
		"move-mount": func() (string, error) { return call(unix.SYS_MOVE_MOUNT, here, text("/proc/sys"), here, text(dir), 0) },
	}
}

func namespaceCalls() map[string]func() (string, error) {
	unshare := func(flags uintptr) func() (string, error) {
		return func() (string, error) { return call(unix.SYS_UNSHARE, flags) }
	}
	clone := func(flags uintptr) func() (string, error) {
		return func() (string, error) {
			cmd := exec.Command("/bin/true")
			cmd.SysProcAttr = &unix.SysProcAttr{Cloneflags: flags}
			return "a process in it", cmd.Run()
		}
	}
	enter := func(name string) func() (string, error) {
		return func() (string, error) {
			fd, err := unix.Open("/proc/1/ns/"+name, unix.O_RDONLY, 0)
			if err != nil {
				return "", err
			}
			return call(unix.SYS_SETNS, uintptr(fd), 0)
		}
	}
	return map[string]func() (string, error){
		"unshare-user": unshare(unix.CLONE_NEWUSER), "unshare-mount": unshare(unix.CLONE_NEWNS), "unshare-net": unshare(unix.CLONE_NEWNET),
		"unshare-pid": unshare(unix.CLONE_NEWPID), "unshare-time": unshare(unix.CLONE_NEWTIME), "unshare-cgroup": unshare(unix.CLONE_NEWCGROUP),
		"clone-user": clone(unix.CLONE_NEWUSER), "clone-net": clone(unix.CLONE_NEWNET), "clone-mount": clone(unix.CLONE_NEWNS),
		"clone3-user": func() (string, error) {
			got, err := call(unix.SYS_CLONE3, words(unix.CLONE_NEWUSER, 0, 0, 0, uint64(unix.SIGCHLD)), 64)
			if got == "result 0" { // the child
				unix.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
			}
			return got, err
		},
		"setns-user": enter("user"), "setns-mnt": enter("mnt"), "setns-net": enter("net"), "setns-pid": enter("pid"),
		"setns-own": func() (string, error) {
			fd, err := unix.Open("/proc/self/ns/uts", unix.O_RDONLY, 0)
			if err != nil {
				return "", broken("%v", err)
			}
			return call(unix.SYS_SETNS, uintptr(fd), 0)
		},
		"setns-pidfd": func() (string, error) {
			fd, err := unix.PidfdOpen(os.Getppid(), 0)
			if err != nil {
				return "", broken("%v", err)
			}
			return call(unix.SYS_SETNS, uintptr(fd), unix.CLONE_NEWNET|unix.CLONE_NEWNS)
		},
	}
}

// child starts a process to attack, which this process may attack anywhere else.
func child(attack func(pid uintptr) (string, error)) (string, error) {
	cmd := exec.Command("sleep", "30")
	if err := cmd.Start(); err != nil {
		return "", broken("%v", err)
	}
	defer cmd.Wait() //nolint:errcheck // it was killed
	defer cmd.Process.Kill()
	return attack(uintptr(cmd.Process.Pid))
}

func processCalls() map[string]func() (string, error) {
	return map[string]func() (string, error){
		"ptrace-1": func() (string, error) { return call(unix.SYS_PTRACE, unix.PTRACE_SEIZE, pid(1), 0, 0) },
		"ptrace-child": func() (string, error) {
			return child(func(p uintptr) (string, error) { return call(unix.SYS_PTRACE, unix.PTRACE_SEIZE, p, 0, 0) })
		},
		"process-vm-readv": func() (string, error) {
			b := make([]byte, 8)
			local := words(uint64(uintptr(unsafe.Pointer(&b[0]))), 8)
			return call(unix.SYS_PROCESS_VM_READV, uintptr(os.Getpid()), local, 1, local, 1, 0)
		},
		"process-vm-writev": func() (string, error) {
			b := make([]byte, 8)
			local := words(uint64(uintptr(unsafe.Pointer(&b[0]))), 8)
			return call(unix.SYS_PROCESS_VM_WRITEV, uintptr(os.Getpid()), local, 1, local, 1, 0)
		},
		"pidfd-getfd-1":     func() (string, error) { return pidfdGet(1) },
		"pidfd-getfd-child": func() (string, error) { return child(pidfdGet) },
		"kcmp": func() (string, error) {
			return call(unix.SYS_KCMP, uintptr(os.Getpid()), uintptr(os.Getppid()), 1, 0, 0)
		},
		"kill-1": func() (string, error) {
			// Process 1 is asked to end, and spared by the kernel or by its own handlers. If it ended the sandbox would, and no outcome would be seen.
			for _, s := range []unix.Signal{unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR1, unix.SIGKILL, unix.SIGSTOP, unix.SIGSEGV, unix.SIGABRT} {
				if err := unix.Kill(1, s); err != nil {
					return "", err
				}
			}
			return "", errors.New("signals were taken without effect: process 1 is alive")
		},
		"prctl-mm": func() (string, error) { return call(unix.SYS_PRCTL, unix.PR_SET_MM, 8, uintptr(words()), 0, 0) },
	}
}

func pidfdGet(p uintptr) (string, error) {
	fd, err := unix.PidfdOpen(int(p), 0)
	if err != nil {
		return "", broken("%v", err)
	}
	return call(unix.SYS_PIDFD_GETFD, uintptr(fd), 0, 0)
}

func kernelCalls() map[string]func() (string, error) {
	return map[string]func() (string, error){
		"keyctl": func() (string, error) { return call(unix.SYS_KEYCTL, 0, ^uintptr(3), 1) }, // KEYCTL_GET_KEYRING_ID of the user keyring
		"add-key": func() (string, error) {
			return call(unix.SYS_ADD_KEY, text("user"), text("x"), text("y"), 1, ^uintptr(3))
		},
		"request-key": func() (string, error) { return call(unix.SYS_REQUEST_KEY, text("user"), text("x"), 0, 0) },
		"bpf":         func() (string, error) { return call(unix.SYS_BPF, 0, words(2<<32|1, 4, 1), 72) }, // BPF_MAP_CREATE
		"perf": func() (string, error) {
			return call(unix.SYS_PERF_EVENT_OPEN, words(128<<32|1, 1, 0, 0, 0, 1<<5|1<<6), 0, ^uintptr(0), ^uintptr(0), 0) // software, excluding kernel and hypervisor
		},
		"io-uring":          func() (string, error) { return call(unix.SYS_IO_URING_SETUP, 1, words()) },
		"io-uring-register": func() (string, error) { return call(unix.SYS_IO_URING_REGISTER, ^uintptr(0), 0, 0, 0) },
		"userfaultfd":       func() (string, error) { return call(unix.SYS_USERFAULTFD, 1) }, // UFFD_USER_MODE_ONLY
		"fanotify":          func() (string, error) { return call(unix.SYS_FANOTIFY_INIT, 0x200, 0) },
		"open-by-handle":    openByHandle,
		"name-to-handle": func() (string, error) {
			return call(unix.SYS_NAME_TO_HANDLE_AT, here, text("/etc"), words(64), words(), 0)
		},
		"init-module":        func() (string, error) { return call(unix.SYS_INIT_MODULE, words(), 8, text("")) },
		"finit-module":       func() (string, error) { return call(unix.SYS_FINIT_MODULE, 0, text(""), 0) },
		"delete-module":      func() (string, error) { return call(unix.SYS_DELETE_MODULE, text("cofferdam_no_such_module"), 0) },
		"kexec":              func() (string, error) { return call(unix.SYS_KEXEC_LOAD, 0, 0, 0, 0) },
		"syslog":             func() (string, error) { return call(unix.SYS_SYSLOG, 10, 0, 0) }, // size of the kernel's log
		"memfd-secret":       func() (string, error) { return call(unix.SYS_MEMFD_SECRET, 0) },
		"modify-ldt":         func() (string, error) { return call(unix.SYS_MODIFY_LDT, 0, words(), 8) },
		"personality-nornd":  func() (string, error) { return call(unix.SYS_PERSONALITY, 0x0040000) },
		"lookup-dcookie":     func() (string, error) { return call(unix.SYS_LOOKUP_DCOOKIE, 1, words(), 8) },
		"tcp-ulp":            func() (string, error) { return setULP() },
		"high-argument-bits": func() (string, error) { return call(unix.SYS_SOCKET, 0xabcd<<32|unix.AF_ALG, unix.SOCK_SEQPACKET, 0) },
	}
}

// openByHandle tries the inode of a file system's root, as the classic way out of a container does.
func openByHandle() (string, error) {
	fd, err := unix.Open("/", unix.O_RDONLY, 0)
	if err != nil {
		return "", broken("%v", err)
	}
	handle := make([]byte, 8+8)
	handle[0], handle[4], handle[8] = 8, 1, 2 // 8 bytes, FILEID_INO32_GEN, inode 2
	return call(unix.SYS_OPEN_BY_HANDLE_AT, uintptr(fd), uintptr(unsafe.Pointer(&handle[0])), unix.O_RDONLY)
}

func setULP() (string, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		return "", broken("%v", err)
	}
	err = unix.SetsockoptString(fd, unix.SOL_TCP, unix.TCP_ULP, "tls")
	if errors.Is(err, unix.ENOTCONN) {
		return "the module was loaded", nil
	}
	return "set", err
}

// machineCalls change the whole machine. Their arguments make them harmless should they go through.
func machineCalls() map[string]func() (string, error) {
	scratch := filepath.Join(os.TempDir(), fmt.Sprintf("attack-node-%d", os.Getpid()))
	mknod := func(mode uint32, major, minor uint32) func() (string, error) {
		return func() (string, error) {
			if err := unix.Mknod(scratch, mode|0o600, int(unix.Mkdev(major, minor))); err != nil {
				return "", err
			}
			defer os.Remove(scratch)
			return "a device node", nil
		}
	}
	return map[string]func() (string, error){
		"mknod-disk": mknod(unix.S_IFBLK, 254, 0), "mknod-sda": mknod(unix.S_IFBLK, 8, 0), "mknod-loop": mknod(unix.S_IFBLK, 7, 0), "mknod-mem": mknod(unix.S_IFCHR, 1, 1),
		"mknod-kmsg": mknod(unix.S_IFCHR, 1, 11), "mknod-null": mknod(unix.S_IFCHR, 1, 3), "mknod-kvm": mknod(unix.S_IFCHR, 10, 232), "mknod-whiteout": mknod(unix.S_IFCHR, 0, 0),
		"mknodat-disk": func() (string, error) {
			return call(unix.SYS_MKNODAT, here, text(scratch), unix.S_IFBLK|0o600, uintptr(unix.Mkdev(254, 0)))
		},
		"reboot":        func() (string, error) { return call(unix.SYS_REBOOT, 0, 0, 0, 0) }, // wrong magic: EINVAL for who may, EPERM for who may not
		"swapon":        func() (string, error) { return call(unix.SYS_SWAPON, text("/dev/null"), 0) },
		"settimeofday":  func() (string, error) { return call(unix.SYS_SETTIMEOFDAY, 0, 0) },
		"clock-settime": func() (string, error) { return call(unix.SYS_CLOCK_SETTIME, 0, words(1<<40, 0)) },
		"sethostname":   func() (string, error) { return call(unix.SYS_SETHOSTNAME, text("pwned"), 5) },
		"iopl":          func() (string, error) { return call(unix.SYS_IOPL, 3) },
		"acct":          func() (string, error) { return call(unix.SYS_ACCT, text("/tmp/acct")) },
		"quotactl":      func() (string, error) { return call(unix.SYS_QUOTACTL, 0x800001<<8, 0, 0, 0) },
		"vhangup":       func() (string, error) { return call(unix.SYS_VHANGUP) },
	}
}

// ownCalls try the process's own terminal, rights and tables of system calls.
func ownCalls() map[string]func() (string, error) {
	onTerminal := func(request uintptr) func() (string, error) {
		return func() (string, error) {
			fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY, 0)
			if err != nil {
				return "", broken("%v", err)
			}
			return call(unix.SYS_IOCTL, uintptr(fd), request, text("x"))
		}
	}
	return map[string]func() (string, error){
		"tiocsti": onTerminal(unix.TIOCSTI), "tioclinux": onTerminal(unix.TIOCLINUX), "tiocsetd": onTerminal(unix.TIOCSETD),
		"tiocsti-high": onTerminal(0xffffffff<<32 | unix.TIOCSTI),
		"int80":        func() (string, error) { return fmt.Sprintf("process %d", int80(20)), nil }, // getpid
		"x32":          func() (string, error) { return call(0x40000000 | unix.SYS_GETPID) },
		"gain-capabilities": func() (string, error) {
			header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
			data := [2]unix.CapUserData{{Effective: ^uint32(0), Permitted: ^uint32(0), Inheritable: ^uint32(0)}, {Effective: 0xff, Permitted: 0xff}}
			return "every capability", unix.Capset(&header, &data[0])
		},
		"drop-no-new-privs": func() (string, error) { return call(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 0, 0, 0, 0) },
		"seccomp-off":       func() (string, error) { return call(unix.SYS_PRCTL, unix.PR_SET_SECCOMP, 0, 0) },
		"ambient": func() (string, error) {
			return call(unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, unix.CAP_SYS_ADMIN, 0, 0)
		},
		"setuid-outside": func() (string, error) { return "host's user 1000000", unix.Setresuid(1000000, 1000000, 1000000) },
		"oom-score": func() (string, error) {
			return "the kernel spares this process", os.WriteFile("/proc/self/oom_score_adj", []byte("-1000"), 0)
		},
	}
}

// randomCalls makes system calls that no list names, with random arguments: each must be unknown.
func randomCalls(args []string) (string, error) {
	seed, n := number(args, 0, 1), number(args, 1, 1000)
	random := rand.New(rand.NewPCG(uint64(seed), 0))
	for i := range n {
		nr := uintptr(480 + random.IntN(1<<30-480)) // above all calls of Linux 6.18, below the x32 bit
		if i%4 == 0 {
			nr = uintptr(480 + random.IntN(500))
		}
		if got, err := call(nr, uintptr(random.Uint64()), uintptr(random.Uint64()), uintptr(random.Uint64())); !errors.Is(err, unix.ENOSYS) {
			return fmt.Sprintf("system call %d: %s, %v", nr, got, err), nil
		}
	}
	return "", fmt.Errorf("all of %d random calls: %w", n, unix.ENOSYS)
}

var families = map[string]int{
	"unix": unix.AF_UNIX, "inet": unix.AF_INET, "inet6": unix.AF_INET6, "netlink": unix.AF_NETLINK, "packet": unix.AF_PACKET, "vsock": unix.AF_VSOCK, "alg": unix.AF_ALG,
	"xdp": unix.AF_XDP, "tipc": unix.AF_TIPC, "rds": unix.AF_RDS, "bluetooth": unix.AF_BLUETOOTH, "key": unix.AF_KEY, "can": unix.AF_CAN, "kcm": unix.AF_KCM, "smc": unix.AF_SMC,
	"appletalk": unix.AF_APPLETALK, "x25": unix.AF_X25, "ax25": unix.AF_AX25, "nfc": unix.AF_NFC, "qipcrtr": unix.AF_QIPCRTR, "phonet": unix.AF_PHONET, "mctp": 45, "llc": unix.AF_LLC,
}

// openSocket opens a socket: family, type and protocol as numbers, the family also by name.
func openSocket(args []string) (string, error) {
	family, known := families[arg(args, 0, "")]
	if !known {
		family = number(args, 0, -1)
	}
	if family < 0 {
		return "", broken("no family %q", args)
	}
	_, err := unix.Socket(family, number(args, 1, 1), number(args, 2, 0))
	return strings.Join(args, " ") + " socket", err
}

// randomSockets opens sockets of random kinds: SEED COUNT, and the number of a netlink family that the sandbox's own kernel has. Only TCP, UDP, echo, local and route sockets may exist.
func randomSockets(args []string) (string, error) {
	random := rand.New(rand.NewPCG(uint64(number(args, 0, 1)), 1))
	n, own := number(args, 1, 2000), number(args, 2, unix.NETLINK_ROUTE)
	for range n {
		family, kind, protocol := random.IntN(64), random.IntN(12), random.IntN(300)
		if random.IntN(2) == 0 {
			protocol = random.IntN(24)
		}
		fd, err := unix.Socket(family, kind, protocol)
		if err != nil {
			continue
		}
		_ = unix.Close(fd) // unused
		internet := family == unix.AF_INET || family == unix.AF_INET6
		switch {
		case family == unix.AF_UNIX, family == unix.AF_NETLINK && (protocol == unix.NETLINK_ROUTE || protocol == own):
		case internet && kind == unix.SOCK_STREAM && (protocol == 0 || protocol == unix.IPPROTO_TCP):
		case internet && kind == unix.SOCK_DGRAM && (protocol == 0 || protocol == unix.IPPROTO_UDP):
		case family == unix.AF_INET && kind == unix.SOCK_DGRAM && protocol == unix.IPPROTO_ICMP, family == unix.AF_INET6 && kind == unix.SOCK_DGRAM && protocol == unix.IPPROTO_ICMPV6:
		default:
			return fmt.Sprintf("socket(%d, %d, %d)", family, kind, protocol), nil
		}
	}
	return "", fmt.Errorf("none of %d random kinds but TCP, UDP, echo, local and route sockets", n)
}

package seccomp

import (
	"slices"

	"golang.org/x/sys/unix"
)

// namespaceFlags are the clone flags that make a namespace (include/uapi/linux/sched.h). CLONE_NEWTIME is not among them: its bit is part
// of clone's exit signal, and unshare and clone3, which do take it, are refused altogether.
const namespaceFlags = unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC |
	unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNET

// typeMask is the part of socket's second argument that is the type (SOCK_TYPE_MASK in include/linux/net.h); the rest are flags.
const typeMask = 0xf

// Sandbox is the profile of the untrusted program, which is root in a user namespace, with a short list of capabilities and
// no_new_privs. It allows by name what build tools, language runtimes, package managers, shells and browsers use. What it refuses on
// purpose answers EPERM, or the error with which callers fall back; what it does not know answers ENOSYS, as an older kernel would.
func Sandbox() Profile {
	return Profile{
		Default: Errno(unix.ENOSYS),
		Rules:   slices.Concat(sandboxAllowed(), sandboxFiltered(), sandboxSockets(), sandboxDenied(), sandboxAbsent()),
	}
}

// sandboxAllowed lists the calls without conditions.
func sandboxAllowed() []Rule {
	return []Rule{
		{Action: Allow, Reason: "files and directories", Calls: []string{
			"access", "chdir", "chmod", "chown", "close", "close_range", "copy_file_range", "creat", "dup", "dup2", "dup3",
			"faccessat", "faccessat2", "fadvise64", "fallocate", "fchdir", "fchmod", "fchmodat", "fchmodat2", "fchown", "fchownat",
			"fcntl", "fdatasync", "fgetxattr", "file_getattr", "file_setattr", "flistxattr", "flock", "fremovexattr", "fsetxattr",
			"fstat", "fstatfs", "fsync", "ftruncate", "futimesat", "getcwd", "getdents", "getdents64", "getxattr", "getxattrat",
			"inotify_add_watch", "inotify_init", "inotify_init1", "inotify_rm_watch", "lchown", "lgetxattr", "link", "linkat",
			"listxattr", "listxattrat", "llistxattr", "lremovexattr", "lseek", "lsetxattr", "lstat", "mkdir", "mkdirat", "newfstatat",
			"open", "openat", "openat2", "pread64", "preadv", "preadv2", "pwrite64", "pwritev", "pwritev2", "read", "readahead",
			"readlink", "readlinkat", "readv", "removexattr", "removexattrat", "rename", "renameat", "renameat2", "rmdir", "sendfile",
			"setxattr", "setxattrat", "splice", "stat", "statfs", "statx", "symlink", "symlinkat", "sync", "sync_file_range", "syncfs",
			"tee", "truncate", "umask", "unlink", "unlinkat", "ustat", "utime", "utimensat", "utimes", "vmsplice", "write", "writev",
		}},
		{Action: Allow, Reason: "its own root directory: apt, debootstrap and build tools use it, and the capability is granted", Calls: []string{"chroot"}},
		{Action: Allow, Reason: "memory", Calls: []string{
			"brk", "madvise", "map_shadow_stack", "membarrier", "memfd_create", "mincore", "mlock", "mlock2", "mlockall", "mmap", "mprotect",
			"mremap", "mseal", "msync", "munlock", "munlockall", "munmap", "pkey_alloc", "pkey_free", "pkey_mprotect", "remap_file_pages",
		}},
		{Action: Allow, Reason: "processes and threads", Calls: []string{
			"arch_prctl", "execve", "execveat", "exit", "exit_group", "fork", "futex", "futex_requeue", "futex_wait", "futex_waitv",
			"futex_wake", "get_robust_list", "get_thread_area", "getcpu", "getpgid", "getpgrp", "getpid", "getppid", "getpriority",
			"getrlimit", "getrusage", "getsid", "gettid", "ioprio_get", "ioprio_set", "pidfd_open", "prlimit64", "process_mrelease",
			"restart_syscall", "rseq", "rseq_slice_yield", "sched_get_priority_max", "sched_get_priority_min", "sched_getaffinity",
			"sched_getattr", "sched_getparam", "sched_getscheduler", "sched_rr_get_interval", "sched_setaffinity", "sched_setattr",
			"sched_setparam", "sched_setscheduler", "sched_yield", "set_robust_list", "set_thread_area", "set_tid_address", "setpgid",
			"setpriority", "setrlimit", "setsid", "sysinfo", "times", "uname", "vfork", "wait4", "waitid",
		}},
		{Action: Allow, Reason: "the kernel's own return path of probes that an administrator set; refusing it would kill the probed program", Calls: []string{"uprobe", "uretprobe"}},
		{Action: Allow, Reason: "signals", Calls: []string{
			"kill", "pause", "pidfd_send_signal", "rt_sigaction", "rt_sigpending", "rt_sigprocmask", "rt_sigqueueinfo", "rt_sigreturn",
			"rt_sigsuspend", "rt_sigtimedwait", "rt_tgsigqueueinfo", "sigaltstack", "signalfd", "signalfd4", "tgkill", "tkill",
		}},
		{Action: Allow, Reason: "identity inside the user namespace", Calls: []string{
			"capget", "capset", "getegid", "geteuid", "getgid", "getgroups", "getresgid", "getresuid", "getuid", "setfsgid", "setfsuid",
			"setgid", "setgroups", "setregid", "setresgid", "setresuid", "setreuid", "setuid",
		}},
		{Action: Allow, Reason: "restricting itself further", Calls: []string{
			"landlock_add_rule", "landlock_create_ruleset", "landlock_restrict_self", "seccomp",
		}},
		{Action: Allow, Reason: "clocks and timers; the calls that can also set a clock need a capability of the host for that", Calls: []string{
			"adjtimex", "alarm", "clock_adjtime", "clock_getres", "clock_gettime", "clock_nanosleep", "getitimer", "gettimeofday",
			"nanosleep", "setitimer", "time", "timer_create", "timer_delete", "timer_getoverrun", "timer_gettime", "timer_settime",
			"timerfd_create", "timerfd_gettime", "timerfd_settime",
		}},
		{Action: Allow, Reason: "waiting for events, asynchronous files", Calls: []string{
			"epoll_create", "epoll_create1", "epoll_ctl", "epoll_pwait", "epoll_pwait2", "epoll_wait", "eventfd", "eventfd2", "io_cancel",
			"io_destroy", "io_getevents", "io_pgetevents", "io_setup", "io_submit", "poll", "ppoll", "pselect6", "select",
		}},
		{Action: Allow, Reason: "pipes and System V and POSIX communication inside its own namespace", Calls: []string{
			"mq_getsetattr", "mq_notify", "mq_open", "mq_timedreceive", "mq_timedsend", "mq_unlink", "msgctl", "msgget", "msgrcv", "msgsnd",
			"pipe", "pipe2", "semctl", "semget", "semop", "semtimedop", "shmat", "shmctl", "shmdt", "shmget",
		}},
		{Action: Allow, Reason: "use of sockets; socket and socketpair say which", Calls: []string{
			"accept", "accept4", "bind", "connect", "getpeername", "getsockname", "getsockopt", "listen", "recvfrom", "recvmmsg", "recvmsg",
			"sendmmsg", "sendmsg", "sendto", "shutdown",
		}},
		{Action: Allow, Reason: "random numbers", Calls: []string{"getrandom"}},
	}
}

// sandboxFiltered lists the calls whose arguments decide, sockets apart.
func sandboxFiltered() []Rule {
	deny := Errno(unix.EPERM)
	return []Rule{
		{Calls: []string{"clone"}, When: []Condition{IntMasked(0, namespaceFlags, 0)}, Action: Allow, Reason: "processes and threads in the namespaces that exist"},
		{Calls: []string{"clone"}, Action: deny, Reason: "a new namespace, above all a user namespace, opens most of the kernel's privileged code to the program"},

		{Calls: []string{"ioctl"}, When: []Condition{Int(1, unix.TIOCSTI)}, Action: deny, Reason: "types into the terminal: a command for the shell outside, once the sandbox ends"},
		{Calls: []string{"ioctl"}, When: []Condition{Int(1, unix.TIOCLINUX)}, Action: deny, Reason: "pastes into a console, to the same end"},
		{Calls: []string{"ioctl"}, When: []Condition{Int(1, unix.TIOCSETD)}, Action: deny, Reason: "changes the line discipline, which loads modules with a long history of holes"},
		{Calls: []string{"ioctl"}, Action: Allow, Reason: "devices and terminals; /dev has only harmless nodes"},

		{Calls: []string{"prctl"}, When: []Condition{Int(0, unix.PR_SET_MM)}, Action: deny, Reason: "rewrites what the kernel tells about the process (program file, arguments)"},
		{Calls: []string{"prctl"}, Action: Allow, Reason: "names, death signals, further restrictions"},

		{Calls: []string{"personality"}, When: []Condition{Int(0, 0)}, Action: Allow, Reason: "Linux"},
		{Calls: []string{"personality"}, When: []Condition{Int(0, 0x0008)}, Action: Allow, Reason: "32-bit machine name (linux32)"},
		{Calls: []string{"personality"}, When: []Condition{Int(0, 0x20000)}, Action: Allow, Reason: "kernel version 2.6 name (uname26)"},
		{Calls: []string{"personality"}, When: []Condition{Int(0, 0x20008)}, Action: Allow, Reason: "both"},
		{Calls: []string{"personality"}, When: []Condition{Int(0, 0xffffffff)}, Action: Allow, Reason: "asks for the present value"},
		{Calls: []string{"personality"}, Action: deny, Reason: "turns off address randomisation and other defences, and selects rarely tested code"},

		{Calls: []string{"mknod"}, When: []Condition{IntMasked(1, unix.S_IFMT, 0)}, Action: Allow, Reason: "regular file"},
		{Calls: []string{"mknod"}, When: []Condition{IntMasked(1, unix.S_IFMT, unix.S_IFREG)}, Action: Allow, Reason: "regular file"},
		{Calls: []string{"mknod"}, When: []Condition{IntMasked(1, unix.S_IFMT, unix.S_IFIFO)}, Action: Allow, Reason: "named pipe"},
		{Calls: []string{"mknod"}, When: []Condition{IntMasked(1, unix.S_IFMT, unix.S_IFSOCK)}, Action: Allow, Reason: "socket"},
		{Calls: []string{"mknod"}, Action: deny, Reason: "device nodes, and whiteouts that would hide files from whoever reads the workspace later"},
		{Calls: []string{"mknodat"}, When: []Condition{IntMasked(2, unix.S_IFMT, 0)}, Action: Allow, Reason: "regular file"},
		{Calls: []string{"mknodat"}, When: []Condition{IntMasked(2, unix.S_IFMT, unix.S_IFREG)}, Action: Allow, Reason: "regular file"},
		{Calls: []string{"mknodat"}, When: []Condition{IntMasked(2, unix.S_IFMT, unix.S_IFIFO)}, Action: Allow, Reason: "named pipe"},
		{Calls: []string{"mknodat"}, When: []Condition{IntMasked(2, unix.S_IFMT, unix.S_IFSOCK)}, Action: Allow, Reason: "socket"},
		{Calls: []string{"mknodat"}, Action: deny, Reason: "device nodes, and whiteouts that would hide files from whoever reads the workspace later"},
	}
}

// sandboxSockets allows the families that have a use behind a gateway, with the protocols that are built in: asking for any other makes
// the kernel of the host load a module. The errors are those of a kernel without them, which callers know how to live with.
func sandboxSockets() []Rule {
	socket, pair := []string{"socket"}, []string{"socketpair"}
	rules := []Rule{
		{Calls: socket, When: []Condition{Int(0, unix.AF_UNIX)}, Action: Allow, Reason: "local sockets; the sandbox has its own names for them"},
	}
	rules = append(rules, internetSockets(unix.AF_INET, unix.IPPROTO_ICMP)...)
	rules = append(rules, internetSockets(unix.AF_INET6, unix.IPPROTO_ICMPV6)...)
	return append(rules,
		Rule{Calls: socket, When: []Condition{Int(0, unix.AF_NETLINK), Int(2, unix.NETLINK_ROUTE)}, Action: Allow, Reason: "reads interfaces and addresses; getaddrinfo, Go and node need it"},
		Rule{Calls: socket, When: []Condition{Int(0, unix.AF_NETLINK)}, Action: Errno(unix.EPROTONOSUPPORT), Reason: "netfilter, audit, devices and the other netlink protocols; useradd and PAM accept this error from audit"},
		Rule{Calls: socket, Action: Errno(unix.EAFNOSUPPORT), Reason: "VSOCK reaches the hypervisor, ALG, PACKET, XDP, TIPC, RDS, BLUETOOTH, KEY, CAN and the like reach code that is rarely looked at"},
		Rule{Calls: pair, When: []Condition{Int(0, unix.AF_UNIX)}, Action: Allow, Reason: "local sockets"},
		Rule{Calls: pair, Action: Errno(unix.EAFNOSUPPORT), Reason: "TIPC makes pairs too"},
		Rule{Calls: []string{"setsockopt"}, When: []Condition{Int(1, unix.SOL_TCP), Int(2, unix.TCP_ULP)}, Action: Errno(unix.ENOPROTOOPT), Reason: "TLS and other protocols inside the kernel, loaded as modules on demand; libraries fall back to their own"},
		Rule{Calls: []string{"setsockopt"}, Action: Allow, Reason: "socket options"},
	)
}

// internetSockets allows TCP, UDP and echo requests (ping) of a family.
func internetSockets(family, icmp uint32) []Rule {
	socket := []string{"socket"}
	when := func(kind uint32, protocol ...uint32) []Condition {
		c := []Condition{Int(0, family), IntMasked(1, typeMask, kind)}
		for _, p := range protocol {
			c = append(c, Int(2, p))
		}
		return c
	}
	return []Rule{
		{Calls: socket, When: when(unix.SOCK_STREAM, 0), Action: Allow, Reason: "TCP"},
		{Calls: socket, When: when(unix.SOCK_STREAM, unix.IPPROTO_TCP), Action: Allow, Reason: "TCP"},
		{Calls: socket, When: when(unix.SOCK_STREAM), Action: Errno(unix.EPROTONOSUPPORT), Reason: "MPTCP, SCTP, SMC: no use behind the gateway, and modules of the host would be loaded"},
		{Calls: socket, When: when(unix.SOCK_DGRAM, 0), Action: Allow, Reason: "UDP"},
		{Calls: socket, When: when(unix.SOCK_DGRAM, unix.IPPROTO_UDP), Action: Allow, Reason: "UDP"},
		{Calls: socket, When: when(unix.SOCK_DGRAM, icmp), Action: Allow, Reason: "ping without privileges, which the firewall of the sandbox refuses and counts"},
		{Calls: socket, When: when(unix.SOCK_DGRAM), Action: Errno(unix.EPROTONOSUPPORT), Reason: "UDP-Lite, L2TP: as above"},
		{Calls: socket, When: when(unix.SOCK_RAW), Action: Errno(unix.EPERM), Reason: "forged packets"},
		{Calls: socket, When: []Condition{Int(0, family)}, Action: Errno(unix.ESOCKTNOSUPPORT), Reason: "DCCP, SCTP, and SOCK_PACKET, an old way to AF_PACKET"},
	}
}

// sandboxDenied lists what the program is refused on purpose, with the error that says so.
func sandboxDenied() []Rule {
	deny := Errno(unix.EPERM)
	return []Rule{
		{Action: deny, Reason: "the file system view is the wall: nothing inside changes mounts, not even to remount what is read-only", Calls: []string{
			"mount", "umount2", "pivot_root", "move_mount", "open_tree", "open_tree_attr", "fsopen", "fsconfig", "fsmount", "fspick", "mount_setattr",
		}},
		{Action: deny, Reason: "makes or enters namespaces", Calls: []string{"unshare", "setns"}},
		{Action: deny, Reason: "reads and changes other processes, process 1 among them, and has bypassed filters before", Calls: []string{
			"ptrace", "process_vm_readv", "process_vm_writev", "process_madvise", "pidfd_getfd", "kcmp",
		}},
		{Action: deny, Reason: "keyrings are not namespaced: keys of the host's user would be in reach", Calls: []string{"add_key", "request_key", "keyctl"}},
		{Action: deny, Reason: "loads programs into the kernel", Calls: []string{"bpf"}},
		{Action: deny, Reason: "performs calls without passing this filter, and has a long record of holes", Calls: []string{"io_uring_setup", "io_uring_enter", "io_uring_register"}},
		{Action: deny, Reason: "stops the kernel in the middle of a copy, which makes races into exploits", Calls: []string{"userfaultfd"}},
		{Action: deny, Reason: "watches other processes and the kernel, and has a long record of holes", Calls: []string{"perf_event_open", "lookup_dcookie"}},
		{Action: deny, Reason: "opens files by number, past every directory: the classic way out of a container", Calls: []string{"open_by_handle_at"}},
		{Action: Errno(unix.EOPNOTSUPP), Reason: "makes the numbers for it; the error is that of a file system without them", Calls: []string{"name_to_handle_at"}},
		{Action: deny, Reason: "watches or blocks file access of the whole mount", Calls: []string{"fanotify_init", "fanotify_mark"}},
		{Action: deny, Reason: "changes the kernel", Calls: []string{"init_module", "finit_module", "delete_module", "kexec_load", "kexec_file_load", "reboot"}},
		{Action: deny, Reason: "reads the kernel's log, with addresses and the doings of others", Calls: []string{"syslog"}},
		{Action: deny, Reason: "settings of the whole machine", Calls: []string{
			"acct", "quotactl", "quotactl_fd", "swapon", "swapoff", "settimeofday", "clock_settime", "sethostname", "setdomainname", "vhangup",
		}},
		{Action: deny, Reason: "hardware ports", Calls: []string{"ioperm", "iopl"}},
	}
}

// sandboxAbsent lists known calls that answer as if the kernel did not have them, so that libraries take their other way.
func sandboxAbsent() []Rule {
	absent := Errno(unix.ENOSYS)
	return []Rule{
		{Action: absent, Reason: "its flags lie in memory where a filter cannot look; the C libraries then use clone", Calls: []string{"clone3"}},
		{Action: absent, Reason: "lists mounts and namespaces, which /proc shows in the sandbox's own view", Calls: []string{"statmount", "listmount", "listns"}},
		{Action: absent, Reason: "tells which pages of shared files others have used", Calls: []string{"cachestat"}},
		{Action: absent, Reason: "memory that the machine's administrator cannot see, which also stops hibernation", Calls: []string{"memfd_secret"}},
		{Action: absent, Reason: "labels of security modules: there are none for the sandbox to see or set", Calls: []string{"lsm_get_self_attr", "lsm_set_self_attr", "lsm_list_modules"}},
		{Action: absent, Reason: "16-bit segments, for emulators of old systems; the source of several holes", Calls: []string{"modify_ldt"}},
		{Action: absent, Reason: "placement on memory nodes, which is the machine's affair; libraries then treat it as one node", Calls: []string{
			"get_mempolicy", "set_mempolicy", "set_mempolicy_home_node", "mbind", "migrate_pages", "move_pages",
		}},
		{Action: absent, Reason: "obsolete; current kernels have no such call or no caller", Calls: []string{
			"_sysctl", "afs_syscall", "create_module", "epoll_ctl_old", "epoll_wait_old", "get_kernel_syms", "getpmsg", "nfsservctl",
			"putpmsg", "query_module", "security", "sysfs", "tuxcall", "uselib", "vserver",
		}},
	}
}

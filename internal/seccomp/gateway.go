package seccomp

import (
	"slices"

	"golang.org/x/sys/unix"
)

// Gateway is the profile of the process with that id, which parses hostile bytes: a Go program that uses the network and files it holds
// open, reads and writes the few more that Landlock leaves it, and starts nothing. It may signal only itself, and makes no memory
// executable, so that a fault in it has nothing to become but a wrong answer.
func Gateway(pid int) Profile {
	return Profile{
		Default: Errno(unix.ENOSYS),
		Rules:   slices.Concat(gatewayAllowed(), gatewayFiltered(pid), gatewaySockets(), gatewayControls(), gatewayDenied()),
	}
}

func gatewayAllowed() []Rule {
	return []Rule{
		{Action: Allow, Reason: "files: which of them, Landlock and the file modes say", Calls: []string{
			"close", "close_range", "copy_file_range", "dup", "dup2", "dup3", "faccessat", "faccessat2", "fadvise64", "fallocate", "fchmod",
			"fdatasync", "flock", "fstat", "fstatfs", "fsync", "ftruncate", "getcwd", "getdents64", "linkat", "lseek", "lstat",
			"mkdirat", "newfstatat", "open", "openat", "openat2", "pread64", "preadv", "preadv2", "pwrite64", "pwritev", "pwritev2", "read",
			"readlink", "readlinkat", "readv", "renameat", "renameat2", "sendfile", "splice", "stat", "statfs", "statx", "symlinkat", "sync_file_range",
			"tee", "umask", "unlinkat", "write", "writev",
		}},
		{Action: Allow, Reason: "memory", Calls: []string{"brk", "madvise", "membarrier", "mincore", "mlock", "mremap", "msync", "munlock", "munmap"}},
		{Action: Allow, Reason: "threads, and waiting for the supervisor to end", Calls: []string{
			"arch_prctl", "exit", "exit_group", "futex", "getcpu", "getpgid", "getpgrp", "getpid", "getppid", "getrlimit", "getrusage", "getsid", "gettid",
			"restart_syscall", "rseq", "sched_getaffinity", "sched_yield", "set_robust_list", "set_tid_address", "sysinfo", "times", "uname",
			"wait4", "waitid",
		}},
		{Action: Allow, Reason: "who it is", Calls: []string{"capget", "getegid", "geteuid", "getgid", "getgroups", "getresgid", "getresuid", "getuid"}},
		{Action: Allow, Reason: "receiving signals", Calls: []string{
			"rt_sigaction", "rt_sigpending", "rt_sigprocmask", "rt_sigreturn", "rt_sigsuspend", "rt_sigtimedwait", "sigaltstack", "signalfd4",
		}},
		{Action: Allow, Reason: "clocks and timers", Calls: []string{
			"clock_getres", "clock_gettime", "clock_nanosleep", "getitimer", "gettimeofday", "nanosleep", "setitimer", "time", "timer_create",
			"timer_delete", "timer_getoverrun", "timer_gettime", "timer_settime", "timerfd_create", "timerfd_gettime", "timerfd_settime",
		}},
		{Action: Allow, Reason: "waiting for events", Calls: []string{
			"epoll_create1", "epoll_ctl", "epoll_pwait", "epoll_pwait2", "epoll_wait", "eventfd2", "pipe2", "poll", "ppoll", "pselect6", "select",
		}},
		{Action: Allow, Reason: "use of sockets, those it was handed included; socket says which it may make", Calls: []string{
			"accept", "accept4", "bind", "connect", "getpeername", "getsockname", "getsockopt", "recvfrom", "recvmmsg", "recvmsg", "sendmmsg",
			"sendmsg", "sendto", "setsockopt", "shutdown",
		}},
		{Action: Allow, Reason: "random numbers", Calls: []string{"getrandom"}},
	}
}

// gatewayFiltered lists the calls whose arguments decide, sockets and the control calls of files apart.
func gatewayFiltered(pid int) []Rule {
	deny := Errno(unix.EPERM)
	const executable = unix.PROT_EXEC
	rules := []Rule{
		{Calls: []string{"clone"}, When: []Condition{IntMasked(0, unix.CLONE_THREAD|namespaceFlags, unix.CLONE_THREAD)}, Action: Allow, Reason: "threads of its own"},
		{Calls: []string{"clone"}, Action: deny, Reason: "starts no process"},
		{Calls: []string{"clone3"}, Action: Errno(unix.ENOSYS), Reason: "its flags lie in memory where a filter cannot look"},
		{Calls: []string{"mmap", "mprotect"}, When: []Condition{{Arg: 2, Op: MaskedEqual, Mask: executable, Value: 0}}, Action: Allow, Reason: "data"},
		{Calls: []string{"mmap", "mprotect"}, Action: deny, Reason: "makes no code at run time"},
		{Calls: []string{"prlimit64"}, When: []Condition{Int(0, 0)}, Action: Allow, Reason: "its own limits"},
		{Calls: []string{"prlimit64"}, Action: deny, Reason: "limits of others"},
	}
	for _, option := range []uint32{unix.PR_SET_NAME, unix.PR_GET_NAME, unix.PR_GET_DUMPABLE, unix.PR_GET_NO_NEW_PRIVS, unix.PR_GET_SECCOMP,
		unix.PR_CAPBSET_READ, unix.PR_GET_SECUREBITS, unix.PR_SET_VMA} {
		rules = append(rules, Rule{Calls: []string{"prctl"}, When: []Condition{Int(0, option)}, Action: Allow, Reason: "asks about itself; the Go runtime names its memory"})
	}
	if pid > 0 { // 0 and negative numbers are process groups
		rules = append(rules, Rule{Calls: []string{"kill", "tgkill"}, When: []Condition{Int(0, uint32(pid))}, Action: Allow, Reason: "signals to itself: the Go runtime preempts by them"})
	}
	return append(rules,
		Rule{Calls: []string{"kill", "tgkill"}, Action: deny, Reason: "signals to others"},
		Rule{Calls: []string{"prctl"}, Action: deny, Reason: "changes what it is"},
	)
}

// gatewaySockets: outward it speaks TCP and UDP. It makes no local sockets: by them it would reach container engines, agents and buses
// which trust its user, and Landlock guards those only on recent kernels.
func gatewaySockets() []Rule {
	socket := []string{"socket"}
	var rules []Rule
	for _, family := range []uint32{unix.AF_INET, unix.AF_INET6} {
		for _, s := range [][2]uint32{
			{unix.SOCK_STREAM, 0}, {unix.SOCK_STREAM, unix.IPPROTO_TCP}, {unix.SOCK_DGRAM, 0}, {unix.SOCK_DGRAM, unix.IPPROTO_UDP},
		} {
			rules = append(rules, Rule{Calls: socket, When: []Condition{Int(0, family), IntMasked(1, typeMask, s[0]), Int(2, s[1])}, Action: Allow, Reason: "TCP and UDP"})
		}
		rules = append(rules, Rule{Calls: socket, When: []Condition{Int(0, family)}, Action: Errno(unix.EPROTONOSUPPORT), Reason: "raw packets, MPTCP and other protocols; the net package falls back"})
	}
	return append(rules,
		Rule{Calls: socket, When: []Condition{Int(0, unix.AF_NETLINK), Int(2, unix.NETLINK_ROUTE)}, Action: Allow, Reason: "reads interfaces and addresses, which it must know to refuse them"},
		Rule{Calls: socket, When: []Condition{Int(0, unix.AF_NETLINK)}, Action: Errno(unix.EPROTONOSUPPORT), Reason: "other netlink protocols"},
		Rule{Calls: socket, Action: Errno(unix.EAFNOSUPPORT), Reason: "local sockets of other services, and every other family"},
		Rule{Calls: []string{"socketpair"}, Action: Errno(unix.EAFNOSUPPORT), Reason: "a datagram pair can send to any local name"},
		Rule{Calls: []string{"listen"}, Action: Errno(unix.EPERM), Reason: "accepts only on the sockets that it was handed, which listen already"},
	)
}

// gatewayControls lists the requests of ioctl and fcntl. F_SETOWN and FIOSETOWN are not among them: they make the kernel send signals.
func gatewayControls() []Rule {
	var rules []Rule
	for _, request := range []uint32{unix.TCGETS, unix.TCSETS, unix.TCSETSW, unix.TCSETSF, unix.TCGETS2, unix.TCSETS2, unix.TCSETSW2, unix.TCSETSF2,
		unix.TCFLSH, unix.TIOCGWINSZ, unix.TIOCSWINSZ, unix.TIOCGPGRP, unix.TIOCSPGRP, unix.TIOCINQ, unix.TIOCOUTQ} {
		rules = append(rules, Rule{Calls: []string{"ioctl"}, When: []Condition{Int(1, request)}, Action: Allow, Reason: "the user's terminal: mode, size and foreground; bytes waiting"})
	}
	rules = append(rules, Rule{Calls: []string{"ioctl"}, Action: Errno(unix.EPERM), Reason: "typing into the terminal, devices, everything else"})
	for _, command := range []uint32{unix.F_DUPFD, unix.F_DUPFD_CLOEXEC, unix.F_GETFD, unix.F_SETFD, unix.F_GETFL, unix.F_SETFL, unix.F_GETLK, unix.F_SETLK,
		unix.F_SETLKW, unix.F_OFD_GETLK, unix.F_OFD_SETLK, unix.F_OFD_SETLKW, unix.F_GETPIPE_SZ, unix.F_SETPIPE_SZ} {
		rules = append(rules, Rule{Calls: []string{"fcntl"}, When: []Condition{Int(1, command)}, Action: Allow, Reason: "flags, locks, pipe sizes"})
	}
	return append(rules, Rule{Calls: []string{"fcntl"}, Action: Errno(unix.EPERM), Reason: "signals by way of files, leases"})
}

// gatewayDenied lists what answers EPERM because it is refused on purpose; whatever else is missing answers ENOSYS.
func gatewayDenied() []Rule {
	deny := Errno(unix.EPERM)
	return []Rule{
		{Action: deny, Reason: "starts no program", Calls: []string{"execve", "execveat", "fork", "vfork"}},
		{Action: deny, Reason: "other processes", Calls: []string{
			"ptrace", "process_vm_readv", "process_vm_writev", "process_madvise", "process_mrelease", "pidfd_open", "pidfd_getfd", "pidfd_send_signal", "kcmp", "tkill",
			"rt_sigqueueinfo", "rt_tgsigqueueinfo", "sched_setaffinity", "sched_setattr", "sched_setparam", "sched_setscheduler", "setpriority", "ioprio_set",
		}},
		{Action: deny, Reason: "another identity", Calls: []string{
			"capset", "setfsgid", "setfsuid", "setgid", "setgroups", "setregid", "setresgid", "setresuid", "setreuid", "setuid", "setpgid", "setsid", "personality",
		}},
		{Action: deny, Reason: "mounts and namespaces", Calls: []string{
			"mount", "umount2", "pivot_root", "chroot", "move_mount", "open_tree", "open_tree_attr", "fsopen", "fsconfig", "fsmount", "fspick", "mount_setattr",
			"unshare", "setns",
		}},
		{Action: deny, Reason: "code that runs without passing this filter, or changes it", Calls: []string{
			"bpf", "io_uring_setup", "io_uring_enter", "io_uring_register", "seccomp", "memfd_create", "pkey_mprotect", "userfaultfd", "perf_event_open",
		}},
		{Action: deny, Reason: "files by number, devices, ownership, attributes, truncation by name", Calls: []string{
			"open_by_handle_at", "name_to_handle_at", "mknod", "mknodat", "chown", "fchown", "fchownat", "lchown", "fchmodat", "fchmodat2", "chmod", "truncate",
			"setxattr", "lsetxattr", "fsetxattr", "setxattrat", "fanotify_init", "fanotify_mark",
		}},
		{Action: deny, Reason: "keyrings, modules and the whole machine", Calls: []string{
			"add_key", "request_key", "keyctl", "init_module", "finit_module", "delete_module", "kexec_load", "kexec_file_load", "reboot", "syslog", "acct",
			"quotactl", "quotactl_fd", "swapon", "swapoff", "settimeofday", "clock_settime", "sethostname", "setdomainname", "ioperm", "iopl",
		}},
	}
}

package seccomp

import (
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// TestSandboxDecidesEveryCall holds that each call of the table has been thought about: the last rule that names it has no conditions,
// and it says why.
func TestSandboxDecidesEveryCall(t *testing.T) {
	decided := map[string]bool{}
	for _, r := range Sandbox().Rules {
		if r.Reason == "" {
			t.Errorf("rule for %v has no reason", r.Calls)
		}
		for _, name := range r.Calls {
			if decided[name] {
				t.Errorf("%s: two rules without conditions", name)
			}
			decided[name] = decided[name] || len(r.When) == 0
		}
	}
	for i := range calls {
		if !decided[calls[i].name] {
			t.Errorf("%s: allow it, deny it or call it absent, with a reason", calls[i].name)
		}
	}
}

// decision is what a profile must answer to one call with arguments.
type decision struct {
	call string
	args [6]uint64
	want Action
}

func in(args ...uint64) (a [6]uint64) {
	copy(a[:], args)
	return a
}

// garbage is what a caller may leave in the upper half of an int argument, and what an attacker puts there.
const garbage = 0xdeadbeef_00000000

func check(t *testing.T, profile Profile, decisions []decision) {
	t.Helper()
	for _, arch := range []Arch{AMD64, ARM64} {
		filter, err := Compile(profile, arch)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range decisions {
			number, known := lookup(d.call, arch)
			if !known {
				t.Fatalf("unknown call %q", d.call)
			}
			if number < 0 {
				continue
			}
			got, _, err := execute(filter, data{number: uint32(number), arch: arch, args: d.args})
			if err != nil || got != d.want {
				t.Errorf("%s: %s(%#x) -> %s (%v), want %s", arch, d.call, d.args, got, err, d.want)
			}
		}
	}
}

func TestSandbox(t *testing.T) {
	eperm, enosys := Errno(unix.EPERM), Errno(unix.ENOSYS)
	noFamily, noProtocol, noType := Errno(unix.EAFNOSUPPORT), Errno(unix.EPROTONOSUPPORT), Errno(unix.ESOCKTNOSUPPORT)
	const flags = unix.SOCK_CLOEXEC | unix.SOCK_NONBLOCK
	check(t, Sandbox(), []decision{
		{"read", in(1, 2, 3), Allow},
		{"execve", in(), Allow},
		{"landlock_restrict_self", in(), Allow},
		{"chroot", in(), Allow},
		{"mount", in(), eperm},
		{"mount_setattr", in(), eperm},
		{"unshare", in(0), eperm},
		{"setns", in(), eperm},
		{"ptrace", in(), eperm},
		{"bpf", in(), eperm},
		{"io_uring_setup", in(), eperm},
		{"keyctl", in(), eperm},
		{"open_by_handle_at", in(), eperm},
		{"name_to_handle_at", in(), Errno(unix.EOPNOTSUPP)},
		{"clone3", in(), enosys},
		{"statmount", in(), enosys},
		{"memfd_secret", in(), enosys},

		{"clone", in(uint64(unix.SIGCHLD)), Allow},
		{"clone", in(unix.CLONE_VM | unix.CLONE_VFORK | unix.CLONE_PIDFD | uint64(unix.SIGCHLD)), Allow},
		{"clone", in(0x3d0f00), Allow}, // pthread_create
		{"clone", in(unix.CLONE_NEWUSER | uint64(unix.SIGCHLD)), eperm},
		{"clone", in(garbage | unix.CLONE_NEWUSER), eperm},
		{"clone", in(garbage | uint64(unix.SIGCHLD)), Allow}, // the kernel ignores the upper half
		{"clone", in(unix.CLONE_NEWNS), eperm},
		{"clone", in(unix.CLONE_NEWPID), eperm},
		{"clone", in(unix.CLONE_NEWNET), eperm},
		{"clone", in(unix.CLONE_NEWIPC), eperm},
		{"clone", in(unix.CLONE_NEWUTS), eperm},
		{"clone", in(unix.CLONE_NEWCGROUP), eperm},

		{"socket", in(unix.AF_UNIX, unix.SOCK_STREAM), Allow},
		{"socket", in(unix.AF_UNIX, unix.SOCK_RAW), Allow}, // the kernel makes it a datagram socket
		{"socket", in(unix.AF_INET, unix.SOCK_STREAM|flags), Allow},
		{"socket", in(unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_TCP), Allow},
		{"socket", in(unix.AF_INET, garbage|unix.SOCK_DGRAM|flags, garbage|unix.IPPROTO_UDP), Allow},
		{"socket", in(unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_ICMP), Allow},
		{"socket", in(unix.AF_INET6, unix.SOCK_DGRAM, unix.IPPROTO_ICMPV6), Allow},
		{"socket", in(unix.AF_INET6, unix.SOCK_DGRAM, unix.IPPROTO_ICMP), noProtocol},
		{"socket", in(unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_MPTCP), noProtocol},
		{"socket", in(unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_SCTP), noProtocol},
		{"socket", in(unix.AF_INET6, unix.SOCK_DGRAM, unix.IPPROTO_UDPLITE), noProtocol},
		{"socket", in(unix.AF_INET6, unix.SOCK_DGRAM, unix.IPPROTO_L2TP), noProtocol},
		{"socket", in(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP), eperm},
		{"socket", in(unix.AF_INET, unix.SOCK_RAW|flags, unix.IPPROTO_RAW), eperm},
		{"socket", in(garbage|unix.AF_INET6, garbage|unix.SOCK_RAW, unix.IPPROTO_TCP), eperm},
		{"socket", in(unix.AF_INET, unix.SOCK_PACKET, 0x300), noType},
		{"socket", in(unix.AF_INET, unix.SOCK_SEQPACKET, unix.IPPROTO_SCTP), noType},
		{"socket", in(unix.AF_INET6, unix.SOCK_DCCP, unix.IPPROTO_DCCP), noType},
		{"socket", in(unix.AF_NETLINK, unix.SOCK_RAW|flags, unix.NETLINK_ROUTE), Allow},
		{"socket", in(unix.AF_NETLINK, unix.SOCK_DGRAM, garbage|unix.NETLINK_ROUTE), Allow},
		{"socket", in(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_NETFILTER), noProtocol},
		{"socket", in(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_AUDIT), noProtocol},
		{"socket", in(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_KOBJECT_UEVENT), noProtocol},
		{"socket", in(unix.AF_VSOCK, unix.SOCK_STREAM), noFamily},
		{"socket", in(garbage|unix.AF_VSOCK, unix.SOCK_STREAM), noFamily},
		{"socket", in(unix.AF_ALG, unix.SOCK_SEQPACKET), noFamily},
		{"socket", in(unix.AF_PACKET, unix.SOCK_RAW), noFamily},
		{"socket", in(unix.AF_XDP, unix.SOCK_RAW), noFamily},
		{"socket", in(unix.AF_TIPC, unix.SOCK_STREAM), noFamily},
		{"socket", in(unix.AF_RDS, unix.SOCK_SEQPACKET), noFamily},
		{"socket", in(unix.AF_BLUETOOTH, unix.SOCK_RAW), noFamily},
		{"socket", in(unix.AF_KEY, unix.SOCK_RAW), noFamily},
		{"socket", in(unix.AF_CAN, unix.SOCK_RAW), noFamily},
		{"socket", in(0), noFamily},
		{"socket", in(1 << 31), noFamily},
		{"socketpair", in(unix.AF_UNIX, unix.SOCK_STREAM), Allow},
		{"socketpair", in(unix.AF_TIPC, unix.SOCK_STREAM), noFamily},
		{"setsockopt", in(3, unix.SOL_SOCKET, unix.SO_REUSEADDR), Allow},
		{"setsockopt", in(3, unix.SOL_TCP, unix.TCP_NODELAY), Allow},
		{"setsockopt", in(3, unix.SOL_TCP, unix.TCP_ULP), Errno(unix.ENOPROTOOPT)},
		{"setsockopt", in(3, garbage|unix.SOL_TCP, garbage|unix.TCP_ULP), Errno(unix.ENOPROTOOPT)},

		{"ioctl", in(0, unix.TCGETS), Allow},
		{"ioctl", in(0, unix.TIOCGWINSZ), Allow},
		{"ioctl", in(0, unix.TIOCSTI), eperm},
		{"ioctl", in(0, garbage|unix.TIOCSTI), eperm},
		{"ioctl", in(0, unix.TIOCLINUX), eperm},
		{"ioctl", in(0, 1<<63|unix.TIOCLINUX), eperm},
		{"ioctl", in(0, unix.TIOCSETD), eperm},

		{"prctl", in(unix.PR_SET_NAME), Allow},
		{"prctl", in(unix.PR_SET_SECCOMP, 2), Allow},
		{"prctl", in(unix.PR_SET_MM, 1), eperm},
		{"prctl", in(garbage|unix.PR_SET_MM, 1), eperm},
		{"personality", in(0xffffffff), Allow},
		{"personality", in(0), Allow},
		{"personality", in(0x20008), Allow},
		{"personality", in(0x0040000), eperm}, // ADDR_NO_RANDOMIZE
		{"personality", in(0x0400000), eperm}, // READ_IMPLIES_EXEC
		{"mknod", in(0, 0o644), Allow},
		{"mknod", in(0, unix.S_IFIFO|0o644), Allow},
		{"mknod", in(0, unix.S_IFSOCK|0o644), Allow},
		{"mknod", in(0, unix.S_IFCHR|0o644), eperm},
		{"mknod", in(0, unix.S_IFBLK|0o644), eperm},
		{"mknodat", in(0, 0, unix.S_IFREG|0o644), Allow},
		{"mknodat", in(0, 0, unix.S_IFIFO|0o644), Allow},
		{"mknodat", in(0, 0, garbage|unix.S_IFCHR|0o644), eperm},
		{"mknodat", in(0, 0, 0x10000|unix.S_IFBLK|0o644), eperm}, // the kernel takes 16 bits of it
	})
}

// TestForeignNumbers asks for every number in the tables of other architectures and outside of all tables.
func TestForeignNumbers(t *testing.T) {
	for _, c := range []struct {
		name string
		arch Arch // that the filter is for
		data data
		want Action
	}{
		{"amd64 read", AMD64, data{number: 0, arch: AMD64}, Allow},
		{"amd64 through i386", AMD64, data{number: 20, arch: Arch(unix.AUDIT_ARCH_I386)}, KillProcess},
		{"amd64 through x32", AMD64, data{number: x32Bit, arch: AMD64}, KillProcess},
		{"amd64 last x32", AMD64, data{number: x32Bit | 547, arch: AMD64}, KillProcess},
		{"amd64 below x32", AMD64, data{number: x32Bit - 1, arch: AMD64}, Errno(unix.ENOSYS)},
		{"amd64 negative", AMD64, data{number: skipped - 1, arch: AMD64}, KillProcess},
		{"amd64 minus one", AMD64, data{number: skipped, arch: AMD64}, Errno(unix.ENOSYS)},
		{"amd64 call of a later kernel", AMD64, data{number: 600, arch: AMD64}, Errno(unix.ENOSYS)},
		{"amd64 zero architecture", AMD64, data{number: 0, arch: 0}, KillProcess},
		{"arm64 read", ARM64, data{number: 63, arch: ARM64}, Allow},
		{"arm64 through arm", ARM64, data{number: 3, arch: Arch(unix.AUDIT_ARCH_ARM)}, KillProcess},
		{"arm64 call of a later kernel", ARM64, data{number: 600, arch: ARM64}, Errno(unix.ENOSYS)},
		{"arm64 minus one", ARM64, data{number: skipped, arch: ARM64}, Errno(unix.ENOSYS)},
	} {
		filter, err := Compile(Sandbox(), c.arch)
		if err != nil {
			t.Fatal(err)
		}
		if got, _, err := execute(filter, c.data); err != nil || got != c.want {
			t.Errorf("%s: %s (%v), want %s", c.name, got, err, c.want)
		}
	}
}

// TestLengths holds the filters to a size and depth that no call feels.
func TestLengths(t *testing.T) {
	for name, profile := range map[string]Profile{"Sandbox": Sandbox(), "shared": WithoutNamedSockets(WithoutSetID(Sandbox())), "Gateway": Gateway(4711)} {
		for _, arch := range []Arch{AMD64, ARM64} {
			filter, err := Compile(profile, arch)
			if err != nil {
				t.Fatal(err)
			}
			most, who := 0, ""
			for i := range calls {
				if n := calls[i].number(arch); n >= 0 {
					if _, steps, err := execute(filter, data{number: uint32(n), arch: arch}); err != nil {
						t.Fatal(err)
					} else if steps > most && calls[i].name != "socket" {
						most, who = steps, calls[i].name
					}
				}
			}
			t.Logf("%s on %s: %d instructions, at most %d steps (%s)", name, arch, len(filter), most, who)
			if len(filter) > 600 || most > 60 {
				t.Errorf("%s on %s: %d instructions, %d steps for %s", name, arch, len(filter), most, who)
			}
		}
	}
}

func TestGateway(t *testing.T) {
	const self = 4711
	eperm, enosys := Errno(unix.EPERM), Errno(unix.ENOSYS)
	noFamily, noProtocol := Errno(unix.EAFNOSUPPORT), Errno(unix.EPROTONOSUPPORT)
	check(t, Gateway(self), []decision{
		{"read", in(), Allow},
		{"splice", in(), Allow},
		{"openat", in(), Allow},
		{"sendmsg", in(), Allow},
		{"execve", in(), eperm},
		{"execveat", in(), eperm},
		{"fork", in(), eperm},
		{"vfork", in(), eperm},
		{"clone", in(0x50f00), Allow},  // the Go runtime's threads
		{"clone", in(0x3d0f00), Allow}, // pthread_create
		{"clone", in(uint64(unix.SIGCHLD)), eperm},
		{"clone", in(unix.CLONE_VM | unix.CLONE_VFORK | uint64(unix.SIGCHLD)), eperm},
		{"clone", in(unix.CLONE_THREAD | unix.CLONE_NEWNET), eperm},
		{"clone3", in(), enosys},
		{"kill", in(self, 9), Allow},
		{"kill", in(0, 9), eperm},
		{"kill", in(1, 9), eperm},
		{"kill", in(1<<32-self, 9), eperm},
		{"kill", in(1<<64-1, 9), eperm},
		{"tgkill", in(self, self+1, 23), Allow},
		{"tgkill", in(garbage|self, self+1, 23), Allow},
		{"tgkill", in(self+1, self+1, 23), eperm},
		{"tkill", in(self), eperm},
		{"pidfd_send_signal", in(), eperm},
		{"mmap", in(0, 4096, unix.PROT_READ|unix.PROT_WRITE), Allow},
		{"mmap", in(0, 4096, unix.PROT_READ|unix.PROT_EXEC), eperm},
		{"mprotect", in(0, 4096, unix.PROT_READ), Allow},
		{"mprotect", in(0, 4096, garbage|unix.PROT_EXEC), eperm},
		{"socket", in(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC), Allow},
		{"socket", in(unix.AF_INET6, unix.SOCK_DGRAM, unix.IPPROTO_UDP), Allow},
		{"socket", in(unix.AF_INET6, unix.SOCK_STREAM, unix.IPPROTO_MPTCP), noProtocol},
		{"socket", in(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_TCP), noProtocol},
		{"socket", in(unix.AF_INET, unix.SOCK_PACKET), noProtocol},
		{"socket", in(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE), Allow},
		{"socket", in(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_NETFILTER), noProtocol},
		{"socket", in(unix.AF_UNIX, unix.SOCK_STREAM), noFamily},
		{"socket", in(unix.AF_VSOCK, unix.SOCK_STREAM), noFamily},
		{"socketpair", in(unix.AF_UNIX, unix.SOCK_DGRAM), noFamily},
		{"listen", in(), eperm},
		{"ioctl", in(0, unix.TCSETS), Allow},
		{"ioctl", in(0, unix.TIOCSTI), eperm},
		{"ioctl", in(0, garbage|unix.TIOCSTI), eperm},
		{"fcntl", in(0, unix.F_SETFL), Allow},
		{"fcntl", in(0, unix.F_SETOWN), eperm},
		{"fcntl", in(0, garbage|unix.F_SETOWN), eperm},
		{"prlimit64", in(0, 7), Allow},
		{"prlimit64", in(1, 7), eperm},
		{"prctl", in(unix.PR_SET_VMA), Allow},
		{"prctl", in(unix.PR_SET_DUMPABLE, 1), eperm},
		{"prctl", in(unix.PR_SET_PTRACER, 1), eperm},
		{"seccomp", in(), eperm},
		{"mount", in(), eperm},
		{"setuid", in(), eperm},
		{"truncate", in(), eperm},
		{"shmget", in(), enosys},
	})
	for _, pid := range []int{0, -1} { // a process group is not the process itself
		check(t, Gateway(pid), []decision{{"kill", in(uint64(uint32(pid)), 9), eperm}, {"tgkill", in(uint64(uint32(pid)), 1, 9), eperm}})
	}
}

// TestGatewayIsNarrower holds that Gateway allows without conditions nothing that Sandbox refuses.
func TestGatewayIsNarrower(t *testing.T) {
	sandbox := Sandbox()
	for _, r := range Gateway(1).Rules {
		if r.Reason == "" {
			t.Errorf("rule for %v has no reason", r.Calls)
		}
		if r.Action != Allow || len(r.When) > 0 {
			continue
		}
		for _, name := range r.Calls {
			if !slices.ContainsFunc(sandbox.Rules, func(s Rule) bool { return s.Action == Allow && slices.Contains(s.Calls, name) }) {
				t.Errorf("%s: the gateway may, the sandbox may not", name)
			}
		}
	}
}

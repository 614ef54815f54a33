package vm

import (
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// attempts are what came of each thing that was tried, in lines. What is to succeed begins with "may".
type attempts []string

func (a *attempts) say(what string, err error) {
	came := "done"
	if err != nil {
		came = err.Error()
	}
	*a = append(*a, what+": "+came)
}

// call makes a system call.
func (a *attempts) call(what string, number uintptr, args ...uintptr) {
	var all [6]uintptr
	copy(all[:], args)
	var err error
	if _, _, errno := unix.Syscall6(number, all[0], all[1], all[2], all[3], all[4], all[5]); errno != 0 {
		err = errno
	}
	a.say(what, err)
}

// tryOut tries from the place of the machine's program what should not be possible there.
func tryOut() []string {
	a := &attempts{}
	a.files()
	a.disk()
	a.network()
	a.kernel()
	return *a
}

// files looks for files of the host's, and for a place to write.
func (a *attempts) files() {
	for _, path := range []string{"/etc/passwd", "/proc/1/status", "/proc/self/status", "/dev/mem", "/dev/kvm", "/dev/net/tun", "/sys/kernel", "/../../etc/shadow", "/tmp", "/root", "/home"} {
		_, err := os.Open(path)
		a.say("open "+path, err)
	}
	for _, path := range []string{"/x", "/dev/x", "/lib/x", "/usr/bin/x"} {
		a.say("make "+path, os.WriteFile(path, nil, 0o600))
	}
	for _, path := range []string{placeKernel, placeInitram, placeProgram} {
		_, err := os.Open(path)
		a.say("may read "+path, err)
		_, err = os.OpenFile(path, os.O_WRONLY, 0)
		a.say("write "+path, err)
	}
	for _, path := range []string{placeKernel, placeProgram, "/dev/null", "/dev"} {
		a.say("chmod "+path, os.Chmod(path, 0o777))
	}
	_, err := os.OpenFile("/dev/null", os.O_WRONLY, 0)
	a.say("may write /dev/null", err)
	for fd := range 256 {
		var s unix.Stat_t
		if unix.Fstat(fd, &s) != nil || s.Mode&unix.S_IFMT != unix.S_IFREG && s.Mode&unix.S_IFMT != unix.S_IFDIR {
			continue
		}
		flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
		if s.Mode&unix.S_IFMT == unix.S_IFDIR || err != nil || flags&unix.O_ACCMODE != unix.O_RDONLY {
			a.say(fmt.Sprintf("has a directory or a file to write to as %d", fd), nil)
		}
	}
	if len(os.Environ()) != 1 {
		a.say(fmt.Sprint("has the environment ", os.Environ()), nil)
	}
}

// takenMark is what the program writes at the end of its scratch.
const takenMark = "ciphertext"

// tryScratch tries from the place of the machine's program what should not be possible with the disk for encrypted scratch.
func tryScratch() []string {
	signal.Ignore(unix.SIGXFSZ)
	a := &attempts{}
	disk := handed(`set=12,fd=(\d+)`)
	var s unix.Stat_t
	a.say("may look at scratch", unix.Fstat(disk, &s))
	_, err := unix.Pwrite(disk, []byte(takenMark), s.Size-int64(len(takenMark)))
	a.say("may write scratch", err)
	_, err = unix.Pwrite(disk, []byte("x"), s.Size)
	a.say("scratch write behind its end", err)
	a.say("scratch grow", unix.Ftruncate(disk, s.Size+1))
	a.say("scratch reserve more", unix.Fallocate(disk, 0, s.Size, 4096))
	a.say("scratch give it a name", unix.Linkat(disk, "", unix.AT_FDCWD, "/dev/x", unix.AT_EMPTY_PATH))
	a.say("scratch mode", unix.Fchmod(disk, 0o666))
	a.say("scratch owner", unix.Fchown(disk, 0, 0))
	a.say("scratch attribute", unix.Fsetxattr(disk, "user.x", []byte("y"), 0))
	a.say("scratch lock", unix.Flock(disk, unix.LOCK_EX|unix.LOCK_NB))
	a.say("scratch flags", unix.IoctlSetPointerInt(disk, unix.FS_IOC_SETFLAGS, unix.STATX_ATTR_IMMUTABLE))
	_, err = os.OpenFile("/proc/self/fd/"+strconv.Itoa(disk), os.O_RDWR, 0)
	a.say("scratch open again", err)
	for fd := range 256 {
		flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
		if err == nil && fd != disk && unix.Fstat(fd, &s) == nil && s.Mode&unix.S_IFMT == unix.S_IFREG && flags&unix.O_ACCMODE != unix.O_RDONLY {
			a.say(fmt.Sprintf("has another file to write to as %d", fd), nil)
		}
	}
	return *a
}

// disk tries to change the image's disk, which the next sandbox of the image has too.
func (a *attempts) disk() {
	disk := handed(`set=10,fd=(\d+)`)
	page := make([]byte, 4096)
	_, err := unix.Pread(disk, page, 0)
	a.say("may read the disk", err)
	_, err = unix.Pwrite(disk, page, 0)
	a.say("disk write", err)
	_, err = unix.Mmap(disk, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	a.say("disk map to write", err)
	for _, mode := range []int{os.O_RDONLY, os.O_RDWR} {
		_, err = os.OpenFile("/proc/self/fd/"+strconv.Itoa(disk), mode, 0)
		a.say("disk open again", err)
	}
	a.say("disk truncate", unix.Ftruncate(disk, 0))
	a.say("disk punch a hole", unix.Fallocate(disk, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, 4096))
	a.say("disk mode", unix.Fchmod(disk, 0))
	a.say("disk owner", unix.Fchown(disk, 0, 0))
	a.say("disk attribute", unix.Fsetxattr(disk, "user.x", []byte("y"), 0))
	a.say("disk flags", unix.IoctlSetPointerInt(disk, unix.FS_IOC_SETFLAGS, unix.STATX_ATTR_IMMUTABLE))
	a.call("disk times", unix.SYS_UTIMENSAT, uintptr(disk))
	a.say("disk lock", unix.Flock(disk, unix.LOCK_EX|unix.LOCK_NB))
	_, err = unix.FcntlInt(uintptr(disk), unix.F_SETLEASE, unix.F_RDLCK)
	a.say("disk lease", err)
}

// network tries to have another network than the room, and to have that outlive the sandbox.
func (a *attempts) network() {
	for name, family := range map[string]int{
		"unix": unix.AF_UNIX, "inet": unix.AF_INET, "inet6": unix.AF_INET6, "netlink": unix.AF_NETLINK, "packet": unix.AF_PACKET, "vsock": unix.AF_VSOCK, "alg": unix.AF_ALG, "xdp": unix.AF_XDP,
	} {
		a.call("socket "+name, unix.SYS_SOCKET, uintptr(family), unix.SOCK_DGRAM)
	}
	var two [2]int32
	a.call("socketpair", unix.SYS_SOCKETPAIR, unix.AF_UNIX, unix.SOCK_STREAM, 0, uintptr(unsafe.Pointer(&two)))
	wire := handed(`id=wire,fd=(\d+)`)
	_, err := unix.Write(wire, make([]byte, 80))
	a.say("may send a frame", err)
	another, err := unix.NewIfreq("another")
	if err == nil {
		err = unix.IoctlIfreq(wire, unix.TUNSETIFF, another)
	}
	a.say("tap another device", err)
	a.call("tap outlive the program", unix.SYS_IOCTL, uintptr(wire), unix.TUNSETPERSIST, 1)
	a.call("tap its namespace", unix.SYS_IOCTL, uintptr(wire), unix.SIOCGSKNS)
	const tunGetDevNetNS = 0x54e3 // TUNGETDEVNETNS of linux/if_tun.h
	a.call("tap its device's namespace", unix.SYS_IOCTL, uintptr(wire), tunGetDevNetNS)
}

// kernel tries what else the host's kernel could be asked for.
func (a *attempts) kernel() {
	for name, flag := range map[string]int{"user": unix.CLONE_NEWUSER, "net": unix.CLONE_NEWNET, "mount": unix.CLONE_NEWNS, "pid": unix.CLONE_NEWPID} {
		a.say("namespace "+name, unix.Unshare(flag))
	}
	a.say("become root", unix.Setuid(0))
	a.say("mount", unix.Mount("x", "/lib", "tmpfs", 0, ""))
	a.say("signal somebody", unix.Kill(-1, 0))
	a.say("may signal itself", unix.Kill(1, 0))
	const attach = 16
	a.call("ptrace", unix.SYS_PTRACE, attach, 1)
	for name, number := range map[string]uintptr{
		"bpf": unix.SYS_BPF, "perf": unix.SYS_PERF_EVENT_OPEN, "io_uring": unix.SYS_IO_URING_SETUP, "keyctl": unix.SYS_KEYCTL, "userfaultfd": unix.SYS_USERFAULTFD, "kexec": unix.SYS_KEXEC_LOAD,
		"module": unix.SYS_INIT_MODULE, "open by handle": unix.SYS_OPEN_BY_HANDLE_AT, "pidfd_getfd": unix.SYS_PIDFD_GETFD, "process_vm_readv": unix.SYS_PROCESS_VM_READV, "reboot": unix.SYS_REBOOT,
		"swapon": unix.SYS_SWAPON, "fsopen": unix.SYS_FSOPEN, "open_tree": unix.SYS_OPEN_TREE,
	} {
		a.call(name, number)
	}
}

package seccomp

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// childEnv names the part that this test binary plays when a test starts it again: a filter cannot be taken off, so each has its process.
const childEnv = "COFFERDAM_SECCOMP_CHILD"

func TestMain(m *testing.M) {
	if part := os.Getenv(childEnv); part != "" {
		if err := child(part, os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// child plays a part: "free" makes the attempts without a filter, "sandbox" behind Sandbox, "threads" behind Gateway on all threads,
// "exec" runs a command behind Sandbox, "i386", "x32" and their "free-" twins make one foreign call, and "named" and its twin look for sockets by name.
func child(part string, args []string) error {
	runtime.LockOSThread()
	name, free := strings.CutPrefix(part, "free")
	switch {
	case part == "threads":
		return threads()
	case part == "permissive":
		return installWithoutPrivileges()
	case part == "named":
		if err := installProfile(WithoutNamedSockets(Sandbox())); err != nil {
			return err
		}
	case !free:
		if err := installProfile(Sandbox()); err != nil {
			return err
		}
	}
	switch strings.TrimPrefix(name, "-") {
	case "", "sandbox":
		return json.NewEncoder(os.Stdout).Encode(makeAttempts())
	case "i386":
		return i386()
	case "x32":
		_, _, errno := unix.RawSyscall(x32Bit|39, 0, 0, 0)
		return fmt.Errorf("x32 getpid: %w", errno)
	case "named":
		return json.NewEncoder(os.Stdout).Encode(reachNames(args[0]))
	case "exec":
		return unix.Exec(args[0], args, os.Environ())
	}
	return fmt.Errorf("no part %q", part)
}

func installProfile(p Profile) error {
	filter, err := Compile(p, Native())
	if err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	return Install(filter, 0)
}

func command(t *testing.T, part string, args ...string) *exec.Cmd {
	t.Helper()
	if Native() == 0 {
		t.Skip("no filters for this architecture")
	}
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), childEnv+"="+part, "GORACE=atexit_sleep_ms=0")
	cmd.WaitDelay = time.Second
	return cmd
}

// attempt is one call with arguments that do no harm if it is let through.
type attempt struct {
	name string
	nr   uintptr
	args [4]uintptr
	free unix.Errno // what the kernel says, varies if that depends on the machine
	want unix.Errno // what the filter says
}

// varies stands for what depends on the machine.
const varies = unix.Errno(1<<31 - 1)

func attempts() []attempt {
	const high = 0xdeadbeef << 32
	const closed = ^uintptr(0) // file descriptor -1
	return []attempt{
		{"socket unix", unix.SYS_SOCKET, [4]uintptr{unix.AF_UNIX, unix.SOCK_STREAM}, 0, 0},
		{"socket tcp", unix.SYS_SOCKET, [4]uintptr{unix.AF_INET, unix.SOCK_STREAM | unix.SOCK_CLOEXEC}, 0, 0},
		{"socket tcp, rubbish above", unix.SYS_SOCKET, [4]uintptr{high | unix.AF_INET, high | unix.SOCK_STREAM, high}, 0, 0},
		{"socket udp6", unix.SYS_SOCKET, [4]uintptr{unix.AF_INET6, unix.SOCK_DGRAM | unix.SOCK_NONBLOCK, unix.IPPROTO_UDP}, varies, 0},
		{"socket netlink route", unix.SYS_SOCKET, [4]uintptr{unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE}, 0, 0},
		{"socket netlink uevent", unix.SYS_SOCKET, [4]uintptr{unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_KOBJECT_UEVENT}, 0, unix.EPROTONOSUPPORT},
		{"socket raw", unix.SYS_SOCKET, [4]uintptr{unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP}, varies, unix.EPERM},
		{"socket raw, rubbish above", unix.SYS_SOCKET, [4]uintptr{high | unix.AF_INET, high | unix.SOCK_RAW, unix.IPPROTO_ICMP}, varies, unix.EPERM},
		{"socket packet", unix.SYS_SOCKET, [4]uintptr{unix.AF_PACKET, unix.SOCK_RAW}, varies, unix.EAFNOSUPPORT},
		{"socket packet by inet", unix.SYS_SOCKET, [4]uintptr{unix.AF_INET, unix.SOCK_PACKET}, varies, unix.ESOCKTNOSUPPORT},
		{"socket vsock", unix.SYS_SOCKET, [4]uintptr{unix.AF_VSOCK, unix.SOCK_STREAM}, varies, unix.EAFNOSUPPORT},
		{"socket alg", unix.SYS_SOCKET, [4]uintptr{unix.AF_ALG, unix.SOCK_SEQPACKET}, varies, unix.EAFNOSUPPORT},
		{"socket sctp", unix.SYS_SOCKET, [4]uintptr{unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_SCTP}, varies, unix.EPROTONOSUPPORT},
		{"ioctl TCGETS", unix.SYS_IOCTL, [4]uintptr{closed, unix.TCGETS}, unix.EBADF, unix.EBADF},
		{"ioctl TIOCSTI", unix.SYS_IOCTL, [4]uintptr{closed, unix.TIOCSTI}, unix.EBADF, unix.EPERM},
		{"ioctl TIOCSTI, high bits", unix.SYS_IOCTL, [4]uintptr{closed, high | unix.TIOCSTI}, unix.EBADF, unix.EPERM},
		{"ioctl TIOCLINUX, high bits", unix.SYS_IOCTL, [4]uintptr{closed, 1<<63 | unix.TIOCLINUX}, unix.EBADF, unix.EPERM},
		{"clone", unix.SYS_CLONE, [4]uintptr{uintptr(unix.SIGCHLD)}, 0, 0},
		{"clone user", unix.SYS_CLONE, [4]uintptr{unix.CLONE_NEWUSER | uintptr(unix.SIGCHLD)}, varies, unix.EPERM},
		{"clone user, rubbish above", unix.SYS_CLONE, [4]uintptr{high | unix.CLONE_NEWUSER | uintptr(unix.SIGCHLD)}, varies, unix.EPERM},
		{"clone uts", unix.SYS_CLONE, [4]uintptr{unix.CLONE_NEWUTS | uintptr(unix.SIGCHLD)}, varies, unix.EPERM},
		{"clone3", unix.SYS_CLONE3, [4]uintptr{0, 0}, unix.EINVAL, unix.ENOSYS},
		{"unshare", unix.SYS_UNSHARE, [4]uintptr{0}, 0, unix.EPERM},
		{"setns", unix.SYS_SETNS, [4]uintptr{closed}, unix.EBADF, unix.EPERM},
		{"mount", unix.SYS_MOUNT, [4]uintptr{}, unix.EFAULT, unix.EPERM},
		{"keyctl", unix.SYS_KEYCTL, [4]uintptr{closed}, varies, unix.EPERM},
		{"bpf", unix.SYS_BPF, [4]uintptr{closed, 0, 0}, varies, unix.EPERM},
		{"io_uring_setup", unix.SYS_IO_URING_SETUP, [4]uintptr{0, 0}, varies, unix.EPERM},
		{"userfaultfd", unix.SYS_USERFAULTFD, [4]uintptr{closed}, varies, unix.EPERM},
		{"ptrace", unix.SYS_PTRACE, [4]uintptr{unix.PTRACE_CONT, 0}, unix.ESRCH, unix.EPERM},
		{"personality query", unix.SYS_PERSONALITY, [4]uintptr{0xffffffff}, 0, 0},
		{"personality no randomisation", unix.SYS_PERSONALITY, [4]uintptr{0x0040000}, 0, unix.EPERM},
		{"call of a later kernel", 900, [4]uintptr{}, unix.ENOSYS, unix.ENOSYS},
		{"call minus one", ^uintptr(0), [4]uintptr{}, unix.ENOSYS, unix.ENOSYS},
	}
}

func makeAttempts() map[string]unix.Errno {
	result := map[string]unix.Errno{}
	for _, a := range attempts() {
		r, _, errno := unix.RawSyscall6(a.nr, a.args[0], a.args[1], a.args[2], a.args[3], 0, 0)
		if a.nr == unix.SYS_CLONE && errno == 0 {
			if r == 0 { // the new process; nothing of Go works in it
				unix.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
			}
			_, _ = unix.Wait4(int(r), nil, 0, nil) // the same thread made it, so it is there to wait for
		}
		result[a.name] = errno
	}
	return result
}

func outcome(t *testing.T, part string) map[string]unix.Errno {
	t.Helper()
	out, err := command(t, part).Output()
	if err != nil {
		if e, ok := errors.AsType[*exec.ExitError](err); ok {
			t.Fatalf("%s: %v: %s", part, err, e.Stderr)
		}
		t.Fatalf("%s: %v", part, err)
	}
	var result map[string]unix.Errno
	if err := json.Unmarshal(out, &result); err != nil {
		t.Fatal(err)
	}
	return result
}

// TestInstalled makes each call twice, with and without the filter, so that a refusal is known to be the filter's.
func TestInstalled(t *testing.T) {
	free, filtered := outcome(t, "free"), outcome(t, "sandbox")
	for _, a := range attempts() {
		if got := filtered[a.name]; got != a.want {
			t.Errorf("%s: %v behind the filter, want %v", a.name, got, a.want)
		}
		if got := free[a.name]; a.free != varies && got != a.free {
			t.Errorf("%s: %v without the filter, want %v", a.name, got, a.free)
		}
	}
}

// i386 calls getpid through the 32-bit table.
func i386() error {
	if runtime.GOARCH != "amd64" {
		return errors.New("not amd64")
	}
	page, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE|unix.PROT_EXEC, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return err
	}
	copy(page, []byte{0xb8, 20, 0, 0, 0, 0xcd, 0x80, 0xc3}) // mov eax, 20; int 0x80; ret
	code := unsafe.Pointer(&page[0])
	function := unsafe.Pointer(&code) // a Go func value points to a word that points to the code
	(*(*func())(unsafe.Pointer(&function)))()
	return nil
}

// TestForeignTables makes calls through other tables in earnest.
func TestForeignTables(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("i386 and x32 are tables of amd64 kernels")
	}
	for _, part := range []string{"i386", "x32"} {
		t.Run(part, func(t *testing.T) {
			if err := command(t, "free-"+part).Run(); part == "i386" && err != nil {
				t.Skipf("this kernel has no i386 table: %v", err) // nothing to attack; TestForeignNumbers still holds
			} else if e, ok := errors.AsType[*exec.ExitError](err); part == "x32" && (!ok || e.ExitCode() != 1) {
				t.Fatalf("without the filter: %v", err)
			}
			err := command(t, part).Run()
			e, ok := errors.AsType[*exec.ExitError](err)
			if !ok {
				t.Fatalf("behind the filter: %v, want death", err)
			}
			if status := e.Sys().(syscall.WaitStatus); status.Signal() != unix.SIGSYS {
				t.Errorf("behind the filter: %v, want SIGSYS", err)
			}
		})
	}
}

// TestRealPrograms runs what users run. They are the positive control of the whole profile.
func TestRealPrograms(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("HOME", "/nonexistent") // else the go command leaves a process behind that writes there
	if err := os.WriteFile(dir+"/a.c", []byte("#include <pthread.h>\nstatic void*f(void*a){return a;}\n"+
		"int main(void){pthread_t t;return pthread_create(&t,0,f,0)||pthread_join(t,0);}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range [][]string{
		{"bash", "-c", "set -e; cd " + dir + "; mkdir d; echo x | cat > d/y; test -s d/y; (sleep 0 & wait); mkfifo p; ln -s d l; mknod q p; umask 022"},
		{"gcc", "-pthread", "-o", dir + "/a.out", dir + "/a.c"},
		{dir + "/a.out"},
		{"git", "init", "-q", dir + "/r"},
		{"python3", "-c", "import subprocess,socket,tempfile,threading; subprocess.run(['true'],check=True); socket.socket(socket.AF_INET6).close(); threading.Thread(target=print).start(); socket.getaddrinfo('localhost',80)"},
		{"node", "-e", "require('child_process').execSync('true'); require('fs').readFile('/etc/passwd',e=>process.exit(e?1:0))"},
		{"go", "version"},
		{"dpkg", "--version"},
		{"tar", "-C", dir, "-cf", dir + "/t.tar", "a.c"},
		{"getent", "passwd", "root"},
	} {
		t.Run(c[0], func(t *testing.T) {
			path, err := exec.LookPath(c[0])
			if err != nil {
				t.Skip(err)
			}
			if out, err := command(t, "exec", append([]string{path}, c[1:]...)...).CombinedOutput(); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}

// threads installs Gateway with many threads alive and then asks each thread, and the Go runtime, how it does.
func threads() error {
	var ready, done sync.WaitGroup
	start := make(chan struct{})
	errs := make(chan error, 16)
	for range cap(errs) {
		ready.Add(1)
		done.Go(func() {
			runtime.LockOSThread()
			ready.Done()
			<-start
			_, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
			if !errors.Is(err, unix.EAFNOSUPPORT) {
				errs <- fmt.Errorf("a thread that was there before: socket: %w", err)
			}
			mode, err := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0)
			if mode != 1 {
				errs <- fmt.Errorf("no_new_privs is %d (%w)", mode, err)
			}
		})
	}
	ready.Wait()
	filter, err := Compile(Gateway(os.Getpid()), Native())
	if err != nil {
		return err
	}
	if err := InstallAll(filter); err != nil {
		return err
	}
	close(start)
	done.Wait()
	close(errs)
	for err := range errs {
		return err
	}
	return runtimeLives()
}

// runtimeLives exercises what a Go program needs of the kernel, and what this one must not have.
func runtimeLives() error {
	var group sync.WaitGroup
	for range 200 { // new threads, by goroutines that hold theirs
		group.Go(func() {
			runtime.LockOSThread()
			time.Sleep(time.Millisecond)
			_ = make([]byte, 1<<20) // allocated to give the collector work
		})
	}
	group.Wait()
	runtime.GC()
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGUSR1)
	if err := unix.Kill(os.Getpid(), unix.SIGUSR1); err != nil {
		return fmt.Errorf("signal to itself: %w", err)
	}
	select {
	case <-signals:
	case <-time.After(5 * time.Second):
		return errors.New("no signal came")
	}
	if err := unix.Kill(os.Getppid(), 0); !errors.Is(err, unix.EPERM) {
		return fmt.Errorf("signal to the parent: %w", err)
	}
	if err := exec.Command("/bin/true").Run(); !errors.Is(err, unix.EPERM) {
		return fmt.Errorf("start of a program: %w", err)
	}
	return nil
}

func TestInstallAll(t *testing.T) {
	if out, err := command(t, "threads").CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// installWithoutPrivileges wants the kernel's refusal: without no_new_privs a filter could lie to a set-user-ID program.
func installWithoutPrivileges() error {
	filter, err := Compile(Sandbox(), Native())
	if err != nil {
		return err
	}
	if os.Getuid() == 0 {
		var none [2]unix.CapUserData
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		if err := unix.Capset(&header, &none[0]); err != nil {
			return err
		}
	}
	if err := Install(filter, 0); !errors.Is(err, unix.EACCES) {
		return fmt.Errorf("without no_new_privs: %w", err)
	}
	return nil
}

func TestInstallRefuses(t *testing.T) {
	if out, err := command(t, "permissive").CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	for name, err := range map[string]error{
		"empty":    Install(nil, 0),
		"all":      Install([]unix.SockFilter{{}}, unix.SECCOMP_FILTER_FLAG_TSYNC),
		"listener": Install([]unix.SockFilter{{}}, unix.SECCOMP_FILTER_FLAG_NEW_LISTENER),
		"long":     Install(make([]unix.SockFilter, MaxInstructions+1), 0),
	} {
		if err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

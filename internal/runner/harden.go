package runner

import (
	"errors"
	"fmt"
	"math"
	"os"
	"os/signal"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Harden prepares the process to be process 1: no file and no capability is handed on to the command by accident, nobody inside may look into its
// memory, and no signal from inside ends it. It must come before anything is read or opened.
func Harden() error {
	if err := closeOnExec(); err != nil {
		return fmt.Errorf("mark inherited files: %w", err)
	}
	if err := keepCapabilities(); err != nil {
		return fmt.Errorf("keep capabilities from the command: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("forbid looking into the runner: %w", err)
	}
	catchSignals()
	return heedSignals()
}

// keepCapabilities empties the inheritable set of every thread. A launcher hands on CAP_SYS_PTRACE in it, by which the runner sees whose socket it is when the
// process has another user id; the bounding set lacks it, so nothing that is started from now on can have it (capabilities(7)).
func keepCapabilities() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData
	if err := unix.Capget(&header, &sets[0]); err != nil {
		return err
	}
	if sets[0].Inheritable|sets[1].Inheritable == 0 {
		return nil
	}
	sets[0].Inheritable, sets[1].Inheritable = 0, 0
	// Any thread may be the one that starts the command. The call ends the program if the threads' answers differ.
	if _, _, errno := syscall.AllThreadsSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&sets[0])), 0); errno != 0 {
		return errno
	}
	return nil
}

// kernelSigaction is struct sigaction as the kernel takes it on amd64 and arm64.
type kernelSigaction struct {
	handler, flags, restorer uintptr
	mask                     uint64
}

// heedSignals puts signals that a careless parent ignored back to their default: the command would inherit that, and programs expect a clean start.
// Those that would then end the program, because Go installs nothing for them, get a handler that does nothing.
//
// The kernel spares process 1 signals from inside that have no handler, but decides so by its first thread: while that one blocks a signal, as Go does for
// moments whenever it starts a thread, and another thread does not, the signal ends the process (sig_ignored and complete_signal in kernel/signal.c).
func heedSignals() error {
	const byDefault, ignore, lastSignal = 0, 1, 64
	idle, err := action(unix.SIGUSR1, nil) // as Go wants to be called, and with the way back
	if err != nil {
		return err
	}
	idle.handler = idleHandler()
	for n := unix.Signal(1); n <= lastSignal; n++ {
		old, err := action(n, nil)
		if err == nil && old.handler == ignore {
			old = kernelSigaction{}
			_, err = action(n, &old)
		}
		if err == nil && old.handler == byDefault && endsByDefault(n) {
			_, err = action(n, &idle)
		}
		if err != nil {
			return fmt.Errorf("heed signal %d: %w", n, err)
		}
	}
	return nil
}

// idleHandler returns the address of a signal handler that does nothing. It is in assembly: Go's own would end the program on signals that it does not know.
func idleHandler() uintptr

// action returns what is done on a signal, and does something else from then on unless next is nil.
func action(n unix.Signal, next *kernelSigaction) (old kernelSigaction, err error) {
	if _, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(n), uintptr(unsafe.Pointer(next)), uintptr(unsafe.Pointer(&old)), unsafe.Sizeof(old.mask), 0, 0); errno != 0 {
		return old, errno
	}
	return old, nil
}

// endsByDefault says whether a signal can be handled, and without a handler ends a process (signal(7)).
func endsByDefault(n unix.Signal) bool {
	switch n {
	case unix.SIGKILL, unix.SIGSTOP, unix.SIGTSTP, unix.SIGTTIN, unix.SIGTTOU, unix.SIGCONT, unix.SIGCHLD, unix.SIGURG, unix.SIGWINCH:
		return false
	}
	return true
}

// closeOnExec marks every file beyond the standard three. What a launcher forgot to close must not reach the command.
func closeOnExec() error {
	err := unix.CloseRange(3, math.MaxInt32, unix.CLOSE_RANGE_CLOEXEC)
	if !errors.Is(err, unix.ENOSYS) && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EPERM) {
		return err
	}
	for fd := 3; fd < 1024; fd++ { // kernels before 5.11 and filters that do not know the call
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil {
			if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, flags|unix.FD_CLOEXEC); err != nil {
				return err
			}
		}
	}
	return nil
}

// catchSignals catches and drops the signals that would end a Go program when a process inside sends them; the others do nothing to it.
// The kernel spares process 1 only from signals without a handler, but Go installs its own for all. Caught signals, unlike ignored ones,
// are back to their default in the command. Each costs the start some ten microseconds, so it is these and no more.
func catchSignals() {
	signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGILL, syscall.SIGTRAP, syscall.SIGABRT,
		syscall.SIGBUS, syscall.SIGFPE, syscall.SIGSEGV, syscall.SIGTERM, syscall.SIGSTKFLT, syscall.SIGSYS)
}

// TakeInput returns a reader of what file descriptor 0 was and puts /dev/null in its place, so that the boot file cannot be read again.
func TakeInput() (*os.File, error) {
	fd, err := unix.FcntlInt(0, unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, fmt.Errorf("boot file: %w", err)
	}
	in := os.NewFile(uintptr(fd), "boot")
	null, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return in, fmt.Errorf("open /dev/null: %w", err)
	}
	defer unix.Close(null) // a duplicate stays
	return in, unix.Dup3(null, 0, 0)
}

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

// Harden prepares the process to be process 1: no file is handed on to the command by accident, nobody inside may look into its memory, and
// no signal from inside ends it. It must come before anything is read or opened.
func Harden() error {
	if err := closeOnExec(); err != nil {
		return fmt.Errorf("mark inherited files: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("forbid looking into the runner: %w", err)
	}
	catchSignals()
	return heedSignals()
}

// kernelSigaction is struct sigaction as the kernel takes it on amd64 and arm64.
type kernelSigaction struct {
	handler, flags, restorer uintptr
	mask                     uint64
}

// heedSignals puts signals that a careless parent ignored back to their default: the command would inherit that, and programs expect a clean start.
func heedSignals() error {
	const ignore, lastSignal = 1, 64
	for n := uintptr(1); n <= lastSignal; n++ {
		var old, none kernelSigaction
		if _, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, n, 0, uintptr(unsafe.Pointer(&old)), unsafe.Sizeof(none.mask), 0, 0); errno != 0 || old.handler != ignore {
			continue
		}
		if _, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, n, uintptr(unsafe.Pointer(&none)), 0, unsafe.Sizeof(none.mask), 0, 0); errno != 0 {
			return fmt.Errorf("stop ignoring signal %d: %w", n, errno)
		}
	}
	return nil
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

package seccomp

import (
	"errors"
	"os"
	"runtime"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Install puts a filter on the calling thread and, with it, on every thread and process that it starts from now on. The caller has
// locked the goroutine to its thread and has set no_new_privs, without which the kernel refuses. It cannot be undone. Flags are
// SECCOMP_FILTER_FLAG_ values; those that change what the call returns are refused.
func Install(filter []unix.SockFilter, flags uint) error {
	if flags&(unix.SECCOMP_FILTER_FLAG_TSYNC|unix.SECCOMP_FILTER_FLAG_NEW_LISTENER) != 0 {
		return errors.New("seccomp: Install acts on one thread and returns no listener")
	}
	return install(filter, flags)
}

// InstallAll puts a filter on every thread of the process, or on none. It also sets no_new_privs on all of them, as the kernel does for
// the threads that it synchronizes. It cannot be undone.
func InstallAll(filter []unix.SockFilter) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return os.NewSyscallError("prctl PR_SET_NO_NEW_PRIVS", err)
	}
	return install(filter, unix.SECCOMP_FILTER_FLAG_TSYNC)
}

func install(filter []unix.SockFilter, flags uint) error {
	if len(filter) == 0 || len(filter) > MaxInstructions {
		return errors.New("seccomp: a filter of " + strconv.Itoa(len(filter)) + " instructions")
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	thread, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, uintptr(flags), uintptr(unsafe.Pointer(&prog)))
	runtime.KeepAlive(filter)
	if errno != 0 {
		return os.NewSyscallError("seccomp", errno)
	}
	if thread != 0 { // with TSYNC: the thread that could not follow, because it has filters which the caller has not
		return errors.New("seccomp: thread " + strconv.Itoa(int(thread)) + " has other filters than the calling thread")
	}
	return nil
}

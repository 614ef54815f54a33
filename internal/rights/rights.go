// Package rights (SANDBOX) is what root inside a sandbox may do, in a container as in a virtual machine, and how a process gives up the rest before it becomes the runner.
//
// All of it belongs to threads: the caller is locked to the thread that executes the runner.
package rights

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/seccomp"
)

// Bounds say what a sandbox's first process keeps.
type Bounds struct {
	// Processes bounds the processes and threads of its user, 0 for no bound. The kernel exempts user 0 of the first user namespace, which no sandbox on a host has; where
	// a sandbox has it, in a machine of its own, its control group has to bound it.
	Processes uint64
	// OpenFiles bounds the descriptors of each process, 0 for no bound but the one that there is.
	OpenFiles uint64
	// Shared says that something is writable for both the sandbox and the host.
	Shared bool
	// Users says that the sandbox has more than one user id.
	Users bool
	// Profile is the system call filter.
	Profile seccomp.Profile
}

// GiveUp gives up what the sandbox must not have. The order matters, since each step needs rights that a later one takes.
func GiveUp(b Bounds) error {
	Spare()
	if b.Processes > 0 {
		limit := unix.Rlimit{Cur: b.Processes, Max: b.Processes}
		if err := unix.Setrlimit(unix.RLIMIT_NPROC, &limit); err != nil {
			return fmt.Errorf("limit processes: %w", err)
		}
	}
	if err := errors.Join(LimitFiles(b.OpenFiles), ForbidCores()); err != nil {
		return err
	}
	if err := restrictCapabilities(b.Shared, b.Users); err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("set no_new_privs: %w", err)
	}
	if err := restrictLandlock(); err != nil {
		return err
	}
	filter, err := seccomp.Compile(b.Profile, seccomp.Native())
	if err != nil {
		return fmt.Errorf("compile the system call filter: %w", err)
	}
	if err := seccomp.Install(filter, 0); err != nil {
		return fmt.Errorf("install the system call filter: %w", err)
	}
	return nil
}

// Spare has the kernel choose the calling process before others when memory runs out. It is a wish.
func Spare() { _ = os.WriteFile("/proc/self/oom_score_adj", []byte("500"), 0) }

// LimitFiles bounds the descriptors of the calling process and of each that it starts, none of which can raise that again. 0 bounds nothing; a bound that is lower stays.
func LimitFiles(most uint64) error {
	if most == 0 {
		return nil
	}
	var now unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &now); err != nil {
		return fmt.Errorf("ask for the limit of open files: %w", err)
	}
	most = min(most, now.Max)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: most, Max: most}); err != nil {
		return fmt.Errorf("limit open files: %w", err)
	}
	return nil
}

// ForbidCores keeps the calling process and what it starts from dumping core.
func ForbidCores() error {
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("forbid core dumps: %w", err)
	}
	return nil
}

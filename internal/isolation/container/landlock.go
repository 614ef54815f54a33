package container

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Landlock is a second lock behind the namespaces: nothing may create device files, and no signal or abstract socket reaches outside.
// It needs Linux 5.13 (scopes: 6.12); where the kernel has none, the namespaces and seccomp alone hold, and doctor says so.

// landlockRuleset is struct landlock_ruleset_attr of linux/landlock.h, ABI 6.
type landlockRuleset struct {
	fs, net, scoped uint64
}

// Bits of linux/landlock.h.
const (
	landlockMakeChar       = 1 << 6
	landlockMakeBlock      = 1 << 11
	landlockScopeAbstract  = 1 << 0
	landlockScopeSignal    = 1 << 1
	landlockCreateVersion  = 1 << 0
	landlockScopesFromABI  = 6
	landlockSizeBeforeNet  = 8
	landlockSizeWithScopes = 24
)

// LandlockABI returns the kernel's Landlock version, 0 where there is none.
func LandlockABI() int {
	abi, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, landlockCreateVersion)
	if errno != 0 {
		return 0
	}
	return int(abi)
}

// restrictLandlock applies the rules to this thread. The caller has set no_new_privs.
func restrictLandlock() error {
	abi := LandlockABI()
	if abi < 1 {
		return nil
	}
	attr := landlockRuleset{fs: landlockMakeChar | landlockMakeBlock}
	size := uintptr(landlockSizeBeforeNet)
	if abi >= landlockScopesFromABI {
		attr.scoped = landlockScopeAbstract | landlockScopeSignal
		size = landlockSizeWithScopes
	}
	fd, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&attr)), size, 0)
	if errno != 0 {
		return fmt.Errorf("make Landlock rules: %w", errno)
	}
	defer unix.Close(int(fd))
	if _, _, errno := unix.Syscall(unix.SYS_LANDLOCK_RESTRICT_SELF, fd, 0, 0); errno != 0 {
		return fmt.Errorf("apply Landlock rules: %w", errno)
	}
	return nil
}

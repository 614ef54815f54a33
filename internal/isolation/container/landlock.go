package container

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Landlock is a second lock behind the namespaces: nothing may create device files, and no signal or abstract socket reaches outside.
// It needs Linux 5.19 (scopes: 6.12); where the kernel has none, the namespaces and seccomp alone hold, and doctor says so.

// landlockRuleset is struct landlock_ruleset_attr of linux/landlock.h, ABI 6.
type landlockRuleset struct {
	fs, net, scoped uint64
}

// Bits of linux/landlock.h.
const (
	landlockMakeChar       = 1 << 6
	landlockMakeBlock      = 1 << 11
	landlockRefer          = 1 << 13
	landlockPathBeneath    = 1
	landlockScopeAbstract  = 1 << 0
	landlockScopeSignal    = 1 << 1
	landlockCreateVersion  = 1 << 0
	landlockReferFromABI   = 2
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
	if abi < landlockReferFromABI {
		return nil // version 1 forbids every rename between directories, which no program survives
	}
	attr := landlockRuleset{fs: landlockMakeChar | landlockMakeBlock | landlockRefer}
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
	if err := allowRefer(fd); err != nil {
		return err
	}
	if _, _, errno := unix.Syscall(unix.SYS_LANDLOCK_RESTRICT_SELF, fd, 0, 0); errno != 0 {
		return fmt.Errorf("apply Landlock rules: %w", errno)
	}
	return nil
}

// landlockBeneath is struct landlock_path_beneath_attr, which is packed.
type landlockBeneath struct {
	allowed uint64
	parent  int32
	_       int32 // beyond the kernel's structure, which it does not read
}

// allowRefer lets files be renamed and linked between directories, everywhere below the sandbox's root: once any rule is in force Landlock denies that otherwise.
func allowRefer(ruleset uintptr) error {
	root, err := unix.Open("/", unix.O_PATH|unix.O_CLOEXEC|unix.O_DIRECTORY, 0)
	if err != nil {
		return fmt.Errorf("open the root for Landlock: %w", err)
	}
	defer unix.Close(root)
	rule := landlockBeneath{allowed: landlockRefer, parent: int32(root)}
	if _, _, errno := unix.Syscall6(unix.SYS_LANDLOCK_ADD_RULE, ruleset, landlockPathBeneath, uintptr(unsafe.Pointer(&rule)), 0, 0, 0); errno != 0 {
		return fmt.Errorf("add a Landlock rule: %w", errno)
	}
	return nil
}

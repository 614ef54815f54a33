package rights

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
	landlockMakeChar        = 1 << 6
	landlockMakeBlock       = 1 << 11
	landlockRefer           = 1 << 13
	landlockPathBeneath     = 1
	landlockScopeAbstract   = 1 << 0
	landlockScopeSignal     = 1 << 1
	landlockCreateVersion   = 1 << 0
	landlockReferFromABI    = 2
	landlockTruncateFromABI = 3
	landlockNetFromABI      = 4
	landlockScopesFromABI   = 6
	landlockSizeBeforeNet   = 8
	landlockSizeWithNet     = 16
	landlockSizeWithScopes  = 24
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
	// Renaming is allowed everywhere: once any rule is in force Landlock denies it otherwise.
	return restrictFiles(abi, landlockRuleset{fs: landlockMakeChar | landlockMakeBlock | landlockRefer}, map[string]uint64{"/": landlockRefer})
}

// ForbidWriting lets this thread write to no file but open ones and devices, make no file but sockets in one directory, if one is named, and connect to nothing but Unix
// sockets. The caller has set no_new_privs.
func ForbidWriting(sockets string) error {
	const (
		write  = unix.LANDLOCK_ACCESS_FS_WRITE_FILE
		change = unix.LANDLOCK_ACCESS_FS_REMOVE_DIR | unix.LANDLOCK_ACCESS_FS_REMOVE_FILE | landlockMakeChar | unix.LANDLOCK_ACCESS_FS_MAKE_DIR | unix.LANDLOCK_ACCESS_FS_MAKE_REG |
			unix.LANDLOCK_ACCESS_FS_MAKE_SOCK | unix.LANDLOCK_ACCESS_FS_MAKE_FIFO | landlockMakeBlock | unix.LANDLOCK_ACCESS_FS_MAKE_SYM
	)
	abi := LandlockABI()
	if abi == 0 {
		return nil
	}
	rules := landlockRuleset{fs: write | change}
	if abi >= landlockReferFromABI {
		rules.fs |= landlockRefer
	}
	if abi >= landlockTruncateFromABI {
		rules.fs |= unix.LANDLOCK_ACCESS_FS_TRUNCATE
	}
	if abi >= landlockNetFromABI {
		rules.net = unix.LANDLOCK_ACCESS_NET_BIND_TCP | unix.LANDLOCK_ACCESS_NET_CONNECT_TCP
	}
	allowed := map[string]uint64{"/dev": write}
	if sockets != "" {
		allowed[sockets] = unix.LANDLOCK_ACCESS_FS_MAKE_SOCK
	}
	return restrictFiles(abi, rules, allowed)
}

// restrictFiles applies rules to this thread, except for what is allowed below directories, and where the kernel can, the rule that no signal and no abstract socket reaches outside.
func restrictFiles(abi int, attr landlockRuleset, allowed map[string]uint64) error {
	size := uintptr(landlockSizeBeforeNet)
	if abi >= landlockNetFromABI {
		size = landlockSizeWithNet
	}
	if abi >= landlockScopesFromABI {
		attr.scoped = landlockScopeAbstract | landlockScopeSignal
		size = landlockSizeWithScopes
	}
	fd, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&attr)), size, 0)
	if errno != 0 {
		return fmt.Errorf("make Landlock rules: %w", errno)
	}
	defer unix.Close(int(fd))
	for below, rights := range allowed {
		if err := allowBeneath(fd, below, rights); err != nil {
			return err
		}
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

// allowBeneath excepts what lies below a directory.
func allowBeneath(ruleset uintptr, dir string, allowed uint64) error {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_CLOEXEC|unix.O_DIRECTORY, 0)
	if err != nil {
		return fmt.Errorf("open %s for Landlock: %w", dir, err)
	}
	defer unix.Close(fd)
	rule := landlockBeneath{allowed: allowed, parent: int32(fd)}
	if _, _, errno := unix.Syscall6(unix.SYS_LANDLOCK_ADD_RULE, ruleset, landlockPathBeneath, uintptr(unsafe.Pointer(&rule)), 0, 0, 0); errno != 0 {
		return fmt.Errorf("add a Landlock rule: %w", errno)
	}
	return nil
}

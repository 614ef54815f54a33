package confine

import (
	"fmt"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/psx"

	"github.com/cofferdam/cofferdam/internal/fault"
)

// Securebits (include/uapi/linux/securebits.h): user 0 is nobody special, no capability survives a change of user, none becomes ambient;
// and each of it is locked.
const (
	secureNoRoot            = 1 << 0
	secureNoRootLocked      = 1 << 1
	secureSetuidFixupLocked = 1 << 3
	secureKeepCapsLocked    = 1 << 5
	secureNoAmbient         = 1 << 6
	secureNoAmbientLocked   = 1 << 7
	secureWanted            = secureNoRoot | secureNoRootLocked | secureSetuidFixupLocked | secureKeepCapsLocked | secureNoAmbient | secureNoAmbientLocked
)

// dropPrivileges takes user, groups and capabilities away. Linux keeps them for each thread, so each step is done on all threads at once:
// one thread left behind would be root, and any goroutine can land on it. Each such step stops the whole program for half a millisecond, so that what is as it
// should be already is left as it is; verify looks at every thread in the end.
func (p *plan) dropPrivileges() error {
	if p.root {
		if err := p.becomeUser(); err != nil {
			return fault.New(fault.Unsupported, "root here cannot become user %d and give up its privileges", p.uid).Because(err).
				WithHint("start as an ordinary user, or with the capabilities SETUID, SETGID and SETPCAP and that user mapped")
		}
	}
	if held, err := capabilities(); err != nil || held { // a change from user 0 has taken most (capabilities(7))
		if err := dropCapabilities(); err != nil {
			return fmt.Errorf("drop capabilities: %w", err)
		}
	}
	if p.landlock == 0 { // else it comes with the limit on files
		if err := allThreadsPrctl(unix.PR_SET_NO_NEW_PRIVS, 1); err != nil {
			return fmt.Errorf("set no_new_privs: %w", err)
		}
	}
	// Not dumpable: no core file with what passed through, and other processes of the user cannot attach or look into its memory.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("clear dumpable: %w", err)
	}
	return nil
}

// becomeUser needs capabilities and spends them. The bounding set stays: the kernel looks at it only when a program is executed, which no_new_privs
// and the filter forbid, and emptying it would stop all threads once for each of forty capabilities.
func (p *plan) becomeUser() error {
	if err := setSecurebits(); err != nil {
		return fmt.Errorf("set securebits: %w", err)
	}
	if err := syscall.Setgroups(nil); err != nil {
		return fmt.Errorf("leave supplementary groups: %w", err)
	}
	if err := syscall.Setresgid(p.gid, p.gid, p.gid); err != nil {
		return fmt.Errorf("become group %d: %w", p.gid, err)
	}
	if err := syscall.Setresuid(p.uid, p.uid, p.uid); err != nil {
		return fmt.Errorf("become user %d: %w", p.uid, err)
	}
	return nil
}

func setSecurebits() error {
	old, err := unix.PrctlRetInt(unix.PR_GET_SECUREBITS, 0, 0, 0, 0)
	if err != nil {
		return err
	}
	return allThreadsPrctl(unix.PR_SET_SECUREBITS, uintptr(old)|secureWanted)
}

// capabilities says whether the calling thread has any, the ambient ones among them: those are permitted too.
func capabilities() (bool, error) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData
	err := unix.Capget(&header, &sets[0])
	all := uint32(0)
	for _, s := range sets {
		all |= s.Effective | s.Permitted | s.Inheritable
	}
	return all != 0, err
}

// dropCapabilities empties the permitted, effective and inheritable sets, and by that the ambient set.
func dropCapabilities() error {
	header := &unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	none := &[2]unix.CapUserData{}
	_, _, errno := psx.Syscall3(unix.SYS_CAPSET, uintptr(unsafe.Pointer(header)), uintptr(unsafe.Pointer(none)), 0)
	runtime.KeepAlive(header)
	runtime.KeepAlive(none)
	if errno != 0 {
		return errno
	}
	return nil
}

// allThreadsPrctl works in programs with and without cgo. The test binaries have it, since the race detector needs it.
func allThreadsPrctl(option int, arg uintptr) error {
	if _, _, errno := psx.Syscall6(unix.SYS_PRCTL, uintptr(option), arg, 0, 0, 0, 0); errno != 0 {
		return errno
	}
	return nil
}

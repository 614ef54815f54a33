package rights

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// usual are the capabilities of root inside, each with what needs it. They count only in the sandbox's own user namespace.
// Not among them: NET_ADMIN and NET_RAW (the network's rules), SYS_ADMIN, SYS_PTRACE, MKNOD, SETPCAP, AUDIT_*, everything about the host. The runner has SYS_PTRACE apart.
func usual() map[uintptr]string {
	return map[uintptr]string{
		unix.CAP_CHOWN:            "package managers give files to users",
		unix.CAP_DAC_OVERRIDE:     "root writes where users may not",
		unix.CAP_FOWNER:           "package managers change modes of files of users",
		unix.CAP_FSETID:           "keeping set-id bits in packages, which no_new_privs makes harmless",
		unix.CAP_KILL:             "service managers stop processes of users",
		unix.CAP_SETGID:           "apt, su and services change group",
		unix.CAP_SETUID:           "apt, su and services change user",
		unix.CAP_SETFCAP:          "packages with file capabilities, which no_new_privs makes harmless",
		unix.CAP_NET_BIND_SERVICE: "servers on ports below 1024 of the sandbox's own loopback",
		unix.CAP_SYS_CHROOT:       "package and build tools change root",
	}
}

// Kept are the capabilities of root inside, each with what needs it. Where a folder is shared with the host's programs, file capabilities are not for the sandbox: written
// through an id-mapped mount, they would count on the host.
func Kept(shared bool) map[uintptr]string {
	keep := usual()
	if shared {
		delete(keep, unix.CAP_SETFCAP)
	}
	return keep
}

// restrictCapabilities drops everything but Kept, from every set, for this thread and all that it becomes.
//
// With several user ids inside, the runner alone also has CAP_SYS_PTRACE, to see which process of another user a refused packet came from. The inheritable set
// carries it over the one exec that becomes the runner, which empties that set. The bounding set lacks it, so nothing that the runner starts can get it.
func restrictCapabilities(shared, users bool) error {
	keep := Kept(shared)
	var data [2]unix.CapUserData
	for c := range keep {
		data[c/32].Effective |= 1 << (c % 32)
		data[c/32].Permitted |= 1 << (c % 32)
	}
	if users {
		const ptrace = 1 << unix.CAP_SYS_PTRACE
		data[0].Effective |= ptrace
		data[0].Permitted |= ptrace
		data[0].Inheritable = ptrace
		if err := makeInheritable(ptrace); err != nil {
			return err
		}
	}
	for c := uintptr(0); c <= unix.CAP_LAST_CAP; c++ {
		if _, ok := keep[c]; ok {
			continue
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil && err != unix.EINVAL { // EINVAL: the kernel has no such capability
			return fmt.Errorf("drop capability %d: %w", c, err)
		}
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("clear ambient capabilities: %w", err)
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	if err := unix.Capset(&header, &data[0]); err != nil {
		return fmt.Errorf("set capabilities: %w", err)
	}
	return nil
}

// makeInheritable adds to the inheritable set what the bounding set still has: once it lacks it, the kernel refuses that (capabilities(7)).
func makeInheritable(low uint32) error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return fmt.Errorf("read capabilities: %w", err)
	}
	data[0].Inheritable |= low
	if err := unix.Capset(&header, &data[0]); err != nil {
		return fmt.Errorf("make capabilities inheritable: %w", err)
	}
	return nil
}

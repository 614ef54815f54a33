// Package inherit (WORDS) deals with descriptors that a program got from its parent without asking.
package inherit

import (
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// CloseOthers closes every descriptor above 2 that would survive an exec: what this program opened itself closes on exec, so what does not was open in
// its parent, by whose carelessness a sandbox or a gateway could come to hold it (CVE-2024-21626). What is to stay must be marked close-on-exec before.
func CloseOthers() error {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return fmt.Errorf("list open descriptors: %w", err)
	}
	for _, e := range entries {
		fd, err := strconv.Atoi(e.Name())
		if err != nil || fd <= 2 {
			continue
		}
		flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
		if err == nil && flags&unix.FD_CLOEXEC == 0 {
			_ = unix.Close(fd) // not ours; it may be gone already
		}
	}
	return nil
}

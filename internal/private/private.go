// Package private (WORDS) keeps directories that are nobody else's.
package private

import (
	"fmt"
	"os"
	"syscall"

	"github.com/cofferdam/cofferdam/internal/fault"
)

// Dir makes a directory (mode 0700) where it is absent, with what is above it. One of another user, or that others can look into, is fault.Denied; one that cannot be
// made, fault.Unavailable.
func Dir(path string) error {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return fault.New(fault.Unavailable, "cannot make the directory %s", path).Because(err).WithHint("set COFFERDAM_STATE to a directory that you can write")
	}
	info, err := os.Lstat(path)
	if err != nil {
		return fmt.Errorf("look at %s: %w", path, err)
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	switch {
	case !info.IsDir() || !ok || int(stat.Uid) != os.Geteuid():
		return fault.New(fault.Denied, "%s is not a directory of this user", path).WithHint("work as its owner, or name another state directory in COFFERDAM_STATE")
	case info.Mode().Perm()&0o077 != 0:
		return fault.New(fault.Denied, "others can look into %s", path).WithHint("type: chmod 700 %s", path)
	}
	return nil
}

package pool

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Surroundings returns a mark of what a sandbox would inherit of the calling process: its ids, rights, resource limits, control groups, processors, namespaces and root
// directory; and of the programs that it would be made by, which may be replaced while one of them waits. A sandbox that waits has them of the pool's process. One that
// is given only to who has the same is as bounded as one that he started himself.
func Surroundings(programs ...string) (string, error) {
	sum := sha256.New()
	for _, name := range append([]string{"/proc/self/exe"}, programs...) {
		var s unix.Stat_t
		err := unix.Stat(name, &s) // one that is missing is told by its absence
		fmt.Fprintln(sum, name, err, s.Dev, s.Ino, s.Size, s.Mtim.Nano())
	}
	for _, name := range []string{"limits", "cgroup", "oom_score_adj", "attr/current"} {
		data, err := os.ReadFile("/proc/self/" + name)
		if err != nil && name != "attr/current" { // not every kernel has labels
			return "", fmt.Errorf("look at the own process: %w", err)
		}
		fmt.Fprintf(sum, "%s %q\n", name, data)
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return "", fmt.Errorf("look at the own process: %w", err)
	}
	for line := range strings.Lines(string(status)) {
		switch key, value, _ := strings.Cut(line, ":"); key {
		case "Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Seccomp_filters", "Cpus_allowed", "Mems_allowed":
			fmt.Fprintf(sum, "%s %q\n", key, value)
		}
	}
	for _, kind := range []string{"user", "mnt", "pid", "net", "ipc", "uts", "cgroup", "time"} {
		name, err := os.Readlink("/proc/self/ns/" + kind)
		if err != nil {
			return "", fmt.Errorf("look at the own namespaces: %w", err)
		}
		fmt.Fprintln(sum, name)
	}
	var root unix.Stat_t
	if err := unix.Stat("/", &root); err != nil {
		return "", fmt.Errorf("look at the root directory: %w", err)
	}
	nice, err := unix.Getpriority(unix.PRIO_PROCESS, 0)
	if err != nil {
		return "", fmt.Errorf("ask for the own priority: %w", err)
	}
	fmt.Fprintln(sum, root.Dev, root.Ino, nice)
	return hex.EncodeToString(sum.Sum(nil)), nil
}

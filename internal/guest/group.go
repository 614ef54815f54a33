package guest

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/frame"
)

// groupsAt is where control groups are mounted, and group the sandbox's own.
const (
	groupsAt = "/groups"
	group    = groupsAt + "/sandbox"
)

// ownMemory is what the sandbox leaves free of the machine's memory, in bytes: for this process, which has to send the changes when scratch is full, and for the kernel.
const ownMemory = 24 << 20

// mountGroups puts control groups in their place.
func mountGroups() error {
	if err := unix.Mount("cgroup2", groupsAt, "cgroup2", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount control groups: %w", err)
	}
	return nil
}

// removeGroup removes the group of a sandbox whose processes are gone, so that the next one's counts begin anew. What that had written counts as the machine's from then on.
func removeGroup() error {
	return await("the end of the last control group", func() bool { return os.Remove(group) == nil })
}

// makeGroup bounds the sandbox's processes and memory and returns the group's open directory. Scratch is memory and counts.
func makeGroup(pids int64) (*os.File, error) {
	available, err := meminfo("MemAvailable")
	if err != nil {
		return nil, err
	}
	if available < 2*ownMemory {
		return nil, fmt.Errorf("the machine has %d MiB of memory left for the sandbox: give it more", available>>20)
	}
	if err := os.WriteFile(groupsAt+"/cgroup.subtree_control", []byte("+memory +pids"), 0); err != nil {
		return nil, fmt.Errorf("choose controllers: %w", err)
	}
	if err := os.Mkdir(group, 0o755); err != nil {
		return nil, err
	}
	most := "max"
	if pids > 0 {
		most = strconv.FormatInt(pids+frame.ReservedProcesses, 10)
	}
	for _, s := range []struct{ name, value string }{{"pids.max", most}, {"memory.max", strconv.FormatInt(available-ownMemory, 10)}} {
		if err := os.WriteFile(group+"/"+s.name, []byte(s.value), 0); err != nil {
			return nil, fmt.Errorf("set %s: %w", s.name, err)
		}
	}
	return os.Open(group)
}

// killed is how many processes of the sandbox were killed because memory ran out.
func killed() (int, error) {
	n, err := field(group+"/memory.events", "oom_kill")
	return int(n), err
}

// stop kills every process of the sandbox, the runner too, whose end then goes its way.
func stop() error { return os.WriteFile(group+"/cgroup.kill", []byte("1"), 0) }

// meminfo returns one of the kernel's figures about memory, in bytes.
func meminfo(name string) (int64, error) {
	n, err := field("/proc/meminfo", name+":")
	return n << 10, err
}

// field returns the number behind a word at the start of a line.
func field(path, word string) (int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if words := strings.Fields(lines.Text()); len(words) >= 2 && words[0] == word {
			return strconv.ParseInt(words[1], 10, 64)
		}
	}
	return 0, fmt.Errorf("%s has no %s", path, word)
}

package container

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
)

// home is the namespaces that a sandbox lives in. They are held open: the kernel gives the number of a namespace that is gone to the next one, so that
// only a number that is still taken can be looked for.
type home []*os.File

// looked are the kinds of namespace in which processes are looked for. Every process of a sandbox is in its user namespace, also those that have made
// themselves others of the other kinds.
func looked() []string { return []string{"pid", "mnt", "user"} }

// homeOf opens the namespaces of a live process that are looked at when the sandbox has ended: those that all its processes are in, and the one that has
// its mounts. The network namespace is not among them: the gateway's sockets hold it until the gateway ends, which is after the sandbox.
func homeOf(pid int) (home, error) {
	var h home
	for _, kind := range looked() {
		f, err := os.Open(procPath(pid, "ns/"+kind))
		if err != nil {
			h.close()
			return nil, fmt.Errorf("hold the sandbox's namespaces: %w", err)
		}
		h = append(h, f)
	}
	return h, nil
}

// close lets go of the namespaces, and with the last hold of what is mounted in them.
func (h home) close() {
	for _, f := range h {
		_ = f.Close() // nothing was written
	}
}

// Remains looks, once and after Done, at every process of the host that this process may look at, and returns an error if one is in a namespace of the
// sandbox, else what was looked for; then it lets go of them. Processes of other users cannot be looked at without privilege; a sandbox's are the caller's own.
func (c *Container) Remains() ([]string, error) {
	defer c.home.close()
	if len(c.home) == 0 {
		return nil, errors.New("the sandbox's namespaces are not known")
	}
	var names []string
	for _, f := range c.home {
		name, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(int(f.Fd())))
		if err != nil {
			return nil, fmt.Errorf("name a namespace: %w", err)
		}
		names = append(names, name)
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("look for processes: %w", err)
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		for _, kind := range looked() {
			if got, err := os.Readlink(procPath(pid, "ns/"+kind)); err == nil && slices.Contains(names, got) {
				return nil, fmt.Errorf("process %d is still in the sandbox's namespace %s", pid, got)
			}
		}
	}
	return []string{"processes", "mounts"}, nil
}

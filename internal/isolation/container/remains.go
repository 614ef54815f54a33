package container

import (
	"errors"
	"fmt"
	"os"
	"strconv"
)

// home is the set of namespaces that a sandbox lives in, by the kernel's names for them, such as "mnt:[4026532218]".
type home map[string]string

// heldNamespaces are looked at when a sandbox has ended. What is mounted for it exists in its mount namespace only.
// The network namespace is not among them: the gateway's sockets hold it until the gateway ends, which is after the sandbox.
func heldNamespaces() []string { return []string{"pid", "mnt", "ipc", "uts"} }

// homeOf reads the namespaces of a live process.
func homeOf(pid int) (home, error) {
	h := home{}
	for _, kind := range heldNamespaces() {
		name, err := os.Readlink(procPath(pid, "ns/"+kind))
		if err != nil {
			return nil, fmt.Errorf("name the sandbox's namespaces: %w", err)
		}
		h[kind] = name
	}
	return h, nil
}

// Remains looks, after Done, at every process of the host that this process may look at, and returns an error if one is in a namespace of the sandbox.
// Processes of other users cannot be looked at without privilege; a sandbox's are the caller's own.
func (c *Container) Remains() error {
	if len(c.home) == 0 {
		return errors.New("the sandbox's namespaces are not known")
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return fmt.Errorf("look for processes: %w", err)
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		for kind, name := range c.home {
			if got, err := os.Readlink(procPath(pid, "ns/"+kind)); err == nil && got == name {
				return fmt.Errorf("process %d is still in the sandbox's %s namespace", pid, kind)
			}
		}
	}
	return nil
}

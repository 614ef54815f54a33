package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Relimit bounds a group anew, which may have processes. A controller that l does not bound is left without a bound; one that the group was made without cannot be bounded.
func (g *Group) Relimit(l Limits) error {
	for controller, wanted := range map[string]int64{"cpu": l.MilliCPUs, "memory": l.Memory, "pids": l.PIDs} {
		dir, unified, ok := g.of(controller)
		switch {
		case !ok && wanted > 0:
			return fmt.Errorf("the control group cannot limit %s", controller)
		case ok && wanted > 0:
			if err := again(dir, controller, unified, l); err != nil {
				return err
			}
		case ok:
			if err := unbound(dir, controller, unified); err != nil {
				return err
			}
		}
	}
	return nil
}

// of finds the directory that has a controller.
func (g *Group) of(controller string) (dir string, unified, ok bool) {
	old := map[string]string{"cpu": "cpu.cfs_quota_us", "memory": "memory.limit_in_bytes", "pids": "pids.max"}[controller]
	for _, dir := range g.dirs {
		name := old
		if dir == g.unified {
			name = controller + ".max"
		}
		if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
			return dir, dir == g.unified, true
		}
	}
	return "", false, false
}

// again writes one controller's limit over another. In version 1 the bound of memory alone may never be above the one of memory and swap, so that the order depends
// on whether the bound grows.
func again(dir, controller string, unified bool, l Limits) error {
	first := apply(dir, controller, unified, l)
	if first == nil || controller != "memory" || unified {
		return first
	}
	if err := os.WriteFile(filepath.Join(dir, "memory.memsw.limit_in_bytes"), fmt.Append(nil, l.Memory), 0); err != nil {
		return errors.Join(first, err)
	}
	return apply(dir, controller, unified, l)
}

// unbound takes one controller's limit away.
func unbound(dir, controller string, unified bool) error {
	files := map[string][]string{"cpu": {"cpu.cfs_quota_us"}, "memory": {"memory.memsw.limit_in_bytes", "memory.limit_in_bytes"}, "pids": {"pids.max"}}[controller]
	none := "-1"
	if unified {
		files = map[string][]string{"cpu": {"cpu.max"}, "memory": {"memory.max", "memory.swap.max"}, "pids": {"pids.max"}}[controller]
	}
	if unified || controller == "pids" {
		none = "max"
	}
	for _, name := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(none), 0); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrPermission) { // no accounting of swap
			return fmt.Errorf("take the limit of %s away: %w", controller, err)
		}
	}
	return nil
}

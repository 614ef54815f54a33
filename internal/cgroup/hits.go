package cgroup

import (
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Throttled is for how long processes that wanted to run were kept from it at the group's limit of processors. Zero where there is none.
func (g *Group) Throttled() time.Duration {
	for _, dir := range g.dirs {
		for line := range strings.Lines(string(readAll(filepath.Join(dir, "cpu.stat")))) {
			name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
			n, err := strconv.ParseInt(value, 10, 64)
			switch {
			case err != nil || n == 0:
			case name == "throttled_usec": // version 2
				return time.Duration(n) * time.Microsecond
			case name == "throttled_time": // version 1
				return time.Duration(n)
			}
		}
	}
	return 0
}

// Processes are the most processes and threads that the group had at once, and how many more were refused at its limit. Zero where nothing tells.
func (g *Group) Processes() (peak, refused int64) {
	for _, dir := range g.dirs {
		if n, err := strconv.ParseInt(strings.TrimSpace(string(readAll(filepath.Join(dir, "pids.peak")))), 10, 64); err == nil {
			peak = max(peak, n)
		}
		for line := range strings.Lines(string(readAll(filepath.Join(dir, "pids.events")))) {
			if value, ok := strings.CutPrefix(strings.TrimSpace(line), "max "); ok {
				n, _ := strconv.ParseInt(value, 10, 64) // the kernel writes decimal numbers
				refused += n
			}
		}
	}
	return peak, refused
}

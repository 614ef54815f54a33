// Package cgroup (SANDBOX) bounds a sandbox with control groups, version 1, version 2 or both side by side, below the group of the process that asks.
// Through the same groups every process of a sandbox is stopped and let go on, whatever its kernel.
package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/ident"
)

// Name is the name of a run's group.
func Name(run ident.Run) string { return "cofferdam-" + run.String() }

// Limits are the bounds of one sandbox. Zero means: not bounded here.
type Limits struct {
	MilliCPUs int64 // thousandths of one processor
	Memory    int64 // bytes, swap included
	PIDs      int64 // tasks
}

// Controllers names what limits need.
func (l Limits) Controllers() []string {
	var names []string
	if l.MilliCPUs > 0 {
		names = append(names, "cpu")
	}
	if l.Memory > 0 {
		names = append(names, "memory")
	}
	if l.PIDs > 0 {
		names = append(names, "pids")
	}
	return names
}

// Host knows where this process may make groups. The zero value can make none.
type Host struct {
	parents map[string]parent // by controller
	freezer parent            // where groups can be made that can be frozen; empty if nowhere
}

// parent is the directory below which a controller's groups are made.
type parent struct {
	dir     string
	unified bool // version 2
}

// Detect finds, for each controller, a directory where this process can make a group of its own.
func Detect() Host { return detect("/proc/self/cgroup", "/proc/self/mountinfo") }

func detect(membership, mountinfo string) Host {
	h := Host{parents: map[string]parent{}}
	own, err := os.ReadFile(membership)
	if err != nil {
		return h
	}
	mounts := findMounts(mountinfo)
	for line := range strings.Lines(string(own)) {
		_, rest, ok := strings.Cut(strings.TrimSuffix(line, "\n"), ":")
		names, path, ok2 := strings.Cut(rest, ":")
		if !ok || !ok2 {
			continue
		}
		if names == "" {
			h.unified(mounts, path)
			continue
		}
		for name := range strings.SplitSeq(names, ",") {
			mount, ok := mounts.v1[name]
			if ok && writable(filepath.Join(mount, path)) {
				h.parents[name] = parent{dir: filepath.Join(mount, path)}
			}
		}
	}
	if h.freezer.dir == "" {
		h.freezer = h.parents["freezer"]
	}
	return h
}

// unified looks for the place in the version 2 tree: the own group's parent, because a group with processes of its own
// may have no children with controllers; the root group is exempt from that rule (cgroup-v2.rst, "No Internal Process Constraint").
func (h *Host) unified(mounts mountPoints, path string) {
	if mounts.v2 == "" {
		return
	}
	dir := filepath.Join(mounts.v2, path)
	if path != "/" {
		dir = filepath.Dir(dir)
	}
	enabled, err := os.ReadFile(filepath.Join(dir, "cgroup.subtree_control"))
	if err != nil || !writable(dir) || !writable(filepath.Join(dir, "cgroup.procs")) {
		return
	}
	if dir == mounts.v2 { // the root may have to be told to hand its controllers down
		for name := range strings.FieldsSeq(string(readAll(filepath.Join(dir, "cgroup.controllers")))) {
			_ = os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+name), 0) // what is missing afterwards is not offered
		}
		enabled = readAll(filepath.Join(dir, "cgroup.subtree_control"))
	}
	for name := range strings.FieldsSeq(string(enabled)) {
		h.parents[name] = parent{dir: dir, unified: true}
	}
	h.freezer = parent{dir: dir, unified: true} // of every group but the root, without a controller: also where those are version 1
}

// Missing returns the controllers of want that this process cannot use.
func (h Host) Missing(want []string) []string {
	var missing []string
	for _, name := range want {
		if _, ok := h.parents[name]; !ok {
			missing = append(missing, name)
		}
	}
	return missing
}

// Group is the set of directories made for one sandbox. Its methods are for one goroutine at a time.
type Group struct {
	dirs    []string // one per hierarchy
	unified string   // the version 2 one, if any
	memory  string   // the one with the memory controller
	v2mem   bool
}

// Groups says whether a group with these limits would have any directory: without limits it is there to be frozen.
func (h Host) Groups(l Limits) bool { return h.freezer.dir != "" || len(l.Controllers()) > 0 }

// Create makes a group of the given name with the given limits, which can be frozen where this host has a place for that. A controller that is missing is
// an error: ask Missing first.
func (h Host) Create(name string, l Limits) (*Group, error) {
	if missing := h.Missing(l.Controllers()); len(missing) > 0 {
		return nil, fmt.Errorf("no delegated control group for %s", strings.Join(missing, ", "))
	}
	g := &Group{}
	err := g.make(h.freezer, name)
	for _, controller := range l.Controllers() {
		p := h.parents[controller]
		if err == nil {
			err = g.make(p, name)
		}
		if err == nil {
			err = apply(filepath.Join(p.dir, name), controller, p.unified, l)
		}
		if controller == "memory" {
			g.memory, g.v2mem = filepath.Join(p.dir, name), p.unified
		}
	}
	if err != nil {
		_ = g.Remove(time.Second) // the first error is the one to tell
		return nil, err
	}
	return g, nil
}

// make makes the group's directory in one place, unless it is there already or there is no such place.
func (g *Group) make(p parent, name string) error {
	dir := filepath.Join(p.dir, name)
	if p.dir == "" || slices.Contains(g.dirs, dir) {
		return nil
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return fmt.Errorf("make control group: %w", err)
	}
	g.dirs = append(g.dirs, dir)
	if p.unified {
		g.unified = dir
	}
	return nil
}

// apply writes one controller's limit.
func apply(dir, controller string, unified bool, l Limits) error {
	const period = 100_000 // microseconds, the kernel's default
	quota := strconv.FormatInt(max(l.MilliCPUs*period/1000, 1000), 10)
	memory := strconv.FormatInt(l.Memory, 10)
	pids := strconv.FormatInt(l.PIDs, 10)
	writes := map[string][][2]string{
		"cpu/v1":    {{"cpu.cfs_period_us", strconv.Itoa(period)}, {"cpu.cfs_quota_us", quota}},
		"cpu/v2":    {{"cpu.max", quota + " " + strconv.Itoa(period)}},
		"memory/v1": {{"memory.limit_in_bytes", memory}},
		"memory/v2": {{"memory.max", memory}},
		"pids/v1":   {{"pids.max", pids}},
		"pids/v2":   {{"pids.max", pids}},
	}
	version := "/v1"
	if unified {
		version = "/v2"
	}
	for _, w := range writes[controller+version] {
		if err := os.WriteFile(filepath.Join(dir, w[0]), []byte(w[1]), 0); err != nil {
			return fmt.Errorf("limit %s to %s: %w", controller, w[1], err)
		}
	}
	if controller != "memory" {
		return nil
	}
	// Swap is part of the bound where the kernel accounts for it; where it does not there is no such file.
	swap := [2]string{"memory.memsw.limit_in_bytes", memory}
	if unified {
		swap = [2]string{"memory.swap.max", "0"}
	}
	if err := os.WriteFile(filepath.Join(dir, swap[0]), []byte(swap[1]), 0); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("limit swap: %w", err)
	}
	return nil
}

// Enter moves the calling thread, which the caller has locked, into the group where it has version 1 directories, so that a child which the thread
// then starts is born there. The returned function moves the thread back and must be called on the same thread.
//
// A thread that moves itself, by writing 0 to tasks, is the one migration for which the kernel takes no global lock: moving a whole process
// waits for an RCU grace period, ten milliseconds and more on an idle machine (kernel/cgroup/cgroup.c, cgroup_procs_write_start).
func (g *Group) Enter() (leave func() error, err error) {
	var entered []string
	leave = func() error {
		for _, dir := range entered {
			if err := enter(filepath.Dir(dir)); err != nil {
				return fmt.Errorf("leave control group: %w", err)
			}
		}
		return nil
	}
	for _, dir := range g.dirs {
		if dir == g.unified {
			continue
		}
		if err := enter(dir); err != nil {
			return nil, errors.Join(fmt.Errorf("enter control group: %w", err), leave())
		}
		entered = append(entered, dir)
	}
	return leave, nil
}

// enter moves the calling thread.
func enter(dir string) error { return os.WriteFile(filepath.Join(dir, "tasks"), []byte("0"), 0) }

// Unified returns the group's version 2 directory, for CLONE_INTO_CGROUP, or the empty string.
func (g *Group) Unified() string { return g.unified }

// Dirs returns the group's directories, for the record that lets a later start reap them.
func (g *Group) Dirs() []string { return g.dirs }

// OutOfMemory says how many processes the kernel killed because the group reached its memory limit.
func (g *Group) OutOfMemory() int {
	if g.memory == "" {
		return 0
	}
	name := "memory.oom_control"
	if g.v2mem {
		name = "memory.events"
	}
	for line := range strings.Lines(string(readAll(filepath.Join(g.memory, name)))) {
		if count, ok := strings.CutPrefix(strings.TrimSpace(line), "oom_kill "); ok {
			n, _ := strconv.Atoi(count) // the kernel writes decimal numbers
			return n
		}
	}
	return 0
}

// Remove kills what is left in the group and removes its directories, waiting at most patience for the kernel.
func (g *Group) Remove(patience time.Duration) error { return Reap(g.dirs, patience) }

// Reap removes the directories of a group whose owner is gone: it kills the processes in them and waits at most patience.
func Reap(dirs []string, patience time.Duration) error {
	deadline := time.Now().Add(patience)
	var problems []error
	dirs = slices.Clone(dirs)
	// First those in which the dead may be held frozen: when they are gone from there, they are gone from everywhere.
	slices.SortStableFunc(dirs, func(a, b string) int { return order(b) - order(a) })
	for _, dir := range dirs {
		if err := reapOne(dir, deadline); err != nil {
			problems = append(problems, fmt.Errorf("remove control group %s: %w", dir, err))
		}
	}
	return errors.Join(problems...)
}

func order(dir string) int {
	if isVersion1(dir) {
		return 1
	}
	return 0
}

func reapOne(dir string, deadline time.Time) error {
	for wait := 500 * time.Microsecond; ; wait *= 2 {
		err := unix.Rmdir(dir)
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
			return err
		}
		kill(dir)
		time.Sleep(min(wait, 20*time.Millisecond))
	}
}

// kill kills the processes of one directory. In version 1 those that are frozen die when they are let go, so they are, once all of them have the signal: they
// get no further than that.
func kill(dir string) {
	if os.WriteFile(filepath.Join(dir, "cgroup.kill"), []byte("1"), 0) == nil {
		return
	}
	for field := range bytes.FieldsSeq(readAll(filepath.Join(dir, "cgroup.procs"))) {
		if pid, err := strconv.Atoi(string(field)); err == nil && pid > 1 {
			_ = unix.Kill(pid, unix.SIGKILL) // it may be gone already
		}
	}
	_ = os.WriteFile(filepath.Join(dir, freezerFile), []byte(thawed), 0) // other hierarchies have no such file
}

// mountPoints are where the hierarchies are mounted.
type mountPoints struct {
	v1 map[string]string // by controller
	v2 string
}

func findMounts(mountinfo string) mountPoints {
	m := mountPoints{v1: map[string]string{}}
	for line := range strings.Lines(string(readAll(mountinfo))) {
		// proc_pid_mountinfo(5): mount point is field 5; after " - " come type, source and super options.
		before, after, ok := strings.Cut(strings.TrimSpace(line), " - ")
		left, right := strings.Fields(before), strings.Fields(after)
		if !ok || len(left) < 5 || len(right) < 3 {
			continue
		}
		switch right[0] {
		case "cgroup2":
			m.v2 = left[4]
		case "cgroup":
			for option := range strings.SplitSeq(right[2], ",") {
				m.v1[option] = left[4] // options that are no controllers are never asked for
			}
		}
	}
	return m
}

func writable(path string) bool { return unix.Access(path, unix.W_OK) == nil }

// readAll returns a small kernel file's content, or nothing.
func readAll(path string) []byte {
	data, _ := os.ReadFile(path) // absent means empty to every caller
	return data
}

// Find returns the directories of a group by its name, wherever in the hierarchies its owner made them: for who does not own it, or when the owner is dead
// and its place unknown.
func Find(name string) []string { return FindAll([]string{name})[name] }

// FindAll does so for several names in one walk.
func FindAll(names []string) map[string][]string {
	found := map[string][]string{}
	m := findMounts("/proc/self/mountinfo")
	roots := []string{}
	for _, dir := range m.v1 {
		if !slices.Contains(roots, dir) {
			roots = append(roots, dir)
		}
	}
	if m.v2 != "" {
		roots = append(roots, m.v2)
	}
	for _, root := range roots {
		_ = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			switch {
			case err != nil && d != nil && d.IsDir():
				return filepath.SkipDir // not ours to see
			case err != nil || !d.IsDir():
				return nil
			case slices.Contains(names, d.Name()):
				found[d.Name()] = append(found[d.Name()], path)
				return filepath.SkipDir
			}
			return nil
		}) // the callback returns nothing else
	}
	return found
}

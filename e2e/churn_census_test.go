package e2e

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// census is what this machine has that sandboxes could leave behind, by kind and name.
type census struct {
	things map[string]bool
	shared int64 // bytes of memory that files in memory take
	alone  bool  // no sandbox of anybody else's lives on this machine, so that shared can be compared
	files  int   // open descriptors of this process
}

func takeCensus(t *testing.T, rows []*churnRow) census {
	t.Helper()
	c := census{things: map[string]bool{}, shared: sharedMemory(t), alone: alone(rows), files: len(entries("/proc/self/fd"))}
	for _, name := range entries("/sys/class/net") {
		c.things["network device "+name] = true
	}
	backing, _ := filepath.Glob("/sys/block/loop*/loop/backing_file") // the pattern is a good one
	for _, name := range backing {
		c.things["loop device "+strings.Split(name, "/")[3]] = true
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		c.things["mount "+strings.TrimSpace(line)] = true
	}
	for _, dir := range []string{os.TempDir(), "/var/tmp", "/dev/shm", "/run"} {
		for _, name := range entries(dir) {
			c.things["file "+filepath.Join(dir, name)] = true
		}
	}
	for _, r := range rows {
		for _, name := range entries(r.tmp) {
			c.things["file "+filepath.Join(r.tmp, name)] = true
		}
	}
	return c
}

// entries are the names in a directory, none if there is none.
func entries(dir string) (names []string) {
	all, _ := os.ReadDir(dir) // absent is empty
	for _, e := range all {
		names = append(names, e.Name())
	}
	return names
}

func sharedMemory(t *testing.T) int64 {
	t.Helper()
	data, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := bytes.Cut(data, []byte("\nShmem:"))
	kib, err := strconv.ParseInt(strings.Fields(string(rest) + " x")[0], 10, 64)
	if err != nil {
		t.Fatalf("how much memory is shared: %v", err)
	}
	return kib << 10
}

// alone says whether no supervisor runs on this machine but those of the rows.
func alone(rows []*churnRow) bool {
	ours := map[int]bool{}
	for _, r := range rows {
		for _, p := range r.processes() {
			ours[p.pid] = true
		}
	}
	for _, name := range entries("/proc") {
		pid, err := strconv.Atoi(name)
		if err != nil || ours[pid] {
			continue
		}
		if comm, _ := os.ReadFile("/proc/" + name + "/comm"); strings.HasPrefix(string(comm), "cofferdam-super") { // the kernel keeps 15 bytes
			return false
		}
	}
	return true
}

// mostShared is how much more memory may be shared after the churn than before. Each sandbox wrote a megabyte into scratch.
const mostShared = 24 << 20

// left says what there is now and was not there before, within a time in which it may go. What belongs to other tests of this machine is no matter.
func (c census) left(t *testing.T, rows []*churnRow, within time.Duration) (left []string) {
	t.Helper()
	ended := sinceBoot(t)
	for deadline := time.Now().Add(within); ; time.Sleep(200 * time.Millisecond) {
		left = nil
		now := takeCensus(t, rows)
		for thing := range now.things {
			if !c.things[thing] && !anothers(thing, rows) {
				left = append(left, thing)
			}
		}
		for _, r := range rows {
			left = append(left, r.remains(ended)...)
		}
		if grown := now.shared - c.shared; grown > mostShared && c.alone && now.alone {
			left = append(left, fmt.Sprintf("%d MiB of files in memory", grown>>20))
		}
		if now.files > c.files {
			left = append(left, fmt.Sprintf("%d descriptors of the caller's", now.files-c.files))
		}
		if len(left) == 0 || time.Now().After(deadline) {
			slices.Sort(left)
			return left
		}
	}
}

// anothers says whether a new thing is another test's: it names the folder of another house, or a file that is not named after one of our programs.
func anothers(thing string, rows []*churnRow) bool {
	for _, r := range rows {
		if strings.Contains(thing, filepath.Dir(r.state)) {
			return false
		}
	}
	if name, ok := strings.CutPrefix(thing, "file "); ok {
		base := filepath.Base(name)
		return !slices.ContainsFunc([]string{"cofferdam", "runsc", "qemu", "gvisor"}, func(p string) bool { return strings.HasPrefix(base, p) }) || tested(base)
	}
	return strings.HasPrefix(thing, "mount ") && tested(thing)
}

// tested says whether the name of a file of a test's own, or of the benchmarks', is part of a text.
func tested(text string) bool {
	return slices.ContainsFunc([]string{"cofferdam-e2e-", "cofferdam-test-", "cofferdam-world-", "cofferdam-victim-", "cofferdam-demo", "cofferdam-bench-", "cofferdam-machine-test"}, func(p string) bool { return strings.Contains(text, p) })
}

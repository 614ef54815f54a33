package e2e

import (
	"bytes"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/guest/boot"
)

// crypt is a house with programs of its own, so that every process started from them can be told from those of others by its executable.
type crypt struct {
	*house
	exes       map[[2]uint64]string // device and inode of each program, to its name
	namespaces map[string]bool      // links such as net:[4026532000] that were seen in use since the last check
	killing    bool                 // kernels of sandboxes are killed: that they ended unasked is rightly on record
}

// newCrypt gives a house programs of its own, with what its level needs beside them.
func newCrypt(h *house) *crypt {
	h.t.Helper()
	c := &crypt{house: h, exes: map[[2]uint64]string{}, namespaces: map[string]bool{}}
	own := filepath.Join(filepath.Dir(h.state), "bin")
	if err := os.Mkdir(own, 0o755); err != nil {
		h.t.Fatal(err)
	}
	programs := []string{"cofferdam", "cofferdam-supervisor", "cofferdam-runner"}
	if h.as.level == "gvisor" {
		programs = append(programs, "runsc")
	}
	for _, name := range programs {
		data, err := os.ReadFile(filepath.Join(h.bin, name))
		if err == nil {
			err = os.WriteFile(filepath.Join(own, name), data, 0o755)
		}
		var st syscall.Stat_t
		if err == nil {
			err = syscall.Stat(filepath.Join(own, name), &st)
		}
		if err != nil {
			h.t.Fatal(err)
		}
		c.exes[[2]uint64{st.Dev, st.Ino}] = name
	}
	if h.as.able().kernel == "guest" {
		if err := os.Symlink(filepath.Join(h.bin, boot.FolderName), filepath.Join(own, boot.FolderName)); err != nil {
			h.t.Fatal(err)
		}
	}
	h.bin = own
	return c
}

// forEachCrypt runs a test once for each of users, at once: what is looked for afterwards is told apart by state directory and programs.
func forEachCrypt(t *testing.T, test func(*testing.T, *crypt)) {
	t.Helper()
	forEachUser(t, func(t *testing.T, h *house) {
		t.Parallel()
		test(t, newCrypt(h))
	})
}

// process is one process of ours.
type process struct {
	pid, parent int
	program     string // cofferdam, cofferdam-supervisor, cofferdam-runner, runsc; "command" for what runs inside
}

// processes finds everything alive that was started from this house's programs, by executable, by the run's mark in the environment, or by descent.
func (c *crypt) processes() []process {
	c.t.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		c.t.Fatal(err)
	}
	marks := c.marks()
	all := map[int]process{}
	var order []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		p := process{pid: pid, parent: parentOf(pid)}
		if p.parent < 0 {
			continue // gone, or a zombie: nothing of it is left but its status for its parent
		}
		p.program = c.programOf(pid, marks)
		all[pid] = p
		order = append(order, pid)
	}
	var ours []process
	for _, pid := range order { // children usually have greater numbers, but not always
		if p := all[pid]; p.program != "" || descends(all, p) {
			if p.program == "" {
				p.program = "command"
			}
			ours = append(ours, p)
		}
	}
	return ours
}

// descends says whether a parent, or its parent and so on, is ours.
func descends(all map[int]process, p process) bool {
	for range 64 {
		parent, ok := all[p.parent]
		if !ok {
			return false
		}
		if parent.program != "" {
			return true
		}
		p = parent
	}
	return false
}

func (c *crypt) programOf(pid int, marks []string) string {
	dir := "/proc/" + strconv.Itoa(pid)
	var st syscall.Stat_t
	if syscall.Stat(dir+"/exe", &st) == nil {
		if name := c.exes[[2]uint64{st.Dev, st.Ino}]; name != "" {
			return name
		}
	}
	env, err := os.ReadFile(dir + "/environ")
	if err != nil {
		return ""
	}
	for v := range strings.SplitSeq(string(env), "\x00") {
		if slices.Contains(marks, v) {
			return "command"
		}
	}
	return ""
}

// marks are the variables that the commands of this house's runs have.
func (c *crypt) marks() (marks []string) {
	entries, _ := os.ReadDir(filepath.Join(c.state, "runs")) // absent before the first run
	for _, e := range entries {
		marks = append(marks, "COFFERDAM_RUN="+e.Name())
	}
	return marks
}

// parentOf returns the parent of a process that lives, -1 for others.
func parentOf(pid int) int {
	fields := statOf(strconv.Itoa(pid))
	if len(fields) < 2 || fields[0] == "Z" || fields[0] == "X" {
		return -1
	}
	parent, err := strconv.Atoi(fields[1])
	if err != nil {
		return -1
	}
	return parent
}

// statOf returns the fields of /proc/PID/stat from the third, the state, on.
func statOf(pid string) []string {
	data, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		return nil
	}
	return strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
}

// find returns a living process of a kind: supervisor, inside (process 1 of the sandbox, set-up or runner) or command.
func (c *crypt) find(kind string) (pid int) {
	if kind == "command" && !c.as.able().inside {
		c.t.Skip("a command is no process of the host's at this level; TestLevels kills what is one")
	}
	all := c.processes()
	for _, p := range all {
		i := slices.IndexFunc(all, func(q process) bool { return q.pid == p.parent })
		parent := ""
		if i >= 0 {
			parent = all[i].program
		}
		found := ""
		switch {
		case p.program == "cofferdam":
			found = "cofferdam"
		case p.program == "cofferdam-supervisor" && parent == "cofferdam":
			found = "supervisor"
		case parent == "cofferdam-supervisor": // set-up has the supervisor's executable, then the runner's
			found = "inside"
			c.see(p.pid)
		case parent == "cofferdam-runner":
			found = "command"
		}
		if found == kind {
			return p.pid
		}
	}
	return 0
}

// see remembers the namespaces of a process inside.
func (c *crypt) see(pid int) {
	for _, name := range []string{"net", "mnt", "pid", "user", "ipc", "uts", "cgroup"} {
		dir := "/proc/" + strconv.Itoa(pid) + "/ns/"
		link, err := os.Readlink(dir + name)
		own, err2 := os.Readlink("/proc/self/ns/" + name)
		if err == nil && err2 == nil && link != own {
			c.namespaces[link] = true
		}
	}
}

// remains lists what is left of this house's runs on the machine, which ended at a time after the machine's start.
func (c *crypt) remains(ended time.Duration) (left []string) {
	for _, p := range c.processes() {
		left = append(left, fmt.Sprintf("process %d (%s)", p.pid, p.program))
	}
	left = append(left, c.lines("/proc/self/mountinfo", "mount")...)
	left = append(left, c.lines("/proc/net/unix", "socket")...)
	left = append(left, c.held(ended)...)
	return append(left, c.files()...)
}

// lines are those lines of a table of the kernel's that name a run or the house.
func (c *crypt) lines(name, what string) (left []string) {
	data, err := os.ReadFile(name)
	if err != nil {
		c.t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if strings.Contains(line, filepath.Dir(c.state)) && !strings.Contains(line, " "+c.state+" ") { // a test may mount the state directory itself
			left = append(left, what+" "+strings.TrimSpace(line))
		}
	}
	return left
}

// held finds processes, ours or not, which keep one of the remembered namespaces. The kernel uses their numbers again, so only processes count that
// were there when the run ended.
func (c *crypt) held(ended time.Duration) (left []string) {
	if len(c.namespaces) == 0 {
		return nil
	}
	processes, _ := filepath.Glob("/proc/[0-9]*") // the pattern is a good one
	for _, dir := range processes {
		pid := filepath.Base(dir)
		if n, err := strconv.Atoi(pid); err != nil || parentOf(n) < 0 || startOf(pid) >= ended {
			continue // of a dead one there is nothing but its status, for whoever has inherited it
		}
		links, _ := filepath.Glob(dir + "/ns/*") // likewise
		more, _ := filepath.Glob(dir + "/fd/*")  // likewise
		for _, path := range append(links, more...) {
			if link, err := os.Readlink(path); err == nil && c.namespaces[link] && !c.elsewhere(pid) {
				left = append(left, "namespace "+link+" by "+path)
			}
		}
	}
	return left
}

// elsewhere says whether a process belongs to a run of another house: tests that run at once get each other's numbers of namespaces as soon as they are free.
func (c *crypt) elsewhere(pid string) bool {
	for range 64 {
		env, err := os.ReadFile("/proc/" + pid + "/environ")
		if err != nil {
			return false
		}
		if _, rest, ok := bytes.Cut(env, []byte("COFFERDAM_STATE=")); ok {
			state, _, _ := bytes.Cut(rest, []byte{0})
			return string(state) != c.state
		}
		fields := statOf(pid)
		if len(fields) < 2 {
			return false
		}
		pid = fields[1]
	}
	return false
}

// startOf returns when a process was started, after the machine's start.
func startOf(pid string) time.Duration {
	const startTime, tick = 22 - 3, 10 * time.Millisecond // proc_pid_stat(5); USER_HZ is 100 on every Linux
	fields := statOf(pid)
	if len(fields) <= startTime {
		return math.MaxInt64 // gone
	}
	n, err := strconv.ParseInt(fields[startTime], 10, 64)
	if err != nil {
		return math.MaxInt64
	}
	return time.Duration(n) * tick
}

// sinceBoot is now in startOf's terms.
func sinceBoot(t *testing.T) time.Duration {
	t.Helper()
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		t.Fatal(err)
	}
	return time.Duration(ts.Nano())
}

// files lists control groups, marks of living runs, and files of the state directory that should be gone.
func (c *crypt) files() (left []string) {
	left = append(left, groups(c.marks())...)
	active, _ := os.ReadDir(filepath.Join(c.state, "active")) // absent before the first run
	for _, e := range active {
		left = append(left, "mark of a living run "+e.Name())
	}
	known := []string{"run.json", "end.json", "changes"}
	runs, _ := filepath.Glob(filepath.Join(c.state, "runs", "*", "*")) // the pattern is a good one
	for _, path := range runs {
		if !slices.Contains(known, filepath.Base(path)) {
			left = append(left, "scratch "+path)
		}
	}
	dirs, _ := filepath.Glob(filepath.Join(c.state, "runs", "*")) // likewise
	for _, dir := range dirs {
		if _, err := os.Stat(filepath.Join(dir, "run.json")); err != nil {
			left = append(left, "directory without a record "+dir)
		}
	}
	return left
}

// groups finds the control groups of runs with these marks. It looks once for all of them: there are thousands of directories on some machines.
func groups(marks []string) (left []string) {
	wanted := map[string]bool{}
	for _, mark := range marks {
		wanted["cofferdam-"+strings.TrimPrefix(mark, "COFFERDAM_RUN=")] = true
	}
	_ = filepath.WalkDir("/sys/fs/cgroup", func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && wanted[d.Name()] {
			left = append(left, "control group "+path)
		}
		return nil
	}) // the function returns nothing else
	return left
}

// checkGone collects the dead and makes sure that nothing is left, every run has an end on record, and the log verifies. What is being cleaned up by a
// supervisor whose owner was killed may take it a moment.
func (c *crypt) checkGone() {
	c.t.Helper()
	var left []string
	ended := sinceBoot(c.t)
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if r := c.do("gc"); r.code != 0 {
			c.t.Errorf("gc: exit %d: %s", r.code, r.stderr)
		}
		if left = c.remains(ended); len(left) == 0 || time.Now().After(deadline) {
			break
		}
	}
	if len(left) > 0 {
		c.t.Errorf("left behind:\n%s", strings.Join(left, "\n"))
	}
	clear(c.namespaces)
	if r := c.do("ps", "--json"); strings.TrimSpace(r.stdout) != "[]" {
		c.t.Errorf("ps: %s%s", r.stdout, r.stderr)
	}
	for _, r := range c.runs() {
		problems := slices.DeleteFunc(r.Problems, func(p string) bool {
			return c.killing && (strings.HasPrefix(p, "the sandbox's kernel: ") || strings.HasPrefix(p, "the changes could not be collected: "))
		})
		if r.State != "ended" || r.How == "" || len(problems) > 0 {
			c.t.Errorf("no good end on record: %+v", r)
		}
	}
	if r := c.do("audit", "verify"); r.code != 0 {
		c.t.Errorf("audit verify: exit %d: %s%s", r.code, r.stdout, r.stderr)
	}
}

package confine

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// status is what /proc tells about the privileges of a thread.
type status struct {
	uids, gids                                           [4]int // real, effective, saved, file system
	groups                                               []int
	inheritable, permitted, effective, bounding, ambient uint64
	noNewPrivs, seccomp                                  int
	filters                                              int // seccomp filters, -1 before Linux 5.9, which does not tell
}

// verify reads back the state of every thread. A thread that starts meanwhile has the state of the one that started it.
func (p *plan) verify() (Report, error) {
	report := Report{UID: p.uid, GID: p.gid, Landlock: p.landlock, Filter: len(p.filter)}
	entries, err := os.ReadDir(taskDir())
	if err != nil {
		return Report{}, fmt.Errorf("list threads to verify: %w", err)
	}
	var r statusReader
	for _, entry := range entries {
		s, err := r.read(filepath.Join(taskDir(), entry.Name(), "status"))
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue // it ended
		}
		if err != nil {
			return Report{}, fmt.Errorf("verify thread %s: %w", entry.Name(), err)
		}
		if err := p.check(s); err != nil {
			return Report{}, fmt.Errorf("verify thread %s: %w", entry.Name(), err)
		}
		report.Threads++
		report.Groups, report.Bounding = s.groups, s.bounding
	}
	if report.Threads == 0 {
		return Report{}, errors.New("no thread to verify")
	}
	if dumpable, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0); err != nil || dumpable != 0 {
		return Report{}, fmt.Errorf("the process is dumpable (%d, %w)", dumpable, err)
	}
	if err := p.probeFiles(); err != nil {
		return Report{}, err
	}
	report.Missing = p.missing()
	return report, nil
}

// probeFiles tries what Landlock must refuse, since /proc does not tell about it: to list the root directory, which every user may.
func (p *plan) probeFiles() error {
	if p.landlock == 0 || slices.Contains(p.cfg.ReadPaths, "/") || slices.Contains(p.cfg.WritePaths, "/") {
		return nil
	}
	fd, err := unix.Open("/", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err == nil {
		_ = unix.Close(fd) // it should not have opened
	}
	if !errors.Is(err, unix.EACCES) {
		return fmt.Errorf("the root directory can be listed, so the limit on files is not in force (%w)", err)
	}
	return nil
}

// check compares a thread with what was meant.
func (p *plan) check(s status) error {
	var wrong []error
	if want := [4]int{p.uid, p.uid, p.uid, p.uid}; s.uids != want || p.uid == 0 {
		wrong = append(wrong, fmt.Errorf("users %v, want %v", s.uids, want))
	}
	if want := [4]int{p.gid, p.gid, p.gid, p.gid}; s.gids != want {
		wrong = append(wrong, fmt.Errorf("groups %v, want %v", s.gids, want))
	}
	if p.root && len(s.groups) > 0 {
		wrong = append(wrong, fmt.Errorf("supplementary groups %v", s.groups))
	}
	if all := s.inheritable | s.permitted | s.effective | s.ambient; all != 0 {
		wrong = append(wrong, fmt.Errorf("capabilities %#x", all))
	}
	if s.noNewPrivs != 1 {
		wrong = append(wrong, errors.New("no_new_privs is not set"))
	}
	if s.seccomp != unix.SECCOMP_MODE_FILTER {
		wrong = append(wrong, fmt.Errorf("seccomp mode %d", s.seccomp))
	}
	if p.before.filters >= 0 && s.filters != p.before.filters+1 {
		wrong = append(wrong, fmt.Errorf("%d seccomp filters, want %d", s.filters, p.before.filters+1))
	}
	return errors.Join(wrong...)
}

// missing says what the kernel is too old for, where nothing else stands in.
func (p *plan) missing() []string {
	switch {
	case p.landlock == 0:
		return []string{"this kernel has no Landlock: the gateway can open every file that its user can"}
	case p.landlock < 3:
		return []string{"this kernel's Landlock does not guard truncation: the gateway can empty files that it may read and its user may change"}
	}
	return nil
}

func readStatus(path string) (status, error) { return new(statusReader).read(path) }

func (r *statusReader) read(path string) (status, error) {
	f, err := os.Open(path)
	if err != nil {
		return status{}, err
	}
	defer f.Close()
	r.text.Reset()
	if _, err := r.text.ReadFrom(f); err != nil {
		return status{}, err
	}
	return r.parse(r.text.Bytes())
}

// parse reads the lines that matter of a /proc status file. A line that is not there, or there twice, is an error: what was not
// read has not been verified.
func (r *statusReader) parse(text []byte) (status, error) {
	if r.lines == nil {
		r.lines = map[string]string{}
	}
	clear(r.lines)
	r.problems = nil
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(line, ":")
		if _, again := r.lines[name]; again {
			r.fail("two lines %q", name)
		}
		r.lines[name] = value
	}
	s := status{
		uids: r.four("Uid"), gids: r.four("Gid"), groups: r.numbers("Groups"),
		inheritable: r.set("CapInh"), permitted: r.set("CapPrm"), effective: r.set("CapEff"), bounding: r.set("CapBnd"), ambient: r.set("CapAmb"),
		noNewPrivs: r.one("NoNewPrivs"), seccomp: r.one("Seccomp"), filters: -1,
	}
	if _, told := r.lines["Seccomp_filters"]; told {
		s.filters = r.one("Seccomp_filters")
	}
	if err := errors.Join(r.problems...); err != nil {
		return status{}, err
	}
	return s, nil
}

// statusReader collects what is wrong with the lines asked for. One that is used again, for each thread of a process, remembers nothing of the one before.
type statusReader struct {
	text     bytes.Buffer
	lines    map[string]string
	problems []error
}

func (r *statusReader) fail(format string, args ...any) {
	r.problems = append(r.problems, fmt.Errorf(format, args...))
}

func (r *statusReader) fields(name string) []string {
	value, ok := r.lines[name]
	if !ok {
		r.fail("no line %q", name)
	}
	return strings.Fields(value)
}

func (r *statusReader) numbers(name string) (list []int) {
	for _, field := range r.fields(name) {
		n, err := strconv.ParseUint(field, 10, 32)
		if err != nil {
			r.fail("%s: %w", name, err)
		}
		list = append(list, int(n))
	}
	return list
}

func (r *statusReader) four(name string) (four [4]int) {
	list := r.numbers(name)
	if len(list) != 4 {
		r.fail("%s: %d numbers, want 4", name, len(list))
	}
	copy(four[:], list)
	return four
}

func (r *statusReader) one(name string) int {
	list := r.numbers(name)
	if len(list) != 1 {
		r.fail("%s: %d numbers, want 1", name, len(list))
		return -1
	}
	return list[0]
}

func (r *statusReader) set(name string) uint64 {
	fields := r.fields(name)
	if len(fields) != 1 {
		r.fail("%s: %d sets, want 1", name, len(fields))
		return ^uint64(0)
	}
	bits, err := strconv.ParseUint(fields[0], 16, 64)
	if err != nil {
		r.fail("%s: %w", name, err)
	}
	return bits
}

package runner

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/cofferdam/cofferdam/internal/frame"
	"golang.org/x/sys/unix"
)

// defaultPath is searched when the command's environment has no PATH.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// command is the one command of a sandbox. Signals and sizes that come before it runs are kept for it.
type command struct {
	mu      sync.Mutex
	pid     int // 0 until it runs, -1 after it was reaped: its number may then be another's
	pending []syscall.Signal
	tty     *terminal // nil without a terminal
}

// start runs the command with the given files as 0, 1 and 2. The error is an *exitError whose Exit tells the owner.
func (c *command) start(s frame.Start, files [3]uintptr) (int, error) {
	path, err := lookup(s)
	if err != nil {
		return 0, err
	}
	if err := limitFiles(s.OpenFile); err != nil {
		return 0, cannot("limit of open files: %v", err)
	}
	attr := &syscall.ProcAttr{
		Dir: s.Dir, Env: s.Env, Files: files[:],
		Sys: &syscall.SysProcAttr{Setsid: true, Setctty: c.tty != nil},
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	restore, err := reserveProcesses()
	if err != nil {
		return 0, cannot("limit of processes: %v", err)
	}
	defer restore()
	pid, err := syscall.ForkExec(path, s.Args, attr)
	if errors.Is(err, syscall.ENOEXEC) { // a script without #! line: what execvp and every shell do
		pid, err = syscall.ForkExec("/bin/sh", append([]string{"/bin/sh", path}, s.Args[1:]...), attr)
	}
	if err != nil {
		return 0, &exitError{frame.Exit{Error: fmt.Sprintf("%.100q: %v", s.Args[0], err), NotFound: errors.Is(err, syscall.ENOENT)}}
	}
	c.pid = pid
	// When memory runs out, the command goes before process 1, so that somebody is left to say so. It may have ended already.
	_ = os.WriteFile("/proc/"+strconv.Itoa(pid)+"/oom_score_adj", []byte("900"), 0)
	for _, sig := range c.pending {
		_ = unix.Kill(-pid, sig) // it may already be gone
	}
	c.pending = nil
	return pid, nil
}

// signal sends to the command's process group, and with a terminal also to the group in its foreground, where a shell inside has put the job.
func (c *command) signal(sig syscall.Signal) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.pid < 0:
	case c.pid == 0:
		if len(c.pending) < 64 {
			c.pending = append(c.pending, sig)
		}
	default:
		_ = unix.Kill(-c.pid, sig) // ESRCH: it is just ending
		if c.tty == nil {
			return
		}
		if front := c.tty.foreground(); front > 1 && front != c.pid {
			_ = unix.Kill(-front, sig) // likewise
		}
	}
}

// wait reaps every child of process 1, which is every orphan of the sandbox, and calls ended when the command's own status comes.
// It returns when no child is left. Only one goroutine may wait.
func (c *command) wait(pid int, ended func(frame.Exit)) {
	for {
		// Looking without reaping keeps the dead command's number taken until signal can no longer use it.
		err := unix.Waitid(unix.P_ALL, 0, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return
		}
		if exit, ok := c.reap(pid); ok {
			ended(exit)
		}
	}
}

// reap takes the status of every child that has ended, and says whether the command was among them.
func (c *command) reap(pid int) (exit frame.Exit, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		var ws syscall.WaitStatus
		p, err := syscall.Wait4(-1, &ws, syscall.WNOHANG, nil)
		switch {
		case err == syscall.EINTR:
		case err != nil || p <= 0:
			return exit, ok
		case p == pid && ws.Signaled():
			exit, ok, c.pid = frame.Exit{Signal: int(ws.Signal())}, true, -1
		case p == pid:
			exit, ok, c.pid = frame.Exit{Code: ws.ExitStatus()}, true, -1
		}
	}
}

// exitError is a command that could not be started.
type exitError struct{ exit frame.Exit }

// Error says why.
func (e *exitError) Error() string { return e.exit.Error }

func cannot(format string, args ...any) error {
	return &exitError{frame.Exit{Error: fmt.Sprintf(format, args...)}}
}

// lookup finds the program as execvp does, with the command's PATH and from the command's directory.
func lookup(s frame.Start) (string, error) {
	if fi, err := os.Stat(s.Dir); err != nil || !fi.IsDir() {
		return "", cannot("directory %.200q does not exist in the sandbox or cannot be entered", s.Dir)
	}
	name := s.Args[0]
	if strings.Contains(name, "/") {
		return name, runnable(s.Dir, name)
	}
	path := defaultPath
	for _, e := range s.Env {
		if v, ok := strings.CutPrefix(e, "PATH="); ok {
			path = v // the last one counts, as for the C library's setenv
		}
	}
	var refused error
	for dir := range strings.SplitSeq(path, ":") {
		candidate := filepath.Join(dir, name)
		if dir == "" || dir == "." {
			candidate = "./" + name
		}
		err := runnable(s.Dir, candidate)
		if err == nil {
			return candidate, nil
		}
		if e, ok := errors.AsType[*exitError](err); ok && !e.exit.NotFound && refused == nil {
			refused = err
		}
	}
	if refused != nil {
		return "", refused
	}
	return "", &exitError{frame.Exit{Error: fmt.Sprintf("%.100q: no such program in the sandbox's PATH", name), NotFound: true}}
}

// runnable says why a file cannot be executed, nil if it can.
func runnable(dir, path string) error {
	full := path
	if !filepath.IsAbs(path) {
		full = filepath.Join(dir, path)
	}
	fi, err := os.Stat(full)
	switch {
	case errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR):
		return &exitError{frame.Exit{Error: fmt.Sprintf("%.200q: no such program in the sandbox", path), NotFound: true}}
	case err != nil:
		return cannot("%.200q cannot be looked at: %v", path, errors.Unwrap(err))
	case !fi.Mode().IsRegular():
		return cannot("%.200q is not a file that can be executed", path)
	case unix.Faccessat(unix.AT_FDCWD, full, unix.X_OK, 0) != nil:
		return cannot("%.200q is not executable", path)
	}
	return nil
}

// limitFiles sets the soft limit that the command inherits. Go had raised its own; setting it here also stops Go from putting the old one back.
func limitFiles(n uint64) error {
	if n == 0 {
		return nil
	}
	var lim syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &lim); err != nil {
		return err
	}
	lim.Cur = min(n, lim.Max)
	return syscall.Setrlimit(syscall.RLIMIT_NOFILE, &lim)
}

// reserveProcesses lowers the soft limit of processes, which the command inherits, by what is reserved for process 1 itself. restore raises it again.
// A command that raises its own limit can take the reserve; it then ends its own sandbox.
func reserveProcesses() (restore func(), err error) {
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NPROC, &lim); err != nil {
		return nil, err
	}
	if lim.Max == unix.RLIM_INFINITY || lim.Max <= frame.ReservedProcesses {
		return func() {}, nil
	}
	low := unix.Rlimit{Cur: lim.Max - frame.ReservedProcesses, Max: lim.Max}
	if err := unix.Setrlimit(unix.RLIMIT_NPROC, &low); err != nil {
		return nil, err
	}
	high := unix.Rlimit{Cur: lim.Max, Max: lim.Max}
	return func() { _ = unix.Setrlimit(unix.RLIMIT_NPROC, &high) }, nil // up to the hard limit, which is always allowed
}

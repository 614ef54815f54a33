package runner

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/cofferdam/cofferdam/internal/frame"
	"golang.org/x/sys/unix"
)

// defaultPath is searched when the command's environment has no PATH.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// ownFile leads to the file that this process runs, moved, replaced or removed as its path may be: it is no path to the kernel, and nobody inside can mount
// another /proc.
const ownFile = "/proc/self/exe"

// hangUpPatience is how long a command may take to end after SIGHUP.
const hangUpPatience = time.Second

// command is the command of one session. Signals and sizes that come before it runs are kept for it.
type command struct {
	family *family
	tty    *terminal       // nil without a terminal
	ended  chan frame.Exit // gets how it ended, once

	// The family's mu guards these.
	pid     int // 0 until it runs, -1 after it was reaped: its number may then be another's
	pending []syscall.Signal
	lost    bool // its owner is gone; nothing of its groups may be left when it is reaped
	front   int  // the group in the foreground of its terminal when it was lost
}

// start runs the command with the given files as 0, 1 and 2. The family's forking is held. The error is an *exitError whose Exit tells the owner.
func (c *command) start(s frame.Start, files [3]uintptr) (int, error) {
	path, err := lookup(s)
	if err != nil {
		return 0, err
	}
	restoreFiles, err := c.family.limitFiles(s.OpenFile)
	if err != nil {
		return 0, cannot("limit of open files: %v", err)
	}
	defer restoreFiles()
	restoreProcesses, err := reserveProcesses()
	if err != nil {
		return 0, cannot("limit of processes: %v", err)
	}
	defer restoreProcesses()
	attr := &syscall.ProcAttr{
		Dir: s.Dir, Env: s.Env, Files: files[:],
		Sys: &syscall.SysProcAttr{Setsid: true, Setctty: c.tty != nil},
	}
	pid, err := syscall.ForkExec(path, s.Args, attr)
	if errors.Is(err, syscall.ENOEXEC) && !s.Self { // a script without #! line: what execvp and every shell do
		pid, err = syscall.ForkExec("/bin/sh", append([]string{"/bin/sh", path}, s.Args[1:]...), attr)
	}
	if err != nil {
		return 0, &exitError{frame.Exit{Error: fmt.Sprintf("%.100q: %v", s.Args[0], err), NotFound: errors.Is(err, syscall.ENOENT)}}
	}
	// When memory runs out, the command goes before process 1, so that somebody is left to say so. It may have ended already.
	_ = os.WriteFile("/proc/"+strconv.Itoa(pid)+"/oom_score_adj", []byte("900"), 0)
	c.family.add(c, pid)
	return pid, nil
}

// signal sends to the command's process group, and with a terminal also to the group in its foreground, where a shell inside has put the job.
func (c *command) signal(sig syscall.Signal) {
	c.family.mu.Lock()
	defer c.family.mu.Unlock()
	switch {
	case c.pid < 0:
	case c.pid == 0:
		if len(c.pending) < 64 {
			c.pending = append(c.pending, sig)
		}
	default:
		_ = unix.Kill(-c.pid, sig) // ESRCH: it is just ending
		if front := c.foreground(); front != 0 {
			_ = unix.Kill(-front, sig) // likewise
		}
	}
}

// foreground is the group in the foreground of the command's terminal, 0 if that is the command's own or there is none.
func (c *command) foreground() int {
	if c.tty == nil {
		return 0
	}
	if front := c.tty.foreground(); front > 1 && front != c.pid {
		return front
	}
	return 0
}

// hangUp ends a command whose owner is lost: its groups get SIGHUP, as when a line drops, and a moment later or when the command itself has ended, SIGKILL.
// It returns when the command has been reaped; at once if it had been, or never ran.
func (c *command) hangUp(ctx context.Context) {
	if !c.lose() {
		return
	}
	select {
	case <-c.ended: // and finished
		return
	case <-time.After(hangUpPatience):
	case <-ctx.Done():
		return
	}
	c.family.mu.Lock()
	if c.pid > 0 {
		c.finish()
	}
	c.family.mu.Unlock()
	select {
	case <-c.ended:
	case <-ctx.Done():
	}
}

func (c *command) lose() bool {
	c.family.mu.Lock()
	defer c.family.mu.Unlock()
	if c.pid <= 0 {
		return false
	}
	c.lost, c.front = true, c.foreground()
	_ = unix.Kill(-c.pid, unix.SIGHUP) // ESRCH: it is just ending
	if c.front != 0 {
		_ = unix.Kill(-c.front, unix.SIGHUP) // likewise
	}
	return true
}

// finish kills the groups of a lost command; mu is held and the command not yet reaped, so its number is still the number of its session and group.
func (c *command) finish() {
	_ = unix.Kill(-c.pid, unix.SIGKILL) // ESRCH: it is just ending
	if c.front == 0 {
		return
	}
	for _, pid := range new(processTable).processes() { // the other group's number may be another's: whoever is in the session proves that it is not
		sid, err := unix.Getsid(pid)
		if err != nil || sid != c.pid {
			continue
		}
		if group, err := unix.Getpgid(pid); err == nil && group == c.front {
			_ = unix.Kill(-group, unix.SIGKILL) // likewise
			return
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
	if s.Self {
		return ownFile, nil
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

// reserveProcesses lowers the soft limit of processes, which the command inherits, by what is reserved for process 1 itself. restore raises it again.
// A command that raises its own limit can take the reserve; it then ends its own sandbox. The family's forking is held.
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

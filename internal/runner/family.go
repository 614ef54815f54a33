package runner

import (
	"sync"
	"syscall"
	"unsafe"

	"github.com/cofferdam/cofferdam/internal/frame"
	"golang.org/x/sys/unix"
)

// family is all the children of process 1: the commands, each of which belongs to a session, and every orphan of the sandbox.
type family struct {
	// forking is held while a command is started and while a child is reaped, so that none is reaped before it is known whose it is. What is inherited by
	// a command, such as limits, is changed under it too.
	forking sync.Mutex
	files   *syscall.Rlimit // of open files, as the runner was started with it; nil until it had to be known

	// mu guards the commands' numbers. Whoever holds it may signal a command that has one: its number cannot become another's meanwhile.
	mu       sync.Mutex
	commands map[int]*command

	born chan struct{} // a command was started
}

func newFamily() *family {
	return &family{commands: make(map[int]*command), born: make(chan struct{}, 1)}
}

// wait reaps until the process ends. Only one goroutine may wait.
func (f *family) wait() {
	for {
		var info unix.Siginfo
		// Looking without reaping keeps the dead child's number taken until it can be reaped under the locks.
		switch err := unix.Waitid(unix.P_ALL, 0, &info, unix.WEXITED|unix.WNOWAIT, nil); err {
		case nil:
			f.reap(childOf(&info))
		case unix.EINTR:
		default: // no children: without a command there are no orphans either
			<-f.born
		}
	}
}

// childOf is the process id in what waitid tells. The kernel puts it behind three numbers and their padding, on amd64 as on arm64.
func childOf(info *unix.Siginfo) int {
	const offset = 16
	return int(*(*int32)(unsafe.Add(unsafe.Pointer(info), offset)))
}

// reap takes the status of a child that has ended, and hands it to the session if it is that of a command.
func (f *family) reap(pid int) {
	f.forking.Lock()
	defer f.forking.Unlock()
	f.mu.Lock()
	defer f.mu.Unlock()
	c := f.commands[pid]
	if c != nil && c.lost {
		c.finish()
	}
	var ws syscall.WaitStatus
	for {
		p, err := syscall.Wait4(pid, &ws, syscall.WNOHANG, nil)
		if err == syscall.EINTR {
			continue
		}
		if err != nil || p != pid { // a program that could not be executed, which its start has reaped
			return
		}
		break
	}
	if c == nil {
		return
	}
	delete(f.commands, pid)
	c.pid = -1
	c.ended <- exitOf(ws) // has room for the one
}

func exitOf(ws syscall.WaitStatus) frame.Exit {
	if ws.Signaled() {
		return frame.Exit{Signal: int(ws.Signal())}
	}
	return frame.Exit{Code: ws.ExitStatus()}
}

// add makes a started command known and gives it the signals that came too early; forking is held.
func (f *family) add(c *command, pid int) {
	f.mu.Lock()
	c.pid = pid
	f.commands[pid] = c
	for _, sig := range c.pending {
		_ = unix.Kill(-pid, sig) // it may already be gone
	}
	c.pending = nil
	f.mu.Unlock()
	select {
	case f.born <- struct{}{}:
	default: // wait has been told and has not looked yet
	}
}

// limitFiles sets the soft limit of open files that the next command inherits, 0 for the one that the runner was started with. restore puts the runner's own
// back, which Go has raised. forking is held.
func (f *family) limitFiles(n uint64) (restore func(), err error) {
	if n == 0 && f.files == nil {
		return func() {}, nil // Go itself gives a command the limit from before, until it is set by hand
	}
	var own syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &own); err != nil {
		return nil, err
	}
	restore = func() { _ = syscall.Setrlimit(syscall.RLIMIT_NOFILE, &own) } // up to the hard limit, which is always allowed
	if f.files == nil {
		// The limit from before is Go's secret. It puts it back before it becomes another program, and there is none without a name.
		_ = syscall.Exec("", nil, nil)
		var first syscall.Rlimit
		if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &first); err != nil {
			restore()
			return nil, err
		}
		f.files = &first
	}
	low := syscall.Rlimit{Cur: f.files.Cur, Max: own.Max}
	if n != 0 {
		low.Cur = min(n, own.Max)
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &low); err != nil {
		restore()
		return nil, err
	}
	return restore, nil
}

package call

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// A supervisor that one process has started can be given away, before anything was asked of it that tells whose sandbox it will make: with the connection goes
// the sandbox, since its end ends it. Whoever gets it says Create as on one that he started himself.

// Parts returns what another process needs to take the supervisor over: the connection, and a descriptor of its process (pidfd_open(2)), which the caller closes.
// It is for the time before Wait and Close.
func (c *Client) Parts() (connection, process *os.File, err error) {
	fd, err := unix.PidfdOpen(c.cmd.Process.Pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, nil, fmt.Errorf("hold the supervisor's process: %w", err)
	}
	return c.conn.file, os.NewFile(uintptr(fd), "supervisor"), nil
}

// Wait waits until the supervisor has left, without hanging up.
func (c *Client) Wait() error { return c.cmd.Wait() }

// Adopt takes over a supervisor by its Parts, which the client owns from then on. lock goes to it with Create, to be held for the sandbox's life as the one of
// Launch is, and so does stderr, for its words about troubles.
func Adopt(connection, process, lock, stderr *os.File) (*Client, error) {
	var files []*os.File
	for _, f := range []*os.File{connection, process} { // both are to be waited for together with a clock, which takes that they do not block
		fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
		if err == nil {
			err = unix.SetNonblock(fd, true)
		}
		_ = f.Close() // its duplicate stays
		if err != nil {
			closeAll(files)
			return nil, fmt.Errorf("take over a supervisor: %w", err)
		}
		files = append(files, os.NewFile(uintptr(fd), f.Name()))
	}
	c := &Client{conn: NewConn(files[0]), process: files[1], carried: []*os.File{lock, stderr}, left: make(chan struct{})}
	go c.watch()
	return c, nil
}

// watch closes left when the supervisor has left, which makes its process's descriptor readable, or when nobody wants to know any more. It begins before this process
// gives up its rights, since asking at once takes one.
func (c *Client) watch() {
	defer close(c.left)
	raw, err := c.process.SyscallConn()
	if err != nil {
		return // it is closed
	}
	asked := false
	_ = raw.Read(func(fd uintptr) bool { // an error means that it is closed
		if asked {
			return true // the wait between this call and the one before was for that
		}
		asked = true
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		return n > 0 && err == nil
	})
}

// outlive waits for the end of a supervisor that is not this process's child. How it ended is not to be had; it said so itself.
func (c *Client) outlive(ctx context.Context) error {
	defer c.process.Close()
	select {
	case <-c.left:
		return nil
	case <-ctx.Done():
		raw, err := c.process.SyscallConn()
		if err == nil {
			err = raw.Control(func(fd uintptr) { _ = unix.PidfdSendSignal(int(fd), unix.SIGKILL, nil, 0) }) // it may have ended, or this process may not
		}
		return errors.Join(fmt.Errorf("supervisor: %w", context.Cause(ctx)), err)
	}
}

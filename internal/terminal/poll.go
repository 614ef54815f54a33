package terminal

import (
	"errors"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// errAborted says that a wait for one of the user's files was given up.
var errAborted = errors.New("no longer waiting for the user's files")

// waker is a pipe that ends a poll. It is safe for concurrent use.
type waker struct {
	mu   sync.Mutex
	r, w int
}

func newWaker() (*waker, error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, os.NewSyscallError("pipe2", err)
	}
	return &waker{r: p[0], w: p[1]}, nil
}

// kick ends the poll under way, or else the next one.
func (w *waker) kick() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.w >= 0 {
		_, _ = unix.Write(w.w, []byte{0}) // full: it is kicked already
	}
}

// drain forgets the kicks so far.
func (w *waker) drain() {
	var b [64]byte
	for {
		if n, err := unix.Read(w.r, b[:]); n <= 0 && err != unix.EINTR {
			return
		}
	}
}

func (w *waker) close() {
	if w == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.w >= 0 {
		_, _ = unix.Close(w.r), unix.Close(w.w) // a pipe of ours
		w.r, w.w = -1, -1
	}
}

// poll waits until fd (none if negative) is ready for events or w is kicked, and says which.
func poll(fd int, events int16, w *waker) (ready, kicked bool, err error) {
	fds := []unix.PollFd{{Fd: int32(w.r), Events: unix.POLLIN}, {Fd: int32(fd), Events: events}}
	for {
		_, err := unix.Poll(fds, -1)
		if err == unix.EINTR {
			continue
		}
		return fds[1].Revents != 0, fds[0].Revents != 0, err
	}
}

// dup duplicates a file's descriptor. Sharing os.File's own would let it change between blocking and not, and be closed under us.
func dup(f *os.File) (int, error) {
	rc, err := f.SyscallConn()
	if err != nil {
		return -1, err
	}
	fd, ferr := -1, error(nil)
	err = rc.Control(func(p uintptr) { fd, ferr = unix.FcntlInt(p, unix.F_DUPFD_CLOEXEC, 3) })
	return fd, errors.Join(err, ferr)
}

// maxWrite is what a pipe takes whole when poll says that it takes anything (PIPE_BUF), so that a write never blocks for long.
const maxWrite = 4096

// outlet is one of the user's files for output. Its gate is held by who writes to it.
type outlet struct {
	gate     gate
	w        io.Writer // nil if fd is used
	fd       int       // -1 if w is used
	plain    bool      // a regular file: always ready
	terminal bool
	midLine  bool    // what was written last has not ended its line
	track    tracker // used with a terminal inside
}

// gate is a lock that can be given up waiting for.
type gate chan struct{}

func (g gate) enter(abort <-chan struct{}) bool {
	select {
	case g <- struct{}{}:
		return true
	case <-abort:
		return false
	}
}

func (g gate) leave() { <-g }

func newOutlet(w io.Writer) (*outlet, error) {
	o := &outlet{gate: make(gate, 1), fd: -1, w: w}
	f, ok := w.(*os.File)
	if w == nil || ok && f == nil {
		o.w = io.Discard
		return o, nil
	}
	if !ok {
		return o, nil
	}
	fd, err := dup(f)
	if err != nil {
		return o, err
	}
	o.fd, o.w = fd, nil
	var st unix.Stat_t
	o.plain = unix.Fstat(fd, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFREG
	o.terminal = isTerminal(fd)
	return o, nil
}

func (o *outlet) close() {
	if o != nil && o.fd >= 0 {
		_ = unix.Close(o.fd) // a duplicate; the file itself is the caller's
		o.fd = -1
	}
}

// follow tracks what a program has just written on its terminal, where a line without anything shown on it is an empty line: shells end theirs with
// a line feed and then turn modes off.
func (o *outlet) follow(p []byte, inLine bool) {
	o.track.inLine = inLine
	o.track.feed(p)
	o.midLine = o.track.inLine
}

// write writes all of p, or until abort is kicked. Whether the file blocks does not matter.
func (o *outlet) write(p []byte, abort *waker) error {
	if len(p) > 0 {
		o.midLine = p[len(p)-1] != '\n'
	}
	if o.fd < 0 {
		_, err := o.w.Write(p)
		return err
	}
	for len(p) > 0 {
		n := len(p)
		if !o.plain {
			if _, kicked, err := poll(o.fd, unix.POLLOUT, abort); err != nil {
				return err
			} else if kicked {
				return errAborted
			}
			n = min(n, maxWrite)
		}
		n, err := unix.Write(o.fd, p[:n])
		if err == unix.EINTR || err == unix.EAGAIN {
			continue
		}
		if err != nil {
			return err
		}
		p = p[n:]
	}
	return nil
}

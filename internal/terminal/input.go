package terminal

import (
	"os"
	"sync"

	"github.com/cofferdam/cofferdam/internal/frame"
	"golang.org/x/sys/unix"
)

// input reads the user's standard input while the command takes it, and can be made to let go of it.
type input struct {
	fd   int // -1: none
	wake *waker

	mu     sync.Mutex
	paused chan struct{} // closed once nothing is being read; nil while reading is wanted
	ended  bool
	done   bool // run has returned
}

func newInput(f *os.File) (*input, error) {
	in := &input{fd: -1}
	var err error
	if in.wake, err = newWaker(); err != nil {
		return in, err
	}
	if f != nil {
		in.fd, err = dup(f)
	}
	return in, err
}

func (in *input) close() {
	if in == nil {
		return
	}
	in.wake.close()
	if in.fd >= 0 {
		_ = unix.Close(in.fd) // a duplicate; the file itself is the caller's
		in.fd = -1
	}
}

// run moves bytes until end is called. It reads no more than can be sent at that moment, so that what the command does not take
// stays with the user for whoever reads next.
func (in *input) run(to *frame.Sender) {
	defer in.release()
	if in.fd < 0 {
		to.Close()
	}
	buf := make([]byte, 32<<10)
	for more := in.fd >= 0; ; {
		in.wake.drain()
		pausing, ended := in.state()
		if ended {
			return
		}
		fd, room := -1, 0
		if more && !pausing {
			if room = min(to.Room(), len(buf)); room > 0 {
				fd = in.fd
			}
		}
		ready, _, err := poll(fd, unix.POLLIN, in.wake)
		if err != nil {
			to.Close()
			return
		}
		if !ready {
			continue
		}
		n, err := unix.Read(fd, buf[:room])
		switch {
		case err == unix.EINTR || err == unix.EAGAIN:
		case err != nil || n == 0: // the end, or EIO: the terminal is gone
			more = false
			to.Close()
		default:
			to.TryWrite(buf[:n]) // there is room for it: nobody else writes
		}
	}
}

// state answers a pause that waits, and says whether to read and whether to end.
func (in *input) state() (pausing, ended bool) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.paused != nil {
		closeOnce(in.paused)
	}
	return in.paused != nil, in.ended
}

// release lets go for good.
func (in *input) release() {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.done = true
	if in.paused != nil {
		closeOnce(in.paused)
	}
}

// pause returns a channel that is closed when the input is not being read any more.
func (in *input) pause() <-chan struct{} {
	in.mu.Lock()
	in.paused = make(chan struct{})
	parked := in.paused
	if in.done {
		close(parked)
	}
	in.mu.Unlock()
	in.wake.kick()
	return parked
}

func (in *input) resume() {
	in.mu.Lock()
	in.paused = nil
	in.mu.Unlock()
	in.wake.kick()
}

func (in *input) end() {
	in.mu.Lock()
	in.ended = true
	in.mu.Unlock()
	in.wake.kick()
}

func closeOnce(c chan struct{}) {
	select {
	case <-c:
	default:
		close(c)
	}
}

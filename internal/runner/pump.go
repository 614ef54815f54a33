package runner

import (
	"errors"
	"io"
	"os"
	"time"

	"github.com/cofferdam/cofferdam/internal/frame"
	"golang.org/x/sys/unix"
)

const (
	// lingering is how long output is awaited after the command's end while its background processes hold the pipes open.
	lingering = 200 * time.Millisecond
	// maxRest bounds what is still taken after that: a pipe's largest capacity, and enough for what the command itself had written.
	maxRest = 1 << 20
	// chunk is how much is read at once.
	chunk = 32 << 10
)

// pipes are the runner's ends of the command's files, and the ends for the command.
type pipes struct {
	in      *os.File    // what the command reads; nil without input
	out     [2]*os.File // Stdout and Stderr; with a terminal the second is nil
	tty     *terminal
	command [3]*os.File // the command's own ends
}

// files returns descriptors for ForkExec.
func (p *pipes) files() (fds [3]uintptr) {
	for i, f := range p.command {
		fds[i] = f.Fd()
	}
	return fds
}

// release closes the command's ends in the runner, so that the command's end is seen as the end of its output. A terminal stays open until settle:
// many programs close theirs before they exit, and if that ended the reading and so closed the master, the kernel would hang them up.
func (p *pipes) release() {
	if p.tty == nil {
		p.releaseAll()
	}
}

func (p *pipes) releaseAll() {
	for _, f := range p.command {
		if f != nil {
			_ = f.Close() // the command has its own
		}
	}
	p.command = [3]*os.File{}
}

// close gives up all files.
func (p *pipes) close() {
	p.releaseAll()
	for _, f := range []*os.File{p.in, p.out[0], p.out[1]} {
		if f != nil {
			_ = f.Close() // nothing is read from or written to them any more
		}
	}
}

// open makes the pipes or the terminal that a Start asks for.
func open(s frame.Start) (*pipes, error) {
	p := &pipes{}
	if s.TTY {
		t, err := openTerminal(s.Rows, s.Cols)
		if err != nil {
			return nil, cannot("no terminal in the sandbox: %v", err)
		}
		p.tty, p.in, p.out[0] = t, t.master, t.master
		p.command = [3]*os.File{t.slave, t.slave, t.slave}
		return p, nil
	}
	var err error
	if s.NoStdin {
		p.command[0], err = os.OpenFile("/dev/null", os.O_RDONLY, 0)
	} else {
		p.command[0], p.in, err = pipe(1)
	}
	if err != nil {
		return nil, err
	}
	for i := range p.out {
		r, w, err := pipe(0)
		if err != nil {
			p.close()
			return nil, err
		}
		p.out[i], p.command[i+1] = r, w
	}
	return p, nil
}

// pipe makes a pipe of which one end, ours, does not block: that is what lets it be closed and timed out under a reader.
// The command's end blocks, as programs expect.
func pipe(ours int) (r, w *os.File, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, cannot("pipe: %v", err)
	}
	if err := unix.SetNonblock(fds[ours], true); err != nil {
		_, _ = unix.Close(fds[0]), unix.Close(fds[1]) // never used
		return nil, nil, cannot("pipe: %v", err)
	}
	return os.NewFile(uintptr(fds[0]), "pipe"), os.NewFile(uintptr(fds[1]), "pipe"), nil
}

// feed writes what the owner sends to the command's input until either ends. The loss of the owner is not the end of the input: a command that took it for
// that would go on with half of what it was to get.
func (p *pipes) feed(l *frame.Link) {
	from := l.Receiver(frame.Stdin)
	if p.in == nil {
		from.Stop()
		return
	}
	buf := make([]byte, chunk)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			if _, werr := p.in.Write(buf[:n]); werr != nil { // the command has closed its input
				from.Stop()
				break
			}
		}
		if err != nil {
			if l.Err() != nil {
				return
			}
			if errors.Is(err, io.EOF) && p.tty != nil {
				p.tty.endOfInput()
			}
			break
		}
	}
	if p.tty == nil {
		_ = p.in.Close() // that is the message
	}
}

// drain sends one output of the command to its end, which is the last writer's close or, after the command's end, what had been written by then.
func drain(from *os.File, to *frame.Sender) {
	defer to.Close()
	defer from.Close() // read to the end; if the owner stopped, this is what gives the command SIGPIPE or SIGHUP
	buf := make([]byte, chunk)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			if _, werr := to.Write(buf[:n]); werr != nil {
				return
			}
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			rest(from, to, buf)
			return
		}
		if err != nil { // io.EOF, or EIO: the command has ended and nobody has the terminal open any longer
			return
		}
	}
}

// rest sends what lies in the pipe now, without waiting for more.
func rest(from *os.File, to *frame.Sender, buf []byte) {
	rc, err := from.SyscallConn()
	if err != nil {
		return
	}
	for total := 0; total < maxRest; {
		n := 0
		err := rc.Control(func(fd uintptr) { n, _ = unix.Read(int(fd), buf) }) // no bytes for whatever reason: that was the rest
		if err != nil || n <= 0 {
			return
		}
		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
		total += n
	}
}

// settle is called when the command has been reaped.
func (p *pipes) settle() {
	p.releaseAll()
	for _, f := range p.out {
		if f != nil {
			_ = f.SetReadDeadline(time.Now().Add(lingering)) // closed: already at its end
		}
	}
}

// stop closes an output that the owner no longer wants: the command learns it from the kernel as it would without us.
func (p *pipes) stop(id frame.Stream) {
	if id != frame.Stdout && id != frame.Stderr {
		return
	}
	if f := p.out[id-frame.Stdout]; f != nil {
		_ = f.Close() // may be closed already
	}
}

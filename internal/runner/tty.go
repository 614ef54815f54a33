package runner

import (
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// terminal is the pseudo-terminal of a command, from its master side. It is made inside, from the sandbox's own devpts, so that no
// terminal of the host is within reach.
type terminal struct {
	master *os.File
	slave  *os.File // kept until the command has been reaped
}

func openTerminal(rows, cols uint16) (*terminal, error) {
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/ptmx: %w", err)
	}
	t := &terminal{master: os.NewFile(uintptr(fd), "/dev/ptmx")}
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.close()
		return nil, fmt.Errorf("unlock terminal: %w", err)
	}
	slave, err := openSlave(fd)
	if err != nil {
		t.close()
		return nil, err
	}
	t.slave = os.NewFile(uintptr(slave), "tty")
	t.resize(rows, cols)
	return t, nil
}

// openSlave asks the master for its other side, which needs no path and so cannot be misled by mounts; by name where that is unknown.
func openSlave(master int) (int, error) {
	const flags = unix.O_RDWR | unix.O_NOCTTY | unix.O_CLOEXEC
	fd, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(master), unix.TIOCGPTPEER, flags)
	if errno == 0 {
		return int(fd), nil
	}
	n, err := unix.IoctlGetInt(master, unix.TIOCGPTN)
	if err != nil {
		return 0, fmt.Errorf("number of terminal: %w", err)
	}
	name := "/dev/pts/" + strconv.Itoa(n)
	slave, err := unix.Open(name, flags, 0)
	if err != nil {
		return 0, fmt.Errorf("open %s: %w", name, err)
	}
	return slave, nil
}

// control calls f with the master's descriptor while it is open.
func (t *terminal) control(f func(fd int)) {
	if rc, err := t.master.SyscallConn(); err == nil {
		_ = rc.Control(func(fd uintptr) { f(int(fd)) }) // closed: there is nobody left to tell
	}
}

// resize sets the size, and the kernel sends SIGWINCH. A size of nothing is left alone.
func (t *terminal) resize(rows, cols uint16) {
	if rows == 0 || cols == 0 {
		return
	}
	t.control(func(fd int) {
		_ = unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols}) // fails only on a terminal that has gone
	})
}

// foreground is the process group that the keyboard's signals go to, 0 if unknown.
func (t *terminal) foreground() (group int) {
	t.control(func(fd int) {
		if n, err := unix.IoctlGetInt(fd, unix.TIOCGPGRP); err == nil {
			group = n
		}
	})
	return group
}

// endOfInput types the character that means end of file, as a person would.
func (t *terminal) endOfInput() {
	var char byte
	t.control(func(fd int) {
		if tio, err := unix.IoctlGetTermios(fd, unix.TCGETS); err == nil && tio.Lflag&unix.ICANON != 0 {
			char = tio.Cc[unix.VEOF]
		}
	})
	if char != 0 {
		_, _ = t.master.Write([]byte{char}) // the program may be gone
	}
}

func (t *terminal) close() {
	_ = t.master.Close() // closing a terminal reports nothing useful
	if t.slave != nil {
		_ = t.slave.Close() // likewise
	}
}

package terminal

import (
	"sync"

	"golang.org/x/sys/unix"
)

func isTerminal(fd int) bool {
	_, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	return err == nil
}

// userTTY is the user's terminal and the state it is to be given back in. It is safe for concurrent use.
type userTTY struct {
	mu    sync.Mutex
	fd    int // another's, and open as long as this is used
	saved unix.Termios
	israw bool
}

func newUserTTY(fd int) (*userTTY, error) {
	saved, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return nil, err
	}
	return &userTTY{fd: fd, saved: *saved}, nil
}

// foreground says whether this process may use the terminal. A terminal without job control for us counts as ours.
func (t *userTTY) foreground() bool {
	group, err := unix.IoctlGetInt(t.fd, unix.TIOCGPGRP)
	return err != nil || group == unix.Getpgrp()
}

// raw passes every key through as it is. In the background it does nothing, since the kernel would stop the process for trying:
// the shell sends SIGCONT when it brings us back.
func (t *userTTY) raw() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.foreground() {
		return nil
	}
	tio := t.saved
	tio.Iflag &^= unix.IGNBRK | unix.BRKINT | unix.PARMRK | unix.ISTRIP | unix.INLCR | unix.IGNCR | unix.ICRNL | unix.IXON
	tio.Oflag &^= unix.OPOST
	tio.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
	tio.Cflag = tio.Cflag&^(unix.CSIZE|unix.PARENB) | unix.CS8
	tio.Cc[unix.VMIN], tio.Cc[unix.VTIME] = 1, 0
	if err := unix.IoctlSetTermios(t.fd, unix.TCSETS, &tio); err != nil {
		return err
	}
	t.israw = true
	return nil
}

// restore puts the terminal back. It drops input that nobody has read: the program inside can have asked the terminal to report text of its
// choice, which the user's shell would otherwise read as typed.
func (t *userTTY) restore() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.israw || !t.foreground() {
		return
	}
	_ = unix.IoctlSetTermios(t.fd, unix.TCSETSF, &t.saved) // the terminal may be gone, and with it what there was to restore
	t.israw = false
}

// close forgets the terminal: its descriptor is about to be another file's.
func (t *userTTY) close() {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.fd, t.israw = -1, false
}

// size is the terminal's size, zero if unknown.
func (t *userTTY) size() (rows, cols uint16) {
	ws, err := unix.IoctlGetWinsize(t.fd, unix.TIOCGWINSZ)
	if err != nil {
		return 0, 0
	}
	return ws.Row, ws.Col
}

package terminal

import (
	"os"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// twice is how soon a second interrupt must follow to mean that the first did not help.
const twice = 2 * time.Second

// caught are the signals that reach the command in place of us.
func caught() []os.Signal {
	return []os.Signal{
		syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGTSTP,
	}
}

// signals are the signals to this process during a session.
type signals struct {
	c    chan os.Signal
	done chan struct{}
	last time.Time // of the last interrupt
}

// watchSignals begins to catch signals. One that whoever started us had set to be ignored stays so, as with nohup.
func (s *Session) watchSignals() *signals {
	g := &signals{c: make(chan os.Signal, 32), done: make(chan struct{})}
	for _, sig := range caught() {
		if !signal.Ignored(sig) {
			signal.Notify(g.c, sig)
		}
	}
	signal.Notify(g.c, syscall.SIGCONT)
	if s.user != nil {
		signal.Notify(g.c, syscall.SIGWINCH)
	}
	return g
}

// stop ends catching; it may be called twice, by the same goroutine.
func (g *signals) stop() {
	signal.Stop(g.c)
	closeOnce(g.done)
}

func (g *signals) run(s *Session) {
	for {
		select {
		case sig := <-g.c:
			g.handle(s, sig.(syscall.Signal))
		case <-g.done:
			return
		}
	}
}

func (g *signals) handle(s *Session, sig syscall.Signal) {
	switch sig {
	case syscall.SIGWINCH:
		s.resize()
	case syscall.SIGTSTP:
		s.suspend()
	case syscall.SIGCONT:
		s.resume()
	default:
		if sig == syscall.SIGINT && !g.last.IsZero() && time.Since(g.last) < twice && s.opts.Kill != nil {
			s.opts.Kill()
		}
		if sig == syscall.SIGINT {
			g.last = time.Now()
		}
		if s.link.SendSignal(int(sig)) != nil {
			s.abort.kick() // the command is gone, only its output is still being written: that is what the user wants to end
		}
	}
}

func (s *Session) resize() {
	if rows, cols := s.user.size(); rows > 0 && cols > 0 {
		_ = s.link.SendResize(rows, cols) // the command is gone: no matter
	}
}

// suspend stops this process as the user asked, with the terminal usable meanwhile. Without a terminal inside the command stops too, by SIGSTOP:
// it has a session of its own, in which the kernel ignores SIGTSTP. With one, the command has its own job control, and only its output waits.
func (s *Session) suspend() {
	if s.user == nil {
		_ = s.link.SendSignal(int(unix.SIGSTOP)) // the command is gone: stop nevertheless
		time.Sleep(20 * time.Millisecond)        // the signal is to leave before we stand still
	}
	s.Restore()
	_ = unix.Tgkill(unix.Getpid(), unix.Gettid(), unix.SIGSTOP) // to ourselves: cannot be refused but by a filter, and then nothing happens
}

// resume takes up where suspend or a kill -STOP from elsewhere left off.
func (s *Session) resume() {
	if s.user == nil {
		_ = s.link.SendSignal(int(unix.SIGCONT)) // the command is gone: no matter
		return
	}
	_ = s.user.raw() // the terminal is gone: reading it says so
	s.resize()
}

package terminal

import (
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// twice is how soon a second interrupt must follow to mean that the first did not help.
const twice = 2 * time.Second

// passed are the signals that reach the command in place of us.
func passed() []os.Signal {
	return []os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2}
}

// signals are the signals to this process during a session.
type signals struct {
	c     chan os.Signal
	given <-chan os.Signal // the caller's; nil if all come through c
	done  chan struct{}
	last  time.Time // of the last interrupt
}

// watchSignals begins to catch signals, but those that the caller brings. One that whoever started us had set to be ignored stays so, as with nohup.
func (s *Session) watchSignals() *signals {
	g := &signals{c: make(chan os.Signal, 32), given: s.opts.Signals, done: make(chan struct{})}
	catch := []os.Signal{syscall.SIGTSTP}
	if g.given == nil {
		catch = append(catch, passed()...)
	}
	for _, sig := range catch {
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
		case <-g.done: // first: what the caller's channel holds from now on is the caller's
			return
		default:
		}
		select {
		case sig := <-g.c:
			g.handle(s, sig.(syscall.Signal)) // os/signal sends no others
		case sig, open := <-g.given:
			if !open {
				g.given = nil
			} else if slices.Contains(passed(), sig) {
				g.handle(s, sig.(syscall.Signal))
			}
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

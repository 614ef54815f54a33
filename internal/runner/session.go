package runner

import (
	"errors"
	"fmt"
	"sync"
	"syscall"
	"time"

	"github.com/cofferdam/cofferdam/internal/frame"
)

// session is one connection to the owner and the command that it is for.
type session struct {
	link    *frame.Link // set before it runs
	starts  chan frame.Start
	command command

	mu      sync.Mutex
	pipes   *pipes                // nil until the command starts
	size    *[2]uint16            // a size that came before the terminal
	refused map[frame.Stream]bool // outputs that the owner stopped before they existed
}

func newSession(f *family) *session {
	return &session{
		starts: make(chan frame.Start, 1), refused: make(map[frame.Stream]bool),
		command: command{family: f, ended: make(chan frame.Exit, 1)},
	}
}

// handlers are what every session does with what arrives.
func (s *session) handlers() frame.Handlers {
	return frame.Handlers{
		Start:   func(st frame.Start) error { s.starts <- st; return nil }, // once, as the link guarantees
		Signal:  func(n int) error { s.command.signal(syscall.Signal(n)); return nil },
		Resize:  s.resize,
		Stopped: s.stop,
	}
}

// run starts the command and tells all about it. It returns nil when the owner has been told, or had its time to listen.
func (s *session) run(st frame.Start, linked <-chan error) error {
	exit, err := s.start(st)
	if err != nil {
		return s.refuse(exit, linked)
	}
	select {
	case exit = <-s.command.ended:
	case err := <-linked:
		return fmt.Errorf("lost the owner: %w", err)
	}
	_ = s.link.SendExit(exit) // if the link is gone the next step says so
	s.pipes.settle()
	return s.leave(linked)
}

// refuse tells that there is no command, and why.
func (s *session) refuse(exit frame.Exit, linked <-chan error) error {
	_ = s.link.SendExit(exit) // if the link is gone the next step says so
	s.link.Sender(frame.Stdout).Close()
	s.link.Sender(frame.Stderr).Close()
	return s.leave(linked)
}

// leave waits until everything is sent, and then a little for the owner to close the connection.
func (s *session) leave(linked <-chan error) error {
	select {
	case <-s.link.Drained():
	case err := <-linked:
		if s.link.Delivered() { // he has all of it, and was quicker to leave
			return nil
		}
		return fmt.Errorf("lost the owner before all output was sent: %w", err)
	}
	select {
	case <-linked:
	case <-time.After(farewell):
	}
	return nil
}

// start starts the command and what moves its bytes. Those goroutines end with their streams, at the latest when the session or the process ends.
func (s *session) start(st frame.Start) (frame.Exit, error) {
	f := s.command.family
	f.forking.Lock() // from here on: a limit of open files that is meant for another command would bound these pipes
	defer f.forking.Unlock()
	p, err := s.prepare(st)
	if err == nil {
		var pid int
		if pid, err = s.command.start(st, p.files()); err == nil {
			p.release()
			_ = s.link.SendStarted(pid) // if the link is gone, run sees it
			s.pump(p)
			return frame.Exit{}, nil
		}
		p.close()
	}
	if e, ok := errors.AsType[*exitError](err); ok {
		return e.exit, err
	}
	return frame.Exit{Error: err.Error()}, err
}

// prepare opens the command's files and makes them known to the handlers.
func (s *session) prepare(st frame.Start) (*pipes, error) {
	p, err := open(st)
	if err != nil {
		return nil, err
	}
	s.command.tty = p.tty // before it has a number, until which nobody looks
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pipes = p
	if s.size != nil && p.tty != nil {
		p.tty.resize(s.size[0], s.size[1])
	}
	for id := range s.refused {
		p.stop(id)
	}
	return p, nil
}

func (s *session) pump(p *pipes) {
	go p.feed(s.link)
	for i, f := range p.out {
		to := s.link.Sender(frame.Stdout + frame.Stream(i))
		if f == nil {
			to.Close()
			continue
		}
		go drain(f, to)
	}
}

func (s *session) resize(rows, cols uint16) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pipes == nil {
		s.size = &[2]uint16{rows, cols}
	} else if s.pipes.tty != nil {
		s.pipes.tty.resize(rows, cols)
	}
	return nil
}

func (s *session) stop(id frame.Stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pipes == nil {
		s.refused[id] = true
		return
	}
	s.pipes.stop(id)
}

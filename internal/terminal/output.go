package terminal

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/frame"
	"golang.org/x/sys/unix"
)

// pump writes one output of the command to the user until it ends. If the user's side takes no more, the runner is told, and the command gets
// SIGPIPE from its own kernel as it would without a sandbox.
func (s *Session) pump(id frame.Stream, to *outlet) {
	from := s.link.Receiver(id)
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		taken := n
		if s.opts.Take != nil {
			taken = s.opts.Take(n)
		}
		to.gate.enter(nil) // a question that holds it gives it back when the link ends, a writer when it is aborted
		inLine := to.midLine
		werr := to.write(buf[:taken], s.abort)
		if s.user != nil {
			to.follow(buf[:taken], inLine)
		}
		to.gate.leave()
		s.notes.again()
		if werr != nil {
			s.lose(id, werr)
		}
		if werr != nil || taken < n {
			from.Stop()
			return
		}
	}
}

// lose notes that output was not written. A reader who has left is no error: the command's own end tells.
func (s *Session) lose(id frame.Stream, err error) {
	if errors.Is(err, unix.EPIPE) {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lost == nil {
		s.lost = fault.New(fault.Unavailable, "cannot write the command's %s", id).Because(err)
	}
}

const (
	// maxNotices bounds the notices that wait for the screen.
	maxNotices = 256
	// maxNotice bounds one notice, in bytes.
	maxNotice = 4096
	// patience is how long a notice waits for a program to finish the escape sequence that it has begun.
	patience = 200 * time.Millisecond
)

// notices are the lines for the user that wait to be shown. It is safe for concurrent use.
type notices struct {
	poke chan struct{} // something may be shown now

	mu      sync.Mutex
	lines   []string
	dropped int
	since   time.Time // when the oldest came
	ended   bool      // poke is closed
	closed  bool      // the session is over and no line is kept any more
}

// Notify shows a line to the user, on Stderr. It never waits. With a terminal inside it comes between the command's output without breaking it,
// and while a program uses the alternate screen it is kept until that is left or the command ends. The line is made inert and bounded; of more
// lines than can be kept only the number is told. Once the session is over it writes to Stderr at once.
func (s *Session) Notify(line string) {
	line = frame.Inert(line, maxNotice)
	n := &s.notes
	n.mu.Lock()
	if n.closed {
		n.mu.Unlock()
		s.tell([]byte(line + "\n"))
		return
	}
	switch {
	case len(n.lines) >= maxNotices:
		n.dropped++
	case len(n.lines) == 0:
		n.since = time.Now()
		fallthrough
	default:
		n.lines = append(n.lines, line)
	}
	n.mu.Unlock()
	n.again()
}

// again has the notifier look once more, if there is something to show.
func (n *notices) again() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.lines) == 0 || n.ended {
		return
	}
	select {
	case n.poke <- struct{}{}:
	default:
	}
}

func (n *notices) end() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.ended = true
	close(n.poke)
}

// take returns the text of all waiting lines.
func (n *notices) take(eol string) (text []byte) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, line := range n.lines {
		text = append(append(text, line...), eol...)
	}
	if n.dropped > 0 {
		text = append(fmt.Appendf(text, "and %d more notices", n.dropped), eol...)
	}
	n.lines, n.dropped = nil, 0
	return text
}

// close returns what still waits; nothing will wait after it.
func (n *notices) close() (text []byte) {
	text = n.take("\n")
	n.mu.Lock()
	defer n.mu.Unlock()
	n.closed = true
	for _, line := range n.lines { // came in between
		text = append(append(text, line...), '\n')
	}
	n.lines = nil
	return text
}

// tell writes to the caller's Stderr, when the session no longer does.
func (s *Session) tell(text []byte) {
	if s.opts.Stderr != nil && len(text) > 0 {
		_, _ = s.opts.Stderr.Write(text) // nobody reads it: nobody to tell
	}
}

func (n *notices) age() time.Duration {
	n.mu.Lock()
	defer n.mu.Unlock()
	return time.Since(n.since)
}

// notifier shows notices when the screen is free for them.
func (s *Session) notifier() {
	timer := time.AfterFunc(time.Hour, s.notes.again)
	defer timer.Stop()
	for range s.notes.poke {
		s.err.gate.enter(nil)
		t := &s.out.track
		switch {
		case s.shared && t.alt:
		case s.shared && !t.quiet() && s.notes.age() < patience:
			timer.Reset(patience)
		default:
			s.show(s.abort)
		}
		s.err.gate.leave()
	}
}

// show writes the waiting notices; the gate of s.err is held.
func (s *Session) show(abort *waker) {
	eol := "\n"
	if s.shared {
		eol = "\r\n"
	}
	text := s.notes.take(eol)
	if len(text) == 0 {
		return
	}
	if !s.shared {
		if s.err.midLine {
			text = append([]byte(eol), text...)
		}
		_ = s.err.write(text, abort) // nobody reads Stderr any more: nobody to tell
		return
	}
	lead := ""
	if !s.out.track.quiet() {
		lead = breakOff
		s.out.track.state, s.out.track.utf8 = ground, 0
	}
	lead += plainText
	if s.out.midLine {
		lead += "\r\n"
	}
	_ = s.err.write(append([]byte(lead), text...), abort) // likewise
	s.out.midLine = false
}

// settleScreen gives the user's shell a usable screen and shows what was held back. Everything else that Run started has ended.
func (s *Session) settleScreen() {
	timer := time.AfterFunc(patience, s.last.kick)
	defer timer.Stop()
	for _, g := range s.gates(func(o *outlet) bool { return true }) {
		g.enter(nil)
		defer g.leave()
	}
	if s.user != nil {
		if b := s.out.track.undo(); len(b) > 0 {
			_ = s.out.write(b, s.last) // the terminal is gone, and with it the need
			s.out.track = tracker{}
		}
	}
	s.show(s.last)
}

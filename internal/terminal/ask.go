package terminal

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cofferdam/cofferdam/internal/frame"
	"golang.org/x/sys/unix"
)

// The ways in which a question stays without an answer, besides the end of its context.
var (
	// ErrCannotAsk says that there is no terminal at which to ask, or that it is someone else's at the moment.
	ErrCannotAsk = errors.New("there is no terminal to ask at")
	// ErrDismissed says that the user pressed Ctrl-C, Ctrl-D or Escape instead of answering.
	ErrDismissed = errors.New("the question was dismissed")
)

const (
	// settling is how long keys still go to the command after a question appeared: they were pressed without having read it.
	settling = 400 * time.Millisecond
	// maxQuestion bounds a question, in bytes.
	maxQuestion = 1024
	// redrawn separates the two sizes that make a full-screen program draw itself anew.
	redrawn = 50 * time.Millisecond
)

// Choice is one possible answer.
type Choice struct {
	Key   byte   // pressed for it: a printable ASCII character
	Label string // what it means
}

// asker is where questions are asked. Its zero value cannot ask.
type asker struct {
	turn chan struct{} // held by the question on display
	wake *waker
	keys *userTTY // read from; nil: cannot ask
	mine int      // a descriptor of ours to close, -1 if none
	show *outlet
}

// open finds the terminal: Stdin if it is one, else TTYFile.
func (a *asker) open(s *Session, opts *Options) (err error) {
	a.turn, a.mine = make(chan struct{}, 1), -1
	if a.wake, err = newWaker(); err != nil {
		return err
	}
	switch {
	case s.user != nil:
		a.keys = s.user
	case s.input.fd >= 0 && isTerminal(s.input.fd):
		a.keys, err = newUserTTY(s.input.fd)
	case opts.TTYFile != nil:
		if a.mine, err = dup(opts.TTYFile); err != nil || !isTerminal(a.mine) {
			return err
		}
		a.keys, err = newUserTTY(a.mine)
	default:
		return nil
	}
	if err != nil {
		return err
	}
	switch {
	case opts.TTYFile != nil:
		a.show, err = newOutlet(opts.TTYFile)
	case s.err.terminal:
		a.show = s.err
	case s.out.terminal:
		a.show = s.out
	default:
		a.show, err = newOutlet(opts.Stdin)
	}
	return err
}

func (a *asker) close() {
	a.wake.close()
	a.keys.close()
	if a.mine > 0 {
		_ = unix.Close(a.mine) // a duplicate; the file itself is the caller's
		a.mine = -1
	}
	a.show.close() // closing twice is harmless where it is another's
}

// Ask shows a question on the user's terminal and returns the Key of the choice made. The command goes on meanwhile: its output on that terminal
// waits, bounded by its credit, and the keyboard belongs to the question after a moment in which keys still reach the command. Only a single
// key press counts, so that neither pasted text nor a terminal's report can answer. Questions are asked one at a time.
// Besides ctx's cause it returns ErrCannotAsk, ErrDismissed, or why the session is over.
func (s *Session) Ask(ctx context.Context, question string, choices []Choice) (byte, error) {
	a := &s.ask
	if a.keys == nil || len(choices) == 0 {
		return 0, ErrCannotAsk
	}
	if err := s.enter(ctx, a.turn); err != nil {
		return 0, err
	}
	defer func() { <-a.turn }()
	if !a.keys.foreground() {
		return 0, ErrCannotAsk
	}
	release, err := s.holdScreen(ctx)
	if err != nil {
		return 0, err
	}
	defer release()
	return s.question(ctx, question, choices)
}

// enter takes a place of which there is one.
func (s *Session) enter(ctx context.Context, place chan struct{}) error {
	select {
	case <-s.over:
		return s.link.Err()
	default:
	}
	select {
	case place <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-s.over:
		return s.link.Err()
	}
}

// holdScreen keeps everything else off the terminal.
func (s *Session) holdScreen(ctx context.Context) (release func(), err error) {
	var held []gate
	release = func() {
		for _, g := range held {
			g.leave()
		}
	}
	for _, g := range s.gates(func(o *outlet) bool { return o.terminal || s.user != nil }) {
		if err := s.enter(ctx, g); err != nil {
			release()
			return nil, err
		}
		held = append(held, g)
	}
	return release, nil
}

// gates lists the gates of the outlets that are wanted, each once and always in the same order.
func (s *Session) gates(want func(*outlet) bool) (list []gate) {
	for _, o := range []*outlet{s.out, s.err} {
		if want(o) && !slices.Contains(list, o.gate) {
			list = append(list, o.gate)
		}
	}
	return list
}

// question shows the question, reads the answer, and leaves the screen as it found it; the screen is held.
func (s *Session) question(ctx context.Context, question string, choices []Choice) (byte, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	t := &s.out.track
	before, eol := "", "\n"
	if s.user != nil {
		eol = "\r\n"
		if !t.quiet() {
			before = breakOff
			t.state, t.utf8 = ground, 0
		}
		if t.alt {
			before += "\x1b[?1049l"
		}
		before += plainText
	}
	for _, o := range []*outlet{s.out, s.err} {
		if o.terminal && o.midLine && !t.alt { // the gates of terminals are held
			before += eol
			break
		}
	}
	if err := s.ask.show.write([]byte(before+prompt(question, choices, eol)), s.abort); err != nil {
		return 0, fmt.Errorf("ask: %w", err)
	}
	key, err := s.key(ctx, choices)
	after := eol
	if err == nil {
		after = string(key) + eol
	}
	if t.alt {
		after += "\x1b[?1049h"
	}
	_ = s.ask.show.write([]byte(after), s.abort) // the answer counts even if its echo does not arrive
	for _, o := range []*outlet{s.out, s.err} {
		if o.terminal {
			o.midLine = false
		}
	}
	if t.alt {
		s.redraw()
	}
	return key, err
}

// prompt is the question's text, inert but for the ends of its lines.
func prompt(question string, choices []Choice, eol string) string {
	var b strings.Builder
	b.WriteString(frame.Inert(question, maxQuestion) + eol)
	for i, c := range choices {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(frame.Inert(fmt.Sprintf("[%c] %s", c.Key, c.Label), 128))
	}
	b.WriteString(": ")
	return b.String()
}

// redraw makes a full-screen program draw its screen anew by changing its size for a moment.
func (s *Session) redraw() {
	if rows, cols := s.user.size(); rows > 1 {
		_ = s.link.SendResize(rows-1, cols) // the command is gone: no matter
		time.Sleep(redrawn)                 // the link merges sizes that follow too closely
		s.resize()
	}
}

// key reads the keyboard until a choice is made.
func (s *Session) key(ctx context.Context, choices []Choice) (byte, error) {
	a := &s.ask
	select {
	case <-time.After(settling):
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	case <-s.over:
		return 0, s.link.Err()
	}
	if a.keys.fd == s.input.fd {
		parked := s.input.pause()
		defer s.input.resume()
		select {
		case <-parked:
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		case <-s.over:
			return 0, s.link.Err()
		}
	}
	if a.keys != s.user {
		if err := a.keys.raw(); err != nil {
			return 0, fmt.Errorf("ask: %w", err)
		}
		defer a.keys.restore()
	}
	a.wake.drain()
	stop := context.AfterFunc(ctx, a.wake.kick)
	defer stop()
	for {
		if ctx.Err() != nil {
			return 0, context.Cause(ctx)
		}
		select {
		case <-s.over:
			return 0, s.link.Err()
		default:
		}
		ready, _, err := poll(a.keys.fd, unix.POLLIN, a.wake)
		if err != nil {
			return 0, fmt.Errorf("ask: %w", err)
		}
		if !ready {
			continue
		}
		if key, done, err := s.press(choices); done {
			return key, err
		}
	}
}

// press reads what was typed and says whether that settles the question.
func (s *Session) press(choices []Choice) (key byte, done bool, err error) {
	var b [256]byte
	n, err := unix.Read(s.ask.keys.fd, b[:])
	switch {
	case err == unix.EINTR || err == unix.EAGAIN:
		return 0, false, nil
	case err != nil || n == 0:
		return 0, true, ErrCannotAsk // the terminal is gone
	case n > 1:
		return 0, false, nil
	}
	switch b[0] {
	case 0x03: // as ever, it also interrupts the command
		if s.user != nil {
			s.link.Sender(frame.Stdin).TryWrite(b[:1])
		} else {
			_ = s.link.SendSignal(int(unix.SIGINT)) // the command is gone: no matter
		}
		return 0, true, ErrDismissed
	case 0x04, 0x1b:
		return 0, true, ErrDismissed
	}
	for _, c := range choices {
		if c.Key == b[0] {
			return c.Key, true, nil
		}
	}
	return 0, false, nil
}

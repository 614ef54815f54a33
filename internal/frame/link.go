package frame

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"sync"
	"time"
)

// ErrEnded is why a link ended that this side ended itself.
var ErrEnded = errors.New("the link has ended")

// ErrBusy says that too many messages wait to be written: the peer does not read.
var ErrBusy = errors.New("the peer does not read its messages")

const (
	// maxQueue bounds the messages that wait for a peer that does not read. Signals, sizes, credit and pongs need no place in it: they merge.
	maxQueue = 64 << 10
	// lastWord is how long the reason of a violation may take to reach the peer.
	lastWord = time.Second
)

// Handlers are what a side does with what arrives. They are called one at a time by Run and must not wait: while one runs, nothing is read.
// A message whose handler is nil is one that this side never gets, so it is a violation. An error from a handler ends the link.
type Handlers struct {
	// The owner sets these.
	Hello   func(Hello) error
	Started func(pid int) error
	Owner   func(Owner) error
	Exit    func(Exit) error
	Error   func(text string) error
	// The runner sets these.
	Start  func(Start) error
	Signal func(n int) error
	Resize func(rows, cols uint16) error
	Query  func(Query) error
	Spawn  func(token []byte) error // the handler's own copy, to be overwritten after use

	// Either side may set these.
	Ended   func(Stream) // the peer ended a stream that this side reads; its bytes may still wait in the Receiver
	Stopped func(Stream) // the peer no longer reads a stream that this side writes
	Room    func(Stream) // the Sender may have room again, or the link has ended; may be called at the same time as others
}

// Link is one side of the protocol over one byte stream. Every method is safe for concurrent use, and none but the reading and writing of
// streams waits for the peer: a peer that stops reading or a stream that nobody consumes holds up nothing else.
type Link struct {
	conn io.ReadWriteCloser
	on   Handlers

	mu      sync.Mutex
	wake    sync.Cond // the writer waits here
	queue   []byte    // messages in wire form, written before anything else
	signals uint64    // bit n-1: signal n is to be sent
	size    *[2]uint16
	pong    *[8]byte
	ping    chan struct{} // closed by the pong that is waited for
	pings   uint64        // how many were sent; the payload of the last one
	credits [streams]uint32
	out     [streams]*Sender
	in      [streams]*Receiver
	turn    int
	flush   bool  // write what is queued, then end
	err     error // why the link ended; nil while it lives

	over        chan struct{} // closed with err
	drained     chan struct{} // closed when every stream of ours is written to its end
	drainedOnce sync.Once
	delivered   bool // drained is closed for the first of its two reasons

	// The reader's own.
	start    []byte // pieces of Start
	greeted  bool   // Hello (owner) or Start (runner) has come
	started  bool   // Started or Exit has come
	finished bool   // Exit has come
}

// NewOwner returns the owner's side: it writes Stdin and reads Stdout and Stderr.
func NewOwner(conn io.ReadWriteCloser, on Handlers) *Link { return newLink(conn, on, Stdin) }

// NewRunner returns the runner's side: it reads Stdin and writes Stdout and Stderr. WriteHello comes before Run.
func NewRunner(conn io.ReadWriteCloser, on Handlers) *Link { return newLink(conn, on, Stdout, Stderr) }

func newLink(conn io.ReadWriteCloser, on Handlers, writes ...Stream) *Link {
	l := &Link{conn: conn, on: on, over: make(chan struct{}), drained: make(chan struct{})}
	l.wake.L = &l.mu
	for _, id := range writes {
		l.out[id] = &Sender{l: l, id: id, room: sync.Cond{L: &l.mu}, credit: Window}
	}
	for id := range Stream(streams) {
		if l.out[id] == nil {
			l.in[id] = &Receiver{l: l, id: id, ready: sync.Cond{L: &l.mu}, granted: Window}
		}
	}
	return l
}

// Sender returns the writing end of a stream that this side writes, else nil.
func (l *Link) Sender(id Stream) *Sender { return l.out[id] }

// Receiver returns the reading end of a stream that this side reads, else nil.
func (l *Link) Receiver(id Stream) *Receiver { return l.in[id] }

// Run reads and writes until the connection ends, ctx is done, a side breaks the protocol, or End is called. It closes the connection,
// waits for what it started, and returns why it ended, never nil: io.EOF if the peer closed between two frames.
func (l *Link) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { l.end(context.Cause(ctx)) })
	defer stop()
	var wg sync.WaitGroup
	wg.Go(l.write)
	l.fail(l.read())
	wg.Wait()
	return l.Err()
}

// End closes the connection at once; what is queued is lost.
func (l *Link) End() { l.end(ErrEnded) }

// Err says why the link ended, nil while it lives.
func (l *Link) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// Drained is closed when all that this side's streams held, and their ends, were given to the connection, or the link ended.
func (l *Link) Drained() <-chan struct{} { return l.drained }

// Delivered reports whether all that this side's streams held, and their ends, were given to the connection. It is final once Run has returned.
func (l *Link) Delivered() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.delivered
}

// end is the first reason's; it wakes everyone who waits.
func (l *Link) end(why error) {
	l.mu.Lock()
	if l.err != nil {
		l.mu.Unlock()
		return
	}
	l.err = why
	close(l.over)
	l.wake.Broadcast()
	for id := range streams {
		if s := l.out[id]; s != nil {
			s.room.Broadcast()
		}
		if r := l.in[id]; r != nil {
			r.ready.Broadcast()
		}
	}
	l.mu.Unlock()
	l.drainedOnce.Do(func() { close(l.drained) })
	_ = l.conn.Close() // the link is over either way, and its reason is known
	if l.on.Room != nil {
		l.on.Room(Stdin)
	}
}

// fail ends the link for what the reader found. A runner tells its owner why, briefly; an owner tells a hostile runner nothing.
func (l *Link) fail(why error) {
	if l.out[Stdout] == nil || errors.Is(why, io.EOF) || l.Err() != nil {
		l.end(why)
		return
	}
	l.mu.Lock()
	l.queue = Append(l.queue, Frame{Type: TypeError, Payload: []byte(Inert(why.Error(), maxText))})
	l.flush = true
	l.wake.Signal()
	l.mu.Unlock()
	timer := time.AfterFunc(lastWord, func() { l.end(why) })
	<-l.over
	timer.Stop()
	l.mu.Lock()
	if errors.Is(l.err, ErrEnded) {
		l.err = why
	}
	l.mu.Unlock()
}

// write is the only writer of the connection. Each turn takes every waiting message and at most one frame of one stream.
func (l *Link) write() {
	var buf []byte
	for {
		var room, all bool
		var turn int
		if buf, turn, room, all = l.next(buf[:0]); buf == nil {
			l.end(ErrEnded)
			return
		}
		if _, err := l.conn.Write(buf); err != nil {
			l.end(err)
			return
		}
		if cap(buf) > 2*MaxPayload {
			buf = nil // a long Start has passed
		}
		if room && l.on.Room != nil {
			l.on.Room(Stream(turn))
		}
		if all {
			l.mu.Lock()
			l.delivered = true
			l.mu.Unlock()
			l.drainedOnce.Do(func() { close(l.drained) })
		}
	}
}

// next waits for something to write and returns it; nil when the link is over. turn is the stream whose data it took,
// room whether it took some, all whether with it every stream of ours has ended.
func (l *Link) next(buf []byte) (_ []byte, turn int, room, all bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		if l.err != nil {
			return nil, 0, false, false
		}
		buf = l.messages(buf)
		before := len(buf)
		for range streams {
			l.turn = (l.turn + 1) % streams
			if s := l.out[l.turn]; s != nil && !l.flush {
				buf, room = s.next(buf)
			}
			if len(buf) > before {
				break
			}
		}
		if len(buf) > 0 {
			return buf, l.turn, room, l.ended()
		}
		if l.flush {
			return nil, 0, false, false
		}
		l.wake.Wait()
	}
}

// messages appends everything but data; l.mu is held.
func (l *Link) messages(buf []byte) []byte {
	buf = append(buf, l.queue...)
	clear(l.queue)
	if l.queue = l.queue[:0]; cap(l.queue) > maxQueue {
		l.queue = nil
	}
	if l.size != nil {
		p := binary.BigEndian.AppendUint16(nil, l.size[0])
		buf = Append(buf, Frame{Type: TypeResize, Payload: binary.BigEndian.AppendUint16(p, l.size[1])})
		l.size = nil
	}
	for n := 1; l.signals != 0; n++ {
		if bit := uint64(1) << (n - 1); l.signals&bit != 0 {
			l.signals &^= bit
			buf = Append(buf, Frame{Type: TypeSignal, Payload: []byte{byte(n)}})
		}
	}
	if l.pong != nil {
		buf = Append(buf, Frame{Type: TypePong, Payload: l.pong[:]})
		l.pong = nil
	}
	for id, n := range l.credits {
		if n > 0 {
			buf = Append(buf, Frame{Type: TypeCredit, Stream: Stream(id), Payload: binary.BigEndian.AppendUint32(nil, n)})
			l.credits[id] = 0
		}
	}
	return buf
}

func (l *Link) ended() bool {
	for _, s := range l.out {
		if s != nil && !s.sent {
			return false
		}
	}
	return true
}

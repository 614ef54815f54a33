package frame

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
)

// SendStart sends what to run, as the owner's first message.
func (l *Link) SendStart(s Start) error {
	p, err := marshalStart(s)
	if err != nil {
		return err
	}
	var wire []byte
	for len(p) > 0 {
		n := min(len(p), MaxPayload)
		f := Frame{Type: TypeStart, Payload: p[:n]}
		if n < len(p) {
			f.Stream = 1
		}
		wire = Append(wire, f)
		p = p[n:]
	}
	return l.enqueue(wire, len(wire))
}

// SendStarted says that the command runs.
func (l *Link) SendStarted(pid int) error {
	return l.enqueue(Append(nil, Frame{Type: TypeStarted, Payload: binary.BigEndian.AppendUint32(nil, uint32(pid))}), maxQueue)
}

// SendExit says how the command ended. It overtakes output that still waits for credit.
func (l *Link) SendExit(e Exit) error {
	e.Error = Inert(e.Error, maxText/2) // JSON may lengthen it
	return l.message(TypeExit, e, maxQueue)
}

// SendQuery asks who owns a socket.
func (l *Link) SendQuery(q Query) error { return l.message(TypeQuery, q, 0) }

// SendOwner answers a query.
func (l *Link) SendOwner(o Owner) error {
	o.Name = Inert(o.Name, maxName)
	return l.message(TypeOwner, o, 0)
}

// SendSpawn has the runner connect once more and introduce itself with the token, 1 to 255 bytes, for a further command: on that connection NewOwner
// speaks to it as on the first, but sends neither Hold, Query nor Spawn. The caller overwrites the token.
func (l *Link) SendSpawn(token []byte) error {
	if len(token) == 0 || len(token) > maxToken {
		return fmt.Errorf("token of %d bytes, want 1 to %d", len(token), maxToken)
	}
	wire := Append(make([]byte, 0, headerLen+len(token)), Frame{Type: TypeSpawn, Payload: token})
	defer clear(wire)
	return l.enqueue(wire, 0)
}

// SendSignal has a signal delivered to the command. Like signals themselves, two of the same number may arrive as one.
func (l *Link) SendSignal(n int) error {
	if n < 1 || n > maxSignal {
		return fmt.Errorf("no signal %d", n)
	}
	return l.change(func() { l.signals |= 1 << (n - 1) })
}

// SendResize tells the terminal's size. Only the last one counts.
func (l *Link) SendResize(rows, cols uint16) error {
	return l.change(func() { l.size = &[2]uint16{rows, cols} })
}

// Ping waits until the peer has answered a ping, ctx is done, or the link has ended. One at a time; another is ErrBusy.
func (l *Link) Ping(ctx context.Context) error {
	answered := make(chan struct{})
	l.mu.Lock()
	if l.ping != nil {
		l.mu.Unlock()
		return ErrBusy
	}
	l.ping = answered
	l.pings++
	payload := binary.BigEndian.AppendUint64(nil, l.pings)
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.ping = nil
	}()
	if err := l.enqueue(Append(nil, Frame{Type: TypePing, Payload: payload}), 0); err != nil {
		return err
	}
	select {
	case <-answered:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-l.over:
		return l.Err()
	}
}

func (l *Link) message(t Type, v any, extra int) error {
	p, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if len(p) > int(shapes[t].max) {
		return fmt.Errorf("%s message of %d bytes", t, len(p))
	}
	return l.enqueue(Append(nil, Frame{Type: t, Payload: p}), extra)
}

// enqueue adds a message unless the peer has left more than maxQueue and extra unread.
func (l *Link) enqueue(wire []byte, extra int) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return l.err
	}
	if len(l.queue)+len(wire) > maxQueue+extra {
		return ErrBusy
	}
	l.queue = append(l.queue, wire...)
	l.wake.Signal()
	return nil
}

func (l *Link) change(set func()) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return l.err
	}
	set()
	l.wake.Signal()
	return nil
}

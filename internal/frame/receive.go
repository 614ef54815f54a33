package frame

import (
	"bytes"
	"encoding/binary"
)

// read takes frames until the connection ends or one is not allowed here and now.
func (l *Link) read() error {
	r := NewReader(l.conn)
	for {
		f, err := r.Next()
		if err != nil {
			return err
		}
		if err := l.dispatch(f); err != nil {
			return err
		}
	}
}

// dispatch judges one frame: the order of the conversation first, then its meaning.
func (l *Link) dispatch(f Frame) error {
	owner := l.out[Stdin] != nil
	opening := TypeStart
	if owner {
		opening = TypeHello
	}
	if (f.Type == opening) == l.greeted && f.Type != TypePing && f.Type != TypePong {
		return violation("%s frame out of order", f.Type)
	}
	if owner && !l.started && (f.Type == TypeData || f.Type == TypeClose) {
		return violation("%s frame before the command started", f.Type)
	}
	switch f.Type {
	case TypeData, TypeClose, TypeCredit:
		return l.stream(f)
	case TypePing:
		return l.change(func() { l.pong = (*[8]byte)(append([]byte(nil), f.Payload...)) })
	case TypePong:
		return l.ponged(binary.BigEndian.Uint64(f.Payload))
	case TypeHello, TypeStarted, TypeOwner, TypeExit, TypeError:
		if !owner {
			return violation("%s frame to a runner", f.Type)
		}
		return l.fromRunner(f)
	default:
		if owner {
			return violation("%s frame to an owner", f.Type)
		}
		return l.fromOwner(f)
	}
}

// fromRunner handles what only an owner receives.
func (l *Link) fromRunner(f Frame) error {
	switch f.Type {
	case TypeHello:
		h, err := parseHello(f.Payload)
		if err != nil {
			return err
		}
		l.greeted = true
		return call(l.on.Hello, h)
	case TypeStarted:
		if l.started {
			return violation("the command started twice")
		}
		l.started = true
		return call(l.on.Started, int(binary.BigEndian.Uint32(f.Payload)&0x7fffffff))
	case TypeOwner:
		o, err := parseOwner(f.Payload)
		if err != nil {
			return err
		}
		return call(l.on.Owner, o)
	case TypeExit:
		e, err := parseExit(f.Payload)
		if err != nil {
			return err
		}
		if l.finished {
			return violation("the command ended twice")
		}
		l.started, l.finished = true, true
		return call(l.on.Exit, e)
	default:
		return call(l.on.Error, Inert(string(f.Payload), maxText))
	}
}

// fromOwner handles what only a runner receives.
func (l *Link) fromOwner(f Frame) error {
	switch f.Type {
	case TypeStart:
		return l.piece(f)
	case TypeSignal:
		n := int(f.Payload[0])
		if n < 1 || n > maxSignal {
			return violation("signal %d", n)
		}
		return call(l.on.Signal, n)
	case TypeResize:
		if l.on.Resize == nil {
			return violation("unexpected resize frame")
		}
		return l.on.Resize(binary.BigEndian.Uint16(f.Payload), binary.BigEndian.Uint16(f.Payload[2:]))
	case TypeSpawn:
		if l.on.Spawn == nil {
			return violation("unexpected spawn frame")
		}
		return l.on.Spawn(bytes.Clone(f.Payload))
	default:
		var q Query
		if err := unmarshal(TypeQuery, f.Payload, &q); err != nil {
			return err
		}
		return call(l.on.Query, q)
	}
}

// call runs a handler; without one the message is not for this side.
func call[T any](handler func(T) error, v T) error {
	if handler == nil {
		return violation("unexpected message %T", v)
	}
	return handler(v)
}

// piece collects Start until its last piece.
func (l *Link) piece(f Frame) error {
	if len(l.start)+len(f.Payload) > maxStart {
		return violation("start longer than %d bytes", maxStart)
	}
	l.start = append(l.start, f.Payload...)
	if f.Stream == 1 {
		return nil
	}
	s, err := parseStart(l.start)
	l.start = nil
	if err != nil {
		return err
	}
	l.greeted = true
	return call(l.on.Start, s)
}

// stream handles the frames of the byte streams. A Close is the writer's end or the reader's refusal, by who writes that stream.
func (l *Link) stream(f Frame) error {
	in, out := l.in[f.Stream], l.out[f.Stream]
	l.mu.Lock()
	var err error
	var tell func(Stream)
	switch {
	case f.Type == TypeData && in != nil:
		err = in.push(f.Payload)
	case f.Type == TypeClose && in != nil:
		err, tell = in.end(), l.on.Ended
	case f.Type == TypeClose:
		if out.stopped {
			err = violation("%s stopped twice", f.Stream)
		}
		out.stopped, out.buf, tell = true, nil, l.on.Stopped
		out.room.Broadcast()
		l.wake.Signal()
	case f.Type == TypeCredit && out != nil:
		err, tell = out.grant(binary.BigEndian.Uint32(f.Payload)), l.on.Room
		l.wake.Signal()
	default:
		err = violation("%s frame for %s from the wrong side", f.Type, f.Stream)
	}
	l.mu.Unlock()
	if err == nil && tell != nil {
		tell(f.Stream)
	}
	return err
}

// ponged wakes who waits for this answer. An answer that came after its asker gave up is ignored.
func (l *Link) ponged(n uint64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if n == 0 || n > l.pings {
		return violation("pong without a ping")
	}
	if l.ping == nil || n != l.pings {
		return nil
	}
	select {
	case <-l.ping:
	default:
		close(l.ping)
	}
	return nil
}

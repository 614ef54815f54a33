package audit

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// lockWait is how long to wait for other processes. A lock is held for some tens of microseconds; a holder that was stopped
// (Ctrl-Z, a debugger) must not hang every other sandbox of the user, it must fail them closed.
const lockWait = 10 * time.Second

var (
	errLocked  = errors.New("another process has held its lock for too long")
	errRemoved = errors.New("its file was deleted while in use")
)

// lock takes the lock of the log, which the kernel frees when its holder dies.
func lock(fd, how int) error {
	pause := 20 * time.Microsecond
	for deadline := time.Now().Add(lockWait); ; {
		err := unix.Flock(fd, how|unix.LOCK_NB)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, unix.EINTR):
			continue
		case !errors.Is(err, unix.EWOULDBLOCK):
			return fmt.Errorf("lock audit log: %w", err)
		case time.Now().After(deadline):
			return errLocked
		}
		time.Sleep(pause)
		pause = min(2*pause, time.Millisecond)
	}
}

func unlock(fd int) {
	_ = unix.Flock(fd, unix.LOCK_UN) // fails only for a descriptor that is not one
}

// commit writes groups as one piece. Only the leader calls it.
func (l *Log) commit(batch []*group) error {
	if err := l.commitLocked(batch); err != nil {
		return unavailable(l.dir, err)
	}
	return nil
}

func (l *Log) commitLocked(batch []*group) error {
	if err := lock(l.fd, unix.LOCK_EX); err != nil {
		return err
	}
	defer unlock(l.fd)
	s, err := l.settle()
	if err != nil {
		return err
	}
	now, p, buf := time.Now(), s.place, l.buf[:0]
	for _, note := range s.notes {
		b, err := newBody(Event{Kind: LogRepaired, Principal: "system", Detail: note})
		if err != nil {
			return err
		}
		buf = p.appendRecord(buf, b, now)
	}
	for _, g := range batch {
		for _, b := range g.bodies {
			buf = p.appendRecord(buf, b, now)
		}
	}
	if cap(buf) <= 2*maxBatch {
		l.buf = buf
	}
	if _, err := l.file.Write(buf); err != nil {
		return errors.Join(fmt.Errorf("append to audit log: %w", err), l.undo(s))
	}
	if err := l.writeHead(head{Seq: p.seq, Hash: p.hash, Size: p.size}); err != nil {
		return errors.Join(err, l.undo(s))
	}
	return nil
}

// undo cuts the log back to where it was settled. What was cut off in settling is still owed a record: the head remembers it.
func (l *Log) undo(s settled) error {
	if err := l.file.Truncate(s.place.size); err != nil {
		return fmt.Errorf("cut off what was half written: %w", err)
	}
	if s.cut == 0 || !s.headRead {
		return nil
	}
	h := s.head
	h.Cut += s.cut
	return l.writeHead(h)
}

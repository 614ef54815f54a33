package credential

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/fault"
)

// A credential's file lives as long as the credential: it is changed in place, never replaced. A gateway that has given up its rights can open no file any more,
// and still sees through the descriptor that it holds when a credential is rotated, rewrapped or removed, and saves a refresh token that a server replaced.
//
// Two slots make changes in place safe. The next content goes to the slot that is not in use, reaches the disk, and counts because its number is
// higher; then the old slot is overwritten. Whenever the power fails, one slot is whole.
const (
	slotSize   = 64 << 10
	headLen    = 16 + 1 + 8 + 1 + 64 + 1 // number, length, SHA-256 of number and content; hexadecimal, separated by spaces, ended by a line feed
	maxContent = slotSize - headLen
)

// lockPatience is how long another process may hold a file: it does for a few milliseconds.
const lockPatience = 5 * time.Second

// errGone means that the credential was removed.
var errGone = fault.New(fault.NotFound, "the credential was removed")

// heads are the first lines of both slots. They change with every change of the content.
type heads [2][headLen]byte

// slots is an open file of two slots. It is safe for concurrent use.
type slots struct {
	mu   sync.Mutex // flock does not tell goroutines apart
	file *os.File
}

// peek reads the heads without a lock: a torn read is a difference too, and leads to a proper read.
func (s *slots) peek() (h heads, err error) {
	for i := range h {
		if _, err := s.file.ReadAt(h[i][:], int64(i)*slotSize); err != nil && !errors.Is(err, io.EOF) {
			return h, fmt.Errorf("read a credential: %w", err)
		}
	}
	return h, nil
}

// gone reports whether the file was removed under its descriptor.
func (s *slots) gone() bool {
	info, err := s.file.Stat()
	if err != nil {
		return true
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	return !ok || stat.Nlink == 0
}

// read returns the content and the heads that belong to it.
func (s *slots) read(ctx context.Context) (content []byte, h heads, err error) {
	err = s.locked(ctx, unix.LOCK_SH, func() error {
		c, err := s.current()
		if err != nil {
			return err
		}
		content = c.content
		h, err = s.peek()
		return err
	})
	return content, h, err
}

// update replaces the content by what f makes of it, while nobody else reads or writes.
func (s *slots) update(ctx context.Context, f func(content []byte) ([]byte, error)) error {
	return s.locked(ctx, unix.LOCK_EX, func() error {
		now, err := s.current()
		if err != nil {
			return err
		}
		next, err := f(now.content)
		if err != nil || bytes.Equal(next, now.content) {
			return err
		}
		slot, err := encodeSlot(now.number+1, next)
		if err != nil {
			return err
		}
		if _, err := s.file.WriteAt(slot, int64(1-now.slot)*slotSize); err != nil {
			return unwritable(err)
		}
		if err := s.file.Sync(); err != nil {
			return unwritable(err)
		}
		return s.blank(now.slot)
	})
}

// erase overwrites both slots: whoever holds the file open sees that the credential is gone.
func (s *slots) erase(ctx context.Context) error {
	return s.locked(ctx, unix.LOCK_EX, func() error { return errors.Join(s.blank(0), s.blank(1)) })
}

func (s *slots) blank(slot int) error {
	info, err := s.file.Stat()
	if err != nil {
		return unwritable(err)
	}
	from := int64(slot) * slotSize
	n := min(info.Size()-from, slotSize)
	if n <= 0 {
		return nil
	}
	if _, err := s.file.WriteAt(make([]byte, n), from); err != nil {
		return unwritable(err)
	}
	if err := s.file.Sync(); err != nil {
		return unwritable(err)
	}
	return nil
}

// slot is a whole slot.
type slot struct {
	slot    int
	number  uint64
	content []byte
}

// current returns the whole slot with the higher number. The caller holds the lock.
func (s *slots) current() (slot, error) {
	if s.gone() {
		return slot{}, errGone
	}
	best, blank := slot{}, 0
	for i := range 2 {
		data := make([]byte, slotSize)
		n, err := s.file.ReadAt(data, int64(i)*slotSize)
		if err != nil && !errors.Is(err, io.EOF) {
			return slot{}, fmt.Errorf("read a credential: %w", err)
		}
		number, content, ok := decodeSlot(data[:n])
		switch {
		case ok && number > best.number:
			best = slot{i, number, content}
		case !ok && len(bytes.Trim(data[:n], "\x00")) == 0:
			blank++
		}
	}
	switch {
	case best.number > 0:
		return best, nil
	case blank == 2:
		return slot{}, errGone
	}
	return slot{}, fault.New(fault.Conflict, "the credential's file is damaged").WithHint("bring it back from a copy, or remove the credential and add it again")
}

// locked runs f while the file is locked.
func (s *slots) locked(ctx context.Context, how int, f func() error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, lockPatience)
	defer cancel()
	fd := int(s.file.Fd())
	for {
		err := unix.Flock(fd, how|unix.LOCK_NB)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("lock a credential: %w", err)
		}
		select {
		case <-ctx.Done():
			return fault.New(fault.Unavailable, "another process holds the credential").Because(context.Cause(ctx))
		case <-time.After(2 * time.Millisecond):
		}
	}
	defer func() { _ = unix.Flock(fd, unix.LOCK_UN) }() // fails only for a closed file, which holds no lock
	return f()
}

func encodeSlot(number uint64, content []byte) ([]byte, error) {
	if len(content) > maxContent {
		return nil, fault.New(fault.TooMany, "the credential takes %d bytes, more than %d", len(content), maxContent)
	}
	head := fmt.Sprintf("%016x %08x ", number, len(content))
	sum := sha256.Sum256(append([]byte(head), content...))
	return append(append([]byte(head), hex.EncodeToString(sum[:])+"\n"...), content...), nil
}

// decodeSlot accepts exactly what encodeSlot makes, whatever follows it.
func decodeSlot(data []byte) (number uint64, content []byte, ok bool) {
	if len(data) < headLen {
		return 0, nil, false
	}
	number, err := strconv.ParseUint(string(data[:16]), 16, 64)
	size, err2 := strconv.ParseUint(string(data[17:25]), 16, 32)
	if err != nil || err2 != nil || number == 0 || int(size) > len(data)-headLen {
		return 0, nil, false
	}
	content = data[headLen : headLen+int(size)]
	want, err := encodeSlot(number, content)
	return number, content, err == nil && bytes.Equal(want, data[:len(want)])
}

func unwritable(err error) error {
	e := fault.New(fault.Unavailable, "the credential cannot be written").Because(err)
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return e.WithHint("free some space where the state directory lies")
	}
	return e
}

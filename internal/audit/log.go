package audit

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/fault"
)

// maxBatch is how many encoded bytes one locked write takes before waiting groups are left for the next one.
const maxBatch = 1 << 20

// Log appends to the log of one directory. It is safe for concurrent use, and any number of processes may have the same log open.
//
// After Open it touches only its two file descriptors, never a path, so it goes on working when the process has lost its rights to the
// directory (Landlock, another user, another root). A system call filter must leave it write, pread64, pwrite64, lseek, fstat, flock, ftruncate,
// fsync, fdatasync and close.
type Log struct {
	dir  string // for messages only
	file *os.File
	head *os.File
	fd   int // of file; valid until Close, which waits for the leader

	flusher flusher

	// These belong to the leader.
	buf   []byte
	known knownHead

	mu      sync.Mutex
	idle    sync.Cond // signalled when leading becomes false
	closed  bool
	leading bool     // one caller of Append is writing, for itself and for those in the queue
	queue   []*group // groups that wait for the next write, oldest first
}

// group is the events of one Append: written together or not at all.
type group struct {
	bodies []body
	size   int
	wake   chan wakeup // buffered, sent to once
}

// wakeup tells a waiting Append how its group fared, or that it is the leader now.
type wakeup struct {
	lead bool
	err  error
}

// Open opens the log of a directory, and creates both (modes 0700 and 0600) where absent. It refuses a directory in which others can write.
func Open(dir string) (*Log, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, unavailable(dir, err)
	}
	if err := checkDir(dir); err != nil {
		return nil, err
	}
	file, err := openFile(filepath.Join(dir, logName), os.O_RDWR|os.O_APPEND|os.O_CREATE)
	if err != nil {
		return nil, unavailable(dir, err)
	}
	heads, err := openFile(filepath.Join(dir, headName), os.O_RDWR|os.O_CREATE)
	if err != nil {
		return nil, errors.Join(unavailable(dir, err), file.Close())
	}
	l := &Log{dir: dir, file: file, head: heads, fd: int(file.Fd())}
	l.idle.L = &l.mu
	if err := l.begin(); err != nil {
		return nil, errors.Join(unavailable(dir, err), file.Close(), heads.Close())
	}
	return l, nil
}

func openFile(path string, flags int) (*os.File, error) {
	f, err := os.OpenFile(path, flags|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file", path)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func checkDir(dir string) error {
	info, err := os.Stat(dir)
	if err != nil {
		return unavailable(dir, err)
	}
	if info.Mode().Perm()&0o022 != 0 {
		return fault.New(fault.Denied, "others can write in the audit directory %s", dir).WithHint("type: chmod go-w %s", dir)
	}
	return nil
}

// begin writes the head of an empty log, so that later an absent head is a sign of damage.
func (l *Log) begin() error {
	if err := lock(l.fd, unix.LOCK_EX); err != nil {
		return err
	}
	defer unlock(l.fd)
	for _, f := range []*os.File{l.head, l.file} {
		if info, err := f.Stat(); err != nil || info.Size() > 0 {
			return err
		}
	}
	return l.writeHead(head{Hash: noHash})
}

// Append writes events to the log and returns when their bytes are written (not necessarily on the disk: see Sync). It fills in Seq, Prev and Hash, and Time
// where it is zero, and makes all texts inert with Clean. The events of one call lie side by side, and when Append returns an error none of them is in the log;
// then what they describe must not happen. Only the death of the process in the middle can leave the first of them without the others.
//
// When ctx ends while the events wait for their turn, they are withdrawn; once the write has begun its outcome is returned.
func (l *Log) Append(ctx context.Context, events ...Event) error {
	if len(events) == 0 {
		return nil
	}
	g := &group{bodies: make([]body, len(events)), wake: make(chan wakeup, 1)}
	for i, e := range events {
		b, err := newBody(e)
		if err != nil {
			return err
		}
		g.bodies[i] = b
		g.size += len(b.json) + linkTail + 64
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	lead, err := l.enqueue(g)
	if err != nil {
		return err
	}
	if !lead {
		w := l.wait(ctx, g)
		if !w.lead {
			return w.err
		}
	}
	return l.leadWith(g)
}

// enqueue makes the caller the leader, or puts its group into the queue.
func (l *Log) enqueue(g *group) (lead bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false, fault.New(fault.Unavailable, "the audit log is closed")
	}
	if !l.leading {
		l.leading = true
		return true, nil
	}
	l.queue = append(l.queue, g)
	return false, nil
}

func (l *Log) wait(ctx context.Context, g *group) wakeup {
	select {
	case w := <-g.wake:
		return w
	case <-ctx.Done():
	}
	l.mu.Lock()
	i := slices.Index(l.queue, g)
	if i >= 0 {
		l.queue = slices.Delete(l.queue, i, i+1)
	}
	l.mu.Unlock()
	if i >= 0 {
		return wakeup{err: ctx.Err()}
	}
	return <-g.wake
}

// leadWith writes g and what waits with it by one locked write, tells the others, and hands the lead on.
func (l *Log) leadWith(g *group) error {
	// Whoever can run now may have something to record too. One write for all of them costs hardly more than one for the first alone,
	// which makes the difference between a busy gateway that spends its time on the log and one that does not. With nobody there it is next to free.
	runtime.Gosched()
	batch := l.take(g)
	err := l.commit(batch)
	for _, other := range batch[1:] {
		other.wake <- wakeup{err: err}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.queue) > 0 {
		next := l.queue[0]
		l.queue = slices.Delete(l.queue, 0, 1)
		next.wake <- wakeup{lead: true}
		return err
	}
	l.leading = false
	l.idle.Broadcast()
	return err
}

func (l *Log) take(g *group) []*group {
	l.mu.Lock()
	defer l.mu.Unlock()
	batch, size, n := []*group{g}, g.size, 0
	for n < len(l.queue) && size+l.queue[n].size <= maxBatch {
		size += l.queue[n].size
		n++
	}
	batch = append(batch, l.queue[:n]...)
	l.queue = slices.Delete(l.queue, 0, n)
	return batch
}

// Close waits for appends under way and closes the files. Every later Append fails.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil
	}
	l.closed = true
	for l.leading {
		l.idle.Wait()
	}
	return errors.Join(l.file.Close(), l.head.Close())
}

// unavailable is the error of a log that cannot be written.
func unavailable(dir string, cause error) error {
	e := fault.New(fault.Unavailable, "the audit log in %s cannot be written", dir).Because(cause)
	switch {
	case errors.Is(cause, unix.ENOSPC):
		return e.WithHint("free some space on the file system of %s", dir)
	case errors.Is(cause, unix.EDQUOT):
		return e.WithHint("the disk quota is used up: free some space on the file system of %s", dir)
	case errors.Is(cause, os.ErrPermission), errors.Is(cause, unix.EROFS):
		return e.WithHint("set COFFERDAM_STATE to a directory that you can write")
	}
	return e
}

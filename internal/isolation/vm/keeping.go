package vm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/guest/boot"
	"github.com/cofferdam/cofferdam/internal/isolation/container"
	"github.com/cofferdam/cofferdam/internal/supervisor/call"
)

// The bounds of a machine's rest.
const (
	// restPatience is how long a machine may take to come to rest once its command has ended, and to go on from there: milliseconds, but for a host that does other work.
	restPatience = time.Minute
	// keepPatience is how long a machine at rest waits for its caller to say whether a snapshot is wanted. He knows when the command has ended, and that is before.
	keepPatience = 2 * time.Minute
	// statePatience is how long the machine's program may take to write the state of its devices.
	statePatience = time.Minute
)

// keeping is how a machine is kept as a snapshot. Of nil nothing is wanted.
type keeping struct {
	making, dir string
	saved       saved
	ram         *os.File

	once    sync.Once
	wanted  chan struct{} // closed when the caller wants it
	drop    sync.Once
	dropped chan struct{} // closed when he does not, or not any more

	mu     sync.Mutex
	rested bool // guarded by mu, with the port's deadline until then

	bytes atomic.Int64 // of a snapshot that is whole
	why   atomic.Pointer[string]
}

// newKeeping notes what belongs to a snapshot that may be wanted, and gives the disks a place there. The caller removes the directory of one that did not become whole.
func newKeeping(ctx context.Context, spec call.Create, h hardware, about boot.About, p parts, since time.Time) (*keeping, error) {
	if spec.Snapshot == nil {
		return nil, nil
	}
	k := &keeping{making: spec.Snapshot.Making, dir: spec.Snapshot.Dir, wanted: make(chan struct{}), dropped: make(chan struct{})}
	k.saved = saved{
		Version: snapshotVersion, Memory: h.memory, CPUs: h.cpus, Scratch: boot.Scratch{Bytes: spec.Limits.Disk, Files: scratchFiles(spec.Limits)},
		Since: since, Disks: len(p.disks), Sums: map[string]string{},
	}
	var err error
	if k.saved.Key, err = key(h, about); err != nil {
		return nil, err
	}
	for n, f := range p.disks {
		if err := place(ctx, f, filepath.Join(k.making, diskName(n))); err != nil {
			return nil, fmt.Errorf("keep disk %d for a snapshot: %w", n, err)
		}
	}
	fd, err := unix.FcntlInt(p.ram.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, fmt.Errorf("hold the machine's memory: %w", err)
	}
	k.ram = os.NewFile(uintptr(fd), "ram")
	return k, nil
}

// place gives an open file a name, or where that lies on another file system, a copy. It is one that nobody writes to any more.
func place(ctx context.Context, f *os.File, path string) error {
	err := unix.Linkat(unix.AT_FDCWD, itself(f), unix.AT_FDCWD, path, unix.AT_SYMLINK_FOLLOW)
	if err == nil || !errors.Is(err, unix.EXDEV) {
		return err
	}
	to, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	err = to.Truncate(diskCapacity)
	if err == nil {
		_, _, err = copyBlocks(ctx, to, f, diskCapacity)
	}
	return errors.Join(err, to.Close())
}

func (k *keeping) close() error {
	if k == nil {
		return nil
	}
	return k.ram.Close()
}

// giveUp says that the snapshot is not wanted, or not any more.
func (k *keeping) giveUp() {
	if k != nil {
		k.drop.Do(func() { close(k.dropped) })
	}
}

// Keep says whether the snapshot is wanted that the specification has a place for. What was wanted can be taken back until it is whole.
func (s *Sandbox) Keep(wanted bool) {
	k := s.keeping
	if k == nil {
		return
	}
	if wanted {
		k.once.Do(func() { close(k.wanted) })
	} else {
		k.giveUp()
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.rested {
		_ = s.port.SetReadDeadline(time.Now().Add(restPatience)) // its command has ended; a port that is closed has nothing to wait for
	}
}

// Kept says, after Done, what came of a snapshot that was wanted; nil: none was.
func (s *Sandbox) Kept() *call.Kept {
	k := s.keeping
	if k == nil || !closed(k.wanted) {
		return nil
	}
	if n := k.bytes.Load(); n > 0 {
		return &call.Kept{Bytes: n}
	}
	if why := k.why.Load(); why != nil {
		return &call.Kept{Error: *why}
	}
	if closed(k.dropped) {
		return &call.Kept{Error: gaveUp}
	}
	return &call.Kept{Error: "the machine ended before it was at rest"}
}

// gaveUp is why there is no snapshot that was wanted first.
const gaveUp = "it was given up"

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// rest waits until the machine is at rest, makes a snapshot if that is wanted, and lets the machine go on to its end. An error is the machine's end, not the snapshot's. What the
// machine says costs its own run only: it is heard once here, and what it sends besides waits in its port.
func (s *Sandbox) rest() error {
	k := s.keeping
	if k == nil {
		return nil
	}
	if err := s.host.Rested(); err != nil {
		return fmt.Errorf("the machine ended before it could send the folder's changes: %w", err)
	}
	k.mu.Lock()
	k.rested = true
	err := s.port.SetReadDeadline(time.Time{})
	k.mu.Unlock()
	if err != nil {
		return err
	}
	waited := time.NewTimer(keepPatience)
	defer waited.Stop()
	select {
	case <-k.wanted:
		if err := s.save(k); err != nil {
			text := err.Error()
			k.why.Store(&text)
		}
	case <-k.dropped:
	case <-s.Container.Done():
	case <-waited.C:
	}
	if err := s.port.SetDeadline(time.Now().Add(restPatience)); err != nil {
		return err
	}
	return s.host.GoOn()
}

// save stops the machine, writes the snapshot, and lets the machine go on. Its program is not asked for anything while it does not answer the last question.
func (s *Sandbox) save(k *keeping) (err error) {
	writing, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() { // ends with this function
		select {
		case <-k.dropped:
		case <-s.Container.Done():
		case <-writing.Done():
		}
		cancel()
	}()
	asking, end := context.WithTimeout(context.Background(), statePatience)
	defer end()
	if err := s.monitor.pause(asking); err != nil {
		return err
	}
	defer func() {
		asking, end := context.WithTimeout(context.Background(), statePatience)
		defer end()
		err = errors.Join(err, s.monitor.resume(asking)) // a machine that does not go on says no more, which has its own bound
	}()
	state, err := memory("state", 0)
	if err != nil {
		return err
	}
	defer state.Close()
	if err := s.monitor.save(asking, state); err != nil {
		return err
	}
	err = k.write(writing, state)
	if closed(k.dropped) {
		return errors.New(gaveUp)
	}
	return err
}

// write makes the snapshot whole: every file is on the disk before it gets its name.
func (k *keeping) write(ctx context.Context, state *os.File) error {
	info, err := state.Stat()
	if err != nil {
		return err
	}
	k.saved.State = info.Size()
	if k.saved.State > container.MostState {
		return fmt.Errorf("the machine's state has %d bytes", k.saved.State)
	}
	var bytes int64
	for _, f := range []struct {
		name string
		from *os.File
		size int64
	}{{ramName, k.ram, k.saved.Memory}, {stateName, state, k.saved.State}} {
		n, err := k.file(ctx, f.name, f.from, f.size)
		if err != nil {
			return fmt.Errorf("write the machine's %s: %w", f.name, err)
		}
		bytes += n
	}
	for n := range k.saved.Disks {
		b, err := k.disk(ctx, n)
		if err != nil {
			return fmt.Errorf("keep disk %d: %w", n, err)
		}
		bytes += b
	}
	words, err := k.saved.encode()
	if err == nil {
		err = k.finish(words)
	}
	if err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	err = unix.Renameat2(unix.AT_FDCWD, k.making, unix.AT_FDCWD, k.dir, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EEXIST) {
		return fault.New(fault.Conflict, "there is a snapshot of that name by now").WithHint("cofferdam snapshot rm NAME")
	}
	if err != nil {
		return fmt.Errorf("name the snapshot: %w", err)
	}
	k.bytes.Store(max(bytes, 1))
	return nil
}

// file writes a copy of a file in memory and notes its digest. It returns how many bytes that takes.
func (k *keeping) file(ctx context.Context, name string, from *os.File, size int64) (int64, error) {
	to, err := os.OpenFile(filepath.Join(k.making, name), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return 0, err
	}
	sum, n, err := copyBlocks(ctx, to, from, size)
	if err == nil {
		err = errors.Join(to.Truncate(size), to.Sync())
	}
	k.saved.Sums[name] = sum
	return n, errors.Join(err, to.Close())
}

// disk notes the digest of a disk that has its place. One that is an image's too takes nothing more.
func (k *keeping) disk(ctx context.Context, n int) (int64, error) {
	f, err := openPlain(filepath.Join(k.making, diskName(n)))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var stat unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &stat); err != nil {
		return 0, err
	}
	sum, bytes, err := copyBlocks(ctx, nil, f, diskCapacity)
	k.saved.Sums[diskName(n)] = sum
	if stat.Nlink > 1 {
		return 0, err
	}
	return bytes, errors.Join(err, f.Chmod(0o600), f.Sync())
}

// finish writes machine.json and has the directory itself on the disk.
func (k *keeping) finish(words []byte) error {
	f, err := os.OpenFile(filepath.Join(k.making, machineName), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(words)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	dir, err := os.Open(k.making)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

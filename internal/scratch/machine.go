package scratch

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/receipt"
)

// ForMachine makes a file without a name, of size bytes, in the directory dir: the disk to which a virtual machine moves what of its scratch does not fit into its memory,
// encrypted in the machine under a key that was drawn there and is nowhere else. Who has the file has ciphertext. It takes no privilege.
func ForMachine(dir string, size int64) (*Scratch, error) {
	f, err := hidden(dir, size)
	switch {
	case errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EISDIR):
		return nil, fault.New(fault.Unsupported, "no file without a name can be made in %s", dir).
			WithHint("have the state directory on a file system that knows O_TMPFILE (ext4, xfs, btrfs), or use --scratch memory").Because(err)
	case errors.Is(err, os.ErrNotExist):
		return nil, fault.New(fault.Unavailable, "there is no directory for encrypted scratch").WithHint("use --scratch memory").Because(err)
	case err != nil:
		return nil, explain(err)
	}
	return &Scratch{file: f}, nil
}

// Disk opens the machine's disk once more. The caller hands it on to the machine's program and closes it. It may be called again: nothing was written by a machine
// that did not start.
func (s *Scratch) Disk() (*os.File, error) {
	if s.file == nil {
		return nil, errors.New("this scratch is no disk of a machine")
	}
	f, err := os.OpenFile("/proc/self/fd/"+strconv.Itoa(int(s.file.Fd())), os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("open the machine's scratch: %w", err)
	}
	return f, nil
}

// eraseFile destroys a machine's disk, once the machine is gone and its memory with that.
func (s *Scratch) eraseFile(deadline time.Time) ([]receipt.Item, error) {
	err := awaitAlone(s.file, deadline)
	if err == nil {
		err = s.file.Truncate(0)
	}
	err = errors.Join(err, s.file.Close()) // the last hold of the file
	return []receipt.Item{
		receipt.Unobserved("scratch key", "drawn in the machine and never outside of its memory, with which the kernel freed it; nothing tells when, and freed memory is not wiped"),
		receipt.Looked("scratch disk", "the kernel granted a write lease on the file, which it does only while nobody else has it open; it had no name, was emptied, and was freed with the last hold", err),
		MemoryItem(),
	}, err
}

// awaitAlone waits until nobody but the caller has a file open (fcntl(2), F_SETLEASE).
func awaitAlone(f *os.File, deadline time.Time) error {
	for {
		_, err := unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_WRLCK)
		if err == nil {
			_, err = unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_UNLCK)
			return err
		}
		if !errors.Is(err, unix.EAGAIN) {
			return fmt.Errorf("ask who has the file open: %w", err)
		}
		if !wait(deadline) {
			return errors.New("somebody still has the file open")
		}
	}
}

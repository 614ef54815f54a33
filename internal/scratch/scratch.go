// Package scratch (SANDBOX) makes the one file system that everything written in a sandbox lands on, and destroys it.
//
// It is memory that is never swapped, or a disk encrypted with a key that only the kernel has and that is wiped at the end; for a virtual machine, the disk that the
// machine encrypts itself. Each is bounded exactly and has no path on the host; it lives as long as somebody holds it, so that a supervisor which is killed leaves
// nothing of it behind.
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

// The kinds of scratch, by the names that policy has for them.
const (
	Memory    = "memory"
	Encrypted = "encrypted"
)

// Scratch is one sandbox's. It is for one goroutine at a time.
type Scratch struct {
	tree *os.File // the detached mount; nil once it was handed out
	disk *disk    // nil for memory
	file *os.File // a virtual machine's disk; nil for others
}

// InMemory makes scratch in memory of at most size bytes and files files, which the kernel does not swap. The caller is root: only the host's own may forbid
// the kernel to swap (mm/shmem.c, shmem_parse_one, "noswap"; Linux 6.4).
func InMemory(size, files int64) (*Scratch, error) {
	tree, err := mount("tmpfs", []option{
		{"mode", "0755"}, {"size", strconv.FormatInt(size, 10)}, {"nr_inodes", strconv.FormatInt(files, 10)}, {"noswap", ""},
	})
	if err != nil {
		return nil, fault.New(fault.Unsupported, "cannot make scratch in memory").WithHint("cofferdam doctor says what this host lacks").Because(err)
	}
	return &Scratch{tree: tree}, nil
}

// Mount hands out the mount, with its ids mapped through a user namespace if userns >= 0. It can be called once; the caller closes what it gets.
func (s *Scratch) Mount(userns int) (*os.File, error) {
	tree := s.tree
	if tree == nil {
		return nil, errors.New("scratch was handed out before")
	}
	if userns >= 0 {
		attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(userns)}
		if err := unix.MountSetattr(int(tree.Fd()), "", unix.AT_EMPTY_PATH, &attr); err != nil {
			return nil, fmt.Errorf("map the ids of scratch: %w", err)
		}
	}
	s.tree = nil
	return tree, nil
}

// Erase destroys it, once no process of the sandbox is left and the caller has closed what it had open there, and says what became of each part.
// It waits at most patience for the kernel to let go. The error is nil if everything that can be looked for is gone.
func (s *Scratch) Erase(patience time.Duration) ([]receipt.Item, error) {
	if s.tree != nil {
		_ = s.tree.Close() // it was never handed out, or its last use failed
		s.tree = nil
	}
	if s.file != nil {
		return s.eraseFile(time.Now().Add(patience))
	}
	if s.disk == nil {
		return []receipt.Item{MemoryItem()}, nil
	}
	return s.disk.erase(time.Now().Add(patience))
}

// MemoryItem is what can be said about scratch in memory: the kernel frees it with the last mount and the last open file, and does not tell when.
func MemoryItem() receipt.Item {
	return receipt.Unobserved("scratch memory", "freed by the kernel with the last mount and the last open file; nothing tells when, and freed memory is not wiped")
}

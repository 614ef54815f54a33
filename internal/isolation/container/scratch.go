package container

import (
	"bytes"
	"errors"
	"os"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/rootfs"
	"github.com/cofferdam/cofferdam/internal/scratch"
	"github.com/cofferdam/cofferdam/internal/supervisor/call"
)

// withScratch adds the mount of scratch that was made for the child, its ids mapped like those of other trees, as the last of its trees.
func (p plan) withScratch(trees []*os.File, pid int, o Options) ([]*os.File, error) {
	if o.Scratch == nil {
		return trees, nil
	}
	userns, err := os.Open(procPath(pid, "ns/user"))
	if err != nil {
		return trees, err
	}
	defer userns.Close()
	scratch, err := o.Scratch.Mount(int(userns.Fd()))
	if err != nil {
		return trees, err
	}
	return append(trees, scratch), nil
}

// takeScratch takes it out of the trees again, in the child; nil if the child is to make its own.
func (p plan) takeScratch(trees []*os.File) (scratch *os.File, rest []*os.File, err error) {
	if !p.Scratch {
		return nil, trees, nil
	}
	if len(trees) == 0 {
		return nil, nil, errors.New("scratch is missing")
	}
	last := len(trees) - 1
	return trees[last], trees[:last], nil
}

// tellScratch hands the parent a hold on scratch by which it sees how full it is, and nothing else.
func tellScratch(conn *call.Conn, view *rootfs.View) error {
	err := conn.Send(report{Scratch: true}, view.Scratch)
	_ = view.Scratch.Close() // the parent has its own
	return err
}

// Full says of what scratch has none left, or almost: bytes, files, both or neither; then it lets go of it. It is asked for once, when the sandbox has ended; what was
// removed before is not seen.
func (c *Container) Full() (bytes, files bool) {
	if c.Scratch == nil {
		return false, false
	}
	defer c.Scratch.Close()
	var s unix.Statfs_t
	if unix.Fstatfs(int(c.Scratch.Fd()), &s) != nil {
		return false, false
	}
	const part = 256 // what a program could not write may be more than what is left
	return s.Bavail <= s.Blocks/part, s.Files > 0 && s.Ffree <= s.Files/part
}

// swapList is the kernel's list of what it may write to that is in memory.
const swapList = "/proc/swaps"

// Swaps says whether this machine may write memory to a disk.
func Swaps() bool { return swaps(swapList) }

// swaps says whether a list has any entry.
func swaps(list string) bool {
	data, err := os.ReadFile(list)
	if err != nil {
		return !errors.Is(err, os.ErrNotExist) // a kernel without swap has no such file; in doubt there is some
	}
	return bytes.Count(data, []byte("\n")) > 1 // the first line is a heading
}

// memoryScratch bounds what a kernel of the sandbox's own keeps of scratch in its memory, in bytes.
func (p plan) memoryScratch() int64 {
	if most := p.Spec.Limits.Memory; p.Spec.Scratch == scratch.Encrypted && most > 0 {
		return min(p.Disk, most-most/8) // the same part that scratch in memory may be of it
	}
	return p.Disk
}

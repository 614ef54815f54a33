package control

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/policy"
	"github.com/cofferdam/cofferdam/internal/store"
)

// The bound of one workspace is soft: it is looked at now and then, and a file that has no name any more is not found. The floor is what holds all the same: it
// asks the file system itself how much is left, and ends sandboxes until that is enough for the store, the audit log and what else this machine does.

const (
	// floorPause is how often the room that is left is looked at. It is the time in which one sandbox that was ended gives back what it had.
	floorPause = 5 * time.Second
	// floorPart is which part of a file system must be left, within floorLeast and floorMost: what a busy store and log write in some minutes.
	floorPart  = 20
	floorLeast = uint64(128 * policy.MiB)
	floorMost  = uint64(2 * policy.GiB)
)

// floorOf is how much of a file system must be left.
func floorOf(total uint64) uint64 { return min(max(floorLeast, total/floorPart), floorMost) }

// scarce says whether less is left of a file system than must be.
func scarce(free, total uint64) bool { return free < floorOf(total) }

// disk is what is known of the state directory's file system. It is safe for concurrent use.
type disk struct {
	// space tells how much a file system has in all, and how much of that this user can still have.
	space func(dir string) (free, total uint64, err error)

	mu sync.Mutex
	// sizes are those of workspaces when they were measured last, by sandbox.
	sizes map[string]int64
}

func newDisk() *disk { return &disk{space: spaceOf, sizes: map[string]int64{}} }

func spaceOf(dir string) (free, total uint64, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, 0, fmt.Errorf("look at the file system of %s: %w", dir, err)
	}
	unit := uint64(cmp.Or(st.Frsize, st.Bsize))
	return st.Bavail * unit, st.Blocks * unit, nil
}

func (d *disk) note(sandbox string, size int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.sizes[sandbox] = size
}

func (d *disk) forget(sandbox string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.sizes, sandbox)
}

// most returns the sandbox that uses most, of those that use the same the newest.
func (d *disk) most(list []store.Object[SandboxData]) store.Object[SandboxData] {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.MaxFunc(list, func(a, b store.Object[SandboxData]) int {
		return cmp.Or(cmp.Compare(d.sizes[a.ID], d.sizes[b.ID]), a.Created.Compare(b.Created))
	})
}

// enoughLeft refuses what needs room while there is too little.
func (s *Service) enoughLeft() error {
	free, total, err := s.house.disk.space(s.State)
	if err != nil {
		return err
	}
	if scarce(free, total) {
		return fault.New(fault.Unavailable, "the server's disk is nearly full: no sandbox is made until there is room again").
			WithHint("stop sandboxes and delete workspaces that nobody needs, or have an operator make room where the server keeps its state")
	}
	return nil
}

// keepFloor ends the sandbox that uses most while too little is left, one at a time: what it had is free before the next is looked for.
func (s *Service) keepFloor(ctx context.Context) error {
	free, total, err := s.house.disk.space(s.State)
	if err != nil || !scarce(free, total) {
		return err
	}
	var list []store.Object[SandboxData]
	err = every(ctx, s.DB, sandboxes(), store.AnyTenant, store.Filter{States: []string{string(api.Running)}}, func(o store.Object[SandboxData]) error {
		list = append(list, o)
		return nil
	})
	if err != nil {
		return err
	}
	s.Log.Error("the disk is nearly full: no sandbox is made, and those that use most are stopped", "free", free, "floor", floorOf(total), "running", len(list))
	if len(list) == 0 {
		return nil
	}
	return s.stop(ctx, roomOf(s.house.disk.most(list)), "the server's disk is nearly full, and of the sandboxes that run this one uses most of it")
}

package container

import (
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/rootfs"
)

// watch notices when the machine is not any more as it was looked at.
type watch struct {
	around
	own    bool     // the root is this machine's
	stamp  string   // of the places on which depends what is hidden
	mounts *os.File // the kernel's table
}

// newWatch looks at the machine.
func newWatch(rootFS string) (*watch, error) {
	w := &watch{own: rootFS == ""}
	var err error
	if w.mounts, err = os.Open("/proc/self/mountinfo"); err != nil {
		return nil, err
	}
	if _, err := w.moved(); err != nil { // from here on
		w.close()
		return nil, err
	}
	if w.around, err = lookAround(rootFS); err == nil && w.own {
		w.stamp, err = rootfs.Stamp(w.hidden)
	}
	if err == nil && w.own { // between the first look and the stamp something may have changed
		var again around
		if again, err = lookAround(rootFS); err == nil && !slices.Equal(again.hidden, w.hidden) {
			err = fault.New(fault.Unavailable, "this machine's system directories are being changed")
		}
	}
	if err != nil {
		w.close()
		return nil, err
	}
	return w, nil
}

// moved says whether something was mounted or unmounted since the last time it was asked (proc_pid_mountinfo(5), "poll").
func (w *watch) moved() (bool, error) {
	poll := []unix.PollFd{{Fd: int32(w.mounts.Fd()), Events: unix.POLLPRI}}
	if _, err := unix.Poll(poll, 0); err != nil {
		return false, fmt.Errorf("watch the mount table: %w", err)
	}
	return poll[0].Revents&(unix.POLLPRI|unix.POLLERR) != 0, nil
}

// unchanged returns an error if a plan that is made now would see another machine.
func (w *watch) unchanged() error {
	moved, err := w.moved()
	if err != nil {
		return err
	}
	if moved {
		now, err := readMounts()
		if err != nil {
			return err
		}
		if !slices.Equal(now, w.around.mounts) {
			return fault.New(fault.Conflict, "prepared before something was mounted or unmounted")
		}
	}
	if w.own && !rootfs.Same(w.stamp, w.hidden) {
		return fault.New(fault.Conflict, "prepared before this machine's system directories were changed")
	}
	return nil
}

func (w *watch) close() {
	if w != nil && w.mounts != nil {
		_ = w.mounts.Close() // only read
	}
}

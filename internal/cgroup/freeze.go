package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Freezing is what a group's processes do. The zero value means that nobody knows: there is no group, or none that can be frozen.
type Freezing uint8

// What a group's processes do.
const (
	Unknown Freezing = iota
	Running          // they run
	Pausing          // they were told to stop, and some have not yet
	Paused           // none of them runs
)

// String returns the state's name.
func (f Freezing) String() string {
	return [...]string{"unknown", "running", "pausing", "paused"}[min(f, Paused)]
}

// The kernel's files and words: Documentation/admin-guide/cgroup-v1/freezer-subsystem.rst, and "cgroup.freeze" in cgroup-v2.rst.
const (
	freezerFile = "freezer.state" // version 1
	freezeFile  = "cgroup.freeze" // version 2
	frozen      = "FROZEN"
	thawed      = "THAWED"
)

// ErrUnfreezable says that a sandbox has no group that can be frozen.
var ErrUnfreezable = errors.New("no control group that can be frozen")

// Freeze stops every process of a group whose directories are given, and returns when none runs any more. If that is not so when ctx ends, they are let go
// on: a process that is in the kernel's hands, such as those of a file server that does not answer, cannot be stopped.
func Freeze(ctx context.Context, dirs []string) error { return turn(ctx, dirs, Paused) }

// Thaw lets the processes of a group go on, and returns when they do. If that is not so when ctx ends, a group around this one is frozen.
func Thaw(ctx context.Context, dirs []string) error { return turn(ctx, dirs, Running) }

// turn writes what is wanted until the kernel says that it is so. In version 1 a word said once may be lost on a process that is just being born.
func turn(ctx context.Context, dirs []string, want Freezing) error {
	dirs = freezable(dirs)
	if len(dirs) == 0 {
		return ErrUnfreezable
	}
	for wait := 200 * time.Microsecond; ; wait *= 2 {
		if err := write(dirs, want); err != nil {
			return err
		}
		now := State(dirs)
		if now == want {
			return nil
		}
		if now == Unknown {
			return fmt.Errorf("control group %s: %w", dirs[0], fs.ErrNotExist)
		}
		select {
		case <-time.After(min(wait, 20*time.Millisecond)):
		case <-ctx.Done():
			if want == Paused {
				return errors.Join(context.Cause(ctx), write(dirs, Running))
			}
			return context.Cause(ctx)
		}
	}
}

// write tells the kernel once.
func write(dirs []string, want Freezing) error {
	for _, dir := range dirs {
		name, word := freezeFile, map[Freezing]string{Paused: "1", Running: "0"}[want]
		if isVersion1(dir) {
			name, word = freezerFile, map[Freezing]string{Paused: frozen, Running: thawed}[want]
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(word), 0); err != nil {
			return fmt.Errorf("control group: %w", err)
		}
	}
	return nil
}

// State says what the processes of a group do, as the kernel has it at this moment.
func State(dirs []string) Freezing {
	state := Unknown
	for _, dir := range freezable(dirs) {
		state = max(state, stateOf(dir))
	}
	return state
}

func stateOf(dir string) Freezing {
	if isVersion1(dir) {
		switch strings.TrimSpace(string(readAll(filepath.Join(dir, freezerFile)))) {
		case thawed:
			return Running
		case frozen:
			return Paused
		case "":
			return Unknown // it is gone
		}
		return Pausing
	}
	for line := range strings.Lines(string(readAll(filepath.Join(dir, "cgroup.events")))) {
		switch strings.TrimSpace(line) {
		case "frozen 1":
			return Paused
		case "frozen 0":
			if strings.TrimSpace(string(readAll(filepath.Join(dir, freezeFile)))) == "1" {
				return Pausing
			}
			return Running
		}
	}
	return Unknown
}

// freezable are those of a group's directories through which it is frozen.
func freezable(dirs []string) []string {
	return slices.DeleteFunc(slices.Clone(dirs), func(dir string) bool {
		return !isVersion1(dir) && unix.Access(filepath.Join(dir, freezeFile), unix.F_OK) != nil
	})
}

func isVersion1(dir string) bool {
	return unix.Access(filepath.Join(dir, freezerFile), unix.F_OK) == nil
}

// Release has a group die that was killed by its process 1 while it is frozen, for which version 1 has to let it go on: all of it is killed before that, so that nothing
// of it runs again. It does nothing where nothing is frozen, in version 2, and for a group that is none.
func (g *Group) Release() {
	if g == nil {
		return
	}
	for _, dir := range g.dirs {
		if isVersion1(dir) && stateOf(dir) >= Pausing {
			kill(dir)
		}
	}
}

// Wake lets the processes go on, in either version: those that are not killed but asked to end.
func (g *Group) Wake() { _ = write(freezable(g.dirs), Running) } // the group may be gone already

// Await waits for the end of processes that were killed, and releases them whenever somebody has frozen them.
func (g *Group) Await(done <-chan struct{}) {
	for {
		g.Release()
		select {
		case <-done:
			return
		case <-time.After(20 * time.Millisecond):
		}
	}
}

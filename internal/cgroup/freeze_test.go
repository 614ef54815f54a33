package cgroup

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"
)

func TestFreezingNames(t *testing.T) {
	for state, want := range map[Freezing]string{Unknown: "unknown", Running: "running", Pausing: "pausing", Paused: "paused"} {
		if got := state.String(); got != want {
			t.Errorf("%d is %q, want %q", state, got, want)
		}
	}
}

// forEachFreezer runs a test with the freezer of each version that this machine has.
func forEachFreezer(t *testing.T, test func(t *testing.T, h Host)) {
	t.Helper()
	h, tried := Detect(), false
	places := map[string]parent{"version 1": h.parents["freezer"]}
	if h.freezer.unified {
		places["version 2"] = h.freezer
	}
	for name, place := range places {
		if place.dir == "" {
			continue
		}
		tried = true
		t.Run(name, func(t *testing.T) { test(t, Host{parents: h.parents, freezer: place}) })
	}
	if !tried {
		t.Skip("needs a delegated control group that can be frozen")
	}
}

// counting starts a process in a group that adds a byte to a file again and again, and returns a function that tells how many there are.
func counting(t *testing.T, g *Group) (count func() int64, cmd *exec.Cmd) {
	t.Helper()
	name := filepath.Join(t.TempDir(), "count")
	cmd = exec.Command("sh", "-c", `while :; do printf x >> "$0"; sleep 0.005; done`, name)
	if unified := g.Unified(); unified != "" {
		dir, err := os.Open(unified)
		if err != nil {
			t.Fatal(err)
		}
		defer dir.Close()
		cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	}
	startIn(t, g, cmd)
	t.Cleanup(func() { _ = cmd.Process.Kill() }) // it is gone, unless the test failed
	return func() int64 {
		info, err := os.Stat(name)
		if err != nil {
			return 0
		}
		return info.Size()
	}, cmd
}

// grows waits until a number is above another.
func grows(t *testing.T, count func() int64, from int64) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); count() <= from; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("nothing runs: still at %d", from)
		}
	}
}

func (g *Group) state() Freezing { return State(g.Dirs()) }

func TestFreeze(t *testing.T) {
	forEachFreezer(t, func(t *testing.T, h Host) {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		g, err := h.Create("cofferdam-test-freeze-"+strconv.Itoa(os.Getpid()), Limits{})
		if err != nil {
			t.Fatal(err)
		}
		count, cmd := counting(t, g)
		grows(t, count, 0)
		if s := g.state(); s != Running {
			t.Errorf("before: %v", s)
		}
		if err := Freeze(ctx, g.Dirs()); err != nil {
			t.Fatal(err)
		}
		at := count()
		time.Sleep(100 * time.Millisecond)
		if now := count(); now != at || g.state() != Paused {
			t.Errorf("frozen, it is %v and went on from %d to %d", g.state(), at, now)
		}
		if err := Thaw(ctx, g.Dirs()); err != nil {
			t.Fatal(err)
		}
		grows(t, count, at)
		if s := g.state(); s != Running {
			t.Errorf("afterwards: %v", s)
		}
		if err := Freeze(ctx, g.Dirs()); err != nil {
			t.Fatal(err)
		}
		// Killed while frozen, and frozen again by somebody else: it ends all the same.
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		done := make(chan struct{})
		go func() {
			_ = cmd.Wait() // it was killed
			close(done)
		}()
		g.Await(done)
		if err := g.Remove(5 * time.Second); err != nil {
			t.Error(err)
		}
		if s := g.state(); s != Unknown {
			t.Errorf("removed, it is %v", s)
		}
		if err := Freeze(ctx, g.Dirs()); !errors.Is(err, ErrUnfreezable) {
			t.Errorf("removed, it can be frozen: %v", err)
		}
	})
}

// TestReapFrozen removes a frozen group whose owner is gone, from all hierarchies, by its name alone. Nothing of it runs again before it dies.
func TestReapFrozen(t *testing.T) {
	forEachFreezer(t, func(t *testing.T, h Host) {
		name := "cofferdam-test-reap-frozen-" + strconv.Itoa(os.Getpid())
		g, err := h.Create(name, Limits{PIDs: 20})
		if err != nil {
			t.Skip(err)
		}
		count, cmd := counting(t, g)
		go func() { _ = cmd.Wait() }() // its end is what Reap is for
		grows(t, count, 0)
		if err := Freeze(t.Context(), g.Dirs()); err != nil {
			t.Fatal(err)
		}
		at := count()
		found := Find(name)
		if len(found) != len(g.Dirs()) {
			t.Errorf("found %q of %q", found, g.Dirs())
		}
		if err := Reap(found, 5*time.Second); err != nil {
			t.Error(err)
		}
		if now := count(); now != at {
			t.Errorf("it went on from %d to %d", at, now)
		}
	})
}

// TestStuck freezes a group of which the kernel says that it is not frozen yet: it is let go on in the end.
func TestStuck(t *testing.T) {
	dir := t.TempDir()
	freeze := filepath.Join(dir, freezeFile)
	if err := errors.Join(os.WriteFile(freeze, nil, 0o644), os.WriteFile(filepath.Join(dir, "cgroup.events"), []byte("populated 1\nfrozen 0\n"), 0o644)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	err := Freeze(ctx, []string{dir})
	data, _ := os.ReadFile(freeze)
	if !errors.Is(err, context.DeadlineExceeded) || string(data) != "0" {
		t.Errorf("%v, and %s says %q", err, freezeFile, data)
	}
}

func TestNoFreezer(t *testing.T) {
	g, err := Host{}.Create("x", Limits{})
	if err != nil || len(g.Dirs()) != 0 || (Host{}).Groups(Limits{}) {
		t.Errorf("a group without a place: %+v, %v", g, err)
	}
	if err := Freeze(t.Context(), g.Dirs()); !errors.Is(err, ErrUnfreezable) {
		t.Errorf("it can be frozen: %v", err)
	}
}

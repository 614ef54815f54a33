package cgroup

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"
)

// host returns the real host, or skips where no group can be made.
func host(t *testing.T, controllers ...string) Host {
	t.Helper()
	h := Detect()
	if missing := h.Missing(controllers); len(missing) > 0 {
		t.Skipf("needs delegated control groups; missing: %v", missing)
	}
	return h
}

func TestLimitsHold(t *testing.T) {
	h := host(t, "memory", "pids", "cpu")
	g, err := h.Create("cofferdam-test-"+strconv.Itoa(os.Getpid()), Limits{MilliCPUs: 500, Memory: 32 << 20, PIDs: 20})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := g.Remove(5 * time.Second); err != nil {
			t.Error(err)
		}
		for _, dir := range g.Dirs() {
			if _, err := os.Stat(dir); err == nil {
				t.Errorf("%s is still there", dir)
			}
		}
	}()
	cmd := exec.Command("sh", "-c", "x=$(head -c 200000000 /dev/zero | tr '\\0' x); echo ${#x}")
	startIn(t, g, cmd)
	err = cmd.Wait()
	if g.OutOfMemory() == 0 {
		t.Errorf("200 MB in a group of 32 MiB: ended with %v and no kill counted", err)
	}
}

func TestReapKills(t *testing.T) {
	h := host(t, "pids")
	g, err := h.Create("cofferdam-test-reap-"+strconv.Itoa(os.Getpid()), Limits{PIDs: 20})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sleep", "1000")
	startIn(t, g, cmd)
	go func() { _ = cmd.Wait() }() // its end is what Reap is for
	if err := Reap(g.Dirs(), 5*time.Second); err != nil {
		t.Fatal(err)
	}
}

// startIn starts a command inside a group.
func startIn(t *testing.T, g *Group, cmd *exec.Cmd) {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	leave, err := g.Enter()
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(cmd.Start(), leave()); err != nil {
		t.Fatal(err)
	}
}

func TestMissingIsRefused(t *testing.T) {
	if _, err := (Host{}).Create("x", Limits{Memory: 1}); err == nil || !strings.Contains(err.Error(), "memory") {
		t.Errorf("a host without control groups: %v, want an error that names memory", err)
	}
}

// TestUnified lays a version 2 tree out in ordinary files: which directory is chosen and what is written there.
func TestUnified(t *testing.T) {
	root := t.TempDir()
	slice := filepath.Join(root, "user.slice", "app.slice")
	if err := os.MkdirAll(filepath.Join(slice, "own.scope"), 0o755); err != nil {
		t.Fatal(err)
	}
	files := map[string]string{
		filepath.Join(slice, "cgroup.subtree_control"): "memory pids\n",
		filepath.Join(slice, "cgroup.procs"):           "",
		filepath.Join(root, "membership"):              "0::/user.slice/app.slice/own.scope\n",
		filepath.Join(root, "mountinfo"):               "30 20 0:26 / " + root + " rw,nosuid - cgroup2 cgroup2 rw\n",
	}
	for name, content := range files {
		if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	h := detect(filepath.Join(root, "membership"), filepath.Join(root, "mountinfo"))
	if missing := h.Missing([]string{"cpu", "memory", "pids"}); len(missing) != 1 || missing[0] != "cpu" {
		t.Errorf("missing %v, want only cpu", missing)
	}
	g, err := h.Create("box", Limits{Memory: 1 << 20, PIDs: 7})
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"memory.max": "1048576", "pids.max": "7"} {
		got, err := os.ReadFile(filepath.Join(slice, "box", name))
		if err != nil || string(got) != want {
			t.Errorf("%s: %q, %v, want %q", name, got, err, want)
		}
	}
	if len(g.Dirs()) != 1 {
		t.Errorf("dirs %v, want one", g.Dirs())
	}
}

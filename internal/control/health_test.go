package control

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/testenv"
)

// A service whose disk is full cannot record anything, and says so: to operators, and to load balancers.
func TestFullDisk(t *testing.T) {
	const inside = "COFFERDAM_TEST_FULL_DISK"
	if os.Getenv(inside) == "" {
		testenv.Need(t, "userns")
		// In a mount namespace of its own, which takes the disk with it when it ends.
		cmd := exec.CommandContext(t.Context(), "unshare", "--user", "--map-root-user", "--mount", os.Args[0], "-test.run=^TestFullDisk$", "-test.v")
		cmd.Env = append(os.Environ(), inside+"=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	s, ctx := newStage(t), t.Context()
	disk := t.TempDir()
	done(t, unix.Mount("tmpfs", disk, "tmpfs", 0, "size=16m"))
	defer func() { done(t, unix.Unmount(disk, unix.MNT_DETACH)) }()
	done(t, os.Mkdir(filepath.Join(disk, "audit"), 0o700))
	done(t, os.WriteFile(filepath.Join(disk, "audit", "log.jsonl"), nil, 0o600))
	s.State = disk
	operator := s.admin()
	operator.Operator = true
	check := func() bool {
		t.Helper()
		for _, c := range must[api.Health](t)(s.Health(ctx, operator)).Checks {
			if c.Name == "audit log" {
				return c.OK
			}
		}
		t.Fatal("no such check")
		return false
	}
	if !check() {
		t.Error("an empty disk cannot be written")
	}
	done(t, s.Ready(ctx))
	fill(t, filepath.Join(disk, "filler"))
	if err := tryWrite(filepath.Join(disk, "audit")); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("a write to a full disk: %v", err)
	}
	if check() {
		t.Error("a full disk can be written")
	}
	done(t, s.Ready(ctx)) // for a moment, what was found last holds
	s.ready.at = time.Time{}
	wants(t, s.Ready(ctx), fault.Unavailable)
	if left, err := filepath.Glob(filepath.Join(disk, "audit", ".probe-*")); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}

// fill writes until there is no more room.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	done(t, err)
	defer f.Close()
	for piece := make([]byte, 4096); ; {
		if _, err := f.Write(piece); err != nil {
			if !errors.Is(err, syscall.ENOSPC) {
				t.Fatal(err)
			}
			return
		}
	}
}

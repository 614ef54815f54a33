package main

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// startGVisorRow measures the same command at level gvisor, beside the bare runsc that is shipped with it, on the bundle that runc has. runsc is given no network, ours has its gateway.
func startGVisorRow(ctx context.Context, b *bench) ([]row, error) {
	runsc := filepath.Join(filepath.Dir(b.cofferdam), "runsc")
	if _, err := os.Stat(runsc); err != nil {
		b.skip("level gvisor", "no runsc beside cofferdam: make gvisor")
		return nil, nil
	}
	subjects := []subject{b.command("cofferdam run --isolation gvisor", b.cofferdam, "run", "-q", "--isolation", "gvisor", "--workspace", b.workspace(), "--", "/bin/true")}
	if _, err := exec.LookPath("runc"); err == nil && os.Getuid() == 0 { // it wrote the bundle's configuration
		// The bare runsc leaves a network namespace mounted in its state directory.
		defer func() { _ = unix.Unmount(filepath.Join(b.dir, "runsc", "null-netns"), unix.MNT_DETACH) }() // where it is not, nothing is left
		subjects = append(subjects, b.command("runsc run", runsc, "--root", filepath.Join(b.dir, "runsc"), "--network=none", "--ignore-cgroups", "--overlay2=none",
			"run", "--bundle", filepath.Join(b.dir, "bundle"), "bench"))
	}
	ours, others, err := b.settle(takeTurns(ctx, b.rounds(20), subjects))
	if err != nil {
		return nil, err
	}
	r := row{what: "start at level gvisor: `run -- /bin/true`, whole command", unit: "ms", ours: ours}
	for _, o := range others {
		r.others = append(r.others, against(o, atMost(1.1)))
	}
	return []row{r}, nil
}

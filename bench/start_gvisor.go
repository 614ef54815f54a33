package main

import (
	"context"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// startGVisorRow measures the same command at level gvisor, beside the bare runsc that is shipped with it. runsc is given no network, ours has its gateway.
func startGVisorRow(ctx context.Context, b *bench) ([]row, error) {
	if !b.haveGVisor() {
		return nil, nil
	}
	subjects := []subject{b.command("cofferdam run --isolation gvisor", b.cofferdam, "run", "-q", "--isolation", "gvisor", "--workspace", b.workspace(), "--", "/bin/true")}
	bare, undo := b.bareRunsc(b.command, "/bin/true")
	defer undo()
	ours, others, err := b.settle(takeTurns(ctx, b.rounds(20), append(subjects, bare...)))
	if err != nil {
		return nil, err
	}
	r := row{what: "start at level gvisor: `run -- /bin/true`, whole command", unit: "ms", ours: ours}
	for _, o := range others {
		r.others = append(r.others, against(o, atMost(1.1)))
	}
	return []row{r}, nil
}

// runsc is the one that is shipped with cofferdam.
func (b *bench) runsc() string { return filepath.Join(filepath.Dir(b.cofferdam), "runsc") }

// haveGVisor says whether there is runsc, and else what to do.
func (b *bench) haveGVisor() bool {
	if _, err := os.Stat(b.runsc()); err != nil {
		b.skip("level gvisor", "no runsc beside cofferdam: make gvisor")
		return false
	}
	return true
}

// bareRunsc is runsc with a program on the root directory that runc has too, made a subject by measured. undo removes what it leaves.
func (b *bench) bareRunsc(measured func(name string, argv ...string) subject, program ...string) (subjects []subject, undo func()) {
	if os.Getuid() != 0 || !b.have("runc", "runc") { // it writes the bundle's configuration
		return nil, func() {}
	}
	dir := filepath.Join(b.dir, "bundle")
	err := plant(filepath.Join(dir, "rootfs"), program[0])
	if err == nil {
		err = b.bundle(program)
	}
	if err != nil {
		b.skip("runsc", err.Error())
		return nil, func() {}
	}
	return []subject{measured(runscName, b.runscRun(dir, "bench")...)}, b.afterRunsc
}

// runscRun runs a bundle in the foreground.
func (b *bench) runscRun(bundle, id string) []string {
	return []string{b.runsc(), "--root", filepath.Join(b.dir, "runsc"), "--network=none", "--ignore-cgroups", "--overlay2=none", "run", "--bundle", bundle, id}
}

// afterRunsc takes off the network namespace that a bare runsc leaves mounted in its state directory.
func (b *bench) afterRunsc() {
	_ = unix.Unmount(filepath.Join(b.dir, "runsc", "null-netns"), unix.MNT_DETACH) // where it is not, nothing is left
}

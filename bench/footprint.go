package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/cofferdam/cofferdam/internal/guest/boot"
)

// room is the memory that sandboxes are to fit into, in MiB.
const room = 8 << 10

// idler is one way to have an idle shell. argv is told how manieth it is at the same time.
type idler struct {
	name   string
	prompt string // what it says before it can be spoken to
	argv   func(i int) []string
}

// footprintRows measures what idle sandboxes of each level hold, beside the same shell in what the level is made with.
// PSS shares what is mapped from a file among those who map it: so much is counted once, however many sandboxes there are.
func footprintRows(ctx context.Context, b *bench) (rows []row, err error) {
	if os.Getuid() != 0 {
		b.skip("footprint", "only root may see what the gateway and the runner hold")
		return nil, nil
	}
	ours := func(level string) idler {
		return idler{name: coldName, argv: func(int) []string {
			return []string{b.cofferdam, "run", "-q", "--isolation", level, "--workspace", b.workspace(), "--", "/bin/sh"}
		}}
	}
	bundle := filepath.Join(b.dir, "bundle")
	bare := b.engines(b.command, "/bin/sh") // which writes the bundle, for runsc too
	runc := idler{name: runcName, argv: func(i int) []string {
		return []string{"runc", "--root", filepath.Join(b.dir, "runc"), "run", "--bundle", bundle, "idle" + strconv.Itoa(i)}
	}}
	runsc := idler{name: runscName, argv: func(i int) []string { return b.runscRun(bundle, "idle"+strconv.Itoa(i)) }}
	add := func(level string, rounds, more int, mine idler, other ...idler) {
		if err == nil {
			var three []row
			three, err = b.footprints(ctx, level, rounds, more, append([]idler{mine}, other...))
			rows = append(rows, three...)
		}
	}
	if len(bare) == 0 {
		return nil, nil // it said why
	}
	add("container", b.rounds(3), 4, ours("container"), runc)
	if b.haveGVisor() {
		defer b.afterRunsc()
		add("gvisor", b.rounds(3), 4, ours("gvisor"), runsc)
	}
	m, missing := b.emulated(ctx)
	if m == nil || err != nil {
		return rows, firstError(err, missing)
	}
	shell, err := b.bareShell(m)
	if err != nil {
		return rows, err
	}
	add("vm-emulated", 2, 2, idler{name: coldName, argv: func(int) []string { return m.run(b, b.workspace(), "--", "/bin/sh") }}, shell)
	return rows, err
}

func firstError(all ...error) error {
	for _, err := range all {
		if err != nil {
			return err
		}
	}
	return nil
}

// footprints measures each in turn. There is nothing to warm up.
func (b *bench) footprints(ctx context.Context, level string, rounds, more int, all []idler) ([]row, error) {
	alone, further, fit := make([]series, len(all)), make([]series, len(all)), make([]series, len(all))
	for i, one := range all {
		alone[i].name, further[i].name, fit[i].name = one.name, one.name, one.name
	}
	for range rounds {
		for i, one := range all {
			if alone[i].err != nil {
				continue
			}
			first, each, err := b.footprint(ctx, one, more)
			if err != nil {
				alone[i].err, further[i].err, fit[i].err = err, err, err
				continue
			}
			alone[i].values, further[i].values = append(alone[i].values, first), append(further[i].values, each)
			fit[i].values = append(fit[i].values, fitting(first, each))
		}
	}
	var rows []row
	for _, r := range []struct {
		what, unit string
		higher     bool
		all        []series
	}{
		{"level " + level + ": memory of one idle sandbox, all its processes", "MiB", false, alone},
		{"level " + level + ": memory of each further one", "MiB", false, further},
		{"level " + level + ": idle sandboxes that fit into 8 GiB, by these", "number", true, fit},
	} {
		mine, others, err := b.settle(r.all, nil)
		if err != nil {
			return rows, err
		}
		made := row{what: r.what, unit: r.unit, higher: r.higher, ours: mine}
		for _, o := range others {
			made.others = append(made.others, against(o, noAim()))
		}
		rows = append(rows, made)
	}
	return rows, nil
}

// fitting is how many there can be, if one takes first MiB and each further one each.
func fitting(first, each float64) float64 {
	if first > room {
		return 0
	}
	return 1 + float64(int((room-first)/max(each, 0.1)))
}

// footprint starts one, then more, and returns in MiB what the one held when it was alone, and what each further one added to all of them.
func (b *bench) footprint(ctx context.Context, one idler, more int) (alone, each float64, err error) {
	ctx, cancel := context.WithTimeout(ctx, levelTime)
	defer cancel()
	var shells []*shell
	defer func() {
		for _, s := range shells {
			s.leave()
		}
	}()
	var totals []float64
	for i := range more + 1 {
		s, err := b.shell(ctx, one.argv(i), one.prompt)
		if err != nil {
			return 0, 0, err
		}
		shells = append(shells, s)
		if i != 0 && i != more {
			continue
		}
		time.Sleep(500 * time.Millisecond) // until what starts beside it is over
		total := 0.0
		for _, s := range shells {
			mib, err := treePSS(s.cmd.Process.Pid)
			if err != nil {
				return 0, 0, err
			}
			total += mib
		}
		totals = append(totals, total)
	}
	return totals[0], (totals[1] - totals[0]) / float64(more), nil
}

// bareShell is a shell in QEMU by itself: the initial file system of sandboxes, with the shell put into it, which is the first program.
func (b *bench) bareShell(m *emulated) (idler, error) {
	initram, err := b.initramWith(m, "/bin/sh")
	return idler{name: "bare QEMU, with a shell as its first program", prompt: "# ", argv: func(int) []string { return m.bare(initram, "rdinit=/bin/sh") }}, err
}

// initramWith makes the initial file system of sandboxes with a program in it, and returns its path.
func (b *bench) initramWith(m *emulated, program string) (string, error) {
	tree := filepath.Join(b.dir, "machine-"+filepath.Base(program))
	if err := plant(tree, program); err != nil {
		return "", err
	}
	if err := withTree(tree+".cpio", filepath.Join(m.folder, boot.InitramName), tree); err != nil {
		return "", fmt.Errorf("put %s into an initial file system: %w", program, err)
	}
	return tree + ".cpio", nil
}

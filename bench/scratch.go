package main

import (
	"context"
	"fmt"
	"os"
)

// scratchMiB is how much is written.
const scratchMiB = 512

// scratchRows compares scratch on the disk, under a key that is wiped at the end, with scratch in memory: what it costs to write, and to have.
func scratchRows(ctx context.Context, b *bench) ([]row, error) {
	if os.Getuid() != 0 {
		b.skip("scratch", "only root can have it encrypted")
		return nil, nil
	}
	const encrypted, memory = "--scratch encrypted", "--scratch memory"
	write := func(string) runTask {
		return runTask{Argv: []string{"/bin/sh", "-c", fmt.Sprintf("dd if=/dev/zero of=/tmp/large bs=1M count=%d conv=fsync 2>&1 && rm /tmp/large", scratchMiB)}, Dir: "/"}
	}
	var writing, starting []subject
	for _, kind := range []string{"encrypted", "memory"} {
		p, err := b.sandboxed(ctx, "--scratch "+kind, b.workspace(), "--scratch", kind)
		if err != nil {
			return nil, err
		}
		defer p.via.stop()
		writing = append(writing, p.doing(write))
		starting = append(starting, b.command("--scratch "+kind, b.cofferdam, "run", "-q", "--scratch", kind, "--workspace", b.workspace(), "--", "/bin/true"))
	}
	var rows []row
	for _, m := range []struct {
		what     string
		rounds   int
		subjects []subject
	}{
		{fmt.Sprintf("%d MiB written to scratch and synchronised, %s", scratchMiB, encrypted), b.rounds(3), writing},
		{"`run -- /bin/true`, whole command, " + encrypted, b.rounds(10), starting},
	} {
		all, err := takeTurns(ctx, m.rounds, m.subjects)
		if err == nil && all[0].err != nil {
			b.skip(encrypted, all[0].err.Error()) // not every kernel can
			return rows, nil
		}
		mine, others, err := b.settle(all, err)
		if err != nil {
			return rows, err
		}
		r := row{what: m.what, unit: "ms", ours: mine}
		for _, o := range others {
			r.others = append(r.others, against(o, noAim()))
		}
		rows = append(rows, r)
	}
	return rows, nil
}

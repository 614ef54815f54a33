// Command bench measures Cofferdam's speed and memory side by side with what else could be used, in one run on one machine.
//
// Everything listens on loopback or inside a sandbox. What is compared takes turns, so that a busy moment of the machine hits all of it alike;
// what is not installed is left out with a line that says so.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/cofferdam/cofferdam/internal/isolation/container"
	"github.com/cofferdam/cofferdam/internal/isolation/vm"
)

func main() {
	switch os.Args[0] { // children of package vm, which prepared machines are measured with
	case container.SetupName:
		container.Setup(nil)
		return
	case container.StewardName:
		container.Steward()
		return
	case vm.UnpackName:
		vm.Unpack()
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// run is one of five programs: the benchmark, its client (which also runs inside the sandbox), its servers, its Git server, and its registry.
func run(ctx context.Context, args []string, stdin io.Reader, stdout io.Writer) error {
	if len(args) > 0 {
		switch args[0] {
		case "client":
			return client(stdin, stdout)
		case "servers":
			return servers(ctx, stdin, stdout)
		case "forge":
			if len(args) != 2 {
				return errors.New("forge: want the folder of its repositories, and nothing else")
			}
			return forge(ctx, args[1], stdin, stdout)
		case "registry":
			return serveImages(ctx, stdin, stdout)
		}
	}
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	programs := flags.String("programs", "bin", "`directory` of the three programs")
	update := flags.String("update", "", "write the tables of what was run into `FILE`, between their marks")
	only := flags.String("only", "", "run only these, by comma: "+strings.Join(suiteNames(), ", "))
	volume := flags.Float64("volume", 0.25, "`GiB` of one large body in the group bulk")
	scale := flags.Float64("scale", 1, "how much to measure; below 1 is quick and rough")
	if err := flags.Parse(args); err != nil {
		return err
	}
	for name := range strings.SplitSeq(*only, ",") {
		if *only != "" && !slices.Contains(suiteNames(), name) {
			return fmt.Errorf("-only: there is no %q; there are %s", name, strings.Join(suiteNames(), ", "))
		}
	}
	b, err := newBench(*programs, *scale, *volume, stdout)
	if err != nil {
		return err
	}
	defer b.close()
	return b.measure(ctx, *only, *update)
}

// suite is one group of rows, which go into a table.
type suite struct {
	name, table string
	run         func(context.Context, *bench) ([]row, error)
}

// The tables' marks.
const (
	mainTable    = "bench"
	levelsTable  = "bench levels"
	serviceTable = "bench service"
)

func suites() []suite {
	return []suite{
		{"start", mainTable, startRows}, {"stream", mainTable, streamRows}, {"tls", mainTable, tlsRows}, {"http", mainTable, httpRows}, {"inspect", mainTable, inspectRows},
		{"bulk", mainTable, bulkRows}, {"git", mainTable, gitRows}, {"memory", mainTable, memoryRows},
		{"level-container", levelsTable, containerRows}, {"level-gvisor", levelsTable, gvisorRows}, {"level-vm", levelsTable, machineRows}, {"footprint", levelsTable, footprintRows},
		{"files", levelsTable, filesRows}, {"image", levelsTable, imageRows}, {"scratch", levelsTable, scratchRows},
		{"service", serviceTable, serviceRows},
	}
}

func suiteNames() []string {
	var names []string
	for _, s := range suites() {
		names = append(names, s.name)
	}
	return names
}

// bench is one run of everything.
type bench struct {
	self      string // this program
	cofferdam string
	dir       string // scratch, removed at the end
	scale     float64
	volume    float64 // GiB of a large body
	load      string  // what else the machine did when it began
	out       io.Writer
	skipped   []string
}

func newBench(programs string, scale, volume float64, out io.Writer) (*bench, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cofferdam, err := filepath.Abs(filepath.Join(programs, "cofferdam"))
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(cofferdam); err != nil {
		return nil, fmt.Errorf("%w: build it first: make build", err)
	}
	if scale <= 0 || scale > 100 {
		return nil, errors.New("-scale: want a number above 0, at most 100")
	}
	if volume <= 0 || volume > 100 {
		return nil, errors.New("-volume: want a number above 0, at most 100")
	}
	dir, err := os.MkdirTemp("", "cofferdam-bench-")
	if err != nil {
		return nil, err
	}
	b := &bench{self: self, cofferdam: cofferdam, dir: dir, scale: scale, volume: volume, load: loadAverage(), out: out}
	return b, os.MkdirAll(b.workspace(), 0o755)
}

// workspace is an empty folder that the sandboxes work on.
func (b *bench) workspace() string { return filepath.Join(b.dir, "work") }

func (b *bench) close() { _ = os.RemoveAll(b.dir) } // scratch

// rounds scales a number of repetitions.
func (b *bench) rounds(n int) int { return max(3, int(float64(n)*b.scale)) }

// skip says what is left out, and why, once.
func (b *bench) skip(name, reason string) {
	line := name + " left out: " + reason
	if slices.Contains(b.skipped, line) {
		return
	}
	b.skipped = append(b.skipped, line)
	fmt.Fprintln(b.out, "bench:", line)
}

// measure runs the suites and reports.
func (b *bench) measure(ctx context.Context, only, file string) error {
	tables := []*table{{mark: mainTable}, {mark: levelsTable}, {mark: serviceTable}}
	var problems []error
	for _, s := range suites() {
		if only != "" && !strings.Contains(","+only+",", ","+s.name+",") {
			continue
		}
		fmt.Fprintln(b.out, "bench:", s.name)
		into, before := tables[slices.IndexFunc(tables, func(t *table) bool { return t.mark == s.table })], len(b.skipped)
		more, err := s.run(ctx, b)
		if err != nil {
			problems = append(problems, fmt.Errorf("%s: %w", s.name, err)) // the rest is worth having
		}
		into.rows, into.skipped = append(into.rows, more...), append(into.skipped, b.skipped[before:]...)
	}
	for _, t := range tables {
		if len(t.rows) > 0 {
			fmt.Fprint(b.out, "\n", t.report(b.load))
		}
	}
	if err := errors.Join(problems...); err != nil || file == "" {
		return err
	}
	for _, t := range tables {
		if len(t.rows) > 0 {
			if err := rewrite(file, t.mark, t.report(b.load)); err != nil {
				return err
			}
		}
	}
	return nil
}

// environment is what the measured programs get: enough to find their parts, and a state directory of our own.
func (b *bench) environment() []string { return b.environmentOf("state") }

// environmentOf is environment with another state directory, by its name.
func (b *bench) environmentOf(state string) []string {
	return []string{"PATH=" + os.Getenv("PATH"), "HOME=" + b.dir, "TMPDIR=" + b.dir, "COFFERDAM_STATE=" + filepath.Join(b.dir, state)}
}

// writeLine writes one value as one line of JSON.
func writeLine(w io.Writer, v any) error { return json.NewEncoder(w).Encode(v) }

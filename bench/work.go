package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"
)

// runTask is a program that a client runs, where it is.
type runTask struct {
	Argv []string `json:"argv"`
	Dir  string   `json:"dir"`
	Env  []string `json:"env"`
}

// runTime bounds one, in a machine that is emulated on a busy host too.
const runTime = 5 * time.Minute

// carryOut returns milliseconds.
func (t runTask) carryOut() ([]float64, error) {
	if len(t.Argv) == 0 {
		return nil, errors.New("nothing to run")
	}
	ctx, cancel := context.WithTimeout(context.Background(), runTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, t.Argv[0], t.Argv[1:]...)
	cmd.Dir, cmd.Env = t.Dir, t.Env
	began := time.Now()
	out, err := cmd.CombinedOutput()
	took := time.Since(began)
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %s", t.Argv[0], err, firstLine(string(out)))
	}
	return []float64{milliseconds(took)}, nil
}

// place is where work is done: outside, or in what is compared. Its client stays there, so that what is measured is the work and not the start.
type place struct {
	name, folder string
	via          *worker
}

// doing is a subject that does some work in the folder of the place.
func (p place) doing(work func(folder string) runTask) subject {
	t := work(p.folder)
	return p.via.via(p.name, task{Run: &t})
}

// sandboxed opens a client in a sandbox on a folder. The first task says whether it has come up.
func (b *bench) sandboxed(ctx context.Context, name, folder string, flags ...string) (place, error) {
	argv := append([]string{b.cofferdam, "run", "-q", "--workspace", folder, "--mount", b.self + ":" + seenSelf}, flags...)
	w, err := b.work(ctx, append(argv, "--", seenSelf, "client"))
	return place{name, folder, w}, err
}

// belowUsr refuses a program that is not where it is seen everywhere: containers of others have only /usr of this machine here.
func belowUsr(path string) error {
	if !strings.HasPrefix(path, "/usr/") {
		return fmt.Errorf("it lies in %s and not below /usr", path)
	}
	_, err := os.Stat(path)
	return err
}

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"
)

// The subjects that every level has.
const (
	coldName  = "cofferdam run"
	warmName  = "cofferdam run, from a pool"
	runcName  = "runc run"
	runscName = "runsc run"
)

// levelTime bounds one start, of a machine that is emulated on a busy host too.
const levelTime = 3 * time.Minute

// both is a sample of a program that is run: milliseconds until the first byte that it says, and until it has ended.
func (b *bench) both(env []string, argv ...string) func(context.Context) ([]float64, error) {
	return func(ctx context.Context) ([]float64, error) {
		ctx, cancel := context.WithTimeout(ctx, levelTime)
		defer cancel()
		cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
		cmd.Env, cmd.Dir = env, b.workspace()
		var said bytes.Buffer
		cmd.Stderr = &said
		out, err := cmd.StdoutPipe()
		if err != nil {
			return nil, err
		}
		began := time.Now()
		if err := cmd.Start(); err != nil {
			return nil, err
		}
		_, err = io.ReadFull(out, make([]byte, 1))
		first := time.Since(began)
		_, _ = io.Copy(io.Discard, out) // until its end
		if err := errors.Join(cmd.Wait(), err); err != nil {
			return nil, fmt.Errorf("%w: %s", err, firstLine(said.String()))
		}
		return []float64{milliseconds(first), milliseconds(time.Since(began))}, nil
	}
}

// halves takes the values of such samples apart.
func halves(s series) (first, whole series) {
	first, whole = series{name: s.name, err: s.err}, series{name: s.name, err: s.err}
	for pair := range slices.Chunk(s.values, 2) {
		first.values, whole.values = append(first.values, pair[0]), append(whole.values, pair[len(pair)-1])
	}
	return first, whole
}

// containerRows measures level container.
func containerRows(ctx context.Context, b *bench) ([]row, error) {
	others := b.engines(func(name string, argv ...string) subject { return subject{name, b.both(b.environment(), argv...)} }, echo()...)
	return b.levelRows(ctx, "container", b.rounds(40), others, 10, map[string]aim{runcName: atMost(0.5)})
}

// gvisorRows measures level gvisor.
func gvisorRows(ctx context.Context, b *bench) ([]row, error) {
	if !b.haveGVisor() {
		return nil, nil
	}
	others, undo := b.bareRunsc(func(name string, argv ...string) subject { return subject{name, b.both(b.environment(), argv...)} }, echo()...)
	defer undo()
	return b.levelRows(ctx, "gvisor", b.rounds(20), others, 25, map[string]aim{runscName: atMost(1.1)})
}

// levelRows starts a command at a level from nothing and from a pool, in turns with the others. warmLimit is what the median from a pool may be in milliseconds; aims
// are what is wanted of a start from nothing against others.
func (b *bench) levelRows(ctx context.Context, level string, rounds int, others []subject, warmLimit float64, aims map[string]aim) (rows []row, err error) {
	home, err := b.home()
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(home)
	p, err := b.openPool(ctx, level, nil)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, p.close()) }()
	run := append([]string{b.cofferdam, "run", "-q", "--isolation", level, "--workspace", home, "--"}, echo()...)
	subjects := append([]subject{{coldName, b.both(b.environment(), run...)}, {warmName, p.claiming(b.both(p.env, run...))}}, others...)
	cold, rest, err := b.settle(takeTurns(ctx, rounds, subjects))
	if err != nil {
		return nil, err
	}
	rows = startedRows("level "+level+", from nothing", cold, without(rest, warmName), aims)
	warm, ok := find(rest, warmName)
	if !ok {
		return rows, errors.New("no sandbox came from the pool: see the line above")
	}
	if err := p.wasWarm(ctx); err != nil {
		return rows, err
	}
	return append(rows, startedRows("level "+level+", from a pool", warm, append([]series{cold}, without(rest, warmName)...), map[string]aim{coldName: atMostAlone(warmLimit)})...), nil
}

// startedRows makes two rows of what both has measured. aims, by name, are for the first byte.
func startedRows(what string, ours series, others []series, aims map[string]aim) []row {
	mineFirst, mineWhole := halves(ours)
	first := row{what: what + ": from the request to the first byte of `echo`", unit: "ms", ours: mineFirst}
	whole := row{what: what + ": `echo`, whole command", unit: "ms", ours: mineWhole}
	for _, o := range others {
		a, known := aims[o.name]
		if !known {
			a = noAim()
		}
		f, w := halves(o)
		first.others, whole.others = append(first.others, against(f, a)), append(whole.others, against(w, noAim()))
	}
	return []row{first, whole}
}

// home makes an empty folder to work on where people's folders lie: once gVisor's kernel is up there is no room for one directly below /tmp.
func (b *bench) home() (string, error) {
	where := "/home"
	if os.Getuid() != 0 {
		var err error
		if where, err = os.UserHomeDir(); err != nil {
			return "", err
		}
	}
	return os.MkdirTemp(where, "cofferdam-bench-")
}

// pooled is a pool of sandboxes with a state directory of its own, so that what is started beside it starts from nothing.
type pooled struct {
	b   *bench
	env []string
	cmd *exec.Cmd
}

// poolStatus is what is looked at of a pool's status.
type poolStatus struct{ Size, Ready, Claimed, Missed int }

// openPool starts a pool of two at a level, as a child of this process.
func (b *bench) openPool(ctx context.Context, level string, flags []string) (*pooled, error) {
	p := &pooled{b: b, env: b.poolEnvironment(level)}
	p.cmd = exec.CommandContext(ctx, b.cofferdam, append([]string{"pool", "start", "--foreground", "--isolation", level, "--size", "2"}, flags...)...)
	p.cmd.Cancel = func() error { return p.cmd.Process.Signal(os.Interrupt) }
	p.cmd.WaitDelay = 30 * time.Second
	p.cmd.Env = p.env
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	if _, err := p.full(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("a pool at level %s: %w", level, err), p.close())
	}
	return p, nil
}

func (b *bench) poolEnvironment(level string) []string { return b.environmentOf("pool-" + level) }

// close ends the pool with all that wait in it.
func (p *pooled) close() error {
	if err := p.cmd.Process.Signal(os.Interrupt); err != nil {
		return err
	}
	return p.cmd.Wait()
}

// ask has cofferdam say something of the pool's state directory in JSON.
func (p *pooled) ask(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, p.b.cofferdam, args...)
	cmd.Env = p.env
	out, err := cmd.Output()
	return string(out), err
}

// full waits until the pool is full.
func (p *pooled) full(ctx context.Context) (poolStatus, error) {
	for end := time.Now().Add(levelTime); ; time.Sleep(10 * time.Millisecond) {
		var all []poolStatus
		out, err := p.ask(ctx, "pool", "status", "--json")
		if err == nil {
			err = json.Unmarshal([]byte(out), &all)
		}
		switch {
		case err != nil:
			return poolStatus{}, err
		case len(all) == 1 && all[0].Ready == all[0].Size:
			return all[0], nil
		case time.Now().After(end):
			return poolStatus{}, errors.New("it does not become full")
		}
	}
}

// claiming is a sample with a full pool before it and after it, so that nothing is started beside the next one's clock. It must have taken a sandbox.
func (p *pooled) claiming(sample func(context.Context) ([]float64, error)) func(context.Context) ([]float64, error) {
	return func(ctx context.Context) ([]float64, error) {
		before, err := p.full(ctx)
		if err != nil {
			return nil, err
		}
		values, err := sample(ctx)
		if err != nil {
			return nil, err
		}
		after, err := p.full(ctx)
		if err == nil && (after.Claimed != before.Claimed+1 || after.Missed != before.Missed) {
			err = fmt.Errorf("the run took none: %+v, then %+v", before, after)
		}
		return values, err
	}
}

// wasWarm makes sure that the last run was in the sandbox that it took, and not in one that was built all the same.
func (p *pooled) wasWarm(ctx context.Context) error {
	record, err := p.ask(ctx, "audit", "last", "--json")
	if err == nil && (!strings.Contains(record, "; from the pool") || strings.Contains(record, "built anew")) {
		err = errors.New("the record of the last run does not say that its sandbox came from the pool")
	}
	return err
}

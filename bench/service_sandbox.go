package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	wire "github.com/cofferdam/cofferdam/api"
	remote "github.com/cofferdam/cofferdam/client"
)

const (
	builder = "builder"
	ready   = "ready\n"
	// probed is the name that a policy allows or not.
	probed = "probe.example.com"
	// neighbours is how many sandboxes more a change of policy is put in force in.
	neighbours = 7
)

// echo says a word as soon as it can.
func echo() []string { return []string{"/bin/echo", strings.TrimSpace(ready)} }

// createRows measures from the request for a sandbox to the first byte that a program in it says, and the same of what starts sandboxes without a service.
func createRows(ctx context.Context, s *service) ([]row, error) {
	if _, err := s.admin.api.CreateAgent(ctx, wire.NewAgent{Name: builder, PolicyText: probePolicy(false)}); err != nil {
		return nil, err
	}
	const command, held = "POST /sandboxes with a command", "POST /sandboxes, then exec"
	subjects := []subject{{command, s.createAndFollow}, {held, s.createAndExec}}
	run := append([]string{s.b.cofferdam, "run", "-q", "--workspace", s.b.workspace(), "--"}, echo()...)
	subjects = append(subjects, s.b.firstByte("cofferdam run", run...))
	if s.b.have("bwrap", "bubblewrap") {
		subjects = append(subjects, s.b.firstByte("bwrap", append(bwrapArgs(), echo()...)...))
	}
	subjects = append(subjects, s.b.engines(s.b.firstByte, echo()...)...)
	ours, rest, err := s.b.settle(takeTurns(ctx, s.b.rounds(30), subjects))
	if err != nil {
		return nil, err
	}
	first := row{what: "a sandbox with a command, from the request to its first output", unit: "ms", ours: ours}
	second := row{what: "a held sandbox, from the request to the end of a first exec", unit: "ms"}
	for _, o := range rest {
		if o.name == held {
			second.ours = o
			continue
		}
		a := noAim()
		if o.name == "podman run" {
			a = atMost(1)
		}
		first.others, second.others = append(first.others, against(o, a)), append(second.others, against(o, a))
	}
	if second.ours.values == nil {
		return []row{first}, errors.New(held + " did not work: see the line above")
	}
	return []row{first, second}, nil
}

// firstByte is a subject that runs a program until it says something. Its end is waited for and does not count.
func (b *bench) firstByte(name string, argv ...string) subject {
	return subject{name, func(ctx context.Context) ([]float64, error) {
		values, err := b.both(b.environment(), argv...)(ctx)
		return values[:min(len(values), 1)], err
	}}
}

func (s *service) createAndFollow(ctx context.Context) ([]float64, error) {
	began := time.Now()
	box, err := s.admin.api.CreateSandbox(ctx, wire.NewSandbox{Agent: builder, Command: echo()})
	if err != nil {
		return nil, err
	}
	var took time.Duration
	err = s.admin.api.FollowOutput(ctx, box.ID, 0, writer(func(p []byte) error {
		if took == 0 && len(p) > 0 {
			took = time.Since(began)
		}
		return nil
	}))
	if err == nil && took == 0 {
		err = errors.New("it said nothing")
	}
	return []float64{milliseconds(took)}, errors.Join(err, s.gone(ctx, box.ID))
}

func (s *service) createAndExec(ctx context.Context) ([]float64, error) {
	began := time.Now()
	box, err := s.admin.api.CreateSandbox(ctx, wire.NewSandbox{Agent: builder, Hold: true})
	if err != nil {
		return nil, err
	}
	result, err := s.admin.api.ExecWait(ctx, box.ID, wire.Exec{Command: echo()})
	took := time.Since(began)
	if err == nil && result.Stdout != ready {
		err = fmt.Errorf("it said %.100q, and %.100q", result.Stdout, result.Stderr)
	}
	return []float64{milliseconds(took)}, errors.Join(err, s.end(ctx, box.ID))
}

// writer is a function that is written to.
type writer func(p []byte) error

func (w writer) Write(p []byte) (int, error) { return len(p), w(p) }

// probePolicy allows the probed name, or another.
func probePolicy(open bool) string {
	name := probed
	if !open {
		name = "elsewhere.example.com"
	}
	return "version: 1\negress:\n  rules:\n    - hosts: [" + name + "]\n      ports: [443]\n"
}

// probe looks a name up again and again, and says when the answer is another than before. A name that policy does not allow does not exist inside.
func probe() []string {
	return []string{"/bin/sh", "-c", `last=; while :; do if getent hosts ` + probed + ` >/dev/null; then now=y; else now=n; fi; [ "$now" = "$last" ] || printf $now; last=$now; sleep 0.01; done`}
}

// forceRows measures from the request that changes a policy to the answer that it is in force, and until a program inside finds it so.
func forceRows(ctx context.Context, s *service) (rows []row, err error) {
	agent, err := s.admin.api.Agent(ctx, builder)
	if err != nil {
		return nil, err
	}
	law, err := s.admin.api.Policy(ctx, agent.Policy)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.endAll(context.WithoutCancel(ctx))) }()
	box, err := s.admin.api.CreateSandbox(ctx, wire.NewSandbox{Agent: builder, Hold: true})
	if err != nil {
		return nil, err
	}
	probing, stop := context.WithCancel(ctx)
	seen, done := make(chan byte, 100), make(chan error, 1)
	go func() {
		_, err := s.admin.api.Exec(probing, box.ID, wire.Exec{Command: probe()}, remote.Streams{Stdout: writer(func(p []byte) error {
			for _, c := range p {
				seen <- c
			}
			return nil
		}), Stderr: io.Discard})
		done <- err
	}()
	defer func() { stop(); <-done }()
	if err := await(ctx, seen, 'n'); err != nil {
		return nil, err
	}
	alone, felt, err := s.change(ctx, &law, seen)
	if err != nil {
		return nil, err
	}
	for range neighbours {
		if _, err := s.admin.api.CreateSandbox(ctx, wire.NewSandbox{Agent: builder, Hold: true}); err != nil {
			return nil, err
		}
	}
	many, feltAmongMany, err := s.change(ctx, &law, seen)
	if err != nil {
		return nil, err
	}
	for _, r := range []struct {
		where          string
		felt, answered series
	}{{"one sandbox", felt, alone}, {fmt.Sprintf("%d sandboxes", neighbours+1), feltAmongMany, many}} {
		r.answered.name = "the answer to the request"
		rows = append(rows, row{what: "change of a policy of " + r.where + ", from the request until a program inside finds it so", unit: "ms", ours: r.felt,
			others: []comparison{against(r.answered, atMostSlow(1000))}})
	}
	return rows, nil
}

// change changes the policy to and fro.
func (s *service) change(ctx context.Context, law *wire.Policy, seen <-chan byte) (answered, felt series, err error) {
	for i := range 2 * s.b.rounds(15) {
		open := i%2 == 0
		text, want := probePolicy(open), map[bool]byte{true: 'y', false: 'n'}[open]
		began := time.Now()
		changed, err := s.admin.api.ChangePolicy(ctx, law.ID, law.Version, wire.PolicyChange{Text: &text})
		if err != nil {
			return answered, felt, err
		}
		answered.values = append(answered.values, milliseconds(time.Since(began)))
		*law = changed
		if err := await(ctx, seen, want); err != nil {
			return answered, felt, err
		}
		felt.values = append(felt.values, milliseconds(time.Since(began)))
		time.Sleep(breath)
	}
	return answered, felt, nil
}

// await waits for what the probe is to say next.
func await(ctx context.Context, seen <-chan byte, want byte) error {
	select {
	case c := <-seen:
		if c != want {
			return fmt.Errorf("the program inside finds %q, not %q", c, want)
		}
		return nil
	case <-time.After(20 * time.Second):
		return fmt.Errorf("the program inside does not find %q", want)
	case <-ctx.Done():
		return ctx.Err()
	}
}

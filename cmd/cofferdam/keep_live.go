package main

import (
	"context"
	"io"
	"os"
	"sync"
	"time"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/frame"
	"github.com/cofferdam/cofferdam/internal/gateway"
	"github.com/cofferdam/cofferdam/internal/keeper"
	"github.com/cofferdam/cofferdam/internal/policy"
	"github.com/cofferdam/cofferdam/internal/supervisor/call"
	"github.com/cofferdam/cofferdam/internal/terminal"
)

// hold waits for the runner, has it hold the sandbox, starts the main command, and returns when that has ended, or the sandbox.
func (k *keeping) hold(serving context.Context) (frame.Exit, error) {
	defer k.noteEnd()
	conn, err := k.first.wait(serving, startPatience)
	if err != nil {
		return frame.Exit{}, err
	}
	held, err := terminal.Hold(serving, conn)
	if err != nil {
		return frame.Exit{}, err
	}
	defer held.Close() // which ends the sandbox
	k.held.Store(held)
	watched, cancel := context.WithCancel(serving)
	var watching sync.WaitGroup
	defer watching.Wait()
	defer cancel()
	watching.Go(func() { k.watch(watched, held) })
	endTurns, err := k.startTurns()
	if err != nil {
		return frame.Exit{}, err
	}
	defer endTurns()
	main, err := k.startMain(serving)
	if err != nil {
		return frame.Exit{}, err
	}
	defer k.startClock()()
	k.tell(keeper.Ready{Socket: keeper.SocketPath(k.app.state, k.id), Weaker: k.created.Weaker, PID: os.Getpid()})
	k.detach()
	if main != nil {
		return k.stay(main)
	}
	<-held.Over()
	return frame.Exit{}, held.Err()
}

// noteEnd notes that the main command, or what was held, has ended.
func (k *keeping) noteEnd() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.ended = true
}

// startMain starts the main command; nil if there is none.
func (k *keeping) startMain(ctx context.Context) (*keeper.Process, error) {
	if len(k.args) == 0 {
		return nil, nil
	}
	env, err := k.variablesFor(k.tty, nil)
	if err != nil {
		return nil, err
	}
	conn, err := k.spawn(ctx)
	if err != nil {
		return nil, err
	}
	s := frame.Start{Args: k.args, Env: env, Dir: k.startDir(""), TTY: k.tty, NoStdin: true, OpenFile: uint64(k.bounds.OpenFiles)}
	if k.tty {
		s.Rows, s.Cols = 24, 80 // what programs take where nobody says
	}
	return keeper.StartProcess(ctx, conn, s)
}

// stay takes the main command's output until it ends.
func (k *keeping) stay(main *keeper.Process) (frame.Exit, error) {
	var pumps sync.WaitGroup
	lost := sync.OnceFunc(func() { k.say.note("output is lost, which cannot be written") })
	for _, from := range []io.Reader{main.Stdout(), main.Stderr()} {
		pumps.Go(func() {
			b := make([]byte, 32<<10)
			for {
				n, err := from.Read(b)
				n = k.execution.output.take(n)
				if _, failed := k.output.Write(b[:n]); failed != nil {
					lost() // the command goes on: a full disk is not its doing
				}
				if err != nil {
					return
				}
			}
		})
	}
	exit, err := main.Wait()
	_ = main.Close() // it has ended, or the sandbox has
	pumps.Wait()
	return exit, err
}

// spawn has the runner call once more.
func (k *keeping) spawn(ctx context.Context) (io.ReadWriteCloser, error) {
	held := k.held.Load()
	if held == nil {
		return nil, fault.New(fault.Unavailable, "the sandbox is being made")
	}
	call, token := k.callers.expect()
	err := held.Spawn(token)
	clear(token)
	if err != nil {
		call.forget()
		return nil, fault.New(fault.Unavailable, "the sandbox's runner takes no command now").Because(err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { // ends with this call
		select {
		case <-held.Over():
			cancel()
		case <-ctx.Done():
		}
	}()
	return call.wait(ctx, spawnPatience)
}

// spawnPatience is how long the runner may take to call for one more command: milliseconds, more where the sandbox uses up its processors.
const spawnPatience = 15 * time.Second

// Start starts a command that the service asks for: it gets the connection by which the runner is told.
func (k *keeping) Start(ctx context.Context, e keeper.Exec) (io.ReadWriteCloser, keeper.Prepared, error) {
	if k.isPaused(ctx) {
		return nil, keeper.Prepared{}, fault.New(fault.Conflict, "the sandbox is paused").WithHint("resume it first")
	}
	env, err := k.variablesFor(e.TTY, e.Env)
	if err != nil {
		return nil, keeper.Prepared{}, err
	}
	p := keeper.Prepared{Env: env, Dir: k.startDir(e.Dir)}
	if err := (frame.Start{Args: e.Command, Env: p.Env, Dir: p.Dir}).Check(); err != nil {
		return nil, p, fault.New(fault.Invalid, "cannot run this: %v", err)
	}
	conn, err := k.spawn(ctx)
	return conn, p, err
}

// Status says how the sandbox is.
func (k *keeping) Status() keeper.Status {
	stats, asks, paused := k.gateway.Stats(), k.board.Waiting(), k.isPaused(context.Background())
	k.mu.Lock()
	defer k.mu.Unlock()
	return keeper.Status{
		Run: k.id, Started: k.began.UTC(), Deadline: k.deadline.UTC(), Policy: k.plan.hash, Next: k.plan.next().UTC(), Connections: stats.Connections, Allowed: stats.Allowed, Denied: stats.Denied,
		BytesIn: stats.In, BytesOut: stats.Out, Asks: asks, Paused: paused, Ended: k.ended,
	}
}

// Pause stops every process of the sandbox, or lets them go on: its supervisor does, since this process can open nothing any more.
func (k *keeping) Pause(ctx context.Context, paused bool) error {
	want := call.WantRunning
	if paused {
		want = call.WantPaused
	}
	_, err := k.freezes.ask(ctx, k.client, want)
	return err
}

// Stop ends the sandbox.
func (k *keeping) Stop(_ context.Context, reason string) error {
	if reason == "" {
		return fault.New(fault.Invalid, "no reason is given")
	}
	k.kill("stopped: " + frame.Inert(reason, 200))
	return nil
}

// startClock has the sandbox end at its deadline. The returned function stops the clock.
func (k *keeping) startClock() (stop func()) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.timer = time.AfterFunc(time.Hour, k.late)
	k.setClock()
	return func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		k.timer.Stop()
	}
}

// setClock sets the timer to the deadline; k.mu is held.
func (k *keeping) setClock() {
	if k.timer == nil {
		return
	}
	k.timer.Stop()
	if !k.deadline.IsZero() {
		k.timer.Reset(time.Until(k.deadline))
	}
}

// late ends a sandbox whose deadline has come, unless it was moved in this moment.
func (k *keeping) late() {
	k.mu.Lock()
	deadline := k.deadline
	k.mu.Unlock()
	if !deadline.IsZero() && !time.Now().Before(deadline) {
		k.kill("timeout: the deadline has come")
	}
}

// SetDeadline sets when the sandbox ends.
func (k *keeping) SetDeadline(_ context.Context, deadline time.Time) error {
	if deadline.IsZero() {
		return fault.New(fault.Invalid, "no deadline is named")
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.deadline = deadline
	k.setClock()
	return nil
}

// owner asks the runner whose socket it is, once there is one to ask.
func (k *keeping) owner(ctx context.Context, q frame.Query) frame.Owner {
	if held := k.held.Load(); held != nil {
		return held.Owner(ctx, q)
	}
	return frame.Owner{}
}

// asking is a question that waits for a person.
type asking struct {
	crossing policy.Crossing
	decided  func() // policy has changed and need not ask any more
}

// ask puts a crossing to the people of the service, unless that was answered for the rest of the sandbox's life.
func (k *keeping) ask(ctx context.Context, c policy.Crossing, owner frame.Owner) policy.Decision {
	d := k.current().policy.Decide(c)
	about := destination(c)
	if d.PerRequest { // what was said about one request says nothing about another
		about += " " + c.Method + " " + c.Path
	}
	t := k.answers.turn(about)
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.lasting != nil {
		return *t.lasting
	}
	answer, ok := k.question(ctx, c, d, owner)
	if !ok {
		if d = k.current().policy.Decide(c); d.Verdict != policy.Ask {
			return d
		}
		return policy.Decision{Rule: gateway.RuleNobodyToAsk, Reason: "nobody answered"}
	}
	said := policy.Decision{Rule: answer.Rule, Reason: frame.Inert(answer.Reason, 300)}
	if said.Rule == "" {
		said.Rule = "asked"
	}
	if answer.Allow {
		said.Verdict = policy.Allow
	}
	if answer.Lasting {
		t.lasting = &said
	}
	return said
}

// question waits for an answer; there is none when ctx ends, or policy need not ask any more.
func (k *keeping) question(ctx context.Context, c policy.Crossing, d policy.Decision, owner frame.Owner) (keeper.Answer, bool) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	a := &asking{crossing: c, decided: cancel}
	k.mu.Lock()
	if k.asking == nil {
		k.asking = map[*asking]struct{}{}
	}
	k.asking[a] = struct{}{}
	k.mu.Unlock()
	defer func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		delete(k.asking, a)
	}()
	q := keeper.Ask{
		Protocol: c.Protocol.String(), Host: string(c.Host), Port: c.Port, Method: frame.Inert(c.Method, 40), Path: frame.Inert(c.Path, 500), Rule: d.Rule,
		Created: time.Now().UTC(),
	}
	if c.Addr.IsValid() {
		q.Address = c.Addr.String()
	}
	if owner.PID != 0 {
		q.Process = process(owner)
	}
	if deadline, ok := ctx.Deadline(); ok {
		q.Deadline = deadline.UTC()
	}
	return k.board.Ask(ctx, q)
}

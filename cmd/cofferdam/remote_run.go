package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/client"
	"github.com/cofferdam/cofferdam/internal/audit"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/frame"
	"github.com/cofferdam/cofferdam/internal/ident"
	"github.com/cofferdam/cofferdam/internal/policy"
	"github.com/cofferdam/cofferdam/internal/sandbox"
	"github.com/cofferdam/cofferdam/internal/workspace"
)

// remoteRun is one "cofferdam run" at a server. Its steps are in run, in order.
type remoteRun struct {
	app     *app
	r       *remote
	flags   runFlags
	args    []string
	dir     string // the folder; empty: none is sent
	env     map[string]string
	timeout time.Duration
	began   time.Time

	say     *notifier
	signals signals
	watch   *denialWatch
	box     api.Sandbox
	parcel  *parcel
	sent    map[string]entry
	sending time.Time // when the folder was read
	store   *sandbox.Store
	live    *sandbox.Live
	summary workspace.Summary
	expired atomic.Bool // --timeout was reached
}

// runThere is "cofferdam run" at a server.
func (a *app) runThere(ctx context.Context, r *remote, f runFlags, args []string) error {
	e := &remoteRun{app: a, r: r, flags: f, args: args, began: time.Now(), say: newNotifier(a.stderr, f.json, f.quiet)}
	err := e.settle()
	if err == nil {
		var code int
		if code, err = e.run(ctx); err == nil && code != 0 {
			return status(code)
		}
	}
	if err != nil {
		return fmt.Errorf("run: %w", explain(r.URL, err))
	}
	return nil
}

// settle checks the flags.
func (e *remoteRun) settle() (err error) {
	f := &e.flags
	policyHint := "change the agent's policy: cofferdam policy edit NAME; or decide what it is denied: cofferdam review. On this machine: --local"
	hostHint := "a sandbox of the server sees the server's system and the folder that is sent. On this machine: --local"
	snapshotHint := "snapshots are kept on the machine where they were made. On this machine: --local"
	for _, refused := range []struct {
		flag  string
		given bool
		hint  string
	}{
		{"policy", f.policy != "", policyHint}, {"ignore-repository-policy", f.ignoreRepository, policyHint}, {"allow", len(f.allow) > 0, policyHint}, {"deny", len(f.deny) > 0, policyHint},
		{"allow-network", len(f.networks) > 0, policyHint}, {"resolve", len(f.resolve) > 0, policyHint}, {"ask", f.ask, policyHint},
		{"mount", len(f.mounts) > 0, hostHint}, {"rootfs", f.rootfs != "", hostHint}, {"snapshot", f.snapshot != "", snapshotHint}, {"from", f.from != "", snapshotHint}, {"image", f.image != "", "the agent's policy names it: isolation: {image: …}. On this machine: --local"}, {"gvisor-platform", f.platform != "", "the agent's policy names it: isolation: {platform: …}. On this machine: --local"}, {"best-effort", len(f.bestEffort) > 0, hostHint},
	} {
		if refused.given {
			return fault.New(fault.Invalid, "--%s says nothing at a server", refused.flag).WithHint("%s", refused.hint)
		}
	}
	for _, name := range f.limits.given() {
		if name != "timeout" {
			return fault.New(fault.Invalid, "--%s says nothing at a server", name).WithHint("the agent's policy sets it, under resources. On this machine: --local")
		}
	}
	if f.agent == "" {
		f.agent = e.r.account.Usual
	}
	if f.agent == "" {
		return fault.New(fault.Invalid, "no agent").WithHint("name the one whose policy is to be in force: --agent NAME, or for good: cofferdam login --agent NAME. They are listed by: cofferdam agent list")
	}
	if e.env, err = f.environment(); err != nil {
		return err
	}
	limits, err := f.resources()
	if err != nil {
		return err
	}
	e.timeout = limits.Timeout
	if f.tty && !isTerminal(e.app.stdin) {
		return fault.New(fault.Invalid, "--tty: standard input is not a terminal").WithHint("leave out --tty")
	}
	w, err := f.chooseWorkspace()
	if err != nil || w.dir == "" {
		return err
	}
	if w.mode != nil && *w.mode != policy.Overlay {
		return fault.New(fault.Invalid, "--workspace: at a server the folder is a copy, and its changes are kept apart").WithHint("leave the mode out, and take the changes with: cofferdam apply")
	}
	e.dir = w.dir
	return e.app.checkFolder(w.dir)
}

// run makes the sandbox, runs the command in it, takes the changes, and ends it.
func (e *remoteRun) run(ctx context.Context) (int, error) {
	defer e.signals.catch()()
	watched, release := e.signals.untilCommand(ctx)
	defer release()
	err := e.prepare(watched)
	if err != nil {
		release()
		if e.signals.stopped != 0 {
			err = fault.New(fault.Conflict, "interrupted before the command began")
		}
		e.abandon(ctx, err)
		if e.signals.stopped != 0 {
			return 128 + int(e.signals.stopped), nil
		}
		return 0, err
	}
	exit, err := e.command(ctx, release)
	taken := e.takeBack(ctx, err)
	return e.conclude(ctx, exit, err, taken)
}

// prepare looks at the folder, makes the sandbox and sends the folder there.
func (e *remoteRun) prepare(ctx context.Context) (err error) {
	if e.dir != "" {
		e.sending = time.Now()
		if e.parcel, err = survey(ctx, e.dir); err != nil {
			return err
		}
		if e.store, err = sandbox.OpenStore(e.app.state); err != nil {
			return err
		}
	}
	agent, err := e.r.Agent(ctx, e.flags.agent)
	if fault.KindOf(err) == fault.NotFound {
		return fault.New(fault.NotFound, "there is no agent %.80q at %s", e.flags.agent, e.r.URL).WithHint("they are listed by: cofferdam agent list")
	}
	if err != nil {
		return err
	}
	in := api.NewSandbox{Agent: agent.ID, Name: label(e.args), Hold: true, Environment: e.env, Isolation: e.flags.isolation, Seconds: int64((lease + e.timeout) / time.Second)}
	if e.box, err = e.r.CreateSandbox(ctx, in); err != nil {
		return err
	}
	// Also where little is said: what runs must not be mistaken for something on this machine.
	if e.flags.json {
		e.say.object("server", map[string]string{"url": e.r.URL, "agent": agent.Name, "sandbox": e.box.ID, "isolation": e.box.Isolation})
	} else {
		e.say.line(fmt.Sprintf("cofferdam: runs at %s, as the agent %s, in sandbox %s (--local for this machine)", e.r.URL, inert(agent.Name, 63), inert(e.box.ID, 40)))
	}
	for _, what := range e.box.Weaker {
		e.say.note("weaker: " + inert(what, 200))
	}
	if e.dir != "" {
		if err := e.sendFolder(ctx); err != nil {
			return err
		}
	}
	e.watch = watchDenials(context.WithoutCancel(ctx), e.r, e.box, e.say)
	return nil
}

// label names the sandbox for people, in at most as many bytes as a name may have.
func label(args []string) string { return frame.Inert(strings.Join(args, " "), 100) }

func (e *remoteRun) sendFolder(ctx context.Context) (err error) {
	run, err := ident.ParseRun(e.box.ID)
	if err != nil {
		return fault.New(fault.Unavailable, "the server named a sandbox %.40q", e.box.ID).Because(err)
	}
	if e.live, err = e.store.Begin(sandbox.Record{
		Run: run, State: sandbox.Running, Command: abridge(e.args), Workspace: e.dir, Mode: policy.Overlay.String(), Isolation: inert(e.box.Isolation, 40),
		UID: os.Getuid(), Agent: inert(e.box.AgentName, 63), Started: e.began,
	}); err != nil {
		return err
	}
	for _, note := range e.parcel.notes() {
		e.say.note(note)
	}
	if e.parcel.bytes > 32<<20 {
		e.say.note("sends " + audit.SizeWords(e.parcel.bytes) + " of " + inert(e.dir, 200))
	}
	e.sent, err = send(ctx, e.r, e.box.ID, workDir, e.parcel)
	return err
}

// The life of a sandbox is a lease: one whose client has died must not stay for a day.
const (
	lease   = 30 * time.Minute
	renewal = 10 * time.Minute
)

// command runs the command until it has ended.
func (e *remoteRun) command(ctx context.Context, release func()) (frame.Exit, error) {
	running, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	if e.timeout > 0 {
		timer := time.AfterFunc(e.timeout, func() {
			e.expired.Store(true)
			cancel()
		})
		defer timer.Stop()
	} else {
		go e.renew(running) // it ends with the command
	}
	tty := e.flags.tty || e.app.hasTerminal(e.flags.noTTY)
	c := &remoteCommand{
		r: e.r, sandbox: e.box.ID, exec: api.Exec{Command: e.args, Dir: workDir, Environment: withTerm(e.env, tty), TTY: tty},
		stdin: e.app.stdin, stdout: e.app.stdout, stderr: e.app.stderr, signals: e.signals.all,
	}
	release() // from here on signals are the command's
	if e.signals.stopped != 0 {
		return frame.Exit{Signal: int(e.signals.stopped)}, nil
	}
	c.attached = e.say.attach
	exit, err := c.run(running)
	e.say.attach(nil)
	if e.expired.Load() {
		return frame.Exit{}, nil
	}
	return exit, err
}

// renew keeps the sandbox from ending while the command runs. What cannot be renewed ends when its policy says.
func (e *remoteRun) renew(ctx context.Context) {
	tick := time.NewTicker(renewal)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			_, _ = e.r.ExtendSandbox(ctx, e.box.ID, int64(lease/time.Second)) // the next one tries again
		}
	}
}

// takeBack brings the folder back and collects what changed. After the first signal it says what goes on, after the second it gives up.
func (e *remoteRun) takeBack(ctx context.Context, failed error) error {
	if e.dir == "" {
		return nil
	}
	if failed != nil && fault.KindOf(failed) == fault.NotFound {
		return failed // the sandbox is gone
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	released := make(chan struct{})
	defer close(released)
	go func() { // ends with this function
		for n := 0; ; n++ {
			select {
			case <-released:
				return
			case <-e.signals.all:
			}
			if n > 0 {
				cancel()
				return
			}
			e.say.note("the command has ended, its changes are being taken back; once more gives them up")
		}
	}()
	err := e.collect(ctx)
	if ctx.Err() != nil {
		err = fault.New(fault.Conflict, "given up")
	}
	return err
}

func (e *remoteRun) collect(ctx context.Context) error {
	run := ident.Run(e.box.ID)
	upper := filepath.Join(e.store.Dir(run), "returned")
	defer os.RemoveAll(upper)
	if err := os.Mkdir(upper, 0o700); err != nil {
		return fmt.Errorf("make a place for the folder: %w", err)
	}
	body, err := e.r.ReadFile(ctx, e.box.ID, workDir, client.Tar)
	if err != nil {
		return err
	}
	defer body.Close()
	if _, err := receive(ctx, body, upper, e.sent); err != nil {
		return err
	}
	tree, err := os.Open(upper)
	if err != nil {
		return err
	}
	defer tree.Close() // opened for reading
	e.summary, err = workspace.Collect(ctx, workspace.CollectOptions{
		Upper: tree, Lower: e.dir, Dest: e.store.Changes(run), Started: e.sending,
		IDShift: uint32(os.Geteuid()) + 1, // no owner comes back: all is ours, which stands for none that the run chose
	})
	return err
}

// abandon ends what was begun.
func (e *remoteRun) abandon(ctx context.Context, err error) {
	e.stop(ctx, "the run was given up before its command began")
	if e.watch != nil {
		e.watch.end()
	}
	if e.live != nil {
		_ = e.live.Finish(sandbox.End{Finished: time.Now(), How: "not started: " + fault.Public(err), ExitCode: exitOurs}) // the error itself is told
		_ = e.live.Close()                                                                                                 // likewise
	}
}

// stopWithin bounds how long a sandbox's end is waited for.
const stopWithin = 30 * time.Second

// stop ends the sandbox and waits until the server says that it is gone.
func (e *remoteRun) stop(ctx context.Context, reason string) {
	if e.box.ID == "" {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopWithin)
	defer cancel()
	box, err := e.r.StopSandbox(ctx, e.box.ID, reason)
	for err == nil && box.State.Live() {
		e.box = box
		select {
		case <-time.After(200 * time.Millisecond):
			box, err = e.r.Sandbox(ctx, e.box.ID)
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	switch {
	case err == nil:
		e.box = box
	case fault.KindOf(err) == fault.Conflict || fault.KindOf(err) == fault.NotFound: // it has ended by itself
		if box, err := e.r.Sandbox(ctx, e.box.ID); err == nil {
			e.box = box
		}
	default:
		e.say.trouble(explain(e.r.URL, err), "sandbox "+inert(e.box.ID, 40)+" may still run; it ends by itself within "+lease.String()+", or by: cofferdam stop "+inert(e.box.ID, 40))
	}
}

// conclude ends the sandbox, writes how the run ended, and tells.
func (e *remoteRun) conclude(ctx context.Context, exit frame.Exit, err, taken error) (int, error) {
	e.stop(ctx, "the command has ended")
	e.watch.end()
	code, how := e.outcome(exit, err)
	s := summary{
		Run: e.box.ID, How: how, ExitCode: code, Seconds: time.Since(e.began).Seconds(), Allowed: e.box.Usage.Allowed, Denied: e.box.Usage.Denied, Destinations: e.watch.groups(),
		BytesIn: e.box.Usage.BytesIn, BytesOut: e.box.Usage.BytesOut, Changed: e.summary.Changed(), Skipped: e.summary.Skipped, Weaker: e.box.Weaker, Workspace: e.dir,
	}
	for _, p := range e.box.Problems {
		s.Problems = append(s.Problems, inert(p, 300))
	}
	if taken != nil {
		s.Problems = append(s.Problems, "the changes could not be taken back: "+inert(fault.Public(taken), 300))
	}
	if s.Denied > 0 && s.Destinations == 0 {
		s.Destinations = 1
	}
	if e.dir != "" {
		s.Mode = policy.Overlay.String()
	}
	e.say.summary(s)
	recordErr := e.finish(how, code, s, taken)
	if err != nil {
		return 0, errors.Join(err, recordErr)
	}
	if exit.Error != "" {
		e.say.trouble(errors.New(inert(exit.Error, 400)), "a sandbox of the server sees the server's programs, not this machine's")
	}
	return code, recordErr
}

// finish writes the end into the run's record.
func (e *remoteRun) finish(how string, code int, s summary, taken error) error {
	if e.live == nil {
		return nil
	}
	u := e.box.Usage
	end := sandbox.End{
		Finished: time.Now(), How: how, ExitCode: code, Weaker: e.box.Weaker, Problems: s.Problems, Changed: s.Changed, Collected: taken == nil,
		Usage: sandbox.Usage{Connections: u.Connections, Allowed: u.Allowed, Denied: u.Denied, In: u.BytesIn, Out: u.BytesOut},
	}
	for _, what := range e.box.Erased {
		end.Erased = append(end.Erased, inert(what, 200))
	}
	return errors.Join(e.live.Finish(end), e.live.Close())
}

// outcome is the exit code and words.
func (e *remoteRun) outcome(exit frame.Exit, err error) (int, string) {
	switch {
	case e.expired.Load():
		return exitTimeout, "timeout after " + e.timeout.String()
	case err != nil:
		return exitOurs, "lost: " + inert(fault.Public(err), 200)
	case exit.Error != "" && exit.NotFound:
		return exitNotFound, "command not found"
	case exit.Error != "":
		return exitNotExec, "command cannot be executed"
	case exit.Signal != 0:
		return 128 + exit.Signal, fmt.Sprintf("signal %d", exit.Signal)
	}
	return exit.Code, fmt.Sprintf("exit %d", exit.Code)
}

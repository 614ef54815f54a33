package main

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/cofferdam/cofferdam/internal/audit"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/frame"
	"github.com/cofferdam/cofferdam/internal/gateway"
	"github.com/cofferdam/cofferdam/internal/ident"
	"github.com/cofferdam/cofferdam/internal/policy"
	"github.com/cofferdam/cofferdam/internal/pool"
	"github.com/cofferdam/cofferdam/internal/sandbox"
	"github.com/cofferdam/cofferdam/internal/supervisor/call"
	"github.com/cofferdam/cofferdam/internal/terminal"
	"github.com/cofferdam/cofferdam/internal/upstream"
)

// execution is one sandbox, from settled flags to the exit code. The steps of "cofferdam run" are in run, in order; those of "cofferdam keep" in keeping.run.
type execution struct {
	app     *app
	flags   runFlags
	settled settled
	args    []string
	began   time.Time
	// principal, tenant and agent say for the record who asked for a sandbox that a service has; empty: the person at the terminal.
	principal, tenant, agent string

	id        ident.Run
	uidBase   uint32
	store     *sandbox.Store
	live      *sandbox.Live
	log       *audit.Log
	client    *call.Client
	claimed   *pool.Claimed // the sandbox that was taken from a pool; nil if this run's supervisor is its own
	created   call.Created
	token     *terminal.Token
	boot      string
	trust     bool // programs inside trust the gateway's certificate authority
	tty       bool
	ttyFile   *os.File // for questions
	always    *os.File // the policy file, for answers meant for good
	answers   answers
	upstream  *upstream.Dialer
	lending   lending
	keepsake  keepsake
	root      root
	git       gitProxy
	say       *notifier
	gateway   *gateway.Gateway
	session   *terminal.Session
	control   chan net.Conn // the runner's call
	called    atomic.Bool   // the control address was called
	over      chan struct{} // closed when the command has ended
	ended     call.Ended
	bounds    call.Limits // as the supervisor got them
	output    outputMeter
	asked     bool                    // the supervisor was asked for a sandbox
	confirmed bool                    // the supervisor said that nothing of the sandbox is left, or was never made
	outside   string                  // where the command lies on this machine, for a hint
	killed    atomic.Pointer[string]  // why we ended it ourselves
	hurry     context.CancelCauseFunc // ends the session without waiting for readers of its output
	freezes   freezes                 // questions to the supervisor whether the sandbox is paused
	signals   signals
}

// run makes the sandbox, joins it to the person, and returns the exit code once nothing of it is left.
func (e *execution) run(ctx context.Context) (int, error) {
	defer e.signals.catch()()
	watched, release := e.signals.untilCommand(ctx)
	defer release()
	e.say = newNotifier(e.app.stderr, e.flags.json, e.flags.quiet)
	e.say.ceiling = e.settled.ceiling
	for _, note := range e.settled.notes {
		e.say.note(note)
	}
	e.id, e.uidBase = ident.NewRun(), pickUIDBase()
	e.control, e.over = make(chan net.Conn, 1), make(chan struct{})
	defer e.close()
	e.claim(watched)
	defer e.letGo()
	err := e.open(watched)
	var listeners gateway.Listeners
	if err == nil {
		listeners, err = e.prepare(watched)
	}
	if err != nil {
		release()
		if e.signals.stopped != 0 {
			err = fault.New(fault.Conflict, "interrupted before the command began")
		}
		e.abandon(err)
		if e.signals.stopped != 0 {
			return 128 + int(e.signals.stopped), nil
		}
		return 0, err
	}
	settle := func() {}
	exit, err := e.serve(ctx, listeners, func(serving context.Context) (frame.Exit, error) {
		attached, hurry := context.WithCancelCause(context.WithoutCancel(ctx))
		defer hurry(nil)
		e.hurry = hurry
		exit, err := e.attach(watched, attached, serving, release)
		e.decide(exit, err)
		settle = e.whileEnding()
		return exit, err
	})
	settle()
	return e.conclude(ctx, exit, err)
}

// open does everything that needs files, before the process gives up its rights: records, audit log, terminal, supervisor.
func (e *execution) open(ctx context.Context) (err error) {
	if err := e.openRecord(); err != nil {
		return err
	}
	if err := e.openSupervisor(ctx); err != nil {
		return err
	}
	if err := e.openTerminal(); err != nil {
		return err
	}
	if err := e.openUpstream(ctx); err != nil {
		return err
	}
	e.outside, _ = exec.LookPath(e.args[0]) // only for a hint
	if e.flags.ask && e.flags.policy != "" {
		if e.always, err = os.OpenFile(e.flags.policy, os.O_RDWR, 0); err != nil {
			e.say.note("answers cannot be kept: " + err.Error())
		}
	}
	return e.recordStart(ctx)
}

// openRecord begins the run's record and marks the run live.
func (e *execution) openRecord() (err error) {
	if e.store, err = sandbox.OpenStore(e.app.state); err != nil {
		return err
	}
	e.live, err = e.store.Begin(e.record())
	return err
}

// openSupervisor starts the supervisor, and opens the audit log.
func (e *execution) openSupervisor(ctx context.Context) error {
	program, err := beside("cofferdam-supervisor")
	if err != nil {
		return err
	}
	if e.claimed != nil {
		err = e.adopt()
	} else {
		e.client, err = call.Launch(program, e.live.Lock, e.app.stderr) // it starts while the rest is opened
	}
	if err != nil {
		return err
	}
	if err := e.app.bury(ctx, e.store); err != nil {
		e.say.note("cannot clean up after an earlier run: " + err.Error())
	}
	e.log, err = audit.Open(e.app.auditDir())
	return err
}

// openUpstream opens what the gateway needs beyond the sandbox.
func (e *execution) openUpstream(ctx context.Context) error {
	e.upstream = upstream.New(upstream.Config{Resolver: e.settled.resolver})
	if err := e.openCredentials(ctx); err != nil {
		return err
	}
	return e.openGit()
}

// openTerminal decides between terminal and pipes and opens what questions need.
func (e *execution) openTerminal() error {
	if e.flags.tty && !isTerminal(e.app.stdin) {
		return fault.New(fault.Invalid, "--tty: standard input is not a terminal").WithHint("leave out --tty")
	}
	e.tty = e.flags.tty || (!e.flags.noTTY && isTerminal(e.app.stdin) && isTerminal(e.app.stdout) && isTerminal(e.app.stderr))
	if !e.flags.ask {
		return nil
	}
	if f, err := os.OpenFile("/dev/tty", os.O_RDWR|syscall.O_NOCTTY, 0); err == nil {
		e.ttyFile = f
	} else if !e.tty {
		e.say.note("--ask: there is no terminal to ask at; what no rule names is refused")
	}
	return nil
}

// pickUIDBase chooses 65536 host ids that neither users (below 2^16 or in /etc/subuid, by convention below 0x70000000, or SSSD's below 0x7738a1c0) nor, most likely, another sandbox has.
// Two sandboxes that share a range are still apart: they share only per-user counters of the kernel.
func pickUIDBase() uint32 {
	const first, slots = 0x78000000, 0x800
	return first + rand.Uint32N(slots)<<16
}

// beside finds a program of ours beside this one.
func beside(name string) (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find %s: %w", name, err)
	}
	path := filepath.Join(filepath.Dir(self), name)
	if _, err := os.Stat(path); err != nil {
		return "", fault.New(fault.Unsupported, "%s is missing", name).WithHint("install it beside %s", self).Because(err)
	}
	return path, nil
}

// prepare makes the sandbox of "cofferdam run".
func (e *execution) prepare(ctx context.Context) (gateway.Listeners, error) {
	var text string
	e.token, text = terminal.NewToken()
	e.boot = bootLine(text)
	spec, err := e.spec()
	if err != nil {
		return gateway.Listeners{}, err
	}
	return e.create(ctx, spec, e.gatewayConfig(), e.settled.policy.InspectsAny())
}

// create asks the supervisor for the sandbox and takes its sockets. trust says that the sandbox is to trust the gateway's certificate authority.
func (e *execution) create(ctx context.Context, spec call.Create, config gateway.Config, trust bool) (gateway.Listeners, error) {
	var err error
	e.trust = trust
	stop := context.AfterFunc(ctx, func() { _ = e.client.Tell(call.Request{Kill: &call.Kill{Reason: "interrupted"}}) }) // it is being made; the reply tells
	defer stop()
	if trust || e.settled.policy.ServesGit() {
		if config.Roots, err = x509.SystemCertPool(); err != nil { // read now: the confined process may open no file
			return gateway.Listeners{}, fault.New(fault.Unavailable, "cannot read this machine's certificate authorities").Because(err)
		}
	}
	if e.gateway, err = gateway.New(config); err != nil {
		return gateway.Listeners{}, err
	}
	if trust {
		if spec.Trust, err = e.gateway.CACertificate(); err != nil {
			return gateway.Listeners{}, err
		}
	}
	e.asked = true
	if err := e.client.Tell(call.Request{Create: &spec}); err != nil {
		return gateway.Listeners{}, err
	}
	// While the supervisor builds, this process gives up its rights: nothing of the sandbox has been read yet.
	if err := e.confine(); err != nil {
		return gateway.Listeners{}, err
	}
	reply, files, err := e.client.Next()
	if err != nil {
		e.confirmed = !errors.Is(err, call.ErrGone)
		return gateway.Listeners{}, err
	}
	if reply.Created == nil || len(files) != planted {
		return gateway.Listeners{}, fault.New(fault.Internal, "the supervisor answered with %d sockets", len(files))
	}
	e.created = *reply.Created
	if e.settled.policy.Isolation() == policy.VMEmulated {
		e.say.note("level vm-emulated: " + strings.Join(e.created.Weaker, "; "))
	}
	if len(e.created.Weaker) > 0 {
		if err := e.live.Label(e.created.Weaker); err != nil {
			return gateway.Listeners{}, err
		}
	}
	l, err := listenersFrom(files)
	if err == nil && spec.Level != policy.Container.String() {
		err = outlastPause(l.TCP)
	}
	return l, err
}

// bootLine is what the runner reads first: where its owner is, and its one-time token.
func bootLine(token string) string {
	line, _ := json.Marshal(frame.Boot{Control: controlAddress, Token: token}) // strings always encode
	return string(line)
}

// controlAddress is where the runner finds its owner: the gateway, port 1.
const controlAddress = "198.18.0.1:1"

// spec is the sandbox in the supervisor's terms.
func (e *execution) spec() (call.Create, error) {
	p := e.settled.policy
	spec := call.Create{
		Run: e.id, Level: p.Isolation().String(), Platform: e.platform(), Hostname: "cofferdam", Networks: p.Networks(), Everything: p.AsksRaw(), Boot: e.boot,
		Changes: e.store.Changes(e.id), UIDBase: e.uidBase, Unprotected: p.Workspace().Unprotected,
		BestEffort: e.flags.bestEffort,
	}
	if err := e.limit(&spec); err != nil {
		return spec, err
	}
	if err := e.addRoot(&spec); err != nil {
		return spec, err
	}
	for _, m := range p.Mounts() {
		if e.keepsake.from != nil {
			break // it has those of the snapshot
		}
		spec.Mounts = append(spec.Mounts, call.Mount{Source: m.Source, Target: m.Target, Write: m.Mode == policy.ReadWrite})
	}
	if err := e.addWorkspace(&spec); err != nil {
		return spec, err
	}
	return spec, e.addSnapshot(&spec)
}

// serve runs the gateway, and live beside it, until nothing of the sandbox is left. live returns when the command has ended; serving ends with the sandbox.
func (e *execution) serve(ctx context.Context, l gateway.Listeners, live func(serving context.Context) (frame.Exit, error)) (frame.Exit, error) {
	serving, cancel := context.WithCancel(context.WithoutCancel(ctx))
	group, serving := errgroup.WithContext(serving)
	group.Go(func() error { return e.gateway.Serve(serving, l) })
	group.Go(func() error { return e.awaitEnd(cancel) })
	exit, err := live(serving)
	if err != nil && e.signals.stopped == 0 {
		e.kill("killed: " + fault.Public(err))
	}
	if waitErr := group.Wait(); waitErr != nil && !errors.Is(waitErr, context.Canceled) && err == nil {
		err = waitErr
	}
	return exit, err
}

// awaitEnd waits until the supervisor says that nothing is left, which also ends the gateway.
func (e *execution) awaitEnd(cancel func()) error {
	defer cancel()
	reply, err := e.freezes.hear(e.client)
	if err != nil {
		return err
	}
	if reply.Ended == nil {
		return fault.New(fault.Internal, "the supervisor sent an unexpected reply")
	}
	e.ended, e.confirmed = *reply.Ended, true
	e.client.HangUp() // it leaves while the end is recorded
	return nil
}

// attach waits for the runner and stays with the command until it ends.
//
// watched ends when the person interrupts the start, attached when a killed command's output must not be waited for, serving when the sandbox is gone.
func (e *execution) attach(watched, attached, serving context.Context, release func()) (frame.Exit, error) {
	defer e.limitTime()()
	defer close(e.over)
	select {
	case conn := <-e.control:
		session, err := terminal.Attach(watched, conn, e.terminalOptions())
		release() // from here on signals are the command's
		if e.signals.stopped != 0 {
			if err == nil {
				session.Close()
			}
			return e.interrupted()
		}
		if err != nil {
			return frame.Exit{}, err
		}
		e.session = session
		e.say.attach(session)
		living, cancel := context.WithCancel(attached)
		var watching sync.WaitGroup
		watching.Go(func() { e.watch(living, session) })
		defer watching.Wait()
		defer cancel()
		return session.Run(attached)
	case <-watched.Done():
		release()
		return e.interrupted()
	case <-serving.Done():
		release()
		if e.signals.stopped != 0 { // which is why it ended
			return e.interrupted()
		}
		return frame.Exit{}, fault.New(fault.Unavailable, "the sandbox ended before the command was started")
	case <-time.After(startPatience):
		return frame.Exit{}, fault.New(fault.Unavailable, "the runner did not answer within %v", startPatience)
	}
}

// interrupted ends a sandbox whose command has not begun.
func (e *execution) interrupted() (frame.Exit, error) {
	e.kill("interrupted")
	return frame.Exit{Signal: int(e.signals.stopped)}, nil
}

// startPatience is how long the runner may take to call: it does in a few milliseconds, on a machine under heavy load in a second.
const startPatience = 30 * time.Second

// limitTime ends the run when its wall time is over. The returned function stops the clock.
func (e *execution) limitTime() func() bool {
	limit := e.settled.asked.Timeout
	if limit == 0 {
		return func() bool { return true }
	}
	return time.AfterFunc(limit, func() { e.kill("timeout after " + limit.String()) }).Stop
}

// why returns why we ended the sandbox ourselves, or nothing.
func (e *execution) why() string {
	if reason := e.killed.Load(); reason != nil {
		return *reason
	}
	return ""
}

// outputPatience is how long output of a killed command may take to be read.
const outputPatience = 2 * time.Second

// kill ends the sandbox. The first reason counts.
func (e *execution) kill(reason string) {
	e.killed.CompareAndSwap(nil, &reason)
	if e.hurry != nil {
		// What the command has written is still passed on, unless nobody reads it.
		time.AfterFunc(outputPatience, func() { e.hurry(errors.New(reason)) })
	}
	_ = e.client.Tell(call.Request{Kill: &call.Kill{Reason: reason}}) // a supervisor that is gone has ended it already
	time.AfterFunc(killPatience, e.client.HangUp)                     // a supervisor that does not answer is not waited for; the next run reaps
}

// killPatience is how long the supervisor may take to confirm a killed sandbox's end, the collection of its changes included.
const killPatience = 15 * time.Minute

func (e *execution) terminalOptions() terminal.Options {
	return terminal.Options{
		Token: e.token, Start: e.start(), Stdin: e.app.stdin, Stdout: e.app.stdout, Stderr: e.app.stderr, TTYFile: e.ttyFile, Signals: e.signals.all,
		Kill: func() { e.kill("interrupted twice") }, Take: e.output.take,
	}
}

func (e *execution) gatewayConfig() gateway.Config {
	c := gateway.Config{
		Run: e.id, Policy: e.settled.policy, Recorder: e.log, Upstream: e.upstream, Placeholders: e.lending.placeholders,
		ProxyToken: e.git.token, Scratch: e.git.scratch,
		Owner:  func(ctx context.Context, q frame.Query) frame.Owner { return e.owner(ctx, q) },
		Denied: func(d gateway.Denial) { e.say.denied(d) },
		Control: func(conn net.Conn) bool {
			if !e.called.CompareAndSwap(false, true) {
				return false // the runner calls once, before anything else runs inside
			}
			e.control <- conn
			<-e.over // the gateway closes the connection when this returns
			return true
		},
		Limits: gateway.Limits{Connections: int(e.settled.asked.OrDefaults().Connections) + 1, Bandwidth: e.settled.asked.Bandwidth}, // one connection is the runner's
	}
	if e.lending.lender != nil {
		c.Lend = e.lending.lend
	}
	if e.flags.ask {
		c.Ask = e.ask
	}
	return c
}

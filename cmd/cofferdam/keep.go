package main

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/gateway"
	"github.com/cofferdam/cofferdam/internal/keeper"
	"github.com/cofferdam/cofferdam/internal/terminal"
)

// newKeepCommand is "cofferdam keep", by which the service has a sandbox kept. People use run.
func (a *app) newKeepCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "keep",
		Short:  "Keep one sandbox for the service: what to keep is read from standard input",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE:   func(cmd *cobra.Command, _ []string) error { return a.keep(cmd.Context()) },
	}
}

// keep makes the sandbox, says so in one line, and stays with it until nothing of it is left.
func (a *app) keep(ctx context.Context) error {
	k := &keeping{ready: a.stdout}
	spec, err := keeper.ParseSpec(a.stdin)
	if err == nil {
		err = k.settle(a, spec)
	}
	if err == nil {
		err = k.run(ctx)
	}
	if err != nil && k.tell(keeper.Failed(err)) {
		return status(exitProblem)
	}
	if err != nil {
		k.say.trouble(err, fault.HintOf(err)) // nobody listens any more but the log
		return status(exitProblem)
	}
	return nil
}

// keeping is a sandbox that is kept for the service: an execution without a person. Its steps are in run, in order.
type keeping struct {
	*execution
	spec     keeper.Spec
	file     *logFile
	null     *os.File
	output   *keeper.OutputLog // of the main command; nil without one
	listener *net.UnixListener
	server   *keeper.Server
	board    keeper.Board
	callers  callers
	first    *expected   // the runner's first call
	made     atomic.Bool // the supervisor has made it
	held     atomic.Pointer[terminal.Held]

	mu       sync.Mutex
	ready    io.Writer // nil once the one line was said
	plan     plan
	turns    *time.Timer // nil while nothing changes by itself
	deadline time.Time
	timer    *time.Timer
	ended    bool // the main command has ended
	asking   map[*asking]struct{}
}

// tell says the one line that the service waits for, and reports whether it was not said before.
func (k *keeping) tell(r keeper.Ready) bool {
	k.mu.Lock()
	to := k.ready
	k.ready = nil
	k.mu.Unlock()
	if to == nil {
		return false
	}
	line, _ := json.Marshal(r)          // our own types always encode
	_, _ = to.Write(append(line, '\n')) // whoever does not wait for it finds the sandbox by its socket
	return true
}

// unsaid says whether the one line was not said yet.
func (k *keeping) unsaid() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.ready != nil
}

// settle puts together what is to be kept.
func (k *keeping) settle(a *app, spec keeper.Spec) error {
	own := *a
	own.stdin, own.stderr, own.secrets = nil, io.Discard, spec.Secrets
	k.spec = spec
	k.execution = &execution{
		app: &own, args: spec.Command, tty: spec.TTY, began: time.Now(), id: spec.Run, principal: cmp.Or(spec.Principal, "system"), tenant: spec.Tenant, agent: spec.Agent,
		uidBase: pickUIDBase(),
	}
	k.say = newNotifier(io.Discard, false, true)
	s, err := settleKept(spec)
	if err != nil {
		return err
	}
	k.settled = s
	if err := k.openImage(); err != nil {
		return err
	}
	if k.plan, err = parsePlan(spec, spec.Policy, spec.Then, s.mode); err != nil {
		return err
	}
	k.deadline = spec.Deadline
	if limit := s.asked.Timeout; limit > 0 {
		if end := k.began.Add(limit); k.deadline.IsZero() || end.Before(k.deadline) {
			k.deadline = end
		}
	}
	return nil
}

func hashOf(document string) string {
	sum := sha256.Sum256([]byte(document))
	return hex.EncodeToString(sum[:])
}

// run is the life of the sandbox. It returns once nothing of it is left.
func (k *keeping) run(ctx context.Context) error {
	if insideSandbox() {
		return fault.New(fault.Unsupported, "already inside a sandbox: one cannot be made in another")
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer k.catch(cancel)()
	defer k.shut()
	defer k.letGo()
	k.claim(ctx)
	err := k.open(ctx)
	var listeners gateway.Listeners
	if err == nil {
		listeners, err = k.prepare(ctx)
	}
	if err != nil {
		k.abandon(err)
		return err
	}
	serving, end := context.WithCancel(context.WithoutCancel(ctx))
	served := make(chan error, 1)
	go func() {
		err := k.server.Serve(serving, k.listener)
		if err != nil { // a sandbox that nobody can stop must not go on
			k.kill("killed: the keeper's socket is lost")
		}
		served <- err
	}()
	k.made.Store(true)
	if ctx.Err() != nil { // it was told to end in this moment
		k.kill(toldToEnd)
	}
	exit, ended := k.serve(ctx, listeners, k.hold)
	_, err = k.conclude(ctx, exit, ended)
	k.board.Close()
	end()
	if k.unsaid() { // it never ran
		err = cmp.Or(err, ended)
	}
	return errors.Join(err, <-served)
}

// catch has the sandbox end in order when the keeper is told to. It ignores what ends with a terminal or a session that it does not belong to.
func (k *keeping) catch(cancel func()) (giveBack func()) {
	_, _ = unix.Setsid() // fails where the launcher did so already
	signal.Ignore(syscall.SIGHUP, syscall.SIGPIPE)
	told := make(chan os.Signal, 1)
	signal.Notify(told, syscall.SIGTERM, syscall.SIGINT)
	done := make(chan struct{})
	go func() { // ends with run
		select {
		case <-told:
			if cancel(); k.made.Load() { // else it is being made, which ends with ctx
				k.kill(toldToEnd)
			}
		case <-done:
		}
	}()
	return func() {
		signal.Stop(told)
		close(done)
	}
}

// toldToEnd is why a sandbox ended whose keeper got a signal.
const toldToEnd = "stopped: the keeper was told to end"

// open does everything that needs files, before the process gives up its rights.
func (k *keeping) open(ctx context.Context) error {
	if err := k.openRecord(); err != nil {
		return err
	}
	dir := k.store.Dir(k.id)
	var err error
	if k.file, err = openLog(filepath.Join(dir, "keeper.log")); err != nil {
		return err
	}
	k.say = newNotifier(k.file, false, true)
	if k.null, err = os.OpenFile(os.DevNull, os.O_RDWR, 0); err != nil {
		return err
	}
	k.app.stderr = k.file.file // the supervisor's words: a pipe would break when this process ends before it
	if err := k.openSupervisor(ctx); err != nil {
		return err
	}
	if err := k.openUpstream(ctx); err != nil {
		return err
	}
	if len(k.args) > 0 {
		if k.output, err = keeper.OpenOutput(dir); err != nil {
			return err
		}
	}
	k.server = keeper.NewServer(k, &k.board)
	if k.listener, err = keeper.Listen(k.app.state, k.id); err != nil {
		return err
	}
	return k.recordStart(ctx)
}

// prepare makes the sandbox. Every address reaches the gateway, and every program inside trusts its authority, so that another policy can be put in force.
func (k *keeping) prepare(ctx context.Context) (gateway.Listeners, error) {
	var text []byte
	k.first, text = k.callers.expect()
	k.boot = bootLine(string(text))
	spec, err := k.execution.spec()
	if err != nil {
		return gateway.Listeners{}, err
	}
	spec.Everything = true
	return k.create(ctx, spec, k.gatewayConfig(), true)
}

// shut closes what run opened.
func (k *keeping) shut() {
	if k.listener != nil {
		_ = k.listener.Close() // it may be closed already
	}
	k.execution.close()
	if k.output != nil {
		if err := k.output.Close(); err != nil {
			k.say.trouble(err, "")
		}
	}
	// The log stays open: the end of run is still told there.
}

// detach lets go of the launcher's streams: errors go to the log from here on, those of a dying process too.
func (k *keeping) detach() {
	for fd, to := range map[int]*os.File{0: k.null, 1: k.null, 2: k.file.file} {
		if err := unix.Dup3(int(to.Fd()), fd, 0); err != nil {
			k.say.trouble(err, "")
		}
	}
}

// maxLog bounds what a keeper writes into its log.
const maxLog = 1 << 20

// logFile is a log that stops growing. It is safe for concurrent use.
type logFile struct {
	file *os.File
	left atomic.Int64
}

func openLog(path string) (*logFile, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	l := &logFile{file: f}
	l.left.Store(maxLog)
	return l, nil
}

// slog returns a logger that writes there.
func (l *logFile) slog() *slog.Logger {
	return slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: slog.LevelWarn}))
}

// Write adds to the log, or drops what is too much.
func (l *logFile) Write(p []byte) (int, error) {
	if l.left.Add(-int64(len(p))) < 0 {
		return len(p), nil
	}
	return l.file.Write(p)
}

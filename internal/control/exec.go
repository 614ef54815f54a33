package control

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/audit"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/frame"
	"github.com/cofferdam/cofferdam/internal/keeper"
	"github.com/cofferdam/cofferdam/internal/store"
)

// RunData is a command that a person or a program had executed in a sandbox. The object's parent is the sandbox, its state one of running, ended, lost.
type RunData struct {
	Agent    string    `json:"agent"`
	Command  []string  `json:"command"` // abridged
	TTY      bool      `json:"tty,omitempty"`
	By       string    `json:"by"`
	ExitCode *int      `json:"exit_code,omitempty"`
	Ended    time.Time `json:"ended,omitzero"`
}

// The states of a run.
const (
	runRunning = "running"
	runEnded   = "ended"
	runLost    = "lost" // the service or the sandbox ended before the command was seen to
)

func runs() store.Collection[RunData] { return store.Of[RunData]("run") }

// Process is a command that runs in a sandbox. Close must be called in the end.
type Process struct {
	*keeper.Process
	Run string // its identifier in Runs

	over func(*frame.Exit)
}

// Wait returns how it ended, once all output was read. An error means that the sandbox is gone.
func (p *Process) Wait() (frame.Exit, error) {
	exit, err := p.Process.Wait()
	if err == nil {
		p.over(&exit)
	}
	return exit, err
}

// Close ends the command if it still runs, and lets go.
func (p *Process) Close() error {
	err := p.Process.Close()
	p.over(nil)
	return err
}

// Exec starts a command in a sandbox.
func (s *Service) Exec(ctx context.Context, a Actor, id string, in api.Exec) (*Process, error) {
	if err := may(a, WriteSandboxes); err != nil {
		return nil, err
	}
	if in.Stdin != "" {
		return nil, fault.New(fault.Invalid, "stdin: it is for a command that runs as one request").WithHint("send it over the stream")
	}
	return s.exec(ctx, a, id, in)
}

// exec is what the two have in common; the caller has asked whether the actor may.
func (s *Service) exec(ctx context.Context, a Actor, id string, in api.Exec) (*Process, error) {
	if err := checkExec(in); err != nil {
		return nil, err
	}
	o, client, err := s.awake(ctx, a.Tenant, id)
	if err != nil {
		return nil, err
	}
	command := abridge(in.Command)
	if err := s.note(ctx, a, audit.Event{Kind: audit.CommandStarted, Run: roomOf(o).run(), Agent: o.Parent, Command: command}); err != nil {
		return nil, err
	}
	run, err := s.beginRun(ctx, o, RunData{Agent: o.Parent, Command: command, TTY: in.TTY, By: a.byline()})
	if err != nil {
		return nil, err
	}
	process, err := client.Exec(ctx, keeper.Exec{Command: in.Command, Dir: in.Dir, Env: environment(in.Environment), TTY: in.TTY, Rows: in.Rows, Cols: in.Cols})
	if err != nil {
		s.endRun(ctx, run, nil)
		return nil, err
	}
	over := sync.Once{}
	return &Process{Process: process, Run: run.ID, over: func(e *frame.Exit) { over.Do(func() { s.endRun(ctx, run, e) }) }}, nil
}

func checkExec(in api.Exec) error {
	if len(in.Command) == 0 {
		return fault.New(fault.Invalid, "command: there is none")
	}
	if in.Dir != "" {
		if _, err := insidePath(in.Dir); err != nil {
			return err
		}
	}
	return errors.Join(checkCommand(in.Command), checkEnvironment(in.Environment))
}

// abridge keeps of a command line what a list can show.
func abridge(args []string) []string {
	const most, longest = 32, 200
	var short []string
	for _, arg := range args[:min(len(args), most)] {
		short = append(short, frame.Inert(arg, longest))
	}
	return short
}

// beginRun notes that a command is about to run.
func (s *Service) beginRun(ctx context.Context, in store.Object[SandboxData], d RunData) (store.Object[RunData], error) {
	var o store.Object[RunData]
	err := s.DB.Within(ctx, func(tx *store.DB) (err error) {
		o, err = runs().Insert(ctx, tx, store.Object[RunData]{ID: store.NewID(), Tenant: in.Tenant, Parent: in.ID, State: runRunning, Data: d})
		if err != nil {
			return err
		}
		_, err = tx.Emit(ctx, runEvent(o, s.now()))
		return err
	})
	if err != nil {
		return o, fmt.Errorf("note a command: %w", err)
	}
	s.house.begun(o.ID)
	return o, nil
}

func runEvent(o store.Object[RunData], now time.Time) store.Event {
	return store.Event{Tenant: o.Tenant, Type: "run", Subject: o.ID, Agent: o.Data.Agent, State: o.State, Time: now}
}

// endRun notes a command's end: with how it ended, or without, as nobody waited for that.
func (s *Service) endRun(ctx context.Context, run store.Object[RunData], exit *frame.Exit) {
	ctx, stop := context.WithTimeout(context.WithoutCancel(ctx), afterwards)
	defer stop()
	defer s.house.over(run.ID)
	err := s.DB.Within(ctx, func(tx *store.DB) error {
		o, err := runs().Get(ctx, tx, run.Tenant, run.ID)
		if err != nil || o.State != runRunning {
			return err
		}
		o.State, o.Data.Ended = runLost, s.now()
		if exit != nil {
			code := exitCode(*exit)
			o.State, o.Data.ExitCode = runEnded, &code
		}
		if o, err = runs().Update(ctx, tx, o); err != nil {
			return err
		}
		_, err = tx.Emit(ctx, runEvent(o, s.now()))
		return err
	})
	if err != nil {
		s.Log.Error("note the end of a command", "run", run.ID, "error", err)
	}
}

// exitCode is an end as shells tell it.
func exitCode(e frame.Exit) int {
	switch {
	case e.Error != "" && e.NotFound:
		return 127
	case e.Error != "":
		return 126
	case e.Signal != 0:
		return 128 + e.Signal
	}
	return e.Code
}

// loseRuns notes, in the transaction in which a sandbox ends, that its commands have. The events are to be emitted in it.
func (s *Service) loseRuns(ctx context.Context, tx *store.DB, in room) ([]store.Event, error) {
	var events []store.Event
	err := every(ctx, tx, runs(), in.tenant, store.Filter{Parent: in.sandbox, States: []string{runRunning}}, func(o store.Object[RunData]) error {
		o.State, o.Data.Ended = runLost, s.now()
		o, err := runs().Update(ctx, tx, o)
		events = append(events, runEvent(o, s.now()))
		return err
	})
	return events, err
}

// loseAllRuns notes that commands which another process has started are over: their connections ended with it, and so did they.
func (s *Service) loseAllRuns(ctx context.Context) error {
	var list []store.Object[RunData]
	err := every(ctx, s.DB, runs(), store.AnyTenant, store.Filter{States: []string{runRunning}}, func(o store.Object[RunData]) error {
		if !s.house.knows(o.ID) {
			list = append(list, o)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("list commands: %w", err)
	}
	for _, o := range list {
		s.endRun(ctx, o, nil)
	}
	return nil
}

// Runs lists the commands that were executed.
func (s *Service) Runs(ctx context.Context, a Actor, sandbox string, p Page) (api.Page[api.Run], error) {
	var out api.Page[api.Run]
	if err := may(a, ReadSandboxes); err != nil {
		return out, err
	}
	f, err := p.filter()
	if err != nil {
		return out, err
	}
	if sandbox != "" {
		o, err := s.sandbox(ctx, a.Tenant, sandbox)
		if err != nil {
			return out, err
		}
		f.Parent = o.ID
	}
	return pageOf(ctx, s.DB, runs(), a.Tenant, f, showRun)
}

func showRun(o store.Object[RunData]) api.Run {
	return api.Run{
		ID: o.ID, Sandbox: o.Parent, Agent: o.Data.Agent, Command: o.Data.Command, TTY: o.Data.TTY, By: o.Data.By, State: o.State,
		ExitCode: o.Data.ExitCode, Started: o.Created, Ended: o.Data.Ended,
	}
}

const (
	// maxResult bounds each output of a command that runs as one request.
	maxResult = 1 << 20
	// maxStdin bounds what such a command is given to read.
	maxStdin = 1 << 20
)

// ExecWait runs a command as one request. It is ended when ctx ends.
func (s *Service) ExecWait(ctx context.Context, a Actor, id string, in api.Exec) (api.ExecResult, error) {
	if err := may(a, WriteSandboxes); err != nil {
		return api.ExecResult{}, err
	}
	if len(in.Stdin) > maxStdin {
		return api.ExecResult{}, fault.New(fault.Invalid, "stdin: more than %d bytes", maxStdin).WithHint("write a file into the sandbox, or use a stream")
	}
	p, err := s.exec(ctx, a, id, in)
	if err != nil {
		return api.ExecResult{}, err
	}
	defer p.Close()
	out := collect(ctx, p.Process, &errorReader{from: strings.NewReader(in.Stdin)}, maxResult)
	exit, err := p.Wait()
	if err != nil {
		return api.ExecResult{}, cmp.Or(context.Cause(ctx), err)
	}
	return api.ExecResult{
		ExitCode: exitCode(exit), Signal: exit.Signal, Error: inert(exit.Error), Stdout: strings.ToValidUTF8(out.stdout.String(), "\ufffd"),
		Stderr: strings.ToValidUTF8(out.stderr.String(), "\ufffd"), Truncated: out.stdout.cut || out.stderr.cut, Run: p.Run,
	}, nil
}

// outputs is what a command said.
type outputs struct{ stdout, stderr limited }

// limited keeps the first bytes that are written and forgets the rest, so that the command goes on.
type limited struct {
	text bytes.Buffer
	most int
	cut  bool
}

// String returns what was kept.
func (l *limited) String() string { return l.text.String() }

// Write keeps what fits.
func (l *limited) Write(p []byte) (int, error) {
	room := l.most - l.text.Len()
	if len(p) > room {
		l.cut = true
		l.text.Write(p[:room]) // never fails
		return len(p), nil
	}
	return l.text.Write(p)
}

// collect gives a command its input and reads what it says to the end. When ctx ends, or the source of the input fails, so does the command: it must not take
// what came for the whole.
func collect(ctx context.Context, p *keeper.Process, stdin *errorReader, most int) *outputs {
	stop := context.AfterFunc(ctx, func() { _ = p.Close() }) // Wait tells
	defer stop()
	out := &outputs{stdout: limited{most: most}, stderr: limited{most: most}}
	var wg sync.WaitGroup
	wg.Go(func() { _, _ = io.Copy(&out.stdout, p.Stdout()) }) // the end of the link ends it, and Wait tells
	wg.Go(func() { _, _ = io.Copy(&out.stderr, p.Stderr()) })
	// A command that does not read to the end has its reasons, and its exit status.
	_, _ = io.Copy(p.Stdin(), stdin)
	if stdin.err != nil {
		_ = p.Close()
	} else {
		_ = p.Stdin().Close()
	}
	wg.Wait()
	return out
}

// maxPath bounds paths inside, as Linux does.
const maxPath = 4096

// insidePath reads a path inside a sandbox. It is looked up there and nowhere else; that there is one way to write it helps whoever reads the record.
func insidePath(text string) (string, error) {
	if !path.IsAbs(text) || path.Clean(text) != text || len(text) > maxPath || strings.IndexByte(text, 0) >= 0 {
		return "", fault.New(fault.Invalid, "path: this is no clean absolute path").WithHint("write it from the root and without . and .., as in /work/notes.txt")
	}
	return text, nil
}

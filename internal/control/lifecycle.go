package control

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/ident"
	"github.com/cofferdam/cofferdam/internal/keeper"
	"github.com/cofferdam/cofferdam/internal/sandbox"
	"github.com/cofferdam/cofferdam/internal/store"
)

// ending is how a sandbox ended.
type ending struct {
	state    api.SandboxState
	how      string
	exit     *int
	finished time.Time
	weaker   []string
	erased   []string
	problems []string
	usage    api.Usage
}

const (
	// lockPause is how often the lock of a run is looked at that is about to end.
	lockPause = 50 * time.Millisecond
	// goneTime bounds how long a run may take to end once its keeper has.
	goneTime = time.Minute
	// gcTime bounds cleaning up after the dead.
	gcTime = 2 * time.Minute
)

// remains waits until nothing of a sandbox lives, cleans up after it where nobody else did, and returns how it ended. The keeper must be gone, or be about to go.
//
// Where there is no record of the run, the record's place is taken: a keeper that was started and comes late finds it so and does not begin. So whoever has
// called remains knows that the sandbox is not, and will not be.
func (s *Service) remains(ctx context.Context, in room) (ending, error) {
	records, err := sandbox.OpenStore(s.State)
	if err != nil {
		return ending{}, err
	}
	err = os.Mkdir(records.Dir(in.run()), 0o700)
	if err == nil {
		return ending{state: api.Failed, how: "it was never made: the service ended before that", finished: s.now()}, nil
	}
	if !errors.Is(err, fs.ErrExist) {
		return ending{}, fmt.Errorf("look for the record of run %s: %w", in.sandbox, err)
	}
	if err := awaitEnd(ctx, records, in); err != nil {
		return ending{}, err
	}
	r, err := records.Load(in.run())
	if fault.KindOf(err) == fault.NotFound { // it ended before its record was written: nothing was begun
		return ending{state: api.Failed, how: "it was never made", finished: s.now()}, nil
	}
	if err == nil && (r.State != sandbox.Ended || r.Unclean) {
		if err := s.gc(ctx); err != nil {
			return ending{}, err
		}
		r, err = records.Load(in.run())
	}
	if err != nil {
		return ending{}, fmt.Errorf("read how sandbox %s ended: %w", in.sandbox, err)
	}
	if r.State != sandbox.Ended {
		// As after a restore from a copy: nothing will ever say how it ended.
		return ending{state: api.Ended, how: "lost: nothing of it lives, and how it ended is not on record", finished: s.now()}, nil
	}
	return endingOf(r), nil
}

// dropTombstone removes what remains has put into the place of a record, and only that.
func (s *Service) dropTombstone(in room) {
	if records, err := sandbox.OpenStore(s.State); err == nil {
		_ = os.Remove(records.Dir(in.run())) // a directory that holds something stays
	}
}

// tombstoneAge is how long a tombstone stands: longer than a keeper that was started may take to begin.
const tombstoneAge = 10 * time.Minute

// sweepTombstones removes those of sandboxes that were given up long ago.
func (s *Service) sweepTombstones() error {
	dir := filepath.Join(s.State, "runs")
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list runs: %w", err)
	}
	for _, e := range entries {
		if _, err := ident.ParseRun(e.Name()); err != nil {
			continue
		}
		if info, err := e.Info(); err == nil && time.Since(info.ModTime()) > tombstoneAge {
			_ = os.Remove(filepath.Join(dir, e.Name())) // as above
		}
	}
	return nil
}

// awaitEnd returns when no process of a run is left.
func awaitEnd(ctx context.Context, records *sandbox.Store, in room) error {
	ctx, stop := context.WithTimeout(ctx, goneTime)
	defer stop()
	for records.IsLive(in.run()) {
		if !pause(ctx, lockPause) {
			return fmt.Errorf("wait for the end of sandbox %s: %w", in.sandbox, ctx.Err())
		}
	}
	return nil
}

func endingOf(r sandbox.Record) ending {
	e := ending{
		state: api.Ended, how: r.How, finished: r.Finished, weaker: r.Weaker, erased: r.Erased, problems: r.Problems,
		usage: api.Usage{Connections: r.Usage.Connections, Allowed: r.Usage.Allowed, Denied: r.Usage.Denied, BytesIn: r.Usage.In, BytesOut: r.Usage.Out},
	}
	if strings.HasPrefix(r.How, "not started: ") {
		e.state = api.Failed
		return e
	}
	code := r.ExitCode
	e.exit = &code
	return e
}

// gc has cofferdam clean up after every run whose processes died without a word: only a supervisor can, with which this program does not speak.
func (s *Service) gc(ctx context.Context) error {
	s.house.burying.Lock()
	defer s.house.burying.Unlock()
	ctx, stop := context.WithTimeout(ctx, gcTime)
	defer stop()
	cmd := exec.CommandContext(ctx, s.Launcher.Program, "gc")
	cmd.Env = []string{"COFFERDAM_STATE=" + s.State}
	for _, name := range []string{"PATH", "HOME", "LANG", "TZ"} { // there may be secrets of the service's own in its environment
		if value, ok := os.LookupEnv(name); ok {
			cmd.Env = append(cmd.Env, name+"="+value)
		}
	}
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("clean up after dead sandboxes: %w: %.1000s", err, out)
	}
	return nil
}

// conclude takes note of a sandbox's end: nothing of it lives any more. What only it had is free again, what it alone was given is erased.
// Until that is done the sandbox counts as alive, so whatever stops this process in between, it is done later.
func (s *Service) conclude(ctx context.Context, in room, e ending) error {
	o, err := sandboxes().Get(ctx, s.DB, in.tenant, in.sandbox)
	if err != nil {
		return fmt.Errorf("sandbox %s: %w", in.sandbox, err)
	}
	if !alive(o) {
		return nil
	}
	if o.Data.Workspace == "" {
		if err := removeTree(s.workDir(o)); err != nil {
			e.problems = append(e.problems, "the workspace could not be removed")
			s.Log.Error("remove a workspace", "sandbox", in.sandbox, "error", err)
		} else {
			e.erased = append(e.erased, "workspace")
		}
	}
	err = s.DB.Within(ctx, func(tx *store.DB) error {
		o, err := sandboxes().Get(ctx, tx, in.tenant, in.sandbox)
		if err != nil || !alive(o) {
			return err
		}
		o.Data.settle(e)
		o.State = string(e.state)
		if _, err := sandboxes().Update(ctx, tx, o); err != nil {
			return err
		}
		lost, err := s.loseRuns(ctx, tx, in)
		if err != nil {
			return err
		}
		if err := releaseWorkspace(ctx, tx, o, s.now()); err != nil {
			return err
		}
		if err := s.onGone(ctx, tx, in); err != nil {
			return err
		}
		_, err = tx.Emit(ctx, append(lost, in.event(e.state, s.now()))...)
		return err
	})
	if err != nil {
		return fmt.Errorf("note the end of sandbox %s: %w", in.sandbox, err)
	}
	s.noteSize(ctx, o) // nobody waits for the end until that is done
	return nil
}

// settle writes an end into a sandbox's data. What only mattered while it lived is dropped.
func (d *SandboxData) settle(e ending) {
	d.How, d.ExitCode, d.Ended, d.Erased, d.Problems = e.how, e.exit, e.finished.UTC(), e.erased, e.problems
	if len(e.weaker) > 0 {
		d.Weaker = e.weaker
	}
	if e.usage != (api.Usage{}) { // else it is what was noted last
		d.Usage = e.usage
	}
	if d.Reason != "" && !strings.Contains(d.How, d.Reason) { // it was killed, as it did not end by itself
		d.How = d.Reason + " (" + d.How + ")"
	}
	d.Policy, d.Stale, d.Paused = "", "", time.Time{}
}

// stopTime is how long a keeper may take to take note that it is to stop, and to put a policy in force.
const stopTime = 5 * time.Second

// stop tells a sandbox to end. One whose keeper does not listen is killed.
func (s *Service) stop(ctx context.Context, in room, reason string) error {
	err := s.markStopping(ctx, in, reason)
	// A store that does not answer does not keep a sandbox alive.
	s.house.giveUp(in.sandbox, fault.New(fault.Conflict, "%s", reason))
	return errors.Join(err, s.tellStop(ctx, in, reason))
}

// markStopping notes that a sandbox is to end, so that it does even if this process ends first.
func (s *Service) markStopping(ctx context.Context, in room, reason string) error {
	_, err := s.changeSandbox(ctx, in, func(o *store.Object[SandboxData]) bool {
		if o.State == string(api.Stopping) {
			return false
		}
		o.State, o.Data.Reason, o.Data.Stopping = string(api.Stopping), reason, s.now()
		return true
	})
	return err
}

func (s *Service) tellStop(ctx context.Context, in room, reason string) error {
	ctx, cancel := context.WithTimeout(ctx, stopTime)
	defer cancel()
	for {
		client, err := keeper.Dial(ctx, s.State, in.run())
		if err == nil {
			err = client.Stop(ctx, reason)
		}
		if err == nil || fault.KindOf(err) == fault.NotFound {
			return nil // whoever watches it sees its end
		}
		// One that is about to leave may hang up without an answer.
		if !pause(ctx, returnPause) {
			s.Log.Error("a keeper does not stop: it is killed", "sandbox", in.sandbox, "error", err)
			return s.kill(ctx, in)
		}
	}
}

// kill ends a keeper that does not do as it is told. Its sandbox dies with it.
func (s *Service) kill(ctx context.Context, in room) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTime)
	defer cancel()
	if err := keeper.Kill(ctx, s.State, in.run()); err != nil && fault.KindOf(err) != fault.NotFound {
		return err
	}
	return nil
}

// endTime is how long a sandbox may take to end once it was told to, before its keeper is killed. It is more than a supervisor takes at most.
const endTime = 45 * time.Second

// hurry kills the keepers of sandboxes that were told to end long ago.
func (s *Service) hurry(ctx context.Context) error {
	return every(ctx, s.DB, sandboxes(), store.AnyTenant, store.Filter{States: []string{string(api.Stopping)}}, func(o store.Object[SandboxData]) error {
		if s.now().Sub(o.Data.Stopping) < endTime {
			return nil
		}
		return s.kill(ctx, roomOf(o))
	})
}

// stopAgent ends all sandboxes of an agent. Those that cannot be told so are in the error.
func (s *Service) stopAgent(ctx context.Context, tenant, agent, reason string) error {
	list, err := s.liveOf(ctx, tenant, agent)
	if err != nil {
		return err
	}
	return atOnce(list, func(in room) error { return s.stop(ctx, in, reason) })
}

// liveOf lists the live sandboxes of agents.
func (s *Service) liveOf(ctx context.Context, tenant string, agents ...string) ([]room, error) {
	var list []room
	for _, agent := range agents {
		err := every(ctx, s.DB, sandboxes(), tenant, store.Filter{Parent: agent, States: liveStates()}, func(o store.Object[SandboxData]) error {
			list = append(list, roomOf(o))
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("list live sandboxes: %w", err)
		}
	}
	return list, nil
}

// comes says whether a keeper has begun with a sandbox, so that it will listen or end.
func (s *Service) comes(in room) bool {
	records, err := sandbox.OpenStore(s.State)
	return err == nil && records.IsLive(in.run())
}

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/cofferdam/cofferdam/internal/ident"
	"github.com/cofferdam/cofferdam/internal/policy"
	"github.com/cofferdam/cofferdam/internal/pool"
	"github.com/cofferdam/cofferdam/internal/supervisor/call"
)

// hostname is every sandbox's.
const hostname = "cofferdam"

// warmBox is a supervisor with a sandbox that is nobody's.
type warmBox struct {
	client              *call.Client
	connection, process *os.File
	base                uint32
	done                chan struct{}
}

// warmUp starts a supervisor and has it prepare a sandbox.
func (a *app) warmUp(ctx context.Context, k pool.Key, disk string, name ident.Run, mark *os.File) (pool.Warm, error) {
	program, err := beside("cofferdam-supervisor")
	if err != nil {
		return nil, err
	}
	w := &warmBox{base: pickUIDBase(), done: make(chan struct{})}
	if w.client, err = call.Launch(program, mark, a.stderr); err != nil {
		return nil, err
	}
	limits, err := usualLimits()
	if err == nil {
		w.connection, w.process, err = w.client.Parts()
	}
	var reply call.Reply
	if err == nil {
		stop := context.AfterFunc(ctx, w.client.HangUp)
		reply, _, err = w.client.Ask(call.Request{Prepare: &call.Prepare{Name: name, Level: k.Level, Hostname: hostname, RootFS: k.RootFS, RootDisk: disk, Limits: limits, UIDBase: w.base}})
		stop()
	}
	if err == nil && reply.Prepared == nil {
		err = errors.New("the supervisor sent an unexpected reply")
	}
	if err != nil {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), closePatience)
		defer cancel()
		return nil, errors.Join(err, w.client.Close(closing))
	}
	go func() { // ends with the supervisor; what is left of one that was given away is taken off the list of processes
		_ = w.client.Wait() // how it left is in its own words
		close(w.done)
	}()
	return w, nil
}

// sandboxPrograms are the files beside this program by which sandboxes are made, whether they are there or not.
func sandboxPrograms() (paths []string) {
	self, err := os.Executable()
	if err != nil {
		return nil
	}
	for _, name := range []string{"cofferdam-supervisor", "cofferdam-runner", "runsc", "vm/about.json"} {
		paths = append(paths, filepath.Join(filepath.Dir(self), name))
	}
	return paths
}

// usualLimits are those of a run that asks for none.
func usualLimits() (call.Limits, error) {
	var spec call.Create
	err := new(execution).limit(&spec)
	return spec.Limits, err
}

func (w *warmBox) Parts() (connection, process *os.File) { return w.connection, w.process }
func (w *warmBox) UIDBase() uint32                       { return w.base }
func (w *warmBox) Done() <-chan struct{}                 { return w.done }

func (w *warmBox) Release() {
	w.client.HangUp()
	_ = w.process.Close() // only a hold
}

// End hangs up, on which the supervisor ends the sandbox and leaves.
func (w *warmBox) End(ctx context.Context) error {
	defer w.Release()
	w.client.HangUp()
	select {
	case <-w.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("a supervisor does not leave: %w", context.Cause(ctx))
	}
}

// reapWaiting has a supervisor remove what a sandbox left that nobody had claimed.
func (a *app) reapWaiting(name ident.Run) error {
	ctx, cancel := context.WithTimeout(context.Background(), closePatience)
	defer cancel()
	reply, err := a.consult(ctx, call.Request{Reap: &call.Reap{Run: name}})
	if err == nil && reply.Reaped != nil && len(reply.Reaped.Problems) > 0 {
		err = errors.New(strings.Join(reply.Reaped.Problems, "; "))
	}
	return err
}

// claim takes a sandbox from the person's pool, if there is one that could become what is wanted. Nothing is said of it: without one, it is started, and as strong.
func (e *execution) claim(ctx context.Context) {
	k := pool.Key{Level: e.settled.policy.Isolation().String(), RootFS: e.root.image.Tree}
	if e.flags.rootfs != "" {
		var err error
		if k.RootFS, err = filepath.Abs(e.flags.rootfs); err != nil {
			return
		}
	}
	if e.claimed == nil && e.keepsake.from == nil && e.keepsake.name == "" && e.ordinary() {
		if got, err := pool.Take(ctx, e.app.state, k, sandboxPrograms()...); err == nil {
			e.claimed, e.uidBase = got, got.UIDBase
		}
	}
}

// fewest is how many processes and threads a run must be allowed for a sandbox that was prepared: at most as many of ours have been in it at a time.
const fewest = 64

// ordinary says whether a sandbox that was prepared could become what is wanted. Only the supervisor knows for sure; this keeps those that wait from being wasted.
func (e *execution) ordinary() bool {
	usual, asked := policy.Resources{}.OrDefaults(), e.settled.asked.OrDefaults()
	for _, m := range e.settled.policy.Mounts() {
		if m.Mode == policy.ReadWrite {
			return false
		}
	}
	switch {
	case e.settled.workspace.dir != "" && e.settled.mode == policy.WorkspaceReadWrite, asked.Scratch != usual.Scratch, asked.OpenFiles != usual.OpenFiles:
		return false
	case e.platform() != "": // those that wait have systrap
		return false
	case asked.PIDs < fewest: // those by which it was prepared would count as too many of the run's
		return false
	case e.settled.policy.Isolation().HasOwnMachine(): // it is of one size, and its disk was made when it was prepared, which only of an image nobody changes
		return e.root.held != nil && asked.Memory == usual.Memory && asked.MilliCPUs == usual.MilliCPUs
	case e.settled.policy.Isolation() == policy.GVisor: // its kernel is told when it starts
		return asked.PIDs == usual.PIDs && asked.Disk == usual.Disk && asked.Memory == usual.Memory && asked.Files == usual.Files
	}
	return true
}

// letGo gives up a claimed sandbox that this run has not adopted.
func (e *execution) letGo() {
	if e.claimed != nil && e.client == nil {
		_ = e.claimed.Connection.Close() // which ends it
		_ = e.claimed.Process.Close()    // only a hold
	}
}

// adopt makes the claimed sandbox's supervisor this run's. Its mark is not needed any more: the run's record names it.
func (e *execution) adopt() (err error) {
	stderr, ok := e.app.stderr.(*os.File)
	if !ok {
		stderr = os.Stderr
	}
	e.client, err = call.Adopt(e.claimed.Connection, e.claimed.Process, e.live.Lock, stderr)
	if err == nil {
		err = os.Remove(pool.Mark(e.app.state, e.claimed.Name))
	}
	return err
}

// warmth says for the record whether the sandbox was ready before it was asked for, and if it had to be built all the same, which.
func (e *execution) warmth() string {
	switch {
	case e.claimed == nil:
		return ""
	case e.created.Warm:
		return "; from the pool"
	}
	return "; from the pool, built anew"
}

// Package supervisor (SANDBOX) is the privileged half: it makes and removes sandboxes for one caller at the other end of a Unix socket.
//
// It never reads a byte that a sandbox wrote to the network, holds no credential and opens no database. The socket's end means the sandbox's end.
package supervisor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"syscall"
	"time"

	"github.com/cofferdam/cofferdam/internal/cgroup"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/ident"
	"github.com/cofferdam/cofferdam/internal/isolation/container"
	"github.com/cofferdam/cofferdam/internal/supervisor/call"
	"github.com/cofferdam/cofferdam/internal/workspace"
)

// Server serves one connection.
type Server struct {
	Runner string // path of the runner's executable
}

// Serve answers one call, and returns when it is done with: for Create, when nothing of the sandbox is left.
//
// One call is all there is: by the time a sandbox runs, the caller is a process that reads what the sandbox sends, and whoever takes it over
// must find nothing here to ask for but the sandbox's end.
func (s *Server) Serve(ctx context.Context, conn *call.Conn) error {
	peer, err := conn.Peer()
	if err != nil {
		return fmt.Errorf("ask who calls: %w", err)
	}
	if int(peer.Uid) != os.Getuid() && peer.Uid != 0 {
		return fault.New(fault.Denied, "calls are taken from user %d only", os.Getuid())
	}
	r, err := receive(conn)
	switch {
	case hungUp(err):
		return nil
	case err != nil:
		return err
	case r.Create != nil:
		return s.sandbox(ctx, conn, *r.Create)
	case r.Reap != nil:
		reply := reap(*r.Reap)
		return conn.Send(call.Reply{Reaped: &reply})
	case r.Probe != nil:
		return conn.Send(call.Reply{Probed: &call.Probed{Features: probe()}})
	}
	return conn.Send(refuse(fault.New(fault.Invalid, "this call is not possible now")))
}

// receive takes one request. No request comes with files.
func receive(conn *call.Conn) (r call.Request, err error) {
	files, err := conn.Receive(&r)
	for _, f := range files {
		_ = f.Close() // never used
	}
	return r, err
}

// hungUp says whether the caller is gone, in order or not.
func hungUp(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// orders passes on why the caller wants the sandbox to end, until the connection ends. Closed means: the caller is gone.
func orders(conn *call.Conn) <-chan string {
	reasons := make(chan string, 1)
	go func() { // ends with the connection, which the caller of Serve closes
		defer close(reasons)
		for {
			r, err := receive(conn)
			if err != nil {
				return
			}
			if r.Kill == nil {
				continue // nothing else can be asked of a sandbox
			}
			select {
			case reasons <- r.Kill.Reason:
			default: // the first reason counts
			}
		}
	}()
	return reasons
}

// sandbox is the life of one sandbox. It returns an error only if the caller cannot be told.
func (s *Server) sandbox(ctx context.Context, conn *call.Conn, spec call.Create) error {
	kill := orders(conn)
	b, err := s.build(ctx, spec)
	if err != nil {
		return conn.Send(refuse(err))
	}
	created := call.Created{PID: b.box.PID(), Weaker: b.weaker}
	sendErr := conn.Send(call.Reply{Created: &created}, b.box.Listeners.Files()...)
	b.box.Listeners.Close()
	how := ""
	if sendErr != nil {
		how = "killed: the control plane is gone"
		b.box.Kill()
	}
	how = b.wait(ctx, kill, how)
	ended := b.end(how, kill)
	if err := errors.Join(sendErr, conn.Send(call.Reply{Ended: &ended})); err != nil && !hungUp(err) {
		return err
	}
	return nil // a caller that is gone needs no answer
}

// built is a running sandbox and what belongs to it.
type built struct {
	spec    call.Create
	box     *container.Container
	group   *cgroup.Group
	weaker  []string
	started time.Time
}

// startPatience bounds the making of a sandbox, which takes milliseconds; beyond it something of the host's has stopped the child.
const startPatience = 30 * time.Second

// build makes control group and container, undoing the one if the other fails.
func (s *Server) build(ctx context.Context, spec call.Create) (*built, error) {
	if spec.Level != "container" {
		return nil, fault.New(fault.Unsupported, "isolation level %.20q does not exist in this version", spec.Level).WithHint("write: container")
	}
	if err := container.Check(spec); err != nil {
		return nil, err
	}
	b := &built{spec: spec, started: time.Now()}
	ids, weaker, err := chooseIDs(spec)
	if err != nil {
		return nil, err
	}
	b.weaker = append(b.weaker, weaker...)
	if container.LandlockABI() == 0 {
		if !slices.Contains(spec.BestEffort, "landlock") {
			return nil, fault.New(fault.Unsupported, "this kernel has no Landlock").
				WithHint("add landlock to the kernel's lsm= list, or run without it: --best-effort landlock")
		}
		b.weaker = append(b.weaker, "landlock: the kernel has none")
	}
	if err := b.limit(); err != nil {
		return nil, err
	}
	starting, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	b.box, err = container.Start(starting, spec, container.Options{Runner: s.Runner, Cgroup: b.group, IDs: ids})
	if err != nil {
		if b.group != nil {
			err = errors.Join(err, b.group.Remove(call.Patience))
		}
		return nil, err
	}
	b.weaker = append(b.weaker, b.box.Weaker...)
	return b, nil
}

// wait returns when no process of the sandbox is left, and why it ended if not by itself.
func (b *built) wait(ctx context.Context, kill <-chan string, how string) string {
	for {
		select {
		case <-b.box.Done():
			return how
		case <-ctx.Done():
			b.box.Kill()
			<-b.box.Done()
			return "killed: the supervisor was told to stop"
		case reason, ok := <-kill:
			if !ok {
				kill, reason = nil, "killed: the control plane is gone"
			}
			if how == "" {
				how = reason
			}
			b.box.Kill()
		}
	}
}

// end collects what is to be kept, removes the rest and checks that it is gone.
func (b *built) end(how string, giveUp <-chan string) call.Ended {
	ended := call.Ended{How: how}
	if err := b.box.Remains(); err != nil {
		ended.Problems = append(ended.Problems, err.Error())
	} else {
		ended.Erased = append(ended.Erased, "processes", "mounts")
	}
	if b.group != nil {
		ended.OutOfMemory = b.group.OutOfMemory()
		if err := b.group.Remove(call.Patience); err != nil {
			ended.Problems = append(ended.Problems, err.Error())
		} else {
			ended.Erased = append(ended.Erased, "control groups")
		}
	}
	if b.box.Upper != nil {
		b.collect(&ended, giveUp)
		if err := b.box.Upper.Close(); err != nil { // the last hold on scratch memory, which is freed with it
			ended.Problems = append(ended.Problems, "let go of scratch memory: "+err.Error())
		}
	}
	return ended
}

// collect keeps the folder's changes, unless the caller gives them up by another order, or by going.
func (b *built) collect(ended *call.Ended, giveUp <-chan string) {
	if _, err := b.box.Upper.ReadDir(1); errors.Is(err, io.EOF) {
		return // nothing was changed
	}
	if _, err := b.box.Upper.Seek(0, io.SeekStart); err != nil {
		ended.CollectError = err.Error()
		return
	}
	o := workspace.CollectOptions{
		Upper: b.box.Upper, Lower: b.spec.Workspace.Source, Dest: b.spec.Changes, Started: b.started,
		IDShift: b.spec.UIDBase, Unprotected: b.spec.Unprotected, Limits: workspace.DefaultLimits(),
	}
	ctx, cancel := context.WithTimeout(context.Background(), collectTime)
	defer cancel()
	go func() { // ends with the collection
		select {
		case <-giveUp:
			cancel()
		case <-ctx.Done():
		}
	}()
	summary, err := workspace.Collect(ctx, o)
	if err != nil {
		ended.CollectError = err.Error()
		return
	}
	ended.Changed, ended.Skipped = summary.Changed(), summary.Skipped
}

// collectTime bounds the collection of changes, whose number the sandbox chose.
const collectTime = 10 * time.Minute

// reap removes what a dead sandbox left: processes and control groups. All else lived in namespaces, which went with the last process.
func reap(r call.Reap) call.Reaped {
	found := cgroup.Find(groupName(r.Run))
	if err := cgroup.Reap(found, call.Patience); err != nil {
		return call.Reaped{Problems: []string{err.Error()}}
	}
	if len(found) == 0 { // it had none, or its supervisor removed it: nothing was looked at, so nothing is claimed
		return call.Reaped{}
	}
	return call.Reaped{Erased: []string{"processes", "control groups"}}
}

// groupName names a run's control group.
func groupName(run ident.Run) string { return "cofferdam-" + run.String() }

// refuse turns an error into a reply.
func refuse(err error) call.Reply {
	r := &call.Refused{Kind: fault.KindOf(err), Public: err.Error(), Hint: fault.HintOf(err)}
	if e, ok := errors.AsType[*fault.Error](err); ok {
		r.Public = e.Public
		if e.Cause != nil {
			r.Detail = e.Cause.Error()
		}
	}
	return call.Reply{Refused: r}
}

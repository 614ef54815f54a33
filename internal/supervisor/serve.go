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
	"github.com/cofferdam/cofferdam/internal/isolation/gvisor"
	"github.com/cofferdam/cofferdam/internal/netns"
	"github.com/cofferdam/cofferdam/internal/supervisor/call"
	"github.com/cofferdam/cofferdam/internal/workspace"
)

// Server serves one connection.
type Server struct {
	Runner string // path of the runner's executable
	GVisor string // path of gVisor's runsc, which may be missing
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
		return conn.Send(call.Reply{Probed: &call.Probed{Features: probe(ctx, s.GVisor)}})
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
	b, planted, err := s.build(ctx, spec)
	if err != nil {
		return conn.Send(refuse(err))
	}
	created := call.Created{PID: b.box.PID(), Weaker: b.weaker}
	sendErr := conn.Send(call.Reply{Created: &created}, planted.Files()...)
	planted.Close()
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
	box     box
	upper   *os.File // where the folder's changes gather; nil if there is none
	group   *cgroup.Group
	weaker  []string
	started time.Time
}

// box is a sandbox at any level.
type box interface {
	PID() int              // of process 1, on the host
	Kill()                 // ends every process of it; may be called again
	Done() <-chan struct{} // closed when no process of it exists
	// Remains looks for what must be gone, once and after Done, and says what it looked for.
	Remains() ([]string, error)
}

// troubled is a box that knows more than its end, when its kernel was not the host's.
type troubled interface{ Trouble() string }

// startPatience bounds the making of a sandbox, which takes milliseconds; beyond it something of the host's has stopped the child.
const startPatience = 30 * time.Second

// build makes control group and sandbox, undoing the one if the other fails. The planted sockets come with it.
func (s *Server) build(ctx context.Context, spec call.Create) (b *built, planted netns.Listeners, err error) {
	level := levels()[spec.Level]
	if level == nil {
		return nil, planted, fault.New(fault.Unsupported, "isolation level %.20q does not exist in this version", spec.Level).WithHint("write: container or gvisor")
	}
	if err := container.Check(spec); err != nil {
		return nil, planted, err
	}
	b = &built{spec: spec, started: time.Now()}
	ids, weaker, err := chooseIDs(spec)
	if err != nil {
		return nil, planted, err
	}
	b.weaker = append(b.weaker, weaker...)
	if err := b.limit(); err != nil {
		return nil, planted, err
	}
	starting, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	planted, err = level(s, starting, b, container.Options{Runner: s.Runner, Cgroup: b.group, IDs: ids})
	if err != nil {
		if b.group != nil {
			err = errors.Join(err, b.group.Remove(call.Patience))
		}
		return nil, planted, err
	}
	return b, planted, nil
}

// levels are the ways to build, by the names that callers use. There is no default.
func levels() map[string]func(*Server, context.Context, *built, container.Options) (netns.Listeners, error) {
	return map[string]func(*Server, context.Context, *built, container.Options) (netns.Listeners, error){
		"container": (*Server).startContainer, gvisor.Level: (*Server).startGVisor,
	}
}

func (s *Server) startContainer(ctx context.Context, b *built, o container.Options) (netns.Listeners, error) {
	if container.LandlockABI() == 0 {
		if !slices.Contains(b.spec.BestEffort, "landlock") {
			return netns.Listeners{}, fault.New(fault.Unsupported, "this kernel has no Landlock").
				WithHint("add landlock to the kernel's lsm= list, or run without it: --best-effort landlock")
		}
		b.weaker = append(b.weaker, "landlock: the kernel has none")
	}
	c, err := container.Start(ctx, b.spec, o)
	if err != nil {
		return netns.Listeners{}, err
	}
	b.box, b.upper, b.weaker = c, c.Upper, append(b.weaker, c.Weaker...)
	return c.Listeners, nil
}

// startGVisor needs no Landlock: what that would keep a sandbox from, gVisor's kernel cannot do.
func (s *Server) startGVisor(ctx context.Context, b *built, o container.Options) (netns.Listeners, error) {
	o.Kernel = s.GVisor
	g, err := gvisor.Start(ctx, b.spec, o)
	if err != nil {
		return netns.Listeners{}, err
	}
	b.box, b.upper, b.weaker = g, g.Upper, append(b.weaker, g.Weaker...)
	return g.Listeners, nil
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
	if t, ok := b.box.(troubled); ok && how == "" {
		if trouble := t.Trouble(); trouble != "" {
			ended.Problems = append(ended.Problems, "the sandbox's kernel: "+trouble)
		}
	}
	erased, err := b.box.Remains()
	if err != nil {
		ended.Problems = append(ended.Problems, err.Error())
	}
	ended.Erased = append(ended.Erased, erased...)
	if b.group != nil {
		ended.OutOfMemory = b.group.OutOfMemory()
		if err := b.group.Remove(call.Patience); err != nil {
			ended.Problems = append(ended.Problems, err.Error())
		} else {
			ended.Erased = append(ended.Erased, "control groups")
		}
	}
	if b.upper != nil {
		b.collect(&ended, giveUp)
		if err := b.upper.Close(); err != nil { // the last hold on scratch memory, which is freed with it
			ended.Problems = append(ended.Problems, "let go of scratch memory: "+err.Error())
		}
	}
	return ended
}

// collect keeps the folder's changes, unless the caller gives them up by another order, or by going.
func (b *built) collect(ended *call.Ended, giveUp <-chan string) {
	if _, err := b.upper.ReadDir(1); errors.Is(err, io.EOF) {
		return // nothing was changed
	}
	if _, err := b.upper.Seek(0, io.SeekStart); err != nil {
		ended.CollectError = err.Error()
		return
	}
	o := workspace.CollectOptions{
		Upper: b.upper, Lower: b.spec.Workspace.Source, Dest: b.spec.Changes, Started: b.started,
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

// Package supervisor (SANDBOX) is the privileged half: it makes and removes sandboxes for one caller at the other end of a Unix socket.
//
// It never reads a byte that a sandbox wrote to the network, holds no credential and opens no database. The socket's end means the sandbox's end.
package supervisor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/cofferdam/cofferdam/internal/cgroup"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/ident"
	"github.com/cofferdam/cofferdam/internal/isolation/container"
	"github.com/cofferdam/cofferdam/internal/netns"
	"github.com/cofferdam/cofferdam/internal/receipt"
	"github.com/cofferdam/cofferdam/internal/scratch"
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
// must find nothing here to ask for but that sandbox's pause and its end.
func (s *Server) Serve(ctx context.Context, conn *call.Conn) error {
	peer, err := conn.Peer()
	if err != nil {
		return fmt.Errorf("ask who calls: %w", err)
	}
	if int(peer.Uid) != os.Getuid() && peer.Uid != 0 {
		return fault.New(fault.Denied, "calls are taken from user %d only", os.Getuid())
	}
	r, files, err := receive(conn)
	defer func() { closeAll(files) }()
	switch {
	case hungUp(err):
		return nil
	case err != nil:
		return err
	case r.Create != nil:
		return s.sandbox(ctx, conn, *r.Create, nil)
	case r.Prepare != nil:
		return s.standBy(ctx, conn, *r.Prepare)
	case r.Reap != nil:
		reply := reap(*r.Reap)
		return conn.Send(call.Reply{Reaped: &reply})
	case r.Freeze != nil:
		return conn.Send(freezeByName(ctx, *r.Freeze))
	case r.Probe != nil:
		return conn.Send(call.Reply{Probed: &call.Probed{Features: append(probe(ctx, s.GVisor), levelsVM(ctx, s.machines())...)}})
	}
	return conn.Send(refuse(fault.New(fault.Invalid, "this call is not possible now")))
}

// receive takes one request and the files that come with it, which are held and not looked at.
func receive(conn *call.Conn) (r call.Request, files []*os.File, err error) {
	files, err = conn.Receive(&r)
	return r, files, err
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close() // nothing was written
	}
}

// hungUp says whether the caller is gone, in order or not.
func hungUp(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// orders passes on why the caller wants the sandbox to end, until the connection ends. Closed means: the caller is gone. What is wanted of it meanwhile goes
// the other way: one order waits at most, and a caller with more of them gets no answer. Whether a snapshot is wanted is said, and taken back, on a third.
func orders(conn *call.Conn) (<-chan string, <-chan call.Freeze, <-chan bool) {
	reasons, pauses, keeps := make(chan string, 1), make(chan call.Freeze, 1), make(chan bool, 2)
	go func() { // ends with the connection, which the caller of Serve closes
		defer close(reasons)
		for {
			r, files, err := receive(conn)
			closeAll(files) // no order comes with any
			if err != nil {
				return
			}
			switch {
			case r.Kill != nil:
				select {
				case reasons <- r.Kill.Reason:
				default: // the first reason counts
				}
			case r.Freeze != nil:
				select {
				case pauses <- *r.Freeze:
				default:
				}
			case r.Keep != nil:
				select {
				case keeps <- r.Keep.Wanted:
				default: // whoever says it a third time before it was heard has said both
				}
			} // nothing else can be asked of a sandbox
		}
	}()
	return reasons, pauses, keeps
}

// farewell takes no more requests after the last answer, and leaves none unread: else the kernel would tell the caller so (ECONNRESET) instead of that answer.
func farewell(conn *call.Conn, orders <-chan string) {
	conn.Deaf()
	for range orders {
		// Too late.
	}
}

// sandbox is the life of one sandbox, which may have been prepared. It returns an error only if the caller cannot be told.
func (s *Server) sandbox(ctx context.Context, conn *call.Conn, spec call.Create, w *warm) error {
	kill, pauses, keeps := orders(conn)
	defer farewell(conn, kill)
	defer clearUnmade(spec)
	b, planted, err := s.finish(ctx, spec, w)
	if err != nil {
		b, planted, err = s.build(ctx, spec, w)
	}
	if err != nil {
		return conn.Send(refuse(err))
	}
	created := call.Created{PID: b.box.PID(), Weaker: b.weaker, Warm: b.warm}
	sendErr := conn.Send(call.Reply{Created: &created}, planted.Files()...)
	how := ""
	if sendErr != nil {
		how = "killed: the control plane is gone"
	}
	living, dies := context.WithCancel(ctx)
	var obeying sync.WaitGroup
	obeying.Go(planted.Close)
	obeying.Go(func() { b.obey(living, conn, pauses) })
	defer obeying.Wait() // in the end: it may wait for a caller that reads no answers, which what follows must not
	defer dies()
	how = b.wait(ctx, kill, keeps, how, dies)
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
	scratch *scratch.Scratch // nil where the sandbox has made its own
	weaker  []string
	started time.Time
	warm    bool      // it was prepared
	named   ident.Run // what its control group is named after, if not after the run
}

// name is what its control group is named after.
func (b *built) name() ident.Run { return cmp.Or(b.named, b.spec.Run) }

// box is a sandbox at any level.
type box interface {
	PID() int              // of process 1, on the host
	Kill()                 // ends every process of it; may be called again
	Done() <-chan struct{} // closed when no process of it exists
	// Remains looks for what must be gone, once and after Done, and says what it looked for.
	Remains() ([]string, error)
}

// losing is a box whose changes come from inside, so that they can be lost. Kill waits for them a while, Hurry does not.
type losing interface {
	Lost() error
	Hurry()
}

// starved is a box whose own kernel counts the processes that it killed for lack of memory.
type starved interface{ OutOfMemory() int }

// troubled is a box that knows more than its end, when its kernel was not the host's.
type troubled interface{ Trouble() string }

// startPatience bounds the making of a sandbox, which takes milliseconds where no machine has to start; beyond it something of the host's has stopped the child.
const startPatience = 30 * time.Second

// build makes control group and sandbox, undoing the one if the other fails. The planted sockets come with it.
func (s *Server) build(ctx context.Context, spec call.Create, w *warm) (b *built, planted netns.Listeners, err error) {
	level := levels()[spec.Level]
	if level == nil {
		return nil, planted, fault.New(fault.Unsupported, "isolation level %.20q does not exist in this version", spec.Level).WithHint("write one of: %s", levelNames())
	}
	if err := errors.Join(checkPlatform(spec), container.Check(spec), checkSnapshot(spec)); err != nil {
		return nil, planted, err
	}
	b = &built{spec: spec, started: time.Now(), named: w.name()}
	ids, weaker, err := chooseIDs(spec)
	if err != nil {
		return nil, planted, err
	}
	b.weaker = append(b.weaker, weaker...)
	if err := b.limit(); err != nil {
		return nil, planted, err
	}
	if err := b.makeScratch(); err != nil {
		return nil, planted, b.undo(err)
	}
	starting, cancel := context.WithTimeout(ctx, patience(spec.Level))
	defer cancel()
	planted, err = level(s, starting, b, container.Options{Runner: s.Runner, Cgroup: b.group, IDs: ids, Scratch: b.scratch})
	if err != nil {
		return nil, planted, b.undo(err)
	}
	return b, planted, nil
}

// wait returns when no process of the sandbox is left, and why it ended if not by itself. dies is called when it is killed: nobody pauses it any more.
func (b *built) wait(ctx context.Context, kill <-chan string, keeps <-chan bool, how string, dies func()) string {
	var again <-chan time.Time
	end := func() {
		dies()
		b.box.Kill()
		b.release() // and again: somebody may pause it by another connection
		again = time.After(releaseEvery)
	}
	if how != "" {
		end()
	}
	for {
		select {
		case <-b.box.Done():
			return how
		case <-ctx.Done():
			how, ctx = "killed: the supervisor was told to stop", context.WithoutCancel(ctx)
			end()
		case <-again:
			end()
		case wanted := <-keeps:
			b.keep(wanted)
		case reason, ok := <-kill:
			if !ok {
				kill, reason = nil, "killed: the control plane is gone"
			}
			if how == "" {
				how = reason
			}
			if l, ok := b.box.(losing); ok && (reason == call.GivenUp || kill == nil) { // nobody is there to take the changes
				l.Hurry()
			}
			end()
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
	b.look(&ended)
	if o, ok := b.box.(starved); ok {
		ended.OutOfMemory = o.OutOfMemory()
	}
	if k, ok := b.box.(keeper); ok {
		ended.Kept = k.Kept()
	}
	b.removeGroup(&ended)
	if b.upper != nil {
		b.collect(&ended, giveUp)
	}
	b.eraseScratch(&ended)
	settle(&ended)
	return ended
}

// collect keeps the folder's changes, unless the caller gives them up by another order, or by going.
func (b *built) collect(ended *call.Ended, giveUp <-chan string) {
	if l, ok := b.box.(losing); ok {
		if err := l.Lost(); err != nil {
			ended.CollectError = err.Error()
			return
		}
	}
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
	if len(found) == 0 { // it had none, or its supervisor removed it: nothing was looked at, so nothing is claimed
		return call.Reaped{Receipt: []receipt.Item{
			receipt.Unobserved("processes", "no control group of the run's was found, by which they could be; they die with the supervisor, and with them goes what was mounted"), scratchGone(),
		}}
	}
	err := cgroup.Reap(found, call.Patience)
	items := []receipt.Item{
		receipt.Looked("processes", "killed in the control group, which is empty", err),
		receipt.Looked("control groups", "their directories were removed, which the kernel refuses while a process is in them", err),
		scratchGone(),
	}
	reaped := call.Reaped{Erased: receipt.Names(items), Receipt: items}
	if err != nil {
		reaped.Problems = []string{err.Error()}
	}
	return reaped
}

// groupName names a run's control group.
func groupName(run ident.Run) string { return cgroup.Name(run) }

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

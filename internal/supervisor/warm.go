package supervisor

import (
	"context"
	"errors"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/cgroup"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/ident"
	"github.com/cofferdam/cofferdam/internal/isolation/container"
	"github.com/cofferdam/cofferdam/internal/isolation/gvisor"
	"github.com/cofferdam/cofferdam/internal/isolation/vm"
	"github.com/cofferdam/cofferdam/internal/netns"
	"github.com/cofferdam/cofferdam/internal/rights"
	"github.com/cofferdam/cofferdam/internal/scratch"
	"github.com/cofferdam/cofferdam/internal/supervisor/call"
)

// warm is a sandbox that is built and nobody's yet.
type warm struct {
	asked   call.Prepare
	options container.Options
	box     *container.Prepared // nil if it is a virtual machine
	machine *vm.Prepared        // nil if it is none
	half    *built              // what else it has, and what is weaker about it
}

// name is what the control group is named after; nothing for a sandbox that was not prepared.
func (w *warm) name() ident.Run {
	if w == nil {
		return ""
	}
	return w.asked.Name
}

// pid is process 1's.
func (w *warm) pid() int {
	if w.machine != nil {
		return w.machine.PID()
	}
	return w.box.Box.PID()
}

// done is closed when process 1 is gone.
func (w *warm) done() <-chan struct{} {
	if w.machine != nil {
		return w.machine.Gone()
	}
	return w.box.Box.Done()
}

// While a sandbox is nobody's, only programs of ours run in it. These bound them should one of them err.
const (
	warmMemory = 256 << 20
	warmTasks  = 512
)

// warmCPUs is more than there are, in thousandths: what was throttled before a sandbox was somebody's would count as his.
func warmCPUs() int64 { return 2000 * int64(runtime.NumCPU()) }

// standBy prepares a sandbox and waits until somebody who has the connection says whose it is, or goes.
func (s *Server) standBy(ctx context.Context, conn *call.Conn, p call.Prepare) error {
	type asked struct {
		request call.Request
		files   []*os.File
		err     error
	}
	preparing, cancel := context.WithCancel(ctx)
	defer cancel()
	next := make(chan asked, 1)
	go func() { // ends with the connection, which the caller of Serve closes
		r, files, err := receive(conn)
		if err != nil {
			cancel() // nobody wants it any more
		}
		next <- asked{r, files, err}
	}()
	w, err := s.prepare(preparing, p)
	if err != nil {
		if err := conn.Send(refuse(err)); !hungUp(err) {
			return err
		}
		return nil // who is gone needs no answer
	}
	if err := conn.Send(call.Reply{Prepared: &call.Prepared{PID: w.pid()}}); err != nil {
		return errors.Join(err, w.discard())
	}
	var got asked
	select {
	case <-ctx.Done():
		return w.discard()
	case got = <-next:
	case <-w.done():
		select {
		case <-ctx.Done():
			return w.discard()
		case got = <-next:
		case <-time.After(mourning):
			return errors.Join(errors.New("the prepared sandbox died"), w.discard())
		}
	}
	defer closeAll(got.files)
	switch {
	case got.err != nil && !hungUp(got.err):
		return errors.Join(got.err, w.discard())
	case got.err != nil:
		return w.discard()
	case got.request.Create == nil:
		return errors.Join(conn.Send(refuse(fault.New(fault.Invalid, "this call is not possible now"))), w.discard())
	}
	if len(got.files) > 1 { // troubles are from now on the caller's to read, not whoever's who had this process started
		if err := unix.Dup3(int(got.files[1].Fd()), 2, 0); err != nil {
			return errors.Join(err, w.discard())
		}
	}
	return s.sandbox(ctx, conn, *got.request.Create, w)
}

// mourning is how long who was given a sandbox has to say what it is to be when it died meanwhile: then it is built from the beginning.
const mourning = time.Second

// prepare builds a sandbox that is nobody's. On error nothing is left.
func (s *Server) prepare(ctx context.Context, p call.Prepare) (*warm, error) {
	if isMachine(p.Level) {
		return s.prepareMachine(ctx, p)
	}
	kernel, err := s.kernelOf(p.Level)
	if err != nil {
		return nil, err
	}
	spec := call.Create{Run: p.Name, Level: p.Level, Hostname: p.Hostname, RootFS: p.RootFS, Limits: p.Limits, UIDBase: p.UIDBase}
	if err := container.Check(spec); err != nil {
		return nil, err
	}
	w := &warm{asked: p, half: &built{spec: spec}, options: container.Options{Runner: s.Runner, Kernel: kernel}}
	if w.options.IDs, w.half.weaker, err = chooseIDs(spec); err != nil {
		return nil, err
	}
	l, host := cgroup.Limits{MilliCPUs: warmCPUs(), Memory: warmMemory, PIDs: warmTasks}, cgroup.Detect()
	for _, controller := range host.Missing(l.Controllers()) {
		*map[string]*int64{"cpu": &l.MilliCPUs, "memory": &l.Memory, "pids": &l.PIDs}[controller] = 0
	}
	if host.Groups(l) {
		if w.half.group, err = host.Create(groupName(p.Name), l); err != nil {
			return nil, fault.New(fault.Unavailable, "cannot make a control group").Because(err)
		}
	}
	if err := w.half.makeScratch(); err != nil {
		return nil, w.half.undo(err)
	}
	w.options.Cgroup, w.options.Scratch = w.half.group, w.half.scratch
	starting, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	if w.box, err = container.Prepare(starting, spec, w.options); err != nil {
		return nil, w.half.undo(err)
	}
	return w, nil
}

// kernelOf returns what stands between a prepared sandbox of a level and the host's kernel.
func (s *Server) kernelOf(level string) (*container.Kernel, error) {
	switch level {
	case "container":
		if rights.LandlockABI() == 0 {
			return nil, fault.New(fault.Unsupported, "this kernel has no Landlock, without which a sandbox is made only where that was asked for")
		}
		return nil, nil
	case gvisor.Level:
		return gvisor.Kernel(s.GVisor)
	}
	return nil, fault.New(fault.Unsupported, "no sandbox of isolation level %.20q can be prepared", level).WithHint("write one of: %s", levelNames())
}

// discard ends what was prepared and removes what there is of it.
func (w *warm) discard() error {
	if w.machine != nil {
		w.machine.Discard()
	} else {
		w.box.Discard()
	}
	return w.half.undo(nil)
}

// errCold says that no sandbox is there that could be finished.
var errCold = errors.New("no sandbox is prepared")

// finish makes a prepared sandbox the one that was asked for. On error nothing of it is left, no program has run in it but ours, and the
// sandbox can be built from the beginning: the error is then not worth a word, since building says what is wrong with the specification itself.
func (s *Server) finish(ctx context.Context, spec call.Create, w *warm) (b *built, planted netns.Listeners, err error) {
	if w == nil {
		return nil, planted, errCold
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.discard())
		}
	}()
	select {
	case <-w.done():
		return nil, planted, errCold
	default:
	}
	if err := errors.Join(container.Check(spec), checkSnapshot(spec)); err != nil {
		return nil, planted, err
	}
	if spec.Scratch != "" && spec.Scratch != scratch.Memory {
		return nil, planted, fault.New(fault.Conflict, "prepared with another kind of scratch")
	}
	if spec.Platform != "" && spec.Platform != gvisor.Systrap {
		return nil, planted, fault.New(fault.Conflict, "prepared with gVisor's platform %s", gvisor.Systrap)
	}
	b = &built{spec: spec, started: time.Now(), warm: true, named: w.name(), group: w.half.group, scratch: w.half.scratch, weaker: w.half.weaker}
	if err := b.limit(); err != nil {
		return nil, planted, err
	}
	starting, cancel := context.WithTimeout(ctx, patience(spec.Level))
	defer cancel()
	if w.machine != nil {
		return finishMachine(starting, b, w)
	}
	c, err := w.box.Finish(starting, spec, w.options)
	if err != nil {
		return nil, planted, err
	}
	b.box, b.upper, b.weaker = c, c.Upper, append(b.weaker, c.Weaker...)
	if spec.Level == gvisor.Level {
		if b.box, err = gvisor.Adopt(c); err != nil {
			return nil, planted, err
		}
	}
	return b, c.Listeners, nil
}

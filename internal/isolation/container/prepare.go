package container

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/frame"
	"github.com/cofferdam/cofferdam/internal/netns"
	"github.com/cofferdam/cofferdam/internal/rootfs"
	"github.com/cofferdam/cofferdam/internal/supervisor/call"
)

// Prepared is a sandbox that is built before it is known whose it will be: its runner waits for the boot line, its room lets no packet through, and it sees no folder.
// A steward, a process of ours beside it, finishes it, and is gone before the runner hears anything.
type Prepared struct {
	// Box is the sandbox. Killing it ends the steward too.
	Box   *Container
	plan  plan
	boot  *os.File // where the boot line goes
	watch *watch
}

// waiting is what a sandbox has until it is finished.
type waiting struct {
	steward *call.Conn
	stage   *os.File
	taken   int
}

// Prepare builds a sandbox for what spec says of level, root file system, host name and limits; it must say nothing of whose it is. On error nothing is left.
func Prepare(ctx context.Context, spec call.Create, o Options) (*Prepared, error) {
	theirs, ours, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("make a pipe for the boot line: %w", err)
	}
	if o.Kernel == nil {
		spec.Limits.PIDs = 0 // set when it is known, see limitProcesses
	}
	o.waits = theirs
	p := &Prepared{boot: ours}
	if p.watch, err = newWatch(spec.RootFS); err == nil { // before it is composed: what changes afterwards is noticed
		o.around = &p.watch.around
		p.plan, err = newPlan(spec, o)
	}
	if err == nil {
		p.Box, err = Start(ctx, spec, o)
	} else {
		_ = theirs.Close() // Start would have
	}
	if err != nil {
		p.watch.close()
		_ = ours.Close() // nothing was written
		return nil, err
	}
	if err := p.Box.waits(o); err != nil {
		p.Discard()
		return nil, err
	}
	return p, nil
}

// waits makes sure that all is there by which the sandbox will be finished.
func (c *Container) waits(o Options) error {
	if c.waiting.steward == nil || c.waiting.stage == nil {
		return errors.New("set-up left no steward")
	}
	namespace, _, err := c.view(o) // a kernel of the sandbox's own has it when it is up, which takes longest
	if err != nil {
		return err
	}
	return namespace.Close()
}

// Discard ends the sandbox and lets go of what there is of it.
func (p *Prepared) Discard() {
	p.Box.Kill()
	<-p.Box.done
	p.forget()
	p.Box.Release()
}

// forget lets go of what only an unfinished sandbox needs.
func (p *Prepared) forget() {
	_ = p.boot.Close() // written, or never to be
	p.watch.close()
	p.Box.waiting.close()
}

func (w *waiting) close() {
	if w.steward != nil {
		_ = w.steward.Close() // the steward ends with it
	}
	if w.stage != nil {
		_ = w.stage.Close() // only a hold
	}
	*w = waiting{}
}

// Finish makes the sandbox the one that spec describes and lets its runner begin. On error it is of no use any more, and has learnt nothing secret: the caller
// discards it, and may build one from the beginning.
func (p *Prepared) Finish(ctx context.Context, spec call.Create, o Options) (*Container, error) {
	c := p.Box
	stop := context.AfterFunc(ctx, c.Kill)
	defer stop()
	if err := p.watch.unchanged(); err != nil {
		return nil, err
	}
	o.around = &p.watch.around
	final, err := newPlan(spec, o)
	if err != nil {
		return nil, err
	}
	if err := p.fits(final); err != nil {
		return nil, err
	}
	if err := c.finish(final, p.plan, o); err != nil {
		return nil, err
	}
	if o.Scratch != nil {
		if err := rootfs.Resize(c.Scratch, final.Disk, final.scratchFiles()); err != nil {
			return nil, err
		}
	}
	if o.Kernel == nil {
		if err := limitProcesses(c.PID(), final.PIDs); err != nil {
			return nil, err
		}
	}
	c.Weaker = final.weaker()
	if _, err := p.boot.WriteString(spec.Boot + "\n"); err != nil {
		return nil, fmt.Errorf("hand on the boot line: %w", err)
	}
	p.forget()
	return c, nil
}

// fits says why a sandbox cannot be finished as a plan wants it, or nothing. What was decided for good when it was prepared must be what would be decided now: filters,
// capabilities, what is seen.
func (p *Prepared) fits(final plan) error {
	was := p.plan
	same := func(name string, a, b any) error {
		if !reflect.DeepEqual(a, b) {
			return fault.New(fault.Conflict, "prepared with another %s", name)
		}
		return nil
	}
	if len(final.Layers) < len(was.Layers) {
		return fault.New(fault.Conflict, "prepared with more parts of the system")
	}
	err := errors.Join(
		same("level", was.Spec.Level, final.Spec.Level), same("host name", was.Spec.Hostname, final.Spec.Hostname), same("root file system", was.Spec.RootFS, final.Spec.RootFS),
		same("range of ids", was.Spec.UIDBase, final.Spec.UIDBase), same("kind of root", [3]bool{was.Root, was.OwnTrees, was.Setgroups}, [3]bool{final.Root, final.OwnTrees, final.Setgroups}),
		same("runner or kernel", was.programs(), final.programs()),
		same("list of what is hidden", was.Hidden, final.Hidden), same("set of links", was.Links, final.Links), same("set of sockets", was.Sockets, final.Sockets),
		same("system", slices.Concat(was.Layers), slices.Concat(final.Layers[:len(was.Layers)])), same("kind of folder", was.kind(), final.kind()), same("bound of open files", was.Spec.Limits.OpenFiles, final.Spec.Limits.OpenFiles),
	)
	if final.Kernel != nil { // it was told when it started
		err = errors.Join(err, same("limit", [2]int64{was.PIDs, was.Disk}, [2]int64{final.PIDs, final.Disk}))
	}
	return err
}

// kind is what of the folders decides about filters and capabilities.
func (p plan) kind() [3]bool { return [3]bool{p.Shared, p.direct(), p.direct() && p.keepsSockets()} }

// limitProcesses bounds the processes of a runner that waits, as it would have bounded itself when it began.
func limitProcesses(pid int, most int64) error {
	if most <= 0 {
		return nil
	}
	limit := unix.Rlimit{Cur: uint64(most) + frame.ReservedProcesses, Max: uint64(most) + frame.ReservedProcesses}
	if err := unix.Prlimit(pid, unix.RLIMIT_NPROC, &limit, nil); err != nil {
		return fmt.Errorf("limit processes: %w", err)
	}
	return nil
}

// order tells the steward how to finish the sandbox. With it come the stage, the mount namespace in which the view is used, and the trees of the layers.
type order struct {
	Plan  plan       `json:"plan"` // its layers are those that are missing
	Taken int        `json:"taken"`
	Door  netns.Door `json:"door"`
	At    string     `json:"at,omitempty"` // where the view lies in that namespace
	// Settled is as in rootfs.Unfinished.
	Settled []string `json:"settled,omitempty"`
}

// finish has the steward do its work, and takes what it reports.
func (c *Container) finish(final, was plan, o Options) error {
	door, err := c.Listeners.Door(o.Kernel != nil)
	if err != nil {
		return err
	}
	last := order{Plan: final, Taken: c.waiting.taken, Door: door}
	if o.Kernel != nil {
		last.Settled = o.Kernel.Settled
	}
	last.Plan.Layers, last.Plan.Root = final.Layers[len(was.Layers):], false
	if final.Workspace >= 0 {
		last.Plan.Workspace -= len(was.Layers)
	}
	namespace, at, err := c.view(o)
	if err != nil {
		return err
	}
	defer namespace.Close()
	last.At = at
	trees, err := last.Plan.openLayers(c.PID(), o.IDs)
	if err == nil {
		err = c.waiting.steward.Send(last, append([]*os.File{c.waiting.stage, namespace}, trees...)...)
	}
	for _, t := range trees {
		_ = t.Close() // the steward has its own
	}
	if err != nil {
		return fmt.Errorf("tell the steward: %w", err)
	}
	return c.heed()
}

// Open has the room of a machine that was started Closed let through what a specification says, and makes the place for its folder's changes, of the size that m names.
func (c *Container) Open(ctx context.Context, spec call.Create, m Machine) error {
	defer c.waiting.close()
	stop := context.AfterFunc(ctx, c.Kill)
	defer stop()
	door, err := c.Listeners.Door(true)
	if err != nil {
		return err
	}
	o := order{Plan: plan{Spec: call.Create{Networks: spec.Networks, Everything: spec.Everything}, Kernel: &Kernel{Machine: &m}}, Door: door}
	if err := c.waiting.steward.Send(o); err != nil {
		return fmt.Errorf("tell the steward: %w", err)
	}
	return c.heed()
}

// heed takes the steward's reports, until it has done all and is gone: what a program inside could still find of it has no memory any more (do_exit in kernel/exit.c
// lets go of that before files).
func (c *Container) heed() error {
	for done := false; ; {
		var r report
		files, err := c.waiting.steward.Receive(&r)
		if done && errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("finish the sandbox: %w", err)
		}
		switch {
		case r.Error != nil:
			return r.Error.Err()
		case r.Upper && len(files) == 1:
			c.Upper = files[0]
		case r.Done && len(files) == 1:
			c.Listeners.Replaced, done = files[0], true
		default:
			return fmt.Errorf("the steward sent an unknown report with %d files", len(files))
		}
	}
}

// view returns the mount namespace in which the view is used, and where in it the view lies.
func (c *Container) view(o Options) (*os.File, string, error) {
	if o.Kernel != nil && o.Kernel.View != nil {
		return o.Kernel.View(c.PID())
	}
	namespace, err := os.Open(procPath(c.PID(), "ns/mnt"))
	return namespace, "", err
}

// openLayers opens the layers' trees, if that needs this process's privilege, with ids mapped as the sandbox's are.
func (p plan) openLayers(pid int, ids IDs) ([]*os.File, error) {
	if !ids.Trees || len(p.Layers) == 0 {
		return nil, nil
	}
	userns, err := os.Open(procPath(pid, "ns/user"))
	if err != nil {
		return nil, err
	}
	defer userns.Close()
	return p.layerTrees(int(userns.Fd()))
}

// Release lets go of all that a sandbox which is gone and will not be used has open.
func (c *Container) Release() {
	c.Listeners.Close()
	c.home.close()
	c.waiting.close()
	for _, f := range slices.DeleteFunc([]*os.File{c.Upper, c.Log, c.Scratch, c.Port}, func(f *os.File) bool { return f == nil }) {
		_ = f.Close() // nothing of it is kept
	}
}

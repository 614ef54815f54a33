// Package container (SANDBOX) is isolation level "container": namespaces, an overlay root, a short list of capabilities, seccomp and control groups, set up without any other program.
//
// Start clones a child into new namespaces; the child is this program again under the name [SetupName], which builds its own world ([Setup]) and becomes the runner.
// Nothing of ours is left running inside but the runner.
package container

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/cgroup"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/netns"
	"github.com/cofferdam/cofferdam/internal/rootfs"
	"github.com/cofferdam/cofferdam/internal/scratch"
	"github.com/cofferdam/cofferdam/internal/supervisor/call"
)

// SetupName is argv[0] of the child before it becomes the runner.
const SetupName = "cofferdam-setup"

// Options are what Start needs besides the specification.
type Options struct {
	Runner string // path of the runner's executable
	Cgroup *cgroup.Group
	IDs    IDs
	// Kernel stands between the sandbox and the host's kernel as a kernel of the sandbox's own; nil for none.
	Kernel *Kernel
	// Scratch is what everything written lands on. Nil has the child make its own in memory, which the kernel may swap.
	Scratch *scratch.Scratch
	around  *around // what was seen of the machine; nil to look now
	// Closed says that the room of a machine lets nothing through until [Container.Open] was called. There is no such machine at other levels: see [Prepare].
	Closed bool
	waits  *os.File // where process 1 of a sandbox that is only prepared will read the boot line; nil for one that begins at once
}

// Container is a running sandbox. Its methods may be called from any goroutine.
type Container struct {
	Listeners netns.Listeners
	// Upper is the directory of the overlay workspace's changes; nil if there is none. The caller closes it. Around a machine it is empty, for the caller to fill.
	Upper *os.File
	// Scratch is a hold on scratch, for Full; nil around a machine. The caller closes it.
	Scratch *os.File
	// Port is the machine's Unix socket that listens, see Machine; nil if there is none. The caller closes it.
	Port *os.File
	// Log is what a kernel of the sandbox's own wrote about its troubles; nil if there is none. The caller closes it.
	Log *os.File
	// Weaker names what is weaker than usual because the specification asks for it.
	Weaker  []string
	cmd     *exec.Cmd
	home    home
	waiting waiting
	done    chan struct{}
	err     error
}

// Start builds a sandbox and returns when process 1 has become the runner. On error nothing is left.
func Start(ctx context.Context, spec call.Create, o Options) (*Container, error) {
	outside, inside, err := call.Pair()
	if err != nil {
		return nil, err
	}
	conn := call.NewConn(outside)
	defer conn.Close()
	c := &Container{done: make(chan struct{})}
	planned := planning(spec, o) // while the child starts
	if err := c.launch(inside, spec, o); err != nil {
		return nil, err
	}
	if err := c.accompany(ctx, conn, planned, o); err != nil {
		c.Kill()
		o.Cgroup.Await(c.done)
		c.Release()
		return nil, err
	}
	return c, nil
}

// namespaces are new for each sandbox; the cgroup namespace follows once the child is in its group.
const namespaces = unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS

// launch starts the child and a goroutine that waits for it. The goroutine keeps its thread, since the child dies with the thread that started it.
func (c *Container) launch(inside *os.File, spec call.Create, o Options) error {
	boot, err := o.boot(spec)
	if err != nil {
		return err
	}
	c.cmd = &exec.Cmd{
		Path:       "/proc/self/exe",
		Args:       []string{SetupName},
		Env:        []string{"GOMAXPROCS=1"}, // nothing of the host's environment enters; one thread less starts sooner
		Stdin:      boot,
		ExtraFiles: append([]*os.File{inside}, o.Kernel.files()...),
		SysProcAttr: &syscall.SysProcAttr{
			Cloneflags:  namespaces,
			AmbientCaps: allCapabilities(), // keeps the user namespace's rights over the exec, before the ids are mapped
			Pdeathsig:   syscall.SIGKILL,
			Setsid:      true,
		},
	}
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := o.Kernel.withGroups(func() error { return c.bear(o.Cgroup) })
		for _, f := range []*os.File{inside, boot} {
			_ = f.Close() // the child has its own
		}
		started <- err
		if err == nil {
			c.err = c.cmd.Wait()
		}
		close(c.done)
	}()
	if err := <-started; err != nil {
		return fault.New(fault.Unsupported, "cannot make namespaces").WithHint("cofferdam doctor says what this host lacks").Because(err)
	}
	return nil
}

// bear starts the child inside its control group. The calling goroutine is locked to its thread.
func (c *Container) bear(g *cgroup.Group) (err error) {
	if g == nil {
		return c.cmd.Start()
	}
	if g.Unified() != "" {
		dir, err := os.Open(g.Unified())
		if err != nil {
			return err
		}
		defer dir.Close()
		c.cmd.SysProcAttr.UseCgroupFD, c.cmd.SysProcAttr.CgroupFD = true, int(dir.Fd())
	}
	leave, err := g.Enter()
	if err != nil {
		return err
	}
	err = c.cmd.Start()
	if leaveErr := leave(); leaveErr != nil {
		if err == nil {
			_ = c.cmd.Process.Kill()
			_ = c.cmd.Wait()
		}
		return errors.Join(err, leaveErr)
	}
	return err
}

// boot opens what process 1 reads first: for the runner its boot line, for a machine nothing, since the runner in it is told another way.
func (o Options) boot(spec call.Create) (*os.File, error) {
	if o.Kernel.machine() != nil {
		return os.Open("/dev/null")
	}
	if _, err := os.Stat(o.Runner); err != nil {
		return nil, fault.New(fault.Unsupported, "the runner is missing").WithHint("install cofferdam-runner beside cofferdam-supervisor").Because(err)
	}
	if o.waits != nil {
		return o.waits, nil
	}
	return bootFile(spec.Boot)
}

// bootFile holds the boot line in memory, with no name anywhere.
func bootFile(line string) (*os.File, error) {
	fd, err := unix.MemfdCreate("boot", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make the boot file: %w", err)
	}
	f := os.NewFile(uintptr(fd), "boot")
	if _, err := f.WriteAt([]byte(line+"\n"), 0); err != nil {
		_ = f.Close() // nothing to keep
		return nil, fmt.Errorf("write the boot file: %w", err)
	}
	return f, nil
}

// accompany maps the child's ids, bounds it, hands it its trees, and takes what it reports until it has become the runner.
func (c *Container) accompany(ctx context.Context, conn *call.Conn, planned func() (plan, error), o Options) error {
	stop := context.AfterFunc(ctx, c.Kill)
	defer stop()
	plan, err := planned()
	if err != nil {
		return err
	}
	c.Weaker = plan.weaker()
	if err := conn.Send(plan); err != nil {
		return fmt.Errorf("send the plan: %w", err)
	}
	if c.home, err = homeOf(c.PID()); err != nil {
		return err
	}
	if err := o.IDs.write(c.PID()); err != nil {
		return err
	}
	trees, err := plan.open(c.PID(), o.IDs)
	if err == nil {
		trees, err = plan.withScratch(trees, c.PID(), o)
	}
	if err == nil {
		err = conn.Send(proceed{}, trees...)
	}
	for _, t := range trees {
		_ = t.Close() // the child has its own
	}
	if err != nil {
		return fmt.Errorf("send the trees: %w", err)
	}
	return c.listen(conn)
}

// listen takes the child's reports; the socket closes when the child becomes the runner.
func (c *Container) listen(conn *call.Conn) error {
	for {
		var r report
		files, err := conn.Receive(&r)
		if errors.Is(err, io.EOF) {
			return c.alive()
		}
		if err != nil {
			return fmt.Errorf("set up the sandbox: %w", err)
		}
		switch {
		case r.Error != nil:
			return r.Error.Err()
		case r.Listeners:
			if c.Listeners, err = netns.FromFiles(files); err != nil {
				return err
			}
		case r.Upper && len(files) == 1:
			c.Upper = files[0]
		case r.Scratch && len(files) == 1:
			c.Scratch = files[0]
		case r.Port && len(files) == 1:
			c.Port = files[0]
		case r.Log && len(files) == 1:
			c.Log = files[0]
		case r.Steward && len(files) == 1:
			c.waiting.steward = call.NewConn(files[0])
		case r.Stage && len(files) == 1:
			c.waiting.stage, c.waiting.taken = files[0], r.Taken
		default:
			return fmt.Errorf("set-up sent an unknown report with %d files", len(files))
		}
	}
}

// alive makes sure that the end of reports means success: set-up died without a word otherwise.
func (c *Container) alive() error {
	if c.Listeners.TCP == nil {
		<-c.done
		return fmt.Errorf("set-up ended early: %w", errors.Join(c.err, errors.New("no report")))
	}
	return nil
}

// PID returns the host's number of process 1.
func (c *Container) PID() int { return c.cmd.Process.Pid }

// Kill ends every process of the sandbox: the kernel kills a process namespace with its process 1.
func (c *Container) Kill() {
	_ = c.cmd.Process.Kill() // it may be gone already, which is what is wanted
}

// Done is closed when process 1 has been reaped, after which no process of the sandbox exists.
func (c *Container) Done() <-chan struct{} { return c.done }

// plan is what the child is told to build.
type plan struct {
	Spec   call.Create       `json:"spec"`
	Layers []layer           `json:"layers"`
	Links  map[string]string `json:"links,omitempty"`
	Hidden []rootfs.Hidden   `json:"hidden,omitempty"`
	// Shared says that something is writable for both the sandbox and the host.
	Shared bool `json:"shared,omitempty"`
	// Root says that the first tree is the root's lower layer; otherwise the root is empty but for Links.
	Root bool `json:"root"`
	// OwnTrees says that the child opens the layers itself: there is no privilege to map ids through mounts.
	OwnTrees  bool     `json:"own_trees"`
	Runner    string   `json:"runner"`
	Kernel    *Kernel  `json:"kernel,omitempty"`
	Self      int      `json:"self"`              // the user and group that set-up takes on first
	Sockets   []string `json:"sockets,omitempty"` // paths inside to cover
	Workspace int      `json:"workspace"`
	Setgroups bool     `json:"setgroups"`
	PIDs      int64    `json:"pids"`
	Disk      int64    `json:"disk"`
	Files     int64    `json:"files"`   // on scratch
	Scratch   bool     `json:"scratch"` // is the last of the trees
	scratch   *os.File // that, in the child
	Waits     bool     `json:"waits,omitempty"` // it is only prepared: a steward will finish it
	MachineID string   `json:"machine_id"`
}

// layer is one tree of the view, by path.
type layer struct {
	Source   string   `json:"source"`
	Target   string   `json:"target"`
	Mode     string   `json:"mode"`
	Pins     [][]byte `json:"pins,omitempty"`
	ReadOnly [][]byte `json:"read_only,omitempty"`
	File     bool     `json:"file,omitempty"`
	Host     bool     `json:"host,omitempty"`
	Alone    bool     `json:"alone,omitempty"` // no program of the host works in it
}

// proceed tells the child that its ids are mapped; the trees come with it.
type proceed struct {
	Go bool `json:"go"`
}

// report is what the child says.
type report struct {
	Port      bool          `json:"port,omitempty"`
	Listeners bool          `json:"listeners,omitempty"`
	Upper     bool          `json:"upper,omitempty"`
	Scratch   bool          `json:"scratch,omitempty"`
	Log       bool          `json:"log,omitempty"`
	Steward   bool          `json:"steward,omitempty"`
	Stage     bool          `json:"stage,omitempty"`
	Taken     int           `json:"taken,omitempty"` // numbers of overlays that the stage has
	Done      bool          `json:"done,omitempty"`
	Error     *call.Refused `json:"error,omitempty"`
}

// refusal wraps an error of the child for its parent.
func refusal(err error) *call.Refused {
	r := &call.Refused{Kind: fault.KindOf(err), Public: "cannot build the sandbox", Hint: fault.HintOf(err), Detail: err.Error()}
	if e, ok := errors.AsType[*fault.Error](err); ok {
		r.Public, r.Detail = e.Public, ""
		if e.Cause != nil {
			r.Detail = e.Cause.Error()
		}
	}
	return r
}

func procPath(pid int, name string) string { return "/proc/" + strconv.Itoa(pid) + "/" + name }

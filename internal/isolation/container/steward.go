package container

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/netns"
	"github.com/cofferdam/cofferdam/internal/rootfs"
	"github.com/cofferdam/cofferdam/internal/supervisor/call"
)

// StewardName is argv[0] of the process that finishes a prepared sandbox.
const StewardName = "cofferdam-steward"

// engageSteward starts the steward, in all of the sandbox's namespaces but a mount namespace of its own in which it still has the host's files, and hands its socket to
// the parent. It is a child of process 1: it cannot outlive the sandbox.
func engageSteward(conn *call.Conn) error {
	ours, theirs, err := call.Pair()
	if err != nil {
		return err
	}
	defer theirs.Close()
	defer ours.Close()
	steward := exec.Cmd{
		Path: "/proc/self/exe", Args: []string{StewardName}, Env: []string{"GOMAXPROCS=1"}, ExtraFiles: []*os.File{theirs},
		SysProcAttr: &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS},
	}
	if err := steward.Start(); err != nil {
		return fmt.Errorf("start the steward: %w", err)
	}
	if err := steward.Process.Release(); err != nil { // process 1 takes note of its end, whatever that is by then
		return err
	}
	return conn.Send(report{Steward: true}, ours)
}

// leaveStage hands what it takes to extend the view to the parent, for the steward.
func leaveStage(conn *call.Conn, view *rootfs.View) error {
	u, err := view.Keep()
	if err != nil {
		return err
	}
	defer u.Stage.Close()
	return conn.Send(report{Stage: true, Taken: u.Taken}, u.Stage)
}

// Steward is the life of that process: it waits until the sandbox is somebody's, finishes it, and ends. No program of the sandbox's has run by then.
func Steward() {
	runtime.LockOSThread()
	unix.Umask(0o022) // as set-up has
	syscall.CloseOnExec(fdParent)
	conn := call.NewConn(os.NewFile(fdParent, "supervisor"))
	replaced, err := steward(conn)
	if err == nil {
		err = conn.Send(report{Done: true}, replaced) // with it, the supervisor waits for the end of the rules that were there, and not this process
	}
	if err != nil {
		_ = conn.Send(report{Error: refusal(err)}) // if the supervisor is gone, the sandbox ends with it
	}
	os.Exit(0)
}

// steward finishes the sandbox. It returns what Door.Open did.
func steward(conn *call.Conn) (replaced *os.File, err error) {
	var o order
	files, err := conn.Receive(&o)
	if err != nil {
		return nil, err
	}
	if m := o.Plan.Kernel.machine(); m != nil {
		return openAround(conn, o, *m)
	}
	if len(files) < 2 {
		return nil, fmt.Errorf("got %d files, want the stage and a namespace", len(files))
	}
	unfinished, namespace, trees := rootfs.Unfinished{Stage: files[0], Taken: o.Taken, Settled: o.Settled}, files[1], files[2:]
	if o.Plan.OwnTrees {
		if trees, err = o.Plan.layerTrees(-1); err != nil { // before anything is mounted
			return nil, err
		}
	}
	if replaced, err = o.Door.Open(netns.Config{Networks: o.Plan.Spec.Networks, Everything: o.Plan.Spec.Everything}); err != nil {
		return nil, err
	}
	if len(trees) != len(o.Plan.Layers) {
		return nil, fmt.Errorf("got %d trees, want %d", len(trees), len(o.Plan.Layers))
	}
	cfg := rootfs.Config{Workspace: o.Plan.Workspace, Trust: o.Plan.Spec.Trust}
	if !o.Plan.Scratch { // else it is the host's, for the parent to bound
		cfg.ScratchSize, cfg.ScratchFiles = o.Plan.Disk, o.Plan.scratchFiles()
	}
	for i, l := range o.Plan.Layers {
		cfg.Layers = append(cfg.Layers, l.view(trees[i]))
	}
	extension, err := rootfs.Extend(cfg, unfinished)
	if err != nil {
		return nil, err
	}
	if extension.Upper != nil {
		if err := conn.Send(report{Upper: true}, extension.Upper); err != nil {
			return nil, err
		}
	}
	return replaced, extension.Attach(namespace, o.At)
}

// openAround is all that the steward of a machine does: what is missing inside the machine is put there from inside.
func openAround(conn *call.Conn, o order, m Machine) (replaced *os.File, err error) {
	if m.Changes > 0 {
		if err := gather(conn, m.Changes, m.ChangedFiles); err != nil {
			return nil, err
		}
	}
	return o.Door.Open(netns.Config{Networks: o.Plan.Spec.Networks, Everything: o.Plan.Spec.Everything})
}

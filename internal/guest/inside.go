package guest

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/frame"
	"github.com/cofferdam/cofferdam/internal/guest/boot"
	"github.com/cofferdam/cofferdam/internal/netns"
	"github.com/cofferdam/cofferdam/internal/rights"
	"github.com/cofferdam/cofferdam/internal/rootfs"
	"github.com/cofferdam/cofferdam/internal/seccomp"
	"github.com/cofferdam/cofferdam/internal/supervisor/call"
)

// fdParent is the child's socket to its parent; descriptor 0 is the runner's boot line.
const fdParent = 3

// openFiles are the limits of open files of the sandbox's programs: what Linux programs expect, and the kernel's own bound.
const (
	openFilesSoft = 1024
	openFilesHard = 1 << 20
)

// Sandbox is the child: it builds the sandbox around itself and becomes the runner. It returns never.
//
// Everything here runs on one thread, because capabilities, no_new_privs, Landlock and seccomp belong to threads until the final exec.
func Sandbox() {
	runtime.LockOSThread()
	if err := unix.CloseRange(fdParent, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		os.Exit(1) // nobody to tell: what the socket is, is not known to be safe
	}
	conn := call.NewConn(os.NewFile(fdParent, "init"))
	err := become(conn)
	_ = conn.Send(report{Error: err.Error()}) // if nobody hears it the end of the process says enough
	os.Exit(1)
}

func become(conn *call.Conn) error {
	var c charge
	files, err := conn.Receive(&c)
	if err != nil {
		return err
	}
	b := c.Boot
	if len(files) > 0 {
		return becomeAnother(conn, b, files[0])
	}
	cfg, err := viewOf(b)
	if err != nil {
		return err
	}
	view, err := rootfs.Compose(cfg)
	if err != nil {
		return fmt.Errorf("compose the file system: %w", err)
	}
	if err := tellBuilt(conn, view, c.Waits); err != nil {
		return err
	}
	if err := standApart(b); err != nil {
		return err
	}
	if err := view.Enter(); err != nil {
		return err
	}
	if err := giveUp(b); err != nil {
		return err
	}
	return becomeRunner(func() error { return syscall.Exec(rootfs.RunnerPath, runnerArgs, runnerEnv) })
}

// tellBuilt reports what was composed.
func tellBuilt(conn *call.Conn, view *rootfs.View, waits bool) error {
	r := report{Built: true}
	var files []*os.File
	if view.Upper != nil {
		files = append(files, view.Upper)
	}
	if waits { // nothing gathers changes then
		u, err := view.Keep()
		if err != nil {
			return err
		}
		defer u.Stage.Close()
		r.Taken, files = u.Taken, []*os.File{u.Stage}
	}
	return conn.Send(r, files...)
}

// becomeAnother is become where the file system has been built, and used by another run, whose mount namespace comes along. Nothing in it is believed: the runner's
// executable is this machine's, and no path of the view decides what is started.
func becomeAnother(conn *call.Conn, b boot.Boot, namespace *os.File) error {
	runner, err := tree(boot.RunnerPath)
	if err != nil {
		return err
	}
	if err := rootfs.Continue(rootfs.Config{Hostname: b.Hostname, MachineID: b.MachineID, Nameserver: netns.Gateway4.String(), Trust: b.Trust, OwnMachine: true}, namespace); err != nil {
		return fmt.Errorf("continue with the file system: %w", err)
	}
	if err := conn.Send(report{Built: true}); err != nil {
		return err
	}
	if err := standApart(b); err != nil {
		return err
	}
	if err := giveUp(b); err != nil {
		return err
	}
	return becomeRunner(func() error { return executeFile(runner, runnerArgs, runnerEnv) })
}

// standApart gives the sandbox a host name and a place of its own among control groups.
func standApart(b boot.Boot) error {
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return fmt.Errorf("make a cgroup namespace: %w", err)
	}
	if err := unix.Sethostname([]byte(b.Hostname)); err != nil {
		return fmt.Errorf("set the host name: %w", err)
	}
	return nil
}

// executeFile becomes a program by an open file, whatever its name leads to.
func executeFile(f *os.File, args, env []string) error {
	argv, err1 := syscall.SlicePtrFromStrings(args)
	envv, err2 := syscall.SlicePtrFromStrings(env)
	empty, err3 := syscall.BytePtrFromString("")
	if err := errors.Join(err1, err2, err3); err != nil {
		return err
	}
	_, _, errno := syscall.RawSyscall6(unix.SYS_EXECVEAT, f.Fd(), uintptr(unsafe.Pointer(empty)), uintptr(unsafe.Pointer(&argv[0])), uintptr(unsafe.Pointer(&envv[0])), unix.AT_EMPTY_PATH, 0)
	return errno
}

// viewOf describes what the sandbox sees, of the disks that are mounted already.
func viewOf(b boot.Boot) (rootfs.Config, error) {
	cfg := rootfs.Config{
		Workspace: -1, ScratchSize: b.Scratch.Bytes, ScratchFiles: b.Scratch.Files, OwnMachine: true,
		Hostname: b.Hostname, MachineID: b.MachineID, Nameserver: netns.Gateway4.String(), Trust: b.Trust,
	}
	var err error
	if cfg.Root, err = tree(diskPath(b.Root)); err != nil {
		return cfg, err
	}
	if cfg.Runner, err = tree(boot.RunnerPath); err != nil {
		return cfg, err
	}
	err = addLayers(&cfg, b)
	return cfg, err
}

// addLayers adds the workspace and the mounts, whose disks are mounted.
func addLayers(cfg *rootfs.Config, b boot.Boot) (err error) {
	for i, l := range layers(b) {
		if l.Tree, err = tree(l.source); err != nil {
			return err
		}
		if l.workspace {
			cfg.Workspace = i
		}
		cfg.Layers = append(cfg.Layers, l.Layer)
	}
	return nil
}

// layer is one that is still to be opened.
type layer struct {
	rootfs.Layer
	source    string
	workspace bool
}

// layers are the workspace and the mounts, those that lie deeper behind those that would cover them.
func layers(b boot.Boot) []layer {
	var all []layer
	if w := b.Workspace; w != nil {
		mode := rootfs.Bound
		if w.Mode == boot.Overlay {
			mode = rootfs.Overlay
		}
		all = append(all, layer{rootfs.Layer{Target: w.Target, Mode: mode}, diskPath(w.Disk), true})
	}
	for _, m := range b.Mounts {
		source := diskPath(m.Disk)
		if m.File {
			source = filepath.Join(source, boot.FileName)
		}
		all = append(all, layer{rootfs.Layer{Target: m.Target, Mode: rootfs.Bound, File: m.File}, source, false})
	}
	slices.SortStableFunc(all, func(a, b layer) int { return strings.Compare(a.Target, b.Target) })
	return all
}

func tree(path string) (*os.File, error) {
	return rootfs.Tree(path, false, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV, -1)
}

// giveUp gives up what a sandbox must not have at any level.
func giveUp(b boot.Boot) error {
	// By syscall, which knows that Go must not put back another one.
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: openFilesSoft, Max: openFilesHard}); err != nil {
		return fmt.Errorf("limit open files: %w", err)
	}
	bounds := rights.Bounds{OpenFiles: uint64(b.OpenFiles), Users: true, Profile: seccomp.Sandbox()}
	if b.PIDs > 0 {
		bounds.Processes = uint64(b.PIDs) + frame.ReservedProcesses // for users but root; the control group counts all
	}
	return rights.GiveUp(bounds)
}

// What the runner is started with, at every level.
var (
	runnerArgs = []string{"cofferdam-runner"}
	runnerEnv  = []string{"GOMAXPROCS=1", boot.Undisturbed}
)

// becomeRunner executes the runner. All descriptors but the boot line close on exec.
func becomeRunner(execute func() error) error {
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	for fd := 1; fd <= 2; fd++ {
		if err := unix.Dup3(int(null.Fd()), fd, 0); err != nil {
			return fmt.Errorf("silence the runner: %w", err)
		}
	}
	return fmt.Errorf("start the runner: %w", execute())
}

// Package gvisor (SANDBOX) is isolation level "gvisor": what level container builds, with gVisor's kernel between the sandbox and the host's.
//
// A program inside speaks to a kernel written in Go that runs as an ordinary process, without privilege on the host, behind a system call filter of its own. That process,
// runsc, stands in the namespaces that level container makes: it has nobody's ids, a view of the sandbox's files and no other, and one cable, to the gateway. Its own network
// stack is what programs inside see; their packets arrive in the room by a device. Killing process 1 of the namespaces from outside ends all of it.
package gvisor

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strings"
	"syscall"
	"unicode"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/isolation/container"
	"github.com/cofferdam/cofferdam/internal/netns"
	"github.com/cofferdam/cofferdam/internal/supervisor/call"
)

// Level is the level's name.
const Level = "gvisor"

// Program is the name of the executable that Start wants beside the others.
const Program = "runsc"

// Sandbox is a running sandbox. Its methods may be called from any goroutine.
type Sandbox struct {
	*container.Container
	room *netns.Hold // by which the cable's end is looked for
}

// Start builds a sandbox and returns when process 1 has become runsc; whether that brings the runner up is seen by the runner's call. On error nothing is left.
func Start(ctx context.Context, spec call.Create, o container.Options) (*Sandbox, error) {
	if _, err := os.Stat(o.Kernel.Program); err != nil {
		return nil, fault.New(fault.Unsupported, "isolation level gvisor needs %s, which is not installed", Program).WithHint("%s", Remedy).Because(err)
	}
	if !o.IDs.Setgroups() && sharesFolders(spec) {
		return nil, fault.New(fault.Unsupported, "at level gvisor, a folder that the host's programs can write too needs more than one user id").
			WithHint("leave the workspace an overlay and take the changes with cofferdam apply, or run as root, or choose --isolation container")
	}
	var err error
	if o.Kernel.Devices, err = devices(ctx, spec.Platform); err != nil {
		return nil, err
	}
	c, err := container.Start(ctx, spec, o)
	if err != nil {
		return nil, err
	}
	return Adopt(c)
}

// sharesFolders says whether something is writable for both the sandbox and the host. runsc's gofer is then apart from gVisor's kernel, which runs as another user id (flags).
func sharesFolders(spec call.Create) bool {
	return spec.Workspace != nil && spec.Workspace.Mode == "rw" || slices.ContainsFunc(spec.Mounts, func(m call.Mount) bool { return m.Write })
}

// Remedy says how to get what the level needs.
const Remedy = "build it with: make gvisor  and install bin/runsc beside cofferdam-supervisor; or choose --isolation container"

// HostTasks is how many processes and threads of the host a sandbox with a bound of its own may need: one for each of its own, one for each address space,
// and those of runsc's three processes. The bound that programs meet is the one inside.
func HostTasks(inside int64) int64 { return 2*inside + 512 }

// Become turns the calling process into runsc, with the runner as the command of its sandbox. It returns only on failure.
func Become(g container.Ground) error {
	if err := writeBundle(g); err != nil {
		return err
	}
	if err := handOn(g.Waits); err != nil {
		return err
	}
	if err := unix.Setns(int(g.Network.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter the cable's namespace: %w", err)
	}
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	for fd := 1; fd <= 2; fd++ {
		if err := unix.Dup3(int(null.Fd()), fd, 0); err != nil {
			return fmt.Errorf("silence runsc: %w", err)
		}
	}
	if g.PIDs > 0 { // not what programs inside meet, but what runsc could use up of the host if it were taken over, where there is no control group
		most := uint64(HostTasks(g.PIDs))
		if err := unix.Setrlimit(unix.RLIMIT_NPROC, &unix.Rlimit{Cur: most, Max: most}); err != nil {
			return fmt.Errorf("limit runsc's processes: %w", err)
		}
	}
	err = syscall.Exec(g.Program, flags(g), []string{})
	return fmt.Errorf("start runsc: %w", err)
}

// handOn has nothing go along but the boot line, in a pipe: descriptor 0 is one already where the sandbox waits for it.
func handOn(waits bool) error {
	if waits {
		return unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC)
	}
	return bootPipe()
}

// bootPipe puts the boot line, which is in a file, into a pipe: a file that is handed on into the sandbox could be read there again, a pipe is empty after the runner has read.
func bootPipe() error {
	const mostBoot = 4 << 10 // what the runner takes, less than a pipe holds
	line, err := io.ReadAll(io.LimitReader(os.Stdin, mostBoot))
	if err != nil {
		return fmt.Errorf("read the boot line: %w", err)
	}
	var ends [2]int
	if err := unix.Pipe2(ends[:], unix.O_CLOEXEC); err != nil {
		return fmt.Errorf("make a pipe for the boot line: %w", err)
	}
	if _, err := unix.Write(ends[1], line); err != nil {
		return fmt.Errorf("write the boot line: %w", err)
	}
	clear(line)
	if err := unix.Dup3(ends[0], 0, 0); err != nil {
		return fmt.Errorf("hand the boot line on: %w", err)
	}
	return unix.CloseRange(uint(min(ends[0], ends[1])), math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC)
}

// Remains looks, once and after Done, for what level container looks for, and for the room's end of the cable, which goes when no process has the other.
func (s *Sandbox) Remains() ([]string, error) {
	erased, err := s.Container.Remains()
	if s.Log != nil {
		_ = s.Log.Close() // only read; it holds scratch memory
	}
	if err != nil {
		s.room.Close()
		return erased, err
	}
	if err := s.room.Gone(); err != nil {
		return erased, err
	}
	return append(erased, "network cable"), nil
}

// Trouble returns what runsc last said that it could not do, or nothing. A taken-over runsc can say anything, so it is bounded and for people only.
func (s *Sandbox) Trouble() string {
	if s.Log == nil {
		return ""
	}
	const most = 256 << 10
	data, err := io.ReadAll(io.NewSectionReader(s.Log, 0, most))
	if err != nil {
		return ""
	}
	last := ""
	for line := range strings.Lines(string(data)) {
		var said struct{ Level, Msg string }
		if json.Unmarshal([]byte(line), &said) == nil && said.Level == "error" && said.Msg != "" {
			last = said.Msg
		}
	}
	const longest = 300
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, last[:min(len(last), longest)])
}

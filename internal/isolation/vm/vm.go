// Package vm (SANDBOX) is isolation levels "vm" and "vm-emulated": a virtual machine with a kernel of its own, and the runner in it as process 1 of a namespace.
//
// The machine has a processor, memory, read-only disks, one network device that leads into the room, and one port to the supervisor: nothing of the host is shared with
// it. The program that is the machine, QEMU, stands alone in namespaces of its own as nobody, with no capability, no file but its own parts, an empty network,
// and filters ([container.Machine]). At level "vm" the processor's own virtualisation executes what runs inside, and the level is refused where that does not
// really work; at level "vm-emulated" a program does, which those who write it do not call a boundary.
//
// Everything that the machine says is hostile: frames, QEMU's answers and the changes of the workspace are bounded, and the changes are unpacked by a process without
// rights ([Unpack]). Killing QEMU ends all of the sandbox.
package vm

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/guest/boot"
	"github.com/cofferdam/cofferdam/internal/isolation/container"
	"github.com/cofferdam/cofferdam/internal/netns"
	"github.com/cofferdam/cofferdam/internal/scratch"
	"github.com/cofferdam/cofferdam/internal/supervisor/call"
)

// The levels' names.
const (
	Level         = "vm"
	LevelEmulated = "vm-emulated"
)

// Levels lists the names.
func Levels() []string { return []string{Level, LevelEmulated} }

// Remedy says how to get what the levels need.
const Remedy = "get QEMU and a kernel with: make vm  and install bin/vm beside cofferdam-supervisor; or choose --isolation gvisor"

// Emulated is what a sandbox of level "vm-emulated" gives away, for people.
const Emulated = "processor: imitated by a program, many times slower; its authors do not call that a boundary, so the wall is the jail around it"

// Swapped is what a sandbox gives away whose machine's memory the host may swap: in that lie scratch, and the key of what of it is encrypted.
const Swapped = "memory: the machine's may reach this machine's swap, which only root or a delegated control group can forbid"

// Sandbox is a running sandbox. Its methods may be called from any goroutine.
type Sandbox struct {
	*container.Container
	monitor monitor
	host    *boot.Host
	port    *os.File
	control *os.File
	said    *output
	room    *netns.Hold
	state   descriptor // what its devices start from, by its own number
	keeping *keeping   // how it is kept; nil where that is not asked for
	since   time.Time  // from when on its folder is a copy
	done    chan struct{}

	stopping atomic.Bool                // it was told to end
	ended    atomic.Pointer[boot.Ended] // what it said at its end
	lost     atomic.Pointer[string]     // why the changes are not complete
}

// Start builds a sandbox and returns when the runner was started in it: it switches a machine on, or makes a copy of a snapshot's. On error nothing is left.
func Start(ctx context.Context, folder string, spec call.Create, o container.Options) (*Sandbox, error) {
	if err := checkSpec(spec); err != nil {
		return nil, err
	}
	h, about, err := design(ctx, folder, spec)
	if err != nil {
		return nil, err
	}
	d, p, since, err := assemble(ctx, spec, o, h, about)
	if err != nil {
		return nil, err
	}
	defer d.close()
	defer p.close()
	driver, err := driverFor(ctx, folder, about, spec)
	if err != nil {
		return nil, err
	}
	k, err := newKeeping(ctx, spec, h, about, p, since)
	if err != nil {
		return nil, err
	}
	s, err := power(ctx, driver, h, p, spec, o)
	if err != nil {
		return nil, errors.Join(err, k.close())
	}
	s.keeping, s.since = k, since
	if err = s.attach(ctx, driver); err == nil {
		err = s.wake(ctx, p.state != nil)
	}
	if err == nil {
		err = s.boot(ctx, spec, d, container.NewMachineID())
	}
	if err != nil {
		s.abandon()
		return nil, s.explain(err)
	}
	go s.follow(spec, o)
	return s, nil
}

// attach takes hold of what a machine that was started is spoken to by.
func (s *Sandbox) attach(ctx context.Context, d driver) (err error) {
	if s.monitor, err = d.attend(ctx, s.control); err != nil || s.port != nil {
		return err
	}
	if s.port, err = takePort(ctx, s.Port, s.Container.Done()); err != nil {
		return err
	}
	s.host = boot.NewHost(s.port)
	return nil
}

// driverFor says which program makes the machine: QEMU where the machine is, or is to be, a snapshot's, whose memory is a file, and for encrypted scratch, since no other is
// handed an open file to write to: they open their disks anew, by a path, which their jail lets them do only to read.
func driverFor(ctx context.Context, folder string, about boot.About, spec call.Create) (driver, error) {
	d := choose(about)
	if spec.Level != Level {
		return d, nil
	}
	var err error
	if spec.Scratch == scratch.Encrypted || spec.Snapshot != nil || spec.From != "" {
		_, err = d.version(ctx)
	} else {
		d, _, err = pick(ctx, folder, about)
	}
	if err != nil {
		return nil, fault.New(fault.Unsupported, "%v", err).WithHint("%s", Remedy)
	}
	return d, nil
}

// until has everything that waits for the machine end with a context, until the returned function is called.
func (s *Sandbox) until(ctx context.Context) func() bool {
	return context.AfterFunc(ctx, func() { _ = s.port.SetDeadline(time.Now()) })
}

// wake waits for the machine to be up and idle, or brings a copy to where the snapshot was taken.
func (s *Sandbox) wake(ctx context.Context, copied bool) error {
	defer s.until(ctx)()
	if copied {
		return s.resumeFrom(ctx)
	}
	_, err := s.host.Ready()
	return err
}

func (s *Sandbox) resumeFrom(ctx context.Context) error {
	if err := s.monitor.load(ctx, s.state); err != nil {
		return err
	}
	return s.monitor.resume(ctx)
}

// boot tells the machine what to become, and waits until the runner was started.
func (s *Sandbox) boot(ctx context.Context, spec call.Create, d *disks, id string) error {
	defer s.until(ctx)()
	b := boot.Boot{
		Time: time.Now(), Hostname: spec.Hostname, MachineID: id, Workspace: d.workspace, Mounts: d.mounts,
		Scratch: d.scratch(spec),
		Trust:   spec.Trust, Runner: spec.Boot, PIDs: spec.Limits.PIDs, OpenFiles: spec.Limits.OpenFiles, Rights: boot.Usual, Rest: spec.Snapshot != nil,
	}
	_, _ = rand.Read(b.Seed[:]) // crypto/rand.Read never fails since Go 1.24
	if err := s.host.Boot(b); err != nil {
		return err
	}
	return s.host.Started()
}

// explain adds to an error what the machine's program said last, for that is often the reason.
func (s *Sandbox) explain(err error) error {
	if text := s.said.last(); text != "" {
		err = fmt.Errorf("%w (%s)", err, text)
	}
	return fault.New(fault.Unsupported, "the virtual machine does not start").WithHint("cofferdam doctor says what this host lacks").Because(err)
}

// abandon ends a machine that will not be used, and everything of it.
func (s *Sandbox) abandon() {
	s.Container.Kill()
	<-s.Container.Done()
	if s.room != nil {
		s.room.Close()
	}
	s.Container.Release()
	s.letGo()
}

// letGo closes the ends of everything that the machine was spoken to by.
func (s *Sandbox) letGo() {
	for _, f := range []*os.File{s.control, s.port} {
		if f != nil {
			_ = f.Close() // streams whose other end is gone
		}
	}
	_ = s.keeping.close() // a hold on memory
}

// grace is how long a machine has to end its sandbox's processes when it is told to, before it is ended itself.
const grace = 15 * time.Second

// Kill ends every process of the sandbox. Where a folder's changes are still in the machine it is first asked to end them itself and to send the changes, for which it has
// some time. It may be called again.
func (s *Sandbox) Kill() {
	s.keeping.giveUp()
	if s.Upper == nil {
		s.Container.Kill()
		return
	}
	if s.stopping.Swap(true) || s.ended.Load() != nil {
		return // it is told already, or the changes are on their way, and what comes after them is the end
	}
	if err := errors.Join(s.port.SetWriteDeadline(time.Now().Add(time.Second)), s.host.Stop()); err != nil {
		s.Container.Kill()
		return
	}
	time.AfterFunc(grace, func() {
		if s.ended.Load() == nil {
			s.Container.Kill()
		}
	})
}

// Hurry ends the machine at once, whatever is still in it.
func (s *Sandbox) Hurry() {
	s.keeping.giveUp()
	s.Container.Kill()
}

// Since is from when on the sandbox's folder is a copy: its start, or that of the run whose snapshot it continues.
func (s *Sandbox) Since() time.Time { return s.since }

// Done is closed when process 1 has been reaped and all that the machine said is taken in.
func (s *Sandbox) Done() <-chan struct{} { return s.done }

// Remains looks, once and after Done, for what level container looks for, and for the machine's network device, which goes with the program that holds its other end.
func (s *Sandbox) Remains() ([]string, error) {
	erased, err := s.Container.Remains()
	if err != nil {
		if s.room != nil {
			s.room.Close()
		}
		return erased, err
	}
	if s.room == nil {
		return erased, nil
	}
	if err := s.room.Gone(); err != nil {
		return erased, err
	}
	return append(erased, "network device"), nil
}

// OutOfMemory is how many processes the machine's kernel killed because its memory ran out, by its own word.
func (s *Sandbox) OutOfMemory() int {
	if e := s.ended.Load(); e != nil {
		return e.OutOfMemory
	}
	return 0
}

// Trouble returns what a machine that did not end in order said last, or nothing.
func (s *Sandbox) Trouble() string {
	if s.ended.Load() != nil {
		return ""
	}
	return s.said.last()
}

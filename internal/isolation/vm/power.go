package vm

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/guest/boot"
	"github.com/cofferdam/cofferdam/internal/isolation/container"
	"github.com/cofferdam/cofferdam/internal/netns"
	"github.com/cofferdam/cofferdam/internal/supervisor/call"
)

// The memory of a machine whose sandbox has no bound, and the least, in bytes: a kernel and the runner need some.
const (
	defaultMemory = 1 << 30
	leastMemory   = 128 << 20
	// Overhead is what QEMU needs besides the machine's memory, in bytes: emulated code, devices, itself.
	Overhead = 192 << 20
	// HostTasks is how many threads QEMU may have: for each processor one, and up to 64 that read disks.
	HostTasks = 128
	mostCPUs  = 64
)

// Memory returns the size of the machine's memory in bytes for a limit, of which 0 is none.
func Memory(limit int64) int64 {
	if limit == 0 {
		return defaultMemory
	}
	return max(limit, leastMemory) >> 20 << 20
}

// processors returns how many processors the machine has for a limit in thousandths of one, of which 0 is none.
func processors(limit int64) int { return int(min(max((limit+999)/1000, 1), mostCPUs)) }

// design says what a sandbox's machine has, but for what is opened for it, and refuses what this host cannot deliver.
func design(ctx context.Context, folder string, spec call.Create) (hardware, boot.About, error) {
	about, err := boot.ReadAbout(folder)
	if err != nil {
		return hardware{}, about, fault.New(fault.Unsupported, "isolation level %s needs QEMU and a kernel, which are not installed", spec.Level).WithHint("%s", Remedy).Because(err)
	}
	h := hardware{
		accel: emulated, board: board(about.Machine), memory: Memory(spec.Limits.Memory), cpus: processors(spec.Limits.MilliCPUs),
		kernel: filepath.Join(folder, boot.KernelName), initram: filepath.Join(folder, boot.InitramName),
	}
	if err := needTun(); err != nil {
		return h, about, err
	}
	if spec.Level == Level {
		h.accel = hardwareKVM
		return h, about, needKVM(ctx)
	}
	return h, about, nil
}

// parts are the open files that a machine is made of.
type parts struct {
	disks []*os.File
	// scratch is the one file of all that the machine's program may write to, of so many bytes; nil for none.
	scratch *os.File
	// ram is the memory of a machine that is, or is to be, a snapshot's, and state what its devices start from, nil for one that is switched on.
	ram, state *os.File
	own        []*os.File // what close closes
}

func (p parts) close() {
	for _, f := range p.own {
		_ = f.Close() // the machine has its own
	}
}

// power starts the machine's program. On error nothing is left.
func power(ctx context.Context, d driver, h hardware, p parts, spec call.Create, o container.Options) (s *Sandbox, err error) {
	s = &Sandbox{done: make(chan struct{})}
	theirs, err := s.connect(d)
	defer func() {
		for _, f := range theirs {
			_ = f.Close() // the machine has its own, or there is none
		}
		if err != nil && s.Container == nil {
			s.letGo()
		}
	}()
	if err != nil {
		return nil, err
	}
	said, end, err := newOutput()
	if err != nil {
		return nil, err
	}
	defer end.Close()
	s.said = said
	files := h.fit(theirs, p)
	s.state = h.state
	l, err := d.launch(h)
	if err != nil {
		return nil, fault.New(fault.Unsupported, "%s cannot be started", d.name()).WithHint("%s", Remedy).Because(err)
	}
	if f, ok := d.(firecracker); ok {
		config, err := f.configuration(h)
		if err != nil {
			return nil, err
		}
		defer config.Close()
		files = append(files, config)
	}
	if n, ok := d.(interface{ needs() needs }); ok {
		l.Sockets, l.Port, l.Room = n.needs().sockets, n.needs().port, n.needs().room
	}
	l.Output, l.Files, l.Tasks = end, files, HostTasks
	if p.scratch != nil {
		l.Writes = boot.SwapSize(spec.Limits.Disk)
	}
	if gathers(spec) {
		l.Changes, l.ChangedFiles = mostChanges(spec), scratchFiles(spec.Limits)
	}
	o.Kernel, o.Scratch = &container.Kernel{Program: l.program, Machine: &l.Machine}, nil
	c, err := container.Start(ctx, spec, o)
	if err != nil {
		return nil, err
	}
	s.Container = c
	if l.Room {
		return s, nil // the device goes with the room, which the gateway holds
	}
	if s.room, err = netns.HoldRoom(c.Listeners); err != nil {
		s.abandon()
		return nil, err
	}
	s.label(spec, o)
	return s, nil
}

// label notes what is weaker about the machine than its level promises where all is there.
func (s *Sandbox) label(spec call.Create, o container.Options) {
	if spec.Level == LevelEmulated {
		s.Weaker = append(s.Weaker, Emulated)
	}
	if os.Geteuid() != 0 && o.Cgroup == nil && container.Swaps() {
		s.Weaker = append(s.Weaker, Swapped)
	}
}

// connect makes the streams by which the machine is spoken to, and returns its ends in their order: control, port.
func (s *Sandbox) connect(d driver) (theirs []*os.File, err error) {
	e, err := endsFor(d)
	if err != nil {
		return nil, err
	}
	s.control, s.port = e.control, e.port
	if s.port != nil {
		s.host = boot.NewHost(s.port)
	}
	return e.theirs, nil
}

// fit gives each part its number, and returns the files in the order of these.
func (h *hardware) fit(ends []*os.File, p parts) (files []*os.File) {
	add := func(f *os.File) descriptor {
		files = append(files, f)
		return descriptor(container.FirstFile + len(files) - 1)
	}
	numbers := []*descriptor{&h.control, &h.port}
	for i, f := range ends {
		*numbers[i] = add(f)
	}
	for _, f := range p.disks {
		h.disks = append(h.disks, add(f))
	}
	if p.scratch != nil {
		h.scratch = add(p.scratch)
	}
	if p.ram != nil {
		h.ram = add(p.ram)
	}
	if p.state != nil {
		h.state = add(p.state)
	}
	h.wire = descriptor(container.FirstFile + len(files))
	return files
}

// pair makes two connected stream sockets, of which ours can have deadlines.
func pair() (ours, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make a socket pair: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "machine"), os.NewFile(uintptr(fds[1]), "machine"), nil
}

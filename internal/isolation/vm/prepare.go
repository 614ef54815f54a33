package vm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/guest/boot"
	"github.com/cofferdam/cofferdam/internal/isolation/container"
	"github.com/cofferdam/cofferdam/internal/scratch"
	"github.com/cofferdam/cofferdam/internal/supervisor/call"
)

// Prepared is a machine that is built before it is known whose it will be: its root is there, its runner waits for the boot line, its room lets no packet through, and its processors
// stand still where their program can be told to, so that it takes no time and sees none pass. It is a machine of its own from its start, not a copy of another, and becomes one sandbox at most.
type Prepared struct {
	machine *Sandbox
	stopped bool // its processors are; a program that takes no orders lets them idle
	spec    call.Create
	device  hardware
	// empty are the disks that have nothing on them yet, open for writing: what the sandbox's folders hold is written there before the machine looks.
	empty []*os.File
	id    string // of the machine
}

// preparedDisks is how many disks a prepared machine has: root, folder and two mounts are what most sandboxes have.
const preparedDisks = 4

// settling is how long a machine that has all goes on before it is stopped: its kernel has work left for later, which would else be done first by who takes it.
const settling = 2500 * time.Millisecond

// Prepare builds a machine for what spec says of level, root file system, host name and limits; it must say nothing of whose it is. On error nothing is left.
func Prepare(ctx context.Context, folder string, spec call.Create, o container.Options) (*Prepared, error) {
	if err := checkSpec(spec); err != nil {
		return nil, err
	}
	h, about, err := design(ctx, folder, spec)
	if err != nil {
		return nil, err
	}
	driver, err := driverFor(ctx, folder, about, spec)
	if err != nil {
		return nil, err
	}
	d, err := makeDisks(ctx, spec)
	if err != nil {
		return nil, err
	}
	defer d.close()
	p := &Prepared{spec: spec, device: h, id: container.NewMachineID()}
	for len(d.files) < preparedDisks {
		if err := p.addEmpty(d); err != nil {
			p.close()
			return nil, err
		}
	}
	o.Closed = true
	if p.machine, err = power(ctx, driver, h, parts{disks: d.files}, spec, o); err != nil {
		p.close()
		return nil, err
	}
	if err := p.build(ctx, driver, spec); err != nil {
		p.Discard()
		return nil, p.machine.explain(err)
	}
	return p, nil
}

// addEmpty adds a disk with nothing on it.
func (p *Prepared) addEmpty(d *disks) error {
	f, err := nameless(p.spec)
	if err != nil {
		return err
	}
	p.empty = append(p.empty, f)
	if err := f.Truncate(diskCapacity); err != nil {
		return fmt.Errorf("make an empty disk: %w", err)
	}
	readable, err := os.Open(itself(f)) // once more, without the right to write
	if err != nil {
		return fmt.Errorf("open the disk again: %w", err)
	}
	d.files = append(d.files, readable)
	return nil
}

// build has the machine build what does not depend on whose it is, and stops it.
func (p *Prepared) build(ctx context.Context, d driver, spec call.Create) error {
	s := p.machine
	if err := s.attach(ctx, d); err != nil {
		return err
	}
	defer s.until(ctx)()
	if _, err := s.host.Ready(); err != nil {
		return err
	}
	as := boot.Prepare{Hostname: spec.Hostname, MachineID: p.id, Scratch: boot.Scratch{Bytes: spec.Limits.Disk, Files: scratchFiles(spec.Limits)}, Rights: boot.Usual}
	if err := s.host.Prepare(as); err != nil {
		return err
	}
	if err := s.host.Prepared(); err != nil {
		return err
	}
	select {
	case <-time.After(settling):
	case <-ctx.Done():
		return ctx.Err()
	}
	err := s.monitor.pause(ctx)
	if p.stopped = err == nil; errors.Is(err, errMute) {
		return nil
	}
	return err
}

// PID returns the host's number of the machine's program.
func (p *Prepared) PID() int { return p.machine.PID() }

// Gone is closed when the machine's program has ended.
func (p *Prepared) Gone() <-chan struct{} { return p.machine.Container.Done() }

// Discard ends the machine and lets go of what there is of it.
func (p *Prepared) Discard() {
	p.close()
	p.machine.abandon()
}

func (p *Prepared) close() {
	for _, f := range p.empty {
		_ = f.Close() // the machine has its own
	}
}

// Finish makes the machine the sandbox that spec describes and lets its runner begin. On error it is of no use any more: the caller discards it, and may build one
// from the beginning. It may know the boot line by then, but no program has run in it that could use it, and the sockets that it could be used at are not the gateway's yet.
func (p *Prepared) Finish(ctx context.Context, spec call.Create, o container.Options) (*Sandbox, error) {
	if err := checkSpec(spec); err != nil {
		return nil, err
	}
	d, err := planDisks(spec)
	if err != nil {
		return nil, err
	}
	if err := p.fits(spec, d); err != nil {
		return nil, err
	}
	s := p.machine
	s.since = time.Now()
	for i, source := range d.sources {
		if err := source.write(ctx, p.empty[i]); err != nil {
			return nil, err
		}
	}
	var m container.Machine
	if gathers(spec) {
		m.Changes, m.ChangedFiles = mostChanges(spec), scratchFiles(spec.Limits)
	}
	if err := s.Open(ctx, spec, m); err != nil {
		return nil, err
	}
	if p.stopped {
		if err := s.monitor.resume(ctx); err != nil {
			return nil, err
		}
	}
	if err := s.boot(ctx, spec, d, p.id); err != nil {
		return nil, s.explain(err)
	}
	p.close()
	go s.follow(spec, o)
	return s, nil
}

// fits says why the machine cannot become what is wanted, or nothing.
func (p *Prepared) fits(spec call.Create, d *disks) error {
	was := p.spec
	switch {
	case was.Level != spec.Level, was.RootFS != spec.RootFS, was.RootDisk != spec.RootDisk, was.Hostname != spec.Hostname, was.UIDBase != spec.UIDBase,
		p.device.memory != Memory(spec.Limits.Memory), p.device.cpus != processors(spec.Limits.MilliCPUs), len(d.sources) > len(p.empty),
		spec.Scratch == scratch.Encrypted, spec.Limits.OpenFiles != 0, spec.From != "", spec.Snapshot != nil:
		return fault.New(fault.Conflict, "the prepared machine is another than the sandbox needs")
	}
	return nil
}

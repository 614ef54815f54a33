package vm

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/guest/boot"
	"github.com/cofferdam/cofferdam/internal/isolation/container"
	"github.com/cofferdam/cofferdam/internal/supervisor/call"
)

// Template is a machine that was stopped when it was up and idle, before it knew or drew anything of its own. Copies of it start in a tenth of the time.
//
// It is memory only, sealed: no copy can change it, and it is gone with the last hold of its files. A copy's memory is the template's until it writes to it, and copies
// could tell by time what is the same in another one's memory, so that a template is for one user's sandboxes only. It holds nothing secret: whatever makes a
// machine one of its own comes to it with the boot, the seed of its random numbers first.
type Template struct {
	// Key names what a copy must have in common with the template.
	Key string
	// RAM and State are the memory and the devices' state. Whoever holds them can start copies, in this process or another.
	RAM, State *os.File
}

// templateDisks is how many disks a template has. A sandbox with more is not a copy: root, workspace and two mounts are what most have.
const templateDisks = 4

// key is a digest of everything that decides whether a copy runs as the template did: program, kernel, initial file system and devices.
func key(h hardware, about boot.About) (string, error) {
	info, err := os.Stat(about.QEMU)
	if err != nil {
		return "", fmt.Errorf("look at the machine's program: %w", err)
	}
	l, err := choose(about).launch(h)
	if err != nil {
		return "", err
	}
	words, err := json.Marshal([]any{about, l.program, info.Size(), info.ModTime().UnixNano(), l.Machine, templateDisks, os.Getuid()})
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(words)
	return hex.EncodeToString(sum[:]), nil
}

// PrepareTemplate switches on a machine of the size that a specification asks for, waits until it is idle, and makes a template of it. Of the specification only level
// and limits count, and what its process needs: run, host name and ids. Nothing of the machine is left but the template.
func PrepareTemplate(ctx context.Context, folder string, spec call.Create, o container.Options) (*Template, error) {
	spec = call.Create{Run: spec.Run, Level: spec.Level, Hostname: spec.Hostname, Limits: spec.Limits, UIDBase: spec.UIDBase}
	h, about, err := design(ctx, folder, spec)
	if err != nil {
		return nil, err
	}
	t := &Template{}
	if t.Key, err = key(h, about); err != nil {
		return nil, err
	}
	if t.RAM, err = memory("ram", h.memory); err != nil {
		return nil, err
	}
	if t.State, err = memory("state", 0); err != nil {
		t.Close()
		return nil, err
	}
	if err := t.make(ctx, h, about, spec, o); err != nil {
		t.Close()
		return nil, err
	}
	return t, nil
}

// make runs the machine until it is idle, and takes its state.
func (t *Template) make(ctx context.Context, h hardware, about boot.About, spec call.Create, o container.Options) error {
	p := parts{ram: t.RAM, write: true}
	defer func() { p.close() }()
	if err := placeholders(&p); err != nil {
		return err
	}
	driver := choose(about)
	s, err := power(ctx, driver, h, p, spec, o)
	if err != nil {
		return err
	}
	if s.monitor, err = driver.attend(ctx, s.control); err == nil {
		err = s.wake(ctx, false)
	}
	if err == nil {
		err = settle(ctx)
	}
	if err == nil {
		err = s.monitor.pause(ctx)
	}
	if err == nil {
		err = s.monitor.save(ctx, t.State)
	}
	s.abandon()
	if err != nil {
		return s.explain(err)
	}
	return t.seal()
}

// settling is how long a machine that is idle goes on before it is stopped: its kernel has work left for later, which every copy would have to do first.
const settling = 2500 * time.Millisecond

func settle(ctx context.Context) error {
	select {
	case <-time.After(settling):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// seal makes the template's memory one that nobody can write to, not even through a descriptor that is open for writing.
func (t *Template) seal() error {
	for _, f := range []*os.File{t.RAM, t.State} {
		if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_WRITE|unix.F_SEAL_SEAL); err != nil {
			return fmt.Errorf("seal the template: %w", err)
		}
	}
	return nil
}

// Close lets go of the template. Copies that run are not concerned.
func (t *Template) Close() {
	for _, f := range []*os.File{t.RAM, t.State} {
		if f != nil {
			_ = f.Close() // memory only
		}
	}
}

// StartFrom is Start with a copy of a template's machine. A specification that asks for another machine than the template's is refused as a conflict, and Start
// is for that. On error nothing is left.
func StartFrom(ctx context.Context, folder string, t *Template, spec call.Create, o container.Options) (*Sandbox, error) {
	return start(ctx, folder, spec, o, t)
}

// fill completes a copy's parts with the template's, and with empty disks where the template has more.
func (t *Template) fill(p *parts, h hardware, about boot.About) error {
	got, err := key(h, about)
	if err != nil {
		return err
	}
	if got != t.Key || len(p.disks) > templateDisks || p.scratch != nil { // a template has no disk that can be written to
		return fault.New(fault.Conflict, "the prepared machine is another than the sandbox needs")
	}
	if err := placeholders(p); err != nil {
		p.close()
		return err
	}
	// Opened anew: its position in the file is its own, and it cannot be written through.
	if p.state, err = os.Open(itself(t.State)); err != nil {
		p.close()
		return fmt.Errorf("open the template: %w", err)
	}
	p.ram, p.own = t.RAM, append(p.own, p.state)
	return nil
}

// placeholders adds empty disks up to a template's number.
func placeholders(p *parts) error {
	for len(p.disks) < templateDisks {
		f, err := memory("disk", diskCapacity)
		if err != nil {
			return err
		}
		p.own = append(p.own, f)
		readable, err := os.Open(itself(f))
		if err != nil {
			return fmt.Errorf("open a disk's place: %w", err)
		}
		p.own, p.disks = append(p.own, readable), append(p.disks, readable)
	}
	return nil
}

// memory makes a file in memory, which takes no more than what is written to it.
func memory(name string, size int64) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("make a file in memory: %w", err)
	}
	f := os.NewFile(uintptr(fd), name)
	if err := f.Truncate(size); err != nil {
		_ = f.Close() // nothing was written
		return nil, fmt.Errorf("make a file in memory: %w", err)
	}
	return f, nil
}

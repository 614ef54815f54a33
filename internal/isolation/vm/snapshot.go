package vm

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/guest/boot"
	"github.com/cofferdam/cofferdam/internal/isolation/container"
	"github.com/cofferdam/cofferdam/internal/scratch"
	"github.com/cofferdam/cofferdam/internal/supervisor/call"
)

// A snapshot is a directory with a machine that was at rest: its memory, the state of its devices, its disks, and machine.json. What is in the first two is as untrusted as what ran
// in the machine: nobody reads it but a machine's program in its jail. A copy gets memory of its own, so that no copy can change the snapshot or another copy.
const (
	ramName         = "ram"
	stateName       = "state"
	machineName     = "machine.json"
	snapshotVersion = 1
)

// key is a digest of everything that decides whether a copy runs as its original did: program, kernel, initial file system and devices.
func key(h hardware, about boot.About) (string, error) {
	info, err := os.Stat(about.QEMU)
	if err != nil {
		return "", fmt.Errorf("look at the machine's program: %w", err)
	}
	l, err := choose(about).launch(h)
	if err != nil {
		return "", err
	}
	words, err := json.Marshal([]any{about, l.program, info.Size(), info.ModTime().UnixNano(), l.Machine, os.Getuid()})
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(words)
	return hex.EncodeToString(sum[:]), nil
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

func diskName(n int) string { return fmt.Sprintf("disk%d", n) }

// saved is machine.json: what a sandbox must have in common with the snapshot, and how to tell that its files are as they were written.
type saved struct {
	Version int `json:"version"`
	// Key names what must be the same: program, kernel, initial file system, devices, size. See key.
	Key     string       `json:"key"`
	Memory  int64        `json:"memory"`
	CPUs    int          `json:"cpus"`
	Scratch boot.Scratch `json:"scratch"`
	// Since is from when on the machine's folder is a copy: what the host changed there later, the machine has not seen.
	Since time.Time `json:"since"`
	Disks int       `json:"disks"`
	State int64     `json:"state"` // bytes
	// Sums are the digests of the files, by name; see copyBlocks.
	Sums map[string]string `json:"sums"`
}

// mostMachine bounds machine.json.
const mostMachine = 64 << 10

// readSaved reads a snapshot's machine.json.
func readSaved(dir string) (s saved, err error) {
	f, err := openPlain(filepath.Join(dir, machineName))
	if err != nil {
		return s, err
	}
	defer f.Close()
	d := json.NewDecoder(io.LimitReader(f, mostMachine))
	d.DisallowUnknownFields()
	if err := d.Decode(&s); err != nil {
		return s, damaged(machineName, err)
	}
	if s.Version != snapshotVersion {
		return s, fault.New(fault.Unsupported, "the snapshot was made by another version of cofferdam").WithHint("make it again with: cofferdam run --snapshot NAME")
	}
	if s.Disks < 1 || s.Disks > boot.MaxDisks || s.State < 0 || s.State > container.MostState {
		return s, damaged(machineName, nil)
	}
	return s, nil
}

func damaged(name string, cause error) error {
	return fault.New(fault.Unavailable, "the snapshot is damaged: %s is not as it was written", name).
		WithHint("remove it with: cofferdam snapshot rm NAME  and make it again").Because(cause)
}

// openPlain opens a file of a snapshot that is one, and no link.
func openPlain(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, damaged(filepath.Base(path), err)
	}
	f := os.NewFile(uintptr(fd), path)
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, errors.Join(damaged(filepath.Base(path), err), f.Close())
	}
	return f, nil
}

// assemble gathers what a machine is made of: fresh disks, or all that a snapshot holds. since is from when on the folder is a copy.
func assemble(ctx context.Context, spec call.Create, o container.Options, h hardware, about boot.About) (d *disks, p parts, since time.Time, err error) {
	if spec.From != "" {
		return continued(ctx, spec, h, about)
	}
	since = time.Now()
	if d, err = makeDisks(ctx, spec); err != nil {
		return nil, p, since, err
	}
	p.disks = d.files
	if spec.Scratch == scratch.Encrypted {
		if p.scratch, err = o.Scratch.Disk(); err == nil {
			p.own = append(p.own, p.scratch) // the machine gets its own
		}
	}
	if err == nil && spec.Snapshot != nil {
		err = p.ownMemory(h)
	}
	if err != nil {
		d.close()
		p.close()
	}
	return d, p, since, err
}

// ownMemory gives a machine its memory as a file, from which it can be copied when the machine is at rest.
func (p *parts) ownMemory(h hardware) (err error) {
	if p.ram, err = memory("ram", h.memory); err != nil {
		return err
	}
	p.own = append(p.own, p.ram)
	if _, err := unix.FcntlInt(p.ram.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW); err != nil {
		return fmt.Errorf("bound the machine's memory: %w", err)
	}
	return nil
}

// continued assembles a copy of a snapshot's machine. Each file is read once, and what was read is what is used or what was compared.
func continued(ctx context.Context, spec call.Create, h hardware, about boot.About) (d *disks, p parts, since time.Time, err error) {
	d = &disks{}
	defer func() {
		if err != nil {
			d.close()
			p.close()
		}
	}()
	s, err := readSaved(spec.From)
	if err != nil {
		return d, p, since, err
	}
	if err := s.fits(spec, h, about); err != nil {
		return d, p, since, err
	}
	if err := p.ownMemory(h); err != nil {
		return d, p, since, err
	}
	if err := s.read(ctx, spec.From, ramName, p.ram, h.memory); err != nil {
		return d, p, since, err
	}
	state, err := memory("state", 0)
	if err != nil {
		return d, p, since, err
	}
	p.own = append(p.own, state)
	if err := s.read(ctx, spec.From, stateName, state, s.State); err != nil {
		return d, p, since, err
	}
	if p.state, err = os.Open(itself(state)); err != nil {
		return d, p, since, fmt.Errorf("open the machine's state: %w", err)
	}
	p.own = append(p.own, p.state)
	for n := range s.Disks {
		f, err := s.disk(ctx, spec.From, n)
		if err != nil {
			return d, p, since, err
		}
		d.files = append(d.files, f)
	}
	p.disks = d.files
	return d, p, s.Since, nil
}

// fits refuses what cannot continue as the snapshot's machine.
func (s saved) fits(spec call.Create, h hardware, about boot.About) error {
	got, err := key(h, about)
	if err != nil {
		return err
	}
	switch {
	case s.Memory != h.memory || s.CPUs != h.cpus:
		return fault.New(fault.Conflict, "the snapshot's machine has %d MiB of memory and %d processors, and what is asked for %d and %d", s.Memory>>20, s.CPUs, h.memory>>20, h.cpus).
			WithHint("leave out --memory and --cpus")
	case s.Scratch != (boot.Scratch{Bytes: spec.Limits.Disk, Files: scratchFiles(spec.Limits)}):
		return fault.New(fault.Conflict, "the snapshot's machine has another size of scratch").WithHint("leave out --disk and --files")
	case s.Key != got:
		return fault.New(fault.Conflict, "the snapshot was made at another level, or with another version of QEMU, of the machines' kernel or of cofferdam, in which it cannot go on").
			WithHint("make it again with: cofferdam run --snapshot NAME")
	}
	return nil
}

// read copies a file of the snapshot into one in memory, if it is as it was written.
func (s saved) read(ctx context.Context, dir, name string, to *os.File, size int64) error {
	f, err := openPlain(filepath.Join(dir, name))
	if err != nil {
		return err
	}
	defer f.Close()
	sum, _, err := copyBlocks(ctx, to, f, size)
	if err != nil {
		return fmt.Errorf("read the snapshot's %s: %w", name, err)
	}
	if sum != s.Sums[name] {
		return damaged(name, nil)
	}
	return nil
}

// disk opens a disk of the snapshot, if it is as it was written.
func (s saved) disk(ctx context.Context, dir string, n int) (*os.File, error) {
	f, err := openPlain(filepath.Join(dir, diskName(n)))
	if err != nil {
		return nil, err
	}
	sum, _, err := copyBlocks(ctx, nil, f, diskCapacity)
	if err == nil && sum != s.Sums[diskName(n)] {
		err = damaged(diskName(n), nil)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// encode returns machine.json.
func (s saved) encode() ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetIndent("", "  ")
	err := e.Encode(s)
	return b.Bytes(), err
}

package boot

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Ready says that a machine is up and idle. Nothing random was drawn in it and no disk looked at but for what the kernel does by itself.
type Ready struct {
	Version int    `json:"version"`
	Kernel  string `json:"kernel"` // the guest's own word
}

// Boot says what the machine is to become.
type Boot struct {
	// Seed is mixed into the kernel's random number generator before anything else. It must be fresh: a zero seed is refused.
	Seed [SeedSize]byte `json:"-"`
	// Time is what the machine's clock is set to.
	Time      time.Time `json:"time"`
	Hostname  string    `json:"hostname"`
	MachineID string    `json:"machine_id"`
	// Root is the disk with the root file system, the lower layer of an overlay on scratch.
	Root int `json:"root"`
	// Workspace is the folder that the command works on; nil for none.
	Workspace *Workspace `json:"workspace,omitempty"`
	Mounts    []Mount    `json:"mounts,omitempty"`
	Scratch   Scratch    `json:"scratch"`
	// Trust is added to the sandbox's list of certificate authorities, in PEM.
	Trust []byte `json:"trust,omitempty"`
	// Runner is the line that the runner reads first, without its newline.
	Runner string `json:"runner"`
	// PIDs bounds processes and threads inside, the runner's reserve not counted; 0 for no bound but the guest kernel's own.
	PIDs int64 `json:"pids,omitempty"`
	// OpenFiles bounds the descriptors of one process; 0 for no bound but the guest's own.
	OpenFiles int64 `json:"open_files,omitempty"`
	// Rights says what root inside may do. It must be said.
	Rights Rights `json:"rights"`
	// Rest has the machine wait, when no process of the sandbox is left, until it is told to go on: there a snapshot is taken. What continues from one is told by another Boot what
	// to become, of which the disks, the workspace and scratch are those that it has.
	Rest bool `json:"rest,omitempty"`
}

// Rights are what root inside a machine may do.
type Rights string

// Usual are the rights of root at every level: capabilities, system calls, devices.
const Usual Rights = "usual"

// Workspace is a folder on a disk.
type Workspace struct {
	Disk   int    `json:"disk"`
	Target string `json:"target"`
	Mode   Mode   `json:"mode"`
}

// Mode says what writing to a workspace does.
type Mode string

// The modes.
const (
	Overlay  Mode = "overlay" // it lands on scratch, and the changes are sent at the end
	ReadOnly Mode = "ro"      // it is refused
)

// Mount is one more disk inside. It is always read-only: what was written to it would reach nobody.
type Mount struct {
	Disk   int    `json:"disk"`
	Target string `json:"target"`
	// File says that what is mounted is not the disk's root directory but the one file in it, FileName.
	File bool `json:"file,omitempty"`
}

// FileName is the name of the file on a disk that holds a single one.
const FileName = "file"

// Scratch bounds what holds that which is written, in bytes and in files. It is memory.
type Scratch struct {
	Bytes int64 `json:"bytes"`
	Files int64 `json:"files"`
	// Disk is the one disk that the machine can write to, of [SwapSize] bytes at least: to that goes what does not fit into memory, encrypted under a key that the machine draws.
	// Nil is for scratch that is memory and no more.
	Disk *int `json:"disk,omitempty"`
}

// SwapPage is the size in bytes of a page of memory, which a disk for scratch is made of.
const SwapPage = 4096

// SwapSize is the size of the disk for scratch of so many bytes: whole pages, and one that says what it is.
func SwapSize(scratch int64) int64 { return (scratch+SwapPage-1)/SwapPage*SwapPage + SwapPage }

// MaxDisks is how many disks a machine can have: they are named vda to vdz.
const MaxDisks = 26

// DiskSerial is the serial number by which the guest finds a disk. Where no disk has such a number, disks are counted in the order of the kernel's names.
func DiskSerial(index int) string { return fmt.Sprintf("disk%d", index) }

// Ended says that no process of the sandbox is left. All of it is the guest's own word.
type Ended struct {
	OutOfMemory int `json:"out_of_memory,omitempty"` // processes killed because memory ran out
	// Runner says how the runner ended, in words such as "exit status 0"; bounded, for people.
	Runner string `json:"runner,omitempty"`
}

// Prepare says what a machine is to build before it is known whose it will be. The Boot that follows repeats it, but for the bounds of scratch, which may be others then, and asks for
// neither another bound of open files than the usual one, nor a disk for scratch, nor rest.
type Prepare struct {
	Hostname  string  `json:"hostname"`
	MachineID string  `json:"machine_id"`
	Root      int     `json:"root"`
	Scratch   Scratch `json:"scratch"`
	Rights    Rights  `json:"rights"`
}

// Fits says why a machine that was prepared cannot become what b describes, or nothing.
func (p Prepare) Fits(b Boot) error {
	got := Prepare{Hostname: b.Hostname, MachineID: b.MachineID, Root: b.Root, Scratch: p.Scratch, Rights: b.Rights}
	if got != p || b.Scratch.Disk != nil || b.OpenFiles != 0 || b.Rest {
		return errors.New("the machine was prepared as another")
	}
	return nil
}

// validate refuses what no Boot could repeat.
func (p Prepare) validate() error {
	b := Boot{Seed: [SeedSize]byte{1}, Time: time.Unix(1, 0), Runner: "{}", Hostname: p.Hostname, MachineID: p.MachineID, Root: p.Root, Scratch: p.Scratch, Rights: p.Rights}
	return errors.Join(p.Fits(b), b.validate())
}

func decodePrepare(payload []byte) (*Prepare, error) {
	var p Prepare
	if err := decode(kindPrepare, payload, &p); err != nil {
		return nil, err
	}
	return &p, p.validate()
}

// Order is one message of the host; one member is set.
type Order struct {
	Prepare *Prepare
	Boot    *Boot
	Clock   time.Time
	Reseed  *[SeedSize]byte
	Kill    bool
	Stop    bool
	GoOn    bool
}

// validate refuses what cannot be built, before anything is.
func (b Boot) validate() error {
	disks := append([]Mount{}, b.Mounts...)
	if w := b.Workspace; w != nil {
		if w.Mode != Overlay && w.Mode != ReadOnly {
			return fmt.Errorf("unknown mode %q of the workspace", w.Mode)
		}
		disks = append(disks, Mount{Disk: w.Disk, Target: w.Target})
	}
	for _, m := range disks {
		if !filepath.IsAbs(m.Target) || filepath.Clean(m.Target) != m.Target || m.Target == "/" {
			return fmt.Errorf("target %q is no clean absolute path below the root", m.Target)
		}
	}
	for _, m := range append(disks, Mount{Disk: b.Root}) {
		if m.Disk < 0 || m.Disk >= MaxDisks {
			return fmt.Errorf("there is no disk %d", m.Disk)
		}
	}
	if d := b.Scratch.Disk; d != nil && (*d < 0 || *d >= MaxDisks || *d == b.Root || slices.ContainsFunc(disks, func(m Mount) bool { return m.Disk == *d })) {
		return fmt.Errorf("disk %d is none for scratch", *d)
	}
	switch {
	case b.Seed == [SeedSize]byte{}:
		return errors.New("the seed is missing")
	case b.Time.Unix() <= 0:
		return errors.New("the time is missing")
	case b.Hostname == "" || strings.ContainsAny(b.Hostname, " \t\n"):
		return fmt.Errorf("host name %q", b.Hostname)
	case b.Scratch.Bytes <= 0 || b.Scratch.Files <= 0:
		return errors.New("the bounds of scratch are missing")
	case b.Runner == "" || strings.Contains(b.Runner, "\n") || len(b.Runner) > maxRunner:
		return fmt.Errorf("the runner's boot line is missing, more than a line, or longer than %d bytes", maxRunner)
	case b.PIDs < 0 || b.OpenFiles < 0:
		return fmt.Errorf("%d processes, %d open files", b.PIDs, b.OpenFiles)
	case b.Rights != Usual:
		return fmt.Errorf("unknown rights %q", b.Rights)
	}
	return nil
}

// decode reads one message strictly: no unknown member, nothing behind it.
func decode(k kind, payload []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(payload))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return fmt.Errorf("a frame %s: %w", k, err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("a frame %s with bytes behind its message", k)
	}
	return nil
}

// encode refuses, besides what cannot be built, a message that the other side would find too long.
func (b Boot) encode() ([]byte, error) {
	if err := b.validate(); err != nil {
		return nil, err
	}
	words, err := json.Marshal(b)
	if err != nil {
		return nil, err
	}
	return append(bytes.Clone(b.Seed[:]), words...), nil
}

func decodeBoot(payload []byte) (*Boot, error) {
	var b Boot
	if err := decode(kindBoot, payload[SeedSize:], &b); err != nil {
		return nil, err
	}
	copy(b.Seed[:], payload)
	return &b, b.validate()
}

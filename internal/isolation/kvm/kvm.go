// Package kvm (SANDBOX) tells whether this machine's KVM really executes what runs in a virtual machine on the processor.
package kvm

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/fault"
)

// Name is argv[0] of the child that tries KVM, since a kernel's call that does not return cannot be given up by a process that wants to live.
const Name = "cofferdam-kvm"

// Device is where KVM is opened.
const Device = "/dev/kvm"

// Remedy says what to do where KVM does not deliver, to be followed by what can be had without it.
const Remedy = "use a machine whose processor's virtualisation is on (bare metal, or nested virtualisation), as a user of group kvm"

// patience bounds the trial. Where KVM works it takes about a millisecond.
const patience = 3 * time.Second

// Try says whether this machine's KVM really executes a machine's instructions on the processor. That it opens, and even makes machines, is no sign of that.
func Try(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Args, cmd.Env = []string{Name}, []string{"GOMAXPROCS=1"}
	out, err := cmd.Output()
	if ctx.Err() != nil {
		return errors.New("KVM does not come back from executing a few instructions")
	}
	var t trial
	if err == nil {
		err = json.Unmarshal(out, &t)
	}
	if err != nil {
		return fmt.Errorf("try KVM: %w", err)
	}
	return t.judge()
}

// OpenToGroup refuses where only root may open the device: a program that a sandbox runs in is nobody on the host, and gets the device's group, which must not be root's own.
func OpenToGroup() error {
	var s unix.Stat_t
	if err := unix.Stat(Device, &s); err != nil {
		return fmt.Errorf("look at %s: %w", Device, err)
	}
	if s.Mode&0o006 == 0o006 || s.Mode&0o060 == 0o060 && s.Gid != 0 {
		return nil
	}
	return fault.New(fault.Unsupported, "only root may open %s, and no program that a sandbox runs in is root", Device).WithHint("give it to a group: groupadd -r kvm; chown root:kvm %[1]s; chmod 660 %[1]s", Device)
}

// trial is what came of trying.
type trial struct {
	Error string        `json:"error,omitempty"` // why there is no machine to try
	Exit  uint32        `json:"exit,omitempty"`  // why the processor stopped, KVM_EXIT_…
	Each  time.Duration `json:"each,omitempty"`  // time for one instruction
}

// slowest is more than ten times what hardware needs for an instruction of a simple loop, and less than a hundredth of what emulating one took where that was
// measured (3 to 6 microseconds).
const slowest = 20 * time.Nanosecond

func (t trial) judge() error {
	switch {
	case t.Error != "":
		return errors.New(t.Error)
	case t.Each > slowest:
		return fmt.Errorf("KVM is there, but imitates each instruction (%v for one; a processor needs less than %v), so no kernel starts on it", t.Each.Round(10*time.Nanosecond), slowest)
	case t.Exit != exitHalt:
		return fmt.Errorf("KVM is there, but stops at an ordinary instruction (exit %d)", t.Exit)
	}
	return nil
}

// Numbers of linux/kvm.h.
const (
	getAPIVersion   = 0xae00
	createMachine   = 0xae01
	getMapSize      = 0xae04
	createProcessor = 0xae41
	setMemory       = 0x4020ae46
	runProcessor    = 0xae80
	setRegisters    = 0x4090ae82
	getSystem       = 0x8138ae83
	setSystem       = 0x4138ae84
	apiVersion      = 12
	exitHalt        = 5
	exitReason      = 8 // offset in struct kvm_run
)

// registers is struct kvm_regs, systemState struct kvm_sregs, segmentState struct kvm_segment.
type (
	registers struct {
		rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags uint64
	}
	segmentState struct {
		base                                                      uint64
		limit                                                     uint32
		selector                                                  uint16
		kind, present, dpl, db, s, l, g, available, unusable, pad uint8
	}
	systemState struct {
		cs, ds, es, fs, gs, ss, tr, ldt         segmentState
		gdt, idt                                [2]uint64
		cr0, cr2, cr3, cr4, cr8, efer, apicBase uint64
		interrupts                              [4]uint64
	}
)

// Child is the life of the child that tries KVM.
func Child() {
	runtime.LockOSThread()                       // a processor belongs to the thread that made it
	_ = json.NewEncoder(os.Stdout).Encode(try()) // a parent that is gone needs no answer
}

// try runs two loops in a machine of 2 MiB without devices: a short one that also tells emulation, and where that is quick a long one that is measured.
func try() trial {
	p, err := newProcessor()
	if err != nil {
		return trial{Error: err.Error()}
	}
	t := p.loop(1000)
	if t.Exit == exitHalt && t.Error == "" && t.Each < 100*slowest { // the short loop's time has the machine's start in it
		t = p.loop(1_000_000)
	}
	return t
}

// processor is a virtual processor in 64-bit mode.
type processor struct {
	fd     int
	memory []byte
	run    []byte
}

// Places in the machine's memory, in bytes.
const (
	placeCode  = 0x1000
	placeValue = 0x1800
	placePages = 0x2000
	placeSize  = 2 << 20
)

func newProcessor() (*processor, error) {
	kvm, err := unix.Open(Device, unix.O_RDWR|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil, errors.New("this machine has no /dev/kvm: its processor's virtualisation is off, or it is itself a virtual machine without it")
	case errors.Is(err, unix.EACCES):
		return nil, errors.New("this user may not open /dev/kvm")
	case err != nil:
		return nil, fmt.Errorf("open /dev/kvm: %w", err)
	}
	if version, err := ioctl(kvm, getAPIVersion, 0); err != nil || version != apiVersion {
		return nil, fmt.Errorf("KVM speaks version %d: %w", version, err)
	}
	machine, err := ioctl(kvm, createMachine, 0)
	if err != nil {
		return nil, fmt.Errorf("KVM makes no machine: %w", err)
	}
	p := &processor{}
	if p.memory, err = unix.Mmap(-1, 0, placeSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANONYMOUS|unix.MAP_PRIVATE); err != nil {
		return nil, err
	}
	region := struct {
		slot, flags         uint32
		guest, size, memory uint64
	}{size: placeSize, memory: uint64(uintptr(unsafe.Pointer(&p.memory[0])))}
	if _, err := ioctl(machine, setMemory, uintptr(unsafe.Pointer(&region))); err != nil {
		return nil, fmt.Errorf("KVM takes no memory: %w", err)
	}
	if p.fd, err = ioctl(machine, createProcessor, 0); err != nil {
		return nil, fmt.Errorf("KVM makes no processor: %w", err)
	}
	size, err := ioctl(kvm, getMapSize, 0)
	if err != nil {
		return nil, err
	}
	if p.run, err = unix.Mmap(p.fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return nil, fmt.Errorf("map KVM's words: %w", err)
	}
	return p, p.prepare()
}

// prepare puts the code into memory and the processor into 64-bit mode with that memory as it is (AMD64 Architecture Programmer's Manual, volume 2, chapters 1 and 5).
func (p *processor) prepare() error {
	copy(p.memory[placeCode:], []byte{
		0xff, 0xc9, // again: dec ecx
		0x75, 0xfc, // jnz again
		0xf0, 0x49, 0x0f, 0xc7, 0x08, // lock cmpxchg16b [r8], which kernels use and emulators of single instructions lack
		0xf4, // hlt
	})
	const present, large = 0x3, 0x80 // and writable
	binary.LittleEndian.PutUint64(p.memory[placePages:], placePages+0x1000|present)
	binary.LittleEndian.PutUint64(p.memory[placePages+0x1000:], placePages+0x2000|present)
	binary.LittleEndian.PutUint64(p.memory[placePages+0x2000:], present|large)
	var s systemState
	if _, err := ioctl(p.fd, getSystem, uintptr(unsafe.Pointer(&s))); err != nil {
		return fmt.Errorf("read the processor's state: %w", err)
	}
	const code, data = 11, 3
	s.cs = segmentState{limit: 0xffffffff, selector: 8, kind: code, present: 1, s: 1, l: 1, g: 1}
	segment := segmentState{limit: 0xffffffff, selector: 16, kind: data, present: 1, db: 1, s: 1, g: 1}
	s.ds, s.es, s.fs, s.gs, s.ss = segment, segment, segment, segment, segment
	const protected, coprocessor, paging = 1 << 0, 1 << 4, 1 << 31
	const physical, enabled, active = 1 << 5, 1 << 8, 1 << 10
	s.cr0, s.cr3, s.cr4, s.efer = protected|coprocessor|paging, placePages, physical, enabled|active
	if _, err := ioctl(p.fd, setSystem, uintptr(unsafe.Pointer(&s))); err != nil {
		return fmt.Errorf("set the processor's state: %w", err)
	}
	return nil
}

// loop runs the loop of two instructions n times and then the rest.
func (p *processor) loop(n uint64) trial {
	r := registers{rcx: n, r8: placeValue, rip: placeCode, rflags: 2}
	if _, err := ioctl(p.fd, setRegisters, uintptr(unsafe.Pointer(&r))); err != nil {
		return trial{Error: fmt.Sprintf("set the processor's registers: %v", err)}
	}
	began := time.Now()
	for {
		_, err := ioctl(p.fd, runProcessor, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return trial{Error: fmt.Sprintf("KVM runs no machine: %v", err)}
		}
		break
	}
	return trial{Exit: binary.NativeEndian.Uint32(p.run[exitReason:]), Each: time.Since(began) / time.Duration(2*n)}
}

func ioctl(fd int, request, argument uintptr) (int, error) {
	n, _, errno := syscall.Syscall(unix.SYS_IOCTL, uintptr(fd), request, argument)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

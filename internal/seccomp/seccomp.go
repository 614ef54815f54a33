// Package seccomp (WORDS) turns lists of system calls into kernel filters: Profile says what a program may call, Compile makes
// classic BPF of it for amd64 and arm64, Install puts it on the calling thread and InstallAll on the whole process.
//
// Sandbox is the profile of the untrusted program, Gateway that of the process which parses its bytes. Both are allowlists.
// WithoutSetID and WithoutNamedSockets refuse more, for a program that sees a folder of the host's itself.
// The package does no work at start and imports next to nothing, since it is linked into processes that live for milliseconds.
//
// When you change a profile, also run go test with -update in this package, which rewrites the tables of docs/seccomp.md.
package seccomp

import (
	"errors"
	"math"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"
)

// Arch is an AUDIT_ARCH_ value, which the kernel hands to a filter with every call. The zero value compiles nothing.
type Arch uint32

// The architectures that Compile knows. Both are 64-bit and little-endian, which the loads of argument halves rely on.
const (
	AMD64 Arch = unix.AUDIT_ARCH_X86_64
	ARM64 Arch = unix.AUDIT_ARCH_AARCH64
)

// Native returns the architecture that this program was built for, zero if Compile does not know it.
func Native() Arch {
	switch runtime.GOARCH {
	case "amd64":
		return AMD64
	case "arm64":
		return ARM64
	}
	return 0
}

// String names the architecture as Go does.
func (a Arch) String() string {
	switch a {
	case AMD64:
		return "amd64"
	case ARM64:
		return "arm64"
	}
	return "arch(" + strconv.FormatUint(uint64(a), 16) + ")"
}

// Action is what the kernel does with a call, a SECCOMP_RET_ value. The zero value is no action and does not compile: to the kernel
// it would mean to kill one thread, which leaves a Go program running without it.
type Action uint32

// The actions without a parameter; Errno makes the others.
const (
	KillProcess Action = unix.SECCOMP_RET_KILL_PROCESS
	Log         Action = unix.SECCOMP_RET_LOG // allow, and write a line to the kernel's audit log
	Allow       Action = unix.SECCOMP_RET_ALLOW
)

// maxErrno is the largest error number that the kernel returns to a program (MAX_ERRNO in include/linux/err.h).
const maxErrno = 4095

// Errno refuses the call with that error number. Errno(0) does not compile: it would tell the program that the call succeeded.
func Errno(e unix.Errno) Action {
	if e == 0 || e > maxErrno {
		return 0
	}
	return Action(unix.SECCOMP_RET_ERRNO | uint32(e))
}

func (a Action) valid() bool {
	switch a {
	case KillProcess, Log, Allow:
		return true
	}
	errno := uint32(a) & unix.SECCOMP_RET_DATA
	return uint32(a)&^uint32(unix.SECCOMP_RET_DATA) == unix.SECCOMP_RET_ERRNO && errno >= 1 && errno <= maxErrno
}

// String says what the action does: allow, log, kill, or the name of the error.
func (a Action) String() string {
	switch {
	case a == KillProcess:
		return "kill"
	case a == Log:
		return "log"
	case a == Allow:
		return "allow"
	case a.valid():
		return unix.ErrnoName(unix.Errno(uint32(a) & unix.SECCOMP_RET_DATA))
	}
	return "action(" + strconv.FormatUint(uint64(a), 16) + ")"
}

// Op compares an argument with a value, both unsigned and 64 bits wide. The zero value does not compile.
type Op uint8

// The operators: those of the OCI runtime specification.
const (
	EqualTo        Op = iota + 1 // argument == Value
	NotEqual                     // argument != Value
	LessThan                     // argument < Value
	LessOrEqual                  // argument <= Value
	GreaterThan                  // argument > Value
	GreaterOrEqual               // argument >= Value
	MaskedEqual                  // argument & Mask == Value
)

// Condition compares one argument of a call, counted from 0.
type Condition struct {
	Arg   uint8
	Op    Op
	Value uint64
	Mask  uint64 // for MaskedEqual only
}

// Int compares an argument which the kernel declares as int or unsigned int. The kernel looks at its low 32 bits only, so a filter that
// compared all 64 would be passed by ioctl(fd, 1<<32|TIOCSTI), and would refuse an honest program that left rubbish in the upper half.
func Int(arg uint8, value uint32) Condition {
	return IntMasked(arg, math.MaxUint32, value)
}

// IntMasked compares the bits of an int argument that are in mask.
func IntMasked(arg uint8, mask, value uint32) Condition {
	return Condition{Arg: arg, Op: MaskedEqual, Mask: uint64(mask), Value: uint64(value)}
}

// Rule gives one action to calls, if all conditions hold.
type Rule struct {
	Calls  []string
	When   []Condition
	Action Action
	Reason string // why; shown in the documentation
}

// Profile is a filter as people read it. For each call its rules are tried in order and the first whose conditions all hold decides;
// if there is none, Default does. A call through another architecture's table (i386 and x32 on amd64) kills the process.
type Profile struct {
	Rules   []Rule
	Default Action
}

// check finds what could not mean what its author meant.
func (r *Rule) check() error {
	if !r.Action.valid() {
		return errors.New("the rule has no valid action")
	}
	if len(r.Calls) == 0 {
		return errors.New("the rule names no call")
	}
	for _, c := range r.When {
		switch {
		case c.Arg > 5:
			return errors.New("argument " + strconv.Itoa(int(c.Arg)) + ": a call has arguments 0 to 5")
		case c.Op < EqualTo || c.Op > MaskedEqual:
			return errors.New("argument " + strconv.Itoa(int(c.Arg)) + ": unknown operator " + strconv.Itoa(int(c.Op)))
		case c.Op == MaskedEqual && c.Value&^c.Mask != 0:
			return errors.New("argument " + strconv.Itoa(int(c.Arg)) + ": the value has bits outside the mask, so nothing can match")
		case c.Op != MaskedEqual && c.Mask != 0:
			return errors.New("argument " + strconv.Itoa(int(c.Arg)) + ": only MaskedEqual takes a mask")
		}
	}
	return nil
}

package vm

import (
	"context"
	"io"
	"os"

	"github.com/cofferdam/cofferdam/internal/guest/boot"
	"github.com/cofferdam/cofferdam/internal/isolation/container"
)

// driver is what one program that imitates or drives a machine has that others have not. A driver decides nothing: what a machine has is in hardware, what holds
// the program is container.Machine's.
type driver interface {
	// name is the program's, for people.
	name() string
	// version asks the installed program for its version; the error says in plain words what is missing.
	version(ctx context.Context) (string, error)
	// launch says how the program is started to be this machine.
	launch(h hardware) (launch, error)
	// attend takes over the control connection of the program that was started, and waits until it answers.
	attend(ctx context.Context, control io.ReadWriteCloser) (monitor, error)
}

// choose picks the driver of the program that a machine's folder names.
func choose(about boot.About) driver { return qemu{about} }

// launch is how a program is started.
type launch struct {
	program string // its path on the host
	container.Machine
}

// monitor is the way to speak to a machine's program. It may be taken over by what runs inside: whatever it answers is bounded, and believed only to the machine's own harm.
type monitor interface {
	// resume lets the processors run.
	resume(ctx context.Context) error
	// pause stops them.
	pause(ctx context.Context) error
	// save writes the state of the devices of a paused machine, without its memory, to an open file.
	save(ctx context.Context, state *os.File) error
	// load waits until a machine that was started with a state is as the saved one was: paused.
	load(ctx context.Context, state descriptor) error
}

// descriptor is the number under which the program has an open file.
type descriptor int

// hardware is what a machine has: nothing more than these, on any board.
type hardware struct {
	accel   accelerator
	board   board
	memory  int64 // bytes, of whole mebibytes
	cpus    int
	kernel  string // paths on the host
	initram string
	control descriptor   // a stream socket to control the program by
	port    descriptor   // a stream socket that is the port PortName inside
	disks   []descriptor // read-only
	scratch descriptor   // the disk behind those that the machine can write to, for encrypted scratch; 0 for none
	wire    descriptor   // the network: a tap with headers
	ram     descriptor   // the memory, as a file of that size, of which a snapshot can be taken; 0 for memory of its own
	state   descriptor   // what the devices start from; 0 for a machine that is switched on
}

// accelerator is what executes the machine's instructions.
type accelerator uint8

// The accelerators.
const (
	hardwareKVM accelerator = iota + 1 // the processor, by the kernel's KVM
	emulated                           // a program
)

// board is the machine's kind.
type board string

// The boards: a small one for a kernel that has what it needs built in, and a common one for distributions' kernels.
const (
	boardSmall  board = "microvm"
	boardCommon board = "q35"
)

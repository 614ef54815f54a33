// Package guest (SANDBOX) is the first process of a virtual machine's kernel. It brings the machine up, builds the sandbox that the host then describes, starts the runner in it, and
// sends back what was changed.
//
// [Init] loads drivers, says that the machine is ready and waits to be told what to build: all of a sandbox, or first what does not depend on whose it will be. [Sandbox] is its
// child, which builds its own world, gives up what level container gives up too, and becomes the runner. [Again] is Init in a copy of a machine that had a sandbox before:
// it is started anew, so that no randomness of the original's is left in the process. The host believes none of them, whatever happens in here.
package guest

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/guest/boot"
)

// The names by which the program knows which life it is in.
const (
	InitName    = boot.InitPath
	AgainName   = "cofferdam-again"
	SandboxName = "cofferdam-sandbox"
)

// farewell is how long the host may take to end the machine after it was told everything. What was written to the port is read by the machine's monitor in its own
// time, and lost if the machine resets before.
const farewell = 5 * time.Second

// mustBeFirst ends a program that was started by hand before it does to the machine what a first program does.
func mustBeFirst() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "cofferdam-guest: started by hand: it is the first program of a virtual machine")
		os.Exit(1)
	}
}

// fail tells the host why the machine cannot go on, and ends it.
func fail(host *boot.Guest, why error) {
	fmt.Fprintln(os.Stderr, "cofferdam-guest:", why)
	go func() { _ = host.Failed(why) }() // which waits for ever if the host is gone
	time.Sleep(farewell)
	end()
}

// end resets the machine, by which a monitor that was told not to start it again ends. A kernel whose first process ends panics, which does the same.
func end() {
	err := unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	fmt.Fprintln(os.Stderr, "cofferdam-guest: reset:", err)
	os.Exit(1)
}

// errKilled is what the order to end is to who waits for orders.
var errKilled = errors.New("the host ends the machine")

// follow carries out what the host may order at any time.
func follow(order boot.Order) error {
	switch {
	case order.Kill:
		return errKilled
	case order.Stop:
		return stop()
	case order.Reseed != nil:
		return reseed(order.Reseed)
	case !order.Clock.IsZero():
		return setClock(order.Clock)
	}
	return errors.New("the host has booted the machine already")
}

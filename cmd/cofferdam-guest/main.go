// Command cofferdam-guest is the first program of a virtual machine's kernel: it builds the sandbox inside, starts the runner in it, and sends its changes out.
// It is started by that kernel from the machine's initial file system, under which "make vm" puts it, and takes no arguments.
package main

import (
	"fmt"
	"os"

	"github.com/cofferdam/cofferdam/internal/guest"
)

func main() {
	switch {
	case os.Args[0] == guest.InitName:
		guest.Init()
	case os.Args[0] == guest.AgainName && len(os.Args) == 3:
		guest.Again(os.Args[1], os.Args[2])
	case os.Args[0] == guest.SandboxName:
		guest.Sandbox()
	}
	fmt.Fprintln(os.Stderr, "cofferdam-guest: started by hand: it is the first program of a virtual machine")
	os.Exit(1)
}

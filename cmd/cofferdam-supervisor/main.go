// Command cofferdam-supervisor is the privileged half of Cofferdam. It is started by cofferdam and talks to it over file descriptor 3.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/cofferdam/cofferdam/internal/inherit"
	"github.com/cofferdam/cofferdam/internal/isolation/container"
	"github.com/cofferdam/cofferdam/internal/isolation/gvisor"
	"github.com/cofferdam/cofferdam/internal/isolation/kvm"
	"github.com/cofferdam/cofferdam/internal/isolation/vm"
	"github.com/cofferdam/cofferdam/internal/supervisor"
	"github.com/cofferdam/cofferdam/internal/supervisor/call"
)

func main() {
	switch os.Args[0] {
	case container.SetupName:
		container.Setup(gvisor.Become)
		return
	case container.StewardName:
		container.Steward()
		return
	case vm.UnpackName:
		vm.Unpack()
		return
	case kvm.Name:
		kvm.Child()
		return
	case gvisor.CableName:
		gvisor.Cable()
		return
	case supervisor.NothingName:
		return
	}
	if err := run(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "cofferdam-supervisor:", err)
		os.Exit(1)
	}
}

// run serves the connection on descriptor 3 until it ends or a termination signal comes.
func run(ctx context.Context) error {
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	defer stop()
	const fdCaller = 3
	var stat syscall.Stat_t
	if err := syscall.Fstat(fdCaller, &stat); err != nil || stat.Mode&syscall.S_IFMT != syscall.S_IFSOCK {
		return errors.New("started by hand: it is started by cofferdam, with a socket as descriptor 3")
	}
	for fd := fdCaller; fd < fdCaller+2; fd++ {
		syscall.CloseOnExec(fd)
	}
	if err := inherit.CloseOthers(); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find the runner: %w", err)
	}
	server := &supervisor.Server{Runner: filepath.Join(filepath.Dir(self), "cofferdam-runner"), GVisor: filepath.Join(filepath.Dir(self), gvisor.Program)}
	if err := syscall.SetNonblock(fdCaller, true); err != nil {
		return err
	}
	conn := call.NewConn(os.NewFile(fdCaller, "caller"))
	defer conn.Close()
	return server.Serve(ctx, conn)
}

package keeper

import (
	"context"
	"errors"
	"fmt"
	"net"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/ident"
)

// Kill ends the keeper of a run that does not do as it is told, and with it the sandbox. fault.NotFound: there is none any more.
func Kill(ctx context.Context, state string, run ident.Run) error {
	pid, err := listening(ctx, state, run)
	if err != nil {
		return err
	}
	process, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return fmt.Errorf("open the keeper of sandbox %s: %w", run, err)
	}
	defer unix.Close(process)
	// It still listens, so it lived when its process was opened: that is no other process which got its number.
	again, err := listening(ctx, state, run)
	if err != nil {
		return err
	}
	if again != pid {
		return fault.New(fault.Conflict, "another process keeps sandbox %s now", run)
	}
	if err := unix.PidfdSendSignal(process, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill the keeper of sandbox %s: %w", run, err)
	}
	return nil
}

// listening returns the process that listens on a run's socket, as the kernel noted it at that time. The keeper need not accept for that.
func listening(ctx context.Context, state string, run ident.Run) (int, error) {
	conn, err := connect(ctx, state, run)
	if err != nil && absent(err) {
		return 0, fault.New(fault.NotFound, "no sandbox %s runs", run)
	}
	if err != nil {
		return 0, fmt.Errorf("connect to the keeper of sandbox %s: %w", run, err)
	}
	defer conn.Close()
	unixConn, ok := conn.(*net.UnixConn)
	if !ok {
		return 0, errors.New("the keeper's socket is none")
	}
	raw, err := unixConn.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var inner error
	err = raw.Control(func(fd uintptr) { cred, inner = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err := errors.Join(err, inner); err != nil {
		return 0, err
	}
	if cred.Pid <= 1 {
		return 0, fault.New(fault.Internal, "the keeper of sandbox %s has the process number %d", run, cred.Pid)
	}
	return int(cred.Pid), nil
}

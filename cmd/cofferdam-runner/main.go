// Command cofferdam-runner is process 1 of a sandbox. It reads one JSON line from file descriptor 0 and takes no arguments.
//
// With the word "file" it is something else: the file service, which process 1 starts on its owner's behalf as it starts every command.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/cofferdam/cofferdam/internal/runner"
	"github.com/cofferdam/cofferdam/internal/runner/files"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "file" {
		// The runner hangs up on a command whose owner is lost.
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM)
		status := files.Run(ctx, os.Args[2:], os.Stdin, os.Stdout, os.Stderr)
		stop()
		os.Exit(status)
	}
	if err := run(context.Background()); err != nil {
		fmt.Fprintf(os.Stderr, "cofferdam-runner: %v\n", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	if err := runner.Harden(); err != nil {
		return err
	}
	boot, err := runner.TakeInput()
	if err != nil {
		return err
	}
	return runner.Run(ctx, boot, runner.DialTCP)
}

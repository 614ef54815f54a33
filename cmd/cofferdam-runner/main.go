// Command cofferdam-runner is process 1 of a sandbox. It reads one JSON line from file descriptor 0 and takes no arguments.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/cofferdam/cofferdam/internal/runner"
)

func main() {
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

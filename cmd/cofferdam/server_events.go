package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/cofferdam/cofferdam/api"
)

// newEventsCommand is "cofferdam events".
func (a *app) newEventsCommand() *cobra.Command {
	var after int64
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "events",
		Short: "Show what happens at a server, as it happens",
		Long:  "Show what happens in the tenant, a line each, until interrupted: sandboxes, denials, approvals, rules, policies. A broken connection goes on where it broke.",
		Args:  cobra.NoArgs,
		RunE: a.there(func(ctx context.Context, r *remote, _ *cobra.Command, _ []string) error {
			ctx, stop := untilInterrupted(ctx)
			defer stop()
			err := r.Events(ctx, after, func(e api.Event) error {
				if asJSON {
					return json.NewEncoder(a.stdout).Encode(e)
				}
				_, err := fmt.Fprintf(a.stdout, "%s  %-10s %-10s %s\n", e.Time.Local().Format(time.DateTime), inert(e.Type, 20), inert(e.State, 20), inert(e.Subject, 100))
				return err
			})
			return endedByPerson(ctx, err)
		}),
	}
	cmd.Flags().Int64Var(&after, "after", -1, "begin after this event's `ID`, as --json shows it (now)")
	cmd.Flags().BoolVar(&asJSON, "json", false, "one JSON object a line")
	return cmd
}

// untilInterrupted ends with the person's Ctrl-C.
func untilInterrupted(ctx context.Context) (context.Context, context.CancelFunc) {
	return signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
}

// endedByPerson makes no error of the end that the person asked for.
func endedByPerson(ctx context.Context, err error) error {
	if ctx.Err() != nil && (err == nil || errors.Is(err, context.Canceled)) {
		return nil
	}
	return err
}

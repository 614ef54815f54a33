package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/cofferdam/cofferdam/internal/audit"
	"github.com/cofferdam/cofferdam/internal/cgroup"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/ident"
	"github.com/cofferdam/cofferdam/internal/sandbox"
	"github.com/cofferdam/cofferdam/internal/supervisor/call"
)

// newPauseCommand is "cofferdam pause", on this machine or at a server.
func (a *app) newPauseCommand() *cobra.Command {
	return a.haltCommand(&cobra.Command{
		Use: "pause RUN…", Short: "Stop every process of a sandbox, for now",
		Long: `Stop every process of a sandbox, at every level of isolation, until "cofferdam resume". Memory, files and connections stay.
Nothing inside runs meanwhile, so nothing new crosses; what the gateway has in hand still may. Time goes on: --timeout and
deadlines end a paused sandbox too, and servers may give up waiting for it. RUN is as "cofferdam ps" shows it, or "last".`,
	}, halt{kind: audit.RunPaused, want: call.WantPaused, done: "is paused; it goes on with: cofferdam resume"})
}

// newResumeCommand is "cofferdam resume".
func (a *app) newResumeCommand() *cobra.Command {
	return a.haltCommand(&cobra.Command{Use: "resume RUN…", Short: "Let the processes of a paused sandbox go on"},
		halt{kind: audit.RunResumed, want: call.WantRunning, done: "goes on"})
}

// halt is one of the two: a pause, or its end.
type halt struct {
	kind audit.Kind // of its record
	want call.Want
	done string // what is said of a sandbox afterwards
}

func (a *app) haltCommand(cmd *cobra.Command, h halt) *cobra.Command {
	cmd.Args = cobra.MinimumNArgs(1)
	cmd.ValidArgsFunction = a.completeLive
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		store, err := sandbox.OpenStore(a.state)
		if err != nil {
			return err
		}
		return a.haltEach(args, h, func(name string) (string, error) { return a.haltHere(cmd.Context(), store, name, h) })
	}
	return a.eitherWay(cmd, func(ctx context.Context, r *remote, _ *cobra.Command, args []string) error {
		at := r.ResumeSandbox
		if h.want == call.WantPaused {
			at = r.PauseSandbox
		}
		return a.haltEach(args, h, func(name string) (string, error) {
			box, err := at(ctx, name)
			return box.ID, err
		})
	})
}

// haltEach does it for every sandbox that is named, and says so.
func (a *app) haltEach(names []string, h halt, do func(name string) (run string, err error)) error {
	var problems []error
	for _, name := range names {
		run, err := do(name)
		switch {
		case err != nil && len(names) > 1:
			problems = append(problems, fmt.Errorf("%s: %w", inert(name, 40), err))
		case err != nil:
			return err
		case h.want == call.WantPaused:
			fmt.Fprintf(a.stderr, "cofferdam: %s %s %s\n", inert(run, 40), h.done, inert(run, 40))
		default:
			fmt.Fprintf(a.stderr, "cofferdam: %s %s\n", inert(run, 40), h.done)
		}
	}
	return errors.Join(problems...)
}

// haltHere does it on this machine: it is put on record first, and done by a supervisor of the person's own, which can no more than the person.
func (a *app) haltHere(ctx context.Context, store *sandbox.Store, name string, h halt) (string, error) {
	r, err := store.Resolve(name)
	if err != nil {
		return "", err
	}
	switch {
	case r.State == sandbox.Ended || !store.IsLive(r.Run):
		return "", fault.New(fault.Conflict, "run %s has ended", r.Run).WithHint("what runs: cofferdam ps")
	case r.Tenant != "":
		return "", fault.New(fault.Conflict, "run %s belongs to the service that keeps its records here", r.Run).
			WithHint("log in with cofferdam login https://SERVER, and pause or resume it there")
	}
	now := cgroup.State(cgroup.Find(cgroup.Name(r.Group())))
	err = h.fits(r.Run, now)
	if now == cgroup.Unknown { // the supervisor says why, and what would help
		err = a.haltRun(ctx, r.Group(), call.WantNothing)
	}
	if err != nil {
		return "", err
	}
	log, err := audit.Open(a.auditDir())
	if err != nil {
		return "", err
	}
	defer log.Close()
	event := audit.Event{Kind: h.kind, Run: r.Run, Principal: "user", Isolation: r.Isolation}
	if err := log.Append(ctx, event); err != nil {
		return "", err
	}
	if err := a.haltRun(ctx, r.Group(), h.want); err != nil {
		event.Error = "it did not happen: " + fault.Public(err)
		return "", errors.Join(err, log.Append(context.WithoutCancel(ctx), event))
	}
	return r.Run.String(), nil
}

// fits says whether there is something to do, so that what is refused is not put on record as about to happen.
func (h halt) fits(run ident.Run, now cgroup.Freezing) error {
	switch {
	case h.want == call.WantPaused && now == cgroup.Paused:
		return fault.New(fault.Conflict, "run %s is paused already", run).WithHint("let it go on with: cofferdam resume %s", run)
	case h.want == call.WantRunning && now == cgroup.Running:
		return fault.New(fault.Conflict, "run %s is not paused", run).WithHint("stop it for now with: cofferdam pause %s", run)
	}
	return nil
}

// haltRun has a supervisor do it.
func (a *app) haltRun(ctx context.Context, run ident.Run, want call.Want) error {
	reply, err := a.consult(ctx, call.Request{Freeze: &call.Freeze{Run: run, Want: want}})
	switch {
	case err != nil:
		return err
	case reply.Frozen == nil:
		return errors.New("the supervisor sent an unexpected reply")
	case reply.Frozen.Refused != nil:
		return reply.Frozen.Refused.Err()
	}
	return nil
}

// completeLive completes names of sandboxes that live, here or at the server.
func (a *app) completeLive(cmd *cobra.Command, _ []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if r, err := a.server(boolFlag(cmd, "local")); err != nil || r != nil {
		return a.complete(cmd, sandboxCompletions)
	}
	store, err := sandbox.OpenStore(a.state)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	records, err := listRuns(store, false)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	found := []cobra.Completion{"last"}
	for _, r := range records {
		found = append(found, cobra.CompletionWithDesc(r.Run.String(), string(r.State)+" "+inert(r.Workspace, 60)))
	}
	return found, cobra.ShellCompDirectiveNoFileComp
}

// markPaused says of the runs that live which are paused, as the kernel has it.
func markPaused(records []sandbox.Record) {
	var names []string
	for _, r := range records {
		if r.State == sandbox.Running {
			names = append(names, cgroup.Name(r.Group()))
		}
	}
	if len(names) == 0 {
		return
	}
	dirs := cgroup.FindAll(names)
	for i, r := range records {
		if r.State == sandbox.Running && cgroup.State(dirs[cgroup.Name(r.Group())]) >= cgroup.Pausing {
			records[i].State = sandbox.Paused
		}
	}
}

package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/cofferdam/cofferdam/internal/audit"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/keeper"
	"github.com/cofferdam/cofferdam/internal/pool"
	"github.com/cofferdam/cofferdam/internal/sandbox"
	"github.com/cofferdam/cofferdam/internal/supervisor/call"
)

// newPSCommand is "cofferdam ps".
func (a *app) newPSCommand() *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use:   "ps",
		Short: "List running sandboxes",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			store, err := sandbox.OpenStore(a.state)
			if err != nil {
				return err
			}
			records, err := listRuns(store, all)
			return show(a, cmd, records, err, a.printRuns)
		},
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "ended runs too")
	jsonFlag(cmd)
	return cmd
}

func listRuns(store *sandbox.Store, all bool) ([]sandbox.Record, error) {
	records, err := store.List()
	if err != nil {
		return nil, err
	}
	shown := []sandbox.Record{}
	for _, r := range records {
		if r.State != sandbox.Ended && !store.IsLive(r.Run) {
			r.State, r.How = sandbox.Ended, "died without a word; cofferdam gc cleans up"
		}
		if all || r.State != sandbox.Ended {
			shown = append(shown, r)
		}
	}
	markPaused(shown)
	return shown, nil
}

func (a *app) printRuns(records []sandbox.Record) error {
	if len(records) == 0 {
		_, err := fmt.Fprintln(a.stderr, "cofferdam: nothing runs; ended runs: cofferdam ps --all")
		return err
	}
	weaker := map[string]bool{}
	w := newTable(a.stdout)
	fmt.Fprintln(w, "RUN\tSTATE\tSTARTED\tISOLATION\tCHANGES\tFOLDER\tCOMMAND")
	for _, r := range records {
		state := string(r.State)
		if r.State == sandbox.Ended {
			state = r.How
		}
		level := r.Isolation
		if r.Platform != "" {
			level += "/" + r.Platform
		}
		if len(r.Weaker) > 0 {
			level += "*"
			for _, what := range r.Weaker {
				weaker[what] = true
			}
		}
		if r.From != "" {
			level += " from " + inert(r.From, 40)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s %s\t%s\n", r.Run, inert(state, 44), since(r.Started), level, changes(r), inert(r.Workspace, 80), r.Mode, inert(strings.Join(r.Command, " "), 60))
	}
	err := w.Flush()
	for _, what := range slices.Sorted(maps.Keys(weaker)) {
		fmt.Fprintln(a.stdout, "* weaker:", what)
	}
	return err
}

// changes says what became of a run's changes.
func changes(r sandbox.Record) string {
	switch {
	case !r.Applied.IsZero():
		return "applied"
	case !r.Dropped.IsZero():
		return "dropped"
	case r.Changed == 0:
		return "-"
	}
	return fmt.Sprint(r.Changed)
}

func since(t time.Time) string {
	d := time.Since(t)
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds ago", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm ago", int(d.Minutes()))
	case d < 24*time.Hour:
		return fmt.Sprintf("%dh ago", int(d.Hours()))
	}
	return t.Local().Format("2006-01-02")
}

// inert makes a text of somebody else's safe to print, at most n characters of it.
func inert(s string, n int) string {
	runes := []rune(strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 || r == 0x202e {
			return '?'
		}
		return r
	}, s))
	if len(runes) > n {
		return string(runes[:n-1]) + "…"
	}
	return string(runes)
}

// newGCCommand is "cofferdam gc".
func (a *app) newGCCommand() *cobra.Command {
	var age string
	var keep bool
	cmd := &cobra.Command{
		Use:   "gc",
		Short: "Clean up after runs that died, and delete old records",
		Long: `Clean up after runs whose processes were killed: control groups are removed and the end goes on record. Every "cofferdam run" does the same first.

With --older-than, delete the records and collected changes of runs that ended longer ago. The audit log stays.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			store, err := sandbox.OpenStore(a.state)
			if err != nil {
				return err
			}
			if err := errors.Join(a.bury(cmd.Context(), store), pool.Sweep(a.state, a.reapWaiting)); err != nil {
				return err
			}
			if age == "" {
				if keep {
					return fault.New(fault.Invalid, "--keep-changes goes with --older-than").WithHint("cofferdam gc --older-than 30d --keep-changes")
				}
				return nil
			}
			older, err := parseAge(age)
			if err != nil {
				return err
			}
			return a.deleteOld(store, older, keep)
		},
	}
	cmd.Flags().StringVar(&age, "older-than", "", "delete records of runs that ended longer ago than `AGE`, such as 12h or 30d")
	cmd.Flags().BoolVar(&keep, "keep-changes", false, "with --older-than, keep runs whose changes were neither applied nor dropped")
	return cmd
}

// parseAge reads a positive duration, with d for days.
func parseAge(text string) (time.Duration, error) {
	var age time.Duration
	var err error
	if days, ok := strings.CutSuffix(text, "d"); ok {
		var n int
		n, err = strconv.Atoi(days)
		age = time.Duration(n) * 24 * time.Hour
	} else {
		age, err = time.ParseDuration(text)
	}
	if err != nil || age <= 0 {
		return 0, fault.New(fault.Invalid, "--older-than %.20q is no age", text).WithHint("write something like 12h or 30d")
	}
	return age, nil
}

func (a *app) deleteOld(store *sandbox.Store, older time.Duration, keep bool) error {
	records, err := store.List()
	if err != nil {
		return err
	}
	deleted := 0
	for _, r := range records {
		waiting := r.Changed > 0 && r.Applied.IsZero() && r.Dropped.IsZero()
		if r.State != sandbox.Ended || time.Since(r.Finished) < older || keep && waiting {
			continue
		}
		if err := store.Remove(r.Run); err != nil {
			return fmt.Errorf("delete run %s: %w", r.Run, err)
		}
		deleted++
	}
	_, err = fmt.Fprintf(a.stderr, "cofferdam: deleted %s\n", plural(deleted, "record", "records"))
	return err
}

// bury cleans up after every run whose processes are gone without an end on record.
func (a *app) bury(ctx context.Context, store *sandbox.Store) error {
	dead, err := store.Settle()
	err = errors.Join(err, keeper.Sweep(a.state), a.sweepSnapshots(store))
	if err != nil || len(dead) == 0 {
		return err
	}
	var problems []error
	for _, d := range dead {
		if err := a.buryOne(ctx, store, d); err != nil {
			d.Release()
			problems = append(problems, fmt.Errorf("run %s: %w", d.Record.Run, err))
		}
	}
	return errors.Join(problems...)
}

func (a *app) buryOne(ctx context.Context, store *sandbox.Store, d sandbox.Dead) error {
	reaped, err := a.reap(ctx, d)
	if err != nil {
		return err
	}
	log, err := audit.Open(a.auditDir())
	if err != nil {
		return err
	}
	defer log.Close()
	end := sandbox.End{Finished: time.Now(), How: "killed: cofferdam and its supervisor died", ExitCode: exitOurs, Weaker: d.Record.Weaker, Erased: reaped.Erased, Receipt: reaped.Receipt}
	if d.Record.State == sandbox.Ended { // it could still say how it ended, but not that it was gone
		end.Finished, end.How, end.ExitCode = d.Record.Finished, d.Record.How, d.Record.ExitCode
	}
	event := audit.Event{
		Kind: audit.RunEnded, Run: d.Record.Run, Principal: "system", Isolation: d.Record.Isolation, Weaker: end.Weaker, Status: exitOurs,
		Detail: end.How + platformDetail(d.Record.Platform) + "; erased: " + strings.Join(reaped.Erased, ", "), Error: strings.Join(reaped.Problems, "; "),
	}
	events := []audit.Event{event}
	if len(reaped.Receipt) > 0 {
		events = append([]audit.Event{{Kind: audit.SandboxErased, Run: d.Record.Run, Principal: "system", Detail: end.How, Erased: reaped.Receipt}}, events...)
	}
	if err := log.Append(ctx, events...); err != nil {
		return err
	}
	if len(reaped.Problems) > 0 {
		return errors.New(strings.Join(reaped.Problems, "; "))
	}
	fmt.Fprintf(a.stderr, "cofferdam: cleaned up after run %s, whose end nobody had confirmed\n", d.Record.Run)
	return store.Bury(d, end)
}

// reap has a supervisor remove what a dead run left.
func (a *app) reap(ctx context.Context, d sandbox.Dead) (call.Reaped, error) {
	reply, err := a.consult(ctx, call.Request{Reap: &call.Reap{Run: d.Record.Group()}})
	if err != nil {
		return call.Reaped{}, err
	}
	if reply.Reaped == nil {
		return call.Reaped{}, errors.New("the supervisor sent an unexpected reply")
	}
	return *reply.Reaped, nil
}

// consult starts a supervisor for one question.
func (a *app) consult(ctx context.Context, r call.Request) (call.Reply, error) {
	program, err := beside("cofferdam-supervisor")
	if err != nil {
		return call.Reply{}, err
	}
	client, err := call.Launch(program, nil, a.stderr)
	if err != nil {
		return call.Reply{}, err
	}
	reply, _, err := client.Ask(r)
	closing, cancel := context.WithTimeout(ctx, closePatience)
	defer cancel()
	return reply, errors.Join(err, client.Close(closing))
}

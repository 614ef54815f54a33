package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/cofferdam/cofferdam/internal/audit"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/ident"
	"github.com/cofferdam/cofferdam/internal/sandbox"
)

// auditFlags are the flags of "cofferdam audit" as typed.
type auditFlags struct {
	verdict, host, since, until string
	kinds                       []string
	limit                       int
	json, follow                bool
}

func newAuditCommand(a *app) *cobra.Command {
	var f auditFlags
	cmd := &cobra.Command{
		Use:   "audit [RUN]",
		Short: "Show what crossed the boundary, or tried to",
		Long: `Show the audit log: every crossing that was tried, allowed or denied, with the rule that decided, and how each run began and ended.
RUN is a run's name, the beginning of one, or "last". Without it the events of all runs are shown.`,
		Example: `  cofferdam audit last --verdict deny
  cofferdam audit --host '*.example.com' --since 2h --json
  cofferdam audit --follow
  cofferdam audit verify --expect "$(cat checkpoint)"`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return a.showAudit(cmd.Context(), f, args) },
	}
	flags := cmd.Flags()
	flags.StringVar(&f.verdict, "verdict", "", "only events with this verdict: allow, deny or ask")
	flags.StringVar(&f.host, "host", "", "only crossings to this host or address; *.example.com means all names below it")
	flags.StringVar(&f.since, "since", "", "only events from then on: how long ago (90s, 2h, 7d), a day (2026-01-31) or a time (RFC 3339)")
	flags.StringVar(&f.until, "until", "", "only events before then, written like --since")
	flags.StringSliceVar(&f.kinds, "kind", nil, "only events of these kinds, such as run.started or crossing.decided")
	flags.IntVar(&f.limit, "limit", 0, "only the newest N events (0: all)")
	flags.BoolVar(&f.json, "json", false, "one JSON object a line")
	flags.BoolVarP(&f.follow, "follow", "f", false, "go on showing events as they happen")
	cmd.AddCommand(newAuditVerifyCommand(a), newAuditHeadCommand(a))
	return cmd
}

func (a *app) showAudit(ctx context.Context, f auditFlags, args []string) error {
	filter, err := f.filter(time.Now())
	if err != nil {
		return err
	}
	if len(args) > 0 {
		if filter.Run, err = a.auditRun(args[0]); err != nil {
			return err
		}
	}
	show := newAuditTable(a.stdout, auditColour(a.stdout, os.Getenv)).row
	if f.json {
		show = auditJSON(a.stdout)
	}
	events := audit.Read(a.auditDir(), filter)
	if f.follow {
		events = audit.Follow(ctx, a.auditDir(), filter)
	}
	shown, err := a.showEvents(events, show)
	if err == nil && shown == 0 && filter.Run != "" && !f.follow {
		fmt.Fprintf(a.stderr, "no events of run %s\n", filter.Run)
	}
	return err
}

// showEvents shows events as they come. Damaged lines are reported, do not hide the rest, and make the command fail.
func (a *app) showEvents(events iter.Seq2[audit.Event, error], show func(*audit.Event) error) (shown int, damage error) {
	for e, err := range events {
		switch {
		case fault.KindOf(err) == fault.Conflict:
			fmt.Fprintf(a.stderr, "warning: %s\n", fault.Public(err))
			damage = fault.New(fault.Conflict, "the audit log is damaged").WithHint("type: cofferdam audit verify")
			continue
		case err != nil:
			return shown, err
		}
		if err := show(&e); err != nil {
			return shown, fmt.Errorf("write audit events: %w", err)
		}
		shown++
	}
	return shown, damage
}

// auditRun finds the run that is meant. A full name needs no record: the log outlives the records of runs.
func (a *app) auditRun(text string) (ident.Run, error) {
	if run, err := ident.ParseRun(text); err == nil {
		return run, nil
	}
	store, err := sandbox.OpenStore(a.state)
	if err != nil {
		return "", err
	}
	r, err := store.Resolve(text)
	return r.Run, err
}

func (f *auditFlags) filter(now time.Time) (audit.Filter, error) {
	out := audit.Filter{Verdict: f.verdict, Host: f.host, Limit: f.limit}
	if f.verdict != "" && !slices.Contains([]string{"allow", "deny", "ask"}, f.verdict) {
		return out, fault.New(fault.Invalid, "--verdict %.40q is none", f.verdict).WithHint("write allow, deny or ask")
	}
	if f.limit < 0 {
		return out, fault.New(fault.Invalid, "--limit %d is negative", f.limit).WithHint("leave it out to see all events")
	}
	for _, k := range f.kinds {
		if !slices.Contains(audit.Kinds(), audit.Kind(k)) {
			return out, fault.New(fault.Invalid, "--kind %.40q is none", k).WithHint("the kinds are %s", auditKindNames(audit.Kinds()))
		}
		out.Kinds = append(out.Kinds, audit.Kind(k))
	}
	var err error
	if out.Since, err = auditMoment("--since", f.since, now); err != nil {
		return out, err
	}
	out.Until, err = auditMoment("--until", f.until, now)
	return out, err
}

func auditKindNames(kinds []audit.Kind) string {
	names := make([]string, len(kinds))
	for i, k := range kinds {
		names[i] = string(k)
	}
	return strings.Join(names, ", ")
}

// auditMoment reads how long ago, a day, or a time. An empty text is the zero time.
func auditMoment(flag, text string, now time.Time) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	ago := text
	if days, ok := strings.CutSuffix(text, "d"); ok {
		ago = days + "h" // and times 24 below
	}
	if d, err := time.ParseDuration(ago); err == nil && d >= 0 {
		if ago != text {
			d = time.Duration(min(float64(d)*24, float64(1<<62)))
		}
		return now.Add(-d), nil
	}
	if t, err := time.ParseInLocation(time.DateOnly, text, now.Location()); err == nil {
		return t, nil
	}
	t, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return time.Time{}, fault.New(fault.Invalid, "%s %.60q is no time", flag, text).
			WithHint("write how long ago (90s, 2h, 7d), a day (2026-01-31) or a time (2026-01-31T12:00:00Z)")
	}
	return t, nil
}

func auditJSON(w io.Writer) func(*audit.Event) error {
	enc := json.NewEncoder(w)
	return func(e *audit.Event) error { return enc.Encode(e) }
}

// auditColour says whether w is a terminal whose user has nothing against colours.
func auditColour(w io.Writer, getenv func(string) string) bool {
	f, ok := w.(*os.File)
	return ok && getenv("NO_COLOR") == "" && getenv("TERM") != "dumb" && term.IsTerminal(int(f.Fd()))
}

func newAuditVerifyCommand(a *app) *cobra.Command {
	var expect []string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Check that no record of the audit log was changed, deleted, moved, put in or cut off",
		Long: `Check the chain of hashes through the whole audit log, and name each record that is not as it was written.
Someone who may write to the log's directory could write it all anew: only a checkpoint kept elsewhere shows that (cofferdam audit head prints one).`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return a.verifyAudit(expect, asJSON) },
	}
	cmd.Flags().StringArrayVar(&expect, "expect", nil, "a checkpoint SEQ:HASH that the log must agree with (may be repeated)")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the report as JSON")
	return cmd
}

func (a *app) verifyAudit(expect []string, asJSON bool) error {
	marks := make([]audit.Checkpoint, len(expect))
	for i, text := range expect {
		var err error
		if marks[i], err = audit.ParseCheckpoint(text); err != nil {
			return err
		}
	}
	r, err := audit.Verify(a.auditDir(), marks...)
	if err != nil {
		return err
	}
	if asJSON {
		err = json.NewEncoder(a.stdout).Encode(&r)
	} else {
		err = printAuditReport(a.stdout, &r)
	}
	if err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	if n := uint64(len(r.Problems)) + r.More; n > 0 {
		return fault.New(fault.Conflict, "the audit log is not as it was written: %s", auditCount(n, "problem")).
			WithHint("keep a copy of %s before anything else runs", a.auditDir())
	}
	return nil
}

func printAuditReport(w io.Writer, r *audit.Report) error {
	var b strings.Builder
	for _, p := range r.Problems {
		if p.Line > 0 {
			fmt.Fprintf(&b, "line %d: ", p.Line)
		}
		fmt.Fprintf(&b, "%s\n", p.What)
	}
	if r.More > 0 {
		fmt.Fprintf(&b, "and %d more\n", r.More)
	}
	if r.Torn > 0 {
		fmt.Fprintf(&b, "note: the last writer was interrupted and left %d bytes that are no record; the next event cuts them off and records that\n", r.Torn)
	}
	if r.OK() {
		fmt.Fprintf(&b, "%s, each as it was written; head %s\n", auditCount(r.Records, "record"), r.Head)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// auditCount writes a number with its noun.
func auditCount(n uint64, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

func newAuditHeadCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "head",
		Short: "Print a checkpoint of the audit log, to be kept elsewhere",
		Long: `Print SEQ:HASH of the newest record. Kept where this machine cannot change it, it proves later that everything up to
it is still as it was: cofferdam audit verify --expect SEQ:HASH`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			c, err := audit.Head(a.auditDir())
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(a.stdout, c)
			return err
		},
	}
}

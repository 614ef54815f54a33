package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/cofferdam/cofferdam/internal/audit"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/sandbox"
	"github.com/cofferdam/cofferdam/internal/workspace"
)

// finished is a run that ended, with what it changed.
type finished struct {
	store   *sandbox.Store
	record  sandbox.Record
	changes *workspace.Changes
	paths   []workspace.Name
}

// openFinished finds the run named by the first argument ("last" without one), its changes, and the paths named by the others.
func (a *app) openFinished(args []string) (finished, error) {
	store, err := sandbox.OpenStore(a.state)
	if err != nil {
		return finished{}, err
	}
	name := "last"
	if len(args) > 0 {
		name, args = args[0], args[1:]
	}
	f := finished{store: store}
	if f.record, err = store.Resolve(name); err != nil {
		return finished{}, fault.New(fault.KindOf(err), "%s", fault.Public(err)).WithHint("%s; for a path of the last run write: last %s", fault.HintOf(err), inert(name, 80))
	}
	if f.record.State != sandbox.Ended {
		return finished{}, fault.New(fault.Conflict, "run %s has not ended", f.record.Run).
			WithHint("wait for it to end; if its programs were killed, type: cofferdam gc")
	}
	if !f.record.Dropped.IsZero() {
		return finished{}, fault.New(fault.NotFound, "the changes of run %s were dropped on %s", f.record.Run, f.record.Dropped.Format(time.DateTime))
	}
	if f.paths, err = workspacePaths(f.record.Workspace, args); err != nil {
		return finished{}, err
	}
	if f.record.Collected && f.record.Changed == 0 {
		fmt.Fprintf(a.stderr, "cofferdam: run %s changed nothing\n", f.record.Run)
		f.changes = workspace.Nothing(store.Changes(f.record.Run), f.record.Workspace)
		return f, nil
	}
	f.changes, err = workspace.Open(store.Changes(f.record.Run), f.record.Workspace)
	return f, err
}

// workspacePaths turns what a person typed into paths below the workspace: relative to it, or absolute and inside.
func workspacePaths(root string, args []string) ([]workspace.Name, error) {
	var paths []workspace.Name
	for _, arg := range args {
		p := filepath.Clean(arg)
		if filepath.IsAbs(p) {
			rel, err := filepath.Rel(root, p)
			if err != nil {
				return nil, fault.New(fault.Invalid, "path %q is outside the workspace %s", arg, root).Because(err)
			}
			p = rel
		}
		switch {
		case p == ".":
			return nil, nil // all
		case p == ".." || strings.HasPrefix(p, "../"):
			return nil, fault.New(fault.Invalid, "path %q is outside the workspace %s", arg, root).
				WithHint("write paths relative to the workspace, as cofferdam diff --name-only prints them")
		}
		paths = append(paths, workspace.Name(p))
	}
	return paths, nil
}

// selected returns the changes below the named paths.
func (f finished) selected() []workspace.Change {
	var some []workspace.Change
	for _, c := range f.changes.List() {
		if c.Below(f.paths) {
			some = append(some, c)
		}
	}
	return some
}

func newDiffCommand(a *app) *cobra.Command {
	var stat, nameOnly, asJSON bool
	cmd := &cobra.Command{
		Use:   "diff [RUN] [PATH...]",
		Short: "Show what a run changed in its workspace",
		Long: `Show what a run changed in its workspace: the last run, or the one named. Changes that could make the host's own tools
run something (git hooks, CI and agent configuration, ...) are set apart at the end, each with its reason.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := a.openFinished(args)
			if err != nil {
				return err
			}
			switch {
			case asJSON:
				return a.diffJSON(f)
			case nameOnly:
				return a.diffNames(f)
			case stat:
				return a.diffStat(f)
			}
			return f.changes.Diff(cmd.Context(), a.stdout, workspace.DiffOptions{Paths: f.paths, Colour: colourOf(a.stdout)})
		},
	}
	cmd.Flags().BoolVar(&stat, "stat", false, "one line for each changed path, and the sum")
	cmd.Flags().BoolVar(&nameOnly, "name-only", false, "only the paths")
	cmd.Flags().BoolVar(&asJSON, "json", false, "as JSON; %XX in names stands for a byte that does not print")
	cmd.MarkFlagsMutuallyExclusive("stat", "name-only", "json")
	return cmd
}

// colourOf paints where a person looks and has not asked otherwise.
func colourOf(w io.Writer) workspace.Colour {
	f, isFile := w.(*os.File)
	if !isFile || os.Getenv("NO_COLOR") != "" || os.Getenv("TERM") == "dumb" || !term.IsTerminal(int(f.Fd())) {
		return workspace.Plain
	}
	return workspace.Painted
}

// changeJSON is one change on the command line's JSON.
type changeJSON struct {
	Op workspace.Op `json:"op"`
	workspace.Change
	Danger *workspace.Danger `json:"danger,omitempty"` // shadows the field that is not stored
}

func changesJSON(list []workspace.Change) []changeJSON {
	out := make([]changeJSON, 0, len(list))
	for _, c := range list {
		j := changeJSON{Op: c.Op(), Change: c}
		if c.Danger.Rule != "" {
			j.Danger = &c.Danger
		}
		out = append(out, j)
	}
	return out
}

func (a *app) diffJSON(f finished) error {
	return a.writeJSON(struct {
		Run       string           `json:"run"`
		Workspace string           `json:"workspace"`
		Changes   []changeJSON     `json:"changes"`
		Skipped   []workspace.Skip `json:"skipped"`
	}{f.record.Run.String(), f.record.Workspace, changesJSON(f.selected()), append([]workspace.Skip{}, f.changes.Skipped()...)})
}

func (a *app) diffNames(f finished) error {
	for _, c := range f.selected() {
		if _, err := fmt.Fprintln(a.stdout, c.Path); err != nil {
			return err
		}
	}
	return nil
}

func (a *app) diffStat(f finished) error {
	var added, modified, deleted, apart int
	for _, c := range f.selected() {
		switch c.Op() {
		case workspace.Add:
			added++
		case workspace.Delete:
			deleted++
		case workspace.Modify:
			modified++
		}
		if c.Danger.Rule != "" {
			apart++
		}
		if err := a.printChange(c); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintf(a.stdout, "%d added, %d changed, %d deleted; %d of them set apart; %d not collected\n",
		added, modified, deleted, apart, len(f.changes.Skipped()))
	return err
}

// printChange writes one line: sign, name, size, and why it is set apart.
func (a *app) printChange(c workspace.Change) error {
	sign := map[workspace.Op]string{workspace.Add: "+", workspace.Modify: "~", workspace.Delete: "-"}[c.Op()]
	node := c.Now
	if node.Kind == workspace.Absent {
		node = c.Was
	}
	what := string(node.Kind)
	switch node.Kind {
	case workspace.File:
		what = fmt.Sprintf("%d bytes", node.Size)
	case workspace.Symlink:
		what = "-> " + node.Target.String()
	}
	apart := ""
	if c.Danger.Rule != "" {
		apart = "  [set apart: " + c.Danger.Reason + "]"
	}
	_, err := fmt.Fprintf(a.stdout, "%s %s  %s%s\n", sign, c.Path, what, apart)
	return err
}

// applyFlags are the flags of apply.
type applyFlags struct{ dangerous, force, dryRun, asJSON bool }

func newApplyCommand(a *app) *cobra.Command {
	var flags applyFlags
	cmd := &cobra.Command{
		Use:   "apply [RUN] [PATH...]",
		Short: "Bring the changes of a run into the workspace",
		Long: `Bring the changes of a run into the workspace: all of them, or those at the paths named. Nothing is applied if a person
has changed one of the paths since. Changes that could make the host's own tools run something are left out and listed.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := a.openFinished(args)
			if err != nil {
				return err
			}
			return a.apply(cmd.Context(), f, flags)
		},
	}
	cmd.Flags().BoolVar(&flags.dangerous, "include-dangerous", false, "apply also what is set apart, and setuid, setgid and sticky bits")
	cmd.Flags().BoolVar(&flags.force, "force", false, "overwrite what has changed in the workspace since the run ended")
	cmd.Flags().BoolVar(&flags.dryRun, "dry-run", false, "say what would be done")
	cmd.Flags().BoolVar(&flags.asJSON, "json", false, "report as JSON")
	return cmd
}

func (a *app) apply(ctx context.Context, f finished, flags applyFlags) error {
	o := workspace.ApplyOptions{Paths: f.paths, DryRun: flags.dryRun}
	if flags.dangerous {
		o.Dangerous = workspace.IncludeDangerous
	}
	if flags.force {
		o.Overwrite = workspace.OverwriteConflicts
	}
	recorded := false
	o.Record = func(r workspace.Report) error {
		recorded = true
		return a.recordWorkspace(ctx, f, fmt.Sprintf("apply %d changes to %q; %d set apart, %d conflicts, dangerous included: %t, forced: %t",
			len(r.Applied), f.record.Workspace, len(r.SetApart), len(r.Conflicts), flags.dangerous, flags.force), nil)
	}
	report, err := f.changes.Apply(ctx, o)
	if err != nil && recorded {
		// The apply may have ended because the user pressed Ctrl-C; that it ended so is still to be recorded.
		detail := fmt.Sprintf("apply ended early, after %d changes", len(report.Applied))
		err = errors.Join(err, a.recordWorkspace(context.WithoutCancel(ctx), f, detail, err))
	}
	if err == nil && !flags.dryRun {
		f.record.Applied = time.Now().UTC()
		err = f.store.Save(f.record)
	}
	return errors.Join(err, a.printReport(report, flags, err))
}

// recordWorkspace writes the audit event of an apply or drop. Where it fails, neither may happen.
func (a *app) recordWorkspace(ctx context.Context, f finished, detail string, cause error) error {
	log, err := audit.Open(a.auditDir())
	if err != nil {
		return fmt.Errorf("open audit log: %w", err)
	}
	event := audit.Event{Kind: audit.WorkspaceApplied, Run: f.record.Run, Principal: "user", Detail: detail}
	if cause != nil {
		event.Error = cause.Error()
	}
	return errors.Join(log.Append(ctx, event), log.Close())
}

func (a *app) printReport(r workspace.Report, flags applyFlags, failed error) error {
	if flags.asJSON {
		return a.writeJSON(struct {
			DryRun    bool                 `json:"dry_run"`
			Complete  bool                 `json:"complete"` // no error stopped it
			Applied   []changeJSON         `json:"applied"`
			Already   int                  `json:"already"`
			SetApart  []changeJSON         `json:"set_apart"`
			Kept      []workspace.Conflict `json:"kept"`
			Stripped  []workspace.Name     `json:"stripped"`
			Conflicts []workspace.Conflict `json:"conflicts"`
		}{
			flags.dryRun, failed == nil, changesJSON(r.Applied), r.Already, changesJSON(r.SetApart),
			append([]workspace.Conflict{}, r.Kept...), append([]workspace.Name{}, r.Stripped...), append([]workspace.Conflict{}, r.Conflicts...),
		})
	}
	for _, c := range r.Applied {
		if err := a.printChange(c); err != nil {
			return err
		}
	}
	for _, c := range r.Conflicts {
		fmt.Fprintf(a.stderr, "conflict: %s: %s\n", c.Path, c.Reason)
	}
	for _, c := range r.Kept {
		fmt.Fprintf(a.stderr, "kept: %s %s\n", c.Path, c.Reason)
	}
	for _, p := range r.Stripped {
		fmt.Fprintf(a.stderr, "without its special mode bits: %s\n", p)
	}
	for _, c := range r.SetApart {
		fmt.Fprintf(a.stderr, "set apart: %s: %s\n", c.Path, c.Danger.Reason)
	}
	return a.printSum(r, flags)
}

func (a *app) printSum(r workspace.Report, flags applyFlags) error {
	done := "applied"
	if flags.dryRun {
		done = "to apply"
	}
	line := fmt.Sprintf("%d changes %s", len(r.Applied), done)
	if r.Already > 0 {
		line += fmt.Sprintf(", %d were there already", r.Already)
	}
	if n := len(r.SetApart); n > 0 {
		line += fmt.Sprintf(", %d set apart (read them, then apply with --include-dangerous)", n)
	}
	_, err := fmt.Fprintln(a.stdout, line)
	return err
}

func newDropCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "drop [RUN]",
		Short: "Throw away the changes of a run",
		Long:  "Throw away the changes of a run: the last one, or the one named. The workspace is not touched.",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := a.openFinished(args)
			// A damaged change list cannot be applied, but thrown away it can be.
			if err != nil && fault.KindOf(err) != fault.Invalid || f.record.Run == "" {
				return err
			}
			return a.drop(cmd.Context(), f)
		},
	}
}

func (a *app) drop(ctx context.Context, f finished) error {
	if err := a.recordWorkspace(ctx, f, fmt.Sprintf("drop %d changes", f.record.Changed), nil); err != nil {
		return err
	}
	if err := workspace.Drop(f.store.Changes(f.record.Run)); err != nil {
		return err
	}
	f.record.Dropped = time.Now().UTC()
	if err := f.store.Save(f.record); err != nil {
		return err
	}
	_, err := fmt.Fprintf(a.stdout, "dropped the changes of run %s\n", f.record.Run)
	return err
}

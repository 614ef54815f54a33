package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cofferdam/cofferdam/internal/audit"
	"github.com/cofferdam/cofferdam/internal/sandbox"
	"github.com/cofferdam/cofferdam/internal/snapshot"
)

// newSnapshotCommand is "cofferdam snapshot".
func (a *app) newSnapshotCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "snapshot",
		Short: "Keep a virtual machine that has worked, and go on from there",
		Long: `Keep virtual machines after their command has ended with 0. Runs continue one as often as wanted, also at once: each is a copy with the files that were
written, and with a run id, policy, credentials, random numbers and a record of its own. No program of the first run goes on.

  cofferdam run --image default --isolation vm-emulated --snapshot ready -- npm ci
  cofferdam run --from ready -- npm test
  cofferdam snapshot list | inspect NAME | rm NAME

A snapshot holds the sandbox's memory and a copy of the folder in the clear, in files that only you can read. It goes on with the same versions of QEMU, of the
machines' kernel and of cofferdam only.`,
	}
	cmd.AddCommand(a.newSnapshotListCommand(), a.newSnapshotInspectCommand(), a.newSnapshotRemoveCommand())
	return cmd
}

func (a *app) listSnapshots() ([]snapshot.Snapshot, error) {
	store, err := a.snapshots()
	if err != nil {
		return nil, err
	}
	return store.List()
}

func (a *app) newSnapshotListCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List snapshots, the newest first", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			list, err := a.listSnapshots()
			return show(a, cmd, list, err, a.printSnapshots)
		},
	}
	jsonFlag(cmd)
	return cmd
}

func (a *app) printSnapshots(list []snapshot.Snapshot) error {
	if len(list) == 0 {
		_, err := fmt.Fprintln(a.stderr, "cofferdam: there are no snapshots; make one with: cofferdam run --snapshot NAME --isolation vm-emulated --image default -- COMMAND")
		return err
	}
	w := newTable(a.stdout)
	fmt.Fprintln(w, "NAME\tMADE\tSIZE\tISOLATION\tRUN\tFOLDER\tCOMMAND")
	for _, s := range list {
		if s.Run == "" {
			fmt.Fprintf(w, "%s\tdamaged\n", s.Name)
			continue
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s %s\t%s\n", s.Name, since(s.Made), audit.SizeWords(s.Size), inert(s.Isolation, 40), s.Run, inert(s.Workspace, 80), inert(s.Mode, 10), inert(strings.Join(s.Command, " "), 60))
	}
	return w.Flush()
}

func (a *app) newSnapshotInspectCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "inspect NAME", Short: "Show what is known of a snapshot", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeSnapshots,
		RunE: func(cmd *cobra.Command, args []string) error {
			name, err := snapshot.ParseName(args[0])
			if err != nil {
				return err
			}
			store, err := a.snapshots()
			if err != nil {
				return err
			}
			s, err := store.Find(name)
			return show(a, cmd, s, err, a.printSnapshot)
		},
	}
	jsonFlag(cmd)
	return cmd
}

func (a *app) printSnapshot(s snapshot.Snapshot) error {
	w := newTable(a.stdout)
	var mounts []string
	for _, m := range s.Mounts {
		mounts = append(mounts, m.Source+":"+m.Target)
	}
	for _, row := range [][2]string{
		{"name", string(s.Name)}, {"made", since(s.Made)}, {"of run", s.Run.String()}, {"which continued", string(s.From)}, {"command", strings.Join(s.Command, " ")}, {"isolation", s.Isolation},
		{"folder", strings.TrimSpace(s.Workspace + " " + s.Mode)}, {"image", s.Image}, {"root", s.RootFS}, {"mounts", strings.Join(mounts, " ")},
		{"size on the disk", audit.SizeWords(s.Size)}, {"memory", audit.SizeWords(s.Limits.Memory)}, {"scratch", audit.SizeWords(s.Limits.Disk)},
	} {
		if row[1] != "" {
			fmt.Fprintf(w, "%s\t%s\n", row[0], inert(row[1], 400))
		}
	}
	return w.Flush()
}

func (a *app) newSnapshotRemoveCommand() *cobra.Command {
	return &cobra.Command{
		Use: "rm NAME...", Aliases: []string{"remove"}, Short: "Remove snapshots",
		Long: `Remove snapshots. Runs that continue one go on: they have copies of their own.`,
		Args: cobra.MinimumNArgs(1), ValidArgsFunction: a.completeSnapshots,
		RunE: func(_ *cobra.Command, args []string) error {
			store, err := a.snapshots()
			if err != nil {
				return err
			}
			var all []error
			for _, text := range args {
				name, err := snapshot.ParseName(text)
				if err == nil {
					err = store.Remove(name)
				}
				if err == nil {
					_, err = fmt.Fprintln(a.stderr, "cofferdam: removed the snapshot", name)
				}
				all = append(all, err)
			}
			return errors.Join(all...)
		},
	}
}

// completeSnapshots completes the names of snapshots.
func (a *app) completeSnapshots(_ *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	list, err := a.listSnapshots()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var found []cobra.Completion
	for _, s := range list {
		if !slices.Contains(args, string(s.Name)) {
			found = append(found, string(s.Name))
		}
	}
	return found, cobra.ShellCompDirectiveNoFileComp
}

// sweepSnapshots removes what killed runs have left of snapshots.
func (a *app) sweepSnapshots(runs *sandbox.Store) error {
	if _, err := os.Lstat(filepath.Join(a.state, "snapshots")); errors.Is(err, fs.ErrNotExist) {
		return nil // none was ever made
	}
	store, err := a.snapshots()
	if err != nil {
		return err
	}
	return store.Sweep(runs.IsLive)
}

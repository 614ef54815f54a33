package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cofferdam/cofferdam/client"
	"github.com/cofferdam/cofferdam/internal/fault"
)

// newCopyCommand is "cofferdam cp".
func (a *app) newCopyCommand() *cobra.Command {
	var recursive, force bool
	cmd := &cobra.Command{
		Use:   "cp [-r] SANDBOX:PATH FILE | FILE SANDBOX:PATH",
		Short: "Copy files out of a running sandbox of a server, or into it",
		Long: `Copy a file, or with -r a folder, out of a running sandbox or into it. A path inside that does not begin with a slash is below ` + workDir + `. FILE may be -.

What comes out was written by what runs inside: links are kept as links, nothing leaves the folder named, devices and set-id bits do not come along,
and nothing that exists is replaced without --force.`,
		Example: "  cofferdam cp k2m9x7qa:report.txt .\n  cofferdam cp -r ./data k2m9x7qa:data",
		Args:    cobra.ExactArgs(2), ValidArgsFunction: func(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
			list, _ := a.complete(cmd, sandboxCompletions)
			for i, one := range list {
				id, about, _ := strings.Cut(one, "\t")
				list[i] = cobra.CompletionWithDesc(id+":", about)
			}
			return list, cobra.ShellCompDirectiveNoSpace
		},
		RunE: a.there(func(ctx context.Context, r *remote, _ *cobra.Command, args []string) error {
			ctx, stop := untilInterrupted(ctx)
			defer stop()
			from, to := parsePlace(args[0]), parsePlace(args[1])
			switch {
			case from.sandbox != "" && to.sandbox == "":
				return a.copyOut(ctx, r, from, to.path, recursive, force)
			case from.sandbox == "" && to.sandbox != "":
				return a.copyIn(ctx, r, from.path, to, recursive)
			}
			return fault.New(fault.Invalid, "one of the two must be inside a sandbox").WithHint("write SANDBOX:PATH, as in: cofferdam cp %s:report.txt .", "SANDBOX")
		}),
	}
	cmd.Flags().BoolVarP(&recursive, "recursive", "r", false, "a folder with what is in it")
	cmd.Flags().BoolVarP(&force, "force", "f", false, "replace a file that exists")
	return cmd
}

func (a *app) copyOut(ctx context.Context, r *remote, from place, to string, recursive, force bool) error {
	if to != "-" {
		if info, err := os.Stat(to); err == nil && info.IsDir() {
			to = filepath.Join(to, path.Base(from.path))
		}
	}
	if recursive {
		return a.copyFolderOut(ctx, r, from, to)
	}
	body, err := r.ReadFile(ctx, from.sandbox, from.path, client.Plain)
	if err != nil {
		return err
	}
	defer body.Close()
	if to == "-" {
		_, err := io.Copy(a.inertOutput(), body)
		return err
	}
	return writeNew(to, body, force)
}

// writeNew writes a file that was not there, or replaces one at a stroke. No link is followed.
func writeNew(to string, body io.Reader, force bool) error {
	if _, err := os.Lstat(to); err == nil && !force {
		return fault.New(fault.Conflict, "%s exists", to).WithHint("name another file, or replace it with: --force")
	}
	f, err := os.CreateTemp(filepath.Dir(to), ".cofferdam-*")
	if err != nil {
		return fault.New(fault.Invalid, "cannot write %s", to).Because(err)
	}
	_, err = io.Copy(f, body)
	err = errors.Join(err, f.Chmod(0o644), f.Close())
	if err == nil && force {
		err = os.Rename(f.Name(), to)
	} else if err == nil {
		err = errors.Join(os.Link(f.Name(), to), os.Remove(f.Name())) // fails if it exists by now
	}
	if err != nil {
		_ = os.Remove(f.Name()) // the first error counts
		return fmt.Errorf("write %s: %w", to, err)
	}
	return nil
}

func (a *app) copyFolderOut(ctx context.Context, r *remote, from place, to string) error {
	if to == "-" {
		return fault.New(fault.Invalid, "-r needs a folder to write to")
	}
	if _, err := os.Lstat(to); err == nil {
		return fault.New(fault.Conflict, "%s exists", to).WithHint("name a folder that does not exist yet")
	}
	body, err := r.ReadFile(ctx, from.sandbox, from.path, client.Tar)
	if err != nil {
		return err
	}
	defer body.Close()
	if err := os.Mkdir(to, 0o755); err != nil {
		return fault.New(fault.Invalid, "cannot make %s", to).Because(err)
	}
	got, err := receive(ctx, body, to, nil)
	if err != nil {
		return fmt.Errorf("copy to %s, which holds what came until then: %w", to, err)
	}
	_, err = fmt.Fprintf(a.stderr, "cofferdam: copied %s\n", plural(got.entries, "entry", "entries"))
	return err
}

func (a *app) copyIn(ctx context.Context, r *remote, from string, to place, recursive bool) error {
	if from == "-" {
		return r.WriteFile(ctx, to.sandbox, to.path, "", client.Plain, a.stdin)
	}
	info, err := os.Stat(from)
	if err != nil {
		return fault.New(fault.Invalid, "cannot read %s", from).Because(err)
	}
	switch {
	case info.IsDir() && !recursive:
		return fault.New(fault.Invalid, "%s is a folder", from).WithHint("copy it with: cofferdam cp -r")
	case info.IsDir():
		p, err := survey(ctx, from)
		if err != nil {
			return err
		}
		for _, note := range p.notes() {
			fmt.Fprintln(a.stderr, "cofferdam:", note)
		}
		_, err = send(ctx, r, to.sandbox, to.path, p)
		return err
	case !info.Mode().IsRegular():
		return fault.New(fault.Invalid, "%s is no regular file", from)
	}
	f, err := os.Open(from)
	if err != nil {
		return fault.New(fault.Invalid, "cannot read %s", from).Because(err)
	}
	defer f.Close()
	if list, err := r.Files(ctx, to.sandbox, to.path); err == nil && list.Items != nil || strings.HasSuffix(to.path, "/") {
		to.path = path.Join(to.path, filepath.Base(from)) // it is a directory
	}
	return r.WriteFile(ctx, to.sandbox, to.path, strconv.FormatUint(uint64(info.Mode()&fs.ModePerm), 8), client.Plain, f)
}

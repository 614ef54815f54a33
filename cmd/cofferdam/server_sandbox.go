package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/client"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/frame"
)

// psEitherWay is "cofferdam ps", of this machine or a server.
func (a *app) psEitherWay() *cobra.Command {
	var agent string
	cmd := a.newPSCommand()
	cmd.Flags().StringVar(&agent, "agent", "", "at a server: only of this agent, a `NAME`")
	_ = cmd.RegisterFlagCompletionFunc("agent", a.completeAgents) // the flag exists
	here := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if agent != "" {
			return fault.New(fault.Invalid, "--agent names an agent of a server, and this is about this machine").WithHint("leave it out, or log in with: cofferdam login https://SERVER")
		}
		return here(cmd, args)
	}
	return a.eitherWay(cmd, func(ctx context.Context, r *remote, cmd *cobra.Command, _ []string) error {
		all := boolFlag(cmd, "all")
		list, err := gather(client.All(ctx, func(ctx context.Context, p client.Page) (api.Page[api.Sandbox], error) {
			return r.Sandboxes(ctx, agent, !all, p)
		}))
		return show(a, cmd, list, err, a.printSandboxes)
	})
}

// boolFlag reads a flag that a command of this machine has registered.
func boolFlag(cmd *cobra.Command, name string) bool {
	v, err := cmd.Flags().GetBool(name)
	return err == nil && v
}

// textFlag likewise.
func textFlag(cmd *cobra.Command, name string) string {
	v, _ := cmd.Flags().GetString(name) // a flag that is not there has no value
	return v
}

func (a *app) printSandboxes(list []api.Sandbox) error {
	if len(list) == 0 {
		_, err := fmt.Fprintln(a.stderr, "cofferdam: nothing runs; ended sandboxes: cofferdam ps --all")
		return err
	}
	weaker := map[string]bool{}
	var rows [][]string
	for _, s := range list {
		state := string(s.State)
		if s.State == api.Ended || s.State == api.Failed {
			state = inert(s.How, 80)
		}
		level := s.Isolation
		if len(s.Weaker) > 0 {
			level += "*"
			for _, what := range s.Weaker {
				weaker[inert(what, 200)] = true
			}
		}
		command := inert(strings.Join(s.Command, " "), 60)
		if len(s.Command) == 0 {
			command = "(waits)"
		}
		rows = append(rows, []string{s.ID, state, since(s.Created), inert(s.AgentName, 63), level, inert(s.CreatedBy, 60), inert(s.Name, 60), command})
	}
	err := a.table([]string{"SANDBOX", "STATE", "MADE", "AGENT", "ISOLATION", "BY", "NAME", "COMMAND"}, rows)
	for _, what := range slices.Sorted(maps.Keys(weaker)) {
		fmt.Fprintln(a.stdout, "* weaker:", what)
	}
	return err
}

// newStopCommand is "cofferdam stop".
func (a *app) newStopCommand() *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use: "stop SANDBOX…", Short: "End sandboxes of a server, with everything in them", Args: cobra.MinimumNArgs(1),
		ValidArgsFunction: func(cmd *cobra.Command, _ []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
			return a.complete(cmd, sandboxCompletions)
		},
		RunE: a.there(func(ctx context.Context, r *remote, _ *cobra.Command, args []string) error {
			var problems []error
			for _, id := range args {
				if _, err := r.StopSandbox(ctx, id, reason); err != nil {
					problems = append(problems, fmt.Errorf("%s: %w", inert(id, 40), err))
					continue
				}
				fmt.Fprintf(a.stderr, "cofferdam: %s ends\n", inert(id, 40))
			}
			return errors.Join(problems...)
		}),
	}
	cmd.Flags().StringVar(&reason, "reason", "", "why, for the record")
	return cmd
}

// newLogsCommand is "cofferdam logs".
func (a *app) newLogsCommand() *cobra.Command {
	var follow bool
	cmd := &cobra.Command{
		Use:   "logs SANDBOX",
		Short: "Show what a sandbox's main command said",
		Long:  "Show what the main command of a server's sandbox has said: at a terminal with everything replaced that could steer it, else byte for byte.",
		Args:  cobra.ExactArgs(1), ValidArgsFunction: a.completeAt(sandboxCompletions),
		RunE: a.there(func(ctx context.Context, r *remote, _ *cobra.Command, args []string) error {
			out := a.inertOutput()
			if follow {
				ctx, stop := untilInterrupted(ctx)
				defer stop()
				return endedByPerson(ctx, r.FollowOutput(ctx, args[0], 0, out))
			}
			for offset := int64(0); ; {
				data, next, err := r.Output(ctx, args[0], offset)
				if err != nil {
					return err
				}
				if _, err := out.Write(data); err != nil {
					return err
				}
				if len(data) == 0 || next <= offset {
					return nil
				}
				offset = next
			}
		}),
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on until the command has ended")
	return cmd
}

// inertOutput is the standard output for text of a sandbox: a terminal must not be steered by it, while a file gets it as it is.
func (a *app) inertOutput() io.Writer {
	if !isTerminal(a.stdout) {
		return a.stdout
	}
	return &inertWriter{to: a.stdout}
}

// inertWriter passes text on with everything replaced that does not print, line ends and tabs excepted. A character may come in pieces.
type inertWriter struct {
	to   io.Writer
	rest []byte
}

// Write passes text on.
func (w *inertWriter) Write(p []byte) (int, error) {
	text := append(w.rest, p...)
	keep := incomplete(text)
	w.rest = append([]byte(nil), text[len(text)-keep:]...)
	var b strings.Builder
	for part := range strings.SplitAfterSeq(strings.ReplaceAll(string(text[:len(text)-keep]), "\r\n", "\n"), "\n") {
		line, end := strings.CutSuffix(part, "\n")
		for j, cell := range strings.Split(line, "\t") {
			if j > 0 {
				b.WriteByte('\t')
			}
			b.WriteString(frame.Inert(cell, 4*len(cell)+4))
		}
		if end {
			b.WriteByte('\n')
		}
	}
	if _, err := io.WriteString(w.to, b.String()); err != nil {
		return 0, err
	}
	return len(p), nil
}

// incomplete is how many bytes at the end are the beginning of a character, or of a line's end.
func incomplete(p []byte) int {
	if len(p) > 0 && p[len(p)-1] == '\r' {
		return 1
	}
	for n := 1; n <= min(3, len(p)); n++ {
		b := p[len(p)-n]
		switch {
		case b&0xc0 == 0x80:
			continue
		case b >= 0xf0 && n < 4, b >= 0xe0 && b < 0xf0 && n < 3, b >= 0xc0 && b < 0xe0 && n < 2:
			return n
		}
		return 0
	}
	return 0
}

// Command cofferdam runs untrusted programs in a throw-away sandbox whose only way out is a gateway under policy.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/inherit"
)

// Exit codes of cofferdam itself. "run" returns the command's own code instead, 128+N for signal N.
const (
	exitProblem  = 1   // what was asked for did not come out well: tampering found, conflicts, a failed check
	exitUsage    = 2   // wrong input: flags, policy, names
	exitTimeout  = 124 // run: --timeout was reached
	exitOurs     = 125 // run: cofferdam could not run the command
	exitNotExec  = 126 // run: the command cannot be executed
	exitNotFound = 127 // run: there is no such command inside
)

// status is an exit code that needs no further words.
type status int

func (s status) Error() string { return fmt.Sprintf("exit status %d", int(s)) }

func main() {
	a := &app{stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr, home: homeDir(os.Getenv)}
	a.settings = settingsDir(os.Getenv, a.home)
	var err error
	if a.state, err = stateDir(os.Getenv, os.Getuid(), a.home); err == nil {
		err = inherit.CloseOthers() // nothing that a careless caller left open is to be held by the process that will be the gateway
	}
	if err != nil {
		a.tell(err)
		os.Exit(exitOurs)
	}
	os.Exit(a.main(context.Background(), os.Args[1:]))
}

// main runs one command line and returns its exit code.
func (a *app) main(ctx context.Context, args []string) int {
	root := a.root(args)
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return 0
	}
	if code, ok := errors.AsType[status](err); ok {
		return int(code)
	}
	a.tell(err)
	if cmd != nil && (cmd.Name() == "run" || cmd.Name() == "exec") {
		return exitOurs
	}
	if fault.KindOf(err) == fault.Invalid {
		return exitUsage
	}
	return exitProblem
}

// root builds the tree of commands. For a command line that begins with a command that stays as long as its sandbox it builds that one alone: flags and texts of all the
// others would stay in memory with it, a third of a mebibyte.
func (a *app) root(args []string) *cobra.Command {
	root := &cobra.Command{
		Use:   "cofferdam",
		Short: "Run untrusted programs in a throw-away sandbox with one way out",
		Long: `Cofferdam runs a program that you do not trust in a throw-away sandbox. It holds no real credential
and has no way out but one gateway, where your policy decides and every crossing goes on record.

  cofferdam run -- npm install               nothing is reachable; denials say which flag would allow them
  cofferdam run --allow @npm -- npm install  the registry that npm is configured for, nothing else
  cofferdam diff | apply | drop              what it changed, to look at, to take, to throw away`,
		SilenceUsage: true, SilenceErrors: true, Version: version(),
	}
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return fault.New(fault.Invalid, "%v", err).WithHint("see: %s --help", c.CommandPath())
	})
	root.CompletionOptions.DisableDefaultCmd = true
	switch {
	case len(args) > 0 && args[0] == "run":
		root.AddCommand(a.newRunCommand())
	case len(args) > 0 && args[0] == "keep":
		root.AddCommand(a.newKeepCommand())
	default:
		root.CompletionOptions.DisableDefaultCmd = false
		a.addCommands(root)
	}
	tidyUsage(root)
	return root
}

// addCommands adds every command, in groups.
func (a *app) addCommands(root *cobra.Command) {
	root.AddGroup(&cobra.Group{ID: "work", Title: "Run and look at the outcome:"}, &cobra.Group{ID: "rules", Title: "Rules, records and credentials:"}, &cobra.Group{ID: "team", Title: "A server for a team:"}, &cobra.Group{ID: "house", Title: "This machine:"})
	for group, commands := range map[string][]*cobra.Command{
		"work":  {a.newRunCommand(), newDiffCommand(a), newApplyCommand(a), newDropCommand(a), a.psEitherWay(), a.newPauseCommand(), a.newResumeCommand(), a.newSnapshotCommand(), a.newStopCommand(), a.newExecCommand(), a.newLogsCommand(), a.newCopyCommand()},
		"rules": {a.policyEitherWay(), a.auditEitherWay(), a.credentialEitherWay(), newSealCommand(a)},
		"team": {
			a.newLoginCommand(), a.newLogoutCommand(), a.newWhoamiCommand(), a.newAgentCommand(), a.newReviewCommand(), a.newUserCommand(), a.newTokenCommand(),
			a.newEventsCommand(), a.newServeCommand(), a.newConfigCommand(),
		},
		"house": {a.newImageCommand(), a.newReceiptCommand(), a.newPoolCommand(), a.newGCCommand(), a.newDoctorCommand()},
	} {
		for _, c := range commands {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	root.AddCommand(a.newKeepCommand())
}

// tidyUsage makes mistakes in a command line errors of input with a hint, for a command and all below it.
func tidyUsage(c *cobra.Command) {
	for _, sub := range c.Commands() {
		tidyUsage(sub)
	}
	if c.HasSubCommands() && !c.Runnable() {
		c.Args = cobra.ArbitraryArgs
		c.RunE = func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				return c.Help()
			}
			c.SuggestionsMinimumDistance = 2
			hint := "see: " + c.CommandPath() + " --help"
			if near := c.SuggestionsFor(args[0]); len(near) > 0 {
				hint = "did you mean: " + c.CommandPath() + " " + near[0]
			}
			return fault.New(fault.Invalid, "%s has no command %.40q", c.CommandPath(), args[0]).WithHint("%s", hint)
		}
		return
	}
	check := c.Args
	if check == nil {
		return
	}
	c.Args = func(c *cobra.Command, args []string) error {
		err := check(c, args)
		if _, ours := errors.AsType[*fault.Error](err); err == nil || ours {
			return err
		}
		return fault.New(fault.Invalid, "%s: %v", c.CommandPath(), err).WithHint("see: %s --help", c.CommandPath())
	}
}

// maxLines is how much of an error is printed.
const maxLines = 50

// tell prints an error for people: what, why, what to type next.
func (a *app) tell(err error) {
	text := err.Error()
	if fault.KindOf(err) == fault.Internal && text == "" {
		text = "internal error"
	}
	for i, line := range strings.Split(text, "\n") { // a policy's problems are one a line
		if i == maxLines {
			fmt.Fprintln(a.stderr, "  …")
			break
		}
		fmt.Fprintln(a.stderr, "cofferdam:", inert(line, 4000))
	}
	if hint := fault.HintOf(err); hint != "" {
		fmt.Fprintln(a.stderr, "  hint:", inert(hint, 4000))
	}
}

// release is set by the linker: "make build" names the commit.
var release string

// version says which build this is.
func version() string {
	if release != "" {
		return release
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		return info.Main.Version
	}
	return "unknown"
}

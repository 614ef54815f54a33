package main

import (
	"context"
	"errors"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/fault"
)

// workDir is where a sandbox of a server has its workspace.
const workDir = "/work"

// newExecCommand is "cofferdam exec".
func (a *app) newExecCommand() *cobra.Command {
	var dir string
	var env []string
	var tty, noTTY bool
	cmd := &cobra.Command{
		Use:   "exec [flags] SANDBOX -- COMMAND [ARG…]",
		Short: "Run one more command in a running sandbox of a server",
		Long: `Run one more command in a running sandbox of a server, with a terminal if all three streams are one. If the connection breaks the command is ended.

Exit status: the command's own; 128+N if signal N ended it; 125 if it could not be run; 126 if it cannot be executed; 127 if there is none of that name.`,
		Example: "  cofferdam exec k2m9x7qa -- sh\n  echo data | cofferdam exec k2m9x7qa -- wc -c",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) < 2 {
				return fault.New(fault.Invalid, "no sandbox, or no command").WithHint("cofferdam exec SANDBOX -- COMMAND ARGS…; sandboxes are listed by: cofferdam ps")
			}
			return nil
		},
		ValidArgsFunction: a.completeAt(sandboxCompletions),
		RunE: a.there(func(ctx context.Context, r *remote, _ *cobra.Command, args []string) error {
			f := runFlags{env: env}
			variables, err := f.environment()
			if err != nil {
				return err
			}
			if tty && !isTerminal(a.stdin) {
				return fault.New(fault.Invalid, "--tty: standard input is not a terminal").WithHint("leave out --tty")
			}
			command := args[1:]
			if command[0] == "--" {
				command = command[1:]
			}
			if len(command) == 0 {
				return fault.New(fault.Invalid, "no command").WithHint("cofferdam exec SANDBOX -- COMMAND ARGS…")
			}
			terminal := tty || a.hasTerminal(noTTY)
			return a.exec(ctx, r, args[0], api.Exec{Command: command, Dir: dir, Environment: withTerm(variables, terminal), TTY: terminal})
		}),
	}
	flags := cmd.Flags()
	flags.SetInterspersed(false) // what follows the sandbox belongs to the command
	flags.StringVar(&dir, "dir", workDir, "run it in this directory inside, an absolute `PATH`")
	flags.StringArrayVar(&env, "env", nil, "set `NAME=VALUE` for it; NAME alone copies it from here")
	flags.BoolVarP(&tty, "tty", "t", false, "give the command a terminal (default: if all three streams are one)")
	flags.BoolVarP(&noTTY, "no-tty", "T", false, "give the command pipes")
	cmd.MarkFlagsMutuallyExclusive("tty", "no-tty")
	return cmd
}

// hasTerminal says whether a command is to have a terminal if nobody says so.
func (a *app) hasTerminal(not bool) bool {
	return !not && isTerminal(a.stdin) && isTerminal(a.stdout) && isTerminal(a.stderr)
}

func (a *app) exec(ctx context.Context, r *remote, sandbox string, in api.Exec) error {
	var s signals
	defer s.catch()()
	c := &remoteCommand{r: r, sandbox: sandbox, exec: in, stdin: a.stdin, stdout: a.stdout, stderr: a.stderr, signals: s.all}
	exit, err := c.run(ctx)
	if err != nil {
		return err
	}
	if exit.Error != "" {
		newNotifier(a.stderr, false, false).trouble(errors.New(inert(exit.Error, 400)), "")
	}
	if code := exitCode(exit); code != 0 {
		return status(code)
	}
	return nil
}

// place is a path of this machine, or inside a sandbox.
type place struct{ sandbox, path string }

// parsePlace reads SANDBOX:PATH or PATH. A path of this machine with a colon in it is written with a slash before, as ./a:b.
func parsePlace(text string) place {
	name, path, ok := strings.Cut(text, ":")
	if !ok || name == "" || strings.Contains(name, "/") {
		return place{path: text}
	}
	if !strings.HasPrefix(path, "/") {
		path = strings.TrimSuffix(workDir+"/"+path, "/")
	}
	return place{sandbox: name, path: path}
}

// withTerm tells a command with a terminal which one it is.
func withTerm(env map[string]string, tty bool) map[string]string {
	if t := os.Getenv("TERM"); tty && isPlainWord(t) && env["TERM"] == "" {
		env["TERM"] = t
	}
	return env
}

// Command cofferdamd is the service: agents, people, pages and review over an HTTP API. "cofferdam serve" starts it.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/cofferdam/cofferdam/internal/config"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/inherit"
)

// release is set by the linker: "make build" names the commit.
var release string

func version() string {
	if release != "" {
		return release
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		return info.Main.Version
	}
	return "unknown"
}

// daemon is what every command needs.
type daemon struct {
	stdout, stderr io.Writer
	state          string
	file           string // of the configuration
	over           config.Overrides
}

func main() {
	d := &daemon{stdout: os.Stdout, stderr: os.Stderr}
	var err error
	if d.state, err = stateDir(); err == nil {
		err = inherit.CloseOthers()
	}
	if err != nil {
		d.tell(err)
		os.Exit(1)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := d.main(ctx, os.Args[1:])
	stop()
	os.Exit(code)
}

func (d *daemon) main(ctx context.Context, args []string) int {
	root := d.root()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	switch {
	case err == nil:
		return 0
	case fault.KindOf(err) == fault.Invalid:
		d.tell(err)
		return 2
	}
	d.tell(err)
	return 1
}

func (d *daemon) tell(err error) {
	for line := range strings.Lines(err.Error()) {
		fmt.Fprintln(d.stderr, "cofferdam:", strings.TrimRight(line, "\n"))
	}
	if hint := fault.HintOf(err); hint != "" {
		fmt.Fprintln(d.stderr, "  hint:", hint)
	}
}

func (d *daemon) root() *cobra.Command {
	root := &cobra.Command{Use: "cofferdamd", Short: "The service behind cofferdam serve", SilenceUsage: true, SilenceErrors: true, Version: version()}
	root.SetOut(d.stdout)
	root.SetErr(d.stderr)
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return fault.New(fault.Invalid, "%v", err).WithHint("see: cofferdam %s --help", strings.TrimPrefix(c.CommandPath(), "cofferdamd "))
	})
	settings := &cobra.Command{Use: "config", Short: "Look at the service's configuration"}
	settings.AddCommand(d.checkCommand())
	users := &cobra.Command{Use: "user", Short: "Help people who cannot sign in"}
	users.AddCommand(d.resetCommand())
	root.AddCommand(d.serveCommand(), settings, users)
	root.CompletionOptions.DisableDefaultCmd = true
	return root
}

// configured adds the flags that say how the service is configured.
func (d *daemon) configured(c *cobra.Command) *cobra.Command {
	flags := c.Flags()
	flags.StringVar(&d.file, "config", "", "read the configuration from `FILE`; flags go over it")
	flags.StringVar(&d.over.Listen, "listen", "", "listen on `ADDRESS:PORT` (127.0.0.1:7878)")
	flags.StringVar(&d.over.URL, "url", "", "how people reach the service, a `URL` without a path")
	flags.StringVar(&d.over.TLS, "tls", "", "where the certificate comes from, a `MODE`: off, files, local or acme")
	flags.StringVar(&d.over.Store, "store", "", "sqlite:`PATH` or postgres://…")
	return c
}

func (d *daemon) load() (*config.Config, error) { return config.Load(d.file, d.state, d.over) }

func (d *daemon) checkCommand() *cobra.Command {
	return d.configured(&cobra.Command{
		Use: "check", Short: "Check the configuration and print what is in force, secrets masked", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			c, err := d.load()
			if err != nil {
				return err
			}
			_, err = io.WriteString(d.stdout, c.String())
			return err
		},
	})
}

// stateDir is where records lie, as for cofferdam itself: COFFERDAM_STATE, /var/lib/cofferdam for root, else below the home directory.
func stateDir() (string, error) {
	dir := os.Getenv("COFFERDAM_STATE")
	switch home, err := os.UserHomeDir(); {
	case dir != "":
	case os.Getuid() == 0:
		dir = "/var/lib/cofferdam"
	case filepath.IsAbs(os.Getenv("XDG_STATE_HOME")):
		dir = filepath.Join(os.Getenv("XDG_STATE_HOME"), "cofferdam")
	case err == nil:
		dir = filepath.Join(home, ".local", "state", "cofferdam")
	default:
		return "", fault.New(fault.Invalid, "there is no place for records: no home directory is known").WithHint("set COFFERDAM_STATE to a directory of your own")
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", fault.New(fault.Invalid, "cannot use the state directory").WithHint("set COFFERDAM_STATE to an absolute path").Because(err)
	}
	return dir, nil
}

// beside finds a program of ours beside this one.
func beside(name string) (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find %s: %w", name, err)
	}
	path := filepath.Join(filepath.Dir(self), name)
	if _, err := os.Stat(path); err != nil {
		return "", fault.New(fault.Unsupported, "%s is missing", name).WithHint("install it beside %s", self).Because(err)
	}
	return path, nil
}

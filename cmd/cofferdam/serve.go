package main

import (
	"os"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/cofferdam/cofferdam/internal/fault"
)

// newServeCommand is "cofferdam serve".
func (a *app) newServeCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Serve a team: agents, sandboxes, review and audit over HTTP",
		Long: `Start the service for a team: an HTTP API and pages for agents, their policies and sandboxes, the inbox of what was denied, and the audit log.

At the first start it makes what it needs: a key to seal credentials under, and a store (SQLite in the state directory, unless --store or the
configuration names PostgreSQL). It listens on 127.0.0.1:7878, which only this machine reaches, and prints a link that is good once and for a day: open it
to make the first tenant and its administrator. Everybody else is invited from there.

For others to reach it give it a name and a certificate: --url https://cofferdam.example.com --listen :443 --tls acme, or the same in a file for
--config; "cofferdam config check" prints what is in force. Sandboxes outlive the service: one that is started again finds them.

On other machines: cofferdam login https://cofferdam.example.com`,
		Example: `  cofferdam serve
  cofferdam serve --url https://cofferdam.example.com --listen :443 --tls acme
  cofferdam serve --config /etc/cofferdam/server.yaml`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return becomeService(cmd, "serve") },
	}
	serviceFlags(cmd.Flags())
	_ = cmd.RegisterFlagCompletionFunc("tls", cobra.FixedCompletions([]cobra.Completion{"off", "files", "local", "acme"}, cobra.ShellCompDirectiveNoFileComp)) // the flag exists
	_ = cmd.MarkFlagFilename("config", "yaml", "yml")                                                                                                          // likewise
	return cmd
}

// newConfigCommand is "cofferdam config".
func (a *app) newConfigCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "config", Short: "Look at the configuration of the service that runs on this machine"}
	check := &cobra.Command{
		Use: "check", Short: "Check the configuration and print what is in force, secrets masked", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return becomeService(cmd, "config", "check") },
	}
	serviceFlags(check.Flags())
	_ = check.MarkFlagFilename("config", "yaml", "yml") // the flag exists
	cmd.AddCommand(check)
	return cmd
}

// serviceFlags are the flags that cofferdamd takes, by the same names. It reads and checks them.
func serviceFlags(flags *pflag.FlagSet) {
	flags.String("config", "", "read the configuration from `FILE`; flags go over it")
	flags.String("listen", "", "listen on `ADDRESS:PORT` (127.0.0.1:7878)")
	flags.String("url", "", "how people reach the service, a `URL` without a path")
	flags.String("tls", "", "where the certificate comes from, a `MODE`: off, files, local or acme")
	flags.String("store", "", "sqlite:`PATH` or postgres://…")
}

// becomeService makes this process the service's program: a program of its own, since it reads what strangers send and needs nothing of what this one links.
func becomeService(cmd *cobra.Command, words ...string) error {
	program, err := beside("cofferdamd")
	if err != nil {
		return fault.New(fault.Unsupported, "cofferdamd, the service's program, is missing").
			WithHint("it comes with the same package or archive as this program: install it into the same directory; from source, make build makes both in bin/").Because(err)
	}
	err = syscall.Exec(program, serviceArguments(cmd, words...), os.Environ())
	return fault.New(fault.Unavailable, "cannot start %s", program).Because(err)
}

// serviceArguments hands on the flags that were given.
func serviceArguments(cmd *cobra.Command, words ...string) []string {
	args := append([]string{"cofferdamd"}, words...)
	cmd.Flags().Visit(func(f *pflag.Flag) {
		if f.Name != "help" {
			args = append(args, "--"+f.Name+"="+f.Value.String())
		}
	})
	return args
}

package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/secret"
)

// loginFlags are the flags of "cofferdam login" as typed.
type loginFlags struct{ tokenFile, ca, email, agent string }

// newLoginCommand is "cofferdam login".
func (a *app) newLoginCommand() *cobra.Command {
	var f loginFlags
	cmd := &cobra.Command{
		Use:   "login URL",
		Short: "Log in to a server: from then on run, ps, audit and others work there",
		Long: `Log in to a server. It asks for an API token, which the page Account → API tokens makes; who has none yet signs in with e-mail address and password,
and gets a token for this machine. The token is kept in servers.json in your settings directory, which only you can read.

From then on run, ps, audit, credential and policy work at that server, and say so; --local, or COFFERDAM_SERVER=local, works on this machine.
COFFERDAM_SERVER with COFFERDAM_TOKEN or COFFERDAM_TOKEN_FILE does the same for programs, without a login.

With --agent it also says which agent "cofferdam run" takes there if none is named; without a URL only that, for the server that is current.`,
		Example: `  cofferdam login https://cofferdam.example.com
  cofferdam login https://cofferdam.example.com --token-file token --agent builder
  cofferdam login https://10.1.2.3:7878 --ca ca.pem`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return a.login(cmd.Context(), f, args) },
	}
	cmd.Flags().StringVar(&f.tokenFile, "token-file", "", "read the token from `FILE`; - is standard input")
	cmd.Flags().StringVar(&f.ca, "ca", "", "trust the certificate authority in `FILE` (PEM) for this server, and no other")
	cmd.Flags().StringVar(&f.email, "email", "", "sign in with this `ADDRESS` and a password, and have a token made")
	cmd.Flags().StringVar(&f.agent, "agent", "", "the agent that run takes there if none is named, a `NAME`")
	cmd.MarkFlagsMutuallyExclusive("token-file", "email")
	_ = cmd.RegisterFlagCompletionFunc("agent", a.completeAgents) // the flag exists
	return cmd
}

func (a *app) login(ctx context.Context, f loginFlags, args []string) error {
	all, err := a.loadAccounts()
	if err != nil {
		return err
	}
	if len(args) == 0 {
		return a.chooseAgent(ctx, all, f)
	}
	at, err := serverURL(args[0])
	if err != nil {
		return err
	}
	one, _ := all.find(at)
	before := one
	one.URL, one.TokenID = at, ""
	if f.ca != "" {
		if one.CA, err = readAuthority(f.ca); err != nil {
			return err
		}
	}
	expires, err := a.obtain(ctx, &one, f)
	if err != nil {
		return explain(at, err)
	}
	r, err := connect(one)
	if err != nil {
		return err
	}
	me, err := r.Me(ctx)
	if err != nil {
		return explain(at, err)
	}
	one.User, one.Tenant = me.User.Email, me.Tenant.Name
	if one.token.Equal(before.token) {
		one.TokenID = before.TokenID
	}
	if f.agent != "" {
		if one.Usual, err = agentName(ctx, r, f.agent); err != nil {
			return explain(at, err)
		}
	}
	all.put(one)
	all.Current = at
	if err := a.saveAccounts(all); err != nil {
		return err
	}
	retire(ctx, before, one.token)
	fmt.Fprintf(a.stderr, "cofferdam: logged in to %s as %s (%s of %s)\n", at, inert(me.User.Email, 100), inert(string(me.User.Role), 20), inert(me.Tenant.Name, 100))
	if !expires.IsZero() {
		fmt.Fprintf(a.stderr, "  this machine's token is good until %s; cofferdam logout revokes it\n", expires.Local().Format(time.DateOnly))
	}
	if one.Usual == "" {
		fmt.Fprintln(a.stderr, "  next: cofferdam agent list; cofferdam run --agent NAME -- COMMAND")
	}
	return nil
}

// retire revokes a token that login made earlier and that another one has replaced. If that fails it ends by itself.
func retire(ctx context.Context, before account, now secret.Bytes) {
	if before.TokenID == "" || before.token.Equal(now) {
		return
	}
	if r, err := connect(before); err == nil {
		_ = r.RevokeToken(ctx, before.TokenID) // documented above
	}
}

// chooseAgent is "cofferdam login --agent NAME", without a server.
func (a *app) chooseAgent(ctx context.Context, all accounts, f loginFlags) error {
	one, ok := all.find(all.Current)
	if f.agent == "" || f.tokenFile != "" || f.ca != "" || f.email != "" || !ok {
		return fault.New(fault.Invalid, "no server").WithHint("cofferdam login https://SERVER")
	}
	r, err := connect(one)
	if err != nil {
		return err
	}
	if one.Usual, err = agentName(ctx, r, f.agent); err != nil {
		return explain(one.URL, err)
	}
	all.put(one)
	if err := a.saveAccounts(all); err != nil {
		return err
	}
	fmt.Fprintf(a.stderr, "cofferdam: run takes the agent %s at %s\n", one.Usual, one.URL)
	return nil
}

// agentName checks that there is such an agent.
func agentName(ctx context.Context, r *remote, text string) (string, error) {
	agent, err := r.Agent(ctx, text)
	if fault.KindOf(err) == fault.NotFound {
		return "", fault.New(fault.NotFound, "there is no agent %.80q", text).WithHint("list them with: cofferdam agent list; make one with: cofferdam agent create NAME")
	}
	return agent.Name, err
}

// maxAuthority bounds a file of certificates.
const maxAuthority = 256 << 10

func readAuthority(file string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", fault.New(fault.Invalid, "cannot read the authority in %s", file).Because(err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxAuthority+1))
	if err != nil || len(data) > maxAuthority {
		return "", fault.New(fault.Invalid, "cannot read the authority in %s", file).WithHint("give the PEM file of one certificate authority").Because(err)
	}
	if bytes.Contains(data, []byte("PRIVATE KEY")) {
		return "", fault.New(fault.Invalid, "%s holds a private key, which belongs to the server alone", file).WithHint("take the authority's certificate: server/tls/ca.pem in the server's state directory")
	}
	if _, err := transportFor(string(data)); err != nil {
		return "", err
	}
	return string(data), nil
}

// obtain gets a token: from a file, from the person, or made at the server after a password. The date is when a made one ends.
func (a *app) obtain(ctx context.Context, one *account, f loginFlags) (expires time.Time, err error) {
	switch {
	case f.tokenFile == "-":
		one.token, err = a.tokenFrom(a.stdin)
		return time.Time{}, err
	case f.tokenFile != "":
		file, err := os.Open(f.tokenFile)
		if err != nil {
			return time.Time{}, fault.New(fault.Invalid, "cannot read the file for the token").WithHint("write --token-file FILE, or - for standard input").Because(errors.Unwrap(err))
		}
		defer file.Close()
		one.token, err = a.tokenFrom(file)
		return time.Time{}, err
	case f.email != "":
		return a.makeToken(ctx, one, f.email)
	case !isTerminal(a.stdin):
		return time.Time{}, fault.New(fault.Invalid, "there is no terminal to ask for a token at").WithHint("write --token-file FILE, or --token-file - for standard input")
	}
	fmt.Fprintf(a.stderr, "The page %s/account makes API tokens. To sign in with e-mail address and password instead, press Enter.\nToken (not shown): ", one.URL)
	data, err := promptHidden(ctx, int(a.stdin.Fd()))
	fmt.Fprintln(a.stderr)
	if err != nil {
		return time.Time{}, err
	}
	if data = bytes.TrimSpace(data); len(data) > 0 {
		one.token = secret.Take(data)
		return time.Time{}, nil
	}
	return a.makeToken(ctx, one, "")
}

// tokenFrom reads a token that stands alone.
func (a *app) tokenFrom(f *os.File) (secret.Bytes, error) {
	if f == nil {
		return secret.Bytes{}, fault.New(fault.Invalid, "there is no standard input to read the token from")
	}
	data, err := io.ReadAll(io.LimitReader(f, maxValue+1))
	defer clear(data)
	text := bytes.TrimSpace(data)
	if err != nil || len(data) > maxValue || len(text) == 0 || bytes.ContainsAny(text, " \r\n") {
		return secret.Bytes{}, fault.New(fault.Invalid, "that is no token").WithHint("give the token alone, as the page Account → API tokens shows it once").Because(err)
	}
	return secret.New(text), nil
}

// ask reads one line that is shown.
func (a *app) ask(prompt string) (string, error) {
	fmt.Fprint(a.stderr, prompt)
	line, err := bufio.NewReader(io.LimitReader(a.stdin, 1024)).ReadString('\n')
	if line = strings.TrimSpace(line); line == "" {
		return "", fault.New(fault.Invalid, "nothing was typed").Because(err)
	}
	return line, nil
}

// newLogoutCommand is "cofferdam logout".
func (a *app) newLogoutCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "logout [URL]",
		Short: "Revoke this machine's token at a server, and forget it",
		Long:  "Log out of the current server, or of the one named. A token that login made is revoked there; one that was pasted in is only forgotten here.",
		Args:  cobra.MaximumNArgs(1),
		RunE:  func(cmd *cobra.Command, args []string) error { return a.logout(cmd.Context(), args) },
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
			all, _ := a.loadAccounts() // no completion is no failure
			var list []cobra.Completion
			for _, one := range all.Servers {
				list = append(list, one.URL)
			}
			return list, cobra.ShellCompDirectiveNoFileComp
		},
	}
}

func (a *app) logout(ctx context.Context, args []string) error {
	all, err := a.loadAccounts()
	if err != nil {
		return err
	}
	at := all.Current
	if len(args) > 0 {
		if at, err = serverURL(args[0]); err != nil {
			return err
		}
	}
	one, ok := all.find(at)
	if !ok {
		return fault.New(fault.NotFound, "you are not logged in to %s", cmp.Or(at, "any server"))
	}
	what := "revoked and forgotten"
	switch r, err := connect(one); {
	case err != nil:
		what = "forgotten, though it could not be shown to the server any more"
	case one.TokenID == "":
		what = "forgotten here; it was not made by this program, so revoke it on the page Account → API tokens"
	default:
		if err := r.RevokeToken(ctx, one.TokenID); err != nil && fault.KindOf(err) != fault.Unauthenticated && fault.KindOf(err) != fault.NotFound {
			what = "forgotten here, but not revoked (" + inert(explain(at, err).Error(), 200) + "): do that on the page Account → API tokens"
		}
	}
	all.forget(at)
	if err := a.saveAccounts(all); err != nil {
		return err
	}
	fmt.Fprintf(a.stderr, "cofferdam: logged out of %s; the token is %s\n", at, what)
	if all.Current == "" {
		fmt.Fprintln(a.stderr, "  commands work on this machine now")
	}
	return nil
}

// newWhoamiCommand is "cofferdam whoami".
func (a *app) newWhoamiCommand() *cobra.Command {
	type shown struct {
		Server string `json:"server"`
		Agent  string `json:"agent,omitempty"`
		api.Me
	}
	cmd := &cobra.Command{
		Use: "whoami", Short: "Show which server commands work at, as whom", Args: cobra.NoArgs,
		RunE: a.there(func(ctx context.Context, r *remote, cmd *cobra.Command, _ []string) error {
			me, err := r.Me(ctx)
			return show(a, cmd, shown{r.URL, r.account.Usual, me}, err, func(s shown) error {
				return a.pairs([][2]string{
					{"server", s.Server}, {"user", s.User.Email}, {"name", s.User.Name}, {"tenant", s.Tenant.Name}, {"role", string(s.User.Role)},
					{"may", strings.Join(s.Scopes, " ")}, {"agent", s.Agent},
				})
			})
		}),
	}
	jsonFlag(cmd)
	return cmd
}

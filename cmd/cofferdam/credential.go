package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cofferdam/cofferdam/internal/audit"
	"github.com/cofferdam/cofferdam/internal/credential"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/seal"
)

func newCredentialCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "credential",
		Short: "Keep credentials that sandboxes use without having them",
		Long: `Keep real credentials, sealed, with the conditions under which each may be used. A policy lends one to a sandbox: inside stands a placeholder,
and the gateway puts the real one into a request to a host that the credential is for. Values are read from a prompt, standard input or a file.

  cofferdam credential add github --host api.github.com < token
  cofferdam credential list | show | rotate | edit | remove | test
  cofferdam seal status                       the key that all of them are sealed under`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newCredentialAddCommand(a), newCredentialListCommand(a), newCredentialShowCommand(a), newCredentialRotateCommand(a), newCredentialEditCommand(a),
		newCredentialRemoveCommand(a), newCredentialTestCommand(a))
	return cmd
}

func (a *app) credentials() (*credential.Store, error) {
	return credential.OpenStore(filepath.Join(cmp.Or(a.secrets, a.state), "credentials"))
}

func (a *app) vault() *seal.Vault {
	return seal.OpenVault(filepath.Join(cmp.Or(a.secrets, a.state), "seal"), os.Getenv)
}

// oneName accepts the name of a credential and nothing else. What is more could be a secret: it is not repeated.
func oneName(_ *cobra.Command, args []string) error {
	switch {
	case len(args) == 0:
		return fault.New(fault.Invalid, "no name of a credential").WithHint("list them with: cofferdam credential list")
	case len(args) > 1:
		return fault.New(fault.Invalid, "a secret is never given as an argument: others on this machine can read it, and the shell keeps it").
			WithHint("if that was one, take it as leaked and replace it where it came from. Give the new one on standard input, at the prompt, or with --from-file")
	}
	return looksSecret(args[0])
}

// looksSecret refuses a name that is one of the well-known tokens, or too random to be a name.
func looksSecret(text string) error {
	known := slices.ContainsFunc([]string{"ghp_", "gho_", "ghu_", "ghs_", "github_pat_", "glpat-", "npm_", "pypi-", "sk-", "xoxb-", "xoxp-", "AKIA", "ASIA", "eyJ"},
		func(p string) bool { return strings.HasPrefix(text, p) && len(text) > len(p)+12 })
	digits := strings.IndexFunc(text, func(r rune) bool { return '0' <= r && r <= '9' }) >= 0
	random := len(text) >= 32 && digits && !strings.ContainsAny(text, "-._")
	if known || random {
		return fault.New(fault.Invalid, "that looks like a secret, not like the name of a credential").
			WithHint("arguments are no place for secrets: take it as leaked and replace it. Then: cofferdam credential add NAME ..., with the new one on standard input")
	}
	return nil
}

// completeNames completes the names of credentials.
func (a *app) completeNames(_ *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	store, err := a.credentials()
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	names, err := store.Names()
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	var list []cobra.Completion
	for _, n := range names {
		list = append(list, n.String())
	}
	return list, cobra.ShellCompDirectiveNoFileComp
}

// named opens the store and reads the name.
func (a *app) named(text string) (*credential.Store, credential.Name, error) {
	name, err := credential.ParseName(text)
	if err != nil {
		return nil, "", err
	}
	store, err := a.credentials()
	return store, name, err
}

// shownCredential is what is shown of a credential.
type shownCredential struct {
	credential.Meta
	Secrets map[credential.Field]string `json:"secrets,omitempty"` // masked
}

func newCredentialListCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List credentials and what they are for", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			store, err := a.credentials()
			if err != nil {
				return err
			}
			list, problem := store.List(cmd.Context())
			return errors.Join(show(a, cmd, list, nil, a.printCredentials), problem)
		},
	}
	jsonFlag(cmd)
	return cmd
}

func (a *app) printCredentials(list []credential.Meta) error {
	if len(list) == 0 {
		_, err := fmt.Fprintln(a.stderr, "cofferdam: there are no credentials; add one with: cofferdam credential add NAME --host HOST")
		return err
	}
	w := newTable(a.stdout)
	fmt.Fprintln(w, "NAME\tKIND\tHEADER\tFOR\tCHANGED")
	for _, m := range list {
		changed := m.Created
		if !m.Rotated.IsZero() {
			changed = m.Rotated
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", m.Name, m.Kind, cmp.Or(m.Header, "(signed)"), m.Scope.Words(), since(changed))
	}
	return w.Flush()
}

func newCredentialShowCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "show NAME",
		Short: "Show what a credential is for, and the last four characters of its secrets",
		Long: `Show what a credential is for, and of its secrets four dots and the last four characters; of one shorter than twelve characters only the dots.
There is no way to have more shown. It opens the credential, so it also proves that the key is there and nothing was changed.`,
		Args: oneName, ValidArgsFunction: a.completeNames,
		RunE: func(cmd *cobra.Command, args []string) error {
			store, name, err := a.named(args[0])
			if err != nil {
				return err
			}
			m, err := store.Get(cmd.Context(), name)
			if err != nil {
				return err
			}
			shown := shownCredential{Meta: m}
			err = a.vault().Use(cmd.Context(), func(ring *seal.Keyring) error {
				shown.Secrets, err = store.Masks(cmd.Context(), ring, name)
				return err
			})
			return show(a, cmd, shown, err, a.printCredential)
		},
	}
	jsonFlag(cmd)
	return cmd
}

func (a *app) printCredential(c shownCredential) error {
	w := newTable(a.stdout)
	row := func(label, text string) {
		if text != "" {
			fmt.Fprintf(w, "%s\t%s\n", label, inert(text, 200))
		}
	}
	row("name", c.Name.String())
	row("kind", string(c.Kind))
	row("for", c.Scope.Words())
	row("header", c.Header)
	row("prefix", c.Prefix)
	row("user", c.User)
	row("placeholder", string(c.Shape))
	if g := c.GitHub; g != nil {
		row("api", g.API)
		row("app, installation", g.AppID+", "+g.InstallationID)
		row("repositories", strings.Join(g.Repositories, " "))
	}
	if o := c.OAuth; o != nil {
		row("token endpoint", o.TokenURL)
		row("client", o.ClientID)
		row("scopes", strings.Join(o.Scopes, " "))
		row("audience", o.Audience)
	}
	if s := c.AWS; s != nil {
		row("access key id", s.AccessKeyID)
		row("region", cmp.Or(s.Region, "as the request says"))
		row("service", cmp.Or(s.Service, "as the request says"))
	}
	row("added", c.Created.Local().Format("2006-01-02 15:04"))
	if !c.Rotated.IsZero() {
		row("rotated", c.Rotated.Local().Format("2006-01-02 15:04"))
	}
	for _, f := range sortedFields(c.Secrets) {
		row(string(f), c.Secrets[f])
	}
	return w.Flush()
}

func sortedFields[T any](m map[credential.Field]T) []credential.Field {
	var list []credential.Field
	for f := range m {
		list = append(list, f)
	}
	slices.Sort(list)
	return list
}

func newCredentialRotateCommand(a *app) *cobra.Command {
	var files []string
	cmd := &cobra.Command{
		Use:   "rotate NAME",
		Short: "Give a credential a new value",
		Long: `Give a credential a new value, read from the prompt, standard input or a file. Sandboxes that run use it from their next request on.
--from-file FIELD=FILE replaces another of its secrets, such as client-secret; then only what is named is replaced.`,
		Args: oneName, ValidArgsFunction: a.completeNames,
		RunE: func(cmd *cobra.Command, args []string) error {
			store, name, err := a.named(args[0])
			if err != nil {
				return err
			}
			m, err := store.Get(cmd.Context(), name)
			if err != nil {
				return err
			}
			secrets, err := a.readSecrets(cmd.Context(), m, files, len(files) > 0)
			if err != nil {
				return err
			}
			if err := a.recordCredential(cmd.Context(), string(name), "rotate"); err != nil {
				return err
			}
			if err := a.vault().Use(cmd.Context(), func(ring *seal.Keyring) error { return store.Rotate(cmd.Context(), ring, name, secrets) }); err != nil {
				return err
			}
			_, err = fmt.Fprintf(a.stderr, "cofferdam: rotated %s; try it with: cofferdam credential test %s\n", name, name)
			return err
		},
	}
	cmd.Flags().StringArrayVar(&files, "from-file", nil, "read a secret from `[FIELD=]FILE`; may be repeated")
	return cmd
}

func newCredentialRemoveCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "remove NAME", Aliases: []string{"rm"}, Short: "Erase a credential, also for sandboxes that run",
		Args: oneName, ValidArgsFunction: a.completeNames,
		RunE: func(cmd *cobra.Command, args []string) error {
			store, name, err := a.named(args[0])
			if err != nil {
				return err
			}
			if _, err := store.Get(cmd.Context(), name); err != nil && fault.KindOf(err) == fault.NotFound {
				return err
			}
			if err := a.recordCredential(cmd.Context(), string(name), "remove"); err != nil {
				return err
			}
			if err := store.Remove(cmd.Context(), name); err != nil {
				return err
			}
			_, err = fmt.Fprintf(a.stderr, "cofferdam: removed %s; revoke it also where it came from\n", name)
			return err
		},
	}
}

// recordCredential writes that a credential, or with an empty name the sealing keys, are about to change. What cannot be recorded does not happen.
func (a *app) recordCredential(ctx context.Context, name, detail string) error {
	log, err := audit.Open(a.auditDir())
	if err != nil {
		return fmt.Errorf("open audit log: %w", err)
	}
	event := audit.Event{Kind: audit.CredentialChanged, Principal: "user", Credential: name, Detail: detail}
	return errors.Join(log.Append(ctx, event), log.Close())
}

// withKeys calls f with the keys that credentials are sealed under. Where there are neither keys nor credentials it makes the first key, and says so.
func (a *app) withKeys(ctx context.Context, store *credential.Store, f func(*seal.Keyring) error) error {
	vault := a.vault()
	ready, err := vault.Initialised()
	if err != nil {
		return err
	}
	if !ready {
		if err := refuseOrphans(store); err != nil {
			return err
		}
		id, err := vault.Init(ctx, seal.Source{})
		if err != nil && fault.KindOf(err) != fault.Conflict { // somebody else was quicker
			return err
		}
		if err == nil {
			fmt.Fprintf(a.stderr, "cofferdam: made the key %s to seal credentials under, in %s\n  keep a copy of that directory apart from copies of the credentials: without the key nothing opens\n",
				id, filepath.Join(a.state, "seal"))
		}
	}
	return vault.Use(ctx, f)
}

// refuseOrphans stops where credentials are there and their key is not: a new key would hide the loss.
func refuseOrphans(store *credential.Store) error {
	names, err := store.Names()
	if err != nil || len(names) == 0 {
		return err
	}
	return fault.New(fault.Unavailable, "there are %d credentials, and the key that they are sealed under is gone", len(names)).
		WithHint("bring back the directory seal/ from a copy, or remove the credentials and add them again")
}

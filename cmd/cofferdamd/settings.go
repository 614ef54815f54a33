package main

import (
	"cmp"
	"context"
	"fmt"
	netmail "net/mail"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cofferdam/cofferdam/internal/auth"
	"github.com/cofferdam/cofferdam/internal/auth/mail"
	"github.com/cofferdam/cofferdam/internal/config"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/secret"
	"github.com/cofferdam/cofferdam/internal/store"
)

// readSecret reads a secret from a file of its own, less the line break at its end.
func readSecret(file string) (secret.Bytes, error) {
	info, err := os.Stat(file)
	if err != nil {
		return secret.Bytes{}, fault.New(fault.Invalid, "cannot read the secret in %s", file).WithHint("let the service's user read it").Because(err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return secret.Bytes{}, fault.New(fault.Denied, "others can read the secret in %s", file).WithHint("type: chmod go-rwx %s", file)
	}
	data, err := os.ReadFile(file)
	if err != nil || len(data) > 64<<10 {
		return secret.Bytes{}, fault.New(fault.Invalid, "cannot read the secret in %s", file).Because(err)
	}
	return secret.New([]byte(strings.TrimRight(string(data), "\r\n"))), nil
}

// mailerOf is how mail is sent; nil where none is.
func mailerOf(m *config.Mail) (auth.Mailer, error) {
	if m == nil {
		return nil, nil
	}
	from, err := netmail.ParseAddress(m.From)
	if err != nil {
		return nil, fault.New(fault.Invalid, "mail.from: %.200q is no address", m.From)
	}
	to := mail.Server{Address: m.Server, From: *from, User: m.User}
	if strings.HasSuffix(m.Server, ":465") {
		to.Security = mail.ImplicitTLS
	}
	if m.PasswordFile != "" {
		if to.Password, err = readSecret(m.PasswordFile); err != nil {
			return nil, err
		}
	}
	return mail.NewSMTP(to)
}

// resetCommand helps a person who is locked out, where no mail is sent.
func (d *daemon) resetCommand() *cobra.Command {
	return d.configured(&cobra.Command{
		Use: "reset EMAIL", Short: "Print a link by which a user sets a new password; for whoever runs the server", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := d.load()
			if err != nil {
				return err
			}
			s := &service{d: d, config: c}
			return s.reset(cmd.Context(), args[0])
		},
	})
}

func (s *service) reset(ctx context.Context, email string) error {
	defer s.closeAll()
	if err := s.openStore(ctx); err != nil {
		return err
	}
	if err := s.openAuth(ctx); err != nil {
		return err
	}
	link, err := s.auth.OperatorReset(ctx, email)
	if err != nil {
		return err
	}
	fmt.Fprintf(s.d.stdout, "This link is good once and for an hour:\n\n  %s\n", link)
	return nil
}

func (s *service) closeAll() {
	for i := len(s.close) - 1; i >= 0; i-- {
		_ = s.close[i]() // nothing was left open that matters
	}
}

// providersOf is the sign-in service that is configured, if there is one.
func providersOf(ctx context.Context, db *store.DB, o *config.OIDC) ([]auth.Provider, error) {
	if o == nil {
		return nil, nil
	}
	p := auth.Provider{ID: "oidc", Name: cmp.Or(o.Label, "your organisation"), Issuer: o.Issuer, ClientID: o.ClientID, Domains: o.Domains}
	var err error
	if o.ClientSecretFile != "" {
		if p.Secret, err = readSecret(o.ClientSecretFile); err != nil {
			return nil, err
		}
	}
	if o.Tenant == "" {
		return []auth.Provider{p}, nil
	}
	tenant, err := auth.Tenants().ByName(ctx, db, "", o.Tenant)
	if err != nil {
		return nil, fault.New(fault.Invalid, "oidc.tenant: there is no tenant %.100q", o.Tenant).WithHint("set the server up first, or write the name of a tenant that exists").Because(err)
	}
	p.Tenant = tenant.ID
	return []auth.Provider{p}, nil
}

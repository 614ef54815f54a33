package auth

import (
	"context"
	"time"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/auth/password"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/store"
)

const setupLife = 24 * time.Hour

// first marks that the server has been set up. It is there once, so of two who complete the set-up at the same time one fails.
type first struct {
	User string `json:"user"`
}

func firsts() store.Collection[first] { return store.Of[first]("settings") }

const firstName = "first-administrator"

func errSetUp() error {
	return fault.New(fault.Conflict, "the server has been set up").WithHint("sign in, or ask an administrator for an invitation")
}

// NeedsSetup reports whether there is no user yet, nor ever was.
func (s *Service) NeedsSetup(ctx context.Context) (bool, error) {
	_, err := firsts().ByName(ctx, s.db, "", firstName)
	if err == nil {
		return false, nil
	}
	if fault.KindOf(err) != fault.NotFound {
		return false, err
	}
	users, _, err := Users().List(ctx, s.db, store.AnyTenant, store.Filter{Limit: 1})
	return len(users) == 0, err
}

// SetupToken makes the link by which whoever runs the server becomes its first administrator. Earlier ones are void.
// It is shown on the server's own terminal or log: who can read that owns the machine anyhow.
func (s *Service) SetupToken(ctx context.Context) (Ticket, string, error) {
	need, err := s.NeedsSetup(ctx)
	if err != nil {
		return Ticket{}, "", err
	}
	if !need {
		return Ticket{}, "", errSetUp()
	}
	var t Ticket
	err = s.db.Within(ctx, func(tx *store.DB) error {
		if _, err := tx.DropProofs(ctx, kindSetup, "", "", [32]byte{}); err != nil {
			return err
		}
		var err error
		t, err = s.In(tx).issue(ctx, kindSetup, "", "", setupLife, struct{}{})
		return err
	})
	if err != nil {
		return Ticket{}, "", err
	}
	return t, s.link(SetupPath, t), nil
}

// CheckSetup reports whether a set-up's link is good, to show the form.
func (s *Service) CheckSetup(ctx context.Context, token string) error {
	_, err := s.proof(ctx, kindSetup, token, errLink())
	return err
}

// CompleteSetup makes the first tenant and its administrator, who also operates the server. The outcome has a device cookie, no session.
func (s *Service) CompleteSetup(ctx context.Context, token, email, name, newPassword, tenantName string) (Outcome, error) {
	if err := s.CheckSetup(ctx, token); err != nil {
		return Outcome{}, err
	}
	address, err := ParseEmail(email)
	if err != nil {
		return Outcome{}, err
	}
	if name, err = parseName(name); err != nil {
		return Outcome{}, err
	}
	if tenantName, err = parseName(tenantName); err != nil {
		return Outcome{}, err
	}
	if tenantName == "" {
		return Outcome{}, fault.New(fault.Invalid, "the tenant has no name").WithHint("call it after the team or company")
	}
	if err := password.Check(newPassword, address, name, tenantName); err != nil {
		return Outcome{}, err
	}
	hash, err := s.hasher.Hash(ctx, newPassword)
	if err != nil {
		return Outcome{}, err
	}
	u := User{Name: name, Role: api.Administrator, Operator: true, Password: hash}
	var out Outcome
	err = s.db.Within(ctx, func(tx *store.DB) error {
		var err error
		out, err = s.In(tx).setUp(ctx, token, address, tenantName, u)
		return err
	})
	return out, err
}

// setUp stores everything. It is called in a transaction.
func (s *Service) setUp(ctx context.Context, token, address, tenantName string, u User) (Outcome, error) {
	if _, err := s.use(ctx, kindSetup, token, errLink()); err != nil {
		return Outcome{}, err
	}
	if need, err := s.NeedsSetup(ctx); err != nil || !need {
		return Outcome{}, orElse(err, errSetUp())
	}
	tenant, err := Tenants().Insert(ctx, s.db, store.Object[Tenant]{Name: tenantName})
	if err != nil {
		return Outcome{}, err
	}
	user, err := s.insert(ctx, tenant.ID, address, u)
	if err != nil {
		return Outcome{}, err
	}
	if _, err := firsts().Insert(ctx, s.db, store.Object[first]{Name: firstName, Data: first{User: user.ID}}); err != nil {
		if fault.KindOf(err) == fault.Conflict {
			err = errSetUp()
		}
		return Outcome{}, err
	}
	device, err := s.issue(ctx, kindDevice, tenant.ID, user.ID, deviceLife, deviceData{Epoch: user.Data.Epoch})
	return Outcome{Tenant: tenant.ID, User: user.ID, Email: address, Method: kindSetup, Device: &device}, err
}

// orElse is err, or what else is wrong.
func orElse(err, otherwise error) error {
	if err != nil {
		return err
	}
	return otherwise
}

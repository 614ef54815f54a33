package auth

import (
	"context"
	"errors"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/store"
)

// AddUser makes a user in a tenant and invites the person. The invitation's link is in the answer, and mailed where there is mail.
func (s *Service) AddUser(ctx context.Context, tenant string, n api.NewUser) (api.Invitation, error) {
	email, err := ParseEmail(n.Email)
	if err != nil {
		return api.Invitation{}, err
	}
	name, err := parseName(n.Name)
	if err != nil {
		return api.Invitation{}, err
	}
	if err := parseRole(n.Role); err != nil {
		return api.Invitation{}, err
	}
	var i api.Invitation
	err = s.db.Within(ctx, func(tx *store.DB) error {
		in := s.In(tx)
		user, err := in.insert(ctx, tenant, email, User{Name: name, Role: n.Role})
		if err != nil {
			return err
		}
		i, err = in.invite(ctx, user)
		return err
	})
	if err != nil {
		return api.Invitation{}, err
	}
	s.mailInvitation(ctx, i)
	return i, nil
}

// InviteAgain makes a fresh link by which a user sets a password; earlier ones are void. It also helps a person who forgot the password. The link is mailed
// and not in the answer, or, where no mail can be sent, in the answer.
func (s *Service) InviteAgain(ctx context.Context, tenant, id string) (api.Invitation, error) {
	var i api.Invitation
	err := s.withUser(ctx, tenant, id, func(in *Service, user store.Object[User]) error {
		if user.Data.Disabled {
			return fault.New(fault.Conflict, "the user is disabled").WithHint("enable the user first")
		}
		if _, err := in.db.DropProofs(ctx, kindInvitation, tenant, id, [32]byte{}); err != nil {
			return err
		}
		var err error
		i, err = in.invite(ctx, user)
		return err
	})
	if err != nil {
		return api.Invitation{}, err
	}
	if s.mailInvitation(ctx, i) {
		i.Link = ""
	}
	return i, nil
}

// GetUser describes one user of a tenant.
func (s *Service) GetUser(ctx context.Context, tenant, id string) (api.User, error) {
	user, err := Users().Get(ctx, s.db, tenant, id)
	if err != nil {
		return api.User{}, err
	}
	described, err := s.Describe(ctx, user)
	if err != nil {
		return api.User{}, err
	}
	return described[0], nil
}

// ListUsers describes a page of a tenant's users, and returns the cursor of the next. States are roles, or "disabled".
func (s *Service) ListUsers(ctx context.Context, tenant string, f store.Filter) ([]api.User, string, error) {
	users, next, err := Users().List(ctx, s.db, tenant, f)
	if err != nil {
		return nil, "", err
	}
	described, err := s.Describe(ctx, users...)
	return described, next, err
}

// Describe says of users of one tenant what others may see.
func (s *Service) Describe(ctx context.Context, users ...store.Object[User]) ([]api.User, error) {
	described := make([]api.User, 0, len(users))
	if len(users) == 0 {
		return described, nil
	}
	ids := make([]string, 0, len(users))
	for _, user := range users {
		if user.Tenant != users[0].Tenant {
			return nil, errors.New("auth: users of several tenants are described together")
		}
		ids = append(ids, user.ID)
	}
	keys, err := passkeys().CountBy(ctx, s.db, users[0].Tenant, ids)
	if err != nil {
		return nil, err
	}
	for _, user := range users {
		u := user.Data
		described = append(described, api.User{ID: user.ID, Email: user.Name, Name: u.Name, Role: u.Role, Disabled: u.Disabled, Operator: u.Operator, TOTP: u.TOTP != nil,
			Passkeys: keys[user.ID], Password: u.Password != "", Created: user.Created, LastSeen: u.LastSeen, Version: user.Version})
	}
	return described, nil
}

// ChangeUser changes what is not nil. Version is the one that the caller saw; 0 takes any. A disabled user is signed out everywhere at once, and
// tokens end for good: who is enabled again makes new ones. The last administrator of a tenant stays one.
func (s *Service) ChangeUser(ctx context.Context, tenant, id string, version int64, c api.UserChange) (api.User, error) {
	var changed store.Object[User]
	err := s.withUser(ctx, tenant, id, func(in *Service, user store.Object[User]) error {
		if version != 0 && version != user.Version {
			return fault.New(fault.Conflict, "the user was changed meanwhile").WithHint("look at the user again")
		}
		next, err := apply(user.Data, c)
		if err != nil {
			return err
		}
		if err := in.keepOne(ctx, user, next); err != nil {
			return err
		}
		edit := func(u *User) error {
			u.Name, u.Role, u.Disabled = next.Name, next.Role, next.Disabled
			return nil
		}
		if next.Disabled && !user.Data.Disabled {
			changed, err = in.renewAll(ctx, user, edit)
			return err
		}
		changed, err = in.change(ctx, user, edit)
		return err
	})
	if err != nil {
		return api.User{}, err
	}
	described, err := s.Describe(ctx, changed)
	if err != nil {
		return api.User{}, err
	}
	return described[0], nil
}

// withUser does something about a user of a tenant, in one transaction; do may be called twice.
func (s *Service) withUser(ctx context.Context, tenant, id string, do func(in *Service, user store.Object[User]) error) error {
	return s.db.Within(ctx, func(tx *store.DB) error {
		user, err := Users().Get(ctx, tx, tenant, id)
		if err != nil {
			return err
		}
		return do(s.In(tx), user)
	})
}

// apply returns what a user would be.
func apply(u User, c api.UserChange) (User, error) {
	if c.Name != nil {
		name, err := parseName(*c.Name)
		if err != nil {
			return u, err
		}
		u.Name = name
	}
	if c.Role != nil {
		if err := parseRole(*c.Role); err != nil {
			return u, err
		}
		u.Role = *c.Role
	}
	if c.Disabled != nil {
		u.Disabled = *c.Disabled
	}
	return u, nil
}

// keepOne refuses what would leave a tenant without an administrator, or the server without an operator, who can sign in. It is called in a
// transaction, and writes the tenant's object, so that two administrators who demote each other at the same moment cannot both succeed.
func (s *Service) keepOne(ctx context.Context, user store.Object[User], next User) error {
	if user.Data.state() == string(api.Administrator) && next.state() != string(api.Administrator) {
		tenant, err := Tenants().Get(ctx, s.db, "", user.Tenant)
		if err != nil {
			return err
		}
		if _, err := Tenants().Update(ctx, s.db, tenant); err != nil {
			return err
		}
		count, err := Users().Count(ctx, s.db, user.Tenant, store.Filter{States: []string{string(api.Administrator)}})
		if err != nil {
			return err
		}
		if count < 2 {
			return fault.New(fault.Conflict, "this is the last administrator").WithHint("make another user an administrator first")
		}
	}
	if user.Data.Operator && !user.Data.Disabled && (!next.Operator || next.Disabled) {
		return s.keepOperator(ctx, user.ID)
	}
	return nil
}

func (s *Service) keepOperator(ctx context.Context, but string) error {
	// The mark of the set-up is the one object that belongs to the server: writing it makes two such changes collide.
	mark, err := firsts().ByName(ctx, s.db, "", firstName)
	if err != nil {
		return err
	}
	if _, err := firsts().Update(ctx, s.db, mark); err != nil {
		return err
	}
	others := false
	err = s.everyUser(ctx, func(user store.Object[User]) error {
		others = others || user.Data.Operator && !user.Data.Disabled && user.ID != but
		return nil
	})
	if err == nil && !others {
		err = fault.New(fault.Conflict, "this is the server's last operator").WithHint("make another user an operator first")
	}
	return err
}

// SetOperator says whether a user may make tenants and see the server's health.
func (s *Service) SetOperator(ctx context.Context, tenant, id string, operator bool) error {
	return s.withUser(ctx, tenant, id, func(in *Service, user store.Object[User]) error {
		next := user.Data
		next.Operator = operator
		if err := in.keepOne(ctx, user, next); err != nil {
			return err
		}
		_, err := in.change(ctx, user, func(u *User) error { u.Operator = operator; return nil })
		return err
	})
}

// RemoveUser removes a user with everything that signs the person in.
func (s *Service) RemoveUser(ctx context.Context, tenant, id string, version int64) error {
	return s.withUser(ctx, tenant, id, func(in *Service, user store.Object[User]) error {
		next := user.Data
		next.Disabled = true
		if err := in.keepOne(ctx, user, next); err != nil {
			return err
		}
		if err := Users().Delete(ctx, in.db, tenant, id, version); err != nil {
			return err
		}
		if err := in.unindex(ctx, emails(), user.Name); err != nil {
			return err
		}
		if user.Data.Issuer != "" {
			if err := in.unindex(ctx, identities(), identityName(user.Data.Issuer, user.Data.Subject)); err != nil {
				return err
			}
		}
		return errors.Join(in.dropPasskeys(ctx, user), in.drop(ctx, tenant, id))
	})
}

// unindex removes an entry of an index that holds for the whole server.
func (s *Service) unindex(ctx context.Context, index store.Collection[where], name string) error {
	entry, err := index.ByName(ctx, s.db, "", name)
	if err != nil {
		return err
	}
	return index.Delete(ctx, s.db, "", entry.ID, 0)
}

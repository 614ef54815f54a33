package control

import (
	"context"
	"fmt"
	"strings"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/audit"
	"github.com/cofferdam/cofferdam/internal/auth"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/store"
)

// ActorOf returns the actor that a principal is. A token is narrowed to its scopes, also where it has none.
func ActorOf(p auth.Principal) Actor {
	a := Actor{Tenant: p.Tenant, User: p.User, Name: p.Email, Role: p.Role, Operator: p.Operator}
	switch p.Via {
	case auth.ViaSession:
		a.Via, a.ID = "session", p.SessionID
	case auth.ViaToken:
		a.Via, a.ID, a.Scopes = "token", p.TokenID, orEmpty(p.Scopes)
	}
	return a
}

// principal is the actor as package auth knows it.
func (a Actor) principal() auth.Principal {
	p := auth.Principal{User: a.User, Tenant: a.Tenant, Email: a.Name, Role: a.Role, Operator: a.Operator}
	switch a.Via {
	case "session":
		p.Via, p.SessionID = auth.ViaSession, a.ID
	case "token":
		p.Via, p.TokenID, p.Scopes = auth.ViaToken, a.ID, a.Scopes
	}
	return p
}

// inPerson refuses a token where a person's own account is concerned: one that leaked must not be able to shut its owner out, or to outlive itself.
func inPerson(a Actor) error {
	if err := known(a); err != nil {
		return err
	}
	if a.Via != "session" {
		return fault.New(fault.Denied, "this cannot be done with a token").WithHint("sign in with a browser")
	}
	return nil
}

// Me who the caller is.
func (s *Service) Me(ctx context.Context, a Actor) (api.Me, error) {
	if err := known(a); err != nil {
		return api.Me{}, err
	}
	u, err := s.Auth.GetUser(ctx, a.Tenant, a.User)
	if err != nil {
		return api.Me{}, s.absentUser(err)
	}
	t, err := auth.Tenants().Get(ctx, s.DB, "", a.Tenant)
	if err != nil {
		return api.Me{}, err
	}
	return api.Me{User: u, Tenant: showTenant(t), Scopes: a.permissions(), Via: a.Via}, nil
}

func showTenant(o store.Object[auth.Tenant]) api.Tenant {
	return api.Tenant{ID: o.ID, Name: o.Name, Created: o.Created, Version: o.Version}
}

func (s *Service) absentUser(err error) error {
	if fault.KindOf(err) == fault.NotFound {
		return absent("user")
	}
	return err
}

// Tenants lists tenants, for operators.
func (s *Service) Tenants(ctx context.Context, a Actor, p Page) (api.Page[api.Tenant], error) {
	var out api.Page[api.Tenant]
	if err := may(a, Operate); err != nil {
		return out, err
	}
	f, err := p.filter()
	if err != nil {
		return out, err
	}
	f.ByName = true
	return pageOf(ctx, s.DB, auth.Tenants(), "", f, showTenant)
}

// maxTenantName bounds what a tenant is called.
const maxTenantName = 100

// CreateTenant makes a tenant with its first administrator, for operators.
func (s *Service) CreateTenant(ctx context.Context, a Actor, name, adminEmail string) (api.Tenant, api.Invitation, error) {
	if err := may(a, Operate); err != nil {
		return api.Tenant{}, api.Invitation{}, err
	}
	name = strings.TrimSpace(name)
	if err := checkText("name", name, maxTenantName, false); err != nil {
		return api.Tenant{}, api.Invitation{}, err
	}
	if name == "" {
		return api.Tenant{}, api.Invitation{}, fault.New(fault.Invalid, "the tenant has no name").WithHint("call it after the team")
	}
	if err := freeName(ctx, s.DB, auth.Tenants(), "", "a tenant", name, ""); err != nil {
		return api.Tenant{}, api.Invitation{}, err
	}
	email, err := auth.ParseEmail(adminEmail)
	if err != nil {
		return api.Tenant{}, api.Invitation{}, err
	}
	t := store.Object[auth.Tenant]{ID: store.NewID(), Name: name}
	var stored store.Object[auth.Tenant]
	var i api.Invitation
	event := audit.Event{Kind: audit.UserChanged, Detail: fmt.Sprintf("make the tenant %q (%s) with the administrator %s", name, t.ID, email)}
	err = s.change(ctx, a, event, func(tx *store.DB) (events []store.Event, err error) {
		if stored, err = auth.Tenants().Insert(ctx, tx, t); err != nil {
			return nil, err
		}
		i, err = s.Auth.In(tx).AddUser(ctx, t.ID, api.NewUser{Email: email, Role: api.Administrator})
		return []store.Event{{Type: "tenant", Subject: t.ID, State: "created"}}, err
	})
	return showTenant(stored), i, err
}

// Users lists the tenant's users.
func (s *Service) Users(ctx context.Context, a Actor, p Page) (api.Page[api.User], error) {
	var out api.Page[api.User]
	if err := may(a, ReadUsers); err != nil {
		return out, err
	}
	f, err := p.filter()
	if err != nil {
		return out, err
	}
	f.ByName = true
	out.Items, out.Next, err = s.Auth.ListUsers(ctx, a.Tenant, f)
	return out, err
}

// User returns one user.
func (s *Service) User(ctx context.Context, a Actor, id string) (api.User, error) {
	if err := may(a, ReadUsers); err != nil {
		return api.User{}, err
	}
	u, err := s.Auth.GetUser(ctx, a.Tenant, id)
	return u, s.absentUser(err)
}

// CreateUser makes a user and an invitation. A token makes none: whoever has found it would be a person of their own from then on.
func (s *Service) CreateUser(ctx context.Context, a Actor, in api.NewUser) (api.Invitation, error) {
	if err := may(a, WriteUsers); err != nil {
		return api.Invitation{}, err
	}
	if err := inPerson(a); err != nil {
		return api.Invitation{}, err
	}
	email, err := auth.ParseEmail(in.Email)
	if err != nil {
		return api.Invitation{}, err
	}
	if err := checkRole(in.Role); err != nil {
		return api.Invitation{}, err
	}
	var i api.Invitation
	event := audit.Event{Kind: audit.UserChanged, Detail: "invite " + email + " as " + string(in.Role)}
	err = s.change(ctx, a, event, func(tx *store.DB) (events []store.Event, err error) {
		i, err = s.Auth.In(tx).AddUser(ctx, a.Tenant, in)
		return []store.Event{{Type: "user", Subject: i.User.ID, State: "created"}}, err
	})
	return i, err
}

func checkRole(r api.Role) error {
	for _, known := range api.Roles() {
		if r == known {
			return nil
		}
	}
	return fault.New(fault.Invalid, "role: there is no such role").WithHint("write viewer, developer, reviewer or administrator")
}

// over is the user whom an actor acts upon, who must be let do so: only an operator takes anything from an operator of the server, since whoever is one by
// another's password rules over all tenants.
func (s *Service) over(ctx context.Context, people *auth.Service, a Actor, id string) (api.User, error) {
	u, err := people.GetUser(ctx, a.Tenant, id)
	if err != nil {
		return u, s.absentUser(err)
	}
	if u.Operator && may(a, Operate) != nil {
		return u, fault.New(fault.Denied, "this user operates the server, and only an operator may do this").WithHint("ask an operator")
	}
	return u, nil
}

// ChangeUser changes a user; the last administrator stays one. Version 0 changes whatever version there is. What a user may do, a token does not change.
func (s *Service) ChangeUser(ctx context.Context, a Actor, id string, version int64, in api.UserChange) (api.User, error) {
	if err := may(a, WriteUsers); err != nil {
		return api.User{}, err
	}
	u, err := s.Auth.GetUser(ctx, a.Tenant, id)
	if err != nil {
		return api.User{}, s.absentUser(err)
	}
	if in.Role != nil {
		if err := checkRole(*in.Role); err != nil {
			return api.User{}, err
		}
	}
	if in.Operator != nil {
		if err := may(a, Operate); err != nil {
			return api.User{}, err
		}
	}
	// A page sends the whole form: what stays as it is is no change.
	raises := in.Role != nil && *in.Role != u.Role || in.Operator != nil && *in.Operator != u.Operator || in.Disabled != nil && u.Disabled && !*in.Disabled
	weighs := raises || in.Disabled != nil && *in.Disabled != u.Disabled
	if raises {
		if err := inPerson(a); err != nil {
			return api.User{}, err
		}
	}
	if weighs {
		if _, err := s.over(ctx, s.Auth, a, id); err != nil {
			return api.User{}, err
		}
	}
	event := audit.Event{Kind: audit.UserChanged, Detail: "change the user " + u.Email + " (" + u.ID + ")" + userFacts(in)}
	var changed api.User
	err = s.change(ctx, a, event, func(tx *store.DB) (events []store.Event, err error) {
		people := s.Auth.In(tx)
		if weighs { // the user may have become an operator meanwhile
			if _, err := s.over(ctx, people, a, id); err != nil {
				return nil, err
			}
		}
		if changed, err = people.ChangeUser(ctx, a.Tenant, id, version, in); err == nil && in.Operator != nil {
			if err = people.SetOperator(ctx, a.Tenant, id, *in.Operator); err == nil {
				changed, err = people.GetUser(ctx, a.Tenant, id)
			}
		}
		return []store.Event{{Type: "user", Subject: id, State: "changed"}}, err
	})
	return changed, s.absentUser(err)
}

// userFacts says for the record what becomes of a user.
func userFacts(in api.UserChange) string {
	text := ""
	if in.Name != nil {
		text += ", another name"
	}
	if in.Role != nil {
		text += ", now " + string(*in.Role)
	}
	if in.Operator != nil {
		text += map[bool]string{true: ", operates the server", false: ", operates the server no more"}[*in.Operator]
	}
	if in.Disabled != nil {
		text += map[bool]string{true: ", disabled", false: ", enabled"}[*in.Disabled]
	}
	return text
}

// ResetUser makes a link by which a user sets a new password, and ends all sessions, tokens and second factors of theirs. Where there is mail the link goes
// to the user alone, and the answer has none: an administrator does not need to be able to sign in as somebody else.
func (s *Service) ResetUser(ctx context.Context, a Actor, id string) (api.Invitation, error) {
	if err := may(a, WriteUsers); err != nil {
		return api.Invitation{}, err
	}
	u, err := s.over(ctx, s.Auth, a, id)
	if err != nil {
		return api.Invitation{}, err
	}
	if err := inPerson(a); err != nil {
		return api.Invitation{}, err
	}
	if u.Disabled {
		return api.Invitation{}, fault.New(fault.Conflict, "the user is disabled").WithHint("enable the user first")
	}
	var i api.Invitation
	event := audit.Event{Kind: audit.UserChanged, Detail: "reset the user " + u.Email + " (" + u.ID + "): sessions, tokens and second factors end, and a new password is set by a link"}
	err = s.change(ctx, a, event, func(tx *store.DB) (events []store.Event, err error) {
		in := s.Auth.In(tx)
		if _, err := s.over(ctx, in, a, id); err != nil {
			return nil, err
		}
		if err := in.ResetFactors(ctx, a.Tenant, id); err != nil {
			return nil, err
		}
		i, err = in.InviteAgain(ctx, a.Tenant, id)
		return []store.Event{{Type: "user", Subject: u.ID, State: "changed"}}, err
	})
	return i, s.absentUser(err)
}

// DeleteUser removes a user with sessions and tokens. What the user did stays on record.
func (s *Service) DeleteUser(ctx context.Context, a Actor, id string) error {
	if err := may(a, WriteUsers); err != nil {
		return err
	}
	u, err := s.over(ctx, s.Auth, a, id)
	if err != nil {
		return err
	}
	if err := inPerson(a); err != nil {
		return err
	}
	event := audit.Event{Kind: audit.UserChanged, Detail: "remove the user " + u.Email + " (" + u.ID + ")"}
	err = s.change(ctx, a, event, func(tx *store.DB) ([]store.Event, error) {
		if _, err := s.over(ctx, s.Auth.In(tx), a, id); err != nil {
			return nil, err
		}
		return []store.Event{{Type: "user", Subject: u.ID, State: "deleted"}}, s.Auth.In(tx).RemoveUser(ctx, a.Tenant, id, 0)
	})
	return s.absentUser(err)
}

package web

import (
	"context"
	"strconv"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/control"
)

type userOperations interface {
	Users(ctx context.Context, a control.Actor, p control.Page) (api.Page[api.User], error)
	User(ctx context.Context, a control.Actor, id string) (api.User, error)
	CreateUser(ctx context.Context, a control.Actor, in api.NewUser) (api.Invitation, error)
	ChangeUser(ctx context.Context, a control.Actor, id string, version int64, in api.UserChange) (api.User, error)
	ResetUser(ctx context.Context, a control.Actor, id string) (api.Invitation, error)
	DeleteUser(ctx context.Context, a control.Actor, id string) error
}

func (p *Pages) users(v *visit) error {
	page, err := v.ops.Users(v.r.Context(), v.actor, v.pageOf(50))
	if err != nil {
		return err
	}
	return v.show("users", "People", "users", page)
}

// userData is the page of one person, or of one who is invited. Invitation is shown once, right after it was made.
type userData struct {
	Form       *form
	User       *api.User
	Invitation *api.Invitation
	Self       bool
}

func (p *Pages) newUserPage(v *visit) error {
	f := prefilled("role", string(api.Viewer))
	return v.showForm("user", "Invite somebody", "users", f, userData{Form: f})
}

func (p *Pages) newUser(v *visit) error {
	f := newForm(v.r.PostForm)
	if f.need("email", "role") {
		invitation, err := v.ops.CreateUser(v.r.Context(), v.actor, api.NewUser{Email: f.text("email"), Name: f.text("name"), Role: api.Role(f.text("role"))})
		if err == nil {
			return v.showInvitation(invitation)
		}
		if err := f.take(err); err != nil {
			return err
		}
	}
	return v.showForm("user", "Invite somebody", "users", f, userData{Form: f})
}

// showInvitation answers a post with a page, not a redirect: the link is a secret that is shown once, and has no address to be shown again at.
func (v *visit) showInvitation(invitation api.Invitation) error {
	return v.show("user", invitation.User.Email, "users", userData{Form: userFields(invitation.User), User: &invitation.User, Invitation: &invitation})
}

func userFields(u api.User) *form {
	f := prefilled("name", u.Name, "role", string(u.Role), "version", strconv.FormatInt(u.Version, 10))
	if u.Disabled {
		f.values.Set("disabled", "yes")
	}
	return f
}

func (p *Pages) user(v *visit) error {
	u, err := v.ops.User(v.r.Context(), v.actor, v.r.PathValue("id"))
	if err != nil {
		return err
	}
	return v.show("user", u.Email, "users", userData{Form: userFields(u), User: &u, Self: u.ID == v.me.User.ID})
}

func (p *Pages) changeUser(v *visit) error {
	id := v.r.PathValue("id")
	f := newForm(v.r.PostForm)
	name, role, disabled := f.text("name"), api.Role(f.text("role")), f.Has("disabled", "yes")
	if f.need("role") {
		_, err := v.ops.ChangeUser(v.r.Context(), v.actor, id, f.version(), api.UserChange{Name: &name, Role: &role, Disabled: &disabled})
		if err == nil {
			return v.to(localURL("users", id), "user-changed")
		}
		if err := f.take(err); err != nil {
			return err
		}
	}
	u, err := v.ops.User(v.r.Context(), v.actor, id)
	if err != nil {
		return err
	}
	return v.showForm("user", u.Email, "users", f, userData{Form: f, User: &u, Self: u.ID == v.me.User.ID})
}

func (p *Pages) resetUser(v *visit) error {
	invitation, err := v.ops.ResetUser(v.r.Context(), v.actor, v.r.PathValue("id"))
	if err != nil {
		return err
	}
	return v.showInvitation(invitation)
}

func (p *Pages) deleteUser(v *visit) error {
	if err := v.ops.DeleteUser(v.r.Context(), v.actor, v.r.PathValue("id")); err != nil {
		return err
	}
	return v.to("/users", "user-deleted")
}

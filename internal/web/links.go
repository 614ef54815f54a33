package web

import (
	"context"

	"github.com/cofferdam/cofferdam/internal/auth"
)

// linkData is a form that a link leads to. Token is the link's secret; it is posted, and never in an address that this page makes.
type linkData struct {
	Form   *form
	Token  string
	Owner  string // whose password is set
	Action string
	Sent   bool
}

// token is the link's secret, from its address or from the form that it led to.
func (v *visit) token() string {
	if t := v.r.PostForm.Get("token"); t != "" {
		return t
	}
	return v.r.URL.Query().Get("token")
}

func (p *Pages) setupPage(v *visit) error { return v.showSetup(prefilled("tenant", "main")) }

func (v *visit) showSetup(f *form) error {
	d := linkData{Form: f, Token: v.token()}
	if d.Token != "" && !f.Bad() {
		if err := v.door.CheckSetup(v.r.Context(), d.Token); err != nil {
			if err := f.refuse(err); err != nil {
				return err
			}
			d.Token = ""
		}
	}
	return v.showDoor("setup", "Set up", f, d)
}

func (p *Pages) setup(v *visit) error {
	f := newForm(v.r.PostForm)
	if f.need("token", "email", "password", "tenant") && f.same() {
		out, err := p.door.CompleteSetup(v.r.Context(), f.text("token"), f.text("email"), f.text("name"), f.Value("password"), f.text("tenant"))
		if err == nil {
			return v.setUp(out, f)
		}
		if err := f.refuse(err); err != nil {
			return err
		}
	}
	return v.showSetup(f)
}

// setUp signs the first administrator in with the password just chosen. The link is used up: if that does not work, the person signs in by hand.
func (v *visit) setUp(out auth.Outcome, f *form) error {
	if err := v.admitted(out); err != nil {
		return err
	}
	who := v.visitor()
	if out.Device != nil {
		who.Device = out.Device.Text()
	}
	in, err := v.door.SignIn(v.r.Context(), out.Email, f.Value("password"), who)
	if err != nil {
		v.log.Warn("sign in after the set-up", "error", err)
		return v.to("/sign-in", "password-set")
	}
	path, err := v.proceed(in, "/")
	if err != nil {
		return err
	}
	return v.to(path, "")
}

// same says whether a new password was typed twice alike.
func (f *form) same() bool {
	if f.Value("password") != f.Value("again") {
		f.wrong("again", "This is not the same.")
	}
	return !f.Bad()
}

// resetPage asks for an email address or, by a link from a mail, for a new password.
func (p *Pages) resetPage(v *visit) error {
	if v.token() == "" {
		return v.showDoor("reset", "Reset your password", nil, linkData{Form: prefilled()})
	}
	return v.showNewPassword(prefilled(), auth.ResetPath, p.door.ResetOwner)
}

func (p *Pages) reset(v *visit) error {
	f := newForm(v.r.PostForm)
	if v.token() != "" {
		return p.newPassword(v, auth.ResetPath, p.door.ResetOwner, p.door.Reset)
	}
	d := linkData{Form: f}
	if f.need("email") {
		if err := p.door.RequestReset(v.r.Context(), f.text("email"), v.visitor()); err != nil {
			if err := f.refuse(err); err != nil {
				return err
			}
		}
	}
	d.Sent = !f.Bad()
	return v.showDoor("reset", "Reset your password", f, d)
}

func (p *Pages) invitationPage(v *visit) error {
	return v.showNewPassword(prefilled(), auth.InvitationPath, p.door.InvitationOwner)
}

func (p *Pages) invitation(v *visit) error {
	return p.newPassword(v, auth.InvitationPath, p.door.InvitationOwner, p.door.AcceptInvitation)
}

// owner says whose password a link sets.
type owner func(ctx context.Context, token string) (string, error)

func (v *visit) showNewPassword(f *form, action string, whose owner) error {
	d := linkData{Form: f, Token: v.token(), Action: action}
	name, err := whose(v.r.Context(), d.Token)
	if err != nil {
		if err := f.refuse(err); err != nil {
			return err
		}
		d.Token = ""
	}
	d.Owner = name
	return v.showDoor("new-password", "Set your password", f, d)
}

func (p *Pages) newPassword(v *visit, action string, whose owner, set func(ctx context.Context, token, password string) (auth.Outcome, error)) error {
	f := newForm(v.r.PostForm)
	if f.need("token", "password") && f.same() {
		out, err := set(v.r.Context(), f.text("token"), f.Value("password"))
		if err == nil {
			if err := v.admitted(out); err != nil {
				return err
			}
			return v.to("/sign-in", "password-set")
		}
		if err := f.refuse(err); err != nil {
			return err
		}
	}
	return v.showNewPassword(f, action, whose)
}

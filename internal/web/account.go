package web

import (
	"context"
	"html/template"
	"strconv"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/auth"
	"github.com/cofferdam/cofferdam/internal/control"
)

type accountOperations interface {
	Sessions(ctx context.Context, a control.Actor) ([]api.Session, error)
	RevokeSession(ctx context.Context, a control.Actor, id string) error
	Tokens(ctx context.Context, a control.Actor) ([]api.Token, error)
	CreateToken(ctx context.Context, a control.Actor, in api.NewToken) (api.Token, error)
	RevokeToken(ctx context.Context, a control.Actor, id string) error
}

// accountData is a person's own page. Each form has its own errors; Token and Codes are shown once, in the answer to the post that made them.
type accountData struct {
	Sessions []api.Session
	Tokens   []api.Token
	Passkeys []auth.PasskeyInfo
	Scopes   []string
	Form     *form // the password's
	Factor   *form
	Keys     *form
	NewToken *form
	Token    *api.Token
	Codes    []string
	Enrol    *enrolment
}

// enrolment is an authenticator app that is being set up.
type enrolment struct {
	Text string
	URL  string
	SVG  template.HTML
}

func (p *Pages) account(v *visit) error { return v.showAccount(accountData{}) }

// firstForm is the form of the page that something is wrong with.
func (d *accountData) firstForm() *form {
	for _, f := range []*form{d.Form, d.Factor, d.Keys, d.NewToken} {
		if f.Bad() {
			return f
		}
	}
	return d.Form
}

func (v *visit) showAccount(d accountData) error {
	ctx := v.r.Context()
	var err error
	if d.Sessions, err = v.ops.Sessions(ctx, v.actor); err != nil {
		return err
	}
	if d.Tokens, err = v.ops.Tokens(ctx, v.actor); err != nil {
		return err
	}
	if d.Passkeys, err = v.door.Passkeys(ctx, v.principal); err != nil {
		return err
	}
	d.Scopes = v.me.Scopes
	for _, f := range []**form{&d.Form, &d.Factor, &d.Keys} {
		if *f == nil {
			*f = prefilled()
		}
	}
	if d.NewToken == nil {
		d.NewToken = prefilled("days", "30")
	}
	return v.showForm("account", "Your account", "account", d.firstForm(), d)
}

func (p *Pages) changePassword(v *visit) error {
	f := newForm(v.r.PostForm)
	if f.need("old", "password") && f.same() {
		out, err := p.door.ChangePassword(v.r.Context(), v.principal, f.Value("old"), f.Value("password"), v.visitor())
		if err == nil {
			if err := v.admitted(out); err != nil {
				return err
			}
			return v.to("/account", "password-changed")
		}
		if err := f.refuse(err); err != nil {
			return err
		}
	}
	return v.showAccount(accountData{Form: f})
}

// enrolTOTP begins setting up an authenticator app. The secret is shown in the answer, and only there.
func (p *Pages) enrolTOTP(v *visit) error {
	f := newForm(v.r.PostForm)
	if !f.need("current") {
		return v.showAccount(accountData{Factor: f})
	}
	begun, err := p.door.BeginTOTP(v.r.Context(), v.principal, f.Value("current"))
	if err != nil {
		if err := f.refuse(err); err != nil {
			return err
		}
		return v.showAccount(accountData{Factor: f})
	}
	svg, err := begun.SVG()
	if err != nil {
		return err
	}
	return v.showAccount(accountData{Enrol: &enrolment{Text: begun.Text(), URL: begun.URL(), SVG: template.HTML(svg)}}) // ours: drawn from squares
}

func (p *Pages) confirmTOTP(v *visit) error {
	f := newForm(v.r.PostForm)
	if f.need("one_time") {
		codes, err := p.door.ConfirmTOTP(v.r.Context(), v.principal, f.text("one_time"))
		if err == nil {
			if v.me, err = v.ops.Me(v.r.Context(), v.actor); err != nil {
				return err
			}
			return v.showAccount(accountData{Codes: codes})
		}
		if err := f.refuse(err); err != nil {
			return err
		}
	}
	f.Hint = "Begin again: the secret was shown once."
	return v.showAccount(accountData{Factor: f})
}

func (p *Pages) disableTOTP(v *visit) error {
	f := newForm(v.r.PostForm)
	if f.need("current") {
		err := p.door.RemoveTOTP(v.r.Context(), v.principal, f.Value("current"))
		if err == nil {
			return v.to("/account", "totp-off")
		}
		if err := f.refuse(err); err != nil {
			return err
		}
	}
	return v.showAccount(accountData{Factor: f})
}

func (p *Pages) recoveryCodes(v *visit) error {
	f := newForm(v.r.PostForm)
	if f.need("current") {
		codes, err := p.door.NewRecoveryCodes(v.r.Context(), v.principal, f.Value("current"))
		if err == nil {
			return v.showAccount(accountData{Codes: codes})
		}
		if err := f.refuse(err); err != nil {
			return err
		}
	}
	return v.showAccount(accountData{Factor: f})
}

func (p *Pages) deletePasskey(v *visit) error {
	f := newForm(v.r.PostForm)
	if f.need("current") {
		err := p.door.RemovePasskey(v.r.Context(), v.principal, v.r.PathValue("id"), f.Value("current"))
		if err == nil {
			return v.to("/account", "passkey-deleted")
		}
		if err := f.refuse(err); err != nil {
			return err
		}
	}
	return v.showAccount(accountData{Keys: f})
}

func (p *Pages) revokeSession(v *visit) error {
	if err := v.ops.RevokeSession(v.r.Context(), v.actor, v.r.PathValue("id")); err != nil {
		return err
	}
	return v.to("/account", "session-ended")
}

// newToken makes a token and shows it in the answer: there is no address to see it at again.
func (p *Pages) newToken(v *visit) error {
	f := newForm(v.r.PostForm)
	days, err := strconv.Atoi(f.text("days"))
	if err != nil || days < 1 || days > 366 {
		f.wrong("days", "Write a number from 1 to 366.")
	}
	if len(f.values["scope"]) == 0 {
		f.wrong("scope", "Choose at least one.")
	}
	if f.need("name") {
		token, err := v.ops.CreateToken(v.r.Context(), v.actor, api.NewToken{Name: f.text("name"), Scopes: f.values["scope"], Seconds: int64(days) * 86400})
		if err == nil {
			return v.showAccount(accountData{Token: &token})
		}
		if err := f.take(err); err != nil {
			return err
		}
	}
	return v.showAccount(accountData{NewToken: f})
}

func (p *Pages) revokeToken(v *visit) error {
	if err := v.ops.RevokeToken(v.r.Context(), v.actor, v.r.PathValue("id")); err != nil {
		return err
	}
	return v.to("/account", "token-revoked")
}

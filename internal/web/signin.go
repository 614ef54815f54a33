package web

import (
	"context"
	"net/http"
	"strings"

	"github.com/cofferdam/cofferdam/internal/auth"
	"github.com/cofferdam/cofferdam/internal/control"
	"github.com/cofferdam/cofferdam/internal/fault"
)

type signInOperations interface {
	RecordSignIn(ctx context.Context, in control.SignIn) error
}

type signInData struct {
	Form      *form
	Next      string
	Providers []auth.ProviderInfo
	Setup     bool // nobody has an account yet
	Code      bool // of the second step: a one-time or recovery code will do
	Passkey   bool
}

// showDoor answers with a page for people who have not signed in.
func (v *visit) showDoor(name, title string, f *form, data any) error {
	status := http.StatusOK
	if f != nil && f.Bad() {
		status = http.StatusUnprocessableEntity
	}
	return v.write(status, name, "door", v.view(title, "", data))
}

// nextPath is where to go after signing in: a path of ours, or the overview.
func (v *visit) nextPath() string {
	next := v.r.URL.Query().Get("next")
	if v.r.PostForm.Has("next") {
		next = v.r.PostForm.Get("next")
	}
	return localPath(next)
}

func (p *Pages) signInPage(v *visit) error {
	if cookie := p.door.ReadCookie(v.r, auth.SessionCookie); cookie != "" {
		if _, err := p.door.Session(v.r.Context(), cookie); err == nil {
			return v.to(v.nextPath(), "")
		}
	}
	f := prefilled()
	if v.r.URL.Query().Get("failed") == "oidc" {
		f.Problem, f.Hint = "The sign-in service did not sign you in.", "Try again, or sign in another way."
	}
	return v.showSignIn(f)
}

func (v *visit) showSignIn(f *form) error {
	setup, err := v.door.NeedsSetup(v.r.Context())
	if err != nil {
		return err
	}
	return v.showDoor("sign-in", "Sign in", f, signInData{Form: f, Next: v.nextPath(), Providers: v.door.Providers(), Setup: setup})
}

// refuse notes a refusal in the form: what the person can do something about, which here includes not being who they say.
func (f *form) refuse(err error) error {
	switch fault.KindOf(err) {
	case fault.Unauthenticated, fault.NotFound:
		f.Problem, f.Hint = sentence(fault.Public(err)), sentence(fault.HintOf(err))
		return nil
	}
	return f.take(err)
}

func (p *Pages) signIn(v *visit) error {
	f := newForm(v.r.PostForm)
	if !f.need("email", "password") {
		return v.showSignIn(f)
	}
	out, err := p.door.SignIn(v.r.Context(), f.text("email"), f.Value("password"), v.visitor())
	if err != nil {
		if err := v.refused(out, "password", err); err != nil {
			return err
		}
		if err := f.refuse(err); err != nil {
			return err
		}
		return v.showSignIn(f)
	}
	path, err := v.proceed(out, v.nextPath())
	if err != nil {
		return err
	}
	return v.to(path, "")
}

func (p *Pages) codePage(v *visit) error {
	if p.door.ReadCookie(v.r, auth.ChallengeCookie) == "" {
		return v.to("/sign-in", "")
	}
	return v.showCode(prefilled())
}

func (v *visit) showCode(f *form) error {
	q := v.r.URL.Query()
	d := signInData{Form: f, Next: v.nextPath(), Code: q.Get("code") == "yes" || f.Has("code_too", "yes"), Passkey: q.Get("passkey") == "yes" || f.Has("passkey_too", "yes")}
	return v.showDoor("sign-in-code", "Second step", f, d)
}

// signInCode takes a one-time code, six digits, or a recovery code.
func (p *Pages) signInCode(v *visit) error {
	f := newForm(v.r.PostForm)
	challenge := p.door.ReadCookie(v.r, auth.ChallengeCookie)
	code := strings.ReplaceAll(f.text("one_time"), " ", "")
	if challenge == "" {
		return v.to("/sign-in", "")
	}
	if !f.need("one_time") {
		return v.showCode(f)
	}
	method, complete := "recovery", p.door.CompleteRecovery
	if len(code) == 6 && strings.Trim(code, "0123456789") == "" {
		method, complete = "totp", p.door.CompleteTOTP
	}
	out, err := complete(v.r.Context(), challenge, code, v.visitor())
	if err != nil {
		if err := v.refused(out, method, err); err != nil {
			return err
		}
		if err := f.refuse(err); err != nil {
			return err
		}
		return v.showCode(f)
	}
	path, err := v.proceed(out, v.nextPath())
	if err != nil {
		return err
	}
	return v.to(path, "")
}

func (p *Pages) signOut(v *visit) error {
	if cookie := p.door.ReadCookie(v.r, auth.SessionCookie); cookie != "" {
		if err := p.door.SignOut(v.r.Context(), cookie); err != nil && fault.KindOf(err) != fault.Unauthenticated {
			return err
		}
	}
	p.door.ClearCookie(v.w, auth.SessionCookie)
	v.w.Header().Set("Clear-Site-Data", `"cache"`)
	return v.to("/sign-in", "signed-out")
}

// oidcBegin sends the person to a sign-in service. It is a post, so that no other site begins it.
func (p *Pages) oidcBegin(v *visit) error {
	where, ticket, err := p.door.BeginOIDC(v.r.Context(), v.r.PathValue("id"), v.nextPath(), v.visitor())
	if err != nil {
		return err
	}
	p.door.SetCookie(v.w, auth.OIDCCookie, ticket)
	// A page in between, because browsers hold the redirect of a form to the policy's form-action, which is this server. The address comes from the
	// service's own settings and discovery, not from the request.
	v.w.Header().Set("Refresh", "0; url="+where)
	return v.showDoor("leave", "To your sign-in service", nil, where)
}

// oidcCallback takes the answer that the browser brings back. It changes something by a GET, as OpenID Connect has it; state and cookie prove that this
// browser was sent there from here.
func (p *Pages) oidcCallback(v *visit) error {
	out, next, err := p.door.FinishOIDC(v.r.Context(), v.r.PathValue("id"), p.door.ReadCookie(v.r, auth.OIDCCookie), v.r.URL.Query(), v.visitor())
	p.door.ClearCookie(v.w, auth.OIDCCookie)
	if err != nil {
		if err := v.refused(out, "oidc", err); err != nil {
			return err
		}
		if fault.KindOf(err) == fault.Internal {
			return err
		}
		f := prefilled()
		if err := f.refuse(err); err != nil {
			return err
		}
		return v.showSignIn(f)
	}
	path, err := v.proceed(out, localPath(next))
	if err != nil {
		return err
	}
	return v.to(path, "")
}

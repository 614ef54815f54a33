package web

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"

	"github.com/cofferdam/cofferdam/internal/auth"
	"github.com/cofferdam/cofferdam/internal/control"
	"github.com/cofferdam/cofferdam/internal/fault"
)

// door is what the pages need of package auth; *auth.Service has it.
type door interface {
	cookies
	entrance
	links
	passkeyCeremonies
	ownAccount
}

// cookies are how a browser is known.
type cookies interface {
	ReadCookie(r *http.Request, c auth.Cookie) string
	SetCookie(w http.ResponseWriter, c auth.Cookie, t auth.Ticket)
	ClearCookie(w http.ResponseWriter, c auth.Cookie)
	Session(ctx context.Context, cookie string) (auth.Principal, error)
}

// entrance is signing in and out.
type entrance interface {
	NeedsSetup(ctx context.Context) (bool, error)
	SignIn(ctx context.Context, email, password string, v auth.Visitor) (auth.Outcome, error)
	CompleteTOTP(ctx context.Context, challenge, code string, v auth.Visitor) (auth.Outcome, error)
	CompleteRecovery(ctx context.Context, challenge, code string, v auth.Visitor) (auth.Outcome, error)
	SignOut(ctx context.Context, cookie string) error
	Providers() []auth.ProviderInfo
	BeginOIDC(ctx context.Context, id, to string, v auth.Visitor) (string, auth.Ticket, error)
	FinishOIDC(ctx context.Context, id, browser string, query url.Values, v auth.Visitor) (auth.Outcome, string, error)
}

// links are what a person does with a link from a mail, an administrator or the server's log.
type links interface {
	CheckSetup(ctx context.Context, token string) error
	CompleteSetup(ctx context.Context, token, email, name, newPassword, tenantName string) (auth.Outcome, error)
	RequestReset(ctx context.Context, email string, v auth.Visitor) error
	ResetOwner(ctx context.Context, token string) (string, error)
	Reset(ctx context.Context, token, newPassword string) (auth.Outcome, error)
	InvitationOwner(ctx context.Context, token string) (string, error)
	AcceptInvitation(ctx context.Context, token, newPassword string) (auth.Outcome, error)
}

// passkeyCeremonies are the halves of what a browser and an authenticator do together.
type passkeyCeremonies interface {
	BeginPasskeySignIn(ctx context.Context, v auth.Visitor) (json.RawMessage, auth.Ticket, error)
	FinishPasskeySignIn(ctx context.Context, ceremony string, response []byte, v auth.Visitor) (auth.Outcome, error)
	BeginPasskeyAnswer(ctx context.Context, challenge string) (json.RawMessage, auth.Ticket, error)
	CompletePasskey(ctx context.Context, challenge, ceremony string, response []byte, v auth.Visitor) (auth.Outcome, error)
	BeginPasskey(ctx context.Context, p auth.Principal, password string) (json.RawMessage, auth.Ticket, error)
	FinishPasskey(ctx context.Context, p auth.Principal, ceremony, label string, response []byte) (auth.PasskeyInfo, []string, error)
}

// ownAccount is what a person does with what proves who they are.
type ownAccount interface {
	ChangePassword(ctx context.Context, p auth.Principal, old, next string, v auth.Visitor) (auth.Outcome, error)
	BeginTOTP(ctx context.Context, p auth.Principal, password string) (auth.Enrolment, error)
	ConfirmTOTP(ctx context.Context, p auth.Principal, code string) ([]string, error)
	RemoveTOTP(ctx context.Context, p auth.Principal, password string) error
	NewRecoveryCodes(ctx context.Context, p auth.Principal, password string) ([]string, error)
	Passkeys(ctx context.Context, p auth.Principal) ([]auth.PasskeyInfo, error)
	RemovePasskey(ctx context.Context, p auth.Principal, id, password string) error
}

// actorOf is who a session's principal is to the operations. A page takes no token.
func actorOf(p auth.Principal) (control.Actor, error) {
	if p.Via != auth.ViaSession {
		return control.Actor{}, fault.New(fault.Unauthenticated, "you are not signed in")
	}
	return control.Actor{Tenant: p.Tenant, User: p.User, Name: p.Email, Role: p.Role, Operator: p.Operator, Via: p.Via.String(), ID: p.SessionID}, nil
}

// visitor is where a request comes from, for package auth.
func (v *visit) visitor() auth.Visitor {
	return auth.Visitor{Address: v.client(v.r.Context()), Agent: v.r.UserAgent(), Device: v.door.ReadCookie(v.r, auth.DeviceCookie)}
}

// admitted ends a sign-in: it is recorded, then the browser gets its cookies. A sign-in that cannot be recorded does not happen.
func (v *visit) admitted(out auth.Outcome) error {
	err := v.ops.RecordSignIn(v.r.Context(), control.SignIn{OK: true, Tenant: out.Tenant, User: out.User, Method: out.Method, Address: v.client(v.r.Context())})
	if err != nil {
		if out.Session != nil {
			if end := v.door.SignOut(v.r.Context(), out.Session.Text()); end != nil {
				v.log.Error("end a session that could not be recorded", "error", end)
			}
		}
		return err
	}
	if out.Session != nil {
		v.door.SetCookie(v.w, auth.SessionCookie, *out.Session)
	}
	if out.Device != nil {
		v.door.SetCookie(v.w, auth.DeviceCookie, *out.Device)
	}
	return nil
}

// refused records a sign-in that was not admitted, for reasons that are the visitor's.
func (v *visit) refused(out auth.Outcome, method string, why error) error {
	if fault.KindOf(why) == fault.Internal {
		return nil
	}
	return v.ops.RecordSignIn(v.r.Context(), control.SignIn{Tenant: out.Tenant, User: out.User, Method: method, Address: v.client(v.r.Context()), Reason: fault.Public(why)})
}

// proceed goes on after a step of signing in: to the second factor, or to the page that was wanted. It returns the path.
func (v *visit) proceed(out auth.Outcome, next string) (string, error) {
	if out.Challenge != nil {
		v.door.SetCookie(v.w, auth.ChallengeCookie, out.Challenge.Ticket)
		q := []string{"next", next}
		if out.Challenge.TOTP {
			q = append(q, "code", "yes")
		}
		if out.Challenge.Passkey {
			q = append(q, "passkey", "yes")
		}
		return "/sign-in/code?" + pairsQuery(q), nil
	}
	if out.Session == nil {
		return "", fault.New(fault.Internal, "a sign-in came to nothing")
	}
	if err := v.admitted(out); err != nil {
		return "", err
	}
	v.door.ClearCookie(v.w, auth.ChallengeCookie)
	return next, nil
}

package server

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/auth"
	"github.com/cofferdam/cofferdam/internal/control"
	"github.com/cofferdam/cofferdam/internal/fault"
)

// signInPage is where a person begins anew.
const signInPage = "/sign-in"

// signInOperations are those by which one signs in. Package auth counts attempts; each is on record.
func (s *Server) signInOperations() []operation {
	return []operation{
		op("POST", "/auth/sign-in", "sign-in", "Show a password; a session comes as a cookie, or a second factor is asked for", "",
			func(ctx context.Context, c *call, in *body[api.SignIn]) (api.SignedIn, error) {
				out, err := s.auth.SignIn(ctx, in.Body.Email, in.Body.Password, s.visitor(c))
				return s.outcome(ctx, c, "password", out, err)
			}).public(),
		op("POST", "/auth/totp", "sign-in-totp", "Show a one-time code as the second factor", "", func(ctx context.Context, c *call, in *body[api.Code]) (api.SignedIn, error) {
			out, err := s.auth.CompleteTOTP(ctx, s.challenge(c), in.Body.Code, s.visitor(c))
			return s.outcome(ctx, c, "totp", out, err)
		}).public(),
		op("POST", "/auth/recovery", "sign-in-recovery", "Show a recovery code as the second factor", "", func(ctx context.Context, c *call, in *body[api.Code]) (api.SignedIn, error) {
			out, err := s.auth.CompleteRecovery(ctx, s.challenge(c), in.Body.Code, s.visitor(c))
			return s.outcome(ctx, c, "recovery", out, err)
		}).public(),
		op("POST", "/auth/passkey/begin", "sign-in-passkey-begin", "Begin with a passkey, as the only factor or, after a password, the second", "", s.beginPasskey).public(),
		op("POST", "/auth/passkey/finish", "sign-in-passkey-finish", "Show what the passkey signed", "", s.finishPasskey).public(),
		act("POST", "/auth/sign-out", "sign-out", "End this browser's session", "", s.signOut).public(),
		act("POST", "/auth/reset", "request-reset", "Ask for a mail with a link to set a password; the answer is the same for any address", "", func(ctx context.Context, c *call, in *body[api.ResetRequest]) error {
			return s.auth.RequestReset(ctx, in.Body.Email, s.visitor(c))
		}).public(),
		act("POST", "/auth/reset/complete", "complete-reset", "Set a password by the link's token; all sessions end", "", func(ctx context.Context, c *call, in *body[api.NewPassword]) error {
			out, err := s.auth.Reset(ctx, in.Body.Token, in.Body.Password)
			return s.welcomed(ctx, c, "reset", out, err)
		}).public(),
		act("POST", "/auth/invitation", "accept-invitation", "Set a first password by the link's token", "", func(ctx context.Context, c *call, in *body[api.NewPassword]) error {
			out, err := s.auth.AcceptInvitation(ctx, in.Body.Token, in.Body.Password)
			return s.welcomed(ctx, c, "invitation", out, err)
		}).public(),
		act("POST", "/auth/setup", "set-up", "Make the first tenant and its administrator by the link that the server printed; a session comes as a cookie", "", s.setUp).public(),
		op("GET", "/auth/oidc", "list-providers", "Sign-in services", "", func(context.Context, *call, *noInput) (api.Page[api.Provider], error) {
			var list []api.Provider
			for _, p := range s.auth.Providers() {
				list = append(list, api.Provider{ID: p.ID, Name: p.Name})
			}
			return whole(list, nil)
		}).public(),
		raw("GET", "/auth/oidc/{id}/start", "sign-in-oidc", "Go to a sign-in service; to is a page of ours to come back to", "", s.startOIDC).
			with(param{"id", "path", "string", "of the sign-in service"}, param{"to", "query", "string", "a path of ours"}).public(),
	}
}

// visitor is who a request comes from, before anybody knows who it is.
func (s *Server) visitor(c *call) auth.Visitor {
	return auth.Visitor{Address: c.from, Agent: c.request.UserAgent(), Device: s.auth.ReadCookie(c.request, auth.DeviceCookie)}
}

func (s *Server) challenge(c *call) string {
	return s.auth.ReadCookie(c.request, auth.ChallengeCookie)
}

// outcome records how a step of signing in went, and hands over the cookies. What cannot be recorded does not happen.
func (s *Server) outcome(ctx context.Context, c *call, method string, out auth.Outcome, err error) (api.SignedIn, error) {
	if err == nil && out.Challenge != nil {
		s.auth.SetCookie(c.writer, auth.ChallengeCookie, out.Challenge.Ticket)
		return api.SignedIn{Expires: out.Challenge.Expires, Factors: factors(out.Challenge)}, nil
	}
	if err := s.record(ctx, c, method, out, err); err != nil {
		return api.SignedIn{}, err
	}
	s.hand(c.writer, out)
	return api.SignedIn{Done: true, Expires: out.Session.Expires}, nil
}

func factors(ch *auth.Challenge) []string {
	var all []string
	for name, has := range map[string]bool{"totp": ch.TOTP, "passkey": ch.Passkey, "recovery": ch.Recovery} {
		if has {
			all = append(all, name)
		}
	}
	slices.Sort(all)
	return all
}

// welcomed is outcome for what sets a password, after which the person signs in.
func (s *Server) welcomed(ctx context.Context, c *call, method string, out auth.Outcome, err error) error {
	if err := s.record(ctx, c, method, out, err); err != nil {
		return err
	}
	s.hand(c.writer, out)
	return nil
}

// setUp makes the first administrator, and signs them in with the password just chosen. The link is used up: if that does not work, they sign in by hand.
func (s *Server) setUp(ctx context.Context, c *call, in *body[api.Setup]) error {
	out, err := s.auth.CompleteSetup(ctx, in.Body.Token, in.Body.Email, in.Body.Name, in.Body.Password, in.Body.Tenant)
	if err := s.welcomed(ctx, c, "setup", out, err); err != nil {
		return err
	}
	who := s.visitor(c)
	if out.Device != nil {
		who.Device = out.Device.Text()
	}
	session, err := s.auth.SignIn(ctx, out.Email, in.Body.Password, who)
	if err != nil {
		s.log.WarnContext(ctx, "sign in after the set-up", "request", c.id, "error", err.Error())
		return nil
	}
	_, err = s.outcome(ctx, c, "password", session, nil)
	return err
}

// record puts a step of signing in on record. The error is the step's own, or that of the record, after which the session is void.
func (s *Server) record(ctx context.Context, c *call, method string, out auth.Outcome, failed error) error {
	in := control.SignIn{OK: failed == nil, Tenant: out.Tenant, User: out.User, Method: method, Address: c.from}
	if failed != nil {
		switch fault.KindOf(failed) {
		case fault.Unauthenticated, fault.Denied, fault.TooMany:
			in.Reason = fault.Public(failed)
		default:
			return failed // a mistake in the request, or ours: nobody was refused
		}
	}
	err := s.control.RecordSignIn(ctx, in)
	if failed != nil {
		if err != nil {
			s.log.ErrorContext(ctx, "refusal not recorded", "request", c.id, "error", err.Error())
		}
		return failed
	}
	if err != nil && out.Session != nil {
		after, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		if err := s.auth.SignOut(after, out.Session.Text()); err != nil {
			s.log.ErrorContext(ctx, "session not ended", "request", c.id, "error", err.Error())
		}
	}
	return err
}

// hand gives a browser its cookies.
func (s *Server) hand(w http.ResponseWriter, out auth.Outcome) {
	s.auth.ClearCookie(w, auth.ChallengeCookie)
	if out.Session != nil {
		s.auth.SetCookie(w, auth.SessionCookie, *out.Session)
	}
	if out.Device != nil {
		s.auth.SetCookie(w, auth.DeviceCookie, *out.Device)
	}
}

// beginPasskey begins an answer to the challenge that the browser has, or, without one or after its end, a sign-in of its own.
func (s *Server) beginPasskey(ctx context.Context, c *call, _ *noInput) (api.PasskeyOptions, error) {
	if challenge := s.challenge(c); challenge != "" {
		options, ticket, err := s.auth.BeginPasskeyAnswer(ctx, challenge)
		if err == nil {
			s.auth.SetCookie(c.writer, auth.CeremonyCookie, ticket)
			return api.PasskeyOptions{Options: options}, nil
		}
		if fault.KindOf(err) != fault.Unauthenticated {
			return api.PasskeyOptions{}, err
		}
		s.auth.ClearCookie(c.writer, auth.ChallengeCookie)
	}
	options, ticket, err := s.auth.BeginPasskeySignIn(ctx, s.visitor(c))
	if err != nil {
		return api.PasskeyOptions{}, err
	}
	s.auth.SetCookie(c.writer, auth.CeremonyCookie, ticket)
	return api.PasskeyOptions{Options: options}, nil
}

func (s *Server) finishPasskey(ctx context.Context, c *call, in *body[api.PasskeyAnswer]) (api.SignedIn, error) {
	ceremony := s.auth.ReadCookie(c.request, auth.CeremonyCookie)
	s.auth.ClearCookie(c.writer, auth.CeremonyCookie)
	var out auth.Outcome
	var err error
	if challenge := s.challenge(c); challenge != "" {
		out, err = s.auth.CompletePasskey(ctx, challenge, ceremony, in.Body.Response, s.visitor(c))
	} else {
		out, err = s.auth.FinishPasskeySignIn(ctx, ceremony, in.Body.Response, s.visitor(c))
	}
	return s.outcome(ctx, c, "passkey", out, err)
}

func (s *Server) signOut(ctx context.Context, c *call, _ *noInput) error {
	if session := s.auth.ReadCookie(c.request, auth.SessionCookie); session != "" {
		if err := s.auth.SignOut(ctx, session); err != nil {
			return err
		}
	}
	for _, cookie := range []auth.Cookie{auth.SessionCookie, auth.ChallengeCookie, auth.CeremonyCookie} {
		s.auth.ClearCookie(c.writer, cookie)
	}
	return nil
}

// startOIDC sends a person to a sign-in service. The ticket in the cookie binds the answer to this browser.
func (s *Server) startOIDC(w http.ResponseWriter, r *http.Request, c *call) error {
	if err := only(r, "to"); err != nil {
		return err
	}
	address, ticket, err := s.auth.BeginOIDC(r.Context(), r.PathValue("id"), r.URL.Query().Get("to"), s.visitor(c))
	if err != nil {
		return err
	}
	s.auth.SetCookie(w, auth.OIDCCookie, ticket)
	http.Redirect(w, r, address, http.StatusSeeOther)
	return nil
}

// isCallback says whether a path is where a sign-in service sends people back to, and of which service.
func (s *Server) isCallback(path string) (id string, ok bool) {
	for _, p := range s.auth.Providers() {
		if path == auth.CallbackPath(p.ID) {
			return p.ID, true
		}
	}
	return "", false
}

// finishOIDC takes the answer of a sign-in service, and goes on to a page: a person is looking.
func (s *Server) finishOIDC(w http.ResponseWriter, r *http.Request, c *call, id string) {
	c.operation, c.request, c.writer = "finish-oidc", r, w
	if err := s.pace(r.Context(), "stranger:"+neighbourhood(c.from), perStranger); err != nil {
		s.refuse(w, r, err)
		return
	}
	browser := s.auth.ReadCookie(r, auth.OIDCCookie)
	s.auth.ClearCookie(w, auth.OIDCCookie)
	out, to, err := s.auth.FinishOIDC(r.Context(), id, browser, r.URL.Query(), s.visitor(c))
	done, err := s.outcome(r.Context(), c, "oidc", out, err)
	switch {
	case err != nil:
		s.problem(r.Context(), err) // logs what is ours to mend
		to = signInPage + "?failed=oidc"
	case !done.Done:
		to = signInPage + "?factors=" + strings.Join(done.Factors, "+")
	}
	http.Redirect(w, r, auth.LocalPath(to), http.StatusSeeOther)
}

package server

import (
	"context"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/auth"
)

// protectionOperations are those by which people change what protects their own account. Package auth asks for the password again, and refuses tokens.
func (s *Server) protectionOperations() []operation {
	return []operation{
		op("POST", "/account/password", "change-password", "Set the caller's own password; all other sessions end", "",
			func(ctx context.Context, c *call, in *body[api.PasswordChange]) (api.SignedIn, error) {
				var out auth.Outcome
				err := s.control.ChangeAccount(ctx, c.actor, "set another password", func() (err error) {
					out, err = s.auth.ChangePassword(ctx, c.who, in.Body.Old, in.Body.New, s.visitor(c))
					return err
				})
				if err != nil {
					return api.SignedIn{}, err
				}
				s.hand(c.writer, out)
				return api.SignedIn{Done: true, Expires: out.Session.Expires}, nil
			}).without(),
		op("POST", "/account/totp", "begin-totp", "Make a secret for one-time codes, which counts once a code was confirmed", "",
			func(ctx context.Context, c *call, in *body[api.Password]) (api.TOTPEnrolment, error) {
				e, err := s.auth.BeginTOTP(ctx, c.who, in.Body.Password)
				if err != nil {
					return api.TOTPEnrolment{}, err
				}
				svg, err := e.SVG()
				return api.TOTPEnrolment{Secret: e.Text(), URL: e.URL(), SVG: string(svg)}, err
			}).without(),
		op("POST", "/account/totp/confirm", "confirm-totp", "Turn one-time codes on", "", func(ctx context.Context, c *call, in *body[api.Code]) (api.RecoveryCodes, error) {
			return s.recoveryCodes(ctx, c, "turn one-time codes on", func() ([]string, error) { return s.auth.ConfirmTOTP(ctx, c.who, in.Body.Code) })
		}).without(),
		act("POST", "/account/totp/remove", "remove-totp", "Turn one-time codes off", "", func(ctx context.Context, c *call, in *body[api.Password]) error {
			return s.control.ChangeAccount(ctx, c.actor, "turn one-time codes off", func() error { return s.auth.RemoveTOTP(ctx, c.who, in.Body.Password) })
		}).without(),
		op("POST", "/account/recovery-codes", "renew-recovery-codes", "Replace the recovery codes", "", func(ctx context.Context, c *call, in *body[api.Password]) (api.RecoveryCodes, error) {
			return s.recoveryCodes(ctx, c, "replace the recovery codes", func() ([]string, error) { return s.auth.NewRecoveryCodes(ctx, c.who, in.Body.Password) })
		}).without(),
		op("GET", "/account/passkeys", "list-passkeys", "The caller's own passkeys", "", func(ctx context.Context, c *call, _ *noInput) (api.Page[api.Passkey], error) {
			keys, err := s.auth.Passkeys(ctx, c.who)
			var list []api.Passkey
			for _, k := range keys {
				list = append(list, passkey(k))
			}
			return whole(list, err)
		}),
		op("POST", "/account/passkeys/begin", "add-passkey-begin", "Begin to add a passkey", "", func(ctx context.Context, c *call, in *body[api.Password]) (api.PasskeyOptions, error) {
			options, ticket, err := s.auth.BeginPasskey(ctx, c.who, in.Body.Password)
			if err == nil {
				s.auth.SetCookie(c.writer, auth.CeremonyCookie, ticket)
			}
			return api.PasskeyOptions{Options: options}, err
		}).without(),
		op("POST", "/account/passkeys/finish", "add-passkey-finish", "Store a passkey", "", s.addPasskey).making().without(),
		act("PATCH", "/account/passkeys/{id}", "rename-passkey", "Rename a passkey", "", func(ctx context.Context, c *call, in *change[api.Label]) error {
			return s.auth.RenamePasskey(ctx, c.who, in.ID, in.Body.Label)
		}),
		act("POST", "/account/passkeys/{id}/remove", "remove-passkey", "Remove a passkey", "", func(ctx context.Context, c *call, in *change[api.Password]) error {
			return s.control.ChangeAccount(ctx, c.actor, "remove a passkey", func() error { return s.auth.RemovePasskey(ctx, c.who, in.ID, in.Body.Password) })
		}).without(),
	}
}

func (s *Server) recoveryCodes(ctx context.Context, c *call, what string, do func() ([]string, error)) (api.RecoveryCodes, error) {
	codes := []string{}
	err := s.control.ChangeAccount(ctx, c.actor, what, func() error {
		fresh, err := do()
		codes = append(codes, fresh...)
		return err
	})
	return api.RecoveryCodes{Codes: codes}, err
}

func (s *Server) addPasskey(ctx context.Context, c *call, in *body[api.PasskeyAnswer]) (api.PasskeyMade, error) {
	ceremony := s.auth.ReadCookie(c.request, auth.CeremonyCookie)
	s.auth.ClearCookie(c.writer, auth.CeremonyCookie)
	var made api.PasskeyMade
	err := s.control.ChangeAccount(ctx, c.actor, "add a passkey", func() error {
		key, codes, err := s.auth.FinishPasskey(ctx, c.who, ceremony, in.Body.Label, in.Body.Response)
		made = api.PasskeyMade{Passkey: passkey(key), Recovery: codes}
		return err
	})
	return made, err
}

func passkey(k auth.PasskeyInfo) api.Passkey {
	return api.Passkey{ID: k.ID, Label: k.Label, Created: k.Created, Used: k.Used}
}

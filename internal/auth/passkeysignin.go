package auth

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/go-webauthn/webauthn/protocol"
	"github.com/go-webauthn/webauthn/webauthn"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/store"
)

// BeginPasskeySignIn starts a sign-in by passkey, before anybody knows whose: the authenticator says. It returns the options for
// navigator.credentials.get and the ceremony's ticket.
func (s *Service) BeginPasskeySignIn(ctx context.Context, v Visitor) (json.RawMessage, Ticket, error) {
	if s.parts.passkeys == nil {
		return nil, Ticket{}, errNoPasskeys()
	}
	if err := s.allow(ctx, "passkey:"+v.network(), perNetwork, quarter); err != nil {
		return nil, Ticket{}, err
	}
	options, session, err := s.parts.passkeys.BeginDiscoverableLogin(webauthn.WithUserVerification(protocol.VerificationPreferred))
	if err != nil {
		return nil, Ticket{}, fmt.Errorf("begin a sign-in by passkey: %w", err)
	}
	return s.begin(ctx, "", "", options, ceremonyData{Purpose: toSignIn, Session: *session})
}

// FinishPasskeySignIn takes the browser's answer. A passkey whose authenticator has made sure of the person, by finger or PIN, is two factors by itself;
// where it has not, a user with one-time codes is asked for one.
func (s *Service) FinishPasskeySignIn(ctx context.Context, ceremony string, response []byte, v Visitor) (Outcome, error) {
	if s.parts.passkeys == nil {
		return Outcome{}, errNoPasskeys()
	}
	_, data, err := s.ceremony(ctx, ceremony, toSignIn)
	if err != nil {
		return Outcome{}, err
	}
	h, verified, err := s.discover(ctx, data, response)
	if err != nil {
		return Outcome{}, err
	}
	device, err := s.device(ctx, v.Device, h.user, true)
	if err != nil {
		return Outcome{}, err
	}
	next := challengeData{Epoch: h.user.Data.Epoch, Method: byPasskey, Device: device}
	if verified || h.user.Data.TOTP == nil {
		return s.complete(ctx, h.user, v, next)
	}
	t, err := s.issue(ctx, kindChallenge, h.user.Tenant, h.user.ID, challengeLife, next)
	if err != nil {
		return Outcome{}, err
	}
	c := &Challenge{Ticket: t, TOTP: true, Recovery: len(h.user.Data.Recovery) > 0}
	out := about(h.user, byPasskey)
	out.Challenge = c
	return out, nil
}

// discover finds out whose passkey signed, and stores that it was used.
func (s *Service) discover(ctx context.Context, data ceremonyData, response []byte) (*holder, bool, error) {
	parsed, err := parseAssertion(response)
	if err != nil {
		return nil, false, errRefused(err)
	}
	var h *holder
	find := func(_, handle []byte) (webauthn.User, error) {
		user, found, err := s.byHandle(ctx, handle)
		if err != nil {
			return nil, err
		}
		if !found || user.Data.Disabled {
			return nil, errors.New("no such user")
		}
		h, err = s.holder(ctx, user)
		return h, err
	}
	_, key, err := s.parts.passkeys.ValidatePasskeyLogin(find, data.Session, parsed)
	if err != nil {
		if fault.KindOf(err) == fault.Unavailable {
			return nil, false, err
		}
		return nil, false, errRefused(err)
	}
	return h, parsed.Response.AuthenticatorData.Flags.HasUserVerified(), s.used(ctx, h, key)
}

// byHandle finds the user that an authenticator names. What cannot be an identifier of ours is not looked up.
func (s *Service) byHandle(ctx context.Context, handle []byte) (store.Object[User], bool, error) {
	for _, c := range handle {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			return store.Object[User]{}, false, nil
		}
	}
	return s.byID(ctx, string(handle))
}

func parseAssertion(response []byte) (*protocol.ParsedCredentialAssertionData, error) {
	if len(response) > maxResponse {
		return nil, errors.New("the response is too long")
	}
	return protocol.ParseCredentialRequestResponseBytes(response)
}

// BeginPasskeyAnswer starts answering a challenge by one of the user's passkeys.
func (s *Service) BeginPasskeyAnswer(ctx context.Context, challenge string) (json.RawMessage, Ticket, error) {
	if s.parts.passkeys == nil {
		return nil, Ticket{}, errNoPasskeys()
	}
	user, p, asked, err := s.challenged(ctx, challenge)
	if err != nil {
		return nil, Ticket{}, err
	}
	if asked.Method == byPasskey {
		return nil, Ticket{}, fault.New(fault.Denied, "a passkey was shown already").WithHint("type a one-time code or a recovery code")
	}
	if err := s.allow(ctx, "passkey-answer:"+p.ID, 2*perChallenge, challengeLife); err != nil {
		return nil, Ticket{}, err
	}
	h, err := s.holder(ctx, user)
	if err != nil {
		return nil, Ticket{}, err
	}
	if len(h.keys) == 0 {
		return nil, Ticket{}, fault.New(fault.Conflict, "there is no passkey")
	}
	options, session, err := s.parts.passkeys.BeginLogin(h, webauthn.WithUserVerification(protocol.VerificationDiscouraged)) // the password was the other factor
	if err != nil {
		return nil, Ticket{}, fmt.Errorf("begin an answer by passkey: %w", err)
	}
	return s.begin(ctx, user.Tenant, user.ID, options, ceremonyData{Purpose: toAnswer, Challenge: p.ID, Session: *session})
}

// CompletePasskey answers a challenge by a passkey.
func (s *Service) CompletePasskey(ctx context.Context, challenge, ceremony string, response []byte, v Visitor) (Outcome, error) {
	if s.parts.passkeys == nil {
		return Outcome{}, errNoPasskeys()
	}
	user, p, asked, err := s.challenged(ctx, challenge)
	if err != nil {
		return about(user, asked.Method), err
	}
	proof, data, err := s.ceremony(ctx, ceremony, toAnswer)
	if err != nil {
		return about(user, asked.Method), err
	}
	if proof.Subject != user.ID || data.Challenge != p.ID {
		return about(user, asked.Method), errCeremony()
	}
	h, err := s.holder(ctx, user)
	if err != nil {
		return about(user, asked.Method), err
	}
	parsed, err := parseAssertion(response)
	if err != nil {
		return about(user, asked.Method), errRefused(err)
	}
	key, err := s.parts.passkeys.ValidateLogin(h, data.Session, parsed)
	if err != nil {
		return about(user, asked.Method), errRefused(err)
	}
	if err := s.used(ctx, h, key); err != nil {
		return about(user, asked.Method), err
	}
	return s.answer(ctx, challenge, byPasskey, user, v, asked)
}

// used stores a passkey's new count of signatures. A count that did not grow means that there are two of the key: it is refused (WebAuthn, 6.1.1),
// and so is one of two uses at the same moment.
func (s *Service) used(ctx context.Context, h *holder, key *webauthn.Credential) error {
	for i, o := range h.objects {
		if o.Name != keyName(key.ID) {
			continue
		}
		if key.Authenticator.CloneWarning {
			return fault.New(fault.Unauthenticated, "this passkey seems to have been copied").WithHint("sign in another way and remove it")
		}
		encoded, err := json.Marshal(key)
		if err != nil {
			return fmt.Errorf("encode a passkey: %w", err)
		}
		o.Data.Credential, o.Data.Used = encoded, s.now()
		h.objects[i], err = passkeys().Update(ctx, s.db, o)
		if err != nil && fault.KindOf(err) == fault.Conflict {
			return errRefused(err)
		}
		return err
	}
	return errCeremony()
}

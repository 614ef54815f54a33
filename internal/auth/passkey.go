package auth

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"time"

	"github.com/go-webauthn/webauthn/protocol"
	"github.com/go-webauthn/webauthn/webauthn"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/store"
)

const (
	ceremonyLife = 5 * time.Minute
	maxPasskeys  = 20
	maxResponse  = 64 << 10 // what a browser sends of a passkey
)

// Passkey is what is stored of a passkey, below its user, under the identifier of the credential as name.
type Passkey struct {
	Label      string          `json:"label"`
	Credential json.RawMessage `json:"credential"` // a webauthn.Credential; raw, because its form is the library's and reads itself
	Used       time.Time       `json:"used,omitzero"`
}

// passkeys is the collection of passkeys.
func passkeys() store.Collection[Passkey] { return store.Of[Passkey]("passkey") }

// PasskeyInfo is what a person sees of a passkey.
type PasskeyInfo struct {
	ID      string
	Label   string
	Created time.Time
	Used    time.Time
}

// What a ceremony is for. The zero value is nothing.
type purpose string

const (
	toRegister purpose = "register"
	toSignIn   purpose = "sign in"
	toAnswer   purpose = "answer" // a challenge
)

// ceremonyData is what is stored with a ceremony. The challenge that the authenticator signs is in Session: it stays here.
type ceremonyData struct {
	Purpose   purpose              `json:"purpose"`
	Challenge string               `json:"challenge,omitempty"` // identifier of the challenge that is answered
	Session   webauthn.SessionData `json:"session"`
}

func errCeremony() error {
	return fault.New(fault.Unauthenticated, "this passkey was not accepted").WithHint("try again")
}

func errNoPasskeys() error {
	return fault.New(fault.Unsupported, "this server has no passkeys").WithHint("reach it by a host name, not by an address")
}

// relyingParty says who we are to authenticators, by the host that people reach us under; an address cannot be one.
func relyingParty(base *url.URL) (*webauthn.WebAuthn, error) {
	if _, err := netip.ParseAddr(base.Hostname()); err == nil {
		return nil, nil
	}
	w, err := webauthn.New(&webauthn.Config{
		RPID: base.Hostname(), RPDisplayName: product, RPOrigins: []string{base.Scheme + "://" + base.Host},
		AttestationPreference: protocol.PreferNoAttestation, // which make of key it is does not matter to us, and is nobody's business
		AuthenticatorSelection: protocol.AuthenticatorSelection{
			ResidentKey: protocol.ResidentKeyRequirementPreferred, UserVerification: protocol.VerificationPreferred,
		},
	})
	if err != nil {
		return nil, fault.New(fault.Invalid, "the base URL cannot be used for passkeys").Because(err)
	}
	return w, nil
}

// holder is a user as the library sees one.
type holder struct {
	user    store.Object[User]
	objects []store.Object[Passkey]
	keys    []webauthn.Credential
}

// WebAuthnID is the user's identifier: random, and no name.
func (h *holder) WebAuthnID() []byte { return []byte(h.user.ID) }

// WebAuthnName is what authenticators list.
func (h *holder) WebAuthnName() string { return h.user.Name }

// WebAuthnDisplayName likewise.
func (h *holder) WebAuthnDisplayName() string {
	if h.user.Data.Name != "" {
		return h.user.Data.Name
	}
	return h.user.Name
}

// WebAuthnCredentials are the user's passkeys.
func (h *holder) WebAuthnCredentials() []webauthn.Credential { return h.keys }

// holder loads a user's passkeys.
func (s *Service) holder(ctx context.Context, user store.Object[User]) (*holder, error) {
	h := &holder{user: user}
	objects, _, err := passkeys().List(ctx, s.db, user.Tenant, store.Filter{Parent: user.ID, Limit: 2 * maxPasskeys})
	if err != nil {
		return nil, err
	}
	for _, o := range objects {
		var key webauthn.Credential
		if err := json.Unmarshal(o.Data.Credential, &key); err != nil {
			return nil, fmt.Errorf("decode passkey %s: %w", o.ID, err)
		}
		h.objects, h.keys = append(h.objects, o), append(h.keys, key)
	}
	return h, nil
}

func (s *Service) countPasskeys(ctx context.Context, user store.Object[User]) (int, error) {
	return passkeys().Count(ctx, s.db, user.Tenant, store.Filter{Parent: user.ID})
}

// begin stores a ceremony and returns what the browser is given.
func (s *Service) begin(ctx context.Context, tenant, subject string, options any, data ceremonyData) (json.RawMessage, Ticket, error) {
	encoded, err := json.Marshal(options)
	if err != nil {
		return nil, Ticket{}, fmt.Errorf("encode the options of a passkey: %w", err)
	}
	t, err := s.issue(ctx, kindCeremony, tenant, subject, ceremonyLife, data)
	return encoded, t, err
}

// ceremony uses a ceremony up, whatever comes of it.
func (s *Service) ceremony(ctx context.Context, text string, want purpose) (store.Proof, ceremonyData, error) {
	p, err := s.use(ctx, kindCeremony, text, errCeremony())
	if err != nil {
		return p, ceremonyData{}, err
	}
	data, err := dataOf[ceremonyData](p)
	if err == nil && data.Purpose != want {
		err = errCeremony()
	}
	return p, data, err
}

// BeginPasskey starts adding a passkey and returns the options for navigator.credentials.create and the ceremony's ticket. It needs the password.
func (s *Service) BeginPasskey(ctx context.Context, p Principal, password string) (json.RawMessage, Ticket, error) {
	if s.parts.passkeys == nil {
		return nil, Ticket{}, errNoPasskeys()
	}
	if err := s.Reauthenticate(ctx, p, password); err != nil {
		return nil, Ticket{}, err
	}
	user, err := s.own(ctx, p)
	if err != nil {
		return nil, Ticket{}, err
	}
	h, err := s.holder(ctx, user)
	if err != nil {
		return nil, Ticket{}, err
	}
	if len(h.keys) >= maxPasskeys {
		return nil, Ticket{}, fault.New(fault.TooMany, "you have %d passkeys", len(h.keys)).WithHint("remove one that you do not use")
	}
	options, session, err := s.parts.passkeys.BeginRegistration(h, webauthn.WithExclusions(webauthn.Credentials(h.keys).CredentialDescriptors()))
	if err != nil {
		return nil, Ticket{}, fmt.Errorf("begin a passkey: %w", err)
	}
	return s.begin(ctx, user.Tenant, user.ID, options, ceremonyData{Purpose: toRegister, Session: *session})
}

// FinishPasskey stores the passkey that the browser answers with, and returns recovery codes where the user has none yet. They are shown once.
func (s *Service) FinishPasskey(ctx context.Context, p Principal, ceremony, label string, response []byte) (PasskeyInfo, []string, error) {
	if s.parts.passkeys == nil {
		return PasskeyInfo{}, nil, errNoPasskeys()
	}
	label, err := parseName(label)
	if err != nil {
		return PasskeyInfo{}, nil, err
	}
	if label == "" {
		label = "Passkey"
	}
	proof, data, err := s.ceremony(ctx, ceremony, toRegister)
	if err != nil {
		return PasskeyInfo{}, nil, err
	}
	if p.Via != ViaSession || proof.Tenant != p.Tenant || proof.Subject != p.User {
		return PasskeyInfo{}, nil, errCeremony()
	}
	user, err := s.own(ctx, p)
	if err != nil {
		return PasskeyInfo{}, nil, err
	}
	key, err := s.register(user, data, response)
	if err != nil {
		return PasskeyInfo{}, nil, errRefused(err)
	}
	return s.addPasskey(ctx, user, label, key)
}

// register checks what an authenticator made.
func (s *Service) register(user store.Object[User], data ceremonyData, response []byte) (*webauthn.Credential, error) {
	if len(response) > maxResponse {
		return nil, errors.New("the response is too long")
	}
	parsed, err := protocol.ParseCredentialCreationResponseBytes(response)
	if err != nil {
		return nil, err
	}
	return s.parts.passkeys.CreateCredential(&holder{user: user}, data.Session, parsed)
}

// errRefused keeps the cause for the log: the library's errors say more in their details.
func errRefused(cause error) error {
	if e, ok := errors.AsType[*protocol.Error](cause); ok && e.DevInfo != "" {
		cause = fmt.Errorf("%w: %s", cause, e.DevInfo)
	}
	return fault.New(fault.Unauthenticated, "this passkey was not accepted").WithHint("try again").Because(cause)
}

func (s *Service) addPasskey(ctx context.Context, user store.Object[User], label string, key *webauthn.Credential) (PasskeyInfo, []string, error) {
	encoded, err := json.Marshal(key)
	if err != nil {
		return PasskeyInfo{}, nil, fmt.Errorf("encode a passkey: %w", err)
	}
	codes, hashes := newRecovery()
	var o store.Object[Passkey]
	err = s.db.Within(ctx, func(tx *store.DB) error {
		in := s.In(tx)
		o, err = passkeys().Insert(ctx, tx, store.Object[Passkey]{Tenant: user.Tenant, Name: keyName(key.ID), Parent: user.ID, Data: Passkey{Label: label, Credential: encoded}})
		if err != nil {
			return err
		}
		if len(user.Data.Recovery) > 0 {
			codes = nil
			return nil
		}
		_, err := in.change(ctx, user, func(u *User) error {
			u.Recovery = hashes
			return nil
		})
		return err
	})
	if err != nil {
		if fault.KindOf(err) == fault.Conflict {
			err = fault.New(fault.Conflict, "this passkey is in use").Because(err)
		}
		return PasskeyInfo{}, nil, err
	}
	return info(o), codes, nil
}

// keyName is unique in a tenant, as a credential's identifier is in the world.
func keyName(id []byte) string { return base64.RawURLEncoding.EncodeToString(id) }

func info(o store.Object[Passkey]) PasskeyInfo {
	return PasskeyInfo{ID: o.ID, Label: o.Data.Label, Created: o.Created, Used: o.Data.Used}
}

// Passkeys lists a person's own passkeys, newest first.
func (s *Service) Passkeys(ctx context.Context, p Principal) ([]PasskeyInfo, error) {
	objects, _, err := passkeys().List(ctx, s.db, p.Tenant, store.Filter{Parent: p.User, Limit: 2 * maxPasskeys})
	if err != nil {
		return nil, err
	}
	list := make([]PasskeyInfo, 0, len(objects))
	for _, o := range objects {
		list = append(list, info(o))
	}
	return list, nil
}

// passkey finds one of a person's own.
func (s *Service) passkey(ctx context.Context, p Principal, id string) (store.Object[Passkey], error) {
	o, err := passkeys().Get(ctx, s.db, p.Tenant, id)
	none := fault.New(fault.NotFound, "there is no such passkey")
	if err == nil && (p.User == "" || o.Parent != p.User) {
		err = none
	}
	return o, or(err, none)
}

// RenamePasskey changes what a person calls a passkey.
func (s *Service) RenamePasskey(ctx context.Context, p Principal, id, label string) error {
	label, err := parseName(label)
	if err != nil {
		return err
	}
	if label == "" {
		return fault.New(fault.Invalid, "the passkey has no name")
	}
	o, err := s.passkey(ctx, p, id)
	if err != nil {
		return err
	}
	o.Data.Label = label
	_, err = passkeys().Update(ctx, s.db, o)
	return err
}

// RemovePasskey removes a passkey. It needs the password, and leaves a way to sign in.
func (s *Service) RemovePasskey(ctx context.Context, p Principal, id, password string) error {
	if err := s.Reauthenticate(ctx, p, password); err != nil {
		return err
	}
	return s.db.Within(ctx, func(tx *store.DB) error {
		in := s.In(tx)
		o, err := in.passkey(ctx, p, id)
		if err != nil {
			return err
		}
		user, err := in.own(ctx, p)
		if err != nil {
			return err
		}
		count, err := in.countPasskeys(ctx, user)
		if err != nil {
			return err
		}
		if count == 1 && user.Data.Password == "" && user.Data.Issuer == "" {
			return fault.New(fault.Conflict, "this passkey is the only way to sign in").WithHint("set a password or add another passkey first")
		}
		if err := passkeys().Delete(ctx, tx, p.Tenant, o.ID, 0); err != nil {
			return err
		}
		if count > 1 || user.Data.TOTP != nil {
			return nil
		}
		_, err = in.change(ctx, user, func(u *User) error {
			u.Recovery = nil // there is nothing left to recover
			return nil
		})
		return err
	})
}

// dropPasskeys removes all passkeys of a user. It is called in a transaction.
func (s *Service) dropPasskeys(ctx context.Context, user store.Object[User]) error {
	objects, _, err := passkeys().List(ctx, s.db, user.Tenant, store.Filter{Parent: user.ID, Limit: 2 * maxPasskeys})
	if err != nil {
		return err
	}
	for _, o := range objects {
		if err := passkeys().Delete(ctx, s.db, user.Tenant, o.ID, 0); err != nil {
			return err
		}
	}
	return nil
}

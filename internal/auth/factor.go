package auth

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cofferdam/cofferdam/internal/auth/totp"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/seal"
	"github.com/cofferdam/cofferdam/internal/secret"
	"github.com/cofferdam/cofferdam/internal/store"
)

const (
	recoveryCodes = 10
	// recoveryLength is in characters of base32: 80 bits, which nobody finds from their SHA-256.
	recoveryLength = 16
	pendingLife    = time.Hour
	fieldTOTP      = "totp"
)

// Enrolment is what a person's authenticator is set up with. It is shown once.
type Enrolment struct {
	secret secret.Bytes
	email  string
}

// Text is the secret as it is typed.
func (e Enrolment) Text() string { return totp.Text(e.secret) }

// URL is the secret as applications read it.
func (e Enrolment) URL() string { return totp.URL(e.secret, product, e.email) }

// SVG draws the URL as a QR code.
func (e Enrolment) SVG() ([]byte, error) { return totp.SVG(e.URL()) }

// product is what authenticators and mails call us.
const product = "Cofferdam"

func errCode() error { return fault.New(fault.Denied, "the code is wrong or was used before") }

// BeginTOTP makes a secret for one-time codes, which counts once ConfirmTOTP has seen a code of it. It needs the password.
func (s *Service) BeginTOTP(ctx context.Context, p Principal, password string) (Enrolment, error) {
	if s.sealer == nil {
		return Enrolment{}, fault.New(fault.Unsupported, "one-time codes are not set up on this server")
	}
	if err := s.Reauthenticate(ctx, p, password); err != nil {
		return Enrolment{}, err
	}
	user, err := s.own(ctx, p)
	if err != nil {
		return Enrolment{}, err
	}
	e := Enrolment{secret: totp.NewSecret(), email: user.Name}
	sealed, err := s.seal(ctx, user, e.secret)
	if err != nil {
		return Enrolment{}, err
	}
	_, err = s.change(ctx, user, func(u *User) error {
		if u.TOTP != nil {
			return fault.New(fault.Conflict, "one-time codes are set up already").WithHint("remove them first")
		}
		u.Pending = sealed
		return nil
	})
	return e, err
}

// ConfirmTOTP turns one-time codes on, given a code from the authenticator, and returns recovery codes where the user has none yet. They are shown once.
func (s *Service) ConfirmTOTP(ctx context.Context, p Principal, code string) ([]string, error) {
	if p.Via != ViaSession {
		return nil, fault.New(fault.Denied, "this cannot be done with a token").WithHint("sign in with a browser")
	}
	user, err := s.own(ctx, p)
	if err != nil {
		return nil, err
	}
	if err := s.allow(ctx, "confirm:"+p.User, perFactor, quarter); err != nil {
		return nil, err
	}
	pending := user.Data.Pending
	if pending == nil || s.now().Sub(pending.Made) > pendingLife {
		return nil, fault.New(fault.Conflict, "no one-time codes are being set up").WithHint("begin again")
	}
	key, err := s.unseal(ctx, user, pending)
	if err != nil {
		return nil, err
	}
	step, ok := totp.Check(key, code, s.now(), 0)
	if !ok {
		return nil, errCode()
	}
	codes, hashes := newRecovery()
	_, err = s.change(ctx, user, func(u *User) error {
		if u.Pending == nil || u.Pending.Record != pending.Record {
			return fault.New(fault.Conflict, "one-time codes are being set up elsewhere").WithHint("begin again")
		}
		u.TOTP, u.Pending, u.Step = pending, nil, step
		if len(u.Recovery) > 0 {
			codes = nil
			return nil
		}
		u.Recovery = hashes
		return nil
	})
	if err != nil {
		return nil, err
	}
	return codes, nil
}

// RemoveTOTP turns one-time codes off. It needs the password.
func (s *Service) RemoveTOTP(ctx context.Context, p Principal, password string) error {
	if err := s.Reauthenticate(ctx, p, password); err != nil {
		return err
	}
	user, err := s.own(ctx, p)
	if err != nil {
		return err
	}
	keys, err := s.countPasskeys(ctx, user)
	if err != nil {
		return err
	}
	_, err = s.change(ctx, user, func(u *User) error {
		if u.TOTP == nil {
			return fault.New(fault.NotFound, "one-time codes are not set up")
		}
		u.TOTP, u.Pending, u.Step = nil, nil, 0
		if keys == 0 {
			u.Recovery = nil // there is nothing left to recover
		}
		return nil
	})
	return err
}

// NewRecoveryCodes replaces the recovery codes. It needs the password.
func (s *Service) NewRecoveryCodes(ctx context.Context, p Principal, password string) ([]string, error) {
	if err := s.Reauthenticate(ctx, p, password); err != nil {
		return nil, err
	}
	user, err := s.own(ctx, p)
	if err != nil {
		return nil, err
	}
	keys, err := s.countPasskeys(ctx, user)
	if err != nil {
		return nil, err
	}
	codes, hashes := newRecovery()
	_, err = s.change(ctx, user, func(u *User) error {
		if u.TOTP == nil && keys == 0 {
			return fault.New(fault.Conflict, "there is no second factor to recover").WithHint("set up one-time codes or a passkey first")
		}
		u.Recovery = hashes
		return nil
	})
	if err != nil {
		return nil, err
	}
	return codes, nil
}

// ResetFactors takes away a user's second factors and password, for an administrator whom the person has convinced, and ends sessions and tokens: what
// is left is the link by which a new password is set.
func (s *Service) ResetFactors(ctx context.Context, tenant, id string) error {
	return s.withUser(ctx, tenant, id, func(in *Service, user store.Object[User]) error {
		if err := in.dropPasskeys(ctx, user); err != nil {
			return err
		}
		_, err := in.renewAll(ctx, user, func(u *User) error {
			u.TOTP, u.Pending, u.Step, u.Recovery, u.Password = nil, nil, 0, nil, ""
			return nil
		})
		return err
	})
}

// spendCode checks a one-time code and stores that its step is used. Of two who show the same code at once one is let in: the other finds the user
// changed, looks again, and the step is used.
func (s *Service) spendCode(ctx context.Context, user store.Object[User], code string) (store.Object[User], error) {
	sealed := user.Data.TOTP
	if sealed == nil {
		return user, errCode()
	}
	key, err := s.unseal(ctx, user, sealed)
	if err != nil {
		return user, err
	}
	defer key.Wipe()
	return s.change(ctx, user, func(u *User) error {
		step, ok := totp.Check(key, code, s.now(), u.Step)
		if !ok || u.TOTP == nil || u.TOTP.Record != sealed.Record {
			return errCode()
		}
		u.Step = step
		return nil
	})
}

// spendRecovery checks a recovery code and removes it.
func (s *Service) spendRecovery(ctx context.Context, user store.Object[User], code string) (store.Object[User], error) {
	hash := hashRecovery(code)
	return s.change(ctx, user, func(u *User) error {
		at := -1
		for i, known := range u.Recovery {
			if subtle.ConstantTimeCompare([]byte(known), []byte(hash)) == 1 {
				at = i
			}
		}
		if at < 0 {
			return errCode()
		}
		u.Recovery = slices.Delete(slices.Clone(u.Recovery), at, at+1)
		return nil
	})
}

func newRecovery() (codes, hashes []string) {
	for range recoveryCodes {
		text := strings.ToLower(rand.Text()[:recoveryLength])
		codes = append(codes, fmt.Sprintf("%s-%s-%s-%s", text[:4], text[4:8], text[8:12], text[12:]))
		hashes = append(hashes, hashRecovery(text))
	}
	return codes, hashes
}

// hashRecovery takes a code as people type it.
func hashRecovery(code string) string {
	sum := sha256.Sum256([]byte(strings.ToLower(strings.NewReplacer("-", "", " ", "").Replace(code))))
	return hex.EncodeToString(sum[:])
}

// place binds what is sealed to its user: copied to another it does not open.
func (x *Sealed) place(user string) seal.Place {
	return seal.Place{Field: fieldTOTP, Version: 1, About: sha256.Sum256([]byte(user))}
}

func (x *Sealed) owner(tenant string) seal.Owner { return seal.Owner{Tenant: tenant, Record: x.Record} }

func (s *Service) seal(ctx context.Context, user store.Object[User], plain secret.Bytes) (*Sealed, error) {
	x := &Sealed{Record: newID(), Made: s.now()}
	err := s.sealer.Use(ctx, func(ring *seal.Keyring) error {
		key, wrapped, err := ring.NewDataKey(x.owner(user.Tenant))
		if err != nil {
			return err
		}
		defer key.Wipe()
		x.Key = wrapped
		x.Box, err = key.Seal(x.place(user.ID), plain)
		return err
	})
	return x, err
}

func (s *Service) unseal(ctx context.Context, user store.Object[User], x *Sealed) (plain secret.Bytes, err error) {
	if s.sealer == nil {
		return plain, fault.New(fault.Unavailable, "one-time codes cannot be checked on this server")
	}
	err = s.sealer.Use(ctx, func(ring *seal.Keyring) error {
		key, err := ring.Unwrap(x.owner(user.Tenant), x.Key)
		if err != nil {
			return err
		}
		defer key.Wipe()
		plain, err = key.Open(x.place(user.ID), x.Box)
		return err
	})
	return plain, err
}

// everyUser calls f with each user of the server.
func (s *Service) everyUser(ctx context.Context, f func(store.Object[User]) error) error {
	for after := ""; ; {
		page, next, err := Users().List(ctx, s.db, store.AnyTenant, store.Filter{Limit: 1000, After: after})
		if err != nil {
			return err
		}
		for _, user := range page {
			if err := f(user); err != nil {
				return err
			}
		}
		if next == "" {
			return nil
		}
		after = next
	}
}

// sealed lists what a user has sealed.
func (u *User) sealed() []*Sealed {
	return slices.DeleteFunc([]*Sealed{u.TOTP, u.Pending}, func(x *Sealed) bool { return x == nil })
}

// KeysInUse counts what is sealed under each key, for seal.Vault.Prune.
func (s *Service) KeysInUse(ctx context.Context) (map[seal.KeyID]int, error) {
	used := map[seal.KeyID]int{}
	err := s.everyUser(ctx, func(user store.Object[User]) error {
		for _, x := range user.Data.sealed() {
			used[x.Key.Key]++
		}
		return nil
	})
	return used, err
}

// Rewrap puts what is sealed under older keys under the current one, and says how much there was.
func (s *Service) Rewrap(ctx context.Context, ring *seal.Keyring) (done int, err error) {
	err = s.everyUser(ctx, func(user store.Object[User]) error {
		if !slices.ContainsFunc(user.Data.sealed(), func(x *Sealed) bool { return x.Key.Key != ring.Current() }) {
			return nil
		}
		_, err := s.change(ctx, user, func(u *User) error {
			for _, x := range u.sealed() {
				wrapped, err := ring.Rewrap(x.owner(user.Tenant), x.Key)
				if err != nil {
					return err
				}
				x.Key = wrapped
			}
			return nil
		})
		if err == nil {
			done++
		}
		return err
	})
	return done, err
}

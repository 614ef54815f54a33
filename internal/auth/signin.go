package auth

import (
	"context"
	"time"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/store"
)

// What a person can show.
const (
	byPassword = "password"
	byPasskey  = "passkey"
	byCode     = "code"
	byRecovery = "recovery code"
	byOIDC     = "oidc:"
)

// How often may be tried. A person mistypes a handful of times; at these rates a password that is not among the very commonest, which are refused
// when it is chosen, is not guessed. See the package comment for why the owner is never the one who is shut out.
const (
	quarter       = 15 * time.Minute
	day           = 24 * time.Hour
	perNetwork    = 60  // in a quarter of an hour: an office behind one address
	perPair       = 10  // in a quarter of an hour, from one network for one email
	perStrangers  = 100 // in a day, for one email from everywhere without a device cookie
	perDevice     = 10  // in a quarter of an hour
	perChallenge  = 5   // codes, before the password is asked for again
	perFactor     = 10  // codes in an hour for one user
	perFactorDay  = 50  // at three valid codes in a million at a time, who knows the password needs decades
	challengeLife = 5 * time.Minute
)

// Outcome is how a sign-in stands: Session is set, or Challenge. With an error it says whose it would have been as far as that is known, for the record.
type Outcome struct {
	Tenant    string // whose it is, for the record
	User      string
	Email     string
	Method    string
	Principal Principal // where Session is set
	Session   *Ticket
	Challenge *Challenge
	Device    *Ticket // set as cookie with the session, where the browser had none
}

// Challenge asks for the second factor.
type Challenge struct {
	Ticket
	TOTP     bool // a one-time code will do, or a recovery code
	Passkey  bool
	Recovery bool // there are recovery codes left
}

// challengeData is what is stored with a challenge.
type challengeData struct {
	Epoch  int64  `json:"epoch"`
	Method string `json:"method"`
	Device string `json:"device,omitempty"` // identifier of the device cookie that the browser had
	Link   *link  `json:"link,omitempty"`   // what the sign-in connects once it is complete
}

// link is a person at a sign-in service.
type link struct {
	Issuer  string `json:"issuer"`
	Subject string `json:"subject"`
}

// about is an outcome that is nothing yet.
func about(user store.Object[User], method string) Outcome {
	return Outcome{Tenant: user.Tenant, User: user.ID, Email: user.Name, Method: method}
}

// errWrong is the same for an unknown address, a wrong password, a user without one, and a disabled one.
func errWrong() error {
	return fault.New(fault.Unauthenticated, "the email address or the password is wrong")
}

func errChallenge() error {
	return fault.New(fault.Unauthenticated, "this sign-in has expired").WithHint("begin again with your password")
}

// SignIn takes an email address and a password. The outcome is a session, or a challenge where the user has a second factor.
func (s *Service) SignIn(ctx context.Context, email, password string, v Visitor) (Outcome, error) {
	address, err := ParseEmail(email)
	if err != nil {
		// Nobody can have it, as everybody can see: no time need be spent.
		return Outcome{}, errWrong()
	}
	user, found, err := s.byEmail(ctx, address)
	out := about(user, byPassword)
	out.Email = address
	if err != nil {
		return out, err
	}
	device, err := s.device(ctx, v.Device, user, found)
	if err != nil {
		return out, err
	}
	if err := s.admit(ctx, v, address, device); err != nil {
		return out, err
	}
	hash := ""
	if found && !user.Data.Disabled {
		hash = user.Data.Password
	}
	match, stale, err := s.hasher.Verify(ctx, hash, password)
	if err != nil {
		return out, err
	}
	if !match {
		return out, errWrong()
	}
	if stale {
		if user, err = s.rehash(ctx, user, password); err != nil {
			return out, err
		}
	}
	return s.proceed(ctx, user, v, challengeData{Method: byPassword, Device: device})
}

// device returns the identifier of a device cookie that belongs to the user, or "".
func (s *Service) device(ctx context.Context, text string, user store.Object[User], found bool) (string, error) {
	p, err := s.proof(ctx, kindDevice, text, fault.New(fault.NotFound, "no device"))
	if err != nil {
		if fault.KindOf(err) == fault.NotFound {
			return "", nil
		}
		return "", err
	}
	data, err := dataOf[deviceData](p)
	if err != nil || !found || p.Tenant != user.Tenant || p.Subject != user.ID || data.Epoch != user.Data.Epoch {
		return "", err
	}
	return p.ID, nil
}

// admit counts an attempt to sign in by password before anything is computed for it.
func (s *Service) admit(ctx context.Context, v Visitor, email, device string) error {
	if device != "" {
		// Nobody else has this count, so nobody else can use it up.
		return s.allow(ctx, "device:"+device, perDevice, quarter)
	}
	if err := s.allow(ctx, "network:"+v.network(), perNetwork, quarter); err != nil {
		return err
	}
	if err := s.allow(ctx, "pair:"+v.network()+" "+email, perPair, quarter); err != nil {
		return err
	}
	err := s.allow(ctx, "strangers:"+email, perStrangers, day)
	if fault.KindOf(err) == fault.TooMany {
		// Said whether there is such a user or not.
		return fault.New(fault.TooMany, "somebody tries to guess the password of this address").
			WithHint("sign in from a browser that you used before, with a passkey, or reset the password by mail").Because(err)
	}
	return err
}

// rehash stores the password under today's parameters. If somebody else changed the user meanwhile, the next sign-in will do it.
func (s *Service) rehash(ctx context.Context, user store.Object[User], password string) (store.Object[User], error) {
	fresh, err := s.hasher.Hash(ctx, password)
	if err != nil {
		return user, err
	}
	changed := user
	changed.Data.Password = fresh
	changed, err = Users().Update(ctx, s.db, changed)
	if err != nil && fault.KindOf(err) == fault.Conflict {
		return user, nil
	}
	return changed, err
}

// proceed goes on after a first factor: to the second where the user has one.
func (s *Service) proceed(ctx context.Context, user store.Object[User], v Visitor, data challengeData) (Outcome, error) {
	keys, err := s.countPasskeys(ctx, user)
	if err != nil {
		return Outcome{}, err
	}
	if user.Data.TOTP == nil && keys == 0 {
		return s.complete(ctx, user, v, data)
	}
	data.Epoch = user.Data.Epoch
	t, err := s.issue(ctx, kindChallenge, user.Tenant, user.ID, challengeLife, data)
	if err != nil {
		return Outcome{}, err
	}
	c := &Challenge{Ticket: t, TOTP: user.Data.TOTP != nil, Passkey: keys > 0 && s.parts.passkeys != nil, Recovery: len(user.Data.Recovery) > 0}
	out := about(user, data.Method)
	out.Challenge = c
	return out, nil
}

// complete ends a sign-in: everything that had to be shown was.
func (s *Service) complete(ctx context.Context, user store.Object[User], v Visitor, data challengeData) (Outcome, error) {
	if data.Link != nil {
		var err error
		if user, err = s.connect(ctx, user, *data.Link); err != nil {
			return Outcome{}, err
		}
	}
	return s.open(ctx, user, data.Method, v, data.Device)
}

// challenged finds the user of a challenge, without using it up: a person may mistype a code.
func (s *Service) challenged(ctx context.Context, challenge string) (store.Object[User], store.Proof, challengeData, error) {
	p, err := s.proof(ctx, kindChallenge, challenge, errChallenge())
	if err != nil {
		return store.Object[User]{}, p, challengeData{}, err
	}
	data, err := dataOf[challengeData](p)
	if err != nil {
		return store.Object[User]{}, p, data, err
	}
	user, err := s.alive(ctx, p, data.Epoch, errChallenge())
	return user, p, data, err
}

// answer completes a challenge, of two at once one, after the second factor was shown.
func (s *Service) answer(ctx context.Context, challenge, second string, user store.Object[User], v Visitor, data challengeData) (Outcome, error) {
	if _, err := s.use(ctx, kindChallenge, challenge, errChallenge()); err != nil {
		return about(user, data.Method), err
	}
	data.Method += " and " + second
	return s.complete(ctx, user, v, data)
}

// admitCode counts a code that was typed. Who gets here knows the password; an attacker who does cannot use up the count of the owner's own browsers.
func (s *Service) admitCode(ctx context.Context, p store.Proof, data challengeData, challenge string) error {
	err := s.allow(ctx, "challenge:"+p.ID, perChallenge, challengeLife)
	if fault.KindOf(err) == fault.TooMany {
		if _, err := s.use(ctx, kindChallenge, challenge, nil); err != nil {
			return err
		}
		return errChallenge()
	}
	if err != nil {
		return err
	}
	who := "user:" + p.Subject
	if data.Device != "" {
		who = "device:" + data.Device
	}
	if err := s.allow(ctx, "code:"+who, perFactor, time.Hour); err != nil {
		return err
	}
	return s.allow(ctx, "codes:"+who, perFactorDay, day)
}

// CompleteTOTP answers a challenge with a one-time code.
func (s *Service) CompleteTOTP(ctx context.Context, challenge, code string, v Visitor) (Outcome, error) {
	return s.completeByCode(ctx, challenge, code, byCode, s.spendCode, v)
}

// CompleteRecovery answers a challenge with a recovery code, which is used up.
func (s *Service) CompleteRecovery(ctx context.Context, challenge, code string, v Visitor) (Outcome, error) {
	return s.completeByCode(ctx, challenge, code, byRecovery, s.spendRecovery, v)
}

// spender checks a code of a user and stores that it is used.
type spender func(ctx context.Context, user store.Object[User], code string) (store.Object[User], error)

func (s *Service) completeByCode(ctx context.Context, challenge, code, by string, spend spender, v Visitor) (Outcome, error) {
	user, p, data, err := s.challenged(ctx, challenge)
	if err != nil {
		return about(user, data.Method), err
	}
	if err := s.admitCode(ctx, p, data, challenge); err != nil {
		return about(user, data.Method), err
	}
	if user, err = spend(ctx, user, code); err != nil {
		return about(user, data.Method), err
	}
	return s.answer(ctx, challenge, by, user, v, data)
}

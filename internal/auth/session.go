package auth

import (
	"context"
	"slices"
	"time"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/store"
)

// How long a session lasts: so long without use, and so long in all (NIST SP 800-63B, 2.2.3 allows 30 days; a browser that approves what untrusted
// programs may do is asked more often).
const (
	SessionIdle = 12 * time.Hour
	SessionLife = 7 * 24 * time.Hour
	deviceLife  = 90 * 24 * time.Hour
	// touchEvery keeps a busy page from writing with each request.
	touchEvery = time.Minute
	// seenEvery is how precisely we remember when a person was last here.
	seenEvery = time.Hour
	// freshness is how long after signing in a person without a password may change what protects the account.
	freshness = 10 * time.Minute
)

// sessionData is what is stored with a session.
type sessionData struct {
	Epoch   int64  `json:"epoch"`
	Method  string `json:"method"`
	Address string `json:"address,omitempty"`
	Agent   string `json:"agent,omitempty"`
}

// deviceData is what is stored with a device cookie.
type deviceData struct {
	Epoch int64 `json:"epoch"`
}

func errSignIn() error {
	return fault.New(fault.Unauthenticated, "you are not signed in").WithHint("sign in")
}

// Session says who a session's cookie belongs to, and keeps the session alive.
func (s *Service) Session(ctx context.Context, cookie string) (Principal, error) {
	p, err := s.proof(ctx, kindSession, cookie, errSignIn())
	if err != nil {
		return Principal{}, err
	}
	data, err := dataOf[sessionData](p)
	if err != nil {
		return Principal{}, err
	}
	user, err := s.alive(ctx, p, data.Epoch, errSignIn())
	if err != nil {
		return Principal{}, err
	}
	now := s.now()
	if now.Sub(p.Seen) >= touchEvery {
		end := p.Created.Add(SessionLife)
		if idle := now.Add(SessionIdle); idle.Before(end) {
			end = idle
		}
		// NotFound: it was ended this moment.
		if err := s.db.TouchProof(ctx, p.Hash, now, end); err != nil {
			return Principal{}, or(err, errSignIn())
		}
	}
	if user, err = s.seen(ctx, user, now); err != nil {
		return Principal{}, err
	}
	who := principal(user, ViaSession)
	who.SessionID = p.ID
	return who, nil
}

func principal(user store.Object[User], via Via) Principal {
	return Principal{User: user.ID, Tenant: user.Tenant, Email: user.Name, Name: user.Data.Name, Role: user.Data.Role, Operator: user.Data.Operator, Via: via}
}

// seen remembers now and then that a person was here. Where somebody changes the user at the same time that matters more.
func (s *Service) seen(ctx context.Context, user store.Object[User], now time.Time) (store.Object[User], error) {
	if now.Sub(user.Data.LastSeen) < seenEvery {
		return user, nil
	}
	changed := user
	changed.Data.LastSeen = now
	changed, err := Users().Update(ctx, s.db, changed)
	if err != nil && fault.KindOf(err) == fault.Conflict {
		return user, nil
	}
	return changed, err
}

// open makes a session. Each sign-in gets a new one, whatever the browser had before: a session that somebody planted is never raised to one that is
// signed in.
func (s *Service) open(ctx context.Context, user store.Object[User], method string, v Visitor, device string) (Outcome, error) {
	now := s.now()
	out := about(user, method)
	var session, cookie Ticket
	err := s.db.Within(ctx, func(tx *store.DB) error {
		in := s.In(tx)
		var err error
		if session, err = in.issue(ctx, kindSession, user.Tenant, user.ID, SessionIdle, sessionData{Epoch: user.Data.Epoch, Method: method, Address: v.text(), Agent: inert(v.Agent, maxAgent)}); err != nil {
			return err
		}
		if device == "" {
			cookie, err = in.issue(ctx, kindDevice, user.Tenant, user.ID, deviceLife, deviceData{Epoch: user.Data.Epoch})
		}
		return err
	})
	if err != nil {
		return Outcome{}, err
	}
	if user, err = s.seen(ctx, user, now); err != nil {
		return Outcome{}, err
	}
	out.Session = &session
	if device == "" {
		out.Device = &cookie
	}
	out.Principal = principal(user, ViaSession)
	out.Principal.SessionID = session.ID
	return out, nil
}

func (v Visitor) text() string {
	if !v.Address.IsValid() {
		return ""
	}
	return v.Address.Unmap().String()
}

// SignOut ends the session of a cookie. That there is none is no error: the person is signed out.
func (s *Service) SignOut(ctx context.Context, cookie string) error {
	_, err := s.use(ctx, kindSession, cookie, nil)
	return err
}

// Sessions lists a person's own sessions, newest first.
func (s *Service) Sessions(ctx context.Context, p Principal) ([]api.Session, error) {
	proofs, err := s.db.Proofs(ctx, kindSession, p.Tenant, p.User, s.now())
	if err != nil {
		return nil, err
	}
	user, err := s.own(ctx, p)
	if err != nil {
		return nil, err
	}
	list := []api.Session{}
	for _, proof := range proofs {
		data, err := dataOf[sessionData](proof)
		if err != nil {
			return nil, err
		}
		if data.Epoch != user.Data.Epoch {
			continue // void
		}
		list = append(list, api.Session{ID: proof.ID, Current: proof.ID == p.SessionID, Created: proof.Created, Seen: proof.Seen, Expires: proof.Expires, Address: data.Address, Agent: data.Agent, Method: data.Method})
	}
	return list, nil
}

// EndSession ends one of a person's own sessions.
func (s *Service) EndSession(ctx context.Context, p Principal, id string) error {
	return or(s.db.DropProof(ctx, kindSession, p.Tenant, p.User, id), fault.New(fault.NotFound, "there is no such session"))
}

// EndOtherSessions ends all of a person's own sessions but the one that asks, and says how many.
func (s *Service) EndOtherSessions(ctx context.Context, p Principal) (int, error) {
	mine, err := s.current(ctx, p)
	if err != nil {
		return 0, err
	}
	return s.db.DropProofs(ctx, kindSession, p.Tenant, p.User, mine.Hash)
}

// current finds the session that asks.
func (s *Service) current(ctx context.Context, p Principal) (store.Proof, error) {
	if p.Via != ViaSession || p.SessionID == "" {
		return store.Proof{}, fault.New(fault.Denied, "this cannot be done with a token").WithHint("sign in with a browser")
	}
	proofs, err := s.db.Proofs(ctx, kindSession, p.Tenant, p.User, s.now())
	if err != nil {
		return store.Proof{}, err
	}
	for _, proof := range proofs {
		if proof.ID == p.SessionID {
			return proof, nil
		}
	}
	return store.Proof{}, errSignIn()
}

// EndSessionsOf ends all sessions and tokens of a user, and forgets the browsers.
func (s *Service) EndSessionsOf(ctx context.Context, tenant, id string) error {
	user, err := Users().Get(ctx, s.db, tenant, id)
	if err != nil {
		return err
	}
	return s.db.Within(ctx, func(tx *store.DB) error {
		_, err := s.In(tx).renewAll(ctx, user, func(*User) error { return nil })
		return err
	})
}

// renewAll changes a user so that nothing that was proved before counts any more. It is called in a transaction.
func (s *Service) renewAll(ctx context.Context, user store.Object[User], edit func(*User) error) (store.Object[User], error) {
	user, err := s.renew(ctx, user, func(u *User) error {
		u.TokenEpoch++
		return edit(u)
	})
	if err != nil {
		return user, err
	}
	_, err = s.db.DropProofs(ctx, kindToken, user.Tenant, user.ID, [32]byte{})
	return user, err
}

// renew is renewAll but for tokens of programs, which whoever changes the own password goes on with. It is called in a transaction.
func (s *Service) renew(ctx context.Context, user store.Object[User], edit func(*User) error) (store.Object[User], error) {
	user, err := s.change(ctx, user, func(u *User) error {
		u.Epoch++
		return edit(u)
	})
	if err != nil {
		return user, err
	}
	return user, s.drop(ctx, user.Tenant, user.ID, kindToken) // tokens are shown in the account's list, and ended there
}

// Reauthenticate makes sure that it is the person, not somebody at a browser left open: by the password, or, where there is none, by having signed in
// just now. It guards what changes how the account is protected.
func (s *Service) Reauthenticate(ctx context.Context, p Principal, password string) error {
	session, err := s.current(ctx, p)
	if err != nil {
		return err
	}
	user, err := s.own(ctx, p)
	if err != nil {
		return err
	}
	if user.Data.Password == "" {
		if s.now().Sub(session.Created) > freshness {
			return fault.New(fault.Denied, "you signed in too long ago for this").WithHint("sign out, sign in again and do it within %s", inWords(freshness))
		}
		return nil
	}
	if err := s.allow(ctx, "reauthenticate:"+p.User, 10, 15*time.Minute); err != nil {
		return err
	}
	match, _, err := s.hasher.Verify(ctx, user.Data.Password, password)
	if err != nil {
		return err
	}
	if !match {
		return fault.New(fault.Denied, "the password is wrong")
	}
	return nil
}

// drop removes a user's proofs, but those of some kinds. It is called in a transaction.
func (s *Service) drop(ctx context.Context, tenant, user string, but ...string) error {
	for _, kind := range kinds() {
		if slices.Contains(but, kind) {
			continue
		}
		if _, err := s.db.DropProofs(ctx, kind, tenant, user, [32]byte{}); err != nil {
			return err
		}
	}
	return nil
}

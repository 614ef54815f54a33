package auth

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/auth/mail"
	"github.com/cofferdam/cofferdam/internal/auth/password"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/store"
)

// Where the links lead. The token is in the query; the pages there send no referrer.
const (
	ResetPath      = "/reset"
	InvitationPath = "/invitation"
	SetupPath      = "/setup"
)

const (
	resetLife      = time.Hour
	invitationLife = 7 * 24 * time.Hour
	perReset       = 3  // mails in an hour to one address
	perResetPlace  = 20 // requests in an hour from one network
	// maxLetters is how many mails wait; beyond it requests are refused, whoever they are for.
	maxLetters    = 100
	letterTries   = 3
	letterPause   = 5 * time.Second
	letterTimeout = time.Minute
)

// letter is something to be written to somebody, if there is such a person.
type letter struct {
	reset   string       // the address for which a reset was asked
	message mail.Message // or what is to be sent
}

// linkData is what is stored with a link.
type linkData struct {
	Epoch int64 `json:"epoch"`
}

func errLink() error {
	return fault.New(fault.NotFound, "this link is not valid any more").WithHint("ask for a new one")
}

func errAttr(err error) slog.Attr { return slog.String("error", err.Error()) }

// Run sends mail until ctx ends. What is still waiting then is lost: links can be asked for again.
func (s *Service) Run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case l := <-s.letters:
			if err := s.write(ctx, l); err != nil && ctx.Err() == nil {
				s.log.LogAttrs(ctx, slog.LevelError, "mail was not sent", errAttr(err))
			}
		}
	}
}

// write finds out whom a letter is for and sends it.
func (s *Service) write(ctx context.Context, l letter) error {
	if l.reset != "" {
		m, ok, err := s.resetMessage(ctx, l.reset)
		if err != nil || !ok {
			return err
		}
		l.message = m
	}
	for try := 1; ; try++ {
		one, cancel := context.WithTimeout(ctx, letterTimeout)
		err := s.mailer.Send(one, l.message)
		cancel()
		if err == nil || try == letterTries || fault.KindOf(err) != fault.Unavailable {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(letterPause):
		}
	}
}

// post queues a letter. It does not wait.
func (s *Service) post(l letter) error {
	select {
	case s.letters <- l:
		return nil
	default:
		return fault.New(fault.TooMany, "too much mail is waiting to be sent").WithHint("try again in a minute")
	}
}

// RequestReset sends a link by which a password is set to an email address, if it is somebody's. Nothing that the caller sees depends on whether it
// is, not even the time: everything that does happens later, in Run.
func (s *Service) RequestReset(ctx context.Context, email string, v Visitor) error {
	if s.mailer == nil {
		return fault.New(fault.Unsupported, "this server sends no mail").WithHint("ask an administrator for a link")
	}
	address, err := ParseEmail(email)
	if err != nil {
		return err
	}
	if err := s.allow(ctx, "reset-network:"+v.network(), perResetPlace, time.Hour); err != nil {
		return err
	}
	// Beyond the count for the address nothing is sent and nothing said. The owner is not shut out by that: the mails that used it up are in the
	// owner's box, and their links are good.
	err = s.allow(ctx, "reset:"+address, perReset, time.Hour)
	if fault.KindOf(err) == fault.TooMany {
		return nil
	}
	if err != nil {
		return err
	}
	return s.post(letter{reset: address})
}

// resetMessage makes the link for an address, if it is a user's who may sign in.
func (s *Service) resetMessage(ctx context.Context, address string) (mail.Message, bool, error) {
	user, found, err := s.byEmail(ctx, address)
	if err != nil || !found || user.Data.Disabled {
		return mail.Message{}, false, err
	}
	t, err := s.issue(ctx, kindReset, user.Tenant, user.ID, resetLife, linkData{Epoch: user.Data.Epoch})
	if err != nil {
		return mail.Message{}, false, err
	}
	return mail.Message{To: user.Name, Subject: "Set a new password for " + product, Body: fmt.Sprintf(
		"Somebody, presumably you, asked to set a new password for %s at %s.\n\nIt can be set within an hour at\n\n%s\n\nIf it was not you, do nothing: your password stays as it is.\n",
		user.Name, s.base, s.link(ResetPath, t))}, true, nil
}

// invite makes the link by which a user sets a password. It is called in a transaction; mailInvitation after it.
func (s *Service) invite(ctx context.Context, user store.Object[User]) (api.Invitation, error) {
	t, err := s.issue(ctx, kindInvitation, user.Tenant, user.ID, invitationLife, linkData{Epoch: user.Data.Epoch})
	if err != nil {
		return api.Invitation{}, err
	}
	described, err := s.Describe(ctx, user)
	if err != nil {
		return api.Invitation{}, err
	}
	return api.Invitation{User: described[0], Link: s.link(InvitationPath, t), Expires: t.Expires}, nil
}

// mailInvitation sends an invitation where there is mail, and says whether it is on its way. That the queue is full is no reason to fail: the administrator
// has the link then.
func (s *Service) mailInvitation(ctx context.Context, i api.Invitation) bool {
	if s.mailer == nil {
		return false
	}
	m := mail.Message{To: i.User.Email, Subject: "Your account at " + product, Body: fmt.Sprintf(
		"You have an account at %s.\n\nSet your password within seven days at\n\n%s\n", s.base, i.Link)}
	if err := s.post(letter{message: m}); err != nil {
		s.log.LogAttrs(ctx, slog.LevelError, "an invitation was not mailed", errAttr(err))
		return false
	}
	return true
}

// ResetOwner returns the email address that a reset's link is for, to show before it is used.
func (s *Service) ResetOwner(ctx context.Context, token string) (string, error) {
	user, _, err := s.linked(ctx, kindReset, token)
	return user.Name, err
}

// InvitationOwner returns the email address that an invitation is for.
func (s *Service) InvitationOwner(ctx context.Context, token string) (string, error) {
	user, _, err := s.linked(ctx, kindInvitation, token)
	return user.Name, err
}

func (s *Service) linked(ctx context.Context, kind, token string) (store.Object[User], linkData, error) {
	p, err := s.proof(ctx, kind, token, errLink())
	if err != nil {
		return store.Object[User]{}, linkData{}, err
	}
	data, err := dataOf[linkData](p)
	if err != nil {
		return store.Object[User]{}, data, err
	}
	user, err := s.alive(ctx, p, data.Epoch, errLink())
	if err != nil {
		return store.Object[User]{}, data, err
	}
	return user, data, nil
}

// Reset sets a password by a reset's link. All sessions and tokens of the user end; the browser gets a device cookie, and signs in like any other.
func (s *Service) Reset(ctx context.Context, token, newPassword string) (Outcome, error) {
	return s.setPassword(ctx, kindReset, token, newPassword)
}

// AcceptInvitation sets a password by an invitation.
func (s *Service) AcceptInvitation(ctx context.Context, token, newPassword string) (Outcome, error) {
	return s.setPassword(ctx, kindInvitation, token, newPassword)
}

func (s *Service) setPassword(ctx context.Context, kind, token, newPassword string) (Outcome, error) {
	user, data, err := s.linked(ctx, kind, token)
	if err != nil {
		return Outcome{}, err
	}
	// Before the link is used up: a person may choose badly at first.
	if err := password.Check(newPassword, user.Name, user.Data.Name); err != nil {
		return Outcome{}, err
	}
	hash, err := s.hasher.Hash(ctx, newPassword)
	if err != nil {
		return Outcome{}, err
	}
	var device Ticket
	err = s.db.Within(ctx, func(tx *store.DB) error {
		in := s.In(tx)
		if _, err := in.use(ctx, kind, token, errLink()); err != nil {
			return err
		}
		changed, err := in.renewAll(ctx, user, func(u *User) error {
			if u.Epoch != data.Epoch+1 || u.Disabled {
				return errLink() // another link was used at the same time
			}
			u.Password = hash
			return nil
		})
		if err != nil {
			return err
		}
		device, err = in.issue(ctx, kindDevice, user.Tenant, user.ID, deviceLife, deviceData{Epoch: changed.Data.Epoch})
		return err
	})
	if err != nil {
		return Outcome{}, err
	}
	return Outcome{Tenant: user.Tenant, User: user.ID, Email: user.Name, Method: kind, Device: &device}, nil
}

// ChangePassword sets a person's own password. Every session of the person ends; the browser that asked gets a new one.
func (s *Service) ChangePassword(ctx context.Context, p Principal, old, next string, v Visitor) (Outcome, error) {
	if err := s.Reauthenticate(ctx, p, old); err != nil {
		return Outcome{}, err
	}
	user, err := s.own(ctx, p)
	if err != nil {
		return Outcome{}, err
	}
	if err := password.Check(next, user.Name, user.Data.Name); err != nil {
		return Outcome{}, err
	}
	hash, err := s.hasher.Hash(ctx, next)
	if err != nil {
		return Outcome{}, err
	}
	epoch := user.Data.Epoch
	err = s.db.Within(ctx, func(tx *store.DB) error {
		user, err = s.In(tx).renew(ctx, user, func(u *User) error {
			if u.Epoch != epoch+1 {
				return errSignIn()
			}
			u.Password = hash
			return nil
		})
		return err
	})
	if err != nil {
		return Outcome{}, err
	}
	return s.open(ctx, user, byPassword, v, "")
}

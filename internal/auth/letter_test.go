package auth

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/auth/mail"
	"github.com/cofferdam/cofferdam/internal/fault"
)

// deliver runs the mail queue until it is empty, and returns the one mail that it sent.
func (f *fixture) deliver() mail.Message {
	f.t.Helper()
	sent := f.deliverAll()
	if len(sent) != 1 {
		f.t.Fatalf("%d mails", len(sent))
	}
	return sent[0]
}

func (f *fixture) deliverAll() []mail.Message {
	f.t.Helper()
	for len(f.letters) > 0 {
		if err := f.write(f.t.Context(), <-f.letters); err != nil {
			f.t.Fatal(err)
		}
	}
	var sent []mail.Message
	for len(f.mails.messages) > 0 {
		sent = append(sent, <-f.mails.messages)
	}
	return sent
}

func TestReset(t *testing.T) { testReset(t) }

func testReset(t *testing.T, with ...func(*Options)) {
	f := start(t, with...)
	session := f.signIn(adminEmail, goodPass)
	if err := f.RequestReset(t.Context(), "Ada@Example.com", home()); err != nil {
		t.Fatal(err)
	}
	m := f.deliver()
	if m.To != adminEmail || !strings.Contains(m.Body, "https://cofferdam.example.com/reset?token=") {
		t.Errorf("%+v", m)
	}
	token := tokenIn(t, m.Body)
	if email, err := f.ResetOwner(t.Context(), token); email != adminEmail || err != nil {
		t.Error(email, err)
	}
	_, err := f.InvitationOwner(t.Context(), token)
	wants(t, "a reset as an invitation", err, fault.NotFound)
	_, err = f.Reset(t.Context(), token, "cofferdam1")
	wants(t, "a bad choice", err, fault.Invalid)
	out, err := f.Reset(t.Context(), token, "quite another horse")
	if err != nil || out.Session != nil || out.Device == nil {
		t.Fatalf("%+v, %v", out, err)
	}
	_, err = f.Reset(t.Context(), token, "a third good horse")
	wants(t, "used", err, fault.NotFound)
	_, err = f.Session(t.Context(), session.Session.Text())
	wants(t, "a session from before", err, fault.Unauthenticated)
	f.signIn(adminEmail, "quite another horse")
}

func TestResetAlike(t *testing.T) {
	f := start(t)
	u := f.join("bob@example.com", api.Viewer)
	disabled := true
	if _, err := f.ChangeUser(t.Context(), f.admin.Tenant, u.ID, 0, api.UserChange{Disabled: &disabled}); err != nil {
		t.Fatal(err)
	}
	f.deliverAll()
	// Nothing is looked up while the caller waits: with the store gone everybody is answered as ever.
	for n, email := range []string{adminEmail, "nobody@example.com", "bob@example.com"} {
		if err := f.RequestReset(t.Context(), email, afar(n)); err != nil {
			t.Errorf("%s: %v", email, err)
		}
	}
	if sent := f.deliverAll(); len(sent) != 1 || sent[0].To != adminEmail {
		t.Errorf("%+v", sent)
	}
	wants(t, "no address", f.RequestReset(t.Context(), "nobody", home()), fault.Invalid)
	for n := range 3 * perReset { // beyond the count nobody hears anything else
		if err := f.RequestReset(t.Context(), "carol@example.com", afar(100+n)); err != nil {
			t.Error(err)
		}
	}
	if len(f.letters) != perReset {
		t.Errorf("%d letters", len(f.letters))
	}
	for range perResetPlace {
		if err := f.RequestReset(t.Context(), "carol@example.com", afar(1000)); err != nil {
			t.Error(err)
		}
	}
	wants(t, "one network asks for many", f.RequestReset(t.Context(), "dave@example.com", afar(1000)), fault.TooMany)
}

func TestResetAskedAgain(t *testing.T) {
	f := start(t)
	for range 2 {
		if err := f.RequestReset(t.Context(), adminEmail, home()); err != nil {
			t.Fatal(err)
		}
	}
	sent := f.deliverAll()
	first, second := tokenIn(t, sent[0].Body), tokenIn(t, sent[1].Body)
	// A stranger who asks again does not void the owner's link.
	if _, err := f.Reset(t.Context(), first, "quite another horse"); err != nil {
		t.Error(err)
	}
	_, err := f.Reset(t.Context(), second, "a third good horse")
	wants(t, "the other link, after a reset", err, fault.NotFound)
	if err := f.RequestReset(t.Context(), adminEmail, home()); err != nil {
		t.Fatal(err)
	}
	token := tokenIn(t, f.deliver().Body)
	f.advance(resetLife)
	_, err = f.Reset(t.Context(), token, "a third good horse")
	wants(t, "an hour later", err, fault.NotFound)
}

func TestResetRace(t *testing.T) { testResetRace(t) }

func testResetRace(t *testing.T, with ...func(*Options)) {
	f := start(t, with...)
	for range 2 {
		if err := f.RequestReset(t.Context(), adminEmail, home()); err != nil {
			t.Fatal(err)
		}
	}
	sent := f.deliverAll()
	var n atomic.Int64
	won := race(t, 20, func() error {
		_, err := f.Reset(t.Context(), tokenIn(t, sent[n.Add(1)%2].Body), "quite another horse")
		return err
	}, fault.NotFound)
	if won != 1 {
		t.Errorf("%d of 20 used two links", won)
	}
}

func TestInvitation(t *testing.T) { testInvitation(t) }

func testInvitation(t *testing.T, with ...func(*Options)) {
	f := start(t, with...)
	i, err := f.AddUser(t.Context(), f.admin.Tenant, api.NewUser{Email: "Bob@Example.com", Name: "Bob", Role: api.Developer})
	if err != nil || i.User.Email != "bob@example.com" || i.User.Password || !strings.HasPrefix(i.Link, "https://cofferdam.example.com/invitation?token=") || !i.Expires.Equal(f.clock().Add(invitationLife)) {
		t.Fatalf("%+v, %v", i, err)
	}
	if m := f.deliver(); m.To != "bob@example.com" || tokenIn(t, m.Body) != tokenIn(t, i.Link) {
		t.Errorf("%+v", m)
	}
	_, err = f.SignIn(t.Context(), "bob@example.com", "", home())
	wants(t, "before it is accepted", err, fault.Unauthenticated)
	again, err := f.InviteAgain(t.Context(), f.admin.Tenant, i.User.ID)
	if err != nil || again.Link != "" || again.User.ID != i.User.ID {
		t.Fatalf("whoever asked has the link that was mailed, or there is none: %+v, %v", again, err)
	}
	mailed := f.deliver()
	_, err = f.AcceptInvitation(t.Context(), tokenIn(t, i.Link), goodPass)
	wants(t, "the earlier one", err, fault.NotFound)
	f.advance(invitationLife - time.Minute)
	if _, err := f.AcceptInvitation(t.Context(), tokenIn(t, mailed.Body), goodPass); err != nil {
		t.Error(err)
	}
	f.signIn("bob@example.com", goodPass)
	_, err = f.InviteAgain(t.Context(), "elsewhere", i.User.ID)
	wants(t, "of another tenant", err, fault.NotFound)
	late, err := f.InviteAgain(t.Context(), f.admin.Tenant, i.User.ID)
	if err != nil {
		t.Fatal(err)
	}
	if late.Link != "" {
		t.Errorf("%+v", late)
	}
	mailed = f.deliver()
	f.advance(invitationLife)
	_, err = f.AcceptInvitation(t.Context(), tokenIn(t, mailed.Body), "quite another horse")
	wants(t, "too late", err, fault.NotFound)
}

// failing is a mail server that takes the third message.
type failing struct{ tries atomic.Int64 }

func (f *failing) Send(context.Context, mail.Message) error {
	if f.tries.Add(1) < 3 {
		return fault.New(fault.Unavailable, "not now").Because(errors.New("connection refused"))
	}
	return nil
}

func TestRun(t *testing.T) {
	f := start(t)
	server := &failing{}
	f.parts.mailer = server
	for range maxLetters {
		if err := f.post(letter{message: mail.Message{To: "x@example.com"}}); err != nil {
			t.Fatal(err)
		}
	}
	wants(t, "beyond the queue", f.RequestReset(t.Context(), adminEmail, home()), fault.TooMany)
	f.parts.letters = make(chan letter, 1)
	synctest.Test(t, func(t *testing.T) {
		letters := make(chan letter, 1)
		s := &Service{db: f.db, parts: &parts{mailer: server, letters: letters, log: f.log, clock: time.Now}}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- s.Run(ctx) }()
		start := time.Now()
		letters <- letter{message: mail.Message{To: "x@example.com"}}
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := server.tries.Load(); n != 3 {
			t.Errorf("%d tries after %v", n, time.Since(start))
		}
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}

func TestNoMail(t *testing.T) {
	f := start(t, func(o *Options) { o.Mailer = nil })
	wants(t, "reset", f.RequestReset(t.Context(), adminEmail, home()), fault.Unsupported)
	f.join("bob@example.com", api.Viewer)
	if len(f.letters) != 0 {
		t.Error("a letter waits for nobody")
	}
}

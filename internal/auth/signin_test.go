package auth

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/auth/password"
	"github.com/cofferdam/cofferdam/internal/fault"
)

func TestSignIn(t *testing.T) {
	f := start(t)
	out := f.signIn("ADA@example.com", goodPass)
	if out.Device == nil || out.Method != "password" || out.Principal.Via != ViaSession || out.Principal.Role != api.Administrator || !out.Principal.Operator {
		t.Errorf("%+v", out)
	}
	who, err := f.Session(t.Context(), out.Session.Text())
	if err != nil || who.User != out.User || who.Tenant != out.Tenant || who.SessionID != out.Session.ID || who.Email != adminEmail || who.Name != "Ada" {
		t.Errorf("%+v, %v", who, err)
	}
	f.advance(time.Second)
	again := f.signIn(adminEmail, goodPass)
	if again.Session.Text() == out.Session.Text() {
		t.Error("two sign-ins share a session")
	}
	list, err := f.Sessions(t.Context(), who)
	if err != nil || len(list) != 2 || list[1].Current != true || list[0].Current || list[0].Address != "192.0.2.1" || list[0].Agent != "Browser/1" || list[0].Method != "password" {
		t.Errorf("%+v, %v", list, err)
	}
}

// TestUnknownCostsTheSame counts hashes in the place of time: they are what takes the time.
func TestUnknownCostsTheSame(t *testing.T) {
	f := start(t)
	u := f.join("bob@example.com", api.Viewer)
	disabled := true
	if _, err := f.ChangeUser(t.Context(), f.admin.Tenant, u.ID, 0, api.UserChange{Disabled: &disabled}); err != nil {
		t.Fatal(err)
	}
	if _, err := f.AddUser(t.Context(), f.admin.Tenant, api.NewUser{Email: "carol@example.com", Role: api.Viewer}); err != nil {
		t.Fatal(err)
	}
	for n, c := range []struct{ name, email, pass string }{
		{"wrong password", adminEmail, otherPass},
		{"unknown", "nobody@example.com", goodPass},
		{"disabled, right password", "bob@example.com", goodPass},
		{"no password yet", "carol@example.com", goodPass},
		{"empty password", adminEmail, ""},
		{"empty password of none", "carol@example.com", ""},
	} {
		before := f.hasher.Derivations()
		_, err := f.SignIn(t.Context(), c.email, c.pass, afar(n))
		wants(t, c.name, err, fault.Unauthenticated)
		if err.Error() != errWrong().Error() {
			t.Errorf("%s: %v", c.name, err)
		}
		if cost := f.hasher.Derivations() - before; cost != 1 {
			t.Errorf("%s: %d hashes", c.name, cost)
		}
	}
}

func TestRehash(t *testing.T) {
	f := start(t)
	f.parts.hasher = password.NewHasher(password.Parameters{Memory: 128, Time: 1, Threads: 1}, 0, time.Minute)
	f.signIn(adminEmail, goodPass)
	user, _, err := f.byEmail(t.Context(), adminEmail)
	if err != nil {
		t.Fatal(err)
	}
	if h, err := password.Parse(user.Data.Password); err != nil || h.Memory != 128 {
		t.Errorf("%q, %v", user.Data.Password, err)
	}
	f.signIn(adminEmail, goodPass)
}

// TestLimits attacks one account from everywhere and looks who is shut out.
func TestLimits(t *testing.T) {
	f := start(t)
	mine := home()
	mine.Device = f.signIn(adminEmail, goodPass).Device.Text()
	t.Run("pair", func(t *testing.T) {
		for range perPair {
			_, err := f.SignIn(t.Context(), "eve@example.com", otherPass, afar(1))
			wants(t, "within", err, fault.Unauthenticated)
		}
		before := f.hasher.Derivations()
		_, err := f.SignIn(t.Context(), "eve@example.com", otherPass, afar(1))
		wants(t, "beyond", err, fault.TooMany)
		if after, ok := errors.AsType[*TooManyError](err); !ok || after.Retry != quarter {
			t.Errorf("%v", err)
		}
		if f.hasher.Derivations() != before {
			t.Error("a refused attempt was computed")
		}
		_, err = f.SignIn(t.Context(), "eve@example.com", otherPass, afar(2))
		wants(t, "from elsewhere", err, fault.Unauthenticated)
		f.advance(quarter)
		_, err = f.SignIn(t.Context(), "eve@example.com", otherPass, afar(1))
		wants(t, "later", err, fault.Unauthenticated)
	})
	t.Run("network", func(t *testing.T) {
		v6 := func(n int) Visitor {
			return Visitor{Address: netip.MustParseAddr(fmt.Sprintf("2001:db8::%x", n+1))}
		}
		for n := range perNetwork {
			_, err := f.SignIn(t.Context(), fmt.Sprintf("u%d@example.com", n), otherPass, v6(n))
			wants(t, "within", err, fault.Unauthenticated)
		}
		_, err := f.SignIn(t.Context(), "last@example.com", otherPass, v6(9999))
		wants(t, "another address of the same /64", err, fault.TooMany)
	})
	t.Run("strangers", func(t *testing.T) {
		for n := range perStrangers {
			if _, err := f.SignIn(t.Context(), adminEmail, otherPass, afar(1000+n)); err == nil {
				t.Fatal("guessed")
			}
		}
		_, err := f.SignIn(t.Context(), adminEmail, goodPass, afar(5000))
		wants(t, "one more stranger", err, fault.TooMany)
		if out, err := f.SignIn(t.Context(), adminEmail, goodPass, mine); err != nil || out.Device != nil {
			t.Errorf("the owner's browser: %+v, %v", out, err)
		}
		theirs := afar(5001)
		theirs.Device = f.join("bob@example.com", api.Viewer).ID // not even a cookie
		_, err = f.SignIn(t.Context(), adminEmail, goodPass, theirs)
		wants(t, "a made-up cookie", err, fault.TooMany)
		theirs.Device = f.signIn("bob@example.com", goodPass).Device.Text()
		_, err = f.SignIn(t.Context(), adminEmail, goodPass, theirs)
		wants(t, "somebody else's cookie", err, fault.TooMany)
		_, err = f.SignIn(t.Context(), "nobody@example.com", goodPass, theirs)
		wants(t, "somebody else's cookie, nobody's address", err, fault.Unauthenticated)
	})
	t.Run("by mail", func(t *testing.T) {
		f.deliverAll()
		elsewhere := afar(6000)
		if err := f.RequestReset(t.Context(), adminEmail, elsewhere); err != nil {
			t.Fatal(err)
		}
		out, err := f.Reset(t.Context(), tokenIn(t, f.deliver().Body), "another good horse")
		if err != nil {
			t.Fatal(err)
		}
		elsewhere.Device = out.Device.Text()
		if _, err := f.SignIn(t.Context(), adminEmail, "another good horse", elsewhere); err != nil {
			t.Errorf("the owner on a new browser: %v", err)
		}
		_, err = f.SignIn(t.Context(), adminEmail, "another good horse", mine)
		wants(t, "a device from before the reset", err, fault.TooMany)
	})
	t.Run("device", func(t *testing.T) {
		f.advance(day)
		v := home()
		v.Device = f.signIn("bob@example.com", goodPass).Device.Text()
		for range perDevice {
			_, err := f.SignIn(t.Context(), "bob@example.com", otherPass, v)
			wants(t, "within", err, fault.Unauthenticated)
		}
		_, err := f.SignIn(t.Context(), "bob@example.com", goodPass, v)
		wants(t, "beyond", err, fault.TooMany)
	})
}

// gone is a limiter that cannot be asked.
type gone struct{}

func (gone) Allow(context.Context, string, int, time.Duration) (bool, time.Duration, error) {
	return false, 0, errors.New("no route to host")
}

func TestLimiterGone(t *testing.T) {
	f := start(t)
	f.parts.limiter = gone{}
	before := f.hasher.Derivations()
	_, err := f.SignIn(t.Context(), adminEmail, goodPass, home())
	wants(t, "sign in", err, fault.Unavailable)
	_, _, err = f.BeginPasskeySignIn(t.Context(), home())
	wants(t, "passkey", err, fault.Unavailable)
	wants(t, "reset", f.RequestReset(t.Context(), adminEmail, home()), fault.Unavailable)
	if f.hasher.Derivations() != before {
		t.Error("something was computed")
	}
}

func TestSessionTimes(t *testing.T) {
	f := start(t)
	out := f.signIn(adminEmail, goodPass)
	text := out.Session.Text()
	alive := func(what string, want bool) {
		t.Helper()
		if _, err := f.Session(t.Context(), text); (err == nil) != want {
			t.Errorf("%s: %v", what, err)
		}
	}
	seen := func() time.Time {
		list, err := f.Sessions(t.Context(), out.Principal)
		if err != nil || len(list) != 1 {
			t.Fatal(list, err)
		}
		return list[0].Seen
	}
	first := seen()
	f.advance(touchEvery - time.Microsecond)
	alive("at once", true)
	if !seen().Equal(first) {
		t.Error("touched more than once a minute")
	}
	f.advance(time.Microsecond)
	alive("a minute later", true)
	if seen().Equal(first) {
		t.Error("not touched")
	}
	f.advance(SessionIdle - time.Microsecond)
	alive("just before the idle end", true)
	for range 13 { // 13 times 12 hours, and the 12 above, are just short of 7 days
		f.advance(SessionIdle - time.Minute)
		alive("in use", f.clock().Before(first.Add(SessionLife)))
	}
	f.advance(SessionIdle)
	alive("after seven days", false)

	text = f.signIn(adminEmail, goodPass).Session.Text()
	f.advance(SessionIdle)
	alive("idle", false)
	if err := f.db.Sweep(t.Context(), f.clock()); err != nil {
		t.Error(err)
	}
}

func TestSessionsEnd(t *testing.T) { testSessionsEnd(t) }

func testSessionsEnd(t *testing.T, with ...func(*Options)) {
	f := start(t, with...)
	u := f.join("bob@example.com", api.Developer)
	bob := func() Outcome { return f.signIn("bob@example.com", goodPass) }
	check := func(what string, out Outcome, want bool) {
		t.Helper()
		if _, err := f.Session(t.Context(), out.Session.Text()); (err == nil) != want {
			t.Errorf("%s: %v", what, err)
		}
	}
	a, b, c, admin := bob(), bob(), bob(), f.signIn(adminEmail, goodPass)
	who, err := f.Session(t.Context(), a.Session.Text())
	if err != nil {
		t.Fatal(err)
	}
	wants(t, "another's session", f.EndSession(t.Context(), who, admin.Session.ID), fault.NotFound)
	check("the other's", admin, true)
	if err := f.EndSession(t.Context(), who, b.Session.ID); err != nil {
		t.Error(err)
	}
	check("ended", b, false)
	if n, err := f.EndOtherSessions(t.Context(), who); n != 1 || err != nil {
		t.Error(n, err)
	}
	check("ended with the others", c, false)
	check("my own", a, true)
	if err := f.SignOut(t.Context(), a.Session.Text()); err != nil {
		t.Error(err)
	}
	check("signed out", a, false)
	for _, none := range []string{a.Session.Text(), "", "x"} {
		if err := f.SignOut(t.Context(), none); err != nil {
			t.Errorf("signed out twice: %v", err)
		}
	}
	a = bob()
	disabled := true
	if _, err := f.ChangeUser(t.Context(), f.admin.Tenant, u.ID, 0, api.UserChange{Disabled: &disabled}); err != nil {
		t.Fatal(err)
	}
	check("disabled", a, false)
	disabled = false
	if _, err := f.ChangeUser(t.Context(), f.admin.Tenant, u.ID, 0, api.UserChange{Disabled: &disabled}); err != nil {
		t.Fatal(err)
	}
	check("enabled again", a, false)
	a = bob()
	if err := f.EndSessionsOf(t.Context(), f.admin.Tenant, u.ID); err != nil {
		t.Fatal(err)
	}
	check("ended by an administrator", a, false)
	wants(t, "of another tenant", f.EndSessionsOf(t.Context(), "elsewhere", u.ID), fault.NotFound)
	a = bob()
	role := api.Reviewer
	if _, err := f.ChangeUser(t.Context(), f.admin.Tenant, u.ID, 0, api.UserChange{Role: &role}); err != nil {
		t.Fatal(err)
	}
	if who, err := f.Session(t.Context(), a.Session.Text()); err != nil || who.Role != api.Reviewer {
		t.Errorf("a new role counts at once: %+v, %v", who, err)
	}
	if err := f.RemoveUser(t.Context(), f.admin.Tenant, u.ID, 0); err != nil {
		t.Fatal(err)
	}
	check("removed", a, false)
}

// TestKindsApart shows each kind of ticket where another is wanted.
func TestKindsApart(t *testing.T) {
	f := start(t)
	out := f.signIn(adminEmail, goodPass)
	for _, kind := range []string{kindSession, kindToken, kindInvitation, kindChallenge, kindDevice, kindCeremony, kindSetup, kindOIDC, kindReset} {
		ticket, err := f.issue(t.Context(), kind, out.Tenant, out.User, time.Hour, struct{}{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Session(t.Context(), ticket.Text()); (err == nil) != (kind == kindSession) {
			t.Errorf("a %s as a session: %v", kind, err)
		}
		if _, err := f.Reset(t.Context(), ticket.Text(), "quite another horse"); (err == nil) != (kind == kindReset) {
			t.Errorf("a %s as a reset: %v", kind, err)
		}
		if _, err := f.Token(t.Context(), ticket.Text()); err == nil {
			t.Errorf("a %s as a token", kind)
		}
	}
	for _, text := range []string{"", "x", out.Session.Text() + "A", out.Session.Text()[1:], out.Session.Text() + "="} {
		if _, err := f.Session(t.Context(), text); fault.KindOf(err) != fault.Unauthenticated {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestChangePassword(t *testing.T) { testChangePassword(t) }

func testChangePassword(t *testing.T, with ...func(*Options)) {
	f := start(t, with...)
	a, b := f.signIn(adminEmail, goodPass), f.signIn(adminEmail, goodPass)
	who, err := f.Session(t.Context(), a.Session.Text())
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.ChangePassword(t.Context(), who, otherPass, "quite another horse", home())
	wants(t, "wrong password", err, fault.Denied)
	_, err = f.ChangePassword(t.Context(), who, goodPass, "short", home())
	wants(t, "bad choice", err, fault.Invalid)
	_, err = f.ChangePassword(t.Context(), Principal{}, goodPass, "quite another horse", home())
	wants(t, "nobody", err, fault.Denied)
	out, err := f.ChangePassword(t.Context(), who, goodPass, "quite another horse", home())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Session(t.Context(), out.Session.Text()); err != nil {
		t.Errorf("the new session: %v", err)
	}
	for _, old := range []Outcome{a, b} {
		if _, err := f.Session(t.Context(), old.Session.Text()); err == nil {
			t.Error("an old session works")
		}
	}
	_, err = f.SignIn(t.Context(), adminEmail, goodPass, home())
	wants(t, "the old password", err, fault.Unauthenticated)
	f.signIn(adminEmail, "quite another horse")
}

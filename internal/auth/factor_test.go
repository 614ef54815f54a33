package auth

import (
	"strings"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/auth/totp"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/seal"
	"github.com/cofferdam/cofferdam/internal/secret"
)

// enrol sets up one-time codes for a user, and returns the authenticator and the recovery codes.
func (f *fixture) enrol(email string) (secret.Bytes, []string) {
	f.t.Helper()
	who := f.signIn(email, goodPass).Principal
	e, err := f.BeginTOTP(f.t.Context(), who, goodPass)
	if err != nil {
		f.t.Fatal(err)
	}
	codes, err := f.ConfirmTOTP(f.t.Context(), who, totp.Code(e.secret, totp.Step(f.clock())))
	if err != nil {
		f.t.Fatal(err)
	}
	f.advance(2 * totp.Period)
	return e.secret, codes
}

// challenge expects one.
func (f *fixture) challenge(email string, v Visitor) string {
	f.t.Helper()
	out, err := f.SignIn(f.t.Context(), email, goodPass, v)
	if err != nil || out.Challenge == nil || out.Session != nil || out.Device != nil {
		f.t.Fatalf("%+v, %v", out, err)
	}
	return out.Challenge.Text()
}

func TestTOTP(t *testing.T) { testTOTP(t) }

func testTOTP(t *testing.T, with ...func(*Options)) {
	f := start(t, with...)
	who := f.signIn(adminEmail, goodPass).Principal
	_, err := f.BeginTOTP(t.Context(), who, otherPass)
	wants(t, "wrong password", err, fault.Denied)
	_, err = f.ConfirmTOTP(t.Context(), who, "123456")
	wants(t, "nothing begun", err, fault.Conflict)
	e, err := f.BeginTOTP(t.Context(), who, goodPass)
	if err != nil || !strings.HasPrefix(e.URL(), "otpauth://totp/Cofferdam:ada@example.com?secret="+e.Text()) {
		t.Fatal(e.URL(), err)
	}
	if svg, err := e.SVG(); err != nil || !strings.HasPrefix(string(svg), "<svg ") {
		t.Error(err)
	}
	_, err = f.ConfirmTOTP(t.Context(), who, totp.Code(e.secret, totp.Step(f.clock())+5))
	wants(t, "a wrong code", err, fault.Denied)
	f.signIn(adminEmail, goodPass) // nothing is asked before it is confirmed
	code := totp.Code(e.secret, totp.Step(f.clock()))
	recovery, err := f.ConfirmTOTP(t.Context(), who, code)
	if err != nil || len(recovery) != recoveryCodes || len(recovery[0]) != 19 {
		t.Fatal(recovery, err)
	}
	_, err = f.BeginTOTP(t.Context(), who, goodPass)
	wants(t, "twice", err, fault.Conflict)

	challenge := f.challenge(adminEmail, home())
	_, err = f.Session(t.Context(), challenge)
	wants(t, "a challenge as a session", err, fault.Unauthenticated)
	_, err = f.CompleteTOTP(t.Context(), challenge, code, home())
	wants(t, "the code that confirmed", err, fault.Denied)
	f.advance(totp.Period)
	code = totp.Code(e.secret, totp.Step(f.clock()))
	out, err := f.CompleteTOTP(t.Context(), challenge, code, home())
	if err != nil || out.Session == nil || out.Device == nil || out.Method != "password and code" {
		t.Fatalf("%+v, %v", out, err)
	}
	_, err = f.CompleteTOTP(t.Context(), challenge, code, home())
	wants(t, "a challenge again", err, fault.Unauthenticated)
	_, err = f.CompleteTOTP(t.Context(), f.challenge(adminEmail, home()), code, home())
	wants(t, "a code again", err, fault.Denied)
	if u, err := f.GetUser(t.Context(), f.admin.Tenant, f.admin.User); err != nil || !u.TOTP {
		t.Errorf("%+v, %v", u, err)
	}

	wants(t, "removed with a wrong password", f.RemoveTOTP(t.Context(), who, otherPass), fault.Denied)
	if err := f.RemoveTOTP(t.Context(), who, goodPass); err != nil {
		t.Fatal(err)
	}
	f.signIn(adminEmail, goodPass)
	wants(t, "removed twice", f.RemoveTOTP(t.Context(), who, goodPass), fault.NotFound)
}

func TestPendingExpires(t *testing.T) {
	f := start(t)
	who := f.signIn(adminEmail, goodPass).Principal
	e, err := f.BeginTOTP(t.Context(), who, goodPass)
	if err != nil {
		t.Fatal(err)
	}
	f.advance(pendingLife + time.Second)
	_, err = f.ConfirmTOTP(t.Context(), who, totp.Code(e.secret, totp.Step(f.clock())))
	wants(t, "begun long ago", err, fault.Conflict)
}

func TestRecovery(t *testing.T) { testRecovery(t) }

func testRecovery(t *testing.T, with ...func(*Options)) {
	f := start(t, with...)
	_, codes := f.enrol(adminEmail)
	out, err := f.CompleteRecovery(t.Context(), f.challenge(adminEmail, home()), strings.ToUpper(codes[3]), home())
	if err != nil || out.Session == nil || out.Method != "password and recovery code" {
		t.Fatalf("%+v, %v", out, err)
	}
	challenge := f.challenge(adminEmail, home())
	for _, bad := range []string{codes[3], "", "aaaa-aaaa-aaaa-aaaa", "123456"} {
		_, err := f.CompleteRecovery(t.Context(), challenge, bad, home())
		wants(t, bad, err, fault.Denied)
	}
	if _, err := f.CompleteRecovery(t.Context(), challenge, strings.ReplaceAll(codes[0], "-", " "), home()); err != nil {
		t.Error(err)
	}
	fresh, err := f.NewRecoveryCodes(t.Context(), out.Principal, goodPass)
	if err != nil || len(fresh) != recoveryCodes {
		t.Fatal(err)
	}
	challenge = f.challenge(adminEmail, home())
	_, err = f.CompleteRecovery(t.Context(), challenge, codes[1], home())
	wants(t, "an older one", err, fault.Denied)
	if _, err := f.CompleteRecovery(t.Context(), challenge, fresh[1], home()); err != nil {
		t.Error(err)
	}
	f.join("bob@example.com", api.Viewer)
	_, err = f.NewRecoveryCodes(t.Context(), f.signIn("bob@example.com", goodPass).Principal, goodPass)
	wants(t, "without a second factor", err, fault.Conflict)
}

func TestFactorRaces(t *testing.T) { testFactorRaces(t) }

func testFactorRaces(t *testing.T, with ...func(*Options)) {
	f := start(t, with...)
	key, recovery := f.enrol(adminEmail)
	// Two challenges, so that it is the code that can be used once, not only the challenge.
	for name, show := range map[string]func(challenge string) error{
		"code": func(c string) error {
			_, err := f.CompleteTOTP(t.Context(), c, totp.Code(key, totp.Step(f.clock())), home())
			return err
		},
		"recovery code": func(c string) error {
			_, err := f.CompleteRecovery(t.Context(), c, recovery[5], home())
			return err
		},
	} {
		f.advance(day) // the counts begin anew
		challenges := make(chan string, 8)
		for range 2 {
			c := f.challenge(adminEmail, home())
			for range 4 {
				challenges <- c
			}
		}
		if won := race(t, 8, func() error { return show(<-challenges) }, fault.Denied, fault.Unauthenticated, fault.Conflict); won != 1 {
			t.Errorf("%s: %d of 8", name, won)
		}
	}
}

func TestChallengeLimits(t *testing.T) {
	f := start(t)
	key, _ := f.enrol(adminEmail)
	code := func() string { return totp.Code(key, totp.Step(f.clock())) }
	challenge := f.challenge(adminEmail, home())
	f.advance(challengeLife)
	_, err := f.CompleteTOTP(t.Context(), challenge, code(), home())
	wants(t, "five minutes later", err, fault.Unauthenticated)

	out, err := f.CompleteTOTP(t.Context(), f.challenge(adminEmail, home()), code(), home())
	if err != nil {
		t.Fatal(err)
	}
	mine := home()
	mine.Device = out.Device.Text()
	// An attacker who knows the password guesses codes.
	f.advance(2 * time.Hour)
	challenge = f.challenge(adminEmail, afar(1))
	for range perChallenge {
		_, err := f.CompleteTOTP(t.Context(), challenge, "000000", afar(1))
		wants(t, "a guess", err, fault.Denied)
	}
	_, err = f.CompleteTOTP(t.Context(), challenge, code(), afar(1))
	wants(t, "one guess more", err, fault.Unauthenticated)
	challenge = f.challenge(adminEmail, afar(2))
	for range perFactor - perChallenge {
		_, err := f.CompleteTOTP(t.Context(), challenge, "000000", afar(2))
		wants(t, "a guess", err, fault.Denied)
	}
	_, err = f.CompleteTOTP(t.Context(), f.challenge(adminEmail, afar(3)), code(), afar(3))
	wants(t, "too many guesses in an hour", err, fault.TooMany)
	if _, err := f.CompleteTOTP(t.Context(), f.challenge(adminEmail, mine), code(), mine); err != nil {
		t.Errorf("the owner's browser: %v", err)
	}
}

// TestVoidChallenge changes the password between the factors.
func TestVoidChallenge(t *testing.T) {
	f := start(t)
	key, _ := f.enrol(adminEmail)
	challenge := f.challenge(adminEmail, home())
	if err := f.EndSessionsOf(t.Context(), f.admin.Tenant, f.admin.User); err != nil {
		t.Fatal(err)
	}
	_, err := f.CompleteTOTP(t.Context(), challenge, totp.Code(key, totp.Step(f.clock())), home())
	wants(t, "a challenge from before", err, fault.Unauthenticated)
}

func TestResetFactors(t *testing.T) {
	f := start(t)
	bob := f.join("bob@example.com", api.Viewer)
	f.enrol("bob@example.com")
	wants(t, "in another tenant", f.ResetFactors(t.Context(), "elsewhere", bob.ID), fault.NotFound)
	if err := f.ResetFactors(t.Context(), f.admin.Tenant, bob.ID); err != nil {
		t.Fatal(err)
	}
	_, err := f.SignIn(t.Context(), "bob@example.com", goodPass, home())
	wants(t, "with the password from before", err, fault.Unauthenticated)
	link, err := f.OperatorReset(t.Context(), "bob@example.com")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Reset(t.Context(), tokenIn(t, link), "another horse battery"); err != nil {
		t.Fatal(err)
	}
	_, err = f.OperatorReset(t.Context(), "nobody@example.com")
	wants(t, "a link for nobody", err, fault.NotFound)
	f.signIn("bob@example.com", "another horse battery") // and is asked for no second factor
}

// TestSealed moves a sealed secret to another user, and rotates the key.
func TestSealed(t *testing.T) {
	f := start(t)
	f.join("bob@example.com", api.Viewer)
	key, _ := f.enrol(adminEmail)
	f.enrol("bob@example.com")
	ada, _, err := f.byEmail(t.Context(), adminEmail)
	if err != nil {
		t.Fatal(err)
	}
	bob, _, err := f.byEmail(t.Context(), "bob@example.com")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.unseal(t.Context(), bob, ada.Data.TOTP); err == nil {
		t.Error("a secret opens for another user")
	}
	if strings.Contains(string(ada.Data.TOTP.Box), string(key.Reveal())) {
		t.Error("the secret is in the store")
	}
	if _, err := f.vault.Advance(t.Context(), seal.Source{}); err != nil {
		t.Fatal(err)
	}
	if used, err := f.KeysInUse(t.Context()); err != nil || used[ada.Data.TOTP.Key.Key] != 2 {
		t.Error(used, err)
	}
	err = f.vault.Use(t.Context(), func(ring *seal.Keyring) error {
		for _, want := range []int{2, 0} {
			if n, err := f.Rewrap(t.Context(), ring); n != want || err != nil {
				t.Errorf("%d rewrapped, %v; want %d", n, err, want)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if pruned, err := f.vault.Prune(t.Context(), func() (map[seal.KeyID]int, error) { return f.KeysInUse(t.Context()) }); err != nil || len(pruned) != 1 {
		t.Error(pruned, err)
	}
	if _, err := f.CompleteTOTP(t.Context(), f.challenge(adminEmail, home()), totp.Code(key, totp.Step(f.clock())), home()); err != nil {
		t.Error(err)
	}
}

func TestNoSealer(t *testing.T) {
	f := start(t, func(o *Options) { o.Sealer = nil })
	_, err := f.BeginTOTP(t.Context(), f.signIn(adminEmail, goodPass).Principal, goodPass)
	wants(t, "no sealer", err, fault.Unsupported)
}

// TestReauthenticateWithoutPassword is of a user who came by a sign-in service.
func TestReauthenticateWithoutPassword(t *testing.T) {
	f := start(t)
	user, err := f.insert(t.Context(), f.admin.Tenant, "oidc@example.com", User{Role: api.Viewer})
	if err != nil {
		t.Fatal(err)
	}
	out, err := f.open(t.Context(), user, "oidc:x", home(), "")
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Reauthenticate(t.Context(), out.Principal, ""); err != nil {
		t.Error(err)
	}
	f.advance(freshness + time.Second)
	wants(t, "long after signing in", f.Reauthenticate(t.Context(), out.Principal, ""), fault.Denied)
}

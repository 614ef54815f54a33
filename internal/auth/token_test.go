package auth

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/fault"
)

func TestToken(t *testing.T) { testToken(t) }

func testToken(t *testing.T, with ...func(*Options)) {
	f := start(t, with...)
	bob := f.join("bob@example.com", api.Developer)
	who := f.signIn("bob@example.com", goodPass).Principal
	token, err := f.NewToken(t.Context(), who, api.NewToken{Name: "ci", Scopes: []string{"sandboxes:write", "agents:read", "agents:read"}})
	if err != nil || !IsToken(token.Secret) || !token.Expires.Equal(f.clock().Add(tokenLife)) || !slices.Equal(token.Scopes, []string{"agents:read", "sandboxes:write"}) {
		t.Fatalf("%+v, %v", token, err)
	}
	program, err := f.Token(t.Context(), token.Secret)
	if err != nil || program.User != bob.ID || program.Via != ViaToken || program.TokenID != token.ID || program.SessionID != "" || !slices.Equal(program.Scopes, token.Scopes) || program.Role != api.Developer {
		t.Errorf("%+v, %v", program, err)
	}
	_, err = f.Session(t.Context(), token.Secret)
	wants(t, "as a session", err, fault.Unauthenticated)
	_, err = f.NewToken(t.Context(), program, api.NewToken{Name: "another", Scopes: token.Scopes})
	wants(t, "made by a token", err, fault.Denied)
	wants(t, "what needs the person", f.Reauthenticate(t.Context(), program, goodPass), fault.Denied)

	list, err := f.Tokens(t.Context(), who)
	if err != nil || len(list) != 1 || list[0].Secret != "" || list[0].Name != "ci" || !list[0].Used.IsZero() {
		t.Errorf("%+v, %v", list, err)
	}
	f.advance(touchEvery)
	if _, err := f.Token(t.Context(), token.Secret); err != nil {
		t.Error(err)
	}
	if list, err := f.Tokens(t.Context(), who); err != nil || !list[0].Used.Equal(f.clock()) || !list[0].Expires.Equal(token.Expires) {
		t.Errorf("%+v, %v", list, err)
	}

	disabled := true
	if _, err := f.ChangeUser(t.Context(), f.admin.Tenant, bob.ID, 0, api.UserChange{Disabled: &disabled}); err != nil {
		t.Fatal(err)
	}
	_, err = f.Token(t.Context(), token.Secret)
	wants(t, "of a disabled user", err, fault.Unauthenticated)
	disabled = false
	if _, err := f.ChangeUser(t.Context(), f.admin.Tenant, bob.ID, 0, api.UserChange{Disabled: &disabled}); err != nil {
		t.Fatal(err)
	}
	_, err = f.Token(t.Context(), token.Secret)
	wants(t, "of a user who was disabled and is enabled again", err, fault.Unauthenticated)
	who = f.signIn("bob@example.com", goodPass).Principal
	if token, err = f.NewToken(t.Context(), who, api.NewToken{Name: "ci", Scopes: []string{"agents:read"}}); err != nil {
		t.Fatal(err)
	}
	admin := f.signIn(adminEmail, goodPass).Principal
	wants(t, "ended by another", f.EndToken(t.Context(), admin, token.ID), fault.NotFound)
	f.advance(tokenLife - time.Microsecond)
	if _, err := f.Token(t.Context(), token.Secret); err != nil {
		t.Error(err)
	}
	f.advance(time.Microsecond)
	_, err = f.Token(t.Context(), token.Secret)
	wants(t, "expired", err, fault.Unauthenticated)

	token, err = f.NewToken(t.Context(), who, api.NewToken{Name: "short", Scopes: []string{"agents:read"}, Seconds: 60})
	if err != nil {
		t.Fatal(err)
	}
	if err := f.EndToken(t.Context(), who, token.ID); err != nil {
		t.Error(err)
	}
	_, err = f.Token(t.Context(), token.Secret)
	wants(t, "ended", err, fault.Unauthenticated)
}

// TestTokensEnd: what takes an account back from whoever has it takes the tokens too, also one whose making began before; a new password alone does not.
func TestTokensEnd(t *testing.T) {
	f := start(t)
	bob := f.join("bob@example.com", api.Developer)
	newPassword := func() error {
		link, err := f.OperatorReset(t.Context(), "bob@example.com")
		if err == nil {
			_, err = f.Reset(t.Context(), tokenIn(t, link), goodPass)
		}
		return err
	}
	for what, act := range map[string]func() error{
		"reset by an administrator": func() error { return f.ResetFactors(t.Context(), f.admin.Tenant, bob.ID) },
		"sessions ended":            func() error { return f.EndSessionsOf(t.Context(), f.admin.Tenant, bob.ID) },
		"a reset's link":            newPassword,
	} {
		who := f.signIn("bob@example.com", goodPass).Principal
		token, err := f.NewToken(t.Context(), who, api.NewToken{Name: "ci", Scopes: []string{"agents:read"}})
		if err != nil {
			t.Fatal(err)
		}
		user, _, err := f.byID(t.Context(), bob.ID)
		if err != nil {
			t.Fatal(err)
		}
		if err := act(); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		_, err = f.Token(t.Context(), token.Secret)
		wants(t, what, err, fault.Unauthenticated)
		late, err := f.issueText(t.Context(), tokenText(randomText(ticketBytes)), kindToken, f.admin.Tenant, bob.ID, time.Hour, tokenData{Name: "late", Epoch: user.Data.TokenEpoch})
		if err != nil {
			t.Fatal(err)
		}
		_, err = f.Token(t.Context(), late.Text())
		wants(t, "in the making: "+what, err, fault.Unauthenticated)
		if err := newPassword(); err != nil { // an administrator's reset took it away
			t.Fatal(err)
		}
	}
}

func TestNewTokenRefused(t *testing.T) {
	f := start(t)
	who := f.signIn(adminEmail, goodPass).Principal
	read := []string{"agents:read"}
	for _, bad := range []api.NewToken{
		{Scopes: read}, {Name: "x"}, {Name: "x", Scopes: []string{"everything"}}, {Name: "x", Scopes: []string{"agents:read", ""}}, {Name: "x\n", Scopes: read[:0]},
		{Name: strings.Repeat("x", 101), Scopes: read}, {Name: "x", Scopes: read, Seconds: 59}, {Name: "x", Scopes: read, Seconds: -1}, {Name: "x", Scopes: read, Seconds: int64(maxTokenLife/time.Second) + 1},
	} {
		_, err := f.NewToken(t.Context(), who, bad)
		wants(t, "a bad token", err, fault.Invalid)
	}
	for range maxTokens {
		if _, err := f.NewToken(t.Context(), who, api.NewToken{Name: "x", Scopes: read, Seconds: int64(maxTokenLife / time.Second)}); err != nil {
			t.Fatal(err)
		}
	}
	_, err := f.NewToken(t.Context(), who, api.NewToken{Name: "x", Scopes: read})
	wants(t, "one more", err, fault.TooMany)
	f.parts.scopes = nil
	_, err = f.NewToken(t.Context(), who, api.NewToken{Name: "x", Scopes: read})
	wants(t, "where no scope is known", err, fault.Invalid)
}

func TestTokenText(t *testing.T) {
	secret := strings.Repeat("A", 43)
	text := tokenText(secret)
	if len(text) != 8+43+6 || !IsToken(text) {
		t.Errorf("%q", text)
	}
	// CRC-32 of the rest, in base 62: computed by another program.
	if want := "cfd_pat_" + secret + "1FBWcf"; text != want {
		t.Errorf("%q", text)
	}
	for at := range len(text) {
		changed := []byte(text)
		changed[at] ^= 1
		if IsToken(string(changed)) {
			t.Errorf("%q passes", changed)
		}
	}
	for _, bad := range []string{"", TokenPrefix, text[:len(text)-1], text + "0", " " + text, strings.ToUpper(text)} {
		if IsToken(bad) {
			t.Errorf("%q passes", bad)
		}
	}
}

func FuzzIsToken(f *testing.F) {
	f.Add(tokenText(randomText(ticketBytes)))
	f.Add("cfd_pat_x")
	f.Fuzz(func(t *testing.T, text string) {
		if !IsToken(text) {
			return
		}
		secret := strings.TrimPrefix(text, TokenPrefix)[:secretChars]
		if tokenText(secret) != text {
			t.Errorf("%q is written %q", text, tokenText(secret))
		}
		if _, ok := hashOf(secret); !ok {
			t.Errorf("%q has a secret that is none", text)
		}
	})
}

func FuzzTicket(f *testing.F) {
	f.Add(randomText(ticketBytes))
	f.Fuzz(func(t *testing.T, text string) {
		if _, ok := hashOf(text); ok && (len(text) != secretChars || strings.ContainsAny(text, "\r\n= ")) {
			t.Errorf("%q passes", text)
		}
	})
}

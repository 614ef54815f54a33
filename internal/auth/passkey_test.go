package auth

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"testing"

	"github.com/fxamacker/cbor/v2"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/auth/totp"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/store"
)

// authenticator is a key in software: ES256, attestation "none".
type authenticator struct {
	key      *ecdsa.PrivateKey
	id       []byte
	user     []byte
	origin   string
	host     string
	count    uint32
	verified bool // it asked for a finger or PIN
}

func newAuthenticator(t *testing.T) *authenticator {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	id := make([]byte, 32)
	_, _ = rand.Read(id)
	return &authenticator{key: key, id: id, origin: "https://cofferdam.example.com", host: "cofferdam.example.com", verified: true}
}

func b64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

func (a *authenticator) client(kind, challenge string) []byte {
	data, _ := json.Marshal(map[string]any{"type": kind, "challenge": challenge, "origin": a.origin, "crossOrigin": false})
	return data
}

// data is the authenticator data, counting up.
func (a *authenticator) data(flags byte) []byte {
	a.count++
	host := sha256.Sum256([]byte(a.host))
	if a.verified {
		flags |= 0x04
	}
	return binary.BigEndian.AppendUint32(append(host[:], flags|0x01), a.count)
}

// create answers navigator.credentials.create.
func (a *authenticator) create(t *testing.T, options json.RawMessage) []byte {
	t.Helper()
	var o struct {
		PublicKey struct {
			Challenge string `json:"challenge"`
			RP        struct {
				ID string `json:"id"`
			} `json:"rp"`
			User struct {
				ID   string `json:"id"`
				Name string `json:"name"`
			} `json:"user"`
			AuthenticatorSelection struct {
				UserVerification string `json:"userVerification"`
			} `json:"authenticatorSelection"`
		} `json:"publicKey"`
	}
	if err := json.Unmarshal(options, &o); err != nil {
		t.Fatal(err)
	}
	if o.PublicKey.RP.ID != "cofferdam.example.com" || o.PublicKey.AuthenticatorSelection.UserVerification != "preferred" {
		t.Errorf("%s", options)
	}
	user, err := base64.RawURLEncoding.DecodeString(o.PublicKey.User.ID)
	if err != nil {
		t.Fatal(err)
	}
	a.user = user
	public, err := a.key.PublicKey.Bytes() // 4, x, y
	if err != nil {
		t.Fatal(err)
	}
	cose, err := cbor.Marshal(map[int]any{1: 2, 3: -7, -1: 1, -2: public[1:33], -3: public[33:]})
	if err != nil {
		t.Fatal(err)
	}
	data := a.data(0x40)
	data = append(data, make([]byte, 16)...)
	data = binary.BigEndian.AppendUint16(data, uint16(len(a.id)))
	data = append(append(data, a.id...), cose...)
	object, err := cbor.Marshal(map[string]any{"fmt": "none", "attStmt": map[string]any{}, "authData": data})
	if err != nil {
		t.Fatal(err)
	}
	return a.answer(map[string]any{"clientDataJSON": b64(a.client("webauthn.create", o.PublicKey.Challenge)), "attestationObject": b64(object)})
}

// get answers navigator.credentials.get.
func (a *authenticator) get(t *testing.T, options json.RawMessage) []byte {
	t.Helper()
	var o struct {
		PublicKey struct {
			Challenge string `json:"challenge"`
		} `json:"publicKey"`
	}
	if err := json.Unmarshal(options, &o); err != nil {
		t.Fatal(err)
	}
	client := a.client("webauthn.get", o.PublicKey.Challenge)
	data := a.data(0)
	hash := sha256.Sum256(client)
	digest := sha256.Sum256(append(bytes.Clone(data), hash[:]...))
	signature, err := ecdsa.SignASN1(rand.Reader, a.key, digest[:])
	if err != nil {
		t.Fatal(err)
	}
	return a.answer(map[string]any{"clientDataJSON": b64(client), "authenticatorData": b64(data), "signature": b64(signature), "userHandle": b64(a.user)})
}

func (a *authenticator) answer(response map[string]any) []byte {
	data, _ := json.Marshal(map[string]any{"id": b64(a.id), "rawId": b64(a.id), "type": "public-key", "response": response, "clientExtensionResults": map[string]any{}})
	return data
}

// register adds a passkey to a user.
func (f *fixture) register(who Principal) (*authenticator, PasskeyInfo, []string) {
	f.t.Helper()
	a := newAuthenticator(f.t)
	options, ceremony, err := f.BeginPasskey(f.t.Context(), who, goodPass)
	if err != nil {
		f.t.Fatal(err)
	}
	key, codes, err := f.FinishPasskey(f.t.Context(), who, ceremony.Text(), "Laptop", a.create(f.t, options))
	if err != nil {
		f.t.Fatal(err)
	}
	return a, key, codes
}

// bySign signs in by passkey.
func (f *fixture) bySign(a *authenticator, v Visitor) (Outcome, error) {
	f.t.Helper()
	options, ceremony, err := f.BeginPasskeySignIn(f.t.Context(), v)
	if err != nil {
		f.t.Fatal(err)
	}
	return f.FinishPasskeySignIn(f.t.Context(), ceremony.Text(), a.get(f.t, options), v)
}

func TestPasskey(t *testing.T) { testPasskey(t) }

func testPasskey(t *testing.T, with ...func(*Options)) {
	f := start(t, with...)
	who := f.signIn(adminEmail, goodPass).Principal
	_, _, err := f.BeginPasskey(t.Context(), who, otherPass)
	wants(t, "wrong password", err, fault.Denied)
	a, key, codes := f.register(who)
	if key.Label != "Laptop" || len(codes) != recoveryCodes {
		t.Errorf("%+v, %v", key, codes)
	}
	out, err := f.bySign(a, home())
	if err != nil || out.Session == nil || out.User != who.User || out.Method != "passkey" {
		t.Fatalf("%+v, %v", out, err)
	}
	if list, err := f.Passkeys(t.Context(), who); err != nil || len(list) != 1 || list[0].Used.IsZero() {
		t.Errorf("%+v, %v", list, err)
	}
	if u, err := f.GetUser(t.Context(), who.Tenant, who.User); err != nil || u.Passkeys != 1 {
		t.Errorf("%+v, %v", u, err)
	}
	if _, second, codes := f.register(who); len(codes) != 0 || second.ID == key.ID {
		t.Errorf("a second passkey brings codes: %v", codes)
	}
	if err := f.RenamePasskey(t.Context(), who, key.ID, "Old laptop"); err != nil {
		t.Error(err)
	}
	wants(t, "renamed to nothing", f.RenamePasskey(t.Context(), who, key.ID, ""), fault.Invalid)
	f.join("bob@example.com", api.Viewer)
	bob := f.signIn("bob@example.com", goodPass).Principal
	wants(t, "another's", f.RenamePasskey(t.Context(), bob, key.ID, "x"), fault.NotFound)
	wants(t, "another's", f.RemovePasskey(t.Context(), bob, key.ID, goodPass), fault.NotFound)
	wants(t, "nobody's", f.RenamePasskey(t.Context(), Principal{Tenant: who.Tenant}, key.ID, "x"), fault.NotFound)
	wants(t, "removed with a wrong password", f.RemovePasskey(t.Context(), who, key.ID, otherPass), fault.Denied)
	if err := f.RemovePasskey(t.Context(), who, key.ID, goodPass); err != nil {
		t.Error(err)
	}
	_, err = f.bySign(a, home())
	wants(t, "removed", err, fault.Unauthenticated)
}

func TestPasskeyRefused(t *testing.T) {
	f := start(t)
	who := f.signIn(adminEmail, goodPass).Principal
	a, _, _ := f.register(who)
	stranger := newAuthenticator(t)
	stranger.user = a.user
	copied := *a
	for _, c := range []struct {
		name string
		make func() *authenticator
	}{
		{"another key", func() *authenticator { return stranger }},
		{"another key under its identifier", func() *authenticator { s := *stranger; s.id = a.id; return &s }},
		{"another origin", func() *authenticator { s := *a; s.origin = "https://evil.example"; return &s }},
		{"another port", func() *authenticator { s := *a; s.origin += ":8443"; return &s }},
		{"another host", func() *authenticator { s := *a; s.host = "evil.example"; return &s }},
		{"another user", func() *authenticator { s := *a; s.user = []byte("nobody"); return &s }},
		{"a handle that is no identifier", func() *authenticator { s := *a; s.user = []byte("\x00'"); return &s }},
		{"no user", func() *authenticator { s := *a; s.user = nil; return &s }},
	} {
		_, err := f.bySign(c.make(), home())
		wants(t, c.name, err, fault.Unauthenticated)
	}
	options, ceremony, err := f.BeginPasskeySignIn(t.Context(), home())
	if err != nil {
		t.Fatal(err)
	}
	for range 5 {
		a.count++
	}
	good := a.get(t, options)
	for name, bad := range map[string][]byte{"nothing": nil, "no JSON": []byte("x"), "too long": bytes.Repeat([]byte(" "), maxResponse+1), "empty": []byte("{}")} {
		_, fresh, err := f.BeginPasskeySignIn(t.Context(), home())
		if err != nil {
			t.Fatal(err)
		}
		_, err = f.FinishPasskeySignIn(t.Context(), fresh.Text(), bad, home())
		wants(t, name, err, fault.Unauthenticated)
	}
	if _, err := f.FinishPasskeySignIn(t.Context(), ceremony.Text(), good, home()); err != nil {
		t.Errorf("the real one: %v", err)
	}
	_, err = f.FinishPasskeySignIn(t.Context(), ceremony.Text(), good, home())
	wants(t, "again", err, fault.Unauthenticated)
	_, other, err := f.BeginPasskeySignIn(t.Context(), home())
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.FinishPasskeySignIn(t.Context(), other.Text(), good, home())
	wants(t, "the answer to another ceremony", err, fault.Unauthenticated)
	_, err = f.bySign(&copied, home())
	wants(t, "a copy that is behind", err, fault.Unauthenticated)

	options, ceremony, err = f.BeginPasskeySignIn(t.Context(), home())
	if err != nil {
		t.Fatal(err)
	}
	f.advance(ceremonyLife)
	_, err = f.FinishPasskeySignIn(t.Context(), ceremony.Text(), a.get(t, options), home())
	wants(t, "five minutes later", err, fault.Unauthenticated)
}

func TestPasskeyOfDisabled(t *testing.T) {
	f := start(t)
	bob := f.join("bob@example.com", api.Viewer)
	a, _, _ := f.register(f.signIn("bob@example.com", goodPass).Principal)
	disabled := true
	if _, err := f.ChangeUser(t.Context(), f.admin.Tenant, bob.ID, 0, api.UserChange{Disabled: &disabled}); err != nil {
		t.Fatal(err)
	}
	_, err := f.bySign(a, home())
	wants(t, "disabled", err, fault.Unauthenticated)
	if err := f.RemoveUser(t.Context(), f.admin.Tenant, bob.ID, 0); err != nil {
		t.Fatal(err)
	}
	if n, err := passkeys().Count(t.Context(), f.db, f.admin.Tenant, filterOf(bob.ID)); n != 0 || err != nil {
		t.Errorf("%d passkeys of nobody, %v", n, err)
	}
}

func TestRegistrationRefused(t *testing.T) {
	f := start(t)
	who := f.signIn(adminEmail, goodPass).Principal
	f.join("bob@example.com", api.Viewer)
	bob := f.signIn("bob@example.com", goodPass).Principal
	a := newAuthenticator(t)
	options, ceremony, err := f.BeginPasskey(t.Context(), who, goodPass)
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = f.FinishPasskey(t.Context(), bob, ceremony.Text(), "", a.create(t, options))
	wants(t, "another's ceremony", err, fault.Unauthenticated)
	evil := newAuthenticator(t)
	evil.origin = "https://evil.example"
	options, ceremony, err = f.BeginPasskey(t.Context(), who, goodPass)
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = f.FinishPasskey(t.Context(), who, ceremony.Text(), "", evil.create(t, options))
	wants(t, "another origin", err, fault.Unauthenticated)
	options, ceremony, err = f.BeginPasskeySignIn(t.Context(), home())
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = f.FinishPasskey(t.Context(), who, ceremony.Text(), "", a.create2(t, options))
	wants(t, "a ceremony for something else", err, fault.Unauthenticated)

	// The same credential for two users: one of them could sign in as the other.
	options, ceremony, err = f.BeginPasskey(t.Context(), who, goodPass)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := f.FinishPasskey(t.Context(), who, ceremony.Text(), "", a.create(t, options)); err != nil {
		t.Fatal(err)
	}
	options, ceremony, err = f.BeginPasskey(t.Context(), bob, goodPass)
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = f.FinishPasskey(t.Context(), bob, ceremony.Text(), "", a.create(t, options))
	wants(t, "a credential of another user", err, fault.Conflict)
}

// create2 answers as if the options were for a registration.
func (a *authenticator) create2(t *testing.T, options json.RawMessage) []byte {
	t.Helper()
	a.user = nil
	return a.get(t, options)
}

func TestPasskeyAsSecondFactor(t *testing.T) {
	f := start(t)
	who := f.signIn(adminEmail, goodPass).Principal
	a, key, codes := f.register(who)
	a.verified = false // the password was the other factor
	out, err := f.SignIn(t.Context(), adminEmail, goodPass, home())
	if err != nil || out.Challenge == nil || !out.Challenge.Passkey || out.Challenge.TOTP || !out.Challenge.Recovery {
		t.Fatalf("%+v, %v", out, err)
	}
	challenge := out.Challenge.Text()
	options, ceremony, err := f.BeginPasskeyAnswer(t.Context(), challenge)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.FinishPasskeySignIn(t.Context(), ceremony.Text(), a.get(t, options), home())
	wants(t, "an answer as a sign-in", err, fault.Unauthenticated)
	options, ceremony, err = f.BeginPasskeyAnswer(t.Context(), challenge)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.CompletePasskey(t.Context(), f.challenge(adminEmail, home()), ceremony.Text(), a.get(t, options), home())
	wants(t, "an answer to another challenge", err, fault.Unauthenticated)
	options, ceremony, err = f.BeginPasskeyAnswer(t.Context(), challenge)
	if err != nil {
		t.Fatal(err)
	}
	out, err = f.CompletePasskey(t.Context(), challenge, ceremony.Text(), a.get(t, options), home())
	if err != nil || out.Session == nil || out.Method != "password and passkey" {
		t.Fatalf("%+v, %v", out, err)
	}
	if _, err := f.CompleteRecovery(t.Context(), f.challenge(adminEmail, home()), codes[0], home()); err != nil {
		t.Errorf("a lost passkey: %v", err)
	}
	if err := f.RemovePasskey(t.Context(), who, key.ID, goodPass); err != nil {
		t.Fatal(err)
	}
	f.signIn(adminEmail, goodPass)
}

// TestUnverifiedPasskey is possession only: who has one-time codes is asked for one.
func TestUnverifiedPasskey(t *testing.T) {
	f := start(t)
	who := f.signIn(adminEmail, goodPass).Principal
	key, _ := f.enrol(adminEmail)
	a, _, _ := f.register(who)
	if out, err := f.bySign(a, home()); err != nil || out.Session == nil {
		t.Errorf("verified: %+v, %v", out, err)
	}
	a.verified = false
	out, err := f.bySign(a, home())
	if err != nil || out.Session != nil || out.Challenge == nil || !out.Challenge.TOTP || out.Challenge.Passkey {
		t.Fatalf("%+v, %v", out, err)
	}
	_, _, err = f.BeginPasskeyAnswer(t.Context(), out.Challenge.Text())
	wants(t, "the passkey as its own second factor", err, fault.Denied)
	if out, err = f.CompleteTOTP(t.Context(), out.Challenge.Text(), totp.Code(key, totp.Step(f.clock())), home()); err != nil || out.Method != "passkey and code" {
		t.Errorf("%+v, %v", out, err)
	}
}

func TestPasskeyRace(t *testing.T) { testPasskeyRace(t) }

func testPasskeyRace(t *testing.T, with ...func(*Options)) {
	f := start(t, with...)
	who := f.signIn(adminEmail, goodPass).Principal
	a, _, _ := f.register(who)
	options, ceremony, err := f.BeginPasskeySignIn(t.Context(), home())
	if err != nil {
		t.Fatal(err)
	}
	response := a.get(t, options)
	if won := race(t, 8, func() error {
		_, err := f.FinishPasskeySignIn(t.Context(), ceremony.Text(), response, home())
		return err
	}, fault.Unauthenticated); won != 1 {
		t.Errorf("%d of 8", won)
	}
}

func TestNoPasskeysOnAddresses(t *testing.T) {
	f := start(t, func(o *Options) { o.BaseURL = "https://192.0.2.1" })
	_, _, err := f.BeginPasskey(t.Context(), f.signIn(adminEmail, goodPass).Principal, goodPass)
	wants(t, "add", err, fault.Unsupported)
	_, _, err = f.BeginPasskeySignIn(t.Context(), home())
	wants(t, "sign in", err, fault.Unsupported)
}

func filterOf(user string) store.Filter { return store.Filter{Parent: user} }

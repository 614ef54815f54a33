package auth

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/secret"
	"github.com/cofferdam/cofferdam/internal/store"
)

// The kinds of proofs in the store.
const (
	kindSession    = "session"
	kindToken      = "token"
	kindReset      = "reset"
	kindInvitation = "invitation"
	kindSetup      = "setup"
	kindChallenge  = "challenge" // a password was right, the second factor is outstanding
	kindDevice     = "device"    // this browser has signed in before
	kindCeremony   = "ceremony"  // of a passkey
	kindOIDC       = "oidc"      // somebody was sent to a sign-in service
)

// kinds lists what can belong to a user, and ends with it.
func kinds() []string {
	return []string{kindSession, kindToken, kindReset, kindInvitation, kindChallenge, kindDevice, kindCeremony}
}

// ticketBytes is the entropy of what is shown: as much as its hash has.
const ticketBytes = 32

// Ticket is a fresh secret on its way to the one who will show it. It is not stored.
type Ticket struct {
	ID      string // public
	Expires time.Time
	secret  secret.Bytes
}

// Text is the secret, for the cookie, link or answer that hands it over, once.
func (t Ticket) Text() string { return string(t.secret.Reveal()) }

// randomText is as many random bytes in base64url.
func randomText(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails since Go 1.24
	return base64.RawURLEncoding.EncodeToString(b)
}

// newID is a public identifier.
func newID() string { return strings.ToLower(rand.Text()) }

// hashOf is what the store has of a ticket. What is not shaped like one is not looked up.
func hashOf(text string) ([32]byte, bool) {
	b, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil || len(b) != ticketBytes || len(text) != base64.RawURLEncoding.EncodedLen(ticketBytes) {
		return [32]byte{}, false
	}
	return sha256.Sum256([]byte(text)), true
}

// issue makes a ticket and stores its proof.
func (s *Service) issue(ctx context.Context, kind, tenant, subject string, life time.Duration, data any) (Ticket, error) {
	text := randomText(ticketBytes)
	return s.issueText(ctx, text, kind, tenant, subject, life, data)
}

func (s *Service) issueText(ctx context.Context, text, kind, tenant, subject string, life time.Duration, data any) (Ticket, error) {
	encoded, err := json.Marshal(data)
	if err != nil {
		return Ticket{}, fmt.Errorf("encode a %s: %w", kind, err)
	}
	now := s.now()
	p := store.Proof{Hash: sha256.Sum256([]byte(text)), Kind: kind, ID: newID(), Tenant: tenant, Subject: subject, Data: encoded, Created: now, Seen: now, Expires: now.Add(life)}
	if err := s.db.PutProof(ctx, p); err != nil {
		return Ticket{}, err
	}
	return Ticket{ID: p.ID, Expires: p.Expires, secret: secret.New([]byte(text))}, nil
}

// proof looks a ticket up without using it. What is not there, expired or of another kind is all the same: absent is what the caller says of it.
func (s *Service) proof(ctx context.Context, kind, text string, absent error) (store.Proof, error) {
	hash, ok := hashOf(text)
	if !ok {
		return store.Proof{}, absent
	}
	p, err := s.db.Proof(ctx, kind, hash, s.now())
	return p, or(err, absent)
}

// use looks a ticket up and makes it void.
func (s *Service) use(ctx context.Context, kind, text string, absent error) (store.Proof, error) {
	hash, ok := hashOf(text)
	if !ok {
		return store.Proof{}, absent
	}
	p, err := s.db.UseProof(ctx, kind, hash, s.now())
	return p, or(err, absent)
}

// or puts what a caller may know in the place of NotFound.
func or(err, absent error) error {
	if err != nil && fault.KindOf(err) == fault.NotFound {
		return absent
	}
	return err
}

// dataOf decodes what was stored with a proof.
func dataOf[T any](p store.Proof) (T, error) {
	var data T
	if err := json.Unmarshal(p.Data, &data); err != nil {
		return data, fmt.Errorf("decode a %s: %w", p.Kind, err)
	}
	return data, nil
}

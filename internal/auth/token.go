package auth

import (
	"context"
	"crypto/sha256"
	"hash/crc32"
	"slices"
	"strings"
	"time"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/store"
)

// The text of a token: a prefix by which scanners of source code know it, the secret, and a checksum of both, by which they know that it is no
// example, without asking us.
const (
	TokenPrefix    = "cfd_pat_"
	secretChars    = 43 // 32 bytes in base64url
	checksumChars  = 6  // CRC-32 in base 62, as GitHub's
	maxTokenLife   = 366 * 24 * time.Hour
	tokenLife      = 30 * 24 * time.Hour
	maxTokens      = 100 // of one user
	maxTokenScopes = 50
	base62         = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
)

// tokenData is what is stored with a token.
type tokenData struct {
	Name   string   `json:"name"`
	Scopes []string `json:"scopes"`
	Epoch  int64    `json:"epoch,omitempty"`
}

// tokenText makes the text of a token from its secret part.
func tokenText(secret string) string {
	body := TokenPrefix + secret
	return body + checksum(body)
}

func checksum(body string) string {
	sum := crc32.ChecksumIEEE([]byte(body))
	var out [checksumChars]byte
	for i := len(out) - 1; i >= 0; i-- {
		out[i] = base62[sum%62]
		sum /= 62
	}
	return string(out[:])
}

// IsToken reports whether a text is shaped like a token, to tell it from other secrets in a header; it may still be nobody's.
func IsToken(text string) bool {
	rest, ok := strings.CutPrefix(text, TokenPrefix)
	if !ok || len(rest) != secretChars+checksumChars {
		return false
	}
	body := text[:len(text)-checksumChars]
	_, ok = hashOf(rest[:secretChars])
	return ok && checksum(body) == text[len(body):]
}

func errToken() error {
	return fault.New(fault.Unauthenticated, "the token is not valid").WithHint("make a new one in your account's settings")
}

// Token says who a token belongs to and what it is narrowed to.
func (s *Service) Token(ctx context.Context, text string) (Principal, error) {
	if !IsToken(text) {
		return Principal{}, errToken() // a typing mistake costs no look into the store
	}
	p, err := s.db.Proof(ctx, kindToken, sha256.Sum256([]byte(text)), s.now())
	if err != nil {
		return Principal{}, or(err, errToken())
	}
	data, err := dataOf[tokenData](p)
	if err != nil {
		return Principal{}, err
	}
	user, found, err := s.byID(ctx, p.Subject)
	if err != nil {
		return Principal{}, err
	}
	if !found || user.Tenant != p.Tenant || user.Data.Disabled || user.Data.TokenEpoch != data.Epoch {
		return Principal{}, errToken()
	}
	if now := s.now(); now.Sub(p.Seen) >= touchEvery || !p.Seen.After(p.Created) { // the first use is told at once
		if err := s.db.TouchProof(ctx, p.Hash, now, time.Time{}); err != nil {
			return Principal{}, or(err, errToken())
		}
	}
	who := principal(user, ViaToken)
	who.TokenID, who.Scopes = p.ID, data.Scopes
	return who, nil
}

// NewToken makes a token for a person. Its text is in the answer and nowhere else. A token makes no token: one that leaked would outlive itself.
func (s *Service) NewToken(ctx context.Context, p Principal, n api.NewToken) (api.Token, error) {
	if p.Via != ViaSession {
		return api.Token{}, fault.New(fault.Denied, "a token cannot make another").WithHint("sign in with a browser")
	}
	name, err := parseName(n.Name)
	if err != nil {
		return api.Token{}, err
	}
	if name == "" {
		return api.Token{}, fault.New(fault.Invalid, "the token has no name").WithHint("call it after what will use it")
	}
	scopes, err := s.parseScopes(n.Scopes)
	if err != nil {
		return api.Token{}, err
	}
	life := tokenLife
	if n.Seconds != 0 {
		if n.Seconds < 60 || n.Seconds > int64(maxTokenLife/time.Second) {
			return api.Token{}, fault.New(fault.Invalid, "a token is good for a minute to 366 days")
		}
		life = time.Duration(n.Seconds) * time.Second
	}
	var ticket Ticket
	err = s.db.Within(ctx, func(tx *store.DB) error {
		in := s.In(tx)
		user, err := in.own(ctx, p)
		if err != nil {
			return err
		}
		there, err := tx.Proofs(ctx, kindToken, p.Tenant, p.User, s.now())
		if err != nil {
			return err
		}
		if len(there) >= maxTokens {
			return fault.New(fault.TooMany, "you have %d tokens", len(there)).WithHint("remove those that nothing uses")
		}
		ticket, err = in.issueText(ctx, tokenText(randomText(ticketBytes)), kindToken, p.Tenant, p.User, life, tokenData{Name: name, Scopes: scopes, Epoch: user.Data.TokenEpoch})
		return err
	})
	if err != nil {
		return api.Token{}, err
	}
	return api.Token{ID: ticket.ID, Name: name, Scopes: scopes, Created: ticket.Expires.Add(-life), Expires: ticket.Expires, Secret: ticket.Text()}, nil
}

// parseScopes takes known scopes, each once, and at least one: a token that may do everything says so scope by scope.
func (s *Service) parseScopes(scopes []string) ([]string, error) {
	if len(scopes) == 0 || len(scopes) > maxTokenScopes {
		return nil, fault.New(fault.Invalid, "a token has 1 to %d scopes", maxTokenScopes)
	}
	sorted := slices.Compact(slices.Sorted(slices.Values(scopes)))
	for _, scope := range sorted {
		if !slices.Contains(s.scopes, scope) {
			return nil, fault.New(fault.Invalid, "there is no scope %q", inert(scope, maxName)).WithHint("the scopes are %s", strings.Join(s.scopes, ", "))
		}
	}
	return sorted, nil
}

// Tokens lists a person's own tokens, newest first, without their secrets.
func (s *Service) Tokens(ctx context.Context, p Principal) ([]api.Token, error) {
	proofs, err := s.db.Proofs(ctx, kindToken, p.Tenant, p.User, s.now())
	if err != nil {
		return nil, err
	}
	list := []api.Token{}
	for _, proof := range proofs {
		data, err := dataOf[tokenData](proof)
		if err != nil {
			return nil, err
		}
		t := api.Token{ID: proof.ID, Name: data.Name, Scopes: data.Scopes, Created: proof.Created, Expires: proof.Expires}
		if proof.Seen.After(proof.Created) {
			t.Used = proof.Seen
		}
		list = append(list, t)
	}
	return list, nil
}

// EndToken ends one of a person's own tokens.
func (s *Service) EndToken(ctx context.Context, p Principal, id string) error {
	return or(s.db.DropProof(ctx, kindToken, p.Tenant, p.User, id), fault.New(fault.NotFound, "there is no such token"))
}

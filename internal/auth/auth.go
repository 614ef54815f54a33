// Package auth (CONTROL) says who is there: people by password, one-time code, passkey or their organisation's sign-in service (OIDC), programs by token.
//
// What somebody shows (a session's cookie, a token, a link from a mail) is 256 random bits, of which the store has only the SHA-256. Passwords are
// hashes of Argon2id, secrets of one-time codes are sealed. Nothing here decides what a person may do: that is package control's.
//
// # Nobody locks out another
//
// Attempts to sign in are counted by address and by address and email. A browser that has signed in keeps a device cookie, a proof of its own
// that it belongs to that user; attempts from it are counted by themselves. So whoever guesses from elsewhere, from however many addresses, uses up the counts
// of strangers: the count of all strangers together for one email bounds the guessing, and the owner's own browsers are not in it. On a browser
// without the cookie the owner signs in by passkey or OIDC, which are not guessed and not counted by email, or asks for a reset by mail, which gives the browser the cookie.
package auth

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/go-webauthn/webauthn/webauthn"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/auth/mail"
	"github.com/cofferdam/cofferdam/internal/auth/password"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/seal"
	"github.com/cofferdam/cofferdam/internal/store"
)

// Limiter counts attempts in a sliding window: limit.Memory or limit.Redis. An error refuses the attempt.
type Limiter interface {
	Allow(ctx context.Context, key string, limit int, per time.Duration) (ok bool, retry time.Duration, err error)
}

// Sealer lends the keys that secrets of one-time codes are sealed under: a seal.Vault of the service's own.
type Sealer interface {
	Use(ctx context.Context, f func(*seal.Keyring) error) error
}

// Mailer sends one message: mail.SMTP or mail.Print.
type Mailer interface {
	Send(ctx context.Context, m mail.Message) error
}

// Options are what a Service works with.
type Options struct {
	DB        *store.DB
	BaseURL   string           // https://HOST, or http:// on this machine's own address: what people type, without a path
	Limiter   Limiter          // required
	Sealer    Sealer           // nil: no one-time codes
	Mailer    Mailer           // nil: no mail; links are shown to administrators only
	Hasher    *password.Hasher // nil: with the recommended parameters
	Clock     func() time.Time // nil: time.Now
	Log       *slog.Logger     // nil: nowhere
	Scopes    []string         // what a token's scopes can be; none: no tokens are made
	Providers []Provider       // sign-in services
}

// Service knows the users. It is safe for concurrent use. Run must be under way for mail to be sent.
type Service struct {
	db *store.DB
	*parts
}

// parts is what all views of a service share.
type parts struct {
	base      *url.URL
	limiter   Limiter
	sealer    Sealer
	mailer    Mailer
	hasher    *password.Hasher
	clock     func() time.Time
	log       *slog.Logger
	scopes    []string
	passkeys  *webauthn.WebAuthn // nil where the base URL's host is an address
	providers []*provider
	letters   chan letter
}

// New makes a service. Settings that it cannot keep its promises with are refused.
func New(o Options) (*Service, error) {
	if o.DB == nil || o.Limiter == nil {
		return nil, errors.New("auth: no store or no limiter")
	}
	base, err := parseBase(o.BaseURL)
	if err != nil {
		return nil, err
	}
	p := &parts{base: base, limiter: o.Limiter, sealer: o.Sealer, mailer: o.Mailer, hasher: o.Hasher, clock: o.Clock, log: o.Log, scopes: slices.Clone(o.Scopes), letters: make(chan letter, maxLetters)}
	if p.hasher == nil {
		p.hasher = password.NewHasher(password.Recommended(), 0, 0)
	}
	if p.clock == nil {
		p.clock = time.Now
	}
	if p.log == nil {
		p.log = slog.New(slog.DiscardHandler)
	}
	if p.passkeys, err = relyingParty(base); err != nil {
		return nil, err
	}
	for _, settings := range o.Providers {
		if err := p.addProvider(settings); err != nil {
			return nil, err
		}
	}
	return &Service{db: o.DB, parts: p}, nil
}

// In returns the service as it works inside a transaction: what it does happens with the rest, or not at all. Use it only for what computes no
// hash and asks no other server: other writers wait for the transaction.
func (s *Service) In(tx *store.DB) *Service { return &Service{db: tx, parts: s.parts} }

// parseBase refuses a base URL under which a cookie would travel in clear.
func parseBase(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.Path != "" && u.Path != "/" {
		return nil, fault.New(fault.Invalid, "the base URL %q is not one", text).WithHint("write it like https://cofferdam.example.com")
	}
	switch {
	case u.Scheme == "https", u.Scheme == "http" && loopback(u.Hostname()):
	default:
		return nil, fault.New(fault.Invalid, "the base URL %q is not https", text).WithHint("http is only for this machine itself, such as http://localhost:8080")
	}
	u.Path = ""
	return u, nil
}

// loopback reports whether a host never leaves this machine.
func loopback(host string) bool {
	if host == "localhost" || strings.HasSuffix(host, ".localhost") { // RFC 6761, 6.3
		return true
	}
	a, err := netip.ParseAddr(host)
	return err == nil && a.IsLoopback()
}

// secure reports whether people come over TLS.
func (p *parts) secure() bool { return p.base.Scheme == "https" }

// now has the precision that the store keeps.
func (p *parts) now() time.Time { return p.clock().UTC().Truncate(time.Microsecond) }

// link is where a person goes with a secret.
func (p *parts) link(path string, t Ticket) string {
	return p.base.String() + path + "?" + url.Values{"token": {t.Text()}}.Encode()
}

// Via is how a principal came in. The zero value is not at all.
type Via uint8

// The ways in.
const (
	ViaNothing Via = iota
	ViaSession
	ViaToken
)

var viaNames = [...]string{"nothing", "session", "token"}

// String names the way.
func (v Via) String() string {
	if int(v) < len(viaNames) {
		return viaNames[v]
	}
	return fmt.Sprintf("via(%d)", uint8(v))
}

// Principal is who asks. The zero value is nobody.
type Principal struct {
	User      string // identifier
	Tenant    string
	Email     string
	Name      string
	Role      api.Role
	Operator  bool
	Via       Via
	SessionID string   // public identifier, where Via is ViaSession
	TokenID   string   // where Via is ViaToken
	Scopes    []string // where Via is ViaToken: what it is narrowed to
}

// Visitor is where a person comes from, before anybody knows who it is.
type Visitor struct {
	Address netip.Addr
	Agent   string // what the browser calls itself
	Device  string // the device cookie, if there is one
}

// network is what an attacker has at least one of: an IPv4 address, or the /64 of an IPv6 address, within which everybody has all.
func (v Visitor) network() string {
	a := v.Address.Unmap().WithZone("")
	if a.Is6() {
		if p, err := a.Prefix(64); err == nil {
			return p.String()
		}
	}
	return a.String() // "invalid IP" counts together: the caller did not say
}

const maxAgent = 200

// inert makes a text that a stranger sent fit to be shown: no control or formatting characters, and not long.
func inert(text string, most int) string {
	text = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || unicode.Is(unicode.Cf, r) || r == utf8.RuneError {
			return -1
		}
		return r
	}, text)
	for len(text) > most {
		_, size := utf8.DecodeLastRuneInString(text)
		text = text[:len(text)-size]
	}
	return strings.TrimSpace(text)
}

// allow asks the limiter for one bound.
func (p *parts) allow(ctx context.Context, key string, limit int, per time.Duration) error {
	ok, retry, err := p.limiter.Allow(ctx, "auth:"+key, limit, per)
	if err != nil {
		return fault.New(fault.Unavailable, "nobody can sign in at this moment").WithHint("try again in a minute").Because(err)
	}
	if !ok {
		return tooMany(retry)
	}
	return nil
}

// TooManyError says when to try again.
type TooManyError struct{ Retry time.Duration }

// Error says so to people.
func (e *TooManyError) Error() string { return "retry after " + e.Retry.String() }

func tooMany(retry time.Duration) error {
	return fault.New(fault.TooMany, "there were too many attempts").WithHint("try again in %s", inWords(retry)).Because(&TooManyError{Retry: retry})
}

// inWords rounds up to what people wait for.
func inWords(d time.Duration) string {
	count, unit := int64((d+time.Second-1)/time.Second), "second"
	if d > 2*time.Minute {
		count, unit = int64((d+time.Minute-1)/time.Minute), "minute"
	}
	if d > 2*time.Hour {
		count, unit = int64((d+time.Hour-1)/time.Hour), "hour"
	}
	if count = max(count, 1); count != 1 {
		unit += "s"
	}
	return fmt.Sprintf("%d %s", count, unit)
}

// httpClient bounds what a sign-in service can answer, in time and size: its libraries read to the end.
func httpClient(base http.RoundTripper) *http.Client {
	if base == nil {
		base = http.DefaultTransport
	}
	return &http.Client{Timeout: 15 * time.Second, Transport: boundedTransport{base}}
}

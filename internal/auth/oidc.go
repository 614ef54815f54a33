package auth

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/secret"
	"github.com/cofferdam/cofferdam/internal/store"
)

const (
	oidcLife      = 10 * time.Minute
	oidcTimeout   = 20 * time.Second
	maxOIDCAnswer = 1 << 20
	maxSubject    = 255 // OpenID Connect Core, 2
)

// algorithms are the signatures that are believed: asymmetric ones. "none" and HMAC under the client's secret are not among them, whatever the
// service announces.
func algorithms() []string {
	return []string{oidc.RS256, oidc.RS384, oidc.RS512, oidc.PS256, oidc.PS384, oidc.PS512, oidc.ES256, oidc.ES384, oidc.ES512, oidc.EdDSA}
}

// Provider is a sign-in service (an OpenID Connect issuer).
type Provider struct {
	ID        string // in URLs: lower-case letters, digits, hyphens
	Name      string // on the button
	Issuer    string // https://…, exactly as the service writes itself
	ClientID  string
	Secret    secret.Bytes // none for a public client
	Domains   []string     // of email addresses: whoever the service vouches for with one of these gets an account
	Tenant    string       // the identifier of the tenant that those accounts are made in
	Transport http.RoundTripper
}

// provider is one that is in use. What it says about itself is fetched when it is first needed, and again an hour later.
type provider struct {
	Provider
	client *http.Client

	mu      sync.Mutex
	found   *oidc.Provider
	fetched time.Time
}

// rediscover is how long what a service says about itself is believed; its keys are looked up as they are needed.
const rediscover = time.Hour

// addProvider checks the settings of a sign-in service.
func (p *parts) addProvider(o Provider) error {
	u, err := url.Parse(o.Issuer)
	switch {
	case !regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,62}$`).MatchString(o.ID):
		return fault.New(fault.Invalid, "the sign-in service's id %q is not of lower-case letters, digits and hyphens", o.ID)
	case slices.ContainsFunc(p.providers, func(other *provider) bool { return other.ID == o.ID || other.Issuer == o.Issuer }):
		return fault.New(fault.Invalid, "the sign-in service %q is there twice", o.ID)
	case err != nil || u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil:
		return fault.New(fault.Invalid, "the issuer %q is not an https URL", o.Issuer)
	case o.ClientID == "":
		return fault.New(fault.Invalid, "the sign-in service %q has no client id", o.ID)
	case len(o.Domains) > 0 && o.Tenant == "":
		return fault.New(fault.Invalid, "the sign-in service %q makes accounts for %s, and says no tenant", o.ID, strings.Join(o.Domains, ", "))
	}
	o.Domains = slices.Clone(o.Domains)
	for i, domain := range o.Domains {
		if o.Domains[i] = strings.ToLower(domain); !dotted(o.Domains[i], "-") {
			return fault.New(fault.Invalid, "the domain %q is not one", domain)
		}
	}
	if o.Name == "" {
		o.Name = o.ID
	}
	p.providers = append(p.providers, &provider{Provider: o, client: httpClient(o.Transport)})
	return nil
}

// boundedTransport ends answers that are longer than any honest one.
type boundedTransport struct{ base http.RoundTripper }

// RoundTrip asks, and bounds the answer's body.
func (t boundedTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	answer, err := t.base.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	answer.Body = http.MaxBytesReader(nil, answer.Body, maxOIDCAnswer)
	return answer, nil
}

// ProviderInfo is what the sign-in page shows.
type ProviderInfo struct{ ID, Name string }

// Providers lists the sign-in services.
func (s *Service) Providers() []ProviderInfo {
	list := make([]ProviderInfo, 0, len(s.providers))
	for _, p := range s.providers {
		list = append(list, ProviderInfo{ID: p.ID, Name: p.Name})
	}
	return list
}

// CallbackPath is where a sign-in service sends people back to.
func CallbackPath(id string) string { return "/signin/oidc/" + id + "/callback" }

func (s *Service) provider(id string) (*provider, error) {
	for _, p := range s.providers {
		if p.ID == id {
			return p, nil
		}
	}
	return nil, fault.New(fault.NotFound, "there is no such sign-in service")
}

// discover returns what the service says about itself.
func (p *provider) discover(ctx context.Context, now time.Time) (*oidc.Provider, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.found != nil && now.Sub(p.fetched) < rediscover {
		return p.found, nil
	}
	found, err := oidc.NewProvider(oidc.ClientContext(ctx, p.client), p.Issuer)
	if err != nil {
		if p.found != nil {
			return p.found, nil // an old answer is better than none: what is signed is checked all the same
		}
		return nil, unreachable(p, err)
	}
	p.found, p.fetched = found, now
	return found, nil
}

func unreachable(p *provider, cause error) error {
	return fault.New(fault.Unavailable, "the sign-in service %s does not answer as it should", p.Name).WithHint("try again, or sign in another way").Because(cause)
}

func (s *Service) oauth(p *provider, found *oidc.Provider) *oauth2.Config {
	endpoint := found.Endpoint()
	endpoint.AuthStyle = p.style(found)
	return &oauth2.Config{ClientID: p.ClientID, ClientSecret: string(p.Secret.Reveal()), Endpoint: endpoint,
		RedirectURL: s.base.String() + CallbackPath(p.ID), Scopes: []string{oidc.ScopeOpenID, "email", "profile"}}
}

// style is how we prove to the service who we are. The library would find out by trying, and some services void a code that was shown with a wrong proof.
func (p *provider) style(found *oidc.Provider) oauth2.AuthStyle {
	var says struct {
		Methods []string `json:"token_endpoint_auth_methods_supported"`
	}
	// Absent means Basic (OpenID Connect Discovery, 3).
	if err := found.Claims(&says); err != nil || p.Secret.Empty() || len(says.Methods) > 0 && !slices.Contains(says.Methods, "client_secret_basic") {
		return oauth2.AuthStyleInParams
	}
	return oauth2.AuthStyleInHeader
}

// oidcData is what is stored while a person is at the sign-in service.
type oidcData struct {
	Provider string `json:"provider"`
	Return   string `json:"return,omitempty"`
}

// derive makes the values of one sign-in from the secret that only this browser has: state, nonce and PKCE verifier. So the store keeps none of them, and
// an answer that was meant for another browser, or made up, fits nowhere.
func derive(browser, what string) string {
	mac := hmac.New(sha256.New, []byte(browser))
	mac.Write([]byte("cofferdam oidc " + what))
	return base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

// BeginOIDC returns where to send the person, and the ticket that the browser keeps as OIDCCookie until it comes back.
// to is the page of ours to show afterwards; it comes back from FinishOIDC.
func (s *Service) BeginOIDC(ctx context.Context, id, to string, v Visitor) (string, Ticket, error) {
	p, err := s.provider(id)
	if err != nil {
		return "", Ticket{}, err
	}
	if err := s.allow(ctx, "oidc:"+v.network(), perNetwork, quarter); err != nil {
		return "", Ticket{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, oidcTimeout)
	defer cancel()
	found, err := p.discover(ctx, s.now())
	if err != nil {
		return "", Ticket{}, err
	}
	t, err := s.issue(ctx, kindOIDC, "", "", oidcLife, oidcData{Provider: p.ID, Return: LocalPath(to)})
	if err != nil {
		return "", Ticket{}, err
	}
	browser := t.Text()
	address := s.oauth(p, found).AuthCodeURL(derive(browser, "state"), oidc.Nonce(derive(browser, "nonce")), oauth2.S256ChallengeOption(derive(browser, "verifier")))
	return address, t, nil
}

// LocalPath returns a path of ours to go to, or "/" where the text would lead elsewhere: an open redirect is a phisher's friend.
func LocalPath(text string) string {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "" || u.Host != "" || u.User != nil || !strings.HasPrefix(text, "/") || strings.HasPrefix(text, "//") || strings.ContainsAny(text, "\\\x00\r\n\t") || len(text) > 2000 {
		return "/"
	}
	return text
}

// FinishOIDC takes the answer that the person's browser brings back in the query of the callback. browser is the cookie. It returns the page that
// BeginOIDC was told.
func (s *Service) FinishOIDC(ctx context.Context, id, browser string, query url.Values, v Visitor) (Outcome, string, error) {
	expired := fault.New(fault.Unauthenticated, "this sign-in has expired or was begun in another browser").WithHint("begin again")
	p, err := s.provider(id)
	if err != nil {
		return Outcome{}, "/", err
	}
	proof, err := s.use(ctx, kindOIDC, browser, expired)
	if err != nil {
		return Outcome{}, "/", err
	}
	data, err := dataOf[oidcData](proof)
	if err != nil {
		return Outcome{}, "/", err
	}
	if data.Provider != id || subtle.ConstantTimeCompare([]byte(query.Get("state")), []byte(derive(browser, "state"))) != 1 {
		return Outcome{}, "/", expired
	}
	// RFC 9207: the answer of another service is not believed.
	if iss := query.Get("iss"); iss != "" && iss != p.Issuer {
		return Outcome{}, "/", expired
	}
	if query.Get("error") != "" || query.Get("code") == "" {
		return Outcome{}, data.Return, fault.New(fault.Denied, "the sign-in service %s did not let you in", p.Name).Because(fmt.Errorf("it says %q", inert(query.Get("error"), maxName)))
	}
	ctx, cancel := context.WithTimeout(ctx, oidcTimeout)
	defer cancel()
	who, err := s.redeem(ctx, p, browser, query.Get("code"))
	if err != nil {
		return Outcome{}, data.Return, err
	}
	out, err := s.admitClaims(ctx, p, who, v)
	return out, data.Return, err
}

// claims are what a sign-in service says of a person.
type claims struct {
	Issuer        string
	Subject       string
	Email         string
	EmailVerified bool
	Name          string
}

// redeem trades the code for an identity token and checks that.
func (s *Service) redeem(ctx context.Context, p *provider, browser, code string) (claims, error) {
	found, err := p.discover(ctx, s.now())
	if err != nil {
		return claims{}, err
	}
	token, err := s.oauth(p, found).Exchange(oidc.ClientContext(ctx, p.client), code, oauth2.VerifierOption(derive(browser, "verifier")))
	if err != nil {
		return claims{}, unreachable(p, err)
	}
	raw, ok := token.Extra("id_token").(string)
	if !ok {
		return claims{}, unreachable(p, errors.New("no identity token"))
	}
	// Signature, issuer, audience and expiry are checked here, the rest below.
	verified, err := found.Verifier(&oidc.Config{ClientID: p.ClientID, SupportedSigningAlgs: algorithms(), Now: s.now}).Verify(oidc.ClientContext(ctx, p.client), raw)
	if err != nil {
		return claims{}, unbelieved(p, err)
	}
	if subtle.ConstantTimeCompare([]byte(verified.Nonce), []byte(derive(browser, "nonce"))) != 1 {
		return claims{}, unbelieved(p, errors.New("the nonce is another sign-in's"))
	}
	var c struct {
		Email    string `json:"email"`
		Verified any    `json:"email_verified"` // some services write it as text
		Name     string `json:"name"`
		Party    string `json:"azp"`
	}
	if err := verified.Claims(&c); err != nil {
		return claims{}, unbelieved(p, err)
	}
	// OpenID Connect Core, 3.1.3.7, 4 and 5: a token for several must say that it is ours.
	if (len(verified.Audience) > 1 || c.Party != "") && c.Party != p.ClientID {
		return claims{}, unbelieved(p, errors.New("the token was made for another client"))
	}
	if verified.Subject == "" || len(verified.Subject) > maxSubject {
		return claims{}, unbelieved(p, errors.New("no subject, or one that is too long"))
	}
	return claims{Issuer: verified.Issuer, Subject: verified.Subject, Email: c.Email, EmailVerified: c.Verified == true || c.Verified == "true", Name: c.Name}, nil
}

func unbelieved(p *provider, cause error) error {
	return fault.New(fault.Unauthenticated, "what the sign-in service %s says is not believed", p.Name).WithHint("begin again").Because(cause)
}

// admitClaims signs in the user whom a sign-in service vouches for.
func (s *Service) admitClaims(ctx context.Context, p *provider, c claims, v Visitor) (Outcome, error) {
	user, connected, err := s.claimed(ctx, p, c)
	if err != nil {
		return Outcome{}, err
	}
	if user.Data.Disabled {
		return Outcome{}, noAccount(p)
	}
	device, err := s.device(ctx, v.Device, user, true)
	if err != nil {
		return Outcome{}, err
	}
	data := challengeData{Method: byOIDC + p.ID, Device: device}
	if !connected {
		// Connected once the user's own second factor, if any, was shown: the service alone cannot take over an account that has one.
		data.Link = &link{Issuer: c.Issuer, Subject: c.Subject}
	}
	return s.proceed(ctx, user, v, data)
}

func noAccount(p *provider) error {
	return fault.New(fault.Denied, "there is no account for you").WithHint("ask an administrator to invite the email address that %s knows", p.Name)
}

// claimed finds the user: by what the service calls the person, which never changes hands; else, the first time, by an email address that the service
// says it has verified, of a user who is connected to no service yet; else a new one, for the domains that are configured.
func (s *Service) claimed(ctx context.Context, p *provider, c claims) (user store.Object[User], connected bool, err error) {
	index, err := identities().ByName(ctx, s.db, "", identityName(c.Issuer, c.Subject))
	if err == nil {
		user, found, err := s.byID(ctx, index.Data.User)
		if err == nil && (!found || user.Data.Issuer != c.Issuer || user.Data.Subject != c.Subject) {
			err = noAccount(p)
		}
		return user, true, err
	}
	if fault.KindOf(err) != fault.NotFound {
		return user, false, err
	}
	email, err := ParseEmail(c.Email)
	if err != nil || !c.EmailVerified {
		return user, false, noAccount(p)
	}
	user, found, err := s.byEmail(ctx, email)
	if err != nil {
		return user, false, err
	}
	if found {
		if user.Data.Issuer != "" {
			return user, false, noAccount(p)
		}
		return user, false, nil
	}
	if _, domain, _ := strings.Cut(email, "@"); !slices.Contains(p.Domains, domain) {
		return user, false, noAccount(p)
	}
	user, err = s.enlist(ctx, p.Tenant, email, c)
	return user, err == nil, err
}

// enlist makes a user for a person whom the service vouches for, who may look and do nothing until an administrator says otherwise.
func (s *Service) enlist(ctx context.Context, tenant, email string, c claims) (store.Object[User], error) {
	var user store.Object[User]
	err := s.db.Within(ctx, func(tx *store.DB) error {
		in := s.In(tx)
		if _, err := Tenants().Get(ctx, tx, "", tenant); err != nil {
			return fmt.Errorf("find the tenant for new accounts: %w", err)
		}
		var err error
		user, err = in.insert(ctx, tenant, email, User{Name: inert(c.Name, maxName), Role: api.Viewer, Issuer: c.Issuer, Subject: c.Subject})
		if err != nil {
			return err
		}
		return in.index(ctx, user, link{Issuer: c.Issuer, Subject: c.Subject})
	})
	return user, err
}

// index makes a person at a sign-in service one user. It is called in a transaction.
func (s *Service) index(ctx context.Context, user store.Object[User], l link) error {
	_, err := identities().Insert(ctx, s.db, store.Object[where]{Name: identityName(l.Issuer, l.Subject), Data: where{Tenant: user.Tenant, User: user.ID}})
	return err
}

// connect remembers who a user is at a sign-in service.
func (s *Service) connect(ctx context.Context, user store.Object[User], l link) (store.Object[User], error) {
	err := s.db.Within(ctx, func(tx *store.DB) error {
		in := s.In(tx)
		if err := in.index(ctx, user, l); err != nil {
			return err
		}
		var err error
		user, err = in.change(ctx, user, func(u *User) error {
			if u.Issuer != "" {
				return fault.New(fault.Conflict, "the account is connected to a sign-in service already")
			}
			u.Issuer, u.Subject = l.Issuer, l.Subject
			return nil
		})
		return err
	})
	return user, err
}

// Disconnect forgets who a person is at the sign-in service. It needs the password, so it leaves a way to sign in.
func (s *Service) Disconnect(ctx context.Context, p Principal, password string) error {
	if err := s.Reauthenticate(ctx, p, password); err != nil {
		return err
	}
	return s.db.Within(ctx, func(tx *store.DB) error {
		in := s.In(tx)
		user, err := in.own(ctx, p)
		if err != nil {
			return err
		}
		if user.Data.Issuer == "" {
			return fault.New(fault.NotFound, "the account is connected to no sign-in service")
		}
		if user.Data.Password == "" {
			return fault.New(fault.Conflict, "without the sign-in service there is no password to sign in with").WithHint("set one by a reset first")
		}
		if err := in.unindex(ctx, identities(), identityName(user.Data.Issuer, user.Data.Subject)); err != nil {
			return err
		}
		_, err = in.change(ctx, user, func(u *User) error { u.Issuer, u.Subject = "", ""; return nil })
		return err
	})
}

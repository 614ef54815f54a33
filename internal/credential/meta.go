package credential

import (
	"fmt"
	"net/http"
	"net/textproto"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/netname"
)

// Meta is what is known of a credential without opening it. It is stored in plain, and sealed values are bound to it: changed conditions do not open.
type Meta struct {
	Name  Name  `json:"name"`
	Kind  Kind  `json:"kind"`
	Scope Scope `json:"scope"`

	Header string `json:"header,omitempty"` // which header it is sent in; Authorization if none was named
	Prefix string `json:"prefix,omitempty"` // what stands before the value there, such as "Bearer "
	User   string `json:"user,omitempty"`   // if set, the value is sent as the password of this user (Basic), whatever the kind
	Shape  Shape  `json:"shape,omitempty"`  // what a placeholder for it looks like

	GitHub *GitHubSettings `json:"github,omitempty"`
	OAuth  *OAuthSettings  `json:"oauth,omitempty"`
	AWS    *AWSSettings    `json:"aws,omitempty"`

	Created time.Time `json:"created"`
	Rotated time.Time `json:"rotated,omitzero"`
}

// GitHubSettings says which installation token is minted, and what it is limited to.
type GitHubSettings struct {
	API            string            `json:"api"` // https://api.github.com, or that of a server of one's own
	AppID          string            `json:"app_id"`
	InstallationID string            `json:"installation_id"`
	Repositories   []string          `json:"repositories,omitempty"` // names without owner; empty: all of the installation
	Permissions    map[string]string `json:"permissions,omitempty"`  // such as contents: read; empty: all of the app
}

// OAuthSettings says how an access token is asked for.
type OAuthSettings struct {
	TokenURL         string     `json:"token_url"`
	ClientID         string     `json:"client_id,omitempty"`
	ClientAuth       ClientAuth `json:"client_auth,omitempty"`
	Scopes           []string   `json:"scopes,omitempty"`
	Audience         string     `json:"audience,omitempty"`
	Resource         string     `json:"resource,omitempty"`
	SubjectTokenType string     `json:"subject_token_type,omitempty"` // RFC 8693, section 3
	RequestedType    string     `json:"requested_token_type,omitempty"`
}

// ClientAuth says how a client proves itself to a token endpoint (RFC 6749, section 2.3.1). The zero value is by the Authorization header.
type ClientAuth string

// The ways of client authentication.
const (
	ClientAuthHeader ClientAuth = ""
	ClientAuthBody   ClientAuth = "body"
)

// AWSSettings says whose signature it is. An empty region or service is taken from the signature that is replaced.
type AWSSettings struct {
	AccessKeyID string `json:"access_key_id"`
	Region      string `json:"region,omitempty"`
	Service     string `json:"service,omitempty"`
}

// Token types of RFC 8693, section 3.
const (
	tokenTypeJWT    = "urn:ietf:params:oauth:token-type:jwt"
	tokenTypeAccess = "urn:ietf:params:oauth:token-type:access_token"
)

// withDefaults fills in what was not said.
func (m Meta) withDefaults() Meta {
	m.Scope = m.Scope.withDefaults()
	if m.Kind == AWS {
		return m
	}
	if m.Header == "" {
		m.Header = "Authorization"
		if m.Prefix == "" && m.User == "" { // whoever names the header says what stands in it, or nothing
			m.Prefix = "Bearer "
		}
	}
	m.Header = textproto.CanonicalMIMEHeaderKey(m.Header)
	if g := m.GitHub; g != nil && g.API == "" {
		with := *g
		with.API = "https://api.github.com"
		m.GitHub = &with
	}
	if o := m.OAuth; o != nil && m.Kind == TokenExchange && o.SubjectTokenType == "" {
		with := *o
		with.SubjectTokenType = tokenTypeJWT
		m.OAuth = &with
	}
	return m
}

// check refuses what cannot work, and what must not.
func (m Meta) check() error {
	if _, err := ParseName(string(m.Name)); err != nil {
		return err
	}
	if _, err := ParseKind(string(m.Kind)); err != nil {
		return err
	}
	if err := m.Scope.check(); err != nil {
		return err
	}
	if err := m.checkHeader(); err != nil {
		return err
	}
	if m.Shape != "" && !slices.Contains(Shapes(), m.Shape) {
		return fault.New(fault.Invalid, "%.40q is no shape of a placeholder", m.Shape).WithHint("the shapes are %s", shapeNames())
	}
	return m.checkSettings()
}

// unfit are headers that are no place for a credential: they frame the request, name its destination, or are read by others than the server.
func unfit() []string {
	return []string{"Connection", "Content-Length", "Content-Type", "Expect", "Host", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Proxy-Connection",
		"Range", "Referer", "Te", "Trailer", "Transfer-Encoding", "Upgrade", "User-Agent", "Via"}
}

func (m Meta) checkHeader() error {
	if m.Kind == AWS {
		if m.Header != "" || m.Prefix != "" || m.User != "" {
			return fault.New(fault.Invalid, "a signature has its own headers").WithHint("leave out --header, --prefix and --user")
		}
		return nil
	}
	if m.Header == "" || len(m.Header) > 100 || strings.Trim(m.Header, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_") != "" {
		return fault.New(fault.Invalid, "%.60q is no name of a header", m.Header)
	}
	if slices.Contains(unfit(), m.Header) {
		return fault.New(fault.Invalid, "the header %s is no place for a credential", m.Header).WithHint("most servers take Authorization; leave out --header")
	}
	for name, text := range map[string]string{"prefix": m.Prefix, "user": m.User} {
		if len(text) > 200 || strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r == 0x7f || r > 0x7f && name == "prefix" }) {
			return fault.New(fault.Invalid, "the %s is too long or has characters that do not fit into a header", name)
		}
	}
	switch {
	case m.Kind == Basic && m.User == "":
		return fault.New(fault.Invalid, "a credential of kind basic needs a user").WithHint("write --user NAME")
	case strings.Contains(m.User, ":"):
		return fault.New(fault.Invalid, "a user cannot contain a colon (RFC 7617)")
	case m.User != "" && m.Prefix != "":
		return fault.New(fault.Invalid, "with a user the prefix is Basic").WithHint("leave out --prefix or --user")
	}
	return nil
}

func (m Meta) checkSettings() error {
	oauth := m.Kind == OAuth2Client || m.Kind == OAuth2Refresh || m.Kind == TokenExchange
	if (m.GitHub != nil) != (m.Kind == GitHubApp) || (m.OAuth != nil) != oauth || (m.AWS != nil) != (m.Kind == AWS) {
		return fault.New(fault.Invalid, "the settings do not belong to a credential of kind %s", m.Kind).WithHint("see: cofferdam credential add --help")
	}
	switch {
	case m.GitHub != nil:
		return m.GitHub.check()
	case m.OAuth != nil:
		return m.OAuth.check(m.Kind)
	case m.AWS != nil:
		return m.AWS.check()
	}
	return nil
}

func (g *GitHubSettings) check() error {
	if _, err := parseEndpoint(g.API); err != nil {
		return err
	}
	for flag, id := range map[string]string{"app-id": g.AppID, "installation-id": g.InstallationID} {
		if id == "" || len(id) > 40 || strings.Trim(id, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.") != "" {
			return fault.New(fault.Invalid, "%.40q is no id", id).WithHint("write --%s as the app's settings page shows it", flag)
		}
	}
	if len(g.Repositories) > maxListed || len(g.Permissions) > maxListed {
		return fault.New(fault.TooMany, "more than %d repositories or permissions", maxListed)
	}
	for _, r := range g.Repositories {
		if r == "" || strings.Contains(r, "/") {
			return fault.New(fault.Invalid, "%.60q is no name of a repository", r).WithHint("write it without its owner, which the installation says")
		}
	}
	return nil
}

func (o *OAuthSettings) check(k Kind) error {
	if _, err := parseEndpoint(o.TokenURL); err != nil {
		return err
	}
	if o.ClientID == "" && k != TokenExchange {
		return fault.New(fault.Invalid, "a credential of kind %s needs a client id", k).WithHint("write --client-id ID")
	}
	if o.ClientAuth != ClientAuthHeader && o.ClientAuth != ClientAuthBody {
		return fault.New(fault.Invalid, "%.40q is no client authentication", o.ClientAuth).WithHint("write --client-auth header or --client-auth body")
	}
	if len(o.Scopes) > maxListed {
		return fault.New(fault.TooMany, "more than %d scopes", maxListed)
	}
	return nil
}

func (a *AWSSettings) check() error {
	if len(a.AccessKeyID) < 16 || len(a.AccessKeyID) > 128 || strings.Trim(a.AccessKeyID, "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_") != "" {
		return fault.New(fault.Invalid, "this is no access key id").WithHint("write --access-key-id as in AKIA..., and the secret access key on standard input")
	}
	for _, s := range []string{a.Region, a.Service} {
		if len(s) > 60 || strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
			return fault.New(fault.Invalid, "%.60q is no region or service", s).WithHint("write them as in --region eu-central-1 --service s3")
		}
	}
	return nil
}

// parseEndpoint reads the address of a token endpoint. Its error does not repeat the text, which may contain a password.
func parseEndpoint(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "https" || u.User != nil || u.Fragment != "" || u.Opaque != "" || len(text) > 1000 {
		return nil, fault.New(fault.Invalid, "this is no address of a token endpoint").WithHint("write it as https://HOST/PATH, without user and password")
	}
	if _, err := netname.ParseHost(u.Hostname()); err != nil {
		return nil, fmt.Errorf("token endpoint: %w", err)
	}
	if p := u.Port(); p != "" {
		if _, err := netname.ParsePort(p); err != nil {
			return nil, fmt.Errorf("token endpoint: %w", err)
		}
	}
	return u, nil
}

// Endpoint returns the host and port that tokens are minted at, if the kind mints.
func (m Meta) Endpoint() (host netname.Host, port uint16, ok bool) {
	var text string
	switch {
	case m.GitHub != nil:
		text = m.GitHub.API
	case m.OAuth != nil:
		text = m.OAuth.TokenURL
	default:
		return "", 0, false
	}
	u, err := parseEndpoint(text)
	if err != nil {
		return "", 0, false
	}
	port = 443
	if p := u.Port(); p != "" {
		port, _ = netname.ParsePort(p) // parseEndpoint has read it
	}
	return netname.Host(u.Hostname()), port, true
}

// Headers returns the names of the headers that a grant of this credential sets or takes away, in canonical form.
func (m Meta) Headers() []string {
	if m.Kind == AWS {
		return []string{"Authorization", "X-Amz-Date", "X-Amz-Security-Token"}
	}
	return []string{http.CanonicalHeaderKey(m.Header)}
}

// Fits returns nothing if a policy's entry only narrows the credential and names the header that it is sent in, else a sentence that says what does not fit. It is
// for the moment a policy is loaded; Lend holds every request to the credential's own conditions anyway.
func (m Meta) Fits(header string, narrower Scope) error {
	if own := m.Headers()[0]; http.CanonicalHeaderKey(header) != own {
		return fault.New(fault.Invalid, "the credential %s is sent in the header %s, not %.60q", m.Name, own, header).WithHint("write header: %s, or leave it out", own)
	}
	return m.Scope.Covers(narrower)
}

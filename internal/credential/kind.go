// Package credential (LAW) keeps real credentials sealed, says where each may be used, and lends one for a single request at a time.
//
// A person adds a credential with its conditions (hosts, ports, paths, methods); a policy can only narrow them. A gateway opens the few that its sandbox may use
// and holds their data keys, not the key of the store. What it lends is a Grant: it sets one header or signs one request, and lists what must not come back.
package credential

import (
	"slices"
	"strings"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/secret"
)

// Name is what people call a credential: 1 to 63 lower-case letters, digits, dots, hyphens and underscores, beginning with a letter or digit. Only ParseName makes one.
type Name string

const maxName = 63

// ParseName reads a name. Its error does not repeat the text: it may be a secret that was typed in the wrong place.
func ParseName(s string) (Name, error) {
	if len(s) > maxName || s == "" || strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-_.") != "" || strings.ContainsRune("-_.", rune(s[0])) {
		return "", fault.New(fault.Invalid, "this is no name of a credential").
			WithHint("a name is lower-case letters, digits, dots, hyphens and underscores, at most %d, such as github-main", maxName)
	}
	return Name(s), nil
}

// String returns the name.
func (n Name) String() string { return string(n) }

// Kind says how a credential becomes what a server accepts. The zero value is none.
type Kind string

// The kinds.
const (
	Static        Kind = "static"         // a token that stands in a header as it is
	Basic         Kind = "basic"          // user and password (RFC 7617)
	GitHubApp     Kind = "github-app"     // an installation token of a GitHub App, minted with the app's private key
	OAuth2Client  Kind = "oauth2-client"  // client credentials (RFC 6749, section 4.4)
	OAuth2Refresh Kind = "oauth2-refresh" // a refresh token (RFC 6749, section 6), which the server may replace at each use
	TokenExchange Kind = "token-exchange" // an identity token exchanged for an access token (RFC 8693)
	AWS           Kind = "aws"            // requests signed with Signature Version 4
)

// Field names one secret of a credential.
type Field string

// FieldNames lists fields for people.
func FieldNames(fields []Field) string {
	var names []string
	for _, f := range fields {
		names = append(names, string(f))
	}
	return strings.Join(names, ", ")
}

// The fields.
const (
	Value           Field = "value"
	Password        Field = "password"
	PrivateKey      Field = "private-key"
	ClientSecret    Field = "client-secret"
	RefreshToken    Field = "refresh-token"
	SubjectToken    Field = "subject-token"
	SecretAccessKey Field = "secret-access-key"
	SessionToken    Field = "session-token"
)

// Kinds lists all kinds.
func Kinds() []Kind {
	return []Kind{Static, Basic, GitHubApp, OAuth2Client, OAuth2Refresh, TokenExchange, AWS}
}

// ParseKind reads a kind.
func ParseKind(s string) (Kind, error) {
	if k := Kind(s); slices.Contains(Kinds(), k) {
		return k, nil
	}
	var names []string
	for _, k := range Kinds() {
		names = append(names, string(k))
	}
	return "", fault.New(fault.Invalid, "%.40q is no kind of credential", s).WithHint("the kinds are %s", strings.Join(names, ", "))
}

// Fields returns the secrets that a credential of this kind consists of. The first is the one that is asked for if nothing else is said.
func (k Kind) Fields() (required, optional []Field) {
	switch k {
	case Static:
		return []Field{Value}, nil
	case Basic:
		return []Field{Password}, nil
	case GitHubApp:
		return []Field{PrivateKey}, nil
	case OAuth2Client:
		return []Field{ClientSecret}, nil
	case OAuth2Refresh:
		return []Field{RefreshToken}, []Field{ClientSecret}
	case TokenExchange:
		return []Field{SubjectToken}, []Field{ClientSecret}
	case AWS:
		return []Field{SecretAccessKey}, []Field{SessionToken}
	}
	return nil, nil
}

// mints reports whether the header's value comes from a token endpoint.
func (k Kind) mints() bool {
	return k == GitHubApp || k == OAuth2Client || k == OAuth2Refresh || k == TokenExchange
}

// Material is the secret part of a credential.
type Material map[Field]secret.Bytes

// maxSecret bounds one secret: an RSA key of 8192 bits has 6400 bytes as PEM.
const maxSecret = 12 << 10

// check holds material to its kind: nothing missing, nothing more, and each fit for where it goes.
func (m Material) check(k Kind) error {
	required, optional := k.Fields()
	for _, f := range required {
		if m[f].Empty() {
			return fault.New(fault.Invalid, "a credential of kind %s needs its %s", k, f)
		}
	}
	for f, v := range m {
		if !slices.Contains(required, f) && !slices.Contains(optional, f) {
			return fault.New(fault.Invalid, "a credential of kind %s has no %s", k, f)
		}
		if v.Len() > maxSecret {
			return fault.New(fault.Invalid, "the %s has %d bytes, more than %d", f, v.Len(), maxSecret)
		}
		if err := checkField(f, v); err != nil {
			return err
		}
	}
	return nil
}

// checkField refuses what would break a header, or is no key. Passwords of Basic are encoded before they go anywhere, so only control characters are out.
func checkField(f Field, v secret.Bytes) error {
	if f == PrivateKey {
		_, err := parseRSA(v)
		return err
	}
	low := byte('!')
	if f == Password || f == ClientSecret {
		low = ' '
	}
	for _, c := range v.Reveal() {
		if c < low || c == 0x7f || f != Password && f != ClientSecret && c > 0x7f {
			return fault.New(fault.Invalid, "the %s contains a character that no such secret has: a space, a line break or another that is not visible ASCII", f).
				WithHint("check what was pasted; one line break at the end is taken off already")
		}
	}
	return nil
}

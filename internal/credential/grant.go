package credential

import (
	"context"
	"encoding/base64"
	"net/http"
	"time"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/secret"
)

// Grant is the use of one credential for one request. It does not change, and is safe for concurrent use.
type Grant struct {
	loan   *loan
	want   Request
	state  state
	minted secret.Bytes
	value  secret.Bytes // what the header holds; empty where a request is signed
}

// prepare makes the header's value.
func (g *Grant) prepare() {
	m := g.state.meta
	v := g.carried()
	switch {
	case m.Kind == AWS:
	case m.User != "":
		g.value = secret.Take(append([]byte("Basic "), basic(m.User, v)...))
	default:
		g.value = secret.Take(append([]byte(m.Prefix), v.Reveal()...))
	}
}

// carried is the secret that the header is made of.
func (g *Grant) carried() secret.Bytes {
	switch g.state.meta.Kind {
	case Static:
		return g.state.secrets[Value]
	case Basic:
		return g.state.secrets[Password]
	}
	return g.minted
}

func basic(user string, v secret.Bytes) []byte {
	pair := append([]byte(user+":"), v.Reveal()...)
	defer clear(pair)
	return base64.StdEncoding.AppendEncode(nil, pair)
}

// Credential returns the name of the credential, for the record.
func (g *Grant) Credential() Name { return g.loan.name }

// Signs reports whether the request must be signed by SignRequest. Otherwise Inject does.
func (g *Grant) Signs() bool { return g.state.meta.Kind == AWS }

// Header returns the header that Inject sets, and its value. It is nothing where the request is signed.
func (g *Grant) Header() (name string, value secret.Bytes) { return g.state.meta.Header, g.value }

// Inject sets the credential's header, once, in place of all that stood there.
func (g *Grant) Inject(h http.Header) error {
	if g.Signs() || g.value.Empty() {
		return fault.New(fault.Internal, "this grant signs requests")
	}
	if err := g.Revoked(); err != nil {
		return err
	}
	h[g.state.meta.Header] = []string{string(g.value.Reveal())}
	return nil
}

// SignRequest signs a request in place of the signature that it has. payloadHash is the lower-case hexadecimal SHA-256 of the body; if it is empty the request's own
// X-Amz-Content-Sha256 is taken, which the server compares with the body. Headers and URL are final then: what is signed is what is sent.
func (g *Grant) SignRequest(r *http.Request, payloadHash string) error {
	if !g.Signs() {
		return fault.New(fault.Internal, "this grant sets a header")
	}
	if err := g.Revoked(); err != nil {
		return err
	}
	aws := g.state.meta.AWS
	s := signer{accessKeyID: aws.AccessKeyID, region: aws.Region, service: aws.Service,
		secret: g.state.secrets[SecretAccessKey], session: g.state.secrets[SessionToken]}
	return s.sign(r, payloadHash, g.loan.now())
}

// Secrets returns every secret that the request carries or that stands behind it. An answer that contains one of them, in whatever encoding, is an echo.
func (g *Grant) Secrets() []secret.Bytes {
	var list []secret.Bytes
	if m := g.state.meta; m.User != "" && m.Kind != AWS {
		list = append(list, secret.Take(basic(m.User, g.carried())))
	}
	if !g.minted.Empty() {
		list = append(list, g.minted)
	}
	for f, v := range g.state.secrets {
		if f != PrivateKey { // never sent, and too long for a window that slides
			list = append(list, v)
		}
	}
	return list
}

// Revoked returns an error once what was lent must not be used any more: the credential was removed, or its conditions do not allow the request any more.
func (g *Grant) Revoked() error {
	st, err := g.loan.current(context.Background()) // a few system calls; where the file has changed, bounded by lockPatience
	switch {
	case fault.KindOf(err) == fault.NotFound:
		return errGone
	case err != nil || st.version == g.state.version:
		return nil // what cannot be read refuses the next request; this one was allowed
	}
	if err := st.meta.Scope.Allow(g.want); err != nil {
		return fault.New(fault.Denied, "its conditions were changed: %s", fault.Public(err))
	}
	return nil
}

// Rejected tells that the server refused the credential (status 401): a minted token that was revoked before its time is not lent again.
func (g *Grant) Rejected() {
	if !g.minted.Empty() {
		g.loan.reject(g.minted)
	}
}

// renewal is when a token is replaced: five minutes before it expires, or after three quarters of a short life.
func renewal(life time.Duration) time.Duration { return life - min(5*time.Minute, life/4) }

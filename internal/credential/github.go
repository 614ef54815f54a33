package credential

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/secret"
)

const (
	// minRSA is the smallest key that is accepted; GitHub makes keys of 2048 bits.
	minRSA = 2048
	// jwtBack and jwtLife keep the assertion valid under clocks that differ; GitHub allows ten minutes in all.
	jwtBack = time.Minute
	jwtLife = 9 * time.Minute
)

// parseRSA reads the private key of a GitHub App, as PEM in PKCS #1 (what GitHub hands out) or PKCS #8.
func parseRSA(v secret.Bytes) (*rsa.PrivateKey, error) {
	bad := func(why string) error {
		return fault.New(fault.Invalid, "the private key %s", why).WithHint("give the .pem file that the app's settings page handed out: --from-file app.pem")
	}
	block, _ := pem.Decode(v.Reveal())
	if block == nil {
		return nil, bad("is no PEM")
	}
	defer clear(block.Bytes)
	var key *rsa.PrivateKey
	switch block.Type {
	case "RSA PRIVATE KEY":
		k, err := x509.ParsePKCS1PrivateKey(block.Bytes)
		if err != nil {
			return nil, bad("cannot be read")
		}
		key = k
	case "PRIVATE KEY":
		k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
		if err != nil {
			return nil, bad("cannot be read")
		}
		var ok bool
		if key, ok = k.(*rsa.PrivateKey); !ok {
			return nil, bad("is no RSA key")
		}
	default:
		return nil, bad("is another kind of PEM")
	}
	if key.N.BitLen() < minRSA {
		return nil, bad(fmt.Sprintf("has %d bits, less than %d", key.N.BitLen(), minRSA))
	}
	return key, nil
}

// appJWT makes the assertion that a request comes from the app (RFC 7519, RS256).
func appJWT(appID string, key *rsa.PrivateKey, now time.Time) (string, error) {
	claims, err := json.Marshal(map[string]any{"iat": now.Add(-jwtBack).Unix(), "exp": now.Add(jwtLife).Unix(), "iss": appID})
	if err != nil {
		return "", fmt.Errorf("encode an assertion: %w", err)
	}
	text := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"RS256","typ":"JWT"}`)) + "." + base64.RawURLEncoding.EncodeToString(claims)
	sum := sha256.Sum256([]byte(text))
	signature, err := rsa.SignPKCS1v15(rand.Reader, key, crypto.SHA256, sum[:])
	if err != nil {
		return "", fmt.Errorf("sign an assertion: %w", err)
	}
	return text + "." + base64.RawURLEncoding.EncodeToString(signature), nil
}

// askGitHub mints an installation token.
func askGitHub(ctx context.Context, client *http.Client, st state, now time.Time) (answer, error) {
	g := st.meta.GitHub
	key, err := parseRSA(st.secrets[PrivateKey])
	if err != nil {
		return answer{}, err
	}
	jwt, err := appJWT(g.AppID, key, now)
	if err != nil {
		return answer{}, err
	}
	limits := map[string]any{}
	if len(g.Repositories) > 0 {
		limits["repositories"] = g.Repositories
	}
	if len(g.Permissions) > 0 {
		limits["permissions"] = g.Permissions
	}
	body, err := json.Marshal(limits)
	if err != nil {
		return answer{}, fmt.Errorf("encode a request: %w", err)
	}
	address := strings.TrimSuffix(g.API, "/") + "/app/installations/" + url.PathEscape(g.InstallationID) + "/access_tokens"
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, address, bytes.NewReader(body))
	if err != nil {
		return answer{}, fault.New(fault.Internal, "the API's address is none")
	}
	r.Header.Set("Authorization", "Bearer "+jwt)
	r.Header.Set("Accept", "application/vnd.github+json")
	r.Header.Set("X-GitHub-Api-Version", "2022-11-28")
	r.Header.Set("Content-Type", "application/json")
	got, err := exchange(ctx, client, r)
	if err != nil {
		return answer{}, err
	}
	return readGitHub(r.URL.Host, got, now)
}

func readGitHub(host string, got reply, now time.Time) (answer, error) {
	if got.status != http.StatusCreated {
		err := refusal(host, got.status, "")
		switch got.status {
		case http.StatusUnauthorized:
			return answer{}, fmt.Errorf("%w (wrong app id or key, or this machine's clock is wrong)", err)
		case http.StatusNotFound:
			return answer{}, fmt.Errorf("%w (no such installation of the app)", err)
		case http.StatusUnprocessableEntity:
			return answer{}, fmt.Errorf("%w (the installation has not these repositories or permissions)", err)
		}
		return answer{}, err
	}
	var body struct {
		Token     string    `json:"token"`
		ExpiresAt time.Time `json:"expires_at"`
	}
	err := json.Unmarshal(got.body, &body)
	clear(got.body)
	a := answer{value: secret.New([]byte(body.Token))}
	if err != nil || fit(a.value) != nil {
		return answer{}, fmt.Errorf("the answer of %s is no installation token", host)
	}
	// The end is by the server's clock: with its own time beside it, ours need not be right.
	if got.date.IsZero() {
		got.date = now
	}
	a.life = max(0, body.ExpiresAt.Sub(got.date))
	return a, nil
}

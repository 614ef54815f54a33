package credential

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/secret"
)

// maxAnswer bounds what is read of a token endpoint's answer. Tokens with many claims have some kilobytes.
const maxAnswer = 256 << 10

// NewClient returns a client for token endpoints that connects only by dial, which has checked the address, and only over TLS verified against roots (nil: the system's).
// It follows no redirect (the request holds a secret), uses no proxy, keeps no cookies.
func NewClient(dial func(ctx context.Context, network, address string) (net.Conn, error), roots *x509.CertPool) *http.Client {
	return &http.Client{
		Transport: &http.Transport{
			DialContext:            dial,
			TLSClientConfig:        &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
			TLSHandshakeTimeout:    mintPatience,
			ResponseHeaderTimeout:  mintPatience,
			MaxResponseHeaderBytes: 64 << 10,
			ForceAttemptHTTP2:      true,
			DisableCompression:     true,
			IdleConnTimeout:        30 * time.Second,
			MaxConnsPerHost:        4,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Timeout:       mintPatience,
	}
}

// reply is a token endpoint's answer.
type reply struct {
	status int
	date   time.Time // by the server's clock; zero if it did not say
	body   []byte
}

// exchange sends one request to a token endpoint and reads its answer whole. No error holds anything of the request but its address.
func exchange(ctx context.Context, client *http.Client, r *http.Request) (reply, error) {
	limited := *client
	limited.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	limited.Jar = nil
	r.Header.Set("User-Agent", "cofferdam")
	r.Header.Set("Accept-Encoding", "identity")
	answer, err := limited.Do(r.WithContext(ctx))
	if err != nil {
		if e, ok := errors.AsType[*url.Error](err); ok {
			err = e.Err
		}
		return reply{}, fmt.Errorf("ask %s: %w", r.URL.Host, err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(io.LimitReader(answer.Body, maxAnswer+1))
	if err != nil {
		return reply{}, fmt.Errorf("read the answer of %s: %w", r.URL.Host, err)
	}
	if len(body) > maxAnswer {
		return reply{}, fmt.Errorf("the answer of %s is longer than %d bytes", r.URL.Host, maxAnswer)
	}
	date, _ := http.ParseTime(answer.Header.Get("Date")) // zero if it is none
	if answer.StatusCode >= 300 && answer.StatusCode < 400 {
		return reply{}, fmt.Errorf("%s answered with a redirect, which is not followed", r.URL.Host)
	}
	return reply{answer.StatusCode, date, body}, nil
}

// askOAuth gets an access token by the grant of the credential's kind.
func askOAuth(ctx context.Context, client *http.Client, st state) (answer, error) {
	o := st.meta.OAuth
	form := url.Values{}
	set := func(key, value string) {
		if value != "" {
			form.Set(key, value)
		}
	}
	set("scope", strings.Join(o.Scopes, " "))
	set("audience", o.Audience)
	set("resource", o.Resource)
	switch st.meta.Kind {
	case OAuth2Client:
		set("grant_type", "client_credentials")
	case OAuth2Refresh:
		set("grant_type", "refresh_token")
		set("refresh_token", string(st.secrets[RefreshToken].Reveal()))
	case TokenExchange:
		set("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange")
		set("subject_token", string(st.secrets[SubjectToken].Reveal()))
		set("subject_token_type", o.SubjectTokenType)
		set("requested_token_type", o.RequestedType)
	default:
		return answer{}, fault.New(fault.Internal, "kind %s has no grant", st.meta.Kind)
	}
	id, password := o.ClientID, st.secrets[ClientSecret]
	inHeader := !password.Empty() && o.ClientAuth == ClientAuthHeader && id != ""
	if !inHeader {
		set("client_id", id)
		set("client_secret", string(password.Reveal()))
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, o.TokenURL, strings.NewReader(form.Encode()))
	if err != nil {
		return answer{}, fault.New(fault.Internal, "the token endpoint's address is none")
	}
	if inHeader {
		r.SetBasicAuth(url.QueryEscape(id), url.QueryEscape(string(password.Reveal()))) // RFC 6749, section 2.3.1: encoded first
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.Header.Set("Accept", "application/json")
	got, err := exchange(ctx, client, r)
	if err != nil {
		return answer{}, err
	}
	return readOAuth(r.URL.Host, got)
}

// readOAuth reads an answer by RFC 6749, sections 5.1 and 5.2. Texts of the server are not passed on: it could repeat what it was sent.
func readOAuth(host string, got reply) (answer, error) {
	var body struct {
		AccessToken  string       `json:"access_token"`
		TokenType    string       `json:"token_type"`
		ExpiresIn    *jsonSeconds `json:"expires_in"`
		RefreshToken string       `json:"refresh_token"`
		Error        string       `json:"error"`
	}
	err := json.Unmarshal(got.body, &body)
	clear(got.body)
	switch {
	case got.status != http.StatusOK || body.Error != "":
		return answer{}, refusal(host, got.status, body.Error)
	case err != nil:
		return answer{}, fmt.Errorf("the answer of %s is no JSON of a token", host)
	case body.TokenType != "" && !strings.EqualFold(body.TokenType, "Bearer") && !strings.EqualFold(body.TokenType, "N_A"):
		return answer{}, fmt.Errorf("%s handed over a token of another type than Bearer", host)
	}
	life := unknownLife
	if body.ExpiresIn != nil {
		life = body.ExpiresIn.duration()
	}
	a := answer{value: secret.New([]byte(body.AccessToken)), life: life, refresh: secret.New([]byte(body.RefreshToken))}
	if err := fit(a.value); err != nil {
		return answer{}, fmt.Errorf("%s handed over a token that fits into no header", host)
	}
	if !a.refresh.Empty() && checkField(RefreshToken, a.refresh) != nil {
		return answer{}, fmt.Errorf("%s handed over a refresh token that is none", host)
	}
	return a, nil
}

// fit accepts a minted token that can stand in a header.
func fit(v secret.Bytes) error {
	if v.Empty() || v.Len() > maxSecret {
		return fault.New(fault.Invalid, "no token")
	}
	return checkField(Value, v)
}

// refusal says how an endpoint refused, by its code if that is one of the short words of RFC 6749, section 5.2.
func refusal(host string, status int, code string) error {
	if code == "" || len(code) > 60 || strings.Trim(code, "abcdefghijklmnopqrstuvwxyz_") != "" {
		return fmt.Errorf("%s refused with status %d", host, status)
	}
	return fmt.Errorf("%s refused with status %d: %s", host, status, code)
}

// jsonSeconds reads a number of seconds, which some servers write as a string.
type jsonSeconds int64

// UnmarshalJSON reads a number, in quotes or not.
func (s *jsonSeconds) UnmarshalJSON(data []byte) error {
	var n float64
	if err := json.Unmarshal([]byte(strings.Trim(string(data), `"`)), &n); err != nil {
		return fmt.Errorf("no number of seconds")
	}
	*s = jsonSeconds(max(0, min(n, maxLife.Seconds())))
	return nil
}

func (s jsonSeconds) duration() time.Duration { return time.Duration(s) * time.Second }

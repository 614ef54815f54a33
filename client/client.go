// Package client speaks with a Cofferdam server over its HTTP API. The types of what it takes and gives are in package api.
//
//	c, err := client.New("https://cofferdam.example.com", token)
//	box, err := c.CreateSandbox(ctx, api.NewSandbox{Agent: "builder", Hold: true})
//	exit, err := c.Exec(ctx, box.ID, api.Exec{Command: []string{"make"}}, client.Streams{Stdout: os.Stdout, Stderr: os.Stderr})
//
// Requests are tried again only where that cannot do a thing twice: what only reads, and what is made, under an idempotency key.
package client

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"
)

const prefix = "/api/v1"

// The bounds of requests.
const (
	maxAnswer   = 64 << 20
	requestTime = 3 * time.Minute // starting a sandbox may take the server two
	attempts    = 5
	firstWait   = 200 * time.Millisecond
	longestWait = 10 * time.Second
)

// Client speaks with one server as one caller. It is safe for concurrent use.
type Client struct {
	base  *url.URL
	token string
	http  *http.Client
	agent string
}

// Option changes how a Client works.
type Option func(*Client)

// WithHTTPClient uses another HTTP client, for its transport. Redirects are never followed: the token is for this server.
func WithHTTPClient(h *http.Client) Option {
	return func(c *Client) {
		own := *h
		c.http = &own
	}
}

// WithUserAgent says who asks.
func WithUserAgent(text string) Option { return func(c *Client) { c.agent = text } }

// New returns a client for the server at a base URL, such as https://cofferdam.example.com, that shows a token. Over http, where anybody on the way can
// read the token, only this machine's own addresses are allowed.
func New(baseURL, token string, options ...Option) (*Client, error) {
	base, err := url.Parse(baseURL)
	if err != nil || base.Host == "" || base.User != nil || base.RawQuery != "" || base.Fragment != "" || base.Path != "" && base.Path != "/" {
		return nil, fmt.Errorf("server %q: want https://HOST, without a path", baseURL)
	}
	if base.Scheme != "https" && (base.Scheme != "http" || !loopback(base.Hostname())) {
		return nil, fmt.Errorf("server %q: want https; over http a token can be read on the way", baseURL)
	}
	if strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return nil, errors.New("the token has a character that cannot be in one")
	}
	base.Path = ""
	c := &Client{base: base, token: token, http: &http.Client{Transport: transport()}, agent: "cofferdam-client"}
	for _, o := range options {
		o(c)
	}
	c.http.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return c, nil
}

func transport() http.RoundTripper {
	return &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: 15 * time.Second, KeepAlive: 15 * time.Second}).DialContext,
		TLSHandshakeTimeout:   15 * time.Second,
		ForceAttemptHTTP2:     true,
		MaxIdleConnsPerHost:   8,
		IdleConnTimeout:       90 * time.Second,
		ResponseHeaderTimeout: requestTime,
	}
}

func loopback(host string) bool {
	if host == "localhost" {
		return true
	}
	a, err := netip.ParseAddr(host)
	return err == nil && a.Unmap().IsLoopback()
}

// request is one request before it is sent.
type request struct {
	method, path string
	query        url.Values
	body         any       // sent as JSON
	content      io.Reader // sent as it is, instead
	version      int64     // If-Match
	header       http.Header
}

// at joins the parts of a path, of which those that came from elsewhere are escaped.
func at(parts ...string) string {
	var b strings.Builder
	for _, p := range parts {
		b.WriteByte('/')
		b.WriteString(url.PathEscape(p))
	}
	return b.String()
}

// call sends a request and decodes the answer into out, unless that is nil.
func (c *Client) call(ctx context.Context, r request, out any) error {
	ctx, cancel := context.WithTimeout(ctx, requestTime)
	defer cancel()
	text, err := r.encode()
	if err != nil {
		return err
	}
	key := ""
	if r.method == http.MethodPost {
		key = rand.Text()
	}
	for try := 1; ; try++ {
		err := c.once(ctx, r, text, key, out)
		wait, again := r.again(err, try)
		if !again {
			return err
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return err
		}
	}
}

func (r *request) encode() ([]byte, error) {
	if r.body == nil {
		return nil, nil
	}
	text, err := json.Marshal(r.body)
	if err != nil {
		return nil, fmt.Errorf("encode the request: %w", err)
	}
	return text, nil
}

// again says whether to try once more, and after what time.
func (r *request) again(err error, try int) (time.Duration, bool) {
	if err == nil || try >= attempts {
		return 0, false
	}
	wait := min(firstWait<<(try-1), longestWait)
	wait += mathrand.N(wait / 2) // so that many clients do not come back at once
	e, answered := errors.AsType[*Error](err)
	switch {
	case !answered: // it may have been carried out
		return wait, (r.method == http.MethodGet || r.method == http.MethodPost) && errors.Is(err, errTransport)
	case e.RetryAfter > longestWait:
		return 0, false
	case e.Status == http.StatusTooManyRequests && e.RetryAfter > 0:
		return max(wait, e.RetryAfter), true
	case e.Status == http.StatusBadGateway || e.Status == http.StatusServiceUnavailable || e.Status == http.StatusGatewayTimeout,
		e.Status == http.StatusConflict && e.RetryAfter > 0: // the same request is still under way
		return max(wait, e.RetryAfter), r.method == http.MethodGet || r.method == http.MethodPost
	}
	return 0, false
}

var errTransport = errors.New("the server does not answer")

func (c *Client) once(ctx context.Context, r request, text []byte, key string, out any) error {
	if text != nil {
		r.content = bytes.NewReader(text)
	}
	answer, err := c.send(ctx, r, key)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if out == nil || answer.StatusCode == http.StatusNoContent {
		_, _ = io.Copy(io.Discard, io.LimitReader(answer.Body, 1<<16)) // so that the connection can be used again
		return nil
	}
	d := json.NewDecoder(io.LimitReader(answer.Body, maxAnswer))
	if err := d.Decode(out); err != nil {
		return fmt.Errorf("read the answer of %s %s: %w", r.method, r.path, errors.Join(errTransport, err))
	}
	return nil
}

// send sends a request and returns an answer that is no error.
func (c *Client) send(ctx context.Context, r request, key string) (*http.Response, error) {
	u := *c.base
	u.RawPath = prefix + r.path
	u.Path, _ = url.PathUnescape(u.RawPath) // made by at
	u.RawQuery = r.query.Encode()
	req, err := http.NewRequestWithContext(ctx, r.method, u.String(), r.content)
	if err != nil {
		return nil, err
	}
	for name, values := range r.header {
		req.Header[name] = values
	}
	req.Header.Set("User-Agent", c.agent)
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	if r.body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if key != "" {
		req.Header.Set("Idempotency-Key", key)
	}
	if r.version != 0 {
		req.Header.Set("If-Match", strconv.Quote(strconv.FormatInt(r.version, 10)))
	}
	answer, err := c.http.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, fmt.Errorf("%w: %w", errTransport, err)
	}
	if answer.StatusCode >= 200 && answer.StatusCode < 300 {
		return answer, nil
	}
	defer answer.Body.Close()
	return nil, readError(answer)
}

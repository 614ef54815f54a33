package image

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"strings"

	"github.com/cofferdam/cofferdam/internal/fault"
)

// Bounds of what is read of a challenge and a token, in bytes.
const (
	maxChallenge = 4 << 10
	maxToken     = 32 << 10
)

// challenge is what a registry wants (RFC 9110, section 11.6.1).
type challenge struct {
	scheme string // lower case
	params map[string]string
}

// meet does what a registry asks for in an answer with status 401. It says whether to ask again.
func (r *registry) meet(ctx context.Context, answer *http.Response) (again bool, err error) {
	_ = answer.Body.Close() // it is not read
	if answer.Request.URL.Host != r.ref.Registry {
		return false, nil // a store of blobs: nothing of ours is for it
	}
	for _, line := range answer.Header.Values("WWW-Authenticate") {
		c, ok := parseChallenge(line)
		switch {
		case ok && c.scheme == "bearer":
			token, err := r.fetchToken(ctx, c)
			if err != nil {
				return false, err
			}
			r.mu.Lock()
			r.auth = "Bearer " + token
			r.mu.Unlock()
			return true, nil
		case ok && c.scheme == "basic" && r.authorize != nil:
			r.mu.Lock()
			r.basic = true
			r.mu.Unlock()
			return true, nil
		}
	}
	return false, nil
}

// parseChallenge reads one challenge. Several in one line are one that is not understood.
func parseChallenge(line string) (challenge, bool) {
	if len(line) > maxChallenge {
		return challenge{}, false
	}
	scheme, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
	c := challenge{scheme: strings.ToLower(scheme), params: map[string]string{}}
	for rest = strings.TrimSpace(rest); rest != ""; {
		name, after, ok := strings.Cut(rest, "=")
		if !ok || strings.ContainsAny(name, " \",") {
			return c, false
		}
		var value string
		if after, ok = strings.CutPrefix(after, `"`); ok {
			if value, after, ok = strings.Cut(after, `"`); !ok || strings.Contains(value, `\`) {
				return c, false
			}
		} else {
			n := strings.IndexAny(after+",", ", ")
			value, after = after[:n], after[n:]
		}
		c.params[strings.ToLower(name)] = value
		after = strings.TrimSpace(after)
		if rest, ok = strings.CutPrefix(after, ","); !ok && after != "" {
			return c, false
		}
		rest = strings.TrimSpace(rest)
	}
	return c, true
}

// fetchToken asks the place that a registry names for a token to pull this repository, and nothing more.
func (r *registry) fetchToken(ctx context.Context, c challenge) (string, error) {
	realm, err := url.Parse(c.params["realm"])
	if err != nil || realm.Host == "" {
		return "", fault.New(fault.Denied, "%s names %q for tokens, which is no place", r.ref.Registry, shown(c.params["realm"]))
	}
	if err := r.checkPlace(realm, r.ref.Registry+" sends us for a token"); err != nil {
		return "", err
	}
	query := realm.Query()
	if service := c.params["service"]; service != "" {
		query.Set("service", service)
	}
	query.Set("scope", "repository:"+r.ref.Repository+":pull")
	realm.RawQuery, realm.Fragment = query.Encode(), ""
	ctx, cancel := context.WithTimeout(ctx, r.patience)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, realm.String(), nil)
	if err != nil {
		return "", fault.New(fault.Denied, "%s names %q for tokens, which is no place", r.ref.Registry, shown(c.params["realm"]))
	}
	request.Header.Set("User-Agent", "cofferdam")
	if r.authorize != nil {
		if err := r.lend(ctx, request); err != nil {
			return "", err
		}
	}
	answer, err := r.transport.RoundTrip(request)
	if err != nil {
		return "", r.unreachable(r.ref.Registry, realm, err)
	}
	if answer.StatusCode != http.StatusOK { // also a redirect: what is asked with a credential is asked there or nowhere
		_ = answer.Body.Close() // it is not read
		return "", r.unauthorized(realm.Host, answer.StatusCode)
	}
	data, err := readAll(answer, maxToken, "a token")
	if err != nil {
		return "", err
	}
	return parseToken(realm.Host, data)
}

// lend puts the credential into one request, if it is for that host.
func (r *registry) lend(ctx context.Context, request *http.Request) error {
	if request.URL.Scheme != "https" {
		return fault.New(fault.Denied, "no credential is sent to %s without TLS", request.URL.Host)
	}
	if err := r.authorize(ctx, request); err != nil {
		return fault.New(fault.Denied, "the credential is not used at %s: %s", request.URL.Host, fault.Public(err)).
			WithHint("if it is meant for that host too: cofferdam credential edit NAME --host %s --host %s", r.ref.Host(), request.URL.Hostname()).Because(err)
	}
	return nil
}

// parseToken reads the answer of a token server: "token", or what OAuth calls it.
func parseToken(from string, data []byte) (string, error) {
	var answer struct {
		Token       string `json:"token"`
		AccessToken string `json:"access_token"`
	}
	err := json.Unmarshal(data, &answer)
	token := answer.Token
	if token == "" {
		token = answer.AccessToken
	}
	if err != nil || token == "" || strings.ContainsFunc(token, func(c rune) bool { return c <= ' ' || c > '~' }) {
		return "", fault.New(fault.Unavailable, "%s hands out something else than a token", from) // no cause: it would repeat what may be one
	}
	return token, nil
}

package image

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/netname"
)

// Bounds of a conversation with a registry.
const (
	maxRedirects   = 5
	maxHeaderBytes = 64 << 10
	answerPatience = 60 * time.Second // for the head of an answer, and for the whole of a small one
	helloPatience  = 20 * time.Second // for TLS
)

// registry is the conversation with one registry about one repository. Every place that it sends us on to is held to the same: HTTPS, a host with a name, an address
// that the dialer lets through. It is safe for concurrent use.
type registry struct {
	ref       Reference
	plain     bool // the person named this registry to be spoken to without TLS
	patience  time.Duration
	transport *http.Transport
	authorize func(context.Context, *http.Request) error // nil without a credential

	mu    sync.Mutex
	auth  string   // what the registry wants in Authorization: a token for this repository; empty for nothing
	basic bool     // it wants the credential itself
	hosts []string // spoken to
}

func newRegistry(ref Reference, o PullOptions) *registry {
	r := &registry{ref: ref, plain: o.PlainHTTP != "" && o.PlainHTTP == ref.Registry, authorize: o.Authorize, patience: o.stall}
	r.transport = &http.Transport{
		Proxy:                  nil, // no variable of the environment says who else hears this
		DialContext:            r.dialer(o.Dial),
		TLSClientConfig:        &tls.Config{RootCAs: o.Roots, MinVersion: tls.VersionTLS12},
		TLSNextProto:           map[string]func(string, *tls.Conn) http.RoundTripper{}, // HTTP/1.1 is enough, and there is less of it
		TLSHandshakeTimeout:    helloPatience,
		ResponseHeaderTimeout:  o.stall,
		MaxResponseHeaderBytes: maxHeaderBytes,
		DisableCompression:     true, // digests are of what is sent
		MaxIdleConnsPerHost:    parallel,
	}
	return r
}

// dialer notes who is spoken to.
func (r *registry) dialer(dial func(context.Context, string, string) (net.Conn, error)) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		r.mu.Lock()
		if !slices.Contains(r.hosts, address) {
			r.hosts = append(r.hosts, address)
		}
		r.mu.Unlock()
		return dial(ctx, network, address)
	}
}

func (r *registry) spokenTo() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.hosts)
}

func (r *registry) close() { r.transport.CloseIdleConnections() }

// get asks the registry for something of the repository, with a token if it wants one, and follows where it sends us.
// The answer has status 200. What it says of itself is not believed yet.
func (r *registry) get(ctx context.Context, path string, accept ...string) (*http.Response, error) {
	scheme := "https"
	if r.plain {
		scheme = "http"
	}
	place := &url.URL{Scheme: scheme, Host: r.ref.Registry, Path: "/v2/" + r.ref.Repository + "/" + path}
	answer, err := r.follow(ctx, place, accept)
	if err != nil || answer.StatusCode != http.StatusUnauthorized {
		return r.settled(answer, err)
	}
	again, err := r.meet(ctx, answer)
	if err == nil && again {
		answer, err = r.follow(ctx, place, accept)
	}
	return r.settled(answer, err)
}

// follow sends a request, and sends it on to where the answer says. What the registry wants in Authorization goes to the registry alone.
func (r *registry) follow(ctx context.Context, place *url.URL, accept []string) (*http.Response, error) {
	from := ""
	for range maxRedirects + 1 {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, place.String(), nil)
		if err != nil {
			return nil, fault.New(fault.Invalid, "%s sends us to %q, which is no place", from, shown(place.String())).Because(err)
		}
		request.Header.Set("User-Agent", "cofferdam")
		for _, a := range accept {
			request.Header.Add("Accept", a)
		}
		if err := r.sign(ctx, request); err != nil {
			return nil, err
		}
		answer, err := r.transport.RoundTrip(request)
		if err != nil {
			return nil, r.unreachable(from, place, err)
		}
		if !isRedirect(answer.StatusCode) {
			return answer, nil
		}
		_ = answer.Body.Close() // what it says beside the place is for people with browsers
		from = place.Host
		if place, err = r.next(place, answer.Header.Get("Location")); err != nil {
			return nil, err
		}
	}
	return nil, fault.New(fault.Denied, "%s sends us on more than %d times", r.ref.Registry, maxRedirects)
}

func isRedirect(status int) bool {
	return slices.Contains([]int{http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect, http.StatusPermanentRedirect}, status)
}

// next says where a redirect leads, if it may lead there.
func (r *registry) next(from *url.URL, location string) (*url.URL, error) {
	place, err := from.Parse(location)
	if location == "" || err != nil {
		return nil, fault.New(fault.Denied, "%s sends us to %q, which is no place", from.Host, shown(location))
	}
	place.Fragment = ""
	return place, r.checkPlace(place, from.Host+" sends us")
}

// checkPlace refuses places that nobody asked for should be spoken to: whoever runs a registry chooses them.
func (r *registry) checkPlace(place *url.URL, who string) error {
	bad := func(why string) error {
		return fault.New(fault.Denied, "%s to %s://%s: %s", who, shown(place.Scheme), shown(place.Host), why)
	}
	switch {
	case place.Scheme == "http" && r.plain && place.Host == r.ref.Registry: // the one that was named
	case place.Scheme != "https":
		return bad("only https is followed")
	case place.User != nil:
		return bad("a place with a user's name in it is not followed")
	}
	if port := place.Port(); port != "" {
		if _, err := netname.ParsePort(port); err != nil {
			return bad("that port is none")
		}
	}
	if _, err := netname.NormaliseHost(place.Hostname()); err != nil {
		return bad("only hosts with a name are followed, and no certificate names this one")
	}
	return nil
}

// sign puts in what the registry wants, into requests to the registry only.
func (r *registry) sign(ctx context.Context, request *http.Request) error {
	if request.URL.Host != r.ref.Registry {
		return nil
	}
	r.mu.Lock()
	auth, basic := r.auth, r.basic
	r.mu.Unlock()
	if auth != "" {
		request.Header.Set("Authorization", auth)
	}
	if basic {
		return r.lend(ctx, request)
	}
	return nil
}

// unreachable says where nothing answers, or why it is not spoken to.
func (r *registry) unreachable(from string, place *url.URL, err error) error {
	if errors.Is(err, context.Canceled) {
		return err
	}
	where := place.Host
	if from != "" && from != place.Host {
		where = from + " sends us to " + place.Host
	}
	if refused, ours := errors.AsType[*fault.Error](err); ours {
		if where == place.Host { // the person named it
			return refused
		}
		return fault.New(refused.Kind, "%s: %s", where, refused.Public).WithHint("%s", refused.Hint)
	}
	unreached := fault.New(fault.Unavailable, "%s does not answer as a registry does", where).Because(err)
	if _, unknown := errors.AsType[x509.UnknownAuthorityError](err); unknown {
		return unreached.WithHint("if its certificate is of an authority of your own: --ca FILE")
	}
	if _, plain := errors.AsType[tls.RecordHeaderError](err); plain {
		return unreached.WithHint("if it really has no TLS, and the network between is yours: --plain-http %s", r.ref.Registry)
	}
	return unreached.WithHint("check the name, and that this machine can reach it")
}

// settled turns what is not an answer with content into an error.
func (r *registry) settled(answer *http.Response, err error) (*http.Response, error) {
	if err != nil {
		if answer != nil {
			_ = answer.Body.Close() // it is not read
		}
		return nil, err
	}
	if answer.StatusCode == http.StatusOK {
		return answer, nil
	}
	_ = answer.Body.Close() // it is not read: the status says enough, and the rest is the registry's to write
	where := answer.Request.URL.Host
	switch status := answer.StatusCode; {
	case status == http.StatusUnauthorized || status == http.StatusForbidden:
		return nil, r.unauthorized(where, status)
	case status == http.StatusNotFound:
		return nil, fault.New(fault.NotFound, "%s has nothing of %s there", where, r.ref).WithHint("check the name and the tag; some registries say so of what they do not show to strangers: --credential NAME")
	case status == http.StatusTooManyRequests:
		return nil, fault.New(fault.TooMany, "%s asks for fewer requests", where).WithHint("wait, or sign in: --credential NAME")
	default:
		return nil, fault.New(fault.Unavailable, "%s answers with status %d", where, status).WithHint("try again later")
	}
}

func (r *registry) unauthorized(where string, status int) error {
	e := fault.New(fault.Denied, "%s does not hand out %s (status %d)", where, r.ref, status)
	if r.authorize == nil {
		return e.WithHint("if it needs a sign-in: cofferdam credential add NAME --kind basic --user USER %s, then --credential NAME", r.ref.place())
	}
	return e.WithHint("try the credential with: cofferdam credential test NAME --url https://%s/v2/", r.ref.Registry)
}

// document gets a manifest or a configuration whole, if it is not larger than most and comes in time.
func (r *registry) document(ctx context.Context, path string, most int64, what string, accept ...string) (*http.Response, []byte, error) {
	ctx, cancel := context.WithTimeout(ctx, r.patience)
	defer cancel()
	answer, err := r.get(ctx, path, accept...)
	if err != nil {
		return nil, nil, err
	}
	data, err := readAll(answer, most, what)
	return answer, data, err
}

// readAll reads an answer whole, if it is not larger than most.
func readAll(answer *http.Response, most int64, what string) ([]byte, error) {
	defer answer.Body.Close()
	data, err := io.ReadAll(io.LimitReader(answer.Body, most+1))
	if err != nil {
		return nil, unread(answer, err)
	}
	if int64(len(data)) > most {
		return nil, fault.New(fault.TooMany, "%s sends %s of more than %d bytes", answer.Request.URL.Host, what, most)
	}
	return data, nil
}

func unread(answer *http.Response, err error) error {
	if _, ours := errors.AsType[*fault.Error](err); ours || errors.Is(err, context.Canceled) {
		return err
	}
	return fault.New(fault.Unavailable, "%s broke off", answer.Request.URL.Host).WithHint("try again").Because(fmt.Errorf("read: %w", err))
}

package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/cofferdam/cofferdam/internal/credential"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/netname"
	"github.com/cofferdam/cofferdam/internal/policy"
	"github.com/cofferdam/cofferdam/internal/seal"
	"github.com/cofferdam/cofferdam/internal/upstream"
)

// testFlags are the flags of "credential test" as typed.
type testFlags struct {
	url, method       string
	networks, resolve []string
	roots             string
	json              bool
}

// tried is what a test found.
type tried struct {
	Name     credential.Name `json:"name"`
	Kind     credential.Kind `json:"kind"`
	Opens    bool            `json:"opens"`
	Endpoint string          `json:"token_endpoint,omitempty"` // that handed over a token
	URL      string          `json:"url,omitempty"`
	Status   int             `json:"status,omitempty"`
	Accepted bool            `json:"accepted"` // no request was refused for its credential
}

func newCredentialTestCommand(a *app) *cobra.Command {
	var f testFlags
	cmd := &cobra.Command{
		Use:   "test NAME",
		Short: "Try a credential: whether it opens, whether its token endpoint answers, what a server says",
		Long: `Try a credential. It is opened; where the kind mints tokens, one is asked for; and with --url one request is made with it, within its conditions, and the status told.
Nothing of the answer is shown. It fails if the credential does not open, no token comes, or the server answers 401 or 403.`,
		Args: oneName, ValidArgsFunction: a.completeNames,
		RunE: func(cmd *cobra.Command, args []string) error {
			store, name, err := a.named(args[0])
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), time.Minute)
			defer cancel()
			result, err := a.tryCredential(ctx, store, name, f)
			if err != nil {
				return err
			}
			return a.tellTried(result, f.json)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.url, "url", "", "make one request to this https address with the credential")
	flags.StringVar(&f.method, "method", "GET", "the request's method")
	flags.StringArrayVar(&f.networks, "allow-network", nil, "a private network that the hosts may resolve to, such as 10.0.0.0/8")
	flags.StringArrayVar(&f.resolve, "resolve", nil, "take this address for a host: HOST=ADDRESS")
	flags.StringVar(&f.roots, "ca", "", "trust the certificates in this PEM file too")
	flags.BoolVar(&f.json, "json", false, "print JSON")
	return cmd
}

func (a *app) tryCredential(ctx context.Context, store *credential.Store, name credential.Name, f testFlags) (tried, error) {
	client, err := f.client()
	if err != nil {
		return tried{}, err
	}
	m, err := store.Get(ctx, name)
	if err != nil {
		return tried{}, err
	}
	result := tried{Name: name, Kind: m.Kind, URL: f.url}
	want, request, err := f.request(ctx, m)
	if err != nil {
		return result, err
	}
	var lender *credential.Lender
	err = a.vault().Use(ctx, func(ring *seal.Keyring) error {
		lender, err = store.Open(ctx, ring, credential.Options{Client: client}, name)
		return err
	})
	if err != nil {
		return result, err
	}
	defer lender.Close() // it has only read
	grant, err := lender.Lend(ctx, name, want)
	if err != nil {
		return result, err
	}
	result.Opens, result.Accepted = true, true
	if host, port, mints := m.Endpoint(); mints {
		result.Endpoint = fmt.Sprintf("%s:%d", host, port)
	}
	if request == nil {
		return result, nil
	}
	if err := apply(grant, request); err != nil {
		return result, err
	}
	answer, err := client.Do(request)
	if err != nil {
		return result, fault.New(fault.Unavailable, "%s does not answer", want.Host).Because(unwrapURL(err))
	}
	_ = answer.Body.Close() // nothing was read of it
	result.Status = answer.StatusCode
	result.Accepted = answer.StatusCode != http.StatusUnauthorized && answer.StatusCode != http.StatusForbidden
	return result, nil
}

// emptyHash is the SHA-256 of no body.
const emptyHash = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

func apply(g *credential.Grant, r *http.Request) error {
	if g.Signs() {
		return g.SignRequest(r, emptyHash)
	}
	return g.Inject(r.Header)
}

// unwrapURL takes off what net/http puts before an error: method and address.
func unwrapURL(err error) error {
	if e, ok := errors.AsType[*url.Error](err); ok {
		return e.Err
	}
	return err
}

// request is what the credential is tried for: the address that was named, or the first that its conditions allow, which is then only minted for.
func (f *testFlags) request(ctx context.Context, m credential.Meta) (credential.Request, *http.Request, error) {
	if f.url == "" {
		return sample(m), nil, nil
	}
	u, err := url.Parse(f.url)
	if err != nil || u.Scheme != "https" || u.User != nil || u.Host == "" {
		return credential.Request{}, nil, fault.New(fault.Invalid, "--url is no address that a credential is sent to").WithHint("write https://HOST/PATH, without user and password")
	}
	host, err := netname.ParseHost(u.Hostname())
	if err != nil {
		return credential.Request{}, nil, flagError("url", err)
	}
	want := credential.Request{Channel: credential.VerifiedTLS, Host: host, Port: 443, Method: f.method}
	if p := u.Port(); p != "" {
		if want.Port, err = netname.ParsePort(p); err != nil {
			return want, nil, flagError("url", err)
		}
	}
	if u.Path == "" {
		u.Path = "/"
	}
	want.Path, _ = netname.NormalisePath(u.EscapedPath()) // no canonical form: conditions about paths refuse it
	r, err := http.NewRequestWithContext(ctx, f.method, u.String(), nil)
	if err != nil {
		return want, nil, fault.New(fault.Invalid, "--method %.40q is no method", f.method)
	}
	return want, r, nil
}

// sample is a request that the credential's own conditions allow.
func sample(m credential.Meta) credential.Request {
	r := credential.Request{Channel: credential.VerifiedTLS, Port: m.Scope.Ports[0], Method: "GET", Path: "/"}
	r.Host = netname.Host(strings.Replace(m.Scope.Hosts[0], "*.", "any.", 1))
	if len(m.Scope.Methods) > 0 {
		r.Method = m.Scope.Methods[0]
	}
	if len(m.Scope.Paths) > 0 {
		r.Path = netname.Path(m.Scope.Paths[0])
	}
	return r
}

// client connects like a gateway does: one resolution, every address checked, the checked address dialled.
func (f *testFlags) client() (*http.Client, error) {
	dial, err := f.dial()
	if err != nil {
		return nil, err
	}
	roots, err := f.pool()
	if err != nil {
		return nil, err
	}
	return credential.NewClient(dial, roots), nil
}

// pool returns the system's certificates and those of --ca; nothing if there is no --ca.
func (f *testFlags) pool() (*x509.CertPool, error) {
	if f.roots == "" {
		return nil, nil
	}
	data, err := os.ReadFile(f.roots)
	if err != nil {
		return nil, fault.New(fault.Invalid, "cannot read the certificates of --ca").Because(err)
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	if !pool.AppendCertsFromPEM(data) {
		return nil, fault.New(fault.Invalid, "--ca %s holds no certificates", f.roots)
	}
	return pool, nil
}

// checkedDial makes of a dialer one for net/http which refuses addresses that a name must not have: loopback, private networks, metadata services.
func checkedDial(d *upstream.Dialer, decide func(netname.Host, netip.Addr) policy.Decision) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, _, address string) (net.Conn, error) {
		name, text, err := net.SplitHostPort(address)
		if err != nil {
			return nil, fmt.Errorf("dial %s: %w", address, err)
		}
		host, err := netname.NormaliseHost(name)
		if err != nil {
			return nil, err
		}
		port, err := netname.ParsePort(text)
		if err != nil {
			return nil, err
		}
		found, err := d.Resolve(ctx, host)
		if err != nil {
			return nil, err
		}
		var good []netip.Addr
		refused := policy.Decision{}
		for _, addr := range found {
			if decision := decide(host, addr); decision.Verdict == policy.Allow {
				good = append(good, addr)
			} else {
				refused = decision
			}
		}
		if len(good) == 0 {
			return nil, fault.New(fault.Denied, "%s: %s", host, refused.Reason).WithHint("if that is meant: --allow-network NETWORK")
		}
		return d.Dial(ctx, good, port)
	}
}

func (a *app) tellTried(t tried, asJSON bool) error {
	if asJSON {
		if err := a.writeJSON(t); err != nil {
			return err
		}
	} else {
		fmt.Fprintf(a.stdout, "%s opens (%s)\n", t.Name, t.Kind)
		if t.Endpoint != "" {
			fmt.Fprintf(a.stdout, "%s handed over a token\n", t.Endpoint)
		}
		switch {
		case t.Status != 0:
			fmt.Fprintf(a.stdout, "the server answered with status %d %s\n", t.Status, http.StatusText(t.Status))
		case t.Endpoint == "":
			fmt.Fprintf(a.stdout, "whether a server takes it, a request would say: cofferdam credential test %s --url https://...\n", t.Name)
		}
	}
	if !t.Accepted {
		return fault.New(fault.Denied, "the server does not accept %s", t.Name).WithHint("give it a new value with: cofferdam credential rotate %s", t.Name)
	}
	return nil
}

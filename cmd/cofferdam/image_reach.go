package main

import (
	"context"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/cofferdam/cofferdam/internal/audit"
	"github.com/cofferdam/cofferdam/internal/credential"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/image"
	"github.com/cofferdam/cofferdam/internal/netname"
	"github.com/cofferdam/cofferdam/internal/policy"
	"github.com/cofferdam/cofferdam/internal/seal"
	"github.com/cofferdam/cofferdam/internal/upstream"
)

// settle turns flags into how registries are reached, and how much is taken from them.
func (p *imagePull) settle() (err error) {
	f := &p.flags
	for _, what := range f.bestEffort {
		if what != "landlock" {
			return fault.New(fault.Invalid, "--best-effort %.20q: no such thing", what).WithHint("write landlock; all else holds or nothing is pulled")
		}
	}
	size, err := policy.ParseSize(f.maxSize)
	if err != nil {
		return flagError("max-size", err)
	}
	if size <= 0 || f.maxFiles <= 0 {
		return fault.New(fault.Invalid, "an image of no bytes or no files is none").WithHint("write something like --max-size 16g --max-files 2000000")
	}
	p.o.Bounds = image.Bounds{Unpacked: size, Packed: size, Files: f.maxFiles}
	if p.o.PlainHTTP, err = plainRegistry(f.plainHTTP, p.refs); err != nil {
		return err
	}
	if p.o.Dial, err = f.reach.dial(); err != nil {
		return err
	}
	if p.o.Roots, err = f.reach.pool(); err != nil || p.o.Roots != nil {
		return err
	}
	if p.o.Roots, err = x509.SystemCertPool(); err != nil { // read now: the confined process cannot
		return fault.New(fault.Unavailable, "cannot read this machine's certificate authorities").Because(err)
	}
	return nil
}

// dial connects like a gateway does: one resolution, every address checked, the checked address dialled.
func (f *testFlags) dial() (func(context.Context, string, string) (net.Conn, error), error) {
	resolver, err := pinResolver(f.resolve)
	if err != nil {
		return nil, err
	}
	var networks []netip.Prefix
	for _, text := range f.networks {
		prefix, err := policy.ParseNetwork(text)
		if err != nil {
			return nil, flagError("allow-network", err)
		}
		networks = append(networks, prefix)
	}
	law, err := policy.New(policy.Options{Networks: networks})
	if err != nil {
		return nil, err
	}
	return checkedDial(upstream.New(upstream.Config{Resolver: resolver}), law.DecideAddress), nil
}

// plainRegistry holds --plain-http to a registry that is pulled from: else it would be a flag without effect, most likely a slip.
func plainRegistry(text string, refs []image.Reference) (string, error) {
	if text == "" {
		return "", nil
	}
	named, err := image.ParseReference(text + "/x")
	if err != nil || named.Registry == "" {
		return "", fault.New(fault.Invalid, "--plain-http %.100q is no registry", text).WithHint("write HOST or HOST:PORT as in the image's name, HOST with a dot")
	}
	for _, r := range refs {
		if r.Registry == named.Registry {
			return named.Registry, nil
		}
	}
	return "", fault.New(fault.Invalid, "--plain-http names %s, but no image of it is pulled", named.Registry).WithHint("write the registry as in the image's name")
}

// registrySignIn lends a credential to registries, within the credential's own conditions.
type registrySignIn struct {
	name   credential.Name
	lender *credential.Lender
}

// openSignIn opens a credential that is for every registry that is pulled from.
func (a *app) openSignIn(ctx context.Context, text string, refs []image.Reference, o image.PullOptions) (*registrySignIn, error) {
	store, name, err := a.named(text)
	if err != nil {
		return nil, err
	}
	meta, err := store.Get(ctx, name)
	if err != nil {
		return nil, err
	}
	if meta.Kind == credential.AWS {
		return nil, fault.New(fault.Invalid, "%s signs requests, which registries do not take", name).WithHint("add one of the kind basic, with the user name AWS and a password that the registry's owner hands out")
	}
	for _, r := range refs {
		if r.Registry == o.PlainHTTP {
			return nil, fault.New(fault.Denied, "no credential is sent to %s without TLS", r.Registry).WithHint("leave out --plain-http or --credential")
		}
		want, err := registryRequest("https://" + r.Registry + "/v2/" + r.Repository + "/")
		if err == nil {
			err = meta.Scope.Allow(want)
		}
		if err != nil {
			return nil, fault.New(fault.Denied, "%s is not for %s: %s", name, r.Registry, fault.Public(err)).WithHint("look at its conditions with: cofferdam credential show %s", name)
		}
	}
	s := &registrySignIn{name: name}
	options := credential.Options{Client: credential.NewClient(o.Dial, o.Roots)}
	err = a.vault().Use(ctx, func(ring *seal.Keyring) error {
		s.lender, err = store.Open(ctx, ring, options, name)
		return err
	})
	return s, err
}

// registryRequest is a GET in the terms of credentials.
func registryRequest(address string) (credential.Request, error) {
	r, err := http.NewRequest(http.MethodGet, address, nil)
	if err != nil {
		return credential.Request{}, err
	}
	return requestFor(r)
}

func requestFor(r *http.Request) (credential.Request, error) {
	want := credential.Request{Method: r.Method, Port: 443}
	if r.URL.Scheme == "https" {
		want.Channel = credential.VerifiedTLS
	}
	var err error
	if want.Host, err = netname.NormaliseHost(r.URL.Hostname()); err != nil {
		return want, err
	}
	if p := r.URL.Port(); p != "" {
		if want.Port, err = netname.ParsePort(p); err != nil {
			return want, err
		}
	}
	want.Path, _ = netname.NormalisePath(r.URL.EscapedPath()) // no canonical form: conditions about paths refuse it
	return want, nil
}

// authorize puts the credential into one request.
func (s *registrySignIn) authorize(ctx context.Context, r *http.Request) error {
	want, err := requestFor(r)
	if err != nil {
		return err
	}
	grant, err := s.lender.Lend(ctx, s.name, want)
	if err != nil {
		return err
	}
	return grant.Inject(r.Header)
}

// progress shows on a terminal how far a pull is. It is safe for concurrent use.
type progress struct {
	app   *app
	name  string
	shown bool // there is a terminal, and somebody wants to see it

	mu   sync.Mutex
	last time.Time
	used bool
}

// redraw is how often the line is drawn anew.
const redraw = 100 * time.Millisecond

func (p *imagePull) newProgress(ref string) *progress {
	return &progress{app: p.app, name: ref, shown: isTerminal(p.app.stderr) && !p.flags.quiet && !p.flags.json}
}

func (p *progress) update(at image.Progress) {
	if !p.shown {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if time.Since(p.last) < redraw {
		return
	}
	p.last, p.used = time.Now(), true
	fmt.Fprintf(p.app.stderr, "\r\x1b[K%s: %s of %s, %d of %s", inert(p.name, 40), audit.SizeWords(at.BytesDone), audit.SizeWords(at.Bytes), at.LayersDone, plural(at.Layers, "layer", "layers"))
}

// end takes the line away.
func (p *progress) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.used {
		fmt.Fprint(p.app.stderr, "\r\x1b[K")
	}
}

// Package web (CONTROL) is the pages: what people see of the service in a browser, rendered on the server. A page only calls operations of package
// control and shows what they answer. Everything that a sandbox may have written is shown inert: escaped, with control and direction-changing characters
// made visible, and never as a link or inside an attribute that a script reads as code.
//
// Nothing changes by a GET. Forms are posted to the page's own handler, which answers with a redirect to a path of our own, or with a fragment for htmx.
package web

import (
	"context"
	"embed"
	"errors"
	"html/template"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"time"

	"github.com/cofferdam/cofferdam/internal/auth"
	"github.com/cofferdam/cofferdam/internal/control"
	"github.com/cofferdam/cofferdam/internal/fault"
)

//go:embed templates static
var files embed.FS

// Options are what the pages work with.
type Options struct {
	Control *control.Service
	Auth    *auth.Service
	BaseURL string // of the server, as people type it
	Log     *slog.Logger
	// Nonce returns what the Content-Security-Policy of this answer allows scripts and styles by: server.Nonce.
	Nonce func(context.Context) string
	// Client tells the address that a request came from, as far as trusted proxies are believed: server.ClientAddr.
	Client func(context.Context) netip.Addr
	Clock  func() time.Time // time.Now if nil
}

// Pages is the handler for everything outside the API. It is safe for concurrent use.
type Pages struct {
	ops    operations
	door   door
	base   *url.URL
	log    *slog.Logger
	nonce  func(context.Context) string
	client func(context.Context) netip.Addr
	clock  func() time.Time
	pages  map[string]*template.Template
	assets map[string]asset
	mux    *http.ServeMux
	origin *http.CrossOriginProtection
}

// New parses every template, so that a mistake in one is found when the service starts.
func New(o Options) (*Pages, error) {
	if o.Control == nil || o.Auth == nil {
		return nil, errors.New("pages need the operations and sign-in")
	}
	return build(o, o.Control, o.Auth)
}

func build(o Options, ops operations, d door) (*Pages, error) {
	base, err := url.Parse(o.BaseURL)
	if err != nil {
		return nil, fault.New(fault.Invalid, "the server's address is not a URL").Because(err)
	}
	p := &Pages{ops: ops, door: d, base: base, log: o.Log, nonce: o.Nonce, client: o.Client, clock: o.Clock, mux: http.NewServeMux(), origin: http.NewCrossOriginProtection()}
	if p.log == nil {
		p.log = slog.New(slog.DiscardHandler)
	}
	if p.clock == nil {
		p.clock = time.Now
	}
	if p.nonce == nil {
		p.nonce = func(context.Context) string { return "" }
	}
	if p.client == nil {
		p.client = func(context.Context) netip.Addr { return netip.Addr{} }
	}
	if base.Host != "" {
		if err := p.origin.AddTrustedOrigin(base.Scheme + "://" + base.Host); err != nil {
			return nil, fault.New(fault.Invalid, "the server's address is not a URL").Because(err)
		}
	}
	if p.assets, err = readAssets(); err != nil {
		return nil, err
	}
	if p.pages, err = p.parse(); err != nil {
		return nil, err
	}
	p.routes()
	return p, nil
}

// ServeHTTP answers one request. Requests from other sites that would change something are refused here as well as by the server around, since
// signing in changes something without a cookie.
func (p *Pages) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if err := p.origin.Check(r); err != nil {
		v := p.visit(w, r)
		v.fail(fault.New(fault.Denied, "this form was sent from another site").WithHint("open the page here and send it again").Because(err))
		return
	}
	p.mux.ServeHTTP(w, r)
}

// Package server (CONTROL) is the service's HTTP: the API under /api/v1, with what guards it, and the pages beside it.
//
// Each operation of the API is one line of a table (table.go): method, path, permission, and a function that calls one method of control.Service.
// What stands before an operation is here and the same for all: host names, identity, cross-origin requests, bounds, idempotency, errors, headers.
package server

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"time"

	"github.com/cofferdam/cofferdam/internal/auth"
	"github.com/cofferdam/cofferdam/internal/control"
	"github.com/cofferdam/cofferdam/internal/store"
)

// prefix is where the API is.
const prefix = "/api/v1"

// maxHeader bounds a request's header; 64 KiB holds any cookie or token that we make many times over.
const maxHeader = 64 << 10

// limiter says whether one more request under a key is within a limit. auth.Limiter is one.
type limiter interface {
	Allow(ctx context.Context, key string, limit int, per time.Duration) (ok bool, retry time.Duration, err error)
}

// Options are what a server works with.
type Options struct {
	Control *control.Service
	Auth    *auth.Service
	DB      *store.DB
	Limiter auth.Limiter // of requests for each caller
	// Pages answers what is not the API; nil: nothing is there.
	Pages http.Handler
	// BaseURL is how people reach the service: scheme and host, without a path.
	BaseURL string
	// Names are further host names by which it may be called.
	Names []string
	// TrustedProxies may say in X-Forwarded-For and X-Forwarded-Proto who their client is.
	TrustedProxies []netip.Prefix
	Log            *slog.Logger
	Clock          func() time.Time // time.Now if nil
	Version        string
	// Contact is where security.txt sends reports: a mailto: or https: URL; none: there is no security.txt.
	Contact string
}

// Server answers HTTP requests. It is safe for concurrent use.
type Server struct {
	control *control.Service
	auth    *auth.Service
	db      *store.DB
	limits  limiter
	pages   http.Handler
	base    *url.URL
	names   map[string]bool
	proxies []netip.Prefix
	log     *slog.Logger
	clock   func() time.Time
	contact string
	version string

	mux        *http.ServeMux
	origins    *http.CrossOriginProtection
	crowd      *crowd
	streams    *crowd
	operations []operation
	document   document
}

// New returns a server.
func New(o Options) (*Server, error) {
	base, err := url.Parse(o.BaseURL)
	if err != nil || (base.Scheme != "https" && base.Scheme != "http") || base.Host == "" || (base.Path != "" && base.Path != "/") {
		return nil, errors.New("base URL: want https://HOST, without a path")
	}
	if o.Control == nil || o.Auth == nil || o.DB == nil || o.Limiter == nil || o.Log == nil {
		return nil, errors.New("server: control, auth, store, limiter and log are needed")
	}
	s := &Server{
		control: o.Control, auth: o.Auth, db: o.DB, limits: o.Limiter, pages: o.Pages, base: base, proxies: o.TrustedProxies,
		log: o.Log, clock: o.Clock, contact: o.Contact, version: o.Version,
		crowd: newCrowd(maxAtOnce), streams: newCrowd(maxStreams), origins: http.NewCrossOriginProtection(),
	}
	if s.clock == nil {
		s.clock = time.Now
	}
	if s.pages == nil {
		s.pages = http.NotFoundHandler()
	}
	if s.names, err = hostNames(base, o.Names); err != nil {
		return nil, err
	}
	if err := s.origins.AddTrustedOrigin(base.Scheme + "://" + base.Host); err != nil {
		return nil, err
	}
	return s, s.install()
}

// Handler returns the whole of it, with everything that stands before pages and API.
func (s *Server) Handler() http.Handler { return http.HandlerFunc(s.serve) }

// HTTP returns an http.Server with this server's bounds; listening and certificates are the caller's.
func (s *Server) HTTP() *http.Server {
	return &http.Server{
		Handler:           s.Handler(),
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug), // handshakes that fail, and the like: anybody can cause those
	}
}

// Package certificate (MACHINE) is where the service's TLS certificate comes from: files that somebody else renews, an authority of the server's own,
// or an ACME authority. Whichever it is, the certificate is exchanged while the service runs, and no connection notices.
package certificate

import (
	"context"
	"crypto/tls"
	"log/slog"
	"slices"
	"time"

	"github.com/cofferdam/cofferdam/internal/config"
	"github.com/cofferdam/cofferdam/internal/fault"
)

// Options say what a Source serves.
type Options struct {
	TLS   config.TLS
	Names []string // hosts under which the service answers, with or without a port
	Dir   string   // where modes local and acme keep what they have: STATE/server/tls
	Host  string   // mode acme: the address that the service listens on, empty for every one
	Port  int      // mode acme: the port that it listens on
	Log   *slog.Logger
	Clock func() time.Time // time.Now if nil; mode acme, whose authority has a clock of its own, only tells time by it

	checkEvery time.Duration // mode acme: how often to look whether a renewal is due
}

// Source has the certificate that is in force. It is safe for concurrent use.
type Source struct {
	from      origin
	local     *local // nil in every other mode
	protocols []string
}

// origin is one mode.
type origin interface {
	get(*tls.ClientHelloInfo) (*tls.Certificate, error)
	// run keeps the certificate fresh until ctx ends. It returns once all that it started has ended.
	run(ctx context.Context) error
	describe() string
}

// New reads or makes the certificate; mode acme obtains its own in Run. It starts nothing.
func New(_ context.Context, o Options) (*Source, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Clock == nil {
		o.Clock = time.Now
	}
	n, err := parseNames(o.Names)
	if err != nil {
		return nil, err
	}
	s := &Source{protocols: []string{"h2", "http/1.1"}}
	switch o.TLS.Mode {
	case config.TLSFiles:
		s.from, err = newFiles(o, n)
	case config.TLSLocal:
		s.local, err = newLocal(o, n)
		s.from = s.local
	case config.TLSACME:
		s.from, err = newACME(o, n)
		s.protocols = append(s.protocols, challengeProtocol)
	default:
		return nil, fault.New(fault.Invalid, "tls.mode %q has no certificate", o.TLS.Mode).WithHint("write files, local or acme")
	}
	if err != nil {
		return nil, err
	}
	return s, nil
}

// Config returns a new configuration for a listener. TLS 1.3 is taken wherever the client speaks it.
func (s *Source) Config() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: slices.Clone(s.protocols), GetCertificate: s.from.get}
}

// Run reloads and renews until ctx ends, and returns nil then. In mode acme the service must listen on its port before Run is called: the authority
// connects to it, and if nothing listened there, the challenge would.
func (s *Source) Run(ctx context.Context) error { return s.from.run(ctx) }

// Describe says in a few words what is in force, as in "files, until 2027-01-02".
func (s *Source) Describe() string { return s.from.describe() }

// Authority returns the certificate of the server's own authority, for people to trust, and its SHA-256 fingerprint as browsers show it.
// Both are empty in the other modes.
func (s *Source) Authority() (pem []byte, fingerprint string) {
	if s.local == nil {
		return nil, ""
	}
	ca := s.local.ca.Load()
	return slices.Clone(ca.pem), ca.fingerprint
}

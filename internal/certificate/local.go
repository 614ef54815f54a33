package certificate

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/cofferdam/cofferdam/internal/fault"
)

const (
	authorityLife = 10 * 365 * 24 * time.Hour // people trust it by hand
	leafLife      = 90 * 24 * time.Hour
	clockSkew     = time.Hour // by which a client's clock may be behind ours
	renewEvery    = time.Hour // a look whether the leaf is due

	caFile     = "ca.pem"     // the authority's certificate, for people to take
	caKeyFile  = "ca.key"     // the same with its key: one file, so that no crash parts them
	leafFile   = "server.key" // the leaf with its key
	modePublic = 0o644
	modeSecret = 0o600
)

// local is mode local: an authority of the server's own, which people trust by hand, and a certificate of it.
type local struct {
	dir     string
	names   names
	log     *slog.Logger
	clock   func() time.Time
	current atomic.Pointer[tls.Certificate]
	ca      atomic.Pointer[authority]
	problem atomic.Pointer[string] // why the last renewal did not happen
}

func newLocal(o Options, n names) (*local, error) {
	l := &local{dir: o.Dir, names: n.withLoopback(), log: o.Log, clock: o.Clock}
	if err := os.MkdirAll(l.dir, 0o700); err != nil {
		return nil, fault.New(fault.Invalid, "cannot make the directory %s for the server's authority", l.dir).WithHint("let the service's user write the state directory").Because(err)
	}
	if err := l.ensure(); err != nil {
		return nil, err
	}
	return l, nil
}

func (l *local) get(*tls.ClientHelloInfo) (*tls.Certificate, error) { return l.current.Load(), nil }

// ensure puts an authority and a certificate of it in force: those on disk if they will do, new ones otherwise.
func (l *local) ensure() error {
	ca, err := l.settleAuthority()
	if err != nil {
		return err
	}
	leaf, err := loadPair(filepath.Join(l.dir, leafFile), filepath.Join(l.dir, leafFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		l.log.Warn("the server's certificate cannot be used and is made anew", "error", err)
	}
	if err != nil || !l.fits(leaf.Leaf, ca.cert) {
		if leaf, err = l.issue(ca); err != nil {
			return err
		}
	}
	public := &authority{cert: ca.cert, pem: ca.pem, fingerprint: ca.fingerprint} // its key leaves memory here
	l.ca.Store(public)
	l.current.Store(leaf)
	return nil
}

// settleAuthority reads the authority or makes one. One that cannot be read is never replaced silently: people trust it.
func (l *local) settleAuthority() (*authority, error) {
	path := filepath.Join(l.dir, caKeyFile)
	ca, err := loadAuthority(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, err
	case !ca.covers(l.names), l.clock().Add(leafLife).After(ca.cert.NotAfter):
		l.log.Warn("a new authority takes the place of the old one, which ends soon or may not vouch for a name that was added: whoever trusts it must trust the new one",
			"old", ca.fingerprint, "validity", span(ca.cert, l.clock()))
		ca = nil
	}
	if ca == nil {
		if ca, err = newAuthority(l.names, l.clock()); err != nil {
			return nil, err
		}
		if err := ca.save(path); err != nil {
			return nil, err
		}
		l.log.Info("made an authority of this server's own", "file", filepath.Join(l.dir, caFile), "fingerprint", ca.fingerprint)
	}
	return ca, writeIfOther(filepath.Join(l.dir, caFile), ca.pem)
}

// fits says whether a leaf is the authority's, has the right names and is not due.
func (l *local) fits(leaf, ca *x509.Certificate) bool {
	return leaf.CheckSignatureFrom(ca) == nil && l.names.exactly(leaf) && !l.due(leaf)
}

// due says whether two thirds of a leaf's life have passed, or the clock was set back to before it.
func (l *local) due(leaf *x509.Certificate) bool {
	now := l.clock()
	return now.Before(leaf.NotBefore) || now.After(leaf.NotBefore.Add(leaf.NotAfter.Sub(leaf.NotBefore)*2/3))
}

func (l *local) issue(ca *authority) (*tls.Certificate, error) {
	leaf, data, err := ca.issue(l.names, l.clock())
	if err != nil {
		return nil, err
	}
	defer clear(data)
	if err := writeFile(filepath.Join(l.dir, leafFile), data, modeSecret); err != nil {
		return nil, err
	}
	l.log.Info("made a certificate of the server's own authority", "until", day(leaf.Leaf.NotAfter))
	return leaf, nil
}

func (l *local) run(ctx context.Context) error {
	tick := time.NewTicker(renewEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if !l.due(l.current.Load().Leaf) {
			continue
		}
		if err := l.ensure(); err != nil {
			text := cut(err.Error())
			l.problem.Store(&text)
			l.log.Error("cannot renew the certificate: tried again in an hour", "error", text)
			continue
		}
		l.problem.Store(nil)
	}
}

func (l *local) describe() string {
	text := "local authority, " + span(l.current.Load().Leaf, l.clock())
	if p := l.problem.Load(); p != nil {
		text += "; cannot be renewed: " + *p
	}
	return text
}

package certificate

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/certmagic"
	"go.uber.org/zap"

	"github.com/cofferdam/cofferdam/internal/config"
	"github.com/cofferdam/cofferdam/internal/fault"
)

const (
	challengeProtocol = "acme-tls/1" // RFC 8737, section 6.2
	againAfter        = time.Hour    // after what no retrying helps against, such as a full disk
	endWithin         = 10 * time.Second
)

// acme is mode acme: an authority that checks by itself whether we are who we say. certmagic speaks to it: the protocol, the account, when to renew
// (as the authority asks, RFC 9773, or in the last third of the life), and how long to wait after what failed.
type acme struct {
	names   []string
	issuer  certmagic.ACMEIssuer // as a template
	storage *storage
	log     *slog.Logger
	clock   func() time.Time
	every   time.Duration
	started chan struct{} // closed once magic is there
	magic   *certmagic.Config

	mu       sync.Mutex
	problems map[string]string // by name: why there is no certificate, or no new one
}

func newACME(o Options, n names) (*acme, error) {
	a := &acme{
		names: n.public(), log: o.Log, clock: o.Clock, every: o.checkEvery,
		started: make(chan struct{}), problems: map[string]string{},
	}
	settings := o.TLS.ACME
	if settings == nil {
		settings = &config.ACME{}
	}
	directory := settings.Directory
	if directory == "" {
		directory = certmagic.LetsEncryptProductionCA
	}
	if err := checkACME(directory, a.names, settings.HTTPPort, o.Port); err != nil {
		return nil, err
	}
	a.issuer = certmagic.ACMEIssuer{
		CA: directory, Email: settings.Email,
		Agreed:                    true, // docs/serve.md says that choosing the mode agrees to the authority's terms
		DisableHTTPChallenge:      settings.HTTPPort == 0,
		AltHTTPPort:               settings.HTTPPort,
		AltTLSALPNPort:            o.Port,
		ListenHost:                o.Host,
		DisableDistributedSolvers: true, // the storage is this server's alone
	}
	if settings.CA != "" {
		data, err := readFile(settings.CA, "authority of the ACME directory")
		if err != nil {
			return nil, err
		}
		a.issuer.TrustedRoots = x509.NewCertPool()
		if !a.issuer.TrustedRoots.AppendCertsFromPEM(data) {
			return nil, fault.New(fault.Invalid, "%s has no certificate", settings.CA).WithHint("name a PEM file in tls.acme.ca")
		}
	}
	dir := filepath.Join(o.Dir, "acme")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fault.New(fault.Invalid, "cannot make the directory %s for certificates", dir).WithHint("let the service's user write the state directory").Because(err)
	}
	a.storage = newStorage(dir)
	return a, nil
}

// checkACME refuses what could never work, before the authority does.
func checkACME(directory string, names []string, httpPort, port int) error {
	u, err := url.Parse(directory)
	if err != nil || u.Scheme != "https" || u.Host == "" {
		return fault.New(fault.Invalid, "tls.acme.directory: %.200q cannot be used", directory).WithHint("write the directory's address, https://…")
	}
	if len(names) == 0 {
		return fault.New(fault.Invalid, "tls.mode acme needs a name that the authority can reach, and url and hosts have none").
			WithHint("write url: https://cofferdam.example.com, or choose tls.mode local")
	}
	if httpPort < 0 || httpPort > 65535 {
		return fault.New(fault.Invalid, "tls.acme.http_port: %d is no port", httpPort).WithHint("write the port that the authority's connections to port 80 arrive at, mostly 80")
	}
	if port <= 0 {
		return fault.New(fault.Invalid, "tls.mode acme needs a port that is known beforehand").WithHint("listen on :443, or where connections to port 443 are forwarded to")
	}
	if directory != certmagic.LetsEncryptProductionCA {
		return nil
	}
	for _, name := range names {
		if _, err := netip.ParseAddr(name); err == nil || !certmagic.SubjectQualifiesForPublicCert(name) || !strings.Contains(name, ".") {
			return fault.New(fault.Invalid, "Let's Encrypt gives no certificate for %.200q", name).
				WithHint("use names of the public DNS in url and hosts, or choose tls.mode local, or another directory")
		}
	}
	return nil
}

func (a *acme) get(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	select {
	case <-a.started:
	case <-hello.Context().Done():
		return nil, hello.Context().Err()
	}
	return a.magic.GetCertificate(hello)
}

func (a *acme) run(ctx context.Context) error {
	log := bridge(a.log, func() bool { return ctx.Err() != nil })
	cache := certmagic.NewCache(certmagic.CacheOptions{
		GetConfigForCert:   func(certmagic.Certificate) (*certmagic.Config, error) { return a.magic, nil },
		RenewCheckInterval: a.every,
		Logger:             log,
	})
	a.magic = certmagic.New(cache, certmagic.Config{
		Storage: a.storage,
		Logger:  log,
		OnEvent: a.event,
		// Authorities give up OCSP, and a request to a responder for each start is one more thing that can be slow.
		OCSP: certmagic.OCSPConfig{DisableStapling: true},
		// Who asks by address, or by a name that we do not know, sees a wrong name and not a riddle.
		DefaultServerName: a.names[0], FallbackServerName: a.names[0],
	})
	template := a.issuer
	template.Logger = log
	issuer := certmagic.NewACMEIssuer(a.magic, template)
	issuer.TestCA = "" // which otherwise is asked after a failure: no other authority is, ever
	a.magic.Issuers = []certmagic.Issuer{issuer}
	close(a.started)

	var group sync.WaitGroup
	for _, name := range a.names {
		group.Go(func() { a.manage(ctx, cache, name) })
	}
	<-ctx.Done()
	group.Wait()
	return a.end(cache, log)
}

// manage has a certificate in the cache sooner or later, and a fresh one; from then on the cache renews it.
func (a *acme) manage(ctx context.Context, cache *certmagic.Cache, name string) {
	for {
		err := a.begin(ctx, cache, name)
		if err == nil || ctx.Err() != nil {
			return
		}
		a.fail(name, err)
		a.log.Error("cannot get a certificate: tried again in an hour", "name", name, "error", cut(err.Error()))
		select {
		case <-ctx.Done():
			return
		case <-time.After(againAfter):
		}
	}
}

// begin returns once a certificate that is not due is in force. Despite their names, certmagic's Async functions block, and try again by themselves.
func (a *acme) begin(ctx context.Context, cache *certmagic.Cache, name string) error {
	if err := a.magic.ObtainCertAsync(ctx, name); err != nil { // nothing to do if there is one on disk
		return err
	}
	old, err := a.magic.CacheManagedCertificate(ctx, name)
	if err != nil {
		return err
	}
	// One that got old while nothing ran is in force until there is another.
	if err := a.magic.RenewCertAsync(ctx, name, false); err != nil {
		return err
	}
	fresh, err := a.magic.CacheManagedCertificate(ctx, name)
	if err == nil && fresh.Hash() != old.Hash() {
		cache.Remove([]string{old.Hash()})
	}
	return err
}

// end stops the renewals. The cache stops the start of new ones; one that is on its way holds a lock in our storage until it has noticed.
func (a *acme) end(cache *certmagic.Cache, log *zap.Logger) error {
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		cache.Stop()
	}()
	deadline := time.After(endWithin)
	for {
		select {
		case <-stopped:
			if a.storage.idle() {
				return nil
			}
			time.Sleep(20 * time.Millisecond)
		case <-deadline:
			certmagic.CleanUpOwnLocks(context.Background(), log) // so that the next start does not wait until they look stale
			return errors.New("certificates: a request to the authority does not end")
		}
	}
}

// event hears what happens to certificates.
func (a *acme) event(_ context.Context, event string, data map[string]any) error {
	name, _ := data["identifier"].(string)
	switch event {
	case "cert_obtained":
		a.mu.Lock()
		delete(a.problems, name)
		a.mu.Unlock()
		a.log.Info("got a certificate", "name", name, "issuer", data["issuer"], "renewal", data["renewal"])
	case "cert_failed":
		if err, ok := data["error"].(error); ok && !errors.Is(err, context.Canceled) {
			a.fail(name, err)
		}
	}
	return nil
}

func (a *acme) fail(name string, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.problems[name] = cut(err.Error())
}

// describe reads what is on disk: that is what is in force, or will be in a moment.
func (a *acme) describe() string {
	var parts []string
	for _, name := range a.names {
		text := name + " not yet"
		if leaf := a.stored(name); leaf != nil {
			text = name + " " + span(leaf, a.clock())
		}
		a.mu.Lock()
		if p := a.problems[name]; p != "" {
			text += " (" + p + ")"
		}
		a.mu.Unlock()
		parts = append(parts, text)
	}
	return fmt.Sprintf("acme, %s", strings.Join(parts, ", "))
}

func (a *acme) stored(name string) *x509.Certificate {
	data, err := a.storage.Load(context.Background(), certmagic.StorageKeys.SiteCert(a.issuer.IssuerKey(), name))
	if err != nil {
		return nil
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return nil
	}
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil
	}
	return leaf
}

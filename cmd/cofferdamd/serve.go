package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/audit"
	"github.com/cofferdam/cofferdam/internal/auth"
	"github.com/cofferdam/cofferdam/internal/auth/limit"
	"github.com/cofferdam/cofferdam/internal/certificate"
	"github.com/cofferdam/cofferdam/internal/config"
	"github.com/cofferdam/cofferdam/internal/control"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/keeper"
	"github.com/cofferdam/cofferdam/internal/seal"
	"github.com/cofferdam/cofferdam/internal/server"
	"github.com/cofferdam/cofferdam/internal/store"
	"github.com/cofferdam/cofferdam/internal/web"
)

func (d *daemon) serveCommand() *cobra.Command {
	return d.configured(&cobra.Command{
		Use: "serve", Short: "Serve people and programs over HTTP", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := d.load()
			if err != nil {
				return err
			}
			return d.serve(cmd.Context(), c)
		},
	})
}

// service is everything that serves, opened in order and closed in the reverse one.
type service struct {
	d       *daemon
	config  *config.Config
	log     *slog.Logger
	db      *store.DB
	audit   *audit.Log
	limiter auth.Limiter
	auth    *auth.Service
	control *control.Service
	server  *server.Server
	cert    *certificate.Source
	close   []func() error
}

// serve opens everything, listens, and returns when ctx ends and what was under way has ended. Sandboxes go on: their keepers are processes of their own.
func (d *daemon) serve(ctx context.Context, c *config.Config) error {
	s := &service{d: d, config: c, log: slog.New(slog.NewTextHandler(d.stderr, nil))}
	defer s.closeAll()
	if err := s.lock(ctx); err != nil {
		return err
	}
	listener, err := s.listen(ctx)
	if err != nil {
		return err
	}
	if err := s.open(ctx); err != nil {
		return errors.Join(err, listener.Close())
	}
	listener = s.server.Bound(listener)
	if s.cert != nil {
		listener = tls.NewListener(listener, s.cert.Config())
	}
	if err := s.greet(ctx); err != nil {
		return errors.Join(err, listener.Close())
	}
	return s.run(ctx, listener)
}

// open makes everything but the listener.
func (s *service) open(ctx context.Context) error {
	if err := s.openStore(ctx); err != nil {
		return err
	}
	if err := s.openAuth(ctx); err != nil {
		return err
	}
	program, err := beside("cofferdam")
	if err != nil {
		return err
	}
	s.control, err = control.New(control.Options{
		DB: s.db, Auth: s.auth, Audit: s.audit, State: s.d.state, Launcher: &keeper.Launcher{Program: program, State: s.d.state},
		Log: s.log, BaseURL: s.config.URL, Version: version(),
	})
	if err != nil {
		return err
	}
	return s.openHTTP(ctx)
}

// lockTime bounds the wait for the state directory. A service that was killed while it started a process may have left it a child that holds the lock too,
// until that has become the other program.
const lockTime = 2 * time.Second

// lock makes sure that one service has the state directory.
func (s *service) lock(ctx context.Context) error {
	dir := filepath.Join(s.d.state, "server")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fault.New(fault.Unavailable, "cannot use the state directory %s", s.d.state).WithHint("set COFFERDAM_STATE to a directory of the service's own").Because(err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fault.New(fault.Unavailable, "cannot use the state directory %s", s.d.state).Because(err)
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	for began := time.Now(); errors.Is(err, unix.EWOULDBLOCK) && time.Since(began) < lockTime && ctx.Err() == nil; {
		time.Sleep(20 * time.Millisecond)
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}
	if err != nil {
		return errors.Join(fault.New(fault.Conflict, "a service runs already with the state directory %s", s.d.state).
			WithHint("end it first, or set COFFERDAM_STATE to another directory").Because(err), f.Close())
	}
	s.close = append(s.close, f.Close)
	return nil
}

func (s *service) openStore(ctx context.Context) (err error) {
	if s.db, err = store.Open(ctx, s.config.Store); err != nil {
		return err
	}
	s.close = append(s.close, s.db.Close)
	if s.audit, err = audit.Open(filepath.Join(s.d.state, "audit")); err != nil {
		return err
	}
	s.close = append(s.close, s.audit.Close)
	return nil
}

func (s *service) openAuth(ctx context.Context) error {
	if s.config.Redis != "" {
		r, err := limit.NewRedis(s.config.Redis)
		if err != nil {
			return err
		}
		s.close = append(s.close, r.Close)
		if err := r.Ping(ctx); err != nil {
			return err
		}
		s.limiter = r
	} else {
		s.limiter = limit.NewMemory(time.Now, maxKeys)
	}
	vault := seal.OpenVault(filepath.Join(s.d.state, "server", "seal"), os.Getenv)
	if made, err := vault.Initialised(); err != nil {
		return err
	} else if !made {
		if _, err := vault.Init(ctx, seal.Source{}); err != nil {
			return err
		}
	}
	mailer, err := mailerOf(s.config.Mail)
	if err != nil {
		return err
	}
	providers, err := providersOf(ctx, s.db, s.config.OIDC)
	if err != nil {
		return err
	}
	o := auth.Options{DB: s.db, BaseURL: s.config.URL, Limiter: s.limiter, Sealer: vault, Log: s.log, Providers: providers, Scopes: control.Scopes()}
	if mailer != nil {
		o.Mailer = mailer
	}
	s.auth, err = auth.New(o)
	return err
}

// maxKeys bounds what is remembered of callers whose requests are counted.
const maxKeys = 1 << 17

func (s *service) openHTTP(ctx context.Context) (err error) {
	proxies, err := s.config.Proxies()
	if err != nil {
		return err
	}
	pages, err := web.New(web.Options{Control: s.control, Auth: s.auth, BaseURL: s.config.URL, Log: s.log, Nonce: server.Nonce, Client: server.ClientAddr})
	if err != nil {
		return err
	}
	s.server, err = server.New(server.Options{
		Control: s.control, Auth: s.auth, DB: s.db, Limiter: s.limiter, Pages: pages, BaseURL: s.config.URL, Names: s.config.Hosts,
		TrustedProxies: proxies, Log: s.log, Version: version(), Contact: s.config.SecurityContact,
	})
	if err != nil {
		return err
	}
	if s.config.TLS.Mode == config.TLSOff {
		return nil
	}
	host, port, _ := net.SplitHostPort(s.config.Listen) // it was checked
	n, _ := strconv.Atoi(port)
	s.cert, err = certificate.New(ctx, certificate.Options{
		TLS: s.config.TLS, Names: s.config.Names(), Dir: filepath.Join(s.d.state, "server", "tls"), Log: s.log, Host: host, Port: n,
	})
	return err
}

func (s *service) listen(ctx context.Context) (net.Listener, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", s.config.Listen)
	if err != nil {
		e := fault.New(fault.Unavailable, "cannot listen on %s", s.config.Listen).Because(err)
		switch {
		case errors.Is(err, unix.EADDRINUSE):
			return nil, e.WithHint("something else listens there: end it, or choose another address with --listen")
		case errors.Is(err, unix.EACCES):
			return nil, e.WithHint("ports below 1024 need CAP_NET_BIND_SERVICE: choose another with --listen, or give the service that capability")
		}
		return nil, e
	}
	s.moved(l.Addr())
	return l, nil
}

// greet tells where the service is and, while nobody has set it up, how to, all at once.
func (s *service) greet(ctx context.Context) error {
	var out strings.Builder
	fmt.Fprintf(&out, "cofferdam %s serves %s\n", version(), s.config.URL)
	if s.cert != nil {
		fmt.Fprintf(&out, "  certificate: %s\n", s.cert.Describe())
		if _, fingerprint := s.cert.Authority(); fingerprint != "" {
			fmt.Fprintf(&out, "  authority:   %s\n               SHA-256 %s\n", filepath.Join(s.d.state, "server", "tls", "ca.pem"), fingerprint)
		}
	}
	if os.Getuid() == 0 {
		out.WriteString("  note: this service runs as root, and reads what strangers send. Give it a user of its own: see docs/serve.md\n")
	}
	need, err := s.auth.NeedsSetup(ctx)
	if err != nil {
		return err
	}
	if need {
		_, link, err := s.auth.SetupToken(ctx)
		if err != nil {
			return err
		}
		fmt.Fprintf(&out, "\nNobody has set it up yet. Open this link, which is good once and for a day, and make the administrator's account:\n\n  %s\n\n", link)
	}
	_, err = io.WriteString(s.d.stdout, out.String())
	return err
}

// moved puts the port in that the kernel chose, where the configuration left it the choice.
func (s *service) moved(at net.Addr) {
	tcp, ok := at.(*net.TCPAddr)
	if u, err := url.Parse(s.config.URL); ok && err == nil && u.Port() == "0" {
		u.Host = net.JoinHostPort(u.Hostname(), strconv.Itoa(tcp.Port))
		s.config.URL = u.String()
	}
}

// goodbye is how long requests that are under way may take to end.
const goodbye = 10 * time.Second

// run serves until ctx ends or something essential breaks.
func (s *service) run(ctx context.Context, listener net.Listener) error {
	group, ctx := errgroup.WithContext(ctx)
	hs := s.server.HTTP()
	hs.BaseContext = func(net.Listener) context.Context { return ctx } // streams end with the service
	group.Go(func() error { return s.control.Run(ctx) })
	group.Go(func() error { return s.auth.Run(ctx) })
	if s.cert != nil {
		group.Go(func() error { return s.cert.Run(ctx) })
	}
	group.Go(func() error {
		if err := hs.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve: %w", err)
		}
		return nil
	})
	group.Go(func() error {
		<-ctx.Done()
		ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), goodbye)
		defer cancel()
		if err := hs.Shutdown(ending); err != nil {
			return hs.Close()
		}
		return nil
	})
	notify("READY=1")
	err := group.Wait()
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// notify tells systemd how the service is (sd_notify(3)), where that started it.
func notify(state string) {
	name := os.Getenv("NOTIFY_SOCKET")
	if name == "" {
		return
	}
	if strings.HasPrefix(name, "@") {
		name = "\x00" + name[1:]
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		return // who started us does not listen
	}
	defer conn.Close()
	_, _ = conn.Write([]byte(state)) // likewise
}

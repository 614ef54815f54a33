package certificate

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	lookEvery   = 5 * time.Second     // at files, for changes
	warnEvery   = 24 * time.Hour      // of a certificate that ends soon
	warnWithin  = 14 * 24 * time.Hour // of its end; whoever renews at two thirds of 90 days or at half of 47 has done so long before
	afterChange = "the certificate's files changed"
)

// files is mode files: somebody else renews them.
type files struct {
	cert, key string
	names     names
	log       *slog.Logger
	clock     func() time.Time
	seen      string // what load looked at; run's own once it began
	current   atomic.Pointer[tls.Certificate]
	problem   atomic.Pointer[string] // why the files as they are now are not in force
}

func newFiles(o Options, n names) (*files, error) {
	f := &files{cert: o.TLS.Cert, key: o.TLS.Key, names: n, log: o.Log, clock: o.Clock}
	if err := f.load(); err != nil {
		return nil, err
	}
	return f, nil
}

func (f *files) get(*tls.ClientHelloInfo) (*tls.Certificate, error) { return f.current.Load(), nil }

// load puts the files in force. Their state is taken before they are read, so that a change meanwhile is seen next time.
func (f *files) load() error {
	f.seen = f.state()
	pair, err := loadPair(f.cert, f.key)
	if err != nil {
		text := cut(err.Error())
		f.problem.Store(&text)
		return err
	}
	f.current.Store(pair)
	f.problem.Store(nil)
	f.warn(pair.Leaf)
	if missing := f.names.missing(pair.Leaf); len(missing) > 0 {
		f.log.Warn("the certificate is not good for a name of the service", "file", f.cert, "names", strings.Join(missing, " "))
	}
	return nil
}

// run looks at the files again and again. A pair that cannot be used, such as one half of which is not written yet, leaves the old one in force.
func (f *files) run(ctx context.Context) error {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	warned := f.clock()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if f.state() != f.seen {
			if err := f.load(); err != nil {
				f.log.Error(afterChange+" and cannot be used: the old one stays", "error", cut(err.Error()))
				continue
			}
			f.log.Info(afterChange, "certificate", f.describe())
			warned = f.clock()
		} else if f.clock().Sub(warned) >= warnEvery {
			f.warn(f.current.Load().Leaf)
			warned = f.clock()
		}
	}
}

// state tells any change of either file, also one that keeps size and time of modification, and what a link points to.
func (f *files) state() string {
	var b strings.Builder
	for _, name := range []string{f.cert, f.key} {
		info, err := os.Stat(name)
		if err != nil {
			fmt.Fprintln(&b, err)
			continue
		}
		fmt.Fprint(&b, info.Size(), " ", info.ModTime().UnixNano(), " ", info.Mode())
		if s, ok := info.Sys().(*syscall.Stat_t); ok {
			fmt.Fprint(&b, " ", s.Dev, " ", s.Ino, " ", s.Ctim)
		}
		fmt.Fprintln(&b)
	}
	return b.String()
}

// warn tells operators before visitors find out.
func (f *files) warn(leaf *x509.Certificate) {
	now := f.clock()
	if now.Before(leaf.NotBefore) || leaf.NotAfter.Sub(now) < warnWithin {
		f.log.Warn("the certificate is not valid, or not for long", "file", f.cert, "validity", span(leaf, now))
	}
}

func (f *files) describe() string {
	text := "files, " + span(f.current.Load().Leaf, f.clock())
	if p := f.problem.Load(); p != nil {
		text += "; the files changed and cannot be used: " + *p
	}
	return text
}

// Package upstream (GATEWAY) reaches the places that policy allows: it resolves a name once through the host's configured
// resolvers, and dials exactly the addresses that were checked, never a name.
package upstream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/cofferdam/cofferdam/internal/netname"
)

// Defaults of Config.
const (
	defaultTimeout = 10 * time.Second
	defaultTTL     = 30 * time.Second
	// maxCached bounds the cache; the gateway's name table bounds distinct names far below, so a full cache is simply emptied.
	maxCached = 1024
	// maxAddresses bounds what one answer may make us try: a hostile zone can list hundreds.
	maxAddresses = 16
)

// resolver is the part of *net.Resolver that is needed; tests put a map in its place.
type resolver interface {
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
}

// Config sets up a Dialer. Its zero value is usable: the host's resolvers, ten seconds, a cache of thirty.
type Config struct {
	Resolver resolver      // nil: the Go resolver with the host's /etc/resolv.conf
	Timeout  time.Duration // for resolving, and again for dialling
	TTL      time.Duration // how long an answer is reused; failures are never kept
}

// Dialer resolves and dials. It is safe for concurrent use.
type Dialer struct {
	resolver resolver
	timeout  time.Duration
	ttl      time.Duration

	mu    sync.Mutex
	cache map[netname.Host]*answer
}

// answer is one look-up, shared by all who want it while it runs and until it expires.
type answer struct {
	done    chan struct{}
	addrs   []netip.Addr
	err     error
	expires time.Time
}

// New returns a Dialer.
func New(c Config) *Dialer {
	d := &Dialer{resolver: c.Resolver, timeout: c.Timeout, ttl: c.TTL, cache: make(map[netname.Host]*answer)}
	if d.resolver == nil {
		// The Go resolver needs no cgo, no NSS plug-ins and no files opened late beyond resolv.conf and hosts.
		d.resolver = &net.Resolver{PreferGo: true}
	}
	if d.timeout <= 0 {
		d.timeout = defaultTimeout
	}
	if d.ttl <= 0 {
		d.ttl = defaultTTL
	}
	return d
}

// Resolve returns the addresses of an allowed name, unmapped and without zones, in the resolver's order.
// Callers check every address against policy before they dial: the answer is untrusted.
func (d *Dialer) Resolve(ctx context.Context, host netname.Host) ([]netip.Addr, error) {
	if host == "" {
		return nil, errors.New("resolve: no name")
	}
	a, mine := d.claim(host)
	if mine {
		d.lookup(ctx, host, a)
	}
	select {
	case <-a.done:
		return a.addrs, a.err
	case <-ctx.Done():
		return nil, fmt.Errorf("resolve %s: %w", host, context.Cause(ctx))
	}
}

// claim returns the live answer for a host, or a new one which the caller must fill.
func (d *Dialer) claim(host netname.Host) (a *answer, mine bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if a := d.cache[host]; a != nil && (a.expires.IsZero() || time.Now().Before(a.expires)) {
		return a, false
	}
	if len(d.cache) >= maxCached {
		clear(d.cache)
	}
	a = &answer{done: make(chan struct{})}
	d.cache[host] = a
	return a, true
}

func (d *Dialer) lookup(ctx context.Context, host netname.Host, a *answer) {
	ctx, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	addrs, err := d.resolver.LookupNetIP(ctx, "ip", question(host))
	if err == nil {
		addrs, err = clean(addrs)
	}
	if err != nil {
		err = fmt.Errorf("resolve %s: %w", host, err)
	}
	d.mu.Lock()
	a.addrs, a.err, a.expires = addrs, err, time.Now().Add(d.ttl)
	if err != nil && d.cache[host] == a {
		delete(d.cache, host)
	}
	d.mu.Unlock()
	close(a.done)
}

// question is what the resolver is asked: rooted, so that the host's search domains are never tried for what a sandbox wants.
// Only a single label, which policy then names exactly, is left to the host's search list: that is how intranet names work.
func question(host netname.Host) string {
	if strings.Contains(string(host), ".") {
		return string(host) + "."
	}
	return string(host)
}

// clean unmaps, drops zones' addresses and duplicates, and bounds the list.
func clean(in []netip.Addr) ([]netip.Addr, error) {
	out := make([]netip.Addr, 0, min(len(in), maxAddresses))
	seen := make(map[netip.Addr]bool, len(in))
	for _, a := range in {
		a = a.Unmap()
		if !a.IsValid() || a.Zone() != "" || seen[a] {
			continue
		}
		seen[a] = true
		if out = append(out, a); len(out) == maxAddresses {
			break
		}
	}
	if len(out) == 0 {
		return nil, errors.New("no usable address")
	}
	return out, nil
}

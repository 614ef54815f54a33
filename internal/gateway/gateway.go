// Package gateway (GATEWAY) is the one door of a sandbox: every connection, question and refused packet comes here, policy decides, the
// decision goes on record, and only then a byte leaves. The protocol packages below it recognise bytes; only this pipeline decides,
// dials and records.
package gateway

import (
	"context"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cofferdam/cofferdam/internal/audit"
	"github.com/cofferdam/cofferdam/internal/frame"
	"github.com/cofferdam/cofferdam/internal/gateway/dns"
	"github.com/cofferdam/cofferdam/internal/gateway/git"
	"github.com/cofferdam/cofferdam/internal/gateway/inspected"
	"github.com/cofferdam/cofferdam/internal/gateway/plainhttp"
	"github.com/cofferdam/cofferdam/internal/gateway/redact"
	"github.com/cofferdam/cofferdam/internal/gateway/tunnel"
	"github.com/cofferdam/cofferdam/internal/ident"
	"github.com/cofferdam/cofferdam/internal/netname"
	"github.com/cofferdam/cofferdam/internal/policy"
)

// recorder is the audit log: Append returns only after all events are written, or none.
type recorder interface {
	Append(ctx context.Context, events ...audit.Event) error
}

// upstream resolves an allowed name, and dials checked addresses.
type upstream interface {
	Resolve(ctx context.Context, host netname.Host) ([]netip.Addr, error)
	Dial(ctx context.Context, addrs []netip.Addr, port uint16) (*net.TCPConn, error)
}

// Listeners are the sockets planted in the sandbox's network namespace. Each may be nil. The gateway closes them.
type Listeners struct {
	// TCP takes every redirected connection. It must be a plain TCP socket, not MPTCP, for SO_ORIGINAL_DST.
	TCP       *net.TCPListener
	DNSPacket *net.UDPConn
	DNSStream net.Listener
	// Refused is a netlink socket bound to the NFLOG group of packets that the kernel refused, or dropped for the gateway to refuse.
	Refused *os.File
	// Answer4 and Answer6 are raw sockets that send whole packets into the sandbox's network, by which the gateway refuses what was dropped.
	Answer4, Answer6 *os.File
}

// Limits bound one sandbox. Zero fields are replaced by the defaults named.
type Limits struct {
	Connections   int           // at once: 1024
	Bandwidth     int64         // bytes a second, both directions together; 0 for none
	Names         int           // in the name table: 4096, at most 100,000
	WildcardNames int           // distinct names below one wildcard's base: 256
	WildcardBytes int           // of the part that the wildcard stands for: 100
	HeadBytes     int           // of an HTTP head: 64 KiB
	FirstByte     time.Duration // until the client has said what it speaks, and for a whole TLS hello: 10 s
	Idle          time.Duration // silence in a tunnel: 1 h
	Ask           time.Duration // a question may wait for a human: 5 min
	Asking        int           // connections held by questions at once: 128
}

func (l Limits) orDefaults() Limits {
	n := func(v *int, d, most int) {
		if *v <= 0 {
			*v = d
		}
		*v = min(*v, most)
	}
	t := func(v *time.Duration, d time.Duration) {
		if *v <= 0 {
			*v = d
		}
	}
	n(&l.Connections, 1024, 1<<20)
	n(&l.Names, 4096, maxNames)
	n(&l.WildcardNames, 256, maxNames)
	n(&l.WildcardBytes, 100, 253)
	n(&l.HeadBytes, 64<<10, 1<<20)
	n(&l.Asking, 128, 1<<16)
	t(&l.FirstByte, 10*time.Second)
	t(&l.Idle, time.Hour)
	t(&l.Ask, 5*time.Minute)
	return l
}

// Config is what a gateway needs. Run, Policy, Recorder and Upstream are required.
type Config struct {
	Run      ident.Run
	Policy   *policy.Policy
	Recorder recorder
	Upstream upstream
	// Ask puts a question to a human and returns Allow or Deny. Nil: what policy would ask is refused.
	Ask func(ctx context.Context, c policy.Crossing, owner frame.Owner) policy.Decision
	// Owner asks the runner whose socket it is. Nil: unknown. It gets 200 ms, and is called only for denials and questions not seen before.
	Owner func(ctx context.Context, q frame.Query) frame.Owner
	// Used is told of each once-rule that has let its crossing through, after that is on record. It must return soon.
	Used func(rule string)
	// Denied is told once of each distinct denial, from several goroutines at once. It must return soon.
	Denied func(Denial)
	// Remedy is what a refusal suggests, where flags of the command line are nothing that anybody could type. Empty: the flag that would allow it.
	Remedy string
	// Control serves a connection to the control address until it returns, and says whether it took it. One that it did not take is refused and
	// recorded, as are all where Control is nil.
	Control func(net.Conn) bool
	// Lend opens a credential that policy lends to a crossing, for this one use. Nil: none can be had.
	Lend func(ctx context.Context, credential string, c policy.Crossing) (Grant, error)
	// Placeholders are what stands inside in the place of credentials.
	Placeholders []Placeholder
	// ProxyToken is what a program inside shows at the protocol proxies besides coming in by its own listener. Empty: it can show nothing.
	ProxyToken string
	// Scratch are open files for pushes that are judged by what is in them: as many at once as there are files. The gateway does not close them.
	Scratch []Scratch
	// Roots verify upstreams whose TLS is inspected. Nil: the system's.
	Roots  *x509.CertPool
	Limits Limits
	Log    *slog.Logger // nil: discarded
}

// Gateway is the door of one sandbox. It is safe for concurrent use.
type Gateway struct {
	config   Config
	limits   Limits
	log      *slog.Logger
	policy   atomic.Pointer[policy.Policy]
	once     onceRules
	names    *nameTable
	ledger   *ledger
	denials  denials
	asks     asks
	open     openList
	splicer  tunnel.Splicer
	meter    *meter // nil without a bound on bandwidth
	http     *plainhttp.Server
	http2    *inspected.Server
	connect  *inspected.Connector
	dns      *dns.Server
	git      *git.Proxy
	scratch  chan Scratch
	heads    sync.Pool
	crossing atomic.Uint64
	held     atomic.Int64
	signing  atomic.Int64 // bytes of bodies that are held to be signed
	counters counters
	vault    vault // secrets that were lent
	// placeholders finds what stands inside in the place of credentials; Config.Placeholders says whose.
	placeholders *redact.Set
	// authority signs what this sandbox's clients see where TLS is inspected. It is made when it is first needed.
	authority func() (*inspected.Authority, error)

	// originalDestination is where the client wanted to go before the kernel redirected it; tests put their own in its place.
	originalDestination func(*net.TCPConn) (netip.AddrPort, error)
}

// counters are the parts of Stats that only grow.
type counters struct{ connections, allowed, in, out, refused atomic.Int64 }

// Stats is a gateway's count so far.
type Stats struct {
	Connections int64  // accepted, refused ones included
	Open        int64  // now
	Allowed     int64  // crossings let through
	Denied      uint64 // crossings refused, floods counted in full
	In, Out     int64  // bytes of finished crossings
	Names       int    // in the name table
	// Refused counts the connections over the limit of those open at once, and Held for how long traffic was held back to its bandwidth.
	Refused int64
	Held    time.Duration
}

// New checks the configuration and returns a gateway that has not begun to serve.
func New(c Config) (*Gateway, error) {
	switch {
	case c.Run == "":
		return nil, errors.New("gateway: no run")
	case c.Policy == nil:
		return nil, errors.New("gateway: no policy")
	case c.Recorder == nil:
		return nil, errors.New("gateway: no audit log")
	case c.Upstream == nil:
		return nil, errors.New("gateway: no upstream")
	}
	g := &Gateway{config: c, limits: c.Limits.orDefaults(), log: c.Log, originalDestination: originalDestination}
	if g.log == nil {
		g.log = slog.New(slog.DiscardHandler)
	}
	g.policy.Store(c.Policy)
	g.once.base = c.Policy
	g.meter = newMeter(g.limits.Bandwidth)
	g.names = newNameTable(g.limits.Names)
	g.ledger = newLedger(c.Run, c.Recorder, g.log)
	g.http = plainhttp.New(plainhttp.Limits{Head: g.limits.HeadBytes, HeadTime: g.limits.FirstByte, Tunnel: g.limits.Idle}, &g.splicer)
	g.http2 = inspected.New(g.limits.HeadBytes, g.limits.FirstByte)
	g.connect = inspected.NewConnector(c.Roots)
	g.dns = dns.New(g)
	g.git = git.New()
	g.scratch = make(chan Scratch, len(c.Scratch))
	for _, f := range c.Scratch {
		g.scratch <- f
	}
	g.authority = sync.OnceValues(func() (*inspected.Authority, error) {
		return inspected.NewAuthority(string(c.Run), c.Policy.Resources().Timeout)
	})
	var entries []redact.Entry
	for _, one := range c.Placeholders {
		if one.Credential == "" || len(one.Value) < redact.MinLength {
			return nil, errors.New("gateway: a placeholder is too short to be recognised")
		}
		entries = append(entries, redact.Entry{Value: []byte(one.Value)})
	}
	g.placeholders = redact.NewSet(entries)
	return g, nil
}

// CACertificate returns the certificate of the authority under which TLS is inspected, in PEM, for the sandbox's trust store. It is this run's
// own; its key never leaves the gateway.
func (g *Gateway) CACertificate() ([]byte, error) {
	a, err := g.authority()
	if err != nil {
		return nil, err
	}
	return a.PEM(), nil
}

// SetPolicy puts another policy in force, and no once-rules. Crossings that are open and which it denies are cut before SetPolicy returns.
func (g *Gateway) SetPolicy(p *policy.Policy) {
	if p != nil {
		_ = g.SetPolicyOnce(p) // without once-rules nothing can be wrong
	}
}

// SetPolicyOnce is SetPolicy with rules that allow one crossing each, in the place of those that stood before and were not used. When one is wrong, nothing
// changes.
func (g *Gateway) SetPolicyOnce(p *policy.Policy, once ...Once) error {
	// Stored first: a crossing that joins the open list later than the walk below is judged again by the new policy when it joins.
	if err := g.once.set(g, p, once); err != nil {
		return err
	}
	for _, x := range g.open.all() {
		x.rejudge(p)
	}
	return nil
}

// Stats returns the counts so far.
func (g *Gateway) Stats() Stats {
	return Stats{
		Connections: g.counters.connections.Load(), Open: g.held.Load(), Allowed: g.counters.allowed.Load(),
		Denied: g.denials.total(), In: g.counters.in.Load(), Out: g.counters.out.Load(), Names: g.names.len(),
		Refused: g.counters.refused.Load(), Held: g.meter.total(),
	}
}

// Denials returns every distinct denial with its count, in the order in which they first happened.
func (g *Gateway) Denials() []Denial { return g.denials.list() }

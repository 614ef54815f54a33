package gateway

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"errors"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cofferdam/cofferdam/internal/audit"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/gateway/git"
	"github.com/cofferdam/cofferdam/internal/gateway/git/wire"
	"github.com/cofferdam/cofferdam/internal/gateway/inspected"
	"github.com/cofferdam/cofferdam/internal/gateway/redact"
	"github.com/cofferdam/cofferdam/internal/netname"
	"github.com/cofferdam/cofferdam/internal/policy"
	"github.com/cofferdam/cofferdam/internal/secret"
)

// Scratch is a file for what is kept of one push while it is judged.
type Scratch interface {
	git.Scratch
	// Truncate makes it empty.
	Truncate(size int64) error
}

// gitGate is the pipeline's side of one client connection to the Git proxy.
type gitGate struct {
	p         *passage
	transport *http.Transport

	mu    sync.Mutex
	conns map[*passage]struct{} // one for each connection to an upstream
}

// serveGit serves the requests of a connection to the proxies' address until it ends.
func (p *passage) serveGit(ctx context.Context) {
	g := &gitGate{p: p, conns: map[*passage]struct{}{}}
	g.transport = &http.Transport{
		DialTLSContext: g.dial, DisableCompression: true, MaxIdleConns: 8, MaxIdleConnsPerHost: 4, IdleConnTimeout: time.Minute,
		ResponseHeaderTimeout: p.g.limits.Idle, MaxResponseHeaderBytes: int64(p.g.limits.HeadBytes), ReadBufferSize: 64 << 10, WriteBufferSize: 64 << 10,
	}
	defer g.close()
	handler := p.g.git.Handler(g)
	one := &oneConn{conn: p.paced(ctx), over: make(chan struct{})}
	server := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if host := strings.TrimSuffix(r.Host, ":80"); netname.Host(host) != git.Host {
				d := p.g.deny(ctx, policy.Crossing{Protocol: policy.HTTP, Host: git.Host, Port: 80, Method: r.Method, Path: r.URL.Path},
					policy.Decision{Rule: RuleNameMismatch, Reason: "at this address only " + string(git.Host) + " answers"}, p.query("tcp"), quoted(r.Host))
				http.Error(w, "cofferdam: "+d.Reason, http.StatusMisdirectedRequest)
				return
			}
			handler.ServeHTTP(w, r)
		}),
		ReadHeaderTimeout: p.g.limits.FirstByte, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: p.g.limits.HeadBytes,
		ErrorLog: log.New(io.Discard, "", 0), BaseContext: func(net.Listener) context.Context { return ctx },
		ConnState: func(_ net.Conn, s http.ConnState) {
			if s == http.StateClosed || s == http.StateHijacked {
				one.end()
			}
		},
	}
	stop := context.AfterFunc(ctx, func() { reset(p.client) })
	defer stop()
	_ = server.Serve(one) // ends with the connection
}

// oneConn is a listener with one connection.
type oneConn struct {
	conn  net.Conn
	taken bool // Accept is called by one goroutine only
	once  sync.Once
	over  chan struct{}
}

// Accept returns the connection, and then waits for its end.
func (l *oneConn) Accept() (net.Conn, error) {
	if l.taken {
		<-l.over
		return nil, net.ErrClosed
	}
	l.taken = true
	return l.conn, nil
}

func (l *oneConn) end() { l.once.Do(func() { close(l.over) }) }

// Close ends the waiting.
func (l *oneConn) Close() error { l.end(); return nil }

// Addr returns the connection's own address.
func (l *oneConn) Addr() net.Addr { return l.conn.LocalAddr() }

// Law returns the policy in force.
func (g *gitGate) Law() *policy.Policy { return g.p.g.policy.Load() }

// Known compares with the run's own proxy token.
func (g *gitGate) Known(token string) bool {
	own := g.p.g.config.ProxyToken
	a, b := sha256.Sum256([]byte(token)), sha256.Sum256([]byte(own))
	return own != "" && subtle.ConstantTimeCompare(a[:], b[:]) == 1
}

// Scratch waits for one of the files that were opened for it.
func (g *gitGate) Scratch(ctx context.Context) (git.Scratch, func(), error) {
	select {
	case f := <-g.p.g.scratch:
		return f, func() {
			_ = f.Truncate(0) // what is left is overwritten by the next, which reads only what it wrote
			g.p.g.scratch <- f
		}, nil
	case <-ctx.Done():
		return nil, nil, errors.New("the connection ended while other pushes were being judged")
	case <-time.After(scratchPatience):
		return nil, nil, errors.New("too many pushes at once: try again")
	}
}

// scratchPatience is how long a push waits for others to be judged.
const scratchPatience = 2 * time.Minute

// Refuse records a refusal.
func (g *gitGate) Refuse(ctx context.Context, c policy.Crossing, d policy.Decision) policy.Decision {
	return g.p.g.deny(ctx, c, d, g.p.query("tcp"), "")
}

// Enter judges and records an operation.
func (g *gitGate) Enter(ctx context.Context, c policy.Crossing, credential string) (git.Passage, policy.Decision) {
	q := g.p.child()
	q.arrival = arrival{peer: g.p.peer, host: c.Host, dest: netip.AddrPortFrom(netip.Addr{}, c.Port)}
	q.credential = credential
	d := q.admit(ctx, c, "")
	if d.Verdict != policy.Allow {
		g.p.g.open.forget(q)
		return nil, g.p.g.denyUse(ctx, c, d, g.p.query("tcp"), "", credential)
	}
	return &gitPassage{gate: g, p: q}, d
}

// dial connects to an upstream. It is reached only through Send, which has compared the address with the crossing's.
func (g *gitGate) dial(ctx context.Context, _, address string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	number, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return nil, err
	}
	q := g.p.child()
	q.arrival = arrival{peer: g.p.peer, host: netname.Host(host), dest: netip.AddrPortFrom(netip.Addr{}, uint16(number))}
	q.crossing = policy.Crossing{Protocol: policy.Git, Host: q.host, Port: uint16(number)}
	forget := func() {
		g.p.g.open.forget(q)
		g.mu.Lock()
		delete(g.conns, q)
		g.mu.Unlock()
	}
	g.mu.Lock()
	g.conns[q] = struct{}{}
	g.mu.Unlock()
	server, refused, err := q.reach(ctx)
	if refused != nil {
		err = errors.New(refused.Reason)
	}
	var secured *tls.Conn
	if err == nil {
		secured, err = g.p.g.connect.Connect(ctx, server, q.host, inspected.HTTP1)
	}
	if err != nil {
		forget()
		return nil, err
	}
	return &upstreamConn{Conn: secured, forget: forget}, nil
}

// upstreamConn is a connection that is noted, for cutting it, as long as it is open.
type upstreamConn struct {
	*tls.Conn
	forget func()
}

// Close closes the connection.
func (c *upstreamConn) Close() error {
	c.forget()
	return c.Conn.Close()
}

// close ends what the client connection had open.
func (g *gitGate) close() {
	g.transport.CloseIdleConnections()
	g.mu.Lock()
	left := slices.Collect(maps.Keys(g.conns))
	g.mu.Unlock()
	for _, q := range left {
		g.p.g.open.remove(q)
	}
}

// gitPassage is one operation that was let through.
type gitPassage struct {
	gate       *gitGate
	p          *passage
	redactions atomic.Int64
}

// Send sends a request with what is lent for it.
func (s *gitPassage) Send(r *http.Request) (*http.Response, error) {
	c := s.p.crossing
	if r.URL.Scheme != "https" || netname.Host(r.URL.Hostname()) != c.Host || portNumber(r.URL.Port()) != c.Port {
		return nil, fault.New(fault.Internal, "the request is for another host than the one that was judged")
	}
	grant, err := s.lend(r)
	if err != nil {
		return nil, err
	}
	trace := &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) { s.dialled(i.Conn) }}
	answer, err := s.gate.transport.RoundTrip(r.WithContext(httptrace.WithClientTrace(r.Context(), trace)))
	if err != nil {
		return nil, errors.New(s.Clean(err.Error()))
	}
	if answer.StatusCode == http.StatusUnauthorized && grant != nil {
		grant.Rejected()
	}
	set := s.p.g.vault.set.Load()
	for _, values := range answer.Header {
		for i := range values {
			values[i] = s.Clean(values[i])
		}
	}
	if set == nil {
		return answer, nil
	}
	if encoding := answer.Header.Get("Content-Encoding"); encoding != "" && encoding != "identity" {
		_ = answer.Body.Close() // it is of no use
		return nil, errEncoding
	}
	answer.Body = &redacted{Reader: set.Reader(answer.Body, s.found), Closer: answer.Body}
	return answer, nil
}

type redacted struct {
	io.Reader
	io.Closer
}

func (s *gitPassage) found(n int) { s.redactions.Add(int64(n)) }

// Filter replaces what was lent in bytes that come in pieces.
func (s *gitPassage) Filter() wire.Filter {
	return &bandFilter{Stream: s.p.g.vault.set.Load().Stream(), found: s.found}
}

// bandFilter counts what it has found at its end.
type bandFilter struct {
	*redact.Stream
	found func(int)
}

func (f *bandFilter) End() []byte {
	out := f.Stream.End()
	f.found(f.Count)
	return out
}

// Clean replaces what was lent in a whole text.
func (s *gitPassage) Clean(text string) string {
	text, n := s.p.g.vault.set.Load().Text(text)
	s.found(n)
	return text
}

func (s *gitPassage) dialled(c net.Conn) {
	if secured, ok := c.(interface{ NetConn() net.Conn }); ok {
		c = secured.NetConn()
	}
	if tcp, ok := c.RemoteAddr().(*net.TCPAddr); ok {
		s.p.mu.Lock()
		s.p.dialled = unmapPort(tcp.AddrPort()).Addr()
		s.p.mu.Unlock()
	}
}

func portNumber(text string) uint16 {
	if text == "" {
		return 443
	}
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return 0
	}
	return uint16(n)
}

// lend puts the credential into the request, in its one header, after what must not come back is known.
func (s *gitPassage) lend(r *http.Request) (Grant, error) {
	name := s.p.credential
	if name == "" {
		return nil, nil
	}
	refused := func(why string) error {
		return fault.New(fault.Unavailable, "the credential %s cannot be lent: %s", name, why)
	}
	if s.p.g.config.Lend == nil {
		return nil, refused("this gateway has no store of credentials")
	}
	c := policy.Crossing{Protocol: policy.HTTPS, Host: s.p.crossing.Host, Port: s.p.crossing.Port, Method: r.Method, Path: r.URL.EscapedPath()}
	grant, err := s.p.g.config.Lend(r.Context(), name, c)
	if err != nil {
		s.p.g.log.ErrorContext(r.Context(), "credential cannot be lent", "credential", name, "error", s.Clean(err.Error()))
		return nil, refused(fault.Public(err))
	}
	secrets := grant.Secrets()
	if grant.Signs() || len(secrets) == 0 || slices.ContainsFunc(secrets, func(x secret.Bytes) bool { return x.Len() < redact.MinLength }) {
		return nil, refused("it is of a kind that signs requests, or too short to be recognised in an answer")
	}
	s.p.g.vault.add(secrets, nil)
	h := http.Header{}
	if err := grant.Inject(h); err != nil {
		return nil, refused(fault.Public(err))
	}
	for header, values := range h {
		if len(h) != 1 || len(values) != 1 || !sendable(values[0]) {
			return nil, refused("it does not go into one header")
		}
		r.Header[header] = values
	}
	s.p.lent(grant)
	return grant, nil
}

// Refuse records that what was let in is refused after all.
func (s *gitPassage) Refuse(ctx context.Context, c policy.Crossing, d policy.Decision) policy.Decision {
	return s.p.g.denyUse(ctx, c, d, s.gate.p.query("tcp"), "", s.p.credential)
}

// Finish records the end.
func (s *gitPassage) Finish(o git.Outcome) {
	e := audit.Event{Status: o.Status, BytesIn: o.In, BytesOut: o.Out, Redactions: s.redactions.Load(), Refs: o.Refs}
	if o.Err != nil {
		e.Error = s.Clean(o.Err.Error())
	}
	s.p.finish(e)
	s.p.g.open.forget(s.p)
}

// refsOf says for the record what a push wants.
func refsOf(op *policy.GitOperation) []string {
	var all []string
	for _, r := range op.Refs {
		line := r.Change.String() + " " + r.Name
		if r.Target != "" {
			line += " (which is " + r.Target + ")"
		}
		all = append(all, line)
	}
	return all
}

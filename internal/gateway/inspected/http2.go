package inspected

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/cofferdam/cofferdam/internal/gateway/plainhttp"
)

const (
	// streams bounds the requests at once on one connection; RFC 9113 §6.5.2 recommends no less than 100.
	streams  = 128
	idleTime = 2 * time.Minute
	copySize = 16 << 10
)

// Doors is the pipeline's side of one HTTP/2 connection.
type Doors interface {
	// Door returns a door for one request, those of a connection come at once, and what to call when it is over.
	Door() (door plainhttp.Inspector, release func())
	// Dial connects to the dialled name, for any request of this connection. The protocols are offered to the server.
	Dial(ctx context.Context, protocols ...string) (*tls.Conn, *plainhttp.Refusal)
}

// Server speaks HTTP/2 on connections whose TLS was ended. It is safe for concurrent use.
type Server struct {
	http   *http.Server
	answer time.Duration
	accept chan net.Conn
	closed chan struct{}
	stop   sync.Once

	buffers sync.Pool

	mu    sync.Mutex
	conns map[net.Conn]*connection
}

// connection is one client connection and the upstream connections that are its own.
type connection struct {
	origin plainhttp.Origin
	doors  Doors
	ctx    context.Context // of the connection: it outlives each of its requests, which share upstream connections
	over   chan struct{}

	buffers *sync.Pool // the server's

	mu     sync.Mutex
	routes map[string]*http.Transport
}

type connectionKey struct{}

// buffer returns what a body is copied through.
func (c *connection) buffer() *[]byte {
	if b, ok := c.buffers.Get().(*[]byte); ok {
		return b
	}
	b := make([]byte, copySize)
	return &b
}

// New returns a Server; Run makes it work.
func New(head int, headTime time.Duration) *Server {
	s := &Server{accept: make(chan net.Conn), closed: make(chan struct{}), conns: make(map[net.Conn]*connection), answer: 10 * time.Minute}
	protocols := new(http.Protocols)
	protocols.SetHTTP2(true)
	s.http = &http.Server{
		Handler: http.HandlerFunc(serve), MaxHeaderBytes: head, ReadHeaderTimeout: headTime, IdleTimeout: idleTime, Protocols: protocols,
		HTTP2:                        &http.HTTP2Config{MaxConcurrentStreams: streams},
		DisableGeneralOptionsHandler: true,
		ErrorLog:                     log.New(io.Discard, "", 0), // it would quote what clients sent
		ConnContext:                  s.connContext,
		ConnState:                    s.connState,
	}
	return s
}

// Run serves until ctx ends. Connections are cut by whoever owns them.
func (s *Server) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() {
		s.stop.Do(func() { close(s.closed) })
		_ = s.http.Close() // closes listener and connections, which all end with the sandbox
	})
	defer stop()
	err := s.http.Serve(s)
	s.stop.Do(func() { close(s.closed) })
	if errors.Is(err, http.ErrServerClosed) || ctx.Err() != nil {
		return nil
	}
	return err
}

// Accept, Close and Addr make the Server its own listener: connections come from Serve.
func (s *Server) Accept() (net.Conn, error) {
	select {
	case c := <-s.accept:
		return c, nil
	case <-s.closed:
		return nil, net.ErrClosed
	}
}

// Close stops Accept.
func (s *Server) Close() error { s.stop.Do(func() { close(s.closed) }); return nil }

// Addr names no address.
func (s *Server) Addr() net.Addr { return &net.TCPAddr{} }

// Serve speaks HTTP/2 on a connection until it is closed, which it is on return, with all upstream connections that were made for it.
func (s *Server) Serve(ctx context.Context, c *tls.Conn, o plainhttp.Origin, d Doors) {
	one := &connection{origin: o, doors: d, ctx: ctx, over: make(chan struct{}), buffers: &s.buffers, routes: make(map[string]*http.Transport)}
	s.mu.Lock()
	s.conns[c] = one
	s.mu.Unlock()
	select {
	case s.accept <- c:
		<-one.over
	case <-s.closed:
	case <-ctx.Done():
	}
	s.mu.Lock()
	delete(s.conns, c)
	s.mu.Unlock()
	_ = c.Close() // it is over
	one.mu.Lock()
	defer one.mu.Unlock()
	for _, t := range one.routes {
		t.CloseIdleConnections()
	}
}

func (s *Server) find(c net.Conn) *connection {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.conns[c]
}

func (s *Server) connContext(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, connectionKey{}, s.find(c))
}

func (s *Server) connState(c net.Conn, state http.ConnState) {
	if state != http.StateClosed && state != http.StateHijacked {
		return
	}
	if one := s.find(c); one != nil {
		close(one.over)
	}
}

// serve takes one request through its door.
func serve(w http.ResponseWriter, r *http.Request) {
	c, ok := r.Context().Value(connectionKey{}).(*connection)
	if !ok || c == nil {
		panic(http.ErrAbortHandler) // net/http's way to break a stream off
	}
	door, release := c.doors.Door()
	defer release()
	x := &stream{connection: c, w: w, r: r, door: door}
	x.serve()
}

// understand checks what needs no policy.
func (x *stream) understand() *plainhttp.Refusal {
	r := x.r
	switch {
	case r.Method == http.MethodConnect || r.Method == http.MethodTrace:
		return &plainhttp.Refusal{
			Status: http.StatusMethodNotAllowed, Rule: "method-closed",
			Reason: r.Method + " is not passed on: this is no proxy to be asked, connect to the destination itself",
		}
	case !x.origin.Same(r.Host) || len(r.Header["Host"]) > 0 && !x.origin.Same(r.Header.Get("Host")) || len(r.Header["Host"]) > 1:
		return &plainhttp.Refusal{
			Status: http.StatusMisdirectedRequest, Rule: "name-mismatch",
			Reason: "the request names another host than the one that was dialled, " + x.origin.Authority,
		}
	case len(r.Method) > maxMethod:
		return &plainhttp.Refusal{Status: http.StatusBadRequest, Rule: "malformed-request", Reason: "the method's length is out of bounds"}
	case !lengthAgrees(r):
		return &plainhttp.Refusal{Status: http.StatusBadRequest, Rule: "malformed-request", Reason: "Content-Length is not the one plain number that fits the request"}
	case !strings.HasPrefix(r.RequestURI, "/") && !(r.RequestURI == "*" && r.Method == http.MethodOptions):
		return &plainhttp.Refusal{Status: http.StatusBadRequest, Rule: "malformed-request", Reason: "the request's path does not begin with a slash"}
	}
	for _, b := range []byte(r.RequestURI) {
		if b <= ' ' || b >= 0x7f || b == '#' {
			return &plainhttp.Refusal{Status: http.StatusBadRequest, Rule: "malformed-request", Reason: "the request's path holds bytes that must be percent-encoded"}
		}
	}
	return nil
}

// maxMethod is as long as a method may be over HTTP/1 too.
const maxMethod = 32

// lengthAgrees says whether Content-Length, where it is stated, is one number and what net/http took it for, which reads more than digits for none (RFC 9113 §8.1.1).
func lengthAgrees(r *http.Request) bool {
	stated := r.Header["Content-Length"]
	return len(stated) == 0 || len(stated) == 1 && stated[0] == strconv.FormatInt(r.ContentLength, 10)
}

// target turns path and query into a URL that net/http sends byte for byte.
func (c *connection) target(uri string) (*url.URL, error) {
	u := &url.URL{Scheme: "https", Host: c.origin.Authority}
	if uri == "*" {
		u.Opaque = "*"
		return u, nil
	}
	path, query, asked := strings.Cut(uri, "?")
	decoded, err := url.PathUnescape(path)
	if err != nil {
		return nil, err
	}
	u.Path, u.RawPath, u.RawQuery, u.ForceQuery = decoded, path, query, asked && query == ""
	if u.RequestURI() != uri {
		return nil, errors.New("the path holds bytes that must be percent-encoded")
	}
	return u, nil
}

// route returns the transport for one route, whose connections serve no other.
func (c *connection) route(name string) *http.Transport {
	c.mu.Lock()
	defer c.mu.Unlock()
	if t := c.routes[name]; t != nil {
		return t
	}
	t := &http.Transport{
		DialTLSContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			// The connection outlives the request that wanted it first.
			server, refusal := c.doors.Dial(c.ctx, HTTP2, HTTP1)
			if refusal != nil {
				return nil, refused{refusal}
			}
			return server, nil
		},
		ForceAttemptHTTP2: true, DisableCompression: true, MaxIdleConns: 4, IdleConnTimeout: 30 * time.Second, MaxResponseHeaderBytes: 1 << 20,
		ResponseHeaderTimeout: 10 * time.Minute, ExpectContinueTimeout: time.Second,
	}
	c.routes[name] = t
	return t
}

// refused is a refusal that came up while dialling.
type refused struct{ refusal *plainhttp.Refusal }

func (r refused) Error() string { return r.refusal.Reason }

// traceInterim passes interim answers on, looked at like all others.
func (x *stream) traceInterim() *httptrace.ClientTrace {
	interim := 0
	return &httptrace.ClientTrace{Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
		if interim++; interim > 16 {
			return errors.New("more than 16 interim responses")
		}
		if code == http.StatusContinue || code == http.StatusSwitchingProtocols {
			return nil // net/http answers the one itself, and the other has no place in HTTP/2
		}
		a := &plainhttp.Answer{Status: code, Header: http.Header(h).Clone()}
		if err := x.door.Answer(a); err != nil {
			return err
		}
		for name, values := range a.Header {
			x.w.Header()[name] = values
		}
		x.w.WriteHeader(code)
		clear(x.w.Header())
		return nil
	}}
}

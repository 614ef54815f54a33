// Package plainhttp (GATEWAY) reads unencrypted HTTP/1 one request at a time, has each judged, and writes requests and responses anew:
// no byte of a head is copied that was not understood.
package plainhttp

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/gateway/tunnel"
)

// Conn is a connection of either side: plain TCP, or TLS over it.
type Conn interface {
	net.Conn
	CloseWrite() error
}

// Origin is where the client of a connection wanted to go, and what the door wants to see of it.
type Origin struct {
	Authority string // the dialled name or address, with the port unless it is the scheme's own
	Secure    bool   // TLS was ended: the scheme is https
	Look      bool   // the door is an Inspector
}

func (o Origin) scheme() (prefix, port string) {
	if o.Secure {
		return "https://", ":443"
	}
	return "http://", ":80"
}

// Request is what the pipeline needs to judge one request.
type Request struct {
	Method, Path string // Path has no query: queries carry secrets, and the record must not
	// Target is path and query, and Header the end-to-end fields: only where Origin.Look is set. What Admit makes of them is what is sent.
	Target string
	Header http.Header
	// Length is the body's: 0 for none, -1 where the client has not said.
	Length int64
	// Route is set by Admit: an upstream connection is used again only for requests with the same.
	Route string
	// Whole reads the whole body before it is sent, for Admit to look at, if its length is known and within a limit. Only where Origin.Look is set.
	Whole func(limit int64) ([]byte, error)
	// Upload is set by Admit if it wants to see the body, piece by piece, before it is sent. A refusal cuts the request off.
	Upload func([]byte) *Refusal
	// Fault is set if the request is malformed or not for the dialled name: it is to be recorded as denied, under Rule.
	Fault *Refusal
}

// Refusal is why a request goes nowhere.
type Refusal struct {
	Status int
	Rule   string
	Reason string // one plain sentence without a full stop
	Remedy string // what would allow it; may be empty
}

// Result says how an admitted request ended.
type Result struct {
	Status  int
	In, Out int64
	Err     error
}

// door is the pipeline's side: it decides, dials and records. Its calls come one after another.
type door interface {
	// Admit judges and records a request; a nil Refusal lets it pass.
	Admit(ctx context.Context, r *Request) *Refusal
	// Dial connects to the dialled name for the request just admitted.
	Dial(ctx context.Context) (Conn, *Refusal)
	// Done records how the request just admitted ended.
	Done(r Result)
}

// Inspector is a door that looks into requests and answers.
type Inspector interface {
	door
	// Answer sees the head of each answer, interim ones and upgrades included, and may change it. An error ends the request.
	Answer(a *Answer) error
	// Clean returns a text without what may not be seen: error messages quote what an upstream sent.
	Clean(text string) string
}

// Answer is the head of an answer.
type Answer struct {
	Status int
	Header http.Header // end-to-end fields
	// Filter is set to read the body through; after an upgrade, all that the upstream sends. Nil passes it as it is.
	Filter func(io.Reader) io.Reader
	// Recoded is set if the filter changes the body's length.
	Recoded bool
	// Trailer is set to look into trailer fields.
	Trailer func(http.Header)
}

// Limits bound one connection. Zero fields are replaced by defaults.
type Limits struct {
	Head     int           // bytes of a head
	HeadTime time.Duration // for a head to be whole
	Idle     time.Duration // between two requests, and between two pieces of a body
	Answer   time.Duration // until the upstream begins to answer
	Tunnel   time.Duration // silence in an upgraded connection
}

func (l Limits) orDefaults() Limits {
	set := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	if l.Head <= 0 {
		l.Head = 64 << 10
	}
	set(&l.HeadTime, 10*time.Second)
	set(&l.Idle, 2*time.Minute)
	set(&l.Answer, 10*time.Minute)
	set(&l.Tunnel, time.Hour)
	return l
}

// Server serves connections; it is safe for concurrent use.
type Server struct {
	limits   Limits
	splicer  *tunnel.Splicer
	sessions sync.Pool
	filters  buffers
}

// New returns a Server.
func New(l Limits, s *tunnel.Splicer) *Server {
	return &Server{limits: l.orDefaults(), splicer: s}
}

// Serve speaks HTTP with the client, of which the first bytes were read already, until either side ends. The caller closes the client;
// the upstream connection is closed here. With Origin.Look the door must be an Inspector.
func (s *Server) Serve(ctx context.Context, client Conn, first []byte, o Origin, d door) {
	c := s.open(client, first)
	c.origin, c.door = o, d
	if o.Look {
		c.inspector = d.(Inspector)
	}
	defer s.shut(c)
	for c.next(ctx) {
	}
}

// exchange is the state of one client connection, kept over its requests and then pooled.
type exchange struct {
	server    *Server
	origin    Origin
	door      door
	inspector Inspector // nil without Origin.Look
	client    Conn
	up        Conn
	upRoute   string
	admitted  Request // what Admit said about the request under way
	seen      Answer  // what the inspector said about its answer
	from      reader  // client
	to        writer  // client
	upFrom    reader
	upTo      writer
	request   request
	response  response
	result    Result
	reused    bool
}

func (s *Server) open(client Conn, first []byte) *exchange {
	c, ok := s.sessions.Get().(*exchange)
	if !ok {
		c = &exchange{server: s}
		c.from.buf, c.upFrom.buf = make([]byte, firstBuffer), make([]byte, firstBuffer)
	}
	if len(first) > len(c.from.buf) {
		c.from.buf = make([]byte, len(first))
	}
	c.client = client
	c.from = reader{conn: client, buf: c.from.buf, w: copy(c.from.buf, first), idle: s.limits.Idle}
	c.to = writer{conn: client, buf: c.to.buf[:0], idle: s.limits.Idle}
	return c
}

// shut gives the state back, unless a huge head has grown its buffers, and without anything that refers to this connection.
func (s *Server) shut(c *exchange) {
	c.drop()
	if len(c.from.buf) > firstBuffer || len(c.upFrom.buf) > firstBuffer {
		return
	}
	s.sessions.Put(&exchange{
		server: s, from: reader{buf: c.from.buf}, upFrom: reader{buf: c.upFrom.buf},
		to: writer{buf: c.to.buf[:0]}, upTo: writer{buf: c.upTo.buf[:0]},
		request:  request{fields: fields{list: c.request.fields.list[:0]}},
		response: response{fields: fields{list: c.response.fields.list[:0]}},
	})
}

// drop closes the upstream connection.
func (c *exchange) drop() {
	if c.up != nil {
		_ = c.up.Close()
		c.up = nil
	}
}

// next serves one request and says whether another may follow.
func (c *exchange) next(ctx context.Context) bool {
	if !c.await() {
		return false
	}
	head, err := c.from.block(c.server.limits.Head, false)
	c.from.release()
	if err != nil {
		c.badHead(ctx, err)
		return false
	}
	q := &c.request
	q.method, q.target = "", ""
	fault := c.understand(head)
	path, _, _ := strings.Cut(q.target, "?")
	c.seen = Answer{}
	c.admitted = Request{Method: q.method, Path: path, Fault: fault}
	if c.inspector != nil && fault == nil {
		c.admitted.Target, c.admitted.Header, c.admitted.Length = q.target, q.fields.header(), max(q.fields.length, 0)
		if q.fields.chunked {
			c.admitted.Length = -1
		}
		c.admitted.Whole = c.whole
	}
	if refusal := c.door.Admit(ctx, &c.admitted); refusal != nil {
		c.refuse(refusal)
		return false
	}
	if c.inspector != nil {
		q.target = c.admitted.Target
		q.fields.setHeader(c.admitted.Header)
	}
	c.result = Result{}
	c.to.n = 0
	again := c.forward(ctx)
	if len(c.from.buf) > recordSize && len(c.from.buffered()) == 0 { // a body was held: the connection may stay long
		c.from.buf, c.from.r, c.from.w = make([]byte, firstBuffer), 0, 0
	}
	c.result.In = c.to.n
	c.door.Done(c.result)
	return again
}

// ErrNotWhole refuses a body that is not to be held.
var ErrNotWhole = errors.New("the body is too long to be held, or its length is not stated")

// whole implements Request.Whole. The body lies in the reader's buffer then, from where it is sent. That is a new one: the fields of the head lie in the old.
func (c *exchange) whole(limit int64) ([]byte, error) {
	n := max(c.request.fields.length, 0)
	if c.request.fields.chunked || n > limit {
		return nil, ErrNotWhole
	}
	if have := c.from.buffered(); int64(len(have)) < n {
		buf := make([]byte, max(n, firstBuffer))
		c.from.buf, c.from.r, c.from.w = buf, 0, copy(buf, have)
	}
	for int64(len(c.from.buffered())) < n {
		if err := c.from.fill(); err != nil {
			return nil, unexpected(err)
		}
	}
	return c.from.buffered()[:n], nil
}

// await waits for the first byte of a request, and sets the time by which the head must be whole.
func (c *exchange) await() bool {
	if len(c.from.buffered()) == 0 {
		if c.from.fill() != nil {
			return false
		}
	}
	return c.from.hold(c.server.limits.HeadTime) == nil
}

// badHead answers a head that could not even be framed.
func (c *exchange) badHead(ctx context.Context, err error) {
	r := &Refusal{Status: http.StatusBadRequest, Rule: "malformed-request", Reason: "the request is malformed: " + err.Error()}
	switch {
	case errors.Is(err, errTooLarge):
		r.Status = http.StatusRequestHeaderFieldsTooLarge
	case errors.Is(err, os.ErrDeadlineExceeded):
		r.Status, r.Reason = http.StatusRequestTimeout, "the request's head did not arrive in time"
	case !errors.Is(err, errBareLF):
		return // the client is gone
	}
	if refusal := c.door.Admit(ctx, &Request{Fault: r}); refusal != nil {
		r = refusal
	}
	c.refuse(r)
}

// understand parses the head and checks what needs no policy. The result is nil for a request that may be judged.
func (c *exchange) understand(head []byte) *Refusal {
	q := &c.request
	if err := q.parse(head); err != nil {
		return &Refusal{Status: http.StatusBadRequest, Rule: "malformed-request", Reason: "the request is malformed: " + err.Error()}
	}
	switch q.method {
	case http.MethodConnect, http.MethodTrace:
		return &Refusal{
			Status: http.StatusMethodNotAllowed, Rule: "method-closed",
			Reason: q.method + " is not passed on: this is no proxy to be asked, connect to the destination itself",
		}
	}
	target, ok := originForm(q.method, q.target, c.origin)
	if ok && c.origin.Same(string(q.fields.host)) {
		q.target = target
		return nil
	}
	return &Refusal{
		Status: http.StatusMisdirectedRequest, Rule: "name-mismatch",
		Reason: "the request names another host than the one that was dialled, " + c.origin.Authority,
	}
}

// originForm reduces the absolute form for this very authority (RFC 9112 §3.2.2) to the origin form.
func originForm(method, target string, o Origin) (string, bool) {
	if strings.HasPrefix(target, "/") || target == "*" && method == http.MethodOptions {
		return target, true
	}
	scheme, _ := o.scheme()
	if len(target) < len(scheme) || !strings.EqualFold(target[:len(scheme)], scheme) {
		return "", false
	}
	rest := target[len(scheme):]
	i := strings.IndexAny(rest, "/?")
	if i < 0 {
		return "/", o.Same(rest)
	}
	path := rest[i:]
	if path[0] == '?' {
		path = "/" + path
	}
	return path, o.Same(rest[:i])
}

// Same says whether what a client wrote as Host or :authority is the dialled authority: case, one trailing dot and the scheme's own port do
// not matter.
func (o Origin) Same(got string) bool {
	want := o.Authority
	_, own := o.scheme()
	if strings.EqualFold(got, want) {
		return true
	}
	host, port := got, ""
	if i := strings.LastIndexByte(got, ':'); i >= 0 && !strings.HasSuffix(got, "]") {
		host, port = got[:i], got[i:]
	}
	host = strings.TrimSuffix(host, ".")
	if port == own {
		port = ""
	}
	return host != "" && strings.EqualFold(host+port, want)
}

// forward sends the admitted request on and relays its answer.
func (c *exchange) forward(ctx context.Context) bool {
	for {
		refusal := c.connect(ctx)
		if refusal != nil {
			c.result.Status, c.result.Err = refusal.Status, errors.New(refusal.Reason)
			c.refuse(refusal)
			return false
		}
		again, repeat := c.once(ctx)
		if !repeat {
			return again
		}
		c.drop()
	}
}

// connect makes sure that there is a live upstream connection, reusing this client's own.
func (c *exchange) connect(ctx context.Context) *Refusal {
	if c.up != nil && c.upRoute != c.admitted.Route {
		c.drop() // never another credential's connection
	}
	c.reused = c.up != nil
	if c.reused && len(c.upFrom.buffered()) == 0 && quiet(c.up) {
		c.upTo.n = 0
		return nil
	}
	c.drop()
	c.reused = false
	up, refusal := c.door.Dial(ctx)
	if refusal != nil {
		return refusal
	}
	c.up, c.upRoute = up, c.admitted.Route
	c.upFrom = reader{conn: up, buf: c.upFrom.buf, idle: c.server.limits.Idle}
	c.upTo = writer{conn: up, buf: c.upTo.buf[:0], idle: c.server.limits.Idle}
	return nil
}

// quiet says whether an idle upstream connection is open and has sent nothing. Anything it sent unasked could be taken for the answer to
// the next request, so then it is not used again.
func quiet(c Conn) bool {
	tcp := below(c)
	if tcp == nil {
		return false
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return false
	}
	if _, plain := c.(*net.TCPConn); !plain && !quietTLS(c, raw) {
		return false
	}
	still := false
	err = raw.Control(func(fd uintptr) {
		var b [1]byte
		_, _, e := unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		still = e == unix.EAGAIN
	})
	return err == nil && still
}

// refuse answers with a refusal and ends the connection so that the client gets to read it.
func (c *exchange) refuse(r *Refusal) {
	text := r.Text()
	h := http.Header{"Content-Type": {"text/plain; charset=utf-8"}, "Cofferdam-Denied": {oneLine(r.Rule)}}
	response := http.Response{
		StatusCode: r.Status, ProtoMajor: 1, ProtoMinor: 1, Header: h, Close: true,
		ContentLength: int64(len(text)), Body: io.NopCloser(strings.NewReader(text)),
	}
	if c.request.method == http.MethodHead {
		response.Request = &http.Request{Method: http.MethodHead}
	}
	var out strings.Builder
	if response.Write(&out) != nil || c.to.write([]byte(out.String())) != nil || c.to.flush() != nil {
		return
	}
	linger(c.client)
}

// Text is what a person reads of a refusal: one line.
func (r *Refusal) Text() string {
	text := "cofferdam: " + oneLine(r.Reason) + " (rule " + oneLine(r.Rule) + ")."
	if r.Remedy != "" {
		text += " To allow it: " + oneLine(r.Remedy)
	}
	return text + "\n"
}

// linger lets a client which is still sending read the refusal before the connection goes: closing with unread bytes would reset it.
func linger(c Conn) {
	if c.CloseWrite() != nil || c.SetReadDeadline(time.Now().Add(500*time.Millisecond)) != nil {
		return
	}
	_, _ = io.CopyN(io.Discard, c, 256<<10) // whatever it was, it is not wanted
}

// oneLine makes text inert for a header and a terminal.
func oneLine(s string) string {
	return strings.Map(func(c rune) rune {
		if c < ' ' || c >= 0x7f && c < 0xa0 {
			return '?'
		}
		return c
	}, s)
}

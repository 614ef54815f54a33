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

// Request is what the pipeline needs to judge one request.
type Request struct {
	Method, Path string // Path has no query: queries carry secrets, and the record must not
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
	Admit(ctx context.Context, r Request) *Refusal
	// Dial connects to the dialled name for the request just admitted.
	Dial(ctx context.Context) (*net.TCPConn, *Refusal)
	// Done records how the request just admitted ended.
	Done(r Result)
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
}

// New returns a Server.
func New(l Limits, s *tunnel.Splicer) *Server {
	return &Server{limits: l.orDefaults(), splicer: s}
}

// Serve speaks HTTP with the client, of which the first bytes were read already, until either side ends. authority is the dialled
// name or address, with the port unless it is 80. The caller closes the client; the upstream connection is closed here.
func (s *Server) Serve(ctx context.Context, client *net.TCPConn, first []byte, authority string, d door) {
	c := s.open(client, first)
	c.authority, c.door = authority, d
	defer s.shut(c)
	for c.next(ctx) {
	}
}

// exchange is the state of one client connection, kept over its requests and then pooled.
type exchange struct {
	server    *Server
	authority string
	door      door
	client    *net.TCPConn
	up        *net.TCPConn
	from      reader // client
	to        writer // client
	upFrom    reader
	upTo      writer
	request   request
	response  response
	result    Result
	reused    bool
}

func (s *Server) open(client *net.TCPConn, first []byte) *exchange {
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
	if refusal := c.door.Admit(ctx, Request{Method: q.method, Path: path, Fault: fault}); refusal != nil {
		c.refuse(refusal)
		return false
	}
	c.result = Result{}
	c.to.n = 0
	again := c.forward(ctx)
	c.result.In = c.to.n
	c.door.Done(c.result)
	return again
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
	if refusal := c.door.Admit(ctx, Request{Fault: r}); refusal != nil {
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
	target, ok := originForm(q.method, q.target, c.authority)
	if ok && sameAuthority(string(q.fields.host), c.authority) {
		q.target = target
		return nil
	}
	return &Refusal{
		Status: http.StatusMisdirectedRequest, Rule: "name-mismatch",
		Reason: "the request names another host than the one that was dialled, " + c.authority,
	}
}

// originForm reduces the absolute form for this very authority (RFC 9112 §3.2.2) to the origin form.
func originForm(method, target, authority string) (string, bool) {
	if strings.HasPrefix(target, "/") || target == "*" && method == http.MethodOptions {
		return target, true
	}
	const scheme = "http://"
	if len(target) < len(scheme) || !strings.EqualFold(target[:len(scheme)], scheme) {
		return "", false
	}
	rest := target[len(scheme):]
	i := strings.IndexAny(rest, "/?")
	if i < 0 {
		return "/", sameAuthority(rest, authority)
	}
	path := rest[i:]
	if path[0] == '?' {
		path = "/" + path
	}
	return path, sameAuthority(rest[:i], authority)
}

// sameAuthority compares what a client wrote with the dialled authority: case, one trailing dot and an explicit :80 do not matter.
func sameAuthority(got, want string) bool {
	if strings.EqualFold(got, want) {
		return true
	}
	host, port := got, ""
	if i := strings.LastIndexByte(got, ':'); i >= 0 && !strings.HasSuffix(got, "]") {
		host, port = got[:i], got[i:]
	}
	host = strings.TrimSuffix(host, ".")
	if port == ":80" {
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
	c.up = up
	c.upFrom = reader{conn: up, buf: c.upFrom.buf, idle: c.server.limits.Idle}
	c.upTo = writer{conn: up, buf: c.upTo.buf[:0], idle: c.server.limits.Idle}
	return nil
}

// quiet says whether an idle upstream connection is open and has sent nothing. Anything it sent unasked could be taken for the answer to
// the next request, so then it is not used again.
func quiet(c *net.TCPConn) bool {
	raw, err := c.SyscallConn()
	if err != nil {
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
	var text strings.Builder
	text.WriteString("cofferdam: " + oneLine(r.Reason) + " (rule " + oneLine(r.Rule) + ").")
	if r.Remedy != "" {
		text.WriteString(" To allow it: " + oneLine(r.Remedy))
	}
	text.WriteByte('\n')
	h := http.Header{"Content-Type": {"text/plain; charset=utf-8"}, "Cofferdam-Denied": {oneLine(r.Rule)}}
	response := http.Response{
		StatusCode: r.Status, ProtoMajor: 1, ProtoMinor: 1, Header: h, Close: true,
		ContentLength: int64(text.Len()), Body: io.NopCloser(strings.NewReader(text.String())),
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

// linger lets a client which is still sending read the refusal before the connection goes: closing with unread bytes would reset it.
func linger(c *net.TCPConn) {
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

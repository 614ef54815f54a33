package server

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/cofferdam/cofferdam/internal/fault"
)

// The bounds. They are far above what people and programs need, and far below what would hurt the machine.
const (
	maxBody     = 2 << 20          // bytes of a request that is not a file
	maxStranger = 64 << 10         // of one by who has not signed in
	bodyTime    = 30 * time.Second // to send it
	handleTime  = 2 * time.Minute  // to answer: starting a sandbox may take a minute
	stallTime   = time.Minute      // for a client of a stream to take, or send, the next piece
	maxAtOnce   = 256              // requests of one client's address
	maxStreams  = 128              // events, output and commands of one caller
	pacing      = 20 * time.Second // the window in which requests are counted
	perCaller   = 600              // requests of one caller in it
	perStranger = 100              // from one address by who has not said who they are
)

// crowd counts what is under way for each key. It is safe for concurrent use.
type crowd struct {
	most int
	mu   sync.Mutex
	now  map[string]int
}

func newCrowd(most int) *crowd { return &crowd{most: most, now: map[string]int{}} }

// enter counts one more, unless there are too many; leave must be called once if it did.
func (c *crowd) enter(key string) (leave func(), ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.now[key] >= c.most {
		return nil, false
	}
	c.now[key]++
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.now[key]--; c.now[key] == 0 {
			delete(c.now, key)
		}
	}, true
}

// pace refuses a caller who asks too often. A limiter that does not answer refuses nobody here: it is no boundary (those of signing in are auth's own),
// and a service that stands still because of it would be a greater harm.
func (s *Server) pace(ctx context.Context, key string, limit int) error {
	ok, retry, err := s.limits.Allow(ctx, key, limit, pacing)
	if err != nil {
		s.log.WarnContext(ctx, "limit not checked", "error", err.Error())
		return nil
	}
	if !ok {
		return &refusal{status: http.StatusTooManyRequests, code: codeTooMany, detail: "too many requests", hint: "wait, then go on", retry: retry}
	}
	return nil
}

// buffer reads a request's body into memory within bounds of size and time, so that its handler and the net/http server's look-out for a client that goes
// away are under no deadline for reading.
func buffer(w http.ResponseWriter, r *http.Request, most int64) ([]byte, error) {
	if r.Body == nil || r.Body == http.NoBody {
		return nil, nil
	}
	rc := http.NewResponseController(w)
	_ = rc.SetReadDeadline(time.Now().Add(bodyTime)) // a recorder in tests has none
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, most))
	if err != nil {
		return nil, bodyError(err, most)
	}
	_ = rc.SetReadDeadline(time.Time{})
	r.Body = io.NopCloser(bytes.NewReader(body))
	return body, nil
}

func bodyError(err error, most int64) error {
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return &refusal{status: http.StatusRequestEntityTooLarge, code: codeTooLarge, detail: "the request is too large", hint: "send less than " + size(most)}
	}
	if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
		return &refusal{status: http.StatusRequestTimeout, code: codeUnavailable, detail: "the request did not arrive in time"}
	}
	return fault.New(fault.Invalid, "the request ended too early").Because(err)
}

// patient reads a body of any size, as long as the client does not stop for too long.
type patient struct {
	io.ReadCloser
	rc *http.ResponseController
}

func (p patient) Read(b []byte) (int, error) {
	_ = p.rc.SetReadDeadline(time.Now().Add(stallTime))
	n, err := p.ReadCloser.Read(b)
	if err != nil {
		_ = p.rc.SetReadDeadline(time.Time{})
	}
	return n, err
}

// steady writes an answer of any size, as long as the client does not stop for too long.
type steady struct {
	http.ResponseWriter
	rc *http.ResponseController
}

func newSteady(w http.ResponseWriter) *steady { return &steady{w, http.NewResponseController(w)} }

func (s *steady) Write(b []byte) (int, error) {
	_ = s.rc.SetWriteDeadline(time.Now().Add(stallTime))
	return s.ResponseWriter.Write(b)
}

// Unwrap gives http.ResponseController what is below.
func (s *steady) Unwrap() http.ResponseWriter { return s.ResponseWriter }

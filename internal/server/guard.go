package server

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net/http"
	"runtime/debug"
	"strings"
	"time"

	"github.com/cofferdam/cofferdam/internal/fault"
)

// serve is the way of every request: it gets an identifier, headers and bounds, must call us by a name of ours, and is logged.
func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	c := &call{id: rand.Text(), nonce: rand.Text()}
	c.from, c.encrypted = s.client(r)
	r = r.WithContext(context.WithValue(r.Context(), callKey{}, c))
	c.request = r
	began := time.Now()
	rec := &recorder{ResponseWriter: w, body: limitBody(w, r), major: r.ProtoMajor}
	defer func() { s.finish(rec, r, c, began, recover()) }()
	if s.alive(rec, r) {
		return
	}
	isAPI := r.URL.Path == "/api" || strings.HasPrefix(r.URL.Path, "/api/")
	if isAPI {
		secure(rec.Header(), c, dataPolicy)
	} else {
		secure(rec.Header(), c, pagePolicy(c.nonce))
	}
	if !s.ours(r) {
		s.refuse(rec, r, &refusal{status: http.StatusMisdirectedRequest, code: codeHost, detail: "this server has another name", hint: "the operator can add names to it"})
		return
	}
	leave, ok := s.crowd.enter(neighbourhood(c.from))
	if !ok {
		s.refuse(rec, r, &refusal{status: http.StatusTooManyRequests, code: codeTooMany, detail: "too many requests at once", hint: "wait for some to end", retry: time.Second})
		return
	}
	defer leave()
	switch {
	case isAPI:
		s.serveAPI(rec, r)
	case r.URL.Path == "/.well-known/security.txt":
		s.securityText(rec, r)
	default:
		if id, ok := s.isCallback(r.URL.Path); ok && r.Method == http.MethodGet {
			s.finishOIDC(rec, r, c, id)
			return
		}
		s.servePages(rec, r, c)
	}
}

// alive answers load balancers, which call by address: it says nothing but that we run, and whether we can do what is asked of us.
func (s *Server) alive(w http.ResponseWriter, r *http.Request) bool {
	if r.URL.Path != "/healthz" && r.URL.Path != "/readyz" {
		return false
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if r.URL.Path == "/readyz" {
		ctx, cancel := context.WithTimeout(r.Context(), 2*time.Second)
		defer cancel()
		if err := s.control.Ready(ctx); err != nil {
			http.Error(w, "not ready", http.StatusServiceUnavailable)
			return true
		}
	}
	_, _ = io.WriteString(w, "ok\n")
	return true
}

// finish logs a request and turns a panic into an internal error.
func (s *Server) finish(rec *recorder, r *http.Request, c *call, began time.Time, panicked any) {
	if panicked != nil && panicked != http.ErrAbortHandler && r.Context().Err() == nil {
		s.log.ErrorContext(r.Context(), "panic", "request", c.id, "operation", c.operation, "panic", fmt.Sprint(panicked), "stack", string(debug.Stack()))
		if !rec.started() {
			s.refuse(rec, r, &problem{Problem: s.problem(context.WithoutCancel(r.Context()), fault.New(fault.Internal, "panic")).Problem, header: http.Header{}})
			panicked = nil
		}
	}
	s.log.InfoContext(r.Context(), "request", "request", c.id, "method", r.Method, "operation", c.operation, "status", rec.status, "bytes", rec.bytes,
		"millis", time.Since(began).Milliseconds(), "from", c.from.String(), "tenant", c.actor.Tenant, "by", principal(c))
	if panicked != nil {
		panic(http.ErrAbortHandler) // cuts the connection, so that half an answer is not taken for a whole one
	}
}

func principal(c *call) string {
	if c.actor.ID == "" {
		return ""
	}
	return c.actor.Principal()
}

// serveAPI finds the operation. What is none, or not by that method, is told in the same form as every other error.
func (s *Server) serveAPI(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case prefix + "/openapi.json":
		s.describeTo(w, r, "application/openapi+json", s.document.json)
		return
	case prefix + "/openapi.yaml":
		s.describeTo(w, r, "application/openapi+yaml", s.document.yaml)
		return
	}
	handler, pattern := s.mux.Handler(r)
	if pattern == "" || strings.Contains(r.URL.Path, "//") || strings.Contains(r.URL.Path, "/./") || strings.Contains(r.URL.Path, "/../") {
		probe := &recorder{ResponseWriter: nowhere{http.Header{}}}
		if pattern == "" {
			handler.ServeHTTP(probe, r)
		}
		if allow := probe.Header().Get("Allow"); probe.status == http.StatusMethodNotAllowed {
			s.refuse(w, r, &refusal{status: http.StatusMethodNotAllowed, code: codeMethod, detail: "this is not done by that method", hint: "use one of: " + allow, allow: allow})
			return
		}
		s.refuse(w, r, fault.New(fault.NotFound, "there is no such operation").WithHint("see %s/openapi.json", prefix))
		return
	}
	s.mux.ServeHTTP(w, r)
}

func (s *Server) describeTo(w http.ResponseWriter, r *http.Request, media string, text []byte) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		s.refuse(w, r, &refusal{status: http.StatusMethodNotAllowed, code: codeMethod, detail: "this is not done by that method", hint: "use GET", allow: "GET, HEAD"})
		return
	}
	w.Header().Set("Content-Type", media)
	w.Header().Set("Cache-Control", "no-cache")
	_, _ = w.Write(text)
}

// guard is what stands before an operation.
func (s *Server) guard(o *operation, do func(http.ResponseWriter, *http.Request, *call) error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c := callOf(r.Context())
		c.operation = o.id
		c.request, c.writer = r, w
		if err := s.admit(o, r, c); err != nil {
			s.refuse(w, r, err)
			return
		}
		if o.stream != nil {
			s.serveStream(o, w, r, c, do)
			return
		}
		ctx, cancel := context.WithTimeout(r.Context(), handleTime)
		defer cancel()
		r = r.WithContext(ctx)
		_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(handleTime + stallTime)) // a recorder in tests has none
		text, err := buffer(w, r, o.most())
		if err == nil {
			err = strict(r, text)
		}
		if err != nil {
			s.refuse(w, r, err)
			return
		}
		c.request = r
		if err := s.idempotent(o, w, r, c, text, do); err != nil {
			s.refuse(w, r, err)
		}
	})
}

// admit says who calls, and whether they may at all.
func (s *Server) admit(o *operation, r *http.Request, c *call) error {
	if o.access == anyone {
		// Also signing in: a page of somebody else's must not sign a visitor in as that somebody.
		if err := s.sameOrigin(r); err != nil {
			return err
		}
		return s.pace(r.Context(), "stranger:"+neighbourhood(c.from), perStranger)
	}
	if err := s.authenticate(r, c); err != nil {
		return err
	}
	if c.cookie {
		if err := s.sameOrigin(r); err != nil {
			return err
		}
	}
	if err := s.pace(r.Context(), "caller:"+c.actor.Principal(), perCaller); err != nil {
		return err
	}
	return o.precondition(c)
}

// sameOrigin refuses what a browser was made to send by another site. Programs send neither Origin nor Sec-Fetch-Site.
func (s *Server) sameOrigin(r *http.Request) error {
	if err := s.origins.Check(r); err != nil {
		return fault.New(fault.Denied, "this request comes from another site").Because(err)
	}
	return nil
}

// serveStream runs an operation that may last. Its handler sets deadlines as it goes.
func (s *Server) serveStream(o *operation, w http.ResponseWriter, r *http.Request, c *call, do func(http.ResponseWriter, *http.Request, *call) error) {
	who := principal(c)
	if who == "" {
		who = neighbourhood(c.from)
	}
	leave, ok := s.streams.enter(who)
	if !ok {
		s.refuse(w, r, &refusal{status: http.StatusTooManyRequests, code: codeTooMany, detail: "too many streams at once", hint: "close some", retry: time.Second})
		return
	}
	defer leave()
	err := do(w, r, c)
	if err == nil {
		return
	}
	if rec, ok := w.(*recorder); ok && rec.started() {
		s.log.InfoContext(r.Context(), "stream cut", "request", c.id, "operation", o.id, "error", err.Error())
		panic(http.ErrAbortHandler)
	}
	s.refuse(w, r, err)
}

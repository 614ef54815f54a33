package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"time"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/auth"
	"github.com/cofferdam/cofferdam/internal/fault"
)

// The codes of problems, which clients may rely on.
const (
	codeValidation      = "VALIDATION_ERROR"
	codeUnauthenticated = "UNAUTHENTICATED"
	codeDenied          = "DENIED"
	codeNotFound        = "NOT_FOUND"
	codeConflict        = "CONFLICT"
	codeTooMany         = "TOO_MANY"
	codeUnavailable     = "UNAVAILABLE"
	codeUnsupported     = "UNSUPPORTED"
	codeInternal        = "INTERNAL"
	codeMethod          = "METHOD_NOT_ALLOWED"
	codeHost            = "MISDIRECTED"
	codeTooLarge        = "TOO_LARGE"
	codeMedia           = "UNSUPPORTED_MEDIA_TYPE"
	codePrecondition    = "PRECONDITION_REQUIRED"
	codeIdempotency     = "IDEMPOTENCY_MISMATCH"
)

// refusal is an error of HTTP itself, which package fault has no kind for.
type refusal struct {
	status       int
	code         string
	detail, hint string
	field        string
	retry        time.Duration
	allow        string
}

func (r *refusal) Error() string { return r.detail }

// problem is an error as it goes out. It is a huma.StatusError and a huma.HeadersError.
type problem struct {
	api.Problem
	header http.Header
}

// Error names the code.
func (p *problem) Error() string { return p.Code }

// GetStatus returns the HTTP status.
func (p *problem) GetStatus() int { return p.Status }

// GetHeaders returns headers that belong to the answer.
func (p *problem) GetHeaders() http.Header { return p.header }

// ContentType makes problems of JSON.
func (p *problem) ContentType(string) string { return "application/problem+json" }

// kindStatus says how a kind of failure goes out.
func kindStatus(k fault.Kind) (status int, code string) {
	switch k {
	case fault.Invalid:
		return http.StatusUnprocessableEntity, codeValidation
	case fault.Unauthenticated:
		return http.StatusUnauthorized, codeUnauthenticated
	case fault.Denied:
		return http.StatusForbidden, codeDenied
	case fault.NotFound:
		return http.StatusNotFound, codeNotFound
	case fault.Conflict:
		return http.StatusConflict, codeConflict
	case fault.TooMany:
		return http.StatusTooManyRequests, codeTooMany
	case fault.Unavailable:
		return http.StatusServiceUnavailable, codeUnavailable
	case fault.Unsupported:
		return http.StatusNotImplemented, codeUnsupported
	}
	return http.StatusInternalServerError, codeInternal
}

// problem turns an error into what goes out, and logs what the outside is not told.
func (s *Server) problem(ctx context.Context, err error) *problem {
	c := callOf(ctx)
	if p, ok := errors.AsType[*problem](err); ok {
		return p
	}
	p := &problem{Problem: api.Problem{Type: "about:blank", ID: c.id}, header: http.Header{}}
	if r, ok := errors.AsType[*refusal](err); ok {
		p.Status, p.Code, p.Detail, p.Hint, p.Field = r.status, r.code, r.detail, r.hint, r.field
		if r.allow != "" {
			p.header.Set("Allow", r.allow)
		}
		setRetry(p.header, r.retry)
	} else {
		s.fromFault(ctx, p, err)
	}
	p.Title = http.StatusText(p.Status)
	if p.Status == http.StatusUnauthorized {
		p.header.Set("WWW-Authenticate", `Bearer realm="cofferdam"`)
	}
	return p
}

func (s *Server) fromFault(ctx context.Context, p *problem, err error) {
	if errors.Is(err, context.DeadlineExceeded) && fault.KindOf(err) == fault.Internal {
		err = fault.New(fault.Unavailable, "it took too long").Because(err)
	}
	kind := fault.KindOf(err)
	p.Status, p.Code = kindStatus(kind)
	if kind == fault.Internal {
		if ctx.Err() == nil { // a client that went away makes errors that are nobody's fault
			s.log.ErrorContext(ctx, "internal error", "request", p.ID, "operation", callOf(ctx).operation, "error", err.Error())
		}
		return
	}
	p.Detail, p.Hint = fault.Public(err), fault.HintOf(err)
	if later, ok := errors.AsType[*auth.TooManyError](err); ok {
		setRetry(p.header, later.Retry)
	}
	if kind == fault.Unavailable {
		s.log.WarnContext(ctx, "unavailable", "request", p.ID, "operation", callOf(ctx).operation, "error", err.Error())
	}
}

func setRetry(h http.Header, d time.Duration) {
	if d > 0 {
		h.Set("Retry-After", strconv.Itoa(int(math.Ceil(d.Seconds()))))
	}
}

// refuse answers with a problem.
func (s *Server) refuse(w http.ResponseWriter, r *http.Request, err error) {
	p := s.problem(r.Context(), err)
	h := w.Header()
	for name, values := range p.header {
		h[name] = values
	}
	h.Set("Content-Type", p.ContentType(""))
	h.Set("Content-Security-Policy", dataPolicy)
	h.Set("Cache-Control", "no-store")
	h.Del("ETag")
	h.Del("Content-Disposition")
	h.Del("Content-Length")
	w.WriteHeader(p.Status)
	_ = json.NewEncoder(w).Encode(p) // the client may have gone
}

func size(n int64) string {
	if n >= 1<<20 {
		return fmt.Sprintf("%d MiB", n>>20)
	}
	return fmt.Sprintf("%d KiB", n>>10)
}

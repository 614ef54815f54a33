package client

import (
	"encoding/json"
	"io"
	"mime"
	"net/http"
	"strconv"
	"time"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/fault"
)

// The codes of errors.
const (
	ValidationError      = "VALIDATION_ERROR"
	Unauthenticated      = "UNAUTHENTICATED"
	Denied               = "DENIED"
	NotFound             = "NOT_FOUND"
	Conflict             = "CONFLICT"
	TooMany              = "TOO_MANY"
	Unavailable          = "UNAVAILABLE"
	Unsupported          = "UNSUPPORTED"
	Internal             = "INTERNAL"
	PreconditionRequired = "PRECONDITION_REQUIRED"
	IdempotencyMismatch  = "IDEMPOTENCY_MISMATCH"
)

// Error is an answer that is no success.
type Error struct {
	Status     int
	Code       string
	Detail     string // for people
	Hint       string // what to do next
	Field      string // of the request, that is wrong
	ID         string // of the request, for the server's log
	RetryAfter time.Duration
}

// Error says what is wrong, and under which identifier the server's log has more.
func (e *Error) Error() string {
	text := e.Detail
	if text == "" {
		text = "the server answered " + strconv.Itoa(e.Status) + " " + http.StatusText(e.Status)
	}
	if e.Field != "" {
		text += ": " + e.Field
	}
	if e.Code == Internal && e.ID != "" {
		text += " (request " + e.ID + ")"
	}
	return text
}

// As makes a *fault.Error of it, which is how the rest of this module asks for kinds and hints.
func (e *Error) As(target any) bool {
	f, ok := target.(**fault.Error)
	if ok {
		*f = fault.New(e.kind(), "%s", e.Error())
		(*f).Hint = e.Hint
	}
	return ok
}

func (e *Error) kind() fault.Kind {
	switch e.Code {
	case ValidationError, IdempotencyMismatch, PreconditionRequired:
		return fault.Invalid
	case Unauthenticated:
		return fault.Unauthenticated
	case Denied:
		return fault.Denied
	case NotFound:
		return fault.NotFound
	case Conflict:
		return fault.Conflict
	case TooMany:
		return fault.TooMany
	case Unavailable:
		return fault.Unavailable
	case Unsupported:
		return fault.Unsupported
	}
	return fault.Internal
}

func fromProblem(p api.Problem) *Error {
	return &Error{Status: p.Status, Code: p.Code, Detail: p.Detail, Hint: p.Hint, Field: p.Field, ID: p.ID}
}

// readError reads a problem. Something between us and the server may answer too, and says what it likes.
func readError(answer *http.Response) error {
	e := &Error{Status: answer.StatusCode}
	if media, _, err := mime.ParseMediaType(answer.Header.Get("Content-Type")); err == nil && media == "application/problem+json" {
		var p api.Problem
		if err := json.NewDecoder(io.LimitReader(answer.Body, 1<<20)).Decode(&p); err == nil {
			e = fromProblem(p)
			e.Status = answer.StatusCode
		}
	}
	if seconds, err := strconv.Atoi(answer.Header.Get("Retry-After")); err == nil && seconds > 0 {
		e.RetryAfter = time.Duration(seconds) * time.Second
	}
	return e
}

// Package fault (WORDS) says what kind of failure an error is, what the outside may read of it, and what to type next.
package fault

import (
	"errors"
	"fmt"
)

// Kind classifies a failure. The zero value is Internal, which tells the outside nothing.
type Kind uint8

// The kinds.
const (
	Internal        Kind = iota // ours; nothing is said outside
	Invalid                     // the input is wrong
	Unauthenticated             // no or wrong proof of identity
	Denied                      // policy says no, and the caller may know why
	NotFound                    // absent, or not the caller's to see
	Conflict                    // the state changed or is in use
	TooMany                     // a bound was reached
	Unavailable                 // something needed does not answer now
	Unsupported                 // this host or this version cannot do it
)

var kindNames = [...]string{"internal", "invalid", "unauthenticated", "denied", "not found", "conflict", "too many", "unavailable", "unsupported"}

// String names the kind.
func (k Kind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return fmt.Sprintf("kind(%d)", uint8(k))
}

// Error is a failure with a public sentence and, where there is one, the next thing to type.
type Error struct {
	Kind   Kind
	Public string // lower case, no full stop
	Hint   string // what to type or do next; may be empty
	Cause  error  // for logs; never shown outside
}

// Error returns the public sentence and the cause, for logs and the command line.
func (e *Error) Error() string {
	if e.Cause == nil {
		return e.Public
	}
	return e.Public + ": " + e.Cause.Error()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Cause }

// New makes an error of a kind with a public sentence.
func New(kind Kind, format string, args ...any) *Error {
	return &Error{Kind: kind, Public: fmt.Sprintf(format, args...)}
}

// WithHint sets what to type next and returns e.
func (e *Error) WithHint(format string, args ...any) *Error {
	e.Hint = fmt.Sprintf(format, args...)
	return e
}

// Because sets the cause and returns e.
func (e *Error) Because(cause error) *Error {
	e.Cause = cause
	return e
}

// KindOf returns the kind of the outermost Error in the chain, Internal if there is none.
func KindOf(err error) Kind {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Kind
	}
	return Internal
}

// HintOf returns the outermost hint in the chain, or "".
func HintOf(err error) string {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Hint
	}
	return ""
}

// Public returns what the outside may read.
func Public(err error) string {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Public
	}
	return "internal error"
}

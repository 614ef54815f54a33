package keeper

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/cofferdam/cofferdam/internal/fault"
)

// decode reads one JSON document of at most most bytes, strictly.
func decode(r io.Reader, most int64, into any) error {
	data, err := io.ReadAll(io.LimitReader(r, most+1))
	if err != nil {
		return err
	}
	if int64(len(data)) > most {
		return fault.New(fault.Invalid, "the message has more than %d bytes", most)
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return fault.New(fault.Invalid, "the message cannot be read: %v", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return fault.New(fault.Invalid, "the message has bytes behind its end")
	}
	return nil
}

// ParseSpec reads the one document on a keeper's standard input.
func ParseSpec(r io.Reader) (Spec, error) {
	var s Spec
	if err := decode(r, MaxSpec, &s); err != nil {
		return s, fmt.Errorf("read what to keep: %w", err)
	}
	return s, nil
}

// Failed is the Ready of a sandbox that cannot be had.
func Failed(err error) Ready {
	r := Ready{Error: fault.Public(err), Kind: fault.KindOf(err).String(), Hint: fault.HintOf(err)}
	if fault.KindOf(err) != fault.Internal && err.Error() != "" {
		r.Error = err.Error() // both sides are ours: causes help the operator
	}
	return r
}

// kindNamed is the inverse of fault.Kind.String; an unknown name is Internal.
func kindNamed(name string) fault.Kind {
	for k := fault.Internal; k <= fault.Unsupported; k++ {
		if k.String() == name {
			return k
		}
	}
	return fault.Internal
}

// err turns a problem back into an error.
func (p problem) err() error {
	e := fault.New(kindNamed(p.Kind), "%s", p.Error)
	e.Hint = p.Hint
	return e
}

// statusOf is the HTTP status for a kind of failure.
func statusOf(k fault.Kind) int {
	switch k {
	case fault.Invalid:
		return http.StatusBadRequest
	case fault.Unauthenticated:
		return http.StatusUnauthorized
	case fault.Denied:
		return http.StatusForbidden
	case fault.NotFound:
		return http.StatusNotFound
	case fault.Conflict:
		return http.StatusConflict
	case fault.TooMany:
		return http.StatusTooManyRequests
	case fault.Unavailable:
		return http.StatusServiceUnavailable
	case fault.Unsupported:
		return http.StatusNotImplemented
	}
	return http.StatusInternalServerError
}

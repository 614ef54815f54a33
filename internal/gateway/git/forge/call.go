package forge

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/cofferdam/cofferdam/internal/fault"
)

// call is a request to an API.
type call struct {
	method string
	path   string // below the API's address, percent-encoded, beginning with a slash
	query  url.Values
	header map[string]string
	body   any // written as JSON; nil for none
}

// answer is what an API said.
type answer struct {
	call   call
	status int
	header http.Header
	body   []byte
}

// ok reports whether the call succeeded. 203 is what Azure DevOps puts over its page for signing in.
func (a answer) ok() bool { return a.status == http.StatusOK || a.status == http.StatusCreated }

// send sends a call and reads the answer, whatever its status.
func (o *opening) send(ctx context.Context, c call) (answer, error) {
	u := *o.base
	encoded := strings.TrimSuffix(u.EscapedPath(), "/") + c.path
	path, err := url.PathUnescape(encoded)
	if err != nil {
		return answer{}, fmt.Errorf("make a request for %s: %w", o.base.Hostname(), err)
	}
	u.Path, u.RawPath, u.RawQuery = path, encoded, c.query.Encode()
	var body io.Reader
	if c.body != nil {
		data, err := json.Marshal(c.body)
		if err != nil {
			return answer{}, fmt.Errorf("make a request for %s: %w", o.base.Hostname(), err)
		}
		body = bytes.NewReader(data)
	}
	r, err := http.NewRequestWithContext(ctx, c.method, u.String(), body)
	if err != nil {
		return answer{}, fmt.Errorf("make a request for %s: %w", o.base.Hostname(), err)
	}
	r.Header.Set("Accept", "application/json")
	r.Header.Set("User-Agent", "cofferdam") // GitHub answers none without
	if body != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	for name, value := range c.header {
		r.Header.Set(name, value)
	}
	resp, err := o.do(ctx, r)
	if err != nil {
		return answer{}, o.unsent(err)
	}
	defer func() { _ = resp.Body.Close() }() // only reading was to be done
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	switch {
	case err != nil:
		return answer{}, o.unsent(err)
	case len(data) > maxAnswer:
		return answer{}, fault.New(fault.Unavailable, "%s answered with more than %d bytes", o.base.Hostname(), maxAnswer)
	}
	return answer{call: c, status: resp.StatusCode, header: resp.Header, body: data}, nil
}

// unsent is the error of a call without an answer: do's own, if it has a sentence for the outside.
func (o *opening) unsent(err error) error {
	if _, told := errors.AsType[*fault.Error](err); told {
		return err
	}
	return fault.New(fault.Unavailable, "%s cannot be reached to open a pull request", o.base.Hostname()).Because(err)
}

// refusal is why an API did not do what it was asked. The zero value says nothing more than the status.
type refusal uint8

const (
	unclear refusal = iota
	unauthenticated
	forbidden
	missing
	baseMissing
	headMissing
	branchMissing // one of the two, where the forge does not tell which
	archived
	nothing
	exists
	limited
	moved
	invalid
	broken
	unreadable
)

// why says what an answer other than success means.
func (o *opening) why(a answer) refusal {
	if r := o.api.refused(a); r != unclear {
		return r
	}
	switch {
	case a.status == http.StatusUnauthorized:
		return unauthenticated
	case a.status == http.StatusForbidden:
		return forbidden
	case a.status == http.StatusNotFound:
		return missing
	case a.status == http.StatusLocked:
		return archived
	case a.status == http.StatusTooManyRequests:
		return limited
	case a.status/100 == 3:
		return moved
	case a.status/100 == 4:
		return invalid
	case a.status/100 == 5:
		return broken
	}
	return unreadable
}

// fault is a refusal as the outside may read it.
func (r refusal) fault(o *opening, a answer) *fault.Error {
	host := o.base.Hostname()
	switch r {
	case unauthenticated:
		return fault.New(fault.Unauthenticated, "%s does not accept the credential for its API", host).WithHint("look at the credential that api names: cofferdam credential test NAME")
	case forbidden:
		return fault.New(fault.Denied, "%s does not let the credential open pull requests in %s", host, o.Repository).WithHint("give the credential the right to write pull requests there")
	case missing:
		return fault.New(fault.NotFound, "%s has no repository %s, or the credential may not see it", host, o.Repository)
	case baseMissing:
		return fault.New(fault.NotFound, "%s has no branch %q in %s to merge into", host, o.Base, o.Repository)
	case headMissing:
		return fault.New(fault.NotFound, "%s has no branch %q in %s to merge", host, o.Head, o.Repository)
	case branchMissing:
		return fault.New(fault.NotFound, "%s has no branch %q to merge, or no branch %q to merge into, in %s", host, o.Head, o.Base, o.Repository)
	case archived:
		return fault.New(fault.Denied, "%s is archived", o.Repository)
	case nothing:
		return fault.New(fault.Conflict, "there is nothing to merge: %q has all that %q has", o.Base, o.Head)
	case exists:
		return fault.New(fault.Conflict, "%s says that a pull request from %q to %q is open already, and does not show it", host, o.Head, o.Base)
	case limited:
		return fault.New(fault.TooMany, "%s takes no more requests for now", host).WithHint("%s", later(a.header))
	case moved:
		return fault.New(fault.NotFound, "%s says that %s has moved", host, o.Repository).WithHint("name its new path in policy")
	case invalid:
		return fault.New(fault.Invalid, "%s does not take the pull request (status %d)", host, a.status)
	case broken:
		return fault.New(fault.Unavailable, "%s has an error of its own (status %d)", host, a.status)
	}
	return fault.New(fault.Unavailable, "%s answered with what is not of its API (status %d)", host, a.status)
}

// later says when to try again, as far as the header Retry-After says it.
func later(h http.Header) string {
	if n, err := strconv.Atoi(h.Get("Retry-After")); err == nil && 0 < n && n < 1<<20 {
		return fmt.Sprintf("try again in %d seconds", n)
	}
	return "try again later"
}

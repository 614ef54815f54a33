package lfs

import (
	"io"
	"net/http"
	"net/url"
	"strconv"

	"github.com/cofferdam/cofferdam/internal/fault"
)

// ReadRequest reads the body of a call other than BatchObjects, and returns it written anew for the upstream; nil for a call without a body.
func (c Call) ReadRequest(body io.Reader) ([]byte, error) {
	var in struct {
		Object
		Path   string `json:"path"`
		Cursor string `json:"cursor"`
		Limit  int    `json:"limit"`
		Ref    *ref   `json:"ref"`
	}
	if c.Kind == ListLocks {
		return nil, nil
	}
	if err := decode(body, maxRequest, &in); err != nil {
		return nil, fault.New(fault.Invalid, "the LFS request (%s) cannot be read", c.Kind).Because(err)
	}
	name, err := in.Ref.name()
	if err != nil {
		return nil, err
	}
	var on *ref
	if name != "" {
		on = &ref{name}
	}
	switch c.Kind {
	case VerifyObject:
		if in.OID != c.ID || in.Size < 0 {
			return nil, fault.New(fault.Invalid, "the LFS request is about another object than its path")
		}
		return encode(in.Object), nil
	case CreateLock:
		if in.Path == "" || !plain(in.Path) {
			return nil, fault.New(fault.Invalid, "path %.80q of an LFS lock is none", in.Path)
		}
		return encode(struct {
			Path string `json:"path"`
			Ref  *ref   `json:"ref,omitempty"`
		}{in.Path, on}), nil
	case Unlock:
		return encode(struct { // not force, by which somebody else's lock would be taken away
			Ref *ref `json:"ref,omitempty"`
		}{on}), nil
	case VerifyLocks:
		if !plain(in.Cursor) || in.Limit < 0 {
			return nil, fault.New(fault.Invalid, "cursor or limit of an LFS request is none")
		}
		return encode(struct {
			Cursor string `json:"cursor,omitempty"`
			Limit  int    `json:"limit,omitempty"`
			Ref    *ref   `json:"ref,omitempty"`
		}{in.Cursor, in.Limit, on}), nil
	}
	return nil, fault.New(fault.Internal, "no request of LFS is read here")
}

// ReadQuery reads the query of a call, and returns it written anew for the upstream. Only listing locks has one.
func (c Call) ReadQuery(raw string) (string, error) {
	if raw == "" {
		return "", nil
	}
	bad := fault.New(fault.Invalid, "the query of the LFS request (%s) is not one of the API", c.Kind)
	in, err := url.ParseQuery(raw)
	if err != nil || c.Kind != ListLocks {
		return "", bad
	}
	for name, values := range in {
		switch name {
		case "path", "id", "cursor", "refspec":
		case "limit":
			if n, err := strconv.Atoi(values[0]); err != nil || n < 0 {
				return "", bad
			}
		default:
			return "", bad
		}
		if len(values) != 1 || !plain(values[0]) {
			return "", bad
		}
	}
	return in.Encode(), nil
}

// lock is a lock as clients get it.
type lock struct {
	ID       string `json:"id"`
	Path     string `json:"path"`
	LockedAt string `json:"locked_at,omitempty"`
	Owner    *owner `json:"owner,omitempty"`
}

type owner struct {
	Name string `json:"name"`
}

// shown reports whether the lock can be shown on a terminal.
func (l lock) shown() bool {
	return plain(l.ID) && plain(l.Path) && plain(l.LockedAt) && (l.Owner == nil || plain(l.Owner.Name))
}

// Answer reads an upstream's answer to a call other than BatchObjects, and returns the body for the client, to go under the same status.
// What the upstream says in words is not passed on.
func (c Call) Answer(status int, body io.Reader) ([]byte, error) {
	clash := c.Kind == CreateLock && status == http.StatusConflict
	switch {
	case c.Kind == VerifyObject && status/100 == 2:
		return []byte("{}"), nil
	case status/100 != 2 && !clash:
		return Message(sentence(status)), nil
	}
	unread := fault.New(fault.Unavailable, "the upstream's answer to the LFS request (%s) cannot be read", c.Kind)
	var in struct {
		Lock   *lock  `json:"lock"`
		Locks  []lock `json:"locks"`
		Ours   []lock `json:"ours"`
		Theirs []lock `json:"theirs"`
		Next   string `json:"next_cursor"`
	}
	if err := decode(body, maxAnswer, &in); err != nil {
		return nil, unread.Because(err)
	}
	if !plain(in.Next) || in.Lock != nil && !in.Lock.shown() {
		return nil, unread
	}
	for _, all := range [][]lock{in.Locks, in.Ours, in.Theirs} {
		for _, l := range all {
			if !l.shown() {
				return nil, unread
			}
		}
	}
	return c.write(in.Lock, in.Locks, in.Ours, in.Theirs, in.Next, clash)
}

// write writes the answer that the kind of call has.
func (c Call) write(one *lock, all, ours, theirs []lock, next string, clash bool) ([]byte, error) {
	some := func(l []lock) []lock { return append([]lock{}, l...) } // an empty list is [], never null
	switch c.Kind {
	case ListLocks:
		return encode(struct {
			Locks []lock `json:"locks"`
			Next  string `json:"next_cursor,omitempty"`
		}{some(all), next}), nil
	case VerifyLocks:
		return encode(struct {
			Ours   []lock `json:"ours"`
			Theirs []lock `json:"theirs"`
			Next   string `json:"next_cursor,omitempty"`
		}{some(ours), some(theirs), next}), nil
	case CreateLock, Unlock:
		if one == nil {
			return nil, fault.New(fault.Unavailable, "the upstream's answer to the LFS request (%s) names no lock", c.Kind)
		}
		out := struct {
			Lock    *lock  `json:"lock"`
			Message string `json:"message,omitempty"`
		}{Lock: one}
		if clash {
			out.Message = "the file is locked already"
		}
		return encode(out), nil
	}
	return nil, fault.New(fault.Internal, "no answer of LFS is read here")
}

// sentence says what an upstream's refusal of a whole call means.
func sentence(status int) string {
	switch status {
	case http.StatusUnauthorized:
		return "the upstream does not accept the credential that was lent for LFS"
	case http.StatusForbidden:
		return "the upstream does not allow this to the credential that was lent for LFS"
	case http.StatusNotFound:
		return "the upstream has no such repository, or no LFS of this kind for it"
	case http.StatusRequestEntityTooLarge, http.StatusUnprocessableEntity:
		return "the upstream finds the LFS request invalid"
	case http.StatusTooManyRequests:
		return "the upstream takes no more LFS requests for now"
	case http.StatusInsufficientStorage:
		return "the upstream has no room for more LFS objects"
	}
	return "the upstream answered the LFS request with status " + strconv.Itoa(status)
}

// Refused is the body for the client where the upstream refuses a batch or an action as a whole.
func Refused(status int) []byte { return Message(sentence(status)) }

package lfs

import (
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/cofferdam/cofferdam/internal/fault"
)

const maxAnswer = 8 << 20 // bytes; a thousand objects with two signed URLs each stay below half of it

// Answers to single objects, by HTTP's status codes as docs/api/batch.md has it. The upstream's own words are not passed on.
const (
	sayAbsent    = "the upstream does not have this object"
	sayUnknown   = "the upstream's answer does not say where this object goes"
	sayPlace     = "cofferdam: this object is kept on a host that policy does not name: add it to lfs-hosts of the upstream"
	sayUnfit     = "cofferdam: the upstream's answer for this object is not one of the basic transfer method over HTTPS"
	sayOver      = "cofferdam: the upstream's answer for this object has expired already: one of the two clocks is wrong"
	sayRefused   = "the upstream refuses this object"
	sayRemoved   = "the upstream has removed this object"
	sayInvalid   = "the upstream finds this object invalid"
	sayAlgorithm = "the upstream does not take objects of this hash function"
)

// answerObject is one object in an upstream's answer.
type answerObject struct {
	OID     string                  `json:"oid"`
	Actions map[string]answerAction `json:"actions"`
	Links   map[string]answerAction `json:"_links"` // what actions were called before the batch API; git-lfs still reads it
	Error   *objectError            `json:"error"`
}

// answerAction is a place in an upstream's answer.
type answerAction struct {
	Href      string            `json:"href"`
	Header    map[string]string `json:"header"`
	ExpiresIn int64             `json:"expires_in"`
	ExpiresAt *time.Time        `json:"expires_at"`
}

// objectError says why there is no place for an object.
type objectError struct {
	Code    int    `json:"code"`
	Message string `json:"message"`
}

// place is an action as the client gets it.
type place struct {
	Href      string `json:"href"`
	ExpiresIn int64  `json:"expires_in"`
}

// placed is one object as the client gets it.
type placed struct {
	Object
	Actions map[string]place `json:"actions,omitempty"`
	Error   *objectError     `json:"error,omitempty"`
}

// methods are the requests that the basic transfer method makes for each action, by operation. An action that is not here is refused: it
// could turn a download that was judged as reading into a write.
func (o Operation) methods() map[string]string {
	switch o {
	case Download:
		return map[string]string{"download": http.MethodGet}
	case Upload:
		return map[string]string{"upload": http.MethodPut, "verify": http.MethodPost}
	}
	return nil
}

// Rewrite reads an upstream's answer to a batch for a repository, and returns the answer for the client. It tells of the objects that were asked for
// and no others, in that order. Every action's URL becomes base and a token; the URL itself and the action's header stay in the table. An object
// is answered with an error if one of its URLs is not plain https or allow refuses it; a nil allow refuses all. The answer is made of
// what was asked, of base, of tokens, numbers and sentences of ours: no text of the upstream's is in it.
func (t *Table) Rewrite(b Batch, answer io.Reader, repository, base string, allow func(*url.URL) error) ([]byte, error) {
	var in struct {
		Transfer string         `json:"transfer"`
		Objects  []answerObject `json:"objects"`
		HashAlgo string         `json:"hash_algo"`
	}
	if err := decode(answer, maxAnswer, &in); err != nil {
		return nil, fault.New(fault.Unavailable, "the upstream's answer to the LFS batch cannot be read").Because(err)
	}
	if in.Transfer != "" && in.Transfer != "basic" || in.HashAlgo != "" && in.HashAlgo != "sha256" {
		return nil, fault.New(fault.Unsupported, "the upstream wants to transfer LFS objects in another way than the basic method with SHA-256")
	}
	said := make(map[string]answerObject, len(in.Objects))
	for _, o := range in.Objects {
		if _, again := said[o.OID]; !again {
			said[o.OID] = o
		}
	}
	out := struct {
		Transfer string   `json:"transfer"`
		Objects  []placed `json:"objects"`
		HashAlgo string   `json:"hash_algo"`
	}{Transfer: "basic", HashAlgo: "sha256"}
	now := time.Now()
	for _, o := range b.Objects {
		p := placed{Object: o}
		if from, ok := said[o.OID]; !ok {
			p.Error = &objectError{http.StatusNotFound, sayUnknown}
		} else if actions, refusal := from.read(b.Operation, now, allow); refusal != nil {
			p.Error = refusal
		} else {
			p.Actions = make(map[string]place, len(actions))
			for name, a := range actions {
				a.Object, a.Repository = o, repository
				p.Actions[name] = place{Href: base + t.add(a), ExpiresIn: int64(a.Expires.Sub(now) / time.Second)}
			}
		}
		out.Objects = append(out.Objects, p)
	}
	return encode(out), nil
}

// read returns the object's actions, none for an upload of what is there already, or why there can be none.
func (o answerObject) read(operation Operation, now time.Time, allow func(*url.URL) error) (map[string]Action, *objectError) {
	if o.Error != nil {
		return nil, told(o.Error.Code)
	}
	said := o.Actions
	if len(said) == 0 {
		said = o.Links
	}
	methods := operation.methods()
	actions := make(map[string]Action, len(said))
	for name, s := range said {
		method, known := methods[name]
		if !known {
			return nil, &objectError{http.StatusForbidden, sayUnfit}
		}
		a, refusal := s.read(now, allow)
		if refusal != nil {
			return nil, refusal
		}
		a.Method = method
		actions[name] = a
	}
	switch {
	case operation == Download && len(actions) == 0:
		return nil, &objectError{http.StatusNotFound, sayUnknown}
	case operation == Upload && len(actions) > 0 && actions["upload"].URL == nil:
		return nil, &objectError{http.StatusForbidden, sayUnfit} // nothing to put, but something to confirm
	}
	return actions, nil
}

// told is an upstream's error for one object in our words.
func told(code int) *objectError {
	switch code {
	case http.StatusNotFound:
		return &objectError{code, sayAbsent}
	case http.StatusConflict:
		return &objectError{code, sayAlgorithm}
	case http.StatusGone:
		return &objectError{code, sayRemoved}
	case http.StatusUnprocessableEntity:
		return &objectError{code, sayInvalid}
	}
	if code < 400 || code > 599 {
		code = http.StatusForbidden
	}
	return &objectError{code, sayRefused}
}

// read returns the action, or why it cannot be used.
func (s answerAction) read(now time.Time, allow func(*url.URL) error) (Action, *objectError) {
	unfit := &objectError{http.StatusForbidden, sayUnfit}
	u, err := url.Parse(s.Href)
	if err != nil || len(s.Href) > maxHref || u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.Opaque != "" || strings.Contains(s.Href, "#") {
		return Action{}, unfit
	}
	header, ok := carried(s.Header)
	if !ok {
		return Action{}, unfit
	}
	if allow == nil || allow(u) != nil {
		return Action{}, &objectError{http.StatusForbidden, sayPlace}
	}
	expires := now.Add(s.life(now)).Truncate(time.Second)
	if !now.Before(expires) {
		return Action{}, &objectError{http.StatusForbidden, sayOver}
	}
	return Action{URL: u, Header: header, Expires: expires}, nil
}

// life is how long the action may be used: as long as the upstream says, and not for ever.
func (s answerAction) life(now time.Time) time.Duration {
	switch {
	case s.ExpiresIn != 0: // preferred where both are given
		return time.Duration(max(-1, min(s.ExpiresIn, int64(maxLife/time.Second)))) * time.Second
	case s.ExpiresAt != nil && s.ExpiresAt.Year() > 1: // some servers write Go's zero time for none
		return min(s.ExpiresAt.Sub(now), maxLife)
	}
	return maxLife
}

// carried is an action's header as it is sent with the request. What belongs to one connection, and what says where the request goes or how
// long it is, is left out: that is the sender's to know.
func carried(said map[string]string) (http.Header, bool) {
	size := 0
	header := make(http.Header, len(said))
	for name, value := range said {
		if !fieldName(name) || !fieldValue(value) || len(said) > maxHeaders {
			return nil, false
		}
		if size += len(name) + len(value); size > maxHref {
			return nil, false
		}
		canonical := http.CanonicalHeaderKey(name)
		switch canonical {
		case "Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Proxy-Connection", "Te", "Trailer", "Transfer-Encoding", "Upgrade",
			"Host", "Content-Length", "Expect", "Accept-Encoding", "Range":
			continue
		}
		if _, again := header[canonical]; again {
			return nil, false // two spellings of one name: which of them counts would be chance
		}
		header[canonical] = []string{value}
	}
	return header, true
}

// fieldName reports whether a name can be a header field's: a token of RFC 9110 §5.6.2.
func fieldName(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return !('a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || strings.ContainsRune("!#$%&'*+-.^_`|~", r))
	})
}

// fieldValue reports whether a value can stand in a header field: nothing that could end it.
func fieldValue(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f })
}

package server

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"net/http"
	"time"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/store"
)

// The bounds of idempotency keys and of answers that are kept for them.
const (
	maxKey    = 200
	maxAnswer = 1 << 20
)

// idempotent carries an operation out, once for each Idempotency-Key of a caller: a client that lost the answer asks again and gets it.
func (s *Server) idempotent(o *operation, w http.ResponseWriter, r *http.Request, c *call, text []byte, do func(http.ResponseWriter, *http.Request, *call) error) error {
	key := r.Header.Get("Idempotency-Key")
	if key == "" || r.Method != http.MethodPost || o.keeping == unkeyed {
		return do(w, r, c)
	}
	if err := checkKey(key); err != nil {
		return err
	}
	owner := c.actor.Tenant + "/" + c.actor.Principal()
	request := fingerprint(r, text)
	before, found, err := s.db.BeginIdempotent(r.Context(), owner, key, request, s.clock())
	if err != nil {
		return err
	}
	if found {
		return again(w, before, request)
	}
	answer := store.Idempotent{Request: request} // status 0: forgotten, if what follows fails or panics
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), 10*time.Second)
		defer cancel()
		if err := s.db.EndIdempotent(ctx, owner, key, answer); err != nil {
			s.log.WarnContext(ctx, "answer not kept", "request", c.id, "operation", o.id, "error", err.Error())
		}
	}()
	copied := &copying{recorder: recorder{ResponseWriter: w}}
	if err := do(copied, r, c); err != nil {
		return err
	}
	if copied.status >= 200 && copied.status < 300 { // a request that was refused did nothing, and may be tried again
		answer, err = o.keep(copied, request, c)
	}
	return err
}

func checkKey(key string) error {
	for i := range len(key) {
		if key[i] <= ' ' || key[i] > '~' {
			return fault.New(fault.Invalid, "the Idempotency-Key has a character that cannot be in one").WithHint("use a random identifier")
		}
	}
	if len(key) > maxKey {
		return fault.New(fault.Invalid, "the Idempotency-Key is longer than %d bytes", maxKey).WithHint("use a random identifier")
	}
	return nil
}

// fingerprint tells requests apart. Lengths stand before parts, so that no two requests are the same row of bytes.
func fingerprint(r *http.Request, text []byte) [32]byte {
	h := sha256.New()
	for _, part := range [][]byte{[]byte(r.Method), []byte(r.URL.EscapedPath()), []byte(r.URL.RawQuery), []byte(r.Header.Get("If-Match")), text} {
		var n [8]byte
		binary.BigEndian.PutUint64(n[:], uint64(len(part)))
		h.Write(n[:])
		h.Write(part)
	}
	return [32]byte(h.Sum(nil))
}

// again answers a request that was made before.
func again(w http.ResponseWriter, before store.Idempotent, request [32]byte) error {
	switch {
	case before.Request != request:
		return &refusal{status: http.StatusUnprocessableEntity, code: codeIdempotency, detail: "this Idempotency-Key was used for another request", hint: "use a new key for each request"}
	case before.Status == 0:
		return &refusal{status: http.StatusConflict, code: codeConflict, detail: "the first request with this Idempotency-Key is still under way", hint: "wait for its end", retry: time.Second}
	}
	header := map[string]string{}
	if err := json.Unmarshal(before.Header, &header); err != nil {
		return err
	}
	for name, value := range header {
		w.Header().Set(name, value)
	}
	w.Header().Set("Idempotency-Replayed", "true")
	w.WriteHeader(before.Status)
	_, _ = w.Write(before.Body) // the client may have gone
	return nil
}

// keep makes of an answer what is stored.
func (o *operation) keep(copied *copying, request [32]byte, c *call) (store.Idempotent, error) {
	i := store.Idempotent{Request: request, Status: copied.status, Body: copied.text.Bytes()}
	header := map[string]string{}
	for _, name := range []string{"Content-Type", "ETag"} {
		if v := copied.Header().Get(name); v != "" {
			header[name] = v
		}
	}
	var err error
	if o.keeping == once || copied.large {
		i.Status = http.StatusConflict
		header = map[string]string{"Content-Type": "application/problem+json"}
		i.Body, err = json.Marshal(api.Problem{Type: "about:blank", Title: http.StatusText(i.Status), Status: i.Status, Code: codeConflict,
			Detail: "this was done already, and its answer is not kept", Hint: "look at what is there", ID: c.id})
		if err != nil {
			return store.Idempotent{Request: request}, err
		}
	}
	i.Header, err = json.Marshal(header)
	return i, err
}

// copying passes an answer on and keeps a copy, as far as it is not too large.
type copying struct {
	recorder
	text  bytes.Buffer
	large bool
}

// Write copies.
func (c *copying) Write(b []byte) (int, error) {
	if c.text.Len()+len(b) > maxAnswer {
		c.large = true
	} else if !c.large {
		c.text.Write(b)
	}
	return c.recorder.Write(b)
}

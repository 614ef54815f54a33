package gateway

import (
	"crypto/sha256"
	"encoding/hex"
	"hash"
	"io"
	"strconv"

	"github.com/cofferdam/cofferdam/internal/gateway/plainhttp"
)

// maxDigest is how large a body may be to have its hash on record. Hashing one stream costs more than all else that is done to it, and what an investigator
// compares by hash (a token, a page, a manifest) is small.
const maxDigest = 1 << 20

// returned is what came back for one request, for the record. Its zero value is nothing yet.
type returned struct {
	kind  string // the upstream's word for it
	hash  hash.Hash
	n     int64
	whole bool
}

// watch has the body of an answer proper hashed as the program gets it, after all else that is done to it.
func (r *returned) watch(a *plainhttp.Answer) {
	if a.Status < 200 {
		return
	}
	*r = returned{kind: a.Header.Get("Content-Type")}
	if n, err := strconv.ParseInt(a.Header.Get("Content-Length"), 10, 64); err == nil && n > maxDigest {
		return
	}
	inner := a.Filter
	a.Filter = func(body io.Reader) io.Reader {
		if inner != nil {
			body = inner(body)
		}
		r.hash = sha256.New()
		return &hashed{body, r}
	}
}

// digest is the hash of a body that is whole, or nothing. No body has none.
func (r *returned) digest() string {
	if r.hash == nil || !r.whole || r.n == 0 {
		return ""
	}
	return "sha256:" + hex.EncodeToString(r.hash.Sum(nil))
}

// hashed reads a body and hashes it as far as that is worth it.
type hashed struct {
	from io.Reader
	to   *returned
}

func (h *hashed) Read(p []byte) (int, error) {
	n, err := h.from.Read(p)
	r := h.to
	if r.n += int64(n); r.n > maxDigest {
		r.hash = nil
	}
	if r.hash != nil {
		_, _ = r.hash.Write(p[:n]) // a hash takes everything
		r.whole = err == io.EOF
	}
	return n, err
}

package gateway

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/cofferdam/cofferdam/internal/gateway/plainhttp"
	"github.com/cofferdam/cofferdam/internal/gateway/redact"
	"github.com/cofferdam/cofferdam/internal/secret"
)

// vault remembers every secret that was lent in this run, so that none comes back, not even in the answer to a later request or from another
// host. Its zero value is empty. It is safe for concurrent use.
type vault struct {
	set atomic.Pointer[redact.Set]
	// lower finds the secrets in lower case: the names of headers lose their case on the way.
	lower atomic.Pointer[redact.Set]

	mu    sync.Mutex
	known []lentSecret
}

// lentSecret is one secret and what takes its place.
type lentSecret struct {
	secret  secret.Bytes
	instead []byte
}

// maxSecrets bounds the vault: tokens that are minted anew every hour are far below it in any run. The oldest are forgotten first.
const maxSecrets = 256

// add takes secrets in. After it returns, no answer that is looked at has them.
func (v *vault) add(secrets []secret.Bytes, instead []byte) {
	v.mu.Lock()
	defer v.mu.Unlock()
	grown := false
	for _, s := range secrets {
		if !v.knows(s) {
			v.known = append(v.known, lentSecret{s, instead})
			grown = true
		}
	}
	if !grown {
		return
	}
	if over := len(v.known) - maxSecrets; over > 0 {
		v.known = slices.Delete(v.known, 0, over)
	}
	entries, lower := make([]redact.Entry, 0, len(v.known)), make([]redact.Entry, 0, len(v.known))
	for _, one := range v.known {
		entries = append(entries, redact.Entry{Value: bytes.Clone(one.secret.Reveal()), Instead: one.instead})
		lower = append(lower, redact.Entry{Value: bytes.ToLower(one.secret.Reveal())})
	}
	v.lower.Store(redact.NewSet(lower))
	v.set.Store(redact.NewSet(entries))
}

func (v *vault) knows(s secret.Bytes) bool {
	return slices.ContainsFunc(v.known, func(one lentSecret) bool { return one.secret.Equal(s) })
}

// errEncoding refuses an answer that cannot be read here. It does not quote what the upstream wrote.
var errEncoding = errors.New("it is in an encoding that was not asked for and cannot be looked through")

// Answer replaces what was lent in the head of an answer, and has the rest of it replaced as it comes.
func (d *httpDoor) Answer(a *plainhttp.Answer) error {
	if a.Status == http.StatusUnauthorized {
		for _, b := range d.borrowed {
			b.grant.Rejected()
		}
	}
	if d.bound {
		// A cookie of an authenticated answer is a credential; and the sandbox has no QUIC to go to.
		a.Header.Del("Set-Cookie")
		a.Header.Del("Alt-Svc")
	}
	if err := d.redact(a); err != nil {
		return err
	}
	if d.secure {
		d.returned.watch(a)
	}
	return nil
}

// redact replaces what was lent in one answer.
func (d *httpDoor) redact(a *plainhttp.Answer) error {
	set := d.p.g.vault.set.Load()
	if set == nil {
		return nil
	}
	d.clean(set, a.Header)
	a.Trailer = func(h http.Header) {
		if d.bound {
			h.Del("Set-Cookie")
		}
		d.clean(set, h)
	}
	if a.Status == http.StatusSwitchingProtocols {
		a.Filter = func(r io.Reader) io.Reader { return set.WebSocket(r, d.found) }
		return nil
	}
	encoding := strings.ToLower(strings.Join(a.Header["Content-Encoding"], ","))
	grpc := strings.ToLower(a.Header.Get("Grpc-Encoding"))
	switch {
	case grpc != "" && grpc != "identity" && d.bound:
		return errEncoding
	case encoding == "" || encoding == "identity":
		a.Filter = func(r io.Reader) io.Reader { return set.Reader(r, d.found) }
	case encoding == "gzip" || encoding == "x-gzip":
		a.Recoded = true
		for _, name := range []string{"Content-Encoding", "Digest", "Content-Digest", "Repr-Digest", "Content-Md5"} {
			a.Header.Del(name)
		}
		a.Filter = func(r io.Reader) io.Reader { return set.Reader(&gunzip{from: r}, d.found) }
	case d.bound:
		return errEncoding
	}
	return nil
}

// found counts for the record.
func (d *httpDoor) found(n int) { d.redactions.Add(int64(n)) }

// clean replaces what was lent in names and values of a header.
func (d *httpDoor) clean(set *redact.Set, h http.Header) {
	for name, values := range h {
		if _, n := d.p.g.vault.lower.Load().Text(strings.ToLower(name)); n > 0 {
			d.found(n)
			delete(h, name)
			continue
		}
		for i := range values {
			text, n := set.Text(values[i])
			values[i] = text
			d.found(n)
		}
	}
}

// Clean replaces what was lent in a text.
func (d *httpDoor) Clean(text string) string {
	text, n := d.p.g.vault.set.Load().Text(text)
	if n > 0 {
		d.found(n)
	}
	return text
}

// gunzip undoes gzip. It reads nothing before it is read from, so that the head of an answer never waits for its body.
type gunzip struct {
	from io.Reader
	z    *gzip.Reader
	err  error
}

func (g *gunzip) Read(p []byte) (int, error) {
	if g.z == nil && g.err == nil {
		if g.z, g.err = gzip.NewReader(g.from); g.err == io.EOF {
			return 0, io.EOF // an empty body is no archive, and needs none
		}
	}
	if g.err != nil {
		return 0, errEncoding
	}
	n, err := g.z.Read(p)
	if err != nil && err != io.EOF {
		g.err = err
	}
	return n, err
}

func portText(port uint16) string { return strconv.Itoa(int(port)) }

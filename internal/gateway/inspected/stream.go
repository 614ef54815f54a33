package inspected

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/http/httptrace"
	"strings"
	"sync/atomic"

	"github.com/cofferdam/cofferdam/internal/gateway/plainhttp"
)

// stream is one request of an HTTP/2 connection.
type stream struct {
	*connection
	w    http.ResponseWriter
	r    *http.Request
	door plainhttp.Inspector

	admitted plainhttp.Request
	body     *upload
	result   plainhttp.Result
}

// serve has the request judged, sends it on and relays its answer.
func (x *stream) serve() {
	path, _, _ := strings.Cut(x.r.RequestURI, "?")
	x.admitted = plainhttp.Request{Method: x.r.Method, Path: path, Fault: x.understand()}
	if x.admitted.Fault == nil {
		x.admitted.Target, x.admitted.Header, x.admitted.Length = x.r.RequestURI, endToEnd(x.r.Header), x.r.ContentLength
		x.admitted.Whole = x.whole
	}
	if refusal := x.door.Admit(x.r.Context(), &x.admitted); refusal != nil {
		x.refuse(refusal)
		return
	}
	broken := x.forward()
	if x.body != nil {
		x.result.Out = x.body.n.Load()
	}
	x.door.Done(x.result)
	if broken {
		panic(http.ErrAbortHandler) // half an answer must not be taken for a whole one
	}
}

// whole implements plainhttp.Request.Whole. The body is read again from memory then.
func (x *stream) whole(limit int64) ([]byte, error) {
	if x.r.ContentLength < 0 || x.r.ContentLength > limit {
		return nil, plainhttp.ErrNotWhole
	}
	body, err := io.ReadAll(io.LimitReader(x.r.Body, limit)) // net/http holds the body to its length
	x.r.Body = struct {
		io.Reader
		io.Closer
	}{bytes.NewReader(body), x.r.Body}
	return body, err
}

// forward sends the admitted request and relays the answer. broken means that the answer ended in the middle.
func (x *stream) forward() (broken bool) {
	u, err := x.target(x.admitted.Target)
	if err != nil {
		x.fail(&plainhttp.Refusal{Status: http.StatusBadRequest, Rule: "malformed-request", Reason: "the request is malformed: " + err.Error()})
		return false
	}
	out := (&http.Request{
		Method: x.r.Method, URL: u, Host: x.origin.Authority, Header: x.admitted.Header, ContentLength: x.r.ContentLength, Trailer: x.r.Trailer,
	}).WithContext(httptrace.WithClientTrace(x.r.Context(), x.traceInterim()))
	if _, named := out.Header["User-Agent"]; !named {
		out.Header["User-Agent"] = nil // net/http would put its own
	}
	if x.r.ContentLength != 0 {
		x.body = &upload{from: x.r.Body, look: x.admitted.Upload, trailer: x.r.Trailer}
		out.Body = x.body
	}
	answer, err := x.route(x.admitted.Route).RoundTrip(out)
	if err != nil {
		x.fail(x.why(err))
		return false
	}
	defer answer.Body.Close()
	return x.relay(answer)
}

// why turns an error into what the client reads.
func (x *stream) why(err error) *plainhttp.Refusal {
	if x.body != nil {
		if r := x.body.refused.Load(); r != nil {
			return r
		}
	}
	if r, ok := errors.AsType[refused](err); ok {
		return r.refusal
	}
	return &plainhttp.Refusal{Status: http.StatusBadGateway, Rule: "upstream", Reason: x.door.Clean("the upstream did not answer: " + err.Error())}
}

// fail ends a request that got no answer.
func (x *stream) fail(r *plainhttp.Refusal) {
	x.result.Status, x.result.Err = r.Status, errors.New(r.Reason)
	x.refuse(r)
}

// refuse answers with a refusal.
func (x *stream) refuse(r *plainhttp.Refusal) {
	h := x.w.Header()
	h["Content-Type"], h["Cofferdam-Denied"] = []string{"text/plain; charset=utf-8"}, []string{r.Rule}
	h["Cache-Control"] = []string{"no-store"}
	x.w.WriteHeader(r.Status)
	_, _ = io.WriteString(x.w, r.Text()) // a client that is gone reads nothing
}

// relay passes an answer on, each piece as soon as it is there.
func (x *stream) relay(answer *http.Response) (broken bool) {
	a := &plainhttp.Answer{Status: answer.StatusCode, Header: endToEnd(answer.Header)}
	if err := x.door.Answer(a); err != nil {
		x.fail(&plainhttp.Refusal{Status: http.StatusBadGateway, Rule: "upstream", Reason: "the upstream's answer is malformed: " + err.Error()})
		return false
	}
	x.result.Status = answer.StatusCode
	h := x.w.Header()
	for name, values := range a.Header {
		h[name] = values
	}
	if a.Recoded {
		h.Del("Content-Length")
	}
	x.w.WriteHeader(answer.StatusCode)
	body := io.Reader(answer.Body)
	if a.Filter != nil {
		body = a.Filter(body)
	}
	if err := x.copy(body); err != nil {
		x.result.Err = err
		return true
	}
	trailer := answer.Trailer.Clone()
	if a.Trailer != nil && len(trailer) > 0 {
		a.Trailer(trailer)
	}
	for name, values := range trailer {
		h[http.TrailerPrefix+name] = values
	}
	return false
}

func (x *stream) copy(body io.Reader) error {
	pooled := x.buffer()
	defer x.buffers.Put(pooled)
	buf := *pooled
	control := http.NewResponseController(x.w)
	if err := control.Flush(); err != nil { // the head goes at once
		return err
	}
	for {
		n, err := body.Read(buf)
		if n > 0 {
			wrote, err := x.w.Write(buf[:n])
			x.result.In += int64(wrote)
			if err == nil {
				err = control.Flush()
			}
			if err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// endToEnd copies a header without what belongs to one connection. TE: trailers is kept, which gRPC servers look for.
func endToEnd(h http.Header) http.Header {
	out := h.Clone()
	for _, name := range []string{"Connection", "Proxy-Connection", "Keep-Alive", "Transfer-Encoding", "Upgrade", "Host", "Http2-Settings", "Proxy-Authenticate", "Trailer"} {
		out.Del(name)
	}
	if te := out["Te"]; len(te) > 0 && !(len(te) == 1 && te[0] == "trailers") {
		out.Del("Te")
	}
	return out
}

// upload is a request's body on its way.
type upload struct {
	from    io.ReadCloser
	look    func([]byte) *plainhttp.Refusal
	trailer http.Header
	n       atomic.Int64
	refused atomic.Pointer[plainhttp.Refusal]
}

func (u *upload) Read(p []byte) (int, error) {
	n, err := u.from.Read(p)
	u.n.Add(int64(n))
	if refusal := u.judge(p[:n], err == io.EOF); refusal != nil {
		u.refused.Store(refusal)
		return 0, refused{refusal}
	}
	return n, err
}

// judge looks at a piece, and after the last one at the trailer fields, which are there then.
func (u *upload) judge(p []byte, end bool) *plainhttp.Refusal {
	if u.look == nil {
		return nil
	}
	if len(p) > 0 {
		if r := u.look(p); r != nil {
			return r
		}
	}
	if end {
		for _, values := range u.trailer {
			for _, v := range values {
				if r := u.look([]byte(v)); r != nil {
					return r
				}
			}
		}
	}
	return nil
}

func (u *upload) Close() error { return u.from.Close() }

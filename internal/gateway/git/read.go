package git

import (
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/cofferdam/cofferdam/internal/gateway/git/wire"
	"github.com/cofferdam/cofferdam/internal/policy"
)

// Media types of gitprotocol-http.
const (
	typeUploadList     = "application/x-git-upload-pack-advertisement"
	typeUploadRequest  = "application/x-git-upload-pack-request"
	typeUploadResult   = "application/x-git-upload-pack-result"
	typeReceiveList    = "application/x-git-receive-pack-advertisement"
	typeReceiveRequest = "application/x-git-receive-pack-request"
	typeReceiveResult  = "application/x-git-receive-pack-result"
)

// listForFetch answers what a clone or fetch begins with.
func (x *exchange) listForFetch() {
	passage, ok := x.enter(x.operation(policy.ReadAccess))
	if !ok {
		return
	}
	var o Outcome
	defer func() { passage.Finish(o) }()
	answer, failed := x.list(passage, "git-upload-pack", typeUploadList, &o)
	if failed != nil {
		x.fail(failed)
		return
	}
	defer answer.Body.Close()
	x.pass(answer, &o)
}

// listForPush answers what a push begins with, with those capabilities that can be judged.
func (x *exchange) listForPush() {
	passage, ok := x.enter(x.operation(policy.WriteAccess))
	if !ok {
		return
	}
	var o Outcome
	defer func() { passage.Finish(o) }()
	answer, failed := x.list(passage, "git-receive-pack", typeReceiveList, &o)
	if failed != nil {
		x.fail(failed)
		return
	}
	defer answer.Body.Close()
	x.w.Header().Set("Content-Type", typeReceiveList)
	in := &counted{from: answer.Body, n: &o.In}
	if _, err := wire.FilterAdvertisement(x.w, in); err != nil {
		o.Err = err
		panic(http.ErrAbortHandler) // the answer has begun; a client that sees its end would take it for whole
	}
}

// list asks the upstream for its refs.
func (x *exchange) list(passage Passage, service, media string, o *Outcome) (*http.Response, error) {
	r, err := x.request(x.r.Context(), http.MethodGet, x.target("/info/refs", "service="+service), nil)
	if err != nil {
		return nil, err
	}
	if v := x.version(); v != "" && service == "git-upload-pack" || v == "version=1" {
		r.Header.Set("Git-Protocol", v)
	}
	return x.send(passage, r, media, o)
}

// fetch answers ls-refs and fetch of version 2, and the negotiation of the older ones. The body may be compressed, and passes as it is.
func (x *exchange) fetch() {
	encoding := x.r.Header.Get("Content-Encoding")
	if x.r.Header.Get("Content-Type") != typeUploadRequest || encoding != "" && encoding != "gzip" {
		x.malformed("the body is not of the type " + typeUploadRequest)
		return
	}
	passage, d := x.gate.Enter(x.r.Context(), x.crossing(x.operation(policy.ReadAccess)), x.upstream.Credential)
	if d.Verdict != policy.Allow {
		x.failFetch(failure{http.StatusForbidden, d.Reason})
		return
	}
	var o Outcome
	defer func() { passage.Finish(o) }()
	body := &counted{from: http.MaxBytesReader(x.w, x.r.Body, maxNegotiation), n: &o.Out}
	r, err := x.request(x.r.Context(), http.MethodPost, x.target("/git-upload-pack", ""), io.NopCloser(body))
	if err != nil {
		o.Err = err
		x.failFetch(err)
		return
	}
	r.ContentLength = x.r.ContentLength
	r.Header.Set("Content-Type", typeUploadRequest)
	r.Header.Set("Accept", typeUploadResult)
	if encoding != "" {
		r.Header.Set("Content-Encoding", encoding)
	}
	if v := x.version(); v != "" {
		r.Header.Set("Git-Protocol", v)
	}
	answer, failed := x.send(passage, r, typeUploadResult, &o)
	if failed != nil {
		x.failFetch(failed)
		return
	}
	defer answer.Body.Close()
	x.w.Header().Set("Content-Type", typeUploadResult)
	x.w.WriteHeader(http.StatusOK)
	flush := http.NewResponseController(x.w).Flush
	if err := wire.CopyFetch(x.w, &counted{from: answer.Body, n: &o.In}, passage.Filter, flush); err != nil {
		o.Err = err
		panic(http.ErrAbortHandler) // cut off, so that it is not taken for whole
	}
}

// maxNegotiation bounds what a client may ask in one request: a million commits that it wants or has.
const maxNegotiation = 64 << 20

// send sends a request and accepts only an answer of its media type.
func (x *exchange) send(passage Passage, r *http.Request, media string, o *Outcome) (*http.Response, error) {
	if r.Header.Get("Accept") == "" {
		r.Header.Set("Accept", media)
	}
	answer, err := passage.Send(r)
	if err != nil {
		o.Err = err
		return nil, unreachable(err)
	}
	o.Status = answer.StatusCode
	if answer.StatusCode == http.StatusOK && answer.Header.Get("Content-Type") == media {
		return answer, nil
	}
	defer answer.Body.Close()
	failed := cleaned(passage, x.unexpected(answer, media))
	o.Err = failed
	return nil, failed
}

// cleaned replaces what was lent in what is told: an upstream's words may have been decoded since they were looked through.
func cleaned(passage Passage, f failure) failure {
	f.text = passage.Clean(f.text)
	return f
}

// unexpected says why an answer is of no use. Nothing of its body is passed on: a page of a forge is written for a person who is logged in.
func (x *exchange) unexpected(answer *http.Response, media string) failure {
	host := string(x.upstream.Host)
	switch code := answer.StatusCode; {
	case code == http.StatusOK:
		return failure{http.StatusBadGateway, host + " answers with something else than " + media + ": is there a Git server at this URL?"}
	case code == http.StatusUnauthorized && x.upstream.Credential == "":
		return failure{http.StatusForbidden, host + " wants a credential for " + x.repository + ", and policy lends none"}
	case code == http.StatusUnauthorized:
		return failure{http.StatusForbidden, host + " does not accept the credential " + x.upstream.Credential + " for " + x.repository}
	case code == http.StatusForbidden:
		return failure{http.StatusForbidden, host + " refuses access to " + x.repository}
	case code == http.StatusNotFound:
		return failure{http.StatusNotFound, "there is no repository " + x.repository + " at " + host + ", or it is not to be seen with what is lent"}
	case 300 <= code && code < 400:
		return x.moved(answer)
	case code == http.StatusTooManyRequests:
		return failure{http.StatusTooManyRequests, host + " is asked too often: try again later"}
	}
	return failure{http.StatusBadGateway, host + " answers with status " + http.StatusText(answer.StatusCode)}
}

// moved tells a client where a repository has gone. It is not followed here: the new place is judged like any other when the client asks for it, and
// what is lent for one host never goes to another.
func (x *exchange) moved(answer *http.Response) failure {
	elsewhere := failure{http.StatusBadGateway, string(x.upstream.Host) + " redirects elsewhere, which is not followed"}
	to, err := answer.Location()
	if err != nil || to.Scheme != "https" || to.Host != authority(x.upstream) || to.User != nil {
		return elsewhere
	}
	below, ok := strings.CutPrefix(to.Path, x.upstream.Path+"/")
	repository, isList := strings.CutSuffix(below, "/info/refs")
	if !ok || !isList || x.r.Method != http.MethodGet || repository == "" {
		return elsewhere
	}
	place := url.URL{Path: "/" + x.upstream.Name + "/" + repository}
	return failure{http.StatusNotFound, x.repository + " has moved: use http://" + string(Host) + place.EscapedPath()}
}

// fail answers with a failure.
func (x *exchange) fail(err error) {
	f := unreachable(err)
	x.say(f.status, f.text)
}

// failFetch answers with a failure where git shows one in the middle of a fetch (gitprotocol-pack, "error-line"): of another status it would show nothing but the number.
func (x *exchange) failFetch(err error) {
	x.w.Header().Set("Content-Type", typeUploadResult)
	x.w.WriteHeader(http.StatusOK)
	_, _ = x.w.Write(wire.AppendLine(nil, fmt.Sprintf("ERR cofferdam: %.2000s", unreachable(err).text))) // a client that is gone needs no answer
}

// pass copies an answer's body.
func (x *exchange) pass(answer *http.Response, o *Outcome) {
	x.w.Header().Set("Content-Type", answer.Header.Get("Content-Type"))
	x.w.WriteHeader(http.StatusOK)
	if _, err := copyFlushed(x.w, &counted{from: answer.Body, n: &o.In}); err != nil {
		o.Err = err
		panic(http.ErrAbortHandler) // cut off, so that it is not taken for whole
	}
}

// counted counts what is read.
type counted struct {
	from io.Reader
	n    *int64
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.from.Read(p)
	*c.n += int64(n)
	return n, err
}

// copyFlushed copies piece by piece as they come: progress is for people who wait.
func copyFlushed(w http.ResponseWriter, from io.Reader) (int64, error) {
	flush := http.NewResponseController(w)
	buf := make([]byte, 128<<10)
	var total int64
	for {
		n, err := from.Read(buf)
		if n > 0 {
			if _, err := w.Write(buf[:n]); err != nil {
				return total, err
			}
			total += int64(n)
			if n < len(buf) {
				if err := flush.Flush(); err != nil {
					return total, err
				}
			}
		}
		if err == io.EOF {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
}

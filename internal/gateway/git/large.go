package git

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/gateway/git/lfs"
	"github.com/cofferdam/cofferdam/internal/netname"
	"github.com/cofferdam/cofferdam/internal/policy"
)

// objectsPath is where large files are fetched and stored, by tokens that stand for what the upstream said about them. No upstream has this name.
const objectsPath = "/_lfs/"

// large answers a call of the Git LFS API.
func (x *exchange) large(call lfs.Call) {
	if call.Kind == lfs.BatchObjects {
		x.batch()
		return
	}
	query, err := call.ReadQuery(x.r.URL.RawQuery)
	var body []byte
	if err == nil {
		body, err = call.ReadRequest(x.r.Body)
	}
	if err != nil {
		x.malformedCall(err)
		return
	}
	passage, ok := x.enterLarge(call.Access())
	if !ok {
		return
	}
	var o Outcome
	defer func() { passage.Finish(o) }()
	_, rest, _ := strings.Cut(x.r.URL.Path, "/info/lfs/")
	answer, err := x.call(passage, x.r.Method, x.target("/info/lfs/"+rest, query), body, &o)
	if err != nil {
		x.failCall(err)
		return
	}
	defer answer.Body.Close()
	told, err := call.Answer(answer.StatusCode, &counted{from: answer.Body, n: &o.In})
	if err != nil {
		o.Err = err
		x.sayCall(http.StatusBadGateway, "the upstream's answer cannot be read")
		return
	}
	x.answerCall(unprompted(answer.StatusCode), []byte(passage.Clean(string(told)))) // again: its texts have been decoded since
}

// unprompted is a status at which no client asks a person for a password: the credential is none of theirs.
func unprompted(status int) int {
	if status == http.StatusUnauthorized || status == http.StatusProxyAuthRequired {
		return http.StatusForbidden
	}
	return status
}

// batch answers the question where objects are. Inside they are all at this proxy.
func (x *exchange) batch() {
	batch, err := lfs.ReadBatch(x.r.Body)
	if err != nil || x.r.URL.RawQuery != "" {
		x.malformedCall(err)
		return
	}
	if size := batch.Size(); batch.Operation == lfs.Upload && x.profile.Access() == policy.WriteAccess && size > x.profile.MaxPush() {
		d := x.gate.Refuse(x.r.Context(), x.crossing(x.operation(policy.WriteAccess)), policy.Decision{
			Rule: RuleUnjudged, Reason: fmt.Sprintf("the objects have %d bytes, and %d may be pushed at once here", size, x.profile.MaxPush()),
		})
		x.sayCall(http.StatusRequestEntityTooLarge, d.Reason)
		return
	}
	passage, ok := x.enterLarge(batch.Access())
	if !ok {
		return
	}
	var o Outcome
	defer func() { passage.Finish(o) }()
	answer, err := x.call(passage, http.MethodPost, x.target("/info/lfs/objects/batch", ""), batch.Encode(), &o)
	if err != nil {
		x.failCall(err)
		return
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		failed := cleaned(passage, x.unexpected(answer, lfs.ContentType))
		o.Err = failed
		x.failCall(failed)
		return
	}
	told, err := x.proxy.objects.Rewrite(batch, &counted{from: answer.Body, n: &o.In}, x.upstream.Name+"/"+x.repository, "http://"+string(Host)+objectsPath, x.keeps)
	if err != nil {
		o.Err = err
		x.sayCall(http.StatusBadGateway, "the upstream's answer cannot be read")
		return
	}
	x.answerCall(http.StatusOK, told) // made of what was asked, tokens and sentences of ours
}

// keeps returns an error unless the upstream may have objects at a URL.
func (x *exchange) keeps(u *url.URL) error {
	host, err := netname.NormaliseHost(u.Hostname())
	if err != nil {
		return err
	}
	if host == x.upstream.Host && portOf(u) == x.upstream.Port || slices.ContainsFunc(x.upstream.LFSHosts, func(p netname.Pattern) bool { return p.Match(host) }) {
		return nil
	}
	return fault.New(fault.Denied, "policy does not name %s among lfs-hosts of %s", host, x.upstream.Name)
}

func portOf(u *url.URL) uint16 {
	if u.Port() == "" {
		return 443
	}
	port, err := netname.ParsePort(u.Port())
	if err != nil {
		return 0
	}
	return port
}

// object moves the content of one object, or tells the upstream that an upload is complete.
func (x *exchange) object(token string) {
	action, ok := x.proxy.objects.Take(token, x.r.Method)
	if !ok {
		d := x.gate.Refuse(x.r.Context(), x.crossing(nil), policy.Decision{Rule: RuleRequest, Reason: "this place of an LFS object was not given out here, or is over: ask again"})
		x.sayCall(http.StatusNotFound, d.Reason)
		return
	}
	name, repository, _ := strings.Cut(action.Repository, "/")
	x.upstream, _ = x.gate.Law().GitUpstream(name) // if it is gone, nothing below is allowed
	x.repository = repository
	access := policy.WriteAccess
	if action.Method == http.MethodGet {
		access = policy.ReadAccess
	}
	op := x.operation(access)
	op.LFS = true
	c := x.crossing(op)
	c.Path = "/_lfs/" + action.OID // not the token
	if err := x.keeps(action.URL); err != nil {
		d := x.gate.Refuse(x.r.Context(), c, policy.Decision{Rule: policy.RuleDefault, Reason: err.Error()})
		x.sayCall(http.StatusForbidden, d.Reason)
		return
	}
	host, _ := netname.NormaliseHost(action.URL.Hostname()) // keeps has looked at it
	c.Host, c.Port = host, portOf(action.URL)
	credential := ""
	if c.Host == x.upstream.Host && c.Port == x.upstream.Port && (action.Header.Get("Authorization") == "" || strings.Contains(action.Header.Get("Authorization"), "***")) {
		credential = x.upstream.Credential // some forges repeat what they were sent, which was taken out of their answer
	}
	passage, d := x.gate.Enter(x.r.Context(), c, credential)
	if d.Verdict != policy.Allow {
		x.sayCall(http.StatusForbidden, d.Reason)
		return
	}
	var o Outcome
	defer func() { passage.Finish(o) }()
	x.move(passage, action, &o)
}

// move makes the request that the upstream asked for. Content that is not what its name says does not arrive whole, in either direction.
func (x *exchange) move(passage Passage, action lfs.Action, o *Outcome) {
	var body io.Reader
	length := int64(0)
	switch action.Method {
	case http.MethodPut:
		body, length = lfs.NewVerifyingReader(&counted{from: x.r.Body, n: &o.Out}, action.OID, action.Size), action.Size
	case http.MethodPost:
		body, length = bytes.NewReader(action.Body()), int64(len(action.Body()))
	}
	r, err := x.request(x.r.Context(), action.Method, action.URL, body)
	if err == nil {
		for name, values := range action.Header {
			r.Header[name] = values
		}
		r.ContentLength = length
		if action.Method == http.MethodPut && r.Header.Get("Content-Type") == "" {
			r.Header.Set("Content-Type", "application/octet-stream")
		}
		if length == 0 && body != nil {
			r.Body = http.NoBody
		}
	}
	var answer *http.Response
	if err == nil {
		answer, err = passage.Send(r)
	}
	if err != nil {
		o.Err = err
		x.failCall(err)
		return
	}
	defer answer.Body.Close()
	if o.Status = answer.StatusCode; answer.StatusCode/100 != 2 {
		x.sayCall(unprompted(answer.StatusCode), fmt.Sprintf("where the upstream keeps this object, the answer is %d", answer.StatusCode))
		return
	}
	if action.Method != http.MethodGet {
		x.answerCall(http.StatusOK, nil)
		return
	}
	x.w.Header().Set("Content-Type", "application/octet-stream")
	x.w.Header().Set("Content-Length", fmt.Sprint(action.Size))
	if _, err := copyFlushed(x.w, lfs.NewVerifyingReader(&counted{from: answer.Body, n: &o.In}, action.OID, action.Size)); err != nil {
		o.Err = err
		panic(http.ErrAbortHandler) // cut off, so that it is not taken for whole
	}
}

// call sends one request of the API.
func (x *exchange) call(passage Passage, method string, to *url.URL, body []byte, o *Outcome) (*http.Response, error) {
	r, err := x.request(x.r.Context(), method, to, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	r.Header.Set("Accept", lfs.ContentType)
	if len(body) > 0 {
		r.Header.Set("Content-Type", lfs.ContentType)
	}
	o.Out = int64(len(body))
	answer, err := passage.Send(r)
	if err != nil {
		o.Err = err
		return nil, err
	}
	o.Status = answer.StatusCode
	return answer, nil
}

func (x *exchange) enterLarge(access policy.Access) (Passage, bool) {
	op := x.operation(access)
	op.LFS = true
	passage, d := x.gate.Enter(x.r.Context(), x.crossing(op), x.upstream.Credential)
	if d.Verdict != policy.Allow {
		x.sayCall(http.StatusForbidden, d.Reason)
		return nil, false
	}
	return passage, true
}

func (x *exchange) malformedCall(err error) {
	d := policy.Decision{Rule: RuleRequest, Reason: "this is no request of Git LFS"}
	if err != nil {
		d.Reason = fault.Public(err)
	}
	d = x.gate.Refuse(x.r.Context(), x.crossing(nil), d)
	x.sayCall(http.StatusUnprocessableEntity, d.Reason)
}

func (x *exchange) failCall(err error) {
	f := unreachable(err)
	x.sayCall(unprompted(f.status), f.text)
}

// sayCall answers with a sentence where git-lfs looks for it.
func (x *exchange) sayCall(status int, text string) {
	x.answerCall(status, lfs.Message("cofferdam: "+text))
}

func (x *exchange) answerCall(status int, body []byte) {
	x.w.Header().Set("Content-Type", lfs.ContentType)
	x.w.WriteHeader(status)
	_, _ = x.w.Write(body) // a client that is gone needs no answer
}

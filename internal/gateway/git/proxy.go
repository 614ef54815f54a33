// Package git (GATEWAY) is the Git proxy: smart HTTP from clients inside, each operation brought before the pipeline, and sent on to the upstream
// that policy names. What it refuses it says in the words and places in which Git's clients show it to a person.
package git

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/cofferdam/cofferdam/internal/gateway/git/lfs"
	"github.com/cofferdam/cofferdam/internal/gateway/git/wire"
	"github.com/cofferdam/cofferdam/internal/netname"
	"github.com/cofferdam/cofferdam/internal/policy"
)

// Gate is the pipeline's side of one client connection. Its methods are called by several requests at once.
type Gate interface {
	// Law returns the policy in force.
	Law() *policy.Policy
	// Known reports whether a text is the run's own proxy token.
	Known(token string) bool
	// Enter judges an operation and records it. Anything but Allow is a refusal, which is recorded too.
	Enter(ctx context.Context, c policy.Crossing, credential string) (Passage, policy.Decision)
	// Refuse records a refusal that was found here, and returns it as told.
	Refuse(ctx context.Context, c policy.Crossing, d policy.Decision) policy.Decision
	// Scratch returns an empty file that nobody else has, and what gives it back.
	Scratch(ctx context.Context) (Scratch, func(), error)
}

// Scratch holds what is kept of a push while it is judged.
type Scratch interface {
	io.ReaderAt
	io.WriterAt
}

// Passage is an operation that was let through.
type Passage interface {
	// Send sends a request over verified TLS to the host that it names, with the credential that is lent for it, and follows no redirect. What the
	// answer echoes of a credential is replaced before it is returned. Send may be called several times.
	Send(r *http.Request) (*http.Response, error)
	// Filter replaces what was lent in bytes that come in pieces: the answer was looked through as it came, and what it says in bands is joined by clients.
	Filter() wire.Filter
	// Clean does the same to a whole text.
	Clean(text string) string
	// Refuse records that the operation is refused after all, and returns the refusal as told.
	Refuse(ctx context.Context, c policy.Crossing, d policy.Decision) policy.Decision
	// Finish records how the operation ended, once.
	Finish(o Outcome)
}

// Outcome is how an operation ended.
type Outcome struct {
	Status  int   // of the upstream's answer
	In, Out int64 // bytes, upstream to sandbox and back
	Refs    []string
	Err     error
}

// Rules by which the proxy itself refuses, whatever policy says.
const (
	RuleToken    = "git-token"    // no proxy token of this run
	RuleRequest  = "git-request"  // not one of the requests of smart HTTP or LFS
	RuleProtocol = "git-protocol" // the bytes are not what Git's protocol has there
	RuleUnjudged = "git-unjudged" // a push that cannot be judged: too large, a pack that is wrong, an upstream that does not answer
)

// Proxy serves the requests of one sandbox. It is safe for concurrent use.
type Proxy struct {
	objects *lfs.Table // where uploads and downloads of large files go
}

// New returns a Proxy.
func New() *Proxy { return &Proxy{objects: lfs.NewTable()} }

// Handler serves the requests of one client connection.
func (p *Proxy) Handler(g Gate) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Body = &patient{ReadCloser: r.Body, control: http.NewResponseController(w)}
		x := &exchange{proxy: p, gate: g, w: w, r: r}
		x.serve()
	})
}

// exchange is one request and its answer.
type exchange struct {
	proxy *Proxy
	gate  Gate
	w     http.ResponseWriter
	r     *http.Request

	upstream   policy.GitUpstream
	repository string // below the upstream, without .git
	suffix     string // ".git" if the client wrote it
	profile    *policy.GitProfile
}

func (x *exchange) serve() {
	x.w.Header().Set("Cache-Control", "no-cache")
	x.w.Header().Set("X-Content-Type-Options", "nosniff")
	if token, ok := strings.CutPrefix(x.r.URL.Path, objectsPath); ok { // the token in the path is all that it needs
		x.object(token)
		return
	}
	if !x.authenticated() {
		return
	}
	path, err := netname.NormalisePath(x.r.URL.EscapedPath())
	if err != nil || path.String() != x.r.URL.EscapedPath() || strings.Contains(path.String(), "%") {
		x.malformed("the path is not in canonical form: write http://git.cofferdam.internal/UPSTREAM/OWNER/REPOSITORY")
		return
	}
	service, ok := x.locate(path.String())
	if !ok {
		return
	}
	service()
}

// authenticated answers a request without this run's token: with a challenge, at which git asks the helper that was set up for it, or with a refusal.
func (x *exchange) authenticated() bool {
	stated := x.r.Header["Authorization"]
	if len(stated) == 0 {
		x.w.Header().Set("WWW-Authenticate", `Basic realm="cofferdam", charset="UTF-8"`)
		x.say(http.StatusUnauthorized, "this needs the run's proxy token, which git gets by itself: see $COFFERDAM_GIT_URL")
		return false
	}
	_, password, basic := x.r.BasicAuth()
	if len(stated) == 1 && basic && x.gate.Known(password) {
		return true
	}
	d := x.gate.Refuse(x.r.Context(), x.crossing(nil), policy.Decision{
		Rule: RuleToken, Reason: "the request has a credential of its own, or the proxy token of another run: the upstream's credential is lent by the gateway",
	})
	x.say(http.StatusForbidden, d.Reason)
	return false
}

// locate finds upstream, repository and service in a path. It answers itself where there is no such thing.
func (x *exchange) locate(path string) (service func(), ok bool) {
	name, below, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	repository, service := x.service(below)
	law := x.gate.Law()
	upstream, known := law.GitUpstream(name)
	x.upstream, x.repository = upstream, repository
	if service == nil {
		x.malformed("this is no request of Git's smart HTTP or of Git LFS")
		return nil, false
	}
	if !known {
		d := x.gate.Refuse(x.r.Context(), x.crossing(nil), policy.Decision{Rule: policy.RuleDefault, Reason: "policy names no Git upstream " + quoted(name) + upstreamNames(law)})
		x.say(http.StatusForbidden, d.Reason)
		return nil, false
	}
	x.profile, _ = law.GitRepository(upstream.Name, repository) // a refusal is found again, and recorded, by Enter
	return service, true
}

// service cuts what a path asks for off a repository's path.
func (x *exchange) service(below string) (repository string, serve func()) {
	cut := func(suffix, method string) bool {
		rest, found := strings.CutSuffix(below, suffix)
		if !found || x.r.Method != method {
			return false
		}
		repository = x.named(rest)
		return repository != ""
	}
	if repo, rest, found := strings.Cut(below, "/info/lfs/"); found {
		call, known := lfs.Recognise(x.r.Method, "info/lfs/"+rest)
		if !known || repo == "" {
			return "", nil
		}
		return x.named(repo), func() { x.large(call) }
	}
	switch query := x.r.URL.RawQuery; {
	case cut("/info/refs", http.MethodGet) && query == "service=git-upload-pack":
		return repository, x.listForFetch
	case cut("/info/refs", http.MethodGet) && query == "service=git-receive-pack":
		return repository, x.listForPush
	case cut("/git-upload-pack", http.MethodPost) && query == "":
		return repository, x.fetch
	case cut("/git-receive-pack", http.MethodPost) && query == "":
		return repository, x.push
	}
	return "", nil
}

// named returns a repository's name, which is the same with .git and without.
func (x *exchange) named(path string) string {
	name := strings.TrimSuffix(path, ".git")
	x.suffix = path[len(name):]
	return name
}

// upstreamNames lists what can be written instead.
func upstreamNames(law *policy.Policy) string {
	var names []string
	for _, u := range law.GitUpstreams() {
		names = append(names, u.Name)
	}
	if len(names) == 0 {
		return ""
	}
	return ": it has " + strings.Join(names, ", ")
}

// crossing is the request as policy wants it. op is nil where no operation was understood.
func (x *exchange) crossing(op *policy.GitOperation) policy.Crossing {
	c := policy.Crossing{Protocol: policy.Git, Host: x.upstream.Host, Port: x.upstream.Port, Method: x.r.Method, Path: x.r.URL.Path, Git: op}
	if c.Host == "" {
		c.Host, c.Port = Host, 80
	}
	return c
}

// Host is the name at which the proxy is found inside.
const Host netname.Host = "git.cofferdam.internal"

// operation is what the request does, for reading or writing the whole repository.
func (x *exchange) operation(access policy.Access) *policy.GitOperation {
	return &policy.GitOperation{Upstream: x.upstream.Name, Repository: x.repository, Access: access}
}

// enter brings an operation before the pipeline, and answers itself if it is refused.
func (x *exchange) enter(op *policy.GitOperation) (Passage, bool) {
	passage, d := x.gate.Enter(x.r.Context(), x.crossing(op), x.upstream.Credential)
	if d.Verdict != policy.Allow {
		x.say(http.StatusForbidden, d.Reason)
		return nil, false
	}
	return passage, true
}

// malformed refuses what is no request of Git's.
func (x *exchange) malformed(reason string) {
	d := x.gate.Refuse(x.r.Context(), x.crossing(nil), policy.Decision{Rule: RuleRequest, Reason: reason})
	x.say(http.StatusForbidden, d.Reason)
}

// say answers with one line. Git shows it, after "remote: ", where it is text/plain and the request was for the list of refs; go-git and isomorphic-git show it too.
// Two clients show only the number of a status, but an error in Git's own words; and isomorphic-git takes that for nonsense, so not all get it.
func (x *exchange) say(status int, text string) {
	service := x.r.URL.Query().Get("service")
	if strings.HasSuffix(x.r.URL.Path, "/info/refs") && (service == "git-upload-pack" || service == "git-receive-pack") && status != http.StatusUnauthorized && readsErrors(x.r.UserAgent()) {
		x.w.Header().Set("Content-Type", "application/x-"+service+"-advertisement")
		x.w.WriteHeader(http.StatusOK)
		body := wire.AppendFlush(wire.AppendLine(nil, "# service="+service+"\n"))
		_, _ = x.w.Write(wire.AppendLine(body, fmt.Sprintf("ERR cofferdam: %.2000s", text))) // a client that is gone needs no answer
		return
	}
	x.w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	x.w.WriteHeader(status)
	_, _ = io.WriteString(x.w, "cofferdam: "+text+"\n") // a client that is gone needs no answer
}

// readsErrors names clients by what they call themselves: git/dulwich/0.21.2, git/2.0 (libgit2 1.5.1). Whoever lies about it reads less.
func readsErrors(agent string) bool {
	return strings.HasPrefix(agent, "git/dulwich/") || strings.Contains(agent, "(libgit2 ")
}

// target is the URL of a path below the repository at the upstream.
func (x *exchange) target(below, query string) *url.URL {
	return &url.URL{Scheme: "https", Host: authority(x.upstream), Path: x.upstream.Path + "/" + x.repository + x.ending() + below, RawQuery: query}
}

// ending is what the repository's path ends in at the upstream: the form in which forges do not redirect; elsewhere as the client wrote it.
func (x *exchange) ending() string {
	switch x.upstream.Type {
	case policy.GitHub, policy.Gitea, policy.GitLab:
		return ".git"
	case policy.AzureDevOps:
		return ""
	}
	return x.suffix
}

func authority(u policy.GitUpstream) string { return hostPort(u.Host, u.Port) }

func hostPort(h netname.Host, port uint16) string {
	if port == 443 {
		return string(h)
	}
	return fmt.Sprintf("%s:%d", h, port)
}

// request makes a request to the upstream from what was understood of the client's.
func (x *exchange) request(ctx context.Context, method string, to *url.URL, body io.Reader) (*http.Request, error) {
	r, err := http.NewRequestWithContext(ctx, method, to.String(), body)
	if err != nil {
		return nil, err
	}
	r.Header.Set("User-Agent", agent(x.r.UserAgent())) // some forges answer only what calls itself git
	return r, nil
}

// agent keeps a client's name if it is an ordinary one.
func agent(name string) string {
	fit := strings.HasPrefix(name, "git") && len(name) <= 128 && !strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r > '~' })
	if !fit {
		return "git/cofferdam"
	}
	return name
}

// version returns the protocol version that the client asks for, as it is sent on.
func (x *exchange) version() string {
	switch v := x.r.Header.Get("Git-Protocol"); v {
	case "version=0", "version=1", "version=2":
		return v
	}
	return ""
}

func quoted(s string) string { return fmt.Sprintf("%.80q", s) }

// failure is an upstream's answer that is none, as it is told inside.
type failure struct {
	status int
	text   string
}

func (f failure) Error() string { return f.text }

// unreachable is how an error of Send is told.
func unreachable(err error) failure {
	if f, ok := errors.AsType[failure](err); ok {
		return f
	}
	return failure{http.StatusBadGateway, "the upstream cannot be reached: " + err.Error()}
}

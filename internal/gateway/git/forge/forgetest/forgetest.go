// Package forgetest (GATEWAY) is the pull request API of four forges as a test meets it: requests are checked as the forges check them, and answered
// in their JSON, mistakes included. Sources are named at each forge; TestFacts of package forge holds both sides to them.
package forgetest

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/cofferdam/cofferdam/internal/policy"
)

// Rights are what a token may do. The zero value is nothing: to its bearer, repositories are not there.
type Rights uint8

// The rights.
const (
	Nothing Rights = iota
	Read
	Write // open pull requests, too
)

// Fault is how a server misbehaves. The zero value is not at all.
type Fault uint8

// The faults.
const (
	None            Fault = iota
	RateLimited           // the limit of the hour
	SecondaryLimit        // GitHub's, and what a proxy in front of the others says: too much at once
	ServerError           // 500
	Maintenance           // 503 and a page
	Moved                 // a redirect to another host
	SignIn                // a page for signing in, instead of an answer
	NotJSON               // success, and a page
	TooLong               // success, and no end
	EchoCredential        // a refusal that repeats the credential in words and headers
	ForeignURL            // success, and a URL on another host
	CraftedURL            // success, and a URL on the right host that is more than a page's
	NoNumber              // success, without a number
	DuplicateHidden       // a pull request is said to be open already, and not listed
)

// Pull is a pull request.
type Pull struct {
	Repository string
	Number     int
	Head, Base string
	Title      string
	Body       string
	Fork       bool // its branch is that of a fork
	Merged     bool // by a command in its body (GitLab)
}

// Asked is a request as it came.
type Asked struct {
	Method string
	Path   string // percent-encoded
	Query  url.Values
	Header http.Header
	Body   string
}

// Server is one forge. Its fields are set before it serves; it is safe for concurrent use.
type Server struct {
	Kind policy.ForgeType
	// Web is where its pages are, as in https://forge.test: it is in the URLs that it gives out.
	Web string
	// Lookup returns the branches of a repository and their commits, for a server in front of real repositories. Repositories added by Add go first.
	Lookup func(repository string) (branches map[string]string, ok bool)
	// PageSize bounds pages of the list, whatever the client asks for; 0: as the forge does.
	PageSize int

	mu       sync.Mutex
	repos    map[string]map[string]string
	archived map[string]bool
	tokens   map[string]Rights
	pulls    []Pull
	asked    []Asked
	faults   []Fault
}

// New returns a forge without repositories, to which no token is known.
func New(kind policy.ForgeType) *Server {
	return &Server{Kind: kind, Web: "https://forge.test", repos: map[string]map[string]string{}, archived: map[string]bool{}, tokens: map[string]Rights{}}
}

// Base is the path of the API below the server's address.
func (s *Server) Base() string {
	switch s.Kind {
	case policy.Gitea:
		return "/api/v1"
	case policy.GitLab:
		return "/api/v4"
	}
	return ""
}

// Add adds a repository with branches and their commits. For Azure DevOps its path is organization/project/_git/repository.
func (s *Server) Add(repository string, branches map[string]string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.repos[repository] = maps.Clone(branches)
}

// Archive makes a repository one that nobody can change.
func (s *Server) Archive(repository string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.archived[repository] = true
}

// Token makes a token known.
func (s *Server) Token(token string, rights Rights) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tokens[token] = rights
}

// Open opens a pull request as somebody else would.
func (s *Server) Open(p Pull) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.add(p).Number
}

// Fail makes the next requests fail in these ways, one after the other.
func (s *Server) Fail(faults ...Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = append(s.faults, faults...)
}

// Pulls returns the pull requests that are there.
func (s *Server) Pulls() []Pull {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.pulls)
}

// Asked returns the requests so far.
func (s *Server) Asked() []Asked {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.asked)
}

// request is one on its way. s.mu is held all the time.
type request struct {
	*http.Request
	s      *Server
	w      http.ResponseWriter
	body   []byte
	token  string
	known  bool
	rights Rights
	fault  Fault
}

// dialect is one forge.
type dialect interface {
	// token takes the token from the header; false if there is none that the forge would look for.
	token(r *http.Request) (string, bool)
	// repository says which repository the path is about and what of it, as in pulls.
	repository(path string) (repository, what string, ok bool)
	create(r *request, repository string)
	list(r *request, repository string)
	// refuse answers with an error of the forge.
	refuse(r *request, why refusal)
}

// refusal is a mistake that all forges answer, each in its way.
type refusal uint8

const (
	noToken refusal = iota
	badToken
	noRights
	notFound
	rateLimit
	archivedRepository
	badJSON
)

func (s *Server) dialect() dialect {
	switch s.Kind {
	case policy.GitHub:
		return github{}
	case policy.Gitea:
		return gitea{}
	case policy.GitLab:
		return gitlab{}
	case policy.AzureDevOps:
		return azure{}
	}
	panic("forgetest: no such forge")
}

// ServeHTTP answers one request of the API.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(io.LimitReader(r.Body, 1<<20)) // what is missing is no JSON
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = append(s.asked, Asked{r.Method, r.URL.EscapedPath(), r.URL.Query(), r.Header.Clone(), string(body)})
	d := s.dialect()
	q := &request{Request: r, s: s, w: w, body: body}
	if len(s.faults) > 0 {
		q.fault, s.faults = s.faults[0], s.faults[1:]
	}
	if q.broken(d) {
		return
	}
	path, ok := strings.CutPrefix(r.URL.EscapedPath(), s.Base())
	repository, what, known := d.repository(path)
	var asked bool
	q.token, asked = d.token(r)
	q.rights, q.known = s.tokens[q.token]
	switch {
	case !asked:
		d.refuse(q, noToken)
	case !q.known:
		d.refuse(q, badToken)
	case !ok || !known || q.rights < Read || s.branches(repository) == nil:
		d.refuse(q, notFound)
	case what == "" && r.Method == http.MethodGet:
		q.json(http.StatusOK, map[string]any{"full_name": repository})
	case what == "" || r.Method != http.MethodPost && r.Method != http.MethodGet:
		d.refuse(q, notFound)
	case r.Method == http.MethodGet:
		d.list(q, repository)
	case q.rights < Write:
		d.refuse(q, noRights)
	case s.archived[repository]:
		d.refuse(q, archivedRepository)
	default:
		d.create(q, repository)
	}
}

// broken answers for a fault that does not depend on what was asked.
func (q *request) broken(d dialect) bool {
	switch q.fault {
	case RateLimited:
		d.refuse(q, rateLimit)
	case SecondaryLimit:
		q.w.Header().Set("Retry-After", "60")
		if q.s.Kind == policy.GitHub {
			q.json(http.StatusForbidden, map[string]string{
				"message":           "You have exceeded a secondary rate limit. Please wait a few minutes before you try again.",
				"documentation_url": "https://docs.github.com/rest/overview/rate-limits-for-the-rest-api#about-secondary-rate-limits",
			})
		} else {
			q.page(http.StatusTooManyRequests, "Retry later\n")
		}
	case ServerError:
		q.json(http.StatusInternalServerError, map[string]string{"message": "Internal Server Error"})
	case Maintenance:
		q.page(http.StatusServiceUnavailable, "<html>back soon</html>")
	case Moved:
		q.w.Header().Set("Location", "https://elsewhere.test"+q.URL.RequestURI())
		q.json(http.StatusTemporaryRedirect, map[string]string{"message": "Moved"})
	case SignIn:
		if q.s.Kind == policy.AzureDevOps {
			q.page(http.StatusNonAuthoritativeInfo, "<html>Azure DevOps Services | Sign In</html>")
		} else {
			d.refuse(q, badToken)
		}
	case NotJSON:
		q.page(http.StatusOK, "<html>welcome</html>")
	case TooLong:
		q.w.WriteHeader(http.StatusCreated)
		for range 6 << 20 / 4096 {
			_, _ = io.WriteString(q.w, strings.Repeat(" ", 4096)) // the client is meant to go
		}
	case EchoCredential:
		said := strings.Join(q.Header["Authorization"], " ") + strings.Join(q.Header["Private-Token"], " ")
		q.w.Header().Set("X-Echo", said)
		q.json(http.StatusUnprocessableEntity, map[string]any{"message": "Validation Failed: " + said, "typeKey": said, "errors": []map[string]string{{"code": "custom", "message": said}}})
	default:
		return false
	}
	return true
}

// branches returns a repository's branches, nil if there is no such repository.
func (s *Server) branches(repository string) map[string]string {
	if b, ok := s.repos[repository]; ok {
		return b
	}
	if s.Lookup != nil {
		if b, ok := s.Lookup(repository); ok && b != nil {
			return b
		}
	}
	return nil
}

// add opens a pull request. mu is held.
func (s *Server) add(p Pull) Pull {
	for _, other := range s.pulls {
		if other.Repository == p.Repository {
			p.Number = max(p.Number, other.Number)
		}
	}
	p.Number++
	s.pulls = append(s.pulls, p)
	return p
}

// same returns an open pull request for the same branches of the repository itself.
func (s *Server) same(p Pull) (Pull, bool) {
	for _, other := range s.pulls {
		if other.Repository == p.Repository && other.Head == p.Head && other.Base == p.Base && !other.Fork && !other.Merged {
			return other, true
		}
	}
	return Pull{}, false
}

// open returns the open pull requests of a repository that pass a filter, newest first, of one page.
func (q *request) open(repository, size, page string, limit int, pass func(Pull) bool) (pulls []Pull, more bool) {
	var all []Pull
	for _, p := range slices.Backward(q.s.pulls) {
		if p.Repository == repository && !p.Merged && pass(p) && q.fault != DuplicateHidden {
			all = append(all, p)
		}
	}
	n, err := strconv.Atoi(size)
	if err != nil || n < 1 {
		n = 30
	}
	if n = min(n, limit); q.s.PageSize > 0 {
		n = min(n, q.s.PageSize)
	}
	first, err := strconv.Atoi(page)
	if err != nil || first < 1 {
		first = 1
	}
	from := min((first-1)*n, len(all))
	to := min(from+n, len(all))
	return all[from:to], to < len(all)
}

// shown is the URL of a pull request's page, or what a lying server says in its place.
func (q *request) shown(path string) string {
	switch q.fault {
	case ForeignURL:
		return "https://evil.test" + path
	case CraftedURL:
		return q.s.Web + path + "?token=" + q.token + "\x1b[31m"
	}
	return q.s.Web + path
}

// number is the number of a pull request, or what a lying server says in its place.
func (q *request) number(n int) int {
	if q.fault == NoNumber {
		return 0
	}
	return n
}

// read reads a body of JSON into the fields of a form. All of the values must be strings, as all that is needed here is one.
func (q *request) read(d dialect) (map[string]string, bool) {
	var in map[string]any
	if err := json.Unmarshal(q.body, &in); err != nil || !strings.HasPrefix(q.Header.Get("Content-Type"), "application/json") {
		d.refuse(q, badJSON)
		return nil, false
	}
	form := map[string]string{}
	for name, v := range in {
		s, ok := v.(string)
		if !ok {
			d.refuse(q, badJSON)
			return nil, false
		}
		form[name] = s
	}
	return form, true
}

func (q *request) json(status int, v any) {
	q.w.Header().Set("Content-Type", "application/json; charset=utf-8")
	q.w.WriteHeader(status)
	_ = json.NewEncoder(q.w).Encode(v) // a client that is gone needs no answer
}

func (q *request) page(status int, text string) {
	q.w.Header().Set("Content-Type", "text/html; charset=utf-8")
	q.w.WriteHeader(status)
	_, _ = io.WriteString(q.w, text) // as above
}

// next writes the Link header of a page that others follow.
func (q *request) next(more bool, page string) {
	n, err := strconv.Atoi(page)
	if err != nil || n < 1 {
		n = 1
	}
	if !more {
		return
	}
	query := q.URL.Query()
	query.Set("page", strconv.Itoa(n+1))
	q.w.Header().Set("Link", fmt.Sprintf(`<%s%s?%s>; rel="next"`, q.s.Web, q.URL.EscapedPath(), query.Encode()))
}

// bearer takes a token from the schemes of Authorization that a forge takes.
func bearer(r *http.Request, schemes ...string) (string, bool) {
	scheme, token, ok := strings.Cut(r.Header.Get("Authorization"), " ")
	if !ok {
		return "", false
	}
	if strings.EqualFold(scheme, "basic") && slices.Contains(schemes, "basic") {
		_, password, ok := r.BasicAuth()
		return password, ok
	}
	return token, slices.Contains(schemes, strings.ToLower(scheme))
}

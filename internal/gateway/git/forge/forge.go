// Package forge (GATEWAY) opens pull requests: one request to GitHub, Gitea (Forgejo), GitLab or Azure DevOps in the words of each, and what its answer
// means. It dials nothing, decides nothing, records nothing and holds no credential: its caller sends the requests.
package forge

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/netname"
	"github.com/cofferdam/cofferdam/internal/policy"
)

const (
	maxAnswer = 4 << 20 // bytes; a pull request of GitHub has about 25 KB, a page of the list at most perPage of them
	perPage   = 50      // Gitea's own limit (MAX_RESPONSE_ITEMS); the others allow 100
	maxPages  = 20      // of the list of open pull requests
	maxNumber = 1 << 31 // of a pull request
	maxURL    = 512     // bytes of a pull request's URL
)

// Proposal is a branch to be merged into another one of the same repository. Title and Body may come from a program inside.
type Proposal struct {
	Repository string   // path at the upstream: owner/repo, group/subgroup/repo, organization/project/_git/repo
	Head, Base string   // branches, without refs/heads/
	Title      string   // made one line and cut to what every forge takes
	Body       string   // what the forge would take for a command is made harmless
	Web        *url.URL // the upstream itself, above all repositories; nil: what the address of the API says
}

// Opened is a pull request.
type Opened struct {
	URL      string // to look at it with a browser
	Number   int
	Existing bool // it was open before
}

// Doer sends a request for the API, after all that a crossing needs: a decision, a record, a credential. It must not follow redirects.
type Doer func(ctx context.Context, r *http.Request) (*http.Response, error)

// Open opens a pull request through the API at base, as in https://api.github.com, https://gitea.example.com/api/v1, https://gitlab.com/api/v4 or
// https://dev.azure.com. If one is open already for the same branches, that is returned.
//
// An error has a sentence for the outside, unless do's own error has one. What the forge says in words is in no part of it: an answer can
// echo what it was asked with.
func Open(ctx context.Context, do Doer, kind policy.ForgeType, base *url.URL, p Proposal) (Opened, error) {
	o := opening{do: do, base: base, Proposal: p, path: segments(p.Repository)}
	switch kind {
	case policy.GitHub:
		o.api = github{}
	case policy.Gitea:
		o.api = gitea{}
	case policy.GitLab:
		o.api = gitlab{}
	case policy.AzureDevOps:
		o.api = azure{}
	default:
		return Opened{}, fault.New(fault.Unsupported, "the upstream has no pull requests that could be opened from here").
			WithHint("give it its type: github, gitea, gitlab or azure")
	}
	if o.path == nil || !o.api.fits(o.path) {
		return Opened{}, fault.New(fault.Invalid, "%.80q is not the path of a repository there", p.Repository)
	}
	if !branch(p.Head) || !branch(p.Base) || p.Head == p.Base {
		return Opened{}, fault.New(fault.Invalid, "a pull request needs two branches, not %.80q and %.80q", p.Head, p.Base)
	}
	if o.Web == nil {
		o.Web = o.api.web(base)
	}
	o.Web = &url.URL{Host: strings.TrimSuffix(o.Web.Host, ":443"), Path: o.Web.Path}
	o.Title, o.Body = title(p.Title, p.Base), text(p.Body)
	return o.open(ctx)
}

// segments takes a repository's path apart, undoing percent-encoding. It is nil for what is no path.
func segments(path string) []string {
	var all []string
	for s := range strings.SplitSeq(path, "/") {
		s, err := url.PathUnescape(s)
		if err != nil || s == "" || s == "." || s == ".." || strings.ContainsAny(s, "/\\") || !shown(s) {
			return nil
		}
		all = append(all, s)
	}
	return all
}

// branch reports whether a name can be a branch's. Of the rules of git-check-ref-format(1) it has those that keep a name from meaning something else in
// an API: a colon there stands before another owner's branch.
func branch(name string) bool {
	return name != "" && len(name) <= 1024 && name[0] != '-' && name[0] != '/' && !strings.HasSuffix(name, "/") && !strings.Contains(name, "..") &&
		!strings.HasPrefix(name, "refs/") && !strings.ContainsAny(name, " ~^:?*[\\") && shown(name)
}

// api is one forge's dialect.
type api interface {
	// fits reports whether a path can be a repository's.
	fits(path []string) bool
	// web returns the address for browsers that belongs to an API's.
	web(base *url.URL) *url.URL
	// create returns the request that opens a pull request, list the one for a page, counted from 1, of those that are open.
	create(o *opening) call
	list(o *opening, page int) call
	// created reads the answer to create, and listed the one to list: the pull request for the same branches, and how many were on the page.
	created(body []byte) (found, bool)
	listed(o *opening, body []byte) (f found, size int, ok bool)
	// refused says what an answer other than success means, if it means something that its status alone does not say.
	refused(a answer) refusal
	// page returns the path of a pull request below web.
	page(o *opening, number int) string
}

// found is a pull request in an answer. number is 0 if there is none.
type found struct {
	number int64
	url    string
}

// opening is one proposal on its way.
type opening struct {
	Proposal
	do   Doer
	api  api
	base *url.URL
	path []string
}

func (o *opening) open(ctx context.Context) (Opened, error) {
	a, err := o.send(ctx, o.api.create(o))
	if err != nil {
		return Opened{}, err
	}
	if a.ok() {
		f, ok := o.api.created(a.body)
		if !ok || !f.valid() {
			return Opened{}, o.fault(unreadable, a)
		}
		return o.opened(f, false), nil
	}
	switch why := o.why(a); why {
	case exists:
		return o.existing(ctx, a)
	case missing:
		if o.seen(ctx) {
			why = branchMissing
		}
		return Opened{}, o.fault(why, a)
	default:
		return Opened{}, o.fault(why, a)
	}
}

// existing looks for the pull request that is open already.
func (o *opening) existing(ctx context.Context, created answer) (Opened, error) {
	for page := 1; page <= maxPages; page++ {
		a, err := o.send(ctx, o.api.list(o, page))
		if err != nil {
			return Opened{}, err
		}
		if !a.ok() {
			return Opened{}, o.fault(o.why(a), a)
		}
		f, size, ok := o.api.listed(o, a.body)
		switch {
		case !ok:
			return Opened{}, o.fault(unreadable, a)
		case f.valid():
			return o.opened(f, true), nil
		case size == 0:
			return Opened{}, o.fault(exists, created)
		}
	}
	return Opened{}, o.fault(exists, created)
}

// seen reports whether the forge shows the repository, where its answer leaves open whether that or a branch is missing.
func (o *opening) seen(ctx context.Context) bool {
	asks, ok := o.api.(interface{ repository(o *opening) call })
	if !ok {
		return false
	}
	a, err := o.send(ctx, asks.repository(o))
	return err == nil && a.ok()
}

func (f found) valid() bool { return 0 < f.number && f.number < maxNumber }

// opened makes the result. The forge's own URL is taken if it is the forge's page for this number, in whatever letters it writes the repository;
// else the URL is made from the number.
func (o *opening) opened(f found, existing bool) Opened {
	own := url.URL{Scheme: "https", Host: o.Web.Host, Path: strings.TrimSuffix(o.Web.Path, "/") + o.api.page(o, int(f.number))}
	r := Opened{URL: own.String(), Number: int(f.number), Existing: existing}
	if theirs, err := url.Parse(f.url); err == nil && o.page(theirs, own.EscapedPath(), f.url) {
		r.URL = f.url
	}
	return r
}

// page reports whether a URL of the forge is one of its own web host, spelled in the one canonical way, and of a pull request as own is.
func (o *opening) page(u *url.URL, own, raw string) bool {
	path, err := netname.NormalisePath(u.EscapedPath())
	if err != nil || len(raw) > maxURL || u.Scheme != "https" || u.Host != o.Web.Host || u.String() != raw || raw != "https://"+u.Host+path.String() {
		return false
	}
	theirs, ours := strings.Split(path.String(), "/"), strings.Split(own, "/")
	if len(theirs) < 2 || len(theirs) != len(ours) {
		return false
	}
	for i := range ours {
		if name := i < len(ours)-2; !strings.EqualFold(theirs[i], ours[i]) || !name && theirs[i] != ours[i] {
			return false
		}
	}
	return true
}

// fault is the error for a refusal.
func (o *opening) fault(why refusal, a answer) error {
	f := why.fault(o, a)
	return f.Because(fmt.Errorf("%s %s: status %d", a.call.method, a.call.path, a.status))
}

package forge

import (
	"net/http"
	"net/url"
	"strconv"
	"strings"
)

// gitea speaks the API of Gitea and Forgejo. Source: go-gitea/gitea v1.26.0, templates/swagger/v1_json.tmpl, operations repoCreatePullRequest,
// repoListPullRequests and repoGet.
type gitea struct{}

func (gitea) fits(path []string) bool { return len(path) == 2 }

func (gitea) web(base *url.URL) *url.URL {
	return &url.URL{Host: base.Host, Path: strings.TrimSuffix(strings.TrimSuffix(base.Path, "/"), "/api/v1")}
}

// repository asks for the repository itself: a missing branch and a missing repository are answered alike, with 404.
func (gitea) repository(o *opening) call {
	return call{method: http.MethodGet, path: "/repos/" + escape(o.path...)}
}

func (gitea) create(o *opening) call {
	return call{
		method: http.MethodPost, path: "/repos/" + escape(o.path...) + "/pulls",
		body: map[string]string{"title": o.Title, "head": o.Head, "base": o.Base, "body": o.Body},
	}
}

// list asks for all that are open against the branch, or for all that are open where a version does not know base_branch.
func (gitea) list(o *opening, page int) call {
	return call{
		method: http.MethodGet, path: "/repos/" + escape(o.path...) + "/pulls",
		query: url.Values{"state": {"open"}, "base_branch": {o.Base}, "sort": {"recentupdate"}, "limit": {strconv.Itoa(perPage)}, "page": {strconv.Itoa(page)}},
	}
}

func (gitea) created(body []byte) (found, bool) { return github{}.created(body) }

func (gitea) listed(o *opening, body []byte) (found, int, bool) { return github{}.listed(o, body) }

func (gitea) refused(a answer) refusal {
	if a.status == http.StatusConflict {
		return exists
	}
	return unclear
}

func (gitea) page(o *opening, number int) string {
	return "/" + strings.Join(o.path, "/") + "/pulls/" + strconv.Itoa(number)
}

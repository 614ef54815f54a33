package forge

import (
	"encoding/json"
	"net/http"
	"net/url"
	"strconv"
	"strings"
)

// github speaks GitHub's REST API. Source: github/rest-api-description, version 2022-11-28, operations pulls/create and pulls/list.
type github struct{}

func (github) fits(path []string) bool { return len(path) == 2 }

// web undoes what separates API and pages: api.github.com and api.NAME.ghe.com have hosts of their own, a server of a company has /api/v3.
func (github) web(base *url.URL) *url.URL {
	if path, own := strings.CutSuffix(strings.TrimSuffix(base.Path, "/"), "/api/v3"); own {
		return &url.URL{Host: base.Host, Path: path}
	}
	return &url.URL{Host: strings.TrimPrefix(base.Host, "api.")}
}

func (g github) call(o *opening, method string) call {
	return call{
		method: method, path: "/repos/" + escape(o.path...) + "/pulls",
		header: map[string]string{"Accept": "application/vnd.github+json", "X-GitHub-Api-Version": "2022-11-28"},
	}
}

func (g github) create(o *opening) call {
	c := g.call(o, http.MethodPost)
	c.body = map[string]string{"title": o.Title, "head": o.Head, "base": o.Base, "body": o.Body}
	return c
}

func (g github) list(o *opening, page int) call {
	c := g.call(o, http.MethodGet)
	c.query = url.Values{"state": {"open"}, "head": {o.path[0] + ":" + o.Head}, "base": {o.Base}, "per_page": {strconv.Itoa(perPage)}, "page": {strconv.Itoa(page)}}
	return c
}

// githubPull is a pull request in answers of GitHub and of Gitea, which has the same names.
type githubPull struct {
	Number  int64        `json:"number"`
	HTMLURL string       `json:"html_url"`
	State   string       `json:"state"`
	Head    githubBranch `json:"head"`
	Base    githubBranch `json:"base"`
}

type githubBranch struct {
	Ref  string `json:"ref"`
	Repo *struct {
		FullName string `json:"full_name"`
	} `json:"repo"` // null where a fork was deleted
}

// of reports whether the branch is this one of this repository: forks have branches of the same name. Names of repositories are the same in
// any letters.
func (b githubBranch) of(o *opening, name string) bool {
	return b.Ref == name && b.Repo != nil && strings.EqualFold(b.Repo.FullName, strings.Join(o.path, "/"))
}

func (github) created(body []byte) (found, bool) {
	var p githubPull
	err := json.Unmarshal(body, &p)
	return found{p.Number, p.HTMLURL}, err == nil
}

func (github) listed(o *opening, body []byte) (found, int, bool) {
	var all []githubPull
	if json.Unmarshal(body, &all) != nil {
		return found{}, 0, false
	}
	for _, p := range all {
		if p.State == "open" && p.Head.of(o, o.Head) && p.Base.of(o, o.Base) {
			return found{p.Number, p.HTMLURL}, len(all), true
		}
	}
	return found{}, len(all), true
}

func (github) refused(a answer) refusal {
	var said struct {
		Message string `json:"message"`
		Errors  []struct {
			Field   string `json:"field"`
			Code    string `json:"code"`
			Message string `json:"message"`
		} `json:"errors"`
	}
	_ = json.Unmarshal(a.body, &said) // without, the status alone counts
	switch a.status {
	case http.StatusForbidden, http.StatusTooManyRequests:
		// docs.github.com, "Rate limits for the REST API": 403 or 429, and either header.
		if a.header.Get("X-Ratelimit-Remaining") == "0" || a.header.Get("Retry-After") != "" || strings.Contains(said.Message, "secondary rate limit") {
			return limited
		}
		if strings.HasPrefix(said.Message, "Repository was archived") {
			return archived
		}
	case http.StatusUnprocessableEntity:
		for _, e := range said.Errors {
			switch {
			case e.Field == "base" && e.Code == "invalid":
				return baseMissing
			case e.Field == "head" && e.Code == "invalid":
				return headMissing
			case strings.HasPrefix(e.Message, "A pull request already exists for "):
				return exists
			case strings.HasPrefix(e.Message, "No commits between "):
				return nothing
			}
		}
	}
	return unclear
}

func (github) page(o *opening, number int) string {
	return "/" + strings.Join(o.path, "/") + "/pull/" + strconv.Itoa(number)
}

// escape writes names as segments of a path.
func escape(names ...string) string {
	all := make([]string, len(names))
	for i, s := range names {
		all[i] = url.PathEscape(s)
	}
	return strings.Join(all, "/")
}

package forge

import (
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// azure speaks the REST API of Azure DevOps. Source: MicrosoftDocs/vsts-rest-api-specs, specification/git/7.1/git.json and its examples.
type azure struct{}

const heads = "refs/heads/"

// fits reports whether a path has a project, if it needs one, the marker _git, and a repository.
func (azure) fits(path []string) bool {
	return len(path) >= 2 && path[len(path)-2] == "_git" && slices.Index(path, "_git") == len(path)-2
}

func (azure) web(base *url.URL) *url.URL {
	return &url.URL{Host: base.Host, Path: strings.TrimSuffix(base.Path, "/")}
}

// path names a repository within its project. A repository with its project's name may be written without the project:
// https://dev.azure.com/ORGANIZATION/_git/REPOSITORY, https://ORGANIZATION.visualstudio.com/_git/REPOSITORY.
func (azure) path(o *opening) string {
	above, name := o.path[:len(o.path)-2], o.path[len(o.path)-1]
	depth := len(above) + strings.Count(strings.TrimSuffix(o.base.Path, "/"), "/")
	host := o.base.Hostname()
	if host == "dev.azure.com" && depth == 1 || strings.HasSuffix(host, ".visualstudio.com") && depth == 0 {
		above = append(slices.Clone(above), name)
	}
	return "/" + strings.TrimPrefix(escape(above...)+"/_apis/git/repositories/"+url.PathEscape(name)+"/pullrequests", "/")
}

func (z azure) create(o *opening) call {
	return call{
		method: http.MethodPost, path: z.path(o), query: url.Values{"api-version": {"7.1"}},
		body: map[string]string{"sourceRefName": heads + o.Head, "targetRefName": heads + o.Base, "title": o.Title, "description": cut(o.Body, maxBodyAzure)},
	}
}

func (z azure) list(o *opening, page int) call {
	return call{method: http.MethodGet, path: z.path(o), query: url.Values{
		"api-version": {"7.1"}, "searchCriteria.status": {"active"}, "searchCriteria.sourceRefName": {heads + o.Head},
		"searchCriteria.targetRefName": {heads + o.Base}, "$top": {strconv.Itoa(perPage)}, "$skip": {strconv.Itoa((page - 1) * perPage)},
	}}
}

// azurePull is a pull request in an answer. Its url is the API's; the page's is made from the number.
type azurePull struct {
	ID     int64           `json:"pullRequestId"`
	Status string          `json:"status"`
	Source string          `json:"sourceRefName"`
	Target string          `json:"targetRefName"`
	Fork   json.RawMessage `json:"forkSource"` // only where it comes from a fork
}

func (azure) created(body []byte) (found, bool) {
	var p azurePull
	err := json.Unmarshal(body, &p)
	return found{number: p.ID}, err == nil
}

func (azure) listed(o *opening, body []byte) (found, int, bool) {
	var all struct {
		Value []azurePull `json:"value"`
	}
	if json.Unmarshal(body, &all) != nil || all.Value == nil {
		return found{}, 0, false
	}
	for _, p := range all.Value {
		own := len(p.Fork) == 0 || string(p.Fork) == "null"
		if own && p.Status == "active" && p.Source == heads+o.Head && p.Target == heads+o.Base {
			return found{number: p.ID}, len(all.Value), true
		}
	}
	return found{}, len(all.Value), true
}

func (azure) refused(a answer) refusal {
	var said struct {
		Message string `json:"message"`
		TypeKey string `json:"typeKey"`
	}
	_ = json.Unmarshal(a.body, &said) // without, the status alone counts
	switch {
	case a.status == http.StatusNonAuthoritativeInfo || a.status == http.StatusFound: // the page for signing in, or the way to it
		return unauthenticated
	case said.TypeKey == "GitPullRequestExistsException":
		return exists
	case strings.HasPrefix(said.Message, "TF401398:"): // "… because the source and/or the target branch no longer exists"
		return branchMissing
	}
	return unclear
}

func (azure) page(o *opening, number int) string {
	return "/" + strings.Join(o.path, "/") + "/pullrequest/" + strconv.Itoa(number)
}

package forge

import (
	"encoding/json"
	"net/http"
	"net/url"
	"strconv"
	"strings"
)

// gitlab speaks GitLab's REST API. Source: GitLab, doc/api/merge_requests.md, lib/api/merge_requests.rb.
type gitlab struct{}

func (gitlab) fits(path []string) bool { return len(path) >= 2 }

func (gitlab) web(base *url.URL) *url.URL {
	return &url.URL{Host: base.Host, Path: strings.TrimSuffix(strings.TrimSuffix(base.Path, "/"), "/api/v4")}
}

// path names a project by its whole path as one segment.
func (gitlab) path(o *opening) string {
	return "/projects/" + url.PathEscape(strings.Join(o.path, "/")) + "/merge_requests"
}

func (g gitlab) create(o *opening) call {
	return call{method: http.MethodPost, path: g.path(o), body: map[string]string{
		"title": o.Title, "source_branch": o.Head, "target_branch": o.Base, "description": uncommanded(o.Body),
	}}
}

func (g gitlab) list(o *opening, page int) call {
	return call{method: http.MethodGet, path: g.path(o), query: url.Values{
		"state": {"opened"}, "scope": {"all"}, "source_branch": {o.Head}, "target_branch": {o.Base}, "per_page": {strconv.Itoa(perPage)}, "page": {strconv.Itoa(page)},
	}}
}

// mergeRequest is a merge request in an answer. Its number on pages is iid; id counts those of the whole server.
type mergeRequest struct {
	IID    int64  `json:"iid"`
	WebURL string `json:"web_url"`
	State  string `json:"state"`
	Source string `json:"source_branch"`
	Target string `json:"target_branch"`
	From   int64  `json:"source_project_id"`
	To     int64  `json:"target_project_id"`
}

func (gitlab) created(body []byte) (found, bool) {
	var m mergeRequest
	err := json.Unmarshal(body, &m)
	return found{m.IID, m.WebURL}, err == nil
}

func (gitlab) listed(o *opening, body []byte) (found, int, bool) {
	var all []mergeRequest
	if json.Unmarshal(body, &all) != nil {
		return found{}, 0, false
	}
	for _, m := range all {
		if m.State == "opened" && m.Source == o.Head && m.Target == o.Base && m.From == m.To { // forks have branches of the same name
			return found{m.IID, m.WebURL}, len(all), true
		}
	}
	return found{}, len(all), true
}

func (gitlab) refused(a answer) refusal {
	switch a.status {
	case http.StatusConflict: // "Another open merge request already exists for this source branch: !1", the only conflict that create has
		return exists
	case http.StatusBadRequest: // validations, by field: {"message":{"target_branch":["does not exist"]}}
		var said struct {
			Message map[string]json.RawMessage `json:"message"`
		}
		if json.Unmarshal(a.body, &said) != nil {
			return unclear
		}
		if said.Message["target_branch"] != nil {
			return baseMissing
		}
		if said.Message["source_branch"] != nil {
			return headMissing
		}
	}
	return unclear
}

func (gitlab) page(o *opening, number int) string {
	return "/" + strings.Join(o.path, "/") + "/-/merge_requests/" + strconv.Itoa(number)
}

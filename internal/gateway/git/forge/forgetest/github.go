package forgetest

import (
	"fmt"
	"net/http"
	"strings"
)

// github answers as GitHub does. Sources: github/rest-api-description (pulls/create, pulls/list, validation-error, version 2022-11-28);
// docs.github.com: "Rate limits for the REST API", "Troubleshooting the REST API", "Getting started with the REST API".
type github struct{}

func (github) token(r *http.Request) (string, bool) { return bearer(r, "bearer", "token", "basic") }

func (github) repository(path string) (string, string, bool) {
	part := strings.Split(strings.TrimPrefix(path, "/api/v3"), "/")
	if len(part) == 5 && part[1] == "repos" && part[4] == "pulls" {
		return part[2] + "/" + part[3], "pulls", true
	}
	return "", "", false
}

func (github) refuse(q *request, why refusal) {
	say := func(status int, message string) {
		q.json(status, map[string]string{"message": message, "documentation_url": "https://docs.github.com/rest/pulls/pulls", "status": fmt.Sprint(status)})
	}
	q.w.Header().Set("X-Ratelimit-Limit", "5000")
	q.w.Header().Set("X-Ratelimit-Remaining", "4999")
	switch why {
	case noToken:
		say(http.StatusUnauthorized, "Requires authentication")
	case badToken:
		say(http.StatusUnauthorized, "Bad credentials")
	case noRights:
		say(http.StatusForbidden, "Resource not accessible by personal access token")
	case notFound:
		say(http.StatusNotFound, "Not Found")
	case rateLimit:
		q.w.Header().Set("X-Ratelimit-Remaining", "0")
		q.w.Header().Set("X-Ratelimit-Reset", "1893456000")
		say(http.StatusForbidden, "API rate limit exceeded for user ID 1.")
	case archivedRepository:
		say(http.StatusForbidden, "Repository was archived so is read-only.")
	case badJSON:
		say(http.StatusBadRequest, "Problems parsing JSON")
	}
}

// odd answers what GitHub says of requests that are odd in their headers.
func (g github) odd(q *request) bool {
	if q.UserAgent() == "" {
		q.page(http.StatusForbidden, "Request forbidden by administrative rules. Please make sure your request has a User-Agent header.\n")
		return true
	}
	if v := q.Header.Get("X-Github-Api-Version"); v != "" && v != "2022-11-28" && v != "2026-03-10" {
		q.json(http.StatusBadRequest, map[string]string{"message": "Invalid API version", "documentation_url": "https://docs.github.com/rest/overview/api-versions"})
		return true
	}
	return false
}

func (g github) create(q *request, repository string) {
	if g.odd(q) {
		return
	}
	form, ok := q.read(g)
	if !ok {
		return
	}
	owner, _, _ := strings.Cut(repository, "/")
	branches := q.s.branches(repository)
	p := Pull{Repository: repository, Head: strings.TrimPrefix(form["head"], owner+":"), Base: form["base"], Title: form["title"], Body: form["body"]}
	var wrong []map[string]string
	add := func(field, code, message string) {
		e := map[string]string{"resource": "PullRequest", "code": code}
		if field != "" {
			e["field"] = field
		}
		if message != "" {
			e["message"] = message
		}
		wrong = append(wrong, e)
	}
	for _, field := range []string{"title", "head", "base"} {
		if form[field] == "" {
			add(field, "missing_field", "")
		}
	}
	if len(wrong) == 0 {
		head, hasHead := branches[p.Head]
		base, hasBase := branches[p.Base]
		_, exists := q.s.same(p)
		switch {
		case !hasBase:
			add("base", "invalid", "")
		case !hasHead:
			add("head", "invalid", "")
		case exists || q.fault == DuplicateHidden:
			add("", "custom", "A pull request already exists for "+owner+":"+p.Head+".")
		case head == base:
			add("", "custom", "No commits between "+p.Base+" and "+p.Head)
		case len([]rune(p.Title)) > 256:
			add("title", "custom", "title is too long (maximum is 256 characters)")
		case len([]rune(p.Body)) > 65536:
			add("body", "custom", "body is too long (maximum is 65536 characters)")
		}
	}
	if len(wrong) > 0 {
		q.json(http.StatusUnprocessableEntity, map[string]any{
			"message": "Validation Failed", "errors": wrong, "documentation_url": "https://docs.github.com/rest/pulls/pulls#create-a-pull-request", "status": "422",
		})
		return
	}
	p = q.s.add(p)
	q.w.Header().Set("Location", fmt.Sprintf("https://api.github.com/repos/%s/pulls/%d", repository, p.Number))
	q.json(http.StatusCreated, g.pull(q, p))
}

func (g github) list(q *request, repository string) {
	if g.odd(q) {
		return
	}
	query := q.URL.Query()
	owner, _, _ := strings.Cut(repository, "/")
	pulls, more := q.open(repository, query.Get("per_page"), query.Get("page"), 100, func(p Pull) bool {
		user, head, named := strings.Cut(query.Get("head"), ":")
		// A head without a user is no filter. A fork of another owner is under that owner's name, and a fork of the same owner is not.
		return (!named || user == owner && head == p.Head) && (query.Get("base") == "" || query.Get("base") == p.Base)
	})
	all := []any{}
	for _, p := range pulls {
		all = append(all, g.pull(q, p))
	}
	q.next(more, query.Get("page"))
	q.json(http.StatusOK, all)
}

func (github) pull(q *request, p Pull) map[string]any {
	owner, name, _ := strings.Cut(p.Repository, "/")
	side := func(branch, full string) map[string]any {
		return map[string]any{
			"label": owner + ":" + branch, "ref": branch, "sha": q.s.branches(p.Repository)[branch],
			"repo": map[string]any{"id": 1296269, "name": name, "full_name": full, "owner": map[string]any{"login": owner, "id": 1}},
		}
	}
	from := p.Repository
	if p.Fork {
		from = owner + "/" + name + "-fork"
	}
	return map[string]any{
		"url": fmt.Sprintf("https://api.github.com/repos/%s/pulls/%d", p.Repository, p.Number), "id": 1000 + p.Number, "number": q.number(p.Number),
		"html_url": q.shown(fmt.Sprintf("/%s/pull/%d", p.Repository, p.Number)), "state": "open", "title": p.Title, "body": p.Body, "draft": false,
		"user": map[string]any{"login": "octocat", "id": 1}, "head": side(p.Head, from), "base": side(p.Base, p.Repository),
	}
}

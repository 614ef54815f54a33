package forgetest

import (
	"fmt"
	"net/http"
	"strings"
)

// gitea answers as Gitea does, and Forgejo. Source: go-gitea/gitea v1.26.0, templates/swagger/v1_json.tmpl (repoCreatePullRequest, repoListPullRequests,
// repoGet), routers/api/v1/repo/pull.go, routers/api/v1/api.go, models/issues/pull.go.
type gitea struct{}

func (gitea) token(r *http.Request) (string, bool) { return bearer(r, "bearer", "token", "basic") }

func (gitea) repository(path string) (string, string, bool) {
	part := strings.Split(path, "/")
	switch {
	case len(part) == 4 && part[1] == "repos":
		return part[2] + "/" + part[3], "", true
	case len(part) == 5 && part[1] == "repos" && part[4] == "pulls":
		return part[2] + "/" + part[3], "pulls", true
	}
	return "", "", false
}

func (gitea) say(q *request, status int, message string) {
	q.json(status, map[string]string{"message": message, "url": q.s.Web + "/api/swagger"})
}

func (g gitea) refuse(q *request, why refusal) {
	switch why {
	case noToken:
		g.say(q, http.StatusUnauthorized, "token is required")
	case badToken:
		g.say(q, http.StatusUnauthorized, "invalid username, password or token")
	case noRights:
		g.say(q, http.StatusForbidden, "token does not have at least one of required scope(s), required=[write:repository], token scope=read:repository")
	case notFound:
		q.json(http.StatusNotFound, map[string]any{"errors": nil, "message": "not found", "url": q.s.Web + "/api/swagger"})
	case rateLimit: // Gitea has no limit of its own: a proxy in front of it
		q.w.Header().Set("Retry-After", "30")
		q.page(http.StatusTooManyRequests, "<html>429 Too Many Requests</html>")
	case archivedRepository:
		g.say(q, http.StatusLocked, "the repository is archived")
	case badJSON:
		g.say(q, http.StatusUnprocessableEntity, "[]: EOF")
	}
}

func (g gitea) create(q *request, repository string) {
	form, ok := q.read(g)
	if !ok {
		return
	}
	p := Pull{Repository: repository, Head: form["head"], Base: form["base"], Title: form["title"], Body: form["body"]}
	for _, field := range []struct{ name, value string }{{"Head", p.Head}, {"Base", p.Base}, {"Title", p.Title}} {
		if field.value == "" {
			g.say(q, http.StatusUnprocessableEntity, "["+field.name+"]: Required")
			return
		}
	}
	if p.Head == p.Base {
		g.say(q, http.StatusUnprocessableEntity, "Invalid PullRequest: There are no changes between the head and the base")
		return
	}
	branches := q.s.branches(repository)
	if branches[p.Head] == "" || branches[p.Base] == "" {
		g.refuse(q, notFound)
		return
	}
	if other, exists := q.s.same(p); exists || q.fault == DuplicateHidden {
		g.say(q, http.StatusConflict, fmt.Sprintf("pull request already exists for these targets [id: %d, issue_id: %d, head_repo_id: 1, base_repo_id: 1, head_branch: %s, base_branch: %s]",
			100+other.Number, other.Number, p.Head, p.Base))
		return
	}
	q.json(http.StatusCreated, g.pull(q, q.s.add(p)))
}

func (g gitea) list(q *request, repository string) {
	query := q.URL.Query()
	pulls, more := q.open(repository, query.Get("limit"), query.Get("page"), 50, func(p Pull) bool {
		return query.Get("base_branch") == "" || query.Get("base_branch") == p.Base
	})
	all := []any{}
	for _, p := range pulls {
		all = append(all, g.pull(q, p))
	}
	q.next(more, query.Get("page"))
	q.w.Header().Set("X-Total-Count", fmt.Sprint(len(q.s.pulls)))
	q.json(http.StatusOK, all)
}

func (gitea) pull(q *request, p Pull) map[string]any {
	owner, name, _ := strings.Cut(p.Repository, "/")
	side := func(branch, full string, id int) map[string]any {
		return map[string]any{
			"label": branch, "ref": branch, "sha": q.s.branches(p.Repository)[branch], "repo_id": id,
			"repo": map[string]any{"id": id, "name": name, "full_name": full, "owner": map[string]any{"login": owner, "id": 1}},
		}
	}
	from, id := p.Repository, 1
	if p.Fork {
		from, id = "someone/"+name, 2
	}
	page := q.shown(fmt.Sprintf("/%s/pulls/%d", p.Repository, p.Number))
	return map[string]any{
		"id": 100 + p.Number, "url": page, "number": q.number(p.Number), "html_url": page, "state": "open", "title": p.Title, "body": p.Body, "merged": false,
		"user": map[string]any{"login": "somebody", "id": 1}, "head": side(p.Head, from, id), "base": side(p.Base, p.Repository, 1),
	}
}

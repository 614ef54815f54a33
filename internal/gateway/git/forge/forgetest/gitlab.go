package forgetest

import (
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"
)

// gitlab answers as GitLab does. Sources: GitLab, doc/api/merge_requests.md, doc/api/rest/, lib/api/merge_requests.rb, doc/user/project/quick_actions.md.
type gitlab struct{}

func (gitlab) token(r *http.Request) (string, bool) {
	if t := r.Header.Get("Private-Token"); t != "" {
		return t, true
	}
	return bearer(r, "bearer")
}

func (gitlab) repository(path string) (string, string, bool) {
	part := strings.Split(path, "/")
	if len(part) != 4 || part[1] != "projects" || part[3] != "merge_requests" || strings.Contains(part[2], "%2f") {
		return "", "", false
	}
	name, err := url.PathUnescape(part[2])
	return name, "merge_requests", err == nil && strings.Contains(name, "/")
}

func (gitlab) refuse(q *request, why refusal) {
	say := func(status int, message string) { q.json(status, map[string]string{"message": message}) }
	switch why {
	case noToken, badToken:
		say(http.StatusUnauthorized, "401 Unauthorized")
	case noRights, archivedRepository:
		say(http.StatusForbidden, "403 Forbidden")
	case notFound:
		say(http.StatusNotFound, "404 Project Not Found")
	case rateLimit:
		q.w.Header().Set("Retry-After", "30")
		q.w.Header().Set("RateLimit-Remaining", "0")
		q.page(http.StatusTooManyRequests, "Retry later\n")
	case badJSON:
		q.json(http.StatusBadRequest, map[string]string{"error": "The provided content-type or body is invalid"})
	}
}

// quick is a command in a description.
var quick = regexp.MustCompile(`(?m)^[^\S\r\n]*/(merge|approve|assign_reviewer|close)\b`)

func (g gitlab) create(q *request, repository string) {
	form, ok := q.read(g)
	if !ok {
		return
	}
	var missing []string
	for _, field := range []string{"title", "source_branch", "target_branch"} {
		if form[field] == "" {
			missing = append(missing, field+" is missing")
		}
	}
	if missing != nil {
		q.json(http.StatusBadRequest, map[string]string{"error": strings.Join(missing, ", ")})
		return
	}
	p := Pull{Repository: repository, Head: form["source_branch"], Base: form["target_branch"], Title: form["title"], Body: form["description"]}
	branches := q.s.branches(repository)
	wrong := func(field, what string) {
		q.json(http.StatusBadRequest, map[string]any{"message": map[string][]string{field: {what}}})
	}
	other, exists := q.s.same(p)
	switch {
	case len([]rune(p.Title)) > 255:
		wrong("title", "is too long (maximum is 255 characters)")
		return
	case branches[p.Head] == "":
		wrong("source_branch", "does not exist")
		return
	case branches[p.Base] == "":
		wrong("target_branch", "does not exist")
		return
	case exists || q.fault == DuplicateHidden:
		q.json(http.StatusConflict, map[string]any{"message": []string{fmt.Sprintf("Another open merge request already exists for this source branch: !%d", other.Number)}})
		return
	}
	p.Merged = quick.MatchString(p.Body) // with the rights of who opened it
	q.json(http.StatusCreated, g.pull(q, q.s.add(p)))
}

func (g gitlab) list(q *request, repository string) {
	query := q.URL.Query()
	match := func(name, value string) bool { return query.Get(name) == "" || query.Get(name) == value }
	pulls, more := q.open(repository, query.Get("per_page"), query.Get("page"), 100, func(p Pull) bool {
		return match("source_branch", p.Head) && match("target_branch", p.Base)
	})
	all := []any{}
	for _, p := range pulls {
		all = append(all, g.pull(q, p))
	}
	q.next(more, query.Get("page"))
	q.json(http.StatusOK, all)
}

func (gitlab) pull(q *request, p Pull) map[string]any {
	state, from := "opened", 3
	if p.Merged {
		state = "merged"
	}
	if p.Fork {
		from = 4
	}
	return map[string]any{
		"id": 100 + p.Number, "iid": q.number(p.Number), "project_id": 3, "title": p.Title, "description": p.Body, "state": state,
		"target_branch": p.Base, "source_branch": p.Head, "source_project_id": from, "target_project_id": 3,
		"web_url": q.shown(fmt.Sprintf("/%s/-/merge_requests/%d", p.Repository, p.Number)), "author": map[string]any{"id": 1, "username": "somebody"},
		"references": map[string]string{"short": fmt.Sprintf("!%d", p.Number), "full": fmt.Sprintf("%s!%d", p.Repository, p.Number)},
	}
}

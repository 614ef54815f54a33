package forgetest

import (
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
)

// azure answers as Azure DevOps does. Sources: MicrosoftDocs/vsts-rest-api-specs, specification/git/7.1/git.json (Pull Requests_Create, Pull
// Requests_Get Pull Requests, securityDefinitions) and its examples; statuses of exceptions as the service's own table has them.
type azure struct{}

func (azure) token(r *http.Request) (string, bool) { return bearer(r, "bearer", "basic") }

func (azure) repository(path string) (string, string, bool) {
	above, below, ok := strings.Cut(path, "/_apis/git/repositories/")
	name, what, pulls := strings.Cut(below, "/")
	if !ok || !pulls || !strings.EqualFold(what, "pullrequests") {
		return "", "", false
	}
	whole, err := url.PathUnescape(strings.TrimPrefix(above, "/") + "/_git/" + name)
	return whole, "pullrequests", err == nil
}

// say writes an exception of the service.
func (azure) say(q *request, status int, namespace, key, message string) {
	q.json(status, map[string]any{
		"$id": "1", "innerException": nil, "message": message, "typeName": namespace + "." + key + ", " + namespace, "typeKey": key, "errorCode": 0, "eventId": 3000,
	})
}

const gitServer = "Microsoft.TeamFoundation.Git.Server"

func (z azure) refuse(q *request, why refusal) {
	switch why {
	case noToken:
		q.w.Header().Set("Location", q.s.Web+"/_signin")
		q.page(http.StatusFound, "<html>Object moved</html>")
	case badToken:
		q.page(http.StatusUnauthorized, "")
	case noRights:
		z.say(q, http.StatusForbidden, gitServer, "GitNeedsPermissionException", "TF401027: You need the Git 'PullRequestContribute' permission to perform this action.")
	case notFound:
		z.say(q, http.StatusNotFound, gitServer, "GitRepositoryNotFoundException",
			"TF401019: The Git repository with name or identifier does not exist or you do not have permissions for the operation you are attempting.")
	case rateLimit:
		q.w.Header().Set("Retry-After", "30")
		q.w.Header().Set("X-Ratelimit-Remaining", "0")
		q.page(http.StatusTooManyRequests, "")
	case archivedRepository:
		z.say(q, http.StatusForbidden, gitServer, "GitRepositoryDisabledException", "The repository is disabled.")
	case badJSON:
		z.say(q, http.StatusBadRequest, "Microsoft.VisualStudio.Services.WebApi", "InvalidArgumentValueException", "The body of the request contains invalid JSON.")
	}
}

// versioned answers a request without the version of the API, which is required.
func (z azure) versioned(q *request) bool {
	if v := q.URL.Query().Get("api-version"); v == "" && !strings.Contains(q.Header.Get("Accept"), "api-version=") {
		z.say(q, http.StatusBadRequest, "Microsoft.VisualStudio.Services.WebApi", "VssVersionNotSpecifiedException", `No api-version was supplied for the "`+q.Method+`" request.`)
		return false
	}
	return true
}

func (z azure) create(q *request, repository string) {
	if !z.versioned(q) {
		return
	}
	form, ok := q.read(z)
	if !ok {
		return
	}
	invalid := func(message string) {
		z.say(q, http.StatusBadRequest, gitServer, "InvalidArgumentValueException", message)
	}
	head, fullHead := strings.CutPrefix(form["sourceRefName"], "refs/heads/")
	base, fullBase := strings.CutPrefix(form["targetRefName"], "refs/heads/")
	p := Pull{Repository: repository, Head: head, Base: base, Title: form["title"], Body: form["description"]}
	_, exists := q.s.same(p)
	branches := q.s.branches(repository)
	switch {
	case !fullHead || !fullBase:
		invalid("TF401021: The reference name must start with refs/heads/.")
	case p.Title == "" || len([]rune(p.Title)) > 400:
		invalid("The title of a pull request is required and has at most 400 characters.")
	case len([]rune(p.Body)) > 4000:
		invalid("The description of a pull request has at most 4000 characters.")
	case branches[head] == "" || branches[base] == "":
		z.say(q, http.StatusBadRequest, gitServer, "GitPullRequestCannotBeActivated",
			"TF401398: The pull request cannot be activated because the source and/or the target branch no longer exists, or the requested change is not allowed.")
	case exists || q.fault == DuplicateHidden:
		z.say(q, http.StatusConflict, gitServer, "GitPullRequestExistsException", "TF401179: An active pull request for the source and target branch already exists.")
	default:
		q.json(http.StatusCreated, z.pull(q, q.s.add(p)))
	}
}

func (z azure) list(q *request, repository string) {
	if !z.versioned(q) {
		return
	}
	query := q.URL.Query()
	match := func(name, branch string) bool {
		v := query.Get("searchCriteria." + name)
		return v == "" || v == "refs/heads/"+branch
	}
	top, err := strconv.Atoi(query.Get("$top"))
	if err != nil || top < 1 {
		top = 101
	}
	skip, _ := strconv.Atoi(query.Get("$skip")) // 0 without
	pulls, _ := q.open(repository, query.Get("$top"), strconv.Itoa(skip/top+1), 1000, func(p Pull) bool {
		return match("sourceRefName", p.Head) && match("targetRefName", p.Base)
	})
	all := []any{}
	for _, p := range pulls {
		all = append(all, z.pull(q, p))
	}
	q.json(http.StatusOK, map[string]any{"value": all, "count": len(all)})
}

func (azure) pull(q *request, p Pull) map[string]any {
	name := p.Repository[strings.LastIndex(p.Repository, "/")+1:]
	api := fmt.Sprintf("%s/fabrikam/_apis/git/repositories/3411ebc1-d5aa-464f-9615-0b527bc66719", q.s.Web)
	out := map[string]any{
		"repository":    map[string]any{"id": "3411ebc1-d5aa-464f-9615-0b527bc66719", "name": name, "url": api},
		"pullRequestId": q.number(p.Number), "codeReviewId": p.Number, "status": "active", "title": p.Title, "description": p.Body,
		"sourceRefName": "refs/heads/" + p.Head, "targetRefName": "refs/heads/" + p.Base, "mergeStatus": "queued",
		"url": fmt.Sprintf("%s/pullRequests/%d", api, p.Number), "supportsIterations": true,
	}
	if p.Fork {
		out["forkSource"] = map[string]any{"name": "refs/heads/" + p.Head, "repository": map[string]any{"name": name + ".somebody"}}
	}
	return out
}

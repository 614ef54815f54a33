package forge_test

import (
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/cofferdam/cofferdam/internal/gateway/git/forge/forgetest"
	"github.com/cofferdam/cofferdam/internal/policy"
)

// facts are what a forge's public description says of opening and listing pull requests.
type facts struct {
	source   string
	required []string // fields of the body, without which it is refused
	optional []string // others that may be in it
	success  []int
	errors   []int             // statuses that the description or the forge's source has for this call
	answer   map[string]string // fields that are read of an answer, dotted, and their JSON types
	query    []string          // parameters of the list
	wrapped  string            // the field that the list is in; "" if the answer is the list
}

func described() map[policy.ForgeType]facts {
	return map[policy.ForgeType]facts{
		policy.GitHub: {
			source:   "github/rest-api-description, api.github.com 2022-11-28, pulls/create, pulls/list; docs.github.com, rate limits and troubleshooting",
			required: []string{"head", "base", "title"}, // title: unless issue is given
			optional: []string{"body", "head_repo", "maintainer_can_modify", "draft", "issue"},
			success:  []int{201}, errors: []int{400, 401, 403, 404, 422, 429},
			answer: map[string]string{"number": "number", "html_url": "string", "state": "string", "head.ref": "string", "head.repo.full_name": "string", "base.ref": "string", "base.repo.full_name": "string"},
			query:  []string{"state", "head", "base", "sort", "direction", "per_page", "page"},
		},
		policy.Gitea: {
			source:   "go-gitea/gitea v1.26.0, templates/swagger/v1_json.tmpl, repoCreatePullRequest, repoListPullRequests; required: modules/structs/pull.go, binding; 401: routers/api/v1/api.go",
			required: []string{"head", "base", "title"},
			optional: []string{"allow_maintainer_edit", "assignee", "assignees", "body", "due_date", "labels", "milestone", "reviewers", "team_reviewers"},
			success:  []int{201}, errors: []int{401, 403, 404, 409, 422, 423},
			answer: map[string]string{"number": "number", "html_url": "string", "state": "string", "head.ref": "string", "head.repo.full_name": "string", "base.ref": "string", "base.repo.full_name": "string"},
			query:  []string{"base_branch", "state", "sort", "milestone", "labels", "poster", "page", "limit"},
		},
		policy.GitLab: {
			source:   "GitLab, doc/api/merge_requests.md, lib/api/merge_requests.rb (handle_merge_request_errors!: 400, 409, 422); doc/api/rest: 401, 403, 404, 429",
			required: []string{"title", "source_branch", "target_branch"},
			optional: []string{"description", "assignee_id", "assignee_ids", "reviewer_ids", "labels", "milestone_id", "target_project_id", "remove_source_branch", "allow_collaboration", "squash"},
			success:  []int{201}, errors: []int{400, 401, 403, 404, 409, 422, 429},
			answer: map[string]string{"iid": "number", "web_url": "string", "state": "string", "source_branch": "string", "target_branch": "string", "source_project_id": "number", "target_project_id": "number"},
			query:  []string{"state", "scope", "source_branch", "target_branch", "per_page", "page", "order_by", "sort"},
		},
		policy.AzureDevOps: {
			source:   "MicrosoftDocs/vsts-rest-api-specs, specification/git/7.1/git.json, Pull Requests_Create, Pull Requests_Get Pull Requests; 201 and the wrapped list: its examples",
			required: []string{"sourceRefName", "targetRefName", "title"},
			optional: []string{"description", "isDraft", "reviewers", "labels", "completionOptions", "workItemRefs"},
			success:  []int{200, 201}, errors: []int{302, 400, 401, 403, 404, 409, 429},
			answer: map[string]string{"pullRequestId": "number", "status": "string", "sourceRefName": "string", "targetRefName": "string"},
			query: []string{"api-version", "searchCriteria.status", "searchCriteria.sourceRefName", "searchCriteria.targetRefName", "searchCriteria.creatorId",
				"searchCriteria.reviewerId", "searchCriteria.repositoryId", "searchCriteria.sourceRepositoryId", "searchCriteria.includeLinks", "$top", "$skip"},
			wrapped: "value",
		},
	}
}

// TestFacts holds both sides, what is sent and the servers of the tests, to the forges' public descriptions.
func TestFacts(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		known := described()[s.Kind]
		if _, err := s.open(t, s.proposal()); err != nil {
			t.Fatal(err)
		}
		if _, err := s.open(t, s.proposal()); err != nil { // looks for it in the list
			t.Fatal(err)
		}
		asked := s.Asked()
		create, list := asked[0], asked[len(asked)-1]
		var form map[string]any
		if err := json.Unmarshal([]byte(create.Body), &form); err != nil || create.Method != http.MethodPost || list.Method != http.MethodGet {
			t.Fatalf("%+v, %+v: %v", create, list, err)
		}
		for _, name := range known.required {
			if form[name] == nil {
				t.Errorf("%s is not sent: %s", name, known.source)
			}
		}
		for name := range form {
			if !slices.Contains(slices.Concat(known.required, known.optional), name) {
				t.Errorf("%s is sent, which the API does not have: %s", name, known.source)
			}
		}
		for name := range list.Query {
			if !slices.Contains(known.query, name) {
				t.Errorf("query %s, which the API does not have: %s", name, known.source)
			}
		}
		for _, name := range known.required {
			without := maps.Clone(form)
			delete(without, name)
			if status, _ := s.raw(t, create, without); !slices.Contains(known.errors, status) {
				t.Errorf("without %s: status %d: %s", name, status, known.source)
			}
		}
		s.Add(s.name, map[string]string{"main": "a1", "agent/x": "b2", "agent/z": "c3"})
		for name, v := range form {
			if text, ok := v.(string); ok {
				form[name] = strings.ReplaceAll(text, "agent/x", "agent/z")
			}
		}
		status, body := s.raw(t, create, form)
		if !slices.Contains(known.success, status) {
			t.Errorf("status %d: %s", status, known.source)
		}
		known.check(t, body)
		status, body = s.raw(t, list, nil)
		var all any
		if err := json.Unmarshal(body, &all); err != nil || status != http.StatusOK {
			t.Fatalf("status %d, %v", status, err)
		}
		if known.wrapped != "" {
			all = all.(map[string]any)[known.wrapped]
		}
		first, err := json.Marshal(all.([]any)[0])
		if err != nil {
			t.Fatal(err)
		}
		known.check(t, first)
	})
}

// TestFactsErrors: the servers of the tests refuse with statuses that the forges have.
func TestFactsErrors(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		known := described()[s.Kind]
		if _, err := s.open(t, s.proposal()); err != nil {
			t.Fatal(err)
		}
		create := s.Asked()[0]
		var form map[string]any
		if err := json.Unmarshal([]byte(create.Body), &form); err != nil {
			t.Fatal(err)
		}
		seen := map[int]bool{}
		try := func(change func()) {
			change()
			status, _ := s.raw(t, create, form)
			seen[status] = true
			if !slices.Contains(known.errors, status) && !(s.Kind == policy.Gitea && status == http.StatusTooManyRequests) { // of a proxy before it
				t.Errorf("status %d: %s", status, known.source)
			}
		}
		try(func() {}) // a duplicate
		try(func() { s.Fail(forgetest.RateLimited) })
		try(func() { s.Archive(s.name) })
		try(func() { s.Token(canary, forgetest.Read) })
		try(func() { s.Token(canary, forgetest.Nothing) })
		try(func() { s.token = "no-" + canary })
		try(func() { s.token = "" })
		if len(seen) < 4 {
			t.Errorf("statuses %v", slices.Sorted(maps.Keys(seen)))
		}
	})
}

// raw sends a request as it was recorded, with another body.
func (s *server) raw(t *testing.T, as forgetest.Asked, form map[string]any) (int, []byte) {
	t.Helper()
	var body io.Reader
	if form != nil {
		data, err := json.Marshal(form)
		if err != nil {
			t.Fatal(err)
		}
		body = strings.NewReader(string(data))
	}
	to, err := url.Parse(as.Path + "?" + as.Query.Encode())
	if err != nil {
		t.Fatal(err)
	}
	r, err := http.NewRequestWithContext(t.Context(), as.Method, s.base.ResolveReference(to).String(), body)
	if err != nil {
		t.Fatal(err)
	}
	r.Header = as.Header.Clone()
	r.Header.Del("Authorization")
	r.Header.Del("Accept-Encoding")
	resp, err := s.do(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, data
}

// check looks for the fields that are read of an answer.
func (f facts) check(t *testing.T, body []byte) {
	t.Helper()
	var all any
	if err := json.Unmarshal(body, &all); err != nil {
		t.Fatal(err)
	}
	for name, want := range f.answer {
		v := all
		for part := range strings.SplitSeq(name, ".") {
			in, ok := v.(map[string]any)
			if !ok {
				t.Errorf("%s: nothing above it", name)
			}
			v = in[part]
		}
		got := "none"
		switch v.(type) {
		case string:
			got = "string"
		case float64:
			got = "number"
		}
		if got != want {
			t.Errorf("%s is a %s, want %s: %s", name, got, want, f.source)
		}
	}
}

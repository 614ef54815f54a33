package forge_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/gateway/git/forge"
	"github.com/cofferdam/cofferdam/internal/gateway/git/forge/forgetest"
	"github.com/cofferdam/cofferdam/internal/policy"
)

// canary is the credential: it must be in nothing that comes back.
const canary = "canary-7f3a9b2c5d8e"

// server is a forge over TLS, and how requests get to it.
type server struct {
	*forgetest.Server
	base   *url.URL
	client *http.Client
	auth   func(h http.Header, token string)
	token  string
	name   string // of its one repository
}

func kinds() map[policy.ForgeType]string {
	return map[policy.ForgeType]string{policy.GitHub: "acme/site", policy.Gitea: "acme/site", policy.GitLab: "acme/web/site", policy.AzureDevOps: "acme/web/_git/site"}
}

func start(t testing.TB, kind policy.ForgeType) *server {
	t.Helper()
	s := &server{Server: forgetest.New(kind), token: canary, name: kinds()[kind]}
	over := httptest.NewTLSServer(s.Server)
	t.Cleanup(over.Close)
	base, err := url.Parse(over.URL + s.Base())
	if err != nil {
		t.Fatal(err)
	}
	s.base, s.client, s.Web = base, over.Client(), over.URL
	s.client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	s.Add(s.name, map[string]string{"main": "a1", "release/1.0": "a1", "agent/x": "b2", "agent/same": "a1"})
	s.Token(canary, forgetest.Write)
	s.auth = func(h http.Header, token string) { h.Set("Authorization", "Bearer "+token) }
	if kind == policy.AzureDevOps {
		s.auth = func(h http.Header, token string) {
			r := http.Request{Header: h}
			r.SetBasicAuth("", token)
		}
	}
	return s
}

func (s *server) do(_ context.Context, r *http.Request) (*http.Response, error) {
	if s.token != "" {
		s.auth(r.Header, s.token)
	}
	return s.client.Do(r)
}

func (s *server) proposal() forge.Proposal {
	return forge.Proposal{Repository: s.name, Head: "agent/x", Base: "main", Title: "A change", Body: "Why it is good.\n"}
}

func (s *server) open(t testing.TB, p forge.Proposal) (forge.Opened, error) {
	t.Helper()
	return forge.Open(t.Context(), s.do, s.Kind, s.base, p)
}

// each runs a test for all forges.
func each(t *testing.T, test func(t *testing.T, s *server)) {
	t.Helper()
	for kind := range kinds() {
		t.Run(kind.String(), func(t *testing.T) { test(t, start(t, kind)) })
	}
}

func page(s *server, number int) string {
	form := map[policy.ForgeType]string{policy.GitHub: "/pull/", policy.Gitea: "/pulls/", policy.GitLab: "/-/merge_requests/", policy.AzureDevOps: "/pullrequest/"}
	return fmt.Sprintf("%s/%s%s%d", s.Web, s.name, form[s.Kind], number)
}

func TestOpen(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		s.Open(forgetest.Pull{Repository: s.name, Head: "other", Base: "main"})
		got, err := s.open(t, s.proposal())
		if want := (forge.Opened{URL: page(s, 2), Number: 2}); err != nil || got != want {
			t.Fatalf("got %+v, %v, want %+v", got, err, want)
		}
		pulls := s.Pulls()
		want := forgetest.Pull{Repository: s.name, Number: 2, Head: "agent/x", Base: "main", Title: "A change", Body: "Why it is good.\n"}
		if len(pulls) != 2 || pulls[1] != want {
			t.Fatalf("the forge has %+v, want %+v", pulls, want)
		}
		again, err := s.open(t, s.proposal())
		if want := (forge.Opened{URL: page(s, 2), Number: 2, Existing: true}); err != nil || again != want {
			t.Fatalf("again: got %+v, %v, want %+v", again, err, want)
		}
		for _, a := range s.Asked() {
			if s.Kind == policy.GitHub && (a.Header.Get("X-Github-Api-Version") != "2022-11-28" || a.Header.Get("Accept") != "application/vnd.github+json") {
				t.Errorf("headers %v", a.Header)
			}
		}
	})
}

// TestOpenExistingAmongOthers: forks have branches of the same name, and pages end before the one that is looked for.
func TestOpenExistingAmongOthers(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		s.PageSize = 3
		number := s.Open(forgetest.Pull{Repository: s.name, Head: "agent/x", Base: "main"})
		for range 7 {
			s.Open(forgetest.Pull{Repository: s.name, Head: "agent/x", Base: "main", Fork: true})
			s.Open(forgetest.Pull{Repository: s.name, Head: "agent/y", Base: "main"})
		}
		if s.Kind == policy.AzureDevOps { // whose pages are counted in pull requests, by what the client asks for
			s.PageSize = 0
		}
		got, err := s.open(t, s.proposal())
		if want := (forge.Opened{URL: page(s, number), Number: number, Existing: true}); err != nil || got != want {
			t.Fatalf("got %+v, %v, want %+v", got, err, want)
		}
		if s.Kind == policy.Gitea && len(s.Asked()) < 4 {
			t.Fatalf("%d requests: the pages were not followed", len(s.Asked()))
		}
	})
}

// TestRefused: each mistake is one sentence of ours, of its kind, with nothing of the forge's in it.
func TestRefused(t *testing.T) {
	type when func(s *server, p *forge.Proposal)
	fail := func(f ...forgetest.Fault) when { return func(s *server, _ *forge.Proposal) { s.Fail(f...) } }
	cases := map[string]struct {
		when
		kind  fault.Kind
		says  string // a part of the sentence
		not   []policy.ForgeType
		calls int // at most
	}{
		"wrong token":         {func(s *server, _ *forge.Proposal) { s.token = "no-" + canary }, fault.Unauthenticated, "does not accept the credential", nil, 1},
		"no token":            {func(s *server, _ *forge.Proposal) { s.token = "" }, fault.Unauthenticated, "does not accept the credential", nil, 1},
		"sign-in page":        {fail(forgetest.SignIn), fault.Unauthenticated, "does not accept the credential", nil, 1},
		"only reading":        {func(s *server, _ *forge.Proposal) { s.Token(canary, forgetest.Read) }, fault.Denied, "does not let the credential open", nil, 1},
		"may not see it":      {func(s *server, _ *forge.Proposal) { s.Token(canary, forgetest.Nothing) }, fault.NotFound, "has no repository", nil, 2},
		"no such repository":  {func(_ *server, p *forge.Proposal) { p.Repository += "x" }, fault.NotFound, "has no repository", nil, 2},
		"no such base":        {func(_ *server, p *forge.Proposal) { p.Base = "gone" }, fault.NotFound, `"gone"`, nil, 2},
		"no such head":        {func(_ *server, p *forge.Proposal) { p.Head = "gone" }, fault.NotFound, `"gone"`, nil, 2},
		"nothing to merge":    {func(_ *server, p *forge.Proposal) { p.Head = "agent/same" }, fault.Conflict, "nothing to merge", []policy.ForgeType{policy.Gitea, policy.GitLab, policy.AzureDevOps}, 1},
		"archived":            {func(s *server, _ *forge.Proposal) { s.Archive(s.name) }, fault.Denied, "", nil, 1},
		"limit of the hour":   {fail(forgetest.RateLimited), fault.TooMany, "no more requests for now", nil, 1},
		"too much at once":    {fail(forgetest.SecondaryLimit), fault.TooMany, "no more requests for now", nil, 1},
		"server error":        {fail(forgetest.ServerError), fault.Unavailable, "(status 500)", nil, 1},
		"maintenance":         {fail(forgetest.Maintenance), fault.Unavailable, "(status 503)", nil, 1},
		"moved":               {fail(forgetest.Moved), fault.NotFound, "has moved", nil, 1},
		"not JSON":            {fail(forgetest.NotJSON), fault.Unavailable, "not of its API", nil, 1},
		"no end":              {fail(forgetest.TooLong), fault.Unavailable, "more than", nil, 1},
		"echo":                {fail(forgetest.EchoCredential), fault.Invalid, "(status 422)", nil, 1},
		"no number":           {fail(forgetest.NoNumber), fault.Unavailable, "not of its API", nil, 1},
		"duplicate, unlisted": {fail(forgetest.DuplicateHidden, forgetest.DuplicateHidden), fault.Conflict, "does not show it", nil, 2},
		"duplicate, limited":  {fail(forgetest.DuplicateHidden, forgetest.RateLimited), fault.TooMany, "no more requests", nil, 2},
		"duplicate, page":     {fail(forgetest.DuplicateHidden, forgetest.NotJSON), fault.Unavailable, "not of its API", nil, 2},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			each(t, func(t *testing.T, s *server) {
				if slices.Contains(c.not, s.Kind) {
					return // the forge opens it all the same
				}
				p := s.proposal()
				c.when(s, &p)
				got, err := s.open(t, p)
				if err == nil || fault.KindOf(err) != c.kind || !strings.Contains(fault.Public(err), c.says) || got != (forge.Opened{}) {
					t.Fatalf("got %+v, %v (%v), want %v: …%s…", got, err, fault.KindOf(err), c.kind, c.says)
				}
				told := err.Error() + fault.Public(err) + fault.HintOf(err)
				if strings.Contains(told, canary) || strings.ContainsAny(told, "\n\x1b<") || len(told) > 600 {
					t.Fatalf("told %q", told)
				}
				if n := len(s.Asked()); n < 1 || n > c.calls {
					t.Fatalf("%d requests, want at most %d", n, c.calls)
				}
				if n := len(s.Pulls()); n != 0 && c.says != "not of its API" {
					t.Fatalf("%d pull requests after all", n)
				}
			})
		})
	}
}

// TestDoer: the caller's refusals go through as they are, and nothing else it says does.
func TestDoer(t *testing.T) {
	s := start(t, policy.GitHub)
	refuse := func(err error) forge.Doer {
		return func(context.Context, *http.Request) (*http.Response, error) { return nil, err }
	}
	_, err := forge.Open(t.Context(), refuse(fault.New(fault.Denied, "policy says no")), s.Kind, s.base, s.proposal())
	if fault.KindOf(err) != fault.Denied || fault.Public(err) != "policy says no" {
		t.Errorf("got %v", err)
	}
	_, err = forge.Open(t.Context(), refuse(errors.New("dial "+canary)), s.Kind, s.base, s.proposal())
	if fault.KindOf(err) != fault.Unavailable || strings.Contains(fault.Public(err), canary) {
		t.Errorf("got %v", err)
	}
}

// TestURL: what the answer says of a URL counts only if it is the page of the forge itself.
func TestURL(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		for _, f := range []forgetest.Fault{forgetest.ForeignURL, forgetest.CraftedURL} {
			s := start(t, s.Kind)
			s.Fail(f)
			got, err := s.open(t, s.proposal())
			if want := (forge.Opened{URL: page(s, 1), Number: 1}); err != nil || got != want {
				t.Errorf("fault %d: got %+v, %v, want %+v", f, got, err, want)
			}
		}
	})
	github := func(web string, apiBase string, said string) string {
		base, err := url.Parse(apiBase)
		if err != nil {
			t.Fatal(err)
		}
		p := forge.Proposal{Repository: "acme/site", Head: "a", Base: "b", Title: "t"}
		if web != "" {
			if p.Web, err = url.Parse(web); err != nil {
				t.Fatal(err)
			}
		}
		body, err := json.Marshal(map[string]any{"number": 7, "html_url": said})
		if err != nil {
			t.Fatal(err)
		}
		got, err := forge.Open(t.Context(), answering(http.StatusCreated, string(body)), policy.GitHub, base, p)
		if err != nil {
			t.Fatal(err)
		}
		return got.URL
	}
	const built = "https://github.com/acme/site/pull/7"
	for _, c := range []struct{ web, base, said, want string }{
		{"", "https://api.github.com", "https://github.com/acme/site/pull/7", built},
		{"", "https://api.github.com", "https://github.com/Acme/Site/pull/7", "https://github.com/Acme/Site/pull/7"},
		{"", "https://api.github.com/", "", built},
		{"", "https://api.github.com", "http://github.com/acme/site/pull/7", built},
		{"", "https://api.github.com", "https://github.com.evil.test/acme/site/pull/7", built},
		{"", "https://api.github.com", "https://github.com@evil.test/acme/site/pull/7", built},
		{"", "https://api.github.com", "https://user@github.com/acme/site/pull/7", built},
		{"", "https://api.github.com", "https://github.com:444/acme/site/pull/7", built},
		{"", "https://api.github.com", "https://github.com/acme/site/pull/8", built},
		{"", "https://api.github.com", "https://github.com/acme/site/PULL/7", built},
		{"", "https://api.github.com", "https://github.com/other/site/pull/7", built},
		{"", "https://api.github.com", "https://github.com/acme/site/pull/7?x=1", built},
		{"", "https://api.github.com", "https://github.com/acme/site/pull/7#x", built},
		{"", "https://api.github.com", "https://github.com/acme/./site/pull/7", built},
		{"", "https://api.github.com", "https://github.com/acme/s%69te/pull/7", built},
		{"", "https://api.github.com", "https://github.com/acme/site/pull/7\x1b[2J", built},
		{"", "https://api.acme.ghe.com", "", "https://acme.ghe.com/acme/site/pull/7"},
		{"", "https://git.example.com/api/v3", "", "https://git.example.com/acme/site/pull/7"},
		{"", "https://api.example.com:8443/api/v3/", "", "https://api.example.com:8443/acme/site/pull/7"},
		{"https://web.example.com:443/git/", "https://api.example.com:443", "", "https://web.example.com/git/acme/site/pull/7"},
	} {
		if got := github(c.web, c.base, c.said); got != c.want {
			t.Errorf("%s says %q: got %s, want %s", c.base, c.said, got, c.want)
		}
	}
}

// answering is a Doer with one answer to everything.
func answering(status int, body string) forge.Doer {
	return func(context.Context, *http.Request) (*http.Response, error) {
		return &http.Response{StatusCode: status, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(body))}, nil
	}
}

func TestAddresses(t *testing.T) {
	for _, c := range []struct {
		kind             policy.ForgeType
		base, repository string
		want             string // the URL of the first request; "" if there must be none
	}{
		{policy.GitHub, "https://api.github.com", "acme/site", "https://api.github.com/repos/acme/site/pulls"},
		{policy.GitHub, "https://git.example.com/api/v3/", "acme/site", "https://git.example.com/api/v3/repos/acme/site/pulls"},
		{policy.GitHub, "https://api.github.com", "acme/web/site", ""},
		{policy.GitHub, "https://api.github.com", "acme", ""},
		{policy.GitHub, "https://api.github.com", "../site", ""},
		{policy.GitHub, "https://api.github.com", "acme/%2e%2e", ""},
		{policy.GitHub, "https://api.github.com", "acme/a%2Fb", ""},
		{policy.GitHub, "https://api.github.com", "acme/a?b", "https://api.github.com/repos/acme/a%3Fb/pulls"},
		{policy.Gitea, "https://git.example.com/sub/api/v1", "acme/site", "https://git.example.com/sub/api/v1/repos/acme/site/pulls"},
		{policy.Gitea, "https://git.example.com/api/v1", "acme//site", ""},
		{policy.GitLab, "https://gitlab.com/api/v4", "acme/site", "https://gitlab.com/api/v4/projects/acme%2Fsite/merge_requests"},
		{policy.GitLab, "https://gitlab.com/api/v4", "acme/web/site", "https://gitlab.com/api/v4/projects/acme%2Fweb%2Fsite/merge_requests"},
		{policy.GitLab, "https://gitlab.com/api/v4", "site", ""},
		{policy.AzureDevOps, "https://dev.azure.com", "acme/web/_git/site", "https://dev.azure.com/acme/web/_apis/git/repositories/site/pullrequests?api-version=7.1"},
		{policy.AzureDevOps, "https://dev.azure.com", "acme/my%20web/_git/site", "https://dev.azure.com/acme/my%20web/_apis/git/repositories/site/pullrequests?api-version=7.1"},
		{policy.AzureDevOps, "https://dev.azure.com", "acme/_git/site", "https://dev.azure.com/acme/site/_apis/git/repositories/site/pullrequests?api-version=7.1"},
		{policy.AzureDevOps, "https://dev.azure.com/acme", "web/_git/site", "https://dev.azure.com/acme/web/_apis/git/repositories/site/pullrequests?api-version=7.1"},
		{policy.AzureDevOps, "https://dev.azure.com/acme", "_git/site", "https://dev.azure.com/acme/site/_apis/git/repositories/site/pullrequests?api-version=7.1"},
		{policy.AzureDevOps, "https://acme.visualstudio.com", "_git/site", "https://acme.visualstudio.com/site/_apis/git/repositories/site/pullrequests?api-version=7.1"},
		{policy.AzureDevOps, "https://acme.visualstudio.com", "web/_git/site", "https://acme.visualstudio.com/web/_apis/git/repositories/site/pullrequests?api-version=7.1"},
		{policy.AzureDevOps, "https://tfs.example.com/tfs", "All/web/_git/site", "https://tfs.example.com/tfs/All/web/_apis/git/repositories/site/pullrequests?api-version=7.1"},
		{policy.AzureDevOps, "https://dev.azure.com", "acme/web/site", ""},
		{policy.AzureDevOps, "https://dev.azure.com", "acme/_git/web/_git/site", ""},
		{policy.PlainGit, "https://git.example.com", "acme/site", ""},
		{policy.ForgeType(99), "https://git.example.com", "acme/site", ""},
	} {
		base, err := url.Parse(c.base)
		if err != nil {
			t.Fatal(err)
		}
		var got string
		_, err = forge.Open(t.Context(), func(_ context.Context, r *http.Request) (*http.Response, error) {
			if got == "" {
				got = r.URL.String()
			}
			return nil, errors.New("enough")
		}, c.kind, base, forge.Proposal{Repository: c.repository, Head: "a", Base: "b"})
		if got != c.want || err == nil {
			t.Errorf("%s %s at %s: asked %q, want %q (%v)", c.kind, c.repository, c.base, got, c.want, err)
		}
	}
}

func TestBranches(t *testing.T) {
	s := start(t, policy.GitHub)
	for _, name := range []string{"", "-x", "other:main", "refs/heads/main", "a b", "a..b", "a\nb", "a~1", "a^", "/a", "a/", "\u202ea", strings.Repeat("a", 2000)} {
		p := s.proposal()
		p.Head = name
		if _, err := s.open(t, p); fault.KindOf(err) != fault.Invalid {
			t.Errorf("head %q: %v", name, err)
		}
		p = s.proposal()
		p.Base = name
		if _, err := s.open(t, p); fault.KindOf(err) != fault.Invalid {
			t.Errorf("base %q: %v", name, err)
		}
	}
	p := s.proposal()
	p.Head = p.Base
	if _, err := s.open(t, p); fault.KindOf(err) != fault.Invalid {
		t.Errorf("one branch: %v", err)
	}
	if len(s.Asked()) != 0 {
		t.Errorf("the forge was asked: %v", s.Asked())
	}
	p = s.proposal()
	p.Base = "release/1.0"
	if _, err := s.open(t, p); err != nil {
		t.Error(err)
	}
}

// TestText: title and body may be written by an attacker. They arrive cut, in one line, without control characters, and without commands.
func TestText(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		p := s.proposal()
		p.Title = "one\ntwo\x1b[31m\u202e three\xff " + strings.Repeat("é", 400)
		p.Body = "a\r\nb\x00\u2066c\n" + strings.Repeat("é", 100_000)
		if _, err := s.open(t, p); err != nil {
			t.Fatal(err) // too long for the forge
		}
		got := s.Pulls()[0]
		if !strings.HasPrefix(got.Title, "one two [31m three\ufffd éé") || !strings.HasSuffix(got.Title, "é…") {
			t.Errorf("title %q", got.Title)
		}
		if !strings.HasPrefix(got.Body, "a\nbc\néé") || !strings.HasSuffix(got.Body, "é…") {
			t.Errorf("body %.40q", got.Body)
		}
		p = s.proposal()
		p.Base, p.Title = "release/1.0", " \n\t"
		if _, err := s.open(t, p); err != nil {
			t.Fatal(err)
		}
		if got := s.Pulls()[1]; got.Title != "Changes for release/1.0" {
			t.Errorf("title %q", got.Title)
		}
	})
}

// TestQuickActions: on GitLab a line that begins with a slash is a command, carried out with the rights of the credential.
func TestQuickActions(t *testing.T) {
	for _, body := range []string{"/merge", "text\n/merge\n", "text\r\n  /merge", "text\r/merge", "text\u2028/merge", "a\n\t /approve\n/merge", "\u00a0/merge", "\x00/merge"} {
		s := start(t, policy.GitLab)
		p := s.proposal()
		p.Body = body
		if _, err := s.open(t, p); err != nil {
			t.Fatal(err)
		}
		if got := s.Pulls()[0]; got.Merged || !strings.Contains(got.Body, `\/merge`) {
			t.Errorf("%q: %+v", body, got)
		}
	}
	s := start(t, policy.GitLab) // the same without us
	form, err := json.Marshal(map[string]string{"title": "t", "source_branch": "agent/x", "target_branch": "main", "description": "text\n/merge"})
	if err != nil {
		t.Fatal(err)
	}
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.base.String()+"/projects/acme%2Fweb%2Fsite/merge_requests", bytes.NewReader(form))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	resp, err := s.do(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if pulls := s.Pulls(); resp.StatusCode != http.StatusCreated || !pulls[0].Merged {
		t.Fatalf("status %d, %+v: the attack does not work at all", resp.StatusCode, pulls)
	}
}

// FuzzAnswers: whatever a forge says, the result is a page of that forge, or an error without the forge's words.
func FuzzAnswers(f *testing.F) {
	f.Add(uint8(1), 201, `{"number":7,"html_url":"https://api.test/acme/site/pull/7"}`)
	f.Add(uint8(2), 409, `[{"number":7,"state":"open","head":{"ref":"a","repo":{"full_name":"acme/site"}},"base":{"ref":"b","repo":{"full_name":"acme/site"}}}]`)
	f.Add(uint8(3), 400, `{"message":{"target_branch":["is zq9"]}}`)
	f.Add(uint8(4), 409, `{"typeKey":"GitPullRequestExistsException","value":[{"pullRequestId":1}]}`)
	f.Add(uint8(1), 422, `{"errors":[{"field":"base","code":"invalid"}]}`)
	f.Fuzz(func(t *testing.T, kind uint8, status int, body string) {
		name, ok := kinds()[policy.ForgeType(kind%5)]
		if !ok || status < 100 || status > 599 {
			return
		}
		base := &url.URL{Scheme: "https", Host: "api.test"}
		got, err := forge.Open(t.Context(), answering(status, body), policy.ForgeType(kind%5), base, forge.Proposal{Repository: name, Head: "a", Base: "b"})
		if err != nil {
			if got != (forge.Opened{}) || strings.Contains(body, "zq9") && strings.Contains(err.Error()+fault.HintOf(err), "zq9") {
				t.Fatalf("%+v, %v", got, err)
			}
			return
		}
		u, err := url.Parse(got.URL)
		if err != nil || u.Scheme != "https" || !slices.Contains([]string{"api.test", "test"}, u.Host) || u.RawQuery != "" || u.User != nil || got.Number < 1 ||
			!strings.HasSuffix(got.URL, fmt.Sprintf("/%d", got.Number)) || !strings.HasPrefix(strings.ToLower(u.Path), "/"+name+"/") {
			t.Fatalf("%+v, %v", got, err)
		}
	})
}

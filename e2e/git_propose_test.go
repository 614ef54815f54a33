package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/internal/gateway/git/forge/forgetest"
	"github.com/cofferdam/cofferdam/internal/policy"
	"github.com/cofferdam/cofferdam/internal/testenv"
)

// proposing is a forge with pull requests at an upstream of its own name, in front of a real repository.
type proposing struct {
	name       string
	kind       policy.ForgeType
	repository string // below the upstream
	mount      string // where the API is
	strip      string // what of that the API does not see
	page       string // what a pull request's URL contains
}

func proposers() []proposing {
	return []proposing{
		{"github", policy.GitHub, "acme/hub", "/api/v3/", "/api/v3", "/acme/hub/pull/"},
		{"gitea", policy.Gitea, "acme/tea", "/api/v1/", "", "/acme/tea/pulls/"},
		{"gitlab", policy.GitLab, "acme/group/lab", "/api/v4/", "", "/acme/group/lab/-/merge_requests/"},
		{"azure", policy.AzureDevOps, "acme/project/_git/blue", "/acme/project/_apis/", "", "/acme/project/_git/blue/pullrequest/"},
	}
}

// TestGitProposals pushes to a protected branch of four kinds of forges, where policy has pull requests for that: one is opened by the gateway, by a
// credential of its own, and its URL comes back in the same push.
func TestGitProposals(t *testing.T) {
	testenv.Need(t, "tool:git")
	forEachUser(t, func(t *testing.T, h *house) {
		f := newForge(t)
		g := newGitHouse(h, f, "")
		const apiToken = "api-CANARY-c3d1e5f7a9b24680bd13"
		if r := h.doWith(time.Minute, apiToken+"\n", "credential", "add", "forge-api", "--host", "*.forge.example.com", "--port", f.port); r.code != 0 {
			t.Fatalf("credential add: %s%s", r.stdout, r.stderr)
		}
		if r := h.do("credential", "remove", "forge"); r.code != 0 {
			t.Fatalf("credential remove: %s%s", r.stdout, r.stderr)
		}
		if r := h.doWith(time.Minute, gitToken+"\n", "credential", "add", "forge", "--user", "x-access-token", "--host", "*.forge.example.com", "--port", f.port); r.code != 0 {
			t.Fatalf("credential add: %s%s", r.stdout, r.stderr)
		}
		var resolve []string
		upstreams, repositories, script := "  upstreams:\n", "  repositories:\n", gitPrelude
		apis := map[string]*forgetest.Server{}
		for _, p := range proposers() {
			// Forges have repositories with and without .git; Azure DevOps without.
			stored := p.repository + ".git"
			if p.kind == policy.AzureDevOps {
				stored = p.repository
			}
			f.copy("acme/site.git", stored)
			api := forgetest.New(p.kind)
			host := p.name + ".forge.example.com"
			resolve = append(resolve, "--resolve", host+"=127.0.0.1")
			api.Web = "https://" + host + ":" + f.port
			api.Token(apiToken, forgetest.Write)
			api.Lookup = func(repository string) (map[string]string, bool) {
				if repository != p.repository {
					return nil, false
				}
				branches := map[string]string{}
				for ref, id := range f.refs(stored) {
					if name, ok := strings.CutPrefix(ref, "refs/heads/"); ok {
						branches[name] = id
					}
				}
				return branches, true
			}
			apis[p.name] = api
			f.mount(p.mount, http.StripPrefix(p.strip, api))
			upstreams += fmt.Sprintf("    - {name: %s, type: %s, url: \"https://%s:%s\", credential: forge, api: {credential: forge-api}}\n", p.name, p.name, host, f.port)
			repositories += fmt.Sprintf("    - {upstream: %s, repository: %s, profile: proposer}\n", p.name, p.repository)
			at := "http://git.cofferdam.internal/" + p.name + "/" + p.repository
			script += fmt.Sprintf("git clone -q %s %s && cd %s && git checkout -q -b work && git commit -q --allow-empty -m 'Mend the %s door' && cd ..\n", at, p.name, p.name, p.name)
			script += fmt.Sprintf("step %s 'git -C %s push origin work:main'\n", p.name, p.name)
			script += fmt.Sprintf("step %s-again 'git -C %s commit -q --allow-empty -m again && git -C %s push origin work:main'\n", p.name, p.name, p.name)
			script += fmt.Sprintf("step %s-gone 'git -C %s push origin :main'\n", p.name, p.name)
		}
		g.law(upstreams+"  profiles:\n    - name: proposer\n      access: write\n      rules: [{branches: [main], propose: pull-request}]\n"+repositories, "")
		for _, api := range apis { // what is refused repeats the credential; then all is well
			api.Fail(forgetest.EchoCredential)
		}
		before := f.refs("acme/hub.git")["refs/heads/main"]
		r := g.script(time.Minute, script, resolve...)
		noToken(t, "inside", r.stdout+r.stderr)
		for form, value := range forms(apiToken) {
			if strings.Contains(r.stdout+r.stderr, value) {
				t.Errorf("the API's token, %s, is seen inside: %s", form, r.stdout)
			}
		}
		cases := gitCases(r.stdout)
		for _, p := range proposers() {
			c, again, gone := cases[p.name], cases[p.name+"-again"], cases[p.name+"-gone"]
			if c == nil || again == nil || gone == nil {
				t.Fatalf("%s did not run: %s%s", p.name, r.stdout, r.stderr)
			}
			if c.code == 0 || !strings.Contains(c.output, "remote: cofferdam: main is protected here; stored as agent/main-") || !strings.Contains(c.output, "but no pull request could be opened: ") {
				t.Errorf("%s, whose API refuses: exit %d\n%s", p.name, c.code, c.output)
			}
			want := "remote: cofferdam: main is protected here; pull request opened: https://" + p.name + ".forge.example.com:" + f.port + p.page + "1"
			if again.code != 0 || !strings.Contains(again.output, want) || !strings.Contains(again.output, "work -> agent/main-") {
				t.Errorf("%s: exit %d, no %q in\n%s", p.name, again.code, want, again.output)
			}
			if gone.code == 0 || !strings.Contains(gone.output, "remote: cofferdam: deleting main is not allowed here") {
				t.Errorf("%s: deleting what is protected: exit %d\n%s", p.name, gone.code, gone.output)
			}
			pulls := apis[p.name].Pulls()
			if len(pulls) != 1 || pulls[0].Base != "main" || !strings.HasPrefix(pulls[0].Head, "agent/main-") || pulls[0].Title != "again" {
				t.Errorf("%s: pull requests are %+v", p.name, pulls)
			}
			for _, asked := range apis[p.name].Asked() {
				if got := asked.Header.Get("Authorization"); got != "Bearer "+apiToken {
					t.Errorf("%s: the API was asked with %q", p.name, got)
				}
			}
			stored := p.repository + ".git"
			if p.kind == policy.AzureDevOps {
				stored = p.repository
			}
			if f.refs(stored)["refs/heads/main"] != before {
				t.Errorf("%s: main was moved", p.name)
			}
			opened := false
			for _, e := range g.records() {
				opened = opened || e["kind"] == "crossing.finished" && e["repository"] == p.name+"/"+p.repository && e["credential"] == "forge-api" && e["method"] == "POST" && e["status"] == 201.0
				opened = opened || p.kind == policy.AzureDevOps && e["kind"] == "crossing.finished" && e["credential"] == "forge-api" && e["method"] == "POST" && e["repository"] == p.name+"/"+p.repository
			}
			if !opened {
				t.Errorf("%s: opening the pull request is not on record: %v", p.name, g.records())
			}
		}
		g.searchTokens()
	})
}

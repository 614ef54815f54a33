package policy

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/cofferdam/cofferdam/internal/netname"
)

const gitSample = `version: 1
git:
  upstreams:
    - {name: github, type: github, url: "https://github.com", credential: github-git, api: {credential: github-api}}
    - {name: forge, type: gitea, url: "https://git.example.com:3000/git", api: {credential: forge-api}}
    - {name: plain, url: "https://plain.example.com"}
  profiles:
    - name: contributor
      access: write
      rules:
        - {branches: ["agent/**", "fix-*"], allow: [create, update, force, delete]}
        - {branches: [main, "release/*"], propose: pull-request}
        - {branches: [develop], allow: [update]}
        - {branches: [frozen], allow: []}
        - {tags: ["v*"], allow: [create]}
        - {refs: ["refs/notes/*"], allow: [create, update]}
      push-options: [ci.skip, "topic=*"]
      protected-files: [".github/workflows/", AGENTS.md, "**/CLAUDE.md", "docs/api/*.yml"]
      max-push: 512MiB
      max-refs: 3
    - name: wide
      access: write
      rules:
        - {branches: [Frozen], allow: []}
        - {branches: ["**"], tags: ["**"], allow: [create, update, force, delete]}
      protected-files: []
    - {name: closed, access: write, rules: [{branches: ["agent/**"], allow: [create, update]}, {branches: [main], allow: []}], protected-files: [Makefile]}
  repositories:
    - {upstream: github, repository: acme/site, profile: contributor}
    - {upstream: github, repository: acme/docs, profile: read}
    - {upstream: github, matching: "acme/[a-z0-9-]+", profile: wide}
    - {upstream: github, matching: "[a-z]+/lib", profile: closed}
    - {upstream: github, matching: "acme/secret|other/open|other/both", profile: read}
    - {upstream: github, matching: "other/b.*", profile: wide}
    - {upstream: forge, repository: group/sub/deep/repo, profile: contributor}
    - {upstream: plain, matching: ".*", profile: wide}
`

func TestGitUpstreams(t *testing.T) {
	p := mustParse(t, gitSample)
	if !p.ServesGit() || len(p.GitUpstreams()) != 3 || len(p.Warnings()) > 0 {
		t.Fatalf("%v %v", p.GitUpstreams(), p.Warnings())
	}
	u, ok := p.GitUpstream("forge")
	want := GitUpstream{Name: "forge", Type: Gitea, Host: "git.example.com", Port: 3000, Path: "/git", Line: 5,
		API: GitAPI{Host: "git.example.com", Port: 3000, Path: "/git/api/v1", Credential: "forge-api"}}
	if diff := cmp.Diff(want, u); !ok || diff != "" {
		t.Error(diff)
	}
	p.GitUpstreams()[0].LFSHosts[0] = netname.Pattern{}
	u, _ = p.GitUpstream("github")
	if u.Credential != "github-git" || u.API != (GitAPI{Host: "api.github.com", Port: 443, Credential: "github-api"}) || fmt.Sprint(u.LFSHosts) != "[github-cloud.githubusercontent.com github-cloud.s3.amazonaws.com]" {
		t.Errorf("%+v", u)
	}
	u, _ = p.GitUpstream("plain")
	if u.Type != PlainGit || u.API != (GitAPI{}) || len(u.LFSHosts) > 0 {
		t.Errorf("%+v", u)
	}
	for _, none := range []*Policy{nil, {}, mustParse(t, sample), mustParse(t, "version: 1\ngit:\n")} {
		if _, ok := none.GitUpstream("github"); ok || none.ServesGit() || none.GitUpstreams() != nil {
			t.Errorf("%v serves Git", none)
		}
		if g, d := none.GitRepository("github", "acme/site"); g != nil || d.Verdict != Deny || d.Rule == "" || d.Reason == "" {
			t.Errorf("%v opens a repository: %+v", none, d)
		}
	}
}

func TestGitAPIs(t *testing.T) {
	for upstream, want := range map[string]string{
		`type: github, url: "https://github.com"`:                                                 "api.github.com:443",
		`type: github, url: "https://ghe.example.com"`:                                            "ghe.example.com:443/api/v3",
		`type: github, url: "https://octo.ghe.com"`:                                               "api.octo.ghe.com:443",
		`type: gitea, url: "https://codeberg.org"`:                                                "codeberg.org:443/api/v1",
		`type: gitea, url: "https://a.example", api: {url: "https://b.example:8443"}`:             "b.example:8443/api/v1",
		`type: gitea, url: "https://a.example", api: {url: "https://b.example/x/api/v1"}`:         "b.example:443/x/api/v1",
		`type: gitlab, url: "https://gitlab.com"`:                                                 "gitlab.com:443/api/v4",
		`type: gitlab, url: "https://a.example/gitlab"`:                                           "a.example:443/gitlab/api/v4",
		`type: azure, url: "https://dev.azure.com"`:                                               "dev.azure.com:443",
		`type: github, url: "https://a.example", api: {url: "https://api.example.org/github/v3"}`: "api.example.org:443/github/v3",
	} {
		u, _ := mustParse(t, "version: 1\ngit: {upstreams: [{name: a, "+upstream+"}]}\n").GitUpstream("a")
		if got := fmt.Sprintf("%s:%d%s", u.API.Host, u.API.Port, u.API.Path); got != want {
			t.Errorf("%s: %s, want %s", upstream, got, want)
		}
	}
}

func TestGitRepository(t *testing.T) {
	p := mustParse(t, gitSample)
	for text, want := range map[string]string{
		"github acme/site":                   "write contributor git:contributor",
		"github acme/docs":                   "read read git:read", // the exact entry, although an expression would open more
		"github acme/tool-2":                 "write wide git:wide",
		"github acme/lib":                    "write wide, closed git:wide",
		"github other/lib":                   "write closed git:closed",
		"github acme/secret":                 "read wide, read git:read",
		"github other/open":                  "read read git:read",
		"github other/both":                  "read read, wide git:read",
		"github acme/Site":                   "none: acme/Site differs only in letter case from acme/site",
		"github Acme/docs":                   "none: differs only in letter case from acme/docs",
		"github ACME/tool":                   "none: in other letter case only",
		"github acme/tool_2":                 "none: acme/tool_2 at github is not open here",
		"github acme/tool/x":                 "none: not open here",
		"github xacme/tool":                  "none: not open here",
		"github other/tool":                  "none: not open here",
		"github acme":                        "none: not open here",
		"github acme/site.git":               "none: no path of a repository",
		"github acme/site.":                  "none: no path of a repository",
		"github acme/site~1":                 "none: no path of a repository",
		"github acme/site::$DATA":            "none: no path of a repository",
		"github acme/site.GIT":               "none: no path of a repository",
		"github acme/site.git/x":             "none: no path of a repository",
		"github acme/../site":                "none: no path of a repository",
		"github acme//site":                  "none: no path of a repository",
		"github /acme/site":                  "none: no path of a repository",
		"github acme/site/":                  "none: no path of a repository",
		"github acme/s%69te":                 "none: no path of a repository",
		"github acme/site;x":                 "none: no path of a repository",
		"github ":                            "none: no path of a repository",
		"github acme/site\nx":                "none: no path of a repository",
		"forge group/sub/deep/repo":          "write contributor git:contributor",
		"forge group/sub/deep":               "none: not open here",
		"forge acme/site":                    "none: not open here",
		"plain any/thing/at/all":             "write wide git:wide",
		"plain x\ny":                         "none: no path of a repository",
		"other acme/site":                    "none: there is no upstream other here",
		"github\n acme/site":                 `none: there is no upstream "github\n" here`,
		"GitHub acme/site":                   "none: there is no upstream GitHub here",
		"github acme/site\x00":               "none: no path of a repository",
		"plain " + strings.Repeat("a", 5000): "none: no path of a repository",
	} {
		upstream, repository, _ := strings.Cut(text, " ")
		g, d := p.GitRepository(upstream, repository)
		got := fmt.Sprintf("%s %s %s", g.Access(), g.Name(), d.Rule)
		if g == nil {
			got = "none: " + d.Reason
		}
		if prefix, reason, none := strings.Cut(want, ": "); none != (g == nil) || !none && got != want || none && !strings.Contains(got, reason) || prefix == "" {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
		if (g != nil) != (d.Verdict == Allow) || d.Rule == "" || !oneLine(d.Reason) {
			t.Errorf("%q: profile %v, decision %+v", text, g, d)
		}
	}
}

// oneLine reports whether a reason can stand in a terminal.
func oneLine(s string) bool {
	return s != "" && len(s) < 1000 && utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsGraphic(r) })
}

func mustOpen(t testing.TB, p *Policy, upstream, repository string) *GitProfile {
	t.Helper()
	g, d := p.GitRepository(upstream, repository)
	if g == nil {
		t.Fatalf("%s/%s: %+v", upstream, repository, d)
	}
	return g
}

func TestDecideRef(t *testing.T) {
	p := mustParse(t, gitSample)
	for repository, cases := range map[string]map[string]string{
		"acme/site": {
			"create refs/heads/agent/x":                          "git:contributor rule 1",
			"update refs/heads/agent/a/b/c":                      "git:contributor rule 1",
			"force refs/heads/agent/x":                           "git:contributor rule 1",
			"delete refs/heads/agent/x":                          "git:contributor rule 1",
			"create refs/heads/fix-1":                            "git:contributor rule 1",
			"create refs/heads/fix-":                             "git:contributor rule 1",
			"create refs/heads/fix-1/x":                          "denied: fix-1/x is protected here; push to agent/… instead",
			"create refs/heads/agent":                            "denied: agent is protected here; push to agent/… instead",
			"create refs/heads/xagent/x":                         "denied: xagent/x is protected here; push to agent/… instead",
			"create refs/heads/Agent/x":                          "denied: Agent/x is protected here; push to agent/… instead",
			"propose refs/heads/main":                            "git:contributor rule 2",
			"update refs/heads/main":                             "denied: main is protected here: it changes by pull request only",
			"force refs/heads/main":                              "denied: main is protected here: it changes by pull request only",
			"delete refs/heads/main":                             "denied: deleting main is not allowed here",
			"propose refs/heads/release/1":                       "git:contributor rule 2",
			"propose refs/heads/release/1/x":                     "denied: pull requests against release/1/x are not allowed here",
			"propose refs/heads/Main":                            "denied: pull requests against Main are not allowed here",
			"update refs/heads/Main":                             "denied: Main differs only in letter case from a name that is protected here",
			"propose refs/heads/agent/x":                         "denied: pull requests against agent/x are not allowed here",
			"propose refs/heads/frozen":                          "denied: pull requests against frozen are not allowed here",
			"update refs/heads/develop":                          "git:contributor rule 3",
			"force refs/heads/develop":                           "denied: force-pushing develop is not allowed here",
			"create refs/heads/develop":                          "denied: creating develop is not allowed here",
			"update refs/heads/frozen":                           "denied: frozen is protected here; push to agent/… instead",
			"delete refs/heads/frozen":                           "denied: deleting frozen is not allowed here",
			"create refs/tags/v1":                                "git:contributor rule 5",
			"update refs/tags/v1":                                "denied: updating tag v1 is not allowed here",
			"delete refs/tags/v1":                                "denied: deleting tag v1 is not allowed here",
			"create refs/tags/x":                                 "denied: tag x is not allowed here",
			"create refs/tags/V1":                                "denied: tag V1 is not allowed here",
			"create refs/notes/commits":                          "git:contributor rule 6",
			"delete refs/notes/commits":                          "denied: deleting refs/notes/commits is not allowed here",
			"create refs/for/main":                               "denied: refs/for/main is not allowed here: it is neither a branch nor a tag",
			"update refs/meta/config":                            "denied: refs/meta/config is not allowed here",
			"create refs/replace/0123":                           "denied: refs/replace/0123 is not allowed here",
			"create refs/pull/1/head":                            "denied: refs/pull/1/head is not allowed here",
			"create refs/Heads/agent/x":                          "denied: refs/Heads/agent/x is not allowed here",
			"update refs/Heads/main":                             "denied: refs/Heads/main differs only in letter case",
			"update refs/heads/MA\u0131N":                        "denied: is protected here",
			"update refs/heads/ma\u200cin":                       "denied: differs only in letter case",
			"create HEAD":                                        "denied: HEAD is no ref that can be pushed",
			"create refs/heads":                                  "denied: refs/heads is no ref that can be pushed",
			"create refs/stash":                                  "denied: refs/stash is no ref that can be pushed",
			"create heads/agent/x":                               "denied: heads/agent/x is no ref that can be pushed",
			"create refs/heads/agent/..":                         "denied: is no name that a ref can have",
			"create refs/heads/agent/x.lock":                     "denied: is no name that a ref can have",
			"create refs/heads/agent/../main":                    "denied: is no name that a ref can have",
			"create refs/heads/agent//x":                         "denied: is no name that a ref can have",
			"create refs/heads/agent/\xff":                       `denied: "refs/heads/agent/\xff" is no name that a ref can have`,
			"create refs/heads/agent/\u202ex":                    "git:contributor rule 1", // a name that git takes; it is never printed as such
			"invalid refs/heads/agent/x":                         "denied: no such change",
			"update refs/heads/main -> x":                        "denied: is no name",
			"update refs/heads/agent/x>refs/heads/y":             "denied: agent/x stands for y there: y is protected here; push to agent/… instead",
			"update refs/heads/agent/x>HEAD":                     "denied: agent/x stands for HEAD there: HEAD is no ref",
			"update refs/heads/agent/x>refs/heads/main":          "denied: agent/x stands for main there: main is protected here: it changes by pull request only",
			"update refs/heads/agent/x>refs/heads/agent/y":       "git:contributor rule 1",
			"update refs/heads/main>refs/heads/agent/y":          "denied: main is protected here",
			"delete refs/heads/agent/x>refs/heads/develop":       "denied: deleting develop is not allowed here",
			"create refs/heads/" + strings.Repeat("agent/", 400): "denied: is no name",
		},
		"acme/tool": {
			"update refs/heads/main":   "git:wide rule 2",
			"delete refs/heads/a/b/c":  "git:wide rule 2",
			"force refs/tags/v1":       "git:wide rule 2",
			"update refs/heads/Frozen": "denied: Frozen is protected here",
			"update refs/heads/frozen": "denied: frozen differs only in letter case from a name that is protected here",
			"create refs/notes/x":      "denied: neither a branch nor a tag",
			"propose refs/heads/main":  "denied: pull requests against main are not allowed here",
		},
		"acme/lib": { // wide and closed together
			"update refs/heads/agent/x": "git:wide rule 2",
			"delete refs/heads/agent/x": "denied: deleting agent/x is not allowed here",
			"update refs/heads/main":    "denied: main is protected here; push to agent/… instead",
			"update refs/heads/other":   "denied: other is protected here; push to agent/… instead",
			"create refs/tags/v1":       "denied: tags are not allowed here",
		},
		"acme/docs": {"create refs/heads/agent/x": "denied: pushing is not allowed here"},
	} {
		g := mustOpen(t, p, "github", repository)
		for text, want := range cases {
			word, ref, _ := strings.Cut(text, " ")
			r := GitRef{Change: GitChange(slices.Index(changeNames(), word))}
			r.Name, r.Target, _ = strings.Cut(ref, ">")
			d := g.DecideRef(r)
			reason, denied := strings.CutPrefix(want, "denied: ")
			if denied && (d.Verdict != Deny || !strings.Contains(d.Reason, reason)) || !denied && (d.Verdict != Allow || d.Rule != want) || d.Rule == "" || !oneLine(d.Reason) {
				t.Errorf("%s: %s: %+v, want %s", repository, text, d, want)
			}
		}
	}
	if d := (*GitProfile)(nil).DecideRef(GitRef{Name: "refs/heads/x", Change: GitCreate}); d.Verdict != Deny {
		t.Errorf("nil allows: %+v", d)
	}
	if d := (&GitProfile{}).DecideRef(GitRef{Name: "refs/heads/x", Change: GitCreate}); d.Verdict != Deny {
		t.Errorf("the zero value allows: %+v", d)
	}
}

func TestGitProfile(t *testing.T) {
	p := mustParse(t, gitSample)
	site, lib, docs := mustOpen(t, p, "github", "acme/site"), mustOpen(t, p, "github", "acme/lib"), mustOpen(t, p, "github", "acme/docs")
	if site.MaxPush() != 512*MiB || site.MaxRefs() != 3 || lib.MaxPush() != GiB || lib.MaxRefs() != 100 {
		t.Errorf("%d %d %d %d", site.MaxPush(), site.MaxRefs(), lib.MaxPush(), lib.MaxRefs())
	}
	for option, want := range map[string]bool{"ci.skip": true, "topic=x": true, "topic=": true, "topic": false, "ci.skip=1": false, "ci": false, "merge_request.create": false, "": false, "topics=x": false, "Topic=x": false} {
		if site.Option(option) != want || lib.Option(option) {
			t.Errorf("%q: %v and %v", option, site.Option(option), lib.Option(option))
		}
	}
	for ref, want := range map[string]bool{"refs/heads/main": true, "refs/heads/release/2": true, "refs/heads/develop": false, "refs/heads/agent/x": false, "refs/heads/other": false, "refs/tags/v1": false, "refs/heads/Main": false, "main": false, "": false} {
		pattern, got := site.Proposes(ref)
		if got != want || (pattern == "agent/{branch}-{id}") != want {
			t.Errorf("%s: %q, %v", ref, pattern, got)
		}
	}
	if stored, err := ProposalRef("agent/{branch}-{id}", "refs/heads/release/2", "abc"); stored != "refs/heads/agent/release/2-abc" || err != nil {
		t.Error(stored, err)
	}
	for _, bad := range [][3]string{{"agent/{branch}", "refs/heads/x", "1"}, {"a-{id}", "refs/tags/x", "1"}, {"a-{id}", "refs/heads/x", ""}, {"a-{id}", "refs/heads/x", "a b"}, {"a/{id}", "refs/heads/x", "../main"}} {
		if stored, err := ProposalRef(bad[0], bad[1], bad[2]); err == nil {
			t.Errorf("%q gives %s", bad, stored)
		}
	}
	if !lib.Protected("Makefile") || lib.Protected("x") || !lib.ProtectsFiles() || docs.ProtectsFiles() {
		t.Error("the files of several profiles are not those of all")
	}
	for _, none := range []*GitProfile{nil, {}} {
		if none.Access() != NoAccess || none.Option("ci.skip") || !none.Protected("x") || !none.ProtectedBelow("") || !none.ProtectsFiles() || none.MaxPush() != 0 || none.MaxRefs() != 0 {
			t.Errorf("%v is open", none)
		}
		if _, ok := none.Proposes("refs/heads/main"); ok {
			t.Errorf("%v proposes", none)
		}
	}
}

// TestGitTogether holds that of two expressions about one repository the more closed wins, whatever their order.
func TestGitTogether(t *testing.T) {
	profiles := map[string]string{
		"push":    `rules: [{branches: [main, x], allow: [create, update, force]}], protected-files: []`,
		"propose": `rules: [{branches: [main], propose: pull-request}], protected-files: [a], proposals: "p/{id}"`,
		"deny":    `rules: [{branches: [main], allow: []}, {branches: [x], allow: [create, update]}], protected-files: [b], max-refs: 1`,
	}
	for names, want := range map[string]string{ // update main, propose main, force x, protected
		"push push": "allow deny allow []", "push propose": "deny allow deny [a]", "push deny": "deny deny deny [b]", "propose deny": "deny deny deny [a b]", "push propose deny": "deny deny deny [a b]",
	} {
		for _, reversed := range []bool{false, true} {
			var text strings.Builder
			text.WriteString("version: 1\ngit:\n  upstreams: [{name: a, type: gitlab, url: \"https://a.example\", api: {credential: c}}]\n  profiles:\n")
			for name, body := range profiles {
				fmt.Fprintf(&text, "    - {name: %s, access: write, %s}\n", name, body)
			}
			text.WriteString("  repositories:\n")
			list := strings.Fields(names)
			if reversed {
				slices.Reverse(list)
			}
			for i, name := range list {
				fmt.Fprintf(&text, "    - {upstream: a, matching: \"g/.{%d,}\", profile: %s}\n", i+1, name)
			}
			g := mustOpen(t, mustParse(t, text.String()), "a", "g/repository")
			var files []string
			for _, f := range []string{"a", "b"} {
				if g.Protected(f) {
					files = append(files, f)
				}
			}
			got := fmt.Sprintf("%s %s %s %v", g.DecideRef(GitRef{Name: "refs/heads/main", Change: GitUpdate}).Verdict, g.DecideRef(GitRef{Name: "refs/heads/main", Change: GitPropose}).Verdict,
				g.DecideRef(GitRef{Name: "refs/heads/x", Change: GitForce}).Verdict, files)
			if got != want {
				t.Errorf("%v: %s, want %s", list, got, want)
			}
		}
	}
}

func TestDecideGit(t *testing.T) {
	p := mustParse(t, gitSample)
	push := func(refs ...GitRef) GitOperation {
		return GitOperation{Upstream: "github", Repository: "acme/site", Access: WriteAccess, Refs: refs}
	}
	agent, main := GitRef{Name: "refs/heads/agent/x", Change: GitCreate}, GitRef{Name: "refs/heads/main", Change: GitUpdate}
	proposal := GitRef{Name: "refs/heads/main", Change: GitPropose}
	with := func(op GitOperation, change func(*GitOperation)) GitOperation { change(&op); return op }
	for name, tt := range map[string]struct {
		op   GitOperation
		host string
		want string
	}{
		"read":               {op: GitOperation{Upstream: "github", Repository: "acme/docs", Access: ReadAccess}, want: "allow git:read"},
		"read writable":      {op: GitOperation{Upstream: "github", Repository: "acme/site", Access: ReadAccess}, want: "allow git:contributor"},
		"write":              {op: push(), want: "allow git:contributor"},
		"write read-only":    {op: GitOperation{Upstream: "github", Repository: "acme/docs", Access: WriteAccess}, want: "deny acme/docs is read-only here"},
		"no access":          {op: GitOperation{Upstream: "github", Repository: "acme/site"}, want: "deny no operation"},
		"strange access":     {op: GitOperation{Upstream: "github", Repository: "acme/site", Access: 3}, want: "deny no operation"},
		"refs on reading":    {op: GitOperation{Upstream: "github", Repository: "acme/site", Access: ReadAccess, Refs: []GitRef{agent}}, want: "deny no operation"},
		"zero":               {op: GitOperation{}, want: "deny no upstream"},
		"unknown upstream":   {op: GitOperation{Upstream: "x", Repository: "acme/site", Access: ReadAccess}, want: "deny no upstream x"},
		"closed":             {op: GitOperation{Upstream: "github", Repository: "evil/site", Access: ReadAccess}, want: "deny evil/site at github is not open here"},
		"push":               {op: push(agent), want: "allow git:contributor rule 1"},
		"push main":          {op: push(main), want: "deny main is protected here"},
		"push both":          {op: push(agent, main), want: "deny main is protected here"},
		"proposal":           {op: push(proposal), want: "allow git:contributor rule 2"},
		"too many":           {op: push(agent, agent, agent, agent), want: "deny a push of 4 refs is more than the 3"},
		"option":             {op: with(push(agent), func(o *GitOperation) { o.Options = []string{"ci.skip", "topic=a b"} }), want: "allow git:contributor rule 1"},
		"wrong option":       {op: with(push(agent), func(o *GitOperation) { o.Options = []string{"ci.skip", "merge_request.create\x1b[2J"} }), want: `deny the push option "merge_request.create\x1b[2J" is not allowed here`},
		"files":              {op: with(push(agent), func(o *GitOperation) { o.Files = []string{"README.md"} }), want: "allow git:contributor rule 1"},
		"protected":          {op: with(push(agent), func(o *GitOperation) { o.Files = []string{".github/workflows/ci.yml"} }), want: "deny .github/workflows/ci.yml is protected here: leave it unchanged, or ask for it"},
		"proposed protected": {op: with(push(proposal), func(o *GitOperation) { o.Files = []string{"a/claude.MD"} }), want: "deny a/claude.MD is protected here"},
		"another host":       {op: push(agent), host: "evil.example.com:443", want: "deny evil.example.com is no host of the upstream github"},
		"another port":       {op: push(agent), host: "github.com:80", want: "deny no host of the upstream"},
		"api":                {op: push(proposal), host: "api.github.com:443", want: "allow git:contributor rule 2"},
		"api otherwise":      {op: push(agent), host: "api.github.com:443", want: "deny no host of the upstream"},
		"api and more":       {op: push(proposal, agent), host: "api.github.com:443", want: "deny no host of the upstream"},
		"large":              {op: with(push(), func(o *GitOperation) { o.LFS = true }), host: "github-cloud.s3.amazonaws.com:443", want: "allow git:contributor"},
		"large elsewhere":    {op: with(push(), func(o *GitOperation) { o.LFS = true }), host: "evil.s3.amazonaws.com:443", want: "deny no host of the upstream"},
		"not large":          {op: push(), host: "github-cloud.s3.amazonaws.com:443", want: "deny no host of the upstream"},
		"large with refs":    {op: with(push(agent), func(o *GitOperation) { o.LFS = true }), want: "deny no operation"},
	} {
		where := tt.host
		if where == "" {
			where = "github.com:443"
		}
		for _, law := range []*Policy{p, p.withDefault(Ask)} {
			c := crossing(t, "tls "+where)
			c.Protocol, c.Git = Git, &tt.op
			d := law.Decide(c)
			verdict, want, _ := strings.Cut(tt.want, " ")
			if d.Verdict.String() != verdict || verdict == "allow" && d.Rule != want || verdict == "deny" && !strings.Contains(d.Reason, want) || d.Rule == "" || !oneLine(d.Reason) {
				t.Errorf("%s: %+v, want %s", name, d, tt.want)
			}
		}
	}
	for _, law := range []*Policy{nil, {}, p} {
		if d := law.Decide(Crossing{Protocol: Git, Host: "github.com", Port: 443}); d.Verdict != Deny || d.Rule == "" {
			t.Errorf("no operation at all: %+v", d)
		}
	}
	if r, ok := RuleFor(Crossing{Protocol: Git, Host: "github.com", Port: 443}); ok {
		t.Errorf("a rule of egress for Git: %+v", r)
	}
}

// FuzzDecideGit holds that nothing is allowed without an entry and a rule that match, as restated by regular expressions made of the patterns.
func FuzzDecideGit(f *testing.F) {
	for _, ref := range []string{"refs/heads/main", "refs/heads/agent/x", "refs/heads/Agent/x", "refs/tags/v1", "refs/notes/x", "refs/heads/a/../b", "refs/heads/release/1"} {
		for change := range GitPropose + 1 {
			f.Add([]byte(gitSample), "github", "acme/site", ref, "", uint8(change))
		}
	}
	f.Add([]byte(gitSample), "plain", "x/y", "refs/heads/x", "refs/heads/main", uint8(GitForce))
	f.Add([]byte(strings.ReplaceAll(gitSample, "agent/**", "a*/**/b*c")), "github", "acme/site", "refs/heads/ab/x/bxc", "", uint8(GitCreate))
	f.Fuzz(func(t *testing.T, text []byte, upstream, repository, ref, target string, change uint8) {
		p, err := Parse("f", text)
		if err != nil || !p.ServesGit() {
			return
		}
		u, _ := p.GitUpstream(upstream)
		r := GitRef{Name: ref, Change: GitChange(change), Target: target}
		d := p.Decide(Crossing{Protocol: Git, Host: u.Host, Port: u.Port, Git: &GitOperation{Upstream: upstream, Repository: repository, Access: WriteAccess, Refs: []GitRef{r}}})
		if d.Verdict == Ask || d.Rule == "" || !oneLine(d.Reason) {
			t.Fatalf("%+v", d)
		}
		if d.Verdict != Allow {
			return
		}
		allowed := false
		for _, e := range p.git.repositories {
			named := e.exact == repository || e.exact == "" && regexp.MustCompile(`\A(?:`+e.expression+`)\z`).MatchString(repository)
			if e.upstream != upstream || !named || e.profile.access != WriteAccess {
				continue
			}
			allowed = allowed || restated(e.profile, ref, r.Change) && (target == "" || target == ref || restated(e.profile, target, r.Change))
		}
		if !allowed {
			t.Fatalf("%s of %q (%q) in %s/%s is allowed by %+v, which no rule allows:\n%s", r.Change, ref, target, upstream, repository, d, text)
		}
	})
}

// restated says whether some rule allows a change, in other words than the package's own.
func restated(g *gitProfile, ref string, change GitChange) bool {
	return slices.ContainsFunc(g.rules, func(r gitRule) bool {
		return change > 0 && change <= GitPropose && r.allow[change] && slices.ContainsFunc(r.patterns, func(p pattern) bool { return inOtherWords(p.text).MatchString(ref) })
	})
}

func inOtherWords(pattern string) *regexp.Regexp {
	e := regexp.QuoteMeta(pattern)
	if head, whole := strings.CutSuffix(e, `/\*\*`); whole {
		e = head + `/.+`
	}
	e = strings.ReplaceAll(e, `/\*\*/`, `/(?:.+/)?`)
	e = strings.ReplaceAll(e, `\*`, `[^/]*`)
	return regexp.MustCompile(`(?s)\A` + e + `\z`)
}

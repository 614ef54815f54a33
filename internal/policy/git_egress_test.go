package policy

import (
	"strings"
	"testing"

	"github.com/cofferdam/cofferdam/internal/fault"
)

const gitUpstreamText = `version: 1
git:
  upstreams:
    - {name: github, type: github, url: "https://github.com"}
    - {name: acme, url: "https://git.example.com/acme"}
    - {name: other, url: "https://git.example.com/other"}
    - {name: azure, type: azure, url: "https://dev.azure.com"}
`

// TestGitThroughProxy holds that rules of egress open a forge's pages and not its Git.
func TestGitThroughProxy(t *testing.T) {
	p := mustParse(t, gitUpstreamText+`egress:
  rules:
    - {name: web, hosts: [github.com, "*.github.com", git.example.com, gitlab.com, altssh.gitlab.com], ports: [443, 80, 8443]}
    - {name: ssh, hosts: [gitlab.com, ssh.dev.azure.com], ports: [22, 443], protocol: tcp}
`)
	for text, want := range map[string]string{
		"https github.com:443 GET /acme/site":                                       "allow web",
		"https github.com:443 GET /":                                                "allow web",
		"https github.com:8443 POST /acme/site/issues":                              "allow web",
		"https github.com:443 GET /acme/git-upload-pack-tool":                       "allow web",
		"https github.com:443 GET /acme/site/blob/main/info/refs.md":                "allow web",
		"https github.com:443 GET /acme/site/tree/main/objects":                     "allow web",
		"https api.github.com:443 POST /repos/acme/site/git/refs":                   "allow web",
		"tls github.com:443":                                                        "allow web",
		"http github.com:80":                                                        "allow web",
		"https github.com:443 GET /acme/site.git/info/refs":                         "deny",
		"https github.com:443 GET /acme/site/info/refs":                             "deny",
		"https github.com:443 POST /acme/site.git/git-upload-pack":                  "deny",
		"https github.com:443 POST /acme/site.git/git-receive-pack":                 "deny",
		"https github.com:443 GET /acme/site.git/git-receive-pack/":                 "deny",
		"https github.com:8443 POST /acme/site/Git-Receive-Pack":                    "deny",
		"https github.com:443 POST /acme/site.git%2Fgit-receive-pack":               "deny",
		"https github.com:443 GET /acme/site.git/info%2Frefs":                       "deny",
		"https github.com:443 POST /acme/site.git/git-upload-archive":               "deny",
		"https github.com:443 POST /acme/site.git/info/lfs/objects/batch":           "deny",
		"https github.com:443 GET /acme/site/info/lfs":                              "deny",
		"https github.com:443 PUT /acme/site.git/gitlab-lfs/objects/x/1":            "deny",
		"https github.com:443 GET /acme/site.git/HEAD":                              "deny",
		"https github.com:443 GET /acme/site.git/objects/info/packs":                "deny",
		"https github.com:443 GET /acme/site/objects/pack/pack-x.pack":              "deny",
		"https github.com:443 GET /acme/site/objects/ab/" + strings.Repeat("c", 38): "deny",
		"https github.com:443 GET /acme/site/objects/ab/" + strings.Repeat("c", 37): "allow web",
		"http github.com:80 GET /acme/site.git/info/refs":                           "deny",
		"https git.example.com:443 GET /other/x/info/refs":                          "deny: /other/",
		"https git.example.com:443 GET /acme/x/info/refs":                           "deny: /acme/",
		"https gitlab.com:443 GET /acme/site.git/info/refs":                         "allow web", // no upstream
		"tcp gitlab.com:22":              "allow ssh",
		"tls altssh.gitlab.com:443":      "allow web",
		"tcp github.com:22":              "deny",
		"unknown github.com:443":         "deny",
		"tcp github.com:9418":            "deny",
		"tls ssh.github.com:443":         "deny",
		"https ssh.github.com:443 GET /": "deny",
		"dns ssh.github.com:0":           "deny",
		"dns github.com:0":               "allow web",
		"tcp ssh.dev.azure.com:22":       "deny",
		"dns vs-ssh.visualstudio.com:0":  "deny",
		"tls x.github.com:443":           "allow web",
	} {
		words := strings.Fields(text)
		c := crossing(t, strings.Join(words[:2], " "))
		if len(words) > 2 {
			c.Method, c.Path = words[2], words[3]
		}
		want, url, _ := strings.Cut(want, ": ")
		for _, law := range []*Policy{p, p.withDefault(Ask)} {
			d := law.Decide(c)
			if named := law.DecideName(c.Host); c.Protocol == DNS && named != d {
				t.Errorf("%s: %+v by name, %+v", text, named, d)
			}
			got := d.Verdict.String()
			if got == "allow" {
				got += " " + d.Rule
			}
			if got != want || want == "deny" && (d.Rule != RuleGitThroughProxy || !strings.Contains(d.Reason, GitProxy) || !strings.Contains(d.Reason, url) || !oneLine(d.Reason)) {
				t.Errorf("%s: %+v, want %s", text, d, want)
			}
			if flag := law.AllowFlag(c); want == "deny" && flag != "" {
				t.Errorf("%s: %s is suggested, which opens nothing", text, flag)
			}
		}
	}
}

func TestGitInspects(t *testing.T) {
	rules := func(text string) *Policy { return mustParse(t, gitUpstreamText+text) }
	for text, want := range map[string]bool{
		"": false, "egress: {default: ask}\n": true, "egress: {rules: [{hosts: [github.com]}]}\n": true, "egress: {rules: [{hosts: [github.com], verdict: ask}]}\n": true,
		"egress: {rules: [{hosts: [github.com], verdict: deny}]}\n": false, "egress: {rules: [{hosts: [api.github.com, \"*.github.com\"]}]}\n": false,
	} {
		p := rules(text)
		if got := p.Inspects("github.com", 443); got != want || p.InspectsAny() != want || p.Inspects("github.com", 9999) != want {
			t.Errorf("%q: %v and %v, want %v", text, got, p.InspectsAny(), want)
		}
		if !p.JudgesPaths("github.com", 443) || p.JudgesPaths("api.github.com", 443) || p.Inspects("api.github.com", 443) || p.Opaque(crossing(t, "unknown github.com:22")) {
			t.Errorf("%q: paths or other hosts", text)
		}
	}
	if d := rules("").Decide(crossing(t, "dns github.com:0")); d.Verdict != Deny || d.Rule != RuleDefault || !strings.Contains(d.Reason, GitProxy+"github/") {
		t.Errorf("%+v", d)
	}
}

// TestGitBlinds holds that no rule takes away the sight of what goes to an upstream, be it in the file, a flag, a question's answer or a repository's.
func TestGitBlinds(t *testing.T) {
	for text, want := range map[string]string{
		"{hosts: [github.com], ports: [22], protocol: tcp}":                "egress.rules[0].protocol: rule",
		"{hosts: [github.com], tls: tunnel}":                               `egress.rules[0].tls: rule "x" passes bytes through unread, but github.com is the Git upstream "github"`,
		"{hosts: [\"*.example.com\"], tls: tunnel}":                        `git.example.com is the Git upstream "acme"`,
		"{hosts: [github.com], tls: tunnel, verdict: ask}":                 "egress.rules[0].tls",
		"{hosts: [github.com], ports: [22], protocol: tcp, verdict: deny}": "",
		"{hosts: [\"*.github.com\"], ports: [22], protocol: tcp}":          "",
		"{hosts: [example.com], tls: tunnel}":                              "",
	} {
		body := "egress: {rules: [" + strings.Replace(text, "{", "{name: x, ", 1) + "]}\n"
		_, err := Parse("f", []byte(gitUpstreamText+body))
		if (err != nil) != (want != "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
		rule := mustParse(t, "version: 1\n"+body)
		git := mustParse(t, gitUpstreamText)
		if _, err := git.Extend(Options{Rules: rule.Rules()}); (err != nil) != (want != "") || err != nil && (fault.KindOf(err) != fault.Invalid || fault.HintOf(err) == "") {
			t.Errorf("%s as a flag: %v", text, err)
		}
		if _, err := AppendRule([]byte(gitUpstreamText), rule.Rules()[0]); (err != nil) != (want != "") || err != nil && !strings.Contains(err.Error(), "is the Git upstream") {
			t.Errorf("%s appended: %v", text, err)
		}
		ceiling := mustParse(t, gitUpstreamText+"egress: {default: ask, rules: [{hosts: [github.com, \"*.example.com\", \"*.github.com\", example.com], ports: [443, 80]}]}\n")
		if _, err := Narrow(ceiling, rule); err != nil && want == "" || want != "" && (err == nil || !strings.Contains(err.Error(), "is the Git upstream")) {
			t.Errorf("%s in a repository: %v", text, err)
		}
		for _, answered := range []*Policy{git.With(rule.Rules()...), git.With(rule.Rules()...).withDefault(Ask)} {
			if h := host(t, "github.com"); want != "" && (answered.Decide(crossing(t, "tcp github.com:22")).Verdict != Deny || answered.Opaque(crossing(t, "unknown github.com:22")) || answered.reachesGit(h) != answered.Inspects(h, 443)) {
				t.Errorf("%s as an answer opens SSH", text)
			}
		}
	}
	p := mustParse(t, gitUpstreamText+"egress: {rules: [{hosts: [ssh.github.com]}]}\n")
	if w := p.Warnings(); len(w) != 1 || !strings.Contains(w[0].String(), "8:18: warning: egress.rules[0]: ssh.github.com stays closed while github.com is a Git upstream; remove it") {
		t.Errorf("%v", w)
	}
}

func TestNarrowRefusesGit(t *testing.T) {
	ceiling := mustParse(t, gitSample)
	for _, text := range []string{gitSample, "version: 1\ngit:\n", gitUpstreamText} {
		_, err := Narrow(ceiling, mustParse(t, text))
		if err == nil || strings.Count(err.Error(), "\n") > 0 || !strings.Contains(err.Error(), "test.yaml:2:1: git: a repository's own policy cannot have a section git; remove the section") {
			t.Errorf("%v", err)
		}
	}
	narrowed, err := Narrow(ceiling, mustParse(t, "version: 1\n"))
	if err != nil || mustOpen(t, narrowed, "github", "acme/site").Access() != WriteAccess {
		t.Errorf("a repository's policy without the section closes Git: %v", err)
	}
	if extended, err := ceiling.Extend(Options{}); err != nil || mustOpen(t, extended, "github", "acme/site").Access() != WriteAccess {
		t.Errorf("flags close Git: %v", err)
	}
}

func TestAppendKeepsGit(t *testing.T) {
	rule := mustParse(t, "version: 1\negress: {rules: [{hosts: [a.example]}]}\n").Rules()[0]
	for _, text := range []string{gitSample, gitSample + "egress:\n  rules: []\n", "{version: 1, git: {upstreams: [{name: a, url: \"https://a.example\"}]}}\n"} {
		out, err := AppendRule([]byte(text), rule)
		if err != nil {
			t.Errorf("%v", err)
			continue
		}
		before, after := mustParse(t, text), mustParse(t, string(out))
		if before.git.text() != after.git.text() || len(after.Rules()) != 1 {
			t.Errorf("the section changed:\n%s", out)
		}
	}
	before, after := mustParse(t, gitSample), mustParse(t, strings.Replace(gitSample, "main, ", "", 1)).With(rule)
	if !addsOnly(before, before.With(rule), []Rule{rule}) || addsOnly(before, after, []Rule{rule}) {
		t.Error("what is read back is not compared")
	}
	seen := map[string]string{}
	for _, change := range [][2]string{{"", ""}, {"github-git", "other"}, {"3000", "3001"}, {"type: gitea", "type: gitlab"}, {"fix-*", "fix*"}, {"allow: [update]", "allow: [create]"}, {"ci.skip", "ci.no"}, {"AGENTS.md", "A.md"}, {"512MiB", "511MiB"}, {"max-refs: 3", "max-refs: 4"},
		{"acme/site", "acme/size"}, {"acme/secret|", "acme/secrets|"}, {"acme/docs, profile: read", "acme/docs, profile: wide"}} {
		text := mustParse(t, strings.Replace(gitSample, change[0], change[1], 1)).git.text()
		if other, same := seen[text]; same {
			t.Errorf("a change of %q looks like one of %q", change[0], other)
		}
		seen[text] = change[0]
	}
}

package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/policy"
)

// policyCommand runs "cofferdam policy" with arguments on a state directory.
func policyCommand(t *testing.T, state string, args ...string) (stdout string, err error) {
	t.Helper()
	var out, errs bytes.Buffer
	cmd := newPolicyCommand(&app{stdout: &out, stderr: &errs, state: state})
	cmd.SetArgs(args)
	cmd.SetOut(&errs)
	cmd.SetErr(&errs)
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	err = cmd.ExecuteContext(t.Context())
	return out.String(), err
}

func TestPolicyInit(t *testing.T) {
	t.Chdir(t.TempDir())
	if out, err := policyCommand(t, t.TempDir(), "init"); err != nil || !strings.Contains(out, "cofferdam run --policy cofferdam.yaml") {
		t.Fatalf("init: %q, %v", out, err)
	}
	if _, err := readPolicy("cofferdam.yaml"); err != nil {
		t.Error(err)
	}
	if _, err := policyCommand(t, t.TempDir(), "init"); fault.KindOf(err) != fault.Conflict || !strings.Contains(fault.HintOf(err), "--force") {
		t.Errorf("a file that exists: %v", err)
	}
	if err := os.WriteFile("other", []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("other", "link.yaml"); err != nil {
		t.Fatal(err)
	}
	if _, err := policyCommand(t, t.TempDir(), "init", "link.yaml"); fault.KindOf(err) != fault.Conflict {
		t.Errorf("a link: %v", err)
	}
	if _, err := policyCommand(t, t.TempDir(), "init", "link.yaml", "--force"); err != nil {
		t.Error(err)
	}
	if data, _ := os.ReadFile("other"); string(data) != "precious" {
		t.Errorf("init wrote through a link: %q", data)
	}
	if out, err := policyCommand(t, t.TempDir(), "init", "-"); err != nil || out != string(policy.Starter()) {
		t.Errorf("init -: %q, %v", out, err)
	}
	if _, err := policyCommand(t, t.TempDir(), "init", "absent/policy.yaml"); fault.KindOf(err) != fault.Invalid {
		t.Errorf("a folder that is absent: %v", err)
	}
	if left, _ := filepath.Glob(".cofferdam-*"); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestPolicyInitFromRun(t *testing.T) {
	state, file := auditState(t), filepath.Join(t.TempDir(), "least.yaml")
	if _, err := policyCommand(t, state, "init", file, "--from", auditTestRun.String()); err != nil {
		t.Fatal(err)
	}
	p, err := readPolicy(file)
	if err != nil {
		t.Fatal(err)
	}
	for target, want := range map[string]policy.Verdict{"mirror.example.com:443": policy.Allow, "mirror.example.com:80": policy.Deny, "evil.example.org:80": policy.Deny} {
		c, err := policy.ParseTarget(target)
		if err != nil {
			t.Fatal(err)
		}
		if d := p.Decide(c); d.Verdict != want {
			t.Errorf("%s: %+v, want %v", target, d, want)
		}
	}
	if data, _ := os.ReadFile(file); !strings.Contains(string(data), `"192.0.2.0/24"`) || strings.ContainsAny(string(data), "\x1b\a") {
		t.Errorf("the file:\n%s", data)
	}
	if _, err := policyCommand(t, state, "init", "-", "--from", "zzzzzzzz"); fault.KindOf(err) != fault.NotFound {
		t.Errorf("a run without events: %v", err)
	}
	if _, err := policyCommand(t, state, "init", "-", "--from", "no such run"); err == nil {
		t.Error("a name that is no run's")
	}
}

func TestPolicyCheck(t *testing.T) {
	t.Chdir(t.TempDir())
	for name, text := range map[string]string{
		"good.yaml": "version: 1\n", "bad.yaml": "version: 2\negress: {rules: [{host: [a.example]}]}\n",
		"warn.yaml": "version: 1\nenvironment: {API_TOKEN: 0123456789abcdef0123}\n",
	} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := policyCommand(t, "", "check", "good.yaml"); err != nil || out != "good.yaml: in order\n" {
		t.Errorf("good: %q, %v", out, err)
	}
	if out, err := policyCommand(t, "", "check", "warn.yaml"); err != nil || !strings.HasPrefix(out, "warn.yaml:2:26: warning: environment.API_TOKEN: ") || !strings.HasSuffix(out, "warn.yaml: in order\n") {
		t.Errorf("warn: %q, %v", out, err)
	}
	out, err := policyCommand(t, "", "check", "good.yaml", "bad.yaml", "absent.yaml")
	if err != status(exitUsage) {
		t.Errorf("bad: %v", err)
	}
	for _, want := range []string{"good.yaml: in order\n", "bad.yaml:1:10: version: ", "; write version: 1\n", "bad.yaml:2:19: egress.rules[0]: unknown key \"host\"; did you mean hosts?", "absent.yaml: cannot read"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is missing in\n%s", want, out)
		}
	}
	out, err = policyCommand(t, "", "check", "--json", "good.yaml", "bad.yaml")
	var results []checkedPolicy
	if json.Unmarshal([]byte(out), &results) != nil || err != status(exitUsage) || len(results) != 2 || !results[0].OK || results[1].OK || results[1].Problems[0].Line != 1 || results[0].Problems == nil {
		t.Errorf("json: %v\n%s", err, out)
	}
}

func TestPolicyExplain(t *testing.T) {
	file := filepath.Join(t.TempDir(), "p.yaml")
	if err := os.WriteFile(file, []byte("version: 1\negress:\n  rules:\n    - {name: web, hosts: [\"*.example.com\"]}\n    - {name: never, hosts: [bad.example.com], verdict: deny}\n    - {name: ssh, hosts: [git.example.com], ports: [22], protocol: tcp}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for args, want := range map[string][]string{
		"a.example.com:443":                 {"a.example.com port 443, tls: allow", `+ web (line 4), allow`, "- never (line 5), deny: it is about other hosts"},
		"https://bad.example.com/x":         {"bad.example.com port 443, https: deny", `by rule "never"`, "+ never (line 5), deny"},
		"git.example.com:22 --protocol=tcp": {": allow", `by rule "ssh"`},
		"other.example:443":                 {": deny", "no rule is about other.example", "to allow it: --allow other.example:443"},
		"other.example":                     {"the name other.example, dns: deny"},
		"10.1.2.3:5432 --protocol=tcp":      {": deny", "special-purpose address (private network)", "to allow it: --allow tcp:10.1.2.3:5432"},
		"[::ffff:169.254.169.254]:80":       {": deny", "metadata"},
		"a.example.com:22":                  {": deny", "not about port 22", "it is about port 443, 80"},
		"a.example.com:443 --protocol=tcp":  {": deny", "neither TLS nor plain HTTP"},
	} {
		out, err := policyCommand(t, "", append([]string{"explain", file}, strings.Fields(args)...)...)
		if err != nil {
			t.Errorf("%s: %v", args, err)
		}
		for _, w := range want {
			if !strings.Contains(out, w) {
				t.Errorf("%s: %q is missing in\n%s", args, w, out)
			}
		}
	}
	out, err := policyCommand(t, "", "explain", "--json", file, "a.example.com:443")
	var e policy.Explanation
	if json.Unmarshal([]byte(out), &e) != nil || err != nil || e.Verdict != "allow" || e.Rule != "web" || e.Line != 4 || len(e.Steps) != 3 {
		t.Errorf("json: %v\n%s", err, out)
	}
	git := filepath.Join(t.TempDir(), "git.yaml")
	if err := os.WriteFile(git, []byte("version: 1\ngit:\n  upstreams: [{name: forge, url: \"https://git.example.com\"}]\n  profiles:\n    - name: work\n      access: write\n      rules:\n        - {branches: [main], allow: []}\n        - {branches: [\"**\"], allow: [create, update]}\n  repositories:\n    - {upstream: forge, repository: acme/site, profile: work}\n    - {upstream: forge, matching: acme/s.*, profile: read}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for args, want := range map[string][]string{
		"git:forge/acme/site":                  {"forge/acme/site, reading: allow", "forge/acme/site, pushing: allow", "+ git.repositories[0] (line 11), write: it gives the profile work", "- git.repositories[1] (line 12), read: an entry that names the repository goes before it"},
		"git:forge/acme/site.git":              {"forge/acme/site, reading: allow"},
		"git:forge/acme/other":                 {"forge/acme/other, reading: deny", "acme/other at forge is not open here", "- git.repositories[0] (line 11), write: it is about other repositories"},
		"git:forge/acme/site refs/heads/x":     {"creating x: allow", "updating x: allow", "force-pushing x: deny", "deleting x: deny", "+ git:work rule 2 (line 9), allow", "- git:work rule 1 (line 8), deny: it is about other refs"},
		"git:forge/acme/site refs/heads/main":  {"updating main: deny", "main is protected here", "+ git:work rule 1 (line 8), deny: it is about this ref"},
		"git:forge/acme/site refs/heads/Main":  {"updating Main: deny", "+ git:work rule 1 (line 8), deny: it is about this ref in other letter case, which closes it"},
		"git:nowhere/acme/site":                {"there is no upstream nowhere here"},
		"git:forge/acme/../x refs/heads/agent": {"no path of a repository"},
		"https://git.example.com/a/info/refs":  {", https: deny", "Git to git.example.com goes through its proxy: use http://git.cofferdam.internal/forge/"},
	} {
		out, err := policyCommand(t, "", append([]string{"explain", git}, strings.Fields(args)...)...)
		if err != nil {
			t.Errorf("%s: %v", args, err)
		}
		for _, w := range want {
			if !strings.Contains(out, w) {
				t.Errorf("%s: %q is missing in\n%s", args, w, out)
			}
		}
	}
	out, err = policyCommand(t, "", "explain", "--json", git, "git:forge/acme/site", "refs/tags/v1")
	var all []policy.Explanation
	if json.Unmarshal([]byte(out), &all) != nil || err != nil || len(all) != 5 || all[0].Verdict != "deny" || all[0].Reason != "tags are not allowed here" || len(all[0].Steps) != 4 {
		t.Errorf("json: %v\n%s", err, out)
	}
	for _, args := range []string{git + " git:forge/acme/site main", git + " git:forge/acme/site refs/heads/main --protocol=tcp", git + " a.example:443 refs/heads/main", file + " git:forge/acme/site"} {
		if _, err := policyCommand(t, "", append([]string{"explain"}, strings.Fields(args)...)...); fault.KindOf(err) != fault.Invalid || fault.HintOf(err) == "" {
			t.Errorf("%s: %v, want a refusal with a hint", args, err)
		}
	}
	for _, args := range []string{"A.example:443", "10.1.2.3", "a.example:0", "a.example:443 --protocol=udp", "a.example --protocol=tcp"} {
		if _, err := policyCommand(t, "", append([]string{"explain", file}, strings.Fields(args)...)...); fault.KindOf(err) != fault.Invalid || fault.HintOf(err) == "" {
			t.Errorf("%s: %v, want a refusal with a hint", args, err)
		}
	}
	if _, err := policyCommand(t, "", "explain", file+"x", "a.example:443"); fault.KindOf(err) != fault.Invalid {
		t.Errorf("a file that is absent: %v", err)
	}
}

func TestPolicySchema(t *testing.T) {
	out, err := policyCommand(t, "", "schema")
	if err != nil || !json.Valid([]byte(out)) || !strings.Contains(out, "2020-12") {
		t.Errorf("%v\n%s", err, out)
	}
}

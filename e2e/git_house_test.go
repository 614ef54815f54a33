package e2e

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// gitInside is where programs inside find the forge's repositories, for those that are not led there by Git's settings.
const gitInside = "http://git.cofferdam.internal/test"

// gitHouse is a house from which repositories of a forge are reached, by a credential in its store.
type gitHouse struct {
	*house
	f *forge
}

// gitProfiles are the rules that most tests go by: branches of every degree of openness, tags, an option, protected files.
const gitProfiles = `  profiles:
    - name: worker
      access: write
      rules:
        - {branches: ["agent/**", alias, other], allow: [create, update, force, delete]}
        - {branches: ["steady/**"], allow: [create, update]}
        - {branches: [main], allow: []}
        - {tags: ["v*"], allow: [create]}
      push-options: ["ci.skip=*"]
      protected-files: [".github/workflows/", "AGENTS.md"]
    - name: unchecked
      access: write
      rules:
        - {branches: ["agent/**"], allow: [create, update, force, delete]}
      protected-files: []
`

// gitRepositories opens the forge's repositories, but for acme/hidden and what tests make themselves.
const gitRepositories = `  repositories:
    - {upstream: test, repository: acme/site, profile: worker}
    - {upstream: test, repository: acme/new, profile: worker}
    - {upstream: test, repository: acme/alias, profile: worker}
    - {upstream: test, repository: acme/read, profile: read}
    - {upstream: test, repository: public/open, profile: read}
    - {upstream: test, matching: "acme/big[0-9]*", profile: unchecked}
`

// newGitHouse sets a house up with the forge's credential and a policy. What is given more is put into the policy, at its end.
func newGitHouse(h *house, f *forge, more string) *gitHouse {
	h.t.Helper()
	g := &gitHouse{h, f}
	h.trust = filepath.Join(h.home, "authority.pem")
	if err := os.WriteFile(h.trust, f.authority, 0o644); err != nil {
		h.t.Fatal(err)
	}
	g.addCredential()
	g.law(fmt.Sprintf(`  upstreams:
    - {name: test, url: "https://%s:%s", credential: forge, lfs-hosts: [%s]}
    - {name: expired, url: "https://%s:%s", credential: forge}
`, gitHost, f.port, objectsHost, expiredHost, f.port)+gitProfiles+gitRepositories, more)
	return g
}

// addCredential puts the forge's token into the store, for both of its names.
func (g *gitHouse) addCredential() {
	g.t.Helper()
	r := g.doWith(time.Minute, gitToken+"\n", "credential", "add", "forge", "--user", "x-access-token", "--host", gitHost, "--host", expiredHost, "--port", g.f.port)
	if r.code != 0 {
		g.t.Fatalf("credential add: %s%s", r.stdout, r.stderr)
	}
}

// law writes the policy: the section git, and what comes more.
func (g *gitHouse) law(section, more string) {
	g.t.Helper()
	g.write("../agent.yaml", "version: 1\negress:\n  networks: [127.0.0.0/8]\n"+strings.ReplaceAll(more, "PORT", g.f.port)+"git:\n"+section)
	g.own(g.home)
}

// gitFlags are those of each run: the policy, and where the forge's names are.
func (g *gitHouse) gitFlags() []string {
	flags := []string{"run", "--policy", "../agent.yaml"}
	for _, name := range []string{gitHost, otherHost, expiredHost} {
		flags = append(flags, "--resolve", name+"=127.0.0.1")
	}
	return append(flags, "--resolve", objectsHost+"="+g.f.objects)
}

// script runs a shell script in a sandbox. The clients lie in its folder.
func (g *gitHouse) script(limit time.Duration, text string, flags ...string) result {
	g.t.Helper()
	g.write("script.sh", text)
	return g.doWith(limit, "", append(append(g.gitFlags(), flags...), "--", "sh", "script.sh")...)
}

// direct is the address of the forge's repositories as people know it.
func (g *gitHouse) direct() string { return "https://" + gitHost + ":" + g.f.port }

// records reads the audit records of the last run, with every member.
func (g *gitHouse) records() (all []map[string]any) {
	g.t.Helper()
	r := g.do("audit", "last", "--json")
	if r.code != 0 {
		g.t.Fatalf("audit: %s", r.stderr)
	}
	for line := range strings.Lines(r.stdout) {
		var e map[string]any
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			g.t.Fatalf("audit line %q: %v", line, err)
		}
		all = append(all, e)
	}
	return all
}

// forms are those in which a look through files and streams would find a secret: as it is, and encoded, at each of the places that base64 can begin at.
func forms(secret string) map[string]string {
	all := map[string]string{"plain": secret, "hexadecimal": hex.EncodeToString([]byte(secret)), "upper hexadecimal": strings.ToUpper(hex.EncodeToString([]byte(secret)))}
	for offset := range 3 {
		encoded := base64.StdEncoding.EncodeToString([]byte(strings.Repeat("x", offset) + secret + "xxx"))
		from, to := (offset*8+5)/6+1, (offset+len(secret))*8/6-1
		all[fmt.Sprintf("base64 at %d", offset)] = encoded[from:to]
	}
	if escaped := url.QueryEscape(secret); escaped != secret {
		all["escaped"] = escaped
	}
	return all
}

// noToken fails if a text has one of the forge's secrets.
func noToken(t *testing.T, where, text string) {
	t.Helper()
	for _, secret := range []string{gitToken, objectToken} {
		for form, value := range forms(secret) {
			if i := strings.Index(text, value); i >= 0 {
				t.Errorf("%.60s: %.3s token, %s: …%.200s", where, secret, form, text[max(0, i-80):])
			}
		}
	}
}

// searchTokens looks for the forge's secrets in everything that was written on the host, and in what the commands say.
func (g *gitHouse) searchTokens() {
	g.t.Helper()
	files := 0
	for _, dir := range []string{g.state, g.project} {
		err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() || strings.Contains(path, "/clients/") {
				return err
			}
			data, err := os.ReadFile(path)
			files++
			noToken(g.t, path, string(data))
			return err
		})
		if err != nil {
			g.t.Errorf("search %s: %v", dir, err)
		}
	}
	if files < 3 {
		g.t.Errorf("searched only %d files", files)
	}
	for _, args := range [][]string{{"credential", "list"}, {"credential", "show", "forge", "--json"}, {"audit", "--json"}, {"ps", "-a", "--json"}} {
		r := g.do(args...)
		noToken(g.t, strings.Join(args, " "), r.stdout+r.stderr)
	}
}

package forge_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/gateway/git/forge"
	"github.com/cofferdam/cofferdam/internal/gateway/git/forge/forgetest"
	"github.com/cofferdam/cofferdam/internal/policy"
)

// realGitea is a Gitea from its own sources, with an administrator and a repository.
type realGitea struct {
	t     *testing.T
	dir   string
	api   *url.URL
	write string // a token of the administrator
	token string // what requests are sent with
}

const giteaWeb = "https://gitea.test" // what it believes to be called by browsers

// startGitea starts the Gitea that "make test-gitea" built.
func startGitea(t *testing.T) *realGitea {
	t.Helper()
	built := os.Getenv("COFFERDAM_GITEA")
	if built == "" {
		t.Skip("needs a Gitea, which make test-gitea builds")
	}
	dir, err := os.MkdirTemp("", "cofferdam-gitea-") // not t.TempDir, which other users cannot enter
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) }) // what is left of it is the system's to clear
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := free.Addr().(*net.TCPAddr)
	_ = free.Close() // it was only to learn a port
	g := &realGitea{t: t, dir: dir, api: &url.URL{Scheme: "http", Host: address.String(), Path: "/api/v1"}}
	config := fmt.Sprintf(`RUN_MODE = prod
WORK_PATH = %[1]s
[database]
DB_TYPE = sqlite3
PATH = %[1]s/gitea.db
[repository]
ROOT = %[1]s/repositories
[server]
HTTP_ADDR = 127.0.0.1
HTTP_PORT = %[2]d
ROOT_URL = %[3]s/
STATIC_ROOT_PATH = %[4]s/static
DISABLE_SSH = true
OFFLINE_MODE = true
[security]
INSTALL_LOCK = true
[log]
LEVEL = warn
[cron]
ENABLED = false
`, dir, address.Port, giteaWeb, built)
	if err := os.WriteFile(filepath.Join(dir, "app.ini"), []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 {
		for _, name := range []string{dir, filepath.Join(dir, "app.ini")} { // it writes keys of its own into the latter
			if err := os.Chown(name, nobody, nobody); err != nil {
				t.Fatal(err)
			}
		}
	}
	program := filepath.Join(built, "gitea")
	g.run(program, "--config", "app.ini", "migrate")
	g.run(program, "--config", "app.ini", "admin", "user", "create", "--admin", "--username", "acme", "--password", "a-Long-passw0rd", "--email", "acme@example.com", "--must-change-password=false")
	g.write = g.mint(program, "write:repository,write:user")
	g.token = g.write
	server := g.command(program, "--config", "app.ini", "web")
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = server.Process.Signal(syscall.SIGTERM) // Wait says whether it went
		_ = server.Wait()                          // it was told to end
	})
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		if status, _ := g.ask(http.MethodGet, "/version", nil); status == http.StatusOK {
			return g
		} else if time.Now().After(end) {
			t.Fatal("Gitea does not answer")
		}
	}
}

const nobody = 65534

func (g *realGitea) command(program string, args ...string) *exec.Cmd {
	cmd := exec.Command(program, args...)
	cmd.Dir = g.dir
	cmd.Env = []string{"HOME=" + g.dir, "GITEA_WORK_DIR=" + g.dir, "PATH=" + os.Getenv("PATH")}
	if os.Geteuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	}
	return cmd
}

func (g *realGitea) run(program string, args ...string) string {
	g.t.Helper()
	out, err := g.command(program, args...).CombinedOutput()
	if err != nil {
		g.t.Fatalf("%s %v: %v\n%s", program, args, err, out)
	}
	return string(out)
}

// mint makes a token of the administrator with some scopes.
func (g *realGitea) mint(program, scopes string) string {
	g.t.Helper()
	out := g.run(program, "--config", "app.ini", "admin", "user", "generate-access-token", "--username", "acme", "--token-name", scopes, "--scopes", scopes, "--raw")
	lines := strings.Fields(out)
	return lines[len(lines)-1]
}

// ask sends a request to the API and returns the status and the fields of the answer.
func (g *realGitea) ask(method, path string, form any) (int, map[string]any) {
	g.t.Helper()
	var body io.Reader
	if form != nil {
		data, err := json.Marshal(form)
		if err != nil {
			g.t.Fatal(err)
		}
		body = bytes.NewReader(data)
	}
	r, err := http.NewRequestWithContext(g.t.Context(), method, g.api.String()+path, body)
	if err != nil {
		g.t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	resp, err := g.do(g.t.Context(), r)
	if err != nil {
		return 0, nil
	}
	defer func() { _ = resp.Body.Close() }()
	var fields map[string]any
	_ = json.NewDecoder(resp.Body).Decode(&fields) // not every answer is an object
	return resp.StatusCode, fields
}

func (g *realGitea) do(_ context.Context, r *http.Request) (*http.Response, error) {
	r.Host = "gitea.test" // as if it came through TLS: the URLs in answers are made of it
	r.Header.Set("X-Forwarded-Proto", "https")
	if g.token != "" {
		r.Header.Set("Authorization", "token "+g.token)
	}
	return http.DefaultTransport.RoundTrip(r) // follows no redirect
}

// repository makes a repository with the branches of the tests.
func (g *realGitea) repository(name string) {
	g.t.Helper()
	must := func(method, path string, form any, want int) {
		if status, answer := g.ask(method, path, form); status != want {
			g.t.Fatalf("%s %s: %d, %v", method, path, status, answer)
		}
	}
	must(http.MethodPost, "/user/repos", map[string]any{"name": name, "auto_init": true, "default_branch": "main"}, http.StatusCreated)
	at := "/repos/acme/" + name
	for _, branch := range []string{"release/1.0", "agent/x", "agent/same"} {
		must(http.MethodPost, at+"/branches", map[string]any{"new_branch_name": branch, "old_branch_name": "main"}, http.StatusCreated)
	}
	must(http.MethodPost, at+"/contents/new.txt", map[string]any{"branch": "agent/x", "content": "aGVsbG8=", "message": "new"}, http.StatusCreated)
}

// TestRealGitea: what holds with the server of the tests holds with a real Gitea.
func TestRealGitea(t *testing.T) {
	g := startGitea(t)
	g.repository("site")
	web, err := url.Parse(giteaWeb)
	if err != nil {
		t.Fatal(err)
	}
	open := func(change func(p *forge.Proposal)) (forge.Opened, error) {
		p := forge.Proposal{Repository: "acme/site", Head: "agent/x", Base: "main", Title: "A change", Body: "Why.\n", Web: web}
		change(&p)
		return forge.Open(t.Context(), g.do, policy.Gitea, g.api, p)
	}
	same := func(*forge.Proposal) {}
	for _, existing := range []bool{false, true} {
		got, err := open(same)
		if want := (forge.Opened{URL: giteaWeb + "/acme/site/pulls/1", Number: 1, Existing: existing}); err != nil || got != want {
			t.Errorf("got %+v, %v, want %+v", got, err, want)
		}
	}
	if status, pull := g.ask(http.MethodGet, "/repos/acme/site/pulls/1", nil); status != http.StatusOK || pull["title"] != "A change" || pull["body"] != "Why.\n" || pull["state"] != "open" {
		t.Errorf("%d, %v", status, pull)
	}
	got, err := open(func(p *forge.Proposal) { p.Base = "release/1.0" })
	if want := (forge.Opened{URL: giteaWeb + "/acme/site/pulls/2", Number: 2}); err != nil || got != want {
		t.Errorf("another base: got %+v, %v, want %+v", got, err, want)
	}
	got, err = open(func(p *forge.Proposal) { p.Repository = "Acme/SITE" })
	if want := (forge.Opened{URL: giteaWeb + "/acme/site/pulls/1", Number: 1, Existing: true}); err != nil || got != want {
		t.Errorf("other letters: got %+v, %v, want %+v", got, err, want)
	}
	got, err = open(func(p *forge.Proposal) { p.Head, p.Title = "agent/same", strings.Repeat("é", 300) })
	if err != nil || got.Number != 3 { // it opens one with nothing in it
		t.Errorf("nothing to merge: got %+v, %v", got, err)
	}
	if status, _ := g.ask(http.MethodPatch, "/repos/acme/site/pulls/1", map[string]any{"state": "closed"}); status != http.StatusCreated {
		t.Errorf("closing: %d", status)
	}
	got, err = open(same)
	if want := (forge.Opened{URL: giteaWeb + "/acme/site/pulls/4", Number: 4}); err != nil || got != want {
		t.Errorf("after closing: got %+v, %v, want %+v", got, err, want)
	}

	program := filepath.Join(os.Getenv("COFFERDAM_GITEA"), "gitea")
	read := g.mint(program, "read:repository")
	none := g.mint(program, "read:misc")
	for name, c := range map[string]struct {
		token  string
		change func(p *forge.Proposal)
		kind   fault.Kind
	}{
		"no such base":       {g.write, func(p *forge.Proposal) { p.Base = "gone" }, fault.NotFound},
		"no such head":       {g.write, func(p *forge.Proposal) { p.Head = "gone" }, fault.NotFound},
		"no such repository": {g.write, func(p *forge.Proposal) { p.Repository = "acme/gone" }, fault.NotFound},
		"wrong token":        {"0123456789012345678901234567890123456789", same, fault.Unauthenticated},
		"no token":           {"", same, fault.Unauthenticated},
		"only reading":       {read, same, fault.Denied},
		"another scope":      {none, same, fault.Denied},
	} {
		g.token = c.token
		if got, err := open(c.change); fault.KindOf(err) != c.kind {
			t.Errorf("%s: got %+v, %v (%v), want %v", name, got, err, fault.KindOf(err), c.kind)
		}
	}
	g.token = g.write
	if status, _ := g.ask(http.MethodPatch, "/repos/acme/site", map[string]any{"archived": true}); status != http.StatusOK {
		t.Fatalf("archiving: %d", status)
	}
	if got, err := open(func(p *forge.Proposal) { p.Head = "release/1.0" }); fault.KindOf(err) != fault.Denied || !strings.Contains(fault.Public(err), "archived") {
		t.Errorf("archived: got %+v, %v", got, err)
	}
}

// TestRealGiteaAnswers: the server of the tests answers the same requests with the same statuses and the same fields.
func TestRealGiteaAnswers(t *testing.T) {
	g := startGitea(t)
	g.repository("site")
	s := start(t, policy.Gitea)
	s.Token("reader-token", forgetest.Read)
	read := g.mint(filepath.Join(os.Getenv("COFFERDAM_GITEA"), "gitea"), "read:repository")
	form := func(change ...string) map[string]any {
		f := map[string]any{"title": "t", "head": "agent/x", "base": "main", "body": "b"}
		for i := 0; i < len(change); i += 2 {
			f[change[i]] = change[i+1]
		}
		return f
	}
	const pulls = "/repos/acme/site/pulls"
	tokens := map[string][2]string{"write": {g.write, canary}, "read": {read, "reader-token"}, "wrong": {"0123456789012345678901234567890123456789", "wrong"}, "none": {}}
	for _, c := range []struct {
		name, token, method, path string
		form                      map[string]any
	}{
		{"opened", "write", "POST", pulls, form()},
		{"duplicate", "write", "POST", pulls, form()},
		{"no title", "write", "POST", pulls, form("title", "")},
		{"no head", "write", "POST", pulls, form("head", "")},
		{"no base", "write", "POST", pulls, form("base", "")},
		{"one branch", "write", "POST", pulls, form("head", "main")},
		{"base gone", "write", "POST", pulls, form("base", "gone")},
		{"head gone", "write", "POST", pulls, form("head", "gone")},
		{"repository gone", "write", "POST", "/repos/acme/gone/pulls", form()},
		{"only reading", "read", "POST", pulls, form("base", "release/1.0")},
		{"wrong token", "wrong", "POST", pulls, form("base", "release/1.0")},
		{"no token", "none", "POST", pulls, form("base", "release/1.0")},
		{"repository", "write", "GET", "/repos/acme/site", nil},
		{"no repository", "write", "GET", "/repos/acme/gone", nil},
		{"list", "write", "GET", pulls + "?state=open&base_branch=main&limit=50&page=1", nil},
		{"page after the last", "write", "GET", pulls + "?state=open&base_branch=main&limit=50&page=9", nil},
		{"list of another base", "write", "GET", pulls + "?state=open&base_branch=release/1.0", nil},
		{"list with a wrong token", "wrong", "GET", pulls, nil},
		{"nothing to merge", "write", "POST", pulls, form("head", "agent/same")},
	} {
		g.token = tokens[c.token][0]
		theirs, fields := g.ask(c.method, c.path, c.form)
		s.token = tokens[c.token][1]
		path, query, _ := strings.Cut(s.Base()+c.path, "?")
		values, err := url.ParseQuery(query)
		if err != nil {
			t.Fatal(err)
		}
		ours, body := s.raw(t, forgetest.Asked{Method: c.method, Path: path, Query: values, Header: http.Header{"Content-Type": {"application/json"}}}, c.form)
		if theirs != ours {
			t.Errorf("%s: Gitea answers %d, %v, the server of the tests %d, %s", c.name, theirs, fields, ours, body)
			continue
		}
		var same map[string]any
		_ = json.Unmarshal(body, &same) // not every answer is an object
		for _, name := range slices.Sorted(maps.Keys(same)) {
			if _, ok := fields[name]; !ok {
				t.Errorf("%s: Gitea does not say %s, which the server of the tests does", c.name, name)
			}
		}
		if theirs >= 400 {
			t.Logf("%s: %d; Gitea: %.90q, the server of the tests: %.90q", c.name, theirs, fields["message"], same["message"])
			if len(fields) != len(same) {
				t.Errorf("%s: Gitea says %v, the server of the tests %v", c.name, fields, same)
			}
		}
	}
}

package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/chromedp"

	wire "github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/client"
	"github.com/cofferdam/cofferdam/internal/testenv"
)

// What a program inside writes, to be shown as it is and to do nothing.
const (
	script   = `<script>window.__pwned=1</script>`
	imageTag = `"><img/src=x/onerror=window.__pwned=1>`
	turned   = "gpj.\u202eexe"                                                                                       // reads as another name where it takes effect
	ansi     = "\x1b]52;c;cHduZWQ=\x07\x1b]0;pwned\x07\x1b]8;;javascript:pwned()\x07here\x1b]8;;\x07\x1b[2J\x1b[31m" // clipboard, title, link, screen, colour
)

// traps stand in every page before its own scripts: they note what must not happen.
const traps = `(() => {
	const note = (what) => () => { window.__pwned = what; };
	if (window.Clipboard) { Clipboard.prototype.writeText = note("clipboard"); Clipboard.prototype.write = note("clipboard"); }
	document.execCommand = note("command");
	window.open = note("window");
	window.pwned = note("call");
})()`

// shown is a service with something on every page, much of it written by a program that means ill.
type shown struct {
	*outside
	box *box
}

// TestPagesShown opens every page: what sandboxes wrote does nothing, nothing is wider than the window, and people with any sight and any tool can use it.
func TestPagesShown(t *testing.T) {
	o := newOutside(newHouse(t, users()[0]))
	testenv.Need(t, "tool:chromium")
	o.setupLink()
	o.admin = o.setUp().client()
	s := &shown{outside: o}
	s.furnish()
	pages := s.addresses()
	w := o.open()
	tell(w, page.AddScriptToEvaluateOnNewDocument, page.AddScriptToEvaluateOnNewDocumentParams{Source: traps})
	doors := w.other()
	tell(doors, page.AddScriptToEvaluateOnNewDocument, page.AddScriptToEvaluateOnNewDocumentParams{Source: traps})
	w.signIn("ada@example.com")
	w.quiet("sign-in")
	t.Run("inert", func(t *testing.T) {
		w.t, doors.t = t, t
		for _, address := range pages {
			w.visit(address)
			w.harmless(address)
		}
		s.inTerminal(w)
		s.dispositions(t)
	})
	t.Run("axe", func(t *testing.T) {
		source := axe(t)
		w.t, doors.t = t, t
		for _, address := range pages {
			if other := strings.HasPrefix(address, "/sandboxes/") && !strings.HasPrefix(address, "/sandboxes/"+s.box.ID) && !strings.HasSuffix(address, "/new"); !other {
				w.accessible(address, source)
			}
		}
		doors.calm = true // a link that is not valid is answered as what it is
		for _, address := range []string{"/sign-in", "/reset", "/setup", "/setup?token=x", "/invitation?token=x", "/reset?token=x"} {
			doors.accessible(address, source)
		}
	})
	w.t, doors.t = t, t
	s.box.stop()
	o.stop()
	o.gone()
}

// furnish makes one of everything.
func (s *shown) furnish() {
	ctx := s.t.Context()
	check := func(what string, err error) {
		s.t.Helper()
		if err != nil {
			s.t.Fatalf("%s: %v", what, err)
		}
	}
	a, err := s.admin.CreateAgent(ctx, wire.NewAgent{Name: "mallory", Description: script, PolicyText: s.base(""), Command: []string{"sh", "-c", ": " + imageTag + turned}, Environment: map[string]string{"NOTE": imageTag}})
	check("agent", err)
	_, err = s.admin.CreateCredential(ctx, wire.NewCredential{Name: "forge", Hosts: []string{"git.example.com"}, Values: map[string]string{"value": canary}})
	check("credential", err)
	_, err = s.admin.CreateUpstream(ctx, wire.Upstream{Name: "forge", Type: "gitea", URL: "https://git.example.com", Credential: "forge"})
	check("upstream", err)
	_, err = s.admin.CreateProfile(ctx, wire.Profile{Name: "reader", Text: "access: read\n", Paths: []wire.GitPath{{Upstream: "forge", Repository: "acme/site"}}})
	check("profile", err)
	_, err = s.admin.CreateWorkspace(ctx, wire.NewWorkspace{Name: "kept"})
	check("workspace", err)
	s.ada.api("POST", "/users", wire.NewUser{Email: "vera@example.com", Name: script, Role: wire.Viewer}, nil)
	p, err := s.admin.Policy(ctx, a.Policy)
	check("policy", err)
	text := p.Text + "# " + script + "\n"
	_, err = s.admin.ChangePolicy(ctx, p.ID, p.Version, wire.PolicyChange{Text: &text, Comment: imageTag})
	check("policy", err)

	talk := fmt.Sprintf("printf '%%s\\n' '%s' '%s' '%s'; printf '%%b' '%s'; exit 4", script, imageTag, turned, strings.NewReplacer("\x1b", `\033`, "\x07", `\007`).Replace(ansi))
	_, err = s.admin.CreateSandbox(ctx, wire.NewSandbox{Agent: a.ID, Name: imageTag, Command: []string{"sh", "-c", talk}})
	check("sandbox", err)
	s.box = s.service.box(s.admin, wire.NewSandbox{Agent: a.ID, Name: script})
	s.box.sh(fmt.Sprintf("cd /work && touch -- '%s' '%s' \"$(printf '%%b' 'a\\033]52;c;cHduZWQ=\\007b')\" '%s' && ln -s '%s' link && mkdir sub", imageTag[:5], turned, strings.ReplaceAll(script, "/", "|"), imageTag))
	s.box.sh("cp $(command -v curl) '/tmp/<b>img onerror=x' && cd /tmp && './<b>img onerror=x' -s -m 5 -X DELETE " + s.http("/x") + "; true")
	for _, path := range []string{imageTag, script, "/" + turned, "/%1b%5d52;c;x"} {
		s.box.sh("curl -s -m 5 -o /dev/null --request-target '/" + strings.TrimPrefix(path, "/") + "' " + s.http("/"))
	}
	for _, host := range []string{imageTag, script, turned} {
		s.box.sh("curl -s -m 5 -o /dev/null -H 'Host: " + host + "' " + s.http("/h") + "; curl -s -m 5 'http://" + strings.NewReplacer("/", "", `"`, "").Replace(host) + ".example.com/'; true")
	}
	d := s.refuse(s.box, "PUT", s.http("/allowed"), "/allowed")
	s.decideBy(d)
	s.refuse(s.box, "POST", s.http("/left"), "/left")
}

// decideBy allows a denial for its agent through the API, whatever its version.
func (s *shown) decideBy(d wire.Denial) {
	s.t.Helper()
	s.decide(s.admin, d, "allow", wire.ForAgent)
}

// addresses is every page, with what is there.
func (s *shown) addresses() []string {
	s.t.Helper()
	ctx := s.t.Context()
	all := []string{"/", "/agents", "/agents/new", "/agents/" + s.box.Agent, "/agents/" + s.box.Agent + "/edit", "/sandboxes", "/sandboxes?show=all", "/sandboxes/new", "/review", "/review?show=allowed",
		"/rules", "/rules?show=ended", "/policies", "/policies/new", "/credentials", "/credentials/new", "/credentials/new?kind=github-app", "/credentials/forge", "/git", "/git/upstreams/new", "/git/profiles/new",
		"/audit", "/audit?verdict=deny", "/users", "/users/new", "/workspaces", "/settings", "/account", "/server"}
	sandboxes, err := s.admin.Sandboxes(ctx, "", false, client.Page{})
	if err != nil {
		s.t.Fatal(err)
	}
	for _, one := range sandboxes.Items {
		for _, tab := range []string{"", "/trace", "/files", "/runs"} {
			all = append(all, "/sandboxes/"+one.ID+tab)
		}
	}
	all = append(all, "/sandboxes/"+s.box.ID+"/terminal")
	denials, err := s.admin.Denials(ctx, "", []wire.DenialState{wire.Open}, client.Page{})
	if err != nil || len(denials.Items) < 4 {
		s.t.Fatalf("%d denials, %v", len(denials.Items), err)
	}
	for _, d := range denials.Items[:min(5, len(denials.Items))] {
		all = append(all, "/review/denials/"+d.ID)
	}
	agent, err := s.admin.Agent(ctx, s.box.Agent)
	if err != nil {
		s.t.Fatal(err)
	}
	all = append(all, "/policies/"+agent.Policy, "/policies/"+agent.Policy+"/versions", "/policies/"+agent.Policy+"/versions/1")
	people, err := s.admin.Users(ctx, client.Page{})
	if err != nil {
		s.t.Fatal(err)
	}
	return append(all, "/users/"+people.Items[0].ID)
}

// harmless checks that nothing of what programs wrote has come to life.
func (w *window) harmless(where string) {
	w.t.Helper()
	const alive = `[
		window.__pwned === undefined ? "" : "ran: " + window.__pwned,
		document.title === "pwned" ? "title" : "",
		document.querySelectorAll("[onerror], [onload], script:not([nonce]), img[src=x], a[href^='javascript:'], main b[img]").length ? "element" : "",
		/[\u202a-\u202e\u2066-\u2069\u0007\u001b]/.test(document.body.innerText) ? "control characters" : "",
		location.pathname + location.search,
	]`
	got := whole[[]string](w, alive)
	if strings.Join(got[:4], "") != "" || got[4] != where {
		w.t.Errorf("%s: %q", where, got)
	}
	w.quiet(where)
}

// inTerminal lets a program in the terminal try what it can.
func (s *shown) inTerminal(w *window) {
	where := "/sandboxes/" + s.box.ID + "/terminal"
	w.visit(where)
	w.click("#term-start")
	w.shows("#term-state", "connected")
	w.keys("printf '" + strings.NewReplacer("\x1b", `\033`, "\x07", `\007`).Replace(ansi) + script + `'; printf '\033[6n\033[c\033[21t\033P$qm\033\\'; sleep 0.3; echo over` + "\r")
	w.until(`[...document.querySelectorAll(".xterm-rows > div")].some((e) => e.textContent.trim().endsWith("over") && !e.textContent.includes("echo"))`)
	w.until(`document.querySelector(".xterm-rows").textContent.includes("<script>")`)
	w.harmless(where)
	w.picture("terminal-hostile")
}

// dispositions checks that what is inside can only be stored, never shown.
func (s *shown) dispositions(t *testing.T) {
	s.box.sh("printf '" + script + "' > /work/page.html")
	b := s.browser()
	b.signIn("ada@example.com")
	got := b.ask("GET", "/sandboxes/"+s.box.ID+"/download?path=/work/page.html", nil)
	if got.status != 200 || got.body != script || !strings.HasPrefix(got.header.Get("Content-Disposition"), "attachment") || !strings.Contains(got.header.Get("Content-Security-Policy"), "sandbox") ||
		got.header.Get("Content-Type") != "application/octet-stream" {
		t.Errorf("a download: %d %v %q", got.status, got.header, got.body)
	}
	got = b.ask("GET", "/audit/export", nil)
	if got.status != 200 || !strings.HasPrefix(got.header.Get("Content-Disposition"), "attachment") || strings.Count(got.body, "\n") < 10 {
		t.Errorf("an export: %d %v", got.status, got.header)
	}
}

// axe returns the text of axe-core, which is fetched once for a machine.
func axe(t *testing.T) string {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Skip(err)
	}
	dir := filepath.Join(cache, "cofferdam-test", "axe-core")
	path := filepath.Join(dir, "node_modules", "axe-core", "axe.min.js")
	if _, err := os.Stat(path); err != nil {
		testenv.Need(t, "tool:npm", "network")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(t.Context(), "npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--no-save", "axe-core@4.11")
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Skipf("axe-core cannot be had: %v: %.500s", err, out)
		}
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// violation is something that axe finds wrong.
type violation struct {
	ID, Impact, Help string
	Nodes            []string
}

// accessible looks at a page in both colours and at two widths. Colours change nothing but contrast, and a narrow window everything else.
func (w *window) accessible(address, source string) {
	w.t.Helper()
	w.look(1280, "light")
	w.visit(address)
	if _, err := chromedp.Run(w.ctx, chromedp.Evaluate[bool]("(() => {"+source+"; return true; })()")); err != nil {

		w.t.Fatal(err)
	}
	name := strings.NewReplacer("/", "_", "?", "_", "=", "_").Replace(address)
	for _, look := range []struct {
		width  int64
		scheme string
		rules  string
	}{{1280, "light", ""}, {1280, "dark", `runOnly: ["color-contrast"],`}, {360, "light", `rules: { "color-contrast": { enabled: false } },`}} {
		w.look(look.width, look.scheme)
		var found []violation
		text := w.js(`axe.run(document, {` + look.rules + ` resultTypes: ["violations"]}).then((r) => JSON.stringify(r.violations.filter((v) => v.impact === "serious" || v.impact === "critical").map((v) => ({ id: v.id, impact: v.impact, help: v.help, nodes: v.nodes.slice(0, 4).map((n) => n.target.join(" ") + ": " + n.html.slice(0, 160) + " " + (n.any[0]?.message || n.all[0]?.message || n.none[0]?.message || "")) }))))`)
		if err := json.Unmarshal([]byte(text), &found); err != nil {
			w.t.Fatalf("%s: %v: %s", address, err, text)
		}
		for _, f := range found {
			w.t.Errorf("%s, %d, %s: %s (%s): %s\n%s", address, look.width, look.scheme, f.ID, f.Impact, f.Help, strings.Join(f.Nodes, "\n"))
		}
		if wide := w.js(`document.documentElement.scrollWidth <= document.documentElement.clientWidth ? "" : [...document.querySelectorAll("body *")].filter((e) => e.getBoundingClientRect().right > document.documentElement.clientWidth + 1).slice(0, 3).map((e) => e.tagName + "." + e.className).join(" ")`); wide != "" {
			w.t.Errorf("%s is wider than %d: %s", address, look.width, wide)
		}
		w.picture(fmt.Sprintf("%s-%d-%s", name, look.width, look.scheme))
	}
	w.quiet(address)
}

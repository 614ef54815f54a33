package e2e

import (
	"encoding/json"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	wire "github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/client"
	"github.com/cofferdam/cofferdam/internal/testenv"
)

// evil is another site.
const evil = "https://evil.example.net"

// TestServiceWeb attacks the service by HTTP as other sites, other names and other users would.
func TestServiceWeb(t *testing.T) {
	s := newService(someone(t))
	s.start("127.0.0.1:0")
	ada := s.setUp()
	w := &webAttack{s, ada, ada.client()}
	for _, c := range []struct {
		name   string
		attack func(*testing.T)
	}{
		{"headers", w.headers}, {"another name", w.otherNames}, {"redirects", w.redirects}, {"cookies planted before", w.fixation}, {"members of others", w.members},
		{"reset", w.reset}, {"terminal", w.terminal}, {"another site, API", w.otherSiteAPI}, {"another site, pages", w.otherSitePages},
	} {
		t.Run(c.name, c.attack)
	}
}

type webAttack struct {
	s     *service
	ada   *browser
	admin *client.Client
}

// pagePaths reads the pages' addresses from their routes: there is no other list, and one by hand would not grow with it.
func pagePaths(t *testing.T, method string) (paths []string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(testenv.Module(), "internal", "web", "routes.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, found := range regexp.MustCompile(`"`+method+` (/[^"]*)"`).FindAllStringSubmatch(string(text), -1) {
		paths = append(paths, regexp.MustCompile(`\{[^}]*\}`).ReplaceAllStringFunc(found[1], func(part string) string {
			if part == "{$}" {
				return ""
			}
			return "nothing"
		}))
	}
	paths = append(paths, "/setup", "/reset", "/invitation") // named by constants there
	if len(paths) < 25 {
		t.Fatalf("only %d routes found", len(paths))
	}
	return paths
}

// headers: every page, also one that refuses, forbids to be framed, to be guessed at and to load what is not ours.
func (w *webAttack) headers(t *testing.T) {
	check := func(b *browser, path string) answer {
		got := b.ask("GET", path, nil)
		policy := got.header.Get("Content-Security-Policy")
		for _, part := range []string{"frame-ancestors 'none'", "default-src 'none'", "base-uri 'none'"} {
			if !strings.Contains(policy, part) {
				t.Errorf("GET %s (%d): the policy lacks %s: %s", path, got.status, part, policy)
			}
		}
		if strings.Contains(policy, "unsafe-") || got.header.Get("X-Frame-Options") != "DENY" || got.header.Get("X-Content-Type-Options") != "nosniff" || got.header.Get("Referrer-Policy") == "" {
			t.Errorf("GET %s (%d): %v", path, got.status, got.header)
		}
		if got.status >= 500 {
			t.Errorf("GET %s: %d", path, got.status)
		}
		return got
	}
	shown := 0
	for _, path := range append(pagePaths(t, "GET"), "/no-such-page", "/api/v1/me", "/api/v1/nothing", "/api/v1/openapi.json") {
		check(w.s.browser(), path)
		if check(w.ada, path).status == http.StatusOK {
			shown++
		}
	}
	if shown < 15 {
		t.Errorf("control: only %d pages were shown", shown)
	}
	first, second := nonce(w.ada), nonce(w.ada)
	if first == "" || first == second {
		t.Errorf("scripts run by the nonce %q, then %q", first, second)
	}
}

func nonce(b *browser) string {
	found := regexp.MustCompile(`script-src 'nonce-([^']+)'`).FindStringSubmatch(b.ask("GET", "/", nil).header.Get("Content-Security-Policy"))
	if found == nil {
		return ""
	}
	return found[1]
}

// otherNames: a name that was made to point here (DNS rebinding), or that would end up in a link, gets nothing.
func (w *webAttack) otherNames(t *testing.T) {
	u, err := url.Parse(w.s.url)
	if err != nil {
		t.Fatal(err)
	}
	for _, host := range []string{"evil.example.net", "evil.example.net:" + u.Port(), "localhost.evil.example.net", "127.0.0.1.evil.example.net", "evil.example.net#@localhost", "169.254.169.254", "0.0.0.0", "localhost.", "x@localhost"} {
		for _, path := range []string{"/", "/sign-in", "/api/v1/me", "/api/v1/openapi.json", "/static/x/app.css"} {
			if got := w.ada.ask("GET", path, nil, "Host", host); got.status != http.StatusMisdirectedRequest && got.status != http.StatusBadRequest {
				t.Errorf("Host: %s, GET %s: %d", host, path, got.status)
			}
		}
	}
	for _, host := range []string{u.Host, "localhost", "127.0.0.1:" + u.Port(), "[::1]"} {
		if got := w.ada.ask("GET", "/sign-in", nil, "Host", host); got.status == http.StatusMisdirectedRequest {
			t.Errorf("control: Host: %s: %d", host, got.status)
		}
	}
	for _, name := range []string{"X-Forwarded-Host", "X-Original-Host", "Forwarded", "X-Host", "X-Forwarded-Server"} {
		got := w.s.browser().ask("GET", "/agents", nil, name, "host=evil.example.net")
		if strings.Contains(got.body+got.header.Get("Location"), "evil.example.net") {
			t.Errorf("%s is believed: %v", name, got.header)
		}
	}
}

// redirects: after signing in one goes to a page of ours, wherever the link that led there wanted.
func (w *webAttack) redirects(t *testing.T) {
	if got := w.ada.ask("GET", "/sign-in?next=%2Fagents", nil); got.header.Get("Location") != "/agents" {
		t.Errorf("control: %d to %q", got.status, got.header.Get("Location"))
	}
	targets := []string{evil, "//evil.example.net", "/\\evil.example.net", "\\\\evil.example.net", "/\t/evil.example.net", "/\n/evil.example.net", "///evil.example.net", "/%2f/evil.example.net/..//x", "javascript:alert(1)",
		"https:evil.example.net", "http:///evil.example.net", " //evil.example.net", "/.//evil.example.net", "/x/..//evil.example.net", "@evil.example.net", ".evil.example.net", "data:text/html,x"}
	inside := func(t *testing.T, how, target, location string) {
		at, err := url.Parse(w.s.url + "/sign-in")
		if err != nil {
			t.Fatal(err)
		}
		to, err := at.Parse(location)
		if err != nil || to.Host != at.Host || to.Scheme != at.Scheme || strings.HasPrefix(location, "//") || strings.ContainsAny(location, "\\\t\n") || strings.HasPrefix(to.Path, "//") {
			t.Errorf("%s, next=%q: goes to %q", how, target, location)
		}
	}
	for _, target := range targets {
		got := w.ada.ask("GET", "/sign-in?next="+url.QueryEscape(target), nil)
		if got.status != http.StatusSeeOther {
			t.Errorf("next=%q: %d", target, got.status)
		}
		inside(t, "signed in", target, got.header.Get("Location"))
	}
	form := url.Values{"email": {"ada@example.com"}, "password": {password}}
	for _, target := range append(targets[:3:3], "/agents?x=1") {
		form.Set("next", target)
		got := w.s.browser().ask("POST", "/sign-in", form.Encode())
		if got.status != http.StatusSeeOther || target == "/agents?x=1" && got.header.Get("Location") != target {
			t.Errorf("signing in with next=%q: %d to %q", target, got.status, got.header.Get("Location"))
		}
		inside(t, "signing in", target, got.header.Get("Location"))
	}
}

// fixation: what a browser brought before signing in is good for nothing after.
func (w *webAttack) fixation(t *testing.T) {
	planted := strings.Repeat("A", 43)
	in := wire.SignIn{Email: "ada@example.com", Password: password}
	got := w.s.browser().ask("POST", "/api/v1/auth/sign-in", in, "Cookie", "cofferdam="+planted)
	value := cookieOf(got)
	if got.status != 200 || value == "" || value == planted {
		t.Fatalf("%d %q", got.status, value)
	}
	if got := w.s.browser().ask("GET", "/api/v1/me", nil, "Cookie", "cofferdam="+planted); got.status != http.StatusUnauthorized {
		t.Errorf("the planted cookie is good: %d", got.status)
	}
	if got := w.s.browser().ask("GET", "/api/v1/me", nil, "Cookie", "cofferdam="+value); got.status != 200 {
		t.Errorf("control: the session's own cookie: %d", got.status)
	}
	if got := w.s.browser().ask("GET", "/api/v1/me", nil, "Cookie", "cofferdam="+value+"; cofferdam="+planted); got.status == 200 {
		t.Error("of two cookies one is chosen")
	}
	again := cookieOf(w.s.browser().ask("POST", "/api/v1/auth/sign-in", in, "Cookie", "cofferdam="+value))
	if again == "" || again == value {
		t.Error("a second sign-in goes on with the first session")
	}
	if got := w.s.browser().ask("POST", "/api/v1/auth/sign-out", nil, "Cookie", "cofferdam="+again); got.status/100 != 2 {
		t.Errorf("sign out: %d", got.status)
	}
	if got := w.s.browser().ask("GET", "/api/v1/me", nil, "Cookie", "cofferdam="+again); got.status != http.StatusUnauthorized {
		t.Errorf("after signing out the cookie is good: %d", got.status)
	}
}

// cookieOf is the session that an answer sets.
func cookieOf(a answer) string {
	for _, c := range (&http.Response{Header: a.header}).Cookies() {
		if c.Name == "cofferdam" && c.HttpOnly && c.SameSite == http.SameSiteLaxMode {
			return c.Value
		}
	}
	return ""
}

// members: nobody makes themselves more by a member that a form does not have.
func (w *webAttack) members(t *testing.T) {
	dev := w.s.member("dora@example.com", wire.Developer)
	amy := w.s.member("amy@example.com", wire.Administrator) // who does not operate the server
	var me, her, boss wire.Me
	amy.api("GET", "/me", nil, &her)
	dev.api("GET", "/me", nil, &me)
	w.ada.api("GET", "/me", nil, &boss)
	anyVersion := []string{"If-Match", `"*"`}
	version := func(u wire.User) []string {
		now, err := w.admin.User(t.Context(), u.ID)
		if err != nil {
			t.Fatal(err)
		}
		text, _ := json.Marshal(now.Version) // a number
		return []string{"If-Match", `"` + string(text) + `"`}
	}
	for _, c := range []struct {
		who          *browser
		method, path string
		body         any
		header       []string
		status       []int
	}{
		{dev, "PATCH", "/users/" + me.User.ID, map[string]any{"role": "administrator"}, version(me.User), []int{403}},
		{dev, "PATCH", "/users/" + me.User.ID, map[string]any{"name": "x", "operator": true}, version(me.User), []int{403, 422}},
		{dev, "POST", "/users", map[string]any{"email": "x@example.com", "role": "administrator"}, nil, []int{403}},
		{dev, "POST", "/tokens", map[string]any{"name": "t", "scopes": []string{"users:write"}}, nil, []int{422, 403}},
		{dev, "POST", "/tokens", map[string]any{"name": "t", "scopes": []string{"sandboxes:read"}, "user": boss.User.ID}, nil, []int{422}},
		{dev, "POST", "/sandboxes", map[string]any{"agent": "x", "tenant": "y"}, nil, []int{422}},
		{dev, "POST", "/sandboxes", map[string]any{"agent": "x", "policy": "version: 1"}, nil, []int{422}},
		{amy, "PATCH", "/users/" + her.User.ID, map[string]any{"operator": true}, version(her.User), []int{403}},
		{amy, "POST", "/tenants", map[string]any{"name": "x", "email": "x@example.com"}, nil, []int{403}},
		{w.ada, "PATCH", "/users/" + me.User.ID, map[string]any{"tenant": "x"}, version(me.User), []int{422}},
		{w.ada, "PATCH", "/users/" + me.User.ID, map[string]any{"email": "ada@example.com"}, version(me.User), []int{422}},
		{w.ada, "PATCH", "/users/" + me.User.ID, map[string]any{"Role": "administrator"}, version(me.User), []int{400, 422}},
		{w.ada, "POST", "/users", map[string]any{"email": "y@example.com", "role": "viewer", "operator": true}, nil, []int{422}},
		{w.ada, "POST", "/users", map[string]any{"email": "y@example.com", "role": "viewer", "password": password}, nil, []int{422}},
		{w.ada, "POST", "/auth/sign-in", map[string]any{"email": "ada@example.com", "password": password, "operator": true}, nil, []int{422}},
		{w.ada, "PATCH", "/users/" + me.User.ID, map[string]any{"name": "x"}, anyVersion, []int{400, 409, 412, 422}},
	} {
		got := c.who.ask(c.method, "/api/v1"+c.path, c.body, c.header...)
		if !slices.Contains(c.status, got.status) {
			t.Errorf("%s %s %v: %d %s", c.method, c.path, c.body, got.status, got.body)
		}
	}
	if got := dev.ask("POST", "/users/"+me.User.ID, "role=administrator&name=x&operator=yes"); got.status != http.StatusForbidden && got.status != http.StatusUnprocessableEntity {
		t.Errorf("by the page's form: %d", got.status)
	}
	var changed wire.User
	got := w.ada.ask("PATCH", "/api/v1/users/"+me.User.ID, map[string]any{"name": "Dora"}, version(me.User)...)
	if err := json.Unmarshal([]byte(got.body), &changed); got.status != 200 || err != nil || changed.Name != "Dora" || changed.Role != wire.Developer || changed.Operator || changed.Email != "dora@example.com" {
		t.Errorf("control: %d %s", got.status, got.body)
	}
}

// reset: a link sets a password once, and ends what was signed in by the old one; whether an administrator made it or whoever runs the server.
func (w *webAttack) reset(t *testing.T) {
	for name, link := range map[string]func(user wire.User) string{
		"vic@example.com": func(user wire.User) string {
			if _, err := w.admin.ResetUser(t.Context(), user.ID); err == nil {
				t.Error("a token resets a person")
			}
			var i wire.Invitation
			w.ada.api("POST", "/users/"+user.ID+"/reset", nil, &i)
			return i.Link
		},
		"val@example.com": func(user wire.User) string {
			out, err := w.s.program(t.Context(), "user", "reset", user.Email, "--url", w.s.url).Output()
			found := regexp.MustCompile(`(?m)^ +(http\S+)$`).FindSubmatch(out)
			if err != nil || found == nil {
				t.Fatalf("user reset: %v: %s", err, out)
			}
			return string(found[1])
		},
	} {
		person := w.s.member(name, wire.Viewer)
		var me wire.Me
		person.api("GET", "/me", nil, &me)
		w.spend(t, person, name, link(me.User))
	}
}

// spend uses a link for all that it is good for, and more.
func (w *webAttack) spend(t *testing.T, person *browser, name, link string) {
	if !strings.HasPrefix(link, w.s.url+"/") {
		t.Errorf("the link leads to %s", link)
	}
	own, other := "/auth/reset/complete", "/auth/invitation"
	if strings.Contains(link, "/invitation?") {
		own, other = other, own
	}
	const fresh, third = "another wall of stone 9", "a third wall of stone 9"
	token, b := tokenOf(t, link), w.s.browser()
	set := func(path, token, text string) int {
		return b.ask("POST", "/api/v1"+path, wire.NewPassword{Token: token, Password: text}).status
	}
	if got := set(own, strings.Repeat("A", len(token)), fresh); got/100 != 4 {
		t.Errorf("%s: a guessed token: %d", name, got)
	}
	if got := set(other, token, fresh); got/100 != 4 {
		t.Errorf("%s: the token as one of the other kind: %d", name, got)
	}
	if got := b.ask("GET", strings.TrimPrefix(link, w.s.url), nil); got.status != 200 || !strings.Contains(got.body, name) {
		t.Errorf("%s: control: the link shows %d", name, got.status)
	}
	if got := set(own, token, fresh); got/100 != 2 {
		t.Fatalf("%s: control: the token: %d", name, got)
	}
	if got := set(own, token, third); got/100 != 4 {
		t.Errorf("%s: the token was good twice: %d", name, got)
	}
	if got := person.ask("GET", "/api/v1/me", nil); got.status != http.StatusUnauthorized {
		t.Errorf("%s: the session from before: %d", name, got.status)
	}
	for text, want := range map[string]int{password: http.StatusUnauthorized, fresh: http.StatusOK, third: http.StatusUnauthorized} {
		if got := w.s.browser().ask("POST", "/api/v1/auth/sign-in", wire.SignIn{Email: name, Password: text}); got.status != want {
			t.Errorf("%s: signing in with %q: %d, want %d", name, text, got.status, want)
		}
	}
}

// terminal: another site's page opens no WebSocket with a visitor's cookie.
func (w *webAttack) terminal(t *testing.T) {
	w.s.agent(w.admin, "shell", "")
	box := w.s.box(w.admin, wire.NewSandbox{Agent: "shell"})
	defer box.stop()
	upgrade := func(more ...string) int {
		return w.ada.ask("GET", "/api/v1/sandboxes/"+box.ID+"/exec", nil, append([]string{"Connection", "Upgrade", "Upgrade", "websocket", "Sec-WebSocket-Version", "13", "Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="}, more...)...).status
	}
	for _, origin := range []string{evil, "null", "http://localhost.evil.example.net", "http://localhost:1", "https://localhost", "", "file://"} {
		if got := upgrade("Origin", origin); got != http.StatusForbidden {
			t.Errorf("Origin %q: %d", origin, got)
		}
	}
	if got := upgrade(); got != http.StatusForbidden {
		t.Errorf("a cookie without an Origin: %d", got)
	}
	if got := upgrade("Origin", w.s.url); got != http.StatusSwitchingProtocols {
		t.Errorf("control: our own page: %d", got)
	}
}

// foreign are the headers of requests that other sites make a browser send.
func foreign() map[string][]string {
	return map[string][]string{
		"another site": {"Origin", evil, "Sec-Fetch-Site", "cross-site"},
		"an old one":   {"Origin", evil},
		"a neighbour":  {"Origin", "http://localhost:1", "Sec-Fetch-Site", "same-site"},
		"no origin":    {"Origin", "null"},
	}
}

// otherSiteAPI: no operation that changes something is carried out for another site's page, with a cookie or without.
func (w *webAttack) otherSiteAPI(t *testing.T) {
	var document struct {
		Paths map[string]map[string]json.RawMessage
	}
	if err := json.Unmarshal([]byte(w.ada.ask("GET", "/api/v1/openapi.json", nil).body), &document); err != nil {
		t.Fatal(err)
	}
	tried := 0
	for path, methods := range document.Paths {
		path = "/api/v1" + regexp.MustCompile(`\{[^}]*\}`).ReplaceAllString(path, "nothing")
		for method := range methods {
			method = strings.ToUpper(method)
			if method == "GET" || method == "HEAD" || method == "PARAMETERS" {
				continue
			}
			tried++
			header := foreign()["another site"]
			if tried%3 == 0 {
				header = foreign()["an old one"]
			}
			if got := w.ada.ask(method, path, map[string]any{}, header...); got.status != http.StatusForbidden || !strings.Contains(got.body, "another site") {
				t.Errorf("%s %s from another site: %d %s", method, path, got.status, got.body)
			}
			if strings.HasSuffix(path, "/sign-out") {
				continue // the control would end the session
			}
			if got := w.ada.ask(method, path, map[string]any{}, "Origin", w.s.url, "Sec-Fetch-Site", "same-origin"); strings.Contains(got.body, "another site") || got.status >= 500 {
				t.Errorf("control: %s %s from our own: %d %s", method, path, got.status, got.body)
			}
		}
	}
	if tried < 50 {
		t.Errorf("only %d operations were tried", tried)
	}
	in := wire.NewWorkspace{Name: "from-afar"}
	for who, header := range foreign() {
		if got := w.ada.ask("POST", "/api/v1/workspaces", in, header...); got.status != http.StatusForbidden {
			t.Errorf("%s makes a workspace: %d", who, got.status)
		}
	}
	if got := w.ada.ask("POST", "/api/v1/workspaces", `{"name":"from-afar"}`); got.status == http.StatusCreated { // as a form, or as text, needs no leave of ours
		t.Errorf("a form makes a workspace: %d", got.status)
	}
	if got := w.ada.ask("POST", "/api/v1/workspaces", in, "Origin", w.s.url, "Sec-Fetch-Site", "same-origin"); got.status != http.StatusCreated {
		t.Errorf("control: %d %s", got.status, got.body)
	}
	got := w.ada.ask("OPTIONS", "/api/v1/workspaces", nil, "Origin", evil, "Access-Control-Request-Method", "POST")
	for name := range got.header {
		if strings.HasPrefix(name, "Access-Control-") {
			t.Errorf("another site is let in: %s", name)
		}
	}
}

// otherSitePages: the same for every form.
func (w *webAttack) otherSitePages(t *testing.T) {
	for i, path := range pagePaths(t, "POST") {
		for who, header := range foreign() {
			if (who == "a neighbour" || who == "no origin") && i%5 != 0 {
				continue
			}
			if got := w.ada.ask("POST", path, "name=x", header...); got.status != http.StatusForbidden {
				t.Errorf("%s posts to %s: %d", who, path, got.status)
			}
		}
		if path == "/sign-out" {
			continue
		}
		if got := w.ada.ask("POST", path, "name=", "Origin", w.s.url, "Sec-Fetch-Site", "same-origin"); got.status == http.StatusForbidden || got.status >= 500 {
			t.Errorf("control: %s from our own: %d", path, got.status)
		}
	}
	if got := w.ada.ask("GET", "/api/v1/me", nil); got.status != 200 {
		t.Errorf("control: after all that the session is worth %d", got.status)
	}
	for _, path := range pagePaths(t, "POST") { // nothing changes by a GET, which other sites may make a browser send
		if got := w.ada.ask("GET", path+"?name=by-get", nil, "Sec-Fetch-Site", "cross-site"); got.status >= 500 {
			t.Errorf("GET %s: %d", path, got.status)
		}
	}
	if got := w.ada.ask("GET", "/api/v1/workspaces", nil); strings.Contains(got.body, "by-get") {
		t.Error("a GET has made something")
	}
}

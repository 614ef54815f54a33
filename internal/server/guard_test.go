package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/audit"
	"github.com/cofferdam/cofferdam/internal/control"
	"github.com/cofferdam/cofferdam/internal/fault"
)

func prefixes(texts ...string) (list []netip.Prefix) {
	for _, t := range texts {
		list = append(list, netip.MustParsePrefix(t))
	}
	return list
}

func TestHost(t *testing.T) {
	s := newStage(t, func(o *Options) { o.BaseURL = "https://cofferdam.example"; o.Names = []string{"Other.example"} })
	for host, want := range map[string]int{
		"cofferdam.example": 401, "cofferdam.example:8443": 401, "COFFERDAM.example": 401, "other.example": 401,
		"127.0.0.1:1234": 401, "localhost": 401, "[::1]:1": 401, // the connection is on loopback
		"attacker.example": 421, "cofferdam.example.attacker.example": 421, "xcofferdam.example": 421, "user@cofferdam.example": 421, "10.0.0.1": 421, "cofferdam.example.": 421,
	} {
		got := s.ask("GET", "/me", "", nil, func(r *http.Request) { r.Host = host })
		if got.StatusCode != want {
			t.Errorf("%s: %d %s", host, got.StatusCode, got.text)
		}
	}
	if s.ask("GET", "!/healthz", "", nil, func(r *http.Request) { r.Host = "10.0.0.1" }).StatusCode != 200 {
		t.Error("a load balancer that calls by address is refused")
	}
	away := &http.Request{Host: "localhost"}
	if s.ours(away.WithContext(context.WithValue(t.Context(), http.LocalAddrContextKey, &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 443}))) {
		t.Error("localhost is a name on another address")
	}
}

func TestUnknownRoutes(t *testing.T) {
	s := newStage(t)
	token := s.token(s.a, api.Administrator)
	for _, path := range []string{"/nowhere", "/agents/", "/agents/x/y/z", "", "/", "//me", "/./me"} {
		s.ask("GET", path, token, nil).problem(404, codeNotFound)
	}
	s.ask("GET", "!/api", token, nil).problem(404, codeNotFound)
	p := s.ask("DELETE", "/agents", token, nil)
	p.problem(405, codeMethod)
	if allow := p.Header.Get("Allow"); !strings.Contains(allow, "GET") || !strings.Contains(allow, "POST") {
		t.Errorf("Allow: %q", allow)
	}
}

// A browser sends cookies to us from any page. What changes something is done only for our own.
func TestCrossOrigin(t *testing.T) {
	s := newStage(t)
	c := s.session(s.a, api.Administrator)
	token := s.token(s.a, api.Administrator)
	n := 0
	for _, a := range []struct {
		name  string
		edits []func(*http.Request)
		want  int
	}{
		{"cookie, same origin", []func(*http.Request){cookie(c), with("Sec-Fetch-Site", "same-origin")}, 201},
		{"cookie, another site", []func(*http.Request){cookie(c), with("Sec-Fetch-Site", "cross-site")}, 403},
		{"cookie, a neighbour", []func(*http.Request){cookie(c), with("Sec-Fetch-Site", "same-site")}, 403},
		{"cookie, old browser, another site", []func(*http.Request){cookie(c), with("Origin", "https://attacker.example")}, 403},
		{"cookie, null origin", []func(*http.Request){cookie(c), with("Origin", "null")}, 403},
		{"cookie, no browser", []func(*http.Request){cookie(c)}, 201},
		{"token, another site", []func(*http.Request){with("Authorization", "Bearer "+token), with("Origin", "https://attacker.example")}, 201},
		{"a bad token beside a cookie", []func(*http.Request){cookie(c), with("Authorization", "Bearer cfd_pat_no")}, 401},
		{"basic", []func(*http.Request){cookie(c), with("Authorization", "Basic eDp5")}, 401},
	} {
		n++
		got := s.ask("POST", "/agents", "", api.NewAgent{Name: fmt.Sprintf("agent-%d", n)}, a.edits...)
		if got.StatusCode != a.want {
			t.Errorf("%s: %d %s", a.name, got.StatusCode, got.text)
		}
	}
	s.ask("POST", "/auth/sign-in", "", api.SignIn{Email: "a@b.example", Password: "x"}, with("Sec-Fetch-Site", "cross-site")).problem(403, codeDenied)
	s.ask("GET", "/me", "", nil, cookie(c), with("Sec-Fetch-Site", "cross-site")).want(200) // it changes nothing, and no other site can read it
}

func TestStrictBodies(t *testing.T) {
	s := newStage(t)
	token := s.token(s.a, api.Administrator)
	for _, c := range []struct {
		body, field string
		status      int
	}{
		{`{"name":"a","colour":"red"}`, "colour", 422},
		{`{"description":"x"}`, "name", 422},
		{`{"name":7}`, "name", 422},
		{`{"name":"` + strings.Repeat("x", 64) + `"}`, "name", 422},
		{`{"name":"a","command":[1]}`, "command[0]", 422},
		{`{"name":"a","name":"b"}`, "", 400},
		{`{"name":"a","NAME":"b"}`, "", 400},
		{`{"Name":"a"}`, "", 400},
		{`{"name":"a"} {}`, "", 400},
		{`{"name":`, "", 400},
		{`[]`, "", 422},
		{``, "", 400},
		{strings.Repeat("[", 100_000), "", 400},
		{`{"name":"a","<script>alert(1)</script>":1}`, "", 422},
	} {
		got := s.ask("POST", "/agents", token, c.body)
		p := got.problem(c.status, codeValidation)
		if p.Field != c.field {
			t.Errorf("%.60s: field %q", c.body, p.Field)
		}
		for _, word := range []string{"maxLength", "expected", "length", "red", "xxxx", "<", "alert", "schema"} {
			if strings.Contains(string(got.text), word) {
				t.Errorf("%.60s: the answer says %q: %s", c.body, word, got.text)
			}
		}
	}
	s.ask("POST", "/agents", token, `{"name":"a"}`, with("Content-Type", "text/plain")).problem(415, codeMedia)
	s.ask("POST", "/agents", token, `name=a`, with("Content-Type", "application/x-www-form-urlencoded")).problem(415, codeMedia)
	s.ask("POST", "/policies", token, `{"text":"`+strings.Repeat("a", maxBody)+`"}`).problem(413, codeTooLarge)
	s.ask("POST", "/auth/sign-in", "", `{"email":"`+strings.Repeat("a", maxStranger)+`"}`).problem(413, codeTooLarge)
	if p := s.ask("GET", "/agents?colour=red", token, nil).problem(422, codeValidation); p.Field != "colour" {
		t.Errorf("field %q", p.Field)
	}
	if p := s.ask("GET", "/agents?limit=0", token, nil).problem(422, codeValidation); p.Field != "limit" {
		t.Errorf("field %q", p.Field)
	}
	if p := s.ask("GET", "/audit/export?colour=red", token, nil).problem(422, codeValidation); p.Field != "colour" {
		t.Errorf("field %q", p.Field)
	}
}

func TestPreconditions(t *testing.T) {
	s := newStage(t)
	token := s.token(s.a, api.Administrator)
	var p api.Policy
	s.ask("POST", "/policies", token, api.NewPolicy{Name: "p", Text: "version: 1\n"}).want(201).into(&p)
	got := s.ask("GET", "/policies/"+p.ID, token, nil).want(200)
	etag := got.Header.Get("ETag")
	if !strings.HasPrefix(etag, fmt.Sprintf(`"%d-`, p.Version)) {
		t.Fatalf("ETag %q of version %d", etag, p.Version)
	}
	if same := s.ask("GET", "/policies/"+p.ID, token, nil, with("If-None-Match", `"x", W/`+etag)).want(304); len(same.text) != 0 {
		t.Errorf("304 with %q", same.text)
	}
	text := "version: 1\n# two\n"
	s.ask("PATCH", "/policies/"+p.ID, token, api.PolicyChange{Text: &text}).problem(428, codePrecondition)
	s.ask("PATCH", "/policies/"+p.ID, token, api.PolicyChange{Text: &text}, with("If-Match", "3")).problem(422, codeValidation)
	s.ask("PATCH", "/policies/"+p.ID, token, api.PolicyChange{Text: &text}, with("If-Match", "*")).problem(422, codeValidation)
	changed := s.ask("PATCH", "/policies/"+p.ID, token, api.PolicyChange{Text: &text}, with("If-Match", etag)).want(200)
	if changed.Header.Get("ETag") == etag {
		t.Error("the same ETag after a change")
	}
	s.ask("PATCH", "/policies/"+p.ID, token, api.PolicyChange{Text: &text}, with("If-Match", etag)).problem(409, codeConflict)
	s.ask("GET", "/policies/"+p.ID, token, nil, with("If-None-Match", etag)).want(200)
	s.ask("PATCH", "/policies/"+p.ID, token, api.PolicyChange{Text: &text}, with("If-Match", `"0"`)).problem(409, codeConflict)
	fresh := api.Settings{RetentionDays: 10, MaxSandboxes: 3}
	s.ask("PUT", "/settings", token, fresh).problem(428, codePrecondition)
	s.ask("PUT", "/settings", token, fresh, with("If-Match", s.ask("GET", "/settings", token, nil).Header.Get("ETag"))).want(200)
	s.ask("PUT", "/settings", token, fresh, with("If-Match", `"0"`)).problem(409, codeConflict)
	description := "no If-Match here"
	s.ask("POST", "/agents", token, api.NewAgent{Name: "a"}).want(201)
	s.ask("PATCH", "/agents/a", token, api.AgentChange{Description: &description}).want(200)
}

func TestIdempotency(t *testing.T) {
	s := newStage(t)
	token, other := s.token(s.a, api.Administrator), s.token(s.a, api.Administrator)
	key := with("Idempotency-Key", "one")
	first := s.ask("POST", "/agents", token, api.NewAgent{Name: "a"}, key).want(201)
	again := s.ask("POST", "/agents", token, api.NewAgent{Name: "a"}, key).want(201)
	if !bytes.Equal(first.text, again.text) || again.Header.Get("Idempotency-Replayed") != "true" || again.Header.Get("Content-Type") != "application/json" {
		t.Errorf("%s\n%s %v", first.text, again.text, again.Header)
	}
	s.ask("POST", "/agents", token, api.NewAgent{Name: "b"}, key).problem(422, codeIdempotency)
	s.ask("POST", "/workspaces", token, api.NewWorkspace{Name: "a"}, key).problem(422, codeIdempotency)
	s.ask("POST", "/agents", other, api.NewAgent{Name: "c"}, key).want(201) // another caller's key is another key
	s.ask("POST", "/agents", token, api.NewAgent{Name: "a"}, with("Idempotency-Key", "two")).problem(409, codeConflict)
	s.ask("POST", "/agents", token, api.NewAgent{Name: "d"}, with("Idempotency-Key", "two")).want(201) // what was refused did nothing
	s.ask("POST", "/agents", token, api.NewAgent{Name: "e"}, with("Idempotency-Key", "ü")).problem(422, codeValidation)
	s.ask("POST", "/agents", token, api.NewAgent{Name: "e"}, with("Idempotency-Key", strings.Repeat("k", 201))).problem(422, codeValidation)

	// What shows a secret is not kept, on the disk least of all.
	person := cookie(s.session(s.a, api.Administrator))
	for _, want := range []int{201, 409} {
		s.ask("POST", "/users", "", api.NewUser{Email: "z@acme.example", Role: api.Viewer}, person, with("Sec-Fetch-Site", "same-origin"), with("Idempotency-Key", "three")).want(want)
	}
}

func TestIdempotencyAtOnce(t *testing.T) {
	s := newStage(t)
	token := s.token(s.a, api.Administrator)
	var all sync.WaitGroup
	made := make(chan int, 20)
	for range 20 {
		all.Go(func() {
			made <- s.ask("POST", "/agents", token, api.NewAgent{Name: "a"}, with("Idempotency-Key", "k")).StatusCode
		})
	}
	all.Wait()
	close(made)
	for status := range made {
		if status != 201 && status != 409 { // the same answer, or: still under way
			t.Errorf("status %d", status)
		}
	}
	var list api.Page[api.Agent]
	s.ask("GET", "/agents", token, nil).want(200).into(&list)
	if len(list.Items) != 1 {
		t.Errorf("%d agents", len(list.Items))
	}
}

// few is a limiter of few requests.
type few struct{ left int }

func (f *few) Allow(context.Context, string, int, time.Duration) (bool, time.Duration, error) {
	f.left--
	return f.left >= 0, 3 * time.Second, nil
}

// broken is a limiter that does not answer.
type broken struct{}

func (broken) Allow(context.Context, string, int, time.Duration) (bool, time.Duration, error) {
	return false, 0, errors.New("connection refused")
}

func TestPace(t *testing.T) {
	s := newStage(t, func(o *Options) { o.Limiter = &few{left: 2} })
	token := s.token(s.a, api.Viewer)
	s.ask("GET", "/me", token, nil).want(200)
	s.ask("GET", "/me", token, nil).want(200)
	got := s.ask("GET", "/me", token, nil)
	got.problem(429, codeTooMany)
	if got.Header.Get("Retry-After") != "3" {
		t.Errorf("Retry-After %q", got.Header.Get("Retry-After"))
	}
	s.ask("POST", "/auth/sign-in", "", api.SignIn{}).problem(429, codeTooMany)

	s = newStage(t, func(o *Options) { o.Limiter = broken{} })
	s.ask("GET", "/me", s.token(s.a, api.Viewer), nil).want(200)

	s = newStage(t) // with the real one: the limits are such that it takes them
	s.ask("GET", "/me", s.token(s.a, api.Viewer), nil).want(200)
	s.ask("POST", "/auth/sign-in", "", api.SignIn{Email: "a@b.example", Password: "x"}).want(401)
	if strings.Contains(s.logs.String(), "limit not checked") {
		t.Error(s.logs.String())
	}
}

func TestCrowd(t *testing.T) {
	c := newCrowd(2)
	one, ok1 := c.enter("a")
	_, ok2 := c.enter("a")
	_, ok3 := c.enter("a")
	_, other := c.enter("b")
	if !ok1 || !ok2 || ok3 || !other {
		t.Error(ok1, ok2, ok3, other)
	}
	one()
	if _, ok := c.enter("a"); !ok {
		t.Error("full after one left")
	}
	if a, b := neighbourhood(netip.MustParseAddr("2001:db8::1")), neighbourhood(netip.MustParseAddr("2001:db8::ffff:1")); a != b {
		t.Error(a, b)
	}
}

func TestEveryKindGoesOut(t *testing.T) {
	s := newStage(t)
	for k := fault.Internal; k <= fault.Unsupported; k++ {
		p := s.problem(t.Context(), fault.New(k, "a public sentence").WithHint("a hint").Because(errors.New("a cause")))
		text := fmt.Sprintf("%+v", p.Problem)
		if strings.Contains(text, "cause") || p.Status < 400 || p.Code == "" || p.Title == "" {
			t.Errorf("%v: %s", k, text)
		}
		if (k == fault.Internal) != (p.Detail == "" && p.Hint == "") {
			t.Errorf("%v: %s", k, text)
		}
	}
	p := s.problem(t.Context(), errors.New("password is hunter2"))
	if p.Status != 500 || p.Detail != "" || !strings.Contains(s.logs.String(), p.ID) {
		t.Errorf("%+v", p.Problem)
	}
}

// A panic is an internal error to the outside, and on the log; the server goes on.
func TestPanic(t *testing.T) {
	s := newStage(t, func(o *Options) {
		o.Pages = http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("the secret cause") })
	})
	p := s.ask("GET", "!/", "", nil).problem(500, codeInternal)
	if strings.Contains(p.Detail, "secret") || !strings.Contains(s.logs.String(), "the secret cause") || !strings.Contains(s.logs.String(), p.ID) {
		t.Errorf("%+v\n%s", p, s.logs.String())
	}
}

// Whatever is sent, it is never our fault.
func TestNonsense(t *testing.T) {
	s := newStage(t, func(o *Options) { o.Limiter = broken{} })
	s.things(s.a)
	token := s.token(s.a, api.Administrator)
	dice := rand.New(rand.NewPCG(1, 2))
	for range 5 {
		for i := range s.operations {
			o := &s.operations[i]
			if endless(o) || personal(o) {
				continue
			}
			id := [...]string{"builder", "%00", "..%2f..", strings.Repeat("a", 99), "%ff%fe", "'%20OR%201=1", "*", "%F0%9F%92%A3"}[dice.IntN(8)]
			_, query := sample(o)
			if query == "" && dice.IntN(3) == 0 {
				query = "?limit=" + nonsense(dice, 0) + "&after=%00" + nonsense(dice, 0)
			}
			var body any
			if o.method != http.MethodGet && o.method != http.MethodDelete {
				body = nonsense(dice, 0)
			}
			got := s.ask(o.method, fill(o.path, id)+strings.NewReplacer("{", "%7B", "}", "%7D", `"`, "%22", " ", "+", "\\", "%5C").Replace(query), token, body, with("If-Match", `"1"`))
			if got.StatusCode >= 500 && got.StatusCode != http.StatusNotImplemented {
				t.Fatalf("%s %s %v: %d %s\n%s", o.id, got.Request.URL, body, got.StatusCode, got.text, tail(s.logs.String()))
			}
		}
	}
}

func tail(text string) string { return text[max(0, len(text)-3000):] }

// nonsense is JSON, mostly, with members that we know.
func nonsense(dice *rand.Rand, depth int) string {
	switch n := dice.IntN(9); {
	case n == 0:
		return "null"
	case n == 1:
		return fmt.Sprint(dice.Int64() - dice.Int64())
	case n == 2:
		return [...]string{`"x"`, `"\u0000"`, `"\ud800"`, `"*"`, `"builder"`, `"version: 1\n"`, `""`, `"2026-01-01T00:00:00Z"`}[dice.IntN(8)]
	case n == 3 && depth > 0:
		return "[" + nonsense(dice, depth+1) + "," + nonsense(dice, depth+1) + "]"
	case n < 8 && depth < 3:
		names := []string{"name", "text", "policy", "command", "environment", "hosts", "values", "agent", "rule", "verdict", "scope", "until", "seconds", "email", "role", "query", "url", "type", "version",
			"target", "since", "paths", "profiles", "isolation", "credential", "api", "kind", "password", "token"}
		var members []string
		for _, i := range dice.Perm(len(names))[:dice.IntN(6)] {
			members = append(members, fmt.Sprintf("%q:%s", names[i], nonsense(dice, depth+1)))
		}
		return "{" + strings.Join(members, ",") + "}"
	}
	return [...]string{"true", "{", "1e999", "-0", "\xff"}[dice.IntN(5)]
}

// Signing in, by way of the API, and what is on record of it.
func TestSignIn(t *testing.T) {
	s := newStage(t)
	c := s.session(s.a, api.Administrator)
	var me api.Me
	s.ask("GET", "/me", "", nil, cookie(c)).want(200).into(&me)
	if me.User.Email != s.a.mail[api.Administrator] || me.Via != "session" {
		t.Errorf("%+v", me)
	}
	if !c.HttpOnly || c.SameSite != http.SameSiteLaxMode || c.Path != "/" {
		t.Errorf("%+v", c)
	}
	s.ask("POST", "/auth/sign-in", "", api.SignIn{Email: s.a.mail[api.Administrator], Password: "wrong"}).problem(401, codeUnauthenticated)
	s.ask("POST", "/auth/reset", "", api.ResetRequest{Email: "nobody@nowhere.example"}).problem(501, codeUnsupported) // there is no mail here
	s.ask("POST", "/auth/totp", "", api.Code{Code: "123456"}).problem(401, codeUnauthenticated)
	s.ask("GET", "/auth/oidc", "", nil).want(200)
	s.ask("GET", "/auth/oidc/none/start", "", nil).problem(404, codeNotFound)
	for _, kind := range []string{string(audit.SignedIn), string(audit.SignInRefused)} {
		if text := s.log1(t, kind); text == "" {
			t.Errorf("no %s on record", kind)
		}
	}
	s.ask("POST", "/auth/sign-out", "", nil, cookie(c)).want(204)
	s.ask("GET", "/me", "", nil, cookie(c)).problem(401, codeUnauthenticated)
}

func TestOptions(t *testing.T) {
	good := newStage(t)
	for _, base := range []string{"", "cofferdam.example", "ftp://x", "https://x/path", "https://"} {
		_, err := New(Options{Control: good.control, Auth: good.auth, DB: good.db, Limiter: broken{}, Log: good.log, BaseURL: base})
		if err == nil {
			t.Errorf("base URL %q taken", base)
		}
	}
	if _, err := New(Options{BaseURL: "https://x"}); err == nil {
		t.Error("nothing to work with, and no error")
	}
	if _, err := New(Options{Control: good.control, Auth: good.auth, DB: good.db, Limiter: broken{}, Log: good.log, BaseURL: "https://x", Names: []string{"*.example"}}); err == nil {
		t.Error("a pattern taken for a name")
	}
	_ = control.Operate
}

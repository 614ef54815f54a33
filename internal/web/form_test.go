package web

import (
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/fault"
)

func TestLocalPath(t *testing.T) {
	for in, want := range map[string]string{
		"/": "/", "/agents": "/agents", "/agents?q=a&after=b": "/agents?q=a&after=b", "/sandboxes/r1#x": "/sandboxes/r1",
		"": "/", "agents": "/", "//evil.example": "/", "///evil.example": "/", "/\\evil.example": "/", "\\\\evil.example": "/", "https://evil.example/": "/", "javascript:alert(1)": "/",
		"/\tx": "/", "/x\r\nSet-Cookie: a=b": "/", "//evil.example/%2f..": "/", "/%2f/evil.example": "/", "/" + strings.Repeat("a", 3000): "/",
	} {
		if got := localPath(in); got != want {
			t.Errorf("localPath(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestCommandLine(t *testing.T) {
	for _, c := range []struct {
		line string
		want []string
	}{
		{"", nil}, {"  ls   -la ", []string{"ls", "-la"}}, {`sh -c 'a && b'`, []string{"sh", "-c", "a && b"}}, {`a "b c" d\ e`, []string{"a", "b c", "d e"}},
		{`''`, []string{""}}, {`a'b'c`, []string{"abc"}}, {`"a\"b"`, []string{`a"b`}}, {"a\nb", []string{"a", "b"}}, {`$HOME *`, []string{"$HOME", "*"}},
	} {
		got, err := splitCommand(c.line)
		if err != nil || !slices.Equal(got, c.want) {
			t.Errorf("splitCommand(%q) = %q, %v", c.line, got, err)
		}
	}
	for _, bad := range []string{`'a`, `"a`, `a\`} {
		if _, err := splitCommand(bad); err == nil {
			t.Errorf("%q is read", bad)
		}
	}
}

func FuzzCommandLine(f *testing.F) {
	f.Add("sh", "-c", "echo 'a b' \\ \"c\"\n")
	f.Add("", " ", "'")
	f.Fuzz(func(t *testing.T, a, b, c string) {
		for _, s := range []string{a, b, c} {
			if strings.ToValidUTF8(s, "") != s {
				t.Skip("a form sends valid text")
			}
		}
		want := []string{a, b, c}
		got, err := splitCommand(joinCommand(want))
		if err != nil || !slices.Equal(got, want) {
			t.Fatalf("%q became %q (%v) over %q", want, got, err, joinCommand(want))
		}
	})
}

func TestFormsComeBackWithWhatIsWrong(t *testing.T) {
	s := &sample{}
	p := newPages(t, s)
	w := post(t, p, "/agents", "name=&policy=text&text=&command="+url.QueryEscape("sh -c 'oops")+"&environment=A")
	checkPage(t, w.Body.String())
	body := w.Body.String()
	for _, want := range []string{"This is needed.", "A quote is not closed.", "Each line is NAME=value.", "sh -c &#39;oops"} {
		if !strings.Contains(body, want) {
			t.Errorf("no %q", want)
		}
	}
	if w.Code != http.StatusUnprocessableEntity || s.got != nil {
		t.Errorf("status %d, asked %v", w.Code, s.got)
	}
	s.fail = fault.New(fault.Conflict, "there is an agent of that name").WithHint("choose another name")
	w = post(t, p, "/agents", "name=x&policy=nothing")
	if !strings.Contains(w.Body.String(), `id="f-name-error">There is an agent of that name. Choose another name.`) {
		t.Errorf("the error is not at its field: %s", w.Body)
	}
	s.fail = nil
	w = post(t, p, "/agents", "name=x&policy=nothing&command=a+b&environment=A%3D1%0D%0AB%3D2")
	in := s.got.(api.NewAgent)
	if w.Code != http.StatusSeeOther || w.Header().Get("Location") != "/agents/a0?done=agent-made" || !slices.Equal(in.Command, []string{"a", "b"}) || in.Environment["B"] != "2" || in.PolicyText != "" {
		t.Errorf("status %d to %q with %+v", w.Code, w.Header().Get("Location"), in)
	}
}

func TestNoSecretComesBack(t *testing.T) {
	s := &sample{}
	p := newPages(t, s)
	w := post(t, p, "/credentials", "kind=static&name=&hosts=&secret.value=hunter2-secret&ports=99999")
	if w.Code != http.StatusUnprocessableEntity || strings.Contains(w.Body.String(), "hunter2") {
		t.Errorf("status %d: %s", w.Code, w.Body)
	}
	w = post(t, p, "/credentials", "kind=aws&name=ci&hosts=a.example&secret.secret-access-key=hunter2&access_key_id=AKIA&ports=8443")
	in := s.got.(api.NewCredential)
	if w.Code != http.StatusSeeOther || in.Values["secret-access-key"] != "hunter2" || !strings.Contains(string(in.Settings), "AKIA") || in.Ports[0] != 8443 {
		t.Errorf("status %d, asked %+v", w.Code, in)
	}
	s.fail = fault.New(fault.Unauthenticated, "the email address or the password is wrong")
	w = post(t, p, "/sign-in", "email=ada%40example.com&password=hunter2")
	if w.Code != http.StatusUnprocessableEntity || strings.Contains(w.Body.String(), "hunter2") || !strings.Contains(w.Body.String(), "password is wrong") || len(s.signIn) != 1 || s.signIn[0].OK {
		t.Errorf("status %d, recorded %+v: %s", w.Code, s.signIn, w.Body)
	}
}

func TestSigningIn(t *testing.T) {
	s := &sample{}
	p := newPages(t, s)
	for next, want := range map[string]string{"/agents": "/agents", "//evil.example": "/", "https://evil.example": "/", "": "/"} {
		w := post(t, p, "/sign-in", url.Values{"email": {"ada@example.com"}, "password": {"x"}, "next": {next}}.Encode())
		if w.Code != http.StatusSeeOther || w.Header().Get("Location") != want {
			t.Errorf("next %q leads to %q", next, w.Header().Get("Location"))
		}
	}
	if len(s.signIn) != 4 || !s.signIn[0].OK || s.signIn[0].Address.String() != "192.0.2.1" {
		t.Errorf("recorded %+v", s.signIn)
	}
}

func TestSignedOut(t *testing.T) {
	s := &sample{anyone: true}
	p := newPages(t, s)
	for _, address := range addresses() {
		w := get(t, p, address)
		want := "/sign-in"
		if address != "/" {
			want += "?next=" + url.QueryEscape(address)
		}
		if w.Code != http.StatusSeeOther || w.Header().Get("Location") != want {
			t.Errorf("%s: status %d to %q", address, w.Code, w.Header().Get("Location"))
		}
	}
	w := get(t, p, "/review", "HX-Request", "true")
	if w.Code != http.StatusUnauthorized || w.Header().Get("HX-Redirect") != "/sign-in" {
		t.Errorf("a fragment: status %d to %q", w.Code, w.Header().Get("HX-Redirect"))
	}
	if w := post(t, p, "/agents", "name=x"); w.Code != http.StatusSeeOther || s.got != nil {
		t.Errorf("a form is taken: %d", w.Code)
	}
}

func TestOtherSites(t *testing.T) {
	s := &sample{}
	p := newPages(t, s)
	for _, header := range [][]string{{"Sec-Fetch-Site", "cross-site"}, {"Sec-Fetch-Site", "same-site"}, {"Sec-Fetch-Site", "", "Origin", "https://evil.example"}, {"Sec-Fetch-Site", "", "Origin", "null"}} {
		for _, address := range []string{"/agents", "/sign-in", "/sign-out", "/account/tokens"} {
			w := post(t, p, address, "name=x&policy=nothing&email=a&password=b", header...)
			if w.Code != http.StatusForbidden || s.got != nil || len(s.signIn) > 0 {
				t.Errorf("%v %s: status %d", header, address, w.Code)
			}
			checkPage(t, w.Body.String())
		}
	}
}

// TestNothingChangesByGet asks for every address that a form is posted to.
func TestNothingChangesByGet(t *testing.T) {
	s := &sample{}
	p := newPages(t, s)
	for _, address := range []string{"/agents/a0/suspend", "/agents/a0/delete", "/sandboxes/r1/stop", "/sandboxes/r1/extend", "/sandboxes/r1/pause", "/sandboxes/r1/resume", "/rules/l0/approve", "/rules/l0/revoke", "/policies/p0/delete", "/credentials/c0/rotate", "/credentials/c0/delete", "/users/u1/delete", "/users/u1/reset",
		"/account/tokens", "/account/totp", "/sign-out", "/review/check", "/sandboxes/r1/upload", "/server/tenants"} {
		if w := get(t, p, address); w.Code != http.StatusNotFound && w.Code != http.StatusMethodNotAllowed {
			t.Errorf("%s: status %d", address, w.Code)
		}
	}
}

func TestFailures(t *testing.T) {
	for kind, want := range statuses {
		s := &sample{fail: fault.New(kind, "no <b>luck</b> with "+hostile)}
		p := newPages(t, s)
		w := get(t, p, "/agents/a0")
		if kind == fault.Unauthenticated {
			want = http.StatusSeeOther
		}
		if w.Code != want {
			t.Errorf("%v: status %d, want %d", kind, w.Code, want)
		}
		if kind == fault.Internal && strings.Contains(w.Body.String(), "luck") {
			t.Error("an internal error is told")
		}
		if kind != fault.Unauthenticated && kind != fault.Internal {
			root := parse(t, w.Body.String())
			for n := range root.Descendants() {
				if n.Data == "b" || n.Data == "img" && attribute(n, "alt") != "" {
					t.Errorf("%v: the sentence became <%s>", kind, n.Data)
				}
			}
		}
	}
}

func TestDeciding(t *testing.T) {
	s := &sample{}
	p := newPages(t, s)
	rule := url.QueryEscape(s.suggestion().Rule)
	w := post(t, p, "/review/denials/d0", "version=1&action=agent&until=2026-12-31&agent=a0&rule="+rule, "HX-Request", "true")
	if w.Code != http.StatusOK || !strings.Contains(w.Body.String(), "tick that you have") || !strings.Contains(w.Body.String(), `name="rule"`) {
		t.Errorf("status %d: %s", w.Code, w.Body)
	}
	checkTree(t, parse(t, w.Body.String()))
	w = post(t, p, "/review/denials/d0", "version=1&action=agent&until=2026-12-31&widens=yes&comment=ok&rule="+rule, "HX-Request", "true")
	in := s.got.(api.Decide)
	if in.Verdict != "allow" || in.Scope != api.ForAgent || in.Until.Format("2006-01-02") != "2026-12-31" || !in.Widens || in.Comment != "ok" || !strings.HasPrefix(in.Rule, "- name: telemetry") {
		t.Errorf("asked %+v", in)
	}
	if !strings.Contains(w.Body.String(), `data-test="decided"`) {
		t.Errorf("not decided: %s", w.Body)
	}
	for action, want := range map[string]api.Decide{"deny": {Verdict: "deny", Scope: api.ForAgent}, "dismiss": {Verdict: "dismiss"}} {
		w := post(t, p, "/review/denials/d0", "version=1&rule=x&action="+action)
		if got := s.got.(api.Decide); got != want || w.Header().Get("Location") != "/review?done=decided" {
			t.Errorf("%s asked %+v and leads to %q", action, got, w.Header().Get("Location"))
		}
	}
	s.got = nil
	if w := post(t, p, "/review/denials/d0", "version=1&action=everything"); w.Code != http.StatusUnprocessableEntity || s.got != nil {
		t.Errorf("an unknown button is taken: %d", w.Code)
	}
}

func TestDownloadIsNeverAPage(t *testing.T) {
	p := newPages(t, &sample{})
	w := get(t, p, "/sandboxes/r1/download?path="+url.QueryEscape("/work/x\".html\r\nSet-Cookie: a=b"))
	h := w.Header()
	if h.Get("Content-Type") != "application/octet-stream" || !strings.HasPrefix(h.Get("Content-Disposition"), "attachment") || h.Get("X-Content-Type-Options") != "nosniff" || !strings.HasPrefix(h.Get("Content-Security-Policy"), "sandbox") || h.Get("Set-Cookie") != "" {
		t.Errorf("headers %v", h)
	}
}

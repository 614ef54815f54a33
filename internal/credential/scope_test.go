package credential

import (
	"slices"
	"strings"
	"testing"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/netname"
)

func TestAllow(t *testing.T) {
	s := Scope{Hosts: []string{"api.example.com", "*.example.org"}, Ports: []uint16{443, 8443}, Paths: []string{"/repos/acme/", "/user"}, Methods: []string{"GET", "POST"}}
	base := Request{VerifiedTLS, "api.example.com", 443, "GET", "/repos/acme/site"}
	for _, test := range []struct {
		name   string
		change func(*Request)
		ok     bool
	}{
		{"as it is", func(*Request) {}, true},
		{"in plain", func(r *Request) { r.Channel = Plain }, false},
		{"wildcard", func(r *Request) { r.Host = "a.b.example.org" }, true},
		{"apex of the wildcard", func(r *Request) { r.Host = "example.org" }, false},
		{"another host", func(r *Request) { r.Host = "www.example.com" }, false},
		{"host that ends alike", func(r *Request) { r.Host = "evilapi.example.com" }, false},
		{"no host", func(r *Request) { r.Host = "" }, false},
		{"other port named", func(r *Request) { r.Port = 8443 }, true},
		{"another port", func(r *Request) { r.Port = 80 }, false},
		{"other method named", func(r *Request) { r.Method = "POST" }, true},
		{"another method", func(r *Request) { r.Method = "DELETE" }, false},
		{"lower case", func(r *Request) { r.Method = "get" }, false},
		{"no method", func(r *Request) { r.Method = "" }, false},
		{"exact path", func(r *Request) { r.Path = "/user" }, true},
		{"below the exact path", func(r *Request) { r.Path = "/user/keys" }, false},
		{"path that begins alike", func(r *Request) { r.Path = "/repos/acmeevil/site" }, false},
		{"above", func(r *Request) { r.Path = "/repos/acme" }, false},
		{"an encoded slash that stays below", func(r *Request) { r.Path = "/repos/acme/a%2Fb" }, true},
		{"an encoded slash that only one reading has below", func(r *Request) { r.Path = "/repos%2Facme/site" }, false},
		{"no canonical path", func(r *Request) { r.Path = "" }, false},
	} {
		r := base
		test.change(&r)
		if err := s.Allow(r); (err == nil) != test.ok || err != nil && fault.KindOf(err) != fault.Denied {
			t.Errorf("%s: %v", test.name, err)
		}
	}
	open := Scope{Hosts: []string{"example.com"}, Ports: []uint16{443}}
	for method, ok := range map[string]bool{"GET": true, "PROPFIND": true, "TRACE": false, "CONNECT": false, "": false} {
		if err := open.Allow(Request{VerifiedTLS, "example.com", 443, method, ""}); (err == nil) != ok {
			t.Errorf("%s: %v", method, err)
		}
	}
	if err := (Scope{}).Allow(base); err == nil {
		t.Error("the zero scope allows")
	}
	if err := s.Allow(Request{}); err == nil {
		t.Error("the zero request is allowed")
	}
}

func TestCovers(t *testing.T) {
	s := Scope{Hosts: []string{"api.example.com", "*.example.org"}, Ports: []uint16{443}, Paths: []string{"/repos/"}, Methods: []string{"GET"}}
	for _, test := range []struct {
		narrower Scope
		ok       bool
	}{
		{s, true},
		{Scope{}, true},
		{Scope{Hosts: []string{"api.example.com"}, Paths: []string{"/repos/acme/", "/repos/x"}}, true},
		{Scope{Hosts: []string{"a.example.org", "*.b.example.org"}}, true},
		{Scope{Hosts: []string{"*.example.com"}}, false},
		{Scope{Hosts: []string{"example.org"}}, false},
		{Scope{Ports: []uint16{443, 80}}, false},
		{Scope{Methods: []string{"GET", "PUT"}}, false},
		{Scope{Paths: []string{"/"}}, false},
		{Scope{Paths: []string{"/repos"}}, false},
		{Scope{Hosts: []string{"not a host"}}, false},
	} {
		if err := s.Covers(test.narrower); (err == nil) != test.ok {
			t.Errorf("%+v: %v", test.narrower, err)
		}
	}
}

// FuzzScope holds: what a covered scope and the credential's own both allow is allowed by the credential's own, and nothing is allowed that no entry names.
func FuzzScope(f *testing.F) {
	f.Add("*.example.com", "/a/", "GET", "a.example.com", "/a/b", "GET")
	f.Add("example.com", "/a", "POST", "EXAMPLE.com.", "/a/../b", "TRACE")
	f.Add("*.x.org", "/%2F", "", "a.x.org", "/%2f%2e", "GET")
	f.Fuzz(func(t *testing.T, host, path, method, reqHost, reqPath, reqMethod string) {
		s := Scope{Hosts: []string{host}, Ports: []uint16{443}}
		if path != "" {
			s.Paths = []string{path}
		}
		if method != "" {
			s.Methods = []string{method}
		}
		if s.check() != nil {
			return
		}
		if err := s.Covers(s); err != nil {
			t.Fatalf("does not cover itself: %v", err)
		}
		h, err := netname.NormaliseHost(reqHost)
		if err != nil {
			return
		}
		p, _ := netname.NormalisePath(reqPath)
		if s.Allow(Request{VerifiedTLS, h, 443, reqMethod, p}) != nil {
			return
		}
		suffix := strings.TrimPrefix(host, "*")
		if string(h) != host && !strings.HasSuffix(string(h), suffix) || method != "" && reqMethod != method || reqMethod == "TRACE" {
			t.Fatalf("%s %s is allowed by %+v", reqMethod, h, s)
		}
		if path != "" && slices.ContainsFunc(p.Readings(), func(r string) bool { return !strings.HasPrefix(r, strings.TrimSuffix(path, "/")) }) {
			t.Fatalf("%s is allowed by %+v", p, s)
		}
	})
}

func TestParseName(t *testing.T) {
	for name, ok := range map[string]bool{
		"github": true, "a": true, "0-a_b.c": true, strings.Repeat("a", 63): true,
		"": false, strings.Repeat("a", 64): false, "A": false, "../x": false, ".x": false, "-x": false, "_x": false, "a/b": false, "a b": false, "ä": false, "a\n": false,
	} {
		if _, err := ParseName(name); (err == nil) != ok {
			t.Errorf("%q: %v", name, err)
		} else if err != nil && len(name) > 3 && strings.Contains(err.Error()+fault.HintOf(err), name) {
			t.Errorf("%q is repeated", name)
		}
	}
}

func TestFits(t *testing.T) {
	m, err := Normalised(staticMeta("one"))
	must(t, err)
	key := Meta{Name: "aws", Kind: AWS, Scope: m.Scope}
	for _, test := range []struct {
		m      Meta
		header string
		hosts  string
		ok     bool
	}{
		{m, "authorization", "example.com", true}, {m, "X-Api-Key", "example.com", false}, {m, "Authorization", "example.org", false}, {m, "", "example.com", false},
		{key, "Authorization", "example.com", true}, {key, "X-Amz-Date", "example.com", false},
	} {
		if err := test.m.Fits(test.header, Scope{Hosts: []string{test.hosts}}); (err == nil) != test.ok {
			t.Errorf("%s %s: %v", test.header, test.hosts, err)
		}
	}
}

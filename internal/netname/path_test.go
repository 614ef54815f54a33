package netname

import (
	"net/url"
	"slices"
	"strings"
	"testing"
)

func TestNormalisePath(t *testing.T) {
	for raw, want := range map[string]string{
		"/":                                "/",
		"/repos/acme/site":                 "/repos/acme/site",
		"/repos/acme/":                     "/repos/acme/",
		"/%72epos/%61cme":                  "/repos/acme",
		"/a%2fb":                           "/a%2Fb",
		"/%40scope%2fname":                 "/@scope%2Fname",
		"/caf%c3%a9":                       "/caf%C3%A9",
		"/a%20b%3bc":                       "/a%20b%3Bc",
		"/a+b":                             "/a+b",
		"/a%2bb":                           "/a%2Bb",
		"/{id}|x":                          "/%7Bid%7D%7Cx",
		"/100%25":                          "/100%25",
		"/.well-known/...":                 "/.well-known/...",
		"/repos/acme/../other":             "",
		"/repos/acme/%2e%2e/x":             "",
		"/repos/acme/.%2E/x":               "",
		"/repos/acme/..%2fother":           "",
		"/repos/acme/./x":                  "",
		"/repos/acme/..":                   "",
		"/repos//acme":                     "",
		"//evil.example.com/":              "",
		"/a%2f%2fb":                        "",
		"/repos/acme/..;/x":                "",
		"/a;x=1/b":                         "",
		"/a/..%3bx/b":                      "",
		"/a\\..\\b":                        "",
		"/a%5c..%5cb":                      "",
		"/a%00b":                           "",
		"/a%0d%0ab":                        "",
		"/%252e%252e/x":                    "",
		"/%25%32%65":                       "",
		"/%c0%ae%c0%ae/x":                  "",
		"/%":                               "",
		"/%2":                              "",
		"/%zz":                             "",
		"/a b":                             "",
		"/a?b":                             "",
		"/a#b":                             "",
		"/caf\xc3\xa9":                     "",
		"repos":                            "",
		"":                                 "",
		"*":                                "",
		"/" + strings.Repeat("a", maxPath): "",
	} {
		got, err := NormalisePath(raw)
		if (err == nil) != (want != "") || err == nil && string(got) != want {
			t.Errorf("%.60q: %q %v, want %q", raw, got, err, want)
		}
	}
}

func TestPathPattern(t *testing.T) {
	for _, test := range []struct {
		pattern, path string
		want          bool
	}{
		{"/repos/acme/", "/repos/acme/site", true},
		{"/repos/acme/", "/repos/acme/", true},
		{"/repos/acme/", "/repos/acme", false},
		{"/repos/acme/", "/repos/acmevil/x", false},
		{"/repos/acme/", "/Repos/acme/x", false},
		{"/repos/acme", "/repos/acme", true},
		{"/repos/acme", "/repos/acme/x", false},
		{"/", "/anything", true},
		{"/@scope%2F", "/@scope%2Fname", true},
		{"/a+b", "/a%2Bb", true},
		{"/a%2Bb/", "/a+b/c", true},
		{"/a+b", "/a%20b", false},
		{"", "/", false},
	} {
		if got := PathPattern(test.pattern).Match(test.path); got != test.want {
			t.Errorf("%q matches %q: %v", test.pattern, test.path, got)
		}
	}
	for _, wrong := range []string{"", "repos/", "/a/../b", "/a*", "/a//b", "/%61", "/a?b", "/a%2fb"} {
		if p, err := ParsePathPattern(wrong); err == nil {
			t.Errorf("%q is read as %q", wrong, p)
		}
	}
	if got := Path("/a%2Fb").Readings(); !slices.Equal(got, []string{"/a%2Fb", "/a/b"}) {
		t.Errorf("readings %q", got)
	}
}

// FuzzNormalisePath: what is accepted is accepted again unchanged, is read by net/url without a change of bytes, and holds no way up.
func FuzzNormalisePath(f *testing.F) {
	for _, seed := range []string{"/", "/a%2fb", "/%2e%2e/", "/a;b", "/{x}", "/%25", "/%c3%a9"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		p, err := NormalisePath(raw)
		if err != nil {
			return
		}
		if again, err := NormalisePath(string(p)); err != nil || again != p {
			t.Fatalf("%q: %q, then %q %v", raw, p, again, err)
		}
		u, err := url.ParseRequestURI(string(p))
		if err != nil || u.RequestURI() != string(p) {
			t.Fatalf("%q: %q is %v to net/url: %v", raw, p, u, err)
		}
		for _, segment := range strings.Split(u.Path, "/") {
			if segment == ".." || segment == "." {
				t.Fatalf("%q: way up in %q", raw, u.Path)
			}
		}
	})
}

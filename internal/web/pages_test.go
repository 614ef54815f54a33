package web

import (
	"context"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/html"
)

// hostile is what a program inside would write to become more than text: markup, an attribute, a link, a script, a change of direction, a terminal's
// escape, invisible characters, a template.
const hostile = "\"><script>x-pwned()</script><img src=x-pwned onerror=x-pwned()>' onmouseover=x-pwned() javascript:x-pwned()//{{.}}\u202egpj.exe\u200b\x1b]52;c;eA==\x07\x00\ufeff</textarea></title></pre>"

func newPages(t *testing.T, s *sample) *Pages {
	t.Helper()
	p, err := build(Options{BaseURL: "https://cofferdam.example.com", Clock: func() time.Time { return sampleNow }, Nonce: func(context.Context) string { return "test" },
		Client: func(context.Context) netip.Addr { return netip.MustParseAddr("192.0.2.1") }}, s, s)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func get(t *testing.T, p *Pages, address string, header ...string) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequest("GET", "https://cofferdam.example.com"+address, nil)
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	p.ServeHTTP(w, r)
	return w
}

func post(t *testing.T, p *Pages, address, body string, header ...string) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequest("POST", "https://cofferdam.example.com"+address, strings.NewReader(body))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.Header.Set("Sec-Fetch-Site", "same-origin")
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	p.ServeHTTP(w, r)
	return w
}

// states are the samples that every page is rendered with.
func states() map[string]*sample {
	return map[string]*sample{"ordinary": {}, "empty": {empty: true}, "many": {many: 60}, "hostile": {text: hostile}, "viewer": {scopes: []string{"sandboxes:read", "review:read"}}, "nobody": {scopes: []string{}}}
}

func TestEveryPageInEveryState(t *testing.T) {
	for state, s := range states() {
		p := newPages(t, s)
		for _, address := range append(addresses(), doorAddresses()...) {
			t.Run(state+address, func(t *testing.T) {
				s.anyone = strings.HasPrefix(address, "/sign-in")
				w := get(t, p, address)
				s.anyone = false
				want := http.StatusOK
				if address == "/nowhere" || state == "empty" && (strings.HasSuffix(address, "up0") || strings.HasSuffix(address, "g0")) {
					want = http.StatusNotFound
				}
				if w.Code != want {
					t.Fatalf("status %d, want %d: %s", w.Code, want, w.Body)
				}
				checkPage(t, w.Body.String())
			})
		}
	}
}

// fragments are what htmx and the script ask for.
func TestFragments(t *testing.T) {
	for state, s := range states() {
		p := newPages(t, s)
		for _, address := range []string{"/", "/agents/a0", "/sandboxes", "/sandboxes/r1", "/review", "/review/denials/d0", "/review/approvals/q0", "/rules"} {
			t.Run(state+address, func(t *testing.T) {
				w := get(t, p, address, "HX-Request", "true")
				if w.Code != http.StatusOK || strings.Contains(w.Body.String(), "<!doctype") {
					t.Fatalf("status %d: %s", w.Code, w.Body)
				}
				checkTree(t, parse(t, w.Body.String()))
			})
		}
		for address, body := range map[string]string{"/review/check": "agent=a&rule=x", "/policies/check": "text=x", "/policies/explain": "target=x&text=y", "/policies/p0/replay": "text=x&days=7"} {
			t.Run(state+address, func(t *testing.T) {
				w := post(t, p, address, body, "HX-Request", "true")
				if w.Code != http.StatusOK {
					t.Fatalf("status %d: %s", w.Code, w.Body)
				}
				checkTree(t, parse(t, w.Body.String()))
			})
		}
	}
}

func parse(t *testing.T, text string) *html.Node {
	t.Helper()
	root, err := html.Parse(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	return root
}

// checkPage holds a whole page to what every page promises.
func checkPage(t *testing.T, text string) {
	t.Helper()
	root := parse(t, text)
	checkTree(t, root)
	count := map[string]int{}
	for n := range root.Descendants() {
		if n.Type == html.ElementNode {
			count[n.Data]++
			if n.Data == "script" && attribute(n, "nonce") != "test" {
				t.Error("a script without the nonce")
			}
		}
	}
	for tag, want := range map[string]int{"html": 1, "title": 1, "main": 1, "h1": 1} {
		if count[tag] != want {
			t.Errorf("%d of <%s>, want %d", count[tag], tag, want)
		}
	}
	if !strings.Contains(text, `class="skip" href="#main"`) {
		t.Error("no skip link")
	}
}

func attribute(n *html.Node, name string) string {
	for _, a := range n.Attr {
		if a.Key == name {
			return a.Val
		}
	}
	return ""
}

// checkTree looks for elements and attributes that came from data, identifiers that come twice, and fields without a label.
func checkTree(t *testing.T, root *html.Node) {
	t.Helper()
	ids, labelled := map[string]bool{}, map[string]bool{}
	for n := range root.Descendants() {
		if n.Type == html.ElementNode && n.Data == "label" {
			if target := attribute(n, "for"); target != "" {
				labelled[target] = true
			}
		}
	}
	for n := range root.Descendants() {
		switch n.Type {
		case html.TextNode:
			if n.Parent == nil || n.Parent.Data != "textarea" { // what is edited is what will be stored, to the letter
				checkText(t, n.Data)
			}
		case html.ElementNode:
			checkElement(t, n)
			if id := attribute(n, "id"); id != "" {
				if ids[id] {
					t.Errorf("id %q comes twice", id)
				}
				ids[id] = true
			}
			checkLabel(t, n, labelled)
		}
	}
}

// checkText refuses characters that hide or move others.
func checkText(t *testing.T, text string) {
	t.Helper()
	for _, r := range text {
		if r != '\n' && r != '\t' && hidden(r) {
			t.Errorf("the hidden character %U in %.80q", r, text)
			return
		}
	}
}

func checkElement(t *testing.T, n *html.Node) {
	t.Helper()
	known := ` html head body meta title link script a div nav h1 h2 h3 ul ol li svg path span section header footer main p button form input label select option textarea table thead tbody tr th td time
		details summary pre bdi code kbd b strong br hr img small dl dt dd aside article fieldset legend datalist noscript circle rect line g `
	if !strings.Contains(strings.Join(strings.Fields(known), " ")+" ", n.Data+" ") {
		t.Errorf("the element <%s>", n.Data)
	}
	for _, a := range n.Attr {
		switch {
		case strings.HasPrefix(a.Key, "on"), a.Key == "style", a.Key == "srcdoc":
			t.Errorf("<%s> has %s", n.Data, a.Key)
		case strings.HasPrefix(a.Key, "hx-on"), strings.HasPrefix(a.Key, "hx-vals"), strings.HasPrefix(a.Key, "hx-headers"):
			t.Errorf("<%s> has %s, which is read as code", n.Data, a.Key)
		case strings.HasPrefix(a.Key, "hx-") || strings.HasPrefix(a.Key, "data-") || a.Key == "id" || a.Key == "class" || a.Key == "for":
			if strings.Contains(a.Val, "pwned") && !strings.HasPrefix(a.Val, "/") {
				t.Errorf("<%s %s> holds data: %q", n.Data, a.Key, a.Val)
			}
		}
		if a.Key == "href" || a.Key == "src" || a.Key == "action" || a.Key == "hx-get" || a.Key == "hx-post" {
			if !strings.HasPrefix(a.Val, "/") && !strings.HasPrefix(a.Val, "#") || strings.HasPrefix(a.Val, "//") {
				t.Errorf("<%s %s=%q> leads away", n.Data, a.Key, a.Val)
			}
		}
		if a.Key != "value" && a.Key != "content" {
			checkText(t, a.Val)
		}
	}
}

func checkLabel(t *testing.T, n *html.Node, labelled map[string]bool) {
	t.Helper()
	switch n.Data {
	case "input", "select", "textarea":
	case "button":
		if strings.TrimSpace(textOf(n)) == "" && attribute(n, "aria-label") == "" {
			t.Error("a button without words")
		}
		return
	default:
		return
	}
	if attribute(n, "type") == "hidden" || attribute(n, "aria-label") != "" || labelled[attribute(n, "id")] {
		return
	}
	for above := range n.Ancestors() {
		if above.Data == "label" {
			return
		}
	}
	t.Errorf("<%s name=%q id=%q> has no label", n.Data, attribute(n, "name"), attribute(n, "id"))
}

func textOf(n *html.Node) string {
	var b strings.Builder
	for c := range n.Descendants() {
		if c.Type == html.TextNode {
			b.WriteString(c.Data)
		}
	}
	return b.String()
}

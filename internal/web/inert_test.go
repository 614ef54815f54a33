package web

import (
	"strings"
	"testing"

	"golang.org/x/net/html"
)

func TestInert(t *testing.T) {
	for in, want := range map[string]string{
		"api.example.com":     `<bdi class="inert" dir="ltr">api.example.com</bdi>`,
		"<b>&\"'":             `<bdi class="inert" dir="ltr">&lt;b&gt;&amp;&#34;&#39;</bdi>`,
		"a\u202eb\x1b[31m":    `<bdi class="inert" dir="ltr">a<span class="ctl">U+202E</span>b<span class="ctl">U+001B</span>[31m</bdi>`,
		"a\xffb":              `<bdi class="inert" dir="ltr">a<span class="ctl">0xFF</span>b</bdi>`,
		"two\nlines":          `<bdi class="inert" dir="ltr">two<span class="ctl">U+000A</span>lines</bdi>`,
		"grüße 漢字 \U0001F600": `<bdi class="inert" dir="ltr">grüße 漢字 ` + "\U0001F600" + `</bdi>`,
	} {
		if got := string(inert(in)); got != want {
			t.Errorf("inert(%q)\n got %s\nwant %s", in, got, want)
		}
	}
	long := string(inert(strings.Repeat("a", 1<<20)))
	if len(long) > 3*inertMost || !strings.Contains(long, "more bytes") {
		t.Errorf("a long text has %d bytes", len(long))
	}
}

func FuzzInert(f *testing.F) {
	f.Add(hostile)
	f.Add("</bdi><details>")
	f.Fuzz(func(t *testing.T, s string) {
		for _, markup := range []string{string(inert(s)), string(inertBlock(s))} {
			nodes, err := html.Parse(strings.NewReader("<!doctype html><body>" + markup))
			if err != nil {
				t.Fatal(err)
			}
			for n := range nodes.Descendants() {
				if n.Type == html.ElementNode && !strings.Contains(" html head body bdi span details summary ", " "+n.Data+" ") {
					t.Fatalf("<%s> came from %q", n.Data, s)
				}
				if n.Type == html.TextNode {
					checkText(t, n.Data)
				}
			}
		}
		checkText(t, plain(s))
	})
}

func TestPlainOutput(t *testing.T) {
	for in, want := range map[string]string{
		"a\x1b[1;32mgreen\x1b[0m\n":              "agreen\n",
		"\x1b]0;title\x07x\x1b]52;c;eA==\x1b\\y": "xy",
		"10%\r20%\r\ndone":                       "10%\n20%\ndone",
		"bell\x07 nul\x00":                       "bell\u2407 nul\u2400",
		"\x1bPqsixel\x1b\\z\x1b(Bq\x1b7":         "zq",
		"rtl\u202etxt":                           "rtl<U+202E>txt",
		"\xff":                                   "<U+FFFD>",
		"\x1b":                                   "\u241b",
	} {
		if got := plainOutput([]byte(in)); got != want {
			t.Errorf("plainOutput(%q) = %q, want %q", in, got, want)
		}
	}
	for in, want := range map[string]int{"abc": 0, "ab\x1b[3": 3, "ab\xe2\x82": 2, "ab\xe2\x82\xac": 0, "x\x1b]0;tit": 7, "x\x1b]0;t\x07": 0, "\x1b": 1, "a\xff": 0, "10%\r": 1, "a\r\xe2": 2} {
		if got := unfinished([]byte(in)); got != want {
			t.Errorf("unfinished(%q) = %d, want %d", in, got, want)
		}
	}
}

// FuzzOutput: what arrives in pieces reads like what arrives at once, and has no control characters.
func FuzzOutput(f *testing.F) {
	f.Add([]byte("a\x1b[32mb\x1b]0;x\x07\xe2\x82\xac\r\n"), 5)
	f.Fuzz(func(t *testing.T, data []byte, at int) {
		for _, r := range plainOutput(data) {
			if r != '\n' && r != '\t' && r < 0x20 || r == 0x9b {
				t.Fatalf("%U is left of %q", r, data)
			}
		}
		if len(data) == 0 || len(data) > 2000 {
			return
		}
		at = max(at, -at) % len(data)
		if at < 0 {
			return
		}
		held := unfinished(data[:at])
		if whole, parts := plainOutput(data), plainOutput(data[:at-held])+plainOutput(data[at-held:]); whole != parts {
			t.Fatalf("%q at %d: %q, in pieces %q", data, at, whole, parts)
		}
	})
}

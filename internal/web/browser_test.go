package web

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/control"
	"github.com/cofferdam/cofferdam/internal/testenv"
)

// liveSample is a sample whose denials change while somebody looks at them.
type liveSample struct {
	sample
	mu    sync.Mutex
	count uint64
	more  bool // a further denial has come
	gone  bool // the first was decided by somebody else
}

func (s *liveSample) Denials(context.Context, control.Actor, string, []api.DenialState, control.Page) (api.Page[api.Denial], error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var p api.Page[api.Denial]
	if s.more {
		p.Items = append(p.Items, s.denial(3))
	}
	if !s.gone {
		d := s.denial(0)
		d.Count, d.Version = s.count, int64(s.count)
		p.Items = append(p.Items, d)
	}
	p.Items = append(p.Items, s.denial(1))
	return p, nil
}

func (s *liveSample) Approvals(context.Context, control.Actor, bool, control.Page) (api.Page[api.Approval], error) {
	return api.Page[api.Approval]{}, nil
}

// pagePolicy is as strict as the server's own.
const pagePolicy = "default-src 'none'; script-src 'nonce-test'; style-src 'self' 'nonce-test'; img-src 'self' data:; connect-src 'self'; font-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"

// browser is a page in Chromium, with what its console says.
type browser struct {
	t   *testing.T
	ctx context.Context
	url string
	mu  sync.Mutex
	bad []string
}

func openBrowser(t *testing.T, s operations, d door) (*browser, chan api.Event) {
	testenv.Need(t, "tool:chromium")
	p, err := build(Options{Clock: func() time.Time { return sampleNow }, Nonce: func(context.Context) string { return "test" }}, s, d)
	if err != nil {
		t.Fatal(err)
	}
	events := make(chan api.Event, 16)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/api/v1/events" {
			stream(w, r, events)
			return
		}
		w.Header().Set("Content-Security-Policy", pagePolicy)
		p.ServeHTTP(w, r)
	}))
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.NoSandbox, chromedp.DisableGPU, chromedp.UserDataDir(t.TempDir()), chromedp.Flag("disable-quic", true), chromedp.Flag("disable-component-update", true))
	allocator, stop := chromedp.NewExecAllocator(t.Context(), options...)
	ctx, quit := chromedp.NewContext(allocator)
	ctx, cancel := context.WithTimeout(ctx, 90*time.Second)
	t.Cleanup(func() { cancel(); quit(); stop(); server.CloseClientConnections(); server.Close() })
	b := &browser{t: t, ctx: ctx, url: server.URL}
	b.listen()
	return b, events
}

// stream sends what tests say has happened.
func stream(w http.ResponseWriter, r *http.Request, events chan api.Event) {
	w.Header().Set("Content-Type", "text/event-stream")
	_ = http.NewResponseController(w).Flush()
	for {
		select {
		case <-r.Context().Done():
			return
		case e := <-events:
			text, _ := json.Marshal(e)
			_, _ = fmt.Fprintf(w, "id: %d\ndata: %s\n\n", e.ID, text)
			_ = http.NewResponseController(w).Flush()
		}
	}
}

// listen collects what no page should say: refusals of the page's policy, and mistakes in scripts.
func (b *browser) listen() {
	b.t.Helper()
	note := func(text string) {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.bad = append(b.bad, text)
	}
	err := chromedp.Listen(b.ctx, func(ev any) {
		switch ev := ev.(type) {
		case *log.EventEntryAdded:
			if ev.Entry.Source == "security" || ev.Entry.Source == "javascript" || ev.Entry.Source == "violation" {
				note(ev.Entry.Text)
			}
		case *runtime.EventExceptionThrown:
			note(ev.ExceptionDetails.Text)
		}
	})
	if err != nil {
		b.t.Fatal(err)
	}
}

func (b *browser) do(steps ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	if err := chromedp.Do(b.ctx, steps...); err != nil {
		b.t.Fatal(err)
	}
}

// text evaluates an expression as text.
func (b *browser) text(expression string) string {
	b.t.Helper()
	s, err := chromedp.Run(b.ctx, chromedp.Evaluate[string]("String("+expression+")"))
	if err != nil {
		b.t.Fatalf("%s: %v", expression, err)
	}
	return s
}

// until waits for an expression to become true. The page's policy forbids what chromedp's own waiting would do.
func (b *browser) until(expression string) {
	b.t.Helper()
	for range 200 {
		if b.text(expression) == "true" {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	b.t.Fatalf("never: %s\n%s", expression, b.text("document.querySelector('main').innerText"))
}

func (b *browser) quiet() {
	b.t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, text := range b.bad {
		b.t.Errorf("the console says: %s", text)
	}
}

// TestInboxInBrowser reviews by keyboard while denials come and go.
func TestInboxInBrowser(t *testing.T) {
	s := &liveSample{count: 37}
	b, events := openBrowser(t, s, s)
	b.do(chromedp.Navigate(b.url + "/review"))
	b.until(`document.readyState === "complete" && !!window.htmx`)
	b.do(chromedp.KeyEvent("j"))
	b.until(`document.activeElement.id === "denials-d0"`)
	b.do(chromedp.KeyEvent("jk\r"))
	b.until(`document.activeElement.id === "rule-d0"`)
	b.do(chromedp.KeyEvent("# mine"))
	b.until(`document.getElementById("rule-d0").value.includes("# mine")`)

	s.mu.Lock()
	s.count, s.more = 38, true
	s.mu.Unlock()
	events <- api.Event{ID: 1, Type: "denial", Subject: "d0"}
	b.until(`document.querySelector("#denials-d0 .count").innerText.includes("38")`)
	b.until(`!!document.getElementById("denials-d3")`)
	if got := b.text(`document.activeElement.id + document.getElementById("rule-d0").value.includes("# mine")`); got != "rule-d0true" {
		t.Errorf("what was being written: %s", got)
	}

	click := func(action string) {
		b.text(`document.querySelector('#denials-d0 [value="` + action + `"]').click()`)
	}
	click("run")
	b.until(`document.querySelector("#denials-d0").innerText.includes("tick that you have")`)
	b.text(`document.querySelector("#denials-d0 [name=widens]").click()`)
	click("run")
	b.until(`!!document.querySelector("#denials-d0 [data-test=decided]")`)
	if in := s.got.(api.Decide); in.Scope != api.ForRun || !in.Widens || !strings.Contains(in.Rule, "# mine") {
		t.Errorf("decided %+v", in)
	}

	s.mu.Lock()
	s.gone = true
	s.mu.Unlock()
	b.text(`document.getElementById("denials-d1").focus()`)
	b.do(chromedp.KeyEvent("d"))
	b.until(`document.activeElement.hasAttribute("data-deny")`)
	b.quiet()
}

// TestPagesInBrowser opens every page, with hostile text too, and looks for scripts that fail, what the policy refuses, and a page wider than its window.
func TestPagesInBrowser(t *testing.T) {
	for name, s := range map[string]*sample{"ordinary": {}, "hostile": {text: hostile}} {
		t.Run(name, func(t *testing.T) {
			b, _ := openBrowser(t, s, s)
			b.do(chromedp.EmulateViewport(360, 740))
			for _, address := range append(addresses(), "/setup", "/reset") {
				if address == "/nowhere" {
					continue
				}
				b.do(chromedp.Navigate(b.url + address))
				if got := b.text(`document.documentElement.scrollWidth <= 360 || [...document.querySelectorAll("main *")].filter((e) => e.getBoundingClientRect().right > 361 && !e.closest(".table-wrap, pre, .tabs, .output, .term, .editor, svg, .visually-hidden")).slice(0, 3).map((e) => e.tagName + "." + e.className).join(" ")`); got != "true" {
					t.Errorf("%s is wider than 360 px: %s", address, got)
				}
				if got := b.text("document.title.includes('pwned()') && typeof pwned"); got != "false" && got != "undefined" {
					t.Errorf("%s: %s", address, got)
				}
			}
			b.quiet()
		})
	}
}

// TestTerminalInBrowser holds xterm to the page's policy, and the clipboard and title closed to programs.
func TestTerminalInBrowser(t *testing.T) {
	s := &sample{}
	b, _ := openBrowser(t, s, s)
	b.do(chromedp.Navigate(b.url + "/sandboxes/r1/terminal"))
	b.until(`!!document.querySelector(".xterm-rows")`)
	if got := b.text(`[...document.querySelectorAll("style")].every((s) => s.sheet && s.sheet.cssRules.length > 0) && document.querySelectorAll("style").length > 0`); got != "true" {
		t.Errorf("the terminal's style sheets: %s", got)
	}
	b.quiet()
}

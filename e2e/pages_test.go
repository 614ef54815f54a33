package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/input"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"github.com/cofferdam/cofferdam/internal/testenv"
)

// window is one tab of Chromium at the service, with what its console and its pages say.
type window struct {
	t     *testing.T
	ctx   context.Context
	url   string
	calm  bool // what fails is part of the test: answers that refuse are no news then
	mu    sync.Mutex
	said  []string
	popup []string
}

// open starts Chromium. Its pages are those of the real service, over plain HTTP on localhost.
func (o *outside) open() *window {
	o.t.Helper()
	testenv.Need(o.t, "tool:chromium")
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.NoSandbox, chromedp.DisableGPU, chromedp.UserDataDir(o.t.TempDir()), chromedp.WindowSize(1280, 900),
		chromedp.Flag("disable-quic", true), chromedp.Flag("disable-component-update", true))
	allocator, stop := chromedp.NewExecAllocator(context.Background(), options...)
	ctx, quit := chromedp.NewContext(allocator)
	ctx, cancel := context.WithTimeout(ctx, 4*time.Minute)
	o.t.Cleanup(func() { cancel(); quit(); stop() })
	w := &window{t: o.t, ctx: ctx, url: o.url}
	w.listen()
	return w
}

// other is a window of another person's: nothing is shared with this one.
func (w *window) other() *window {
	w.t.Helper()
	ctx, cancel := chromedp.NewContext(w.ctx, chromedp.WithNewBrowserContext())
	w.t.Cleanup(cancel)
	o := &window{t: w.t, ctx: ctx, url: w.url, calm: w.calm}
	o.listen()
	return o
}

// listen collects what no page should say, and dialogs, which no page should open.
func (w *window) listen() {
	w.t.Helper()
	note := func(to *[]string, text string) {
		w.mu.Lock()
		defer w.mu.Unlock()
		*to = append(*to, text)
	}
	err := chromedp.Listen(w.ctx, func(ev any) {
		switch ev := ev.(type) {
		case *log.EventEntryAdded:
			if e := ev.Entry; (e.Level == log.EntryLevelError || e.Level == log.EntryLevelWarning) && (e.Source != "network" || !w.calm) {
				note(&w.said, string(e.Source)+": "+e.Text+" "+e.URL)
			}
		case *runtime.EventExceptionThrown:
			note(&w.said, "exception: "+ev.ExceptionDetails.Text)
		case *runtime.EventConsoleAPICalled:
			if ev.Type == runtime.ConsoleAPICalledTypeError || ev.Type == runtime.ConsoleAPICalledTypeWarning {
				note(&w.said, "console: "+string(ev.Type))
			}
		case *page.EventJavascriptDialogOpening:
			note(&w.popup, ev.Message)
			accept := page.HandleJavaScriptDialogParams{Accept: true}
			go func() { _, _ = chromedp.Call(w.ctx, page.HandleJavaScriptDialog, accept) }() // the window may have gone
		}
	})
	if err != nil {
		w.t.Fatal(err)
	}
}

// quiet checks that nothing was said that should not have been.
func (w *window) quiet(where string) {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, text := range w.said {
		w.t.Errorf("%s: the console says %s", where, text)
	}
	for _, text := range w.popup {
		w.t.Errorf("%s: a dialog says %q", where, text)
	}
	w.said, w.popup = nil, nil
}

func (w *window) do(steps ...chromedp.Action[chromedp.Void]) {
	w.t.Helper()
	if err := chromedp.Do(w.ctx, steps...); err != nil {
		w.t.Fatal(err)
	}
}

// tell sends one command of the protocol.
func tell[P, R any](w *window, c cdp.Command[P, R], p P) R {
	w.t.Helper()
	r, err := chromedp.Call(w.ctx, c, p)
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

// visit goes to an address of the service and waits for what the page does at once.
func (w *window) visit(address string) {
	w.t.Helper()
	if strings.HasPrefix(address, "/") {
		address = w.url + address
	}
	w.do(chromedp.Navigate(address))
	w.until(`document.readyState === "complete"`)
}

// js evaluates an expression as text. Promises are waited for.
func (w *window) js(expression string) string {
	w.t.Helper()
	text, err := chromedp.Run(w.ctx, chromedp.Evaluate[string]("(async () => String(await ("+expression+")))()", awaited))
	if err != nil {
		w.t.Fatalf("%s: %v", expression, err)
	}
	return text
}

func awaited(p *runtime.EvaluateParams) {
	yes := true
	p.AwaitPromise = &yes
}

// until waits for an expression to be true, and returns how long that took. Pages may change under it.
func (w *window) until(expression string) time.Duration {
	w.t.Helper()
	began := time.Now()
	for time.Since(began) < 20*time.Second {
		yes, err := chromedp.Run(w.ctx, chromedp.Evaluate[bool]("!!("+expression+")"))
		if err == nil && yes {
			return time.Since(began)
		}
		if w.ctx.Err() != nil {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	w.picture("never")
	w.t.Fatalf("never: %s\nat %s: %.3000s", expression, w.js("location.href"), w.js("document.body.innerText"))
	return 0
}

// at waits until the window shows an address.
func (w *window) at(path string) {
	w.t.Helper()
	w.until("location.pathname + location.search === " + strconv.Quote(path) + ` && document.readyState === "complete"`)
}

// click presses the mouse where an element is, as a person would: what is covered or outside cannot be clicked.
func (w *window) click(selector string) {
	w.t.Helper()
	const find = `(() => {
		const e = document.querySelector(%); if (!e) return [0, 0];
		e.scrollIntoView({ block: "center", behavior: "instant" });
		const r = e.getClientRects()[0]; if (!r) return [0, 0];
		const x = r.x + r.width / 2, y = r.y + r.height / 2, hit = document.elementFromPoint(x, y);
		return hit && (e.contains(hit) || hit.contains(e) && hit.tagName === "LABEL" ) ? [x, y] : [-1, -1];
	})()`
	at := [2]float64{}
	for range 200 {
		got, err := chromedp.Run(w.ctx, chromedp.Evaluate[[]float64](strings.Replace(find, "%", strconv.Quote(selector), 1)))
		if err == nil && len(got) == 2 && got[0] > 0 {
			w.do(chromedp.MouseClickXY(got[0], got[1]))
			return
		}
		if err == nil && len(got) == 2 {
			at = [2]float64(got)
		}
		time.Sleep(25 * time.Millisecond)
	}
	w.t.Fatalf("%s cannot be clicked: %v\nat %s: %.3000s", selector, at, w.js("location.href"), w.js("document.body.innerText"))
}

// fill puts text into a field in place of what it has, once the page's scripts listen to it.
func (w *window) fill(selector, text string) {
	w.t.Helper()
	w.until(`document.readyState === "complete" && document.querySelector(` + strconv.Quote(selector) + ")")
	w.js("(() => { const e = document.querySelector(" + strconv.Quote(selector) + "); e.focus(); e.select?.(); })()")
	tell(w, input.InsertText, input.InsertTextParams{Text: text})
}

// keys types as a keyboard does. chromedp's own way sends the character even where the page has taken the key itself, as a terminal does: twice, then.
func (w *window) keys(text string) {
	w.t.Helper()
	for _, r := range text {
		down := *kb.Encode(r)[0]
		down.Text = string(r)
		up := down
		up.Type, up.Text = input.DispatchKeyEventTypeKeyUp, ""
		tell(w, input.DispatchKeyEvent, down)
		tell(w, input.DispatchKeyEvent, up)
	}
}

// shows checks that a part of the page has a text.
func (w *window) shows(selector, text string) time.Duration {
	w.t.Helper()
	return w.until("[...document.querySelectorAll(" + strconv.Quote(selector) + ")].some((e) => e.textContent.includes(" + strconv.Quote(text) + "))")
}

// look gives the window a size and a scheme of colours.
func (w *window) look(width int64, scheme string) {
	w.t.Helper()
	w.do(chromedp.EmulateViewport(width, 900))
	tell(w, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{
		{Name: "prefers-color-scheme", Value: scheme}, {Name: "prefers-reduced-motion", Value: "reduce"}, // colours that are still on their way are nobody's
	}})
}

// picture stores what the window shows where SCREENSHOTS says, for people to look at.
func (w *window) picture(name string) {
	w.t.Helper()
	dir := os.Getenv("SCREENSHOTS")
	if dir == "" {
		return
	}
	data, err := chromedp.Run(w.ctx, chromedp.FullScreenshot(100))
	if err == nil {
		err = errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, name+".png"), data, 0o644))
	}
	if err != nil {
		w.t.Error(err)
	}
}

// signIn signs a person in through the page.
func (w *window) signIn(email string) {
	w.t.Helper()
	w.visit("/sign-in")
	w.fill("#f-email", email)
	w.fill("#f-password", password)
	w.click("[data-test=sign-in] [data-test=submit]")
	w.at("/")
}

// whole decodes what an expression comes to.
func whole[T any](w *window, expression string) (v T) {
	w.t.Helper()
	if err := json.Unmarshal([]byte(w.js("JSON.stringify("+expression+")")), &v); err != nil {
		w.t.Fatal(err)
	}
	return v
}

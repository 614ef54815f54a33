package web

import (
	"bytes"
	"errors"
	"net/http"
	"net/url"
	"strings"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/auth"
	"github.com/cofferdam/cofferdam/internal/control"
	"github.com/cofferdam/cofferdam/internal/fault"
)

// mostForm bounds what a form may send; files are streamed and bounded by the sandbox's own disk.
const mostForm = 2 << 20

// visit is one request of a person, with who they are.
type visit struct {
	*Pages
	w         http.ResponseWriter
	r         *http.Request
	actor     control.Actor
	principal auth.Principal
	me        api.Me
	can       map[control.Permission]bool
}

// view is what every template gets.
type view struct {
	Title   string
	Section string // of the navigation
	Wide    bool
	Me      api.Me
	Counts  control.Counts
	Nonce   string
	Done    string // what was just done, in a sentence of ours
	Path    string
	Data    any
	can     map[control.Permission]bool
	url     *url.URL
}

// Can says whether the person may do something, so that a page offers only that. The operations check it again.
func (v *view) Can(p string) bool { return v.can[control.Permission(p)] }

// With is the address of this page with one more, or another, parameter.
func (v *view) With(name, value string) string {
	q := v.url.Query()
	q.Del("done")
	if name != "after" {
		q.Del("after")
	}
	q.Set(name, value)
	return v.url.Path + "?" + q.Encode()
}

// RawQuery is this page's parameters as they stand in its address.
func (v *view) RawQuery() string { return v.url.RawQuery }

// Query is a parameter of this page.
func (v *view) Query(name string) string { return v.url.Query().Get(name) }

func (p *Pages) visit(w http.ResponseWriter, r *http.Request) *visit {
	return &visit{Pages: p, w: w, r: r}
}

// handler answers a visit. An error of a kind that the visitor can do something about is better shown in the form than returned.
type handler func(v *visit) error

// signedIn wraps a handler for people who have signed in; others are sent to do so.
func (p *Pages) signedIn(h handler) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		v := p.visit(w, r)
		if err := v.enter(); err != nil {
			v.fail(err)
			return
		}
		v.serve(h)
	}
}

// anyone wraps a handler for people who have not.
func (p *Pages) anyone(h handler) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) { p.visit(w, r).serve(h) }
}

func (v *visit) serve(h handler) {
	v.w.Header().Set("Cache-Control", "no-store")
	if v.r.Method == http.MethodPost && !strings.HasPrefix(v.r.Header.Get("Content-Type"), "multipart/form-data") {
		v.r.Body = http.MaxBytesReader(v.w, v.r.Body, mostForm)
		if err := v.r.ParseForm(); err != nil {
			v.fail(fault.New(fault.Invalid, "the form could not be read").WithHint("it may have at most 2 MiB").Because(err))
			return
		}
	}
	if err := h(v); err != nil {
		v.fail(err)
	}
}

// enter finds out who asks.
func (v *visit) enter() error {
	cookie := v.door.ReadCookie(v.r, auth.SessionCookie)
	if cookie == "" {
		return fault.New(fault.Unauthenticated, "you are not signed in")
	}
	var err error
	if v.principal, err = v.door.Session(v.r.Context(), cookie); err != nil {
		return err
	}
	if v.actor, err = actorOf(v.principal); err != nil {
		return err
	}
	if v.me, err = v.ops.Me(v.r.Context(), v.actor); err != nil {
		return err
	}
	v.can = map[control.Permission]bool{}
	for _, s := range v.me.Scopes {
		v.can[control.Permission(s)] = true
	}
	return nil
}

// htmx says whether a fragment is asked for.
func (v *visit) htmx() bool { return v.r.Header.Get("HX-Request") == "true" }

func (v *visit) view(title, section string, data any) *view {
	out := &view{Title: title, Section: section, Me: v.me, Nonce: v.nonce(v.r.Context()), Path: v.r.URL.Path, Data: data, can: v.can, url: v.r.URL,
		Done: doneSentence(v.r.URL.Query().Get("done"))}
	if v.me.User.ID != "" {
		counts, err := v.ops.Counts(v.r.Context(), v.actor)
		if err != nil { // the page is worth more than its numbers
			v.log.Warn("count for the navigation", "error", err)
		}
		out.Counts = counts
	}
	return out
}

// show answers with a whole page.
func (v *visit) show(name, title, section string, data any) error {
	return v.write(http.StatusOK, name, "layout", v.view(title, section, data))
}

// form answers with a whole page that holds a form; 422 if something in it is wrong.
func (v *visit) showForm(name, title, section string, f *form, data any) error {
	status := http.StatusOK
	if f.Bad() {
		status = http.StatusUnprocessableEntity
	}
	return v.write(status, name, "layout", v.view(title, section, data))
}

// fragment answers with a part of a page.
func (v *visit) fragment(name, part string, data any) error {
	return v.write(http.StatusOK, name, part, v.view("", "", data))
}

// write renders before it answers, so that no half page is sent when a template stops.
func (v *visit) write(status int, name, part string, data *view) error {
	t := v.pages[name]
	if t == nil {
		return errors.New("no page " + name)
	}
	var b bytes.Buffer
	if err := t.ExecuteTemplate(&b, part, data); err != nil {
		return err
	}
	h := v.w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Cache-Control", "no-store")
	h.Set("Vary", "HX-Request")
	v.w.WriteHeader(status)
	_, err := v.w.Write(b.Bytes())
	if err != nil {
		v.log.Debug("answer a page", "error", err) // the browser has gone
	}
	return nil
}

// to redirects to a path of ours after something was done; done names the sentence to show there.
func (v *visit) to(path, done string) error {
	if done != "" {
		sep := "?"
		if strings.Contains(path, "?") {
			sep = "&"
		}
		path += sep + "done=" + url.QueryEscape(done)
	}
	if v.htmx() {
		v.w.Header().Set("HX-Redirect", path)
		v.w.WriteHeader(http.StatusNoContent)
		return nil
	}
	http.Redirect(v.w, v.r, path, http.StatusSeeOther)
	return nil
}

// localPath returns s if it is a path of this server and nothing else, or "/". A browser reads //host, /\host and control characters in ways of its own.
func localPath(s string) string {
	if !strings.HasPrefix(s, "/") || strings.HasPrefix(s, "//") || len(s) > 2000 || strings.ContainsAny(s, "\\") {
		return "/"
	}
	for _, c := range s {
		if c < 0x20 || c == 0x7f {
			return "/"
		}
	}
	u, err := url.Parse(s)
	if err != nil || u.Host != "" || u.Scheme != "" || u.User != nil || strings.HasPrefix(u.Path, "//") {
		return "/"
	}
	return u.RequestURI()
}

package web

import (
	"errors"
	"net/http"
	"net/url"

	"github.com/cofferdam/cofferdam/internal/fault"
)

// failure is what the error page shows.
type failure struct {
	Status   int
	Heading  string
	Sentence string
	Hint     string
	ID       string
	Back     string // the page of ours with the form that was sent
}

var statuses = map[fault.Kind]int{
	fault.Internal: http.StatusInternalServerError, fault.Invalid: http.StatusUnprocessableEntity, fault.Unauthenticated: http.StatusUnauthorized,
	fault.Denied: http.StatusForbidden, fault.NotFound: http.StatusNotFound, fault.Conflict: http.StatusConflict, fault.TooMany: http.StatusTooManyRequests,
	fault.Unavailable: http.StatusServiceUnavailable, fault.Unsupported: http.StatusNotImplemented,
}

var headings = map[fault.Kind]string{
	fault.Internal: "Something went wrong here", fault.Invalid: "That could not be read", fault.Unauthenticated: "Please sign in", fault.Denied: "You may not do this",
	fault.NotFound: "Not found", fault.Conflict: "It has changed meanwhile", fault.TooMany: "Too much at once", fault.Unavailable: "Not available now", fault.Unsupported: "Not possible here",
}

// fail answers with an error: a page, or a note for htmx, or the way to the sign-in page.
func (v *visit) fail(err error) {
	kind := fault.KindOf(err)
	if v.r.Context().Err() != nil { // nobody waits for the answer
		return
	}
	if tooLarge, ok := errors.AsType[*http.MaxBytesError](err); ok {
		kind, err = fault.TooMany, fault.New(fault.TooMany, "what was sent is larger than %d bytes", tooLarge.Limit)
	}
	if kind == fault.Unauthenticated {
		v.toSignIn()
		return
	}
	f := failure{Status: statuses[kind], Heading: headings[kind], Sentence: sentence(fault.Public(err)), Hint: sentence(fault.HintOf(err))}
	if kind == fault.Internal {
		f.ID = newID()
		f.Sentence = "The server could not do this. Its log says why."
		v.log.Error("answer a page", "id", f.ID, "path", v.r.URL.Path, "error", err)
	}
	if back, err := url.Parse(v.r.Referer()); err == nil && v.r.Method == http.MethodPost && back.Host == v.r.Host {
		f.Back = localPath(back.RequestURI())
	}
	part := "layout"
	switch {
	case v.htmx():
		part = "failure"
	case v.me.User.ID == "":
		part = "door"
	}
	if err := v.write(f.Status, "failure", part, v.view(f.Heading, "", f)); err != nil {
		v.log.Error("answer with an error", "error", err)
		http.Error(v.w, "internal error", http.StatusInternalServerError)
	}
}

// toSignIn sends to the sign-in page, and back from there.
func (v *visit) toSignIn() {
	where := "/sign-in"
	if v.r.Method == http.MethodGet && !v.htmx() && v.r.URL.Path != "/" {
		where += "?next=" + url.QueryEscape(localPath(v.r.URL.RequestURI()))
	}
	if v.htmx() {
		v.w.Header().Set("HX-Redirect", where)
		v.w.WriteHeader(http.StatusUnauthorized)
		return
	}
	http.Redirect(v.w, v.r, where, http.StatusSeeOther)
}

// notFound answers for a path that no page has.
func (p *Pages) notFound(v *visit) error {
	return fault.New(fault.NotFound, "there is no such page")
}

package web

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/control"
	"github.com/cofferdam/cofferdam/internal/fault"
)

type auditOperations interface {
	Audit(ctx context.Context, a control.Actor, q api.AuditQuery) (api.Page[api.AuditEvent], error)
	ExportAudit(ctx context.Context, a control.Actor, q api.AuditQuery, w io.Writer) error
	Queries(ctx context.Context, a control.Actor) ([]api.SavedQuery, error)
	SaveQuery(ctx context.Context, a control.Actor, in api.SavedQuery) (api.SavedQuery, error)
	DeleteQuery(ctx context.Context, a control.Actor, id string) error
}

type auditData struct {
	Form     *form
	Page     api.Page[api.AuditEvent]
	Queries  []savedLink
	Filtered bool
	Kinds    []string // asked for, beyond what the form has fields for
	Export   string   // its address
}

// savedLink is a saved query with the address that asks it.
type savedLink struct {
	api.SavedQuery
	Address string
}

// timeForm is how a browser's date field writes a time. It has no zone: the pages speak UTC.
const timeForm = "2006-01-02T15:04"

// readQuery reads a search from an address or a form.
func readQuery(f *form) api.AuditQuery {
	q := api.AuditQuery{Agent: f.text("agent"), Sandbox: f.text("sandbox"), Host: f.text("host"), Verdict: f.text("verdict"), Access: f.text("access"), Credential: f.text("credential"),
		Repository: f.text("repository"), Rule: f.text("rule"), Limit: 50, After: f.text("after")}
	for _, kind := range f.values["kind"] {
		if kind != "" {
			q.Kinds = append(q.Kinds, kind)
		}
	}
	q.Since, q.Until = f.time("since"), f.time("until")
	return q
}

// time reads a field with a time, noting what cannot be read.
func (f *form) time(name string) time.Time {
	if f.text(name) == "" {
		return time.Time{}
	}
	for _, layout := range []string{timeForm, time.RFC3339, "2006-01-02"} {
		if t, err := time.Parse(layout, f.text(name)); err == nil {
			return t
		}
	}
	f.wrong(name, "Write a time such as 2026-12-31T08:00.")
	return time.Time{}
}

// queryValues writes a search as parameters of an address.
func queryValues(q api.AuditQuery) url.Values {
	out := url.Values{}
	set := func(name, value string) {
		if value != "" {
			out.Set(name, value)
		}
	}
	set("agent", q.Agent)
	set("sandbox", q.Sandbox)
	set("host", q.Host)
	set("verdict", q.Verdict)
	set("access", q.Access)
	set("credential", q.Credential)
	set("repository", q.Repository)
	set("rule", q.Rule)
	for _, k := range q.Kinds {
		out.Add("kind", k)
	}
	if !q.Since.IsZero() {
		out.Set("since", q.Since.UTC().Format(timeForm))
	}
	if !q.Until.IsZero() {
		out.Set("until", q.Until.UTC().Format(timeForm))
	}
	return out
}

func (p *Pages) audit(v *visit) error {
	ctx := v.r.Context()
	d := auditData{Form: newForm(v.r.URL.Query())}
	q := readQuery(d.Form)
	if !d.Form.Bad() {
		page, err := v.ops.Audit(ctx, v.actor, q)
		if err != nil {
			if err := d.Form.take(err); err != nil {
				return err
			}
		}
		d.Page = page
	}
	q.After = ""
	d.Filtered = len(queryValues(q)) > 0
	d.Kinds = q.Kinds
	d.Export = "/audit/export?" + queryValues(q).Encode()
	queries, err := v.ops.Queries(ctx, v.actor)
	if err != nil {
		return err
	}
	for _, s := range queries {
		d.Queries = append(d.Queries, savedLink{s, "/audit?" + queryValues(s.Query).Encode()})
	}
	return v.showForm("audit", "Audit", "audit", d.Form, d)
}

// Pretty is an event's record with indents, for reading.
func (d auditData) Pretty(record json.RawMessage) string {
	var b bytes.Buffer
	if err := json.Indent(&b, record, "", "  "); err != nil { // shown as it is
		return string(record)
	}
	return b.String()
}

// exportAudit sends the records that match, a line each.
func (p *Pages) exportAudit(v *visit) error {
	f := newForm(v.r.URL.Query())
	q := readQuery(f)
	q.After, q.Limit = "", 0
	if f.Bad() {
		return fault.New(fault.Invalid, "a time could not be read")
	}
	out := &lateWriter{v: v}
	if err := v.ops.ExportAudit(v.r.Context(), v.actor, q, out); err != nil {
		if !out.begun {
			return err
		}
		v.log.Warn("export the audit log", "error", err)
		panic(http.ErrAbortHandler) // so that half an export does not look whole
	}
	out.begin() // an empty export is a file too
	return nil
}

// lateWriter sends its headers with the first byte, so that an error before it is still an error page.
type lateWriter struct {
	v     *visit
	begun bool
}

func (l *lateWriter) begin() {
	if l.begun {
		return
	}
	l.begun = true
	h := l.v.w.Header()
	h.Set("Content-Type", "application/x-ndjson")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Disposition", `attachment; filename="audit.jsonl"`)
}

// Write sends a part.
func (l *lateWriter) Write(b []byte) (int, error) {
	l.begin()
	return l.v.w.Write(b)
}

func (p *Pages) saveQuery(v *visit) error {
	f := newForm(v.r.PostForm)
	values, err := url.ParseQuery(strings.TrimPrefix(f.Value("query"), "?"))
	if err != nil {
		return fault.New(fault.Invalid, "the query could not be read").Because(err)
	}
	inner := newForm(values)
	q := readQuery(inner)
	q.After, q.Limit = "", 0
	if f.text("name") == "" || inner.Bad() {
		return fault.New(fault.Invalid, "a saved query needs a name")
	}
	if _, err := v.ops.SaveQuery(v.r.Context(), v.actor, api.SavedQuery{Name: f.text("name"), Query: q}); err != nil {
		return err
	}
	return v.to("/audit?"+queryValues(q).Encode(), "query-saved")
}

func (p *Pages) deleteQuery(v *visit) error {
	if err := v.ops.DeleteQuery(v.r.Context(), v.actor, v.r.PathValue("id")); err != nil {
		return err
	}
	return v.to("/audit", "query-deleted")
}

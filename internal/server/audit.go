package server

import (
	"context"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/control"
	"github.com/cofferdam/cofferdam/internal/fault"
)

type search struct {
	Agent      string    `query:"agent" maxLength:"100"`
	Sandbox    string    `query:"sandbox" maxLength:"100"`
	Host       string    `query:"host" maxLength:"260" doc:"exact, or *.example.com"`
	Verdict    string    `query:"verdict" maxLength:"20"`
	Access     string    `query:"access" maxLength:"20"`
	Credential string    `query:"credential" maxLength:"100"`
	Repository string    `query:"repository" maxLength:"300"`
	Rule       string    `query:"rule" maxLength:"300"`
	Kinds      []string  `query:"kinds,explode" maxItems:"20"`
	Since      time.Time `query:"since"`
	Until      time.Time `query:"until"`
	Limit      int       `query:"limit" minimum:"1" maximum:"500"`
	After      string    `query:"after" maxLength:"1000"`
}

func (q search) query() api.AuditQuery {
	return api.AuditQuery{Agent: q.Agent, Sandbox: q.Sandbox, Host: q.Host, Verdict: q.Verdict, Access: q.Access, Credential: q.Credential, Repository: q.Repository,
		Rule: q.Rule, Kinds: q.Kinds, Since: q.Since, Until: q.Until, Limit: q.Limit, After: q.After}
}

func (s *Server) auditOperations() []operation {
	var narrows []param
	for _, name := range searchTexts {
		narrows = append(narrows, param{name, "query", "string", "narrows"})
	}
	return []operation{
		op("GET", "/audit", "search-audit", "The audit log, newest first", control.ReadAudit, func(ctx context.Context, c *call, in *search) (api.Page[api.AuditEvent], error) {
			return listed(s.control.Audit(ctx, c.actor, in.query()))
		}),
		raw("GET", "/audit/export", "export-audit", "The records that match, a line each, oldest first", control.ReadAudit, s.exportAudit).with(narrows...).media("", "application/x-ndjson"),
		op("GET", "/queries", "list-queries", "Saved queries, the built-in ones first", control.ReadAudit, func(ctx context.Context, c *call, _ *noInput) (api.Page[api.SavedQuery], error) {
			return whole(s.control.Queries(ctx, c.actor))
		}),
		op("POST", "/queries", "save-query", "Store a query under a name", control.ReadAudit, func(ctx context.Context, c *call, in *body[api.SavedQuery]) (api.SavedQuery, error) {
			return s.control.SaveQuery(ctx, c.actor, in.Body)
		}).making(),
		act("DELETE", "/queries/{id}", "delete-query", "Remove a saved query", control.ReadAudit, func(ctx context.Context, c *call, in *ByID) error {
			return s.control.DeleteQuery(ctx, c.actor, in.ID)
		}),
		raw("GET", "/events", "watch-events", "What happens in the tenant, as server-sent events; Last-Event-ID or after goes on from there", control.ReadSandboxes, s.events).
			with(param{"after", "query", "integer", "identifier of the last event that was seen; only new ones if left out"}, param{"Last-Event-ID", "header", "integer", "the same, as browsers send it"}).
			media("", "text/event-stream"),
	}
}

var searchTexts = []string{"agent", "sandbox", "host", "verdict", "access", "credential", "repository", "rule", "kinds", "since", "until"}

// exportAudit streams. Its head goes out with the first line, so that a refusal before that is still a problem.
func (s *Server) exportAudit(w http.ResponseWriter, r *http.Request, c *call) error {
	q, err := exportQuery(r.URL.Query())
	if err != nil {
		return err
	}
	out := &late{to: watchedWriter{newSteady(w), s.lookout(c)}, begin: func() {
		w.Header().Set("Content-Type", "application/x-ndjson")
		w.Header().Set("Content-Disposition", `attachment; filename="audit.jsonl"`)
	}}
	if err := s.control.ExportAudit(r.Context(), c.actor, q, out); err != nil {
		return err
	}
	return out.end()
}

func exportQuery(v url.Values) (api.AuditQuery, error) {
	q := api.AuditQuery{}
	texts := map[string]*string{"agent": &q.Agent, "sandbox": &q.Sandbox, "host": &q.Host, "verdict": &q.Verdict, "access": &q.Access, "credential": &q.Credential,
		"repository": &q.Repository, "rule": &q.Rule}
	times := map[string]*time.Time{"since": &q.Since, "until": &q.Until}
	for name, values := range v {
		var err error
		switch {
		case name == "kinds":
			q.Kinds = values
		case texts[name] != nil && len(values) == 1:
			*texts[name] = values[0]
		case times[name] != nil && len(values) == 1:
			*times[name], err = time.Parse(time.RFC3339, values[0])
		default:
			err = fault.New(fault.Invalid, "unknown")
		}
		if err != nil || len(values) > 20 || len(values[0]) > 300 {
			return q, invalid(name)
		}
	}
	return q, nil
}

// invalid names a member of a request that is wrong, and says no more.
func invalid(field string) error {
	return &refusal{status: http.StatusUnprocessableEntity, code: codeValidation, detail: "the request is not valid", field: named(field),
		hint: "see the description of the API at " + prefix + "/openapi.json"}
}

// late writes an answer's head with the first byte of its body.
type late struct {
	to    io.Writer
	begin func()
}

func (l *late) Write(b []byte) (int, error) {
	if l.begin != nil {
		l.begin()
		l.begin = nil
	}
	return l.to.Write(b)
}

// end writes the head of an answer that has no body.
func (l *late) end() error {
	_, err := l.Write(nil)
	return err
}

package control

import (
	"context"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/audit"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/store"
)

// maxTrace bounds how many records a trace is made of.
const maxTrace = 5000

// Trace returns the sandbox's crossings in time, oldest first.
func (s *Service) Trace(ctx context.Context, a Actor, id string) (api.Trace, error) {
	if err := may(a, ReadSandboxes); err != nil {
		return api.Trace{}, err
	}
	o, err := s.sandbox(ctx, a.Tenant, id)
	if err != nil {
		return api.Trace{}, err
	}
	out := api.Trace{Sandbox: o.ID, Start: o.Created, End: o.Data.Ended, Spans: []api.TraceSpan{}}
	if out.End.IsZero() {
		out.End = s.now()
	}
	rows, err := s.DB.SearchAudit(ctx, store.AuditQuery{
		Tenant: a.Tenant, Run: o.ID, Kinds: []string{string(audit.CrossingDecided), string(audit.CrossingFinished)}, Limit: maxTrace + 1, Oldest: true,
	})
	if err != nil {
		return api.Trace{}, err
	}
	if len(rows) > maxTrace {
		rows, out.Truncated = rows[:maxTrace], true
	}
	at := map[uint64]int{} // crossing to its span
	for _, row := range rows {
		e, _, err := s.record(row)
		if fault.KindOf(err) == fault.NotFound {
			out.Truncated = true
			continue
		}
		if err != nil {
			return api.Trace{}, err
		}
		i, begun := at[e.Crossing]
		switch {
		case e.Kind == audit.CrossingDecided:
			if e.Crossing != 0 {
				at[e.Crossing] = len(out.Spans)
			}
			out.Spans = append(out.Spans, spanOf(&e, !o.Data.Ended.IsZero()))
		case begun:
			finish(&out.Spans[i], &e)
		}
	}
	return out, nil
}

// spanOf is a crossing as it was decided. An allowed one is open until its end is found, unless the whole sandbox has ended.
func spanOf(e *audit.Event, ended bool) api.TraceSpan {
	return api.TraceSpan{
		Crossing: e.Crossing, Sequence: e.Seq, Start: e.Time, Open: e.Verdict == "allow" && !ended, Place: placeOf(e), Verdict: e.Verdict, Rule: e.Rule,
		Reason: e.Reason, Credential: e.Credential, Error: e.Error, Count: e.Count,
	}
}

// finish adds what a crossing came to.
func finish(t *api.TraceSpan, e *audit.Event) {
	t.Open, t.Millis, t.Status, t.BytesIn, t.BytesOut, t.Error = false, e.Millis, e.Status, e.BytesIn, e.BytesOut, e.Error
	if e.Address != "" {
		t.Place.Address = e.Address // the one that was dialled
	}
	if e.Credential != "" {
		t.Credential = e.Credential
	}
}

func placeOf(e *audit.Event) api.Place {
	return api.Place{
		Protocol: e.Protocol, Host: e.Host, Address: e.Address, Port: e.Port, Method: e.Method, Path: e.Path, Repository: e.Repository, Refs: e.Refs,
	}
}

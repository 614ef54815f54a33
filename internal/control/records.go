package control

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/audit"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/store"
)

const (
	// anyValue stands in a query for whatever is not empty: a credential of any name, any repository.
	anyValue = "*"
	// scanBatch and maxScan bound how many rows one request looks at to find those that have any credential or repository.
	scanBatch = 1000
	maxScan   = 20_000
)

// Audit searches the audit log, newest first. A page may have fewer entries than asked for and still a next one.
func (s *Service) Audit(ctx context.Context, a Actor, q api.AuditQuery) (api.Page[api.AuditEvent], error) {
	out := api.Page[api.AuditEvent]{Items: []api.AuditEvent{}}
	if err := may(a, ReadAudit); err != nil {
		return out, err
	}
	if q.Limit < 0 || q.Limit > largestPage {
		return out, fault.New(fault.Invalid, "a page cannot have that many entries").WithHint("write a limit of 1 to %d", largestPage)
	}
	search, err := s.auditQuery(ctx, a, q)
	if err != nil {
		return out, err
	}
	limit := cmp.Or(q.Limit, usualPage)
	rows, last, err := s.search(ctx, search, limit)
	if err != nil {
		return out, err
	}
	names := s.agentNames(a.Tenant)
	for _, row := range rows {
		e, err := s.auditEvent(row)
		if err != nil {
			return out, err
		}
		if e.AgentName, err = names.of(ctx, e.Agent); err != nil {
			return out, err
		}
		out.Items = append(out.Items, e)
	}
	if last != 0 {
		out.Next = strconv.FormatInt(last, 10)
	}
	return out, nil
}

// auditQuery checks a query and turns it into the store's.
func (s *Service) auditQuery(ctx context.Context, a Actor, q api.AuditQuery) (store.AuditQuery, error) {
	out := store.AuditQuery{
		Tenant: a.Tenant, Run: q.Sandbox, Host: strings.ToLower(strings.TrimSuffix(q.Host, ".")), Verdict: q.Verdict, Access: q.Access, Rule: q.Rule,
		Credential: q.Credential, Repository: q.Repository, Kinds: q.Kinds, Since: q.Since, Until: q.Until,
	}
	if err := checkQuery(q); err != nil {
		return out, err
	}
	if q.After != "" {
		after, err := strconv.ParseInt(q.After, 10, 64)
		if err != nil || after < 1 {
			return out, fault.New(fault.Invalid, "after: this is no place in the list").WithHint("take it from the page before")
		}
		out.After = after
	}
	if q.Agent != "" {
		out.Agent = q.Agent
		// Of an agent that was deleted the records are still found, by its identifier.
		o, err := find(ctx, s.DB, agents(), a.Tenant, "agent", q.Agent)
		switch {
		case err == nil:
			out.Agent = o.ID
		case fault.KindOf(err) != fault.NotFound:
			return out, err
		}
	}
	return out, nil
}

func checkQuery(q api.AuditQuery) error {
	for name, text := range map[string]string{"agent": q.Agent, "sandbox": q.Sandbox, "host": q.Host, "credential": q.Credential, "repository": q.Repository, "rule": q.Rule} {
		if len(text) > audit.MaxText {
			return fault.New(fault.Invalid, "%s: more than %d bytes", name, audit.MaxText)
		}
	}
	for _, kind := range q.Kinds {
		if !slices.Contains(audit.Kinds(), audit.Kind(kind)) {
			return fault.New(fault.Invalid, "kinds: there is no kind of event of that name").WithHint("kinds are %s", strings.Join(kindNames(), ", "))
		}
	}
	switch {
	case !slices.Contains([]string{"", "allow", "deny", "ask"}, q.Verdict):
		return fault.New(fault.Invalid, "verdict: write allow, deny or ask")
	case !slices.Contains([]string{"", "read", "write"}, q.Access):
		return fault.New(fault.Invalid, "access: write read or write")
	case !q.Since.IsZero() && !q.Until.IsZero() && !q.Since.Before(q.Until):
		return fault.New(fault.Invalid, "until: this is not after since")
	}
	return nil
}

func kindNames() []string {
	var names []string
	for _, k := range audit.Kinds() {
		names = append(names, string(k))
	}
	return names
}

// search returns up to limit rows, and the sequence number to go on from if there may be more.
func (s *Service) search(ctx context.Context, q store.AuditQuery, limit int) (rows []store.AuditRow, next int64, err error) {
	credential, repository := q.Credential == anyValue, q.Repository == anyValue
	if !credential && !repository {
		q.Limit = limit + 1
		rows, err := s.DB.SearchAudit(ctx, q)
		if err != nil || len(rows) <= limit {
			return rows, 0, err
		}
		return rows[:limit], rows[limit-1].Seq, nil
	}
	if credential {
		q.Credential = ""
	}
	if repository {
		q.Repository = ""
	}
	q.Limit = scanBatch
	for range maxScan / scanBatch {
		batch, err := s.DB.SearchAudit(ctx, q)
		if err != nil {
			return nil, 0, err
		}
		for _, row := range batch {
			q.After = row.Seq
			if credential && row.Credential == "" || repository && row.Repository == "" {
				continue
			}
			if rows = append(rows, row); len(rows) == limit {
				return rows, q.After, nil
			}
		}
		if len(batch) < scanBatch {
			return rows, 0, nil
		}
	}
	return rows, q.After, nil
}

// auditEvent is one row with its record. A record that is not in the log any more as it was written is said to be missing; the row still tells what it was about.
func (s *Service) auditEvent(row store.AuditRow) (api.AuditEvent, error) {
	out := api.AuditEvent{Sequence: row.Seq, Time: row.Time, Kind: row.Kind, Agent: row.Agent, Sandbox: row.Run, Verdict: row.Verdict, Record: json.RawMessage("null")}
	e, raw, err := s.record(row)
	switch {
	case err == nil:
		out.Summary, out.Record = e.Words(), raw
	case fault.KindOf(err) == fault.NotFound:
		out.Summary = fmt.Sprintf("%s. It was about: %s %s", fault.Public(err), row.Kind, row.Host)
	default:
		return out, err
	}
	return out, nil
}

// record is the whole record of a row, as an event and as the line that it is in the log.
func (s *Service) record(row store.AuditRow) (audit.Event, json.RawMessage, error) {
	e, raw, err := s.house.lines.Record(uint64(row.Seq), row.Offset, row.Length)
	if err == nil && e.Run.String() != row.Run {
		err = fault.New(fault.NotFound, "record %d does not stand in the audit log as it was written", row.Seq)
	}
	return e, raw, err
}

// exportBatch is how many records are read and written at a time.
const exportBatch = 1000

// ExportAudit writes the records that match, a line each, oldest first, as they stand in the log. What is missing there is left out.
func (s *Service) ExportAudit(ctx context.Context, a Actor, q api.AuditQuery, w io.Writer) error {
	if err := may(a, ReadAudit); err != nil {
		return err
	}
	search, err := s.auditQuery(ctx, a, q)
	if err != nil {
		return err
	}
	search.Oldest = true
	for {
		rows, next, err := s.search(ctx, search, exportBatch)
		if err != nil {
			return err
		}
		for _, row := range rows {
			_, raw, err := s.record(row)
			if fault.KindOf(err) == fault.NotFound {
				continue
			}
			if err != nil {
				return err
			}
			if _, err := w.Write(append(raw, '\n')); err != nil {
				return fmt.Errorf("write an export: %w", err)
			}
		}
		if next == 0 {
			return nil
		}
		search.After = next
	}
}

// agentNames looks up the names of agents, each once.
func (s *Service) agentNames(tenant string) *agentNames {
	return &agentNames{s: s, tenant: tenant, known: map[string]string{}}
}

type agentNames struct {
	s      *Service
	tenant string
	known  map[string]string
}

// of returns an agent's name, or nothing if it is gone.
func (n *agentNames) of(ctx context.Context, id string) (string, error) {
	if id == "" {
		return "", nil
	}
	if name, ok := n.known[id]; ok {
		return name, nil
	}
	o, err := agents().Get(ctx, n.s.DB, n.tenant, id)
	if err != nil && fault.KindOf(err) != fault.NotFound {
		return "", err
	}
	n.known[id] = o.Name
	return o.Name, nil
}

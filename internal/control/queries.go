package control

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/audit"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/store"
)

// maxQueries bounds the saved queries of a tenant.
const maxQueries = 200

func queries() store.Collection[api.AuditQuery] { return store.Of[api.AuditQuery]("query") }

// builtInPrefix begins the identifiers of built-in queries. No stored identifier has a hyphen.
const builtInPrefix = "builtin-"

// builtIn are the questions that everybody asks of a record: who used a credential, what was written, what was refused, by which rule.
func builtIn(now time.Time) []api.SavedQuery {
	decided, finished := string(audit.CrossingDecided), string(audit.CrossingFinished)
	day := now.Add(-24 * time.Hour)
	list := []api.SavedQuery{
		{ID: "denied-today", Name: "Denied in the last day", Query: api.AuditQuery{Kinds: []string{decided}, Verdict: "deny", Since: day}},
		{ID: "credentials", Name: "Which agent and sandbox used which credential", Query: api.AuditQuery{Kinds: []string{decided}, Verdict: "allow", Credential: anyValue}},
		{ID: "writes", Name: "Writes", Query: api.AuditQuery{Kinds: []string{decided}, Verdict: "allow", Access: "write"}},
		{ID: "pushes", Name: "Pushes", Query: api.AuditQuery{Kinds: []string{decided}, Access: "write", Repository: anyValue}},
		{ID: "default", Name: "Refused because no rule allows it", Query: api.AuditQuery{Kinds: []string{decided}, Verdict: "deny", Rule: "default"}},
		{ID: "answers", Name: "What came back", Query: api.AuditQuery{Kinds: []string{finished}}},
		{ID: "runs", Name: "Sandboxes that began and ended", Query: api.AuditQuery{Kinds: []string{string(audit.RunStarted), string(audit.RunEnded)}}},
		{ID: "policy", Name: "Changes of policy and decisions of reviewers", Query: api.AuditQuery{Kinds: []string{string(audit.PolicyChanged), string(audit.ReviewDecided), string(audit.GitChanged)}}},
		{ID: "people", Name: "People, sign-ins and credentials", Query: api.AuditQuery{Kinds: []string{string(audit.UserChanged), string(audit.TokenChanged), string(audit.SignedIn), string(audit.SignInRefused), string(audit.CredentialChanged), string(audit.SettingsChanged)}}},
	}
	for i := range list {
		list[i].ID, list[i].BuiltIn = builtInPrefix+list[i].ID, true
	}
	return list
}

// Queries lists saved queries, the built-in ones first.
func (s *Service) Queries(ctx context.Context, a Actor) ([]api.SavedQuery, error) {
	if err := may(a, ReadAudit); err != nil {
		return nil, err
	}
	out := builtIn(s.now().Truncate(time.Second))
	err := every(ctx, s.DB, queries(), a.Tenant, store.Filter{ByName: true}, func(o store.Object[api.AuditQuery]) error {
		out = append(out, savedQuery(o))
		return nil
	})
	return out, err
}

func savedQuery(o store.Object[api.AuditQuery]) api.SavedQuery {
	return api.SavedQuery{ID: o.ID, Name: o.Name, Query: o.Data, Version: o.Version}
}

// SaveQuery stores a query under a name, for everybody in the tenant. The same name replaces.
func (s *Service) SaveQuery(ctx context.Context, a Actor, in api.SavedQuery) (api.SavedQuery, error) {
	if err := may(a, ReadAudit); err != nil {
		return api.SavedQuery{}, err
	}
	name := strings.TrimSpace(in.Name)
	if name == "" {
		return api.SavedQuery{}, fault.New(fault.Invalid, "name: a saved query needs one")
	}
	if err := checkText("name", name, 100, false); err != nil {
		return api.SavedQuery{}, err
	}
	if _, err := s.auditQuery(ctx, a, in.Query); err != nil {
		return api.SavedQuery{}, err
	}
	in.Query.After, in.Query.Limit = "", 0
	var saved store.Object[api.AuditQuery]
	err := s.DB.Within(ctx, func(tx *store.DB) error {
		old, err := queries().ByName(ctx, tx, a.Tenant, name)
		if err == nil {
			old.Data = in.Query
			saved, err = queries().Update(ctx, tx, old)
			return err
		}
		if fault.KindOf(err) != fault.NotFound {
			return err
		}
		n, err := queries().Count(ctx, tx, a.Tenant, store.Filter{})
		if err != nil {
			return err
		}
		if n >= maxQueries {
			return fault.New(fault.TooMany, "there are %d saved queries already", n).WithHint("delete one that nobody needs")
		}
		saved, err = queries().Insert(ctx, tx, store.Object[api.AuditQuery]{Tenant: a.Tenant, Name: name, Data: in.Query})
		return err
	})
	if err != nil {
		return api.SavedQuery{}, fmt.Errorf("save a query: %w", err)
	}
	return savedQuery(saved), nil
}

// DeleteQuery removes a saved query.
func (s *Service) DeleteQuery(ctx context.Context, a Actor, id string) error {
	if err := may(a, ReadAudit); err != nil {
		return err
	}
	if slices.ContainsFunc(builtIn(s.now()), func(q api.SavedQuery) bool { return q.ID == id }) {
		return fault.New(fault.Invalid, "this query is built in and stays")
	}
	err := queries().Delete(ctx, s.DB, a.Tenant, id, 0)
	if fault.KindOf(err) == fault.NotFound {
		return absent("query")
	}
	return err
}

package client

import (
	"context"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/cofferdam/cofferdam/api"
)

// Denials lists groups of denials, the latest first, of one agent or all, in some states or all.
func (c *Client) Denials(ctx context.Context, agent string, states []api.DenialState, p Page) (api.Page[api.Denial], error) {
	q := p.values()
	set(q, "agent", agent)
	for _, s := range states {
		set(q, "state", string(s))
	}
	return get[api.Page[api.Denial]](ctx, c, "/denials", q)
}

// Denial returns one group, with the narrowest rule and what it would have allowed.
func (c *Client) Denial(ctx context.Context, id string) (api.Denial, error) {
	return get[api.Denial](ctx, c, at("denials", id), nil)
}

// DecideDenial answers a denial. Of two answers the first counts.
func (c *Client) DecideDenial(ctx context.Context, id string, in api.Decide) (api.Decision, error) {
	return post[api.Decision](ctx, c, at("denials", id, "decide"), 0, in)
}

// Approvals lists crossings that wait for a person, or waited.
func (c *Client) Approvals(ctx context.Context, waiting bool, p Page) (api.Page[api.Approval], error) {
	q := p.values()
	if waiting {
		set(q, "waiting", "true")
	}
	return get[api.Page[api.Approval]](ctx, c, "/approvals", q)
}

// Approval returns one crossing that waits.
func (c *Client) Approval(ctx context.Context, id string) (api.Approval, error) {
	return get[api.Approval](ctx, c, at("approvals", id), nil)
}

// DecideApproval answers a crossing that waits. Of two answers the first counts.
func (c *Client) DecideApproval(ctx context.Context, id string, in api.Decide) (api.Decision, error) {
	return post[api.Decision](ctx, c, at("approvals", id, "decide"), 0, in)
}

// Rules lists reviewers' rules, of one agent or all, in some states or all.
func (c *Client) Rules(ctx context.Context, agent string, states []string, p Page) (api.Page[api.Rule], error) {
	q := p.values()
	set(q, "agent", agent)
	set(q, "state", states...)
	return get[api.Page[api.Rule]](ctx, c, "/rules", q)
}

// ApproveRule is the second person's yes.
func (c *Client) ApproveRule(ctx context.Context, id string) (api.Rule, error) {
	return post[api.Rule](ctx, c, at("rules", id, "approve"), 0, nil)
}

// RevokeRule ends a rule, or rejects a proposed one.
func (c *Client) RevokeRule(ctx context.Context, id string) (api.Rule, error) {
	return post[api.Rule](ctx, c, at("rules", id, "revoke"), 0, nil)
}

// CheckRule says what a rule would widen, and what it would have allowed.
func (c *Client) CheckRule(ctx context.Context, agent, rule string) (api.Suggestion, error) {
	return post[api.Suggestion](ctx, c, "/rules/check", 0, api.RuleText{Agent: agent, Rule: rule})
}

// Audit searches the audit log, newest first.
func (c *Client) Audit(ctx context.Context, q api.AuditQuery) (api.Page[api.AuditEvent], error) {
	v := searchValues(q)
	if q.Limit != 0 {
		v.Set("limit", strconv.Itoa(q.Limit))
	}
	set(v, "after", q.After)
	return get[api.Page[api.AuditEvent]](ctx, c, "/audit", v)
}

func searchValues(q api.AuditQuery) url.Values {
	v := url.Values{}
	for name, value := range map[string]string{"agent": q.Agent, "sandbox": q.Sandbox, "host": q.Host, "verdict": q.Verdict, "access": q.Access,
		"credential": q.Credential, "repository": q.Repository, "rule": q.Rule} {
		set(v, name, value)
	}
	set(v, "kinds", q.Kinds...)
	for name, t := range map[string]time.Time{"since": q.Since, "until": q.Until} {
		if !t.IsZero() {
			v.Set(name, t.UTC().Format(time.RFC3339Nano))
		}
	}
	return v
}

// ExportAudit writes the records that match, a line each, oldest first.
func (c *Client) ExportAudit(ctx context.Context, q api.AuditQuery, w io.Writer) error {
	answer, err := c.send(ctx, request{method: http.MethodGet, path: "/audit/export", query: searchValues(q)}, "")
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	_, err = io.Copy(w, answer.Body)
	return err
}

// Queries lists saved queries, the built-in ones first.
func (c *Client) Queries(ctx context.Context) ([]api.SavedQuery, error) {
	return items(get[api.Page[api.SavedQuery]](ctx, c, "/queries", nil))
}

// SaveQuery stores a query under a name.
func (c *Client) SaveQuery(ctx context.Context, in api.SavedQuery) (api.SavedQuery, error) {
	return post[api.SavedQuery](ctx, c, "/queries", 0, in)
}

// DeleteQuery removes a saved query.
func (c *Client) DeleteQuery(ctx context.Context, id string) error {
	return c.remove(ctx, at("queries", id))
}

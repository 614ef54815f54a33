package control

import (
	"cmp"
	"context"
	"encoding/json"
	"net/netip"
	"slices"
	"time"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/audit"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/policy"
	"github.com/cofferdam/cofferdam/internal/review"
	"github.com/cofferdam/cofferdam/internal/store"
)

// The bounds of a replay.
const (
	maxReplay        = 20_000 // crossings that are judged again
	maxReplayScan    = 100_000
	maxReplayGroups  = 2_000
	maxReplayChanges = 500 // that are told
	replayWeek       = 7 * 24 * time.Hour
)

// Replay judges recorded crossings by another document, as if it stood in the place of the policy: what an agent has besides counts too.
func (s *Service) Replay(ctx context.Context, a Actor, policyID string, in api.ReplayRequest) (api.Replay, error) {
	for _, p := range []Permission{ReadPolicies, ReadAudit} {
		if err := may(a, p); err != nil {
			return api.Replay{}, err
		}
	}
	leave, err := s.replaying.enter(ctx)
	if err != nil {
		return api.Replay{}, err
	}
	defer leave()
	o, err := s.policy(ctx, s.DB, a.Tenant, policyID)
	if err != nil {
		return api.Replay{}, err
	}
	text := in.Text
	if text == "" {
		if text, err = s.policyText(ctx, s.DB, o); err != nil {
			return api.Replay{}, err
		}
	}
	law, _, err := s.judgePolicy(ctx, a.Tenant, text)
	if err != nil {
		return api.Replay{}, inWords(err)
	}
	since := in.Since
	if since.IsZero() {
		since = s.now().Add(-replayWeek)
	}
	if in.Agent != "" {
		agent, err := s.agent(ctx, s.DB, a.Tenant, in.Agent)
		if err != nil {
			return api.Replay{}, err
		}
		doc, _, err := s.effectiveWith(ctx, a.Tenant, agent, "", text)
		if err != nil {
			return api.Replay{}, err
		}
		if law, err = policy.Parse("", []byte(doc)); err != nil {
			return api.Replay{}, err
		}
		return s.replay(ctx, a.Tenant, []string{agent.ID}, law, since)
	}
	var ids []string
	err = every(ctx, s.DB, agents(), a.Tenant, store.Filter{Parent: o.ID}, func(agent store.Object[AgentData]) error {
		ids = append(ids, agent.ID)
		return nil
	})
	if err != nil {
		return api.Replay{}, err
	}
	return s.replay(ctx, a.Tenant, ids, law, since)
}

// replay judges what is recorded of some agents since a time, the newest first, as far as its bounds go.
func (s *Service) replay(ctx context.Context, tenant string, agentIDs []string, law *policy.Policy, since time.Time) (api.Replay, error) {
	rows, truncated, err := s.recorded(ctx, tenant, agentIDs, since)
	if err != nil {
		return api.Replay{}, err
	}
	out, err := replay(ctx, law, rows, s.record)
	out.Truncated = out.Truncated || truncated
	return out, err
}

// recorded finds the decided crossings of some agents.
func (s *Service) recorded(ctx context.Context, tenant string, agentIDs []string, since time.Time) (rows []store.AuditRow, truncated bool, err error) {
	if len(agentIDs) == 0 {
		return nil, false, nil
	}
	q := store.AuditQuery{Tenant: tenant, Kinds: []string{string(audit.CrossingDecided)}, Since: since, Limit: 10_000}
	wanted := map[string]bool{}
	for _, id := range agentIDs {
		wanted[id] = true
	}
	if len(agentIDs) == 1 {
		q.Agent = agentIDs[0]
	}
	for scanned := 0; ; {
		part, err := s.DB.SearchAudit(ctx, q)
		if err != nil {
			return nil, false, err
		}
		for _, row := range part {
			if !wanted[row.Agent] {
				continue
			}
			if len(rows) == maxReplay {
				return rows, true, nil
			}
			rows = append(rows, row)
		}
		if len(part) < q.Limit {
			return rows, false, nil
		}
		if scanned += len(part); scanned >= maxReplayScan {
			return rows, true, nil
		}
		q.After = part[len(part)-1].Seq
	}
}

// replay judges crossings again and groups what would be decided otherwise. full reads the whole record of a row. Operations of Git are left out: they
// are judged by facts that the log does not hold.
func replay(ctx context.Context, law *policy.Policy, rows []store.AuditRow, full func(store.AuditRow) (audit.Event, json.RawMessage, error)) (api.Replay, error) {
	out := api.Replay{Changed: []api.ReplayChange{}}
	type key struct{ destination, operation, before, after, rule string }
	groups := map[key]*api.ReplayChange{}
	for _, row := range rows {
		if err := ctx.Err(); err != nil {
			return out, fault.New(fault.Unavailable, "it took too long").Because(err).WithHint("choose a shorter time")
		}
		e, _, err := full(row)
		if fault.KindOf(err) == fault.NotFound {
			continue // the log has lost it, and says so where it is verified
		}
		if err != nil {
			return out, err
		}
		c, ok := policy.CrossingOf(&e)
		if !ok {
			continue
		}
		out.Crossings++
		d := judge(law, c, &e)
		if d.Verdict.String() == e.Verdict {
			continue
		}
		place := review.PlaceOf(&e)
		k := key{review.Destination(place), review.Operation(place), e.Verdict, d.Verdict.String(), d.Rule}
		g := groups[k]
		if g == nil {
			if len(groups) == maxReplayGroups {
				out.Truncated = true
				continue
			}
			g = &api.ReplayChange{Destination: k.destination, Operation: k.operation, Before: k.before, After: k.after, Rule: k.rule}
			groups[k] = g
		}
		g.Count += int(min(max(e.Count, 1), 1<<31))
		if e.Time.After(g.Last) {
			g.Last = e.Time
		}
	}
	for _, g := range groups {
		out.Changed = append(out.Changed, *g)
	}
	slices.SortFunc(out.Changed, func(a, b api.ReplayChange) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), b.Last.Compare(a.Last), cmp.Compare(a.Destination, b.Destination), cmp.Compare(a.Operation, b.Operation))
	})
	if len(out.Changed) > maxReplayChanges {
		out.Changed, out.Truncated = out.Changed[:maxReplayChanges], true
	}
	return out, nil
}

// judge decides about a crossing as the gateway does: by name first and then, where it is on record, by the address that the name had.
func judge(law *policy.Policy, c policy.Crossing, e *audit.Event) policy.Decision {
	d := law.Decide(c)
	if d.Verdict != policy.Allow || c.Host == "" {
		return d
	}
	a, err := netip.ParseAddr(e.Address)
	if err != nil {
		ap, err := netip.ParseAddrPort(e.Address)
		if err != nil {
			return d
		}
		a = ap.Addr()
	}
	if at := law.DecideAddress(c.Host, a); at.Verdict != policy.Allow {
		return at
	}
	return d
}

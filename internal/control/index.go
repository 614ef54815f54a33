package control

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"time"

	"github.com/cofferdam/cofferdam/internal/audit"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/store"
)

const (
	// indexPause is how long the index waits at the end of the log before it looks again.
	indexPause = 100 * time.Millisecond
	// indexBatch is how many records are taken into the index by one transaction.
	indexBatch = 1000
	// maxRooms bounds how many runs the index remembers the owners of.
	maxRooms = 50_000
)

func (s *Service) auditDir() string { return filepath.Join(s.State, "audit") }

// followLog takes the log into the index until ctx ends.
func (s *Service) followLog(ctx context.Context) {
	for ctx.Err() == nil {
		err := s.indexFrom(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, audit.ErrReplaced):
			s.Log.Warn("the audit log is another one than before, or shorter: the index is made anew")
			err = s.DB.ResetAudit(ctx) // its rows point into a log that is gone
		}
		if err != nil {
			s.Log.Error("index the audit log", "error", err)
			pause(ctx, time.Second)
		}
	}
}

// indexFrom goes on from where the index ends, until something is wrong.
func (s *Service) indexFrom(ctx context.Context) error {
	offset, _, err := s.DB.AuditPosition(ctx)
	if err != nil {
		return err
	}
	tail, err := audit.OpenTail(s.auditDir(), offset)
	if err != nil {
		return err
	}
	defer tail.Close()
	ix := indexer{s: s, rooms: map[string]room{}}
	for {
		entries, skipped, err := tail.Next(indexBatch)
		if err != nil {
			return err
		}
		if skipped > 0 {
			s.Log.Warn("lines of the audit log that are no records were left out of the index", "lines", skipped)
		}
		if len(entries) > 0 || skipped > 0 {
			if err := ix.take(ctx, entries, tail.Offset()); err != nil {
				return err
			}
		}
		if len(entries) < indexBatch && !pause(ctx, indexPause) {
			return ctx.Err()
		}
	}
}

// pause waits, and says whether ctx goes on.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// indexer knows whose the runs are that it meets.
type indexer struct {
	s     *Service
	rooms map[string]room
}

// take brings records into the index, counts what was denied into the inbox, and tells of crossings: all of it, or after an error nothing.
func (ix *indexer) take(ctx context.Context, entries []audit.Entry, position int64) error {
	rows := make([]store.AuditRow, len(entries))
	crossed := map[string]store.Event{}
	var denied []refused
	for i := range entries {
		e := &entries[i].Event
		in, err := ix.roomOf(ctx, e)
		if err != nil {
			return err
		}
		rows[i] = auditRow(&entries[i], in)
		if in.tenant == "" || in.agent == "" || e.Kind != audit.CrossingDecided {
			continue
		}
		crossed[in.sandbox] = store.Event{Tenant: in.tenant, Type: "crossing", Subject: in.sandbox, Agent: in.agent, Time: e.Time}
		if e.Verdict == "deny" {
			denied = append(denied, refused{tenant: in.tenant, agent: in.agent, event: *e})
		}
	}
	return ix.s.DB.Within(ctx, func(tx *store.DB) error {
		if err := tx.AddAudit(ctx, rows, position); err != nil {
			return err
		}
		if err := ix.s.noteDenials(ctx, tx, denied); err != nil { // it emits: what else writes goes before
			return fmt.Errorf("count denials: %w", err)
		}
		events := make([]store.Event, 0, len(crossed))
		for _, e := range crossed {
			events = append(events, e)
		}
		if len(events) == 0 {
			return nil
		}
		_, err := tx.Emit(ctx, events...)
		return err
	})
}

// roomOf says whose an event is. The service's own word about a sandbox goes before what a record says, since the records of a run are written by its
// keeper, which reads what the sandbox sends. What the operator ran by hand is nobody's.
func (ix *indexer) roomOf(ctx context.Context, e *audit.Event) (room, error) {
	run := e.Run.String()
	if run == "" {
		return room{tenant: e.Tenant, agent: e.Agent}, nil
	}
	if in, ok := ix.rooms[run]; ok {
		return in, nil
	}
	in := room{sandbox: run}
	o, err := sandboxes().Get(ctx, ix.s.DB, store.AnyTenant, run)
	switch {
	case err == nil:
		in.tenant, in.agent = o.Tenant, o.Parent
	case fault.KindOf(err) != fault.NotFound:
		return in, err
	case e.Kind == audit.RunStarted: // of a service whose store is gone
		in.tenant, in.agent = e.Tenant, e.Agent
	}
	if len(ix.rooms) >= maxRooms {
		clear(ix.rooms)
	}
	ix.rooms[run] = in
	return in, nil
}

func auditRow(entry *audit.Entry, in room) store.AuditRow {
	e := &entry.Event
	return store.AuditRow{
		Seq: int64(e.Seq), Time: e.Time, Tenant: in.tenant, Agent: in.agent, Run: e.Run.String(), Kind: string(e.Kind), Protocol: e.Protocol,
		Verdict: e.Verdict, Access: e.Access, Host: hostOf(e), Rule: e.Rule, Credential: e.Credential, Repository: e.Repository,
		Crossing: e.Crossing, Count: e.Count, Offset: entry.Offset, Length: entry.Length,
	}
}

// hostOf is the name that was asked for, or the address where there was none, as people search for it.
func hostOf(e *audit.Event) string {
	if e.Host != "" {
		return strings.ToLower(strings.TrimSuffix(e.Host, "."))
	}
	if ap, err := netip.ParseAddrPort(e.Address); err == nil {
		return ap.Addr().String()
	}
	return e.Address
}

// tenantIDs lists the tenants.
func (s *Service) tenantIDs(ctx context.Context) ([]string, error) {
	var ids []string
	err := every(ctx, s.DB, anything("tenant"), store.AnyTenant, store.Filter{}, func(o store.Object[rawData]) error {
		ids = append(ids, o.ID)
		return nil
	})
	return ids, err
}

// pruneBatch is how many rows are removed by one transaction, so that writers need not wait.
const pruneBatch = 5000

// pruneAudit removes a tenant's part of the index from before a time. The log itself stays.
func (s *Service) pruneAudit(ctx context.Context, tenant string, before time.Time) error {
	for {
		n, err := s.DB.PruneAudit(ctx, tenant, before, pruneBatch)
		if err != nil || n < pruneBatch {
			return err
		}
		if !pause(ctx, 20*time.Millisecond) {
			return ctx.Err()
		}
	}
}

// retain removes from the index what is older than each tenant keeps.
func (s *Service) retain(ctx context.Context) error {
	tenants, err := s.tenantIDs(ctx)
	if err != nil {
		return err
	}
	for _, tenant := range tenants {
		settings, err := s.settings(ctx, tenant)
		if err == nil && settings.RetentionDays > 0 {
			err = s.pruneAudit(ctx, tenant, s.now().AddDate(0, 0, -settings.RetentionDays))
		}
		if err != nil {
			return fmt.Errorf("tenant %s: %w", tenant, err)
		}
	}
	return nil
}

package store

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"github.com/cofferdam/cofferdam/internal/fault"
)

// Event is something that pages and clients are told of.
type Event struct {
	ID      int64
	Tenant  string
	Type    string
	Subject string
	Agent   string
	State   string
	Time    time.Time
}

// eventLock is the advisory lock of who emits, in PostgreSQL. Any number would do that nothing else uses.
const eventLock = 0x636f66666572

// Emit appends events, in the transaction it is called in, and returns the last one's identifier. Identifiers grow, and become visible in their order:
// who has read up to one misses none before it. On PostgreSQL that costs a lock until the end of the transaction, so emit last.
func (db *DB) Emit(ctx context.Context, events ...Event) (last int64, err error) {
	if len(events) == 0 {
		return 0, nil
	}
	if db.tx == nil {
		err = db.Within(ctx, func(tx *DB) error {
			last, err = tx.Emit(ctx, events...)
			return err
		})
		return last, err
	}
	if db.dialect.postgres {
		if _, err := db.tx.sql.ExecContext(ctx, "SELECT pg_advisory_xact_lock($1)", int64(eventLock)); err != nil {
			return 0, db.fail(err, "wait for the turn to emit")
		}
	}
	statement := db.dialect.bind("INSERT INTO events (tenant, type, subject, agent, state, time) VALUES (" + marks(6) + ") RETURNING id")
	for _, e := range events {
		if e.Tenant == AnyTenant {
			return 0, fault.New(fault.Internal, "internal error").Because(errors.New("an event for any tenant"))
		}
		if e.Time.IsZero() {
			e.Time = time.Now()
		}
		row := db.tx.sql.QueryRowContext(ctx, statement, cleaned(e.Tenant), cleaned(e.Type), cleaned(e.Subject), cleaned(e.Agent), cleaned(e.State), micros(e.Time))
		if err := row.Scan(&last); err != nil {
			return 0, db.fail(err, "append an event")
		}
	}
	if db.dialect.postgres {
		if _, err := db.tx.sql.ExecContext(ctx, "SELECT pg_notify($1, '')", channel); err != nil {
			return 0, db.fail(err, "tell of events")
		}
	}
	db.tx.emitted.Store(true)
	return last, nil
}

// Events returns up to limit events of a tenant after an identifier, oldest first. AnyTenant is for the service itself.
func (db *DB) Events(ctx context.Context, tenant string, after int64, limit int) ([]Event, error) {
	where, args := "id > ?", []any{after}
	if tenant != AnyTenant {
		where, args = "tenant = ? AND id > ?", []any{tenant, after}
	}
	var all []Event
	statement := "SELECT id, tenant, type, subject, agent, state, time FROM events WHERE " + where + " ORDER BY id LIMIT ?"
	err := db.query(ctx, "read events", statement, append(args, max(limit, 1)), func(rows *sql.Rows) error {
		var e Event
		var at int64
		err := rows.Scan(&e.ID, &e.Tenant, &e.Type, &e.Subject, &e.Agent, &e.State, &at)
		e.Time = instant(at)
		all = append(all, e)
		return err
	})
	return all, err
}

// LastEvent is the newest identifier, 0 if there is none.
func (db *DB) LastEvent(ctx context.Context) (int64, error) {
	var last int64
	err := db.row(ctx, "read the last event", "SELECT COALESCE(max(id), 0) FROM events", nil, &last)
	return last, err
}

const (
	day               = 24 * time.Hour
	eventsKept        = 7 * day
	idempotencyKept   = day
	sweptInOneGo      = 5000
	underWayAtLongest = 10 * time.Minute
)

// Sweep removes what has expired: proofs, idempotency records, events older than a week. It does so in portions, so that others can write in between.
func (db *DB) Sweep(ctx context.Context, now time.Time) error {
	for _, s := range []struct {
		doing, table, key, where string
		before                   time.Time
	}{
		{"sweep up proofs", "proofs", "hash", "expires <= ?", now},
		{"sweep up idempotency records", "idempotent", "owner, key", "created <= ?", now.Add(-idempotencyKept)},
		{"sweep up events", "events", "id", "time <= ?", now.Add(-eventsKept)},
	} {
		statement := "DELETE FROM " + s.table + " WHERE (" + s.key + ") IN (SELECT " + s.key + " FROM " + s.table + " WHERE " + s.where + " LIMIT ?)"
		for {
			n, err := db.write(ctx, s.doing, statement, micros(s.before), sweptInOneGo)
			if err != nil {
				return err
			}
			if n < sweptInOneGo {
				break
			}
		}
	}
	return nil
}

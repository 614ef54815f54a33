package store

import (
	"cmp"
	"context"
	"database/sql"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cofferdam/cofferdam/internal/fault"
)

// The index of the audit log must answer any combination of conditions over ten million rows, the unlucky ones too: an agent that is in every second row
// and a host that is in three. No set of B-trees does that. So the rows lie in order of their sequence number without another index. Numbers are cut into
// blocks; when a block is full it is sealed: for each term in it, such as "agent a of tenant t", a bit set says which rows have it. A search takes the
// intersection of its terms' bit sets, which is exact, and reads only rows that match. Rows of the block that is not sealed yet are looked through.
// Writing is cheap: a row is one insert at the end of one tree, and a bit set is written once.

// AuditRow is what can be searched for of one audit event. The event itself stays in the log; Offset and Length say where.
type AuditRow struct {
	Seq        int64
	Time       time.Time
	Tenant     string
	Agent      string
	Run        string
	Kind       string
	Protocol   string
	Verdict    string
	Access     string
	Host       string // or the address where there is none
	Rule       string
	Credential string
	Repository string
	Crossing   uint64
	Count      uint64
	Offset     int64
	Length     int32
}

const auditColumns = "seq, time, tenant, agent, run, kind, protocol, verdict, access, host, rule, credential, repository, crossing, count, off, len"

// auditWidth is how many columns those are.
const auditWidth = 17

// cleaned is the row as it is stored: bounded, valid text in which a host has one spelling. A sandbox may have chosen some of it.
func (r AuditRow) cleaned() AuditRow {
	for _, s := range []*string{&r.Tenant, &r.Agent, &r.Run, &r.Kind, &r.Protocol, &r.Verdict, &r.Access, &r.Host, &r.Rule, &r.Credential, &r.Repository} {
		*s = cleaned(*s)
	}
	r.Host = strings.TrimSuffix(strings.ToLower(r.Host), ".")
	return r
}

func (r AuditRow) values() []any {
	return []any{r.Seq, micros(r.Time), r.Tenant, r.Agent, r.Run, r.Kind, r.Protocol, r.Verdict, r.Access, r.Host, r.Rule, r.Credential, r.Repository,
		int64(r.Crossing), int64(r.Count), r.Offset, r.Length} // unsigned numbers keep their bits
}

func scanAudit(rows *sql.Rows) (AuditRow, error) {
	var r AuditRow
	var at, crossing, count int64
	err := rows.Scan(&r.Seq, &at, &r.Tenant, &r.Agent, &r.Run, &r.Kind, &r.Protocol, &r.Verdict, &r.Access, &r.Host, &r.Rule, &r.Credential, &r.Repository,
		&crossing, &count, &r.Offset, &r.Length)
	r.Time, r.Crossing, r.Count = instant(at), uint64(crossing), uint64(count)
	return r, err
}

// AddAudit indexes events, and moves the position of the index to the end of the last in the same transaction. Rows that are there already are left.
// Batches of about a thousand are best.
func (db *DB) AddAudit(ctx context.Context, rows []AuditRow, position int64) error {
	prepared := make([]AuditRow, len(rows))
	for i, r := range rows {
		if r.Seq < 0 {
			return fault.New(fault.Internal, "internal error").Because(fmt.Errorf("sequence number %d", r.Seq))
		}
		prepared[i] = r.cleaned()
	}
	slices.SortStableFunc(prepared, func(a, b AuditRow) int { return cmp.Compare(a.Seq, b.Seq) })
	return db.Within(ctx, func(tx *DB) error {
		s, err := tx.auditState(ctx, true)
		if err != nil {
			return err
		}
		// What belongs to a sealed block comes late, after a position that was set back: nearly always it is there already.
		start, _ := slices.BinarySearchFunc(prepared, firstOf(s.sealed), func(r AuditRow, seq int64) int { return cmp.Compare(r.Seq, seq) })
		if err := tx.addLate(ctx, prepared[:start]); err != nil {
			return err
		}
		if err := tx.insertAudit(ctx, prepared[start:]); err != nil {
			return err
		}
		if len(prepared) > 0 {
			s.seq = max(s.seq, prepared[len(prepared)-1].Seq)
		}
		if s.sealed, err = tx.sealUpTo(ctx, s.sealed, blockOf(s.seq)); err != nil {
			return err
		}
		_, err = tx.write(ctx, "move the position of the audit index", "UPDATE audit_state SET position = ?, seq = ?, sealed = ?", position, s.seq, s.sealed)
		return err
	})
}

// insertAudit adds rows that are not there yet, in as few statements as either database takes.
func (db *DB) insertAudit(ctx context.Context, rows []AuditRow) error {
	const doing = "index audit events"
	if db.dialect.postgres {
		return db.insertAuditArrays(ctx, doing, rows)
	}
	const inOne = 64
	for some := range slices.Chunk(rows, inOne) {
		args := make([]any, 0, len(some)*auditWidth)
		for _, r := range some {
			args = append(args, r.values()...)
		}
		values := strings.TrimSuffix(strings.Repeat("("+marks(auditWidth)+"), ", len(some)), ", ")
		if _, err := db.write(ctx, doing, "INSERT INTO audit ("+auditColumns+") VALUES "+values+" ON CONFLICT DO NOTHING", args...); err != nil {
			return err
		}
	}
	return nil
}

// insertAuditArrays sends each column as one array.
func (db *DB) insertAuditArrays(ctx context.Context, doing string, rows []AuditRow) error {
	if len(rows) == 0 {
		return nil
	}
	numbers := map[int][]int64{}
	texts := map[int][]string{}
	for _, r := range rows {
		for i, v := range r.values() {
			switch v := v.(type) {
			case int64:
				numbers[i] = append(numbers[i], v)
			case int32:
				numbers[i] = append(numbers[i], int64(v))
			case string:
				texts[i] = append(texts[i], v)
			}
		}
	}
	var args []any
	var arrays []string
	for i := range auditWidth {
		if column, ok := texts[i]; ok {
			args, arrays = append(args, column), append(arrays, "?::text[]")
		} else {
			args, arrays = append(args, numbers[i]), append(arrays, "?::bigint[]")
		}
	}
	_, err := db.write(ctx, doing, "INSERT INTO audit ("+auditColumns+") SELECT * FROM unnest("+strings.Join(arrays, ", ")+") ON CONFLICT DO NOTHING", args...)
	return err
}

// addLate adds rows to sealed blocks, where they are not there yet.
func (db *DB) addLate(ctx context.Context, rows []AuditRow) error {
	added := map[int64][]AuditRow{}
	statement := "INSERT INTO audit (" + auditColumns + ") VALUES (" + marks(auditWidth) + ") ON CONFLICT DO NOTHING"
	for _, r := range rows {
		n, err := db.write(ctx, "index a late audit event", statement, r.values()...)
		if err != nil {
			return err
		}
		if n == 1 {
			added[blockOf(r.Seq)] = append(added[blockOf(r.Seq)], r)
		}
	}
	for _, block := range sortedKeys(added) {
		if err := db.amend(ctx, block, added[block], true); err != nil {
			return err
		}
	}
	return nil
}

// auditState is how far the index has come.
type auditState struct {
	position, seq int64
	sealed        int64 // the first block that is not sealed
}

// auditState reads it; who will change it has the others wait. PostgreSQL takes a transaction's snapshot after such a lock, if it is the first that the
// transaction does: then those who waited do not collide.
func (db *DB) auditState(ctx context.Context, change bool) (auditState, error) {
	if change && db.dialect.postgres {
		if _, err := db.tx.sql.ExecContext(ctx, "LOCK TABLE audit_state IN SHARE ROW EXCLUSIVE MODE"); err != nil {
			return auditState{}, db.fail(err, "wait for the turn to index audit events")
		}
	}
	var s auditState
	err := db.row(ctx, "read the position of the audit index", "SELECT position, seq, sealed FROM audit_state", nil, &s.position, &s.seq, &s.sealed)
	return s, err
}

// AuditPosition is the offset in the log up to which it is indexed, and the last sequence number.
func (db *DB) AuditPosition(ctx context.Context) (offset, seq int64, err error) {
	s, err := db.auditState(ctx, false)
	return s.position, s.seq, err
}

// CountAudit is how many rows there are.
func (db *DB) CountAudit(ctx context.Context) (int64, error) {
	var sealed, open int64
	err := db.snapshot(ctx, func(tx *DB) error {
		s, err := tx.auditState(ctx, false)
		if err != nil {
			return err
		}
		if err := tx.row(ctx, "count audit events", "SELECT CAST(COALESCE(sum(rows), 0) AS bigint) FROM audit_block", nil, &sealed); err != nil {
			return err
		}
		return tx.row(ctx, "count audit events", "SELECT count(*) FROM audit WHERE seq >= ?", []any{firstOf(s.sealed)}, &open)
	})
	return sealed + open, err
}

// AuditAt returns one row of a tenant by its sequence number.
func (db *DB) AuditAt(ctx context.Context, tenant string, seq int64) (AuditRow, error) {
	rows, err := db.auditRows(ctx, []int64{seq})
	if err != nil {
		return AuditRow{}, err
	}
	if len(rows) == 0 || rows[0].Tenant != tenant {
		return AuditRow{}, fault.New(fault.NotFound, "no such audit event")
	}
	return rows[0], nil
}

// PruneAudit removes up to limit of a tenant's rows from before a time, oldest first, and says how many there were. A few thousand at a
// time keep others from waiting long.
func (db *DB) PruneAudit(ctx context.Context, tenant string, before time.Time, limit int) (int, error) {
	removed := 0
	err := db.Within(ctx, func(tx *DB) error {
		s, err := tx.auditState(ctx, true)
		if err != nil {
			return err
		}
		rows, err := tx.searchAudit(ctx, AuditQuery{Tenant: tenant, Until: before, Limit: limit, Oldest: true})
		if err != nil {
			return err
		}
		removed = len(rows)
		byBlock := map[int64][]AuditRow{}
		for _, r := range rows {
			byBlock[blockOf(r.Seq)] = append(byBlock[blockOf(r.Seq)], r)
		}
		for _, block := range sortedKeys(byBlock) {
			if err := tx.deleteAudit(ctx, byBlock[block]); err != nil {
				return err
			}
			if block < s.sealed {
				if err := tx.amend(ctx, block, byBlock[block], false); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	return removed, nil
}

func (db *DB) deleteAudit(ctx context.Context, rows []AuditRow) error {
	for some := range slices.Chunk(rows, 500) {
		args := make([]any, len(some))
		for i, r := range some {
			args[i] = r.Seq
		}
		if _, err := db.write(ctx, "remove audit rows", "DELETE FROM audit WHERE seq IN ("+marks(len(args))+")", args...); err != nil {
			return err
		}
	}
	return nil
}

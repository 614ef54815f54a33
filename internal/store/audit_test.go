package store_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/store"
)

// auditRows makes rows of few values, so that every combination of conditions meets some; with gaps in the numbers and times that go back a little.
func auditRows(n int) []store.AuditRow {
	random := rand.New(rand.NewPCG(3, 4))
	pick := func(values ...string) string { return values[random.IntN(len(values))] }
	base := time.Date(2026, 5, 1, 0, 0, 0, 0, time.UTC)
	var rows []store.AuditRow
	seq := int64(0)
	for len(rows) < n {
		seq += 1 + int64(random.IntN(3))
		if len(rows) == n/2 {
			seq += 500_000 // whole blocks are missing
		}
		r := store.AuditRow{
			Seq: seq, Time: base.Add(time.Duration(seq)*time.Second - time.Duration(random.IntN(90))*time.Second), Tenant: pick("t", "t", "t", "u"), Agent: pick("a", "b", "c", ""),
			Run: fmt.Sprint("run", seq/5000), Kind: pick("crossing.decided", "crossing.finished", "run.started"), Protocol: "https", Verdict: pick("allow", "allow", "deny", ""), Access: pick("read", "write", ""),
			Host: pick("example.com", "www.example.com", "a.b.c.d.e.f.g.example.com", "notexample.com", "192.0.2.1", "2001:db8::1", "com", ".example.com", ""), Rule: pick("r1", "r2", ""),
			Credential: pick("token", "", "", ""), Repository: pick("main/one", "", "", ""), Crossing: math.MaxUint64 - uint64(seq), Count: uint64(random.IntN(3)), Offset: seq * 700, Length: int32(random.IntN(9999)),
		}
		rows = append(rows, r)
	}
	return rows
}

// wanted is the search as it is meant: one row after the other.
func wanted(rows []store.AuditRow, q store.AuditQuery) []store.AuditRow {
	is := func(want, have string) bool { return want == "" || want == have }
	var found []store.AuditRow
	for _, r := range rows {
		below, wildcard := strings.CutPrefix(q.Host, "*")
		if r.Tenant == q.Tenant && is(q.Agent, r.Agent) && is(q.Run, r.Run) && is(q.Verdict, r.Verdict) && is(q.Access, r.Access) && is(q.Rule, r.Rule) && is(q.Credential, r.Credential) &&
			is(q.Repository, r.Repository) && (len(q.Kinds) == 0 || slices.Contains(q.Kinds, r.Kind)) && (wildcard && strings.HasSuffix(r.Host, below) && r.Host != below || !wildcard && is(q.Host, r.Host)) &&
			(q.Since.IsZero() || !r.Time.Before(q.Since)) && (q.Until.IsZero() || r.Time.Before(q.Until)) &&
			(q.After == 0 || q.Oldest && r.Seq > q.After || !q.Oldest && r.Seq < q.After) {
			found = append(found, r)
		}
	}
	if !q.Oldest {
		slices.Reverse(found)
	}
	if q.Limit == 0 {
		q.Limit = 100
	}
	return found[:min(len(found), q.Limit)]
}

// randomQuery narrows by a few conditions.
func randomQuery(random *rand.Rand, rows []store.AuditRow) store.AuditQuery {
	one := rows[random.IntN(len(rows))]
	q := store.AuditQuery{Tenant: "t", Oldest: random.IntN(2) == 0, Limit: random.IntN(300)}
	for range random.IntN(4) {
		switch random.IntN(12) {
		case 0:
			q.Agent = one.Agent
		case 1:
			q.Run = one.Run
		case 2:
			q.Host = one.Host
		case 3:
			q.Host = []string{"*.example.com", "*.com", "*.c.d.e.f.g.example.com", "*.b.c.d.e.f.g.example.com", "*.nothing.org"}[random.IntN(5)]
		case 4:
			q.Verdict = one.Verdict
		case 5:
			q.Access = one.Access
		case 6:
			q.Rule = one.Rule
		case 7:
			q.Credential, q.Repository = one.Credential, one.Repository
		case 8:
			q.Kinds = []string{one.Kind, "run.ended", one.Kind}[:1+random.IntN(3)]
		case 9:
			q.Since = one.Time
		case 10:
			q.Until = one.Time
			q.Since = one.Time.Add(-time.Duration(random.IntN(100_000)) * time.Second)
		case 11:
			q.After = one.Seq
		}
	}
	return q
}

func TestSearchAudit(t *testing.T) {
	both(t, func(t *testing.T, db *store.DB) {
		ctx := t.Context()
		rows := auditRows(24_000)
		add := func(part []store.AuditRow, position int64) {
			t.Helper()
			for some := range slices.Chunk(part, 1000) {
				if err := db.AddAudit(ctx, some, position); err != nil {
					t.Fatal(err)
				}
			}
		}
		random := rand.New(rand.NewPCG(5, 6))
		compare := func(rows []store.AuditRow, n int) {
			t.Helper()
			for range n {
				q := randomQuery(random, rows)
				got, err := db.SearchAudit(ctx, q)
				if err != nil {
					t.Fatal(err)
				}
				if want := wanted(rows, q); cmp.Diff(want, got) != "" {
					t.Fatalf("%+v: got %d rows, want %d", q, len(got), len(want))
				}
			}
			if counted, err := db.CountAudit(ctx); err != nil || counted != int64(len(rows)) {
				t.Errorf("counted %d of %d, %v", counted, len(rows), err)
			}
		}
		// Some come late, into blocks that are sealed by then: every fifth of the first thousand, and a stretch.
		late := func(i int) bool { return i < 1000 && i%5 == 0 || i >= 8_000 && i < 8_300 }
		var early, after []store.AuditRow
		for i, r := range rows {
			if late(i) {
				after = append(after, r)
			} else {
				early = append(early, r)
			}
		}
		add(early[:5000], 5)
		compare(early[:5000], 40) // nothing is sealed
		add(early[5000:], 6)
		compare(early, 60)
		add(after, 7)
		add(rows[:3000], 8) // all there already
		add(rows[len(rows)-3000:], 9)
		compare(rows, 60)
		if position, seq, err := db.AuditPosition(ctx); position != 9 || seq != rows[len(rows)-1].Seq || err != nil {
			t.Error(position, seq, err)
		}
		pruneAudit(t, db, rows, compare)
	})
}

func pruneAudit(t *testing.T, db *store.DB, rows []store.AuditRow, compare func([]store.AuditRow, int)) {
	t.Helper()
	for _, c := range []struct {
		tenant string
		upTo   int
	}{{"u", 12_000}, {"t", 4_000}, {"t", 18_000}, {"nobody", 24_000}} {
		before := rows[min(c.upTo, len(rows)-1)].Time
		for {
			n, err := db.PruneAudit(t.Context(), c.tenant, before, 7000)
			if err != nil {
				t.Fatal(err)
			}
			if n == 0 {
				break
			}
		}
		rows = slices.DeleteFunc(slices.Clone(rows), func(r store.AuditRow) bool { return r.Tenant == c.tenant && r.Time.Before(before) })
		compare(rows, 30)
	}
	// What was pruned can be indexed again.
	back := auditRows(2000)
	if err := db.AddAudit(t.Context(), back, 9); err != nil {
		t.Fatal(err)
	}
	compare(append(back, slices.DeleteFunc(slices.Clone(rows), func(r store.AuditRow) bool { return r.Seq <= back[len(back)-1].Seq })...), 30)
}

// TestHostileAudit: what a sandbox makes up is indexed, bounded, and found.
func TestHostileAudit(t *testing.T) {
	both(t, func(t *testing.T, db *store.DB) {
		ctx := t.Context()
		rows := []store.AuditRow{
			{Seq: 1, Tenant: "t", Host: "EXAMPLE.com\x00\xff"}, {Seq: 2, Tenant: "t", Host: strings.Repeat("a.", 2000)}, {Seq: 3, Tenant: "t", Host: strings.Repeat(".", 300)},
			{Seq: 4, Tenant: "t", Host: "'; DROP TABLE audit; --%_", Rule: "?"}, {Seq: 5, Tenant: "t", Host: "Straße.ÜNI.example"}, {Seq: 1_000_000, Tenant: "u"},
		}
		if err := db.AddAudit(ctx, rows[:5], 1); err != nil {
			t.Fatal(err)
		}
		for _, sealed := range []bool{false, true} {
			for host, want := range map[string]int64{"example.com\uFFFD\uFFFD": 1, "'; DROP TABLE audit; --%_": 4, "*.üni.example": 5, "straße.üni.example": 5} {
				got, err := db.SearchAudit(ctx, store.AuditQuery{Tenant: "t", Host: host})
				if host == "example.com\uFFFD\uFFFD" && len(got) == 0 { // neighbouring bytes may become one character
					got, err = db.SearchAudit(ctx, store.AuditQuery{Tenant: "t", Host: "example.com\x00\xff"})
				}
				if err != nil || len(got) != 1 || got[0].Seq != want {
					t.Errorf("sealed %v: %q: %+v, %v", sealed, host, got, err)
				}
			}
			if got, err := db.SearchAudit(ctx, store.AuditQuery{Tenant: "t"}); err != nil || len(got) != 5 {
				t.Error(len(got), err)
			}
			if err := db.AddAudit(ctx, rows[5:], 2); err != nil {
				t.Fatal(err)
			}
		}
		if r, err := db.AuditAt(ctx, "t", 4); err != nil || r.Rule != "?" {
			t.Error(r, err)
		}
		_, err := db.AuditAt(ctx, "t", 1_000_000)
		is(t, err, fault.NotFound)
		_, err = db.AuditAt(ctx, "t", 77)
		is(t, err, fault.NotFound)
		for _, tenant := range []string{"", "*"} {
			_, err = db.SearchAudit(ctx, store.AuditQuery{Tenant: tenant})
			is(t, err, fault.Internal)
		}
		for _, host := range []string{"*", "*.", "a.*.b", "**.b", "*.*.b", "*.2.1", "*..", "*.1"} {
			_, err = db.SearchAudit(ctx, store.AuditQuery{Tenant: "t", Host: host})
			is(t, err, fault.Invalid)
		}
	})
}

// TestAuditTogether: replicas that follow one log index each event once.
func TestAuditTogether(t *testing.T) {
	both(t, func(t *testing.T, db *store.DB) {
		rows := auditRows(3000)
		won := race(4, func(int) error {
			for part := range slices.Chunk(rows, 500) {
				if err := db.AddAudit(t.Context(), part, part[len(part)-1].Seq); err != nil {
					return err
				}
			}
			return nil
		}, func(err error) { t.Error(err) })
		if n, err := db.CountAudit(t.Context()); won != 4 || n != 3000 || err != nil {
			t.Error(won, n, err)
		}
	})
}

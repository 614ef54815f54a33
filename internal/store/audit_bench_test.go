package store_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/internal/store"
)

// auditMix makes rows as a service with many agents would: few of them busy, few hosts in nearly every row, a long tail, one refusal in a thousand.
type auditMix struct {
	random       *rand.Rand
	agents, host *rand.Zipf
	start        time.Time
}

func newAuditMix() *auditMix {
	random := rand.New(rand.NewPCG(1, 2))
	return &auditMix{random: random, agents: rand.NewZipf(random, 1.1, 1, 9_999), host: rand.NewZipf(random, 1.2, 1, 49_999), start: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)}
}

func (m *auditMix) row(seq int64) store.AuditRow {
	agent, host := m.agents.Uint64(), m.host.Uint64()
	r := store.AuditRow{
		Seq: seq, Time: m.start.Add(time.Duration(seq) * 3 * time.Second), Tenant: "tenant" + strconv.Itoa(int(agent%10)), Agent: fmt.Sprintf("agent%011d", agent),
		Run: fmt.Sprintf("run%013d", seq/200*10_000+int64(agent)), Kind: "crossing.decided", Protocol: "https", Verdict: "allow", Access: []string{"read", "read", "read", "write"}[m.random.IntN(4)],
		Host: fmt.Sprintf("h%d.zone%d.example.com", host, host%40), Rule: "egress[" + strconv.Itoa(m.random.IntN(30)) + "]", Crossing: uint64(seq), Count: 1, Offset: seq * 700, Length: 700,
	}
	switch {
	case seq%2 == 1:
		r.Kind = "crossing.finished"
	case m.random.IntN(500) == 0:
		r.Verdict, r.Rule = "deny", ""
	}
	if m.random.IntN(10) == 0 {
		r.Credential = "token" + strconv.Itoa(m.random.IntN(50))
	}
	if seq%2_500_000 == 1_234_567 || seq == 60_000 { // what hardly ever happens, and never to the busiest
		r.Tenant, r.Agent, r.Host = "tenant0", "agent00000000010", "needle.rare.example.org"
	}
	return r
}

type auditCase struct {
	name  string
	query store.AuditQuery
}

// auditCases are searches with their unlucky ones.
func auditCases(rows int64) []auditCase {
	at := func(seq int64) time.Time { return newAuditMix().start.Add(time.Duration(seq) * 3 * time.Second) }
	busy := "agent00000000000"
	q := func(q store.AuditQuery) store.AuditQuery { q.Tenant = "tenant0"; return q }
	return []auditCase{
		{"newest", q(store.AuditQuery{})},
		{"oldest", q(store.AuditQuery{Oldest: true})},
		{"busy agent", q(store.AuditQuery{Agent: busy})},
		{"quiet agent", q(store.AuditQuery{Agent: "agent00000009990"})},
		{"busy agent, refused", q(store.AuditQuery{Agent: busy, Verdict: "deny"})},
		{"refused", q(store.AuditQuery{Verdict: "deny"})},
		{"rare host", q(store.AuditQuery{Host: "needle.rare.example.org"})},
		{"busy agent, rare host: nothing", q(store.AuditQuery{Agent: busy, Host: "needle.rare.example.org"})},
		{"below a rare domain", q(store.AuditQuery{Host: "*.example.org"})},
		{"below a busy domain", q(store.AuditQuery{Host: "*.example.com"})},
		{"busy agent, below a rare domain: nothing", q(store.AuditQuery{Agent: busy, Host: "*.rare.example.org"})},
		{"below a domain, refused, writes, oldest", q(store.AuditQuery{Host: "*.zone7.example.com", Verdict: "deny", Access: "write", Oldest: true})},
		{"nothing, all frequent", q(store.AuditQuery{Agent: busy, Kinds: []string{"crossing.finished"}, Verdict: "deny"})},
		{"ten minutes in the middle", q(store.AuditQuery{Since: at(rows / 2), Until: at(rows/2 + 200)})},
		{"an hour early, refused", q(store.AuditQuery{Since: at(rows / 10), Until: at(rows/10 + 1200), Verdict: "deny"})},
		{"until early, busy agent, host", q(store.AuditQuery{Until: at(rows / 20), Agent: busy, Host: "h3.zone3.example.com"})},
		{"a credential's rule and access", q(store.AuditQuery{Credential: "token7", Rule: "egress[3]", Access: "write", Agent: busy})},
		{"10,000 refused", q(store.AuditQuery{Verdict: "deny", Limit: 10_000})},
		{"page from the middle", q(store.AuditQuery{Agent: busy, After: rows / 2})},
		{"one run", q(store.AuditQuery{Run: fmt.Sprintf("run%013d", rows/2/200*10_000)})},
		{"many kinds", q(store.AuditQuery{Kinds: []string{"crossing.finished", "run.started", "run.ended"}, Host: "h39.zone39.example.com"})},
	}
}

// fillAudit indexes rows in batches and says how long that took.
func fillAudit(t testing.TB, db *store.DB, rows int64) time.Duration {
	t.Helper()
	mix := newAuditMix()
	const batch = 1000
	begun := time.Now()
	var worst time.Duration
	for seq := int64(1); seq <= rows; {
		part := make([]store.AuditRow, 0, batch)
		for ; len(part) < batch && seq <= rows; seq++ {
			part = append(part, mix.row(seq))
		}
		one := time.Now()
		if err := db.AddAudit(context.Background(), part, part[len(part)-1].Offset+700); err != nil {
			t.Fatal(err)
		}
		worst = max(worst, time.Since(one))
	}
	took := time.Since(begun)
	t.Logf("%s: %d rows in %v: %.0f a second; the slowest batch took %v", db.Dialect(), rows, took.Round(time.Millisecond), float64(rows)/took.Seconds(), worst.Round(time.Millisecond))
	return took
}

// TestAuditAtScale measures ten million rows. It takes minutes and some gigabytes: COFFERDAM_BENCH=1 asks for it.
func TestAuditAtScale(t *testing.T) {
	if os.Getenv("COFFERDAM_BENCH") != "1" {
		t.Skip("COFFERDAM_BENCH=1 asks for this measurement")
	}
	rows := int64(10_000_000)
	if n, err := strconv.ParseInt(os.Getenv("COFFERDAM_BENCH_ROWS"), 10, 64); err == nil {
		rows = n
	}
	each(t, func(t *testing.T, open func(t *testing.T) *store.DB) {
		db := open(t)
		fillAudit(t, db, rows)
		t.Logf("%s: %d MiB", db.Dialect(), size(t, db)>>20)
		for _, c := range auditCases(rows) {
			var times []time.Duration
			found := 0
			for range 5 {
				begun := time.Now()
				got, err := db.SearchAudit(t.Context(), c.query)
				if err != nil {
					t.Fatal(err)
				}
				times, found = append(times, time.Since(begun)), len(got)
			}
			first := times[0]
			slices.Sort(times)
			t.Logf("%-45s %6d rows, first %8v, median %8v", c.name, found, first.Round(100*time.Microsecond), times[2].Round(100*time.Microsecond))
			if times[2] > 300*time.Millisecond {
				t.Errorf("%s took %v", c.name, times[2])
			}
		}
	})
}

func BenchmarkSearchAudit(b *testing.B) {
	db, err := store.Open(b.Context(), "sqlite:"+filepath.Join(b.TempDir(), "bench.db"))
	if err != nil {
		b.Fatal(err)
	}
	defer db.Close()
	const rows = 200_000
	fillAudit(b, db, rows)
	for _, c := range auditCases(rows) {
		b.Run(c.name, func(b *testing.B) {
			for b.Loop() {
				if _, err := db.SearchAudit(b.Context(), c.query); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

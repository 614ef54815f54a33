package store_test

import (
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/internal/store"
)

// TestObjectsAtScale measures ten thousand agents and a million sandboxes. COFFERDAM_BENCH=1 asks for it.
func TestObjectsAtScale(t *testing.T) {
	if os.Getenv("COFFERDAM_BENCH") != "1" {
		t.Skip("COFFERDAM_BENCH=1 asks for this measurement")
	}
	agents, sandboxes := store.Of[thing]("agent"), store.Of[thing]("sandbox")
	const many = 1_000_000
	both(t, func(t *testing.T, db *store.DB) {
		base := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
		agent := func(i int) string { return fmt.Sprintf("agent%011d", i) }
		insert := func(tx *store.DB, c store.Collection[thing], o store.Object[thing]) {
			o.Tenant, o.Data = "t", thing{Text: "some words that stand for what is stored of it, as long as usual, which is not very long"}
			if _, err := c.Insert(t.Context(), tx, o); err != nil {
				t.Fatal(err)
			}
		}
		begun := time.Now()
		for i := 0; i < many; i += 1000 {
			err := db.Within(t.Context(), func(tx *store.DB) error {
				for n := i; n < i+1000; n++ {
					state := "ended"
					if n%1000 == 7 {
						state = "running"
					}
					if n < 10_000 {
						insert(tx, agents, store.Object[thing]{ID: agent(n), Name: fmt.Sprintf("Agent %05d", n), State: "active"})
					}
					insert(tx, sandboxes, store.Object[thing]{Name: fmt.Sprintf("sandbox-%07d", n), Parent: agent(n % 10_000), State: state, Created: base.Add(time.Duration(n) * time.Second)})
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		t.Logf("%s: filled in %v, %d MiB", db.Dialect(), time.Since(begun).Round(time.Second), size(t, db)>>20)
		parents := make([]string, 100)
		for i := range parents {
			parents[i] = agent(i * 7)
		}
		for _, c := range []struct {
			name string
			do   func() (int, error)
		}{
			{"newest sandboxes", listed(t, db, sandboxes, "t", store.Filter{})},
			{"running", listed(t, db, sandboxes, "t", store.Filter{States: []string{"running"}})},
			{"running or ended", listed(t, db, sandboxes, "t", store.Filter{States: []string{"running", "ended"}})},
			{"running, of anybody", listed(t, db, sandboxes, store.AnyTenant, store.Filter{States: []string{"running"}})},
			{"of one agent", listed(t, db, sandboxes, "t", store.Filter{Parent: agent(77)})},
			{"running, of one agent", listed(t, db, sandboxes, "t", store.Filter{Parent: agent(7), States: []string{"running"}})},
			{"by name", listed(t, db, sandboxes, "t", store.Filter{ByName: true})},
			{"ended, by name", listed(t, db, sandboxes, "t", store.Filter{ByName: true, States: []string{"ended"}})},
			{"agents by name", listed(t, db, agents, "t", store.Filter{ByName: true})},
			{"search agents", listed(t, db, agents, "t", store.Filter{ByName: true, Search: "t 099"})},
			{"search sandboxes, one found", listed(t, db, sandboxes, "t", store.Filter{Search: "x-0500001"})},
			{"search running sandboxes", listed(t, db, sandboxes, "t", store.Filter{Search: "x-0500007", States: []string{"running"}})},
			{"count sandboxes", func() (int, error) { return sandboxes.Count(t.Context(), db, "t", store.Filter{}) }},
			{"count running", func() (int, error) {
				return sandboxes.Count(t.Context(), db, "t", store.Filter{States: []string{"running"}})
			}},
			{"count by agent", func() (int, error) {
				by, err := sandboxes.CountBy(t.Context(), db, "t", parents, "running", "ended")
				return len(by), err
			}},
		} {
			var times []time.Duration
			found := 0
			for range 5 {
				one := time.Now()
				n, err := c.do()
				if err != nil {
					t.Fatal(err)
				}
				times, found = append(times, time.Since(one)), n
			}
			slices.Sort(times)
			t.Logf("%-30s %8d, median %8v", c.name, found, times[2].Round(100*time.Microsecond))
		}
	})
}

func listed(t *testing.T, db *store.DB, c store.Collection[thing], tenant string, f store.Filter) func() (int, error) {
	return func() (int, error) {
		page, _, err := c.List(t.Context(), db, tenant, f)
		return len(page), err
	}
}

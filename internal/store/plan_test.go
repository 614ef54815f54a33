package store

import (
	"database/sql"
	"path/filepath"
	"strings"
	"testing"
)

// TestPlans: the lists that a million objects must not make slow are read from an index in their order.
func TestPlans(t *testing.T) {
	db, err := Open(t.Context(), "sqlite:"+filepath.Join(t.TempDir(), "store.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	c := Of[struct{}]("sandbox")
	for _, tc := range []struct {
		tenant string
		filter Filter
		index  string
	}{
		{"t", Filter{}, "objects_newest"},
		{"t", Filter{States: []string{"a", "b"}}, "objects_state"},
		{"t", Filter{Parent: "p"}, "objects_parent"},
		{"t", Filter{Parent: "p", States: []string{"a", "b"}}, "objects_parent_state"},
		{"t", Filter{ByName: true}, "objects_folded"},
		{"t", Filter{ByName: true, States: []string{"a"}}, "objects_state_folded"},
		{"t", Filter{Search: "x"}, "objects_newest"},
		{"t", Filter{Search: "x", ByName: true}, "objects_folded"},
		{AnyTenant, Filter{}, "objects_any"},
		{AnyTenant, Filter{States: []string{"a"}}, "objects_any_state"},
	} {
		for _, after := range []bool{false, true} {
			where, args, err := c.where(db, tc.tenant, tc.filter)
			if err != nil {
				t.Fatal(err)
			}
			order := "created DESC, id DESC"
			if tc.filter.ByName {
				order = "folded, id"
			}
			if after {
				where, args = c.after(where, args, tc.filter, position{})
			}
			statement, args := pageOf(where, args, tc.filter.States, order, 101)
			var plan []string
			err = db.query(t.Context(), "explain", "EXPLAIN QUERY PLAN "+statement, args, func(rows *sql.Rows) error {
				var id, parent, unused int
				var detail string
				err := rows.Scan(&id, &parent, &unused, &detail)
				plan = append(plan, detail)
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			all := strings.Join(plan, "\n")
			// With several states what is sorted is one page of each.
			if sorted := strings.Contains(all, "TEMP B-TREE") && len(tc.filter.States) == 0; sorted || !strings.Contains(all, "INDEX "+tc.index+" ") {
				t.Errorf("%q %+v, after a cursor %v:\n%s", tc.tenant, tc.filter, after, all)
			}
		}
	}
}

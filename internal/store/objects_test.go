package store_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/store"
)

type thing struct {
	Text   string `json:"text,omitempty"`
	Number int    `json:"number,omitempty"`
}

var things = store.Of[thing]("test-thing")

func insert(t testing.TB, db *store.DB, o store.Object[thing]) store.Object[thing] {
	t.Helper()
	o, err := things.Insert(t.Context(), db, o)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// is fails the test unless an error is of a kind.
func is(t testing.TB, err error, kind fault.Kind) {
	t.Helper()
	if err == nil || fault.KindOf(err) != kind {
		t.Errorf("got %v (%v), want %v", err, fault.KindOf(err), kind)
	}
}

func names(objects []store.Object[thing]) string {
	var all []string
	for _, o := range objects {
		all = append(all, o.Name)
	}
	return strings.Join(all, " ")
}

func TestObject(t *testing.T) {
	both(t, func(t *testing.T, db *store.DB) {
		ctx := t.Context()
		o := insert(t, db, store.Object[thing]{Tenant: "t", Name: "Ünï", Parent: "p", State: "new", Data: thing{"a\x00b ✓", 1 << 40}})
		if len(o.ID) != 16 || o.Version != 1 || time.Since(o.Created) > time.Minute {
			t.Errorf("%+v", o)
		}
		if got, err := things.Get(ctx, db, "t", o.ID); err != nil || got != o {
			t.Errorf("got %+v, %v, want %+v", got, err, o)
		}
		if got, err := things.Get(ctx, db, store.AnyTenant, o.ID); err != nil || got != o {
			t.Errorf("got %+v, %v, want %+v", got, err, o)
		}
		if got, err := things.ByName(ctx, db, "t", "Ünï"); err != nil || got != o {
			t.Errorf("got %+v, %v, want %+v", got, err, o)
		}
		changed := o
		changed.Name, changed.State, changed.Data.Number = "other", "old", 2
		changed, err := things.Update(ctx, db, changed)
		if err != nil || changed.Version != 2 || changed.Created != o.Created {
			t.Errorf("%+v, %v", changed, err)
		}
		if got, err := things.Get(ctx, db, "t", o.ID); err != nil || got != changed {
			t.Errorf("got %+v, %v, want %+v", got, err, changed)
		}
		_, err = things.Update(ctx, db, o)
		is(t, err, fault.Conflict)
		is(t, things.Delete(ctx, db, "t", o.ID, 1), fault.Conflict)
		if err := things.Delete(ctx, db, "t", o.ID, 2); err != nil {
			t.Error(err)
		}
		is(t, things.Delete(ctx, db, "t", o.ID, 0), fault.NotFound)
		_, err = things.Update(ctx, db, changed)
		is(t, err, fault.NotFound)
	})
}

func TestNames(t *testing.T) {
	both(t, func(t *testing.T, db *store.DB) {
		ctx := t.Context()
		a := insert(t, db, store.Object[thing]{Tenant: "t", Name: "a"})
		b := insert(t, db, store.Object[thing]{Tenant: "t", Name: "b"})
		insert(t, db, store.Object[thing]{Tenant: "u", Name: "a"})
		insert(t, db, store.Object[thing]{Tenant: "t"})
		insert(t, db, store.Object[thing]{Tenant: "t"})
		if _, err := store.Of[thing]("other").Insert(ctx, db, store.Object[thing]{Tenant: "t", Name: "a"}); err != nil {
			t.Error(err)
		}
		_, err := things.Insert(ctx, db, store.Object[thing]{Tenant: "t", Name: "a"})
		is(t, err, fault.Conflict)
		_, err = things.Insert(ctx, db, store.Object[thing]{ID: a.ID, Tenant: "t", Name: "c"})
		is(t, err, fault.Conflict)
		b.Name = "a"
		_, err = things.Update(ctx, db, b)
		is(t, err, fault.Conflict)
		if !strings.Contains(err.Error(), `"a"`) {
			t.Error(err)
		}
		// A conflict ends no transaction: what else is done in it happens.
		err = db.Within(ctx, func(tx *store.DB) error {
			_, err := things.Insert(ctx, tx, store.Object[thing]{Tenant: "t", Name: "a"})
			is(t, err, fault.Conflict)
			_, err = things.Update(ctx, tx, b)
			is(t, err, fault.Conflict)
			_, err = things.Insert(ctx, tx, store.Object[thing]{Tenant: "t", Name: "d"})
			return err
		})
		if _, missing := things.ByName(ctx, db, "t", "d"); err != nil || missing != nil {
			t.Error(err, missing)
		}
		for _, wrong := range []store.Object[thing]{
			{Tenant: "*"}, {Tenant: "t", Name: "a\x00"}, {Tenant: "t", Name: "\xff"}, {Tenant: "t", Name: strings.Repeat("x", 600)}, {Tenant: "t", Parent: "\x00"},
		} {
			_, err := things.Insert(ctx, db, wrong)
			is(t, err, fault.Invalid)
		}
	})
}

// TestTenantsApart: whatever a tenant asks for by another's identifiers is not there, in the words for what is nowhere.
func TestTenantsApart(t *testing.T) {
	both(t, func(t *testing.T, db *store.DB) {
		ctx := t.Context()
		theirs := insert(t, db, store.Object[thing]{Tenant: "t", Name: "a", Parent: "p", State: "s"})
		insert(t, db, store.Object[thing]{Tenant: "u", Name: "b", Parent: "p", State: "s"})
		moved := theirs
		moved.Tenant = "u"
		_, errGet := things.Get(ctx, db, "u", theirs.ID)
		_, errNowhere := things.Get(ctx, db, "u", store.NewID())
		_, errName := things.ByName(ctx, db, "u", "a")
		_, errUpdate := things.Update(ctx, db, moved)
		errDelete := things.Delete(ctx, db, "u", theirs.ID, 0)
		_, errAny := things.ByName(ctx, db, store.AnyTenant, "a")
		errDeleteAny := things.Delete(ctx, db, store.AnyTenant, theirs.ID, 0)
		_, errOdd := things.Get(ctx, db, "u", "\x00\xff")
		for _, err := range []error{errGet, errName, errUpdate, errDelete, errAny, errDeleteAny, errOdd} {
			is(t, err, fault.NotFound)
			if err != nil && err.Error() != errNowhere.Error() {
				t.Errorf("%q tells more than %q", err, errNowhere)
			}
		}
		for _, f := range []store.Filter{{}, {ByName: true}, {Parent: "p"}, {States: []string{"s"}}, {Search: "a"}, {Parent: "p", States: []string{"s", "x"}, ByName: true}} {
			page, _, err := things.List(ctx, db, "u", f)
			if err != nil || strings.Contains(names(page), "a") {
				t.Errorf("%+v: %v %v", f, names(page), err)
			}
			if n, err := things.Count(ctx, db, "u", f); err != nil || n != len(page) {
				t.Errorf("%+v: %d %v", f, n, err)
			}
		}
		if by, err := things.CountBy(ctx, db, "u", []string{"p"}); err != nil || by["p"] != 1 {
			t.Error(by, err)
		}
		if by, err := things.CountBy(ctx, db, store.AnyTenant, []string{"p", "q"}, "s", "x"); err != nil || by["p"] != 2 || len(by) != 1 {
			t.Error(by, err)
		}
		if some, err := things.Some(ctx, db, "u", []string{theirs.ID, "\xff"}); err != nil || len(some) != 0 {
			t.Error(some, err)
		}
		if some, err := things.Some(ctx, db, store.AnyTenant, []string{theirs.ID, "x"}); err != nil || some[theirs.ID] != theirs {
			t.Error(some, err)
		}
		if all, _, err := things.List(ctx, db, store.AnyTenant, store.Filter{}); err != nil || len(all) != 2 {
			t.Error(all, err)
		}
	})
}

func TestList(t *testing.T) {
	both(t, func(t *testing.T, db *store.DB) {
		base := time.Date(2026, 5, 1, 0, 0, 0, 0, time.UTC)
		for i, o := range []store.Object[thing]{
			{Name: "Zulu", Parent: "p", State: "on"}, {Name: "alpha_1", Parent: "p", State: "off"}, {Name: "Alpha%2", Parent: "q", State: "on"},
			{Name: "ÄRGER", Parent: "q", State: "gone"}, {Name: "beta", State: "off"},
		} {
			o.Tenant, o.Created = "t", base.Add(time.Duration(i)*time.Second)
			insert(t, db, o)
		}
		for _, c := range []struct {
			filter store.Filter
			want   string
		}{
			{store.Filter{}, "beta ÄRGER Alpha%2 alpha_1 Zulu"},
			{store.Filter{ByName: true}, "Alpha%2 alpha_1 beta Zulu ÄRGER"},
			{store.Filter{Parent: "p"}, "alpha_1 Zulu"},
			{store.Filter{Parent: "p", ByName: true}, "alpha_1 Zulu"},
			{store.Filter{Parent: "nobody"}, ""},
			{store.Filter{States: []string{"on"}}, "Alpha%2 Zulu"},
			{store.Filter{States: []string{"on", "off"}}, "beta Alpha%2 alpha_1 Zulu"},
			{store.Filter{States: []string{"on", "off", "on"}, ByName: true}, "Alpha%2 alpha_1 beta Zulu"},
			{store.Filter{Search: "ALPHA"}, "Alpha%2 alpha_1"},
			{store.Filter{Search: "a%"}, "Alpha%2"},
			{store.Filter{Search: "_"}, "alpha_1"},
			{store.Filter{Search: "rger"}, "ÄRGER"},
			{store.Filter{Search: "ärg"}, "ÄRGER"},
			{store.Filter{Search: "'; --"}, ""},
			{store.Filter{Search: "a", Parent: "q", States: []string{"on"}, ByName: true}, "Alpha%2"},
		} {
			page, next, err := things.List(t.Context(), db, "t", c.filter)
			if err != nil || names(page) != c.want || next != "" {
				t.Errorf("%+v: got %q, %q, %v, want %q", c.filter, names(page), next, err, c.want)
			}
			if n, err := things.Count(t.Context(), db, "t", c.filter); err != nil || n != len(page) {
				t.Errorf("%+v: counted %d, %v", c.filter, n, err)
			}
			one := c.filter
			one.Limit = 1
			var all []store.Object[thing]
			for o, err := range things.All(t.Context(), db, "t", one) {
				if err != nil {
					t.Fatal(err)
				}
				all = append(all, o)
			}
			if names(all) != c.want {
				t.Errorf("%+v: one by one got %q, want %q", c.filter, names(all), c.want)
			}
		}
		_, _, err := things.List(t.Context(), db, "t", store.Filter{Search: "\xff"})
		is(t, err, fault.Invalid)
	})
}

// TestPaging inserts between pages, at the very time of what is there: what was there at the beginning is shown once.
func TestPaging(t *testing.T) {
	both(t, func(t *testing.T, db *store.DB) {
		ctx := t.Context()
		at := time.Date(2026, 5, 1, 0, 0, 0, 0, time.UTC)
		for i := range 60 {
			insert(t, db, store.Object[thing]{Tenant: "t", Name: fmt.Sprintf("n%02d", i), State: []string{"x", "y"}[i%2], Created: at.Add(time.Duration(i/7) * time.Second)})
		}
		for _, f := range []store.Filter{{}, {ByName: true}, {States: []string{"x", "y"}}, {States: []string{"y", "x"}, ByName: true}} {
			f.Limit = 7
			var seen []string
			for round := 0; ; round++ {
				page, next, err := things.List(ctx, db, "t", f)
				if err != nil {
					t.Fatal(err)
				}
				for _, o := range page {
					if o.Data.Number == 0 { // not one that was inserted meanwhile
						seen = append(seen, o.Name)
					}
				}
				if next == "" {
					break
				}
				insert(t, db, store.Object[thing]{Tenant: "t", Name: "n" + store.NewID(), State: "x", Created: at.Add(time.Duration(round) * time.Second), Data: thing{Number: 1}})
				f.After = next
			}
			slices.Sort(seen)
			if len(slices.Compact(slices.Clone(seen))) != 60 || len(seen) != 60 {
				t.Errorf("%+v: saw %d: %v", f, len(seen), seen)
			}
		}
	})
}

func TestCursor(t *testing.T) {
	db := openAt(t, address(t, "sqlite"))
	for range 3 {
		insert(t, db, store.Object[thing]{Tenant: "t"})
	}
	_, cursor, err := things.List(t.Context(), db, "t", store.Filter{Limit: 1})
	if err != nil {
		t.Fatal(err)
	}
	wrong := func(tenant string, f store.Filter) {
		t.Helper()
		_, _, err := things.List(t.Context(), db, tenant, f)
		is(t, err, fault.Invalid)
	}
	for _, s := range []string{"x", "====", cursor + "A", cursor[1:], strings.Repeat("A", 5000), "AAAAAAAAAAAAAAAA"} {
		wrong("t", store.Filter{After: s})
	}
	wrong("u", store.Filter{After: cursor})
	wrong("t", store.Filter{After: cursor, ByName: true})
	wrong("t", store.Filter{After: cursor, States: []string{"x"}})
	for i := range len(cursor) {
		flipped := []byte(cursor)
		flipped[i] = "AB"[map[bool]int{true: 1}[flipped[i] == 'A']]
		if string(flipped) != cursor {
			wrong("t", store.Filter{After: string(flipped)})
		}
	}
}

// TestStrict: what is stored in a form that this program does not know is no half an object.
func TestStrict(t *testing.T) {
	both(t, func(t *testing.T, db *store.DB) {
		newer := store.Of[map[string]any]("test-thing")
		o, err := newer.Insert(t.Context(), db, store.Object[map[string]any]{Tenant: "t", Data: map[string]any{"text": "a", "unknown": 1}})
		if err != nil {
			t.Fatal(err)
		}
		_, err = things.Get(t.Context(), db, "t", o.ID)
		is(t, err, fault.Internal)
		_, _, err = things.List(t.Context(), db, "t", store.Filter{})
		is(t, err, fault.Internal)
	})
}

func TestWithin(t *testing.T) {
	both(t, func(t *testing.T, db *store.DB) {
		ctx := t.Context()
		boom := errors.New("boom")
		put := func(tx *store.DB, name string) {
			if _, err := things.Insert(ctx, tx, store.Object[thing]{Tenant: "t", Name: name}); err != nil {
				t.Error(err)
			}
		}
		if err := db.Within(ctx, func(tx *store.DB) error { put(tx, "undone"); return boom }); !errors.Is(err, boom) {
			t.Error(err)
		}
		func() {
			defer func() { _ = recover() }()
			_ = db.Within(ctx, func(tx *store.DB) error { put(tx, "panic"); panic("boom") })
		}()
		err := db.Within(ctx, func(tx *store.DB) error {
			put(tx, "outer")
			if _, err := things.ByName(ctx, tx, "t", "outer"); err != nil {
				t.Error("a transaction does not see its own:", err)
			}
			if _, err := things.ByName(ctx, db, "t", "outer"); err == nil {
				t.Error("seen outside before the commit")
			}
			if err := tx.Within(ctx, func(tx *store.DB) error { put(tx, "inner undone"); return boom }); !errors.Is(err, boom) {
				t.Error(err)
			}
			return tx.Within(ctx, func(tx *store.DB) error {
				put(tx, "inner")
				return tx.Within(ctx, func(tx *store.DB) error { put(tx, "innermost"); return nil })
			})
		})
		if err != nil {
			t.Error(err)
		}
		page, _, err := things.List(ctx, db, "t", store.Filter{ByName: true})
		if names(page) != "inner innermost outer" {
			t.Error(names(page), err)
		}
	})
}

// TestRaces: of many who change one version one wins, and who counts before inserting counts right.
func TestRaces(t *testing.T) {
	both(t, func(t *testing.T, db *store.DB) {
		ctx := t.Context()
		o := insert(t, db, store.Object[thing]{Tenant: "t", Name: "a"})
		won := race(20, func(i int) error {
			changed := o
			changed.Data.Number = i
			_, err := things.Update(ctx, db, changed)
			return err
		}, func(err error) { is(t, err, fault.Conflict) })
		if won != 1 {
			t.Errorf("%d changed version 1", won)
		}
		won = race(20, func(int) error {
			_, err := things.Insert(ctx, db, store.Object[thing]{Tenant: "t", Name: "same"})
			return err
		}, func(err error) { is(t, err, fault.Conflict) })
		if won != 1 {
			t.Errorf("%d have one name", won)
		}
		full := errors.New("full")
		won = race(12, func(int) error {
			return db.Within(ctx, func(tx *store.DB) error {
				n, err := things.Count(ctx, tx, "quota", store.Filter{})
				if err != nil {
					return err
				}
				if n >= 3 {
					return full
				}
				_, err = things.Insert(ctx, tx, store.Object[thing]{Tenant: "quota"})
				return err
			})
		}, func(err error) {
			if !errors.Is(err, full) {
				t.Error(err)
			}
		})
		if n, err := things.Count(ctx, db, "quota", store.Filter{}); won != 3 || n != 3 || err != nil {
			t.Errorf("%d inserted, %d counted, %v", won, n, err)
		}
	})
}

// race runs n at once and says how many had no error; the others' errors go to lost.
func race(n int, do func(i int) error, lost func(error)) int {
	var mu sync.Mutex
	var running sync.WaitGroup
	start := make(chan struct{})
	won := 0
	for i := range n {
		running.Go(func() {
			<-start
			err := do(i)
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				won++
			} else {
				lost(err)
			}
		})
	}
	close(start)
	running.Wait()
	return won
}

package store_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/store"
)

func TestOpenWrong(t *testing.T) {
	for _, c := range []struct {
		dsn  string
		kind fault.Kind
	}{
		{"", fault.Invalid}, {"mysql://x", fault.Invalid}, {"sqlite:", fault.Invalid}, {"postgres://:x:y", fault.Invalid},
		{"sqlite:/does/not/exist", fault.Unavailable}, {"postgres://postgres:hunter2@127.0.0.1:1/x?connect_timeout=2", fault.Unavailable},
	} {
		_, err := store.Open(t.Context(), c.dsn)
		is(t, err, c.kind)
		if err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Error("the password is shown:", err)
		}
	}
}

func TestFiles(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "od%64 d?#&")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "store.db")
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	db := openAt(t, "sqlite:"+path)
	insert(t, db, store.Object[thing]{Tenant: "t"})
	files, err := os.ReadDir(dir)
	if err != nil || len(files) != 4 {
		t.Error(files, err)
	}
	for _, f := range files {
		if info, err := f.Info(); err != nil || info.Mode().Perm() != 0o600 {
			t.Error(f.Name(), info.Mode(), err)
		}
	}
}

// TestClosed: every method says Unavailable, none panics or hangs.
func TestClosed(t *testing.T) {
	both(t, func(t *testing.T, db *store.DB) {
		if err := db.Ping(t.Context()); err != nil {
			t.Error(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		is(t, db.Ping(ctx), fault.Unavailable)
		_, err := things.Insert(ctx, db, store.Object[thing]{Tenant: "t"})
		is(t, err, fault.Unavailable)
		if err := db.Close(); err != nil {
			t.Error(err)
		}
		unavailable(t, db)
	})
}

func unavailable(t *testing.T, db *store.DB) {
	t.Helper()
	ctx := t.Context()
	_, errInsert := things.Insert(ctx, db, store.Object[thing]{Tenant: "t"})
	_, errGet := things.Get(ctx, db, "t", "x")
	_, _, errList := things.List(ctx, db, "t", store.Filter{})
	_, errUpdate := things.Update(ctx, db, store.Object[thing]{ID: "x", Tenant: "t"})
	_, errProof := db.Proof(ctx, "x", hash("x"), time.Now())
	_, errUse := db.UseProof(ctx, "x", hash("x"), time.Now())
	_, errEmit := db.Emit(ctx, store.Event{Tenant: "t"})
	_, errEvents := db.Events(ctx, "t", 0, 1)
	_, _, errIdempotent := db.BeginIdempotent(ctx, "o", "k", hash("x"), time.Now())
	_, errSearch := db.SearchAudit(ctx, store.AuditQuery{Tenant: "t"})
	errAdd := db.AddAudit(ctx, []store.AuditRow{{Seq: 1, Tenant: "t"}}, 1)
	errWithin := db.Within(ctx, func(*store.DB) error { return nil })
	for i, err := range []error{errInsert, errGet, errList, errUpdate, errProof, errUse, errEmit, errEvents, errIdempotent, errSearch, errAdd, errWithin, db.Ping(ctx), db.Sweep(ctx, time.Now())} {
		if fault.KindOf(err) != fault.Unavailable {
			t.Errorf("%d: %v (%v)", i, err, fault.KindOf(err))
		}
	}
}

func TestDamaged(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store.db")
	if err := os.WriteFile(path, []byte(strings.Repeat("this is no database ", 1000)), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := store.Open(t.Context(), "sqlite:"+path)
	is(t, err, fault.Unavailable)

	path = filepath.Join(t.TempDir(), "store.db")
	db, err := store.Open(t.Context(), "sqlite:"+path)
	if err != nil {
		t.Fatal(err)
	}
	for range 200 {
		insert(t, db, store.Object[thing]{Tenant: "t"})
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i := 4096; i < len(data); i++ { // all but the first page, which says what this is
		data[i] = byte(i * 7)
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	db, err = store.Open(t.Context(), "sqlite:"+path)
	if err == nil {
		_, _, err = things.List(t.Context(), db, "t", store.Filter{})
		defer db.Close()
	}
	is(t, err, fault.Unavailable)
	if !strings.Contains(fault.Public(err), "damaged") {
		t.Error(err)
	}
}

// TestLost: a server that went away is Unavailable, and used again when it is back.
func TestLost(t *testing.T) {
	dsn := address(t, "postgres")
	db := openAt(t, dsn)
	insert(t, db, store.Object[thing]{Tenant: "t"})
	err := db.Within(t.Context(), func(tx *store.DB) error {
		if _, err := things.Insert(t.Context(), tx, store.Object[thing]{Tenant: "t"}); err != nil {
			return err
		}
		administer(t, dsn, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()")
		_, err := things.Insert(t.Context(), tx, store.Object[thing]{Tenant: "t"})
		return err
	})
	is(t, err, fault.Unavailable)
	for range 5 {
		if _, err = things.Insert(t.Context(), db, store.Object[thing]{Tenant: "t", Name: "back"}); err == nil {
			break
		}
	}
	if n, counted := things.Count(t.Context(), db, "t", store.Filter{}); n != 2 || err != nil || counted != nil {
		t.Error(n, err, counted)
	}
}

// TestFirstSchema opens databases as the first version left them, with one of everything in them. The fixtures are never changed.
func TestFirstSchema(t *testing.T) {
	for _, dialect := range []string{"sqlite", "postgres"} {
		t.Run(dialect, func(t *testing.T) {
			dsn := address(t, dialect)
			script, err := os.ReadFile("testdata/0001_" + dialect + ".sql")
			if err != nil {
				t.Fatal(err)
			}
			administer(t, dsn, string(script))
			for range 2 { // the second time nothing is left to do
				db, err := store.Open(t.Context(), dsn)
				if err != nil {
					t.Fatal(err)
				}
				if o, err := things.ByName(t.Context(), db, "t", "kept"); err != nil || o.Data.Text != "from the first version" || o.Version != 7 {
					t.Error(o, err)
				}
				if p, err := db.Proof(t.Context(), "session", hash("kept"), time.Now()); err != nil || p.Subject != "ann" {
					t.Error(p, err)
				}
				if e, err := db.Events(t.Context(), "t", 0, 10); err != nil || len(e) != 1 {
					t.Error(e, err)
				}
				if _, found, err := db.BeginIdempotent(t.Context(), "ann", "kept", hash("r"), time.Now()); !found || err != nil {
					t.Error(found, err)
				}
				if rows, err := db.SearchAudit(t.Context(), store.AuditQuery{Tenant: "t"}); err != nil || len(rows) != 1 {
					t.Error(rows, err)
				}
				if err := db.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

func TestNewerSchema(t *testing.T) {
	for _, dialect := range []string{"sqlite", "postgres"} {
		t.Run(dialect, func(t *testing.T) {
			dsn := address(t, dialect)
			if db, err := store.Open(t.Context(), dsn); err != nil || db.Close() != nil {
				t.Fatal(err)
			}
			administer(t, dsn, "INSERT INTO schema_version (version_id, is_applied) VALUES (9999, true)")
			_, err := store.Open(t.Context(), dsn)
			is(t, err, fault.Unsupported)
		})
	}
}

// TestOpenTogether: replicas that start at once bring one schema up to date once.
func TestOpenTogether(t *testing.T) {
	for _, dialect := range []string{"sqlite", "postgres"} {
		t.Run(dialect, func(t *testing.T) {
			dsn := address(t, dialect)
			var running sync.WaitGroup
			for range 4 {
				running.Go(func() {
					db, err := store.Open(t.Context(), dsn)
					if err != nil {
						t.Error(err)
						return
					}
					if err := db.Close(); err != nil {
						t.Error(err)
					}
				})
			}
			running.Wait()
		})
	}
}

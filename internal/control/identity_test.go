package control

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/store"
)

// TestStoreIdentity: a service does not begin with a store that is not the one its state directory was used with.
func TestStoreIdentity(t *testing.T) {
	open := func() *store.DB {
		db, err := store.Open(t.Context(), "sqlite:"+filepath.Join(t.TempDir(), "store.db"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = db.Close() })
		return db
	}
	state := t.TempDir()
	file := filepath.Join(state, "server", "store-id")
	begin := func(db *store.DB) error {
		_, err := New(Options{DB: db, State: state})
		return err
	}
	first, another, empty := open(), open(), open()
	done(t, begin(first)) // both new
	done(t, begin(first)) // both known
	before := must[[]byte](t)(os.ReadFile(file))
	done(t, begin(another)) // a new store, and a state directory that holds nothing yet
	if now := must[[]byte](t)(os.ReadFile(file)); string(now) == string(before) {
		t.Error("two stores have one identity")
	}
	says(t, begin(first), fault.Conflict, file)
	done(t, begin(another))

	for _, kept := range []string{"workspaces/tenant/workspace", "runs/run"} {
		done(t, os.MkdirAll(filepath.Join(state, kept), 0o700))
		says(t, begin(empty), fault.Conflict, "remove "+file)
		done(t, begin(another))
		done(t, os.RemoveAll(filepath.Join(state, filepath.Dir(kept))))
	}
	done(t, os.MkdirAll(filepath.Join(state, "runs", "run"), 0o700))
	done(t, os.Remove(file)) // as the hint says
	done(t, begin(empty))
	done(t, begin(empty))
	says(t, begin(another), fault.Conflict, "store")
}

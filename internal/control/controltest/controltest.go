// Package controltest (CONTROL) is the service over a real store and audit log, as the tests of what stands before it meet it.
package controltest

import (
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/internal/audit"
	"github.com/cofferdam/cofferdam/internal/auth"
	"github.com/cofferdam/cofferdam/internal/auth/limit"
	"github.com/cofferdam/cofferdam/internal/auth/password"
	"github.com/cofferdam/cofferdam/internal/control"
	"github.com/cofferdam/cofferdam/internal/seal"
	"github.com/cofferdam/cofferdam/internal/store"
)

// New returns a service that nobody has set up, in a directory of its own. Its passwords are quick to hash, and so to guess. It makes no sandboxes.
func New(t testing.TB, base string, log *slog.Logger) *control.Service {
	t.Helper()
	dir := t.TempDir()
	db, err := store.Open(t.Context(), "sqlite:"+filepath.Join(dir, "store.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	records, err := audit.Open(filepath.Join(dir, "audit"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = records.Close() })
	vault := seal.OpenVault(filepath.Join(dir, "seal"), func(string) string { return "" })
	if _, err := vault.Init(t.Context(), seal.Source{}); err != nil {
		t.Fatal(err)
	}
	quick := password.NewHasher(password.Parameters{Memory: 64, Time: 1, Threads: 1}, 0, time.Minute)
	people, err := auth.New(auth.Options{DB: db, BaseURL: base, Limiter: limit.NewMemory(time.Now, 0), Sealer: vault, Scopes: control.Scopes(), Hasher: quick})
	if err != nil {
		t.Fatal(err)
	}
	service, err := control.New(control.Options{DB: db, Auth: people, Audit: records, State: dir, Log: log, BaseURL: base, Version: "test"})
	if err != nil {
		t.Fatal(err)
	}
	return service
}

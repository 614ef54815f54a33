package auth

import (
	"database/sql"
	"strings"
	"testing"

	_ "github.com/jackc/pgx/v5/stdlib" // the driver "pgx"

	"github.com/cofferdam/cofferdam/internal/store"
	"github.com/cofferdam/cofferdam/internal/testenv"
)

// TestPostgres repeats what depends on how a database keeps two changes apart: SQLite has one writer, PostgreSQL has many.
func TestPostgres(t *testing.T) {
	testenv.Need(t, "postgres")
	dsn, stop, err := testenv.StartPostgres()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
	admin, err := sql.Open("pgx", dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = admin.Close() })
	for name, test := range map[string]func(*testing.T, ...func(*Options)){
		"setup": testSetup, "setup race": testSetupRace, "people": testPeople, "last administrator": testLastAdministrator,
		"reset": testReset, "reset race": testResetRace, "invitation": testInvitation, "change password": testChangePassword, "sessions end": testSessionsEnd,
		"token": testToken, "code": testTOTP, "recovery": testRecovery, "factor races": testFactorRaces, "passkey": testPasskey, "passkey race": testPasskeyRace,
	} {
		t.Run(name, func(t *testing.T) {
			database := "test_" + store.NewID()
			if _, err := admin.ExecContext(t.Context(), "CREATE DATABASE "+database); err != nil {
				t.Fatal(err)
			}
			db := openStore(t, strings.Replace(dsn, "/postgres?", "/"+database+"?", 1))
			test(t, func(o *Options) { o.DB = db })
		})
	}
}

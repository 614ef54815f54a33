package store_test

import (
	"context"
	"database/sql"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	_ "github.com/jackc/pgx/v5/stdlib" // the driver "pgx"

	"github.com/cofferdam/cofferdam/internal/store"
	"github.com/cofferdam/cofferdam/internal/testenv"
)

// postgres is the one server of this test process, started by the first test that wants it.
type postgresOnce struct {
	once sync.Once
	dsn  string
	stop func() error
	err  error
}

var postgres = new(postgresOnce)

func TestMain(m *testing.M) {
	if os.Getenv(victimVariable) != "" {
		os.Exit(victim(os.Getenv(victimVariable)))
	}
	code := m.Run()
	if postgres.stop != nil {
		if err := postgres.stop(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// address makes an empty database and returns its address.
func address(t testing.TB, dialect string) string {
	t.Helper()
	if dialect == "sqlite" {
		return "sqlite:" + filepath.Join(t.TempDir(), "store.db")
	}
	testenv.Need(t, "postgres")
	postgres.once.Do(func() { postgres.dsn, postgres.stop, postgres.err = testenv.StartPostgres() })
	if postgres.err != nil {
		t.Fatal(postgres.err)
	}
	name := "test_" + store.NewID()
	administer(t, postgres.dsn, "CREATE DATABASE "+name)
	t.Cleanup(func() { administer(t, postgres.dsn, "DROP DATABASE "+name+" WITH (FORCE)") })
	return strings.Replace(postgres.dsn, "/postgres?", "/"+name+"?", 1)
}

// administer runs statements without the store.
func administer(t testing.TB, dsn string, statements ...string) {
	t.Helper()
	db := raw(t, dsn)
	defer db.Close()
	for _, s := range statements {
		if _, err := db.ExecContext(context.Background(), s); err != nil {
			t.Fatal(s, err)
		}
	}
}

func raw(t testing.TB, dsn string) *sql.DB {
	t.Helper()
	driver, name := "pgx", dsn
	if path, ok := strings.CutPrefix(dsn, "sqlite:"); ok {
		driver, name = "sqlite", "file:"+(&url.URL{Path: path}).EscapedPath()+"?_busy_timeout=5000"
	}
	db, err := sql.Open(driver, name)
	if err != nil {
		t.Fatal(err)
	}
	return db
}

// openAt opens a store until the test ends.
func openAt(t testing.TB, dsn string) *store.DB {
	t.Helper()
	db, err := store.Open(context.Background(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}

// each runs a test on both databases.
func each(t *testing.T, test func(t *testing.T, open func(t *testing.T) *store.DB)) {
	for _, dialect := range []string{"sqlite", "postgres"} {
		t.Run(dialect, func(t *testing.T) {
			test(t, func(t *testing.T) *store.DB { return openAt(t, address(t, dialect)) })
		})
	}
}

// both is each for a test that needs one empty store.
func both(t *testing.T, test func(t *testing.T, db *store.DB)) {
	each(t, func(t *testing.T, open func(t *testing.T) *store.DB) { test(t, open(t)) })
}

// size is how many bytes a store takes.
func size(t testing.TB, db *store.DB) int64 {
	t.Helper()
	n, err := db.SizeOnDisk(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return n
}

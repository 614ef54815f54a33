// Package store (CONTROL) keeps what the service must remember, in SQLite or PostgreSQL. All SQL is here.
//
// Most things are objects of a kind: a JSON document with a name that is unique in its tenant and kind, a parent, a state and a version that guards
// against lost changes. What is looked up by a secret's hash, counted, or read by the million has a table of its own.
//
// The type of an object's data may change like this: a member may be added, if its zero value is right for what was stored before. A member that is
// removed or renamed, or whose meaning changes, needs a migration that rewrites the stored documents: reading is strict, so that an older program
// cannot quietly drop what a newer one has written.
package store

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/base32"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/cofferdam/cofferdam/internal/fault"
)

// DB is an open store. It is safe for concurrent use. Errors are of package fault: NotFound, Conflict (a name that is taken, a version that is old),
// Invalid (a value that cannot be stored, a wrong cursor), Unavailable (the database does not answer).
type DB struct {
	*database
	tx *transaction // nil outside of Within
}

// database is what a DB and its transactions have in common.
type database struct {
	dialect dialect
	writer  *sql.DB
	reader  *sql.DB
	gate    chan struct{} // SQLite: who writes holds its one place
	lock    string        // SQLite: a file to lock while the schema changes
	hub     hub

	stop    context.CancelFunc
	running sync.WaitGroup
}

// Open opens a store and brings its schema up to date: "sqlite:PATH" or "postgres://…".
func Open(ctx context.Context, dsn string) (*DB, error) {
	d, listen, err := connect(ctx, dsn)
	if err != nil {
		return nil, err
	}
	db := &DB{database: d}
	if err := db.migrate(ctx); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	d.stop = stop
	d.running.Go(func() { db.poll(background) })
	if listen != nil {
		d.running.Go(func() { d.hub.listen(background, listen) })
	}
	return db, nil
}

func connect(ctx context.Context, dsn string) (*database, listener, error) {
	if path, ok := strings.CutPrefix(dsn, "sqlite:"); ok {
		d, err := openSQLite(path)
		return d, nil, err
	}
	if strings.HasPrefix(dsn, "postgres://") || strings.HasPrefix(dsn, "postgresql://") {
		return openPostgres(ctx, dsn)
	}
	scheme, _, _ := strings.Cut(dsn, ":")
	return nil, nil, fault.New(fault.Invalid, "unknown kind of database %.20q", scheme).
		WithHint("write sqlite:PATH or postgres://USER@HOST/NAME")
}

// Close waits for what is under way.
func (db *DB) Close() error {
	if db.stop != nil {
		db.stop()
	}
	db.running.Wait()
	db.hub.close()
	return errors.Join(db.reader.Close(), db.writer.Close())
}

// Dialect is "sqlite" or "postgres".
func (db *DB) Dialect() string { return db.dialect.name }

// Ping asks whether the database answers.
func (db *DB) Ping(ctx context.Context) error {
	var one int
	return db.fail(db.reading().QueryRowContext(ctx, "SELECT 1").Scan(&one), "ask the database for a sign of life")
}

// NewID returns a fresh identifier: 16 characters, 80 bits that nobody can guess.
func NewID() string {
	var b [10]byte
	rand.Read(b[:]) // never fails
	return strings.ToLower(base32.StdEncoding.EncodeToString(b[:]))
}

// micros is how a time is stored. Its zero value is 0.
func micros(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMicro()
}

// instant is the reverse of micros.
func instant(micros int64) time.Time {
	if micros == 0 {
		return time.Time{}
	}
	return time.UnixMicro(micros).UTC()
}

// quiet is for libraries that want to log: what matters comes back as an error.
func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// SizeOnDisk is how many bytes the database takes.
func (db *DB) SizeOnDisk(ctx context.Context) (int64, error) {
	statement := "SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()"
	if db.dialect.postgres {
		statement = "SELECT pg_database_size(current_database())"
	}
	var n int64
	err := db.row(ctx, "read the size of the database", statement, nil, &n)
	return n, err
}

package store

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/pressly/goose/v3"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/cofferdam/cofferdam/internal/fault"
)

// dialect is where the two databases differ in words.
type dialect struct {
	name     string
	postgres bool
	goose    goose.Dialect
	instr    string // of a text and a part: where the part begins, 0 if nowhere
	ending   string // a format of a column's last characters, given their number
}

func sqliteDialect() dialect {
	return dialect{name: "sqlite", goose: goose.DialectSQLite3, instr: "instr", ending: "substr(%s, -%d)"}
}

func postgresDialect() dialect {
	return dialect{name: "postgres", postgres: true, goose: goose.DialectPostgres, instr: "strpos", ending: "right(%s, %d)"}
}

// bind writes ? as $1, $2, … where that is how parameters are written. No statement here has a question mark in a literal.
func (d dialect) bind(statement string) string {
	if !d.postgres {
		return statement
	}
	var out strings.Builder
	for n := 1; ; n++ {
		before, after, found := strings.Cut(statement, "?")
		out.WriteString(before)
		if !found {
			return out.String()
		}
		out.WriteString("$" + strconv.Itoa(n))
		statement = after
	}
}

// marks is n parameters: ?, ?, ?
func marks(n int) string { return strings.TrimSuffix(strings.Repeat("?, ", n), ", ") }

// among is the condition that a column has one of some numbers. PostgreSQL takes them as one parameter, so that the statement is the same for any number of them.
func among[N ~int64](d dialect, column string, numbers []N) (string, []any) {
	if d.postgres {
		plain := make([]int64, len(numbers))
		for i, n := range numbers {
			plain[i] = int64(n)
		}
		return column + " = ANY(?)", []any{plain}
	}
	args := make([]any, len(numbers))
	for i, n := range numbers {
		args[i] = int64(n)
	}
	return column + " IN (" + marks(len(args)) + ")", args
}

// longest bounds what goes into an index. PostgreSQL takes 2,704 bytes for all columns of one together.
const longest = 512

// storable says whether texts can be stored by either database, and be the same when they are read.
func storable(what string, texts ...string) error {
	for _, s := range texts {
		if len(s) > longest {
			return fault.New(fault.Invalid, "%s is longer than %d bytes: %.40q…", what, longest, s)
		}
		if !clean(s) {
			return fault.New(fault.Invalid, "%s has characters that cannot be stored: %.80q", what, s)
		}
	}
	return nil
}

func clean(s string) bool { return utf8.ValidString(s) && strings.IndexByte(s, 0) < 0 }

// cleaned is s with what cannot be stored replaced, for what a sandbox may have written.
func cleaned(s string) string {
	if len(s) > longest {
		s = s[:longest]
	}
	if clean(s) {
		return s
	}
	return strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
}

// failure is what an error of a driver means.
type failure uint8

const (
	unavailable failure = iota
	mistaken            // the statement is wrong: our fault
	duplicate           // a unique index says no
	collided            // with another transaction; trying again helps
	damaged
)

func classify(err error) failure {
	if e, ok := errors.AsType[*pgconn.PgError](err); ok {
		return classifyPostgres(e.Code)
	}
	if e, ok := errors.AsType[*sqlite.Error](err); ok {
		return classifySQLite(e.Code())
	}
	return unavailable
}

func classifyPostgres(code string) failure {
	switch {
	case code == "23505":
		return duplicate
	case code == "40001", code == "40P01", code == "25P02": // serialization, deadlock, and what follows a failed statement
		return collided
	case strings.HasPrefix(code, "XX"), strings.HasPrefix(code, "58"):
		return damaged
	case strings.HasPrefix(code, "22"), strings.HasPrefix(code, "23"), strings.HasPrefix(code, "42"), strings.HasPrefix(code, "25"), strings.HasPrefix(code, "0A"):
		return mistaken
	}
	return unavailable
}

func classifySQLite(code int) failure {
	switch code {
	case sqlite3.SQLITE_CONSTRAINT_UNIQUE, sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY, sqlite3.SQLITE_CONSTRAINT_ROWID:
		return duplicate
	}
	switch code & 0xff {
	case sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_MISMATCH, sqlite3.SQLITE_MISUSE, sqlite3.SQLITE_RANGE, sqlite3.SQLITE_TOOBIG:
		return mistaken
	case sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB:
		return damaged
	}
	return unavailable
}

// fail gives an error of a driver its kind, and notes in the transaction whether trying again would help.
func (db *DB) fail(err error, doing string) error {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*fault.Error](err); ok {
		return err
	}
	// The driver of PostgreSQL shows a wrapped error; a lost connection in a transaction makes it worth trying as a whole, which is left to the caller.
	what := classify(err)
	if what == collided && db.tx != nil {
		db.tx.collided.Store(true)
	}
	cause := fmt.Errorf("%s: %w", doing, err)
	switch what {
	case mistaken:
		return fault.New(fault.Internal, "internal error").Because(cause)
	case duplicate:
		return fault.New(fault.Conflict, "there is one already").Because(cause)
	case damaged:
		return fault.New(fault.Unavailable, "the database is damaged").Because(cause).
			WithHint("restore it from a backup; its own messages are in the service's log")
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, driver.ErrBadConn) {
		return fault.New(fault.Unavailable, "the database did not answer in time").Because(cause)
	}
	return fault.New(fault.Unavailable, "the database does not answer").Because(cause)
}

package store

import (
	"context"
	"database/sql"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/cofferdam/cofferdam/internal/fault"
)

// transaction is one attempt of Within.
type transaction struct {
	sql      *sql.Tx
	depth    int
	collided atomic.Bool // another transaction was in the way: all of it should be tried again
	emitted  atomic.Bool // whoever watches must be told after the commit
}

// connection is a pool or a transaction.
type connection interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

const (
	attempts = 25               // of a transaction that collides
	patience = 30 * time.Second // for the turn to write
)

// Within runs do in one transaction: all that it does through the DB it is given happens, or, after an error or panic, nothing. Within it, another
// Within joins the transaction: its error undoes only what the inner one did, unless the outer passes it on. Transactions are serializable: do may
// count and then insert. SQLite has one writer: do must not use the outer DB, nor wait for anything but the database. On PostgreSQL do is run again
// where it collided with another; so it must have no effect but on the DB it is given, and emit events last, since whoever emits waits for others that do.
// The DB it is given is for one goroutine at a time, and of no use afterwards.
func (db *DB) Within(ctx context.Context, do func(tx *DB) error) error {
	if db.tx != nil {
		return db.nested(ctx, do)
	}
	return db.again(ctx, func() (bool, error) { return db.attempt(ctx, do) })
}

// again repeats what collided, after a pause that grows and varies.
func (db *DB) again(ctx context.Context, attempt func() (collided bool, err error)) error {
	for n := 1; ; n++ {
		collided, err := attempt()
		if !collided || n == attempts {
			return err
		}
		pause := time.Duration(1+rand.IntN(5<<min(n, 6))) * time.Millisecond
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return db.fail(ctx.Err(), "wait to try again")
		}
	}
}

func (db *DB) attempt(ctx context.Context, do func(tx *DB) error) (again bool, err error) {
	leave, err := db.enter(ctx)
	if err != nil {
		return false, err
	}
	defer leave()
	begun, err := db.writer.BeginTx(ctx, nil) // PostgreSQL: serializable is the default of these connections
	if err != nil {
		return false, db.fail(err, "begin a transaction")
	}
	tx := &transaction{sql: begun}
	defer func() { _ = begun.Rollback() }() // also while a panic passes; after a commit it does nothing
	inside := &DB{database: db.database, tx: tx}
	if err = do(inside); err == nil {
		err = inside.fail(begun.Commit(), "commit")
	}
	if tx.collided.Load() {
		if err == nil {
			err = fault.New(fault.Unavailable, "another transaction was in the way")
		}
		return true, err
	}
	if err == nil && tx.emitted.Load() {
		db.hub.tell()
	}
	return false, err
}

// nested runs do in a savepoint.
func (db *DB) nested(ctx context.Context, do func(tx *DB) error) error {
	inner := &DB{database: db.database, tx: db.tx}
	db.tx.depth++
	defer func() { db.tx.depth-- }()
	name := fmt.Sprintf("s%d", db.tx.depth)
	if _, err := db.tx.sql.ExecContext(ctx, "SAVEPOINT "+name); err != nil {
		return db.fail(err, "begin an inner transaction")
	}
	if err := do(inner); err != nil {
		// What cannot be undone by itself ends the whole: the statement after it fails.
		if _, undo := db.tx.sql.ExecContext(context.WithoutCancel(ctx), "ROLLBACK TO SAVEPOINT "+name); undo != nil {
			return db.fail(undo, "undo an inner transaction")
		}
		return err
	}
	_, err := db.tx.sql.ExecContext(ctx, "RELEASE SAVEPOINT "+name)
	return db.fail(err, "end an inner transaction")
}

// enter waits for the turn to write. A do that uses the outer DB would wait for itself: that ends with an error, not with a service that hangs.
func (db *DB) enter(ctx context.Context) (leave func(), err error) {
	if db.gate == nil {
		return func() {}, nil
	}
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case db.gate <- struct{}{}:
		return func() { <-db.gate }, nil
	case <-ctx.Done():
		return nil, db.fail(ctx.Err(), "wait for the turn to write")
	case <-timer.C:
		return nil, fault.New(fault.Unavailable, "the database is busy").
			Because(fmt.Errorf("no turn to write within %v", patience)).WithHint("try again")
	}
}

// write runs one statement that changes something, by itself or in the transaction, and says how many rows it changed.
func (db *DB) write(ctx context.Context, doing, statement string, args ...any) (int64, error) {
	var changed int64
	run := func(c connection) error {
		result, err := c.ExecContext(ctx, db.dialect.bind(statement), args...)
		if err != nil {
			return err
		}
		changed, err = result.RowsAffected()
		return err
	}
	err := db.alone(ctx, doing, run)
	return changed, err
}

// alone runs one statement on the writing side, where it collides again.
func (db *DB) alone(ctx context.Context, doing string, run func(c connection) error) error {
	if db.tx != nil {
		return db.fail(run(db.tx.sql), doing)
	}
	return db.again(ctx, func() (bool, error) {
		leave, err := db.enter(ctx)
		if err != nil {
			return false, err
		}
		defer leave()
		err = run(db.writer)
		return err != nil && classify(err) == collided, db.fail(err, doing)
	})
}

// reading is where to read from.
func (db *DB) reading() connection {
	if db.tx != nil {
		return db.tx.sql
	}
	return db.reader
}

// query runs a statement that reads, and each for every row.
func (db *DB) query(ctx context.Context, doing, statement string, args []any, each func(rows *sql.Rows) error) error {
	return db.fail(queryOn(ctx, db.reading(), db.dialect.bind(statement), args, each), doing)
}

func queryOn(ctx context.Context, c connection, statement string, args []any, each func(rows *sql.Rows) error) (err error) {
	rows, err := c.QueryContext(ctx, statement, args...)
	if err != nil {
		return err
	}
	defer func() {
		if closing := rows.Close(); err == nil {
			err = closing
		}
	}()
	for rows.Next() {
		if err := each(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}

// row runs a statement that reads one row. Absent is sql.ErrNoRows, as it is.
func (db *DB) row(ctx context.Context, doing, statement string, args []any, into ...any) error {
	err := db.reading().QueryRowContext(ctx, db.dialect.bind(statement), args...).Scan(into...)
	if err == sql.ErrNoRows {
		return err
	}
	return db.fail(err, doing)
}

// snapshot runs do, which only reads, on one state of the database.
func (db *DB) snapshot(ctx context.Context, do func(tx *DB) error) error {
	if db.tx != nil {
		return do(db)
	}
	options := &sql.TxOptions{}
	if db.dialect.postgres {
		options = &sql.TxOptions{Isolation: sql.LevelRepeatableRead, ReadOnly: true}
	}
	begun, err := db.reader.BeginTx(ctx, options)
	if err != nil {
		return db.fail(err, "begin to read")
	}
	defer func() { _ = begun.Rollback() }() // nothing was written
	return do(&DB{database: db.database, tx: &transaction{sql: begun}})
}

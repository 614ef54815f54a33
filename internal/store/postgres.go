package store

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/cofferdam/cofferdam/internal/fault"
)

// channel is what processes are told of events on.
const channel = "cofferdam_events"

// listener opens the connection on which a process is told.
type listener func(ctx context.Context) (*pgx.Conn, error)

// openPostgres opens a pool that writes in serializable transactions and one that reads.
func openPostgres(ctx context.Context, dsn string) (*database, listener, error) {
	config, err := pgx.ParseConfig(dsn) // its error leaves out the password
	if err != nil {
		return nil, nil, fault.New(fault.Invalid, "the database's address cannot be read").Because(err).WithHint("write postgres://USER@HOST/NAME")
	}
	if config.ConnectTimeout == 0 {
		config.ConnectTimeout = 10 * time.Second
	}
	config.RuntimeParams["application_name"] = "cofferdam"
	config.RuntimeParams["lock_timeout"] = "30s"
	config.RuntimeParams["idle_in_transaction_session_timeout"] = "60s"

	writing := config.Copy()
	writing.RuntimeParams["default_transaction_isolation"] = "serializable"
	reading := config.Copy()
	reading.RuntimeParams["default_transaction_read_only"] = "on"
	d := &database{dialect: postgresDialect(), writer: stdlib.OpenDB(*writing), reader: stdlib.OpenDB(*reading)}
	for _, pool := range []interface {
		SetMaxOpenConns(int)
		SetMaxIdleConns(int)
		SetConnMaxIdleTime(time.Duration)
	}{d.writer, d.reader} {
		pool.SetMaxOpenConns(16)
		pool.SetMaxIdleConns(8)
		pool.SetConnMaxIdleTime(5 * time.Minute)
	}
	if err := d.writer.PingContext(ctx); err != nil {
		_ = errors.Join(d.writer.Close(), d.reader.Close())   // nothing was opened
		why := strings.Join(strings.Fields(err.Error()), " ") // it has a line for each address that was tried; the password is in none
		return nil, nil, fault.New(fault.Unavailable, "the database does not answer").Because(errors.New(why)).
			WithHint("start it, or correct its address: store in the configuration, or --store")
	}
	listen := func(ctx context.Context) (*pgx.Conn, error) { return pgx.ConnectConfig(ctx, config.Copy()) }
	return d, listen, nil
}

// listen tells who watches of what other processes have emitted, until ctx ends. While the connection is lost polling takes its place.
func (h *hub) listen(ctx context.Context, open listener) {
	for ctx.Err() == nil {
		if conn, err := open(ctx); err == nil {
			h.follow(ctx, conn)
			closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
			_ = conn.Close(closing) // it may be lost already
			cancel()
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

// follow returns when the connection is lost.
func (h *hub) follow(ctx context.Context, conn *pgx.Conn) {
	if _, err := conn.Exec(ctx, "LISTEN "+channel); err != nil {
		return
	}
	for {
		h.tell() // also once at the start: something may have been missed
		if _, err := conn.WaitForNotification(ctx); err != nil {
			return
		}
	}
}

package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"time"

	"github.com/cofferdam/cofferdam/internal/fault"
)

// Idempotent is the answer that a request with an idempotency key got.
type Idempotent struct {
	Request [32]byte // hash of method, path and body
	Status  int      // 0: the first request is under way
	Header  json.RawMessage
	Body    []byte
}

// BeginIdempotent notes that a request with a key is under way. If there is one already it is returned, with found. One that has been under way for ten
// minutes has died with its process, and is begun anew.
func (db *DB) BeginIdempotent(ctx context.Context, owner, key string, request [32]byte, now time.Time) (i Idempotent, found bool, err error) {
	if err := storable("an idempotency key", owner, key); err != nil {
		return i, false, err
	}
	// What was there may be gone when it is looked at: forgotten so that it can be tried again.
	for range attempts {
		n, err := db.write(ctx, "begin an idempotent request", `INSERT INTO idempotent (owner, key, request, status, header, body, created) VALUES (?, ?, ?, 0, 'null', ?, ?)
			ON CONFLICT (owner, key) DO UPDATE SET request = excluded.request, created = excluded.created
			WHERE idempotent.status = 0 AND idempotent.created <= ?`,
			owner, key, request[:], []byte{}, micros(now), micros(now.Add(-underWayAtLongest)))
		if err != nil || n == 1 {
			return Idempotent{}, false, err
		}
		i, err := db.idempotent(ctx, owner, key)
		if !errors.Is(err, sql.ErrNoRows) {
			return i, err == nil, err
		}
	}
	return i, false, fault.New(fault.Unavailable, "requests with this idempotency key come and go").WithHint("try again")
}

func (db *DB) idempotent(ctx context.Context, owner, key string) (Idempotent, error) {
	var i Idempotent
	var request, header []byte
	err := db.row(ctx, "read an idempotent request", "SELECT request, status, header, body FROM idempotent WHERE owner = ? AND key = ?", []any{owner, key},
		&request, &i.Status, &header, &i.Body)
	copy(i.Request[:], request)
	i.Header = header
	return i, err
}

// EndIdempotent stores the answer to the request that began it, or, where status is 0, forgets it so that it can be tried again.
func (db *DB) EndIdempotent(ctx context.Context, owner, key string, i Idempotent) error {
	if i.Status == 0 {
		_, err := db.write(ctx, "forget an idempotent request", "DELETE FROM idempotent WHERE owner = ? AND key = ? AND status = 0 AND request = ?", owner, key, i.Request[:])
		return err
	}
	header := "null"
	if len(i.Header) > 0 {
		header = string(i.Header)
	}
	body := i.Body
	if body == nil {
		body = []byte{}
	}
	n, err := db.write(ctx, "store the answer of an idempotent request", "UPDATE idempotent SET status = ?, header = ?, body = ? WHERE owner = ? AND key = ? AND status = 0 AND request = ?",
		i.Status, header, body, owner, key, i.Request[:])
	if err == nil && n == 0 {
		err = fault.New(fault.Conflict, "this request is no longer under way")
	}
	return err
}

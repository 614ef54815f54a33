package store

import (
	"cmp"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"time"

	"github.com/cofferdam/cofferdam/internal/fault"
)

// Proof is what somebody who shows a secret has thereby proved. Only the secret's SHA-256 is stored.
type Proof struct {
	Hash    [32]byte
	Kind    string // session, token, reset, invitation, setup, challenge
	ID      string // public, for lists
	Tenant  string
	Subject string // of a user, whose it is
	Data    json.RawMessage
	Created time.Time
	Seen    time.Time // last use
	Expires time.Time // must be set: nothing is valid for ever by being forgotten
}

// Never is an Expires for what does not expire.
func Never() time.Time { return time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC) }

const proofColumns = "hash, kind, id, tenant, subject, data, created, seen, expires"

// PutProof stores a proof. An empty ID is filled in; it is only of use to who lists them.
func (db *DB) PutProof(ctx context.Context, p Proof) error {
	if p.Expires.IsZero() || p.Hash == [32]byte{} {
		return fault.New(fault.Internal, "internal error").Because(errors.New("a proof without an end or a hash"))
	}
	if err := storable("a proof", p.Kind, p.ID, p.Tenant, p.Subject); err != nil {
		return err
	}
	if p.ID == "" {
		p.ID = NewID()
	}
	data := "null"
	if len(p.Data) > 0 {
		if !json.Valid(p.Data) {
			return fault.New(fault.Internal, "internal error").Because(errors.New("a proof's data is no JSON"))
		}
		data = string(p.Data)
	}
	n, err := db.write(ctx, "store a proof", "INSERT INTO proofs ("+proofColumns+") VALUES ("+marks(9)+") ON CONFLICT DO NOTHING",
		p.Hash[:], p.Kind, p.ID, p.Tenant, p.Subject, data, micros(p.Created), micros(p.Seen), micros(p.Expires))
	if err == nil && n == 0 {
		err = fault.New(fault.Conflict, "this %s is there already", p.Kind)
	}
	return err
}

// Proof returns an unexpired proof of a kind by the hash of its secret; NotFound otherwise, expired or not there alike.
func (db *DB) Proof(ctx context.Context, kind string, hash [32]byte, now time.Time) (Proof, error) {
	return proofOr(kind, func(into ...any) error {
		return db.row(ctx, "read a proof", "SELECT "+proofColumns+" FROM proofs WHERE hash = ? AND kind = ? AND expires > ?", []any{hash[:], kind, micros(now)}, into...)
	})
}

// UseProof is Proof, and removes it in the same step: of several callers one gets it.
func (db *DB) UseProof(ctx context.Context, kind string, hash [32]byte, now time.Time) (Proof, error) {
	return proofOr(kind, func(into ...any) error {
		none := false
		err := db.alone(ctx, "use a proof", func(c connection) error {
			err := c.QueryRowContext(ctx, db.dialect.bind("DELETE FROM proofs WHERE hash = ? AND kind = ? AND expires > ? RETURNING "+proofColumns), hash[:], kind, micros(now)).Scan(into...)
			none = errors.Is(err, sql.ErrNoRows)
			if none {
				return nil
			}
			return err
		})
		if err == nil && none {
			return sql.ErrNoRows
		}
		return err
	})
}

func proofOr(kind string, row func(into ...any) error) (Proof, error) {
	p, err := scanProof(row)
	if errors.Is(err, sql.ErrNoRows) {
		return Proof{}, fault.New(fault.NotFound, "no such %s, or it has expired", cmp.Or(kind, "proof"))
	}
	return p, err
}

func scanProof(row func(into ...any) error) (Proof, error) {
	var p Proof
	var hash, data []byte
	var created, seen, expires int64
	if err := row(&hash, &p.Kind, &p.ID, &p.Tenant, &p.Subject, &data, &created, &seen, &expires); err != nil {
		return Proof{}, err
	}
	copy(p.Hash[:], hash)
	p.Data, p.Created, p.Seen, p.Expires = data, instant(created), instant(seen), instant(expires)
	return p, nil
}

// TouchProof notes a use and, if expires is not zero, a new end. NotFound: there is none, as after a sign-out; it does not come back.
func (db *DB) TouchProof(ctx context.Context, hash [32]byte, seen, expires time.Time) error {
	n, err := db.write(ctx, "note the use of a proof", "UPDATE proofs SET seen = ?, expires = COALESCE(?, expires) WHERE hash = ?",
		micros(seen), sql.NullInt64{Int64: micros(expires), Valid: !expires.IsZero()}, hash[:])
	if err == nil && n == 0 {
		err = fault.New(fault.NotFound, "no such proof, or it has expired")
	}
	return err
}

// Proofs lists the unexpired proofs of a kind that a subject has, newest first.
func (db *DB) Proofs(ctx context.Context, kind, tenant, subject string, now time.Time) ([]Proof, error) {
	var all []Proof
	err := db.query(ctx, "list proofs", "SELECT "+proofColumns+" FROM proofs WHERE kind = ? AND tenant = ? AND subject = ? AND expires > ? ORDER BY created DESC, id",
		[]any{kind, tenant, subject, micros(now)}, func(rows *sql.Rows) error {
			p, err := scanProof(rows.Scan)
			all = append(all, p)
			return err
		})
	return all, err
}

// DropProof removes one proof of a subject by its public identifier.
func (db *DB) DropProof(ctx context.Context, kind, tenant, subject, id string) error {
	if storable("an identifier", kind, tenant, subject, id) != nil {
		return fault.New(fault.NotFound, "no such %s, or it has expired", kind)
	}
	n, err := db.write(ctx, "remove a proof", "DELETE FROM proofs WHERE kind = ? AND tenant = ? AND subject = ? AND id = ?", kind, tenant, subject, id)
	if err == nil && n == 0 {
		err = fault.New(fault.NotFound, "no such %s, or it has expired", kind)
	}
	return err
}

// DropProofs removes all proofs of a kind that a subject has, but keep, and says how many. Expired ones of anybody are swept up by Sweep.
func (db *DB) DropProofs(ctx context.Context, kind, tenant, subject string, keep [32]byte) (int, error) {
	n, err := db.write(ctx, "remove proofs", "DELETE FROM proofs WHERE kind = ? AND tenant = ? AND subject = ? AND hash <> ?", kind, tenant, subject, keep[:])
	return int(n), err
}

package store

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"time"

	"github.com/cofferdam/cofferdam/internal/fault"
)

// Object is one stored thing.
type Object[T any] struct {
	ID      string
	Tenant  string // "" for what belongs to none
	Name    string // unique in tenant and kind unless empty
	Parent  string // what it belongs to, by which lists can be narrowed
	State   string // likewise
	Version int64  // grows by one with each change
	Created time.Time
	Updated time.Time
	Data    T
}

// Collection is all objects of one kind. Make one with Of.
type Collection[T any] struct{ kind string }

// Of names a collection. Kinds: tenant, user, agent, policy, policy-version, sandbox, run, workspace, denial, approval, rule, upstream, profile, query, settings, passkey, ….
func Of[T any](kind string) Collection[T] { return Collection[T]{kind} }

// AnyTenant as a tenant means all of them, for what reads (all but ByName) only. It is for the service itself, never for what a person asked.
const AnyTenant = "*"

const objectColumns = "id, tenant, name, parent, state, version, created, updated, data"

// Insert stores a new object, with version 1. An empty ID is filled in with a fresh one, a zero Created with now. Conflict: the name or ID is taken.
func (c Collection[T]) Insert(ctx context.Context, db *DB, o Object[T]) (Object[T], error) {
	if o.ID == "" {
		o.ID = NewID()
	}
	if o.Created.IsZero() {
		o.Created = time.Now()
	}
	o.Created = o.Created.UTC().Truncate(time.Microsecond)
	o.Updated, o.Version = o.Created, 1
	data, err := c.encode(o)
	if err != nil {
		return Object[T]{}, err
	}
	// A statement that fails would end a transaction of PostgreSQL; this one does not fail.
	n, err := db.write(ctx, "insert a "+c.noun(),
		"INSERT INTO objects (kind, id, tenant, name, folded, parent, state, version, created, updated, data) VALUES ("+marks(11)+") ON CONFLICT DO NOTHING",
		c.kind, o.ID, o.Tenant, o.Name, fold(o.Name), o.Parent, o.State, o.Version, micros(o.Created), micros(o.Updated), data)
	if err == nil && n == 0 {
		err = c.taken(o.Name)
	}
	if err != nil {
		return Object[T]{}, err
	}
	return o, nil
}

// Get returns one object of a tenant by its identifier.
func (c Collection[T]) Get(ctx context.Context, db *DB, tenant, id string) (Object[T], error) {
	where, args := "kind = ? AND id = ?", []any{c.kind, id}
	if tenant != AnyTenant {
		where, args = where+" AND tenant = ?", append(args, tenant)
	}
	return c.one(ctx, db, where, args, id, tenant)
}

// ByName returns one object of a tenant by its name.
func (c Collection[T]) ByName(ctx context.Context, db *DB, tenant, name string) (Object[T], error) {
	if tenant == AnyTenant || name == "" {
		return Object[T]{}, c.absent()
	}
	return c.one(ctx, db, "kind = ? AND tenant = ? AND name = ? AND name <> ''", []any{c.kind, tenant, name}, tenant, name)
}

// one returns the object that a condition names. What no object can have is not asked for.
func (c Collection[T]) one(ctx context.Context, db *DB, where string, args []any, texts ...string) (Object[T], error) {
	if storable("an identifier", texts...) != nil {
		return Object[T]{}, c.absent()
	}
	o, err := c.scan(func(into ...any) error {
		return db.row(ctx, "read a "+c.noun(), "SELECT "+objectColumns+" FROM objects WHERE "+where, args, into...)
	})
	if errors.Is(err, sql.ErrNoRows) {
		return Object[T]{}, c.absent()
	}
	return o, err
}

// Update stores o in the place of its version before, and returns it with its new version. Conflict: somebody changed it meanwhile, or its new name is taken.
func (c Collection[T]) Update(ctx context.Context, db *DB, o Object[T]) (Object[T], error) {
	o.Updated = time.Now().UTC().Truncate(time.Microsecond)
	data, err := c.encode(o)
	if err != nil {
		return Object[T]{}, err
	}
	n, err := db.write(ctx, "change a "+c.noun(), `UPDATE objects SET name = ?, folded = ?, parent = ?, state = ?, version = version + 1, updated = ?, data = ?
		WHERE kind = ? AND id = ? AND tenant = ? AND version = ?
		AND (? = '' OR NOT EXISTS (SELECT 1 FROM objects AS other WHERE other.kind = ? AND other.tenant = ? AND other.name = ? AND other.name <> '' AND other.id <> ?))`,
		o.Name, fold(o.Name), o.Parent, o.State, micros(o.Updated), data,
		c.kind, o.ID, o.Tenant, o.Version,
		o.Name, c.kind, o.Tenant, o.Name, o.ID)
	if fault.KindOf(err) == fault.Conflict {
		return Object[T]{}, c.taken(o.Name)
	}
	if err != nil {
		return Object[T]{}, err
	}
	if n == 0 {
		return Object[T]{}, c.unchanged(ctx, db, o.Tenant, o.ID, o.Version, o.Name)
	}
	o.Version++
	return o, nil
}

// unchanged says why a change of one version met nothing.
func (c Collection[T]) unchanged(ctx context.Context, db *DB, tenant, id string, version int64, name string) error {
	var stored int64
	err := db.row(ctx, "read a "+c.noun(), "SELECT version FROM objects WHERE kind = ? AND id = ? AND tenant = ?", []any{c.kind, id, tenant}, &stored)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return c.absent()
	case err != nil:
		return err
	case stored == version && name != "":
		return c.taken(name)
	}
	return fault.New(fault.Conflict, "the %s was changed by somebody else meanwhile", c.noun()).WithHint("load it again and repeat the change")
}

// Delete removes an object. Conflict: its version is another; 0 takes any.
func (c Collection[T]) Delete(ctx context.Context, db *DB, tenant, id string, version int64) error {
	if storable("an identifier", tenant, id) != nil {
		return c.absent()
	}
	statement, args := "DELETE FROM objects WHERE kind = ? AND id = ? AND tenant = ?", []any{c.kind, id, tenant}
	if version != 0 {
		statement, args = statement+" AND version = ?", append(args, version)
	}
	n, err := db.write(ctx, "delete a "+c.noun(), statement, args...)
	if err != nil {
		return err
	}
	if n == 0 {
		return c.unchanged(ctx, db, tenant, id, version, "")
	}
	return nil
}

// encode checks an object and returns its data as it is stored.
func (c Collection[T]) encode(o Object[T]) (string, error) {
	if o.Tenant == AnyTenant {
		return "", fault.New(fault.Invalid, "%q is no tenant", o.Tenant)
	}
	if err := storable("the name of a "+c.noun(), o.Name); err != nil {
		return "", err
	}
	if err := storable("an identifier", o.ID, o.Tenant, o.Parent, o.State); err != nil {
		return "", err
	}
	data, err := json.Marshal(o.Data)
	if err != nil {
		return "", fault.New(fault.Internal, "internal error").Because(err)
	}
	return string(data), nil
}

// scan reads one row of objectColumns.
func (c Collection[T]) scan(row func(into ...any) error) (Object[T], error) {
	var o Object[T]
	var created, updated int64
	var data []byte
	if err := row(&o.ID, &o.Tenant, &o.Name, &o.Parent, &o.State, &o.Version, &created, &updated, &data); err != nil {
		return Object[T]{}, err
	}
	o.Created, o.Updated = instant(created), instant(updated)
	in := json.NewDecoder(bytes.NewReader(data))
	in.DisallowUnknownFields()
	err := in.Decode(&o.Data)
	if err == nil {
		if _, more := in.Token(); more != io.EOF {
			err = errors.New("something follows the document")
		}
	}
	if err != nil {
		return Object[T]{}, fault.New(fault.Internal, "internal error").Because(errors.Join(errors.New("read the stored "+c.noun()+" "+o.ID), err))
	}
	return o, nil
}

// noun is the kind as people read it.
func (c Collection[T]) noun() string { return strings.ReplaceAll(c.kind, "-", " ") }

// absent is what is said of what is not there and of what is another tenant's, in the same words.
func (c Collection[T]) absent() error { return fault.New(fault.NotFound, "no such %s", c.noun()) }

func (c Collection[T]) taken(name string) error {
	if name == "" {
		return fault.New(fault.Conflict, "this %s is there already", c.noun())
	}
	return fault.New(fault.Conflict, "another %s is named %q already", c.noun(), name).WithHint("choose another name")
}

// fold is how names are searched and sorted.
func fold(name string) string { return strings.ToLower(name) }

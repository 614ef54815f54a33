package store

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/base64"
	"iter"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cofferdam/cofferdam/internal/fault"
)

// Filter narrows a list. Its zero value is all of a tenant, newest first.
type Filter struct {
	Parent string
	States []string
	Search string // in the name, anywhere, any letter case
	// ByName sorts by name, in any letter case; else newest first.
	ByName bool
	Limit  int    // 100 if 0; at most 1000
	After  string // cursor
}

const (
	usualPage   = 100
	largestPage = 1000
)

// List returns a page of objects and the cursor of the next, "" at the end. What is inserted while somebody pages changes no page after the cursor but by
// its own presence: nothing is shown twice or left out.
func (c Collection[T]) List(ctx context.Context, db *DB, tenant string, f Filter) ([]Object[T], string, error) {
	limit := min(f.Limit, largestPage)
	if limit <= 0 {
		limit = usualPage
	}
	f.States = slices.Compact(slices.Sorted(slices.Values(f.States)))
	from, err := c.parseCursor(tenant, f)
	if err != nil {
		return nil, "", err
	}
	where, args, err := c.where(db, tenant, f)
	if err != nil {
		return nil, "", err
	}
	order := "created DESC, id DESC"
	if f.ByName {
		order = "folded, id"
	}
	if f.After != "" {
		where, args = c.after(where, args, f, from)
	}
	statement, args := pageOf(where, args, f.States, order, limit+1)
	var page []Object[T]
	err = db.query(ctx, "list "+c.noun()+"s", statement, args, func(rows *sql.Rows) error {
		o, err := c.scan(rows.Scan)
		page = append(page, o)
		return err
	})
	if err != nil {
		return nil, "", err
	}
	if len(page) <= limit {
		return page, "", nil
	}
	page = page[:limit]
	last := page[limit-1]
	return page, c.cursor(tenant, f, position{created: micros(last.Created), folded: fold(last.Name), id: last.ID}), nil
}

// pageOf asks for the first rows in an order. Each state is asked for by itself and the answers are merged, so that each is read from an index that
// has that order already, however many objects there are.
func pageOf(where string, args []any, states []string, order string, limit int) (string, []any) {
	each := "SELECT " + objectColumns + ", folded FROM objects WHERE " + where
	end := " ORDER BY " + order + " LIMIT " + strconv.Itoa(limit)
	if len(states) == 0 {
		return strings.Replace(each, ", folded FROM", " FROM", 1) + end, args
	}
	var parts []string
	var all []any
	for _, state := range states {
		parts = append(parts, "SELECT * FROM ("+each+" AND state = ?"+end+") AS part")
		all = append(append(all, args...), state)
	}
	return "SELECT " + objectColumns + " FROM (" + strings.Join(parts, " UNION ALL ") + ") AS parts" + end, all
}

// where is the condition of a filter but for its states and cursor.
func (c Collection[T]) where(db *DB, tenant string, f Filter) (string, []any, error) {
	if err := storable("a filter", append([]string{tenant, f.Parent, f.Search}, f.States...)...); err != nil {
		return "", nil, err
	}
	if len(f.States) > 32 {
		return "", nil, fault.New(fault.Invalid, "a list can be narrowed to at most 32 states")
	}
	where, args := "kind = ?", []any{c.kind}
	if tenant != AnyTenant {
		where, args = where+" AND tenant = ?", append(args, tenant)
	}
	if f.Parent != "" {
		where, args = where+" AND parent = ? AND parent <> ''", append(args, f.Parent)
	}
	if f.Search != "" {
		where, args = where+" AND "+db.dialect.instr+"(folded, ?) > 0", append(args, fold(f.Search))
	}
	return where, args, nil
}

// after continues behind a position.
func (c Collection[T]) after(where string, args []any, f Filter, from position) (string, []any) {
	if f.ByName {
		return where + " AND (folded, id) > (?, ?)", append(args, from.folded, from.id)
	}
	return where + " AND (created, id) < (?, ?)", append(args, from.created, from.id)
}

// All goes through all that a filter names, page by page. Limit is the size of a page.
func (c Collection[T]) All(ctx context.Context, db *DB, tenant string, f Filter) iter.Seq2[Object[T], error] {
	return func(yield func(Object[T], error) bool) {
		if f.Limit == 0 {
			f.Limit = largestPage
		}
		for {
			page, next, err := c.List(ctx, db, tenant, f)
			if err != nil {
				yield(Object[T]{}, err)
				return
			}
			for _, o := range page {
				if !yield(o, nil) {
					return
				}
			}
			if next == "" {
				return
			}
			f.After = next
		}
	}
}

// Some returns those of the objects with these identifiers that the tenant has, by identifier.
func (c Collection[T]) Some(ctx context.Context, db *DB, tenant string, ids []string) (map[string]Object[T], error) {
	found := map[string]Object[T]{}
	for some := range slices.Chunk(ids, 500) {
		where, args := "kind = ?", []any{c.kind}
		if tenant != AnyTenant {
			where, args = where+" AND tenant = ?", append(args, tenant)
		}
		n := 0
		for _, id := range some {
			if storable("an identifier", id) == nil {
				args = append(args, id)
				n++
			}
		}
		if n == 0 {
			continue
		}
		err := db.query(ctx, "read some "+c.noun()+"s", "SELECT "+objectColumns+" FROM objects WHERE "+where+" AND id IN ("+marks(n)+")", args, func(rows *sql.Rows) error {
			o, err := c.scan(rows.Scan)
			found[o.ID] = o
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return found, nil
}

// Count counts objects. Limit and After do not matter.
func (c Collection[T]) Count(ctx context.Context, db *DB, tenant string, f Filter) (int, error) {
	where, args, err := c.where(db, tenant, f)
	if err != nil {
		return 0, err
	}
	where, args = inStates(where, args, f.States)
	var n int
	err = db.row(ctx, "count "+c.noun()+"s", "SELECT count(*) FROM objects WHERE "+where, args, &n)
	return n, err
}

// CountBy counts objects by parent, for those parents. One that has none is not in the answer.
func (c Collection[T]) CountBy(ctx context.Context, db *DB, tenant string, parents []string, states ...string) (map[string]int, error) {
	counts := map[string]int{}
	for some := range slices.Chunk(parents, 500) {
		where, args, err := c.where(db, tenant, Filter{States: states})
		if err != nil {
			return nil, err
		}
		if err := storable("an identifier", some...); err != nil {
			return nil, err
		}
		where += " AND parent <> '' AND parent IN (" + marks(len(some)) + ")"
		for _, parent := range some {
			args = append(args, parent)
		}
		where, args = inStates(where, args, states)
		err = db.query(ctx, "count "+c.noun()+"s", "SELECT parent, count(*) FROM objects WHERE "+where+" GROUP BY parent", args, func(rows *sql.Rows) error {
			var parent string
			var n int
			err := rows.Scan(&parent, &n)
			counts[parent] = n
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return counts, nil
}

func inStates(where string, args []any, states []string) (string, []any) {
	if len(states) == 0 {
		return where, args
	}
	for _, state := range states {
		args = append(args, state)
	}
	return where + " AND state IN (" + marks(len(states)) + ")", args
}

// position is where a list goes on.
type position struct {
	created int64
	folded  string
	id      string
}

// cursor writes a position: a checksum of it and of the list it is for, the time or name, and the identifier. It is no secret and no permission; the
// checksum keeps one list's cursor out of another.
func (c Collection[T]) cursor(tenant string, f Filter, p position) string {
	place := strconv.FormatInt(p.created, 10)
	if f.ByName {
		place = p.folded
	}
	body := p.id + "\x00" + place
	return base64.RawURLEncoding.EncodeToString([]byte(c.checksum(tenant, f, body) + body))
}

func (c Collection[T]) checksum(tenant string, f Filter, body string) string {
	list := strings.Join(append([]string{c.kind, tenant, strconv.FormatBool(f.ByName), f.Parent, fold(f.Search), body}, f.States...), "\x00")
	sum := sha256.Sum256([]byte(list))
	return string(sum[:6])
}

func (c Collection[T]) parseCursor(tenant string, f Filter) (position, error) {
	if f.After == "" {
		return position{}, nil
	}
	wrong := fault.New(fault.Invalid, "the cursor does not belong to this list").WithHint("begin again without a cursor")
	if len(f.After) > 4*longest {
		return position{}, wrong
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(f.After)
	if err != nil || len(raw) < 6 || string(raw[:6]) != c.checksum(tenant, f, string(raw[6:])) {
		return position{}, wrong
	}
	id, place, ok := strings.Cut(string(raw[6:]), "\x00")
	if !ok || storable("a cursor", id, place) != nil {
		return position{}, wrong
	}
	if f.ByName {
		return position{folded: place, id: id}, nil
	}
	created, err := strconv.ParseInt(place, 10, 64)
	if err != nil || time.UnixMicro(created).Year() > 9999 {
		return position{}, wrong
	}
	return position{created: created, id: id}, nil
}

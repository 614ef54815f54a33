package store

import (
	"cmp"
	"context"
	"database/sql"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/cofferdam/cofferdam/internal/fault"
)

// AuditQuery narrows a search. Tenant must be set.
type AuditQuery struct {
	Tenant, Agent, Run, Host, Verdict, Access, Rule, Credential, Repository string // Host may be *.example.com, which is what is below it at any depth
	Kinds                                                                   []string
	Since, Until                                                            time.Time // from Since on, before Until; zero is no bound
	// After continues behind a sequence number in the order of the answer; 0 begins.
	After  int64
	Limit  int  // 100 if 0, at most 10,000
	Oldest bool // oldest first; else newest first
}

// SearchAudit returns the rows that match.
func (db *DB) SearchAudit(ctx context.Context, q AuditQuery) ([]AuditRow, error) {
	if q.Limit = min(q.Limit, 10_000); q.Limit <= 0 {
		q.Limit = 100
	}
	var rows []AuditRow
	err := db.snapshot(ctx, func(tx *DB) (err error) {
		rows, err = tx.searchAudit(ctx, q)
		return err
	})
	return rows, err
}

// searchAudit wants to see one state of the index, so it is called in a snapshot or a transaction.
func (db *DB) searchAudit(ctx context.Context, q AuditQuery) ([]AuditRow, error) {
	if q.Tenant == "" || q.Tenant == AnyTenant {
		return nil, fault.New(fault.Internal, "internal error").Because(fmt.Errorf("a search of the audit index for tenant %q", q.Tenant))
	}
	if len(q.Kinds) > 64 {
		return nil, fault.New(fault.Invalid, "a search can name at most 64 kinds")
	}
	q, err := q.parse()
	if err != nil {
		return nil, err
	}
	s, err := db.auditState(ctx, false)
	if err != nil {
		return nil, err
	}
	if q.Oldest {
		found, err := db.searchSealed(ctx, q, s.sealed, q.Limit)
		if err != nil || len(found) == q.Limit {
			return found, err
		}
		rest, err := db.searchOpen(ctx, q, s.sealed, q.Limit-len(found))
		return append(found, rest...), err
	}
	found, err := db.searchOpen(ctx, q, s.sealed, q.Limit)
	if err != nil || len(found) == q.Limit {
		return found, err
	}
	rest, err := db.searchSealed(ctx, q, s.sealed, q.Limit-len(found))
	return append(found, rest...), err
}

// parse brings the query's values to the spelling in which rows are stored.
func (q AuditQuery) parse() (AuditQuery, error) {
	for _, s := range []*string{&q.Tenant, &q.Agent, &q.Run, &q.Host, &q.Verdict, &q.Access, &q.Rule, &q.Credential, &q.Repository} {
		*s = cleaned(*s)
	}
	q.Host = strings.TrimSuffix(strings.ToLower(q.Host), ".")
	below, wildcard := strings.CutPrefix(q.Host, "*.")
	last := below[strings.LastIndexByte(below, '.')+1:]
	if strings.Contains(below, "*") || wildcard && strings.Trim(last, "0123456789") == "" { // nothing is below an address
		return q, fault.New(fault.Invalid, "the host %.80q cannot be searched for", q.Host).WithHint("write a host, an address, or *.example.com for all below it")
	}
	kinds := make([]string, len(q.Kinds))
	for i, kind := range q.Kinds {
		kinds[i] = cleaned(kind)
	}
	q.Kinds = kinds
	return q, nil
}

// below is the domain of a wildcard, or "".
func (q AuditQuery) below() string {
	if domain, ok := strings.CutPrefix(q.Host, "*."); ok {
		return domain
	}
	return ""
}

// conditions are the query's values and their columns.
func (q AuditQuery) conditions() []condition {
	all := []condition{
		{fieldRun, "run", q.Run}, {fieldRepository, "repository", q.Repository}, {fieldHost, "host", q.Host}, {fieldCredential, "credential", q.Credential},
		{fieldRule, "rule", q.Rule}, {fieldAgent, "agent", q.Agent}, {fieldVerdict, "verdict", q.Verdict}, {fieldAccess, "access", q.Access},
	}
	return slices.DeleteFunc(all, func(c condition) bool { return c.value == "" || c.field == fieldHost && q.below() != "" })
}

type condition struct {
	field         byte
	column, value string
}

// terms is what the bit sets of a row must have: one of each group. What is usually rare comes first.
func (q AuditQuery) terms() [][]term {
	var groups [][]term
	for _, c := range q.conditions() {
		groups = append(groups, []term{word{c.field, q.Tenant, c.value}.term()})
	}
	if domain := q.below(); domain != "" {
		labels := strings.Split(domain, ".")
		labels = labels[max(0, len(labels)-domains):]
		groups = slices.Insert(groups, 0, []term{word{fieldBelow, q.Tenant, strings.Join(labels, ".")}.term()})
	}
	if len(q.Kinds) > 0 {
		var kinds []term
		for _, kind := range q.Kinds {
			kinds = append(kinds, word{fieldKind, q.Tenant, kind}.term())
		}
		groups = append(groups, kinds)
	}
	if len(groups) == 0 {
		groups = [][]term{{word{fieldAll, q.Tenant, ""}.term()}}
	}
	return groups
}

// match compares a row with the query. It must: terms are hashes, and tenants are kept apart here as well.
func (q AuditQuery) match(r AuditRow) bool {
	domain := q.below()
	return r.Tenant == q.Tenant &&
		(q.Agent == "" || q.Agent == r.Agent) && (q.Run == "" || q.Run == r.Run) && (q.Verdict == "" || q.Verdict == r.Verdict) &&
		(q.Access == "" || q.Access == r.Access) && (q.Rule == "" || q.Rule == r.Rule) && (q.Credential == "" || q.Credential == r.Credential) &&
		(q.Repository == "" || q.Repository == r.Repository) && (len(q.Kinds) == 0 || slices.Contains(q.Kinds, r.Kind)) &&
		(q.Host == "" || domain == "" && q.Host == r.Host || domain != "" && isBelow(r.Host, domain)) &&
		(q.Since.IsZero() || !r.Time.Before(q.Since)) && (q.Until.IsZero() || r.Time.Before(q.Until))
}

func isBelow(host, domain string) bool {
	return len(host) > len(domain)+1 && strings.HasSuffix(host, "."+domain)
}

// numbers are the first and last sequence number that the query's After leaves.
func (q AuditQuery) numbers() (first, last int64) {
	switch {
	case q.After <= 0:
		return 0, math.MaxInt64
	case q.Oldest:
		return q.After + 1, math.MaxInt64
	}
	return 0, q.After - 1
}

// times are the bounds as they are stored: from since on, before until.
func (q AuditQuery) times() (since, until int64) {
	since, until = math.MinInt64, math.MaxInt64
	if !q.Since.IsZero() {
		since = q.Since.UnixMicro()
	}
	if !q.Until.IsZero() {
		until = q.Until.UnixMicro()
	}
	return since, until
}

// searchOpen looks through the rows that are not sealed: less than a block and a batch.
func (db *DB) searchOpen(ctx context.Context, q AuditQuery, sealed int64, limit int) ([]AuditRow, error) {
	first, last := q.numbers()
	since, until := q.times()
	where := "seq >= ? AND seq <= ? AND time >= ? AND time < ? AND tenant = ?"
	args := []any{max(first, firstOf(sealed)), last, since, until, q.Tenant}
	for _, c := range q.conditions() {
		where, args = where+" AND "+c.column+" = ?", append(args, c.value)
	}
	if domain := q.below(); domain != "" {
		where += " AND " + fmt.Sprintf(db.dialect.ending, "host", utf8.RuneCountInString(domain)+1) + " = ? AND host <> ?"
		args = append(args, "."+domain, "."+domain)
	}
	if len(q.Kinds) > 0 {
		where += " AND kind IN (" + marks(len(q.Kinds)) + ")"
		for _, kind := range q.Kinds {
			args = append(args, kind)
		}
	}
	order := "DESC"
	if q.Oldest {
		order = "ASC"
	}
	var found []AuditRow
	statement := "SELECT " + auditColumns + " FROM audit WHERE " + where + " ORDER BY seq " + order + " LIMIT ?"
	err := db.query(ctx, "search the audit index", statement, append(args, limit), func(rows *sql.Rows) error {
		r, err := scanAudit(rows)
		if err == nil && q.match(r) {
			found = append(found, r)
		}
		return err
	})
	return found, err
}

// window is how many blocks are looked at together, from the first few on; it doubles while little is found.
const window, widest = 4, 256

// searchSealed searches sealed blocks in the order of the answer.
func (db *DB) searchSealed(ctx context.Context, q AuditQuery, sealed int64, limit int) ([]AuditRow, error) {
	blocks, err := db.blocks(ctx, q, sealed)
	if err != nil {
		return nil, err
	}
	groups := q.terms()
	var found []AuditRow
	for wide := window; len(blocks) > 0 && len(found) < limit; wide = min(2*wide, widest) {
		some := blocks[:min(wide, len(blocks))]
		blocks = blocks[len(some):]
		sets, err := db.intersect(ctx, groups, some)
		if err != nil {
			return nil, err
		}
		more, err := db.collect(ctx, q, some, sets, limit-len(found))
		if err != nil {
			return nil, err
		}
		found = append(found, more...)
	}
	return found, nil
}

// block is a sealed one.
type block struct{ number, earliest, latest int64 }

// blocks returns those in which a row may match by its number and time, in the order of the answer.
func (db *DB) blocks(ctx context.Context, q AuditQuery, sealed int64) ([]block, error) {
	first, last := q.numbers()
	since, until := q.times()
	order := "DESC"
	if q.Oldest {
		order = "ASC"
	}
	var all []block
	statement := "SELECT block, earliest, latest FROM audit_block WHERE block >= ? AND block <= ? AND latest >= ? AND earliest < ? ORDER BY block " + order
	err := db.query(ctx, "search the audit index", statement, []any{blockOf(first), min(blockOf(last), sealed-1), since, until}, func(rows *sql.Rows) error {
		var b block
		err := rows.Scan(&b.number, &b.earliest, &b.latest)
		all = append(all, b)
		return err
	})
	return all, err
}

// intersect returns, of each block that has any, the rows that have a term of each group.
func (db *DB) intersect(ctx context.Context, groups [][]term, blocks []block) (map[int64]*set, error) {
	numbers := make([]int64, len(blocks))
	for i, b := range blocks {
		numbers[i] = b.number
	}
	var left map[int64]*set
	for n, group := range groups {
		united, err := db.unite(ctx, group, numbers)
		if err != nil {
			return nil, err
		}
		for number, s := range united {
			if n > 0 && !s.and(left[number]) {
				delete(united, number)
			}
		}
		if left = united; len(left) == 0 {
			break
		}
		numbers = sortedKeys(left)
	}
	return left, nil
}

// unite returns, of each of the blocks that has any, the rows that have one of the terms. That is one look into the index for each block and term.
func (db *DB) unite(ctx context.Context, terms []term, blocks []int64) (map[int64]*set, error) {
	inBlocks, args := among(db.dialect, "block", blocks)
	inTerms, more := among(db.dialect, "term", terms)
	united := map[int64]*set{}
	statement := "SELECT block, bits FROM audit_bits WHERE " + inBlocks + " AND " + inTerms
	err := db.query(ctx, "search the audit index", statement, append(args, more...), func(rows *sql.Rows) error {
		var number int64
		var data sql.RawBytes
		if err := rows.Scan(&number, &data); err != nil {
			return err
		}
		s := united[number]
		if s == nil {
			s = &set{}
			united[number] = s
		}
		return s.decode(data)
	})
	return united, err
}

// within removes from a set what is outside the query's numbers and, where the block is only partly inside them, its times.
func (db *DB) within(ctx context.Context, q AuditQuery, b block, s *set) error {
	first, last := q.numbers()
	since, until := q.times()
	start, end := max(first, firstOf(b.number)), min(last, firstOf(b.number+1)-1)
	inside := &set{}
	if since <= b.earliest && b.latest < until {
		if start == firstOf(b.number) && end == firstOf(b.number+1)-1 {
			return nil
		}
		for seq := start; seq <= end; seq++ {
			inside.add(uint16(seq - firstOf(b.number)))
		}
		s.and(inside)
		return nil
	}
	statement := "SELECT seq FROM audit WHERE seq >= ? AND seq <= ? AND time >= ? AND time < ?"
	err := db.query(ctx, "search the audit index", statement, []any{start, end, since, until}, func(rows *sql.Rows) error {
		var seq int64
		err := rows.Scan(&seq)
		inside.add(uint16(seq - firstOf(b.number)))
		return err
	})
	s.and(inside)
	return err
}

// collect reads the rows of blocks' sets until there are enough. Where a set has few, several are read together.
func (db *DB) collect(ctx context.Context, q AuditQuery, blocks []block, sets map[int64]*set, limit int) ([]AuditRow, error) {
	var found []AuditRow
	var numbers []int64
	for i, b := range blocks {
		if s := sets[b.number]; s != nil {
			if err := db.within(ctx, q, b, s); err != nil {
				return nil, err
			}
			numbers = append(numbers, q.members(b, s)...)
		}
		if len(numbers) < min(limit-len(found), together) && i < len(blocks)-1 {
			continue
		}
		for len(numbers) > 0 && len(found) < limit {
			some := numbers[:min(len(numbers), together, limit-len(found))]
			numbers = numbers[len(some):]
			rows, err := db.auditRows(ctx, some)
			if err != nil {
				return nil, err
			}
			found = append(found, q.matching(rows)...)
		}
		if len(found) == limit {
			break
		}
	}
	return found, nil
}

// together is how many rows are read by their numbers at once.
const together = 500

// members are the numbers of a set's rows in the order of the answer.
func (q AuditQuery) members(b block, s *set) []int64 {
	var numbers []int64
	for i := range blockSize {
		if s.has(uint16(i)) {
			numbers = append(numbers, firstOf(b.number)+int64(i))
		}
	}
	if !q.Oldest {
		slices.Reverse(numbers)
	}
	return numbers
}

// matching returns the rows that match, in the order of the answer.
func (q AuditQuery) matching(rows []AuditRow) []AuditRow {
	rows = slices.DeleteFunc(rows, func(r AuditRow) bool { return !q.match(r) })
	slices.SortFunc(rows, func(x, y AuditRow) int {
		if q.Oldest {
			return cmp.Compare(x.Seq, y.Seq)
		}
		return cmp.Compare(y.Seq, x.Seq)
	})
	return rows
}

// auditRows reads rows by their numbers, in any order.
func (db *DB) auditRows(ctx context.Context, numbers []int64) ([]AuditRow, error) {
	where, args := among(db.dialect, "seq", numbers)
	var found []AuditRow
	err := db.query(ctx, "read audit rows", "SELECT "+auditColumns+" FROM audit WHERE "+where, args, func(rows *sql.Rows) error {
		r, err := scanAudit(rows)
		found = append(found, r)
		return err
	})
	return found, err
}

package store

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/bits"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// blockSize is how many sequence numbers are a block. Larger blocks make fewer, longer reads; smaller ones leave less to look through at the end.
const blockSize = 1 << 14

func blockOf(seq int64) int64   { return seq / blockSize }
func firstOf(block int64) int64 { return block * blockSize }

// Terms are made of a field and a value.
const (
	fieldAll        = 'a'
	fieldAgent      = 'g'
	fieldRun        = 'r'
	fieldKind       = 'k'
	fieldVerdict    = 'v'
	fieldAccess     = 'x'
	fieldHost       = 'h'
	fieldBelow      = 'b' // a domain that the host is below
	fieldRule       = 'u'
	fieldCredential = 'c'
	fieldRepository = 'p'
)

// domains is how many of a host's domains are terms, from the top-level one down. A sandbox chooses host names: without a bound one of them could
// cost a hundred terms. A search below a longer domain looks through what is below its last six labels.
const domains = 6

// term is what is looked up: 64 bits of a hash, so that a value that a sandbox makes up costs no more than another, and nothing is read of it. Two terms
// that collide make a search read a row in vain: every row read is compared with the query.
type term int64

// word is a term before it is hashed.
type word struct {
	field         byte
	tenant, value string
}

func (w word) term() term {
	sum := sha256.Sum256(fmt.Appendf(nil, "%c%d:%s%s", w.field, len(w.tenant), w.tenant, w.value))
	return term(binary.BigEndian.Uint64(sum[:8]))
}

// words is what a row can be found by.
func (r AuditRow) words() []word {
	all := make([]word, 0, 16)
	all = append(all, word{fieldAll, r.Tenant, ""})
	for _, f := range []struct {
		field byte
		value string
	}{
		{fieldAgent, r.Agent}, {fieldRun, r.Run}, {fieldKind, r.Kind}, {fieldVerdict, r.Verdict}, {fieldAccess, r.Access}, {fieldHost, r.Host},
		{fieldRule, r.Rule}, {fieldCredential, r.Credential}, {fieldRepository, r.Repository},
	} {
		if f.value != "" {
			all = append(all, word{f.field, r.Tenant, f.value})
		}
	}
	for _, domain := range domainsOf(r.Host) {
		all = append(all, word{fieldBelow, r.Tenant, domain})
	}
	return all
}

// domainsOf returns the domains that a host is below: com and example.com for www.example.com. An address is below none.
func domainsOf(host string) []string {
	if _, err := netip.ParseAddr(host); err == nil {
		return nil
	}
	var all []string
	for end := len(host); len(all) < domains; {
		end = strings.LastIndexByte(host[:end], '.')
		if end <= 0 {
			break
		}
		all = append(all, host[end+1:])
	}
	return all
}

// set is which rows of a block are meant.
type set [blockSize / 64]uint64

func (s *set) add(i uint16)      { s[i/64] |= 1 << (i % 64) }
func (s *set) remove(i uint16)   { s[i/64] &^= 1 << (i % 64) }
func (s *set) has(i uint16) bool { return s[i/64]&(1<<(i%64)) != 0 }

func (s *set) and(t *set) (some bool) {
	for i := range s {
		s[i] &= t[i]
		some = some || s[i] != 0
	}
	return some
}

func (s *set) count() (n int) {
	for _, w := range s {
		n += bits.OnesCount64(w)
	}
	return n
}

// encode writes a set as its members, two bytes each, or, where that is no shorter, as its bits.
func (s *set) encode() []byte {
	n := s.count()
	if 2*n >= blockSize/8 {
		out := make([]byte, 0, blockSize/8)
		for _, w := range s {
			out = binary.LittleEndian.AppendUint64(out, w)
		}
		return out
	}
	out := make([]byte, 0, 2*n)
	for i, w := range s {
		for ; w != 0; w &= w - 1 {
			out = binary.LittleEndian.AppendUint16(out, uint16(i*64+bits.TrailingZeros64(w)))
		}
	}
	return out
}

var errBits = errors.New("a bit set of the audit index is damaged")

// decode adds what is written to s.
func (s *set) decode(data []byte) error {
	if len(data) == blockSize/8 {
		for i := range s {
			s[i] |= binary.LittleEndian.Uint64(data[8*i:])
		}
		return nil
	}
	if len(data)%2 != 0 || len(data) > blockSize/8 {
		return errBits
	}
	for ; len(data) > 0; data = data[2:] {
		i := binary.LittleEndian.Uint16(data)
		if i >= blockSize {
			return errBits
		}
		s.add(i)
	}
	return nil
}

// sealUpTo seals the blocks that are full: all before current. It returns the first that is not sealed.
func (db *DB) sealUpTo(ctx context.Context, block, current int64) (int64, error) {
	for block < current {
		// Numbers may have a gap of any size: go to where the next row is.
		var next sql.NullInt64
		if err := db.row(ctx, "seal a block of the audit index", "SELECT min(seq) FROM audit WHERE seq >= ?", []any{firstOf(block)}, &next); err != nil {
			return 0, err
		}
		if !next.Valid || blockOf(next.Int64) >= current {
			break
		}
		block = blockOf(next.Int64)
		if err := db.seal(ctx, block); err != nil {
			return 0, err
		}
		block++
	}
	return max(block, current), nil
}

// seal writes the bit sets of one block.
func (db *DB) seal(ctx context.Context, block int64) error {
	members := map[word][]uint16{}
	var rows, earliest, latest int64
	statement := "SELECT " + auditColumns + " FROM audit WHERE seq >= ? AND seq < ? ORDER BY seq"
	err := db.query(ctx, "seal a block of the audit index", statement, []any{firstOf(block), firstOf(block + 1)}, func(r *sql.Rows) error {
		row, err := scanAudit(r)
		if err != nil {
			return err
		}
		for _, w := range row.words() {
			members[w] = append(members[w], uint16(row.Seq-firstOf(block)))
		}
		at := micros(row.Time)
		if rows == 0 {
			earliest, latest = at, at
		}
		rows, earliest, latest = rows+1, min(earliest, at), max(latest, at)
		return nil
	})
	if err != nil {
		return err
	}
	sets := make(map[term][]byte, len(members))
	for w, rows := range members {
		var s set
		for _, i := range rows {
			s.add(i)
		}
		t := w.term()
		if other, ok := sets[t]; ok { // two words, one hash
			if err := s.decode(other); err != nil {
				return err
			}
		}
		sets[t] = s.encode()
	}
	if err := db.putBits(ctx, block, sets); err != nil {
		return err
	}
	_, err = db.write(ctx, "seal a block of the audit index", "INSERT INTO audit_block (block, rows, earliest, latest) VALUES (?, ?, ?, ?)", block, rows, earliest, latest)
	return err
}

// putBits writes sets, in the order in which they lie in the table.
func (db *DB) putBits(ctx context.Context, block int64, sets map[term][]byte) error {
	const end = " ON CONFLICT (block, term) DO UPDATE SET bits = excluded.bits"
	for some := range slices.Chunk(sortedKeys(sets), 500) {
		var err error
		if db.dialect.postgres {
			terms, values := make([]int64, len(some)), make([][]byte, len(some))
			for i, t := range some {
				terms[i], values[i] = int64(t), sets[t]
			}
			_, err = db.write(ctx, "write the audit index", "INSERT INTO audit_bits (term, block, bits) SELECT t, ?::bigint, b FROM unnest(?::bigint[], ?::bytea[]) AS u(t, b)"+end, block, terms, values)
		} else {
			args := make([]any, 0, 3*len(some))
			for _, t := range some {
				args = append(args, int64(t), block, sets[t])
			}
			_, err = db.write(ctx, "write the audit index", "INSERT INTO audit_bits (term, block, bits) VALUES "+strings.TrimSuffix(strings.Repeat("(?, ?, ?), ", len(some)), ", ")+end, args...)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// amend brings a sealed block's bit sets up to date after rows were added or removed.
func (db *DB) amend(ctx context.Context, block int64, rows []AuditRow, added bool) error {
	members := map[term][]uint16{}
	earliest, latest := rows[0].Time, rows[0].Time
	for _, r := range rows {
		for _, w := range r.words() {
			members[w.term()] = append(members[w.term()], uint16(r.Seq-firstOf(block)))
		}
		if r.Time.Before(earliest) {
			earliest = r.Time
		}
		if r.Time.After(latest) {
			latest = r.Time
		}
	}
	put := map[term][]byte{}
	var drop []term
	for some := range slices.Chunk(sortedKeys(members), 500) {
		sets, err := db.bitsOf(ctx, block, some)
		if err != nil {
			return err
		}
		for _, t := range some {
			s := sets[t]
			if s == nil {
				s = &set{}
			}
			for _, i := range members[t] {
				if added {
					s.add(i)
				} else {
					s.remove(i)
				}
			}
			if s.count() == 0 {
				drop = append(drop, t)
			} else {
				put[t] = s.encode()
			}
		}
	}
	if err := db.putBits(ctx, block, put); err != nil {
		return err
	}
	if err := db.dropBits(ctx, block, drop); err != nil {
		return err
	}
	if added {
		return db.enlarge(ctx, block, len(rows), earliest, latest)
	}
	return db.shrink(ctx, block, len(rows))
}

// bitsOf reads the sets of some terms in one block.
func (db *DB) bitsOf(ctx context.Context, block int64, terms []term) (map[term]*set, error) {
	where, args := among(db.dialect, "term", terms)
	sets := map[term]*set{}
	statement := "SELECT term, bits FROM audit_bits WHERE " + where + " AND block = ?"
	err := db.query(ctx, "read the audit index", statement, append(args, block), func(rows *sql.Rows) error {
		var t int64
		var data sql.RawBytes
		if err := rows.Scan(&t, &data); err != nil {
			return err
		}
		sets[term(t)] = &set{}
		return sets[term(t)].decode(data)
	})
	return sets, err
}

func (db *DB) dropBits(ctx context.Context, block int64, terms []term) error {
	for some := range slices.Chunk(terms, 500) {
		where, args := among(db.dialect, "term", some)
		if _, err := db.write(ctx, "write the audit index", "DELETE FROM audit_bits WHERE "+where+" AND block = ?", append(args, block)...); err != nil {
			return err
		}
	}
	return nil
}

// enlarge counts rows that came late. The block may have been empty, or removed.
func (db *DB) enlarge(ctx context.Context, block int64, rows int, earliest, latest time.Time) error {
	_, err := db.write(ctx, "write the audit index", `INSERT INTO audit_block (block, rows, earliest, latest) VALUES (?, ?, ?, ?)
		ON CONFLICT (block) DO UPDATE SET rows = audit_block.rows + excluded.rows,
		earliest = CASE WHEN excluded.earliest < audit_block.earliest THEN excluded.earliest ELSE audit_block.earliest END,
		latest = CASE WHEN excluded.latest > audit_block.latest THEN excluded.latest ELSE audit_block.latest END`,
		block, rows, micros(earliest), micros(latest))
	return err
}

// shrink counts rows that were removed, and removes the block with the last.
func (db *DB) shrink(ctx context.Context, block int64, rows int) error {
	if _, err := db.write(ctx, "write the audit index", "UPDATE audit_block SET rows = rows - ? WHERE block = ?", rows, block); err != nil {
		return err
	}
	_, err := db.write(ctx, "write the audit index", "DELETE FROM audit_block WHERE block = ? AND rows <= 0", block)
	return err
}

func sortedKeys[K ~int64, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }

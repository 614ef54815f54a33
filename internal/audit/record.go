package audit

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"strconv"
	"time"

	"github.com/cofferdam/cofferdam/internal/fault"
)

// A record is one line of the log: the JSON of an Event with its members in the order of the struct, no white space, seq first,
// prev and hash last. Hash is the SHA-256 of the line from "{" up to, and without, the comma before "hash". So the hash covers
// exact bytes, needs no canonical form of JSON, and can be checked with head, sha256sum and no knowledge of this program.
const (
	seqMember  = `{"seq":`
	timeMember = `,"time":"`
	prevMember = `,"prev":"`
	hashMember = `,"hash":"`
	recordEnd  = `"}`

	hexLen = 2 * sha256.Size
	// hashTail is how many bytes at the end of a record its own hash does not cover.
	hashTail = len(hashMember) + hexLen + len(recordEnd)
	// linkTail is how many bytes prev and hash take together at the end of a record.
	linkTail = len(prevMember) + hexLen + len(`"`) + hashTail

	// maxLine bounds a record on disk. The bounds on texts and lists keep records well below it; a longer line is none of ours.
	maxLine = 1 << 20
)

// noHash is what stands in prev of the first record.
const noHash = "0000000000000000000000000000000000000000000000000000000000000000"

// body is an event that waits for its place in the log: everything between time and prev is encoded.
type body struct {
	time time.Time // zero: when it is written
	json []byte
}

// newBody checks, cleans and encodes an event. It does the expensive part outside of any lock.
func newBody(e Event) (body, error) {
	if e.Kind == "" {
		return body{}, fault.New(fault.Internal, "audit event without a kind")
	}
	at := e.Time.UTC()
	if y := at.Year(); y < 1 || y > 9999 {
		return body{}, fault.New(fault.Internal, "audit event of the year %d", y)
	}
	e.clean()
	return body{time: at, json: e.appendMembers(make([]byte, 0, 512))}, nil
}

// place says where the log stands: the last record's number and hash, and the size of the file up to its line break.
type place struct {
	seq  uint64
	hash string
	size int64
}

// appendRecord adds the record of b to buf, with its line break, and moves the place past it.
func (p *place) appendRecord(buf []byte, b body, now time.Time) []byte {
	start := len(buf)
	at := b.time
	if at.IsZero() {
		at = now.UTC()
	}
	p.seq++
	buf = append(buf, seqMember...)
	buf = strconv.AppendUint(buf, p.seq, 10)
	buf = append(buf, timeMember...)
	buf = at.AppendFormat(buf, time.RFC3339Nano)
	buf = append(buf, '"')
	buf = append(buf, b.json...)
	buf = append(buf, prevMember...)
	buf = append(buf, p.hash...)
	buf = append(buf, '"')
	p.hash = hashOf(buf[start:])
	buf = append(buf, hashMember...)
	buf = append(buf, p.hash...)
	buf = append(buf, recordEnd...)
	buf = append(buf, '\n')
	p.size += int64(len(buf) - start)
	return buf
}

func hashOf(covered []byte) string {
	sum := sha256.Sum256(covered)
	return hex.EncodeToString(sum[:])
}

// link is what chains a record to its neighbours, read from the bytes of a line.
type link struct {
	seq        uint64
	prev, hash string
	intact     bool // hash is the hash of the line's bytes
}

// readLink takes a line without its break apart. It accepts only lines that have the form of a record.
func readLink(line []byte) (link, bool) {
	rest, ok := bytes.CutPrefix(line, []byte(seqMember))
	if !ok || len(rest) < linkTail || len(line) > maxLine {
		return link{}, false
	}
	digits, _, _ := bytes.Cut(rest[:len(rest)-linkTail+1], []byte(","))
	seq, err := strconv.ParseUint(string(digits), 10, 64)
	if err != nil || seq == 0 || digits[0] == '0' || digits[0] == '+' {
		return link{}, false
	}
	covered, own := line[:len(line)-hashTail], line[len(line)-hashTail:]
	hash, ok1 := quotedHash(own, hashMember, recordEnd)
	prev, ok2 := quotedHash(line[len(line)-linkTail:len(line)-hashTail], prevMember, `"`)
	if !ok1 || !ok2 || !json.Valid(line) {
		return link{}, false
	}
	return link{seq: seq, prev: prev, hash: hash, intact: hashOf(covered) == hash}, true
}

// quotedHash returns the 64 lower-case hexadecimal digits between before and after.
func quotedHash(b []byte, before, after string) (string, bool) {
	b, ok1 := bytes.CutPrefix(b, []byte(before))
	b, ok2 := bytes.CutSuffix(b, []byte(after))
	return string(b), ok1 && ok2 && isHash(string(b))
}

func isHash(s string) bool {
	if len(s) != hexLen {
		return false
	}
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

package audit

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/fault"
)

// maxProblems bounds a report: a log that was shuffled as a whole does not fill the memory.
const maxProblems = 1000

// Report is the outcome of Verify.
type Report struct {
	Records  uint64     `json:"records"`  // whole lines that are records
	Head     Checkpoint `json:"head"`     // the last record of the chain: keep it elsewhere to verify against it later
	Torn     int64      `json:"torn"`     // bytes that an interrupted writer left at the end; the next append mends that
	Problems []Problem  `json:"problems"` // in the order of the log; empty when it is as it was written
	More     uint64     `json:"more"`     // problems beyond those listed
}

// OK says that nothing is wrong with the log.
func (r *Report) OK() bool { return len(r.Problems) == 0 && r.More == 0 }

// Problem is one place where the log is not as it was written.
type Problem struct {
	Seq  uint64 `json:"seq"`  // number of the record; 0 where it cannot be told
	Line int    `json:"line"` // line of the file where it shows; 0 where there is none
	What string `json:"what"` // one sentence
}

// Verify reads the whole log of a directory, with bounded memory and while others append to it, and names each record that was changed, deleted,
// moved, put in, or cut off at the end. The expected checkpoints, kept elsewhere, prove more: someone who may write to the directory can rewrite the
// log and head.json together, which only a checkpoint from before shows. An error means that the log could not be read.
func Verify(dir string, expect ...Checkpoint) (Report, error) {
	file, err := openLog(dir)
	if err != nil {
		return Report{}, err
	}
	defer file.Close()
	snap, err := snapshot(file, dir)
	if err != nil {
		return Report{}, err
	}
	v := verifier{want: 1, last: link{hash: noHash, intact: true}}
	for _, c := range expect {
		v.marks = append(v.marks, mark{Checkpoint: c, what: "the checkpoint"})
	}
	if snap.headErr == nil {
		v.marks = append(v.marks, mark{Checkpoint: Checkpoint{Seq: snap.head.Seq, Hash: snap.head.Hash}, what: "head.json"})
	} else if snap.size > 0 {
		v.problem(0, 0, "head.json is missing or unreadable, so records cut off at the end would not be noticed")
	}
	lr := newLineReader(io.NewSectionReader(file, 0, snap.size), 0, 0)
	for {
		ln, err := lr.next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return Report{}, fault.New(fault.Unavailable, "the audit log in %s cannot be read", dir).Because(err)
		}
		if !ln.whole {
			v.report.Torn = ln.size
			break
		}
		v.line(ln)
	}
	return v.finish(), nil
}

// Head returns the checkpoint of the last whole record, without verifying what lies before head.json's place.
func Head(dir string) (Checkpoint, error) {
	file, err := openLog(dir)
	if err != nil {
		return Checkpoint{}, err
	}
	defer file.Close()
	snap, err := snapshot(file, dir)
	if err != nil {
		return Checkpoint{}, err
	}
	if snap.headErr != nil || snap.size < snap.head.Size {
		return Checkpoint{}, fault.New(fault.Conflict, "the audit log and its head do not fit together").WithHint("type: cofferdam audit verify")
	}
	t, err := readTail(file, place{seq: snap.head.Seq, hash: snap.head.Hash, size: snap.head.Size}, snap.size)
	if err != nil {
		return Checkpoint{}, fault.New(fault.Unavailable, "the audit log in %s cannot be read", dir).Because(err)
	}
	return Checkpoint{Seq: t.place.seq, Hash: t.place.hash}, nil
}

// shot is the length of the log and its head at one moment between two appends.
type shot struct {
	size    int64
	head    head
	headErr error
}

func snapshot(file *os.File, dir string) (shot, error) {
	fd := int(file.Fd())
	if err := lock(fd, unix.LOCK_SH); err != nil {
		return shot{}, fault.New(fault.Unavailable, "the audit log in %s cannot be read", dir).Because(err)
	}
	defer unlock(fd)
	info, err := file.Stat()
	if err != nil {
		return shot{}, fmt.Errorf("examine audit log: %w", err)
	}
	s := shot{size: info.Size()}
	f, err := openFile(filepath.Join(dir, headName), os.O_RDONLY)
	if err != nil {
		s.headErr = err
		return s, nil
	}
	defer f.Close()
	s.head, s.headErr = readHead(f)
	return s, nil
}

// mark is a record whose hash is known from elsewhere.
type mark struct {
	Checkpoint
	what string // who knows it
}

// stray is a record that does not stand where its number belongs.
type stray struct {
	link
	line int
}

// gap is a run of numbers that are missing where they belong.
type gap struct {
	from, to uint64
	prev     string // what the record after the gap says the last of it hashed to
	line     int    // of the record after the gap
	knownTo  string // for a gap at the end: who knows the records
}

// verifier walks the main line of the chain. What does not fit on it is set aside as a stray or as an unreadable line and explained when more is known.
type verifier struct {
	report Report
	marks  []mark

	want       uint64 // number that comes next
	last       link   // last record of the main line
	lastLine   int
	unreadable []int  // lines since last that are not intact records with a plausible number
	jump       *stray // a number that is too high: the start of a gap if the next record confirms it, else a stray

	strays []stray
	gaps   []gap
}

func (v *verifier) problem(seq uint64, line int, format string, args ...any) {
	remember(v, &v.report.Problems, Problem{Seq: seq, Line: line, What: fmt.Sprintf(format, args...)})
}

// line takes the next line of the file.
func (v *verifier) line(ln line) {
	lk, ok := readLink(ln.data)
	if !ok || !lk.intact && lk.seq != v.want {
		remember(v, &v.unreadable, ln.number)
		return
	}
	v.report.Records++
	if j := v.jump; j != nil {
		v.jump = nil
		switch {
		case lk.seq == j.seq+1 && lk.prev == j.hash, lk.seq > j.seq:
			v.accept(*j)
		default:
			remember(v, &v.strays, *j)
		}
	}
	switch s := (stray{link: lk, line: ln.number}); {
	case lk.seq == v.want:
		v.accept(s)
	case lk.seq > v.want && len(v.unreadable) > 0 && lk.seq == v.want+uint64(len(v.unreadable)):
		v.accept(s) // the unreadable lines are just what is missing
	case lk.seq > v.want:
		v.jump = &s
	default:
		remember(v, &v.strays, s)
	}
}

// remember adds to a list, which is bounded: what is more is only counted.
func remember[T any](v *verifier, list *[]T, one T) {
	if len(*list) >= maxProblems {
		v.report.More++
		return
	}
	*list = append(*list, one)
}

// accept makes s the last record of the main line, and explains what lies between it and the one before.
func (v *verifier) accept(s stray) {
	direct := s.seq == v.want
	v.explainUnreadable(s.seq - v.want)
	switch {
	case s.seq > v.want:
		remember(v, &v.gaps, gap{from: v.want, to: s.seq - 1, prev: s.prev, line: s.line})
	case direct && s.prev != v.last.hash && v.last.intact:
		v.explainBreak(s)
	}
	if !s.intact {
		v.problem(s.seq, s.line, "record %d was changed: its content does not have its hash", s.seq)
	}
	v.checkMarks(s)
	v.last, v.lastLine, v.want = s.link, s.line, s.seq+1
}

// explainUnreadable accounts for lines that are no records: as many as are missing were changed, any more were put in.
func (v *verifier) explainUnreadable(missing uint64) {
	for _, number := range v.unreadable {
		if missing == 0 {
			v.problem(0, number, "this line is not a record of the log: it was put in after record %d", v.want-1)
			continue
		}
		v.problem(v.want, number, "record %d was changed: it is not readable as a record, or its content does not have its hash", v.want)
		v.want++
		missing--
	}
	v.unreadable = v.unreadable[:0]
}

// explainBreak is called when s has the right number and its prev is not the hash of the record before it.
func (v *verifier) explainBreak(s stray) {
	genuine := slices.IndexFunc(v.strays, func(o stray) bool { return o.seq == v.last.seq && o.hash == s.prev })
	switch {
	case v.last.seq == 0:
		v.problem(s.seq, s.line, "the first record does not begin a chain: it was changed")
	case genuine >= 0:
		v.strays = slices.Delete(v.strays, genuine, genuine+1)
		v.problem(v.last.seq, v.lastLine, "record %d was put in: the real one follows it", v.last.seq)
	default:
		v.problem(v.last.seq, v.lastLine, "record %d was changed and given a new hash, or record %d was replaced: they do not fit together", v.last.seq, s.seq)
	}
}

func (v *verifier) checkMarks(s stray) {
	for _, m := range v.marks {
		if m.Seq == s.seq && m.Hash != s.hash {
			v.problem(s.seq, s.line, "record %d is not the one that %s names: it, or a record before it, was changed", s.seq, m.what)
		}
	}
}

// finish explains what was set aside and what is missing at the end.
func (v *verifier) finish() Report {
	if v.jump != nil {
		v.accept(*v.jump)
	}
	var end mark // the last record that is known from elsewhere
	for _, m := range v.marks {
		if m.Seq >= v.want && m.Seq > end.Seq {
			end = m
		}
	}
	if end.Seq > 0 {
		v.explainUnreadable(end.Seq - v.want + 1)
	} else {
		v.explainUnreadable(0)
	}
	if end.Seq >= v.want {
		remember(v, &v.gaps, gap{from: v.want, to: end.Seq, prev: end.Hash, knownTo: end.what})
	}
	v.explainStrays()
	v.explainGaps()
	slices.SortStableFunc(v.report.Problems, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Seq, b.Seq), cmp.Compare(a.Line, b.Line))
	})
	v.report.Head = Checkpoint{Seq: v.last.seq, Hash: v.last.hash}
	if v.report.Problems == nil {
		v.report.Problems = []Problem{}
	}
	return v.report
}

// explainStrays takes each stray for the moved one where its number is missing, else for one that was put in.
func (v *verifier) explainStrays() {
	for _, s := range v.strays {
		i := slices.IndexFunc(v.gaps, func(g gap) bool { return g.from <= s.seq && s.seq <= g.to })
		if i < 0 || s.seq == v.gaps[i].to && s.hash != v.gaps[i].prev {
			v.problem(s.seq, s.line, "this record was put in: it has the number %d of another one", s.seq)
			continue
		}
		v.problem(s.seq, s.line, "record %d was moved: it stands at line %d", s.seq, s.line)
		v.checkMarks(s)
		g := v.gaps[i]
		v.gaps = slices.Delete(v.gaps, i, i+1)
		if s.seq < g.to {
			v.gaps = slices.Insert(v.gaps, i, gap{from: s.seq + 1, to: g.to, prev: g.prev, line: g.line, knownTo: g.knownTo})
		}
		if g.from < s.seq {
			v.gaps = slices.Insert(v.gaps, i, gap{from: g.from, to: s.seq - 1, prev: s.prev, line: g.line, knownTo: g.knownTo})
		}
	}
}

func (v *verifier) explainGaps() {
	for _, g := range v.gaps {
		which := fmt.Sprintf("records %d to %d are", g.from, g.to)
		if g.from == g.to {
			which = fmt.Sprintf("record %d is", g.from)
		}
		if g.knownTo != "" {
			v.problem(g.from, 0, "%s missing at the end, but known to %s: cut off, or never on the disk before power was lost", which, g.knownTo)
			continue
		}
		v.problem(g.from, g.line, "%s missing: deleted before this line", which)
	}
}

package audit

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// settled is where the next record goes, after damage that the last writer left was mended.
type settled struct {
	place    place
	notes    []string // one log.repaired record each, to be written before anything else
	cut      int64    // bytes that were cut off just now
	head     head     // as it was found
	headRead bool
}

// settle finds the end of the log, under the lock. Where head and file agree, which is nearly always, that is two system calls.
// A complete record is never removed: a line that ends without its break and is no whole record is cut off, and that is put on record.
func (l *Log) settle() (settled, error) {
	var st unix.Stat_t
	if err := unix.Fstat(l.fd, &st); err != nil {
		return settled{}, fmt.Errorf("examine audit log: %w", err)
	}
	if st.Nlink == 0 {
		return settled{}, errRemoved
	}
	h, err := l.readHead()
	if err != nil && !errors.Is(err, errBadHead) {
		return settled{}, err
	}
	s := settled{head: h, headRead: err == nil}
	if !s.headRead {
		s.notes = append(s.notes, "head.json was missing or unreadable and was made anew from the log")
		h = head{Hash: noHash}
	}
	if h.Cut > 0 {
		s.notes = append(s.notes, cutNote(h.Cut))
	}
	s.place = place{seq: h.Seq, hash: h.Hash, size: h.Size}
	switch {
	case st.Size > h.Size:
		err = l.adopt(&s, st.Size)
	case st.Size < h.Size:
		err = l.mendLoss(&s, st.Size)
	default:
		return s, nil
	}
	return s, err
}

func cutNote(n int64) string {
	return fmt.Sprintf("%d bytes of an incomplete record, left by an interrupted write, were cut off the end of the log", n)
}

// adopt takes in what lies behind the head: records whose writer died before it wrote the head, and at most one torn line.
func (l *Log) adopt(s *settled, size int64) error {
	t, err := readTail(l.file, s.place, size)
	if err != nil {
		return err
	}
	if t.foreign > 0 {
		s.notes = append(s.notes, fmt.Sprintf("%d lines that do not continue record %d stand in the log and were left in place", t.foreign, t.place.seq))
	}
	s.place = t.place
	return l.mendEnd(s, t.torn, t.tornWhole)
}

// mendLoss handles a log that is shorter than its head says. The numbers of the lost records are not used again, so the gap can be seen for ever.
func (l *Log) mendLoss(s *settled, size int64) error {
	last, torn, tornWhole, err := lastLink(l.file, size)
	if err != nil {
		return err
	}
	if last.seq < s.head.Seq {
		s.notes = append(s.notes, fmt.Sprintf("records %d to %d, written before, are missing: the log was cut off, or they never reached the disk before power was lost",
			last.seq+1, s.head.Seq))
	}
	s.place.size = size - torn
	return l.mendEnd(s, torn, tornWhole)
}

// mendEnd ends a record that lacks only its line break, and cuts any other unfinished line off.
func (l *Log) mendEnd(s *settled, torn int64, whole bool) error {
	switch {
	case torn == 0:
		return nil
	case whole:
		if _, err := l.file.Write([]byte{'\n'}); err != nil {
			return fmt.Errorf("end the last line of the audit log: %w", err)
		}
		s.place.size += torn + 1
		s.notes = append(s.notes, "the last record lacked its line break and got one")
		return nil
	}
	if err := l.file.Truncate(s.place.size); err != nil {
		return fmt.Errorf("cut off a torn record: %w", err)
	}
	s.cut = torn
	s.notes = append(s.notes, cutNote(torn))
	return nil
}

// tail is what lies behind a place in the log.
type tail struct {
	place     place // after the last record that continues the chain; its size is the end of the last whole line
	foreign   int   // whole lines that do not continue it
	torn      int64 // bytes after the last line break
	tornWhole bool  // they are a whole record without its break; place.seq and place.hash are already that record's
}

// readTail follows the chain from a place to the end of the file, with bounded memory.
func readTail(f io.ReaderAt, from place, size int64) (tail, error) {
	t := tail{place: from}
	lr := newLineReader(io.NewSectionReader(f, from.size, size-from.size), from.size, 0)
	for {
		ln, err := lr.next()
		if errors.Is(err, io.EOF) {
			return t, nil
		}
		if err != nil {
			return t, fmt.Errorf("read the end of the audit log: %w", err)
		}
		lk, ok := readLink(ln.data)
		next := ok && lk.intact && lk.seq == t.place.seq+1 && lk.prev == t.place.hash
		if next {
			t.place.seq, t.place.hash = lk.seq, lk.hash
		}
		switch {
		case !ln.whole:
			t.torn, t.tornWhole = ln.size, next
			return t, nil
		case !next:
			t.foreign++
		}
		t.place.size += ln.size
	}
}

// lastLink reads the last record of a file backwards from size, and how many bytes after the last line break there are.
func lastLink(f *os.File, size int64) (last link, torn int64, tornWhole bool, err error) {
	window := min(size, 2*maxLine)
	buf := make([]byte, window)
	if _, err := f.ReadAt(buf, size-window); err != nil && !errors.Is(err, io.EOF) {
		return link{}, 0, false, fmt.Errorf("read the end of the audit log: %w", err)
	}
	end := bytes.LastIndexByte(buf, '\n')
	rest := buf[end+1:]
	if lk, ok := readLink(rest); ok && lk.intact {
		return lk, int64(len(rest)), true, nil
	}
	if end < 0 {
		return link{}, int64(len(rest)), false, nil
	}
	whole := buf[:end]
	lk, _ := readLink(whole[bytes.LastIndexByte(whole, '\n')+1:])
	return lk, int64(len(rest)), false, nil
}

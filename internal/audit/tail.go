package audit

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"

	"github.com/cofferdam/cofferdam/internal/fault"
)

// Entry is a record and where it stands in the log.
type Entry struct {
	Event  Event
	Offset int64
	Length int32 // with the line break
}

// ErrReplaced says that a log is not the one that was read before: another file lies in its place, or it became shorter.
var ErrReplaced = errors.New("the audit log is another one, or shorter than it was")

// Tail reads a log from an offset on, as others append to it. It is not safe for concurrent use.
type Tail struct {
	path string
	file *os.File
	at   position
}

// OpenTail opens a directory's log to go on from an offset that an earlier Tail returned. ErrReplaced: there is no line that ends there.
func OpenTail(dir string, offset int64) (*Tail, error) {
	file, err := openLog(dir)
	if err != nil {
		return nil, err
	}
	t := &Tail{path: filepath.Join(dir, logName), file: file, at: position{offset: offset}}
	if offset == 0 {
		return t, nil
	}
	var last [1]byte
	if _, err := file.ReadAt(last[:], offset-1); err != nil || last[0] != '\n' {
		if err == nil || errors.Is(err, io.EOF) {
			err = ErrReplaced
		}
		return nil, errors.Join(fmt.Errorf("continue at byte %d: %w", offset, err), file.Close())
	}
	return t, nil
}

// Offset is the end of the last line that Next returned or skipped.
func (t *Tail) Offset() int64 { return t.at.offset }

// Next returns up to most records behind the last, without waiting: none means that the end is reached for now. Lines that are no records are skipped, and
// counted. It has to be called again after ErrReplaced only on a new Tail.
func (t *Tail) Next(most int) (entries []Entry, skipped int, err error) {
	info, err := t.file.Stat()
	if err != nil {
		return nil, 0, fmt.Errorf("examine the audit log: %w", err)
	}
	there, err := os.Lstat(t.path)
	switch {
	case err != nil && !os.IsNotExist(err):
		return nil, 0, fmt.Errorf("examine the audit log: %w", err)
	case err != nil || !os.SameFile(info, there) || info.Size() < t.at.offset:
		return nil, 0, ErrReplaced
	case info.Size() == t.at.offset:
		return nil, 0, nil
	}
	lr := newLineReader(io.NewSectionReader(t.file, t.at.offset, info.Size()-t.at.offset), t.at.offset, t.at.lines)
	for len(entries) < most {
		ln, err := lr.next()
		if errors.Is(err, io.EOF) || err == nil && !ln.whole {
			break
		}
		if err != nil {
			return entries, skipped, fmt.Errorf("read the audit log: %w", err)
		}
		t.at = position{offset: ln.offset + ln.size, lines: ln.number}
		e, err := decode(ln)
		if err != nil {
			skipped++
			continue
		}
		entries = append(entries, Entry{Event: e, Offset: ln.offset, Length: int32(ln.size)})
	}
	return entries, skipped, nil
}

// Close closes the log.
func (t *Tail) Close() error { return t.file.Close() }

// Size is how long a directory's log is; 0 if there is none.
func Size(dir string) (int64, error) {
	info, err := os.Stat(filepath.Join(dir, logName))
	if os.IsNotExist(err) {
		return 0, nil
	}
	if err != nil {
		return 0, fault.New(fault.Unavailable, "the audit log in %s cannot be read", dir).Because(err)
	}
	return info.Size(), nil
}

// Lines returns single records of a log by their place. It is safe for concurrent use; its zero value with Dir set is ready.
type Lines struct {
	Dir string

	mu   sync.Mutex
	file *os.File
}

// Record returns the record with a number that stands at a place: as an event, and as the line that it is, without its break. It is checked to be that record with the
// hash that belongs to it; NotFound otherwise, as the log was changed then.
func (l *Lines) Record(seq uint64, offset int64, length int32) (Event, []byte, error) {
	if length < 1 || length > maxLine+1 || offset < 0 {
		return Event{}, nil, fault.New(fault.NotFound, "record %d is not in the audit log", seq)
	}
	buf := make([]byte, length)
	err := l.readAt(buf, offset)
	if err != nil {
		return Event{}, nil, err
	}
	text, whole := bytes.CutSuffix(buf, []byte{'\n'})
	lk, ok := readLink(text)
	var e Event
	if !whole || !ok || !lk.intact || lk.seq != seq || json.Unmarshal(text, &e) != nil {
		return Event{}, nil, fault.New(fault.NotFound, "record %d does not stand in the audit log as it was written", seq).WithHint("an operator should type: cofferdam audit verify")
	}
	e.clean()
	return e, text, nil
}

// readAt reads from the file that is in the log's place now. A shorter one leaves zeros, which are no record.
func (l *Lines) readAt(buf []byte, offset int64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file != nil {
		mine, err1 := l.file.Stat()
		there, err2 := os.Lstat(filepath.Join(l.Dir, logName))
		if err1 != nil || err2 != nil || !os.SameFile(mine, there) {
			_ = l.file.Close() // it was only read
			l.file = nil
		}
	}
	if l.file == nil {
		file, err := openLog(l.Dir)
		if err != nil {
			return err
		}
		l.file = file
	}
	if _, err := l.file.ReadAt(buf, offset); err != nil && !errors.Is(err, io.EOF) {
		return fault.New(fault.Unavailable, "the audit log cannot be read").Because(err)
	}
	return nil
}

// Close closes the log; a later Record opens it again.
func (l *Lines) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return nil
	}
	file := l.file
	l.file = nil
	return file.Close()
}

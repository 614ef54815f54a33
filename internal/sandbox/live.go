package sandbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/ident"
	"github.com/cofferdam/cofferdam/internal/receipt"
)

// Live is the hold on a run that lives: a lock which the kernel lets go of when the last process that has it ends, however it ends.
type Live struct {
	// Lock is passed to the supervisor too, so that a run counts as live until both are gone.
	Lock *os.File
	// end takes the record of the end; it is open from the start, because the process that writes it may not open files any more.
	end  *os.File
	name string
}

// activeDir holds one lock file for each run that lives or died without a word, so that looking for the dead need not read every record.
func (s *Store) activeDir() string { return filepath.Join(filepath.Dir(s.dir), "active") }

// Begin makes the run's directory and record and marks it live.
func (s *Store) Begin(r Record) (*Live, error) {
	if err := os.MkdirAll(s.activeDir(), 0o700); err != nil {
		return nil, fmt.Errorf("create %s: %w", s.activeDir(), err)
	}
	l := &Live{name: filepath.Join(s.activeDir(), r.Run.String())}
	var err error
	if l.Lock, err = mark(l.name); err != nil {
		return nil, fmt.Errorf("mark the run live: %w", err)
	}
	// The mark stands and is locked before there is a record, so that nobody finds a record without an owner.
	if err := s.Create(r); err != nil {
		return nil, errors.Join(err, os.Remove(l.name), l.Lock.Close())
	}
	if l.end, err = os.OpenFile(s.endFile(r.Run), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("create end record: %w", err), s.Remove(r.Run), os.Remove(l.name), l.Lock.Close())
	}
	// Room for the record of the end, so that a run which could begin can tell how it ended, on a full disk too. Not every file system can promise it.
	_ = unix.Fallocate(int(l.end.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, 4096)
	return l, nil
}

// mark makes a file and locks it. Another process that looks for the dead may come between the two and remove the file: then it is made again.
func mark(name string) (*os.File, error) {
	for {
		f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
		if err != nil {
			return nil, err
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil { // it waits for a look, never for a life: the file is new
			return nil, errors.Join(fmt.Errorf("lock %s: %w", name, err), f.Close())
		}
		if stands(f, name) {
			return f, nil
		}
		_ = f.Close() // nothing is in it
	}
}

// stands says whether an open file is still the one of that name.
func stands(f *os.File, name string) bool {
	ours, err1 := f.Stat()
	there, err2 := os.Stat(name)
	return err1 == nil && err2 == nil && os.SameFile(ours, there)
}

func (s *Store) endFile(run ident.Run) string { return filepath.Join(s.Dir(run), "end.json") }

// End is what is known of a run only afterwards, or while it runs.
type End struct {
	Finished time.Time `json:"finished"`
	How      string    `json:"how"`
	ExitCode int       `json:"exit_code"`
	Weaker   []string  `json:"weaker,omitempty"`
	Erased   []string  `json:"erased,omitempty"`
	Problems []string  `json:"problems,omitempty"`
	// Receipt says of each thing that it had what became of it, Limits in words which limits it met.
	Receipt []receipt.Item `json:"receipt,omitempty"`
	Limits  []string       `json:"limits,omitempty"`
	Changed int            `json:"changed,omitempty"`
	// Collected says that the folder's changes were looked at in order, so that none means none.
	Collected bool `json:"collected,omitempty"`
	// Unclean says that no supervisor confirmed the sandbox gone: what it left is still to be reaped.
	Unclean bool `json:"unclean,omitempty"`
	// Usage is what it used in all.
	Usage Usage `json:"usage,omitzero"`
}

// Usage is how much a run used.
type Usage struct {
	Connections int64  `json:"connections"`
	Allowed     int64  `json:"allowed"`
	Denied      uint64 `json:"denied"`
	In          int64  `json:"bytes_in"`
	Out         int64  `json:"bytes_out"`
}

// Label says what is weaker about a run that begins, so that it is shown while it runs, and known if nobody is left to tell at the end.
func (l *Live) Label(weaker []string) error {
	_, err := l.write(struct {
		Weaker []string `json:"weaker"`
	}{weaker})
	return err
}

// Finish writes the end, once, in one write, so that a reader sees it whole or not at all.
func (l *Live) Finish(e End) error {
	n, err := l.write(e)
	if err != nil {
		return err
	}
	if err := l.end.Truncate(int64(n)); err != nil { // a label may have been longer
		return fmt.Errorf("write end record: %w", err)
	}
	return nil
}

func (l *Live) write(record any) (n int, err error) {
	data, err := json.Marshal(record)
	if err != nil {
		return 0, fmt.Errorf("encode end record: %w", err)
	}
	if n, err = l.end.WriteAt(append(data, '\n'), 0); err != nil {
		return 0, fmt.Errorf("write end record: %w", err)
	}
	return n, nil
}

// Close lets go of the lock. The mark stays if this process may not remove it any more; Settle removes marks of ended runs.
func (l *Live) Close() error { return errors.Join(l.end.Close(), l.Lock.Close()) }

// withEnd adds what the end record says to r.
func (s *Store) withEnd(r Record) Record {
	data, err := os.ReadFile(s.endFile(r.Run))
	var e End
	if err != nil || json.Unmarshal(data, &e) != nil {
		return r // it has not ended, or not in an orderly way
	}
	if e.Finished.IsZero() { // a label
		r.Weaker = e.Weaker
		return r
	}
	r.State, r.Finished, r.How, r.ExitCode, r.Erased, r.Problems = Ended, e.Finished, e.How, e.ExitCode, e.Erased, e.Problems
	r.Collected, r.Unclean, r.Usage, r.Receipt, r.Limits = e.Collected, e.Unclean, e.Usage, e.Receipt, e.Limits
	if r.Changed == 0 {
		r.Changed = e.Changed
	}
	if len(e.Weaker) > 0 {
		r.Weaker = e.Weaker
	}
	return r
}

// Dead is a run whose processes of ours are all gone and which has no end on record, or an unclean one.
type Dead struct {
	Record Record
	lock   *os.File
	name   string
}

// Settle looks at every run that is marked live. Marks of runs that ended in order are removed; those whose owner died are returned, locked for the caller,
// who reaps them and calls Bury. A run that lives is left alone.
func (s *Store) Settle() ([]Dead, error) {
	entries, err := os.ReadDir(s.activeDir())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list live runs: %w", err)
	}
	var dead []Dead
	for _, e := range entries {
		if d, ok := s.settleOne(filepath.Join(s.activeDir(), e.Name()), e.Name()); ok {
			dead = append(dead, d)
		}
	}
	return dead, nil
}

func (s *Store) settleOne(name, text string) (Dead, bool) {
	run, err := ident.ParseRun(text)
	if err != nil {
		return Dead{}, false // not ours
	}
	lock, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return Dead{}, false // removed meanwhile
	}
	if unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil || !stands(lock, name) {
		_ = lock.Close() // it lives, or another looker has removed this mark, and the run that was about to begin has made a new one
		return Dead{}, false
	}
	r, err := s.Load(run)
	if err == nil && (r.State != Ended || r.Unclean) {
		return Dead{Record: r, lock: lock, name: name}, true
	}
	if fault.KindOf(err) == fault.NotFound {
		_ = s.Remove(run) // it died before its record was whole: nothing was started
	}
	_ = os.Remove(name)
	_ = lock.Close()
	return Dead{}, false
}

// Bury writes the end of a dead run and removes its mark.
func (s *Store) Bury(d Dead, e End) error {
	data, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("encode end record: %w", err)
	}
	if err := os.WriteFile(s.endFile(d.Record.Run), append(data, '\n'), 0o600); err != nil {
		return fmt.Errorf("write end record: %w", err)
	}
	half := os.RemoveAll(s.Changes(d.Record.Run) + ".new") // changes that were being collected
	return errors.Join(half, os.Remove(d.name), d.lock.Close())
}

// Release leaves a dead run for the next time.
func (d Dead) Release() { _ = d.lock.Close() }

// IsLive says whether a process holds the run.
func (s *Store) IsLive(run ident.Run) bool {
	lock, err := os.OpenFile(filepath.Join(s.activeDir(), run.String()), os.O_RDWR, 0)
	if err != nil {
		return false
	}
	defer lock.Close()
	return unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil
}

// Remove deletes a run's directory with its record and collected changes. The caller has made sure that it ended.
func (s *Store) Remove(run ident.Run) error { return os.RemoveAll(s.Dir(run)) }

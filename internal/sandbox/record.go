// Package sandbox (CONTROL) keeps the record of each run and knows which of them live: what ps lists, what gc reaps, what diff and apply start from.
package sandbox

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/ident"
	"github.com/cofferdam/cofferdam/internal/receipt"
)

// State is where a run is in its life. The zero value is invalid.
type State string

// The states of a run.
const (
	Running State = "running" // the command runs
	Paused  State = "paused"  // it is stopped and can go on; shown while that is so, never stored
	Ended   State = "ended"   // gone; How says how
)

// Record is one run, as stored in run.json. It holds nothing secret: environment values are not kept.
type Record struct {
	Run       ident.Run `json:"run"`
	State     State     `json:"state"`
	Command   []string  `json:"command"`
	Workspace string    `json:"workspace"`          // host path
	Mode      string    `json:"workspace_mode"`     // overlay, rw, ro or none
	Isolation string    `json:"isolation"`          // level
	Platform  string    `json:"platform,omitempty"` // how gVisor's kernel has programs run, where that is not by systrap
	Image     string    `json:"image,omitempty"`    // digest of the image that was its root; empty: the machine's system directories
	Weaker    []string  `json:"weaker,omitempty"`   // what is weaker than asked for, by name
	// Warm names the sandbox that was taken from a pool, after which its control group is named; empty for one that was started for this run.
	Warm ident.Run `json:"warm,omitempty"`
	// From is the snapshot that it continues, and FromRun the run that this was made of.
	From     string    `json:"from,omitempty"`
	FromRun  ident.Run `json:"from_run,omitempty"`
	UID      int       `json:"uid"`              // who ran it, host uid
	Tenant   string    `json:"tenant,omitempty"` // whose it is, at the service
	Agent    string    `json:"agent,omitempty"`  // likewise
	Started  time.Time `json:"started"`
	Finished time.Time `json:"finished,omitzero"`
	// How says how it ended: "exit 0", "signal 9", "timeout", "memory limit", "killed: supervisor gone", ...
	How      string `json:"how,omitempty"`
	ExitCode int    `json:"exit_code"`
	// Erased lists what was checked to be gone after the end.
	Erased []string `json:"erased,omitempty"`
	// Problems lists what could not be removed.
	Problems []string `json:"problems,omitempty"`
	// Receipt says of each thing that the run had what became of it: what Erased and Problems are drawn from.
	Receipt []receipt.Item `json:"receipt,omitempty"`
	// Limits says in words which limits it met.
	Limits []string `json:"limits,omitempty"`
	// Unclean says that what the run left is still to be reaped; Collected that its changes were looked at in order.
	Unclean   bool `json:"unclean,omitempty"`
	Collected bool `json:"collected,omitempty"`
	// Usage is what it used in all, once it has ended.
	Usage Usage `json:"usage,omitzero"`
	// Changed counts collected workspace changes; Applied and Dropped say what became of them.
	Changed int       `json:"changed,omitempty"`
	Applied time.Time `json:"applied,omitzero"`
	Dropped time.Time `json:"dropped,omitzero"`
}

// Group is the run after which the sandbox's control group is named.
func (r Record) Group() ident.Run { return cmp.Or(r.Warm, r.Run) }

// Store is the directory of all runs of one user. It is safe for use by several processes at once.
type Store struct{ dir string }

// OpenStore returns the store below a state directory, creating runs/ (mode 0700) if absent.
func OpenStore(state string) (*Store, error) {
	dir := filepath.Join(state, "runs")
	err := os.MkdirAll(dir, 0o700)
	if err == nil {
		err = checkOwner(state)
	}
	if err != nil {
		return nil, fault.New(fault.Unavailable, "cannot use the state directory %s", state).
			WithHint("set COFFERDAM_STATE to a directory of your own that nobody else can write").Because(err)
	}
	return &Store{dir: dir}, nil
}

// checkOwner refuses a directory in which others could put records, or put other directories in the place of ours.
func checkOwner(dir string) error {
	var s unix.Stat_t
	if err := unix.Stat(dir, &s); err != nil {
		return &fs.PathError{Op: "stat", Path: dir, Err: err}
	}
	if int(s.Uid) != os.Geteuid() && s.Uid != 0 {
		return fmt.Errorf("%s belongs to user %d", dir, s.Uid)
	}
	if s.Mode&0o022 != 0 {
		return fmt.Errorf("%s can be written by others", dir)
	}
	return nil
}

// Dir returns the directory of one run: run.json, lock, changes/.
func (s *Store) Dir(run ident.Run) string { return filepath.Join(s.dir, run.String()) }

// Changes returns where the collected workspace changes of a run lie.
func (s *Store) Changes(run ident.Run) string { return filepath.Join(s.Dir(run), "changes") }

// Create makes the run's directory and writes its first record.
func (s *Store) Create(r Record) error {
	if err := os.Mkdir(s.Dir(r.Run), 0o700); err != nil {
		return fmt.Errorf("create run directory: %w", err)
	}
	if err := s.Save(r); err != nil {
		return errors.Join(err, s.Remove(r.Run)) // a full disk: nothing is left behind
	}
	return nil
}

// Save replaces the record atomically: a reader sees the old one or the new one, never half.
func (s *Store) Save(r Record) error {
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("encode run record: %w", err)
	}
	name := filepath.Join(s.Dir(r.Run), "run.json")
	if err := os.WriteFile(name+".new", append(data, '\n'), 0o600); err != nil {
		return fmt.Errorf("write run record: %w", err)
	}
	return os.Rename(name+".new", name)
}

// Load reads one record. An unknown run is NotFound.
func (s *Store) Load(run ident.Run) (Record, error) {
	data, err := os.ReadFile(filepath.Join(s.Dir(run), "run.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return Record{}, fault.New(fault.NotFound, "no run %s", run).WithHint("list runs with: cofferdam ps --all")
	}
	if err != nil {
		return Record{}, fmt.Errorf("read run record: %w", err)
	}
	var r Record
	if err := json.Unmarshal(data, &r); err != nil {
		return Record{}, fmt.Errorf("run record %s: %w", run, err)
	}
	return s.withEnd(r), nil
}

// Resolve finds the run that a person means: its name, an unambiguous beginning of it, or "last".
func (s *Store) Resolve(text string) (Record, error) {
	if run, err := ident.ParseRun(text); err == nil {
		return s.Load(run)
	}
	all, err := s.List()
	if err != nil {
		return Record{}, err
	}
	if text == "last" && len(all) > 0 {
		return all[len(all)-1], nil
	}
	var found []Record
	for _, r := range all {
		if text != "" && strings.HasPrefix(r.Run.String(), text) {
			found = append(found, r)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return Record{}, fault.New(fault.NotFound, "no run %.20q", text).WithHint("list runs with: cofferdam ps --all")
	}
	return Record{}, fault.New(fault.Invalid, "%d runs begin with %q", len(found), text).WithHint("type more of the name")
}

// List returns all records, oldest first. A directory without a readable record is left out: it is being made, or is for gc.
func (s *Store) List() ([]Record, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, fmt.Errorf("list runs: %w", err)
	}
	var all []Record
	for _, e := range entries {
		run, err := ident.ParseRun(e.Name())
		if err != nil {
			continue
		}
		if r, err := s.Load(run); err == nil {
			all = append(all, r)
		}
	}
	slices.SortFunc(all, func(a, b Record) int { return a.Started.Compare(b.Started) })
	return all, nil
}

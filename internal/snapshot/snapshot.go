// Package snapshot (CONTROL) keeps snapshots of sandboxes: what is known of each, by its name. What a machine consists of lies beside that and is the supervisor's.
package snapshot

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/ident"
	"github.com/cofferdam/cofferdam/internal/image"
	"github.com/cofferdam/cofferdam/internal/private"
)

// A store is a directory:
//
//	NAME/about.json   what is known of a snapshot; beside it the supervisor's files
//	.making-RUN/      one that is being made, or may be at the end of a run that lives
//	.gone-NAME-*/     one that is being removed
const (
	aboutName = "about.json"
	making    = ".making-"
	gone      = ".gone-"
)

// maxAbout bounds what is read of a store's own file, in bytes.
const maxAbout = 1 << 20

// maxName is how long a name may be, in bytes.
const maxName = 64

// Name is a snapshot's name.
type Name string

// ParseName reads a name: lower-case letters, digits, and between them dots, dashes and underscores.
func ParseName(text string) (Name, error) {
	plain := func(c rune) bool { return c >= 'a' && c <= 'z' || c >= '0' && c <= '9' }
	bad := strings.ContainsFunc(text, func(c rune) bool { return !plain(c) && !strings.ContainsRune("._-", c) })
	if text == "" || len(text) > maxName || bad || !plain(rune(text[0])) {
		return "", fault.New(fault.Invalid, "%.80q is no name of a snapshot", text).WithHint("write lower-case letters and digits, and after the first also . - _, %d at most", maxName)
	}
	return Name(text), nil
}

// Mount is a path of the host that the sandbox had inside, as it was then.
type Mount struct {
	Source string `json:"source"`
	Target string `json:"target"`
}

// Limits are those that a sandbox has in common with the snapshot that it continues.
type Limits struct {
	MilliCPUs int64 `json:"milli_cpus,omitempty"`
	Memory    int64 `json:"memory,omitempty"`
	Disk      int64 `json:"disk,omitempty"`
	Files     int64 `json:"files,omitempty"`
}

// Snapshot is what is known of one. It holds nothing secret that the run was given: neither policy nor credentials nor variables are kept.
type Snapshot struct {
	Name      Name      `json:"name"`
	Run       ident.Run `json:"run"`            // that it was made of
	From      Name      `json:"from,omitempty"` // the snapshot that this run continued
	Command   []string  `json:"command"`
	Isolation string    `json:"isolation"`
	Workspace string    `json:"workspace,omitempty"` // host path, and what writing there does
	Mode      string    `json:"workspace_mode,omitempty"`
	Image     string    `json:"image,omitempty"`  // digest
	RootFS    string    `json:"rootfs,omitempty"` // the tree that was its root instead
	Mounts    []Mount   `json:"mounts,omitempty"`
	Limits    Limits    `json:"limits"`
	// Config is the image's, and Bundle says that it has the list of certificate authorities where runtimes are pointed to.
	Config image.Config `json:"config"`
	Bundle bool         `json:"bundle,omitempty"`
	Made   time.Time    `json:"made,omitzero"` // when it was whole
	Size   int64        `json:"size"`          // bytes that its own files take on the disk
}

// Store is a directory of snapshots. Several processes may use it at once.
type Store struct{ dir string }

// Open opens the store below a state directory, and makes it (mode 0700) where it is absent. It refuses a directory of another user, or that others can look into: what is in it is a
// sandbox's memory.
func Open(state string) (*Store, error) {
	dir := filepath.Join(state, "snapshots")
	if err := private.Dir(dir); err != nil {
		return nil, err
	}
	return &Store{dir: dir}, nil
}

// Dir returns where a snapshot lies.
func (s *Store) Dir(name Name) string { return filepath.Join(s.dir, string(name)) }

// Free refuses a name that is taken.
func (s *Store) Free(name Name) error {
	if _, err := os.Lstat(s.Dir(name)); !errors.Is(err, fs.ErrNotExist) {
		return fault.New(fault.Conflict, "there is a snapshot %s", name).WithHint("choose another name, or remove it: cofferdam snapshot rm %s", name).Because(err)
	}
	return nil
}

// Begin makes the place of a snapshot that may be made of a run that lives, with what is known of it.
func (s *Store) Begin(about Snapshot) (dir string, err error) {
	if err := s.Free(about.Name); err != nil {
		return "", err
	}
	words, err := json.MarshalIndent(about, "", "  ")
	if err != nil {
		return "", fmt.Errorf("describe the snapshot: %w", err)
	}
	dir = filepath.Join(s.dir, making+about.Run.String())
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", fmt.Errorf("make a place for the snapshot: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, aboutName), append(words, '\n'), 0o600); err != nil {
		return "", errors.Join(fmt.Errorf("describe the snapshot: %w", err), os.RemoveAll(dir))
	}
	return dir, nil
}

// Find reads what is known of a snapshot. NotFound: there is none.
func (s *Store) Find(name Name) (Snapshot, error) {
	about, err := s.load(name)
	if errors.Is(err, fs.ErrNotExist) {
		return about, fault.New(fault.NotFound, "there is no snapshot %s", name).WithHint("list them with: cofferdam snapshot list; make one with: cofferdam run --snapshot %s -- COMMAND", name)
	}
	if err != nil {
		return about, fault.New(fault.Unavailable, "the snapshot %s is damaged", name).WithHint("remove it: cofferdam snapshot rm %s", name).Because(err)
	}
	return about, nil
}

func (s *Store) load(name Name) (about Snapshot, err error) {
	f, err := os.Open(filepath.Join(s.Dir(name), aboutName))
	if err != nil {
		return about, err
	}
	defer f.Close()
	d := json.NewDecoder(io.LimitReader(f, maxAbout))
	d.DisallowUnknownFields()
	if err := d.Decode(&about); err != nil {
		return about, err
	}
	entries, err := os.ReadDir(s.Dir(name))
	if err != nil {
		return about, err
	}
	about.Name, about.Size = name, 0
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			return about, err
		}
		if info.ModTime().After(about.Made) {
			about.Made = info.ModTime()
		}
		if stat, ok := info.Sys().(*syscall.Stat_t); ok && stat.Nlink == 1 { // what is an image's too takes nothing more
			about.Size += stat.Blocks * 512
		}
	}
	return about, nil
}

// List returns all snapshots, the newest first. One that is damaged is listed by its name.
func (s *Store) List() ([]Snapshot, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, fmt.Errorf("list snapshots: %w", err)
	}
	list := []Snapshot{}
	for _, e := range entries {
		name, err := ParseName(e.Name())
		if err != nil {
			continue // it is being made or removed
		}
		about, err := s.load(name)
		if errors.Is(err, fs.ErrNotExist) && about.Name == "" {
			if _, err := os.Lstat(s.Dir(name)); err != nil {
				continue // removed meanwhile
			}
		}
		about.Name = name
		list = append(list, about)
	}
	slices.SortStableFunc(list, func(a, b Snapshot) int { return b.Made.Compare(a.Made) })
	return list, nil
}

// Remove removes a snapshot. Sandboxes that continue it already have what they need of it.
func (s *Store) Remove(name Name) error {
	away, err := os.MkdirTemp(s.dir, gone+string(name)+"-")
	if err != nil {
		return fmt.Errorf("remove the snapshot: %w", err)
	}
	err = os.Rename(s.Dir(name), filepath.Join(away, string(name))) // at once, so that nobody finds half of one
	if errors.Is(err, fs.ErrNotExist) {
		_, err = s.Find(name)
	}
	return errors.Join(err, os.RemoveAll(away))
}

// Sweep removes what killed runs and removals have left. live says whether a run's processes may still work there.
func (s *Store) Sweep(live func(ident.Run) bool) error {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return fmt.Errorf("sweep snapshots: %w", err)
	}
	var all []error
	for _, e := range entries {
		text, made := strings.CutPrefix(e.Name(), making)
		run, err := ident.ParseRun(text)
		if made && (err != nil || !live(run)) || strings.HasPrefix(e.Name(), gone) {
			all = append(all, os.RemoveAll(filepath.Join(s.dir, e.Name())))
		}
	}
	return errors.Join(all...)
}

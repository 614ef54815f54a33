// Package pool (CONTROL) keeps sandboxes that are started and nobody's yet, and gives each of them to one caller.
//
// What is guaranteed: a sandbox is given to one claim only, to the same user, in the same surroundings as those in which it was started (see [Surroundings]), for the
// level and root file system that were asked for. What was not given away ends with the pool's process, however that ends, and at the latest when it is older
// than the pool allows; what was given away is the claimer's alone. There are never more than the pool's size.
//
// The pool knows nothing of sandboxes: it is told how to start one, and passes on two descriptors, a connection and a process.
package pool

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/ident"
)

// Key is what all sandboxes of one pool have in common.
type Key struct {
	Level  string `json:"level"`
	RootFS string `json:"rootfs,omitempty"` // directory tree; empty for this machine's own root
}

// name names a pool's files: the level, and a mark of the root file system.
func (k Key) name() string {
	if k.RootFS == "" {
		return k.Level
	}
	sum := sha256.Sum256([]byte(k.RootFS))
	return k.Level + "-" + hex.EncodeToString(sum[:6])
}

// The sizes of a pool.
const (
	DefaultSize = 2
	MaxSize     = 32
)

// DefaultTTL is how old a waiting sandbox becomes before another takes its place: what it was prepared from changes meanwhile.
const DefaultTTL = 10 * time.Minute

// dir is where pools have their files; only their user may enter.
func dir(state string) string { return filepath.Join(state, "pool") }

// LogPath is where the pool of a key writes its log.
func LogPath(state string, k Key) string { return filepath.Join(dir(state), k.name()+".log") }

func lockPath(state string, k Key) string { return filepath.Join(dir(state), k.name()+".lock") }

func socketPath(state string, k Key) string { return filepath.Join(dir(state), k.name()+".sock") }

func markDir(state string) string { return filepath.Join(dir(state), "waiting") }

// Mark is the file that stands for one waiting sandbox. It is locked as long as its supervisor lives; the claimer removes it once the run's record names the sandbox.
func Mark(state string, name ident.Run) string { return filepath.Join(markDir(state), name.String()) }

// makeDir makes the directories, and refuses one that others can enter.
func makeDir(state string) error {
	if err := os.MkdirAll(markDir(state), 0o700); err != nil {
		return fault.New(fault.Unavailable, "cannot make %s", dir(state)).Because(err)
	}
	var s unix.Stat_t
	if err := unix.Lstat(dir(state), &s); err != nil || s.Mode&unix.S_IFMT != unix.S_IFDIR || int(s.Uid) != os.Geteuid() || s.Mode&0o077 != 0 {
		return fault.New(fault.Denied, "others can enter the directory %s", dir(state)).WithHint("type: chmod 700 %s", dir(state)).Because(err)
	}
	return nil
}

// at calls do with a name for a socket that fits into a socket's address, which holds only 107 bytes: the directory is named by its descriptor.
func at(state string, k Key, do func(name string) error) error {
	d, err := os.OpenFile(dir(state), unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer d.Close()
	return do("/proc/self/fd/" + strconv.Itoa(int(d.Fd())) + "/" + filepath.Base(socketPath(state, k)))
}

// hold makes a file, if it is not there, and locks it; nil if somebody else has it.
func hold(name string) (*os.File, error) {
	for {
		f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			return nil, err
		}
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
			return nil, f.Close()
		}
		if stands(f, name) {
			return f, nil
		}
		_ = f.Close() // its owner removed it in between
	}
}

// stands says whether an open file is still the one of that name.
func stands(f *os.File, name string) bool {
	ours, err1 := f.Stat()
	there, err2 := os.Stat(name)
	return err1 == nil && err2 == nil && os.SameFile(ours, there)
}

// Sweep removes what waiting sandboxes left whose processes are all gone: reap is called for each of them. It may be called at any time, by any process of the user.
func Sweep(state string, reap func(ident.Run) error) error {
	entries, err := os.ReadDir(markDir(state))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list waiting sandboxes: %w", err)
	}
	var problems []error
	for _, e := range entries {
		if run, err := ident.ParseRun(e.Name()); err == nil {
			problems = append(problems, sweepOne(Mark(state, run), run, reap))
		}
	}
	return errors.Join(problems...)
}

func sweepOne(mark string, run ident.Run, reap func(ident.Run) error) error {
	f, err := os.OpenFile(mark, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // its claimer removed it
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil || !stands(f, mark) {
		return nil // its supervisor lives
	}
	if err := reap(run); err != nil {
		return fmt.Errorf("clean up after the waiting sandbox %s: %w", run, err)
	}
	return os.Remove(mark)
}

// Keys lists the pools of a user that have left files, whether they live or not.
func Keys(state string) ([]Key, error) {
	entries, err := os.ReadDir(dir(state))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list pools: %w", err)
	}
	var keys []Key
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".lock") {
			continue
		}
		data, err := os.ReadFile(filepath.Join(dir(state), e.Name()))
		var k Key
		if err != nil || json.Unmarshal(data, &k) != nil || k.name()+".lock" != e.Name() {
			continue // it begins, or ends
		}
		keys = append(keys, k)
	}
	return keys, nil
}

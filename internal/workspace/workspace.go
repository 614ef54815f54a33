// Package workspace (SANDBOX) takes what a run changed in its workspace out of the overlay, shows it, and applies it to the host's folder if a person says so.
//
// What lies in the overlay was written by a hostile program: names, targets, modes, sizes and depths are data to be recorded, never followed.
// Three promises hold. Nothing outside the workspace is read or written, whatever the change list or the folder contains, also while the folder
// is being changed by others. Nothing is overwritten that a person changed since the run ended, unless told so. Files that make the host's tools
// run something (see rules.go) are set apart, and applied only if asked for by name.
package workspace

import (
	"fmt"
	"slices"

	"github.com/cofferdam/cofferdam/internal/fault"
)

// Kind says what lies at a path. The zero value is Absent.
type Kind string

// The kinds of nodes that a change can describe. Everything else (sockets, pipes, devices) is skipped by Collect.
const (
	Absent  Kind = ""
	File    Kind = "file"
	Dir     Kind = "dir"
	Symlink Kind = "symlink"
)

const (
	permBits    = 0o777
	specialBits = 0o7000 // setuid, setgid, sticky
	modeBits    = permBits | specialBits
)

// Node is the state of one path. For what the workspace was, UID and GID are the host's; for what a run made, they are the ids inside.
type Node struct {
	Kind Kind   `json:"kind"`
	Mode uint32 `json:"mode"` // the twelve permission bits
	UID  uint32 `json:"uid,omitempty"`
	GID  uint32 `json:"gid,omitempty"`
	Size int64  `json:"size,omitempty"` // files only
	// SHA256 is the hex digest of a file: of all its bytes, or, if it holds 64 KiB of zeros somewhere, of a description that leaves them out. It is empty for a file of the workspace that could not be read, or was too large to hash only to
	// detect conflicts; then size and modification time stand in for it.
	SHA256 string `json:"sha256,omitempty"`
	Target Name   `json:"target,omitempty"` // symlinks only
	MTime  int64  `json:"mtime"`            // seconds; a hostile clock may say anything
	Nsec   int64  `json:"mtime_nsec,omitempty"`
}

// Op is what a change does to a path. The zero value is invalid.
type Op string

// The operations.
const (
	Add    Op = "add"
	Modify Op = "modify"
	Delete Op = "delete"
)

// Change is one path whose state after the run differs from the workspace.
type Change struct {
	Path Name `json:"path"`
	Was  Node `json:"was,omitzero"` // the workspace when the run ended
	Now  Node `json:"now,omitzero"` // what the run made of it
	// Raced says that the host's file changed while the run lasted, so the run did not start from what would be overwritten.
	Raced bool `json:"raced,omitempty"`
	// Danger is set by Open if this change is set apart. It is never stored.
	Danger Danger `json:"-"`
}

// Op says what the change does.
func (c Change) Op() Op {
	switch {
	case c.Was.Kind == Absent:
		return Add
	case c.Now.Kind == Absent:
		return Delete
	}
	return Modify
}

// Below says whether the change is at or below one of the paths; no paths mean everything.
func (c Change) Below(paths []Name) bool { return selected(paths, c.Path) }

// hasContent says whether the bytes of the new file are stored: they are unless only mode or owner changed.
func (c Change) hasContent() bool {
	return c.Now.Kind == File && (c.Was.Kind != File || c.Was.SHA256 != c.Now.SHA256)
}

// gained returns the setuid, setgid and sticky bits that the workspace did not have before.
func (c Change) gained() uint32 {
	bits := c.Now.Mode & specialBits
	if c.Was.Kind == c.Now.Kind {
		bits &^= c.Was.Mode
	}
	return bits
}

// Skip is a path that was seen and not collected.
type Skip struct {
	Path   Name   `json:"path"`
	Reason string `json:"reason"`
}

// Limits bounds one collection. Zero fields take the defaults of DefaultLimits.
type Limits struct {
	Entries   int   // paths looked at, changed or not
	Changes   int   // changed paths, and such as were skipped: what is kept in memory and listed
	NameBytes int64 // sum of the paths and symlink targets of those, of the directories still to be looked at, and of the names of one directory
	Bytes     int64 // sum of the sizes of all changed files, holes included
	FileBytes int64 // size of one file; a larger one is skipped with a reason
}

// DefaultLimits are far above real work and far below what would hurt the host: a collection takes some 400 MiB of memory at most, and SHA-256 of
// 64 GiB about a minute.
func DefaultLimits() Limits {
	return Limits{Entries: 1_000_000, Changes: 300_000, NameBytes: 64 << 20, Bytes: 64 << 30, FileBytes: 16 << 30}
}

func (l Limits) orDefault() Limits {
	d := DefaultLimits()
	if l.Entries > 0 {
		d.Entries = l.Entries
	}
	if l.Changes > 0 {
		d.Changes = l.Changes
	}
	if l.NameBytes > 0 {
		d.NameBytes = l.NameBytes
	}
	if l.Bytes > 0 {
		d.Bytes = l.Bytes
	}
	if l.FileBytes > 0 {
		d.FileBytes = l.FileBytes
	}
	return d
}

func (l Limits) entriesError() error {
	return fault.New(fault.TooMany, "the run touched more than %d paths in its workspace; none were collected", l.Entries)
}

func (l Limits) changesError() error {
	return fault.New(fault.TooMany, "the run changed more than %d paths in its workspace; none were collected", l.Changes)
}

func (l Limits) namesError() error {
	return fault.New(fault.TooMany, "the names of what the run changed in its workspace hold more than %d bytes; none were collected", l.NameBytes)
}

func (l Limits) bytesError() error {
	return fault.New(fault.TooMany, "the changed files of the run hold more than %d bytes; none were collected", l.Bytes)
}

// Summary counts what Collect found.
type Summary struct {
	Added, Modified, Deleted, Skipped int
	Bytes                             int64 // sum of the sizes of files with new content
}

// Changed is the number of changes.
func (s Summary) Changed() int { return s.Added + s.Modified + s.Deleted }

func (s *Summary) count(c Change) {
	switch c.Op() {
	case Add:
		s.Added++
	case Delete:
		s.Deleted++
	case Modify:
		s.Modified++
	}
}

// validate refuses a change that Collect cannot have written. What it lets through is safe to hand to Apply.
func (c Change) validate() error {
	if err := c.Path.validate(); err != nil {
		return err
	}
	if c.Was.Kind == Absent && c.Now.Kind == Absent {
		return fmt.Errorf("%s changes nothing", c.Path)
	}
	if err := c.Was.validate(); err != nil {
		return fmt.Errorf("%s, before: %w", c.Path, err)
	}
	if err := c.Now.validate(); err != nil {
		return fmt.Errorf("%s, after: %w", c.Path, err)
	}
	if c.Now.Kind == File && c.Now.SHA256 == "" {
		return fmt.Errorf("%s has no digest", c.Path)
	}
	return nil
}

func (n Node) validate() error {
	switch {
	case !slices.Contains([]Kind{Absent, File, Dir, Symlink}, n.Kind):
		return fmt.Errorf("unknown kind %.20q", string(n.Kind))
	case n.Kind == Absent && n != Node{}:
		return fmt.Errorf("nothing is there, yet it has properties")
	case n.Mode&^modeBits != 0:
		return fmt.Errorf("mode %#o has unknown bits", n.Mode)
	case n.Nsec < 0 || n.Nsec >= 1e9:
		return fmt.Errorf("%d is no count of nanoseconds", n.Nsec)
	case n.Size < 0 || n.Kind != File && n.Size != 0:
		return fmt.Errorf("size %d does not fit a %s", n.Size, n.Kind)
	case n.SHA256 != "" && (n.Kind != File || !isDigest(n.SHA256)):
		return fmt.Errorf("%.80q is no digest of a file", n.SHA256)
	case (n.Kind == Symlink) != (n.Target != ""):
		return fmt.Errorf("only a symlink has a target, and it needs one")
	case n.Kind == Symlink:
		return n.Target.validateTarget()
	}
	return nil
}

func isDigest(s string) bool {
	if len(s) != 64 {
		return false
	}
	for _, b := range []byte(s) {
		if (b < '0' || b > '9') && (b < 'a' || b > 'f') {
			return false
		}
	}
	return true
}

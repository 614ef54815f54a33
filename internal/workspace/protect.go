package workspace

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// Guard says what the launcher mounts over a workspace that the sandbox may write directly (mode rw). All paths are relative to the workspace.
// It cannot do what overlay mode does: names that do not exist yet cannot be guarded without making them on the host, which this package does not
// do. docs/workspace.md lists what remains open.
type Guard struct {
	// Pins are directories to bind onto themselves, writable, parents first. A mount point cannot be renamed or removed, so the sandbox cannot
	// move a guarded path away and put another in its place.
	Pins []Name
	// ReadOnly are files and directories to bind onto themselves read-only, after all pins.
	ReadOnly []Name
	// Open are dangerous paths that no mount can guard: symlinks, which a mount would follow.
	Open []Name
	// Missing are names at the workspace's root that do not exist, so that the sandbox can create them.
	Missing []Name
	// Partial says that the workspace is too large to be searched, so that guarded paths deep inside may have been missed.
	Partial bool
}

const (
	maxGuardEntries = 50_000 // names looked at
	maxGuardDepth   = 8
	maxGuardMounts  = 512 // the kernel's limit is 100,000 for all mounts of a namespace; each costs start-up time
)

// Protected finds what in a workspace is dangerous to change, by the same table that sets changes apart. Inside .git, where work is committed, it
// is what runs programs; the rest stays writable.
func Protected(dir string, unprotected []string) (Guard, error) {
	t, err := openTree(dir)
	if err != nil {
		return Guard{}, fmt.Errorf("open workspace: %w", err)
	}
	defer t.root.Close()
	s := &guardSearch{tree: t, m: newMatcher(unprotected), pins: map[Name]bool{}}
	for todo := []Name{""}; len(todo) > 0; {
		below, err := s.directory(todo[0])
		if err != nil {
			return Guard{}, err
		}
		todo = append(todo[1:], below...)
	}
	s.missing()
	for p := range s.pins {
		s.guard.Pins = append(s.guard.Pins, p)
	}
	slices.SortFunc(s.guard.Pins, compareNames)
	slices.SortFunc(s.guard.ReadOnly, compareNames)
	return s.guard, nil
}

type guardSearch struct {
	tree  tree
	m     *matcher
	guard Guard
	pins  map[Name]bool
	seen  int
}

// directory looks at one directory and returns those below it to look at, breadth first: what lies near the root matters most.
func (s *guardSearch) directory(dir Name) ([]Name, error) {
	f, err := s.tree.list(dir)
	if err != nil {
		if dir == "" {
			return nil, err
		}
		return nil, nil // what cannot be read on the host cannot be searched; another mount guards itself
	}
	defer f.Close()
	names, err := f.Readdirnames(maxGuardEntries - s.seen + 1)
	if s.seen += len(names); s.seen > maxGuardEntries || len(s.guard.ReadOnly) > maxGuardMounts {
		s.guard.Partial = true
		return nil, nil
	}
	if len(names) == 0 && err != nil && dir == "" && !errors.Is(err, io.EOF) {
		return nil, err
	}
	var below []Name
	for _, name := range names {
		st, err := stat(f, name)
		if err != nil {
			continue
		}
		kind, _ := kindOf(st.Mode)
		if s.entry(dir.join(name), kind) {
			below = append(below, dir.join(name))
		}
	}
	return below, nil
}

// entry judges one path, and says whether to look inside.
func (s *guardSearch) entry(p Name, kind Kind) (descend bool) {
	folded := fold(p)
	if s.m.isUnprotected(p) {
		return false
	}
	_, on := s.m.find(folded)
	_, into := s.m.findInto(folded)
	inGit := slices.Contains(folded, ".git")
	switch {
	case kind == Symlink && (on || into):
		s.guard.Open = append(s.guard.Open, p)
	case kind == Dir && folded[len(folded)-1] == ".git":
		return true // its parts are judged one by one
	case inGit && s.m.isGitSafe(folded[slices.Index(folded, ".git")+1:]):
	case on && kind == Dir && slices.ContainsFunc(s.m.unprotected, p.contains):
		return true // what is in it is guarded one by one, so that the exception can be written
	case on && kind != Absent:
		s.guard.ReadOnly = append(s.guard.ReadOnly, p)
		for dir, _ := p.split(); dir != ""; dir, _ = dir.split() {
			s.pins[dir] = true
		}
	case kind == Dir && folded[len(folded)-1] != "node_modules":
		if len(folded) < maxGuardDepth {
			return true
		}
		s.guard.Partial = true
	}
	return false
}

// missing lists the plain names of the table that the workspace's root does not have.
func (s *guardSearch) missing() {
	have := map[string]bool{}
	for _, p := range append(s.guard.ReadOnly, s.guard.Open...) {
		have[strings.Join(fold(p), "/")] = true
	}
	for _, r := range append(s.m.rules, gitMissing()...) {
		name := strings.TrimSuffix(r.rule.pattern, "/**")
		if strings.ContainsAny(name, "*?[") || name == ".git" || have[name] || s.m.isUnprotected(Name(name)) {
			continue
		}
		s.guard.Missing = append(s.guard.Missing, Name(name))
	}
}

// gitMissing names the files of .git that matter most if they are not there.
func gitMissing() []parsedRule {
	var all []parsedRule
	for _, name := range []string{".git/hooks", ".git/config", ".git/config.worktree", ".git/info/attributes", ".git/modules"} {
		all = append(all, parsedRule{rule: rule{pattern: name, reason: gitRuns}})
	}
	return all
}

package workspace

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/fault"
)

// Dangerous says what Apply does with changes that are set apart. The zero value leaves them.
type Dangerous uint8

// What can be done with dangerous changes.
const (
	LeaveDangerous Dangerous = iota
	IncludeDangerous
)

// Overwrite says what Apply does where a person changed the workspace since. The zero value refuses everything then.
type Overwrite uint8

// What can be done about conflicts.
const (
	RefuseConflicts Overwrite = iota
	OverwriteConflicts
)

// ApplyOptions choose what Apply applies.
type ApplyOptions struct {
	Paths     []Name // only these and what is in them; none means all
	Dangerous Dangerous
	Overwrite Overwrite
	DryRun    bool // decide and report, write nothing
	// Record, if set, is called with what is about to be applied before the first write. If it fails, nothing is applied.
	Record func(Report) error
}

// Conflict is a path that stands in the way.
type Conflict struct {
	Path   Name   `json:"path"`
	Reason string `json:"reason"`
}

// Report says what Apply did, or would do.
type Report struct {
	Applied   []Change
	Already   int        // changes that the workspace held before
	SetApart  []Change   // dangerous, and left
	Kept      []Conflict // directories not removed or replaced, because something in them was left
	Stripped  []Name     // applied without their setuid, setgid or sticky bit
	Conflicts []Conflict
}

// step is one change to make, with what the workspace holds now.
type step struct {
	Change
	present Node
	mode    uint32 // what to set
}

// plan chooses the changes to apply, sorted by path.
func (c *Changes) plan(o ApplyOptions, r *Report) ([]*step, error) {
	if err := c.checkPaths(o.Paths); err != nil {
		return nil, err
	}
	index := make(map[Name]int, len(c.list))
	chosen := make([]bool, len(c.list))
	for i, change := range c.list {
		index[change.Path] = i
		chosen[i] = selected(o.Paths, change.Path)
		if change.Danger.Rule != "" && o.Dangerous != IncludeDangerous {
			chosen[i] = false
		}
	}
	for i, change := range c.list {
		if chosen[i] && change.Now.Kind != Absent {
			c.chooseParents(change.Path, index, chosen)
		}
	}
	for i, change := range c.list {
		if !chosen[i] {
			c.keepParents(change.Path, index, chosen, r)
		}
	}
	for i, change := range c.list {
		if !chosen[i] && change.Danger.Rule != "" && selected(o.Paths, change.Path) {
			r.SetApart = append(r.SetApart, change)
		}
	}
	return c.steps(chosen, o, r), nil
}

// steps makes the plan of what was chosen, without the mode bits that give a program another's rights.
func (c *Changes) steps(chosen []bool, o ApplyOptions, r *Report) []*step {
	var steps []*step
	for i, change := range c.list {
		if !chosen[i] {
			continue
		}
		s := &step{Change: change, mode: change.Now.Mode}
		if bits := change.gained(); bits != 0 && o.Dangerous != IncludeDangerous {
			s.mode &^= bits
			if change.Now.Kind == File {
				r.Stripped = append(r.Stripped, change.Path)
			}
		}
		steps = append(steps, s)
	}
	return steps
}

// checkPaths refuses a path that names nothing, which is a mistake in typing.
func (c *Changes) checkPaths(paths []Name) error {
	for _, p := range paths {
		found := false
		for _, change := range c.list {
			if found = p.contains(change.Path); found {
				break
			}
		}
		if !found {
			return fault.New(fault.NotFound, "the run did not change %s", p).WithHint("paths are relative to the workspace, as cofferdam diff --name-only prints them")
		}
	}
	return nil
}

// chooseParents adds the directories that a chosen path needs. An empty directory is harmless even where what it usually holds is not; putting it
// in place of something else is not.
func (c *Changes) chooseParents(p Name, index map[Name]int, chosen []bool) {
	for dir, _ := p.split(); dir != ""; dir, _ = dir.split() {
		i, changed := index[dir]
		if !changed || c.list[i].Now.Kind != Dir || c.list[i].Was.Kind == Dir {
			continue
		}
		if c.list[i].Danger.Rule == "" || c.list[i].Was.Kind == Absent {
			chosen[i] = true
		}
	}
}

// keepParents takes back the removal of directories that something stays in.
func (c *Changes) keepParents(p Name, index map[Name]int, chosen []bool, r *Report) {
	for dir, _ := p.split(); dir != ""; dir, _ = dir.split() {
		i, changed := index[dir]
		if !changed || !chosen[i] || c.list[i].Was.Kind != Dir || c.list[i].Now.Kind == Dir {
			continue
		}
		chosen[i] = false
		r.Kept = append(r.Kept, Conflict{dir, "stays, because " + p.String() + " in it does"})
	}
}

// node describes what lies at a path now. Nothing there, or no way there without following a link, is Absent.
func (t tree) node(ctx context.Context, c *copier, p Name, hash bool) (Node, error) {
	parent, name := p.split()
	dir, err := t.hold(parent)
	if isGone(err) {
		return Node{}, nil
	}
	if err != nil {
		return Node{}, err
	}
	defer dir.Close()
	st, err := stat(dir, name)
	if isGone(err) {
		return Node{}, nil
	}
	if err != nil {
		return Node{}, err
	}
	n, reason := nodeOf(st)
	switch {
	case reason != "":
		return Node{}, errors.New("in the workspace: " + reason)
	case n.Kind == Symlink:
		n.Target, err = readLink(dir, name)
	case n.Kind == File && hash:
		f, st, openErr := openFile(dir, name)
		if openErr != nil {
			// Unreadable for its owner as well: the digest stays empty, size and time decide.
			if errors.Is(openErr, unix.EACCES) {
				return n, nil
			}
			return n, openErr
		}
		defer f.Close()
		n.Size = st.Size
		n.SHA256, err = c.copy(ctx, nil, f, n.Size)
	}
	return n, err
}

// sameState compares what lies there with what is expected, owners aside. Files of which no digest is known are compared by size and time.
func sameState(have, want Node) bool {
	if have.Kind != want.Kind {
		return false
	}
	switch want.Kind {
	case File:
		if have.Size != want.Size || have.Mode != want.Mode {
			return false
		}
		if want.SHA256 == "" || have.SHA256 == "" {
			return have.MTime == want.MTime && have.Nsec == want.Nsec
		}
		return have.SHA256 == want.SHA256
	case Dir:
		const inherited = 0o2000 // a new directory takes setgid from its parent
		return have.Mode&^inherited == want.Mode&^inherited
	}
	return have.Target == want.Target
}

// check looks at every path of the plan and returns the steps that are left to do. What stands in the way goes to the report.
func (a *applier) check(ctx context.Context, steps []*step, r *Report) ([]*step, error) {
	planned := make(map[Name]Kind, len(steps))
	for _, s := range steps {
		planned[s.Path] = s.Now.Kind
	}
	parents := map[Name]string{}
	var todo []*step
	for _, s := range steps {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		reason := a.obstacle(ctx, s, planned, parents)
		if reason == done {
			r.Already++
			continue
		}
		if reason != "" {
			r.Conflicts = append(r.Conflicts, Conflict{s.Path, reason})
		}
		todo = append(todo, s)
	}
	return todo, ctx.Err()
}

// done is the obstacle of a step that has been made before.
const done = "done"

// obstacle says what stands in the way of a step: nothing (""), that it is done, or a reason for people.
func (a *applier) obstacle(ctx context.Context, s *step, planned map[Name]Kind, parents map[Name]string) string {
	var err error
	s.present, err = a.tree.node(ctx, a.copy, s.Path, s.Was.SHA256 != "" || s.Now.Kind == File)
	if err != nil {
		return inert(err.Error())
	}
	goal := s.Now
	if goal.Kind == File || goal.Kind == Dir {
		goal.Mode = s.mode
	}
	switch {
	case sameState(s.present, goal) && a.ownerIsRight(s):
		return done
	case s.Raced:
		return "it changed on the host while the run lasted"
	case !sameState(s.present, s.Was):
		return fmt.Sprintf("the run ended with %s here, now there is %s", describe(s.Was), describe(s.present))
	case s.Now.Kind == Absent && s.Was.Kind == Dir, s.Was.Kind == Dir && s.Now.Kind != Dir:
		return a.notEmpty(s.Path, planned)
	case s.Now.Kind != Absent:
		return a.noParent(s.Path, planned, parents)
	}
	return ""
}

func describe(n Node) string {
	switch n.Kind {
	case Absent:
		return "nothing"
	case File:
		return fmt.Sprintf("a file of %d bytes, mode %04o, %.12s", n.Size, n.Mode, n.SHA256)
	case Symlink:
		return "a symlink to " + n.Target.String()
	}
	return fmt.Sprintf("a directory, mode %04o", n.Mode)
}

// notEmpty names something in a directory to be removed that the run did not remove.
func (a *applier) notEmpty(p Name, planned map[Name]Kind) string {
	dir, err := a.tree.list(p)
	if err != nil {
		return inert(err.Error())
	}
	defer dir.Close()
	for {
		names, err := dir.Readdirnames(1024)
		for _, name := range names {
			if kind, known := planned[p.join(name)]; !known || kind != Absent {
				return "it holds " + p.join(name).String() + ", which the run did not delete"
			}
		}
		if len(names) == 0 {
			if errors.Is(err, io.EOF) {
				return ""
			}
			return inert(err.Error())
		}
	}
}

// noParent says that the directory of a path is not there and will not be made.
func (a *applier) noParent(p Name, planned map[Name]Kind, parents map[Name]string) string {
	dir, _ := p.split()
	if dir == "" || planned[dir] == Dir {
		return ""
	}
	if reason, known := parents[dir]; known {
		return reason
	}
	reason := ""
	if f, err := a.tree.hold(dir); err == nil {
		f.Close()
	} else if errors.Is(err, unix.EXDEV) {
		reason = "another file system is mounted at or above " + dir.String()
	} else {
		reason = dir.String() + " is no directory of the workspace any more"
	}
	parents[dir] = reason
	return reason
}

// ownerIsRight says whether the owner is as wished; only root can do something about it.
func (a *applier) ownerIsRight(s *step) bool {
	if os.Geteuid() != 0 || s.Now.Kind == Absent || s.Was.Kind != s.Now.Kind {
		return true
	}
	uid, gid := a.owner(s)
	return uid == s.present.UID && gid == s.present.GID
}

package workspace

import (
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Danger says why a change is set apart. The zero value means that it is not.
type Danger struct {
	Rule   string `json:"rule"`   // the pattern of the rule, or a word for a built-in one
	Reason string `json:"reason"` // what an attacker gains
}

// Names of the dangers that no pattern expresses.
const (
	ruleNewRepo  = "new-repository"
	ruleBareRepo = "bare-repository"
	ruleLinkOut  = "symlink-out"
	ruleUsed     = "used-by-git-or-link"
)

// judge sets the Danger of each change, by its own final path: what a file was called before, or was moved with, makes no difference.
func judge(list []Change, workspace string, unprotected []string) {
	j := &judger{m: newMatcher(unprotected), workspace: workspace, now: make(map[Name]Kind, len(list)), bare: map[Name]bool{}, gitDirs: map[Name]bool{}}
	if t, err := openTree(workspace); err == nil { // without a workspace nothing can be applied either
		defer t.root.Close()
		j.tree = &t
		j.used = j.pointers()
	}
	for _, c := range list {
		j.now[c.Path] = c.Now.Kind
		if c.Was.Kind == Dir && c.Now.Kind == Dir {
			continue
		}
		j.noteGit(c)
	}
	for _, c := range list {
		j.noteBare(c)
	}
	for i := range list {
		list[i].Danger = j.danger(list[i])
	}
	j.inherit(list)
}

// inherit sets apart everything in a directory that is itself new and set apart: it cannot be there without.
func (j *judger) inherit(list []Change) {
	from := map[Name]Danger{}
	for i, c := range list {
		if c.Danger.Rule == "" && !j.m.isUnprotected(c.Path) {
			for dir, _ := c.Path.split(); dir != ""; dir, _ = dir.split() {
				if d, found := from[dir]; found {
					list[i].Danger = d
					break
				}
			}
		}
		if d := list[i].Danger; d.Rule != "" && c.Was.Kind != Dir {
			from[c.Path] = d
		}
	}
}

type judger struct {
	m         *matcher
	workspace string
	tree      *tree
	now       map[Name]Kind
	gitDirs   map[Name]bool // .git directories that the run made or took apart
	bare      map[Name]bool // directories that git would take for a repository
	used      map[Name]string
}

// noteGit remembers a .git that is new, gone or without its HEAD: nothing in it is safe then.
func (j *judger) noteGit(c Change) {
	folded := fold(c.Path)
	n := len(folded)
	if folded[n-1] == ".git" {
		j.gitDirs[c.Path] = true
	}
	if n > 1 && folded[n-2] == ".git" && folded[n-1] == "head" && (c.Now.Kind != File || c.Was.Kind != File) {
		parent, _ := c.Path.split()
		j.gitDirs[parent] = true
	}
}

// noteBare remembers a directory, of any name, that has what git looks for: HEAD with objects and refs, or with commondir.
func (j *judger) noteBare(c Change) {
	if c.Now.Kind == Absent {
		return
	}
	dir, base := c.Path.split()
	if parent, name := dir.split(); foldPart(name) == "hooks" {
		j.checkBare(parent)
	}
	switch foldPart(base) {
	case "head", "config", "config.worktree", "objects", "refs", "commondir", "hooks":
		j.checkBare(dir)
	}
}

func (j *judger) checkBare(dir Name) {
	if _, known := j.bare[dir]; known {
		return
	}
	j.bare[dir] = j.exists(dir, "HEAD") && (j.exists(dir, "objects") && j.exists(dir, "refs") || j.exists(dir, "commondir"))
}

// exists says whether something would lie at a path if everything were applied.
func (j *judger) exists(dir Name, base string) bool {
	if kind, changed := j.now[dir.join(base)]; changed {
		return kind != Absent
	}
	if j.tree == nil {
		return false
	}
	f, err := j.tree.resolve(dir.join(base), unix.O_PATH)
	if err != nil {
		return false
	}
	f.Close()
	return true
}

// danger judges one change.
func (j *judger) danger(c Change) Danger {
	folded := fold(c.Path)
	if j.m.isUnprotected(c.Path) {
		return Danger{}
	}
	if d := j.repository(c, folded); d.Rule != "" {
		return d
	}
	if at := slices.Index(folded, ".git"); at >= 0 && at < len(folded)-1 && c.Now.Kind != Symlink && j.m.isGitSafe(folded[at+1:]) {
		return Danger{}
	}
	if r, found := j.m.find(folded); found && !isGitDirItself(c, folded) {
		return Danger{r.pattern, r.reason}
	}
	for dir := c.Path; dir != ""; dir, _ = dir.split() {
		if by, found := j.used[dir]; found {
			return Danger{ruleUsed, reasonUsed + by}
		}
	}
	if c.Now.Kind == Symlink {
		return j.link(c, folded)
	}
	return Danger{}
}

// isGitDirItself says that only the mode of an existing .git directory changes.
func isGitDirItself(c Change, folded []string) bool {
	return folded[len(folded)-1] == ".git" && c.Was.Kind == Dir && c.Now.Kind == Dir
}

// repository judges by the directories that a change lies in. What is safe in a repository is so only in a directory that is called .git and was
// there before; git also takes one of any other name for a repository when it is run inside.
func (j *judger) repository(c Change, folded []string) Danger {
	for dir, n := c.Path, len(folded); n > 0; n-- {
		switch {
		case j.gitDirs[dir]:
			if kind, changed := j.now[dir]; changed && kind == Absent || c.Now.Kind == Absent {
				return Danger{".git/**", reasonGitGone}
			}
			return Danger{ruleNewRepo, reasonNewRepo}
		case j.bare[dir] && folded[n-1] != ".git":
			return Danger{ruleBareRepo, reasonBareRepo}
		}
		dir, _ = dir.split()
	}
	if j.bare[""] {
		return Danger{ruleBareRepo, reasonBareRepo}
	}
	return Danger{}
}

// link judges a symlink: by where it leads, and by what would be looked for through it.
func (j *judger) link(c Change, folded []string) Danger {
	if r, found := j.m.findInto(folded); found {
		return Danger{r.pattern, reasonLinkOver + r.pattern + ": " + r.reason}
	}
	target := string(c.Now.Target)
	if strings.HasPrefix(target, "/") {
		clean := path.Clean(target)
		if !strings.Contains(target, "/../") && (clean == j.workspace || strings.HasPrefix(clean, j.workspace+"/")) && j.workspace != "" {
			return Danger{}
		}
		return Danger{ruleLinkOut, reasonLinkOut}
	}
	depth := len(folded) - 1
	down := false
	for part := range strings.SplitSeq(target, "/") {
		switch {
		case part == "" || part == ".":
		case part != "..":
			down = true
		case down:
			return Danger{ruleLinkOut, reasonLinkVague}
		default:
			if depth--; depth < 0 {
				return Danger{ruleLinkOut, reasonLinkOut}
			}
		}
	}
	dir, _ := c.Path.split()
	if r, found := j.m.find(fold(Name(path.Join(string(dir), target)))); found {
		return Danger{r.pattern, reasonLinkTo + r.pattern + ": " + r.reason}
	}
	return Danger{}
}

// pointers finds paths of the workspace that get their power from elsewhere in it: where .git/config says that hooks, includes or the file system
// monitor are, and where existing symlinks at dangerous places lead (CLAUDE.md -> docs/agents.md).
func (j *judger) pointers() map[Name]string {
	used := map[Name]string{}
	for _, s := range j.gitConfig() {
		base := ""
		if strings.HasPrefix(s.key, "include") {
			base = ".git"
		}
		j.use(used, base, s.value, s.key+" in .git/config")
	}
	j.links(used, "")
	return used
}

// maxLinkScan bounds how many names of one directory are looked at for symlinks.
const maxLinkScan = 4096

// links looks for symlinks at dangerous places of one directory, and in those below it that lead to dangerous places.
func (j *judger) links(used map[Name]string, dir Name) {
	f, err := j.tree.list(dir)
	if err != nil {
		return
	}
	defer f.Close()
	names, _ := f.Readdirnames(maxLinkScan) // an unreadable directory has no links that anybody follows
	for _, name := range names {
		at := dir.join(name)
		folded := fold(at)
		_, on := j.m.find(folded)
		_, into := j.m.findInto(folded)
		if !on && !into {
			continue
		}
		st, err := stat(f, name)
		if err != nil {
			continue
		}
		switch kind, _ := kindOf(st.Mode); {
		case kind == Dir && into:
			j.links(used, at)
		case kind == Symlink:
			if target, err := readLink(f, name); err == nil {
				j.use(used, string(dir), string(target), "the symlink "+at.String())
			}
		}
	}
}

// use remembers a path of the workspace, if that is where a value leads.
func (j *judger) use(used map[Name]string, base, value, by string) {
	if filepath.IsAbs(value) {
		rest, inside := strings.CutPrefix(path.Clean(value), j.workspace+"/")
		if !inside {
			return
		}
		base, value = "", rest
	}
	p := Name(path.Join(base, value))
	if p.validate() == nil {
		used[p] = by
	}
}

type setting struct{ key, value string }

// gitConfig reads the settings of .git/config that name files to run or include. It reads lines, as git does, but no continuation: a person's own
// configuration is read here, not an attacker's, since a change of it is set apart.
func (j *judger) gitConfig() []setting {
	dir, err := j.tree.hold(".git")
	if err != nil {
		return nil
	}
	defer dir.Close()
	f, _, err := openFile(dir, "config")
	if err != nil {
		return nil
	}
	defer f.Close()
	var found []setting
	section := ""
	for _, line := range readLines(f) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "[") {
			section = strings.ToLower(strings.Trim(strings.Fields(line + " ")[0], "[]"))
			continue
		}
		key, value, _ := strings.Cut(line, "=")
		key, value = strings.ToLower(strings.TrimSpace(key)), strings.Trim(strings.TrimSpace(value), `"`)
		switch {
		case section == "core" && (key == "hookspath" || key == "fsmonitor"), (section == "include" || section == "includeif") && key == "path":
			found = append(found, setting{section + "." + key, value})
		}
	}
	return found
}

// readLines reads the first MiB of a file.
func readLines(f *os.File) []string {
	buf := make([]byte, 1<<20)
	n, _ := f.ReadAt(buf, 0) // a short read is the normal case
	return strings.Split(string(buf[:n]), "\n")
}

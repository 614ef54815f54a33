package pack

import (
	"context"
	"slices"

	"github.com/cofferdam/cofferdam/internal/gateway/git/wire"
)

// Paths says which paths are protected. Paths are from the root of the repository, without a slash at either end; the root itself is "".
type Paths interface {
	// Protected is asked of files.
	Protected(path string) bool
	// ProtectedBelow reports whether a path below a directory may be protected.
	ProtectedBelow(dir string) bool
}

// Bounds of one comparison.
const (
	maxCompared = 500_000 // directories
	maxChanged  = 100     // paths that are named; more are not looked for
)

// Changed returns the protected paths at which any commit that the push brings has something else than each of its parents: at most a hundred. A merge that
// takes what one parent has changes nothing, and a first commit changes everything that it has. Commits that the upstream has already are not looked at.
func (p *Pack) Changed(ctx context.Context, u *Upstream, tips []wire.ID, paths Paths) ([]string, error) {
	x := &comparison{pack: p, upstream: u, paths: paths, found: map[string]bool{}}
	var heads []wire.ID
	for _, tip := range tips {
		id, hasHistory, err := p.peel(tip)
		if err != nil {
			return nil, err
		}
		if hasHistory {
			heads = append(heads, id)
		}
	}
	inside, boundary, err := p.reach(heads...)
	if err != nil {
		return nil, err
	}
	if err := x.ask(ctx, boundary); err != nil { // what the pack does not have the upstream must have: else it would go by unseen
		return nil, err
	}
	for left := inside; len(left) > 0; {
		var again []wire.ID
		for _, id := range left {
			whole, err := x.commit(id)
			if err != nil {
				return nil, err
			}
			if !whole {
				again = append(again, id)
			}
			if len(x.found) >= maxChanged {
				return x.list(), nil
			}
		}
		if err := x.ask(ctx, x.wanted); err != nil {
			return nil, err
		}
		x.wanted, left = nil, again
	}
	return x.list(), nil
}

// comparison is one look for changed files. What it does not have it notes, and it is done again for those commits once the upstream was asked: a level of
// directories each time.
type comparison struct {
	pack     *Pack
	upstream *Upstream
	paths    Paths
	found    map[string]bool
	wanted   []wire.ID
	compared int
}

func (x *comparison) list() []string {
	var all []string
	for path := range x.found {
		all = append(all, path)
	}
	slices.Sort(all)
	return all
}

// ask gets objects from the upstream.
func (x *comparison) ask(ctx context.Context, ids []wire.ID) error {
	slices.SortFunc(ids, func(a, b wire.ID) int { return slices.Compare(a.Bytes(), b.Bytes()) })
	ids = slices.Compact(ids)
	if len(ids) == 0 {
		return nil
	}
	return x.upstream.fetch(ctx, ids)
}

// commit compares a commit of the pack with its parents. whole is false if trees are wanted that only the upstream has.
func (x *comparison) commit(id wire.ID) (whole bool, err error) {
	c, _, err := x.pack.Commit(id)
	if err != nil {
		return false, err
	}
	var parents []wire.ID
	for _, parent := range c.Parents {
		t, err := x.root(parent)
		if err != nil {
			return false, err
		}
		parents = append(parents, t)
	}
	return x.directory("", c.Tree, parents)
}

// root returns the tree of a commit of the pack, or of one that was fetched.
func (x *comparison) root(id wire.ID) (wire.ID, error) {
	c, ok, err := x.pack.Commit(id)
	if ok || err != nil {
		return c.Tree, err
	}
	b, ok, err := x.upstream.find(id, commit)
	if err != nil {
		return wire.ID{}, err
	}
	if !ok {
		return wire.ID{}, errUnknown
	}
	c, err = parseCommit(x.pack.format, b)
	return c.Tree, err
}

// directory compares a directory with the same one of each parent. The zero id is a directory that is not there.
func (x *comparison) directory(path string, mine wire.ID, parents []wire.ID) (whole bool, err error) {
	if slices.Contains(parents, mine) || mine == (wire.ID{}) && len(parents) == 0 {
		return true, nil
	}
	if x.compared++; x.compared > maxCompared {
		return false, ErrTooLarge
	}
	own, whole, err := x.tree(mine)
	if err != nil {
		return false, err
	}
	theirs := make([]map[string]Entry, len(parents))
	for i, parent := range parents {
		t, have, err := x.tree(parent)
		if err != nil {
			return false, err
		}
		theirs[i], whole = t, whole && have
	}
	if !whole {
		return false, nil
	}
	names := map[string]bool{}
	for _, t := range append(theirs, own) {
		for name := range t {
			names[name] = true
		}
	}
	for name := range names {
		done, err := x.entry(join(path, name), own[name], of(theirs, name))
		if err != nil {
			return false, err
		}
		whole = whole && done
	}
	return whole, nil
}

func join(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}

// of returns what each parent has under a name; the zero entry is nothing.
func of(trees []map[string]Entry, name string) []Entry {
	all := make([]Entry, len(trees))
	for i, t := range trees {
		all[i] = t[name]
	}
	return all
}

// entry compares one path.
func (x *comparison) entry(path string, mine Entry, parents []Entry) (whole bool, err error) {
	if slices.Contains(parents, mine) {
		return true, nil
	}
	if (mine.isFile() || slices.ContainsFunc(parents, Entry.isFile)) && x.paths.Protected(path) {
		x.found[path] = true
		return true, nil
	}
	if !x.paths.ProtectedBelow(path) {
		return true, nil
	}
	below := make([]wire.ID, len(parents))
	for i, e := range parents {
		below[i] = subtree(e)
	}
	if subtree(mine) == (wire.ID{}) && !slices.ContainsFunc(below, func(id wire.ID) bool { return id != wire.ID{} }) {
		return true, nil // files only
	}
	return x.directory(path, subtree(mine), below)
}

// subtree is the tree that an entry names, or none.
func subtree(e Entry) wire.ID {
	if e.IsDir() {
		return e.ID
	}
	return wire.ID{}
}

// tree returns a tree by names. have is false if it is wanted from the upstream.
func (x *comparison) tree(id wire.ID) (entries map[string]Entry, have bool, err error) {
	if id == (wire.ID{}) {
		return nil, true, nil
	}
	b, ok, err := x.pack.get(id, tree)
	if err == nil && !ok {
		b, ok, err = x.upstream.find(id, tree)
	}
	if err != nil {
		return nil, false, err
	}
	if !ok {
		x.wanted = append(x.wanted, id)
		return nil, false, nil
	}
	list, err := parseTree(x.pack.format, b)
	if err != nil {
		return nil, false, err
	}
	entries = make(map[string]Entry, len(list))
	for _, e := range list {
		entries[e.Name] = e
	}
	return entries, true, nil
}

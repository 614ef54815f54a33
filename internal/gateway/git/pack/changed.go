package pack

import (
	"context"
	"maps"
	"slices"
	"strings"

	"github.com/cofferdam/cofferdam/internal/gateway/git/wire"
)

// Paths says what is protected. A path is from the root of the repository and has no slash at either end; the root is "". Names are as they are in the
// repository, which may be any bytes.
type Paths interface {
	// Protected is asked of what is no folder: a file, a link, a submodule.
	Protected(path string) bool
	// ProtectedBelow reports whether a path below a folder may be protected.
	ProtectedBelow(dir string) bool
}

// Bounds of one comparison.
const (
	maxChanged  = 100    // paths that are named
	maxFindings = 10_000 // changes that are looked into
	maxPath     = 8192   // bytes of a path: trees can be nested deeper than any checkout
)

// Changed returns the protected paths, at most a hundred of them, at which a commit of the pack has something else than every one of its parents, or nothing where each
// of them has something. A merge that takes what one parent has changes nothing; a first commit changes all that it has.
//
// All commits of the pack are looked at, not only those that tips lead to, since another push could set a ref to one of them. Those that are on a branch or a
// tag of the upstream already may change what they like: git sends them again where its idea of the upstream is old. What the pack builds on must be
// on a branch or a tag of the upstream (ErrForeign); so must a tip that is not in the pack.
func (p *Pack) Changed(ctx context.Context, u *Upstream, tips []wire.ID, paths Paths) ([]string, error) {
	parents, others, err := p.outside(tips)
	if err != nil {
		return nil, err
	}
	if all := append(others, parents...); len(all) > 0 {
		trusted, err := u.trusts(ctx, all)
		if err != nil {
			return nil, err
		}
		if !trusted {
			return nil, ErrForeign
		}
	}
	if len(parents) > 0 {
		if err := u.commits(ctx, parents); err != nil {
			return nil, err
		}
	}
	x := &comparison{pack: p, upstream: u, paths: paths, missing: map[wire.ID]bool{}}
	return x.run(ctx)
}

// outside returns the commits that the pack builds on, and the tips that are not in it.
func (p *Pack) outside(tips []wire.ID) (parents, others []wire.ID, err error) {
	seen := map[wire.ID]bool{}
	for slot := range uint32(p.kept.records.len) {
		if p.kept.kind(slot) != commitKind {
			continue
		}
		c, _, err := p.Commit(p.kept.id(slot))
		if err != nil {
			return nil, nil, err
		}
		for _, parent := range c.Parents {
			if parentSlot, here := p.kept.find(parent); here && p.kept.kind(parentSlot) == commitKind || seen[parent] {
				continue
			}
			if seen[parent] = true; len(seen) > p.limits.Asked {
				return nil, nil, tooLarge("a push that builds on more than %d commits", p.limits.Asked)
			}
			parents = append(parents, parent)
		}
	}
	for _, tip := range tips {
		id, err := p.peel(tip)
		if err != nil {
			return nil, nil, err
		}
		if _, here := p.kept.find(id); !here && !seen[id] {
			seen[id] = true
			others = append(others, id)
		}
	}
	return parents, others, nil
}

// comparison is one look for changed paths.
type comparison struct {
	pack     *Pack
	upstream *Upstream
	paths    Paths
	found    []finding
	compared int
	asked    int

	later   []folder // they lack trees
	missing map[wire.ID]bool
}

// finding is a protected path that a commit changes.
type finding struct {
	commit wire.ID
	path   string
}

// folder is a folder of a commit and what its parents have at its path. The zero id is none.
type folder struct {
	commit  wire.ID
	path    string
	own     wire.ID
	parents []wire.ID
}

// run compares every commit of the pack. Trees that only the upstream has are asked for together, a level of folders at a time.
func (x *comparison) run(ctx context.Context) ([]string, error) {
	for slot := range uint32(x.pack.kept.records.len) {
		if x.pack.kept.kind(slot) != commitKind {
			continue
		}
		if err := x.commit(x.pack.kept.id(slot)); err != nil {
			return nil, err
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
	}
	for len(x.later) > 0 && len(x.found) < maxFindings {
		if x.asked += len(x.missing); x.asked > x.pack.limits.Asked {
			return nil, tooLarge("more than %d trees of the upstream would have to be looked at", x.pack.limits.Asked)
		}
		if err := x.upstream.trees(ctx, slices.Collect(maps.Keys(x.missing))); err != nil {
			return nil, err
		}
		again := x.later
		x.later = nil
		clear(x.missing)
		for _, f := range again {
			if err := x.folder(f); err != nil {
				return nil, err
			}
		}
	}
	return x.settle(ctx)
}

// settle leaves out what was found in commits that the upstream has on a branch or a tag.
func (x *comparison) settle(ctx context.Context) ([]string, error) {
	if len(x.found) == 0 {
		return nil, nil
	}
	commits := map[wire.ID]bool{}
	for _, f := range x.found {
		commits[f.commit] = true
	}
	known, err := x.upstream.has(ctx, slices.Collect(maps.Keys(commits)))
	if err != nil {
		return nil, err
	}
	if len(known) > 0 {
		trusted, err := x.upstream.trusts(ctx, known)
		if err != nil {
			return nil, err
		}
		for _, id := range known {
			commits[id] = !trusted
		}
	}
	paths := map[string]bool{}
	for _, f := range x.found {
		if commits[f.commit] {
			paths[f.path] = true
		}
	}
	if len(paths) == 0 && len(x.found) >= maxFindings {
		return nil, tooLarge("more than %d changes that the upstream has already", maxFindings)
	}
	list := slices.Sorted(maps.Keys(paths))
	return list[:min(len(list), maxChanged)], nil
}

// commit compares one commit with its parents.
func (x *comparison) commit(id wire.ID) error {
	c, _, err := x.pack.Commit(id)
	if err != nil {
		return err
	}
	f := folder{commit: id, own: c.Tree}
	for _, parent := range c.Parents {
		of, ok, err := x.pack.Commit(parent)
		if err == nil && !ok {
			of, ok, err = x.upstream.commit(parent)
		}
		if err != nil {
			return err
		}
		if !ok {
			return ErrMissing
		}
		f.parents = append(f.parents, of.Tree)
	}
	if len(f.parents) == 0 {
		f.parents = []wire.ID{{}}
	}
	return x.folder(f)
}

// folder compares one folder.
func (x *comparison) folder(f folder) error {
	if slices.Contains(f.parents, f.own) || !x.paths.ProtectedBelow(f.path) || len(x.found) >= maxFindings {
		return nil
	}
	if len(f.path) > maxPath {
		return tooLarge("folders within folders, %d bytes of names", len(f.path))
	}
	own, have, err := x.tree(f.own)
	if err != nil {
		return err
	}
	theirs := make([][]entry, len(f.parents))
	for i, id := range f.parents {
		t, ok, err := x.tree(id)
		if err != nil {
			return err
		}
		theirs[i], have = t, have && ok
	}
	if !have {
		x.later = append(x.later, f)
		return nil
	}
	if x.compared += 1 + len(theirs); x.compared > x.pack.limits.Compared {
		return tooLarge("more than %d trees would have to be compared", x.pack.limits.Compared)
	}
	return x.names(f, own, theirs)
}

// names compares what stands under each name that the folder or that of the first parent has: what neither has is the same in both.
func (x *comparison) names(f folder, own []entry, theirs [][]entry) error {
	before := make([]entry, len(theirs))
	compare := func(name string, e entry) error {
		for i, t := range theirs {
			before[i] = lookup(t, name)
		}
		return x.entry(folder{commit: f.commit, path: join(f.path, name)}, e, before)
	}
	for _, e := range own {
		if err := compare(e.name, e); err != nil {
			return err
		}
	}
	for _, e := range theirs[0] {
		if lookup(own, e.name) == (entry{}) {
			if err := compare(e.name, entry{}); err != nil {
				return err
			}
		}
	}
	return nil
}

func join(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}

// lookup finds a name in a tree, which is sorted as if the names of folders ended in a slash. The zero entry is none.
func lookup(t []entry, name string) entry {
	for _, mode := range [...]uint32{0100644, modeTree} {
		i, ok := slices.BinarySearchFunc(t, name, func(e entry, name string) int {
			return strings.Compare(e.sorted(), (&entry{mode: mode, name: name}).sorted())
		})
		if ok {
			return t[i]
		}
	}
	return entry{}
}

// sorted is the name by which trees are sorted.
func (e *entry) sorted() string {
	if e.mode == modeTree {
		return e.name + "/"
	}
	return e.name
}

// entry compares one path: what stands there itself, and what is below it.
func (x *comparison) entry(f folder, own entry, parents []entry) error {
	if slices.Contains(parents, own) {
		return nil
	}
	sameLeaf := false
	f.own = own.subtree()
	for _, parent := range parents {
		sameLeaf = sameLeaf || parent.leaf() == own.leaf()
		f.parents = append(f.parents, parent.subtree())
	}
	if !sameLeaf && x.paths.Protected(f.path) {
		x.found = append(x.found, finding{f.commit, f.path})
	}
	return x.folder(f)
}

// subtree is the folder that an entry is, or none.
func (e entry) subtree() wire.ID {
	if e.mode == modeTree {
		return e.id
	}
	return wire.ID{}
}

// leaf is what an entry is, if it is no folder.
func (e entry) leaf() entry {
	if e.mode == modeTree {
		return entry{}
	}
	return e
}

// tree returns a tree; ok is false where it must be asked for first.
func (x *comparison) tree(id wire.ID) (entries []entry, ok bool, err error) {
	if id == (wire.ID{}) {
		return nil, true, nil
	}
	entries, ok, err = x.pack.tree(id)
	if err == nil && !ok {
		entries, ok, err = x.upstream.tree(id)
	}
	if err == nil && !ok {
		x.missing[id] = true
	}
	return entries, ok, err
}

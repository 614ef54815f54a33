package pack

import (
	"context"
	"maps"
	"slices"

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
	maxChanged  = 100      // paths that are named
	maxFindings = 10_000   // changes that are looked into
	maxPath     = 4096     // bytes of a path: trees can be nested deeper than any checkout (PATH_MAX)
	maxAtOnce   = 18 << 20 // bytes of trees that are compared with each other
	maxHeld     = 16 << 20 // bytes of what is still to be compared
	maxParents  = 256      // of one commit: the largest merge of Linux has 66
	perTree     = 4 << 10  // what reading a tree counts for, besides its bytes
	perName     = 32       // what looking at a name in it counts for
	perChange   = 4 << 10  // what asking whether a path is protected counts for
)

// Changed returns the protected paths, at most a hundred of them, at which a commit of the pack has something else than every one of its parents, or nothing where each
// of them has something. A merge that takes what one parent has changes nothing; a first commit changes all that it has.
//
// All commits of the pack are looked at, not only those that tips lead to, since another push could set a ref to one of them. Those that are on a branch or a
// tag of the upstream already may change what they like: git sends them again where its idea of the upstream is old. What the pack builds on must be
// on a branch or a tag of the upstream (ErrForeign); so must a tip that is not in the pack.
func (p *Pack) Changed(ctx context.Context, u *Upstream, tips []wire.ID, paths Paths) ([]string, error) {
	parents, others, err := p.outside(ctx, tips)
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
func (p *Pack) outside(ctx context.Context, tips []wire.ID) (parents, others []wire.ID, err error) {
	seen := map[wire.ID]bool{}
	for slot := range uint32(p.kept.records.len) {
		if p.kept.kind(slot) != commitKind {
			continue
		}
		if err := ctx.Err(); err != nil {
			return nil, nil, err
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

// comparison is one look for changed paths. It has at hand only the trees of one folder; folders below are put off.
type comparison struct {
	pack     *Pack
	upstream *Upstream
	paths    Paths
	found    []finding
	compared int64
	asked    int

	open    []folder // still to be compared
	later   []folder // they lack trees
	missing map[wire.ID]bool
	held    int // bytes of both
	trees   [][]byte
	cursors []cursor
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

// tree is its own (0), or that of a parent.
func (f *folder) tree(i int) wire.ID {
	if i == 0 {
		return f.own
	}
	return f.parents[i-1]
}

// weight is about how much memory it takes.
func (f *folder) weight() int { return 160 + len(f.path) + 33*len(f.parents) }

// run compares every commit of the pack. Trees that only the upstream has are asked for together, a level of folders at a time.
func (x *comparison) run(ctx context.Context) ([]string, error) {
	for slot := range uint32(x.pack.kept.records.len) {
		if x.pack.kept.kind(slot) != commitKind {
			continue
		}
		if err := x.commit(x.pack.kept.id(slot)); err != nil {
			return nil, err
		}
		if err := x.work(ctx); err != nil {
			return nil, err
		}
	}
	if err := x.finish(ctx); err != nil {
		return nil, err
	}
	return x.settle(ctx)
}

// finish compares what is open, and what lacks trees once the upstream was asked for them.
func (x *comparison) finish(ctx context.Context) error {
	if err := x.work(ctx); err != nil {
		return err
	}
	for len(x.later) > 0 && len(x.found) < maxFindings {
		if x.asked += len(x.missing); x.asked > x.pack.limits.Asked {
			return tooLarge("more than %d trees of the upstream would have to be looked at", x.pack.limits.Asked)
		}
		if err := x.upstream.trees(ctx, slices.Collect(maps.Keys(x.missing))); err != nil {
			return err
		}
		x.open, x.later = x.later, x.open[:0]
		clear(x.missing)
		if err := x.work(ctx); err != nil {
			return err
		}
	}
	return nil
}

// work compares what is open, and what that opens, the deepest first.
func (x *comparison) work(ctx context.Context) error {
	for len(x.open) > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		last := len(x.open) - 1
		f := x.open[last]
		x.open = x.open[:last]
		x.held -= f.weight()
		if err := x.folder(f); err != nil {
			return err
		}
	}
	return nil
}

// hold puts a folder off.
func (x *comparison) hold(list *[]folder, f folder) error {
	if x.held += f.weight(); x.held > maxHeld {
		return tooLarge("too many folders would have to be compared")
	}
	*list = append(*list, f)
	return nil
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

// commit opens one commit and its parents.
func (x *comparison) commit(id wire.ID) error {
	c, _, err := x.pack.Commit(id)
	if err != nil {
		return err
	}
	if len(c.Parents) > maxParents {
		return tooLarge("a merge of more than %d commits", maxParents)
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
	return x.enter(f)
}

// enter opens a folder if a protected path in it may have changed.
func (x *comparison) enter(f folder) error {
	if slices.Contains(f.parents, f.own) || !x.paths.ProtectedBelow(f.path) || len(x.found) >= maxFindings {
		return nil
	}
	if len(f.path) > maxPath {
		return tooLarge("folders within folders, %d bytes of names", len(f.path))
	}
	return x.hold(&x.open, f)
}

// folder compares one folder.
func (x *comparison) folder(f folder) error {
	if len(x.found) >= maxFindings {
		return nil
	}
	whole := true
	for i := range 1 + len(f.parents) {
		if id := f.tree(i); id != (wire.ID{}) && !x.pack.hasTree(id) && !x.upstream.hasTree(id) {
			x.missing[id] = true
			whole = false
		}
	}
	if !whole {
		return x.hold(&x.later, f)
	}
	if err := x.load(&f); err != nil {
		return err
	}
	return x.names(&f)
}

// load has the folder's own tree at hand, and then those of its parents.
func (x *comparison) load(f *folder) error {
	for n := 1 + len(f.parents); len(x.trees) < n; {
		x.trees, x.cursors = append(x.trees, nil), append(x.cursors, cursor{})
	}
	total := 0
	for i := range 1 + len(f.parents) {
		content, err := x.tree(f.tree(i), x.trees[i])
		if err != nil {
			return err
		}
		if total += len(content); total > maxAtOnce {
			return tooLarge("trees of more than %d bytes would have to be compared with each other", maxAtOnce)
		}
		x.cursors[i] = cursor{rest: content}
		if x.trees[i] = content; cap(content) > 1<<20 {
			x.trees[i] = nil
		}
	}
	return x.spend(total + perTree*(1+len(f.parents)))
}

// spend counts work.
func (x *comparison) spend(n int) error {
	if x.compared += int64(n); x.compared > x.pack.limits.Compared {
		return tooLarge("too many trees would have to be compared")
	}
	return nil
}

// tree reads a tree, which is there, into a buffer.
func (x *comparison) tree(id wire.ID, buf []byte) ([]byte, error) {
	if id == (wire.ID{}) {
		return buf[:0], nil
	}
	content, ok, err := x.pack.tree(id, buf)
	if err == nil && !ok {
		content, ok, err = x.upstream.tree(id, buf)
	}
	if err == nil && !ok {
		err = ErrMissing
	}
	return content, err
}

// names goes through the trees at hand side by side, as they are sorted. A file and a folder of one name are two things, one of which is not there.
func (x *comparison) names(f *folder) error {
	all := x.cursors[:1+len(f.parents)]
	for i := range all {
		if err := all[i].next(x.pack.format); err != nil {
			return err
		}
	}
	at := make([]bool, len(all)) // which have the name
	for {
		if err := x.spend(perName * len(all)); err != nil {
			return err
		}
		least := -1
		for i := range all {
			at[i] = false
			if all[i].mode == 0 {
				continue
			}
			order := -1
			if least >= 0 {
				order = compareNames(all[i].name, all[i].mode, all[least].name, all[least].mode)
			}
			if order < 0 {
				clear(at[:i])
				least = i
			}
			at[i] = order <= 0
		}
		if least < 0 {
			return nil
		}
		if !unchanged(all, at) {
			if err := x.differs(f, all, at, least); err != nil {
				return err
			}
		}
		for i := range all {
			if !at[i] {
				continue
			}
			if err := all[i].next(x.pack.format); err != nil {
				return err
			}
		}
	}
}

// unchanged reports whether the first has what one of the others has, or neither has it.
func unchanged(all []cursor, at []bool) bool {
	for i := 1; i < len(all); i++ {
		if at[0] == at[i] && (!at[0] || all[0].same(&all[i])) {
			return true
		}
	}
	return false
}

// differs takes up a name under which there is something else than in each parent.
func (x *comparison) differs(f *folder, all []cursor, at []bool, least int) error {
	path := string(all[least].name)
	if f.path != "" {
		path = f.path + "/" + path
	}
	if err := x.spend(perChange * (1 + len(path)/128)); err != nil { // patterns are compared with the whole path
		return err
	}
	if all[least].mode != modeTree {
		if len(x.found) < maxFindings && x.paths.Protected(path) {
			x.found = append(x.found, finding{f.commit, path})
		}
		return nil
	}
	below := folder{commit: f.commit, path: path, parents: make([]wire.ID, len(f.parents))}
	if at[0] {
		below.own, _ = wire.NewID(all[0].sum)
	}
	for i := range f.parents {
		if at[1+i] {
			below.parents[i], _ = wire.NewID(all[1+i].sum)
		}
	}
	return x.enter(below)
}

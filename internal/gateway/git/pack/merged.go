package pack

import (
	"context"
	"maps"
	"slices"

	"github.com/cofferdam/cofferdam/internal/gateway/git/wire"
)

// maxSources bounds what an update may merge, and what its merges may have in common.
const maxSources = 16

// Overwritten returns the protected paths, at most a hundred of them, at which an update of a branch sets something else than merging would have: old is an ancestor of
// what it is set to. Changed lets a merge take what any one parent has, which may be what a file was long ago, or nothing; so for a branch that goes on, what is
// merged may change a path only if the branch itself has there what both had when they parted.
func (p *Pack) Overwritten(ctx context.Context, u *Upstream, old, to wire.ID, paths Paths) ([]string, error) {
	changed, err := p.differ(ctx, u, to, old, paths)
	if err != nil || len(changed) == 0 {
		return nil, err
	}
	merged, _, err := p.walk(ctx, u, to, wire.ID{})
	if err != nil {
		return nil, err
	}
	merged = slices.DeleteFunc(merged, func(id wire.ID) bool { return id == old })
	if len(merged) > maxSources {
		return nil, tooLarge("an update that merges more than %d commits", maxSources)
	}
	for _, source := range merged {
		if len(changed) == 0 {
			break
		}
		if err := p.takenFrom(ctx, u, source, old, to, paths, changed); err != nil {
			return nil, err
		}
	}
	list := slices.Sorted(maps.Keys(changed))
	return list[:min(len(list), maxChanged)], nil
}

// takenFrom takes out of changed what a merge of source rightly changes.
func (p *Pack) takenFrom(ctx context.Context, u *Upstream, source, old, to wire.ID, paths Paths, changed map[string]bool) error {
	bases, err := u.bases(ctx, old, source)
	if err != nil || len(bases) == 0 {
		return err // without common history there is nothing that the branch did not change itself
	}
	kept, err := p.differ(ctx, u, to, source, paths)
	if err != nil {
		return err
	}
	for _, base := range bases {
		own, err := p.differ(ctx, u, old, base, paths)
		if err != nil {
			return err
		}
		maps.Copy(kept, own)
	}
	maps.DeleteFunc(changed, func(path string, _ bool) bool { return !kept[path] })
	return nil
}

// differ returns the protected paths at which two commits have different things.
func (p *Pack) differ(ctx context.Context, u *Upstream, a, b wire.ID, paths Paths) (map[string]bool, error) {
	differ := map[string]bool{}
	if a == b {
		return differ, nil
	}
	own, err := p.root(ctx, u, a)
	if err != nil {
		return nil, err
	}
	other, err := p.root(ctx, u, b)
	if err != nil {
		return nil, err
	}
	x := &comparison{pack: p, upstream: u, paths: paths, missing: map[wire.ID]bool{}}
	if err := x.enter(folder{commit: a, own: own, parents: []wire.ID{other}}); err != nil {
		return nil, err
	}
	if err := x.finish(ctx); err != nil {
		return nil, err
	}
	if len(x.found) >= maxFindings {
		return nil, tooLarge("more than %d protected files that are different", maxFindings)
	}
	for _, f := range x.found {
		differ[f.path] = true
	}
	return differ, nil
}

// root returns the tree of a commit, wherever that is.
func (p *Pack) root(ctx context.Context, u *Upstream, id wire.ID) (wire.ID, error) {
	c, ok, err := p.Commit(id)
	if !ok && err == nil {
		c, ok, err = u.commit(id)
	}
	if !ok && err == nil {
		if err = u.commits(ctx, []wire.ID{id}); err == nil {
			c, ok, err = u.commit(id)
		}
	}
	if !ok && err == nil {
		err = ErrMissing
	}
	return c.Tree, err
}

// bases returns the best common ancestors of two commits that the upstream has, as git-merge-base --all does: none, if their histories have nothing in common.
func (u *Upstream) bases(ctx context.Context, a, b wire.ID) ([]wire.ID, error) {
	if err := u.fetch(ctx, question{want: []wire.ID{a}, have: []wire.ID{b}, filter: "tree:0"}, maxMemory); err != nil {
		return nil, err
	}
	own := u.packs[len(u.packs)-1] // what leads to a and not to b
	if own.Objects() == 0 {
		return []wire.ID{a}, nil
	}
	common, _, err := own.walk(ctx, u, a, wire.ID{})
	if err != nil {
		return nil, err
	}
	if len(common) > maxSources {
		return nil, tooLarge("histories that met more than %d times", maxSources)
	}
	for i := 0; i < len(common) && len(common) > 1; {
		others := slices.Concat(common[:i:i], common[i+1:])
		older, err := u.reachable(ctx, common[i], others)
		if err != nil {
			return nil, err
		}
		if older {
			common = others
			continue
		}
		i++
	}
	return common, nil
}

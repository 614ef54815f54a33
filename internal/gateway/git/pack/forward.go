package pack

import (
	"context"

	"github.com/cofferdam/cofferdam/internal/gateway/git/wire"
)

// reach walks from a commit through the commits of the pack. It returns those, and at which commits the pack ends: those are the upstream's.
func (p *Pack) reach(tips ...wire.ID) (inside []wire.ID, boundary []wire.ID, err error) {
	seen := map[wire.ID]bool{}
	open := append([]wire.ID(nil), tips...)
	for len(open) > 0 {
		id := open[len(open)-1]
		open = open[:len(open)-1]
		if seen[id] {
			continue
		}
		seen[id] = true
		c, ok, err := p.Commit(id)
		if err != nil {
			return nil, nil, err
		}
		if !ok {
			boundary = append(boundary, id)
			continue
		}
		inside = append(inside, id)
		open = append(open, c.Parents...)
	}
	return inside, boundary, nil
}

// FastForward reports whether a commit that the upstream has is an ancestor of a new one, or is it. What is no commit goes nowhere.
func (p *Pack) FastForward(ctx context.Context, u *Upstream, old, to wire.ID) (bool, error) {
	if old == to {
		return true, nil
	}
	if at, here := p.kept[to]; here && at.kind != commit {
		return false, nil
	}
	inside, boundary, err := p.reach(to)
	if err != nil {
		return false, err
	}
	for _, list := range [][]wire.ID{inside, boundary} {
		for _, id := range list {
			if id == old {
				return true, nil
			}
		}
	}
	if len(boundary) == 0 {
		return false, nil
	}
	return u.Reachable(ctx, old, boundary)
}

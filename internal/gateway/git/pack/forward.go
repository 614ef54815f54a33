package pack

import (
	"context"

	"github.com/cofferdam/cofferdam/internal/gateway/git/wire"
)

// FastForward reports whether what a ref was set to at the upstream is an ancestor of what it is set to, or the same. What is no commit goes nowhere.
func (p *Pack) FastForward(ctx context.Context, u *Upstream, old, to wire.ID) (bool, error) {
	if old == to {
		return true, nil
	}
	slot, here := p.kept.find(to)
	if here && p.kept.kind(slot) != commitKind {
		return false, nil
	}
	boundary, met, err := p.walk(ctx, u, to, old)
	if met || err != nil || len(boundary) == 0 {
		return met, err
	}
	forward, err := u.reachable(ctx, old, boundary)
	if !forward || err != nil {
		return false, err
	}
	check := []wire.ID{old} // that they are commits, and not tags or trees that can be reached as well
	if !here {
		check = append(check, to)
	}
	return u.areCommits(ctx, check)
}

// walk goes from a commit through the pack to the commits that it does not have, or to the one that is looked for.
func (p *Pack) walk(ctx context.Context, u *Upstream, from, until wire.ID) (boundary []wire.ID, met bool, err error) {
	seen := make([]bool, p.kept.records.len)
	outside := map[wire.ID]bool{}
	for open := []wire.ID{from}; len(open) > 0; {
		id := open[len(open)-1]
		open = open[:len(open)-1]
		if id == until {
			return nil, true, nil
		}
		slot, here := p.kept.find(id)
		switch {
		case here && seen[slot] || outside[id]:
			continue
		case here:
			seen[slot] = true
			if err := ctx.Err(); err != nil {
				return nil, false, err
			}
			if u.walked++; u.walked > maxWalked {
				return nil, false, tooLarge("many refs, each with more commits than can be gone through for each")
			}
			c, ok, err := p.Commit(id)
			if err != nil {
				return nil, false, err
			}
			if !ok {
				return nil, false, malformed("a parent that is no commit")
			}
			open = append(open, c.Parents...)
			continue
		case len(boundary) == maxHaves:
			return nil, false, tooLarge("a push that builds on more than %d commits", maxHaves)
		}
		outside[id] = true
		boundary = append(boundary, id)
	}
	return boundary, false, nil
}

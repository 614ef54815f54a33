package workspace

import (
	"context"
	"os"
	"slices"
)

// remove records the deletion of a path of the workspace and of everything in it.
func (c *collector) remove(ctx context.Context, low *os.File, path Name, name string) error {
	isDir, err := c.removeOne(ctx, low, path, name)
	if err != nil || !isDir {
		return err
	}
	return c.removeBelow(ctx, path)
}

// removeOne records the deletion of one path, and says whether it is a directory.
func (c *collector) removeOne(ctx context.Context, low *os.File, path Name, name string) (isDir bool, err error) {
	if err := ctx.Err(); err != nil {
		return false, err
	}
	was, raced, ok, err := c.base(low, path, name)
	if err != nil || !ok || was.Kind == Absent {
		return false, err
	}
	if was.Kind == File && was.Size <= baseHashLimit {
		if was.SHA256, err = c.hashHost(ctx, low, name); err != nil {
			return false, err
		}
	}
	return was.Kind == Dir, c.keep(Change{Path: path, Was: was, Raced: raced})
}

// removeBelow records the deletion of everything in a directory of the workspace, holding one descriptor at a time however deep it is.
func (c *collector) removeBelow(ctx context.Context, top Name) error {
	for todo := []Name{top}; len(todo) > 0; {
		path := todo[len(todo)-1]
		if len(path) > len(top) {
			c.nameBytes -= int64(len(path)) // removeEntries charged it
		}
		below, err := c.removeEntries(ctx, path)
		if err != nil {
			return err
		}
		todo = append(todo[:len(todo)-1], below...)
	}
	return nil
}

func (c *collector) removeEntries(ctx context.Context, path Name) (below []Name, err error) {
	low, err := c.lower.list(path)
	if err != nil {
		return nil, c.skip(path, hostReason(err))
	}
	defer low.Close()
	names, err := c.names(ctx, low)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		if path.join(name).tooLong() {
			continue // the directory will be found not empty, and stays
		}
		isDir, err := c.removeOne(ctx, low, path.join(name), name)
		if err != nil {
			return nil, err
		}
		if isDir {
			next := path.join(name)
			if err := c.charge(len(next)); err != nil {
				return nil, err
			}
			below = append(below, next)
		}
	}
	return below, nil
}

// leave takes back the removal of each directory in which something was skipped, since it will not be empty. Both lists are sorted before and after.
func (c *collector) leave() error {
	if len(c.skipped) == 0 {
		return nil
	}
	skipped, kept := c.skipped, c.changes[:0]
	for _, change := range c.changes {
		if change.Was.Kind != Dir || change.Now.Kind == Dir {
			kept = append(kept, change)
			continue
		}
		at, _ := slices.BinarySearchFunc(skipped, change.Path, func(s Skip, p Name) int { return compareNames(s.Path, p) })
		if at == len(skipped) || !change.Path.contains(skipped[at].Path) {
			kept = append(kept, change)
			continue
		}
		reason := "stays, because " + skipped[at].Path.String() + " in it is not collected"
		if err := c.charge(len(reason)); err != nil {
			return err
		}
		c.skipped = append(c.skipped, Skip{change.Path, reason})
	}
	c.changes = kept
	slices.SortFunc(c.skipped, compareSkips)
	return nil
}

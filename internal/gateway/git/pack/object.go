package pack

import (
	"bytes"
	"strings"

	"github.com/cofferdam/cofferdam/internal/gateway/git/wire"
)

// Commit is what a commit says of its place in history.
type Commit struct {
	Tree    wire.ID
	Parents []wire.ID
}

// parseCommit reads a commit's header as git does: one tree, then the parents. What readers could understand differently is refused: a parent that does not
// end in a line break, which is none to git, and a tree or a parent further down, which is one to some (go-git) and not to others (git, libgit2).
func parseCommit(f wire.Format, content []byte) (Commit, error) {
	var c Commit
	var ok bool
	if c.Tree, content, ok = idLine(f, content, "tree "); !ok {
		return c, malformed("a commit without a tree")
	}
	for {
		parent, rest, ok := idLine(f, content, "parent ")
		if !ok {
			break
		}
		c.Parents, content = append(c.Parents, parent), rest
	}
	if !bytes.HasPrefix(content, []byte("author ")) { // so a parent is not hidden in a line that some reader takes for one and another does not
		return c, malformed("a commit without an author after its parents")
	}
	header, _, _ := bytes.Cut(content, []byte("\n\n"))
	if bytes.Contains(header, []byte("\nparent ")) || bytes.Contains(header, []byte("\ntree ")) {
		return c, malformed("a commit with parents in two places")
	}
	return c, nil
}

// idLine reads one line of a keyword and an id.
func idLine(f wire.Format, content []byte, keyword string) (wire.ID, []byte, bool) {
	end := len(keyword) + 2*f.Size()
	if len(content) <= end || string(content[:len(keyword)]) != keyword || content[end] != '\n' {
		return wire.ID{}, nil, false
	}
	id, ok := wire.ParseID(f, content[len(keyword):end])
	return id, content[end+1:], ok
}

// messageOf returns what stands below a header.
func messageOf(content []byte) []byte {
	_, text, _ := bytes.Cut(content, []byte("\n\n"))
	return text
}

// parseTag returns what an annotated tag points to.
func parseTag(f wire.Format, content []byte) (wire.ID, error) {
	id, rest, ok := idLine(f, content, "object ")
	if !ok || !bytes.HasPrefix(rest, []byte("type ")) {
		return id, malformed("a tag without an object")
	}
	return id, nil
}

// modeTree is the mode of a folder; the others are those of files (0100644, 0100755, and 0100664 of old), links and submodules.
const modeTree = 040000

func isMode(mode uint32) bool {
	switch mode {
	case modeTree, 0100644, 0100755, 0100664, 0120000, 0160000:
		return true
	}
	return false
}

// maxName is the longest name in a tree: more than any file system takes.
const maxName = 4096

// nextEntry splits the first entry off a tree.
func nextEntry(size int, content []byte) (mode uint32, name, sum, rest []byte, err error) {
	space := bytes.IndexByte(content[:min(len(content), 8)], ' ')
	if space < 5 {
		return 0, nil, nil, nil, malformed("a tree with an entry without a mode")
	}
	for _, c := range content[:space] {
		if c < '0' || c > '7' {
			return 0, nil, nil, nil, malformed("a tree with an entry without a mode")
		}
		mode = mode<<3 | uint32(c-'0')
	}
	content = content[space+1:]
	end := bytes.IndexByte(content[:min(len(content), maxName+1)], 0)
	switch {
	case end < 0 || len(content) < end+1+size:
		return 0, nil, nil, nil, malformed("a tree that ends early, or a name longer than %d bytes", maxName)
	case !isMode(mode):
		return 0, nil, nil, nil, malformed("a tree with an entry of mode %o", mode)
	}
	return mode, content[:end], content[end+1 : end+1+size], content[end+1+size:], nil
}

// checkTree refuses what git's own fsck calls an error in a tree, and what would let two readers see two trees: names that are empty, have a slash, or mean
// the repository itself; names out of order; a name twice.
func checkTree(f wire.Format, content []byte, strict bool) error {
	var before []byte
	var beforeMode uint32
	var files [][]byte // names of files that the name at hand begins with: a folder of that name may come much later
	for len(content) > 0 {
		mode, name, _, rest, err := nextEntry(f.Size(), content)
		if err != nil {
			return err
		}
		if len(name) == 0 || bytes.IndexByte(name, '/') >= 0 || string(name) == "." || string(name) == ".." || strict && isDotGit(name) {
			return malformed("a tree with a name that no checkout can have: %.40q", name)
		}
		if before != nil && compareNames(before, beforeMode, name, mode) >= 0 {
			return malformed("a tree whose names are not in order")
		}
		for len(files) > 0 && !bytes.HasPrefix(name, files[len(files)-1]) {
			files = files[:len(files)-1]
		}
		switch {
		case mode != modeTree:
			files = append(files, name)
		case len(files) > 0 && len(files[len(files)-1]) == len(name):
			return malformed("a tree with a name twice")
		}
		before, beforeMode, content = name, mode, rest
	}
	return nil
}

// compareNames orders names as git does, by which a folder's ends in a slash. 0 is the same name and both or neither a folder.
func compareNames(a []byte, aMode uint32, b []byte, bMode uint32) int {
	n := min(len(a), len(b))
	if c := bytes.Compare(a[:n], b[:n]); c != 0 {
		return c
	}
	return int(byteAfter(a, n, aMode)) - int(byteAfter(b, n, bMode))
}

func byteAfter(name []byte, n int, mode uint32) byte {
	switch {
	case n < len(name):
		return name[n]
	case mode == modeTree:
		return '/'
	}
	return 0
}

// isDotGit reports whether some file system takes a name for .git: those of Windows, which ignore case, trailing dots and spaces and what follows a colon,
// and know it as GIT~1; and that of macOS, which ignores case and some characters that are not seen (git's is_ntfs_dotgit and is_hfs_dotgit).
func isDotGit(name []byte) bool {
	if len(name) < 4 || name[0] != '.' && name[0] != 'g' && name[0] != 'G' && name[0] < 0x80 {
		return false
	}
	windows, _, _ := strings.Cut(string(name), ":")
	windows = strings.TrimRight(windows, ". ")
	if strings.EqualFold(windows, ".git") || strings.EqualFold(windows, "git~1") {
		return true
	}
	visible := strings.Map(func(r rune) rune {
		switch {
		case r >= 0x200c && r <= 0x200f, r >= 0x202a && r <= 0x202e, r >= 0x206a && r <= 0x206f, r == 0xfeff:
			return -1
		}
		return r
	}, string(name))
	return strings.EqualFold(visible, ".git")
}

// cursor goes through a tree that checkTree took, without a copy of it.
type cursor struct {
	rest      []byte // after the entry at hand
	mode      uint32 // 0: it is at the end
	name, sum []byte
}

// next goes on to the next entry.
func (c *cursor) next(f wire.Format) (err error) {
	if len(c.rest) == 0 {
		c.mode = 0
		return nil
	}
	c.mode, c.name, c.sum, c.rest, err = nextEntry(f.Size(), c.rest)
	return err
}

// same reports whether two entries of the same name are the same.
func (c *cursor) same(other *cursor) bool {
	return c.mode == other.mode && bytes.Equal(c.sum, other.sum)
}

package workspace

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/rogpeppe/go-internal/diff"
)

// Colour says whether a diff is painted with terminal colours. The zero value does not.
type Colour uint8

// The colours.
const (
	Plain Colour = iota
	Painted
)

// DiffOptions choose what Diff writes.
type DiffOptions struct {
	Paths  []Name // only these and what is in them; none means all
	Colour Colour
}

const (
	// maxDiffBytes is the size up to which a file is shown as text. The comparison needs some ten times that in memory.
	maxDiffBytes = 4 << 20
	// maxDiffLine cuts what one line shows: a minified file is one line.
	maxDiffLine = 4096
	// binarySniff is how far git looks for a zero byte to call a file binary.
	binarySniff = 8000
)

// Diff writes the changes as a unified diff in git's manner, those that are set apart after the others with their reasons, then what was skipped.
// Whatever names and contents hold, the output controls no terminal: every character that does not print is written as an escape. The old side is
// what the workspace holds now. It is for reading; Apply is what applies it.
func (c *Changes) Diff(ctx context.Context, w io.Writer, o DiffOptions) error {
	t, err := openTree(c.workspace)
	if err != nil {
		return fmt.Errorf("open workspace: %w", err)
	}
	defer t.root.Close()
	d := &differ{c: c, tree: t, w: w, paint: o.Colour == Painted, copy: newCopier()}
	apart := 0
	for _, change := range c.list {
		if change.Danger.Rule != "" {
			apart++
		} else if selected(o.Paths, change.Path) {
			d.change(ctx, change)
		}
	}
	if apart > 0 {
		d.section("Set apart: not applied without --include-dangerous", o.Paths)
		for _, change := range c.list {
			if change.Danger.Rule != "" && selected(o.Paths, change.Path) {
				d.change(ctx, change)
			}
		}
	}
	if len(c.skipped) > 0 {
		d.section("Not collected", o.Paths)
	}
	for _, s := range c.skipped {
		if selected(o.Paths, s.Path) {
			d.printf("%s: %s\n", s.Path, s.Reason)
		}
	}
	return errors.Join(d.err, ctx.Err())
}

func selected(paths []Name, p Name) bool {
	for _, s := range paths {
		if s.contains(p) {
			return true
		}
	}
	return len(paths) == 0
}

// differ writes one diff and keeps the first error of its writer.
type differ struct {
	c     *Changes
	tree  tree
	w     io.Writer
	paint bool
	copy  *copier
	err   error
}

func (d *differ) printf(format string, args ...any) {
	if d.err == nil {
		_, d.err = fmt.Fprintf(d.w, format, args...)
	}
}

// Terminal colours, as git uses them.
const (
	bold  = "1"
	red   = "31"
	green = "32"
	cyan  = "36"
)

// line writes one line that is inert already, painted if wanted.
func (d *differ) line(colour, text string) {
	if d.paint && colour != "" {
		text = "\x1b[" + colour + "m" + text + "\x1b[m"
	}
	d.printf("%s\n", text)
}

func (d *differ) section(title string, paths []Name) {
	if len(paths) == 0 {
		d.printf("\n")
		d.line(bold, "# "+title)
	}
}

// change writes one change: header, then contents.
func (d *differ) change(ctx context.Context, c Change) {
	if d.err != nil || ctx.Err() != nil {
		return
	}
	d.line(bold, fmt.Sprintf("diff --cofferdam %s %s", sided("a/", c.Path), sided("b/", c.Path)))
	if c.Danger.Rule != "" {
		d.line(red, fmt.Sprintf("# set apart (%s): %s", c.Danger.Rule, inert(c.Danger.Reason)))
	}
	if c.Raced {
		d.line(red, "# the file changed on the host while the run lasted")
	}
	if bits := c.gained(); bits != 0 {
		d.line(red, fmt.Sprintf("# special mode bits %04o are not applied without --include-dangerous", bits))
	}
	d.header(c)
	old, err := d.tree.node(ctx, d.copy, c.Path, c.Was.SHA256 != "" || c.Now.Kind == File)
	switch {
	case err != nil:
		d.line(red, "# cannot be compared with the workspace: "+inert(err.Error()))
		return
	case sameState(old, c.Now):
		d.line(cyan, "# the workspace holds this already")
		return
	case !sameState(old, c.Was):
		d.line(red, "# the workspace has changed since the run ended; the old side is what it holds now")
	}
	d.body(c, old)
}

func (d *differ) header(c Change) {
	switch c.Op() {
	case Add:
		d.line(bold, fmt.Sprintf("new %s mode %s", c.Now.Kind, gitMode(c.Now)))
	case Delete:
		d.line(bold, fmt.Sprintf("deleted %s mode %s", c.Was.Kind, gitMode(c.Was)))
	case Modify:
		if c.Was.Kind != c.Now.Kind {
			d.line(bold, fmt.Sprintf("%s becomes %s", c.Was.Kind, c.Now.Kind))
		}
		if c.Was.Mode != c.Now.Mode {
			d.line(bold, "old mode "+gitMode(c.Was))
			d.line(bold, "new mode "+gitMode(c.Now))
		}
		if c.Now.Kind != Symlink && (ownerChanged(c.Was.UID, c.Now.UID) || ownerChanged(c.Was.GID, c.Now.GID)) {
			d.line(bold, fmt.Sprintf("owner %d:%d becomes %d:%d", c.Was.UID, c.Was.GID, c.Now.UID, c.Now.GID))
		}
	}
}

// gitMode writes type and permission bits as git does.
func gitMode(n Node) string {
	prefix := map[Kind]string{File: "10", Dir: "04", Symlink: "12"}[n.Kind]
	if n.Kind == Symlink {
		return prefix + "0000"
	}
	return fmt.Sprintf("%s%04o", prefix, n.Mode)
}

// body writes what differs inside.
func (d *differ) body(c Change, old Node) {
	if old.Kind != File && c.Now.Kind != File && old.Kind != Symlink && c.Now.Kind != Symlink {
		return
	}
	if old.Kind == c.Now.Kind && old.SHA256 == c.Now.SHA256 && old.Target == c.Now.Target {
		return
	}
	before, err := d.before(c.Path, old)
	if err == nil {
		var after []byte
		if after, err = d.after(c); err == nil {
			d.text(c, before, after)
			return
		}
	}
	if !errors.Is(err, errNoText) {
		d.line(red, "# cannot be read: "+inert(err.Error()))
		return
	}
	d.printf("Binary or large files differ: %s, then %s\n", sizeOf(old), sizeOf(c.Now))
}

func sizeOf(n Node) string {
	if n.Kind == File {
		return fmt.Sprintf("%d bytes", n.Size)
	}
	if n.Kind == Absent {
		return "nothing"
	}
	return "a " + string(n.Kind)
}

// errNoText says that a file is not to be shown as text.
var errNoText = errors.New("binary or large")

func (d *differ) before(p Name, old Node) ([]byte, error) {
	switch old.Kind {
	case Symlink:
		return []byte(old.Target), nil
	case File:
		parent, name := p.split()
		dir, err := d.tree.hold(parent)
		if err != nil {
			return nil, err
		}
		defer dir.Close()
		f, _, err := openFile(dir, name)
		if err != nil {
			return nil, err
		}
		return readText(f)
	}
	return nil, nil
}

func (d *differ) after(c Change) ([]byte, error) {
	switch {
	case c.Now.Kind == Symlink:
		return []byte(c.Now.Target), nil
	case c.hasContent():
		f, err := d.c.content(c.Now)
		if err != nil {
			return nil, err
		}
		return readText(f)
	}
	return nil, nil
}

// readText reads a whole text file, and closes it.
func readText(f *os.File) ([]byte, error) {
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if st.Size() > maxDiffBytes {
		return nil, errNoText
	}
	data, err := io.ReadAll(io.LimitReader(f, maxDiffBytes+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxDiffBytes || bytes.IndexByte(data[:min(len(data), binarySniff)], 0) >= 0 {
		return nil, errNoText
	}
	return data, nil
}

// text writes the hunks between two texts.
func (d *differ) text(c Change, before, after []byte) {
	from, to := sided("a/", c.Path), sided("b/", c.Path)
	if c.Op() == Add {
		from = "/dev/null"
	}
	if c.Op() == Delete {
		to = "/dev/null"
	}
	out := diff.Diff("a", before, "b", after)
	for range 3 { // its own header
		_, rest, _ := bytes.Cut(out, []byte("\n"))
		out = rest
	}
	if len(out) == 0 {
		return
	}
	d.line(bold, "--- "+from)
	d.line(bold, "+++ "+to)
	for line := range bytes.SplitSeq(bytes.TrimSuffix(out, []byte("\n")), []byte("\n")) {
		colour := ""
		if len(line) > 0 {
			colour = map[byte]string{'+': green, '-': red, '@': cyan}[line[0]]
		}
		d.line(colour, inert(clip(line)))
	}
}

// clip cuts a line that is too long to read.
func clip(line []byte) string {
	if len(line) <= maxDiffLine {
		return string(line)
	}
	return fmt.Sprintf("%s ... (%d bytes more)", line[:maxDiffLine], len(line)-maxDiffLine)
}

// sided puts git's a/ or b/ in front of a name, inside its quotes if it has some.
func sided(side string, n Name) string { return Name(side + string(n)).String() }

// inert writes every character that does not print, or is no valid UTF-8, as an escape. Tabs stay.
func inert(s string) string {
	plain := true
	for _, r := range s {
		if r == utf8.RuneError || r != '\t' && !unicode.IsPrint(r) {
			plain = false
			break
		}
	}
	if plain {
		return s
	}
	var b strings.Builder
	for rest := s; rest != ""; {
		r, size := utf8.DecodeRuneInString(rest)
		switch {
		case r == utf8.RuneError && size == 1 || r < ' ' && r != '\t' || r == 0x7f:
			fmt.Fprintf(&b, `\x%02x`, rest[0])
		case r == '\t' || unicode.IsPrint(r):
			b.WriteRune(r)
		default:
			fmt.Fprintf(&b, `\u{%x}`, r)
		}
		rest = rest[size:]
	}
	return b.String()
}

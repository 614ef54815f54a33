package build

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/fault"
)

const (
	// maxPath and maxTarget are PATH_MAX less the byte that ends it.
	maxPath   = 4095
	maxTarget = 4095
	// maxRead bounds what is read of one file of the layer into memory, in bytes. A status file of a full desktop has 5 MiB.
	maxRead = 64 << 20
	// maxLinks is how many symbolic links one path may lead through, as the kernel has it (path_resolution(7)).
	maxLinks = 40
)

// kind is what a node is. The zero value is none.
type kind byte

// The kinds.
const (
	file kind = 1 + iota
	dir
	symlink
)

// node is one name in a layer.
type node struct {
	kind     kind
	mode     int64 // permission bits and the sticky bit
	uid, gid int
	time     time.Time
	target   string // of a symbolic link
	data     *data  // of a file; several names share it
	xattrs   map[string]string
	owner    string // the package that it comes from; empty for others
}

// data is where contents lie in the layer's file.
type data struct{ at, size int64 }

// layer is a tree that is composed in memory. Names are clean, relative and unique: "etc/passwd"; the root is "".
type layer struct {
	nodes    map[string]*node
	spool    *os.File
	used     int64
	maxBytes int64
	maxFiles int
	counts   Counts

	// While packages are added: which other packages' files each may take over, and which packages hold a path.
	replaces map[string][]string
	owners   map[string][]string
}

func newLayer(o Options) (*layer, error) {
	l := &layer{nodes: map[string]*node{"": {kind: dir, mode: 0o755}}, maxBytes: o.MaxBytes, maxFiles: o.MaxFiles}
	if l.maxBytes == 0 {
		l.maxBytes = DefaultBytes
	}
	if l.maxFiles == 0 {
		l.maxFiles = DefaultFiles
	}
	f, err := os.CreateTemp(o.Temp, "cofferdam-layer-")
	if err == nil {
		l.spool = f
		err = os.Remove(f.Name()) // it goes with the process
	}
	if err != nil {
		return nil, fault.New(fault.Unavailable, "cannot make a file for the build").WithHint("set TMPDIR to a directory that you can write").Because(err)
	}
	return l, nil
}

func (l *layer) close() error { return l.spool.Close() }

func (l *layer) abandon(err error) error { return errors.Join(err, l.close()) }

// clean returns a name as the layer has it. The root is "".
func clean(name string) (string, error) {
	if strings.IndexByte(name, 0) >= 0 || len(name) > maxPath {
		return "", fault.New(fault.Invalid, "%.80q is no name of a file", name)
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == ".." || len(part) > 255 { // NAME_MAX
			return "", fault.New(fault.Invalid, "the name %.80q leads elsewhere or is too long", name)
		}
	}
	return strings.TrimPrefix(path.Clean("/"+name), "/"), nil
}

// put adds a node, in place of what had the name. Set-id bits are dropped and counted.
func (l *layer) put(name string, n node) error {
	if n.mode&0o6000 != 0 && n.kind == file {
		l.counts.SetID++
	}
	if _, base, _ := cutLast(name); strings.HasPrefix(base, ".wh.") {
		return fault.New(fault.Invalid, "%.80q is a mark of something removed, which belongs into a layer and not into a root file system", name).
			WithHint("export a container's files instead of copying a layer")
	}
	n.mode &= 0o1777
	n.time = n.time.Truncate(time.Second).UTC()
	if n.kind == symlink {
		n.mode = 0o777
		if n.target == "" || len(n.target) > maxTarget || strings.IndexByte(n.target, 0) >= 0 {
			return fault.New(fault.Invalid, "the link %.80q has no target that a link can have", name)
		}
	}
	l.nodes[name] = &n
	if len(l.nodes) > l.maxFiles {
		return fault.New(fault.TooMany, "the image would have more than %d files", l.maxFiles).WithHint("leave some out")
	}
	return nil
}

// store copies contents to the layer's file. A stream that is shorter than size is taken as it is.
func (l *layer) store(r io.Reader, size int64) (*data, error) {
	if size < 0 || size > l.maxBytes-l.used {
		return nil, fault.New(fault.TooMany, "the files have more than %d MiB", l.maxBytes>>20).WithHint("leave some out")
	}
	d := &data{at: l.used}
	w := io.NewOffsetWriter(l.spool, l.used)
	n, err := io.Copy(w, io.LimitReader(r, size))
	d.size = n
	l.used += n
	if errors.Is(err, unix.ENOSPC) {
		return nil, fault.New(fault.Unavailable, "there is no room left for the build").WithHint("set TMPDIR to a directory with more room").Because(err)
	}
	return d, err
}

// write adds a file that is made here. Its time is set in the end.
func (l *layer) write(name, contents string, mode int64) error {
	d, err := l.store(strings.NewReader(contents), int64(len(contents)))
	if err != nil {
		return err
	}
	return l.put(name, node{kind: file, mode: mode, data: d})
}

// link adds a symbolic link that is made here.
func (l *layer) link(name, target string) error {
	return l.put(name, node{kind: symlink, target: target})
}

// has says whether the layer has a file, directory or link of that very name.
func (l *layer) has(name string) bool { return l.nodes[name] != nil }

// find resolves a name inside the layer, through its symbolic links, and returns the name of what is there.
func (l *layer) find(name string) (string, *node) {
	rest, at := strings.Split(name, "/"), ""
	for links := 0; len(rest) > 0; {
		part := rest[0]
		rest = rest[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			at = parentOf(at)
			continue
		}
		next := path.Join(at, part)
		n := l.nodes[next]
		if n == nil {
			return "", nil
		}
		if n.kind != symlink {
			at = next
			continue
		}
		if links++; links > maxLinks {
			return "", nil
		}
		if strings.HasPrefix(n.target, "/") {
			at = ""
		}
		rest = append(strings.Split(n.target, "/"), rest...)
	}
	return at, l.nodes[at]
}

// parentOf returns the directory of a name; "" is the root.
func parentOf(name string) string {
	dir, _, _ := cutLast(name)
	return dir
}

func cutLast(name string) (dir, base string, found bool) {
	if i := strings.LastIndexByte(name, '/'); i >= 0 {
		return name[:i], name[i+1:], true
	}
	return "", name, false
}

// read returns the contents of a file, through links. fs.ErrNotExist: there is none.
func (l *layer) read(name string) ([]byte, error) {
	_, n := l.find(name)
	if n == nil || n.kind != file {
		return nil, fmt.Errorf("read %s: %w", name, fs.ErrNotExist)
	}
	if n.data.size > maxRead {
		return nil, fault.New(fault.TooMany, "the file %s of the image has more than %d MiB", name, maxRead>>20)
	}
	b := make([]byte, n.data.size)
	_, err := l.spool.ReadAt(b, n.data.at)
	return b, err
}

// names returns all names in order: a directory before what is in it.
func (l *layer) names() []string { return slices.Sorted(maps.Keys(l.nodes)) }

// remove takes out what the caller wants out.
func (l *layer) remove(out func(name string, n *node) bool) {
	for name, n := range l.nodes {
		if out(name, n) {
			delete(l.nodes, name)
			l.counts.Excluded++
		}
	}
}

// whole has everything lie in directories, which are added where a source left them out.
func (l *layer) whole() error {
	for _, name := range l.names() {
		for up := parentOf(name); up != ""; up = parentOf(up) {
			if l.nodes[up] == nil {
				if err := l.put(up, node{kind: dir, mode: 0o755, time: l.nodes[name].time}); err != nil {
					return err
				}
			}
			if l.nodes[up].kind != dir {
				return fault.New(fault.Invalid, "%.80q lies below %.80q, which is no directory", name, up)
			}
		}
	}
	return nil
}

// check makes the tree whole and counts what is there.
func (l *layer) check() error {
	if err := l.whole(); err != nil {
		return err
	}
	c, seen := &l.counts, map[*data]bool{}
	for _, n := range l.nodes {
		switch n.kind {
		case dir:
			c.Dirs++
		case symlink:
			c.Links++
		case file:
			if !seen[n.data] {
				seen[n.data] = true
				c.Files++
				c.Bytes += n.data.size
			}
		}
	}
	if c.Files == 0 {
		return fault.New(fault.Invalid, "there is no file in it").WithHint("name a directory or an archive with a root file system in it")
	}
	return nil
}

// newest is the newest time in the layer. What was made here has none yet, and gets that.
func (l *layer) newest() time.Time {
	newest := time.Unix(0, 0).UTC()
	for _, n := range l.nodes {
		if n.time.After(newest) {
			newest = n.time
		}
	}
	for _, n := range l.nodes {
		if n.time.Unix() <= 0 {
			n.time = newest
		}
	}
	return newest
}

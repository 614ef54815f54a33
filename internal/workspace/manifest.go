package workspace

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/cofferdam/cofferdam/internal/fault"
)

const (
	manifestVersion = 1
	manifestName    = "manifest.json"
	// maxManifest bounds what Open reads: more than Collect writes within DefaultLimits.
	maxManifest = 512 << 20
)

// manifest is the stored form of a collection.
type manifest struct {
	Version     int      `json:"version"`
	Unprotected []string `json:"unprotected,omitempty"`
	Changes     []Change `json:"changes"`
	Skipped     []Skip   `json:"skipped"`
}

func (s *store) writeManifest(m manifest) error {
	f, err := s.create(manifestName)
	if err != nil {
		return err
	}
	defer f.Close()
	w := bufio.NewWriterSize(f, 64<<10)
	if err := errors.Join(m.encode(w), w.Flush(), f.Sync()); err != nil {
		return fmt.Errorf("write change list: %w", err)
	}
	return f.Close()
}

// encode writes the list in JSON, one change at a time: as a whole it can be of some hundred MiB.
func (m manifest) encode(w io.Writer) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	put := func(format string, args ...any) error {
		_, err := fmt.Fprintf(w, format, args...)
		return err
	}
	err := put(`{"version":%d`, m.Version)
	if len(m.Unprotected) > 0 {
		err = errors.Join(err, put(`,"unprotected":`), enc.Encode(m.Unprotected))
	}
	err = errors.Join(err, put(`,"changes":`), encodeList(w, enc, m.Changes))
	return errors.Join(err, put(`,"skipped":`), encodeList(w, enc, m.Skipped), put("}\n"))
}

func encodeList[T any](w io.Writer, enc *json.Encoder, list []T) error {
	between := "["
	for _, one := range list {
		if _, err := io.WriteString(w, between); err != nil {
			return err
		}
		if err := enc.Encode(one); err != nil {
			return err
		}
		between = ","
	}
	if len(list) == 0 {
		_, err := io.WriteString(w, "[]")
		return err
	}
	_, err := io.WriteString(w, "]")
	return err
}

// Changes is the collected work of one run. It is not safe for concurrent use.
type Changes struct {
	dir       string
	workspace string
	list      []Change
	skipped   []Skip
}

// Open reads a collection and judges each change against the rules for dangerous paths. The workspace is looked at for what gives a path its meaning
// (repositories, hooks elsewhere, symlinks). The list is refused whole if Collect cannot have written it. No collection is NotFound.
func Open(dir, workspace string) (*Changes, error) {
	f, err := os.OpenInRoot(dir, manifestName)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(fault.NotFound, "this run has no collected changes").
			WithHint("only a run with the workspace in overlay mode has some, until they are dropped")
	}
	if err != nil {
		return nil, fmt.Errorf("open change list: %w", err)
	}
	defer f.Close()
	m, err := readManifest(f)
	if err != nil {
		return nil, fault.New(fault.Invalid, "the change list of this run is damaged; nothing of it can be applied").Because(err)
	}
	c := &Changes{dir: dir, workspace: workspace, list: m.Changes, skipped: m.Skipped}
	judge(c.list, workspace, m.Unprotected)
	return c, nil
}

// Nothing is the collection of a run that changed nothing, for which no directory is made.
func Nothing(dir, workspace string) *Changes { return &Changes{dir: dir, workspace: workspace} }

// readManifest decodes and validates. What it returns is sorted, free of duplicates, and never has anything below a path that is not a directory.
func readManifest(r io.Reader) (manifest, error) {
	var m manifest
	dec := json.NewDecoder(io.LimitReader(r, maxManifest))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&m); err != nil {
		return manifest{}, err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return manifest{}, errors.New("something follows the list")
	}
	if m.Version != manifestVersion {
		return manifest{}, fmt.Errorf("version %d is not known", m.Version)
	}
	var leaf Name // the last path seen that ends up as something other than a directory
	for i, c := range m.Changes {
		if err := c.validate(); err != nil {
			return manifest{}, err
		}
		if i > 0 && compareNames(m.Changes[i-1].Path, c.Path) >= 0 {
			return manifest{}, fmt.Errorf("path %s is out of order or twice in the list", c.Path)
		}
		if leaf != "" && leaf.contains(c.Path) && c.Now.Kind != Absent {
			return manifest{}, fmt.Errorf("path %s lies below %s, which is no directory", c.Path, leaf)
		}
		if (leaf == "" || !leaf.contains(c.Path)) && c.Now.Kind != Dir {
			leaf = c.Path
		}
	}
	return m, nil
}

// List returns the changes, a directory before what is in it. The slice is the caller's.
func (c *Changes) List() []Change { return append([]Change(nil), c.list...) }

// Skipped returns what was seen and not collected.
func (c *Changes) Skipped() []Skip { return append([]Skip(nil), c.skipped...) }

// Drop erases the collection. The workspace is not touched.
func (c *Changes) Drop() error { return Drop(c.dir) }

// Drop erases a collection, also one whose list is damaged or unfinished.
func Drop(dir string) error {
	if err := errors.Join(os.RemoveAll(dir), os.RemoveAll(dir+".new")); err != nil {
		return fmt.Errorf("erase collected changes: %w", err)
	}
	return nil
}

// content opens the stored bytes of a change; the digest in the name is checked by whoever copies them.
func (c *Changes) content(n Node) (*os.File, error) {
	return os.OpenInRoot(c.dir, contentDir+"/"+n.SHA256)
}

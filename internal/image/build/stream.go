package build

import (
	"archive/tar"
	"cmp"
	"context"
	"io"
)

// stream writes the layer as a tar archive, in order of names. Equal layers give equal bytes.
func (l *layer) stream(ctx context.Context, w io.Writer) error {
	t := tar.NewWriter(w)
	first := map[*data]string{}
	for _, name := range l.names() {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := l.nodes[name]
		h := &tar.Header{Name: name, Mode: n.mode, Uid: n.uid, Gid: n.gid, ModTime: n.time}
		for key, value := range n.xattrs {
			if h.PAXRecords == nil {
				h.PAXRecords = map[string]string{}
			}
			h.PAXRecords["SCHILY.xattr."+key] = value
		}
		var contents io.Reader
		switch n.kind {
		case dir:
			h.Typeflag, h.Name = tar.TypeDir, cmp.Or(name, ".")+"/"
		case symlink:
			h.Typeflag, h.Linkname = tar.TypeSymlink, n.target
		case file:
			if other, ok := first[n.data]; ok {
				h.Typeflag, h.Linkname = tar.TypeLink, other
				break
			}
			first[n.data] = name
			h.Typeflag, h.Size = tar.TypeReg, n.data.size
			contents = io.NewSectionReader(l.spool, n.data.at, n.data.size)
		}
		if err := t.WriteHeader(h); err != nil {
			return err
		}
		if contents == nil {
			continue
		}
		if _, err := io.Copy(t, contents); err != nil {
			return err
		}
	}
	return t.Close()
}

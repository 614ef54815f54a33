package build

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"strings"

	"github.com/klauspost/compress/zstd"

	"github.com/cofferdam/cofferdam/internal/fault"
)

// slack is how much an archive may have besides the contents of its files, in bytes: headers, padding, and what is left out.
const slack = 4 << 30

// maxWindow bounds the memory that a zstd stream may ask for, as zstd's own tool does without --long (zstd(1)).
const maxWindow = 128 << 20

// addTar adds the entries of an archive. Later ones replace earlier ones of the same name. With an owner the archive is a package's.
func (l *layer) addTar(ctx context.Context, r io.Reader, owner string) error {
	plain, closePlain, err := decompress(r)
	if err != nil {
		return err
	}
	defer closePlain()
	bounded := &boundedReader{ctx: ctx, r: plain, left: l.maxBytes + slack}
	t := tar.NewReader(bounded)
	for {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			if err := bounded.end(); err != nil {
				return archiveError(err)
			}
			return l.notAnImage()
		}
		if err != nil {
			return archiveError(err)
		}
		name, err := clean(h.Name)
		if err != nil {
			return err
		}
		if err := l.addEntry(t, h, name, owner); err != nil {
			return archiveError(err)
		}
	}
}

// archiveError says that an archive cannot be read, unless the error says something better.
func archiveError(err error) error {
	if fault.KindOf(err) != fault.Internal || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return fault.New(fault.Invalid, "the archive cannot be read").WithHint("give a tar archive, plain or compressed by gzip or zstd").Because(err)
}

// addEntry adds one entry of an archive.
func (l *layer) addEntry(t *tar.Reader, h *tar.Header, name, owner string) error {
	n := node{mode: h.Mode & 0o7777, uid: h.Uid, gid: h.Gid, time: h.ModTime, owner: owner}
	if n.uid < 0 || n.uid > maxID || n.gid < 0 || n.gid > maxID {
		return fault.New(fault.Invalid, "%.80q belongs to user %d, group %d; ids go to %d", name, n.uid, n.gid, maxID)
	}
	switch h.Typeflag {
	case tar.TypeDir:
		n.kind = dir
	case tar.TypeReg, '7', tar.TypeGNUSparse: // '7' is a contiguous file, which is one like others
		n.kind = file
		d, err := l.store(t, h.Size)
		if err == nil && d.size != h.Size {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return err
		}
		n.data = d
		n.xattrs = userAttributes(h.PAXRecords)
	case tar.TypeSymlink:
		n.kind, n.target = symlink, h.Linkname
	case tar.TypeLink:
		to, err := clean(h.Linkname)
		if err != nil {
			return err
		}
		if owner != "" {
			to = merged(to)
		}
		other := l.nodes[to]
		if other == nil || other.kind != file {
			return fault.New(fault.Invalid, "the hard link %.80q is to %.80q, which is no file before it in the archive", name, h.Linkname)
		}
		n = *other
		n.owner = owner
	case tar.TypeXGlobalHeader:
		return nil
	default:
		l.counts.Special++
		return nil
	}
	if name == "" && n.kind != dir {
		return fault.New(fault.Invalid, "the archive has something else for its root directory")
	}
	if owner != "" {
		return l.putPackaged(name, n)
	}
	return l.put(name, n)
}

// maxID is the largest id that a sandbox has; 65535 is its gateway's.
const maxID = 65534

// userAttributes picks the extended attributes that mean nothing to a kernel.
func userAttributes(records map[string]string) map[string]string {
	var kept map[string]string
	for key, value := range records {
		name, ok := strings.CutPrefix(key, "SCHILY.xattr.")
		if !ok || !strings.HasPrefix(name, "user.") || strings.HasPrefix(name, "user.overlay.") {
			continue
		}
		if kept == nil {
			kept = map[string]string{}
		}
		kept[name] = value
	}
	return kept
}

// notAnImage catches what people confuse with a root file system: the archive that holds an image's layers.
func (l *layer) notAnImage() error {
	if l.has("manifest.json") && (l.has("oci-layout") || l.has("index.json") || l.has("repositories")) && !l.has("etc") {
		return fault.New(fault.Invalid, "the archive holds the parts of an image, not a root file system").
			WithHint("export a container's files instead, or pull the image: cofferdam image pull registry.example.org/NAME")
	}
	return nil
}

// decompress looks at the first bytes of a stream.
func decompress(r io.Reader) (plain io.Reader, closePlain func(), err error) {
	b := bufio.NewReaderSize(r, 64<<10)
	head, err := b.Peek(6)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, nil, err
	}
	for magic, name := range map[string]string{"\xfd7zXZ\x00": "xz", "BZh": "bzip2", "\x04\x22\x4d\x18": "lz4"} {
		if bytes.HasPrefix(head, []byte(magic)) {
			return nil, nil, fault.New(fault.Unsupported, "the archive is compressed by %s", name).WithHint("type: %s -dc FILE | cofferdam image build NAME --from -", name)
		}
	}
	switch {
	case bytes.HasPrefix(head, []byte("\x1f\x8b")):
		z, err := gzip.NewReader(b)
		if err != nil {
			return nil, nil, archiveError(err)
		}
		return z, func() { _ = z.Close() }, nil // it was only read
	case bytes.HasPrefix(head, []byte("\x28\xb5\x2f\xfd")):
		z, err := zstd.NewReader(b, zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderConcurrency(1))
		if err != nil {
			return nil, nil, archiveError(err)
		}
		return z, z.Close, nil
	}
	return b, func() {}, nil
}

// boundedReader ends a stream with an error after a number of bytes, or once ctx is done.
type boundedReader struct {
	ctx   context.Context // of the one call that reads
	r     io.Reader
	left  int64
	ended bool
}

func (b *boundedReader) Read(p []byte) (int, error) {
	if err := b.ctx.Err(); err != nil {
		return 0, err
	}
	if b.left <= 0 {
		return 0, fault.New(fault.TooMany, "the archive has no end in sight").WithHint("leave some files out")
	}
	n, err := b.r.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	if n > 0 && errors.Is(err, io.EOF) {
		err = nil // it comes again, by itself
	}
	b.ended = b.ended || err != nil
	return n, err
}

// end is called where an archive says that it ends. A stream that ended before was cut off between two entries. What is left is read, so that a checksum at the
// end of a compressed stream counts.
func (b *boundedReader) end() error {
	if b.ended {
		return io.ErrUnexpectedEOF
	}
	_, err := io.Copy(io.Discard, b)
	return err
}

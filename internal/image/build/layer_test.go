package build

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/image"
)

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// archive makes a tar of headers; files whose size is 0 get their name as contents.
func archive(t testing.TB, headers ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		contents := ""
		if h.Typeflag == tar.TypeReg {
			contents = h.Name
			h.Size = int64(len(contents))
		}
		if h.ModTime.IsZero() {
			h.ModTime = noon
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, contents); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func regular(name string) tar.Header {
	return tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644}
}

func folder(name string) tar.Header {
	return tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755}
}

func pointer(name, to string) tar.Header {
	return tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: to}
}

func hard(name, to string) tar.Header {
	return tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: to}
}

// build makes a layer that must come out well.
func build(t testing.TB, data []byte, o Options) *Built {
	t.Helper()
	b, err := FromTar(t.Context(), bytes.NewReader(data), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

func layerOf(t testing.TB, b *Built) []byte {
	t.Helper()
	r := b.Layer(t.Context())
	defer r.Close()
	data, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// listOf reads a layer's entries, in their order.
func listOf(t testing.TB, data []byte) (lines []string) {
	t.Helper()
	for r := tar.NewReader(bytes.NewReader(data)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return lines
		}
		if err != nil {
			t.Fatal(err)
		}
		line := string(h.Typeflag) + " " + h.Name
		if h.Linkname != "" {
			line += " -> " + h.Linkname
		}
		lines = append(lines, line)
	}
}

func TestTar(t *testing.T) {
	plain := archive(t, folder("./"), regular("./etc/passwd"), regular("usr/bin/b"), hard("usr/bin/a", "./usr/bin/b"), pointer("bin", "usr/bin"), regular("/srv/x"))
	want := []string{
		"5 ./", "2 bin -> usr/bin", "5 etc/", "0 etc/passwd", "5 srv/", "0 srv/x", "5 usr/", "5 usr/bin/", "0 usr/bin/a", "1 usr/bin/b -> usr/bin/a",
	}
	var zipped, zstdd bytes.Buffer
	g := gzip.NewWriter(&zipped)
	z, err := zstd.NewWriter(&zstdd)
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range []io.WriteCloser{g, z} {
		if _, err := w.Write(plain); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	var first []byte
	for _, data := range [][]byte{plain, zipped.Bytes(), zstdd.Bytes()} {
		b := build(t, data, Options{})
		layer := layerOf(t, b)
		if got := listOf(t, layer); !slices.Equal(got, want) {
			t.Errorf("%q", got)
		}
		if first == nil {
			first = layer
		}
		if !bytes.Equal(layer, first) || !bytes.Equal(layer, layerOf(t, b)) {
			t.Error("equal sources give different layers")
		}
		if b.Counts.Files != 3 || b.Counts.Dirs != 5 || b.Counts.Links != 1 || !b.Newest.Equal(noon) {
			t.Errorf("%+v %v", b.Counts, b.Newest)
		}
	}
}

func TestHostileTars(t *testing.T) {
	bomb := func() []byte {
		var b bytes.Buffer
		g := gzip.NewWriter(&b)
		w := tar.NewWriter(g)
		_ = w.WriteHeader(&tar.Header{Name: "bomb", Typeflag: tar.TypeReg, Size: 1 << 40})
		_, _ = io.CopyN(w, zeroes{}, 64<<20)
		_ = g.Close()
		return b.Bytes()
	}
	good := archive(t, regular("etc/hostname"))
	var zipped bytes.Buffer
	g := gzip.NewWriter(&zipped)
	_, _ = g.Write(good)
	_ = g.Close()
	for _, c := range []struct {
		name string
		data []byte
		kind fault.Kind
		text string
	}{
		{"a name that leads up", archive(t, regular("../x")), fault.Invalid, "leads elsewhere"},
		{"a name that leads up later", archive(t, regular("a/../../x")), fault.Invalid, "leads elsewhere"},
		{"a name that is too long", archive(t, regular(strings.Repeat("n", 256))), fault.Invalid, "too long"},
		{"a path that is too long", archive(t, regular(strings.Repeat("n/", 2100)+"x")), fault.Invalid, "no name"},
		{"a link to the outside, and a file through it", archive(t, pointer("d", "/tmp"), regular("d/x")), fault.Invalid, "no directory"},
		{"a file, and another below it", archive(t, regular("d"), regular("d/x")), fault.Invalid, "no directory"},
		{"a directory that becomes a link", archive(t, folder("d"), regular("d/x"), pointer("d", "/etc")), fault.Invalid, "no directory"},
		{"a hard link to the outside", archive(t, hard("x", "../../etc/passwd")), fault.Invalid, "leads elsewhere"},
		{"a hard link to an absolute path", archive(t, regular("a"), hard("x", "/etc/passwd")), fault.Invalid, "no file before it"},
		{"a hard link to a link", archive(t, pointer("l", "/etc/passwd"), hard("x", "l")), fault.Invalid, "no file before it"},
		{"a hard link to itself", archive(t, hard("x", "x")), fault.Invalid, "no file before it"},
		{"a mark of something removed", archive(t, regular("etc/.wh.passwd")), fault.Invalid, "removed"},
		{"the mark of an opaque directory", archive(t, regular("etc/.wh..wh..opq")), fault.Invalid, "removed"},
		{"an owner that no sandbox has", archive(t, tar.Header{Typeflag: tar.TypeReg, Name: "x", Uid: 65535}), fault.Invalid, "user 65535"},
		{"a root that is a file", archive(t, regular(".")), fault.Invalid, "root directory"},
		{"more than the bound", archive(t, regular("a"), regular("b"), regular(strings.Repeat("b", 200)+"/"+strings.Repeat("c", 200)+"/"+strings.Repeat("d", 200)+"/"+strings.Repeat("e", 200)+"/"+strings.Repeat("f", 225))), fault.TooMany, "more than"},
		{"a bomb", bomb(), fault.TooMany, "more than"},
		{"more files than the bound", archive(t, regular("1"), regular("2"), regular("3"), regular("4"), regular("5"), regular("6"), regular("7"), regular("8"), regular("9"), regular("10"), regular("11"), regular("12")), fault.TooMany, "files"},
		{"an image's parts", archive(t, regular("manifest.json"), regular("oci-layout"), regular("blobs/x")), fault.Invalid, "parts of an image"},
		{"no archive", []byte("hello, world"), fault.Invalid, "cannot be read"},
		{"nothing", nil, fault.Invalid, "cannot be read"},
		{"only directories", archive(t, folder("a")), fault.Invalid, "no file in it"},
		{"cut off", good[:700], fault.Invalid, "cannot be read"},
		{"cut off while packed", zipped.Bytes()[:zipped.Len()-12], fault.Invalid, "cannot be read"},
		{"packed by xz", []byte("\xfd7zXZ\x00\x00\x00"), fault.Unsupported, "xz"},
		{"a zstd window of 2 GiB", append([]byte("\x28\xb5\x2f\xfd\x00\xa8"), make([]byte, 64)...), fault.Invalid, "cannot be read"},
	} {
		b, err := FromTar(t.Context(), bytes.NewReader(c.data), Options{MaxBytes: 1024, MaxFiles: 12})
		if err == nil {
			t.Errorf("%s: made %v", c.name, listOf(t, layerOf(t, b)))
			b.Close()
			continue
		}
		if fault.KindOf(err) != c.kind || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v (%v)", c.name, err, fault.KindOf(err))
		}
	}
	if b, err := FromTar(t.Context(), bytes.NewReader(good), Options{MaxBytes: 1024, MaxFiles: 12}); err != nil { // the control
		t.Error(err)
	} else {
		b.Close()
	}
}

type zeroes struct{}

func (zeroes) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

func TestWhatIsLeftOut(t *testing.T) {
	b := build(t, archive(t,
		tar.Header{Typeflag: tar.TypeReg, Name: "su", Mode: 0o4755}, tar.Header{Typeflag: tar.TypeReg, Name: "wall", Mode: 0o2755},
		tar.Header{Typeflag: tar.TypeDir, Name: "tmp", Mode: 0o1777},
		tar.Header{Typeflag: tar.TypeChar, Name: "null"}, tar.Header{Typeflag: tar.TypeBlock, Name: "disk"}, tar.Header{Typeflag: tar.TypeFifo, Name: "pipe"},
		tar.Header{Typeflag: tar.TypeReg, Name: "marked", Format: tar.FormatPAX, PAXRecords: map[string]string{
			"SCHILY.xattr.user.colour": "blue", "SCHILY.xattr.security.capability": "x", "SCHILY.xattr.trusted.overlay.opaque": "y", "SCHILY.xattr.user.overlay.opaque": "y",
		}},
	), Options{})
	if b.Counts.SetID != 2 || b.Counts.Special != 3 || b.Counts.Files != 3 {
		t.Errorf("%+v", b.Counts)
	}
	for r := tar.NewReader(bytes.NewReader(layerOf(t, b))); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		want := map[string]int64{"su": 0o755, "wall": 0o755, "tmp/": 0o1777}[h.Name]
		if want != 0 && h.Mode != want {
			t.Errorf("%s has mode %o", h.Name, h.Mode)
		}
		if keys := slices.Collect(maps.Keys(h.PAXRecords)); h.Name == "marked" && !slices.Equal(keys, []string{"SCHILY.xattr.user.colour"}) {
			t.Errorf("%v", keys)
		}
	}
}

// TestDirectory builds from a directory of one of everything, puts the layer into a store, and compares the trees.
func TestDirectory(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	if err := errors.Join(
		os.MkdirAll(in("etc/empty"), 0o755), os.WriteFile(in("etc/hostname"), []byte("box\n"), 0o640), os.Symlink("/etc/passwd", in("link")),
		os.WriteFile(in("big"), bytes.Repeat([]byte("0123456789"), 50_000), 0o755), os.Link(in("big"), in("etc/again")), unix.Mkfifo(in("pipe"), 0o600),
		os.WriteFile(filepath.Join(outside, "secret"), []byte("outside"), 0o600), os.Symlink(outside, in("away")), os.Chmod(dir, 0o755),
		os.Chtimes(in("etc/hostname"), noon, noon),
	); err != nil {
		t.Fatal(err)
	}
	b, err := FromDir(t.Context(), dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if b.Counts.Files != 2 || b.Counts.Links != 2 || b.Counts.Special != 1 || b.Counts.Dirs != 3 || b.Database != "" {
		t.Errorf("%+v", b)
	}
	data := layerOf(t, b)
	if bytes.Contains(data, []byte("outside")) || !bytes.Contains(data, []byte("box\n")) {
		t.Error("the layer holds what lies outside, or lacks what is there")
	}
	store, err := image.Open(filepath.Join(t.TempDir(), "images"))
	if err != nil {
		t.Fatal(err)
	}
	sbom, err := b.SBOM("box")
	if err != nil {
		t.Fatal(err)
	}
	layer := b.Layer(t.Context())
	defer layer.Close()
	i, err := store.Import(t.Context(), "box", layer, image.ImportOptions{Created: b.Newest, SBOM: sbom})
	if err != nil {
		t.Fatal(err)
	}
	again, err := FromDir(t.Context(), i.Tree, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if want := build(t, data, Options{}); os.Geteuid() == 0 && !bytes.Equal(layerOf(t, again), layerOf(t, want)) {
		t.Errorf("the tree in the store differs:\n%q\n%q", listOf(t, layerOf(t, again)), listOf(t, layerOf(t, want)))
	}
}

func TestDirectoryRefuses(t *testing.T) {
	for _, c := range []struct {
		path string
		kind fault.Kind
	}{{filepath.Join(t.TempDir(), "absent"), fault.Invalid}, {t.TempDir(), fault.Invalid}} {
		if _, err := FromDir(t.Context(), c.path, Options{}); fault.KindOf(err) != c.kind {
			t.Error(c.path, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "x"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := FromDir(ctx, dir, Options{}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestNothingIsLeft(t *testing.T) {
	temp := t.TempDir()
	b := build(t, archive(t, regular("x")), Options{Temp: temp})
	_ = layerOf(t, b)
	if entries, err := os.ReadDir(temp); err != nil || len(entries) != 0 {
		t.Error(entries, err)
	}
	r := b.Layer(t.Context()) // a reader that is not read to its end
	if err := errors.Join(r.Close(), b.Close()); err != nil {
		t.Error(err)
	}
}

func TestConfineComesBeforeTheFirstByte(t *testing.T) {
	refused := errors.New("refused")
	r := strings.NewReader("not read")
	if _, err := FromTar(t.Context(), r, Options{Confine: func() error { return refused }}); !errors.Is(err, refused) || r.Len() != 8 {
		t.Error(err, r.Len())
	}
}

// FuzzTar holds any archive to: it is refused, or its layer has clean unique names in directories, and a layer of that layer is the same.
func FuzzTar(f *testing.F) {
	f.Add(archive(f, folder("a"), regular("a/b"), hard("c", "a/b"), pointer("d", "../x")))
	f.Add(archive(f, regular("../x")))
	f.Add(archive(f, pointer("a", "b"), regular("a/x")))
	f.Fuzz(func(t *testing.T, data []byte) {
		b, err := FromTar(t.Context(), bytes.NewReader(data), Options{MaxBytes: 1 << 20, MaxFiles: 1000})
		if err != nil {
			return
		}
		defer b.Close()
		layer := layerOf(t, b)
		kinds := map[string]byte{"": tar.TypeDir}
		for r := tar.NewReader(bytes.NewReader(layer)); ; {
			h, err := r.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			name := strings.TrimSuffix(strings.TrimPrefix(h.Name, "./"), "/")
			if name != "" && (kinds[parentOf(name)] != tar.TypeDir || kinds[name] != 0 || filepath.Clean("/"+name) != "/"+name) {
				t.Fatalf("%q", h.Name)
			}
			kinds[name] = h.Typeflag
			if h.Mode&0o6000 != 0 {
				t.Fatalf("%q has mode %o", h.Name, h.Mode)
			}
		}
		again, err := FromTar(t.Context(), bytes.NewReader(layer), Options{MaxBytes: 1 << 20, MaxFiles: 1000})
		if err != nil {
			t.Fatal(err)
		}
		defer again.Close()
		if !bytes.Equal(layerOf(t, again), layer) {
			t.Fatal("a layer of the layer is another")
		}
	})
}

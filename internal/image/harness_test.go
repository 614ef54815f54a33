package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"

	"github.com/cofferdam/cofferdam/internal/fault"
)

// entry is one entry of a layer as tests write it.
type entry struct {
	name    string
	kind    byte // 0: a regular file
	content string
	link    string
	mode    int64 // 0: 0o644, or 0o755 of a directory
	uid     int
	pax     map[string]string
}

// archive writes a layer as it is.
func archive(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, e := range entries {
		h := &tar.Header{Name: e.name, Typeflag: e.kind, Linkname: e.link, Mode: e.mode, Uid: e.uid, Gid: e.uid, ModTime: time.Unix(1_700_000_000, 0), PAXRecords: e.pax, Format: tar.FormatPAX}
		if e.kind == 0 {
			h.Typeflag, h.Size = tar.TypeReg, int64(len(e.content))
		}
		if h.Mode == 0 {
			h.Mode = 0o644
			if e.kind == tar.TypeDir {
				h.Mode = 0o755
			}
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if e.kind == 0 {
			if _, err := w.Write([]byte(e.content)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func gzipped(data []byte) []byte {
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	_, _ = w.Write(data) // into memory
	_ = w.Close()
	return out.Bytes()
}

func zstded(data []byte) []byte {
	w, err := zstd.NewWriter(nil)
	if err != nil {
		panic(err)
	}
	return w.EncodeAll(data, nil)
}

// made is an image as a registry has it: documents and blobs by digest, and what it is called.
type made struct {
	blobs    map[string][]byte
	manifest v1.Manifest
	config   v1.ConfigFile
}

// build puts an image together of layers, each packed by how: "", gzip, zstd.
func build(t testing.TB, how string, layers ...[]byte) *made {
	t.Helper()
	m := &made{blobs: map[string][]byte{}}
	m.config = v1.ConfigFile{OS: "linux", Architecture: runtime.GOARCH, RootFS: v1.RootFS{Type: "layers"}}
	m.manifest = v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1, Config: v1.Descriptor{MediaType: types.OCIConfigJSON}}
	for _, l := range layers {
		packed, kind := l, types.OCIUncompressedLayer
		switch how {
		case "gzip":
			packed, kind = gzipped(l), types.OCILayer
		case "zstd":
			packed, kind = zstded(l), types.OCILayerZStd
		}
		m.config.RootFS.DiffIDs = append(m.config.RootFS.DiffIDs, v1Hash(l))
		m.manifest.Layers = append(m.manifest.Layers, v1.Descriptor{MediaType: kind, Size: int64(len(packed)), Digest: m.blob(packed)})
	}
	return m
}

func v1Hash(data []byte) v1.Hash {
	h, err := v1.NewHash(digestOf(data))
	if err != nil {
		panic(err)
	}
	return h
}

func (m *made) blob(data []byte) v1.Hash {
	m.blobs[digestOf(data)] = data
	return v1Hash(data)
}

// finish returns the manifest's bytes.
func (m *made) finish(t testing.TB) []byte {
	t.Helper()
	config, err := json.Marshal(m.config)
	if err != nil {
		t.Fatal(err)
	}
	m.manifest.Config.Size, m.manifest.Config.Digest = int64(len(config)), m.blob(config)
	data, err := json.Marshal(m.manifest)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// fake is a registry that does as a test says.
type fake struct {
	t      testing.TB
	server *httptest.Server
	mu     sync.Mutex
	asked  []string
	serve  map[string]http.HandlerFunc // by path
	pool   *x509.CertPool
	hosts  map[string]string // HOST:PORT to where it is; another is refused as the gateway's dialer would
}

const fakeHost = "example.com"

func newFake(t testing.TB) *fake {
	t.Helper()
	f := &fake{t: t, serve: map[string]http.HandlerFunc{}}
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.mu.Lock()
		f.asked = append(f.asked, r.Host+r.URL.Path)
		h := f.serve[r.URL.Path]
		f.mu.Unlock()
		if h == nil {
			http.NotFound(w, r)
			return
		}
		h(w, r)
	})
	f.server = httptest.NewTLSServer(handler)
	t.Cleanup(f.server.Close)
	f.pool = x509.NewCertPool()
	f.pool.AddCert(f.server.Certificate())
	f.hosts = map[string]string{fakeHost + ":443": f.server.Listener.Addr().String()}
	return f
}

// add serves an image by a tag and by its digest.
func (f *fake) add(repository, tag string, m *made) (digest string) {
	data := m.finish(f.t)
	for d, blob := range m.blobs {
		f.serve["/v2/"+repository+"/blobs/"+d] = func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(blob) }
	}
	f.document(repository, tag, string(m.manifest.MediaType), data)
	return digestOf(data)
}

// document serves a manifest or index.
func (f *fake) document(repository, tag, mediaType string, data []byte) {
	h := func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", mediaType)
		_, _ = w.Write(data)
	}
	f.serve["/v2/"+repository+"/manifests/"+digestOf(data)] = h
	if tag != "" {
		f.serve["/v2/"+repository+"/manifests/"+tag] = h
	}
}

func (f *fake) count(part string) (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, path := range f.asked {
		if strings.Contains(path, part) {
			n++
		}
	}
	return n
}

// options are those of a pull from the fake; what goes on record lands in attempts.
func (f *fake) options(attempts *[]Attempt) PullOptions {
	return PullOptions{
		Roots: f.pool,
		Dial: func(ctx context.Context, _, address string) (net.Conn, error) {
			to, ok := f.hosts[address]
			if !ok {
				return nil, fault.New(fault.Denied, "%s: it is in a private network", address).WithHint("if that is meant: --allow-network NETWORK")
			}
			return new(net.Dialer).DialContext(ctx, "tcp", to)
		},
		Record: func(_ context.Context, a Attempt) error { *attempts = append(*attempts, a); return nil },
	}
}

func open(t testing.TB) *Store {
	t.Helper()
	s, err := Open(filepath.Join(t.TempDir(), "images"))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// pulled pulls and expects it to work.
func (f *fake) pulled(t *testing.T, s *Store, ref string) Image {
	t.Helper()
	var attempts []Attempt
	i, err := s.Pull(t.Context(), ref, f.options(&attempts))
	if err != nil {
		t.Fatalf("%v (%s)", err, fault.HintOf(err))
	}
	if len(attempts) != 1 || attempts[0].Err != nil || attempts[0].Digest != i.Digest || !slices.Equal(attempts[0].Hosts, []string{fakeHost + ":443"}) {
		t.Errorf("on record: %+v", attempts)
	}
	return i
}

// snapshot is everything in a directory: name to kind, mode, size and link.
func snapshot(t testing.TB, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrPermission) {
			return nil
		}
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, path) // it is below
		text := info.Mode().String()
		switch {
		case info.Mode()&fs.ModeSymlink != 0:
			to, _ := os.Readlink(path) // empty shows
			text += " -> " + to
		case info.Mode().IsRegular():
			data, _ := os.ReadFile(path) // likewise
			text += fmt.Sprintf(" %.40q", data)
		}
		out[rel] = text
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func same(t testing.TB, what string, got, want map[string]string) {
	t.Helper()
	for _, name := range slices.Sorted(maps.Keys(got)) {
		if got[name] != want[name] {
			t.Errorf("%s: %s is %s, want %q", what, name, got[name], want[name])
		}
	}
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if _, there := got[name]; !there {
			t.Errorf("%s: %s is missing", what, name)
		}
	}
}

func listen(t testing.TB) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func chmod(t testing.TB, name string, mode os.FileMode) {
	t.Helper()
	if err := os.Chmod(name, mode); err != nil {
		t.Fatal(err)
	}
}

// asUser runs tests of this package again, as an ordinary user.
func asUser(t *testing.T, tests string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "image-user-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = removeAll(dir) }) // only the test's own
	self, err := os.ReadFile("/proc/self/exe")
	program := filepath.Join(dir, "self.test")
	if err := errors.Join(err, os.WriteFile(program, self, 0o755), os.Chown(dir, 65534, 65534), os.Chmod(program, 0o755)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), program, "-test.run="+tests, "-test.v")
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "TMPDIR="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS") {
		t.Errorf("%v\n%s", err, out)
	}
}

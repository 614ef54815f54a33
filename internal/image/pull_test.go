package image

import (
	"archive/tar"
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"encoding/json"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/cofferdam/cofferdam/internal/fault"
)

// base and more are two layers of an ordinary image.
func base(t testing.TB) []byte {
	return archive(t, entry{name: "etc/", kind: tar.TypeDir}, entry{name: "etc/name", content: "base"}, entry{name: "etc/old", content: "old"},
		entry{name: "usr/bin/tool", content: "tool", mode: 0o4755}, entry{name: "bin", kind: tar.TypeSymlink, link: "usr/bin"}, entry{name: "var/run", kind: tar.TypeSymlink, link: "/run"},
		entry{name: "run/", kind: tar.TypeDir, mode: 0o1777})
}

func more(t testing.TB) []byte {
	return archive(t, entry{name: "etc/name", content: "more"}, entry{name: "etc/.wh.old"}, entry{name: "bin/extra", content: "extra", mode: 0o555},
		entry{name: "usr/bin/same", kind: tar.TypeLink, link: "usr/bin/tool"}, entry{name: "var/run/pid", content: "1"})
}

func wantTree() map[string]string {
	return map[string]string{
		".": "drwxr-xr-x", "etc": "drwxr-xr-x", "etc/name": `-rw-r--r-- "more"`, "usr": "drwxr-xr-x", "usr/bin": "drwxr-xr-x", "usr/bin/tool": `-rwxr-xr-x "tool"`,
		"usr/bin/same": `-rwxr-xr-x "tool"`, "usr/bin/extra": `-r-xr-xr-x "extra"`, "bin": "Lrwxrwxrwx -> usr/bin", "var": "drwxr-xr-x", "var/run": "Lrwxrwxrwx -> /run",
		"run": "dtrwxrwxrwx", "run/pid": `-rw-r--r-- "1"`,
	}
}

func TestPull(t *testing.T) {
	for _, how := range []string{"", "gzip", "zstd"} {
		t.Run("packed "+how, func(t *testing.T) {
			f, s := newFake(t), open(t)
			m := build(t, how, base(t), more(t))
			m.config.Config = v1.Config{Env: []string{"PATH=/bin", "LD_PRELOAD=/evil.so", "https_proxy=http://evil"}, Cmd: []string{"tool"}, WorkingDir: "/work/", User: "app:staff",
				Volumes: map[string]struct{}{"/data": {}}, ExposedPorts: map[string]struct{}{"80/tcp": {}}}
			digest := f.add("team/tool", "1.2", m)
			i := f.pulled(t, s, "example.com/team/tool:1.2")
			if i.Digest != digest || !slices.Equal(i.Names, []string{"example.com/team/tool:1.2"}) || i.Source != i.Names[0] || i.Pulled.IsZero() {
				t.Errorf("%+v", i)
			}
			same(t, "tree", snapshot(t, i.Tree), wantTree())
			if c := i.Config; !slices.Equal(c.Env, []string{"PATH=/bin"}) || c.WorkingDir != "/work" || c.User != "app:staff" || !slices.Equal(c.Cmd, []string{"tool"}) || len(c.Ignored) != 4 {
				t.Errorf("%+v", c)
			}
			if len(i.Notes) != 1 || !strings.Contains(i.Notes[0], "set-id") {
				t.Errorf("notes %q", i.Notes)
			}
			for _, ref := range []string{"example.com/team/tool:1.2", "example.com/team/tool@" + digest, digest, digest[len("sha256:"):][:6]} {
				if found, err := s.Find(ref); err != nil || found.Digest != digest {
					t.Errorf("%s: %v", ref, err)
				}
			}
			if left, err := os.ReadDir(filepath.Join(s.dir, stagingDir)); err != nil || len(left) != 0 {
				t.Errorf("staging holds %v, %v", left, err)
			}
			// By digest it is there already: no layer is fetched.
			before := f.count("/blobs/")
			if again := f.pulled(t, s, "example.com/team/tool@"+digest); len(again.Names) != 2 || f.count("/blobs/") != before {
				t.Errorf("again: %v, %d blobs more", again.Names, f.count("/blobs/")-before)
			}
		})
	}
}

// index is a list of images for several platforms.
func (f *fake) index(repository, tag string, entries ...v1.Descriptor) v1.Descriptor {
	data, err := json.Marshal(v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: entries})
	if err != nil {
		f.t.Fatal(err)
	}
	f.document(repository, tag, string(types.OCIImageIndex), data)
	return v1.Descriptor{MediaType: types.OCIImageIndex, Size: int64(len(data)), Digest: v1Hash(data)}
}

func (f *fake) descriptor(m *made, platform *v1.Platform) v1.Descriptor {
	data := m.finish(f.t)
	return v1.Descriptor{MediaType: m.manifest.MediaType, Size: int64(len(data)), Digest: v1Hash(data), Platform: platform}
}

func TestPullIndex(t *testing.T) {
	f, s := newFake(t), open(t)
	here := thisPlatform()
	m := build(t, "gzip", base(t))
	m.manifest.MediaType, m.manifest.Config.MediaType = types.DockerManifestSchema2, types.DockerConfigJSON
	m.manifest.Layers[0].MediaType = types.DockerLayer
	digest := f.add("tool", "", m)
	inner := f.index("tool", "flat", v1.Descriptor{MediaType: types.OCIManifestSchema1, Size: 10, Digest: v1Hash(nil), Platform: &v1.Platform{OS: "linux", Architecture: "mips"}}, f.descriptor(m, &here))
	nested := f.index("tool", "nested", inner)
	f.index("tool", "deep", nested)
	i := f.pulled(t, s, "example.com/tool:flat")
	if i.Digest != digest || i.Index != inner.Digest.String() {
		t.Errorf("%+v", i)
	}
	if found, err := s.Find("example.com/tool@" + i.Index); err != nil || found.Digest != digest {
		t.Errorf("by the digest of the list: %v", err)
	}
	if i := f.pulled(t, s, "example.com/tool@"+inner.Digest.String()); i.Digest != digest {
		t.Errorf("%+v", i)
	}
	if i := f.pulled(t, s, "example.com/tool:nested"); i.Digest != digest {
		t.Errorf("%+v", i)
	}
	if _, err := s.Pull(t.Context(), "example.com/tool:deep", f.options(&[]Attempt{})); fault.KindOf(err) != fault.Unsupported {
		t.Errorf("a list of lists of lists: %v", err)
	}
}

func TestTagMoves(t *testing.T) {
	f, s := newFake(t), open(t)
	first := f.add("tool", "latest", build(t, "gzip", base(t)))
	i := f.pulled(t, s, "example.com/tool")
	held, err := i.Hold()
	if err != nil {
		t.Fatal(err)
	}
	second := f.add("tool", "latest", build(t, "gzip", base(t), more(t)))
	if i := f.pulled(t, s, "example.com/tool"); i.Digest != second || len(i.Names) != 1 {
		t.Errorf("%+v", i)
	}
	old, err := s.Find(first)
	if err != nil || len(old.Names) != 0 {
		t.Fatalf("%+v, %v", old, err)
	}
	if p, err := s.Prune(true); err != nil || len(p.Images) != 0 {
		t.Errorf("pruned what is held: %v, %v", p, err)
	}
	if err := s.Remove(first); fault.KindOf(err) != fault.Conflict || fault.HintOf(err) == "" {
		t.Errorf("removed what is held: %v", err)
	}
	_ = held.Close()
	if p, err := s.Prune(false); err != nil || len(p.Images) != 0 {
		t.Errorf("%v, %v", p, err)
	}
	if p, err := s.Prune(true); err != nil || !slices.Equal(p.Images, []string{first}) {
		t.Errorf("%v, %v", p, err)
	}
	if _, err := old.Hold(); fault.KindOf(err) != fault.NotFound {
		t.Errorf("held what is gone: %v", err)
	}
	if err := s.Remove("example.com/tool"); err != nil {
		t.Error(err)
	}
	if list, err := s.List(); err != nil || len(list) != 0 {
		t.Errorf("%v, %v", list, err)
	}
	if left := snapshot(t, s.dir); len(left) != 6 { // the directories, names.json and the lock
		t.Errorf("left: %v", left)
	}
}

// TestRecordOrNothing holds a pull to its record: what cannot be recorded is not kept.
func TestRecordOrNothing(t *testing.T) {
	f, s := newFake(t), open(t)
	f.add("tool", "1", build(t, "gzip", base(t)))
	before := snapshot(t, s.dir)
	o := f.options(nil)
	o.Record = func(context.Context, Attempt) error { return errors.New("the disk is full") }
	if _, err := s.Pull(t.Context(), "example.com/tool:1", o); err == nil || !strings.Contains(err.Error(), "the disk is full") {
		t.Error(err)
	}
	after := snapshot(t, s.dir)
	delete(after, "records/lock")
	same(t, "store", after, before)
}

// TestTokens has a registry that wants a token, with and without a credential, and a store of blobs elsewhere: each hears only what is its own.
func TestTokens(t *testing.T) {
	f, s := newFake(t), open(t)
	m := build(t, "gzip", base(t))
	f.add("tool", "1", m)
	f.hosts["auth.example.com:443"], f.hosts["blobs.example.com:443"] = f.server.Listener.Addr().String(), f.server.Listener.Addr().String()
	for path, h := range f.serve {
		f.serve[path] = func(w http.ResponseWriter, r *http.Request) {
			switch {
			case r.Host == "blobs.example.com":
				if r.Header.Get("Authorization") != "" {
					t.Error("the store of blobs heard a token")
				}
				h(w, r)
			case r.Header.Get("Authorization") != "Bearer the-token":
				w.Header().Set("WWW-Authenticate", `Bearer realm="https://auth.example.com/token",service="example.com",scope="repository:other:push"`)
				w.WriteHeader(http.StatusUnauthorized)
			case strings.Contains(path, "/blobs/"):
				http.Redirect(w, r, "https://blobs.example.com"+path+"?signed=1", http.StatusTemporaryRedirect)
			default:
				h(w, r)
			}
		}
	}
	f.serve["/token"] = func(w http.ResponseWriter, r *http.Request) {
		if got := r.URL.Query().Get("scope"); got != "repository:tool:pull" || r.URL.Query().Get("service") != "example.com" {
			t.Errorf("scope %q", got)
		}
		if r.Header.Get("Authorization") != "Basic lent" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		_, _ = w.Write([]byte(`{"access_token":"the-token"}`))
	}
	var attempts []Attempt
	o := f.options(&attempts)
	if _, err := s.Pull(t.Context(), "example.com/tool:1", o); fault.KindOf(err) != fault.Denied || !strings.Contains(fault.HintOf(err), "--credential") {
		t.Errorf("without a credential: %v", err)
	}
	lentTo := map[string]int{}
	o.Authorize = func(_ context.Context, r *http.Request) error {
		lentTo[r.URL.Host]++
		r.Header.Set("Authorization", "Basic lent")
		return nil
	}
	if _, err := s.Pull(t.Context(), "example.com/tool:1", o); err != nil {
		t.Fatal(err)
	}
	if len(lentTo) != 1 || lentTo["auth.example.com"] != 1 {
		t.Errorf("the credential was lent to %v", lentTo)
	}
	if last := attempts[len(attempts)-1]; !slices.Equal(last.Hosts, []string{"example.com:443", "auth.example.com:443", "blobs.example.com:443"}) || last.Bytes != m.manifest.Layers[0].Size {
		t.Errorf("on record: %+v", last)
	}
	o.Authorize = func(_ context.Context, r *http.Request) error {
		return fault.New(fault.Denied, "the credential is not for the host %s", r.URL.Host)
	}
	if _, err := s.Pull(t.Context(), "example.com/tool:2", o); err == nil { // there is no such tag, nor a token for it
		t.Error("pulled")
	}
	f.serve["/v2/tool/manifests/3"] = f.serve["/v2/tool/manifests/1"]
	_, err := s.Pull(t.Context(), "example.com/tool:3", o)
	if fault.KindOf(err) != fault.Denied || !strings.Contains(err.Error(), "auth.example.com") || !strings.Contains(fault.HintOf(err), "auth.example.com") {
		t.Errorf("a credential that is not for the place of tokens: %v (%s)", err, fault.HintOf(err))
	}
}

func TestBasic(t *testing.T) {
	f, s := newFake(t), open(t)
	f.add("tool", "1", build(t, "gzip", base(t)))
	for path, h := range f.serve {
		f.serve[path] = func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Authorization") != "Basic lent" {
				w.Header().Set("WWW-Authenticate", `Basic realm="registry"`)
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			h(w, r)
		}
	}
	o := f.options(&[]Attempt{})
	if _, err := s.Pull(t.Context(), "example.com/tool:1", o); fault.KindOf(err) != fault.Denied {
		t.Error(err)
	}
	o.Authorize = func(_ context.Context, r *http.Request) error {
		r.Header.Set("Authorization", "Basic lent")
		return nil
	}
	if _, err := s.Pull(t.Context(), "example.com/tool:1", o); err != nil {
		t.Error(err)
	}
}

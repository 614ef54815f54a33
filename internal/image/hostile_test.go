package image

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/cofferdam/cofferdam/internal/fault"
)

// hostile is a registry, or an image, that must be refused: what is wrong with it, and what the refusal says.
type hostile struct {
	name string
	make func(f *fake, m *made) // m is an ordinary image of two layers; it is served afterwards as example.com/tool:1
	then func(f *fake, m *made) // after it is served
	kind fault.Kind
	says string
}

// firstLayer is where the first layer is served.
func firstLayer(m *made) string { return "/v2/tool/blobs/" + m.manifest.Layers[0].Digest.String() }

// sends makes the first layer come otherwise.
func sends(h http.HandlerFunc) func(*fake, *made) {
	return func(f *fake, m *made) { f.serve[firstLayer(m)] = h }
}

func redirects(to string) func(*fake, *made) {
	return sends(func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, to, http.StatusFound) })
}

// demands has the registry send to a place for tokens.
func demands(challenge string) func(*fake, *made) {
	return func(f *fake, _ *made) {
		f.serve["/v2/tool/manifests/1"] = func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("WWW-Authenticate", challenge)
			w.WriteHeader(http.StatusUnauthorized)
		}
	}
}

// answers has the manifest be something else.
func answers(mediaType, text string) func(*fake, *made) {
	return func(f *fake, _ *made) { f.document("tool", "1", mediaType, []byte(text)) }
}

// zeros writes n bytes of zeros.
func zeros(w io.Writer, n int64) {
	_, _ = io.CopyN(w, zeroReader{}, n) // who does not read on hears no more
}

type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// bomb is a layer of few bytes that unpacks to many.
func bomb(unpacked int64) []byte {
	var out bytes.Buffer
	w, _ := gzip.NewWriterLevel(&out, gzip.BestCompression) // the level is one
	zeros(w, unpacked)
	_ = w.Close() // into memory
	return out.Bytes()
}

func hostileBlobs(t testing.TB) []hostile {
	return []hostile{
		{name: "corrupted layer", then: func(f *fake, m *made) {
			data := bytes.Clone(m.blobs[m.manifest.Layers[0].Digest.String()])
			data[len(data)/2] ^= 1
			sends(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(data) })(f, m)
		}, kind: fault.Invalid, says: "in place of"},
		{name: "another layer", then: func(f *fake, m *made) {
			sends(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("short")) })(f, m)
		}, kind: fault.Invalid, says: "in place of"},
		{name: "wrong size", make: func(_ *fake, m *made) { m.manifest.Layers[0].Size-- }, kind: fault.Invalid, says: "in place of"},
		{name: "endless body", then: sends(func(w http.ResponseWriter, _ *http.Request) { zeros(w, 1<<40) }), kind: fault.Invalid, says: "more bytes"},
		{name: "body that breaks off", then: sends(func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write([]byte("a"))
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		}), kind: fault.Unavailable, says: "broke off"},
		{name: "slow body", then: sends(func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				_, _ = w.Write([]byte("a"))
				_ = http.NewResponseController(w).Flush()
				time.Sleep(10 * time.Millisecond)
			}
		}), kind: fault.Unavailable, says: "sends less than"},
		{name: "slow configuration", then: func(f *fake, m *made) {
			f.serve["/v2/tool/blobs/"+m.manifest.Config.Digest.String()] = func(w http.ResponseWriter, r *http.Request) {
				for r.Context().Err() == nil {
					_, _ = w.Write([]byte(" "))
					_ = http.NewResponseController(w).Flush()
					time.Sleep(10 * time.Millisecond)
				}
			}
		}, kind: fault.Unavailable, says: "broke off"},
		{name: "no answer", then: sends(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }), kind: fault.Unavailable, says: "does not answer"},
		{name: "missing layer", then: sends(http.NotFound), kind: fault.NotFound, says: "has nothing of"},
		{name: "redirect to a metadata service", then: redirects("https://169.254.169.254/latest/"), kind: fault.Denied, says: "169.254.169.254"},
		{name: "redirect to loopback", then: redirects("https://127.0.0.1/x"), kind: fault.Denied, says: "127.0.0.1"},
		{name: "redirect to IPv6 loopback", then: redirects("https://[::1]/x"), kind: fault.Denied, says: "::1"},
		{name: "redirect to a name in a private network", then: redirects("https://inside.example.com/x"), kind: fault.Denied, says: "sends us to inside.example.com"},
		{name: "redirect to http", then: redirects("http://example.com/x"), kind: fault.Denied, says: "only https"},
		{name: "redirect to a file", then: redirects("file:///etc/passwd"), kind: fault.Denied, says: "only https"},
		{name: "redirect with a user", then: redirects("https://user:password@example.com/x"), kind: fault.Denied, says: "user"},
		{name: "redirect in a circle", then: func(f *fake, m *made) { redirects("https://example.com"+firstLayer(m))(f, m) }, kind: fault.Denied, says: "more than 5"},
		{name: "redirect to nowhere", then: sends(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusFound) }), kind: fault.Denied, says: "no place"},
		{name: "gzip bomb", make: func(_ *fake, m *made) {
			data := bomb(64 << 20)
			m.manifest.Layers[0] = v1.Descriptor{MediaType: types.OCILayer, Size: int64(len(data)), Digest: m.blob(data)}
		}, kind: fault.TooMany, says: "unpacks to more than"},
		{name: "bomb behind the archive", make: func(_ *fake, m *made) {
			data := append(gzipped(archive(t)), bomb(64<<20)...)
			m.manifest.Layers[0] = v1.Descriptor{MediaType: types.OCILayer, Size: int64(len(data)), Digest: m.blob(data)}
		}, kind: fault.TooMany, says: "unpacks to more than"},
		{name: "truncated gzip", make: func(_ *fake, m *made) {
			data := m.blobs[m.manifest.Layers[0].Digest.String()]
			data = data[:len(data)-20]
			m.manifest.Layers[0] = v1.Descriptor{MediaType: types.OCILayer, Size: int64(len(data)), Digest: m.blob(data)}
		}, kind: fault.Invalid, says: "damaged"},
		{name: "no gzip", make: func(_ *fake, m *made) { m.manifest.Layers[0].MediaType = types.OCILayerZStd }, kind: fault.Invalid, says: "damaged"},
		{name: "wrong diff ID", make: func(_ *fake, m *made) { m.config.RootFS.DiffIDs[0] = v1Hash(nil) }, kind: fault.Invalid, says: "unpacks to"},
	}
}

func hostileManifests() []hostile {
	const zero = "sha256:0000000000000000000000000000000000000000000000000000000000000000"
	return []hostile{
		{name: "10,000 layers", make: func(_ *fake, m *made) {
			for range 10_000 {
				m.manifest.Layers = append(m.manifest.Layers, m.manifest.Layers[0])
			}
		}, kind: fault.TooMany, says: "10002 layers"},
		{name: "no layers", make: func(_ *fake, m *made) { m.manifest.Layers = nil }, kind: fault.TooMany, says: "0 layers"},
		{name: "foreign layer", make: func(_ *fake, m *made) { m.manifest.Layers[0].MediaType = types.DockerForeignLayer }, kind: fault.Unsupported, says: "layer of the type"},
		{name: "layer elsewhere", make: func(_ *fake, m *made) { m.manifest.Layers[0].URLs = []string{"https://elsewhere.example.org/x"} }, kind: fault.Unsupported, says: "elsewhere"},
		{name: "huge layer", make: func(_ *fake, m *made) { m.manifest.Layers[0].Size = 1 << 40 }, kind: fault.TooMany, says: "are the most"},
		{name: "layers that are huge together", make: func(_ *fake, m *made) { m.manifest.Layers[0].Size, m.manifest.Layers[1].Size = 20<<20, 20<<20 }, kind: fault.TooMany, says: "are the most"},
		{name: "negative size", make: func(_ *fake, m *made) { m.manifest.Layers[0].Size = -1 }, kind: fault.TooMany, says: "are the most"},
		{name: "huge configuration", make: func(_ *fake, m *made) { m.config.Author = strings.Repeat("a", maxConfig) }, kind: fault.TooMany, says: "are the most"},
		{name: "another configuration", then: func(f *fake, m *made) {
			f.serve["/v2/tool/blobs/"+m.manifest.Config.Digest.String()] = func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("{}")) }
		}, kind: fault.Invalid, says: "in place of"},
		{name: "fewer diff IDs", make: func(_ *fake, m *made) { m.config.RootFS.DiffIDs = m.config.RootFS.DiffIDs[:1] }, kind: fault.Invalid, says: "names 1 layers"},
		{name: "another platform", make: func(_ *fake, m *made) { m.config.Architecture = "mips" }, kind: fault.Unsupported, says: "linux/mips"},
		{name: "an artifact", make: func(_ *fake, m *made) { m.manifest.Config.MediaType = "application/vnd.example" }, kind: fault.Unsupported, says: "no image"},
		{name: "command with NUL", make: func(_ *fake, m *made) { m.config.Config.Cmd = []string{"a\x00b"} }, kind: fault.Invalid, says: "NUL"},
		{name: "endless command", make: func(_ *fake, m *made) { m.config.Config.Cmd = make([]string, 10_000) }, kind: fault.TooMany, says: "arguments"},
		{name: "endless environment", make: func(_ *fake, m *made) { m.config.Config.Env = make([]string, 10_000) }, kind: fault.TooMany, says: "variables"},
		{name: "huge manifest", then: answers(string(types.OCIManifestSchema1), strings.Repeat(" ", maxManifest+1)), kind: fault.TooMany, says: "more than"},
		{name: "schema 1", then: answers("application/vnd.docker.distribution.manifest.v1+prettyjws", `{"schemaVersion":1}`), kind: fault.Unsupported, says: "first schema"},
		{name: "schema 1 in disguise", then: answers(string(types.OCIManifestSchema1), `{"schemaVersion":1,"fsLayers":[]}`), kind: fault.Unsupported, says: "first schema"},
		{name: "a web page", then: answers("text/html", `<html>`), kind: fault.Invalid, says: "something else"},
		{name: "JSON of no type", then: answers("application/json", `{"schemaVersion":2}`), kind: fault.Unsupported, says: "of the type"},
		{name: "two types", then: answers(string(types.OCIManifestSchema1), `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json"}`), kind: fault.Invalid, says: "calls itself"},
		{name: "image and list at once", then: answers(string(types.OCIManifestSchema1), `{"schemaVersion":2,"config":{},"layers":[],"manifests":[]}`), kind: fault.Invalid, says: "at once"},
		{name: "list and image at once", then: answers(string(types.OCIImageIndex), `{"schemaVersion":2,"manifests":[],"layers":[]}`), kind: fault.Invalid, says: "at once"},
		{name: "list without this platform", then: answers(string(types.OCIImageIndex), `{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","size":3,"digest":"`+zero+`","platform":{"os":"plan9","architecture":"mips"}}]}`), kind: fault.NotFound, says: "plan9/mips"},
		{name: "digest of another kind", then: answers(string(types.OCIManifestSchema1), `{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","size":2,"digest":"md5:0"}}`), kind: fault.Invalid, says: "damaged"},
		{name: "list that says another size", then: func(f *fake, m *made) {
			here := thisPlatform()
			d := f.descriptor(m, &here)
			d.Size++
			f.index("tool", "1", d)
		}, kind: fault.Invalid, says: "the list of images says"},
		{name: "list that leads to another image", then: func(f *fake, m *made) {
			here := thisPlatform()
			d := f.descriptor(m, &here)
			f.serve["/v2/tool/manifests/"+d.Digest.String()] = func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", string(d.MediaType))
				_, _ = w.Write([]byte(`{"schemaVersion":2}`))
			}
			f.index("tool", "1", d)
		}, kind: fault.Invalid, says: "in place of"},
		{name: "tag with another digest in its header", then: func(f *fake, _ *made) {
			h := f.serve["/v2/tool/manifests/1"]
			f.serve["/v2/tool/manifests/1"] = func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Docker-Content-Digest", zero)
				h(w, r)
			}
		}, kind: fault.Invalid, says: "in place of"},
		{name: "no image", then: func(f *fake, _ *made) { delete(f.serve, "/v2/tool/manifests/1") }, kind: fault.NotFound, says: "has nothing"},
		{name: "server error", then: func(f *fake, _ *made) {
			f.serve["/v2/tool/manifests/1"] = func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) }
		}, kind: fault.Unavailable, says: "status 502"},
		{name: "too many requests", then: func(f *fake, _ *made) {
			f.serve["/v2/tool/manifests/1"] = func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTooManyRequests) }
		}, kind: fault.TooMany, says: "fewer requests"},
		{name: "token from a private address", then: demands(`Bearer realm="https://10.0.0.1/token"`), kind: fault.Denied, says: "10.0.0.1"},
		{name: "token from a name in a private network", then: demands(`Bearer realm="https://inside.example.com/token"`), kind: fault.Denied, says: "inside.example.com"},
		{name: "token without TLS", then: demands(`Bearer realm="http://example.com/token"`), kind: fault.Denied, says: "only https"},
		{name: "token from nowhere", then: demands(`Bearer service="x"`), kind: fault.Denied, says: "no place"},
		{name: "token that is none", then: func(f *fake, m *made) {
			f.serve["/token"] = func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{"token":"a\r\nHost: b"}`)) }
			demands(`Bearer realm="https://example.com/token"`)(f, m)
		}, kind: fault.Unavailable, says: "something else than a token"},
		{name: "token that is endless", then: func(f *fake, m *made) {
			f.serve["/token"] = func(w http.ResponseWriter, _ *http.Request) { zeros(w, 1<<40) }
			demands(`Bearer realm="https://example.com/token"`)(f, m)
		}, kind: fault.TooMany, says: "a token of more than"},
		{name: "token elsewhere", then: func(f *fake, m *made) {
			f.serve["/token"] = func(w http.ResponseWriter, r *http.Request) {
				http.Redirect(w, r, "https://example.com/other", http.StatusFound)
			}
			demands(`Bearer realm="https://example.com/token"`)(f, m)
		}, kind: fault.Denied, says: "status 302"},
		{name: "challenge that nobody understands", then: demands("Digest realm=x"), kind: fault.Denied, says: "status 401"},
	}
}

// TestHostile refuses every one of them with words that say why, records the refusal, and leaves the store as it was.
func TestHostile(t *testing.T) {
	for _, h := range append(hostileBlobs(t), hostileManifests()...) {
		t.Run(h.name, func(t *testing.T) {
			f, s := newFake(t), open(t)
			f.add("tool", "good", build(t, "gzip", archive(t, entry{name: "good", content: "good"})))
			f.pulled(t, s, "example.com/tool:good")
			before := snapshot(t, s.dir)
			m := build(t, "gzip", base(t), more(t))
			if h.make != nil {
				h.make(f, m)
			}
			f.add("tool", "1", m)
			if h.then != nil {
				h.then(f, m)
			}
			var attempts []Attempt
			o := f.options(&attempts)
			o.stall, o.Bounds = time.Second, Bounds{Unpacked: 32 << 20, Packed: 32 << 20}
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			_, err := s.Pull(ctx, "example.com/tool:1", o)
			if fault.KindOf(err) != h.kind || !strings.Contains(fmt.Sprint(err), h.says) {
				t.Errorf("%v: %v, want %v with %q", fault.KindOf(err), err, h.kind, h.says)
			}
			if len(attempts) != 1 || attempts[0].Err == nil || attempts[0].Reference != "example.com/tool:1" {
				t.Errorf("on record: %+v", attempts)
			}
			same(t, "store", snapshot(t, s.dir), before)
		})
	}
}

// TestInterrupted leaves nothing of a pull that a person gave up, and what a killed one left is swept away.
func TestInterrupted(t *testing.T) {
	f, s := newFake(t), open(t)
	m := build(t, "gzip", base(t))
	f.add("tool", "1", m)
	f.add("other", "1", build(t, "gzip", archive(t, entry{name: "good", content: "good"})))
	f.pulled(t, s, "example.com/other:1")
	before := snapshot(t, s.dir)
	ctx, cancel := context.WithCancel(t.Context())
	sends(func(w http.ResponseWriter, r *http.Request) {
		cancel()
		<-r.Context().Done()
	})(f, m)
	var attempts []Attempt
	if _, err := s.Pull(ctx, "example.com/tool:1", f.options(&attempts)); err == nil || len(attempts) != 1 || attempts[0].Err == nil {
		t.Errorf("%v, on record: %+v", err, attempts)
	}
	same(t, "store", snapshot(t, s.dir), before)
	g, err := s.stage()
	if err != nil {
		t.Fatal(err)
	}
	if n, err := s.Sweep(); n != 0 || err != nil {
		t.Errorf("swept away what lives: %d, %v", n, err)
	}
	_ = g.lock.Close() // as a kill would
	if err := writeWhole(s.record(strings.Repeat("0", 64)), Image{}); err != nil {
		t.Fatal(err)
	}
	if p, err := s.Prune(false); p.Leftovers != 2 || err != nil {
		t.Errorf("%+v, %v", p, err)
	}
	same(t, "store", snapshot(t, s.dir), before)
}

// TestPlainHTTP speaks without TLS to the registry that was named, and to nobody else.
func TestPlainHTTP(t *testing.T) {
	f, s := newFake(t), open(t)
	m := build(t, "gzip", base(t))
	f.add("tool", "1", m)
	plain := http.Server{Handler: f.server.Config.Handler}
	l := listen(t)
	go func() { _ = plain.Serve(l) }() // ends with Close
	t.Cleanup(func() { _ = plain.Close() })
	f.hosts = map[string]string{"example.com:5000": l.Addr().String(), "example.com:80": l.Addr().String()}
	o := f.options(&[]Attempt{})
	if _, err := s.Pull(t.Context(), "example.com:5000/tool:1", o); fault.KindOf(err) != fault.Unavailable || !strings.Contains(fault.HintOf(err), "--plain-http example.com:5000") {
		t.Errorf("%v (%s)", err, fault.HintOf(err))
	}
	o.PlainHTTP = "example.com:5000"
	redirects("http://example.com/x")(f, m)
	if _, err := s.Pull(t.Context(), "example.com:5000/tool:1", o); fault.KindOf(err) != fault.Denied || !strings.Contains(err.Error(), "only https") {
		t.Error(err)
	}
	o.Authorize = func(context.Context, *http.Request) error { t.Error("lent in plain"); return nil }
	demands("Basic realm=x")(f, m)
	if _, err := s.Pull(t.Context(), "example.com:5000/tool:1", o); fault.KindOf(err) != fault.Denied || !strings.Contains(err.Error(), "without TLS") {
		t.Error(err)
	}
	o.Authorize = nil
	f.add("tool", "1", m)
	if _, err := s.Pull(t.Context(), "example.com:5000/tool:1", o); err != nil {
		t.Error(err)
	}
}

// TestUntrusted refuses a certificate that nobody vouches for, and says how to vouch for it.
func TestUntrusted(t *testing.T) {
	f, s := newFake(t), open(t)
	f.add("tool", "1", build(t, "gzip", base(t)))
	o := f.options(&[]Attempt{})
	o.Roots = nil
	if _, err := s.Pull(t.Context(), "example.com/tool:1", o); fault.KindOf(err) != fault.Unavailable || !strings.Contains(fault.HintOf(err), "--ca") {
		t.Errorf("%v (%s)", err, fault.HintOf(err))
	}
	if f.count("/v2/") != 0 {
		t.Error("a request arrived")
	}
}

// TestStoreRefuses opens no store that others can look into.
func TestStoreRefuses(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "images")
	if _, err := Open(dir); err != nil {
		t.Fatal(err)
	}
	chmod(t, dir, 0o755)
	if _, err := Open(dir); fault.KindOf(err) != fault.Denied || !strings.Contains(fault.HintOf(err), "chmod 700") {
		t.Error(err)
	}
}

// TestImageJSON holds the names that others read.
func TestImageJSON(t *testing.T) {
	data, err := json.Marshal(Image{Names: []string{}})
	if err != nil || !strings.HasPrefix(string(data), `{"names":[],"digest":"","tree":"","disk":"","size":0`) {
		t.Errorf("%s, %v", data, err)
	}
}

package image

import (
	"bytes"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"testing"

	ggcr "github.com/google/go-containerregistry/pkg/registry"
)

// TestRealRegistry pulls from a registry that others wrote, to which the image was pushed as tools do it.
func TestRealRegistry(t *testing.T) {
	f, s := newFake(t), open(t)
	server := httptest.NewTLSServer(ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(server.Close)
	f.hosts["example.com:443"] = server.Listener.Addr().String()
	send := func(method, path, mediaType string, body []byte) {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), method, server.URL+path, bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", mediaType)
		answer, err := server.Client().Do(r)
		if err != nil {
			t.Fatal(err)
		}
		_ = answer.Body.Close() // the status says it
		if answer.StatusCode != http.StatusCreated {
			t.Fatalf("%s %s: status %d", method, path, answer.StatusCode)
		}
	}
	m := build(t, "zstd", base(t), more(t))
	data := m.finish(t)
	for digest, blob := range m.blobs {
		send(http.MethodPost, "/v2/team/tool/blobs/uploads/?digest="+digest, "application/octet-stream", blob)
	}
	send(http.MethodPut, "/v2/team/tool/manifests/1.2", string(m.manifest.MediaType), data)
	i := f.pulled(t, s, "example.com/team/tool:1.2")
	same(t, "tree", snapshot(t, i.Tree), wantTree())
	if i.Digest != digestOf(data) {
		t.Errorf("%+v", i)
	}
}

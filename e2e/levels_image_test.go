package e2e

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/cofferdam/cofferdam/internal/testenv"
)

// smallLayer is the one layer of an image with a shell and small tools, made once for the test process.
var smallLayer = sync.OnceValues(func() ([]byte, error) {
	dir, err := testenv.TreeFor(0)
	if err != nil {
		return nil, err
	}
	return exec.Command("tar", "-C", dir, "--owner=0", "--group=0", "--exclude=./usr/lib/python3*", "--exclude=./usr/bin/python3", "--exclude=./usr/bin/curl", "-c", ".").Output()
})

// serveImage is a registry with one image, as tests/small:1.
func serveImage(t *testing.T) (host string) {
	t.Helper()
	layer, err := smallLayer()
	if err != nil {
		t.Fatal(err)
	}
	digest := func(data []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(data)) }
	encode := func(v any) []byte {
		data, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	type object = map[string]any
	config := encode(object{
		"architecture": runtime.GOARCH, "os": "linux", "rootfs": object{"type": "layers", "diff_ids": []string{digest(layer)}},
		"config": object{"Env": []string{"PATH=/usr/bin:/bin", "FROM_IMAGE=yes", "LD_PRELOAD=/tmp/evil.so"}},
	})
	const kind = "application/vnd.oci.image."
	manifest := encode(object{
		"schemaVersion": 2, "mediaType": kind + "manifest.v1+json",
		"config": object{"mediaType": kind + "config.v1+json", "digest": digest(config), "size": len(config)},
		"layers": []object{{"mediaType": kind + "layer.v1.tar", "digest": digest(layer), "size": len(layer)}},
	})
	blobs := map[string][]byte{"blobs/" + digest(layer): layer, "blobs/" + digest(config): config, "manifests/1": manifest, "manifests/" + digest(manifest): manifest}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		data, ok := blobs[strings.TrimPrefix(r.URL.Path, "/v2/tests/small/")]
		switch {
		case r.URL.Path == "/v2/":
			return
		case !ok:
			http.NotFound(w, r)
			return
		case strings.Contains(r.URL.Path, "/manifests/"):
			w.Header().Set("Content-Type", kind+"manifest.v1+json")
			w.Header().Set("Docker-Content-Digest", digest(manifest))
		}
		_, _ = w.Write(data) // who does not read it notices
	}))
	t.Cleanup(server.Close)
	return "registry.example.org" + server.URL[strings.LastIndexByte(server.URL, ':'):]
}

// levelImage pulls an image and starts from it twice: nothing of this machine's system is seen, and what one sandbox writes the next does not see.
func levelImage(t *testing.T, h *house) {
	host := serveImage(t)
	ref := host + "/tests/small:1"
	if r := h.do("image", "pull", "--plain-http", host, "--resolve", "registry.example.org=127.0.0.1", "--allow-network", "127.0.0.1/32", ref); r.code != 0 {
		t.Fatalf("pull: exit %d: %s", r.code, r.stderr)
	}
	h.as.root = "" // the image is
	line := `head -n 1 /etc/passwd; echo "$FROM_IMAGE$LD_PRELOAD"; [ -e /etc/debian_version ] && echo the machine; [ -e /usr/bin/new ] && echo the other sandbox; cat keep.txt; echo new >/usr/bin/new && rm /usr/bin/awk && echo work >keep.txt && echo written`
	h.write("keep.txt", "old\n")
	for range 2 {
		if r := h.sh(line, "--image", ref); r.code != 0 || r.stdout != "root:x:0:0:root:/root:/bin/sh\nyes\nold\nwritten\n" {
			t.Errorf("exit %d, %q: %s", r.code, r.stdout, r.stderr)
		}
	}
	if r := h.do("diff", "last"); !strings.Contains(r.stdout, "+work") || strings.Contains(r.stdout, "usr/bin") {
		t.Errorf("diff: %s%s", r.stdout, r.stderr)
	}
	h.notStarted(h.sh("echo started", "--image", host+"/tests/absent:1"), "image pull")
}

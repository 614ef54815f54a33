package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
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

	"github.com/creack/pty"
	"github.com/google/go-containerregistry/pkg/registry"

	"github.com/cofferdam/cofferdam/internal/image"
	"github.com/cofferdam/cofferdam/internal/testenv"
)

// imageHouse is a state directory with programs in front of it, and a registry over TLS on loopback, behind which is a place for tokens.
type imageHouse struct {
	t       *testing.T
	dir     string
	uid     int // who runs the programs
	server  *httptest.Server
	port    string
	allowed http.Handler // the registry itself
	heard   []string     // what came in Authorization at the place for tokens
	blobs   int
	big     chan struct{}
}

const registryPassword = "cAnArY-registry-password"

func newImageHouse(t *testing.T, uid int) *imageHouse {
	t.Helper()
	dir, err := os.MkdirTemp("", "image-house-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = filepath.WalkDir(dir, func(path string, _ os.DirEntry, _ error) error { return os.Chmod(path, 0o700) }) // images hold closed directories
		_ = os.RemoveAll(dir)                                                                                       // only the test's own
	})
	h := &imageHouse{t: t, dir: dir, uid: uid, big: make(chan struct{})}
	h.allowed = registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	h.server = httptest.NewTLSServer(http.HandlerFunc(h.serve))
	t.Cleanup(h.server.Close)
	h.port = fmt.Sprint(h.server.Listener.Addr().(*net.TCPAddr).Port)
	authority := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: h.server.Certificate().Raw})
	if err := os.WriteFile(filepath.Join(dir, "ca.pem"), authority, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(dir, uid, -1); err != nil {
		t.Fatal(err)
	}
	return h
}

// serve is the registry. Repositories below private/ want a token, which is handed out for a password; evil/ sends on to a metadata service; slow/ never ends.
func (h *imageHouse) serve(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.URL.Path == "/token":
		h.heard = append(h.heard, r.Header.Get("Authorization"))
		if r.Header.Get("Authorization") != "Basic "+base64.StdEncoding.EncodeToString([]byte("robot:"+registryPassword)) {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		fmt.Fprint(w, `{"token":"minted"}`)
	case strings.HasPrefix(r.URL.Path, "/v2/private/") && r.Method == http.MethodGet && r.Header.Get("Authorization") != "Bearer minted":
		w.Header().Set("WWW-Authenticate", `Bearer realm="https://example.com:`+h.port+`/token",service="test"`)
		w.WriteHeader(http.StatusUnauthorized)
	case strings.HasPrefix(r.URL.Path, "/v2/evil/") && strings.Contains(r.URL.Path, "/blobs/") && r.Method == http.MethodGet:
		http.Redirect(w, r, "https://metadata.example.com/latest/", http.StatusFound)
	case strings.HasPrefix(r.URL.Path, "/v2/slow/") && strings.Contains(r.URL.Path, "/blobs/") && r.Method == http.MethodGet:
		if h.blobs++; h.blobs == 1 { // the configuration
			h.allowed.ServeHTTP(w, r)
			return
		}
		close(h.big)
		<-r.Context().Done()
	default:
		h.allowed.ServeHTTP(w, r)
	}
}

// push puts an image of one layer into the registry.
func (h *imageHouse) push(repository, tag, env string) (digest string) {
	h.t.Helper()
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	for _, e := range []tar.Header{{Name: "bin/", Typeflag: tar.TypeDir, Mode: 0o500, Uid: 1000}, {Name: "bin/tool", Mode: 0o4755, Size: 4, Uid: 1000}, {Name: "sh", Typeflag: tar.TypeSymlink, Linkname: "/bin/tool"},
		{Name: "bin/same", Typeflag: tar.TypeLink, Linkname: "bin/tool"}, {Name: "null", Typeflag: tar.TypeChar}} {
		e.ModTime = time.Unix(1_700_000_000, 0)
		if err := w.WriteHeader(&e); err != nil {
			h.t.Fatal(err)
		}
		if e.Size > 0 {
			_, _ = w.Write([]byte("tool")) // into memory
		}
	}
	_ = w.Close() // into memory
	sum := func(b []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(b)) }
	config := fmt.Appendf(nil, `{"os":"linux","architecture":%q,"config":{"Env":[%q,"LD_PRELOAD=/x"],"Cmd":["tool"]},"rootfs":{"type":"layers","diff_ids":[%q]}}`, runtime.GOARCH, env, sum(layer.Bytes()))
	manifest := fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","size":%d,"digest":%q},
		"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","size":%d,"digest":%q}]}`, len(config), sum(config), layer.Len(), sum(layer.Bytes()))
	for _, blob := range [][]byte{layer.Bytes(), config} {
		h.send(http.MethodPost, "/v2/"+repository+"/blobs/uploads/?digest="+sum(blob), "application/octet-stream", blob)
	}
	h.send(http.MethodPut, "/v2/"+repository+"/manifests/"+tag, "application/vnd.oci.image.manifest.v1+json", manifest)
	return sum(manifest)
}

func (h *imageHouse) send(method, path, mediaType string, body []byte) {
	h.t.Helper()
	r, err := http.NewRequestWithContext(h.t.Context(), method, h.server.URL+path, bytes.NewReader(body))
	if err != nil {
		h.t.Fatal(err)
	}
	r.Header.Set("Content-Type", mediaType)
	answer, err := h.server.Client().Do(r)
	if err != nil {
		h.t.Fatal(err)
	}
	_ = answer.Body.Close() // the status says it
	if answer.StatusCode != http.StatusCreated {
		h.t.Fatalf("%s %s: status %d", method, path, answer.StatusCode)
	}
}

func (h *imageHouse) command(args ...string) *exec.Cmd {
	cmd := exec.CommandContext(h.t.Context(), filepath.Join(testenv.Programs(h.t), "cofferdam"), args...)
	cmd.Dir, cmd.Env = h.dir, []string{"COFFERDAM_STATE=" + filepath.Join(h.dir, "state"), "PATH=" + os.Getenv("PATH"), "HOME=" + h.dir}
	if h.uid != 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(h.uid), Gid: uint32(h.uid)}}
	}
	return cmd
}

// run runs the real program. Nothing that it says may hold the password.
func (h *imageHouse) run(stdin string, args ...string) (stdout, stderr string, ok bool) {
	h.t.Helper()
	cmd := h.command(args...)
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errs
	err := cmd.Run()
	if strings.Contains(out.String()+errs.String(), registryPassword) {
		h.t.Errorf("%q says the password", args)
	}
	return out.String(), errs.String(), err == nil
}

func (h *imageHouse) good(args ...string) string {
	h.t.Helper()
	out, errs, ok := h.run("", args...)
	if !ok {
		h.t.Fatalf("%q: %s%s", args, out, errs)
	}
	return out
}

// bad expects a refusal with these words.
func (h *imageHouse) bad(says string, args ...string) {
	h.t.Helper()
	out, errs, ok := h.run("", args...)
	if ok || !strings.Contains(errs, says) || !strings.Contains(errs, "hint:") {
		h.t.Errorf("%q: %v %s%s, want %q and a hint", args, ok, out, errs, says)
	}
}

func (h *imageHouse) ref(name string) string { return "example.com:" + h.port + "/" + name }

// pull is a pull with all that it takes to reach the test's registry.
func (h *imageHouse) pull(args ...string) []string {
	return append([]string{"image", "pull", "--resolve", "example.com=127.0.0.1", "--resolve", "metadata.example.com=169.254.169.254", "--ca", "ca.pem", "--allow-network", "127.0.0.0/8"}, args...)
}

// TestImageLife pulls with the real program, confined as it is for people, as root and as a user.
func TestImageLife(t *testing.T) {
	testenv.Need(t, "root")
	for name, uid := range map[string]int{"as root": 0, "as a user": 65534} {
		t.Run(name, func(t *testing.T) {
			h := newImageHouse(t, uid)
			digest := h.push("team/tool", "1.2", "PATH=/bin")
			if out := h.good("image", "list"); out != "" {
				t.Errorf("there is %s", out)
			}
			if out := h.good(h.pull(h.ref("team/tool:1.2"))...); !strings.Contains(out, digest) {
				t.Error(out)
			}
			h.push("team/tool", "1.3", "PATH=/other")
			if out := h.good(h.pull("-q", h.ref("team/tool:1.3"), h.ref("team/tool@"+digest))...); len(strings.Fields(out)) != 2 || !strings.Contains(out, digest) {
				t.Error(out)
			}
			var i image.Image
			if err := json.Unmarshal([]byte(h.good("image", "inspect", digest[7:17])), &i); err != nil || i.Digest != digest || !slices.Equal(i.Config.Env, []string{"PATH=/bin"}) || len(i.Config.Ignored) != 1 || len(i.Notes) != 2 {
				t.Errorf("%+v, %v", i, err)
			}
			info, err := os.Lstat(filepath.Join(i.Tree, "bin"))
			wantUID := uint32(1000)
			if uid != 0 {
				wantUID = uint32(uid)
			}
			if err != nil || info.Mode() != os.ModeDir|0o500 || info.Sys().(*syscall.Stat_t).Uid != wantUID || !info.ModTime().Equal(time.Unix(1_700_000_000, 0)) {
				t.Errorf("%+v, %v", info, err)
			}
			if out := h.good("image", "ls"); strings.Count(out, digest[7:19]) != 2 || strings.Contains(out, digest) || !strings.Contains(out, h.ref("team/tool:1.3")) {
				t.Error(out)
			}
			if out := h.good("__complete", "image", "rm", ""); !strings.Contains(out, h.ref("team/tool:1.2")) {
				t.Error(out)
			}
			h.bad("without a bill of materials", "image", "inspect", "--sbom", digest)
			h.good("image", "rm", h.ref("team/tool:1.2"), h.ref("team/tool:1.3"))
			h.good("image", "rm", digest)
			h.bad("no image", "image", "inspect", digest)
			h.good("image", "prune", "--unnamed", "--json")
			if left, err := filepath.Glob(filepath.Join(h.dir, "state/images/*/*")); err != nil || len(left) != 2 {
				t.Errorf("left: %v, %v", left, err)
			}
			out := h.good("audit", "--kind", "image.pulled", "--json")
			if strings.Count(out, `"verdict":"allow"`) != 3 || strings.Count(out, digest) != 3 || !strings.Contains(out, "from example.com:"+h.port) {
				t.Error(out)
			}
		})
	}
}

// TestImageRefuses refuses what was mistyped and what registries may not do, and records the latter.
func TestImageRefuses(t *testing.T) {
	testenv.Need(t, "root")
	h := newImageHouse(t, 0)
	h.push("team/tool", "1", "A=b")
	h.push("evil/tool", "1", "A=b")
	h.push("private/tool", "1", "A=b")
	tool := h.ref("team/tool:1")
	h.bad("names no registry", "image", "pull", "tool")
	h.bad("no image is named", "image", "pull")
	h.bad("there is no image", "image", "inspect", "registry.example.org/x")
	h.bad("no such thing", h.pull("--best-effort", "all", tool)...)
	h.bad("no image of it is pulled", h.pull("--plain-http", "other.example.com", tool)...)
	h.bad("--max-size", h.pull("--max-size", "much", tool)...)
	h.bad("loopback", "image", "pull", "--resolve", "example.com=127.0.0.1", "--ca", "ca.pem", tool)
	h.bad("does not answer", "image", "pull", "--resolve", "example.com=127.0.0.1", "--allow-network", "127.0.0.0/8", tool)
	h.bad("sends us to metadata.example.com", h.pull(h.ref("evil/tool:1"))...)
	h.bad("status 401", h.pull(h.ref("private/tool:1"))...)
	h.bad("--max-files", h.pull("--max-files", "2", tool)...)
	h.bad("--max-size", h.pull("--max-size", "2k", tool)...)
	h.bad("there is no credential", h.pull("--credential", "none", tool)...)
	if out := h.good("audit", "--kind", "image.pulled", "--json"); strings.Count(out, `"verdict":"deny"`) != 5 || strings.Count(out, `"error":`) != 6 {
		t.Errorf("%d denials, %d errors: %s", strings.Count(out, `"verdict":"deny"`), strings.Count(out, `"error":`), out)
	}
	if left, err := filepath.Glob(filepath.Join(h.dir, "state/images/*/*")); err != nil || len(left) != 1 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// TestImageCredential signs in with a credential of the store, which nobody but the place for tokens hears.
func TestImageCredential(t *testing.T) {
	testenv.Need(t, "root")
	h := newImageHouse(t, 0)
	h.push("private/tool", "1", "A=b")
	add := func(name, host string) {
		t.Helper()
		if _, errs, ok := h.run(registryPassword, "credential", "add", name, "--kind", "basic", "--user", "robot", "--host", host, "--port", h.port); !ok {
			t.Fatal(errs)
		}
	}
	add("robot", "example.com")
	add("other", "other.example.com")
	h.bad("is not for", h.pull("--credential", "other", h.ref("private/tool:1"))...)
	h.bad("without TLS", h.pull("--credential", "robot", "--plain-http", "example.com:"+h.port, h.ref("private/tool:1"))...)
	if len(h.heard) != 0 {
		t.Errorf("heard %q", h.heard)
	}
	h.good(h.pull("--credential", "robot", h.ref("private/tool:1"))...)
	if len(h.heard) != 1 {
		t.Errorf("heard %d requests for a token", len(h.heard))
	}
	if out := h.good("audit", "--kind", "image.pulled", "--json"); !strings.Contains(out, `"credential":"robot"`) {
		t.Error(out)
	}
}

// TestImageTwice has several processes pull one image at once: all have it, once.
func TestImageTwice(t *testing.T) {
	testenv.Need(t, "root")
	for _, uid := range []int{0, 65534} {
		h := newImageHouse(t, uid)
		h.push("team/tool", "1", "A=b")
		h.good("image", "list") // the directories are there
		testenv.Programs(t)
		var all sync.WaitGroup
		for range 4 {
			all.Go(func() {
				if out, errs, ok := h.run("", h.pull(h.ref("team/tool:1"))...); !ok {
					t.Errorf("%s%s", out, errs)
				}
			})
		}
		all.Wait()
		if left, err := filepath.Glob(filepath.Join(h.dir, "state/images/[cs]*/*")); err != nil || len(left) != 1 {
			t.Errorf("there is %v, %v", left, err)
		}
	}
}

// TestImageProgress shows on a terminal how far a pull is, and takes it away.
func TestImageProgress(t *testing.T) {
	testenv.Need(t, "root")
	h := newImageHouse(t, 0)
	digest := h.push("team/tool", "1", "A=b")
	cmd := h.command(h.pull(h.ref("team/tool:1"))...)
	screen, err := pty.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	defer screen.Close()
	shown, _ := io.ReadAll(screen) // ends with an error once nobody writes there any more
	if err := cmd.Wait(); err != nil || !strings.Contains(string(shown), "of 4.1 kB, 0 of 1 layer\r\x1b[K") || !strings.Contains(string(shown), digest) {
		t.Errorf("%v: %q", err, shown)
	}
}

// TestImageInterrupted leaves nothing of a pull that is interrupted, and the next one sweeps away what a killed one left.
func TestImageInterrupted(t *testing.T) {
	testenv.Need(t, "root")
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGKILL} {
		h := newImageHouse(t, 0)
		h.push("slow/tool", "1", "A=b")
		h.push("team/tool", "1", "A=b")
		cmd := h.command(h.pull(h.ref("slow/tool:1"))...)
		var errs bytes.Buffer
		cmd.Stderr = &errs
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		<-h.big
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", cmd.Process.Pid)) // CHOWN, DAC_OVERRIDE and FOWNER are left to root
		if err != nil || !strings.Contains(string(status), "CapEff:\t000000000000000b\n") || !strings.Contains(string(status), "CapPrm:\t000000000000000b\n") ||
			!strings.Contains(string(status), "NoNewPrivs:\t1\n") || !strings.Contains(string(status), "Seccomp:\t2\n") {
			t.Errorf("not confined: %s, %v", status, err)
		}
		_ = cmd.Process.Signal(sig)
		err = cmd.Wait()
		left, _ := filepath.Glob(filepath.Join(h.dir, "state/images/staging/*"))
		if sig == syscall.SIGINT {
			if cmd.ProcessState.ExitCode() != 130 || len(left) != 0 || !strings.Contains(errs.String(), "interrupted") {
				t.Errorf("%v, left %v: %s", err, left, errs.String())
			}
			continue
		}
		if len(left) != 1 {
			t.Errorf("a killed pull left %v", left)
		}
		h.good(h.pull(h.ref("team/tool:1"))...)
		if left, _ := filepath.Glob(filepath.Join(h.dir, "state/images/staging/*")); len(left) != 0 {
			t.Errorf("after the next pull there is %v", left)
		}
	}
}

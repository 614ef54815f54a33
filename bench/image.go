package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
)

// imageName is what the registry has: 500 MiB of files in five layers, about half of which no compression makes smaller.
const (
	imageName   = "bench/large"
	imageLayers = 5
	layerFiles  = 1600
	fileBytes   = 64 << 10
)

// serveImages is the program that serves one image over TLS. It says where and ends with its standard input.
func serveImages(ctx context.Context, stdin io.Reader, stdout io.Writer) error {
	handler := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	if err := pushImage(handler); err != nil {
		return err
	}
	certificate, err := selfSigned()
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer l.Close()
	server := &http.Server{Handler: handler, TLSConfig: &tls.Config{Certificates: []tls.Certificate{certificate}}, ErrorLog: log.New(io.Discard, "", 0)}
	go func() { _ = server.ServeTLS(l, "", "") }() // ends with the listener, at the latest with the process
	if err := writeLine(stdout, addresses{Registry: l.Addr().(*net.TCPAddr).Port, Certificate: certificatePEM(certificate)}); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, stdin)
	return errors.Join(err, ctx.Err())
}

// pushImage puts the image into a registry. It is the same each time.
func pushImage(h http.Handler) error {
	var layers, diffs []string
	for i := range imageLayers {
		blob, diff, err := layer(i)
		if err != nil {
			return err
		}
		if err := push(h, http.MethodPost, "/blobs/uploads/?digest="+digestOf(blob), "application/octet-stream", blob); err != nil {
			return err
		}
		layers = append(layers, fmt.Sprintf(`{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","size":%d,"digest":%q}`, len(blob), digestOf(blob)))
		diffs = append(diffs, fmt.Sprintf("%q", diff))
	}
	config := fmt.Appendf(nil, `{"os":"linux","architecture":%q,"config":{},"rootfs":{"type":"layers","diff_ids":[%s]}}`, runtime.GOARCH, strings.Join(diffs, ","))
	if err := push(h, http.MethodPost, "/blobs/uploads/?digest="+digestOf(config), "application/octet-stream", config); err != nil {
		return err
	}
	const kind = "application/vnd.oci.image.manifest.v1+json"
	return push(h, http.MethodPut, "/manifests/1", kind, fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","size":%d,"digest":%q},"layers":[%s]}`,
		kind, len(config), digestOf(config), strings.Join(layers, ",")))
}

func push(h http.Handler, method, path, kind string, body []byte) error {
	r := httptest.NewRequest(method, "/v2/"+imageName+path, bytes.NewReader(body))
	r.Header.Set("Content-Type", kind)
	w := httptest.NewRecorder()
	if h.ServeHTTP(w, r); w.Code != http.StatusCreated {
		return fmt.Errorf("the registry takes no %s: %d %.200s", path, w.Code, w.Body)
	}
	return nil
}

func digestOf(b []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(b)) }

// layer makes one layer, compressed, and says the digest of what is in it.
func layer(number int) (blob []byte, diff string, err error) {
	var out bytes.Buffer
	z, err := gzip.NewWriterLevel(&out, gzip.BestSpeed)
	if err != nil {
		return nil, "", err
	}
	sum := sha256.New()
	w := tar.NewWriter(io.MultiWriter(z, sum))
	chance := rand.NewChaCha8([32]byte{byte(number)})
	line := []byte("a line of text that is like the others, as they are in programs and pages\n")
	body := bytes.Repeat(line, fileBytes/len(line)+1)[:fileBytes]
	for i := range layerFiles {
		_, _ = chance.Read(body[:fileBytes/2]) // never fails
		name := fmt.Sprintf("layer%d/%02d/file%d", number, i%40, i)
		if err := w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: fileBytes, ModTime: time.Unix(1_700_000_000, 0)}); err != nil {
			return nil, "", err
		}
		if _, err := w.Write(body); err != nil {
			return nil, "", err
		}
	}
	err = errors.Join(w.Close(), z.Close())
	return out.Bytes(), fmt.Sprintf("sha256:%x", sum.Sum(nil)), err
}

// imageRows pulls and unpacks the image, each time into an empty store, so there is nothing to warm up. What was written before is on the disk when the clock starts.
func imageRows(ctx context.Context, b *bench) ([]row, error) {
	s, err := b.launch(ctx, b.self, "registry")
	if err != nil {
		return nil, err
	}
	defer s.stop()
	trust := filepath.Join(b.dir, "registry")
	err = errors.Join(os.MkdirAll(trust, 0o755), os.WriteFile(filepath.Join(trust, "ca.crt"), []byte(s.Certificate), 0o644))
	if err != nil {
		return nil, err
	}
	ours, others, err := b.settle(turns(ctx, 0, b.rounds(3), b.pullers(s.Registry, trust)))
	if err != nil {
		return nil, err
	}
	r := row{what: fmt.Sprintf("image of %d MiB in %d files pulled over TLS and unpacked", imageLayers*layerFiles*fileBytes>>20, imageLayers*layerFiles), unit: "ms", ours: ours}
	for _, o := range others {
		r.others = append(r.others, against(o, atMost(1)))
	}
	return []row{r}, nil
}

// pullers are those that pull from the registry at a port, whose certificate is ca.crt in trust.
func (b *bench) pullers(port int, trust string) []subject {
	at := fmt.Sprintf("%s:%d/%s:1", loopback, port, imageName)
	subjects := []subject{b.pull("cofferdam image pull", func(string) [][]string {
		return [][]string{{b.cofferdam, "image", "pull", "-q", "--ca", filepath.Join(trust, "ca.crt"), "--resolve", name + "=" + loopback, "--allow-network", "127.0.0.0/8",
			fmt.Sprintf("%s:%d/%s:1", name, port, imageName)}}
	})}
	if b.have("skopeo", "skopeo") && b.have("umoci", "umoci") {
		subjects = append(subjects, b.pull("skopeo copy, umoci unpack", func(store string) [][]string {
			return [][]string{{"skopeo", "--insecure-policy", "copy", "-q", "--src-cert-dir", trust, "docker://" + at, "oci:" + store + "/oci:large"},
				{"umoci", "unpack", "--image", store + "/oci:large", store + "/bundle"}}
		}))
	}
	if os.Getuid() == 0 && b.have("podman", "podman") {
		subjects = append(subjects, b.pull("podman pull", func(store string) [][]string {
			return [][]string{{"podman", "--root", store + "/root", "--runroot", store + "/run", "--storage-driver", "overlay", "pull", "-q", "--cert-dir", trust, at}}
		}))
	}
	return subjects
}

// pull is a subject that runs programs one after the other into a store, which is cofferdam's state too, and looks whether the files are there.
func (b *bench) pull(name string, programs func(store string) [][]string) subject {
	return subject{name, func(ctx context.Context) ([]float64, error) {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
		defer cancel()
		store, err := os.MkdirTemp(b.dir, "store")
		if err != nil {
			return nil, err
		}
		defer b.discard(store)
		argvs := programs(store)
		syscall.Sync()
		began := time.Now()
		for _, argv := range argvs {
			cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
			cmd.Env = append(b.environmentOf(filepath.Base(store)), "XDG_RUNTIME_DIR="+store)
			if out, err := cmd.CombinedOutput(); err != nil {
				return nil, fmt.Errorf("%s: %w: %s", argv[0], err, firstLine(string(out)))
			}
		}
		took := time.Since(began)
		return []float64{milliseconds(took)}, unpacked(store)
	}}
}

// unpacked makes sure that every file of the image is there.
func unpacked(store string) error {
	n := 0
	err := filepath.WalkDir(store, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && strings.HasPrefix(d.Name(), "file") && strings.Contains(path, "/layer") {
			n++
		}
		return err
	})
	if err == nil && n != imageLayers*layerFiles {
		err = fmt.Errorf("%d files are there, want %d", n, imageLayers*layerFiles)
	}
	return err
}

// discard removes a store with what may still be mounted in it.
func (b *bench) discard(store string) {
	for _, below := range []string{"root/overlay", "root"} {
		_ = syscall.Unmount(filepath.Join(store, below), syscall.MNT_DETACH) // podman binds its own; where nothing is mounted nothing is to be done
	}
	_ = os.RemoveAll(store) // scratch
}

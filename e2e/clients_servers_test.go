package e2e

import (
	"archive/zip"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"log"
	"math/big"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/internal/testenv"
)

// site is a server on this machine's loopback that clients inside know by names: an upstream like any other, but for the address.
type site struct {
	h       *house
	port    string
	flags   []string // resolve the names to the server, and let that address be reached
	trusted []string // make the usual clients trust the server's authority
}

// siteNames are the names that the certificate of a site holds for.
func siteNames() []string {
	return []string{"files.example.org", "git.example.org", "index.example.org"}
}

// newSite serves handler over TLS or in the clear until the test ends.
func newSite(h *house, handler http.Handler, secure bool) *site {
	h.t.Helper()
	server := httptest.NewUnstartedServer(handler)
	server.Config.ErrorLog = log.New(new(bytes.Buffer), "", 0) // clients hang up as they like
	s := &site{h: h}
	if secure {
		certificate, authority := newCertificate(h.t)
		server.TLS = &tls.Config{Certificates: []tls.Certificate{certificate}}
		h.write("ca.pem", authority)
		for _, name := range []string{"CURL_CA_BUNDLE", "SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS", "GIT_SSL_CAINFO", "PIP_CERT", "REQUESTS_CA_BUNDLE"} {
			s.trusted = append(s.trusted, "--env", name+"="+filepath.Join(h.project, "ca.pem"))
		}
		server.StartTLS()
	} else {
		server.Start()
	}
	h.t.Cleanup(server.Close)
	s.port = server.URL[strings.LastIndexByte(server.URL, ':')+1:]
	s.flags = append(s.flags, "--allow-network", "127.0.0.1/32")
	for _, name := range siteNames() {
		s.flags = append(s.flags, "--resolve", name+"=127.0.0.1")
	}
	s.flags = append(s.flags, s.trusted...)
	return s
}

// newCertificate makes an authority and a certificate of it for siteNames.
func newCertificate(t *testing.T) (server tls.Certificate, authority string) {
	t.Helper()
	fail := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	fail(err)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	fail(err)
	from, to := time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "cofferdam test authority"}, NotBefore: from, NotAfter: to,
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, caKey.Public(), caKey)
	fail(err)
	if ca, err = x509.ParseCertificate(caDER); err != nil {
		t.Fatal(err)
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: siteNames()[0]}, DNSNames: siteNames(), NotBefore: from, NotAfter: to,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, ca, key.Public(), caKey)
	fail(err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: caDER}))
}

// fetchers are clients that print what a URL holds, each with the tool that it needs. $URL is the URL.
func fetchers() map[string]string {
	return map[string]string{
		"curl": `curl -sS --fail "$URL"`,
		"wget": `wget -q -O - --tries=1 ${SSL_CERT_FILE:+--ca-certificate=$SSL_CERT_FILE} "$URL"`,
		"node": `node -e 'fetch(process.env.URL).then(r => r.text()).then(t => process.stdout.write(t)).catch(e => { console.error(e.cause || e); process.exit(1) })'`,
		"python3": `python3 -c 'import os, sys, shutil, urllib.request
shutil.copyfileobj(urllib.request.urlopen(os.environ["URL"]), sys.stdout.buffer)'`,
	}
}

// TestFetch reads over HTTPS and HTTP with the clients that people use, with leave and without.
func TestFetch(t *testing.T) {
	big := bytes.Repeat([]byte("0123456789abcdef"), 1<<19) // 8 MiB
	sum := sha256.Sum256(big)
	mux := http.NewServeMux()
	mux.HandleFunc("/hello", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "hello from upstream") })
	mux.HandleFunc("/big", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(big) }) // the client's sum tells
	forEachUser(t, func(t *testing.T, h *house) {
		for _, scheme := range []string{"https", "http"} {
			s := newSite(h, mux, scheme == "https")
			url := scheme + "://files.example.org:" + s.port
			allow := append([]string{"--allow", "files.example.org:" + s.port}, s.flags...)
			for tool, line := range fetchers() {
				if _, err := exec.LookPath("/usr/bin/" + tool); err != nil {
					t.Logf("%s is not here: %v", tool, err)
					continue
				}
				h.works(time.Minute, "hello from upstream", line, append(allow, "--env", "URL="+url+"/hello")...)
				h.works(time.Minute, hex.EncodeToString(sum[:]), line+" | sha256sum", append(allow, "--env", "URL="+url+"/big")...)
				h.refused(line, append(s.flags, "--env", "URL="+url+"/hello")...)
			}
		}
	})
}

// TestGit clones, commits and pushes over HTTPS with nothing but @git, which means the remotes of the folder.
func TestGit(t *testing.T) {
	testenv.Need(t, "tool:git", "tool:curl")
	exe, err := exec.Command("git", "--exec-path").Output()
	if err != nil {
		t.Fatal(err)
	}
	backend := filepath.Join(strings.TrimSpace(string(exe)), "git-http-backend")
	if _, err := os.Stat(backend); err != nil {
		t.Skip(err)
	}
	forEachUser(t, func(t *testing.T, h *house) {
		root := t.TempDir()
		bare := filepath.Join(root, "repo.git")
		git := func(dir string, args ...string) string {
			t.Helper()
			out, err := h.tool(t.Context(), dir, "git", args...).CombinedOutput()
			if err != nil {
				t.Fatalf("git %v: %v: %s", args, err, out)
			}
			return string(out)
		}
		setUp := func(args ...string) string {
			t.Helper()
			out, err := exec.Command("git", append([]string{"-C", root}, args...)...).CombinedOutput()
			if err != nil {
				t.Fatalf("git %v: %v: %s", args, err, out)
			}
			return string(out)
		}
		setUp("init", "-q", "--bare", "-b", "main", bare)
		setUp("-C", bare, "config", "http.receivepack", "true")
		s := newSite(h, &cgi.Handler{
			Path: backend, Env: []string{"GIT_PROJECT_ROOT=" + root, "GIT_HTTP_EXPORT_ALL=1"}, Stderr: new(bytes.Buffer),
		}, true)
		url := "https://git.example.org:" + s.port + "/repo.git"
		git(h.project, "init", "-q", "-b", "main")
		git(h.project, "remote", "add", "origin", url)
		h.write("README", "hello\n")
		allow := append([]string{"--allow", "@git", "--env", "GIT_AUTHOR_NAME=a", "--env", "GIT_AUTHOR_EMAIL=a@example.org",
			"--env", "GIT_COMMITTER_NAME=a", "--env", "GIT_COMMITTER_EMAIL=a@example.org"}, s.flags...)
		h.works(time.Minute, "pushed", "git add README && git commit -q -m first && git push -q origin main && echo pushed", allow...)
		if out := setUp("-C", bare, "log", "--format=%s", "main"); out != "first\n" {
			t.Errorf("the server has %q", out)
		}
		h.works(time.Minute, "hello", "git clone -q "+url+" /tmp/clone && cat /tmp/clone/README && git fetch -q && git log --oneline origin/main", allow...)
		h.refused("git clone -q "+url+" /tmp/clone", s.flags...)
	})
}

// TestPip installs from an index that this machine's configuration names, as a company's mirror would be.
func TestPip(t *testing.T) {
	if _, err := os.Stat("/usr/bin/pip3"); err != nil {
		t.Skip(err)
	}
	wheel := newWheel(t)
	mux := http.NewServeMux()
	mux.HandleFunc("/simple/e2e-demo/", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		fmt.Fprintf(w, `<a href="/files/e2e_demo-1.0-py3-none-any.whl#sha256=%x">e2e_demo-1.0-py3-none-any.whl</a>`, sha256.Sum256(wheel))
	})
	mux.HandleFunc("/files/", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", strconv.Itoa(len(wheel)))
		_, _ = w.Write(wheel) // the client checks the sum
	})
	forEachUser(t, func(t *testing.T, h *house) {
		s := newSite(h, mux, true)
		t.Setenv("PIP_INDEX_URL", "https://index.example.org:"+s.port+"/simple")
		const line = `pip3 install -q --no-cache-dir --target /tmp/site e2e-demo && PYTHONPATH=/tmp/site python3 -c 'import e2e_demo; print(e2e_demo.WORD)'`
		h.works(time.Minute, "swordfish", line, append([]string{"--allow", "@pip"}, s.flags...)...)
		h.refused("pip3 install -q --no-cache-dir --retries 0 --target /tmp/site e2e-demo", s.flags...)
	})
}

// newWheel makes a Python package of one module.
func newWheel(t *testing.T) []byte {
	t.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for name, content := range map[string]string{
		"e2e_demo.py":                     "WORD = 'swordfish'\n",
		"e2e_demo-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: e2e-demo\nVersion: 1.0\n",
		"e2e_demo-1.0.dist-info/WHEEL":    "Wheel-Version: 1.0\nGenerator: e2e\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
		"e2e_demo-1.0.dist-info/RECORD":   "e2e_demo.py,,\ne2e_demo-1.0.dist-info/METADATA,,\ne2e_demo-1.0.dist-info/WHEEL,,\ne2e_demo-1.0.dist-info/RECORD,,\n",
	} {
		w, err := z.Create(name)
		if err == nil {
			_, err = w.Write([]byte(content))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

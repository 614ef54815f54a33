package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"maps"
	"math/big"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/textproto"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/internal/testenv"
)

// Names that the forge's certificate holds for. Large objects lie on a host of their own, with a token of their own.
const (
	gitHost     = "git.example.com"
	objectsHost = "objects.example.com"
	otherHost   = "other.example.com"
	expiredHost = "expired.example.com"
)

// The real credentials of the forge: of its repositories, and of its large objects.
const (
	gitToken    = "tok-CANARY-9b2f40d6c1e84a57a3f8"
	objectToken = "obj-CANARY-77d0c5b39e1f4e2b86aa"
)

// gitHeadKept is how much of a request's body a forge remembers: the commands of a push.
const gitHeadKept = 4 << 10

// forge is a Git server on this machine's loopback: git http-backend with what large hosts have besides, real repositories, and moods.
// Everything below acme/ wants gitToken, by Basic or Bearer; what lies below public/ is open to be read.
type forge struct {
	t         *testing.T
	root      string // bare repositories, OWNER/NAME.git
	authority []byte // PEM; who trusts it trusts the forge
	port      string // of TLS
	objects   string // address at which large objects are to be had, on port 443; where this test may not listen there, their port is another
	plain     *httptest.Server

	mu     sync.Mutex
	moods  map[string]mood // by path prefix
	seen   []forgeRequest
	locks  []lfsLock
	mounts map[string]http.Handler // by path prefix; behind the same doors
}

// mood is how a forge misbehaves towards requests below a path. The zero value behaves.
type mood struct {
	answer func(w http.ResponseWriter, r *http.Request) (done bool) // answers instead, or changes the request; nil: does neither
	pace   int                                                      // bytes a second of answers' bodies; 0: all it can
	cut    int64                                                    // after so many bytes of a body the connection is reset; 0: never
}

// forgeRequest is what a forge remembers of a request.
type forgeRequest struct {
	host, method, path, query, protocol, encoding, authorization string
	git                                                          string // Git-Protocol
	head                                                         []byte // of the body
	read                                                         int64  // bytes of the body
	broken                                                       bool   // the body did not come to its end
	status                                                       int
	wrote                                                        int64 // bytes of the answer's body
}

// newForge starts a forge with repositories, under an authority of its own.
func newForge(t *testing.T) *forge {
	t.Helper()
	testenv.Need(t, "tool:git")
	root, err := os.MkdirTemp("", "cofferdam-forge-") // large: not below the house, which is the user's
	if err != nil {
		t.Fatal(err)
	}
	f := &forge{t: t, root: root, moods: map[string]mood{}, mounts: map[string]http.Handler{}}
	certificates, authority := forgeCertificates(t)
	f.authority = authority
	quiet := log.New(io.Discard, "", 0) // clients hang up as they like
	secure := httptest.NewUnstartedServer(http.HandlerFunc(f.serve))
	secure.Config.ErrorLog = quiet
	secure.EnableHTTP2 = true
	secure.TLS = &tls.Config{GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		if hello.ServerName == expiredHost {
			return &certificates[1], nil
		}
		return &certificates[0], nil
	}}
	secure.StartTLS()
	f.port = secure.URL[strings.LastIndexByte(secure.URL, ':')+1:]
	servers := []*httptest.Server{secure}
	f.objects = "127.0.0.1"
	own := fmt.Sprintf("127.%d.%d.%d", 64+mathrand.IntN(64), mathrand.IntN(256), 1+mathrand.IntN(254)) // of this forge: others run at the same time
	if l, err := net.Listen("tcp", own+":443"); err == nil {
		f.objects = own
		s := httptest.NewUnstartedServer(http.HandlerFunc(f.serve))
		_ = s.Listener.Close() // another takes its place
		s.Listener, s.TLS, s.Config.ErrorLog = l, secure.TLS.Clone(), quiet
		s.StartTLS()
		servers = append(servers, s)
	}
	f.plain = httptest.NewUnstartedServer(http.HandlerFunc(f.serve))
	f.plain.Config.ErrorLog = quiet
	f.plain.Start()
	t.Cleanup(func() {
		for _, s := range append(servers, f.plain) {
			s.CloseClientConnections() // what hangs, hangs no longer
			s.Close()
		}
		if err := os.RemoveAll(root); err != nil {
			t.Errorf("remove %s: %v", root, err)
		}
	})
	f.seed()
	return f
}

// forgeCertificates makes an authority, a certificate that holds, and one that has expired.
func forgeCertificates(t *testing.T) (certificates []tls.Certificate, authority []byte) {
	t.Helper()
	fail := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	fail(err)
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "forge test authority"}, NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, &caKey.PublicKey, caKey)
	fail(err)
	for i, names := range [][]string{{gitHost, objectsHost, otherHost, "*.forge.example.com"}, {expiredHost}} {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		fail(err)
		leaf := &x509.Certificate{
			SerialNumber: big.NewInt(int64(i) + 2), Subject: pkix.Name{CommonName: names[0]}, DNSNames: names,
			NotBefore: time.Now().Add(-24 * time.Hour), NotAfter: time.Now().Add(time.Hour - time.Duration(i)*2*time.Hour),
			KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		}
		der, err := x509.CreateCertificate(rand.Reader, leaf, ca, &key.PublicKey, caKey)
		fail(err)
		certificates = append(certificates, tls.Certificate{Certificate: [][]byte{der, caDER}, PrivateKey: key})
	}
	return certificates, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: caDER})
}

// objectsAuthority is host and port of the large objects' URLs.
func (f *forge) objectsAuthority() string {
	if f.objects != "127.0.0.1" {
		return objectsHost
	}
	return objectsHost + ":" + f.port
}

// git runs git on the forge's side and returns what it printed.
func (f *forge) git(dir string, args ...string) string {
	f.t.Helper()
	cmd := exec.Command("git", args...)
	cmd.Dir = filepath.Join(f.root, dir)
	cmd.Env = f.environment()
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		f.t.Fatalf("git %v in %s: %v: %s", args, dir, err, errs.String())
	}
	return strings.TrimSpace(string(out))
}

// environment is that of the forge's own git: nothing of this machine's settings.
func (f *forge) environment() []string {
	return []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + f.root, "GIT_CONFIG_NOSYSTEM=1", "LANG=C.UTF-8",
		"GIT_AUTHOR_NAME=Ada", "GIT_AUTHOR_EMAIL=ada@example.com", "GIT_COMMITTER_NAME=Ada", "GIT_COMMITTER_EMAIL=ada@example.com",
	}
}

// gitFiles are what every repository begins with.
func gitFiles() map[string]string {
	return map[string]string{
		"README.md": "a site\n", "src/main.go": "package main\n", "src/deep/er/file.txt": "deep\n",
		".github/workflows/ci.yml": "on: push\n", "AGENTS.md": "be good\n", "docs/AGENTS.md": "be good here too\n",
	}
}

// seed makes the repositories: acme/site, its copies, one of SHA-256, one with an alias of its main branch, and one that is open.
func (f *forge) seed() {
	f.t.Helper()
	f.make("acme/site.git", "sha1")
	for _, name := range []string{"acme/hidden.git", "acme/read.git", "acme/alias.git", "public/open.git"} {
		f.copy("acme/site.git", name)
	}
	f.make("acme/new.git", "sha256")
	f.git("acme/alias.git", "symbolic-ref", "refs/heads/alias", "refs/heads/main")
}

// make makes a repository with some history: main, topic, a tag.
func (f *forge) make(name, format string) {
	f.t.Helper()
	bare := filepath.Join(f.root, name)
	f.git("", "init", "-q", "--bare", "-b", "main", "--object-format="+format, bare)
	for key, value := range map[string]string{
		"uploadpack.allowFilter": "true", "uploadpack.allowAnySHA1InWant": "true", "receive.advertisePushOptions": "true", "http.receivepack": "true",
		"receive.certNonceSeed": "seed", "receive.autogc": "false", "gc.auto": "0", "receive.denyDeleteCurrent": "ignore",
	} {
		f.git(name, "config", key, value)
	}
	hook := "#!/bin/sh\n[ -z \"$HTTP_ECHO\" ] || { echo \"you sent $HTTP_ECHO\" >&2; }\nn=0; while [ $n -lt \"${GIT_PUSH_OPTION_COUNT:-0}\" ]; do eval echo \"option \\$GIT_PUSH_OPTION_$n\" >&2; n=$((n+1)); done\ncat >/dev/null\n"
	if err := os.WriteFile(filepath.Join(bare, "hooks", "pre-receive"), []byte(hook), 0o755); err != nil {
		f.t.Fatal(err)
	}
	var stream strings.Builder
	files := gitFiles()
	for i, message := range []string{"first", "second", "third"} {
		fmt.Fprintf(&stream, "commit refs/heads/main\ncommitter Ada <ada@example.com> %d +0000\ndata %d\n%s\n", 1700000000+i, len(message), message)
		for _, file := range slices.Sorted(maps.Keys(files)) {
			content := files[file]
			if file == "README.md" {
				content += message + "\n"
			}
			fmt.Fprintf(&stream, "M 100644 inline %s\ndata %d\n%s\n", file, len(content), content)
		}
	}
	stream.WriteString("reset refs/heads/topic\nfrom refs/heads/main\n\nreset refs/tags/v0.1\nfrom refs/heads/main\n\ndone\n")
	cmd := exec.Command("git", "fast-import", "--quiet", "--done")
	cmd.Dir, cmd.Env, cmd.Stdin = bare, f.environment(), strings.NewReader(stream.String())
	if out, err := cmd.CombinedOutput(); err != nil {
		f.t.Fatalf("fast-import: %v: %s", err, out)
	}
}

// copy makes a repository like another.
func (f *forge) copy(from, to string) {
	f.t.Helper()
	if err := os.CopyFS(filepath.Join(f.root, to), os.DirFS(filepath.Join(f.root, from))); err != nil {
		f.t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(f.root, to, "hooks", "pre-receive"), 0o755); err != nil {
		f.t.Fatal(err)
	}
}

// refs lists a repository's refs with what they point to.
func (f *forge) refs(name string) map[string]string {
	f.t.Helper()
	refs := map[string]string{}
	for line := range strings.Lines(f.git(name, "for-each-ref", "--format=%(refname) %(objectname)")) {
		ref, id, _ := strings.Cut(strings.TrimSpace(line), " ")
		refs[ref] = id
	}
	return refs
}

// be sets a mood for what lies below a path, such as "acme/site.git".
func (f *forge) be(below string, m mood) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.moods["/"+below] = m
}

// mount lets a handler answer below a path, such as "/api/".
func (f *forge) mount(below string, h http.Handler) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.mounts[below] = h
}

// requests returns what has come, from a mark on.
func (f *forge) requests(mark int) []forgeRequest {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.seen[mark:])
}

// mark is where requests begins to list what comes from now on.
func (f *forge) mark() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.seen)
}

// allows says whether a request has what the repository wants.
func (f *forge) allows(r *http.Request) bool {
	if strings.HasPrefix(r.URL.Path, "/public/") && (r.URL.Query().Get("service") == "git-upload-pack" || strings.HasSuffix(r.URL.Path, "/git-upload-pack")) {
		return true
	}
	_, password, ok := r.BasicAuth()
	return ok && password == gitToken || r.Header.Get("Authorization") == "Bearer "+gitToken
}

func (f *forge) serve(w http.ResponseWriter, r *http.Request) {
	seen := forgeRequest{
		host: r.Host, method: r.Method, path: r.URL.Path, query: r.URL.RawQuery, protocol: r.Proto, encoding: r.Header.Get("Content-Encoding"),
		authorization: r.Header.Get("Authorization"), git: r.Header.Get("Git-Protocol"),
	}
	body := &remembered{r: r.Body, f: f}
	r.Body = body
	f.mu.Lock()
	body.index = len(f.seen)
	f.seen = append(f.seen, seen)
	var m mood
	longest := -1
	for below, candidate := range f.moods {
		if strings.HasPrefix(r.URL.Path, below) && len(below) > longest {
			m, longest = candidate, len(below)
		}
	}
	var mounted http.Handler
	for below, h := range f.mounts {
		if strings.HasPrefix(r.URL.Path, below) {
			mounted = h
		}
	}
	f.mu.Unlock()
	// What receive-pack says while it still reads must not end the reading.
	_ = http.NewResponseController(w).EnableFullDuplex() // HTTP/2 has it anyway
	answer := &moody{ResponseWriter: w, m: m, began: time.Now(), sent: func(n int64) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.seen[body.index].wrote = n
	}}
	defer func() {
		f.mu.Lock()
		f.seen[body.index].status = answer.status
		f.mu.Unlock()
	}()
	if m.answer != nil && m.answer(answer, r) {
		return
	}
	switch {
	case mounted != nil:
		mounted.ServeHTTP(answer, r)
	case strings.HasPrefix(r.URL.Path, "/objects/"):
		f.serveObject(answer, r)
	case !f.allows(r):
		answer.Header().Set("WWW-Authenticate", `Basic realm="forge"`)
		http.Error(answer, "who are you?", http.StatusUnauthorized)
	case strings.Contains(r.URL.Path, "/info/lfs/"):
		f.serveLFS(answer, r)
	default:
		f.backend(answer, r)
	}
}

// remembered is a request's body that leaves its beginning and its length on record.
type remembered struct {
	r     io.ReadCloser
	f     *forge
	index int
}

func (b *remembered) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	b.f.mu.Lock()
	defer b.f.mu.Unlock()
	seen := &b.f.seen[b.index]
	seen.head = append(seen.head, p[:min(n, gitHeadKept-len(seen.head))]...)
	seen.read += int64(n)
	seen.broken = err != nil && err != io.EOF
	return n, err
}

func (b *remembered) Close() error { return b.r.Close() }

// moody is an answer in a mood.
type moody struct {
	http.ResponseWriter
	m      mood
	began  time.Time
	wrote  int64
	sent   func(int64)
	status int
}

func (a *moody) Unwrap() http.ResponseWriter { return a.ResponseWriter }

func (a *moody) WriteHeader(status int) {
	a.status = status
	a.ResponseWriter.WriteHeader(status)
}

func (a *moody) Write(p []byte) (int, error) {
	if a.status == 0 {
		a.status = http.StatusOK
	}
	if a.m.cut > 0 && a.wrote+int64(len(p)) >= a.m.cut {
		_, _ = a.ResponseWriter.Write(p[:max(0, a.m.cut-a.wrote)]) // the connection ends here
		_ = http.NewResponseController(a.ResponseWriter).Flush()
		panic(http.ErrAbortHandler)
	}
	n, err := a.ResponseWriter.Write(p)
	a.wrote += int64(n)
	a.sent(a.wrote)
	if a.m.pace > 0 {
		due := time.Duration(float64(a.wrote) / float64(a.m.pace) * float64(time.Second))
		time.Sleep(time.Until(a.began.Add(due)))
	}
	return n, err
}

// backend runs git http-backend for a request, streaming both ways. net/http/cgi would not do: it refuses bodies without a length.
// When a body breaks off, the program reads its end, as it does behind servers that stream.
func (f *forge) backend(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "git", "http-backend")
	cmd.Env = append(f.environment(), "GIT_PROJECT_ROOT="+f.root, "GIT_HTTP_EXPORT_ALL=1", "REMOTE_USER=forge", "REMOTE_ADDR=127.0.0.1",
		"REQUEST_METHOD="+r.Method, "PATH_INFO="+r.URL.Path, "QUERY_STRING="+r.URL.RawQuery, "CONTENT_TYPE="+r.Header.Get("Content-Type"), "SERVER_PROTOCOL="+r.Proto)
	for name, values := range r.Header {
		if name != "Authorization" && name != "Content-Type" {
			cmd.Env = append(cmd.Env, "HTTP_"+strings.ToUpper(strings.ReplaceAll(name, "-", "_"))+"="+values[0])
		}
	}
	if r.ContentLength >= 0 {
		cmd.Env = append(cmd.Env, "CONTENT_LENGTH="+strconv.FormatInt(r.ContentLength, 10))
	}
	cmd.Stdin = r.Body
	cmd.WaitDelay = 10 * time.Second
	stdout, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer func() { _ = cmd.Wait() }() // what it came to is in the answer
	out := bufio.NewReaderSize(stdout, 64<<10)
	head, err := textproto.NewReader(out).ReadMIMEHeader()
	if err != nil {
		cancel()
		http.Error(w, "backend: "+err.Error(), http.StatusInternalServerError)
		return
	}
	status := http.StatusOK
	for name, values := range head {
		if name == "Status" {
			status, _ = strconv.Atoi(strings.Fields(values[0])[0])
			continue
		}
		w.Header()[name] = values
	}
	w.WriteHeader(status)
	buffer := make([]byte, 64<<10)
	for {
		n, err := out.Read(buffer)
		if n > 0 {
			if _, werr := w.Write(buffer[:n]); werr != nil {
				cancel()
				return
			}
			_ = http.NewResponseController(w).Flush() // an error shows in the next Write
		}
		if err != nil {
			return
		}
	}
}

// Moods that many tests use.

// fails answers with a status and a text.
func fails(status int, text string) mood {
	return mood{answer: func(w http.ResponseWriter, _ *http.Request) bool {
		http.Error(w, text, status)
		return true
	}}
}

// redirects sends to another place, with the request's own path below it.
func redirects(to string) mood {
	return mood{answer: func(w http.ResponseWriter, r *http.Request) bool {
		u := *r.URL
		http.Redirect(w, r, to+u.RequestURI(), http.StatusFound)
		return true
	}}
}

// slow waits before it answers.
func slow(by time.Duration) mood {
	return mood{answer: func(_ http.ResponseWriter, r *http.Request) bool {
		select {
		case <-time.After(by):
		case <-r.Context().Done():
		}
		return false
	}}
}

// hangs never answers, for as long as the client waits or a while.
func hangs() mood {
	return mood{answer: func(_ http.ResponseWriter, r *http.Request) bool {
		select {
		case <-r.Context().Done():
		case <-time.After(2 * time.Minute):
		}
		return true
	}}
}

// resets breaks the connection instead of answering.
func resets() mood {
	return mood{answer: func(http.ResponseWriter, *http.Request) bool { panic(http.ErrAbortHandler) }}
}

// echoes says everywhere what it was sent as credential: in a header, and by its hook in the side band of a push.
func echoes() mood {
	return mood{answer: func(w http.ResponseWriter, r *http.Request) bool {
		_, password, _ := r.BasicAuth()
		w.Header().Set("X-Echo", r.Header.Get("Authorization"))
		w.Header().Set("X-Echo-Plain", password)
		r.Header.Set("Echo", r.Header.Get("Authorization")+" "+password)
		return false
	}}
}

// old knows only the first version of the protocol.
func old() mood {
	return mood{answer: func(_ http.ResponseWriter, r *http.Request) bool {
		r.Header.Del("Git-Protocol")
		return false
	}}
}

// repositoryPath turns a request's path into the repository's name below the root, without what follows it.
func repositoryPath(p string) string {
	before, _, _ := strings.Cut(path.Clean(p), ".git/")
	return strings.TrimPrefix(before, "/") + ".git"
}

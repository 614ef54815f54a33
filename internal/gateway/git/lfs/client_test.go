package lfs

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/cofferdam/cofferdam/internal/policy"
	"github.com/cofferdam/cofferdam/internal/testenv"
)

const (
	proxyToken  = "proxy-token"    // what the client has
	lent        = "canary-lent"    // what the gateway lends for the API
	storage     = "canary-storage" // what the API says is to be sent to the store of objects
	storedAt    = "/objects/canary-path/"
	apiAt       = "/acme/site.git/info/lfs/"
	repository  = "acme/site"
	objectsPath = "/_lfs/"
)

// upstream is a server of the LFS API, and of the objects on another path with another credential.
type upstream struct {
	t    *testing.T
	http *httptest.Server

	mu        sync.Mutex
	objects   map[string][]byte
	verified  map[string]bool
	locks     []lock
	elsewhere bool // objects are said to be on another host
	corrupt   func([]byte) []byte
}

func (u *upstream) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if oid, ok := strings.CutPrefix(r.URL.Path, storedAt); ok {
		u.object(w, r, oid)
		return
	}
	if _, password, ok := r.BasicAuth(); !ok || password != lent {
		w.Header().Set("LFS-Authenticate", `Basic realm="canary-realm"`)
		u.answer(w, http.StatusUnauthorized, map[string]any{"message": "canary: credentials needed"})
		return
	}
	what, ok := strings.CutPrefix(r.URL.Path, apiAt)
	if !ok || r.Header.Get("Accept") != ContentType {
		u.answer(w, http.StatusNotFound, map[string]any{"message": "canary: not found"})
		return
	}
	switch r.Method + " " + what {
	case "POST objects/batch":
		u.batch(w, r)
	case "POST locks":
		var in struct{ Path string }
		_ = json.NewDecoder(r.Body).Decode(&in) // an empty path is seen below
		for _, l := range u.locks {
			if l.Path == in.Path {
				u.answer(w, http.StatusConflict, map[string]any{"lock": l, "message": "canary: already created lock"})
				return
			}
		}
		l := lock{ID: strconv.Itoa(len(u.locks) + 1), Path: in.Path, LockedAt: "2016-05-17T15:49:06Z", Owner: &owner{"Jane Doe"}}
		u.locks = append(u.locks, l)
		u.answer(w, http.StatusCreated, map[string]any{"lock": l})
	case "GET locks":
		u.answer(w, http.StatusOK, map[string]any{"locks": u.locks})
	case "POST locks/verify":
		u.answer(w, http.StatusOK, map[string]any{"ours": u.locks, "theirs": []lock{}})
	case "POST locks/1/unlock":
		l := u.locks[0]
		u.locks = u.locks[1:]
		u.answer(w, http.StatusOK, map[string]any{"lock": l})
	default:
		u.answer(w, http.StatusNotFound, map[string]any{"message": "canary: not found"})
	}
}

func (u *upstream) batch(w http.ResponseWriter, r *http.Request) {
	var in struct {
		Operation string
		Transfers []string
		Objects   []Object
	}
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil || len(in.Transfers) != 1 || in.Transfers[0] != "basic" {
		u.t.Errorf("the upstream is asked %+v: %v", in, err)
	}
	host := u.http.URL
	if u.elsewhere {
		host = "https://169.254.169.254"
	}
	objects := []map[string]any{}
	for _, o := range in.Objects {
		action := map[string]any{"href": host + storedAt + o.OID, "header": map[string]string{"Authorization": "RemoteAuth " + storage}, "expires_in": 600}
		_, there := u.objects[o.OID]
		answer := map[string]any{"oid": o.OID, "size": o.Size, "authenticated": true}
		switch {
		case in.Operation == "download" && !there:
			answer["error"] = map[string]any{"code": 404, "message": "canary: no such object"}
		case in.Operation == "download":
			answer["actions"] = map[string]any{"download": action}
		case !there:
			answer["actions"] = map[string]any{"upload": action, "verify": action}
		}
		objects = append(objects, answer)
	}
	u.answer(w, http.StatusOK, map[string]any{"transfer": "basic", "objects": objects})
}

func (u *upstream) object(w http.ResponseWriter, r *http.Request, oid string) {
	if r.Header.Get("Authorization") != "RemoteAuth "+storage {
		u.t.Errorf("%s %s with %q", r.Method, r.URL, r.Header["Authorization"])
		w.WriteHeader(http.StatusForbidden)
		return
	}
	body, err := io.ReadAll(r.Body)
	switch {
	case err != nil:
		w.WriteHeader(http.StatusBadRequest)
	case r.Method == http.MethodPut:
		u.objects[oid] = body
	case r.Method == http.MethodPost:
		if string(body) != fmt.Sprintf(`{"oid":%q,"size":%d}`, oid, len(u.objects[oid])) {
			u.t.Errorf("verify says %s", body)
		}
		u.verified[oid] = true
	default:
		content := u.objects[oid]
		if u.corrupt != nil {
			content = u.corrupt(bytes.Clone(content))
		}
		_, _ = w.Write(content) // a client that is gone needs no answer
	}
}

func (u *upstream) answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", ContentType)
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // as above
}

// proxy is the least that makes a Git proxy of this package's parts: it asks the upstream and tells the client, and lends the credential.
type proxy struct {
	t        *testing.T
	upstream *upstream
	table    *Table
	client   *http.Client
	self     string
	read     bool // the client may only read

	mu   sync.Mutex
	told bytes.Buffer // all that went inside
}

// recorder copies what goes inside.
type recorder struct {
	http.ResponseWriter
	p *proxy
}

func (r recorder) Write(b []byte) (int, error) {
	r.p.mu.Lock()
	defer r.p.mu.Unlock()
	r.p.told.Write(b)
	return r.ResponseWriter.Write(b)
}

func (r recorder) WriteHeader(status int) {
	r.p.mu.Lock()
	defer r.p.mu.Unlock()
	_ = r.Header().Write(&r.p.told) // a buffer takes all
	r.ResponseWriter.WriteHeader(status)
}

func (p *proxy) ServeHTTP(plain http.ResponseWriter, r *http.Request) {
	w := recorder{plain, p}
	if _, password, ok := r.BasicAuth(); !ok || password != proxyToken {
		w.Header().Set("WWW-Authenticate", `Basic realm="cofferdam"`)
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	if token, ok := strings.CutPrefix(r.URL.Path, objectsPath); ok {
		p.transfer(w, r, token)
		return
	}
	rest, _ := strings.CutPrefix(r.URL.Path, "/acme/site.git/")
	call, ok := Recognise(r.Method, rest)
	if !ok {
		p.tell(w, http.StatusForbidden, Message("not a request of LFS"))
		return
	}
	var body []byte
	var batch Batch
	access := call.Access()
	query, err := call.ReadQuery(r.URL.RawQuery)
	if err == nil && call.Kind == BatchObjects {
		batch, err = ReadBatch(r.Body)
		body, access = batch.Encode(), batch.Access()
	} else if err == nil {
		body, err = call.ReadRequest(r.Body)
	}
	if err != nil {
		p.t.Errorf("git-lfs asks what is refused: %v", err)
		p.tell(w, http.StatusUnprocessableEntity, Message("invalid"))
		return
	}
	if p.read && access != policy.ReadAccess {
		p.tell(w, http.StatusForbidden, Message("cofferdam: acme/site is read-only here"))
		return
	}
	resp := p.send(r.Method, p.upstream.http.URL+apiAt+strings.TrimPrefix(rest, "info/lfs/")+"?"+query, bytes.NewReader(body), -1, func(h http.Header) {
		h.Set("Accept", ContentType)
		h.Set("Content-Type", ContentType)
		(&http.Request{Header: h}).SetBasicAuth("x", lent)
	})
	defer func() { _ = resp.Body.Close() }()
	var out []byte
	switch {
	case call.Kind == BatchObjects && resp.StatusCode == http.StatusOK:
		out, err = p.table.Rewrite(batch, resp.Body, repository, p.self+objectsPath, func(u *url.URL) error {
			if "https://"+u.Host != p.upstream.http.URL {
				return fmt.Errorf("%s is not open", u.Host)
			}
			return nil
		})
	case call.Kind == BatchObjects:
		out = Refused(resp.StatusCode)
	default:
		out, err = call.Answer(resp.StatusCode, resp.Body)
	}
	if err != nil {
		p.t.Errorf("the answer to %v: %v", call, err)
	}
	p.tell(w, resp.StatusCode, out)
}

func (p *proxy) transfer(w http.ResponseWriter, r *http.Request, token string) {
	a, ok := p.table.Take(token, r.Method)
	if !ok {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	var body io.Reader
	length := int64(-1)
	switch r.Method {
	case http.MethodPut:
		body, length = NewVerifyingReader(r.Body, a.OID, a.Size), a.Size
	case http.MethodPost:
		body = bytes.NewReader(a.Body())
	}
	resp := p.send(a.Method, a.URL.String(), body, length, func(h http.Header) {
		maps.Copy(h, a.Header)
	})
	if resp == nil {
		w.WriteHeader(http.StatusBadGateway)
		return
	}
	defer func() { _ = resp.Body.Close() }()
	if r.Method != http.MethodGet || resp.StatusCode != http.StatusOK {
		w.WriteHeader(resp.StatusCode)
		return
	}
	w.Header().Set("Content-Length", strconv.FormatInt(a.Size, 10))
	w.WriteHeader(http.StatusOK)
	_, _ = io.Copy(w, NewVerifyingReader(resp.Body, a.OID, a.Size)) // what is short is seen by the length
}

func (p *proxy) send(method, to string, body io.Reader, length int64, head func(http.Header)) *http.Response {
	r, err := http.NewRequestWithContext(p.t.Context(), method, to, body)
	if err != nil {
		p.t.Fatal(err)
	}
	if length >= 0 {
		r.ContentLength = length
	}
	head(r.Header)
	resp, err := p.client.Do(r)
	if err != nil {
		p.t.Logf("%s: %v", method, err)
		return nil
	}
	return resp
}

func (p *proxy) tell(w http.ResponseWriter, status int, body []byte) {
	w.Header().Set("Content-Type", ContentType)
	w.WriteHeader(status)
	_, _ = w.Write(body) // as above
}

// scene is an upstream, a proxy before it, and git with git-lfs.
type scene struct {
	*proxy
	dir string
	env []string
}

func stage(t *testing.T) *scene {
	t.Helper()
	testenv.Need(t, "tool:git", "tool:git-lfs")
	u := &upstream{t: t, objects: map[string][]byte{}, verified: map[string]bool{}}
	u.http = httptest.NewTLSServer(u)
	t.Cleanup(u.http.Close)
	p := &proxy{t: t, upstream: u, table: NewTable(), client: u.http.Client()}
	over := httptest.NewServer(p)
	t.Cleanup(over.Close)
	p.self = over.URL
	s := &scene{proxy: p, dir: t.TempDir()}
	helper := "!f() { echo username=x; echo password=" + proxyToken + "; }; f"
	s.env = append(os.Environ(), "HOME="+s.dir, "XDG_CONFIG_HOME="+s.dir, "GIT_CONFIG_NOSYSTEM=1", "GIT_TERMINAL_PROMPT=0", "GIT_CONFIG_COUNT=6",
		"GIT_CONFIG_KEY_0=lfs.url", "GIT_CONFIG_VALUE_0="+over.URL+"/acme/site.git/info/lfs",
		"GIT_CONFIG_KEY_1=credential.helper", "GIT_CONFIG_VALUE_1="+helper,
		"GIT_CONFIG_KEY_2=user.name", "GIT_CONFIG_VALUE_2=a", "GIT_CONFIG_KEY_3=user.email", "GIT_CONFIG_VALUE_3=a@example.com",
		"GIT_CONFIG_KEY_4=init.defaultBranch", "GIT_CONFIG_VALUE_4=main", "GIT_CONFIG_KEY_5=lfs.transfer.maxretries", "GIT_CONFIG_VALUE_5=1")
	return s
}

func (s *scene) try(dir string, args ...string) (string, error) {
	cmd := exec.CommandContext(s.t.Context(), "git", args...)
	cmd.Dir, cmd.Env = filepath.Join(s.dir, dir), s.env
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (s *scene) git(dir string, args ...string) string {
	s.t.Helper()
	out, err := s.try(dir, args...)
	if err != nil {
		s.t.Fatalf("git %v: %v\n%s", args, err, out)
	}
	return out
}

// pushed is a repository with large files, pushed to a bare one, and its files' contents.
func (s *scene) pushed(sizes ...int) map[string][]byte {
	s.t.Helper()
	s.git("", "init", "--bare", "remote.git")
	s.git("", "init", "work")
	s.git("work", "lfs", "install", "--local")
	s.git("work", "lfs", "track", "*.bin", "--lockable")
	files := map[string][]byte{}
	for i, size := range sizes {
		name := fmt.Sprintf("f%d.bin", i)
		files[name] = make([]byte, size)
		_, _ = rand.Read(files[name]) // never fails
		if err := os.WriteFile(filepath.Join(s.dir, "work", name), files[name], 0o600); err != nil {
			s.t.Fatal(err)
		}
	}
	s.git("work", "add", ".")
	s.git("work", "commit", "-m", "large files")
	s.git("work", "remote", "add", "origin", filepath.Join(s.dir, "remote.git"))
	s.git("work", "push", "origin", "main")
	return files
}

// secretless fails if a secret of the upstream went inside.
func (s *scene) secretless() {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if bytes.Contains(s.told.Bytes(), []byte("canary")) {
		s.t.Errorf("the upstream's secrets went inside")
	}
	if s.told.Len() == 0 {
		s.t.Errorf("nothing went inside")
	}
}

// TestGitLFS is the real client: push, fetch and locks through the table.
func TestGitLFS(t *testing.T) {
	s := stage(t)
	files := s.pushed(1, 100_000, 5<<20)
	s.upstream.mu.Lock()
	if len(s.upstream.objects) != 3 || len(s.upstream.verified) != 3 {
		t.Errorf("%d objects stored, %d verified", len(s.upstream.objects), len(s.upstream.verified))
	}
	s.upstream.mu.Unlock()
	s.git("", "clone", "-c", "filter.lfs.smudge=git-lfs smudge -- %f", "-c", "filter.lfs.process=git-lfs filter-process", "-c", "filter.lfs.required=true", "remote.git", "copy")
	for name, content := range files {
		got, err := os.ReadFile(filepath.Join(s.dir, "copy", name))
		if err != nil || !bytes.Equal(got, content) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}
	if out := s.git("work", "lfs", "lock", "f0.bin"); !strings.Contains(out, "Locked f0.bin") {
		t.Error(out)
	}
	if out := s.git("work", "lfs", "locks"); !strings.Contains(out, "f0.bin") || !strings.Contains(out, "Jane Doe") {
		t.Error(out)
	}
	if out, err := s.try("work", "lfs", "lock", "f0.bin"); err == nil || !strings.Contains(out, "the file is locked already") {
		t.Error(out, err)
	}
	if out := s.git("work", "lfs", "unlock", "f0.bin"); !strings.Contains(out, "Unlocked") {
		t.Error(out)
	}
	s.secretless()
}

// TestGitLFSRefused: what the client prints, where it may not write, where objects are on a host that is not open, and where content is wrong.
func TestGitLFSRefused(t *testing.T) {
	s := stage(t)
	s.pushed(1000)
	s.git("", "clone", "remote.git", "copy")
	s.git("copy", "lfs", "install", "--local")

	s.upstream.mu.Lock()
	s.upstream.elsewhere = true
	s.upstream.mu.Unlock()
	if out, err := s.try("copy", "lfs", "pull"); err == nil || !strings.Contains(out, "add it to lfs-hosts") {
		t.Errorf("another host: %v\n%s", err, out)
	}
	for name, corrupt := range map[string]func([]byte) []byte{
		"other":   func(b []byte) []byte { b[0] ^= 1; return b },
		"longer":  func(b []byte) []byte { return append(b, 'x') },
		"shorter": func(b []byte) []byte { return b[1:] },
	} {
		s.upstream.mu.Lock()
		s.upstream.elsewhere, s.upstream.corrupt = false, corrupt
		s.upstream.mu.Unlock()
		if out, err := s.try("copy", "lfs", "pull"); err == nil {
			t.Errorf("%s content is taken:\n%s", name, out)
		}
	}
	s.upstream.mu.Lock()
	s.upstream.corrupt = nil
	s.upstream.mu.Unlock()
	s.git("copy", "lfs", "pull") // the same, unhindered

	s.read = true
	if err := os.WriteFile(filepath.Join(s.dir, "work", "new.bin"), []byte("new"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.git("work", "add", ".")
	s.git("work", "commit", "-m", "another")
	if out, err := s.try("work", "push", "origin", "main"); err == nil || !strings.Contains(out, "acme/site is read-only here") {
		t.Errorf("read-only: %v\n%s", err, out)
	}
	s.git("copy", "lfs", "fetch", "--all")
	s.secretless()
}

// TestUploadOfOtherContent: a token for one object takes no other content.
func TestUploadOfOtherContent(t *testing.T) {
	u := &upstream{t: t, objects: map[string][]byte{}, verified: map[string]bool{}}
	u.http = httptest.NewTLSServer(u)
	defer u.http.Close()
	p := &proxy{t: t, upstream: u, table: NewTable(), client: u.http.Client()}
	over := httptest.NewServer(p)
	defer over.Close()
	for _, c := range []struct {
		content string
		status  int
	}{{"jello", http.StatusBadGateway}, {"hello!", http.StatusBadGateway}, {"hell", http.StatusBadGateway}, {"hello", http.StatusOK}} {
		answer := strings.NewReader(`{"objects":[{"oid":"` + hello + `","actions":{"upload":{"href":"` + u.http.URL + storedAt + hello + `","header":{"Authorization":"RemoteAuth ` + storage + `"}}}}]}`)
		out, err := p.table.Rewrite(Batch{Operation: Upload, Objects: []Object{{hello, 5}}}, answer, repository, over.URL+objectsPath, everywhere)
		if err != nil {
			t.Fatal(err)
		}
		var got rewritten
		if err := json.Unmarshal(out, &got); err != nil {
			t.Fatal(err)
		}
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPut, got.Objects[0].Actions["upload"].Href, strings.NewReader(c.content))
		if err != nil {
			t.Fatal(err)
		}
		r.SetBasicAuth("x", proxyToken)
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		u.mu.Lock()
		if stored := len(u.objects) == 1; resp.StatusCode != c.status || stored != (c.status == http.StatusOK) {
			t.Errorf("%q: status %d, stored %v", c.content, resp.StatusCode, stored)
		}
		u.mu.Unlock()
	}
}

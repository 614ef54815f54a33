package e2e

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/internal/testenv"
)

// Secrets that no program has by chance, with characters that each encoding writes otherwise.
const (
	canaryStatic   = `tok-CANARY-static-5f1c9e77/+&"<%=a2b44d0e`
	canaryPassword = `pw CANARY basic 77d0a1/+&"<%=b81c and spaces`
	canaryClient   = `cs-CANARY-client-0e5c/+&"<%=91d2aa40`
	canaryMinted   = `at-CANARY-minted-61b0f7/+&"<%=9c3de1f2`
	canaryInstall  = `ghs_CANARYinstallation7Hk2LmQ9xZr4TtB0c8`
	canaryAWS      = `aK/CANARYaws+8fQ2mWzR5tYx1LpN7cVbJ3hGd6`
	canaryKeyID    = `AKIACANARY0123456789`
	canaryDecoy    = `decoy-CANARY-which-is-inside-on-purpose`
)

var buildCanary = sync.OnceValues(func() (string, error) {
	path := filepath.Join(os.TempDir(), "cofferdam-test-canary-"+strconv.Itoa(os.Getuid()))
	cmd := exec.Command("go", "build", "-trimpath", "-o", path, "./e2e/testdata/canary")
	cmd.Dir, cmd.Env = testenv.Module(), append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", errors.New(string(out))
	}
	return path, nil
})

// aviary is a house with canaries of each kind in its store, servers that give them away, and servers that fail in each way.
type aviary struct {
	h       *house
	ca      *certifier
	parrot  *parrot
	secrets map[string]string
	needles []needle
	ports   map[string]string // by what the server there does
	names   []string

	mu      sync.Mutex
	arrived []string // at servers that must not be spoken to
	minted  int
}

// lent names the credential that each host is lent.
func lent() map[string]string {
	return map[string]string{"api.example.com": "static", "basic.example.com": "basic", "oauth.example.com": "oauth", "app.example.com": "app", "s3.example.com": "aws"}
}

// liars are token endpoints of which none hands over a token that can be used.
func liars() []string {
	return []string{"html", "error", "redirect", "newline", "empty", "huge", "slow", "reset", "kind", "late"}
}

func newAviary(t *testing.T, h *house) *aviary {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	private := string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)}))
	inside := private[strings.Index(private, "\n")+1 : strings.Index(private, "-----END")] // the frame is in every such file
	a := &aviary{h: h, ca: newCertifier(t), ports: map[string]string{}, names: []string{"login.example.com"}}
	a.secrets = map[string]string{
		"the token": canaryStatic, "the password": canaryPassword, "the client's secret": canaryClient, "the access token": canaryMinted, "the installation token": canaryInstall,
		"the secret access key": canaryAWS, "the private key": inside,
	}
	a.parrot = &parrot{seen: map[string]int{}, secrets: map[string]string{
		"api.example.com": canaryStatic, "basic.example.com": canaryPassword, "oauth.example.com": canaryMinted, "app.example.com": canaryInstall, "s3.example.com": canaryAWS,
	}}
	for host := range lent() {
		a.names = append(a.names, host)
	}
	for _, liar := range liars() {
		a.names = append(a.names, liar+".liar.example.com")
	}
	a.servers()
	h.trust = filepath.Join(h.home, "authority.pem")
	if err := os.WriteFile(h.trust, a.ca.pem, 0o644); err != nil {
		t.Fatal(err)
	}
	a.add(private)
	a.needles = needles(a.secrets)
	a.needles = append(a.needles, a.sealKey()...)
	h.write("../agent.yaml", a.policy())
	h.own(h.home)
	return a
}

// servers starts all servers.
func (a *aviary) servers() {
	hour := time.Hour
	a.ports["parrot"] = a.ca.serve(a.ca.issue(-hour, hour, a.names...), func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.Host, "login.example.com") {
			a.mint(w, r)
			return
		}
		a.parrot.serve(w, r)
	})
	never := func(w http.ResponseWriter, r *http.Request) {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.arrived = append(a.arrived, fmt.Sprint(r.Host, r.URL, r.Header))
	}
	a.ports["expired"] = a.ca.serve(a.ca.issue(-2*hour, -hour, a.names...), never)
	a.ports["future"] = a.ca.serve(a.ca.issue(hour, 2*hour, a.names...), never)
	a.ports["name"] = a.ca.serve(a.ca.issue(-hour, hour, "other.example.com"), never)
	a.ports["stranger"] = newCertifier(a.h.t).serve(newCertifier(a.h.t).issue(-hour, hour, a.names...), never)
	a.ports["silent"] = a.listen(func(c net.Conn) { _, _ = io.Copy(io.Discard, c) })
	a.ports["plain"] = a.listen(func(c net.Conn) {
		_, _ = io.WriteString(c, "HTTP/1.1 400 this is no TLS\r\nConnection: close\r\n\r\n")
	})
	a.ports["closed"] = a.listen(nil)
}

// listen serves bare TCP; without a handler the port is closed again.
func (a *aviary) listen(f func(net.Conn)) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		a.h.t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(l.Addr().String())
	if f == nil {
		_ = l.Close()
		return port
	}
	a.h.t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { defer c.Close(); f(c) }()
		}
	}()
	return port
}

// mint is the token endpoints, honest and not.
func (a *aviary) mint(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	a.minted++
	a.mu.Unlock()
	_, password, _ := r.BasicAuth()
	way, _ := strings.CutPrefix(r.URL.Path, "/token/")
	say := func(text string) { _, _ = io.WriteString(w, text) }
	switch {
	case strings.HasPrefix(r.URL.Path, "/app/installations/"):
		// This server's clock is two hours ahead: what it says of the end is by that.
		ahead := time.Now().Add(2 * time.Hour)
		w.Header().Set("Date", ahead.UTC().Format(http.TimeFormat))
		w.WriteHeader(http.StatusCreated)
		say(fmt.Sprintf(`{"token":%q,"expires_at":%q}`, canaryInstall, ahead.Add(time.Hour).UTC().Format(time.RFC3339)))
	case way == "honest":
		token, _ := json.Marshal(canaryMinted)
		say(`{"access_token":` + string(token) + `,"token_type":"bearer","expires_in":1,"scope":"` + "all" + `"}`)
	case way == "html":
		say("<html>you sent " + password)
	case way == "error":
		w.Header().Set("X-Echo", password)
		w.WriteHeader(http.StatusBadRequest)
		body, _ := json.Marshal(map[string]string{"error": password, "error_description": "the secret " + password + " is wrong"})
		say(string(body))
	case way == "redirect":
		http.Redirect(w, r, "https://evil.example.com/"+password, http.StatusTemporaryRedirect)
	case way == "newline":
		say(`{"access_token":"first\r\nX-Second: line","expires_in":60}`)
	case way == "empty":
		say(`{"expires_in":60}`)
	case way == "huge":
		say(`{"access_token":"` + strings.Repeat("x", 300<<10) + `"}`)
	case way == "slow":
		select {
		case <-r.Context().Done():
		case <-time.After(30 * time.Second):
		}
	case way == "reset":
		panic(http.ErrAbortHandler)
	case way == "kind":
		body, _ := json.Marshal(map[string]string{"access_token": canaryMinted, "token_type": "mac"})
		say(string(body))
	case way == "late": // ended before it began
		say(`{"access_token":"short","expires_in":-9e99}`)
	}
}

// add puts the credentials into the store.
func (a *aviary) add(private string) {
	h, p := a.h, a.ports["parrot"]
	pemFile := filepath.Join(h.home, "app.pem")
	if err := os.WriteFile(pemFile, []byte(private), 0o600); err != nil {
		h.t.Fatal(err)
	}
	h.own(h.home)
	one := func(input, name string, args ...string) {
		h.t.Helper()
		args = append([]string{"credential", "add", name, "--port", p}, args...)
		if r := h.doWith(time.Minute, input, args...); r.code != 0 {
			h.t.Fatalf("add %s: %s%s", name, r.stdout, r.stderr)
		}
	}
	static := []string{"--host", "api.example.com"}
	for _, port := range a.ports {
		static = append(static, "--port", port)
	}
	one(canaryStatic+"\n", "static", static...)
	one(canaryPassword+"\n", "basic", "--kind", "basic", "--user", "ci", "--host", "basic.example.com")
	oauth := []string{"--kind", "oauth2-client", "--client-id", "agent", "--token-url"}
	one(canaryClient+"\n", "oauth", append(oauth, "https://login.example.com:"+p+"/token/honest", "--host", "oauth.example.com")...)
	for _, liar := range liars() {
		one(canaryClient+"\n", "liar-"+liar, append(oauth, "https://login.example.com:"+p+"/token/"+liar, "--host", liar+".liar.example.com")...)
	}
	one(canaryAWS+"\n", "aws", "--kind", "aws", "--access-key-id", canaryKeyID, "--host", "s3.example.com")
	one("", "app", "--kind", "github-app", "--app-id", "1", "--installation-id", "2", "--api", "https://login.example.com:"+p, "--host", "app.example.com", "--from-file", pemFile)
	if err := os.Remove(pemFile); err != nil {
		h.t.Fatal(err)
	}
}

// sealKey returns the forms of the key that all is sealed under. It may be in its own file and nowhere else.
func (a *aviary) sealKey() []needle {
	files, err := filepath.Glob(filepath.Join(a.h.state, "seal", "*.key"))
	if err != nil || len(files) != 1 {
		a.h.t.Fatalf("key files %q: %v", files, err)
	}
	data, err := os.ReadFile(files[0])
	if err != nil {
		a.h.t.Fatal(err)
	}
	return needles(map[string]string{"the sealing key": strings.TrimSpace(string(data))})
}

func (a *aviary) policy() string {
	var b strings.Builder
	var ports []string
	for _, port := range a.ports {
		ports = append(ports, port)
	}
	all := strings.Join(ports, ", ")
	fmt.Fprintf(&b, "version: 1\negress:\n  networks: [127.0.0.0/8]\n  rules:\n    - hosts: [%s]\n      ports: [%s]\ncredentials:\n", strings.Join(a.names[1:], ", "), all)
	env := map[string]string{"static": "API_TOKEN", "basic": "API_PASSWORD", "oauth": "OAUTH_TOKEN", "app": "GH_TOKEN", "aws": "AWS_ACCESS_KEY_ID"}
	for host, name := range lent() {
		ports := a.ports["parrot"]
		if name == "static" {
			ports = all
		}
		fmt.Fprintf(&b, "  - {use: %s, hosts: [%s], ports: [%s], env: %s}\n", name, host, ports, env[name])
	}
	for _, liar := range liars() {
		fmt.Fprintf(&b, "  - {use: liar-%s, hosts: [%s.liar.example.com], ports: [%s]}\n", liar, liar, a.ports["parrot"])
	}
	return b.String()
}

// run prepares a run under the policy.
func (a *aviary) run(flags ...string) []string {
	args := []string{"run", "--policy", "../agent.yaml"}
	for _, name := range a.names {
		args = append(args, "--resolve", name+"=127.0.0.1")
	}
	return append(args, flags...)
}

// job is one request of testdata/canary.
type job struct {
	Name    string
	URL     string
	Method  string
	Headers [][2]string
	Body    string
	Two     bool
	Wait    time.Duration
}

// auth is how a client presents the placeholder that stands for a host's credential.
func auth(host string) [][2]string {
	switch host {
	case "basic.example.com":
		return [][2]string{{"Authorization", "Basic ${API_BASIC}"}}
	case "s3.example.com":
		return [][2]string{
			{"Authorization", "AWS4-HMAC-SHA256 Credential=${AWS_ACCESS_KEY_ID}/20260101/eu-central-1/s3/aws4_request, SignedHeaders=host, Signature=00"},
			{"X-Amz-Content-Sha256", "UNSIGNED-PAYLOAD"}, {"X-Amz-Date", "20260101T000000Z"},
		}
	}
	return [][2]string{{"Authorization", "Bearer ${" + map[string]string{"api.example.com": "API_TOKEN", "oauth.example.com": "OAUTH_TOKEN", "app.example.com": "GH_TOKEN"}[host] + "}"}}
}

// ways are those of parrot, and what a client must see of them: of most, that something was there.
func ways() map[string]string {
	return map[string]string{
		"headers": "X-Plain", "body": "hex ", "counted": " is ", "split": "200 OK", "bytes": "200 OK", "gzip": "padding", "deflate": "cannot be looked through", "br": "cannot be looked through",
		"lie": "", "redirect": "evil.example.com/", "trailer": "body", "unannounced": "body", "401": "refused: ", "403": "refused: ", "500": "refused: ", "503": "refused: ",
		"hints": "after the hints", "sse": "data: ", "multipart": "form-data", "json": "headers", "long": "0123456789abcdef", "reset": "", "wire": "body", "websocket": "101 Switching", "hang": "",
	}
}

func (a *aviary) jobs() (jobs []job) {
	for host := range lent() {
		for way := range ways() {
			for _, two := range []bool{false, true} {
				if two && (way == "reset" || way == "wire" || way == "websocket") {
					continue // of HTTP/1.1 only
				}
				j := job{Name: host + " " + way, URL: "https://" + host + ":" + a.ports["parrot"] + "/" + way, Headers: auth(host), Two: two}
				j.Headers = append(j.Headers, [2]string{"Accept-Encoding", "br, gzip, deflate"}, [2]string{"TE", "trailers"})
				if two {
					j.Name += " h2"
				}
				if way == "websocket" {
					j.Headers = append(j.Headers, [2]string{"Connection", "Upgrade"}, [2]string{"Upgrade", "websocket"}, [2]string{"Sec-WebSocket-Version", "13"},
						[2]string{"Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="}, [2]string{"Sec-WebSocket-Extensions", "permessage-deflate"})
				}
				if way == "hang" {
					j.Wait = 2 * time.Second
				}
				jobs = append(jobs, j)
			}
		}
	}
	for what, port := range a.ports {
		if what != "parrot" {
			jobs = append(jobs, job{Name: "fails " + what, URL: "https://api.example.com:" + port + "/body", Headers: auth("api.example.com")},
				job{Name: "fails " + what + " h2", URL: "https://api.example.com:" + port + "/body", Headers: auth("api.example.com"), Two: true})
		}
	}
	for _, liar := range liars() {
		jobs = append(jobs, job{Name: "liar " + liar, URL: "https://" + liar + ".liar.example.com:" + a.ports["parrot"] + "/body", Wait: 30 * time.Second})
	}
	api := "https://api.example.com:" + a.ports["parrot"]
	return append(jobs,
		job{Name: "upload", URL: api + "/body", Method: "POST", Headers: auth("api.example.com"), Body: "a body"},
		job{Name: "TRACE", URL: api + "/body", Method: "TRACE", Headers: auth("api.example.com")},
		job{Name: "foreign", URL: api + "/body", Headers: [][2]string{{"Authorization", "Bearer of-my-own-0123456789"}}},
		job{Name: "misused", URL: api + "/body?t=${API_TOKEN}", Headers: [][2]string{{"X-Other", "${API_TOKEN}"}}},
	)
}

// TestCanary lends credentials of each kind to a program that tries to see them, while servers give them away in each way and fail in each way; then it searches
// everything that the program saw or could read, and all that was written or said on the host.
func TestCanary(t *testing.T) {
	testenv.Need(t, "tool:go")
	program, err := buildCanary()
	if err != nil {
		t.Fatal(err)
	}
	forEachUser(t, func(t *testing.T, h *house) {
		a := newAviary(t, h)
		binary, err := os.ReadFile(program)
		if err != nil {
			t.Fatal(err)
		}
		h.write("canary", string(binary))
		h.write("decoy.txt", canaryDecoy)
		dumps := filepath.Join(filepath.Dir(h.home), "dumps")
		if err := errors.Join(os.Chmod(filepath.Join(h.project, "canary"), 0o755), os.Mkdir(dumps, 0o777)); err != nil {
			t.Fatal(err)
		}
		h.own(dumps)
		w := h.watch(a.run("--env", "DECOY="+canaryDecoy, "--mount", dumps+":"+dumps+":rw", "--", "sh", "-c",
			`export API_BASIC=$(printf 'ci:%s' "$API_PASSWORD" | base64 -w0); exec ./canary `+dumps)...)
		jobs, err := json.Marshal(a.jobs())
		if err != nil {
			t.Fatal(err)
		}
		w.say(string(jobs))
		w.await("requests are made", 3*time.Minute)
		a.lookFromOutside(w.cmd.Process.Pid)
		w.say("")
		w.await("all is written down", 2*time.Minute)
		w.say("")
		r := w.wait(time.Minute)
		if r.code != 0 {
			t.Errorf("exit %d: %s", r.code, r.stderr)
		}
		a.answers(r.stdout)
		a.arrivals()
		a.record()
		h.clear(a.needles, "standard output", []byte(r.stdout))
		h.clear(a.needles, "standard error", []byte(r.stderr))
		if n := h.clearTree(a.needles, dumps, nil); n != 2 {
			t.Errorf("searched %d dumps", n)
		}
		for _, name := range []string{"processes", "files"} {
			data, err := os.ReadFile(filepath.Join(dumps, name))
			if found := find(needles(map[string]string{"decoy": canaryDecoy}), data); len(found) == 0 || err != nil {
				t.Errorf("control: the decoy is not found among %s: %v", name, err)
			}
		}
		if !strings.Contains(r.stdout, "memory of ") || strings.Contains(r.stdout, "memory of 0 ") {
			t.Error("control: no memory was read inside")
		}
		a.searchHost()
	})
}

// lookFromOutside searches what the machine shows of our processes, and the memory of all that must not have a secret.
func (a *aviary) lookFromOutside(pid int) {
	h := a.h
	processes := family(pid)
	if len(processes) < 4 { // gateway, supervisor, runner, command
		h.t.Errorf("control: only %d processes are seen", len(processes))
	}
	for _, p := range processes {
		for _, name := range []string{"environ", "cmdline", "maps", "comm"} {
			data, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", p, name))
			if err == nil {
				h.clear(a.needles, fmt.Sprintf("%s of process %d", name, p), data)
			}
		}
		if os.Geteuid() != 0 {
			continue
		}
		data, err := memory(p), error(nil)
		switch {
		case len(data) == 0:
			h.t.Errorf("control: no memory of process %d can be read: %v", p, err)
		case p == pid:
			if len(find(a.needles, data)) == 0 {
				h.t.Error("control: the gateway's memory is without the credentials that it lends")
			}
			h.clear(a.sealKey(), "the gateway's memory", data)
		default:
			h.clear(a.needles, fmt.Sprintf("the memory of process %d", p), data)
		}
	}
}

// sections are the answers by the names of the jobs.
func sections(out string) map[string]string {
	all := map[string]string{}
	for part := range strings.SplitSeq("\n"+out, "\n=== ") {
		name, text, _ := strings.Cut(part, "\n")
		all[name] = text
	}
	return all
}

// answers checks that each job came to what it must come to.
func (a *aviary) answers(out string) {
	t, got := a.h.t, sections(out)
	redacted := 0
	for _, j := range a.jobs() {
		text, there := got[j.Name]
		if !there {
			t.Errorf("no answer of %s", j.Name)
			continue
		}
		kind, rest, _ := strings.Cut(j.Name, " ")
		switch kind {
		case "fails", "liar":
			if !strings.Contains(text, "502") || !strings.Contains(text, "cofferdam") && !strings.Contains(text, "Cofferdam-Denied") {
				t.Errorf("%s: %.600s", j.Name, text)
			}
		case "TRACE", "foreign", "misused":
			if !strings.Contains(text, "Cofferdam-Denied") {
				t.Errorf("%s: %.600s", j.Name, text)
			}
		case "upload":
			if !strings.Contains(text, "200 OK") {
				t.Errorf("%s: %.600s", j.Name, text)
			}
		default:
			way, _, _ := strings.Cut(rest, " ")
			want := ways()[way]
			if !strings.Contains(text, want) {
				t.Errorf("%s: no %q in %.900q", j.Name, want, text)
			}
			if way == "body" && (strings.Count(text, "****")+strings.Count(text, "0000") > 3 || kind == "app.example.com" && strings.Contains(text, "ghs_")) { // of the same length: the placeholder
				redacted++
			}
		}
	}
	if redacted < 2*len(lent()) {
		t.Errorf("control: only %d bodies show that something was taken out", redacted)
	}
}

// arrivals checks what came to the servers.
func (a *aviary) arrivals() {
	t := a.h.t
	a.parrot.mu.Lock()
	defer a.parrot.mu.Unlock()
	for host := range lent() {
		if a.parrot.seen[host] < len(ways()) {
			t.Errorf("control: %s was sent its secret %d times", host, a.parrot.seen[host])
		}
	}
	if len(a.parrot.odd) > 0 {
		t.Errorf("requests without the credential arrived: %.2000q", a.parrot.odd)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.arrived) > 0 {
		t.Errorf("requests arrived at servers that are not who they say: %.2000q", a.arrived)
	}
	if a.minted < len(liars())+2 {
		t.Errorf("control: token endpoints were asked %d times", a.minted)
	}
}

// record checks that the audit log says of crossings what they were.
func (a *aviary) record() {
	t := a.h.t
	r := a.h.do("audit", "last", "--json")
	type lentEvent struct {
		event
		Credential string `json:"credential"`
		Grant      string `json:"grant"`
		Redactions int    `json:"redactions"`
		Type       string `json:"type"`
		Digest     string `json:"digest"`
		Error      string `json:"error"`
		Access     string `json:"access"`
		Status     int    `json:"status"`
	}
	seen := map[string]int{}
	for line := range strings.Lines(r.stdout) {
		var e lentEvent
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatal(err)
		}
		if e.Kind == "crossing.finished" && e.Protocol == "https" && e.Credential == lent()[e.Host] {
			if e.Redactions > 0 {
				seen["redacted "+e.Credential]++
			}
			if e.Path == "/json" && strings.HasPrefix(e.Digest, "sha256:") && strings.HasPrefix(e.Type, "text/plain") && strings.HasPrefix(e.Grant, "../agent.yaml:") && e.Access == "read" && e.Status == 200 {
				seen["told "+e.Credential]++
			}
			if e.Error != "" {
				seen["failed "+e.Credential]++
			}
		}
		if e.Verdict == "deny" {
			seen[e.Rule]++
		}
	}
	want := map[string]int{"credential-unavailable": len(liars()), "foreign-credential": 1, "placeholder-misused": 1, "method-closed": 1, "failed static": 14}
	for _, name := range lent() {
		want["redacted "+name], want["told "+name] = len(ways()), 2
	}
	for what, n := range want {
		if seen[what] < n {
			t.Errorf("on record %d times: %s; want %d", seen[what], what, n)
		}
	}
}

// searchHost looks through all that was written, and all that commands say.
func (a *aviary) searchHost() {
	h := a.h
	if n := h.clearTree(a.needles, h.state, func(path string) bool { return filepath.Ext(path) == ".key" }); n < 10 {
		h.t.Errorf("control: only %d files of state", n)
	}
	h.clearTree(a.needles, h.home, nil)
	reach := []string{"--resolve", "login.example.com=127.0.0.1", "--allow-network", "127.0.0.0/8", "--ca", h.trust}
	commands := [][]string{
		{"credential", "list"}, {"credential", "list", "--json"}, {"audit"}, {"audit", "--json"}, {"audit", "verify", "--json"}, {"ps", "-a", "--json"}, {"ps", "-a"}, {"seal", "status"}, {"seal", "status", "--json"},
		{"policy", "check", "../agent.yaml"}, {"diff", "last"}, {"doctor"},
	}
	for _, name := range slices.Concat([]string{"app"}, liars()) {
		if name != "app" {
			name = "liar-" + name
		}
		commands = append(commands, []string{"credential", "show", name, "--json"})
	}
	for _, name := range lent() {
		commands = append(commands, []string{"credential", "show", name}, []string{"credential", "show", name, "--json"}, []string{"credential", "edit", name, "--method", "GET", "--json"},
			[]string{"credential", "edit", name, "--path", "relative"}, append([]string{"credential", "test", name}, reach...), append([]string{"credential", "test", name, "--url", "https://elsewhere.example.com/"}, reach...))
	}
	for _, args := range commands {
		r := h.do(args...)
		if r.stdout+r.stderr == "" {
			h.t.Errorf("control: %v says nothing", args)
		}
		h.clear(a.needles, "cofferdam "+strings.Join(args, " "), []byte(r.stdout+r.stderr))
	}
}

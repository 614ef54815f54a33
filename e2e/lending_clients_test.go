package e2e

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/hmac"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/tls"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/internal/testenv"
)

const (
	clientGitHub = "ghp_CANARYgh7Qz2Wm9Lx4Rt8Vb1Nc6Kd3Hf5JpT"
	clientNPM    = "npm_CANARYnp5Tq8Xw2Zr7Yl1Mc9Vb4Kd6Hg3JsR"
	clientPip    = "CANARY-of-the-index-7Qw2Zx9Lm4Rt"
	clientAWS    = "CANARY+aws/9Zq4Wm7Lx2Rt8Vb1Nc6Kd3Hf5JpT0"
	clientKeyID  = "AKIACANARYCLIENT0001"
	clientAPI    = "tok-CANARY-for-all-others-4Xw8Qz2Lm9Rt"
)

// services are servers under the names and at the port of the real ones, on an address of this machine.
type services struct {
	t       *testing.T
	address string
	port    string // 443 where this user may
	ca      *certifier
	wheel   []byte
	pack    []byte // of npm

	mu      sync.Mutex
	objects map[string][]byte
	seen    map[string]int // accepted requests by host
	refused []string
}

func serviceNames() []string {
	return []string{"api.github.com", "s3.eu-central-1.amazonaws.com", "bucket.s3.eu-central-1.amazonaws.com", "sts.eu-central-1.amazonaws.com", "registry.example.com", "index.example.com", "api.example.com"}
}

func newServices(t *testing.T) *services {
	t.Helper()
	s := &services{t: t, ca: newCertifier(t), wheel: newWheel(t), pack: newPack(t), objects: map[string][]byte{}, seen: map[string]int{}}
	s.address = fmt.Sprintf("127.%d.%d.%d", 1+rand.IntN(250), rand.IntN(250), 1+rand.IntN(250))
	l, err := net.Listen("tcp", s.address+":443")
	if err != nil {
		if l, err = net.Listen("tcp", s.address+":0"); err != nil {
			t.Fatal(err)
		}
	}
	_, s.port, _ = net.SplitHostPort(l.Addr().String())
	server := httptest.NewUnstartedServer(http.HandlerFunc(s.serve))
	_ = server.Listener.Close() // replaced
	server.Listener = l
	server.TLS = &tls.Config{Certificates: []tls.Certificate{s.ca.issue(-time.Hour, time.Hour, serviceNames()...)}}
	server.EnableHTTP2 = true
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	t.Cleanup(server.Close)
	return s
}

func (s *services) url(host string) string {
	if s.port == "443" {
		return "https://" + host
	}
	return "https://" + host + ":" + s.port
}

func (s *services) serve(w http.ResponseWriter, r *http.Request) {
	host, _, found := strings.Cut(r.Host, ":")
	if !found {
		host = r.Host
	}
	body, _ := io.ReadAll(io.LimitReader(r.Body, 32<<20)) // a body that breaks off has a wrong signature
	why := ""
	user, password, _ := r.BasicAuth()
	switch {
	case strings.HasSuffix(host, ".amazonaws.com"):
		why = checkSigV4(r, body)
	case host == "index.example.com":
		if user != "ci" || password != clientPip {
			why = "user " + user
		}
	default:
		want := map[string]string{"api.github.com": clientGitHub, "registry.example.com": clientNPM, "api.example.com": clientAPI}[host]
		if r.Header.Get("Authorization") != "Bearer "+want {
			why = r.Header.Get("Authorization")
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if why != "" {
		s.refused = append(s.refused, host+" "+r.URL.String()+": "+why)
		w.Header().Set("Www-Authenticate", "Basic")
		http.Error(w, `{"message":"Bad credentials"}`, http.StatusUnauthorized)
		return
	}
	s.seen[host]++
	w.Header().Set("X-Echo", r.Header.Get("Authorization"))
	s.answer(w, r, host, body)
}

func (s *services) answer(w http.ResponseWriter, r *http.Request, host string, body []byte) {
	switch host {
	case "api.github.com":
		w.Header().Set("Content-Type", "application/json; charset=utf-8")
		if r.URL.Path == "/graphql" {
			fmt.Fprintf(w, `{"data":{"viewer":{"login":"octo-%d"}}}`, len(body))
			return
		}
		fmt.Fprintf(w, `{"login":"octocat","echo":%q}`, r.Header.Get("Authorization"))
	case "sts.eu-central-1.amazonaws.com":
		fmt.Fprint(w, `<GetCallerIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><GetCallerIdentityResult><Arn>arn:aws:iam::1234:user/octocat</Arn><UserId>AIDA</UserId><Account>1234</Account></GetCallerIdentityResult></GetCallerIdentityResponse>`)
	case "s3.eu-central-1.amazonaws.com", "bucket.s3.eu-central-1.amazonaws.com":
		s.s3(w, r, host, body)
	case "registry.example.com":
		if strings.HasSuffix(r.URL.Path, ".tgz") {
			_, _ = w.Write(s.pack) // the client checks its sum
			return
		}
		one, five := sha1.Sum(s.pack), sha512.Sum512(s.pack)
		_ = json.NewEncoder(w).Encode(map[string]any{"name": "e2e-private", "dist-tags": map[string]string{"latest": "1.0.0"}, "versions": map[string]any{"1.0.0": map[string]any{
			"name": "e2e-private", "version": "1.0.0", "dist": map[string]string{"tarball": s.url(host) + "/e2e-private/-/e2e-private-1.0.0.tgz", "shasum": hex.EncodeToString(one[:]), "integrity": "sha512-" + base64.StdEncoding.EncodeToString(five[:])},
		}}})
	case "index.example.com":
		if strings.HasPrefix(r.URL.Path, "/files/") {
			_, _ = w.Write(s.wheel) // the client checks its sum
			return
		}
		w.Header().Set("Content-Type", "text/html")
		fmt.Fprintf(w, `<a href="/files/e2e_demo-1.0-py3-none-any.whl#sha256=%x">e2e_demo-1.0-py3-none-any.whl</a>`, sha256.Sum256(s.wheel))
	default:
		fmt.Fprintf(w, "hello %s; you sent %s\n", r.Proto, r.Header.Get("Authorization"))
	}
}

// s3 keeps objects.
func (s *services) s3(w http.ResponseWriter, r *http.Request, host string, body []byte) {
	key := strings.TrimSuffix(host, ".s3.eu-central-1.amazonaws.com") + r.URL.Path
	switch r.Method {
	case http.MethodPut:
		s.objects[key] = body
		w.Header().Set("Etag", `"0123"`)
	case http.MethodGet, http.MethodHead:
		data, there := s.objects[key]
		if !there {
			http.Error(w, "<Error><Code>NoSuchKey</Code></Error>", http.StatusNotFound)
			return
		}
		w.Header().Set("Etag", `"0123"`)
		w.Header().Set("Last-Modified", "Mon, 02 Jan 2006 15:04:05 GMT")
		w.Header().Set("Content-Length", fmt.Sprint(len(data)))
		_, _ = w.Write(data) // a client that is gone reads nothing
	}
}

// checkSigV4 computes a request's signature as the service does, from what arrived, and says what is wrong with it.
func checkSigV4(r *http.Request, body []byte) string {
	auth, ok := strings.CutPrefix(r.Header.Get("Authorization"), "AWS4-HMAC-SHA256 ")
	if !ok {
		return "no signature: " + r.Header.Get("Authorization")
	}
	parts := map[string]string{}
	for part := range strings.SplitSeq(auth, ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(part), "=")
		parts[name] = value
	}
	scope := strings.Split(parts["Credential"], "/")
	if len(scope) != 5 || scope[0] != clientKeyID {
		return "another's key: " + parts["Credential"]
	}
	stamp := r.Header.Get("X-Amz-Date")
	when, err := time.Parse("20060102T150405Z", stamp)
	if err != nil || time.Since(when).Abs() > 5*time.Minute {
		return "time " + stamp
	}
	sum := sha256.Sum256(body)
	payload := r.Header.Get("X-Amz-Content-Sha256")
	if payload == "" {
		payload = hex.EncodeToString(sum[:])
	} else if payload != "UNSIGNED-PAYLOAD" && payload != "STREAMING-UNSIGNED-PAYLOAD-TRAILER" && payload != hex.EncodeToString(sum[:]) {
		return "the body is not what is signed"
	}
	var lines strings.Builder
	for name := range strings.SplitSeq(parts["SignedHeaders"], ";") {
		value := strings.Join(r.Header.Values(name), ",")
		if name == "host" {
			value = r.Host
		}
		fmt.Fprintf(&lines, "%s:%s\n", name, strings.TrimSpace(value))
	}
	var query []string
	for part := range strings.SplitSeq(r.URL.RawQuery, "&") {
		if part != "" && !strings.Contains(part, "=") {
			part += "="
		}
		if part != "" {
			query = append(query, part)
		}
	}
	slices.Sort(query)
	canonical := strings.Join([]string{r.Method, r.URL.EscapedPath(), strings.Join(query, "&"), lines.String(), parts["SignedHeaders"], payload}, "\n")
	hash := sha256.Sum256([]byte(canonical))
	text := strings.Join([]string{"AWS4-HMAC-SHA256", stamp, strings.Join(scope[1:], "/"), hex.EncodeToString(hash[:])}, "\n")
	key := []byte("AWS4" + clientAWS)
	for _, step := range append(scope[1:], text) {
		m := hmac.New(sha256.New, key)
		m.Write([]byte(step))
		key = m.Sum(nil)
	}
	if hex.EncodeToString(key) != parts["Signature"] {
		return "the signature does not match: " + canonical
	}
	return ""
}

// newPack makes a package of npm.
func newPack(t *testing.T) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	w := tar.NewWriter(z)
	for name, content := range map[string]string{"package/package.json": `{"name":"e2e-private","version":"1.0.0","main":"i.js"}`, "package/i.js": "module.exports = 'swordfish'\n"} {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(content))}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// borrower is a client with nothing but a placeholder.
type borrower struct {
	name, tool string
	host       string // that it asks
	line       string
	want       string
}

// borrowers are unmodified clients as people use them. API, INDEX and REGISTRY are addresses.
func borrowers() []borrower {
	return []borrower{
		{"gh", "gh", "api.github.com", `gh api user --jq .login`, "octocat"},
		{"gh graphql", "gh", "api.github.com", `gh api graphql -f query='query { viewer { login } }' --jq .data.viewer.login`, "octo-"},
		{"aws s3 put", "aws", "s3.eu-central-1.amazonaws.com", `head -c 100000 /dev/zero > zeroes; aws s3api put-object --bucket bucket --key 'a b/+ü.txt' --body zeroes`, "ETag"},
		{"aws s3 get", "aws", "s3.eu-central-1.amazonaws.com", `aws s3api get-object --bucket bucket --key 'a b/+ü.txt' out >/dev/null; wc -c < out`, "100000"},
		{"aws sts", "aws", "sts.eu-central-1.amazonaws.com", `aws sts get-caller-identity --query Arn --output text`, "user/octocat"},
		{"curl h2", "curl", "api.example.com", `curl -sS --fail -H "Authorization: Bearer $API_TOKEN" $API/x`, "hello HTTP/2"},
		{"curl h1", "curl", "api.example.com", `curl -sS --fail --http1.1 -H "Authorization: Bearer $API_TOKEN" $API/x`, "hello HTTP/1.1"},
		{"curl oauth2-bearer", "curl", "api.example.com", `curl -sS --fail --oauth2-bearer "$API_TOKEN" $API/x`, "hello"},
		{"curl basic", "curl", "index.example.com", `curl -sS --fail -u "ci:$INDEX_PASSWORD" $INDEX/simple/e2e-demo/`, "e2e_demo"},
		{"curl netrc", "curl", "index.example.com", `echo "machine index.example.com login ci password $INDEX_PASSWORD" > ~/.netrc; curl -sS --fail -n $INDEX/simple/e2e-demo/`, "e2e_demo"},
		{"wget", "wget", "api.example.com", `wget -q -O - --tries=1 --ca-certificate=$SSL_CERT_FILE --header "Authorization: Bearer $API_TOKEN" $API/x`, "hello"},
		{"node fetch", "node", "api.example.com", `node -e 'fetch(process.env.API + "/x", {headers: {Authorization: "Bearer " + process.env.API_TOKEN}}).then(r => { if (!r.ok) process.exit(1); return r.text() }).then(console.log)'`, "hello"},
		{"node https", "node", "api.example.com", `node -e 'require("https").get(process.env.API + "/x", {headers: {Authorization: "Bearer " + process.env.API_TOKEN}}, r => { if (r.statusCode != 200) process.exit(1); r.pipe(process.stdout) })'`, "hello"},
		{"python urllib", "/usr/bin/python3", "api.example.com", `/usr/bin/python3 -c 'import os, urllib.request as u; print(u.urlopen(u.Request(os.environ["API"] + "/x", headers={"Authorization": "Bearer " + os.environ["API_TOKEN"]})).read().decode())'`, "hello"},
		{"python requests", "python:requests", "api.example.com", `/usr/bin/python3 -c 'import os, requests; r = requests.get(os.environ["API"] + "/x", headers={"Authorization": "Bearer " + os.environ["API_TOKEN"]}); r.raise_for_status(); print(r.text)'`, "hello"},
		{"python requests basic", "python:requests", "index.example.com", `/usr/bin/python3 -c 'import os, requests; r = requests.get(os.environ["INDEX"] + "/simple/e2e-demo/", auth=("ci", os.environ["INDEX_PASSWORD"])); r.raise_for_status(); print(r.text)'`, "e2e_demo"},
		{"go", "go", "api.example.com", `echo '[{"Name":"go","URL":"'$API'/x","Two":true,"Headers":[["Authorization","Bearer ${API_TOKEN}"]]}]' | ./canary . | tee went; grep -q '200 OK' went`, "hello HTTP/2"},
		{"npm", "npm", "registry.example.com", `echo "$REGISTRY/:_authToken=\${NPM_TOKEN}" | sed s/^https:// > ~/.npmrc; mkdir m; cd m; npm install --no-audit --no-fund --fetch-retries=0 --registry $REGISTRY/ e2e-private >/dev/null && node -e 'console.log(require("e2e-private"))'`, "swordfish"},
		{"pip", "/usr/bin/pip3", "index.example.com", `/usr/bin/pip3 install -q --no-cache-dir --retries 0 --target /tmp/site --index-url $(echo $INDEX | sed "s#//#//ci:$INDEX_PASSWORD@#")/simple e2e-demo && PYTHONPATH=/tmp/site /usr/bin/python3 -c 'import e2e_demo; print(e2e_demo.WORD)'`, "swordfish"},
		{"java", "javac", "api.example.com", `java -Duser.language=en Ask.java $API/x`, "hello"},
	}
}

// askJava is a client in Java: it knows the authorities of its runtime's own list.
const askJava = `import java.net.URI;
import java.net.http.*;
public class Ask {
	public static void main(String[] args) throws Exception {
		HttpRequest r = HttpRequest.newBuilder(URI.create(args[0])).header("Authorization", "Bearer " + System.getenv("API_TOKEN")).build();
		HttpResponse<String> a = HttpClient.newHttpClient().send(r, HttpResponse.BodyHandlers.ofString());
		System.out.println(a.body());
		System.exit(a.statusCode() == 200 ? 0 : 1);
	}
}
`

// lacking says why a client cannot be tried here, or nothing.
func lacking(tool string) string {
	if module, ok := strings.CutPrefix(tool, "python:"); ok {
		if found, _ := filepath.Glob("/usr/lib/python3/dist-packages/" + module); len(found) == 0 {
			return "the system's python3 has no " + module
		}
		return ""
	}
	if !strings.HasPrefix(tool, "/") {
		for _, dir := range []string{"/usr/bin/", "/usr/local/bin/", "/usr/local/go/bin/"} { // what is seen inside
			if _, err := os.Stat(dir + tool); err == nil {
				return ""
			}
		}
		return tool + " is not in the system's directories"
	}
	if _, err := os.Stat(tool); err != nil {
		return err.Error()
	}
	return ""
}

// policyFor lends all credentials, within paths if there are some.
func (s *services) policyFor(paths string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "version: 1\negress:\n  networks: [127.0.0.0/8]\n  rules:\n    - hosts: [%s]\n      ports: [%s]\ncredentials:\n", strings.Join(serviceNames(), ", "), s.port)
	for _, one := range []string{"use: github, hosts: [api.github.com], env: GH_TOKEN", "use: aws, hosts: ['*.amazonaws.com'], env: AWS_ACCESS_KEY_ID", "use: npm, hosts: [registry.example.com], env: NPM_TOKEN",
		"use: index, hosts: [index.example.com], env: INDEX_PASSWORD", "use: api, hosts: [api.example.com], env: API_TOKEN"} {
		fmt.Fprintf(&b, "  - {%s, ports: [%s]%s}\n", one, s.port, paths)
	}
	return b.String()
}

// TestLendingClients has the clients that people use work with nothing but placeholders: each where policy lends, and refused where it does not.
func TestLendingClients(t *testing.T) {
	program, err := buildCanary()
	if err != nil {
		t.Fatal(err)
	}
	forEachUser(t, func(t *testing.T, h *house) {
		s := newServices(t)
		h.trust = filepath.Join(h.home, "authority.pem")
		binary, err := os.ReadFile(program)
		if err == nil {
			err = os.WriteFile(h.trust, s.ca.pem, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
		h.write("canary", string(binary))
		if err := os.Chmod(filepath.Join(h.project, "canary"), 0o755); err != nil {
			t.Fatal(err)
		}
		h.write("Ask.java", askJava)
		h.write("../lend.yaml", s.policyFor(""))
		h.write("../narrow.yaml", s.policyFor(", paths: [/nothing/]"))
		h.own(h.home)
		for _, c := range [][]string{
			{clientGitHub, "github", "--host", "api.github.com"}, {clientNPM, "npm", "--host", "registry.example.com"}, {clientAPI, "api", "--host", "api.example.com"},
			{clientPip, "index", "--kind", "basic", "--user", "ci", "--host", "index.example.com"}, {clientAWS, "aws", "--kind", "aws", "--access-key-id", clientKeyID, "--host", "*.amazonaws.com"},
		} {
			if r := h.doWith(time.Minute, c[0]+"\n", append([]string{"credential", "add", c[1], "--port", s.port}, c[2:]...)...); r.code != 0 {
				t.Fatal(r.stderr)
			}
		}
		secrets := needles(map[string]string{"github": clientGitHub, "npm": clientNPM, "api": clientAPI, "index": clientPip, "aws": clientAWS})
		run := func(policy, line string) result {
			args := []string{"run", "--policy", policy, "--env", "AWS_DEFAULT_REGION=eu-central-1", "--env", "AWS_EC2_METADATA_DISABLED=true", "--env", "AWS_MAX_ATTEMPTS=1",
				"--env", "API=" + s.url("api.example.com"), "--env", "INDEX=" + s.url("index.example.com"), "--env", "REGISTRY=" + s.url("registry.example.com")}
			for _, name := range serviceNames() {
				args = append(args, "--resolve", name+"="+s.address)
			}
			r := h.doWith(2*time.Minute, "", append(args, "--", "sh", "-c", line)...)
			h.clear(secrets, line, []byte(r.stdout+r.stderr))
			return r
		}
		for _, b := range borrowers() {
			t.Run(strings.ReplaceAll(b.name, " ", "-"), func(t *testing.T) {
				if why := lacking(b.tool); why != "" {
					t.Skip(why)
				}
				if s.port != "443" && (b.tool == "gh" || b.tool == "aws") {
					t.Skip("needs port 443")
				}
				if u, err := url.Parse(s.url(b.host)); err != nil || u.Host == "" {
					t.Fatal(err)
				}
				before := s.count()
				r := run("../narrow.yaml", b.line)
				if r.code == 0 && b.name != "aws s3 get" || strings.Contains(r.stdout, b.want) { // wc ends well
					t.Errorf("without leave: exit %d: %s%s", r.code, r.stdout, r.stderr)
				}
				if got := s.count(); got != before {
					t.Errorf("without leave %d requests arrived", got-before)
				}
				if _, found := denied(h.events(), event{Rule: "placeholder-misused"}); !found {
					t.Errorf("no refusal is on record: %s%s", r.stdout, r.stderr)
				}
				r = run("../lend.yaml", b.line)
				if r.code != 0 || !strings.Contains(r.stdout, b.want) {
					t.Errorf("exit %d: %s%s\nrefused: %.900q", r.code, r.stdout, r.stderr, s.refused)
				}
				if got := s.count(); got == before {
					t.Error("control: the server was not asked")
				}
			})
		}
		searchAll := h.do("audit", "--json")
		h.clear(secrets, "audit", []byte(searchAll.stdout))
		h.clearTree(secrets, h.state, nil)
		if len(s.refused) > 0 {
			t.Errorf("requests with something else arrived: %.2000q", s.refused)
		}
	})
}

// count is how many requests came, accepted or not.
func (s *services) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := len(s.refused)
	for _, one := range s.seen {
		n += one
	}
	return n
}

// TestAWSVariables gives one sandbox two keys of AWS under names of their own, and refuses names of which the second half cannot be told.
func TestAWSVariables(t *testing.T) {
	testenv.Need(t, "tool:curl")
	h := newHouse(t, users()[len(users())-1])
	for _, name := range []string{"one", "two"} {
		if r := h.doWith(time.Minute, clientAWS+"\n", "credential", "add", name, "--kind", "aws", "--access-key-id", clientKeyID, "--host", name+".example.com"); r.code != 0 {
			t.Fatal(r.stderr)
		}
	}
	run := func(one, two string, flags ...string) result {
		h.write("../agent.yaml", fmt.Sprintf("version: 1\negress:\n  rules:\n    - hosts: [one.example.com, two.example.com]\ncredentials:\n  - {use: one, hosts: [one.example.com], env: %s}\n  - {use: two, hosts: [two.example.com], env: %s}\n", one, two))
		return h.do(append(append([]string{"run", "--policy", "../agent.yaml"}, flags...), "--", "env")...)
	}
	r := run("AWS_ACCESS_KEY_ID", "MINIO_ACCESS_KEY")
	values := map[string]string{}
	for line := range strings.Lines(r.stdout) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		values[name] = value
	}
	for name, length := range map[string]int{"AWS_ACCESS_KEY_ID": 20, "AWS_SECRET_ACCESS_KEY": 40, "MINIO_ACCESS_KEY": 20, "MINIO_SECRET_KEY": 40} {
		if len(values[name]) != length {
			t.Errorf("%s has %q: %s", name, values[name], r.stderr)
		}
	}
	if values["AWS_ACCESS_KEY_ID"] == values["MINIO_ACCESS_KEY"] || values["AWS_SECRET_ACCESS_KEY"] == values["MINIO_SECRET_KEY"] {
		t.Error("two keys have one placeholder")
	}
	for what, r := range map[string]result{
		"a name without a second half": run("AWS_ACCESS_KEY_ID", "TOKEN"), "a second half that is taken": run("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
		"a second half from elsewhere": run("AWS_ACCESS_KEY_ID", "MINIO_ACCESS_KEY", "--env", "MINIO_SECRET_KEY=x"),
	} {
		if r.code != 125 || !strings.Contains(r.stderr, "AWS key") || !strings.Contains(r.stderr, "hint") {
			t.Errorf("%s: exit %d: %s%s", what, r.code, r.stdout, r.stderr)
		}
	}
}

package gateway

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/internal/audit"
	"github.com/cofferdam/cofferdam/internal/frame"
	"github.com/cofferdam/cofferdam/internal/policy"
)

func helloWeb(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	fmt.Fprint(w, r.Proto, " ", r.Header.Get("Authorization"))
}

func TestLendFailsClosed(t *testing.T) {
	var hits atomic.Int32
	l := lend(t, func(w http.ResponseWriter, r *http.Request) { hits.Add(1); helloWeb(w, r) }, "",
		"use: open, paths: [/open/]", "use: short, paths: [/short/]", "use: key, paths: [/key/]", "use: sign, env: AWS, paths: [/sign/]")
	l.versions(t, func(t *testing.T, c *http.Client) {
		if _, body := get(t, c, "GET", l.url("/open/x"), ""); !strings.HasSuffix(body, "Bearer "+placeholder[:0]+strings.Repeat("*", len(canary))) {
			t.Errorf("a credential without a variable is not added: %q", body)
		}
		before := hits.Load()
		for _, path := range []string{"/short/x", "/key/x"} { // too short; of another header than policy names
			answer, body := get(t, c, "GET", l.url(path), "")
			if answer.StatusCode != http.StatusBadGateway || answer.Header.Get("Cofferdam-Denied") != RuleCredentialUnavailable || leaks(body) != "" {
				t.Errorf("%s: %d %s", path, answer.StatusCode, body)
			}
		}
		l.fails.Store(true)
		defer l.fails.Store(false)
		answer, body := get(t, c, "GET", l.url("/open/x"), "")
		if answer.StatusCode != http.StatusBadGateway || leaks(body) != "" {
			t.Errorf("%d %s", answer.StatusCode, body)
		}
		if hits.Load() != before {
			t.Error("a request without its credential arrived")
		}
	})
	answer, body := get(t, l.client(), "GET", l.url("/sign/a?b=c"), "", "Authorization", "AWS4-HMAC-SHA256 Credential=AKIAPLACEHOLDER00000/20260101/x", "X-Amz-Date", "theirs")
	if want := fmt.Sprintf("AWS4 GET https://good.example.com:%d/sign/a?b=c e3b0c442", l.port); answer.StatusCode != 200 || !strings.Contains(body, want) {
		t.Errorf("%d %s, want %s", answer.StatusCode, body, want)
	}
	l.deniedBy(RuleCredentialUnavailable)
}

// TestRevoked cuts what is open when the credential goes, and refuses what comes after.
func TestRevoked(t *testing.T) {
	l := lend(t, func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, "begun")
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}, "", mainCredential)
	l.versions(t, func(t *testing.T, c *http.Client) {
		l.gone.Store(false)
		r := must(http.NewRequest("GET", l.url("/repos/acme/x"), nil))
		r.Header.Set("Authorization", "Bearer "+placeholder)
		answer, err := c.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer answer.Body.Close()
		l.gone.Store(true)
		began := time.Now()
		if _, err := io.ReadAll(answer.Body); err == nil || time.Since(began) > 2*time.Second {
			t.Errorf("it went on for %v: %v", time.Since(began), err)
		}
		if answer, _ := get(t, c, "GET", l.url("/repos/acme/x"), "", "Authorization", "Bearer "+placeholder); answer.StatusCode != http.StatusBadGateway {
			t.Errorf("status %d", answer.StatusCode)
		}
	})
	l.find("cut", func(e audit.Event) bool { return strings.Contains(e.Error, "credential was removed") })
}

// TestNames: every request names the dialled host, and the server name is it.
func TestNames(t *testing.T) {
	l := lend(t, helloWeb, "    - {name: other, hosts: [other.example.com]}\n", mainCredential)
	for _, host := range []string{"evil.example.com", "good.example.com", "other.example.com", "good.example.com:443", "127.0.0.1"} {
		for _, c := range []*http.Client{l.client("http/1.1"), l.client()} {
			r := must(http.NewRequest("GET", l.url("/"), nil))
			r.Host = host
			answer, err := c.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			_ = answer.Body.Close()
			if answer.StatusCode != http.StatusMisdirectedRequest {
				t.Errorf("%s: %d", host, answer.StatusCode)
			}
		}
	}
	l.deniedBy(RuleNameMismatch)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(must(l.g.CACertificate()))
	for name, rule := range map[string]string{"other.example.com": RuleNameMismatch, "": RuleNoServerName} {
		c := tls.Client(l.to("good.example.com", l.port), &tls.Config{RootCAs: pool, ServerName: name, InsecureSkipVerify: true})
		if c.Handshake() == nil {
			t.Errorf("server name %q passes", name)
		}
		l.deniedBy(rule)
	}
}

// TestFraming sends what servers frame differently inside TLS.
func TestFraming(t *testing.T) {
	var hits atomic.Int32
	l := lend(t, func(w http.ResponseWriter, r *http.Request) { hits.Add(1); helloWeb(w, r) }, "", mainCredential)
	host := fmt.Sprintf(" HTTP/1.1\r\nHost: good.example.com:%d\r\n", l.port)
	for _, test := range []struct {
		name, send string
		status     int
	}{
		{"fine", "GET /" + host + "\r\n", 200},
		{"cl and te", "POST /" + host + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
		{"two hosts", "GET /" + host + "Host: evil.example.com\r\n\r\n", 400},
		{"absolute form", fmt.Sprintf("GET https://good.example.com:%d/x%s\r\n", l.port, host), 200},
		{"absolute form of http", fmt.Sprintf("GET http://good.example.com:%d/x%s\r\n", l.port, host), 421},
		{"obs-fold", "GET /" + host + "X: a\r\n Authorization: Bearer " + placeholder + "\r\n\r\n", 400},
		{"two authorizations", "GET /repos/acme/x" + host + "Authorization: Bearer " + placeholder + "\r\nAuthorization: Bearer mine\r\n\r\n", 403},
		{"connection names it", "GET /repos/acme/x" + host + "Connection: Authorization\r\nAuthorization: Bearer " + placeholder + "\r\n\r\n", 200},
		{"upgrade to h2c", "GET /" + host + "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAA\r\n\r\n", 200},
		{"placeholder in a trailer", "POST /" + host + "Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX: " + placeholder + "\r\n\r\n", 403},
		{"placeholder in the name of a trailer", "POST /" + host + "Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n" + placeholder + ": 1\r\n\r\n", 403},
		{"placeholder in a trailer that is left out", "POST /" + host + "Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nAuthorization: Bearer " + placeholder + "\r\n\r\n", 403},
		{"placeholder over chunks", "POST /" + host + "Transfer-Encoding: chunked\r\n\r\n14\r\n" + placeholder[:20] + "\r\n14\r\n" + placeholder[20:] + "\r\n0\r\n\r\n", 403},
		{"placeholder in the second request", "GET /" + host + "\r\nGET /x?" + placeholder + host + "\r\n", 200},
	} {
		c := l.tlsClient()
		go func() { _, _ = io.WriteString(c, test.send) }()
		b := bufio.NewReader(c)
		answer, err := http.ReadResponse(b, nil)
		if err != nil || answer.StatusCode != test.status {
			t.Errorf("%s: %+v %v", test.name, answer, err)
			continue
		}
		body, _ := io.ReadAll(answer.Body)
		if strings.Contains(test.name, "connection names") && strings.Contains(string(body), "Bearer") {
			t.Errorf("%s: a header named by Connection was used: %s", test.name, body)
		}
		if strings.Contains(test.name, "second") {
			if answer, err := http.ReadResponse(b, nil); err != nil || answer.StatusCode != 403 {
				t.Errorf("%s: %+v %v", test.name, answer, err)
			}
		}
		_ = c.Close()
	}
}

// TestInClear: a placeholder is never swapped without TLS, and is told.
func TestInClear(t *testing.T) {
	b, port := web(t, helloWeb)
	_ = b
	l := lend(t, helloWeb, "", mainCredential)
	l.g.SetPolicy(parse(t, allow(port, "")+fmt.Sprintf("credentials: [{use: main, env: T, hosts: [good.example.com], ports: [%d]}]\n", port)))
	c := l.to("good.example.com", port)
	defer c.Close()
	fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: good.example.com:%d\r\nAuthorization: Bearer %s\r\n\r\n", port, placeholder)
	answer, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil || answer.StatusCode != 403 || l.lends.Load() > 0 {
		t.Errorf("%+v %v", answer, err)
	}
	l.deniedBy(RulePlaceholderMisused)
}

// TestUpstreamUntrusted: without a verified certificate nothing is sent.
func TestUpstreamUntrusted(t *testing.T) {
	var hits atomic.Int32
	l := lend(t, func(w http.ResponseWriter, r *http.Request) { hits.Add(1) }, "", mainCredential)
	l.g.connect.Roots = x509.NewCertPool()
	l.versions(t, func(t *testing.T, c *http.Client) {
		answer, body := get(t, c, "GET", l.url("/repos/acme/x"), "", "Authorization", "Bearer "+placeholder)
		if answer.StatusCode != http.StatusBadGateway || !strings.Contains(body, "certificate") {
			t.Errorf("%d %s", answer.StatusCode, body)
		}
	})
	if hits.Load() > 0 {
		t.Error("a request arrived")
	}
}

// TestPinned: a client that knows only its server's own certificate is refused with the remedy, and passes with tls: tunnel.
func TestPinned(t *testing.T) {
	l := lend(t, helloWeb, "", mainCredential)
	c := tls.Client(l.to("good.example.com", l.port), &tls.Config{ServerName: "good.example.com", RootCAs: l.g.connect.Roots})
	if c.Handshake() == nil {
		t.Error("the client accepts a stranger's certificate")
	}
	if e := l.deniedBy(RuleInspectionRefused); !strings.Contains(e.Reason, "tls: tunnel") {
		t.Errorf("%+v", e)
	}
	l.g.SetPolicy(parse(t, allow(l.port, "      tls: tunnel\n")))
	c = tls.Client(l.to("good.example.com", l.port), &tls.Config{ServerName: "good.example.com", RootCAs: l.g.connect.Roots})
	if err := c.Handshake(); err != nil {
		t.Errorf("the tunnel: %v", err)
	}
	// What passed unread is cut when a policy comes that has to read it.
	l.g.SetPolicy(parse(t, allow(l.port, "      tls: inspect\n")))
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("the tunnel goes on")
	}
}

// TestRules judges methods and paths of a host without credentials.
func TestRules(t *testing.T) {
	l := lend(t, helloWeb, "      methods: [GET]\n      paths: [/own/]\n", "use: key, hosts: [x.example.com]"[:0]+"use: key, paths: [/nowhere]")
	l.versions(t, func(t *testing.T, c *http.Client) {
		for _, test := range []struct {
			method, path string
			status       int
		}{{"GET", "/own/x", 200}, {"POST", "/own/x", 403}, {"GET", "/other", 403}, {"GET", "/own%2fx", 403}, {"GET", "/own/x", 200}} {
			if answer, body := get(t, c, test.method, l.url(test.path), ""); answer.StatusCode != test.status {
				t.Errorf("%s %s: %d %s", test.method, test.path, answer.StatusCode, body)
			}
		}
	})
}

// TestStreams moves both directions at once, and trailers, as gRPC does.
func TestStreams(t *testing.T) {
	l := lend(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", "Grpc-Status")
		control := http.NewResponseController(w)
		_ = control.EnableFullDuplex()
		_ = control.Flush()
		buf := make([]byte, 100)
		for {
			n, err := r.Body.Read(buf)
			_, _ = w.Write(bytes.ToUpper(buf[:n]))
			_ = control.Flush()
			if err != nil {
				break
			}
		}
		w.Header().Set("Grpc-Status", r.Trailer.Get("X-End")+r.Header.Get("Te"))
	}, "", mainCredential)
	l.versions(t, func(t *testing.T, c *http.Client) {
		in, out := io.Pipe()
		r := must(http.NewRequest("POST", l.url("/repos/acme/x"), in))
		r.Header.Set("Authorization", "Bearer "+placeholder)
		r.Header.Set("Te", "trailers")
		r.Trailer = http.Header{"X-End": nil}
		answer, err := c.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer answer.Body.Close()
		for _, word := range []string{"one", "two", "three"} {
			if _, err := io.WriteString(out, word); err != nil {
				t.Fatal(err)
			}
			got := make([]byte, len(word))
			if _, err := io.ReadFull(answer.Body, got); err != nil || string(got) != strings.ToUpper(word) {
				t.Fatalf("%q %v", got, err)
			}
		}
		r.Trailer.Set("X-End", "7")
		_ = out.Close()
		_, err = io.ReadAll(answer.Body)
		want := "7"
		if answer.ProtoMajor == 2 {
			want = "7trailers"
		}
		if err != nil || answer.Trailer.Get("Grpc-Status") != want {
			t.Errorf("%v %v, want %s", answer.Trailer, err, want)
		}
	})
}

// TestLarge moves much in both directions with little memory.
func TestLarge(t *testing.T) {
	const size = 256 << 20
	l := lend(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == "POST" {
			n, _ := io.Copy(io.Discard, r.Body)
			fmt.Fprint(w, n)
			return
		}
		chunk := bytes.Repeat([]byte("some text that is no secret; "), 1000)
		for n := 0; n < size; n += len(chunk) {
			_, _ = w.Write(chunk)
		}
	}, "", mainCredential)
	l.versions(t, func(t *testing.T, c *http.Client) {
		var most atomic.Uint64
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go func() {
			for ctx.Err() == nil {
				var m runtime.MemStats
				runtime.ReadMemStats(&m)
				most.Store(max(most.Load(), m.HeapAlloc))
				time.Sleep(20 * time.Millisecond)
			}
		}()
		for _, method := range []string{"GET", "POST"} {
			var body io.Reader
			if method == "POST" {
				body = io.LimitReader(zeros{}, size)
			}
			r := must(http.NewRequest(method, l.url("/repos/acme/x"), body))
			r.Header.Set("Authorization", "Bearer "+placeholder)
			answer, err := (&http.Client{Transport: c.Transport}).Do(r)
			if err != nil {
				t.Fatal(err)
			}
			n, err := io.Copy(io.Discard, answer.Body)
			_ = answer.Body.Close()
			if err != nil || method == "GET" && n < size {
				t.Errorf("%s: %d bytes, %v", method, n, err)
			}
		}
		if got := most.Load(); got > 64<<20 {
			t.Errorf("%d MiB in use", got>>20)
		}
	})
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// TestRealClients runs programs of other makers against the gateway, through a forwarder that plays the kernel.
func TestRealClients(t *testing.T) {
	l := lend(t, helloWeb, "", mainCredential)
	dir := t.TempDir()
	ca := filepath.Join(dir, "ca.pem")
	if err := os.WriteFile(ca, must(l.g.CACertificate()), 0o600); err != nil {
		t.Fatal(err)
	}
	door := serve(t, func(c net.Conn) {
		up := l.to("good.example.com", l.port)
		defer up.Close()
		go func() { _, _ = io.Copy(up, c); _ = up.CloseWrite() }()
		_, _ = io.Copy(c, up)
	})
	url := fmt.Sprintf("https://good.example.com:%d/repos/acme/x", l.port)
	for name, command := range map[string][]string{
		"curl":          {"curl", "-sS", "--connect-to", fmt.Sprintf("::127.0.0.1:%d", door), "--cacert", ca, "-H", "Authorization: Bearer " + placeholder, url},
		"curl http/1.1": {"curl", "-sS", "--http1.1", "--connect-to", fmt.Sprintf("::127.0.0.1:%d", door), "--cacert", ca, "-H", "Authorization: Bearer " + placeholder, url},
		"node": {"node", "-e", fmt.Sprintf(`require('https').get({host:'127.0.0.1',port:%d,servername:'good.example.com',path:'/repos/acme/x',headers:{host:'good.example.com:%d',authorization:'Bearer %s'}},
			r=>{r.on('data',d=>process.stdout.write(d))}).on('error',e=>{console.error(e);process.exit(1)})`, door, l.port, placeholder)},
		"python": {"python3", "-c", fmt.Sprintf(`
import socket, ssl, http.client
ctx = ssl.create_default_context(cafile=%q)
ctx.verify_flags |= ssl.VERIFY_X509_STRICT
s = ctx.wrap_socket(socket.create_connection(('127.0.0.1', %d)), server_hostname='good.example.com')
s.sendall(b'GET /repos/acme/x HTTP/1.1\r\nHost: good.example.com:%d\r\nAuthorization: Bearer %s\r\nConnection: close\r\n\r\n')
r = http.client.HTTPResponse(s); r.begin(); print(r.read().decode())
`, ca, door, l.port, placeholder)},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := exec.LookPath(command[0]); err != nil {
				t.Skip(err)
			}
			cmd := exec.CommandContext(t.Context(), command[0], command[1:]...)
			cmd.Env = append(os.Environ(), "NODE_EXTRA_CA_CERTS="+ca)
			out, err := cmd.CombinedOutput()
			if err != nil || !strings.Contains(string(out), "Bearer "+placeholder) || leaks(string(out)) != "" {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
}

// TestEveryHost: what was lent to one host does not come back from another whose TLS is inspected.
func TestEveryHost(t *testing.T) {
	l := lend(t, func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, canary) }, "", mainCredential)
	get(t, l.client(), "GET", l.url("/repos/acme/x"), "", "Authorization", "Bearer "+placeholder)
	l.g.SetPolicy(parse(t, fmt.Sprintf("egress: {networks: [127.0.0.0/8], rules: [{hosts: [other.example.com], ports: [%d], tls: inspect}]}\n", l.port)))
	for _, c := range []*http.Client{l.client("http/1.1"), l.client()} {
		if _, body := get(t, c, "GET", strings.Replace(l.url("/"), "good", "other", 1), ""); body != placeholder {
			t.Errorf("%q", body)
		}
	}
}

// TestAskPerRequest: the answer about one request is not one about another, and where the rule is about the host it is one about the connection.
func TestAskPerRequest(t *testing.T) {
	for rules, want := range map[string]int32{"      methods: [GET]\n      verdict: ask\n": 3, "      tls: inspect\n      verdict: ask\n": 1} {
		var asked atomic.Int32
		l := lend(t, helloWeb, rules, "use: key, paths: [/nowhere]")
		l.g.config.Ask = func(_ context.Context, c policy.Crossing, _ frame.Owner) policy.Decision {
			asked.Add(1)
			return policy.Decision{Verdict: map[bool]policy.Verdict{true: policy.Deny, false: policy.Allow}[c.Path == "/no"], Rule: "asked"}
		}
		c := l.client("http/1.1")
		for _, path := range []string{"/a", "/b", "/no"} {
			answer, _ := get(t, c, "GET", l.url(path), "")
			if want == 3 && (answer.StatusCode == 200) == (path == "/no") {
				t.Errorf("%s: %d", path, answer.StatusCode)
			}
		}
		if got := asked.Load(); got != want {
			t.Errorf("%s: asked %d times, want %d", rules, got, want)
		}
	}
}

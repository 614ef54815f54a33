package gateway

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/internal/audit"
)

func newReader(r io.Reader) *bufio.Reader { return bufio.NewReader(r) }

// web is a real HTTP server behind a gateway that allows it.
func web(t testing.TB, handler http.HandlerFunc) (*bench, uint16) {
	t.Helper()
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	port := portOf(server.Listener)
	b := start(t, allow(port, ""), nil)
	b.zone.set("good.example.com", "127.0.0.1")
	return b, port
}

func TestHTTPRefusals(t *testing.T) {
	var hits atomic.Int32
	b, port := web(t, func(w http.ResponseWriter, r *http.Request) { hits.Add(1); _, _ = io.Copy(w, r.Body) })
	host := fmt.Sprintf("Host: good.example.com:%d\r\n", port)
	get := "GET / HTTP/1.1\r\n" + host
	for _, test := range []struct {
		name, send string
		status     int
		rule       string
	}{
		{"plain", get + "\r\n", 200, ""},
		{"trailing dot and case", strings.Replace(get, "good.example.com", "GOOD.example.com.", 1) + "\r\n", 200, ""},
		{"absolute form", fmt.Sprintf("GET http://good.example.com:%d/x HTTP/1.1\r\n%s\r\n", port, host), 200, ""},
		{"http/1.0", "GET / HTTP/1.0\r\n" + host + "\r\n", 200, ""},
		{"h2c is not offered on", get + "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAA\r\n\r\n", 200, ""},
		{"another host", "GET / HTTP/1.1\r\nHost: evil.example.com\r\n\r\n", 421, RuleNameMismatch},
		{"another port", "GET / HTTP/1.1\r\nHost: good.example.com:1\r\n\r\n", 421, RuleNameMismatch},
		{"absolute form of another", "GET http://evil.example.com/ HTTP/1.1\r\n" + host + "\r\n", 421, RuleNameMismatch},
		{"userinfo", fmt.Sprintf("GET http://good.example.com:%d@evil.example.com/ HTTP/1.1\r\n%s\r\n", port, host), 421, RuleNameMismatch},
		{"https scheme", fmt.Sprintf("GET https://good.example.com:%d/ HTTP/1.1\r\n%s\r\n", port, host), 421, RuleNameMismatch},
		{"no host", "GET / HTTP/1.1\r\n\r\n", 400, "malformed-request"},
		{"two hosts", get + host + "\r\n", 400, "malformed-request"},
		{"connect", fmt.Sprintf("CONNECT good.example.com:%d HTTP/1.1\r\n%s\r\n", port, host), 405, "method-closed"},
		{"trace", "TRACE / HTTP/1.1\r\n" + host + "\r\n", 405, "method-closed"},
		{"cl and te", "POST / HTTP/1.1\r\n" + host + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, "malformed-request"},
		{"two cls", "POST / HTTP/1.1\r\n" + host + "Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello", 400, "malformed-request"},
		{"cl +5", "POST / HTTP/1.1\r\n" + host + "Content-Length: +5\r\n\r\nhello", 400, "malformed-request"},
		{"cl 0x5", "POST / HTTP/1.1\r\n" + host + "Content-Length: 0x5\r\n\r\nhello", 400, "malformed-request"},
		{"cl list", "POST / HTTP/1.1\r\n" + host + "Content-Length: 5, 5\r\n\r\nhello", 400, "malformed-request"},
		{"cl negative", "POST / HTTP/1.1\r\n" + host + "Content-Length: -1\r\n\r\n", 400, "malformed-request"},
		{"te chunkedx", "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunkedx\r\n\r\n", 400, "malformed-request"},
		{"te list", "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: gzip, chunked\r\n\r\n", 400, "malformed-request"},
		{"te in 1.0", "POST / HTTP/1.0\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n", 400, "malformed-request"},
		{"space before colon", get + "Content-Length : 5\r\n\r\nhello", 400, "malformed-request"},
		{"obs-fold", get + "X: a\r\n b\r\n\r\n", 400, "malformed-request"},
		{"bare lf", "GET / HTTP/1.1\n" + host + "\r\n", 400, "malformed-request"},
		{"bare lf only", "GET / HTTP/1.1\nHost: x\n\n", 400, "malformed-request"},
		{"bare cr", get + "X: a\rY: b\r\n\r\n", 400, "malformed-request"},
		{"nul", get + "X: a\x00b\r\n\r\n", 400, "malformed-request"},
		{"http/0.9", "GET /\r\n\r\n", 400, "malformed-request"},
		{"http/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "malformed-request"},
		{"tab in the first line", "GET\t/ HTTP/1.1\r\n" + host + "\r\n", 0, RuleOpaqueProtocol},
		{"connection names host", get + "Connection: host\r\n\r\n", 400, "malformed-request"},
		{"huge head", get + "X: " + strings.Repeat("a", 100<<10) + "\r\n\r\n", 431, "malformed-request"},
	} {
		t.Run(test.name, func(t *testing.T) {
			before := hits.Load()
			c := b.to("good.example.com", port)
			defer c.Close()
			go func() { _, _ = c.Write([]byte(test.send)) }()
			r, err := http.ReadResponse(newReader(c), nil)
			if test.status == 0 {
				if err == nil {
					t.Errorf("status %d", r.StatusCode)
				}
				b.deniedBy(test.rule)
				return
			}
			if err != nil || r.StatusCode != test.status || r.Header.Get("Cofferdam-Denied") != test.rule {
				t.Fatalf("%+v %v", r, err)
			}
			if (hits.Load() > before) != (test.status == 200) {
				t.Error("the upstream saw it")
			}
			if test.rule != "" {
				b.deniedBy(test.rule)
				if body, _ := io.ReadAll(r.Body); !strings.HasPrefix(string(body), "cofferdam: ") {
					t.Errorf("body %q", body)
				}
			}
		})
	}
}

// TestHTTPKeepAlive judges each request of a connection: the third names another host and goes nowhere, pipelined as it is.
func TestHTTPKeepAlive(t *testing.T) {
	var hits atomic.Int32
	b, port := web(t, func(w http.ResponseWriter, r *http.Request) { hits.Add(1); fmt.Fprint(w, r.URL.Path) })
	c := b.to("good.example.com", port)
	defer c.Close()
	host := fmt.Sprintf("Host: good.example.com:%d\r\n\r\n", port)
	_, _ = io.WriteString(c, "GET /a HTTP/1.1\r\n"+host+"GET /b?token=x HTTP/1.1\r\n"+host+"GET /c HTTP/1.1\r\nHost: evil.example.com\r\n\r\n")
	r := newReader(c)
	for _, want := range []string{"/a", "/b"} {
		response, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatal(err)
		}
		if body, _ := io.ReadAll(response.Body); string(body) != want {
			t.Errorf("%q, want %q", body, want)
		}
	}
	if response, err := http.ReadResponse(r, nil); err != nil || response.StatusCode != http.StatusMisdirectedRequest {
		t.Errorf("%+v %v", response, err)
	}
	if hits.Load() != 2 {
		t.Errorf("%d requests arrived", hits.Load())
	}
	_ = b.stop()
	paths := ""
	for _, e := range b.log.all() {
		if e.Protocol == "http" {
			paths += fmt.Sprint(e.Kind, " ", e.Verdict, " ", e.Path, " ", e.Status, "\n")
		}
	}
	const want = "crossing.decided allow /a 0\ncrossing.finished  /a 200\ncrossing.decided allow /b 0\ncrossing.finished  /b 200\ncrossing.decided deny /c 0\n"
	if strings.Count(paths, "\n") != 5 || !strings.Contains(paths, "decided allow /b 0") || !strings.Contains(paths, "decided deny /c") {
		t.Errorf("recorded\n%swant\n%s", paths, want)
	}
}

// TestHTTPClient runs Go's own client through the gateway: bodies of every framing, both ways, through one connection.
func TestHTTPClient(t *testing.T) {
	b, port := web(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/echo":
			_ = http.NewResponseController(w).EnableFullDuplex()
			w.Header().Set("Trailer", "X-End")
			if r.ContentLength >= 0 {
				w.Header().Set("Content-Length", fmt.Sprint(r.ContentLength))
			}
			_, _ = io.Copy(w, r.Body)
			w.Header().Set("X-End", "yes")
		case "/early":
			w.WriteHeader(http.StatusRequestEntityTooLarge)
		case "/none":
			w.WriteHeader(http.StatusNoContent)
		case "/same":
			w.WriteHeader(http.StatusNotModified)
		case "/hints":
			w.WriteHeader(http.StatusEarlyHints)
			fmt.Fprint(w, "ok")
		case "/close":
			w.Header().Set("Connection", "close")
			fmt.Fprint(w, "bye")
		}
	})
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		ExpectContinueTimeout: 3 * time.Second,
		DialContext:           func(context.Context, string, string) (net.Conn, error) { return b.to("good.example.com", port), nil },
	}}
	defer client.CloseIdleConnections()
	base := fmt.Sprintf("http://good.example.com:%d", port)
	big := make([]byte, 3<<20)
	_, _ = rand.Read(big)
	for _, test := range []struct {
		name, method, path string
		body               []byte
		chunked, expect    bool
		status             int
	}{
		{"small", "POST", "/echo", []byte("hello"), false, false, 200},
		{"small chunked", "POST", "/echo", []byte("hello"), true, false, 200},
		{"big", "POST", "/echo", big, false, false, 200},
		{"big chunked", "PUT", "/echo", big, true, false, 200},
		{"expect", "POST", "/echo", big, false, true, 200},
		{"head", "HEAD", "/echo", nil, false, false, 200},
		{"early answer", "POST", "/early", big, false, false, 413},
		{"no content", "DELETE", "/none", nil, false, false, 204},
		{"not modified", "GET", "/same", nil, false, false, 304},
		{"interim", "GET", "/hints", nil, false, false, 200},
		{"close", "GET", "/close", nil, false, false, 200},
		{"again", "GET", "/hints", nil, false, false, 200},
	} {
		t.Run(test.name, func(t *testing.T) {
			var body io.Reader = bytes.NewReader(test.body)
			if test.chunked {
				body = io.MultiReader(body)
			}
			q, _ := http.NewRequest(test.method, base+test.path, body)
			if test.expect {
				q.Header.Set("Expect", "100-continue")
			}
			r, err := client.Do(q)
			if err != nil {
				if test.path == "/early" {
					t.Skip("the client saw the early close first:", err)
				}
				t.Fatal(err)
			}
			got, err := io.ReadAll(r.Body)
			if err != nil || r.StatusCode != test.status {
				t.Fatalf("%d %v", r.StatusCode, err)
			}
			if test.path == "/echo" && test.method != "HEAD" && !bytes.Equal(got, test.body) {
				t.Error("body differs")
			}
			if test.chunked && r.Trailer.Get("X-End") != "yes" {
				t.Errorf("trailer %v", r.Trailer)
			}
		})
	}
}

// TestHTTPBadUpstream plays upstreams that answer badly; the client must never take that for a whole answer.
func TestHTTPBadUpstream(t *testing.T) {
	for _, test := range []struct {
		name, answer string
		status       int // 0: broken off
	}{
		{"good", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", 200},
		{"until close", "HTTP/1.0 200 OK\r\n\r\nok", 200},
		{"cl and te", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 502},
		{"no http", "SSH-2.0-OpenSSH\r\n\r\n", 502},
		{"folded", "HTTP/1.1 200 OK\r\nX: a\r\n b\r\n\r\n", 502},
		{"unasked switch", "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n", 502},
		{"nothing", "", 502},
		{"cut short", "HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\nok", 0},
		{"bad chunk", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n+2\r\nok\r\n0\r\n\r\n", 0},
		{"unasked second answer", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison", 200},
	} {
		t.Run(test.name, func(t *testing.T) {
			port := serve(t, func(c net.Conn) {
				if _, err := http.ReadRequest(newReader(c)); err == nil {
					_, _ = io.WriteString(c, test.answer)
				}
			})
			b := start(t, allow(port, ""), nil)
			b.zone.set("good.example.com", "127.0.0.1")
			c := b.to("good.example.com", port)
			defer c.Close()
			_, _ = fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: good.example.com:%d\r\n\r\n", port)
			in := newReader(c)
			r, err := http.ReadResponse(in, nil)
			if err == nil {
				var body []byte
				if body, err = io.ReadAll(r.Body); strings.Contains(string(body), "poison") {
					t.Error("second answer passed")
				}
			}
			if test.status == 0 {
				if err == nil && r.StatusCode != http.StatusBadGateway {
					t.Error("a broken answer looked whole")
				}
				return
			}
			if err != nil || r.StatusCode != test.status {
				t.Fatalf("%+v %v", r, err)
			}
			if test.name == "unasked second answer" {
				_, _ = fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: good.example.com:%d\r\n\r\n", port)
				r, err = http.ReadResponse(in, nil)
				if err != nil || r.ContentLength != 2 {
					t.Errorf("second: %+v %v", r, err)
				}
			}
		})
	}
}

func TestWebSocket(t *testing.T) {
	b, port := web(t, func(w http.ResponseWriter, r *http.Request) {
		c, buffered, err := w.(http.Hijacker).Hijack()
		if err != nil {
			return
		}
		defer c.Close()
		_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: x\r\n\r\nFIRST")
		_, _ = io.Copy(c, buffered)
	})
	c := b.to("good.example.com", port)
	defer c.Close()
	_, _ = fmt.Fprintf(c, "GET /ws HTTP/1.1\r\nHost: good.example.com:%d\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\nEARLY", port)
	in := newReader(c)
	r, err := http.ReadResponse(in, nil)
	if err != nil || r.StatusCode != http.StatusSwitchingProtocols || r.Header.Get("Sec-WebSocket-Accept") != "x" {
		t.Fatalf("%+v %v", r, err)
	}
	got := make([]byte, len("FIRSTEARLY"))
	if _, err := io.ReadFull(in, got); err != nil || string(got) != "FIRSTEARLY" {
		t.Fatalf("%q %v", got, err)
	}
	_, _ = io.WriteString(c, "more")
	if _, err := io.ReadFull(in, got[:4]); err != nil || string(got[:4]) != "more" {
		t.Fatalf("%q %v", got, err)
	}
	_ = c.CloseWrite()
	_, _ = io.ReadAll(in)
	e := b.find("finished", func(e audit.Event) bool { return e.Kind == audit.CrossingFinished && e.Status == 101 })
	if e.BytesIn < 14 || e.BytesOut < 9 {
		t.Errorf("%+v", e)
	}
}

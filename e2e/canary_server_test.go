package e2e

import (
	"bytes"
	"compress/gzip"
	"compress/zlib"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha1"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"mime/multipart"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"
)

// certifier is a certificate authority of a test.
type certifier struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

func newCertifier(t *testing.T) *certifier {
	t.Helper()
	c := &certifier{t: t}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "canary authority"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	var err error
	if c.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, c.key.Public(), c.key)
	if err == nil {
		c.cert, err = x509.ParseCertificate(der)
	}
	if err != nil {
		t.Fatal(err)
	}
	c.pem = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return c
}

// issue makes a server's certificate; valid is when, from now.
func (c *certifier) issue(from, to time.Duration, names ...string) tls.Certificate {
	c.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		c.t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: names[0]}, DNSNames: names, NotBefore: time.Now().Add(from), NotAfter: time.Now().Add(to),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, c.cert, key.Public(), c.key)
	if err != nil {
		c.t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// serve serves over TLS until the test ends, and returns the port.
func (c *certifier) serve(certificate tls.Certificate, handler http.HandlerFunc) string {
	c.t.Helper()
	server := httptest.NewUnstartedServer(handler)
	server.TLS = &tls.Config{Certificates: []tls.Certificate{certificate}}
	server.EnableHTTP2 = true
	server.Config.ErrorLog = log.New(io.Discard, "", 0) // clients hang up as they like
	server.StartTLS()
	c.t.Cleanup(server.Close)
	_, port, _ := net.SplitHostPort(server.Listener.Addr().String())
	return port
}

// parrot is a server that gives away every secret it knows or is sent, in all ways that servers have.
type parrot struct {
	secrets map[string]string // by the host that is sent it

	mu   sync.Mutex
	seen map[string]int // requests that had the secret, by host
	odd  []string       // requests that should not have arrived
}

// brotli compresses with node, the standard library having no encoder.
var brotli = sync.OnceValues(func() (func(string) []byte, error) {
	if _, err := exec.LookPath("node"); err != nil {
		return nil, err
	}
	return func(text string) []byte {
		cmd := exec.Command("node", "-e", `process.stdout.write(require("zlib").brotliCompressSync(require("fs").readFileSync(0)))`)
		cmd.Stdin = strings.NewReader(text)
		out, _ := cmd.Output() // nothing fails the test that wants to see it refused
		return out
	}, nil
})

func (p *parrot) serve(w http.ResponseWriter, r *http.Request) {
	host, _, _ := net.SplitHostPort(r.Host)
	secret := p.secrets[host]
	auth := r.Header.Get("Authorization")
	_, password, _ := r.BasicAuth()
	signed := strings.HasPrefix(auth, "AWS4-HMAC-SHA256 Credential="+canaryKeyID+"/") && !strings.Contains(auth, "Signature=00,") && !strings.HasSuffix(auth, "Signature=00")
	if secret != "" && (strings.Contains(auth, secret) || password == secret || host == "s3.example.com" && signed) {
		p.mu.Lock()
		p.seen[host]++
		p.mu.Unlock()
	} else {
		p.mu.Lock()
		p.odd = append(p.odd, fmt.Sprintf("%s %s %v", r.Host, r.URL, r.Header))
		p.mu.Unlock()
	}
	p.say(w, r, auth, secret)
}

func (p *parrot) say(w http.ResponseWriter, r *http.Request, auth, secret string) {
	flush := func() { _ = http.NewResponseController(w).Flush() } // a client that is gone reads nothing
	text := auth + " is " + secret + "."
	switch way := strings.TrimPrefix(r.URL.Path, "/"); way {
	case "headers":
		for name, form := range written(secret) {
			w.Header().Set("X-"+strings.ReplaceAll(name, " ", "-"), form)
		}
		w.Header()["X-Auth"] = []string{auth, secret}
		w.Header().Set("Content-Type", "text/"+secret)
		w.Header().Set("Etag", `"`+secret+`"`)
		w.Header().Set("Set-Cookie", "session="+secret)
		w.Header().Set("Www-Authenticate", `Bearer realm="`+secret+`"`)
		w.Header().Set(strings.Map(func(c rune) rune { // in the name of a field, as far as names have such characters
			if strings.ContainsRune(`/+&"<%= `, c) {
				return -1
			}
			return c
		}, secret), "in the name")
	case "body":
		fmt.Fprintln(w, text)
		for name, form := range written(secret) {
			fmt.Fprintln(w, name, form)
		}
		for name, form := range written(auth) {
			fmt.Fprintln(w, name, form)
		}
	case "counted":
		w.Header().Set("Content-Length", fmt.Sprint(len(text)))
		fmt.Fprint(w, text)
	case "split":
		for n := range len(secret) {
			fmt.Fprint(w, secret[:n])
			flush()
			fmt.Fprint(w, secret[n:], "\n")
			flush()
		}
	case "bytes":
		for _, c := range []byte(text) {
			_, _ = w.Write([]byte{c})
			flush()
		}
	case "gzip":
		w.Header().Set("Content-Encoding", "gzip")
		z := gzip.NewWriter(w)
		fmt.Fprint(z, strings.Repeat("padding ", 5000), text)
		_ = z.Close()
	case "deflate":
		w.Header().Set("Content-Encoding", "deflate")
		z := zlib.NewWriter(w)
		fmt.Fprint(z, text)
		_ = z.Close()
	case "br":
		w.Header().Set("Content-Encoding", "br")
		if compress, err := brotli(); err == nil {
			_, _ = w.Write(compress(text))
		}
	case "lie": // says gzip, and it is none
		w.Header().Set("Content-Encoding", "gzip")
		fmt.Fprint(w, text)
	case "redirect":
		http.Redirect(w, r, "https://evil.example.com/"+url.PathEscape(secret)+"?t="+url.QueryEscape(secret)+"#"+secret, http.StatusFound)
	case "trailer":
		w.Header().Set("Trailer", "X-Echo, Grpc-Message")
		fmt.Fprintln(w, "body")
		flush()
		w.Header().Set("X-Echo", text)
		w.Header().Set("Grpc-Message", url.PathEscape(secret))
	case "unannounced":
		fmt.Fprintln(w, "body")
		flush()
		w.Header().Set(http.TrailerPrefix+"X-Echo", text)
	case "401", "403", "500", "503":
		var status int
		_, _ = fmt.Sscan(way, &status)
		http.Error(w, "refused: "+text, status)
	case "hints":
		w.Header().Set("Link", "<https://x/?t="+secret+">")
		w.WriteHeader(http.StatusEarlyHints)
		w.Header().Set("X-Status", text)
		w.WriteHeader(http.StatusProcessing)
		fmt.Fprint(w, "after the hints")
	case "sse":
		w.Header().Set("Content-Type", "text/event-stream")
		for i := range 3 {
			fmt.Fprintf(w, "id: %d\ndata: %s\n\n", i, text)
			flush()
		}
	case "multipart":
		m := multipart.NewWriter(w)
		w.Header().Set("Content-Type", m.FormDataContentType())
		_ = m.WriteField("token", secret)
		part, _ := m.CreateFormFile("file", secret+".txt")
		fmt.Fprint(part, text)
		_ = m.Close()
	case "json":
		_ = json.NewEncoder(w).Encode(map[string]any{"headers": r.Header, secret: text})
	case "long":
		fmt.Fprint(w, strings.Repeat("0123456789abcdef", 3<<16), text)
	case "reset", "wire", "websocket":
		p.hijack(w, r, way, auth, secret)
	case "hang":
		fmt.Fprint(w, secret[:len(secret)/2])
		flush()
		select {
		case <-r.Context().Done():
		case <-time.After(5 * time.Second):
		}
	default:
		fmt.Fprintln(w, "hello")
	}
}

// hijack says on the bare connection what net/http does not.
func (p *parrot) hijack(w http.ResponseWriter, r *http.Request, way, auth, secret string) {
	c, rw, err := http.NewResponseController(w).Hijack()
	if err != nil { // HTTP/2
		panic(http.ErrAbortHandler)
	}
	defer c.Close()
	send := func(text string) { _, _ = io.WriteString(c, text) } // a client that is gone reads nothing
	switch way {
	case "reset":
		send("HTTP/1.1 200 OK\r\nContent-Length: 10000\r\n\r\nyou sent " + auth)
		if tcp, ok := c.(*tls.Conn).NetConn().(*net.TCPConn); ok {
			time.Sleep(50 * time.Millisecond) // so that it arrives before the reset
			_ = tcp.SetLinger(0)
		}
	case "wire": // in the reason, in chunk extensions, in trailers
		send("HTTP/1.1 200 " + auth + "\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n")
		send("4;x=" + secret + "\r\nbody\r\n0;" + secret + "\r\nX-Echo: " + auth + "\r\n\r\n")
	case "websocket":
		sum := sha1.Sum([]byte(r.Header.Get("Sec-Websocket-Key") + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
		send("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nX-Echo: " + auth + "\r\nSec-WebSocket-Accept: " + base64.StdEncoding.EncodeToString(sum[:]) + "\r\n\r\n")
		_, _ = rw.Discard(rw.Reader.Buffered())
		frame := func(first byte, payload string) string { return string([]byte{first, byte(len(payload))}) + payload }
		send(frame(0x81, secret))
		send(frame(0x82, hex.EncodeToString([]byte(secret[:40]))))
		for n := 1; n < len(secret); n += 7 {
			send(frame(0x01, secret[:n]))
			send(frame(0x89, secret[:min(len(secret), 100)])) // a ping in between
			send(frame(0x80, secret[n:]))
		}
		send(frame(0x88, "\x03\xe8"+secret))
	}
}

// written returns a text in the forms in which programs write it, each as a program would get it: base64 among other bytes, for one.
func written(secret string) map[string]string {
	plain, _ := json.Marshal(secret) // a string always encodes
	var raw bytes.Buffer
	e := json.NewEncoder(&raw)
	e.SetEscapeHTML(false)
	_ = e.Encode(secret)
	forms := map[string]string{
		"plain": secret, "hex": hex.EncodeToString([]byte(secret)), "hex upper": strings.ToUpper(hex.EncodeToString([]byte(secret))),
		"query": url.QueryEscape(secret), "path": url.PathEscape(secret), "json": string(plain), "json plain": strings.TrimSpace(raw.String()),
	}
	for i, before := range []string{"", ".", ".."} {
		forms[fmt.Sprint("base64 ", i)] = base64.StdEncoding.EncodeToString([]byte(before + secret + "..."))
		forms[fmt.Sprint("base64url ", i)] = base64.RawURLEncoding.EncodeToString([]byte(before + secret + "..."))
	}
	return forms
}

package gateway

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"
)

// BenchmarkInspected sends small requests with a lent header over connections that are kept alive, and directly for comparison. Client,
// gateway and server share the processors.
func BenchmarkInspected(b *testing.B) {
	l := lend(b, func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "hello") }, "", mainCredential)
	l.quietly()
	run := func(b *testing.B, c *http.Client) {
		b.ReportAllocs()
		for b.Loop() {
			r := must(http.NewRequest("GET", l.url("/repos/acme/x"), nil))
			r.Header.Set("Authorization", "Bearer "+placeholder)
			answer, err := c.Do(r)
			if err != nil || answer.StatusCode != 200 {
				b.Fatal(answer, err)
			}
			_, _ = io.Copy(io.Discard, answer.Body)
			_ = answer.Body.Close()
		}
	}
	for name, protocol := range map[string]string{"http1": "http/1.1", "http2": "h2"} {
		b.Run("direct/"+name, func(b *testing.B) { run(b, l.direct(protocol)) })
		b.Run("gateway/"+name, func(b *testing.B) {
			if protocol == "h2" {
				run(b, l.client())
			} else {
				run(b, l.client(protocol))
			}
		})
	}
}

// direct is a client of the upstream itself.
func (l *lending) direct(protocol string) *http.Client {
	t := &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: l.g.connect.Roots}, ForceAttemptHTTP2: protocol == "h2", DisableCompression: true,
		DialContext: func(context.Context, string, string) (net.Conn, error) {
			return net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", l.port))
		},
	}
	l.tb.Cleanup(t.CloseIdleConnections)
	return &http.Client{Transport: t}
}

// BenchmarkInspectedConnect makes one connection with one request after another.
func BenchmarkInspectedConnect(b *testing.B) {
	l := lend(b, func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "hello") }, "", mainCredential)
	l.quietly()
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(must(l.g.CACertificate()))
	request := fmt.Appendf(nil, "GET /repos/acme/x HTTP/1.1\r\nHost: good.example.com:%d\r\nAuthorization: Bearer %s\r\nConnection: close\r\n\r\n", l.port, placeholder)
	run := func(b *testing.B, roots *x509.CertPool, dial func() net.Conn) {
		config := &tls.Config{RootCAs: roots, ServerName: "good.example.com"}
		for b.Loop() {
			c := tls.Client(dial(), config)
			if _, err := c.Write(request); err != nil {
				b.Fatal(err)
			}
			if answer, err := io.ReadAll(c); err != nil || len(answer) < 60 {
				b.Fatalf("%s %v", answer, err)
			}
			_ = c.Close()
		}
	}
	b.Run("direct", func(b *testing.B) {
		run(b, l.g.connect.Roots, func() net.Conn { return must(net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", l.port))) })
	})
	b.Run("gateway", func(b *testing.B) { run(b, pool, func() net.Conn { return l.to("good.example.com", l.port) }) })
}

// BenchmarkInspectedBody moves bodies of several sizes, whose hash goes on record up to maxDigest.
func BenchmarkInspectedBody(b *testing.B) {
	for _, size := range []int{16 << 10, 256 << 10, maxDigest, 16 << 20} {
		body := make([]byte, size)
		l := lend(b, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", fmt.Sprint(size))
			_, _ = w.Write(body)
		}, "", mainCredential)
		l.quietly()
		for name, c := range map[string]*http.Client{"http1": l.client("http/1.1"), "http2": l.client()} {
			b.Run(fmt.Sprintf("%dKiB/%s", size>>10, name), func(b *testing.B) {
				b.SetBytes(int64(size))
				for b.Loop() {
					r := must(http.NewRequest("GET", l.url("/repos/acme/x"), nil))
					r.Header.Set("Authorization", "Bearer "+placeholder)
					answer, err := c.Do(r)
					if err != nil {
						b.Fatal(err)
					}
					if n, err := io.Copy(io.Discard, answer.Body); n != int64(size) || err != nil {
						b.Fatal(n, err)
					}
					_ = answer.Body.Close()
				}
			})
		}
	}
}

package gateway

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"testing"
)

// quietly drops the audit events: the log has benchmarks of its own.
func (b *bench) quietly() *bench { b.log.drop = true; return b }

// BenchmarkTunnel moves one stream through the tunnel, and directly for comparison.
func BenchmarkTunnel(b *testing.B) {
	port := serve(b, func(c net.Conn) { _, _ = io.Copy(io.Discard, c) })
	run := func(b *testing.B, c net.Conn) {
		defer c.Close()
		chunk := make([]byte, 1<<20)
		b.SetBytes(int64(len(chunk)))
		b.ResetTimer()
		for b.Loop() {
			if _, err := c.Write(chunk); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.Run("direct", func(b *testing.B) {
		c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			b.Fatal(err)
		}
		run(b, c)
	})
	b.Run("tunnel", func(b *testing.B) {
		g := start(b, allow(port, "      protocol: tcp\n"), nil).quietly()
		g.zone.set("good.example.com", "127.0.0.1")
		run(b, g.to("good.example.com", port))
	})
}

// BenchmarkTLSConnect makes one TLS connection after another.
func BenchmarkTLSConnect(b *testing.B) {
	port := serveTLS(b)
	client := &tls.Config{ServerName: "good.example.com", InsecureSkipVerify: true}
	run := func(b *testing.B, dial func() net.Conn) {
		for b.Loop() {
			c := tls.Client(dial(), client)
			if err := c.Handshake(); err != nil {
				b.Fatal(err)
			}
			_ = c.Close()
		}
	}
	b.Run("direct", func(b *testing.B) {
		run(b, func() net.Conn {
			c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
			if err != nil {
				b.Fatal(err)
			}
			return c
		})
	})
	b.Run("tunnel", func(b *testing.B) {
		g := start(b, allow(port, ""), nil).quietly()
		g.zone.set("good.example.com", "127.0.0.1")
		run(b, func() net.Conn { return g.to("good.example.com", port) })
	})
}

// BenchmarkPlainHTTP sends small requests over one connection which is kept alive. Client, gateway and server share the processors.
func BenchmarkPlainHTTP(b *testing.B) {
	const answer = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\nhello"
	port := serve(b, func(c net.Conn) {
		buf := make([]byte, 4096) // one request a read: the client below waits for each answer
		for {
			if _, err := c.Read(buf); err != nil {
				return
			}
			if _, err := io.WriteString(c, answer); err != nil {
				return
			}
		}
	})
	request := fmt.Appendf(nil, "GET /some/path HTTP/1.1\r\nHost: good.example.com:%d\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n", port)
	run := func(b *testing.B, c net.Conn) {
		defer c.Close()
		buf := make([]byte, 4096)
		b.ReportAllocs()
		for b.Loop() {
			if _, err := c.Write(request); err != nil {
				b.Fatal(err)
			}
			if n, err := c.Read(buf); err != nil || string(buf[9:12]) != "200" || n < 60 {
				b.Fatal(err, string(buf[:n]))
			}
		}
	}
	b.Run("direct", func(b *testing.B) {
		c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			b.Fatal(err)
		}
		run(b, c)
	})
	b.Run("gateway", func(b *testing.B) {
		g := start(b, allow(port, ""), nil).quietly()
		g.zone.set("good.example.com", "127.0.0.1")
		run(b, g.to("good.example.com", port))
	})
	b.Run("gateway/parallel", func(b *testing.B) {
		g := start(b, allow(port, ""), nil).quietly()
		g.zone.set("good.example.com", "127.0.0.1")
		b.RunParallel(func(pb *testing.PB) {
			c := g.to("good.example.com", port)
			defer c.Close()
			buf := make([]byte, 4096)
			for pb.Next() {
				_, _ = c.Write(request)
				if _, err := c.Read(buf); err != nil {
					b.Error(err)
				}
			}
		})
	})
}

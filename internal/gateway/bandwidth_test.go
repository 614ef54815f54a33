package gateway

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// TestMeter counts what passes in made-up time.
func TestMeter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const rate = 100 << 10
		m := newMeter(rate)
		began := time.Now()
		var all sync.WaitGroup
		for range 10 { // ten connections share it
			all.Go(func() {
				for range 50 {
					if err := m.pass(t.Context(), 2<<10); err != nil {
						t.Error(err)
					}
				}
			})
		}
		all.Wait()
		// 1000 KiB at 100 KiB a second, of which the pause before them has earned a quarter of a second.
		if took, want := time.Since(began), 10*time.Second-meterBurst; took != want || m.total() != want {
			t.Errorf("took %v, held back for %v, want %v", took, m.total(), want)
		}
		time.Sleep(time.Hour) // which earns no more than that
		began = time.Now()
		if err := m.pass(t.Context(), rate); err != nil || time.Since(began) != time.Second-meterBurst {
			t.Errorf("after a pause: %v, %v", time.Since(began), err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		began = time.Now()
		if err := m.pass(ctx, 100*rate); !errors.Is(err, context.DeadlineExceeded) || time.Since(began) != time.Second {
			t.Errorf("cut short: %v, %v", time.Since(began), err)
		}
	})
	var none *meter
	if err := none.pass(context.Background(), 1<<40); err != nil || none.total() != 0 {
		t.Errorf("without a bound: %v", err)
	}
}

// TestBandwidth moves bytes both ways through each of the pipeline's ways: none may be faster than the bound, and all bytes come through.
func TestBandwidth(t *testing.T) {
	const rate, size = 2 << 20, 2 << 20
	payload := bytes.Repeat([]byte("0123456789abcdef"), size/16)
	web := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body) // the count tells
		if r.Method == http.MethodPost {
			fmt.Fprint(w, n)
			return
		}
		_, _ = w.Write(payload)
	})
	plain := serve(t, func(c net.Conn) { serveHTTP(c, web) })
	opaque := serve(t, func(c net.Conn) {
		_, _ = io.CopyN(io.Discard, c, size)
		_, _ = c.Write(payload)
	})
	b := start(t, fmt.Sprintf("egress:\n  networks: [127.0.0.0/8]\n  rules:\n    - {hosts: [web.example.com], ports: [%d]}\n    - {hosts: [raw.example.com], ports: [%d], protocol: tcp}\n", plain, opaque),
		func(c *Config) { c.Limits.Bandwidth = rate })
	b.zone.set("web.example.com", "127.0.0.1")
	b.zone.set("raw.example.com", "127.0.0.1")
	client := http.Client{Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return b.to("web.example.com", plain), nil }}}
	defer client.CloseIdleConnections()
	url := fmt.Sprintf("http://web.example.com:%d/", plain)
	for _, way := range []struct {
		name  string
		bytes int
		move  func() error
	}{
		{"download", size, func() error {
			answer, err := client.Get(url)
			if err != nil {
				return err
			}
			defer answer.Body.Close()
			got, err := io.ReadAll(answer.Body)
			if !bytes.Equal(got, payload) {
				return fmt.Errorf("%d bytes came: %w", len(got), errors.Join(err, io.ErrUnexpectedEOF))
			}
			return err
		}},
		{"upload", size, func() error {
			answer, err := client.Post(url, "application/octet-stream", bytes.NewReader(payload))
			if err != nil {
				return err
			}
			defer answer.Body.Close()
			if said, _ := io.ReadAll(answer.Body); string(said) != fmt.Sprint(size) {
				return fmt.Errorf("the server got %s", said)
			}
			return nil
		}},
		{"tunnel", 2 * size, func() error {
			c := b.to("raw.example.com", opaque)
			defer c.Close()
			if _, err := c.Write(payload); err != nil {
				return err
			}
			got, err := io.ReadAll(c)
			if !bytes.Equal(got, payload) {
				return fmt.Errorf("%d bytes came: %w", len(got), errors.Join(err, io.ErrUnexpectedEOF))
			}
			return nil
		}},
	} {
		held := b.g.Stats().Held
		began := time.Now()
		if err := way.move(); err != nil {
			t.Errorf("%s: %v", way.name, err)
		}
		// The burst, and a piece in each direction that is on its way, come first.
		least := time.Duration(float64(way.bytes-2*meterPiece)/rate*float64(time.Second)) - meterBurst
		if took := time.Since(began); took < least || took > 5*least {
			t.Errorf("%s of %d bytes took %v, want %v or a little more", way.name, way.bytes, took, least)
		}
		if more := b.g.Stats().Held - held; more < least/2 {
			t.Errorf("%s: held back for %v only", way.name, more)
		}
	}
}

// TestBandwidthEnds closes a gateway while a tunnel waits for its turn, which would be in a quarter of an hour.
func TestBandwidthEnds(t *testing.T) {
	port := serve(t, func(c net.Conn) { _, _ = io.Copy(io.Discard, c) })
	b := start(t, fmt.Sprintf("egress:\n  networks: [127.0.0.0/8]\n  rules:\n    - {hosts: [raw.example.com], ports: [%d], protocol: tcp}\n", port), func(c *Config) { c.Limits.Bandwidth = 16 << 10 })
	b.zone.set("raw.example.com", "127.0.0.1")
	for range 200 {
		c := b.to("raw.example.com", port)
		defer c.Close()
		_, _ = c.Write(make([]byte, 64<<10)) // as much as fits
	}
	time.Sleep(100 * time.Millisecond)
	began := time.Now()
	if err := b.stop(); err != nil || time.Since(began) > 5*time.Second {
		t.Errorf("ended after %v: %v", time.Since(began), err)
	}
}

// serveHTTP serves the requests of one connection.
func serveHTTP(c net.Conn, h http.Handler) {
	one := &oneConn{conn: c, over: make(chan struct{})}
	s := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, ConnState: func(_ net.Conn, s http.ConnState) {
		if s == http.StateClosed {
			one.end()
		}
	}}
	_ = s.Serve(one) // ends with the connection
}

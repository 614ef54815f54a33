package main

import (
	"bufio"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync"
	"time"
)

// The protocols inside TLS.
const (
	http1 = "http/1.1"
	http2 = "h2"
)

// tokenVariable is the environment variable in which the sandbox finds what stands in the place of the credential.
const tokenVariable = "BENCH_TOKEN"

// bulkTime bounds one large body.
const bulkTime = 10 * time.Minute

// secure makes a TLS connection in the task's protocol, through a proxy where there is one.
func (t task) secure(addr string) (*tls.Conn, error) {
	c, err := dial(addr)
	if err != nil {
		return nil, err
	}
	if t.Connect != 0 {
		if err := connect(c, t.Connect); err != nil {
			_ = c.Close() // of no use
			return nil, err
		}
	}
	config := &tls.Config{ServerName: name, InsecureSkipVerify: true} // not what is measured, and the same for all
	if t.Protocol != "" {
		config.NextProtos = []string{t.Protocol}
	}
	s := tls.Client(c, config)
	if err := s.Handshake(); err != nil {
		_ = c.Close() // of no use
		return nil, err
	}
	if got := s.ConnectionState().NegotiatedProtocol; t.Protocol == http2 && got != http2 {
		_ = c.Close() // of no use
		return nil, fmt.Errorf("wanted HTTP/2, got %q", got)
	}
	return s, nil
}

// origin is host and port of the server behind all proxies.
func (t task) origin() string { return net.JoinHostPort(name, strconv.Itoa(cmp.Or(t.Connect, t.Port))) }

// authorization is what a request shows.
func (t task) authorization() string { return "Bearer " + cmp.Or(t.Token, os.Getenv(tokenVariable)) }

// asker sends a small request and reads its answer.
type asker interface {
	ask() error
	close()
}

// asker connects.
func (t task) asker(addr string) (asker, error) {
	if t.Protocol == http2 {
		return &manyAtOnce{t: t, http: t.client(addr)}, nil
	}
	c, err := t.secure(addr)
	if err != nil {
		return nil, err
	}
	request := fmt.Appendf(nil, "GET /v1/small HTTP/1.1\r\nHost: %s\r\nUser-Agent: bench\r\nAccept: */*\r\nAuthorization: %s\r\n\r\n", t.origin(), t.authorization())
	return &oneByOne{conn: c, r: bufio.NewReader(c), request: request}, nil
}

// oneByOne is a connection in HTTP/1.1.
type oneByOne struct {
	conn    *tls.Conn
	r       *bufio.Reader
	request []byte
}

func (o *oneByOne) ask() error {
	keep, err := exchange(o.conn, o.r, o.request)
	if err == nil && !keep {
		err = errors.New("the connection was not kept")
	}
	return err
}

func (o *oneByOne) close() { _ = o.conn.Close() } // it is over

// manyAtOnce is a connection in HTTP/2.
type manyAtOnce struct {
	t    task
	http *http.Client
}

func (m *manyAtOnce) ask() error {
	n, _, err := m.t.fetch(m.http, http.MethodGet, "/v1/small", nil, 0)
	if err == nil && n != 100 {
		err = fmt.Errorf("an answer of %d bytes", n)
	}
	return err
}

func (m *manyAtOnce) close() { m.http.CloseIdleConnections() }

// client is net/http's, on connections of the task's kind.
func (t task) client(addr string) *http.Client {
	return &http.Client{Transport: &http.Transport{
		DialTLSContext: func(context.Context, string, string) (net.Conn, error) {
			c, err := t.secure(addr)
			if err != nil {
				return nil, err // a nil *tls.Conn would be no nil net.Conn
			}
			return c, c.SetDeadline(time.Now().Add(bulkTime))
		},
		ForceAttemptHTTP2: t.Protocol == http2, DisableCompression: true, ReadBufferSize: chunk, WriteBufferSize: chunk,
	}}
}

// fetch sends one request and returns the length of the answer, and its last bytes.
func (t task) fetch(c *http.Client, method, path string, body io.Reader, length int64) (n int64, tail string, err error) {
	r, err := http.NewRequest(method, "https://"+t.origin()+path, body)
	if err != nil {
		return 0, "", err
	}
	r.ContentLength = length
	r.Header["Authorization"] = []string{t.authorization()}
	answer, err := c.Do(r)
	if err != nil {
		return 0, "", err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return 0, "", errors.New("the answer is " + answer.Status)
	}
	buf := make([]byte, min(chunk, max(answer.ContentLength, 512)))
	for {
		k, err := answer.Body.Read(buf)
		if n += int64(k); k > 0 {
			tail = string(buf[max(0, k-32):k])
		}
		if err == io.EOF {
			return n, tail, nil
		} else if err != nil {
			return n, tail, err
		}
	}
}

// asks returns milliseconds for each request over one connection. The first one, which connects, does not count.
func (t task) asks(addr string) ([]float64, error) {
	a, err := t.asker(addr)
	if err != nil {
		return nil, err
	}
	defer a.close()
	if err := a.ask(); err != nil {
		return nil, err
	}
	var values []float64
	for range t.Count {
		began := time.Now()
		if err := a.ask(); err != nil {
			return nil, err
		}
		values = append(values, milliseconds(time.Since(began)))
	}
	return values, nil
}

// asksAnew returns milliseconds from the first packet to the end of the answer, for each of several connections with one request.
func (t task) asksAnew(addr string) ([]float64, error) {
	var values []float64
	for range t.Count {
		began := time.Now()
		a, err := t.asker(addr)
		if err != nil {
			return nil, err
		}
		err = a.ask()
		took := time.Since(began)
		if a.close(); err != nil {
			return nil, err
		}
		values = append(values, milliseconds(took))
	}
	return values, nil
}

// asksAtOnce returns requests a second: over as many connections as there are clients in HTTP/1.1, over one in HTTP/2.
func (t task) asksAtOnce(addr string) ([]float64, error) {
	askers := make([]asker, t.Clients)
	for i := range askers {
		if i > 0 && t.Protocol == http2 {
			askers[i] = askers[0]
			continue
		}
		a, err := t.asker(addr)
		if err != nil {
			return nil, err
		}
		defer a.close()
		if err := a.ask(); err != nil { // connects, and does not count
			return nil, err
		}
		askers[i] = a
	}
	var wg sync.WaitGroup
	counts, problems := make([]int, t.Clients), make([]error, t.Clients)
	began := time.Now()
	until := began.Add(time.Duration(t.Count) * time.Millisecond)
	for i := range t.Clients {
		wg.Go(func() {
			for time.Now().Before(until) && problems[i] == nil {
				problems[i] = askers[i].ask()
				counts[i]++
			}
		})
	}
	wg.Wait()
	total := 0
	for _, n := range counts {
		total += n
	}
	return []float64{float64(total) / time.Since(began).Seconds()}, errors.Join(problems...)
}

// bulk returns gigabytes a second of one large body.
func (t task) bulk(addr string) ([]float64, error) {
	c := t.client(addr)
	c.Timeout = bulkTime
	defer c.CloseIdleConnections()
	began := time.Now()
	if t.Down {
		n, _, err := t.fetch(c, http.MethodGet, fmt.Sprint("/v1/down/", t.Count), nil, 0)
		if err == nil && n != t.Count {
			err = fmt.Errorf("%d bytes came of %d", n, t.Count)
		}
		return []float64{float64(t.Count) / time.Since(began).Seconds() / 1e9}, err
	}
	_, arrived, err := t.fetch(c, http.MethodPost, "/v1/up", io.LimitReader(zeros{}, t.Count), t.Count)
	if err == nil && arrived != strconv.FormatInt(t.Count, 10) {
		err = fmt.Errorf("%q bytes arrived of %d", arrived, t.Count)
	}
	return []float64{float64(t.Count) / time.Since(began).Seconds() / 1e9}, err
}

// zeros has no end.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

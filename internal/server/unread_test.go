package server

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/api"
)

// dial opens a connection to the server under test.
func (s *stage) dial(t *testing.T) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", s.http.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// A client that announces a body and does not send it gets its refusal at once, and does not keep its connection.
func TestRefusedBeforeTheBody(t *testing.T) {
	s := newStage(t)
	announced := "Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n"
	for name, c := range map[string]struct {
		head   string
		status int
	}{
		"no token":     {"POST /api/v1/agents HTTP/1.1\r\nHost: localhost\r\n" + announced, 401},
		"bad token":    {"POST /api/v1/agents HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer cfd_pat_no\r\n" + announced, 401},
		"chunked":      {"POST /api/v1/agents HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n", 401},
		"part of it":   {"POST /api/v1/agents HTTP/1.1\r\nHost: localhost\r\n" + announced + `{"name":`, 401},
		"another name": {"POST / HTTP/1.1\r\nHost: attacker.example\r\n" + announced, 421},
		"no operation": {"POST /api/v1/nowhere HTTP/1.1\r\nHost: localhost\r\n" + announced, 404},
		"health":       {"POST /healthz HTTP/1.1\r\nHost: localhost\r\n" + announced, 200},
		"another site": {"POST /agents HTTP/1.1\r\nHost: localhost\r\nOrigin: https://attacker.example\r\n" + announced, 403},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn := s.dial(t)
			if _, err := io.WriteString(conn, c.head); err != nil {
				t.Fatal(err)
			}
			_ = conn.SetReadDeadline(time.Now().Add(lingering / 2))
			r := bufio.NewReader(conn)
			got, err := http.ReadResponse(r, nil)
			if err != nil {
				t.Fatalf("no answer: %v", err)
			}
			if got.StatusCode != c.status || !got.Close {
				t.Errorf("%d, Connection %q, want %d and close", got.StatusCode, got.Header.Get("Connection"), c.status)
			}
			if _, err := io.ReadAll(got.Body); err != nil {
				t.Fatal(err)
			}
			_ = conn.SetReadDeadline(time.Now().Add(2*lingering + time.Second))
			if n, err := r.Read(make([]byte, 1)); n != 0 || err == nil || strings.Contains(err.Error(), "timeout") {
				t.Errorf("the connection is held: %v", err)
			}
		})
	}
}

// Who sends what was announced keeps the connection, refused or not, as far as the body was read.
func TestConnectionIsKept(t *testing.T) {
	s := newStage(t)
	token := s.token(s.a, api.Administrator)
	conn := s.dial(t)
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	r := bufio.NewReader(conn)
	for i, body := range []string{`{"name":"one"}`, `{"name":7}`, `{"name":"two"}`} {
		if _, err := fmt.Fprintf(conn, "POST /api/v1/agents HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", token, len(body), body); err != nil {
			t.Fatal(err)
		}
		got, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatal(err)
		}
		if want := []int{201, 422, 201}[i]; got.StatusCode != want || got.Close {
			t.Errorf("%s: %d, closed %v, want %d", body, got.StatusCode, got.Close, want)
		}
		_, _ = io.Copy(io.Discard, got.Body)
	}
}

// deadlines notes those that are set.
type deadlines struct {
	*httptest.ResponseRecorder
	last time.Time
}

func (d *deadlines) SetReadDeadline(t time.Time) error { d.last = t; return nil }

// While the answer is made there is no deadline for reading, or net/http would take the client for gone.
func TestBodyDeadline(t *testing.T) {
	w := &deadlines{ResponseRecorder: httptest.NewRecorder()}
	r := httptest.NewRequestWithContext(t.Context(), "POST", "/", io.NopCloser(strings.NewReader("hello")))
	rec := &recorder{ResponseWriter: w, body: limitBody(w, r), major: 1}
	if d := time.Until(w.last); d <= 0 || d > bodyTime {
		t.Errorf("a deadline in %v before the body is read", d)
	}
	if _, err := io.ReadAll(r.Body); err != nil || !w.last.IsZero() {
		t.Errorf("deadline %v after it is read, %v", w.last, err)
	}
	rec.WriteHeader(http.StatusOK)
	if !w.last.IsZero() || rec.Header().Get("Connection") != "" {
		t.Errorf("deadline %v, Connection %q", w.last, rec.Header().Get("Connection"))
	}
	if limitBody(w, httptest.NewRequestWithContext(t.Context(), "GET", "/", http.NoBody)) != nil {
		t.Error("a deadline for no body")
	}
}

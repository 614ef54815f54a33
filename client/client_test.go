package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/fault"
)

func serve(t *testing.T, h http.HandlerFunc) *Client {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	c, err := New(s.URL, "cfd_pat_test")
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestNew(t *testing.T) {
	for text, fine := range map[string]bool{"https://x.example": true, "https://x.example/": true, "http://127.0.0.1:1": true, "http://localhost": true, "http://[::1]:9": true,
		"http://x.example": false, "http://127.0.0.1.x.example": false, "x.example": false, "": false, "https://x/path": false, "https://u:p@x": false, "https://x?y": false, "ftp://x": false} {
		if _, err := New(text, "t"); (err == nil) != fine {
			t.Errorf("%s: %v", text, err)
		}
	}
	if _, err := New("https://x", "a\r\nb"); err == nil {
		t.Error("a token with a line end")
	}
}

// What was made is made once, however often it is asked for; what may have been done is not done again.
func TestRetries(t *testing.T) {
	for _, c := range []struct {
		method string
		status int
		header string
		tries  int
	}{
		{"GET", 503, "", 3}, {"POST", 503, "", 3}, {"PATCH", 503, "", 1}, {"DELETE", 503, "", 1},
		{"GET", 500, "", 1}, {"POST", 409, "", 1}, {"POST", 409, "1", 3}, {"PATCH", 429, "1", 3}, {"GET", 429, "3600", 1}, {"GET", 404, "", 1},
	} {
		t.Run(fmt.Sprint(c.method, c.status, c.header), func(t *testing.T) {
			t.Parallel()
			var mu sync.Mutex
			keys, tries := map[string]bool{}, 0
			client := serve(t, func(w http.ResponseWriter, r *http.Request) {
				mu.Lock()
				defer mu.Unlock()
				keys[r.Header.Get("Idempotency-Key")] = true
				if b, _ := io.ReadAll(r.Body); c.method == "POST" && string(b) != `{"text":"x"}` {
					t.Errorf("body %q", b)
				}
				if tries++; tries >= 3 {
					_, _ = io.WriteString(w, "{}")
					return
				}
				if c.header != "" {
					w.Header().Set("Retry-After", c.header)
				}
				w.WriteHeader(c.status)
			})
			var body any
			if c.method == "POST" {
				body = api.PolicyText{Text: "x"}
			}
			_ = client.call(t.Context(), request{method: c.method, path: "/x", body: body}, nil)
			if tries != c.tries || len(keys) != 1 || keys[""] == (c.method == "POST") {
				t.Errorf("%d tries, keys %v", tries, keys)
			}
		})
	}
}

func TestBrokenConnections(t *testing.T) {
	var tries atomic.Int32
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if tries.Add(1) < 3 {
			panic(http.ErrAbortHandler)
		}
		_, _ = io.WriteString(w, `{"version":"1"}`)
	})
	if h, err := c.Health(t.Context()); err != nil || h.Version != "1" {
		t.Errorf("%+v %v", h, err)
	}
	tries.Store(0)
	if err := c.DeleteAgent(t.Context(), "x"); err == nil || tries.Load() == 3 {
		t.Errorf("%v after %d", err, tries.Load())
	}
}

// The token is for the server alone, wherever that points to.
func TestNoRedirects(t *testing.T) {
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("followed") }))
	defer other.Close()
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, other.URL, http.StatusTemporaryRedirect)
	})
	if _, err := c.Me(t.Context()); err == nil {
		t.Error("no error")
	}
}

func TestPathsAreEscaped(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, r *http.Request) { fmt.Fprintf(w, `{"name":%q}`, r.RequestURI) })
	for name, want := range map[string]string{"a/../b": "/api/v1/credentials/a%2F..%2Fb", "x?y#z": "/api/v1/credentials/x%3Fy%23z", "ü %": "/api/v1/credentials/%C3%BC%20%25"} {
		if got, err := c.Credential(t.Context(), name); err != nil || got.Name != want {
			t.Errorf("%q: %q %v", name, got.Name, err)
		}
	}
}

func TestErrors(t *testing.T) {
	for code, kind := range map[string]fault.Kind{ValidationError: fault.Invalid, Unauthenticated: fault.Unauthenticated, Denied: fault.Denied, NotFound: fault.NotFound, Conflict: fault.Conflict,
		TooMany: fault.TooMany, Unavailable: fault.Unavailable, Unsupported: fault.Unsupported, Internal: fault.Internal, "ELSE": fault.Internal} {
		err := fmt.Errorf("around: %w", &Error{Status: 400, Code: code, Detail: "what", Hint: "do this"})
		if fault.KindOf(err) != kind || fault.HintOf(err) != "do this" || fault.Public(err) != "what" {
			t.Errorf("%s: %v %q %q", code, fault.KindOf(err), fault.HintOf(err), fault.Public(err))
		}
	}
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		http.Error(w, "<html>a proxy's page", http.StatusNotFound)
	})
	_, err := c.Me(t.Context())
	if e, ok := errors.AsType[*Error](err); !ok || e.Status != 404 || strings.Contains(e.Error(), "html") {
		t.Errorf("%v", err)
	}
}

// A stream that breaks goes on where it was: nothing is missed, nothing comes twice.
func TestEventsGoOn(t *testing.T) {
	calls := 0
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		calls++
		after := 0
		_, _ = fmt.Sscan(r.URL.Query().Get("after"), &after)
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = io.WriteString(w, ": begins\n\n")
		for id := after + 1; id <= after+3; id++ {
			fmt.Fprintf(w, "id: %d\ndata: {\"id\":%d,\"type\":\"agent\"}\n\n", id, id)
		}
		_, _ = io.WriteString(w, "id: 99\ndata: {\"id\":99") // cut
	})
	var got []int64
	err := c.Events(t.Context(), 0, func(e api.Event) error {
		if got = append(got, e.ID); len(got) == 7 {
			return io.ErrShortWrite
		}
		return nil
	})
	if !errors.Is(err, io.ErrShortWrite) || fmt.Sprint(got) != "[1 2 3 4 5 6 7]" || calls != 3 {
		t.Errorf("%v %v %d", got, err, calls)
	}
}

func TestEventsEnd(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "event: end\ndata: {\"status\":401,\"code\":\"UNAUTHENTICATED\"}\n\n")
	})
	if err := c.Events(t.Context(), -1, func(api.Event) error { return nil }); fault.KindOf(err) != fault.Unauthenticated {
		t.Errorf("%v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	quiet := serve(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, ": begins\n\n")
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	})
	if err := quiet.Events(ctx, -1, func(api.Event) error { return nil }); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
}

func TestFollowOutput(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("offset") == "0" {
			_, _ = io.WriteString(w, "id: 5\nevent: output\ndata: {\"offset\":0,\"data\":\"aGVsbG8=\"}\n\n")
			return
		}
		_, _ = io.WriteString(w, "id: 11\nevent: output\ndata: {\"offset\":5,\"data\":\"IHdvcmxk\"}\n\nid: 11\nevent: output\ndata: {\"offset\":11,\"ended\":true}\n\n")
	})
	var out strings.Builder
	if err := c.FollowOutput(t.Context(), "x", 0, &out); err != nil || out.String() != "hello world" {
		t.Errorf("%q %v", out.String(), err)
	}
}

func TestExec(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer cfd_pat_test" {
			t.Error("no token")
		}
		conn, err := websocket.Accept(w, r, nil)
		if err != nil {
			return
		}
		defer conn.CloseNow()
		ctx := r.Context()
		_, first, _ := conn.Read(ctx)
		_ = conn.Write(ctx, websocket.MessageText, []byte(`{"started":{"run":"r1"}}`))
		_ = conn.Write(ctx, websocket.MessageBinary, append([]byte{1}, first...))
		for {
			kind, b, err := conn.Read(ctx)
			if err != nil {
				return
			}
			if kind == websocket.MessageBinary {
				_ = conn.Write(ctx, websocket.MessageBinary, append([]byte{2}, b[1:]...))
			} else if string(b) == `{"close_stdin":true}` {
				_ = conn.Write(ctx, websocket.MessageText, []byte(`{"exit":{"code":5}}`))
				_ = conn.Close(websocket.StatusNormalClosure, "")
				return
			}
		}
	})
	var out, errs strings.Builder
	run := ""
	exit, err := c.Exec(t.Context(), "x", api.Exec{Command: []string{"cat"}}, Streams{Stdin: strings.NewReader("input"), Stdout: &out, Stderr: &errs, Started: func(r string) { run = r }})
	if err != nil || exit.Code != 5 || run != "r1" || out.String() != `{"command":["cat"]}` || errs.String() != "input" {
		t.Errorf("%+v %v %q %q %q", exit, err, run, out.String(), errs.String())
	}
}

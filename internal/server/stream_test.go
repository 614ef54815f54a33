package server

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/frame"
	"github.com/cofferdam/cofferdam/internal/store"
)

// listen reads server-sent events until it has n, and returns them as "id data".
func (s *stage) listen(n int, path, token string, edit ...func(*http.Request)) []string {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 10*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, "GET", s.http.URL+prefix+path, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+token)
	for _, f := range edit {
		f(r)
	}
	got, err := s.http.Client().Do(r)
	if err != nil {
		s.t.Fatal(err)
	}
	defer got.Body.Close()
	if ct := got.Header.Get("Content-Type"); got.StatusCode != 200 || ct != "text/event-stream" {
		s.t.Fatalf("%d %s", got.StatusCode, ct)
	}
	var events []string
	id := ""
	lines := bufio.NewScanner(got.Body)
	for len(events) < n && lines.Scan() {
		if text, ok := strings.CutPrefix(lines.Text(), "id: "); ok {
			id = text
		}
		if text, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
			events = append(events, id+" "+text)
		}
	}
	if len(events) < n {
		s.t.Fatalf("%d events: %v", len(events), lines.Err())
	}
	return events
}

func TestEvents(t *testing.T) {
	s := newStage(t)
	token := s.token(s.a, api.Administrator)
	s.ask("GET", "/events?after=x", token, nil).problem(422, codeValidation)
	s.ask("GET", "/events", s.token(s.a, api.Viewer, "agents:read"), nil).problem(403, codeDenied)
	for _, name := range []string{"one", "two", "three"} {
		s.ask("POST", "/agents", token, api.NewAgent{Name: name}).want(201)
	}
	s.ask("POST", "/agents", s.token(s.b, api.Administrator), api.NewAgent{Name: "theirs"}).want(201)
	all := s.listen(3, "/events?after=0", token)
	first, _, _ := strings.Cut(all[0], " ")
	rest := s.listen(2, "/events", token, with("Last-Event-ID", first))
	if rest[0] != all[1] || rest[1] != all[2] {
		t.Errorf("%v\n%v", all, rest)
	}
	var e api.Event
	if _, data, _ := strings.Cut(all[0], " "); json.Unmarshal([]byte(data), &e) != nil || e.Type == "" || e.Subject == "" {
		t.Errorf("%+v", e)
	}
	if s.streams.enterable("token") != true {
		t.Error("a stream that has ended still counts")
	}
}

// enterable says whether nobody is in.
func (c *crowd) enterable(string) bool {
	for range 100 {
		c.mu.Lock()
		n := len(c.now)
		c.mu.Unlock()
		if n == 0 {
			return true
		}
		time.Sleep(10 * time.Millisecond)
	}
	return false
}

func TestStillSignedIn(t *testing.T) {
	s := newStage(t)
	token := s.token(s.a, api.Developer)
	r := httptest.NewRequest("GET", "/", nil)
	r.Header.Set("Authorization", "Bearer "+token)
	c := &call{request: r}
	if err := s.authenticate(r, c); err != nil {
		t.Fatal(err)
	}
	if err := s.still(t.Context(), c); err != nil {
		t.Error(err)
	}
	viewer := api.Viewer
	if _, err := s.auth.ChangeUser(t.Context(), s.a.id, s.a.users[api.Developer], 0, api.UserChange{Role: &viewer}); err != nil {
		t.Fatal(err)
	}
	if err := s.still(t.Context(), c); err == nil {
		t.Error("a role that was taken away is still believed")
	}
}

// echo is a command that answers what it reads, in capitals, and ends at the end of its input or by a signal. Only its other end is made up:
// the WebSocket and its client are real.
type echo struct {
	in     *io.PipeReader
	inW    *io.PipeWriter
	out    *io.PipeReader
	outW   *io.PipeWriter
	errR   *io.PipeReader
	errW   *io.PipeWriter
	ended  chan struct{}
	once   sync.Once
	exit   frame.Exit
	mu     sync.Mutex
	sizes  [][2]uint16
	closed bool
}

func newEcho() *echo {
	e := &echo{ended: make(chan struct{})}
	e.in, e.inW = io.Pipe()
	e.out, e.outW = io.Pipe()
	e.errR, e.errW = io.Pipe()
	go func() {
		b := make([]byte, 1000)
		for {
			n, err := e.in.Read(b)
			if n > 0 {
				_, _ = e.outW.Write(bytes.ToUpper(b[:n]))
			}
			if err != nil {
				_, _ = e.errW.Write([]byte("bye"))
				e.end(frame.Exit{Code: 3})
				return
			}
		}
	}()
	return e
}

func (e *echo) end(exit frame.Exit) {
	e.once.Do(func() {
		e.exit = exit
		_ = e.outW.Close()
		_ = e.errW.Close()
		close(e.ended)
	})
}
func (e *echo) Stdin() io.WriteCloser { return e.inW }
func (e *echo) Stdout() io.ReadCloser { return e.out }
func (e *echo) Stderr() io.ReadCloser { return e.errR }
func (e *echo) Signal(n int) error    { e.end(frame.Exit{Signal: n}); return nil }
func (e *echo) Resize(rows, cols uint16) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.sizes = append(e.sizes, [2]uint16{rows, cols})
	return nil
}
func (e *echo) Wait() (frame.Exit, error) {
	<-e.ended
	return e.exit, nil
}
func (e *echo) Close() error {
	e.mu.Lock()
	e.closed = true
	e.mu.Unlock()
	_ = e.in.CloseWithError(errors.New("closed"))
	e.end(frame.Exit{Signal: 9})
	return nil
}

// terminalOn serves one process over a WebSocket and returns a client's connection and a function that waits for the server's side to end.
func terminalOn(t *testing.T, s *stage, p process) (*websocket.Conn, func()) {
	t.Helper()
	done := make(chan struct{})
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer close(done)
		conn, err := websocket.Accept(w, r, nil)
		if err != nil {
			return
		}
		ctx, cancel := context.WithCancel(r.Context())
		defer cancel()
		conn.SetReadLimit(maxMessage)
		(&terminal{s: s.Server, conn: conn, p: p, call: &call{request: r}}).serve(ctx, cancel)
	}))
	t.Cleanup(web.Close)
	conn, _, err := websocket.Dial(t.Context(), web.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.CloseNow() })
	return conn, func() {
		t.Helper()
		select {
		case <-done:
		case <-time.After(20 * time.Second):
			t.Fatal("the server's side goes on")
		}
	}
}

func say(t *testing.T, conn *websocket.Conn, text string) {
	t.Helper()
	if err := conn.Write(t.Context(), websocket.MessageText, []byte(text)); err != nil {
		t.Fatal(err)
	}
}

// hear reads until the exit and returns both channels.
func hear(t *testing.T, conn *websocket.Conn) (out, errs string, exit api.ExecExit) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for {
		kind, b, err := conn.Read(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if kind == websocket.MessageText {
			var m api.ExecMessage
			if err := json.Unmarshal(b, &m); err != nil || m.Exit == nil {
				t.Fatalf("%s: %v", b, err)
			}
			return out, errs, *m.Exit
		}
		if b[0] == channelOutput {
			out += string(b[1:])
		} else {
			errs += string(b[1:])
		}
	}
}

func TestTerminal(t *testing.T) {
	s := newStage(t)
	p := newEcho()
	conn, wait := terminalOn(t, s, p)
	big := strings.Repeat("a", 100_000)
	for range 10 {
		if err := conn.Write(t.Context(), websocket.MessageBinary, append([]byte{0}, "hello "...)); err != nil {
			t.Fatal(err)
		}
	}
	conn.SetReadLimit(1 << 20)
	say(t, conn, `{"resize":[40,120]}`)
	go func() {
		_ = conn.Write(t.Context(), websocket.MessageBinary, append([]byte{0}, big...))
		_ = conn.Write(t.Context(), websocket.MessageText, []byte(`{"close_stdin":true}`))
	}()
	out, errs, exit := hear(t, conn)
	if want := strings.Repeat("HELLO ", 10) + strings.ToUpper(big); out != want || errs != "bye" || exit.Code != 3 {
		t.Errorf("%d bytes, %q, %+v", len(out), errs, exit)
	}
	if len(p.sizes) != 1 || p.sizes[0] != [2]uint16{40, 120} {
		t.Errorf("%v", p.sizes)
	}
	_, _, _ = conn.Read(t.Context()) // the server closes
	wait()
}

func TestTerminalSignalWhileItDoesNotRead(t *testing.T) {
	s := newStage(t)
	p := newEcho()
	conn, wait := terminalOn(t, s, p)
	conn.SetReadLimit(1 << 20)
	for range 3 { // echo is stuck on its output, which we do not read
		if err := conn.Write(t.Context(), websocket.MessageBinary, append([]byte{0}, make([]byte, 200_000)...)); err != nil {
			t.Fatal(err)
		}
	}
	say(t, conn, `{"signal":15}`)
	if _, _, exit := hear(t, conn); exit.Signal != 15 {
		t.Errorf("%+v", exit)
	}
	_, _, _ = conn.Read(t.Context())
	wait()
}

func TestTerminalEndsWithItsClient(t *testing.T) {
	s := newStage(t)
	for name, f := range map[string]func(*websocket.Conn){
		"gone":        func(c *websocket.Conn) { _ = c.CloseNow() },
		"not JSON":    func(c *websocket.Conn) { _ = c.Write(t.Context(), websocket.MessageText, []byte("{")) },
		"unknown":     func(c *websocket.Conn) { _ = c.Write(t.Context(), websocket.MessageText, []byte(`{"kill":true}`)) },
		"empty":       func(c *websocket.Conn) { _ = c.Write(t.Context(), websocket.MessageBinary, nil) },
		"a channel":   func(c *websocket.Conn) { _ = c.Write(t.Context(), websocket.MessageBinary, []byte{1, 2}) },
		"signal 1000": func(c *websocket.Conn) { _ = c.Write(t.Context(), websocket.MessageText, []byte(`{"signal":1000}`)) },
	} {
		t.Run(name, func(t *testing.T) {
			p := newEcho()
			conn, wait := terminalOn(t, s, p)
			f(conn)
			go func() { // answers the closing handshake
				for {
					if _, _, err := conn.Read(context.Background()); err != nil {
						return
					}
				}
			}()
			wait()
			if p.mu.Lock(); !p.closed {
				t.Error("the command goes on")
			}
			p.mu.Unlock()
		})
	}
}

// The handshake is refused to other sites' pages, who would ride on the cookie, before anything else is looked at.
func TestTerminalOrigin(t *testing.T) {
	s := newStage(t)
	c := s.session(s.a, api.Developer)
	box, err := store.Of[map[string]any]("sandbox").Insert(t.Context(), s.db, store.Object[map[string]any]{ID: "abcdefgh", Tenant: s.a.id, State: "ended", Data: map[string]any{}})
	if err != nil {
		t.Fatal(err)
	}
	upgrade := func(r *http.Request) {
		r.Header.Set("Connection", "Upgrade")
		r.Header.Set("Upgrade", "websocket")
		r.Header.Set("Sec-WebSocket-Version", "13")
		r.Header.Set("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")
	}
	path := "/sandboxes/" + box.ID + "/exec"
	for _, origin := range []string{"https://attacker.example", "null", "", s.http.URL + ".attacker.example"} {
		s.ask("GET", path, "", nil, upgrade, cookie(c), with("Origin", origin)).problem(403, codeDenied)
	}
	s.ask("GET", path, "", nil, cookie(c)).problem(426, codeUnsupported)
	s.ask("GET", "/sandboxes/zzzzzzzz/exec", "", nil, upgrade, cookie(c), with("Origin", s.http.URL)).problem(404, codeNotFound)
	conn, _, err := websocket.Dial(t.Context(), s.http.URL+prefix+path, &websocket.DialOptions{HTTPHeader: http.Header{"Cookie": {c.String()}, "Origin": {s.http.URL}}})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.CloseNow()
	say(t, conn, `{"command":["true"]}`)
	_, text, err := conn.Read(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var m api.ExecMessage
	if json.Unmarshal(text, &m) != nil || m.Error == nil || m.Error.Code != codeConflict { // it has ended
		t.Errorf("%s", text)
	}
}

func TestOutputIsADownload(t *testing.T) {
	s := newStage(t)
	token := s.token(s.a, api.Viewer)
	if _, err := store.Of[map[string]any]("sandbox").Insert(t.Context(), s.db, store.Object[map[string]any]{ID: "abcdefgh", Tenant: s.a.id, State: "ended", Data: map[string]any{}}); err != nil {
		t.Fatal(err)
	}
	got := s.ask("GET", "/sandboxes/abcdefgh/output", token, nil)
	if got.StatusCode == 200 && (got.Header.Get("Content-Disposition") == "" || got.Header.Get("Content-Type") != "application/octet-stream") {
		t.Errorf("%v", got.Header)
	}
	for _, query := range []string{"offset=-1", "offset=x", "limit=0", "limit=99999999", "follow=maybe", "x=1", "offset=1&offset=2"} {
		s.ask("GET", "/sandboxes/abcdefgh/output?"+query, token, nil).problem(422, codeValidation)
	}
}

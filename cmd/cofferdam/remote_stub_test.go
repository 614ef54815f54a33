package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/runner/files"
	"github.com/cofferdam/cofferdam/internal/secret"
)

// stubServer speaks the wire of a server whose one sandbox is a directory: its commands run there, its files are served by the service that sandboxes have.
type stubServer struct {
	*httptest.Server
	t    *testing.T
	work string

	mu      sync.Mutex
	asked   []string // method and path
	created api.NewSandbox
	stopped bool
	denials []api.Denial
	// spoil, if set, changes what is sent back of a folder.
	spoil func([]byte) []byte
	// drop cuts the connection of a command in the place of its end.
	drop bool
}

const stubSandbox = "abcdefgh"

func newStub(t *testing.T) *stubServer {
	t.Helper()
	s := &stubServer{t: t, work: t.TempDir()}
	mux := http.NewServeMux()
	const at = "/api/v1/sandboxes/" + stubSandbox
	mux.HandleFunc("GET /api/v1/agents/{name}", func(w http.ResponseWriter, r *http.Request) {
		if r.PathValue("name") != "builder" {
			s.answer(w, http.StatusNotFound, api.Problem{Code: "NOT_FOUND", Detail: "there is no such agent"})
			return
		}
		s.answer(w, http.StatusOK, api.Agent{ID: "a1", Name: "builder"})
	})
	mux.HandleFunc("POST /api/v1/sandboxes", func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		defer s.mu.Unlock()
		_ = json.NewDecoder(r.Body).Decode(&s.created)
		s.answer(w, http.StatusCreated, s.box())
	})
	mux.HandleFunc("GET "+at, func(w http.ResponseWriter, _ *http.Request) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.answer(w, http.StatusOK, s.box())
	})
	mux.HandleFunc("POST "+at+"/stop", func(w http.ResponseWriter, _ *http.Request) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.stopped = true
		s.answer(w, http.StatusOK, s.box())
	})
	mux.HandleFunc("PUT "+at+"/files/content", func(w http.ResponseWriter, r *http.Request) { s.files(w, r, "write", "-p", "--tar", s.inside(r)) })
	mux.HandleFunc("GET "+at+"/files/content", func(w http.ResponseWriter, r *http.Request) { s.files(w, r, "read", "--tar", s.inside(r)) })
	mux.HandleFunc("POST "+at+"/exec", s.execOnce)
	mux.HandleFunc("GET "+at+"/exec", s.execStream)
	mux.HandleFunc("GET /api/v1/runs", func(w http.ResponseWriter, _ *http.Request) {
		code := 127
		s.answer(w, http.StatusOK, api.Page[api.Run]{Items: []api.Run{{ID: "x1", ExitCode: &code}}})
	})
	mux.HandleFunc("GET /api/v1/events", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		_ = http.NewResponseController(w).Flush() // nothing happens here
		<-r.Context().Done()
	})
	mux.HandleFunc("GET /api/v1/denials", func(w http.ResponseWriter, _ *http.Request) {
		s.answer(w, http.StatusOK, api.Page[api.Denial]{Items: s.denials})
	})
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.asked = append(s.asked, r.Method+" "+r.URL.Path)
		s.mu.Unlock()
		if r.Header.Get("Authorization") != "Bearer "+tokenCanary {
			s.answer(w, http.StatusUnauthorized, api.Problem{Code: "UNAUTHENTICATED", Detail: "the token is not valid"})
			return
		}
		mux.ServeHTTP(w, r)
	}))
	t.Cleanup(func() { s.CloseClientConnections(); s.Close() })
	return s
}

func (s *stubServer) box() api.Sandbox {
	b := api.Sandbox{ID: stubSandbox, Agent: "a1", AgentName: "builder", State: api.Running, Isolation: "container", Usage: api.Usage{Denied: uint64(len(s.denials))}}
	if s.stopped {
		b.State, b.How = api.Ended, "stopped"
	}
	return b
}

func (s *stubServer) answer(w http.ResponseWriter, status int, v any) {
	if p, ok := v.(api.Problem); ok {
		p.Status = status
		v = p
		w.Header().Set("Content-Type", "application/problem+json")
	}
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the client may have gone
}

func (s *stubServer) inside(r *http.Request) string {
	return s.work + strings.TrimPrefix(r.URL.Query().Get("path"), workDir)
}

func (s *stubServer) files(w http.ResponseWriter, r *http.Request, args ...string) {
	var out, complaint bytes.Buffer
	if files.Run(r.Context(), args, r.Body, &out, &complaint) != 0 {
		s.answer(w, http.StatusUnprocessableEntity, api.Problem{Code: "VALIDATION_ERROR", Detail: complaint.String()})
		return
	}
	data := out.Bytes()
	if s.spoil != nil && r.Method == http.MethodGet {
		data = s.spoil(data)
	}
	_, _ = w.Write(data) // likewise
}

func (s *stubServer) command(ctx context.Context, in api.Exec) *exec.Cmd {
	cmd := exec.CommandContext(ctx, in.Command[0], in.Command[1:]...)
	cmd.Dir = s.work + strings.TrimPrefix(in.Dir, workDir)
	for name, value := range in.Environment {
		cmd.Env = append(cmd.Env, name+"="+value)
	}
	return cmd
}

func (s *stubServer) execOnce(w http.ResponseWriter, r *http.Request) {
	var in api.Exec
	_ = json.NewDecoder(r.Body).Decode(&in)
	err := s.command(r.Context(), in).Run()
	out := api.ExecResult{}
	if e, ok := errors.AsType[*exec.ExitError](err); ok {
		out.ExitCode = e.ExitCode()
	}
	s.answer(w, http.StatusOK, out)
}

// socket writes to one channel of a command's connection.
type socket struct {
	ctx     context.Context
	conn    *websocket.Conn
	channel byte
}

func (o socket) Write(p []byte) (int, error) {
	return len(p), o.conn.Write(o.ctx, websocket.MessageBinary, append([]byte{o.channel}, p...))
}

func (s *stubServer) execStream(w http.ResponseWriter, r *http.Request) {
	conn, err := websocket.Accept(w, r, nil)
	if err != nil {
		return
	}
	defer conn.CloseNow()
	conn.SetReadLimit(1 << 20)
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	say := func(m api.ExecMessage) {
		text, _ := json.Marshal(m)
		_ = conn.Write(ctx, websocket.MessageText, text)
	}
	_, text, err := conn.Read(ctx)
	var in api.Exec
	if err != nil || json.Unmarshal(text, &in) != nil {
		return
	}
	cmd := s.command(ctx, in)
	stdin, _ := cmd.StdinPipe()
	cmd.Stdout, cmd.Stderr = socket{ctx, conn, 1}, socket{ctx, conn, 2}
	say(api.ExecMessage{Started: &api.ExecStarted{Run: "x1"}}) // before any output, as the server does
	if err := cmd.Start(); err != nil {
		say(api.ExecMessage{Exit: &api.ExecExit{Error: "no such program"}})
		return
	}
	go func() {
		defer cancel()
		for {
			kind, data, err := conn.Read(ctx)
			if err != nil {
				return
			}
			var m api.ExecControl
			switch {
			case kind == websocket.MessageBinary:
				_, _ = stdin.Write(data[1:])
			case json.Unmarshal(data, &m) == nil && m.CloseStdin:
				_ = stdin.Close()
			case m.Signal != 0:
				_ = cmd.Process.Signal(syscall.Signal(m.Signal))
			}
		}
	}()
	err = cmd.Wait()
	if s.drop {
		return
	}
	exit := api.ExecExit{}
	if e, ok := errors.AsType[*exec.ExitError](err); ok {
		exit.Code = max(0, e.ExitCode())
		if ws, ok := e.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
			exit.Signal = int(ws.Signal())
		}
	}
	say(api.ExecMessage{Exit: &exit})
	time.Sleep(20 * time.Millisecond) // the client says goodbye
}

// cli is a command line against a server, with what it said.
type cli struct {
	app         *app
	out, errors bytes.Buffer
}

// at makes the command line of a person who is logged in.
func at(t *testing.T, url, token string) *cli {
	t.Helper()
	for _, name := range []string{"COFFERDAM_SERVER", "COFFERDAM_TOKEN", "COFFERDAM_TOKEN_FILE", "COFFERDAM_RUN"} {
		t.Setenv(name, "")
	}
	c := &cli{}
	c.app = &app{stdout: &c.out, stderr: &c.errors, state: t.TempDir(), settings: t.TempDir() + "/settings"}
	if err := c.app.saveAccounts(accounts{Current: url, Servers: []account{{URL: url, User: "ada@example.com", token: secret.New([]byte(token))}}}); err != nil {
		t.Fatal(err)
	}
	return c
}

// type runs one command line and returns its exit code. What it reads is input.
func (c *cli) run(t *testing.T, input string, args ...string) int {
	t.Helper()
	file := t.TempDir() + "/stdin"
	if err := os.WriteFile(file, []byte(input), 0o600); err != nil {
		t.Fatal(err)
	}
	stdin, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	c.app.stdin = stdin
	c.out.Reset()
	c.errors.Reset()
	code := c.app.main(t.Context(), args)
	for _, said := range []string{c.out.String(), c.errors.String()} {
		if strings.Contains(said, tokenCanary) || strings.Contains(said, credentialCanary) {
			t.Errorf("%q says a secret: %s", args, said)
		}
	}
	return code
}

// says checks the exit code and that texts were said, on either stream.
func (c *cli) says(t *testing.T, code, want int, texts ...string) {
	t.Helper()
	said := c.out.String() + "\n" + c.errors.String()
	if code != want {
		t.Errorf("exit code %d, want %d: %s", code, want, said)
	}
	for _, text := range texts {
		if !strings.Contains(said, text) {
			t.Errorf("it does not say %q: %s", text, said)
		}
	}
}

package keeper

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/fault"
)

const (
	// maxConns bounds the connections of the service at once: each terminal has one.
	maxConns = 512
	// callTime bounds reading a call and writing its answer.
	callTime = 30 * time.Second
	// quietTime is how long events may be silent: then an empty line says that the keeper lives.
	quietTime = 15 * time.Second
)

// kept is the sandbox that a keeper keeps.
type kept interface {
	Status() Status
	SetPolicy(ctx context.Context, p NewPolicy) error
	SetDeadline(ctx context.Context, deadline time.Time) error
	Pause(ctx context.Context, paused bool) error
	Stop(ctx context.Context, reason string) error
	// Start has the runner call for one more command and returns its connection, the proof of which was checked and is left out.
	Start(ctx context.Context, e Exec) (io.ReadWriteCloser, Prepared, error)
}

// Server is a keeper's side of the socket.
type Server struct {
	kept  kept
	board *Board
	uid   int
}

// NewServer serves a sandbox and its board to the user that this process belongs to now, whomever it becomes, and to root.
func NewServer(k kept, b *Board) *Server { return &Server{kept: k, board: b, uid: os.Getuid()} }

// Serve works until ctx ends, and returns when everything that it started has ended. It closes the listener.
func (s *Server) Serve(ctx context.Context, l *net.UnixListener) error {
	var upgraded sync.WaitGroup
	server := &http.Server{
		Handler: s.routes(ctx, &upgraded), ReadHeaderTimeout: callTime, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 16 << 10,
		BaseContext: func(net.Listener) context.Context { return ctx },
	}
	served := make(chan error, 1)
	go func() {
		served <- server.Serve(&ownListener{UnixListener: l, uid: s.uid, room: make(chan struct{}, maxConns)})
	}()
	select {
	case err := <-served:
		return fmt.Errorf("serve the keeper's socket: %w", err)
	case <-ctx.Done():
	}
	ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second) // for answers under way
	defer cancel()
	if server.Shutdown(ending) != nil {
		_ = server.Close() // what is left is cut
	}
	<-served
	upgraded.Wait()
	return nil
}

// ownListener takes connections of the user whom the keeper belonged to before it gave up its rights, and of root. The directory keeps others out already.
type ownListener struct {
	*net.UnixListener
	uid  int
	room chan struct{}
}

// Accept returns the next connection that may call.
func (l *ownListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.AcceptUnix()
		if err != nil {
			return nil, err
		}
		if uid, err := peer(conn); err != nil || uid != 0 && uid != l.uid {
			_ = conn.Close() // nobody's business
			continue
		}
		select {
		case l.room <- struct{}{}:
			return &counted{UnixConn: conn, leave: sync.OnceFunc(func() { <-l.room })}, nil
		default:
			_ = conn.Close() // too many: the service tries again
		}
	}
}

func peer(conn *net.UnixConn) (uid int, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	var inner error
	err = raw.Control(func(fd uintptr) {
		var cred *unix.Ucred
		if cred, inner = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); inner == nil {
			uid = int(cred.Uid)
		}
	})
	return uid, errors.Join(err, inner)
}

// counted gives its place back when it is closed.
type counted struct {
	*net.UnixConn
	leave func()
}

// Close closes the connection.
func (c *counted) Close() error {
	c.leave()
	return c.UnixConn.Close()
}

func (s *Server) routes(ctx context.Context, upgraded *sync.WaitGroup) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) { answer(w, s.kept.Status()) })
	mux.HandleFunc("GET /events", s.events)
	mux.HandleFunc("PUT /policy", call(func(r *http.Request, p NewPolicy) error { return s.kept.SetPolicy(r.Context(), p) }))
	mux.HandleFunc("PUT /deadline", call(func(r *http.Request, d NewDeadline) error { return s.kept.SetDeadline(r.Context(), d.Deadline) }))
	mux.HandleFunc("PUT /paused", call(func(r *http.Request, p Pause) error { return s.kept.Pause(r.Context(), p.Paused) }))
	mux.HandleFunc("POST /stop", call(func(r *http.Request, stop Stop) error { return s.kept.Stop(r.Context(), stop.Reason) }))
	mux.HandleFunc("POST /asks/{id}", call(func(r *http.Request, a Answer) error { return s.board.Answer(r.PathValue("id"), a) }))
	mux.HandleFunc("POST /exec", func(w http.ResponseWriter, r *http.Request) { s.exec(ctx, upgraded, w, r) })
	return mux
}

// call reads a message, acts, and answers with nothing or a problem.
func call[T any](act func(*http.Request, T) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var message T
		err := take(w, r, &message)
		if err == nil {
			err = act(r, message)
		}
		if err != nil {
			refuse(w, err)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	}
}

// take reads the message of a call within callTime.
func take(w http.ResponseWriter, r *http.Request, message any) error {
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Now().Add(callTime))
	defer control.SetReadDeadline(time.Time{})
	return decode(r.Body, maxBody, message)
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(callTime))
	_ = json.NewEncoder(w).Encode(v) // who asked is gone otherwise
}

func refuse(w http.ResponseWriter, err error) {
	p := problem{Kind: fault.KindOf(err).String(), Error: err.Error(), Hint: fault.HintOf(err)}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(statusOf(fault.KindOf(err)))
	_ = json.NewEncoder(w).Encode(p) // likewise
}

// events tells what happens until the sandbox ends or the listener goes.
func (s *Server) events(w http.ResponseWriter, r *http.Request) {
	events, stop, err := s.board.listen()
	if err != nil {
		refuse(w, err)
		return
	}
	defer stop()
	w.Header().Set("Content-Type", "application/x-ndjson")
	control := http.NewResponseController(w)
	write := func(line []byte) bool {
		_ = control.SetWriteDeadline(time.Now().Add(callTime))
		_, err := w.Write(append(line, '\n'))
		return errors.Join(err, control.Flush()) == nil
	}
	if !write(nil) {
		return
	}
	for {
		select {
		case <-r.Context().Done():
			return
		case <-time.After(quietTime):
			if !write(nil) {
				return
			}
		case e, ok := <-events:
			line, err := json.Marshal(e)
			if !ok || err != nil || !write(line) {
				return
			}
		}
	}
}

// exec joins the service to the runner for one more command.
func (s *Server) exec(ctx context.Context, upgraded *sync.WaitGroup, w http.ResponseWriter, r *http.Request) {
	upgraded.Add(1)
	defer upgraded.Done()
	if r.Header.Get("Upgrade") != protocol {
		refuse(w, fault.New(fault.Invalid, "a command is started by an upgrade to %s", protocol))
		return
	}
	var e Exec
	if err := take(w, r, &e); err != nil {
		refuse(w, err)
		return
	}
	runner, prepared, err := s.kept.Start(r.Context(), e)
	if err != nil {
		refuse(w, err)
		return
	}
	defer runner.Close()
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		refuse(w, fmt.Errorf("take over the connection: %w", err))
		return
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() {
		_ = conn.Close()
		_ = runner.Close()
	})
	defer stop()
	line, err := json.Marshal(prepared)
	if err == nil {
		err = conn.SetDeadline(time.Now().Add(callTime))
	}
	if err == nil {
		_, err = fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n%s\n", protocol, line)
	}
	if err == nil && conn.SetDeadline(time.Time{}) == nil {
		join(conn, buffered.Reader, runner)
	}
}

// join moves bytes both ways. Each side's end ends the other, once everything that came before it has been passed on.
func join(conn net.Conn, from *bufio.Reader, runner io.ReadWriteCloser) {
	var wg sync.WaitGroup
	wg.Go(func() {
		_, _ = io.Copy(runner, from) // an end is an end
		_ = runner.Close()
	})
	_, _ = io.Copy(conn, runner) // likewise
	_ = conn.Close()
	wg.Wait()
}

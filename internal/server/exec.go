package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coder/websocket"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/control"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/frame"
)

// The channels: the first byte of a binary message.
const (
	channelInput  = 0
	channelOutput = 1
	channelErrors = 2
)

// The bounds of a command over a WebSocket.
const (
	maxMessage  = 1 << 20 // bytes a client may send at once
	chunk       = 32 << 10
	firstWord   = 10 * time.Second // for the client to say what to run
	pingEvery   = 20 * time.Second
	execRecheck = 30 * time.Second
	queuedInput = 16 // messages that wait for a command that does not read; then the client waits
)

// process is a command that runs: *control.Process, at the other end of which is a sandbox.
type process interface {
	Stdin() io.WriteCloser
	Stdout() io.ReadCloser
	Stderr() io.ReadCloser
	Signal(n int) error
	Resize(rows, cols uint16) error
	Wait() (frame.Exit, error)
	Close() error
}

// execStream runs a command for a client at a WebSocket. What can be refused is refused before the protocols are switched, as a problem.
func (s *Server) execStream(w http.ResponseWriter, r *http.Request, c *call) error {
	if err := s.mayExec(r, c); err != nil {
		return err
	}
	conn, err := websocket.Accept(w, r, &websocket.AcceptOptions{InsecureSkipVerify: true}) // the origin was checked by mayExec
	if err != nil {
		return nil // Accept has answered
	}
	defer conn.CloseNow()
	conn.SetReadLimit(maxMessage)
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	in, err := firstMessage(ctx, conn)
	if err != nil {
		return s.execRefused(ctx, conn, err)
	}
	p, err := s.control.Exec(ctx, c.actor, r.PathValue("id"), in)
	if err != nil {
		return s.execRefused(ctx, conn, err)
	}
	defer p.Close()
	t := &terminal{s: s, conn: conn, p: p, call: c}
	if err := t.say(ctx, api.ExecMessage{Started: &api.ExecStarted{Run: p.Run}}); err != nil {
		return nil
	}
	t.serve(ctx, cancel)
	return nil
}

// mayExec checks all that Exec will, but what to run. A browser sends its cookies to a WebSocket from any page, and asks nobody (cross-site WebSocket
// hijacking): with a cookie the origin must be ours.
func (s *Server) mayExec(r *http.Request, c *call) error {
	if err := only(r); err != nil {
		return err
	}
	if !strings.EqualFold(r.Header.Get("Upgrade"), "websocket") {
		return &refusal{status: http.StatusUpgradeRequired, code: codeUnsupported, detail: "this is a WebSocket", hint: "or POST to the same path to run a command as one request"}
	}
	if c.cookie {
		origin, err := url.Parse(r.Header.Get("Origin"))
		if err != nil || !strings.EqualFold(origin.Host, r.Host) && origin.Scheme+"://"+origin.Host != s.base.Scheme+"://"+s.base.Host {
			return fault.New(fault.Denied, "this request comes from another site")
		}
	}
	if err := s.may(r.Context(), c, control.WriteSandboxes); err != nil {
		return err
	}
	_, err := s.control.Sandbox(r.Context(), c.actor, r.PathValue("id"))
	return err
}

func firstMessage(ctx context.Context, conn *websocket.Conn) (api.Exec, error) {
	ctx, cancel := context.WithTimeout(ctx, firstWord)
	defer cancel()
	var in api.Exec
	kind, text, err := conn.Read(ctx)
	if err != nil {
		return in, err
	}
	if kind != websocket.MessageText {
		return in, fault.New(fault.Invalid, "the first message must be text: what to run")
	}
	return in, decode(text, &in)
}

// decode reads one document, of which every member is known.
func decode(text []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return fault.New(fault.Invalid, "the message is not valid")
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return fault.New(fault.Invalid, "the message is not one document")
	}
	return nil
}

// execRefused tells a client that it is no use.
func (s *Server) execRefused(ctx context.Context, conn *websocket.Conn, err error) error {
	p := s.problem(ctx, err)
	ctx, cancel := context.WithTimeout(ctx, firstWord)
	defer cancel()
	if text, err := json.Marshal(api.ExecMessage{Error: &p.Problem}); err == nil {
		_ = conn.Write(ctx, websocket.MessageText, text) // the client may have gone
	}
	_ = conn.Close(websocket.StatusPolicyViolation, p.Code)
	return nil
}

// terminal is a command and the client that uses it.
type terminal struct {
	s    *Server
	conn *websocket.Conn
	p    process
	call *call
	// waits counts who waits for the client, or for the command: a ping that is not answered then says nothing.
	waits atomic.Int32
}

func (t *terminal) say(ctx context.Context, m api.ExecMessage) error {
	text, err := json.Marshal(m)
	if err != nil {
		return err
	}
	return t.write(ctx, websocket.MessageText, text)
}

// write waits for a client that reads slowly as long as it takes, so that the command waits too. A client that is gone is found by TCP.
func (t *terminal) write(ctx context.Context, kind websocket.MessageType, b []byte) error {
	t.waits.Add(1)
	defer t.waits.Add(-1)
	return t.conn.Write(ctx, kind, b)
}

// serve pumps both ways until the command ends or the client goes, and ends the command then.
func (t *terminal) serve(ctx context.Context, cancel context.CancelFunc) {
	input := make(chan []byte, queuedInput)
	var all, outputs sync.WaitGroup
	all.Go(func() { t.feed(ctx, input) })
	all.Go(func() {
		defer cancel()
		defer close(input)
		t.listen(ctx, input)
	})
	all.Go(func() { t.watch(ctx, cancel) })
	outputs.Go(func() { t.pump(ctx, t.p.Stdout(), channelOutput) })
	outputs.Go(func() { t.pump(ctx, t.p.Stderr(), channelErrors) })
	stop := context.AfterFunc(ctx, func() { _ = t.p.Close() }) // ends the command, and every wait for it
	defer stop()
	outputs.Wait()
	exit, err := t.p.Wait()
	if ctx.Err() == nil {
		m := api.ExecMessage{Exit: &api.ExecExit{Code: exit.Code, Signal: exit.Signal, Error: exit.Error}}
		if err != nil {
			p := t.s.problem(ctx, fault.New(fault.Unavailable, "the sandbox is gone").Because(err))
			m = api.ExecMessage{Error: &p.Problem}
		}
		if t.say(ctx, m) == nil {
			_ = t.conn.Close(websocket.StatusNormalClosure, "")
		}
	}
	cancel()
	_ = t.conn.CloseNow()
	_ = t.p.Close()
	all.Wait()
}

// pump sends what the command says.
func (t *terminal) pump(ctx context.Context, from io.ReadCloser, channel byte) {
	defer from.Close()
	b := make([]byte, 1+chunk)
	b[0] = channel
	for {
		n, err := from.Read(b[1:])
		if n > 0 && t.write(ctx, websocket.MessageBinary, b[:1+n]) != nil {
			return
		}
		if err != nil {
			return
		}
	}
}

// feed hands input to the command, in order, so that listen stays free for signals while the command does not read.
func (t *terminal) feed(ctx context.Context, input <-chan []byte) {
	stdin := t.p.Stdin()
	defer stdin.Close()
	for b := range input {
		if b == nil { // the end
			_ = stdin.Close()
			continue
		}
		if _, err := stdin.Write(b); err != nil { // it reads no more; what comes now is for nobody
			for range input {
			}
			return
		}
	}
}

// listen reads what the client says until it goes.
func (t *terminal) listen(ctx context.Context, input chan<- []byte) {
	for {
		kind, b, err := t.conn.Read(ctx)
		if err != nil {
			return
		}
		if kind == websocket.MessageText {
			err = t.obey(ctx, b, input)
		} else if len(b) < 1 || b[0] != channelInput {
			err = fault.New(fault.Invalid, "clients send channel 0 only")
		} else if len(b) > 1 {
			err = t.queue(ctx, input, b[1:])
		}
		if err != nil {
			_ = t.conn.Close(websocket.StatusPolicyViolation, "not understood")
			return
		}
	}
}

func (t *terminal) queue(ctx context.Context, input chan<- []byte, b []byte) error {
	t.waits.Add(1)
	defer t.waits.Add(-1)
	select {
	case input <- b:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (t *terminal) obey(ctx context.Context, text []byte, input chan<- []byte) error {
	var m api.ExecControl
	if err := decode(text, &m); err != nil {
		return err
	}
	switch {
	case m.Resize != nil:
		_ = t.p.Resize(m.Resize[0], m.Resize[1]) // a command that has ended, or has no terminal, has no size
	case m.Signal > 0 && m.Signal <= 64:
		_ = t.p.Signal(m.Signal) // nor does it hear
	case m.CloseStdin:
		return t.queue(ctx, input, nil)
	default:
		return fmt.Errorf("nothing said")
	}
	return nil
}

// watch ends it when the client is dead, or no longer signed in.
func (t *terminal) watch(ctx context.Context, cancel context.CancelFunc) {
	ping, check := time.NewTicker(pingEvery), time.NewTicker(execRecheck)
	defer ping.Stop()
	defer check.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-check.C:
			if err := t.s.still(ctx, t.call); err != nil {
				_ = t.conn.Close(websocket.StatusPolicyViolation, codeUnauthenticated)
				cancel()
				return
			}
		case <-ping.C:
			within, done := context.WithTimeout(ctx, pingEvery)
			err := t.conn.Ping(within)
			done()
			if err != nil && t.waits.Load() == 0 {
				cancel()
				return
			}
		}
	}
}

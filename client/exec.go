package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/coder/websocket"

	"github.com/cofferdam/cofferdam/api"
)

// The channels: the first byte of a binary message.
const (
	channelInput  = 0
	channelOutput = 1
	channelErrors = 2
)

// maxMessage bounds what the server sends at once; it sends 32 KiB.
const maxMessage = 1 << 20

// Streams are what a command is connected with. What is nil is empty, or thrown away.
type Streams struct {
	Stdin  io.Reader
	Stdout io.Writer
	Stderr io.Writer
	Resize <-chan [2]uint16 // rows, columns
	Signal <-chan int
	// Started is called with the command's identifier when it runs.
	Started func(run string)
}

// Exec runs one more command in a running sandbox and returns how it ended, after all that it said was written. If ctx ends the command is ended.
// A Read of Stdin that is under way at the end is not waited for.
func (c *Client) Exec(ctx context.Context, sandbox string, in api.Exec, streams Streams) (api.ExecExit, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	conn, err := c.upgrade(ctx, at("sandboxes", sandbox, "exec"))
	if err != nil {
		return api.ExecExit{}, err
	}
	defer conn.CloseNow()
	conn.SetReadLimit(maxMessage)
	if err := tell(ctx, conn, in); err != nil {
		return api.ExecExit{}, err
	}
	run := &command{conn: conn, streams: streams}
	exit, err := run.read(ctx)
	if err != nil && ctx.Err() != nil {
		err = ctx.Err()
	}
	return exit, err
}

func (c *Client) upgrade(ctx context.Context, path string) (*websocket.Conn, error) {
	header := http.Header{"User-Agent": {c.agent}}
	if c.token != "" {
		header.Set("Authorization", "Bearer "+c.token)
	}
	conn, answer, err := websocket.Dial(ctx, c.base.String()+prefix+path, &websocket.DialOptions{HTTPClient: c.http, HTTPHeader: header})
	if err == nil {
		return conn, nil
	}
	if answer != nil && answer.StatusCode != http.StatusSwitchingProtocols && answer.Body != nil {
		defer answer.Body.Close()
		return nil, readError(answer)
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	return nil, fmt.Errorf("%w: %w", errTransport, err)
}

func tell(ctx context.Context, conn *websocket.Conn, v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode the request: %w", err)
	}
	return conn.Write(ctx, websocket.MessageText, text)
}

// command is one that runs.
type command struct {
	conn    *websocket.Conn
	streams Streams
}

// read reads what the server says until the end.
func (r *command) read(ctx context.Context) (api.ExecExit, error) {
	for {
		kind, b, err := r.conn.Read(ctx)
		if err != nil {
			return api.ExecExit{}, fmt.Errorf("%w: %w", errTransport, err)
		}
		if kind == websocket.MessageBinary {
			if err := r.output(b); err != nil {
				return api.ExecExit{}, err
			}
			continue
		}
		var m api.ExecMessage
		if err := json.Unmarshal(b, &m); err != nil {
			return api.ExecExit{}, fmt.Errorf("read a message: %w", err)
		}
		switch {
		case m.Exit != nil:
			_ = r.conn.Close(websocket.StatusNormalClosure, "")
			return *m.Exit, nil
		case m.Error != nil:
			return api.ExecExit{}, fromProblem(*m.Error)
		case m.Started != nil:
			if r.streams.Started != nil {
				r.streams.Started(m.Started.Run)
			}
			go r.input(ctx)
			go r.control(ctx)
		}
	}
}

func (r *command) output(b []byte) error {
	if len(b) < 1 {
		return errors.New("read output: an empty message")
	}
	var to io.Writer
	switch b[0] {
	case channelOutput:
		to = r.streams.Stdout
	case channelErrors:
		to = r.streams.Stderr
	default:
		return fmt.Errorf("read output: channel %d", b[0])
	}
	if to == nil {
		return nil
	}
	_, err := to.Write(b[1:])
	return err
}

// input sends what the command is to read. The server takes it as fast as the command does.
func (r *command) input(ctx context.Context) {
	if r.streams.Stdin != nil {
		b := make([]byte, 1+32<<10)
		b[0] = channelInput
		for {
			n, err := r.streams.Stdin.Read(b[1:])
			if n > 0 && r.conn.Write(ctx, websocket.MessageBinary, b[:1+n]) != nil {
				return
			}
			if err != nil {
				break
			}
		}
	}
	_ = tell(ctx, r.conn, api.ExecControl{CloseStdin: true}) // the connection may be gone, and the command with it
}

// control sends sizes and signals until ctx ends.
func (r *command) control(ctx context.Context) {
	for {
		var m api.ExecControl
		select {
		case size, ok := <-r.streams.Resize:
			if !ok {
				r.streams.Resize = nil
				continue
			}
			m.Resize = &size
		case n, ok := <-r.streams.Signal:
			if !ok {
				r.streams.Signal = nil
				continue
			}
			m.Signal = n
		case <-ctx.Done():
			return
		}
		if tell(ctx, r.conn, m) != nil {
			return
		}
	}
}

package keeper

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/frame"
	"github.com/cofferdam/cofferdam/internal/ident"
)

// patience bounds one call; ctx may end it sooner.
const patience = 30 * time.Second

// Client speaks with one keeper. It is safe for concurrent use.
type Client struct {
	state string
	run   ident.Run
	http  *http.Client
}

// Dial returns a client for a running sandbox's keeper. fault.NotFound: there is none any more.
func Dial(ctx context.Context, state string, run ident.Run) (*Client, error) {
	if _, err := ident.ParseRun(run.String()); err != nil {
		return nil, fault.New(fault.Invalid, "%v", err)
	}
	c := &Client{state: state, run: run}
	c.http = &http.Client{Transport: &http.Transport{
		DialContext:        func(ctx context.Context, _, _ string) (net.Conn, error) { return c.connect(ctx) },
		DisableKeepAlives:  true, // callers come for one call: what they left open would count against those that a keeper takes
		DisableCompression: true, MaxResponseHeaderBytes: 16 << 10,
	}}
	conn, err := c.connect(ctx)
	if err != nil {
		return nil, err
	}
	return c, conn.Close()
}

func (c *Client) connect(ctx context.Context) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	conn, err := connect(ctx, c.state, c.run)
	switch {
	case err == nil:
		return conn, nil
	case absent(err):
		sweep(c.state, c.run)
		return nil, fault.New(fault.NotFound, "no sandbox %s runs", c.run)
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	}
	return nil, fault.New(fault.Unavailable, "the keeper of sandbox %s does not answer", c.run).Because(err)
}

// request makes a call; the host of its URL is only a name.
func request(ctx context.Context, method, path string, body any) (*http.Request, error) {
	var data []byte
	if body != nil {
		var err error
		if data, err = json.Marshal(body); err != nil {
			return nil, fmt.Errorf("encode a call to a keeper: %w", err)
		}
		if len(data) > maxBody {
			return nil, fault.New(fault.Invalid, "the message has more than %d bytes", maxBody)
		}
	}
	return http.NewRequestWithContext(ctx, method, "http://keeper"+path, bytes.NewReader(data))
}

// do makes a call and decodes its answer, unless into is nil.
func (c *Client) do(ctx context.Context, method, path string, body, into any) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	r, err := request(ctx, method, path, body)
	if err != nil {
		return err
	}
	answer, err := c.http.Do(r)
	if err != nil {
		return c.lost(ctx, err)
	}
	defer answer.Body.Close()
	if answer.StatusCode >= 300 {
		return refused(answer)
	}
	if into == nil {
		return nil
	}
	if err := decode(answer.Body, maxBody, into); err != nil {
		return fault.New(fault.Unavailable, "the keeper of sandbox %s sent what is no answer", c.run).Because(err)
	}
	return nil
}

// lost explains a call without an answer. A keeper that hung up because its sandbox has ended does not listen any more.
func (c *Client) lost(ctx context.Context, err error) error {
	if _, ours := errors.AsType[*fault.Error](err); ours {
		return err
	}
	if ctx.Err() != nil && !errors.Is(context.Cause(ctx), context.DeadlineExceeded) {
		return context.Cause(ctx)
	}
	if ctx.Err() == nil {
		again, gone := c.connect(ctx)
		switch {
		case gone == nil:
			_ = again.Close() // it was only asked whether it listens
		case fault.KindOf(gone) == fault.NotFound:
			return gone
		}
	}
	return fault.New(fault.Unavailable, "the keeper of sandbox %s does not answer", c.run).Because(err)
}

// refused reads the problem that an answer tells.
func refused(answer *http.Response) error {
	var p problem
	if err := decode(answer.Body, maxLine, &p); err != nil {
		return fault.New(fault.Unavailable, "the keeper answered with status %d", answer.StatusCode).Because(err)
	}
	p.Error, p.Hint = frame.Inert(p.Error, maxLine), frame.Inert(p.Hint, maxLine)
	return p.err()
}

// Status asks how the sandbox is.
func (c *Client) Status(ctx context.Context) (s Status, err error) {
	return s, c.do(ctx, http.MethodGet, "/status", nil, &s)
}

// SetPolicy puts another policy in force; what it denies and is open is cut before SetPolicy returns. fault.Conflict: a running sandbox cannot have it.
func (c *Client) SetPolicy(ctx context.Context, p NewPolicy) error {
	return c.do(ctx, http.MethodPut, "/policy", p, nil)
}

// SetDeadline sets when the sandbox ends.
func (c *Client) SetDeadline(ctx context.Context, d NewDeadline) error {
	return c.do(ctx, http.MethodPut, "/deadline", d, nil)
}

// Pause stops every process of the sandbox, or lets them go on, and returns when that is so. fault.Conflict: it is so already, or the sandbox is about to
// end. fault.Unsupported: this sandbox cannot be paused.
func (c *Client) Pause(ctx context.Context, paused bool) error {
	return c.do(ctx, http.MethodPut, "/paused", Pause{Paused: paused}, nil)
}

// Stop ends the sandbox and returns when that was taken note of, not when it is gone.
func (c *Client) Stop(ctx context.Context, reason string) error {
	return c.do(ctx, http.MethodPost, "/stop", Stop{Reason: reason}, nil)
}

// Answer answers an Ask. fault.NotFound: it was answered, or has gone.
func (c *Client) Answer(ctx context.Context, id string, a Answer) error {
	return c.do(ctx, http.MethodPost, "/asks/"+url.PathEscape(id), a, nil)
}

// Events calls on for each event until ctx ends or the keeper is gone; first for every Ask that waits already, and every once-rule used so far.
// A keeper that says nothing at all for a while counts as gone.
func (c *Client) Events(ctx context.Context, on func(Event)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r, err := request(ctx, http.MethodGet, "/events", nil)
	if err != nil {
		return err
	}
	silence := time.AfterFunc(4*quietTime, cancel)
	defer silence.Stop()
	answer, err := c.http.Do(r)
	if err != nil {
		return c.lost(ctx, err)
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return refused(answer)
	}
	lines := bufio.NewScanner(answer.Body)
	lines.Buffer(make([]byte, 4<<10), maxLine)
	for lines.Scan() {
		silence.Reset(4 * quietTime)
		if len(lines.Bytes()) == 0 {
			continue
		}
		var e Event
		if err := decode(bytes.NewReader(lines.Bytes()), maxLine, &e); err != nil {
			return fault.New(fault.Unavailable, "the keeper of sandbox %s sent what is no event", c.run).Because(err)
		}
		on(e)
		if e.Type == "ended" {
			return nil
		}
	}
	return c.lost(ctx, errors.Join(errors.New("the events have ended"), lines.Err()))
}

// Exec starts one more command and returns when it runs, or cannot be started: then Wait says why.
func (c *Client) Exec(ctx context.Context, e Exec) (*Process, error) {
	conn, err := c.connect(ctx)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	joined, prepared, err := c.upgrade(ctx, conn, e)
	if err != nil {
		_ = conn.Close() // nothing runs by it
		return nil, err
	}
	if !stop() {
		_ = conn.Close() // likewise
		return nil, context.Cause(ctx)
	}
	return StartProcess(ctx, joined, frame.Start{
		Args: e.Command, Env: prepared.Env, Dir: prepared.Dir, TTY: e.TTY, Rows: e.Rows, Cols: e.Cols, NoStdin: e.NoStdin, Self: e.Self,
	})
}

// upgrade asks for a command and returns the connection to the runner.
func (c *Client) upgrade(ctx context.Context, conn net.Conn, e Exec) (io.ReadWriteCloser, Prepared, error) {
	var prepared Prepared
	r, err := request(ctx, http.MethodPost, "/exec", e)
	if err != nil {
		return nil, prepared, err
	}
	r.Header.Set("Connection", "Upgrade")
	r.Header.Set("Upgrade", protocol)
	if err := errors.Join(conn.SetDeadline(time.Now().Add(patience)), r.Write(conn)); err != nil {
		return nil, prepared, c.lost(ctx, err)
	}
	head := &io.LimitedReader{R: conn, N: 64 << 10}
	from := bufio.NewReader(head)
	answer, err := http.ReadResponse(from, r)
	if err != nil {
		return nil, prepared, c.lost(ctx, err)
	}
	if answer.StatusCode != http.StatusSwitchingProtocols {
		return nil, prepared, refused(answer)
	}
	head.N = maxPrepared
	line, err := from.ReadString('\n')
	if err != nil {
		return nil, prepared, c.lost(ctx, err)
	}
	if err := decode(strings.NewReader(line), maxPrepared, &prepared); err != nil {
		return nil, prepared, fault.New(fault.Unavailable, "the keeper of sandbox %s sent what is no answer", c.run).Because(err)
	}
	head.N = 1<<63 - 1 // from here on package frame bounds what is read
	return &joinedConn{Conn: conn, from: from}, prepared, conn.SetDeadline(time.Time{})
}

// joinedConn is a connection of which some bytes were read ahead.
type joinedConn struct {
	net.Conn
	from io.Reader
}

// Read reads what was read ahead first.
func (c *joinedConn) Read(p []byte) (int, error) { return c.from.Read(p) }

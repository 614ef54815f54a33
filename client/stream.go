package client

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/cofferdam/cofferdam/api"
)

// maxLine bounds one line of an event stream: output comes 64 KiB at a time, in base64.
const maxLine = 1 << 20

// silence is how long an event stream may say nothing; the server gives a sign of life every 15 seconds.
const silence = 60 * time.Second

// Events calls on for each event of the tenant after an identifier, and as they happen, until ctx ends, on fails, or the caller is no longer let in.
// after < 0 begins now. Where the connection breaks it goes on from the last event: none is missed, none comes twice.
func (c *Client) Events(ctx context.Context, after int64, on func(api.Event) error) error {
	q := url.Values{}
	return c.follow(ctx, "/events", q, "after", after, func(_ string, data []byte) error {
		var e api.Event
		if err := json.Unmarshal(data, &e); err != nil {
			return fmt.Errorf("read an event: %w", err)
		}
		return stopping(on(e))
	})
}

// Output returns what a sandbox's main command said from an offset on, and the offset to go on from.
func (c *Client) Output(ctx context.Context, id string, offset int64) (data []byte, next int64, err error) {
	q := url.Values{"offset": {strconv.FormatInt(offset, 10)}}
	answer, err := c.send(ctx, request{method: http.MethodGet, path: at("sandboxes", id, "output"), query: q}, "")
	if err != nil {
		return nil, offset, err
	}
	defer answer.Body.Close()
	if data, err = io.ReadAll(io.LimitReader(answer.Body, maxAnswer)); err != nil {
		return nil, offset, err
	}
	next, err = strconv.ParseInt(answer.Header.Get("Cofferdam-Next-Offset"), 10, 64)
	return data, next, err
}

// FollowOutput writes what a sandbox's main command says from an offset on, until it has ended. It survives broken connections.
func (c *Client) FollowOutput(ctx context.Context, id string, offset int64, w io.Writer) error {
	q := url.Values{"follow": {"true"}}
	return c.follow(ctx, at("sandboxes", id, "output"), q, "offset", offset, func(_ string, data []byte) error {
		var o api.Output
		if err := json.Unmarshal(data, &o); err != nil {
			return fmt.Errorf("read output: %w", err)
		}
		if _, err := w.Write(o.Data); err != nil {
			return stopping(err)
		}
		if o.Ended {
			return stopping(io.EOF)
		}
		return nil
	})
}

// stop is an error of whoever is told: no reason to connect anew.
type stop struct{ err error }

func (s stop) Error() string { return s.err.Error() }
func (s stop) Unwrap() error { return s.err }

func stopping(err error) error {
	if err == nil {
		return nil
	}
	return stop{err}
}

// follow reads a stream of events, and connects again where it breaks, from the last event on.
func (c *Client) follow(ctx context.Context, path string, q url.Values, place string, from int64, on func(name string, data []byte) error) error {
	wait := firstWait
	for {
		if from >= 0 {
			q.Set(place, strconv.FormatInt(from, 10))
		}
		before := from
		err := c.listen(ctx, path, q, &from, on)
		if s, ok := errors.AsType[stop](err); ok {
			if errors.Is(s.err, io.EOF) {
				return nil
			}
			return s.err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if e, ok := errors.AsType[*Error](err); ok && e.Status < 500 && e.Status != http.StatusTooManyRequests {
			return err
		}
		if from != before {
			wait = firstWait
		}
		select {
		case <-time.After(wait):
			wait = min(2*wait, longestWait)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (c *Client) listen(ctx context.Context, path string, q url.Values, from *int64, on func(name string, data []byte) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	answer, err := c.send(ctx, request{method: http.MethodGet, path: path, query: q, header: http.Header{"Accept": {"text/event-stream"}}}, "")
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	quiet := time.AfterFunc(silence, cancel) // a connection can die without a word
	defer quiet.Stop()
	lines := bufio.NewScanner(answer.Body)
	lines.Buffer(make([]byte, 0, 64<<10), maxLine)
	e := sseEvent{id: -1}
	for lines.Scan() {
		quiet.Reset(silence)
		if !e.line(lines.Text()) {
			continue
		}
		if e.name == "end" {
			return ended(e.data.Bytes())
		}
		if err := on(e.name, e.data.Bytes()); err != nil {
			return err
		}
		if e.id >= 0 {
			*from = e.id
		}
		e = sseEvent{id: -1}
	}
	return errors.Join(errTransport, lines.Err())
}

// ended reads why the server ends a stream.
func ended(data []byte) error {
	var p api.Problem
	if err := json.Unmarshal(data, &p); err != nil {
		return errTransport
	}
	return fromProblem(p)
}

// sseEvent is one event as it comes together.
type sseEvent struct {
	id   int64
	name string
	data bytes.Buffer
}

// line takes one line; true: the event is complete, and says something.
func (e *sseEvent) line(text string) bool {
	if text == "" {
		return e.data.Len() > 0
	}
	field, value, _ := strings.Cut(text, ":")
	value = strings.TrimPrefix(value, " ")
	switch field {
	case "id":
		if n, err := strconv.ParseInt(value, 10, 64); err == nil {
			e.id = n
		}
	case "event":
		e.name = value
	case "data":
		if e.data.Len() > 0 {
			e.data.WriteByte('\n')
		}
		e.data.WriteString(value)
	}
	return false
}

package vm

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/cofferdam/cofferdam/internal/frame"
)

// The bounds of what an API may answer: those that are asked for here are a few hundred bytes. The wait is QEMU's.
const (
	apiLine    = 4 << 10
	apiHeaders = 32
	apiBody    = 64 << 10
)

// api speaks as much of HTTP/1.1 as the API of a machine's program needs, over one connection: a request, then its answer. The supervisor has no other HTTP, since it never
// reads what a sandbox wrote to the network. One request is on its way at a time; the caller sees to that.
type api struct {
	conn io.ReadWriteCloser
	in   *bufio.Reader
	lost error // after which nothing on the connection can be believed to be the answer to anything
}

func newAPI(conn io.ReadWriteCloser) *api {
	return &api{conn: conn, in: bufio.NewReaderSize(conn, apiLine)}
}

// do carries out one call of the API's first version and decodes what it returns.
func (a *api) do(ctx context.Context, method, call string, result any) error {
	if a.lost != nil {
		return a.lost
	}
	ctx, cancel := context.WithTimeout(ctx, qmpPatience)
	defer cancel()
	if timed, ok := a.conn.(interface{ SetDeadline(time.Time) error }); ok {
		defer context.AfterFunc(ctx, func() { _ = timed.SetDeadline(time.Unix(1, 0)) })() // at once
	}
	status, body, err := a.exchange(method, call)
	if err != nil {
		a.lost = fmt.Errorf("speak to the machine's program about %s: %w", call, errors.Join(ctx.Err(), err))
		return a.lost
	}
	if status < 200 || status > 299 {
		return errors.New(frame.Inert(fmt.Sprintf("the machine's program refuses %s with %d: %s", call, status, body), qmpText))
	}
	if result == nil {
		return nil
	}
	if err := json.Unmarshal(body, result); err != nil {
		return fmt.Errorf("the answer to %s is no JSON: %w", call, err)
	}
	return nil
}

func (a *api) exchange(method, call string) (status int, body []byte, err error) {
	request := method + " /api/v1/" + call + " HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\nContent-Length: 0\r\n\r\n"
	if _, err := io.WriteString(a.conn, request); err != nil {
		return 0, nil, err
	}
	line, err := a.line()
	if err != nil {
		return 0, nil, err
	}
	code, ok := strings.CutPrefix(line, "HTTP/1.1 ")
	if code, _, _ = strings.Cut(code, " "); !ok || len(code) != 3 {
		return 0, nil, errors.New("its answer is no HTTP/1.1")
	}
	if status, err = strconv.Atoi(code); err != nil || status < 200 {
		return 0, nil, errors.New("its answer has no final status")
	}
	length, err := a.headers()
	if err != nil {
		return 0, nil, err
	}
	body = make([]byte, length)
	_, err = io.ReadFull(a.in, body)
	return status, body, err
}

// headers reads up to the empty line and returns the length of what follows, which only one header tells here.
func (a *api) headers() (length int, err error) {
	told := false
	for range apiHeaders {
		line, err := a.line()
		if err != nil || line == "" {
			return length, err
		}
		name, value, ok := strings.Cut(line, ":")
		switch {
		case !ok:
			return 0, errors.New("a header of its answer has no colon")
		case strings.EqualFold(name, "Transfer-Encoding"):
			return 0, errors.New("its answer is in pieces")
		case strings.EqualFold(name, "Content-Length"):
			n, err := strconv.ParseUint(strings.TrimSpace(value), 10, 31)
			if err != nil || told || n > apiBody {
				return 0, errors.New("its answer is too long, or of two lengths, or of none")
			}
			length, told = int(n), true
		}
	}
	return 0, errors.New("its answer has too many headers")
}

func (a *api) line() (string, error) {
	line, err := a.in.ReadSlice('\n')
	return strings.TrimRight(string(line), "\r\n"), err
}

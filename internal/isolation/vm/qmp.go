package vm

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/frame"
)

// The bounds of what QEMU may say: the commands that are used here have answers of a few hundred bytes.
const (
	qmpLine     = 64 << 10
	qmpPatience = 20 * time.Second // for one answer; they take microseconds, but a busy host may not run QEMU for a while
	qmpText     = 300
	// qmpUsual is how many lines a start takes at most. After that each has to wait a little, so that one who talks without end costs this process next to nothing.
	qmpUsual = 100
)

// qmp speaks QEMU's machine protocol (docs/interop/qmp-spec). One command is on its way at a time; the caller sees to that.
type qmp struct {
	conn    io.ReadWriteCloser
	answers chan answer
}

// answer is a line that answers a command.
type answer struct {
	Return json.RawMessage `json:"return"`
	Error  *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
	err error
}

// newQMP waits for QEMU's greeting and takes over the connection. What QEMU says without being asked is read and dropped, so that it never waits for a reader.
func newQMP(ctx context.Context, conn io.ReadWriteCloser) (*qmp, error) {
	q := &qmp{conn: conn, answers: make(chan answer, 1)}
	greeted := make(chan struct{})
	go q.listen(greeted)
	select {
	case <-greeted:
	case a := <-q.answers:
		return nil, fmt.Errorf("QEMU did not greet: %w", a.failure())
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for QEMU: %w", ctx.Err())
	}
	return q, q.do(ctx, "qmp_capabilities", nil, nil)
}

// listen reads until the connection ends, which the owner of QEMU's process sees to.
func (q *qmp) listen(greeted chan<- struct{}) {
	lines := bufio.NewReaderSize(q.conn, qmpLine)
	first := true
	for n := 0; ; n++ {
		if n > qmpUsual {
			time.Sleep(breath)
		}
		line, err := lines.ReadSlice('\n')
		if err != nil {
			q.say(answer{err: fmt.Errorf("hear from QEMU: %w", err)})
			close(q.answers)
			return
		}
		var said struct {
			QMP   json.RawMessage `json:"QMP"`
			Event string          `json:"event"`
			answer
		}
		switch err := json.Unmarshal(line, &said); {
		case err != nil:
			q.say(answer{err: fmt.Errorf("QEMU's words are no JSON: %w", err)})
		case first && said.QMP != nil:
			first = false
			close(greeted)
		case said.Event != "":
		default:
			q.say(said.answer)
		}
	}
}

// say hands on an answer. One that nobody asked for is dropped when the next comes.
func (q *qmp) say(a answer) {
	select {
	case q.answers <- a:
	default:
	}
}

func (a answer) failure() error {
	if a.err != nil {
		return a.err
	}
	if a.Error != nil {
		return errors.New(frame.Inert(a.Error.Class+": "+a.Error.Desc, qmpText))
	}
	return nil
}

// do carries out one command and decodes what it returns.
func (q *qmp) do(ctx context.Context, command string, arguments map[string]any, result any) error {
	line, err := json.Marshal(map[string]any{"execute": command, "arguments": arguments})
	if arguments == nil {
		line, err = json.Marshal(map[string]any{"execute": command})
	}
	if err != nil {
		return err
	}
	if _, err := q.conn.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("tell QEMU to %s: %w", command, err)
	}
	return q.await(ctx, command, result)
}

func (q *qmp) await(ctx context.Context, command string, result any) error {
	ctx, cancel := context.WithTimeout(ctx, qmpPatience)
	defer cancel()
	select {
	case a, ok := <-q.answers:
		if !ok {
			return fmt.Errorf("QEMU is gone before %s", command)
		}
		if err := a.failure(); err != nil {
			return fmt.Errorf("QEMU's %s: %w", command, err)
		}
		if result == nil {
			return nil
		}
		if err := json.Unmarshal(a.Return, result); err != nil {
			return fmt.Errorf("QEMU's answer to %s: %w", command, err)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for QEMU's %s: %w", command, ctx.Err())
	}
}

func (q *qmp) pause(ctx context.Context) error  { return q.do(ctx, "stop", nil, nil) }
func (q *qmp) resume(ctx context.Context) error { return q.do(ctx, "cont", nil, nil) }

// ignoreShared leaves memory that is in a file out of a saved state.
func (q *qmp) ignoreShared(ctx context.Context) error {
	return q.do(ctx, "migrate-set-capabilities", map[string]any{"capabilities": []map[string]any{{"capability": "x-ignore-shared", "state": true}}}, nil)
}

func (q *qmp) save(ctx context.Context, state *os.File) error {
	if err := q.ignoreShared(ctx); err != nil {
		return err
	}
	if err := q.give(ctx, "state", state); err != nil {
		return err
	}
	if err := q.do(ctx, "migrate", map[string]any{"uri": "fd:state"}, nil); err != nil {
		return err
	}
	return q.migrated(ctx)
}

func (q *qmp) load(ctx context.Context, state descriptor) error {
	if err := q.ignoreShared(ctx); err != nil {
		return err
	}
	if err := q.do(ctx, "migrate-incoming", map[string]any{"uri": "fd:" + state.String()}, nil); err != nil {
		return err
	}
	return q.migrated(ctx)
}

// give sends QEMU an open file under a name.
func (q *qmp) give(ctx context.Context, name string, f *os.File) error {
	socket, ok := q.conn.(*os.File)
	if !ok {
		return errors.New("files go through sockets only")
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return err
	}
	line := []byte(`{"execute": "getfd", "arguments": {"fdname": "` + name + `"}}` + "\n")
	var sendErr error
	err = raw.Write(func(fd uintptr) bool {
		sendErr = unix.Sendmsg(int(fd), line, unix.UnixRights(int(f.Fd())), nil, unix.MSG_NOSIGNAL)
		return !errors.Is(sendErr, unix.EAGAIN)
	})
	if err := errors.Join(err, sendErr); err != nil {
		return fmt.Errorf("give QEMU a file: %w", err)
	}
	return q.await(ctx, "getfd", nil)
}

// migrated waits until the state has been written or read, which takes milliseconds.
func (q *qmp) migrated(ctx context.Context) error {
	for {
		var m struct {
			Status string `json:"status"`
			Desc   string `json:"error-desc"`
		}
		if err := q.do(ctx, "query-migrate", nil, &m); err != nil {
			return err
		}
		switch m.Status {
		case "completed":
			return nil
		case "failed", "cancelled":
			return errors.New("QEMU's state: " + frame.Inert(m.Status+": "+m.Desc, qmpText))
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for the machine's state: %w", ctx.Err())
		case <-time.After(time.Millisecond):
		}
	}
}

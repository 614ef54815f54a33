package call

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"

	"github.com/cofferdam/cofferdam/internal/fault"
)

// Client is the caller's side: a supervisor process of its own, for one sandbox.
type Client struct {
	conn *Conn
	cmd  *exec.Cmd // nil if somebody else has started it
	// process and carried belong to a supervisor that somebody else has started: by the one its end is noticed, the others go to it with Create.
	process *os.File
	left    chan struct{} // closed when it has left
	carried []*os.File
}

// Launch starts the supervisor's program as a child in a session of its own, so that keys pressed at the caller's terminal do not reach it.
// keep is passed on to be held open for the supervisor's life (a lock); it may be nil.
func Launch(program string, keep *os.File, stderr io.Writer) (*Client, error) {
	ours, theirs, err := Pair()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	cmd := exec.Command(program)
	cmd.Env = []string{"GOMAXPROCS=1"} // it needs nothing of the caller's environment, and one thread less makes it start sooner
	if path, ok := os.LookupEnv("PATH"); ok {
		cmd.Env = append(cmd.Env, "PATH="+path) // for newuidmap and newgidmap
	}
	cmd.Stderr = stderr
	cmd.ExtraFiles = []*os.File{theirs}
	if keep != nil {
		cmd.ExtraFiles = append(cmd.ExtraFiles, keep)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		_ = ours.Close() // nothing was said
		return nil, fault.New(fault.Unsupported, "cannot start the supervisor").WithHint("install cofferdam-supervisor beside cofferdam").Because(err)
	}
	return &Client{conn: NewConn(ours), cmd: cmd}, nil
}

// Ask sends a request and waits for its reply.
func (c *Client) Ask(r Request) (Reply, []*os.File, error) {
	if err := c.Tell(r); err != nil {
		return Reply{}, nil, c.gone(err)
	}
	return c.Next()
}

// Next waits for the next reply. A refusal comes back as an error.
func (c *Client) Next() (Reply, []*os.File, error) {
	var reply Reply
	files, err := c.conn.Receive(&reply)
	if err != nil {
		return Reply{}, nil, c.gone(err)
	}
	if reply.Refused != nil {
		closeAll(files)
		return Reply{}, nil, reply.Refused.Err()
	}
	return reply, files, nil
}

// Tell sends a request that has no reply of its own, or whose reply is taken by Next.
func (c *Client) Tell(r Request) error {
	if r.Create != nil {
		return c.conn.Send(r, c.carried...)
	}
	return c.conn.Send(r)
}

// ErrGone is in the chain of an error that means: the supervisor went without an answer, so that nobody knows what is left.
var ErrGone = errors.New("no answer")

// HangUp lets the supervisor leave while the caller does something else. Close waits for it.
func (c *Client) HangUp() { _ = c.conn.Close() }

// gone explains a broken connection.
func (c *Client) gone(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) {
		return fault.New(fault.Unavailable, "the supervisor is gone").Because(errors.Join(ErrGone, err))
	}
	return fmt.Errorf("talk to the supervisor: %w", err)
}

// Close hangs up, which ends the sandbox if it still lives, and waits until the supervisor has cleaned up and left.
func (c *Client) Close(ctx context.Context) error {
	c.HangUp() // the supervisor reads the end
	if c.cmd == nil {
		return c.outlive(ctx)
	}
	stop := context.AfterFunc(ctx, func() { _ = c.cmd.Process.Kill() })
	defer stop()
	if err := c.cmd.Wait(); err != nil {
		return fmt.Errorf("supervisor: %w", err)
	}
	return nil
}

package main

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/client"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/frame"
	"github.com/cofferdam/cofferdam/internal/terminal"
)

// remoteCommand is a command in a sandbox of a server, joined to the person at this terminal.
//
// What a terminal needs (raw mode, suspending, sizes, notices between the lines, an orderly screen at the end) is package terminal's, which speaks to a
// runner. Here the runner is this process: it hands everything on to the server.
type remoteCommand struct {
	r       *remote
	sandbox string
	exec    api.Exec
	stdin   *os.File
	stdout  io.Writer
	stderr  io.Writer
	signals <-chan os.Signal
	// attached is called with the session before the command starts; may be nil.
	attached func(*terminal.Session)
	// kill is called for the second interrupt in a row; the session ends then. May be nil.
	kill   func()
	killed atomic.Bool
}

// run runs the command until it has ended and its output is written. When ctx ends the command is ended.
func (c *remoteCommand) run(ctx context.Context) (frame.Exit, error) {
	running, cancel := context.WithCancel(ctx)
	defer cancel()
	ours, theirs := net.Pipe()
	token, text := terminal.NewToken()
	b := &bridge{command: c, conn: theirs, signals: make(chan int, 16), sizes: make(chan [2]uint16, 1), starts: make(chan frame.Start, 1)}
	var over sync.WaitGroup
	over.Go(func() { b.run(running, text) })
	defer over.Wait()
	defer cancel()
	session, err := terminal.Attach(ctx, ours, terminal.Options{
		Token: token, Start: frame.Start{Args: c.exec.Command, Dir: c.exec.Dir, TTY: c.exec.TTY},
		Stdin: c.stdin, Stdout: c.stdout, Stderr: c.stderr, Signals: c.signals,
		Kill: func() {
			c.killed.Store(true)
			if c.kill != nil {
				c.kill()
			}
			cancel()
		},
	})
	if err != nil {
		return frame.Exit{}, err
	}
	if c.attached != nil {
		c.attached(session)
	}
	exit, err := session.Run(ctx)
	cancel()
	over.Wait()
	if c.killed.Load() && ctx.Err() == nil {
		return frame.Exit{Signal: int(syscall.SIGINT)}, nil
	}
	if err != nil && b.err != nil && !errors.Is(b.err, context.Canceled) {
		return exit, c.lost(b.err) // says more than that the session's runner has gone
	}
	return exit, err
}

// lost says what it means that the connection broke. What the server itself said stays.
func (c *remoteCommand) lost(err error) error {
	if _, told := errors.AsType[*fault.Error](err); told {
		return err
	}
	return fault.New(fault.Unavailable, "the connection to %s broke, and with it the command ended", c.r.URL).Because(err)
}

// bridge is the runner's side of a session: it translates between frames and the server.
type bridge struct {
	command *remoteCommand
	conn    net.Conn
	link    *frame.Link
	starts  chan frame.Start
	signals chan int
	sizes   chan [2]uint16
	err     error // of the server; read after run
}

// run serves the session until it ends.
func (b *bridge) run(ctx context.Context, token string) {
	defer b.conn.Close()
	hello := frame.Hello{Token: []byte(token)}
	if err := frame.WriteHello(b.conn, hello); err != nil {
		return // the session was given up before it began
	}
	clear(hello.Token)
	b.link = frame.NewRunner(b.conn, frame.Handlers{
		Start:  func(s frame.Start) error { b.starts <- s; return nil }, // once, as the link guarantees
		Signal: func(n int) error { b.signal(n); return nil },
		Resize: func(rows, cols uint16) error { b.resize(rows, cols); return nil },
		Stopped: func(frame.Stream) {
			b.signal(int(syscall.SIGPIPE)) // as its own kernel would tell a command whose reader has left
		},
	})
	linked := make(chan struct{})
	go func() { // ends with the connection, which is closed before this function returns
		_ = b.link.Run(ctx) // the session says why
		close(linked)
	}()
	defer func() { b.link.End(); <-linked }()
	var start frame.Start
	select {
	case start = <-b.starts:
	case <-linked:
		return
	}
	exit, err := b.serve(ctx, start)
	if err != nil {
		b.err = err
		return
	}
	_ = b.link.SendExit(exit) // to a session that has ended nothing is to be said
	b.link.Sender(frame.Stdout).Close()
	b.link.Sender(frame.Stderr).Close()
	select {
	case <-b.link.Drained():
		<-linked // the session hangs up when it has written everything
	case <-linked:
	}
}

// serve runs the command at the server.
func (b *bridge) serve(ctx context.Context, start frame.Start) (frame.Exit, error) {
	c := b.command
	in := c.exec
	in.Rows, in.Cols = start.Rows, start.Cols
	run := ""
	streams := client.Streams{
		Stdout: &untilStopped{to: b.link.Sender(frame.Stdout)}, Stderr: &untilStopped{to: b.link.Sender(frame.Stderr)}, Resize: b.sizes, Signal: b.signals,
		Started: func(id string) { run = id; _ = b.link.SendStarted(0) }, // likewise
	}
	if !start.NoStdin {
		streams.Stdin = b.link.Receiver(frame.Stdin)
	}
	defer b.link.Receiver(frame.Stdin).Stop()
	end, err := c.r.Exec(ctx, c.sandbox, in, streams)
	if err != nil {
		return frame.Exit{}, err
	}
	exit := frame.Exit{Code: end.Code, Signal: end.Signal, Error: end.Error}
	if end.Error != "" {
		exit.NotFound = c.r.notFound(ctx, c.sandbox, run)
	}
	return exit, nil
}

// notFound says whether a command could not be started since there is none: its run tells that by the code that shells use.
func (r *remote) notFound(ctx context.Context, sandbox, run string) bool {
	page, err := r.Runs(ctx, sandbox, client.Page{})
	for _, one := range page.Items {
		if err == nil && one.ID == run && one.ExitCode != nil {
			return *one.ExitCode == exitNotFound
		}
	}
	return false
}

// signal hands on a signal. Like signals themselves, too many are lost.
func (b *bridge) signal(n int) {
	select {
	case b.signals <- n:
	default:
	}
}

// resize hands on a size; of sizes only the last one matters.
func (b *bridge) resize(rows, cols uint16) {
	select {
	case <-b.sizes:
	default:
	}
	b.sizes <- [2]uint16{rows, cols} // this is the only one that sends
}

// untilStopped writes to a session, and throws away what comes after its reader has left: the command is told by a signal, and may go on.
type untilStopped struct{ to io.Writer }

// Write writes.
func (w *untilStopped) Write(p []byte) (int, error) {
	n, err := w.to.Write(p)
	if errors.Is(err, frame.ErrStopped) {
		return len(p), nil
	}
	return n, err
}

// exitCode is how "run" and "exec" tell the end of a command.
func exitCode(e frame.Exit) int {
	switch {
	case e.Error != "" && e.NotFound:
		return exitNotFound
	case e.Error != "":
		return exitNotExec
	case e.Signal != 0:
		return 128 + e.Signal
	}
	return e.Code
}

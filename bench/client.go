package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"time"
)

// task is one line to a client.
type task struct {
	Do       string `json:"do"`                 // stream, tls or http; of the API: ask, ask anew, ask at once or bulk
	Host     string `json:"host"`               // to connect to; resolved before the clock starts
	Port     int    `json:"port"`               //
	Connect  int    `json:"connect,omitempty"`  // TLS: ask the proxy for a tunnel to this port of 127.0.0.1 first
	Target   string `json:"target,omitempty"`   // http: what is asked for, "/" or a whole URL at a proxy
	Down     bool   `json:"down,omitempty"`     // stream, bulk: from the server
	Count    int64  `json:"count"`              // stream, bulk: bytes; tls, ask anew: connections; ask: requests; http, ask at once: milliseconds
	Clients  int    `json:"clients,omitempty"`  // http, ask at once: how many
	Close    bool   `json:"close,omitempty"`    // http: a new connection for each request
	Protocol string `json:"protocol,omitempty"` // API: inside TLS
	Token    string `json:"token,omitempty"`    // API: what the request shows, if not what the environment has

	Git *gitTask `json:"git,omitempty"` // instead of all of these
	Run *runTask `json:"run,omitempty"` // likewise
}

// outcome answers a task: seconds for a stream, milliseconds a connection, requests a second.
type outcome struct {
	Values []float64 `json:"values,omitempty"`
	Error  string    `json:"error,omitempty"`
}

// client is the program that makes connections, on this machine or in a sandbox: a task a line, an outcome a line.
func client(stdin io.Reader, stdout io.Writer) error {
	tasks := json.NewDecoder(stdin)
	for {
		var t task
		if err := tasks.Decode(&t); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		var o outcome
		values, err := t.carryOut()
		if o.Values = values; err != nil {
			o = outcome{Error: err.Error()}
		}
		if err := writeLine(stdout, o); err != nil {
			return err
		}
	}
}

func (t task) carryOut() ([]float64, error) {
	if t.Git != nil {
		return t.Git.carryOut()
	}
	if t.Run != nil {
		return t.Run.carryOut()
	}
	found, err := net.LookupHost(t.Host)
	if err != nil {
		return nil, err
	}
	addr := net.JoinHostPort(found[0], strconv.Itoa(t.Port))
	switch t.Do {
	case "stream":
		return t.stream(addr)
	case "tls":
		return t.handshakes(addr)
	case "http":
		return t.requests(addr)
	case "ask":
		return t.asks(addr)
	case "ask anew":
		return t.asksAnew(addr)
	case "ask at once":
		return t.asksAtOnce(addr)
	case "bulk":
		return t.bulk(addr)
	}
	return nil, fmt.Errorf("no such task: %q", t.Do)
}

// dial gives every connection a bound, so that nothing hangs.
func dial(addr string) (net.Conn, error) {
	c, err := net.DialTimeout("tcp", addr, 10*time.Second)
	if err == nil {
		err = c.SetDeadline(time.Now().Add(time.Minute))
	}
	return c, err
}

// stream returns gigabytes a second.
func (t task) stream(addr string) ([]float64, error) {
	c, err := dial(addr)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	head := binary.BigEndian.AppendUint64([]byte{'u'}, uint64(t.Count))
	if t.Down {
		head[0] = 'd'
	}
	began := time.Now()
	if _, err := c.Write(head); err != nil {
		return nil, err
	}
	if t.Down {
		err = drain(c, t.Count)
	} else if err = pour(c, t.Count); err == nil {
		_, err = io.ReadFull(c, head[:1])
	}
	return []float64{float64(t.Count) / time.Since(began).Seconds() / 1e9}, err
}

// handshakes returns milliseconds from the first packet to the first byte of the server, for each connection.
func (t task) handshakes(addr string) ([]float64, error) {
	var values []float64
	for range t.Count {
		began := time.Now()
		if err := t.handshake(addr); err != nil {
			return nil, err
		}
		values = append(values, milliseconds(time.Since(began)))
	}
	return values, nil
}

func (t task) handshake(addr string) error {
	s, err := t.secure(addr)
	if err != nil {
		return err
	}
	defer s.NetConn().Close()
	_, err = io.ReadFull(s, make([]byte, 1))
	return err
}

// connect asks a proxy for a tunnel.
func connect(c net.Conn, port int) error {
	if _, err := fmt.Fprintf(c, "CONNECT 127.0.0.1:%d HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n\r\n", port, port); err != nil {
		return err
	}
	var head []byte
	for !bytes.HasSuffix(head, []byte("\r\n\r\n")) { // the server's side says nothing first, so nothing of it is read here
		buf := make([]byte, 1024)
		n, err := c.Read(buf)
		if head = append(head, buf[:n]...); err != nil {
			return err
		}
	}
	if line := firstLine(string(head)); len(line) < 12 || line[9:12] != "200" {
		return fmt.Errorf("the proxy said %q", line)
	}
	return nil
}

// requests returns requests a second over all connections.
func (t task) requests(addr string) ([]float64, error) {
	var wg sync.WaitGroup
	counts, problems := make([]int, t.Clients), make([]error, t.Clients)
	began := time.Now()
	until := began.Add(time.Duration(t.Count) * time.Millisecond)
	for i := range t.Clients {
		wg.Go(func() { counts[i], problems[i] = t.requestUntil(addr, until) })
	}
	wg.Wait()
	total := 0
	for _, n := range counts {
		total += n
	}
	return []float64{float64(total) / time.Since(began).Seconds()}, errors.Join(problems...)
}

// requestUntil sends one request after the other, over one connection for as long as the other side keeps it.
func (t task) requestUntil(addr string, until time.Time) (count int, err error) {
	connection := "keep-alive"
	if t.Close {
		connection = "close"
	}
	request := fmt.Appendf(nil, "GET %s HTTP/1.1\r\nHost: %s:%d\r\nUser-Agent: bench\r\nAccept: */*\r\nConnection: %s\r\n\r\n", t.Target, t.Host, t.Port, connection)
	var c net.Conn // nil: none is open
	var r *bufio.Reader
	for time.Now().Before(until) {
		if c == nil {
			if c, err = dial(addr); err != nil {
				return count, err
			}
			r = bufio.NewReader(c)
		}
		keep, err := exchange(c, r, request)
		if err != nil {
			_ = c.Close() // broken
			return count, err
		}
		count++
		if !keep || t.Close {
			_ = c.Close() // as the server wished
			c = nil
		}
	}
	if c != nil {
		_ = c.Close() // done
	}
	return count, nil
}

// exchange sends a request and reads its answer.
func exchange(c net.Conn, r *bufio.Reader, request []byte) (keep bool, err error) {
	if _, err := c.Write(request); err != nil {
		return false, err
	}
	length, keep := -1, true
	for first := true; ; first = false {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return false, err
		}
		line = bytes.TrimSpace(line)
		switch {
		case first && (len(line) < 12 || !bytes.HasPrefix(line, []byte("HTTP/1.")) || string(line[9:12]) != "200"):
			return false, fmt.Errorf("the answer begins %q", line)
		case first:
			keep = line[7] == '1'
		case len(line) == 0 && length >= 0:
			_, err := r.Discard(length)
			return keep, err
		case len(line) == 0:
			_, err := io.Copy(io.Discard, r)
			return false, err
		}
		field, value, _ := bytes.Cut(line, []byte(":"))
		switch {
		case bytes.EqualFold(field, []byte("Content-Length")):
			if length, err = strconv.Atoi(string(bytes.TrimSpace(value))); err != nil {
				return false, err
			}
		case bytes.EqualFold(field, []byte("Connection")):
			keep = !bytes.EqualFold(bytes.TrimSpace(value), []byte("close"))
		}
	}
}

// worker is a running client.
type worker struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *json.Decoder
}

// outside starts a client on this machine.
func (b *bench) outside(ctx context.Context, pin ...string) (*worker, error) {
	return b.work(ctx, append(pin, b.self, "client"))
}

// inside starts a client in a sandbox that may reach the servers and nothing else.
func (b *bench) inside(ctx context.Context, s *serving, gatewayPin, clientPin []string) (*worker, error) {
	const seen = "/tmp/bench"
	argv := append(gatewayPin, b.cofferdam, "run", "-q", "--workspace", b.workspace(), "--mount", b.self+":"+seen,
		"--resolve", name+"=127.0.0.1", "--allow-network", "127.0.0.0/8",
		"--allow", fmt.Sprintf("tcp:%s:%d", name, s.Stream), "--allow", fmt.Sprintf("%s:%d", name, s.TLS), "--allow", fmt.Sprintf("%s:%d", name, s.HTTP), "--")
	return b.work(ctx, append(append(argv, clientPin...), seen, "client"))
}

func (b *bench) work(ctx context.Context, argv []string) (*worker, error) {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	cmd.Env, cmd.Dir, cmd.Stderr = b.environment(), b.workspace(), os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return &worker{cmd, in, json.NewDecoder(out)}, nil
}

// do has a task carried out.
func (w *worker) do(t task) ([]float64, error) {
	if err := writeLine(w.in, t); err != nil {
		return nil, err
	}
	var o outcome
	if err := w.out.Decode(&o); err != nil {
		return nil, fmt.Errorf("the client is gone: %w", err)
	}
	if o.Error != "" {
		return nil, errors.New(o.Error)
	}
	return o.Values, nil
}

func (w *worker) stop() {
	_ = w.in.Close() // it reads the end
	_ = w.cmd.Wait() // whatever it says now
}

// via is a subject that has a task carried out by a client.
func (w *worker) via(name string, t task) subject {
	return subject{name, func(context.Context) ([]float64, error) { return w.do(t) }}
}

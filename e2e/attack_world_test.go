package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/internal/testenv"
)

// hit is one thing that reached the world, as testdata/attack reports it.
type hit struct {
	Network string `json:"network"`
	Local   string `json:"local"`
	Port    int    `json:"port"`
	Data    string `json:"data"`
}

// world is a network namespace that plays the internet and the machine around the sandboxes: every address answers, and all that arrives is reported.
type world struct {
	pid  int
	dir  string // sockets and a pipe of the host
	port int    // a random one, also served

	mu   sync.Mutex
	hits []hit
}

// worldPorts are served on every address.
func worldPorts() []int {
	return []int{22, 25, 53, 80, 123, 137, 443, 853, 3128, 5353, 5355, 5432, 6379, 8080, 8443, 9000}
}

var buildAttack = sync.OnceValues(func() (string, error) {
	dir := filepath.Join(os.TempDir(), "cofferdam-test-attack-"+strconv.Itoa(os.Getuid()))
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", dir, "./e2e/testdata/attack")
	cmd.Dir, cmd.Env = testenv.Module(), append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", errors.New(string(out))
	}
	return dir, nil
})

// attackProgram builds testdata/attack once.
func attackProgram(t testing.TB) string {
	t.Helper()
	path, err := buildAttack()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// newWorld starts a world, which ends with the test.
func newWorld(t *testing.T) *world {
	t.Helper()
	dir, err := os.MkdirTemp("", "cofferdam-world-")
	if err != nil {
		t.Fatal(err)
	}
	w := &world{dir: dir, port: 20000 + rand.IntN(10000)}
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	args := []string{"world", dir}
	for _, p := range append(worldPorts(), w.port) {
		args = append(args, strconv.Itoa(p))
	}
	cmd := exec.Command(attackProgram(t), args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	in, err1 := cmd.StdinPipe()
	out, err2 := cmd.StdoutPipe()
	errs, err3 := cmd.StderrPipe()
	if err := errors.Join(err1, err2, err3, cmd.Start()); err != nil {
		t.Fatal(err)
	}
	w.pid = cmd.Process.Pid
	var reading sync.WaitGroup
	t.Cleanup(func() {
		_ = in.Close() // it ends
		reading.Wait()
		_ = cmd.Wait() // killed or not, it is over
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	lines := bufio.NewScanner(errs)
	if !lines.Scan() || lines.Text() != "ready" {
		t.Fatalf("the world does not begin: %s", lines.Text())
	}
	reading.Go(func() { _, _ = io.Copy(io.Discard, errs) })
	reading.Go(func() { w.read(out) })
	return w
}

func (w *world) read(r io.Reader) {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var x hit
		if json.Unmarshal(lines.Bytes(), &x) != nil {
			x = hit{Network: "garbled", Data: lines.Text()}
		}
		w.mu.Lock()
		w.hits = append(w.hits, x)
		w.mu.Unlock()
	}
}

// mark returns a point in time; since returns what arrived after it.
func (w *world) mark() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.hits)
}

func (w *world) since(mark int) []hit {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]hit(nil), w.hits[mark:]...)
}

// enter makes a prepared command run in the world, as the house's user.
func (w *world) enter(cmd *exec.Cmd, h *house) {
	id := strconv.Itoa(int(h.as.uid))
	args := []string{"nsenter", "-t", strconv.Itoa(w.pid), "-n", "-m", "-S", id, "-G", id, "env", "-C", cmd.Dir}
	path, err := exec.LookPath("nsenter")
	if err != nil {
		h.t.Fatal(err)
	}
	cmd.Args = append(args, append([]string{cmd.Path}, cmd.Args[1:]...)...)
	cmd.Path, cmd.Dir = path, ""
	cmd.SysProcAttr = &syscall.SysProcAttr{}
}

// command prepares one of cofferdam's commands in the world.
func (w *world) command(ctx context.Context, h *house, args ...string) *exec.Cmd {
	cmd := h.command(ctx, args...)
	w.enter(cmd, h)
	return cmd
}

// do runs one of cofferdam's commands in the world to its end, within a time that is meant for programs that run natively.
func (w *world) do(h *house, limit time.Duration, args ...string) result {
	h.t.Helper()
	limit = h.as.patience(limit)
	ctx, cancel := context.WithTimeout(h.t.Context(), limit)
	defer cancel()
	cmd := w.command(ctx, h, args...)
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(""), &out, &errs
	err := cmd.Run()
	if ctx.Err() != nil {
		h.t.Fatalf("cofferdam %v: not over after %v\n%s%s", args, limit, out.String(), errs.String())
	}
	if _, isExit := errors.AsType[*exec.ExitError](err); err != nil && !isExit {
		h.t.Fatalf("cofferdam %v: %v", args, err)
	}
	return result{stdout: out.String(), stderr: errs.String(), code: cmd.ProcessState.ExitCode()}
}

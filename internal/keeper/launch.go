package keeper

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/frame"
)

// readyWithin is how long a sandbox may take to run: tens of milliseconds, with a kernel of its own under heavy load seconds.
const readyWithin = 60 * time.Second

// Launcher starts keepers.
type Launcher struct {
	// Program is cofferdam's own path, beside which its other programs lie. State is the state directory.
	Program, State string
}

// Launch starts a keeper, which outlives this process, and waits until its sandbox runs. When ctx ends first, nothing of it is left.
func (l *Launcher) Launch(ctx context.Context, spec Spec) (Ready, error) {
	data, err := json.Marshal(spec)
	if err != nil {
		return Ready{}, fmt.Errorf("encode what to keep: %w", err)
	}
	if len(data) > MaxSpec {
		return Ready{}, fault.New(fault.Invalid, "the sandbox's specification has more than %d bytes", MaxSpec)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, readyWithin, fault.New(fault.Unavailable, "the sandbox did not run within %v", readyWithin))
	defer cancel()
	cmd := exec.Command(l.Program, "keep")
	cmd.Env, cmd.Dir = l.environment(), "/"
	cmd.Stdin = bytes.NewReader(data)
	words := new(lastWords)
	cmd.Stderr = words
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // what ends this process's session does not end the sandbox
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return Ready{}, fault.New(fault.Unsupported, "cannot start a keeper").WithHint("install cofferdam where %s is", l.Program).Because(err)
	}
	ready, err := await(ctx, cmd, out)
	if err != nil && ctx.Err() != nil {
		_ = cmd.Process.Kill() // its supervisor reads the end of its socket and removes what there is
	}
	ended := make(chan error, 1)
	go func() { // reaps the keeper, if it ends before this process
		ended <- cmd.Wait()
		sweep(l.State, spec.Run)
	}()
	if err != nil {
		cause := <-ended
		return Ready{}, l.explain(ctx, err, cause, words)
	}
	return ready, nil
}

// environment is what a keeper needs of this process's environment, in which there may be secrets of the service's own.
func (l *Launcher) environment() []string {
	env := []string{"COFFERDAM_STATE=" + l.State}
	for _, name := range []string{"PATH", "HOME", "LANG", "TZ", "SSL_CERT_FILE", "SSL_CERT_DIR", "CREDENTIALS_DIRECTORY"} {
		if value, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+value)
		}
	}
	return env
}

// errSilent says that a keeper went without a word.
var errSilent = errors.New("the keeper said nothing")

// await reads the one line that a keeper prints.
func await(ctx context.Context, cmd *exec.Cmd, out io.ReadCloser) (Ready, error) {
	stop := context.AfterFunc(ctx, func() { _ = out.Close() })
	defer stop()
	line, err := bufio.NewReader(io.LimitReader(out, maxReady)).ReadString('\n')
	if err != nil {
		return Ready{}, errors.Join(errSilent, err)
	}
	var ready Ready
	if err := decode(strings.NewReader(line), maxReady, &ready); err != nil {
		_ = cmd.Process.Kill() // it is none of ours
		return Ready{}, err
	}
	if ready.Error != "" {
		return Ready{}, problem{Kind: ready.Kind, Error: ready.Error, Hint: ready.Hint}.err()
	}
	return ready, nil
}

// explain says why there is no sandbox.
func (l *Launcher) explain(ctx context.Context, err, cause error, words *lastWords) error {
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, errSilent):
		return fault.New(fault.Internal, "the keeper ended without a word").Because(errors.Join(cause, errors.New(words.String())))
	}
	return err
}

// lastWords keeps the first of what a keeper says on standard error before it can say anything else.
type lastWords struct {
	mu   sync.Mutex
	text []byte
}

func (w *lastWords) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.text = append(w.text, p[:min(len(p), 4<<10-len(w.text))]...)
	return len(p), nil
}

// String returns it, inert.
func (w *lastWords) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return frame.Inert(string(w.text), 4<<10)
}

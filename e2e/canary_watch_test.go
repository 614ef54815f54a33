package e2e

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
)

// watched is a run whose output is read as it comes.
type watched struct {
	h    *house
	cmd  *exec.Cmd
	in   io.WriteCloser
	errs bytes.Buffer
	over chan struct{}

	mu    sync.Mutex
	out   bytes.Buffer
	lines chan string
}

// watch starts a run and leaves it running.
func (h *house) watch(args ...string) *watched {
	h.t.Helper()
	w := &watched{h: h, cmd: h.command(h.t.Context(), args...), over: make(chan struct{}), lines: make(chan string, 1000)}
	return w.start()
}

func (w *watched) start() *watched {
	w.h.t.Helper()
	var err1, err2 error
	w.cmd.Stderr = &w.errs
	w.in, err1 = w.cmd.StdinPipe()
	out, err2 := w.cmd.StdoutPipe()
	if err := errors.Join(err1, err2, w.cmd.Start()); err != nil {
		w.h.t.Fatal(err)
	}
	go func() {
		defer close(w.over)
		r := bufio.NewReader(out)
		for {
			line, err := r.ReadString('\n')
			w.mu.Lock()
			w.out.WriteString(line)
			w.mu.Unlock()
			if strings.HasPrefix(line, "=== ") {
				w.lines <- strings.TrimSpace(line)
			}
			if err != nil {
				return
			}
		}
	}()
	w.h.t.Cleanup(func() {
		_ = w.cmd.Process.Kill() // it is over, except where the test failed
	})
	return w
}

// await waits for a line that begins with === and the text.
func (w *watched) await(text string, limit time.Duration) {
	w.h.t.Helper()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for {
		select {
		case line := <-w.lines:
			if strings.HasPrefix(line, "=== "+text) {
				return
			}
		case <-w.over:
			w.h.t.Fatalf("the run is over before %q: %s%s", text, w.output(), w.errs.String())
		case <-timer.C:
			w.h.t.Fatalf("no %q after %v: %.3000s", text, limit, w.output())
		}
	}
}

func (w *watched) output() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.out.String()
}

// say writes a line to the command inside.
func (w *watched) say(line string) {
	w.h.t.Helper()
	if _, err := io.WriteString(w.in, line+"\n"); err != nil {
		w.h.t.Error(err)
	}
}

// wait waits for the end and returns what came of it.
func (w *watched) wait(limit time.Duration) result {
	w.h.t.Helper()
	_ = w.in.Close()
	select {
	case <-w.over:
	case <-time.After(limit):
		w.h.t.Fatalf("the run is not over after %v", limit)
	}
	_ = w.cmd.Wait() // its code is looked at
	return result{stdout: w.output(), stderr: w.errs.String(), code: w.cmd.ProcessState.ExitCode()}
}

// family returns a process and all below it.
func family(pid int) (all []int) {
	parents := map[int][]int{}
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range stats {
		data, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended meanwhile
		}
		fields := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
		parent, _ := strconv.Atoi(fields[1])
		child, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		parents[parent] = append(parents[parent], child)
	}
	all = []int{pid}
	for i := 0; i < len(all); i++ {
		all = append(all, parents[all[i]]...)
	}
	return all
}

// memory reads what is mapped in a process, as root of the machine can.
func memory(pid int) []byte {
	proc := "/proc/" + strconv.Itoa(pid)
	maps, err := os.ReadFile(proc + "/maps")
	if err != nil {
		return nil
	}
	mem, err := os.Open(proc + "/mem")
	if err != nil {
		return nil
	}
	defer mem.Close()
	var all bytes.Buffer
	for line := range strings.Lines(string(maps)) {
		fields := strings.Fields(line)
		from, to, _ := strings.Cut(fields[0], "-")
		first, err1 := strconv.ParseUint(from, 16, 63)
		last, err2 := strconv.ParseUint(to, 16, 63)
		if err1 == nil && err2 == nil && strings.HasPrefix(fields[1], "rw") {
			_, _ = io.Copy(&all, io.NewSectionReader(mem, int64(first), int64(min(last-first, 256<<20)))) // up to what cannot be read
		}
	}
	return all.Bytes()
}

package terminal

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestExitStatus(t *testing.T) {
	tests := []struct {
		name string
		args []string
		code int
		out  string
	}{
		{"zero", shell("echo hello"), 0, "hello\n"},
		{"status", shell("exit 42"), 42, ""},
		{"signal", shell("kill -TERM $$"), 143, ""},
		{"not found", []string{"no-such-program"}, 0, ""},
		{"stderr apart", shell("echo a; echo b >&2"), 0, "a\n"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			file := filepath.Join(t.TempDir(), "report")
			cmd := plan{Args: test.args, Report: file}.command(t)
			out, err := cmd.Output()
			if cmd.ProcessState.ExitCode() != test.code || string(out) != test.out {
				t.Errorf("got status %v and %q; %s", err, out, report(t, file))
			}
			if said := report(t, file); test.args[0] == "no-such-program" && !strings.Contains(said, "NotFound:true") {
				t.Error(said)
			}
		})
	}
}

func TestBinaryRoundTrip(t *testing.T) {
	t.Parallel()
	const size = 64 << 20
	cmd := plan{Args: []string{"cat"}}.command(t)
	in, out := sha256.New(), sha256.New()
	cmd.Stdin = io.TeeReader(io.LimitReader(rand.NewChaCha8([32]byte{1}), size), in)
	n := &counter{}
	cmd.Stdout = io.MultiWriter(out, n)
	began := time.Now()
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	if n.n != size || !bytes.Equal(in.Sum(nil), out.Sum(nil)) {
		t.Errorf("%d bytes came back of %d, or others", n.n, size)
	}
	t.Logf("64 MiB there and back in %v", time.Since(began))
}

type counter struct{ n int }

func (c *counter) Write(p []byte) (int, error) { c.n += len(p); return len(p), nil }

// A command that does not read its input still gets signals.
func TestSignalWhileStdinIsFull(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "report")
	cmd := plan{Args: shell("trap 'echo got it; exit 7' TERM; echo ready; while :; do sleep 0.05; done"), Report: file}.command(t)
	cmd.Stdin = rand.NewChaCha8([32]byte{})
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	if n, err := out.Read(buf); string(buf[:n]) != "ready\n" {
		t.Fatalf("got %q, %v", buf[:n], err)
	}
	time.Sleep(200 * time.Millisecond)
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	rest, _ := io.ReadAll(out)
	_, _ = cmd.Process.Wait()
	if said := report(t, file); string(rest) != "got it\n" || !strings.Contains(said, "Code:7") {
		t.Errorf("got %q, %s", rest, said)
	}
}

// Idle input does not hold up the end.
func TestIdleStdinDoesNotHoldTheEnd(t *testing.T) {
	t.Parallel()
	cmd := plan{Args: []string{"true"}}.command(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	cmd.Stdin = r
	done := make(chan error, 1)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = r.Close()
	go func() { done <- cmd.Wait() }()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		_ = cmd.Process.Kill()
		t.Error("still waiting for input")
	}
}

// Output that nobody reads costs no memory, and the reader's return gets all of it.
func TestSlowReaderKeepsMemoryFlat(t *testing.T) {
	const size = 200 << 20
	cmd := plan{Args: []string{"head", "-c", strconv.Itoa(size), "/dev/zero"}}.command(t)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(500 * time.Millisecond)
	buf := make([]byte, 1<<20)
	n, _ := io.ReadFull(out, buf)
	status, err := os.ReadFile("/proc/" + strconv.Itoa(cmd.Process.Pid) + "/status")
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(status), "VmHWM:")
	peak, _ := strconv.Atoi(strings.Fields(after)[0])
	if peak > 40<<10 {
		t.Errorf("%d KiB resident with output that nobody reads", peak)
	}
	m, _ := io.Copy(io.Discard, out)
	if err := cmd.Wait(); err != nil || int64(n)+m != size {
		t.Errorf("%d bytes, %v", int64(n)+m, err)
	}
}

func TestBrokenPipe(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "report")
	cmd := plan{Args: []string{"yes"}, Report: file}.command(t)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(out, make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	_ = out.Close()
	_ = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 141 {
		t.Errorf("status %d, want 141: %s", code, report(t, file))
	}
}

func TestFullDisk(t *testing.T) {
	t.Parallel()
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skip(err)
	}
	defer full.Close()
	file := filepath.Join(t.TempDir(), "report")
	cmd := plan{Args: shell("echo lost"), Report: file}.command(t)
	cmd.Stdout = full
	_ = cmd.Run()
	if said := report(t, file); !strings.Contains(said, "cannot write the command's stdout: no space left") {
		t.Error(said)
	}
}

func TestRunnerCrash(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "report")
	cmd := plan{Args: shell("echo ready; sleep 60"), Report: file}.command(t)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(out, make([]byte, 6)); err != nil {
		t.Fatal(err)
	}
	kids, err := exec.Command("ps", "-o", "pid=", "--ppid", strconv.Itoa(cmd.Process.Pid)).Output()
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(kids)))
	if err != nil {
		t.Fatal(err)
	}
	_ = syscall.Kill(pid, syscall.SIGKILL) // unshare, which takes the runner along
	_ = cmd.Wait()
	if said := report(t, file); !strings.Contains(said, "error: the sandbox ended before the command did") || !strings.Contains(said, "(unavailable)") {
		t.Error(said)
	}
}

// A signal that came before the session is the command's like any other, and one that comes after it is the caller's.
func TestSignalsOfTheCaller(t *testing.T) {
	tests := []struct {
		name string
		plan plan
		code int
		says string
	}{
		{"before: interrupt", plan{Early: []syscall.Signal{syscall.SIGINT}, Args: []string{"sleep", "60"}}, 130, "Signal:2"},
		{"before: terminate", plan{Early: []syscall.Signal{syscall.SIGTERM}, Args: []string{"sleep", "60"}}, 143, "Signal:15"},
		{"before: hang up", plan{Early: []syscall.Signal{syscall.SIGHUP}, Args: []string{"sleep", "60"}}, 129, "Signal:1"},
		{"after", plan{Late: syscall.SIGTERM, Args: []string{"true"}}, 0, "late: terminated"},
		{"none", plan{Args: shell("exit 4")}, 4, "Code:4"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			p := test.plan
			p.Own, p.Report = true, filepath.Join(t.TempDir(), "report")
			cmd := p.command(t)
			_ = cmd.Run()
			said := report(t, p.Report)
			if code := cmd.ProcessState.ExitCode(); code != test.code || !strings.Contains(said, test.says) {
				t.Errorf("status %d, want %d; %q, want %q", code, test.code, said, test.says)
			}
		})
	}
}

// The first interrupt is the command's; the second soon after ends the sandbox.
func TestSecondInterruptKills(t *testing.T) {
	for _, own := range []bool{false, true} {
		t.Run(fmt.Sprintf("own=%v", own), func(t *testing.T) {
			t.Parallel()
			file := filepath.Join(t.TempDir(), "report")
			cmd := plan{Args: shell("trap 'echo no' INT; echo ready; while :; do sleep 0.05; done"), Report: file, Own: own}.command(t)
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			for _, want := range []string{"ready\n", "no\n"} {
				got := make([]byte, len(want))
				if _, err := io.ReadFull(out, got); err != nil || string(got) != want {
					t.Fatalf("got %q, %v", got, err)
				}
				if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
					t.Fatal(err)
				}
			}
			_ = cmd.Wait()
			if said := report(t, file); !strings.Contains(said, "the sandbox ended before the command did") {
				t.Error(said)
			}
		})
	}
}

// A suspended run suspends the command, and a resumed one resumes it.
func TestSuspendAndResume(t *testing.T) {
	for _, own := range []bool{false, true} {
		t.Run(fmt.Sprintf("own=%v", own), func(t *testing.T) {
			t.Parallel()
			cmd := plan{Args: shell("trap 'exit 3' USR1; echo ready; while :; do sleep 0.05; done"), Own: own}.command(t)
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(out, make([]byte, 6)); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Process.Signal(syscall.SIGTSTP)
			var ws syscall.WaitStatus
			if _, err := syscall.Wait4(cmd.Process.Pid, &ws, syscall.WUNTRACED, nil); err != nil || !ws.Stopped() {
				t.Fatalf("not stopped: %v, %v", ws, err)
			}
			_ = cmd.Process.Signal(syscall.SIGCONT)
			time.Sleep(100 * time.Millisecond)
			_ = cmd.Process.Signal(syscall.SIGUSR1)
			_ = cmd.Wait()
			if code := cmd.ProcessState.ExitCode(); code != 3 {
				t.Errorf("status %d", code)
			}
		})
	}
}

// A limit ends the session at once even if nobody takes the output.
func TestContextEndsABlockedSession(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "report")
	cmd := plan{Args: []string{"yes"}, Report: file, Limit: time.Second}.command(t)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := cmd.Process.Wait(); err != nil {
		t.Fatal(err)
	}
	_ = out.Close()
	if said := report(t, file); !strings.Contains(said, "time is up") || time.Since(began) > 5*time.Second {
		t.Errorf("after %v: %s", time.Since(began), said)
	}
}

func TestNoticesBetweenLines(t *testing.T) {
	t.Parallel()
	cmd := plan{
		Args:   shell("printf 'half a line' >&2; sleep 0.5; echo ' and the rest' >&2"),
		Notify: []string{"denied \x1b[2Jexample.com", "second"},
	}.command(t)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	if want := "half a line\ndenied ?[2Jexample.com\nsecond\n and the rest\n"; stderr.String() != want {
		t.Errorf("got %q, want %q", stderr.String(), want)
	}
}

func TestCannotAskWithoutTerminal(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "report")
	cmd := plan{Args: shell("sleep 0.4"), Ask: "may it?", NoTTY: true, Report: file}.command(t)
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	if said := report(t, file); !strings.Contains(said, ErrCannotAsk.Error()) {
		t.Error(said)
	}
}

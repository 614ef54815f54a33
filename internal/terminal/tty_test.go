package terminal

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"
)

// screen is a mini in a terminal: what it shows, and the keyboard.
type screen struct {
	t      *testing.T
	cmd    *exec.Cmd
	master *os.File
	slave  *os.File
	before *unix.Termios
	report string

	mu   sync.Mutex
	seen []byte
	more chan struct{}
}

// onScreen starts a mini with a terminal of 30 by 100. Only the files that are nil are the terminal.
func onScreen(t *testing.T, p plan, stdin *os.File) *screen {
	t.Helper()
	p.Report = filepath.Join(t.TempDir(), "report")
	cmd := p.command(t)
	if stdin != nil {
		cmd.Stdin = stdin
	}
	return showScreen(t, cmd, p.Report)
}

func showScreen(t *testing.T, cmd *exec.Cmd, report string) *screen {
	t.Helper()
	master, slave, err := pty.Open()
	if err != nil {
		t.Skip(err)
	}
	if err := pty.Setsize(master, &pty.Winsize{Rows: 30, Cols: 100}); err != nil {
		t.Fatal(err)
	}
	s := &screen{t: t, cmd: cmd, master: master, slave: slave, report: report, more: make(chan struct{}, 1)}
	s.before = s.mode()
	if cmd.Stdin == nil {
		cmd.Stdin = slave
	}
	cmd.Stdout = slave
	if cmd.Stderr == nil {
		cmd.Stderr = slave
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 1}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go s.watch()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		_ = slave.Close()
		_ = master.Close()
	})
	return s
}

func (s *screen) watch() {
	buf := make([]byte, 4096)
	for {
		n, err := s.master.Read(buf)
		if err != nil {
			return
		}
		s.mu.Lock()
		s.seen = append(s.seen, buf[:n]...)
		s.mu.Unlock()
		select {
		case s.more <- struct{}{}:
		default:
		}
	}
}

// await waits for text and returns all up to and with it; what it returned is not looked at again.
func (s *screen) await(text string) string {
	s.t.Helper()
	deadline := time.After(10 * time.Second)
	for {
		s.mu.Lock()
		if i := bytes.Index(s.seen, []byte(text)); i >= 0 {
			got := string(s.seen[:i+len(text)])
			s.seen = s.seen[i+len(text):]
			s.mu.Unlock()
			return got
		}
		got := string(s.seen)
		s.mu.Unlock()
		select {
		case <-s.more:
		case <-deadline:
			said, _ := os.ReadFile(s.report)
			s.t.Fatalf("%q does not appear; on screen is %q, report %q", text, got, said)
		}
	}
}

func (s *screen) typed(keys string) {
	s.t.Helper()
	if _, err := s.master.WriteString(keys); err != nil {
		s.t.Fatal(err)
	}
}

func (s *screen) mode() *unix.Termios {
	s.t.Helper()
	tio, err := unix.IoctlGetTermios(int(s.master.Fd()), unix.TCGETS)
	if err != nil {
		s.t.Fatal(err)
	}
	return tio
}

// ends waits for the mini's end, checks its status and that the terminal is as before, and returns the rest of the screen.
func (s *screen) ends(code int) string {
	s.t.Helper()
	done := make(chan struct{})
	go func() { _ = s.cmd.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		s.t.Fatal("does not end")
	}
	if got := s.cmd.ProcessState.ExitCode(); got != code {
		said, _ := os.ReadFile(s.report)
		s.t.Errorf("status %d, want %d: %s", got, code, said)
	}
	if after := s.mode(); *after != *s.before {
		s.t.Errorf("the terminal was left as %+v, it was %+v", after, s.before)
	}
	time.Sleep(50 * time.Millisecond)
	s.mu.Lock()
	defer s.mu.Unlock()
	return string(s.seen)
}

func TestTerminal(t *testing.T) {
	t.Parallel()
	s := onScreen(t, plan{TTY: true, Args: shell(`trap 'stty size' WINCH; stty size; echo ready; read x; echo "<$x>"; while :; do sleep 0.05; done`)}, nil)
	if got := s.await("ready"); !strings.Contains(got, "30 100") {
		t.Errorf("got %q", got)
	}
	if s.mode().Lflag&(unix.ECHO|unix.ICANON|unix.ISIG) != 0 {
		t.Error("the terminal is not raw")
	}
	s.typed("größe\r")
	s.await("<größe>")
	if err := pty.Setsize(s.master, &pty.Winsize{Rows: 41, Cols: 99}); err != nil {
		t.Fatal(err)
	}
	s.await("41 99")
	s.typed("\x03")
	s.ends(130)
}

func TestJobControlThroughout(t *testing.T) {
	t.Parallel()
	s := onScreen(t, plan{TTY: true, Args: []string{"bash", "--norc", "--noprofile", "-i"}}, nil)
	s.typed("PS1='ok> '\r")
	s.await("ok> ")
	s.typed("cat\r")
	s.await("cat\r\n")
	time.Sleep(200 * time.Millisecond)
	s.typed("\x1a")
	s.await("Stopped")
	s.typed("jobs; fg\r")
	s.await("cat\r\n")
	s.await("cat\r\n")
	time.Sleep(200 * time.Millisecond)
	s.typed("through\r\x04")
	s.await("through\r\nthrough\r\n")
	s.typed("exit 5\r")
	s.ends(5)
}

// A run that is stopped from outside takes up its terminal again when it is continued.
func TestStopAndContinue(t *testing.T) {
	t.Parallel()
	s := onScreen(t, plan{TTY: true, Args: shell(`trap 'stty size' WINCH; echo ready; while :; do sleep 0.05; done`)}, nil)
	s.await("ready")
	for _, sig := range []syscall.Signal{syscall.SIGSTOP, syscall.SIGTSTP} {
		_ = s.cmd.Process.Signal(sig)
		var ws syscall.WaitStatus
		if _, err := syscall.Wait4(s.cmd.Process.Pid, &ws, syscall.WUNTRACED, nil); err != nil || !ws.Stopped() {
			t.Fatalf("not stopped: %v, %v", ws, err)
		}
		if sig == syscall.SIGTSTP && *s.mode() != *s.before {
			t.Error("the terminal is not usable while the run is stopped")
		}
		if err := unix.IoctlSetTermios(int(s.master.Fd()), unix.TCSETS, s.before); err != nil { // what a shell does
			t.Fatal(err)
		}
		if err := pty.Setsize(s.master, &pty.Winsize{Rows: 20 + uint16(sig), Cols: 77}); err != nil {
			t.Fatal(err)
		}
		_ = s.cmd.Process.Signal(syscall.SIGCONT)
		s.await(" 77\r\n")
		if s.mode().Lflag&unix.ICANON != 0 {
			t.Error("the terminal is not raw again")
		}
	}
	s.typed("\x03")
	s.ends(130)
}

func TestTerminalIsRestored(t *testing.T) {
	t.Parallel()
	t.Run("after a signal", func(t *testing.T) {
		t.Parallel()
		s := onScreen(t, plan{TTY: true, Args: shell("echo ready; sleep 60")}, nil)
		s.await("ready")
		_ = s.cmd.Process.Signal(syscall.SIGTERM)
		s.ends(143)
	})
	t.Run("after a limit", func(t *testing.T) {
		t.Parallel()
		s := onScreen(t, plan{TTY: true, Args: shell("printf '\\033[?1049h\\033[?25l\\033[?1000;1006h'; echo ready; sleep 60"), Limit: time.Second}, nil)
		s.await("ready")
		if rest := s.ends(125); !strings.Contains(rest, "\x1b[?25h\x1b[?1000l\x1b[?1006l\x1b[?1049l") {
			t.Errorf("left on screen: %q", rest)
		}
	})
	t.Run("after a panic", func(t *testing.T) {
		t.Parallel()
		s := onScreen(t, plan{TTY: true, Args: shell("sleep 0.2; echo ready"), Panic: true}, nil)
		s.await("as planned")
		s.ends(2)
	})
	t.Run("without unread input", func(t *testing.T) {
		t.Parallel()
		s := onScreen(t, plan{TTY: true, Args: shell("echo ready; sleep 0.5")}, nil)
		s.await("ready")
		s.typed("rm -rf everything\r")
		s.ends(0)
		if n, err := unix.IoctlGetInt(int(s.slave.Fd()), unix.TIOCINQ); err != nil || n != 0 {
			t.Errorf("%d bytes wait for the user's shell, %v", n, err)
		}
	})
}

func TestNoticesOnScreen(t *testing.T) {
	t.Run("in between", func(t *testing.T) {
		t.Parallel()
		s := onScreen(t, plan{TTY: true, Args: shell("printf 'prompt> '; sleep 0.5"), Notify: []string{"one\x1b[2J", "two"}}, nil)
		if got := strings.ReplaceAll(s.ends(0), plainText, ""); got != "prompt> \r\none?[2J\r\ntwo\r\n" {
			t.Errorf("on screen: %q", got)
		}
	})
	t.Run("apart", func(t *testing.T) {
		t.Parallel()
		file := filepath.Join(t.TempDir(), "stderr")
		stderr, err := os.Create(file)
		if err != nil {
			t.Fatal(err)
		}
		defer stderr.Close()
		p := plan{TTY: true, Args: shell("printf '\\033[?1049hfull'; sleep 0.4"), Notify: []string{"one", "two"}, Report: filepath.Join(t.TempDir(), "report")}
		cmd := p.command(t)
		cmd.Stderr = stderr
		showScreen(t, cmd, p.Report).ends(0)
		if got := report(t, file); got != "one\ntwo" {
			t.Errorf("in the file: %q", got)
		}
	})
	t.Run("held back", func(t *testing.T) {
		t.Parallel()
		s := onScreen(t, plan{TTY: true, Args: shell("printf '\\033[?10'; sleep 0.1; printf '49hfull'; sleep 0.4; printf '\\033[?1049l'; echo left; sleep 0.2; echo end"), Notify: []string{"notice"}}, nil)
		got := s.ends(0)
		if i, j, k := strings.Index(got, "\x1b[?1049l"), strings.Index(got, "notice"), strings.Index(got, "end"); i < 0 || i > j || j > k {
			t.Errorf("on screen: %q", got)
		}
	})
	t.Run("at the end", func(t *testing.T) {
		t.Parallel()
		s := onScreen(t, plan{TTY: true, Args: shell("printf '\\033[?1049hfull'; sleep 0.5; kill -9 $$"), Notify: []string{"notice"}}, nil)
		got := s.ends(137)
		if i, j := strings.Index(got, "\x1b[?1049l"), strings.Index(got, "notice\r\n"); i < 0 || i > j {
			t.Errorf("on screen: %q", got)
		}
	})
	t.Run("in an open sequence", func(t *testing.T) {
		t.Parallel()
		s := onScreen(t, plan{TTY: true, Args: shell("printf 'a\\033]0;never ends'; sleep 0.8; echo end"), Notify: []string{"notice"}}, nil)
		got := s.ends(0)
		if !strings.Contains(got, breakOff+plainText) || strings.Index(got, "notice") > strings.Index(got, "end\r") {
			t.Errorf("on screen: %q", got)
		}
	})
}

func TestAskOnScreen(t *testing.T) {
	ask := func(t *testing.T, keys, want, rest string) {
		t.Helper()
		s := onScreen(t, plan{TTY: true, Ask: "connect to \x1bexample.com?", Args: shell(
			"stty -echo; i=0; while [ $i -lt 20 ]; do echo tick; sleep 0.05; i=$((i+1)); done; read x; echo \"<$x>\"")}, nil)
		s.await("connect to ?example.com?\r\n[y] yes, [n] no: ")
		s.typed("y") // too early: still the command's
		time.Sleep(settling + 200*time.Millisecond)
		s.mu.Lock()
		if strings.Contains(string(s.seen), "tick") {
			t.Errorf("output over the question: %q", s.seen)
		}
		s.mu.Unlock()
		for key := range strings.SplitSeq(keys, "|") {
			s.typed(key)
			time.Sleep(50 * time.Millisecond)
		}
		s.await("tick")
		s.typed(rest + "\r")
		if rest != "" {
			s.await("<y" + rest + ">")
		}
		code := 0
		if rest == "" {
			code = 130
		}
		s.ends(code)
		if said := report(t, s.report); !strings.Contains(said, want) {
			t.Errorf("report %q, want %q", said, want)
		}
	}
	t.Run("yes", func(t *testing.T) { t.Parallel(); ask(t, "y", "answer 'y' <nil>", "abc") })
	t.Run("no, after pasting and mouse", func(t *testing.T) {
		t.Parallel()
		ask(t, "yyy|\x1b[<0;1;1My|q|n", "answer 'n' <nil>", "abc")
	})
	t.Run("escape", func(t *testing.T) { t.Parallel(); ask(t, "\x1b", ErrDismissed.Error(), "abc") })
	t.Run("interrupt", func(t *testing.T) { t.Parallel(); ask(t, "\x03", ErrDismissed.Error(), "") })
}

// A full-screen program is put aside for the question and made to draw itself again.
func TestAskOverFullScreen(t *testing.T) {
	t.Parallel()
	s := onScreen(t, plan{TTY: true, Ask: "well?", Args: shell("trap 'stty size' WINCH; printf '\\033[?1049hfull'; i=0; while [ $i -lt 28 ]; do sleep 0.05; i=$((i+1)); done")}, nil)
	s.await("full")
	s.await("\x1b[?1049l" + plainText + "well?\r\n[y] yes, [n] no: ")
	time.Sleep(settling + 100*time.Millisecond)
	s.typed("n")
	s.await("n\r\n\x1b[?1049h")
	s.await("30 100")
	s.ends(0)
}

// Where standard input is no terminal the question comes on the user's terminal all the same, and input stays the command's.
func TestAskBesidesPipes(t *testing.T) {
	t.Parallel()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	s := onScreen(t, plan{Ask: "well?", Args: shell("read x; echo \"<$x>\"")}, r)
	s.await("well?\r\n[y] yes, [n] no: ")
	time.Sleep(settling + 200*time.Millisecond)
	s.typed("y")
	s.await("y\r\n")
	if _, err := w.WriteString("piped\n"); err != nil {
		t.Fatal(err)
	}
	s.await("<piped>")
	s.ends(0)
	if said := report(t, s.report); !strings.Contains(said, "answer 'y' <nil>") {
		t.Error(said)
	}
}

// With a terminal outside and none inside, the keyboard is the question's while it lasts, and the command's line by line otherwise.
func TestAskWithoutTerminalInside(t *testing.T) {
	t.Parallel()
	s := onScreen(t, plan{Ask: "well?", Args: shell("printf 'half'; read x; echo \"<$x>\"")}, nil)
	s.await("half\r\nwell?\r\n[y] yes, [n] no: ")
	time.Sleep(settling + 200*time.Millisecond)
	s.typed("n")
	s.await("n\r\n")
	time.Sleep(50 * time.Millisecond)
	s.typed("line\n")
	s.await("<line>")
	s.ends(0)
	if said := report(t, s.report); !strings.Contains(said, "answer 'n' <nil>") {
		t.Error(said)
	}
}

// The end of the command ends the question.
func TestAskEndsWithTheCommand(t *testing.T) {
	t.Parallel()
	s := onScreen(t, plan{TTY: true, Ask: "well?", Args: shell("sleep 1.5")}, nil)
	s.await("well?")
	s.ends(0)
	if said := report(t, s.report); !strings.Contains(said, "answer '\\x00'") {
		t.Error(said)
	}
}

func TestTTYNeedsTerminal(t *testing.T) {
	t.Parallel()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	file := filepath.Join(t.TempDir(), "report")
	cmd := plan{TTY: true, Args: shell("true"), Report: file}.command(t)
	cmd.Stdin = r
	_ = cmd.Run()
	if said := report(t, file); !strings.Contains(said, "standard input is not a terminal") {
		t.Error(said)
	}
}

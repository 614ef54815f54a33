package e2e

import (
	"bytes"
	"fmt"
	"net/http"
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

	"github.com/cofferdam/cofferdam/internal/testenv"
)

// screen is a "cofferdam" at a terminal of 30 by 100: what it shows, and the keyboard.
type screen struct {
	t             *testing.T
	cmd           *exec.Cmd
	master, slave *os.File
	before        unix.Termios
	done          chan struct{}

	mu   sync.Mutex
	seen []byte
	read int // what was expected already
	more chan struct{}
}

// onScreen starts a command of cofferdam's at a terminal of its own.
func (h *house) onScreen(args ...string) *screen {
	h.t.Helper()
	master, slave, err := pty.Open()
	if err != nil {
		h.t.Skip(err)
	}
	s := &screen{t: h.t, master: master, slave: slave, more: make(chan struct{}, 1), done: make(chan struct{})}
	s.cmd = h.command(h.t.Context(), args...)
	s.cmd.Env = append(s.cmd.Env, "TERM=xterm")
	s.cmd.Stdin, s.cmd.Stdout, s.cmd.Stderr = slave, slave, slave
	s.cmd.SysProcAttr.Setsid, s.cmd.SysProcAttr.Setctty = true, true
	s.resize(30, 100)
	s.before = s.mode()
	if err := s.cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	go s.watch()
	go func() {
		_ = s.cmd.Wait() // the state tells
		close(s.done)
	}()
	h.t.Cleanup(func() {
		_ = s.cmd.Process.Kill() // it has ended, unless the test failed
		<-s.done
		_ = slave.Close()  // ends watch
		_ = master.Close() // likewise
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

func (s *screen) resize(rows, cols uint16) {
	s.t.Helper()
	if err := pty.Setsize(s.master, &pty.Winsize{Rows: rows, Cols: cols}); err != nil {
		s.t.Fatal(err)
	}
}

func (s *screen) mode() unix.Termios {
	s.t.Helper()
	m, err := unix.IoctlGetTermios(int(s.slave.Fd()), unix.TCGETS)
	if err != nil {
		s.t.Fatal(err)
	}
	return *m
}

// keys types.
func (s *screen) keys(text string) {
	s.t.Helper()
	if _, err := s.master.WriteString(text); err != nil {
		s.t.Fatal(err)
	}
}

// wait waits for something to be shown after what was waited for before, and returns what came until then.
func (s *screen) wait(want string) string {
	s.t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		s.mu.Lock()
		fresh := s.seen[s.read:]
		if i := bytes.Index(fresh, []byte(want)); i >= 0 {
			s.read += i + len(want)
			s.mu.Unlock()
			return string(fresh[:i+len(want)])
		}
		s.mu.Unlock()
		select {
		case <-s.more:
		case <-deadline:
			s.t.Fatalf("no %q is shown: %q", want, s.shown())
		}
	}
}

// shown is everything shown so far.
func (s *screen) shown() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return string(s.seen)
}

// end waits for the end, returns the exit code, and makes sure that the terminal is as it was.
func (s *screen) end() int {
	s.t.Helper()
	select {
	case <-s.done:
	case <-time.After(20 * time.Second):
		s.t.Fatalf("not over: %q", s.shown())
	}
	if after := s.mode(); after != s.before {
		s.t.Errorf("the terminal's mode is %+v, was %+v", after, s.before)
	}
	time.Sleep(50 * time.Millisecond) // what was written last is still to be read
	return s.cmd.ProcessState.ExitCode()
}

// TestShellAtTerminal works in a shell inside as at any terminal.
func TestShellAtTerminal(t *testing.T) {
	testenv.Need(t, "tool:bash")
	forEachUser(t, func(t *testing.T, h *house) {
		s := h.onScreen("run", "--env", "PS1=inside> ", "--", "bash", "--norc", "--noprofile")
		s.wait("inside> ")
		s.keys("stty size; tty\r")
		s.wait("30 100")
		s.wait("/dev/pts/")
		s.resize(20, 80)
		for range 50 { // the news of the size takes its own way
			s.keys("stty size\r")
			if strings.Contains(s.wait("inside> "), "20 80") {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		if !strings.Contains(s.shown(), "20 80") {
			t.Error("the new size did not arrive")
		}
		s.keys("sleep 1000\r")
		time.Sleep(200 * time.Millisecond) // until it is in the foreground
		s.keys("\x03")
		s.wait("inside> ")
		s.keys("echo status $?\r")
		s.wait("status 130") // the job is gone, the shell is not
		s.keys("sleep 1001\r")
		time.Sleep(200 * time.Millisecond)
		s.keys("\x1a")
		s.wait("Stopped")
		s.keys("jobs; fg\r")
		s.wait("Stopped")
		s.wait("sleep 1001")
		time.Sleep(200 * time.Millisecond)
		s.keys("\x03")
		s.wait("inside> ")
		s.keys("exit 7\r")
		if code := s.end(); code != 7 {
			t.Errorf("exit %d: %q", code, s.shown())
		}
	})
}

// TestFullScreenProgram keeps notices off the screen of a program that has it for itself, and shows them afterwards.
func TestFullScreenProgram(t *testing.T) {
	testenv.Need(t, "tool:less")
	forEachUser(t, func(t *testing.T, h *house) {
		h.write("text", strings.Repeat("a line of text\n", 100))
		s := h.onScreen("run", "--", "sh", "-c", "(sleep 0.5; getent hosts bad.example.org; touch asked) & exec less text")
		s.wait("\x1b[?1049h")
		s.wait("a line of text")
		time.Sleep(time.Second)
		if shown := s.shown(); strings.Contains(shown, "denied") {
			t.Errorf("a notice on the screen of less: %q", shown)
		}
		s.keys(" ")
		s.keys("q")
		s.wait("\x1b[?1049l")
		s.wait("denied getent")
		if code := s.end(); code != 0 {
			t.Errorf("exit %d: %q", code, s.shown())
		}
	})
}

// TestDenialLines denies something while the command has its terminal in raw mode and a line half written.
func TestDenialLines(t *testing.T) {
	forEachUser(t, func(t *testing.T, h *house) {
		s := h.onScreen("run", "--", "sh", "-c", `stty raw -echo; printf 'half a line'; getent hosts bad.example.org; sleep 0.5; printf 'the rest'; exit 3`)
		s.wait("half a line")
		if got := s.wait("cofferdam: denied "); !strings.HasSuffix(got, "\r\ncofferdam: denied ") {
			t.Errorf("the notice is not on a line of its own: %q", got)
		}
		if got := s.wait("the rest"); !strings.Contains(got, "--allow bad.example.org\r\n") || strings.Contains(strings.ReplaceAll(got, "\r\n", ""), "\n") {
			t.Errorf("the line's end: %q", got)
		}
		if code := s.end(); code != 3 {
			t.Errorf("exit %d", code)
		}
	})
}

// TestTerminalAfterKill kills what has put the terminal into a bad state.
func TestTerminalAfterKill(t *testing.T) {
	forEachCrypt(t, func(t *testing.T, c *crypt) {
		for _, victim := range []string{"inside", "supervisor", "command"} {
			s := c.onScreen("run", "--", "sh", "-c", `stty raw -echo; printf '\033[?1049h\033[?25l\033[?1000hready'; while :; do sleep 1; done`)
			s.wait("ready")
			if err := syscall.Kill(c.find(victim), syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			s.wait("\x1b[?1049l")
			if code := s.end(); code == 0 {
				t.Errorf("%s killed: exit 0", victim)
			}
			for _, undo := range []string{"\x1b[?25h", "\x1b[?1000l"} {
				if !strings.Contains(s.shown(), undo) {
					t.Errorf("%s killed: %q is missing: %q", victim, undo, s.shown())
				}
			}
			c.checkGone()
		}
	})
}

const askPolicy = `# kept by hand
version: 1
egress:
  # nothing so far
  rules:
    - hosts: [other.example.org] # a remark
`

// TestAsk answers questions in each way, and looks at the policy file afterwards.
func TestAsk(t *testing.T) {
	testenv.Need(t, "tool:curl")
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "from upstream") })
	forEachUser(t, func(t *testing.T, h *house) {
		site := newSite(h, mux, false)
		h.write("agent.yaml", askPolicy)
		flags := append([]string{"run", "--policy", "agent.yaml", "--env", "PS1=inside> "}, site.flags...)
		s := h.onScreen(append(append([]string{}, flags...), "--ask", "--", "sh")...)
		url := func(host string) string { return "http://" + host + ":" + site.port + "/" }
		for _, one := range []struct{ host, key, want string }{
			{"git.example.org", "n", "you refused it"},
			{"git.example.org", "", "you refused it"}, // never is never: it is not asked again
			{"index.example.org", "o", "from upstream"},
			{"files.example.org", "a", "from upstream"},
			{"files.example.org", "", "from upstream"},
		} {
			s.wait("inside> ")
			s.keys("curl -sS " + url(one.host) + "\r")
			if one.key != "" {
				s.wait("curl[")
				s.wait("wants to reach " + one.host + ":" + site.port)
				s.wait("[n] never in this run: ")
				time.Sleep(600 * time.Millisecond) // keys pressed at once do not count: nobody has read the question yet
				s.keys(one.key)
			}
			if got := s.wait(one.want); one.key == "" && strings.Contains(got, "wants to reach") {
				t.Errorf("asked again: %q", got)
			}
		}
		s.wait("inside> ")
		s.keys("exit\r")
		if code := s.end(); code != 0 {
			t.Errorf("exit %d: %q", code, s.shown())
		}
		policy, err := os.ReadFile(filepath.Join(h.project, "agent.yaml"))
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"# kept by hand\n", "  # nothing so far\n", "[other.example.org] # a remark\n", "files.example.org", site.port} {
			if !strings.Contains(string(policy), want) {
				t.Errorf("the policy file lacks %q:\n%s", want, policy)
			}
		}
		if strings.Contains(string(policy), "git.example.org") || strings.Contains(string(policy), "index.example.org") {
			t.Errorf("the policy file has more than was always allowed:\n%s", policy)
		}
		h.works(time.Minute, "from upstream", "curl -sS "+url("files.example.org"), flags[1:]...)
		h.refused("curl -sS --fail "+url("git.example.org"), flags[1:]...)
	})
}

// TestAskNobody has no terminal to ask at: what no rule names is refused at once.
func TestAskNobody(t *testing.T) {
	testenv.Need(t, "tool:curl")
	forEachUser(t, func(t *testing.T, h *house) {
		cmd := h.command(t.Context(), "run", "--ask", "--", "curl", "-sS", "-m", "20", "--fail", "http://files.example.org/")
		cmd.SysProcAttr.Setsid = true // no controlling terminal, wherever the test runs
		began := time.Now()
		out, err := cmd.CombinedOutput()
		if took := time.Since(began); err == nil || took > soon || !strings.Contains(string(out), "no terminal to ask at") || !strings.Contains(string(out), "denied") {
			t.Errorf("%v after %v: %s", err, took, out)
		}
		found := false
		for _, e := range h.events() {
			found = found || e.Verdict == "deny" && e.Host == "files.example.org"
		}
		if !found {
			t.Error("no denial on record")
		}
	})
}

package runner_test

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/internal/frame"
)

// hold starts a runner that runs nothing by itself and takes its further connections.
func hold(t *testing.T) *sandbox {
	t.Helper()
	b := boot(t, frame.Start{Hold: true})
	if pid := within(t, "start", b.started); pid != 1 {
		t.Errorf("a hold started as %d", pid)
	}
	b.take()
	return b
}

// take accepts further connections until the listener is closed.
func (b *sandbox) take() {
	b.expected = make(map[string]chan *sandbox)
	if err := b.listener.SetDeadline(time.Time{}); err != nil {
		b.t.Fatal(err)
	}
	go func() {
		for {
			conn, err := b.listener.Accept()
			if err != nil {
				return
			}
			go b.greet(conn)
		}
	}()
}

func (b *sandbox) greet(conn net.Conn) {
	c := newSandbox(b.t)
	c.connect(conn)
	select {
	case h := <-c.facts:
		b.mu.Lock()
		who := b.expected[string(h.Token)]
		delete(b.expected, string(h.Token))
		b.mu.Unlock()
		if who != nil {
			who <- c
			return
		}
		b.t.Errorf("a connection with the token %q", h.Token)
	case err := <-c.over:
		b.t.Errorf("a connection ended before hello: %v", err)
	}
	c.link.End()
}

// call has the runner connect once more and waits for it. Only the link of what it returns is there, and its channels.
func (b *sandbox) call(token string) *sandbox {
	b.t.Helper()
	who := make(chan *sandbox, 1)
	b.mu.Lock()
	b.expected[token] = who
	b.mu.Unlock()
	if err := b.link.SendSpawn([]byte(token)); err != nil {
		b.t.Error(err)
		return nil
	}
	select {
	case c := <-who:
		return c
	case <-time.After(20 * time.Second):
		b.t.Errorf("nobody came with the token %q", token)
		return nil
	}
}

// spawn runs a further command.
func (b *sandbox) spawn(token string, s frame.Start) *sandbox {
	b.t.Helper()
	c := b.call(token)
	if c == nil {
		b.t.FailNow()
	}
	b.t.Cleanup(c.link.End)
	if err := c.link.SendStart(s); err != nil {
		b.t.Fatal(err)
	}
	return c
}

// result is what a command wrote and how it ended.
func (b *sandbox) result() (string, frame.Exit) {
	b.t.Helper()
	out := b.collect(frame.Stdout)
	b.collect(frame.Stderr)
	e := within(b.t, "exit", b.exits)
	text := within(b.t, "output", out)
	b.link.End()
	return text, e
}

// alive checks that the sandbox works.
func (b *sandbox) alive() {
	b.t.Helper()
	if out, e := b.spawn("alive"+strconv.FormatInt(time.Now().UnixNano(), 36), sh("echo alive; exit 3")).result(); out != "alive\n" || e.Code != 3 {
		b.t.Errorf("got %q, %+v; the runner says %q", out, e, &b.log)
	}
}

// The runner's own file is found without a path.
func TestSelf(t *testing.T) {
	b := hold(t)
	for name, self := range map[string]bool{"its own file": true, "a path": false} {
		s := start("/no/such/program", "file", "read", "/proc/1/comm")
		s.Self = self
		out, e := b.spawn(name, s).result()
		if self != (out == "cofferdam-runne\n" && e == frame.Exit{}) || !self && !e.NotFound {
			t.Errorf("%s: %q, %+v", name, out, e)
		}
	}
}

func TestTwoCommandsAtOnce(t *testing.T) {
	for name, first := range map[string]frame.Start{"beside a hold": {Hold: true}, "beside a command": start("sleep", "60")} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := boot(t, first)
			within(t, "start", b.started)
			b.take()
			x, y := b.spawn("x", sh("read a; echo x $a; exit 4")), b.spawn("y", sh("read a; echo y $a >&2; echo out; kill -9 $$"))
			px, py := within(t, "start", x.started), within(t, "start", y.started)
			if px < 2 || py < 2 || px == py {
				t.Errorf("process ids %d and %d", px, py)
			}
			errs := y.collect(frame.Stderr)
			for _, c := range []*sandbox{y, x} {
				if _, err := io.WriteString(c.link.Sender(frame.Stdin), "text\n"); err != nil {
					t.Fatal(err)
				}
			}
			if out, e := x.result(); out != "x text\n" || e != (frame.Exit{Code: 4}) {
				t.Errorf("x: %q, %+v", out, e)
			}
			outs := y.collect(frame.Stdout)
			if e := within(t, "exit", y.exits); e != (frame.Exit{Signal: 9}) || within(t, "output", outs) != "out\n" || within(t, "error output", errs) != "y text\n" {
				t.Errorf("y: %+v", e)
			}
			b.alive()
		})
	}
}

// What holds for the first command holds for further ones.
func TestSpawnedCommandInheritsNothing(t *testing.T) {
	b := hold(t)
	other := b.spawn("other", withTTY(start("sleep", "60")))
	within(t, "start", other.started)
	c := b.spawn("secret-token", sh(`env; ls -l /proc/self/fd | sed 1d | wc -l; grep -E 'Sig(Ign|Blk)' /proc/self/status; cat /proc/1/environ 2>&1
		ps -o sid= -p $$ | tr -d ' '; echo $$; cat /proc/self/oom_score_adj; cat /proc/1/cmdline | tr '\0' ' '`))
	out, _ := c.result()
	for _, bad := range []string{"RUNNER_ONLY", token, "secret-token"} {
		if strings.Contains(out, bad) {
			t.Errorf("the command can see %q:\n%s", bad, out)
		}
	}
	pid := strconv.Itoa(<-c.started)
	for _, good := range []string{"TERM=xterm", "\n4\n", "environ: Permission denied", "SigBlk:\t0000000000000000", "SigIgn:\t0000000000000000", "\n" + pid + "\n" + pid + "\n", "\n900\n"} {
		if !strings.Contains(out, good) {
			t.Errorf("want %q in:\n%s", good, out)
		}
	}
}

// One command's limits are not another's, and the runner keeps its own.
func TestLimitsOfSpawnedCommands(t *testing.T) {
	b := hold(t)
	limits := func(name string, files uint64) string {
		s := sh("ulimit -Sn; ulimit -Su; ulimit -Hn")
		s.OpenFile = files
		out, _ := b.spawn(name, s).result()
		return out
	}
	before := limits("1", 0)
	if few := limits("2", 100); !strings.HasPrefix(few, "100\n") {
		t.Errorf("limits with 100 files: %q", few)
	}
	if after := limits("3", 0); after != before {
		t.Errorf("limits were %q and are %q", before, after)
	}
	out, _ := b.spawn("4", sh("grep 'Max open files' /proc/1/limits")).result()
	if f := strings.Fields(out); len(f) != 6 || f[3] != f[4] {
		t.Errorf("the runner's own limit is %q, and not the highest again", out)
	}
}

func TestSpawnThatCannotStart(t *testing.T) {
	b := hold(t)
	if _, e := b.spawn("a", start("no-such-program")).result(); !e.NotFound || e.Error == "" {
		t.Errorf("exit %+v", e)
	}
	b.alive()
}

func TestTerminalOfASpawnedCommand(t *testing.T) {
	b := hold(t)
	const script = `trap 'stty size' WINCH; tty; stty size; echo ready; while :; do sleep 0.05; done`
	x, y := b.spawn("x", withTTY(sh(script))), b.spawn("y", withTTY(sh(script)))
	first, second := x.await(frame.Stdout, "ready"), y.await(frame.Stdout, "ready")
	if !strings.HasPrefix(first, "/dev/pts/") || !strings.Contains(first, "33 101\r\n") || first == second {
		t.Errorf("got %q and %q", first, second)
	}
	if err := x.link.SendResize(40, 120); err != nil {
		t.Fatal(err)
	}
	x.await(frame.Stdout, "40 120\r\n")
	x.typed("\x03")
	if _, e := x.result(); e.Signal != int(syscall.SIGINT) {
		t.Errorf("exit %+v", e)
	}
	if err := y.link.SendSignal(int(syscall.SIGTERM)); err != nil {
		t.Fatal(err)
	}
	if out, e := y.result(); e.Signal != int(syscall.SIGTERM) || strings.Contains(out, "40 120") {
		t.Errorf("exit %+v, output %q", e, out)
	}
	b.alive()
}

// gonePIDs waits until none of the processes is left.
func (b *sandbox) gonePIDs(pids ...string) {
	b.t.Helper()
	list := strings.Join(pids, " ")
	out, _ := b.spawn("look"+list, sh(`for i in $(seq 1 60); do left=; for p in `+list+`; do [ -e /proc/$p ] && left="$left $p"; done
		[ -z "$left" ] && exit 0; sleep 0.1; done; ps -A -o pid,pgid,sid,stat,args; echo left $left`)).result()
	if out != "" {
		b.t.Errorf("not gone:\n%s", out)
	}
}

// The loss of a further link ends its command, stubborn or not, with all of its group and the group in front of its terminal, and nothing else.
func TestLostSpawnEndsItsGroup(t *testing.T) {
	tests := map[string]frame.Start{
		"willing":              sh("sleep 60 & echo $$ $! done; wait"),
		"child ignores":        sh("(trap '' HUP; exec sleep 60) & echo $$ $! done; wait"),
		"all ignore":           sh("trap '' HUP TERM INT; sleep 60 & echo $$ $! done; wait; sleep 60"),
		"stopped":              sh("sleep 60 & echo $$ $! done; kill -STOP $! $$; wait"),
		"terminal":             withTTY(sh("sleep 60 & echo $$ $! done; wait")),
		"terminal, all ignore": withTTY(sh("trap '' HUP TERM INT; sleep 60 & echo $$ $! done; wait; sleep 60")),
		"job in front":         withTTY(start("bash", "-c", `set -m; bash -c 'trap "" HUP; echo $PPID $$ done; sleep 60; sleep 60'; sleep 60`)),
	}
	b := hold(t)
	other := b.spawn("other", sh("echo $$ done; sleep 600"))
	other.await(frame.Stdout, "done")
	for name, s := range tests {
		t.Run(name, func(t *testing.T) {
			c := b.spawn(name, s)
			out := c.await(frame.Stdout, "done\n"[:4])
			c.link.End()
			pids := strings.Fields(out)
			if len(pids) != 3 {
				t.Fatalf("output %q", out)
			}
			b.gonePIDs(pids[:2]...)
		})
	}
	if err := other.link.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := other.link.SendSignal(int(syscall.SIGTERM)); err != nil {
		t.Fatal(err)
	}
	if e := within(t, "exit", other.exits); e.Signal != int(syscall.SIGTERM) {
		t.Errorf("the other ended with %+v", e)
	}
}

// Input that stops coming is not the end of the input.
func TestLostOwnerIsNoEndOfInput(t *testing.T) {
	b := hold(t)
	dir := t.TempDir()
	c := b.spawn("x", sh("trap '' HUP; echo ready; cat > "+dir+"/got && echo whole > "+dir+"/whole"))
	if _, err := io.WriteString(c.link.Sender(frame.Stdin), "half"); err != nil {
		t.Fatal(err)
	}
	c.await(frame.Stdout, "ready")
	c.link.End()
	time.Sleep(1500 * time.Millisecond) // longer than the patience after SIGHUP
	if out, _ := b.spawn("y", sh("cd "+dir+"; ls; cat got")).result(); strings.Contains(out, "whole") || !strings.Contains(out, "got") {
		t.Errorf("found %q", out)
	}
}

// A hold ends with its owner's connection, and with it everything.
func TestHoldEndsWithItsOwner(t *testing.T) {
	b := hold(t)
	c := b.spawn("x", sh("trap '' TERM HUP INT; setsid sleep 60 & sleep 60"))
	within(t, "start", c.started)
	if err := b.link.SendQuery(frame.Query{ID: 7, Network: "tcp", Source: "127.0.0.1:1"}); err != nil {
		t.Fatal(err)
	}
	if o := within(t, "answer", b.owners); o.ID != 7 {
		t.Errorf("answer %+v", o)
	}
	if err := b.link.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	for n := 1; n <= 64; n++ { // no command to get them
		if err := b.link.SendSignal(n); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.link.SendResize(3, 4); err != nil {
		t.Fatal(err)
	}
	b.alive()
	b.link.End()
	b.gone(true)
	within(t, "end of the further link", c.over)
}

// A command that ends takes further ones with it.
func TestFirstCommandEndsTheOthers(t *testing.T) {
	b := boot(t, sh("read a; exit 6"))
	b.take()
	c := b.spawn("x", start("sleep", "60"))
	within(t, "start", c.started)
	if _, err := io.WriteString(b.link.Sender(frame.Stdin), "\n"); err != nil {
		t.Fatal(err)
	}
	if e := within(t, "exit", b.exits); e.Code != 6 {
		t.Errorf("exit %+v", e)
	}
	b.link.Receiver(frame.Stdout).Stop()
	b.link.Receiver(frame.Stderr).Stop()
	b.link.End()
	b.gone(true)
	within(t, "end of the further link", c.over)
}

// What is not allowed on a further link ends that link, with a word why, and nothing else.
func TestBrokenSpawnEndsOnlyItself(t *testing.T) {
	b := hold(t)
	begin := func(c *sandbox, s frame.Start) error { return c.link.SendStart(s) }
	tests := map[string]struct {
		act  func(c *sandbox) error
		says string
	}{
		"hold": {func(c *sandbox) error { return begin(c, frame.Start{Hold: true}) }, "hold"},
		"query": {func(c *sandbox) error {
			return firstError(begin(c, start("sleep", "60")), c.link.SendQuery(frame.Query{ID: 1}))
		}, "unexpected"},
		"spawn": {func(c *sandbox) error {
			return firstError(begin(c, start("sleep", "60")), c.link.SendSpawn([]byte("z")))
		}, "unexpected"},
		"start twice": {func(c *sandbox) error {
			return firstError(begin(c, start("sleep", "60")), begin(c, start("sleep", "60")))
		}, "out of order"},
		"signal first": {func(c *sandbox) error { return c.link.SendSignal(15) }, "out of order"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			c := b.call(name)
			if c == nil {
				t.FailNow()
			}
			if err := test.act(c); err != nil {
				t.Fatal(err)
			}
			if text := within(t, "last word", c.errs); !strings.Contains(text, test.says) {
				t.Errorf("the runner said %q, want %q", text, test.says)
			}
			within(t, "end", c.over)
			b.alive()
		})
	}
	if out, _ := b.spawn("left", sh("for i in $(seq 1 40); do pgrep -x sleep >/dev/null || exit 0; sleep 0.1; done; ps -A")).result(); out != "" {
		t.Errorf("left over:\n%s", out)
	}
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// A control address where nobody listens any more ends nothing.
func TestSpawnThatReachesNobody(t *testing.T) {
	b := boot(t, sh("read a; exit 8"))
	within(t, "start", b.started)
	if err := b.listener.Close(); err != nil {
		t.Fatal(err)
	}
	for range 1000 { // beyond every bound
		if err := b.link.SendSpawn([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if err := b.link.Ping(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(500 * time.Millisecond)
	if _, err := io.WriteString(b.link.Sender(frame.Stdin), "\n"); err != nil {
		t.Fatal(err)
	}
	if e := within(t, "exit", b.exits); e.Code != 8 {
		t.Errorf("exit %+v", e)
	}
}

// The 65th command at once is refused, and runs when there is a place.
func TestBoundOfSpawnedCommands(t *testing.T) {
	b := hold(t)
	const most = 64
	running := make([]*sandbox, most)
	for i := range running {
		running[i] = b.spawn("c"+strconv.Itoa(i), sh("read a; ls /proc/1/task | wc -l; read a; exit 5"))
	}
	for _, c := range running {
		within(t, "start", c.started)
	}
	if _, err := io.WriteString(running[0].link.Sender(frame.Stdin), "\n"); err != nil {
		t.Fatal(err)
	}
	if n, err := strconv.Atoi(strings.TrimSpace(running[0].await(frame.Stdout, "\n"))); err != nil || n > frame.ReservedProcesses {
		t.Errorf("the runner has %d threads, %v; %d are reserved", n, err, frame.ReservedProcesses)
	}
	out, e := b.spawn("65th", sh("echo no")).result()
	if out != "" || !strings.Contains(e.Error, "64 commands") || e.NotFound {
		t.Errorf("the 65th: %q, %+v", out, e)
	}
	if _, err := io.WriteString(running[0].link.Sender(frame.Stdin), "\n"); err != nil {
		t.Fatal(err)
	}
	if _, e := running[0].result(); e.Code != 5 {
		t.Errorf("exit %+v", e)
	}
	b.alive()
	for _, c := range running[1:] {
		c.link.End()
	}
	b.alive()
}

// Of very many quick commands, started by several at once among dying orphans, each gets its own status and its own output.
func TestStatusesAreNotMixedUp(t *testing.T) {
	b := hold(t)
	load := b.spawn("load", sh(`while :; do sh -c 'sh -c "exit 77" & sh -c "kill -9 \$\$" & exit 0'; done`))
	go func() { _, _ = io.Copy(io.Discard, load.link.Receiver(frame.Stderr)) }()
	const each, workers = 50, 10
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for i := range each {
				n := w*each + i
				c := b.call(fmt.Sprintf("quick%d", n))
				if c == nil {
					return
				}
				s, want := sh(fmt.Sprintf("echo %d; exit %d", n, n%76)), frame.Exit{Code: n % 76}
				if n%5 == 0 {
					s, want = sh(fmt.Sprintf("echo %d; kill -15 $$", n)), frame.Exit{Signal: 15}
				}
				if err := c.link.SendStart(s); err != nil {
					t.Error(err)
					return
				}
				out := c.collect(frame.Stdout)
				select {
				case e := <-c.exits:
					if got := <-out; e != want || got != strconv.Itoa(n)+"\n" {
						t.Errorf("%d: got %q, %+v, want %+v", n, got, e, want)
					}
				case <-time.After(20 * time.Second):
					t.Errorf("%d: no exit", n)
				}
				c.link.End()
			}
		})
	}
	wg.Wait()
	load.link.End()
	out, _ := b.spawn("count", sh(`for i in $(seq 1 50); do n=$(ps -A -o stat= | grep -c '^Z'); [ $n = 0 ] && break; sleep 0.1; done; echo $n`)).result()
	if f := strings.Fields(out); len(f) == 0 || f[0] != "0" {
		t.Errorf("zombies: %q", out)
	}
	b.fewFiles()
}

// fewFiles waits until process 1 has closed what ended sessions had open, where the test may look at it.
func (b *sandbox) fewFiles() {
	b.t.Helper()
	pid := b.cmd.Process.Pid
	kids, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		b.t.Logf("cannot count the runner's files: %v", err)
		return
	}
	var files []os.DirEntry
	for range 50 {
		if files, err = os.ReadDir("/proc/" + strings.TrimSpace(string(kids)) + "/fd"); err != nil || len(files) < 12 {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	if err != nil || len(files) >= 12 {
		b.t.Errorf("the runner has %d files open, %v", len(files), err)
	}
}

// A background process that holds the output, or the input, of a further command delays its end by moments, and stays.
func TestSpawnedBackgroundProcess(t *testing.T) {
	b := hold(t)
	c := b.spawn("x", sh("sleep 60 & echo $!; exit 3"))
	go func() { _, _ = c.link.Sender(frame.Stdin).Write(make([]byte, 1<<20)) }()
	began := time.Now()
	out, e := c.result()
	if took := time.Since(began); e.Code != 3 || took > 5*time.Second {
		t.Errorf("exit %+v after %v", e, took)
	}
	b.fewFiles()
	if _, e := b.spawn("y", sh("kill -0 "+out)).result(); e.Code != 0 {
		t.Errorf("the background process is gone: %+v", e)
	}
}

// The file service is the runner's own program, run as a command.
func TestFileServiceAsACommand(t *testing.T) {
	name, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	b := hold(t)
	dir := t.TempDir()
	c := b.spawn("write", start(name, "file", "write", "-p", dir+"/sub/data", "640"))
	data := bytes.Repeat([]byte("0123456789\x00\xff\n"), 50000)
	if _, err := c.link.Sender(frame.Stdin).Write(data); err != nil {
		t.Fatal(err)
	}
	c.link.Sender(frame.Stdin).Close()
	if out, e := c.result(); e != (frame.Exit{}) || out != "" {
		t.Errorf("write: %q, %+v", out, e)
	}
	if out, e := b.spawn("read", start(name, "file", "read", dir+"/sub/data")).result(); e != (frame.Exit{}) || out != string(data) {
		t.Errorf("read: %d bytes, %+v", len(out), e)
	}
	if out, e := b.spawn("list", start(name, "file", "list", dir+"/sub")).result(); e != (frame.Exit{}) || !strings.Contains(out, `"mode":"-rw-r-----"`) {
		t.Errorf("list: %q, %+v", out, e)
	}
	if _, e := b.spawn("absent", start(name, "file", "stat", dir+"/none")).result(); e.Code != 3 {
		t.Errorf("absent: %+v", e)
	}
	half := b.spawn("half", start(name, "file", "write", dir+"/sub/data"))
	if _, err := half.link.Sender(frame.Stdin).Write(data[:1000]); err != nil {
		t.Fatal(err)
	}
	within(t, "start", half.started)
	time.Sleep(200 * time.Millisecond)
	half.link.End()
	out, _ := b.spawn("look", sh("for i in $(seq 1 30); do [ $(ls -A "+dir+"/sub | wc -l) = 1 ] && break; sleep 0.1; done; ls -A "+dir+"/sub; wc -c < "+dir+"/sub/data")).result()
	if want := fmt.Sprintf("data\n%d\n", len(data)); out != want {
		t.Errorf("after half a write: %q, want %q", out, want)
	}
}

package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/testenv"
)

// background is a "cofferdam run" under way.
type background struct {
	c    *crypt
	cmd  *exec.Cmd
	out  journal // both streams
	done chan struct{}
}

// start starts a shell line in a sandbox.
func (c *crypt) start(line string, flags ...string) *background {
	c.t.Helper()
	return c.launch(c.shell(line, flags...))
}

// shell prepares it.
func (c *crypt) shell(line string, flags ...string) *exec.Cmd {
	return c.command(context.WithoutCancel(c.t.Context()), append(append([]string{"run"}, flags...), "--", "sh", "-c", line)...)
}

// launch starts a command in a process group of its own. What it prints is remembered, unless it has a place for it.
func (c *crypt) launch(cmd *exec.Cmd) *background {
	c.t.Helper()
	b := &background{c: c, cmd: cmd, done: make(chan struct{})}
	cmd.SysProcAttr.Setpgid = true
	if cmd.Stdout == nil {
		cmd.Stdout = &b.out
	}
	cmd.Stderr, cmd.WaitDelay = &b.out, 5*time.Second
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	go func() {
		_ = b.cmd.Wait() // the state tells
		close(b.done)
	}()
	c.t.Cleanup(func() { _ = b.cmd.Process.Kill() }) // it has ended, unless the test failed
	return b
}

// end waits for the end and returns the exit code, -1 if a signal ended it.
func (b *background) end(limit time.Duration) int {
	b.c.t.Helper()
	select {
	case <-b.done:
	case <-time.After(limit):
		alive := b.c.processes()
		for _, p := range alive {
			_ = syscall.Kill(p.pid, syscall.SIGQUIT) // the stacks of ours help
		}
		<-b.done
		b.c.t.Fatalf("not over after %v: %v\nalive were %+v\n%s", limit, b.cmd.Args, alive, b.out.String())
	}
	return b.cmd.ProcessState.ExitCode()
}

// await waits for a process of a kind.
func (b *background) await(kind string) int {
	for {
		if pid := b.c.find(kind); pid != 0 {
			return pid
		}
		select {
		case <-b.done:
			return 0
		default:
		}
	}
}

// says waits until the run has printed something.
func (b *background) says(text string) {
	b.c.t.Helper()
	b.within(30*time.Second, text)
}

// within does so as long as it may take.
func (b *background) within(limit time.Duration, text string) {
	b.c.t.Helper()
	for deadline := time.Now().Add(limit); !strings.Contains(b.out.String(), text); time.Sleep(5 * time.Millisecond) {
		select {
		case <-b.done:
			b.c.t.Fatalf("it ended without saying %q: %s", text, b.out.String())
		default:
		}
		if time.Now().After(deadline) {
			b.c.t.Fatalf("it does not say %q: %s", text, b.out.String())
		}
	}
}

// kill kills a process of a kind, a while after it is there. What it says is whether it hit anything.
func (b *background) kill(kind string, later time.Duration) bool {
	for {
		pid := b.await(kind)
		if pid == 0 {
			return false
		}
		time.Sleep(later)
		// Go itself starts a process that ends at once, to see whether the kernel has process descriptors; that one may have been found, and is gone.
		if parentOf(pid) >= 0 && syscall.Kill(pid, syscall.SIGKILL) == nil {
			return true
		}
	}
}

// TestKilled kills one program after the other at random moments of its life: while it starts, works and ends.
func TestKilled(t *testing.T) {
	const rounds = 9 // with four victims, and two users where the test is root: 72 kills
	kinds := []string{"cofferdam", "supervisor", "inside", "command"}
	forEachCrypt(t, func(t *testing.T, c *crypt) {
		c.write("keep.txt", "old\n")
		if r := c.sh("exit 5"); r.code != 5 {
			t.Fatalf("control: exit %d: %s", r.code, r.stderr)
		}
		kills := 0
		for i := range rounds * len(kinds) {
			kind := kinds[i%len(kinds)]
			// A third of the commands end by themselves about when they are hit.
			line := "echo new > keep.txt; (sleep 100 & sleep 100) & while :; do :; done"
			if i%3 == 0 {
				line = "echo new > keep.txt; sleep 0.01 & :"
			}
			b := c.start(line)
			within := 15 * time.Millisecond // about as long as a start takes
			if i/len(kinds)%3 == 2 {
				within = 80 * time.Millisecond
			}
			if b.kill(kind, time.Duration(rand.Int64N(int64(within)))) {
				kills++
			}
			code := b.end(20 * time.Second)
			if i%3 != 0 && code == 0 {
				t.Errorf("%s killed: exit 0 of a command that never ends\n%s", kind, b.out.String())
			}
			c.checkGone()
			if t.Failed() {
				t.Fatalf("after %d kills, this of %s; exit %d, %+v\n%s", kills, kind, code, c.last(), b.out.String())
			}
		}
		hows := map[string]int{}
		for _, r := range c.runs() {
			hows[r.How]++
		}
		t.Logf("%d kills; ends on record: %v", kills, hows)
		if kills < rounds*len(kinds)*3/4 {
			t.Errorf("only %d kills hit anything", kills)
		}
		if data, err := os.ReadFile(filepath.Join(c.project, "keep.txt")); err != nil || string(data) != "old\n" {
			t.Errorf("the workspace was changed: %q, %v", data, err)
		}
		if r := c.sh("echo still works"); r.stdout != "still works\n" || r.code != 0 {
			t.Errorf("after it all: %+v", r)
		}
	})
}

// TestEndings ends runs in each of the other ways and compares exit code and record.
func TestEndings(t *testing.T) {
	forEachCrypt(t, func(t *testing.T, c *crypt) {
		const forever = "(sleep 100 &) ; sleep 100"
		for _, one := range []struct {
			name, line string
			flags      []string
			signals    []syscall.Signal // sent to cofferdam once the command runs
			code       int
			how        string
		}{
			{name: "by itself", line: "(sleep 100 &); exit 3", code: 3, how: "exit 3"},
			{name: "Ctrl-C", line: forever, signals: []syscall.Signal{syscall.SIGINT}, code: 130, how: "signal 2"},
			{name: "Ctrl-C twice, deaf", line: "trap '' INT; " + forever, signals: []syscall.Signal{syscall.SIGINT, syscall.SIGINT}, code: 125, how: "interrupted"},
			{name: "terminated", line: forever, signals: []syscall.Signal{syscall.SIGTERM}, code: 143, how: "signal 15"},
			{name: "hung up", line: forever, signals: []syscall.Signal{syscall.SIGHUP}, code: 129, how: "signal 1"},
			{name: "timeout", line: "trap '' INT TERM HUP; " + forever, flags: []string{"--timeout", "1s"}, code: 124, how: "timeout"},
			{name: "processes", line: `i=0; while [ $i -lt 200 ]; do sleep 100 & i=$((i+1)); done; echo all`, flags: []string{"--pids", "40"}, code: 2, how: "exit 2"},
			{name: "fork bomb", line: `b() { b | b & wait; }; b 2>/dev/null; sleep 0.3; exit 9`, flags: []string{"--pids", "64", "--timeout", "3s"}, how: ""},
			{name: "disk", line: `dd if=/dev/zero of=/tmp/f bs=1M count=64 2>&1 | grep -o 'No space left on device'; exit 7`, flags: []string{"--disk", "8m"}, code: 7, how: "exit 7"},
			{name: "workspace's disk", line: `dd if=/dev/zero of=f bs=1M count=64 2>&1 | grep -o 'No space left on device' || exit 1; rm f; exit 7`, flags: []string{"--disk", "8m"}, code: 7, how: "exit 7"},
		} {
			t.Run(one.name, func(t *testing.T) {
				own := *c.house
				own.t = t
				c := &crypt{house: &own, exes: c.exes, namespaces: c.namespaces}
				b := c.start(one.line, one.flags...)
				for _, sig := range one.signals {
					b.await("command")
					time.Sleep(100 * time.Millisecond) // until the shell has set its traps
					_ = b.cmd.Process.Signal(sig)      // it may have ended already, which the code tells
				}
				code := b.end(20 * time.Second)
				last := c.last()
				if one.how != "" && (code != one.code || last.ExitCode != one.code || !strings.Contains(last.How, one.how)) {
					t.Errorf("exit %d, want %d; record %+v, want %q\n%s", code, one.code, last, one.how, b.out.String())
				}
				if last.How == "" {
					t.Errorf("no end on record: %+v", last)
				}
				c.checkGone()
			})
		}
	})
}

// TestMemory exceeds a memory limit: the command dies of it and is told so, or nothing is started where there can be no limit.
func TestMemory(t *testing.T) {
	forEachCrypt(t, func(t *testing.T, c *crypt) {
		const line = `exec python3 -c 'b = bytearray(400 << 20); print("unlimited")'`
		b := c.start(line, "--memory", "96m")
		code := b.end(30 * time.Second)
		switch {
		case code == 125 && strings.Contains(b.out.String(), "--best-effort memory"): // no delegated control group
			if r := c.sh(line, "--memory", "96m", "--best-effort", "memory"); r.code != 0 || len(c.last().Weaker) == 0 {
				t.Errorf("with --best-effort: exit %d, %+v: %s", r.code, c.last(), r.stderr)
			}
		default:
			if last := c.last(); code != 137 || last.How != "memory limit reached" || !strings.Contains(b.out.String(), "memory limit") {
				t.Errorf("exit %d, record %+v\n%s", code, last, b.out.String())
			}
			if r := c.sh("exit 0", "--memory", "96m"); r.code != 0 {
				t.Errorf("control: exit %d: %s", r.code, r.stderr)
			}
		}
		c.checkGone()
	})
}

// TestFullDisk leaves no room for records: nothing is started, or what cannot be recorded is denied, and the log is whole when there is room again.
func TestFullDisk(t *testing.T) {
	testenv.Need(t, "root") // to mount a small disk
	forEachCrypt(t, func(t *testing.T, c *crypt) {
		if err := os.Mkdir(c.state, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("scratch", c.state, "tmpfs", 0, "size=1m,mode=755"); err != nil {
			t.Skipf("mount: %v", err)
		}
		t.Cleanup(func() {
			if err := unix.Unmount(c.state, unix.MNT_DETACH); err != nil {
				t.Error(err)
			}
		})
		c.own(c.state)
		if r := c.sh("echo control"); r.code != 0 {
			t.Fatalf("control: exit %d: %s", r.code, r.stderr)
		}
		filler := filepath.Join(c.state, "filler")
		// While it runs the disk fills up: sooner or later a crossing cannot be recorded, so it does not happen. A few still find room in the log's last block.
		const tries = 100
		line := fmt.Sprintf("sleep 0.7; i=0; while [ $i -lt %d ]; do getent hosts f$i.example.org && echo crossed; i=$((i+1)); done; exit 4", tries)
		b := c.start(line, "--allow", "*.example.org", "--resolve", "f0.example.org=192.0.2.1")
		b.await("command")
		if err := os.WriteFile(filler, make([]byte, 2<<20), 0o600); !errors.Is(err, unix.ENOSPC) {
			t.Fatalf("fill the disk: %v", err)
		}
		code, crossed := b.end(30*time.Second), strings.Count(b.out.String(), "crossed")
		if crossed == tries || code == 0 {
			t.Errorf("without room for a record: exit %d after %d crossings", code, crossed)
		}
		if r := c.sh("echo started"); r.code == 0 || strings.Contains(r.stdout, "started") || !strings.Contains(r.stderr, "no space left") {
			t.Errorf("started without room for a record: exit %d: %s%s", r.code, r.stdout, r.stderr)
		}
		if err := os.Remove(filler); err != nil {
			t.Fatal(err)
		}
		if r := c.sh("echo again"); r.code != 0 || r.stdout != "again\n" {
			t.Errorf("with room again: exit %d: %s", r.code, r.stderr)
		}
		recorded := 0
		for _, e := range c.eventsOf(c.runs()[1].Run) {
			if e.Kind == "crossing.decided" && e.Verdict == "allow" {
				recorded++
			}
		}
		if recorded < crossed {
			t.Errorf("%d crossings, %d on record", crossed, recorded)
		}
		c.checkGone()
	})
}

// TestManySandboxes runs 200 one after the other and 50 at once.
func TestManySandboxes(t *testing.T) {
	forEachCrypt(t, func(t *testing.T, c *crypt) {
		one := func(i int) error {
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			cmd := c.command(ctx, "run", "-q", "--", "sh", "-c", fmt.Sprintf("read word; echo $word %d > own.txt; cat own.txt", i))
			var errs bytes.Buffer
			cmd.Stdin, cmd.Stderr = strings.NewReader("word\n"), &errs
			out, err := cmd.Output()
			if want := fmt.Sprintf("word %d\n", i); err != nil || string(out) != want {
				return fmt.Errorf("number %d: %w, %q instead of %q: %s", i, err, out, want, errs.String())
			}
			return nil
		}
		const row, together = 200, 50
		began := time.Now()
		for i := range row {
			if err := one(i); err != nil {
				t.Fatal(err)
			}
		}
		t.Logf("%d in a row: %v", row, time.Since(began))
		began = time.Now()
		var wg sync.WaitGroup
		failures := make([]error, together)
		for i := range together {
			wg.Go(func() { failures[i] = one(i) })
		}
		wg.Wait()
		if err := errors.Join(failures...); err != nil {
			t.Error(err)
		}
		t.Logf("%d at once: %v", together, time.Since(began))
		if all := c.runs(); len(all) != row+together {
			t.Errorf("%d runs on record, want %d", len(all), row+together)
		}
		c.checkGone()
	})
}

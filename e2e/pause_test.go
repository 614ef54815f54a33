package e2e

import (
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	wire "github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/client"
	"github.com/cofferdam/cofferdam/internal/cgroup"
	"github.com/cofferdam/cofferdam/internal/ident"
	"github.com/cofferdam/cofferdam/internal/testenv"
)

// counting is a shell line that adds to a file of the project as long as it runs.
const counting = "while :; do echo x >> count; sleep 0.01; done"

// size is how large a file of the project is.
func (c *crypt) size(name string) int64 {
	info, err := os.Stat(filepath.Join(c.project, name))
	if err != nil {
		return 0
	}
	return info.Size()
}

// grows waits until a file of the project is larger than it was.
func (c *crypt) grows(name string, from int64) {
	c.t.Helper()
	for end := time.Now().Add(20 * time.Second); c.size(name) <= from; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			c.t.Fatalf("%s has %d bytes, and no more", name, from)
		}
	}
}

// stands fails if a file of the project grows within a time.
func (c *crypt) stands(name string, within time.Duration) (size int64) {
	c.t.Helper()
	size = c.size(name)
	time.Sleep(within)
	if now := c.size(name); now != size {
		c.t.Errorf("paused, %s grew from %d to %d bytes", name, size, now)
	}
	return size
}

// must runs a command that is to succeed.
func (h *house) must(args ...string) {
	h.t.Helper()
	if r := h.do(args...); r.code != 0 {
		h.t.Fatalf("%q: exit %d: %s%s", args, r.code, r.stdout, r.stderr)
	}
}

// refuses runs a command that is to fail, with words and a hint.
func (h *house) refuses(words string, args ...string) {
	h.t.Helper()
	if r := h.do(args...); r.code == 0 || !strings.Contains(r.stderr, words) || !strings.Contains(r.stderr, "hint: ") {
		h.t.Errorf("%q: exit %d, want %q and a hint: %s%s", args, r.code, words, r.stdout, r.stderr)
	}
}

// shown is what ps says of the one run that lives.
func (h *house) shown() string {
	h.t.Helper()
	var list []struct{ State string }
	r := h.do("ps", "--json")
	if err := json.Unmarshal([]byte(r.stdout), &list); err != nil || len(list) != 1 {
		h.t.Fatalf("ps: %v, %s%s", err, r.stdout, r.stderr)
	}
	if table := h.do("ps"); !strings.Contains(table.stdout, list[0].State) {
		h.t.Errorf("ps does not say %s: %s", list[0].State, table.stdout)
	}
	return list[0].State
}

// TestPause pauses a run for longer than a kernel of its own may be silent, and lets it go on.
func TestPause(t *testing.T) {
	forEachWall(t, func(t *testing.T, h *house) {
		c := newCrypt(h)
		b := c.start(counting, "--workspace", ".:rw")
		c.grows("count", 0)
		if s := c.shown(); s != "running" {
			t.Errorf("before, it is %s", s)
		}
		c.refuses("is not paused", "resume", "last")
		c.must("pause", "last")
		long := 300 * time.Millisecond
		if c.as.level == "gvisor" {
			long = 35 * time.Second // the runner is asked for a sign of life every 5 s, and three answers may be missing
		}
		at := c.stands("count", long)
		if s := c.shown(); s != "paused" {
			t.Errorf("paused, it is %s", s)
		}
		c.refuses("is paused already", "pause", "last")
		c.must("resume", c.runs()[0].Run)
		c.grows("count", at)
		if s := c.shown(); s != "running" {
			t.Errorf("resumed, it is %s", s)
		}
		c.must("pause", "last")
		c.must("resume", "last")
		_ = b.cmd.Process.Signal(syscall.SIGTERM) // what it came to is in the code
		if code := b.end(20 * time.Second); code != 143 {
			t.Errorf("exit %d: %s", code, b.out.String())
		}
		var kinds []string
		for _, e := range c.events() {
			kinds = append(kinds, e.Kind)
		}
		kinds = slices.DeleteFunc(kinds, func(k string) bool { return !strings.HasPrefix(k, "run.") })
		if want := []string{"run.started", "run.paused", "run.resumed", "run.paused", "run.resumed", "run.ended"}; !slices.Equal(kinds, want) {
			t.Errorf("on record: %q, want %q", kinds, want)
		}
		c.refuses("has ended", "pause", "last")
		c.refuses("no run", "pause", "nosuchrun")
		c.checkGone()
	})
}

// TestPauseVM does so with a virtual machine, whose clock is right afterwards.
func TestPauseVM(t *testing.T) {
	c := newCrypt(newVMHouse(t))
	out, err := os.OpenFile(filepath.Join(c.project, "count"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd := c.shell("trap '' INT; while :; do date +%s; sleep 0.1; done", "-q")
	cmd.Stdout = out
	b := c.launch(cmd)
	for end := time.Now().Add(vmPatience); c.size("count") == 0 && time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
	}
	c.must("pause", "last")
	at := c.stands("count", 35*time.Second)
	c.must("resume", "last")
	c.grows("count", at)
	time.Sleep(3 * time.Second) // the clock is set within a second, as far as a busy host lets the machine
	text, err := os.ReadFile(out.Name())
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Fields(string(text))
	inside, err := strconv.ParseInt(lines[len(lines)-1], 10, 64)
	if away := time.Since(time.Unix(inside, 0)).Abs(); err != nil || away > 5*time.Second {
		t.Errorf("the machine's clock is %v away: %v", away, err)
	}
	c.must("pause", "last")
	for range 2 {
		_ = b.cmd.Process.Signal(syscall.SIGINT) // the code tells
		time.Sleep(100 * time.Millisecond)
	}
	if code := b.end(time.Minute); code != 125 {
		t.Errorf("exit %d: %s", code, b.out.String())
	}
	c.checkGone()
}

// TestPausedConnection holds a crossing open over a pause: what the server sends meanwhile arrives when the sandbox goes on.
func TestPausedConnection(t *testing.T) {
	forEachWall(t, func(t *testing.T, h *house) {
		c := newCrypt(h)
		send := make(chan struct{})
		site := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, "first\n")
			_ = http.NewResponseController(w).Flush()
			select {
			case <-send:
				_, _ = io.WriteString(w, "second\n")
			case <-r.Context().Done():
			}
		}))
		defer site.Close()
		_, port, err := net.SplitHostPort(site.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		b := c.start("curl -sSN http://"+plainName+":"+port+"/ > got", "--workspace", ".:rw", "--allow", plainName+":"+port, "--resolve", plainName+"=127.0.0.1", "--allow-network", "127.0.0.0/8")
		c.grows("got", 0)
		c.must("pause", "last")
		close(send)
		c.stands("got", time.Second)
		c.must("resume", "last")
		if code := b.end(20 * time.Second); code != 0 {
			t.Errorf("exit %d: %s", code, b.out.String())
		}
		if got, err := os.ReadFile(filepath.Join(c.project, "got")); err != nil || string(got) != "first\nsecond\n" {
			t.Errorf("%q, %v", got, err)
		}
		c.checkGone()
	})
}

// pausedEnds are the ways in which a paused run ends.
func pausedEnds() map[string]struct {
	flags []string
	end   func(c *crypt, b *background)
	code  int // -1: it was killed
} {
	signal := func(kind string, sig syscall.Signal) func(*crypt, *background) {
		return func(c *crypt, _ *background) { _ = syscall.Kill(c.find(kind), sig) } // the code tells
	}
	return map[string]struct {
		flags []string
		end   func(c *crypt, b *background)
		code  int
	}{
		"Ctrl-C twice": {end: func(_ *crypt, b *background) {
			for range 2 {
				_ = b.cmd.Process.Signal(syscall.SIGINT) // the code tells
				time.Sleep(100 * time.Millisecond)
			}
		}, code: 125},
		"timeout":            {flags: []string{"--timeout", "4s"}, end: func(*crypt, *background) {}, code: 124},
		"cofferdam killed":   {end: signal("cofferdam", syscall.SIGKILL), code: -1},
		"supervisor killed":  {end: signal("supervisor", syscall.SIGKILL), code: 125},
		"supervisor stopped": {end: signal("supervisor", syscall.SIGTERM), code: 125},
		"all killed": {end: func(c *crypt, b *background) {
			supervisor := c.find("supervisor")
			_, _ = b.cmd.Process.Kill(), syscall.Kill(supervisor, syscall.SIGKILL) // the code tells
		}, code: -1},
	}
}

// TestPausedEnds ends a paused run in each of the ways, where control groups are version 2 and where only version 1 is mounted, which holds frozen processes.
func TestPausedEnds(t *testing.T) {
	forEachWall(t, func(t *testing.T, h *house) {
		c := newCrypt(h)
		for _, version := range []string{"version 2", "version 1"} {
			if version == "version 1" && exec.Command("sh", "-c", "mountpoint -q /sys/fs/cgroup/freezer && mountpoint -q /sys/fs/cgroup/unified").Run() != nil {
				continue
			}
			for name, one := range pausedEnds() {
				t.Run(version+"/"+name, func(t *testing.T) {
					own := *c.house
					own.t = t
					c := &crypt{house: &own, exes: c.exes, namespaces: c.namespaces}
					_ = os.Remove(filepath.Join(c.project, "count")) // of the one before
					b := c.startUnder(version, counting, append(one.flags, "--workspace", ".:rw")...)
					c.grows("count", 0)
					c.must("pause", "last")
					at := c.size("count")
					one.end(c, b)
					if code := b.end(30 * time.Second); code != one.code {
						t.Errorf("exit %d, want %d: %s", code, one.code, b.out.String())
					}
					c.checkGone()
					if now := c.size("count"); now != at {
						t.Errorf("it went on from %d to %d", at, now)
					}
				})
			}
		}
	})
}

// startUnder is start in a mount namespace where control groups are of one version.
func (c *crypt) startUnder(version, line string, flags ...string) *background {
	c.t.Helper()
	if version != "version 1" {
		return c.start(line, flags...)
	}
	run := c.shell(line, flags...)
	// Each of these becomes the next, so that the process is cofferdam's own.
	cmd := exec.Command("unshare", append([]string{"--mount", "sh", "-c", `umount /sys/fs/cgroup/unified && exec "$0" "$@"`, run.Path}, run.Args[1:]...)...)
	cmd.Dir, cmd.Env, cmd.SysProcAttr = run.Dir, run.Env, &syscall.SysProcAttr{}
	return c.launch(cmd)
}

// TestPausedBomb stops processes that do nothing but make more of themselves.
func TestPausedBomb(t *testing.T) {
	forEachWall(t, func(t *testing.T, h *house) {
		c := newCrypt(h)
		// Whichever of them can no more be multiplied goes on trying.
		c.write("bomb.py", "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass\n    with open('count', 'a') as f:\n        f.write('x')\n")
		b := c.start("exec python3 bomb.py", "--workspace", ".:rw", "--pids", "64", "--timeout", "60s")
		c.grows("count", 200)
		c.must("pause", "last")
		at := c.stands("count", time.Second)
		c.must("resume", "last")
		c.grows("count", at)
		c.must("pause", "last")
		_ = b.cmd.Process.Kill()
		b.end(20 * time.Second)
		c.checkGone()
	})
}

// TestPauseRefused asks for a pause where there is no control group for it: the remedy is named, nothing is on record, and the run goes on.
func TestPauseRefused(t *testing.T) {
	testenv.Need(t, "userns")
	c := newCrypt(newHouse(t, users()[len(users())-1]))
	b := c.start(counting, "--workspace", ".:rw")
	c.grows("count", 0)
	r := c.do("pause", "last")
	if r.code == 0 {
		t.Skip("this user has delegated control groups")
	}
	if !strings.Contains(r.stderr, "no control group") || !strings.Contains(r.stderr, "systemd-run --user --scope -p Delegate=yes") {
		t.Errorf("exit %d: %s", r.code, r.stderr)
	}
	c.grows("count", c.size("count"))
	_ = b.cmd.Process.Signal(syscall.SIGTERM)
	b.end(20 * time.Second)
	for _, e := range c.events() {
		if e.Kind == "run.paused" {
			t.Errorf("on record: %+v", e)
		}
	}
	c.checkGone()
}

// TestServicePause pauses a sandbox of a service by the command line and lets it go on by the API. A service that is killed meanwhile finds it as it is.
func TestServicePause(t *testing.T) {
	testenv.Need(t, "root", "userns")
	s := newService(newHouse(t, as{name: "root"}))
	s.start("127.0.0.1:0")
	admin := s.setUp()
	c := admin.client()
	s.agent(c, "one", "version: 1\n")
	b := s.box(c, wire.NewSandbox{Agent: "one"})
	if r := b.sh("(while :; do echo x >> count; sleep 0.01; done) > /dev/null 2>&1 & echo started"); r.Stdout != "started\n" {
		t.Fatalf("%+v", r)
	}
	name := filepath.Join(s.state, "workspaces", b.ID, "count")
	size := func() int64 {
		info, err := os.Stat(name)
		if err != nil {
			return 0
		}
		return info.Size()
	}
	s.await("the command runs", 10*time.Second, func() bool { return size() > 0 })
	s.refuses("belongs to the service", "pause", b.ID)
	is := func(want wire.SandboxState) {
		t.Helper()
		if got, err := c.Sandbox(t.Context(), b.ID); err != nil || got.State != want {
			t.Errorf("it is %s, want %s: %v", got.State, want, err)
		}
	}
	var token wire.Token
	admin.api("POST", "/tokens", wire.NewToken{Name: "pauses", Scopes: []string{"sandboxes:read", "sandboxes:write"}}, &token)
	there := func(words string, args ...string) {
		t.Helper()
		cmd := s.command(t.Context(), args...)
		cmd.Env = append(cmd.Env, "COFFERDAM_SERVER="+s.url, "COFFERDAM_TOKEN="+token.Secret)
		if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), words) {
			t.Fatalf("%q: %v, %s", args, err, out)
		}
	}
	there(b.ID+" is paused", "pause", b.ID)
	at := size()
	there("paused", "ps")
	is(wire.Paused)
	var problem *client.Error
	if _, err := c.PauseSandbox(t.Context(), b.ID); !errors.As(err, &problem) || problem.Code != client.Conflict {
		t.Errorf("paused twice: %v", err)
	}
	address := s.address()
	s.kill()
	s.start(address)
	is(wire.Paused)
	if now := size(); now != at {
		t.Errorf("it went on from %d to %d", at, now)
	}
	if err := cgroup.Thaw(t.Context(), cgroup.Find(cgroup.Name(ident.Run(b.ID)))); err != nil { // an operator, by hand
		t.Fatal(err)
	}
	is(wire.Running)
	if err := cgroup.Freeze(t.Context(), cgroup.Find(cgroup.Name(ident.Run(b.ID)))); err != nil {
		t.Fatal(err)
	}
	s.await("the list says so", 15*time.Second, func() bool {
		list, err := c.Sandboxes(t.Context(), "", true, client.Page{})
		return err == nil && len(list.Items) == 1 && list.Items[0].State == wire.Paused
	})
	if got, err := c.ResumeSandbox(t.Context(), b.ID); err != nil || got.State != wire.Running {
		t.Errorf("resumed: %+v, %v", got, err)
	}
	s.await("it goes on", 10*time.Second, func() bool { return size() > at })
	if r := b.sh("echo again"); r.Stdout != "again\n" {
		t.Errorf("%+v", r)
	}
	if _, err := c.PauseSandbox(t.Context(), b.ID); err != nil {
		t.Fatal(err)
	}
	if end := b.stop(); !strings.Contains(end.How, "enough") || len(end.Problems) > 0 {
		t.Errorf("stopped while paused: %+v", end)
	}
	s.stop()
	s.gone()
}

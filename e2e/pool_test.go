package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/internal/testenv"
)

// warmHouse is a house with a pool.
type warmHouse struct {
	*crypt
	t     *testing.T
	level string
}

// forEachPool runs a test for each user and level, with a pool of two.
func forEachPool(t *testing.T, test func(*testing.T, *warmHouse)) {
	t.Helper()
	for _, level := range []string{"container", "gvisor"} {
		t.Run(level, func(t *testing.T) {
			testenv.Need(t, "userns")
			t.Setenv("TMPDIR", homes(t)) // directly below /tmp there is no room for a folder once gVisor's kernel is up
			for _, u := range users() {
				t.Run(u.name, func(t *testing.T) {
					u.level = level
					w := &warmHouse{crypt: newCrypt(newHouse(t, u.furnished(t))), t: t, level: level}
					w.open("--size", "2")
					t.Cleanup(func() { _ = w.command(context.Background(), "pool", "stop").Run() }) // the test has looked at what is left
					test(t, w)
				})
			}
		})
	}
}

// homes is a directory in which people's folders lie.
func homes(t *testing.T) string {
	t.Helper()
	if os.Geteuid() == 0 {
		return "/home"
	}
	dir, err := os.UserHomeDir()
	if err != nil {
		t.Skip(err)
	}
	return dir
}

// in is the same house for a test of its own.
func (w *warmHouse) in(t *testing.T) *warmHouse {
	h := *w.house
	h.t = t
	c := *w.crypt
	c.house = &h
	return &warmHouse{crypt: &c, t: t, level: w.level}
}

func (w *warmHouse) open(flags ...string) {
	w.t.Helper()
	if r := w.do(append([]string{"pool", "start", "--isolation", w.level}, flags...)...); r.code != 0 {
		w.t.Fatalf("pool start: exit %d: %s", r.code, r.stderr)
	}
}

// poolStatus is what tests look at of "cofferdam pool status --json".
type poolStatus struct {
	PID, Size, Ready, Claimed, Missed, Failed int
	Level                                     string
}

func (w *warmHouse) status() (s poolStatus) {
	w.t.Helper()
	r := w.do("pool", "status", "--json")
	var all []poolStatus
	if err := json.Unmarshal([]byte(r.stdout), &all); err != nil || len(all) != 1 {
		w.t.Fatalf("pool status: %v: %s%s", err, r.stdout, r.stderr)
	}
	return all[0]
}

// full waits until the pool is full.
func (w *warmHouse) full() poolStatus {
	w.t.Helper()
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		s := w.status()
		if s.Ready == s.Size {
			return s
		}
		if time.Now().After(end) {
			w.t.Fatalf("not full after 30 s: %+v", s)
		}
	}
}

// waiting lists process 1 of each sandbox that waits: children of supervisors that are the pool's.
func (w *warmHouse) waiting() (ones []int) {
	pool := w.status().PID
	all := w.processes()
	for _, p := range all {
		parent := slices.IndexFunc(all, func(q process) bool { return q.pid == p.parent })
		if parent >= 0 && all[parent].parent == pool && all[parent].program == "cofferdam-supervisor" {
			w.see(p.pid)
			ones = append(ones, p.pid)
		}
	}
	return ones
}

// origin says where the last run's sandbox came from.
func (w *warmHouse) origin() string {
	w.t.Helper()
	for _, e := range w.eventsOf("last") {
		if e.Kind == "run.ended" {
			switch {
			case strings.Contains(e.Detail, "; from the pool;"):
				return "pool"
			case strings.Contains(e.Detail, "; from the pool, built anew"):
				return "anew"
			}
			return "cold"
		}
	}
	return "no end"
}

// sample runs a line with a full pool and says where its sandbox came from. When somebody changes this machine's system directories in between, which tests that
// install things do, it is built anew: then it is tried again.
func (w *warmHouse) sample(want, line string, flags ...string) (r result, from string) {
	w.t.Helper()
	for range 4 {
		w.full()
		r = w.sh(line, flags...)
		if from = w.origin(); from == want {
			break
		}
	}
	return r, from
}

// TestPool runs what runs are for in sandboxes from a pool: folder, limits, network under policy, exit status; and whatever no prepared sandbox can be.
func TestPool(t *testing.T) {
	forEachPool(t, func(t *testing.T, w *warmHouse) {
		place := servePlace(t)
		w.write("old.txt", "old\n")
		for _, c := range []struct {
			name, line string
			flags      []string
			code       int
			says, from string
		}{
			{"folder", "cat old.txt; echo new > new.txt; exit 3", nil, 3, "old", "pool"},
			{"no folder", "ls -A .", []string{"--workspace", "none"}, 0, "", "pool"},
			{"allowed", place.ask, place.allow, 0, "200", "pool"},
			{"not allowed", place.ask, place.resolve, 1, "", "pool"},
			{"mount", "cat /data/old.txt", []string{"--mount", w.project + ":/data"}, 0, "old", w.unless(w.as.uid != 0)},
			{"mount in /tmp", "cat /tmp/data/old.txt", []string{"--mount", w.project + ":/tmp/data"}, 0, "old", w.unless(true)},
			{"timeout", "sleep 100", []string{"--timeout", "1s"}, 124, "", "pool"},
			{"rw folder", "echo x > shared.txt", []string{"--workspace", w.project + ":rw"}, 0, "", "cold"},
		} {
			if c.name == "rw folder" && w.level == "gvisor" && w.as.uid != 0 {
				continue // not to be had at all
			}
			r, from := w.sample(c.from, c.line, c.flags...)
			if r.code != c.code || !strings.Contains(r.stdout, c.says) {
				t.Errorf("%s: exit %d, want %d: %s%s", c.name, r.code, c.code, r.stdout, r.stderr)
			}
			if from != c.from {
				t.Errorf("%s: from %q, want %q", c.name, from, c.from)
			}
			if c.name == "folder" {
				if d := w.do("diff", "last"); !strings.Contains(d.stdout, "+new") {
					t.Errorf("its changes: %s%s", d.stdout, d.stderr)
				}
			}
			if c.name == "not allowed" && !slices.ContainsFunc(w.eventsOf("last"), func(e event) bool { return e.Verdict == "deny" && e.Host == "site.example" }) {
				t.Errorf("no refusal on record: %+v", w.eventsOf("last"))
			}
		}
		if w.level == "container" {
			w.limited()
		}
		if r := w.do("pool", "stop"); r.code != 0 {
			t.Errorf("pool stop: exit %d: %s", r.code, r.stderr)
		}
		w.gone()
		if r := w.sh("exit 4"); r.code != 4 || w.origin() != "cold" {
			t.Errorf("without a pool: exit %d, from %q: %s", r.code, w.origin(), r.stderr)
		}
	})
}

// limited tries bounds that are narrower than those of a sandbox that waits, and came after its runner.
func (w *warmHouse) limited() {
	w.t.Helper()
	r, from := w.sample("pool", "i=0; while [ $i -lt 200 ]; do sleep 5 & i=$((i+1)); done", "--pids", "100")
	if r.code == 0 || from != "pool" || !strings.Contains(strings.ToLower(r.stderr), "fork") {
		w.t.Errorf("200 processes of 100: exit %d, from %q: %s", r.code, from, r.stderr)
	}
	r, from = w.sample("pool", "head -c 50m /dev/zero > /tmp/zero", "--disk", "10m")
	if r.code == 0 || from != "pool" || !strings.Contains(r.stderr, "No space left") {
		w.t.Errorf("50 MB of scratch of 10: exit %d, from %q: %s", r.code, from, r.stderr)
	}
	if w.as.uid == 0 {
		r, from = w.sample("pool", "head -c 200m /dev/zero | tail", "--memory", "64m")
		if r.code != 137 || from != "pool" {
			w.t.Errorf("200 MB of memory of 64: exit %d, from %q: %s", r.code, from, r.stderr)
		}
	}
}

// unless is where a sandbox comes from for which a place has to be made in a directory that gVisor's kernel may know.
func (w *warmHouse) unless(known bool) string {
	if known && w.level == "gvisor" {
		return "anew"
	}
	return "pool"
}

// place is a server of this machine's, and how a sandbox asks it.
type place struct {
	ask            string
	allow, resolve []string
}

func servePlace(t *testing.T) place {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() { // ends with the listener
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = conn.Read(make([]byte, 1024)) // a request
			_, _ = conn.Write([]byte("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"))
			_ = conn.Close()
		}
	}()
	port := strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
	s := place{resolve: []string{"--resolve", "site.example=127.0.0.1", "--allow-network", "127.0.0.0/8"}}
	s.allow = append([]string{"--allow", "site.example:" + port}, s.resolve...)
	s.ask = fmt.Sprintf(`exec bash -c 'exec 3<>/dev/tcp/site.example/%[1]s || exit 1; printf "GET / HTTP/1.1\r\nHost: site.example:%[1]s\r\n\r\n" >&3; head -n 1 <&3'`, port)
	return s
}

// TestPoolGivesOnce starts more runs at once than sandboxes wait: no two are in the same one, and all of them run.
func TestPoolGivesOnce(t *testing.T) {
	forEachPool(t, func(t *testing.T, w *warmHouse) {
		w.full()
		var all sync.WaitGroup
		for range 5 {
			all.Go(func() {
				if r := w.sh("test ! -e /tmp/mine && touch /tmp/mine && sleep 0.3"); r.code != 0 {
					t.Errorf("exit %d: %s", r.code, r.stderr)
				}
			})
		}
		all.Wait()
		if s := w.status(); s.Claimed < 2 || s.Claimed+s.Missed != 5 {
			t.Errorf("%+v, want five claims, of which two and more got one", s)
		}
	})
}

// TestPoolLooksTheSame compares what a program sees in a sandbox from a pool with what it sees in another: nothing differs but numbers and times.
func TestPoolLooksTheSame(t *testing.T) {
	forEachPool(t, func(t *testing.T, w *warmHouse) {
		const look = `cut -d' ' -f4- /proc/self/mountinfo; for p in /proc/[0-9]*; do echo process; ls $p/fd 2>&1; tr '\0' ' ' < $p/cmdline; cat $p/comm; done
			cat /proc/self/limits /proc/1/limits; grep -v -e Vm -e Rss -e ctxt -e Pid -e ^NS -e Tgid -e Threads /proc/1/status; cat /proc/self/cgroup /proc/sys/kernel/hostname
			env; ls -lan --time-style=+ / /run /dev /etc/machine-id /tmp; df -a / /tmp /dev/shm; cat /proc/1/environ /proc/1/oom_score_adj; umask; id`
		warm, from := w.sample("pool", look)
		if from != "pool" {
			t.Fatalf("from %q", from)
		}
		if r := w.do("pool", "stop"); r.code != 0 {
			t.Fatal(r.stderr)
		}
		// What differs between any two runs: their names, numbers of processes and devices, what is used of the disk and how large /proc is.
		own := regexp.MustCompile(`(/proc/|process |COFFERDAM_RUN=|,(up|low)per\S*)\S+|[0-9]+:[0-9]+|^d\S+ +\d+( .*/?proc)$| \d+ +\d+ +\d+% |dr-xr-xr-x +\d+`)
		a, b := own.ReplaceAllString(warm.stdout+warm.stderr, "*"), ""
		for range 3 { // the runner opens and closes files by itself, whose numbers differ from one start to the next
			cold := w.sh(look)
			if b = own.ReplaceAllString(cold.stdout+cold.stderr, "*"); a == b {
				break
			}
		}
		if a != b || len(a) < 1000 {
			lines := strings.Split(b, "\n")
			t.Errorf("only from the pool:\n%s\nonly other:\n%s", without(strings.Split(a, "\n"), lines), without(lines, strings.Split(a, "\n")))
		}
	})
}

// without lists the lines that others do not have.
func without(lines, others []string) string {
	return strings.Join(slices.DeleteFunc(slices.Clone(lines), func(l string) bool { return slices.Contains(others, l) }), "\n")
}

// TestPoolStrangers has those ask who must not get one: another user with every right, and the same one in other surroundings.
func TestPoolStrangers(t *testing.T) {
	forEachPool(t, func(t *testing.T, w *warmHouse) {
		before := w.full()
		cmd := w.command(t.Context(), "run", "--", "true")
		cmd.Path, cmd.Args = "/bin/sh", append([]string{"sh", "-c", `ulimit -c 4711 && exec "$@"`, "sh"}, append([]string{filepath.Join(w.bin, "cofferdam")}, cmd.Args[1:]...)...)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("with another limit: %v: %s", err, out)
		}
		if s := w.status(); s.Claimed != before.Claimed || s.Missed != before.Missed+1 || w.origin() != "cold" {
			t.Errorf("%+v, from %q: a process with another limit got a sandbox", s, w.origin())
		}
		runner := filepath.Join(w.bin, "cofferdam-runner")
		if err := os.Chtimes(runner, time.Now(), time.Now()); err != nil { // as an upgrade does
			t.Fatal(err)
		}
		if r := w.sh("exit 4"); r.code != 4 || w.origin() != "cold" {
			t.Errorf("with another runner: exit %d, from %q: %s", r.code, w.origin(), r.stderr)
		}
		if w.as.uid == uint32(os.Geteuid()) {
			return
		}
		conn, err := net.Dial("unixpacket", filepath.Join(w.state, "pool", w.level+".sock"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_, err = conn.Write([]byte(`{"status":true}`))
		n, readErr := conn.Read(make([]byte, 1024))
		if n != 0 {
			t.Errorf("another user was answered: %v, %v", err, readErr)
		}
	})
}

// TestPoolIsClosed tries the network from within a sandbox that waits, with this test's rights: not even what is planted there can be reached.
func TestPoolIsClosed(t *testing.T) {
	testenv.Need(t, "root", "tool:nsenter", "tool:bash")
	forEachPool(t, func(t *testing.T, w *warmHouse) {
		w.full()
		ones := w.waiting()
		if len(ones) != 2 {
			t.Fatalf("waiting are %v", ones)
		}
		room, open := ones[0], 0
		if w.level == "gvisor" { // process 1 is at the other end of the cable
			room = w.steward(ones[0])
		}
		for _, to := range [][2]string{{"198.18.0.1", "1"}, {"127.0.0.1", "9"}, {"10.1.2.3", "80"}} {
			if came := dialIn(t, room, to[0], to[1]); came == "connected" || came == "refused" { // a refusal is an answer
				t.Errorf("%s in a sandbox that waits: %s", to, came)
			}
		}
		b := w.start("echo running; sleep 100")
		b.says("running")
		if w.level == "container" {
			for _, p := range w.processes() {
				if p.program == "cofferdam-runner" && dialIn(t, p.pid, "127.0.0.1", "9") == "refused" {
					open++
				}
			}
			if open != 1 {
				t.Errorf("control: %d sandboxes are open to themselves, want the one that is somebody's", open)
			}
		}
		_ = b.cmd.Process.Kill()
		b.end(20 * time.Second)
		w.stop()
		w.gone()
	})
}

// steward finds the process that will finish a sandbox that waits, by its process 1.
func (w *warmHouse) steward(first int) int {
	w.t.Helper()
	for _, p := range w.processes() {
		name, _ := os.ReadFile("/proc/" + strconv.Itoa(p.pid) + "/cmdline") // it may be gone
		if p.parent == first && strings.HasPrefix(string(name), "cofferdam-steward") {
			return p.pid
		}
	}
	w.t.Fatalf("process %d has no steward", first)
	return 0
}

// dialIn dials from the network namespace of a process, for at most a third of a second, and says what came of it.
func dialIn(t *testing.T, pid int, host, port string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "nsenter", "--target", strconv.Itoa(pid), "--net", "timeout", "0.3", "bash", "-c", "exec 3<>/dev/tcp/"+host+"/"+port)
	out, err := cmd.CombinedOutput()
	switch {
	case err == nil:
		return "connected"
	case cmd.ProcessState.ExitCode() == 124:
		return "no answer"
	}
	for _, word := range []string{"refused", "unreachable", "not permitted"} {
		if strings.Contains(string(out), word) {
			return word
		}
	}
	t.Fatalf("dial from the namespace of process %d: %v: %s", pid, err, out)
	return ""
}

// gone makes sure that nothing is left, of the pool either.
func (w *warmHouse) gone() {
	w.t.Helper()
	w.checkGone()
	if left, _ := filepath.Glob(filepath.Join(w.state, "pool", "*", "*")); len(left) > 0 {
		w.t.Errorf("marks are left: %q", left)
	}
}

// stop ends the pool.
func (w *warmHouse) stop() {
	w.t.Helper()
	if r := w.do("pool", "stop"); r.code != 0 {
		w.t.Errorf("pool stop: exit %d: %s", r.code, r.stderr)
	}
}

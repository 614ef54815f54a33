package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/testenv"
)

// TestCanaryCrash ends the gateway's process in ways that make programs write down what they know, while credentials are lent: no core is left, and what is said has none.
// A client that crashes inside leaves no core either.
func TestCanaryCrash(t *testing.T) {
	testenv.Need(t, "tool:curl")
	forEachUser(t, func(t *testing.T, h *house) {
		a := newAviary(t, h)
		for _, how := range []syscall.Signal{syscall.SIGABRT, syscall.SIGSEGV, syscall.SIGQUIT, syscall.SIGTRAP, syscall.SIGILL, syscall.SIGBUS, syscall.SIGKILL} {
			url := "https://api.example.com:" + a.ports["parrot"]
			inside := `curl -sS -H "Authorization: Bearer $API_TOKEN" ` + url + `/body > body.txt; curl -sS -N -H "Authorization: Bearer $API_TOKEN" ` + url + `/hang > hang.txt & echo "=== lent"; sleep 60`
			args := a.run("--", "sh", "-c", inside)
			w := &watched{h: h, cmd: h.command(t.Context(), args...), over: make(chan struct{}), lines: make(chan string, 100)}
			// A caller that wants cores and all goroutines. A file "core" would lie in the folder, as core_pattern says on most machines.
			traces := "all"
			if how == syscall.SIGABRT {
				traces = "crash" // which also asks for a core; it takes the runtime ten seconds to give up its threads
			}
			w.cmd.Args = append([]string{"sh", "-c", `ulimit -c unlimited; GOTRACEBACK=` + traces + ` exec "$0" "$@"`, w.cmd.Path}, args...)
			w.cmd.Path = "/bin/sh"
			w.start()
			w.await("lent", 30*time.Second)
			processes, began := family(w.cmd.Process.Pid), time.Now()
			if err := w.cmd.Process.Signal(how); err != nil {
				t.Fatal(err)
			}
			if how == syscall.SIGQUIT { // which is the command's
				time.Sleep(300 * time.Millisecond)
				_ = w.cmd.Process.Signal(syscall.SIGKILL)
			}
			r := w.wait(30 * time.Second)
			t.Logf("%v: over after %v", how, time.Since(began).Round(time.Millisecond))
			if how != syscall.SIGKILL && how != syscall.SIGQUIT && !strings.Contains(r.stderr, "goroutine ") {
				t.Errorf("control: nothing is said about the crash: exit %d, %.300s", r.code, r.stderr)
			}
			if status, ok := w.cmd.ProcessState.Sys().(syscall.WaitStatus); ok && status.CoreDump() {
				t.Errorf("%v: a core was written", how)
			}
			h.clear(a.needles, how.String()+": standard error", []byte(r.stderr))
			h.clear(a.needles, how.String()+": standard output", []byte(r.stdout))
			for end := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
				left := 0
				for _, p := range processes {
					if syscall.Kill(p, 0) == nil {
						left++
					}
				}
				if left == 0 {
					break
				}
				if time.Now().After(end) {
					t.Errorf("%v: %d processes are left", how, left)
					break
				}
			}
		}
		if cores, _ := filepath.Glob(filepath.Join(h.project, "core*")); len(cores) > 0 {
			t.Errorf("cores: %q", cores)
		}
		h.clearTree(a.needles, h.home, nil)
		if n := h.clearTree(a.needles, h.state, func(path string) bool { return filepath.Ext(path) == ".key" }); n < 5 {
			t.Errorf("control: %d files", n)
		}
		crash := `ulimit -c unlimited 2>/dev/null; curl -sS -H "Authorization: Bearer $API_TOKEN" https://api.example.com:` + a.ports["parrot"] + `/body >/dev/null; (sh -c 'kill -ABRT $$'); echo "ended with $?"; ls -a | grep -c '^core'; cat /proc/self/limits | grep core`
		r := h.do(a.run("--", "sh", "-c", crash)...)
		if !strings.Contains(r.stdout, "ended with 134") || !strings.Contains(r.stdout, "\n0\n") {
			t.Errorf("a client that crashes inside: %s%s", r.stdout, r.stderr)
		}
	})
}

// TestLendingEdited changes a credential's conditions, and removes it, under a run: the next request is judged by what is then, and what is under way outside of it is cut.
func TestLendingEdited(t *testing.T) {
	testenv.Need(t, "tool:curl")
	forEachUser(t, func(t *testing.T, h *house) {
		a, authority := newAPI(t)
		lendingHouse(t, h, a, authority)
		edit := func(args ...string) {
			t.Helper()
			if r := h.do(append([]string{"credential", "edit", "api"}, args...)...); r.code != 0 {
				t.Fatal(r.stderr)
			}
		}
		edit("--reset", "path")
		policy, err := os.ReadFile(filepath.Join(h.home, "agent.yaml"))
		if err != nil {
			t.Fatal(err)
		}
		h.write("../agent.yaml", strings.Replace(string(policy), "    paths: [/v1/]\n", "", 1))
		w := h.watch("run", "--policy", "../agent.yaml", "--resolve", apiName+"=127.0.0.1", "--", "sh", "-c", "URL=https://"+apiName+":"+a.port+"\n"+`
ask() { for p in /v1/x /v2/x; do curl -sS -o answer.txt -w "$p %{http_code} " -H "Authorization: Bearer $API_TOKEN" "$URL$p"; done; echo; echo "=== asked"; }
stream() { echo "=== begins"; curl -sS -N --max-time 30 -H "Authorization: Bearer $API_TOKEN" "$URL$1" > stream.txt 2> stream.err; echo "=== cut $? $(wc -l < stream.txt)"; }
ask; stream /v1/stream; ask; stream /v2/stream; ask; cat answer.txt`)
		w.await("begins", 30*time.Second)
		time.Sleep(500 * time.Millisecond)
		edit("--path", "/v2/")
		w.await("cut", 3*time.Second)
		w.await("begins", 10*time.Second)
		time.Sleep(500 * time.Millisecond)
		edit("--path", "/v2/", "--path", "/v3/") // which the stream still fits
		time.Sleep(time.Second)
		select {
		case line := <-w.lines:
			t.Errorf("a stream that fits was cut: %s", line)
		default:
		}
		if r := h.do("credential", "remove", "api"); r.code != 0 {
			t.Fatal(r.stderr)
		}
		w.await("cut", 3*time.Second)
		r := w.wait(30 * time.Second)
		for _, want := range []string{"/v1/x 200 /v2/x 200", "/v1/x 502 /v2/x 200", "/v1/x 502 /v2/x 502", "the credential was removed"} {
			if !strings.Contains(r.stdout, want) {
				t.Errorf("no %q in %s%s", want, r.stdout, r.stderr)
			}
		}
		if strings.Contains(r.stdout, "=== cut 0 ") || strings.Contains(r.stdout, " 0\n") {
			t.Errorf("control: the streams did not run, or ended in order: %s", r.stdout)
		}
		record := h.do("audit", "last", "--json").stdout
		for _, want := range []string{"cut: its conditions were changed: the credential is not for this path", "cut: the credential was removed"} {
			if !strings.Contains(record, want) {
				t.Errorf("not on record: %s", want)
			}
		}
		if kept := h.do("audit", "--kind", "credential.changed").stdout; strings.Count(kept, "edit, now for "+apiName) != 3 {
			t.Errorf("changes on record: %s", kept)
		}
		noCanary(t, "inside", r.stdout+r.stderr)
	})
}

// TestCanaryFull runs out of space for the record: nothing crosses that cannot be recorded, nothing is told that must not be, and the run ends in order once there is space.
func TestCanaryFull(t *testing.T) {
	testenv.Need(t, "root", "tool:curl")
	forEachUser(t, func(t *testing.T, h *house) {
		if err := os.MkdirAll(h.state, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("full", h.state, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, fmt.Sprintf("size=2m,mode=0700,uid=%d,gid=%d", h.as.uid, h.as.uid)); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := unix.Unmount(h.state, unix.MNT_DETACH); err != nil {
				t.Error(err)
			}
		})
		a := newAviary(t, h)
		url := "https://api.example.com:" + a.ports["parrot"] + "/body"
		// The log's last page has room for some records more.
		w := h.watch(a.run("--", "sh", "-c", `ask() { curl -sS -o answer.txt -w "%{http_code}" -H "Authorization: Bearer $API_TOKEN" `+url+`; }
echo "first $(ask)"; echo "=== asked"; read x
for n in $(seq 40); do code=$(ask); test $code = 200 || break; done; echo "then $code"; cat answer.txt; echo "=== asked"; read x
echo "last $(ask)"`)...)
		w.await("asked", 30*time.Second)
		filler := filepath.Join(h.state, "filler")
		fill, err := os.Create(filler)
		if err != nil {
			t.Fatal(err)
		}
		piece := make([]byte, 512)
		for err == nil {
			_, err = fill.Write(piece)
		}
		if !errors.Is(err, unix.ENOSPC) || fill.Close() != nil {
			t.Fatal(err)
		}
		w.say("")
		w.await("asked", 30*time.Second)
		// Commands that write say so, and leave what is there.
		for _, c := range []struct{ input, args string }{
			{canaryStatic, "credential rotate static"}, {canaryStatic, "credential add more --host more.example.com"}, {"", "credential edit static --path /v9/"}, {"", "credential remove basic"}, {"", "run -- true"},
		} {
			r := h.doWith(time.Minute, c.input, strings.Fields(c.args)...)
			if r.code == 0 {
				t.Errorf("%s: well, on a full disk", c.args)
			}
			h.clear(a.needles, c.args, []byte(r.stdout+r.stderr))
		}
		if err := os.Remove(filler); err != nil {
			t.Fatal(err)
		}
		w.say("")
		r := w.wait(time.Minute)
		for _, want := range []string{"first 200\n", "then 503\n", "cannot be recorded", "last 200\n"} {
			if r.code != 0 || !strings.Contains(r.stdout, want) {
				t.Errorf("exit %d, no %q: %.3000s\n%s", r.code, want, r.stdout, r.stderr)
			}
		}
		recorded := 0
		for _, e := range h.events() {
			if e.Kind == "crossing.decided" && e.Protocol == "https" && e.Verdict == "allow" {
				recorded++
			}
		}
		if seen := a.parrot.seen["api.example.com"]; seen != recorded || seen < 2 { // the run is over: nobody writes any more
			t.Errorf("%d requests arrived, %d are on record", seen, recorded)
		}
		h.clear(a.needles, "the run", []byte(r.stdout+r.stderr))
		h.clearTree(a.needles, h.state, func(path string) bool { return filepath.Ext(path) == ".key" })
		if r := h.do("audit", "verify"); r.code != 0 {
			t.Errorf("the log is damaged: %s%s", r.stdout, r.stderr)
		}
		var shown struct{ Scope struct{ Paths []string } }
		if err := json.Unmarshal([]byte(h.do("credential", "show", "static", "--json").stdout), &shown); err != nil || len(shown.Scope.Paths) != 0 {
			t.Errorf("the credential after it could not be changed: %+v, %v", shown, err)
		}
	})
}

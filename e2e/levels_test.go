package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/testenv"
)

// TestLevels is what every level of isolation must keep, whoever starts the sandbox.
func TestLevels(t *testing.T) {
	forEachLevel(t, func(t *testing.T, h *house) {
		for _, part := range []struct {
			name string
			test func(*testing.T, *house)
		}{
			{"kernel", levelKernel}, {"ends", levelEnds}, {"streams", levelStreams}, {"terminal", levelTerminal}, {"workspace", levelWorkspace},
			{"shared folder", levelShared}, {"limits", levelLimits}, {"network", levelNetwork}, {"rights", levelRights}, {"kills", levelKills},
		} {
			t.Run(part.name, func(t *testing.T) {
				own := newHouse(t, h.as)
				part.test(t, own)
			})
		}
	})
}

// levelKernel asks inside which kernel it is, and holds the label against the answer.
func levelKernel(t *testing.T, h *house) {
	var host unix.Utsname
	if err := unix.Uname(&host); err != nil {
		t.Fatal(err)
	}
	release := unix.ByteSliceToString(host.Release[:])
	r := h.sh("uname -r; cat /proc/version; dmesg 2>/dev/null; true")
	sameKernel := strings.HasPrefix(r.stdout, release+"\n") && strings.Contains(r.stdout, "Linux version "+release)
	gvisor := strings.Contains(r.stdout, "gvisor") && strings.Contains(r.stdout, "Starting gVisor")
	if sameKernel != (h.as.level == "container") || gvisor != (h.as.level == "gvisor") {
		t.Errorf("inside is %q, the host has %s", r.stdout, release)
	}
	var runs []struct{ Isolation string }
	if err := json.Unmarshal([]byte(h.do("ps", "--all", "--json").stdout), &runs); err != nil || len(runs) != 1 || runs[0].Isolation != h.as.level {
		t.Errorf("ps says %+v, %v", runs, err)
	}
	for line := range strings.Lines(h.do("audit", "last", "--json").stdout) {
		if (strings.Contains(line, `"run.started"`) || strings.Contains(line, `"run.ended"`)) && !strings.Contains(line, `"isolation":"`+h.as.level+`"`) {
			t.Errorf("the record does not say the level: %s", line)
		}
	}
	h.write("agent.yaml", "version: 1\nisolation: {level: "+h.as.level+"}\n")
	plain := *h
	plain.as.level = "" // policy alone says it
	if p := plain.do("run", "--policy", "agent.yaml", "--", "uname", "-r"); p.code != 0 || p.stdout == release+"\n" != (h.as.level == "container") {
		t.Errorf("by policy: exit %d, %q: %s", p.code, p.stdout, p.stderr)
	}
}

func levelEnds(t *testing.T, h *house) {
	for _, c := range []struct {
		line string
		code int
	}{{"exit 0", 0}, {"exit 42", 42}, {"exit 255", 255}, {"kill -9 $$", 137}, {"kill -TERM $$", 143}, {"kill -SEGV $$", 139}, {"(sleep 100 &); exit 3", 3}} {
		if r := h.sh(c.line); r.code != c.code {
			t.Errorf("%s: exit %d, want %d: %s", c.line, r.code, c.code, r.stderr)
		}
	}
	if r := h.do("run", "--", "no-such-command"); r.code != 127 {
		t.Errorf("missing command: exit %d: %s", r.code, r.stderr)
	}
	c := newCrypt(h)
	b := c.start("trap 'echo heard; exit 9' TERM; echo up >&2; while :; do sleep 0.1; done")
	time.Sleep(1500 * time.Millisecond)       // until the shell has set its trap; what it writes is the test's only when it has ended
	_ = b.cmd.Process.Signal(syscall.SIGTERM) // it may have ended, which the code tells
	if code := b.end(20 * time.Second); code != 9 || !strings.Contains(b.out.String(), "heard") {
		t.Errorf("a signal that is passed on: exit %d: %s", code, b.out.String())
	}
	c.checkGone()
}

func levelStreams(t *testing.T, h *house) {
	all := make([]byte, 3<<20)
	for i := range all {
		all[i] = byte(i * 7 >> 3)
	}
	if r := h.doWith(time.Minute, string(all), "run", "-q", "--", "cat"); r.stdout != string(all) || r.code != 0 {
		t.Errorf("3 MiB through cat: %d bytes came back, exit %d: %s", len(r.stdout), r.code, r.stderr)
	}
	if r := h.sh("echo out; echo err >&2", "-q"); r.stdout != "out\n" || r.stderr != "err\n" {
		t.Errorf("streams: %q, %q", r.stdout, r.stderr)
	}
}

func levelTerminal(t *testing.T, h *house) {
	testenv.Need(t, "tool:bash")
	s := h.onScreen("run", "--env", "PS1=inside> ", "--", "bash", "--norc", "--noprofile")
	s.wait("inside> ")
	s.keys("stty size; tty\r")
	s.wait("30 100")
	s.wait("/dev/pts/")
	s.keys("sleep 1000\r")
	time.Sleep(300 * time.Millisecond) // until it is in the foreground
	s.keys("\x03")
	s.wait("inside> ")
	s.keys("echo status $?\r")
	s.wait("status 130")
	s.keys("exit 7\r")
	if code := s.end(); code != 7 {
		t.Errorf("exit %d: %q", code, s.shown())
	}
}

func levelWorkspace(t *testing.T, h *house) {
	h.write("keep.txt", "old\n")
	h.write("gone.txt", "x\n")
	read := func(name string) string {
		data, err := os.ReadFile(filepath.Join(h.project, name))
		if err != nil {
			return err.Error()
		}
		return string(data)
	}
	line := `echo new > keep.txt && rm gone.txt && mkdir -p a/b && head -c 300000 /dev/zero > a/b/zeros && ln -s keep.txt link && chmod 755 keep.txt && mv a c && cat keep.txt`
	if r := h.sh(line); r.code != 0 || r.stdout != "new\n" || read("keep.txt") != "old\n" {
		t.Fatalf("overlay: exit %d, inside %q, outside %q: %s", r.code, r.stdout, read("keep.txt"), r.stderr)
	}
	if r := h.do("diff", "last"); !strings.Contains(r.stdout, "-old") || !strings.Contains(r.stdout, "+new") || !strings.Contains(r.stdout, "c/b/zeros") {
		t.Errorf("diff: %s%s", r.stdout, r.stderr)
	}
	if r := h.do("apply", "last"); r.code != 0 || read("keep.txt") != "new\n" || len(read("c/b/zeros")) != 300000 {
		t.Errorf("apply: exit %d: %s", r.code, r.stderr)
	}
	if _, err := os.Lstat(filepath.Join(h.project, "gone.txt")); !os.IsNotExist(err) {
		t.Errorf("what was removed inside: %v", err)
	}
	if r := h.sh("cat keep.txt; echo no > keep.txt", "--workspace", ".:ro"); r.code == 0 || !strings.HasPrefix(r.stdout, "new\n") || read("keep.txt") != "new\n" {
		t.Errorf("ro: exit %d, %q, outside %q", r.code, r.stdout, read("keep.txt"))
	}
	for _, path := range []string{"/etc/shadow", "/home/nobody", filepath.Join(h.home, "secret")} {
		if r := h.sh("cat " + path); r.code == 0 {
			t.Errorf("%s is seen inside: %s", path, r.stdout)
		}
	}
}

// levelShared works in the host's own folder, where what is protected stays as it is.
func levelShared(t *testing.T, h *house) {
	testenv.Need(t, "tool:git")
	git := exec.Command("git", "init", "-q", h.project)
	if out, err := git.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	h.own(h.project)
	h.write("keep.txt", "old\n")
	line := `echo direct > keep.txt; cp /bin/true tool; chmod 6755 tool; echo bad > .git/hooks/pre-commit; echo bad >> .git/config; mv .git .other; mv .git/hooks .git/h; rm -rf .git/hooks; echo all tried`
	r := h.sh(line, "--workspace", ".:rw")
	if h.as.level == "gvisor" && h.as.uid != 0 {
		if r.code != 125 || !strings.Contains(r.stderr, "needs more than one user id") {
			t.Errorf("with one user id: exit %d: %s", r.code, r.stderr)
		}
		return
	}
	data, err := os.ReadFile(filepath.Join(h.project, "keep.txt"))
	if !strings.Contains(r.stdout, "all tried") || err != nil || string(data) != "direct\n" {
		t.Errorf("rw: %q, %v: %s", data, err, r.stderr)
	}
	if info, err := os.Stat(filepath.Join(h.project, "tool")); err != nil || info.Mode()&(os.ModeSetuid|os.ModeSetgid) != 0 {
		t.Errorf("a set-id program lies in the folder: %v, %v", info, err)
	}
	if _, err := os.Stat(filepath.Join(h.project, ".git", "hooks", "pre-commit")); err == nil {
		t.Error("a hook was planted")
	}
	config, err := os.ReadFile(filepath.Join(h.project, ".git", "config"))
	if err != nil || bytes.Contains(config, []byte("bad")) {
		t.Errorf("Git's configuration: %q, %v", config, err)
	}
}

func levelLimits(t *testing.T, h *house) {
	if r := h.sh("sleep 100", "--timeout", "1s"); r.code != 124 {
		t.Errorf("timeout: exit %d: %s", r.code, r.stderr)
	}
	if r := h.sh("i=0; while [ $i -lt 60 ]; do sleep 5 & i=$((i+1)); done; echo all", "--pids", "30"); r.code == 0 || strings.Contains(r.stdout, "all") {
		t.Errorf("processes: exit %d: %s%s", r.code, r.stdout, r.stderr)
	}
	if r := h.sh("i=0; while [ $i -lt 20 ]; do sleep 1 & i=$((i+1)); done; wait; echo all", "--pids", "40"); r.stdout != "all\n" {
		t.Errorf("processes, control: exit %d: %s", r.code, r.stderr)
	}
	for _, place := range []string{"/root/f", "/tmp/f", "f", "/dev/shm/f"} {
		if r := h.sh("dd if=/dev/zero of="+place+" bs=1M count=64", "--disk", "8m"); r.code == 0 || !strings.Contains(r.stderr, "No space left") {
			t.Errorf("disk at %s: exit %d: %s", place, r.code, r.stderr)
		}
	}
	const hog = `exec python3 -c 'b = bytearray(400 << 20); print("unlimited")'`
	r := h.sh(hog, "--memory", "128m")
	if r.code == 125 && strings.Contains(r.stderr, "--best-effort memory") {
		return // no delegated control group: refused, as it must be
	}
	if r.code != 137 || !strings.Contains(r.stderr, "memory limit") {
		t.Errorf("memory: exit %d: %s%s", r.code, r.stdout, r.stderr)
	}
	if r := h.sh("echo fits", "--memory", "128m"); r.stdout != "fits\n" {
		t.Errorf("memory, control: exit %d: %s", r.code, r.stderr)
	}
}

// levelNetwork tries what is allowed and what is not, and looks for each refusal and its process on record.
func levelNetwork(t *testing.T, h *house) {
	testenv.Need(t, "tool:curl", "tool:python3")
	site := newSite(h, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, strings.Repeat("through the door\n", 10000))
	}), false)
	h.write("probe.py", refusedProbe)
	line := `curl -sS http://files.example.org:` + site.port + `/ | wc -c
curl -s http://evil.example.com/; echo name $?
curl -s --max-time 5 http://203.0.113.7/; echo address $?
curl -gs --max-time 5 "http://[2001:db8::9]:81/"; echo six $?
curl -s --max-time 5 http://169.254.169.254/latest/; echo metadata $?
python3 probe.py udp-connected 203.0.113.9 6666
curl -s --max-time 5 http://files.example.org:1/; echo port $?`
	r := h.do(append(append([]string{"run", "--allow", "files.example.org:" + site.port}, site.flags...), "--", "sh", "-c", line)...)
	const couldNotResolve, couldNotConnect = 6, 7 // of curl
	for _, want := range []string{
		"170000\n", fmt.Sprintf("name %d\n", couldNotResolve), fmt.Sprintf("address %d\n", couldNotConnect), fmt.Sprintf("six %d\n", couldNotConnect),
		fmt.Sprintf("metadata %d\n", couldNotConnect),
	} {
		if !strings.Contains(r.stdout, want) {
			t.Errorf("no %q in %q %s", want, r.stdout, r.stderr)
		}
	}
	events := h.events()
	for _, want := range []struct {
		event
		process string
	}{
		{event{Host: "evil.example.com", Protocol: "dns"}, ""}, {event{Address: "203.0.113.7", Port: 80}, "curl"}, {event{Address: "2001:db8::9", Port: 81}, "curl"},
		{event{Address: "169.254.169.254", Port: 80}, "curl"}, {event{Address: "203.0.113.9", Port: 6666, Protocol: "udp"}, "python3"},
	} {
		e, ok := denied(events, want.event)
		if !ok || want.process != "" && e.Process != want.process {
			t.Errorf("%+v is on record as %+v, %v", want, e, ok)
		}
	}
	if !slices.ContainsFunc(events, func(e event) bool { return e.Verdict == "allow" && e.Host == "files.example.org" }) {
		t.Error("what was allowed is not on record")
	}
}

// levelRights reads what rights the command and process 1 have.
func levelRights(t *testing.T, h *house) {
	r := h.sh(`cat /proc/self/status /proc/1/status; id -u; cat /proc/self/uid_map; touch /usr/written || echo usr closed; mount -t tmpfs x /mnt && echo mounted; mknod /tmp/d b 8 0 && echo device; hostname`)
	for _, set := range regexp.MustCompile(`Cap(Prm|Eff|Bnd|Amb|Inh):\s*([0-9a-f]+)`).FindAllStringSubmatch(r.stdout, -1) {
		bits, err := strconv.ParseUint(set[2], 16, 64)
		const most = 0x800404fb | 1<<19 // kept, and CAP_SYS_PTRACE of process 1
		if err != nil || bits&^most != 0 {
			t.Errorf("capabilities: %s", set[0])
		}
	}
	if n := strings.Count(r.stdout, "NoNewPrivs:\t1"); n != 2 {
		t.Errorf("no_new_privs: %d of 2 in %s", n, r.stdout)
	}
	for _, bad := range []string{"mounted", "device"} {
		if strings.Contains(r.stdout, bad+"\n") {
			t.Errorf("%s: %s", bad, r.stdout)
		}
	}
	if !strings.HasSuffix(r.stdout, "cofferdam\n") {
		t.Errorf("host name: %q", r.stdout)
	}
}

// levelKills kills every process that the sandbox has on the host, one a run: each run ends or goes on as if nothing were, and nothing remains.
func levelKills(t *testing.T, h *house) {
	c := newCrypt(h)
	const never = "while :; do sleep 0.2; done"
	names := map[string]bool{}
	for round := 0; ; round++ {
		b := c.start(never)
		time.Sleep(1200 * time.Millisecond)
		c.find("inside") // remembers namespaces
		victims := c.processes()
		slices.SortFunc(victims, func(a, b process) int { return a.pid - b.pid })
		if round >= len(victims) || round >= 8 || b.cmd.ProcessState != nil {
			_ = b.cmd.Process.Kill() // the last round has no victim
			b.end(20 * time.Second)
			c.checkGone()
			break
		}
		victim := victims[round]
		names[victim.program] = true
		if err := syscall.Kill(victim.pid, syscall.SIGKILL); err != nil {
			t.Logf("%+v was gone: %v", victim, err)
		}
		select {
		case <-b.done:
		case <-time.After(time.Second): // it went on, as where one of many threads' processes was hit
			_ = b.cmd.Process.Signal(syscall.SIGKILL)
		}
		if code := b.end(20 * time.Second); code == 0 {
			t.Errorf("%+v killed: exit 0\n%s", victim, b.out.String())
		}
		c.checkGone()
		if t.Failed() {
			t.Fatalf("round %d, after %+v was killed: %s", round, victim, b.out.String())
		}
	}
	if len(names) < 3 {
		t.Errorf("only %v were hit", names)
	}
	if r := c.sh("echo still works"); r.stdout != "still works\n" {
		t.Errorf("after it all: %+v", r)
	}
	if h.as.level == "gvisor" {
		levelSelfKill(t, c)
	}
}

// levelSelfKill kills and stops process 1 from inside, which gVisor lets happen: that ends this sandbox, soon, and nothing else.
func levelSelfKill(t *testing.T, c *crypt) {
	if r := c.sh("kill -9 1; sleep 30; echo lived"); r.code == 0 || strings.Contains(r.stdout, "lived") {
		t.Errorf("process 1 was killed from inside: %+v", r)
	}
	began := time.Now()
	if r := c.sh("kill -STOP 1; while :; do sleep 1; done"); r.code != 125 || !strings.Contains(r.stderr, "no sign of life") || time.Since(began) > 50*time.Second {
		t.Errorf("process 1 was stopped from inside: after %v %+v", time.Since(began), r)
	}
	c.checkGone()
}

// TestMissingLevel asks for a level that this machine does not deliver: nothing starts, and nothing weaker in its place.
func TestMissingLevel(t *testing.T) {
	forEachUser(t, func(t *testing.T, h *house) {
		h.as.level = ""
		c := newCrypt(h) // without runsc beside
		r := c.do("run", "--isolation", "gvisor", "--", "echo", "started")
		if r.code != 125 || strings.Contains(r.stdout, "started") || !strings.Contains(r.stderr, "make gvisor") {
			t.Errorf("exit %d: %s%s", r.code, r.stdout, r.stderr)
		}
		for _, level := range []string{"vm", "none", "Container"} {
			if r := c.do("run", "--isolation="+level, "--", "echo", "started"); r.code != 125 || strings.Contains(r.stdout, "started") {
				t.Errorf("level %q: exit %d: %s%s", level, r.code, r.stdout, r.stderr)
			}
		}
		doctor := c.do("doctor")
		if !regexp.MustCompile(`level gvisor +no .*not installed`).MatchString(doctor.stdout) || !strings.Contains(doctor.stdout, "remedy: build it with: make gvisor") {
			t.Errorf("doctor: %s", doctor.stdout)
		}
	})
}

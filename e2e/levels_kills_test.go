package e2e

import (
	"bytes"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// levelKills kills a process of each kind that the sandbox has on the host, one a run: each run ends, soon, and nothing remains.
func levelKills(t *testing.T, h *house) {
	c := newCrypt(h)
	able := h.as.able()
	c.killing = able.kernel != "host"
	killed := map[string]bool{}
	for {
		b := c.start("echo up; while :; do sleep 0.2; done")
		b.says("up\n")
		victims := b.whole(able)
		slices.SortFunc(victims, func(a, b process) int { return a.pid - b.pid })
		i := slices.IndexFunc(victims, func(p process) bool { return !killed[c.kindOf(p)] })
		if i < 0 {
			_ = b.cmd.Process.Kill() // each kind was hit
			b.end(20 * time.Second)
			c.checkGone()
			break
		}
		victim, kind := victims[i], c.kindOf(victims[i])
		killed[kind] = true
		if err := syscall.Kill(victim.pid, syscall.SIGKILL); err != nil {
			t.Errorf("%s was gone: %v", kind, err)
		}
		select {
		case <-b.done:
		case <-time.After(3 * time.Second): // it went on without: what works in the sandbox's own kernel may, if the sandbox can still be ended
			if slices.Contains(able.helpers, kind) && kind != "command" {
				t.Errorf("the run goes on without its %s", kind)
			}
			_ = b.cmd.Process.Signal(syscall.SIGKILL)
		}
		if code := b.end(20 * time.Second); code == 0 {
			t.Errorf("%s killed: exit 0\n%s", kind, b.out.String())
		}
		c.checkGone()
		if t.Failed() {
			t.Fatalf("after a %s was killed: %s", kind, b.out.String())
		}
	}
	for _, kind := range able.helpers {
		if !killed[kind] {
			t.Errorf("no %s was hit, of %v", kind, killed)
		}
	}
	if r := c.sh("echo still works"); r.stdout != "still works\n" {
		t.Errorf("after it all: %+v", r)
	}
	if able.mortal {
		levelSelfKill(t, c)
	}
}

// whole waits until a run has all its kinds of helper, and returns its processes.
func (b *background) whole(a able) []process {
	b.c.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		b.c.find("inside") // remembers namespaces
		all := b.c.processes()
		missing := ""
		for _, kind := range a.helpers {
			if !slices.ContainsFunc(all, func(p process) bool { return b.c.kindOf(p) == kind }) {
				missing = kind
			}
		}
		if missing == "" {
			return all
		}
		if time.Now().After(deadline) {
			b.c.t.Fatalf("no %s after a while, of %v", missing, all)
		}
	}
}

// kindOf tells the parts of runsc apart, which are one program under several names.
func (c *crypt) kindOf(p process) string {
	if p.program != "runsc" {
		return p.program
	}
	args, _ := os.ReadFile("/proc/" + strconv.Itoa(p.pid) + "/cmdline") // none is none
	name, _, _ := bytes.Cut(args, []byte{0})
	switch text := string(name); text {
	case "runsc", "runsc-gofer", "runsc-sandbox":
		return text
	}
	return "runsc-stub" // in which the sandbox's programs run
}

// levelSelfKill kills and stops process 1 from inside, which gVisor lets happen: that ends this sandbox, soon, and nothing else.
func levelSelfKill(t *testing.T, c *crypt) {
	if r := c.sh("kill -9 1; sleep 30; echo lived"); r.code == 0 || strings.Contains(r.stdout, "lived") {
		t.Errorf("process 1 was killed from inside: %+v", r)
	}
	if c.as.able().frozen {
		began := time.Now()
		if r := c.sh("kill -STOP 1; while :; do sleep 1; done"); r.code != 125 || !strings.Contains(r.stderr, "no sign of life") || time.Since(began) > 50*time.Second {
			t.Errorf("process 1 was stopped from inside: after %v %+v", time.Since(began), r)
		}
	}
	c.checkGone()
}

// TestMissingLevel asks for a level that this machine does not deliver: nothing starts, and nothing weaker in its place.
func TestMissingLevel(t *testing.T) {
	forEachUser(t, func(t *testing.T, h *house) {
		h.as.level = ""
		c := newCrypt(h) // without runsc beside
		c.notStarted(c.do("run", "--isolation", "gvisor", "--", "echo", "started"), "make gvisor")
		for _, level := range []string{"vm", "none", "Container"} {
			if r := c.do("run", "--isolation="+level, "--", "echo", "started"); r.code != 125 || strings.Contains(r.stdout, "started") {
				t.Errorf("level %q: exit %d: %s%s", level, r.code, r.stdout, r.stderr)
			}
		}
		c.notStarted(c.do("run", "--isolation=kata", "--", "echo", "started"), "no command-line runtime", "RuntimeClass")
		doctor := c.do("doctor")
		if !regexp.MustCompile(`level gvisor +no .*not installed`).MatchString(doctor.stdout) || !strings.Contains(doctor.stdout, "remedy: build it with: make gvisor") {
			t.Errorf("doctor: %s", doctor.stdout)
		}
	})
}

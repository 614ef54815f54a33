package e2e

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/testenv"
)

// TestLevels is the contract: what every level of isolation must keep, whoever starts the sandbox. levels() has what one level can do and another cannot.
func TestLevels(t *testing.T) {
	tryParts(t, []part{
		{"kernel", levelKernel, true}, {"ends", levelEnds, false}, {"signals", levelSignals, false}, {"streams", levelStreams, true}, {"terminal", levelTerminal, false},
		{"workspace", levelWorkspace, false}, {"mounts", levelMounts, false}, {"shared folder", levelShared, false}, {"root", levelRoot, false}, {"image", levelImage, false},
		{"limits", levelLimits, false}, {"network", levelNetwork, false}, {"identity", levelIdentity, true}, {"rights", levelRights, true}, {"read-only", levelReadOnly, true},
		{"kills", levelKills, false},
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
	same := strings.HasPrefix(r.stdout, release+"\n") && strings.Contains(r.stdout, "Linux version "+release)
	found := "guest"
	switch {
	case same:
		found = "host"
	case strings.Contains(r.stdout, "gvisor") && strings.Contains(r.stdout, "Starting gVisor"):
		found = "gvisor"
	}
	if want := h.as.able().kernel; found != want {
		t.Errorf("inside is %s's kernel, want %s's: %q, the host has %s", found, want, r.stdout, release)
	}
	if runs := h.runs(); len(runs) != 1 || runs[0].Isolation != h.as.level {
		t.Errorf("ps says %+v", runs)
	}
	for line := range strings.Lines(h.do("audit", "last", "--json").stdout) {
		if (strings.Contains(line, `"run.started"`) || strings.Contains(line, `"run.ended"`)) && !strings.Contains(line, `"isolation":"`+h.as.level+`"`) {
			t.Errorf("the record does not say the level: %s", line)
		}
	}
	h.write("agent.yaml", "version: 1\nisolation: {level: "+h.as.level+"}\n")
	plain := *h
	plain.as.level = "" // policy alone says it
	if p := plain.do(append(h.rootFlags("run", "--policy", "agent.yaml"), "--", "uname", "-r")...); p.code != 0 || p.stdout == release+"\n" != (h.as.able().kernel == "host") {
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
}

// levelSignals sends what people and service managers send: the command hears of it, or dies of it.
func levelSignals(t *testing.T, h *house) {
	c := newCrypt(h)
	for _, one := range []struct {
		line   string
		signal syscall.Signal
		code   int
	}{
		{"trap 'echo heard; exit 9' TERM", syscall.SIGTERM, 9}, {"trap 'echo heard; exit 8' INT", syscall.SIGINT, 8}, {"trap 'echo heard; exit 7' HUP", syscall.SIGHUP, 7},
		{":", syscall.SIGINT, 130}, {":", syscall.SIGTERM, 143},
	} {
		if signal.Ignored(one.signal) {
			continue // as under nohup: what this process ignores its children ignore too
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		cmd := c.command(ctx, "run", "-q", "--", "sh", "-c", one.line+"; echo up; while :; do sleep 0.1; done")
		out, err := cmd.StdoutPipe()
		if err := errors.Join(err, cmd.Start()); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(out, make([]byte, len("up\n"))); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if err := cmd.Process.Signal(one.signal); err != nil {
			t.Fatal(err)
		}
		said, err := io.ReadAll(out)
		_ = cmd.Wait() // the state tells
		if code := cmd.ProcessState.ExitCode(); err != nil || code != one.code || one.code < 128 && string(said) != "heard\n" || time.Since(began) > 15*time.Second {
			t.Errorf("%s, then %v: exit %d after %v, want %d: %q, %v", one.line, one.signal, code, time.Since(began), one.code, said, err)
		}
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
	if r := h.do("run", "--workspace", "none", "--", "pwd"); r.code != 0 || r.stdout != "/root\n" {
		t.Errorf("none: exit %d, %q: %s", r.code, r.stdout, r.stderr)
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
	if !h.as.able().sharesFor(h.as) {
		if r.code != 125 || !strings.Contains(r.stderr, "cofferdam apply") || strings.Contains(r.stdout, "all tried") {
			t.Errorf("where no folder is shared for writing: exit %d: %s%s", r.code, r.stdout, r.stderr)
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
	if r := h.sh("i=0; while [ $i -lt 60 ]; do sleep 100 & i=$((i+1)); done; echo all", "--pids", "30"); r.code == 0 || strings.Contains(r.stdout, "all") {
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
	const hog = `exec python3 -c 'b = [bytearray(4 << 20) for _ in range(100)]; print("unlimited")'` // in pieces, since a kernel may refuse what it sees to be too much
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

package e2e

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/internal/testenv"
)

func TestExitStatus(t *testing.T) {
	forEachUser(t, func(t *testing.T, h *house) {
		for _, c := range []struct {
			line string
			code int
		}{
			{"exit 0", 0}, {"exit 1", 1}, {"exit 42", 42}, {"exit 255", 255}, {"kill -9 $$", 137}, {"kill -TERM $$", 143}, {"kill -SEGV $$", 139},
		} {
			if r := h.sh(c.line); r.code != c.code {
				t.Errorf("%s: exit %d, want %d: %s", c.line, r.code, c.code, r.stderr)
			}
		}
		if r := h.do("run", "--", "no-such-command"); r.code != 127 || !strings.Contains(r.stderr, "no-such-command") {
			t.Errorf("missing command: %d %s", r.code, r.stderr)
		}
		h.write("plain.txt", "not a program\n")
		if r := h.do("run", "--", "./plain.txt"); r.code != 126 {
			t.Errorf("not executable: %d %s", r.code, r.stderr)
		}
		if r := h.do("run"); r.code != 125 || !strings.Contains(r.stderr, "no command") {
			t.Errorf("no command: %d %s", r.code, r.stderr)
		}
		if r := h.do("run", "--timeout", "1s", "--", "sleep", "100"); r.code != 124 || !strings.Contains(r.stderr, "timeout") {
			t.Errorf("timeout: %d %s", r.code, r.stderr)
		}
	})
}

// TestNothingEnters looks for the caller's environment, home and files inside.
func TestNothingEnters(t *testing.T) {
	forEachUser(t, func(t *testing.T, h *house) {
		if err := os.WriteFile(filepath.Join(h.home, "id_rsa"), []byte("canary-key"), 0o644); err != nil {
			t.Fatal(err)
		}
		r := h.sh(`env; cat /proc/1/environ | tr '\0' '\n'; ls -la /home /root; cat ` + filepath.Join(h.home, "id_rsa") + `; ls /proc/self/fd; cat ../id_rsa; true`)
		for _, canary := range []string{"canary-4711", "canary-key"} {
			if strings.Contains(r.stdout, canary) {
				t.Errorf("%s is seen inside:\n%s", canary, r.stdout)
			}
		}
		if r.code != 0 || !strings.Contains(r.stdout, "COFFERDAM_RUN=") {
			t.Errorf("control: exit %d, output %q %q", r.code, r.stdout, r.stderr)
		}
	})
}

// TestLeakedDescriptors opens a directory before the start, as a careless caller would, and looks for it inside (CVE-2024-21626).
func TestLeakedDescriptors(t *testing.T) {
	forEachUser(t, func(t *testing.T, h *house) {
		dir, err := os.Open("/")
		if err != nil {
			t.Fatal(err)
		}
		defer dir.Close()
		cmd := h.command(t.Context(), "run", "--", "sh", "-c", "ls -l /proc/self/fd /proc/1/fd 2>&1; for i in 3 4 5 6 7 8 9 10 11 12; do ls /proc/self/fd/$i/ 2>/dev/null; done; true")
		cmd.ExtraFiles = []*os.File{dir, dir, dir, dir, dir}
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		if strings.Contains(string(out), "lost+found") || strings.Contains(string(out), "-> /\n") {
			t.Errorf("the caller's descriptor is open inside:\n%s", out)
		}
	})
}

func TestBinaryStreams(t *testing.T) {
	forEachUser(t, func(t *testing.T, h *house) {
		var all strings.Builder
		for range 4096 {
			for i := range 256 {
				all.WriteByte(byte(i))
			}
		}
		if r := h.doWith(60e9, all.String(), "run", "-q", "--", "cat"); r.stdout != all.String() || r.code != 0 {
			t.Errorf("1 MiB through cat: %d bytes came back, exit %d: %s", len(r.stdout), r.code, r.stderr)
		}
		if r := h.sh("echo out; echo err >&2", "-q"); r.stdout != "out\n" || r.stderr != "err\n" {
			t.Errorf("streams: %q, %q", r.stdout, r.stderr)
		}
	})
}

func TestWorkspaceModes(t *testing.T) {
	forEachUser(t, func(t *testing.T, h *house) {
		h.write("keep.txt", "old\n")
		read := func() string {
			data, err := os.ReadFile(filepath.Join(h.project, "keep.txt"))
			if err != nil {
				t.Fatal(err)
			}
			return string(data)
		}
		if r := h.sh("echo new > keep.txt && cat keep.txt"); r.code != 0 || r.stdout != "new\n" || read() != "old\n" {
			t.Errorf("overlay: exit %d, inside %q, outside %q: %s", r.code, r.stdout, read(), r.stderr)
		}
		if r := h.do("diff", "last"); !strings.Contains(r.stdout, "-old") || !strings.Contains(r.stdout, "+new") {
			t.Errorf("diff: %s%s", r.stdout, r.stderr)
		}
		if r := h.sh("echo new > keep.txt", "--workspace", ".:ro"); r.code == 0 || read() != "old\n" {
			t.Errorf("ro: exit %d, outside %q", r.code, read())
		}
		if r := h.sh("echo direct > keep.txt", "--workspace", ".:rw"); r.code != 0 || read() != "direct\n" {
			t.Errorf("rw: exit %d, outside %q: %s", r.code, read(), r.stderr)
		}
		if r := h.sh("echo applied > keep.txt"); r.code != 0 {
			t.Fatalf("overlay: %s", r.stderr)
		}
		if r := h.do("apply", "last"); r.code != 0 || read() != "applied\n" {
			t.Errorf("apply: exit %d, outside %q: %s", r.code, read(), r.stderr)
		}
		if r := h.do("run", "--workspace", "none", "--", "pwd"); r.stdout != "/root\n" {
			t.Errorf("none: %q %s", r.stdout, r.stderr)
		}
	})
}

// TestBadInput tries what people get wrong: one clear error each, and nothing is lost.
func TestBadInput(t *testing.T) {
	forEachUser(t, func(t *testing.T, h *house) {
		h.write("broken.yaml", "version: 1\negres:\n  default: deny\n")
		for _, c := range []struct {
			args []string
			code int
			want string
		}{
			{[]string{"run", "--no-such-flag", "--", "true"}, 125, "unknown flag"},
			{[]string{"run", "--memory", "lots", "--", "true"}, 125, "--memory"},
			{[]string{"run", "--pids", "-1", "--", "true"}, 125, "--pids"},
			{[]string{"run", "--timeout", "soon", "--", "true"}, 125, "--timeout"},
			{[]string{"run", "--allow", "*", "--", "true"}, 125, "--allow"},
			{[]string{"run", "--allow", "example.com:65537", "--", "true"}, 125, "--allow"},
			{[]string{"run", "--allow", "@nothing", "--", "true"}, 125, "@nothing"},
			{[]string{"run", "--allow-network", "0.0.0.0/0", "--", "true"}, 125, "--allow-network"},
			{[]string{"run", "--workspace", "no-such-dir", "--", "true"}, 125, "no-such-dir"},
			{[]string{"run", "--workspace", "/", "--", "true"}, 125, "whole machine"},
			{[]string{"run", "--workspace", h.home, "--", "true"}, 125, "home directory"},
			{[]string{"run", "--policy", "absent.yaml", "--", "true"}, 125, "absent.yaml"},
			{[]string{"run", "--policy", "broken.yaml", "--", "true"}, 125, "broken.yaml:2"},
			{[]string{"run", "--mount", "/etc:/proc/x", "--", "true"}, 125, "--mount"},
			{[]string{"run", "--isolation", "vm", "--", "true"}, 125, "vm"},
			{[]string{"run", "--best-effort", "everything", "--", "true"}, 125, "everything"},
			{[]string{"policy", "check", "broken.yaml"}, 2, "egres"},
			{[]string{"diff", "zzzzzzzz"}, 1, "no run"},
			{[]string{"frobnicate"}, 2, "no command"},
			{[]string{"rnu"}, 2, "did you mean: cofferdam run"},
			{[]string{"policy", "check"}, 2, "--help"},
			{[]string{"gc", "--older-than", "0s"}, 2, "--older-than"},
		} {
			r := h.do(c.args...)
			if r.code != c.code || !strings.Contains(r.stdout+r.stderr, c.want) {
				t.Errorf("%v: exit %d, want %d with %q: %s%s", c.args, r.code, c.code, c.want, r.stdout, r.stderr)
			}
		}
	})
}

// TestRepositoryPolicy lays a policy into the folder: it may narrow, and a widening one stops the run.
func TestRepositoryPolicy(t *testing.T) {
	forEachUser(t, func(t *testing.T, h *house) {
		h.write("cofferdam.yaml", "version: 1\negress:\n  rules:\n    - hosts: [evil.example.com]\n")
		if r := h.do("run", "--", "true"); r.code != 125 || !strings.Contains(r.stderr, "may only narrow") {
			t.Errorf("widening: exit %d: %s", r.code, r.stderr)
		}
		if r := h.do("run", "--ignore-repository-policy", "--", "true"); r.code != 0 {
			t.Errorf("ignored: exit %d: %s", r.code, r.stderr)
		}
		if r := h.do("run", "--allow", "evil.example.com", "--", "true"); r.code != 0 {
			t.Errorf("within the ceiling: exit %d: %s", r.code, r.stderr)
		}
	})
}

// TestInterruptAnyTime sends one signal at every moment of the start: the run ends as interrupted, never as if nothing had been said.
func TestInterruptAnyTime(t *testing.T) {
	forEachUser(t, func(t *testing.T, h *house) {
		for i := range 60 {
			signal, want := syscall.SIGINT, 130
			if i%2 == 1 {
				signal, want = syscall.SIGTERM, 143
			}
			cmd := h.command(t.Context(), "run", "-q", "--", "sleep", "5")
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(5*time.Millisecond + time.Duration(i)*500*time.Microsecond) // before five milliseconds the program may not listen yet
			began := time.Now()
			if err := cmd.Process.Signal(signal); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait() // the status is looked at below
			status, _ := cmd.ProcessState.Sys().(syscall.WaitStatus)
			early := status.Signaled() && status.Signal() == signal // before it listened: the shell says the same
			if code := cmd.ProcessState.ExitCode(); code != want && !early || time.Since(began) > 4*time.Second {
				t.Errorf("%v after %d: exit %d after %v, want %d", signal, i, code, time.Since(began), want)
			}
		}
		if r := h.do("ps"); strings.Contains(r.stdout, "sleep") {
			t.Errorf("still listed: %s", r.stdout)
		}
	})
}

// TestRootFS uses a tree with one static program as root file system.
func TestRootFS(t *testing.T) {
	forEachUser(t, func(t *testing.T, h *house) {
		tree := filepath.Join(h.home, "tree")
		program, err := os.ReadFile(filepath.Join(h.bin, "cofferdam"))
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(os.MkdirAll(filepath.Join(tree, "bin"), 0o755), os.WriteFile(filepath.Join(tree, "bin", "cofferdam"), program, 0o755)); err != nil {
			t.Fatal(err)
		}
		h.own(h.home)
		if r := h.do("run", "--rootfs", tree, "--", "cofferdam", "--version"); r.code != 0 || !strings.Contains(r.stdout, "version") {
			t.Errorf("exit %d: %s%s", r.code, r.stdout, r.stderr)
		}
		if r := h.do("run", "--rootfs", tree, "--", "sh", "-c", "true"); r.code != 127 {
			t.Errorf("the host's programs are there: exit %d", r.code)
		}
		if r := h.do("run", "--rootfs", filepath.Join(tree, "bin", "cofferdam"), "--", "true"); r.code != 125 || !strings.Contains(r.stderr, "not a directory") {
			t.Errorf("a file as root: exit %d: %s", r.code, r.stderr)
		}
		if entries, err := os.ReadDir(tree); err != nil || len(entries) != 1 {
			t.Errorf("the tree was changed: %v, %v", entries, err)
		}
		if h.as.uid != 0 {
			if r := h.do("run", "--rootfs", "/usr", "--", "true"); r.code != 125 || !strings.Contains(r.stderr, "belongs to user 0") {
				t.Errorf("somebody else's tree: exit %d: %s", r.code, r.stderr)
			}
		}
	})
}

// TestCallersHabits starts from a caller with a closed umask and shares a single file: what is inside works for every user there, and the file is written.
func TestCallersHabits(t *testing.T) {
	forEachUser(t, func(t *testing.T, h *house) {
		h.write("shared.txt", "old\n")
		script := `umask 077; "$0" run -q --mount shared.txt:/tmp/shared.txt:rw -- sh -c 'stat -c %a /etc/resolv.conf /dev/null /tmp; echo new >/tmp/shared.txt'`
		cmd := h.command(t.Context(), "--version") // its environment and user
		cmd.Path, cmd.Args = "/bin/sh", []string{"sh", "-c", script, filepath.Join(h.bin, "cofferdam")}
		out, err := cmd.CombinedOutput()
		if err != nil || string(out) != "644\n666\n1777\n" {
			t.Errorf("%v: %s", err, out)
		}
		if data, err := os.ReadFile(filepath.Join(h.project, "shared.txt")); err != nil || string(data) != "new\n" {
			t.Errorf("the shared file: %q, %v", data, err)
		}
	})
}

// TestOddPolicyFile lays a pipe where the folder's policy would be: the run says so instead of waiting for a writer.
func TestOddPolicyFile(t *testing.T) {
	forEachUser(t, func(t *testing.T, h *house) {
		if err := syscall.Mkfifo(filepath.Join(h.project, "cofferdam.yaml"), 0o644); err != nil {
			t.Fatal(err)
		}
		if r := h.doWith(10*time.Second, "", "run", "--", "true"); r.code != 125 || !strings.Contains(r.stderr, "not a plain file") {
			t.Errorf("exit %d: %s", r.code, r.stderr)
		}
	})
}

// TestScratchFitsMemory fills scratch under a memory limit: the program is told that there is no space, and process 1 is left to say how it ended.
func TestScratchFitsMemory(t *testing.T) {
	testenv.Need(t, "root", "cgroup")
	h := newHouse(t, as{name: "root"})
	if r := h.sh("head -c 200000000 /dev/zero >/tmp/big; echo over", "--memory", "96m"); r.code != 0 || !strings.Contains(r.stderr, "No space left") || r.stdout != "over\n" {
		t.Errorf("exit %d: %s%s", r.code, r.stdout, r.stderr)
	}
	if r := h.sh("true", "--memory", "64m", "--disk", "128m"); r.code != 125 || !strings.Contains(r.stderr, "scratch files are memory") {
		t.Errorf("more scratch than memory: exit %d: %s", r.code, r.stderr)
	}
}

// TestRelativeState names the state directory relative to the folder that is worked in, which would put the records into the sandbox.
func TestRelativeState(t *testing.T) {
	forEachUser(t, func(t *testing.T, h *house) {
		h.state = "records"
		if r := h.do("run", "--", "true"); r.code != 125 || !strings.Contains(r.stderr, "own records") {
			t.Errorf("exit %d: %s", r.code, r.stderr)
		}
	})
}

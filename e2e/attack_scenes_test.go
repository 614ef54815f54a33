package e2e

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// scene is an attack that needs more than one command, or a look from outside.
type scene struct {
	id, what string
	play     func(t *testing.T, s *suite, h *house) outcome
}

// play makes one such attack.
func (s *suite) play(t *testing.T, u as, x scene) {
	h := newHouse(t, u)
	lay(t, h, nil)
	s.judge(t, u, x.id, x.what, x.play(t, s, h))
}

// helper is the attacking program's path, inside as outside.
func (h *house) helper() string { return filepath.Join(h.project, "cases", "attack") }

func scenes() []scene {
	all := []scene{
		{"E28c", "two sandboxes at once: neither sees, signals or reaches the other", neighbours},
		{"E27f", "terminal escapes and line breaks in a process's name", escapes},
		{"E6a", "a Git hook and a start file, in an overlay: not applied", plantedHooks},
		{"E6b", "a Git hook of a folder mounted for writing", hooksInPlace},
		{"E9b", "a set-id program and a file capability, left in a folder mounted for writing", leftPrivileges},
		{"E9", "a link in place of a folder, followed by apply", linkedApply},
		{"E39", "a policy inside the folder that opens the sandbox", widening},
		{"E5", "a sandbox in the sandbox", nested},
		{"F31", "the audit log cannot be written: nothing passes", fullLog},
		{"B10a", "two thousand malformed packets to the name server", fuzzedQuestions},
		{"B10b", "connections to the name server that never finish a question", stuckQuestions},
	}
	return slices.Concat(all, escapeScenes(), socketScenes(), hogScenes())
}

// attempt runs the attacking program alone in a sandbox.
func (s *suite) attempt(h *house, flags []string, args ...string) (ran, []event) {
	h.t.Helper()
	line := append(append([]string{"run", "-q"}, flags...), "--", h.helper())
	r := s.world.do(h, time.Minute, append(line, args...)...)
	return ran{r.code, r.stdout + r.stderr}, h.events()
}

// verdict says what an attempt's end means.
func (r ran) verdict(refused string) outcome {
	return probe{refused: refused}.judge(&r, nil, nil)
}

// neighbours runs a victim and an attacker at once, as the same user.
func neighbours(t *testing.T, s *suite, h *house) outcome {
	ctx, cancel := context.WithTimeout(t.Context(), h.as.patience(30*time.Second))
	defer cancel()
	victim := s.world.command(ctx, h, "run", "-q", "--", "sh", "-c", "python3 -m http.server 7777 >/dev/null 2>&1 & echo up; read -r go; kill -0 $! && echo survived")
	in, err1 := victim.StdinPipe()
	out, err2 := victim.StdoutPipe()
	if err := errors.Join(err1, err2, victim.Start()); err != nil {
		return outcome{unknown, err.Error()}
	}
	said := bufio.NewReader(out)
	up, _ := said.ReadString('\n') // what it says tells
	r := s.world.do(h, 30*time.Second, "run", "-q", "--", "sh", "-c", `
for p in /proc/[0-9]*/cmdline; do tr '\0' ' ' <$p | grep -a 'http[.]server' && exit 0; done
for p in $(seq 2 400); do [ $p = $$ ] || kill -9 $p 2>/dev/null; done
kill -9 -1
for a in 127.0.0.1:7777 198.18.0.2:7777 198.18.0.1:7777; do `+h.helper()+` tcp $a 'GET / HTTP/1.0' && exit 0; done
echo nobody there; exit 1`)
	_, err := io.WriteString(in, "go\n")
	rest, _ := io.ReadAll(said) // likewise
	switch err := errors.Join(err, victim.Wait()); {
	case up != "up\n":
		return outcome{unknown, fmt.Sprintf("the other sandbox has not begun: %v", err)}
	case err != nil || string(rest) != "survived\n":
		return outcome{open, fmt.Sprintf("the other sandbox suffered: %v %s", err, lastLine(string(rest)))}
	}
	if r.code == 137 || h.as.level == "gvisor" && r.code == 125 { // it has killed its own shell, or all of its own sandbox, which is its right
		return outcome{blocked, "the attacker hit only itself; the other sandbox went on"}
	}
	return ran{r.code, r.stdout + r.stderr}.verdict("nobody there")
}

// escapes gives a process a name that would rewrite the caller's terminal or forge a line of the log.
func escapes(_ *testing.T, s *suite, h *house) outcome {
	r := s.world.do(h, time.Minute, "run", "--", "python3", "-c", `
import ctypes, socket, sys
ctypes.CDLL(None).prctl(15, b"\x1b]0;pwn\x07\nfake", 0, 0, 0)
for host in ("e27f.example.org", "e27f\x1b[31m.example.org"):
    try: socket.create_connection((host, 80), 5)
    except (OSError, UnicodeError) as e: print(repr(e))
try: socket.create_connection(("8.8.7.1", 80), 5).recv(1)
except OSError as e: print(repr(e))
`)
	if strings.ContainsAny(r.stderr, "\x1b\x07") || strings.Contains(r.stderr, "\nfake") {
		return outcome{open, fmt.Sprintf("%q", r.stderr)}
	}
	shown := h.do("audit", "last")
	raw := h.do("audit", "last", "--json")
	if strings.ContainsAny(shown.stdout+raw.stdout, "\x1b\x07") {
		return outcome{open, fmt.Sprintf("the audit shows %q", shown.stdout)}
	}
	named := slices.DeleteFunc(h.events(), func(e event) bool { return e.Process == "" }) // of two questions at once one is asked whose it is
	e, ok := denied(named, event{Host: "e27f.example.org"})
	if !ok || !strings.Contains(r.stderr, "e27f.example.org") {
		return outcome{unknown, "the denial is not told or not on record: " + lastLine(r.stderr)}
	}
	return outcome{blocked, fmt.Sprintf("told and recorded as %q", e.Process)}
}

// gitFolder makes the project a repository.
func gitFolder(h *house) {
	h.write(".git/HEAD", "ref: refs/heads/main\n")
	h.write(".git/config", "[core]\n\trepositoryformatversion = 0\n")
	h.write(".git/hooks/pre-commit.sample", "#!/bin/sh\n")
	h.write("src/main.txt", "hello\n")
}

// plantedHooks writes what the machine's own tools would run, and has it applied.
func plantedHooks(_ *testing.T, s *suite, h *house) outcome {
	gitFolder(h)
	bad := []string{".git/hooks/pre-commit", ".envrc", ".vscode/tasks.json", ".github/workflows/x.yml", "CLAUDE.md", "sub/.git/config", ".GIT/hooks/post-checkout"}
	var line strings.Builder
	line.WriteString("echo good >src/new.txt; printf '[core]\\n\\tfsmonitor = /tmp/evil\\n' >>.git/config; ")
	for _, name := range bad {
		line.WriteString("mkdir -p $(dirname " + name + "); echo evil >" + name + "; ")
	}
	if r := s.world.do(h, time.Minute, "run", "-q", "--", "sh", "-c", line.String()); r.code != 0 {
		return outcome{unknown, lastLine(r.stderr)}
	}
	h.do("apply", "last")
	if _, err := os.Stat(filepath.Join(h.project, "src/new.txt")); err != nil {
		return outcome{unknown, "the harmless change is not applied either"}
	}
	for _, name := range bad {
		if _, err := os.Lstat(filepath.Join(h.project, name)); err == nil {
			return outcome{open, name + " was applied"}
		}
	}
	config, err := os.ReadFile(filepath.Join(h.project, ".git/config"))
	if err != nil || bytes.Contains(config, []byte("evil")) {
		return outcome{open, ".git/config was applied"}
	}
	return outcome{blocked, fmt.Sprintf("%d dangerous files set apart, the harmless one applied", len(bad)+1)}
}

// hooksInPlace tries to change what runs on the host, and to move it away, in a folder that is mounted for writing.
func hooksInPlace(_ *testing.T, s *suite, h *house) outcome {
	gitFolder(h)
	r := s.world.do(h, time.Minute, "run", "-q", "--workspace", ".:rw", "--", "sh", "-c", `
echo new >src/new.txt || exit 3
(echo evil >.git/hooks/pre-commit) 2>/dev/null && exit 0
(echo evil >>.git/config) 2>/dev/null && exit 0
mv .git/config .git/x 2>/dev/null && exit 0
mv .git/hooks .git/x 2>/dev/null && exit 0
mv .git x 2>/dev/null && exit 0
rm -rf .git/hooks 2>/dev/null && exit 0
ln -f /tmp/x .git/config 2>/dev/null && exit 0
echo none of it; exit 1`)
	if _, err := os.Stat(filepath.Join(h.project, "src/new.txt")); err != nil {
		return outcome{unknown, "the folder is not writable at all: " + lastLine(r.stderr)}
	}
	return ran{r.code, r.stdout + r.stderr}.verdict("none of it")
}

// leftPrivileges leaves programs behind that would give others on the machine the rights of whoever ran the sandbox.
func leftPrivileges(_ *testing.T, s *suite, h *house) outcome {
	if r := s.world.do(h, time.Minute, "run", "-q", "--workspace", ".:rw", "--", "sh", "-c", "cp /usr/bin/id plain && cp plain setid && cp plain capable && { chmod 4755 setid; "+
		`python3 -c 'import os,struct; os.setxattr("capable", "security.capability", struct.pack("<5I", 0x02000001, 1<<21, 0, 0, 0))'; true; }`); r.code != 0 {
		return outcome{unknown, lastLine(r.stderr)}
	}
	if _, err := os.Stat(filepath.Join(h.project, "plain")); err != nil {
		return outcome{unknown, "the folder is not writable at all"}
	}
	value := make([]byte, 64)
	n, err := unix.Getxattr(filepath.Join(h.project, "capable"), "security.capability", value)
	if err == nil && (n == 20 || n == 24 && value[20]|value[21]|value[22]|value[23] == 0) {
		return outcome{open, "a file of the host has CAP_SYS_ADMIN in the host's own user namespace"}
	}
	if info, err := os.Stat(filepath.Join(h.project, "setid")); err == nil && info.Mode()&os.ModeSetuid != 0 {
		return outcome{open, "a set-id program lies in the host's folder"}
	}
	return outcome{blocked, "written without set-id bits and capabilities"}
}

// linkedApply puts a link in place of a folder, so that apply would write beyond it.
func linkedApply(_ *testing.T, s *suite, h *house) outcome {
	h.write("folder/old.txt", "old\n")
	h.write("../outside/keep.txt", "keep\n")
	h.own(h.home)
	outside := filepath.Join(h.home, "outside")
	if r := s.world.do(h, time.Minute, "run", "-q", "--", "sh", "-c", "echo new >folder/old.txt; echo evil >folder/keep.txt; echo y >harmless"); r.code != 0 {
		return outcome{unknown, lastLine(r.stderr)}
	}
	if err := errors.Join(os.RemoveAll(filepath.Join(h.project, "folder")), os.Symlink(outside, filepath.Join(h.project, "folder"))); err != nil {
		return outcome{unknown, err.Error()}
	}
	h.do("apply", "last", "--force", "--include-dangerous")
	data, err := os.ReadFile(filepath.Join(outside, "keep.txt"))
	if err != nil || string(data) != "keep\n" {
		return outcome{open, fmt.Sprintf("apply wrote outside: %q %v", data, err)}
	}
	if entries, _ := os.ReadDir(outside); len(entries) != 1 {
		return outcome{open, "apply made files outside"}
	}
	// The same from inside: a link as a change of its own.
	if r := s.world.do(h, time.Minute, "run", "-q", "--", "sh", "-c", "ln -s /etc out; ln -s "+outside+" out2; echo y >harmless2"); r.code != 0 {
		return outcome{unknown, lastLine(r.stderr)}
	}
	h.do("apply", "last")
	if _, err := os.Stat(filepath.Join(h.project, "harmless2")); err != nil {
		return outcome{unknown, "nothing is applied at all"}
	}
	for _, name := range []string{"out", "out2"} {
		if _, err := os.Lstat(filepath.Join(h.project, name)); err == nil {
			return outcome{open, "a link out of the folder was applied"}
		}
	}
	return outcome{blocked, "nothing outside was touched, links out were set apart"}
}

// widening has the folder bring a policy of its own.
func widening(_ *testing.T, s *suite, h *house) outcome {
	h.write("cofferdam.yaml", "version: 1\negress:\n  rules:\n    - hosts: [denied.example.com]\n")
	r := s.world.do(h, time.Minute, "run", "-q", "--", "curl", "-sS", "http://denied.example.com/")
	if r.code != 125 || !strings.Contains(r.stderr, "may only narrow") {
		return outcome{open, fmt.Sprintf("status %d: %s", r.code, lastLine(r.stderr))}
	}
	if r := s.world.do(h, time.Minute, "run", "-q", "--allow", "denied.example.com", "--", "curl", "-sS", "http://denied.example.com/"); r.code != 0 {
		return outcome{unknown, "what the person allows as well does not work: " + lastLine(r.stderr)}
	}
	return outcome{blocked, "the run did not start: the folder's policy may only narrow"}
}

// nested starts our own program inside, as an agent would that wants another policy.
func nested(_ *testing.T, s *suite, h *house) outcome {
	r := s.world.do(h, time.Minute, "run", "-q", "--mount", h.bin, "--", "sh", "-c", "env -u COFFERDAM_RUN "+filepath.Join(h.bin, "cofferdam")+" run --workspace none --allow denied.example.com -- curl -sS http://denied.example.com/; [ $? = 0 ] && exit 0; exit 1")
	return ran{r.code, r.stdout + r.stderr}.verdict("(?i)cannot|refused|not permitted|already inside")
}

// fuzzedQuestions floods the name server with rubbish.
func fuzzedQuestions(_ *testing.T, s *suite, h *house) outcome {
	before := s.world.mark()
	r, _ := s.attempt(h, []string{"--allow", "allowed.example.com"}, "dnsfuzz", strconv.Itoa(rand.IntN(1<<30)), "2000")
	if hits := s.world.since(before); len(hits) > 0 {
		return outcome{open, fmt.Sprintf("%+v", hits[0])}
	}
	return r.verdict("works as before")
}

// stuckQuestions holds connections to the name server open, and asks by datagram meanwhile.
func stuckQuestions(_ *testing.T, s *suite, h *house) outcome {
	r := s.world.do(h, time.Minute, "run", "-q", "--allow", "allowed.example.com", "--", "python3", "-c", `
import socket
s=[socket.create_connection(("198.18.0.1",53),5) for _ in range(100)]
for c in s:
    try: c.send(b"\x00\x30\x47")
    except OSError: pass
print("names are answered meanwhile:",socket.getaddrinfo("allowed.example.com",80)[0][4]); raise SystemExit(1)`)
	return ran{r.code, r.stdout + r.stderr}.verdict("answered meanwhile")
}

// counted are the requests of fullLog that have arrived.
func (s *suite) counted(before int) []hit {
	return slices.DeleteFunc(s.world.since(before), func(x hit) bool { return !strings.Contains(x.Data, "/counted") })
}

// fullLog puts the records on a file system that fills up during the run. Records that still fit are written; what has none must not pass.
func fullLog(t *testing.T, s *suite, h *house) outcome {
	if err := os.MkdirAll(h.state, 0o755); err != nil {
		return outcome{unknown, err.Error()}
	}
	inWorld := func(args ...string) error {
		cmd := exec.Command("nsenter", append([]string{"-t", strconv.Itoa(s.world.pid), "-m"}, args...)...)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%v: %w: %s", args, err, out)
		}
		return nil
	}
	size := "1m"
	if h.as.able().kernel == "guest" {
		size = "200m" // a machine's disks lie there too
	}
	if err := inWorld("mount", "-t", "tmpfs", "-o", fmt.Sprintf("size=%s,mode=0755,uid=%d,gid=%d", size, h.as.uid, h.as.uid), "records", h.state); err != nil {
		return outcome{unknown, err.Error()}
	}
	before := s.world.mark()
	ctx, cancel := context.WithTimeout(t.Context(), h.as.patience(40*time.Second))
	defer cancel()
	cmd := s.world.command(ctx, h, "run", "-q", "--allow", "allowed.example.com", "--", "sh", "-c", `curl -sSf --max-time 8 http://allowed.example.com/counted || exit 3
sleep 1.5; for i in $(seq 60); do curl -sSf --max-time 8 http://allowed.example.com/counted; done; exit 0`)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		return outcome{unknown, err.Error()}
	}
	for ctx.Err() == nil && len(s.counted(before)) == 0 {
		time.Sleep(10 * time.Millisecond)
	}
	filled := inWorld("sh", "-c", "cat /dev/zero >"+h.state+"/filler 2>/dev/null; df "+h.state+" | grep -q 100%")
	_ = cmd.Wait() // what arrived tells
	if filled != nil {
		return outcome{unknown, filled.Error()}
	}
	passed, recorded := len(s.counted(before)), 0
	for line := range strings.Lines(s.world.do(h, time.Minute, "audit", "last", "--json").stdout) {
		if strings.Contains(line, `"crossing.decided"`) && strings.Contains(line, `"/counted"`) && strings.Contains(line, `"allow"`) {
			recorded++
		}
	}
	switch {
	case passed > recorded:
		return outcome{open, fmt.Sprintf("%d requests passed, %d are on record", passed, recorded)}
	case passed == 0 || passed > 60:
		return outcome{unknown, fmt.Sprintf("%d of 61 requests passed: %s", passed, lastLine(out.String()))}
	}
	return outcome{blocked, fmt.Sprintf("%d of 61 requests passed, %d on record; then: %s", passed, recorded, lastLine(out.String()))}
}

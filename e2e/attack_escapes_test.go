package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// escapeProbes make again, inside, what was a way out of other sandboxes.
func escapeProbes() []probe {
	const refused = "read-only|permission denied|text file busy|operation not permitted"
	return []probe{
		{
			id: "E40a", what: "overwrite the runner through a process that ran it", run: "[ -e /run/cofferdam/runner ] || exit 1; $A overwrite /run/cofferdam/runner", refused: refused,
			control: `f=$(mktemp) && trap 'rm -f -- "$f"' EXIT && cp "$(command -v sleep)" "$f" && chmod 755 "$f" && $A overwrite "$f"`,
		},
		{id: "E40b", what: "overwrite the runner through process 1", run: "$A overwrite 1", refused: refused},
	}
}

// escapeScenes are those that need more than one command, or a look from outside.
func escapeScenes() []scene {
	return []scene{
		{"E40c", "a command whose interpreter is /proc/self/exe", interpreterSelf},
		{"E40d", "a directory that the caller left open, as working directory or descriptor", leakedDirectory},
		{"E40e", "a root file system whose links lead out, at each place where something is put", hostileRoots},
		{"E40f", "a place where something is mounted, changed for a link by another sandbox meanwhile", swappedTarget},
		{"E40g", "a folder shown to be read, made writable from inside", remountedFolder},
		{"E40h", "the workspace to be read, made writable from inside", remountedWorkspace},
		{"E40i", "the tree behind the root file system, spoilt from inside", spoiltRoot},
	}
}

// interpreterSelf has the kernel run the runner's file again in the runner's place, as the first step of CVE-2019-5736.
func interpreterSelf(_ *testing.T, s *suite, h *house) outcome {
	runner := filepath.Join(h.bin, "cofferdam-runner")
	before, err := os.ReadFile(runner)
	if err != nil {
		return outcome{unknown, err.Error()}
	}
	h.write("script", "#!/proc/self/exe\n")
	if err := os.Chmod(filepath.Join(h.project, "script"), 0o755); err != nil {
		return outcome{unknown, err.Error()}
	}
	r := s.world.do(h, time.Minute, "run", "-q", "--", "./script")
	if after, err := os.ReadFile(runner); err != nil || !bytes.Equal(before, after) {
		return outcome{open, fmt.Sprintf("the runner's file was changed: %v", err)}
	}
	if r := s.world.do(h, time.Minute, "run", "-q", "--", h.helper(), "overwrite", "1"); r.code == 0 {
		return outcome{open, r.stdout}
	}
	return ran{r.code, r.stdout + r.stderr}.verdict("must be process 1")
}

// leakedDirectory starts from a caller that has directories of the host open (CVE-2024-21626), and looks for a file of theirs.
func leakedDirectory(_ *testing.T, _ *suite, h *house) outcome {
	h.write("../secret/canary.txt", "canary-4711")
	h.own(h.home)
	secret := filepath.Join(h.home, "secret", "canary.txt")
	var leaked []*os.File
	for _, dir := range []string{"/", h.home, "/"} {
		f, err := os.Open(dir)
		if err != nil {
			return outcome{unknown, err.Error()}
		}
		defer f.Close()
		leaked = append(leaked, f)
	}
	ctx, cancel := context.WithTimeout(h.t.Context(), h.as.patience(time.Minute))
	defer cancel()
	try := func(cmd *exec.Cmd) ran {
		var out strings.Builder
		cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = &out, &out, leaked
		_ = cmd.Run() // the status tells
		if cmd.ProcessState == nil {
			return ran{3, "not started"}
		}
		return ran{cmd.ProcessState.ExitCode(), out.String()}
	}
	if r := try(h.tool(ctx, h.project, h.helper(), "leaked", secret)); r.code != 0 {
		return outcome{unknown, "it is not found outside either: " + lastLine(r.output)}
	}
	return try(h.command(ctx, "run", "-q", "--", h.helper(), "leaked", secret)).verdict("no descriptor and no directory")
}

// victim makes a folder of the user's with a canary, not below /tmp: a sandbox is put together there, in front of whatever the machine has.
func (h *house) victim() (string, error) {
	dir, err := os.MkdirTemp("/var/tmp", "cofferdam-victim-")
	if err != nil {
		return "", err
	}
	h.t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			h.t.Error(err)
		}
	})
	for name, text := range map[string]string{"file": "untouched\n", "kernel/core_pattern": "untouched\n", "canary.pem": "-----BEGIN CERTIFICATE-----\ncanary-4711\n-----END CERTIFICATE-----\n"} {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
			return "", err
		}
	}
	h.own(dir)
	return dir, nil
}

// hostileLinks are the places of a root file system at which something is put or read before a program runs there, each with a link in its place.
func hostileLinks(victim, canary string) map[string]string {
	links := map[string]string{
		"etc/ssl/certs/ca-certificates.crt": canary, "etc/ssl/cert.pem": canary, "etc/passwd": canary, "etc/nsswitch.conf": canary,
		"dev/null": "/proc/sys/kernel/core_pattern", "dev/console": "/proc/sysrq-trigger", "dev/pts": "/proc/sys", "dev/ptmx": canary, "dev/tty": canary,
		"proc": "../../../../../.." + victim, "run/cofferdam/runner": filepath.Join(victim, "file"), "etc/resolv.conf": filepath.Join(victim, "file"),
		"etc/hostname": filepath.Join(victim, "file"), "etc/hosts": filepath.Join(victim, "new"), "etc/machine-id": filepath.Join(victim, "file"),
	}
	for _, name := range []string{"proc", "dev", "sys", "tmp", "run", "etc", "root", "var", "run/cofferdam", "dev/shm", "etc/ssl", "etc/ssl/certs", "proc/sys", "home"} {
		if links[name] == "" {
			links[name] = victim
		}
	}
	return links
}

// hostileRoots runs in trees that lead out, one after the other: each run is refused, or finds everything in order, and changes nothing outside.
func hostileRoots(_ *testing.T, s *suite, h *house) outcome {
	victim, err := h.victim()
	if err != nil {
		return outcome{unknown, err.Error()}
	}
	canary := filepath.Join(victim, "canary.pem")
	helper, err := os.ReadFile(h.helper())
	if err != nil {
		return outcome{unknown, err.Error()}
	}
	before := h.snapshot(victim)
	refused, inOrder := 0, 0
	try := func(name, target string) (open string, err error) {
		tree := filepath.Join(h.home, "tree")
		if err := errors.Join(os.RemoveAll(tree), os.MkdirAll(filepath.Join(tree, "bin"), 0o755), os.WriteFile(filepath.Join(tree, "bin", "attack"), helper, 0o755)); err != nil {
			return "", err
		}
		if name != "" {
			at := filepath.Join(tree, name)
			if err := errors.Join(os.MkdirAll(filepath.Dir(at), 0o755), os.Symlink(target, at)); err != nil {
				return "", err
			}
		}
		h.own(tree)
		r := s.world.do(h, time.Minute, "run", "-q", "--workspace", "none", "--rootfs", tree, "--", "/bin/attack", "hostile", "canary-4711", h.as.able().kernel)
		switch {
		case h.snapshot(victim) != before:
			return "something outside was changed: " + h.snapshot(victim), nil
		case r.code == 125:
			refused++
		case r.code == 1 && strings.Contains(r.stdout, "everything is in order"):
			inOrder++
		default:
			return fmt.Sprintf("exit %d: %s", r.code, lastLine(r.stdout+r.stderr)), nil
		}
		return "", nil
	}
	if got, err := try("", ""); err != nil || got != "" || inOrder != 1 {
		return outcome{unknown, fmt.Sprintf("an honest tree does not work: %s, %v, %d refused", got, err, refused)}
	}
	for name, target := range hostileLinks(victim, canary) {
		if got, err := try(name, target); err != nil {
			return outcome{unknown, err.Error()}
		} else if got != "" {
			return outcome{open, name + " -> " + target + ": " + got}
		}
	}
	return outcome{blocked, fmt.Sprintf("%d trees: %d were refused, in %d everything was in order, nothing outside was touched", refused+inOrder, refused, inOrder)}
}

// swappedTarget starts sandboxes with something mounted below a folder, while a sandbox that works in that folder changes a part of the path for a link and back (CVE-2021-30465).
func swappedTarget(_ *testing.T, s *suite, h *house) outcome {
	victim, err := h.victim()
	if err != nil {
		return outcome{unknown, err.Error()}
	}
	h.write("../shown/file", "shown\n")
	h.own(h.home)
	before := h.snapshot(victim)
	ctx, cancel := context.WithTimeout(h.t.Context(), h.as.patience(50*time.Second))
	defer cancel()
	attacker := s.world.command(ctx, h, "run", "-q", "--workspace", ".:rw", "--", h.helper(), "swap", "swapped", victim, "stop")
	var said strings.Builder
	attacker.Stdout, attacker.Stderr = &said, &said
	if err := attacker.Start(); err != nil {
		return outcome{unknown, err.Error()}
	}
	for range 200 { // until it works
		if _, err := os.Lstat(filepath.Join(h.project, "swapped")); err == nil {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	started, refused := 0, 0
	for i := range 40 {
		target := filepath.Join(h.project, "swapped", fmt.Sprintf("deep%d", i), "new")
		r := s.world.do(h, time.Minute, "run", "-q", "--workspace", ".:rw", "--mount", filepath.Join(h.home, "shown")+":"+target, "--", "cat", target+"/file")
		switch r.code {
		case 0:
			started++
		case 125:
			refused++
		}
	}
	stopped := os.WriteFile(filepath.Join(h.project, "stop"), nil, 0o644)
	_ = attacker.Wait() // what it said tells
	if after := h.snapshot(victim); after != before {
		return outcome{open, "outside was changed: " + after}
	}
	if stopped != nil || !strings.Contains(said.String(), "changed places") || started+refused == 0 {
		return outcome{unknown, fmt.Sprintf("%v, %d started, %d refused: %s", stopped, started, refused, lastLine(said.String()))}
	}
	return outcome{blocked, fmt.Sprintf("%d started, %d refused, %s", started, refused, lastLine(said.String()))}
}

// remountedFolder and remountedWorkspace try CVE-2026-46695: what is shown read-only is only a flag of a mount, which root inside takes away.
func remountedFolder(_ *testing.T, s *suite, h *house) outcome {
	h.write("../shown/file", "shown\n")
	h.own(h.home)
	return s.remounted(h, filepath.Join(h.home, "shown"), []string{"--mount", filepath.Join(h.home, "shown") + ":/mnt/shown"}, "/mnt/shown", "file")
}

func remountedWorkspace(_ *testing.T, s *suite, h *house) outcome {
	h.write("file", "shown\n")
	return s.remounted(h, h.project, []string{"--workspace", ".:ro"}, h.project, "file")
}

func (s *suite) remounted(h *house, outside string, flags []string, place, file string) outcome {
	before := h.snapshot(outside)
	r, _ := s.attempt(h, flags, "remount", place, file)
	if after := h.snapshot(outside); after != before {
		return outcome{open, "outside was changed: " + after}
	}
	if free, _ := s.attempt(h, flags, "remount", "/tmp", "file"); free.code != 0 {
		return outcome{unknown, "where writing is allowed it is not seen either: " + lastLine(free.output)}
	}
	return r.verdict("none makes it writable: .*(read-only|not permitted|permission denied|no such file)")
}

// spoiltRoot changes everything in its root, as CVE-2026-24834 did, whose image was the host's.
func spoiltRoot(_ *testing.T, s *suite, h *house) outcome {
	tree := filepath.Join(h.home, "tree")
	helper, err := os.ReadFile(h.helper())
	if err := errors.Join(err, os.MkdirAll(filepath.Join(tree, "bin"), 0o755), os.WriteFile(filepath.Join(tree, "bin", "attack"), helper, 0o755)); err != nil {
		return outcome{unknown, err.Error()}
	}
	for i := range 40 {
		h.write(fmt.Sprintf("../tree/data/%d", i), fmt.Sprintf("file %d\n", i))
	}
	h.own(h.home)
	before := h.snapshot(tree)
	r := s.world.do(h, time.Minute, "run", "-q", "--workspace", "none", "--rootfs", tree, "--", "/bin/attack", "spoil", "/data")
	if after := h.snapshot(tree); after != before {
		return outcome{open, "the tree was changed"}
	}
	return ran{r.code, r.stdout + r.stderr}.verdict("[0-9][0-9] files spoilt inside, and no block device")
}

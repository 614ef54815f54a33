package main

import (
	"context"
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// startRows measures a whole command that runs /bin/true.
func startRows(ctx context.Context, b *bench) ([]row, error) {
	subjects := []subject{b.command("cofferdam run", b.cofferdam, "run", "-q", "--workspace", b.workspace(), "--", "/bin/true")}
	if b.have("bwrap", "bubblewrap") {
		subjects = append(subjects, b.command("bwrap", append(bwrapArgs(), "/bin/true")...))
	}
	subjects = append(subjects, b.engines(b.command, "/bin/true")...)
	ours, others, err := b.settle(takeTurns(ctx, b.rounds(60), subjects))
	if err != nil {
		return nil, err
	}
	r := row{what: "start: `run -- /bin/true`, whole command", unit: "ms", ours: ours}
	limits := map[string]float64{"runc run": 1, "bwrap": 3, "podman run": 0.2, "sandbox-runtime": 0.2}
	for _, o := range others {
		r.others = append(r.others, against(o, atMost(limits[o.name])))
	}
	if slow, err := b.slowSubject(ctx); err == nil {
		r.others = append(r.others, slow)
	} else {
		b.skip("sandbox-runtime", err.Error())
	}
	more, err := startGVisorRow(ctx, b)
	return append([]row{r}, more...), err
}

// slowSubject measures sandbox-runtime by itself: it takes a quarter of a second each time, which would only stretch the others' turns.
func (b *bench) slowSubject(ctx context.Context) (comparison, error) {
	s, err := b.sandboxRuntime(ctx)
	if err != nil {
		return comparison{}, err
	}
	all, err := takeTurns(ctx, b.rounds(10), []subject{s})
	if err != nil {
		return comparison{}, err
	}
	return against(all[0], atMost(0.2)), all[0].err
}

// bwrapArgs is bubblewrap with every namespace and the host's root, read-only.
func bwrapArgs() []string {
	return []string{"bwrap", "--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--unshare-all", "--unshare-user", "--die-with-parent"}
}

// command is a subject that runs a program to its end.
func (b *bench) command(name string, argv ...string) subject {
	return subject{name, func(ctx context.Context) ([]float64, error) {
		ctx, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
		cmd.Env, cmd.Dir = b.environment(), b.workspace()
		said, err := os.CreateTemp(b.dir, "said") // a file, since a pipe would have to be read meanwhile
		if err != nil {
			return nil, err
		}
		defer os.Remove(said.Name())
		defer said.Close()
		cmd.Stderr = said
		began := time.Now()
		err = cmd.Run()
		took := time.Since(began)
		if err != nil {
			words, _ := os.ReadFile(said.Name()) // only for the message
			return nil, fmt.Errorf("%w: %s", err, firstLine(string(words)))
		}
		return []float64{milliseconds(took)}, nil
	}}
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(s), "\n")
	return line[:min(len(line), 200)]
}

// have says whether a tool is there, and else which package has it.
func (b *bench) have(tool, from string) bool {
	if _, err := exec.LookPath(tool); err != nil {
		b.skip(tool, "not installed; on Debian: apt-get install "+from)
		return false
	}
	return true
}

// engines are runc and podman with a program on a root directory that holds it and what it loads, each made a subject by measured.
func (b *bench) engines(measured func(name string, argv ...string) subject, program ...string) (subjects []subject) {
	if os.Getuid() != 0 {
		b.skip("runc and podman", "compared as root only")
		return nil
	}
	root := filepath.Join(b.dir, "bundle", "rootfs")
	if err := plant(root, program[0]); err != nil {
		b.skip("runc and podman", err.Error())
		return nil
	}
	if b.have("runc", "runc") {
		if err := b.bundle(program); err != nil {
			b.skip("runc", err.Error())
		} else {
			subjects = append(subjects, measured("runc run", "runc", "--root", filepath.Join(b.dir, "runc"), "run", "--bundle", filepath.Join(b.dir, "bundle"), "bench"))
		}
	}
	if b.have("podman", "podman") && b.have("runc", "runc") {
		subjects = append(subjects, measured(podmanName, append(append(b.podman(), "run", "--rm", "--network", "none",
			"--ulimit", halved("nofile", syscall.RLIMIT_NOFILE), "--ulimit", "nproc=1024:1024", "--rootfs", root), program...)...))
	}
	return subjects
}

const podmanName = "podman run"

// podman are the words that every call of it begins with, for what has no image.
func (b *bench) podman() []string {
	return []string{"podman", "--root", filepath.Join(b.dir, "podman"), "--runroot", filepath.Join(b.dir, "podman-run"), "--storage-driver", "vfs", "--runtime", "runc", "--cgroup-manager", "cgroupfs"}
}

// halved is a limit that needs no privilege to set: podman's own default is above what root may have here and there.
func halved(name string, resource int) string {
	var l syscall.Rlimit
	if err := syscall.Getrlimit(resource, &l); err != nil || l.Max > 1<<20 {
		l.Max = 1 << 20
	}
	n := strconv.FormatUint(l.Max/2, 10)
	return name + "=" + n + ":" + n
}

// bundle writes runc's own default specification, with a program and no terminal.
func (b *bench) bundle(program []string) error {
	dir := filepath.Join(b.dir, "bundle")
	if err := os.Remove(filepath.Join(dir, "config.json")); err != nil && !errors.Is(err, fs.ErrNotExist) { // of another group
		return err
	}
	return specify(dir, program)
}

// specify writes a bundle's configuration, with mounts besides the usual ones.
func specify(dir string, program []string, mounts ...bind) error {
	if out, err := exec.Command("runc", "spec", "--bundle", dir).CombinedOutput(); err != nil {
		return fmt.Errorf("runc spec: %w: %s", err, firstLine(string(out)))
	}
	path := filepath.Join(dir, "config.json")
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var spec map[string]any
	if err := json.Unmarshal(data, &spec); err != nil {
		return err
	}
	process, ok := spec["process"].(map[string]any)
	usual, ok2 := spec["mounts"].([]any)
	if !ok || !ok2 {
		return errors.New("runc spec wrote no process, or no mounts")
	}
	process["terminal"], process["args"] = false, program
	delete(process, "rlimits") // higher than root may have on some machines
	for _, m := range mounts {
		usual = append(usual, map[string]any{"type": "bind", "source": m.source, "destination": m.target, "options": []string{"rbind", m.mode}})
	}
	spec["mounts"] = usual
	data, err = json.Marshal(spec)
	if err != nil {
		return err
	}
	return os.WriteFile(path, data, 0o644)
}

// bind is a file or folder of this machine, as a program sees it. mode is rw or ro.
type bind struct{ source, target, mode string }

// plant copies a program with its loader and libraries into a root directory.
func plant(root, program string) error {
	files, err := parts(program)
	if err != nil {
		return err
	}
	for _, dir := range []string{"proc", "sys", "dev", "tmp", "etc", "run"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			return err
		}
	}
	for _, file := range files {
		to := filepath.Join(root, file)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		if err := copyFile(to, file); err != nil {
			return err
		}
	}
	return nil
}

// parts lists a program, its loader and its libraries.
func parts(program string) ([]string, error) {
	f, err := elf.Open(program)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	files := []string{program}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			name, err := io.ReadAll(p.Open())
			if err != nil {
				return nil, err
			}
			files = append(files, strings.TrimRight(string(name), "\x00"))
		}
	}
	libraries, err := f.ImportedLibraries()
	if err != nil {
		return nil, err
	}
	for _, library := range libraries {
		path, err := findLibrary(library)
		if err != nil {
			return nil, err
		}
		files = append(files, path)
	}
	return files, nil
}

func findLibrary(name string) (string, error) {
	for _, pattern := range []string{"/lib/*-linux-gnu/", "/usr/lib/*-linux-gnu/", "/lib64/", "/usr/lib64/", "/lib/", "/usr/lib/"} {
		if found, _ := filepath.Glob(pattern + name); len(found) > 0 {
			return found[0], nil
		}
	}
	return "", fmt.Errorf("cannot find the library %s", name)
}

func copyFile(to, from string) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, data, 0o755)
}

// sandboxRuntime installs the npm package into scratch.
func (b *bench) sandboxRuntime(ctx context.Context) (subject, error) {
	for _, tool := range []string{"npm", "bwrap", "socat", "rg"} {
		if _, err := exec.LookPath(tool); err != nil {
			return subject{}, fmt.Errorf("it needs %s; on Debian: apt-get install npm bubblewrap socat ripgrep", tool)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	dir := filepath.Join(b.dir, "npm")
	install := exec.CommandContext(ctx, "npm", "install", "--no-audit", "--no-fund", "--prefix", dir, "@anthropic-ai/sandbox-runtime@0.0.78")
	if out, err := install.CombinedOutput(); err != nil {
		return subject{}, fmt.Errorf("npm install: %w: %s", err, firstLine(string(out)))
	}
	settings := filepath.Join(b.dir, "srt.json")
	const none = `{"network":{"allowedDomains":[],"deniedDomains":[]},"filesystem":{"denyRead":[],"allowWrite":["."],"denyWrite":[]}}`
	if err := os.WriteFile(settings, []byte(none), 0o644); err != nil {
		return subject{}, err
	}
	return b.command("sandbox-runtime", filepath.Join(dir, "node_modules", ".bin", "srt"), "-s", settings, "/bin/true"), nil
}

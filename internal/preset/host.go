package preset

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

const (
	// toolTime bounds each start of a tool.
	toolTime = 10 * time.Second
	// maxOutput and maxFile bound what is read of a tool and of a configuration file.
	maxOutput = 1 << 20
	maxFile   = 1 << 20
)

// Host is the machine whose tools are asked. System returns the real one; a zero field answers nothing.
type Host struct {
	// Getenv returns a variable of the user's environment.
	Getenv func(string) string
	// Home is the user's home directory.
	Home string
	// Dir is the workspace, which is not trusted.
	Dir string
	// Root is put before absolute paths such as /etc/apt/sources.list; "" means "/".
	Root string
	// Run runs a tool in a directory and returns its standard output. A tool that is not installed is an error that is exec.ErrNotFound; one that fails is
	// an *exec.ExitError with what it wrote to standard error.
	Run func(ctx context.Context, dir, name string, args ...string) ([]byte, error)
}

// System returns this machine, with the environment and the home directory of the process, for a workspace.
func System(dir string) Host {
	return Host{Getenv: os.Getenv, Home: os.Getenv("HOME"), Dir: dir, Run: runTool}
}

func (h Host) getenv(name string) string {
	if h.Getenv == nil {
		return ""
	}
	return h.Getenv(name)
}

// run starts a tool in the root directory, where no project can speak for it.
func (h Host) run(ctx context.Context, name string, args ...string) ([]byte, error) {
	return h.runIn(ctx, "/", name, args...)
}

func (h Host) runIn(ctx context.Context, dir, name string, args ...string) ([]byte, error) {
	if h.Run == nil {
		return nil, exec.ErrNotFound
	}
	ctx, cancel := context.WithTimeout(ctx, toolTime)
	defer cancel()
	return h.Run(ctx, dir, name, args...)
}

// runTool is Host.Run for real. The tool is killed with its whole process group when ctx ends.
func runTool(ctx context.Context, dir, name string, args ...string) ([]byte, error) {
	path, err := exec.LookPath(name)
	if err != nil {
		return nil, err
	}
	out := &capped{limit: maxOutput}
	errs := &capped{limit: maxOutput}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, out, errs
	cmd.Env = append(os.Environ(), "LC_ALL=C", "NO_COLOR=1", "npm_config_update_notifier=false", "PIP_DISABLE_PIP_VERSION_CHECK=1", "GIT_TERMINAL_PROMPT=0", "PWD="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	err = cmd.Run()
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		exit.Stderr = errs.buf.Bytes()
	}
	if err == nil && out.over {
		err = errors.New("too much output")
	}
	return out.buf.Bytes(), err
}

// capped keeps the first bytes written to it and drops the rest.
type capped struct {
	buf   bytes.Buffer // not embedded: its ReadFrom would go around the limit
	limit int
	over  bool
}

func (c *capped) Write(p []byte) (int, error) {
	keep := min(len(p), c.limit-c.buf.Len())
	c.over = c.over || keep < len(p)
	c.buf.Write(p[:keep])
	return len(p), nil
}

// path puts Root before an absolute path.
func (h Host) path(elem ...string) string {
	p := filepath.Join(elem...)
	if h.Root == "" {
		return p
	}
	return filepath.Join(h.Root, p)
}

// read returns a configuration file, "" where it is absent or empty. It takes regular files only, up to maxFile bytes.
func (h Host) read(path string) (string, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", err
	}
	if !info.Mode().IsRegular() || info.Size() > maxFile {
		return "", &fs.PathError{Op: "read", Path: path, Err: errors.New("not a regular file of reasonable size")}
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFile))
	return string(data), err
}

// visibleInside says whether a file is one that a sandbox on the host's own root sees at the same path: public, outside of home and run-time directories.
func (h Host) visibleInside(path string) bool {
	public := []string{"/etc/ssl/", "/etc/pki/", "/etc/ca-certificates/", "/usr/"}
	inside := func(p string) bool {
		return slices.ContainsFunc(public, func(dir string) bool { return strings.HasPrefix(p+"/", dir) })
	}
	if !filepath.IsAbs(path) || !inside(filepath.Clean(path)) || strings.HasPrefix(filepath.Clean(path)+"/", "/etc/ssl/private/") {
		return false
	}
	real, err := filepath.EvalSymlinks(h.path(path))
	if err != nil {
		return false
	}
	info, err := os.Stat(real)
	return err == nil && info.Mode().Perm()&0o004 != 0 && inside(strings.TrimPrefix(real, strings.TrimSuffix(h.Root, "/")))
}

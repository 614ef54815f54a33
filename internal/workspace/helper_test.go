package workspace

import (
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// spec describes a tree: path to "dir", "dir 0750", "file 0644 TEXT", "-> TARGET", "whiteout" or "fifo".
type spec map[string]string

func (s spec) build(t *testing.T, root string) {
	t.Helper()
	for path, what := range s {
		must(t, os.MkdirAll(filepath.Dir(filepath.Join(root, path)), 0o755))
		if strings.HasPrefix(what, "dir") {
			must(t, os.MkdirAll(filepath.Join(root, path), 0o755))
		}
	}
	var closed []string
	for path, what := range s {
		full := filepath.Join(root, path)
		switch {
		case what == "dir":
		case what == "whiteout":
			must(t, unix.Mknod(full, unix.S_IFCHR, 0))
		case what == "fifo":
			must(t, unix.Mkfifo(full, 0o644))
		case strings.HasPrefix(what, "-> "):
			must(t, os.Symlink(what[3:], full))
		case strings.HasPrefix(what, "dir "):
			closed = append(closed, path)
		default:
			must(t, os.WriteFile(full, []byte(what[10:]), 0o600))
			must(t, unix.Chmod(full, mode(t, what[5:9])))
		}
	}
	slices.Sort(closed)
	slices.Reverse(closed)
	for _, path := range closed {
		must(t, unix.Chmod(filepath.Join(root, path), mode(t, s[path][4:])))
	}
}

func mode(t *testing.T, text string) uint32 {
	t.Helper()
	var m uint32
	_, err := fmt.Sscanf(text, "%o", &m)
	must(t, err)
	return m
}

// snapshot reads a tree back in the form of spec; a plain 0755 directory is "dir".
func snapshot(t *testing.T, root string) spec {
	t.Helper()
	s := spec{}
	must(t, filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		rel, _ := filepath.Rel(root, path)
		if err != nil || rel == "." {
			return err
		}
		var st unix.Stat_t
		must(t, unix.Lstat(path, &st))
		m := st.Mode & modeBits
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFDIR:
			if s[rel] = "dir"; m != 0o755 {
				s[rel] = fmt.Sprintf("dir %04o", m)
			}
		case unix.S_IFLNK:
			target, err := os.Readlink(path)
			must(t, err)
			s[rel] = "-> " + target
		case unix.S_IFREG:
			data, err := os.ReadFile(path)
			must(t, err)
			s[rel] = fmt.Sprintf("file %04o %s", m, data)
		default:
			s[rel] = "other"
		}
		return nil
	}))
	return s
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// collection is a workspace with what a run made of it.
type collection struct {
	ws, dest string
	sum      Summary
	*Changes
}

// collect builds a workspace and an upper directory by hand, and collects.
func collect(t *testing.T, lower, upper spec) collection {
	t.Helper()
	dir := t.TempDir()
	ws, up := filepath.Join(dir, "ws"), filepath.Join(dir, "up")
	must(t, os.Mkdir(ws, 0o755))
	must(t, os.Mkdir(up, 0o755))
	lower.build(t, ws)
	upper.build(t, up)
	return collectFrom(t, ws, up, filepath.Join(dir, "changes"), CollectOptions{})
}

func collectFrom(t *testing.T, ws, up, dest string, o CollectOptions) collection {
	t.Helper()
	upper, err := os.Open(up)
	must(t, err)
	defer upper.Close()
	o.Upper, o.Lower, o.Dest = upper, ws, dest
	sum, err := Collect(t.Context(), o)
	must(t, err)
	c, err := Open(dest, ws)
	must(t, err)
	return collection{ws, dest, sum, c}
}

// ops writes the changes as lines "add file path".
func ops(list []Change) string {
	var b strings.Builder
	for _, c := range list {
		kind := c.Now.Kind
		if kind == Absent {
			kind = c.Was.Kind
		}
		fmt.Fprintf(&b, "%s %s %s\n", c.Op(), kind, c.Path)
	}
	return b.String()
}

func paths(list []Change) string {
	var names []string
	for _, c := range list {
		names = append(names, c.Path.String())
	}
	return strings.Join(names, " ")
}

// inNamespace runs the calling test again in a mount namespace of its own, and returns true there. As root it does so once as it is, and once as
// root of a user namespace with one id, as a rootless run has it.
func inNamespace(t *testing.T) bool {
	t.Helper()
	if os.Getenv("COFFERDAM_TEST_NAMESPACE") != "" {
		must(t, unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
		return true
	}
	for _, level := range []string{"root", "rootless"} {
		t.Run(level, func(t *testing.T) {
			cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+strings.Split(t.Name(), "/")[0]+"$", "-test.v")
			cmd.Env = append(os.Environ(), "COFFERDAM_TEST_NAMESPACE="+level)
			cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS, Pdeathsig: unix.SIGKILL}
			if level == "rootless" {
				cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
				cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
				cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
			} else if os.Getuid() != 0 {
				t.Skip("needs root")
			}
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
		})
	}
	return false
}

// asUser says whether the test runs without privileges. As root it runs the calling test again as nobody, and returns false.
func asUser(t *testing.T) bool {
	t.Helper()
	if os.Getuid() != 0 {
		return true
	}
	// The path of the test's program may be closed to nobody; this link is not.
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}, Pdeathsig: unix.SIGKILL}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("as nobody: %v\n%s", err, out)
	}
	return false
}

// overlay mounts an overlay as a sandbox has it, and returns the merged and the upper directory.
func overlay(t *testing.T, lower string) (merged, upper string) {
	t.Helper()
	tmp := t.TempDir()
	must(t, unix.Mount("tmpfs", tmp, "tmpfs", 0, "mode=0755"))
	t.Cleanup(func() { must(t, unix.Unmount(tmp, unix.MNT_DETACH)) })
	merged, upper = filepath.Join(tmp, "merged"), filepath.Join(tmp, "upper")
	for _, d := range []string{merged, upper, filepath.Join(tmp, "work")} {
		must(t, os.Mkdir(d, 0o755))
	}
	options := fmt.Sprintf("userxattr,lowerdir=%s,upperdir=%s,workdir=%s/work", lower, upper, tmp)
	must(t, unix.Mount("overlay", merged, "overlay", 0, options))
	t.Cleanup(func() { _ = unix.Unmount(merged, unix.MNT_DETACH) })
	return merged, upper
}

// writeManifestForTest stores a list as an attacker with write access to the collection would.
func writeManifestForTest(t *testing.T, dest string, m manifest) {
	t.Helper()
	data, err := json.Marshal(m)
	must(t, err)
	must(t, os.MkdirAll(filepath.Join(dest, contentDir), 0o700))
	must(t, os.WriteFile(filepath.Join(dest, manifestName), data, 0o600))
}

func apply(t *testing.T, c collection, o ApplyOptions) Report {
	t.Helper()
	r, err := c.Apply(context.WithoutCancel(t.Context()), o)
	must(t, err)
	return r
}

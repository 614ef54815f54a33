package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/internal/image"
)

// TestImageBuildChild is the program that the tests of "image build" run: it gives up its rights, which the test itself has to keep.
func TestImageBuildChild(t *testing.T) {
	state := os.Getenv("COFFERDAM_TEST_BUILD")
	if state == "" {
		t.Skip("it is run by other tests")
	}
	a := &app{stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr, state: state}
	args := os.Args[slices.Index(os.Args, "--")+1:]
	os.Exit(a.main(t.Context(), append([]string{"image", "build"}, args...)))
}

// buildCommand is a call of "image build".
func buildCommand(t *testing.T, state string, args ...string) (cmd *exec.Cmd, out, errs *bytes.Buffer) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd = exec.CommandContext(t.Context(), self, append([]string{"-test.run=^TestImageBuildChild$", "--"}, args...)...)
	out, errs = &bytes.Buffer{}, &bytes.Buffer{}
	cmd.Stdout, cmd.Stderr = out, errs
	cmd.Env = append(os.Environ(), "COFFERDAM_TEST_BUILD="+state)
	return cmd, out, errs
}

func TestImageBuild(t *testing.T) {
	state, tree := t.TempDir(), t.TempDir()
	if err := errors.Join(os.MkdirAll(filepath.Join(tree, "bin"), 0o755), os.WriteFile(filepath.Join(tree, "bin/sh"), []byte("#!"), 0o4755)); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(tree, "bin/sh"), 0o4755|os.ModeSetuid); err != nil {
		t.Fatal(err)
	}
	cmd, out, errs := buildCommand(t, state, "box", "--from", tree, "--env", "A=1", "--env", "A=2", "--workdir", "/srv", "--cmd", "/bin/sh", "--cmd", "-l", "--json")
	if err := cmd.Run(); err != nil {
		t.Fatal(err, errs)
	}
	var made struct {
		Image  image.Image
		Counts struct {
			Files int
			SetID int `json:"set_id"`
		}
	}
	if err := json.Unmarshal(out.Bytes(), &made); err != nil {
		t.Fatal(err, out)
	}
	config := made.Image.Config
	if !slices.Equal(config.Env, []string{"A=2"}) || config.WorkingDir != "/srv" || !slices.Equal(config.Cmd, []string{"/bin/sh", "-l"}) || made.Counts.Files != 1 || made.Counts.SetID != 1 {
		t.Errorf("%s", out)
	}
	if sbom, err := os.ReadFile(made.Image.SBOM); err != nil || !bytes.Contains(sbom, []byte("SPDX-2.3")) {
		t.Errorf("%v %s", err, sbom)
	}
	info, err := os.Stat(filepath.Join(made.Image.Tree, "bin/sh"))
	if err != nil || info.Mode()&os.ModeSetuid != 0 || info.Mode().Perm() != 0o755 {
		t.Error(info, err)
	}
	cmd, out, errs = buildCommand(t, state, "again", "--from", tree, "--env", "A=2", "--workdir", "/srv", "--cmd", "/bin/sh", "--cmd", "-l", "--quiet")
	if err := cmd.Run(); err != nil || strings.TrimSpace(out.String()) != made.Image.Digest {
		t.Error("an equal source makes another image:", out, errs, err)
	}
}

func TestImageBuildRefuses(t *testing.T) {
	state, tree := t.TempDir(), t.TempDir()
	file := filepath.Join(tree, "file")
	if err := os.WriteFile(file, []byte("no archive"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		text string
	}{
		{[]string{}, "name the one image"},
		{[]string{"a", "b", "--from", tree}, "name the one image"},
		{[]string{"registry.example.org/x", "--from", tree}, "names a registry"},
		{[]string{"UPPER", "--from", tree}, "not well formed"},
		{[]string{"box"}, "nothing is named"},
		{[]string{"box", "--from", tree, "--packages", "bash"}, "packages"},
		{[]string{"box", "--from", filepath.Join(tree, "absent")}, "cannot be opened"},
		{[]string{"box", "--from", file}, "cannot be read"},
		{[]string{"box", "--from", tree, "--max-size", "4"}, "more than"},
		{[]string{"box", "--from", tree, "--max-size", "much"}, "max-size"},
		{[]string{"box", "--from", tree, "--max-files", "0"}, "max-files"},
		{[]string{"box", "--from", tree, "--env", "LD_PRELOAD=x"}, "LD_PRELOAD"},
		{[]string{"box", "--from", tree, "--workdir", "srv"}, "directory"},
		{[]string{"box", "--from", tree, "--best-effort", "seccomp"}, "best-effort"},
		{[]string{"box", "--recipe", "absent"}, "no recipe"},
		{[]string{"box", "--recipe", file}, "recipe"},
		{[]string{"box", "--packages", "x;y"}, "no name of a package"},
	} {
		cmd, out, errs := buildCommand(t, state, c.args...)
		if err := cmd.Run(); err == nil || !strings.Contains(errs.String(), c.text) || out.Len() != 0 {
			t.Errorf("%q: %v, %s%s", c.args, err, out, errs)
		}
	}
	if store, err := image.Open(filepath.Join(state, "images")); err != nil {
		t.Error(err)
	} else if list, err := store.List(); err != nil || len(list) != 0 {
		t.Error("left behind:", list, err)
	}
}

// TestImageBuildInterrupted has a build wait for an archive that does not come, and interrupts it.
func TestImageBuildInterrupted(t *testing.T) {
	state, temp := t.TempDir(), t.TempDir()
	cmd, _, errs := buildCommand(t, state, "box", "--from", "-")
	cmd.Env = append(cmd.Env, "TMPDIR="+temp)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := in.Write(make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	for until := time.Now().Add(20 * time.Second); time.Now().Before(until); time.Sleep(20 * time.Millisecond) {
		status, err := os.ReadFile("/proc/" + strconv.Itoa(cmd.Process.Pid) + "/status")
		if err == nil && bytes.Contains(status, []byte("Seccomp:\t2")) { // it has given up its rights, and reads
			break
		}
	}
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	err = cmd.Wait()
	if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != 130 || !strings.Contains(errs.String(), "nothing was kept") {
		t.Error(err, errs)
	}
	for _, dir := range []string{temp, filepath.Join(state, "images/staging"), filepath.Join(state, "images/content")} {
		if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
			t.Errorf("%s: %v, %v", dir, left, err)
		}
	}
}

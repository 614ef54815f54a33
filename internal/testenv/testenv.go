// Package testenv (MACHINE) says what a test needs of the machine, and builds the programs that end-to-end tests run.
package testenv

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// Need skips the test unless the machine has everything named. What REQUIRE names (comma-separated) must be there: then its absence is a failure,
// so that continuous integration cannot go green by lacking something.
//
// Known needs: root, userns, cgroup, kvm; gvisor for runsc, as "make gvisor" builds it; vm-emulated for what "make vm" makes; postgres for a server's programs, see StartPostgres; tool:NAME for a
// program in the search path, such as tool:redis-server and tool:chromium; network for the package registries.
func Need(t testing.TB, needs ...string) {
	t.Helper()
	required := strings.Split(os.Getenv("REQUIRE"), ",")
	for _, need := range needs {
		reason := missing(need)
		if reason == "" {
			continue
		}
		if slices.Contains(required, need) {
			t.Fatalf("needs %s, which is promised here: %s", need, reason)
		}
		t.Skipf("needs %s: %s", need, reason)
	}
}

// Missing says whether the machine lacks something of what is named, for a test that can do without.
func Missing(needs ...string) bool {
	return slices.ContainsFunc(needs, func(need string) bool { return missing(need) != "" })
}

// missing says why a need is not met, or nothing.
func missing(need string) string {
	if tool, ok := strings.CutPrefix(need, "tool:"); ok {
		if _, err := exec.LookPath(tool); err != nil {
			return err.Error()
		}
		return ""
	}
	switch need {
	case "root":
		if os.Geteuid() != 0 {
			return fmt.Sprintf("runs as user %d", os.Geteuid())
		}
	case "userns":
		cmd := exec.Command("unshare", "--user", "--net", "--mount", "true")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Sprintf("%v: %s", err, out)
		}
	case "cgroup":
		if data, err := os.ReadFile("/proc/self/cgroup"); err != nil || len(data) == 0 {
			return "no control groups"
		}
	case "gvisor":
		if _, err := os.Stat(filepath.Join(binaries(), runsc)); err != nil {
			return err.Error() + `; make it with "make gvisor"`
		}
	case "vm-emulated":
		if _, err := os.Stat(filepath.Join(binaries(), machines, "about.json")); err != nil {
			return err.Error() + `; make it with "make vm"`
		}
	case "postgres":
		if _, err := postgresPrograms(); err != nil {
			return err.Error()
		}
	case "kvm":
		if err := unix.Access("/dev/kvm", unix.R_OK|unix.W_OK); err != nil {
			return err.Error()
		}
	case "network":
		if os.Getenv("OFFLINE") != "" {
			return "OFFLINE is set"
		}
	default:
		panic("testenv: unknown need " + need)
	}
	return ""
}

var build = sync.OnceValues(buildPrograms)

// Programs returns the directory of the three programs, built once for the test process, or the one that COFFERDAM_BIN names.
// It can be entered by every user, so that tests of ordinary users can run them.
func Programs(t testing.TB) string {
	t.Helper()
	dir, err := build()
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func buildPrograms() (string, error) {
	if dir := os.Getenv("COFFERDAM_BIN"); dir != "" {
		return dir, nil
	}
	// Outside the tree and in a fixed place: building again is quick, and nothing needs to be removed.
	dir := filepath.Join(os.TempDir(), fmt.Sprintf("cofferdam-test-programs-%d", os.Getuid()))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", dir+"/", "./cmd/...")
	cmd.Dir = Module()
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the programs: %w: %s", err, out)
	}
	return dir, errors.Join(adopt(filepath.Join(dir, runsc)), adoptMachines(filepath.Join(dir, machines)))
}

// runsc is the one program that is not built here: it takes minutes. machines is the folder of what virtual machines are started from, which needs the network.
const (
	runsc    = "runsc"
	machines = "vm"
)

// binaries is where they lie if this machine has them.
func binaries() string {
	if dir := os.Getenv("COFFERDAM_BIN"); dir != "" {
		return dir
	}
	return filepath.Join(Module(), "bin")
}

// adopt puts runsc beside the programs, if there is one. It is a file of its own: a link would be somebody else's.
func adopt(path string) error {
	source := filepath.Join(binaries(), runsc)
	want, err := os.Stat(source)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if have, err := os.Stat(path); err == nil && have.Size() == want.Size() && have.ModTime().After(want.ModTime()) {
		return nil
	}
	data, err := os.ReadFile(source)
	if err != nil {
		return err
	}
	next := path + strconv.Itoa(os.Getpid())
	return errors.Join(os.WriteFile(next, data, 0o755), os.Rename(next, path))
}

// adoptMachines puts the folder of virtual machines beside the programs, if there is one. Nobody writes there.
func adoptMachines(path string) error {
	source := filepath.Join(binaries(), machines)
	if _, err := os.Stat(source); err != nil {
		return nil //nolint:nilerr // there is none
	}
	if err := os.Symlink(source, path); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

// Module returns the root directory of the source tree.
func Module() string {
	_, file, _, ok := runtime.Caller(0)
	if !ok || !filepath.IsAbs(file) { // built with -trimpath: tests run in their package's directory
		dir, _ := os.Getwd() // an empty answer fails where it is used
		for dir != "/" && dir != "" {
			if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
				return dir
			}
			dir = filepath.Dir(dir)
		}
		return dir
	}
	return filepath.Dir(filepath.Dir(filepath.Dir(file)))
}

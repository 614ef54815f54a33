// Package e2e runs the real programs as a user would and looks at what came of it.
package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/internal/testenv"
)

// as is who runs the programs: root or an ordinary user.
type as struct {
	name  string
	uid   uint32
	level string // of isolation, for every sandbox; empty for the default
	root  string // a tree for --rootfs, where the level cannot show this machine's own system
}

// users lists who can be tried on this machine: an ordinary user always, and root where the test is root. LEVEL in the environment chooses the level of
// isolation for every test that does not choose it itself.
func users() []as {
	level := os.Getenv("LEVEL")
	if os.Geteuid() == 0 {
		return []as{{name: "root", level: level}, {name: "rootless", uid: 65533, level: level}}
	}
	return []as{{name: "rootless", uid: uint32(os.Getuid()), level: level}}
}

// forEachUser runs a test once for each of users.
func forEachUser(t *testing.T, test func(*testing.T, *house)) {
	t.Helper()
	testenv.Need(t, "userns")
	for _, u := range users() {
		t.Run(u.name, func(t *testing.T) { test(t, newHouse(t, u)) })
	}
}

// house is one user's own state directory and project folder.
type house struct {
	t       *testing.T
	as      as
	bin     string
	state   string // COFFERDAM_STATE
	home    string
	project string // current folder of the commands
	trust   string // a file of certificate authorities for cofferdam itself
}

func newHouse(t *testing.T, u as) *house {
	t.Helper()
	// Not t.TempDir: its parents are closed to other users, and a name under /tmp keeps socket paths short.
	base, err := os.MkdirTemp("", "cofferdam-e2e-")
	if err != nil {
		t.Fatal(err)
	}
	h := &house{t: t, as: u, bin: testenv.Programs(t), state: filepath.Join(base, "state"), home: filepath.Join(base, "home"), project: filepath.Join(base, "home", "project")}
	if err := os.MkdirAll(h.project, 0o755); err != nil {
		t.Fatal(err)
	}
	h.own(base)
	t.Cleanup(func() {
		if err := os.RemoveAll(base); err != nil {
			t.Errorf("remove %s: %v", base, err)
		}
	})
	return h
}

// own gives a tree to the house's user.
func (h *house) own(path string) {
	h.t.Helper()
	if os.Geteuid() != 0 {
		return
	}
	err := filepath.Walk(path, func(p string, _ os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(p, int(h.as.uid), int(h.as.uid))
	})
	if err == nil {
		err = os.Chmod(path, 0o755)
	}
	if err != nil {
		h.t.Fatal(err)
	}
}

// write puts a file into the project.
func (h *house) write(name, content string) {
	h.t.Helper()
	path := filepath.Join(h.project, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o644)); err != nil {
		h.t.Fatal(err)
	}
	h.own(h.project)
}

// command prepares one of cofferdam's commands. Canary variables stand in its environment.
func (h *house) command(ctx context.Context, args ...string) *exec.Cmd {
	if h.as.level != "" && len(args) > 0 && args[0] == "run" {
		args = append(h.rootFlags("run", "--isolation", h.as.level), args[1:]...)
	}
	cmd := exec.CommandContext(ctx, filepath.Join(h.bin, "cofferdam"), args...)
	cmd.Dir = h.project
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + h.home, "COFFERDAM_STATE=" + h.state, "SECRET_CANARY=canary-4711", "LANG=C.UTF-8",
	}
	if h.trust != "" {
		cmd.Env = append(cmd.Env, "SSL_CERT_FILE="+h.trust)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	if h.as.uid != uint32(os.Getuid()) {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: h.as.uid, Gid: h.as.uid}
	}
	return cmd
}

// rootFlags adds to a command's flags what the user's level needs as root.
func (h *house) rootFlags(flags ...string) []string {
	if h.as.root != "" {
		flags = append(flags, "--rootfs", h.as.root)
	}
	return flags
}

// result is what a command came to.
type result struct {
	stdout, stderr string
	code           int
}

// patience is how long something may take at the user's level that takes a time where programs run natively.
func (u as) patience(natively time.Duration) time.Duration {
	if u.able().slow {
		return 6 * natively
	}
	return natively
}

// do runs a command to its end, within a minute, or more where a processor is emulated.
func (h *house) do(args ...string) result {
	h.t.Helper()
	return h.doWith(h.as.patience(time.Minute), "", args...)
}

// doWith runs a command with input, within a time.
func (h *house) doWith(limit time.Duration, stdin string, args ...string) result {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(h.t.Context(), limit)
	defer cancel()
	cmd := h.command(ctx, args...)
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errs
	err := cmd.Run()
	if ctx.Err() != nil {
		h.t.Fatalf("cofferdam %v: not over after %v\n%s%s", args, limit, out.String(), errs.String())
	}
	if _, isExit := errors.AsType[*exec.ExitError](err); err != nil && !isExit {
		h.t.Fatalf("cofferdam %v: %v", args, err)
	}
	return result{stdout: out.String(), stderr: errs.String(), code: cmd.ProcessState.ExitCode()}
}

// sh runs a shell line in a sandbox with extra flags.
func (h *house) sh(line string, flags ...string) result {
	h.t.Helper()
	return h.do(append(append([]string{"run"}, flags...), "--", "sh", "-c", line)...)
}

// notStarted checks that a run which would have said "started" was refused, and that the person is told all of why.
func (h *house) notStarted(r result, why ...string) {
	h.t.Helper()
	untold := func(word string) bool { return !strings.Contains(r.stderr, word) }
	if r.code != 125 || strings.Contains(r.stdout, "started") || slices.ContainsFunc(why, untold) {
		h.t.Errorf("exit %d, want none started and %q told: %s%s", r.code, why, r.stdout, r.stderr)
	}
}

// event is the part of an audit event that tests look at.
type event struct {
	Seq      uint64   `json:"seq"`
	Kind     string   `json:"kind"`
	Run      string   `json:"run"`
	Protocol string   `json:"protocol"`
	Host     string   `json:"host"`
	Address  string   `json:"address"`
	Port     uint16   `json:"port"`
	Method   string   `json:"method"`
	Path     string   `json:"path"`
	Verdict  string   `json:"verdict"`
	Rule     string   `json:"rule"`
	Reason   string   `json:"reason"`
	Process  string   `json:"process"`
	Weaker   []string `json:"weaker"`
	Detail   string   `json:"detail"`
}

// events reads the audit records of the last run.
func (h *house) events() []event {
	h.t.Helper()
	return h.eventsOf("last")
}

// eventsOf reads those of one run.
func (h *house) eventsOf(run string) (events []event) {
	h.t.Helper()
	r := h.do("audit", run, "--json")
	if r.code != 0 {
		h.t.Fatalf("audit: %s", r.stderr)
	}
	for line := range strings.Lines(r.stdout) {
		var e event
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			h.t.Fatalf("audit line %q: %v", line, err)
		}
		events = append(events, e)
	}
	return events
}

// runRecord is what the list of runs says of one of them.
type runRecord struct {
	Run, State, How          string
	ExitCode                 int `json:"exit_code"`
	Isolation, Platform      string
	From                     string
	FromRun                  string `json:"from_run"`
	Tenant, Agent            string
	Started                  time.Time
	Problems, Weaker, Limits []string
	Receipt                  []item
}

// item is what the receipt says of one thing.
type item struct{ What, How, Checked, At, Problem string }

// runs lists all runs, oldest first.
func (h *house) runs() (all []runRecord) {
	h.t.Helper()
	r := h.do("ps", "--all", "--json")
	if err := json.Unmarshal([]byte(r.stdout), &all); err != nil {
		h.t.Fatalf("ps --all --json: %v: %s%s", err, r.stdout, r.stderr)
	}
	return all
}

// last is the newest run.
func (h *house) last() runRecord {
	h.t.Helper()
	all := h.runs()
	if len(all) == 0 {
		h.t.Fatal("no run is listed")
	}
	return all[len(all)-1]
}

// denied finds the record of a denial, by what it has in common with want's non-zero fields.
func denied(events []event, want event) (event, bool) {
	for _, e := range events {
		if e.Kind == "crossing.decided" && e.Verdict == "deny" && (want.Host == "" || e.Host == want.Host) && (want.Address == "" || e.Address == want.Address) &&
			(want.Port == 0 || e.Port == want.Port) && (want.Protocol == "" || e.Protocol == want.Protocol) && (want.Rule == "" || e.Rule == want.Rule) {
			return e, true
		}
	}
	return event{}, false
}

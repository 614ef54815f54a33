package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/ident"
	"github.com/cofferdam/cofferdam/internal/keeper"
	"github.com/cofferdam/cofferdam/internal/testenv"
)

// asEachUser runs a test once for each of users in a process of that user's, as the service would be.
func asEachUser(t *testing.T, test func(*testing.T, *house)) {
	t.Helper()
	testenv.Need(t, "userns")
	for _, u := range users() {
		t.Run(u.name, func(t *testing.T) { u.inPerson(t, test) })
	}
}

// inPerson runs a test in a process of the user's.
func (u as) inPerson(t *testing.T, test func(*testing.T, *house)) {
	t.Helper()
	if u.uid != uint32(os.Getuid()) {
		again(t, u)
		return
	}
	test(t, newHouse(t, u))
}

// again runs the current test in a process of another user's.
func again(t *testing.T, u as) {
	t.Helper()
	dir, err := os.MkdirTemp("", "cofferdam-e2e-") // the test's own program lies where others cannot enter
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	program := filepath.Join(dir, "test")
	own, err := os.Executable()
	var data []byte
	if err == nil {
		data, err = os.ReadFile(own)
	}
	if err := errors.Join(err, os.Chmod(dir, 0o755), os.WriteFile(program, data, 0o755)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), program, "-test.v", "-test.timeout=5m", "-test.run=^"+strings.ReplaceAll(t.Name(), "/", "$/^")+"$")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "COFFERDAM_BIN="+testenv.Programs(t), "HOME="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: u.uid, Gid: u.uid}}
	out, err := cmd.CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("--- PASS: "+t.Name())) {
		t.Errorf("as user %d: %v\n%s", u.uid, err, out)
	}
}

// kept is a sandbox of a keeper's.
type kept struct {
	*house
	run    ident.Run
	ready  keeper.Ready
	client *keeper.Client
}

func (h *house) launcher() *keeper.Launcher {
	return &keeper.Launcher{Program: filepath.Join(h.bin, "cofferdam"), State: h.state}
}

// keep launches a sandbox. A spec without a policy has one that denies everything.
func (h *house) keep(spec keeper.Spec) *kept {
	h.t.Helper()
	spec.Run, spec.Tenant, spec.Agent, spec.Principal = ident.NewRun(), "t1", "a1", "user:u1"
	if spec.Policy == "" {
		spec.Policy = "version: 1\n"
	}
	spec.Isolation = h.as.level
	k := &kept{house: h, run: spec.Run}
	var err error
	if k.ready, err = h.launcher().Launch(h.t.Context(), spec); err != nil {
		h.t.Fatalf("launch: %v (%s)\n%s", err, fault.HintOf(err), k.log())
	}
	if k.client, err = keeper.Dial(h.t.Context(), h.state, k.run); err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		_ = k.client.Stop(ctx, "the test is over") // it may have ended
		k.gone(ctx)
		if h.t.Failed() {
			h.t.Logf("keeper.log: %s", k.log())
		}
	})
	return k
}

func (k *kept) log() string {
	data, _ := os.ReadFile(filepath.Join(k.state, "runs", k.run.String(), "keeper.log"))
	return string(data)
}

// gone waits until there is no keeper, and checks that nothing is left of it.
func (k *kept) gone(ctx context.Context) {
	k.t.Helper()
	for {
		_, err := keeper.Dial(ctx, k.state, k.run)
		_, alive := os.Stat(fmt.Sprintf("/proc/%d", k.ready.PID))
		if fault.KindOf(err) == fault.NotFound && alive != nil {
			break
		}
		if ctx.Err() != nil {
			k.t.Errorf("the keeper is still there: %v, %v", err, alive)
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	if _, err := os.Lstat(keeper.SocketPath(k.state, k.run)); err == nil {
		time.Sleep(200 * time.Millisecond) // its supervisor held the lock when it was looked for
		if err := keeper.Sweep(k.state); err != nil {
			k.t.Error(err)
		}
		if _, err := os.Lstat(keeper.SocketPath(k.state, k.run)); err == nil {
			k.t.Error("the socket is left")
		}
	}
	if out, _ := exec.Command("grep", "-l", k.run.String(), "-r", "/proc/self/mountinfo").Output(); len(out) > 0 {
		k.t.Errorf("mounts are left")
	}
	var left []string
	all, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, name := range all {
		if data, _ := os.ReadFile(name); bytes.Contains(data, []byte("COFFERDAM_RUN="+k.run.String())) {
			left = append(left, name)
		}
	}
	if len(left) > 0 {
		k.t.Errorf("processes are left: %v", left)
	}
}

// said is what a command came to.
type said struct {
	out, err string
	code     int
	problem  string
}

// exec runs a command inside.
func (k *kept) exec(e keeper.Exec, stdin string) said {
	k.t.Helper()
	ctx, cancel := context.WithTimeout(k.t.Context(), 30*time.Second)
	defer cancel()
	p, err := k.client.Exec(ctx, e)
	if err != nil {
		k.t.Fatalf("exec %v: %v\n%s", e.Command, err, k.log())
	}
	defer p.Close()
	go func() {
		_, _ = io.WriteString(p.Stdin(), stdin)
		_ = p.Stdin().Close()
	}()
	errs := make(chan string, 1)
	go func() {
		data, _ := io.ReadAll(p.Stderr())
		errs <- string(data)
	}()
	data, _ := io.ReadAll(p.Stdout())
	s := said{out: string(data), err: <-errs}
	exit, err := p.Wait()
	if err != nil {
		k.t.Fatalf("exec %v: %v", e.Command, err)
	}
	s.code, s.problem = exit.Code, exit.Error
	return s
}

// sh runs a shell line inside.
func (k *kept) sh(line string) said {
	k.t.Helper()
	return k.exec(keeper.Exec{Command: []string{"sh", "-c", line}, NoStdin: true}, "")
}

// records reads the audit records of the run.
func (k *kept) records() (events []struct {
	event
	Tenant    string `json:"tenant"`
	Agent     string `json:"agent"`
	Principal string `json:"principal"`
}) {
	k.t.Helper()
	r := k.do("audit", k.run.String(), "--json")
	if r.code != 0 {
		k.t.Fatalf("audit: %s", r.stderr)
	}
	d := json.NewDecoder(strings.NewReader(r.stdout))
	for d.More() {
		events = append(events, struct {
			event
			Tenant    string `json:"tenant"`
			Agent     string `json:"agent"`
			Principal string `json:"principal"`
		}{})
		if err := d.Decode(&events[len(events)-1]); err != nil {
			k.t.Fatal(err)
		}
	}
	return events
}

// record waits for the run's record to say that it ended.
func (k *kept) record() (how string, code int) {
	k.t.Helper()
	for range 300 {
		for _, one := range k.runs() {
			if one.Run == k.run.String() && one.State == "ended" && one.Tenant == "t1" && one.Agent == "a1" {
				return one.How, one.ExitCode
			}
		}
		time.Sleep(50 * time.Millisecond)
	}
	k.t.Fatal("the run has no end on record")
	return "", 0
}

func TestKeeperLife(t *testing.T) {
	asEachUser(t, func(t *testing.T, h *house) {
		k := h.keep(keeper.Spec{Env: []string{"HELLO=world"}})
		status, err := k.client.Status(t.Context())
		if err != nil || status.Run != k.run || status.Ended || status.Asks == nil || len(status.Policy) != 64 {
			t.Fatalf("status %+v, %v", status, err)
		}
		keptCommands(t, k)
		if _, err := k.client.Exec(t.Context(), keeper.Exec{}); fault.KindOf(err) != fault.Invalid {
			t.Errorf("no command: %v", err)
		}
		if err := k.client.Stop(t.Context(), "enough"); err != nil {
			t.Fatal(err)
		}
		if how, _ := k.record(); how != "stopped: enough" {
			t.Errorf("ended by %q", how)
		}
		events := k.records()
		first, last := events[0], events[len(events)-1]
		if first.Kind != "run.started" || first.Tenant != "t1" || first.Agent != "a1" || first.Principal != "user:u1" || last.Kind != "run.ended" {
			t.Errorf("on record: %+v … %+v", first, last)
		}
	})
}

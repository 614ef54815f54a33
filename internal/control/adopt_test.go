package control

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/ident"
	"github.com/cofferdam/cofferdam/internal/keeper"
	"github.com/cofferdam/cofferdam/internal/sandbox"
)

// TestAdopt: a service that comes back finds its sandboxes, and what happened meanwhile is noted.
func TestAdopt(t *testing.T) {
	h := newRealHouse(t)
	stop := h.run(t)
	agent := h.agent(t, h.a, "one", emptyPolicy)
	w, err := h.CreateWorkspace(t.Context(), h.a, api.NewWorkspace{Name: "data"})
	if err != nil {
		t.Fatal(err)
	}
	lives := h.create(t, h.a, api.NewSandbox{Agent: "one", Hold: true})
	ends := h.create(t, h.a, api.NewSandbox{Agent: "one", Command: []string{"/bin/sh", "-c", "sleep 1; exit 4"}})
	killed := h.create(t, h.a, api.NewSandbox{Agent: "one", Hold: true, Workspace: "data"})
	p, err := h.Exec(t.Context(), h.a, lives.ID, api.Exec{Command: []string{"/bin/sleep", "1000"}})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	stop()
	if err := keeper.Kill(t.Context(), h.State, ident.Run(killed.ID)); err != nil {
		t.Fatal(err)
	}
	never := h.insertStarting(t, agent.ID, "")
	text := "version: 1\negress:\n  rules:\n    - hosts: [a.example.com]\n"
	if _, err := h.ChangePolicy(t.Context(), h.a, agent.Policy, 1, api.PolicyChange{Text: &text}); err != nil {
		t.Fatal(err)
	}
	time.Sleep(1500 * time.Millisecond) // the command ends

	next := openTestHouse(t, h.State, h.Launcher.Program)
	next.run(t)
	if done := next.ended(t, h.a, ends.ID); done.How != "exit 4" || *done.ExitCode != 4 {
		t.Errorf("ended meanwhile: %+v", done)
	}
	if done := next.ended(t, h.a, killed.ID); done.State != api.Ended || !strings.HasPrefix(done.How, "killed") {
		t.Errorf("killed meanwhile: %+v", done)
	}
	if done := next.ended(t, h.a, never); done.State != api.Failed {
		t.Errorf("never made: %+v", done)
	}
	if w, err = next.Workspace(t.Context(), h.a, w.ID); err != nil || w.Used != "" {
		t.Errorf("%+v %v", w, err)
	}
	if got, err := next.ExecWait(t.Context(), h.a, lives.ID, api.Exec{Command: []string{"/bin/echo", "here"}}); err != nil || got.Stdout != "here\n" {
		t.Errorf("%+v %v", got, err)
	}
	page, err := next.Runs(t.Context(), h.a, lives.ID, Page{})
	if err != nil || len(page.Items) != 2 || page.Items[1].State != runLost {
		t.Errorf("%+v %v", page.Items, err)
	}
	eventually(t, "the policy of now is in force", 5*time.Second, func() bool {
		o, err := next.sandbox(t.Context(), h.a.Tenant, lives.ID)
		return err == nil && strings.Contains(o.Data.Policy, "a.example.com")
	})
	for _, id := range []string{ends.ID, killed.ID} {
		next.nothing(t, id)
	}
	if _, err := next.StopSandbox(t.Context(), h.a, lives.ID, ""); err != nil {
		t.Error(err)
	}
	next.ended(t, h.a, lives.ID)
}

// TestFence: a keeper that was started by a service which was then killed, and that comes after the next service has given the sandbox up, does not begin.
func TestFence(t *testing.T) {
	h := newRealHouse(t)
	agent := h.agent(t, h.a, "one", emptyPolicy)
	run := h.insertStarting(t, agent.ID, "")
	h.run(t)
	if done := h.ended(t, h.a, run); done.State != api.Failed {
		t.Fatalf("%+v", done)
	}
	spec := keeper.Spec{Run: ident.Run(run), Tenant: h.a.Tenant, Agent: agent.ID, Principal: "user:x", Policy: emptyPolicy, Deadline: time.Now().Add(time.Minute)}
	if _, err := h.Launcher.Launch(t.Context(), spec); err == nil {
		t.Error("the late keeper runs")
	}
	old := time.Now().Add(-time.Hour)
	dir := filepath.Join(h.State, "runs", run)
	if err := os.Chtimes(dir, old, old); err != nil {
		t.Fatal(err)
	}
	if err := h.sweepTombstones(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(dir); err == nil {
		t.Error("the tombstone stands for ever")
	}
}

// TestStray: what runs and is in no store is stopped.
func TestStray(t *testing.T) {
	h := newRealHouse(t)
	run := ident.NewRun()
	spec := keeper.Spec{Run: run, Tenant: h.a.Tenant, Agent: "gone", Principal: "user:x", Policy: emptyPolicy, Deadline: time.Now().Add(time.Minute)}
	if _, err := h.Launcher.Launch(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	h.run(t)
	records, err := sandbox.OpenStore(h.State)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the stray ends", 10*time.Second, func() bool { return !records.IsLive(run) })
}

// TestFrozenKeeper: a keeper that does not answer is killed where it must obey.
func TestFrozenKeeper(t *testing.T) {
	h := newRealHouse(t)
	h.run(t)
	agent := h.agent(t, h.a, "one", "version: 1\negress:\n  rules:\n    - hosts: [a.example.com]\n")
	o := h.create(t, h.a, api.NewSandbox{Agent: "one", Hold: true})
	if err := unix.Kill(keeperOf(t, h, o.ID), unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	text := emptyPolicy
	if _, err := h.ChangePolicy(t.Context(), h.a, agent.Policy, 1, api.PolicyChange{Text: &text}); err != nil {
		t.Error(err)
	}
	done := h.ended(t, h.a, o.ID)
	if took := time.Since(began); took > 9*time.Second || !strings.Contains(done.How, "its policy changed") {
		t.Errorf("after %v: %s", took, done.How)
	}
	h.nothing(t, o.ID)
}

// keeperOf finds the process that keeps a sandbox: the one that listens on its socket.
func keeperOf(t *testing.T, h *testHouse, id string) int {
	t.Helper()
	dir, err := os.Open(filepath.Join(h.State, "keepers"))
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: fmt.Sprintf("/proc/self/fd/%d/%s.sock", dir.Fd(), id)}); err != nil {
		t.Fatal(err)
	}
	cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		t.Fatal(err)
	}
	return int(cred.Pid)
}

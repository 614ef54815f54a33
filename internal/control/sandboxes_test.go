package control

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/audit"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/ident"
	"github.com/cofferdam/cofferdam/internal/keeper"
	"github.com/cofferdam/cofferdam/internal/sandbox"
	"github.com/cofferdam/cofferdam/internal/store"
	"github.com/cofferdam/cofferdam/internal/testenv"
)

// newRealHouse is a test house with the real programs.
func newRealHouse(t *testing.T) *testHouse {
	t.Helper()
	testenv.Need(t, "userns")
	h := newTestHouse(t, filepath.Join(testenv.Programs(t), "cofferdam"))
	h.endAll(t)
	return h
}

// endAll ends, when the test does, whatever sandbox is left.
func (h *testHouse) endAll(t *testing.T) {
	t.Cleanup(func() {
		ctx, stop := context.WithTimeout(context.Background(), time.Minute)
		defer stop()
		records, err := sandbox.OpenStore(h.State)
		if err != nil {
			t.Error(err)
			return
		}
		list, err := records.List()
		if err != nil {
			t.Error(err)
		}
		for _, r := range list {
			if client, err := keeper.Dial(ctx, h.State, r.Run); err == nil {
				_ = client.Stop(ctx, "the test has ended") // it may be about to
			}
			if err := awaitEnd(ctx, records, room{sandbox: r.Run.String()}); err != nil {
				t.Error(err)
			}
		}
	})
}

func (h *testHouse) create(t *testing.T, a Actor, in api.NewSandbox) api.Sandbox {
	t.Helper()
	o, err := h.CreateSandbox(t.Context(), a, in)
	if err != nil {
		t.Fatalf("create: %v", err)
	}
	if o.State != api.Running {
		t.Fatalf("a new sandbox is %s: %s", o.State, o.How)
	}
	return o
}

// ended waits for a sandbox's end.
func (h *testHouse) ended(t *testing.T, a Actor, id string) api.Sandbox {
	t.Helper()
	var o api.Sandbox
	eventually(t, "the sandbox ends", 20*time.Second, func() bool {
		var err error
		o, err = h.Sandbox(t.Context(), a, id)
		return err == nil && !o.State.Live()
	})
	return o
}

// nothing asserts that nothing of a sandbox is left on this machine but its record.
func (h *testHouse) nothing(t *testing.T, id string) {
	t.Helper()
	for _, path := range []string{filepath.Join(h.State, "workspaces", id), keeper.SocketPath(h.State, ident.Run(id)), filepath.Join(h.State, "active", id)} {
		eventually(t, path+" is gone", 5*time.Second, func() bool {
			_ = keeper.Sweep(h.State)
			if records, err := sandbox.OpenStore(h.State); err == nil {
				_, _ = records.Settle()
			}
			_, err := os.Lstat(path)
			return errors.Is(err, os.ErrNotExist)
		})
	}
}

func TestSandboxWithCommand(t *testing.T) {
	h := newRealHouse(t)
	h.run(t)
	agent := h.agent(t, h.a, "one", emptyPolicy)
	o := h.create(t, h.a, api.NewSandbox{Agent: "one", Name: "first", Command: []string{"/bin/sh", "-c", "pwd; echo $COLOUR; echo to-err >&2; getent hosts denied.example.com; sleep 0.3; exit 7"}, Environment: map[string]string{"COLOUR": "blue"}})
	if o.Agent != agent.ID || o.AgentName != "one" || o.Name != "first" || o.Isolation != "container" || o.Deadline.Before(time.Now().Add(23*time.Hour)) {
		t.Errorf("%+v", o)
	}
	done := h.ended(t, h.a, o.ID)
	if done.State != api.Ended || done.How != "exit 7" || done.ExitCode == nil || *done.ExitCode != 7 || done.Ended.IsZero() || !slices.Contains(done.Erased, "workspace") || len(done.Problems) > 0 {
		t.Errorf("%+v", done)
	}
	data, next, skipped, live, err := h.Output(t.Context(), h.a, o.ID, 0, 0)
	if err != nil || live || skipped != 0 || next != int64(len(data)) || !strings.Contains(string(data), "/work\n") || !strings.Contains(string(data), "blue\n") || !strings.Contains(string(data), "to-err\n") {
		t.Errorf("output: %q %d %d %v %v", data, next, skipped, live, err)
	}
	if rest, _, _, _, err := h.Output(t.Context(), h.a, o.ID, next-2, 1); err != nil || len(rest) != 1 {
		t.Errorf("output from %d: %q %v", next-2, rest, err)
	}
	if done.Usage.Denied == 0 {
		t.Errorf("usage at the end: %+v", done.Usage)
	}
	h.nothing(t, o.ID)
	for _, other := range []error{
		second(h.Sandbox(t.Context(), h.b, o.ID)), second(h.StopSandbox(t.Context(), h.b, o.ID, "")), second(h.Trace(t.Context(), h.b, o.ID)),
		second(h.Sandbox(t.Context(), h.a, "nothere2")), second(h.Sandbox(t.Context(), h.a, "../../etc")), second(h.Runs(t.Context(), h.b, o.ID, Page{})),
	} {
		if fault.KindOf(other) != fault.NotFound || fault.Public(other) != "there is no such sandbox" {
			t.Errorf("%v", other)
		}
	}
	page, err := h.Sandboxes(t.Context(), h.a, "one", false, Page{Search: "FIRST"})
	if err != nil || len(page.Items) != 1 || page.Items[0].ID != o.ID {
		t.Errorf("%+v %v", page, err)
	}
	if page, err := h.Sandboxes(t.Context(), h.a, "", true, Page{}); err != nil || len(page.Items) != 0 {
		t.Errorf("live: %+v %v", page, err)
	}
}

func second[T any](_ T, err error) error { return err }

func TestSandboxCommandsAndFiles(t *testing.T) {
	h := newRealHouse(t)
	h.run(t)
	h.agent(t, h.a, "one", emptyPolicy)
	o := h.create(t, h.a, api.NewSandbox{Agent: "one", Hold: true})
	ctx := t.Context()

	for _, c := range []struct {
		name string
		in   api.Exec
		want api.ExecResult
	}{
		{"output", api.Exec{Command: []string{"/bin/sh", "-c", "echo out; echo err >&2; exit 3"}}, api.ExecResult{ExitCode: 3, Stdout: "out\n", Stderr: "err\n"}},
		{"input", api.Exec{Command: []string{"/bin/cat"}, Stdin: "hello"}, api.ExecResult{Stdout: "hello"}},
		{"input that nobody reads", api.Exec{Command: []string{"/bin/true"}, Stdin: strings.Repeat("x", maxStdin)}, api.ExecResult{}},
		{"environment and directory", api.Exec{Command: []string{"/bin/sh", "-c", "pwd; echo $A"}, Dir: "/tmp", Environment: map[string]string{"A": "b"}}, api.ExecResult{Stdout: "/tmp\nb\n"}},
		{"no such program", api.Exec{Command: []string{"/no/such"}}, api.ExecResult{ExitCode: 127}},
		{"a signal", api.Exec{Command: []string{"/bin/sh", "-c", "kill -9 $$"}}, api.ExecResult{ExitCode: 137, Signal: 9}},
		{"too much", api.Exec{Command: []string{"/bin/sh", "-c", "head -c 3000000 /dev/zero | tr '\\0' x"}}, api.ExecResult{Stdout: strings.Repeat("x", maxResult), Truncated: true}},
	} {
		began := time.Now()
		got, err := h.ExecWait(ctx, h.a, o.ID, c.in)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if c.want.ExitCode == 127 {
			if got.Error == "" {
				t.Errorf("%s: no error", c.name)
			}
			got.Error = ""
		}
		if got.Run == "" || got.ExitCode != c.want.ExitCode || got.Signal != c.want.Signal || got.Stdout != c.want.Stdout || got.Stderr != c.want.Stderr || got.Truncated != c.want.Truncated {
			t.Errorf("%s: %.300v", c.name, got)
		}
		t.Logf("%s: %v", c.name, time.Since(began))
	}
	timed, stop := context.WithTimeout(ctx, 300*time.Millisecond)
	defer stop()
	if _, err := h.ExecWait(timed, h.a, o.ID, api.Exec{Command: []string{"/bin/sleep", "100"}}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a command past its time: %v", err)
	}
	for name, bad := range map[string]api.Exec{
		"no command": {}, "input for a stream": {Command: []string{"/bin/true"}, Stdin: "x"}, "relative directory": {Command: []string{"/bin/true"}, Dir: "x"}, "credential": {Command: []string{"/bin/true"}, Environment: map[string]string{"T": "ghp_0123456789abcdefghijABCDEFGHIJ012345"}},
	} {
		if _, err := h.Exec(ctx, h.a, o.ID, bad); fault.KindOf(err) != fault.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	h.testFiles(t, o.ID)

	list, err := h.Runs(ctx, h.a, o.ID, Page{Limit: 100})
	if err != nil || len(list.Items) != 9 {
		t.Fatalf("%d runs: %v", len(list.Items), err)
	}
	if r := list.Items[len(list.Items)-1]; r.State != runEnded || r.ExitCode == nil || *r.ExitCode != 3 || r.Sandbox != o.ID || r.By != h.a.Name {
		t.Errorf("%+v", r)
	}
	if r := list.Items[1]; r.State != runLost || r.ExitCode != nil {
		t.Errorf("a command that was ended: %+v", r)
	}

	stopped, err := h.StopSandbox(ctx, h.a, o.ID, "enough")
	if err != nil || stopped.State == api.Running {
		t.Errorf("%+v %v", stopped, err)
	}
	done := h.ended(t, h.a, o.ID)
	if done.State != api.Ended || !strings.Contains(done.How, "enough") || !strings.Contains(done.How, h.a.Name) {
		t.Errorf("%+v", done)
	}
	h.nothing(t, o.ID)
	if _, err := h.Exec(ctx, h.a, o.ID, api.Exec{Command: []string{"/bin/true"}}); fault.KindOf(err) != fault.Conflict {
		t.Errorf("in an ended sandbox: %v", err)
	}
	if again, err := h.StopSandbox(ctx, h.a, o.ID, ""); err != nil || again.State != api.Ended {
		t.Errorf("stopped again: %+v %v", again, err)
	}
	var kinds []string
	for e, err := range audit.Read(filepath.Join(h.State, "audit"), audit.Filter{Run: ident.Run(o.ID)}) {
		if err != nil {
			t.Fatal(err)
		}
		kinds = append(kinds, fmt.Sprintf("%s %s %s", e.Kind, e.Principal, e.Tenant))
	}
	for _, want := range []string{"run.started user:usera " + h.a.Tenant, "command.started user:usera " + h.a.Tenant, "sandbox.changed user:usera " + h.a.Tenant} {
		if !slices.Contains(kinds, want) {
			t.Errorf("%q is not among %q", want, kinds)
		}
	}
}

// TestSweepMarks: that a sandbox was alive leaves no trace for good, and one that is alive is left alone.
func TestSweepMarks(t *testing.T) {
	h := newRealHouse(t)
	h.run(t)
	h.agent(t, h.a, "one", emptyPolicy)
	over, killed, alive := h.create(t, h.a, api.NewSandbox{Agent: "one"}), h.create(t, h.a, api.NewSandbox{Agent: "one"}), h.create(t, h.a, api.NewSandbox{Agent: "one"})
	gone := func(id string) {
		t.Helper()
		h.ended(t, h.a, id)
		eventually(t, "its mark is gone", 5*time.Second, func() bool {
			if err := h.sweep(t.Context()); err != nil {
				t.Fatal(err)
			}
			_, err := os.Lstat(filepath.Join(h.State, "active", id))
			return errors.Is(err, fs.ErrNotExist)
		})
	}
	if _, err := h.StopSandbox(t.Context(), h.a, over.ID, ""); err != nil {
		t.Fatal(err)
	}
	gone(over.ID)
	if err := h.kill(t.Context(), room{tenant: h.a.Tenant, sandbox: killed.ID}); err != nil {
		t.Fatal(err)
	}
	gone(killed.ID)
	if o, err := h.Sandbox(t.Context(), h.a, alive.ID); err != nil || o.State != api.Running {
		t.Errorf("%+v, %v", o, err)
	}
	if _, err := os.Lstat(filepath.Join(h.State, "active", alive.ID)); err != nil {
		t.Error(err)
	}
}

func (h *testHouse) testFiles(t *testing.T, id string) {
	t.Helper()
	ctx := t.Context()
	content := strings.Repeat("line\n", 100_000)
	if err := h.WriteFile(ctx, h.a, id, "/work/sub/a file", "640", false, strings.NewReader(content)); err != nil {
		t.Fatal(err)
	}
	if _, err := h.ExecWait(ctx, h.a, id, api.Exec{Command: []string{"/bin/sh", "-c", "ln -s /etc/passwd /work/sub/link; mkdir /work/sub/dir; mkfifo /work/sub/pipe; touch \"/work/sub/$(printf 'b\\033[31m\\377')\""}}); err != nil {
		t.Fatal(err)
	}
	list, cut, err := h.Files(ctx, h.a, id, "/work/sub")
	if err != nil || cut || len(list) != 5 {
		t.Fatalf("%+v %v %v", list, cut, err)
	}
	for _, f := range list {
		if strings.ContainsRune(f.Name, 0x1b) {
			t.Errorf("%q is not inert", f.Name)
		}
		switch {
		case f.Name == "a file":
			if f.Type != "file" || f.Size != int64(len(content)) || f.Mode != "-rw-r-----" || time.Since(f.Modified) > time.Hour {
				t.Errorf("%+v", f)
			}
		case f.Name == "link" && (f.Type != "link" || f.Target != "/etc/passwd"), f.Name == "dir" && f.Type != "dir", f.Name == "pipe" && f.Type != "other":
			t.Errorf("%+v", f)
		}
	}
	read := func(path string, tar bool) (string, error) {
		r, err := h.ReadFile(ctx, h.a, id, path, tar)
		if err != nil {
			return "", err
		}
		defer r.Close()
		data, err := io.ReadAll(r)
		return string(data), err
	}
	if got, err := read("/work/sub/a file", false); err != nil || got != content {
		t.Errorf("%d bytes: %v", len(got), err)
	}
	// What is reached through a link is what the sandbox has there, never the host's.
	if err := h.WriteFile(ctx, h.a, id, "/work/empty", "", false, strings.NewReader("")); err != nil {
		t.Error(err)
	}
	if got, err := read("/work/empty", false); err != nil || got != "" {
		t.Errorf("%q %v", got, err)
	}
	for path, kind := range map[string]fault.Kind{
		"/work/nothing": fault.NotFound, "/work/sub/pipe": fault.Invalid, "/work/sub/dir": fault.Invalid, "/dev/zero": fault.Invalid, "work": fault.Invalid, "/work/../etc": fault.Invalid,
		"/work/\x00": fault.Invalid, "": fault.Invalid, "/" + strings.Repeat("x/", 3000): fault.Invalid,
	} {
		if _, err := read(path, false); fault.KindOf(err) != kind {
			t.Errorf("read %.40q: %v", path, err)
		}
	}
	if _, _, err := h.Files(ctx, h.a, id, "/nothing"); fault.KindOf(err) != fault.NotFound {
		t.Errorf("list nothing: %v", err)
	}
	if _, err := h.ReadFile(ctx, h.b, id, "/etc/passwd", false); fault.KindOf(err) != fault.NotFound {
		t.Errorf("the other tenant reads: %v", err)
	}
	broken := io.MultiReader(strings.NewReader("half"), &failing{})
	if err := h.WriteFile(ctx, h.a, id, "/work/broken", "", false, broken); err == nil {
		t.Error("a source that fails was taken for the whole")
	}
	if _, err := read("/work/broken", false); fault.KindOf(err) != fault.NotFound {
		t.Errorf("half a file is there: %v", err)
	}
	packed, err := read("/work/sub", true)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for r := tar.NewReader(strings.NewReader(packed)); ; {
		head, err := r.Next()
		if err != nil {
			break
		}
		names = append(names, head.Name)
	}
	if !slices.Contains(names, "a file") && !slices.Contains(names, "./a file") {
		t.Errorf("the archive has %q", names)
	}
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	if err := errors.Join(w.WriteHeader(&tar.Header{Name: "x/y", Mode: 0o644, Size: 2, Typeflag: tar.TypeReg}), second(w.Write([]byte("hi"))), w.Close()); err != nil {
		t.Fatal(err)
	}
	if err := h.WriteFile(ctx, h.a, id, "/work/unpacked", "", true, &archive); err != nil {
		t.Fatal(err)
	}
	if got, err := read("/work/unpacked/x/y", false); err != nil || got != "hi" {
		t.Errorf("%q %v", got, err)
	}
}

type failing struct{}

func (*failing) Read([]byte) (int, error) { return 0, errors.New("the network is gone") }

func TestSandboxPersistentWorkspace(t *testing.T) {
	h := newRealHouse(t)
	h.run(t)
	h.agent(t, h.a, "one", emptyPolicy)
	two := h.agent(t, h.a, "two", emptyPolicy)
	ctx := t.Context()
	w, err := h.CreateWorkspace(ctx, h.a, api.NewWorkspace{Name: "data"})
	if err != nil {
		t.Fatal(err)
	}
	own, err := h.CreateWorkspace(ctx, h.a, api.NewWorkspace{Name: "own", Agent: "two"})
	if err != nil || own.Agent != two.ID {
		t.Fatal(own, err)
	}
	o := h.create(t, h.a, api.NewSandbox{Agent: "one", Workspace: "data", Hold: true})
	if _, err := h.CreateSandbox(ctx, h.a, api.NewSandbox{Agent: "one", Workspace: w.ID, Hold: true}); fault.KindOf(err) != fault.Conflict {
		t.Errorf("a second sandbox: %v", err)
	}
	if _, err := h.CreateSandbox(ctx, h.a, api.NewSandbox{Agent: "one", Workspace: "own", Hold: true}); fault.KindOf(err) != fault.Denied {
		t.Errorf("another agent's: %v", err)
	}
	if err := h.DeleteWorkspace(ctx, h.a, "data"); fault.KindOf(err) != fault.Conflict {
		t.Errorf("in use: %v", err)
	}
	if _, err := h.ExecWait(ctx, h.a, o.ID, api.Exec{Command: []string{"/bin/sh", "-c", "head -c 200000 /dev/urandom > kept; mkdir -m 0 locked"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := h.StopSandbox(ctx, h.a, o.ID, ""); err != nil {
		t.Fatal(err)
	}
	h.ended(t, h.a, o.ID)
	if w, err = h.Workspace(ctx, h.a, "data"); err != nil || w.Used != "" || w.LastUsed.IsZero() {
		t.Errorf("%+v %v", w, err)
	}
	eventually(t, "its size is known", 5*time.Second, func() bool { // nobody waits for that
		w, err = h.Workspace(ctx, h.a, "data")
		return err == nil && w.Size >= 200_000
	})
	again := h.create(t, h.a, api.NewSandbox{Agent: "one", Workspace: "data", Command: []string{"/usr/bin/test", "-s", "/work/kept"}})
	if done := h.ended(t, h.a, again.ID); done.ExitCode == nil || *done.ExitCode != 0 {
		t.Errorf("what was kept is not there: %+v", done)
	}
	for _, err := range []error{second(h.Workspace(ctx, h.b, "data")), h.DeleteWorkspace(ctx, h.b, w.ID)} {
		if fault.KindOf(err) != fault.NotFound {
			t.Errorf("the other tenant: %v", err)
		}
	}
	if err := h.DeleteWorkspace(ctx, h.a, "data"); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(h.workspaceDir(h.a.Tenant, w.ID)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the folder is still there: %v", err)
	}
}

func TestSandboxRefused(t *testing.T) {
	h := newRealHouse(t)
	h.run(t)
	agent := h.agent(t, h.a, "one", emptyPolicy)
	ctx := t.Context()
	settings, err := h.Settings(ctx, h.a)
	if err != nil {
		t.Fatal(err)
	}
	settings.MaxSandboxes = 1
	if _, err := h.ChangeSettings(ctx, h.a, settings.Version, settings); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		a    Actor
		in   api.NewSandbox
		kind fault.Kind
	}{
		{"no agent", h.a, api.NewSandbox{Agent: "nobody"}, fault.NotFound},
		{"another's agent", h.b, api.NewSandbox{Agent: agent.ID}, fault.NotFound},
		{"no workspace", h.a, api.NewSandbox{Agent: "one", Workspace: "none"}, fault.NotFound},
		{"a level that is none", h.a, api.NewSandbox{Agent: "one", Isolation: "paper"}, fault.Invalid},
		{"hold and command", h.a, api.NewSandbox{Agent: "one", Hold: true, Command: []string{"true"}}, fault.Invalid},
		{"a terminal for nothing", h.a, api.NewSandbox{Agent: "one", TTY: true}, fault.Invalid},
		{"too long", h.a, api.NewSandbox{Agent: "one", Seconds: 1 << 40}, fault.Invalid},
		{"credential", h.a, api.NewSandbox{Agent: "one", Environment: map[string]string{"T": "ghp_0123456789abcdefghijABCDEFGHIJ012345"}}, fault.Invalid},
		{"viewer", Actor{Tenant: h.a.Tenant, User: "v", Role: api.Viewer, Via: "session", ID: "v"}, api.NewSandbox{Agent: "one"}, fault.Denied},
		{"nobody", Actor{}, api.NewSandbox{Agent: "one"}, fault.Unauthenticated},
	} {
		if _, err := h.CreateSandbox(ctx, c.a, c.in); fault.KindOf(err) != c.kind {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	o := h.create(t, h.a, api.NewSandbox{Agent: "one"})
	if _, err := h.CreateSandbox(ctx, h.a, api.NewSandbox{Agent: "one"}); fault.KindOf(err) != fault.TooMany {
		t.Errorf("one too many: %v", err)
	}
	yes := true
	if _, err := h.ChangeAgent(ctx, h.a, "one", 0, api.AgentChange{Suspended: &yes}); err != nil {
		t.Fatal(err)
	}
	if done := h.ended(t, h.a, o.ID); !strings.Contains(done.How, "suspended") {
		t.Errorf("%+v", done)
	}
	if _, err := h.CreateSandbox(ctx, h.a, api.NewSandbox{Agent: "one"}); fault.KindOf(err) != fault.Conflict {
		t.Errorf("suspended: %v", err)
	}
	page, err := h.Sandboxes(ctx, h.a, "", false, Page{})
	if err != nil || len(page.Items) != 1 {
		t.Errorf("refused ones have left something: %+v %v", page.Items, err)
	}
}

func TestSandboxThatCannotBeMade(t *testing.T) {
	h := newRealHouse(t)
	h.run(t)
	h.agent(t, h.a, "one", emptyPolicy)
	w, err := h.CreateWorkspace(t.Context(), h.a, api.NewWorkspace{Name: "data"})
	if err != nil {
		t.Fatal(err)
	}
	_, err = h.CreateSandbox(t.Context(), h.a, api.NewSandbox{Agent: "one", Command: []string{"/no/such/program"}, Workspace: "data"})
	t.Logf("a command that is not there: %v", err)
	eventually(t, "the workspace is free", 10*time.Second, func() bool {
		w, err := h.Workspace(t.Context(), h.a, "data")
		return err == nil && w.Used == ""
	})
	gone, cancel := context.WithCancel(t.Context())
	time.AfterFunc(5*time.Millisecond, cancel)
	_, err = h.CreateSandbox(gone, h.a, api.NewSandbox{Agent: "one", Workspace: "data"})
	t.Logf("a caller that goes: %v", err)
	h.Launcher.Program = "/no/such/cofferdam"
	_, err = h.CreateSandbox(t.Context(), h.a, api.NewSandbox{Agent: "one"})
	if fault.KindOf(err) != fault.Unsupported {
		t.Errorf("without a program: %v", err)
	}
	page, err := h.Sandboxes(t.Context(), h.a, "", false, Page{})
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range page.Items {
		done := h.ended(t, h.a, o.ID)
		t.Logf("%s: %s %v", done.State, done.How, done.Problems)
		h.nothing(t, o.ID)
	}
	if w, err = h.Workspace(t.Context(), h.a, w.ID); err != nil || w.Used != "" {
		t.Errorf("the workspace is still taken: %+v %v", w, err)
	}
}

func TestSandboxDeadline(t *testing.T) {
	h := newRealHouse(t)
	h.run(t)
	h.agent(t, h.a, "one", "version: 1\nresources:\n  timeout: 1h\n")
	o := h.create(t, h.a, api.NewSandbox{Agent: "one", Seconds: 1000})
	if left := time.Until(o.Deadline); left > 1000*time.Second || left < 900*time.Second {
		t.Errorf("it ends in %v", left)
	}
	if _, err := h.ExtendSandbox(t.Context(), h.a, o.ID, api.Extend{Seconds: 7200}); fault.KindOf(err) != fault.Denied {
		t.Errorf("beyond the policy's timeout: %v", err)
	}
	longer, err := h.ExtendSandbox(t.Context(), h.a, o.ID, api.Extend{Seconds: 3000})
	if err != nil || time.Until(longer.Deadline) < 2900*time.Second {
		t.Errorf("%+v %v", longer, err)
	}
	if _, err := h.ExtendSandbox(t.Context(), h.a, o.ID, api.Extend{Seconds: 1}); err != nil {
		t.Fatal(err)
	}
	if done := h.ended(t, h.a, o.ID); done.State != api.Ended || !strings.Contains(done.How, "time") {
		t.Errorf("%+v", done)
	}
	if unbounded := h.create(t, h.a, api.NewSandbox{Agent: "one"}); time.Until(unbounded.Deadline) > time.Hour {
		t.Errorf("the policy's timeout does not hold: %v", unbounded.Deadline)
	}
}

func TestSandboxWorkspaceTooLarge(t *testing.T) {
	h := newRealHouse(t)
	h.run(t)
	h.agent(t, h.a, "one", "version: 1\nresources:\n  disk: 16MiB\n")
	o := h.create(t, h.a, api.NewSandbox{Agent: "one", Command: []string{"/bin/sh", "-c", "head -c 20000000 /dev/zero > /work/big; sleep 1000"}})
	if done := h.ended(t, h.a, o.ID); !strings.Contains(done.How, "its workspace has more than 16MiB") {
		t.Errorf("%+v", done)
	}
}

// insertStarting puts a sandbox into the store that a service was about to make when it was killed.
func (h *testHouse) insertStarting(t *testing.T, agent, workspace string) string {
	t.Helper()
	run := ident.NewRun().String()
	o := store.Object[SandboxData]{ID: run, Tenant: h.a.Tenant, Name: run, Parent: agent, State: string(api.Starting), Data: SandboxData{Isolation: "container", Workspace: workspace}}
	if _, err := h.claim(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	return run
}

package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/ident"
	"github.com/cofferdam/cofferdam/internal/sandbox"
	"github.com/cofferdam/cofferdam/internal/workspace"
)

// workspaceRun is an ended run with collected changes, in a state directory of its own.
type workspaceRun struct {
	app    *app
	out    *bytes.Buffer
	errOut *bytes.Buffer
	ws     string
	run    ident.Run
	store  *sandbox.Store
}

func newWorkspaceRun(t *testing.T) *workspaceRun {
	t.Helper()
	dir := t.TempDir()
	r := &workspaceRun{out: &bytes.Buffer{}, errOut: &bytes.Buffer{}, ws: filepath.Join(dir, "ws"), run: ident.NewRun()}
	r.app = &app{stdout: r.out, stderr: r.errOut, state: filepath.Join(dir, "state")}
	up := filepath.Join(dir, "up")
	for path, text := range map[string]string{
		"ws/main.go": "old\n", "up/main.go": "new\n", "up/docs/a\x1b[2Jb": "x", "up/.envrc": "evil\n",
	} {
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	var err error
	if r.store, err = sandbox.OpenStore(r.app.state); err != nil {
		t.Fatal(err)
	}
	record := sandbox.Record{Run: r.run, State: sandbox.Ended, Workspace: r.ws, Mode: "overlay", Started: time.Now(), Changed: 4}
	if err := r.store.Create(record); err != nil {
		t.Fatal(err)
	}
	upper, err := os.Open(up)
	if err != nil {
		t.Fatal(err)
	}
	defer upper.Close()
	if _, err := workspace.Collect(t.Context(), workspace.CollectOptions{Upper: upper, Lower: r.ws, Dest: r.store.Changes(r.run)}); err != nil {
		t.Fatal(err)
	}
	return r
}

// do runs one command and returns what it printed.
func (r *workspaceRun) do(t *testing.T, name string, args ...string) (string, error) {
	t.Helper()
	cmd := map[string]func(*app) *cobra.Command{"diff": newDiffCommand, "apply": newApplyCommand, "drop": newDropCommand}[name](r.app)
	cmd.SetArgs(args)
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	cmd.SetOut(r.out)
	cmd.SetErr(r.errOut)
	r.out.Reset()
	r.errOut.Reset()
	err := cmd.ExecuteContext(t.Context())
	return r.out.String(), err
}

// audited returns the details of the audit records so far.
func (r *workspaceRun) audited(t *testing.T) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(r.app.auditDir(), "*"))
	if err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		all.Write(data)
	}
	return all.String()
}

func TestDiffCommand(t *testing.T) {
	r := newWorkspaceRun(t)
	for _, tt := range []struct {
		args     []string
		has, not []string
	}{
		{nil, []string{"-old\n+new\n", "# Set apart", "+evil"}, []string{"\x1b"}},
		{[]string{r.run.String(), "main.go"}, []string{"+new"}, []string{"evil", "Set apart"}},
		{[]string{"last", filepath.Join(r.ws, "docs")}, []string{`a\x1b[2Jb`}, []string{"main.go", "\x1b"}},
		{[]string{"--name-only"}, []string{".envrc\n", "main.go\n", `"docs/a\x1b[2Jb"`}, []string{"\x1b"}},
		{[]string{"--stat"}, []string{"~ main.go  4 bytes\n", "3 added, 1 changed, 0 deleted; 1 of them set apart; 0 not collected\n", "[set apart: direnv runs"}, []string{"\x1b"}},
	} {
		out, err := r.do(t, "diff", tt.args...)
		if err != nil {
			t.Fatalf("%q: %v", tt.args, err)
		}
		for _, s := range tt.has {
			if !strings.Contains(out, s) {
				t.Errorf("%q lacks %q:\n%s", tt.args, s, out)
			}
		}
		for _, s := range tt.not {
			if strings.Contains(out, s) {
				t.Errorf("%q has %q:\n%s", tt.args, s, out)
			}
		}
	}
	out, err := r.do(t, "diff", "--json")
	var got struct {
		Changes []struct {
			Op, Path string
			Danger   *struct{ Rule string }
		}
	}
	if err != nil || json.Unmarshal([]byte(out), &got) != nil || len(got.Changes) != 4 {
		t.Fatalf("%v\n%s", err, out)
	}
	if first := got.Changes[0]; first.Path != ".envrc" || first.Op != "add" || first.Danger == nil || first.Danger.Rule != ".envrc" {
		t.Errorf("first change %+v", first)
	}
	if got.Changes[2].Path != "docs/a%1B[2Jb" || got.Changes[2].Danger != nil {
		t.Errorf("third change %+v", got.Changes[2])
	}
}

func TestApplyCommand(t *testing.T) {
	r := newWorkspaceRun(t)
	read := func() string {
		data, err := os.ReadFile(filepath.Join(r.ws, "main.go"))
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	if out, err := r.do(t, "apply", "--dry-run"); err != nil || !strings.Contains(out, "3 changes to apply, 1 set apart") || read() != "old\n" {
		t.Fatalf("dry run: %v, %q", err, out)
	}
	if strings.Contains(r.audited(t), "workspace.applied") {
		t.Error("a dry run was recorded as applied")
	}
	if out, err := r.do(t, "apply"); err != nil || !strings.Contains(out, "3 changes applied, 1 set apart") || read() != "new\n" {
		t.Fatalf("apply: %v, %q", err, out)
	}
	if !strings.Contains(r.errOut.String(), "set apart: .envrc: direnv runs it") {
		t.Errorf("stderr: %s", r.errOut)
	}
	if log := r.audited(t); !strings.Contains(log, "workspace.applied") || !strings.Contains(log, "apply 3 changes") || !strings.Contains(log, r.run.String()) {
		t.Errorf("audit: %s", log)
	}
	if record, err := r.store.Load(r.run); err != nil || record.Applied.IsZero() {
		t.Errorf("record %+v, %v", record, err)
	}
	if _, err := os.Stat(filepath.Join(r.ws, ".envrc")); err == nil {
		t.Error(".envrc was applied")
	}
	if out, err := r.do(t, "apply", "last", ".envrc", "--include-dangerous"); err != nil || !strings.Contains(out, "1 changes applied") {
		t.Errorf("dangerous: %v, %q", err, out)
	}
}

func TestApplyCommandRefuses(t *testing.T) {
	for _, tt := range []struct {
		name string
		args []string
		prep func(*workspaceRun) error
		kind fault.Kind
	}{
		{"conflict", nil, func(r *workspaceRun) error { return os.WriteFile(r.ws+"/main.go", []byte("mine"), 0o644) }, fault.Conflict},
		{"still runs", nil, func(r *workspaceRun) error {
			record, err := r.store.Load(r.run)
			record.State = sandbox.Running
			if err == nil {
				err = r.store.Save(record)
			}
			return err
		}, fault.Conflict},
		{"outside", []string{"last", "../x"}, nil, fault.Invalid},
		{"outside, absolute", []string{"last", "/etc"}, nil, fault.Invalid},
		{"unknown path", []string{"last", "nothing"}, nil, fault.NotFound},
		{"unknown run", []string{"aaaaaaaa"}, nil, fault.NotFound},
		{"damaged list", nil, func(r *workspaceRun) error {
			return os.WriteFile(filepath.Join(r.store.Changes(r.run), "manifest.json"), []byte("{"), 0o600)
		}, fault.Invalid},
		{"audit log closed", nil, func(r *workspaceRun) error { return os.WriteFile(r.app.auditDir(), nil, 0o400) }, fault.Unavailable},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newWorkspaceRun(t)
			if tt.prep != nil {
				if err := tt.prep(r); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := r.do(t, "apply", tt.args...); err == nil || fault.KindOf(err) != tt.kind {
				t.Errorf("error = %v (%s), want %s", err, fault.KindOf(err), tt.kind)
			}
			if _, err := os.Stat(filepath.Join(r.ws, "docs")); err == nil {
				t.Error("something was applied")
			}
		})
	}
}

func TestDropCommand(t *testing.T) {
	for _, damaged := range []bool{false, true} {
		r := newWorkspaceRun(t)
		if damaged {
			if err := os.WriteFile(filepath.Join(r.store.Changes(r.run), "manifest.json"), []byte("{"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if out, err := r.do(t, "drop"); err != nil || !strings.Contains(out, r.run.String()) {
			t.Fatalf("damaged %t: %v, %q", damaged, err, out)
		}
		if _, err := os.Stat(r.store.Changes(r.run)); err == nil {
			t.Error("changes are still there")
		}
		if !strings.Contains(r.audited(t), "drop 4 changes") {
			t.Error("not in the audit log")
		}
		for _, name := range []string{"diff", "apply", "drop"} {
			if _, err := r.do(t, name); fault.KindOf(err) != fault.NotFound {
				t.Errorf("%s after drop: %v", name, err)
			}
		}
	}
}

package main

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/cofferdam/cofferdam/api"
)

func TestRunThere(t *testing.T) {
	s := newStub(t)
	s.denials = []api.Denial{{ID: "d1", Agent: "a1", Sandbox: stubSandbox, Destination: "evil.example\x1b[2J:443", Reason: "no rule", Process: "curl", State: api.Open, Suggestion: &api.Suggestion{}}}
	c := at(t, s.URL, tokenCanary)
	dir := folder(t)
	script := `cat a; cat >> a; readlink python up; rm -r old; mkdir new; echo "$WORD" > new/f; echo trouble >&2; exit 7`
	code := c.run(t, "typed in\n", "run", "--agent", "builder", "--workspace", dir, "--env", "WORD=hello", "--", "/bin/sh", "-c", script)
	c.says(t, code, 7, "content of a", "/usr/bin/python3\n../../etc\n", "trouble", "runs at "+s.URL+", as the agent builder, in sandbox "+stubSandbox, "not sent: pipe",
		"denied curl → evil.example?[2J:443: no rule; to allow: cofferdam review allow d1", "6 changes kept apart; see: cofferdam diff "+stubSandbox)
	if data, err := os.ReadFile(dir + "/a"); err != nil || string(data) != "content of a" {
		t.Errorf("the folder was touched: %q %v", data, err)
	}
	if !s.stopped || !s.created.Hold || s.created.Agent != "a1" || s.created.Seconds == 0 {
		t.Errorf("the sandbox: %+v, stopped %t", s.created, s.stopped)
	}
	c.says(t, c.run(t, "", "diff", "--name-only"), 0, "a\nnew\nnew/f\nold\nold/1\nold/2\n")
	c.says(t, c.run(t, "", "apply", stubSandbox), 0, "changes applied")
	if data, err := os.ReadFile(dir + "/a"); err != nil || string(data) != "content of atyped in\n" {
		t.Errorf("after apply: %q %v", data, err)
	}
	if _, err := os.Lstat(dir + "/old"); err == nil {
		t.Error("after apply: what was deleted is there")
	}
	if left, err := os.ReadDir(c.app.state + "/runs/" + stubSandbox); err != nil || slices.ContainsFunc(left, func(e os.DirEntry) bool { return e.Name() == "returned" }) {
		t.Errorf("left over: %v %v", left, err)
	}
}

// What comes back may be anything: the command's outcome stands, and nothing is collected.
func TestHostileReturn(t *testing.T) {
	s := newStub(t)
	c := at(t, s.URL, tokenCanary)
	for name, spoil := range map[string]func([]byte) []byte{
		"cut off": func(b []byte) []byte { return b[:len(b)-1024] },
		"half":    func(b []byte) []byte { return b[:len(b)/2+100] },
		"garbage": func([]byte) []byte { return []byte(strings.Repeat("x", 5000)) },
		"empty":   func([]byte) []byte { return nil },
	} {
		t.Run(name, func(t *testing.T) {
			s.spoil, s.stopped = spoil, false
			c.app.state = t.TempDir()
			code := c.run(t, "", "run", "--agent", "builder", "--workspace", folder(t), "--", "/bin/sh", "-c", "rm -f old/1; exit 3")
			c.says(t, code, 3, "the changes could not be taken back")
			if !s.stopped {
				t.Error("the sandbox still runs")
			}
			if code := c.run(t, "", "apply", "last"); code == 0 {
				t.Error("something was applied")
			}
		})
	}
}

func TestHowRemoteRunsEnd(t *testing.T) {
	s := newStub(t)
	c := at(t, s.URL, tokenCanary)
	run := func(args ...string) int {
		s.stopped = false
		return c.run(t, "", append([]string{"run", "--agent", "builder", "--workspace", "none"}, args...)...)
	}
	c.says(t, run("--", "/bin/sh", "-c", "kill -9 $$"), 137)
	c.says(t, run("--", "/no/such/program"), 127, "no such program")
	c.says(t, run("--timeout", "1s", "--", "/bin/sleep", "60"), 124, "timeout after 1s")
	if !s.stopped {
		t.Error("after the timeout the sandbox still runs")
	}
	c.says(t, run("-q", "--", "/bin/true"), 0, "runs at ") // where it runs is said however quiet it is
	c.says(t, run("--json", "--", "/bin/true"), 0, `{"server":{"agent":"builder"`, `{"summary":`)
	s.drop = true
	c.says(t, run("--", "/bin/true"), 125, "the connection to "+s.URL+" broke")
	if !s.stopped {
		t.Error("after a broken connection the sandbox still runs")
	}
}

func TestRemoteRunRefuses(t *testing.T) {
	s := newStub(t)
	c := at(t, s.URL, tokenCanary)
	dir := folder(t)
	for _, test := range []struct {
		args []string
		says string
	}{
		{[]string{}, "cofferdam agent list"},
		{[]string{"--agent", "nobody"}, "there is no agent"},
		{[]string{"--agent", "builder", "--allow", "example.com"}, "policy edit"},
		{[]string{"--agent", "builder", "--ask"}, "cofferdam review"},
		{[]string{"--agent", "builder", "--mount", "/a:/b"}, "--local"},
		{[]string{"--agent", "builder", "--memory", "1g"}, "under resources"},
		{[]string{"--agent", "builder", "--resolve", "a=1.2.3.4"}, "--local"},
		{[]string{"--agent", "builder", "--best-effort", "memory"}, "--local"},
		{[]string{"--agent", "builder", "--gvisor-platform", "kvm"}, "isolation: {platform"},
		{[]string{"--agent", "builder", "--workspace", dir + ":rw"}, "cofferdam apply"},
		{[]string{"--agent", "builder", "--workspace", "/"}, "the whole machine"},
	} {
		args := append([]string{"run"}, test.args...)
		if !slices.Contains(args, "--workspace") {
			args = append(args, "--workspace", dir)
		}
		c.says(t, c.run(t, "", append(args, "--", "true")...), exitOurs, test.says, "hint:")
	}
	if slices.Contains(s.asked, "POST /api/v1/sandboxes") {
		t.Errorf("a sandbox was made: %q", s.asked)
	}
	here := &app{stdout: &c.out, stderr: &c.errors, state: t.TempDir(), settings: t.TempDir()}
	c.app = here
	c.says(t, c.run(t, "", "run", "--agent", "builder", "--", "true"), exitOurs, "runs on this machine", "cofferdam login")
}

func TestExec(t *testing.T) {
	s := newStub(t)
	c := at(t, s.URL, tokenCanary)
	c.says(t, c.run(t, strings.Repeat("0123456789", 50_000), "exec", stubSandbox, "--", "/usr/bin/wc", "-c"), 0, "500000")
	c.says(t, c.run(t, "", "exec", "--env", "A=b", stubSandbox, "/bin/sh", "-c", "echo $A; exit 4"), 4, "b\n")
	c.says(t, c.run(t, "", "exec", "other", "--", "true"), exitOurs)
	c.says(t, c.run(t, "", "exec", stubSandbox), exitOurs, "no command")
	out, in, err := os.Pipe()
	if err := errors.Join(err, out.Close()); err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	c.app.stdout = in // nobody reads: the command is told, as by its own kernel
	if code := c.run(t, "", "exec", stubSandbox, "--", "/usr/bin/yes"); code != 128+13 {
		t.Errorf("a command whose reader has left: %d: %s", code, c.errors.String())
	}
}

func TestCopy(t *testing.T) {
	s := newStub(t)
	c := at(t, s.URL, tokenCanary)
	dir, to := folder(t), t.TempDir()+"/out"
	c.says(t, c.run(t, "", "cp", "-r", dir, stubSandbox+":"), 0)
	c.says(t, c.run(t, "", "cp", "-r", stubSandbox+":", to), 0, "copied")
	for _, name := range []string{"python", "up", "link"} {
		want, err1 := os.Readlink(dir + "/" + name)
		got, err2 := os.Readlink(to + "/" + name)
		if err := errors.Join(err1, err2); err != nil || got != want {
			t.Errorf("%s: %q, want %q, %v", name, got, want, err)
		}
	}
	c.says(t, c.run(t, "", "cp", "-r", stubSandbox+":", to+"/a"), exitProblem, "exists")
	c.says(t, c.run(t, "", "cp", dir, stubSandbox+":x"), exitUsage, "cp -r")
	c.says(t, c.run(t, "", "cp", dir, to), exitUsage, "inside a sandbox")
}

func TestParsePlace(t *testing.T) {
	for text, want := range map[string]place{
		"k2m9x7qa:report": {"k2m9x7qa", "/work/report"}, "k2m9x7qa:/etc/hosts": {"k2m9x7qa", "/etc/hosts"}, "k2m9x7qa:": {"k2m9x7qa", "/work"},
		"report": {"", "report"}, "./a:b": {"", "./a:b"}, "/a:b": {"", "/a:b"}, ":x": {"", ":x"}, "-": {"", "-"},
	} {
		if got := parsePlace(text); got != want {
			t.Errorf("%s: %+v, want %+v", text, got, want)
		}
	}
}

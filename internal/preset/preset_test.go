package preset

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/policy"
)

// outputs are what faked tools print, by their command line; "*" stands for one not listed. A tool that is not listed at all is not installed.
type outputs map[string]string

// exitWith makes a real *exec.ExitError with a text on standard error.
func exitWith(stderr string) error {
	err := exec.Command("false").Run()
	if e, ok := errors.AsType[*exec.ExitError](err); ok {
		e.Stderr = []byte(stderr)
	}
	return err
}

func (o outputs) run(_ context.Context, _, name string, args ...string) ([]byte, error) {
	out, ok := o[strings.Join(append([]string{name}, args...), " ")]
	if !ok {
		out, ok = o[name+" *"]
	}
	switch {
	case !ok:
		return nil, &exec.Error{Name: name, Err: exec.ErrNotFound}
	case strings.HasPrefix(out, "FAIL "):
		return nil, exitWith(out[len("FAIL "):])
	}
	return []byte(out), nil
}

// host is a Host with files (paths from the root), variables, and tools.
func host(t *testing.T, files, env map[string]string, tools outputs) Host {
	t.Helper()
	root := t.TempDir()
	for path, text := range files {
		full := filepath.Join(root, path)
		if err := errors.Join(os.MkdirAll(filepath.Dir(full), 0o755), os.WriteFile(full, []byte(strings.ReplaceAll(text, "$ROOT", root)), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{"home", "work"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for k, v := range tools {
		tools[k] = strings.ReplaceAll(v, "$ROOT", root)
	}
	return Host{
		Getenv: func(name string) string { return strings.ReplaceAll(env[name], "$ROOT", root) },
		Home:   filepath.Join(root, "home"), Dir: filepath.Join(root, "work"), Root: root, Run: tools.run,
	}
}

type presetCase struct {
	name   string
	files  map[string]string
	env    map[string]string
	tools  outputs
	allows []string
	envs   []string
	notes  []string // a part of each note
	fault  fault.Kind
}

func checkCases(t *testing.T, name string, cases []presetCase) {
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			p, err := Resolve(t.Context(), name, host(t, c.files, c.env, c.tools))
			if fault.KindOf(err) != c.fault {
				t.Fatalf("got %v (%v), want %v", err, fault.KindOf(err), c.fault)
			}
			if err != nil && fault.HintOf(err) == "" {
				t.Errorf("no hint: %v", err)
			}
			if d := cmp.Diff(c.allows, p.Allows); d != "" {
				t.Errorf("allows -want +got\n%s", d)
			}
			if d := cmp.Diff(c.envs, p.Env); d != "" {
				t.Errorf("env -want +got\n%s", d)
			}
			if len(p.Notes) != len(c.notes) {
				t.Errorf("notes %q, want %q", p.Notes, c.notes)
			}
			for i := range min(len(p.Notes), len(c.notes)) {
				if !strings.Contains(p.Notes[i], c.notes[i]) {
					t.Errorf("note %q, want %q", p.Notes[i], c.notes[i])
				}
			}
			checkSafe(t, p)
		})
	}
}

// checkSafe holds for every preset: the flags are ones that policy takes, and nothing secret is passed on.
func checkSafe(t *testing.T, p Preset) {
	t.Helper()
	for _, a := range p.Allows {
		if _, err := policy.ParseAllow(a); err != nil {
			t.Errorf("--allow %s: %v", a, err)
		}
	}
	for _, s := range slices.Concat(p.Allows, p.Env, p.Notes) {
		if strings.Contains(s, "s3cret") || strings.ContainsAny(s, "\x00\n\x1b") {
			t.Errorf("unsafe text %q", s)
		}
	}
	for _, e := range p.Env {
		if name, _, ok := strings.Cut(e, "="); !ok || name == "" {
			t.Errorf("no variable: %q", e)
		}
	}
}

func TestUnknownName(t *testing.T) {
	for _, name := range []string{"", "npm", "@NPM", "@", "@npm ", "@yum"} {
		if _, err := Resolve(t.Context(), name, Host{}); fault.KindOf(err) != fault.Invalid || fault.HintOf(err) == "" {
			t.Errorf("%q: %v", name, err)
		}
	}
	for _, name := range Names() { // a host that knows nothing: an answer, not a crash
		if _, err := Resolve(t.Context(), name, Host{Root: t.TempDir(), Home: t.TempDir(), Dir: t.TempDir()}); fault.KindOf(err) != fault.Unsupported && name != "@git" {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestParseAddress(t *testing.T) {
	for raw, want := range map[string]string{
		"https://mirror.example.com":                 "mirror.example.com:443",
		"HTTP://Mirror.Example.com./x?y":             "mirror.example.com:80",
		"https://u:p@mirror.example.com:8443/a":      "mirror.example.com:8443",
		"https://[2001:db8::1]/":                     "[2001:db8::1]:443",
		"ftp://mirror.example.com":                   "",
		"mirror.example.com":                         "",
		"https://":                                   "",
		"https://a b.example.com":                    "",
		"https://*.example.com":                      "",
		"https://a.example.com,b.example.com":        "",
		"https://mirror.example.com:99x":             "",
		"https://mirror.example.com\x00.example.org": "",
	} {
		a, err := parseAddress(raw)
		got := ""
		if err == nil {
			got = a.allow()
		}
		if got != want {
			t.Errorf("%q: %q %v, want %q", raw, got, err, want)
		}
		if err != nil && strings.Contains(err.Error(), "example") {
			t.Errorf("%q: the error shows the address: %v", raw, err)
		}
	}
}

func FuzzParseAddress(f *testing.F) {
	f.Add("https://user:pw@mirror.example.com:8080/a/b")
	f.Fuzz(func(t *testing.T, raw string) {
		a, err := parseAddress(raw)
		if err != nil {
			return
		}
		again, err := parseAddress(a.clean)
		if err != nil || again.creds || again.host != a.host || again.port != a.port {
			t.Fatalf("%q becomes %+v, then %+v %v", raw, a, again, err)
		}
	})
}

func TestAddURL(t *testing.T) {
	for raw, want := range map[string]string{
		"http://127.0.0.1:4873/":   "loopback",
		"http://localhost:4873/":   "loopback",
		"https://[::1]/":           "loopback",
		"https://192.0.2.7:8443/x": "--allow-network 192.0.2.7/32",
		"https://[2001:db8::1]/":   "--allow-network 2001:db8::1/128",
		"ssh://mirror.example.com": "neither http nor https",
	} {
		b := &builder{}
		if b.addURL("the mirror", raw); len(b.Allows) > 0 || len(b.Notes) != 1 || !strings.Contains(b.Notes[0], want) {
			t.Errorf("%s: %+v", raw, b.Preset)
		}
	}
}

func TestVisibleInside(t *testing.T) {
	h := host(t, map[string]string{"etc/ssl/certs/ca.crt": "x", "etc/ssl/private/key": "x", "home/ca.crt": "x"}, nil, nil)
	if err := errors.Join(
		os.Symlink(filepath.Join(h.Home, "ca.crt"), filepath.Join(h.Root, "etc/ssl/out.crt")),
		os.WriteFile(filepath.Join(h.Root, "etc/ssl/own.crt"), nil, 0o600),
	); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]bool{
		"/etc/ssl/certs/ca.crt": true, "/etc/ssl/certs": true, "/etc/ssl/none": false, "/etc/ssl/private/key": false, "/home/ca.crt": false,
		"/etc/ssl/../../home/ca.crt": false, "/etc/ssl/out.crt": false, "/etc/ssl/own.crt": false, "etc/ssl/certs/ca.crt": false, "": false,
	} {
		if h.visibleInside(path) != want {
			t.Errorf("%s: want %v", path, want)
		}
	}
}

func TestReadIsBounded(t *testing.T) {
	dir := t.TempDir()
	big, fifo := filepath.Join(dir, "big"), filepath.Join(dir, "fifo")
	if err := errors.Join(os.WriteFile(big, make([]byte, maxFile+1), 0o600), exec.Command("mkfifo", fifo).Run()); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{big, fifo, dir} {
		if _, err := (Host{}).read(path); err == nil {
			t.Errorf("%s was read", path)
		}
	}
	if text, err := (Host{}).read(filepath.Join(dir, "none")); text != "" || err != nil {
		t.Errorf("absent file: %q %v", text, err)
	}
}

func TestRunTool(t *testing.T) {
	if _, err := runTool(t.Context(), "/", "no-such-tool-at-all"); !errors.Is(err, exec.ErrNotFound) {
		t.Errorf("absent tool: %v", err)
	}
	if out, err := runTool(t.Context(), "/", "sh", "-c", "pwd; echo to stderr >&2"); err != nil || string(out) != "/\n" {
		t.Errorf("%q %v", out, err)
	}
	_, err := runTool(t.Context(), "/", "sh", "-c", "echo why >&2; exit 3")
	if e, ok := errors.AsType[*exec.ExitError](err); !ok || string(e.Stderr) != "why\n" {
		t.Errorf("failing tool: %v", err)
	}
	if _, err := runTool(t.Context(), "/", "sh", "-c", "head -c 3000000 /dev/zero"); err == nil {
		t.Error("endless output was taken")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	begun := time.Now()
	if _, err := runTool(ctx, "/", "sh", "-c", "sleep 30 & sleep 30"); !errors.Is(err, context.DeadlineExceeded) || time.Since(begun) > 5*time.Second {
		t.Errorf("hanging tool: %v after %v", err, time.Since(begun))
	}
}

func ExampleNames() {
	fmt.Println(Names())
	// Output: [@npm @go @pip @cargo @apt @git]
}

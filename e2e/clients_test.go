package e2e

import (
	"context"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/internal/netname"
	"github.com/cofferdam/cofferdam/internal/preset"
	"github.com/cofferdam/cofferdam/internal/testenv"
)

// soon is how long a refused client may take to give up: nothing may hang.
const soon = 10 * time.Second

// toolSettings are prefixes of the variables by which package managers are told their registries. They are passed on, so that a machine with mirrors is tested with them.
func toolSettings() []string {
	return []string{"npm_config_registry=", "NPM_CONFIG_REGISTRY=", "GOPROXY=", "GOSUMDB=", "GONOSUMDB=", "GOFLAGS=", "GOTOOLCHAIN=", "PIP_INDEX_URL="}
}

// withTools returns the environment in which this house's tools run.
func (h *house) withTools(env []string) []string {
	for _, v := range os.Environ() {
		if slices.ContainsFunc(toolSettings(), func(prefix string) bool { return strings.HasPrefix(v, prefix) }) {
			env = append(env, v)
		}
	}
	return env
}

// tool prepares a program of this machine, as the house's user.
func (h *house) tool(ctx context.Context, dir, name string, args ...string) *exec.Cmd {
	like := h.command(ctx)
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir, cmd.Env, cmd.SysProcAttr = dir, h.withTools(like.Env), like.SysProcAttr
	return cmd
}

// mirror finds out which registry a tool is configured to use on this machine, and returns the flags that let it be reached where its addresses are
// special-purpose ones, as those of mirrors often are. The test is skipped where the registry cannot be reached at all.
func (h *house) mirror(name string) (flags []string) {
	h.t.Helper()
	testenv.Need(h.t, "network")
	env := h.withTools(h.command(h.t.Context()).Env)
	host := preset.Host{
		Home: h.home, Dir: h.project,
		Getenv: func(name string) string {
			for _, v := range slices.Backward(env) {
				if value, ok := strings.CutPrefix(v, name+"="); ok {
					return value
				}
			}
			return ""
		},
		Run: func(ctx context.Context, dir, name string, args ...string) ([]byte, error) {
			return h.tool(ctx, dir, name, args...).Output()
		},
	}
	p, err := preset.Resolve(h.t.Context(), name, host)
	if err != nil {
		h.t.Skipf("%s: %v", name, err)
	}
	flags = []string{"--allow", name}
	reached := false
	for _, hostPort := range p.Allows {
		addr, ok := reach(h.t.Context(), hostPort)
		if !ok {
			continue
		}
		reached = true
		if _, special := netname.Special(addr); special {
			flags = append(flags, "--allow-network", netip.PrefixFrom(addr, addr.BitLen()).String())
		}
	}
	if !reached {
		h.t.Skipf("%s: the registry cannot be reached from here", name)
	}
	return flags
}

// reach resolves a host as the gateway does and tries to connect.
func reach(ctx context.Context, hostPort string) (netip.Addr, bool) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", hostPort)
	if err != nil {
		return netip.Addr{}, false
	}
	defer conn.Close()
	addr, err := netip.ParseAddrPort(conn.RemoteAddr().String())
	return addr.Addr().Unmap(), err == nil
}

// inside runs a shell line in a sandbox with the tools' settings, within a limit.
func (h *house) inside(limit time.Duration, line string, flags ...string) (r result, took time.Duration) {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(h.t.Context(), limit)
	defer cancel()
	cmd := h.command(ctx, slices.Concat([]string{"run"}, flags, []string{"--", "sh", "-c", line})...)
	cmd.Env = h.withTools(cmd.Env)
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	began := time.Now()
	err := cmd.Run()
	if ctx.Err() != nil || cmd.ProcessState == nil {
		h.t.Fatalf("%s: not over after %v: %v\n%s%s", line, limit, err, out.String(), errs.String())
	}
	return result{stdout: out.String(), stderr: errs.String(), code: cmd.ProcessState.ExitCode()}, time.Since(began)
}

// works runs a line that must succeed and say something.
func (h *house) works(limit time.Duration, want, line string, flags ...string) {
	h.t.Helper()
	r, took := h.inside(limit, line, flags...)
	if r.code != 0 || !strings.Contains(r.stdout, want) {
		h.t.Errorf("%s: exit %d, no %q\n%s%s", line, r.code, want, r.stdout, r.stderr)
	}
	h.t.Logf("%v: %s", took.Round(10*time.Millisecond), line)
}

// refused runs a line that must not succeed, soon, with a denial by default on record.
func (h *house) refused(line string, flags ...string) {
	h.t.Helper()
	r, took := h.inside(time.Minute, line, flags...)
	if r.code == 0 || took > soon {
		h.t.Errorf("%s: exit %d after %v without leave\n%s%s", line, r.code, took, r.stdout, r.stderr)
	}
	if !strings.Contains(r.stderr, "cofferdam: denied ") || !strings.Contains(r.stderr, "--allow ") {
		h.t.Errorf("%s: the denial is not told: %s", line, r.stderr)
	}
	if _, ok := denied(h.events(), event{Rule: "default"}); !ok {
		h.t.Errorf("%s: no denial on record", line)
	}
}

func TestNPM(t *testing.T) {
	testenv.Need(t, "tool:npm", "tool:node")
	forEachUser(t, func(t *testing.T, h *house) {
		flags := h.mirror("@npm")
		h.write("package.json", `{"name":"e2e","version":"1.0.0","private":true}`)
		h.works(2*time.Minute, "is-odd 1 true", `npm install --no-audit --no-fund is-odd express &&
			rm -rf node_modules && npm ci --no-audit --no-fund && node -e 'console.log("is-odd 1", require("is-odd")(1), typeof require("express")())'`, flags...)
		if r := h.do("diff", "--stat", "last"); r.code != 0 || !strings.Contains(r.stdout, "package-lock.json") {
			t.Errorf("diff: exit %d: %.2000s%s", r.code, r.stdout, r.stderr)
		}
		if h.as.uid == 0 { // the system's directories are the overlay's only there
			h.works(time.Minute, "0.0.1 semver", `npm install -g --no-audit --no-fund semver && semver 0.0.1 && echo "$(semver 0.0.1) semver"`, flags...)
		}
		// npm tries again after 10 and 60 seconds whatever the error; how fast the refusal is shows without that.
		h.refused("npm install --no-audit --no-fund --fetch-retries=0 is-odd")
	})
}

func TestGo(t *testing.T) {
	testenv.Need(t, "tool:go")
	forEachUser(t, func(t *testing.T, h *house) {
		flags := h.mirror("@go")
		h.write("go.mod", "module example.com/e2e\n\ngo 1.21\n\nrequire golang.org/x/text v0.14.0\n")
		h.write("main.go", "package main\n\nimport (\n\t\"fmt\"\n\n\t\"golang.org/x/text/language\"\n)\n\nfunc main() { fmt.Println(language.MustParse(\"de-CH\")) }\n")
		h.works(3*time.Minute, "de-CH", "go mod download golang.org/x/text && go mod tidy && go build -o e2e . && ./e2e", flags...)
		h.refused("go mod download golang.org/x/text")
	})
}

func TestApt(t *testing.T) {
	testenv.Need(t, "root", "tool:apt-get") // an ordinary user's sandbox shows the system read-only
	h := newHouse(t, users()[0])
	flags := h.mirror("@apt")
	_, before := os.Stat("/usr/bin/hello")
	h.works(2*time.Minute, "Hello, world!", "apt-get -q update && apt-get -q install -y --no-install-recommends hello && hello", flags...)
	if _, after := os.Stat("/usr/bin/hello"); before != nil && after == nil {
		t.Error("the package is installed on the host")
	}
	h.refused("apt-get -q update -o Acquire::Retries=0 -o APT::Update::Error-Mode=any")
}

// TestClaude installs an agent of today, and starts it with a key that is none: what it tries must be seen.
func TestClaude(t *testing.T) {
	testenv.Need(t, "tool:npm", "tool:node")
	forEachUser(t, func(t *testing.T, h *house) {
		flags := append(h.mirror("@npm"), "--disk", "2g", "--env", "ANTHROPIC_API_KEY=sk-ant-e2e-dummy")
		const line = `npm install --prefix /tmp/agent --no-audit --no-fund --loglevel=error @anthropic-ai/claude-code && cd /tmp/agent &&
			./node_modules/.bin/claude --version; timeout -s KILL 6 ./node_modules/.bin/claude -p hi; echo "claude ended with $?"`
		h.works(3*time.Minute, "(Claude Code)", line, flags...)
		found := false
		for _, e := range h.events() {
			found = found || e.Kind == "crossing.decided" && e.Verdict == "deny" && strings.HasPrefix(e.Process, "claude")
		}
		if !found {
			t.Errorf("no attempt of the agent's is listed: %+v", h.events())
		}
	})
}

package e2e

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/internal/keeper"
	"github.com/cofferdam/cofferdam/internal/testenv"
)

// forEachWall runs a test as root at each level that has the host's or gVisor's kernel inside.
func forEachWall(t *testing.T, test func(*testing.T, *house)) {
	t.Helper()
	testenv.Need(t, "root", "userns")
	for _, level := range []string{"container", "gvisor"} {
		t.Run(level, func(t *testing.T) { test(t, newHouse(t, as{name: "root", level: level}.furnished(t))) })
	}
}

// told checks that a limit that was met is told in one sentence, on record, and named in the record of the end.
func (h *house) told(r result, flag, sentence string) {
	h.t.Helper()
	on := strings.Join(h.last().Limits, "\n")
	for name, text := range map[string]string{"to the person": r.stderr, "on record": on} {
		if !strings.Contains(text, sentence) || !strings.Contains(text, "to raise it: --"+flag) {
			h.t.Errorf("--%s: %s it says %q, want %q", flag, name, text, sentence)
		}
	}
	ended := false
	for _, e := range h.events() {
		ended = ended || e.Kind == "run.ended" && strings.Contains(e.Detail, "limits met: "+flag)
	}
	if !ended {
		h.t.Errorf("--%s is not named in the record of the end", flag)
	}
}

// TestLimits meets each limit that the kernel keeps, and does the same within it: then nothing is told.
func TestLimits(t *testing.T) {
	testenv.Need(t, "tool:python3", "cgroup")
	forEachWall(t, func(t *testing.T, h *house) {
		gvisor := h.as.level == "gvisor"
		burn := `python3 -c 'import time
end = time.monotonic() + 1.5
while time.monotonic() < end: pass'`
		hog := `exec python3 -c 'b = bytearray(200 << 20); print("fits")'`
		children := `i=0; while [ $i -lt 40 ]; do sleep 3 & i=$((i+1)); done; wait; echo fits`
		big := `dd if=/dev/zero of=/root/big bs=1M count=12 2>&1 && echo fits`
		many := `python3 -c 'for i in range(1500): open("/root/%d" % i, "w").close()
print("fits")'`
		for _, c := range []struct {
			name, line          string
			over, within        []string // flags
			flag, sentence, see string   // see: what the program itself meets
			untold              bool     // nothing outside the sandbox tells that the limit was met
		}{
			{"cpus", burn, []string{"--cpus", "0.2"}, []string{"--cpus", "2"}, "cpus", "kept from running for", "", false},
			{"memory", hog, []string{"--memory", "100m"}, []string{"--memory", "1g"}, "memory", "memory limit of 100MiB was reached", "", false},
			{"pids", children, []string{"--pids", "20"}, []string{"--pids", "100"}, "pids", "limit of 20 processes and threads was reached", "fork", gvisor},
			{"disk", big, []string{"--disk", "8m"}, []string{"--disk", "64m"}, "disk", "scratch was full at the end: it holds 8MiB", "No space left", false},
			{"files", many, []string{"--files", "1200"}, []string{"--files", "9000"}, "files", "no room for another file at the end: it holds 1200", "No space left", false},
			{"timeout", "sleep 20; echo late", []string{"--timeout", "1s"}, nil, "timeout", "the time of 1s was over", "", false},
		} {
			r := h.sh(c.line, append([]string{"--workspace", "none"}, c.over...)...)
			if r.code == 0 && c.name != "cpus" || strings.Contains(r.stdout, "fits") || !strings.Contains(r.stdout+r.stderr, c.see) {
				t.Errorf("%s: exit %d: %s%s", c.name, r.code, r.stdout, r.stderr)
			}
			if !c.untold {
				h.told(r, c.flag, c.sentence)
			}
			if c.within == nil {
				continue
			}
			if r := h.sh(c.line, append([]string{"--workspace", "none"}, c.within...)...); r.code != 0 || strings.Contains(r.stderr, "to raise it") {
				t.Errorf("%s, control: exit %d: %s%s", c.name, r.code, r.stdout, r.stderr)
			}
		}
	})
}

// TestOpenFiles opens more files than it may, and raises the bound first where that is allowed.
func TestOpenFiles(t *testing.T) {
	testenv.Need(t, "tool:python3")
	forEachWall(t, func(t *testing.T, h *house) {
		const opens = `python3 -c 'import os, resource
try: resource.setrlimit(resource.RLIMIT_NOFILE, (500, 500)); print("raised")
except (ValueError, OSError): pass
held = []
try:
    while len(held) < 400: held.append(os.open("/", os.O_RDONLY))
except OSError as e: print(e.strerror)
print(len(held))'`
		r := h.sh(opens, "--open-files", "100", "--workspace", "none")
		if lines := strings.Fields(r.stdout); r.code != 0 || !strings.Contains(r.stdout, "Too many open files") || strings.Contains(r.stdout, "raised") {
			t.Errorf("exit %d: %s%s", r.code, r.stdout, r.stderr)
		} else if n, err := strconv.Atoi(lines[len(lines)-1]); err != nil || n > 100 || n < 80 {
			t.Errorf("%d files: %v", n, err)
		}
		if r := h.sh(opens, "--open-files", "1000", "--workspace", "none"); !strings.Contains(r.stdout, "raised") || !strings.HasSuffix(r.stdout, "\n400\n") {
			t.Errorf("control: exit %d: %s%s", r.code, r.stdout, r.stderr)
		}
	})
}

// TestOutput says too much, on either stream.
func TestOutput(t *testing.T) {
	testenv.Need(t, "tool:python3")
	forEachWall(t, func(t *testing.T, h *house) {
		for _, to := range []string{"stdout", "stderr"} {
			r := h.sh("exec python3 -c 'import sys\nwhile True: sys."+to+".write(\"x\" * 1000)'", "--output", "64KiB", "--workspace", "none")
			if n := strings.Count(r.stdout+r.stderr, "x"); n < 64<<10 || n > 64<<10+20 || r.code != 125 || !strings.Contains(r.stderr, "output limit reached") {
				t.Errorf("%s: %d bytes came, exit %d: %.300s", to, n, r.code, strings.Trim(r.stderr, "x"))
			}
			h.told(result{stderr: strings.Trim(r.stderr, "x")}, "output", "the output was more than 64KiB")
		}
		if r := h.sh("exec python3 -c 'print(\"x\" * 65535)'", "--output", "64KiB", "--workspace", "none"); r.code != 0 || len(r.stdout) != 65536 || strings.Contains(r.stderr, "to raise it") {
			t.Errorf("control: %d bytes, exit %d: %s", len(r.stdout), r.code, r.stderr)
		}
	})
}

// TestOutputKept has the command of a kept sandbox say too much.
func TestOutputKept(t *testing.T) {
	asEachUser(t, func(t *testing.T, h *house) {
		k := h.keep(keeper.Spec{Policy: "version: 1\nresources: {output: 4KiB}\n", Command: []string{"sh", "-c", "while :; do echo xxxxxxxxxxxxxxx; done"}})
		if how, code := k.record(); how != "output limit reached" || code != 125 {
			t.Errorf("ended by %q with %d", how, code)
		}
		if data, next, lost, err := keeper.Output(h.state, k.run, 0, 1<<20); err != nil || len(data) != 4096 || next != 4096 || lost != 0 {
			t.Errorf("%d bytes are kept, next %d, lost %d, %v", len(data), next, lost, err)
		}
	})
}

// TestBandwidthAndConnections reads from a server of this machine's: unread TLS, inspected TLS and plain HTTP all keep to the sandbox's bandwidth, and no more connections
// are open than may be.
func TestBandwidthAndConnections(t *testing.T) {
	testenv.Need(t, "tool:curl", "tool:python3")
	forEachWall(t, func(t *testing.T, h *house) {
		const size, rate = 3 << 20, 1 << 20
		web := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write(bytes.Repeat([]byte("0123456789abcdef"), size/16))
		}) // the client counts
		secure, plain := newSite(h, web, true), newSite(h, web, false)
		for _, way := range []struct {
			name, scheme string
			s            *site
			policy       string
		}{{"unread", "https", secure, ""}, {"inspected", "https", secure, ", tls: inspect"}, {"plain", "http", plain, ""}} {
			h.write("agent.yaml", "version: 1\negress: {rules: [{hosts: [files.example.org], ports: ["+way.s.port+"]"+way.policy+"}]}\n")
			reach := way.s.flags
			if way.policy != "" { // the gateway knows the server's authority, and the program inside the gateway's
				h.trust, reach = h.project+"/ca.pem", reach[:len(reach)-len(way.s.trusted)]
			}
			fetch := func(flags ...string) (result, time.Duration) {
				began := time.Now()
				flags = append(append([]string{"run", "--policy", "agent.yaml", "--ignore-repository-policy"}, reach...), flags...)
				r := h.do(append(flags, "--", "curl", "-sS", "--fail", "-o", "/dev/null", "-w", "%{size_download}", fmt.Sprintf("%s://files.example.org:%s/", way.scheme, way.s.port))...)
				if r.code != 0 || r.stdout != strconv.Itoa(size) {
					t.Errorf("%s: exit %d, %s bytes: %s", way.name, r.code, r.stdout, r.stderr)
				}
				return r, time.Since(began)
			}
			const least = 2500 * time.Millisecond // 3 MiB at 1 MiB a second, less what may pass at once
			if r, took := fetch("--bandwidth", "1MiB"); took < least || took > 6*least {
				t.Errorf("%s: took %v: %s", way.name, took, r.stderr)
			} else {
				h.told(r, "bandwidth", "by the limit of 1MiB a second")
			}
			if r, took := fetch(); took > least || strings.Contains(r.stderr, "to raise it") {
				t.Errorf("%s, control: took %v: %s", way.name, took, r.stderr)
			}
		}
		open := `python3 -c 'import socket, time
held = []
for i in range(6):
    s = socket.create_connection(("files.example.org", ` + plain.port + `)); held.append(s)
time.sleep(0.5); print("opened")'`
		flags := append([]string{"--allow", "files.example.org:" + plain.port}, plain.flags...)
		h.told(h.sh(open, append(flags, "--connections", "3")...), "connections", "3 connections were refused, because 3 were open at once")
		if r := h.sh(open, append(flags, "--connections", "10")...); r.code != 0 || strings.Contains(r.stderr, "to raise it") {
			t.Errorf("connections, control: exit %d: %s", r.code, r.stderr)
		}
	})
}

// TestLimitsOfPolicy has a policy say what flags can, and a folder's own policy lower it.
func TestLimitsOfPolicy(t *testing.T) {
	testenv.Need(t, "root", "userns")
	h := newHouse(t, as{name: "root"})
	h.write("agent.yaml", "version: 1\nresources: {disk: 8MiB, files: 2000, open-files: 100, output: 4KiB, scratch: memory}\n")
	h.write("cofferdam.yaml", "version: 1\nresources: {open-files: 70}\n")
	if r := h.sh("ulimit -Hn; df --output=iavail / | tail -1; df -B1 --output=size / | tail -1", "--policy", "agent.yaml"); r.code != 0 || len(strings.Fields(r.stdout)) != 3 {
		t.Errorf("exit %d: %s%s", r.code, r.stdout, r.stderr)
	} else if f := strings.Fields(r.stdout); f[0] != "70" || f[2] != strconv.Itoa(8<<20) || len(f[1]) != 4 {
		t.Errorf("inside: %q", f)
	}
	h.write("cofferdam.yaml", "version: 1\nresources: {open-files: 101, scratch: encrypted}\n")
	if r := h.sh("true", "--policy", "agent.yaml"); r.code != 125 || !strings.Contains(r.stderr, "101 is more than the ceiling of 100") || !strings.Contains(r.stderr, "resources.scratch") {
		t.Errorf("a folder widens its limits: exit %d: %s", r.code, r.stderr)
	}
	if err := os.Remove(h.project + "/cofferdam.yaml"); err != nil {
		t.Fatal(err)
	}
	for flag, value := range map[string]string{"open-files": "10", "files": "1", "bandwidth": "1k", "output": "x", "connections": "0", "scratch": "disk", "pids": "2"} {
		if r := h.sh("true", "--"+flag, value); r.code != 125 || !strings.Contains(r.stderr, "--"+flag) || !strings.Contains(r.stderr, "hint: ") {
			t.Errorf("--%s %s: exit %d: %s", flag, value, r.code, r.stderr)
		}
	}
}

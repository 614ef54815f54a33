package e2e

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/internal/testenv"
)

// inPlace are the flags of a folder that the host's programs see too.
func inPlace() []string { return []string{"-q", "--workspace", ".:rw"} }

// TestUnixSockets makes sockets and pairs of each type in each mode: in a folder of the host's itself none that takes a name, unless asked for, which is told everywhere.
func TestUnixSockets(t *testing.T) {
	testenv.Need(t, "tool:python3")
	const program = `import socket, errno
def make(f, *types):
    for t in types:
        try: [s.close() for s in (lambda x: x if isinstance(x, tuple) else (x,))(f(socket.AF_UNIX, t))]; print("+", end="")
        except OSError as e: print("-" if e.errno == errno.EAFNOSUPPORT else e, end="")
make(socket.socket, socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET)
make(socket.socketpair, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, socket.SOCK_SEQPACKET)
`
	const label = "unix-sockets: "
	forEachUser(t, func(t *testing.T, h *house) {
		h.write("sockets.py", program)
		h.write("../other/file.txt", "x\n")
		h.own(h.home)
		script, other := filepath.Join(h.project, "sockets.py"), filepath.Join(h.home, "other")
		keep := keepSockets()
		for _, c := range []struct {
			flags   []string
			want    string
			labeled bool
		}{
			{nil, "++++++", false},
			{keep, "++++++", false},
			{[]string{"--workspace", ".:ro"}, "++++++", false},
			{[]string{"--workspace", ".:rw"}, "---+-+", false},
			{append([]string{"--workspace", ".:rw"}, keep...), "++++++", true},
			{[]string{"--mount", other + ":/mnt/other"}, "++++++", false},
			{[]string{"--mount", other + ":/mnt/other:rw"}, "---+-+", false},
			{append([]string{"--mount", other + ":/mnt/other:rw"}, keep...), "++++++", true},
			{[]string{"--mount", filepath.Join(other, "file.txt") + ":/mnt/file.txt:rw"}, "++++++", false},
		} {
			r := h.do(slices.Concat([]string{"run", "--json"}, c.flags, []string{"--", "python3", script})...)
			if r.code != 0 || r.stdout != c.want {
				t.Errorf("%q: exit %d, %s, want %s: %s", c.flags, r.code, r.stdout, c.want, r.stderr)
				continue
			}
			told := map[string]string{"the summary": r.stderr, "ps": h.do("ps", "--all").stdout, "ps --json": h.do("ps", "--all", "--json").stdout, "audit": h.do("audit", "last").stdout, "the record": ""}
			for _, e := range h.events() {
				told["the record"] += strings.Join(e.Weaker, "\n")
			}
			for where, text := range told {
				if where == "ps" || where == "ps --json" { // of all runs until now
					if c.labeled && !strings.Contains(text, label) {
						t.Errorf("%q: %s does not tell: %s", c.flags, where, text)
					}
				} else if strings.Contains(text, label) != c.labeled {
					t.Errorf("%q: %s: %s", c.flags, where, text)
				}
			}
		}
		if r := h.do("run", "--best-effort", "unix-socket", "--", "true"); r.code != 125 || !strings.Contains(r.stderr, "unix-sockets") {
			t.Errorf("a wrong name: exit %d: %s", r.code, r.stderr)
		}
		labelOfLive(t, h, label)
		var found struct {
			Features []struct {
				Name string
				OK   bool
			}
		}
		if r := h.do("doctor", "--json"); json.Unmarshal([]byte(r.stdout), &found) != nil || !slices.ContainsFunc(found.Features, func(f struct {
			Name string
			OK   bool
		}) bool {
			return f.Name == "unix sockets" && f.OK
		}) {
			t.Errorf("doctor: %s%s", r.stdout, r.stderr)
		}
	})
}

// labelOfLive looks for the label of a run while it lasts, and after everybody who could write its end was killed.
func labelOfLive(t *testing.T, h *house, label string) {
	cmd := h.command(t.Context(), slices.Concat([]string{"run"}, inPlace(), keepSockets(), []string{"--", "sh", "-c", "echo up; cat"})...)
	in, err1 := cmd.StdinPipe()
	out, err2 := cmd.StdoutPipe()
	if err := errors.Join(err1, err2, cmd.Start()); err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	if _, err := io.ReadFull(out, make([]byte, 3)); err != nil {
		t.Fatal(err)
	}
	if r := h.do("ps"); !strings.Contains(r.stdout, label) || !strings.Contains(r.stdout, "container*") {
		t.Errorf("ps does not tell: %s", r.stdout)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // it was killed
	var told []string
	for range 100 { // the supervisor has yet to end
		if r := h.do("gc"); r.code != 0 {
			t.Fatalf("gc: %s", r.stderr)
		}
		for _, e := range h.events() {
			if e.Kind == "run.ended" {
				told = e.Weaker
			}
		}
		if told != nil {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	if !strings.Contains(strings.Join(told, "\n"), label) {
		t.Errorf("a killed run's record has %q", told)
	}
}

// TestSharedFolder works in a folder of the host's itself, without named Unix sockets, with what people use.
func TestSharedFolder(t *testing.T) {
	testenv.Need(t, "tool:python3", "tool:bash")
	forEachUser(t, func(t *testing.T, h *house) {
		t.Run("python", func(t *testing.T) {
			testenv.Need(t, "tool:python3")
			h.write("work.py", `import concurrent.futures, multiprocessing, subprocess
def square(n): return n * n
def main(method):
    context = multiprocessing.get_context(method)
    with context.Pool(2) as pool: print(method, pool.map(square, range(4)))
    ours, theirs = context.Pipe()
    child = context.Process(target=theirs.send, args=("by pair",)); child.start(); print(ours.recv()); child.join()
    queue = context.Queue()
    child = context.Process(target=queue.put, args=("by queue",)); child.start(); print(queue.get()); child.join()
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as pool: print(list(pool.map(square, range(3))))
if __name__ == "__main__":
    print(subprocess.run(["cat"], input="through cat", capture_output=True, text=True).stdout)
    main("fork"); main("spawn"); print("python ends well")
`)
			h.works(time.Minute, "python ends well", "python3 work.py", inPlace()...)
		})
		t.Run("node", func(t *testing.T) {
			testenv.Need(t, "tool:node")
			h.write("child.js", `process.on("message", m => process.send(m + 1, () => process.exit()))`)
			h.write("work.js", `const cp = require("child_process"), assert = require("assert")
assert.equal(cp.execSync("echo sync").toString(), "sync\n")
const run = promise => new Promise(promise)
;(async () => {
  assert.equal(await run(ok => cp.exec("echo shell", (e, out) => ok(e || out))), "shell\n")
  assert.equal(await run(ok => { const c = cp.spawn("cat"); c.stdout.on("data", d => ok(d.toString())); c.stdin.end("spawned") }), "spawned")
  assert.equal(await run(ok => { const c = cp.fork("./child.js"); c.on("message", ok); c.send(41) }), 42)
  await new Promise((ok, bad) => new (require("worker_threads").Worker)("0", { eval: true }).on("exit", ok).on("error", bad))
  console.log("node ends well")
})()
`)
			h.works(time.Minute, "node ends well", "node work.js", inPlace()...)
		})
		t.Run("npm", func(t *testing.T) {
			testenv.Need(t, "tool:npm")
			h.write("part/package.json", `{"name":"part","version":"1.0.0","scripts":{"postinstall":"node install.js | sort | tee built.txt"}}`)
			h.write("part/install.js", `console.log(require("child_process").execSync("echo built by a lifecycle script").toString())`)
			h.write("app/package.json", `{"name":"app","version":"1.0.0","private":true,"scripts":{"test":"cat node_modules/part/built.txt"}}`)
			h.works(2*time.Minute, "built by a lifecycle script", "cd app && npm pack --silent ../part && npm install --offline --no-audit --no-fund ./part-1.0.0.tgz && npm test", inPlace()...)
			if data, err := os.ReadFile(filepath.Join(h.project, "app/node_modules/part/built.txt")); err != nil || !strings.Contains(string(data), "lifecycle") {
				t.Errorf("the folder is not written: %q, %v", data, err)
			}
		})
		t.Run("git", func(t *testing.T) {
			testenv.Need(t, "tool:git")
			h.works(time.Minute, "1 in the log", `git init -q repo && cd repo && echo x >file && git add . && git -c user.name=a -c user.email=a@example.com commit -qm first && git gc -q &&
				git clone -q . ../copy && echo $(git -C ../copy log --oneline | wc -l) in the log`, inPlace()...)
		})
		t.Run("go", func(t *testing.T) {
			testenv.Need(t, "tool:go")
			h.write("tiny/go.mod", "module example.com/tiny\n\ngo 1.21\n")
			h.write("tiny/main.go", "package main\n\nfunc main() { println(\"tiny\") }\n")
			h.works(4*time.Minute, "tiny", "cd tiny && GOFLAGS= GOPROXY=off go build -o tiny . && ./tiny 2>&1", inPlace()...)
		})
		t.Run("pipes", func(t *testing.T) {
			h.works(time.Minute, "pipes end well", `set -e; seq 20000 | sort -rn -S 1m --parallel=2 | head -1 | grep -x 20000
				mkdir dir; echo one >dir/file; tar czf dir.tgz dir; tar xzOf dir.tgz dir/file | grep -x one
				bash -c 'diff <(seq 9) <(seq 9) && coproc C { cat; } && echo back >&${C[1]} && read -r x <&${C[0]} && [ $x = back ]'
				printf 'all: a b\na b:\n\t@echo $@ | cat\n' >Makefile; if command -v make; then make -j2 | sort | head -1 | grep -x a; fi
				getent passwd root; getent hosts localhost; logger -s hello || true; echo pipes end well`, inPlace()...)
		})
	})
}

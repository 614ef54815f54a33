package e2e

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// refusedProbe connects or sends as told, says its own number, the error's number and how long it took, and holds the socket for a moment, as a program does that
// tells its user of the error.
const refusedProbe = `
import os, socket, sys, time
kind, host, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
family = socket.AF_INET6 if ":" in host else socket.AF_INET
if kind == "tcp":
    s = socket.socket(family, socket.SOCK_STREAM)
    act = lambda: s.connect((host, port))
elif kind == "udp":
    s = socket.socket(family, socket.SOCK_DGRAM)
    act = lambda: s.sendto(b"x", (host, port))
elif kind == "udp-connected":
    s = socket.socket(family, socket.SOCK_DGRAM)
    s.settimeout(3)
    s.connect((host, port))
    def act():
        try: s.send(b"x")
        except PermissionError: s.recv(1)
began, errno = time.monotonic(), 0
try: act()
except OSError as e: errno = e.errno
print("probe", os.getpid(), errno, int((time.monotonic() - began) * 1000), flush=True)
time.sleep(0.3)
`

// TestRefusedByName tries what the kernel refuses by itself: it is told at once, by the same error as ever, which process it was, once, and that goes on record.
func TestRefusedByName(t *testing.T) {
	for _, tool := range []string{"bash", "curl", "ping", "python3", "setpriv"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip(err)
		}
	}
	forEachUser(t, func(t *testing.T, h *house) {
		h.write("probe.py", refusedProbe)
		cases := []struct{ name, process, run, says, told, address, protocol, port string }{
			{"bash", "bash", `bash -c 'echo probe $$ 0 0; echo > /dev/tcp/203.0.113.9/22'`, "Connection refused", "203.0.113.9:22", "203.0.113.9", "tcp", "22"},
			{"curl", "curl", `sh -c 'echo probe $$ 0 0; exec curl -sS --max-time 5 http://203.0.113.9:81/'`, "Couldn't connect", "203.0.113.9:81", "203.0.113.9", "tcp", "81"},
			{"curl, IPv6", "curl", `sh -c 'echo probe $$ 0 0; exec curl -gsS --max-time 5 "http://[2001:db8::9]:81/"'`, "Couldn't connect", "[2001:db8::9]:81", "2001:db8::9", "tcp", "81"},
			{"connection", "python3", "python3 probe.py tcp 203.0.113.9 4444", " 111 ", "203.0.113.9:4444", "203.0.113.9", "tcp", "4444"},
			{"connection, IPv6", "python3", "python3 probe.py tcp 2001:db8::9 4444", " 111 ", "[2001:db8::9]:4444", "2001:db8::9", "tcp", "4444"},
			{"datagram", "python3", "python3 probe.py udp 203.0.113.9 5555", " 1 ", "203.0.113.9:5555 (udp)", "203.0.113.9", "udp", "5555"},
			{"datagram, IPv6", "python3", "python3 probe.py udp 2001:db8::9 5555", " 1 ", "[2001:db8::9]:5555 (udp)", "2001:db8::9", "udp", "5555"},
			{"datagram to a peer", "python3", "python3 probe.py udp-connected 203.0.113.9 6666", " 111 ", "203.0.113.9:6666 (udp)", "203.0.113.9", "udp", "6666"},
			{"ping", "ping", `sh -c 'echo probe $$ 0 0; exec ping -c1 -W2 203.0.113.10'`, "Unreachable", "203.0.113.10 (icmp)", "203.0.113.10", "icmp", "0"},
		}
		if h.as.uid == 0 { // who alone has other user ids inside
			other := cases[3]
			other.name, other.run, other.told, other.port = "another user's", "setpriv --reuid 33 --regid 33 --clear-groups python3 probe.py tcp 203.0.113.9 7777", "203.0.113.9:7777", "7777"
			cases = append(cases, other)
		}
		number := regexp.MustCompile(`probe (\d+) \d+ (\d+)`)
		for _, c := range cases {
			t.Run(c.name, func(t *testing.T) {
				if strings.HasPrefix(c.run, "sh -c 'echo probe $$ 0 0; exec ping") && !pings(h) {
					t.Skip("this kernel gives ping no socket inside")
				}
				var said []string
				for try := 1; ; try++ { // on a busy machine the runner may not answer in the 200 ms that it has
					r := h.sh(c.run)
					if said = number.FindStringSubmatch(r.stdout); said == nil || !strings.Contains(r.stdout+r.stderr, c.says) {
						t.Fatalf("the program said %s%s", r.stdout, r.stderr)
					}
					if took, _ := strconv.Atoi(said[2]); took > 500 { // ms
						t.Errorf("refused after %d ms", took)
					}
					line := fmt.Sprintf("cofferdam: denied %s[%s] → %s: ", c.process, said[1], c.told)
					once := strings.Count(r.stderr, "cofferdam: denied ") == 1
					if once && strings.Contains(r.stderr, line) {
						break
					}
					if try == 3 || !once || !strings.Contains(r.stderr, "cofferdam: denied a program → "+c.told+": ") {
						t.Fatalf("want once %q in\n%s", line, r.stderr)
					}
				}
				found := 0
				for line := range strings.Lines(h.do("audit", "last", "--json").stdout) {
					var e struct {
						Kind, Verdict, Address, Process string
						Port, PID                       int
					}
					if err := json.Unmarshal([]byte(line), &e); err != nil {
						t.Fatal(err)
					}
					if e.Kind == "crossing.decided" && e.Verdict == "deny" && e.Address == c.address && strconv.Itoa(e.Port) == c.port && e.Process == c.process && strconv.Itoa(e.PID) == said[1] {
						found++
					}
				}
				if found != 1 {
					t.Errorf("%d records of it", found)
				}
			})
		}
	})
}

// pings says whether ping finds a socket in a sandbox.
func pings(h *house) bool {
	return !strings.Contains(h.sh("ping -c1 -W1 127.0.0.1").stderr, "socket:")
}

// TestRefusalFlood sends more than anybody could answer: it ends quickly, nothing waits, and everything is counted.
func TestRefusalFlood(t *testing.T) {
	if _, err := exec.LookPath("python3"); err != nil {
		t.Skip(err)
	}
	const n = 100000
	forEachUser(t, func(t *testing.T, h *house) {
		h.write("flood.py", `
import errno, socket, sys, time
n = int(sys.argv[2])
began = time.monotonic()
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for i in range(n):
    to = ("203.0.113.%d" % (i % 100), 1000 + i % 1000)
    if sys.argv[1] == "udp":
        try: s.sendto(b"x", to)
        except PermissionError: pass
        except ConnectionRefusedError: pass
    else:
        c = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        c.setblocking(False)
        assert c.connect_ex(to) == errno.EINPROGRESS
        c.close()
print("flooded in", time.monotonic() - began, flush=True)
began = time.monotonic()
c = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
print("afterwards", c.connect_ex(("203.0.113.200", 22)), "after", int(time.monotonic() - began))
`)
		for _, kind := range []string{"tcp", "udp"} {
			t.Run(kind, func(t *testing.T) {
				began := time.Now()
				r := h.sh(fmt.Sprintf("python3 flood.py %s %d", kind, n))
				if r.code != 0 || !strings.Contains(r.stdout, "afterwards 111 after ") {
					t.Fatalf("%d %s%s", r.code, r.stdout, r.stderr)
				}
				counted := 0
				for line := range strings.Lines(h.do("audit", "last", "--json").stdout) {
					var e struct {
						Kind, Verdict string
						Count         int
					}
					if err := json.Unmarshal([]byte(line), &e); err != nil {
						t.Fatal(err)
					}
					if e.Kind == "crossing.decided" && e.Verdict == "deny" {
						counted += max(e.Count, 1)
					}
				}
				t.Logf("%s: %d counted, over after %v", strings.TrimSpace(r.stdout), counted, time.Since(began))
				if counted < n+1 || counted > n+n/100 {
					t.Errorf("%d counted, want %d", counted, n+1)
				}
			})
		}
	})
}

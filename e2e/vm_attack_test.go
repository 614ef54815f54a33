package e2e

import (
	"strings"
	"testing"

	"github.com/cofferdam/cofferdam/internal/testenv"
)

// vmReach is what root inside a machine tries to get out of the sandbox into the machine's kernel, devices and port, and into the room by more than programs' sockets. Each line that it
// prints is an attempt and what came of it; those that are to succeed begin with "may".
const vmReach = `import ctypes, os, socket, struct
c = ctypes.CDLL(None, use_errno=True)
def say(what, f):
    try:
        r = f()
        print(what + ": " + ("done" if r is None or r is True else str(r)))
    except Exception as e:
        print(what + ": " + str(e).replace("\n", " "))
def call(n, *a):
    if c.syscall(n, *a) == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
def opened(path, mode):
    os.close(os.open(path, mode))
def node(name, kind, major, minor):
    os.mknod("/tmp/" + name, kind | 0o600, os.makedev(major, minor))
    opened("/tmp/" + name, os.O_RDWR)
say("may be root", lambda: None if os.getuid() == 0 else os.getuid())
say("may write", lambda: open("/tmp/f", "w").close())
for d in sorted(os.listdir("/dev")):
    if d not in "fd full null ptmx pts random shm stderr stdin stdout tty urandom zero".split():
        say("sees /dev/" + d, lambda: None)
for name, kind, major, minor in ("vda", 0o60000, 254, 0), ("vda7", 0o60000, 253, 0), ("mem", 0o20000, 1, 1), ("port", 0o20000, 1, 4), ("vport", 0o20000, 248, 1), ("kmsg", 0o20000, 1, 11), ("console", 0o20000, 5, 1), ("ttyS0", 0o20000, 4, 64):
    say("device " + name, lambda: node(name, kind, major, minor))
for path in "/proc/sysrq-trigger", "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe", "/proc/sys/kernel/modules_disabled", "/proc/kcore", "/sys/power/state", "/sys/kernel/uevent_helper":
    say("write " + path, lambda: opened(path, os.O_WRONLY))
for name, number, args in ("init_module", 175, (0, 0, b"")), ("kexec_load", 246, (0, 0, 0, 0)), ("reboot", 169, (0xfee1dead, 672274793, 0x1234567, 0)), ("iopl", 172, (3,)), ("bpf", 321, (0, 0, 0)), ("mount", 165, (b"x", b"/mnt", b"tmpfs", 0, 0)), ("unshare net", 272, (0x40000000,)), ("unshare user", 272, (0x10000000,)), ("sethostname", 170, (b"x", 1)), ("settime", 227, (0, (ctypes.c_long * 2)(1, 0))), ("keyctl", 250, (0, 0)), ("io_uring", 425, (1, 0)), ("ptrace init", 101, (16, 1, 0, 0)):
    say("call " + name, lambda: call(number, *args))
def made(*a):
    socket.socket(*a).close()
say("may have a socket", lambda: made(socket.AF_INET, socket.SOCK_STREAM))
for name, a in ("packet", (socket.AF_PACKET, socket.SOCK_RAW, 0x300)), ("raw", (socket.AF_INET, socket.SOCK_RAW, 255)), ("raw6", (socket.AF_INET6, socket.SOCK_RAW, 58)), ("vsock", (40, socket.SOCK_STREAM, 0)):
    say("socket " + name, lambda: made(*a))
def option(level, name, value):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.setsockopt(level, name, value)
say("packet mark", lambda: option(1, 36, 1))
say("transparent", lambda: option(0, 19, 1))
for pid in (p for p in os.listdir("/proc") if p.isdigit()):
    name = open("/proc/" + pid + "/comm").read().strip()
    if name not in ("cofferdam-runner", "runner", "python3", "sh"):
        say("sees process " + name, lambda: None)
def datagram(to, port, family=socket.AF_INET):
    s = socket.socket(family, socket.SOCK_DGRAM)
    s.settimeout(5)
    s.connect((to, port))
    s.send(b"x")
    s.recv(10)
for to, port, family in ("203.0.113.5", 4242, socket.AF_INET), ("224.0.0.251", 5353, socket.AF_INET), ("2001:db8::5", 4243, socket.AF_INET6):
    say("datagram " + to, lambda: datagram(to, port, family))
`

// TestVMReach tries all that, and looks for the crossings on record, with the program that made them.
func TestVMReach(t *testing.T) {
	testenv.Need(t, "tool:python3")
	h := newVMHouse(t)
	h.write("reach.py", vmReach)
	r := h.vm("python3 reach.py")
	if r.code != 0 {
		t.Fatalf("exit %d: %s%s", r.code, r.stdout, r.stderr)
	}
	attempts := 0
	for line := range strings.Lines(r.stdout) {
		what, came, _ := strings.Cut(strings.TrimSpace(line), ": ")
		if attempts++; (came == "done") != strings.HasPrefix(what, "may ") {
			t.Errorf("%s: %s", what, came)
		}
	}
	if attempts < 40 {
		t.Errorf("only %d attempts: %s", attempts, r.stdout)
	}
	events := h.events()
	for _, want := range []event{{Address: "203.0.113.5", Port: 4242}, {Address: "2001:db8::5", Port: 4243}} {
		if e, ok := denied(events, want); !ok || !strings.HasPrefix(e.Process, "python3") {
			t.Errorf("%+v is on record as %+v, %v", want, e, ok)
		}
	}
}

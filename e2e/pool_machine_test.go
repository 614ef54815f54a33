package e2e

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/internal/testenv"
)

// TestPoolMachine takes virtual machines from a pool: they were up before, and stood still.
func TestPoolMachine(t *testing.T) {
	h := newVMHouse(t)
	w := &warmHouse{crypt: newCrypt(h), t: t, level: h.as.level}
	tree := h.as.root
	h.as.root = "" // the image is
	t.Cleanup(func() { _ = w.command(context.Background(), "pool", "stop").Run() })
	for _, flags := range [][]string{nil, {"--rootfs", tree}} {
		if r := w.do(append([]string{"pool", "start", "--isolation", w.level}, flags...)...); r.code != 2 || !strings.Contains(r.stderr, "needs an image") || !strings.Contains(r.stderr, "--image default") {
			t.Errorf("pool start %q: exit %d: %s", flags, r.code, r.stderr)
		}
	}
	if r := w.do("image", "build", "small", "--from", tree); r.code != 0 {
		t.Fatalf("image build: %s", r.stderr)
	}
	if r := w.doWith(vmPatience, "", "pool", "start", "--isolation", w.level, "--image", "small", "--size", "1"); r.code != 0 {
		t.Fatalf("pool start: %s", r.stderr)
	}
	t.Run("waits", func(t *testing.T) { w.in(t).machineWaits() })
	w.write("old.txt", "old\n")
	mounted := filepath.Join(t.TempDir(), "mounted")
	if err := os.WriteFile(mounted, []byte("mounted\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	line := "cat old.txt /mnt/it; echo new > new.txt; df -k /root | tail -n 1; grep '^Max processes' /proc/self/limits; cut -d . -f 1 /proc/uptime; exit 6"
	const waits = 3 * time.Second
	w.full()
	began, age := time.Now(), w.age(w.waiting()[0])
	time.Sleep(waits)
	r := w.vm(line, "--image", "small", "--mount", mounted+":/mnt/it", "--disk", "32m", "--pids", "100")
	inside := regexp.MustCompile(`^old\nmounted\n\S+ +32768 .*\nMax processes +(\d+) +(\d+) +processes *\n(\d+)\n$`).FindStringSubmatch(r.stdout)
	if r.code != 6 || inside == nil || w.origin() != "pool" {
		t.Fatalf("exit %d, from %q: %s%s", r.code, w.origin(), r.stdout, r.stderr)
	}
	for _, e := range w.eventsOf("last") {
		if strings.HasPrefix(e.Kind, "crossing.") {
			t.Errorf("something crossed before the sandbox was somebody's: %+v", e)
		}
	}
	if most, _ := strconv.Atoi(inside[2]); inside[1] != "100" || most > 150 {
		t.Errorf("processes: %s to %s", inside[1], inside[2])
	}
	if up, _ := strconv.Atoi(inside[3]); w.level == "vm-emulated" && age+time.Since(began)-time.Duration(up)*time.Second < waits { // no program at level vm need stop its machine
		t.Errorf("time passed while it waited: %d s", up)
	}
	if d := w.do("diff", "last"); !strings.Contains(d.stdout, "+new") {
		t.Errorf("its changes: %s%s", d.stdout, d.stderr)
	}
	for name, c := range map[string]struct {
		origin string
		flags  []string
	}{
		"of another size": {"cold", []string{"--image", "small", "--memory", "700m"}}, "with a tree": {"cold", []string{"--rootfs", tree}},
		"with more disks": {"anew", []string{"--image", "small", "--mount", "/etc:/mnt/a", "--mount", "/etc:/mnt/b", "--mount", "/etc:/mnt/c"}},
	} {
		w.full()
		if r := w.vm("exit 4", c.flags...); r.code != 4 || w.origin() != c.origin {
			t.Errorf("%s: exit %d, from %q, want %q: %s", name, r.code, w.origin(), c.origin, r.stderr)
		}
	}
	if r := w.doWith(vmPatience, "", "pool", "stop"); r.code != 0 {
		t.Errorf("pool stop: %s", r.stderr)
	}
	w.gone()
}

// machineWaits looks at the machine that waits: its processors stand still, and nobody is reached in its room or from there.
func (w *warmHouse) machineWaits() {
	testenv.Need(w.t, "tool:nsenter", "tool:bash")
	ones := w.waiting()
	if len(ones) != 1 {
		w.t.Fatalf("waiting are %v", ones)
	}
	before := ticks(w.t, ones[0])
	time.Sleep(2 * time.Second)
	if after := ticks(w.t, ones[0]); after > before+2 {
		w.t.Errorf("the machine worked for %d hundredths of a second while it waited", after-before)
	}
	room := w.steward(ones[0])
	defer func() { // and when it is killed another one takes its place
		if err := syscall.Kill(ones[0], syscall.SIGKILL); err != nil {
			w.t.Error(err)
		}
		for end := time.Now().Add(vmPatience); ; time.Sleep(100 * time.Millisecond) {
			if now := w.waiting(); w.status().Ready == 1 && len(now) == 1 && now[0] != ones[0] {
				return
			}
			if time.Now().After(end) {
				w.t.Fatalf("no other machine waits: %+v", w.status())
			}
		}
	}()
	for _, to := range [][2]string{{"198.18.0.1", "1"}, {"127.0.0.1", "9"}, {"10.1.2.3", "80"}} {
		if came := dialIn(w.t, room, to[0], to[1]); came == "connected" || came == "refused" { // a refusal is an answer
			w.t.Errorf("%s in the room of a machine that waits: %s", to, came)
		}
	}
}

// age is for how long a process has been there.
func (w *warmHouse) age(pid int) time.Duration {
	w.t.Helper()
	data, err := os.ReadFile("/proc/uptime")
	if err != nil {
		w.t.Fatal(err)
	}
	up, err := strconv.ParseFloat(strings.Fields(string(data))[0], 64)
	if err != nil {
		w.t.Fatal(err)
	}
	began, err := strconv.Atoi(stat(w.t, pid)[19]) // starttime is the 22nd
	if err != nil {
		w.t.Fatal(err)
	}
	return time.Duration(up*float64(time.Second)) - time.Duration(began)*time.Second/100
}

// stat is what proc_pid_stat(5) has behind a process's name, which ends its second field.
func stat(t *testing.T, pid int) []string {
	t.Helper()
	line, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Fields(string(line[strings.LastIndexByte(string(line), ')')+1:]))
}

// ticks is how much of a processor's time a process has had, in hundredths of a second.
func ticks(t *testing.T, pid int) int {
	t.Helper()
	fields := stat(t, pid)
	user, err1 := strconv.Atoi(fields[11]) // utime is the 14th
	system, err2 := strconv.Atoi(fields[12])
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	return user + system
}

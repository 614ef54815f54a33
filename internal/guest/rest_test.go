package guest

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/cofferdam/cofferdam/internal/guest/boot"
)

// TestRest has a machine come to rest and become another run's, as a copy of a snapshot does: what was written stays, what makes it one of its own is new, and the traps that the
// first run laid catch nobody.
func TestRest(t *testing.T) {
	needMachine(t)
	m := start(t, root(t), image(t, write(t, map[string]string{"its": "own"})))
	first := doing("leave")
	first.Rest = true
	if _, err := m.Ready(); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(m.Boot(first), m.Started(), m.Rested()); err != nil {
		t.Fatal(err)
	}
	second := doing("look")
	second.Seed, second.MachineID, second.Trust, second.Rest = [boot.SeedSize]byte{2}, strings.Repeat("cd", 16), []byte("the second run's authority\n"), true
	if err := errors.Join(m.Boot(second), m.Started(), m.Rested(), m.GoOn()); err != nil {
		t.Fatal(err)
	}
	if e, err := m.Ended(); err != nil || e.Runner != "exit status 0" {
		t.Errorf("the runner: %+v, %v", e, err)
	}
	all, f := m.changed(t), findings{}
	if err := json.Unmarshal([]byte(all["found.json"].data), &f); err != nil {
		t.Fatal(err)
	}
	for what, want := range map[string]string{
		"/etc/hostname": "inside\n", "hostname": "inside", "/etc/machine-id": second.MachineID + "\n", "/root/left": "scratch", "/target": "untouched",
		"/etc/ssl/certs/ca-certificates.crt": "the system's authorities\nthe sandbox's own authority\nthe second run's authority\n",
		"/proc/self/cgroup":                  "0::/\n", "/proc/self/oom_score_adj": "500\n", "/proc/kallsyms": "", "processes": "1 ", "system": "",
		"devices": "fd full null ptmx pts random shm stderr stdin stdout tty urandom zero ",
	} {
		if f[what] != want {
			t.Errorf("%s: %q, want %q", what, f[what], want)
		}
	}
	for what, want := range map[string]string{
		"/etc/resolv.conf": "nameserver 198.18.0.1\n", "/proc/net/route": "eth0\t00000000\t010012C6", "time": "19000000",
		"/proc/self/status":      "CapInh:\t0000000000080000\nCapPrm:\t00000000800c04fb\nCapEff:\t00000000800c04fb\nCapBnd:\t00000000800404fb\nCapAmb:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\n",
		"write a kernel setting": "read-only", "reset by sysrq": "read-only", "write the kernel's id": "read-only",
		"make a device": "not permitted", "mount": "not permitted", "make a user namespace": "not permitted", "write the root": "<nil>",
	} {
		if what == "reset by sysrq" && strings.Contains(f[what], "no such file") {
			continue // a kernel that has none
		}
		if !strings.Contains(f[what], want) {
			t.Errorf("%s: %q, want it to hold %q", what, f[what], want)
		}
	}
	id := f["/proc/sys/kernel/random/boot_id"]
	if left := all["left"].data; len(left) != 37 || len(id) != 37 || left == id || f["/work/left"] != left {
		t.Errorf("the kernel's id was %q, which is found as %q, and is %q", left, f["/work/left"], id)
	}
	m.kill(t)
}

// TestAwake gives a machine that is not at rest the orders for one that is: it ends, and tells nothing of what it has.
func TestAwake(t *testing.T) {
	needMachine(t)
	for name, tell := range map[string]func(*machine) error{
		"boot": func(m *machine) error { return m.Boot(doing("look")) }, "go on": func(m *machine) error { return m.GoOn() },
	} {
		t.Run(name, func(t *testing.T) {
			m := start(t, root(t), image(t, write(t, nil)))
			b := doing("wait")
			b.Rest = true
			if _, err := m.Ready(); err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(m.Boot(b), m.Started(), tell(m)); err != nil {
				t.Fatal(err)
			}
			if err := m.Rested(); err == nil {
				t.Error("it rests while the runner runs")
			}
			m.ended(t)
		})
	}
}

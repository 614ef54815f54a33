package e2e

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/guest/boot"
	"github.com/cofferdam/cofferdam/internal/testenv"
)

// vmPatience bounds a run in an emulated machine: two seconds on an idle host, many times that on a busy one.
const vmPatience = 3 * time.Minute

// newVMHouse is a house of root whose sandboxes are emulated machines. Without "make vm" there are none.
func newVMHouse(t *testing.T) *house {
	t.Helper()
	testenv.Need(t, "userns", "root")
	return newHouse(t, as{name: "root", level: "vm-emulated"}.furnished(t))
}

// vm runs a shell line in a machine.
func (h *house) vm(line string, flags ...string) result {
	h.t.Helper()
	return h.doWith(vmPatience, "", append(append([]string{"run"}, flags...), "--", "sh", "-c", line)...)
}

// TestVM is what the levels that are virtual machines promise besides what every level does.
func TestVM(t *testing.T) {
	for _, part := range []struct {
		name string
		test func(*testing.T, *house)
	}{
		{"kernel", vmKernel}, {"jail", vmJail}, {"killed", vmKilled}, {"workspace", vmWorkspace}, {"stopped", vmStopped}, {"mounts", vmMounts}, {"network", vmNetwork},
		{"limits", vmLimits}, {"refusals", vmRefusals},
	} {
		t.Run(part.name, func(t *testing.T) { part.test(t, newVMHouse(t)) })
	}
}

// vmKernel asks inside which kernel it is, and holds the label against the answer.
func vmKernel(t *testing.T, h *house) {
	about, err := boot.ReadAbout(filepath.Join(h.bin, boot.FolderName))
	if err != nil {
		t.Fatal(err)
	}
	r := h.vm("uname -r; exit 42")
	if r.code != 42 || r.stdout != about.Kernel+"\n" {
		t.Errorf("exit %d, inside is %q, want %s: %s", r.code, r.stdout, about.Kernel, r.stderr)
	}
	if runs := h.runs(); len(runs) != 1 || runs[0].Isolation != "vm-emulated" ||
		!slices.ContainsFunc(runs[0].Weaker, func(s string) bool { return strings.HasPrefix(s, "processor: ") }) {
		t.Errorf("ps says %+v", runs)
	}
	ended := h.do("audit", "last", "--json").stdout
	if !strings.Contains(ended, `"isolation":"vm-emulated"`) || !strings.Contains(ended, "imitated") {
		t.Errorf("the record does not say the level and what is weaker: %s", ended)
	}
}

// vmJail looks from outside at the program that is the machine.
func vmJail(t *testing.T, h *house) {
	c := newCrypt(h)
	b := c.start("echo up; sleep 1000")
	b.says("up\n")
	pid := c.machine()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`Uid:(\t[1-9]\d{5,}){4}\n`, `Gid:(\t[1-9]\d{5,}){4}\n`, `Groups:\s*\n`, `NoNewPrivs:\t1\n`, `Seccomp:\t2\n`, `Seccomp_filters:\t2\n`, `NSpid:\t\d+\t1\n`,
		`CapInh:\t0+\n`, `CapPrm:\t0+\n`, `CapEff:\t0+\n`, `CapBnd:\t0+\n`, `CapAmb:\t0+\n`,
	} {
		if !regexp.MustCompile(want).Match(status) {
			t.Errorf("no %s in %s", want, status)
		}
	}
	for _, kind := range []string{"cgroup", "ipc", "mnt", "net", "pid", "user", "uts"} {
		own, err1 := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, kind))
		host, err2 := os.Readlink("/proc/self/ns/" + kind)
		if err1 != nil || err2 != nil || own == host {
			t.Errorf("namespace %s: %s, the host's is %s; %v, %v", kind, own, host, err1, err2)
		}
	}
	root := fmt.Sprintf("/proc/%d/root", pid)
	seen, err := os.ReadDir(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range seen {
		if !slices.Contains([]string{"dev", "firmware0", "firmware1", "initramfs", "kernel", "lib", "lib64", "usr"}, e.Name()) {
			t.Errorf("the machine's program sees /%s", e.Name())
		}
	}
	if _, err := os.Stat(root + h.project); err == nil {
		t.Error("the machine's program sees the project")
	}
	mounts, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if fields := strings.Fields(line); !strings.HasPrefix(fields[5], "ro,") && !strings.HasPrefix(fields[4], "/dev/") {
			t.Errorf("the machine's program can write to %s", line)
		}
	}
	if devices, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/dev", pid)); err != nil || bytes.Count(devices, []byte(":")) != 1 {
		t.Errorf("the machine's program has a network: %s, %v", devices, err)
	}
	_ = b.cmd.Process.Signal(syscall.SIGKILL) // the caller's end is the sandbox's
	b.end(30 * time.Second)
	c.checkGone()
}

// machine finds the process of the host's that is a run's machine.
func (c *crypt) machine() int {
	c.t.Helper()
	for _, p := range c.processes() {
		if name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", p.pid)); err == nil && strings.HasPrefix(string(name), "qemu") {
			return p.pid
		}
	}
	c.t.Fatal("no machine runs")
	return 0
}

// vmKilled kills the machine: the run ends, says so, and leaves nothing.
func vmKilled(t *testing.T, h *house) {
	c := newCrypt(h)
	b := c.start("echo up; echo x > changed; sleep 1000")
	b.says("up\n")
	if err := syscall.Kill(c.machine(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if code := b.end(30 * time.Second); code == 0 || !strings.Contains(b.out.String(), "machine") {
		t.Errorf("exit %d: %s", code, b.out.String())
	}
	c.checkGone()
	if r := h.do("diff", "last"); r.code == 0 && strings.Contains(r.stdout, "changed") {
		t.Errorf("changes that the machine did not send are there: %s", r.stdout)
	}
}

// vmWorkspace changes every kind of thing in a folder, and takes the changes.
func vmWorkspace(t *testing.T, h *house) {
	h.write("keep.txt", "old\n")
	h.write("gone.txt", "x\n")
	h.write("whole/a", "a\n")
	h.write("whole/b", "b\n")
	h.write("same.txt", "same\n")
	r := h.vm(`echo new > keep.txt && rm gone.txt && rm -r whole && mkdir whole && echo c > whole/c && mkdir -p a/b && head -c 300000 /dev/zero > a/b/zeros &&
ln -s keep.txt link && ln a/b/zeros hard && chmod 755 same.txt && truncate -s 10000000 holes 2>/dev/null || dd if=/dev/null of=holes bs=1 seek=10000000 2>/dev/null; cat keep.txt`)
	if r.code != 0 || r.stdout != "new\n" {
		t.Fatalf("exit %d, %q: %s", r.code, r.stdout, r.stderr)
	}
	read := func(name string) string {
		data, err := os.ReadFile(filepath.Join(h.project, name))
		if err != nil {
			return err.Error()
		}
		return string(data)
	}
	if read("keep.txt") != "old\n" {
		t.Errorf("the host's file was changed: %q", read("keep.txt"))
	}
	if r := h.do("diff", "last"); !strings.Contains(r.stdout, "-old") || !strings.Contains(r.stdout, "+new") || !strings.Contains(r.stdout, "a/b/zeros") {
		t.Errorf("diff: %s%s", r.stdout, r.stderr)
	}
	if r := h.do("apply", "last"); r.code != 0 {
		t.Errorf("apply: exit %d: %s", r.code, r.stderr)
	}
	for name, want := range map[string]string{"keep.txt": "new\n", "whole/c": "c\n", "link": "new\n", "hard": strings.Repeat("\x00", 300000), "holes": strings.Repeat("\x00", 10000000)} {
		if got := read(name); got != want {
			t.Errorf("%s: %.60q, %d bytes", name, got, len(got))
		}
	}
	for _, name := range []string{"gone.txt", "whole/a", "whole/b"} {
		if _, err := os.Lstat(filepath.Join(h.project, name)); !os.IsNotExist(err) {
			t.Errorf("%s, which was removed inside: %v", name, err)
		}
	}
	if info, err := os.Stat(filepath.Join(h.project, "same.txt")); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("mode: %v, %v", info, err)
	}
	if r := h.vm("cat keep.txt; echo no > keep.txt", "--workspace", ".:ro"); r.code == 0 || !strings.HasPrefix(r.stdout, "new\n") || read("keep.txt") != "new\n" {
		t.Errorf("ro: exit %d, %q, outside %q", r.code, r.stdout, read("keep.txt"))
	}
}

// vmStopped ends a run from outside: what it had written so far is there all the same.
func vmStopped(t *testing.T, h *house) {
	r := h.vm("echo so far > written; while :; do sleep 1; done", "--timeout", "5s")
	if r.code != 124 {
		t.Errorf("timeout: exit %d: %s", r.code, r.stderr)
	}
	if r := h.do("diff", "last"); !strings.Contains(r.stdout, "+so far") {
		t.Errorf("diff: exit %d: %s%s", r.code, r.stdout, r.stderr)
	}
}

// vmMounts shows a folder and a file; links in them lead nowhere outside.
func vmMounts(t *testing.T, h *house) {
	h.write("../shown/file.txt", "shown\n")
	h.write("../single.txt", "single\n")
	if err := os.Symlink("/etc/shadow", filepath.Join(h.home, "shown", "link")); err != nil {
		t.Fatal(err)
	}
	r := h.vm("cat /mnt/deep/file.txt /mnt/one.txt; cat /mnt/deep/link || echo nothing there; echo x >/mnt/deep/file.txt || echo closed",
		"--mount", filepath.Join(h.home, "shown")+":/mnt/deep", "--mount", filepath.Join(h.home, "single.txt")+":/mnt/one.txt")
	if r.code != 0 || r.stdout != "shown\nsingle\nnothing there\nclosed\n" {
		t.Errorf("exit %d, %q: %s", r.code, r.stdout, r.stderr)
	}
}

// vmNetwork goes where policy lets it, and nowhere else; the record says which program it was.
func vmNetwork(t *testing.T, h *house) {
	testenv.Need(t, "tool:curl")
	site := newSite(h, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, strings.Repeat("through the door\n", 10000))
	}), false)
	line := `curl -sS http://files.example.org:` + site.port + `/ | wc -c
curl -s http://evil.example.com/; echo name $?
curl -s --max-time 20 http://203.0.113.7/; echo address $?
curl -gs --max-time 20 "http://[2001:db8::9]:81/"; echo six $?
curl -s --max-time 20 http://169.254.169.254/latest/; echo metadata $?`
	r := h.vm(line, append([]string{"--allow", "files.example.org:" + site.port}, site.flags...)...)
	if want := "170000\nname 6\naddress 7\nsix 7\nmetadata 7\n"; r.stdout != want { // curl's numbers: could not resolve, could not connect
		t.Errorf("%q, want %q: %s", r.stdout, want, r.stderr)
	}
	events := h.events()
	for _, want := range []event{
		{Host: "evil.example.com", Protocol: "dns"}, {Address: "203.0.113.7", Port: 80}, {Address: "2001:db8::9", Port: 81}, {Address: "169.254.169.254", Port: 80},
	} {
		if e, ok := denied(events, want); !ok || want.Host == "" && e.Process != "curl" {
			t.Errorf("%+v is on record as %+v, %v", want, e, ok)
		}
	}
	if !slices.ContainsFunc(events, func(e event) bool { return e.Verdict == "allow" && e.Host == "files.example.org" }) {
		t.Error("what was allowed is not on record")
	}
}

// vmLimits has a machine of the size that was asked for, and what is over it ends there.
func vmLimits(t *testing.T, h *house) {
	r := h.vm("grep MemTotal /proc/meminfo; grep -c ^processor /proc/cpuinfo", "--memory", "256m", "--cpus", "2")
	fields, total := strings.Fields(r.stdout), 0 // MemTotal: NUMBER kB NUMBER
	if len(fields) == 4 {
		total, _ = strconv.Atoi(fields[1])
	}
	if total < 150_000 || total > 256<<10 || fields[3] != "2" {
		t.Errorf("the machine's size: %q, exit %d: %s", r.stdout, r.code, r.stderr)
	}
	r = h.vm("head -c 400000000 /dev/zero | tail -n 1 | wc -c", "--memory", "256m")
	if !strings.Contains(r.stderr, "memory") {
		t.Errorf("memory: exit %d: %s%s", r.code, r.stdout, r.stderr)
	}
	r = h.vm("i=0; while [ $i -lt 60 ]; do sleep 100 & i=$((i+1)); done; echo all", "--pids", "30")
	if r.code == 0 || strings.Contains(r.stdout, "all") {
		t.Errorf("processes: exit %d: %s%s", r.code, r.stdout, r.stderr)
	}
	r = h.vm("dd if=/dev/zero of=/root/f bs=1M count=64", "--disk", "8m")
	if r.code == 0 || !strings.Contains(r.stderr, "No space left") {
		t.Errorf("disk: exit %d: %s", r.code, r.stderr)
	}
}

// vmRefusals asks for what a machine cannot have: nothing starts, and the remedy is told.
func vmRefusals(t *testing.T, h *house) {
	h.write("file", "x\n")
	for _, c := range []struct {
		flags []string
		want  string
	}{
		{[]string{"--workspace", ".:rw"}, "cofferdam apply"},
		{[]string{"--mount", h.home + ":/mnt/home:rw"}, "mount it read-only"},
	} {
		h.notStarted(h.vm("echo started", c.flags...), c.want)
	}
	own := *h
	own.as.root = "" // this machine's own system
	h.notStarted(own.vm("echo started"), "--image")
	if unix.Access("/sys/module/kvm_intel", unix.F_OK) == nil || unix.Access("/sys/module/kvm_amd", unix.F_OK) == nil {
		return // here it may be possible
	}
	hard := *h
	hard.as.level = "vm"
	h.notStarted(hard.vm("echo started"), "not possible on this machine", "vm-emulated")
}

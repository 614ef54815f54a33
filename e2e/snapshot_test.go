package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/internal/testenv"
)

// TestSnapshot is what a machine that is kept promises, and what a copy of it must not have of the first.
func TestSnapshot(t *testing.T) {
	for _, part := range []struct {
		name string
		test func(*testing.T, *house)
	}{{"life", snapshotLife}, {"policy", snapshotPolicy}, {"lending", snapshotLending}, {"refusals", snapshotRefusals}, {"given up", snapshotGivenUp}} {
		t.Run(part.name, func(t *testing.T) { part.test(t, newVMHouse(t)) })
	}
}

// from runs a shell line in a copy of a snapshot.
func (h *house) from(name, line string, flags ...string) result {
	h.t.Helper()
	own := *h
	own.as.level = "" // the snapshot's
	return own.vm(line, append([]string{"--from", name}, flags...)...)
}

// identityLine prints what two sandboxes must not have in common: random numbers of the kernel, of a program's start, ids of the kernel and of the system.
const identityLine = `head -c 16 /dev/urandom | od -An -tx1 | tr -d ' \n'; echo; od -An -tx1 /proc/self/auxv | tr -d ' \n'; echo; cat /proc/sys/kernel/random/boot_id /etc/machine-id; echo $COFFERDAM_RUN`

// snapshotLife keeps a machine and goes on from it twice at once; what the copies change is their own, and taken over as ever.
func snapshotLife(t *testing.T, h *house) {
	h.write("src.txt", "old\n")
	r := h.vm("echo built > built.txt && echo new > src.txt && echo scratch > /root/cache && mkdir -p /tmp/x && echo deep > /tmp/x/y && (sleep 1000 & ) && "+identityLine, "--snapshot", "ready")
	if r.code != 0 || !strings.Contains(r.stderr, "--from ready") {
		t.Fatalf("exit %d: %s%s", r.code, r.stdout, r.stderr)
	}
	if r := h.do("diff", "last"); !strings.Contains(r.stdout, "built.txt") || !strings.Contains(r.stdout, "+new") {
		t.Errorf("the first run's changes are not there: %s%s", r.stdout, r.stderr)
	}
	checkOwnerOnly(t, filepath.Join(h.state, "snapshots"))

	said := []string{r.stdout, "", ""}
	var all sync.WaitGroup
	for i := 1; i <= 2; i++ {
		all.Go(func() {
			r := h.from("ready", fmt.Sprintf("cat built.txt src.txt /root/cache /tmp/x/y >&2; echo %d > mine.txt; ls >&2; ps ax 2>/dev/null | grep -c '[s]leep 1000' >&2; ", i)+identityLine)
			said[i] = r.stdout
			if r.code != 0 || !strings.Contains(r.stderr, "built\nnew\nscratch\ndeep\nbuilt.txt\nmine.txt\nsrc.txt\n") {
				t.Errorf("copy %d: exit %d: %s%s", i, r.code, r.stdout, r.stderr)
			}
		})
	}
	all.Wait()
	seen := map[string]int{}
	for i, text := range said {
		lines := strings.Fields(strings.ReplaceAll(text, " -", ""))
		if len(lines) != 5 {
			t.Fatalf("%d said %q", i, text)
		}
		for _, l := range lines {
			seen[l]++
		}
	}
	if len(seen) != 15 {
		t.Errorf("two of them have in common what they must not: %q", said)
	}
	snapshotRecords(t, h, said)
	h.must("apply", "last")
	if data, err := os.ReadFile(filepath.Join(h.project, "src.txt")); err != nil || string(data) != "new\n" {
		t.Errorf("what a copy has changed, applied: %q, %v", data, err)
	}
	h.must("snapshot", "rm", "ready")
	h.notStarted(h.from("ready", "echo started"), "snapshot list")
	if left, err := os.ReadDir(filepath.Join(h.state, "snapshots")); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// snapshotRecords looks at what is on record of a snapshot and of its copies.
func snapshotRecords(t *testing.T, h *house, said []string) {
	t.Helper()
	first := strings.TrimSpace(said[0][strings.LastIndex(strings.TrimSpace(said[0]), "\n"):])
	runs := h.runs()
	if len(runs) != 3 {
		t.Fatalf("%+v", runs)
	}
	for _, r := range runs {
		if r.Run == first && r.From != "" || r.Run != first && (r.From != "ready" || r.FromRun != first) {
			t.Errorf("on record: %+v; the first was %s", r, first)
		}
	}
	if r := h.do("ps", "--all"); strings.Count(r.stdout, "from ready") != 2 {
		t.Errorf("ps: %s", r.stdout)
	}
	if events := h.events(); !slices.ContainsFunc(events, func(e event) bool {
		return e.Kind == "run.started" && strings.HasSuffix(e.Detail, "from snapshot ready of run "+first)
	}) {
		t.Errorf("the audit log does not say where a copy came from: %+v", events)
	}
	var list []struct {
		Name, Run, Workspace string
		Size                 int64
	}
	if err := json.Unmarshal([]byte(h.do("snapshot", "list", "--json").stdout), &list); err != nil || len(list) != 1 || list[0].Name != "ready" || list[0].Run != first || list[0].Workspace != h.project || list[0].Size < 1<<20 {
		t.Errorf("list: %+v, %v", list, err)
	}
	if r := h.do("snapshot", "inspect", "ready"); r.code != 0 || !strings.Contains(r.stdout, first) {
		t.Errorf("inspect: %s%s", r.stdout, r.stderr)
	}
}

// checkOwnerOnly fails on anything below a directory that others could read.
func checkOwnerOnly(t *testing.T, dir string) {
	t.Helper()
	n := 0
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		n++
		info, err := d.Info()
		if err == nil && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		return err
	})
	if err != nil || n < 6 {
		t.Errorf("%d files, %v", n, err)
	}
}

// snapshotPolicy lets the first run reach a site, and the copy none: what was let to the first is refused to the copy, on the copy's own record.
func snapshotPolicy(t *testing.T, h *house) {
	testenv.Need(t, "tool:curl")
	site := newSite(h, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "through the door\n")
	}), false)
	port := ":" + site.port
	get := func(host string) string {
		return "curl -s --max-time 30 http://" + host + port + "/; echo " + host + " $?; "
	}
	r := h.vm(get("files.example.org")+get("evil.example.com")+"echo $COFFERDAM_RUN", append([]string{"--snapshot", "net", "--allow", "files.example.org" + port}, site.flags...)...)
	if r.code != 0 || !strings.Contains(r.stdout, "through the door\nfiles.example.org 0\nevil.example.com 6\n") {
		t.Fatalf("control: exit %d: %s%s", r.code, r.stdout, r.stderr)
	}
	r = h.from("net", get("files.example.org")+"echo $COFFERDAM_RUN")
	if r.code != 0 || !strings.HasPrefix(r.stdout, "files.example.org 6\n") {
		t.Errorf("a copy reaches what only the first run might: exit %d: %s%s", r.code, r.stdout, r.stderr)
	}
	run := strings.Fields(r.stdout)[2]
	if e, ok := denied(h.events(), event{Host: "files.example.org", Protocol: "dns"}); !ok || e.Run != run {
		t.Errorf("the refusal is on record as %+v, %v; the copy is %s", e, ok, run)
	}
}

// snapshotLending uses in a copy the credential that it is lent, and then the placeholder that the first run had for it.
func snapshotLending(t *testing.T, h *house) {
	testenv.Need(t, "tool:curl")
	a, authority := newAPI(t)
	run := lendingHouse(t, h, a, authority)
	get := func(token string) string {
		return `curl -k -sS --max-time 60 -o /dev/null -w '%{http_code}\n' -H "Authorization: Bearer ` + token + `" $URL/v1/x; `
	}
	if r := run(get("$API_TOKEN")+`printf %s "$API_TOKEN" > /root/old`, "--snapshot", "lent", "--memory", "256m"); r.code != 0 || r.stdout != "200\n" {
		t.Fatalf("control: exit %d: %s%s", r.code, r.stdout, r.stderr)
	}
	level := h.as.level
	h.as.level = "" // the snapshot's
	defer func() { h.as.level = level }()
	r := run(get("$API_TOKEN")+`test "$(cat /root/old)" = "$API_TOKEN" && echo the same; `+get("$(cat /root/old)"), "--from", "lent")
	if r.code != 0 || !strings.HasPrefix(r.stdout, "200\n") || strings.Count(r.stdout, "200") != 1 || strings.Contains(r.stdout, "same") {
		t.Errorf("exit %d: %s%s", r.code, r.stdout, r.stderr)
	}
	if _, found := denied(h.events(), event{Rule: "foreign-credential"}); !found {
		t.Error("the first run's placeholder is not on record as foreign")
	}
	for _, name := range []string{"ram", "state", "about.json", "machine.json"} { // the disks are the project and the tree
		data, err := os.ReadFile(filepath.Join(h.state, "snapshots", "lent", name))
		if err != nil {
			t.Fatal(err)
		}
		noCanary(t, "the snapshot's "+name, string(data))
	}
}

// snapshotRefusals asks for what there is not, and for what does not go together.
func snapshotRefusals(t *testing.T, h *house) {
	if r := h.vm("exit 3", "--snapshot", "failed"); r.code != 3 || !strings.Contains(r.stderr, "no snapshot") {
		t.Errorf("a command that fails: exit %d: %s", r.code, r.stderr)
	}
	if left, err := os.ReadDir(filepath.Join(h.state, "snapshots")); err != nil || len(left) != 0 {
		t.Errorf("a command that failed has left %v, %v", left, err)
	}
	if r := h.vm("true", "--snapshot", "ready", "--memory", "256m"); r.code != 0 {
		t.Fatalf("control: exit %d: %s", r.code, r.stderr)
	}
	plain := *h
	plain.as.level, plain.as.root = "", ""
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"--isolation", "vm-emulated", "--rootfs", h.as.root, "--snapshot", "ready"}, "snapshot rm ready"}, {[]string{"--snapshot", "Not a name"}, "lower-case"}, {[]string{"--snapshot", "../x"}, "lower-case"},
		{[]string{"--snapshot", "other"}, "--isolation vm-emulated"}, {[]string{"--isolation", "gvisor", "--snapshot", "other"}, "--isolation vm-emulated"},
		{[]string{"--from", "ready", "--workspace", "."}, "--workspace"}, {[]string{"--from", "ready", "--mount", h.project + ":/mnt/x"}, "--mount"}, {[]string{"--from", "ready", "--image", "default"}, "--image"},
		{[]string{"--from", "ready", "--rootfs", h.as.root}, "--rootfs"}, {[]string{"--from", "ready", "--isolation", "container"}, "--isolation"},
		{[]string{"--from", "ready", "--memory", "512m"}, "--memory"}, {[]string{"--from", "ready", "--cpus", "2"}, "--cpus"}, {[]string{"--from", "ready", "--disk", "1m"}, "--disk"}, {[]string{"--from", "nothing"}, "snapshot list"},
	} {
		h.notStarted(plain.do(append(append([]string{"run"}, c.args...), "--", "echo", "started")...), c.want)
	}
	if r := h.from("ready", "echo went on", "--memory", "256m"); r.code != 0 || r.stdout != "went on\n" {
		t.Errorf("control: exit %d: %s%s", r.code, r.stdout, r.stderr)
	}
	f, err := os.OpenFile(filepath.Join(h.state, "snapshots", "ready", "ram"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("damaged"), 128<<20); err != nil {
		t.Fatal(err)
	}
	h.notStarted(h.from("ready", "echo started"), "damaged")
}

// snapshotGivenUp ends runs with a snapshot in ways in which none may come of it, or a whole one: nothing of it is left, nor of the sandbox.
func snapshotGivenUp(t *testing.T, h *house) {
	c := newCrypt(h)
	places := func() []string {
		entries, err := os.ReadDir(filepath.Join(h.state, "snapshots"))
		if err != nil {
			return nil
		}
		var names []string
		for _, e := range entries {
			names = append(names, e.Name())
		}
		return names
	}
	for _, end := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		b := c.start("echo up; exec sleep 1000", "--snapshot", "never")
		b.within(vmPatience, "up\n")
		if len(places()) != 1 {
			t.Errorf("control: while it runs there is %q", places())
		}
		_ = b.cmd.Process.Signal(end)
		if code := b.end(vmPatience); code == 0 {
			t.Errorf("%v: exit %d: %s", end, code, b.out.String())
		}
		c.checkGone()
		h.must("gc")
		if left := places(); len(left) != 0 {
			t.Errorf("%v: left: %q", end, left)
		}
	}
	for n := range 2 { // while it is written
		b := c.start("echo x > new.txt; head -c 40000000 /dev/urandom > /root/much", "--snapshot", "ready"+strconv.Itoa(n), "--memory", "512m")
		written := func() bool {
			found, _ := filepath.Glob(filepath.Join(h.state, "snapshots", ".making-*", "ram")) // the pattern is ours
			return len(found) > 0
		}
		for deadline := time.Now().Add(vmPatience); !written() && time.Now().Before(deadline); time.Sleep(time.Millisecond) {
			if b.cmd.ProcessState != nil {
				break
			}
		}
		time.Sleep(time.Duration(n) * 100 * time.Millisecond)
		_ = b.cmd.Process.Signal(syscall.SIGINT)
		code, left := b.end(vmPatience), places()
		if whole := slices.Contains(left, "ready"+strconv.Itoa(n)); whole != (code == 0) || slices.ContainsFunc(left, func(name string) bool { return name[0] == '.' }) {
			t.Errorf("interrupted while it was written: exit %d, left %q: %s", code, left, b.out.String())
		}
		if r := h.do("diff", "last"); !strings.Contains(r.stdout, "new.txt") {
			t.Errorf("the changes went with the snapshot: %s%s", r.stdout, r.stderr)
		}
		c.checkGone()
	}
}

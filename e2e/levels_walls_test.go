package e2e

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cofferdam/cofferdam/internal/testenv"
)

// levelNetwork tries what is allowed and what is not, and looks for each refusal and its process on record.
func levelNetwork(t *testing.T, h *house) {
	testenv.Need(t, "tool:curl", "tool:python3")
	site := newSite(h, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, strings.Repeat("through the door\n", 10000))
	}), false)
	h.write("probe.py", refusedProbe)
	line := `curl -sS http://files.example.org:` + site.port + `/ | wc -c
curl -s http://evil.example.com/; echo name $?
curl -s --max-time 5 http://203.0.113.7/; echo address $?
curl -gs --max-time 5 "http://[2001:db8::9]:81/"; echo six $?
curl -s --max-time 5 http://169.254.169.254/latest/; echo metadata $?
python3 probe.py udp-connected 203.0.113.9 6666
curl -s --max-time 5 http://files.example.org:1/; echo port $?`
	r := h.do(append(append([]string{"run", "--allow", "files.example.org:" + site.port}, site.flags...), "--", "sh", "-c", line)...)
	const couldNotResolve, couldNotConnect = 6, 7 // of curl
	for _, want := range []string{
		"170000\n", fmt.Sprintf("name %d\n", couldNotResolve), fmt.Sprintf("address %d\n", couldNotConnect), fmt.Sprintf("six %d\n", couldNotConnect),
		fmt.Sprintf("metadata %d\n", couldNotConnect),
	} {
		if !strings.Contains(r.stdout, want) {
			t.Errorf("no %q in %q %s", want, r.stdout, r.stderr)
		}
	}
	events := h.events()
	for _, want := range []struct {
		event
		process string
	}{
		{event{Host: "evil.example.com", Protocol: "dns"}, ""}, {event{Address: "203.0.113.7", Port: 80}, "curl"}, {event{Address: "2001:db8::9", Port: 81}, "curl"},
		{event{Address: "169.254.169.254", Port: 80}, "curl"}, {event{Address: "203.0.113.9", Port: 6666, Protocol: "udp"}, "python3"},
	} {
		e, ok := denied(events, want.event)
		if !ok || want.process != "" && e.Process != want.process {
			t.Errorf("%+v is on record as %+v, %v", want, e, ok)
		}
	}
	if !slices.ContainsFunc(events, func(e event) bool { return e.Verdict == "allow" && e.Host == "files.example.org" }) {
		t.Error("what was allowed is not on record")
	}
}

// levelRights reads what rights the command and process 1 have.
func levelRights(t *testing.T, h *house) {
	r := h.sh(`cat /proc/self/status /proc/1/status; id -u; cat /proc/self/uid_map; touch /usr/written || echo usr closed; mount -t tmpfs x /mnt && echo mounted; mknod /tmp/d b 8 0 && echo device; hostname`)
	for _, set := range regexp.MustCompile(`Cap(Prm|Eff|Bnd|Amb|Inh):\s*([0-9a-f]+)`).FindAllStringSubmatch(r.stdout, -1) {
		bits, err := strconv.ParseUint(set[2], 16, 64)
		const most = 0x800404fb | 1<<19 // kept, and CAP_SYS_PTRACE of process 1
		if err != nil || bits&^most != 0 {
			t.Errorf("capabilities: %s", set[0])
		}
	}
	if n := strings.Count(r.stdout, "NoNewPrivs:\t1"); n != 2 {
		t.Errorf("no_new_privs: %d of 2 in %s", n, r.stdout)
	}
	for _, bad := range []string{"mounted", "device"} {
		if strings.Contains(r.stdout, bad+"\n") {
			t.Errorf("%s: %s", bad, r.stdout)
		}
	}
	if !strings.HasSuffix(r.stdout, "cofferdam\n") {
		t.Errorf("host name: %q", r.stdout)
	}
}

// levelMounts shows folders and files of the host's, to read and to write.
func levelMounts(t *testing.T, h *house) {
	h.write("../shown/file.txt", "shown\n")
	h.write("../single.txt", "single\n")
	h.own(h.home)
	shown, single := filepath.Join(h.home, "shown"), filepath.Join(h.home, "single.txt")
	r := h.sh("cat /mnt/new/deep/file.txt /mnt/one.txt; echo x >/mnt/new/deep/file.txt; echo x >/mnt/new/deep/more; echo x >/mnt/one.txt; pwd", "--mount", shown+":/mnt/new/deep", "--mount", single+":/mnt/one.txt")
	if r.code != 0 || r.stdout != "shown\nsingle\n"+h.project+"\n" {
		t.Errorf("to read: exit %d, %q: %s", r.code, r.stdout, r.stderr)
	}
	if data, err := os.ReadFile(filepath.Join(shown, "file.txt")); string(data) != "shown\n" || err != nil {
		t.Errorf("what is shown was changed: %q, %v", data, err)
	}
	if entries, err := os.ReadDir(shown); len(entries) != 1 || err != nil {
		t.Errorf("what is shown was added to: %v, %v", entries, err)
	}
	r = h.sh("echo written >/mnt/shown/more && cat /mnt/shown/more", "--mount", shown+":/mnt/shown:rw")
	data, err := os.ReadFile(filepath.Join(shown, "more"))
	switch {
	case h.as.able().sharesFor(h.as):
		if r.code != 0 || string(data) != "written\n" || err != nil {
			t.Errorf("to write: exit %d, %q, %v: %s", r.code, data, err, r.stderr)
		}
	case r.code != 125 || err == nil:
		t.Errorf("to write, where no folder is: exit %d, %v: %s", r.code, err, r.stderr)
	}
	for _, bad := range []string{"/proc/x", "/run/cofferdam", "/", "/mnt/../etc"} {
		if r := h.sh("echo started", "--mount", shown+":"+bad); r.code != 125 || strings.Contains(r.stdout, "started") {
			t.Errorf("at %s: exit %d: %s%s", bad, r.code, r.stdout, r.stderr)
		}
	}
}

// levelRoot has a tree as root: nothing of this machine's system is seen, and what is written there stays inside.
func levelRoot(t *testing.T, h *house) {
	tree := testenv.Tree(t, h.as.uid)
	h.as.root = "" // said here
	line := `head -n 1 /etc/passwd; hostname; [ -e /etc/debian_version ] && echo the machine; echo new >/usr/bin/new && rm /usr/bin/awk && cat /usr/bin/new; mkdir /top && echo more >>/etc/passwd; tail -n 1 /etc/passwd; cat keep.txt; echo work >keep.txt; echo "$NODE_EXTRA_CA_CERTS"`
	h.write("keep.txt", "old\n")
	r := h.sh(line, "--rootfs", tree)
	if want := "root:x:0:0:root:/root:/bin/sh\ncofferdam\nnew\nmore\nold\n/etc/ssl/certs/ca-certificates.crt\n"; r.code != 0 || r.stdout != want {
		t.Errorf("exit %d, %q, want %q: %s", r.code, r.stdout, want, r.stderr)
	}
	for path, there := range map[string]bool{"usr/bin/new": false, "usr/bin/awk": true, "top": false} {
		if _, err := os.Lstat(filepath.Join(tree, path)); (err == nil) != there {
			t.Errorf("the tree's %s: %v", path, err)
		}
	}
	if data, err := os.ReadFile(filepath.Join(tree, "etc", "passwd")); err != nil || bytes.Contains(data, []byte("more")) {
		t.Errorf("the tree was changed: %q, %v", data, err)
	}
	if r := h.do("diff", "last"); !strings.Contains(r.stdout, "+work") || strings.Contains(r.stdout, "usr/bin") {
		t.Errorf("diff: %s%s", r.stdout, r.stderr)
	}
}

// levelIdentity runs two sandboxes at once, each with a name of its own to go to. What each may and tried is its own, by whatever address.
func levelIdentity(t *testing.T, h *house) {
	testenv.Need(t, "tool:curl")
	site := newSite(h, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name, _, _ := strings.Cut(r.Host, ".")
		_, _ = fmt.Fprintf(w, "%s answers\n", name) // who does not read it notices
	}), false)
	names := []string{"left", "right"}
	type side struct {
		cmd *exec.Cmd
		in  io.WriteCloser
		out io.ReadCloser
	}
	var sides []side
	for i, name := range names {
		other := names[1-i]
		// The synthetic address that stands for one's own name: the same number stands for the other's name in the other sandbox, or for nothing.
		line := fmt.Sprintf(`echo $COFFERDAM_RUN; own=$(getent ahostsv4 %[1]s.example.org | head -n 1 | cut -d' ' -f1); echo $own; read theirs
curl -s --max-time 5 http://%[1]s.example.org:%[3]s/; curl -s --max-time 5 http://%[2]s.example.org:%[3]s/ || echo denied
curl -s --max-time 5 -H 'Host: %[2]s.example.org' http://$theirs:%[3]s/ || echo refused`, name, other, site.port)
		cmd := h.command(t.Context(), "run", "-q", "--allow", name+".example.org:"+site.port, "--allow-network", "127.0.0.1/32",
			"--resolve", "left.example.org=127.0.0.1", "--resolve", "right.example.org=127.0.0.1", "--", "sh", "-c", line)
		in, err1 := cmd.StdinPipe()
		out, err2 := cmd.StdoutPipe()
		if err := errors.Join(err1, err2, cmd.Start()); err != nil {
			t.Fatal(err)
		}
		sides = append(sides, side{cmd, in, out})
	}
	runs, addresses := []string{lineOf(t, sides[0].out), lineOf(t, sides[1].out)}, []string{"", ""}
	for i, s := range sides {
		addresses[i] = lineOf(t, s.out)
	}
	for i, s := range sides { // both live now
		if _, err := io.WriteString(s.in, addresses[1-i]+"\n"); err != nil {
			t.Fatal(err)
		}
	}
	for i, s := range sides {
		said, err := io.ReadAll(s.out)
		_ = s.cmd.Wait() // what it said tells
		lines := strings.Split(strings.TrimSpace(string(said)), "\n")
		if err != nil || len(lines) != 3 || lines[0] != names[i]+" answers" || lines[1] != "denied" || strings.HasPrefix(lines[2], names[1-i]) {
			t.Errorf("%s said %q, %v", names[i], said, err)
		}
		own, denials := h.crossings(runs[i])
		if len(own) == 0 || slices.ContainsFunc(own, func(host string) bool { return host != names[i]+".example.org" }) || !slices.Contains(denials, names[1-i]+".example.org") {
			t.Errorf("on record for %s: allowed %q, denied %q", names[i], own, denials)
		}
	}
}

// lineOf reads one line and not a byte more.
func lineOf(t *testing.T, r io.Reader) string {
	t.Helper()
	var text []byte
	for b := make([]byte, 1); ; text = append(text, b[0]) {
		if _, err := io.ReadFull(r, b); err != nil {
			t.Fatalf("%v after %q", err, text)
		}
		if b[0] == '\n' {
			return string(text)
		}
	}
}

// crossings are the hosts that a run's records allow and deny.
func (h *house) crossings(run string) (allowed, refused []string) {
	h.t.Helper()
	c := &crypt{house: h}
	for _, e := range c.eventsOf(run) {
		switch {
		case e.Kind == "crossing.decided" && e.Verdict == "allow" && e.Protocol != "dns":
			allowed = append(allowed, e.Host)
		case e.Kind == "crossing.decided" && e.Verdict == "deny":
			refused = append(refused, e.Host)
		}
	}
	return allowed, refused
}

// levelReadOnly has root inside try to make writable what is not, with the rights that it has and with those that it may give itself, and to write there.
func levelReadOnly(t *testing.T, h *house) {
	h.write("../shown/file.txt", "shown\n")
	h.write("keep.txt", "old\n")
	h.own(h.home)
	shown := filepath.Join(h.home, "shown")
	before := h.outside(shown)
	line := `all="/ /proc /proc/sys /sys /run/cofferdam/runner /usr /mnt/shown $PWD"
open='for p in '$all'; do mount -o remount,rw $p; mount -o remount,bind,rw $p; mount --bind $p $p; umount -l $p; done 2>/dev/null
for f in /mnt/shown/file.txt /mnt/shown/new '$PWD'/keep.txt '$PWD'/new; do (echo x >$f) 2>/dev/null && echo "wrote $f"; done'
sh -c "$open"; unshare --user --map-root-user --mount sh -c "$open"; unshare -Urm sh -c "$open"
for f in /run/cofferdam/runner /proc/1/exe /proc/sys/kernel/core_pattern /proc/sys/kernel/modprobe /proc/sysrq-trigger; do (echo x >$f) 2>/dev/null && echo "wrote $f"; done
(echo x >/tmp/free) && echo tried`
	r := h.sh(line, "--workspace", ".:ro", "--mount", shown+":/mnt/shown")
	if r.code != 0 || r.stdout != "tried\n" {
		t.Errorf("exit %d, %q: %s", r.code, r.stdout, r.stderr)
	}
	if after := h.outside(shown); after != before {
		t.Errorf("outside was %s\nand is %s", before, after)
	}
	if !h.as.able().sharesFor(h.as) {
		return
	}
	if r := h.sh("echo x >/mnt/shown/new", "--mount", shown+":/mnt/shown:rw"); r.code != 0 || h.outside(shown) == before { // the control
		t.Errorf("to write: exit %d: %s", r.code, r.stderr)
	}
}

// outside describes what must not change on the host.
func (h *house) outside(dirs ...string) string {
	h.t.Helper()
	return h.snapshot(append(dirs, h.project, filepath.Join(h.bin, "cofferdam-runner"), "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/hostname", "/proc/sys/kernel/printk")...)
}

// snapshot describes files and directories, so that two of them differ if anything was changed, made or removed.
func (h *house) snapshot(paths ...string) string {
	h.t.Helper()
	var all strings.Builder
	for _, path := range paths {
		err := filepath.Walk(path, func(path string, info os.FileInfo, err error) error {
			if err != nil {
				return err
			}
			var data []byte
			if info.Mode().IsRegular() {
				data, err = os.ReadFile(path)
			}
			fmt.Fprintf(&all, "%s %v %d %x %.20q; ", path, info.Mode(), len(data), sha256.Sum256(data), data)
			return err
		})
		if err != nil {
			h.t.Fatal(err)
		}
	}
	return all.String()
}

package guest

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/internal/guest/boot"
)

// doing is a boot with a workspace, disk 1, and a script.
func doing(name string) boot.Boot {
	b := basic()
	b.Workspace = &boot.Workspace{Disk: 1, Target: "/work", Mode: boot.Overlay}
	b.Runner = `{"script":"` + name + `"}`
	return b
}

// entry is one of the stream of changes.
type entry struct {
	*tar.Header
	data string
}

// changed reads the stream of changes, and fails on what the runner's stand-in says there.
func (m *machine) changed(t *testing.T) map[string]entry {
	t.Helper()
	all := map[string]entry{}
	for r := tar.NewReader(m.Changes()); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		all[h.Name] = entry{h, string(data)}
	}
	if e, ok := all["error"]; ok {
		t.Fatalf("inside: %s", e.data)
	}
	return all
}

// kill lets the machine end and waits for it.
func (m *machine) kill(t *testing.T) {
	t.Helper()
	if err := m.Kill(); err != nil {
		t.Error(err)
	}
	m.ended(t)
}

// TestLook looks at the sandbox from its inside, and tries there what must not be possible.
func TestLook(t *testing.T) { bothWays(t, looked) }

func looked(t *testing.T, begin func(*machine, boot.Boot) *machine) {
	one := write(t, map[string]string{"x": "one file"}) + "/x"
	tree := write(t, map[string]string{"in": "a tree", "deeper/": ""})
	deeper := write(t, map[string]string{"there": "deeper"})
	m := start(t, root(t), image(t, write(t, nil)), image(t, one), image(t, tree), image(t, deeper))
	b := doing("look")
	b.Mounts = []boot.Mount{{Disk: 4, Target: "/mnt/tree/deeper"}, {Disk: 3, Target: "/mnt/tree"}, {Disk: 2, Target: "/mnt/one", File: true}}
	if e := begin(m, b).run(t, b); e.Runner != "exit status 0" {
		t.Errorf("the runner: %+v", e)
	}
	f := findings{}
	if err := json.Unmarshal([]byte(m.changed(t)["found.json"].data), &f); err != nil {
		t.Fatal(err)
	}
	for what, want := range map[string]string{
		"/etc/hostname": "inside\n", "hostname": "inside", "/etc/machine-id": b.MachineID + "\n", "/etc/ssl/certs/ca-certificates.crt": "the system's authorities\nthe sandbox's own authority\n",
		"/mnt/one": "one file", "/mnt/tree/in": "a tree", "/mnt/tree/deeper/there": "deeper",
		"/proc/self/cgroup": "0::/\n", "/proc/self/oom_score_adj": "500\n", "/proc/kallsyms": "", "processes": "1 ", "system": "",
		"devices": "fd full null ptmx pts random shm stderr stdin stdout tty urandom zero ",
	} {
		if f[what] != want {
			t.Errorf("%s: %q, want %q", what, f[what], want)
		}
	}
	for what, want := range map[string]string{
		"/etc/resolv.conf": "nameserver 198.18.0.1\n", "/proc/net/arp": "198.18.0.1       0x1         0x6         02:cf:0d:00:00:01", "/proc/net/route": "eth0\t00000000\t010012C6", "time": "19000000",
		// The capabilities of level container, and that by which the runner looks whose a socket is, which the bounding set lacks.
		"/proc/self/status":    "CapInh:\t0000000000080000\nCapPrm:\t00000000800c04fb\nCapEff:\t00000000800c04fb\nCapBnd:\t00000000800404fb\nCapAmb:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\n",
		"write a mounted file": "read-only", "write in a mounted tree": "read-only", "write a kernel setting": "read-only", "reset by sysrq": "read-only",
		"make a device": "not permitted", "mount": "not permitted", "load a module": "not permitted", "reboot": "not permitted", "make a user namespace": "not permitted", "set the clock": "not permitted",
		"write the root": "<nil>",
	} {
		if what == "reset by sysrq" && strings.Contains(f[what], "no such file") {
			continue // a kernel that has none
		}
		if !strings.Contains(f[what], want) {
			t.Errorf("%s: %q, want it to hold %q", what, f[what], want)
		}
	}
	m.kill(t)
}

// TestChange changes a workspace and reads the stream in which that arrives.
func TestChange(t *testing.T) {
	needMachine(t)
	files := write(t, map[string]string{"kept": "as it was", "gone": "x", "tree/old": "x", "moved": "moved", "untouched": "x"})
	m := start(t, root(t), image(t, files))
	if e := m.run(t, doing("change")); e.Runner != "exit status 0" {
		t.Errorf("the runner: %+v", e)
	}
	all := m.changed(t)
	for name, want := range map[string]entry{
		".": {&tar.Header{Typeflag: tar.TypeDir, Mode: 0o755}, ""}, "gone": {&tar.Header{Typeflag: tar.TypeChar}, ""}, "moved": {&tar.Header{Typeflag: tar.TypeChar}, ""},
		"there": {&tar.Header{Typeflag: tar.TypeReg, Mode: 0o644}, "moved"}, "tree": {&tar.Header{Typeflag: tar.TypeDir, Mode: 0o750, PAXRecords: map[string]string{boot.Opaque: "y"}}, ""},
		"tree/new": {&tar.Header{Typeflag: tar.TypeReg, Mode: 0o644}, "x"}, "link": {&tar.Header{Typeflag: tar.TypeSymlink, Mode: 0o777, Linkname: "../../etc/passwd"}, ""},
		"pipe": {&tar.Header{Typeflag: tar.TypeFifo, Mode: 0o644}, ""}, "name\xff\n": {&tar.Header{Typeflag: tar.TypeReg, Mode: 0o644}, ""},
		"sparse": {&tar.Header{Typeflag: tar.TypeReg, Mode: 0o644, PAXRecords: map[string]string{boot.Map: "1099511627780,1099511627776,4"}}, "late"},
	} {
		got, ok := all[name]
		if !ok {
			t.Errorf("%q is missing", name)
			continue
		}
		if got.Typeflag != want.Typeflag || got.Mode != want.Mode || got.Linkname != want.Linkname || got.data != want.data || got.Devmajor != 0 || got.Devminor != 0 ||
			got.PAXRecords[boot.Opaque] != want.PAXRecords[boot.Opaque] || got.PAXRecords[boot.Map] != want.PAXRecords[boot.Map] {
			t.Errorf("%q: %+v %q, want %+v %q", name, got.Header, got.data, want.Header, want.data)
		}
	}
	first, second := all["kept"], all["second"] // whichever came first has the bytes
	if first.Typeflag == tar.TypeLink {
		first, second = second, first
	}
	if first.data != "changed" || first.Uid != 1000 || first.Gid != 1001 || first.Mode != 0o600 || second.Typeflag != tar.TypeLink || second.Linkname != first.Name {
		t.Errorf("a file with two names: %+v, %+v", first, second)
	}
	if _, ok := all["untouched"]; ok {
		t.Error("an unchanged file was sent")
	}
	deep := strings.TrimSuffix(strings.Repeat("d/", maxDepth+1), "/")
	if _, ok := all[deep]; !ok {
		t.Error("a path at the greatest depth was not sent")
	}
	if _, ok := all[deep+"/d"]; ok {
		t.Error("a path beyond the greatest depth was sent")
	}
	m.kill(t)
}

// TestHog fills scratch and then memory. The init must live and say so.
func TestHog(t *testing.T) { bothWays(t, filled) }

func filled(t *testing.T, begin func(*machine, boot.Boot) *machine) {
	m := start(t, root(t), image(t, write(t, nil)))
	b := doing("hog")
	e := begin(m, b).run(t, b)
	if e.OutOfMemory < 1 || e.Runner != "signal: killed" {
		t.Errorf("out of memory: %+v", e)
	}
	if size := len(m.changed(t)["hog"].data); size < 48<<20 || size > 64<<20 {
		t.Errorf("the file that filled scratch came with %d bytes", size)
	}
	m.kill(t)
}

// TestCrowd makes processes until there may be no more.
func TestCrowd(t *testing.T) { bothWays(t, crowded) }

func crowded(t *testing.T, begin func(*machine, boot.Boot) *machine) {
	m := start(t, root(t), image(t, write(t, nil)))
	b := doing("crowd")
	b.PIDs = 8
	begin(m, b).run(t, b)
	if got := m.changed(t)["crowd"].data; !strings.HasSuffix(got, "resource temporarily unavailable") {
		t.Errorf("processes: %q", got)
	}
	m.kill(t)
}

// TestClock sets the clock of a machine that runs, and gives it a seed.
func TestClock(t *testing.T) {
	needMachine(t)
	m := start(t, root(t))
	if _, err := m.Ready(); err != nil {
		t.Fatal(err)
	}
	b := doing("clock")
	b.Workspace = nil
	if err := errors.Join(m.Clock(time.Unix(1e9, 0)), m.Reseed(b.Seed), m.Boot(b), m.Started(), m.Reseed(b.Seed), m.Clock(time.Date(2091, 1, 1, 0, 0, 0, 0, time.UTC))); err != nil {
		t.Fatal(err)
	}
	if e, err := m.Ended(); err != nil || e.Runner != "exit status 0" {
		t.Errorf("the runner: %+v, %v", e, err)
	}
	m.nothing(t)
	m.ended(t) // by itself, since nobody says anything more
}

// TestEnds ends machines in the ways in which a host can.
func TestEnds(t *testing.T) {
	needMachine(t)
	t.Run("killed", func(t *testing.T) {
		m := start(t, root(t))
		b := doing("wait")
		b.Workspace = nil
		if _, err := m.Ready(); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(m.Boot(b), m.Started()); err != nil {
			t.Fatal(err)
		}
		m.kill(t)
	})
	t.Run("host gone", func(t *testing.T) {
		m := start(t, root(t))
		if _, err := m.Ready(); err != nil {
			t.Fatal(err)
		}
		if err := m.port.Close(); err != nil {
			t.Fatal(err)
		}
		m.ended(t)
	})
	t.Run("disk missing", func(t *testing.T) {
		m := start(t, root(t))
		if _, err := m.Ready(); err != nil {
			t.Fatal(err)
		}
		if err := m.Boot(doing("nothing")); err != nil {
			t.Fatal(err)
		}
		var failure *boot.Failure
		if err := m.Started(); !errors.As(err, &failure) || !strings.Contains(failure.Text, "disk 1") {
			t.Errorf("a machine without its workspace: %v", err)
		}
		m.kill(t)
	})
}

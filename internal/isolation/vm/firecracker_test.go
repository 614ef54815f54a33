package vm

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/guest/boot"
	"github.com/cofferdam/cofferdam/internal/isolation/container"
)

// fake builds the program that stands for Firecracker and Cloud Hypervisor, once. The tests run where neither can.
var fake = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "cofferdam-machine-test")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir) // it is in memory
	path := filepath.Join(dir, "machine")
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", path, "./testdata/machine")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return nil, errors.New(string(out))
	}
	return os.ReadFile(path)
})

// needFakes returns a directory that has the program under both names.
func needFakes(t *testing.T) string {
	t.Helper()
	program, err := fake()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	path := filepath.Join(dir, "firecracker")
	if err := errors.Join(os.WriteFile(path, program, 0o755), os.Link(path, filepath.Join(dir, "cloud-hypervisor"))); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestFirecrackerDescription holds all that Firecracker is told: a device that is not in here is one that nobody decided on.
func TestFirecrackerDescription(t *testing.T) {
	f := firecracker{program: "/usr/bin/firecracker"}
	h := hardware{accel: hardwareKVM, memory: 512 << 20, cpus: 2, disks: []descriptor{5, 6}, wire: 7}
	file, err := f.configuration(h)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	got, err := io.ReadAll(io.NewSectionReader(file, 0, 1<<20))
	if err != nil {
		t.Fatal(err)
	}
	want := strings.NewReplacer("\n", "", "\t", "").Replace(`{
	"boot-source":{"kernel_image_path":"/kernel","initrd_path":"/initramfs","boot_args":"console=ttyS0 quiet panic=-1 reboot=t GODEBUG=asyncpreemptoff=1 reboot=k cofferdam.port=vsock"},
	"machine-config":{"vcpu_count":2,"mem_size_mib":512,"smt":false},
	"drives":[
		{"drive_id":"disk0","path_on_host":"/proc/self/fd/5","is_root_device":false,"is_read_only":true,"io_engine":"Sync"},
		{"drive_id":"disk1","path_on_host":"/proc/self/fd/6","is_root_device":false,"is_read_only":true,"io_engine":"Sync"}],
	"network-interfaces":[{"iface_id":"eth0","host_dev_name":"door","guest_mac":"02:cf:0d:00:00:02"}],
	"vsock":{"guest_cid":3,"uds_path":"/sockets/vsock"}}`)
	if string(got) != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}
}

// TestStaticLaunch looks at how both programs are started, and what they see.
func TestStaticLaunch(t *testing.T) {
	dir := needFakes(t)
	h := hardware{accel: hardwareKVM, memory: 512 << 20, cpus: 2, kernel: "/k", initram: "/i", control: 5, disks: []descriptor{6, 7}, wire: 8}
	for _, c := range []struct {
		d       driver
		args    string
		devices string
	}{
		{firecracker{dir + "/firecracker", tunDevice}, "firecracker --id sandbox --no-api --config-file /proc/self/fd/8 --level Error", "/dev/kvm /dev/net/tun"},
		{cloudHypervisor{dir + "/cloud-hypervisor"}, `cloud-hypervisor --api-socket fd=5 --seccomp true --cpus boot=2 --memory size=512M
--kernel /kernel --initramfs /initramfs --cmdline console=ttyS0 quiet panic=-1 reboot=t GODEBUG=asyncpreemptoff=1 cofferdam.port=vsock --serial tty --console off --rng src=/dev/urandom
--disk path=/proc/self/fd/6,readonly=on,image_type=raw,serial=disk0 --disk path=/proc/self/fd/7,readonly=on,image_type=raw,serial=disk1
--net fd=[8],mac=02:cf:0d:00:00:02 --vsock cid=3,socket=/sockets/vsock`, "/dev/kvm"},
	} {
		l, err := c.d.launch(h)
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(l.Args, " "); got != strings.ReplaceAll(c.args, "\n", " ") {
			t.Errorf("%s:\n%s\nwant\n%s", c.d.name(), got, c.args)
		}
		if got := strings.Join(l.Devices, " "); got != c.devices || !l.Proc {
			t.Errorf("%s: devices %s, proc %v", c.d.name(), got, l.Proc)
		}
		var shown []string
		for _, s := range l.Show {
			shown = append(shown, s.Target)
		}
		if got := strings.Join(shown, " "); got != "/machine /kernel /initramfs" {
			t.Errorf("%s sees %s", c.d.name(), got)
		}
		for name, bad := range map[string]hardware{"emulated": {accel: emulated, cpus: 1}, "a snapshot": {accel: hardwareKVM, cpus: 1, ram: 9}, "a copy": {accel: hardwareKVM, cpus: 1, state: 9}, "a disk to write to": {accel: hardwareKVM, cpus: 1, scratch: 9}} {
			if _, err := c.d.launch(bad); fault.KindOf(err) != fault.Unsupported {
				t.Errorf("%s, %s: %v", c.d.name(), name, err)
			}
		}
	}
	h.cpus = 33
	if _, err := (firecracker{dir + "/firecracker", tunDevice}).launch(h); fault.KindOf(err) != fault.Unsupported || fault.HintOf(err) == "" {
		t.Errorf("33 processors: %v", err)
	}
}

// started is one of the programs without a jail, with a directory in place of its root.
type started struct {
	monitor monitor
	host    *boot.Host
	said    *output
	program *exec.Cmd
}

// startFake starts a driver's program as power would, but for the jail, and waits for its guest. It ends with the test.
func startFake(t *testing.T, d driver, h hardware) started {
	t.Helper()
	place := t.TempDir()
	if err := errors.Join(os.Mkdir(place+placeSockets, 0o700), os.WriteFile(place+placeKernel, []byte("k"), 0o600), os.WriteFile(place+placeInitram, []byte("i"), 0o600)); err != nil {
		t.Fatal(err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: place + placePort})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	listener, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close() // listener is the same socket
	e, err := endsFor(d)
	if err != nil {
		t.Fatal(err)
	}
	theirs := e.theirs
	h.accel, h.control = hardwareKVM, container.FirstFile
	for range 2 {
		disk, err := memory("disk", 512)
		if err != nil {
			t.Fatal(err)
		}
		h.disks = append(h.disks, descriptor(container.FirstFile+len(theirs)))
		theirs = append(theirs, disk)
	}
	h.wire = descriptor(container.FirstFile + len(theirs))
	if f, ok := d.(firecracker); ok {
		file, err := f.configuration(h)
		if err != nil {
			t.Fatal(err)
		}
		theirs = append(theirs, file)
	}
	how, err := d.launch(h)
	if err != nil {
		t.Fatal(err)
	}
	said, end, err := newOutput()
	if err != nil {
		t.Fatal(err)
	}
	s := started{said: said, program: &exec.Cmd{
		Path: how.program, Args: how.Args, Env: append(os.Environ(), "FAKE_ROOT="+place), Stdout: end, Stderr: end,
		ExtraFiles: append(make([]*os.File, container.FirstFile-3), theirs...),
	}}
	if err := s.program.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = s.program.Process.Kill() // or it has ended
		_ = s.program.Wait()
		e.close()
	})
	for _, f := range append(theirs, end) {
		_ = f.Close() // it has its own
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if s.monitor, err = d.attend(ctx, e.control); err != nil {
		t.Fatalf("%v: %s", err, said.last())
	}
	port, err := takePort(ctx, listener, nil)
	if err != nil {
		t.Fatalf("%v: %s", err, said.last())
	}
	t.Cleanup(func() { _ = port.Close() })
	s.host = boot.NewHost(port)
	if _, err := s.host.Ready(); err != nil {
		t.Fatalf("%v: %s", err, said.last())
	}
	return s
}

// lives has the guest become a sandbox and end.
func (s started) lives(t *testing.T) {
	t.Helper()
	b := boot.Boot{
		Seed: [boot.SeedSize]byte{1}, Time: time.Now(), Hostname: "cofferdam", MachineID: container.NewMachineID(), Scratch: boot.Scratch{Bytes: 1 << 20, Files: 100},
		Runner: "{}", Rights: boot.Usual,
	}
	if err := errors.Join(s.host.Boot(b), s.host.Started()); err != nil {
		t.Fatal(err)
	}
	if e, err := s.host.Ended(); err != nil || e.Runner != "exit status 0" {
		t.Errorf("%+v, %v", e, err)
	}
}

// told is what the program was told, once it has said so much.
func (s started) told(t *testing.T, last string) string {
	t.Helper()
	for until := time.Now().Add(10 * time.Second); time.Now().Before(until); time.Sleep(time.Millisecond) {
		s.said.mu.Lock()
		text := string(s.said.kept)
		s.said.mu.Unlock()
		if strings.Contains(text, last) {
			return strings.ReplaceAll(strings.TrimSpace(strings.ReplaceAll(text, "told: ", "")), "\n", ", ")
		}
	}
	t.Fatalf("it never said %q: %s", last, s.said.last())
	return ""
}

// TestFirecrackerRuns has a machine live from its start to its end, by the configuration and the wire.
func TestFirecrackerRuns(t *testing.T) {
	s := startFake(t, firecracker{needFakes(t) + "/firecracker", tunDevice}, hardware{memory: 256 << 20, cpus: 1})
	s.lives(t)
	if got := s.told(t, "boot"); got != "configuration 1 256 2 02:cf:0d:00:00:02, boot cofferdam" {
		t.Errorf("told: %s", got)
	}
	for name, err := range map[string]error{"pause": s.monitor.pause(t.Context()), "resume": s.monitor.resume(t.Context()), "save": s.monitor.save(t.Context(), nil), "load": s.monitor.load(t.Context(), 0)} {
		if fault.KindOf(err) != fault.Unsupported {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestPick holds the order of the programs, and what is passed over.
func TestPick(t *testing.T) {
	built := needFakes(t)
	say := func(name, version string) string {
		dir := t.TempDir()
		script := "#!/bin/sh\n[ \"$*\" = --version ] && printf '%s\\n' '" + version + "'\n"
		if err := os.WriteFile(filepath.Join(dir, name), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	tun := filepath.Join(t.TempDir(), "tun")
	if err := errors.Join(os.WriteFile(tun, nil, 0o600), os.Chmod(tun, 0o666)); err != nil {
		t.Fatal(err)
	}
	last := stub{"QEMU", "8.2", nil}
	for _, c := range []struct {
		name string
		dirs []string
		want string
	}{
		{"nothing", nil, "QEMU 8.2"},
		{"both", []string{say("firecracker", "Firecracker v1.16.2"), say("cloud-hypervisor", "cloud-hypervisor v52.0")}, "Firecracker 1.16.2, not run on hardware"},
		{"more lines", []string{say("cloud-hypervisor", "cloud-hypervisor v53.0-12-gabcdef0\nMigration Protocol Versions: 1")}, "Cloud Hypervisor 53.0-12-gabcdef0, not run on hardware"},
		{"too old", []string{say("firecracker", "Firecracker v1.16.1"), say("cloud-hypervisor", "cloud-hypervisor v53.0.0")},
			"Cloud Hypervisor 53.0.0, not run on hardware; not used: Firecracker 1.16.1 has known holes or lacks what is needed: 1.16.2 is the least"},
		{"both too old", []string{say("firecracker", "Firecracker v1.9.1"), say("cloud-hypervisor", "cloud-hypervisor v51.2")},
			"QEMU 8.2; not used: Firecracker 1.9.1 has known holes or lacks what is needed: 1.16.2 is the least; not used: Cloud Hypervisor 51.2 has known holes or lacks what is needed: 52.0 is the least"},
		{"development", []string{say("firecracker", "Firecracker v1.17.0-dev")}, `QEMU 8.2; not used: DIR/firecracker: "1.17.0-dev" is a version in development`},
		{"another program", []string{say("firecracker", "Fire 3000")}, "QEMU 8.2; not used: DIR/firecracker does not say that it is Firecracker"},
		{"the first directory", []string{say("firecracker", "Firecracker v1.17.0"), say("firecracker", "Firecracker v1.16.9")}, "Firecracker 1.17.0, not run on hardware"},
		{"fails", []string{built}, "QEMU 8.2; not used: DIR/firecracker does not say that it is Firecracker; not used: DIR/cloud-hypervisor does not say that it is Cloud Hypervisor"},
	} {
		d, detail, err := pickFrom(t.Context(), c.dirs, tun, last)
		if len(c.dirs) > 0 {
			detail = strings.ReplaceAll(detail, c.dirs[0], "DIR")
		}
		if err != nil || detail != c.want || !strings.HasPrefix(detail, d.name()) {
			t.Errorf("%s: %q, %v, want %q", c.name, detail, err, c.want)
		}
	}
	closed := filepath.Join(t.TempDir(), "tun")
	if err := os.WriteFile(closed, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{closed: "as nobody", closed + "x": "no such file"} {
		if d, detail, err := pickFrom(t.Context(), []string{say("firecracker", "Firecracker v1.16.2")}, path, last); err != nil || d.name() != "QEMU" || !strings.Contains(detail, want) {
			t.Errorf("no way to the network: %v, %q, %v", d, detail, err)
		}
	}
	last.err = errors.New("QEMU is not there")
	if d, _, err := pickFrom(t.Context(), []string{say("firecracker", "Firecracker v1.0.0")}, tun, last); d != nil || err == nil || !strings.HasPrefix(err.Error(), "QEMU is not there; not used: Firecracker 1.0") {
		t.Errorf("no program: %v, %v", d, err)
	}
}

// stub is a driver that has only a name and a version.
type stub struct {
	called, number string
	err            error
}

func (s stub) name() string                                                { return s.called }
func (s stub) version(context.Context) (string, error)                     { return s.number, s.err }
func (s stub) launch(hardware) (launch, error)                             { return launch{}, s.err }
func (s stub) attend(context.Context, io.ReadWriteCloser) (monitor, error) { return nil, s.err }

func TestRelease(t *testing.T) {
	for _, c := range []struct {
		word string
		want release // zero: refused
	}{
		{"1.16.2", release{1, 16, 2}}, {"52.0", release{52, 0, 0}}, {"52.0.1", release{52, 0, 1}}, {"53.0-45-gabc", release{53, 0, 0}}, {"1.16.2+deb13u1", release{1, 16, 2}},
		{"", release{}}, {"1", release{}}, {"1.2.3.4", release{}}, {"1.x", release{}}, {"-1.2", release{}}, {"1.-2", release{}}, {"+1.2", release{}}, {"1.99999999", release{}},
		{"1.17.0-dev", release{}}, {"1.17.0-rc1", release{}}, {"1..2", release{}}, {"v1.2", release{}},
	} {
		if got, err := parseRelease(c.word); got != c.want || (err == nil) != (c.want != release{}) {
			t.Errorf("%q: %v, %v", c.word, got, err)
		}
	}
	if !(release{1, 9, 9}).less(release{1, 16, 2}) || (release{1, 16, 2}).less(release{1, 16, 2}) || (release{2, 0, 0}).less(release{1, 16, 2}) {
		t.Error("releases are not compared as numbers")
	}
}

// TestNeeds: what the jail must allow, and no more.
func TestNeeds(t *testing.T) {
	got, err := json.Marshal(map[string]bool{"firecracker": firecracker{}.needs().room, "cloud-hypervisor": cloudHypervisor{}.needs().room})
	if err != nil || string(got) != `{"cloud-hypervisor":false,"firecracker":true}` {
		t.Errorf("who stays in the room: %s, %v", got, err)
	}
	for _, n := range []needs{firecracker{}.needs(), cloudHypervisor{}.needs()} {
		if n.sockets != "/sockets" || n.port != "/sockets/vsock_1024" {
			t.Errorf("%+v", n)
		}
	}
}

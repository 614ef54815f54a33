package gvisor

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/isolation/container"
	"github.com/cofferdam/cofferdam/internal/isolation/kvm"
	"github.com/cofferdam/cofferdam/internal/supervisor/call"
	"github.com/cofferdam/cofferdam/internal/testenv"
)

// TestMain lets the test binary be the children that the supervisor's program is. What it becomes instead of runsc says what runsc would find.
func TestMain(m *testing.M) {
	switch os.Args[0] {
	case container.SetupName:
		container.Setup(lookAround)
		return
	case kvm.Name:
		kvm.Child()
		return
	}
	os.Exit(m.Run())
}

// lookAround writes into the kernel's log which devices are there, which of them open, and with which groups.
func lookAround(g container.Ground) error {
	log, err := os.OpenFile(g.Log, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	entries, err := os.ReadDir("/dev")
	if err != nil {
		return err
	}
	fmt.Fprintf(log, "platform %s\n", g.Platform)
	for _, e := range entries {
		f, err := os.OpenFile("/dev/"+e.Name(), os.O_RDWR, 0)
		fmt.Fprintf(log, "device %s %t\n", e.Name(), err == nil)
		_ = f.Close() // nil where it was not opened
	}
	inside := 0 // devices that open in the sandbox's view
	for _, e := range entries {
		if f, err := os.OpenFile(filepath.Join(g.View, "dev", e.Name()), os.O_RDWR, 0); err == nil {
			inside++
			_ = f.Close() // only looked at
		}
	}
	groups, err := unix.Getgroups()
	fmt.Fprintf(log, "view %d\ngroups %d\n", inside, len(groups))
	if err == nil {
		os.Exit(0)
	}
	return err
}

// found starts a sandbox whose kernel only looks around, and returns what it saw.
func found(t *testing.T, devices []string, ids container.IDs) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	spec := call.Create{Hostname: "cofferdam", Platform: "one", Limits: call.Limits{Disk: 16 << 20}}
	c, err := container.Start(t.Context(), spec, container.Options{Runner: self, IDs: ids, Kernel: &container.Kernel{Program: self, Devices: devices}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Log.Close()
	<-c.Done()
	c.Listeners.Close()
	if c.Scratch != nil {
		_ = c.Scratch.Close() // only a hold
	}
	said, err := io.ReadAll(io.NewSectionReader(c.Log, 0, 1<<16))
	if err != nil {
		t.Fatal(err)
	}
	return string(said)
}

// TestDevicesAround: a platform's device is there for runsc and opens, by its group where that is how it opens; the sandbox does not see it; and without one there is none.
func TestDevicesAround(t *testing.T) {
	testenv.Need(t, "userns")
	const null = "platform one\ndevice null true\nview 0\ngroups 0\n"
	if os.Geteuid() != 0 {
		if got := found(t, nil, container.SingleID()); !strings.HasPrefix(got, "platform one\ndevice null true\nview 0\n") {
			t.Errorf("without devices: %q", got)
		}
		if got := found(t, []string{"/dev/full"}, container.SingleID()); !strings.HasPrefix(got, "platform one\ndevice full true\ndevice null true\nview 0\n") {
			t.Errorf("with one: %q", got)
		}
		return
	}
	const base, group = 0x70000000, 10610
	if got := found(t, nil, container.PrivilegedIDs(base)); got != null {
		t.Errorf("without devices: %q", got)
	}
	name := fmt.Sprintf("cofferdam-test-%d", os.Getpid())
	path := "/dev/" + name
	if err := unix.Mknod(path, unix.S_IFCHR|0o600, int(unix.Mkdev(1, 7))); err != nil { // as /dev/full
		t.Skip(err)
	}
	defer os.Remove(path)
	for _, c := range []struct {
		owner, mode int
		opens       bool
		groups      int
	}{
		{0, 0o600, false, 0}, {0, 0o660, false, 0}, {group, 0o600, false, 1}, {group, 0o660, true, 1}, {0, 0o666, true, 0},
	} {
		if err := os.Chown(path, 0, c.owner); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, os.FileMode(c.mode)); err != nil {
			t.Fatal(err)
		}
		want := fmt.Sprintf("platform one\ndevice %s %t\ndevice null true\nview 0\ngroups %d\n", name, c.opens, c.groups)
		if got := found(t, []string{path}, container.PrivilegedIDs(base)); got != want {
			t.Errorf("%+v: %q, want %q", c, got, want)
		}
	}
}

// TestDevices: each platform has what it needs, an unknown one is refused, and kvm is where the trial of this machine refuses it, with the trial's own reason.
func TestDevices(t *testing.T) {
	for _, platform := range []string{"", Systrap} {
		if got, err := devices(t.Context(), platform); err != nil || len(got) != 0 {
			t.Errorf("%q: %q, %v", platform, got, err)
		}
	}
	for _, platform := range []string{"ptrace", "KVM", "kvm "} {
		if _, err := devices(t.Context(), platform); fault.KindOf(err) != fault.Invalid || !strings.Contains(fault.HintOf(err), "systrap, kvm") {
			t.Errorf("%q: %v", platform, err)
		}
	}
	got, err := devices(t.Context(), KVM)
	reason := kvm.Try(t.Context())
	if reason == nil {
		reason = kvm.OpenToGroup()
	}
	t.Logf("%v, %v", got, err)
	if reason == nil {
		if err != nil || len(got) != 1 || got[0] != kvm.Device {
			t.Errorf("it works here: %q, %v", got, err)
		}
		return
	}
	before, _, _ := strings.Cut(reason.Error(), "(") // without what was measured
	if fault.KindOf(err) != fault.Unsupported || !strings.Contains(err.Error(), before) || fault.HintOf(err) == "" {
		t.Errorf("%v, hint %q, want the reason %q", err, fault.HintOf(err), before)
	}
}

// TestStartRefusesPlatform: a sandbox for a platform that is not to be had is not begun. That one is begun at all shows that nothing else was in the way.
func TestStartRefusesPlatform(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	start := func(platform string) error {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		spec := call.Create{Hostname: "cofferdam", Platform: platform, Limits: call.Limits{Disk: 16 << 20}}
		_, err := Start(ctx, spec, container.Options{Runner: "/no/such/runner", IDs: container.SingleID(), Kernel: &container.Kernel{Program: self}})
		return err
	}
	if err := start("other"); fault.KindOf(err) != fault.Invalid || !strings.Contains(err.Error(), "no platform") {
		t.Errorf("unknown: %v", err)
	}
	if err := start(KVM); ProbeKVM(t.Context()) != nil && (err == nil || strings.Contains(err.Error(), "runner")) {
		t.Errorf("kvm: %v", err)
	}
	if err := start(Systrap); err == nil || !strings.Contains(err.Error(), "runner is missing") {
		t.Errorf("systrap: %v", err)
	}
}

package gvisor

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/cofferdam/cofferdam/internal/isolation/container"
	"github.com/cofferdam/cofferdam/internal/rootfs"
	"github.com/cofferdam/cofferdam/internal/supervisor/call"
)

// TestConfigure holds what the configuration says to level container's terms.
func TestConfigure(t *testing.T) {
	ground := container.Ground{Surroundings: rootfs.Surroundings{View: "/root", Work: "/work"}, Hostname: "cofferdam", PIDs: 40, Disk: 1 << 20, Capabilities: []uintptr{0, 7, 18}}
	c, err := configure(ground)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"CAP_CHOWN", "CAP_SETUID", "CAP_SYS_CHROOT"}
	caps := c.Process.Capabilities
	if !c.Process.NoNewRights || !slices.Equal(caps.Bounding, want) || !slices.Equal(caps.Effective, want) || caps.Inherited != nil {
		t.Errorf("rights: %+v", c.Process)
	}
	if !slices.Contains(c.Process.Limits, limit{"RLIMIT_NPROC", 40, 40}) {
		t.Errorf("limits: %+v", c.Process.Limits)
	}
	ground.Tracing = true
	if c, err = configure(ground); err != nil || slices.Contains(c.Process.Capabilities.Bounding, "CAP_SYS_PTRACE") || !slices.Contains(c.Process.Capabilities.Permitted, "CAP_SYS_PTRACE") {
		t.Errorf("with more than one user: %+v, %v", c.Process.Capabilities, err)
	}
	ground.Capabilities = []uintptr{21} // CAP_SYS_ADMIN
	if _, err := configure(ground); err == nil {
		t.Error("a capability that no sandbox has was given a name")
	}
}

// TestFlags holds the flags on which safety hangs.
func TestFlags(t *testing.T) {
	for _, shared := range []bool{false, true} {
		got := flags(container.Ground{Shared: shared})
		for flag, want := range map[string]string{
			"--network": "sandbox", "--host-uds": "none", "--host-fifo": "none", "--net-raw": "false", "--overlay2": "none", "--allow-flag-override": "false", "--platform": "systrap",
			"--directfs": map[bool]string{true: "false", false: "true"}[shared], "--file-access": map[bool]string{true: "shared", false: "exclusive"}[shared],
		} {
			if !slices.Contains(got, flag+"="+want) {
				t.Errorf("shared %v: no %s=%s in %q", shared, flag, want, got)
			}
		}
	}
}

// TestPlatformFlags: exactly one platform is named, the one that was asked for, and a device only for that which has one.
func TestPlatformFlags(t *testing.T) {
	for asked, want := range map[string][]string{
		"": {"--platform=systrap"}, Systrap: {"--platform=systrap"}, KVM: {"--platform=kvm", "--platform_device_path=/dev/kvm"},
	} {
		got := slices.DeleteFunc(flags(container.Ground{Platform: asked}), func(f string) bool { return !strings.HasPrefix(f, "--platform") })
		if !slices.Equal(got, want) {
			t.Errorf("%q: %q, want %q", asked, got, want)
		}
	}
	all := flags(container.Ground{Platform: KVM})
	if usual := flags(container.Ground{}); len(all) != len(usual)+1 || all[0] != "runsc" || all[len(all)-1] != "sandbox" {
		t.Errorf("the platform changes more than itself: %q", all)
	}
}

// TestSharesFolders says what one user id is not enough for.
func TestSharesFolders(t *testing.T) {
	for _, c := range []struct {
		spec call.Create
		want bool
	}{
		{call.Create{}, false},
		{call.Create{Workspace: &call.Workspace{Mode: "overlay"}, Mounts: []call.Mount{{}}}, false},
		{call.Create{Workspace: &call.Workspace{Mode: "ro"}}, false},
		{call.Create{Workspace: &call.Workspace{Mode: "rw"}}, true},
		{call.Create{Mounts: []call.Mount{{}, {Write: true}}}, true},
	} {
		if got := sharesFolders(c.spec); got != c.want {
			t.Errorf("%+v: %v", c.spec, got)
		}
	}
}

// TestTrouble reads what runsc wrote, whatever that is.
func TestTrouble(t *testing.T) {
	for text, want := range map[string]string{
		"": "", "no JSON\n": "", `{"level":"warning","msg":"x"}` + "\n": "", `{"level":"error","msg":"first"}` + "\n" + `{"level":"error","msg":"last"}` + "\n" + "{": "last",
		`{"level":"error","msg":"a\u001b]0;x\u0007b\u202ec"}` + "\n":  "a?]0;x?b?c",
		`{"level":"error","msg":"` + strings.Repeat("a", 1000) + `"}`: strings.Repeat("a", 300),
	} {
		f, err := os.CreateTemp(t.TempDir(), "log")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteString(text); err != nil {
			t.Fatal(err)
		}
		if got := (&Sandbox{Container: &container.Container{Log: f}}).Trouble(); got != want {
			t.Errorf("%.80q: %q", text, got)
		}
		_ = f.Close() // only read
	}
	if got := (&Sandbox{Container: &container.Container{}}).Trouble(); got != "" {
		t.Errorf("without a log: %q", got)
	}
}

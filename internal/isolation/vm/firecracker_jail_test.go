package vm

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/internal/guest/boot"
	"github.com/cofferdam/cofferdam/internal/supervisor/call"
	"github.com/cofferdam/cofferdam/internal/testenv"
)

// TestJailedPrograms starts what stands for Firecracker and Cloud Hypervisor in the jail that they would have, with the network, and looks at what holds them there.
func TestJailedPrograms(t *testing.T) {
	testenv.Need(t, "userns", "root")
	dir := needFakes(t)
	for _, d := range []driver{firecracker{dir + "/firecracker", tunDevice}, cloudHypervisor{dir + "/cloud-hypervisor"}} {
		t.Run(d.name(), func(t *testing.T) {
			if info, err := os.Stat(tunDevice); d.name() == "Firecracker" && (err != nil || info.Mode().Perm()&0o006 != 0o006) {
				t.Skipf("needs %s to be for everybody", tunDevice)
			}
			folder := t.TempDir()
			h := hardware{accel: hardwareKVM, memory: 256 << 20, cpus: 1, kernel: filepath.Join(folder, "k"), initram: filepath.Join(folder, "i")}
			for _, path := range []string{h.kernel, h.initram} {
				if err := os.WriteFile(path, []byte("x"), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			spec := call.Create{Run: "testtest", Level: Level, Hostname: "cofferdam", UIDBase: testBase, Limits: call.Limits{Disk: 64 << 20, Memory: 256 << 20}}
			disk, err := nameless(spec)
			if err != nil {
				t.Fatal(err)
			}
			defer disk.Close()
			if _, err := disk.WriteAt(make([]byte, 512), 0); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			s, err := power(ctx, d, h, parts{disks: []*os.File{disk}}, spec, optionsFor(spec))
			if err != nil {
				t.Fatal(err)
			}
			defer s.abandon()
			if s.monitor, err = d.attend(ctx, s.control); err != nil {
				t.Fatal(s.explain(err))
			}
			if s.port, err = takePort(ctx, s.Port, s.Container.Done()); err != nil {
				t.Fatal(s.explain(err))
			}
			s.host = boot.NewHost(s.port)
			if err := s.wake(ctx, false); err != nil {
				t.Fatal(s.explain(err))
			}
			looksJailed(t, s.PID())
			b := started{host: s.host, said: s.said}
			b.lives(t)
			if got := b.told(t, "boot"); !strings.Contains(got, "256") {
				t.Errorf("told: %s", got)
			}
		})
	}
}

// looksJailed looks at what the kernel says of a program in a jail.
func looksJailed(t *testing.T, pid int) {
	t.Helper()
	status, err := os.ReadFile(procOf(pid, "status"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"} {
		if !strings.Contains(string(status), want) {
			t.Errorf("no %q in\n%s", want, status)
		}
	}
	sockets, err := os.ReadDir(procOf(pid, "root"+placeSockets))
	if err != nil || len(sockets) != 2 {
		t.Errorf("its own directory has %v, %v", sockets, err)
	}
	if err := os.WriteFile(procOf(pid, "root/kernel"), nil, 0o644); err == nil {
		t.Error("its root can be written")
	}
}

func procOf(pid int, name string) string { return fmt.Sprintf("/proc/%d/%s", pid, name) }

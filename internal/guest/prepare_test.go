package guest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cofferdam/cofferdam/internal/guest/boot"
)

// like is what a machine is to build that will be told b.
func like(b boot.Boot) boot.Prepare {
	return boot.Prepare{Hostname: b.Hostname, MachineID: b.MachineID, Root: b.Root, Scratch: boot.Scratch{Bytes: 1 << 20, Files: 100}, Rights: b.Rights}
}

// prepare has a machine build what does not depend on whose it is.
func (m *machine) prepare(t *testing.T, p boot.Prepare) {
	t.Helper()
	if _, err := m.Ready(); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(m.Prepare(p), m.Prepared()); err != nil {
		t.Fatal(err)
	}
	m.waits = true
}

// bothWays is a test of machines that are told at once what to become, and of ones that were prepared before.
func bothWays(t *testing.T, test func(t *testing.T, begin func(m *machine, b boot.Boot) *machine)) {
	needMachine(t)
	t.Run("at once", func(t *testing.T) { test(t, func(m *machine, _ boot.Boot) *machine { return m }) })
	t.Run("prepared", func(t *testing.T) {
		test(t, func(m *machine, b boot.Boot) *machine {
			m.prepare(t, like(b))
			return m
		})
	})
}

// TestPrepared has machines build what does not depend on whose they are. What is then written to their disks is what they find there, and they have nothing in common.
func TestPrepared(t *testing.T) {
	needMachine(t)
	seen := map[string]string{}
	for i := range 2 {
		name := fmt.Sprintf("machine %d", i)
		empty := filepath.Join(t.TempDir(), "disk")
		if err := errors.Join(os.WriteFile(empty, nil, 0o600), os.Truncate(empty, 64<<20)); err != nil {
			t.Fatal(err)
		}
		m := start(t, root(t), empty)
		b := doing("random")
		b.Seed = [boot.SeedSize]byte{7, byte(i)}
		m.prepare(t, like(b))
		data, err := os.ReadFile(image(t, write(t, map[string]string{"its own": name})))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(empty, data, 0o600); err != nil { // the same file
			t.Fatal(err)
		}
		m.run(t, b)
		all := m.changed(t)
		if got := all["its own"].data; got != name+", seen" {
			t.Errorf("%s: its disk holds %q", name, got)
		}
		for _, kind := range []string{"kernel", "go", "start", "uuid", "boot"} {
			value := all[kind].data
			if other, ok := seen[value]; ok || value == "" {
				t.Errorf("%s, %s: drew %q as %s did", name, kind, value, other)
			}
			seen[value] = name
		}
		m.kill(t)
	}
}

// TestPreparedAsAnother tells a prepared machine to become what it cannot, or what nobody may: it ends.
func TestPreparedAsAnother(t *testing.T) {
	needMachine(t)
	for name, tell := range map[string]func(*machine, boot.Boot) error{
		"another root":   func(m *machine, b boot.Boot) error { b.Root = 1; return m.Boot(b) },
		"another id":     func(m *machine, b boot.Boot) error { b.MachineID = strings.Repeat("cd", 16); return m.Boot(b) },
		"rest":           func(m *machine, b boot.Boot) error { b.Rest = true; return m.Boot(b) },
		"prepared again": func(m *machine, b boot.Boot) error { return m.Prepare(like(b)) },
		"go on":          func(m *machine, _ boot.Boot) error { return m.GoOn() },
	} {
		t.Run(name, func(t *testing.T) {
			m := start(t, root(t), root(t))
			b := doing("look")
			b.Workspace = nil
			m.prepare(t, like(b))
			if err := tell(m, b); err != nil {
				t.Fatal(err)
			}
			if err := m.Started(); err == nil {
				t.Error("its runner begins")
			}
			m.kill(t)
		})
	}
}

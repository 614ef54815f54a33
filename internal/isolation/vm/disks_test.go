package vm

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/guest/boot"
	"github.com/cofferdam/cofferdam/internal/scratch"
	"github.com/cofferdam/cofferdam/internal/supervisor/call"
)

// TestCheckSpec refuses what a machine cannot have, with what to do instead.
func TestCheckSpec(t *testing.T) {
	many := make([]call.Mount, mostMounts+1)
	for _, c := range []struct {
		name string
		spec call.Create
		hint string // empty: allowed
	}{
		{"overlay", call.Create{RootFS: "/r", Workspace: &call.Workspace{Mode: "overlay"}, Mounts: many[:1]}, ""},
		{"read-only", call.Create{RootFS: "/r", Workspace: &call.Workspace{Mode: "ro"}}, ""},
		{"nothing but a root", call.Create{RootFS: "/r"}, ""},
		{"this machine's root", call.Create{}, "--image"},
		{"a shared folder", call.Create{RootFS: "/r", Workspace: &call.Workspace{Mode: "rw"}}, "cofferdam apply"},
		{"a shared mount", call.Create{RootFS: "/r", Mounts: []call.Mount{{}, {Write: true}}}, "read-only"},
		{"as many mounts as there can be", call.Create{RootFS: "/r", Mounts: many[1:]}, ""},
		{"too many mounts", call.Create{RootFS: "/r", Mounts: many}, "folder that holds several"},
	} {
		err := checkSpec(c.spec)
		if (err == nil) != (c.hint == "") || !strings.Contains(fault.HintOf(err), c.hint) {
			t.Errorf("%s: %v, hint %q", c.name, err, fault.HintOf(err))
		}
	}
}

// TestNameless makes files where the person keeps the sandbox's others, also for one that is nobody's yet and has none.
func TestNameless(t *testing.T) {
	image, run := t.TempDir(), t.TempDir()
	for name, c := range map[string]struct {
		spec call.Create
		dir  string
	}{
		"a run's":  {call.Create{RootDisk: image + "/disk", Changes: run + "/changes"}, run},
		"nobody's": {call.Create{RootDisk: image + "/disk"}, image},
	} {
		f, err := nameless(c.spec)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		defer f.Close()
		if at, err := os.Readlink(itself(f)); err != nil || filepath.Dir(at) != c.dir {
			t.Errorf("%s lies at %s, %v, want it in %s", name, at, err, c.dir)
		}
	}
}

// TestMakeDisks makes the disks of a specification: open, read-only, nameless, and all of one size.
func TestMakeDisks(t *testing.T) {
	root, folder := t.TempDir(), t.TempDir()
	for path, text := range map[string]string{root + "/in-root": "root", folder + "/in-folder": "folder", folder + "/single": "one file"} {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	changes := filepath.Join(t.TempDir(), "changes")
	spec := call.Create{
		RootFS: root, RootDisk: filepath.Join(t.TempDir(), "kept"), Changes: changes, Workspace: &call.Workspace{Source: folder, Target: "/w", Mode: "overlay"},
		Mounts: []call.Mount{{Source: folder + "/single", Target: "/a/b/c"}, {Source: folder, Target: "/a"}},
	}
	for range 2 { // the second finds the root's disk
		d, err := makeDisks(t.Context(), spec)
		if err != nil {
			t.Fatal(err)
		}
		if len(d.files) != 4 || d.workspace.Disk != 1 || d.workspace.Mode != boot.Overlay {
			t.Fatalf("%+v", d)
		}
		if m := d.mounts; len(m) != 2 || m[0].Target != "/a" || m[0].File || m[0].Disk != 2 || m[1].Target != "/a/b/c" || !m[1].File || m[1].Disk != 3 {
			t.Errorf("what lies deeper comes later: %+v", m)
		}
		for i, want := range []string{"in-root", "in-folder", "in-folder", "one file"} {
			head := make([]byte, 1<<20)
			n, _ := d.files[i].ReadAt(head, 0) // the disk is longer
			if !bytes.Contains(head[:n], []byte(want)) {
				t.Errorf("disk %d has no %q", i, want)
			}
			if _, err := d.files[i].WriteAt([]byte("x"), 0); err == nil {
				t.Errorf("disk %d can be written", i)
			}
			if info, err := d.files[i].Stat(); err != nil || info.Size() != diskCapacity {
				t.Errorf("disk %d: %v, %v", i, info.Size(), err)
			}
		}
		d.close()
	}
	for _, dir := range []string{filepath.Dir(changes), filepath.Dir(spec.RootDisk)} {
		left, err := os.ReadDir(dir)
		if want := map[bool]int{true: 1, false: 0}[dir == filepath.Dir(spec.RootDisk)]; err != nil || len(left) != want {
			t.Errorf("%s holds %v, %v", dir, left, err)
		}
	}
	if err := os.WriteFile(spec.RootDisk+".other", []byte("no disk"), 0o600); err != nil {
		t.Fatal(err)
	}
	spec.RootDisk += ".other"
	if _, err := makeDisks(t.Context(), spec); fault.KindOf(err) != fault.Unavailable {
		t.Errorf("a file that is no disk: %v", err)
	}
}

func TestMemory(t *testing.T) {
	for limit, want := range map[int64]int64{0: 1 << 30, 1: 128 << 20, 1 << 20: 128 << 20, 512<<20 + 5: 512 << 20, 8 << 30: 8 << 30} {
		if got := Memory(limit); got != want {
			t.Errorf("%d: %d, want %d", limit, got, want)
		}
	}
}

// TestOutput is a machine that writes without end to its console: the end of it is kept, and nothing that a terminal obeys.
func TestOutput(t *testing.T) {
	o := &output{}
	for range 1000 {
		o.take([]byte("noise noise noise noise noise noise noise noise noise noise\n"))
	}
	o.take([]byte("the \x1b]0;last\x07 line\r\n\n"))
	if got := o.last(); got != "the ?]0;last? line" || len(o.kept) > outputKept {
		t.Errorf("%q of %d bytes", got, len(o.kept))
	}
	o.take(bytes.Repeat([]byte("x"), 100_000))
	if got := o.last(); len(got) != outputText || len(o.kept) > outputKept {
		t.Errorf("%d bytes of %d", len(got), len(o.kept))
	}
}

// TestScratchDisk puts the disk for encrypted scratch behind the others, and bounds what comes back by memory, where scratch is not.
func TestScratchDisk(t *testing.T) {
	d := &disks{files: make([]*os.File, 3)}
	limits := call.Limits{Disk: 1 << 30, Memory: 256 << 20, Files: 100}
	for _, c := range []struct {
		kind    string
		disk    int // -1 for none
		changes int64
	}{{"", -1, 1 << 30}, {scratch.Memory, -1, 1 << 30}, {scratch.Encrypted, 3, 224 << 20}} {
		spec := call.Create{Scratch: c.kind, Limits: limits}
		got := -1
		s := d.scratch(spec)
		if s.Disk != nil {
			got = *s.Disk
		}
		if got != c.disk || s.Bytes != 1<<30 || s.Files != 100 || mostChanges(spec) != c.changes {
			t.Errorf("%q: disk %d, %+v, changes of %d bytes", c.kind, got, s, mostChanges(spec))
		}
	}
	if got := mostChanges(call.Create{Scratch: scratch.Encrypted, Limits: call.Limits{Disk: 1 << 20, Memory: 256 << 20}}); got != 1<<20 {
		t.Errorf("scratch that is less than memory: %d", got)
	}
}

// TestDriverFor takes QEMU for encrypted scratch whatever else is installed, and says so where it is not.
func TestDriverFor(t *testing.T) {
	folder := t.TempDir()
	program := func(name, says string) string {
		path := filepath.Join(folder, name)
		if err := os.WriteFile(path, []byte("#!/bin/sh\necho "+says+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		return path
	}
	about := boot.About{QEMU: program("qemu", "QEMU emulator version 9.0")}
	program("cloud-hypervisor", "cloud-hypervisor v52.0")
	for _, c := range []struct{ level, kind, qemu, want string }{
		{Level, scratch.Memory, about.QEMU, "Cloud Hypervisor"}, {Level, scratch.Encrypted, about.QEMU, "QEMU"}, {LevelEmulated, scratch.Encrypted, about.QEMU, "QEMU"},
		{Level, scratch.Encrypted, folder + "/absent", ""},
	} {
		d, err := driverFor(t.Context(), folder, boot.About{QEMU: c.qemu}, call.Create{Level: c.level, Scratch: c.kind})
		if c.want == "" {
			if fault.KindOf(err) != fault.Unsupported || !strings.Contains(err.Error(), "QEMU") || fault.HintOf(err) == "" {
				t.Errorf("%+v: %v", c, err)
			}
		} else if err != nil || d.name() != c.want {
			t.Errorf("%+v: %v, %v", c, d, err)
		}
	}
}

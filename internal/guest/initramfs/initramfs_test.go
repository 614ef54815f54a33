package initramfs

import (
	"bytes"
	"encoding/binary"
	"errors"

	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/testenv"
)

// program makes an ELF file that needs another one to run, or not.
func program(t *testing.T, dynamic bool) string {
	t.Helper()
	const headerLen, segmentLen = 64, 56
	data := make([]byte, headerLen+segmentLen)
	copy(data, "\x7fELF\x02\x01\x01")
	order := binary.LittleEndian
	order.PutUint16(data[16:], 2)  // an executable
	order.PutUint16(data[18:], 62) // amd64
	order.PutUint32(data[20:], 1)
	order.PutUint64(data[32:], headerLen)
	order.PutUint16(data[52:], headerLen)
	order.PutUint16(data[54:], segmentLen)
	order.PutUint16(data[56:], 1)
	order.PutUint32(data[headerLen:], 1)
	if dynamic {
		order.PutUint32(data[headerLen:], 3)
	}
	path := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(path, data, 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestBuild reads an archive with the tool that it is for.
func TestBuild(t *testing.T) {
	module := filepath.Join(t.TempDir(), "a.ko")
	if err := os.WriteFile(module, []byte("driver"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := Contents{Init: program(t, false), Runner: program(t, false), Modules: []string{module, module}, Crypt: []string{module}}
	var one, two bytes.Buffer
	if err := errors.Join(Build(&one, c), Build(&two, c)); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(one.Bytes(), two.Bytes()) {
		t.Error("the same files make different archives")
	}
	testenv.Need(t, "tool:cpio")
	list := exec.Command("cpio", "--list", "--verbose", "--numeric-uid-gid")
	list.Env = []string{"LC_ALL=C", "PATH=" + os.Getenv("PATH"), "TZ=UTC"}
	list.Stdin = &one
	out, err := list.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, want := range []string{"drwxr-xr-x 1 0 0 0 Jan 1 1970 proc", "crw-rw-rw- 1 0 0 1, 3 Jan 1 1970 dev/null", "-rwxr-xr-x 1 0 0 120 Jan 1 1970 init", "-rwxr-xr-x 1 0 0 120 Jan 1 1970 cofferdam-runner", "-rw-r--r-- 1 0 0 6 Jan 1 1970 modules/001-a.ko", "-rw-r--r-- 1 0 0 6 Jan 1 1970 modules-crypt/000-a.ko"} {
		if !strings.Contains(strings.Join(strings.Fields(string(out)), " "), want) {
			t.Errorf("%s is not in %s", want, out)
		}
	}
}

// TestBuildRefuses programs that could not run.
func TestBuildRefuses(t *testing.T) {
	good := program(t, false)
	text := filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(text, []byte("#!/bin/sh\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := Build(&bytes.Buffer{}, Contents{Init: program(t, true), Runner: good}); fault.KindOf(err) != fault.Unsupported {
		t.Errorf("a program that is linked dynamically: %v", err)
	}
	for name, c := range map[string]Contents{
		"no program": {Init: good, Runner: text}, "absent": {Init: good, Runner: text + "x"}, "no module": {Init: good, Runner: good, Modules: []string{text + "x"}}, "no module of encryption": {Init: good, Runner: good, Crypt: []string{text + "x"}},
	} {
		if err := Build(&bytes.Buffer{}, c); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

// kernelModule makes an ELF file with nothing but the section in which modules say what they need.
func kernelModule(t *testing.T, path, needs string) {
	t.Helper()
	const headerLen, sectionLen = 64, 64
	names, info := "\x00.modinfo\x00.shstrtab\x00", "license=GPL\x00depends="+needs+"\x00name=x\x00"
	data := make([]byte, headerLen)
	copy(data, "\x7fELF\x02\x01\x01")
	order := binary.LittleEndian
	order.PutUint16(data[16:], 1)  // relocatable
	order.PutUint16(data[18:], 62) // amd64
	order.PutUint32(data[20:], 1)
	order.PutUint64(data[40:], uint64(headerLen+len(names)+len(info)))
	order.PutUint16(data[52:], headerLen)
	order.PutUint16(data[58:], sectionLen)
	order.PutUint16(data[60:], 3)
	order.PutUint16(data[62:], 2)
	data = append(append(data, names...), info...)
	section := func(name, kind uint32, at, size int) {
		s := make([]byte, sectionLen)
		order.PutUint32(s, name)
		order.PutUint32(s[4:], kind)
		order.PutUint64(s[24:], uint64(at))
		order.PutUint64(s[32:], uint64(size))
		data = append(data, s...)
	}
	section(0, 0, 0, 0)
	section(1, 1, headerLen+len(names), len(info))
	section(10, 3, headerLen, len(names))
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, data, 0o600)); err != nil {
		t.Fatal(err)
	}
}

func TestResolve(t *testing.T) {
	dir := t.TempDir()
	for name, needs := range map[string]string{"drivers/virtio_net": "net-failover,virtio", "net/net-failover": "failover", "net/failover": "", "drivers/virtio": "built-in", "a/loop1": "loop2", "a/loop2": "loop1", "a/lost": "nowhere"} {
		kernelModule(t, filepath.Join(dir, "kernel", name+".ko"), needs)
	}
	if err := errors.Join(os.WriteFile(filepath.Join(dir, "modules.builtin"), []byte("kernel/x/built_in.ko\nkernel/y/virtio_console.ko\n"), 0o600), os.WriteFile(filepath.Join(dir, "kernel/small.ko.xz"), nil, 0o600),
		os.WriteFile(filepath.Join(dir, "kernel/text.ko"), []byte("text"), 0o600)); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ names, want string }{
		{"virtio_net virtio", "failover net-failover virtio virtio_net"}, {"virtio_console", ""}, {"", ""},
		{"loop1", "error: needs itself"}, {"lost", "error: no module nowhere"}, {"absent", "error: no module absent"}, {"small", "error: compressed"}, {"text", "error: "},
	} {
		paths, err := Resolve(dir, strings.Fields(c.names))
		var got []string
		for _, p := range paths {
			got = append(got, strings.TrimSuffix(filepath.Base(p), ".ko"))
		}
		if text, bad := strings.CutPrefix(c.want, "error: "); bad {
			if err == nil || !strings.Contains(err.Error(), text) {
				t.Errorf("%s: %v, %v, want an error with %q", c.names, got, err, text)
			}
		} else if err != nil || !slices.Equal(got, strings.Fields(c.want)) {
			t.Errorf("%s: %v, %v, want %s", c.names, got, err, c.want)
		}
	}
	if _, err := Resolve(t.TempDir(), nil); err == nil {
		t.Error("a directory that is no kernel's is taken")
	}
}
